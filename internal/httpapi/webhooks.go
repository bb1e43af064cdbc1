package httpapi

import (
	"net/http"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/webhook"
)

// webhookRows are about who is told of events.
func webhookRows() []operation {
	const one = "/webhooks/{id}"
	shown := func(o *operation) { o.secret = true }
	return []operation{
		row(tagWebhooks, "list-webhooks", "GET", "/webhooks", "List webhooks, newest first", on((*Server).listWebhooks)),
		row(tagWebhooks, "create-webhook", "POST", "/webhooks", "Register a webhook", on((*Server).createWebhook)).with(creates).
			with(refuses(conflict)).with(shown).with(func(o *operation) {
			o.description = "Events that happen from now on are sent to `url`, signed with the `secret` of this answer, which is " +
				"shown this once. With `project_id` only what concerns that project of one's own."
		}),
		row(tagWebhooks, "read-webhook", "GET", one, "Read a webhook", on((*Server).findWebhook)).with(refuses(missing)),
		row(tagWebhooks, "edit-webhook", "PATCH", one, "Edit some fields", on((*Server).patchWebhook)).with(refuses(missing, stale)).
			with(func(o *operation) {
				o.description = "`state` `paused` stops sending; `active` sends what was pending and what happens from then on."
			}),
		row(tagWebhooks, "delete-webhook", "DELETE", one, "Delete a webhook with its deliveries", on((*Server).deleteWebhook)).
			with(refuses(missing, stale)),
		row(tagWebhooks, "test-webhook", "POST", one+"/test", "Send an event that never happened", on((*Server).testWebhook)).
			with(refuses(missing)).with(func(o *operation) {
			o.Body, o.once = NoBody, true
			o.description = "Sends `webhook.test` once and answers what came of it. An account may have four under way at once on a node, and all together " +
				"128: who asks for more gets 429 `too_many_tests`."
		}),
		row(tagWebhooks, "rotate-webhook-secret", "POST", one+"/rotate-secret", "Replace the secret", on((*Server).rotateWebhook)).
			with(refuses(missing)).with(shown).with(func(o *operation) {
			o.Body, o.once = NoBody, true
			o.description = "For 24 hours deliveries are signed with the secret before, too."
		}),
		row(tagWebhooks, "list-deliveries", "GET", one+"/deliveries", "List deliveries, newest first", on((*Server).listDeliveries)).
			with(refuses(missing)),
		row(tagWebhooks, "read-delivery", "GET", one+"/deliveries/{delivery_id}", "Read a delivery with all its attempts",
			on((*Server).findDelivery)).with(refuses(missing)),
		row(tagWebhooks, "redeliver", "POST", one+"/deliveries/{delivery_id}/redeliver", "Send a delivery again",
			on((*Server).redeliver)).with(refuses(missing, conflict)).with(func(o *operation) {
			o.Body, o.once, o.status = NoBody, true, http.StatusAccepted
			o.description = "Under the same `webhook-id`. One that is being sent at the moment is left alone."
		}),
		row(tagWebhooks, "redeliver-many", "POST", one+"/redeliver", "Send the deliveries of a time again", on((*Server).redeliverMany)).
			with(refuses(missing, conflict)).with(func(o *operation) {
			o.once, o.status = true, http.StatusAccepted
			o.description = "At most 10,000, oldest first; where there are more, `more` is the `from` of the next call."
		}),
	}
}

// WebhookView is a webhook as its owner sees it.
type WebhookView struct {
	ID           string     `json:"id" example:"whk_06f4k3z9c8tqv5m2yb7n1x0d4e"`
	Name         string     `json:"name"`
	Description  string     `json:"description"`
	URL          string     `json:"url"`
	Events       []string   `json:"events"`
	ProjectID    *string    `json:"project_id"`
	Ordered      bool       `json:"ordered"`
	State        string     `json:"state" enum:"active,paused,disabled"`
	Reason       string     `json:"reason,omitempty" doc:"Why it is not active: by_owner, failing (72 hours of nothing but failures), gone (it answered 410) or secret_lost (rotate it, then make it active)"`
	FailingSince *time.Time `json:"failing_since" doc:"The first failure since the last success"`
	HoldUntil    *time.Time `json:"hold_until" doc:"It asked for less: nothing is sent before"`
	SecretUntil  *time.Time `json:"previous_secret_until" doc:"The secret before signs, too, until then"`
	Version      int64      `json:"version"`
	CreatedAt    time.Time  `json:"created_at"`
	UpdatedAt    time.Time  `json:"updated_at"`
}

