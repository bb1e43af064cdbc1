package relocate

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/steptest"
	"claude-memory-backend/internal/tenant"
)

// idle goes on with a process that runs no jobs by itself.
func (h *house) idle() {
	h.t.Helper()
	snaps := h.svc.Snapshots
	h.node.end()
	h.node = h.startIdle("node-"+string(ident.New[ident.EventID]()), true)
	h.svc.Snapshots = snaps
}

// TestBackLeavesTheBusy: whoever is moved while others are looked at, or asks for an erasure when they are held, stays as
// they are; so does whoever had all data erased after the snapshot.
func TestBackLeavesTheBusy(t *testing.T) {
	h := newHouse(t)
	fleet := h.fleet(4, 0, 0, 1)
	h.upgrade(friendly)
	if r := h.migrate(FleetInput{}); r.Migrated != 4 {
		t.Fatalf("%+v", r)
	}
	h.idle()
	newest := tenant.Schema{Version: h.places.Newest()}
	wantStayed := func(m *member) {
		t.Helper()
		is := h.find(m)
		is.Schema.At = newest.At
		at, _, err := h.places.Look(t.Context(), is)
		if err != nil || is.Schema != newest || at.Version != newest.Version {
			t.Errorf("it is noted %+v and is %+v, %v", is.Schema, at, err)
		}
	}

	early, late, emptied, fine := fleet[0], fleet[1], fleet[2], fleet[3]
	b := &backRun{Service: h.svc, BackInput: BackInput{Tenants: []ident.TenantID{early.tenant.ID}, Parallel: 1}, report: &BackReport{}}
	if err := b.look(t.Context()); err != nil || len(b.list) != 1 {
		t.Fatalf("%+v, %v", b.report, err)
	}
	moved, err := h.svc.Activate(t.Context(), early.actor, early.tenant.ID, h.place(early.actor, early.tenant.ID, tenant.SQLite), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.hold(t.Context(), b.list[0]); fault.CodeOf(err) != "tenant_busy" {
		t.Errorf("a tenant that is moved was held: %v", err)
	}
	wantStayed(early)
	if j, err := h.runner.Do(t.Context(), moved.ID); err != nil || j.State != job.Completed {
		t.Fatalf("%+v, %v", j, err)
	}
	if err := b.hold(t.Context(), b.list[0]); fault.CodeOf(err) != "tenant_busy" {
		t.Errorf("a tenant that was moved was held: %v", err)
	}

	// As if another machine, without the snapshot, had erased the data.
	snaps := h.svc.Snapshots
	h.svc.Snapshots = nil
	j, err := h.svc.Erase(t.Context(), emptied.actor, emptied.tenant.ID, EraseData)
	if err != nil {
		t.Fatal(err)
	}
	if j, err = h.runner.Do(t.Context(), j.ID); err != nil || j.State != job.Completed {
		t.Fatalf("%+v, %v", j, err)
	}
	h.svc.Snapshots = snaps
	wantStayed(emptied)

	began := false
	r, err := h.svc.GoBack(t.Context(), BackInput{Tenants: []ident.TenantID{late.tenant.ID, emptied.tenant.ID, fine.tenant.ID}, Lose: true},
		func(int64, int64, string) {
			if !began { // they are held, and none has gone
				began = true
				if _, err := h.svc.Erase(t.Context(), late.actor, late.tenant.ID, EraseData); err != nil {
					t.Error(err)
				}
			}
		})
	if err != nil || r.Back != 1 || r.Failed != 2 || len(r.Details) != 1 || r.Details[0].Tenant != fine.tenant.ID {
		t.Fatalf("%+v, %v", r, err)
	}
	codes := map[ident.TenantID]string{}
	for _, f := range r.Failures {
		codes[f.Tenant] = f.Code
	}
	if codes[late.tenant.ID] != "tenant_busy" || codes[emptied.tenant.ID] != "snapshot_missing" {
		t.Errorf("%+v", r.Failures)
	}
	wantStayed(late)
	wantStayed(emptied)

	// Tidying removes what was erased elsewhere, and nothing else.
	if err := h.svc.TidySnapshots(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := snaps.Find(t.Context(), emptied.tenant.ID); fault.CodeOf(err) != "snapshot_missing" {
		t.Errorf("the snapshot of erased data is there: %v", err)
	}
	if _, err := snaps.Find(t.Context(), late.tenant.ID); err != nil {
		t.Error(err)
	}
}

// TestBackTellsAgain: what a tenant was told of its databases since is no change of its own that would be lost, and is told
// again when it may be changed again.
func TestBackTellsAgain(t *testing.T) {
	h := newHouse(t)
	fleet := h.fleet(1, 1, 0, 1)
	h.news = h.store
	h.upgrade(friendly)
	if r := h.migrate(FleetInput{}); r.Migrated != 2 {
		t.Fatalf("%+v", r)
	}
	type fact struct {
		of ident.TenantID
		id ident.EventID
	}
	told := func() (list []fact) {
		t.Helper()
		for _, m := range fleet {
			ws := h.acquire(m.actor, m.tenant.ID)
			all, err := ws.Events.Since(t.Context(), 0, 1000)
			ws.Release()
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range all {
				if strings.HasPrefix(e.Type, "database.") {
					list = append(list, fact{m.tenant.ID, e.ID})
				}
			}
		}
		return list
	}
	untold := func() (list []fact) {
		t.Helper()
		news, err := h.store.News(t.Context(), time.Now().Add(time.Hour), 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range news {
			list = append(list, fact{n.Tenant, n.Event.ID})
		}
		return list
	}
	until := func(f func() bool) {
		t.Helper()
		// Who was told in vain, since it was held, is told again after a minute.
		for deadline := time.Now().Add(3 * time.Minute); !f(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("told of %v, to be told of %v", told(), untold())
			}
		}
	}
	for _, m := range fleet {
		h.place(m.actor, m.tenant.ID, tenant.External)
	}
	until(func() bool { return len(told()) == 2 && len(untold()) == 0 })
	want := told()

	r, err := h.svc.GoBack(t.Context(), BackInput{}, nil)
	if err != nil || r.Back != 2 || r.Newer != 0 || r.Writers != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	if list := told(); len(list) != 0 {
		t.Errorf("gone back, they have been told of %v", list)
	}
	if r := h.migrate(FleetInput{}); r.Migrated != 2 {
		t.Fatalf("%+v", r)
	}
	for _, m := range fleet {
		if err := h.store.TellLater(t.Context(), m.tenant.ID, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	until(func() bool { return len(told()) == 2 && len(untold()) == 0 })
	if got := told(); !slices.Equal(got, want) {
		t.Errorf("told again of %v, want %v", got, want)
	}
}

// TestBackAfterAPutBack: what was put back from a backup is not taken back to a snapshot of what it was before, and does
// not hide what others wrote.
func TestBackAfterAPutBack(t *testing.T) {
	h := newHouse(t)
	fleet := h.fleet(1, 1, 0, 1)
	restored, other := fleet[0], fleet[1]
	write := func(m *member, n int) {
		t.Helper()
		ws := h.acquire(m.actor, m.tenant.ID)
		defer ws.Release()
		for range n {
			if _, err := ws.Conversations.Send(t.Context(), m.actor, m.conv, conversation.SendInput{Text: "a buoy"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	master, err := sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: filepath.Join(h.dir, "master.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	r := h.repository()
	if _, err := r.Backup(t.Context(), Installation{Master: master, Store: h.store, Places: h.places}, BackupOptions{}); err != nil {
		t.Fatal(err)
	}
	write(restored, 20)
	h.upgrade(friendly)
	if r := h.migrate(FleetInput{}); r.Migrated != 2 {
		t.Fatalf("%+v", r)
	}
	snaps := h.svc.Snapshots
	h.svc.Snapshots = nil // as on a machine that has none
	j, err := h.svc.PutBack(t.Context(), r, restored.tenant.ID, RestoreOptions{})
	if err != nil || j.State != job.Completed {
		t.Fatalf("%+v, %v", j, err)
	}
	h.svc.Snapshots = snaps
	// The step is taken again where nobody keeps a snapshot of it.
	steps, err := steptest.Next(friendly)
	if err != nil {
		t.Fatal(err)
	}
	db, err := h.places.Open(t.Context(), h.find(restored).Placement)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := steps.Migrate(t.Context(), db, sqlstore.Tenant); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	write(restored, 3)
	write(other, 10)
	back, err := h.svc.GoBack(t.Context(), BackInput{}, nil)
	if fault.CodeOf(err) != "newer_writes" || back.Back != 0 || back.Tenants != 1 || back.Without != 1 || back.Newer < 10 || back.Writers != 1 {
		t.Fatalf("%+v, %v", back, err)
	}
	back, err = h.svc.GoBack(t.Context(), BackInput{Tenants: []ident.TenantID{restored.tenant.ID}, Lose: true}, nil)
	if err != nil || back.Back != 0 || back.Failed != 1 || back.Failures[0].Code != "snapshot_missing" {
		t.Fatalf("%+v, %v", back, err)
	}
	h.wantUse(restored, "")
}

// TestReceiptNamesTheNode: where several machines keep snapshots, a receipt claims no more than what one of them did.
func TestReceiptNamesTheNode(t *testing.T) {
	h := newHouse(t)
	m := h.fleet(1, 0, 0, 1)[0]
	h.upgrade()
	h.svc.Sole = false
	h.svc.Spools = nil
	var r Receipt
	if err := h.svc.dropSnapshot(t.Context(), m.tenant.ID, &r); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(r.Stores)
	if err != nil || len(r.Stores) != 2 || r.Stores[1].Outcome != outcomeLeft || !strings.Contains(r.Stores[0].Name, h.node.name) {
		t.Errorf("%s, %v", raw, err)
	}
}

// TestFleetPausedLeavesTheBusy: when too many have failed, whoever was busy is not migrated at the end.
func TestFleetPausedLeavesTheBusy(t *testing.T) {
	h := newHouse(t)
	busy, actor := h.newTenant(tenant.SQLite)
	h.fleet(2, 0, 0, 1) // the first is in the way of the step
	old := h.places.Newest()
	h.upgrade(picky)
	h.idle()
	j, err := h.svc.Rekey(t.Context(), actor, busy.ID)
	if err != nil {
		t.Fatal(err)
	}
	freed := false
	r, err := h.svc.MigrateFleet(t.Context(), FleetInput{Parallel: 1, MaxFailures: 0}, func(done, _ int64, _ string) {
		if done == 2 && !freed {
			freed = true
			if _, err := h.svc.CancelJob(t.Context(), actor, j.ID); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil || !freed || r.Paused == "" || r.Failed != 1 || r.Left == 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	now, err := h.store.FindTenant(t.Context(), busy.ID)
	if err != nil {
		t.Fatal(err)
	}
	if at, _, err := h.places.Look(t.Context(), now); err != nil || now.Job != "" || at.Version != old {
		t.Errorf("it is at version %d, %v", at.Version, err)
	}
}
