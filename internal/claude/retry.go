package claude

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const backoffBase = 500 * time.Millisecond

// backoff says how long to wait before the next attempt, or that waiting makes no sense. The provider's hint is the
// least; a random part on top keeps those who were refused together from coming back together.
func (d *Direct) backoff(ctx context.Context, attempt int, fail *failure) (time.Duration, bool) {
	room := backoffBase << min(attempt, 10)
	wait := d.jitter(min(room, d.cfg.RetryCap))
	if fail.after > 0 {
		wait = fail.after + d.jitter(backoffBase)
		if fail.after > d.cfg.RetryCap {
			return 0, false
		}
	}
	// Deadlines are of the real clock, whatever d.cfg.Now says.
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= wait {
		return 0, false
	}
	return wait, true
}

// retryHint reads the provider's hint: milliseconds, seconds, or a date.
func retryHint(h http.Header, now time.Time) time.Duration {
	read := func(text string, unit time.Duration) (time.Duration, bool) {
		n, err := strconv.ParseFloat(text, 64)
		if err != nil || !(n >= 0) || n > 1e9 {
			return 0, false
		}
		return time.Duration(n * float64(unit)), true
	}
	if wait, ok := read(h.Get("retry-after-ms"), time.Millisecond); ok {
		return wait
	}
	text := h.Get("retry-after")
	if wait, ok := read(text, time.Second); ok {
		return wait
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// RetryBudget keeps an outage from becoming a storm: it starts with ten retries and earns a tenth of a retry with
// each answer that succeeds. While nothing succeeds, a hundred calls make at most a hundred and ten requests.
// One budget serves all providers of a process.
type RetryBudget struct {
	mu     sync.Mutex
	tenths int
}

const budgetTenths = 100

// NewRetryBudget returns a full budget.
func NewRetryBudget() *RetryBudget { return &RetryBudget{tenths: budgetTenths} }

func (b *RetryBudget) earn() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tenths = min(budgetTenths, b.tenths+1)
}

func (b *RetryBudget) spend() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tenths < 10 {
		return false
	}
	b.tenths -= 10
	return true
}

// breaker stops calling a provider that is down, and lets a call now and then find out whether it is back.
//
//	closed ──failures in a row──▶ open ──pause over──▶ half-open: one call ──success──▶ closed
//	                               ▲                              │
//	                               └──────────at once─────────────┘
//
// It is open again as soon as the one call has begun, not when that has failed: an answer takes minutes, and whether a provider
// is back must not hang on one of them.
type breaker struct {
	after int // failures; negative means never
	pause time.Duration

	mu     sync.Mutex
	failed int
	until  time.Time
}

// ask reports whether calls are refused now, and for how long still.
func (b *breaker) ask(now time.Time) (wait time.Duration, open bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.tripped() {
		return 0, false
	}
	if now.Before(b.until) {
		return b.until.Sub(now), true
	}
	b.until = now.Add(b.pause)
	return 0, false
}

func (b *breaker) tripped() bool { return b.after > 0 && b.failed >= b.after }

// What a call that has ended says about the provider.
type verdict int

const (
	well    verdict = iota // it answered; that may have been a refusal
	sick                   // it is away, or fails by itself
	nothing                // the caller left
)

// tell records how a call ended.
func (b *breaker) tell(v verdict, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch v {
	case well:
		b.failed = 0
	case sick:
		if b.failed++; b.tripped() {
			b.until = now.Add(b.pause)
		}
	case nothing:
		if b.tripped() {
			b.until = now // it may have been the one that was to find out: the next one does
		}
	}
}

// Circuit is what a provider's breaker knows.
type Circuit struct {
	State  string        // "closed", "open", or "half_open": the next call finds out
	Failed int           // in a row
	Wait   time.Duration // until a call is let through
}

func (b *breaker) look(now time.Time) Circuit {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch c := (Circuit{State: "closed", Failed: b.failed}); {
	case !b.tripped():
		return c
	case now.Before(b.until):
		c.State, c.Wait = "open", b.until.Sub(now)
		return c
	default:
		c.State = "half_open"
		return c
	}
}
