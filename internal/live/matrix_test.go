package live_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/live"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/workspace"
)

// theatre is a house with a shared project of Ada's, a conversation in it, and somebody in every role.
type theatre struct {
	*house
	project, conv string
	people        map[string]*user
}

// parts are the roles that somebody plays; who has none is a stranger, or was a member.
var parts = []struct {
	name string
	role access.Role
}{{"ada", access.Owner}, {"edna", access.Editor}, {"carl", access.Commenter}, {"vera", access.Viewer}, {"rita", ""}, {"eve", ""}}

func newTheatre(t *testing.T, address string) *theatre {
	t.Helper()
	h := &theatre{house: newHouseAt(t, address, nil), people: map[string]*user{}}
	h.pool.Grants = h.store
	for _, p := range parts {
		h.people[p.name] = h.user(p.name)
	}
	ada := h.people["ada"]
	h.project = ada.make("/projects", map[string]any{"name": "P"})
	h.conv = ada.make("/conversations", map[string]any{"project_id": h.project})
	for _, p := range parts[1:4] {
		h.add(p.name, p.role)
	}
	h.add("rita", access.Editor)
	return h
}

func (h *theatre) add(name string, role access.Role) {
	h.t.Helper()
	h.people["ada"].call(0, "POST", "/api/v1/projects/"+h.project+"/members", map[string]any{"email": h.people[name].email, "role": role}, 201, nil)
}

func (h *theatre) remove(name string) {
	h.t.Helper()
	h.people["ada"].call(0, "DELETE", "/api/v1/projects/"+h.project+"/members/"+h.people[name].id, nil, 204, nil)
}

// answer is the reply to a frame, word for word but for the identifier that was asked about.
func (s *socket) answer(kind, about string, data map[string]any) (reply frame, words string) {
	s.t.Helper()
	s.sendAs(kind, "asked", data)
	reply = s.nextThat("a reply to "+kind, func(f frame) bool { return string(f.ID) == `"asked"` })
	return reply, strings.ReplaceAll(reply.Type+" "+string(reply.Data), about, "ID")
}

// TestTheMatrixOfRooms: whoever may do what in a room, by everybody from the owner to a stranger, in conversations and in
// projects. What a role may do says the one matrix; to somebody without a role a room answers like one that never was.
func TestTheMatrixOfRooms(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, address string) {
		h := newTheatre(t, address)
		rita := h.people["rita"].connect()
		rita.join(h.conv)
		rita.join(h.project)
		h.remove("rita")
		for range 2 {
			if f := rita.next("room_left"); f.text("reason") != "no_access" {
				t.Errorf("a removed member: %s", f.Data)
			}
		}
		watch := h.people["ada"].connect()
		start := map[string]int{h.conv: watch.join(h.conv), h.project: watch.join(h.project)}
		for _, p := range parts {
			u := h.people[p.name]
			s := u.connect()
			if p.name == "rita" {
				s = rita // the socket that was in the rooms
			}
			for _, room := range []string{h.conv, h.project} {
				h.cells(t, s, watch, p.name, p.role, room, start[room])
			}
			s.drop()
		}
		// What a room hears of those who come and go it hears in order: somebody on another node is the last.
		h.bus.Publish(t.Context(), event.Signal{Topic: "room:" + h.conv, Kind: event.Presence,
			Text: `{"node":"elsewhere","op":"join","people":[{"user_id":"usr_last","name":"last"}]}`})
		watch.nextThat("the last online", func(f frame) bool { return f.Type == "presence" && f.text("user_id") == "usr_last" })
		if members := watch.members(h.conv); len(members) != 2 || !slices.Contains(members, "ada") || !slices.Contains(members, "last") {
			t.Errorf("who has gone is there: %v", members)
		}
	})
}

// members are who is in the room, as joining it again says.
func (s *socket) members(room string) (names []string) {
	s.t.Helper()
	s.sendAs("join_room", "again", map[string]any{"room_id": room})
	f := s.nextThat("room_joined", func(f frame) bool { return string(f.ID) == `"again"` })
	list, _ := f.field("members").([]any)
	for _, m := range list {
		m, _ := m.(map[string]any)
		name, _ := m["name"].(string)
		names = append(names, name)
	}
	return names
}

