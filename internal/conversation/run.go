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

// storeFor is how long the end of a turn is offered to a database that does not take it, where there is no spool or no
// room in it. After that the lease runs out and whoever meets the turn marks it interrupted, with the text that was
// flushed.
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
	until    time.Time // how long a later answer is waited for; set when the prompt is made
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
	known *Exchange // as the database has it: when the turn began, and how it ended; nil before that is committed
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

// run answers and stores the end. It returns when the end is committed, or is in the spool, or can be neither.
func (j *job) run() {
	quit, flushed := make(chan struct{}), make(chan bool, 1)
	go func() { flushed <- j.flush(quit) }()

	answer, omitted, hash, err := j.ask()
	close(quit)
	away := <-flushed
	cause := context.Cause(j.ctx)
	if errors.Is(cause, errLost) {
		j.unspool()
		return
	}
	if err == nil && answer.Later {
		if !errors.Is(cause, errStopped) { // a server that stops need not be there when the answer comes
			j.wait(omitted, hash)
			return
		}
		err = cause
	}
	j.finish(j.outcome(answer, omitted, hash, err, cause), away)
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

// knows notes what was committed of the turn.
func (j *job) knows(x Exchange) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.known = &x
}

// exchange returns the turn as it began or, if that is stored, as it ended, without asking the database.
func (j *job) exchange() (x Exchange, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.known == nil {
		return Exchange{}, false
	}
	return *j.known, true
}

// soFar returns the text that has arrived.
func (j *job) soFar() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return string(j.text)
}

// outcome says how the turn ended.
func (j *job) outcome(a Answer, omitted int64, hash string, err, cause error) *outcome {
	e := j.engine
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
	first := a.FirstToken.Milliseconds()
	if first == 0 && !j.first.IsZero() {
		first = max(1, j.first.Sub(j.x.Turn.StartedAt).Milliseconds())
	}
	return &outcome{State: state, Code: code, Detail: detail, At: e.moment(), Text: text,
		Blocks: finalBlocks(state, j.prefix, text, a.Blocks), Model: a.Model, StopReason: a.StopReason, Usage: a.Usage,
		RawUsage: a.RawUsage, CostMicroUSD: a.CostMicroUSD, FirstTokenMS: first, PrefixHash: hash, Omitted: omitted,
		Request: j.actor.RequestID}
}

// finish commits how the turn ended, or leaves it in the spool until that is possible.
func (j *job) finish(o *outcome, away bool) {
	e := j.engine
	held := away && j.spool(o) // of a database that is known to be away; it may come back while we try
	patience := storeFor
	if j.service.spool != nil {
		patience = e.EndAge
	}
	done, changed, err := j.store(o, patience)
	if postponed(err) && !held {
		if held = j.spool(o); !held && fault.Is(err, fault.Unavailable) {
			done, changed, err = j.store(o, storeFor)
		}
	}
	if postponed(err) && held {
		e.Log.Warn("end of turn kept in the spool", "code", fault.CodeOf(err), "turn", j.turn)
		return // whoever looks after the tenant stores it
	}
	j.unspool()
	if err != nil {
		e.Log.Error("end of turn not stored", "code", fault.CodeOf(err), "turn", j.turn)
		return
	}
	j.knows(Exchange{User: j.x.User, Assistant: &done.Message, Turn: &done.Turn})
	e.told(done, changed)
	if done.Turn.State == Completed {
		e.title(j.service, j.conv, j.x.User)
	}
}

// postponed reports whether what failed may work another day.
func postponed(err error) bool {
	switch fault.ClassOf(err) {
	case fault.Unavailable, fault.Canceled, fault.Forbidden, fault.Conflict:
		return err != nil
	}
	return false
}

// store offers the end to the database until it takes it, for at most patience. changed is false when it had ended
// otherwise before.
func (j *job) store(o *outcome, patience time.Duration) (done Ending, changed bool, err error) {
	ctx, cancel := context.WithTimeout(j.engine.life, patience)
	defer cancel()
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		done, err = j.service.store.EndTurn(ctx, j.turn, func(t Turn, m Message) (Ending, event.Change, error) {
			if changed = o.fits(t, m); !changed {
				return Ending{Turn: t, Message: m}, event.Change{}, nil
			}
			e, ch := o.apply(t, m, j.engine.estimate)
			return e, ch, nil
		})
		if err == nil || !fault.Is(err, fault.Unavailable) {
			return done, changed, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return Ending{}, false, err
		}
	}
}

// spool puts the end into the spool, if there is one and it takes it.
func (j *job) spool(o *outcome) bool {
	if j.service.spool == nil {
		return false
	}
	err := j.service.spool.Append(j.turn, spooled{End: o}.encode())
	if err != nil {
		j.engine.Log.Warn("end of turn kept in memory only: the spool does not take it", "code", fault.CodeOf(err), "turn", j.turn)
	}
	return err == nil
}

// unspool forgets what the spool has of the turn.
func (j *job) unspool() {
	if j.service.spool == nil {
		return
	}
	if err := j.service.spool.Drop(j.turn); err != nil {
		j.engine.Log.Warn("spool not emptied", "code", fault.CodeOf(err), "turn", j.turn)
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

// TextLength is the length of text as offsets of pieces count it: in UTF-16 code units, as JavaScript does.
func TextLength(text string) int { return utf16Len(text) }

// TextFrom is what follows the first units of text.
func TextFrom(text string, units int) string { return utf16From(text, units) }

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
