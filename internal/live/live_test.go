package live_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"claude-memory-backend/internal/live"
)

func TestTwoSocketsInARoom(t *testing.T) {
	h := newHouse(t, nil)
	ada := h.user("ada")
	conv := ada.make("/conversations", map[string]any{"title": "Night watch"})
	one, two := ada.connect(), ada.connect()
	one.join(conv)
	seq := two.join(conv)
	if seq == 0 {
		t.Error("the room has no seq")
	}

	one.send("typing", map[string]any{"room_id": conv, "is_typing": true})
	if f := two.next("typing"); f.text("user_id") != ada.id || f.text("room_id") != conv || f.field("is_typing") != true {
		t.Errorf("%s", f.Data)
	}

	one.sendAs("send_message", "m1", map[string]any{"room_id": conv, "content": "#say a lamp is lit"})
	const answer = "[scripted] a lamp is lit"
	for name, s := range map[string]*socket{"the sender": one, "the other": two} {
		text, started, last := "", false, seq
		for done := false; !done; {
			f := s.next("event", "message.delta", "message.accepted")
			switch {
			case f.Type == "message.accepted":
				if string(f.ID) != `"m1"` || f.field("turn") == nil || s != one {
					t.Errorf("%s: %s %s", name, f.ID, f.Data)
				}
			case f.Type == "message.delta":
				if !started {
					t.Errorf("%s: a piece before the turn began", name)
				}
				if f.number("offset") != len(text) {
					t.Errorf("%s: offset %d, have %d", name, f.number("offset"), len(text))
				}
				text += f.text("text")
			default:
				if f.number("seq") != last+1 || f.text("room_id") != conv {
					t.Errorf("%s: %s after %d", name, f.Data, last)
				}
				last = f.number("seq")
				started = started || f.text("type") == "turn.started"
				done = f.text("type") == "turn.completed"
				if f.text("type") == "message.completed" && text != answer {
					t.Errorf("%s: the message ended with %q", name, text)
				}
			}
		}
	}
}

func TestLeaving(t *testing.T) {
	h := newHouse(t, nil)
	ada := h.user("ada")
	conv := ada.make("/conversations", map[string]any{})
	s := ada.connect()
	s.join(conv)
	s.sendAs("leave_room", "l", map[string]any{"room_id": conv})
	if f := s.next("room_left"); f.text("reason") != "left" || string(f.ID) != `"l"` {
		t.Errorf("%s", f.Data)
	}
	s.send("typing", map[string]any{"room_id": conv, "is_typing": true})
	s.next("error").refused(t, "room_not_joined")
	s.sendAs("ping", "p", nil)
	if f := s.next("pong"); string(f.ID) != `"p"` {
		t.Errorf("%s", f.ID)
	}
}

func TestStrangersSeeNothing(t *testing.T) {
	h := newHouse(t, nil)
	ada, bob := h.user("ada"), h.user("bob")
	conv := ada.make("/conversations", map[string]any{})
	project := ada.make("/projects", map[string]any{"name": "Ada's"})
	s := bob.connect()
	for _, room := range []string{conv, project, "conv_nonsense", "prj_06f4k3z9c8tqv5m2yb7n1x0d4e", "", "usr_1", strings.ToUpper(conv)} {
		s.send("join_room", map[string]any{"room_id": room})
		s.next("error").refused(t, "not_found")
	}
	s.send("send_message", map[string]any{"room_id": conv, "content": "hello"})
	s.next("error").refused(t, "not_found")
	s.send("stop_turn", map[string]any{"room_id": conv, "turn_id": "turn_06f4k3z9c8tqv5m2yb7n1x0d4e"})
	s.next("error").refused(t, "not_found")
}

