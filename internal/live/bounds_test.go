package live_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/live"
	"claude-memory-backend/internal/workspace"
)

// However many handshakes are under way at once, no more connections are let in than there may be; one that comes to nothing
// makes room.
func TestConnectionsAreCountedFromTheirHandshake(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *live.Config) { c.MaxConnections = 2 })
	ada, bob := h.user("ada"), h.user("bob")
	first := ada.connect()
	under, goOn := make(chan struct{}), make(chan struct{})
	slowly := func() {
		close(under)
		<-goOn
	}
	h.nodes[0].coming.Store(&slowly)
	tickets := []string{ada.ticket(), bob.ticket(), bob.ticket(), bob.ticket()}
	second := make(chan *socket, 1)
	go func() {
		s, _ := h.dial(0, "?ticket="+tickets[0], nil)
		second <- s
	}()
	<-under
	h.nodes[0].coming.Store(nil)
	if s, status := h.dial(0, "?ticket="+tickets[1], nil); s != nil || status != http.StatusServiceUnavailable {
		t.Errorf("one too many while another comes in: %d", status)
	}
	close(goOn)
	(<-second).next("connected")
	if _, status := h.dial(0, "?ticket="+tickets[2], nil); status != http.StatusServiceUnavailable {
		t.Errorf("one too many: %d", status)
	}
	first.drop()
	until(t, "forgotten", func() bool { return h.nodes[0].hub.Stats().Connections == 1 })
	if s, status := h.dial(0, "?ticket="+tickets[3], nil); s == nil {
		t.Errorf("where there is room: %d", status)
	}
}

// Pings, and pongs that nobody asked for, are frames as others are: who sends them without a pause is told to stop. Who answers
// pings and says much is not.
func TestControlFramesAreBounded(t *testing.T) {
	t.Parallel()
	for name, kind := range map[string]byte{"pings": 0x89, "pongs": 0x8a} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, func(c *live.Config) { c.Rate, c.Burst, c.MaxRefused, c.Linger = 0.001, 10, 20, patience })
			flood := bytes.Repeat(masked(kind, 0, ""), 10+20+1)
			got := h.user("ada").rawAll(flood)
			if said(got) != live.CloseTooMany {
				t.Errorf("%s end with %d", name, said(got))
			}
			if n := strings.Count(got, "\x8a\x00"); kind == 0x89 && n != 10 {
				t.Errorf("%d of %d pings were answered", n, 10)
			}
		})
	}
	t.Run("answers to the server's pings", func(t *testing.T) {
		h := newHouse(t, func(c *live.Config) { c.Rate, c.Burst, c.PingEvery, c.MaxRefused = 0.001, 1, time.Millisecond, 1 })
		c, in := h.user("ada").raw(nil)
		for pings := 0; pings < 5; { // the fifth comes to who is there after four answers
			head := make([]byte, 2)
			_, err := io.ReadFull(in, head)
			must(t, err)
			kind, length := head[0], int64(head[1])
			if length == 126 {
				_, err := io.ReadFull(in, head[:2])
				must(t, err)
				length = int64(head[0])<<8 | int64(head[1])
			}
			_, err = io.CopyN(io.Discard, in, length)
			must(t, err)
			switch kind {
			case 0x88:
				t.Fatalf("it ended after %d pings", pings)
			case 0x89:
				pings++
				_, err := c.Write(masked(0x8a, 0, ""))
				must(t, err)
			}
		}
	})
}

