package workspace

import (
	"context"
	"errors"
	"testing"
	"time"

	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/steptest"
	"claude-memory-backend/internal/tenant"
)

// NoteSchema implements Notes.
func (d *town) NoteSchema(_ context.Context, id ident.TenantID, seen tenant.Schema) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.tenants[id]
	t.Schema = seen
	d.tenants[id] = t
	return nil
}

func (d *town) schema(id ident.TenantID) tenant.Schema {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.tenants[id].Schema
	s.At = time.Time{}
	return s
}

// noTrail is the trail of a master database in which nothing happened.
type noTrail struct{}

func (noTrail) Append(context.Context, audit.Entry) error { return nil }
func (noTrail) Entries(context.Context, audit.Filter, string, int) ([]audit.Entry, string, error) {
	return nil, "", nil
}

// A step that two conversations of one title are in the way of, and one that does the same for everybody.
const (
	picky    = `ALTER TABLE conversations ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm'; CREATE UNIQUE INDEX one_title ON conversations (title);`
	friendly = `ALTER TABLE conversations ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm';`
)

// upgrade is a restart with a binary that has more steps.
func (h *house) upgrade(keep Keep, adjust func(*Config), more ...string) {
	h.t.Helper()
	steps, err := steptest.Next(more...)
	if err != nil {
		h.t.Fatal(err)
	}
	h.place, err = NewPlacements(h.t.Context(), PlacementsConfig{Root: h.place.root, Keys: h.keys, Steps: steps, Keep: keep})
	if err != nil {
		h.t.Fatal(err)
	}
	h.start(func(c *Config) {
		c.Notes, c.Trail = h.town, noTrail{}
		if adjust != nil {
			adjust(c)
		}
	})
}

// fill gives a tenant conversations of these titles, with a message in each, and returns the last.
func (h *house) fill(t tenant.Tenant, titles ...string) (last conversation.Conversation) {
	h.t.Helper()
	ws := h.acquire(t)
	defer ws.Release()
	actor := ident.Actor{Account: t.Account, Name: "Ada"}
	if _, err := ws.Projects.Create(h.t.Context(), actor, project.CreateInput{Details: project.Details{Name: "One"}}); err != nil {
		h.t.Fatal(err)
	}
	for _, title := range titles {
		var err error
		if last, err = ws.Conversations.Create(h.t.Context(), actor, conversation.CreateInput{Details: conversation.Details{Title: title}}); err != nil {
			h.t.Fatal(err)
		}
		if _, err := ws.Conversations.Send(h.t.Context(), actor, last.ID, conversation.SendInput{Text: "a harbour at night"}); err != nil {
			h.t.Fatal(err)
		}
	}
	return last
}

// do runs statements in a tenant's database behind everybody's back.
func (h *house) do(t tenant.Tenant, statements ...string) {
	h.t.Helper()
	db, err := h.place.Open(h.t.Context(), t.Placement)
	if err != nil {
		h.t.Fatal(err)
	}
	defer db.Close()
	if err := db.Write(h.t.Context(), func(tx *sqlstore.Tx) error {
		return tx.Commit(func(b *sqlstore.Batch) {
			for _, s := range statements {
				b.Exec(s)
			}
		})
	}); err != nil {
		h.t.Fatal(err)
	}
}

// wantReads reads through every service, and wantWrite writes, with the given code.
func (h *house) wantReads(t tenant.Tenant, c ident.ConversationID, conversations int) {
	h.t.Helper()
	ctx, actor := h.t.Context(), ident.Actor{Account: t.Account, Name: "Ada"}
	ws := h.acquire(t)
	defer ws.Release()
	list, _, err := ws.Conversations.List(ctx, actor, conversation.Query{Limit: 50})
	if err != nil || len(list) != conversations {
		h.t.Errorf("%d conversations, %v", len(list), err)
	}
	if ps, _, err := ws.Projects.List(ctx, actor, project.Query{Limit: 5}); err != nil || len(ps) != 1 {
		h.t.Errorf("%d projects, %v", len(ps), err)
	}
	if _, err := ws.Conversations.Find(ctx, actor, c); err != nil {
		h.t.Error(err)
	}
	ms, _, err := ws.Conversations.Messages(ctx, actor, c, conversation.MessageQuery{Limit: 5})
	if err != nil || len(ms) == 0 {
		h.t.Errorf("%d messages, %v", len(ms), err)
	}
	for _, m := range ms {
		if m.State == conversation.Streaming {
			h.t.Error("a message claims to be streaming, and nobody writes it")
		}
	}
	if hits, _, err := ws.Conversations.Search(ctx, actor, conversation.SearchInput{Text: "harbour", Limit: 5}); err != nil || len(hits) == 0 {
		h.t.Errorf("%d hits, %v", len(hits), err)
	}
	if es, _, err := ws.Audit.List(ctx, actor, audit.Filter{}, "", 5); err != nil || len(es) == 0 {
		h.t.Errorf("%d entries, %v", len(es), err)
	}
	if es, err := ws.Events.Since(ctx, 0, 5); err != nil || len(es) == 0 {
		h.t.Errorf("%d events, %v", len(es), err)
	}
}

