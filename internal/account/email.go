package account

import (
	"strings"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Fold is the form in which e-mail addresses are compared: one mailbox has one account, however it is typed.
func Fold(email string) string { return norm.NFC.String(strings.ToLower(strings.TrimSpace(email))) }

// storable reports whether every engine can hold the text.
func storable(text string) bool { return utf8.ValidString(text) && !strings.ContainsRune(text, 0) }

// cut returns valid text of at most n bytes.
func cut(text string, n int) string {
	if len(text) > n {
		text = text[:n]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(text, ""), "\x00", "")
}
