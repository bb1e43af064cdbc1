package live_test

import (
	"bufio"
	"context"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/live"
	"claude-memory-backend/internal/sqlstore"
)

func TestSessionsEndTheirSockets(t *testing.T) {
	h := newHouse(t, nil)
	h.addNode(nil)
	ada := h.user("ada")
	var sessions struct {
		Data []struct {
			ID      string
			Current bool
		}
	}
	for name, end := range map[string]func(mine *user){
		"logout":     func(mine *user) { mine.call(0, "POST", "/api/v1/auth/logout", nil, 204, nil) },
		"logout-all": func(*user) { ada.call(0, "POST", "/api/v1/auth/logout-all", nil, 204, nil); *ada = *ada.again() },
		"revocation by another session": func(mine *user) {
			mine.call(0, "GET", "/api/v1/auth/sessions", nil, 200, &sessions)
			for _, s := range sessions.Data {
				if s.Current {
					ada.call(0, "DELETE", "/api/v1/auth/sessions/"+s.ID, nil, 204, nil)
				}
			}
		},
		"another password": func(*user) {
			ada.call(0, "POST", "/api/v1/auth/password", map[string]any{"current_password": password, "new_password": password + "!"}, 204, nil)
			ada.call(0, "POST", "/api/v1/auth/password", map[string]any{"current_password": password + "!", "new_password": password}, 204, nil)
		},
	} {
		mine := ada.again()
		here, there := mine.connectTo(0), mine.connectTo(1)
		end(mine)
		for node, s := range []*socket{here, there} {
			if code := s.ends(); code != live.CloseSignedOut {
				t.Errorf("%s, node %d: %d", name, node, code)
			}
		}
	}
	// The session that goes on keeps its socket.
	s := ada.connect()
	other := ada.again()
	other.call(0, "POST", "/api/v1/auth/logout", nil, 204, nil)
	s.send("ping", nil)
	s.next("pong")
}

func TestTokensExpire(t *testing.T) {
	h := newHouse(t, func(c *live.Config) { c.PingEvery = 24 * time.Hour }) // time that goes by is nobody's silence
	ada, bob := h.user("ada"), h.user("bob")
	silent, renewed, foreign := ada.connect(), ada.connect(), ada.connect()
	foreign.send("auth", map[string]any{"token": bob.token})
	if code := foreign.ends(); code != live.CloseSignedOut {
		t.Errorf("somebody else's token: %d", code)
	}
	h.pass(tokenLife / 2)
	fresh := ada.again()
	renewed.sendAs("auth", "again", map[string]any{"token": fresh.token})
	if f := renewed.next("connected"); string(f.ID) != `"again"` {
		t.Errorf("%s", f.Data)
	}
	h.pass(tokenLife/2 + time.Second)
	if f := silent.next("error"); f.text("code") != "token_expired" || f.field("reconnect") != false {
		t.Errorf("%s", f.Data)
	}
	if code := silent.ends(); code != live.CloseSignedOut {
		t.Errorf("%d", code)
	}
	renewed.send("ping", nil)
	renewed.next("pong")
	h.pass(tokenLife)
	if code := renewed.ends(); code != live.CloseSignedOut {
		t.Errorf("%d", code)
	}
}

func TestPresence(t *testing.T) {
	h := newHouse(t, nil)
	h.addNode(nil)
	ada := h.user("ada")
	project := ada.make("/projects", map[string]any{"name": "P"})
	one := ada.connectTo(0)
	one.sendAs("join_room", "j", map[string]any{"room_id": project})
	f := one.next("room_joined")
	if members, _ := f.field("members").([]any); len(members) != 1 || members[0].(map[string]any)["user_id"] != ada.id {
		t.Errorf("%s", f.Data)
	}
	// Somebody else, as another node says.
	say := func(op string) {
		h.bus.Publish(t.Context(), event.Signal{Topic: "room:" + project, Kind: event.Presence,
			Text: `{"node":"elsewhere","op":"` + op + `","people":[{"user_id":"usr_bob","name":"Bob"}]}`})
	}
	say("join")
	if f := one.next("presence"); f.text("user_id") != "usr_bob" || f.text("name") != "Bob" || f.text("state") != "online" || f.text("room_id") != project {
		t.Errorf("%s", f.Data)
	}
	two := ada.connectTo(1)
	two.join(project)
	say("here") // as that node answers who asks
	late := ada.connectTo(1)
	if f := two.next("presence"); f.text("user_id") != "usr_bob" {
		t.Errorf("%s", f.Data)
	}
	late.sendAs("join_room", "j", map[string]any{"room_id": project})
	if members, _ := late.next("room_joined").field("members").([]any); len(members) != 2 {
		t.Errorf("%v", members)
	}
	say("leave")
	if f := one.next("presence"); f.text("user_id") != "usr_bob" || f.text("state") != "offline" {
		t.Errorf("%s", f.Data)
	}
}

