package live_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/live"
	"claude-memory-backend/internal/workspace"
)

// until waits for something that nothing tells of.
func until(t testing.TB, what string, is func() bool) {
	t.Helper()
	late := time.After(patience)
	for !is() {
		select {
		case <-late:
			t.Fatalf("not %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

// Who was too slow and reads on when the server has long let go of the connection still learns why.
func TestTheGoodbyeOutlivesTheConnection(t *testing.T) {
	h := newHouse(t, func(c *live.Config) {
		c.WriteTime, c.SendBuffer, c.MaxWaiting, c.Rate, c.Burst = 50*time.Millisecond, 4<<10, 64<<20, 1e6, 1e6
	})
	ada := h.user("ada")
	conv := ada.make("/conversations", map[string]any{})
	_, slow := h.stalled(ada, conv)
	hub := h.nodes[0].hub
	quick := ada.connect()
	quick.join(conv)
	for hub.Stats().Connections == 2 {
		quick.send("typing", map[string]any{"room_id": conv, "is_typing": true})
		quick.send("ping", nil)
		quick.next("pong")
	}
	until(t, "cut", func() bool { return hub.Parting() == 0 })
	if code := slow(); code != live.CloseSlow {
		t.Errorf("closed with %d", code)
	}
}

// Frames that find no room go out in order and whole, whoever writes them.
func TestFramesWaitInOrder(t *testing.T) {
	h := newHouse(t, func(c *live.Config) { c.SendBuffer, c.Rate, c.Burst = 4<<10, 1e6, 1e6 })
	ada := h.user("ada")
	conv := ada.make("/conversations", map[string]any{})
	ws, _ := h.stalled(ada, conv)
	const n, part = 3000, 500
	say := func(from int) {
		for i := range part {
			must(t, ws.Write(t.Context(), websocket.MessageText, fmt.Appendf(nil, `{"type":"ping","id":"%0150d"}`, from+i)))
		}
	}
	say(0)
	for i := range n {
		if i%part == 0 && i+part < n { // what was said first fills the connection, then there is room again
			say(i + part)
		}
		for {
			_, raw, err := ws.Read(t.Context())
			must(t, err)
			var f frame
			must(t, json.Unmarshal(raw, &f))
			if f.Type != "pong" {
				continue
			}
			if want := fmt.Sprintf(`"%0150d"`, i); string(f.ID) != want {
				t.Fatalf("%s, want %s", f.ID, want)
			}
			break
		}
	}
}

func TestPingsAreAnswered(t *testing.T) {
	h := newHouse(t, nil)
	s := h.user("ada").connect()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must(t, s.ws.Ping(ctx))
}

// raw opens a socket by hand, with bytes that follow the handshake at once.
func (u *user) raw(after []byte) (net.Conn, *bufio.Reader) {
	u.h.t.Helper()
	var d net.Dialer
	host := strings.TrimPrefix(u.h.nodes[0].server.URL, "http://")
	c, err := d.DialContext(u.h.t.Context(), "tcp", host)
	must(u.h.t, err)
	u.h.t.Cleanup(func() { _ = c.Close() })
	must(u.h.t, c.SetDeadline(time.Now().Add(patience)))
	head := "GET /ws?ticket=" + u.ticket() + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
	_, err = c.Write(append([]byte(head), after...))
	must(u.h.t, err)
	in := bufio.NewReader(c)
	w, err := http.ReadResponse(in, nil)
	must(u.h.t, err)
	if w.StatusCode != http.StatusSwitchingProtocols {
		u.h.t.Fatalf("refused with %d", w.StatusCode)
	}
	return c, in
}

// rawAll opens a socket by hand, says all that it ever says, and returns what comes.
func (u *user) rawAll(after []byte) string {
	u.h.t.Helper()
	c, in := u.raw(after)
	if c, ok := c.(*net.TCPConn); ok { // nobody waits for its answer to a close frame
		must(u.h.t, c.CloseWrite())
	}
	return rest(in)
}

// masked is a client's frame, with a mask that changes nothing. What begins with this byte is as long as it says, or not.
func masked(first, length byte, payload string) []byte {
	return append([]byte{first, 0x80 | length, 0, 0, 0, 0}, payload...)
}

// rest reads whatever comes until the connection ends.
func rest(in io.Reader) string {
	var b bytes.Buffer
	_, _ = io.Copy(&b, in)
	return b.String()
}

// said is the code of the close frame that ends it, 0 without one.
func said(got string) websocket.StatusCode {
	for i := len(got) - 4; i >= 0; i-- {
		if got[i] == 0x88 && i+2+int(got[i+1]) == len(got) {
			return websocket.StatusCode(got[i+2])<<8 | websocket.StatusCode(got[i+3])
		}
	}
	return 0
}

// Bytes that no proper client sends end the connection with a code, and leave nothing behind (the house looks at its end, and goleak
// at that of the package).
func TestBytesThatAreNoFrames(t *testing.T) {
	h := newHouse(t, nil)
	ada := h.user("ada")
	const early = `{"type":"ping","id":"early"}`
	_, in := ada.raw(append(masked(0x81, byte(len(early)), early), masked(0x88, 0, "")...))
	if got := rest(in); !strings.Contains(got, `"pong"`) || !strings.Contains(got, `"early"`) {
		t.Errorf("what came with the handshake: %q", got)
	}
	for name, b := range map[string][]byte{
		"no mask":                       {0x81, 2, '{', '}'},
		"reserved bits":                 masked(0xf1, 2, "{}"),
		"an unknown kind":               masked(0x83, 2, "{}"),
		"a continuation of nothing":     masked(0x80, 2, "{}"),
		"a ping in pieces":              masked(0x09, 2, "{}"),
		"a ping that is too long":       append([]byte{0x89, 0xfe, 0, 200}, make([]byte, 204)...),
		"a code that no close may have": masked(0x88, 2, "\x03\xed"),
		"a text within a text":          append(masked(0x01, 2, "{}"), masked(0x81, 2, "{}")...),
	} {
		t.Run(name, func(t *testing.T) {
			at := *ada
			house := *h
			at.h, house.t = &house, t
			_, in := at.raw(b)
			got := rest(in)
			if code := said(got); strings.Contains(got, `"pong"`) || code != websocket.StatusProtocolError && code != live.CloseBadFrame {
				t.Errorf("%d after %q", code, got)
			}
		})
	}
	for name, b := range map[string][]byte{
		"half a head":                  {0x81},
		"half a frame":                 masked(0x81, 100, "{"),
		"a frame of many gibibytes":    {0x81, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, '{'},
		"a frame with a negative size": {0x81, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, '{'},
		"pieces that never end":        masked(0x01, 2, "{}"),
	} {
		t.Run(name+", then gone", func(t *testing.T) {
			at := *ada
			house := *h
			at.h, house.t = &house, t
			c, _ := at.raw(b)
			must(t, c.Close())
		})
	}
	until(t, "forgotten", func() bool { return h.nodes[0].hub.Stats() == live.Stats{} && h.nodes[0].hub.Parting() == 0 })
}

// words does something once, when it is asked to show an event.
type words struct {
	live.Words
	event atomic.Pointer[func()]
	check atomic.Pointer[func()]
}

func (w *words) Event(e event.Event, room string) any {
	if f := w.event.Swap(nil); f != nil {
		(*f)()
	}
	return w.Words.Event(e, room)
}

func (w *words) Check(raw []byte) error {
	if f := w.check.Swap(nil); f != nil {
		(*f)()
	}
	return w.Words.Check(raw)
}

// What happens while somebody joins is held for it up to a bound. Beyond that it is told to read everything again.
func TestTooMuchHappensWhileJoining(t *testing.T) {
	w := &words{}
	h := newHouse(t, func(c *live.Config) { w.Words, c.Words, c.MaxWaiting = c.Words, w, 4<<10 })
	ada := h.user("ada")
	conv := ada.make("/conversations", map[string]any{"title": "Night watch"})
	say := func() {
		ada.call(0, "POST", "/api/v1/conversations/"+conv+"/messages", map[string]any{"content": "x", "reply": false}, 201, nil)
	}
	first := ada.connect()
	begin := first.join(conv)
	say()
	first.event("message.created")
	reached, on := make(chan struct{}), make(chan struct{})
	hold := func() { close(reached); <-on }
	w.event.Store(&hold)
	s := ada.connect()
	s.send("join_room", map[string]any{"room_id": conv, "after_seq": begin})
	<-reached
	var last int
	for range 20 { // more than 4 KiB
		say()
		last = first.event("message.created").number("seq")
	}
	close(on)
	if f := s.next("room_joined", "event"); f.Type != "room_joined" || f.number("seq") != last {
		t.Errorf("%s %s, want %d", f.Type, f.Data, last)
	}
	if f := s.next("resync", "event"); f.Type != "resync" || f.number("seq") != last {
		t.Errorf("%s %s, want %d", f.Type, f.Data, last)
	}
	say()
	if f := s.next("event"); f.number("seq") != last+1 {
		t.Errorf("%s after %d", f.Data, last)
	}
}

// When the end of an answer is told and its text cannot be read, whoever wants it is told to read it.
func TestAnEndWithoutItsText(t *testing.T) {
	g := newGuesthouse(t, nil, nil)
	s := g.ada.connect()
	s.join(g.conv)
	s.send("send_message", map[string]any{"room_id": g.conv, "content": "#say yes"})
	s.event("message.completed")
	end := s.event("turn.completed")
	var e event.Event
	must(t, json.Unmarshal(end.Data, &struct {
		Seq     *event.Seq `json:"seq"`
		Type    *string    `json:"type"`
		Subject *string    `json:"subject"`
	}{&e.Seq, &e.Type, &e.Subject}))
	e.Data = json.RawMessage(`{"conversation_id":"` + g.conv + `"}`)
	ws, err := g.pool.Acquire(t.Context(), ident.System(""), g.place.Tenant)
	must(t, err)
	defer ws.Release()
	never, cancel := context.WithCancel(t.Context())
	cancel()
	g.nodes[0].hub.TellOnceMore(never, g.conv, ws, e)
	s.nextThat("end once more", func(f frame) bool { return f.Type == "event" && f.number("seq") == int(e.Seq) })
	if f := s.next("resync", "event"); f.Type != "resync" || f.number("seq") != int(e.Seq) {
		t.Errorf("%s %s", f.Type, f.Data)
	}
}

// Whoever joins a room once more, and cannot, is in it no longer, and knows. It does not wait for whoever holds the log up.
func TestJoiningAgainInVain(t *testing.T) {
	t.Parallel()
	var feeds *workspace.Feeds
	// For all that it does, of which one thing takes as long.
	g := newGuesthouse(t, func(c *live.Config) { feeds, c.ActionTime = c.Feeds, 5*time.Second }, nil)
	s := g.ada.connect()
	s.join(g.conv)
	p := &plug{reached: make(chan struct{}), pulled: make(chan struct{})}
	_, leave, err := feeds.Listen(t.Context(), g.place.Tenant, p)
	must(t, err)
	defer leave()
	defer close(p.pulled)
	p.armed.Store(true)
	g.ada.make("/conversations", map[string]any{})
	<-p.reached
	s.sendAs("join_room", "again", map[string]any{"room_id": g.conv})
	if f := s.next("room_left", "room_joined"); f.text("room_id") != g.conv || f.text("reason") != "timed_out" {
		t.Errorf("%s %s", f.Type, f.Data)
	}
	if f := s.next("error"); f.text("code") != "timed_out" || string(f.ID) != `"again"` {
		t.Errorf("%s", f.Data)
	}
}

// fragile panics when it is told to, or waits.
type fragile struct {
	live.Accounts
	alive atomic.Pointer[func()]
}

func (f *fragile) Alive(ctx context.Context, a ident.Actor) error {
	if do := f.alive.Swap(nil); do != nil {
		(*do)()
	}
	return f.Accounts.Alive(ctx, a)
}

// A defect ends what it happens to, with a code, and nothing else; what was said is not in the log.
func TestPanicsEndOneConnection(t *testing.T) {
	w, f := &words{}, &fragile{}
	h := newHouse(t, func(c *live.Config) { w.Words, c.Words, f.Accounts, c.Accounts = c.Words, w, c.Accounts, f })
	ada, bob := h.user("ada"), h.user("bob")
	conv := ada.make("/conversations", map[string]any{})
	const secret = "what Ada said"
	broken := func() { panic(secret) }
	beside := bob.connect()
	s := ada.connect()
	w.check.Store(&broken)
	s.send("ping", nil)
	if code := s.ends(); code != live.CloseInternal {
		t.Errorf("in a frame: %d", code)
	}
	s = ada.connect()
	f.alive.Store(&broken)
	h.bus.Publish(t.Context(), event.Signal{Topic: event.AccessTopic(ident.AccountID(ada.id)), Kind: event.Access})
	if code := s.ends(); code != live.CloseInternal {
		t.Errorf("when it is looked whether it may go on: %d", code)
	}
	s = ada.connect()
	s.join(conv)
	w.event.Store(&broken)
	ada.call(0, "POST", "/api/v1/conversations/"+conv+"/messages", map[string]any{"content": "x", "reply": false}, 201, nil)
	if code := s.ends(); code != live.CloseInternal {
		t.Errorf("when its room is told something: %d", code)
	}
	s = ada.connect()
	s.join(conv)
	ada.call(0, "POST", "/api/v1/conversations/"+conv+"/messages", map[string]any{"content": "x", "reply": false}, 201, nil)
	s.event("message.created")
	beside.send("ping", nil)
	beside.next("pong")
	if got := h.log.String(); strings.Count(got, "panic in the live door") != 3 || strings.Contains(got, secret) {
		t.Errorf("the log: %s", got)
	}
}

// A stop does not wait for ever for what hears of no end.
func TestCloseLeavesBehindWhatDoesNotEnd(t *testing.T) {
	f := &fragile{}
	h := newHouse(t, func(c *live.Config) { f.Accounts, c.Accounts, c.CloseTime = c.Accounts, f, 10*time.Millisecond })
	ada := h.user("ada")
	s := ada.connect()
	reached, on := make(chan struct{}), make(chan struct{})
	hold := func() { close(reached); <-on }
	f.alive.Store(&hold)
	h.bus.Publish(t.Context(), event.Signal{Topic: event.AccessTopic(ident.AccountID(ada.id)), Kind: event.Access})
	<-reached
	now, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.nodes[0].hub.Close(now); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
	s.ends()
	close(on)
}
