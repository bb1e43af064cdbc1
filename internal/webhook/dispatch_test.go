package webhook_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	reference "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/outbound"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/webhook"
)

func verified(t testing.TB, g got, secret seal.Secret) {
	t.Helper()
	v, err := reference.NewWebhook(secret.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	if err := v.VerifyIgnoringTimestamp([]byte(g.body), g.Header); err != nil {
		t.Error(err)
	}
}

func TestADeliveryIsWhatTheLogSays(t *testing.T) {
	w := newWorld(t)
	s := newSink(t, status(204))
	i := w.hook(s.URL)
	w.happen(1, "conv_1")
	g := <-s.got
	verified(t, g, i.Secret)
	events, err := w.store.Since(t.Context(), 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	e := events[0]
	var m webhook.Message
	if err := json.Unmarshal([]byte(g.body), &m); err != nil {
		t.Fatal(err)
	}
	if m.Type != e.Type || m.Data.ID != e.ID || m.Data.Seq != e.Seq || m.Data.Subject != e.Subject || m.Data.Actor.ID == nil || *m.Data.Actor.ID != e.Actor.ID || m.Data.Actor.Name != e.Actor.Name ||
		!m.Timestamp.Equal(e.CreatedAt) || string(m.Data.Data) != string(e.Data) || g.Get("webhook-id") != string(e.ID) {
		t.Errorf("%s\n%+v", g.body, e)
	}
	for name := range g.Header {
		if !slices.Contains([]string{"Webhook-Id", "Webhook-Timestamp", "Webhook-Signature", "Content-Type", "Content-Length", "User-Agent"}, name) {
			t.Errorf("it is sent %s: %s", name, g.Get(name))
		}
	}
	if d := w.last(i); d.State != webhook.Succeeded || len(d.Tried) != 1 || d.Tried[0].Status != 204 {
		t.Errorf("%+v", d)
	}
	w.part.mu.Lock()
	defer w.part.mu.Unlock()
	if len(w.part.owed) == 0 {
		t.Error("nothing was noted in the master")
	}
}

// TestEveryTry follows a delivery through all its tries: when they come, that they are the same but for the time, and what
// becomes of the endpoint.
func TestEveryTry(t *testing.T) {
	w := newWorld(t)
	s := newSink(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not today \x00\xff", 500) })
	i := w.hook(s.URL)
	begun := w.clock.Now()
	w.happen(1, "")
	first := <-s.got
	planned := []time.Duration{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 14 * time.Hour,
		20 * time.Hour, 24 * time.Hour}
	for n, pause := range planned {
		d := w.last(i)
		waits := d.Due.Sub(w.clock.Now())
		if d.State != webhook.Pending || d.Tries != n+1 || waits < pause*9/10 || waits > pause*11/10 {
			t.Fatalf("after try %d: %s, %d tries, next in %v", n+1, d.State, d.Tries, waits)
		}
		if w.endpoint(i).State == webhook.Paused {
			if n < 8 || w.clock.Now().Sub(begun) < 64*time.Hour {
				t.Errorf("paused after %v", w.clock.Now().Sub(begun))
			}
			break
		}
		w.later(waits - time.Second)
		if len(s.got) > 0 {
			t.Fatal("too early")
		}
		w.later(time.Second)
		g := <-s.got
		if g.body != first.body || g.Get("webhook-id") != first.Get("webhook-id") || g.Get("webhook-timestamp") == first.Get("webhook-timestamp") {
			t.Errorf("try %d: %s %v", n+2, g.body, g.Header)
		}
		verified(t, g, i.Secret)
	}
	e := w.endpoint(i)
	if e.State != webhook.Paused || e.Reason != webhook.Failing || w.clock.Now().Sub(begun) < 72*time.Hour {
		t.Fatalf("%+v after %v", e, w.clock.Now().Sub(begun))
	}
	if d := w.last(i); len(d.Tried) != 10 || d.Tried[9].Error != webhook.FailedStatus || d.Tried[9].Answer != "not today \uFFFD\uFFFD\n" {
		t.Errorf("%+v", d)
	}
	events, err := w.store.Since(t.Context(), 2, 9)
	if err != nil || len(events) != 1 || events[0].Type != "webhook.paused" || events[0].Subject != string(e.ID) || !strings.Contains(string(events[0].Data), "failing") {
		t.Errorf("%+v %v", events, err)
	}
	w.later(0)
	if len(w.told) != 1 || w.told[0].ID != e.ID {
		t.Errorf("the owner was told %d times", len(w.told))
	}
	w.happen(1, "")
	w.later(time.Hour)
	if len(s.got) > 0 {
		t.Error("a paused endpoint is sent something")
	}
}

// TestTheLastTryFails: an event that is refused ten times is given up, while others are taken.
func TestTheLastTryFails(t *testing.T) {
	w := newWorld(t)
	s := newSink(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("bad") == "yes" {
			w.WriteHeader(500)
		}
	})
	i := w.hook(s.URL + "/?bad=yes")
	w.happen(1, "")
	d := w.last(i)
	url := func(to string) {
		t.Helper()
		if _, err := w.Edit(t.Context(), ada, i.Endpoint.ID, nil, func(e *webhook.Edit) error { e.URL = to; return nil }); err != nil {
			t.Fatal(err)
		}
		w.part.settled()
	}
	for d.State == webhook.Pending {
		url(s.URL + "/") // another event is taken meanwhile
		if _, err := w.Test(t.Context(), ada, i.Endpoint.ID, nil); err != nil {
			t.Fatal(err)
		}
		url(s.URL + "/?bad=yes")
		w.later(d.Due.Sub(w.clock.Now()))
		var err error
		if d, err = w.Delivery(t.Context(), ada, i.Endpoint.ID, d.ID); err != nil {
			t.Fatal(err)
		}
	}
	if d.State != webhook.Failed || d.Tries != 10 || d.FinishedAt == nil || w.endpoint(i).State != webhook.Active {
		t.Errorf("%+v %+v", d, w.endpoint(i))
	}
}

func TestEndpointsBehaveBadly(t *testing.T) {
	inside, visits := trap(t)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		url    string // instead of the sink's
		want   webhook.Attempt
		state  webhook.DeliveryState
		also   func(t *testing.T, w *world, i webhook.Issued)
	}{
		"500": {answer: status(500), want: webhook.Attempt{Status: 500, Error: webhook.FailedStatus}, state: webhook.Pending},
		"404": {answer: status(404), want: webhook.Attempt{Status: 404, Error: webhook.FailedStatus}, state: webhook.Pending},
		"redirect": {answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+inside+"/", http.StatusTemporaryRedirect)
		}, want: webhook.Attempt{Status: 307, Error: webhook.FailedRedirect}, state: webhook.Pending},
		"410": {answer: status(410), want: webhook.Attempt{Status: 410, Error: webhook.FailedStatus}, state: webhook.Pending, also: func(t *testing.T, w *world, i webhook.Issued) {
			if e := w.endpoint(i); e.State != webhook.Disabled || e.Reason != webhook.Gone {
				t.Errorf("%+v", e)
			}
		}},
		"429 with Retry-After": {answer: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "600")
			w.WriteHeader(429)
		}, want: webhook.Attempt{Status: 429, Error: webhook.FailedStatus}, state: webhook.Pending, also: func(t *testing.T, w *world, i webhook.Issued) {
			ten := w.clock.Now().Add(10 * time.Minute)
			if d := w.last(i); d.Due.Before(ten) || d.Due.After(ten.Add(time.Minute)) {
				t.Errorf("due at %v", d.Due)
			}
			if e := w.endpoint(i); e.HoldUntil == nil || e.HoldUntil.Before(ten) {
				t.Errorf("%+v", e)
			}
			w.happen(1, "") // nothing new is sent there either
			w.later(9 * time.Minute)
			if d := w.last(i); d.Attempts != 0 {
				t.Errorf("%+v", d)
			}
			w.later(2 * time.Minute)
			if d := w.last(i); d.Attempts != 1 {
				t.Errorf("%+v", d)
			}
		}},
		"502": {answer: status(502), want: webhook.Attempt{Status: 502, Error: webhook.FailedStatus}, state: webhook.Pending, also: func(t *testing.T, w *world, i webhook.Issued) {
			if e := w.endpoint(i); e.HoldUntil == nil || e.Slowed != 1 {
				t.Errorf("%+v", e)
			}
		}},
		"a huge body": {answer: func(w http.ResponseWriter, _ *http.Request) {
			for range 1000 {
				if _, err := w.Write([]byte(strings.Repeat("x", 10_000))); err != nil {
					return
				}
			}
		}, want: webhook.Attempt{Status: 200, Answer: strings.Repeat("x", 2048)}, state: webhook.Succeeded},
		"huge headers": {answer: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Big", strings.Repeat("x", 100_000))
		}, want: webhook.Attempt{Error: webhook.FailedAnswer}, state: webhook.Pending},
		"no HTTP": {answer: func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_, _ = c.Write([]byte("hello\n"))
				_ = c.Close()
			}
		}, want: webhook.Attempt{Error: webhook.FailedAnswer}, state: webhook.Pending},
		"slow":                            {answer: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, want: webhook.Attempt{Error: webhook.FailedTimeout}, state: webhook.Pending},
		"dead":                            {url: "http://127.0.0.1:1/", want: webhook.Attempt{Error: webhook.FailedUnreachable}, state: webhook.Pending},
		"a name that is not known":        {url: "http://nowhere.example/", want: webhook.Attempt{Error: webhook.FailedUnreachable}, state: webhook.Pending},
		"a name that leads inside":        {url: "http://inside.example/", want: webhook.Attempt{Error: webhook.FailedRefused}, state: webhook.Pending},
		"TLS that nobody vouches for":     {url: "tls", want: webhook.Attempt{Error: webhook.FailedTLS}, state: webhook.Pending},
		"a plain port that speaks no TLS": {url: "https", want: webhook.Attempt{Error: webhook.FailedTLS}, state: webhook.Pending},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *webhook.Config) {
				if name == "slow" {
					c.Timeout = 250 * time.Millisecond
				}
			})
			w.names.known["inside.example"] = []string{"127.0.0.2"}
			s, healthy := newSink(t, c.answer), newSink(t, nil)
			at := s.URL
			switch c.url {
			case "":
			case "tls":
				s.Server.Close()
				s.Server = newTLS(t)
				at = s.URL
			case "https":
				at = strings.Replace(s.URL, "http:", "https:", 1)
			default:
				at = c.url
			}
			i := w.hook(at)
			beside := w.hook(healthy.URL)
			w.happen(1, "")
			d := w.last(i)
			if len(d.Tried) != 1 || d.State != c.state {
				t.Fatalf("%+v", d)
			}
			a := d.Tried[0]
			if a.Status != c.want.Status || a.Error != c.want.Error || c.want.Answer != "" && a.Answer != c.want.Answer {
				t.Errorf("%+v, want %+v", a, c.want)
			}
			good := w.last(beside)
			for good.State == webhook.Pending && timedOut(good, w.config.Timeout) { // what is slow here is this machine
				w.later(good.Due.Sub(w.clock.Now()))
				good = w.last(beside)
			}
			if good.State != webhook.Succeeded || len(healthy.got) == 0 {
				t.Errorf("the healthy one: %+v", good)
			}
			if c.also != nil {
				c.also(t, w, i)
			}
			if visits() > 0 {
				t.Error("somebody was inside")
			}
		})
	}
}

