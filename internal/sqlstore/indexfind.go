package sqlstore

import (
	"cmp"
	"context"
	"math"
	"slices"
	"strconv"
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
	// PostgreSQL looks at this many of the newest rows, and walks on from there unless the GIN index, which knows no
	// order, is the better way: with other filters, when no more than ginMax hits are expected of it.
	lookFirst = 4_000
	ginMax    = 20_000
)

// Ask implements conversation.Index. Of words that very many messages have, only the newest 200,000 are looked at for
// those of a project or a time; a role is part of the index and bounded by nothing.
func (s *TenantStore) Ask(ctx context.Context, q conversation.Question) (f conversation.Findings, err error) {
	q = s.within(q)
	// Whoever finds the database on another engine than it began with begins again: the answer there is the same.
	for moved := true; moved; {
		ask := s.askNear
		if s.db.Dialect() == Postgres {
			ask = s.askFar
		}
		if f, moved, err = ask(ctx, q); err != nil {
			return conversation.Findings{}, err
		}
	}
	return f, nil
}

// within narrows a question to what the store is about. Frequencies stay those of everything: what a guest is shown must not
// depend on them.
func (s *TenantStore) within(q conversation.Question) conversation.Question {
	if s.only == "" {
		return q
	}
	q.Messages = slices.Clone(q.Messages)
	for i := range q.Messages {
		q.Messages[i].Project = s.only
	}
	if q.Titles != nil {
		titles := *q.Titles
		titles.Project = s.only
		q.Titles = &titles
	}
	return q
}

// askNear asks SQLite, one thing after the other: a statement costs nothing but its work there.
func (s *TenantStore) askNear(ctx context.Context, q conversation.Question) (f conversation.Findings, moved bool, err error) {
	if q.Count {
		if f.Frequencies, moved, err = s.frequencies(ctx, q.Clauses); err != nil || moved {
			return f, moved, err
		}
	}
	one := func(c conversation.Candidates, newest int64, t wordTable) ([]conversation.Doc, error) {
		if q.Count && c.Before <= 0 {
			c.Before = newest + 1
		}
		find := newFinding(c, t)
		moved, err = find.stream(ctx, s.db)
		return find.ended(), err
	}
	for _, c := range q.Messages {
		if c.Limit = q.Messages[0].Limit - len(f.Found); c.Limit <= 0 {
			break
		}
		docs, err := one(c, f.Messages, messageWords(c.Role))
		if err != nil || moved {
			return f, moved, err
		}
		f.Found = append(f.Found, docs...)
	}
	if q.Titles != nil {
		f.FoundTitles, err = one(*q.Titles, f.Titles, titleWords())
	}
	return f, moved, err
}

// frequencies counts on SQLite. Numbers are given out one after the other, so the newest one is also how many messages
// there are, but for what was deleted.
func (s *TenantStore) frequencies(ctx context.Context, clauses []words.Clause) (f conversation.Frequencies, moved bool, err error) {
	f.Clauses = make([]int64, len(clauses))
	read := func(fill func(b *Batch)) error {
		return s.db.Read(ctx, func(b *Batch) {
			if moved = b.Dialect() != SQLite; !moved {
				fill(b)
			}
		})
	}
	err = read(func(b *Batch) {
		countAll(b, &f)
		for i, c := range clauses {
			// From the newest: the other way it would have to come through all that is older.
			b.One([]any{&f.Clauses[i]}, `SELECT count(*) FROM (SELECT 1 FROM message_words WHERE message_words MATCH ?
				AND rowid > (SELECT coalesce(max(n), 0) - ? FROM messages) ORDER BY rowid DESC)`, clauseText(SQLite, c), countWindow)
		}
	})
	f.Total = f.Messages
	if err != nil || moved || f.Total <= countWindow {
		return f, moved, err
	}
	err = read(func(b *Batch) {
		for i, c := range clauses {
			if f.Clauses[i] >= countRare {
				f.Clauses[i] = f.Clauses[i] * f.Total / countWindow
				continue
			}
			b.One([]any{&f.Clauses[i]}, `SELECT count(*) FROM (SELECT 1 FROM message_words WHERE message_words MATCH ? LIMIT ?)`,
				clauseText(SQLite, c), countMax)
		}
	})
	return f, moved, err
}

func countAll(b *Batch, f *conversation.Frequencies) {
	b.One([]any{&f.Messages}, `SELECT coalesce(max(n), 0) FROM messages`)
	b.One([]any{&f.Titles}, `SELECT coalesce(max(n), 0) FROM conversations`)
}

