package seal

import (
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
)

// mask is what every printed secret looks like.
const mask = "***"

// Secret is text that must not be printed: it masks itself in fmt, slog, JSON and text encodings. Inside a struct it
// masks itself only as an exported field: fmt cannot call methods of unexported ones.
type Secret string

// Reveal returns the text itself; every call is a place to review.
func (s Secret) Reveal() string { return string(s) }

// String masks.
func (Secret) String() string { return mask }

// GoString masks %#v.
func (Secret) GoString() string { return mask }

// Format masks every verb: for a wrong verb, as in %d, fmt would print the value without asking String.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, mask) }

// LogValue masks in slog.
func (Secret) LogValue() slog.Value { return slog.StringValue(mask) }

// MarshalJSON masks.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + mask + `"`), nil }

// MarshalText masks in every text encoding.
func (Secret) MarshalText() ([]byte, error) { return []byte(mask), nil }

// Key is 256 bits that must not be printed; it masks itself like [Secret].
type Key [32]byte

// NewKey draws a random key.
func NewKey() Key {
	var k Key
	_, _ = rand.Read(k[:]) // never fails: crypto/rand ends the process instead
	return k
}

// String masks.
func (Key) String() string { return mask }

// GoString masks %#v.
func (Key) GoString() string { return mask }

// Format masks every verb.
func (Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, mask) }

// LogValue masks in slog.
func (Key) LogValue() slog.Value { return slog.StringValue(mask) }

// MarshalJSON masks.
func (Key) MarshalJSON() ([]byte, error) { return []byte(`"` + mask + `"`), nil }

// MarshalText masks in every text encoding.
func (Key) MarshalText() ([]byte, error) { return []byte(mask), nil }
