package sqlstore

import (
	"context"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
)

// conversationCursor is the place behind one conversation in one order: the value it is sorted by, and its number,
// which decides between equal values. Values never move under a page: they are compared, not counted.
type conversationCursor struct {
	Kind      string            `json:"k"` // "conversations"
	Sort      conversation.Sort `json:"s"`
	Ascending bool              `json:"a,omitempty"`
	N         int64             `json:"n"`
	Number    *int64            `json:"v,omitempty"` // nil for an absent time
	Text      string            `json:"t,omitempty"`
}

// sortColumn is the column behind an order, or nothing for an order that is not known.
func sortColumn(s conversation.Sort) string {
	switch s {
	case conversation.ByUpdated, "":
		return "updated_at"
	case conversation.ByCreated:
		return "created_at"
	case conversation.ByLast:
		return "last_message_at"
	case conversation.ByTitle:
		return "title_folded"
	case conversation.ByImportance:
		return "importance_level"
	}
	return ""
}

// ListConversations implements conversation.Store.
func (s *TenantStore) ListConversations(ctx context.Context, q conversation.Query) ([]conversation.Conversation, string, error) {
	limit := max(1, q.Limit)
	if s.only != "" {
		q.Project = s.only
	}
	if q.Sort == "" {
		q.Sort = conversation.ByUpdated
	}
	column := sortColumn(q.Sort)
	if column == "" {
		return nil, "", fault.BadInput("sqlstore.ListConversations", "query.sort", "there is no such order")
	}
	var from conditions
	if q.Cursor != "" {
		if err := from.behind(q, column); err != nil {
			return nil, "", err
		}
	}
	order := column + " DESC, n DESC"
	if q.Ascending {
		order = column + ", n"
	}
	if q.Sort == conversation.ByLast {
		order = "last_message_at IS NULL, " + order // the engines disagree about where NULL belongs
	}
	var rows []conversationRow
	err := s.db.Read(ctx, func(b *Batch) {
		c := narrow(b.Dialect(), q)
		c.also(from)
		b.Query(func(s Scanner) error {
			var r conversationRow
			err := r.scan(s)
			rows = append(rows, r)
			return err
		}, `SELECT `+conversationColumns+` FROM conversations`+c.where()+` ORDER BY `+order+` LIMIT ?`,
			append(c.args, limit+1)...)
	})
	if err != nil {
		return nil, "", err
	}
	next := ""
	if len(rows) > limit {
		rows = rows[:limit]
		next = formatCursor(placeOf(rows[limit-1], q))
	}
	list := make([]conversation.Conversation, len(rows))
	for i, r := range rows {
		list[i] = r.Conversation
	}
	return list, next, nil
}

// narrow makes the conditions of the query's filters.
func narrow(d Dialect, q conversation.Query) *conditions {
	c := &conditions{}
	if q.Project != "" {
		c.and("project_id = ?", q.Project)
	}
	if q.Status != "" {
		c.and("status = ?", q.Status)
	}
	if q.Importance != 0 {
		c.and("importance_level = ?", q.Importance)
	}
	if q.Tag != "" {
		c.and(hasTag(d), q.Tag)
	}
	if q.Title != "" {
		c.and(contains(d, "title_folded"), folded(q.Title))
	}
	return c
}

// behind adds the condition that a conversation comes after the cursor.
func (c *conditions) behind(q conversation.Query, column string) error {
	var from conversationCursor
	if err := parseCursor(q.Cursor, &from); err != nil {
		return err
	}
	if from.Kind != "conversations" || from.Sort != q.Sort || from.Ascending != q.Ascending {
		return badCursor()
	}
	than := "<"
	if q.Ascending {
		than = ">"
	}
	switch {
	case q.Sort == conversation.ByTitle:
		if !ValidText(from.Text) || from.Number != nil {
			return badCursor()
		}
		c.and("(title_folded, n) "+than+" (?, ?)", from.Text, from.N)
	case q.Sort == conversation.ByLast && from.Number == nil:
		c.and("last_message_at IS NULL AND n "+than+" ?", from.N)
	case from.Number == nil:
		return badCursor()
	case q.Sort == conversation.ByLast:
		c.and("((last_message_at, n) "+than+" (?, ?) OR last_message_at IS NULL)", *from.Number, from.N)
	default:
		c.and("("+column+", n) "+than+" (?, ?)", *from.Number, from.N)
	}
	return nil
}

// placeOf is the cursor behind a row.
func placeOf(r conversationRow, q conversation.Query) conversationCursor {
	c := conversationCursor{Kind: "conversations", Sort: q.Sort, Ascending: q.Ascending, N: r.n}
	number := func(v int64) { c.Number = &v }
	switch q.Sort {
	case conversation.ByTitle:
		c.Text = folded(r.Title)
	case conversation.ByLast:
		c.Number = moment(r.LastMessageAt)
	case conversation.ByCreated:
		number(r.CreatedAt.UnixMicro())
	case conversation.ByImportance:
		number(int64(r.ImportanceLevel))
	default:
		number(r.UpdatedAt.UnixMicro())
	}
	return c
}
