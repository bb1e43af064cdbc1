package live

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/workspace"
)

// room is a conversation or a project that somebody on this node listens to. It lives as long as it has users, and hears
// its tenant's log as a workspace.Listener.
type room struct {
	hub    *Hub
	id     string
	tenant ident.TenantID
	talk   ident.ConversationID // empty for a project
	users  int                  // guarded by hub.mu
	ready  chan struct{}
	err    error // once ready: why it could not be opened
	quit   chan struct{}
	sub    *event.Subscription
	stop   func() // leaves the feed

	mu      sync.Mutex
	closed  bool
	at      event.Seq // everything up to here was told
	members map[*conn]*member
	turns   map[ident.TurnID]*running
	present map[string]*here // by node: who is in the room there
	// early are the turns that ended while the room was being opened; nil afterwards.
	early map[ident.TurnID]bool
	told  half // of whoever calls Tell alone, as the next one
	again bool // what was told since Told may have closed something to somebody
}

// member is a connection in a room. While what it missed is read, what happens is held for it, up to a bound.
type member struct {
	guest   ident.ProjectID // through which a guest came in; empty: the tenant's owner
	holding bool
	held    [][]byte
	size    int  // bytes in held
	lost    bool // it was too much: whoever joins has to read everything again
}

func (m *member) hold(b []byte, most int) {
	if m.lost = m.lost || m.size+len(b) > most; m.lost {
		m.held, m.size = nil, 0
		return
	}
	m.held, m.size = append(m.held, b), m.size+len(b)
}

// hear sends the member a frame, or keeps it for later. The caller has the room's mu.
func (m *member) hear(c *conn, b []byte) {
	if m.holding {
		m.hold(b, c.hub.MaxWaiting)
		return
	}
	c.put(b)
}

// running is the text so far of a turn that runs in the room.
type running struct {
	message ident.MessageID
	text    strings.Builder
	units   int // its length in UTF-16 code units
	cancel  context.CancelFunc
	ending  bool // the log tells of its end: what is missing comes from there
}

// open finds or makes the room, which the caller uses until it leaves.
func (h *Hub) open(ctx context.Context, id string, ws *workspace.Workspace) (*room, error) {
	h.mu.Lock()
	r := h.rooms[id]
	first := r == nil
	if first {
		r = &room{hub: h, id: id, tenant: ws.Tenant.ID, ready: make(chan struct{}), quit: make(chan struct{}),
			members: make(map[*conn]*member), turns: make(map[ident.TurnID]*running), present: make(map[string]*here), early: make(map[ident.TurnID]bool)}
		r.talk, _ = ident.Parse[ident.ConversationID](id) // a project is none
		h.rooms[id] = r
	}
	r.users++
	h.mu.Unlock()
	if first {
		r.err = r.begin(ctx, ws)
		close(r.ready)
	}
	select {
	case <-r.ready:
	case <-ctx.Done():
		r.unuse()
		return nil, fault.New(fault.Canceled, "live.open", "", "the request ended").With(ctx.Err())
	}
	if r.err != nil {
		r.unuse()
		return nil, r.err
	}
	return r, nil
}

// begin makes the room hear its log, the bus, and the turns that run.
func (r *room) begin(ctx context.Context, ws *workspace.Workspace) error {
	const op = "live.begin"
	// Others may be waiting for the room by now, whoever asked first.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.hub.ActionTime)
	defer cancel()
	at, stop, err := r.hub.Feeds.Listen(ctx, r.tenant, r)
	if err != nil {
		return fault.Wrap(op, err)
	}
	r.mu.Lock()
	r.at = max(r.at, at)
	r.mu.Unlock()
	if r.talk != "" {
		turns, err := ws.Conversations.Running(ctx, ident.System(""), r.talk)
		if err != nil {
			stop()
			return fault.Wrap(op, err)
		}
		r.mu.Lock()
		for _, t := range turns {
			if !r.early[t.ID] {
				r.follow(t.ID, t.AssistantMessage)
			}
		}
		r.early = nil
		r.mu.Unlock()
	}
	r.stop = stop
	r.sub = r.hub.Bus.Subscribe(roomTopic(r.id), 64)
	r.hub.work.Go(func() {
		defer r.sub.Close()
		r.guarded(r.hear)
	})
	r.ask()
	return nil
}

