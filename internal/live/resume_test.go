package live_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/live"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/workspace"
)

// reader is a client that keeps what it was told, as an application would: events by seq, texts by message.
type reader struct {
	t      *testing.T
	seq    int // the last that it knows
	events []int
	types  []string
	texts  map[string][]uint16
}

// take keeps one frame.
func (r *reader) take(f frame) {
	switch f.Type {
	case "event":
		n := f.number("seq")
		if n <= r.seq {
			r.t.Errorf("event %d comes again after %d", n, r.seq)
		}
		r.seq, r.events, r.types = n, append(r.events, n), append(r.types, f.text("type"))
	case "message.delta":
		id, at := f.text("message_id"), f.number("offset")
		if at > len(r.texts[id]) {
			r.t.Errorf("a gap: offset %d, have %d", at, len(r.texts[id]))
			return
		}
		r.texts[id] = append(r.texts[id][:at], utf16s(f.text("text"))...)
	case "resync":
		r.t.Error("a resync")
	}
}

func utf16s(s string) (out []uint16) {
	for _, c := range s {
		if c > 0xFFFF {
			c -= 0x10000
			out = append(out, uint16(0xD800+(c>>10)), uint16(0xDC00+(c&0x3FF)))
			continue
		}
		out = append(out, uint16(c))
	}
	return out
}

// Whoever loses the connection again and again, at any moment, ends with what somebody has who never did.
func TestResumeGivesTheExactTranscript(t *testing.T) {
	h := newHouse(t, nil)
	ada := h.user("ada")
	conv := ada.make("/conversations", map[string]any{})
	steady := ada.connect()
	begin := steady.join(conv)
	r := &reader{t: t, seq: begin, texts: map[string][]uint16{}}
	whole := &reader{t: t, seq: begin, texts: map[string][]uint16{}}
	const turns, cuts = 12, 200
	// The pieces come slowly enough for many cuts to be in the middle of one.
	asker := ada.connect()
	asked := 0
	ask := func() {
		asked++
		asker.send("send_message", map[string]any{"room_id": conv, "content": fmt.Sprintf("question %d: what about the harbour 🌊 and the lamp?", asked)})
	}
	ask()
	done := 0
	dice := rand.New(rand.NewPCG(1, 2))
	for cut := 0; cut < cuts || done < turns; cut++ {
		s := ada.connect()
		s.send("join_room", map[string]any{"room_id": conv, "after_seq": r.seq})
		for n := dice.IntN(12); ; n-- {
			f := s.next("room_joined", "event", "message.delta", "resync")
			r.take(f)
			if f.Type == "event" && f.text("type") == "message.completed" {
				if done++; done < turns {
					ask()
				}
			}
			if f.Type != "room_joined" && n <= 0 || done == turns || f.Type == "room_joined" && n <= 0 {
				break
			}
		}
		s.drop()
	}
	for slices.Index(whole.types, "conversation.titled") < 0 || count(whole.types, "message.completed") < turns {
		whole.take(steady.next("event", "message.delta"))
	}
	last := ada.connect()
	last.send("join_room", map[string]any{"room_id": conv, "after_seq": r.seq})
	for r.seq < whole.seq {
		r.take(last.next("event", "message.delta"))
	}
	if !slices.Equal(r.events, whole.events) {
		t.Errorf("events %v, want %v", r.events, whole.events)
	}
	var list struct {
		Data []struct{ ID, Role, Content string }
	}
	ada.call(0, "GET", "/api/v1/conversations/"+conv+"/messages?limit=200", nil, 200, &list)
	answers := 0
	for _, m := range list.Data {
		if m.Role != "assistant" {
			continue
		}
		answers++
		for name, got := range map[string]*reader{"who was cut off": r, "who was not": whole} {
			if !slices.Equal(got.texts[m.ID], utf16s(m.Content)) {
				t.Errorf("%s has %d units of an answer, want %d", name, len(got.texts[m.ID]), len(utf16s(m.Content)))
			}
		}
	}
	if answers != turns {
		t.Errorf("%d answers", answers)
	}
}

func count(list []string, what string) (n int) {
	for _, s := range list {
		if s == what {
			n++
		}
	}
	return n
}

