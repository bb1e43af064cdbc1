package account

import (
	"fmt"
	"log/slog"

	"claude-memory-backend/internal/seal"
)

// AccessToken proves a session for a few minutes; RefreshToken gets the next one. They are types of their own, so that
// one cannot be passed for the other, and print as *** like every secret.
type (
	AccessToken  string
	RefreshToken string
)

// Reveal returns the token itself; every call is a place to review.
func (t AccessToken) Reveal() string { return string(t) }

// String masks.
func (t AccessToken) String() string { return seal.Secret(t).String() }

// GoString masks %#v.
func (t AccessToken) GoString() string { return seal.Secret(t).GoString() }

// Format masks every verb.
func (t AccessToken) Format(f fmt.State, verb rune) { seal.Secret(t).Format(f, verb) }

// LogValue masks in slog.
func (t AccessToken) LogValue() slog.Value { return seal.Secret(t).LogValue() }

// MarshalText masks in every text encoding, JSON too.
func (t AccessToken) MarshalText() ([]byte, error) { return seal.Secret(t).MarshalText() }

// Reveal returns the token itself; every call is a place to review.
func (t RefreshToken) Reveal() string { return string(t) }

// String masks.
func (t RefreshToken) String() string { return seal.Secret(t).String() }

// GoString masks %#v.
func (t RefreshToken) GoString() string { return seal.Secret(t).GoString() }

// Format masks every verb.
func (t RefreshToken) Format(f fmt.State, verb rune) { seal.Secret(t).Format(f, verb) }

// LogValue masks in slog.
func (t RefreshToken) LogValue() slog.Value { return seal.Secret(t).LogValue() }

// MarshalText masks in every text encoding, JSON too.
func (t RefreshToken) MarshalText() ([]byte, error) { return seal.Secret(t).MarshalText() }