// unuse is called once by everybody who opened the room; the last one closes it.
func (r *room) unuse() {
	h := r.hub
	h.mu.Lock()
	r.users--
	last := r.users == 0
	if last && h.rooms[r.id] == r {
		delete(h.rooms, r.id)
	}
	h.mu.Unlock()
	if !last {
		return
	}
	r.mu.Lock()
	r.closed = true
	for id, t := range r.turns {
		t.cancel()
		delete(r.turns, id)
	}
	r.mu.Unlock()
	if r.stop != nil {
		r.stop()
	}
	close(r.quit)
}

// leave takes a connection out; it is not told.
func (r *room) leave(c *conn) {
	r.mu.Lock()
	_, was := r.members[c]
	delete(r.members, c)
	if was && !r.has(c.person().UserID) {
		r.announce("leave", c.person())
	}
	r.mu.Unlock()
	r.unuse()
}

// has reports whether an account has a connection in the room here. The caller has r.mu.
func (r *room) has(user string) bool {
	for c := range r.members {
		if c.person().UserID == user {
			return true
		}
	}
	return false
}

// join makes the connection a member, who is a guest through a project unless that is empty: it hears room_joined, what it
// missed, what is being said, and then what happens.
func (r *room) join(ctx context.Context, ws *workspace.Workspace, c *conn, guest ident.ProjectID, id json.RawMessage, after *event.Seq) error {
	// Its position in the log is to be now, not when somebody last looked.
	if err := r.hub.Feeds.CatchUp(ctx, r.tenant); err != nil {
		return err
	}
	r.mu.Lock()
	first := !r.has(c.person().UserID)
	m := &member{guest: guest, holding: true}
	r.members[c] = m
	at := r.at
	saying := r.saying()
	if first {
		r.announce("join", c.person())
	}
	r.mu.Unlock()
	if !c.isIn(r) { // it ended, or had to leave, before it was a member
		r.mu.Lock()
		if r.members[c] == m {
			delete(r.members, c)
			if !r.has(c.person().UserID) {
				r.announce("leave", c.person())
			}
		}
		r.mu.Unlock()
		return nil
	}
	if err := r.still(ctx, c, m); err != nil {
		return err
	}
	missed, whole, err := r.missed(ctx, ws, c, m.guest, after, at)
	if err != nil {
		return err
	}
	r.mu.Lock()
	if r.members[c] != m {
		r.mu.Unlock()
		return nil // it has left meanwhile
	}
	if m.lost {
		at, whole, missed, saying = r.at, false, nil, r.saying()
	}
	begin := [][]byte{encode("room_joined", id, joinedData{RoomID: r.id, Members: r.people(c), Seq: int64(at)})}
	if !whole {
		begin = append(begin, encode("resync", nil, resyncData{RoomID: r.id, Seq: int64(at)}))
	}
	c.putAll(slices.Concat(begin, missed, saying, m.held))
	*m = member{guest: m.guest}
	r.mu.Unlock()
	return nil
}

// saying is, for somebody who comes in the middle, the text so far of every turn that runs. The caller has r.mu.
func (r *room) saying() (frames [][]byte) {
	ids := slices.SortedFunc(maps.Keys(r.turns), func(a, b ident.TurnID) int { return cmp.Compare(a, b) })
	for _, id := range ids {
		t := r.turns[id]
		frames = append(frames, r.deltas(id, t.message, 0, t.text.String())...)
	}
	return frames
}

// pieceSize is how much text one frame has at most, in bytes: a frame has to be taken within WriteTime.
const pieceSize = 256 << 10

