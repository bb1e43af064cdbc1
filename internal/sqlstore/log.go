package sqlstore

import (
	"context"

	"claude-memory-backend/internal/event"
)

// Since implements event.Log. The store of one project has the events that are about it or what is in it.
func (s *TenantStore) Since(ctx context.Context, after event.Seq, limit int) ([]event.Event, error) {
	if s.only == "" {
		return listEvents(ctx, s.db, after, limit)
	}
	var list []event.Event
	err := s.db.Read(ctx, func(b *Batch) {
		b.Query(takeEvents(&list), `SELECT `+eventColumns+` FROM events WHERE seq > ?1 AND (subject = ?2 `+b.Dialect().Pick(
			`OR json_extract(data, '$.project_id') = ?2 OR json_extract(data, '$.from_project_id') = ?2
			OR coalesce(json_extract(data, '$.conversation_id'), subject)`,
			`OR CAST(data AS jsonb) ->> 'project_id' = ?2 OR CAST(data AS jsonb) ->> 'from_project_id' = ?2
			OR coalesce(CAST(data AS jsonb) ->> 'conversation_id', subject)`)+
			` IN (SELECT id FROM conversations WHERE project_id = ?2)) ORDER BY seq LIMIT ?3`, after, s.only, limit)
	})
	return list, err
}

// Head implements event.Log.
func (s *TenantStore) Head(ctx context.Context) (event.Seq, error) { return logHead(ctx, s.db) }

// Note appends a change that is not about anything kept here: events, audit entry and nothing else.
func (s *TenantStore) Note(ctx context.Context, ch event.Change) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		return tx.Commit(func(b *Batch) { s.appendChange(b, ch, head) })
	})
}
