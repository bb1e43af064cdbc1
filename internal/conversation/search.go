package conversation

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"hash/fnv"
	"io"
	"slices"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/words"
)

// Bounds of one search.
const (
	searchLimit    = 20  // hits on a page when none is asked for
	searchLimitMax = 200 // and at most
	snippetLength  = 200 // runes
	// candidatesMax documents are read to find the best among; of words that more documents have, the newest count.
	candidatesMax = 2_000
	// enoughFound of those are enough when they have the rarest words: of what has none of these no more are read than that
	// leaves room for, and commonLeast in any case (decision 0076).
	enoughFound    = 500
	commonLeast    = 100
	titlesMax      = 500
	candidatesText = 8 << 20 // bytes: where messages are long, fewer are read
	titleWeight    = 1.5     // a title says what a whole conversation is about
	// replyWeight is the part of a message's score that its children get besides their own: an answer seldom repeats
	// the words of what it answers.
	replyWeight    = 0.5
	behindQuestion = 0.99
	guestTotal     = 1_000 // documents, of which one has each word
)

// search answers in from the index. Relevance ranks among the newest candidates of the rarest words; a cursor carries
// the figures of the first page, so that pages neither repeat nor skip while messages come in.
func search(ctx context.Context, idx Index, in SearchInput) ([]Hit, string, error) {
	const op = "conversation.Search"
	s := searcher{idx: idx, in: in}
	if err := s.prepare(); err != nil {
		return nil, "", fault.Wrap(op, err)
	}
	run := s.byRelevance
	if in.Newest {
		run = s.byAge
	}
	hits, next, err := run(ctx)
	return hits, next, fault.Wrap(op, err)
}

// searcher is one search.
type searcher struct {
	idx   Index
	in    SearchInput
	query words.Query
	from  searchPlace
}

// searchPlace is what a cursor holds.
type searchPlace struct {
	Question uint64 `json:"q"` // which question it belongs to
	// Relevance: the figures of the first page, and the last hit.
	Counts   []int64 `json:"c,omitempty"`
	Total    int64   `json:"t,omitempty"`
	Loose    bool    `json:"l,omitempty"` // the last hit did not have all the words; by age: none has
	Score    float64 `json:"s,omitempty"`
	IsTitle  bool    `json:"h,omitempty"`
	N        int64   `json:"n,omitempty"`
	Messages int64   `json:"m"` // relevance: the newest there were; by age: the oldest that was shown
	Titles   int64   `json:"k"`
}

func (s *searcher) prepare() (err error) {
	in := &s.in
	in.Mode = cmp.Or(in.Mode, MatchAuto)
	switch {
	case in.Mode != MatchAuto && in.Mode != MatchAll && in.Mode != MatchAny:
		return fault.BadInput("", "query.match", "is auto, all or any")
	case in.Role != "" && in.Role != User && in.Role != Assistant && in.Role != SystemSay:
		return fault.BadInput("", "query.role", "is user, assistant or system")
	case !in.From.IsZero() && !in.To.IsZero() && !in.From.Before(in.To):
		return fault.BadInput("", "query.to", "is not after from")
	case in.Limit < 0:
		return fault.BadInput("", "query.limit", "is negative")
	}
	in.Limit = min(cmp.Or(in.Limit, searchLimit), searchLimitMax)
	if s.query, err = words.ParseQuery(in.Text); err != nil {
		return fault.BadInput("", "query.q", err.Error())
	}
	question := s.question()
	if in.Cursor == "" {
		s.from.Question = question
		return nil
	}
	if !s.from.parse(in.Cursor) || s.from.Question != question ||
		!in.Newest && len(s.from.Counts) != len(s.query.Any) {
		return fault.BadInput("", "query.cursor", "this is not a cursor of this search")
	}
	return nil
}

// question identifies the search among others, so that a cursor of another one is noticed.
func (s *searcher) question() uint64 {
	in := s.in
	in.Cursor, in.Limit = "", 0
	raw, err := json.Marshal(in)
	if err != nil {
		panic("a search that cannot be marshalled") // text, flags and times
	}
	h := fnv.New64a()
	_, _ = h.Write(raw)            // never fails
	return h.Sum64() & (1<<53 - 1) // what any JSON reader keeps
}

