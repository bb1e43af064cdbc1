package live

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
	"golang.org/x/time/rate"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// conn is one connection. Its reader is a goroutine for as long as it lives. What is said to it goes out at once, by whoever
// says it, as long as the kernel has room; what it has no room for is written by a writer, a goroutine while there is
// such a thing.
type conn struct {
	hub  *Hub
	ws   *websocket.Conn
	wire *wire
	from account.Origin
	pace *rate.Limiter
	life context.Context //nolint:containedctx // ends with the connection; nobody else owns it
	cut  context.CancelFunc

	// Of the reader alone.
	refused int // frames in a row that came too fast

	mu      sync.Mutex
	actor   ident.Actor   // zero until it has signed in
	shared  *rate.Limiter // of the account; nil until then
	tenant  ident.TenantID
	expires time.Time // when it has to have signed in, or renewed that
	seats   []*seat
	looking bool      // a look at what it may see waits to begin
	access  uint64    // grows whenever access has to be looked at again
	check   time.Time // when session and rooms are looked at again, whatever was heard

	queue   [][]byte
	begun   bool // the first of them is the rest of a frame
	waiting int  // bytes in queue
	writing bool // a writer is at work
	end     *ending
	until   time.Time     // once it ends: when it is cut, on the system's clock
	left    chan struct{} // once it ends: closed when the reader has nothing more to read
	deaf    bool          // the reader has nothing more to read
	ping    time.Time     // when to ask whether somebody is there, or, while pinging, when to have heard
	pinging bool
	busy    bool // the reader works on a frame, so it reads no pong
	stops   int  // stop_turn frames that are being worked on
}

// seat is a room that a connection is in.
type seat struct {
	room   *room
	seen   time.Time   // when it was last found that it may be there
	pass   access.Pass // what it may do there, as found then
	typing bool
}

// seat finds a room that the connection is in, nil for another one. The caller has c.mu.
func (c *conn) seat(room string) *seat {
	for _, s := range c.seats {
		if s.room.id == room {
			return s
		}
	}
	return nil
}

// put says a frame, without waiting. A connection for which too much waits has a reader that is too slow: it ends, and
// nobody else notices.
func (c *conn) put(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end != nil {
		return
	}
	// A frame larger than the bound goes out by itself.
	if c.waiting > 0 && c.waiting+len(b) > c.hub.MaxWaiting {
		c.finish(slow)
		return
	}
	c.push(b)
}

// putAll says what somebody gets who joins: it is bounded by itself, and goes out whole unless too much waits already.
func (c *conn) putAll(list [][]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end == nil && c.waiting > c.hub.MaxWaiting {
		c.finish(slow)
	}
	if c.end != nil {
		return
	}
	for _, b := range list {
		c.push(b)
	}
}

// push says a frame, now or when there is room for it. The caller has c.mu.
func (c *conn) push(b []byte) {
	if !c.writing {
		n := c.wire.try(b)
		if n == len(b) {
			c.hub.meters.out.Inc()
			return
		}
		b, c.begun = b[n:], n > 0
	}
	c.queue = append(c.queue, b)
	c.waiting += len(b)
	c.write()
}

// write starts the writer unless it is at work. The caller has c.mu.
func (c *conn) write() {
	if !c.writing {
		c.writing = true
		c.hub.work.Go(func() { c.guarded(c.writer) })
	}
}

// writer writes what is queued, then the close frame if this is the end.
func (c *conn) writer() {
	for {
		c.mu.Lock()
		if len(c.queue) == 0 {
			if c.end == nil {
				c.writing, c.queue = false, nil
				_ = c.wire.SetWriteDeadline(time.Time{})
				c.mu.Unlock()
				return
			}
			c.mu.Unlock()
			c.part(nil) // nobody writes after this
			return
		}
		b, begun := c.queue[0], c.begun
		c.queue[0], c.begun = nil, false
		c.queue = c.queue[1:]
		c.waiting -= len(b)
		until := time.Now().Add(c.hub.WriteTime)
		if c.end != nil && c.until.Before(until) {
			until = c.until
		}
		c.mu.Unlock()
		n, err := c.wire.write(b, until, false)
		if err == nil {
			c.hub.meters.out.Inc()
			continue
		}
		late := errors.Is(err, os.ErrDeadlineExceeded)
		c.mu.Lock()
		if c.queue, c.waiting = nil, 0; late {
			c.finish(slow)
		} else {
			c.finish(gone)
		}
		c.mu.Unlock()
		if !late {
			_ = c.ws.CloseNow()
			return
		}
		rest := c.end.last()
		if begun || n > 0 {
			rest = slices.Concat(b[n:], rest)
		}
		c.part(rest)
		return
	}
}

