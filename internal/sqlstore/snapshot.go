package sqlstore

import (
	"context"
	"sync"
)

// Snapshot is one state of a database, held still for reading while others go on writing. It is for work on whole
// databases: it holds a connection of its own, on SQLite it keeps the log from being folded into the file, and on
// PostgreSQL it keeps old rows from being cleaned up. It stays with the engine that it was taken from, whatever
// [DB.Switch] does meanwhile, and must be closed before that engine is. After an error of a statement it is over: every
// later call returns that error.
type Snapshot struct {
	db   *DB
	on   *target
	view view

	mu     sync.Mutex // one batch at a time
	failed error

	tables []Table // as Tables has found them; under mu
}

// view is the connection of a snapshot, in a transaction that only reads.
type view interface {
	read(ctx context.Context, b *Batch) error
	end()
}

// Snapshot takes a snapshot of what is committed now. The caller must Close it.
func (d *DB) Snapshot(ctx context.Context) (*Snapshot, error) {
	if err := d.gate.enter(ctx); err != nil {
		return nil, err
	}
	defer d.gate.leave()
	on := d.on.Load()
	d.trips.Add(1)
	v, err := on.engine.view(ctx)
	if err != nil {
		return nil, at("sqlstore.Snapshot", err)
	}
	return &Snapshot{db: d, on: on, view: v}, nil
}

// Dialect is the engine under the snapshot.
func (s *Snapshot) Dialect() Dialect { return s.on.dialect }

// Read runs what fill queues, in one round trip.
func (s *Snapshot) Read(ctx context.Context, fill func(b *Batch)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return s.failed
	}
	b, err := queue(ctx, s.on.dialect, fill)
	if err != nil || len(b.list) == 0 {
		return err
	}
	s.db.trips.Add(1)
	if err := s.view.read(ctx, b); err != nil {
		s.failed = at("sqlstore.Snapshot", err)
	}
	return s.failed
}

// Close gives the connection back. It may be called twice.
func (s *Snapshot) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.view != nil {
		s.view.end()
		s.view, s.failed = nil, closed()
	}
}