// deltas is text from an offset on, in one frame unless it is very long.
func (r *room) deltas(turn ident.TurnID, message ident.MessageID, offset int, text string) (frames [][]byte) {
	for text != "" {
		n := len(text)
		if n > pieceSize {
			for n = pieceSize; !utf8.RuneStart(text[n]); n-- {
			}
		}
		frames = append(frames, r.delta(turn, message, offset, text[:n]))
		offset += conversation.TextLength(text[:n])
		text = text[n:]
	}
	return frames
}

func (r *room) delta(turn ident.TurnID, message ident.MessageID, offset int, text string) []byte {
	return encode("message.delta", nil, deltaData{RoomID: r.id, TurnID: string(turn), MessageID: string(message), Offset: offset, Text: text})
}

// scanned is how many events of the whole tenant are read, at most, for each that may be sent again.
const scanned = 5

// replayPatience is how long somebody who comes back waits for a turn to read the log, in all; who gets none reads the room again.
const replayPatience = 2 * time.Second

// turnCost is how many events the text of a turn that ended meanwhile counts for.
const turnCost = 50

// replay reads again what one connection missed.
type replay struct {
	room     *room
	conn     *conn
	guest    ident.ProjectID
	after    event.Seq // the client has everything up to here
	at       event.Seq // what is missed goes up to here
	patience time.Duration
	frames   [][]byte
	size     int
	count    int // events
	told     half
}

// missed reads what the room's log has after a position, up to another one. whole is false when that is too much, or the
// position is not of this log: the client has to read everything again.
func (r *room) missed(ctx context.Context, ws *workspace.Workspace, c *conn, guest ident.ProjectID, after *event.Seq, at event.Seq) (
	frames [][]byte, whole bool, err error) {
	if after == nil || *after == at {
		return nil, true, nil
	}
	if *after > at || at-*after > event.Seq(scanned*r.hub.MaxReplay) {
		return nil, false, nil
	}
	p := &replay{room: r, conn: c, guest: guest, after: *after, at: at, patience: replayPatience}
	// What the client heard last may be the first half of a turn's end, which the event before it tells.
	for from := max(*after-2, 0); from < at; {
		if from, whole, err = p.page(ctx, ws, from); err != nil || !whole {
			return nil, false, fault.Wrap("live.missed", err)
		}
	}
	return p.frames, true, nil
}

// page reads one page of the log, when it is this account's turn.
func (p *replay) page(ctx context.Context, ws *workspace.Workspace, from event.Seq) (upTo event.Seq, whole bool, err error) {
	r, began := p.room, time.Now()
	actor, _ := p.conn.who()
	wait, cancel := context.WithTimeout(ctx, p.patience)
	defer cancel()
	done, err := r.hub.Feeds.Again(wait, r.tenant, actor.Account, p.guest != "")
	switch {
	case fault.Is(err, fault.Throttled) && ctx.Err() == nil:
		return from, false, nil
	case err != nil:
		return from, false, err
	}
	p.patience -= time.Since(began)
	looked := 0
	defer func() { done(looked) }()
	list, err := ws.Events.Since(ctx, from, 200)
	if err != nil {
		return from, false, err
	}
	looked = len(list)
	if looked == 0 {
		return from, false, nil // the log was replaced meanwhile
	}
	for _, e := range list {
		from = e.Seq
		if e.Seq > p.at {
			break
		}
		if e.Seq <= p.after {
			r.ended(e, &p.told)
			continue
		}
		if e.Type == event.Restored {
			return from, false, nil
		}
		if !e.Concerns(r.id) {
			continue
		}
		if turn := r.ended(e, &p.told); turn != "" {
			looked += turnCost
			rest, all := r.rest(ctx, ws, turn, nil)
			if !all {
				return from, false, nil
			}
			for _, b := range rest {
				p.add(b)
			}
		}
		if b := (&audience{room: r, e: e}).frame(p.guest); b != nil {
			p.add(b)
		}
		// Half of what may wait for a reader is room for what happens meanwhile.
		if p.count++; p.count > r.hub.MaxReplay || p.size > r.hub.MaxWaiting/2 {
			return from, false, nil
		}
	}
	return from, true, nil
}