// timedOut reports whether all that went wrong with a delivery is that attempts have so little time here that a busy machine
// may take longer for them, be it only to connect.
func timedOut(d webhook.Delivery, bound time.Duration) bool {
	return bound > 0 && bound < time.Second && !slices.ContainsFunc(d.Tried, func(a webhook.Attempt) bool {
		return a.Error != webhook.FailedTimeout && a.Error != webhook.FailedUnreachable
	})
}

// TestOneThatHangsDelaysNobody: a healthy endpoint gets everything while another one of the same tenant answers nothing.
func TestOneThatHangsDelaysNobody(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	hanging := newSink(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	healthy := newSink(t, nil)
	w.hook(hanging.URL)
	i := w.hook(healthy.URL)
	for range 50 {
		w.happen(2, "")
	}
	for range 100 {
		<-healthy.got
	}
	<-hanging.got
	close(release)
	if d := w.last(i); d.State != webhook.Succeeded {
		t.Errorf("%+v", d)
	}
}

// TestFewPlaces: whoever had to give its place to another endpoint comes back for the rest.
func TestFewPlaces(t *testing.T) {
	w := newWorld(t, func(c *webhook.Config) { c.PerTenant = 1 })
	s := newSink(t, nil)
	for range 3 {
		w.hook(s.URL)
	}
	w.happen(20, "")
	w.part.settled()
	if n := len(s.got); n != 60 {
		t.Errorf("%d of 60 came", n)
	}
}

// TestAnEndpointThatAskedForLess: an answer that was on its way when it did so does not speak for more.
func TestAnEndpointThatAskedForLess(t *testing.T) {
	release := make(chan struct{})
	w := newWorld(t, func(c *webhook.Config) {
		c.Observe = func(outcome string, _, _ time.Duration) {
			if outcome == webhook.FailedStatus {
				close(release)
			}
		}
	})
	first := make(chan bool, 1)
	first <- true
	s := newSink(t, func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-first:
			w.Header().Set("Retry-After", "600")
			w.WriteHeader(http.StatusTooManyRequests)
		default:
			<-release
		}
	})
	i := w.hook(s.URL)
	w.happen(2, "")
	if e := w.endpoint(i); e.HoldUntil == nil || e.Slowed != 1 || len(s.got) != 2 {
		t.Errorf("%+v after %d calls", e, len(s.got))
	}
}

