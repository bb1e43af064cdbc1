package workspace

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Feeds hand the events of tenants' logs to whoever listens in this process: sockets and event streams. However many
// listen to a tenant, its log is read once. A tenant that is listened to need not stay open: its database is leased while
// something is read, and what is written there wakes the feed.
type Feeds struct {
	Share ReplayShare // of those who read a log again; not changed once somebody does
	again replays

	pool  *Pool
	every time.Duration
	life  context.Context //nolint:containedctx // the feeds' own life, which no caller owns
	end   context.CancelFunc
	wg    sync.WaitGroup

	mu   sync.Mutex
	open map[ident.TenantID]*feed
}

// Listener hears of a tenant. Its methods are called by one goroutine at a time and must not wait for a client: everybody
// who listens to the tenant waits for them. One that has a method Told() as well hears, after each Tell, when everybody who
// listens was told the same.
type Listener interface {
	// Tell hears all events after the position that Listen returned, in order, each once. The workspace is leased until
	// Tell returns.
	Tell(ctx context.Context, ws *Workspace, events []event.Event)
	// Lost hears that the log is not the one that was listened to: somebody put the tenant back to an earlier state.
	// What comes next comes after at.
	Lost(at event.Seq)
}

const (
	feedPage  = 200
	feedTime  = 15 * time.Second // to read what is new, and to tell it
	feedPause = time.Second      // after a database could not be read
)

// feed follows the log of one tenant.
type feed struct {
	feeds     *Feeds
	id        ident.TenantID
	sub       *event.Subscription
	life      context.Context //nolint:containedctx // ends when the last listener leaves
	end       context.CancelFunc
	listening int // guarded by feeds.mu

	turn  chan struct{} // full while the log is read and told: who comes and goes does so between two events
	known bool
	at    event.Seq
	last  ident.EventID // the event at that position
	told  atomic.Int64  // the position, for who does not wait

	who       sync.Mutex
	listeners map[Listener]struct{}
}

// NewFeeds returns feeds over the pool's tenants. Beside what the bus tells, a log that is listened to is looked at every
// so often: where other nodes write that this bus does not hear, and in case a signal is lost.
func NewFeeds(pool *Pool, every time.Duration) *Feeds {
	f := &Feeds{Share: ReplayShare{Rate: replayRate, Burst: replayBurst}, pool: pool, every: every, open: make(map[ident.TenantID]*feed)}
	f.life, f.end = context.WithCancel(context.Background())
	return f
}

// Close ends all feeds and waits for them. Nobody hears anything afterwards.
func (f *Feeds) Close() {
	f.end()
	f.wg.Wait()
}

// Open is how many tenants are listened to.
func (f *Feeds) Open() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.open)
}

// Listen tells l of everything in the tenant's log after the position that is returned, which is the log's end, until
// leave is called. One call of Tell may still be under way when leave returns.
func (f *Feeds) Listen(ctx context.Context, id ident.TenantID, l Listener) (at event.Seq, leave func(), err error) {
	fd := f.enter(id)
	out := sync.OnceFunc(func() {
		fd.who.Lock()
		delete(fd.listeners, l)
		fd.who.Unlock()
		f.leave(fd)
	})
	if err := fd.await(ctx); err != nil {
		out()
		return 0, nil, fault.Wrap("workspace.Listen", err)
	}
	defer fd.pass()
	if err := fd.catchUp(ctx); err != nil {
		out()
		return 0, nil, fault.Wrap("workspace.Listen", err)
	}
	fd.who.Lock()
	fd.listeners[l] = struct{}{}
	fd.who.Unlock()
	return fd.at, out, nil
}

// CatchUp tells those who listen to the tenant, before it returns, of everything that was committed before it was called.
func (f *Feeds) CatchUp(ctx context.Context, id ident.TenantID) error {
	f.mu.Lock()
	fd := f.open[id]
	f.mu.Unlock()
	if fd == nil {
		return nil
	}
	if err := fd.await(ctx); err != nil {
		return fault.Wrap("workspace.CatchUp", err)
	}
	defer fd.pass()
	return fault.Wrap("workspace.CatchUp", fd.catchUp(ctx))
}

