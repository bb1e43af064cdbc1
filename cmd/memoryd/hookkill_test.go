package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/internal/pgtest"
)

// The server is killed (SIGKILL) at random moments while events are committed, claimed, sent and recorded, and started again.
// Whatever is in the log in the end must have come to the endpoint, under its own id and with the same bytes each time, and
// nothing else. HOOK_ROUNDS says how often (make hooks ROUNDS=200); CRASH_SEED repeats the moments of an earlier run.

const (
	hookRounds = 4  // without HOOK_ROUNDS
	refuseEach = 40 // of those that come first, one of so many is refused
)

// hookSink is an endpoint that loses some answers.
type hookSink struct {
	*httptest.Server
	mu      sync.Mutex
	changed *sync.Cond
	came    map[string]int // times, by webhook-id
	bodies  map[string]string
	first   []string // ids, as they came first
	wrong   []string
}

func newHookSink(t *testing.T) *hookSink {
	t.Helper()
	s := &hookSink{came: map[string]int{}, bodies: map[string]string{}}
	s.changed = sync.NewCond(&s.mu)
	s.Server = httptest.NewServer(http.HandlerFunc(s.take))
	t.Cleanup(s.Close)
	return s
}

func (s *hookSink) take(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // it was killed while it sent
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id := r.Header.Get("webhook-id")
	if was, known := s.bodies[id]; known && was != string(body) {
		s.wrong = append(s.wrong, id+" came with other bytes")
	}
	s.bodies[id] = string(body)
	if s.came[id]++; s.came[id] == 1 {
		if s.first = append(s.first, id); len(s.first)%refuseEach == 0 {
			w.WriteHeader(http.StatusInternalServerError) // it has to come again
		}
	}
	s.changed.Broadcast()
}

// await waits until all have come, or a time is over, and returns those that have not.
func (s *hookSink) await(ids []string) (missing []string) {
	s.until(func() bool {
		missing = slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return s.came[id] > 0 })
		return len(missing) == 0
	})
	return missing
}

// awaitAgain waits until one that was refused has come again, some seconds later.
func (s *hookSink) awaitAgain() {
	s.until(func() bool { return len(s.first) < refuseEach || s.came[s.first[refuseEach-1]] > 1 })
}

// until waits until something holds, or two minutes are over.
func (s *hookSink) until(holds func() bool) {
	over := false
	late := time.AfterFunc(2*time.Minute, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		over = true
		s.changed.Broadcast()
	})
	defer late.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for !holds() && !over {
		s.changed.Wait()
	}
}

func TestWebhookKills(t *testing.T) {
	binary := binary(t)
	rounds := fromEnv(t, "HOOK_ROUNDS", hookRounds)
	seed := fromEnv(t, "CRASH_SEED", int(time.Now().UnixNano()%1e9))
	for name, env := range map[string]func() []string{
		"sqlite": func() []string { return nil },
		"postgres": func() []string {
			return []string{"MASTER_DATABASE_URL=" + pgtest.URL(t), "TENANT_DATABASE_URLS=" + pgtest.URL(t)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // on PostgreSQL it waits for the leases of what was killed last
			w := emptyWorld(t, binary, seed, append(env(), "OUTBOUND_ALLOW=127.0.0.0/8", "WEBHOOK_TIMEOUT=1")...)
			w.start()
			w.join("hooked", 1)
			sink := newHookSink(t)
			hookKills(w, sink, rounds)
			for _, p := range append(w.problems, sink.wrong...) {
				t.Error(p)
			}
			t.Logf("seed %d, %d kills", seed, rounds)
		})
	}
}

// written waits until so many notes were acknowledged: a busy machine takes its time.
func (w *world) written(notes int) {
	for late := time.Now().Add(30 * time.Second); time.Now().Before(late); time.Sleep(2 * time.Millisecond) {
		w.mu.Lock()
		enough := w.acked >= notes
		w.mu.Unlock()
		if enough {
			return
		}
	}
	w.t.Fatal("nothing is acknowledged")
}

func hookKills(w *world, sink *hookSink, rounds int) {
	t, p := w.t, w.people[0]
	t.Helper()
	var hook struct{ ID string }
	if err := p.client.Post(w.ctx, "/webhooks", map[string]any{"name": "kills", "url": sink.URL, "events": []string{"*"}}, &hook); err != nil {
		t.Fatal(err)
	}
	for n := range rounds {
		var load sync.WaitGroup
		for i := range 3 {
			conv, err := p.client.NewConversation(w.ctx, fmt.Sprint(n, "/", i))
			if err != nil {
				t.Fatal(err)
			}
			load.Go(func() { w.write(p, conv.ID, fmt.Sprint(n, "/", i)) })
		}
		w.written(10 * (n + 1))
		time.Sleep(time.Duration(w.dice.IntN(200)) * time.Millisecond) // that is the experiment
		w.server.Kill()
		load.Wait()
		w.start()
	}
	committed := map[string]string{}
	var ids []string
	for after := 0; ; {
		var page struct {
			Data []struct {
				ID, Type string
				Seq      int
			}
			Next *string `json:"next_cursor"`
		}
		if err := p.client.Get(w.ctx, "/events?limit=200&after="+strconv.Itoa(after), &page); err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Data {
			committed[e.ID], after = e.Type, e.Seq
			ids = append(ids, e.ID)
		}
		if page.Next == nil {
			break
		}
	}
	missing := sink.await(ids)
	sink.awaitAgain()
	for _, id := range missing[:min(len(missing), 10)] {
		w.problem("lost: %s %s never came", committed[id], id)
	}
	sink.mu.Lock()
	defer sink.mu.Unlock()
	again := 0
	for id, times := range sink.came {
		again += times - 1
		var m struct{ Data struct{ ID, Type string } }
		if err := json.Unmarshal([]byte(sink.bodies[id]), &m); err != nil || committed[id] == "" || m.Data.ID != id || m.Data.Type != committed[id] {
			w.problem("strange: %s came and is not in the log like that: %s", id, sink.bodies[id])
		}
	}
	t.Logf("%d events committed, %d deliveries came again, %d notes acknowledged", len(ids), again, w.acked)
	if w.acked < 10*rounds || again == 0 {
		w.problem("too little happened to prove anything: %d notes, %d came again", w.acked, again)
	}
}
