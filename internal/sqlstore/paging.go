package sqlstore

import (
	"context"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// pageCursor is the place in a listing of messages. Of a path it names the leaf, so that its pages belong together
// while the active branch grows or changes, and a depth; of a whole conversation it is a number in order of creation.
type pageCursor struct {
	Kind      string          `json:"k"` // "path" or "all"
	Ascending bool            `json:"a,omitempty"`
	Leaf      ident.MessageID `json:"l,omitempty"`
	At        int64           `json:"n"`
}

// A path is a list of ranges of depth, one per branch that it runs along: from the leaf up on its branch to where that
// one forks, then on the branch it forked from, and so on. Depths on a path are dense, so a page of it is a window of
// depths known beforehand: the walk over the branches ends where the window ends, and what is read of the messages is
// the page, however long the history is. ?1 is the conversation, ?2 the leaf or ”, ?3 the depth of the cursor or 0,
// ?4 the limit.
const (
	pathLeaf = `(CASE WHEN ?2 <> '' THEN ?2 ELSE (SELECT leaf_id FROM conversations WHERE id = ?1) END)`

	windowDown = `SELECT CASE WHEN ?3 > 0 AND ?3 <= depth THEN ?3 - 1 ELSE depth END - ?4 AS low,
		CASE WHEN ?3 > 0 AND ?3 <= depth THEN ?3 - 1 ELSE depth END AS high FROM leaf`

	windowUp = `SELECT ?3 AS low, ?3 + ?4 AS high FROM leaf`

	spansBegin = `WITH RECURSIVE leaf (branch, depth) AS (
		SELECT branch, depth FROM messages WHERE id = ` + pathLeaf + ` AND conversation_id = ?1
	), edge (low, high) AS (
		SELECT CASE WHEN x.low > 0 THEN x.low ELSE 0 END, x.high FROM (`

	// Forks are looked up by subselects, one place at a time: as a join they could be read all at once.
	spansEnd = `) AS x
	), ranges (branch, low, high, up) AS (
		SELECT l.branch,
			COALESCE((SELECT b.fork_depth FROM branches b WHERE b.conversation_id = ?1 AND b.branch = l.branch), 0), l.depth,
			COALESCE((SELECT b.parent_branch FROM branches b WHERE b.conversation_id = ?1 AND b.branch = l.branch), 0)
		FROM leaf l
		UNION ALL
		SELECT r.up,
			COALESCE((SELECT b.fork_depth FROM branches b WHERE b.conversation_id = ?1 AND b.branch = r.up), 0), r.low,
			COALESCE((SELECT b.parent_branch FROM branches b WHERE b.conversation_id = ?1 AND b.branch = r.up), 0)
		FROM ranges r WHERE r.low > (SELECT low FROM edge)
	), spans (branch, low, high) AS (
		SELECT r.branch, CASE WHEN r.low > e.low THEN r.low ELSE e.low END,
			CASE WHEN r.high < e.high THEN r.high ELSE e.high END
		FROM ranges r CROSS JOIN edge e WHERE r.low < e.high AND r.high > e.low
	) SELECT ` + messageColumns + ` FROM spans s CROSS JOIN `

	spanOf = `m.conversation_id = ?1 AND m.branch = s.branch AND m.depth > s.low AND m.depth <= s.high ORDER BY m.depth`

	pageDown = spansBegin + windowDown + spansEnd
	pageUp   = spansBegin + windowUp + spansEnd

	// What lies on the leaf's own branch needs no ranges. It is most pages, since most conversations have one branch, and SQLite
	// prepares this in a quarter of the time (decision 0088). The places of arguments are the same.
	ownBranch = `SELECT ` + messageColumns + ` FROM messages l CROSS JOIN messages m WHERE l.id = ` + pathLeaf + ` AND l.conversation_id = ?1
		AND m.conversation_id = ?1 AND m.branch = l.branch AND m.depth `
	ownDown = ownBranch + `< CASE WHEN ?3 > 0 AND ?3 <= l.depth THEN ?3 ELSE l.depth + 1 END ORDER BY m.depth DESC LIMIT ?4`
	ownUp   = ownBranch + `> ?3 AND m.depth <= l.depth ORDER BY m.depth LIMIT ?4`
)

// onOwnBranch reports whether a page lies on the leaf's own branch, which begins below the depth fork.
func (c pageCursor) onOwnBranch(depth, fork int64, limit int) bool {
	if c.Ascending {
		return c.At >= fork
	}
	high := depth
	if c.At > 0 && c.At <= depth {
		high = c.At - 1
	}
	return max(0, high-int64(limit)) >= fork
}

// pageOfPath is the statement for one page of a path. SQLite joins in the order in which a CROSS JOIN is written, and
// so reads the spans by the index. PostgreSQL joins as it pleases, which without fresh statistics is by reading the
// whole branch and throwing most of it away; the limit inside the lateral part takes that choice from it.
func pageOfPath(d Dialect, ascending bool) string {
	if ascending {
		return pageUp + d.Pick(`messages m WHERE `+spanOf,
			`LATERAL (SELECT * FROM messages m WHERE `+spanOf+` LIMIT ?4) AS m ORDER BY m.depth`)
	}
	return pageDown + d.Pick(`messages m WHERE `+spanOf+` DESC`,
		`LATERAL (SELECT * FROM messages m WHERE `+spanOf+` DESC LIMIT ?4) AS m ORDER BY m.depth DESC`)
}

// pageOfOwn is the statement for a page of a path that lies on the leaf's own branch.
func pageOfOwn(ascending bool) string {
	if ascending {
		return ownUp
	}
	return ownDown
}

// pageOfAll is the statement for one page of all branches. The conversation is asked for as a range, because of a
// single one PostgreSQL would know that the order is that of the primary key, and walk over everything that is newer
// or older in other conversations. ?1 is the conversation, ?2 the number of the cursor, ?3 the limit.
func pageOfAll(ascending bool) string {
	if ascending {
		return `SELECT ` + messageColumns + ` FROM messages m WHERE (m.conversation_id, m.n) > (?1, ?2)
			AND m.conversation_id <= ?1 ORDER BY m.conversation_id, m.n LIMIT ?3`
	}
	return `SELECT ` + messageColumns + ` FROM messages m WHERE (m.conversation_id, m.n) < (?1, ?2)
		AND m.conversation_id >= ?1 ORDER BY m.conversation_id DESC, m.n DESC LIMIT ?3`
}

// pageBytes is the text after which a page of messages ends early, always with one message at least: a page of the
// longest messages would fill the server's memory.
const pageBytes = 4 << 20

// messagePage collects messages until it is full.
type messagePage struct {
	list   []conversation.Message
	places []int64
	bytes  int
	full   bool // a message was left out for want of room
}

func (p *messagePage) take(s Scanner) error {
	if p.full {
		return nil
	}
	m, n, err := scanMessage(s)
	size := len(m.Content) + len(m.Blocks)
	if p.full = len(p.list) > 0 && p.bytes+size > pageBytes; p.full || err != nil {
		return err
	}
	p.list, p.places, p.bytes = append(p.list, m), append(p.places, n), p.bytes+size
	return nil
}

// ListMessages implements conversation.Store. A page may have fewer messages than asked for and still a next cursor:
// where messages are long, it ends early.
func (s *TenantStore) ListMessages(ctx context.Context, id ident.ConversationID, q conversation.MessageQuery) (
	[]conversation.Message, string, error) {
	from := pageCursor{Kind: "path", Ascending: q.Ascending, Leaf: q.Leaf}
	if q.All {
		from = pageCursor{Kind: "all", Ascending: q.Ascending}
	}
	if q.Cursor != "" {
		want := from
		from = pageCursor{}
		if err := parseCursor(q.Cursor, &from); err != nil {
			return nil, "", err
		}
		if from.Kind != want.Kind || from.Ascending != want.Ascending || from.At < 1 || !ValidText(string(from.Leaf)) ||
			want.Leaf != "" && from.Leaf != want.Leaf || (from.Leaf == "") != q.All {
			return nil, "", badCursor()
		}
	}
	if q.All {
		return s.listAll(ctx, id, from, max(1, q.Limit))
	}
	return s.listPath(ctx, id, from, max(1, q.Limit), q.Cursor != "")
}

// listPath reads one page of the path to a leaf.
func (s *TenantStore) listPath(ctx context.Context, id ident.ConversationID, from pageCursor, limit int, continued bool) (
	[]conversation.Message, string, error) {
	var page messagePage
	var active, leaf ident.MessageID
	var depth, fork int64
	var found *Found
	var seen func() bool
	err := s.db.Read(ctx, func(b *Batch) {
		seen = s.lookFor(b, id)
		found = b.One([]any{&active, &leaf, &depth, &fork}, `SELECT c.leaf_id, m.id, m.depth,
			(SELECT b.fork_depth FROM branches b WHERE b.conversation_id = ?1 AND b.branch = m.branch) FROM conversations c
			LEFT JOIN messages m ON m.conversation_id = c.id AND m.id = `+pathLeaf+` WHERE c.id = ?1`, id, from.Leaf)
		page = messagePage{}
		own := func() bool { return from.onOwnBranch(depth, fork, limit) }
		if b.Dialect() == SQLite {
			b.Query(page.take, pageOfOwn(from.Ascending), id, from.Leaf, from.At, limit)
			b.When(own)
		}
		b.Query(page.take, pageOfPath(b.Dialect(), from.Ascending), id, from.Leaf, from.At, limit)
		b.When(func() bool { return !own() })
	})
	switch {
	case err != nil:
		return nil, "", err
	case !found.Yes || !seen():
		return nil, "", fault.Missing("sqlstore.ListMessages")
	case leaf == "" && continued:
		return nil, "", badCursor()
	case leaf == "" && from.Leaf != "":
		return nil, "", fault.Missing("sqlstore.ListMessages")
	case len(page.list) == 0:
		return nil, "", nil
	}
	list := page.list
	at := list[len(list)-1].Depth
	if from.Ascending && at >= depth || !from.Ascending && at <= 1 {
		return list, "", nil
	}
	return list, formatCursor(pageCursor{Kind: "path", Ascending: from.Ascending, Leaf: leaf, At: at}), nil
}

// listAll reads one page of all branches.
func (s *TenantStore) listAll(ctx context.Context, id ident.ConversationID, from pageCursor, limit int) (
	[]conversation.Message, string, error) {
	var page messagePage
	var found *Found
	if !from.Ascending && from.At == 0 {
		from.At = 1<<63 - 1
	}
	var seen func() bool
	err := s.db.Read(ctx, func(b *Batch) {
		var n int64
		seen = s.lookFor(b, id)
		found = b.One([]any{&n}, `SELECT n FROM conversations WHERE id = ?`, id)
		page = messagePage{}
		b.Query(page.take, pageOfAll(from.Ascending), id, from.At, limit+1)
	})
	if err == nil && !(found.Yes && seen()) {
		page.list, err = nil, fault.Missing("sqlstore.ListMessages")
	}
	if err != nil || len(page.list) <= limit && !page.full {
		return page.list, "", err
	}
	last := min(limit, len(page.list))
	return page.list[:last], formatCursor(pageCursor{Kind: "all", Ascending: from.Ascending, At: page.places[last-1]}), nil
}

// pathUp walks from a message to its parents and stops at the first one that does not belong to the answer: how far
// that is depends on the sums of tokens, which no index holds. Only numbers are carried along; the rows are read at
// the end. ?1 is the conversation, ?2 the message, ?3 the limit, ?4 the sum to stay above.
const pathUp = `WITH RECURSIVE path (n, parent, place) AS (
		SELECT n, parent_id, 1 FROM messages WHERE id = ?2 AND conversation_id = ?1 AND tokens_up_to > ?4
		UNION ALL
		SELECT m.n, m.parent_id, p.place + 1 FROM path p CROSS JOIN messages m
		WHERE m.id = p.parent AND m.tokens_up_to > ?4 AND p.place < ?3
	)
	SELECT ` + messageColumns + ` FROM path p CROSS JOIN messages m WHERE m.n = p.n ORDER BY p.place DESC`

// Path implements conversation.Store.
func (s *TenantStore) Path(ctx context.Context, id ident.ConversationID, to ident.MessageID, limit int, after int64) (
	[]conversation.Message, error) {
	var list []conversation.Message
	var found *Found
	err := s.db.Read(ctx, func(b *Batch) {
		var n int64
		found = b.One([]any{&n}, `SELECT n FROM messages WHERE id = ? AND conversation_id = ?`, to, id)
		if limit > 0 {
			b.Query(collect(&list), pathUp, id, to, limit, after)
		}
	})
	if err == nil && !found.Yes {
		err = fault.Missing("sqlstore.Path")
	}
	return list, err
}