// TestManyAnswersAskForLess: those that come at once ask for it once, and the longest that one of them asks for stands.
func TestManyAnswersAskForLess(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	calls, all := 0, make(chan struct{})
	s := newSink(t, func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		calls++
		n := calls
		if n == 8 {
			close(all)
		}
		mu.Unlock()
		<-all
		if n == 1 {
			w.Header().Set("Retry-After", "60")
		}
		w.WriteHeader(http.StatusTooManyRequests)
	})
	i := w.hook(s.URL)
	w.happen(8, "")
	e := w.endpoint(i)
	if e.HoldUntil == nil || e.Slowed != 1 || e.HoldUntil.Before(w.clock.Now().Add(time.Minute)) {
		t.Fatalf("%+v", e)
	}
	w.later(time.Minute) // one call shows that it still does
	if e = w.endpoint(i); e.Slowed != 2 || len(s.got) != 9 {
		t.Errorf("%+v after %d calls", e, len(s.got))
	}
}

// TestAnswersThatNeverEnd: one that says 200 and goes on takes no more places than one that says nothing.
func TestAnswersThatNeverEnd(t *testing.T) {
	w := newWorld(t, func(c *webhook.Config) { c.Timeout, c.PerEndpoint = 100*time.Millisecond, 3 })
	var mu sync.Mutex
	calls, most := 0, 0
	s := newSink(t, func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		if calls++; calls > 3 {
			most = max(most, w.d.Stats().Sending) // asked of the sender: a server hears of the end of a call when it likes
		}
		mu.Unlock()
		rw.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(rw).Flush()
		<-r.Context().Done()
	})
	i := w.hook(s.URL)
	w.happen(8, "")
	w.part.settled()
	tried := 0
	for n := 0; ; n++ {
		list, _, err := w.Deliveries(t.Context(), ada, i.Endpoint.ID, webhook.DeliveryQuery{Limit: 9})
		if err != nil || len(list) != 8 {
			t.Fatalf("%d deliveries, %v", len(list), err)
		}
		again := time.Duration(0) // what came too late since this machine is busy is sent again
		tried = 0
		for _, d := range list {
			if tried += d.Attempts; d.State == webhook.Pending && timedOut(d, w.config.Timeout) && n < 20 {
				again = max(again, d.Due.Sub(w.clock.Now()))
			} else if d.State != webhook.Succeeded || d.Tried[0].Status != 200 {
				t.Fatalf("%+v", d)
			}
		}
		if again == 0 {
			break
		}
		w.later(again)
	}
	mu.Lock()
	defer mu.Unlock()
	if most != 1 || calls < 8 || calls > tried {
		t.Errorf("%d of %d calls at once, in %d attempts", most, calls, tried)
	}
}

