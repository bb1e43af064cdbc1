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
	candidatesMax  = 2_000
	titlesMax      = 500
	candidatesText = 8 << 20 // bytes: where messages are long, fewer are read
	looseRounds    = 3
	titleWeight    = 1.5 // a title says what a whole conversation is about
	// replyWeight is the part of a message's score that its children get besides their own: an answer seldom repeats
	// the words of what it answers.
	replyWeight    = 0.5
	behindQuestion = 0.99
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
	if s.in.Cursor == "" {
		f, err := s.idx.Frequencies(ctx, s.query.Any)
		if err != nil {
			return nil, "", err
		}
		p.Counts, p.Total, p.Messages, p.Titles = f.Clauses, f.Total, f.Messages, f.Titles
		// Words that say nothing count as if every message had them: they find, but last, and hardly rank.
		for i, tells := range s.query.Telling() {
			if !tells {
				p.Counts[i] = max(p.Counts[i], p.Total)
			}
		}
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
	full := false
	if s.in.Mode != MatchAny {
		docs, err := s.whole(ctx, p)
		if err != nil {
			return nil, "", err
		}
		for _, d := range docs {
			whole[d.key()] = true
		}
		full = len(docs) >= candidatesMax
		more(docs, false, nil)
	}
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

// whole reads what has all the words.
func (s *searcher) whole(ctx context.Context, p searchPlace) ([]found, error) {
	c := s.candidates(words.Match{All: s.query.All})
	var docs []found
	if !slices.Contains(p.Counts, 0) { // otherwise no message has all
		var err error
		if docs, err = s.read(ctx, s.idx.FindMessages, c, p.Messages, candidatesMax); err != nil {
			return nil, err
		}
	}
	titles, err := s.titles(ctx, c, p.Titles)
	return append(docs, titles...), err
}

// loose reads what has any of the words, rarest words first: what has none but common ones is hardly an answer.
func (s *searcher) loose(ctx context.Context, p searchPlace) (out []found, err error) {
	left := make([]int, 0, len(s.query.Any))
	for i := range s.query.Any {
		if p.Counts[i] > 0 {
			left = append(left, i)
		}
	}
	slices.SortStableFunc(left, func(a, b int) int { return cmp.Compare(p.Counts[a], p.Counts[b]) })
	var done []words.Clause
	for round := 1; len(left) > 0 && len(out) < candidatesMax; round++ {
		room := int64(candidatesMax - len(out))
		n := 1
		for sum := p.Counts[left[0]]; n < len(left); n++ {
			if sum += p.Counts[left[n]]; sum > room && round < looseRounds {
				break
			}
		}
		var now []words.Clause
		for _, i := range left[:n] {
			now = append(now, s.query.Any[i])
		}
		// Leaving out what the rounds before looked for, they do not meet the same documents again.
		docs, err := s.read(ctx, s.idx.FindMessages, s.candidates(words.Match{Any: now, Not: done}), p.Messages, int(room))
		if err != nil {
			return nil, err
		}
		out, done, left = append(out, docs...), append(done, now...), left[n:]
	}
	titles, err := s.titles(ctx, s.candidates(words.Match{Any: s.query.Any}), p.Titles)
	return append(out, titles...), err
}

func (s *searcher) titles(ctx context.Context, c Candidates, newest int64) ([]found, error) {
	if s.in.Role != "" {
		return nil, nil
	}
	docs, err := s.read(ctx, s.idx.FindTitles, c, newest, titlesMax)
	for i := range docs {
		docs[i].title = true
	}
	return docs, err
}

// read takes the newest documents up to newest.
func (s *searcher) read(ctx context.Context, find func(context.Context, Candidates) ([]Doc, error), c Candidates,
	newest int64, limit int) ([]found, error) {
	if newest == 0 { // there was none when the search began
		return nil, nil
	}
	c.Before, c.Limit, c.Text = newest+1, limit, candidatesText
	docs, err := find(ctx, c)
	out := make([]found, len(docs))
	for i, d := range docs {
		out[i].Doc = d
	}
	return out, err
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
	messages, err := s.idx.FindMessages(ctx, c)
	if err != nil {
		return nil, err
	}
	c.Before = p.Titles
	var titles []Doc
	if s.in.Role == "" {
		if titles, err = s.idx.FindTitles(ctx, c); err != nil {
			return nil, err
		}
	}
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
