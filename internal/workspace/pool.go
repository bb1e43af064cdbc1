package workspace

import (
	"container/list"
	"context"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/member"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/spool"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/webhook"
)

// Config is what a Pool needs.
type Config struct {
	Directory  tenant.Directory
	Notes      Notes     // nil: what is seen of schemas is kept nowhere
	Master     event.Log // the master database's log, which tells of tenants that moved or changed; nil: nobody else changes them
	News       News      // what tenants have not been told of their databases and members; nil: nobody tells them
	Grants     Grants    // who is a member of whose projects; nil: nobody is
	Hints      tenant.Hints
	Trail      audit.Store // the master database's
	Placements *Placements
	Engine     *conversation.Engine
	Bus        event.Bus
	Sealer     event.Sealer
	Spool      *spool.Spool        // keeps what databases do not take; nil: nothing does
	Webhooks   *webhook.Dispatcher // tells others of events; nil: nobody does
	Providers  []string            // provider names that projects may ask for
	// CallbackURL is where answers may be delivered, up to the token that follows it; empty: nowhere.
	CallbackURL string
	Log         *slog.Logger
	Now         func() time.Time
	Notice      member.Notice                       // writes the mails that invitations are told by; nil: nobody is written to
	Limits      tenant.Limits                       // of tenants that have none of their own; 0: none
	MaxOpen     int                                 // databases open at once (default 256)
	IdleAfter   time.Duration                       // unused ones are closed after this (default 5 min)
	Sole        bool                                // no other process works on these tenants
	Opened      func(took time.Duration, err error) // hears of every opening; may be nil
}

// Pool keeps tenants' databases open while they are used. It is safe for concurrent use.
type Pool struct {
	Config
	mu      sync.Mutex
	entries map[ident.TenantID]*entry
	idle    *list.List    // of *entry without leases, least recently used first
	room    chan struct{} // closed, and replaced, when there may be room for those who wait
	waiting bool          // somebody waits for room
	leaving int           // databases that are being closed
	turns   chan struct{} // as full as files are being opened
	closed  bool
	patient time.Duration  // how long a caller waits for room; roomPatience but for tests
	told    event.Seq      // how far the master's log was followed
	heard   time.Time      // when that was last done
	closing sync.WaitGroup // as many as leaving, for Close
}

// Workspace is a leased tenant with its services. Release gives it back; services must not be used after that. A guest's
// reaches one project and nothing else of the tenant: see [Pool.Visit].
type Workspace struct {
	Tenant        tenant.Tenant
	Pass          access.Pass // what its services let the actor do
	Projects      *project.Service
	Members       *member.Service
	Conversations *conversation.Service
	Webhooks      *webhook.Service // nil for a guest
	Audit         *audit.Service   // nil for a guest
	Events        event.ProjectLog // for a guest that of the project
	Waited        time.Duration    // for the database to be opened; 0 when it was open

	entry    *entry
	actor    ident.Actor // of a guest
	subject  string      // what a guest came for
	released atomic.Bool
}

// entry is one tenant in the pool.
type entry struct {
	pool  *Pool
	id    ident.TenantID
	ready chan struct{} // closed when open or failed
	err   error         // why it failed
	until time.Time     // failed, or opened with an older schema: when the next attempt may be made

	tenant tenant.Tenant // guarded by pool.mu once ready
	missed error         // why this is not what the directory says, see Pool.fellBehind; guarded by pool.mu, as the next two
	lost   bool          // and may therefore not be used
	retry  time.Time     // when it may be looked up again
	wished bool          // somebody wants it opened anew; guarded by pool.mu, as the next one
	anew   bool          // somebody is at it
	looks  int           // how often it was begun to look it up; guarded by pool.mu, as the next two
	seen   int           // the latest of those looks that counted
	moved  int           // how many had begun when it was last opened at another place, or in another way
	db     *sqlstore.DB
	store  *sqlstore.TenantStore
	ws     Workspace // the services; handed out as copies

	leases int           // guarded by pool.mu
	place  *list.Element // in pool.idle, when there are no leases
	used   time.Time

	hintMu   sync.Mutex
	hinted   time.Time // the earliest hint this process knows to be stored
	promised time.Time // the latest time that it stands for
	owed     time.Time // the earliest hint about deliveries that this process knows to be stored
}

