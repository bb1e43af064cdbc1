package conversation

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// overdue is what people read of a turn whose answer did not come.
const overdue = "the workflow promised to answer later and did not do so in time; retry it"

// deliveryScope is the scope of the records by which a repeated delivery is known.
const deliveryScope = "delivery"

// Delivery is an answer that comes on its own, some time after the call.
type Delivery struct {
	Answer Answer
	// Failure is what kept the workflow from an answer, a *fault.Error with a provider's code; nil: Answer is complete.
	Failure error
	// Body is what came, as it came: a repeat is known by it.
	Body []byte
	// Until is how long somebody may come with the same address, and a repeat is told from another answer.
	Until time.Time
}

// Reception is what became of a delivery.
type Reception string

// The receptions. All but the first change nothing.
const (
	Taken       Reception = "taken"       // it has become the end of the turn
	Repeated    Reception = "repeated"    // the same had been taken before
	Conflicting Reception = "conflicting" // another one had been taken before
	Late        Reception = "late"        // the turn had ended without one: it was stopped, timed out, or failed
	Early       Reception = "early"       // the call has not been answered yet, and what it answers may be the answer
)

// Deliver ends a turn with an answer that was promised for later. The first one counts; whatever comes after the turn's end
// changes nothing. It returns the turn as it then stands. NotFound: there is no such turn.
//
// The answer may be quicker than the promise: one that comes while the call is still out is taken, unless something has been
// said already. The promise then finds that the turn has ended.
func (s *Service) Deliver(ctx context.Context, actor ident.Actor, id ident.ConversationID, turn ident.TurnID, d Delivery) (Turn, Reception, error) {
	const op = "conversation.Deliver"
	if err := s.pass.Allow(op, actor, access.TakePart); err != nil {
		return Turn{}, "", err
	}
	sum := sha256.Sum256(d.Body)
	once := &event.Once{Scope: deliveryScope, Key: string(turn), Fingerprint: sum[:], ExpiresAt: d.Until}
	if err := once.Keep(s.sealer, ""); err != nil { // that it came is all there is to know
		return Turn{}, "", err
	}
	var got Reception
	changed, out := false, false
	done, err := s.store.EndTurn(ctx, turn, func(t Turn, m Message) (Ending, event.Change, error) {
		same := Ending{Turn: t, Message: m}
		got, changed = Late, false
		switch {
		case t.Conversation != id:
			return same, event.Change{}, fault.Missing(op)
		case t.State.Final():
			return same, event.Change{}, nil
		case s.engine.dead(t.ID, t.Node, t.Lease):
			changed = true
			e, ch := s.lapse(t, m)
			return e, ch, nil
		case t.State == Streaming && (m.Content != "" || t.Kind == KindContinue):
			got = Early
			return same, event.Change{}, nil
		}
		got, changed, out = Taken, true, t.State == Streaming
		e, ch := s.delivered(actor, t, m, d)
		ch.Once = once
		return e, ch, nil
	})
	if err != nil {
		return Turn{}, "", fault.Wrap(op, err)
	}
	if changed {
		s.engine.told(done, true)
	}
	if out { // whoever still waits for the call's own answer finds that the turn has ended, and tells those who follow it there
		s.engine.bus.Publish(ctx, event.Signal{Topic: stopTopic(turn), Kind: event.Stop})
	}
	if got == Taken {
		if done.Turn.State == Completed {
			s.engine.titleLater(s.base, done.Turn)
		}
		return done.Turn, got, nil
	}
	if got == Late {
		got, err = s.reception(ctx, once)
	}
	s.engine.Log.Info("a delivered answer changes nothing", "turn", turn, "reception", got, "state", done.Turn.State)
	return done.Turn, got, fault.Wrap(op, err)
}

