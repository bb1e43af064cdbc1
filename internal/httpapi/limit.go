package httpapi

import (
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"claude-memory-backend/internal/fault"
)

// limits counts requests per account and per address, on this node (decision 0003).
type limits struct {
	on      bool
	now     func() time.Time
	account *limiter
	address *limiter
	signIn  *limiter
	deliver *limiter
}

func newLimits(c Config, now func() time.Time) *limits {
	return &limits{on: c.RateLimit, now: now,
		account: newLimiter("account", c.PerAccount, c.LimitedKeys),
		address: newLimiter("address", c.PerAddress, c.LimitedKeys),
		signIn:  newLimiter("sign_in", c.PerAddressIn, c.LimitedKeys),
		deliver: newLimiter("delivery", c.PerAddressDelivery, c.LimitedKeys)}
}

// take counts the request and announces what is left; it is Throttled when nothing is. A request with a bad token
// counts against its address, or guessing would be free.
func (l *limits) take(x *exchange, signedIn bool) error {
	if !l.on || x.op.Limit == Unlimited {
		return nil
	}
	limiter, key := l.address, x.client.limitKey()
	switch {
	case x.op.Limit == SignIn:
		limiter = l.signIn
	case x.op.Limit == Deliveries:
		limiter = l.deliver
	case signedIn:
		limiter, key = l.account, string(x.actor.Account)
	}
	left, wait := limiter.take(key, l.now())
	h := x.w.Header()
	h.Set("RateLimit-Policy", fmt.Sprintf("%q;q=%d;w=60", limiter.name, limiter.rate.PerMinute))
	h.Set("RateLimit", fmt.Sprintf("%q;r=%d;t=%s", limiter.name, left, seconds(limiter.refill(left, wait))))
	if wait > 0 {
		return fault.New(fault.Throttled, "httpapi.limit", codeThrottled, "too many requests: slow down").RetryAfter(wait)
	}
	return nil
}

// limiter holds one token bucket per key, and never more than size of them.
type limiter struct {
	name string
	rate Rate
	size int
	mu   sync.Mutex
	keys map[string]*rate.Limiter
}

func newLimiter(name string, r Rate, size int) *limiter {
	return &limiter{name: name, rate: r, size: size, keys: make(map[string]*rate.Limiter)}
}

// take returns how many requests are left, and how long to wait when this one is too many.
func (l *limiter) take(key string, now time.Time) (left int, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.keys[key]
	if b == nil {
		if len(l.keys) >= l.size {
			l.forget(now)
		}
		b = rate.NewLimiter(rate.Limit(float64(l.rate.PerMinute)/60), l.rate.Burst)
		l.keys[key] = b
	}
	r := b.ReserveN(now, 1)
	if wait = r.DelayFrom(now); wait > 0 {
		r.CancelAt(now)
		return 0, wait
	}
	return int(math.Floor(max(b.TokensAt(now), 0))), 0
}

// refill tells how long until everything is back; of a refused request, how long to wait.
func (l *limiter) refill(left int, wait time.Duration) time.Duration {
	if wait > 0 {
		return wait
	}
	return time.Duration(l.rate.Burst-left) * time.Minute / time.Duration(l.rate.PerMinute)
}

// forget makes room: of a few keys in the map's random order, the one with the fullest bucket goes. A full bucket
// says nothing that a new one would not say; among many attackers somebody's count may be lost.
func (l *limiter) forget(now time.Time) {
	var fullest string
	most := math.Inf(-1)
	seen := 0
	for key, b := range l.keys {
		if tokens := b.TokensAt(now); tokens > most {
			fullest, most = key, tokens
		}
		if seen++; seen == 16 {
			break
		}
	}
	delete(l.keys, fullest)
}