const (
	// pause is how long a tenant that could not be opened is refused without another attempt. It is as long as a circuit
	// before a server stays open: the attempt after it is the one that tries the server, or is refused as quickly.
	pause = 2 * time.Second
	// openTimeout bounds each part of an opening but a migration, which has stepTimeout.
	openTimeout = time.Minute
	// turnTime is ten times what opening a file takes.
	turnTime = 50 * time.Millisecond
	// mendPause is how long a tenant is served with an older schema before its migration is tried once more.
	mendPause = time.Minute
	// roomPatience is how long a caller waits in a pool that is full of leased databases.
	roomPatience = 2 * time.Second
)

// NewPool returns an empty pool. Run looks after it; Close ends it.
func NewPool(c Config) *Pool {
	if c.MaxOpen <= 0 {
		c.MaxOpen = 256
	}
	if c.IdleAfter <= 0 {
		c.IdleAfter = 5 * time.Minute
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Pool{Config: c, entries: make(map[ident.TenantID]*entry), idle: list.New(), room: make(chan struct{}),
		patient: roomPatience, turns: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1))}
}

// Acquire opens the tenant's database if needed and takes a lease on it. The caller must Release. It is NotFound,
// not Forbidden, for whoever is not the owner: existence is private too. A tenant that cannot be opened is Unavailable
// at once until its next attempt is due; nobody else notices.
func (p *Pool) Acquire(ctx context.Context, actor ident.Actor, id ident.TenantID) (*Workspace, error) {
	const op = "workspace.Acquire"
	e, waited, err := p.acquire(ctx, id)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	t := p.tenantOf(e)
	if !actor.System && t.Account != actor.Account {
		p.release(e)
		return nil, fault.Missing(op)
	}
	if t.State == tenant.Suspended && !actor.System {
		p.release(e)
		return nil, fault.New(fault.Forbidden, op, "tenant_suspended", "this account's data is suspended: ask the operator")
	}
	ws := &Workspace{Tenant: t, Pass: access.Owning(t.Account), Projects: e.ws.Projects, Members: e.ws.Members,
		Conversations: e.ws.Conversations, Webhooks: e.ws.Webhooks, Audit: e.ws.Audit, Events: e.ws.Events, Waited: waited, entry: e}
	return ws, nil
}

// acquire opens a tenant's database if needed and takes a lease on it, whoever asks.
func (p *Pool) acquire(ctx context.Context, id ident.TenantID) (_ *entry, waited time.Duration, err error) {
	asked := time.Now()
	e, opener, err := p.lease(ctx, id)
	if err != nil {
		return nil, 0, err
	}
	if opener {
		go p.open(context.WithoutCancel(ctx), e)
	}
	select {
	case <-e.ready:
		if opener { // the opening was over before this goroutine went on
			waited = time.Since(asked)
		}
	default:
		select {
		case <-e.ready:
			waited = time.Since(asked)
		case <-ctx.Done():
			p.release(e)
			return nil, 0, fault.New(fault.Canceled, "workspace.Pool", "", "the request ended").With(ctx.Err())
		}
	}
	err = e.err
	if err == nil {
		err = p.upToDate(ctx, e)
	}
	if err != nil {
		p.release(e)
		return nil, 0, err
	}
	return e, waited, nil
}

// Release gives the lease back. Further calls do nothing.
func (w *Workspace) Release() {
	if w.released.CompareAndSwap(false, true) {
		w.entry.pool.release(w.entry)
	}
}

// lease finds or makes the tenant's entry and counts one lease more. opener is true for the one who has to open it.
func (p *Pool) lease(ctx context.Context, id ident.TenantID) (e *entry, opener bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var patience *time.Timer
	for {
		if p.closed {
			return nil, false, fault.New(fault.Unavailable, "workspace.Pool", "shutting_down", "the server is about to stop").
				RetryAfter(2 * time.Second)
		}
		if e := p.entries[id]; e != nil {
			if e.leases == 0 && again(e, p.Now()) {
				p.drop(e)
				continue
			}
			if e.place != nil {
				p.idle.Remove(e.place)
				e.place = nil
			}
			e.leases++
			return e, false, nil
		}
		if p.makeRoom() {
			// One lease is the caller's, one the opening's.
			e := &entry{pool: p, id: id, ready: make(chan struct{}), leases: 2}
			p.entries[id] = e
			return e, true, nil
		}
		if patience == nil {
			patience = time.NewTimer(p.patient)
			defer patience.Stop()
		}
		if err := p.waitForRoom(ctx, patience.C); err != nil {
			return nil, false, err
		}
	}
}

