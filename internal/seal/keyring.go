package seal

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"

	"claude-memory-backend/internal/fault"
)

const (
	version   = 1
	idLen     = 8
	headerLen = 1 + idLen
	minSecret = 32
)

// wrapPurpose is the purpose under which keys of tenants' files are sealed.
const wrapPurpose = "tenant file key"

// Keyring holds the master key in force and those it replaced. It is safe for concurrent use.
type Keyring struct {
	keys []master // the current one first
}

// master is one master key, with the id that sealed values carry.
type master struct {
	id     [idLen]byte
	secret []byte
}

// NewKeyring takes the master key in force and, newest first, those that may still have sealed something. Every
// secret has at least 32 bytes; one of a few repeated characters is refused.
func NewKeyring(current Secret, previous ...Secret) (*Keyring, error) {
	k := &Keyring{}
	for _, s := range append([]Secret{current}, previous...) {
		secret := []byte(s.Reveal())
		if len(secret) < minSecret {
			return nil, fault.New(fault.Invalid, "seal.NewKeyring", "master_key_weak",
				"a master key needs at least 32 bytes")
		}
		if distinct(secret) < 8 {
			return nil, fault.New(fault.Invalid, "seal.NewKeyring", "master_key_weak",
				"a master key must be random, not a few repeated characters")
		}
		m := master{secret: secret}
		copy(m.id[:], derive(secret, "key id", idLen))
		if _, known := k.find(m.id[:]); !known {
			k.keys = append(k.keys, m)
		}
	}
	return k, nil
}

// Seal encrypts plaintext under the current key for one purpose and binds it to aad, which Open must be given again.
func (k *Keyring) Seal(purpose string, plaintext, aad []byte) []byte {
	m := k.keys[0]
	sealed := make([]byte, headerLen+chacha20poly1305.NonceSizeX, headerLen+chacha20poly1305.NonceSizeX+
		len(plaintext)+chacha20poly1305.Overhead)
	sealed[0] = version
	copy(sealed[1:], m.id[:])
	nonce := sealed[headerLen:]
	_, _ = rand.Read(nonce)
	return aead(m, purpose).Seal(sealed, nonce, plaintext, bound(sealed[:headerLen], aad))
}

// Open returns what Seal was given. Bytes of another format or of an unknown master key are code "seal_unknown_key";
// a changed value, another purpose or another aad is "seal_broken".
func (k *Keyring) Open(purpose string, sealed, aad []byte) ([]byte, error) {
	if len(sealed) < headerLen+chacha20poly1305.NonceSizeX+chacha20poly1305.Overhead || sealed[0] != version {
		return nil, fault.New(fault.Internal, "seal.Open", "seal_unknown_key", "this is not a value that we sealed")
	}
	m, ok := k.find(sealed[1:headerLen])
	if !ok {
		return nil, fault.New(fault.Internal, "seal.Open", "seal_unknown_key",
			"the value was sealed with a master key that is not configured")
	}
	nonce, box := sealed[headerLen:headerLen+chacha20poly1305.NonceSizeX], sealed[headerLen+chacha20poly1305.NonceSizeX:]
	plain, err := aead(m, purpose).Open(nil, nonce, box, bound(sealed[:headerLen], aad))
	if err != nil {
		return nil, fault.New(fault.Internal, "seal.Open", "seal_broken", "the sealed value does not open").With(err)
	}
	return plain, nil
}

// Rewrap seals the value again under the current key. changed is false, and the bytes are the given ones, when they
// were under it already.
func (k *Keyring) Rewrap(purpose string, sealed, aad []byte) (newSealed []byte, changed bool, err error) {
	plain, err := k.Open(purpose, sealed, aad)
	if err != nil {
		return nil, false, fault.Wrap("seal.Rewrap", err)
	}
	if bytes.Equal(sealed[1:headerLen], k.keys[0].id[:]) {
		return sealed, false, nil
	}
	return k.Seal(purpose, plain, aad), true, nil
}

