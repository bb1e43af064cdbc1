package sqlstore

import (
	"cmp"
	"context"
	"math"
	"slices"
	"strings"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/words"
)

// Bounds of one question to the index.
const (
	// scanMax is how many hits of the words are looked at, newest first, to find those that pass the other filters.
	scanMax = 200_000
	// countWindow newest messages tell how common a word is; what is in fewer than countRare of them is counted in all.
	countWindow = 2_000
	countRare   = 40
	countMax    = 20_000
	// PostgreSQL walks backwards through this many rows at first, and at most through walkMax at once. With other
	// filters, it walks on unless no more than ginMax hits are expected of the GIN index, which knows no order.
	walkFirst = 4_000
	walkMax   = 50_000
	ginMax    = 20_000
)

// Frequencies implements conversation.Index. Numbers are given out one after the other, so the newest one is also how
// many messages there are, but for what was deleted.
func (s *TenantStore) Frequencies(ctx context.Context, clauses []words.Clause) (conversation.Frequencies, error) {
	f := conversation.Frequencies{Clauses: make([]int64, len(clauses))}
	express := func(b *Batch, c words.Clause) string {
		return expression(b.Dialect(), words.Match{All: []words.Clause{c}}, "")
	}
	err := s.db.Read(ctx, func(b *Batch) {
		b.One([]any{&f.Messages}, `SELECT coalesce(max(n), 0) FROM messages`)
		b.One([]any{&f.Titles}, `SELECT coalesce(max(n), 0) FROM conversations`)
		exprs := make([]string, len(clauses))
		for i, c := range clauses {
			exprs[i] = express(b, c)
		}
		countNewest(b, exprs, f.Clauses)
	})
	f.Total = f.Messages
	if err != nil || f.Total <= countWindow {
		return f, err
	}
	err = s.db.Read(ctx, func(b *Batch) {
		for i, c := range clauses {
			if f.Clauses[i] >= countRare {
				f.Clauses[i] = f.Clauses[i] * f.Total / countWindow
				continue
			}
			b.One([]any{&f.Clauses[i]}, b.Dialect().Pick(
				`SELECT count(*) FROM (SELECT 1 FROM message_words WHERE message_words MATCH ? LIMIT ?)`,
				`SELECT count(*) FROM (SELECT 1 FROM message_words WHERE words @@ CAST(? AS tsquery) LIMIT ?) w`),
				express(b, c), countMax)
		}
	})
	return f, err
}

// countNewest counts for each expression the hits among the newest messages.
func countNewest(b *Batch, exprs []string, counts []int64) {
	const newest = `(SELECT coalesce(max(n), 0) - ? FROM messages)`
	if b.Dialect() == SQLite {
		for i, e := range exprs {
			b.One([]any{&counts[i]}, `SELECT count(*) FROM message_words WHERE message_words MATCH ? AND rowid > `+newest,
				e, countWindow)
		}
		return
	}
	// One pass over the rows for all expressions.
	var dest, args []any
	for i, e := range exprs {
		dest, args = append(dest, &counts[i]), append(args, e)
	}
	if len(exprs) > 0 {
		b.One(dest, `SELECT count(*) FILTER (WHERE words @@ CAST(? AS tsquery))`+
			strings.Repeat(`, count(*) FILTER (WHERE words @@ CAST(? AS tsquery))`, len(exprs)-1)+`
			FROM message_words WHERE n > `+newest, append(args, countWindow)...)
	}
}

