package relocate

import (
	"slices"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

// TestTenantsAreToldOfTheirDatabases: what the master's log says of a tenant's databases is in the tenant's own log, each
// event once, in order and wherever the tenant lives by then, though a process dies between the two databases.
func TestTenantsAreToldOfTheirDatabases(t *testing.T) {
	h := newHouse(t)
	ten, actor := h.newTenant(tenant.SQLite)
	other, _ := h.newTenant(tenant.SQLite)
	h.fill(actor, ten.ID, 3)
	own := h.place(actor, ten.ID, tenant.External)
	hosted := h.place(actor, ten.ID, tenant.Postgres)
	untold := func() []sqlstore.News {
		t.Helper()
		list, err := h.store.News(t.Context(), time.Now().Add(time.Hour), 100)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	// Nobody tells yet. A process tells the first and dies before it takes it away.
	news := untold()
	if len(news) != 2 || news[0].Tenant != ten.ID || news[0].Event.Subject != string(own) || news[1].Event.Subject != string(hosted) {
		t.Fatalf("%+v", news)
	}
	ws := h.acquire(actor, ten.ID)
	if err := sqlstore.NewTenantStore(ws.Database(), nil).Tell(t.Context(), news[0].Event, ten.Account); err != nil {
		t.Fatal(err)
	}
	ws.Release()
	h.node.end()

	h.news = h.store
	h.node = h.start("node-b", true)
	h.moveTo(actor, ten.ID, own)
	j, err := h.svc.MoveHosted(t.Context(), ident.System(""), ten.ID, tenant.Postgres)
	if err != nil {
		t.Fatal(err)
	}
	if j = h.await(j.ID); j.State != job.Completed {
		t.Fatalf("%+v", j.Failure)
	}
	if _, err := h.svc.Release(t.Context(), actor, ten.ID, own); err != nil {
		t.Fatal(err)
	}
	// Who may not be changed is told when that is over.
	if _, err := h.svc.SetState(t.Context(), ident.System(""), other.ID, tenant.ReadOnly); err != nil {
		t.Fatal(err)
	}
	h.place(ident.System(""), other.ID, tenant.Postgres)
	if list := untold(); slices.ContainsFunc(list, func(n sqlstore.News) bool { return n.Tenant == other.ID }) {
		t.Errorf("a tenant that is read-only would be told: %+v", list)
	}
	if _, err := h.svc.SetState(t.Context(), ident.System(""), other.ID, tenant.Active); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); len(untold()) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never told: %+v", untold())
		}
	}

	type fact struct {
		id      ident.EventID
		kind    string
		subject string
	}
	facts := func(log event.Log) (list []fact) {
		t.Helper()
		all, err := log.Since(t.Context(), 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			if strings.HasPrefix(e.Type, "database.") {
				list = append(list, fact{e.ID, e.Type, e.Subject})
			}
		}
		return list
	}
	ws = h.acquire(actor, ten.ID)
	defer ws.Release()
	others := h.acquire(ident.System(""), other.ID)
	defer others.Release()
	master, his, theirs := facts(h.store), facts(ws.Events), facts(others.Events)
	if len(theirs) != 1 || !slices.Equal(master, append(slices.Clone(his), theirs...)) {
		t.Errorf("the master's log says\n%v\nand the tenants' say\n%v\n%v", master, his, theirs)
	}
	kinds := []string{}
	for _, f := range his {
		kinds = append(kinds, f.kind)
	}
	want := []string{"database.created", "database.created", "database.activation_started", "database.activated",
		"database.activation_started", "database.activated", "database.released"}
	if !slices.Equal(kinds, want) {
		t.Errorf("told of %v, want %v", kinds, want)
	}
	// The owner's trail has each of them once, whoever did it.
	entries, _, err := ws.Audit.List(t.Context(), actor, audit.Filter{Action: "database.*"}, "", 100)
	if err != nil || len(entries) != len(want) {
		t.Errorf("%d entries, want %d: %+v, %v", len(entries), len(want), entries, err)
	}
}