// makeRoom reports whether one more database may be opened; for that it may close the least recently used one that
// nobody leases. That happens off the request's path, so for a moment more than MaxOpen may be open, but not many: a
// disk that closes slowly must not cost descriptors without bound.
func (p *Pool) makeRoom() bool {
	if p.leaving > p.MaxOpen/8+1 {
		return false
	}
	if len(p.entries) < p.MaxOpen {
		return true
	}
	first := p.idle.Front()
	if first == nil {
		return false
	}
	p.drop(first.Value.(*entry))
	return true
}

// waitForRoom waits, without the lock, until there may be room.
func (p *Pool) waitForRoom(ctx context.Context, patience <-chan time.Time) error {
	room := p.room
	p.waiting = true
	p.mu.Unlock()
	defer p.mu.Lock()
	select {
	case <-room:
		return nil
	case <-ctx.Done():
		return fault.New(fault.Canceled, "workspace.Pool", "", "the request ended").With(ctx.Err())
	case <-patience:
		return fault.New(fault.Unavailable, "workspace.Pool", "too_many_tenants",
			"too many databases are in use: try again in a moment").RetryAfter(roomPatience)
	}
}

// roomMade wakes all who wait: a signal for one of them would be lost when that one has just given up.
func (p *Pool) roomMade() {
	if p.waiting {
		close(p.room)
		p.room, p.waiting = make(chan struct{}), false
	}
}

