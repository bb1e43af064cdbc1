package sqlstore

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ncruces/go-sqlite3"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

// longTalk fills a conversation with a trunk of n messages, and a branch of as many that forks half-way. Names say the
// place: "conv-msg-0-17". It writes rows itself: what is measured here is reading.
func longTalk(t testing.TB, db *DB, id ident.ConversationID, n int) {
	t.Helper()
	s := NewTenantStore(db, nil)
	c := conversation.Conversation{ID: id, Version: 1}
	if err := s.InsertConversation(t.Context(), c, event.Change{}); err != nil {
		t.Fatal(err)
	}
	fork := n / 2
	err := db.Write(t.Context(), func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			b.Exec(`INSERT INTO branches (conversation_id, branch, parent_branch, fork_depth) VALUES (?, 1, 0, ?)`, id, fork)
			for branch, from := range []int{0, fork} {
				b.Exec(`INSERT INTO messages (id, conversation_id, parent_id, turn_id, branch, depth, role, content,
					content_length, state, author_id, author_name, provider, model, stop_reason, input_tokens, output_tokens,
					cache_read_input_tokens, cache_creation_input_tokens, cost_microusd, first_token_ms, latency_ms, error_code,
					error_detail, tokens, tokens_up_to, prefix_hash, created_at, updated_at)
					WITH RECURSIVE g (i) AS (SELECT ?1 + 1 UNION ALL SELECT i + 1 FROM g WHERE i < ?2 + ?1)
					SELECT ?3 || '-msg-' || CAST(?4 AS TEXT) || '-' || CAST(i AS TEXT), ?3,
						CASE WHEN i = 1 THEN '' ELSE ?3 || '-msg-' || CAST(CASE WHEN i = ?1 + 1 THEN 0 ELSE ?4 END AS TEXT) || '-' ||
							CAST(i - 1 AS TEXT) END,
						'', ?4, i, 'user', ?5, 0, 'completed', '', '', '', '', '', 0, 0, 0, 0, 0, 0, 0, '', '', 10, 10 * i, '', i, i
					FROM g`, from, n, id, branch, strings.Repeat("lorem ipsum ", 20))
			}
			b.Exec(`UPDATE conversations SET leaf_id = ?1 || '-msg-0-' || CAST(?2 AS TEXT), message_count = 2 * ?2,
				branch_count = 2 WHERE id = ?1`, id, n)
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func spoken(id ident.ConversationID, branch, depth int) ident.MessageID {
	return ident.MessageID(fmt.Sprintf("%s-msg-%d-%d", id, branch, depth))
}

const (
	longHistory = 10_000
	pageOf      = 50
)

// reading is a statement that must touch no more messages than it returns.
type reading struct {
	name string
	sql  string
	args []any
	rows int
}

func readings(d Dialect, id ident.ConversationID, n int) []reading {
	trunk, branch := spoken(id, 0, n), spoken(id, 1, n/2+n)
	var list []reading
	for name, leaf := range map[string]ident.MessageID{"the active branch": "", "the trunk": trunk, "a branch": branch} {
		list = append(list,
			reading{"newest of " + name, pageOfPath(d, false), []any{id, leaf, 0, pageOf}, pageOf},
			reading{"oldest of " + name, pageOfPath(d, true), []any{id, leaf, 0, pageOf}, pageOf},
			reading{"down through the middle of " + name, pageOfPath(d, false), []any{id, leaf, n/2 + 20, pageOf}, pageOf},
			reading{"up through the middle of " + name, pageOfPath(d, true), []any{id, leaf, n/2 - 20, pageOf}, pageOf})
	}
	if d == SQLite { // PostgreSQL is never sent these
		list = append(list,
			reading{"newest of the own branch", pageOfOwn(false), []any{id, branch, 0, pageOf}, pageOf},
			reading{"down on the own branch", pageOfOwn(false), []any{id, trunk, n/2 + 20, pageOf}, pageOf},
			reading{"up on the own branch", pageOfOwn(true), []any{id, trunk, n/2 - 20, pageOf}, pageOf})
	}
	return append(list,
		reading{"newest of all", pageOfAll(false), []any{id, 1 << 62, pageOf}, pageOf},
		reading{"oldest of all", pageOfAll(true), []any{id, 0, pageOf}, pageOf},
		reading{"path cut by number", pathUp, []any{id, branch, pageOf, 0}, pageOf},
		reading{"path cut by tokens", pathUp, []any{id, trunk, n, 10 * (n - pageOf)}, pageOf},
		reading{"path across the fork", pathUp, []any{id, spoken(id, 1, n/2+20), pageOf, 0}, pageOf})
}

func TestPagesCostThePage(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		db := tenantFiles(t)(t)
		longTalk(t, db, "short", 2*pageOf+40)
		longTalk(t, db, "long", longHistory)
		short := map[string]int{}
		for _, q := range readings(db.Dialect(), "short", 2*pageOf+40) {
			short[q.name] = steps(t, db, q)
		}
		for _, q := range readings(db.Dialect(), "long", longHistory) {
			t.Run(q.name, func(t *testing.T) {
				for _, line := range queryPlan(t, db, q) {
					if strings.Contains(line, "SCAN m") {
						t.Error(line)
					}
				}
				// The work of the engine's machine, in its own steps, must not follow the length of the history.
				if n := steps(t, db, q); n > short[q.name]+short[q.name]/5 {
					t.Errorf("%d steps; in a short history %d", n, short[q.name])
				}
			})
		}
	})
	t.Run("postgres", func(t *testing.T) {
		db := tenantSchemas(t)(t)
		longTalk(t, db, "long", longHistory)
		longTalk(t, db, "other", longHistory)
		check := func(t *testing.T, analyzed bool) {
			for _, q := range readings(db.Dialect(), "long", longHistory) {
				if !analyzed && strings.HasSuffix(q.name, " of all") {
					continue // a guess of few messages makes sorting them look cheap; autovacuum corrects it within minutes
				}
				t.Run(q.name, func(t *testing.T) {
					plan, touched := explain(t, db, q)
					// Besides the page: the leaf, and one row more where a limit or a sum ends the reading.
					if touched > q.rows+pageOf+4 {
						t.Errorf("%d messages touched for a page of %d:\n%s", touched, q.rows, plan)
					}
				})
			}
		}
		t.Run("without statistics", func(t *testing.T) { check(t, false) })
		if err := db.Write(t.Context(), func(tx *Tx) error {
			return tx.Commit(func(b *Batch) { b.Exec(`ANALYZE`) })
		}); err != nil {
			t.Fatal(err)
		}
		t.Run("with statistics", func(t *testing.T) { check(t, true) })
	})
}