func viewWebhook(e webhook.Endpoint) WebhookView {
	return WebhookView{ID: string(e.ID), Name: e.Name, Description: e.Description, URL: e.URL, Events: e.Events,
		ProjectID: orNull(string(e.Project)), Ordered: e.Ordered, State: string(e.State), Reason: e.Reason, FailingSince: utc(e.FailingSince),
		HoldUntil: utc(e.HoldUntil), SecretUntil: utc(e.BeforeUntil), Version: e.Version, CreatedAt: e.CreatedAt.UTC(), UpdatedAt: e.UpdatedAt.UTC()}
}

// issuedView is a webhook with its secret.
type issuedView struct {
	WebhookView
	Secret string `json:"secret" doc:"What deliveries are signed with. It is not shown again" example:"whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"`
}

// webhookBody is what a webhook is made from.
type webhookBody struct {
	Name        string   `json:"name" minLength:"1" maxLength:"200" example:"Harbour log"`
	URL         string   `json:"url" maxLength:"2000" example:"https://hooks.example.com/harbour"`
	Events      []string `json:"events" minItems:"1" maxItems:"50" doc:"Types of events; message.* stands for all about messages, * for all" example:"[\"message.*\",\"turn.completed\"]"`
	Description string   `json:"description,omitempty" maxLength:"2000"`
	ProjectID   *string  `json:"project_id,omitempty" doc:"Only what concerns this project"`
	Ordered     bool     `json:"ordered,omitempty" doc:"An event waits until earlier ones of its conversation have been delivered, or given up"`
}

// webhookPatch is the same with everything left out that stays as it is.
type webhookPatch struct {
	Name        string   `json:"name,omitempty" minLength:"1" maxLength:"200"`
	URL         string   `json:"url,omitempty" maxLength:"2000"`
	Events      []string `json:"events,omitempty" minItems:"1" maxItems:"50"`
	Description string   `json:"description,omitempty" maxLength:"2000" nullable:"true"`
	ProjectID   string   `json:"project_id,omitempty" nullable:"true"`
	Ordered     bool     `json:"ordered,omitempty" nullable:"true"`
	State       string   `json:"state,omitempty" enum:"active,paused"`
}

// webhookEdit is what a patch is merged into.
type webhookEdit struct {
	webhookBody
	State string `json:"state,omitempty"`
}

func (b webhookBody) details() (webhook.Details, error) {
	d := webhook.Details{Name: b.Name, Description: b.Description, URL: b.URL, Events: b.Events, Ordered: b.Ordered}
	if b.ProjectID != nil {
		id, err := ident.Parse[ident.ProjectID](*b.ProjectID)
		if err != nil {
			return d, fault.BadInput("httpapi.webhook", "body.project_id", "there is no such project")
		}
		d.Project = id
	}
	return d, nil
}

// WebhookPath names a webhook in the path.
type WebhookPath struct {
	ID string `path:"id" doc:"Identifier of a webhook, whk_…" example:"whk_06f4k3z9c8tqv5m2yb7n1x0d4e"`
}

// DeliveryPath names a delivery in the path.
type DeliveryPath struct {
	WebhookPath
	DeliveryID string `path:"delivery_id" doc:"Identifier of a delivery, dlv_…" example:"dlv_06f4k3z9c8tqv5m2yb7n1x0d4c"`
}

// hooks opens the webhooks of the actor's own tenant; nobody else's can be reached.
func (x *exchange) hooks(path string) (Webhooks, ident.WebhookID, error) {
	var id ident.WebhookID
	if path != "" {
		var err error
		if id, err = idAt[ident.WebhookID](path); err != nil {
			return nil, "", err
		}
	}
	ws, err := x.workspace()
	if err == nil && ws.Webhooks == nil {
		err = fault.Missing("httpapi.webhooks")
	}
	return ws.Webhooks, id, err
}

