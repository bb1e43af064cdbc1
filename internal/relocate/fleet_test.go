package relocate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/internal/blob"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/steptest"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/workspace"
)

// Steps: one that two conversations of one title are in the way of, its mended form, and one that nobody can take.
const (
	picky    = `ALTER TABLE conversations ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm'; CREATE UNIQUE INDEX one_title ON conversations (title);`
	friendly = `ALTER TABLE conversations ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm';`
	hopeless = `CREATE UNIQUE INDEX one_role ON messages (role);`
)

// member is a tenant of a fleet.
type member struct {
	tenant tenant.Tenant
	actor  ident.Actor
	conv   ident.ConversationID
	ill    bool
	digest sqlstore.Digest
}

// fleet makes tenants with a little in them; of some, two conversations have one title.
func (h *house) fleet(files, schemas, own, ill int) []*member {
	h.t.Helper()
	var list []*member
	add := func(kind tenant.Kind, n int) {
		for range n {
			m := &member{ill: len(list)%((files+schemas+own)/ill) == 0}
			m.tenant, m.actor = h.newTenant(kind)
			ws := h.acquire(m.actor, m.tenant.ID)
			for i := range 2 {
				title := fmt.Sprint("talk ", i)
				if m.ill {
					title = "twins"
				}
				c, err := ws.Conversations.Create(h.t.Context(), m.actor, conversation.CreateInput{Details: conversation.Details{Title: title}})
				if err != nil {
					h.t.Fatal(err)
				}
				if _, err := ws.Conversations.Send(h.t.Context(), m.actor, c.ID, conversation.SendInput{Text: "a lighthouse"}); err != nil {
					h.t.Fatal(err)
				}
				m.conv = c.ID
			}
			ws.Release()
			m.digest = h.digest(m.tenant.ID)
			list = append(list, m)
		}
	}
	add(tenant.External, own)
	add(tenant.Postgres, schemas)
	add(tenant.SQLite, files)
	slices.SortFunc(list, func(a, b *member) int {
		if a.tenant.ID < b.tenant.ID {
			return -1
		}
		return 1
	})
	return list
}

// upgrade is a restart with a binary that has more steps.
func (h *house) upgrade(more ...string) {
	h.t.Helper()
	h.node.end()
	steps, err := steptest.Next(more...)
	if err != nil {
		h.t.Fatal(err)
	}
	snaps := NewSnapshots(func(ctx context.Context) (blob.Store, error) {
		return blob.Open(ctx, filepath.Join(h.dir, "snapshots"))
	}, h.keys)
	h.places, err = workspace.NewPlacements(h.t.Context(), workspace.PlacementsConfig{Root: filepath.Join(h.dir, "tenants"), Keys: h.keys,
		Hosts: h.hosts, Externals: h.externals, Steps: steps, Keep: snaps.Keep})
	if err != nil {
		h.t.Fatal(err)
	}
	h.node = h.start("node-"+string(ident.New[ident.EventID]()), true)
	h.svc.Snapshots = snaps
}

func (h *house) find(m *member) tenant.Tenant {
	h.t.Helper()
	t, err := h.store.FindTenant(h.t.Context(), m.tenant.ID)
	if err != nil {
		h.t.Fatal(err)
	}
	return t
}

// wantUse reads, and writes with the given code, through the pool.
func (h *house) wantUse(m *member, code string) {
	h.t.Helper()
	ws := h.acquire(m.actor, m.tenant.ID)
	defer ws.Release()
	list, _, err := ws.Conversations.List(h.t.Context(), m.actor, conversation.Query{Limit: 10})
	if err != nil || len(list) < 2 {
		h.t.Errorf("%s: %d conversations, %v", m.tenant.Placement.Kind, len(list), err)
	}
	hits, _, err := ws.Conversations.Search(h.t.Context(), m.actor, conversation.SearchInput{Text: "lighthouse", Limit: 5})
	if err != nil || len(hits) == 0 {
		h.t.Errorf("%s: %d hits, %v", m.tenant.Placement.Kind, len(hits), err)
	}
	_, err = ws.Conversations.Send(h.t.Context(), m.actor, m.conv, conversation.SendInput{Text: "more"})
	if got := fault.CodeOf(err); (err == nil) != (code == "") || err != nil && got != code {
		h.t.Errorf("%s: writing: %v; want %q", m.tenant.Placement.Kind, err, code)
	}
}