// TestMissedEventsAreFound: whether an event made a delivery is looked up, not searched for among all deliveries.
func TestMissedEventsAreFound(t *testing.T) {
	db := tenantFiles(t)(t)
	plan := queryPlan(t, db, reading{sql: `SELECT v.seq FROM webhooks w JOIN events v ON v.seq > ? WHERE ` + undelivered, args: []any{0}})
	if text := strings.Join(plan, "\n"); !strings.Contains(text, "SEARCH d USING COVERING INDEX sqlite_autoindex_deliveries_1 (id=?)") {
		t.Error(text)
	}
}

// TestPlansOfWebhooks: nothing that the dispatcher asks again and again reads a whole table, but that of the endpoints, of
// which there are few.
func TestPlansOfWebhooks(t *testing.T) {
	db := tenantFiles(t)(t)
	for name, q := range map[string]reading{
		"what is due":      {sql: dueDeliveries},
		"a claim":          {sql: `UPDATE deliveries SET claim = 'c' WHERE n IN (` + claimable + `)`, args: []any{"w", 9, 8, window}},
		"what waits":       {sql: `UPDATE deliveries SET due_at = ` + behind + ` WHERE n IN (` + blocked + `)`, args: []any{"w", 9, 99, window}},
		"the next in line": {sql: `UPDATE deliveries SET due_at = created_at WHERE n IN (` + nextInLine + `)`, args: []any{"d"}},
		"what is old":      {sql: cleanFinished, args: []any{9, 500}},
		"what is oldest":   {sql: oldestFinished},
		"tests":            {sql: `SELECT d.n` + cutTests, args: []any{"w", 9}},
	} {
		t.Run(name, func(t *testing.T) {
			plan := queryPlan(t, db, q)
			window := slices.Contains(plan, "CO-ROUTINE d")
			for _, line := range plan {
				if strings.HasPrefix(line, "SCAN") && line != "SCAN w" && (line != "SCAN d" || !window) || strings.Contains(line, "AUTOMATIC") {
					t.Error(strings.Join(plan, "\n"))
				}
			}
		})
	}
}

