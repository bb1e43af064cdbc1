package sqlstore

import (
	"context"
	"slices"
	"strings"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/webhook"
)

// The outbox: a delivery is a row that the transaction of its event adds, and that whoever sends it claims (decision 0061).

// deliveryID is the identifier of the delivery of an event v for an endpoint w: an event makes one for each, and no more.
const deliveryID = `'dlv_' || substr(v.id, 5, 24) || w.suffix`

// outbox makes a delivery of each event v that the condition lets through, for each endpoint that wants it. Further
// conditions may follow.
func outbox(d Dialect, which string) string {
	conversation := d.Pick(`json_extract(v.data, '$.conversation_id')`, `CAST(v.data AS jsonb) ->> 'conversation_id'`)
	return `INSERT INTO deliveries (id, webhook_id, seq, event_id, event_type, conversation_id, state, attempts, tries, due_at, claim,
		created_at) SELECT ` + deliveryID + `, w.id, v.seq, v.id, v.type,
		coalesce(` + conversation + `, CASE WHEN substr(v.subject, 1, 5) = 'conv_' THEN v.subject END, ''),
		'pending', 0, 0, v.created_at, '', v.created_at
		FROM webhooks w JOIN events v ON ` + which + matched(d) + ` WHERE w.state = 'active'`
}

// appendOutbox queues the deliveries of a change's events, which the batch has added before. Whether there are endpoints only
// the database knows; SQLite is asked first, since preparing this statement takes longer than asking (decision 0088).
func appendOutbox(b *Batch, ch event.Change) {
	n := len(ch.Events)
	if n == 0 {
		return
	}
	var some bool
	if b.Dialect() == SQLite {
		b.One([]any{&some}, `SELECT EXISTS (SELECT 1 FROM webhooks)`)
	}
	const those = `v.seq > (SELECT seq FROM log_head WHERE one = 1) - ?`
	b.queued = b.Exec(outbox(b.Dialect(), those)+` ORDER BY v.seq, w.n`, n)
	b.When(func() bool { return some })
}

// Outbox tells of deliveries: promise is called before a transaction that may add some, and queued after one that did, by
// whoever commits. Neither may wait long. It returns s.
func (s *TenantStore) Outbox(promise func(context.Context), queued func()) *TenantStore {
	s.promise, s.queued = promise, queued
	return s
}

// unblocked is the condition that a pending delivery d of an endpoint w waits for no other one.
const unblocked = `(w.ordered = 0 OR d.conversation_id = '' OR NOT EXISTS (SELECT 1 FROM deliveries o WHERE o.webhook_id = d.webhook_id
	AND o.conversation_id = d.conversation_id AND o.state = 'pending' AND o.seq < d.seq))`

// window is how many deliveries that are due a claim looks at: of those that wait for others there may be very many.
const window = 200

// inWindow are the first deliveries ?4 of an endpoint ?1 that are due at ?2. ?3 is for whoever uses it.
const inWindow = `(SELECT n, conversation_id, seq, webhook_id, due_at, attempts, tries FROM deliveries WHERE webhook_id = ?1 AND state = 'pending' AND due_at <= ?2
	ORDER BY due_at, n LIMIT ?4) d JOIN webhooks w ON w.id = d.webhook_id`

// cutTest is the condition that a delivery d, which is pending and whose time has come, is a test whose server died while it was
// sent: nobody claims a test before it was sent again, and then it begins with no tries.
const cutTest = `d.conversation_id = '' AND d.seq = 0 AND d.attempts = 1 AND d.tries > 0`

// cutTests are those of an endpoint ?1 at ?2.
const cutTests = ` FROM deliveries d WHERE d.webhook_id = ?1 AND d.state = 'pending' AND ` + cutTest + ` AND d.due_at <= ?2`

// claimable are up to ?3 of them that wait for no other one.
const claimable = `SELECT d.n FROM ` + inWindow + ` WHERE ` + unblocked + ` AND NOT (` + cutTest + `) ORDER BY d.due_at, d.n LIMIT ?3`

// blocked are those that do wait.
const blocked = `SELECT d.n FROM ` + inWindow + ` WHERE NOT ` + unblocked

