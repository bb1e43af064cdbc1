package words

import (
	"math"
	"strings"
	"unicode/utf8"
)

// The figures of the ranking. It is BM25 with a fixed average length: one that follows the data would move scores
// while somebody turns the pages.
const (
	saturation   = 1.2 // how soon more of the same word stops to count
	lengthWeight = 0.4 // how much longer texts are held back
	usualLength  = 80  // words
	longest      = 2000
	formGrade    = 0.8 // another form of the word, against the word itself
	nearBonus    = 0.3 // when all words stand in the order of the question
	closeWords   = 8   // words apart that still count as near, by half
)

// Scorer ranks texts by a list of clauses and marks what matches. It keeps what it learned about spellings, so one
// Scorer should serve a whole answer. It is not safe for concurrent use.
type Scorer struct {
	clauses []Clause
	weights []float64
	known   map[string]int // spelling as in a text -> place in hits; 0: nothing matches
	hits    [][]hit
	tallies []tally
	// first are the bytes that ASCII words begin with that can match: of both cases. A stem begins like its word. Others
	// need not be looked up, and most words are such others.
	first [utf8.RuneSelf]bool
}

// hit says that a word is the place-th term of a clause.
type hit struct {
	clause, place int
	grade         float64
}

// tally is what was met of a clause in the current text.
type tally struct {
	times float64
	last  int // where it ended last
	near  float64
	ends  []int // of a phrase: where its first terms, as many as the index plus one, ended last
}

// NewScorer takes how many of all documents match each clause.
func NewScorer(clauses []Clause, counts []int64, total int64) *Scorer {
	s := &Scorer{clauses: clauses, weights: make([]float64, len(clauses)), known: make(map[string]int, 512), hits: make([][]hit, 1),
		tallies: make([]tally, len(clauses))}
	for i, c := range clauses {
		n := 0.0
		if i < len(counts) {
			n = float64(max(0, min(counts[i], total)))
		}
		s.weights[i] = math.Log(1 + (float64(max(total, 1))-n+0.5)/(n+0.5))
		s.tallies[i].ends = make([]int, len(c))
		for _, t := range c {
			s.begin(t.Text)
			s.begin(t.Stem)
		}
	}
	return s
}

// begin notes how a term begins.
func (s *Scorer) begin(term string) {
	if term != "" && term[0] < utf8.RuneSelf {
		s.first[term[0]] = true
		if c := term[0]; 'a' <= c && c <= 'z' {
			s.first[c-'a'+'A'] = true
		}
	}
}

// Score ranks one text: higher is better, 0 when nothing matches.
func (s *Scorer) Score(text string) float64 {
	place := 0
	s.reset()
	for w := newScanner(text); w.next(); {
		place++
		if id := s.lookup(w); id != 0 {
			s.meet(id, place, nil)
		}
	}
	var sum, near float64
	stretch := saturation * (1 - lengthWeight + lengthWeight*float64(min(place, longest))/usualLength)
	for i := range s.tallies {
		if t := &s.tallies[i]; t.times > 0 {
			sum += s.weights[i] * t.times * (saturation + 1) / (t.times + stretch)
			near += t.near
		}
	}
	if len(s.tallies) > 1 {
		sum *= 1 + nearBonus*near/float64(len(s.tallies)-1)
	}
	return sum
}

func (s *Scorer) reset() {
	for i := range s.tallies {
		t := &s.tallies[i]
		t.times, t.near, t.last = 0, 0, math.MinInt32
		for j := range t.ends {
			t.ends[j] = math.MinInt32
		}
	}
}

// meet counts a word at a place; found hears of each clause that the word completes.
func (s *Scorer) meet(id, place int, found func(clause, length int)) {
	for _, h := range s.hits[id] {
		t, c := &s.tallies[h.clause], s.clauses[h.clause]
		// Later terms come first in hits, so one word cannot be two terms of a phrase at once.
		if h.place > 0 && t.ends[h.place-1] != place-1 {
			continue
		}
		t.ends[h.place] = place
		if h.place < len(c)-1 {
			continue
		}
		t.times += h.grade
		t.last = place
		if h.clause > 0 {
			switch d := place - len(c) + 1 - s.tallies[h.clause-1].last; {
			case d == 0, d == 1:
				t.near = 1
			case d > -closeWords && d <= closeWords:
				t.near = max(t.near, 0.5)
			}
		}
		if found != nil {
			found(h.clause, len(c))
		}
	}
}

// lookup finds what the current word matches. Spellings repeat, so it rarely has to fold anything.
func (s *Scorer) lookup(w *scanner) int {
	raw := w.text[w.start:w.end]
	if w.ascii && !s.first[raw[0]] {
		return 0
	}
	id, ok := s.known[raw]
	if !ok {
		if hits := s.match(string(w.word())); hits != nil {
			id = len(s.hits)
			s.hits = append(s.hits, hits)
		}
		s.known[raw] = id
	}
	return id
}

// kept is what every Latin word with a stem begins with: all but two letters of the stem (able, ability: abl), and at
// least one (die, dying).
func kept(stem string) string { return stem[:max(1, len(stem)-2)] }

// match compares a folded word with all terms, in the same way as the index does.
func (s *Scorer) match(word string) (hits []hit) {
	stem := ""
	for i, c := range s.clauses {
		for j := len(c) - 1; j >= 0; j-- {
			t, grade := c[j], 0.0
			switch {
			case word == t.Text:
				grade = 1
			case t.Prefix && strings.HasPrefix(word, t.Text):
				grade = formGrade
			// Stemming is most of the cost of a spelling.
			case t.Stem != "" && (word[0] >= utf8.RuneSelf || strings.HasPrefix(word, kept(t.Stem))):
				if stem == "" {
					stem = Stem(word)
				}
				if word == t.Stem || stem == t.Stem {
					grade = formGrade
				}
			}
			if grade > 0 {
				hits = append(hits, hit{clause: i, place: j, grade: grade})
			}
		}
	}
	return hits
}
