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
