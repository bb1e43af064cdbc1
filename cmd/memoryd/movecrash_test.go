package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/pgtest"
)

// moveRounds is how often a move is killed without CRASH_ROUNDS.
const moveRounds = 10

// TestMoveCrash kills the server (SIGKILL) at random moments while it moves a tenant that is being written. After a
// restart the move has either happened or not; whatever was acknowledged is there, once; and writing goes on.
func TestMoveCrash(t *testing.T) {
	rounds := fromEnv(t, "CRASH_ROUNDS", moveRounds)
	seed := fromEnv(t, "CRASH_SEED", int(time.Now().UnixNano()%1e9))
	w := &movers{t: t, ctx: t.Context(), binary: binary(t), dir: t.TempDir(), dice: rand.New(rand.NewPCG(uint64(seed), 1)),
		acked: map[string]string{}}
	w.env = []string{"STORAGE_PATH=" + filepath.Join(w.dir, "storage"), "OUTBOUND_ALLOW=127.0.0.0/8,::1/128"}
	t.Cleanup(func() {
		if w.server != nil {
			w.server.Kill()
		}
	})
	w.start()
	w.client = lab.Dial(w.server.URL, 8)
	if err := w.client.Register(w.ctx, "mover@example.org"); err != nil {
		t.Fatal(err)
	}
	w.prepare(400)
	places := w.places(pgtest.URL(t), pgtest.URL(t))
	// One move that nobody disturbs tells how long it takes.
	begun := time.Now()
	if state := w.await(w.activate(places[1])); state != "completed" {
		t.Fatalf("a move that nobody disturbed is %s", state)
	}
	takes := time.Since(begun)
	completed, undone := 0, 0
	for n := range rounds {
		to := places[(n+2)%len(places)]
		from := w.active()
		if to == from {
			to = places[(n+3)%len(places)]
		}
		w.write(4)
		job := w.activate(to)
		time.Sleep(time.Duration(w.dice.Int64N(int64(takes) * 5 / 4)))
		w.server.Kill()
		w.start()
		state := w.await(job)
		w.stop()
		switch now := w.active(); {
		case state == "completed" && now == to:
			completed++
		case state == "failed" && now == from:
			undone++
		default:
			t.Errorf("round %d: the job is %s, and the data lives in %s (from %s to %s)", n, state, now, from, to)
		}
		w.check()
	}
	t.Logf("seed %d: %d kills in moves of %v: %d completed, %d undone; %d acknowledged, %d repeated", seed, rounds, takes.Round(time.Millisecond),
		completed, undone, len(w.acked), w.repeated)
	if len(w.acked) < 400+10*rounds {
		t.Errorf("only %d messages were acknowledged", len(w.acked))
	}
}

// movers is one account that writes while it moves, and what it was told.
type movers struct {
	t        *testing.T
	ctx      context.Context //nolint:containedctx // the test's own
	binary   string
	dir      string
	env      []string
	server   *lab.Server
	client   *lab.Client
	dice     *rand.Rand
	conv     string
	sent     int
	repeated int

	mu      sync.Mutex
	acked   map[string]string // text by id
	quit    chan struct{}
	writing sync.WaitGroup
}

func (w *movers) start() {
	w.t.Helper()
	var err error
	if w.server, err = lab.Start(w.binary, w.dir, w.env...); err != nil {
		w.t.Fatal(err)
	}
	if w.client == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.client.Close()
	w.client.Base = w.server.URL + "/api/v1"
}

// at is a client of the server as it runs now.
func (w *movers) at() lab.Client {
	w.mu.Lock()
	defer w.mu.Unlock()
	return *w.client
}

func (w *movers) prepare(messages int) {
	w.t.Helper()
	c, err := w.client.NewConversation(w.ctx, "On the move")
	if err != nil {
		w.t.Fatal(err)
	}
	w.conv = c.ID
	for range messages {
		if !w.say("") {
			w.t.Fatal("a message was refused")
		}
	}
}

