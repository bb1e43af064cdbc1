package sqlstore

import (
	"bytes"
	"context"
	"slices"
	"time"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// sessionColumns are those of a table that the statement calls s.
const sessionColumns = `s.id, s.account_id, s.current_hash, s.previous_hash, s.previous_until, s.successor, s.generation,
	s.device, s.address, s.created_at, s.last_used_at, s.idle_until, s.ends_at, s.revoked_at, s.revoked_why`

// sessionRow is a session while it is scanned.
type sessionRow struct {
	account.Family
	graceUntil, created, used, idle, ends int64
	revoked                               *int64
}

func (r *sessionRow) dest() []any {
	return []any{&r.ID, &r.Account, &r.CurrentHash, &r.PreviousHash, &r.graceUntil, &r.Successor, &r.Generation, &r.Device,
		&r.Address, &r.created, &r.used, &r.idle, &r.ends, &r.revoked, &r.RevokedWhy}
}

func (r *sessionRow) done() {
	if r.graceUntil != 0 {
		r.PreviousUntil = ident.Time(r.graceUntil)
	}
	r.CreatedAt, r.LastUsedAt, r.ExpiresAt, r.EndsAt = ident.Time(r.created), ident.Time(r.used), ident.Time(r.idle), ident.Time(r.ends)
	r.RevokedAt = timeOf(r.revoked)
}

// grace is when the previous token stops being honoured; 0 when there is none.
func grace(f account.Family) int64 {
	if f.PreviousUntil.IsZero() {
		return 0
	}
	return ident.Micros(f.PreviousUntil)
}

// insertSession queues a new session; its account is there.
func insertSession(b *Batch, f account.Family) {
	b.Exec(`INSERT INTO sessions (id, account_id, current_hash, previous_hash, previous_until, successor, generation, device,
		address, created_at, last_used_at, idle_until, ends_at, revoked_at, revoked_why)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		f.ID, f.Account, f.CurrentHash, f.PreviousHash, grace(f), f.Successor, f.Generation, f.Device, f.Address,
		ident.Micros(f.CreatedAt), ident.Micros(f.LastUsedAt), ident.Micros(f.ExpiresAt), ident.Micros(f.EndsAt),
		moment(f.RevokedAt), f.RevokedWhy)
}

// FindLive implements account.Sessions. It is what every request asks, so it reads no more than that needs.
func (s *MasterStore) FindLive(ctx context.Context, id ident.SessionID, now time.Time) (account.Live, error) {
	l := account.Live{Session: id}
	var used, idle, ends int64
	var found *Found
	err := s.db.Read(ctx, func(b *Batch) {
		found = b.One([]any{&l.Account, &l.Name, &l.Role, &l.State, &l.Tenant, &used, &idle, &ends},
			`SELECT a.id, a.name, a.role, a.state, a.tenant_id, s.last_used_at, s.idle_until, s.ends_at
			FROM sessions s JOIN accounts a ON a.id = s.account_id
			WHERE s.id = ?1 AND s.revoked_at IS NULL AND s.idle_until > ?2 AND s.ends_at > ?2`, id, ident.Micros(now))
	})
	if err == nil && !found.Yes {
		err = fault.Missing("sqlstore.FindLive")
	}
	if err != nil {
		return account.Live{}, err
	}
	l.LastUsedAt, l.ExpiresAt = ident.Time(used), ident.Time(min(idle, ends))
	return l, nil
}

// Rotate implements account.Sessions. Who comes second with the same token waits for the row, and then finds it among
// the replaced ones: on PostgreSQL the condition is judged again after the wait, and the second statement sees what was
// committed meanwhile.
func (s *MasterStore) Rotate(ctx context.Context, hash []byte,
	decide func(account.Family, account.Account, account.Use) (account.Family, event.Change, error)) (
	account.Family, account.Account, error) {
	var after account.Family
	var owner account.Account
	err := s.change(ctx, func(tx *Tx, head *event.Seq) error {
		var f, spent sessionRow
		var a, spender accountRow
		var found, reused *Found
		if err := tx.Run(func(b *Batch) {
			const read = `SELECT ` + sessionColumns + `, ` + accountColumns + ` FROM sessions s JOIN accounts a ON a.id = s.account_id `
			lock := tx.Dialect().Pick("", " FOR UPDATE OF s")
			found = b.One(append(f.dest(), a.dest()...), read+`WHERE s.current_hash = ?1 OR s.previous_hash = ?1`+lock, hash)
			reused = b.One(append(spent.dest(), spender.dest()...),
				read+`WHERE s.id = (SELECT session_id FROM spent_tokens WHERE hash = ?1)`+lock, hash)
		}); err != nil {
			return err
		}
		use := account.UseSpent
		switch {
		case !found.Yes && !reused.Yes:
			return fault.New(fault.Unauthenticated, "sqlstore.Rotate", "token_invalid", "the refresh token is not valid: sign in")
		case !found.Yes:
			f, a = spent, spender
		case bytes.Equal(f.CurrentHash, hash):
			use = account.UseCurrent
		case bytes.Equal(f.PreviousHash, hash):
			use = account.UsePrevious
		}
		f.done()
		a.done()
		next, ch, err := decide(f.Family, a.Account, use)
		if err != nil {
			return err
		}
		after, owner = next, a.Account
		rotated := !bytes.Equal(next.CurrentHash, f.CurrentHash)
		if !rotated && len(ch.Events) == 0 && (next.RevokedAt == nil) == (f.RevokedAt == nil) {
			return nil
		}
		return tx.Commit(func(b *Batch) {
			b.Exec(`UPDATE sessions SET current_hash = ?, previous_hash = ?, previous_until = ?, successor = ?, generation = ?,
				device = ?, address = ?, last_used_at = ?, idle_until = ?, revoked_at = ?, revoked_why = ? WHERE id = ?`,
				next.CurrentHash, next.PreviousHash, grace(next), next.Successor, next.Generation, next.Device, next.Address,
				ident.Micros(next.LastUsedAt), ident.Micros(next.ExpiresAt), moment(next.RevokedAt), next.RevokedWhy, f.ID)
			if rotated {
				b.Exec(`INSERT INTO spent_tokens (hash, session_id, spent_at) VALUES (?, ?, ?)`, f.CurrentHash, f.ID,
					ident.Micros(next.LastUsedAt))
			}
			appendChange(b, ch, head)
		})
	})
	if err != nil {
		return account.Family{}, account.Account{}, err
	}
	return after, owner, nil
}

// ListSessions implements account.Sessions.
func (s *MasterStore) ListSessions(ctx context.Context, id ident.AccountID, now time.Time, cursor string, limit int) (
	[]account.Session, string, error) {
	limit = max(1, limit)
	var c conditions
	c.and("s.account_id = ?", id)
	c.and("s.revoked_at IS NULL")
	c.and("s.idle_until > ?", ident.Micros(now))
	c.and("s.ends_at > ?", ident.Micros(now))
	if err := c.beforeCursor("sessions", "s.id", cursor); err != nil {
		return nil, "", err
	}
	var list []account.Session
	err := s.db.Read(ctx, func(b *Batch) {
		b.Query(func(s Scanner) error {
			var r sessionRow
			err := s.Scan(r.dest()...)
			r.done()
			list = append(list, r.Session)
			return err
		}, `SELECT `+sessionColumns+` FROM sessions s`+c.where()+` ORDER BY s.id DESC LIMIT ?`, append(c.args, limit+1)...)
	})
	if err != nil || len(list) <= limit {
		return list, "", err
	}
	return list[:limit], formatCursor(idCursor{Kind: "sessions", ID: string(list[limit-1].ID)}), nil
}

// EndSession implements account.Sessions.
func (s *MasterStore) EndSession(ctx context.Context, a ident.AccountID, id ident.SessionID, why string,
	c event.Change) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		var ended *Affected
		if err := tx.Run(func(b *Batch) {
			ended = b.Exec(`UPDATE sessions SET revoked_at = ?1, revoked_why = ?2, successor = NULL
				WHERE id = ?3 AND account_id = ?4 AND revoked_at IS NULL AND idle_until > ?1 AND ends_at > ?1`,
				ident.Micros(c.At), why, id, a)
		}); err != nil {
			return err
		}
		if ended.N == 0 {
			return fault.Missing("sqlstore.EndSession")
		}
		return tx.Commit(func(b *Batch) { appendChange(b, c, head) })
	})
}

// EndSessions implements account.Sessions.
func (s *MasterStore) EndSessions(ctx context.Context, a ident.AccountID, e account.EndSessions, c event.Change) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		return tx.Commit(func(b *Batch) {
			endSessions(b, a, e)
			appendChange(b, c, head)
		})
	})
}

// endSessions queues the end of an account's sessions, but for the one that is kept.
func endSessions(b *Batch, a ident.AccountID, e account.EndSessions) {
	b.Exec(`UPDATE sessions SET revoked_at = ?, revoked_why = ?, successor = NULL
		WHERE account_id = ? AND id <> ? AND revoked_at IS NULL`, ident.Micros(e.At), e.Why, a, e.Keep)
}

// TouchSessions implements account.Sessions. It is no change: nobody is told.
func (s *MasterStore) TouchSessions(ctx context.Context, list []account.Touch) error {
	for chunk := range slices.Chunk(list, sweepAtOnce) {
		err := s.db.Write(ctx, func(tx *Tx) error {
			return tx.Commit(func(b *Batch) {
				for _, t := range chunk {
					b.Exec(`UPDATE sessions SET last_used_at = ?1, address = ?2 WHERE id = ?3 AND last_used_at < ?1`,
						ident.Micros(t.At), t.Address, t.Session)
				}
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// sweepAtOnce bounds how many rows one transaction of housekeeping touches: other writers wait meanwhile.
const sweepAtOnce = 1000

// SweepSessions implements account.Sessions. A revoked session stays until it would have ended by itself, so that its
// tokens are still known for what they are. The spent tokens go with it.
func (s *MasterStore) SweepSessions(ctx context.Context, now time.Time, keep time.Duration) (int64, error) {
	if _, err := s.sweep(ctx, `UPDATE sessions SET successor = NULL WHERE id IN
		(SELECT id FROM sessions WHERE successor IS NOT NULL AND previous_until <= ? LIMIT ?)`, now); err != nil {
		return 0, err
	}
	return s.sweep(ctx, `DELETE FROM sessions WHERE id IN
		(SELECT id FROM sessions WHERE idle_until <= ? ORDER BY idle_until LIMIT ?)`, now.Add(-keep))
}

// sweep runs a statement that clears away what is no newer than its first argument, as many rows at once as its second,
// until nothing is left.
func (s *MasterStore) sweep(ctx context.Context, sql string, before time.Time) (int64, error) {
	var all int64
	for {
		var gone *Affected
		err := s.db.Write(ctx, func(tx *Tx) error {
			return tx.Commit(func(b *Batch) { gone = b.Exec(sql, ident.Micros(before), sweepAtOnce) })
		})
		if err != nil {
			return all, err
		}
		if all += gone.N; gone.N < sweepAtOnce {
			return all, nil
		}
	}
}
