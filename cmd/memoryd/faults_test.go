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

	v.fill()
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
	w.server.Kill()
	w.start()
	for _, p := range files {
		w.reads(p)
	}
	v.free()
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
