package sqlstore

import (
	"context"
	"time"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/tenant"
)

// MasterStore keeps what the installation knows: who may sign in, and where each tenant's data lives. Nothing that a
// user wrote is in it.
type MasterStore struct {
	db       *DB
	onCommit func(event.Seq)
}

var (
	_ account.Store    = (*MasterStore)(nil)
	_ tenant.Directory = (*MasterStore)(nil)
	_ tenant.Hints     = (*MasterStore)(nil)
	_ event.Log        = (*MasterStore)(nil)
	_ job.Store        = (*MasterStore)(nil)
)

// NewMasterStore speaks to a migrated database of the master line. onCommit, which may be nil, hears the log's new end
// after each commit that appended events; it is called by whoever committed and must not block.
func NewMasterStore(db *DB, onCommit func(event.Seq)) *MasterStore {
	return &MasterStore{db: db, onCommit: onCommit}
}

// Ping asks the database for an answer.
func (s *MasterStore) Ping(ctx context.Context) error {
	_, err := logHead(ctx, s.db)
	return err
}

// Since implements event.Log.
func (s *MasterStore) Since(ctx context.Context, after event.Seq, limit int) ([]event.Event, error) {
	return listEvents(ctx, s.db, after, limit)
}

// Head implements event.Log.
func (s *MasterStore) Head(ctx context.Context) (event.Seq, error) { return logHead(ctx, s.db) }

// Trail is the installation's audit trail.
func (s *MasterStore) Trail() audit.Store { return trail{s.db} }

// FindOnce implements event.Onces.
func (s *MasterStore) FindOnce(ctx context.Context, scope, key string) (event.Once, error) {
	return findOnce(ctx, s.db, scope, key, time.Now())
}

// SweepOnces forgets idempotency records that expired and returns how many there were.
func (s *MasterStore) SweepOnces(ctx context.Context, now time.Time) (int64, error) {
	return deleteExpiredOnces(ctx, s.db, now)
}

func (s *MasterStore) change(ctx context.Context, fn func(tx *Tx, head *event.Seq) error) error {
	return s.db.change(ctx, s.onCommit, fn)
}
