package sqlstore

import (
	"context"
	"time"

	"claude-memory-backend/internal/ident"
)

// AddFailures implements account.Failures.
func (s *MasterStore) AddFailures(ctx context.Context, subjects [][]byte, at time.Time) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			for _, subject := range subjects {
				b.Exec(`INSERT INTO sign_in_failures (subject, at) VALUES (?, ?)`, subject, ident.Micros(at))
			}
		})
	})
}

// CountFailures implements account.Failures.
func (s *MasterStore) CountFailures(ctx context.Context, subjects [][]byte, since time.Time) ([]int, []time.Time, error) {
	counts, oldest := make([]int, len(subjects)), make([]time.Time, len(subjects))
	at := make([]int64, len(subjects))
	err := s.db.Read(ctx, func(b *Batch) {
		for i, subject := range subjects {
			b.One([]any{&counts[i], &at[i]},
				`SELECT count(*), COALESCE(min(at), 0) FROM sign_in_failures WHERE subject = ? AND at > ?`,
				subject, ident.Micros(since))
		}
	})
	if err != nil {
		return nil, nil, err
	}
	for i, n := range counts {
		if n > 0 {
			oldest[i] = ident.Time(at[i])
		}
	}
	return counts, oldest, nil
}

// ForgetFailures implements account.Failures.
func (s *MasterStore) ForgetFailures(ctx context.Context, subject []byte) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { b.Exec(`DELETE FROM sign_in_failures WHERE subject = ?`, subject) })
	})
}

// SweepFailures implements account.Failures.
func (s *MasterStore) SweepFailures(ctx context.Context, before time.Time) (int64, error) {
	return s.sweep(ctx, `DELETE FROM sign_in_failures WHERE n IN
		(SELECT n FROM sign_in_failures WHERE at <= ? ORDER BY at LIMIT ?)`, before)
}
