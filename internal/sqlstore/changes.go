package sqlstore

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// What every change leaves behind, in either line of databases: its idempotency record, its events, its one entry in
// the trail.

// change is DB.Write for whatever appends a Change. fn hands head on to appendChange; once the transaction is
// committed, and only then, onCommit (which may be nil) hears where the log ends.
func (d *DB) change(ctx context.Context, onCommit func(event.Seq), fn func(tx *Tx, head *event.Seq) error) error {
	var head event.Seq
	err := d.Write(ctx, func(tx *Tx) error {
		head = 0
		return fn(tx, &head)
	})
	if err != nil {
		return repeated(err)
	}
	if head > 0 && onCommit != nil {
		onCommit(head)
	}
	return nil
}

// repeated gives the violation of the idempotency key its own code.
func repeated(err error) error {
	if violates(err, "idempotency_pkey") {
		return fault.New(fault.Conflict, "sqlstore.appendChange", event.CodeRepeated,
			"this was done already").With(err)
	}
	return err
}

// appendChange queues everything that ch commits beside the state: it is the one way in which something changes. It
// belongs at the end of the batch that commits, because the log's head is the last lock a transaction takes: whoever
// holds it waits for nobody else, and events become visible in the order of their numbers.
// head receives the log's new end; it stays 0 when there are no events.
func appendChange(b *Batch, ch event.Change, head *event.Seq) {
	if o := ch.Once; o != nil {
		b.Exec(`DELETE FROM idempotency WHERE scope = ? AND key = ? AND expires_at <= ?`,
			o.Scope, o.Key, ident.Micros(ch.At))
		b.Exec(`INSERT INTO idempotency (scope, key, fingerprint, result, expires_at) VALUES (?, ?, ?, ?, ?)`,
			o.Scope, o.Key, notNull(o.Fingerprint), notNull(o.Result), ident.Micros(o.ExpiresAt))
	}
	appendEvents(b, ch, head)
	if entry, ok := audit.Derive(ch); ok {
		appendAudit(b, entry)
	}
}

// appendChange is the same, for what is a guest's change: the owner reads the trail, and where a guest is and by which
// session is nothing for the owner.
func (s *TenantStore) appendChange(b *Batch, ch event.Change, head *event.Seq) {
	if s.only != "" {
		ch.Actor.Address, ch.Actor.Session = "", ""
	}
	appendChange(b, ch, head)
	appendOutbox(b, ch)
}

// appendEvents queues the events of a change alone; for appendChange, and for what another database's trail has.
func appendEvents(b *Batch, ch event.Change, head *event.Seq) {
	n := len(ch.Events)
	if n == 0 {
		return
	}
	b.One([]any{head}, `UPDATE log_head SET seq = seq + ? WHERE one = 1 RETURNING seq`, n)
	for i, e := range ch.Events {
		b.Exec(`INSERT INTO events (seq, id, type, subject, actor_id, actor_name, created_at, data)
			SELECT seq - ?, ?, ?, ?, ?, ?, ?, ? FROM log_head WHERE one = 1`,
			n-1-i, e.ID, e.Type, e.Subject, e.Actor.ID, e.Actor.Name, ident.Micros(e.CreatedAt), object(e.Data))
	}
}

