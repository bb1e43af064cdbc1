package sqlstore

import "context"

const capturedTable = "captured_changes"

// Captured says that a row was inserted, updated or deleted; its state now is to be looked up with [Snapshot.Get]. N
// rises from change to change in the order of commits.
type Captured struct {
	N     int64
	Table string
	Key   []any
}

// StartCapture lets a database note in a table of its own (captured_changes) the key of every row that is changed from
// now on by anybody: also by cascades, and both keys where a key changes. It waits for writers in flight: what they
// wrote is visible to a snapshot taken after it returned. One that is capturing already goes on. A fenced database is
// refused (code "tenant_moved"). Nothing is added outside the database's own schema. The schema must not be migrated
// while changes are captured.
func StartCapture(ctx context.Context, db *DB) error { return unbuilt() }

// StopCapture removes everything that StartCapture added. It works on a fenced database, and on one that does not
// capture.
func StopCapture(ctx context.Context, db *DB) error { return unbuilt() }

// Captured lists up to limit changes behind the position after, oldest first. Whoever goes on behind the last N misses
// nothing: a change with a smaller number never appears later. The rows that changes speak of must be put in the order
// of [Snapshot.Tables] after all deletions, with the changes up to the end of the snapshot taken together: only then
// do references hold. [Follow] does that.
func (s *Snapshot) Captured(ctx context.Context, after int64, limit int) ([]Captured, error) {
	return nil, unbuilt()
}

// Follow brings another database up to the snapshot: it reads the changes captured behind the position after, deletes
// there the rows that are gone and puts those that are there. It returns the position reached, and how many rows it
// deleted and put. The other database must hold a copy of an earlier snapshot that was taken after StartCapture. What
// it does may be done again.
func Follow(ctx context.Context, s *Snapshot, to *DB, after int64) (next int64, rows int, err error) {
	return 0, 0, unbuilt()
}
