package sqlstore

import (
	"context"
	"slices"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

var _ event.ProjectLog = (*TenantStore)(nil)

// Since implements event.Log. Through the store of one project the whole log is not to be read.
func (s *TenantStore) Since(ctx context.Context, after event.Seq, limit int) ([]event.Event, error) {
	if s.only != "" {
		return nil, fault.Missing("sqlstore.Since")
	}
	return listEvents(ctx, s.db, after, limit)
}

// About implements event.ProjectLog. However long the log is and however little of it is about the project, the statement
// looks at so many rows and no more: whoever may read one project must not make the database read everything.
func (s *TenantStore) About(ctx context.Context, p ident.ProjectID, after event.Seq, rows, limit int) (
	list []event.Event, upTo event.Seq, more bool, err error) {
	if !s.sees(p) {
		return nil, after, false, fault.Missing("sqlstore.About")
	}
	const window = `(SELECT * FROM events WHERE seq > ?1 ORDER BY seq LIMIT ?2) AS w`
	rows, limit = max(1, rows), max(1, limit)
	var looked int
	err = s.db.Read(ctx, func(b *Batch) {
		b.One([]any{&upTo, &looked}, `SELECT coalesce(max(w.seq), ?1), count(*) FROM `+window, after, rows)
		b.Query(takeEvents(&list), `SELECT `+eventColumns+` FROM `+window+` WHERE subject = ?3 OR type = ?4 OR `+b.Dialect().Pick(
			`json_extract(data, '$.project_id') = ?3 OR json_extract(data, '$.from_project_id') = ?3`,
			`CAST(data AS jsonb) ->> 'project_id' = ?3 OR CAST(data AS jsonb) ->> 'from_project_id' = ?3`)+` ORDER BY seq LIMIT ?5`,
			after, rows, p, event.Restored, limit+1)
	})
	if err != nil {
		return nil, after, false, err
	}
	more = looked == rows
	if len(list) > limit {
		list = list[:limit]
		upTo, more = list[limit-1].Seq, true
	}
	shown := list[:0]
	for _, e := range list {
		// What was committed between the two statements is not in the first one's window.
		if e, ok := s.Shown(p, e); ok && e.Seq <= upTo {
			shown = append(shown, e)
		}
	}
	return slices.Clip(shown), upTo, more, nil
}

// Shown implements event.ProjectLog.
func (s *TenantStore) Shown(p ident.ProjectID, e event.Event) (event.Event, bool) {
	switch {
	case !s.sees(p):
		return event.Event{}, false
	case p == "":
		return e, true
	case e.Type != event.Restored && !e.Concerns(string(p)):
		return event.Event{}, false
	case s.only != "":
		return e.For(p)
	}
	return e, true
}

// Head implements event.Log.
func (s *TenantStore) Head(ctx context.Context) (event.Seq, error) { return logHead(ctx, s.db) }

// Note appends a change that is not about anything kept here: events, audit entry and nothing else.
func (s *TenantStore) Note(ctx context.Context, ch event.Change) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		return tx.Commit(func(b *Batch) { s.appendChange(b, ch, head) })
	})
}