type webhookList struct {
	Call
	ProjectID string `query:"project_id" maxLength:"64" doc:"Only those of this project"`
	Limit     int    `query:"limit" minimum:"1" maximum:"200" default:"20"`
	Cursor    string `query:"cursor" maxLength:"1024" doc:"From next_cursor"`
}

func (s *Server) listWebhooks(x *exchange, in *webhookList) (*paged[WebhookView], error) {
	var project ident.ProjectID
	if in.ProjectID != "" {
		var err error
		if project, err = ident.Parse[ident.ProjectID](in.ProjectID); err != nil {
			return pageOf([]webhook.Endpoint{}, "", viewWebhook), nil
		}
	}
	hooks, _, err := x.hooks("")
	if err != nil {
		return nil, err
	}
	list, next, err := hooks.List(x.ctx, x.actor, project, in.Cursor, in.Limit)
	if err != nil {
		return nil, err
	}
	return pageOf(list, next, viewWebhook), nil
}

type webhookCreate struct {
	Call
	Body webhookBody
}

type issuedAnswer struct {
	ETag     string `header:"ETag" doc:"The version, for If-Match"`
	Location string `header:"Location"`
	Replayed string `header:"Idempotency-Replayed" doc:"true when this is an earlier answer"`
	Body     issuedView
}

func (s *Server) createWebhook(x *exchange, in *webhookCreate) (*issuedAnswer, error) {
	once, err := x.once()
	if err != nil {
		return nil, err
	}
	d, err := in.Body.details()
	if err != nil {
		return nil, err
	}
	hooks, _, err := x.hooks("")
	if err != nil {
		return nil, err
	}
	e, err := hooks.Create(x.ctx, x.actor, webhook.CreateInput{Details: d, Once: once})
	if err != nil {
		return nil, err
	}
	return answerIssued(e, replayed(once)), nil
}

func answerIssued(i webhook.Issued, replayed string) *issuedAnswer {
	return &issuedAnswer{ETag: etag(i.Endpoint.Version), Location: basePath + "/webhooks/" + string(i.Endpoint.ID), Replayed: replayed,
		Body: issuedView{viewWebhook(i.Endpoint), i.Secret.Reveal()}}
}

type webhookFind struct {
	Call
	WebhookPath
}

type webhookAnswer struct {
	ETag string `header:"ETag" doc:"The version, for If-Match"`
	Body WebhookView
}

func answerWebhook(e webhook.Endpoint, err error) (*webhookAnswer, error) {
	if err != nil {
		return nil, err
	}
	return &webhookAnswer{etag(e.Version), viewWebhook(e)}, nil
}

func (s *Server) findWebhook(x *exchange, in *webhookFind) (*webhookAnswer, error) {
	hooks, id, err := x.hooks(in.ID)
	if err != nil {
		return nil, err
	}
	return answerWebhook(hooks.Find(x.ctx, x.actor, id))
}

type webhookPatchIn struct {
	Call
	WebhookPath
	IfMatch
	Body webhookPatch
}

func (s *Server) patchWebhook(x *exchange, in *webhookPatchIn) (*webhookAnswer, error) {
	version, err := ifVersion(in.IfMatch.IfMatch)
	if err != nil {
		return nil, err
	}
	hooks, id, err := x.hooks(in.ID)
	if err != nil {
		return nil, err
	}
	return answerWebhook(hooks.Edit(x.ctx, x.actor, id, version, func(e *webhook.Edit) error {
		now := webhookEdit{webhookBody{Name: e.Name, Description: e.Description, URL: e.URL, Events: e.Events, Ordered: e.Ordered,
			ProjectID: orNull(string(e.Project))}, string(e.State)}
		b, err := merged(now, x.body)
		if err != nil {
			return err
		}
		e.State = webhook.State(b.State)
		e.Details, err = b.details()
		return err
	}))
}

type webhookDelete struct {
	Call
	WebhookPath
	IfMatch
}

