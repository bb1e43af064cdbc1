package webhook

import (
	"encoding/json"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

// State says whether an endpoint is told of events.
type State string

// The states of endpoints. Only an active one gets deliveries, and has them sent.
const (
	Active   State = "active"
	Paused   State = "paused"
	Disabled State = "disabled"
	// Deleted is one that nobody sees any more, while what is left of it is being removed.
	Deleted State = "deleted"
)

// Why an endpoint is not active.
const (
	ByOwner    = "by_owner"
	Failing    = "failing"     // nothing but failures for 72 hours
	Gone       = "gone"        // it answered 410
	SecretLost = "secret_lost" // what it was sealed with is not there any more, as in a copy elsewhere
)

// Details are what people decide about an endpoint.
type Details struct {
	Name        string          `json:"name"`
	Description string          `json:"description"`
	URL         string          `json:"url"`
	Events      []string        `json:"events"`     // "*", "message.*", "turn.completed"
	Project     ident.ProjectID `json:"project_id"` // only what concerns this project; empty: everything
	Ordered     bool            `json:"ordered"`    // an event waits for earlier ones of its conversation
}

// Health is how an endpoint has been answering.
type Health struct {
	FailingSince *time.Time `json:"failing_since"` // the first failure since the last success
	Slowed       int        `json:"slowed"`        // how often in a row it asked for less
	HoldUntil    *time.Time `json:"hold_until"`    // nothing is sent before
}

// Endpoint is an address that is told of events.
type Endpoint struct {
	Details
	Health
	ID           ident.WebhookID `json:"id"`
	State        State           `json:"state"`
	Reason       string          `json:"reason"` // why it is not active
	Secret       []byte          `json:"-"`      // sealed
	SecretBefore []byte          `json:"-"`      // sealed; signs too until BeforeUntil
	BeforeUntil  *time.Time      `json:"before_until"`
	NoticeDue    *time.Time      `json:"-"` // its owner is to be told that it was paused
	Version      int64           `json:"version"`
	CreatedAt    time.Time       `json:"created_at"`
	UpdatedAt    time.Time       `json:"updated_at"`
}

// DeliveryState says how far a delivery is.
type DeliveryState string

// The states of deliveries.
const (
	Pending   DeliveryState = "pending"
	Succeeded DeliveryState = "succeeded"
	Failed    DeliveryState = "failed"
)

// Delivery is one event for one endpoint.
type Delivery struct {
	ID         ident.DeliveryID
	Webhook    ident.WebhookID
	Seq        event.Seq // of the event in the tenant's log; 0 for a test
	Event      ident.EventID
	Type       string
	State      DeliveryState
	Attempts   int       // claimed so far
	Tries      int       // failed attempts since it was made, or sent again
	Due        time.Time // when it is sent next; while it is claimed, when the claim is over
	Claim      string    // who sends it now; empty: nobody
	CreatedAt  time.Time
	FinishedAt *time.Time
	Tried      []Attempt // oldest first, KeptAttempts at most; a list has the last one only
}

// KeptAttempts is how many attempts at one delivery are kept, the newest: who sends one again and again keeps no more.
const KeptAttempts = 50

// Attempt is one call of an endpoint.
type Attempt struct {
	Number    int
	StartedAt time.Time
	Latency   time.Duration // until the answer was there, or was not
	Status    int           // of HTTP; 0: none came
	Error     string        // one of the words below; empty for a success
	Answer    string        // the beginning of the answer's body
}

// What was wrong with an attempt.
const (
	FailedStatus      = "status"      // an answer other than 2xx
	FailedRedirect    = "redirect"    // 3xx: redirects are not followed
	FailedTimeout     = "timeout"     //
	FailedUnreachable = "unreachable" // no connection, or an unknown name
	FailedRefused     = "refused"     // the address may not be reached from here
	FailedTLS         = "tls"         // the certificate was not accepted
	FailedAnswer      = "bad_answer"  // what came was not HTTP, or too much of it
	Interrupted       = "interrupted" // this server stopped meanwhile; the endpoint is not to blame
)

// Message is what an endpoint is sent.
type Message struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      Data      `json:"data"`
}

// Data is the event as it stands in the log.
type Data struct {
	ID      ident.EventID   `json:"id"`
	Seq     event.Seq       `json:"seq,omitempty"` // a test has none
	Type    string          `json:"type"`
	Subject string          `json:"subject"`
	Actor   Who             `json:"actor"`
	Created time.Time       `json:"created_at"`
	Data    json.RawMessage `json:"data"`
}

// Who is the one that an event is of, as the log shows it.
type Who struct {
	ID   *ident.AccountID `json:"id"` // null for the server itself
	Name string           `json:"name"`
}

// maxBody is how much one message may be, in bytes.
const maxBody = 20_000

// Body is what is sent of an event: the same bytes at every attempt. Facts that would make it too long are left out: whoever
// needs them reads the log.
func Body(e event.Event) []byte {
	m := Message{Type: e.Type, Timestamp: e.CreatedAt.UTC(), Data: Data{ID: e.ID, Seq: e.Seq, Type: e.Type, Subject: e.Subject,
		Actor: Who{Name: e.Actor.Name}, Created: e.CreatedAt.UTC(), Data: e.Data}}
	if e.Actor.ID != "" {
		m.Data.Actor.ID = &e.Actor.ID
	}
	raw, err := json.Marshal(m)
	if err == nil && len(raw) <= maxBody {
		return raw
	}
	m.Data.Data = json.RawMessage(`{"left_out":true}`)
	raw, _ = json.Marshal(m) // names and identifiers are bounded
	return raw
}
