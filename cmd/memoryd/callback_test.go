package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"

	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/claude/n8nfake"
	"claude-memory-backend/internal/natsbus/natstest"
	"claude-memory-backend/internal/pgtest"
)

const signingSecret = "what memoryd and n8n have in common"

// workflows is an installation whose turns n8n answers later: one real process on a folder, or two over one PostgreSQL and
// one NATS.
type workflows struct {
	*several
	start []func() *lab.Server // of each node, once more
	n8n   *n8nfake.Fake
	calls chan n8nfake.Call
}

// perEngine runs a test with one node on SQLite and with two on PostgreSQL.
func perEngine(t *testing.T, test func(t *testing.T, w *workflows), env ...string) {
	t.Helper()
	t.Parallel() // it waits more than it works
	for engine, nodes := range map[string]int{"sqlite": 1, "postgres": 2} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			test(t, startWorkflows(t, nodes, env...))
		})
	}
}

func startWorkflows(t *testing.T, nodes int, env ...string) *workflows {
	t.Helper()
	w := &workflows{several: &several{t: t, ctx: t.Context()}, calls: make(chan n8nfake.Call, 10)}
	w.n8n = n8nfake.New("X-Backend-Secret", "the header's", n8nfake.Arrived(func(c n8nfake.Call) { w.calls <- c }, n8nfake.Accepted()))
	fake := httptest.NewServer(w.n8n)
	t.Cleanup(fake.Close)
	env = append([]string{"LOG_LEVEL=info", "AI_PROVIDER=n8n", "N8N_WEBHOOK_URL=" + fake.URL + "/webhook/later", "N8N_API_KEY=the header's",
		"N8N_SIGNING_SECRET=" + signingSecret, "MASTER_KEY=Vt3Nw8Qz1Xc6Rb9Mj4Lk7Hp2Dg5Sy0Fa", "JWT_SECRET=8Jq2vWm4Zx7Lr1Tn9Yb3Hd6Kf5Gs0Pcx"}, env...)
	if nodes > 1 {
		nats := natstest.Start(t, &natsserver.Options{})
		env = append(env, "MASTER_DATABASE_URL="+pgtest.URL(t), "TENANT_DATABASE_URLS="+pgtest.URL(t), "NATS_URL="+nats.URL)
	}
	for range nodes {
		dir := t.TempDir()
		start := func() *lab.Server {
			t.Helper()
			started, err := lab.Start(binary(t), dir, append(env, "STORAGE_PATH="+filepath.Join(dir, "storage"))...)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(started.Kill)
			return started
		}
		w.start = append(w.start, start)
		w.servers = append(w.servers, start())
		w.clients = append(w.clients, lab.Dial(w.servers[len(w.servers)-1].URL, 16))
	}
	t.Cleanup(func() {
		for i, srv := range w.servers {
			if log := srv.Log(); t.Failed() || strings.Contains(log, "cmcb_") {
				t.Logf("log of node %d:\n%s", i, log)
			}
			for _, secret := range []string{"cmcb_", signingSecret, "the header's"} {
				if strings.Contains(srv.Log(), secret) {
					t.Errorf("a log shows %s", secret)
				}
			}
		}
	})
	if err := w.clients[0].Register(w.ctx, "ada@example.org"); err != nil {
		t.Fatal(err)
	}
	for i, c := range w.clients {
		c.Token = w.clients[0].Token
		if nodes > 1 {
			w.untilJoined(i)
		}
	}
	return w
}

// restart starts a node that was killed, with its folder and at another port.
func (w *workflows) restart(node int) {
	w.t.Helper()
	w.servers[node] = w.start[node]()
	c := lab.Dial(w.servers[node].URL, 16)
	c.Token = w.clients[node].Token
	w.clients[node] = c
}

// last is the node that answers are delivered at: another one than the node that asks, where there is one.
func (w *workflows) last() int { return len(w.clients) - 1 }

