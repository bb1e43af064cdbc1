package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"claude-memory-backend/bench/fleet"
	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/sqlstore"
)

// memory looks at what known, open and closed tenants hold. The collector runs often, so that what a process holds is
// what it needs; requests are limited, so that what that remembers counts.
func (b *bench) memory(ctx context.Context) error {
	t := table{lab.Table{Out: b.out}}
	t.Head("Memory and descriptors", "what", "figure")
	if err := b.known(ctx, t); err != nil {
		return err
	}
	return b.opened(ctx, t)
}

// sparing makes a server hold what it needs.
var sparing = []string{"GOGC=10", "RATE_LIMIT=on"}

// known visits every tenant once while as few may be open as the other server has, so that nothing hides what closed
// ones leave behind.
func (b *bench) known(ctx context.Context, t table) (err error) {
	heap := func(f *fleet.Fleet, visited int) (before, after int64, err error) {
		server, err := b.serve(f, b.few, sparing...)
		if err != nil {
			return 0, 0, err
		}
		defer func() { err = errors.Join(err, server.Stop()) }()
		c := newCrowd(server, f, b.law)
		// What the process needs once is paid for by a first tour over a few.
		if err := c.tour(ctx, c.order[:b.few], nil); err != nil {
			return 0, 0, err
		}
		if before, err = live(ctx, c.client); err != nil {
			return 0, 0, err
		}
		begun, waits := time.Now(), []time.Duration(nil)
		if err := c.tour(ctx, c.order[:visited], &waits); err != nil {
			return 0, 0, err
		}
		took := time.Since(begun)
		if after, err = live(ctx, c.client); err == nil && visited > b.few {
			t.Row("cold visits, one after another", fmt.Sprintf("%.0f a second", float64(visited)/took.Seconds()))
			t.Row("opening one, when nothing else is asked: median, 95 %, 99 %", spread(waits))
			t.Row("descriptors, at most", fmt.Sprintf("%d of %s", descriptors(server.PID()), limitOfDescriptors(server.PID())))
		}
		return before, after, err
	}
	_, alone, err := heap(b.less, b.few)
	if err != nil {
		return err
	}
	before, after, err := heap(b.many, b.tenants)
	if err != nil {
		return err
	}
	t.Row(fmt.Sprintf("heap in use, %d tenants, all visited", b.few), lab.MiB(alone))
	t.Row(fmt.Sprintf("heap in use, %d tenants, %d visited", b.tenants, b.few), lab.MiB(before))
	t.Row(fmt.Sprintf("heap in use, %d tenants, all visited, %d open", b.tenants, b.few), lab.MiB(after))
	t.Row("a tenant that nobody visited", fmt.Sprintf("%d bytes", (before-alone)/int64(b.tenants-b.few)))
	t.Row("a tenant that was visited and is closed", fmt.Sprintf("%d bytes", (after-before)/int64(b.tenants-b.few)))
	return nil
}

// opened visits tenants until as many are open as may be.
func (b *bench) opened(ctx context.Context, t table) (err error) {
	server, err := b.serve(b.many, b.open, sparing...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	c := newCrowd(server, b.many, b.law)
	const first = 100 // pay for what the process needs once
	if b.tenants <= first {
		return nil
	}
	if err := c.tour(ctx, c.order[:first], nil); err != nil {
		return err
	}
	before := lab.Resident(server.PID())
	open, next := first, first
	for next < b.tenants {
		part := c.order[next:min(next+first, b.tenants)]
		if err := c.tour(ctx, part, nil); err != nil {
			return err
		}
		now, err := gauge(ctx, c.client, "memoryd_tenants_open")
		if err != nil {
			return err
		}
		next += len(part)
		if int(now) == open {
			break
		}
		open = int(now)
	}
	t.Row(fmt.Sprintf("resident, %d open", open), lab.MiB(lab.Resident(server.PID())))
	t.Row("an open tenant that was looked at", fmt.Sprintf("%d KiB", (lab.Resident(server.PID())-before)/int64(max(1, open-first))>>10))
	t.Row("descriptors then", fmt.Sprintf("%d of %s", descriptors(server.PID()), limitOfDescriptors(server.PID())))
	return nil
}

// compare visits many and few tenants in rounds.
func (b *bench) compare(ctx context.Context) (err error) {
	many, err := b.serve(b.many, b.open)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, many.Stop()) }()
	few, err := b.serve(b.less, b.open)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, few.Stop()) }()
	a, z := newCrowd(many, b.many, b.law), newCrowd(few, b.less, b.law)
	if err := a.warm(ctx, b.rate, a.next); err != nil {
		return err
	}
	if err := z.warm(ctx, b.rate, z.next); err != nil {
		return err
	}
	most, open := 0, 0
	roundsMany, roundsFew, err := b.pairs(
		func() ([]sample, error) {
			s, err := a.stream(ctx, b.visits(), b.rate, a.next)
			if err == nil {
				var n float64
				n, err = gauge(ctx, a.client, "memoryd_tenants_open")
				most, open = max(most, descriptors(many.PID())), max(open, int(n))
			}
			return s, err
		},
		func() ([]sample, error) { return z.stream(ctx, b.visits(), b.rate, z.next) })
	if err != nil {
		return err
	}
	t := table{lab.Table{Out: b.out}}
	t.comparison(fmt.Sprintf("Requests that meet an open tenant: %d tenants against %d", b.tenants, b.few), "many", "few")
	for _, w := range usual {
		t.compare(w.what, roundsMany, roundsFew, w.in)
	}
	var waits, whole, lateness []time.Duration
	visits := 0
	for _, round := range roundsMany {
		for _, s := range round {
			visits++
			lateness = append(lateness, s.late)
			if s.cold() {
				waits, whole = append(waits, s.opened), append(whole, s.took)
			}
		}
	}
	t.Head("Visits to closed tenants", "what", "figure")
	t.Row("of all visits", fmt.Sprintf("%.1f %%", 100*float64(len(waits))/float64(max(1, visits))))
	t.Row("what the opening added: median, 95 %, 99 %", spread(waits))
	t.Row("the whole request: median, 95 %, 99 %", spread(whole))
	t.Row("tenants open at once, at most", open)
	t.Row("descriptors of the server with many, at most", fmt.Sprintf("%d of %s", most, limitOfDescriptors(many.PID())))
	t.Row("resident, with many and with few", lab.MiB(lab.Resident(many.PID()))+", "+lab.MiB(lab.Resident(few.PID())))
	t.Row("visits sent late by the driver: median, 95 %, 99 %", spread(lateness))
	return nil
}

