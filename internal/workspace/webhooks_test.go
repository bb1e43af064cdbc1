package workspace

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/event/catalogue"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/outbound"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/webhook"
)

// TestWebhooksOweTheMaster: a tenant that has deliveries due is known to the master before they are committed, without a
// row of the master's for each; whoever looks sends them, also when the hint is lost.
func TestWebhooksOweTheMaster(t *testing.T) {
	came := make(chan string, 1000)
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a request that breaks is sent again
		came <- r.Header.Get("webhook-id")
	}))
	t.Cleanup(sink.Close)
	now := time.Now()
	clock := func() time.Time { return now }
	h := newHouse(t, func(c *Config) { c.Now = clock })
	dispatcher := func() *webhook.Dispatcher {
		guard := outbound.NewDialer(outbound.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
		d := webhook.NewDispatcher(webhook.Config{Client: outbound.NewClient(guard, nil), Guard: guard, Inside: true, Sealer: h.keys,
			Known: catalogue.Known, Now: clock, Node: string(ident.New[ident.EventID]()), Sole: true})
		return d
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	open := func(d *webhook.Dispatcher) {
		h.start(func(c *Config) { c.Now, c.Webhooks = clock, d })
		t.Cleanup(func() { d.Close(ended) })
	}
	dead := dispatcher()
	open(dead)
	me := h.newTenant()
	actor := ident.Actor{Account: me.Account}
	ws := h.acquire(me)
	make1 := func() {
		t.Helper()
		if _, err := ws.Projects.Create(t.Context(), actor, project.CreateInput{Details: project.Details{Name: "p"}}); err != nil {
			t.Fatal(err)
		}
	}
	make1()
	if h.town.written != 0 {
		t.Error("a tenant without webhooks costs the master something")
	}
	dead.Close(ended) // nobody sends: as if the process had died right after each commit
	in := webhook.CreateInput{Details: webhook.Details{Name: "w", URL: sink.URL, Events: []string{"project.*"}}}
	if _, err := ws.Webhooks.Create(t.Context(), actor, in); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		make1()
	}
	if h.town.written != 1 {
		t.Errorf("%d hints for 30 events of one moment", h.town.written)
	}
	if hint, _ := h.town.hint(me.ID); hint.due.After(now.Add(time.Minute)) || len(came) > 0 {
		t.Errorf("%+v, %d came", hint, len(came))
	}
	ws.Release()
	h.pool.Expel(t.Context(), me.ID)

	open(dispatcher())
	h.pool.lookAtDue(t.Context())
	if h.pool.Stats().Open != 0 {
		t.Error("it was looked at before it was due")
	}
	now = now.Add(15 * time.Second)
	h.pool.lookAtDue(t.Context())
	for range 30 {
		<-came
	}
	// Somebody looks now and then, whatever the master knows.
	if hint, there := h.town.hint(me.ID); !there || hint.due.After(now.Add(time.Hour)) {
		t.Errorf("%v %+v", there, hint)
	}

	// A lost hint is found by whoever opens the tenant.
	alive := h.pool.Webhooks
	ws = h.acquire(me)
	alive.Close(ended)
	make1()
	ws.Release()
	h.pool.Expel(t.Context(), me.ID)
	h.town.mu.Lock()
	delete(h.town.hints, me.ID)
	h.town.mu.Unlock()
	open(dispatcher())
	h.acquire(me).Release()
	<-came
}

// TestTheBacklogForgets what is no tenant's any more, or of no webhook.
func TestTheBacklogForgets(t *testing.T) {
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }))
	t.Cleanup(sink.Close)
	for name, end := range map[string]func(h *house, me tenant.Tenant, hook ident.WebhookID){
		"a tenant that is gone when it is looked at": func(h *house, me tenant.Tenant, _ ident.WebhookID) {
			h.pool.Expel(t.Context(), me.ID)
			h.town.mu.Lock()
			delete(h.town.tenants, me.ID)
			h.town.mu.Unlock()
			h.pool.lookAt(t.Context(), me.ID, h.pool.Now())
		},
		"one of which the master tells": func(h *house, me tenant.Tenant, _ ident.WebhookID) {
			h.pool.tell(t.Context(), event.Event{Type: EventErased, Subject: string(me.ID)})
		},
		"one that is not open, of which the master tells": func(h *house, me tenant.Tenant, _ ident.WebhookID) {
			h.pool.Expel(t.Context(), me.ID)
			h.pool.tell(t.Context(), event.Event{Type: EventErased, Subject: string(me.ID)})
		},
		"one without webhooks": func(h *house, me tenant.Tenant, hook ident.WebhookID) {
			ws := h.acquire(me)
			defer ws.Release()
			if err := ws.Webhooks.Delete(t.Context(), ident.Actor{Account: me.Account}, hook, nil); err != nil {
				t.Fatal(err)
			}
			h.pool.lookAt(t.Context(), me.ID, h.pool.Now())
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			guard := outbound.NewDialer(outbound.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
			d := webhook.NewDispatcher(webhook.Config{Client: outbound.NewClient(guard, nil), Guard: guard, Inside: true, Sealer: h.keys,
				Known: catalogue.Known, Node: "a", Sole: true})
			h.start(func(c *Config) { c.Webhooks = d })
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			t.Cleanup(func() { d.Close(ended) })
			me := h.newTenant()
			actor := ident.Actor{Account: me.Account}
			ws := h.acquire(me)
			hook, err := ws.Webhooks.Create(t.Context(), actor, webhook.CreateInput{Details: webhook.Details{Name: "w", URL: sink.URL, Events: []string{"project.*"}}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ws.Projects.Create(t.Context(), actor, project.CreateInput{Details: project.Details{Name: "p"}}); err != nil {
				t.Fatal(err)
			}
			ws.Release()
			h.pool.lookAt(t.Context(), me.ID, h.pool.Now())
			if n := d.Stats().Pending; n != 1 {
				t.Fatalf("%d are pending", n)
			}
			end(h, me, hook.Endpoint.ID)
			until(t, "nothing is pending", func() bool { return d.Stats().Pending == 0 }) // the master's news are acted on beside
			if s := d.Stats(); !s.Since.IsZero() {
				t.Errorf("since %v", s.Since)
			}
		})
	}
}
