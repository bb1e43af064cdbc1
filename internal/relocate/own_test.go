package relocate

import (
	"slices"
	"strings"
	"testing"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

func schemaOf(id ident.DatabaseID) string {
	return "claude_memory_" + strings.TrimPrefix(string(id), id.Prefix())
}

// rows counts those of a table, -1 when it is not there.
func rows(t *testing.T, db *sqlstore.DB, table string) (n int) {
	t.Helper()
	there := false
	if err := db.Read(t.Context(), func(b *sqlstore.Batch) { b.One([]any{&there}, `SELECT to_regclass(?) IS NOT NULL`, table) }); err != nil {
		t.Fatal(err)
	}
	if !there {
		return -1
	}
	if err := db.Read(t.Context(), func(b *sqlstore.Batch) { b.One([]any{&n}, `SELECT count(*) FROM `+table) }); err != nil {
		t.Fatal(err)
	}
	return n
}

// set changes what the directory says of a database.
func (h *house) set(id ident.TenantID, of ident.DatabaseID, state tenant.DatabaseState) {
	h.t.Helper()
	if _, err := h.store.UpdateDatabase(h.t.Context(), id, of, nil, func(_ tenant.Tenant, d tenant.Database) (tenant.Database, event.Change, error) {
		d.State = state
		return d, event.Change{}, nil
	}); err != nil {
		h.t.Fatal(err)
	}
}

// TestWhatIsNotOursStays: a move that is refused takes nothing away, nor does what undoes one that was killed before it had
// made anything, whatever the directory says; and a test says beforehand that it will be refused.
func TestWhatIsNotOursStays(t *testing.T) {
	h := newHouse(t)
	owner := asOwner(t, h.servers[2])
	a := h.leaveFor(tenant.External, tenant.SQLite)
	a.quiet()
	d, err := h.svc.Release(t.Context(), a.actor, a.id, a.original)
	if err != nil || d.State != tenant.Released {
		t.Fatalf("%+v, %v", d, err)
	}
	schema := schemaOf(a.original)
	run(t, owner, `CREATE TABLE `+schema+`.my_own_notes (id text)`, `INSERT INTO `+schema+`.my_own_notes VALUES ('mine')`)
	there := func(when string) {
		t.Helper()
		if n := rows(t, owner, schema+".my_own_notes"); n != 1 {
			t.Errorf("%s: %d notes", when, n)
		}
		if n := rows(t, owner, schema+".messages"); n != 3 {
			t.Errorf("%s: %d messages", when, n)
		}
	}
	if d, err = h.svc.EditDatabase(t.Context(), a.actor, a.id, a.original, nil, func(e *DatabaseEdit) error {
		e.Password = &h.password
		return nil
	}); err != nil || d.State != tenant.Ready {
		t.Fatalf("%+v, %v", d, err)
	}
	r, err := h.svc.TestDatabase(t.Context(), a.actor, a.id, a.original)
	if err != nil || r.OK || !slices.ContainsFunc(r.Problems, func(p sqlstore.Problem) bool { return p.Code == "schema_exists" }) {
		t.Errorf("the test says %+v, %v", r, err)
	}
	refused := func(when string) {
		t.Helper()
		if j := a.attempt(a.activate(a.original), nil); j.State != job.Failed || j.Failure.Code != "schema_exists" {
			t.Errorf("%s: %+v, %+v", when, j, j.Failure)
		}
		there(when)
	}
	refused("refused")
	h.set(a.id, a.original, tenant.Filling) // as if a job had been killed when it was about to make something
	refused("after one that was killed")
	id := a.activate(a.original)
	j, err := h.store.FindJob(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	h.leave(j)
	h.set(a.id, a.original, tenant.Filling)
	if j = a.attempt(id, nil); j.State != job.Failed || j.Failure.Code != "schema_exists" {
		t.Errorf("%+v, %+v", j, j.Failure)
	}
	there("killed")
	h.set(a.id, a.original, tenant.Filling)
	if d, err = h.svc.Release(t.Context(), a.actor, a.id, a.original); err != nil || d.State != tenant.Released {
		t.Errorf("%+v, %v", d, err)
	}
	there("released")
}

// TestLiveDataIsNotHalfACopy: the data that a tenant lives in is not destroyed for an older directory that has it as half a
// copy, and half a copy is removed unless its owner has put something there.
func TestLiveDataIsNotHalfACopy(t *testing.T) {
	h := newHouse(t)
	owner := asOwner(t, h.servers[2])
	ten, actor := h.newTenant(tenant.External)
	live := tenant.Database{Placement: ten.Placement}
	if err := h.places.Undo(t.Context(), live.Placement); fault.CodeOf(err) != "schema_exists" {
		t.Errorf("live data: %v", err)
	}
	if n := rows(t, owner, schemaOf(live.ID())+".messages"); n != 0 {
		t.Errorf("live data: %d messages", n)
	}
	half := h.half(ten.ID, tenant.External)
	table := schemaOf(half.ID()) + ".my_own_notes"
	run(t, owner, `CREATE TABLE `+table+` (id text)`)
	if _, err := h.svc.Release(t.Context(), actor, ten.ID, half.ID()); fault.CodeOf(err) != "schema_in_use" {
		t.Errorf("with a table of its owner's in it: %v", err)
	}
	if n := rows(t, owner, table); n != 0 {
		t.Errorf("%d notes", n)
	}
	run(t, owner, `DROP TABLE `+table)
	if d, err := h.svc.Release(t.Context(), actor, ten.ID, half.ID()); err != nil || d.State != tenant.Released {
		t.Errorf("%+v, %v", d, err)
	}
	if n := rows(t, owner, schemaOf(half.ID())+".messages"); n != -1 {
		t.Errorf("half a copy is still there, with %d messages", n)
	}
}

// TestAHostedPlaceThatIsTaken: what lies under the name of a hosted database that is empty as far as the directory knows is
// not worked on.
func TestAHostedPlaceThatIsTaken(t *testing.T) {
	for kind, other := range map[tenant.Kind]tenant.Kind{tenant.SQLite: tenant.Postgres, tenant.Postgres: tenant.SQLite} {
		t.Run(KindName(kind), func(t *testing.T) {
			h := newHouse(t)
			ten, actor := h.newTenant(other)
			to := h.place(actor, ten.ID, kind)
			at, err := h.places.Make(t.Context(), tenant.Placement{Database: to, Kind: kind})
			if err != nil {
				t.Fatal(err)
			}
			db, err := h.places.Open(t.Context(), at)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = db.Close() }()
			if err := writeTo(t.Context(), db, ten, "what is newer than the directory"); err != nil {
				t.Fatal(err)
			}
			j, err := h.svc.Activate(t.Context(), actor, ten.ID, to, nil)
			if err != nil {
				t.Fatal(err)
			}
			if j = h.await(j.ID); j.State != job.Failed || j.Failure.Code != "database_kept" {
				t.Errorf("%+v, %+v", j, j.Failure)
			}
			again, err := h.places.Open(t.Context(), at)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = again.Close() }()
			n := 0
			if err := again.Read(t.Context(), func(b *sqlstore.Batch) { b.One([]any{&n}, `SELECT count(*) FROM projects`) }); err != nil || n != 1 {
				t.Errorf("%d projects, %v", n, err)
			}
			if d, err := h.store.FindDatabase(t.Context(), ten.ID, to); err != nil || d.State != tenant.Empty {
				t.Errorf("%+v, %v", d, err)
			}
		})
	}
}

