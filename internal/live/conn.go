package live

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
	"golang.org/x/time/rate"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// conn is one connection. Its reader is a goroutine for as long as it lives; its writer is one while there is something
// to write, since most connections are idle most of the time.
type conn struct {
	hub    *Hub
	ws     *websocket.Conn
	wire   net.Conn
	from   account.Origin
	number uint64 // names it in typing signals
	pace   *rate.Limiter
	life   context.Context //nolint:containedctx // ends with the connection; nobody else owns it
	cut    context.CancelFunc

	// Of the reader alone.
	refused int // frames in a row that came too fast

	mu      sync.Mutex
	actor   ident.Actor // zero until it has signed in
	tenant  ident.TenantID
	expires time.Time // when it has to have signed in, or renewed that
	rooms   map[string]*room
	looking bool   // a look at what it may see waits to begin
	access  uint64 // grows whenever access has to be looked at again
	seen    map[string]time.Time
	typing  map[string]bool
	check   time.Time // when session and rooms are looked at again, whatever was heard

	queue   [][]byte
	waiting int       // bytes in queue
	since   time.Time // when the write under way began; zero: none is
	writing bool
	end     *ending
	ping    time.Time
	pinging bool
	busy    bool // the reader works on a frame, so it reads no pong
	stops   int  // stop_turn frames that are being worked on
}

// taker hands the network connection over, and keeps it: what the kernel buffers for a slow reader has to be small.
type taker struct {
	http.ResponseWriter
	wire net.Conn
	size int
}

// Hijack implements http.Hijacker.
func (t *taker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	wire, rw, err := http.NewResponseController(t.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	t.wire = wire
	if tcp, ok := wire.(interface{ SetWriteBuffer(bytes int) error }); ok {
		_ = tcp.SetWriteBuffer(t.size) // what cannot be set is bounded by the time of a write
	}
	return wire, rw, nil
}

// put queues a frame, without waiting. A connection for which too much waits has a reader that is too slow: it ends, and
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

// putAll queues what somebody gets who joins: it is bounded by itself, and goes out whole unless too much waits already.
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

// push queues a frame. The caller has c.mu.
func (c *conn) push(b []byte) {
	c.queue = append(c.queue, b)
	c.waiting += len(b)
	c.write()
}

// write starts the writer unless it is at work. The caller has c.mu.
func (c *conn) write() {
	if !c.writing {
		c.writing = true
		c.hub.work.Go(c.writer)
	}
}

// writer writes what is queued, then the close frame if this is the end.
func (c *conn) writer() {
	for {
		c.mu.Lock()
		if len(c.queue) == 0 {
			c.since = time.Time{}
			if c.end == nil {
				c.writing, c.queue = false, nil
				_ = c.wire.SetWriteDeadline(time.Time{})
				c.mu.Unlock()
				return
			}
			e := *c.end
			c.mu.Unlock()
			c.close(e) // nobody writes after this
			return
		}
		b := c.queue[0]
		c.queue[0] = nil
		c.queue = c.queue[1:]
		c.waiting -= len(b)
		c.since = c.hub.Now()
		_ = c.wire.SetWriteDeadline(time.Now().Add(c.hub.WriteTime + c.hub.Linger))
		c.mu.Unlock()
		// The context has no end: a write that is given up half-way could be followed by nothing, not even by a close frame.
		err := c.ws.Write(context.Background(), websocket.MessageText, b)
		if err != nil {
			c.mu.Lock()
			c.queue, c.waiting = nil, 0
			c.finish(gone)
			c.mu.Unlock()
			_ = c.ws.CloseNow()
			return
		}
		c.hub.meters.out.Inc()
	}
}

// finish begins the end of the connection: nothing more is taken from it or queued for it. What is queued still goes out,
// unless the reader is slow. The caller has c.mu.
func (c *conn) finish(e ending) {
	if c.end != nil {
		return
	}
	c.end = &e
	if e.code == CloseSlow {
		c.queue, c.waiting = nil, 0
	} else if e.name != "" {
		b := e.last()
		c.queue, c.waiting = append(c.queue, b), c.waiting+len(b)
	}
	c.cut()
	c.hub.work.Go(func() { c.hub.forget(c, e) })
	c.write()
}

// over ends the connection.
func (c *conn) over(e ending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finish(e)
}

// close says goodbye. Whoever does not answer is left.
func (c *conn) close(e ending) {
	if e.code == websocket.StatusNormalClosure && e.name == "" {
		_ = c.ws.CloseNow()
		return
	}
	// The reader may be in the middle of a frame that never ends, and so may the client.
	_ = c.wire.SetDeadline(time.Now().Add(c.hub.Linger))
	_ = c.ws.Close(e.code, e.name)
}

// read takes frames until the connection ends.
func (c *conn) read() {
	defer c.over(gone)
	defer func() {
		if p := recover(); p != nil {
			c.hub.Log.Error("panic in a connection", "panic", p, "request_id", c.from.RequestID)
			c.over(broken)
		}
	}()
	for {
		kind, r, err := c.ws.Reader(context.Background())
		if err != nil {
			return
		}
		raw, err := io.ReadAll(io.LimitReader(r, int64(c.hub.MaxFrame)+1))
		if err != nil {
			return
		}
		c.hub.meters.in.Inc()
		switch {
		case kind != websocket.MessageText:
			c.over(notText)
		case len(raw) > c.hub.MaxFrame:
			c.over(tooLarge)
		case !utf8.Valid(raw):
			c.over(badFrame)
		default:
			c.take(raw)
			continue
		}
		// The writer says goodbye. A connection that is closed with unread bytes loses what was sent last, so they are read.
		for err == nil {
			if _, err = io.Copy(io.Discard, r); err == nil {
				_, r, err = c.ws.Reader(context.Background())
			}
		}
		return
	}
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
	if !c.pace.AllowN(c.hub.Now(), 1) {
		if c.refused++; c.refused > c.hub.MaxRefused {
			c.over(tooMany)
			return
		}
		c.put(refusal(f.ID, fault.New(fault.Throttled, "live", "throttled", "too many frames: slow down").RetryAfter(time.Second)))
		return
	}
	c.refused = 0
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
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fault.New(fault.Unavailable, "live", "timed_out", "the server gave up: it took too long").With(err)
		}
		if fault.Is(err, fault.Internal) {
			c.hub.Log.Error("frame failed", "type", known(f.Type), "code", fault.CodeOf(err), "error", err.Error(), "request_id", c.from.RequestID)
		}
		c.put(refusal(f.ID, err))
	}
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