func TestWhoWasAwayTooLongIsToldToReadAgain(t *testing.T) {
	h := newHouse(t, func(c *live.Config) { c.MaxReplay = 3 })
	ada := h.user("ada")
	conv := ada.make("/conversations", map[string]any{})
	s := ada.connect()
	begin := s.join(conv)
	for range 4 {
		ada.call(0, "POST", "/api/v1/conversations/"+conv+"/messages", map[string]any{"content": "x", "reply": false}, 201, nil)
	}
	s.event("conversation.titled") // the fifth of them, which is made beside
	for after, resync := range map[int]bool{begin: true, begin + 1: true, begin + 2: false, begin + 100: true} {
		s := ada.connect()
		s.send("join_room", map[string]any{"room_id": conv, "after_seq": after})
		head := s.next("room_joined").number("seq")
		f := s.next("event", "resync")
		if (f.Type == "resync") != resync || resync && f.number("seq") != head || !resync && f.number("seq") != after+1 {
			t.Errorf("after %d of %d: %s %s", after, head, f.Type, f.Data)
		}
	}
}

// A client that does not read is let go, with a reason, and nobody else notices.
func TestSlowReadersAreDropped(t *testing.T) {
	h := newHouse(t, func(c *live.Config) {
		c.WriteTime, c.MaxWaiting, c.SendBuffer = 300*time.Millisecond, 64<<10, 4<<10
		c.Rate, c.Burst = 1e6, 1e6
	})
	ada := h.user("ada")
	conv := ada.make("/conversations", map[string]any{})
	quick := ada.connect()
	quick.join(conv)
	_, slow := h.stalled(ada, conv)
	sent := 0
	for over := false; !over; sent++ {
		if sent > 200_000 {
			t.Fatal("nothing fills the connection")
		}
		quick.send("ping", map[string]any{})
		quick.send("typing", map[string]any{"room_id": conv, "is_typing": true})
		quick.next("pong")
		over = h.nodes[0].hub.Stats().Connections == 1
	}
	// What it had not read is still there; then comes why it was let go.
	code := slow()
	if code != live.CloseSlow || !live.Reconnect(code) {
		t.Errorf("closed with %d after %d frames", code, sent)
	}
	quick.send("ping", map[string]any{})
	quick.next("pong")
	until(t, "counted", func() bool { return strings.Contains(h.metrics(), `memoryd_ws_closed_total{code="4508"} 1`) })
}

// stalled is a member of the room that reads nothing until the returned function is called, which returns how it ended.
func (h *house) stalled(u *user, room string) (*websocket.Conn, func() websocket.StatusCode) {
	h.t.Helper()
	s := u.dialVia(func(c net.Conn) net.Conn {
		if tcp, ok := c.(*net.TCPConn); ok {
			must(h.t, tcp.SetReadBuffer(4<<10))
		}
		return c
	})
	must(h.t, s.Write(h.t.Context(), websocket.MessageText, []byte(`{"type":"join_room","data":{"room_id":"`+room+`"}}`)))
	for {
		_, raw, err := s.Read(h.t.Context())
		must(h.t, err)
		if strings.Contains(string(raw), `"room_joined"`) {
			break
		}
	}
	return s, func() websocket.StatusCode {
		for {
			if _, _, err := s.Read(h.t.Context()); err != nil {
				return websocket.CloseStatus(err)
			}
		}
	}
}

// Whoever joins while much happens hears what was missed first, then what happened meanwhile, without a gap in between.
func TestJoiningWhileMuchHappens(t *testing.T) {
	h := newHouse(t, func(c *live.Config) {
		c.MaxReplay, c.MaxWaiting = 1e6, 64<<20
		c.Feeds.Share = workspace.ReplayShare{Rate: 1e9, Burst: 1e9} // how much is written meanwhile is not known
	})
	ada := h.user("ada")
	conv := ada.make("/conversations", map[string]any{})
	s := ada.connect()
	begin := s.join(conv)
	ctx, stop := context.WithCancel(t.Context())
	written := make(chan struct{})
	defer func() { stop(); <-written }()
	go func() {
		defer close(written)
		for ctx.Err() == nil {
			ada.call(0, "POST", "/api/v1/conversations/"+conv+"/messages", map[string]any{"content": "x", "reply": false}, 201, nil)
		}
	}()
	for range 30 {
		s := ada.connect()
		s.send("join_room", map[string]any{"room_id": conv, "after_seq": begin})
		head := s.next("room_joined", "event")
		if head.Type != "room_joined" {
			t.Fatalf("%s before room_joined", head.Data)
		}
		for seq := begin; seq < head.number("seq")+3; seq++ {
			if f := s.next("event"); f.number("seq") != seq+1 {
				t.Fatalf("%d after %d, joined at %d", f.number("seq"), seq, head.number("seq"))
			}
		}
		s.drop()
	}
}

