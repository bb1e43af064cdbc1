package words

// Term is one searchable word, as [Index] stores them: folded (no case, no accents, compatibility forms unified).
type Term struct {
	Text   string
	Stem   string // when not empty, documents with this word, or with words of this stem, match as well
	Prefix bool   // Text is the beginning of a word
}

// Clause is one term, or several that must stand next to each other, word for word. In those, Stem is empty and only
// the last one can be a Prefix.
type Clause []Term

// Match is an expression that both engines can translate: every clause of All, and one of Any unless that is empty,
// and none of Not. One of All and Any is not empty.
type Match struct {
	All []Clause
	Any []Clause
	Not []Clause
}

// Doc is what an index stores of one document.
type Doc struct {
	// Words are the folded words in order; places are what phrases go by. An empty one keeps a place.
	Words []string
	// More are words without a place, each once: what comes after the first MaxPlaces words.
	More []string
	// Stems are stems that differ from their word, each once.
	Stems []string
}

// Bounds of what is found of one document. They are PostgreSQL's bounds of a tsvector, or tighter than those, so that
// both engines find the same.
const (
	MaxWords  = 50_000 // words after these are not found
	MaxPlaces = 16_383 // words after these are not found as part of a phrase
	MaxRepeat = 255    // nor is a word that was there this often before
	MaxRunes  = 64     // of a word; the rest is cut off
	maxBytes  = 900_000
)

// Index makes of a text what an engine stores.
func Index(text string) Doc {
	var d Doc
	type seen struct {
		word  string
		times int
	}
	known := map[string]*seen{}
	stems := map[string]bool{}
	s := newScanner(text)
	for n, size := 0, 0; n < MaxWords && size < maxBytes && s.next(); n++ {
		w := known[string(s.word())]
		if w == nil {
			w = &seen{word: string(s.word())}
			known[w.word] = w
			size += len(w.word) + 6
			if stem := Stem(w.word); stem != w.word && !stems[stem] {
				stems[stem] = true
				d.Stems = append(d.Stems, stem)
				size += len(stem) + 6
			}
			if n >= MaxPlaces {
				d.More = append(d.More, w.word)
			}
		}
		if n >= MaxPlaces {
			continue
		}
		w.times++
		if w.times > MaxRepeat {
			d.Words = append(d.Words, "")
			continue
		}
		d.Words = append(d.Words, w.word)
		size += 2
	}
	return d
}

// Split returns the folded words of a text, in order and without bounds other than that of a word's length.
func Split(text string) []string {
	var out []string
	for s := newScanner(text); s.next(); {
		out = append(out, string(s.word()))
	}
	return out
}