// TestNobodysBacklog: what waits for an endpoint that is not active is not counted as late.
func TestNobodysBacklog(t *testing.T) {
	w := newWorld(t)
	i := w.hook(newSink(t, status(500)).URL)
	w.happen(1, "")
	w.later(0)
	if s := w.d.Stats(); s.Pending != 1 {
		t.Errorf("%+v", s)
	}
	if _, err := w.Edit(t.Context(), ada, i.Endpoint.ID, nil, func(e *webhook.Edit) error { e.State = webhook.Paused; return nil }); err != nil {
		t.Fatal(err)
	}
	w.later(0)
	if s := w.d.Stats(); s.Pending != 0 || !s.Since.IsZero() {
		t.Errorf("%+v", s)
	}
}

// TestAnAddressThatIsNotAllowedAnyMore stays as it is while other things about its webhook change; another one is judged.
func TestAnAddressThatIsNotAllowedAnyMore(t *testing.T) {
	w := newWorld(t)
	i := w.hook(newSink(t, nil).URL)
	w.stop()
	w.config.Guard, w.config.Inside = outbound.NewDialer(outbound.Config{}), false
	w.start()
	e, err := w.Edit(t.Context(), ada, i.Endpoint.ID, nil, func(e *webhook.Edit) error { e.State = webhook.Paused; return nil })
	if err != nil || e.State != webhook.Paused {
		t.Errorf("%+v %v", e, err)
	}
	e, err = w.Edit(t.Context(), ada, i.Endpoint.ID, nil, func(e *webhook.Edit) error { e.Name = "another"; return nil })
	if err != nil || e.Name != "another" {
		t.Errorf("%+v %v", e, err)
	}
	_, err = w.Edit(t.Context(), ada, i.Endpoint.ID, nil, func(e *webhook.Edit) error { e.URL += "/else"; return nil })
	if f := field(err); f != "body.url" {
		t.Errorf("%q: %v", f, err)
	}
	_, err = w.Edit(t.Context(), ada, i.Endpoint.ID, nil, func(e *webhook.Edit) error { e.Name = ""; return nil })
	if f := field(err); f != "body.name" {
		t.Errorf("%q: %v", f, err)
	}
}

