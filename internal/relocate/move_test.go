package relocate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claude-memory-backend/internal/clocktest"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/workspace"
)

// TestMoveUnderLoad moves a tenant in every direction while several writers go on, and finds whatever they were told is
// stored.
func TestMoveUnderLoad(t *testing.T) {
	h := newHouse(t)
	kinds := []tenant.Kind{tenant.SQLite, tenant.Postgres, tenant.External}
	for _, from := range kinds {
		for _, to := range kinds {
			if from == to && from != tenant.Postgres {
				continue
			}
			t.Run(string(from)+" to "+string(to), func(t *testing.T) {
				h.t = t
				ten, actor := h.newTenant(from)
				w := h.fill(actor, ten.ID, 40)
				w.start(4)
				dest := h.place(actor, ten.ID, to)
				if from == to {
					h.otherHost(ten, dest)
				}
				j := h.moveTo(actor, ten.ID, dest)
				w.more(20) // they go on at the new place
				w.stop()

				var r MoveReport
				if err := json.Unmarshal(j.Report, &r); err != nil {
					t.Fatal(err)
				}
				now, err := h.store.FindTenant(t.Context(), ten.ID)
				if err != nil || now.Placement.Kind != to || now.Placement.Database != dest || now.Job != "" {
					t.Fatalf("%+v, %v", now, err)
				}
				if r.From != ten.Placement.Database || r.To != dest || r.Rows == 0 || j.Progress.Done < r.Rows {
					t.Errorf("report %+v, progress %+v", r, j.Progress)
				}
				w.check()
				h.sameHistory(now, r.From)
				t.Logf("%d rows, %d of them twice, paused %d ms, %d acknowledged, %d refused", r.Rows, r.Followed, r.PausedMS,
					w.said.Load(), w.refused.Load())
			})
		}
	}
}

// otherHost sends a hosted place to the operator's server that the tenant is not on.
func (h *house) otherHost(ten tenant.Tenant, to ident.DatabaseID) {
	h.t.Helper()
	for name := range h.hosts {
		if name == ten.Placement.Host {
			continue
		}
		if _, err := h.store.UpdateDatabase(h.t.Context(), ten.ID, to, nil,
			func(_ tenant.Tenant, d tenant.Database) (tenant.Database, event.Change, error) {
				d.Placement.Host = name
				return d, event.Change{}, nil
			}); err != nil {
			h.t.Fatal(err)
		}
	}
}

// writers write to one tenant and remember what they were told.
type writers struct {
	h       *house
	pool    *workspace.Pool
	actor   ident.Actor
	tenant  ident.TenantID
	convs   []ident.ConversationID
	said    atomic.Int64
	refused atomic.Int64
	quit    chan struct{}
	done    sync.WaitGroup
	mu      sync.Mutex
	acked   map[ident.MessageID]string
	turns   map[ident.TurnID]ident.ConversationID
}

// fill gives a tenant some content.
func (h *house) fill(actor ident.Actor, id ident.TenantID, messages int) *writers {
	h.t.Helper()
	w := &writers{h: h, pool: h.pool, actor: actor, tenant: id, quit: make(chan struct{}), acked: map[ident.MessageID]string{},
		turns: map[ident.TurnID]ident.ConversationID{}}
	ws := h.acquire(actor, id)
	defer ws.Release()
	p, err := ws.Projects.Create(h.t.Context(), actor, project.CreateInput{Details: project.Details{Name: "Häfen ⚓"}})
	if err != nil {
		h.t.Fatal(err)
	}
	for range 3 {
		c, err := ws.Conversations.Create(h.t.Context(), actor, conversation.CreateInput{Details: conversation.Details{ProjectID: p.ID, Title: "On harbours"}})
		if err != nil {
			h.t.Fatal(err)
		}
		w.convs = append(w.convs, c.ID)
	}
	for i := range messages {
		if err := w.say(h.t.Context(), i, false); err != nil {
			h.t.Fatal(err)
		}
	}
	return w
}

// say sends one message; with ask the scripted model answers it.
func (w *writers) say(ctx context.Context, n int, ask bool) error {
	ws, err := w.pool.Acquire(ctx, w.actor, w.tenant)
	if err != nil {
		return err
	}
	defer ws.Release()
	text := fmt.Sprintf("message %d by a lighthouse 🗼", n)
	x, err := ws.Conversations.Send(ctx, w.actor, w.convs[n%len(w.convs)], conversation.SendInput{Text: text, Reply: ask})
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said.Add(1)
	w.acked[x.User.ID] = text
	if x.Turn != nil {
		w.turns[x.Turn.ID] = w.convs[n%len(w.convs)]
	}
	return nil
}

// start lets n writers go on until stop; every tenth message is answered.
func (w *writers) start(n int) {
	for k := range n {
		w.done.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-w.quit:
					return
				default:
				}
				err := w.say(context.Background(), 1000*(k+1)+i, i%10 == 0)
				if err != nil {
					w.refused.Add(1)
					if !fault.Is(err, fault.Unavailable) {
						w.h.t.Errorf("refused with %v", err)
						return
					}
				}
			}
		})
	}
}

