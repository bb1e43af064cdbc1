package conversation

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Spool keeps, on this machine, what running turns have to say while their tenant's database does not take it; package
// spool implements it. It is one tenant's, and safe for concurrent use.
type Spool interface {
	// Append adds a record to what is kept of the turn. It is on the disk when Append returns. Unavailable: it is full
	// (code "spool_full"), or the disk is.
	Append(turn ident.TurnID, record []byte) error
	// Records returns what is kept of the turn, in order; nothing when there is none.
	Records(turn ident.TurnID) ([][]byte, error)
	// Drop forgets what is kept of the turn; SetAside keeps it and no longer speaks of it.
	Drop(turn ident.TurnID) error
	SetAside(turn ident.TurnID)
	// Turns are those of which something is kept; Holds reports whether the turn is one of them.
	Turns() []ident.TurnID
	Holds(turn ident.TurnID) bool
}

// restoreAgain is when to look again at a spool that could not be emptied.
const restoreAgain = 2 * time.Second

// The error codes of turns that somebody else than their owner has ended: because its lease ran out, or because it did not
// hear that it should stop.
const (
	codeOwnerGone = "owner_gone"
	codeStopped   = "stopped_elsewhere"
)

// spooled is one record of the spool: a piece of text, or how the turn ended.
type spooled struct {
	At   int      `json:"at,omitempty"` // where the text begins, in UTF-16 code units
	Text string   `json:"text,omitempty"`
	End  *outcome `json:"end,omitempty"`
}

func (r spooled) encode() []byte {
	raw, err := json.Marshal(r)
	if err != nil {
		panic("a record that cannot be marshalled: " + err.Error()) // text, numbers, and JSON that was parsed before
	}
	return raw
}

// outcome is how a turn ended, as only its own run can know it.
type outcome struct {
	State        State           `json:"state"`
	Code         string          `json:"code,omitempty"`
	Detail       string          `json:"detail,omitempty"`
	At           time.Time       `json:"at"`
	Text         string          `json:"text"` // all of it
	Blocks       json.RawMessage `json:"blocks,omitempty"`
	Model        string          `json:"model,omitempty"`
	StopReason   string          `json:"stop_reason,omitempty"`
	Usage        Usage           `json:"usage"`
	RawUsage     json.RawMessage `json:"raw_usage,omitempty"`
	CostMicroUSD int64           `json:"cost,omitempty"`
	FirstTokenMS int64           `json:"first_token_ms,omitempty"`
	PrefixHash   string          `json:"prefix_hash,omitempty"`
	Omitted      int64           `json:"omitted,omitempty"`
	Request      string          `json:"request,omitempty"` // that the turn was asked for in
}

// fits reports whether the outcome may become the end of a turn that is stored like this. Ends are final but for one: what
// somebody else has ended knows no more than the database did, and the owner's word goes on from there.
func (o *outcome) fits(t Turn, m Message) bool {
	return !t.State.Final() || guessed(t) && strings.HasPrefix(o.Text, m.Content)
}

// guessed reports whether somebody else than the owner has ended the turn.
func guessed(t Turn) bool {
	return t.State == Interrupted && t.ErrorCode == codeOwnerGone || t.State == Stopped && t.ErrorCode == codeStopped
}

func (o *outcome) apply(t Turn, m Message, tokens func(string, json.RawMessage) int64) (Ending, event.Change) {
	t.Omitted = o.Omitted
	m.Content, m.Blocks = o.Text, o.Blocks
	m.StopReason, m.Usage, m.RawUsage, m.CostMicroUSD = word(o.StopReason), o.Usage, o.RawUsage, o.CostMicroUSD
	m.PrefixHash, m.FirstTokenMS = o.PrefixHash, o.FirstTokenMS
	if o.Model != "" {
		m.Model = word(o.Model)
	}
	m.Tokens, m.LatencyMS = 0, 0 // of the guess
	return ending(ident.System(o.Request), t, m, o.State, o.Code, o.Detail, o.At, tokens)
}

// word makes a short name of what a provider calls something. An answer is not lost because of a name that cannot be stored.
func word(name string) string {
	const most = 200
	if len(name) > most {
		name = name[:most]
	}
	return clean(name)
}

// kept is what the spool has of one turn.
type kept struct {
	pieces []spooled
	end    *outcome
}

