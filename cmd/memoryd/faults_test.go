package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/pgtest"
)

// These tests break what the real server stands on, one thing at a time, in installations where some tenants are
// concerned and some are not, and keep the ledger of the crash harness: those concerned get a clear error, the others
// notice nothing, all comes back by itself, and nothing acknowledged is lost or there twice.

// mixed registers people whose data is in SQLite files, then others on each of the servers.
func mixed(w *world, files int, servers ...string) (inFiles []*writer, inServers [][]*writer) {
	w.t.Helper()
	own := w.env
	w.start()
	inFiles, w.files = w.join("file", files), files
	for i := range servers {
		w.restart(append(slices.Clone(own), "TENANT_DATABASE_URLS="+strings.Join(servers[:i+1], ",")))
		inServers = append(inServers, w.join(fmt.Sprint("server", i, "n"), 2)) // the emptiest is the newest
	}
	return inFiles, inServers
}

// restart stops the server in order and starts it with other settings.
func (w *world) restart(env []string) {
	w.t.Helper()
	if err := w.server.Stop(); err != nil {
		w.t.Fatal(err)
	}
	w.env = env
	w.start()
}

// settled fails the test for what the ledger found.
func (w *world) settled() {
	w.t.Helper()
	for _, p := range w.problems {
		w.t.Error(p)
	}
	w.problems = nil
}

// ledger makes a conversation for everybody and a few notes in it.
func (w *world) ledger(people ...*writer) {
	w.t.Helper()
	for _, p := range people {
		conv, err := p.client.NewConversation(w.ctx, "ledger")
		if err != nil {
			w.t.Fatal(err)
		}
		p.notes = append(p.notes, &note{conv: conv.ID, key: p.email + "/0", text: "note " + p.email + "/0"})
		if !w.send(p, p.notes[0]) {
			w.t.Fatalf("%s cannot write", p.email)
		}
	}
}

// next sends one more note of so many bytes, and enters it into the ledger.
func (w *world) next(p *writer, size int) lab.Answer {
	n := &note{conv: p.notes[0].conv, key: fmt.Sprintf("%s/%d", p.email, len(p.notes))}
	n.text = "note " + n.key + " "
	n.text += strings.Repeat("x", max(0, size-len(n.text)))
	p.notes = append(p.notes, n)
	a := p.client.Do(w.ctx, http.MethodPost, "/conversations/"+n.conv+"/messages", n.body(), "Idempotency-Key", n.key)
	var x lab.Exchange
	if a.Into(&x, http.StatusCreated) == nil {
		n.id = x.User.ID
	}
	return a
}

// refused checks that an answer is a clear 503 with one of the codes.
func refused(a lab.Answer, codes ...string) error {
	var p struct{ Code, Detail, Title string }
	if a.Err != nil {
		return fmt.Errorf("no answer: %w", a.Err)
	}
	_ = json.Unmarshal(a.Body, &p) // shows below
	if a.Status != http.StatusServiceUnavailable || !slices.Contains(codes, p.Code) || p.Detail == "" || p.Title == "The request failed" ||
		a.Header.Get("Content-Type") != "application/problem+json" || a.Header.Get("Retry-After") == "" {
		return fmt.Errorf("status %d, %v: %s", a.Status, a.Header, a.Body)
	}
	return nil
}

// reads checks that somebody reads all that the ledger knows of them, and finds it.
func (w *world) reads(p *writer) {
	w.t.Helper()
	stored, err := p.client.Messages(w.ctx, p.notes[0].conv)
	if err != nil {
		w.t.Errorf("%s cannot read: %v", p.email, err)
		return
	}
	ids := map[string]string{}
	for _, m := range stored {
		ids[m.ID] = m.Content
	}
	for _, n := range p.notes {
		if n.id != "" && ids[n.id] != n.text {
			w.t.Errorf("lost: %s, acknowledged as %s", n.key, n.id)
		}
	}
	if hits, err := p.client.Search(w.ctx, "note", 5); err != nil || len(hits) == 0 {
		w.t.Errorf("%s cannot search: %d hits, %v", p.email, len(hits), err)
	}
}

// recovers waits until somebody can write again, then sends again what was not acknowledged, and compares everything.
func (w *world) recovers(people ...*writer) {
	w.t.Helper()
	for _, p := range people {
		for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
			a := w.next(p, 0)
			if a.Status == http.StatusCreated {
				break
			}
			if time.Now().After(deadline) {
				w.t.Fatalf("%s did not recover: %v %s", p.email, a.Err, a.Body)
			}
		}
		w.repeat(p, p.notes)
		w.compare(p, p.notes)
	}
	w.settled()
}