func (s *Server) deleteWebhook(x *exchange, in *webhookDelete) (*nothing, error) {
	version, err := ifVersion(in.IfMatch.IfMatch)
	if err != nil {
		return nil, err
	}
	hooks, id, err := x.hooks(in.ID)
	if err != nil {
		return nil, err
	}
	return &nothing{}, hooks.Delete(x.ctx, x.actor, id, version)
}

func (s *Server) rotateWebhook(x *exchange, in *webhookFind) (*issuedAnswer, error) {
	once, err := x.once()
	if err != nil {
		return nil, err
	}
	hooks, id, err := x.hooks(in.ID)
	if err != nil {
		return nil, err
	}
	i, err := hooks.Rotate(x.ctx, x.actor, id, once)
	if err != nil {
		return nil, err
	}
	return answerIssued(i, replayed(once)), nil
}

// attemptView is one call of a webhook.
type attemptView struct {
	Number    int       `json:"number"`
	StartedAt time.Time `json:"started_at"`
	LatencyMS int64     `json:"latency_ms"`
	Status    *int      `json:"status" doc:"Of HTTP; null when no answer came"`
	Error     string    `json:"error,omitempty" doc:"What was wrong: status, redirect, timeout, unreachable, refused, tls, bad_answer, secret_lost or interrupted (this server stopped)"`
	Answer    string    `json:"answer" doc:"The beginning of the answer, at most 2 KiB"`
}

func viewAttempt(a webhook.Attempt) attemptView {
	v := attemptView{Number: a.Number, StartedAt: a.StartedAt.UTC(), LatencyMS: a.Latency.Milliseconds(), Error: a.Error, Answer: a.Answer}
	if a.Status != 0 {
		v.Status = &a.Status
	}
	return v
}

// DeliveryView is one event for one webhook.
type DeliveryView struct {
	ID            string       `json:"id" example:"dlv_06f4k3z9c8tqv5m2yb7n1x0d4c"`
	WebhookID     string       `json:"webhook_id"`
	EventID       string       `json:"event_id" doc:"What receivers see as webhook-id, at every attempt"`
	EventType     string       `json:"event_type"`
	Seq           *int64       `json:"seq" doc:"Of the event in the log; null for a test"`
	State         string       `json:"state" enum:"pending,sending,succeeded,failed"`
	Attempts      int          `json:"attempts" doc:"Begun so far, with the one that is being made"`
	NextAttemptAt *time.Time   `json:"next_attempt_at"`
	CreatedAt     time.Time    `json:"created_at"`
	FinishedAt    *time.Time   `json:"finished_at"`
	LastAttempt   *attemptView `json:"last_attempt,omitempty" doc:"Missing until there was one"`
}

func viewDelivery(now time.Time) func(webhook.Delivery) DeliveryView {
	return func(d webhook.Delivery) DeliveryView {
		v := DeliveryView{ID: string(d.ID), WebhookID: string(d.Webhook), EventID: string(d.Event), EventType: d.Type, State: string(d.State),
			Attempts: d.Attempts, CreatedAt: d.CreatedAt.UTC(), FinishedAt: utc(d.FinishedAt)}
		if d.Seq != 0 {
			seq := int64(d.Seq)
			v.Seq = &seq
		}
		if d.State == webhook.Pending {
			if v.NextAttemptAt = utc(&d.Due); d.Claim != "" && d.Due.After(now) {
				v.State, v.NextAttemptAt = "sending", nil
			}
		}
		if n := len(d.Tried); n > 0 {
			last := viewAttempt(d.Tried[n-1])
			v.LastAttempt = &last
		}
		return v
	}
}

// triedView is a delivery with all its attempts.
type triedView struct {
	DeliveryView
	AttemptList []attemptView `json:"attempt_list" doc:"Oldest first, the newest 50. One that a crash of the server cut is not in it: its number is missing"`
}

type deliveryAnswer struct {
	Replayed string `header:"Idempotency-Replayed" doc:"true when this is an earlier answer"`
	Body     triedView
}