// standing counts the tenants by what is noted of them.
func (h *house) standing(list []*member) map[tenant.Schema]int {
	h.t.Helper()
	n := map[tenant.Schema]int{}
	for _, m := range list {
		s := h.find(m).Schema
		s.At = time.Time{}
		n[s]++
	}
	return n
}

func (h *house) migrate(in FleetInput) *FleetReport {
	h.t.Helper()
	r, err := h.svc.MigrateFleet(h.t.Context(), in, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func TestFleet(t *testing.T) {
	h := newHouse(t)
	const all, ill = 60, 4
	fleet := h.fleet(45, 12, 3, ill)
	old := h.places.Newest()
	failed := tenant.Schema{Version: old, Problem: "migration_failed"}
	var well, sick []*member
	for _, m := range fleet {
		if m.ill {
			sick = append(sick, m)
		} else {
			well = append(well, m)
		}
	}
	if len(fleet) != all || len(sick) != ill || !sick[0].ill || fleet[0] != sick[0] {
		t.Fatalf("%d tenants, %d of them ill", len(fleet), len(sick))
	}

	t.Run("a plan looks and changes nothing", func(t *testing.T) {
		h.t = t
		h.upgrade(picky)
		r := h.migrate(FleetInput{Plan: true})
		if r.Tenants != all || r.Left != all || r.Migrated+r.Failed+r.UpToDate != 0 || r.Target != old+1 ||
			len(r.Steps) != 1 || !slices.Equal(r.Versions, []VersionCount{{old, all}}) {
			t.Errorf("%+v", r)
		}
		if got := h.standing(fleet); got[tenant.Schema{Version: old}] != all {
			t.Errorf("%v", got)
		}
	})
	t.Run("a canary that fails ends it", func(t *testing.T) {
		h.t = t
		r := h.migrate(FleetInput{Canary: 5, MaxFailures: 1})
		if r.Failed != 1 || r.Migrated != 0 || r.Left != all-1 || r.Paused == "" || len(r.Failures) != 1 {
			t.Fatalf("%+v", r)
		}
		f := r.Failures[0]
		if f.Tenant != fleet[0].tenant.ID || f.Code != "migration_failed" || f.Step == "" || f.Version != old || f.Do == "" {
			t.Errorf("%+v", f)
		}
	})
	t.Run("a step that fails everywhere is soon given up", func(t *testing.T) {
		h.t = t
		h.upgrade(hopeless)
		r := h.migrate(FleetInput{MaxFailures: 0.05, Parallel: 2})
		// 3 of 60 may fail; the one that is known to fail does not count, and one is under way when the fourth has failed.
		if r.Failed < 4 || r.Failed > 6 || r.Migrated != 0 || r.Paused == "" || r.Left != all-r.Failed {
			t.Errorf("%+v", r)
		}
		for _, m := range well[:2] {
			h.wantUse(m, "tenant_quarantined")
		}
	})
	t.Run("it is interrupted in the middle, and goes on", func(t *testing.T) {
		h.t = t
		h.upgrade(picky)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r, err := h.svc.MigrateFleet(ctx, FleetInput{MaxFailures: 0.05}, func(done, total int64, unit string) {
			if done >= 20 { // two that end at once may both tell of the later one
				cancel()
			}
		})
		if err == nil || r.Migrated < 10 || r.Left < 20 || r.Migrated+r.Failed+r.Left != all {
			t.Fatalf("%+v, %v", r, err)
		}
		// Whatever the notes say is true.
		for _, m := range fleet {
			ten := h.find(m)
			at, _, err := h.places.Look(t.Context(), ten)
			if err != nil || at.Version != ten.Schema.Version && ten.Schema.Version != old {
				t.Errorf("noted %+v, is %+v, %v", ten.Schema, at, err)
			}
		}
		first := r.Migrated
		r = h.migrate(FleetInput{MaxFailures: 0.05})
		if r.Migrated+r.UpToDate != all-ill || r.UpToDate < first || r.Failed != ill || r.Left != 0 || r.Paused != "" ||
			!slices.Equal(r.Versions, []VersionCount{{old, ill}, {old + 1, all - ill}}) {
			t.Errorf("%+v", r)
		}
		if got := h.standing(fleet); got[failed] != ill || got[tenant.Schema{Version: old + 1}] != all-ill {
			t.Errorf("%v", got)
		}
	})
	t.Run("who failed stays readable and is listed, two versions side by side", func(t *testing.T) {
		h.t = t
		for _, m := range sick {
			h.wantUse(m, "tenant_quarantined")
		}
		r := h.migrate(FleetInput{Plan: true})
		if len(r.Failures) != ill || r.Left != ill || r.UpToDate != all-ill {
			t.Errorf("%+v", r)
		}
		for i, f := range r.Failures {
			if f.Tenant != sick[i].tenant.ID || f.Code != "migration_failed" {
				t.Errorf("%+v", f)
			}
		}
	})
	kinds := func(list []*member) (some []*member) { // one of each kind
		for _, kind := range []tenant.Kind{tenant.SQLite, tenant.Postgres, tenant.External} {
			for _, m := range list {
				if m.tenant.Placement.Kind == kind {
					some = append(some, m)
					break
				}
			}
		}
		return some
	}
	some := kinds(well)
	t.Run("they go back to what they were", func(t *testing.T) {
		h.t = t
		r, err := h.svc.GoBack(t.Context(), BackInput{}, nil)
		if err != nil || r.Tenants != all-ill || r.Back != all-ill || r.Without != ill || r.Newer != 0 || len(r.Details) != all-ill || len(r.Failures) != 0 {
			t.Fatalf("%+v, %v", r, err)
		}
		for _, m := range well {
			if got := h.digest(m.tenant.ID); got.Sum != m.digest.Sum {
				t.Errorf("%s is not what it was", m.tenant.Placement.Kind)
			}
		}
		if got := h.standing(fleet); got[failed] != ill || got[tenant.Schema{Version: old, Problem: tenant.SchemaHeld}] != all-ill {
			t.Errorf("%v", got)
		}
		for _, m := range some {
			h.wantUse(m, "tenant_quarantined")
		}
		h.upgrade(picky) // also after a restart
		for _, m := range some {
			h.wantUse(m, "tenant_quarantined")
		}
		h.upgrade() // the binary before takes them as its own
		for _, m := range some {
			h.wantUse(m, "")
		}
	})
	t.Run("and forward again, with those that the mended step is good for", func(t *testing.T) {
		h.t = t
		h.upgrade(friendly)
		r := h.migrate(FleetInput{MaxFailures: 0})
		if r.Migrated != all || r.Failed != 0 || r.Left != 0 {
			t.Fatalf("%+v", r)
		}
		for _, m := range append(kinds(sick), some...) {
			h.wantUse(m, "")
		}
	})
	t.Run("who was closed by a process that was killed is opened again when nobody wants it any more", func(t *testing.T) {
		h.t = t
		before := h.standing(fleet)
		one, err := h.store.FindTenant(t.Context(), well[0].tenant.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.svc.noteSeen(t.Context(), one, tenant.Schema{Version: old + 1, Problem: tenant.SchemaHeld}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(job.ErrCancelled)
		if _, err := h.svc.back(ctx, &job.Run{Job: job.Job{Kind: KindBack, Attempts: 2, Input: []byte(`{}`)}}); !errors.Is(err, job.ErrCancelled) {
			t.Error(err)
		}
		if after := h.standing(fleet); !maps.Equal(before, after) {
			t.Errorf("%v became %v", before, after)
		}
	})
	t.Run("what was written since is not lost unless somebody says so", func(t *testing.T) {
		h.t = t
		writers := kinds(fleet)
		n := map[ident.TenantID]bool{}
		for _, m := range writers {
			h.wantUse(m, "")
			n[m.tenant.ID] = true
		}
		for _, m := range append(kinds(sick), some...) {
			n[m.tenant.ID] = true // they wrote when it went well again
		}
		before := h.standing(fleet)
		r, err := h.svc.GoBack(t.Context(), BackInput{}, nil)
		if fault.CodeOf(err) != "newer_writes" || r.Writers != int64(len(n)) || r.Newer < r.Writers || r.Back != 0 {
			t.Fatalf("%+v, %v", r, err)
		}
		if after := h.standing(fleet); len(after) != 1 || after[tenant.Schema{Version: old + 1}] != before[tenant.Schema{Version: old + 1}] {
			t.Errorf("%v became %v", before, after)
		}
		one := writers[0].tenant.ID
		lost, err := h.svc.GoBack(t.Context(), BackInput{Tenants: []ident.TenantID{one}, Lose: true}, nil)
		if err != nil || lost.Back != 1 || lost.Newer < 1 || lost.Details[0].Newer != lost.Newer || lost.Details[0].To != old {
			t.Fatalf("%+v, %v", lost, err)
		}
		if got := h.standing(fleet); got[tenant.Schema{Version: old, Problem: tenant.SchemaHeld}] != 1 {
			t.Errorf("%v", got)
		}
		if _, err := h.svc.GoBack(t.Context(), BackInput{Tenants: []ident.TenantID{"ten_nobody"}}, nil); fault.CodeOf(err) != "tenant_unknown" {
			t.Error(err)
		}
	})
}

// TestFleetJob: as a job it has progress and a report, is the only one of its kind, and ends when it is cancelled.
func TestFleetJob(t *testing.T) {
	h := newHouse(t)
	fleet := h.fleet(6, 2, 0, 1)
	h.upgrade(picky)
	var once sync.Once
	reached, cancelled := make(chan struct{}), make(chan struct{})
	steps, err := steptest.Next(picky)
	if err != nil {
		t.Fatal(err)
	}
	inner := h.svc.Snapshots.Keep
	h.places, err = workspace.NewPlacements(t.Context(), workspace.PlacementsConfig{Root: filepath.Join(h.dir, "tenants"), Keys: h.keys,
		Hosts: h.hosts, Externals: h.externals, Steps: steps, Keep: func(ctx context.Context, of tenant.Tenant, db *sqlstore.DB, at sqlstore.Standing) error {
			if of.ID == fleet[4].tenant.ID {
				once.Do(func() { close(reached); <-cancelled; <-ctx.Done() })
			}
			return inner(ctx, of, db, at)
		}})
	if err != nil {
		t.Fatal(err)
	}
	h.svc.Places = h.places
	j, err := h.svc.StartFleet(t.Context(), ident.System(""), FleetInput{MaxFailures: 1, Parallel: 1})
	if err != nil {
		t.Fatal(err)
	}
	<-reached
	if other, err := h.svc.StartFleet(t.Context(), ident.System(""), FleetInput{}); fault.CodeOf(err) != "fleet_busy" || other.ID != j.ID {
		t.Errorf("%s, %v", other.ID, err)
	}
	if _, err := h.svc.StartBack(t.Context(), ident.System(""), BackInput{}); fault.CodeOf(err) != "fleet_busy" {
		t.Error(err)
	}
	if _, err := h.svc.CancelJob(t.Context(), ident.System(""), j.ID); err != nil {
		t.Fatal(err)
	}
	close(cancelled)
	j = h.await(j.ID)
	var r FleetReport
	if err := json.Unmarshal(j.Report, &r); err != nil || j.State != job.Cancelled || r.Migrated != 3 || r.Failed != 1 || r.Left != 4 {
		t.Fatalf("%s %s, %v", j.State, j.Report, err)
	}
	if j.Progress.Done != 4 || j.Progress.Total != 8 || j.Progress.Unit != "tenants" {
		t.Errorf("%+v", j.Progress)
	}
	j, err = h.svc.StartFleet(t.Context(), ident.System(""), FleetInput{MaxFailures: 1})
	if err != nil {
		t.Fatal(err)
	}
	j = h.await(j.ID)
	if err := json.Unmarshal(j.Report, &r); err != nil || j.State != job.Completed || r.Migrated != 4 || r.Failed != 1 || r.UpToDate != 3 || r.Left != 0 {
		t.Fatalf("%s %s, %v", j.State, j.Report, err)
	}
}