// Tenants' files are on a disk of their own, which has no room left, and then takes nothing at all.
func TestDiskOfTenants(t *testing.T) {
	w := emptyWorld(t, binary(t), 1)
	v := newVolume(t, filepath.Join(w.dir, "storage", "tenants"), 16<<20)
	w.under, w.root = v.enter, v.root()
	files, servers := mixed(w, 3, pgtest.URL(t))
	w.ledger(w.people...)
	concerned := func(codes ...string) {
		t.Helper()
		for _, p := range files {
			w.fails(p, codes...)
		}
		for _, p := range files {
			w.reads(p)
		}
		for _, p := range servers[0] {
			if a := w.next(p, 0); a.Status != http.StatusCreated {
				t.Errorf("%s is not concerned: %v %s", p.email, a.Err, a.Body)
			}
			w.reads(p)
		}
	}

	// While an answer is told: the disk of the spool takes what the tenant's does not, and who follows hears all of it.
	b := w.broadcast(files[0], func() bool {
		v.fill()
		w.fails(files[0], "storage_full")
		return true
	}, v.free)
	if b.told != longAnswer.Text || b.last != "turn.completed" {
		t.Errorf("told %d characters, and %s at last", len(b.told), b.last)
	}
	if state, text := w.stands(files[0], b); state != "completed" || text != longAnswer.Text {
		t.Errorf("the answer is %s with %d characters", state, len(text))
	}
	w.recovers(files[0])

	v.fill()
	concerned("storage_full")
	w.server.Kill() // what was refused a moment ago may be found now, or not; nothing else may
	w.start()
	concerned("storage_full")
	v.free()
	w.recovers(w.people...)

	if err := w.server.Stop(); err != nil { // whose files are closed cannot be read without making new ones beside them
		t.Fatal(err)
	}
	v.fill()
	w.start()
	concerned("storage_full")
	v.free()
	w.recovers(w.people...)

	if err := w.server.Stop(); err != nil {
		t.Fatal(err)
	}
	v.remount("ro")
	w.start()
	concerned("storage_failed")
	v.remount("rw")
	w.recovers(w.people...)

	if err := w.server.Stop(); err != nil {
		t.Error(err)
	}
	w.integrity()
	w.settled()
}

// fails writes until that is refused: a log that had grown before has some room left.
func (w *world) fails(p *writer, codes ...string) {
	w.t.Helper()
	a := lab.Answer{}
	for range 500 {
		if a = w.next(p, 64<<10); a.Status != http.StatusCreated {
			break
		}
	}
	if err := refused(a, codes...); err != nil {
		w.t.Errorf("%s: %v", p.email, err)
	}
}

// Everything is on one disk, the master database too.
func TestDiskOfEverything(t *testing.T) {
	w := emptyWorld(t, binary(t), 1)
	v := newVolume(t, filepath.Join(w.dir, "storage"), 16<<20)
	w.under, w.root = v.enter, v.root()
	files, _ := mixed(w, 3)
	w.ledger(files...)

	// An answer that is told meanwhile, to its end, is kept as far as it was stored; its reader is not told that it is complete.
	b := w.broadcast(files[0], func() bool {
		v.fill()
		return false
	}, nil)
	for _, p := range files {
		w.fails(p, "storage_full")
	}
	for _, p := range files {
		w.reads(p)
	}
	late := map[string]string{"email": "late@example.org", "password": "correct horse battery staple"}
	register := func() lab.Answer {
		return lab.Dial(w.server.URL, 1).Do(w.ctx, http.MethodPost, "/auth/register", late)
	}
	if err := refused(register(), "storage_full"); err != nil {
		t.Error(err)
	}
	w.silent()
	w.server.Kill()
	w.start()
	for _, p := range files {
		w.reads(p)
	}
	v.free()
	if state, text := w.stands(files[0], b); state != "interrupted" {
		t.Errorf("the answer is %s with %d characters", state, len(text))
	}
	w.recovers(files...)
	if a := register(); a.Status != http.StatusCreated {
		t.Errorf("nobody can register: %d %s", a.Status, a.Body)
	}
	if err := w.server.Stop(); err != nil {
		t.Error(err)
	}
	w.integrity()
	w.settled()
}

// unmoved checks that those who are not concerned were refused nothing, and were served about as fast as before.
func unmoved(t *testing.T, when string, before, now heard) {
	t.Helper()
	for _, a := range now.refused {
		t.Errorf("%s: not concerned, and told %d %s %v", when, a.Status, a.Body, a.Err)
	}
	if b, n := before.median(), now.median(); n > slower*b {
		t.Errorf("%s: those who are not concerned waited %v, and %v before", when, n, b)
	}
}

