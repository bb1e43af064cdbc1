package webhook

import (
	"context"
	"encoding/json"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
)

// TenantPart is what a service needs of the place where its tenant is open.
type TenantPart interface {
	// Retain keeps the tenant's database open until the returned function is called.
	Retain() (release func())
	// Owe notes, before the tenant commits it, that a delivery is due at the time. It may be lossy.
	Owe(ctx context.Context, due time.Time)
}

// Service is what doors call, and what sends one tenant's deliveries. One exists per open tenant.
type Service struct {
	store Store
	d     *Dispatcher
	id    ident.TenantID
	owner ident.AccountID
	pass  access.Pass
	part  TenantPart

	watched atomic.Bool // there may be active endpoints
	slots   *places

	mu      sync.Mutex
	looking bool // somebody looks for what is due
	again   bool // and has to once more
	lanes   map[ident.WebhookID]*lane
	trusted map[ident.WebhookID]trust // what lanes that ended knew
	queue   []request                 // steps of lanes that wait for the clerk
	clerk   bool                      // there is one
	tests   int                       // that are being made
	purging bool                      // what was deleted is being removed
	cleaned time.Time
	alone   bool // what others had claimed was disowned
}

// Service builds the service of a tenant, that owner owns. The dispatcher counts what is pending by the tenant's id, until
// Forget.
func (d *Dispatcher) Service(store Store, id ident.TenantID, owner ident.AccountID, part TenantPart) *Service {
	return &Service{store: store, d: d, id: id, owner: owner, pass: access.Owning(owner), part: part,
		slots: newPlaces(d.PerTenant), lanes: make(map[ident.WebhookID]*lane), trusted: make(map[ident.WebhookID]trust)}
}

// Issued is an endpoint with its secret, which is shown this once.
type Issued struct {
	Endpoint Endpoint    `json:"endpoint"`
	Secret   seal.Secret `json:"-"`
	Plain    string      `json:"secret"` // in sealed idempotency records only
}

// CreateInput registers an endpoint.
type CreateInput struct {
	Details
	Once *event.Once
}

// Create adds an endpoint, which is told of what happens from now on. A repeat of in.Once answers with the first result.
func (s *Service) Create(ctx context.Context, actor ident.Actor, in CreateInput) (Issued, error) {
	const op = "webhook.Create"
	if err := s.pass.Allow(op, actor, access.ManageWebhooks); err != nil {
		return Issued{}, err
	}
	if err := s.d.check(op, in.Details, ""); err != nil {
		return Issued{}, err
	}
	ch := event.NewChange(actor, s.d.moment())
	e := Endpoint{Details: in.Details, ID: ident.New[ident.WebhookID](), State: Active, Version: 1, CreatedAt: ch.At, UpdatedAt: ch.At}
	out := Issued{Endpoint: e, Secret: newSecret()}
	out.Plain = out.Secret.Reveal()
	e.Secret = s.d.seal(e.ID, out.Secret)
	if err := in.Once.Keep(s.d.Sealer, out); err != nil {
		return Issued{}, err
	}
	ch.Once = in.Once
	ch.Add("webhook.created", string(e.ID), facts(e))
	err := s.store.InsertEndpoint(ctx, e, s.d.MaxEndpoints, ch)
	if in.Once != nil && (event.Repeated(err) || fault.CodeOf(err) == "too_many_webhooks") {
		var was Issued
		rerr := in.Once.Replay(ctx, s.store, s.d.Sealer, &was)
		switch {
		case rerr == nil:
			was.Secret = seal.Secret(was.Plain)
			return was, nil
		case event.Repeated(err):
			err = rerr
		}
	}
	if err != nil {
		return Issued{}, fault.Wrap(op, err)
	}
	s.watched.Store(true)
	return out, nil
}

// facts are what an event about an endpoint tells: neither its address nor its name.
func facts(e Endpoint) map[string]any {
	f := map[string]any{"state": e.State, "version": e.Version, "project_id": nil}
	if e.Project != "" {
		f["project_id"] = e.Project
	}
	return f
}

// Find returns one endpoint.
func (s *Service) Find(ctx context.Context, actor ident.Actor, id ident.WebhookID) (Endpoint, error) {
	const op = "webhook.Find"
	if err := s.pass.Allow(op, actor, access.ManageWebhooks); err != nil {
		return Endpoint{}, err
	}
	e, err := s.store.FindEndpoint(ctx, id)
	return e, fault.Wrap(op, err)
}

