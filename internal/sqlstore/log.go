package sqlstore

import (
	"context"

	"claude-memory-backend/internal/event"
)

// Since implements event.Log. The store of one project has the events that are about it or what is in it.
func (s *TenantStore) Since(ctx context.Context, after event.Seq, limit int) ([]event.Event, error) {
	if s.only == "" {
		return listEvents(ctx, s.db, after, limit, nil)
	}
	return listEvents(ctx, s.db, after, limit, func(d Dialect) (string, []any) {
		fact := func(name string) string {
			return d.Pick(`json_extract(data, '$.`+name+`')`, `CAST(data AS jsonb) ->> '`+name+`'`)
		}
		return ` AND (subject = ? OR ` + fact("project_id") + ` = ? OR ` + fact("from_project_id") + ` = ?
			OR coalesce(` + fact("conversation_id") + `, subject) IN (SELECT id FROM conversations WHERE project_id = ?))`,
			[]any{s.only, s.only, s.only, s.only}
	})
}

// Head implements event.Log.
func (s *TenantStore) Head(ctx context.Context) (event.Seq, error) { return logHead(ctx, s.db) }

// Note appends a change that is not about anything kept here: events, audit entry and nothing else.
func (s *TenantStore) Note(ctx context.Context, ch event.Change) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		return tx.Commit(func(b *Batch) { appendChange(b, ch, head) })
	})
}
