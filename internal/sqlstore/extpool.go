package sqlstore

import (
	"container/list"
	"context"
	"slices"
	"sync"
	"time"

	"claude-memory-backend/internal/ident"
)

// A pool per database would keep connections, goroutines and timers for each of thousands that are mostly idle, and
// know no bound for all of them. Here is one budget for all (decision 0014).

// idleTime is how long a connection is kept unused: longer than the pauses of somebody who reads and writes, shorter
// than what firewalls and servers drop connections after.
const idleTime = 45 * time.Second

// budget counts the connections of all databases of users, and knows which of them are idle.
type budget struct {
	max, perDatabase int
	idleTime         time.Duration

	mu      sync.Mutex
	open    int       // connections that exist, are being made or are promised
	idle    list.List // of *extConn, the one idle for the longest first
	waiting list.List // of *waiter, for room under max
	shares  map[ident.DatabaseID]*share
	reaper  *time.Timer // not nil while a connection is idle
	closed  bool
}

// share is what one database has of the budget. Databases that are opened twice, as when credentials are replaced,
// have one share.
type share struct {
	handles int
	open    int
	waiting list.List // of *waiter, for room under perDatabase
}

// waiter is one that waits for a connection or for room to make one.
type waiter struct {
	of    *external
	in    *list.List
	place *list.Element
	ready chan *extConn // gets a connection, or nil for room
}

// enrol gives a handle its share.
func (b *budget) enrol(h *external) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if h.share = b.shares[h.id]; h.share == nil {
		h.share = &share{}
		b.shares[h.id] = h.share
	}
	h.share.handles++
}