// countFar counts on PostgreSQL, in one pass over the newest rows for all clauses. What is rare among these is counted in
// all by the same statement: exact has that, where it was necessary.
func countFar(b *Batch, clauses []words.Clause, newest []int64, exact []*int64) {
	if len(clauses) == 0 {
		return
	}
	var a arguments
	var counts, rare []string
	var dest []any
	for i, c := range clauses {
		hit := `words @@ CAST(` + a.add(clauseText(Postgres, c)) + ` AS tsquery)`
		name := `c` + strconv.Itoa(i)
		counts = append(counts, `count(*) FILTER (WHERE `+hit+`) AS `+name)
		rare = append(rare, name+`, CASE WHEN `+name+` < `+a.add(countRare)+` AND (SELECT coalesce(max(n), 0) FROM messages) > `+
			a.add(countWindow)+` THEN (SELECT count(*) FROM (SELECT 1 FROM message_words WHERE `+hit+` LIMIT `+a.add(countMax)+`) w) END`)
		dest = append(dest, &newest[i], &exact[i])
	}
	b.One(dest, `WITH newest AS MATERIALIZED (SELECT `+strings.Join(counts, ", ")+` FROM message_words
		WHERE n > (SELECT coalesce(max(n), 0) - `+a.add(countWindow)+` FROM messages))
		SELECT `+strings.Join(rare, ", ")+` FROM newest`, a.list...)
}

// arguments are those of a statement that names them by number, so that one may stand in it twice.
type arguments struct{ list []any }

func (a *arguments) add(v any) string {
	a.list = append(a.list, v)
	return "?" + strconv.Itoa(len(a.list))
}