// TestALookCostsNoBacklog: however many deliveries of an endpoint with order wait, looking for what is due costs the same.
func TestALookCostsNoBacklog(t *testing.T) {
	db := tenantFiles(t)(t)
	fill := func(hook string, n int) {
		t.Helper()
		if err := db.Write(t.Context(), func(tx *Tx) error {
			return tx.Commit(func(b *Batch) {
				b.Exec(`INSERT INTO webhooks (id, suffix, name, description, url, events, ordered, state, reason, secret, slowed, version,
					created_at, updated_at) VALUES (?1, ?1, '', '', '', '[]', 1, 'active', '', x'00', 0, 1, 1, 1)`, hook)
				// All are of one conversation, whose first one is to be tried again much later.
				b.Exec(`INSERT INTO deliveries (id, webhook_id, seq, event_id, event_type, conversation_id, state, attempts, tries, due_at,
					claim, created_at) WITH RECURSIVE g (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM g WHERE i < ?2)
					SELECT ?1 || CAST(i AS TEXT), ?1, i, 'e', 'x.y', 'conv_1', 'pending', 0, 0, CASE WHEN i = 1 THEN 1000000 ELSE i END, '', i FROM g`,
					hook, n)
			})
		}); err != nil {
			t.Fatal(err)
		}
	}
	fill("short", 2*window)
	fill("long", 20*window)
	for name, sql := range map[string]string{"claim": claimable, "what waits": blocked} {
		rows := 0
		if name == "what waits" {
			rows = window
			sql += ` AND ?3 > 0`
		}
		of := func(hook string) int {
			return steps(t, db, reading{sql: sql, args: []any{hook, 500_000, 8, window}, rows: rows})
		}
		if short, long := of("short"), of("long"); long > short+short/5 {
			t.Errorf("%s: %d steps, in a short backlog %d", name, long, short)
		}
	}
	due := reading{sql: dueDeliveries, rows: 2}
	if n := steps(t, db, due); n > 500 {
		t.Errorf("what is due: %d steps", n)
	}
}

