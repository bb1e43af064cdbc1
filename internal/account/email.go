package account

import (
	"net/mail"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"claude-memory-backend/internal/fault"
)

const emailMax = 254 // bytes

// Fold is the form in which e-mail addresses are compared: one mailbox has one account, however it is typed.
func Fold(email string) string { return norm.NFC.String(strings.ToLower(strings.TrimSpace(email))) }

// checkEmail returns an address without the space around it. It wants a plain local part and a domain; what else RFC
// 5322 allows (names, comments, quotes, literal addresses) nobody means when registering.
func checkEmail(c *fault.Checks, location, email string) string {
	email = strings.TrimSpace(email)
	a, err := mail.ParseAddress(email)
	local, domain, _ := strings.Cut(email, "@")
	odd := func(r rune) bool {
		return strings.ContainsRune("\"\\()<>[],;:", r) || unicode.IsSpace(r) || !unicode.IsPrint(r)
	}
	if err != nil || a.Address != email || len(email) > emailMax || local == "" || domain == "" || !storable(email) ||
		strings.ContainsFunc(email, odd) || strings.HasPrefix(domain, "-") || strings.HasSuffix(domain, "-") {
		c.Add(location, "must be an e-mail address like ada@example.com")
		return ""
	}
	return email
}

// storable reports whether every engine can hold the text.
func storable(text string) bool { return utf8.ValidString(text) && !strings.ContainsRune(text, 0) }

// cut returns valid text of at most n bytes.
func cut(text string, n int) string {
	if len(text) > n {
		text = text[:n]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(text, ""), "\x00", "")
}