func (h *house) wantWrite(t tenant.Tenant, c ident.ConversationID, code string) {
	h.t.Helper()
	ws := h.acquire(t)
	defer ws.Release()
	_, err := ws.Conversations.Send(h.t.Context(), ident.Actor{Account: t.Account, Name: "Ada"}, c, conversation.SendInput{Text: "more"})
	if got := fault.CodeOf(err); err == nil && code != "" || err != nil && got != code {
		h.t.Errorf("writing: %v; want %q", err, code)
	}
	if f, ok := errors.AsType[*fault.Error](err); ok && (f.Class != fault.Unavailable || f.After == 0) {
		h.t.Errorf("writing: %+v", f)
	}
}

// TestPoisonedTenant: a tenant that a step does not go with stays readable at its older schema, whatever else lives
// beside it, and is well again as soon as step or data are mended.
func TestPoisonedTenant(t *testing.T) {
	h := newHouse(t)
	before := h.place.Newest()
	bad, good := h.newTenant(), h.newTenant()
	c := h.fill(bad, "twins", "twins")
	other := h.fill(good, "one", "two")
	// An answer that nobody writes any more: it cannot be marked where nothing may be written.
	ws := h.acquire(bad)
	x, err := ws.Conversations.Send(t.Context(), ident.Actor{Account: bad.Account, Name: "Ada"}, c.ID,
		conversation.SendInput{Text: "#slow #long 10000", Reply: true})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Release()

	now := time.Now()
	h.upgrade(nil, func(c *Config) { c.Now = func() time.Time { return now } }, picky)
	if err := h.pool.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.wantReads(bad, c.ID, 2)
	h.wantWrite(bad, c.ID, "tenant_quarantined")
	reader := h.acquire(bad)
	if got, err := reader.Conversations.Turn(t.Context(), ident.Actor{Account: bad.Account}, c.ID, x.Turn.ID); err != nil ||
		got.Turn.State != conversation.Interrupted || got.Assistant.State != conversation.Interrupted {
		t.Errorf("%+v, %v", got, err)
	}
	if got := reader.Tenant.Shown(); got != tenant.Quarantined {
		t.Errorf("shown as %s", got)
	}
	reader.Release()
	h.wantReads(good, other.ID, 2)
	h.wantWrite(good, other.ID, "")
	if got := h.town.schema(bad.ID); got != (tenant.Schema{Version: before, Problem: "migration_failed"}) {
		t.Errorf("noted: %+v", got)
	}
	if got := h.town.schema(good.ID); got != (tenant.Schema{Version: before + 1}) {
		t.Errorf("noted: %+v", got)
	}
	if hint, there := h.town.hint(bad.ID); !there || hint.due.Before(now.Add(mendPause/2)) {
		t.Errorf("it is looked at again at %v, it is %v", hint.due, now)
	}

	t.Run("is tried again after a while, when its data is mended", func(t *testing.T) {
		h.do(bad, `UPDATE conversations SET title = id WHERE n = 2`)
		h.wantWrite(bad, c.ID, "tenant_quarantined")
		now = now.Add(mendPause)
		h.wantWrite(bad, c.ID, "")
		h.wantReads(bad, c.ID, 2)
		if got := h.town.schema(bad.ID); got != (tenant.Schema{Version: before + 1}) {
			t.Errorf("noted: %+v", got)
		}
	})
	t.Run("is well with a binary whose step is mended", func(t *testing.T) {
		h := newHouse(t)
		bad := h.newTenant()
		c := h.fill(bad, "twins", "twins")
		h.upgrade(nil, nil, picky)
		h.wantWrite(bad, c.ID, "tenant_quarantined")
		h.upgrade(nil, nil, friendly)
		h.wantWrite(bad, c.ID, "")
	})
}

func TestSchemasThatAreNotServed(t *testing.T) {
	for _, c := range []struct {
		name, code string
		damage     func(h *house, t tenant.Tenant)
	}{
		{"of a newer binary", "schema_newer", func(h *house, _ tenant.Tenant) { h.upgrade(nil, nil) }},
		{"half applied", "schema_damaged", func(h *house, t tenant.Tenant) {
			h.do(t, `DELETE FROM schema_migrations WHERE version = 1`)
		}},
		{"of other steps", "schema_damaged", func(h *house, t tenant.Tenant) {
			h.do(t, `UPDATE schema_migrations SET checksum = 'another' WHERE version = 1`)
		}},
		{"gone", "schema_damaged", func(h *house, t tenant.Tenant) {
			h.do(t, `DROP TABLE schema_migrations`)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHouse(t)
			h.upgrade(nil, nil, friendly)
			me, other := h.newTenant(), h.newTenant()
			h.fill(me, "one")
			_ = h.pool.Close(t.Context())
			h.upgrade(nil, nil, friendly)
			c.damage(h, me)
			_, err := h.pool.Acquire(t.Context(), ident.Actor{Account: me.Account}, me.ID)
			if !fault.Is(err, fault.Unavailable) || fault.CodeOf(err) != c.code {
				t.Errorf("%v", err)
			}
			if got := h.town.schema(me.ID).Problem; got != c.code {
				t.Errorf("noted: %q", got)
			}
			if c.code == "schema_damaged" {
				h.acquire(other).Release()
			}
			if _, err := h.place.Migrate(t.Context(), me); fault.CodeOf(err) != c.code {
				t.Errorf("migrating: %v", err)
			}
		})
	}
}