// behind is when what the delivery of an endpoint's conversation waits for is due, the first pending one, or ?2 if that is later; ?3 bounds it.
const behind = `(SELECT CASE WHEN o.due_at < ?2 THEN ?2 WHEN o.due_at > ?3 THEN ?3 ELSE o.due_at END FROM deliveries o
	WHERE o.webhook_id = deliveries.webhook_id AND o.conversation_id = deliveries.conversation_id AND o.state = 'pending' ORDER BY o.seq LIMIT 1)`

// nextInLine is what waits first in the conversation of a delivery ?1 that has come to its end, if it was never tried.
const nextInLine = `SELECT o.n FROM deliveries o WHERE o.n = (SELECT p.n FROM deliveries d JOIN webhooks w ON w.id = d.webhook_id
	JOIN deliveries p ON p.webhook_id = d.webhook_id AND p.conversation_id = d.conversation_id AND p.state = 'pending'
	WHERE d.id = ?1 AND d.conversation_id <> '' AND w.ordered = 1 ORDER BY p.seq LIMIT 1) AND o.tries = 0 AND o.claim = ''`

// dueDeliveries are endpoints that somebody looks after, each with when its first delivery is due. That one may wait for
// another: whoever claims puts it behind that, so nobody need look through all of them here.
const dueDeliveries = `SELECT ` + endpointColumns + `, CASE WHEN w.state = 'active' THEN (SELECT d.due_at FROM deliveries d
	WHERE d.webhook_id = w.id AND d.state = 'pending' ORDER BY d.due_at, d.n LIMIT 1) WHEN w.state <> 'deleted' THEN (SELECT min(d.due_at)` + testsOf + `) END
	FROM webhooks w WHERE w.state IN ('active', 'deleted') OR w.notice_due IS NOT NULL OR EXISTS (SELECT 1` + testsOf + `)`

// testsOf are the tests of an endpoint w that are being sent, or were cut.
const testsOf = ` FROM deliveries d WHERE d.webhook_id = w.id AND d.state = 'pending' AND ` + cutTest

// Due implements webhook.Queue.
func (s *TenantStore) Due(ctx context.Context) ([]webhook.Due, error) {
	var list []webhook.Due
	err := s.db.Read(ctx, func(b *Batch) {
		list = nil
		b.Query(func(s Scanner) error {
			var r endpointRow
			var due *int64
			if err := s.Scan(append(r.dest(), &due)...); err != nil {
				return err
			}
			e, err := r.done()
			list = append(list, webhook.Due{Endpoint: e, At: timeOf(due)})
			return err
		}, dueDeliveries)
	})
	return list, err
}

// Take implements webhook.Queue.
func (s *TenantStore) Take(ctx context.Context, steps []webhook.Step) ([]webhook.Taken, error) {
	// In one order, so that two who take the same ones never wait for each other.
	order := make([]int, len(steps))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return strings.Compare(string(steps[a].Endpoint), string(steps[b].Endpoint)) })
	var out []webhook.Taken
	var moved []*Affected
	err := s.change(ctx, func(tx *Tx, head *event.Seq) error {
		out, moved = make([]webhook.Taken, len(steps)), make([]*Affected, len(steps))
		found := make([][]webhook.Endpoint, len(steps))
		if err := tx.Run(func(b *Batch) {
			for _, i := range order {
				selectEndpoint(b, &found[i], steps[i].Endpoint, tx.Dialect().ForUpdate())
			}
		}); err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) {
			var told []event.Change
			for i, step := range steps {
				if len(found[i]) == 0 {
					out[i].Err = fault.Missing("sqlstore.Take")
					continue
				}
				after, claim, ch := step.Decide(found[i][0])
				moved[i] = take(b, step, found[i][0], after, claim, &out[i].Claimed)
				told = append(told, ch)
			}
			for _, ch := range told {
				s.appendChange(b, ch, head)
			}
		})
	})
	if err != nil {
		return nil, err
	}
	for i, m := range moved {
		out[i].More = m != nil && m.N > 0
	}
	return out, nil
}

// waitsAtMost is how long a delivery stays behind another one without being looked at again, in microseconds.
const waitsAtMost = int64(time.Hour / time.Microsecond)