// finish begins the end of the connection: nothing more is taken from it or queued for it. What is queued still goes out,
// unless the reader is slow. The caller has c.mu.
func (c *conn) finish(e ending) {
	if c.end != nil {
		return
	}
	c.end, c.until, c.left = &e, time.Now().Add(c.hub.Linger), make(chan struct{})
	if c.deaf {
		close(c.left)
	}
	if e.code == CloseSlow || e == gone {
		kept := 0
		if c.begun {
			kept = 1 // it has to come before anything else
		}
		c.queue, c.waiting = c.queue[:kept], 0
		c.until = time.Now().Add(min(parting, c.hub.Linger))
		if c.wire != nil {
			_ = c.wire.SetWriteDeadline(time.Now()) // who waits for room waits no longer
		}
	}
	if e.name != "" {
		b := e.last()
		c.queue, c.waiting = append(c.queue, b), c.waiting+len(b)
	}
	c.cut()
	c.hub.work.Go(func() { c.guarded(func() { c.hub.forget(c, e) }) })
	c.write()
}

// over ends the connection.
func (c *conn) over(e ending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finish(e)
}

const (
	parting  = 500 * time.Millisecond // how long a reader that was too slow has to answer the close frame before the connection is cut
	keepTime = 30 * time.Second       // how long the kernel may offer it the close frame after that
	overfull = 128 << 10              // bytes, generously, by which Linux fills a buffer over its bound: a segment that it has begun
)

// part says goodbye, after what has to come before it where somebody did not read in time. Whoever does not answer is left.
//
// Somebody who reads nothing has a full buffer. It is made larger by what is left to say: the kernel keeps that, and goes
// on offering it when the connection is gone here, so that who reads on in time learns why. A frame of which more is left
// than the system lets a buffer grow is cut in the middle, and then nothing can be told any more.
func (c *conn) part(rest []byte) {
	c.mu.Lock()
	e, until, left := *c.end, c.until, c.left
	c.mu.Unlock()
	if e != gone {
		b := slices.Concat(rest, goodbye(e.code, e.name))
		if rest != nil {
			c.wire.room(4*c.hub.SendBuffer + overfull + 2*len(b))
			c.wire.keep(keepTime)
			if least := time.Now().Add(min(parting, c.hub.Linger)); until.Before(least) {
				until = least
			}
		}
		if _, err := c.wire.write(b, until, true); err == nil {
			late := time.NewTimer(time.Until(until))
			defer late.Stop()
			select {
			case <-left:
			case <-late.C:
			}
		}
	}
	_ = c.ws.CloseNow()
}

// gotPing answers a ping, as everything is said: without waiting. One that came too fast is not answered.
func (c *conn) gotPing(_ context.Context, payload []byte) bool {
	c.wire.came = 0
	if c.paced() {
		c.put(control(opPong, payload))
	}
	return false // the library need not
}

// gotPong notes that somebody is there. Only a pong that nobody asked for counts as a frame: what was asked for must not end
// somebody who says much.
func (c *conn) gotPong(context.Context, []byte) {
	c.wire.came = 0
	c.mu.Lock()
	asked := c.pinging
	c.pinging, c.ping = false, c.hub.Now().Add(c.hub.PingEvery)
	c.mu.Unlock()
	if !asked {
		c.paced()
	}
}

// paced counts a frame of any kind that came, and reports whether it came in time: for its connection, and for all connections of
// the account. Who goes on sending too fast is ended.
func (c *conn) paced() bool {
	c.mu.Lock()
	shared := c.shared
	c.mu.Unlock()
	now := c.hub.Now()
	if c.pace.AllowN(now, 1) && (shared == nil || shared.AllowN(now, 1)) {
		c.refused = 0
		return true
	}
	if c.refused++; c.refused > c.hub.MaxRefused {
		c.over(tooMany)
	}
	return false
}

// pinged asks whether somebody is there when it is time to, and ends the connection if nobody was. The caller has c.mu.
func (c *conn) pinged(now time.Time) {
	switch {
	case now.Before(c.ping):
	case !c.pinging && !c.busy:
		c.pinging, c.ping = true, now.Add(c.hub.PongTime)
		c.push(ping)
	case c.busy || c.writing:
		// A reader that works on a frame reads no pongs; and who does not read what is written is slow, not silent.
		c.pinging, c.ping = false, now.Add(c.hub.PingEvery)
	default:
		c.finish(unresponsive)
	}
}

