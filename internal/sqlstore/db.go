package sqlstore

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"claude-memory-backend/internal/fault"
)

// retries is how often Write starts over when PostgreSQL undid the transaction to break a deadlock, or lost its
// connection before it was asked to commit.
const retries = 3

// DB is one open database of one line (master or tenant), on either engine. It is safe for concurrent use.
type DB struct {
	on      atomic.Pointer[target]
	gate    gate
	refusal atomic.Pointer[error]
	trips   atomic.Int64
}

// engine is what DB needs of SQLite and of PostgreSQL. Errors are classified already.
type engine interface {
	read(ctx context.Context, b *Batch) error
	begin(ctx context.Context) (session, error)
	view(ctx context.Context) (view, error)
	close() error
}

// session is one write transaction on a connection of its own.
type session interface {
	// run executes the batch; the first one begins the transaction, and commit ends it.
	run(ctx context.Context, b *Batch, commit bool) error
	// script executes SQL of several statements, for migrations.
	script(ctx context.Context, sql string) error
	// end rolls back what is not committed and gives the connection back.
	end()
}

// Dialect is the engine under this database now. A statement asks its batch or transaction instead: the engine may be
// another one by the time it runs.
func (d *DB) Dialect() Dialect { return d.on.Load().dialect }

// RoundTrips counts how often statements were sent, for tests. SQLite counts the same calls.
func (d *DB) RoundTrips() int64 { return d.trips.Load() }

// Close waits for running work and closes the database. A pool that was handed in stays open.
func (d *DB) Close() error { return d.on.Load().engine.close() }

// Scrub makes sure that nothing of what was deleted is left in the files, as far as the engine lets us. It is busy while
// somebody reads what was there before.
func (d *DB) Scrub(ctx context.Context) error {
	if e, ok := d.on.Load().engine.(*sqliteEngine); ok {
		return e.scrub(ctx)
	}
	return nil
}

// Read runs what fill queues in one read transaction, so that all statements see one snapshot. It is one round trip.
// It waits while the database is switched to another engine.
func (d *DB) Read(ctx context.Context, fill func(b *Batch)) error {
	if err := d.gate.enter(ctx); err != nil {
		return err
	}
	defer d.gate.leave()
	on := d.on.Load()
	b, err := queue(ctx, on.dialect, fill)
	if err != nil || len(b.list) == 0 {
		return err
	}
	d.trips.Add(1)
	return on.engine.read(ctx, b)
}

// Write runs fn in one write transaction. An error from fn rolls back; if fn returns nil without having called
// Commit, Write commits. fn may run again from its start when PostgreSQL broke a deadlock or the connection was broken,
// so it must change nothing but the database before it commits.
//
// An error that is fault.Unknown, such as code "outcome_unknown", means that COMMIT was sent and no answer came: the
// transaction is committed or not, and only looking can tell. Every other error means that nothing was committed,
// unless fn itself returns it after a Commit that succeeded.
//
// It waits while the database is switched to another engine, and counts as one operation until it returns.
func (d *DB) Write(ctx context.Context, fn func(tx *Tx) error) error {
	if err := d.refusal.Load(); err != nil {
		return *err
	}
	return d.write(ctx, fn)
}

// write is Write for what goes on while the database is read-only.
func (d *DB) write(ctx context.Context, fn func(tx *Tx) error) error {
	if err := d.gate.enter(ctx); err != nil {
		return err
	}
	defer d.gate.leave()
	on := d.on.Load()
	for attempt := 0; ; attempt++ {
		again, err := d.attempt(ctx, on, fn)
		if err == nil || !again || attempt == retries {
			return err
		}
		pause := time.NewTimer(time.Duration(1+rand.IntN(10<<attempt)) * time.Millisecond) //nolint:gosec // spreads retries; nobody gains by guessing it
		select {
		case <-ctx.Done():
			pause.Stop()
			return err
		case <-pause.C:
		}
	}
}

// attempt runs fn once. again tells that nothing was committed and that the same may work now.
func (d *DB) attempt(ctx context.Context, on *target, fn func(tx *Tx) error) (again bool, err error) {
	tx := &Tx{db: d, on: on, ctx: ctx}
	defer tx.end() // also when fn panics: the connection must never go back in a transaction
	err = fn(tx)
	if err == nil && tx.failed == nil && tx.session != nil && !tx.committed {
		err = tx.Commit(nil)
	}
	if err == nil {
		// fn swallowed the error of a statement, but that statement undid everything: nil would be a lie.
		err = tx.failed
	}
	return err != nil && !tx.committed && retryable(tx.failed), err
}

// Tx is a write transaction. It belongs to the function it was given to. It takes its connection with the first Run or
// with Begin, not before, so what fn computes first keeps nobody waiting.
type Tx struct {
	db        *DB
	on        *target
	ctx       context.Context
	session   session
	failed    error // the first failure; the transaction is over
	committed bool
	queued    *Affected // how many deliveries the outbox got; nil: nothing was asked
}

// Dialect is the engine under this transaction.
func (t *Tx) Dialect() Dialect { return t.on.dialect }

// Begin waits until the transaction has its turn: on SQLite for the writing connection, on PostgreSQL for one of the pool.
// That costs no round trip. It is for what must be as new as it can be when it is stored, and is looked up after it.
func (t *Tx) Begin() error {
	if t.failed == nil {
		t.failed = t.open()
	}
	return t.failed
}

// Run executes what fill queues: one round trip, of which the first one also begins the transaction.
func (t *Tx) Run(fill func(b *Batch)) error { return t.send(fill, false) }

// Commit executes what fill queues, which may be nil, and commits, in one round trip.
func (t *Tx) Commit(fill func(b *Batch)) error { return t.send(fill, true) }

func (t *Tx) send(fill func(b *Batch), commit bool) error {
	if t.committed {
		return fault.New(fault.Internal, "sqlstore.Write", "transaction_over", "the transaction has ended")
	}
	if t.failed != nil {
		return t.failed
	}
	b, err := queue(t.ctx, t.on.dialect, fill)
	if err != nil {
		t.failed = err
		return err
	}
	if len(b.list) == 0 && (!commit || t.session == nil) {
		t.committed = commit
		return nil
	}
	if t.failed = t.open(); t.failed != nil {
		return t.failed
	}
	t.db.trips.Add(1)
	t.failed = t.session.run(t.ctx, b, commit)
	t.committed = commit && t.failed == nil
	if b.queued != nil {
		t.queued = b.queued
	}
	return t.failed
}

// script executes several statements without arguments, for migrations.
func (t *Tx) script(sql string) error {
	if t.failed != nil {
		return t.failed
	}
	if t.failed = t.open(); t.failed != nil {
		return t.failed
	}
	t.db.trips.Add(1)
	t.failed = t.session.script(t.ctx, sql)
	return t.failed
}

func (t *Tx) open() (err error) {
	if t.session == nil {
		t.session, err = t.on.engine.begin(t.ctx)
	}
	return err
}

func (t *Tx) end() {
	if t.session != nil {
		t.session.end()
	}
}

// queue fills a batch and reports what is wrong with it before anything is sent.
func queue(ctx context.Context, d Dialect, fill func(b *Batch)) (*Batch, error) {
	b := &Batch{dialect: d}
	if fill != nil {
		fill(b)
	}
	if b.err != nil {
		return b, b.err
	}
	return b, gone(ctx, nil)
}