func TestNodesThatFallSilentTakeTheirPeopleAlong(t *testing.T) {
	h := newHouse(t, func(c *live.Config) { c.HereEvery = 20 * time.Millisecond })
	ada := h.user("ada")
	conv := ada.make("/conversations", map[string]any{})
	s := ada.connect()
	s.join(conv)
	h.bus.Publish(t.Context(), event.Signal{Topic: "room:" + conv, Kind: event.Presence,
		Text: `{"node":"elsewhere","op":"join","people":[{"user_id":"usr_bob","name":"Bob"}]}`})
	for _, want := range []string{"online", "offline"} {
		if f := s.next("presence"); f.text("state") != want {
			t.Errorf("%s", f.Data)
		}
	}
}

// A connection that is gone without a word is noticed, and what it was doing is over for the others.
func TestLostConnections(t *testing.T) {
	h := newHouse(t, func(c *live.Config) { c.PingEvery, c.PongTime = time.Minute, time.Minute })
	ada := h.user("ada")
	conv := ada.make("/conversations", map[string]any{})
	s := ada.connect()
	s.join(conv)
	ws, _ := h.stalled(ada, conv) // it reads nothing, so it answers no ping
	must(t, ws.Write(t.Context(), websocket.MessageText, []byte(`{"type":"typing","data":{"room_id":"`+conv+`","is_typing":true}}`)))
	for _, typing := range []bool{true, false} {
		if f := s.next("typing"); f.field("is_typing") != typing {
			t.Errorf("%s", f.Data)
		}
		if typing {
			h.pass(time.Minute) // both are asked whether somebody is there; one answers
			until(t, "answered", func() bool { return h.nodes[0].hub.Heard() == 1 })
			h.pass(time.Minute)
		}
	}
	// A connection is counted once it is over, which may be after the others have heard that its people are gone.
	until(t, "counted", func() bool { return strings.Contains(h.metrics(), `memoryd_ws_closed_total{code="`) })
	if !strings.Contains(h.metrics(), `memoryd_ws_closed_total{code="4504"} 1`) {
		t.Error("it was not the pings")
	}
}

func TestStoppingTellsToComeBack(t *testing.T) {
	h := newHouse(t, nil)
	ada := h.user("ada")
	s := ada.connect()
	s.join(ada.make("/conversations", map[string]any{}))
	go h.nodes[0].stop()
	f := s.next("error")
	if f.text("code") != "server_stopping" || f.field("reconnect") != true {
		t.Errorf("%s", f.Data)
	}
	if code := s.ends(); code != live.CloseStopping || !live.Reconnect(code) {
		t.Errorf("%d", code)
	}
}

func TestDeletedRoomsEnd(t *testing.T) {
	h := newHouse(t, nil)
	ada := h.user("ada")
	project := ada.make("/projects", map[string]any{"name": "P"})
	conv := ada.make("/conversations", map[string]any{"project_id": project})
	inside := ada.make("/conversations", map[string]any{"project_id": project})
	s := ada.connect()
	for _, room := range []string{project, conv, inside} {
		s.join(room)
	}
	ada.call(0, "DELETE", "/api/v1/conversations/"+conv, nil, 204, nil)
	left := func() string {
		f := s.next("room_left")
		return f.text("room_id") + " " + f.text("reason")
	}
	if got := left(); got != conv+" deleted" {
		t.Error(got)
	}
	ada.call(0, "DELETE", "/api/v1/projects/"+project+"?conversations=delete", nil, 204, nil)
	got := []string{left(), left()}
	slices.Sort(got)
	want := []string{inside + " no_access", project + " deleted"}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	s.send("typing", map[string]any{"room_id": conv, "is_typing": true})
	s.next("error").refused(t, "room_not_joined")
}

