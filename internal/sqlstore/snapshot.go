package sqlstore

import (
	"context"

	"claude-memory-backend/internal/fault"
)

// Snapshot is one state of a database, held still for reading while others go on writing. It is for work on whole
// databases: it holds a connection of its own, on SQLite it keeps the log from being folded into the file, and on
// PostgreSQL it keeps old rows from being cleaned up. It stays with the engine that it was taken from, whatever
// [DB.Switch] does meanwhile, and must be closed before that engine is. Its methods may be called by one goroutine at a
// time. After an error of a statement it is over: every later call returns that error.
type Snapshot struct{}

// Snapshot takes a snapshot of what is committed now.
func (d *DB) Snapshot(ctx context.Context) (*Snapshot, error) { return nil, unbuilt() }

// Dialect is the engine under the snapshot.
func (s *Snapshot) Dialect() Dialect { return SQLite }

// Read runs what fill queues, in one round trip.
func (s *Snapshot) Read(ctx context.Context, fill func(b *Batch)) error { return unbuilt() }

// Close gives the connection back. It may be called twice.
func (s *Snapshot) Close() {}

func unbuilt() error { return fault.New(fault.Internal, "sqlstore", "", "not built yet") }
