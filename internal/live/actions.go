package live

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/workspace"
)

// believe is how long access that was found is not looked for again by a frame that only says that somebody types.
const believe = time.Second

// maxStops is how many turns a connection may be stopping at once: each may wait for another node.
const maxStops = 4

// act does what a frame asks for. What it returns is answered with an error frame.
func (c *conn) act(ctx context.Context, f frame) error {
	if !f.plain() {
		return fault.BadInput("live.act", "data", "has a field that no frame has: all are written in lower case")
	}
	switch f.Type {
	case "ping":
		c.put(encode("pong", f.ID, nothing{}))
		return nil
	case "auth":
		return c.auth(ctx, f)
	case "join_room":
		return c.joinRoom(ctx, f)
	case "leave_room":
		return c.leaveRoom(f)
	case "typing":
		return c.tellTyping(ctx, f)
	case "send_message":
		return c.send(ctx, f)
	case "stop_turn":
		return c.stop(f)
	}
	return fault.New(fault.Invalid, "live.act", "unknown_frame", "there is no frame of this type")
}

// auth signs the connection in, or renews that.
func (c *conn) auth(ctx context.Context, f frame) error {
	var in authData
	if err := f.read(&in); err != nil {
		return err
	}
	who, err := c.hub.Accounts.Verify(ctx, account.AccessToken(in.Token), c.from)
	was, _ := c.who()
	first := was.Account == ""
	if err == nil && !c.hub.Now().Before(who.ExpiresAt) {
		err = fault.New(fault.Unauthenticated, "live.auth", expired.name, expired.detail)
	}
	switch {
	case err != nil && first && !fault.Is(err, fault.Unavailable):
		c.over(unsigned)
		return nil
	case err != nil:
		return err // it goes on with the token that it has
	case !first && who.Actor.Account != was.Account:
		c.over(otherAccount)
		return nil
	case first:
		c.hub.mu.Lock()
		if _, here := c.hub.conns[c]; here {
			err = c.hub.welcome(c, who)
		}
		c.hub.mu.Unlock()
		if err != nil {
			c.over(crowded)
			return nil
		}
	}
	c.mu.Lock()
	// The session may be another one by now: what is looked at, and audited, is the one of the token.
	c.actor, c.tenant, c.expires = who.Actor, who.Tenant, who.ExpiresAt
	greeting := c.greeting(f.ID)
	c.mu.Unlock()
	c.put(greeting)
	c.hub.look(c) // what ended after the token was verified, and before that was known here, is found now
	return nil
}

// greeting is the frame that says who is connected, and for how long. The caller has c.mu, or is alone.
func (c *conn) greeting(id json.RawMessage) []byte {
	return encode("connected", id, connectedData{Person: Person{UserID: string(c.actor.Account), Name: c.actor.Name},
		SessionID: string(c.actor.Session), ExpiresAt: c.expires.UTC()})
}

// enter opens the workspace that a room is in, if whoever is connected may see it.
func (c *conn) enter(ctx context.Context, room string) (*workspace.Workspace, ident.Actor, error) {
	actor, tenant := c.who()
	if !strings.HasPrefix(room, ident.ConversationID("").Prefix()) && !strings.HasPrefix(room, ident.ProjectID("").Prefix()) {
		return nil, actor, fault.Missing("live.enter")
	}
	ws, err := c.hub.Pool.Enter(ctx, actor, tenant, room)
	return ws, actor, err
}

func (c *conn) leaveRoom(f frame) error {
	var in leaveData
	if err := f.read(&in); err != nil {
		return err
	}
	if !c.leave(in.RoomID) {
		return notJoined()
	}
	c.put(encode("room_left", f.ID, leftData{RoomID: in.RoomID, Reason: "left"}))
	return nil
}

// isIn reports whether the connection uses the room.
func (c *conn) isIn(r *room) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.seat(r.id)
	return s != nil && s.room == r
}