// cells tries everything that can be done in a room on one socket, which is in no room.
func (h *theatre) cells(t *testing.T, s, watch *socket, name string, role access.Role, room string, start int) {
	t.Helper()
	talk := room == h.conv
	never := string(ident.New[ident.ProjectID]())
	if talk {
		never = string(ident.New[ident.ConversationID]())
	}
	see := access.Allows(role, access.ReadProject)
	if talk {
		see = access.Allows(role, access.ReadConversation)
	}
	part := access.Allows(role, access.TakePart)
	// want is the code of a refusal: none, role_forbids, or what a room answers that never was.
	check := func(what string, f frame, words, unknown, want string) {
		t.Helper()
		switch {
		case want == "" && f.Type == "error", want != "" && (f.Type != "error" || f.text("code") != want):
			t.Errorf("%s by %s (%s) in %s: %s %s, want %q", what, name, role, room[:4], f.Type, f.Data, want)
		case want != "" && want != "role_forbids" && words != unknown:
			t.Errorf("%s by %s: %s, and of what never was %s", what, name, words, unknown)
		}
	}
	refusal := func(allowed bool, code string) string {
		switch {
		case !see:
			return code
		case !allowed:
			return "role_forbids"
		}
		return ""
	}
	try := func(what, kind, want string, data func(room string) map[string]any) {
		t.Helper()
		_, unknown := s.answer(kind, never, data(never))
		f, words := s.answer(kind, room, data(room))
		check(what, f, words, unknown, want)
	}
	only := func(room string) map[string]any { return map[string]any{"room_id": room} }

	// Before it is joined, nobody may do what needs that.
	try("typing outside", "typing", "room_not_joined", func(room string) map[string]any { return map[string]any{"room_id": room, "is_typing": true} })
	try("leaving", "leave_room", "room_not_joined", only)
	try("coming back", "join_room", refusal(see, "not_found"), func(room string) map[string]any { return map[string]any{"room_id": room, "after_seq": start} })
	if see {
		if f, _ := s.answer("leave_room", room, only(room)); f.Type != "room_left" {
			t.Errorf("%s cannot leave: %s", name, f.Data)
		}
	}
	try("joining", "join_room", refusal(see, "not_found"), only)
	if see && role != access.Owner { // who knows of oneself
		watch.nextThat(name+" online", func(f frame) bool {
			return f.Type == "presence" && f.text("room_id") == room && f.text("name") == name && f.text("state") == "online"
		})
	}
	try("typing", "typing", refusal(part, "room_not_joined"), func(room string) map[string]any { return map[string]any{"room_id": room, "is_typing": true} })
	if part && role != access.Owner {
		watch.nextThat(name+" types", func(f frame) bool { return f.Type == "typing" && f.text("room_id") == room && f.text("name") == name })
	}

	// Saying something, and stopping an answer, goes to a conversation; a project is none, and answers nobody.
	said := func(room string) map[string]any {
		return map[string]any{"room_id": room, "content": "by " + name, "reply": false}
	}
	if want := refusal(part, "not_found"); talk {
		try("saying", "send_message", want, said)
		if want == "" {
			watch.nextThat("what was said", func(f frame) bool {
				who, _ := f.field("actor").(map[string]any)
				return f.Type == "event" && f.text("type") == "message.created" && f.text("room_id") == room && who["id"] == h.people[name].id
			})
		}
	} else {
		try("saying to a project", "send_message", "not_found", said)
	}
	if !talk {
		try("stopping in a project", "stop_turn", "not_found", func(room string) map[string]any {
			return map[string]any{"room_id": room, "turn_id": ident.New[ident.TurnID]()}
		})
	} else {
		asked, _ := watch.answer("send_message", "", map[string]any{"room_id": h.conv, "content": "#long 30000"})
		var x struct{ Turn struct{ ID string } }
		must(t, json.Unmarshal(asked.Data, &x))
		try("stopping", "stop_turn", refusal(part, "not_found"), func(room string) map[string]any {
			return map[string]any{"room_id": room, "turn_id": x.Turn.ID}
		})
		var after struct{ State string }
		at := "/api/v1/conversations/" + h.conv + "/turns/" + x.Turn.ID
		h.people["ada"].call(0, "GET", at, nil, 200, &after)
		if (after.State == "stopped") != part || after.State != "stopped" && after.State != "streaming" {
			t.Errorf("after stopping by %s the turn is %s", name, after.State)
		}
		h.people["ada"].call(0, "POST", at+"/stop", nil, 200, nil)
	}
	// What was missed comes with joining, to whoever may see it.
	if see {
		s.answer("leave_room", room, only(room))
		s.sendAs("join_room", "asked", map[string]any{"room_id": room, "after_seq": start})
		s.next("room_joined")
		if f := s.next("event"); f.number("seq") <= start || f.text("room_id") != room {
			t.Errorf("%s comes back after %d, and hears %s", name, start, f.Data)
		}
		s.answer("leave_room", room, only(room))
	}
}

