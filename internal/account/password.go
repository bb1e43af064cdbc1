package account

import (
	_ "embed"
	"net/mail"
	"strings"
	"unicode/utf8"

	"claude-memory-backend/internal/fault"
)

// Bounds of a password, in characters.
const (
	passwordMin = 8
	passwordMax = 128
)

//go:embed common_passwords.txt
var commonPasswords string

// checkPassword says what is wrong with a password that somebody wants to have.
func checkPassword(c *fault.Checks, location, password, email string) {
	n := utf8.RuneCountInString(password)
	switch {
	case !utf8.ValidString(password) || strings.ContainsRune(password, 0):
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

func common(password string) bool {
	low := strings.ToLower(password)
	for line := range strings.Lines(commonPasswords) {
		if strings.TrimSpace(line) == low {
			return true
		}
	}
	return false
}

// checkEmail returns an address as it was meant and as it is compared.
func checkEmail(c *fault.Checks, location, email string) (shown, folded string) {
	email = strings.TrimSpace(email)
	a, err := mail.ParseAddress(email)
	_, domain, _ := strings.Cut(email, "@")
	if err != nil || a.Address != email || len(email) > 254 || domain == "" || strings.ContainsAny(email, " \t\r\n\x00\"") {
		c.Add(location, "must be an e-mail address like ada@example.com")
		return "", ""
	}
	return email, strings.ToLower(email)
}