// take queues one step; moved says, afterwards, how many were put behind others.
func take(b *Batch, step webhook.Step, before, after webhook.Endpoint, claim int, list *[]webhook.Claimed) (moved *Affected) {
	id := step.Endpoint
	for _, r := range step.Results {
		b.Exec(`INSERT INTO attempts (delivery_id, number, started_at, latency_ms, status, error, answer)
			SELECT id, ?, ?, ?, ?, ?, ? FROM deliveries WHERE id = ? AND claim = ?`,
			r.Attempt.Number, ident.Micros(r.Attempt.StartedAt), r.Attempt.Latency.Milliseconds(), r.Attempt.Status, r.Attempt.Error,
			r.Attempt.Answer, r.Delivery, r.Claim)
		if old := r.Attempt.Number - webhook.KeptAttempts; old > 0 {
			b.Exec(`DELETE FROM attempts WHERE delivery_id = ? AND number <= ?`, r.Delivery, old)
		}
		tried, finished := 0, (*int64)(nil)
		if r.Failed {
			tried = 1
		}
		if r.State != webhook.Pending {
			at := ident.Micros(step.Now)
			finished = &at
		}
		b.Exec(`UPDATE deliveries SET state = ?, due_at = ?, tries = tries + ?, claim = '', finished_at = ?
			WHERE id = ? AND claim = ?`, r.State, ident.Micros(r.Due), tried, finished, r.Delivery, r.Claim)
		if finished != nil && before.Ordered {
			b.Exec(`UPDATE deliveries SET due_at = created_at WHERE n IN (`+nextInLine+`)`, r.Delivery)
		}
	}
	if !sameHealth(before, after) {
		b.Exec(`UPDATE webhooks SET state = ?, reason = ?, failing_since = ?, slowed = ?, hold_until = ?, notice_due = ?,
			version = ?, updated_at = ? WHERE id = ?`, after.State, after.Reason, moment(after.FailingSince), after.Slowed,
			moment(after.HoldUntil), moment(after.NoticeDue), after.Version, ident.Micros(after.UpdatedAt), id)
	}
	now, lease := ident.Micros(step.Now), ident.Micros(step.Lease)
	if len(step.Results) == 0 { // a lane begins, or has nothing else to do
		b.Exec(`INSERT INTO attempts (delivery_id, number, started_at, latency_ms, status, error, answer)
			SELECT d.id, 1, d.created_at, 0, 0, ?3, ''`+cutTests+` ON CONFLICT (delivery_id, number) DO NOTHING`, id, now, webhook.Interrupted)
		b.Exec(`UPDATE deliveries SET state = 'failed', claim = '', finished_at = ?2 WHERE n IN (SELECT d.n`+cutTests+`)`, id, now)
	}
	if claim <= 0 {
		return nil
	}
	look := max(window, claim)
	b.Exec(`UPDATE deliveries SET claim = ?5, due_at = ?6, attempts = attempts + 1 WHERE n IN (`+claimable+`)`, id, now, claim, look,
		step.Claim, lease)
	if before.Ordered {
		// What waits goes behind what it waits for, so that it is in nobody's way until then (decision 0070).
		moved = b.Exec(`UPDATE deliveries SET due_at = `+behind+` + 1 WHERE n IN (`+blocked+`)`, id, now, now+waitsAtMost, look)
	}
	*list = nil
	b.Query(takeClaimed(list), `SELECT `+deliveryColumns+`, d.body, v.id, v.seq, v.type, v.subject, v.actor_id, v.actor_name, v.created_at, v.data
		FROM deliveries d LEFT JOIN events v ON v.seq = d.seq WHERE d.webhook_id = ? AND d.state = 'pending' AND d.due_at = ?
		AND d.claim = ? ORDER BY d.n`, id, lease, step.Claim)
	return moved
}

func takeClaimed(list *[]webhook.Claimed) func(Scanner) error {
	return func(s Scanner) error {
		var r deliveryRow
		var c webhook.Claimed
		var at int64
		v := &c.Happened
		if err := s.Scan(append(r.dest(), &c.Body, &v.ID, &v.Seq, &v.Type, &v.Subject, &v.Actor.ID, &v.Actor.Name, &at, &v.Data)...); err != nil {
			return err
		}
		c.Delivery, v.CreatedAt = r.done(), ident.Time(at)
		*list = append(*list, c)
		return nil
	}
}

