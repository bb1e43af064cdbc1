package sqlstore

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sony/gobreaker/v2"

	"claude-memory-backend/internal/fault"
)

const (
	// silence is how long a server may say nothing at all before whoever waits for it is told that it cannot be reached.
	silence = 1750 * time.Millisecond
	// suspicion is after how much of it the server is asked, on a connection of its own, whether it is there.
	suspicion = 500 * time.Millisecond
	// trips is how many failures in a row open the circuit: one can be an accident.
	trips = 3
	// rest is how long an open circuit refuses everything; then one call may try.
	rest = 2 * time.Second
	// unlooked is how long a connection may lie idle before it is used without looking at it, and unasked before it is
	// used without asking the server, which takes a round trip.
	unlooked = time.Second
	unasked  = time.Minute
)

// link is what is known about the way to one server: one per PostgresHost, whose tenants share it, and one per
// database of a user's own. It is safe for concurrent use.
//
//	closed ── trips failures in a row ──► open ── rest ──► half-open ── one call gets through ──► closed
//	                                        ▲                   │
//	                                        └── it fails ───────┘
//
// Only what says something about the way counts: a connection that cannot be made or breaks, a server that turns
// connections away, silence. An answer, whatever it says, proves the way; the end of a caller's patience says nothing.
//
// Silence is no byte from the server on any connection, so a slow statement or a lock that somebody holds is none: the
// server is asked on a connection of its own, and what it answers counts as a sign of life for all who wait. A pooler in
// front of it lets us in by itself, whatever the server does: then only what follows a sign-in counts (decision 0041).
type link struct {
	circuit *gobreaker.TwoStepCircuitBreaker[struct{}]
	why     atomic.Pointer[fault.Error] // what the last failure said of what is to be mended; nil: only that nobody is there
	ask     func(ctx context.Context)   // makes the server say something
	heard   atomic.Int64                // when the last byte came, in Unix nanoseconds
	pooled  atomic.Bool                 // there is a pooler between

	mu     sync.Mutex
	asking bool // a question is under way
	wanted bool // and another one is to follow

	life context.Context //nolint:containedctx // of the questions under way
	kill context.CancelFunc
	wg   sync.WaitGroup

	silence, suspicion time.Duration // 0: calls are not watched
}

// newCircuit returns a link that watches nobody, for connections that have a watch of their own.
func newCircuit() *link {
	l := &link{}
	l.circuit = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Timeout:      rest,
		ReadyToTrip:  func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= trips },
		IsSuccessful: proves,
		IsExcluded:   func(err error) bool { return !proves(err) && !disproves(err) },
	})
	l.life, l.kill = context.WithCancel(context.Background())
	return l
}

// newLink returns a link and prepares the configuration of a pool for it: its connections tell the link what they
// hear, and idle ones are looked at before they are used. Several pools may share a link to one server.
func newLink(config *pgxpool.Config) *link {
	l := newCircuit()
	l.silence, l.suspicion = silence, suspicion
	l.attach(config)
	direct := config.ConnConfig.Copy()
	l.ask = func(ctx context.Context) {
		conn, err := pgconn.ConnectConfig(ctx, &direct.Config)
		if err != nil {
			return
		}
		// What counts has been heard by now, unless it was a pooler.
		if l.pooled.Load() {
			admitted(conn)
			_, _ = conn.Exec(ctx, "SELECT 1").ReadAll()
		}
		_ = conn.Close(ctx)
	}
	return l
}

// attach makes a pool that is yet to be opened tell the link what it hears.
func (l *link) attach(config *pgxpool.Config) {
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &listening{Conn: conn, link: l}, nil
	}
	config.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
		admitted(conn.PgConn())
		return nil
	}
	config.ShouldPing = func(_ context.Context, p pgxpool.ShouldPingParams) bool {
		if p.IdleDuration < unlooked {
			return false
		}
		// A ping is a round trip, and the usual end of an idle connection can be seen without one. Who was found dead
		// here fails its ping at once, and another one is taken.
		return p.IdleDuration >= unasked || p.Conn.PgConn().CheckConn() != nil //nolint:staticcheck // fine for this, says its own documentation
	}
	config.PingTimeout = l.suspicion
}

// close ends the questions under way.
func (l *link) close() {
	l.mu.Lock()
	l.kill() // under the lock: nobody starts to ask after it
	l.mu.Unlock()
	l.wg.Wait()
}

// up reports whether the circuit is closed.
func (l *link) up() bool { return l.circuit.State() == gobreaker.StateClosed }

// listening is a connection that notes when something came.
type listening struct {
	net.Conn
	link     *link
	admitted atomic.Bool
}