// Parts of a frame that hold nothing are no frames, and could come for ever: nobody else's would be read slower for it, but the
// server's time is everybody's.
func TestEmptyPartsAreBounded(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *live.Config) { c.MaxFrame, c.Linger = 1<<10, patience })
	ada := h.user("ada")
	const text, part, last = 0x01, 0x00, 0x80
	in := func(parts int) string {
		t.Helper()
		return ada.rawAll(slices.Concat(masked(text, 8, `{"type":`), bytes.Repeat(masked(part, 0, ""), parts), masked(last, 7, `"ping"}`),
			masked(0x88, 2, "\x03\xe8")))
	}
	if got := in(100); !strings.Contains(got, `"pong"`) || said(got) != websocket.StatusNormalClosure {
		t.Errorf("in a few parts: %d, %q", said(got), got)
	}
	if got := in(10_000); strings.Contains(got, `"pong"`) || said(got) != live.CloseTooLarge {
		t.Errorf("in many parts: %d", said(got))
	}
}

// An account's connections share what all of them may send; others notice nothing.
func TestFramesOfAnAccountAreBounded(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *live.Config) { c.Rate, c.Burst, c.AccountRate, c.AccountBurst = 0.001, 10, 0.001, 15 })
	ada, bob := h.user("ada"), h.user("bob")
	pongs := func(s *socket) (answered int) {
		t.Helper()
		for range 10 {
			s.send("ping", nil)
			if f := s.next("pong", "error"); f.Type == "pong" {
				answered++
			} else {
				f.refused(t, "throttled")
			}
		}
		return answered
	}
	first, second := ada.connect(), ada.connect()
	if a, b := pongs(first), pongs(second); a != 10 || b != 5 {
		t.Errorf("%d and %d pings of one account were answered", a, b)
	}
	if n := pongs(bob.connect()); n != 10 {
		t.Errorf("%d of somebody else's", n)
	}
	second.drop()
	first.drop()
}

// late does something when a token was verified, before anybody knows.
type late struct {
	live.Accounts
	do atomic.Pointer[func()]
}

func (l *late) Verify(ctx context.Context, token account.AccessToken, from account.Origin) (account.Identity, error) {
	who, err := l.Accounts.Verify(ctx, token, from)
	if f := l.do.Swap(nil); f != nil {
		(*f)()
	}
	return who, err
}

// A session that ends after it was looked at, and before its connection or stream is known, is found nevertheless, and not only
// when everything is looked at again.
func TestSessionsThatEndOnTheWayIn(t *testing.T) {
	t.Parallel()
	var verified late
	h := newHouse(t, func(c *live.Config) {
		verified.Accounts, c.Accounts, c.CheckEvery = c.Accounts, &verified, 24*time.Hour
	})
	ada := h.user("ada")
	// ends signs a session out, and returns when this node has heard of it: another socket of it is closed.
	ends := func(mine *user) *func() {
		witness, _ := h.dial(0, "?ticket="+mine.ticket(), nil)
		session := ident.SessionID(witness.next("connected").text("session_id"))
		f := func() {
			if err := h.accounts.Logout(context.Background(), ident.Actor{Account: ident.AccountID(mine.id), Session: session}); err != nil {
				t.Error(err)
			}
			<-witness.closed
		}
		return &f
	}
	for name, open := range map[string]func(mine *user) *socket{
		"with a ticket": func(mine *user) *socket {
			ticket := mine.ticket()
			h.nodes[0].letIn.Store(ends(mine))
			s, _ := h.dial(0, "?ticket="+ticket, nil)
			return s
		},
		"with the first frame": func(mine *user) *socket {
			end := ends(mine)
			s, _ := h.dial(0, "", nil)
			verified.do.Store(end)
			s.send("auth", map[string]any{"token": mine.token})
			return s
		},
		"with another session's token": func(mine *user) *socket {
			end := ends(mine)
			s := ada.again().connect()
			verified.do.Store(end)
			s.send("auth", map[string]any{"token": mine.token})
			return s
		},
	} {
		if code := open(ada.again()).ends(); code != live.CloseSignedOut {
			t.Errorf("%s: %d", name, code)
		}
	}
	mine := ada.again()
	h.nodes[0].letIn.Store(ends(mine))
	next := mine.stream(t.Context(), "/api/v1/events/stream", "")
	if _, kind, data := next(); kind != "" {
		t.Errorf("a stream goes on with %s %s", kind, data)
	}
}

