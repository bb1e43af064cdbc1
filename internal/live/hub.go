package live

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/workspace"
)

// Config is what a Hub needs. The zero value of a limit or duration means its default.
type Config struct {
	Accounts Accounts
	Pool     *workspace.Pool
	Feeds    *workspace.Feeds
	Bus      event.Bus
	Master   event.Log // tells of sessions, accounts and tenants that changed, and of jobs
	Jobs     Jobs      // nil: nobody hears of jobs
	Words    Words
	Node     string // names this process among all that share the bus
	Log      *slog.Logger
	Now      func() time.Time

	MaxFrame       int           // bytes of a frame that a client sends (default 64 KiB)
	MaxWaiting     int           // bytes that wait for a reader (default 512 KiB)
	MaxReplay      int           // events that joining with after_seq sends again (default 1,000)
	MaxRooms       int           // rooms of one connection (default 100)
	MaxPerAccount  int           // connections of one account (default 50)
	MaxConnections int           // connections in all (default 20,000)
	MaxRefused     int           // frames in a row that may come too fast (default 100)
	Rate           float64       // frames a second that a client may send (default 30)
	Burst          int           // frames that may come at once (default 120)
	AccountRate    float64       // frames a second of all connections of an account on this node (default five times Rate)
	AccountBurst   int           // of them at once (default five times Burst)
	SendBuffer     int           // bytes that the kernel may hold for a reader (default 32 KiB)
	AuthTime       time.Duration // to send auth, for who came without a ticket (default 5 s)
	ActionTime     time.Duration // for what one frame asks for (default 15 s)
	WriteTime      time.Duration // to take one frame (default 2 s)
	Linger         time.Duration // to take what is left, and to answer the close frame (default 5 s); a reader that is too slow has half a second
	PingEvery      time.Duration // default 10 s
	PongTime       time.Duration // to answer a ping (default 10 s)
	CheckEvery     time.Duration // session and rooms are looked at again, whatever was heard (default 1 min)
	CloseTime      time.Duration // what has been told to end has to, before Close returns without it (default 2 s)
	HereEvery      time.Duration // nodes tell each other who is in their rooms (default 8 s); one that is silent for three times as long is gone
}

// Accounts is the part of account.Service that connections need.
type Accounts interface {
	Verify(ctx context.Context, t account.AccessToken, from account.Origin) (account.Identity, error)
	Alive(ctx context.Context, actor ident.Actor) error
}

// Jobs is the part of relocate.Service that tells of jobs.
type Jobs interface {
	Job(ctx context.Context, actor ident.Actor, id ident.JobID) (job.Job, error)
}

// Words is how REST writes down what this door shows, too; the two must not differ.
type Words interface {
	// Check refuses JSON that two readers would read differently, and what is nested too deeply.
	Check(raw []byte) error
	// Send reads what a client says, and to which conversation.
	Send(actor ident.Actor, raw json.RawMessage) (ident.ConversationID, conversation.SendInput, error)
	Exchange(x conversation.Exchange) any
	Turn(t conversation.Turn) any
	Event(e event.Event, room string) any
	Job(j job.Job) any
}

// Hub is every connection of this process and the rooms that they are in. Run looks after them; Close ends them.
type Hub struct {
	Config
	meters *meters
	work   sync.WaitGroup  // readers, writers and what they started
	life   context.Context //nolint:containedctx // ends with Close
	end    context.CancelFunc
	checks chan struct{} // as full as connections are being looked at again
	own    string        // how the text of this node's signals begins

	mu       sync.Mutex
	closing  bool
	coming   map[*conn]struct{} // were let in, and are not here yet
	conns    map[*conn]struct{}
	parting  map[*conn]struct{} // have ended, and may still read why
	accounts map[ident.AccountID]*visitor
	rooms    map[string]*room
	jobs     map[ident.JobID]*watched
	watchers map[*watcher]struct{}
}

// visitor is an account with connections.
type visitor struct {
	conns map[*conn]struct{}
	pace  *rate.Limiter      // of all of them together
	stop  context.CancelFunc // ends listening for its access
}