// FindMessages implements conversation.Index. Of words that very many messages have, only the newest 200,000 are
// looked at for those of a project or a time; a role is part of the index and bounded by nothing.
func (s *TenantStore) FindMessages(ctx context.Context, c conversation.Candidates) ([]conversation.Doc, error) {
	return s.find(ctx, c, wordTable{
		name: "message_words",
		role: c.Role,
		rows: `SELECT m.n, m.conversation_id, c.title, c.project_id, m.id, m.parent_id, m.role, m.content, m.created_at`,
		lite: ` CROSS JOIN messages m CROSS JOIN conversations c WHERE m.n = x.n AND c.id = m.conversation_id`,
		post: ` CROSS JOIN LATERAL (SELECT * FROM messages WHERE messages.n = x.n LIMIT 1) m
			CROSS JOIN LATERAL (SELECT * FROM conversations WHERE conversations.id = m.conversation_id LIMIT 1) c WHERE true`,
		time: `m.created_at`, length: `m.content_length`,
	})
}

// FindTitles implements conversation.Index.
func (s *TenantStore) FindTitles(ctx context.Context, c conversation.Candidates) ([]conversation.Doc, error) {
	if c.Role != "" {
		return nil, nil
	}
	return s.find(ctx, c, wordTable{
		name: "title_words",
		rows: `SELECT c.n, c.id, c.title, c.project_id, '', '', '', c.title AS text, c.created_at`,
		lite: ` CROSS JOIN conversations c WHERE c.n = x.n`,
		post: ` CROSS JOIN LATERAL (SELECT * FROM conversations WHERE conversations.n = x.n LIMIT 1) c WHERE true`,
		time: `c.created_at`, length: `length(c.title)`,
	})
}

// wordTable is one of the two tables of the index, with what leads from its rows to documents: on PostgreSQL by LATERAL
// and LIMIT, which make it look up row by row. Left to itself it reads all messages to find two thousand.
type wordTable struct {
	name   string
	role   conversation.Role
	rows   string
	lite   string // on SQLite
	post   string // on PostgreSQL
	time   string
	length string
}

// filters are the conditions besides the words, each with a leading AND.
func (t wordTable) filters(c conversation.Candidates) (sql string, args []any) {
	if c.Project != "" {
		sql, args = sql+` AND c.project_id = ?`, append(args, c.Project)
	}
	if !c.From.IsZero() {
		sql, args = sql+` AND `+t.time+` >= ?`, append(args, ident.Micros(c.From))
	}
	if !c.To.IsZero() {
		sql, args = sql+` AND `+t.time+` < ?`, append(args, ident.Micros(c.To))
	}
	return sql, args
}

