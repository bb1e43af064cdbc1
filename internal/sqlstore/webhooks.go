package sqlstore

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/webhook"
)

var _ webhook.Store = (*TenantStore)(nil)

// What endpoints are kept as; what they are sent is in outbox.go.

const endpointColumns = `w.id, w.name, w.description, w.url, w.events, w.project_id, w.ordered, w.state, w.reason, w.secret,
	w.secret_before, w.before_until, w.failing_since, w.slowed, w.hold_until, w.notice_due, w.version, w.created_at, w.updated_at`

// endpointRow is an endpoint while it is scanned.
type endpointRow struct {
	webhook.Endpoint
	events                       string
	project                      *ident.ProjectID
	before, failing, hold, noted *int64
	created, updated             int64
}

func (r *endpointRow) dest() []any {
	return []any{&r.ID, &r.Name, &r.Description, &r.URL, &r.events, &r.project, &r.Ordered, &r.State, &r.Reason, &r.Secret,
		&r.SecretBefore, &r.before, &r.failing, &r.Slowed, &r.hold, &r.noted, &r.Version, &r.created, &r.updated}
}

func (r *endpointRow) done() (webhook.Endpoint, error) {
	e := r.Endpoint
	if r.project != nil {
		e.Project = *r.project
	}
	e.BeforeUntil, e.FailingSince, e.HoldUntil, e.NoticeDue = timeOf(r.before), timeOf(r.failing), timeOf(r.hold), timeOf(r.noted)
	e.CreatedAt, e.UpdatedAt = ident.Time(r.created), ident.Time(r.updated)
	return e, json.Unmarshal([]byte(r.events), &e.Events)
}

func scanEndpoint(s Scanner) (webhook.Endpoint, error) {
	var r endpointRow
	if err := s.Scan(r.dest()...); err != nil {
		return webhook.Endpoint{}, err
	}
	return r.done()
}

// selectEndpoint queues the reading of one endpoint into list, which stays empty when there is none.
func selectEndpoint(b *Batch, list *[]webhook.Endpoint, id ident.WebhookID, lock string) {
	*list = nil
	b.Query(func(s Scanner) error {
		e, err := scanEndpoint(s)
		*list = append(*list, e)
		return err
	}, `SELECT `+endpointColumns+` FROM webhooks w WHERE w.id = ? AND w.state <> 'deleted'`+lock, id)
}

// suffixes are the ends that a delivery's identifier may have: its event's identifier gives the rest, so that an event makes
// one delivery for an endpoint and no more. There are two characters, of which the second holds three bits.
func suffixes(used []string) string {
	const digits, last = "0123456789abcdefghjkmnpqrstvwxyz", "048cgmrw"
	for i := range len(digits) * len(last) {
		s := string(digits[i/len(last)]) + string(last[i%len(last)])
		if !slices.Contains(used, s) {
			return s
		}
	}
	return ""
}

