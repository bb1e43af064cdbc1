package live

import (
	"context"
	"maps"
	"slices"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

// Who hears what in a room: the tenant's owner everything, members of a project what they may read (event.Event.For), and
// nobody anything that happened after the event by which their access ended.

// audience writes an event down for those who hear it, once for each project that they came through.
type audience struct {
	room   *room
	e      event.Event
	frames map[ident.ProjectID][]byte
}

// frame is the event for a member who came through a project, or for the owner; nil when it is nothing to them.
func (a *audience) frame(guest ident.ProjectID) []byte {
	if b, made := a.frames[guest]; made {
		return b
	}
	e, shown := a.e, true
	if guest != "" {
		e, shown = e.For(guest)
	}
	var b []byte
	if shown {
		b = encode("event", nil, a.room.hub.Words.Event(e, a.room.id))
	}
	if a.frames == nil {
		a.frames = make(map[ident.ProjectID][]byte, 1)
	}
	a.frames[guest] = b
	return b
}

// show sends an event to every member who hears it. The caller has r.mu.
func (r *room) show(e event.Event) {
	a := audience{room: r, e: e}
	for c, m := range r.members {
		if b := a.frame(m.guest); b != nil {
			m.hear(c, b)
		}
	}
}

// leavers are those whose access ends with the event, and what they are told of it. The caller has r.mu.
func (r *room) leavers(e event.Event) (out []*conn, reason string) {
	if e.Subject == r.id && (e.Type == "conversation.deleted" || e.Type == "project.deleted") {
		return slices.Collect(maps.Keys(r.members)), "deleted"
	}
	for c, m := range r.members {
		// What comes next may be private. Who may hear it as a member of another project joins again.
		if m.guest != "" && (e.Type == "conversation.moved" && e.Subject == r.id || e.Type == "project.deleted" && e.Subject == string(m.guest)) {
			out = append(out, c)
		}
	}
	return out, "no_access"
}

// dismiss takes out whom leavers named. The caller has no lock.
func (r *room) dismiss(out []*conn, reason string) {
	for _, c := range out {
		if c.leave(r.id) {
			c.put(encode("room_left", nil, leftData{RoomID: r.id, Reason: reason}))
		}
	}
}

// still asks once more whether a guest may be here who has been a member of the room from some position in the log on, and
// heard nothing yet: access that ended before that position stands in no event that the guest would be told of.
func (r *room) still(ctx context.Context, c *conn, m *member) error {
	if m.guest == "" {
		return nil
	}
	actor, _ := c.who()
	ws, err := r.hub.Pool.EnterAsGuest(ctx, actor, r.id)
	if err != nil {
		return err
	}
	r.mu.Lock()
	m.guest = ws.Pass.Project
	r.mu.Unlock()
	ws.Release()
	return nil
}
