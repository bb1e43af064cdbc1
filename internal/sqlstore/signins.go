package sqlstore

import (
	"context"
	"time"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/ident"
)

// FindAttempt implements account.SignIns. The statements are the same for an account that is not there: what differs
// is a few rows.
func (s *MasterStore) FindAttempt(ctx context.Context, email string, subjects [][]byte, since time.Time) (account.Attempt, error) {
	const newest = 20 // sessions, whose addresses an account is known by
	try := account.Attempt{Counts: make([]int, len(subjects)), Oldest: make([]time.Time, len(subjects))}
	first := make([]int64, len(subjects))
	var r accountRow
	var found *Found
	err := s.db.Read(ctx, func(b *Batch) {
		found = b.One(r.dest(), `SELECT `+accountColumns+` FROM accounts a WHERE a.email_folded = ?`, folded(email))
		// A session that ended because its token was copied vouches for no address.
		b.Query(func(s Scanner) error {
			var address string
			err := s.Scan(&address)
			try.Addresses = append(try.Addresses, address)
			return err
		}, `SELECT s.address FROM accounts a JOIN sessions s ON s.account_id = a.id
			WHERE a.email_folded = ? AND s.revoked_why <> 'reused' ORDER BY s.id DESC LIMIT ?`, folded(email), newest)
		for i, subject := range subjects {
			b.One([]any{&try.Counts[i], &first[i]},
				`SELECT count(*), COALESCE(min(at), 0) FROM sign_in_failures WHERE subject = ? AND at > ?`,
				subject, ident.Micros(since))
		}
	})
	if err != nil {
		return account.Attempt{}, err
	}
	if found.Yes {
		r.done()
		try.Account, try.Hash = r.Account, r.hash
	}
	for i, n := range try.Counts {
		if n > 0 {
			try.Oldest[i] = ident.Time(first[i])
		}
	}
	return try, nil
}

// Refuse implements account.SignIns.
func (s *MasterStore) Refuse(ctx context.Context, r account.Refusal) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			for _, subject := range r.Failures {
				b.Exec(`INSERT INTO sign_in_failures (subject, at) VALUES (?, ?)`, subject, ident.Micros(r.At))
			}
			appendAudit(b, audit.Refusal(r.Actor, r.At, r.Action, r.Subject, r.Detail))
		})
	})
}

// SweepFailures implements account.SignIns.
func (s *MasterStore) SweepFailures(ctx context.Context, before time.Time) (int64, error) {
	return s.sweep(ctx, `DELETE FROM sign_in_failures WHERE n IN
		(SELECT n FROM sign_in_failures WHERE at <= ? ORDER BY at LIMIT ?)`, before)
}