func (s *Server) answerDelivery(d webhook.Delivery, err error, replayed string) (*deliveryAnswer, error) {
	if err != nil {
		return nil, err
	}
	v := triedView{viewDelivery(s.now())(d), []attemptView{}}
	for _, a := range d.Tried {
		v.AttemptList = append(v.AttemptList, viewAttempt(a))
	}
	return &deliveryAnswer{replayed, v}, nil
}

func (s *Server) testWebhook(x *exchange, in *webhookFind) (*deliveryAnswer, error) {
	once, err := x.once()
	if err != nil {
		return nil, err
	}
	hooks, id, err := x.hooks(in.ID)
	if err != nil {
		return nil, err
	}
	d, err := hooks.Test(x.ctx, x.actor, id, once)
	return s.answerDelivery(d, err, replayed(once))
}

type deliveryList struct {
	Call
	WebhookPath
	State  string `query:"state" enum:"pending,succeeded,failed"`
	Type   string `query:"type" maxLength:"100" doc:"Of the event"`
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"20"`
	Cursor string `query:"cursor" maxLength:"1024" doc:"From next_cursor"`
}

func (s *Server) listDeliveries(x *exchange, in *deliveryList) (*paged[DeliveryView], error) {
	hooks, id, err := x.hooks(in.ID)
	if err != nil {
		return nil, err
	}
	list, next, err := hooks.Deliveries(x.ctx, x.actor, id, webhook.DeliveryQuery{State: webhook.DeliveryState(in.State), Type: in.Type,
		Cursor: in.Cursor, Limit: in.Limit})
	if err != nil {
		return nil, err
	}
	return pageOf(list, next, viewDelivery(s.now())), nil
}

type deliveryFind struct {
	Call
	DeliveryPath
}

func (s *Server) findDelivery(x *exchange, in *deliveryFind) (*deliveryAnswer, error) {
	hooks, id, err := x.hooks(in.ID)
	if err != nil {
		return nil, err
	}
	d, err := idAt[ident.DeliveryID](in.DeliveryID)
	if err != nil {
		return nil, err
	}
	found, err := hooks.Delivery(x.ctx, x.actor, id, d)
	return s.answerDelivery(found, err, "")
}

func (s *Server) redeliver(x *exchange, in *deliveryFind) (*deliveryAnswer, error) {
	once, err := x.once()
	if err != nil {
		return nil, err
	}
	hooks, id, err := x.hooks(in.ID)
	if err != nil {
		return nil, err
	}
	d, err := idAt[ident.DeliveryID](in.DeliveryID)
	if err != nil {
		return nil, err
	}
	found, err := hooks.Redeliver(x.ctx, x.actor, id, d, once)
	return s.answerDelivery(found, err, replayed(once))
}

type redeliverMany struct {
	Call
	WebhookPath
	Body struct {
		From  time.Time `json:"from" doc:"When the events happened"`
		To    time.Time `json:"to" doc:"Not included"`
		State string    `json:"state,omitempty" enum:"failed,succeeded,all,missed" doc:"Which deliveries; default: failed. missed: events that made none, because the webhook was not there or not active"`
	} `nameHint:"RedeliverMany"`
}

type redeliveredAnswer struct {
	Replayed string `header:"Idempotency-Replayed" doc:"true when this is an earlier answer"`
	Body     redeliveredView
}

type redeliveredView struct {
	Count int64      `json:"count" doc:"How many are sent again"`
	More  *time.Time `json:"more" doc:"The from of the next call, when there are more"`
}

func (s *Server) redeliverMany(x *exchange, in *redeliverMany) (*redeliveredAnswer, error) {
	once, err := x.once()
	if err != nil {
		return nil, err
	}
	hooks, id, err := x.hooks(in.ID)
	if err != nil {
		return nil, err
	}
	r := webhook.Range{From: in.Body.From, To: in.Body.To, State: webhook.DeliveryState(in.Body.State)}
	switch in.Body.State {
	case "":
		r.State = webhook.Failed
	case "all":
		r.State = ""
	case "missed":
		r.State, r.Missed = "", true
	}
	did, err := hooks.RedeliverMany(x.ctx, x.actor, id, r, once)
	if err != nil {
		return nil, err
	}
	return &redeliveredAnswer{replayed(once), redeliveredView{did.Count, utc(did.More)}}, nil
}