// TestWhoeverLeavesATest: the test goes on, and is not sent once more.
func TestWhoeverLeavesATest(t *testing.T) {
	w := newWorld(t)
	ctx, leave := context.WithCancel(t.Context())
	s := newSink(t, func(http.ResponseWriter, *http.Request) { leave() })
	d, err := w.Test(ctx, ada, w.hook(s.URL).Endpoint.ID, nil)
	if err != nil || d.State != webhook.Succeeded || len(d.Tried) != 1 {
		t.Errorf("%+v %v", d, err)
	}
}

// TestANameThatFlips: what is dialled is what was decided about, each time.
func TestANameThatFlips(t *testing.T) {
	w := newWorld(t)
	addr, visits := trap(t)
	_, port, _ := strings.Cut(addr, ":")
	flips := make([]string, 0, 40)
	for range 20 {
		flips = append(flips, "127.0.0.1", "127.0.0.2")
	}
	w.names.known["flip.example"] = flips
	i := w.hook("http://flip.example:" + port + "/")
	for range 40 {
		w.happen(1, "")
		w.later(0)
	}
	if visits() > 0 || w.names.asked < 20 {
		t.Errorf("%d were inside, %d looked up", visits(), w.names.asked)
	}
	if d := w.last(i); d.State != webhook.Pending {
		t.Errorf("%+v", d)
	}
}

func TestOrder(t *testing.T) {
	w := newWorld(t)
	bad := make(chan bool, 1)
	bad <- true
	s := newSink(t, func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-bad:
			w.WriteHeader(500)
		default:
		}
	})
	w.hook(s.URL, func(d *webhook.Details) { d.Ordered = true })
	w.happen(1, "conv_a")
	first := <-s.got
	w.part.settled()
	w.happen(2, "conv_a")
	w.happen(1, "conv_b")
	if g := <-s.got; !strings.Contains(g.body, "conv_b") {
		t.Fatalf("%s", g.body)
	}
	w.later(4 * time.Second)
	if len(s.got) > 0 {
		t.Fatal("a later one overtook")
	}
	if st := w.d.Stats(); st.Pending != 3 || w.clock.Now().Sub(st.Since) < 4*time.Second {
		t.Errorf("%+v", st)
	}
	w.later(2 * time.Second)
	if g := <-s.got; g.body != first.body {
		t.Errorf("%s", g.body)
	}
	for n := range 2 {
		if g := <-s.got; !strings.Contains(g.body, fmt.Sprintf(`"subject":"msg_%d"`, n)) {
			t.Errorf("%s", g.body)
		}
	}
}

func TestRotation(t *testing.T) {
	w := newWorld(t)
	s := newSink(t, nil)
	i := w.hook(s.URL)
	next, err := w.Rotate(t.Context(), ada, i.Endpoint.ID, nil)
	if err != nil || next.Secret == i.Secret {
		t.Fatal(err)
	}
	w.happen(1, "")
	g := <-s.got
	verified(t, g, i.Secret)
	verified(t, g, next.Secret)
	w.later(24 * time.Hour)
	w.happen(1, "")
	g = <-s.got
	verified(t, g, next.Secret)
	if n := len(strings.Fields(g.Get("webhook-signature"))); n != 1 {
		t.Errorf("%d signatures", n)
	}
}

