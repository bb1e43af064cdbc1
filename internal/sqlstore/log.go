package sqlstore

import (
	"context"

	"claude-memory-backend/internal/event"
)

// Since implements event.Log.
func (s *TenantStore) Since(ctx context.Context, after event.Seq, limit int) ([]event.Event, error) {
	return listEvents(ctx, s.db, after, limit)
}

// Head implements event.Log.
func (s *TenantStore) Head(ctx context.Context) (event.Seq, error) { return logHead(ctx, s.db) }

// Note appends a change that is not about anything kept here: events, audit entry and nothing else.
func (s *TenantStore) Note(ctx context.Context, ch event.Change) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		return tx.Commit(func(b *Batch) { appendChange(b, ch, head) })
	})
}
