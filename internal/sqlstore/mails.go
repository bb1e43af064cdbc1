package sqlstore

import (
	"context"
	"time"

	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/mail"
)

// Mails that wait to be sent, in the master database.

var _ mail.Store = (*MasterStore)(nil)

// PutMail implements mail.Store.
func (s *MasterStore) PutMail(ctx context.Context, e mail.Entry) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { putMail(b, e) })
	})
}

// putMail queues the keeping of a mail, beside what it tells of.
func putMail(b *Batch, e mail.Entry) {
	at := ident.Micros(e.CreatedAt)
	b.Exec(`INSERT INTO mails (name, sealed, cause_id, attempts, due_at, created_at) SELECT ?1, ?2, ?3, 0, ?4, ?4
		WHERE ?3 = '' OR (SELECT count(*) FROM mails WHERE cause_id = ?3 AND cause_id <> '' AND created_at > ?5) < ?6
		ON CONFLICT (name) DO NOTHING`, e.Name, notNull(e.Sealed), e.Cause, at, ident.Micros(e.CreatedAt.Add(-24*time.Hour)), mail.MostPerDay)
}

// ClaimMails implements mail.Store.
func (s *MasterStore) ClaimMails(ctx context.Context, now, until time.Time, limit int) ([]mail.Entry, error) {
	// Asked first without a lock: most of the time there is nothing.
	var some bool
	if err := s.db.Read(ctx, func(b *Batch) {
		b.One([]any{&some}, `SELECT 1 FROM mails WHERE sealed IS NOT NULL AND due_at <= ? LIMIT 1`, ident.Micros(now))
	}); err != nil || !some {
		return nil, err
	}
	var list []mail.Entry
	err := s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			list = nil
			b.Query(func(s Scanner) error {
				var e mail.Entry
				var created int64
				err := s.Scan(&e.Name, &e.Sealed, &e.Cause, &e.Attempts, &created)
				e.CreatedAt = ident.Time(created)
				list = append(list, e)
				return err
			}, `UPDATE mails SET due_at = ?1, attempts = attempts + 1 WHERE sealed IS NOT NULL AND due_at <= ?2 AND name IN
				(SELECT name FROM mails WHERE sealed IS NOT NULL AND due_at <= ?2 ORDER BY due_at, name LIMIT ?3`+
				b.Dialect().Pick("", " FOR UPDATE SKIP LOCKED")+`) RETURNING name, sealed, cause_id, attempts, created_at`,
				ident.Micros(until), ident.Micros(now), max(1, limit))
		})
	})
	return list, err
}

// PutOffMail implements mail.Store.
func (s *MasterStore) PutOffMail(ctx context.Context, e mail.Entry, due time.Time) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			b.Exec(`UPDATE mails SET due_at = ? WHERE name = ? AND attempts = ? AND sealed IS NOT NULL`, ident.Micros(due), e.Name, e.Attempts)
		})
	})
}

// SettleMail implements mail.Store.
func (s *MasterStore) SettleMail(ctx context.Context, name string, forget time.Time) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			b.Exec(`UPDATE mails SET sealed = NULL, due_at = ? WHERE name = ?`, ident.Micros(forget), name)
		})
	})
}

// SweepMails implements mail.Store.
func (s *MasterStore) SweepMails(ctx context.Context, now time.Time) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			b.Exec(`DELETE FROM mails WHERE sealed IS NULL AND due_at <= ?`, ident.Micros(now))
		})
	})
}