func sameHealth(a, b webhook.Endpoint) bool {
	at := func(a, b *time.Time) bool { return a == b || a != nil && b != nil && a.Equal(*b) }
	return a.State == b.State && a.Reason == b.Reason && a.Slowed == b.Slowed && a.Version == b.Version && at(a.FailingSince, b.FailingSince) &&
		at(a.HoldUntil, b.HoldUntil) && at(a.NoticeDue, b.NoticeDue)
}

// Backlog implements webhook.Queue.
func (s *TenantStore) Backlog(ctx context.Context) (n int64, since *time.Time, err error) {
	var at *int64
	err = s.db.Read(ctx, func(b *Batch) {
		b.One([]any{&n, &at}, `SELECT count(*), min(d.created_at) FROM webhooks w
			JOIN deliveries d ON d.webhook_id = w.id AND d.state = 'pending' WHERE w.state = 'active'`)
	})
	return n, timeOf(at), err
}

// Disown implements webhook.Queue.
func (s *TenantStore) Disown(ctx context.Context, node string, now time.Time) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			b.Exec(`UPDATE deliveries SET claim = '', due_at = ? WHERE state = 'pending' AND claim <> '' AND `+
				b.Dialect().Pick("instr", "strpos")+`(claim, ?) <> 1`, ident.Micros(now), node+".")
		})
	})
}

// Noticed implements webhook.Queue.
func (s *TenantStore) Noticed(ctx context.Context, id ident.WebhookID) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { b.Exec(`UPDATE webhooks SET notice_due = NULL WHERE id = ?`, id) })
	})
}

// Purge implements webhook.Queue.
func (s *TenantStore) Purge(ctx context.Context, limit int) (n int64, more bool, err error) {
	limit = max(1, limit)
	err = s.db.Write(ctx, func(tx *Tx) error {
		n, more = 0, false
		var id ident.WebhookID
		var there bool
		if err := tx.Run(func(b *Batch) {
			// Its lock keeps two from removing the same rows in different orders.
			b.Query(func(s Scanner) error {
				there = true
				return s.Scan(&id)
			}, `SELECT id FROM webhooks WHERE state = 'deleted' ORDER BY n LIMIT 1`+tx.Dialect().ForUpdate())
		}); err != nil || !there {
			return err
		}
		more = true
		var gone *Affected
		if err := tx.Run(func(b *Batch) {
			gone = b.Exec(`DELETE FROM deliveries WHERE n IN (SELECT n FROM deliveries WHERE webhook_id = ? LIMIT ?)`, id, limit)
		}); err != nil {
			return err
		}
		n = gone.N
		return tx.Commit(func(b *Batch) {
			if n < int64(limit) {
				b.Exec(`DELETE FROM webhooks WHERE id = ?`, id)
			}
		})
	})
	return n, more, fault.Wrap("sqlstore.Purge", err)
}

const cleanFinished = `DELETE FROM deliveries WHERE n IN (SELECT n FROM deliveries WHERE state <> 'pending' AND finished_at < ?
	ORDER BY finished_at LIMIT ?)`

// oldestFinished is when the oldest delivery that is finished was.
const oldestFinished = `SELECT finished_at FROM deliveries WHERE state <> 'pending' AND finished_at > 0 ORDER BY finished_at LIMIT 1`

// Clean implements webhook.Queue.
func (s *TenantStore) Clean(ctx context.Context, before time.Time, limit int) (int64, *time.Time, error) {
	const op = "sqlstore.Clean"
	var oldest *int64
	look := func() error {
		oldest = nil
		return s.db.Read(ctx, func(b *Batch) { b.One([]any{&oldest}, oldestFinished) })
	}
	// Most of the time there is nothing to do, and then nothing is written.
	if err := look(); err != nil || oldest == nil || *oldest >= ident.Micros(before) {
		return 0, timeOf(oldest), fault.Wrap(op, err)
	}
	var gone *Affected
	err := s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { gone = b.Exec(cleanFinished, ident.Micros(before), max(1, limit)) })
	})
	if err == nil {
		err = look()
	}
	if err != nil {
		return 0, nil, fault.Wrap(op, err)
	}
	return gone.N, timeOf(oldest), nil
}