// List returns a page of endpoints, newest first, of the whole tenant or of one project.
func (s *Service) List(ctx context.Context, actor ident.Actor, project ident.ProjectID, cursor string, limit int) ([]Endpoint, string, error) {
	const op = "webhook.List"
	if err := s.pass.Allow(op, actor, access.ManageWebhooks); err != nil {
		return nil, "", err
	}
	list, next, err := s.store.ListEndpoints(ctx, project, cursor, limit)
	return list, next, fault.Wrap(op, err)
}

// Edit is what may be changed about an endpoint.
type Edit struct {
	Details
	State State // Active or Paused; Disabled only as it is
}

// Edit lets change alter an endpoint. With ifVersion it is Stale unless that is the current version. Whoever makes an endpoint
// active again has what was pending sent.
func (s *Service) Edit(ctx context.Context, actor ident.Actor, id ident.WebhookID, ifVersion *int64, change func(*Edit) error) (Endpoint, error) {
	const op = "webhook.Edit"
	if err := s.pass.Allow(op, actor, access.ManageWebhooks); err != nil {
		return Endpoint{}, err
	}
	e, err := s.store.UpdateEndpoint(ctx, id, func(e Endpoint) (Endpoint, event.Change, error) {
		if ifVersion != nil && *ifVersion != e.Version {
			return e, event.Change{}, fault.New(fault.Stale, op, "", "somebody changed it since you read it: read it again and repeat your edit")
		}
		edit := Edit{e.Details, e.State}
		edit.Events = slices.Clone(edit.Events)
		if err := change(&edit); err != nil {
			return e, event.Change{}, err
		}
		same := reflect.DeepEqual(edit.Details, e.Details)
		if !same {
			if err := s.d.check(op, edit.Details, e.URL); err != nil {
				return e, event.Change{}, err
			}
		}
		if edit.State != e.State && edit.State != Active && edit.State != Paused {
			return e, event.Change{}, fault.BadInput(op, "body.state", "must be active or paused")
		}
		if same && edit.State == e.State {
			return e, event.Change{}, nil
		}
		ch := event.NewChange(actor, s.d.moment())
		if edit.State != e.State {
			e.Reason, e.NoticeDue = "", nil
			if edit.State == Paused {
				e.Reason = ByOwner
			}
			e.Health = Health{}
		}
		if edit.URL != e.URL {
			e.Health = Health{}
		}
		e.Details, e.State, e.Version, e.UpdatedAt = edit.Details, edit.State, e.Version+1, ch.At
		ch.Add("webhook.updated", string(id), facts(e))
		return e, ch, nil
	})
	if err == nil && e.State == Active {
		s.watched.Store(true)
		s.Wake()
	}
	return e, fault.Wrap(op, err)
}

// Delete removes an endpoint with all its deliveries: nobody sees them any more when it returns; there may be very many, which
// go afterwards, piece by piece (decision 0083).
func (s *Service) Delete(ctx context.Context, actor ident.Actor, id ident.WebhookID, ifVersion *int64) error {
	const op = "webhook.Delete"
	if err := s.pass.Allow(op, actor, access.ManageWebhooks); err != nil {
		return err
	}
	s.part.Owe(ctx, s.d.Now().Add(soon)) // should this process die, another one goes on
	err := s.store.DeleteEndpoint(ctx, id, func(e Endpoint) (event.Change, error) {
		if ifVersion != nil && *ifVersion != e.Version {
			return event.Change{}, fault.New(fault.Stale, op, "", "somebody changed it since you read it: read it again and repeat your edit")
		}
		ch := event.NewChange(actor, s.d.moment())
		ch.Add("webhook.deleted", string(id), facts(e))
		return ch, nil
	})
	if err == nil {
		s.Wake()
	}
	return fault.Wrap(op, err)
}

// Rotate gives an endpoint a new secret; the one before signs too for 24 hours. A repeat of once answers with the first
// result.
func (s *Service) Rotate(ctx context.Context, actor ident.Actor, id ident.WebhookID, once *event.Once) (Issued, error) {
	const op = "webhook.Rotate"
	if err := s.pass.Allow(op, actor, access.ManageWebhooks); err != nil {
		return Issued{}, err
	}
	out := Issued{Secret: newSecret()}
	out.Plain = out.Secret.Reveal()
	e, before, err := s.store.UpdateEndpointOnce(ctx, id, once, func(e Endpoint) (Endpoint, event.Change, error) {
		ch := event.NewChange(actor, s.d.moment())
		until := ch.At.Add(overlap)
		e.SecretBefore, e.BeforeUntil = e.Secret, &until
		e.Secret, e.Version, e.UpdatedAt = s.d.seal(id, out.Secret), e.Version+1, ch.At
		out.Endpoint = e
		if err := once.Keep(s.d.Sealer, out); err != nil {
			return e, ch, err
		}
		ch.Once = once
		ch.Add("webhook.secret_rotated", string(id), facts(e))
		return e, ch, nil
	})
	if before != nil || event.Repeated(err) { // the latter: of another endpoint's, at the same moment
		var was Issued
		if err = s.replay(ctx, once, before, &was); err == nil {
			was.Secret = seal.Secret(was.Plain)
			return was, nil
		}
	}
	out.Endpoint = e
	return out, fault.Wrap(op, err)
}