// more waits until n more messages were stored.
func (w *writers) more(n int64) {
	until := w.said.Load() + n
	for deadline := time.Now().Add(time.Minute); w.said.Load() < until; {
		if time.Now().After(deadline) {
			w.h.t.Fatal("the writers stand still")
		}
		time.Sleep(time.Millisecond)
	}
}

func (w *writers) stop() {
	close(w.quit)
	w.done.Wait()
}

// check finds everything that was acknowledged, once, in its text, and every turn ended as it should.
func (w *writers) check() {
	t, ctx := w.h.t, w.h.t.Context()
	t.Helper()
	ws := w.h.acquire(w.actor, w.tenant)
	defer ws.Release()
	for id, conv := range w.turns {
		x, err := ws.Conversations.Await(ctx, w.actor, conv, id)
		if err != nil || x.Turn.State != conversation.Completed || x.Assistant.Content == "" {
			t.Errorf("turn %+v, %v", x.Turn, err)
		}
	}
	found, all := map[ident.MessageID]string{}, int64(0)
	for _, c := range w.convs {
		for cursor := ""; ; {
			ms, next, err := ws.Conversations.Messages(ctx, w.actor, c, conversation.MessageQuery{All: true, Ascending: true, Limit: 200, Cursor: cursor})
			if err != nil {
				t.Fatal(err)
			}
			all += int64(len(ms))
			for _, m := range ms {
				if m.Role == conversation.User {
					found[m.ID] = m.Content
				}
			}
			if cursor = next; next == "" {
				break
			}
		}
	}
	for id, text := range w.acked {
		if found[id] != text {
			t.Errorf("acknowledged %q, found %q", text, found[id])
		}
	}
	if used, _, err := ws.Usage(ctx); err != nil || used.Messages != all {
		t.Errorf("%d messages are counted and %d are there, %v", used.Messages, all, err)
	}
	hits, _, err := ws.Conversations.Search(ctx, w.actor, conversation.SearchInput{Text: `"message 7"`, Limit: 50})
	if err != nil || len(hits) == 0 {
		t.Errorf("search finds %d, %v", len(hits), err)
	}
}