func TestDoors(t *testing.T) {
	h := newHouse(t, nil)
	h.addNode(nil)
	ada := h.user("ada")
	open := func(node int, query string, headers ...string) int {
		t.Helper()
		header := http.Header{}
		for i := 0; i+1 < len(headers); i += 2 {
			header.Add(headers[i], headers[i+1])
		}
		s, status := h.dial(node, query, header)
		if s != nil {
			s.drop()
		}
		return status
	}
	used := ada.ticket()
	for _, c := range []struct {
		name  string
		want  int
		query string
		head  []string
	}{
		{"a ticket", 101, "?ticket=" + used, nil},
		{"a used ticket", 401, "?ticket=" + used, nil},
		{"a spelling of a used ticket", 401, "?ticket=" + used + "%0A", nil},
		{"a token", 101, "?token=" + ada.token, nil},
		{"a bad token", 401, "?token=" + ada.token + "x", nil},
		{"an empty token", 401, "?token=", nil},
		{"an empty ticket", 401, "?ticket=", nil},
		{"a token as a ticket", 401, "?ticket=" + ada.token, nil},
		{"a ticket as a token", 401, "?token=" + ada.ticket(), nil},
		{"both", 400, "?ticket=" + ada.ticket() + "&token=" + ada.token, nil},
		{"the server's own origin", 101, "?token=" + ada.token, []string{"Origin", h.nodes[0].server.URL}},
		{"an allowed origin", 101, "?token=" + ada.token, []string{"Origin", "https://app.example"}},
		{"another origin", 403, "?token=" + ada.token, []string{"Origin", "https://evil.example"}},
		{"an allowed name elsewhere", 403, "?token=" + ada.token, []string{"Origin", "http://app.example"}},
		{"an allowed name within another", 403, "?token=" + ada.token, []string{"Origin", "https://app.example.evil"}},
		{"no origin's page", 403, "?token=" + ada.token, []string{"Origin", "null"}},
		{"a cookie and another origin", 403, "", []string{"Origin", "https://evil.example", "Cookie", "__Secure-memory_access=" + ada.token}},
	} {
		if got := open(0, c.query, c.head...); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	other := ada.ticket()
	if got := open(1, "?ticket="+other); got != 101 {
		t.Errorf("a ticket on another node: %d", got)
	}
	for node := range h.nodes {
		if got := open(node, "?ticket="+other); got != 401 {
			t.Errorf("a used ticket on node %d: %d", node, got)
		}
	}
	var problem struct{ Code string }
	(&user{h: h}).call(0, "GET", "/ws", nil, 401, &problem)
	ada.call(0, "GET", "/ws?ticket="+ada.ticket(), nil, 426, &problem)
	if problem.Code != "upgrade_required" {
		t.Errorf("%v", problem)
	}
	for _, secret := range []string{used, other, ada.token} {
		if strings.Contains(h.log.String(), secret) {
			t.Error("a ticket or token is in the log")
		}
	}
}

func TestTheFirstFrameSignsIn(t *testing.T) {
	h := newHouse(t, nil)
	ada := h.user("ada")
	s, _ := h.dial(0, "", nil)
	s.sendAs("auth", "a", map[string]any{"token": ada.token})
	if f := s.next("connected"); f.text("user_id") != ada.id || string(f.ID) != `"a"` {
		t.Errorf("%s", f.Data)
	}
	s.join(ada.make("/conversations", map[string]any{}))

	for name, first := range map[string]string{
		"another frame": `{"type":"ping"}`,
		"a join":        `{"type":"join_room","data":{"room_id":"conv_1"}}`,
		"a bad token":   `{"type":"auth","data":{"token":"x"}}`,
	} {
		s, _ := h.dial(0, "", nil)
		s.write(first)
		if code := s.ends(); code != live.CloseSignedOut {
			t.Errorf("%s: %d", name, code)
		}
	}
	s, _ = h.dial(0, "", http.Header{"Cookie": {"__Secure-memory_access=" + ada.token}})
	s.write(`{"type":"ping"}`)
	if code := s.ends(); code != live.CloseSignedOut {
		t.Errorf("a cookie: %d", code)
	}
}

func TestWhoNeverSignsInIsLeft(t *testing.T) {
	h := newHouse(t, func(c *live.Config) { c.AuthTime = 1 })
	s, _ := h.dial(0, "", nil)
	if code := s.ends(); code != live.CloseSignedOut {
		t.Errorf("%d", code)
	}
}

func TestBadFrames(t *testing.T) {
	h := newHouse(t, nil)
	ada := h.user("ada")
	for name, c := range map[string]struct {
		kind websocket.MessageType
		raw  string
		want websocket.StatusCode
	}{
		"no JSON":            {websocket.MessageText, `{`, live.CloseBadFrame},
		"nothing":            {websocket.MessageText, ``, live.CloseBadFrame},
		"an array":           {websocket.MessageText, `[]`, live.CloseBadFrame},
		"no type":            {websocket.MessageText, `{"data":{}}`, live.CloseBadFrame},
		"a type twice":       {websocket.MessageText, `{"type":"ping","type":"auth"}`, live.CloseBadFrame},
		"a type, shouted":    {websocket.MessageText, `{"Type":"ping"}`, live.CloseBadFrame},
		"an id that is deep": {websocket.MessageText, `{"type":"ping","id":{}}`, live.CloseBadFrame},
		"not UTF-8":          {websocket.MessageText, "{\"type\":\"\xff\"}", live.CloseBadFrame},
		"deep":               {websocket.MessageText, `{"type":"ping","data":` + strings.Repeat("[", 20_000), live.CloseBadFrame},
		"deep and whole":     {websocket.MessageText, `{"type":"ping","data":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}`, live.CloseBadFrame},
		"huge":               {websocket.MessageText, `{"type":"ping","data":"` + strings.Repeat("x", 1<<20) + `"}`, live.CloseTooLarge},
		"binary":             {websocket.MessageBinary, `{"type":"ping"}`, live.CloseNotText},
	} {
		t.Run(name, func(t *testing.T) {
			s := ada.connect()
			if err := s.ws.Write(t.Context(), c.kind, []byte(c.raw)); err != nil && !isClosed(err) {
				t.Fatal(err)
			}
			if code := s.ends(); code != c.want {
				t.Errorf("%d, want %d", code, c.want)
			}
		})
	}
	s := ada.connect()
	for raw, code := range map[string]string{
		`{"type":"dance"}`:                                    "unknown_frame",
		`{"type":"join_room"}`:                                "not_found",
		`{"type":"join_room","data":{"room_id":1}}`:           "invalid_input",
		`{"type":"join_room","data":[]}`:                      "invalid_input",
		`{"type":"join_room","data":{"Room_id":"conv_abc"}}`:  "invalid_input",
		`{"type":"typing","data":{"room_id":"x","extra":1}}`:  "invalid_input",
		`{"type":"send_message","data":{"content":"hello"}}`:  "not_found",
		`{"type":"send_message"}`:                             "invalid_input",
		`{"type":"stop_turn","data":{"turn_id":"turn_1"}}`:    "not_found",
		`{"type":"auth","data":{"token":"x"}}`:                "token_invalid",
		`{"type":"leave_room","data":{"room_id":"conv_abc"}}`: "room_not_joined",
	} {
		s.write(raw)
		s.next("error").refused(t, code)
	}
}
