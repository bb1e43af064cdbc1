package audit

import (
	"context"
	"encoding/json"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

// Outcome is how an attempt ended.
type Outcome string

// The outcomes.
const (
	Done    Outcome = "done"
	Refused Outcome = "refused"
)

// Entry is one line of the trail.
type Entry struct {
	ID        ident.EntryID   `json:"id"`
	At        time.Time       `json:"at"`
	Action    string          `json:"action"` // the chief event's type, or "session.refused" and the like
	Subject   string          `json:"subject"`
	Outcome   Outcome         `json:"outcome"`
	ActorID   ident.AccountID `json:"actor_id,omitempty"`
	ActorName string          `json:"actor_name"`
	Session   ident.SessionID `json:"session_id,omitempty"`
	Address   string          `json:"address,omitempty"`
	RequestID string          `json:"request_id,omitempty"`
	Detail    json.RawMessage `json:"detail,omitempty"`
	// Place is the cursor that continues a listing just after this entry; set by reads.
	Place string `json:"-"`
}

// Derive makes the one entry that describes a change: its chief event is its name. A change without events has none.
func Derive(c event.Change) (Entry, bool) {
	if len(c.Events) == 0 {
		return Entry{}, false
	}
	chief := c.Events[c.Chief]
	return newEntry(c.Actor, c.At, chief.Type, chief.Subject, Done, chief.Data), true
}

// Refusal makes an entry for an attempt that changed nothing. Detail must hold no secret and no content.
func Refusal(actor ident.Actor, at time.Time, action, subject string, detail json.RawMessage) Entry {
	return newEntry(actor, at, action, subject, Refused, detail)
}

func newEntry(a ident.Actor, at time.Time, action, subject string, o Outcome, detail json.RawMessage) Entry {
	return Entry{ID: ident.New[ident.EntryID](), At: at, Action: action, Subject: subject, Outcome: o,
		ActorID: a.Account, ActorName: a.Name, Session: a.Session, Address: a.Address, RequestID: a.RequestID, Detail: detail}
}

// Filter narrows a reading of the trail. Zero fields do not narrow.
type Filter struct {
	Action  string // exact, or a prefix ending in ".*"
	Subject string
	Outcome Outcome
	From    time.Time // inclusive
	To      time.Time // exclusive
	// Account narrows the master database's trail to entries by or about one account.
	Account ident.AccountID
}

// Store keeps the trail of one database.
type Store interface {
	// Append adds an entry that belongs to no change.
	Append(ctx context.Context, e Entry) error
	// Entries returns up to limit entries, newest first, after the cursor; next is empty at the end.
	Entries(ctx context.Context, f Filter, cursor string, limit int) (entries []Entry, next string, err error)
}