func (c *listening) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && (c.admitted.Load() || !c.link.pooled.Load()) {
		c.link.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// admitted notes that what comes on a connection from now on comes from the server, whoever let us in.
func admitted(conn *pgconn.PgConn) {
	under := conn.Conn()
	if t, ok := under.(*tls.Conn); ok {
		under = t.NetConn()
	}
	if c, ok := under.(*listening); ok {
		c.admitted.Store(true)
	}
}

// disproves reports whether an error says that the server cannot be reached, takes nobody or says nothing.
func disproves(err error) bool {
	if !fault.Is(err, fault.Unavailable) {
		return false
	}
	code := fault.CodeOf(err)
	d, ok := errors.AsType[*driverError](err)
	if ok && d.code == abandoned {
		return false
	}
	if code == "unavailable" || code == "database_unreachable" || code == "outcome_unknown" {
		return true
	}
	return ok && d.engine == "postgres" && (d.code == "connect" || d.code == "connection" || d.code == "cut" && code == "timeout")
}

// broken reports whether a connection broke that may have been broken for long, and whether the same may work on
// another one.
func broken(err error) bool { return disproves(err) && retryable(err) }

// proves reports whether an outcome shows that the server was there.
func proves(err error) bool {
	if err == nil {
		return true
	}
	d, ok := errors.AsType[*driverError](err)
	return ok && d.engine == "postgres" && len(d.code) == len("00000") && !disproves(err)
}

// unreachable is what callers get while the circuit is open, and for whatever broke on the way.
func unreachable(cause error) *fault.Error {
	return fault.New(fault.Unavailable, "sqlstore", "database_unreachable",
		"the database cannot be reached at the moment").RetryAfter(rest).With(cause)
}

// allow lets a call through, which must report how it went, or says why not: who is turned away while the circuit is open
// hears what those heard who opened it, where that says more than that nobody is there.
func (l *link) allow() (done func(error), err error) {
	tell, err := l.circuit.Allow()
	if err != nil {
		if why := l.why.Load(); why != nil {
			return nil, why.RetryAfter(rest).With(why) // with its cause: it is still that nobody was let in
		}
		return nil, unreachable(err)
	}
	return func(verdict error) {
		switch {
		case disproves(verdict):
			l.why.Store(mendable(verdict))
		case proves(verdict):
			l.why.Store(nil)
		}
		tell(verdict)
	}, nil
}

// mendable is a failure that somebody has to do something about before a connection can be made; nil for any other.
func mendable(err error) *fault.Error {
	f, ok := errors.AsType[*fault.Error](err)
	if !ok {
		return nil
	}
	switch f.Code {
	case "login_refused", "login_unsafe", "database_missing", "tls_refused", "tls_failed", "too_many_connections":
		return f
	}
	return nil
}

// errNothing is the outcome of a call that came to nothing by itself.
var errNothing = errors.New("nothing was asked")

// do runs one call through the circuit.
func (l *link) do(ctx context.Context, call func(ctx context.Context) error) error {
	done, err := l.allow()
	if err != nil {
		return err
	}
	verdict := errNothing
	defer func() { done(verdict) }() // also when a callback panics: the one who tries must not block the way for ever
	verdict = l.watched(ctx, call)
	return verdict
}

// watched runs a call, and cuts it off when the server falls silent.
func (l *link) watched(ctx context.Context, call func(ctx context.Context) error) error {
	if l.silence == 0 {
		return call(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{link: l, began: time.Now(), cancel: cancel}
	w.mu.Lock()
	w.timer = time.AfterFunc(l.suspicion, w.look)
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.over = true
		w.timer.Stop()
		w.mu.Unlock()
		cancel(nil)
	}()
	err := call(ctx)
	switch {
	case err == nil, fault.CodeOf(err) == "outcome_unknown":
		return err
	case errors.Is(context.Cause(ctx), errSilent):
		return unreachable(errSilent)
	}
	if d, ok := errors.AsType[*driverError](err); ok && disproves(err) && len(d.code) != len("00000") {
		return unreachable(err)
	}
	return err
}

// watch looks after one call.
type watch struct {
	link   *link
	began  time.Time
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	timer *time.Timer
	asked time.Time // when the server was asked; zero: it need not answer anything
	over  bool
}

func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return
	}
	l, now := w.link, time.Now()
	heard := time.Unix(0, l.heard.Load())
	if !w.asked.IsZero() && heard.Before(w.asked) {
		w.cancel(errSilent)
		return
	}
	w.asked = time.Time{}
	last := w.began
	if heard.After(last) {
		last = heard
	}
	// The longer a call has been alive, the more seldom the server is asked after its health.
	patience := max(l.suspicion, min(last.Sub(w.began)/2, 10*time.Second))
	if quiet := now.Sub(last); quiet < patience {
		w.timer.Reset(patience - quiet)
		return
	}
	l.question()
	w.asked = now
	w.timer.Reset(l.silence - l.suspicion)
}

