package clocktest

import (
	"sync"
	"time"
)

// Clock is a time that is moved by hand. It may be used by many at once.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// New returns a clock that stands at that moment.
func New(at time.Time) *Clock { return &Clock{now: at} }

// Now is what the clock shows; it is handed to whatever asks for the time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Pass moves the clock on.
func (c *Clock) Pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}
