package conversation

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Why a running turn was told to end before its model was done.
var (
	errStopped = errors.New("stopped by a person")
	errGoing   = errors.New("the server is stopping")
	errLost    = errors.New("the turn belongs to somebody else now, or is gone")
)

// storeFor is how long the end of a turn is offered to a database that does not take it. After that the lease runs
// out and whoever meets the turn marks it interrupted, with the text that was flushed.
const storeFor = 2 * time.Minute

// job is one running turn.
type job struct {
	engine  *Engine
	service *Service
	turn    ident.TurnID
	want    AgainInput
	id      ident.ConversationID
	asked   Message // retry and continue: the user's message
	prefix  string  // Continue: the text that the new version begins with

	provider string
	model    Model
	system   string
	actor    ident.Actor
	conv     Conversation
	x        Exchange

	ctx    context.Context //nolint:containedctx // the turn's own life, which no caller owns
	cancel context.CancelCauseFunc
	ended  chan struct{} // closed when the end is stored, or given up

	mu    sync.Mutex
	text  []byte    // all of the answer so far, prefix included
	since time.Time // when the oldest piece came that no flush has taken yet; zero: all are taken
	units int       // the length of text in UTF-16 code units
	first time.Time // when the first piece came
	wake  chan struct{}
}

// prepare chooses provider and model and renders the system prompt; it completes the turn.
func (j *job) prepare(op string, sp Spot, t *Turn) (system string, err error) {
	j.provider, j.model, err = j.engine.model(op, j.want.Provider, sp.Conversation.Provider, sp.ProjectProvider)
	if err != nil {
		return "", err
	}
	t.Provider = j.provider
	for _, m := range []string{j.want.Model, sp.Conversation.Model, sp.ProjectModel, j.engine.DefaultModels[j.provider]} {
		if m != "" {
			t.Model = m
			break
		}
	}
	j.system = renderSystem(sp.Instructions, sp.Conversation.System)
	t.SystemHash = hashOf(j.system)
	return j.system, nil
}

// run answers and stores the end. It returns when the end is committed or cannot be.
func (j *job) run() {
	flushed := make(chan struct{})
	quit := make(chan struct{})
	go func() { defer close(flushed); j.flush(quit) }()

	answer, omitted, hash, err := j.ask()
	close(quit)
	<-flushed
	cause := context.Cause(j.ctx)
	if errors.Is(cause, errLost) {
		return
	}
	j.finish(answer, omitted, hash, err, cause)
}

func (j *job) ask() (Answer, int64, string, error) {
	prompt, omitted, hash, err := j.service.prompt(j.ctx, j)
	if err != nil {
		return Answer{}, 0, "", err
	}
	begun := j.engine.Now()
	answer, err := j.model.Answer(j.ctx, prompt, func(piece string) {
		if answer := j.engine.Now(); begun.Before(answer) && j.first.IsZero() {
			j.first = answer
		}
		j.say(piece)
	})
	return answer, omitted, hash, err
}

// say takes a piece of text from the model: kept here, sent to whoever follows, flushed soon.
func (j *job) say(piece string) {
	piece = clean(piece)
	if piece == "" {
		return
	}
	j.mu.Lock()
	at := j.units
	j.text = append(j.text, piece...)
	j.units += utf16Len(piece)
	if j.since.IsZero() {
		j.since = j.engine.Now()
	}
	j.mu.Unlock()
	j.engine.bus.Publish(j.ctx, event.Signal{Topic: string(j.turn), Kind: event.Delta, Offset: at, Text: piece})
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// soFar returns the text that has arrived.
func (j *job) soFar() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return string(j.text)
}

// flush stores what has arrived, at least every FlushAge or FlushSize, and renews the lease, until quit.
func (j *job) flush(quit <-chan struct{}) {
	e := j.engine
	stored, storedUnits := len(j.prefix), utf16Len(j.prefix)
	renew := time.NewTicker(e.Config.Lease / 3)
	defer renew.Stop()
	age := time.NewTimer(time.Hour)
	age.Stop()
	defer age.Stop()
	waiting := false
	put := func() {
		waiting = false
		age.Stop()
		j.mu.Lock()
		text, units := string(j.text[stored:]), j.units
		j.since = time.Time{}
		j.mu.Unlock()
		until := e.lease()
		// A connection that is half dead must not outlast the lease.
		ctx, cancel := context.WithTimeout(j.ctx, e.Config.Lease/2)
		defer cancel()
		held, err := j.service.store.FlushTurn(ctx, *j.x.Turn, storedUnits, text, until)
		switch {
		case err != nil:
			// The text is still here; the next flush takes all of it. Only a flush whose outcome is unknown could
			// have moved the stored length: look before the next one.
			e.Log.Warn("turn not flushed", "code", fault.CodeOf(err))
			j.mu.Lock()
			j.since = e.Now() // not at once again
			j.mu.Unlock()
			if m, err := j.service.store.FindMessage(ctx, j.conv.ID, j.x.Assistant.ID); err == nil {
				stored, storedUnits = len(m.Content), utf16Len(m.Content)
			}
		case !held:
			j.cancel(errLost)
		default:
			stored += len(text)
			storedUnits = units
			_ = j.service.tenant.Hint(j.ctx, until) // hints may be lost
		}
	}
	for {
		select {
		case <-quit:
			return
		case <-renew.C:
			put()
		case <-age.C:
			put()
		case <-j.wake:
			j.mu.Lock()
			pending, since := len(j.text)-stored, j.since
			j.mu.Unlock()
			if pending >= e.FlushSize {
				put()
			} else if pending > 0 && !waiting {
				waiting = true
				// Not from now: the piece may have waited for a slow flush already.
				age.Reset(max(0, e.FlushAge-e.Now().Sub(since)))
			}
		}
	}
}