// promised asks at the first node and waits until the turn waits.
func (w *workflows) promised() (turn string, c n8nfake.Call) {
	w.t.Helper()
	turn = w.ask(0, "Which colour?")
	c = <-w.calls
	w.until("the turn waits", func() bool { return w.look(0, turn).State == "waiting" })
	return turn, c
}

// deliver delivers an answer at a node.
func (w *workflows) deliver(node int, d n8nfake.Delivery) (status int, body string) {
	w.t.Helper()
	at := strings.Index(d.URL, "/api/v1/n8n/callback/")
	if at < 0 {
		w.t.Fatalf("to be delivered at %q", d.URL)
	}
	d.URL = w.servers[node].URL + d.URL[at:]
	status, body, err := d.Send(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	return status, body
}

func (w *workflows) wantDelivery(node int, d n8nfake.Delivery, status int, text string) {
	w.t.Helper()
	if got, body := w.deliver(node, d); got != status || !strings.Contains(body, text) {
		w.t.Errorf("node %d says %d %s, want %d with %s", node, got, body, status, text)
	}
}

const blue = `{"content":"Blue, as the sea 🌊.","model":"claude-sonnet-5-5","stop_reason":"end_turn","usage":{"input_tokens":9,"output_tokens":4}}`

func TestAnswersThatN8NDeliversLater(t *testing.T) {
	perEngine(t, func(t *testing.T, w *workflows) {
		last := w.last()
		turn, c := w.promised()
		if !strings.HasPrefix(c.Payload().Callback, w.servers[0].URL+"/api/v1/n8n/callback/cmcb_") {
			t.Errorf("to be delivered at %s", c.Payload().Callback)
		}
		// Both follow it, the one at the node that asked and the one at the node at which the answer arrives.
		readers := []*reader{w.reader(turn), w.reader(turn)}
		done, waiting := make(chan error, 2), make(chan struct{}, 2)
		for i, r := range readers {
			go func() {
				err := r.follow([]int{0, last}[i], func(e lab.Event) bool {
					if e.Type == "turn.waiting" {
						waiting <- struct{}{}
					}
					return true
				})
				done <- err
			}()
		}
		<-waiting
		<-waiting
		answer := c.Delivery(signingSecret, blue)
		w.wantDelivery(last, answer, http.StatusOK, `"duplicate":false`)
		for range readers {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		for _, r := range readers {
			r.exactly("turn.completed", "Blue, as the sea 🌊.")
			if r.waited != 1 {
				t.Errorf("told %d times that it waits", r.waited)
			}
		}
		for node := range w.clients {
			a := w.look(node, turn)
			if a.State != "completed" || a.Assistant.Content != "Blue, as the sea 🌊." {
				t.Errorf("node %d: %+v", node, a)
			}
			w.wantDelivery(node, answer, http.StatusOK, `"duplicate":true`)
			other := answer
			other.Body = `{"content":"Red."}`
			w.wantDelivery(node, other, http.StatusConflict, "callback_used")
			// What a process writes is read here a moment later.
			w.until("it is logged", func() bool { return strings.Contains(w.servers[node].Log(), "a delivered answer changes nothing") })
		}
		w.logged(turn, "turn.started", "turn.waiting", "turn.completed")

		t.Run("after a stop on another node", func(t *testing.T) {
			turn, c := w.promised()
			if err := w.clients[last].Do(w.ctx, http.MethodPost, turn+"/stop", nil).Into(nil, http.StatusOK); err != nil {
				t.Fatal(err)
			}
			for node := range w.clients {
				w.wantDelivery(node, c.Delivery(signingSecret, blue), http.StatusGone, "callback_late")
				if a := w.look(node, turn); a.State != "stopped" || a.Error != nil || a.Assistant.Content != "" {
					t.Errorf("%+v", a)
				}
			}
		})
		t.Run("forged", func(t *testing.T) {
			turn, c := w.promised()
			w.wantDelivery(last, c.Delivery("what somebody else would guess", blue), http.StatusUnauthorized, "signature_invalid")
			old := c.Delivery(signingSecret, blue)
			old.At = old.At.Add(-6 * time.Minute)
			w.wantDelivery(last, old, http.StatusUnauthorized, "signature_invalid")
			forged := c.Delivery(signingSecret, blue)
			forged.URL = forged.URL[:len(forged.URL)-20] + "AAAA" + forged.URL[len(forged.URL)-16:]
			w.wantDelivery(last, forged, http.StatusNotFound, "callback_unknown")
			if a := w.look(0, turn); a.State != "waiting" {
				t.Errorf("%+v", a)
			}
			w.wantDelivery(last, c.Delivery(signingSecret, blue), http.StatusOK, "completed")
		})
		t.Run("a failure", func(t *testing.T) {
			turn, c := w.promised()
			w.wantDelivery(last, c.Delivery(signingSecret, `{"ok":false,"status":529,"error":"Overloaded"}`), http.StatusOK, "failed")
			if a := w.look(0, turn); a.State != "failed" || a.Error == nil || a.Error.Code != "provider_overloaded" {
				t.Errorf("%+v", a)
			}
		})
		t.Run("after kill -9 of the node that asked", func(t *testing.T) {
			turn, c := w.promised()
			w.servers[0].Kill()
			if last > 0 { // the other node knows of it
				w.wantDelivery(last, c.Delivery(signingSecret, blue), http.StatusOK, "completed")
			}
			w.restart(0)
			r := w.reader(turn)
			if last == 0 {
				if a := w.look(0, turn); a.State != "waiting" {
					t.Fatalf("%+v", a)
				}
				w.wantDelivery(0, c.Delivery(signingSecret, blue), http.StatusOK, "completed")
			}
			r.toEnd(0)
			r.exactly("turn.completed", "Blue, as the sea 🌊.")
			w.wantDelivery(0, c.Delivery(signingSecret, blue), http.StatusOK, `"duplicate":true`)
		})
	})
}

// logged checks what the log says of a turn.
func (w *workflows) logged(turn string, want ...string) {
	w.t.Helper()
	var page struct {
		Data []struct {
			Type, Subject string
			Data          struct{ Deadline time.Time }
		}
	}
	if err := w.clients[0].Get(w.ctx, "/events?limit=200", &page); err != nil {
		w.t.Fatal(err)
	}
	var got []string
	for _, e := range page.Data {
		if strings.HasSuffix(turn, "/"+e.Subject) {
			got = append(got, e.Type)
			if e.Type == "turn.waiting" && time.Until(e.Data.Deadline) < 10*time.Minute {
				w.t.Errorf("it waits until %v", e.Data.Deadline)
			}
		}
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		w.t.Errorf("the log has %v", got)
	}
}

// An answer that never comes is due work like any other: the turn fails though nobody looks, whoever asked.
func TestAnswersThatNeverCome(t *testing.T) {
	perEngine(t, func(t *testing.T, w *workflows) {
		last := w.last()
		turn := w.ask(0, "Which colour?")
		c := <-w.calls
		id := turn[strings.LastIndex(turn, "/")+1:]
		w.until("its promise is stored", func() bool { return w.noted(last, "turn.waiting", id) })
		asked := time.Now()
		if last > 0 {
			w.servers[0].Kill()
		}
		w.until("it fails by itself", func() bool { return w.noted(last, "turn.failed", id) })
		t.Logf("failed %v after it was seen to wait", time.Since(asked).Round(time.Millisecond))
		if a := w.look(last, turn); a.State != "failed" || a.Error == nil || a.Error.Code != "callback_timeout" {
			t.Errorf("%+v", a)
		}
		w.wantDelivery(last, c.Delivery(signingSecret, blue), http.StatusGone, "callback_late")
		if a := w.look(last, turn); a.State != "failed" || a.Assistant.Content != "" {
			t.Errorf("%+v", a)
		}
	}, "N8N_CALLBACK_TIMEOUT=2")
}

// noted reports whether the trail has an entry. Reading the trail ends no turn.
func (w *workflows) noted(node int, action, subject string) bool {
	w.t.Helper()
	var page struct{ Data []struct{ Subject string } }
	err := w.clients[node].Get(w.ctx, "/audit?limit=1&action="+action, &page)
	if err != nil && !errors.Is(err, context.Canceled) {
		w.t.Fatal(err)
	}
	return len(page.Data) == 1 && page.Data[0].Subject == subject
}

// An n8n that takes calls and says nothing holds a turn as long as the operator lets it.
func TestN8NThatSaysNothing(t *testing.T) {
	t.Parallel()
	w := startWorkflows(t, 1, "N8N_TIMEOUT=1")
	w.n8n.Set(n8nfake.Stalled(nil))
	conv, err := w.clients[0].NewConversation(w.ctx, "x")
	if err != nil {
		t.Fatal(err)
	}
	var x struct {
		Turn struct {
			State string
			Error *struct{ Code string }
		}
	}
	a := w.clients[0].Do(w.ctx, http.MethodPost, "/conversations/"+conv.ID+"/messages", map[string]any{"content": "Hello?", "provider": "n8n"})
	if err := a.Into(&x, http.StatusCreated); err != nil {
		t.Fatal(err)
	}
	if x.Turn.State != "failed" || x.Turn.Error == nil || x.Turn.Error.Code != "provider_timeout" {
		t.Errorf("%+v", x.Turn)
	}
}

// Whoever asks while n8n is down is told so at once, and when to come back; who asks somebody else notices nothing.
func TestN8NThatIsDownKeepsNobodyWaiting(t *testing.T) {
	t.Parallel()
	w := startWorkflows(t, 1)
	w.n8n.Set(n8nfake.Hung())
	conv, err := w.clients[0].NewConversation(w.ctx, "x")
	if err != nil {
		t.Fatal(err)
	}
	say := func(provider string) (x struct {
		Turn struct {
			State string
			Error *struct{ Code, Detail string }
		}
	}) {
		t.Helper()
		a := w.clients[0].Do(w.ctx, http.MethodPost, "/conversations/"+conv.ID+"/messages", map[string]any{"content": "Hello?", "provider": provider})
		if err := a.Into(&x, http.StatusCreated); err != nil {
			t.Fatal(err)
		}
		return x
	}
	health := func() (status, check, code, circuit string) {
		t.Helper()
		var h struct {
			Status string
			Checks []struct {
				Name, Status, Code string
				Facts              struct{ N8N struct{ Circuit string } }
			}
		}
		if err := w.clients[0].Get(w.ctx, "/health/detailed", &h); err != nil {
			t.Fatal(err)
		}
		for _, c := range h.Checks {
			if c.Name == "providers" {
				return h.Status, c.Status, c.Code, c.Facts.N8N.Circuit
			}
		}
		t.Fatal("no check of providers")
		return
	}
	if status, check, _, circuit := health(); status != "ok" || check != "ok" || circuit != "closed" {
		t.Errorf("%s %s %s", status, check, circuit)
	}
	for range 5 {
		if x := say("n8n"); x.Turn.State != "interrupted" || x.Turn.Error == nil || x.Turn.Error.Code != "provider_cut" {
			t.Fatalf("%+v %+v", x, x.Turn.Error)
		}
	}
	if x := say("n8n"); x.Turn.State != "failed" || x.Turn.Error == nil || x.Turn.Error.Code != "provider_unreachable" ||
		!strings.Contains(x.Turn.Error.Detail, "left alone") || !strings.Contains(x.Turn.Error.Detail, "retry in") {
		t.Errorf("%+v %+v", x, x.Turn.Error)
	}
	if n := len(w.n8n.Calls()); n != 5 {
		t.Errorf("%d calls", n)
	}
	if status, check, code, circuit := health(); status != "degraded" || check != "failing" || code != "provider_unreachable" || circuit != "open" {
		t.Errorf("%s %s %s %s", status, check, code, circuit)
	}
	if a := w.clients[0].Do(w.ctx, http.MethodGet, "/health/readiness", nil); a.Status != http.StatusOK {
		t.Errorf("not ready for others: %d", a.Status)
	}
	if x := say("scripted"); x.Turn.State != "completed" {
		t.Errorf("%+v", x)
	}
}