// drop takes an entry without leases out of the pool and closes its database.
func (p *Pool) drop(e *entry) {
	if e.place != nil {
		p.idle.Remove(e.place)
		e.place = nil
	}
	delete(p.entries, e.id)
	if e.db == nil {
		return
	}
	p.leaving++
	p.closing.Go(func() {
		if err := e.db.Close(); err != nil {
			p.Log.Warn("tenant database not closed cleanly", "code", fault.CodeOf(err))
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.leaving--
		p.roomMade()
	})
}

// again reports whether it is time to open an entry once more: one that failed, or that has an older schema.
func again(e *entry, now time.Time) bool {
	select {
	case <-e.ready:
		return !now.Before(e.until) && (e.err != nil || !e.until.IsZero())
	default:
		return false
	}
}

func failed(e *entry) bool {
	select {
	case <-e.ready:
		return e.err != nil
	default:
		return false
	}
}

func opened(e *entry) bool {
	select {
	case <-e.ready:
		return e.err == nil
	default:
		return false
	}
}

func (p *Pool) release(e *entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.leases--
	if e.leases > 0 {
		return
	}
	e.used = p.Now()
	if p.entries[e.id] == e {
		e.place = p.idle.PushBack(e)
	}
	p.roomMade()
}

// open does the opening of an entry, outside the pool's lock and whether or not the first caller waits for it.
func (p *Pool) open(ctx context.Context, e *entry) {
	// The opening's own lease goes first: whoever sees the entry ready counts the callers' leases only.
	defer close(e.ready)
	defer p.release(e)
	begun := time.Now()
	t, err := p.find(ctx, e.id)
	if err == nil && t.Placement.Kind == tenant.SQLite {
		var done func()
		if done, err = p.turn(ctx); err == nil {
			defer done()
		}
	}
	if err == nil {
		e.tenant = t
		e.db, err = p.openDatabase(ctx, &e.tenant)
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err == nil {
		e.store = sqlstore.NewTenantStore(e.db, e.committed).Within(e.limits)
		e.ws = Workspace{
			Projects:      project.New(e.store, p.Sealer, t.Account, p.Providers, p.Now),
			Conversations: conversation.New(e.store, p.Engine, p.Sealer, t.Account, e),
			Audit:         audit.New(e.store.Trail(), p.Trail, t.Account),
			Events:        e.store,
		}
		if p.Webhooks != nil {
			e.ws.Webhooks = p.Webhooks.Service(e.store, e.id, t.Account, e)
			e.store.Outbox(e.ws.Webhooks.Promise, e.ws.Webhooks.Queued)
		}
		if p.Grants != nil {
			e.ws.Projects.WithSharing(sharing{e, t.Account})
			e.ws.Conversations.WithSharing(sharing{e, t.Account})
			e.ws.Members = member.New(member.Config{Store: p.Grants, Projects: e.store, Sealer: p.Sealer, Bus: p.Bus, Tenant: e.id,
				Owner: t.Account, Pass: access.Owning(t.Account), Now: p.Now, Notice: p.Notice})
		}
		// Turns that lost their owner while nobody looked are marked before anybody can read them. What may not be
		// changed, or on a disk without room cannot, stays as it is. What another server still runs gets its hint, which may
		// have been lost.
		var next time.Time
		next, err = e.ws.Conversations.Sweep(ctx)
		switch {
		case err != nil && (e.refuses(e.tenant) != nil || conversation.Unwritable(err)):
			err = nil
		case err == nil && !next.IsZero():
			if err := e.Hint(ctx, next); err != nil {
				p.Log.Warn("hint not stored", "code", fault.CodeOf(err))
			}
		}
		// What is to be sent is sent beside: nobody who opens a tenant waits for that.
		if err == nil && e.webhooks() && e.refuses(e.tenant) == nil {
			e.ws.Webhooks.Wake()
		}
		if p := e.tenant.Schema.Problem; p != "" && p != tenant.SchemaHeld {
			e.until = e.pool.Now().Add(mendPause)
		}
		if err != nil {
			_ = e.db.Close()
			e.db = nil
		}
	}
	if p.Opened != nil {
		p.Opened(time.Since(begun), err)
	}
	if err != nil {
		e.err, e.until = err, p.Now().Add(pause)
		switch {
		case fault.Is(err, fault.NotFound):
			e.until = time.Time{}
		case fault.CodeOf(err) == "database_unreachable": // nothing is wrong with the tenant
			p.Log.Warn("tenant not opened", "code", fault.CodeOf(err), "tenant", e.id)
			e.err = unavailable(err)
		default:
			p.Log.Error("tenant not opened", "error", err, "tenant", e.id)
			e.err = unavailable(err)
		}
	}
}

// turn waits for one's turn to open a file, and returns what ends it. Opening is work for the processor: a core stays
// free for those whose databases are open, however many are opened at once. Who takes long waits for something else,
// or migrates, and gives the turn up meanwhile.
func (p *Pool) turn(ctx context.Context) (done func(), err error) {
	select {
	case p.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, fault.New(fault.Unavailable, "workspace.Pool", "too_many_tenants", "too many databases are being opened: try again in a moment").
			RetryAfter(pause)
	}
	end := sync.OnceFunc(func() { <-p.turns })
	late := time.AfterFunc(turnTime, end)
	return func() {
		late.Stop()
		end()
	}, nil
}

func (p *Pool) find(ctx context.Context, id ident.TenantID) (tenant.Tenant, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	return p.Directory.FindTenant(ctx, id)
}

// unavailable makes any failure to open one tenant's database Unavailable with a hint when to come back.
func unavailable(err error) error {
	code := fault.CodeOf(err)
	if fault.Is(err, fault.Internal) || fault.Is(err, fault.Canceled) || code == "" {
		code = "tenant_unavailable"
	}
	return fault.New(fault.Unavailable, "workspace.Pool", code,
		"the database of this account cannot be used at the moment").RetryAfter(pause).With(err)
}

// Retain keeps the entry open beyond the request that holds its lease.
func (e *entry) Retain() (release func()) {
	e.pool.mu.Lock()
	e.leases++
	e.pool.mu.Unlock()
	return sync.OnceFunc(func() { e.pool.release(e) })
}

// limits are what the tenant may keep at the moment.
func (e *entry) limits() tenant.Limits {
	e.pool.mu.Lock()
	defer e.pool.mu.Unlock()
	return e.tenant.Limits.Or(e.pool.Config.Limits)
}

// Usage is how much the tenant keeps, and what it may keep; 0 is no limit.
func (w *Workspace) Usage(ctx context.Context) (tenant.Usage, tenant.Limits, error) {
	u, err := w.entry.store.Used(ctx)
	if err != nil && w.Tenant.Schema.Problem != "" {
		err = Refusal(tenant.Quarantined) // its schema is from before the counting
	}
	return u, w.entry.limits(), fault.Wrap("workspace.Usage", err)
}

// Spool implements conversation.TenantPart.
func (e *entry) Spool() conversation.Spool {
	if e.pool.Spool == nil {
		return nil // not a nil pointer in an interface
	}
	return e.pool.Spool.Tenant(e.id)
}

// Near implements conversation.TenantPart.
func (e *entry) Near() bool { return e.db.Dialect() == sqlstore.SQLite }

// hintAhead is how much longer than it was asked for a hint stands, so that the next ones need not be stored.
const hintAhead = 10 * time.Second

// Hint stores that something is due in this tenant, unless a hint that stands for it is known to be stored.
func (e *entry) Hint(ctx context.Context, due time.Time) error {
	e.hintMu.Lock()
	defer e.hintMu.Unlock()
	// One whose time has come may have been settled by another node.
	if e.hinted.After(e.pool.Now()) && !due.Before(e.hinted) && !due.After(e.promised) {
		return nil
	}
	last := due.Add(hintAhead)
	if err := e.pool.Hints.Hint(ctx, e.id, due, last); err != nil {
		return err
	}
	e.hinted, e.promised = due, last
	return nil
}

// oweMargin is how long before a hint comes it is not relied upon any more: what is committed after the look is not seen.
const oweMargin = 2 * time.Second

// oweTime bounds what a hint about deliveries may cost those who wait for it: it may be lost.
const oweTime = time.Second

// Owe implements webhook.TenantPart. Somebody looks when an earlier hint comes, and finds then what is due later: a tenant
// that is busy costs the master a row in some seconds.
func (e *entry) Owe(ctx context.Context, due time.Time) {
	e.hintMu.Lock()
	defer e.hintMu.Unlock()
	if e.owed.After(e.pool.Now().Add(oweMargin)) && !due.Before(e.owed) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, oweTime)
	defer cancel()
	if err := e.pool.Hints.Hint(ctx, e.id, due, due.Add(hintAhead)); err != nil {
		e.pool.Log.Warn("hint not stored", "code", fault.CodeOf(err))
		return
	}
	e.owed = due
}

// webhooks reports whether the tenant had endpoints when its turns were last looked at.
func (e *entry) webhooks() bool { return e.ws.Webhooks != nil && e.store.Watched() }

// settle replaces the hint that had come by now. No other hint is noted meanwhile: what this process believes to be stored
// must be stored.
func (e *entry) settle(ctx context.Context, now, next time.Time) error {
	e.hintMu.Lock()
	defer e.hintMu.Unlock()
	e.hinted, e.owed = time.Time{}, time.Time{}
	return e.pool.Hints.Settle(ctx, e.id, now, next)
}

// Stats says how full the pool is. Unreachable are those of Open whose server is away.
type Stats struct{ Open, Leased, Failed, Closing, Unreachable int }

// Stats counts the entries.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Stats{Closing: p.leaving}
	for _, e := range p.entries {
		switch {
		case failed(e):
			s.Failed++
		case e.leases > 0:
			s.Leased++
			s.Open++
		default:
			s.Open++
		}
		if opened(e) && !e.db.Reachable() {
			s.Unreachable++
		}
	}
	return s
}

// Close refuses further leases, waits until those given out are back or ctx ends, and closes every database.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.roomMade() // who waits for room is told
	p.mu.Unlock()
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for p.Stats().Leased > 0 {
		select {
		case <-t.C:
		case <-ctx.Done():
			p.Log.Warn("databases closed while in use", "count", p.Stats().Leased)
			p.closeAll()
			return nil
		}
	}
	p.closeAll()
	return nil
}

func (p *Pool) closeAll() {
	defer p.closing.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.entries {
		p.drop(e)
	}
}