// InsertEndpoint implements webhook.Endpoints.
func (s *TenantStore) InsertEndpoint(ctx context.Context, e webhook.Endpoint, limit int, ch event.Change) error {
	const op = "sqlstore.InsertEndpoint"
	events, err := encodeTags(e.Events)
	if err != nil {
		return err
	}
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		var used []string
		there, project := 0, true
		was := func() *event.Once { return nil }
		if err := tx.Run(func(b *Batch) {
			// The head's lock comes last in every transaction; here it comes first, and alone, so that two at once do not take
			// the same place.
			b.Query(func(Scanner) error { return nil }, `SELECT seq FROM log_head WHERE one = 1`+tx.Dialect().ForUpdate())
			if ch.Once != nil {
				was = lookForOnce(b, ch.Once.Scope, ch.Once.Key, time.Now())
			}
			used = nil
			there = 0
			b.Query(func(s Scanner) error {
				var suffix string
				var counts bool
				err := s.Scan(&suffix, &counts)
				if used = append(used, suffix); counts {
					there++
				}
				return err
			}, `SELECT suffix, state <> 'deleted' FROM webhooks`)
			if e.Project != "" {
				b.One([]any{&project}, `SELECT count(*) > 0 FROM projects WHERE id = ?`, e.Project)
			}
		}); err != nil {
			return err
		}
		suffix := suffixes(used)
		switch {
		case was() != nil:
			return fault.New(fault.Conflict, op, event.CodeRepeated, "this was done already")
		case !project:
			return fault.BadInput(op, "body.project_id", "there is no such project")
		case there >= limit || suffix == "":
			return fault.New(fault.Conflict, op, "too_many_webhooks", "this account has as many webhooks as it may have")
		}
		return tx.Commit(func(b *Batch) {
			b.Exec(`INSERT INTO webhooks (id, suffix, name, description, url, events, project_id, ordered, state, reason, secret,
				secret_before, before_until, failing_since, slowed, hold_until, notice_due, version, created_at, updated_at)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
				e.ID, suffix, e.Name, e.Description, e.URL, events, optional(e.Project), e.Ordered, e.State, e.Reason, e.Secret,
				e.SecretBefore, moment(e.BeforeUntil), moment(e.FailingSince), e.Slowed, moment(e.HoldUntil), moment(e.NoticeDue),
				e.Version, ident.Micros(e.CreatedAt), ident.Micros(e.UpdatedAt))
			s.appendChange(b, ch, head)
		})
	})
}

// FindEndpoint implements webhook.Endpoints.
func (s *TenantStore) FindEndpoint(ctx context.Context, id ident.WebhookID) (webhook.Endpoint, error) {
	e, _, err := s.FindEndpointOnce(ctx, id, nil)
	return e, err
}

// FindEndpointOnce implements webhook.Endpoints.
func (s *TenantStore) FindEndpointOnce(ctx context.Context, id ident.WebhookID, once *event.Once) (webhook.Endpoint, *event.Once, error) {
	var list []webhook.Endpoint
	was := func() *event.Once { return nil }
	err := s.db.Read(ctx, func(b *Batch) {
		selectEndpoint(b, &list, id, "")
		if once != nil {
			was = lookForOnce(b, once.Scope, once.Key, time.Now())
		}
	})
	if err == nil && len(list) == 0 {
		err = fault.Missing("sqlstore.FindEndpoint")
	}
	if err != nil {
		return webhook.Endpoint{}, nil, err
	}
	return list[0], was(), nil
}

// ListEndpoints implements webhook.Endpoints.
func (s *TenantStore) ListEndpoints(ctx context.Context, project ident.ProjectID, cursor string, limit int) ([]webhook.Endpoint, string, error) {
	limit = max(1, limit)
	var c conditions
	c.and("w.state <> 'deleted'")
	if err := c.beforeCursor("webhooks", "w.id", cursor); err != nil {
		return nil, "", err
	}
	if project != "" {
		c.and("w.project_id = ?", project)
	}
	var list []webhook.Endpoint
	err := s.db.Read(ctx, func(b *Batch) {
		list = nil
		b.Query(func(s Scanner) error {
			e, err := scanEndpoint(s)
			list = append(list, e)
			return err
		}, `SELECT `+endpointColumns+` FROM webhooks w`+c.where()+` ORDER BY w.id DESC LIMIT ?`, append(c.args, limit+1)...)
	})
	if err != nil || len(list) <= limit {
		return list, "", err
	}
	return list[:limit], formatCursor(idCursor{Kind: "webhooks", ID: string(list[limit-1].ID)}), nil
}

// updateEndpoint queues what may change about an endpoint.
func updateEndpoint(b *Batch, e webhook.Endpoint, events string) {
	b.Exec(`UPDATE webhooks SET name = ?, description = ?, url = ?, events = ?, project_id = ?, ordered = ?, state = ?, reason = ?,
		secret = ?, secret_before = ?, before_until = ?, failing_since = ?, slowed = ?, hold_until = ?, notice_due = ?, version = ?,
		updated_at = ? WHERE id = ?`,
		e.Name, e.Description, e.URL, events, optional(e.Project), e.Ordered, e.State, e.Reason, e.Secret, e.SecretBefore,
		moment(e.BeforeUntil), moment(e.FailingSince), e.Slowed, moment(e.HoldUntil), moment(e.NoticeDue), e.Version,
		ident.Micros(e.UpdatedAt), e.ID)
}

// releasedAtOnce is how many deliveries need not wait any more when order is no longer asked for. The rest follows when it is
// looked at again, within waitsAtMost.
const releasedAtOnce = 10_000

// UpdateEndpoint implements webhook.Endpoints.
func (s *TenantStore) UpdateEndpoint(ctx context.Context, id ident.WebhookID,
	edit func(webhook.Endpoint) (webhook.Endpoint, event.Change, error)) (webhook.Endpoint, error) {
	after, _, err := s.UpdateEndpointOnce(ctx, id, nil, edit)
	return after, err
}

// UpdateEndpointOnce implements webhook.Endpoints.
func (s *TenantStore) UpdateEndpointOnce(ctx context.Context, id ident.WebhookID, once *event.Once,
	edit func(webhook.Endpoint) (webhook.Endpoint, event.Change, error)) (webhook.Endpoint, *event.Once, error) {
	const op = "sqlstore.UpdateEndpoint"
	var after webhook.Endpoint
	var before *event.Once
	err := s.change(ctx, func(tx *Tx, head *event.Seq) error {
		e, was, err := lockEndpoint(tx, op, id, once)
		if before = was; err != nil || was != nil {
			after = e
			return err
		}
		next, ch, err := edit(e)
		if err != nil {
			return err
		}
		after = next
		if len(ch.Events) == 0 && ch.Once == nil {
			return nil
		}
		events, err := encodeTags(next.Events)
		if err != nil {
			return err
		}
		if next.Project != "" && next.Project != e.Project {
			var there bool
			if err := tx.Run(func(b *Batch) {
				b.One([]any{&there}, `SELECT count(*) > 0 FROM projects WHERE id = ?`, next.Project)
			}); err != nil {
				return err
			}
			if !there {
				return fault.BadInput(op, "body.project_id", "there is no such project")
			}
		}
		return tx.Commit(func(b *Batch) {
			updateEndpoint(b, next, events)
			if e.Ordered && !next.Ordered {
				b.Exec(`UPDATE deliveries SET due_at = created_at WHERE n IN (SELECT n FROM deliveries WHERE webhook_id = ? AND state = 'pending'
					AND claim = '' AND tries = 0 AND due_at > ? LIMIT ?)`, id, ident.Micros(next.UpdatedAt), releasedAtOnce)
			}
			s.appendChange(b, ch, head)
		})
	})
	if err != nil {
		return webhook.Endpoint{}, nil, err
	}
	return after, before, nil
}

// lockEndpoint reads an endpoint under its lock and, with once, the live idempotency record of its scope and key, behind that
// lock: of two with one key at the same time the second finds the first. It is nil when there is none.
func lockEndpoint(tx *Tx, op string, id ident.WebhookID, once *event.Once) (webhook.Endpoint, *event.Once, error) {
	var list []webhook.Endpoint
	was := func() *event.Once { return nil }
	if err := tx.Run(func(b *Batch) {
		selectEndpoint(b, &list, id, tx.Dialect().ForUpdate())
		if once != nil {
			was = lookForOnce(b, once.Scope, once.Key, time.Now())
		}
	}); err != nil {
		return webhook.Endpoint{}, nil, err
	}
	if len(list) == 0 {
		return webhook.Endpoint{}, nil, fault.Missing(op)
	}
	return list[0], was(), nil
}

// DeleteEndpoint implements webhook.Endpoints.
func (s *TenantStore) DeleteEndpoint(ctx context.Context, id ident.WebhookID, decide func(webhook.Endpoint) (event.Change, error)) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		e, _, err := lockEndpoint(tx, "sqlstore.DeleteEndpoint", id, nil)
		if err != nil {
			return err
		}
		ch, err := decide(e)
		if err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) {
			// What its owner wrote goes at once.
			b.Exec(`UPDATE webhooks SET state = 'deleted', reason = '', name = '', description = '', url = '', events = '[]', project_id = NULL,
				secret = ?, secret_before = NULL, before_until = NULL, failing_since = NULL, slowed = 0, hold_until = NULL, notice_due = NULL
				WHERE id = ?`, []byte{}, id)
			s.appendChange(b, ch, head)
		})
	})
}

// Deliveries, as people look at them.

const deliveryColumns = `d.id, d.webhook_id, d.seq, d.event_id, d.event_type, d.state, d.attempts, d.tries, d.due_at, d.claim,
	d.created_at, d.finished_at`

// deliveryRow is a delivery while it is scanned.
type deliveryRow struct {
	webhook.Delivery
	due, created int64
	finished     *int64
}

func (r *deliveryRow) dest() []any {
	return []any{&r.ID, &r.Webhook, &r.Seq, &r.Event, &r.Type, &r.State, &r.Attempts, &r.Tries, &r.due, &r.Claim, &r.created, &r.finished}
}

func (r *deliveryRow) done() webhook.Delivery {
	d := r.Delivery
	d.Due, d.CreatedAt, d.FinishedAt = ident.Time(r.due), ident.Time(r.created), timeOf(r.finished)
	return d
}

const attemptColumns = `a.delivery_id, a.number, a.started_at, a.latency_ms, a.status, a.error, a.answer`

// takeAttempts adds scanned attempts to the deliveries of a list.
func takeAttempts(list *[]webhook.Delivery) func(Scanner) error {
	return func(s Scanner) error {
		var of ident.DeliveryID
		var a webhook.Attempt
		var started, latency int64
		if err := s.Scan(&of, &a.Number, &started, &latency, &a.Status, &a.Error, &a.Answer); err != nil {
			return err
		}
		a.StartedAt, a.Latency = ident.Time(started), time.Duration(latency)*time.Millisecond
		for i := range *list {
			if d := &(*list)[i]; d.ID == of {
				d.Tried = append(d.Tried, a)
			}
		}
		return nil
	}
}

// takeDeliveries appends scanned deliveries to list.
func takeDeliveries(list *[]webhook.Delivery) func(Scanner) error {
	*list = nil
	return func(s Scanner) error {
		var r deliveryRow
		err := s.Scan(r.dest()...)
		*list = append(*list, r.done())
		return err
	}
}

// deliveryCursor is the place in a listing of deliveries.
type deliveryCursor struct {
	Kind string `json:"k"` // "deliveries"
	At   int64  `json:"t"`
	ID   string `json:"i"`
}

// ListDeliveries implements webhook.Deliveries.
func (s *TenantStore) ListDeliveries(ctx context.Context, id ident.WebhookID, q webhook.DeliveryQuery) ([]webhook.Delivery, string, error) {
	limit := max(1, q.Limit)
	var c conditions
	c.and("d.webhook_id = ?", id)
	if q.Cursor != "" {
		var from deliveryCursor
		if err := parseCursor(q.Cursor, &from); err != nil {
			return nil, "", err
		}
		if from.Kind != "deliveries" || !ValidText(from.ID) {
			return nil, "", badCursor()
		}
		c.and("d.created_at <= ? AND (d.created_at < ? OR d.id < ?)", from.At, from.At, from.ID)
	}
	if q.State != "" {
		c.and("d.state = ?", q.State)
	}
	if q.Type != "" {
		c.and("d.event_type = ?", q.Type)
	}
	const order = ` ORDER BY d.created_at DESC, d.id DESC LIMIT ?`
	var list []webhook.Delivery
	var there bool
	err := s.db.Read(ctx, func(b *Batch) {
		b.One([]any{&there}, `SELECT count(*) > 0 FROM webhooks WHERE id = ? AND state <> 'deleted'`, id)
		b.Query(takeDeliveries(&list), `SELECT `+deliveryColumns+` FROM deliveries d`+c.where()+order, append(slices.Clone(c.args), limit+1)...)
		b.Query(takeAttempts(&list), `SELECT `+attemptColumns+` FROM (SELECT d.id FROM deliveries d`+c.where()+order+`) p
			JOIN attempts a ON a.delivery_id = p.id
			WHERE a.number = (SELECT max(m.number) FROM attempts m WHERE m.delivery_id = p.id)`, append(slices.Clone(c.args), limit+1)...)
	})
	if err == nil && !there {
		err = fault.Missing("sqlstore.ListDeliveries")
	}
	if err != nil || len(list) <= limit {
		return list, "", err
	}
	last := list[limit-1]
	return list[:limit], formatCursor(deliveryCursor{Kind: "deliveries", At: ident.Micros(last.CreatedAt), ID: string(last.ID)}), nil
}

// FindDelivery implements webhook.Deliveries.
func (s *TenantStore) FindDelivery(ctx context.Context, id ident.WebhookID, d ident.DeliveryID) (webhook.Delivery, error) {
	var list []webhook.Delivery
	err := s.db.Read(ctx, func(b *Batch) { selectDelivery(b, &list, id, d) })
	if err == nil && len(list) == 0 {
		err = fault.Missing("sqlstore.FindDelivery")
	}
	if err != nil {
		return webhook.Delivery{}, err
	}
	return list[0], nil
}

// undeleted is the condition that the endpoint of a delivery d can be seen.
const undeleted = `EXISTS (SELECT 1 FROM webhooks w WHERE w.id = d.webhook_id AND w.state <> 'deleted')`

func selectDelivery(b *Batch, list *[]webhook.Delivery, id ident.WebhookID, d ident.DeliveryID) {
	b.Query(takeDeliveries(list), `SELECT `+deliveryColumns+` FROM deliveries d WHERE d.id = ? AND d.webhook_id = ? AND `+undeleted, d, id)
	b.Query(takeAttempts(list), `SELECT `+attemptColumns+` FROM attempts a WHERE a.delivery_id = ? ORDER BY a.number`, d)
}

// InsertTest implements webhook.Deliveries.
func (s *TenantStore) InsertTest(ctx context.Context, d webhook.Delivery, body []byte, ch event.Change) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		return tx.Commit(func(b *Batch) {
			b.Exec(`INSERT INTO deliveries (id, webhook_id, seq, event_id, event_type, conversation_id, state, attempts, tries, due_at,
				claim, body, created_at) VALUES (?, ?, 0, ?, ?, '', ?, ?, ?, ?, ?, ?, ?)`, d.ID, d.Webhook, d.Event, d.Type, d.State,
				d.Attempts, d.Tries, ident.Micros(d.Due), d.Claim, string(body), ident.Micros(d.CreatedAt))
			s.appendChange(b, ch, head)
		})
	})
}

// again makes finished deliveries pending.
const again = `UPDATE deliveries SET state = 'pending', tries = 0, due_at = ?1, claim = '', finished_at = NULL`

// Redeliver implements webhook.Deliveries. What belongs to a deleted endpoint is not found, and nothing is changed then.
func (s *TenantStore) Redeliver(ctx context.Context, id ident.WebhookID, d ident.DeliveryID, ch event.Change) (webhook.Delivery, error) {
	var list []webhook.Delivery
	err := s.change(ctx, func(tx *Tx, head *event.Seq) error {
		if err := tx.Run(func(b *Batch) {
			b.Query(func(Scanner) error { return nil }, `SELECT 1 FROM webhooks WHERE id = ?`+tx.Dialect().ForUpdate(), id)
			b.Exec(again+` WHERE id = ?2 AND webhook_id = ?3 AND claim = ''`, ident.Micros(ch.At), d, id)
			selectDelivery(b, &list, id, d)
		}); err != nil {
			return err
		}
		if len(list) == 0 {
			return fault.Missing("sqlstore.Redeliver")
		}
		return tx.Commit(func(b *Batch) { s.appendChange(b, ch, head) })
	})
	if err != nil {
		return webhook.Delivery{}, err
	}
	return list[0], nil
}

// undelivered is the condition that an event v made no delivery for an endpoint w. It looks for the identifier that the
// delivery would have, since no index leads from an event to finished deliveries.
const undelivered = `NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.id = ` + deliveryID + `)`

// sinceAbout is the sequence number at which events that happened at a parameter or later begin, or one before it: the log
// has no index by time, so this halves its range until it is there. Events stand in the order of their commits, and of their
// times nearly: those that servers' clocks disagree about by less than a day are not missed.
func sinceAbout(from string) string {
	early := `coalesce((SELECT v.created_at FROM events v WHERE v.seq >= (g.lo + g.hi) / 2 ORDER BY v.seq LIMIT 1) < ` + from + ` - 86400000000, 0 = 1)`
	return `(WITH RECURSIVE g (lo, hi) AS (SELECT CAST(0 AS BIGINT), seq + 1 FROM log_head WHERE one = 1 UNION ALL
		SELECT CASE WHEN ` + early + ` THEN (g.lo + g.hi) / 2 + 1 ELSE g.lo END, CASE WHEN ` + early + ` THEN g.hi ELSE (g.lo + g.hi) / 2 END
		FROM g WHERE g.lo < g.hi) SELECT max(lo) FROM g)`
}

// during is the condition that an event v happened from ?2 on and before ?3.
func during() string {
	return `v.created_at >= ?2 AND v.created_at < ?3 AND v.seq >= ` + sinceAbout("?2") + ` AND v.seq <= ` + sinceAbout("(?3 + 2 * 86400000000)")
}

// RedeliverMany implements webhook.Deliveries.
func (s *TenantStore) RedeliverMany(ctx context.Context, id ident.WebhookID, r webhook.Range,
	change func(webhook.Redelivered) (event.Change, error)) (webhook.Redelivered, error) {
	limit := max(1, r.Limit)
	var out webhook.Redelivered
	err := s.change(ctx, func(tx *Tx, head *event.Seq) error {
		out = webhook.Redelivered{}
		now := ident.Micros(r.At)
		if _, _, err := lockEndpoint(tx, "sqlstore.RedeliverMany", id, nil); err != nil {
			return err
		}
		// Where it has to stop, when there is more than the limit.
		to := ident.Micros(r.To)
		var last int64
		var over *Found
		var matching string
		args := []any{id, ident.Micros(r.From), to, limit}
		if r.Missed {
			matching = `SELECT v.created_at AS at FROM webhooks w JOIN events v ON ` + during() +
				matched(tx.Dialect()) + ` WHERE w.id = ?1 AND ` + undelivered
		} else {
			matching = `SELECT d.created_at AS at FROM deliveries d WHERE d.webhook_id = ?1 AND d.created_at >= ?2 AND d.created_at < ?3
				AND d.state <> 'pending'`
			if r.State != "" {
				matching += ` AND d.state = ?5`
				args = append(args, r.State)
			}
		}
		if err := tx.Run(func(b *Batch) {
			over = b.One([]any{&last}, `SELECT at FROM (`+matching+`) AS found ORDER BY at LIMIT 1 OFFSET ?4`, args...)
		}); err != nil {
			return err
		}
		if over.Yes {
			// Those of one moment go together, so what was at the limit comes with the next call; unless all are of one moment.
			if to = last; last <= ident.Micros(r.From) {
				to = last + 1
			}
			t := ident.Time(to)
			out.More = &t
		}
		var did *Affected
		if err := tx.Run(func(b *Batch) {
			if r.Missed {
				did = b.Exec(outbox(tx.Dialect(), during())+` AND w.id = ?1 AND `+undelivered+` ORDER BY v.seq`,
					id, ident.Micros(r.From), to)
				return
			}
			sql := again + ` WHERE webhook_id = ?2 AND created_at >= ?3 AND created_at < ?4 AND claim = '' AND state <> 'pending'`
			args := []any{now, id, ident.Micros(r.From), to}
			if r.State != "" {
				sql += ` AND state = ?5`
				args = append(args, r.State)
			}
			did = b.Exec(sql, args...)
		}); err != nil {
			return err
		}
		out.Count = did.N
		ch, err := change(out)
		if err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) { s.appendChange(b, ch, head) })
	})
	return out, err
}

// quotedIn is the condition that a JSON array of plain words in a column holds the word that an expression gives.
func quotedIn(d Dialect, column, word string) string {
	return d.Pick("instr", "strpos") + "(" + column + `, '"' || ` + word + ` || '"') > 0`
}

// matched is the condition, to be joined on, that an event v is one that an endpoint w wants.
func matched(d Dialect) string {
	noun := `substr(v.type, 1, ` + d.Pick(`instr(v.type, '.')`, `strpos(v.type, '.')`) + `) || '*'`
	of := func(key string) string {
		return d.Pick(`json_extract(v.data, '$.`+key+`')`, `CAST(v.data AS jsonb) ->> '`+key+`'`)
	}
	return ` AND (` + strings.Join([]string{quotedIn(d, "w.events", "'*'"), quotedIn(d, "w.events", "v.type"), quotedIn(d, "w.events", noun)}, " OR ") +
		`) AND (w.project_id IS NULL OR w.project_id = v.subject OR w.project_id = ` + of("project_id") + ` OR w.project_id = ` + of("from_project_id") + `
		OR EXISTS (SELECT 1 FROM conversations c WHERE c.id = coalesce(` + of("conversation_id") + `, v.subject) AND c.project_id = w.project_id))`
}