func TestAProjectHearsOfItsConversations(t *testing.T) {
	h := newHouse(t, nil)
	ada := h.user("ada")
	project := ada.make("/projects", map[string]any{"name": "P"})
	elsewhere := ada.make("/conversations", map[string]any{})
	s := ada.connect()
	s.join(project)
	conv := ada.make("/conversations", map[string]any{"project_id": project})
	ada.call(0, "POST", "/api/v1/conversations/"+elsewhere+"/messages", map[string]any{"content": "not here", "reply": false}, 201, nil)
	ada.call(0, "POST", "/api/v1/conversations/"+conv+"/messages", map[string]any{"content": "#say yes"}, 201, nil)
	ada.call(0, "PATCH", "/api/v1/conversations/"+conv, map[string]any{"project_id": nil}, 200, nil)
	ada.call(0, "PATCH", "/api/v1/projects/"+project, map[string]any{"name": "Q"}, 200, nil)
	var got []string
	for len(got) == 0 || got[len(got)-1] != "project.updated" {
		f := s.next("event", "message.delta")
		if f.Type != "event" || strings.Contains(string(f.Data), elsewhere) {
			t.Errorf("%s %s", f.Type, f.Data)
		}
		if kind := f.text("type"); kind != "conversation.titled" { // made beside, whenever it is done
			got = append(got, kind)
		}
	}
	want := []string{"conversation.created", "message.created", "turn.started", "message.completed", "turn.completed", "conversation.moved", "project.updated"}
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

func TestStoppingATurn(t *testing.T) {
	h := newHouse(t, nil)
	ada := h.user("ada")
	conv := ada.make("/conversations", map[string]any{})
	one, two := ada.connect(), ada.connect()
	one.join(conv)
	two.join(conv)
	one.send("send_message", map[string]any{"room_id": conv, "content": "#slow #long 1000"})
	turn := two.event("turn.started").text("subject")
	two.sendAs("stop_turn", "s", map[string]any{"turn_id": turn})
	f := two.next("turn")
	if state, _ := f.field("turn").(map[string]any); state["state"] != "stopped" || string(f.ID) != `"s"` {
		t.Errorf("%s", f.Data)
	}
	one.event("turn.stopped")
}

func TestARepeatIsTheSameMessage(t *testing.T) {
	h := newHouse(t, nil)
	ada := h.user("ada")
	conv := ada.make("/conversations", map[string]any{})
	s := ada.connect()
	var ids []string
	for range 2 {
		s.send("send_message", map[string]any{"room_id": conv, "content": "once", "reply": false, "idempotency_key": "k"})
		m, _ := s.next("message.accepted").field("user_message").(map[string]any)
		ids = append(ids, m["id"].(string))
	}
	if ids[0] != ids[1] {
		t.Errorf("%v", ids)
	}
	s.send("send_message", map[string]any{"room_id": conv, "content": "twice", "reply": false, "idempotency_key": "k"})
	s.next("error").refused(t, "idempotency_mismatch")
}

func TestBounds(t *testing.T) {
	h := newHouse(t, func(c *live.Config) {
		c.MaxRooms, c.MaxPerAccount, c.Rate, c.Burst, c.MaxRefused = 2, 2, 0.001, 10, 5
	})
	ada := h.user("ada")
	s := ada.connect()
	for range 2 {
		s.join(ada.make("/conversations", map[string]any{}))
	}
	s.send("join_room", map[string]any{"room_id": ada.make("/conversations", map[string]any{})})
	s.next("error").refused(t, "too_many_rooms")
	ada.connect()
	if _, status := h.dial(0, "?ticket="+ada.ticket(), nil); status != http.StatusTooManyRequests {
		t.Errorf("one connection too many: %d", status)
	}
	late, _ := h.dial(0, "", nil)
	late.send("auth", map[string]any{"token": ada.token})
	if code := late.ends(); code != live.CloseTooMany {
		t.Errorf("one connection too many, by its first frame: %d", code)
	}
	for range 20 {
		s.send("ping", nil)
	}
	s.nextThat("refusal", func(f frame) bool { return f.Type == "error" && f.text("code") == "throttled" })
	if code := s.ends(); code != live.CloseTooMany {
		t.Errorf("too many frames: %d", code)
	}
}

// stream reads Server-Sent Events: what it returns is called for each one that is no ping.
func (u *user) stream(ctx context.Context, path, last string) func() (id, kind, data string) {
	u.h.t.Helper()
	q, err := http.NewRequestWithContext(ctx, "GET", u.h.nodes[0].server.URL+path, nil)
	must(u.h.t, err)
	q.Header.Set("Authorization", "Bearer "+u.token)
	if last != "" {
		q.Header.Set("Last-Event-ID", last)
	}
	w, err := u.h.nodes[0].server.Client().Do(q)
	must(u.h.t, err)
	if w.StatusCode != 200 || w.Header.Get("Content-Type") != "text/event-stream" {
		u.h.t.Fatalf("%d %s", w.StatusCode, w.Header.Get("Content-Type"))
	}
	u.h.t.Cleanup(func() { _ = w.Body.Close() })
	lines := bufio.NewScanner(w.Body)
	return func() (id, kind, data string) {
		for lines.Scan() {
			switch name, value, _ := strings.Cut(lines.Text(), ": "); name {
			case "id":
				id = value
			case "event":
				kind = value
			case "data":
				data = value
			case "":
				if kind != "" && kind != "ping" {
					return id, kind, data
				}
				id, kind, data = "", "", ""
			}
		}
		return "", "", ""
	}
}

func TestEventStream(t *testing.T) {
	h := newHouse(t, nil)
	ada := h.user("ada")
	ctx, cancel := context.WithCancel(t.Context())
	next := ada.stream(ctx, "/api/v1/events/stream", "")
	conv := ada.make("/conversations", map[string]any{})
	id, kind, data := next()
	if kind != "conversation.created" || !strings.Contains(data, conv) || id == "" {
		t.Errorf("%s %s %s", id, kind, data)
	}
	cancel()
	ada.call(0, "POST", "/api/v1/conversations/"+conv+"/messages", map[string]any{"content": "missed", "reply": false}, 201, nil)
	next = ada.stream(t.Context(), "/api/v1/events/stream", id)
	if _, kind, _ := next(); kind != "message.created" {
		t.Errorf("after the gap: %s", kind)
	}
	far := ada.stream(t.Context(), "/api/v1/events/stream", "1000000")
	if _, kind, _ := far(); kind != "resync" {
		t.Errorf("a place that never was: %s", kind)
	}
	project := ada.make("/projects", map[string]any{"name": "P"})
	only := ada.stream(t.Context(), "/api/v1/events/stream?project_id="+project, "0")
	if _, kind, _ := only(); kind != "project.created" {
		t.Errorf("of the project: %s", kind)
	}
	ada.call(0, "POST", "/api/v1/auth/logout", nil, 204, nil)
	for _, s := range []func() (string, string, string){next, only} {
		for kind := "x"; kind != ""; {
			_, kind, _ = s()
		}
	}
}

// evasive cannot say for a while whether sessions are alive, and then says that they are not.
type evasive struct {
	live.Accounts
	away, asked atomic.Int32
}

func (f *evasive) Alive(ctx context.Context, a ident.Actor) error {
	switch f.asked.Add(1); {
	case f.away.Load() == 0:
		return f.Accounts.Alive(ctx, a)
	case f.away.Add(-1) > 0:
		return fault.New(fault.Unavailable, "test", "", "away")
	}
	f.away.Store(1)
	return fault.New(fault.Unauthenticated, "test", "", "ended")
}

// A look that could not find out what somebody may see is made again in a moment, not with the next round of all looks.
func TestALookInVainIsMadeAgain(t *testing.T) {
	f := &evasive{}
	h := newHouse(t, func(c *live.Config) { f.Accounts, c.Accounts = c.Accounts, f })
	ada := h.user("ada")
	inVain := func(begin func()) {
		f.asked.Store(0)
		f.away.Store(2)
		begin()
		until(t, "asked", func() bool { return f.asked.Load() > 0 })
		h.pass(2 * time.Second)
	}
	s := ada.connect()
	inVain(func() {
		h.bus.Publish(t.Context(), event.Signal{Topic: event.AccessTopic(ident.AccountID(ada.id)), Kind: event.Access})
	})
	if code := s.ends(); code != live.CloseSignedOut {
		t.Errorf("the socket: %d", code)
	}
	var next func() (id, kind, data string)
	inVain(func() { next = ada.stream(t.Context(), "/api/v1/events/stream", "") })
	for kind := "x"; kind != ""; {
		_, kind, _ = next()
	}
}

// shelf tells of jobs as the store has them.
type shelf struct{ store *sqlstore.MasterStore }

func (s *shelf) Job(ctx context.Context, _ ident.Actor, id ident.JobID) (job.Job, error) {
	return s.store.FindJob(ctx, id)
}

func TestJobsAreToldToTheirAccount(t *testing.T) {
	jobs := &shelf{}
	h := newHouse(t, func(c *live.Config) { c.Jobs = jobs })
	jobs.store = h.store
	ada, bob := h.user("ada"), h.user("bob")
	mine, other := ada.connect(), bob.connect()
	now := time.Now().UTC().Truncate(time.Microsecond)
	j := job.Job{ID: ident.New[ident.JobID](), Kind: "database.move", State: job.Queued, CreatedAt: now}
	ch := event.NewChange(ident.Actor{Account: ident.AccountID(ada.id)}, now)
	ch.Add("database.activation_started", "db_1", map[string]any{"job_id": j.ID})
	must(t, h.store.InsertJob(t.Context(), j, ch))
	if f := mine.next("job"); f.text("id") != string(j.ID) || f.text("state") != "queued" {
		t.Errorf("%s", f.Data)
	}
	claimed, ok, err := h.store.ClaimJob(t.Context(), job.Claim{Kinds: []string{j.Kind}, Node: "n", Now: now, Lease: now.Add(time.Minute)})
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	claimed.State, claimed.FinishedAt = job.Completed, &now
	done := event.NewChange(ident.System(""), now)
	done.Add("job.completed", string(j.ID), map[string]any{"kind": j.Kind})
	must(t, h.store.FinishJob(t.Context(), claimed, "n", done))
	mine.nextThat("the end of the job", func(f frame) bool { return f.Type == "job" && f.text("state") == "completed" })
	other.send("ping", nil)
	if f := other.next("pong", "job"); f.Type == "job" {
		t.Error("Bob hears of it")
	}
}