// visits is how many there are in a round.
func (b *bench) visits() int { return int(b.rate * b.round.Seconds()) }

// pairs does rounds of one and the other. The one that is second in a pair is first in the next, so that what drifts
// meets both.
func (b *bench) pairs(one, other func() ([]sample, error)) (ones, others [][]sample, err error) {
	take := func(list *[][]sample, do func() ([]sample, error)) {
		if err == nil {
			var s []sample
			s, err = do()
			*list = append(*list, s)
		}
	}
	for i := range b.rounds {
		if i%2 == 0 {
			take(&ones, one)
			take(&others, other)
		} else {
			take(&others, other)
			take(&ones, one)
		}
	}
	return ones, others, err
}

// usual are the kinds of visits that are looked at by themselves.
var usual = []struct {
	what string
	in   func(sample) bool
}{
	{"all", hot},
	{"reading", func(s sample) bool { return hot(s) && s.kind <= one }},
	{"sending", func(s sample) bool { return hot(s) && s.kind == send }},
	{"searching", func(s sample) bool { return hot(s) && s.kind == search }},
}

func hot(s sample) bool { return !s.cold() }

// neighbour lets one tenant do all it may, in turns with quiet, and looks at the others.
func (b *bench) neighbour(ctx context.Context) (err error) {
	hog := &b.many.Members[0]
	if err := b.lengthen(ctx, hog); err != nil {
		return err
	}
	server, err := b.serve(b.many, b.open, "RATE_LIMIT=on")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	others := newCrowd(server, b.many, b.law)
	crew := min(40, b.tenants-1)
	anybody := func() visit { return others.to(&b.many.Members[1+others.r.IntN(crew)]) }
	if err := others.warm(ctx, b.rate, anybody); err != nil {
		return err
	}
	done, refused := 0, 0
	quiet, noise, err := b.pairs(
		func() ([]sample, error) { return others.stream(ctx, b.visits(), b.rate, anybody) },
		func() ([]sample, error) {
			stop := b.noise(ctx, newCrowd(server, b.many, b.law), hog)
			l, err := others.stream(ctx, b.visits(), b.rate, anybody)
			d, r, failed := stop()
			done, refused = done+d, refused+r
			return l, errors.Join(err, failed)
		})
	if err != nil {
		return err
	}
	t := table{lab.Table{Out: b.out}}
	t.comparison(fmt.Sprintf("%d tenants while another one does all it may, against quiet", crew), "noise", "quiet")
	for _, w := range usual {
		t.compare(w.what, noise, quiet, w.in)
	}
	fmt.Fprintf(b.out, "\nThe other one was answered %d times and refused %d times.\n", done, refused)
	return nil
}

// lengthen gives a tenant a long history, unless it has one.
func (b *bench) lengthen(ctx context.Context, m *fleet.Member) error {
	db, err := fleet.OpenTenant(ctx, b.many.Dir, m.Tenant)
	if err != nil {
		return err
	}
	store := sqlstore.NewTenantStore(db, nil)
	used, err := store.Used(ctx)
	if missing := b.history - int(used.Messages); err == nil && missing > 0 {
		err = fleet.Fill(ctx, store, m.Conversations[0], missing, fleet.NewCorpus(3))
	}
	return errors.Join(err, db.Close())
}

// noise keeps sixteen clients of one tenant busy: sends, lists and the dearest searches, as many as its limit lets
// through. One that is refused tries again soon.
func (b *bench) noise(ctx context.Context, c *crowd, m *fleet.Member) (stop func() (done, refused int, err error)) {
	const clients, soon = 16, 250 * time.Millisecond
	ctx, cancel := context.WithCancel(ctx)
	var mu sync.Mutex
	var wg sync.WaitGroup
	var done, refused int
	var failed error
	for range clients {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				mu.Lock()
				v := visit{member: m, kind: []kind{send, search, list, search}[n%4], words: c.words.Query("question")}
				mu.Unlock()
				_, a := c.pay(ctx, v)
				mu.Lock()
				switch {
				case ctx.Err() != nil:
				case a.Err != nil && failed == nil:
					failed = a.Err
				case a.Status == http.StatusTooManyRequests:
					refused++
				default:
					done++
				}
				mu.Unlock()
				if a.Status == http.StatusTooManyRequests {
					pause := time.NewTimer(soon)
					select {
					case <-ctx.Done():
					case <-pause.C:
					}
					pause.Stop()
				}
			}
		})
	}
	return func() (int, int, error) {
		cancel()
		wg.Wait()
		return done, refused, failed
	}
}