// say sends one message until it is known what became of it, or the writers are told to stop.
func (w *movers) say(who string) bool {
	w.mu.Lock()
	w.sent++
	text := fmt.Sprintf("%s says %d", who, w.sent)
	w.mu.Unlock()
	for try := 0; ; try++ {
		c := w.at()
		a := c.Do(w.ctx, http.MethodPost, "/conversations/"+w.conv+"/messages", map[string]any{"content": text, "reply": false},
			"Idempotency-Key", text)
		var x lab.Exchange
		if err := a.Into(&x, http.StatusCreated); err == nil {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.acked[x.User.ID] = text
			if a.Header.Get("Idempotency-Replayed") == "true" {
				w.repeated++
			}
			return true
		}
		if a.Err == nil && a.Status < 500 && a.Status != http.StatusConflict && a.Status != http.StatusUnauthorized {
			w.t.Errorf("refused with %d: %s", a.Status, a.Body)
			return false
		}
		if w.ctx.Err() != nil || try > 3000 {
			w.t.Errorf("%q was never answered: %v", text, a.Err)
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// write starts writers; stop ends them.
func (w *movers) write(n int) {
	w.quit = make(chan struct{})
	for k := range n {
		w.writing.Go(func() {
			for {
				select {
				case <-w.quit:
					return
				default:
				}
				if !w.say(fmt.Sprint("writer ", k)) {
					return
				}
				time.Sleep(5 * time.Millisecond) // as fast as people, if very many of them: the machine does other work too
			}
		})
	}
}

func (w *movers) stop() {
	close(w.quit)
	w.writing.Wait()
}

// places are the hosted database and two of the user's own.
func (w *movers) places(urls ...string) []string {
	w.t.Helper()
	ids := []string{w.active()}
	for i, u := range urls {
		var d struct {
			ID string `json:"id"`
		}
		if err := w.client.Post(w.ctx, "/database", map[string]string{"name": fmt.Sprint("Mine ", i), "url": u}, &d); err != nil {
			w.t.Fatal(err)
		}
		ids = append(ids, d.ID)
	}
	return ids
}

func (w *movers) active() string {
	w.t.Helper()
	var page lab.Page[struct {
		ID     string `json:"id"`
		Active bool   `json:"active"`
	}]
	c := w.at()
	if err := c.Get(w.ctx, "/database", &page); err != nil {
		w.t.Fatal(err)
	}
	for _, d := range page.Data {
		if d.Active {
			return d.ID
		}
	}
	w.t.Fatal("no database is active")
	return ""
}

func (w *movers) activate(id string) string {
	w.t.Helper()
	var j struct {
		ID    string `json:"id"`
		JobID string `json:"job_id"`
	}
	c := w.at()
	if err := c.Do(w.ctx, http.MethodPost, "/database/"+id+"/activate", nil).Into(&j, http.StatusAccepted); err != nil {
		w.t.Fatal(err)
	}
	return j.ID
}

// await returns how a job ended.
func (w *movers) await(id string) string {
	w.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		var j struct {
			State    string         `json:"state"`
			Progress map[string]any `json:"progress"`
		}
		c := w.at()
		if err := c.Get(w.ctx, "/jobs/"+id, &j); err != nil {
			w.t.Fatal(err)
		}
		if j.State != "queued" && j.State != "running" {
			return j.State
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("the job is still %s: %v\n%s", j.State, j.Progress, w.server.Log())
		}
	}
}

// check finds everything that was acknowledged, once.
func (w *movers) check() {
	w.t.Helper()
	c := w.at()
	all, err := c.Messages(w.ctx, w.conv)
	if err != nil {
		w.t.Fatal(err)
	}
	byText := map[string]int{}
	byID := map[string]string{}
	for _, m := range all {
		byText[m.Content]++
		byID[m.ID] = m.Content
	}
	for id, text := range w.acked {
		if byID[id] != text {
			w.t.Errorf("lost: %q", text)
		}
		if byText[text] > 1 {
			w.t.Errorf("twice: %q", text)
		}
	}
}