// appendAudit queues an entry of the trail. Only appendChange, Tell and what is no change call it.
func appendAudit(b *Batch, e audit.Entry) {
	b.Exec(`INSERT INTO audit (id, at, action, subject, outcome, actor_id, actor_name, session_id, address, request_id,
		detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		e.ID, ident.Micros(e.At), e.Action, e.Subject, e.Outcome, e.ActorID, e.ActorName, e.Session, e.Address,
		e.RequestID, string(e.Detail))
}

// findOnce reads a live idempotency record; fault.NotFound when there is none.
func findOnce(ctx context.Context, d *DB, scope, key string, now time.Time) (event.Once, error) {
	var was func() *event.Once
	if err := d.Read(ctx, func(b *Batch) { was = lookForOnce(b, scope, key, now) }); err != nil {
		return event.Once{}, err
	}
	if o := was(); o != nil {
		return *o, nil
	}
	return event.Once{}, fault.Missing("sqlstore.FindOnce")
}

// lookForOnce queues the question for a live idempotency record. When the batch has run, was answers it: nil when there is none.
func lookForOnce(b *Batch, scope, key string, now time.Time) (was func() *event.Once) {
	o := event.Once{Scope: scope, Key: key}
	var expires int64
	found := b.One([]any{&o.Fingerprint, &o.Result, &expires},
		`SELECT fingerprint, result, expires_at FROM idempotency WHERE scope = ? AND key = ? AND expires_at > ?`,
		scope, key, ident.Micros(now))
	return func() *event.Once {
		if !found.Yes {
			return nil
		}
		o.ExpiresAt = ident.Time(expires)
		return &o
	}
}

// deleteExpiredOnces forgets idempotency records whose time is over and returns how many there were. It is no change.
func deleteExpiredOnces(ctx context.Context, d *DB, now time.Time) (int64, error) {
	var gone *Affected
	err := d.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			gone = b.Exec(`DELETE FROM idempotency WHERE expires_at <= ?`, ident.Micros(now))
		})
	})
	if err != nil {
		return 0, err
	}
	return gone.N, nil
}

const eventColumns = `seq, id, type, subject, actor_id, actor_name, created_at, data`

// takeEvents appends scanned events to list.
func takeEvents(list *[]event.Event) func(Scanner) error {
	*list = nil
	return func(s Scanner) error {
		var e event.Event
		var at int64
		if err := s.Scan(&e.Seq, &e.ID, &e.Type, &e.Subject, &e.Actor.ID, &e.Actor.Name, &at, &e.Data); err != nil {
			return err
		}
		e.CreatedAt = ident.Time(at)
		*list = append(*list, e)
		return nil
	}
}

// listEvents reads up to limit events after the position, oldest first.
func listEvents(ctx context.Context, d *DB, after event.Seq, limit int) ([]event.Event, error) {
	var list []event.Event
	err := d.Read(ctx, func(b *Batch) {
		b.Query(takeEvents(&list), `SELECT `+eventColumns+` FROM events WHERE seq > ? ORDER BY seq LIMIT ?`, after, limit)
	})
	return list, err
}

// logHead is the position of the newest event, 0 when there is none.
func logHead(ctx context.Context, d *DB) (event.Seq, error) {
	var head event.Seq
	err := d.Read(ctx, func(b *Batch) { b.One([]any{&head}, `SELECT seq FROM log_head WHERE one = 1`) })
	return head, err
}

// auditCursor is the place in a listing of the trail.
type auditCursor struct {
	Kind string `json:"k"` // "audit"
	N    int64  `json:"n"`
}

const auditColumns = `n, id, at, action, subject, outcome, actor_id, actor_name, session_id, address, request_id, detail`

// listAudit reads up to limit entries that pass the filter, newest first, after the cursor.
func listAudit(ctx context.Context, d *DB, f audit.Filter, cursor string, limit int) ([]audit.Entry, string, error) {
	limit = max(1, limit)
	from := auditCursor{N: 1<<63 - 1}
	if cursor != "" {
		if err := parseCursor(cursor, &from); err != nil {
			return nil, "", err
		}
		if from.Kind != "audit" {
			return nil, "", badCursor()
		}
	}
	where, args := auditWhere(f, from.N)
	var sql string
	if f.Account != "" {
		// By the account or about it: two walks over two indexes, since one condition with OR would use neither.
		half := `SELECT * FROM (SELECT ` + auditColumns + ` FROM audit WHERE ` + where
		order := ` ORDER BY n DESC LIMIT ?) AS part`
		sql = half + ` AND actor_id = ?` + order + ` UNION ALL ` + half + ` AND subject = ? AND actor_id <> ?` + order
		one := append(append([]any{}, args...), f.Account, limit+1)
		args = append(append(one, args...), f.Account, f.Account, limit+1)
	} else {
		sql = `SELECT ` + auditColumns + ` FROM audit WHERE ` + where
	}
	var list []audit.Entry
	var places []int64
	err := d.Read(ctx, func(b *Batch) {
		b.Query(func(s Scanner) error {
			e, n, err := scanAudit(s)
			list, places = append(list, e), append(places, n)
			return err
		}, sql+` ORDER BY n DESC LIMIT ?`, append(args, limit+1)...)
	})
	if err != nil || len(list) <= limit {
		return list, "", err
	}
	return list[:limit], formatCursor(auditCursor{Kind: "audit", N: places[limit-1]}), nil
}

// auditWhere is the filter without the account, as a condition with its arguments.
func auditWhere(f audit.Filter, before int64) (string, []any) {
	where, args := []string{"n < ?"}, []any{before}
	and := func(condition string, values ...any) {
		where, args = append(where, condition), append(args, values...)
	}
	if prefix, ok := strings.CutSuffix(f.Action, ".*"); ok {
		and("action >= ? AND action < ?", prefix+".", prefix+"/") // the slash follows the dot
	} else if f.Action != "" {
		and("action = ?", f.Action)
	}
	if f.Subject != "" {
		and("subject = ?", f.Subject)
	}
	if f.Outcome != "" {
		and("outcome = ?", f.Outcome)
	}
	if !f.From.IsZero() {
		and("at >= ?", ident.Micros(f.From))
	}
	if !f.To.IsZero() {
		and("at < ?", ident.Micros(f.To))
	}
	return strings.Join(where, " AND "), args
}

func scanAudit(s Scanner) (audit.Entry, int64, error) {
	var e audit.Entry
	var n, at int64
	var detail string
	err := s.Scan(&n, &e.ID, &at, &e.Action, &e.Subject, &e.Outcome, &e.ActorID, &e.ActorName, &e.Session, &e.Address,
		&e.RequestID, &detail)
	e.At = ident.Time(at)
	e.Place = formatCursor(auditCursor{Kind: "audit", N: n})
	if detail != "" {
		e.Detail = json.RawMessage(detail)
	}
	return e, n, err
}

// notNull is b, but never NULL.
func notNull(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// object is the text of a JSON object, the empty one for nothing.
func object(raw json.RawMessage) string {
	if len(raw) == 0 {
		return "{}"
	}
	return string(raw)
}
