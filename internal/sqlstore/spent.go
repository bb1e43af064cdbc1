package sqlstore

import (
	"context"
	"encoding/hex"
	"time"

	"claude-memory-backend/internal/ident"
)

// Spend implements account.Store. What is spent lies among the idempotency records, under a scope that no request has,
// and is swept with them.
func (s *MasterStore) Spend(ctx context.Context, what string, key []byte, until time.Time) (bool, error) {
	var put *Affected
	err := s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			put = b.Exec(`INSERT INTO idempotency (scope, key, fingerprint, result, expires_at) VALUES (?, ?, ?, ?, ?)
				ON CONFLICT (scope, key) DO NOTHING`, "spent "+what, hex.EncodeToString(key), []byte{}, []byte{}, ident.Micros(until))
		})
	})
	return err == nil && put.N == 1, err
}
