package conversation

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"claude-memory-backend/internal/ident"
)

// guests are the members of a tenant's projects who search there, or did so a moment ago.
type guests struct {
	one    chan struct{} // one guest's search at a time
	budget func() *rate.Limiter
	mu     sync.Mutex
	all    map[ident.AccountID]*guest
}

// guest is one of them.
type guest struct {
	turn   chan struct{} // searches of one guest take turns
	budget *rate.Limiter
	users  int // searches that wait or run
}

func newGuests(budget func() *rate.Limiter) *guests {
	return &guests{one: make(chan struct{}, 1), budget: budget, all: map[ident.AccountID]*guest{}}
}

// enter finds what an account may spend here, until leave is called. Who spends nothing any more, and has nothing left to pay,
// is forgotten.
func (g *guests) enter(id ident.AccountID) (_ *guest, leave func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	for other, v := range g.all {
		if other != id && v.users == 0 && (v.budget == nil || v.budget.TokensAt(now) >= float64(v.budget.Burst())) {
			delete(g.all, other)
		}
	}
	v := g.all[id]
	if v == nil {
		v = &guest{turn: make(chan struct{}, 1), budget: g.budget()}
		g.all[id] = v
	}
	v.users++
	return v, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		v.users--
	}
}
