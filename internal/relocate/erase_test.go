package relocate

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

// TestEraseAccount: nothing of the tenant is left at any of the places where it had been, and it cannot come back.
func TestEraseAccount(t *testing.T) {
	h := newHouse(t)
	ten, actor := h.newTenant(tenant.SQLite)
	other, otherActor := h.newTenant(tenant.SQLite)
	h.fill(otherActor, other.ID, 2)
	actor.Name, actor.Address = "Adelheid Seefahrer", "198.51.100.77"
	h.fill(actor, ten.ID, 5)
	if err := h.store.Refuse(t.Context(), account.Refusal{Actor: ident.Actor{Address: actor.Address}, At: time.Now(), Action: "session.refused",
		Subject: string(actor.Account), Detail: json.RawMessage(`{}`)}); err != nil {
		t.Fatal(err)
	}
	// It has lived in a file, in the operator's PostgreSQL and in its owner's.
	h.moveTo(actor, ten.ID, h.place(actor, ten.ID, tenant.Postgres))
	h.moveTo(actor, ten.ID, h.place(actor, ten.ID, tenant.External))
	list, err := h.svc.Databases(t.Context(), actor, ten.ID)
	if err != nil || len(list) != 3 {
		t.Fatalf("%+v, %v", list, err)
	}
	_, err = h.svc.Erase(t.Context(), otherActor, ten.ID, EraseAccount)
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("a stranger may erase: %v", err)
	}
	j, err := h.svc.Erase(t.Context(), actor, ten.ID, EraseAccount)
	if err != nil {
		t.Fatal(err)
	}
	j = h.await(j.ID)
	var r Receipt
	if err := json.Unmarshal(j.Report, &r); err != nil || j.State != job.Completed {
		t.Fatalf("%+v, %v", j, err)
	}
	erased, pending := 0, 0
	for _, s := range r.Stores {
		switch {
		case s.Outcome == outcomeErased:
			erased++
		case s.Outcome == "pending" && s.Store == "backups": // there was no backup since
			pending++
		}
	}
	if r.Tenant != ten.ID || erased != 5 || pending != 1 || len(r.Stores) != 6 {
		t.Errorf("%+v", r)
	}
	if !h.svc.Check(r) {
		t.Error("the receipt does not verify")
	}
	r.Stores = r.Stores[1:]
	if h.svc.Check(r) {
		t.Error("a changed receipt verifies")
	}
	for _, d := range list {
		db, err := h.places.Open(t.Context(), d.Placement)
		if err == nil {
			_, err = sqlstore.SchemaVersion(t.Context(), db)
			if v, verr := sqlstore.SchemaVersion(t.Context(), db); verr == nil && v == 0 {
				err = fault.Missing("the schema is gone")
			}
			_ = db.Close()
		}
		if err == nil {
			t.Errorf("%s still opens", d.Placement.Kind)
		}
	}
	if _, err := h.store.FindTenant(t.Context(), ten.ID); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if _, _, err := h.store.FindAccount(t.Context(), ten.Account); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if _, err := h.pool.Acquire(t.Context(), actor, ten.ID); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	ledger, err := h.store.Erasures(t.Context(), "", 10)
	if err != nil || len(ledger) != 1 || ledger[0].Tenant != ten.ID {
		t.Errorf("%+v, %v", ledger, err)
	}
	ws := h.acquire(otherActor, other.ID) // nobody else noticed
	ws.Release()
	// The receipt says that names and addresses are removed: they are in none of the master's files.
	h.node.end()
	if err := h.store.Scrub(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"master.db", "master.db-wal"} {
		raw, err := os.ReadFile(filepath.Join(h.dir, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, what := range []string{actor.Name, actor.Address} {
			if bytes.Contains(raw, []byte(what)) {
				t.Errorf("%s still knows %s", file, what)
			}
		}
	}
}

// TestEraseData empties the tenant and leaves its owner an account that works. Not even the bytes of the file keep
// what was in it.
func TestEraseData(t *testing.T) {
	h := newHouse(t)
	for _, kind := range []tenant.Kind{tenant.SQLite, tenant.Postgres, tenant.External} {
		h.t = t
		ten, actor := h.newTenant(kind)
		w := h.fill(actor, ten.ID, 5)
		before := h.files()
		j, err := h.svc.Erase(t.Context(), actor, ten.ID, EraseData)
		if err != nil {
			t.Fatal(err)
		}
		if j = h.await(j.ID); j.State != job.Completed {
			t.Fatalf("%s: %+v %+v", kind, j, j.Failure)
		}
		var r Receipt
		if err := json.Unmarshal(j.Report, &r); err != nil || len(r.Stores) == 0 || !h.svc.Check(r) {
			t.Errorf("%s: %+v, %v", kind, r, err)
		}
		if how := map[tenant.Kind]string{tenant.SQLite: "file written anew under a new key", tenant.Postgres: "into new files",
			tenant.External: "into new files"}[kind]; !slices.ContainsFunc(r.Stores, func(s ErasedStore) bool {
			return s.Store == KindName(kind) && s.Outcome == outcomeErased && strings.Contains(s.Method, how)
		}) || slices.ContainsFunc(r.Stores, func(s ErasedStore) bool { return s.Outcome == outcomeLeft }) {
			t.Errorf("%s: %+v", kind, r.Stores)
		}
		ws := h.acquire(actor, ten.ID)
		cs, _, err := ws.Conversations.List(t.Context(), actor, conversation.Query{Limit: 10})
		if err != nil || len(cs) != 0 {
			t.Errorf("%s: %d conversations, %v", kind, len(cs), err)
		}
		if _, _, err := ws.Conversations.Messages(t.Context(), actor, w.convs[0], conversation.MessageQuery{Limit: 1}); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %v", kind, err)
		}
		hits, _, err := ws.Conversations.Search(t.Context(), actor, conversation.SearchInput{Text: "lighthouse", Limit: 5})
		if err != nil || len(hits) != 0 {
			t.Errorf("%s: %d hits, %v", kind, len(hits), err)
		}
		ws.Release()
		w = h.fill(actor, ten.ID, 2) // it goes on being used
		w.check2(t)
		if kind == tenant.SQLite {
			for name := range before {
				if _, err := os.Stat(name); err == nil && before[name] == string(ten.Placement.Database)[3:] {
					t.Errorf("the old file %s is there", filepath.Base(name))
				}
			}
		}
	}
}