func TestHeldSchema(t *testing.T) {
	h := newHouse(t)
	me := h.newTenant()
	c := h.fill(me, "one")
	before := h.place.Newest()
	held := tenant.Schema{Version: before, Problem: tenant.SchemaHeld}
	h.upgrade(nil, nil, friendly)
	if err := h.town.NoteSchema(t.Context(), me.ID, held); err != nil {
		t.Fatal(err)
	}
	h.wantReads(me, c.ID, 1)
	h.wantWrite(me, c.ID, "tenant_quarantined")
	if got := h.town.schema(me.ID); got != held {
		t.Errorf("noted: %+v", got)
	}
	t.Run("is migrated when somebody asks for it, and open everywhere at once", func(t *testing.T) {
		m, err := h.place.Migrate(t.Context(), h.town.tenants[me.ID])
		if err != nil || m.From != before || m.Seen.Version != before+1 || m.Seen.Problem != "" {
			t.Fatalf("%+v, %v", m, err)
		}
		if err := h.town.NoteSchema(t.Context(), me.ID, m.Seen); err != nil {
			t.Fatal(err)
		}
		if err := h.pool.Refresh(t.Context(), me.ID); err != nil {
			t.Fatal(err)
		}
		h.wantWrite(me, c.ID, "")
	})
	t.Run("closes an open tenant to writers when it is told", func(t *testing.T) {
		if err := h.town.NoteSchema(t.Context(), me.ID, held); err != nil {
			t.Fatal(err)
		}
		if err := h.pool.Refresh(t.Context(), me.ID); err != nil {
			t.Fatal(err)
		}
		h.wantWrite(me, c.ID, "tenant_quarantined")
		h.wantReads(me, c.ID, 1)
	})
	t.Run("a binary of that version takes it as its own", func(t *testing.T) {
		old := newHouse(t)
		old.place.root, old.keys, old.town = h.place.root, h.keys, h.town
		other := old.newTenant()
		if err := old.town.NoteSchema(t.Context(), other.ID, held); err != nil {
			t.Fatal(err)
		}
		old.upgrade(nil, nil)
		c := old.fill(other, "one")
		old.wantWrite(other, c.ID, "")
		if got := old.town.schema(other.ID); got != (tenant.Schema{Version: before}) {
			t.Errorf("noted: %+v", got)
		}
	})
}

func TestKeepBeforeStep(t *testing.T) {
	h := newHouse(t)
	me := h.newTenant()
	c := h.fill(me, "one")
	before := h.place.Newest()
	kept := 0
	answer := error(fault.New(fault.Unavailable, "test", "storage_full", "the storage is full"))
	keep := func(ctx context.Context, of tenant.Tenant, db *sqlstore.DB, at sqlstore.Standing) error {
		kept++
		if of.ID != me.ID || at.Version != before || len(at.Pending) != 1 {
			t.Errorf("%s, %+v", of.ID, at)
		}
		if v, err := sqlstore.SchemaVersion(ctx, db); err != nil || v != before {
			t.Errorf("kept at version %d, %v", v, err)
		}
		return answer
	}
	h.upgrade(keep, nil, friendly)
	h.wantReads(me, c.ID, 1)
	h.wantWrite(me, c.ID, "tenant_quarantined")
	if got := h.town.schema(me.ID); kept != 1 || got != (tenant.Schema{Version: before, Problem: "snapshot_failed"}) {
		t.Errorf("kept %d times, noted: %+v", kept, got)
	}
	h.upgrade(keep, nil, friendly)
	answer = nil
	h.wantWrite(me, c.ID, "")
	h.upgrade(keep, nil, friendly)
	h.wantWrite(me, c.ID, "")
	if kept != 2 {
		t.Errorf("kept %d times", kept)
	}
	t.Run("looks again when another process was faster", func(t *testing.T) {
		me = h.newTenant()
		old := newHouse(t) // made with fewer steps
		old.place.root, old.keys, old.town = h.place.root, h.keys, h.town
		me = old.newTenant()
		kept = 0
		h.upgrade(func(ctx context.Context, of tenant.Tenant, _ *sqlstore.DB, _ sqlstore.Standing) error {
			kept++
			steps, err := steptest.Next(friendly)
			if err != nil {
				return err
			}
			db, err := h.place.Open(ctx, of.Placement)
			if err != nil {
				return err
			}
			_, err = steps.Migrate(ctx, db, sqlstore.Tenant)
			return errors.Join(err, db.Close(), fault.New(fault.Unavailable, "test", "schema_changed", "it was migrated"))
		}, nil, friendly)
		c := h.fill(me, "one")
		h.wantWrite(me, c.ID, "")
		if kept != 1 {
			t.Errorf("kept %d times", kept)
		}
	})
}