func (p *searchPlace) parse(text string) bool {
	if len(text) > 8<<10 {
		return false
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return false
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if d.Decode(p) != nil || p.Messages < 0 || p.Titles < 0 {
		return false
	}
	_, err = d.Token()
	return errors.Is(err, io.EOF)
}

func (p searchPlace) format() string {
	raw, err := json.Marshal(p)
	if err != nil {
		panic("a cursor that cannot be marshalled") // numbers and flags; scores are finite
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

func (s *searcher) candidates(m words.Match) Candidates {
	m.Not = append(slices.Clip(m.Not), s.query.Not...)
	return Candidates{Match: m, Project: s.in.Project, Role: s.in.Role, From: s.in.From, To: s.in.To}
}

// found is a document with its rank.
type found struct {
	Doc
	loose bool
	title bool
	score float64
}

// rank orders found documents, best first. It is a total order, so that a cursor is a place in it.
func rank(a, b found) int {
	return cmp.Or(order(a.loose, b.loose), cmp.Compare(b.score, a.score), order(b.title, a.title), cmp.Compare(b.N, a.N))
}

// order puts false before true.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func (s *searcher) byRelevance(ctx context.Context) ([]Hit, string, error) {
	p := s.from
	docs, err := s.whole(ctx, &p)
	if err != nil {
		return nil, "", err
	}
	scorer := words.NewScorer(s.query.Any, p.Counts, p.Total)
	var list []found
	own := map[ident.MessageID]float64{} // scores of messages by themselves
	// more adds the hits of documents after the cursor, best first; those that were had before only lend their score.
	more := func(docs []found, loose bool, had map[int64]bool) {
		for i := range docs {
			d := &docs[i]
			d.loose, d.score = loose, scorer.Score(d.Text)
			if d.title {
				d.score *= titleWeight
			} else {
				own[d.MessageID] = d.score
			}
		}
		start := len(list)
		list = slices.Grow(list, len(docs))
		for _, d := range docs {
			if had[d.key()] {
				continue
			}
			if asked := own[d.ParentID]; asked > 0 {
				d.score = withReply(d.score, asked)
			}
			if s.in.Cursor == "" || rank(d, found{Doc: Doc{N: p.N}, loose: p.Loose, title: p.IsTitle, score: p.Score}) > 0 {
				list = append(list, d)
			}
		}
		slices.SortFunc(list[start:], rank)
	}
	whole := map[int64]bool{} // messages, and titles as negative numbers, that have all the words
	for _, d := range docs {
		whole[d.key()] = true
	}
	full := len(docs) >= candidatesMax
	more(docs, false, nil)
	// With one word, what has any has all. With more candidates than are read, nobody gets to the rest either.
	if s.in.Mode == MatchAny || s.in.Mode == MatchAuto && s.differs() && !full && len(list) <= s.in.Limit {
		docs, err := s.loose(ctx, p)
		if err != nil {
			return nil, "", err
		}
		more(docs, s.in.Mode == MatchAuto, whole)
	}
	next := ""
	if len(list) > s.in.Limit {
		list = list[:s.in.Limit]
		last := list[len(list)-1]
		p.Loose, p.Score, p.IsTitle, p.N = last.loose, last.score, last.title, last.N
		next = p.format()
	}
	return hits(list, scorer), next, nil
}

// withReply is the score of a message that answers one with the score asked. An answer that only says again what it
// was asked stays behind the question.
func withReply(own, asked float64) float64 {
	lifted := own + replyWeight*asked
	if own >= asked {
		return lifted
	}
	return max(own, min(lifted, behindQuestion*asked))
}

// differs reports whether having any of the words is less than having all.
func (s *searcher) differs() bool { return len(s.query.All) > 1 || len(s.query.Any) > 1 }

func (f found) key() int64 {
	if f.title {
		return -f.N
	}
	return f.N
}

// whole reads what has all the words, and on the first page the figures that ranking goes by.
func (s *searcher) whole(ctx context.Context, p *searchPlace) ([]found, error) {
	first := s.in.Cursor == ""
	q := Question{Count: first, Clauses: s.query.Any}
	if s.in.Mode != MatchAny {
		c := s.candidates(words.Match{All: s.query.All})
		if first || p.Messages > 0 {
			q.Messages = []Candidates{s.upTo(p.Messages, candidatesMax, c)}
		}
		if first || p.Titles > 0 {
			q.Titles = s.titles(p.Titles, c)
		}
	}
	f, err := s.idx.Ask(ctx, q)
	if err != nil {
		return nil, err
	}
	if first {
		p.Counts, p.Total, p.Messages, p.Titles = f.Clauses, f.Total, f.Messages, f.Titles
		if s.in.guest {
			p.Total = guestTotal
			for i := range p.Counts {
				p.Counts[i] = 1
			}
		}
		// Words that say nothing count as if every message had them: they find, but last, and hardly rank.
		for i, tells := range s.query.Telling() {
			if !tells {
				p.Counts[i] = max(p.Counts[i], p.Total)
			}
		}
	}
	return f.all(), nil
}

// loose reads what has any of the words, rarest words first: what has none but common ones is hardly an answer.
func (s *searcher) loose(ctx context.Context, p searchPlace) (out []found, err error) {
	left := make([]int, 0, len(s.query.Any))
	for i := range s.query.Any {
		if p.Counts[i] > 0 && p.Messages > 0 {
			left = append(left, i)
		}
	}
	slices.SortStableFunc(left, func(a, b int) int { return cmp.Compare(p.Counts[a], p.Counts[b]) })
	var done []words.Clause
	room := int64(candidatesMax)
	// round chooses the next words to look for.
	round := func(last bool) Candidates {
		n := 1
		for sum := p.Counts[left[0]]; n < len(left); n++ {
			if sum += p.Counts[left[n]]; sum > room && !last {
				break
			}
		}
		var now []words.Clause
		for _, i := range left[:n] {
			now = append(now, s.query.Any[i])
		}
		// Leaving out what the rounds before looked for, they do not meet the same documents again.
		c := s.candidates(words.Match{Any: now, Not: done})
		done, left = append(done, now...), left[n:]
		return s.upTo(p.Messages, int(room), c)
	}
	// The first round tells how much room there is for the second; how much that one leaves for the third, the index
	// finds out by itself. So they are asked together.
	q := Question{}
	if len(left) > 0 {
		q.Messages = append(q.Messages, round(false))
	}
	if p.Titles > 0 {
		q.Titles = s.titles(p.Titles, s.candidates(words.Match{Any: s.query.Any}))
	}
	f, err := s.idx.Ask(ctx, q)
	if err != nil {
		return nil, err
	}
	had := int64(len(f.Found))
	if room = min(room-had, max(commonLeast, enoughFound-had)); room > 0 && len(left) > 0 {
		q := Question{Messages: []Candidates{round(false)}}
		if len(left) > 0 {
			q.Messages = append(q.Messages, round(true))
		}
		more, err := s.idx.Ask(ctx, q)
		if err != nil {
			return nil, err
		}
		f.Found = append(f.Found, more.Found...)
	}
	return f.all(), nil
}

// all are messages and titles.
func (f Findings) all() []found {
	out := make([]found, 0, len(f.Found)+len(f.FoundTitles))
	for _, d := range f.Found {
		out = append(out, found{Doc: d})
	}
	for _, d := range f.FoundTitles {
		out = append(out, found{Doc: d, title: true})
	}
	return out
}

// titles narrows c to titles up to the newest; nil when none may be found.
func (s *searcher) titles(newest int64, c Candidates) *Candidates {
	if s.in.Role != "" {
		return nil
	}
	c = s.upTo(newest, titlesMax, c)
	return &c
}

// upTo narrows c to the newest documents up to newest; 0 is up to those that are counted in the same question.
func (s *searcher) upTo(newest int64, limit int, c Candidates) Candidates {
	if newest > 0 {
		c.Before = newest + 1
	}
	c.Limit, c.Text = limit, candidatesText
	return c
}

// byAge merges messages and titles, newest first. In auto mode it shows what has all the words, or, when nothing has,
// what has any of them: a list by time has no place for better and worse.
func (s *searcher) byAge(ctx context.Context) ([]Hit, string, error) {
	p := s.from
	f := Frequencies{Clauses: make([]int64, len(s.query.Any)), Total: 1}
	scorer := words.NewScorer(s.query.Any, f.Clauses, f.Total)
	match := words.Match{All: s.query.All}
	if s.in.Mode == MatchAny || p.Loose {
		match = words.Match{Any: s.query.Any}
	}
	list, err := s.newest(ctx, match, p)
	if err == nil && len(list) == 0 && s.in.Mode == MatchAuto && s.in.Cursor == "" && s.differs() {
		p.Loose = true
		list, err = s.newest(ctx, words.Match{Any: s.query.Any}, p)
	}
	if err != nil {
		return nil, "", err
	}
	next := ""
	if len(list) > s.in.Limit {
		list = list[:s.in.Limit]
		for _, d := range list {
			if d.title {
				p.Titles = d.N
			} else {
				p.Messages = d.N
			}
		}
		next = p.format()
	}
	for i := range list {
		list[i].score = scorer.Score(list[i].Text)
	}
	return hits(list, scorer), next, nil
}

// newest reads one hit more than a page has.
func (s *searcher) newest(ctx context.Context, m words.Match, p searchPlace) ([]found, error) {
	c := s.candidates(m)
	c.Limit, c.Before = s.in.Limit+1, p.Messages
	q := Question{Messages: []Candidates{c}}
	if s.in.Role == "" {
		c.Before = p.Titles
		q.Titles = &c
	}
	f, err := s.idx.Ask(ctx, q)
	if err != nil {
		return nil, err
	}
	messages, titles := f.Found, f.FoundTitles
	var out []found
	for len(messages)+len(titles) > 0 && len(out) <= s.in.Limit {
		// Each list keeps its own order, even where times do not follow it, as after an import.
		if len(titles) == 0 || len(messages) > 0 && !messages[0].CreatedAt.Before(titles[0].CreatedAt) {
			out, messages = append(out, found{Doc: messages[0]}), messages[1:]
		} else {
			out, titles = append(out, found{Doc: titles[0], title: true}), titles[1:]
		}
	}
	return out, nil
}

func hits(list []found, scorer *words.Scorer) []Hit {
	out := make([]Hit, len(list))
	for i, d := range list {
		out[i] = Hit{ConversationID: d.ConversationID, ConversationTitle: d.ConversationTitle, ProjectID: d.ProjectID,
			MessageID: d.MessageID, Role: d.Role, Snippet: scorer.Snippet(d.Text, snippetLength), Score: d.score,
			CreatedAt: d.CreatedAt}
	}
	return out
}