func (s *Service) kept(turn ident.TurnID) (k kept, err error) {
	records, err := s.spool.Records(turn)
	if err != nil {
		return kept{}, err
	}
	for _, raw := range records {
		var r spooled
		if err := json.Unmarshal(raw, &r); err != nil {
			return kept{}, fault.Wrap("conversation.Spool", err)
		}
		if r.End != nil {
			k.end = r.End
		} else {
			k.pieces = append(k.pieces, r)
		}
	}
	return k, nil
}

// onto puts the pieces behind or over a text of which they are the end. What is stored may have more than the spool was
// told: a flush whose answer did not come.
func (k kept) onto(text string) string {
	length := utf16Len(text)
	for _, p := range k.pieces {
		if end := p.At + utf16Len(p.Text); p.At <= length && end > length {
			text += utf16From(p.Text, length-p.At)
			length = end
		}
	}
	return text
}

// holds reports whether the spool has something of a turn that nobody runs here any more.
func (s *Service) holds(turn ident.TurnID) bool {
	return s.spool != nil && s.spool.Holds(turn) && s.engine.running(turn) == nil
}

// restore stores what the spool has of a turn: its end, or else, where its process died before it came to one, all that
// it had said. Doing it twice is doing it once. What the database does not take stays in the spool, with the error; what
// nobody can use is set aside.
func (s *Service) restore(ctx context.Context, turn ident.TurnID) error {
	k, err := s.kept(turn)
	if err != nil {
		return s.unusable(turn, err)
	}
	changed := false
	done, err := s.store.EndTurn(ctx, turn, func(t Turn, m Message) (Ending, event.Change, error) {
		changed = false
		same := Ending{Turn: t, Message: m}
		if k.end != nil {
			if !k.end.fits(t, m) {
				return same, event.Change{}, nil
			}
			changed = true
			e, ch := k.end.apply(t, m, s.engine.estimate)
			return e, ch, nil
		}
		text := k.onto(m.Content)
		if t.State == Waiting { // nobody runs it, so nobody is gone
			return same, event.Change{}, nil
		}
		if t.State.Final() && (!guessed(t) || text == m.Content) {
			return same, event.Change{}, nil
		}
		changed = true
		m.Content, m.Tokens, m.LatencyMS = text, 0, 0
		if guessed(t) {
			e, ch := ending(ident.System(""), t, m, t.State, t.ErrorCode, t.ErrorDetail, s.moment(), s.engine.estimate)
			return e, ch, nil
		}
		e, ch := s.ownerGone(t, m)
		return e, ch, nil
	})
	switch {
	case fault.Is(err, fault.NotFound): // deleted meanwhile
	case postponed(err):
		return err
	case err != nil:
		return s.unusable(turn, err)
	}
	if err := s.spool.Drop(turn); err != nil {
		s.engine.Log.Warn("spool not emptied", "code", fault.CodeOf(err), "turn", turn)
	}
	if changed {
		s.engine.Log.Info("turn stored from the spool", "turn", turn, "state", done.Turn.State)
		s.engine.told(done, true)
		if done.Turn.State == Completed {
			s.engine.titleLater(s, done.Turn)
		}
	}
	return nil
}

// unusable gives a record up that stands in the way of everything else.
func (s *Service) unusable(turn ident.TurnID, err error) error {
	if fault.Is(err, fault.Unavailable) {
		return err
	}
	s.engine.Log.Error("turn not stored from the spool", "error", err, "turn", turn)
	s.spool.SetAside(turn)
	return nil
}

// restoreAll does so for every turn that nobody runs here any more. left reports whether something remains.
func (s *Service) restoreAll(ctx context.Context) (left bool, err error) {
	if s.spool == nil {
		return false, nil
	}
	for _, turn := range s.spool.Turns() {
		if s.engine.running(turn) != nil {
			left = true
			continue
		}
		if err := s.restore(ctx, turn); err != nil {
			return true, err
		}
	}
	return left, nil
}

// ownerGone ends a turn whose owner cannot.
func (s *Service) ownerGone(t Turn, m Message) (Ending, event.Change) {
	return ending(ident.System(""), t, m, Interrupted, codeOwnerGone,
		"the server that wrote this answer went away; retry or continue it", s.moment(), s.engine.estimate)
}
