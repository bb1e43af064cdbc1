package event

import (
	"context"
	"encoding/json"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Seq is the position of an event in the log of one database, from 1, without gaps, in commit order.
type Seq int64

// Event is one thing that happened. Data holds identifiers and small facts, never message text: what is deleted must
// not live on in the log.
type Event struct {
	ID        ident.EventID   `json:"id"`
	Seq       Seq             `json:"seq"`
	Type      string          `json:"type"`    // "conversation.created"
	Subject   string          `json:"subject"` // identifier of what it is about
	Actor     Who             `json:"actor"`
	CreatedAt time.Time       `json:"created_at"`
	Data      json.RawMessage `json:"data"`
}

// Who names an actor inside an event.
type Who struct {
	ID   ident.AccountID `json:"id,omitempty"` // empty for the server itself
	Name string          `json:"name"`
}

// Change is everything that a store commits beside the state itself: the events that describe it (the first one is
// the change's name in the audit trail) and, for creating calls, the idempotency record.
type Change struct {
	Actor  ident.Actor
	At     time.Time
	Events []Event
	Chief  int // the index of the event that the trail names the change by
	Once   *Once
}

// NewChange starts the description of a change by actor.
func NewChange(actor ident.Actor, at time.Time) Change {
	return Change{Actor: actor, At: at}
}

// Add appends an event. Data must marshal to a JSON object; a value that cannot is a programming error and panics.
func (c *Change) Add(kind, subject string, data any) {
	raw, err := json.Marshal(data)
	if err != nil {
		panic("event data that cannot be marshalled: " + kind)
	}
	c.Events = append(c.Events, Event{
		ID: ident.New[ident.EventID](), Type: kind, Subject: subject,
		Actor: Who{ID: c.Actor.Account, Name: c.Actor.Name}, CreatedAt: c.At, Data: raw,
	})
}

// Once is an idempotency record: it commits with the effect that it stands for, so that a repeat finds it.
type Once struct {
	Scope       string // account and operation; a key means nothing outside its scope
	Key         string // what the client sent, at most 255 bytes
	Fingerprint []byte // keyed hash of the request's canonical body
	Result      []byte // sealed; what a repeat answers with
	ExpiresAt   time.Time
	Replayed    bool // set by the service when the answer is an earlier one
}

// MaxOnceKey is the longest accepted idempotency key in bytes.
const MaxOnceKey = 255

// OnceLife is how long a repeat finds the first answer.
const OnceLife = 24 * time.Hour

// CodeRepeated is the fault code of a store that found Change.Once already committed; nothing was written.
const CodeRepeated = "repeated"

// Repeated reports whether err says that the idempotency record was there already.
func Repeated(err error) bool { return fault.CodeOf(err) == CodeRepeated }

// Onces finds idempotency records. Stores implement it next to what they store.
type Onces interface {
	// FindOnce returns the live record; fault.NotFound when there is none.
	FindOnce(ctx context.Context, scope, key string) (Once, error)
}

// Log reads the committed events of one database.
type Log interface {
	// Since returns up to limit events after the position, oldest first.
	Since(ctx context.Context, after Seq, limit int) ([]Event, error)
	// Head returns the position of the newest event; 0 when there is none.
	Head(ctx context.Context) (Seq, error)
}

// ProjectLog is a tenant's log that is also read for one project alone. To a guest it shows what members hear of the one
// project that the guest is a member of ([Event.For]), and nothing without a project.
type ProjectLog interface {
	Log
	// About looks at the next rows events after the position and returns up to limit of those about the project, oldest first.
	// upTo is the last one that it looked at, whether it is shown or not; more says that there are others after it.
	About(ctx context.Context, p ident.ProjectID, after Seq, rows, limit int) (list []Event, upTo Seq, more bool, err error)
	// Shown is the event as the reader of this log may see it; false when it may not, or when the event is not about the
	// project. Without a project every event is shown to the tenant's owner.
	Shown(p ident.ProjectID, e Event) (Event, bool)
}