// New returns a hub without connections.
func New(c Config) *Hub {
	def(&c.MaxFrame, 64<<10)
	def(&c.MaxWaiting, 512<<10)
	def(&c.MaxReplay, 1000)
	def(&c.MaxRooms, 100)
	def(&c.MaxPerAccount, 50)
	def(&c.MaxConnections, 20_000)
	def(&c.MaxRefused, 100)
	def(&c.Rate, 30)
	def(&c.Burst, 120)
	def(&c.AccountRate, 5*c.Rate)
	def(&c.AccountBurst, 5*c.Burst)
	def(&c.SendBuffer, 32<<10)
	def(&c.AuthTime, 5*time.Second)
	def(&c.ActionTime, 15*time.Second)
	def(&c.WriteTime, 2*time.Second)
	def(&c.Linger, 5*time.Second)
	def(&c.PingEvery, 10*time.Second)
	def(&c.PongTime, 10*time.Second)
	def(&c.CheckEvery, time.Minute)
	def(&c.CloseTime, 2*time.Second)
	def(&c.HereEvery, 8*time.Second)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	h := &Hub{Config: c, coming: make(map[*conn]struct{}), conns: make(map[*conn]struct{}), parting: make(map[*conn]struct{}), accounts: make(map[ident.AccountID]*visitor),
		rooms: make(map[string]*room), jobs: make(map[ident.JobID]*watched), watchers: make(map[*watcher]struct{}), checks: make(chan struct{}, 16)}
	node, _ := json.Marshal(c.Node) // strings always marshal
	h.own = `{"node":` + string(node) + `,`
	h.meters = newMeters(h)
	h.life, h.end = context.WithCancel(context.Background())
	return h
}

func def[T int | float64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// Accept takes a request over whose handshake and origin were checked. Who is nil for somebody who has to sign in with the
// first frame. An error says why there is no connection; nothing has been written then.
func (h *Hub) Accept(w http.ResponseWriter, r *http.Request, who *account.Identity, from account.Origin) error {
	c := &conn{hub: h, from: from, pace: rate.NewLimiter(rate.Limit(h.Rate), h.Burst),
		writing: true} // there is nothing to write to yet
	c.life, c.cut = context.WithCancel(h.life)
	now := h.Now()
	c.expires, c.ping, c.check = now.Add(h.AuthTime), now.Add(h.PingEvery), now.Add(h.CheckEvery)
	if err := h.admit(c, who); err != nil {
		c.cut()
		return err
	}
	t := &taker{ResponseWriter: w, size: h.SendBuffer}
	// The origin was checked by whoever called; compression would let a slow reader cost memory, and mixes secrets with
	// text of others'.
	ws, err := websocket.Accept(t, r, &websocket.AcceptOptions{InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled,
		OnPingReceived: c.gotPing, OnPongReceived: c.gotPong})
	if err != nil {
		h.Log.Warn("connection not taken over", "request_id", from.RequestID)
		c.mu.Lock()
		c.end = &gone
		c.mu.Unlock()
		c.cut()
		h.forget(c, gone)
		h.work.Done()
		return nil // it has been answered
	}
	ws.SetReadLimit(-1) // read looks at the size itself, and says so in its own words
	h.mu.Lock()
	delete(h.coming, c)
	h.conns[c] = struct{}{} // before anything can end it
	late := h.closing
	h.mu.Unlock()
	t.wire.most = 2*h.MaxFrame + 4*readAhead
	c.begin(ws, t.wire, who != nil)
	go func() {
		defer h.work.Done()
		defer h.part(c)
		c.read()
	}()
	if late {
		c.over(stopping)
	}
	if who != nil { // what ended after the ticket was read, and before the connection was known here, is found now
		h.look(c)
	}
	return nil
}

// begin lets out what has been said meanwhile, and before that who it is.
func (c *conn) begin(ws *websocket.Conn, w *wire, signedIn bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	early := c.queue
	c.ws, c.wire, c.writing, c.queue, c.waiting = ws, w, false, nil, 0
	if signedIn && c.end == nil {
		c.push(c.greeting(nil))
	}
	for _, b := range early {
		c.push(b)
	}
	if c.end != nil {
		c.write()
	}
}

// admit counts the connection, and knows whose it is.
func (h *Hub) admit(c *conn, who *account.Identity) error {
	const op = "live.Accept"
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		return fault.New(fault.Unavailable, op, "server_stopping", "the server is stopping").RetryAfter(2 * time.Second)
	}
	if len(h.coming)+len(h.conns) >= h.MaxConnections {
		return fault.New(fault.Unavailable, op, "too_many_sockets", "too many connections are open: try again in a moment").RetryAfter(5 * time.Second)
	}
	if who != nil {
		if err := h.welcome(c, *who); err != nil {
			return err
		}
	}
	h.coming[c] = struct{}{}
	h.work.Add(1) // before Close may wait
	return nil
}

// welcome signs a connection in. The caller has h.mu.
func (h *Hub) welcome(c *conn, who account.Identity) error {
	v := h.accounts[who.Actor.Account]
	if v == nil {
		v = &visitor{conns: make(map[*conn]struct{}), pace: rate.NewLimiter(rate.Limit(h.AccountRate), h.AccountBurst)}
		h.accounts[who.Actor.Account] = v
		h.listen(who.Actor.Account, v)
	}
	if len(v.conns) >= h.MaxPerAccount {
		return fault.New(fault.Throttled, "live.Accept", crowded.name, crowded.detail).RetryAfter(30 * time.Second)
	}
	v.conns[c] = struct{}{}
	c.mu.Lock()
	c.actor, c.tenant, c.expires, c.shared = who.Actor, who.Tenant, who.ExpiresAt, v.pace
	c.mu.Unlock()
	return nil
}