// await takes the turn to read the log, or gives up with the context: whoever has it may be told a lot.
func (fd *feed) await(ctx context.Context) error {
	select {
	case fd.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fault.New(fault.Canceled, "workspace.await", "", "the request ended").With(ctx.Err())
	}
}

func (fd *feed) pass() { <-fd.turn }

func (f *Feeds) enter(id ident.TenantID) *feed {
	f.mu.Lock()
	defer f.mu.Unlock()
	fd := f.open[id]
	if fd == nil {
		fd = &feed{feeds: f, id: id, turn: make(chan struct{}, 1), listeners: make(map[Listener]struct{})}
		fd.life, fd.end = context.WithCancel(f.life)
		// Before the end of the log is read, or what is committed in between would be heard of late.
		fd.sub = f.pool.Bus.Subscribe(string(id), 16)
		f.open[id] = fd
		f.wg.Go(fd.run)
	}
	fd.listening++
	return fd
}

func (f *Feeds) leave(fd *feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fd.listening--; fd.listening == 0 {
		delete(f.open, fd.id)
		fd.end()
	}
}

// run reads the log whenever there is a reason to.
func (fd *feed) run() {
	defer fd.sub.Close()
	look := time.NewTicker(fd.feeds.every)
	defer look.Stop()
	pause := time.NewTimer(0)
	<-pause.C
	defer pause.Stop()
	for {
		select {
		case <-fd.life.Done():
			return
		case <-look.C:
		case <-pause.C:
		case sig := <-fd.sub.C:
			if !fd.sub.Lost() && (sig.Kind != event.Committed || int64(sig.Seq) <= fd.told.Load()) {
				continue
			}
		}
		if fd.await(fd.life) != nil {
			return
		}
		err := fd.catchUp(fd.life)
		fd.pass()
		if err != nil && fd.life.Err() == nil {
			if !fault.Is(err, fault.NotFound) {
				fd.feeds.pool.Log.Warn("tenant's log not followed", "code", fault.CodeOf(err), "tenant", fd.id)
			}
			pause.Reset(feedPause)
		}
	}
}

// catchUp tells what is new. The caller has the turn.
func (fd *feed) catchUp(ctx context.Context) error {
	// Whoever asked may go; the others are told to the end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), feedTime)
	defer cancel()
	defer context.AfterFunc(fd.life, cancel)()
	ws, err := fd.feeds.pool.Acquire(ctx, ident.System(""), fd.id)
	if err != nil {
		return err
	}
	defer ws.Release()
	defer func() { fd.told.Store(int64(fd.at)) }()
	if !fd.known {
		return fd.start(ctx, ws)
	}
	for {
		// The event that was told last is read again: if it is not there, this is another log.
		list, err := ws.Events.Since(ctx, max(fd.at-1, 0), feedPage)
		if err != nil {
			return err
		}
		if fd.at > 0 {
			if len(list) == 0 || list[0].ID != fd.last {
				return fd.lost(ctx, ws)
			}
			list = list[1:]
		}
		if len(list) == 0 {
			return nil
		}
		fd.at, fd.last = list[len(list)-1].Seq, list[len(list)-1].ID
		listeners := fd.all()
		for _, l := range listeners {
			l.Tell(ctx, ws, list)
		}
		for _, l := range listeners {
			if l, ok := l.(interface{ Told() }); ok {
				l.Told()
			}
		}
		if len(list) < feedPage-1 {
			return nil
		}
	}
}

// start finds the end of the log.
func (fd *feed) start(ctx context.Context, ws *Workspace) error {
	head, err := ws.Events.Head(ctx)
	if err != nil {
		return err
	}
	var last ident.EventID
	if head > 0 {
		list, err := ws.Events.Since(ctx, head-1, 1)
		if err != nil {
			return err
		}
		if len(list) == 1 {
			last = list[0].ID
		}
	}
	fd.known, fd.at, fd.last = true, head, last
	return nil
}

func (fd *feed) lost(ctx context.Context, ws *Workspace) error {
	if err := fd.start(ctx, ws); err != nil {
		return err
	}
	for _, l := range fd.all() {
		l.Lost(fd.at)
	}
	return nil
}

func (fd *feed) all() []Listener {
	fd.who.Lock()
	defer fd.who.Unlock()
	list := make([]Listener, 0, len(fd.listeners))
	for l := range fd.listeners {
		list = append(list, l)
	}
	return list
}