// TestAccountsThatAreNoMore: sockets of an account that was suspended, or is gone, end on every node, and no other one opens;
// what such an account shares is shown to nobody.
func TestAccountsThatAreNoMore(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, address string) {
		h := newTheatre(t, address)
		h.addNode(nil)
		end := map[string]func(u *user){
			"suspended": func(u *user) {
				_, err := h.store.UpdateAccount(t.Context(), ident.AccountID(u.id), func(a account.Account, hash string) (account.Account, string, event.Change, error) {
					a.State = account.Suspended
					ch := event.NewChange(ident.System(""), time.Now())
					ch.Add("account.suspended", u.id, nil)
					return a, hash, ch, nil
				}, account.Along{})
				must(t, err)
			},
			"gone": func(u *user) {
				ch := event.NewChange(ident.System(""), time.Now())
				ch.Add("account.erased", u.id, nil)
				must(t, h.store.EraseTenant(t.Context(), tenant.Erasure{Tenant: h.tenantOf(u), Account: ident.AccountID(u.id), At: time.Now()}, "", ch))
			},
		}
		for name, who := range map[string]string{"suspended": "edna", "gone": "carl"} {
			u := h.people[who]
			here, there, ticket := u.connectTo(0), u.connectTo(1), u.ticket()
			here.join(h.conv)
			there.join(h.project)
			end[name](u)
			for node, s := range []*socket{here, there} {
				if code := s.ends(); code != live.CloseSignedOut {
					t.Errorf("%s, node %d: %d", name, node, code)
				}
			}
			for _, query := range []string{"?ticket=" + ticket, "?token=" + u.token} {
				if s, status := h.dial(1, query, nil); s != nil || status != 401 {
					t.Errorf("%s, with %s: %d", name, query[:7], status)
				}
			}
		}
		// The owner is suspended with the tenant: nobody may be in the rooms.
		vera := h.people["vera"].connect()
		vera.join(h.conv)
		ten := h.tenantOf(h.people["ada"])
		ch := event.NewChange(ident.System(""), time.Now())
		ch.Add(workspace.EventUpdated, string(ten), nil)
		_, err := h.store.UpdateTenant(t.Context(), ten, func(t tenant.Tenant) (tenant.Tenant, event.Change, error) {
			t.State = tenant.Suspended
			return t, ch, nil
		})
		must(t, err)
		if f := vera.next("room_left"); f.text("reason") != "tenant_suspended" {
			t.Errorf("in the room of a suspended owner: %s", f.Data)
		}
		for kind, data := range map[string]map[string]any{"join_room": {}, "send_message": {"content": "x"}} {
			data["room_id"] = h.conv
			if f, _ := vera.answer(kind, h.conv, data); f.text("code") != "tenant_suspended" {
				t.Errorf("%s: %s", kind, f.Data)
			}
		}
	})
}