var ping = control(opPing, nil)

// guarded does something for the connection. Should that panic, the connection ends, and nothing else does.
func (c *conn) guarded(do func()) {
	defer func() {
		if p := recover(); p != nil {
			c.hub.panicked(p, "request_id", c.from.RequestID)
			c.over(broken)
		}
	}()
	do()
}

// read takes frames until the connection ends.
func (c *conn) read() {
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.deaf = true
		if c.left != nil {
			close(c.left)
		}
		c.finish(gone)
	}()
	for {
		kind, r, err := c.ws.Reader(context.Background())
		if err != nil {
			c.unread(err)
			return
		}
		raw, err := io.ReadAll(io.LimitReader(r, int64(c.hub.MaxFrame)+1))
		if err != nil {
			c.unread(err)
			return
		}
		c.wire.came = 0
		c.hub.meters.in.Inc()
		switch {
		case kind != websocket.MessageText:
			c.over(notText)
		case len(raw) > c.hub.MaxFrame:
			c.over(tooLarge)
		case !utf8.Valid(raw):
			c.over(badFrame)
		default:
			c.aside(func() { c.take(raw) }) // once it ends, what comes is only read
			continue
		}
		// The writer says goodbye. A connection that is closed with unread bytes loses what was sent last, so they are read.
		c.wire.most = 0
		for err == nil {
			if _, err = io.Copy(io.Discard, r); err == nil {
				_, r, err = c.ws.Reader(context.Background())
			}
		}
		return
	}
}

// unread tells a client what the library did not: that what it sent is no frame. Who has left is told nothing.
func (c *conn) unread(err error) {
	c.wire.most = 0
	var lost *net.OpError
	if errors.Is(err, errOverlong) {
		c.over(tooLarge)
		_, _ = io.Copy(io.Discard, c.wire)
		return
	}
	if websocket.CloseStatus(err) != -1 || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.As(err, &lost) {
		return
	}
	c.over(badFrame)
	_, _ = io.Copy(io.Discard, c.wire) // a connection that is closed with unread bytes loses what was sent last
}

// take works on one frame.
func (c *conn) take(raw []byte) {
	c.mu.Lock()
	ending, signedIn := c.end != nil, c.actor.Account != ""
	c.busy = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.busy = false
		c.mu.Unlock()
	}()
	if ending {
		return
	}
	f, ok := parse(raw, c.hub.Words.Check)
	if !ok {
		c.over(badFrame)
		return
	}
	if !c.paced() {
		c.put(refusal(f.ID, fault.New(fault.Throttled, "live", "throttled", "too many frames: slow down").RetryAfter(time.Second)))
		return
	}
	if !signedIn && f.Type != "auth" {
		c.over(unsigned)
		return
	}
	ctx, cancel := context.WithTimeout(c.life, c.hub.ActionTime)
	defer cancel()
	if err := c.act(ctx, f); err != nil {
		if c.life.Err() != nil {
			return
		}
		err = timely(ctx, err)
		if fault.Is(err, fault.Internal) {
			c.hub.Log.Error("frame failed", "type", known(f.Type), "code", fault.CodeOf(err), "error", err.Error(), "request_id", c.from.RequestID)
		}
		c.put(refusal(f.ID, err))
	}
}

// timely says so where an error is that time was up.
func timely(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fault.New(fault.Unavailable, "live", "timed_out", "the server gave up: it took too long").With(err)
	}
	return err
}

// aside does something on a stack of its own, and waits for it. A stack that had to grow shrinks late and by little, and
// the reader keeps its own for as long as the connection lives: half of what an idle connection holds.
func (c *conn) aside(do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.guarded(do)
	}()
	<-done
}

// panicked tells the operator of a defect. What the panic says may be what somebody wrote: only where it was is told,
// and what the runtime found.
func (h *Hub) panicked(p any, more ...any) {
	what := fmt.Sprintf("%T", p)
	if e, ok := p.(runtime.Error); ok {
		what = e.Error()
	}
	h.Log.Error("panic in the live door", append(more, "panic", what, "stack", string(debug.Stack()))...)
}

// known keeps invented types out of logs.
func known(kind string) string {
	switch kind {
	case "join_room", "leave_room", "typing", "send_message", "stop_turn", "auth", "ping":
		return kind
	}
	return "other"
}

// who returns who is connected.
func (c *conn) who() (ident.Actor, ident.TenantID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.actor, c.tenant
}

func (c *conn) person() Person {
	a, _ := c.who()
	return Person{UserID: string(a.Account), Name: a.Name}
}
