package main

import (
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/bench/lab"
)

// load is people who write all the time, one note after the other, and what they were told.
type load struct {
	w      *world
	stop   chan struct{}
	wg     sync.WaitGroup
	mu     sync.Mutex
	change *sync.Cond
	told   map[*writer]*heard
}

// heard is what one of them was told since the last time that somebody looked.
type heard struct {
	acked   int
	refused []lab.Answer // not 201, or no answer at all
	took    []time.Duration
}

func (w *world) load(people ...*writer) *load {
	l := &load{w: w, stop: make(chan struct{}), told: map[*writer]*heard{}}
	l.change = sync.NewCond(&l.mu)
	for _, p := range people {
		l.told[p] = &heard{}
		l.wg.Go(func() { l.write(p) })
	}
	return l
}

func (l *load) write(p *writer) {
	for {
		began := time.Now()
		a := l.w.next(p, 0)
		took := time.Since(began)
		l.mu.Lock()
		n := l.told[p]
		n.took = append(n.took, took)
		if a.Status == http.StatusCreated {
			n.acked++
		} else {
			n.refused = append(n.refused, a)
		}
		l.mu.Unlock()
		l.change.Broadcast()
		pause := 10 * time.Millisecond
		if a.Status != http.StatusCreated {
			pause = 50 * time.Millisecond // whoever is refused does not come back at once
		}
		select {
		case <-l.stop:
			return
		case <-time.After(pause):
		}
	}
}

// reset forgets what they were told by now.
func (l *load) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.told {
		l.told[p] = &heard{}
	}
}

// until waits until enough holds for each of the people.
func (l *load) until(what string, people []*writer, enough func(*heard) bool) {
	l.w.t.Helper()
	late := time.AfterFunc(patience, l.change.Broadcast)
	defer late.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for deadline := time.Now().Add(patience); slices.ContainsFunc(people, func(p *writer) bool { return !enough(l.told[p]) }); l.change.Wait() {
		if time.Now().After(deadline) {
			for _, p := range people {
				l.w.t.Logf("%s: %d acknowledged, %d not", p.email, l.told[p].acked, len(l.told[p].refused))
			}
			l.w.t.Fatalf("waited in vain until %s", what)
		}
	}
}

func (l *load) end() {
	close(l.stop)
	l.wg.Wait()
}

// look gives what these people were told, and forgets it.
func (l *load) look(people []*writer) (all heard) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range people {
		n := l.told[p]
		all.acked += n.acked
		all.refused = append(all.refused, n.refused...)
		all.took = append(all.took, n.took...)
		l.told[p] = &heard{}
	}
	return all
}

func (n heard) median() time.Duration {
	slices.Sort(n.took)
	return n.took[len(n.took)/2]
}

func (n heard) slowest() time.Duration { return slices.Max(n.took) }

// acked and refusedTimes are for until.
func acked(times int) func(*heard) bool { return func(n *heard) bool { return n.acked >= times } }

func refusedTimes(times int) func(*heard) bool {
	return func(n *heard) bool { return len(n.refused) >= times }
}

// away are the codes that clients see of a PostgreSQL server that is not there.
var away = []string{"database_unreachable", "unavailable", "outcome_unknown", "timeout"}

// clear checks that all refusals were clear ones, and returns how often each code was given.
func (n heard) clear(t *testing.T) map[string]int {
	t.Helper()
	codes := map[string]int{}
	for _, a := range n.refused {
		if err := refused(a, away...); err != nil {
			t.Error(err)
		}
		var p struct{ Code string }
		_ = json.Unmarshal(a.Body, &p) // an unclear one was reported
		codes[p.Code]++
	}
	return codes
}

// tooLong is when an answer that says "not now" comes too late. It should come within two seconds; a machine that runs
// all tests at once may need more, and a request that waits for its database needs far more than this.
const tooLong = 10 * time.Second

// slower is how many times slower than before those may be who are not concerned.
const slower = 10
