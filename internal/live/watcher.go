package live

import (
	"context"
	"sync"
	"time"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// watcher is an event stream that ends as a connection does.
type watcher struct {
	who     account.Identity
	in      ident.TenantID // whose log it is
	subject string
	over    chan struct{}
	end     func()
	check   time.Time // guarded by hub.mu, as the next one
	looking bool      // a look at it waits to begin
}

// Watch looks after a stream of events of a tenant: over is closed when its session ends, its token expires, or the subject, unless
// that is empty, may not be seen any more. Leave is called when the stream ends. An account has as many streams, at most,
// as it may have connections.
func (h *Hub) Watch(who account.Identity, in ident.TenantID, subject string) (over <-chan struct{}, leave func(), err error) {
	w := &watcher{who: who, in: in, subject: subject, over: make(chan struct{}), check: h.Now().Add(h.CheckEvery)}
	w.end = sync.OnceFunc(func() { close(w.over) })
	h.mu.Lock()
	defer h.mu.Unlock()
	same := 0
	for other := range h.watchers {
		if other.who.Actor.Account == who.Actor.Account {
			same++
		}
	}
	if same >= h.MaxPerAccount {
		return nil, nil, fault.New(fault.Throttled, "live.Watch", crowded.name, "too many streams of this account").RetryAfter(30 * time.Second)
	}
	h.watchers[w] = struct{}{}
	h.lookAt(w) // access may have ended since it was asked for
	return w.over, func() {
		h.mu.Lock()
		delete(h.watchers, w)
		h.mu.Unlock()
	}, nil
}

// sweepWatchers ends streams whose token has expired, and looks at those that were not looked at for long.
func (h *Hub) sweepWatchers(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		switch {
		case !now.Before(w.who.ExpiresAt):
			w.end()
		case !now.Before(w.check):
			w.check = now.Add(h.CheckEvery)
			h.lookAt(w)
		}
	}
}

// recheckWatchers looks again at the streams for which is true. The caller has h.mu.
func (h *Hub) recheckWatchers(is func(*watcher) bool) {
	for w := range h.watchers {
		if is(w) {
			h.lookAt(w)
		}
	}
}

// lookAt asks again, beside whatever goes on, whether the stream may go on. The caller has h.mu.
func (h *Hub) lookAt(w *watcher) {
	if h.closing || w.looking {
		return
	}
	w.looking = true
	h.work.Go(func() {
		select {
		case h.checks <- struct{}{}:
			defer func() { <-h.checks }()
			h.mu.Lock()
			w.looking = false
			h.mu.Unlock()
		case <-w.over:
			return
		case <-h.life.Done():
			return
		}
		defer func() {
			if p := recover(); p != nil {
				h.panicked(p)
				w.end()
			}
		}()
		ctx, cancel := context.WithTimeout(h.life, h.ActionTime)
		defer cancel()
		err := h.Accounts.Alive(ctx, w.who.Actor)
		if err == nil && w.subject != "" {
			_, err = h.allowed(ctx, w.who.Actor, w.who.Tenant, w.in, w.subject)
		}
		switch {
		case err == nil:
		case refuses(err) || fault.Is(err, fault.Unauthenticated):
			w.end()
		default: // it could not be found out
			h.mu.Lock()
			w.check = h.Now().Add(watchAgain)
			h.mu.Unlock()
		}
	})
}

func ofAccount(id ident.AccountID) func(*watcher) bool {
	return func(w *watcher) bool { return w.who.Actor.Account == id }
}