// finish commits how the turn ended.
func (j *job) finish(a Answer, omitted int64, hash string, err, cause error) {
	e := j.engine
	now := e.moment()
	text := j.soFar()
	state, code, detail := Completed, "", ""
	switch {
	case err == nil: // it was done before anybody's wish to end it arrived
	case errors.Is(cause, errStopped):
		state = Stopped
	case errors.Is(cause, errGoing):
		state, code, detail = Interrupted, "server_stopped", "the server was stopped while it wrote this answer; retry or continue it"
	default:
		state, code, detail = Failed, fault.CodeOf(err), "the answer could not be finished"
		if f, ok := errors.AsType[*fault.Error](err); ok {
			detail = f.Message
			if f.Class == fault.Internal {
				e.Log.Error("turn failed", "error", err, "turn", j.turn)
			} else {
				e.Log.Warn("turn failed", "code", code, "provider", j.provider, "provider_request", a.RequestID, "turn", j.turn)
			}
		}
		if code == CodeProviderCut {
			state = Interrupted
		}
	}
	end := func(t Turn, m Message) (Ending, event.Change, error) {
		if t.State.Final() {
			return Ending{Turn: t, Message: m}, event.Change{}, nil
		}
		t.Omitted = omitted
		m.Content = text
		m.Blocks = finalBlocks(state, j.prefix, text, a.Blocks)
		m.StopReason, m.Usage, m.RawUsage, m.CostMicroUSD = a.StopReason, a.Usage, a.RawUsage, a.CostMicroUSD
		m.PrefixHash = hash
		if a.Model != "" {
			m.Model = a.Model
		}
		m.FirstTokenMS = a.FirstToken.Milliseconds()
		if m.FirstTokenMS == 0 && !j.first.IsZero() {
			m.FirstTokenMS = max(1, j.first.Sub(t.StartedAt).Milliseconds())
		}
		ending, ch := ending(ident.System(j.actor.RequestID), t, m, state, code, detail, now, e.estimate)
		return ending, ch, nil
	}
	done, err := j.store(end)
	if err != nil {
		e.Log.Error("end of turn not stored", "code", fault.CodeOf(err), "turn", j.turn)
		return
	}
	e.bus.Publish(context.Background(), event.Signal{Topic: string(j.turn), Kind: event.Ended})
	if e.Observe != nil {
		e.Observe(j.provider, done.Turn, done.Message)
	}
	if done.Turn.State == Completed {
		e.title(j.service, j.conv, j.x.User)
	}
}

// store offers the end to the database until it takes it, for at most storeFor.
func (j *job) store(end func(Turn, Message) (Ending, event.Change, error)) (Ending, error) {
	ctx, cancel := context.WithTimeout(j.engine.life, storeFor)
	defer cancel()
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		done, err := j.service.store.EndTurn(ctx, j.turn, end)
		if err == nil || !fault.Is(err, fault.Unavailable) {
			return done, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return Ending{}, err
		}
	}
}

// finalBlocks keeps the provider's blocks verbatim. One text block that says just the content is not kept twice, and
// an unfinished answer keeps its text only: half a block is of no use to anybody.
func finalBlocks(state State, prefix, text string, blocks []json.RawMessage) json.RawMessage {
	if state != Completed || len(blocks) == 0 {
		return nil
	}
	if prefix != "" {
		blocks = append([]json.RawMessage{textBlock(prefix)}, blocks...)
	}
	if len(blocks) == 1 && string(blocks[0]) == string(textBlock(text)) {
		return nil
	}
	raw := []byte{'['}
	for i, b := range blocks {
		if i > 0 {
			raw = append(raw, ',')
		}
		raw = append(raw, b...)
	}
	return append(raw, ']')
}

// clean makes a piece of text storable by every engine.
func clean(piece string) string {
	if !utf8.ValidString(piece) {
		piece = strings.ToValidUTF8(piece, "\uFFFD")
	}
	return strings.ReplaceAll(piece, "\x00", "\uFFFD")
}

// utf16Len is JavaScript's length of s.
func utf16Len(s string) int {
	n := 0
	for _, r := range s {
		n++
		if r > 0xFFFF {
			n++
		}
	}
	return n
}

// utf16From returns what follows the first units UTF-16 code units of s.
func utf16From(s string, units int) string {
	for i, r := range s {
		if units <= 0 {
			return s[i:]
		}
		units--
		if r > 0xFFFF {
			units--
		}
	}
	return ""
}