// ID names the current master key. It is no secret: everything sealed under the key carries it.
func (k *Keyring) ID() string { return hex.EncodeToString(k.keys[0].id[:]) }

// IDs are the ids of all keys, the current one's first. Sealed values carry them in front of their nonce.
func (k *Keyring) IDs() [][]byte {
	list := make([][]byte, 0, len(k.keys))
	for _, m := range k.keys {
		list = append(list, bytes.Clone(m.id[:]))
	}
	return list
}

// Following returns a keyring that opens the same and seals under the key that sealed the value. A value of a key that
// is not there is code "seal_unknown_key".
func (k *Keyring) Following(sealed []byte) (*Keyring, error) {
	for i, m := range k.keys {
		if len(sealed) > headerLen && bytes.Equal(sealed[1:headerLen], m.id[:]) {
			return &Keyring{keys: slices.Concat(k.keys[i:i+1], k.keys[:i], k.keys[i+1:])}, nil
		}
	}
	return nil, fault.New(fault.Internal, "seal.Following", "seal_unknown_key",
		"the value was sealed with a master key that is not configured")
}

// Derive returns the current master key's key for a purpose: the same one at every start, another after a rotation.
func (k *Keyring) Derive(purpose string) Key {
	return Key(derive(k.keys[0].secret, "derive "+purpose, 32))
}

// WrapKey seals the key of a tenant's file, bound to the tenant's id.
func (k *Keyring) WrapKey(tenantID string, key Key) []byte {
	return k.Seal(wrapPurpose, key[:], []byte(tenantID))
}

// UnwrapKey returns the key that WrapKey sealed for that tenant, and for no other.
func (k *Keyring) UnwrapKey(tenantID string, wrapped []byte) (Key, error) {
	plain, err := k.Open(wrapPurpose, wrapped, []byte(tenantID))
	if err != nil {
		return Key{}, fault.Wrap("seal.UnwrapKey", err)
	}
	if len(plain) != len(Key{}) {
		return Key{}, fault.New(fault.Internal, "seal.UnwrapKey", "seal_broken", "the wrapped key has a wrong length")
	}
	return Key(plain), nil
}

// RewrapKey is Rewrap for what WrapKey made.
func (k *Keyring) RewrapKey(tenantID string, wrapped []byte) (newWrapped []byte, changed bool, err error) {
	return k.Rewrap(wrapPurpose, wrapped, []byte(tenantID))
}

func (k *Keyring) find(id []byte) (master, bool) {
	for _, m := range k.keys {
		if bytes.Equal(m.id[:], id) {
			return m, true
		}
	}
	return master{}, false
}

// derive expands the secret for one label. The arguments are ours, so a failure is a defect.
func derive(secret []byte, label string, length int) []byte {
	key, err := hkdf.Key(sha256.New, secret, nil, "memoryd v1 "+label, length)
	if err != nil {
		panic(err)
	}
	return key
}

// aead makes the cipher of a purpose. Its nonces are 24 random bytes: with the 12 of AES-GCM a key would have to be
// counted and retired.
func aead(m master, purpose string) interface {
	Seal(dst, nonce, plaintext, additionalData []byte) []byte
	Open(dst, nonce, ciphertext, additionalData []byte) ([]byte, error)
} {
	c, err := chacha20poly1305.NewX(derive(m.secret, "seal "+purpose, chacha20poly1305.KeySize))
	if err != nil {
		panic(err)
	}
	return c
}

// bound puts the header under authentication too.
func bound(header, aad []byte) []byte {
	return append(append(make([]byte, 0, len(header)+len(aad)), header...), aad...)
}

func distinct(b []byte) int {
	var seen [256]bool
	n := 0
	for _, c := range b {
		if !seen[c] {
			seen[c] = true
			n++
		}
	}
	return n
}
