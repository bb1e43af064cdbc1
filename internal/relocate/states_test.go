package relocate

import (
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/outbound"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/pgtest/toxic"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/workspace"
)

// TestStatesHoldEverywhere: what the operator decides about a tenant holds at once where it was decided, and soon on
// every other node.
func TestStatesHoldEverywhere(t *testing.T) {
	h := newHouse(t)
	h.node.end()
	a, b := h.start("node-a", false), h.start("node-b", false)
	defer a.end()
	defer b.end()
	for _, kind := range []tenant.Kind{tenant.SQLite, tenant.Postgres} {
		h.node = a
		ten, actor := h.newTenant(kind)
		w := h.fill(actor, ten.ID, 3)
		for _, n := range []*node{a, b} { // open on both
			h.node = n
			w.check2(t)
		}
		for _, c := range []struct {
			state       tenant.State
			read, write string // codes; empty: fine
		}{
			{tenant.ReadOnly, "", "tenant_read_only"},
			{tenant.Quarantined, "", "tenant_quarantined"},
			{tenant.Suspended, "tenant_suspended", "tenant_suspended"},
			{tenant.Active, "", ""},
		} {
			if _, err := a.svc.SetState(t.Context(), ident.System("test"), ten.ID, c.state); err != nil {
				t.Fatal(err)
			}
			for _, n := range []*node{a, b} {
				var read, write string
				// Node a knows at once; node b follows the master's log.
				for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
					read, write = "", ""
					ws, err := n.pool.Acquire(t.Context(), actor, ten.ID)
					if err != nil {
						read, write = fault.CodeOf(err), fault.CodeOf(err)
					} else {
						if _, _, err := ws.Conversations.List(t.Context(), actor, conversation.Query{Limit: 5}); err != nil {
							read = fault.CodeOf(err)
						}
						if _, err := ws.Conversations.Send(t.Context(), actor, w.convs[0], conversation.SendInput{Text: "x"}); err != nil {
							write = fault.CodeOf(err)
						}
						ws.Release()
					}
					if read == c.read && write == c.write || n == a || time.Now().After(deadline) {
						break
					}
				}
				if read != c.read || write != c.write {
					t.Errorf("%s, %s on %s: read %q, write %q", kind, c.state, n.name, read, write)
				}
			}
		}
		if _, err := a.svc.SetState(t.Context(), ident.System("test"), ten.ID, tenant.Moving); fault.CodeOf(err) != "invalid_input" {
			t.Errorf("a state that is only shown was set: %v", err)
		}
	}
}

// TestMoveBesideAnotherNode moves a tenant while another node writes to it: nothing that was acknowledged there is lost,
// and it reads the new place as soon as it reads anything.
func TestMoveBesideAnotherNode(t *testing.T) {
	h := newHouse(t)
	h.node.end()
	a, b := h.start("node-a", false), h.startIdle("node-b", false)
	defer a.end()
	defer b.end()
	h.node = a
	ten, actor := h.newTenant(tenant.Postgres)
	dest := h.place(actor, ten.ID, tenant.External)
	h.node = b
	// The writers write through node b, which runs no jobs.
	w := h.fill(actor, ten.ID, 20)
	w.pool = b.pool
	w.start(3)
	h.node = a
	h.moveTo(actor, ten.ID, dest)
	w.more(20)
	w.stop()
	for _, n := range []*node{a, b} {
		h.node = n
		w.pool = n.pool
		w.check()
	}
	now, err := h.store.FindTenant(t.Context(), ten.ID)
	if err != nil {
		t.Fatal(err)
	}
	h.sameHistory(now, ten.Placement.Database)
}

// TestWhoHangsHoldsNobodyUp: what a command decides about a tenant holds in the server beside it while another one's
// database does not answer whoever signs in, however often that one's credentials are edited.
func TestWhoHangsHoldsNobodyUp(t *testing.T) {
	h := newHouse(t)
	h.node.end()
	address, link := toxic.Slow(t, pgtest.URL(t), 0)
	h.own, h.password = addressOf(t, address)
	dialer := outbound.NewDialer(outbound.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}})
	patient := sqlstore.NewExternals(sqlstore.ExternalOptions{Dial: dialer.DialContext, PlainAllowed: dialer.Allowed, ConnectTimeout: time.Minute})
	t.Cleanup(patient.Close)
	var err error
	h.places, err = workspace.NewPlacements(t.Context(), workspace.PlacementsConfig{Root: filepath.Join(h.dir, "tenants"), Keys: h.keys,
		Hosts: h.hosts, Externals: patient})
	if err != nil {
		t.Fatal(err)
	}
	h.node = h.start("node-b", true)
	hangs, owner := h.newTenant(tenant.External)
	other, actor := h.newTenant(tenant.SQLite)
	h.acquire(owner, hangs.ID).Release()
	h.acquire(actor, other.ID).Release()
	link.Hang()
	defer link.Restore()
	for range 3 {
		_, err := h.store.UpdateDatabase(t.Context(), hangs.ID, hangs.Placement.Database, nil,
			func(_ tenant.Tenant, d tenant.Database) (tenant.Database, event.Change, error) {
				ch := event.NewChange(owner, time.Now())
				d.Placement.SealedPassword = h.places.SealPassword(d.ID(), h.password)
				ch.Add(workspace.EventUpdated, string(hangs.ID), map[string]any{"credentials": true})
				return d, ch, nil
			})
		if err != nil {
			t.Fatal(err)
		}
	}
	command := New(Config{Store: h.store, Places: h.places, Keys: h.keys, Node: "command"})
	if _, err := command.SetState(t.Context(), ident.System("test"), other.ID, tenant.Suspended); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		ws, err := h.pool.Acquire(t.Context(), actor, other.ID)
		if fault.CodeOf(err) == "tenant_suspended" {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		ws.Release()
		if time.Now().After(deadline) {
			t.Fatal("it is not suspended in the server")
		}
	}
}