// listen hears, for as long as the account has connections, that what it may see has changed. The caller has h.mu.
func (h *Hub) listen(id ident.AccountID, v *visitor) {
	ctx, cancel := context.WithCancel(h.life)
	v.stop = cancel
	sub := h.Bus.Subscribe(event.AccessTopic(id), 1) // one is enough to know
	h.work.Go(func() {
		defer sub.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case <-sub.C:
				h.recheck(id)
			}
		}
	})
}

// forget takes a connection that ends out of everything.
func (h *Hub) forget(c *conn, e ending) {
	c.mu.Lock()
	seats := slices.Clone(c.seats)
	c.mu.Unlock()
	for _, s := range seats {
		c.leave(s.room.id)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	c.mu.Lock()
	if !c.deaf && c.wire != nil {
		h.parting[c] = struct{}{}
	}
	c.mu.Unlock()
	delete(h.coming, c)
	delete(h.conns, c)
	actor, _ := c.who() // nobody signs in any more who is not among the connections
	account := actor.Account
	if v := h.accounts[account]; v != nil {
		delete(v.conns, c)
		if len(v.conns) == 0 {
			v.stop()
			delete(h.accounts, account)
		}
	}
	h.meters.closed.WithLabelValues(e.label()).Inc()
}

// part is called when nothing is read from a connection any more.
func (h *Hub) part(c *conn) {
	h.mu.Lock()
	delete(h.parting, c)
	h.mu.Unlock()
}

// sweepEvery is how often deadlines of connections are looked at.
const sweepEvery = 200 * time.Millisecond

// Run looks after connections until ctx ends.
func (h *Hub) Run(ctx context.Context) error {
	var group errgroup.Group
	group.Go(func() error { h.watch(ctx); return nil })
	group.Go(func() error { h.watchJobs(ctx); return nil })
	group.Go(func() error { h.tellPresence(ctx); return nil })
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return group.Wait()
		case <-t.C:
			h.sweep()
		}
	}
}

// sweep ends connections whose time is over, pings those that are due, and looks again at those that were not looked at
// for long.
func (h *Hub) sweep() {
	now := h.Now()
	h.sweepWatchers(now)
	for _, c := range h.all() {
		c.mu.Lock()
		switch {
		case c.end != nil:
		case !now.Before(c.expires) && c.actor.Account == "":
			c.finish(unsigned)
		case !now.Before(c.expires):
			c.finish(expired)
		default:
			c.pinged(now)
		}
		due := c.end == nil && c.actor.Account != "" && !now.Before(c.check)
		if due {
			c.check = now.Add(h.CheckEvery)
		}
		c.mu.Unlock()
		if due {
			h.look(c)
		}
	}
}

func (h *Hub) all() []*conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]*conn, 0, len(h.conns))
	for c := range h.conns {
		list = append(list, c)
	}
	return list
}

// Close ends every connection with a final frame and a code that says to come back, and waits for them until ctx ends.
// What is not over a moment after that, since somebody hears of no end, is left behind: Close says so and returns.
func (h *Hub) Close(ctx context.Context) error {
	h.mu.Lock()
	h.closing = true
	h.mu.Unlock()
	for _, c := range h.all() {
		c.over(stopping)
	}
	done := make(chan struct{})
	go func() {
		h.work.Wait()
		close(done)
	}()
	// Listening for access goes on while accounts have connections; the rest ends with the last of them.
	select {
	case <-done:
	case <-ctx.Done():
		h.cutAll()
	}
	h.end()
	late := time.NewTimer(h.CloseTime)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
	}
	select { // whoever looks late finds both
	case <-done:
		return nil
	default:
		return fault.New(fault.Unavailable, "live.Close", "", "connections were left behind: something that they wait for does not end").With(ctx.Err())
	}
}

// cutAll takes their time from all connections, also from those that are only waited for.
func (h *Hub) cutAll() {
	list := h.all()
	h.mu.Lock()
	list = slices.AppendSeq(list, maps.Keys(h.parting))
	h.mu.Unlock()
	for _, c := range list {
		c.mu.Lock()
		if c.wire != nil {
			c.until = time.Now()
			_ = c.wire.SetDeadline(c.until)
		}
		c.mu.Unlock()
	}
}

// Stats says how much is going on.
type Stats struct{ Connections, Accounts, Rooms int }

// Stats counts.
func (h *Hub) Stats() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	return Stats{Connections: len(h.conns), Accounts: len(h.accounts), Rooms: len(h.rooms)}
}