// replay reads what a repeat is answered with. before is the record, where it was read already.
func (s *Service) replay(ctx context.Context, once, before *event.Once, result any) error {
	if before != nil {
		return once.Open(*before, s.d.Sealer, result)
	}
	return once.Replay(ctx, s.store, s.d.Sealer, result)
}

// repeated is what has become of the delivery that the first request with once was about.
func (s *Service) repeated(ctx context.Context, id ident.WebhookID, once, before *event.Once) (Delivery, error) {
	var was ident.DeliveryID
	if err := s.replay(ctx, once, before, &was); err != nil {
		return Delivery{}, err
	}
	return s.store.FindDelivery(ctx, id, was)
}

// Deliveries returns a page of an endpoint's deliveries, newest first, each with its last attempt.
func (s *Service) Deliveries(ctx context.Context, actor ident.Actor, id ident.WebhookID, q DeliveryQuery) ([]Delivery, string, error) {
	const op = "webhook.Deliveries"
	if err := s.pass.Allow(op, actor, access.ManageWebhooks); err != nil {
		return nil, "", err
	}
	list, next, err := s.store.ListDeliveries(ctx, id, q)
	return list, next, fault.Wrap(op, err)
}

// Delivery returns one with all its attempts.
func (s *Service) Delivery(ctx context.Context, actor ident.Actor, id ident.WebhookID, d ident.DeliveryID) (Delivery, error) {
	const op = "webhook.Delivery"
	if err := s.pass.Allow(op, actor, access.ManageWebhooks); err != nil {
		return Delivery{}, err
	}
	out, err := s.store.FindDelivery(ctx, id, d)
	return out, fault.Wrap(op, err)
}

// Redeliver has a delivery sent again, whatever became of it, under its own id. A repeat of once does so once.
func (s *Service) Redeliver(ctx context.Context, actor ident.Actor, id ident.WebhookID, d ident.DeliveryID, once *event.Once) (Delivery, error) {
	const op = "webhook.Redeliver"
	e, before, err := s.redelivering(ctx, op, actor, id, once)
	if err != nil {
		return Delivery{}, err
	}
	if before != nil {
		out, err := s.repeated(ctx, id, once, before)
		return out, fault.Wrap(op, err)
	}
	if err := mayRedeliver(op, e); err != nil {
		return Delivery{}, err
	}
	ch := event.NewChange(actor, s.d.moment())
	if err := once.Keep(s.d.Sealer, d); err != nil {
		return Delivery{}, err
	}
	ch.Once = once
	ch.Add("webhook.redelivered", string(id), map[string]any{"deliveries": 1})
	out, err := s.store.Redeliver(ctx, id, d, ch)
	if event.Repeated(err) {
		out, err = s.repeated(ctx, id, once, nil)
	}
	if err == nil {
		s.Wake()
	}
	return out, fault.Wrap(op, err)
}

// redelivering finds the endpoint whose deliveries are to be sent again and, in the same round trip, the record of once.
func (s *Service) redelivering(ctx context.Context, op string, actor ident.Actor, id ident.WebhookID, once *event.Once) (Endpoint, *event.Once, error) {
	if err := s.pass.Allow(op, actor, access.ManageWebhooks); err != nil {
		return Endpoint{}, nil, err
	}
	e, before, err := s.store.FindEndpointOnce(ctx, id, once)
	return e, before, fault.Wrap(op, err)
}

// mayRedeliver refuses for an endpoint that nothing is sent to.
func mayRedeliver(op string, e Endpoint) error {
	if e.State != Active {
		return fault.New(fault.Conflict, op, "webhook_not_active", "nothing is sent to this webhook: make it active first")
	}
	return nil
}

// manyAtOnce is how many deliveries one call has sent again.
const manyAtOnce = 10_000

