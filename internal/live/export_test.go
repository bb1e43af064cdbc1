package live

import (
	"context"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/workspace"
)

// Endings are the names of all endings but that of a client that leaves.
func Endings() (names []string) {
	for _, e := range []ending{badFrame, tooLarge, notText, tooMany, crowded, unsigned, signedOut, expired, otherAccount, stopping, unresponsive, slow, broken} {
		names = append(names, e.name)
	}
	return names
}

// Parting is how many connections have ended and may still read why.
func (h *Hub) Parting() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.parting)
}

// Heard is how many connections need not be asked yet whether somebody is there.
func (h *Hub) Heard() (n int) {
	now := h.Now()
	for _, c := range h.all() {
		c.mu.Lock()
		if !c.pinging && now.Before(c.ping) {
			n++
		}
		c.mu.Unlock()
	}
	return n
}

// TellOnceMore tells a room of an event as its feed does.
func (h *Hub) TellOnceMore(ctx context.Context, room string, ws *workspace.Workspace, e event.Event) {
	h.mu.Lock()
	r := h.rooms[room]
	h.mu.Unlock()
	r.Tell(ctx, ws, []event.Event{e})
}

// Recheck looks again at all connections of an account, as when something of its access has changed.
func (h *Hub) Recheck(id ident.AccountID) { h.recheck(id) }
