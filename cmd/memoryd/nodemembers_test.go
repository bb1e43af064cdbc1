package main

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"claude-memory-backend/bench/lab"
)

// roomSocket is somebody's WebSocket at a node.
type roomSocket struct {
	s  *several
	ws *websocket.Conn
}

func (s *several) socket(node int, token string) *roomSocket {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(s.servers[node].URL, "http")+"/ws?token="+token, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	ws.SetReadLimit(-1)
	s.t.Cleanup(func() { _ = ws.CloseNow() })
	return &roomSocket{s, ws}
}

func (r *roomSocket) say(kind string, data any) {
	r.s.t.Helper()
	raw, err := json.Marshal(map[string]any{"type": kind, "data": data})
	if err != nil {
		r.s.t.Fatal(err)
	}
	if err := r.ws.Write(r.s.ctx, websocket.MessageText, raw); err != nil {
		r.s.t.Fatal(err)
	}
}

// next waits for a frame of the type and returns its room and reason.
func (r *roomSocket) next(kind string) (room, reason string) {
	r.s.t.Helper()
	ctx, cancel := context.WithTimeout(r.s.ctx, time.Minute)
	defer cancel()
	for {
		_, raw, err := r.ws.Read(ctx)
		if err != nil {
			r.s.t.Fatalf("no %s: %v", kind, err)
		}
		var f struct {
			Type string
			Data struct {
				Room   string `json:"room_id"`
				Reason string
			}
		}
		if err := json.Unmarshal(raw, &f); err != nil {
			r.s.t.Fatal(err)
		}
		if f.Type == kind {
			return f.Data.Room, f.Data.Reason
		}
		if f.Type == "error" {
			r.s.t.Fatalf("instead of %s: %s", kind, raw)
		}
	}
}

// removedElsewhere: who is removed through one node is out of the rooms on another one, and the socket stays: at once by the
// bus, and without it by what the master database says.
func (s *several) removedElsewhere(t *testing.T) {
	bob := lab.Dial(s.servers[1].URL, 4)
	if err := bob.Register(s.ctx, "bob@example.org"); err != nil {
		t.Fatal(err)
	}
	var made struct{ ID string }
	do := func(method, path string, body any, status int) {
		t.Helper()
		if err := s.clients[0].Do(s.ctx, method, path, body).Into(&made, status); err != nil {
			t.Fatal(err)
		}
	}
	do(http.MethodPost, "/projects", map[string]any{"name": "Harbour"}, http.StatusCreated)
	project := made.ID
	do(http.MethodPost, "/conversations", map[string]any{"project_id": project}, http.StatusCreated)
	conv := made.ID
	members := "/projects/" + project + "/members"
	room := s.socket(1, bob.Token)
	for _, cut := range []bool{false, true} {
		var member struct {
			User string `json:"user_id"`
		}
		if err := s.clients[0].Do(s.ctx, http.MethodPost, members, map[string]any{"email": "bob@example.org", "role": "viewer"}).
			Into(&member, http.StatusCreated); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{conv, project} {
			room.say("join_room", map[string]any{"room_id": id})
			room.next("room_joined")
		}
		if cut {
			s.links[1].Cut()
			s.until("the cut is noticed", func() bool { _, _, joined, _ := s.bus(1); return !joined })
		}
		begun := time.Now()
		if a := s.clients[0].Do(s.ctx, http.MethodDelete, members+"/"+member.User, nil); a.Status != http.StatusNoContent {
			t.Fatalf("%d %s, %v", a.Status, a.Body, a.Err)
		}
		left := map[string]string{}
		for range 2 {
			id, reason := room.next("room_left")
			left[id] = reason
		}
		t.Logf("out of both rooms on another node %v after the removal was asked for, the bus cut: %v", time.Since(begun).Round(time.Millisecond), cut)
		if left[conv] != "no_access" || left[project] != "no_access" {
			t.Errorf("%v", left)
		}
		room.say("ping", map[string]any{})
		room.next("pong")
		for _, path := range []string{"/conversations/" + conv, "/projects/" + project} {
			if a := bob.Do(s.ctx, http.MethodGet, path, nil); a.Status != http.StatusNotFound {
				t.Errorf("%s answers %d", path, a.Status)
			}
		}
	}
}
