package words

import (
	"strings"
	"unicode/utf8"

	"github.com/blevesearch/snowballstem"
	"github.com/blevesearch/snowballstem/english"
	"github.com/blevesearch/snowballstem/russian"
)

// Stem returns what a folded word has in common with its other forms, or the word itself. The script decides how:
// English for Latin letters, Russian for Cyrillic, and for Arabic the article and the common endings are cut off.
func Stem(word string) string {
	r, _ := utf8.DecodeRuneInString(word)
	switch {
	case 'a' <= r && r <= 'z':
		if len(word) < 3 || !plain(word) {
			return word
		}
		return snowball(english.Stem, word)
	case 0x400 <= r && r < 0x530:
		return snowball(russian.Stem, word)
	case 0x600 <= r && r < 0x700:
		return arabic(word)
	}
	return word
}

// plain reports whether a word has nothing but ASCII letters: what has digits is a name or a number.
func plain(word string) bool {
	for i := range len(word) {
		if word[i] < 'a' || word[i] > 'z' {
			return false
		}
	}
	return true
}

func snowball(stem func(*snowballstem.Env) bool, word string) string {
	env := snowballstem.NewEnv(word)
	stem(env)
	if s := env.Current(); s != "" {
		return s
	}
	return word
}

// arabic cuts off one article or preposition with article, and one ending, as long as three letters stay.
func arabic(word string) string {
	const letter = 2 // bytes of an Arabic letter
	for _, p := range [...]string{"وال", "بال", "كال", "فال", "ال", "لل"} {
		if rest, ok := strings.CutPrefix(word, p); ok && len(rest) >= 3*letter {
			word = rest
			break
		}
	}
	for _, p := range [...]string{"ها", "ان", "ات", "ون", "ين", "يه", "ه", "ي"} {
		if rest, ok := strings.CutSuffix(word, p); ok && len(rest) >= 3*letter {
			return rest
		}
	}
	return word
}
