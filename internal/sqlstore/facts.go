package sqlstore

import (
	"context"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Facts are what the installation knows about itself: few, small, each under a name. Secrets among them are hashed or
// sealed by whoever keeps them.

// FindFact returns a fact's value; fault.NotFound when there is none of that name.
func (s *MasterStore) FindFact(ctx context.Context, name string) ([]byte, error) {
	var value []byte
	var found *Found
	err := s.db.Read(ctx, func(b *Batch) { found = b.One([]any{&value}, `SELECT value FROM facts WHERE name = ?`, name) })
	if err == nil && !found.Yes {
		err = fault.Missing("sqlstore.FindFact")
	}
	return value, err
}

// PutFact stores a fact unless there is one of that name, and reports whether it did: of several that try at once,
// one does.
func (s *MasterStore) PutFact(ctx context.Context, name string, value []byte, at time.Time) (bool, error) {
	var put *Affected
	err := s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { put = putFact(b, name, value, at) })
	})
	if err != nil {
		return false, err
	}
	return put.N == 1, nil
}

// putFact queues the claim of a name. On PostgreSQL it waits for whoever else is about to take it, so within a
// transaction it orders those that ask for the same fact.
func putFact(b *Batch, name string, value []byte, at time.Time) *Affected {
	return b.Exec(`INSERT INTO facts (name, value, updated_at) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING`,
		name, notNull(value), ident.Micros(at))
}

// ReplaceFact gives a fact another value if it has the old one still, and reports whether it did.
func (s *MasterStore) ReplaceFact(ctx context.Context, name string, old, value []byte, at time.Time) (bool, error) {
	var done *Affected
	err := s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			done = b.Exec(`UPDATE facts SET value = ?, updated_at = ? WHERE name = ? AND value = ?`,
				notNull(value), ident.Micros(at), name, notNull(old))
		})
	})
	return err == nil && done.N == 1, err
}