func (s *TenantStore) find(ctx context.Context, c conversation.Candidates, t wordTable) ([]conversation.Doc, error) {
	if c.Before <= 0 {
		c.Before = math.MaxInt64
	}
	if c.Text <= 0 {
		c.Text = math.MaxInt64
	}
	f := finding{db: s.db, Candidates: c, wordTable: t}
	f.where, f.args = t.filters(c)
	for f.moved = true; f.moved; {
		f.moved = false
		run := f.stream
		if s.db.Dialect() == Postgres {
			run = f.walk
		}
		if err := run(ctx); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(f.docs, func(a, b conversation.Doc) int { return cmp.Compare(b.N, a.N) })
	size := int64(0)
	for i, d := range f.docs {
		if size > c.Text {
			return f.docs[:i], nil
		}
		size += int64(len(d.Text))
	}
	return f.docs, nil
}

// finding is one question on its way.
type finding struct {
	conversation.Candidates
	wordTable
	db    *DB
	moved bool   // the database is on another engine now: what is missing is found there
	where string // conditions besides the words
	args  []any  // of where
	docs  []conversation.Doc
	size  int64 // of their texts
}

func (f *finding) read(r Scanner) error {
	var d conversation.Doc
	var at int64
	err := r.Scan(&d.N, &d.ConversationID, &d.ConversationTitle, &d.ProjectID, &d.MessageID, &d.ParentID, &d.Role, &d.Text, &at)
	d.CreatedAt = ident.Time(at)
	f.docs = append(f.docs, d)
	f.size += int64(len(d.Text))
	return err
}

// room is how many documents are still wanted.
func (f *finding) room() int {
	if f.size > f.Text {
		return 0
	}
	return f.Limit - len(f.docs)
}

// batch queues the next part of a question that is asked in the way of engine d, unless the database has moved away
// from it.
func (f *finding) batch(ctx context.Context, d Dialect, fill func(b *Batch, expr string)) error {
	return f.db.Read(ctx, func(b *Batch) {
		if f.moved = b.Dialect() != d; !f.moved {
			fill(b, expression(d, f.Match, f.role))
		}
	})
}

// stream finds newest first on SQLite: FTS5 delivers in this order, and the join stops it when there are enough. It
// reads in portions, since the text of a thousand messages may be a lot or very little.
func (f *finding) stream(ctx context.Context) error {
	sql := f.rows + ` FROM (SELECT rowid AS n FROM ` + f.name + ` WHERE ` + f.name + ` MATCH ? AND rowid < ?
		ORDER BY rowid DESC LIMIT ?) x` + f.lite + f.where + ` LIMIT ?`
	for portion := 128; f.room() > 0; {
		portion = min(portion, f.room())
		hits := portion
		if f.where != "" {
			hits = scanMax
		}
		before := len(f.docs)
		err := f.batch(ctx, SQLite, func(b *Batch, expr string) {
			b.Query(f.read, sql, append([]any{expr, f.Before, hits}, append(f.args, portion)...)...)
		})
		if err != nil || len(f.docs)-before < portion {
			return err
		}
		f.Before = f.docs[len(f.docs)-1].N
		usual := f.size/int64(len(f.docs)) + 1
		portion = int(max(16, min(1000, (f.Text-f.size)/usual)))
	}
	return nil
}

// walk finds newest first on PostgreSQL, where an index of words has no order: common words are met soon on a walk
// backwards through the rows, and of rare words the index has few hits to sort. A look at the newest rows tells which
// it is; the planner's statistics could not, they lag behind and know the most common thousand words only.
func (f *finding) walk(ctx context.Context) error {
	// How much text there is, PostgreSQL adds up before it reads the text.
	rows := ` SELECT * FROM (` + f.rows + `, sum(` + f.length + `) OVER (ORDER BY x.n DESC) - ` + f.length + ` AS above
		FROM (SELECT n FROM hits ORDER BY n DESC LIMIT ?) x` + f.post + f.where + ` ORDER BY x.n DESC LIMIT ?) y WHERE above <= ?`
	narrow := func(args ...any) []any {
		room, hits := f.room(), f.room()
		if f.where != "" {
			hits = scanMax
		}
		return append(append(append(args, hits), f.args...), room, f.Text-f.size)
	}
	read := func(r Scanner) error { return f.read(beside{r}) }
	for step, scanned := int64(walkFirst), int64(0); f.room() > 0; {
		var seen, low, hits int64
		err := f.batch(ctx, Postgres, func(b *Batch, expr string) {
			b.One([]any{&seen, &low, &hits}, `SELECT count(*), coalesce(min(n), 0),
				count(*) FILTER (WHERE words @@ CAST(? AS tsquery))
				FROM (SELECT n, words FROM `+f.name+` WHERE n < ? ORDER BY n DESC LIMIT ?) w`, expr, f.Before, step)
			b.Query(read, `WITH hits AS MATERIALIZED (SELECT n FROM
				(SELECT n, words FROM `+f.name+` WHERE n < ? ORDER BY n DESC LIMIT ?) w
				WHERE words @@ CAST(? AS tsquery))`+rows, narrow(f.Before, step, expr)...)
		})
		if err != nil || seen < step || f.room() <= 0 {
			return err
		}
		f.Before = low
		scanned += seen
		share := float64(hits) / float64(seen)
		if f.rare(share, float64(low)) {
			return f.batch(ctx, Postgres, func(b *Batch, expr string) {
				b.Query(read, `WITH hits AS MATERIALIZED (SELECT n FROM `+f.name+`
					WHERE words @@ CAST(? AS tsquery) AND n < ?)`+rows, narrow(expr, f.Before)...)
			})
		}
		if scanned >= scanMax {
			return nil
		}
		step = walkMax
		if f.where == "" {
			step = min(walkMax, max(walkFirst, int64(1.5*float64(f.room())/share)))
		}
	}
	return nil
}

// rare reports whether the index is the better way to the rest, below low, of what has this share: each of its hits
// must be fetched, before the newest are known, at about five times the price of a row on the walk.
func (f *finding) rare(share, low float64) bool {
	if f.where != "" {
		return share*low <= ginMax
	}
	return 5*share*low <= float64(f.room())/share // also when the share is 0
}

// beside scans rows that have one column more than is asked for.
type beside struct{ Scanner }

func (s beside) Scan(dest ...any) error {
	var other any
	return s.Scanner.Scan(append(dest, &other)...)
}

// expression is the text in which the engine takes a match: for FTS5 or for tsquery.
func expression(d Dialect, m words.Match, role conversation.Role) string {
	e := engineSyntax{and: " AND ", or: " OR ", term: ftsTerm, phrase: ftsPhrase}
	if d == Postgres {
		e = engineSyntax{and: " & ", or: " | ", term: tsTerm, phrase: tsPhrase}
	}
	var parts []string
	for _, c := range m.All {
		parts = append(parts, e.clause(c))
	}
	if len(m.Any) > 0 {
		parts = append(parts, e.any(m.Any))
	}
	if role != "" {
		if d == Postgres {
			parts = append(parts, string(lexeme(nil, filler+string(role))))
		} else {
			parts = append(parts, `{stems} : `+ftsQuoted(filler+string(role)))
		}
	}
	out := strings.Join(parts, e.and)
	if len(m.Not) == 0 {
		return out
	}
	if d == Postgres {
		return out + " & !" + e.any(m.Not)
	}
	return "(" + out + ") NOT " + e.any(m.Not)
}

// engineSyntax is what the two languages do differently.
type engineSyntax struct {
	and, or string
	term    func(words.Term) string
	phrase  func(words.Clause) string
}

func (e engineSyntax) any(clauses []words.Clause) string {
	parts := make([]string, len(clauses))
	for i, c := range clauses {
		parts[i] = e.clause(c)
	}
	return "(" + strings.Join(parts, e.or) + ")"
}

func (e engineSyntax) clause(c words.Clause) string {
	if len(c) == 1 {
		return e.term(c[0])
	}
	return e.phrase(c)
}

func ftsTerm(t words.Term) string {
	switch {
	case t.Prefix:
		return `{words} : ` + ftsQuoted(t.Text) + ` *`
	case t.Stem == "":
		return `{words} : ` + ftsQuoted(t.Text)
	case t.Stem == t.Text:
		return `{words stems} : ` + ftsQuoted(t.Text)
	}
	return `({words} : ` + ftsQuoted(t.Text) + ` OR {words stems} : ` + ftsQuoted(t.Stem) + `)`
}

func ftsPhrase(c words.Clause) string {
	texts := make([]string, len(c))
	for i, t := range c {
		texts[i] = t.Text
	}
	out := `{words} : ` + ftsQuoted(strings.Join(texts, " "))
	if c[len(c)-1].Prefix {
		out += ` *`
	}
	return out
}

func ftsQuoted(text string) string { return `"` + strings.ReplaceAll(text, `"`, `""`) + `"` }

func tsTerm(t words.Term) string {
	out := lexeme(nil, t.Text)
	if t.Prefix {
		return string(append(out, ":*"...))
	}
	if t.Stem == "" {
		return string(out)
	}
	if t.Stem != t.Text {
		out = lexeme(append(out, " | "...), t.Stem)
	}
	return "(" + string(lexeme(append(out, " | "...), "~"+t.Stem)) + ")"
}

func tsPhrase(c words.Clause) string {
	parts := make([]string, len(c))
	for i, t := range c {
		parts[i] = tsTerm(t)
	}
	return "(" + strings.Join(parts, " <-> ") + ")"
}