// TestASecretThatIsGone: in a copy that was sealed elsewhere nothing can be signed, so nothing is sent.
func TestASecretThatIsGone(t *testing.T) {
	w := newWorld(t)
	s := newSink(t, nil)
	i := w.hook(s.URL)
	w.stop()
	other, err := seal.NewKeyring("quite another unguessable phrase, 9876543210")
	if err != nil {
		t.Fatal(err)
	}
	w.config.Sealer = other
	w.start()
	w.happen(1, "")
	if e := w.endpoint(i); e.State != webhook.Disabled || e.Reason != webhook.SecretLost || len(s.got) > 0 {
		t.Errorf("%+v", e)
	}
	next, err := w.Rotate(t.Context(), ada, i.Endpoint.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Edit(t.Context(), ada, i.Endpoint.ID, nil, func(e *webhook.Edit) error { e.State = webhook.Active; return nil }); err != nil {
		t.Fatal(err)
	}
	verified(t, <-s.got, next.Secret)
}

// TestALeaseRunsOut: what a process had claimed that died is sent by the next one, once the lease is over.
func TestALeaseRunsOut(t *testing.T) {
	w := newWorld(t)
	s := newSink(t, nil)
	i := w.hook(s.URL)
	w.stop() // nobody sends
	w.happen(1, "")
	list, err := w.take(i, webhook.Step{Claim: "dead", Now: w.clock.Now(), Lease: w.clock.Now().Add(30 * time.Second)},
		func(e webhook.Endpoint) (webhook.Endpoint, int, event.Change) { return e, 1, event.Change{} })
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	w.start()
	w.later(29 * time.Second)
	if len(s.got) > 0 {
		t.Fatal("sent while somebody else may be sending it")
	}
	w.later(time.Second)
	if g := <-s.got; g.Get("webhook-id") != string(list[0].Event) {
		t.Errorf("%v", g.Header)
	}
	if d := w.last(i); d.State != webhook.Succeeded || d.Attempts != 2 || len(d.Tried) != 1 {
		t.Errorf("%+v", d)
	}
}

// TestAServerAloneNeedNotWait: nobody else can be sending what a process had claimed that died.
func TestAServerAloneNeedNotWait(t *testing.T) {
	w := newWorld(t, func(c *webhook.Config) { c.Node, c.Sole = "second", true })
	s := newSink(t, nil)
	i := w.hook(s.URL)
	w.stop()
	w.happen(2, "")
	for _, claim := range []string{"first.1", "second.1"} {
		if _, err := w.take(i, webhook.Step{Claim: claim, Now: w.clock.Now(), Lease: w.clock.Now().Add(30 * time.Second)},
			func(e webhook.Endpoint) (webhook.Endpoint, int, event.Change) { return e, 1, event.Change{} }); err != nil {
			t.Fatal(err)
		}
	}
	w.start()
	w.later(time.Second)
	if n := len(s.got); n != 1 {
		t.Errorf("%d were sent, want the first one's", n)
	}
	w.later(time.Minute)
	if n := len(s.got); n != 2 {
		t.Errorf("%d were sent", n)
	}
}

// TestStopping: an attempt that is cut off counts for nothing, and the next process makes it again at once.
func TestStopping(t *testing.T) {
	w := newWorld(t)
	hang, hangs := make(chan bool, 1), make(chan bool)
	hang <- true
	s := newSink(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-hang:
			close(hangs)
			<-r.Context().Done()
		default:
		}
	})
	i := w.hook(s.URL)
	w.happen(1, "")
	<-s.got
	<-hangs // else the next call may be the one that does
	w.stop()
	if d := w.last(i); d.State != webhook.Pending || d.Tries != 0 || d.Claim != "" || len(d.Tried) != 1 || d.Tried[0].Error != webhook.Interrupted {
		t.Errorf("%+v", d)
	}
	w.start()
	w.later(0)
	<-s.got
	if d := w.last(i); d.State != webhook.Succeeded {
		t.Errorf("%+v", d)
	}
}

func TestTests(t *testing.T) {
	w := newWorld(t)
	s, broken := newSink(t, status(200)), newSink(t, status(500))
	good, bad := w.hook(s.URL), w.hook(broken.URL)
	d, err := w.Test(t.Context(), ada, good.Endpoint.ID, nil)
	if err != nil || d.State != webhook.Succeeded || d.Seq != 0 {
		t.Fatalf("%+v %v", d, err)
	}
	g := <-s.got
	verified(t, g, good.Secret)
	if !strings.Contains(g.body, "webhook.test") {
		t.Errorf("%s", g.body)
	}
	d, err = w.Test(t.Context(), ada, bad.Endpoint.ID, nil)
	if err != nil || d.State != webhook.Failed || len(d.Tried) != 1 || d.Tried[0].Status != 500 {
		t.Fatalf("%+v %v", d, err)
	}
	if e := w.endpoint(bad); e.FailingSince != nil {
		t.Errorf("%+v", e)
	}
	// Sent again, it is what it was.
	if _, err := w.Redeliver(t.Context(), ada, good.Endpoint.ID, w.last(good).ID, nil); err != nil {
		t.Fatal(err)
	}
	if again := <-s.got; again.body != g.body || again.Get("webhook-id") != g.Get("webhook-id") {
		t.Errorf("%s", again.body)
	}
}