// leave takes the connection out of a room; false when it was not there.
func (c *conn) leave(room string) bool {
	c.mu.Lock()
	s := c.seat(room)
	c.seats = slices.DeleteFunc(c.seats, func(other *seat) bool { return other == s })
	typed := s != nil && s.typing
	c.mu.Unlock()
	if s == nil {
		return false
	}
	if typed {
		s.room.says(c, false)
	}
	s.room.leave(c)
	return true
}

func notJoined() error {
	return fault.New(fault.Conflict, "live", "room_not_joined", "join the room first")
}

// joined returns a room that the connection is in, if it may still be.
func (c *conn) joined(ctx context.Context, room string) (*seat, error) {
	c.mu.Lock()
	s := c.seat(room)
	fresh := s != nil && c.hub.Now().Sub(s.seen) < believe
	c.mu.Unlock()
	if s == nil {
		return nil, notJoined()
	}
	if fresh {
		return s, nil
	}
	actor, own := c.who()
	pass, err := c.hub.allowed(ctx, actor, own, s.room.tenant, room)
	if err != nil {
		c.deny(room, err)
		return nil, err
	}
	c.found(s, pass)
	return s, nil
}

// found notes what the connection may do in a room. Who may not type there any more has stopped to.
func (c *conn) found(s *seat, pass access.Pass) {
	c.mu.Lock()
	s.seen, s.pass = c.hub.Now(), pass
	stops := s.typing && !access.Allows(pass.Role, access.TakePart)
	s.typing = s.typing && !stops
	c.mu.Unlock()
	if stops {
		s.room.says(c, false)
	}
}

// deny takes the connection out of a room that it may not see any more. A database that is away is no reason.
func (c *conn) deny(room string, err error) {
	reason := ""
	switch fault.ClassOf(err) {
	case fault.NotFound:
		reason = "no_access"
	case fault.Forbidden:
		reason = fault.CodeOf(err)
	}
	if reason != "" && c.leave(room) {
		c.put(encode("room_left", nil, leftData{RoomID: room, Reason: reason}))
	}
}

