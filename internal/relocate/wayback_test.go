package relocate

import (
	"context"
	"io/fs"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/pgtest/toxic"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

// away is a tenant that moved away from its first place, whose original is kept there.
type away struct {
	*house
	actor    ident.Actor
	id       ident.TenantID
	original ident.DatabaseID
	was      sqlstore.Digest // of the original
	w        *writers
}

// leaveFor makes a tenant at a kind of place and moves it to another.
func (h *house) leaveFor(from, to tenant.Kind) *away {
	h.t.Helper()
	ten, actor := h.newTenant(from)
	a := &away{house: h, actor: actor, id: ten.ID, original: ten.Placement.Database, w: h.fill(actor, ten.ID, 3)}
	h.moveTo(actor, ten.ID, h.place(actor, ten.ID, to))
	if err := a.w.say(h.t.Context(), 3, false); err != nil {
		h.t.Fatal(err)
	}
	a.was = a.holds(a.original)
	return a
}

// holds reads what one of the tenant's databases holds.
func (a *away) holds(id ident.DatabaseID) sqlstore.Digest {
	a.t.Helper()
	d, err := a.store.FindDatabase(a.t.Context(), a.id, id)
	if err != nil {
		a.t.Fatal(err)
	}
	db, err := a.places.Open(a.t.Context(), d.Placement)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	snap, err := db.Snapshot(a.t.Context())
	if err != nil {
		a.t.Fatal(err)
	}
	defer snap.Close()
	sum, err := snap.Digest(a.t.Context())
	if err != nil {
		a.t.Fatal(err)
	}
	return sum
}

// kept demands that the original is there as it was.
func (a *away) kept(when string) {
	a.t.Helper()
	d, err := a.store.FindDatabase(a.t.Context(), a.id, a.original)
	if err != nil || d.State != tenant.Original {
		a.t.Fatalf("%s: %+v, %v", when, d, err)
	}
	if is := a.holds(a.original); is.Sum != a.was.Sum {
		a.t.Errorf("%s: the original is not what it was: %+v, it was %+v", when, is, a.was)
	}
}

// beside lists what lies beside copies, anywhere.
func (a *away) beside() (list []string) {
	a.t.Helper()
	if err := filepath.WalkDir(a.dir, func(path string, _ fs.DirEntry, err error) error {
		if strings.Contains(path, "_next") || strings.Contains(path, "_kept") {
			list = append(list, filepath.Base(path))
		}
		return err
	}); err != nil {
		a.t.Fatal(err)
	}
	for _, url := range a.servers {
		if err := asOwner(a.t, url).Read(a.t.Context(), func(b *sqlstore.Batch) {
			b.Query(func(s sqlstore.Scanner) error {
				var name string
				err := s.Scan(&name)
				list = append(list, name)
				return err
			}, `SELECT nspname FROM pg_namespace WHERE nspname ~ '_(next|kept)$'`)
		}); err != nil {
			a.t.Fatal(err)
		}
	}
	facts, err := a.store.FactsNamed(a.t.Context(), sqlstore.TakingOver(""))
	if err != nil {
		a.t.Fatal(err)
	}
	for name := range facts {
		list = append(list, name)
	}
	return list
}

// asOwner is a test's database as its owner sees it.
func asOwner(t *testing.T, url string) *sqlstore.DB {
	t.Helper()
	pool, err := sqlstore.NewPostgresPool(t.Context(), seal.Secret(url), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return sqlstore.OpenPostgres(pool, sqlstore.PostgresOptions{Schema: "public"})
}

func run(t *testing.T, db *sqlstore.DB, statements ...string) {
	t.Helper()
	if err := db.Write(t.Context(), func(tx *sqlstore.Tx) error {
		return tx.Commit(func(b *sqlstore.Batch) {
			for _, s := range statements {
				b.Exec(s)
			}
		})
	}); err != nil {
		t.Fatal(err)
	}
}

// quiet lets nobody work on jobs but who is asked to.
func (a *away) quiet() {
	a.idle()
	a.w.pool = a.pool
}

// activate asks for a move which nobody works on yet.
func (a *away) activate(to ident.DatabaseID) ident.JobID {
	a.t.Helper()
	j, err := a.svc.Activate(a.t.Context(), a.actor, a.id, to, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	return j.ID
}

// die ends a move where it stands, as kill -9 would, when a watch of attempt calls it: only the goroutine of the move ends. The
// test waits for that in attempt, and goes on.
func die() { runtime.Goexit() }

// attempt works on a move in a process of its own, which hears of its steps. A watch that calls die kills it.
func (a *away) attempt(id ident.JobID, watch func(step string)) job.Job {
	a.t.Helper()
	n := a.startIdle(string(ident.New[ident.SessionID]()), true)
	defer n.end()
	n.svc.watch = watch
	runner := job.NewRunner(job.Config{Store: a.store, Node: n.name, Sole: true, Kinds: map[string]job.Work{
		KindMove: func(ctx context.Context, run *job.Run) (report any, err error) {
			err = job.ErrAgain // is what stays of one that is killed
			done := make(chan struct{})
			go func() {
				defer close(done)
				report, err = n.svc.move(ctx, run)
			}()
			<-done
			return report, err
		},
	}})
	j, err := runner.Do(a.t.Context(), id)
	if err != nil {
		a.t.Fatal(err)
	}
	return j
}

// TestAWayBackThatIsKilled: whichever step a way back is killed at, the original is what it was when the next process has
// looked, and can be gone back to; from the switch on it is replaced. Nothing is left beside anything.
func TestAWayBackThatIsKilled(t *testing.T) {
	h := newHouse(t)
	for from, to := range map[tenant.Kind]tenant.Kind{tenant.SQLite: tenant.Postgres, tenant.Postgres: tenant.SQLite, tenant.External: tenant.SQLite} {
		t.Run(string(from), func(t *testing.T) {
			h.t = t
			a := h.leaveFor(from, to)
			a.quiet()
			id := a.activate(a.original)
			before := "nothing"
			steps := []string{stepFenced, stepTaken}
			if from == tenant.SQLite {
				steps = []string{stepMade, stepVerified, stepAnnounced, stepTaken} // files are made sooner than schemas
			}
			for _, step := range steps {
				reached := false
				j := a.attempt(id, func(s string) {
					if s == stepMade { // what the one before left is settled by now
						a.kept("killed when " + before)
					}
					if s == step {
						reached = true
						die()
					}
				})
				if !reached || j.State != job.Running {
					t.Fatalf("not killed when %s: %+v, %+v", step, j, j.Failure)
				}
				before = step
			}
			if len(a.beside()) < 2 { // the kept one, and the fact
				t.Errorf("it was not killed while they are exchanged: %v", a.beside())
			}
			if _, err := a.svc.CancelJob(t.Context(), a.actor, id); err != nil {
				t.Fatal(err)
			}
			if j := a.attempt(id, nil); j.State != job.Cancelled {
				t.Fatalf("%+v, %+v", j, j.Failure)
			}
			a.kept("cancelled")
			if left := a.beside(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if err := a.w.say(t.Context(), 4, false); err != nil {
				t.Errorf("it cannot be written: %v", err)
			}
			// It is of use for another way back, which is killed when the tenant lives there.
			id = a.activate(a.original)
			if j := a.attempt(id, func(s string) {
				if s == stepSwitched {
					die()
				}
			}); j.State != job.Running {
				t.Fatalf("%+v, %+v", j, j.Failure)
			}
			if j := a.attempt(id, nil); j.State != job.Completed {
				t.Fatalf("%+v, %+v", j, j.Failure)
			}
			if left := a.beside(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			a.node.end()
			a.node = a.start("node-c", true)
			a.w.pool = a.pool
			if now, err := a.store.FindTenant(t.Context(), a.id); err != nil || now.Placement.Database != a.original || now.Job != "" {
				t.Errorf("%+v, %v", now, err)
			}
			if err := a.w.say(t.Context(), 5, false); err != nil {
				t.Error(err)
			}
			a.w.check2(t)
		})
	}
}

// TestAWayBackToAServerThatFails: whatever goes wrong at the user's server, before the copy or in the middle of it, leaves
// the original there, and what is the user's own.
func TestAWayBackToAServerThatFails(t *testing.T) {
	h := newHouse(t)
	owner := asOwner(t, h.servers[2])
	address, link := toxic.Slow(t, h.servers[2], 0)
	h.own, h.password = addressOf(t, address)
	a := h.leaveFor(tenant.External, tenant.SQLite)
	a.quiet()
	schema := "claude_memory_" + strings.TrimPrefix(string(a.original), a.original.Prefix())
	fails := func(code string, watch func(step string)) {
		t.Helper()
		if j := a.attempt(a.activate(a.original), watch); j.State != job.Failed || code != "" && j.Failure.Code != code {
			t.Fatalf("wanted %s: %+v, %+v", code, j, j.Failure)
		}
		if err := a.w.say(t.Context(), 4, false); err != nil {
			t.Errorf("%s: it cannot be written: %v", code, err)
		}
	}
	run(t, owner, `CREATE VIEW public.mine AS SELECT id FROM `+schema+`.messages`)
	fails("schema_in_use", nil)
	run(t, owner, `DROP VIEW public.mine`)
	for _, suffix := range []string{"_next", "_kept"} {
		run(t, owner, `CREATE SCHEMA `+schema+suffix, `CREATE TABLE `+schema+suffix+`.precious (id text)`)
		fails("schema_exists", nil)
		run(t, owner, `DROP TABLE `+schema+suffix+`.precious`, `DROP SCHEMA `+schema+suffix) // it was still there
	}
	a.kept("refused")
	// The disk is full, as PostgreSQL would say it.
	fails("storage_full", func(step string) {
		if step == stepMade {
			run(t, owner, `CREATE FUNCTION public.full() RETURNS trigger LANGUAGE plpgsql AS
				$$ BEGIN RAISE EXCEPTION 'no space left on device' USING ERRCODE = '53100'; END $$`,
				`CREATE TRIGGER full_disk BEFORE INSERT ON `+schema+`_next.messages EXECUTE FUNCTION public.full()`)
		}
	})
	a.kept("full")
	if left := a.beside(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	before := ""
	for _, gone := range []string{stepCopied, stepTaken} {
		fails("", func(step string) {
			switch {
			case step == stepMade && before != "": // what the one before left is settled by now
				a.kept("gone when " + before)
			case step == gone:
				link.Cut()
			}
		})
		if len(a.beside()) == 0 {
			t.Errorf("gone when %s: nothing is left, and nothing could be taken away", gone)
		}
		link.Restore()
		before = gone
	}
	// The last time it went in the middle of the exchange. What is released now is the original.
	if d, err := a.svc.Release(t.Context(), a.actor, a.id, a.original); err != nil || d.State != tenant.Released {
		t.Fatalf("%+v, %v", d, err)
	}
	var messages int64
	count := func() {
		t.Helper()
		if err := owner.Read(t.Context(), func(b *sqlstore.Batch) { b.One([]any{&messages}, `SELECT count(*) FROM `+schema+`.messages`) }); err != nil {
			t.Fatal(err)
		}
		if messages != 3 {
			t.Errorf("%d messages are in what was released", messages)
		}
	}
	count()
	// What was released is the owner's: a move to there takes nothing away, also when it fails.
	password := a.password
	if _, err := a.svc.EditDatabase(t.Context(), a.actor, a.id, a.original, nil, func(e *DatabaseEdit) error {
		e.Password = &password
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if j := a.attempt(a.activate(a.original), nil); j.State != job.Failed || j.Failure.Code != "schema_exists" {
		t.Errorf("%+v, %+v", j, j.Failure)
	}
	count()
	if left := a.beside(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestAMoveWhoseLeaseWasOver: whoever goes on although somebody else has taken the job up meanwhile undoes nothing of what
// that one did.
func TestAMoveWhoseLeaseWasOver(t *testing.T) {
	h := newHouse(t)
	a := h.leaveFor(tenant.Postgres, tenant.SQLite)
	a.quiet()
	id := a.activate(a.original)
	if j := a.attempt(id, func(step string) {
		if step == stepMade {
			a.attempt(id, func(step string) {
				if step == stepFenced {
					die()
				}
			})
		}
	}); j.State != job.Running {
		t.Fatalf("%+v, %+v", j, j.Failure)
	}
	now, err := a.store.FindTenant(t.Context(), a.id)
	if err != nil {
		t.Fatal(err)
	}
	source, err := a.places.Open(t.Context(), now.Placement)
	if err != nil {
		t.Fatal(err)
	}
	if fenced, err := sqlstore.Fenced(t.Context(), source); err != nil || !fenced {
		t.Errorf("the other's fence is gone, %v", err)
	}
	if err := source.Close(); err != nil {
		t.Fatal(err)
	}
	if j := a.attempt(id, nil); j.State != job.Completed {
		t.Fatalf("%+v, %+v", j, j.Failure)
	}
	if left := a.beside(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestWhatHappensBesideAMove: a wish to cancel is heard until the switch, and leaves the original. While a tenant moves,
// nothing else works on the whole of it; what the operator decides holds, and a backup has it.
func TestWhatHappensBesideAMove(t *testing.T) {
	h := newHouse(t)
	a := h.leaveFor(tenant.SQLite, tenant.Postgres)
	a.quiet()
	other := a.place(a.actor, a.id, tenant.External)
	for _, step := range []string{stepVerified, stepTaken} {
		id := a.activate(a.original)
		j := a.attempt(id, func(s string) {
			if s == step {
				if _, err := a.svc.CancelJob(t.Context(), a.actor, id); err != nil {
					t.Error(err)
				}
			}
		})
		if j.State != job.Cancelled {
			t.Fatalf("cancelled when %s: %+v, %+v", step, j, j.Failure)
		}
		a.kept("cancelled when " + step)
		if left := a.beside(); len(left) > 0 {
			t.Errorf("cancelled when %s: left %v", step, left)
		}
	}
	id := a.activate(a.original)
	r := h.repository()
	busy := func(what string, err error) {
		if fault.CodeOf(err) != "tenant_busy" {
			t.Errorf("%s: %v", what, err)
		}
	}
	var during *Report
	j := a.attempt(id, func(step string) {
		if step != stepVerified {
			return
		}
		_, err := a.svc.Activate(t.Context(), a.actor, a.id, other, nil)
		busy("another move", err)
		_, err = a.svc.Release(t.Context(), a.actor, a.id, a.original)
		busy("releasing the original", err)
		_, err = a.svc.TestDatabase(t.Context(), a.actor, a.id, a.original)
		busy("looking into the original", err)
		busy("removing another place", a.svc.Remove(t.Context(), a.actor, a.id, other, nil))
		for _, what := range []string{EraseAccount, EraseData} {
			_, err = a.svc.Erase(t.Context(), a.actor, a.id, what)
			busy("erasing the "+what, err)
		}
		if during, err = r.Backup(t.Context(), Installation{Master: h.master, Store: h.store, Places: h.places}, BackupOptions{}); err != nil {
			t.Error(err)
		}
		if _, err := a.svc.MigrateFleet(t.Context(), FleetInput{Tenants: []ident.TenantID{a.id}}, nil); err != nil {
			t.Error(err)
		}
		if _, err := a.svc.SetState(t.Context(), ident.System(""), a.id, tenant.Suspended); err != nil {
			t.Error(err)
		}
	})
	if j.State != job.Completed {
		t.Fatalf("%+v, %+v", j, j.Failure)
	}
	now, err := a.store.FindTenant(t.Context(), a.id)
	if err != nil || now.State != tenant.Suspended || now.Placement.Database != a.original || now.Job != "" {
		t.Errorf("%+v, %v", now, err)
	}
	if during == nil {
		t.Fatal("no backup")
	}
	for _, one := range during.Reports {
		if one.Err != nil {
			t.Errorf("%s is not in the backup: %v", one.Owner, one.Err)
		}
	}
	if is := a.holds(a.original); is.Sum == a.was.Sum {
		t.Error("what was written while it lived elsewhere is not there")
	}
}
