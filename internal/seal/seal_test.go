package seal_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/seal"
)

const (
	first  = seal.Secret("0123456789abcdefghijklmnopqrstuv")
	second = seal.Secret("vutsrqponmlkjihgfedcba9876543210")
)

func keyring(t *testing.T, current seal.Secret, previous ...seal.Secret) *seal.Keyring {
	t.Helper()
	k, err := seal.NewKeyring(current, previous...)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestNothingPrintsASecret(t *testing.T) {
	key := seal.Key([]byte(first))
	for name, value := range map[string]any{"secret": first, "key": key} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t"} {
			if got := fmt.Sprintf(verb, value); got != "***" {
				t.Errorf("%s with %s prints %q", name, verb, got)
			}
			if got := fmt.Sprintf(verb, struct{ Field any }{value}); strings.Contains(got, "0123") || strings.Contains(got, "30313233") {
				t.Errorf("%s in a struct with %s prints %q", name, verb, got)
			}
		}
		encoded, err := json.Marshal(map[string]any{"value": value})
		if err != nil || string(encoded) != `{"value":"***"}` {
			t.Errorf("%s encodes as %s, %v", name, encoded, err)
		}
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("event", "value", value)
		if !strings.Contains(log.String(), "value=***") {
			t.Errorf("%s logs as %s", name, log.String())
		}
	}
	if first.Reveal() != "0123456789abcdefghijklmnopqrstuv" {
		t.Error("Reveal does not reveal")
	}
}

