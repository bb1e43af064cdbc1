package workspace

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// How often the pool looks after things.
const (
	dueEvery  = time.Second // hints that have come
	idleEvery = 30 * time.Second
	// spoolEvery is how often databases are tried for which the spool has something; a circuit before a server is open as
	// long.
	spoolEvery = 2 * time.Second
	onceEvery  = time.Hour // expired idempotency records of open tenants; others are cleaned when next opened
	dueBatch   = 100

	lookTime    = 10 * time.Second // for one tenant
	looksAtOnce = 8
)

// Recover deals with what a stopped server left behind, before this one says that it is ready: with Sole, every turn
// that claims to run is orphaned, so every hinted tenant is looked at, due or not.
func (p *Pool) Recover(ctx context.Context) error {
	horizon := p.Now()
	if p.Sole {
		horizon = horizon.Add(365 * 24 * time.Hour)
	}
	seen := make(map[ident.TenantID]bool)
	for {
		ids, err := p.Hints.Due(ctx, horizon, dueBatch)
		if err != nil {
			return fault.Wrap("workspace.Recover", err)
		}
		fresh := slices.DeleteFunc(ids, func(id ident.TenantID) bool { return seen[id] })
		if len(fresh) == 0 {
			return nil
		}
		for _, id := range fresh {
			seen[id] = true
		}
		p.lookAtAll(ctx, fresh, horizon)
	}
}

// Run looks after open and hinted tenants until ctx ends.
func (p *Pool) Run(ctx context.Context) error {
	// What may wait for a tenant's database stands in nobody's way.
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { p.followSpool(ctx) })
	beside.Go(func() { p.followNews(ctx) })
	beside.Go(func() { p.followMembers(ctx) })
	beside.Go(func() { every(ctx, dueEvery, func() { p.lookAtDue(ctx) }) })
	beside.Go(func() { every(ctx, onceEvery, func() { p.sweepOnces(ctx) }) })
	beside.Go(func() { every(ctx, idleEvery, p.closeIdle) })
	every(ctx, followEvery, func() { p.followMaster(ctx) })
	return nil
}

// every does something again and again until ctx ends.
func every(ctx context.Context, pause time.Duration, do func()) {
	t := time.NewTicker(pause)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			do()
		}
	}
}

func (p *Pool) lookAtDue(ctx context.Context) {
	now := p.Now()
	ids, err := p.Hints.Due(ctx, now, dueBatch)
	if err != nil {
		p.Log.Warn("hints not read", "code", fault.CodeOf(err))
		return
	}
	p.lookAtAll(ctx, ids, now)
}

// lookAtAll looks at several tenants at once, so that one whose database does not answer holds up few others.
func (p *Pool) lookAtAll(ctx context.Context, ids []ident.TenantID, now time.Time) {
	var group errgroup.Group
	group.SetLimit(looksAtOnce)
	for _, id := range ids {
		group.Go(func() error {
			p.lookAt(ctx, id, now)
			return nil
		})
	}
	_ = group.Wait() // lookAt says itself what goes wrong
}

// lookAt does what is due in one tenant. The look comes first, then the hint goes: a server that is killed in between
// leaves it to the next one.
func (p *Pool) lookAt(ctx context.Context, id ident.TenantID, now time.Time) {
	// Hints are settled with the caller's context: they must be, above all when the tenant took all its time.
	look, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	ws, err := p.Acquire(look, ident.System(""), id)
	if err != nil {
		next := p.Now().Add(2 * pause)
		if fault.Is(err, fault.NotFound) {
			next = time.Time{} // the tenant is gone, and so is what was due
			p.unsent(id)
		}
		if err := p.Hints.Settle(ctx, id, now, next); err != nil {
			p.Log.Warn("hint not settled", "code", fault.CodeOf(err))
		}
		return
	}
	defer ws.Release()
	next, err := ws.Conversations.Sweep(look)
	switch {
	case err != nil || ws.entry.refuses(ws.Tenant) != nil:
	case ws.entry.webhooks():
		var due time.Time
		due, err = ws.Webhooks.Sweep(look)
		if !due.IsZero() && (next.IsZero() || due.Before(next)) {
			next = due
		}
	default:
		p.unsent(id)
	}
	switch {
	case err != nil && ws.entry.refuses(ws.Tenant) != nil:
		next = p.Now().Add(mendPause) // nothing may be changed there; readers are shown how it is
	case err != nil:
		p.Log.Warn("tenant not looked after", "code", fault.CodeOf(err), "tenant", id)
		next = p.Now().Add(2 * pause)
	}
	if err := ws.entry.settle(ctx, now, next); err != nil {
		p.Log.Warn("hint not settled", "code", fault.CodeOf(err))
	}
}

// unsent is called when a tenant has nothing to be sent any more: what waited for that went with it.
func (p *Pool) unsent(id ident.TenantID) {
	if p.Webhooks != nil {
		p.Webhooks.Forget(id)
	}
}

// followSpool empties the spool as soon as databases take what it has. It waits for those that are away, so it does not
// stand in anybody's way. It needs no hints: what is on this machine's disk is known here, and can be stored from nowhere
// else.
func (p *Pool) followSpool(ctx context.Context) {
	if p.Spool == nil {
		return
	}
	t := time.NewTicker(spoolEvery)
	defer t.Stop()
	for {
		p.emptySpool(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (p *Pool) emptySpool(ctx context.Context) {
	var group errgroup.Group
	group.SetLimit(looksAtOnce)
	for _, id := range p.Spool.Tenants() {
		group.Go(func() error {
			p.emptySpoolOf(ctx, id)
			return nil
		})
	}
	_ = group.Wait() // emptySpoolOf says itself what goes wrong
}

func (p *Pool) emptySpoolOf(ctx context.Context, id ident.TenantID) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	ws, err := p.Acquire(ctx, ident.System(""), id)
	if fault.Is(err, fault.NotFound) { // the tenant was erased, and with it what is left of its turns
		if err := p.Spool.Discard(id); err != nil {
			p.Log.Warn("spool not emptied", "code", fault.CodeOf(err))
		}
	}
	if err != nil {
		return // has been logged, or is the database's being away
	}
	defer ws.Release()
	if _, err := ws.Conversations.Sweep(ctx); err != nil && fault.Is(err, fault.Internal) {
		p.Log.Warn("spool not emptied", "code", fault.CodeOf(err), "tenant", id)
	}
}

// closeIdle closes databases that nobody has used for a while.
func (p *Pool) closeIdle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.Now()
	for {
		first := p.idle.Front()
		if first == nil || now.Sub(first.Value.(*entry).used) < p.IdleAfter {
			return
		}
		p.drop(first.Value.(*entry))
	}
}

func (p *Pool) sweepOnces(ctx context.Context) {
	// The least recently used first, so that they still are when this is over.
	p.mu.Lock()
	var ids []ident.TenantID
	for el := p.idle.Front(); el != nil; el = el.Next() {
		if e := el.Value.(*entry); !failed(e) {
			ids = append(ids, e.id)
		}
	}
	for id, e := range p.entries {
		if e.place == nil && !failed(e) {
			ids = append(ids, id)
		}
	}
	p.mu.Unlock()
	for _, id := range ids {
		ws, err := p.Acquire(ctx, ident.System(""), id)
		if err != nil {
			continue
		}
		if _, err := ws.entry.store.SweepOnces(ctx, p.Now()); err != nil {
			p.Log.Warn("idempotency records not swept", "code", fault.CodeOf(err))
		}
		ws.Release()
	}
}