// Who may not say anything in a room is not seen typing there; who may not any more has stopped.
func TestTypingNeedsARole(t *testing.T) {
	t.Parallel()
	h := newTheatre(t, "")
	watch, carl := h.people["ada"].connect(), h.people["carl"].connect()
	watch.join(h.conv)
	carl.join(h.conv)
	typing := map[string]any{"room_id": h.conv, "is_typing": true}
	carl.send("typing", typing)
	if f := watch.next("typing"); f.field("is_typing") != true {
		t.Errorf("%s", f.Data)
	}
	h.people["ada"].call(0, "PATCH", "/api/v1/projects/"+h.project+"/members/"+h.people["carl"].id, map[string]any{"role": access.Viewer}, 200, nil)
	if f := watch.next("typing"); f.field("is_typing") != false || f.text("user_id") != h.people["carl"].id {
		t.Errorf("%s", f.Data)
	}
	for _, is := range []bool{true, false} {
		typing["is_typing"] = is
		if f, _ := carl.answer("typing", h.conv, typing); f.text("code") != "role_forbids" {
			t.Errorf("a viewer types: %s %s", f.Type, f.Data)
		}
	}
}

// Who comes back again and again to what they missed has a share of the owner's database, in every way that there is, and is told to
// read again by other means when it is used up. Nobody else waits for them.
func TestReplaysHaveAShare(t *testing.T) {
	t.Parallel()
	g := newGuesthouse(t, func(c *live.Config) { c.Feeds.Share = workspace.ReplayShare{Rate: 0.001, Burst: 100} }, nil)
	for range 30 {
		g.ada.call(0, "PATCH", "/api/v1/conversations/"+g.conv, map[string]any{"importance_level": 4}, 200, nil)
		g.ada.call(0, "PATCH", "/api/v1/conversations/"+g.conv, map[string]any{"importance_level": 5}, 200, nil)
	}
	// replays joins from the beginning, and reports whether it hears what it missed.
	replays := func(u *user, room string) bool {
		t.Helper()
		s := u.connect()
		defer s.drop()
		s.send("join_room", map[string]any{"room_id": room, "after_seq": 0})
		joined := s.next("room_joined", "error")
		if joined.Type == "error" {
			t.Fatalf("%s", joined.Data)
		}
		return s.next("resync", "event").Type == "event"
	}
	if !replays(g.bob, g.conv) || !replays(g.bob, g.project) {
		t.Error("who has not read much hears no replay")
	}
	if replays(g.bob, g.conv) || replays(g.bob, g.project) {
		t.Error("a guest reads the owner's log without an end")
	}
	of := "?project_id=" + g.project
	next := g.bob.stream(t.Context(), "/api/v1/events/stream"+of, "0")
	if _, kind, _ := next(); kind != "resync" {
		t.Errorf("a stream of a guest begins with %s", kind)
	}
	var problem struct{ Code string }
	g.bob.call(0, "GET", "/api/v1/events"+of, nil, http.StatusTooManyRequests, &problem)
	if problem.Code != "throttled" {
		t.Errorf("%+v", problem)
	}
	// The owner has a share of their own, and pulls their own log as they like.
	if !replays(g.ada, g.conv) || !replays(g.ada, g.project) || replays(g.ada, g.project) {
		t.Error("the owner's share is not the owner's")
	}
	g.ada.call(0, "GET", "/api/v1/events", nil, http.StatusOK, nil)
	// Who missed nothing needs no share, and who is there goes on.
	s := g.bob.connect()
	seq := s.join(g.conv)
	s.send("join_room", map[string]any{"room_id": g.conv, "after_seq": seq})
	s.next("room_joined")
	g.secret()
	if f := s.next("resync", "event"); f.Type != "event" {
		t.Errorf("%s", f.Data)
	}
}