// TestEmptiedServer: the receipt claims of a server's files what was done to them.
func TestEmptiedServer(t *testing.T) {
	for _, c := range []struct {
		done sqlstore.Emptied
		left string
	}{
		{sqlstore.Emptied{}, "the tables' files"},
		{sqlstore.Emptied{Anew: true}, "statistics"},
		{sqlstore.Emptied{Anew: true, Forgotten: true}, ""},
	} {
		var r Receipt
		store := ErasedStore{Store: "external", Name: "db_1", Method: "rows deleted", Outcome: outcomeErased}
		emptiedServer(&r, &store, c.done)
		if anew := strings.Contains(store.Method, "new files"); anew != c.done.Anew {
			t.Errorf("%+v: %s", c.done, store.Method)
		}
		if c.left == "" && len(r.Stores) != 0 ||
			c.left != "" && (len(r.Stores) != 1 || r.Stores[0].Outcome != outcomeLeft || !strings.Contains(r.Stores[0].Name, c.left)) {
			t.Errorf("%+v: %+v", c.done, r.Stores)
		}
	}
}

// TestEraseDataGoesOn: whoever erases is killed while the file is about to be changed for another one. What was begun is
// taken back, and the data erased.
func TestEraseDataGoesOn(t *testing.T) {
	h := newHouse(t)
	h.node.end()
	h.node = h.startIdle("node-a", true)
	ten, actor := h.newTenant(tenant.SQLite)
	h.fill(actor, ten.ID, 3)
	j, err := h.svc.Erase(t.Context(), actor, ten.ID, EraseData)
	if err != nil {
		t.Fatal(err)
	}
	h.leave(j)
	half := h.half(ten.ID, tenant.SQLite)
	ws := h.acquire(actor, ten.ID)
	if err := sqlstore.StartCapture(t.Context(), ws.Database().Direct()); err != nil {
		t.Fatal(err)
	}
	if err := sqlstore.Fence(t.Context(), ws.Database().Direct()); err != nil {
		t.Fatal(err)
	}
	ws.Release()
	h.node.end()
	h.node = h.start("node-b", true)
	if j = h.await(j.ID); j.State != job.Completed {
		t.Fatalf("%+v", j.Failure)
	}
	h.fill(actor, ten.ID, 2).check2(t)
	list, err := h.store.ListDatabases(t.Context(), ten.ID)
	if err != nil || len(list) != 1 || list[0].ID() != half.ID() || list[0].State != tenant.InUse {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestEraseDataFrozen: what the operator froze is not erased, whether that was before it was asked for or after.
func TestEraseDataFrozen(t *testing.T) {
	h := newHouse(t)
	h.node.end()
	h.node = h.startIdle("node-a", true)
	ten, actor := h.newTenant(tenant.SQLite)
	w := h.fill(actor, ten.ID, 2)
	freeze := func(state tenant.State) {
		t.Helper()
		if _, err := h.svc.SetState(t.Context(), ident.System(""), ten.ID, state); err != nil {
			t.Fatal(err)
		}
	}
	codes := map[tenant.State]string{tenant.ReadOnly: "tenant_read_only", tenant.Quarantined: "tenant_quarantined",
		tenant.Suspended: "tenant_suspended"}
	for state, code := range codes {
		freeze(state)
		_, err := h.svc.Erase(t.Context(), actor, ten.ID, EraseData)
		wantCode(t, err, code)
		freeze(tenant.Active)
		j, err := h.svc.Erase(t.Context(), actor, ten.ID, EraseData) // the refused one is not in the way
		if err != nil {
			t.Fatal(err)
		}
		freeze(state)
		j, err = h.runner.Do(t.Context(), j.ID)
		if err != nil || j.State != job.Failed || j.Failure.Code != code {
			t.Errorf("%s: %+v, %+v, %v", state, j, j.Failure, err)
		}
	}
	freeze(tenant.Active)
	w.check2(t)
}

// TestEraseDataAway: data in a database that lets nobody in is not erased for as long, and says so. It does not keep
// anybody from erasing the account.
func TestEraseDataAway(t *testing.T) {
	h := newHouse(t)
	ten, actor := h.newTenant(tenant.External)
	restart := func(name string, port uint16) {
		t.Helper()
		h.node.end()
		h.node = h.startIdle(name, true)
		if _, err := h.store.UpdateDatabase(t.Context(), ten.ID, ten.Placement.Database, nil,
			func(_ tenant.Tenant, now tenant.Database) (tenant.Database, event.Change, error) {
				now.Placement.Address.Port = port
				return now, event.Change{}, nil
			}); err != nil {
			t.Fatal(err)
		}
	}
	there := h.own.Port
	restart("node-b", 1)
	_, err := h.svc.Erase(t.Context(), actor, ten.ID, EraseData)
	if !fault.Is(err, fault.Unavailable) {
		t.Fatal(err)
	}
	if list, _, err := h.store.ListJobs(t.Context(), job.Filter{Tenant: ten.ID, Kind: KindEmpty}, "", 1); err != nil || len(list) != 0 {
		t.Errorf("begun: %+v, %v", list, err)
	}
	restart("node-c", there)
	data, err := h.svc.Erase(t.Context(), actor, ten.ID, EraseData)
	if err != nil {
		t.Fatal(err)
	}
	restart("node-d", 1)
	if data, err = h.runner.Do(t.Context(), data.ID); err != nil || data.State != job.Running || data.Failure == nil || data.Failure.Code == "" {
		t.Fatalf("%+v, %+v, %v", data, data.Failure, err)
	}
	// Whoever waits for its end hears that this may take long.
	if now, err := h.svc.Await(t.Context(), data.ID); err != nil || now.State != job.Running || now.Failure == nil {
		t.Errorf("%+v, %v", now, err)
	}
	all, err := h.svc.Erase(t.Context(), actor, ten.ID, EraseAccount)
	if err != nil {
		t.Fatal(err)
	}
	if data, err = h.store.FindJob(t.Context(), data.ID); err != nil || data.State != job.Cancelled || data.Failure != nil {
		t.Errorf("%+v, %+v, %v", data, data.Failure, err)
	}
	if all, err = h.runner.Do(t.Context(), all.ID); err != nil || all.State != job.Completed {
		t.Fatalf("%+v, %+v, %v", all, all.Failure, err)
	}
	if _, err := h.store.FindTenant(t.Context(), ten.ID); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

// TestReceiptsOfRetries: the receipt tells of what an earlier try did, and that of an account of what was done to its
// data before.
func TestReceiptsOfRetries(t *testing.T) {
	for _, what := range []string{EraseData, EraseAccount} {
		h := newHouse(t)
		ten, actor := h.newTenant(tenant.SQLite)
		h.fill(actor, ten.ID, 2)
		h.moveTo(actor, ten.ID, h.place(actor, ten.ID, tenant.Postgres)) // the file stays as a copy
		h.node.end()
		h.node = h.startIdle("node-b", true)
		h.svc.Spools = func(context.Context, ident.TenantID) error { return fault.New(fault.Unavailable, "test", "", "away") }
		j, err := h.svc.Erase(t.Context(), actor, ten.ID, EraseData)
		if err != nil {
			t.Fatal(err)
		}
		if j, err = h.runner.Do(t.Context(), j.ID); err != nil || j.State != job.Running {
			t.Fatalf("%+v, %v", j, err)
		}
		h.node.end()
		h.node = h.startIdle("node-c", true)
		if what == EraseAccount {
			if j, err = h.svc.Erase(t.Context(), actor, ten.ID, what); err != nil {
				t.Fatal(err)
			}
		}
		if j, err = h.runner.Do(t.Context(), j.ID); err != nil || j.State != job.Completed || j.Failure != nil {
			t.Fatalf("%+v, %+v, %v", j, j.Failure, err)
		}
		answer, err := json.Marshal(map[string]any{"state": "completed", "receipt": j.Report})
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range [][]byte{j.Report, answer} {
			r, err := ReadReceipt(text)
			if err != nil || r.What != what || !h.svc.Check(r) {
				t.Fatalf("%+v, %v", r, err)
			}
			for store, outcome := range map[string]string{"hosted_sqlite": "erased", "hosted_postgres": "erased", "backups": "pending"} {
				if !slices.ContainsFunc(r.Stores, func(s ErasedStore) bool { return s.Store == store && s.Outcome == outcome }) {
					t.Errorf("%s: nothing about %s in %+v", what, store, r.Stores)
				}
			}
		}
	}
	if _, err := ReadReceipt([]byte(`{"state": "running", "receipt": {}}`)); err == nil {
		t.Error("an answer without a receipt has one")
	}
}

// files are the tenants' files with the ids in their names.
func (h *house) files() map[string]string {
	h.t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(filepath.Join(h.dir, "tenants"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".db" {
			found[path] = d.Name()[len("ten_") : len(d.Name())-len(".db")]
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return found
}

// TestKeysAreTheErasure: a copied file opens with its key, not with another one, and not at all once the key is gone.
func TestKeysAreTheErasure(t *testing.T) {
	h := newHouse(t)
	ten, actor := h.newTenant(tenant.SQLite)
	h.fill(actor, ten.ID, 3)
	was := h.digest(ten.ID)
	h.shut(ten.ID)
	var path string
	for name, id := range h.files() {
		if id == string(ten.Placement.Database)[3:] {
			path = name
		}
	}
	stolen, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(stolen, []byte("lighthouse")) || bytes.Contains(stolen, []byte("SQLite format 3")) {
		t.Error("the file is not encrypted")
	}

	j, err := h.svc.Rekey(t.Context(), actor, ten.ID)
	if err != nil {
		t.Fatal(err)
	}
	if j = h.await(j.ID); j.State != job.Completed {
		t.Fatalf("%+v", j.Failure)
	}
	if is := h.digest(ten.ID); is.Sum != was.Sum {
		t.Errorf("%+v became %+v", was, is)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the file under the old key is still there")
	}
	now, err := h.store.FindTenant(t.Context(), ten.ID)
	if err != nil {
		t.Fatal(err)
	}
	list, err := h.svc.Databases(t.Context(), actor, ten.ID)
	if err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	// The stolen copy opens with nothing that the master database still holds.
	copied := filepath.Join(t.TempDir(), "stolen.db")
	if err := os.WriteFile(copied, stolen, 0o600); err != nil {
		t.Fatal(err)
	}
	newKey, err := h.keys.UnwrapKey("ten_"+string(now.Placement.Database)[3:], now.Placement.WrappedKey)
	if err != nil {
		t.Fatal(err)
	}
	if db, err := sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: copied, Key: &newKey}); err == nil {
		_ = db.Close()
		t.Error("the old file opens with the new key")
	}
	// The control: with the key it had, it does open.
	oldKey, err := h.keys.UnwrapKey("ten_"+string(ten.Placement.Database)[3:], ten.Placement.WrappedKey)
	if err != nil {
		t.Fatal(err)
	}
	db, err := sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: copied, Key: &oldKey})
	if err != nil {
		t.Fatal(err)
	}
	_ = db.Close()
}

// TestRewrap seals what the master holds under a new master key and touches no file.
func TestRewrap(t *testing.T) {
	h := newHouse(t)
	ten, actor := h.newTenant(tenant.SQLite)
	h.place(actor, ten.ID, tenant.External)
	h.fill(actor, ten.ID, 2)
	h.node.end()
	before := map[string][]byte{}
	for name := range h.files() {
		before[name], _ = os.ReadFile(name)
	}
	list, err := h.store.ListDatabases(t.Context(), ten.ID)
	if err != nil {
		t.Fatal(err)
	}
	svc := rotated(t, h, true)
	if r, err := svc.Rewrap(t.Context()); err != nil || r.Resealed != len(list) || r.Databases != len(list) {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err := svc.RewrapAll(t.Context()); err != nil || r.Resealed != 0 || r.Databases != len(list) {
		t.Errorf("again: %+v, %v", r, err)
	}
	alone := rotated(t, h, false)
	now, err := h.store.FindTenant(t.Context(), ten.ID)
	if err != nil {
		t.Fatal(err)
	}
	db, err := alone.Places.Open(t.Context(), now.Placement)
	if err != nil {
		t.Fatal(err)
	}
	_ = db.Close()
	list, err = h.store.ListDatabases(t.Context(), ten.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		if d.Placement.Kind == tenant.External {
			if pw, err := alone.Places.Password(d.Placement); err != nil || pw.Reveal() != h.password.Reveal() {
				t.Errorf("the password does not open: %v", err)
			}
		}
		if _, err := h.places.Password(d.Placement); d.Placement.SealedPassword != nil && fault.CodeOf(err) != "seal_unknown_key" {
			t.Errorf("the old key still opens it: %v", err)
		}
	}
	for name, was := range before {
		if is, err := os.ReadFile(name); err != nil || !bytes.Equal(was, is) {
			t.Errorf("%s was touched, %v", filepath.Base(name), err)
		}
	}
}

// hook is a log that calls back.
type hook struct {
	slog.Handler
	do func()
}

func (h hook) Handle(context.Context, slog.Record) error { h.do(); return nil }
func (h hook) Enabled(context.Context, slog.Level) bool  { return true }

// TestRewrapAllGoesOn: a secret that does not open keeps nothing else from being sealed anew, not even what another
// process seals under the old key meanwhile.
func TestRewrapAllGoesOn(t *testing.T) {
	h := newHouse(t)
	first, _ := h.newTenant(tenant.SQLite)
	broken, _ := h.newTenant(tenant.SQLite)
	h.node.end()
	torn := broken.Placement
	torn.WrappedKey = bytes.Clone(torn.WrappedKey)
	torn.WrappedKey[len(torn.WrappedKey)-1] ^= 1
	if done, err := h.store.Reseal(t.Context(), broken.Placement, torn); err != nil || !done {
		t.Fatal(done, err)
	}
	svc, alone := rotated(t, h, true), rotated(t, h, false)
	met := 0
	svc.Log = slog.New(hook{slog.DiscardHandler, func() {
		if met++; met > 1 {
			return
		}
		now, err := h.store.FindTenant(t.Context(), first.ID)
		if err != nil {
			t.Error(err)
		}
		if done, err := h.store.Reseal(t.Context(), now.Placement, first.Placement); err != nil || !done {
			t.Error(done, err)
		}
	}})
	r, err := svc.RewrapAll(t.Context())
	if fault.CodeOf(err) != "seal_broken" || r.Resealed != 2 || len(r.Unopened) != 1 || r.Unopened[0] != string(torn.Database) {
		t.Errorf("%+v, %v", r, err)
	}
	now, err := h.store.FindTenant(t.Context(), first.ID)
	if err != nil {
		t.Fatal(err)
	}
	db, err := alone.Places.Open(t.Context(), now.Placement)
	if err != nil {
		t.Fatalf("it still needs the old key: %v", err)
	}
	_ = db.Close()
}
