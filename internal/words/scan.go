package words

import (
	"unicode"
	"unicode/utf8"
)

// kind is what a rune does to a word.
type kind uint8

const (
	gap    kind = iota // ends a word
	letter             // belongs to a word, as digits do
	single             // is a word by itself: scripts without spaces, and emoji
	mark               // belongs to what comes before it, if that is a word
	quote              // an apostrophe: see scanner.joins
)

// scanner finds words in a text. It does not fold them until it is asked to, so that who has met a spelling before
// needs no folding.
type scanner struct {
	text       string
	start, end int  // the current word in text
	ascii      bool // it has nothing but ASCII letters and digits
	single     bool
	elided     bool // it was cut off at an apostrophe, as the l in l'été
	buf        []byte
	tmp        []byte
}

func newScanner(text string) *scanner { return &scanner{text: text} }

// asciiLetters are the bytes below 0x80 that belong to words: letters and digits.
var asciiLetters = func() (is [utf8.RuneSelf]bool) {
	for c := range is {
		is[c] = 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
	}
	return is
}()

// next moves to the next word.
func (s *scanner) next() bool {
	i := s.end
	for i < len(s.text) {
		if c := s.text[i]; c < utf8.RuneSelf {
			if !asciiLetters[c] {
				i++
				continue
			}
			// Most words end where their ASCII letters do.
			end := i + 1
			for end < len(s.text) && s.text[end] < utf8.RuneSelf && asciiLetters[s.text[end]] {
				end++
			}
			s.start = i
			if end == len(s.text) || s.text[end] < utf8.RuneSelf && s.text[end] != '\'' {
				s.end, s.ascii, s.single, s.elided = end, true, false, false
			} else {
				s.run(letter, end)
			}
			return true
		}
		k, size := kindAt(s.text, i)
		if k == letter || k == single {
			s.start = i
			s.run(k, i+size)
			return true
		}
		i += size
	}
	s.start, s.end = len(s.text), len(s.text)
	return false
}

// run finds the end of the word that starts at s.start with a rune of kind k.
func (s *scanner) run(k kind, i int) {
	s.single, s.elided = k == single, false
	s.ascii = s.text[s.start] < utf8.RuneSelf
	for i < len(s.text) {
		next, size := kindAt(s.text, i)
		switch {
		case next == letter && k == letter, next == mark:
		case next == quote && k == letter:
			joins, elides := s.joins(i, i+size)
			if !joins {
				s.end, s.elided = i, elides
				return
			}
			s.ascii = false // folding has to drop the apostrophe
		default:
			s.end = i
			return
		}
		s.ascii = s.ascii && size == 1
		i += size
	}
	s.end = i
}

// joins decides about an apostrophe inside a word, at text[at:after]. English endings stay with their word (don't is
// dont, Anna's is annas), an article or preposition in front does not (l'été is l and été, dell'arte is dell and arte),
// so that a search for été finds l'été. What tells them apart is the length of what follows: endings have one or two
// letters, unless a single letter (or qu) stands before. Only Latin letters have elisions.
func (s *scanner) joins(at, after int) (joins, elides bool) {
	if k, _ := kindAt(s.text, after); after >= len(s.text) || k != letter {
		return false, false
	}
	following, latin := 0, true
	for i := after; i < len(s.text) && following < 3; following++ {
		k, size := kindAt(s.text, i)
		if k != letter && k != mark {
			break
		}
		r, _ := utf8.DecodeRuneInString(s.text[i:])
		latin = latin && (r < 0x250 || unicode.Is(unicode.Latin, r) || k == mark)
		i += size
	}
	before := 3 // or more: a count from the start at every apostrophe would take quadratic time
	if at-s.start < 3*utf8.UTFMax {
		before = utf8.RuneCountInString(s.text[s.start:at])
	}
	short := before == 1 || before == 2 && (s.text[s.start] == 'q' || s.text[s.start] == 'Q')
	if latin && (following >= 3 || short) {
		return false, before <= 2
	}
	return true, false
}

// kindAt classifies the rune at text[i:] and returns its length.
func kindAt(text string, i int) (kind, int) {
	if i >= len(text) {
		return gap, 1
	}
	if c := text[i]; c < utf8.RuneSelf {
		switch {
		case asciiLetters[c]:
			return letter, 1
		case c == '\'':
			return quote, 1
		}
		return gap, 1
	}
	r, size := utf8.DecodeRuneInString(text[i:])
	return kindOf(r), size
}

// kindOf classifies a rune that is not ASCII. The order of the cases matters: the frequent come first, and the
// exceptions before the rules.
func kindOf(r rune) kind {
	switch {
	case r < 0x250: // Latin-1 and its extensions
		switch {
		case r == 0xD7, r == 0xF7:
			return gap
		case r >= 0xC0, r == 0xAA, r == 0xB5, r == 0xBA:
			return letter
		case r == 0xAD: // soft hyphen
			return mark
		case r == 0xB2, r == 0xB3, r == 0xB9, r >= 0xBC && r <= 0xBE: // ² ³ ¹ and fractions
			return letter
		}
		return gap
	case r == 0x2BB, r == 0x2BC, r == 0x2018, r == 0x2019, r == 0xFF07:
		return quote
	case r >= 0x2BD && r < 0x590: // modifiers, Greek, Cyrillic, Armenian
		break
	case r >= 0x3041 && r <= 0x3096, r >= 0x309D && r <= 0x309F, // Hiragana
		r >= 0x30A1 && r <= 0x30FA, r >= 0x30FC && r <= 0x30FF, r >= 0x31F0 && r <= 0x31FF, // Katakana
		r >= 0xFF66 && r <= 0xFF9D,                             // half-width Katakana
		r >= 0x3400 && r <= 0x4DBF, r >= 0x4E00 && r <= 0x9FFF, // Han
		r >= 0xF900 && r <= 0xFAFF, r >= 0x20000 && r <= 0x3FFFF, r == 0x3005, r == 0x3007:
		if r >= 0x20000 && !unicode.IsLetter(r) {
			return gap
		}
		return single
	case r == 0x3099, r == 0x309A, r == 0xFF9E, r == 0xFF9F: // voicing marks; the half-width ones are letters to Unicode
		return mark
	case r >= 0x1F000 && r <= 0x1FAFF && !(r >= 0x1F3FB && r <= 0x1F3FF), r >= 0x2600 && r <= 0x27BF:
		if unicode.Is(unicode.So, r) {
			return single
		}
	case r >= 0x0E00 && r <= 0x0EFF, r >= 0x1000 && r <= 0x109F, r >= 0x1780 && r <= 0x17FF: // Thai, Lao, Myanmar, Khmer
		if unicode.IsLetter(r) {
			return single
		}
	case r == 0x5F3, r == 0x5F4: // Hebrew geresh and gershayim, in the middle of abbreviations
		return mark
	case r == 0x200C, r == 0x200D: // joiners
		return mark
	case r == 0x0640: // Arabic tatweel stretches a word
		return mark
	}
	switch {
	case unicode.IsLetter(r), unicode.IsNumber(r) && r != 0x3007:
		return letter
	case unicode.IsMark(r), r >= 0x1F3FB && r <= 0x1F3FF: // also the skin tones of emoji
		return mark
	}
	return gap
}
