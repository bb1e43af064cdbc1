package fault

import (
	"net/mail"
	"strings"
	"unicode"
	"unicode/utf8"
)

const emailMax = 254 // bytes

// Email checks an address and returns it without the space around it. It wants a plain local part and a domain; what else
// RFC 5322 allows (names, comments, quotes, literal addresses) nobody means.
func (c *Checks) Email(location, email string) string {
	email = strings.TrimSpace(email)
	a, err := mail.ParseAddress(email)
	local, domain, _ := strings.Cut(email, "@")
	odd := func(r rune) bool {
		return strings.ContainsRune("\"\\()<>[],;:", r) || unicode.IsSpace(r) || !unicode.IsPrint(r)
	}
	if err != nil || a.Address != email || len(email) > emailMax || local == "" || domain == "" || !utf8.ValidString(email) ||
		strings.ContainsFunc(email, odd) || strings.HasPrefix(domain, "-") || strings.HasSuffix(domain, "-") {
		c.Add(location, "must be an e-mail address like ada@example.com")
		return ""
	}
	return email
}