// tellTyping tells the room that somebody types, or has stopped to. It is stored nowhere. Who may not say anything there types
// nothing either.
func (c *conn) tellTyping(ctx context.Context, f frame) error {
	var in typingData
	if err := f.read(&in); err != nil {
		return err
	}
	s, err := c.joined(ctx, in.RoomID)
	if err != nil {
		return err
	}
	c.mu.Lock()
	if err = s.pass.Allow("live.typing", c.actor, access.TakePart); err == nil {
		s.typing = in.IsTyping
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	s.room.says(c, in.IsTyping)
	if f.ID != nil {
		c.put(encode("ack", f.ID, nothing{}))
	}
	return nil
}

// send says something in a conversation, as REST does. The reply comes when it is stored; what becomes of it comes as
// events of the room.
func (c *conn) send(ctx context.Context, f frame) error {
	actor, _ := c.who()
	id, in, err := c.hub.Words.Send(actor, f.Data)
	if err != nil {
		return err
	}
	// Whoever says something and leaves has said it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.hub.ActionTime)
	defer cancel()
	ws, actor, err := c.enter(ctx, string(id))
	if err != nil {
		c.deny(string(id), err)
		return err
	}
	defer ws.Release()
	x, err := ws.Conversations.Send(ctx, actor, id, in)
	if err != nil {
		return err
	}
	c.put(encode("message.accepted", f.ID, c.hub.Words.Exchange(x)))
	return nil
}

// stop ends a turn. That may take as long as another node needs, so it stands in no other frame's way.
func (c *conn) stop(f frame) error {
	const op = "live.stop"
	var in stopData
	if err := f.read(&in); err != nil {
		return err
	}
	turn, err := ident.Parse[ident.TurnID](in.TurnID)
	if err != nil {
		return err
	}
	if in.RoomID == "" {
		in.RoomID = c.roomOf(turn)
	}
	id, err := ident.Parse[ident.ConversationID](in.RoomID)
	if err != nil {
		return err
	}
	c.mu.Lock()
	crowded := c.stops >= maxStops || c.end != nil
	if !crowded {
		c.stops++
		c.hub.work.Go(func() { c.guarded(func() { c.stopNow(f, id, turn) }) })
	}
	c.mu.Unlock()
	if crowded {
		return fault.New(fault.Throttled, op, "throttled", "too many turns are being stopped: wait for their replies").RetryAfter(time.Second)
	}
	return nil
}

func (c *conn) stopNow(f frame, id ident.ConversationID, turn ident.TurnID) {
	defer func() {
		c.mu.Lock()
		c.stops--
		c.mu.Unlock()
	}()
	ctx, cancel := context.WithTimeout(c.life, c.hub.ActionTime)
	defer cancel()
	ws, actor, err := c.enter(ctx, string(id))
	if err != nil {
		c.deny(string(id), err)
		c.put(refusal(f.ID, err))
		return
	}
	defer ws.Release()
	t, err := ws.Conversations.Stop(ctx, actor, id, turn)
	if err != nil {
		c.put(refusal(f.ID, err))
		return
	}
	c.put(encode("turn", f.ID, struct {
		RoomID string `json:"room_id"`
		Turn   any    `json:"turn"`
	}{string(id), c.hub.Words.Turn(t)}))
}

// roomOf finds the conversation, among the rooms that the connection is in, where a turn runs.
func (c *conn) roomOf(turn ident.TurnID) string {
	c.mu.Lock()
	seats := slices.Clone(c.seats)
	c.mu.Unlock()
	for _, s := range seats {
		if s.room.runs(turn) {
			return s.room.id
		}
	}
	return ""
}

// joinRoom lets the connection hear what happens in a room, from now on or from just after a position in the log.
func (c *conn) joinRoom(ctx context.Context, f frame) error {
	const op = "live.join"
	var in joinData
	if err := f.read(&in); err != nil {
		return err
	}
	if in.AfterSeq != nil && *in.AfterSeq < 0 {
		return fault.BadInput(op, "data.after_seq", "must not be negative")
	}
	c.mu.Lock()
	s, full, access := c.seat(in.RoomID), len(c.seats) >= c.hub.MaxRooms, c.access
	c.mu.Unlock()
	if s == nil && full {
		return fault.New(fault.Conflict, op, "too_many_rooms", "leave a room first: a connection may be in so many only")
	}
	ws, _, err := c.enter(ctx, in.RoomID)
	if err != nil {
		c.deny(in.RoomID, err)
		return err
	}
	of, pass := ws.Tenant.ID, ws.Pass
	ws.Release()
	// The log is read as the server: what a guest sees of it is what concerns the room.
	if ws, err = c.hub.Pool.Acquire(ctx, ident.System(""), of); err != nil {
		return err
	}
	defer ws.Release()
	fresh := s == nil
	if fresh {
		s = &seat{}
		if s.room, err = c.hub.open(ctx, in.RoomID, ws); err != nil {
			return err
		}
	}
	c.mu.Lock()
	ended := c.end != nil
	if !fresh && !ended && c.seat(in.RoomID) != s {
		c.mu.Unlock()
		return notJoined()
	}
	if !ended {
		if fresh {
			c.seats = append(c.seats, s)
		}
	}
	moved := c.access != access
	c.mu.Unlock()
	if ended {
		if fresh {
			s.room.leave(c)
		}
		return nil
	}
	c.found(s, pass)
	var after *event.Seq
	if in.AfterSeq != nil {
		seq := event.Seq(*in.AfterSeq)
		after = &seq
	}
	if err := s.room.join(ctx, ws, c, pass.Project, f.ID, after); err != nil {
		if c.leave(in.RoomID) && !fresh { // it was there before
			c.put(encode("room_left", nil, leftData{RoomID: in.RoomID, Reason: fault.CodeOf(timely(ctx, err))}))
		}
		return err
	}
	if moved { // while it joined: what was asked then may not be so any more
		c.hub.look(c)
	}
	return nil
}
