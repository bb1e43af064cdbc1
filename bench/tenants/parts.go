package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"claude-memory-backend/bench/fleet"
	"claude-memory-backend/internal/sqlstore"
)

// memory visits every tenant once: what a closed one holds that has been open, and what an open one holds.
func (b *bench) memory(ctx context.Context) (err error) {
	// The collector runs often, so that what a process holds is what it needs.
	few, err := b.serve(b.less, b.open, "GOGC=10")
	if err != nil {
		return err
	}
	alone := resident(few.PID())
	if err := few.Stop(); err != nil {
		return err
	}
	many, err := b.serve(b.many, b.open, "GOGC=10")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, many.Stop()) }()
	c := newCrowd(many, b.many, b.law)
	var waits []time.Duration
	tour := func(from, to int) (int64, error) {
		for _, i := range c.order[from:to] {
			s, a := c.pay(ctx, visit{member: &b.many.Members[i], kind: list})
			if a.Err != nil {
				return 0, a.Err
			}
			waits = append(waits, s.opened)
		}
		return resident(many.PID()), nil
	}
	t := table{b.out}
	t.head("Memory and descriptors", "what", "figure")
	before := resident(many.PID())
	t.row(fmt.Sprintf("resident, %d tenants, none open", b.few), mib(alone))
	t.row(fmt.Sprintf("resident, %d tenants, none open", b.tenants), mib(before))
	// The first hundred pay for what the process needs once.
	first, err := tour(0, min(100, b.tenants))
	if err != nil {
		return err
	}
	full, err := tour(min(100, b.tenants), min(b.open, b.tenants))
	if err != nil {
		return err
	}
	if b.open > 100 {
		t.row("an open tenant that was looked at", fmt.Sprintf("%d KiB", (full-first)/int64(min(b.open, b.tenants)-100)>>10))
	}
	t.row(fmt.Sprintf("resident, %d open", min(b.open, b.tenants)), mib(full))
	t.row("descriptors then", descriptors(many.PID()))
	if b.tenants > b.open {
		// A round that replaces everything in the pool goes first: closing costs the process once, too.
		half := min(2*b.open, b.tenants)
		replaced, err := tour(b.open, half)
		if err != nil {
			return err
		}
		begun := time.Now()
		last, err := tour(half, b.tenants)
		if err != nil {
			return err
		}
		t.row(fmt.Sprintf("resident, all %d visited, %d of them closed again", b.tenants, b.tenants-b.open), mib(last))
		if n := b.tenants - half; n > 0 {
			t.row("a tenant that was visited and is closed", fmt.Sprintf("%d bytes", (last-replaced)/int64(n)))
			t.row("descriptors then", descriptors(many.PID()))
			t.row("cold visits one after another", fmt.Sprintf("%.0f a second", float64(n)/time.Since(begun).Seconds()))
		}
	}
	t.row("opening one, when nothing else is asked: median, 95 %, 99 %", spread(waits))
	return nil
}

// compare visits many and few tenants in turns.
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
	// Until the pool is as full as it gets.
	if _, err := a.stream(ctx, 4*min(b.open, b.tenants), b.rate, a.next); err != nil {
		return err
	}
	if _, err := z.stream(ctx, 500, b.rate, z.next); err != nil {
		return err
	}
	var turnsMany, turnsFew [][]sample
	most := 0
	for range b.turns {
		m, err := a.stream(ctx, b.visits/b.turns, b.rate, a.next)
		if err != nil {
			return err
		}
		most = max(most, descriptors(many.PID()))
		f, err := z.stream(ctx, b.visits/b.turns, b.rate, z.next)
		if err != nil {
			return err
		}
		turnsMany, turnsFew = append(turnsMany, m), append(turnsFew, f)
	}
	t := table{b.out}
	t.head(fmt.Sprintf("Requests that meet an open tenant: %d tenants against %d", b.tenants, b.few),
		"what", "99 %, ratio", "lowest", "highest", "99 % takes", "median, ratio", "median takes")
	hot := func(s sample) bool { return !s.cold() }
	for _, w := range []struct {
		what string
		in   func(sample) bool
	}{
		{"all", hot},
		{"reading", func(s sample) bool { return hot(s) && s.kind <= one }},
		{"sending", func(s sample) bool { return hot(s) && s.kind == send }},
		{"searching", func(s sample) bool { return hot(s) && s.kind == search }},
	} {
		t.compare(w.what, turnsMany, turnsFew, w.in)
	}
	var waits, lateness []time.Duration
	visits := 0
	for _, turn := range turnsMany {
		for _, s := range turn {
			visits++
			lateness = append(lateness, s.late)
			if s.cold() {
				waits = append(waits, s.opened)
			}
		}
	}
	t.head("Visits to closed tenants", "what", "figure")
	t.row("of all visits", fmt.Sprintf("%.1f %%", 100*float64(len(waits))/float64(max(1, visits))))
	t.row("what the opening added: median, 95 %, 99 %", spread(waits))
	t.row("descriptors of the server with many, at most", most)
	t.row("resident, with many and with few", mib(resident(many.PID()))+", "+mib(resident(few.PID())))
	t.row("visits sent late by the driver: median, 95 %, 99 %", spread(lateness))
	return nil
}

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
	if _, err := others.stream(ctx, 20*crew, b.rate/2, anybody); err != nil {
		return err
	}
	n := b.visits / b.turns / 2
	var quiet, noise [][]sample
	done, refused := 0, 0
	for range b.turns {
		q, err := others.stream(ctx, n, b.rate/2, anybody)
		if err != nil {
			return err
		}
		stop := b.noise(ctx, newCrowd(server, b.many, b.law), hog)
		l, err := others.stream(ctx, n, b.rate/2, anybody)
		d, r, failed := stop()
		if err := errors.Join(err, failed); err != nil {
			return err
		}
		quiet, noise, done, refused = append(quiet, q), append(noise, l), done+d, refused+r
	}
	t := table{b.out}
	t.head(fmt.Sprintf("%d tenants while another one does all it may, against quiet", crew),
		"what", "99 %, ratio", "lowest", "highest", "99 % takes", "median, ratio", "median takes")
	hot := func(s sample) bool { return !s.cold() }
	t.compare("all", noise, quiet, hot)
	t.compare("reading", noise, quiet, func(s sample) bool { return hot(s) && s.kind <= one })
	t.compare("sending", noise, quiet, func(s sample) bool { return hot(s) && s.kind == send })
	fmt.Fprintf(b.out, "\nThe other one was answered %d times and refused %d times.\n", done, refused)
	return nil
}

// lengthen gives a tenant a long history.
func (b *bench) lengthen(ctx context.Context, m *fleet.Member) error {
	db, err := fleet.OpenTenant(ctx, b.many.Dir, m.Tenant)
	if err != nil {
		return err
	}
	return errors.Join(fleet.Fill(ctx, sqlstore.NewTenantStore(db, nil), m.Conversations[0], b.history, fleet.NewCorpus(3)), db.Close())
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