func (p *replay) add(b []byte) { p.frames, p.size = append(p.frames, b), p.size+len(b) }

// half is the first of the two events with which a turn ends.
type half struct {
	turn    ident.TurnID
	message bool
}

// ended is the turn whose end begins with an event: its last text comes before that. A turn ends with message.completed and then
// turn.completed, or another end; logs of earlier versions have them the other way round. The second of two is nothing new:
// told remembers the first.
func (r *room) ended(e event.Event, told *half) (turn ident.TurnID) {
	if r.talk == "" {
		return ""
	}
	h := half{}
	switch e.Type {
	case "turn.completed", "turn.failed", "turn.stopped", "turn.interrupted":
		h.turn = ident.TurnID(e.Subject)
	case "message.completed":
		h.turn, h.message = ident.TurnID(e.About().Turn), true
	default:
		return ""
	}
	if h.turn == told.turn && h.message != told.message {
		*told = half{}
		return ""
	}
	*told = h
	return h.turn
}

// rest is the end of a turn's text; t is what was told of the turn, nil for nothing. all is false when it could not be read.
func (r *room) rest(ctx context.Context, ws *workspace.Workspace, turn ident.TurnID, t *running) (frames [][]byte, all bool) {
	x, err := ws.Conversations.Turn(ctx, ident.System(""), r.talk, turn)
	if err != nil {
		return nil, fault.Is(err, fault.NotFound) // deleted since
	}
	if x.Assistant == nil {
		return nil, true
	}
	have := 0
	if t != nil {
		have = t.units
	}
	return r.deltas(turn, x.Assistant.ID, have, conversation.TextFrom(x.Assistant.Content, have)), true
}

// Tell implements workspace.Listener.
func (r *room) Tell(ctx context.Context, ws *workspace.Workspace, events []event.Event) {
	r.guarded(func() {
		again := false
		for _, e := range events {
			// Not only what they name may be gone, or closed to some.
			again = again || e.Type == "project.deleted" || e.Type == "conversation.moved" || strings.HasPrefix(e.Type, "data.")
			switch {
			case e.Type == event.Restored:
				r.resync(e.Seq)
			case e.Concerns(r.id):
				r.tell(ctx, ws, e)
			case e.Type == "project.deleted": // its conversations may have stayed
				r.mu.Lock()
				out, reason := r.leavers(e)
				r.mu.Unlock()
				r.dismiss(out, reason)
			}
		}
		if again {
			r.again = true
		}
		r.mu.Lock()
		r.at = events[len(events)-1].Seq
		r.mu.Unlock()
	})
}

// Told looks again at the members when everybody was told what makes that necessary, and not before: a room that was deleted
// says so to those who are in it, which may have been told after this one, and a look would find no more than that they may not
// see it. Many rooms of one connection then ask for one look.
func (r *room) Told() {
	if r.again {
		r.again = false
		r.guarded(r.recheck)
	}
}

// guarded does something for the room. Should that panic, what its members know is worth nothing: their connections end,
// and nothing else does. It must not hold r.mu without a deferred Unlock where anything can go wrong.
func (r *room) guarded(do func()) {
	defer func() {
		if p := recover(); p != nil {
			r.hub.panicked(p)
			for _, c := range r.everyone() {
				c.over(broken)
			}
		}
	}()
	do()
}

// everyone is who is in the room on this node.
func (r *room) everyone() []*conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.members))
}