// RedeliverMany has the deliveries of a time sent again.
func (s *Service) RedeliverMany(ctx context.Context, actor ident.Actor, id ident.WebhookID, r Range, once *event.Once) (Redelivered, error) {
	const op = "webhook.RedeliverMany"
	e, before, err := s.redelivering(ctx, op, actor, id, once)
	if err != nil {
		return Redelivered{}, err
	}
	if before != nil {
		var was Redelivered
		err := s.replay(ctx, once, before, &was)
		return was, fault.Wrap(op, err)
	}
	if err := mayRedeliver(op, e); err != nil {
		return Redelivered{}, err
	}
	if !r.From.Before(r.To) {
		return Redelivered{}, fault.BadInput(op, "body.to", "must be later than from")
	}
	r.Limit, r.At = manyAtOnce, s.d.moment()
	out, err := s.store.RedeliverMany(ctx, id, r, func(did Redelivered) (event.Change, error) {
		ch := event.NewChange(actor, r.At)
		ch.Once = once
		ch.Add("webhook.redelivered", string(id), map[string]any{"deliveries": did.Count})
		return ch, once.Keep(s.d.Sealer, did)
	})
	if event.Repeated(err) {
		err = s.replay(ctx, once, nil, &out)
	}
	if err == nil {
		s.Wake()
	}
	return out, fault.Wrap(op, err)
}

// Test sends an endpoint an event that never happened, once and now, and returns what came of it; one that this process cannot
// finish has failed, and is not sent later. It says nothing about the endpoint's health and needs no active one. A repeat of once
// sends nothing. It is fault.Throttled, "too_many_tests", while as many are being made as may be at once.
func (s *Service) Test(ctx context.Context, actor ident.Actor, id ident.WebhookID, once *event.Once) (Delivery, error) {
	const op = "webhook.Test"
	if err := s.pass.Allow(op, actor, access.ManageWebhooks); err != nil {
		return Delivery{}, err
	}
	e, before, err := s.store.FindEndpointOnce(ctx, id, once)
	if err != nil {
		return Delivery{}, fault.Wrap(op, err)
	}
	if before != nil {
		out, err := s.repeated(ctx, id, once, before)
		return out, fault.Wrap(op, err)
	}
	if !s.beginTest() {
		if once != nil { // the first may have come just now
			if out, err := s.repeated(ctx, id, once, nil); err == nil {
				return out, nil
			}
		}
		return Delivery{}, fault.New(fault.Throttled, op, "too_many_tests", "too many tests are being made at the moment: wait until some have ended").
			RetryAfter(time.Second)
	}
	defer s.endTest()
	now := s.d.moment()
	made := event.Event{ID: ident.New[ident.EventID](), Type: "webhook.test", Subject: string(id),
		Actor: event.Who{ID: actor.Account, Name: actor.Name}, CreatedAt: now, Data: json.RawMessage(`{"test":true}`)}
	c := Claimed{Delivery: Delivery{ID: ident.New[ident.DeliveryID](), Webhook: id, Event: made.ID, Type: made.Type, State: Pending,
		Attempts: 1, Tries: len(pauses), Due: now.Add(2 * s.d.Timeout), Claim: s.d.claim(), CreatedAt: now}, Body: Body(made)}
	ch := event.NewChange(actor, now)
	ch.Add("webhook.tested", string(id), map[string]any{})
	if err := once.Keep(s.d.Sealer, c.ID); err != nil {
		return Delivery{}, err
	}
	ch.Once = once
	s.part.Owe(ctx, c.Due) // should this process die, somebody says that it was cut
	err = s.store.InsertTest(ctx, c.Delivery, c.Body, ch)
	if event.Repeated(err) {
		out, err := s.repeated(ctx, id, once, nil)
		return out, fault.Wrap(op, err)
	}
	if err != nil {
		return Delivery{}, fault.Wrap(op, err)
	}
	// Whoever asked may leave: the attempt goes on, or it would be sent once more.
	got := s.d.attempt(s.d.life, e, c) // its last try
	if got.State == Pending {
		got.State = Failed // it was cut, or could not be signed: who asks for a test wants it now, or not at all
	}
	store := context.WithoutCancel(ctx)
	if _, err := s.store.Take(store, []Step{{Endpoint: id, Results: []Result{got.Result}, Now: s.d.moment(),
		Decide: func(e Endpoint) (Endpoint, int, event.Change) { return e, 0, event.Change{} }}}); err != nil {
		return Delivery{}, fault.Wrap(op, err)
	}
	out, err := s.store.FindDelivery(store, id, c.ID)
	return out, fault.Wrap(op, err)
}

// beginTest counts a test, unless there are as many as may be made at once: of this tenant, or of all (decision 0082).
func (s *Service) beginTest() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	if s.tests >= s.d.Tests || s.d.tests >= max(1, s.d.AtOnce/4) {
		return false
	}
	s.tests++
	s.d.tests++
	return true
}

func (s *Service) endTest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	s.tests--
	s.d.tests--
}
