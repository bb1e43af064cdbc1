package words

// Term is one searchable word: folded (no case, no accents, compatibility forms unified).
type Term struct {
	Text   string
	Stem   bool // Text is a stem: it also matches documents whose words have that stem
	Prefix bool // Text is the beginning of a word
}

// Match is an expression over terms in disjunctive form that both engines can translate:
// (All AND each Phrase) or, with Any set, at least one of Any; and in either case none of Not.
type Match struct {
	All     []Term
	Any     []Term
	Phrases [][]Term // each a sequence of neighbouring exact words
	Not     [][]Term // excluded words or phrases
}

// Doc is what an index stores of one document.
type Doc struct {
	Words []string // exact folded words in order: positions are what phrases go by
	Stems []string // stems that differ from their word, in any order, each at most once
}
