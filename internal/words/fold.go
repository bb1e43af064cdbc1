package words

import (
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// word is the folded form of the current word. The bytes are valid until the next call.
func (s *scanner) word() []byte {
	raw := s.text[s.start:s.end]
	if s.ascii {
		if len(raw) > MaxRunes {
			raw = raw[:MaxRunes]
		}
		s.buf = append(s.buf[:0], raw...)
		for i, c := range s.buf {
			if 'A' <= c && c <= 'Z' {
				s.buf[i] = c + 'a' - 'A'
			}
		}
		return s.buf
	}
	if len(raw) > 16*MaxRunes { // a base letter may carry many marks, but nobody's word needs more
		raw = raw[:runeStart(raw, 16*MaxRunes)]
	}
	s.tmp = norm.NFKD.AppendString(s.tmp[:0], raw)
	s.buf = fold(s.buf[:0], s.tmp)
	if !norm.NFC.IsNormal(s.buf) { // Hangul, voiced kana and the like become one rune again
		s.tmp = norm.NFC.Append(s.tmp[:0], s.buf...)
		s.buf, s.tmp = s.tmp, s.buf
	}
	s.buf = cut(s.buf)
	if len(s.buf) == 0 { // a letter that folds to nothing stands for itself
		s.buf = cut(append(s.buf, raw...))
	}
	return s.buf
}

// Fold is the form in which names are compared without regard to case and accents. It folds the words of a text and
// keeps one space between them.
func Fold(text string) string {
	var out []byte
	for s := newScanner(text); s.next(); {
		if len(out) > 0 {
			out = append(out, ' ')
		}
		out = append(out, s.word()...)
	}
	return string(out)
}

// fold appends decomposed text without case and without the marks that its script can do without.
func fold(out, decomposed []byte) []byte {
	var base rune
	for i := 0; i < len(decomposed); {
		r, size := utf8.DecodeRune(decomposed[i:])
		i += size
		switch {
		case r < utf8.RuneSelf:
			r = unicode.ToLower(r)
			if !('a' <= r && r <= 'z' || '0' <= r && r <= '9') {
				continue // an apostrophe, or the space that some compatibility forms have
			}
		case unicode.IsMark(r):
			if !keeps(base, r) {
				continue
			}
			out = utf8.AppendRune(out, r)
			continue
		default:
			r = unicode.ToLower(r)
			if s, ok := unified(r); ok {
				out = append(out, s...)
				base = r
				continue
			}
			if !unicode.IsLetter(r) && !unicode.IsNumber(r) && kindOf(r) != single {
				continue
			}
			if d, ok := digit(r); ok {
				r = '0' + d
			}
		}
		base = r
		out = utf8.AppendRune(out, r)
	}
	return out
}

// keeps reports whether a mark after base makes another letter of it. In Latin, Greek, Arabic and Hebrew marks are
// accents or vowels that people leave out; in Cyrillic й, ў and ї are letters; elsewhere (India, South-East Asia, the
// voiced sounds of Japanese) marks are as much part of the word as letters are.
func keeps(base, m rune) bool {
	switch {
	case m == 0x3099, m == 0x309A:
		return true
	case m == 0x306:
		return base == 'и' || base == 'у'
	case m == 0x308:
		return base == 'і'
	}
	return !unicode.In(m, unicode.Inherited, unicode.Hebrew, unicode.Arabic, unicode.Syriac, unicode.Cyrillic,
		unicode.Greek, unicode.Latin)
}

// unified returns what is written for a letter that does not decompose but is commonly written, or typed, otherwise.
func unified(r rune) (string, bool) {
	switch r {
	case 'ß':
		return "ss", true
	case 'æ':
		return "ae", true
	case 'œ':
		return "oe", true
	case 'ø':
		return "o", true
	case 'ł':
		return "l", true
	case 'đ', 'ð':
		return "d", true
	case 'þ':
		return "th", true
	case 'ħ':
		return "h", true
	case 'ŧ':
		return "t", true
	case 'ı':
		return "i", true
	case 'ς':
		return "σ", true
	case 'ى', 'ی': // Arabic alef maksura and Persian yeh
		return "ي", true
	case 'ک': // Persian kaf
		return "ك", true
	case 'ٱ':
		return "ا", true
	case 'ة':
		return "ه", true
	case 'ـ': // tatweel
		return "", true
	}
	return "", false
}

// digit is the value of a decimal digit of any script. Unicode lays them out in runs that start with a zero.
func digit(r rune) (rune, bool) {
	if !unicode.IsDigit(r) {
		return 0, false
	}
	for _, t := range unicode.Nd.R16 {
		if rune(t.Lo) <= r && r <= rune(t.Hi) {
			return (r - rune(t.Lo)) % 10, true
		}
	}
	for _, t := range unicode.Nd.R32 {
		if rune(t.Lo) <= r && r <= rune(t.Hi) {
			return (r - rune(t.Lo)) % 10, true
		}
	}
	return 0, false
}

// cut keeps the first MaxRunes runes.
func cut(word []byte) []byte {
	if len(word) <= MaxRunes {
		return word
	}
	n := 0
	for i := range string(word) {
		if n == MaxRunes {
			return word[:i]
		}
		n++
	}
	return word
}

// runeStart is the last position at or before i where a rune starts.
func runeStart(s string, i int) int {
	for i > 0 && i < len(s) && !utf8.RuneStart(s[i]) {
		i--
	}
	return i
}