// TestMissedEventsCostTheirTime: what happened in a time is found in a long log as quickly as in a short one, also where numbers are
// missing and clocks disagreed.
func TestMissedEventsCostTheirTime(t *testing.T) {
	const hour = 3_600_000_000
	of := func(n int) (cost int) {
		db := tenantFiles(t)(t)
		if err := db.Write(t.Context(), func(tx *Tx) error {
			return tx.Commit(func(b *Batch) {
				// One event an hour, every other one told by a clock that is 20 hours late; and then a leap.
				b.Exec(`INSERT INTO events (seq, id, type, subject, actor_id, actor_name, created_at, data)
					WITH RECURSIVE g (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM g WHERE i < ?1)
					SELECT CASE WHEN i > ?1 / 2 THEN i + 1000000 ELSE i END, 'evt_' || CAST(i AS TEXT), 'a.b', '', '', '',
						(i - 20 * (i % 2)) * 3600000000, '{}' FROM g`, n)
				b.Exec(`UPDATE log_head SET seq = ? + 1000000`, n)
			})
		}); err != nil {
			t.Fatal(err)
		}
		for _, from := range []int{0, 60, n/2 - 5, n - 100, 2 * n} {
			rows := 0
			for i := 1; i <= n; i++ {
				if at := i - 20*(i%2); at >= from && at < from+50 {
					rows++
				}
			}
			cost = max(cost, steps(t, db, reading{sql: `SELECT v.seq FROM events v WHERE ?1 = 0 AND ` + during(), args: []any{0, from * hour, (from + 50) * hour}, rows: rows}))
		}
		return cost
	}
	if short, long := of(1_000), of(16_000); long > 2*short {
		t.Errorf("%d steps, in a short log %d", long, short)
	}
}

// steps runs a reading and counts what SQLite's machine did for it.
func steps(t *testing.T, db *DB, q reading) int {
	t.Helper()
	engine := db.on.Load().engine.(*sqliteEngine)
	if err := engine.take(t.Context(), engine.readers); err != nil {
		t.Fatal(err)
	}
	defer func() { <-engine.readers }()
	c, err := engine.reader()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.close() }()
	s, err := c.prepared(q.sql)
	if err != nil {
		t.Fatal(err)
	}
	b := &Batch{}
	rows := 0
	b.Query(func(Scanner) error { rows++; return nil }, q.sql, q.args...)
	if err := c.exec(b); err != nil {
		t.Fatal(err)
	}
	if rows != q.rows {
		t.Fatalf("%d rows, want %d", rows, q.rows)
	}
	return s.Status(sqlite3.STMTSTATUS_VM_STEP, false)
}

func queryPlan(t *testing.T, db *DB, q reading) (plan []string) {
	t.Helper()
	if err := db.Read(t.Context(), func(b *Batch) {
		b.Query(func(s Scanner) error {
			var id, parent, unused int
			var line string
			err := s.Scan(&id, &parent, &unused, &line)
			plan = append(plan, line)
			return err
		}, `EXPLAIN QUERY PLAN `+q.sql, q.args...)
	}); err != nil {
		t.Fatal(err)
	}
	if len(plan) == 0 {
		t.Fatal("no plan")
	}
	return plan
}

// explain runs a reading and counts the rows of messages that PostgreSQL looked at.
func explain(t *testing.T, db *DB, q reading) (plan string, touched int) {
	t.Helper()
	if err := db.Read(t.Context(), func(b *Batch) {
		b.One([]any{&plan}, `EXPLAIN (ANALYZE, FORMAT JSON) `+q.sql, q.args...)
	}); err != nil {
		t.Fatal(err)
	}
	type node struct {
		Relation string  `json:"Relation Name"`
		Rows     float64 `json:"Actual Rows"`
		Loops    float64 `json:"Actual Loops"`
		Removed  float64 `json:"Rows Removed by Filter"`
		Recheck  float64 `json:"Rows Removed by Index Recheck"`
		Plans    []json.RawMessage
	}
	seen := false
	var walk func(raw json.RawMessage)
	walk = func(raw json.RawMessage) {
		var n node
		if err := json.Unmarshal(raw, &n); err != nil {
			t.Fatal(err)
		}
		if n.Relation == "messages" {
			seen = true
			touched += int(n.Loops * (n.Rows + n.Removed + n.Recheck))
		}
		for _, p := range n.Plans {
			walk(p)
		}
	}
	var top []struct{ Plan json.RawMessage }
	if err := json.Unmarshal([]byte(plan), &top); err != nil || len(top) != 1 {
		t.Fatalf("%v in %s", err, plan)
	}
	walk(top[0].Plan)
	if !seen {
		t.Fatalf("no messages in %s", plan)
	}
	return plan, touched
}