func (r *room) tell(ctx context.Context, ws *workspace.Workspace, e event.Event) {
	var rest [][]byte
	all := true
	turn := r.ended(e, &r.told)
	if turn != "" {
		r.mu.Lock()
		t := r.turns[turn]
		if t != nil {
			t.ending = true
			t.cancel()
		}
		if r.early != nil {
			r.early[turn] = true
		}
		r.mu.Unlock()
		rest, all = r.rest(ctx, ws, turn, t)
	}
	r.dismiss(r.happen(e, turn, rest, all))
}

// happen tells the members of an event, and returns those whose access ends with it. rest is text that comes before it, of the turn
// that it ends; all is false where some of that could not be read.
func (r *room) happen(e event.Event, ended ident.TurnID, rest [][]byte, all bool) (out []*conn, reason string) {
	// In one go: who joins does so before all of it, or after.
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.turns, ended)
	for _, b := range rest {
		r.broadcast(b, nil)
	}
	r.show(e)
	if !all { // whoever wants the text has to read it
		r.broadcast(encode("resync", nil, resyncData{RoomID: r.id, Seq: int64(e.Seq)}), nil)
	}
	r.at = e.Seq
	if e.Type == "turn.started" && r.talk != "" {
		var data struct {
			Message ident.MessageID `json:"assistant_message_id"`
		}
		_ = json.Unmarshal(e.Data, &data) // our own
		r.follow(ident.TurnID(e.Subject), data.Message)
	}
	return r.leavers(e)
}

// Lost implements workspace.Listener: what members know is of a log that is no more.
func (r *room) Lost(at event.Seq) {
	r.resync(at)
	r.recheck()
}

// resync tells everybody to read the room again.
func (r *room) resync(at event.Seq) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at = at
	r.broadcast(encode("resync", nil, resyncData{RoomID: r.id, Seq: int64(at)}), nil)
}

// broadcast sends a frame to every member but some. The caller has r.mu.
func (r *room) broadcast(b []byte, but func(*conn) bool) {
	for c, m := range r.members {
		if but == nil || !but(c) {
			m.hear(c, b)
		}
	}
}

// recheck looks again whether the members may be here.
func (r *room) recheck() {
	for _, c := range r.everyone() {
		r.hub.look(c)
	}
}

var errTold = errors.New("the turn was told")

// follow tells the members of a running turn's text. The caller has r.mu.
func (r *room) follow(turn ident.TurnID, message ident.MessageID) {
	if r.closed || r.turns[turn] != nil {
		return
	}
	ctx, cancel := context.WithCancel(r.hub.life)
	t := &running{message: message, cancel: cancel}
	r.turns[turn] = t
	r.hub.work.Go(func() {
		defer cancel()
		r.guarded(func() { r.listen(ctx, turn, t) })
	})
}

// listen tells the members of a turn's text until it ends.
func (r *room) listen(ctx context.Context, turn ident.TurnID, t *running) {
	ws, err := r.hub.Pool.Acquire(ctx, ident.System(""), r.tenant)
	if err != nil {
		return // the end of the turn brings all of its text
	}
	defer ws.Release()
	// "0" is the id of the start: what follows is text.
	err = ws.Conversations.Follow(ctx, ident.System(""), r.talk, turn, "0", func(m conversation.Moment) error {
		if m.Type != conversation.MomentDelta {
			return errTold // the log tells of the end
		}
		return r.said(turn, t, m)
	})
	if err != nil && !errors.Is(err, errTold) && ctx.Err() == nil {
		r.hub.Log.Warn("turn not followed", "code", fault.CodeOf(err), "turn", turn)
	}
}

// said tells of a piece of text.
func (r *room) said(turn ident.TurnID, t *running, m conversation.Moment) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.turns[turn] != t || t.ending {
		return errTold
	}
	t.text.WriteString(m.Text)
	t.units = m.Offset + conversation.TextLength(m.Text)
	r.broadcast(r.delta(turn, m.MessageID, m.Offset, m.Text), nil)
	return nil
}

// runs reports whether the turn runs in the room.
func (r *room) runs(turn ident.TurnID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.turns[turn] != nil
}