func TestWeakMasterKeysAreRefused(t *testing.T) {
	for name, secret := range map[string]seal.Secret{"empty": "", "short": "0123456789abcdefghijklmnopqrstu",
		"repeated": seal.Secret(strings.Repeat("ab", 40))} {
		if _, err := seal.NewKeyring(secret); fault.CodeOf(err) != "master_key_weak" {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := seal.NewKeyring(first, secret); fault.CodeOf(err) != "master_key_weak" {
			t.Errorf("%s as a previous key: got %v", name, err)
		}
	}
}

func TestSealedValues(t *testing.T) {
	k := keyring(t, first)
	sealed := k.Seal("webhook", []byte("whsec"), []byte("whk_1"))

	t.Run("open to what was sealed", func(t *testing.T) {
		plain, err := k.Open("webhook", sealed, []byte("whk_1"))
		if err != nil || string(plain) != "whsec" {
			t.Fatalf("got %q, %v", plain, err)
		}
	})
	t.Run("differ every time", func(t *testing.T) {
		if bytes.Equal(sealed, k.Seal("webhook", []byte("whsec"), []byte("whk_1"))) {
			t.Fatal("two sealings are equal")
		}
	})
	t.Run("hold empty plaintexts", func(t *testing.T) {
		plain, err := k.Open("webhook", k.Seal("webhook", nil, nil), nil)
		if err != nil || len(plain) != 0 {
			t.Fatalf("got %q, %v", plain, err)
		}
	})
	t.Run("refuse every changed byte", func(t *testing.T) {
		for i := range sealed {
			bad := bytes.Clone(sealed)
			bad[i] ^= 1
			want := "seal_broken"
			if i < 9 { // version and key id
				want = "seal_unknown_key"
			}
			if _, err := k.Open("webhook", bad, []byte("whk_1")); fault.CodeOf(err) != want {
				t.Fatalf("byte %d changed: got %v", i, err)
			}
		}
	})
	t.Run("refuse every truncation", func(t *testing.T) {
		for i := range sealed {
			if _, err := k.Open("webhook", sealed[:i], []byte("whk_1")); err == nil {
				t.Fatalf("%d bytes opened", i)
			}
		}
	})
	t.Run("refuse another aad", func(t *testing.T) {
		if _, err := k.Open("webhook", sealed, []byte("whk_2")); fault.CodeOf(err) != "seal_broken" {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("refuse another purpose", func(t *testing.T) {
		if _, err := k.Open("export", sealed, []byte("whk_1")); fault.CodeOf(err) != "seal_broken" {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("refuse another master key", func(t *testing.T) {
		if _, err := keyring(t, second).Open("webhook", sealed, []byte("whk_1")); fault.CodeOf(err) != "seal_unknown_key" {
			t.Fatalf("got %v", err)
		}
	})
}

func TestRotation(t *testing.T) {
	old, rotated, done := keyring(t, first), keyring(t, second, first), keyring(t, second)
	sealed := old.Seal("webhook", []byte("whsec"), nil)

	if plain, err := rotated.Open("webhook", sealed, nil); err != nil || string(plain) != "whsec" {
		t.Fatalf("a value of the previous key: got %q, %v", plain, err)
	}
	moved, changed, err := rotated.Rewrap("webhook", sealed, nil)
	if err != nil || !changed {
		t.Fatalf("rewrap: changed %v, %v", changed, err)
	}
	if plain, err := done.Open("webhook", moved, nil); err != nil || string(plain) != "whsec" {
		t.Fatalf("after the rotation: got %q, %v", plain, err)
	}
	again, changed, err := rotated.Rewrap("webhook", moved, nil)
	if err != nil || changed || !bytes.Equal(again, moved) {
		t.Fatalf("rewrap of a current value: changed %v, %v", changed, err)
	}
	if _, _, err := done.Rewrap("webhook", sealed, nil); fault.CodeOf(err) != "seal_unknown_key" {
		t.Fatalf("rewrap without the old key: got %v", err)
	}
}

func TestDerivedKeys(t *testing.T) {
	k := keyring(t, first)
	if k.Derive("jwt") != keyring(t, first).Derive("jwt") {
		t.Error("one purpose has two keys")
	}
	if k.Derive("jwt") == k.Derive("cursor") || k.Derive("jwt") == keyring(t, second).Derive("jwt") {
		t.Error("two purposes or two master keys share a key")
	}
}

func TestWrappedKeys(t *testing.T) {
	k, key := keyring(t, first), seal.NewKey()
	wrapped := k.WrapKey("ten_a", key)
	if got, err := k.UnwrapKey("ten_a", wrapped); err != nil || got != key {
		t.Fatalf("got another key, %v", err)
	}
	if _, err := k.UnwrapKey("ten_b", wrapped); fault.CodeOf(err) != "seal_broken" {
		t.Fatalf("another tenant: got %v", err)
	}
	moved, changed, err := keyring(t, second, first).RewrapKey("ten_a", wrapped)
	if err != nil || !changed {
		t.Fatalf("rewrap: %v %v", changed, err)
	}
	if got, err := keyring(t, second).UnwrapKey("ten_a", moved); err != nil || got != key {
		t.Fatalf("rotated: got another key, %v", err)
	}
	if a, b := seal.NewKey(), seal.NewKey(); a == b {
		t.Fatal("two new keys are equal")
	}
}

func TestBoxes(t *testing.T) {
	key := seal.NewKey()
	box := key.Box("chunk")
	sealed := box.Seal([]byte("content"), []byte("name"))
	if plain, err := box.Open(sealed, []byte("name")); err != nil || string(plain) != "content" {
		t.Fatalf("got %q, %v", plain, err)
	}
	if plain, err := key.Box("chunk").Open(box.Seal(nil, nil), nil); err != nil || len(plain) != 0 {
		t.Fatalf("empty: got %q, %v", plain, err)
	}
	if bytes.Equal(sealed, box.Seal([]byte("content"), []byte("name"))) || bytes.Contains(sealed, []byte("content")) {
		t.Fatal("sealed twice the same, or not at all")
	}
	broken := map[string]func() ([]byte, error){
		"another key":     func() ([]byte, error) { return seal.NewKey().Box("chunk").Open(sealed, []byte("name")) },
		"another purpose": func() ([]byte, error) { return key.Box("manifest").Open(sealed, []byte("name")) },
		"another aad":     func() ([]byte, error) { return box.Open(sealed, []byte("names")) },
	}
	for i := range sealed {
		broken[fmt.Sprintf("byte %d changed", i)] = func() ([]byte, error) {
			bad := bytes.Clone(sealed)
			bad[i] ^= 1
			return box.Open(bad, []byte("name"))
		}
		broken[fmt.Sprintf("cut to %d bytes", i)] = func() ([]byte, error) { return box.Open(sealed[:i], []byte("name")) }
	}
	for name, open := range broken {
		if plain, err := open(); fault.CodeOf(err) != "seal_broken" || plain != nil {
			t.Errorf("%s: got %q, %v", name, plain, err)
		}
	}
	if once, again := key.Derive("name"), key.Derive("name"); once != again || key.Derive("name") == key.Derive("cut") || key.Derive("name") == key {
		t.Error("derived keys are not one per purpose")
	}
}
