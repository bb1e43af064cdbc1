package account

import (
	_ "embed"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"claude-memory-backend/internal/fault"
)

// Bounds of a password, in characters.
const (
	passwordMin = 8
	passwordMax = 128
)

//go:embed common_passwords.txt
var commonPasswords string

// prepared is the form in which a password is counted and hashed: keyboards write the same accented letter in one
// character or in two. Nothing is cut off.
func prepared(password string) string { return norm.NFC.String(password) }

// checkPassword says what is wrong with a password that somebody wants to have.
func checkPassword(c *fault.Checks, location, password, email string) {
	n := utf8.RuneCountInString(prepared(password))
	switch {
	case !storable(password):
		c.Add(location, "must be valid UTF-8 without NUL characters")
	case n < passwordMin:
		c.Add(location, "must have at least 8 characters")
	case n > passwordMax:
		c.Add(location, "must have at most 128 characters")
	case common(password):
		c.Add(location, "is one of the passwords that are tried first: choose another")
	case email != "" && strings.EqualFold(password, email):
		c.Add(location, "must not be the e-mail address")
	}
}

// common reports whether a password is one of those that are tried first: a known one, or one character over and over.
func common(password string) bool {
	low := strings.ToLower(prepared(password))
	if first, _ := utf8.DecodeRuneInString(low); strings.Trim(low, string(first)) == "" {
		return true
	}
	return slices.Contains(strings.Fields(commonPasswords), low)
}