// Whoever comes in at any moment of an answer has all of it when its end is told.
func TestWhoComesInTheMiddleHasTheWholeAnswer(t *testing.T) {
	h := newHouse(t, nil)
	ada := h.user("ada")
	conv := ada.make("/conversations", map[string]any{})
	steady := ada.connect()
	steady.join(conv)
	const words = 12
	for round := range 30 {
		steady.send("send_message", map[string]any{"room_id": conv, "content": fmt.Sprintf("#long %d", words)})
		steady.event("turn.started")
		ended := false
		for i := 0; i < round%(words+1) && !ended; i++ { // a busy machine makes fewer pieces of an answer
			f := steady.nextThat("piece", func(f frame) bool {
				return f.Type == "message.delta" || f.Type == "event" && f.text("type") == "turn.completed"
			})
			ended = f.Type == "event"
		}
		if ended {
			continue
		}
		s := ada.connect()
		head := s.join(conv)
		if steady.event("turn.completed").number("seq") <= head {
			s.drop() // it came too late
			continue
		}
		r := &reader{t: t, seq: head, texts: map[string][]uint16{}}
		for {
			f := s.next("message.delta", "event")
			r.take(f)
			if f.Type == "event" && f.text("type") == "turn.completed" {
				break
			}
		}
		for id, text := range r.texts {
			var list struct {
				Data []struct{ ID, Content string }
			}
			ada.call(0, "GET", "/api/v1/conversations/"+conv+"/messages?limit=2", nil, 200, &list)
			for _, m := range list.Data {
				if m.ID == id && !slices.Equal(text, utf16s(m.Content)) {
					t.Errorf("round %d: %d units of %d", round, len(text), len(utf16s(m.Content)))
				}
			}
		}
		if len(r.texts) != 1 {
			t.Errorf("round %d: %d texts", round, len(r.texts))
		}
		s.drop()
	}
}

// A turn's text comes once, before the first of the two events with which the turn ends, whichever of them that is: logs of
// earlier versions have them the other way round. Who heard the first has the text.
func TestTheTextComesBeforeTheEnd(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	ada := h.user("ada")
	conv := ada.make("/conversations", map[string]any{"title": "Told"})
	there := ada.connect()
	begin := there.join(conv)
	var x struct {
		Turn      struct{ ID string }
		Assistant struct{ ID string } `json:"assistant_message"`
	}
	ada.call(0, "POST", "/api/v1/conversations/"+conv+"/messages", map[string]any{"content": "#say yes"}, 201, &x)
	half := there.event("message.completed").number("seq")
	there.event("turn.completed")
	// As an earlier version told of an end that came late.
	a, _, err := h.store.FindAccount(t.Context(), ident.AccountID(ada.id))
	must(t, err)
	ws, err := h.pool.Acquire(t.Context(), ident.System(""), a.Tenant)
	must(t, err)
	defer ws.Release()
	facts := map[string]any{"conversation_id": conv, "turn_id": x.Turn.ID, "message_id": x.Assistant.ID}
	ch := event.NewChange(ident.Actor{Account: ident.AccountID(ada.id)}, time.Now())
	ch.Add("turn.stopped", x.Turn.ID, facts)
	ch.Add("message.completed", x.Assistant.ID, facts)
	store, _ := ws.Events.(*sqlstore.TenantStore)
	must(t, store.Note(t.Context(), ch))
	h.bus.Publish(t.Context(), event.Signal{Topic: string(a.Tenant), Kind: event.Committed, Seq: event.Seq(half + 3)})
	hears := func(s *socket) (heard []string) {
		t.Helper()
		for {
			f := s.next("event", "message.delta", "resync")
			switch kind := f.text("type"); {
			case f.Type != "event":
				heard = append(heard, f.Type)
			case strings.HasPrefix(kind, "turn.") && kind != "turn.started" || kind == "message.completed":
				heard = append(heard, kind)
			}
			if f.number("seq") == half+3 {
				return heard
			}
		}
	}
	old := []string{"message.delta", "turn.stopped", "message.completed"}
	if got := hears(there); !slices.Equal(got, old) {
		t.Errorf("who is there hears %v", got)
	}
	for after, want := range map[int][]string{
		begin:    append([]string{"message.delta", "message.completed", "turn.completed"}, old...),
		half - 1: append([]string{"message.delta", "message.completed", "turn.completed"}, old...),
		half:     append([]string{"turn.completed"}, old...),
		half + 1: old,
		half + 2: old[2:],
	} {
		s := ada.connect()
		s.send("join_room", map[string]any{"room_id": conv, "after_seq": after})
		if got := hears(s); !slices.Equal(got, want) {
			t.Errorf("who comes back after %d (%d half way) hears %v, want %v", after, half, got, want)
		}
	}
}