// TestReceiptsTellOfWhatWasReleased: what lies in its owner's database since it was released is in no receipt as erased, nor
// left out, also when the server can sign in there again.
func TestReceiptsTellOfWhatWasReleased(t *testing.T) {
	h := newHouse(t)
	owner := asOwner(t, h.servers[2])
	a := h.leaveFor(tenant.External, tenant.SQLite)
	if _, err := h.svc.Release(t.Context(), a.actor, a.id, a.original); err != nil {
		t.Fatal(err)
	}
	if _, err := h.svc.EditDatabase(t.Context(), a.actor, a.id, a.original, nil, func(e *DatabaseEdit) error {
		e.Password = &h.password
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	never, err := h.svc.Register(t.Context(), a.actor, a.id, NewDatabase{Name: "Never used", Address: h.own, Password: h.password})
	if err != nil {
		t.Fatal(err)
	}
	gone := h.own
	gone.Port = 1
	away, err := h.svc.Register(t.Context(), a.actor, a.id, NewDatabase{Name: "Away", Address: gone, Password: h.password})
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{EraseData, EraseAccount} {
		j, err := h.svc.Erase(t.Context(), a.actor, a.id, what)
		if err != nil {
			t.Fatal(err)
		}
		j = h.await(j.ID)
		r, err := ReadReceipt(j.Report)
		if err != nil {
			t.Fatalf("%+v, %v", j, err)
		}
		said := map[string]string{}
		for _, s := range r.Stores {
			said[s.Name] = s.Outcome
		}
		if said[string(a.original)] != outcomeLeft || said[string(never.ID())] != "" || said[string(away.ID())] != outcomeLeft {
			t.Errorf("%s: %+v", what, r.Stores)
		}
		if n := rows(t, owner, schemaOf(a.original)+".messages"); n != 3 {
			t.Errorf("%s: %d messages", what, n)
		}
	}
}

// TestARefusedMoveRegistersNothing: the hosted place that a move would have gone to, or a file written anew, is not among
// the owner's databases when the job was refused.
func TestARefusedMoveRegistersNothing(t *testing.T) {
	h := newHouse(t)
	ten, actor := h.newTenant(tenant.SQLite)
	h.idle()
	refused := func(code string, entries int) {
		t.Helper()
		_, rekey := h.svc.Rekey(t.Context(), ident.System(""), ten.ID)
		_, move := h.svc.MoveHosted(t.Context(), ident.System(""), ten.ID, tenant.Postgres)
		if fault.CodeOf(rekey) != code || fault.CodeOf(move) != code {
			t.Errorf("%v; %v; want %s", rekey, move, code)
		}
		list, err := h.svc.Databases(t.Context(), actor, ten.ID)
		if err != nil || len(list) != entries || slices.ContainsFunc(list, func(d tenant.Database) bool { return d.State == tenant.Empty }) {
			t.Errorf("%s: %+v, %v", code, list, err)
		}
	}
	for _, state := range []tenant.State{tenant.Suspended, tenant.Quarantined} {
		if _, err := h.svc.SetState(t.Context(), ident.System(""), ten.ID, state); err != nil {
			t.Fatal(err)
		}
		refused("tenant_"+string(state), 1)
	}
	if _, err := h.svc.SetState(t.Context(), ident.System(""), ten.ID, tenant.Active); err != nil {
		t.Fatal(err)
	}
	own := h.place(actor, ten.ID, tenant.External)
	if _, err := h.svc.Activate(t.Context(), actor, ten.ID, own, nil); err != nil {
		t.Fatal(err)
	}
	refused("tenant_busy", 2)
}
