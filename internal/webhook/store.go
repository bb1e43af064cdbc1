package webhook

import (
	"context"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

// Store is what a tenant's database does for webhooks.
type Store interface {
	event.Onces
	Endpoints
	Deliveries
	Queue
}

// Endpoints keeps endpoints.
type Endpoints interface {
	// InsertEndpoint adds one, unless there are limit already: fault.Conflict, code "too_many_webhooks". A project that is
	// not there is fault.Invalid, about body.project_id.
	InsertEndpoint(ctx context.Context, e Endpoint, limit int, ch event.Change) error
	// FindEndpoint is fault.NotFound when there is none.
	FindEndpoint(ctx context.Context, id ident.WebhookID) (Endpoint, error)
	// FindEndpointOnce also looks, in the same round trip, for the live idempotency record of once's scope and key; it returns
	// nil when there is none.
	FindEndpointOnce(ctx context.Context, id ident.WebhookID, once *event.Once) (Endpoint, *event.Once, error)
	// ListEndpoints returns a page, newest first, of all or of a project's.
	ListEndpoints(ctx context.Context, project ident.ProjectID, cursor string, limit int) (list []Endpoint, next string, err error)
	// UpdateEndpoint lets edit alter one under its lock; a change without events alters nothing.
	UpdateEndpoint(ctx context.Context, id ident.WebhookID, edit func(Endpoint) (Endpoint, event.Change, error)) (Endpoint, error)
	// UpdateEndpointOnce also looks, under that lock, for the live idempotency record of once's scope and key. With one there
	// is no edit: it is returned.
	UpdateEndpointOnce(ctx context.Context, id ident.WebhookID, once *event.Once,
		edit func(Endpoint) (Endpoint, event.Change, error)) (Endpoint, *event.Once, error)
	// DeleteEndpoint makes one Deleted: from then on it is as if it and its deliveries were not there. They go by Purge.
	DeleteEndpoint(ctx context.Context, id ident.WebhookID, decide func(Endpoint) (event.Change, error)) error
}

// DeliveryQuery asks for a page of deliveries, newest first.
type DeliveryQuery struct {
	State  DeliveryState // empty: all
	Type   string        // of the event; empty: all
	Cursor string
	Limit  int
}

// Range says which deliveries are sent again.
type Range struct {
	From, To time.Time     // by when the event happened; To is exclusive
	State    DeliveryState // Failed, Succeeded, or empty: both
	Missed   bool          // also events that made no delivery, because the endpoint was not there or not active
	Limit    int           // how many at most, oldest first
	At       time.Time     // when they are due
}

// Redelivered says how many deliveries are sent again.
type Redelivered struct {
	Count int64      `json:"count"`
	More  *time.Time `json:"more"` // where the next call begins, if there are more than one takes
}

// Deliveries keeps what became of events.
type Deliveries interface {
	// ListDeliveries is fault.NotFound when there is no such endpoint.
	ListDeliveries(ctx context.Context, id ident.WebhookID, q DeliveryQuery) (list []Delivery, next string, err error)
	// FindDelivery returns one with all its attempts.
	FindDelivery(ctx context.Context, id ident.WebhookID, d ident.DeliveryID) (Delivery, error)
	// InsertTest adds a delivery of a body that is not in the log, claimed until its Due.
	InsertTest(ctx context.Context, d Delivery, body []byte, ch event.Change) error
	// Redeliver makes a delivery pending again, due at ch.At, under its own id. One that is claimed stays as it is.
	Redeliver(ctx context.Context, id ident.WebhookID, d ident.DeliveryID, ch event.Change) (Delivery, error)
	// RedeliverMany does so with those of a range, due at r.At. What came of it goes into the change.
	RedeliverMany(ctx context.Context, id ident.WebhookID, r Range, change func(Redelivered) (event.Change, error)) (Redelivered, error)
}

// Due is an endpoint and when something for it is due; nil: nothing. For one that is not active only tests are.
type Due struct {
	Endpoint Endpoint
	At       *time.Time
}

// Result is what came of an attempt.
type Result struct {
	Delivery ident.DeliveryID
	Claim    string
	Attempt  Attempt
	State    DeliveryState // after it
	Due      time.Time     // of the next one, while it is pending
	Failed   bool          // counts as a try
}

// Claimed is a delivery that is to be sent now by whoever claimed it.
type Claimed struct {
	Delivery
	Happened event.Event
	Body     []byte // instead of the event: a test's
}

// Step is what a lane does to the deliveries of its endpoint in one transaction.
type Step struct {
	Endpoint ident.WebhookID
	Results  []Result // stored where the claim still stands
	Claim    string   // names what is claimed now; never used before
	Now      time.Time
	Lease    time.Time // until when the claim stands
	// Decide sees the endpoint under its lock and returns its health, state, reason and notice after the results, how many
	// deliveries to claim, and what is to be told of that. It may be called again.
	Decide func(Endpoint) (after Endpoint, claim int, ch event.Change)
}

// Taken is what came of a step. Err is fault.NotFound when there is no such endpoint any more.
type Taken struct {
	Claimed []Claimed
	More    bool // only so many were looked at: there may be more, also if nothing was claimed
	Err     error
}

// Queue is what is to be sent.
type Queue interface {
	// Due returns all active endpoints, those whose owner is to be told something, those with a test that is being sent, and
	// those that are Deleted and not purged yet, for which nothing is due.
	// What is due may have to wait for another delivery; then nothing is claimed.
	Due(ctx context.Context) ([]Due, error)
	// Take does the steps of several endpoints, of each one at most, in one transaction: it stores results and claims what is
	// due, under the locks of the endpoints. A claim is one statement, so no delivery is claimed twice. A step without results
	// ends the tests whose claims are over: they were cut, and are not sent again.
	Take(ctx context.Context, steps []Step) ([]Taken, error)
	// Backlog is how many deliveries of active endpoints are pending, and since when the oldest of their events; nil: none.
	Backlog(ctx context.Context) (n int64, since *time.Time, err error)
	// Disown makes what others than this node have claimed due now: for a server that works alone, whose others are dead.
	Disown(ctx context.Context, node string, now time.Time) error
	// Noticed notes that the owner was told.
	Noticed(ctx context.Context, id ident.WebhookID) error
	// Purge removes up to limit deliveries of endpoints that are Deleted, each with its attempts, and an endpoint that has none
	// left. It says how many deliveries went, and whether there is more to do.
	Purge(ctx context.Context, limit int) (n int64, more bool, err error)
	// Clean forgets up to limit deliveries that were finished before a moment, and says how many, and when the oldest that is
	// left was finished; nil: none is.
	Clean(ctx context.Context, before time.Time, limit int) (n int64, oldest *time.Time, err error)
}
