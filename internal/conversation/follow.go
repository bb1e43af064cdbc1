package conversation

import (
	"context"
	"strconv"
	"strings"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Ids of moments: the start is "0", a piece of text is the length of the text after it, waiting is "w" and the length of the
// text before it, then "m" for the whole message and "e" for the end. A client that hands one back gets what follows it.
const (
	idStart   = "0"
	idWaiting = "w"
	idMessage = "m"
	idEnd     = "e"
)

// lookAgain is how often a follower of a turn that another node runs, or that says nothing, reads its state.
const lookAgain = 2 * time.Second

// wishAgain is how often the node that runs a turn is asked again to stop it, in case it did not hear. When it says nothing
// for the engine's StopPatience it is not waited for any longer.
const wishAgain = 250 * time.Millisecond

// whoLeft says that whoever asked is not there any more.
func whoLeft(ctx context.Context, op string) error {
	return fault.New(fault.Canceled, op, "", "the request ended").With(ctx.Err())
}

// Stop ends a running turn and keeps the text that had arrived. It returns the turn as it then stands; a turn that
// had ended already stays as it is. Where the node that runs it does not hear, the turn ends with the text that is stored,
// and with codeStopped until that node has added its last word.
func (s *Service) Stop(ctx context.Context, actor ident.Actor, id ident.ConversationID, turn ident.TurnID) (Turn, error) {
	const op = "conversation.Stop"
	if err := s.pass.Allow(op, actor, access.TakePart); err != nil {
		return Turn{}, err
	}
	// What runs here is stopped even while the database is away.
	j := s.engine.running(turn)
	if j == nil || j.service != s.base || j.id != id {
		t, err := s.stopElsewhere(ctx, actor, id, turn)
		return t, fault.Wrap(op, err)
	}
	if s.pass.Guest() { // whether the conversation is in the project, its database alone knows
		if x, err := s.exchange(ctx, id, turn); err != nil || x.Turn.State.Final() {
			return deref(x.Turn), fault.Wrap(op, err)
		}
	}
	j.cancel(errStopped)
	select {
	case <-j.ended:
	case <-ctx.Done():
		return Turn{}, whoLeft(ctx, op)
	}
	if x, ok := j.exchange(); ok && x.Turn.State.Final() {
		return *x.Turn, nil
	}
	x, err := s.exchange(ctx, id, turn)
	if err == nil && x.Turn.State == Waiting { // it had begun to wait before it heard
		t, err := s.stopFor(ctx, actor, turn)
		return t, fault.Wrap(op, err)
	}
	if err == nil && !x.Turn.State.Final() {
		return Turn{}, fault.New(fault.Conflict, op, "turn_running",
			"the turn has stopped, but its end is not stored yet: look again").RetryAfter(2 * time.Second)
	}
	return deref(x.Turn), fault.Wrap(op, err)
}

func (s *Service) stopElsewhere(ctx context.Context, actor ident.Actor, id ident.ConversationID, turn ident.TurnID) (Turn, error) {
	bus := s.engine.bus
	sub := bus.Subscribe(string(turn), 64)
	defer sub.Close()
	again := time.NewTicker(wishAgain)
	defer again.Stop()
	late := time.NewTimer(s.engine.StopPatience)
	defer late.Stop()
	wish := event.Signal{Topic: stopTopic(turn), Kind: event.Stop}
	for asked, look := false, true; ; {
		if look {
			x, err := s.exchange(ctx, id, turn)
			if err != nil || x.Turn.State.Final() {
				return deref(x.Turn), err
			}
			if x.Turn.State == Waiting { // nobody has to be asked
				return s.stopFor(ctx, actor, turn)
			}
		}
		if !asked { // not before it is known that the turn is this tenant's
			bus.Publish(ctx, wish)
			asked = true
		}
		look = false
		select {
		case sig := <-sub.C:
			look = sub.Lost() || sig.Kind == event.Ended
		case <-again.C:
			bus.Publish(ctx, wish)
		case <-late.C:
			return s.stopFor(ctx, actor, turn)
		case <-ctx.Done():
			return Turn{}, ctx.Err()
		}
	}
}

// stopFor ends a turn that waits, or one in the place of an owner who does not hear. That owner finds it with its next
// flush, at the latest when it renews its lease.
func (s *Service) stopFor(ctx context.Context, actor ident.Actor, turn ident.TurnID) (Turn, error) {
	changed := false
	done, err := s.store.EndTurn(ctx, turn, func(t Turn, m Message) (Ending, event.Change, error) {
		if changed = !t.State.Final(); !changed {
			return Ending{Turn: t, Message: m}, event.Change{}, nil
		}
		code, detail := codeStopped, "the server that wrote this answer did not hear that it should stop; what it had stored is kept"
		if t.State == Waiting {
			code, detail = "", ""
		}
		e, ch := ending(actor, t, m, Stopped, code, detail, s.moment(), s.engine.estimate)
		return e, ch, nil
	})
	if err != nil {
		return Turn{}, err
	}
	s.engine.told(done, changed)
	return done.Turn, nil
}

// Here reports whether this process runs the turn.
func (s *Service) Here(turn ident.TurnID) bool { return s.engine.running(turn) != nil }

// Await waits for the end of a turn and returns it with its messages. While the tenant's database is away it does not wait
// for that end to get there: it returns a turn that goes on.
func (s *Service) Await(ctx context.Context, actor ident.Actor, id ident.ConversationID, turn ident.TurnID) (Exchange, error) {
	return s.follow(ctx, actor, id, turn, idMessage, func(Moment) error { return nil }, false)
}

// Tell is Follow of a turn that has ended, as it was read.
func Tell(x Exchange, lastID string, emit func(Moment) error) error {
	f, err := begin(x, lastID, emit)
	if f == nil || err != nil {
		return err
	}
	return f.end(x)
}

// Follow tells of a turn from its start, or from just after lastID, up to its end: no gap, no repeat, wherever the
// turn runs and whenever the follower comes. It returns after the end, when emit fails (with that error), or with ctx.
// An unknown lastID counts as none.
func (s *Service) Follow(ctx context.Context, actor ident.Actor, id ident.ConversationID, turn ident.TurnID, lastID string,
	emit func(Moment) error,
) error {
	_, err := s.follow(ctx, actor, id, turn, lastID, emit, true)
	return err
}

// follow is Follow, if it is patient, and returns the turn as it ended.
func (s *Service) follow(ctx context.Context, actor ident.Actor, id ident.ConversationID, turn ident.TurnID, lastID string,
	emit func(Moment) error, patient bool,
) (x Exchange, err error) {
	const op = "conversation.Follow"
	if err := s.pass.Allow(op, actor, access.ReadConversation); err != nil {
		return x, err
	}
	sub := s.engine.bus.Subscribe(string(turn), 256)
	defer sub.Close()
	// Of a turn that runs here this process knows all that the database does: a client far from it need not wait.
	j := s.engine.running(turn)
	local := func() (x Exchange, ok bool) {
		if j == nil || j.service != s.base || j.id != id {
			return x, false
		}
		return j.exchange()
	}
	x, ok := local()
	if !ok || s.pass.Guest() { // whether the conversation is in the project, its database alone knows
		if x, err = s.exchange(ctx, id, turn); err != nil {
			return x, fault.Wrap(op, err)
		}
	}
	f, err := begin(x, lastID, emit)
	if f == nil || err != nil {
		return x, err
	}
	look := time.NewTicker(lookAgain)
	defer look.Stop()
	between := time.NewTimer(time.Hour)
	defer between.Stop()
	for {
		if x.Turn.State.Final() {
			return x, f.end(x)
		}
		if err := f.upTo(s.textSoFar(x)); err != nil {
			return x, err
		}
		if x.Turn.State == Waiting && !f.waited && !f.quiet {
			f.waited = true
			if err := emit(Moment{ID: idWaiting + strconv.Itoa(f.have), Type: MomentWaiting, Turn: x.Turn}); err != nil {
				return x, err
			}
		}
		if len(f.ahead) > 0 {
			between.Reset(s.engine.FlushAge)
		}
		again, ended := false, false
		for !again {
			select {
			case <-ctx.Done():
				return x, whoLeft(ctx, op)
			case <-look.C:
				again = s.engine.running(turn) == nil
			case <-between.C:
				again = true
			case sig := <-sub.C:
				ended = sig.Kind == event.Ended
				again = sub.Lost() || ended
				if again || sig.Kind != event.Delta {
					continue
				}
				first := len(f.ahead) == 0
				if err := f.piece(sig.Offset, sig.Text); err != nil {
					return x, err
				}
				if first && len(f.ahead) > 0 {
					between.Reset(s.engine.FlushAge)
				}
			}
		}
		if now, ok := local(); ok && now.Turn.State.Final() {
			x = now
			continue
		}
		if !ended && s.engine.running(turn) != nil {
			continue // the database knows no more than this process
		}
		held := s.holds(turn) // asked before, too: the database may come back, and get the end, while it is said to be away
		now, err := s.exchange(ctx, id, turn)
		switch {
		case err == nil:
			x = now
		case fault.Is(err, fault.Unavailable) && !patient:
			return x, nil
		case fault.Is(err, fault.Unavailable) && (held || s.holds(turn)):
			// All of it was said, and its end is in the spool: it comes when the database is back.
		default:
			return x, fault.Wrap(op, err)
		}
	}
}

// textSoFar is the freshest text of a running turn that this node knows.
func (s *Service) textSoFar(x Exchange) string {
	if j := s.engine.running(x.Turn.ID); j != nil {
		return j.soFar()
	}
	return x.Assistant.Content
}

// follower remembers how much of the text it has told.
type follower struct {
	emit    func(Moment) error
	message ident.MessageID
	have    int  // UTF-16 code units
	quiet   bool // only the end is wanted
	waited  bool // it was told that the turn waits
	// ahead are pieces that came before what is between: the database has that as soon as the turn's node has stored it.
	ahead []event.Signal
}

// maxAhead is how many pieces wait for what is between; those after them come from the database as well.
const maxAhead = 256

// begin tells the start of a turn, unless lastID is behind that, and returns who tells the rest; nil when there is none.
func begin(x Exchange, lastID string, emit func(Moment) error) (*follower, error) {
	f := &follower{emit: emit, message: x.Assistant.ID}
	switch lastID {
	case idEnd:
		return nil, nil //nolint:nilnil // said above
	case idMessage:
		f.quiet = true
		return f, nil
	}
	var length string
	length, f.waited = strings.CutPrefix(lastID, idWaiting)
	n, err := strconv.Atoi(length)
	if err == nil && n >= 0 {
		f.have = n
		return f, nil
	}
	f.waited = false
	stub := *x.Assistant
	stub.Content, stub.Blocks, stub.State, stub.Usage = "", nil, Streaming, Usage{}
	first := *x.Turn
	first.State, first.FinishedAt, first.ErrorCode, first.ErrorDetail = Streaming, nil, "", ""
	return f, emit(Moment{ID: idStart, Type: MomentStarted, Turn: &first, User: &x.User, Assistant: &stub})
}

// upTo tells what is missing of text, and what had come ahead of it.
func (f *follower) upTo(text string) error {
	ahead := f.ahead
	f.ahead = nil
	if err := f.piece(0, text); err != nil {
		return err
	}
	for _, sig := range ahead {
		if err := f.piece(sig.Offset, sig.Text); err != nil {
			return err
		}
	}
	return nil
}

// piece tells the part of a piece at offset that was not told yet.
func (f *follower) piece(offset int, text string) error {
	end := offset + utf16Len(text)
	if f.quiet || end <= f.have {
		return nil
	}
	if offset > f.have {
		if len(f.ahead) < maxAhead {
			f.ahead = append(f.ahead, event.Signal{Offset: offset, Text: text})
		}
		return nil
	}
	at := f.have
	text = utf16From(text, at-offset)
	f.have = end
	return f.emit(Moment{ID: strconv.Itoa(end), Type: MomentDelta, MessageID: f.message, Offset: at, Text: text})
}

// end tells the rest of the text, the message and how the turn ended.
func (f *follower) end(x Exchange) error {
	if !f.quiet {
		if err := f.piece(0, x.Assistant.Content); err != nil {
			return err
		}
		if err := f.emit(Moment{ID: idMessage, Type: MomentMessage, Assistant: x.Assistant}); err != nil {
			return err
		}
	}
	return f.emit(Moment{ID: idEnd, Type: MomentType("turn." + string(x.Turn.State)), Turn: x.Turn})
}

func deref(t *Turn) Turn {
	if t == nil {
		return Turn{}
	}
	return *t
}