// askFar asks PostgreSQL, all at once: it may be far away.
func (s *TenantStore) askFar(ctx context.Context, q conversation.Question) (f conversation.Findings, moved bool, err error) {
	var messages []*finding
	for _, c := range q.Messages {
		c.Limit = q.Messages[0].Limit
		messages = append(messages, newFinding(c, messageWords(c.Role)))
	}
	all := messages
	titles := newFinding(conversation.Candidates{}, titleWords())
	if q.Titles != nil {
		titles = newFinding(*q.Titles, titleWords())
		all = append(slices.Clip(all), titles)
	}
	f.Frequencies.Clauses = make([]int64, len(q.Clauses))
	exact := make([]*int64, len(q.Clauses))
	for first := true; ; first = false {
		open := slices.DeleteFunc(slices.Clone(all), func(f *finding) bool { return f.done })
		count := first && q.Count
		if !count && len(open) == 0 {
			break
		}
		err = s.db.Read(ctx, func(b *Batch) {
			if moved = b.Dialect() != Postgres; moved {
				return
			}
			// A statement here has ways that it does not go. By what they would cost, the server would think it worth its
			// while to compile all of it.
			b.Exec(`SET LOCAL jit = off`)
			if count {
				countAll(b, &f.Frequencies)
				countFar(b, q.Clauses, f.Frequencies.Clauses, exact)
			}
			for _, one := range open {
				one.walk(b)
			}
		})
		if err != nil || moved {
			return f, moved, err
		}
		had := 0
		for _, one := range messages {
			one.settle()
			// What comes later gets the room that is left.
			one.Limit = max(0, q.Messages[0].Limit-had)
			one.done = one.done || len(one.docs) >= one.Limit
			had += len(one.docs)
		}
		titles.settle()
	}
	f.Total = f.Messages
	for i := range q.Clauses {
		switch {
		case !q.Count || f.Total <= countWindow:
		case exact[i] != nil:
			f.Frequencies.Clauses[i] = *exact[i]
		default:
			f.Frequencies.Clauses[i] = f.Frequencies.Clauses[i] * f.Total / countWindow
		}
	}
	for _, one := range messages {
		docs := one.ended()
		f.Found = append(f.Found, docs[:min(len(docs), max(0, q.Messages[0].Limit-len(f.Found)))]...)
	}
	f.FoundTitles = titles.ended()
	return f, false, nil
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

func messageWords(role conversation.Role) wordTable {
	return wordTable{
		name: "message_words",
		role: role,
		rows: `SELECT m.n, m.conversation_id, c.title, c.project_id, m.id, m.parent_id, m.role, m.content, m.created_at`,
		lite: ` CROSS JOIN messages m CROSS JOIN conversations c WHERE m.n = x.n AND c.id = m.conversation_id`,
		post: ` CROSS JOIN LATERAL (SELECT * FROM messages WHERE messages.n = x.n LIMIT 1) m
			CROSS JOIN LATERAL (SELECT * FROM conversations WHERE conversations.id = m.conversation_id LIMIT 1) c WHERE true`,
		time: `m.created_at`, length: `m.content_length`,
	}
}

func titleWords() wordTable {
	return wordTable{
		name: "title_words",
		rows: `SELECT c.n, c.id, c.title, c.project_id, '', '', '', c.title AS text, c.created_at`,
		lite: ` CROSS JOIN conversations c WHERE c.n = x.n`,
		post: ` CROSS JOIN LATERAL (SELECT * FROM conversations WHERE conversations.n = x.n LIMIT 1) c WHERE true`,
		time: `c.created_at`, length: `length(c.title)`,
	}
}

// filters are the conditions besides the words, each with a leading AND. Their places are named by place.
func (t wordTable) filters(c conversation.Candidates, place func(v any) string) (sql string) {
	if c.Project != "" {
		sql += ` AND c.project_id = ` + place(c.Project)
	}
	if !c.From.IsZero() {
		sql += ` AND ` + t.time + ` >= ` + place(ident.Micros(c.From))
	}
	if !c.To.IsZero() {
		sql += ` AND ` + t.time + ` < ` + place(ident.Micros(c.To))
	}
	return sql
}

// finding is one search for documents on its way.
type finding struct {
	conversation.Candidates
	wordTable
	docs []conversation.Doc
	size int64 // of their texts

	// On PostgreSQL.
	done bool
	low  int64 // the last of the rows that were looked at
	way  int64 // and how it went on from there
	deep bool  // by the GIN index alone
}

func newFinding(c conversation.Candidates, t wordTable) *finding {
	if c.Before <= 0 {
		c.Before = math.MaxInt64
	}
	if c.Text <= 0 {
		c.Text = math.MaxInt64
	}
	return &finding{Candidates: c, wordTable: t, done: c.Limit <= 0 || t.name == "title_words" && c.Role != ""}
}

func (f *finding) read(r Scanner) error {
	var d conversation.Doc
	var at int64
	err := r.Scan(&d.N, &d.ConversationID, &d.ConversationTitle, &d.ProjectID, &d.MessageID, &d.ParentID, &d.Role, &d.Text, &at)
	d.CreatedAt = ident.Time(at)
	f.take(d)
	return err
}

func (f *finding) take(d conversation.Doc) {
	f.docs = append(f.docs, d)
	f.size += int64(len(d.Text))
}

// room is how many documents are still wanted.
func (f *finding) room() int {
	if f.size > f.Text {
		return 0
	}
	return f.Limit - len(f.docs)
}

// ended is what was found, newest first.
func (f *finding) ended() []conversation.Doc {
	slices.SortFunc(f.docs, func(a, b conversation.Doc) int { return cmp.Compare(b.N, a.N) })
	size := int64(0)
	for i, d := range f.docs {
		if size > f.Text {
			return f.docs[:i]
		}
		size += int64(len(d.Text))
	}
	return f.docs
}

// stream finds newest first on SQLite: FTS5 delivers in this order, and who has enough stops it. moved is true when the
// database is on another engine now.
func (f *finding) stream(ctx context.Context, db *DB) (moved bool, err error) {
	if f.done {
		return false, nil
	}
	var filters []any
	where := f.filters(f.Candidates, func(v any) string { filters = append(filters, v); return "?" })
	hits := f.Limit
	if where != "" {
		hits = scanMax
	}
	args := append([]any{expression(SQLite, f.Match, f.role), f.Before, hits}, filters...)
	err = db.Read(ctx, func(b *Batch) {
		if moved = b.Dialect() != SQLite; !moved {
			b.QueryUntil(f.read, func() bool { return f.room() <= 0 },
				f.rows+` FROM (SELECT rowid AS n FROM `+f.name+` WHERE `+f.name+` MATCH ? AND rowid < ?
				ORDER BY rowid DESC LIMIT ?) x`+f.lite+where, args...)
		}
	})
	return moved, err
}

// The ways on from the newest rows.
const (
	wayNone = iota // there is nothing more, or enough is found
	wayGIN
	wayWalk
)

// walk queues the search on PostgreSQL, newest first, for all that is still wanted: to ask for less would save text that
// is seldom too much, and cost a way to the database and back.
//
// An index of words has no order there: common words are met soon on a walk backwards through the rows, and of rare
// words the index has few hits to sort. A look at the newest rows tells which it is; the planner's statistics could not,
// they lag behind and know the most common thousand words only. One statement looks and goes on, so that nobody has to
// wait for the way to the database twice: what hangs on (SELECT way FROM way) does not run when it is not that way. The hits of
// the index are materialized before anything is asked of their numbers: for the sake of these the planner would go through
// all rows.
func (f *finding) walk(b *Batch) {
	f.low, f.way = 0, wayNone
	var a arguments
	hit := `words @@ CAST(` + a.add(expression(Postgres, f.Match, f.role)) + ` AS tsquery)`
	before, room, text := a.add(f.Before), a.add(f.room()), a.add(f.Text-f.size)
	where := f.filters(f.Candidates, a.add)
	// How much text there is, in UTF-16 code units, PostgreSQL adds up before it reads the text.
	docs := func(hits, had, room string) string {
		return `SELECT * FROM (` + f.rows + `, CAST(` + had + ` + sum(` + f.length + `) OVER (ORDER BY x.n DESC) AS BIGINT) AS upto,
			` + f.length + ` AS own FROM (` + hits + `) x` + f.post + where + ` ORDER BY x.n DESC LIMIT ` + room + `) y
			WHERE upto - own <= ` + text
	}
	if f.deep {
		b.Query(f.far, `WITH hits AS MATERIALIZED (SELECT n FROM `+f.name+` WHERE `+hit+`)
			`+docs(`SELECT n FROM hits WHERE n < `+before+` ORDER BY n DESC LIMIT `+room, `0`, room), a.list...)
		return
	}
	// Each hit of the index must be fetched before the newest are known, at about five times the price of a row on the
	// walk, which meets a hit for each hits/seen of its rows.
	const left = `(SELECT room FROM way)`
	many, rare := left, `hits = 0 OR 5 * CAST(hits AS DOUBLE PRECISION) * hits * low <= room * CAST(seen AS DOUBLE PRECISION) * seen`
	if where != "" {
		many = a.add(scanMax)
		rare = `CAST(hits AS DOUBLE PRECISION) * low <= ` + a.add(ginMax) + ` * CAST(seen AS DOUBLE PRECISION)`
	}
	first, walked := a.add(lookFirst), a.add(scanMax-lookFirst)
	b.Query(f.far, `WITH head AS MATERIALIZED (SELECT n, `+hit+` AS hit
			FROM (SELECT n, words FROM `+f.name+` WHERE n < `+before+` ORDER BY n DESC LIMIT `+first+`) w),
		near AS MATERIALIZED (`+docs(`SELECT n FROM head WHERE hit ORDER BY n DESC`, `0`, room)+`),
		way AS MATERIALIZED (SELECT low, greatest(room, 0) AS room, upto,
			CASE WHEN seen < `+first+` OR room <= 0 OR upto > `+text+` THEN 0 WHEN `+rare+` THEN 1 ELSE 2 END AS way
			FROM (SELECT seen, low, hits, `+room+` - docs AS room, upto
				FROM (SELECT count(*) AS seen, coalesce(min(n), 0) AS low, count(*) FILTER (WHERE hit) AS hits FROM head) h,
				(SELECT count(*) AS docs, coalesce(max(upto), 0) AS upto FROM near) d) k),
		hits AS MATERIALIZED (SELECT n FROM `+f.name+` WHERE (SELECT way FROM way) = 1 AND `+hit+`)
		SELECT low, '', '', '', '', '', '', '', CAST(way AS BIGINT), CAST(0 AS BIGINT), 0 FROM way
		UNION ALL SELECT * FROM near
		UNION ALL (`+docs(`SELECT n FROM hits WHERE n < (SELECT low FROM way) ORDER BY n DESC LIMIT `+many, `(SELECT upto FROM way)`, left)+`)
		UNION ALL (`+docs(`SELECT n FROM (SELECT n, words FROM `+f.name+` WHERE (SELECT way FROM way) = 2
			AND n < (SELECT low FROM way) ORDER BY n DESC LIMIT `+walked+`) w WHERE `+hit+` ORDER BY n DESC LIMIT `+many,
		`(SELECT upto FROM way)`, left)+`)`, a.list...)
}

// far reads a row of walk: a document, or the one without a conversation that tells the way.
func (f *finding) far(r Scanner) error {
	var d conversation.Doc
	var at, upto, own int64
	if err := r.Scan(&d.N, &d.ConversationID, &d.ConversationTitle, &d.ProjectID, &d.MessageID, &d.ParentID, &d.Role, &d.Text,
		&at, &upto, &own); err != nil {
		return err
	}
	if d.ConversationID == "" {
		f.low, f.way = d.N, at
		return nil
	}
	d.CreatedAt = ident.Time(at)
	f.take(d)
	return nil
}

// settle decides after a walk whether there is more to find.
func (f *finding) settle() {
	if f.done {
		return
	}
	switch {
	case f.room() <= 0:
		f.done = true
	case f.way == wayWalk && f.unfiltered() && f.low > scanMax-lookFirst:
		// The newest 200,000 rows do not have enough of what looked common: the rest is for the index.
		f.deep = true
	default:
		f.done = true
	}
	for _, d := range f.docs {
		f.Before = min(f.Before, d.N)
	}
}

func (f *finding) unfiltered() bool {
	return f.filters(f.Candidates, func(any) string { return "" }) == ""
}

// clauseText is the expression for one clause.
func clauseText(d Dialect, c words.Clause) string {
	return expression(d, words.Match{All: []words.Clause{c}}, "")
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