// take returns an idle connection of the database, or nil when there is room to make one, which is then taken.
func (b *budget) take(ctx context.Context, h *external, fresh bool) (*extConn, error) {
	c, w, victims, err := b.claim(h, fresh)
	hangUp(victims)
	if err != nil || w == nil {
		return c, err
	}
	select {
	case c := <-w.ready:
		return c, nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	granted := w.place == nil
	if !granted {
		w.in.Remove(w.place)
	}
	b.mu.Unlock()
	if granted { // just when it gave up
		b.putBack(<-w.ready, h, true)
	} else {
		h.busy.Done()
	}
	return nil, unavailable("sqlstore", "too_many_connections", "too many connections to users' databases are in use", nil)
}

func (b *budget) claim(h *external, fresh bool) (c *extConn, w *waiter, victims []*extConn, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || h.closed {
		return nil, nil, nil, closed()
	}
	h.busy.Add(1)
	if n := len(h.idle); n > 0 && !fresh {
		c = h.idle[n-1] // the one used last, so that the others may grow old
		b.unpark(c)
		return c, nil, nil, nil
	}
	if victims, ok := b.room(h.share); ok {
		return nil, nil, victims, nil
	}
	w = &waiter{of: h, ready: make(chan *extConn, 1)}
	b.queue(w)
	return nil, w, nil, nil
}

// queue lets a waiter wait for whichever bound is in its way.
func (b *budget) queue(w *waiter) {
	w.in = &b.waiting
	if w.of.share.open >= b.perDatabase {
		w.in = &w.of.share.waiting
	}
	w.place = w.in.PushBack(w)
}

// room takes room for one connection. When all of it is taken, that of an idle connection is taken over, which must be
// hung up before another is made: the bounds are kept to the outside, too.
func (b *budget) room(s *share) (victims []*extConn, ok bool) {
	var victim *extConn
	switch {
	case s.open >= b.perDatabase: // only another handle's idle connection of the same database helps
		for e := b.idle.Front(); e != nil && victim == nil; e = e.Next() {
			if c := e.Value.(*extConn); c.handle.share == s {
				victim = c
			}
		}
	case b.open >= b.max:
		if e := b.idle.Front(); e != nil {
			victim = e.Value.(*extConn)
		}
	default:
		b.open++
		s.open++
		return nil, true
	}
	if victim == nil {
		return nil, false
	}
	b.unpark(victim)
	victim.handle.share.open--
	s.open++
	return []*extConn{victim}, true
}

// unpark takes a connection out of the idle ones.
func (b *budget) unpark(c *extConn) {
	b.idle.Remove(c.place)
	c.place = nil
	h := c.handle
	h.idle = slices.DeleteFunc(h.idle, func(other *extConn) bool { return other == c })
}

// putBack ends a loan: of a connection, or of room that no connection was made in.
func (b *budget) putBack(c *extConn, h *external, good bool) {
	defer h.busy.Done()
	b.mu.Lock()
	if c == nil || !good || b.closed || h.closed || b.owed(h) {
		b.mu.Unlock()
		b.leave(h, c)
		return
	}
	if w := b.next(h); w != nil {
		w.leaveQueue()
		b.mu.Unlock()
		w.ready <- c
		return
	}
	c.parked = time.Now()
	c.place = b.idle.PushBack(c)
	h.idle = append(h.idle, c)
	if b.reaper == nil {
		b.reaper = time.AfterFunc(b.idleTime, b.reap)
	}
	granted, victims := b.serve(h.share) // an idle connection is room for others
	b.mu.Unlock()
	grant(granted, victims)
}

// leave gives up the room of a connection, which is none of the idle ones any more; c is nil when it was never made.
func (b *budget) leave(h *external, c *extConn) {
	if c != nil {
		c.hangUp()
	}
	b.mu.Lock()
	b.open--
	h.share.open--
	granted, victims := b.serve(h.share)
	b.mu.Unlock()
	grant(granted, victims)
}

// owed reports whether a handle's connection has to make room for others: where they wait, a database keeps one
// connection for as long as its own work waits, and no more.
func (b *budget) owed(h *external) bool {
	if b.waiting.Len() == 0 || b.waiting.Front().Value.(*waiter).of == h {
		return false
	}
	return h.share.open > 1 || h.share.waiting.Len() == 0
}

// next is the first waiter that a connection of the handle serves.
func (b *budget) next(h *external) *waiter {
	if e := b.waiting.Front(); e != nil && e.Value.(*waiter).of == h {
		return e.Value.(*waiter)
	}
	for e := h.share.waiting.Front(); e != nil; e = e.Next() {
		if w := e.Value.(*waiter); w.of == h {
			return w
		}
	}
	return nil
}

// leaveQueue ends a waiter's wait: it is about to get something.
func (w *waiter) leaveQueue() {
	w.in.Remove(w.place)
	w.place = nil
}

// serve takes what room there is for waiters: those of all databases first, then those of one share.
func (b *budget) serve(s *share) (granted []*waiter, victims []*extConn) {
	for _, queue := range []*list.List{&b.waiting, &s.waiting} {
		for queue.Len() > 0 {
			w := queue.Front().Value.(*waiter)
			if v, ok := b.room(w.of.share); ok {
				w.leaveQueue()
				granted, victims = append(granted, w), append(victims, v...)
				continue
			}
			// The bound in its way may be the other one by now.
			queue.Remove(w.place)
			if b.queue(w); w.in == queue {
				queue.MoveToFront(w.place)
				break
			}
		}
	}
	return granted, victims
}

// grant tells waiters that they have room, when it is free.
func grant(granted []*waiter, victims []*extConn) {
	hangUp(victims)
	for _, w := range granted {
		w.ready <- nil
	}
}

// reap closes what has been idle for too long.
func (b *budget) reap() {
	b.mu.Lock()
	var old []*extConn
	b.reaper = nil
	for e := b.idle.Front(); e != nil; e = b.idle.Front() {
		c := e.Value.(*extConn)
		if left := b.idleTime - time.Since(c.parked); left > 0 {
			b.reaper = time.AfterFunc(left, b.reap)
			break
		}
		b.unpark(c)
		old = append(old, c)
	}
	b.mu.Unlock()
	for _, c := range old {
		b.leave(c.handle, c)
	}
}

// retire closes a handle's idle connections, lets no new loan begin, and waits for those that run.
func (b *budget) retire(h *external) {
	b.mu.Lock()
	first := !h.closed
	h.closed = true
	idle := slices.Clone(h.idle)
	for _, c := range idle {
		b.unpark(c)
	}
	b.mu.Unlock()
	for _, c := range idle {
		b.leave(h, c)
	}
	h.busy.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if first {
		if h.share.handles--; h.share.handles == 0 {
			delete(b.shares, h.id)
		}
	}
}

// shut closes all that is idle, and lets nothing new begin.
func (b *budget) shut() {
	b.mu.Lock()
	b.closed = true
	var idle []*extConn
	for e := b.idle.Front(); e != nil; e = b.idle.Front() {
		c := e.Value.(*extConn)
		b.unpark(c)
		idle = append(idle, c)
	}
	if b.reaper != nil {
		b.reaper.Stop()
		b.reaper = nil
	}
	b.mu.Unlock()
	for _, c := range idle {
		b.leave(c.handle, c)
	}
}

func hangUp(list []*extConn) {
	for _, c := range list {
		c.hangUp()
	}
}

// Connections is how many connections to users' databases there are, and how many of them are idle.
func (x *Externals) Connections() (open, idle int) {
	x.budget.mu.Lock()
	defer x.budget.mu.Unlock()
	return x.budget.open, x.budget.idle.Len()
}
