package sqlstore

import (
	"context"
	"slices"
	"strings"
	"time"

	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/tenant"
)

// What the master database decides about a tenant's databases and members belongs into that tenant's own log too, and there is no
// transaction across two databases. So the master commits the event together with a row that says that it has to be
// told; whoever tells it takes the row away afterwards. Told twice, an event is there once: it keeps its id.

// News is an event of the master's log that a tenant has not been told.
type News struct {
	Tenant ident.TenantID
	Event  event.Event
}

// told are the kinds of events of the master's log that tenants' logs get.
var told = [...]string{"database.", "member.", event.Restored}

// toTell queues the rows for what ch says about databases and members of the tenant. It belongs beside appendChange.
func toTell(b *Batch, id ident.TenantID, ch event.Change) {
	for _, e := range ch.Events {
		if slices.ContainsFunc(told[:], func(kind string) bool { return strings.HasPrefix(e.Type, kind) }) {
			b.Exec(`INSERT INTO news (event_id, tenant_id, due_at) VALUES (?, ?, ?)`, e.ID, id, ident.Micros(ch.At))
		}
	}
}

// News returns up to limit events that are to be told by now, in the order of the log. Tenants that may not be changed at
// the moment wait.
func (s *MasterStore) News(ctx context.Context, now time.Time, limit int) ([]News, error) {
	var list []News
	err := s.db.Read(ctx, func(b *Batch) {
		b.Query(func(s Scanner) error {
			var n News
			var at int64
			e := &n.Event
			err := s.Scan(&n.Tenant, &e.Seq, &e.ID, &e.Type, &e.Subject, &e.Actor.ID, &e.Actor.Name, &at, &e.Data)
			e.CreatedAt = ident.Time(at)
			list = append(list, n)
			return err
		}, `SELECT n.tenant_id, e.seq, e.id, e.type, e.subject, e.actor_id, e.actor_name, e.created_at, e.data
			FROM news n JOIN events e ON e.id = n.event_id JOIN tenants t ON t.id = n.tenant_id
			WHERE n.due_at <= ? AND t.state = ? ORDER BY e.seq LIMIT ?`, ident.Micros(now), tenant.Active, max(1, limit))
	})
	return list, err
}

// TellRestored notes that a tenant's data was put back to an earlier state, by losing what was written since, and queues that
// for the tenant's own log, due at a moment.
func (s *MasterStore) TellRestored(ctx context.Context, id ident.TenantID, ch event.Change, due time.Time) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		return tx.Commit(func(b *Batch) {
			later := ch
			later.At = due
			toTell(b, id, later)
			appendChange(b, ch, head)
		})
	})
}

// Told takes away what was told. What is gone already is no error.
func (s *MasterStore) Told(ctx context.Context, ids []ident.EventID) error {
	if len(ids) == 0 {
		return nil
	}
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			for _, id := range ids {
				b.Exec(`DELETE FROM news WHERE event_id = ?`, id)
			}
		})
	})
}

// TellAgain queues events that a tenant's log has lost, due at a moment. What does not stand in the master's log is left
// out.
func (s *MasterStore) TellAgain(ctx context.Context, id ident.TenantID, events []ident.EventID, due time.Time) error {
	if len(events) == 0 {
		return nil
	}
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			for _, e := range events {
				b.Exec(`INSERT INTO news (event_id, tenant_id, due_at) SELECT id, ?, ? FROM events WHERE id = ?
					ON CONFLICT (event_id) DO UPDATE SET due_at = excluded.due_at`, id, ident.Micros(due), e)
			}
		})
	})
}

// TellLater puts off whatever a tenant is to be told.
func (s *MasterStore) TellLater(ctx context.Context, id ident.TenantID, due time.Time) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { b.Exec(`UPDATE news SET due_at = ? WHERE tenant_id = ?`, ident.Micros(due), id) })
	})
}

// leap is the number after which a log goes on that was put back at a time. A log would have to grow by a million events a
// second to have given out a greater one before that, and JavaScript counts that far until the year 2242 (decision 0058).
func leap(at time.Time) int64 { return at.Unix() << 20 }

// Tell appends an event of the master's log to the tenant's, under its own id and with the next number here; one that is
// there already is no error. What the owner did stands in the master's trail, which the owner reads together with this
// one; what anybody else did is noted in this one.
func (s *TenantStore) Tell(ctx context.Context, e event.Event, owner ident.AccountID) error {
	err := s.change(ctx, func(tx *Tx, head *event.Seq) error {
		return tx.Commit(func(b *Batch) {
			ch := event.Change{Actor: ident.Actor{Account: e.Actor.ID, Name: e.Actor.Name}, At: e.CreatedAt, Events: []event.Event{e}}
			if e.Type == event.Restored {
				b.Exec(`UPDATE log_head SET seq = ?1 WHERE one = 1 AND seq < ?1`, leap(e.CreatedAt))
			}
			appendEvents(b, ch, head)
			if entry, ok := audit.Derive(ch); ok && e.Actor.ID != owner {
				appendAudit(b, entry)
			}
			appendOutbox(b, ch)
		})
	})
	if violates(err, "events_id_key") {
		return nil
	}
	return err
}
