package sqlstore

import "context"

// Fence makes a database refuse every write from anybody, in every process and also by hand: such a Write fails at once
// with fault.Unavailable, code "tenant_moved". It is one transaction, waits for the writers in flight, and leaves
// everything readable with plain SQL. Migrate, StartCapture, Put, Delete and Empty are refused on a fenced database;
// StopCapture and Unfence work. One that is fenced stays so.
func Fence(ctx context.Context, db *DB) error { return unbuilt() }

// Unfence takes the fence away, if there is one.
func Unfence(ctx context.Context, db *DB) error { return unbuilt() }

// Fenced reports whether the database is fenced.
func Fenced(ctx context.Context, db *DB) (bool, error) { return false, unbuilt() }