func (h *theatre) tenantOf(u *user) ident.TenantID {
	h.t.Helper()
	a, _, err := h.store.FindAccount(h.t.Context(), ident.AccountID(u.id))
	must(h.t, err)
	return a.Tenant
}

// TestTwoTalkAtOnce: what several members say to one conversation over sockets at once, while its details are edited, is ordered,
// and none of it is lost: everybody hears the same events in the same order, and the conversation has it all.
func TestTwoTalkAtOnce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, address string) {
		h := newTheatre(t, address)
		const each = 15
		listeners := map[string]*socket{}
		for _, name := range []string{"ada", "vera"} {
			listeners[name] = h.people[name].connect()
			listeners[name].join(h.conv)
		}
		var done sync.WaitGroup
		for _, name := range []string{"edna", "carl"} {
			s := h.people[name].connect()
			s.join(h.conv)
			done.Go(func() {
				for i := range each {
					s.sendAs("send_message", fmt.Sprint("m", i), map[string]any{"room_id": h.conv, "content": fmt.Sprint(name, " ", i), "reply": i%5 == 0})
				}
				for i := range each { // in the order in which they were asked for
					f := s.nextThat("a reply", func(f frame) bool { return f.ID != nil && string(f.ID) != `"j"` })
					if f.Type != "message.accepted" || string(f.ID) != fmt.Sprintf(`"m%d"`, i) {
						t.Errorf("%s: %s %s %s", name, f.ID, f.Type, f.Data)
					}
				}
			})
		}
		done.Go(func() {
			for i := range each {
				h.people["edna"].edit(t, h.conv, fmt.Sprint("Title ", i))
			}
		})
		done.Wait()
		h.people["ada"].call(0, "PATCH", "/api/v1/conversations/"+h.conv, map[string]any{"title": "The last"}, 200, nil)
		heard := map[string][]string{}
		for name, s := range listeners {
			edits := 0
			for at := 0; edits <= each || count(heard[name], "turn.completed") < 2*each/5; {
				f := s.next("event")
				if f.number("seq") <= at {
					t.Fatalf("%s hears %d after %d", name, f.number("seq"), at)
				}
				at = f.number("seq")
				if f.text("type") == "conversation.updated" {
					edits++
				}
				heard[name] = append(heard[name], f.text("type"))
			}
		}
		if a, v := strings.Join(heard["ada"], " "), strings.Join(heard["vera"], " "); a != v || count(heard["ada"], "message.created") != 2*each {
			t.Errorf("the owner heard %s\nanother %s", a, v)
		}
		var list struct {
			Data []struct {
				ID, Role, Content string
				ParentID          string `json:"parent_id"`
				Author            struct{ Name string }
			}
		}
		h.people["vera"].call(0, "GET", "/api/v1/conversations/"+h.conv+"/messages?branch=all&order=asc&limit=200", nil, 200, &list)
		next, parents := map[string]int{}, map[string]bool{}
		for _, m := range list.Data {
			if m.Role != "user" {
				continue
			}
			if m.Content != fmt.Sprint(m.Author.Name, " ", next[m.Author.Name]) || parents[m.ParentID] {
				t.Errorf("%s said %q, want number %d, below %s", m.Author.Name, m.Content, next[m.Author.Name], m.ParentID)
			}
			next[m.Author.Name]++
			parents[m.ParentID] = true
		}
		if next["edna"] != each || next["carl"] != each {
			t.Errorf("%v", next)
		}
	})
}

// edit changes the title; of edits at once each is made.
func (u *user) edit(t *testing.T, conv, title string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ws, err := u.h.pool.EnterAsGuest(ctx, ident.Actor{Account: ident.AccountID(u.id), Name: "edna"}, conv)
	if err != nil {
		t.Error(err)
		return
	}
	defer ws.Release()
	if _, err := ws.Conversations.Edit(ctx, ident.Actor{Account: ident.AccountID(u.id), Name: "edna"}, ident.ConversationID(conv), nil,
		func(d *conversation.Details) error { d.Title = title; return nil }); err != nil {
		t.Error(err)
	}
}