func TestDetails(t *testing.T) {
	w := newWorld(t)
	for at, want := range map[string]string{
		"https://hooks.example.com/in?a=b":                 "",
		"https://hooks.example.com:8443/":                  "",
		"https://93.184.216.34/":                           "",
		"http://127.0.0.1:5678/webhook":                    "",
		"https://127.0.0.1:5678/webhook":                   "",
		"http://n8n.internal:5678/webhook":                 "", // where it leads is seen when it is dialled
		"http://93.184.216.34/":                            "body.url",
		"https://93.184.216.34:9000/":                      "body.url",
		"https://127.0.0.2/":                               "body.url",
		"https://169.254.169.254/latest":                   "body.url",
		"https://[::ffff:127.0.0.1]/":                      "body.url",
		"https://2130706433/":                              "body.url",
		"https://ada:secret@hooks.example.com/":            "body.url",
		"https://hooks.example.com/#frag":                  "body.url",
		"https://hooks.example.com:0/":                     "body.url",
		"https://hooks.example.com:99999/":                 "body.url",
		"ftp://hooks.example.com/":                         "body.url",
		"hooks.example.com":                                "body.url",
		"https:///path":                                    "body.url",
		"https://exa mple.com/":                            "body.url",
		"https://ex\u00e4mple.com/":                        "body.url",
		"":                                                 "body.url",
		"https://example.com/" + strings.Repeat("x", 2000): "body.url",
	} {
		_, err := w.Create(t.Context(), ada, webhook.CreateInput{Details: webhook.Details{Name: "x", URL: at, Events: []string{"*"}}})
		if got := field(err); got != want {
			t.Errorf("%q: %v", at, err)
		}
	}
	for place, d := range map[string]webhook.Details{
		"body.name":      {URL: "https://example.com/", Events: []string{"*"}},
		"body.events":    {Name: "x", URL: "https://example.com/"},
		"body.events[0]": {Name: "x", URL: "https://example.com/", Events: []string{"nonsense"}},
		"body.events[1]": {Name: "x", URL: "https://example.com/", Events: []string{"*", "*"}},
	} {
		if _, err := w.Create(t.Context(), ada, webhook.CreateInput{Details: d}); field(err) != place {
			t.Errorf("%+v: %v", d, err)
		}
	}
}

