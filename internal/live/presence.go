package live

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"claude-memory-backend/internal/event"
)

// What nodes tell each other about a room travels on the bus only and is never stored: who types, and who is there. A node
// says when somebody comes or goes, and every few seconds who is there, so that a lost signal, or a lost node, is made
// good.

func roomTopic(id string) string { return "room:" + id }

// whisper is what a signal of a room carries in its text.
type whisper struct {
	Node   string   `json:"node"`
	Op     string   `json:"op"` // typing, join, leave, here, ask
	People []Person `json:"people,omitempty"`
	Typing bool     `json:"typing,omitempty"`
}

// here is who is in a room on one node, as that node said last.
type here struct {
	people map[string]Person // by account
	heard  time.Time
}

func (r *room) publish(kind event.Kind, w whisper) {
	w.Node = r.hub.Node
	raw, err := json.Marshal(w)
	if err != nil {
		return // strings and numbers always marshal
	}
	r.hub.Bus.Publish(r.hub.life, event.Signal{Topic: roomTopic(r.id), Kind: kind, Text: string(raw)})
}

// says tells everybody else in the room, on any node, that somebody types or has stopped to.
func (r *room) says(c *conn, typing bool) {
	p := c.person()
	r.typed(p, typing, c)
	r.publish(event.Typing, whisper{Op: "typing", People: []Person{p}, Typing: typing})
}

// announce tells every node that somebody has come or gone here. The caller has r.mu: what nodes hear of members is in
// the order in which they came and went.
func (r *room) announce(op string, p Person) {
	r.publish(event.Presence, whisper{Op: op, People: []Person{p}})
}

// ask makes other nodes say who is in the room there.
func (r *room) ask() { r.publish(event.Presence, whisper{Op: "ask"}) }

// tellHere says who is in the room on this node.
func (r *room) tellHere() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.publish(event.Presence, whisper{Op: "here", People: r.own()})
}

// own are those who are in the room on this node, each once. The caller has r.mu.
func (r *room) own() []Person {
	all := map[string]Person{}
	for c := range r.members {
		p := c.person()
		all[p.UserID] = p
	}
	return sorted(all)
}

func sorted(people map[string]Person) []Person {
	return slices.SortedFunc(maps.Values(people), func(a, b Person) int { return strings.Compare(a.UserID, b.UserID) })
}

// people are those who are in the room on any node, as far as is known, with the one who asks. The caller has r.mu.
func (r *room) people(c *conn) []Person {
	all := map[string]Person{}
	for _, h := range r.present {
		maps.Copy(all, h.people)
	}
	for _, p := range append(r.own(), c.person()) {
		all[p.UserID] = p
	}
	return sorted(all)
}

// hear hands on what nodes say about the room until the room closes. Who comes and goes here is heard in this way, too, so
// that all nodes tell of it in one order; who types here was told at once.
func (r *room) hear() {
	for {
		select {
		case <-r.quit:
			return
		case sig := <-r.sub.C:
			if r.sub.Lost() { // who has come and gone meanwhile is said again
				r.ask()
			}
			if sig.Kind == event.Typing && strings.HasPrefix(sig.Text, r.hub.own) {
				continue
			}
			var w whisper
			if json.Unmarshal([]byte(sig.Text), &w) != nil || w.Node == "" {
				continue // of another version
			}
			switch {
			case sig.Kind == event.Typing:
				if len(w.People) == 1 {
					r.typed(w.People[0], w.Typing, nil)
				}
			case sig.Kind == event.Presence && w.Op == "ask":
				if w.Node != r.hub.Node {
					r.tellHere()
				}
			case sig.Kind == event.Presence:
				r.heard(w)
			}
		}
	}
}

// typed tells the members that somebody types or has stopped to; the connection that said so knows.
func (r *room) typed(p Person, typing bool, by *conn) {
	b := encode("typing", nil, typingOut{RoomID: r.id, Person: p, IsTyping: typing})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broadcast(b, func(c *conn) bool { return c == by })
}

// heard takes over what a node says of who is there, and tells members of the difference.
func (r *room) heard(w whisper) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.everybody()
	h := r.present[w.Node]
	if h == nil {
		h = &here{people: map[string]Person{}}
		r.present[w.Node] = h
	}
	h.heard = r.hub.Now()
	switch w.Op {
	case "here":
		h.people = map[string]Person{}
		fallthrough
	case "join":
		for _, p := range w.People {
			h.people[p.UserID] = p
		}
	case "leave":
		for _, p := range w.People {
			delete(h.people, p.UserID)
		}
	}
	r.tellChange(was)
}

// everybody is who the room was last told to be in it. The caller has r.mu.
func (r *room) everybody() map[string]Person {
	all := map[string]Person{}
	for _, h := range r.present {
		maps.Copy(all, h.people)
	}
	return all
}

// tellChange tells members who has come and who has gone. The caller has r.mu.
func (r *room) tellChange(was map[string]Person) {
	now := r.everybody()
	for _, change := range []struct {
		from, to map[string]Person
		state    string
	}{{was, now, "online"}, {now, was, "offline"}} {
		for _, p := range sorted(change.to) {
			if _, same := change.from[p.UserID]; same {
				continue
			}
			r.broadcast(encode("presence", nil, presenceData{RoomID: r.id, Person: p, State: change.state}),
				func(c *conn) bool { return c.person().UserID == p.UserID }) // it knows
		}
	}
}

// tellPresence says every few seconds who is in this node's rooms, and forgets nodes that have stopped saying it.
func (h *Hub) tellPresence(ctx context.Context) {
	t := time.NewTicker(h.HereEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		h.mu.Lock()
		rooms := slices.Collect(maps.Values(h.rooms))
		h.mu.Unlock()
		for _, r := range rooms {
			r.tellHere()
			r.forgetSilent()
		}
	}
}

func (r *room) forgetSilent() {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.everybody()
	now := r.hub.Now()
	maps.DeleteFunc(r.present, func(node string, h *here) bool {
		return node != r.hub.Node && now.Sub(h.heard) > 3*r.hub.HereEvery
	})
	r.tellChange(was)
}