// sameHistory compares the kept original with what the tenant lives in now: whatever cannot change any more is the same
// in both, row by row, and the original can be read but not written.
func (h *house) sameHistory(now tenant.Tenant, original ident.DatabaseID) {
	t, ctx := h.t, h.t.Context()
	t.Helper()
	d, err := h.store.FindDatabase(ctx, now.ID, original)
	if err != nil || d.State != tenant.Original {
		t.Fatalf("%+v, %v", d, err)
	}
	was, err := h.places.Open(ctx, d.Placement)
	if err != nil {
		t.Fatal(err)
	}
	defer was.Close()
	is, err := h.places.Open(ctx, now.Placement)
	if err != nil {
		t.Fatal(err)
	}
	defer is.Close()
	before, err := was.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	after, err := is.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	tables, err := before.Tables(ctx)
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for _, table := range tables {
		if table.Name != "events" && table.Name != "audit" && table.Name != "systems" && table.Name != "branches" {
			continue
		}
		for key := []any(nil); ; {
			page, next, err := before.Page(ctx, table, key, 100, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			var keys [][]any
			for _, r := range page {
				keys = append(keys, table.KeyOf(r))
			}
			there := map[string]sqlstore.Row{}
			got, err := after.Get(ctx, table, keys)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range got {
				there[fmt.Sprint(table.KeyOf(r))] = r
			}
			for _, r := range page {
				rows++
				if !reflect.DeepEqual(there[fmt.Sprint(table.KeyOf(r))], r) {
					t.Errorf("%s %v differs", table.Name, table.KeyOf(r))
				}
			}
			if key = next; next == nil {
				break
			}
		}
	}
	if rows < 50 {
		t.Errorf("only %d rows were compared", rows)
	}
	err = sqlstore.NewTenantStore(was, nil).Note(ctx, func() event.Change {
		ch := event.NewChange(ident.System(""), time.Now())
		ch.Add("test.written", string(now.ID), map[string]any{})
		return ch
	}())
	if fault.CodeOf(err) != "tenant_moved" {
		t.Errorf("the original was written: %v", err)
	}
}

// TestMoveKeepsContent compares digests of both places when nobody writes.
func TestMoveKeepsContent(t *testing.T) {
	h := newHouse(t)
	ten, actor := h.newTenant(tenant.SQLite)
	h.fill(actor, ten.ID, 120)
	for _, kind := range []tenant.Kind{tenant.Postgres, tenant.External, tenant.SQLite, tenant.External} {
		was := h.digest(ten.ID)
		j := h.moveTo(actor, ten.ID, h.place(actor, ten.ID, kind))
		if is := h.digest(ten.ID); is.Sum != was.Sum {
			t.Errorf("to %s: %+v became %+v", kind, was, is)
		}
		var r MoveReport
		if err := json.Unmarshal(j.Report, &r); err != nil || r.Hash != fmt.Sprintf("%x", was.Sum) || r.Followed != 0 {
			t.Errorf("to %s: report %+v, %v", kind, r, err)
		}
	}
}

func (h *house) digest(id ident.TenantID) sqlstore.Digest {
	h.t.Helper()
	t, err := h.store.FindTenant(h.t.Context(), id)
	if err != nil {
		h.t.Fatal(err)
	}
	db, err := h.places.Open(h.t.Context(), t.Placement)
	if err != nil {
		h.t.Fatal(err)
	}
	defer db.Close()
	snap, err := db.Snapshot(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	defer snap.Close()
	d, err := snap.Digest(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return d
}

// TestMoveRefusals: what cannot be moved says why, and stays.
func TestMoveRefusals(t *testing.T) {
	h := newHouse(t)
	ten, actor := h.newTenant(tenant.SQLite)
	_, stranger := h.newTenant(tenant.SQLite)
	mine := h.place(actor, ten.ID, tenant.External)
	code := func(err error, want string) {
		t.Helper()
		if fault.CodeOf(err) != want {
			t.Errorf("%v; wanted %s", err, want)
		}
	}
	_, err := h.svc.Activate(t.Context(), stranger, ten.ID, mine, nil)
	code(err, "not_found")
	_, err = h.svc.Activate(t.Context(), actor, ten.ID, ident.New[ident.DatabaseID](), nil)
	code(err, "not_found")
	_, err = h.svc.Activate(t.Context(), actor, ten.ID, ten.Placement.Database, nil)
	code(err, "database_in_use")
	code(h.svc.Remove(t.Context(), actor, ten.ID, ten.Placement.Database, nil), "database_in_use")
	_, err = h.svc.Release(t.Context(), actor, ten.ID, ten.Placement.Database)
	code(err, "database_in_use")

	t.Run("a target that does not answer", func(t *testing.T) {
		nowhere := h.own
		nowhere.Port = 1
		d, err := h.svc.Register(t.Context(), actor, ten.ID, NewDatabase{Name: "Nowhere", Address: nowhere})
		if err != nil {
			t.Fatal(err)
		}
		j, err := h.svc.Activate(t.Context(), actor, ten.ID, d.ID(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if j = h.await(j.ID); j.State != job.Failed || j.Failure == nil {
			t.Fatalf("%+v", j)
		}
		if d, err := h.store.FindDatabase(t.Context(), ten.ID, d.ID()); err != nil || d.Facts.Problem != "address_unreachable" {
			t.Errorf("%+v, %v", d.Facts, err)
		}
		if now, err := h.store.FindTenant(t.Context(), ten.ID); err != nil || now.Placement.Database != ten.Placement.Database || now.Job != "" {
			t.Errorf("%+v, %v", now, err)
		}
		w := h.fill(actor, ten.ID, 3)
		w.check2(t)
		if err := h.svc.Remove(t.Context(), actor, ten.ID, d.ID(), nil); err != nil {
			t.Error(err)
		}
	})
	t.Run("one job at a time", func(t *testing.T) {
		h.t = t
		h.instead.Store(new(job.Work(func(ctx context.Context, run *job.Run) (any, error) {
			<-ctx.Done()
			return nil, job.ErrCancelled
		})))
		defer h.instead.Store(nil)
		j, err := h.svc.Activate(t.Context(), actor, ten.ID, mine, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.svc.Activate(t.Context(), actor, ten.ID, mine, nil)
		code(err, "tenant_busy")
		_, err = h.svc.EditDatabase(t.Context(), actor, ten.ID, mine, nil, func(e *DatabaseEdit) error {
			e.Address.Port++
			e.Password = &h.password
			return nil
		})
		code(err, "tenant_busy")
		if now, _ := h.store.FindTenant(t.Context(), ten.ID); now.Shown() != tenant.Moving {
			t.Errorf("shown as %s", now.Shown())
		}
		_, err = h.svc.CancelJob(t.Context(), stranger, j.ID)
		code(err, "not_found")
		if _, err := h.svc.CancelJob(t.Context(), actor, j.ID); err != nil {
			t.Fatal(err)
		}
		if j = h.await(j.ID); j.State != job.Cancelled {
			t.Errorf("%+v", j)
		}
		_, err = h.svc.CancelJob(t.Context(), actor, j.ID)
		code(err, "job_finished")
	})
}

// TestReleaseIsAlone: nothing is done with a copy that is let go of meanwhile, and a release that a killed process left is
// ended by another one.
func TestReleaseIsAlone(t *testing.T) {
	h := newHouse(t)
	ten, actor := h.newTenant(tenant.SQLite)
	h.fill(actor, ten.ID, 2)
	h.moveTo(actor, ten.ID, h.place(actor, ten.ID, tenant.Postgres))
	old := ten.Placement
	there := func() bool {
		db, err := h.places.Open(t.Context(), old)
		if err == nil {
			_ = db.Close()
		}
		return err == nil
	}
	now, err := h.store.FindTenant(t.Context(), ten.ID)
	if err != nil {
		t.Fatal(err)
	}
	j, err := h.svc.newJob(KindRestore, now, restoreInput{})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.store.InsertJob(t.Context(), j, event.Change{}); err != nil {
		t.Fatal(err)
	}
	_, err = h.svc.Release(t.Context(), actor, ten.ID, old.Database)
	if fault.CodeOf(err) != "tenant_busy" || !there() {
		t.Errorf("released beside another job: %v, the file is there: %v", err, there())
	}
	// It is a command's, which has not begun yet; the owner did not ask for it.
	if _, err := h.svc.CancelJob(t.Context(), actor, j.ID); fault.CodeOf(err) != "job_uncancellable" {
		t.Errorf("the owner cancels the operator's job: %v", err)
	}
	if j, err = h.svc.CancelJob(t.Context(), ident.System(""), j.ID); err != nil || j.State != job.Cancelled || j.Attempts > 0 {
		t.Fatalf("%+v, %v", j, err)
	}

	if j, err = h.svc.newJob(KindRelease, now, releaseInput{Database: old.Database, Asker: askerOf(actor)}); err != nil {
		t.Fatal(err)
	}
	j.CreatedAt = j.CreatedAt.Add(-2 * job.LeftAfter)
	if err := h.store.InsertJob(t.Context(), j, event.Change{}); err != nil {
		t.Fatal(err)
	}
	if j = h.await(j.ID); j.State != job.Completed || there() {
		t.Errorf("%+v, the file is there: %v", j, there())
	}
	if d, err := h.store.FindDatabase(t.Context(), ten.ID, old.Database); err != nil || d.State != tenant.Empty {
		t.Errorf("%+v, %v", d, err)
	}
	half := h.half(ten.ID, tenant.SQLite)
	old = half.Placement
	if d, err := h.svc.Release(t.Context(), actor, ten.ID, half.ID()); err != nil || d.State != tenant.Empty || there() {
		t.Errorf("%+v, %v, the file is there: %v", d, err, there())
	}
	// Whoever takes it up meanwhile has another name, also in the same process, and so ends its lease.
	list, _, err := h.store.ListJobs(t.Context(), job.Filter{Tenant: ten.ID, Kind: KindRelease}, "", 1)
	if err != nil || len(list) != 1 || list[0].Node == "" || list[0].Node == h.node.name {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestHostedEntriesGo: hosted entries in which nothing is left can be forgotten, all but the last one.
func TestHostedEntriesGo(t *testing.T) {
	h := newHouse(t)
	ten, actor := h.newTenant(tenant.External) // the first entry is its original
	remove := func(id ident.DatabaseID, want string) {
		t.Helper()
		err := h.svc.Remove(t.Context(), actor, ten.ID, id, nil)
		if err == nil && want != "" || err != nil && fault.CodeOf(err) != want {
			t.Errorf("%v, not %q", err, want)
		}
	}
	release := func(id ident.DatabaseID) {
		t.Helper()
		if _, err := h.svc.Release(t.Context(), actor, ten.ID, id); err != nil {
			t.Fatal(err)
		}
	}
	first, half := tenant.First(ten.ID), h.half(ten.ID, tenant.SQLite).ID()
	remove(first, "database_kept")
	remove(half, "database_kept") // its file would be nobody's
	release(first)
	release(half)
	remove(first, "")
	remove(half, "database_hosted")
	if list, err := h.store.ListDatabases(t.Context(), ten.ID); err != nil || len(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	h.moveTo(actor, ten.ID, half) // and is of use again
}

// TestHalfACopyIsNoOriginal: what could not be taken away from a server that is gone is not called an original, and can be
// forgotten.
func TestHalfACopyIsNoOriginal(t *testing.T) {
	h := newHouse(t)
	h.node.end()
	h.node = h.startIdle("node-a", true)
	ten, actor := h.newTenant(tenant.SQLite)
	gone := h.own
	gone.Port = 1
	d, err := h.svc.Register(t.Context(), actor, ten.ID, NewDatabase{Name: "Gone", Address: gone})
	if err != nil {
		t.Fatal(err)
	}
	j, err := h.svc.Activate(t.Context(), actor, ten.ID, d.ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.svc.Remove(t.Context(), actor, ten.ID, d.ID(), nil); fault.CodeOf(err) != "tenant_busy" {
		t.Errorf("removed while a job is to fill it: %v", err)
	}
	h.leave(j)
	if _, err := h.store.UpdateDatabase(t.Context(), ten.ID, d.ID(), nil,
		func(_ tenant.Tenant, d tenant.Database) (tenant.Database, event.Change, error) {
			d.State = tenant.Filling
			return d, event.Change{}, nil
		}); err != nil {
		t.Fatal(err)
	}
	if err := h.svc.Remove(t.Context(), actor, ten.ID, d.ID(), nil); fault.CodeOf(err) != "database_in_use" || strings.Contains(err.Error(), "lives there") {
		t.Errorf("removed while a job fills it, or it is said that the data lives there: %v", err)
	}
	h.node.end()
	h.node = h.start("node-b", true)
	if j = h.await(j.ID); j.State != job.Failed {
		t.Fatalf("%+v", j)
	}
	if d, err = h.store.FindDatabase(t.Context(), ten.ID, d.ID()); err != nil || d.State != tenant.Filling {
		t.Errorf("%+v, %v", d, err)
	}
	if err := h.svc.Remove(t.Context(), actor, ten.ID, d.ID(), nil); err != nil {
		t.Error(err)
	}
}

// TestOriginalOutlivesASourceThatIsAway: nothing is done to the kept original while what would replace it cannot be read.
func TestOriginalOutlivesASourceThatIsAway(t *testing.T) {
	server, err := pgtest.Start(t.Context(), pgtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	h := newHouse(t)
	h.own, h.password = addressOf(t, server.URL)
	ten, actor := h.newTenant(tenant.SQLite)
	h.fill(actor, ten.ID, 2)
	h.moveTo(actor, ten.ID, h.place(actor, ten.ID, tenant.External))
	if err := server.Freeze(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Thaw() }() // before it is stopped
	j, err := h.svc.Activate(t.Context(), actor, ten.ID, ten.Placement.Database, nil)
	if err != nil {
		t.Fatal(err)
	}
	if j = h.await(j.ID); j.State != job.Failed || j.Failure.Code != "database_unreachable" {
		t.Fatalf("%+v, %+v", j, j.Failure)
	}
	d, err := h.store.FindDatabase(t.Context(), ten.ID, ten.Placement.Database)
	if err != nil || d.State != tenant.Original {
		t.Fatalf("%+v, %v", d, err)
	}
	db, err := h.places.Open(t.Context(), d.Placement)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if v, err := sqlstore.SchemaVersion(t.Context(), db); err != nil || v == 0 {
		t.Errorf("version %d, %v", v, err)
	}
}

// TestCancelledWhileNobodyWorksOnIt: whoever takes up a job that is to stop undoes what a killed process left.
func TestCancelledWhileNobodyWorksOnIt(t *testing.T) {
	h := newHouse(t)
	h.node.end()
	h.node = h.startIdle("node-a", true)
	ten, actor := h.newTenant(tenant.SQLite)
	w := h.fill(actor, ten.ID, 2)
	db, err := h.places.Open(t.Context(), ten.Placement)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, kind := range []string{KindMove, KindRestore} {
		half := h.half(ten.ID, tenant.SQLite)
		var input any = moveInput{To: half.ID(), Asker: askerOf(actor)}
		if kind == KindRestore {
			input = restoreInput{To: half.ID(), Kind: tenant.SQLite}
		}
		j, err := h.svc.newJob(kind, ten, input)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.store.InsertJob(t.Context(), j, event.Change{}); err != nil {
			t.Fatal(err)
		}
		h.leave(j)
		if err := errors.Join(sqlstore.StartCapture(t.Context(), db), sqlstore.Fence(t.Context(), db)); err != nil {
			t.Fatal(err)
		}
		if _, err := h.svc.CancelJob(t.Context(), ident.System(""), j.ID); err != nil {
			t.Fatal(err)
		}
		if j, err = h.runner.Do(t.Context(), j.ID); err != nil || j.State != job.Cancelled {
			t.Fatalf("%s: %+v, %+v, %v", kind, j, j.Failure, err)
		}
		if d, err := h.store.FindDatabase(t.Context(), ten.ID, half.ID()); d.State == tenant.Filling {
			t.Errorf("%s: %+v, %v", kind, d, err)
		}
		if err := w.say(t.Context(), 3, false); err != nil {
			t.Errorf("%s: it cannot be written: %v", kind, err)
		}
	}
}

// TestCancelledBeforeTheSwitch: a wish that is stored before the switch is heard, however short before.
func TestCancelledBeforeTheSwitch(t *testing.T) {
	h := newHouse(t)
	h.node.end()
	h.node = h.startIdle("node-a", true)
	ten, actor := h.newTenant(tenant.SQLite)
	w := h.fill(actor, ten.ID, 2)
	dest := h.place(actor, ten.ID, tenant.Postgres)
	j, err := h.svc.Activate(t.Context(), actor, ten.ID, dest, nil)
	if err != nil {
		t.Fatal(err)
	}
	runner := job.NewRunner(job.Config{Store: h.store, Node: "node-a", Kinds: map[string]job.Work{
		KindMove: func(ctx context.Context, run *job.Run) (any, error) {
			if _, err := h.svc.CancelJob(ctx, actor, run.Job.ID); err != nil {
				return nil, err
			}
			return h.svc.move(context.WithoutCancel(ctx), run) // so it hears nothing meanwhile
		},
	}})
	if j, err = runner.Do(t.Context(), j.ID); err != nil || j.State != job.Cancelled {
		t.Fatalf("%+v, %+v, %v", j, j.Failure, err)
	}
	if d, err := h.store.FindDatabase(t.Context(), ten.ID, dest); err != nil || d.State != tenant.Empty {
		t.Errorf("%+v, %v", d, err)
	}
	if err := w.say(t.Context(), 3, false); err != nil {
		t.Error(err)
	}
}

// TestJobsLeaveRoom: jobs about the whole installation do not keep an account's job waiting.
func TestJobsLeaveRoom(t *testing.T) {
	h := newHouse(t)
	h.node.end()
	ten, _ := h.newTenant(tenant.SQLite)
	var wide atomic.Int32
	begun, end := make(chan struct{}, 4), make(chan struct{})
	runner := job.NewRunner(job.Config{Store: h.store, Node: "node-b", Sole: true, Every: 10 * time.Millisecond, Kinds: map[string]job.Work{
		KindFleet: func(context.Context, *job.Run) (any, error) {
			wide.Add(1)
			begun <- struct{}{}
			<-end
			return nil, nil
		},
		KindMove: func(context.Context, *job.Run) (any, error) { return nil, nil },
	}})
	var last job.Job
	for _, of := range []tenant.Tenant{{}, {}, {}, {}, ten} {
		kind := KindFleet
		if of.ID != "" {
			kind = KindMove
		}
		var err error
		if last, err = h.svc.newJob(kind, of, nil); err != nil {
			t.Fatal(err)
		}
		if err := h.store.InsertJob(t.Context(), last, event.Change{}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = runner.Run(ctx) })
	defer running.Wait()
	defer stop()
	defer close(end)
	last = h.await(last.ID)
	<-begun // what is claimed first may begin last
	if last.State != job.Completed || wide.Load() != 1 {
		t.Errorf("%+v beside %d", last, wide.Load())
	}
}

// stuck is a master database that cannot be told that a job is still worked on.
type stuck struct{ *sqlstore.MasterStore }

func (stuck) RenewJob(context.Context, ident.JobID, string, time.Time, job.Progress, json.RawMessage) (held, cancel bool, err error) {
	return false, false, fault.New(fault.Unavailable, "test", "", "the master database is busy")
}

// TestNobodyTakesTheirOwnJob: who could not renew a lease in time goes on, and does not begin a second time beside that.
func TestNobodyTakesTheirOwnJob(t *testing.T) {
	h := newHouse(t)
	h.node.end()
	clock := clocktest.New(time.Now())
	var begun atomic.Int32
	on := make(chan struct{})
	runner := job.NewRunner(job.Config{Store: stuck{h.store}, Node: "node-b", Sole: true, Every: time.Millisecond, Now: clock.Now, Kinds: map[string]job.Work{
		KindMove: func(context.Context, *job.Run) (any, error) {
			if begun.Add(1) == 1 {
				clock.Pass(time.Hour) // its lease is over
			}
			<-on
			return nil, nil
		},
		KindErase: func(context.Context, *job.Run) (any, error) { return nil, nil },
	}})
	var jobs []job.Job
	for _, kind := range []string{KindMove, KindErase} {
		ten, _ := h.newTenant(tenant.SQLite)
		j, err := h.svc.newJob(kind, ten, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.store.InsertJob(t.Context(), j, event.Change{}); err != nil {
			t.Fatal(err)
		}
		jobs = append(jobs, j)
		if kind == KindMove {
			ctx, stop := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { _ = runner.Run(ctx) })
			defer running.Wait()
			defer stop()
			for begun.Load() == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	}
	// The second is claimed after the first would have been.
	if j := h.await(jobs[1].ID); j.State != job.Completed {
		t.Errorf("%+v", j)
	}
	close(on)
	if j := h.await(jobs[0].ID); j.State != job.Completed || j.Attempts != 1 || begun.Load() != 1 {
		t.Errorf("%+v, begun %d times", j, begun.Load())
	}
}

// check2 only sees that the tenant can be written and read.
func (w *writers) check2(t *testing.T) {
	t.Helper()
	ws := w.h.acquire(w.actor, w.tenant)
	defer ws.Release()
	if ms, _, err := ws.Conversations.Messages(t.Context(), w.actor, w.convs[0], conversation.MessageQuery{Limit: 10}); err != nil || len(ms) == 0 {
		t.Errorf("%d messages, %v", len(ms), err)
	}
}

// TestMixedInstallation runs tenants at all three kinds of place at once, and again after a restart.
func TestMixedInstallation(t *testing.T) {
	h := newHouse(t)
	var all []*writers
	for _, kind := range []tenant.Kind{tenant.SQLite, tenant.Postgres, tenant.External} {
		ten, actor := h.newTenant(kind)
		w := h.fill(actor, ten.ID, 10)
		w.start(2)
		all = append(all, w)
	}
	for _, w := range all {
		w.more(10)
		w.stop()
		w.check() // waits for the answers, too
		if n := w.refused.Load(); n > 0 {
			t.Errorf("%d were refused", n)
		}
	}
	h.node.end()
	h.node = h.start("node-b", true)
	for i, w := range all {
		w.pool = h.pool
		w.check()
		for _, other := range all[i+1:] {
			if _, err := h.pool.Acquire(t.Context(), w.actor, other.tenant); !fault.Is(err, fault.NotFound) {
				t.Errorf("another's tenant: %v", err)
			}
		}
	}
}

// TestFactsAreOfWhatIsThere: what is said of a database after a move was seen of that one, and of one that is gone nothing.
func TestFactsAreOfWhatIsThere(t *testing.T) {
	h := newHouse(t)
	ten, actor := h.newTenant(tenant.SQLite)
	h.fill(actor, ten.ID, 5)
	long := time.Now().Add(-time.Hour).UTC().Truncate(time.Microsecond)
	stale := tenant.Facts{SchemaVersion: 99, SizeBytes: 1, Problem: "timeout", CheckedAt: &long}
	say := func(id ident.DatabaseID) {
		t.Helper()
		if _, err := h.store.UpdateDatabase(t.Context(), ten.ID, id, nil,
			func(_ tenant.Tenant, d tenant.Database) (tenant.Database, event.Change, error) {
				d.Facts = stale
				return d, event.Change{}, nil
			}); err != nil {
			t.Fatal(err)
		}
	}
	first := ten.Placement.Database
	for _, dest := range []ident.DatabaseID{h.place(actor, ten.ID, tenant.Postgres), h.place(actor, ten.ID, tenant.External), first} {
		say(dest)
		h.moveTo(actor, ten.ID, dest)
		d, err := h.store.FindDatabase(t.Context(), ten.ID, dest)
		if f := d.Facts; err != nil || f.SizeBytes < 1000 || f.SchemaVersion != h.places.Newest() || f.Problem != "" || f.CheckedAt != nil {
			t.Errorf("%s: %+v, %v", KindName(d.Placement.Kind), f, err)
		}
	}
	half := h.half(ten.ID, tenant.SQLite).ID()
	say(half)
	if err := (&mover{Service: h.svc, in: moveInput{To: half}, tenant: ten}).undo(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d, err := h.store.FindDatabase(t.Context(), ten.ID, half); err != nil || d.State != tenant.Empty || d.Facts != (tenant.Facts{}) {
		t.Errorf("%+v, %v", d, err)
	}
}

// TestMismatchIsFound: a copy that differs in one row is not taken for the original.
func TestMismatchIsFound(t *testing.T) {
	h := newHouse(t)
	one, oneActor := h.newTenant(tenant.SQLite)
	two, twoActor := h.newTenant(tenant.Postgres)
	h.fill(oneActor, one.ID, 5)
	h.fill(twoActor, two.ID, 5)
	source, copied := h.acquire(oneActor, one.ID), h.acquire(twoActor, two.ID)
	defer source.Release()
	defer copied.Release()
	snap, err := source.Database().Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	tables, err := snap.Tables(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := &mover{Service: h.svc, to: copied.Database()}
	if err := m.compare(t.Context(), snap); fault.CodeOf(err) != "move_mismatch" {
		t.Errorf("the digests agree: %v", err)
	}
	if err := m.count(t.Context(), snap, tables); err == nil {
		h.fill(twoActor, two.ID, 1)
		if err := m.count(t.Context(), snap, tables); fault.CodeOf(err) != "move_mismatch" {
			t.Errorf("the numbers agree: %v", err)
		}
	}
	m.to = source.Database()
	if err := m.compare(t.Context(), snap); err != nil {
		t.Errorf("the same differs: %v", err)
	}
}

// TestATargetEditedWhileItIsFilled: the move keeps what its owner changed of the target meanwhile, and what is open
// afterwards is entered as the directory says.
func TestATargetEditedWhileItIsFilled(t *testing.T) {
	h := newHouse(t)
	ten, actor := h.newTenant(tenant.SQLite)
	h.fill(actor, ten.ID, 40)
	dest := h.place(actor, ten.ID, tenant.External)
	made, on := make(chan struct{}), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(on) })
	defer goOn()
	h.svc.watch = func(step string) {
		if step == stepMade {
			close(made)
			<-on
		}
	}
	j, err := h.svc.Activate(t.Context(), actor, ten.ID, dest, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-made
	if d, err := h.store.FindDatabase(t.Context(), ten.ID, dest); err != nil || d.State != tenant.Filling {
		t.Fatalf("%+v, %v", d, err)
	}
	edited, err := h.svc.EditDatabase(t.Context(), actor, ten.ID, dest, nil, func(e *DatabaseEdit) error {
		e.Name, e.Password = "Renamed", &h.password // sealed anew, so other bytes
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	goOn()
	if j = h.await(j.ID); j.State != job.Completed {
		t.Fatalf("%+v", j.Failure)
	}
	d, err := h.store.FindDatabase(t.Context(), ten.ID, dest)
	if err != nil || d.Name != "Renamed" || d.Version <= edited.Version || !bytes.Equal(d.Placement.SealedPassword, edited.Placement.SealedPassword) {
		t.Errorf("%+v, edited %+v, %v", d, edited, err)
	}
	ws := h.acquire(actor, ten.ID)
	defer ws.Release()
	if !bytes.Equal(ws.Tenant.Placement.SealedPassword, d.Placement.SealedPassword) {
		t.Error("it is open with the old credentials")
	}
}

// TestCredentialsEditedInUse: what is wrong with new credentials of the database in use is said at once, while what is
// open goes on with the old ones; right ones take effect at once, too, though the wrong ones have failed just before.
func TestCredentialsEditedInUse(t *testing.T) {
	h := newHouse(t)
	ten, actor := h.newTenant(tenant.External)
	w := h.fill(actor, ten.ID, 2)
	edit := func(password seal.Secret) tenant.Database {
		t.Helper()
		d, err := h.svc.EditDatabase(t.Context(), actor, ten.ID, ten.Placement.Database, nil, func(e *DatabaseEdit) error {
			e.Password = &password
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if kept, err := h.store.FindDatabase(t.Context(), ten.ID, d.ID()); err != nil || kept.Facts.Problem != d.Facts.Problem {
			t.Errorf("%+v is kept, %+v was answered, %v", kept.Facts, d.Facts, err)
		}
		return d
	}
	const refused = "login_refused"
	if d := edit("wrong"); d.Facts.Problem != refused || d.Facts.CheckedAt == nil {
		t.Errorf("%+v", d.Facts)
	}
	w.check2(t)
	h.node.end()
	h.node = h.start("node-b", true)
	w.pool = h.pool
	if _, err := h.pool.Acquire(t.Context(), actor, ten.ID); fault.CodeOf(err) != refused {
		t.Error(err)
	}
	wrong := edit("wrong again")
	if wrong.Facts.Problem != refused {
		t.Errorf("%+v", wrong.Facts)
	}
	if d := edit(h.password); d.Facts.Problem != "" || d.Facts.SizeBytes == 0 {
		t.Errorf("%+v", d.Facts)
	}
	// Nor does it come back, when somebody looked with the wrong ones and comes to the end of that now.
	h.svc.noteFacts(t.Context(), wrong, wrong.Facts)
	if d, err := h.store.FindDatabase(t.Context(), ten.ID, wrong.ID()); err != nil || d.Facts.Problem != "" {
		t.Errorf("%+v, %v", d.Facts, err)
	}
	w.check2(t)
}

// TestSwitchedAfterAll: whoever did not hear that the switch was made takes nothing back, and uses the new place.
func TestSwitchedAfterAll(t *testing.T) {
	h := newHouse(t)
	was, actor := h.newTenant(tenant.SQLite)
	w := h.fill(actor, was.ID, 2)
	h.moveTo(actor, was.ID, h.place(actor, was.ID, tenant.Postgres))
	is, err := h.store.FindTenant(t.Context(), was.ID)
	if err != nil || is.Placement.Database == was.Placement.Database {
		t.Fatalf("%+v, %v", is, err)
	}
	h.idle()
	// What such a process has open is the original.
	ws := h.acquire(actor, was.ID)
	former, err := h.places.Open(t.Context(), was.Placement)
	if err != nil {
		t.Fatal(err)
	}
	if err := ws.Database().Switch(t.Context(), func() (*sqlstore.DB, error) { return former, nil }); err != nil {
		t.Fatal(err)
	}
	ws.Moved(was)
	ws.Release()
	m := &mover{Service: h.svc, in: moveInput{To: is.Placement.Database}, tenant: was, touched: true}
	if err := m.undo(t.Context()); !errors.Is(err, errSwitched) {
		t.Errorf("it would take back what was done: %v", err)
	}
	m.arrived(t.Context())
	ws = h.acquire(actor, was.ID)
	defer ws.Release()
	if d := ws.Database().Dialect(); d != sqlstore.Postgres || ws.Tenant.Placement.Database != is.Placement.Database {
		t.Errorf("it uses %s, %+v", d.Name(), ws.Tenant.Placement)
	}
	if _, err := ws.Conversations.Send(t.Context(), actor, w.convs[0], conversation.SendInput{Text: "x"}); err != nil {
		t.Error(err)
	}
}
