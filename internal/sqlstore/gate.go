package sqlstore

import (
	"context"
	"sync"
)

// gate lets many operations in at once, or one switch alone.
type gate struct {
	mu     sync.Mutex
	inside int
	shut   chan struct{} // not nil while a switch waits or works; closed when it is over
	empty  chan struct{} // closed when the last operation leaves a gate that is shut
}

// enter waits while the gate is shut.
func (g *gate) enter(ctx context.Context) error {
	for {
		g.mu.Lock()
		shut := g.shut
		if shut == nil {
			g.inside++
		}
		g.mu.Unlock()
		if shut == nil {
			return nil
		}
		select {
		case <-shut:
		case <-ctx.Done():
			return gone(ctx, nil)
		}
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.inside == 0 && g.shut != nil {
		close(g.empty)
	}
}

// close shuts the gate and waits until nobody is inside. When it fails the gate is open again.
func (g *gate) close(ctx context.Context) error {
	for {
		g.mu.Lock()
		other := g.shut
		if other == nil {
			break
		}
		g.mu.Unlock()
		select { // one switch at a time
		case <-other:
		case <-ctx.Done():
			return gone(ctx, nil)
		}
	}
	empty := make(chan struct{})
	g.shut, g.empty = make(chan struct{}), empty
	if g.inside == 0 {
		close(empty)
	}
	g.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		g.open()
		return gone(ctx, nil)
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.shut)
	g.shut, g.empty = nil, nil
}

// target is what a DB works on at the moment.
type target struct {
	dialect Dialect
	engine  engine
}

func newDB(dialect Dialect, e engine) *DB {
	d := &DB{}
	d.on.Store(&target{dialect: dialect, engine: e})
	return d
}

// Switch stops the database for a moment: it lets no new operation in, waits for those that are inside, and calls fn.
// Reads and writes that come meanwhile wait until it is over, each no longer than its own context allows. A Write
// counts as one operation from its beginning to its end, with its repetitions.
//
// When fn returns another DB, this one goes on with that one's engine, which then belongs to it: closing it closes that
// engine. The former engine stays open; it belongs to whoever has taken [DB.Direct] before. When fn returns nil or an
// error nothing changes. fn must not use this DB, whose operations wait for it, but one taken from Direct. ctx bounds
// the wait, not fn; when it is over first, nothing has changed.
func (d *DB) Switch(ctx context.Context, fn func() (*DB, error)) error {
	if err := d.gate.close(ctx); err != nil {
		return err
	}
	defer d.gate.open()
	next, err := fn()
	if err == nil && next != nil {
		d.on.Store(next.on.Load())
	}
	return err
}

// Direct returns a DB over the engine that this one has now. It passes no switch and no SetReadOnly of this one, and
// keeps the engine after a switch. Closing it closes that engine.
func (d *DB) Direct() *DB {
	on := d.on.Load()
	return newDB(on.dialect, on.engine)
}

// SetReadOnly makes every Write fail at once with err, which is a fault; nil lets them in again. Writes that have begun
// are not touched. Migrate, and what captures or fences, pass.
func (d *DB) SetReadOnly(err error) {
	if err == nil {
		d.refusal.Store(nil)
		return
	}
	d.refusal.Store(&err)
}

// Writable is what a Write would fail with at once, or nil.
func (d *DB) Writable() error {
	if refused := d.refusal.Load(); refused != nil {
		return *refused
	}
	return nil
}
