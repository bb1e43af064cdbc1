package relocate

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"claude-memory-backend/internal/blob"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

// A tenant is put back while a server holds it open and writers go on, wherever it lives: whatever they were told is
// stored is in the database that is used from then on, or in the original that is kept.
func TestPutBackUnderLoad(t *testing.T) {
	h := newHouse(t)
	master, err := sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: filepath.Join(h.dir, "master.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	for _, c := range []struct{ lives, to, want tenant.Kind }{
		{tenant.SQLite, "", tenant.SQLite}, {tenant.Postgres, "", tenant.Postgres}, {tenant.External, "", tenant.External},
		{tenant.External, tenant.SQLite, tenant.SQLite}, {tenant.SQLite, tenant.Postgres, tenant.Postgres},
	} {
		t.Run(string(c.lives)+" to "+string(c.want), func(t *testing.T) {
			h.t = t
			ten, actor := h.newTenant(c.lives)
			w := h.fill(actor, ten.ID, 40)
			r := h.repository()
			w.start(4)
			w.more(5)
			report, err := r.Backup(t.Context(), Installation{Master: master, Store: h.store, Places: h.places}, BackupOptions{})
			if err != nil || report.Manifest.find(string(ten.ID)) == nil || report.Manifest.find(string(ten.ID)).Failed != "" {
				t.Fatalf("%+v, %v", report, err)
			}
			w.more(20)
			svc := New(Config{Store: h.store, Places: h.places, Keys: h.keys, Node: "command"})
			j, err := svc.PutBack(t.Context(), r, ten.ID, RestoreOptions{To: c.to})
			if err != nil || j.State != job.Completed {
				t.Fatalf("%+v, %v", j, err)
			}
			w.more(20) // they go on there
			w.stop()
			var told PutBackReport
			if err := json.Unmarshal(j.Report, &told); err != nil {
				t.Fatal(err)
			}
			now, err := h.store.FindTenant(t.Context(), ten.ID)
			if err != nil || now.Placement.Database != told.To || now.Placement.Kind != c.want || told.Unfenced != "" {
				t.Fatalf("%+v, %+v, %v", now, told, err)
			}
			old, err := h.store.FindDatabase(t.Context(), ten.ID, told.From)
			if err != nil {
				t.Fatal(err)
			}
			if d, err := h.store.FindDatabase(t.Context(), ten.ID, told.To); err != nil || d.Facts.SizeBytes < 1000 || d.Facts.CheckedAt != nil {
				t.Errorf("%+v, %v", d.Facts, err)
			}
			here, there := h.messages(now.Placement, w), h.messages(old.Placement, w)
			only := 0
			for id, text := range w.acked {
				if here[id] != text && there[id] != text {
					t.Errorf("acknowledged %q is nowhere", text)
				}
				if here[id] == "" {
					only++
				}
			}
			if only < 10 {
				t.Errorf("only %d messages were taken back: nothing was restored", only)
			}
			t.Logf("%d acknowledged, %d of them taken back, %d refused", len(w.acked), only, w.refused.Load())
		})
	}
}

// A command that restores is killed while the tenant is fenced, and the tenant's server is away: a server of ours takes
// back what was done as soon as it can, and no sooner gives it up.
func TestServersTakeBackRestores(t *testing.T) {
	h := newHouse(t)
	ten, actor := h.newTenant(tenant.External)
	w := h.fill(actor, ten.ID, 2)
	ws := h.acquire(actor, ten.ID)
	if err := sqlstore.Fence(t.Context(), ws.Database().Direct()); err != nil {
		t.Fatal(err)
	}
	ws.Release()
	h.node.end()
	at := func(a tenant.Address) {
		t.Helper()
		if _, err := h.store.UpdateDatabase(t.Context(), ten.ID, ten.Placement.Database, nil,
			func(_ tenant.Tenant, d tenant.Database) (tenant.Database, event.Change, error) {
				d.Placement.Address = a
				return d, event.Change{}, nil
			}); err != nil {
			t.Fatal(err)
		}
	}
	away := h.own
	away.Port = 1
	at(away)
	j, err := h.svc.newJob(KindRestore, ten, restoreInput{Snapshot: "x", To: h.half(ten.ID, tenant.SQLite).ID(), Kind: tenant.SQLite})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.store.InsertJob(t.Context(), j, event.Change{}); err != nil {
		t.Fatal(err)
	}
	h.leave(j)
	past := time.Now().Add(-time.Hour)
	if held, _, err := h.store.RenewJob(t.Context(), j.ID, "killed", past, job.Progress{}, json.RawMessage(`{}`)); err != nil || !held {
		t.Fatal(held, err)
	}
	h.node = h.start("node-b", true)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		now, err := h.store.FindJob(t.Context(), j.ID)
		if err != nil || now.State.Final() || time.Now().After(deadline) {
			t.Fatalf("%+v, %v", now, err)
		}
		if now.Attempts > 2 { // once in vain
			break
		}
	}
	at(h.own)
	if j = h.await(j.ID); j.State != job.Failed || j.Failure.Code != "restore_interrupted" {
		t.Fatalf("%+v, %+v", j, j.Failure)
	}
	w.pool = h.pool
	if err := w.say(t.Context(), 7, false); err != nil {
		t.Error(err)
	}
	if list, err := h.store.ListDatabases(t.Context(), ten.ID); err != nil || len(list) != 2 { // in use, and the first
		t.Errorf("%+v, %v", list, err)
	}
}