// startCluster starts a PostgreSQL server that the test may break.
func startCluster(t *testing.T) *pgtest.Cluster {
	t.Helper()
	c, err := pgtest.Start(t.Context(), pgtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func done(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// One of several PostgreSQL servers for tenants is frozen, then killed under load, then not there when memoryd starts.
func TestServersOfTenants(t *testing.T) {
	server := startCluster(t)
	w := emptyWorld(t, binary(t), 1)
	files, servers := mixed(w, 2, server.URL, pgtest.URL(t))
	concerned, others := servers[0], append(files, servers[1]...)
	w.ledger(w.people...)
	l := w.load(w.people...)
	l.until("everybody writes", w.people, acked(40))
	l.look(concerned)
	before := l.look(others)

	done(t, server.Freeze())
	l.reset()
	l.until("the frozen server's tenants are refused", concerned, refusedTimes(20))
	l.until("the others write", others, acked(20))
	frozen := l.look(concerned)
	unmoved(t, "frozen", before, l.look(others))
	t.Logf("frozen: slowest answer %v, median %v, codes %v", frozen.slowest(), frozen.median(), frozen.clear(t))
	if frozen.slowest() > tooLong {
		t.Errorf("the frozen server's tenants waited %v for an answer", frozen.slowest())
	}
	done(t, server.Thaw())
	l.until("everybody writes again", w.people, acked(20))

	for range 2 {
		l.reset()
		done(t, server.Kill())
		l.until("the killed server's tenants are refused", concerned, refusedTimes(3))
		done(t, server.Restart(t.Context()))
		l.until("everybody writes again", w.people, acked(20))
		killed := l.look(concerned)
		unmoved(t, "killed", before, l.look(others))
		t.Logf("killed: slowest answer %v, codes %v", killed.slowest(), killed.clear(t))
	}
	l.end()
	w.recovers(w.people...)

	done(t, w.server.Stop())
	done(t, server.Kill())
	w.start()
	for _, p := range concerned {
		if err := refused(w.next(p, 0), away...); err != nil {
			t.Error(err)
		}
	}
	w.wantServers(2, 1)
	w.recovers(others...)
	w.ledger(w.join("late", 3)...) // more than the server that is there has: the other one would be emptier
	done(t, server.Restart(t.Context()))
	w.recovers(w.people...)
	w.wantServers(2, 2)
	done(t, w.server.Stop())
	w.settled()
}

// wantServers sees what the detailed health says of tenants' servers.
func (w *world) wantServers(servers, answering int) {
	w.t.Helper()
	var health struct {
		Status string
		Checks []struct {
			Name, Status string
			Facts        struct{ Servers, Answering int }
		}
	}
	if err := w.people[0].client.Get(w.ctx, "/health/detailed", &health); err != nil {
		w.t.Fatal(err)
	}
	want := map[bool]string{true: "ok", false: "failing"}[servers == answering]
	for _, c := range health.Checks {
		if c.Name == "tenant_servers" {
			if c.Status != want || (health.Status == "ok") != (want == "ok") || c.Facts.Servers != servers || c.Facts.Answering != answering {
				w.t.Errorf("%+v", health)
			}
			return
		}
	}
	w.t.Errorf("no check of tenants' servers: %+v", health)
}

// The master database's PostgreSQL server is frozen, then killed under load.
func TestServerOfTheMasterDatabase(t *testing.T) {
	server := startCluster(t)
	w := emptyWorld(t, binary(t), 1, "MASTER_DATABASE_URL="+server.URL)
	mixed(w, 3)
	w.ledger(w.people...)
	ready := func() int { return w.people[0].client.Do(w.ctx, http.MethodGet, "/health/readiness", nil).Status }
	if got := ready(); got != http.StatusOK {
		t.Fatalf("readiness is %d", got)
	}
	l := w.load(w.people...)
	l.until("everybody writes", w.people, acked(10))
	for name, c := range map[string]struct{ breaks, mends func() error }{
		"frozen": {server.Freeze, server.Thaw},
		"killed": {server.Kill, func() error { return server.Restart(t.Context()) }},
	} {
		done(t, c.breaks())
		l.reset()
		l.until("everybody is refused", w.people, refusedTimes(5))
		if got := ready(); got != http.StatusServiceUnavailable {
			t.Errorf("%s: readiness is %d", name, got)
		}
		if got := w.people[0].client.Do(w.ctx, http.MethodGet, "/health/liveness", nil).Status; got != http.StatusOK {
			t.Errorf("%s: liveness is %d", name, got)
		}
		now := l.look(w.people)
		t.Logf("%s: slowest answer %v, codes %v", name, now.slowest(), now.clear(t))
		if now.slowest() > tooLong {
			t.Errorf("%s: somebody waited %v for an answer", name, now.slowest())
		}
		done(t, c.mends())
		l.reset()
		l.until("everybody writes again", w.people, acked(10))
		if got := ready(); got != http.StatusOK {
			t.Errorf("%s: readiness is still %d", name, got)
		}
	}
	l.end()
	w.recovers(w.people...)
	done(t, w.server.Stop())
	w.settled()
}
