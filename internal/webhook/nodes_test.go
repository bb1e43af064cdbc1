package webhook_test

import (
	"context"
	"net/http"
	"runtime"
	"sync"
	"testing"

	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/webhook"
)

// TestTwoNodesShareTheWork: two processes send what one PostgreSQL has, and never one delivery at once.
func TestTwoNodesShareTheWork(t *testing.T) {
	host, err := sqlstore.OpenPostgresHost(t.Context(), seal.Secret(pgtest.URL(t)), sqlstore.PostgresHostOptions{
		MaxConns: 16, RuntimePassword: seal.Secret(ident.New[ident.SessionID]())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Close)
	id := ident.New[ident.DatabaseID]()
	if err := host.Provision(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	here, times := map[string]int{}, map[string]int{}
	all := make(chan struct{})
	const events = 200
	s := newSink(t, func(_ http.ResponseWriter, r *http.Request) {
		event := r.Header.Get("webhook-id")
		mu.Lock()
		defer mu.Unlock()
		here[event]++
		if here[event] > 1 {
			t.Errorf("%s is sent twice at once", event)
		}
		mu.Unlock()
		runtime.Gosched() // the other one may begin, if it would
		mu.Lock()
		here[event]--
		if times[event]++; len(times) == events && times[event] == 1 {
			close(all)
		}
	})
	first := newWorld(t, func(c *webhook.Config) { c.Node = "first" })
	worlds := make([]*world, 2)
	for i, name := range []string{"first", "second"} {
		w := first
		if i > 0 {
			w = newWorld(t, func(c *webhook.Config) { c.Node, c.Sealer = name, first.keys })
		}
		w.stop()
		w.store = sqlstore.NewTenantStore(host.Open(id), nil)
		w.clock.Pass(first.clock.Now().Sub(w.clock.Now()))
		w.start()
		worlds[i] = w
	}
	first.hook(s.URL)
	var both sync.WaitGroup
	for _, w := range worlds {
		both.Go(func() {
			for range events / 4 {
				w.happen(2, "")
				w.Wake()
			}
		})
	}
	both.Wait()
	for _, w := range worlds {
		w.later(0)
	}
	<-all
	for _, w := range worlds {
		w.part.settled()
	}
	mu.Lock()
	defer mu.Unlock()
	for event, n := range times {
		if n != 1 {
			t.Errorf("%s came %d times", event, n)
		}
	}
	for _, w := range worlds {
		w.stop()
	}
	if err := host.Destroy(context.WithoutCancel(t.Context()), id); err != nil {
		t.Error(err)
	}
}