// messages reads the conversations of the writers in one database, whichever is in use.
func (h *house) messages(at tenant.Placement, w *writers) map[ident.MessageID]string {
	h.t.Helper()
	db, err := h.places.Open(h.t.Context(), at)
	if err != nil {
		h.t.Fatal(err)
	}
	defer db.Close()
	found := map[ident.MessageID]string{}
	for _, c := range w.convs {
		for cursor := ""; ; {
			list, next, err := sqlstore.NewTenantStore(db, nil).ListMessages(h.t.Context(), c,
				conversation.MessageQuery{All: true, Ascending: true, Limit: 200, Cursor: cursor})
			if err != nil {
				h.t.Fatal(err)
			}
			for _, m := range list {
				found[m.ID] = m.Content
			}
			if cursor = next; next == "" {
				break
			}
		}
	}
	return found
}

// A user's own server may send rows without end: what is kept of it is bounded, and the others do not wait for it.
func TestBackupBoundsUsersOwn(t *testing.T) {
	h := newHouse(t)
	master, err := sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: filepath.Join(h.dir, "master.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	mine, _ := h.newTenant(tenant.External)
	hosted, _ := h.newTenant(tenant.SQLite)
	s := &site{TB: t, Installation: Installation{Master: master, Store: h.store, Places: h.places}, keys: h.keys}
	s.write(mine, lorem(20_000))
	s.write(hosted, lorem(20_000))
	r := s.repository(folder(t))
	r.ownBytes = 1 << 20
	report, err := r.Backup(t.Context(), s.Installation, BackupOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range report.Reports {
		if refused := d.Owner == string(mine.ID); refused != (d.Err != nil) || refused && d.Failed != "backup_too_large" {
			t.Errorf("%s: %v", d.Owner, d.Err)
		}
	}
	snap, err := master.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	if order, err := snap.TenantIDs(t.Context()); err != nil || len(order) != 2 || order[1] != mine.ID {
		t.Errorf("the order is %v, %v", order, err)
	}
}

// The same on a server that speaks S3, which somebody else wrote.
func TestBackupOnS3(t *testing.T) {
	backend := s3mem.New()
	if err := backend.CreateBucket("backups"); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(gofakes3.New(backend).Server())
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	store, err := blob.Open(ctx, "s3://key:secret@"+server.Listener.Addr().String()+"/backups/here?tls=off")
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, "sqlite", keyring(t, siteKey))
	home, gone := s.newTenant(), s.newTenant()
	s.write(home, lorem(20_000))
	s.write(gone, "a canary in the cage")
	r := s.repository(store)
	s.backup(r, BackupOptions{Verify: true})
	s.erase(gone)
	second := s.backup(r, BackupOptions{Verify: true})
	if second.Erased != 1 || second.Reports[1].New.Files != 0 {
		t.Errorf("%+v", second)
	}
	into := blank(t, "sqlite", s.keys)
	report, err := r.RestoreAll(ctx, into.Installation, nil, RestoreOptions{})
	if err != nil || report.Failed() != 0 || len(report.Tenants) != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	if string(into.digest(into.open(home.ID))) != string(second.Manifest.find(string(home.ID)).Digest) {
		t.Error("it is not what it was")
	}
	if p, err := r.Prune(ctx, 1); err != nil || p.Snapshots != 1 {
		t.Errorf("%+v, %v", p, err)
	}
}