// question makes the server say something. Nobody asks twice at once: whoever finds somebody asking has it repeated
// when that one is done.
func (l *link) question() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted = true
	if l.asking || l.life.Err() != nil {
		return
	}
	l.asking = true
	l.wg.Go(func() {
		for l.next() {
			ctx, cancel := context.WithTimeout(l.life, l.silence-l.suspicion)
			l.ask(ctx)
			cancel()
		}
	})
}

// next reports whether somebody still wants the server to be asked.
func (l *link) next() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asking = l.wanted && l.life.Err() == nil
	l.wanted = false
	return l.asking
}

// breaker is an engine behind a link.
type breaker struct {
	engine
	link *link
}

// guard puts the database behind the link to its server.
func (d *DB) guard(l *link) *DB {
	on := d.on.Load()
	return newDB(on.dialect, &breaker{on.engine, l})
}

// Reachable reports whether the server of this database was there when it was last asked. It asks nothing.
func (d *DB) Reachable() bool {
	b, ok := under[*breaker](d.on.Load().engine)
	return !ok || b.link.up()
}

func (b *breaker) read(ctx context.Context, batch *Batch) error {
	return b.link.do(ctx, func(ctx context.Context) error {
		err := b.engine.read(ctx, batch)
		if broken(err) {
			// An idle connection had been broken. Its neighbours may be, too, so the next one is fresh.
			b.afresh()
			err = b.engine.read(ctx, batch)
		}
		return err
	})
}

// afresh gives up the pool's idle connections.
func (b *breaker) afresh() {
	if e, ok := under[*postgresEngine](b.engine); ok && e.pool != nil {
		e.pool.Reset()
	}
}

func (b *breaker) begin(ctx context.Context) (session, error) {
	done, err := b.link.allow()
	if err != nil {
		return nil, err
	}
	s := &watchedSession{breaker: b, done: done}
	if err := b.link.watched(ctx, func(ctx context.Context) (err error) {
		s.session, err = b.engine.begin(ctx)
		return err
	}); err != nil {
		done(err)
		return nil, err
	}
	return s, nil
}

func (b *breaker) view(ctx context.Context) (v view, err error) {
	err = b.link.do(ctx, func(ctx context.Context) error {
		v, err = b.engine.view(ctx)
		if broken(err) {
			b.afresh()
			v, err = b.engine.view(ctx)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &watchedView{v, b.link}, nil
}

// watchedView is a snapshot behind a link.
type watchedView struct {
	view
	link *link
}

func (v *watchedView) read(ctx context.Context, b *Batch) error {
	err := v.link.watched(ctx, func(ctx context.Context) error { return v.view.read(ctx, b) })
	v.link.note(err)
	return err
}

func (b *breaker) under() engine { return b.engine }

// watchedSession is a write transaction behind a link.
type watchedSession struct {
	session
	breaker *breaker
	done    func(error) // tells the circuit how the first call went; nil when it was told
}

func (s *watchedSession) run(ctx context.Context, b *Batch, commit bool) error {
	return s.report(s.breaker.link.watched(ctx, func(ctx context.Context) error { return s.session.run(ctx, b, commit) }))
}

func (s *watchedSession) script(ctx context.Context, sql string) error {
	return s.report(s.breaker.link.watched(ctx, func(ctx context.Context) error { return s.session.script(ctx, sql) }))
}

// report tells the circuit: after the first call, so that a long transaction does not keep others waiting for its
// verdict, and of what happens later.
func (s *watchedSession) report(err error) error {
	if broken(err) {
		s.breaker.afresh() // DB.Write begins again
	}
	if s.done == nil {
		s.breaker.link.note(err)
		return err
	}
	s.done(err)
	s.done = nil
	return err
}

// note tells the circuit of a call that was let through long ago.
func (l *link) note(err error) {
	if done, refused := l.allow(); refused == nil { // otherwise the others know already
		done(err)
	}
}

func (s *watchedSession) end() {
	if s.done != nil {
		s.done(errNothing)
	}
	s.session.end()
}

// layer is an engine around another one.
type layer interface{ under() engine }

// under finds an engine of a kind below others.
func under[T engine](e engine) (T, bool) {
	for {
		if found, ok := e.(T); ok {
			return found, true
		}
		l, ok := e.(layer)
		if !ok {
			var none T
			return none, false
		}
		e = l.under()
	}
}
