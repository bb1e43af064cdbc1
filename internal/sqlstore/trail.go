package sqlstore

import (
	"context"

	"claude-memory-backend/internal/audit"
)

// trail is the audit.Store of a database. It is a type of its own because "Append" is what conversations call adding
// messages.
type trail struct{ db *DB }

// Trail is the tenant's audit trail.
func (s *TenantStore) Trail() audit.Store { return trail{s.db} }

// Append implements audit.Store.
func (t trail) Append(ctx context.Context, e audit.Entry) error {
	return t.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { appendAudit(b, e) })
	})
}

// Entries implements audit.Store.
func (t trail) Entries(ctx context.Context, f audit.Filter, cursor string, limit int) ([]audit.Entry, string, error) {
	return listAudit(ctx, t.db, f, cursor, limit)
}
