package seal

import (
	"crypto/cipher"
	"crypto/rand"

	"golang.org/x/crypto/chacha20poly1305"

	"claude-memory-backend/internal/fault"
)

// Derive returns the key for one purpose under this one.
func (k Key) Derive(purpose string) Key { return Key(derive(k[:], "key "+purpose, len(k))) }

// Box seals values of any size under one key. It is safe for concurrent use. What it makes is: version (1 byte), nonce
// (24 bytes), XChaCha20-Poly1305 ciphertext.
type Box struct{ aead cipher.AEAD }

// Box returns the box of a purpose: what is sealed for one does not open for another.
func (k Key) Box(purpose string) Box {
	box := k.Derive("box " + purpose)
	c, err := chacha20poly1305.NewX(box[:])
	if err != nil {
		panic(err) // the length of a Key is right
	}
	return Box{c}
}

const boxHeader = 1 + chacha20poly1305.NonceSizeX

// Seal encrypts plaintext and binds it to aad, which Open must be given again.
func (b Box) Seal(plaintext, aad []byte) []byte {
	sealed := make([]byte, boxHeader, boxHeader+len(plaintext)+chacha20poly1305.Overhead)
	sealed[0] = version
	_, _ = rand.Read(sealed[1:])
	return b.aead.Seal(sealed, sealed[1:boxHeader], plaintext, bound(sealed[:1], aad))
}

// Open returns what Seal was given. Anything else, another key, purpose or aad is code "seal_broken".
func (b Box) Open(sealed, aad []byte) ([]byte, error) {
	if len(sealed) < boxHeader+chacha20poly1305.Overhead || sealed[0] != version {
		return nil, fault.New(fault.Internal, "seal.Open", "seal_broken", "this is not a value that we sealed")
	}
	plain, err := b.aead.Open(nil, sealed[1:boxHeader], sealed[boxHeader:], bound(sealed[:1], aad))
	if err != nil {
		return nil, fault.New(fault.Internal, "seal.Open", "seal_broken", "the sealed value does not open").With(err)
	}
	return plain, nil
}
