package conversation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/words"
)

// shelf is an index in memory: what it matches, it matches the way a Scorer does.
type shelf struct {
	messages, titles []Doc
	asked            []Candidates // of messages
	trips            int
}

func (s *shelf) say(texts ...string) {
	for _, text := range texts {
		n := int64(len(s.messages) + 1)
		s.messages = append(s.messages, Doc{N: n, MessageID: ident.MessageID(fmt.Sprintf("m%d", n)), ConversationID: "c", Role: User,
			Text: text, CreatedAt: time.Unix(n*10, 0)})
	}
}

func (s *shelf) call(title string, at int64) {
	n := int64(len(s.titles) + 1)
	s.titles = append(s.titles, Doc{N: n, ConversationID: ident.ConversationID(fmt.Sprintf("c%d", n)), Text: title,
		CreatedAt: time.Unix(at, 0)})
}

func has(text string, c words.Clause) bool {
	return words.NewScorer([]words.Clause{c}, []int64{1}, 10).Score(text) > 0
}

func (s *shelf) find(docs []Doc, c Candidates) (out []Doc) {
	for _, d := range slices.Backward(docs) {
		says := func(w words.Clause) bool { return has(d.Text, w) }
		all := !slices.ContainsFunc(c.Match.All, func(w words.Clause) bool { return !says(w) })
		if all && (len(c.Match.Any) == 0 || slices.ContainsFunc(c.Match.Any, says)) && !slices.ContainsFunc(c.Match.Not, says) &&
			(c.Before == 0 || d.N < c.Before) && (c.Role == "" || c.Role == d.Role) && len(out) < c.Limit {
			out = append(out, d)
		}
	}
	return out
}

func (s *shelf) Ask(_ context.Context, q Question) (f Findings, err error) {
	s.trips++
	if q.Count {
		f.Frequencies = s.frequencies(q.Clauses)
	}
	for _, c := range q.Messages {
		s.asked = append(s.asked, c)
		c.Limit = q.Messages[0].Limit - len(f.Found)
		f.Found = append(f.Found, s.find(s.messages, c)...)
	}
	if q.Titles != nil {
		f.FoundTitles = s.find(s.titles, *q.Titles)
	}
	return f, nil
}

func (s *shelf) frequencies(clauses []words.Clause) Frequencies {
	f := Frequencies{Total: int64(len(s.messages)), Messages: int64(len(s.messages)), Titles: int64(len(s.titles))}
	for _, c := range clauses {
		n := int64(0)
		for _, d := range s.messages {
			if has(d.Text, c) {
				n++
			}
		}
		f.Clauses = append(f.Clauses, n)
	}
	return f
}

// names lists what was found: messages by their identifier, titles by that of their conversation.
func names(hits []Hit) string {
	var out []string
	for _, h := range hits {
		if h.MessageID != "" {
			out = append(out, string(h.MessageID))
		} else {
			out = append(out, string(h.ConversationID))
		}
	}
	return strings.Join(out, " ")
}

func TestSearch(t *testing.T) {
	s := &shelf{}
	s.say("the cat sat", "the dog sat", "a cat and a dog", "nothing here", "dogs and cats again and again and at length, said he")
	s.call("a dog's life", 25)
	tests := []struct {
		name string
		in   SearchInput
		want string
	}{
		{"all the words come first, then any", SearchInput{Text: "cat dog"}, "m3 m5 c1 m2 m1"},
		{"all", SearchInput{Text: "cat dog", Mode: MatchAll}, "m3 m5"},
		{"any", SearchInput{Text: "cat dog", Mode: MatchAny}, "m3 m5 c1 m2 m1"},
		{"a whole question", SearchInput{Text: "Which cat was it that sat there?"}, "m1 m2 m3 m5"},
		{"exclusion", SearchInput{Text: "cat -dog"}, "m1 m5"},
		{"newest with all", SearchInput{Text: "cat dog", Newest: true}, "m5 m3"},
		{"newest with any, when nothing has all", SearchInput{Text: "cat giraffe", Newest: true}, "m5 m3 m1"},
		{"newest with any", SearchInput{Text: "cat dog", Newest: true, Mode: MatchAny}, "m5 m3 c1 m2 m1"},
		{"a role leaves titles out", SearchInput{Text: "dog", Role: User}, "m2 m3 m5"},
		{"nothing", SearchInput{Text: "giraffe"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			hits, next, err := search(t.Context(), s, tt.in)
			if err != nil || next != "" {
				t.Fatalf("%v, next %q", err, next)
			}
			if got := names(hits); got != tt.want {
				t.Errorf("found %s, want %s", got, tt.want)
			}
			var paged []Hit
			for in, again := tt.in, true; again; again = in.Cursor != "" {
				in.Limit = 1
				hits, next, err := search(t.Context(), s, in)
				if err != nil {
					t.Fatal(err)
				}
				paged, in.Cursor = append(paged, hits...), next
			}
			if got := names(paged); got != tt.want {
				t.Errorf("one by one found %s, want %s", got, tt.want)
			}
		})
	}
	t.Run("hits tell what matched", func(t *testing.T) {
		hits, _, err := search(t.Context(), s, SearchInput{Text: "cats", Limit: 1})
		if err != nil {
			t.Fatal(err)
		}
		if h := hits[0]; h.Snippet != "dogs and <mark>cats</mark> again and again and at length, said he" || h.Score <= 0 ||
			h.Role != User || h.CreatedAt.IsZero() {
			t.Errorf("%+v", h)
		}
	})
}

