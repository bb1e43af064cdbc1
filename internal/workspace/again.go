package workspace

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// ReplayShare is how many events of one tenant's log may be looked at for one account that reads again what it missed there.
// Without a rate there is no bound.
type ReplayShare struct {
	Rate  float64 // events a second, for long
	Burst int     // events at once
}

// The share lets somebody come back to fifty rooms after five hundred events, and takes a few hundredths of a processor from a
// database that works with this machine's.
const (
	replayRate  = 5_000
	replayBurst = 25_000
)

// replays are those who read logs again, or did so a moment ago.
type replays struct {
	mu      sync.Mutex
	readers map[reader]*places
	swept   time.Time
}

// reader is an account in a tenant's log; without an account, all guests of the tenant.
type reader struct {
	tenant ident.TenantID
	who    ident.AccountID
}

// places are what a reader has.
type places struct {
	one    chan struct{} // one part at a time
	budget *rate.Limiter // nil: no bound
	users  int           // who waits or reads
}

// sweepReaders is how often those are forgotten who read nothing any more and have nothing left to pay.
const sweepReaders = time.Minute

func (r *replays) enter(id reader, share ReplayShare) (_ *places, leave func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if now.Sub(r.swept) > sweepReaders {
		r.swept = now
		for other, p := range r.readers {
			if p.users == 0 && (p.budget == nil || p.budget.TokensAt(now) >= float64(p.budget.Burst())) {
				delete(r.readers, other)
			}
		}
	}
	p := r.readers[id]
	if p == nil {
		p = &places{one: make(chan struct{}, 1)}
		if share.Rate > 0 && id.who != "" {
			p.budget = rate.NewLimiter(rate.Limit(share.Rate), share.Burst)
		}
		if r.readers == nil {
			r.readers = make(map[reader]*places)
		}
		r.readers[id] = p
	}
	p.users++
	return p, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		p.users--
	}
}

// Again lets an account read a part of a tenant's log again, to find what it missed; done is called with how many events that
// looked at. An account reads one part at a time, all guests of a tenant together do, and who has looked at more than a share
// waits until that is paid for (decision 0073). Who cannot begin before ctx is due is Throttled.
func (f *Feeds) Again(ctx context.Context, id ident.TenantID, who ident.AccountID, guest bool) (done func(looked int), err error) {
	if f.Share.Rate <= 0 {
		return func(int) {}, nil
	}
	own, leave := f.again.enter(reader{id, who}, f.Share)
	release := []func(){leave}
	done = func(looked int) {
		own.budget.ReserveN(time.Now(), min(max(looked, 0), f.Share.Burst))
		for i := len(release) - 1; i >= 0; i-- {
			release[i]()
		}
	}
	take := func(one chan struct{}) bool {
		free := func() { <-one }
		select { // what is free needs no patience: time may be up only since this machine is busy
		case one <- struct{}{}:
			release = append(release, free)
			return true
		default:
		}
		select {
		case one <- struct{}{}:
			release = append(release, free)
			return true
		case <-ctx.Done():
			return false
		}
	}
	if take(own.one) && (own.budget.Allow() || own.budget.Wait(ctx) == nil) {
		if !guest {
			return done, nil
		}
		all, leave := f.again.enter(reader{tenant: id}, f.Share)
		release = append(release, leave)
		if take(all.one) { // whoever waits to have paid holds up no other guest
			return done, nil
		}
	}
	after := time.Duration((1 - own.budget.Tokens()) / f.Share.Rate * float64(time.Second))
	done(0)
	const op = "workspace.Again"
	if ctx.Err() == context.Canceled {
		return nil, fault.New(fault.Canceled, op, "", "the request ended").With(ctx.Err())
	}
	return nil, fault.New(fault.Throttled, op, "throttled", "much of the log was read again: come back in a moment").RetryAfter(max(after, time.Second))
}
