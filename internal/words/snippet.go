package words

import (
	"cmp"
	"html"
	"slices"
	"strings"
	"unicode/utf8"
)

// span is a matching word in a text.
type span struct {
	start, end int // bytes
	from, to   int // the same in runes
	clause     int
}

// Snippet is the part of a text, no longer than limit runes, that shows best what matches: HTML-escaped, the matches in
// <mark>, cut between words, with … where it was cut. Without a match it is the beginning.
func (s *Scorer) Snippet(text string, limit int) string {
	limit = max(limit, 1)
	spans, total := s.spans(text)
	from, to := 0, min(total, limit)
	first, last := 0, 0
	if len(spans) > 0 {
		i, j := s.best(spans, limit)
		first, last = spans[i].start, spans[j].end
		// A third of what is left goes before the matches, more when the text ends.
		rest := max(0, limit-(spans[j].to-spans[i].from))
		from = max(0, min(spans[i].from-rest/3, total-limit))
		to = min(total, from+limit)
	}
	start, end := cuts(text, from, to, total, first, last)
	var b strings.Builder
	if start > 0 {
		b.WriteString("…")
	}
	at := start
	for i := 0; i < len(spans); i++ {
		a, z := spans[i].start, spans[i].end
		for i+1 < len(spans) && spans[i+1].start <= z { // neighbouring characters are one match
			i++
			z = max(z, spans[i].end)
		}
		a, z = max(a, at), min(z, end)
		if a >= z {
			continue
		}
		b.WriteString(html.EscapeString(text[at:a]))
		b.WriteString("<mark>")
		b.WriteString(html.EscapeString(text[a:z]))
		b.WriteString("</mark>")
		at = z
	}
	b.WriteString(html.EscapeString(text[at:end]))
	if end < len(text) {
		b.WriteString("…")
	}
	return b.String()
}

// spans finds all that matches, in order, and counts the runes of the text.
func (s *Scorer) spans(text string) (out []span, total int) {
	s.reset()
	recent := make([]span, MaxTerms) // a ring of the last words: a phrase is known when it is complete
	place, at := 0, 0
	for w := newScanner(text); w.next(); {
		place++
		total += utf8.RuneCountInString(text[at:w.start])
		length := utf8.RuneCountInString(text[w.start:w.end])
		recent[place%MaxTerms] = span{start: w.start, end: w.end, from: total, to: total + length}
		total, at = total+length, w.end
		if id := s.lookup(w); id != 0 {
			s.meet(id, place, func(clause, length int) {
				for p := place - length + 1; p <= place; p++ {
					found := recent[p%MaxTerms]
					found.clause = clause
					out = append(out, found)
				}
			})
		}
	}
	slices.SortFunc(out, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	return out, total + utf8.RuneCountInString(text[at:])
}

// best is the window of spans that has most of the question in limit runes; of equals the first.
func (s *Scorer) best(spans []span, limit int) (i, j int) {
	times := make([]int, len(s.clauses))
	value, top := 0.0, -1.0
	end := 0 // behind the window
	for begin := range spans {
		for end < len(spans) && (end == begin || spans[end].to-spans[begin].from <= limit) {
			value += s.worth(spans[end].clause, times, 1)
			end++
		}
		if value > top+1e-9 {
			top, i, j = value, begin, end-1
		}
		value -= s.worth(spans[begin].clause, times, -1)
	}
	return i, j
}

// worth is what one more, or one less, of a clause changes: the first counts in full, others hardly.
func (s *Scorer) worth(clause int, times []int, by int) float64 {
	n := times[clause]
	times[clause] += by
	if max(n, n+by) == 1 {
		return s.weights[clause]
	}
	return s.weights[clause] / 50
}

// cuts turns a range of runes into one of bytes that begins and ends with whole words and holds text[first:last].
// Words that do not fit by themselves are cut anywhere.
func cuts(text string, from, to, total, first, last int) (start, end int) {
	start, end = -1, -1
	rough := [2]int{0, len(text)} // where from and to are
	at, runes := 0, 0
	forward := func(until int) {
		for _, n := range [...]struct{ rune, i int }{{from, 0}, {to, 1}} {
			if n.rune >= runes {
				if i, left := at, n.rune-runes; left <= utf8.RuneCountInString(text[at:until]) {
					for ; left > 0; left-- {
						_, size := utf8.DecodeRuneInString(text[i:])
						i += size
					}
					rough[n.i] = i
				}
			}
		}
		runes += utf8.RuneCountInString(text[at:until])
		at = until
	}
	for w := newScanner(text); w.next() && runes <= to; {
		forward(w.start)
		if start < 0 && runes >= from {
			start = w.start
		}
		forward(w.end)
		if runes <= to {
			end = w.end
		}
	}
	forward(len(text))
	if start < 0 || last > 0 && start > first {
		start = rough[0]
	}
	if last > 0 {
		start = min(start, first)
	}
	if end < last || end <= start {
		end = rough[1]
	}
	if from <= 0 {
		start = 0
	}
	if to >= total {
		end = len(text)
	}
	return start, max(start, end)
}