// reception says what a delivery is that found the turn ended.
func (s *Service) reception(ctx context.Context, once *event.Once) (Reception, error) {
	was, err := s.store.FindOnce(ctx, once.Scope, once.Key)
	switch {
	case fault.Is(err, fault.NotFound):
		return Late, nil
	case err != nil:
		return "", err
	case subtle.ConstantTimeCompare(was.Fingerprint, once.Fingerprint) == 1:
		return Repeated, nil
	}
	return Conflicting, nil
}

// delivered ends a turn with what was delivered. A continued answer begins with what it goes on from.
func (s *Service) delivered(actor ident.Actor, t Turn, m Message, d Delivery) (Ending, event.Change) {
	a, now := d.Answer, s.moment()
	o := outcome{State: Completed, At: now, Text: m.Content + clean(a.Text), Model: a.Model, StopReason: a.StopReason, Usage: a.Usage,
		RawUsage: a.RawUsage, CostMicroUSD: a.CostMicroUSD, FirstTokenMS: max(1, now.Sub(t.StartedAt).Milliseconds()),
		PrefixHash: m.PrefixHash, Omitted: t.Omitted, Request: actor.RequestID}
	if d.Failure != nil {
		o = outcome{State: Failed, Code: fault.CodeOf(d.Failure), Detail: "the workflow failed", At: now, Text: m.Content,
			PrefixHash: m.PrefixHash, Omitted: t.Omitted, Request: actor.RequestID}
		if f, ok := errors.AsType[*fault.Error](d.Failure); ok {
			o.Detail = f.Message
		}
	}
	o.Blocks = finalBlocks(o.State, m.Content, o.Text, a.Blocks)
	return o.apply(t, m, s.engine.estimate)
}

// lapse ends a turn that nobody else will end.
func (s *Service) lapse(t Turn, m Message) (Ending, event.Change) {
	if t.State == Waiting {
		return ending(ident.System(""), t, m, Failed, CodeCallbackTimeout, overdue, s.moment(), s.engine.estimate)
	}
	return s.ownerGone(t, m)
}

// wait commits that the turn waits for its answer to be delivered. From then on no process owns it: that it fails when
// nothing has come in time is due work like any other, and its hint stands before it is committed.
func (j *job) wait(omitted int64, hash string) {
	e := j.engine
	ctx, cancel := context.WithTimeout(e.life, storeFor)
	defer cancel()
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		done, err := j.promised(ctx, omitted, hash)
		if err == nil {
			j.knows(Exchange{User: j.x.User, Assistant: &done.Message, Turn: &done.Turn})
			// Who follows it reads it again.
			e.bus.Publish(ctx, event.Signal{Topic: string(j.turn), Kind: event.Ended})
			return
		}
		if fault.Is(err, fault.Unavailable) {
			select {
			case <-time.After(pause):
				continue
			case <-ctx.Done():
			}
		}
		// The lease runs out, and whoever meets the turn marks it interrupted.
		e.Log.Error("waiting turn not stored", "code", fault.CodeOf(err), "turn", j.turn)
		return
	}
}

// promised stores that the turn waits, unless it has ended meanwhile.
func (j *job) promised(ctx context.Context, omitted int64, hash string) (Ending, error) {
	s := j.service
	if err := s.tenant.Hint(ctx, j.until); err != nil {
		return Ending{}, err
	}
	return s.store.EndTurn(ctx, j.turn, func(t Turn, m Message) (Ending, event.Change, error) {
		if t.State != Streaming || t.Node != j.engine.node {
			return Ending{Turn: t, Message: m}, event.Change{}, nil
		}
		t.State, t.Node, t.Lease, t.Omitted = Waiting, nobody, j.until, omitted
		m.PrefixHash, m.Node, m.Lease = hash, nobody, j.until
		ch := event.NewChange(ident.System(j.actor.RequestID), s.moment())
		ch.Add("turn.waiting", string(t.ID), map[string]any{"conversation_id": t.Conversation, "project_id": nullable(string(t.Project)),
			"turn_id": t.ID, "message_id": m.ID, "state": t.State, "deadline": t.Lease})
		return Ending{Turn: t, Message: m}, ch, nil
	})
}