// newTLS is a server with a certificate of nobody.
func newTLS(t testing.TB) *httptest.Server {
	s := httptest.NewUnstartedServer(status(200))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func field(err error) string {
	f, ok := err.(*fault.Error) //nolint:errorlint // the outermost has the fields
	if !ok || len(f.Fields) == 0 {
		if err != nil {
			return fault.CodeOf(err)
		}
		return ""
	}
	return f.Fields[0].Location
}

func TestRepeats(t *testing.T) {
	w := newWorld(t)
	s := newSink(t, nil)
	once := func(key string) *event.Once {
		return &event.Once{Scope: "s", Key: key, Fingerprint: []byte("p"), ExpiresAt: time.Now().Add(time.Hour)}
	}
	in := webhook.CreateInput{Details: webhook.Details{Name: "x", URL: s.URL, Events: []string{"message.*"}}}
	var made [2]webhook.Issued
	for n := range made {
		in.Once = once("create")
		var err error
		if made[n], err = w.Create(t.Context(), ada, in); err != nil {
			t.Fatal(err)
		}
	}
	if made[0].Secret != made[1].Secret || made[0].Endpoint.ID != made[1].Endpoint.ID || made[0].Secret.Reveal() == "" {
		t.Error("a repeat made another one")
	}
	id := made[0].Endpoint.ID
	var rotated [2]webhook.Issued
	for n := range rotated {
		var err error
		if rotated[n], err = w.Rotate(t.Context(), ada, id, once("rotate")); err != nil {
			t.Fatal(err)
		}
	}
	if rotated[0].Secret != rotated[1].Secret || rotated[0].Secret == made[0].Secret {
		t.Error("a repeat rotated again")
	}
	for range 2 {
		if d, err := w.Test(t.Context(), ada, id, once("test")); err != nil || d.State != webhook.Succeeded {
			t.Fatalf("%+v %v", d, err)
		}
	}
	w.happen(1, "")
	w.part.settled()
	last := w.last(made[0])
	for range 2 {
		if _, err := w.Redeliver(t.Context(), ada, id, last.ID, once("again")); err != nil {
			t.Fatal(err)
		}
		w.part.settled()
	}
	for range 2 {
		r := webhook.Range{From: w.clock.Now().Add(-time.Hour), To: w.clock.Now().Add(time.Hour), State: webhook.Succeeded}
		if did, err := w.RedeliverMany(t.Context(), ada, id, r, once("many")); err != nil || did.Count != 2 {
			t.Fatalf("%+v %v", did, err)
		}
		w.part.settled()
	}
	if n := len(s.got); n != 1+1+1+2 { // the test, the event, the event again, and both
		t.Errorf("%d were sent", n)
	}
}

func TestStrangers(t *testing.T) {
	w := newWorld(t)
	eve := ident.Actor{Account: "usr_eve"}
	id := w.hook("https://example.com/").Endpoint.ID
	for name, err := range map[string]error{
		"create":     second(w.Create(t.Context(), eve, webhook.CreateInput{})),
		"find":       second(w.Find(t.Context(), eve, id)),
		"edit":       second(w.Edit(t.Context(), eve, id, nil, nil)),
		"delete":     w.Delete(t.Context(), eve, id, nil),
		"rotate":     second(w.Rotate(t.Context(), eve, id, nil)),
		"test":       second(w.Test(t.Context(), eve, id, nil)),
		"delivery":   second(w.Delivery(t.Context(), eve, id, "dlv_x")),
		"redeliver":  second(w.Redeliver(t.Context(), eve, id, "dlv_x", nil)),
		"many":       second(w.RedeliverMany(t.Context(), eve, id, webhook.Range{}, nil)),
		"list":       func() error { _, _, err := w.List(t.Context(), eve, "", "", 1); return err }(),
		"deliveries": func() error { _, _, err := w.Deliveries(t.Context(), eve, id, webhook.DeliveryQuery{}); return err }(),
	} {
		if !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestBodies(t *testing.T) {
	e := event.Event{ID: "evt_1", Seq: 7, Type: "a.b", Subject: "s", CreatedAt: time.Unix(1, 2000).In(time.FixedZone("x", 3600)), Data: json.RawMessage(`{"a":1}`)}
	want := `{"type":"a.b","timestamp":"1970-01-01T00:00:01.000002Z","data":{"id":"evt_1","seq":7,"type":"a.b","subject":"s","actor":{"id":null,"name":""},"created_at":"1970-01-01T00:00:01.000002Z","data":{"a":1}}}`
	if got := string(webhook.Body(e)); got != want {
		t.Errorf("%s", got)
	}
	e.Data = json.RawMessage(`{"a":"` + strings.Repeat("x", 30_000) + `"}`)
	if got := webhook.Body(e); len(got) > 20_000 || !json.Valid(got) || !strings.Contains(string(got), `"left_out":true`) {
		t.Errorf("%d bytes", len(got))
	}
}

func TestVectors(t *testing.T) {
	const secret seal.Secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	for _, v := range []struct {
		id   string
		at   int64
		body string
		want string
	}{
		{"msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, `{"test": 2432232314}`, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
		{"msg_2KWPBgLlAfxdpx2AI54pPJ85f4W", 1674087231, `{"type":"contact.created","timestamp":"2022-11-03T20:26:10.344522Z","data":{"id":"1f81eb52-5198-4599-803e-771906343485"}}`,
			"v1,ARw42xaAApl/nxRo+iPGYwSaMQaOwMo2eyH5JBRA+bQ="},
	} {
		if got := webhook.Sign(v.id, time.Unix(v.at, 0), []byte(v.body), secret); got != v.want {
			t.Errorf("%s: %s", v.id, got)
		}
	}
	if got := webhook.Sign("a", time.Now(), nil, "nonsense", "whsec_!"); got != "" {
		t.Errorf("signed with nothing: %s", got)
	}
}

// An address must not be in what is logged of a failure.
func TestErrorsHoldNoAddress(t *testing.T) {
	w := newWorld(t)
	u, err := url.Parse("http://nowhere.example/secret-path")
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.config.Client.Post(context.Background(), u, nil, nil)
	if err == nil || strings.Contains(err.Error(), "secret-path") || strings.Contains(err.Error(), "nowhere") {
		t.Errorf("%v", err)
	}
}
