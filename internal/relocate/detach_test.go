package relocate

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

// TestNothingElseIsTouched: a user's database has tables of the user's under all our names. A tenant moves in, works, moves
// out and lets go, and PostgreSQL counted no access to any of them. What stays is ours, complete, explained and readable
// without us, and nobody here has its password any more.
func TestNothingElseIsTouched(t *testing.T) {
	h := newHouse(t)
	pool, err := sqlstore.NewPostgresPool(t.Context(), seal.Secret(fmt.Sprintf("postgres://%s:%s@%s:%d/%s?sslmode=disable", h.own.Username,
		h.password.Reveal(), h.own.Host, h.own.Port, h.own.Database)), 2)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	owner := sqlstore.OpenPostgres(pool, sqlstore.PostgresOptions{Schema: "public"})
	names := []string{"projects", "conversations", "branches", "messages", "turns", "systems", "log_head", "events", "audit",
		"idempotency", "usage", "message_words", "title_words", "schema_migrations", "captured_changes"}
	if err := owner.Write(t.Context(), func(tx *sqlstore.Tx) error {
		return tx.Commit(func(b *sqlstore.Batch) {
			for _, name := range names {
				b.Exec(`CREATE TABLE public.` + name + ` (id text PRIMARY KEY, note text)`)
				b.Exec(`INSERT INTO public.` + name + ` VALUES ('mine', 'not yours')`)
			}
		})
	}); err != nil {
		t.Fatal(err)
	}
	// touched is how often tables of a schema, or of all but that, were read or written.
	touched := func(schema string, but bool) (n int64) {
		t.Helper()
		if err := owner.Read(t.Context(), func(b *sqlstore.Batch) {
			b.One([]any{&n}, `SELECT CAST(coalesce(sum(seq_scan + coalesce(idx_scan, 0) + n_tup_ins + n_tup_upd + n_tup_del), 0) AS BIGINT)
				FROM pg_stat_user_tables WHERE (schemaname = ?) = (? = 0)`, schema, but)
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	// Counters come late; those of the owner's own work are waited for.
	wait := func(what string, there func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !there(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("it never came to pass: %s", what)
			}
		}
	}
	// Table by table: a server that is busy counts what was one transaction at several times.
	counted := func() (n int) {
		t.Helper()
		if err := owner.Read(t.Context(), func(b *sqlstore.Batch) {
			b.One([]any{&n}, `SELECT count(*) FROM pg_stat_user_tables WHERE schemaname = 'public' AND n_tup_ins > 0`)
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	wait("the owner's own writes are counted", func() bool { return counted() == len(names) })
	before := touched("public", false)

	ten, actor := h.newTenant(tenant.SQLite)
	h.fill(actor, ten.ID, 5)
	own := h.place(actor, ten.ID, tenant.External)
	h.moveTo(actor, ten.ID, own)
	h.fill(actor, ten.ID, 7).check2(t)
	h.moveTo(actor, ten.ID, h.place(actor, ten.ID, tenant.SQLite))
	if _, err := h.svc.Release(t.Context(), actor, ten.ID, own); err != nil {
		t.Fatal(err)
	}
	var schema string
	if err := owner.Read(t.Context(), func(b *sqlstore.Batch) {
		b.One([]any{&schema}, `SELECT nspname FROM pg_namespace WHERE nspname LIKE 'claude_memory_%'`)
	}); err != nil || schema == "" {
		t.Fatalf("%q, %v", schema, err)
	}
	wait("our own work is counted", func() bool { return touched(schema, false) > 100 })
	if now := touched(schema, true); now != before {
		t.Errorf("tables of the user's were touched %d times", now-before)
	}

	// The owner reads, and may change, what we left.
	var messages, explained, tables int64
	var text string
	if err := owner.Read(t.Context(), func(b *sqlstore.Batch) {
		b.One([]any{&messages}, `SELECT count(*) FROM `+schema+`.messages`)
		b.One([]any{&text}, `SELECT content FROM `+schema+`.messages ORDER BY n LIMIT 1`)
		b.One([]any{&tables, &explained}, `SELECT count(*), count(obj_description(c.oid, 'pg_class')) FROM pg_class c
			WHERE c.relnamespace = CAST(? AS regnamespace) AND c.relkind = 'r'`, schema)
	}); err != nil {
		t.Fatal(err)
	}
	if messages != 12 || !strings.Contains(text, "lighthouse") || tables < 10 || explained != tables {
		t.Errorf("%d messages, the first %q; %d of %d tables are explained", messages, text, explained, tables)
	}
	if err := owner.Write(t.Context(), func(tx *sqlstore.Tx) error {
		return tx.Commit(func(b *sqlstore.Batch) { b.Exec(`UPDATE ` + schema + `.projects SET name = 'mine again'`) })
	}); err != nil {
		t.Errorf("the owner cannot change it: %v", err)
	}
	d, err := h.store.FindDatabase(t.Context(), ten.ID, own)
	if err != nil || d.State != tenant.Released || d.Placement.SealedPassword != nil {
		t.Errorf("%s, a password: %v, %v", d.State, d.Placement.SealedPassword != nil, err)
	}
}
