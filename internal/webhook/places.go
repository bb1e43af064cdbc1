package webhook

import (
	"slices"
	"sync"
)

// standing is how much an attempt may be in the way of others: who is likely to keep a place for long gets none of those
// that are kept for who is not (decision 0069).
type standing int

const (
	// doubtful is an attempt at an endpoint that is failing, or took long the last time.
	doubtful standing = iota
	// further is one more attempt at an endpoint that has one already, or one at an endpoint that nobody here knows yet.
	further
	// first is the only attempt at an endpoint that took what it got last, and promptly.
	first
	standings
)

// places bound how many attempts are made at once: of the doubtful ones half as many as of all, of those that are not first
// three quarters.
type places struct {
	mu      sync.Mutex
	most    [standings]int // of this standing and the ones before it together
	held    [standings]int
	waiting []*seeker // in the order in which they came
}

// seeker waits for a place.
type seeker struct {
	standing
	got chan struct{} // closed when it has one
}

func newPlaces(n int) *places {
	return &places{most: [standings]int{max(1, n/2), max(1, n*3/4), n}}
}

// taken says how many places are.
func (p *places) taken() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, held := range p.held {
		n += held
	}
	return n
}

// try takes a place if there is one. Whoever calls it holds p.mu.
func (p *places) try(s standing) bool {
	n := 0
	for t, held := range p.held {
		if n += held; standing(t) >= s && n >= p.most[t] {
			return false
		}
	}
	p.held[s]++
	return true
}

// take takes a place; without one, who is patient waits until end.
func (p *places) take(s standing, patient bool, end <-chan struct{}) bool {
	p.mu.Lock()
	if p.try(s) {
		p.mu.Unlock()
		return true
	}
	if !patient {
		p.mu.Unlock()
		return false
	}
	me := &seeker{s, make(chan struct{})}
	p.waiting = append(p.waiting, me)
	p.mu.Unlock()
	select {
	case <-me.got:
		return true
	case <-end:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-me.got: // both came
		return true
	default:
	}
	p.waiting = slices.DeleteFunc(p.waiting, func(w *seeker) bool { return w == me })
	return false
}

// back gives a place back, to the first of those who wait that may have it.
func (p *places) back(s standing) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held[s]--
	p.waiting = slices.DeleteFunc(p.waiting, func(w *seeker) bool {
		if !p.try(w.standing) {
			return false
		}
		close(w.got)
		return true
	})
}
