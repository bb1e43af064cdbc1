package words

import (
	"errors"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Why a question cannot be answered.
var (
	ErrEmpty   = errors.New("there is no word to look for")
	ErrOnlyNot = errors.New("there are only words to leave out")
)

// MaxTerms is how many terms of a question count; later ones are ignored.
const MaxTerms = 64

// Query is a parsed question, in two forms.
type Query struct {
	All []Clause // strict: every word and phrase. Words of a script without spaces are phrases of characters.
	Any []Clause // loose: what is worth finding alone. Those phrases are pairs of characters here.
	Not []Clause // what must not be there, in either form
}

// ParseQuery reads words, "phrases", prefix* and -not, in any order and with any punctuation, so that a question as one
// would ask a person is a query as well. A plain word also finds its other forms, one in a phrase or after a minus does
// not. It fails with ErrEmpty or ErrOnlyNot.
func ParseQuery(text string) (Query, error) {
	p := parser{room: MaxTerms}
	for text = strings.TrimLeftFunc(text, unicode.IsSpace); text != "" && p.room > 0; {
		text = strings.TrimLeftFunc(p.part(text), unicode.IsSpace)
	}
	switch {
	case len(p.q.All) > 0:
		return p.q, nil
	case len(p.q.Not) > 0:
		return Query{}, ErrOnlyNot
	}
	return Query{}, ErrEmpty
}

type parser struct {
	q    Query
	room int // terms that may still come
}

// quotes open and close phrases; people's keyboards mix them freely.
const quotes = "\"“”„‟«»"

// part reads one phrase or one run of text without spaces, and returns the rest.
func (p *parser) part(text string) string {
	not := false
	if len(text) > 1 && text[0] == '-' && text[1] != '-' {
		if r, _ := utf8.DecodeRuneInString(text[1:]); !unicode.IsSpace(r) {
			not, text = true, text[1:]
		}
	}
	if r, size := utf8.DecodeRuneInString(text); strings.ContainsRune(quotes, r) {
		text = text[size:]
		end := strings.IndexAny(text, quotes)
		if end < 0 {
			return text // nobody closed it: it is punctuation
		}
		p.phrase(text[:end], not)
		_, size = utf8.DecodeRuneInString(text[end:])
		return text[end+size:]
	}
	end := strings.IndexFunc(text, func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(quotes, r) })
	if end < 0 {
		end = len(text)
	}
	if not {
		p.phrase(text[:end], true)
	} else {
		p.plain(text[:end])
	}
	return text[end:]
}

// phrase takes words that must stand together as they are.
func (p *parser) phrase(text string, not bool) {
	var c Clause
	s := newScanner(text)
	star := false
	for len(c) < p.room && s.next() {
		c = append(c, Term{Text: string(s.word())})
		star = prefixed(text, s)
	}
	if len(c) == 0 {
		return
	}
	c[len(c)-1].Prefix = star
	if not {
		p.add(&p.q.Not, c)
	} else if p.add(&p.q.All, c) {
		add(&p.q.Any, c)
	}
}

// plain takes words of which each counts alone, and runs of a script without spaces.
func (p *parser) plain(text string) {
	var run Clause
	end := -1
	flush := func() {
		if len(run) == 0 || !p.add(&p.q.All, run) {
			run = nil
			return
		}
		for i := 0; len(run) > 2 && i+2 <= len(run); i++ {
			add(&p.q.Any, run[i:i+2:i+2])
		}
		if len(run) <= 2 {
			add(&p.q.Any, run)
		}
		run = nil
	}
	for s := newScanner(text); len(run) < p.room && s.next(); {
		if s.single {
			if s.start != end {
				flush()
			}
			run, end = append(run, Term{Text: string(s.word())}), s.end
			continue
		}
		flush()
		if s.elided { // the l of l'été says nothing
			continue
		}
		w := string(s.word())
		t := Term{Text: w, Stem: Stem(w)}
		if prefixed(text, s) {
			t = Term{Text: w, Prefix: true}
		}
		if p.room > 0 && p.add(&p.q.All, Clause{t}) {
			add(&p.q.Any, Clause{t})
		}
	}
	flush()
}

// prefixed reports whether the current word is the beginning of others: a star ends the text right behind it and is no
// emphasis, as in **this**, and it has two letters at least: with one, a tenth of all words would have to be looked up.
func prefixed(text string, s *scanner) bool {
	return s.end == len(text)-1 && text[s.end] == '*' && text[0] != '*' && !s.single &&
		utf8.RuneCountInString(text[s.start:s.end]) > 1
}

// add appends a clause unless it is there, and takes its terms off the room.
func (p *parser) add(to *[]Clause, c Clause) bool {
	if len(c) > p.room || !add(to, c) {
		return false
	}
	p.room -= len(c)
	return true
}

func add(to *[]Clause, c Clause) bool {
	if len(*to) >= MaxTerms || slices.ContainsFunc(*to, func(o Clause) bool { return slices.Equal(o, c) }) {
		return false
	}
	*to = append(*to, c)
	return true
}