func TestSearchRefuses(t *testing.T) {
	s := &shelf{}
	s.say("a cat", "a cat", "a dog")
	_, relevance, err := search(t.Context(), s, SearchInput{Text: "cat", Limit: 1})
	if err != nil || relevance == "" {
		t.Fatal(err, relevance)
	}
	tests := map[string]struct {
		in    SearchInput
		where string
	}{
		"no words":                  {SearchInput{Text: " ?!"}, "query.q"},
		"only exclusion":            {SearchInput{Text: "-cat"}, "query.q"},
		"an unknown mode":           {SearchInput{Text: "cat", Mode: "some"}, "query.match"},
		"an unknown role":           {SearchInput{Text: "cat", Role: "tool"}, "query.role"},
		"a negative limit":          {SearchInput{Text: "cat", Limit: -1}, "query.limit"},
		"an empty span of time":     {SearchInput{Text: "cat", From: time.Unix(5, 0), To: time.Unix(5, 0)}, "query.to"},
		"no cursor":                 {SearchInput{Text: "cat", Cursor: "x!"}, "query.cursor"},
		"a cursor of another query": {SearchInput{Text: "dog", Cursor: relevance}, "query.cursor"},
		"a cursor of another order": {SearchInput{Text: "cat", Newest: true, Cursor: relevance}, "query.cursor"},
		"a cursor with more in it":  {SearchInput{Text: "cat", Cursor: relevance + "e30"}, "query.cursor"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, _, err := search(t.Context(), s, tt.in)
			f, ok := errors.AsType[*fault.Error](err)
			if !ok || f.Class != fault.Invalid || len(f.Fields) != 1 || f.Fields[0].Location != tt.where {
				t.Errorf("got %v, want it at %s", err, tt.where)
			}
		})
	}
}

func TestSearchReadsABoundedNumberOfDocuments(t *testing.T) {
	s := &shelf{}
	for i := range 3000 {
		text := "common"
		if i%100 == 0 {
			text += " rare"
		}
		s.say(text)
	}
	hits, next, err := search(t.Context(), s, SearchInput{Text: "common rare giraffe", Mode: MatchAny, Limit: 500})
	if err != nil {
		t.Fatal(err)
	}
	if len(hits) != searchLimitMax || next == "" || hits[29].Snippet != "<mark>common</mark> <mark>rare</mark>" ||
		hits[30].Snippet != "<mark>common</mark>" {
		t.Errorf("%d hits, next %q", len(hits), next)
	}
	read := 0
	for _, c := range s.asked {
		read += c.Limit
	}
	if read > 2*candidatesMax || len(s.asked) != 2 || len(s.asked[0].Match.Any) != 1 || s.asked[0].Match.Any[0][0].Text != "rare" {
		t.Errorf("asked %d times for %d messages", len(s.asked), read)
	}
}

// The index may be far away. What looks for most has all the words, then those with few messages, those with more, and
// the rest.
func TestSearchAsksThreeTimesAtMost(t *testing.T) {
	s := &shelf{}
	for i := range 3000 {
		text := "common"
		if i%3 > 0 {
			text += " usual"
		}
		if i%300 == 1 {
			text += " rare"
		}
		s.say(text)
	}
	hits, _, err := search(t.Context(), s, SearchInput{Text: "common usual rare giraffe", Limit: 200})
	if err != nil || len(hits) != searchLimitMax || hits[9].Snippet != "<mark>common</mark> <mark>usual</mark> <mark>rare</mark>" ||
		hits[10].Snippet != "<mark>common</mark> <mark>usual</mark>" {
		t.Errorf("%d hits, %v", len(hits), err)
	}
	if s.trips != 3 || len(s.asked) != 4 {
		t.Errorf("%d questions, %d for messages", s.trips, len(s.asked))
	}
	s.trips = 0
	if _, _, err := search(t.Context(), s, SearchInput{Text: "rare giraffe", Newest: true}); err != nil || s.trips != 2 {
		t.Errorf("by time: %d questions, %v", s.trips, err)
	}
}

// Of what has none of the rarest words little is read once there is enough of what has, for each page the same.
func TestSearchReadsLessOfWhatHasOnlyCommonWords(t *testing.T) {
	for rare, common := range map[int]int{20: enoughFound - 20, enoughFound - 50: commonLeast} {
		s := &shelf{}
		for i := range candidatesMax + 100 {
			if i%2 == 0 && i < 2*rare {
				s.say("rare")
			} else {
				s.say("common")
			}
		}
		in := SearchInput{Text: "rare common", Mode: MatchAny, Limit: 10}
		for page := range 2 {
			s.asked = nil
			hits, next, err := search(t.Context(), s, in)
			if err != nil || next == "" || hits[0].Snippet != "<mark>rare</mark>" {
				t.Fatal(hits, next, err)
			}
			if len(s.asked) < 2 || s.asked[1].Limit != common || s.asked[1].Match.Any[0][0].Text != "common" {
				t.Errorf("%d with the rare word, page %d: asked %+v", rare, page, s.asked)
			}
			in.Cursor = next
		}
	}
}
