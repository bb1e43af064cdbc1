package storetest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/webhook"
)

func plainEndpoint(minutes int, events ...string) webhook.Endpoint {
	return webhook.Endpoint{ID: ident.New[ident.WebhookID](), Details: webhook.Details{Name: "hook", URL: "https://example.org/in", Events: events},
		State: webhook.Active, Secret: []byte{1, 0, 255}, Version: 1, CreatedAt: at(minutes), UpdatedAt: at(minutes)}
}

// hook adds an endpoint.
func (r *room) hook(e webhook.Endpoint) webhook.Endpoint {
	r.Helper()
	must(r, r.Webhooks.InsertEndpoint(r.Context(), e, 50, happens(0, "webhook.created", string(e.ID))))
	return e
}

// pending are the types of the deliveries that an endpoint has, oldest first.
func (r *room) pending(id ident.WebhookID, state webhook.DeliveryState) []string {
	r.Helper()
	list, _, err := r.Webhooks.ListDeliveries(r.Context(), id, webhook.DeliveryQuery{State: state, Limit: 200})
	must(r, err)
	types := []string{}
	for _, d := range list {
		types = append(types, d.Type)
	}
	slices.Reverse(types)
	return types
}

func same3(e webhook.Endpoint, n int) func(webhook.Endpoint) (webhook.Endpoint, int, event.Change) {
	return func(now webhook.Endpoint) (webhook.Endpoint, int, event.Change) {
		now.Health = e.Health
		return now, n, event.Change{}
	}
}

// take does one step.
func (r *room) take(id ident.WebhookID, s webhook.Step, decide func(webhook.Endpoint) (webhook.Endpoint, int, event.Change)) ([]webhook.Claimed, error) {
	s.Endpoint, s.Decide = id, decide
	out, err := r.Webhooks.Take(r.Context(), []webhook.Step{s})
	if err != nil {
		return nil, err
	}
	return out[0].Claimed, out[0].Err
}

func webhooks(t *testing.T, h Harness) {
	t.Run("every field comes back", func(t *testing.T) {
		r := newRoom(t, h)
		p := r.project(plainProject("p", 0))
		e := plainEndpoint(3, "message.*", "turn.completed")
		until, since := at(5), at(6)
		e.Description, e.Project, e.Ordered, e.State, e.Reason = "Ünd 🧵", p.ID, true, webhook.Paused, webhook.Failing
		e.SecretBefore, e.BeforeUntil, e.NoticeDue, e.Version = []byte{7}, &until, &since, 4
		e.Health = webhook.Health{FailingSince: &since, Slowed: 3, HoldUntil: &until}
		r.hook(e)
		got, err := r.Webhooks.FindEndpoint(t.Context(), e.ID)
		must(t, err)
		same(t, "endpoint", got, e)
		_, err = r.Webhooks.FindEndpoint(t.Context(), ident.New[ident.WebhookID]())
		wantCode(t, err, "not_found")
	})
	t.Run("an edit is seen, and so is its event", func(t *testing.T) {
		r := newRoom(t, h)
		e := r.hook(plainEndpoint(0, "*"))
		after, err := r.Webhooks.UpdateEndpoint(t.Context(), e.ID, func(e webhook.Endpoint) (webhook.Endpoint, event.Change, error) {
			e.Name, e.Events, e.Version, e.UpdatedAt = "other", []string{"project.*"}, 2, at(1)
			return e, happens(1, "webhook.updated", string(e.ID)), nil
		})
		must(t, err)
		got, err := r.Webhooks.FindEndpoint(t.Context(), e.ID)
		must(t, err)
		same(t, "edited", got, after)
		if got.Name != "other" {
			t.Error(got.Name)
		}
		_, err = r.Webhooks.UpdateEndpoint(t.Context(), e.ID, func(e webhook.Endpoint) (webhook.Endpoint, event.Change, error) {
			e.Project = ident.New[ident.ProjectID]()
			return e, happens(1, "webhook.updated", string(e.ID)), nil
		})
		wantField(t, err, "body.project_id")
	})
	t.Run("there is a limit, and projects must be there", func(t *testing.T) {
		r := newRoom(t, h)
		r.hook(plainEndpoint(0, "*"))
		e := plainEndpoint(0, "*")
		wantCode(t, r.Webhooks.InsertEndpoint(t.Context(), e, 1, happens(1, "webhook.created", string(e.ID))), "too_many_webhooks")
		e.Project = ident.New[ident.ProjectID]()
		wantField(t, r.Webhooks.InsertEndpoint(t.Context(), e, 9, happens(1, "webhook.created", string(e.ID))), "body.project_id")
	})
	t.Run("pages are newest first", func(t *testing.T) {
		r := newRoom(t, h)
		var want []ident.WebhookID
		for range 5 {
			want = append([]ident.WebhookID{r.hook(plainEndpoint(0, "*")).ID}, want...)
		}
		var got []ident.WebhookID
		for cursor := ""; ; {
			list, next, err := r.Webhooks.ListEndpoints(t.Context(), "", cursor, 2)
			must(t, err)
			for _, e := range list {
				got = append(got, e.ID)
			}
			if cursor = next; next == "" {
				break
			}
		}
		same(t, "ids", got, want)
		_, _, err := r.Webhooks.ListEndpoints(t.Context(), "", "nonsense", 2)
		wantField(t, err, "query.cursor")
	})
	t.Run("a deleted one takes its deliveries along", func(t *testing.T) {
		r := newRoom(t, h)
		e := r.hook(plainEndpoint(0, "conversation.*"))
		r.open("x", 1)
		same(t, "pending", len(r.pending(e.ID, "")), 1)
		must(t, r.Webhooks.DeleteEndpoint(t.Context(), e.ID, func(webhook.Endpoint) (event.Change, error) {
			return happens(2, "webhook.deleted", string(e.ID)), nil
		}))
		_, _, err := r.Webhooks.ListDeliveries(t.Context(), e.ID, webhook.DeliveryQuery{Limit: 5})
		wantCode(t, err, "not_found")
	})
	t.Run("a deleted one is nowhere, and goes in pieces", func(t *testing.T) { purged(t, h) })
}

// purged deletes an endpoint with many deliveries beside one that stays.
func purged(t *testing.T, h Harness) {
	r := newRoom(t, h)
	e, stays := plainEndpoint(0, "message.*"), r.hook(plainEndpoint(0, "message.*"))
	since := at(0)
	e.State, e.NoticeDue = webhook.Active, &since
	r.hook(e)
	p := r.project(plainProject("p", 0))
	ch := event.NewChange(ada, at(1))
	const many, piece = 25, 10
	for n := range many {
		ch.Add("message.created", fmt.Sprint("msg_", n), map[string]any{})
	}
	_, err := r.Projects.UpdateProject(t.Context(), p.ID, nowEdit(ch))
	must(t, err)
	claimed, err := r.take(e.ID, webhook.Step{Claim: "c", Now: at(2), Lease: at(9)}, same3(e, 1))
	must(t, err)
	_, more, err := r.Webhooks.Purge(t.Context(), piece)
	must(t, err)
	same(t, "to be removed before", more, false)
	gone := func(ch event.Change) func(webhook.Endpoint) (event.Change, error) {
		return func(webhook.Endpoint) (event.Change, error) { return ch, nil }
	}
	must(t, r.Webhooks.DeleteEndpoint(t.Context(), e.ID, gone(happens(2, "webhook.deleted", string(e.ID)))))
	unseen := func() {
		t.Helper()
		id, d, told := e.ID, claimed[0].ID, happens(3, "webhook.updated", string(e.ID))
		_, err := r.Webhooks.FindEndpoint(t.Context(), id)
		wantCode(t, err, "not_found")
		_, err = r.Webhooks.UpdateEndpoint(t.Context(), id, func(e webhook.Endpoint) (webhook.Endpoint, event.Change, error) { return e, told, nil })
		wantCode(t, err, "not_found")
		wantCode(t, r.Webhooks.DeleteEndpoint(t.Context(), id, gone(told)), "not_found")
		_, _, err = r.Webhooks.ListDeliveries(t.Context(), id, webhook.DeliveryQuery{Limit: 5})
		wantCode(t, err, "not_found")
		_, err = r.Webhooks.FindDelivery(t.Context(), id, d)
		wantCode(t, err, "not_found")
		_, err = r.Webhooks.Redeliver(t.Context(), id, d, told)
		wantCode(t, err, "not_found")
		_, err = r.Webhooks.RedeliverMany(t.Context(), id, webhook.Range{From: at(0), To: at(9), Limit: 5, At: at(9)},
			func(webhook.Redelivered) (event.Change, error) { return told, nil })
		wantCode(t, err, "not_found")
		_, err = r.take(id, webhook.Step{Claim: "d", Now: at(9), Lease: at(10), Results: []webhook.Result{{Delivery: d, Claim: "c",
			State: webhook.Succeeded, Due: at(9), Attempt: webhook.Attempt{Number: 1, StartedAt: at(2), Status: 200}}}}, same3(e, 9))
		wantCode(t, err, "not_found")
		list, _, err := r.Webhooks.ListEndpoints(t.Context(), "", "", 9)
		must(t, err)
		if len(list) != 1 || list[0].ID != stays.ID {
			t.Errorf("%s", show(list))
		}
		n, _, err := r.Webhooks.Backlog(t.Context())
		must(t, err)
		same(t, "pending", n, many)
	}
	unseen()
	due, err := r.Webhooks.Due(t.Context())
	must(t, err)
	for _, d := range due {
		if d.Endpoint.ID == e.ID && (d.Endpoint.State != webhook.Deleted || d.At != nil || d.Endpoint.URL != "" || len(d.Endpoint.Secret) != 0) {
			t.Errorf("what is left: %s", show(d))
		}
	}
	same(t, "looked after", len(due), 2)
	// It counts for nothing.
	other := plainEndpoint(0, "none.*")
	must(t, r.Webhooks.InsertEndpoint(t.Context(), other, 2, happens(3, "webhook.created", string(other.ID))))
	must(t, r.Webhooks.DeleteEndpoint(t.Context(), other.ID, gone(happens(3, "webhook.deleted", string(other.ID)))))
	// The pieces: of the one, and then the other, which has nothing.
	for i, want := range []int64{piece, piece, many - 2*piece, 0} {
		n, more, err := r.Webhooks.Purge(t.Context(), piece)
		must(t, err)
		same(t, fmt.Sprint("piece ", i), n, want)
		same(t, "more", more, true)
		unseen()
	}
	n, more, err := r.Webhooks.Purge(t.Context(), piece)
	must(t, err)
	same(t, "left", n, 0)
	same(t, "more", more, false)
	if due, err = r.Webhooks.Due(t.Context()); err != nil || len(due) != 1 {
		t.Errorf("%s %v", show(due), err)
	}
	same(t, "of the other one", len(r.pending(stays.ID, webhook.Pending)), many)
}

func deliveries(t *testing.T, h Harness) {
	t.Run("an event makes one for whom it matches", func(t *testing.T) { outbox(t, h) })
	t.Run("what rolls back makes none", func(t *testing.T) {
		r := newRoom(t, h)
		e := r.hook(plainEndpoint(0, "*"))
		c := r.open("x", 1)
		before := r.pending(e.ID, "")
		wantCode(t, r.Talk.InsertConversation(t.Context(), c, happens(2, "conversation.created", string(c.ID))), "duplicate")
		same(t, "deliveries", r.pending(e.ID, ""), before)
	})
	t.Run("what is claimed is nobody else's until its lease is over", func(t *testing.T) { claims(t, h) })
	t.Run("what others claimed is taken from them", func(t *testing.T) {
		r := newRoom(t, h)
		e := r.hook(plainEndpoint(0, "conversation.*"))
		r.open("a", 1)
		r.open("b", 1)
		for _, claim := range []string{"mine.1", "others.mine.1"} {
			_, err := r.take(e.ID, webhook.Step{Claim: claim, Now: at(2), Lease: at(9)}, same3(e, 1))
			must(t, err)
		}
		must(t, r.Webhooks.Disown(t.Context(), "mine", at(3)))
		list, err := r.take(e.ID, webhook.Step{Claim: "mine.2", Now: at(3), Lease: at(9)}, same3(e, 9))
		must(t, err)
		same(t, "claimed again", len(list), 1)
		same(t, "attempts", list[0].Attempts, 2)
	})
	t.Run("results count where the claim stands", func(t *testing.T) { results(t, h) })
	t.Run("of many attempts the newest are kept", func(t *testing.T) { manyAttempts(t, h) })
	t.Run("order waits within a conversation", func(t *testing.T) { ordered(t, h) })
	t.Run("a long line is in nobody's way", func(t *testing.T) { longLine(t, h) })
	t.Run("sent again", func(t *testing.T) { redelivered(t, h) })
	t.Run("two at once claim nothing twice", func(t *testing.T) {
		r := newRoom(t, h)
		e := r.hook(plainEndpoint(0, "conversation.*"))
		for i := range 20 {
			r.open(fmt.Sprint(i), 1)
		}
		seen := make([][]webhook.Claimed, 8)
		for _, err := range together(len(seen), func(i int) (err error) {
			seen[i], err = r.take(e.ID, webhook.Step{Claim: fmt.Sprint("claim", i), Now: at(2), Lease: at(3)}, same3(e, 3))
			return err
		}) {
			must(t, err)
		}
		ids := map[ident.DeliveryID]bool{}
		n := 0
		for _, list := range seen {
			for _, c := range list {
				ids[c.ID] = true
				n++
			}
		}
		same(t, "claimed", []int{n, len(ids)}, []int{20, 20})
	})
	t.Run("several endpoints in one transaction", func(t *testing.T) {
		r := newRoom(t, h)
		a, b := r.hook(plainEndpoint(0, "conversation.*")), r.hook(plainEndpoint(0, "conversation.*"))
		r.open("x", 1)
		step := func(id ident.WebhookID, told string) webhook.Step {
			return webhook.Step{Endpoint: id, Claim: "of " + string(id), Now: at(2), Lease: at(3), Decide: func(e webhook.Endpoint) (webhook.Endpoint, int, event.Change) {
				e.Version++
				return e, 5, happens(2, "webhook.paused", told)
			}}
		}
		before, err := r.Events.Head(t.Context())
		must(t, err)
		out, err := r.Webhooks.Take(t.Context(), []webhook.Step{step(b.ID, "b"), step(ident.New[ident.WebhookID](), "none"), step(a.ID, "a")})
		must(t, err)
		same(t, "claimed", []int{len(out[0].Claimed), len(out[1].Claimed), len(out[2].Claimed)}, []int{1, 0, 1})
		wantCode(t, out[1].Err, "not_found")
		same(t, "whose", []ident.WebhookID{out[0].Claimed[0].Webhook, out[2].Claimed[0].Webhook}, []ident.WebhookID{b.ID, a.ID})
		events, err := r.Events.Since(t.Context(), before, 9)
		must(t, err)
		same(t, "told", []string{events[0].Subject, events[1].Subject}, []string{"b", "a"})
		same(t, "told twice", len(events), 2)
	})
	t.Run("old ones are forgotten", func(t *testing.T) {
		r := newRoom(t, h)
		e := r.hook(plainEndpoint(0, "conversation.*"))
		r.open("a", 1)
		r.open("b", 1)
		list, err := r.take(e.ID, webhook.Step{Claim: "c", Now: at(2), Lease: at(3)}, same3(e, 1))
		must(t, err)
		_, err = r.take(e.ID, webhook.Step{Now: at(2), Results: []webhook.Result{{Delivery: list[0].ID, Claim: "c",
			State: webhook.Succeeded, Due: at(2), Attempt: webhook.Attempt{Number: 1, StartedAt: at(2), Status: 204}}}}, same3(e, 0))
		must(t, err)
		n, oldest, err := r.Webhooks.Clean(t.Context(), at(2), 10)
		must(t, err)
		same(t, "too young", n, 0)
		if oldest == nil || !oldest.Equal(at(2)) {
			t.Errorf("the oldest one was finished at %v", oldest)
		}
		n, oldest, err = r.Webhooks.Clean(t.Context(), at(4), 10)
		must(t, err)
		same(t, "forgotten", n, 1)
		if oldest != nil {
			t.Errorf("nothing was finished at %v", oldest)
		}
		same(t, "left", r.pending(e.ID, ""), []string{"conversation.created"})
	})
}

func outbox(t *testing.T, h Harness) {
	r := newRoom(t, h)
	p, q := r.project(plainProject("p", 0)), r.project(plainProject("q", 0))
	all, some, other := r.hook(plainEndpoint(0, "*")), r.hook(plainEndpoint(0, "conversation.*", "project.deleted")), r.hook(plainEndpoint(0, "conversation.updated"))
	paused := plainEndpoint(0, "*")
	paused.State = webhook.Paused
	r.hook(paused)
	ofP := plainEndpoint(0, "*")
	ofP.Project = p.ID
	r.hook(ofP)
	of := len(r.pending(all.ID, "")) // what the others' making told
	inP := r.inProject(p.ID, "in p")
	inQ := r.inProject(q.ID, "in q")
	event1 := happens(5, "conversation.updated", string(inP.ID))
	c := event.NewChange(ada, at(6))
	c.Add("message.created", "msg_1", map[string]any{"conversation_id": inP.ID, "project_id": p.ID})
	c.Add("message.created", "msg_2", map[string]any{"conversation_id": inQ.ID, "project_id": nil})
	c.Add("conversation.moved", string(inQ.ID), map[string]any{"project_id": nil, "from_project_id": p.ID})
	for _, ch := range []event.Change{event1, c} {
		_, err := r.Projects.UpdateProject(t.Context(), q.ID, nowEdit(ch))
		must(t, err)
	}
	same(t, "all", r.pending(all.ID, "")[of:], []string{"conversation.created", "conversation.created", "conversation.updated", "message.created", "message.created", "conversation.moved"})
	same(t, "some", r.pending(some.ID, ""), []string{"conversation.created", "conversation.created", "conversation.updated", "conversation.moved"})
	same(t, "one type", r.pending(other.ID, ""), []string{"conversation.updated"})
	same(t, "paused", r.pending(paused.ID, ""), []string{})
	same(t, "of a project", r.pending(ofP.ID, ""), []string{"conversation.created", "conversation.updated", "message.created", "conversation.moved"})
	list, _, err := r.Webhooks.ListDeliveries(t.Context(), other.ID, webhook.DeliveryQuery{Limit: 1})
	must(t, err)
	if _, err := ident.Parse[ident.DeliveryID](string(list[0].ID)); err != nil || !strings.HasPrefix(string(list[0].ID)[4:], string(event1.Events[0].ID)[4:28]) {
		t.Errorf("%s of %s", list[0].ID, event1.Events[0].ID)
	}
	d := list[0]
	same(t, "delivery", d, webhook.Delivery{ID: d.ID, Webhook: other.ID, Seq: d.Seq, Event: event1.Events[0].ID, Type: "conversation.updated",
		State: webhook.Pending, Due: at(5), CreatedAt: at(5)})
}

// nowEdit makes a project's edit of any change.
func nowEdit(ch event.Change) func(p project.Project) (project.Project, event.Change, error) {
	return func(p project.Project) (project.Project, event.Change, error) {
		p.Version++
		return p, ch, nil
	}
}

func claims(t *testing.T, h Harness) {
	r := newRoom(t, h)
	e := r.hook(plainEndpoint(0, "conversation.*"))
	first := r.open("a", 1)
	r.open("b", 1)
	take := func(claim string, now int, n int) []webhook.Claimed {
		t.Helper()
		list, err := r.take(e.ID, webhook.Step{Claim: claim, Now: at(now), Lease: at(now + 10)}, same3(e, n))
		must(t, err)
		return list
	}
	if list := take("early", 0, 5); len(list) != 0 {
		t.Fatalf("claimed before it is due: %s", show(list))
	}
	one := take("one", 2, 1)
	if len(one) != 1 || one[0].Happened.Subject != string(first.ID) || one[0].Attempts != 1 || one[0].Claim != "one" || !one[0].Due.Equal(at(12)) {
		t.Fatalf("%s", show(one))
	}
	events, err := r.Events.Since(t.Context(), one[0].Seq-1, 1)
	must(t, err)
	same(t, "event", one[0].Happened, events[0])
	same(t, "the other one", len(take("two", 3, 5)), 1)
	same(t, "nothing is left", len(take("three", 11, 5)), 0)
	again := take("four", 12, 5)
	if len(again) != 1 || again[0].ID != one[0].ID || again[0].Attempts != 2 {
		t.Fatalf("after the lease: %s", show(again))
	}
	n, since, err := r.Webhooks.Backlog(t.Context())
	must(t, err)
	if n != 2 || since == nil || !since.Equal(at(1)) {
		t.Errorf("%d since %v", n, since)
	}
	due, err := r.Webhooks.Due(t.Context())
	must(t, err)
	if len(due) != 1 || due[0].Endpoint.ID != e.ID || due[0].At == nil || !due[0].At.Equal(at(13)) {
		t.Errorf("%s", show(due))
	}
	_, err = r.Webhooks.UpdateEndpoint(t.Context(), e.ID, func(e webhook.Endpoint) (webhook.Endpoint, event.Change, error) {
		e.State = webhook.Paused
		return e, happens(14, "webhook.updated", string(e.ID)), nil
	})
	must(t, err)
	n, since, err = r.Webhooks.Backlog(t.Context())
	must(t, err)
	if n != 0 || since != nil {
		t.Errorf("of a paused endpoint: %d since %v", n, since)
	}
}

func results(t *testing.T, h Harness) {
	r := newRoom(t, h)
	e := r.hook(plainEndpoint(0, "conversation.*"))
	r.open("a", 1)
	take := func(s webhook.Step, n int) []webhook.Claimed {
		t.Helper()
		list, err := r.take(e.ID, s, same3(e, n))
		must(t, err)
		return list
	}
	d := take(webhook.Step{Claim: "one", Now: at(2), Lease: at(3)}, 1)[0]
	failed := webhook.Result{Delivery: d.ID, Claim: "one", State: webhook.Pending, Due: at(9), Failed: true,
		Attempt: webhook.Attempt{Number: 1, StartedAt: at(2), Latency: 12 * time.Millisecond, Status: 500, Error: "status", Answer: "nö"}}
	stranger := failed
	stranger.Claim = "another"
	take(webhook.Step{Now: at(2), Results: []webhook.Result{stranger}}, 0)
	got, err := r.Webhooks.FindDelivery(t.Context(), e.ID, d.ID)
	must(t, err)
	if len(got.Tried) != 0 || got.Claim != "one" {
		t.Fatalf("a stranger's result was taken: %s", show(got))
	}
	take(webhook.Step{Now: at(2), Results: []webhook.Result{failed}}, 0)
	d = take(webhook.Step{Claim: "two", Now: at(9), Lease: at(10)}, 1)[0]
	good := webhook.Result{Delivery: d.ID, Claim: "two", State: webhook.Succeeded, Due: at(9),
		Attempt: webhook.Attempt{Number: 2, StartedAt: at(9), Status: 200, Answer: "ok"}}
	take(webhook.Step{Now: at(10), Results: []webhook.Result{good}}, 0)
	got, err = r.Webhooks.FindDelivery(t.Context(), e.ID, d.ID)
	must(t, err)
	end := at(10)
	same(t, "delivery", got, webhook.Delivery{ID: d.ID, Webhook: e.ID, Seq: d.Seq, Event: d.Event, Type: d.Type, State: webhook.Succeeded,
		Attempts: 2, Tries: 1, Due: at(9), CreatedAt: at(1), FinishedAt: &end, Tried: []webhook.Attempt{failed.Attempt, good.Attempt}})
	list, _, err := r.Webhooks.ListDeliveries(t.Context(), e.ID, webhook.DeliveryQuery{Limit: 5})
	must(t, err)
	same(t, "last attempts", list[0].Tried, []webhook.Attempt{good.Attempt})
	// What the endpoint is after attempts is stored with them, and so is what is told of it.
	since := at(11)
	_, err = r.take(e.ID, webhook.Step{Now: at(11)}, func(e webhook.Endpoint) (webhook.Endpoint, int, event.Change) {
		e.State, e.Reason, e.FailingSince, e.NoticeDue, e.Version = webhook.Paused, webhook.Failing, &since, &since, 2
		return e, 0, happens(11, "webhook.paused", string(e.ID))
	})
	must(t, err)
	due, err := r.Webhooks.Due(t.Context())
	must(t, err)
	if len(due) != 1 || due[0].Endpoint.State != webhook.Paused || due[0].Endpoint.NoticeDue == nil {
		t.Errorf("%s", show(due))
	}
	must(t, r.Webhooks.Noticed(t.Context(), e.ID))
	due, err = r.Webhooks.Due(t.Context())
	must(t, err)
	same(t, "told", len(due), 0)
	_, err = r.take(ident.New[ident.WebhookID](), webhook.Step{}, same3(e, 1))
	if !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

// manyAttempts has one delivery tried more often than attempts are kept.
func manyAttempts(t *testing.T, h Harness) {
	r := newRoom(t, h)
	e := r.hook(plainEndpoint(0, "conversation.*"))
	r.open("a", 1)
	step := webhook.Step{Now: at(2), Lease: at(3)}
	const more = 3
	var d webhook.Claimed
	for n := range webhook.KeptAttempts + more {
		step.Claim = fmt.Sprint("claim", n)
		list, err := r.take(e.ID, step, same3(e, 1))
		must(t, err)
		d = list[0]
		step.Results = []webhook.Result{{Delivery: d.ID, Claim: step.Claim, State: webhook.Pending, Due: at(2),
			Attempt: webhook.Attempt{Number: d.Attempts, StartedAt: at(2), Status: 500, Error: "status"}}}
	}
	_, err := r.take(e.ID, step, same3(e, 0))
	must(t, err)
	got, err := r.Webhooks.FindDelivery(t.Context(), e.ID, d.ID)
	must(t, err)
	same(t, "attempts", got.Attempts, webhook.KeptAttempts+more)
	same(t, "kept", len(got.Tried), webhook.KeptAttempts)
	same(t, "from and to", []int{got.Tried[0].Number, got.Tried[len(got.Tried)-1].Number}, []int{more + 1, webhook.KeptAttempts + more})
}

func ordered(t *testing.T, h Harness) {
	r := newRoom(t, h)
	e := plainEndpoint(0, "message.*")
	e.Ordered = true
	r.hook(e)
	say := func(minute int, conv string) {
		_, err := r.Projects.UpdateProject(t.Context(), r.project(plainProject("p", 0)).ID, nowEdit(func() event.Change {
			c := event.NewChange(ada, at(minute))
			c.Add("message.created", "msg_"+conv, map[string]any{"conversation_id": conv})
			return c
		}()))
		must(t, err)
	}
	say(1, "conv_a")
	say(2, "conv_a")
	say(3, "conv_b")
	say(4, "conv_a")
	take := func(s webhook.Step) []webhook.Claimed {
		t.Helper()
		list, err := r.take(e.ID, s, same3(e, 9))
		must(t, err)
		return list
	}
	list := take(webhook.Step{Claim: "one", Now: at(5), Lease: at(9)})
	if len(list) != 2 || list[0].Happened.Subject != "msg_conv_a" || list[1].Happened.Subject != "msg_conv_b" {
		t.Fatalf("%s", show(list))
	}
	same(t, "while it is on its way", len(take(webhook.Step{Claim: "two", Now: at(6), Lease: at(10)})), 0)
	due, err := r.Webhooks.Due(t.Context())
	must(t, err)
	if !due[0].At.Equal(at(9)) {
		t.Errorf("what waits is not due: %v", due[0].At)
	}
	next := take(webhook.Step{Claim: "three", Now: at(7), Lease: at(11), Results: []webhook.Result{{Delivery: list[0].ID, Claim: "one",
		State: webhook.Succeeded, Due: at(7), Attempt: webhook.Attempt{Number: 1, StartedAt: at(5), Status: 200}}}})
	if len(next) != 1 || !next[0].Happened.CreatedAt.Equal(at(2)) {
		t.Fatalf("%s", show(next))
	}
}

// longLine has very many deliveries wait for the first one of their conversation.
func longLine(t *testing.T, h Harness) {
	r := newRoom(t, h)
	e := plainEndpoint(0, "message.*")
	e.Ordered = true
	r.hook(e)
	p := r.project(plainProject("p", 0))
	say := func(minute, n int, conv string) {
		t.Helper()
		c := event.NewChange(ada, at(minute))
		for range n {
			c.Add("message.created", "msg_"+conv, map[string]any{"conversation_id": conv})
		}
		_, err := r.Projects.UpdateProject(t.Context(), p.ID, nowEdit(c))
		must(t, err)
	}
	const many = 500
	say(1, many, "conv_a")
	say(2, 1, "conv_b")
	// takes claims what there is, in as many steps as that needs.
	takes := func(s webhook.Step) (claimed []string, all []webhook.Claimed) {
		t.Helper()
		s.Endpoint, s.Decide = e.ID, same3(e, 8)
		for steps := 1; ; steps++ {
			out, err := r.Webhooks.Take(t.Context(), []webhook.Step{s})
			must(t, err)
			must(t, out[0].Err)
			for _, c := range out[0].Claimed {
				claimed, all = append(claimed, c.Happened.Subject), append(all, c)
			}
			s.Results = nil
			s.Claim += "+"
			if !out[0].More {
				return claimed, all
			}
			if steps > many {
				t.Fatal("there is always more")
			}
		}
	}
	due := func() time.Time {
		t.Helper()
		list, err := r.Webhooks.Due(t.Context())
		must(t, err)
		return *list[0].At
	}
	result := func(c webhook.Claimed, state webhook.DeliveryState, minute int) webhook.Result {
		return webhook.Result{Delivery: c.ID, Claim: c.Claim, State: state, Due: at(minute), Failed: state == webhook.Pending,
			Attempt: webhook.Attempt{Number: c.Attempts, StartedAt: at(5)}}
	}
	subjects, list := takes(webhook.Step{Claim: "one", Now: at(5), Lease: at(9)})
	same(t, "what is first", subjects, []string{"msg_conv_a", "msg_conv_b"})
	same(t, "nothing is due before the lease is over", due(), at(9))
	subjects, _ = takes(webhook.Step{Claim: "two", Now: at(6), Lease: at(10), Results: []webhook.Result{
		result(list[0], webhook.Pending, 30), result(list[1], webhook.Succeeded, 6)}})
	same(t, "while the first one waits to be tried again", subjects, []string(nil))
	say(10, 1, "conv_c")
	subjects, list = takes(webhook.Step{Claim: "three", Now: at(11), Lease: at(15)})
	same(t, "another conversation", subjects, []string{"msg_conv_c"})
	subjects, list = takes(webhook.Step{Claim: "four", Now: at(30), Lease: at(31), Results: []webhook.Result{result(list[0], webhook.Succeeded, 12)}})
	same(t, "the first one again", subjects, []string{"msg_conv_a"})
	// Each that is delivered lets the next one go, at once.
	for i := range 3 {
		subjects, list = takes(webhook.Step{Claim: fmt.Sprint("next", i), Now: at(30), Lease: at(31), Results: []webhook.Result{
			result(list[0], webhook.Succeeded, 30)}})
		same(t, "the next one", subjects, []string{"msg_conv_a"})
		same(t, "its place", list[0].Seq, list[0].Happened.Seq)
	}
	// Who needs no order any more gets all of them.
	_, err := r.Webhooks.UpdateEndpoint(t.Context(), e.ID, func(was webhook.Endpoint) (webhook.Endpoint, event.Change, error) {
		e = was
		e.Ordered, e.UpdatedAt = false, at(30)
		return e, happens(30, "webhook.updated", string(e.ID)), nil
	})
	must(t, err)
	list, err = r.take(e.ID, webhook.Step{Claim: "last", Now: at(30), Lease: at(31)}, same3(e, many))
	must(t, err)
	same(t, "without order", len(list), many-4) // the fourth is claimed
}

func redelivered(t *testing.T, h Harness) {
	r := newRoom(t, h)
	r.open("before", 1)
	e := r.hook(plainEndpoint(0, "conversation.*"))
	for i := range 4 {
		r.open(fmt.Sprint(i), 2+i)
	}
	list, err := r.take(e.ID, webhook.Step{Claim: "c", Now: at(9), Lease: at(20)}, same3(e, 9))
	must(t, err)
	step := webhook.Step{Now: at(9)}
	for i, d := range list {
		state := webhook.Succeeded
		if i%2 == 0 {
			state = webhook.Failed
		}
		step.Results = append(step.Results, webhook.Result{Delivery: d.ID, Claim: "c", State: state, Due: at(9), Failed: i%2 == 0,
			Attempt: webhook.Attempt{Number: 1, StartedAt: at(9)}})
	}
	_, err = r.take(e.ID, step, same3(e, 0))
	must(t, err)
	told := func(webhook.Redelivered) (event.Change, error) {
		return happens(10, "webhook.redelivered", string(e.ID)), nil
	}
	many := func(q webhook.Range) webhook.Redelivered {
		t.Helper()
		q.At = at(10)
		if q.Limit == 0 {
			q.Limit = 100
		}
		out, err := r.Webhooks.RedeliverMany(t.Context(), e.ID, q, told)
		must(t, err)
		return out
	}
	d, err := r.Webhooks.Redeliver(t.Context(), e.ID, list[1].ID, happens(10, "webhook.redelivered", string(e.ID)))
	must(t, err)
	if d.State != webhook.Pending || d.Event != list[1].Event || d.Tries != 0 || d.Attempts != 1 || !d.Due.Equal(at(10)) || d.FinishedAt != nil {
		t.Errorf("%s", show(d))
	}
	same(t, "outside the time", many(webhook.Range{From: at(3), To: at(4), State: webhook.Failed}).Count, 0)
	first := many(webhook.Range{From: at(0), To: at(9), State: webhook.Failed, Limit: 1})
	if first.Count != 1 || first.More == nil || !first.More.Equal(at(4)) {
		t.Errorf("%s", show(first))
	}
	second := many(webhook.Range{From: *first.More, To: at(9), State: webhook.Failed, Limit: 1})
	if second.Count != 1 || second.More != nil {
		t.Errorf("%s", show(second))
	}
	same(t, "all that is finished", many(webhook.Range{From: at(0), To: at(9)}).Count, 1)
	same(t, "missed", many(webhook.Range{From: at(0), To: at(9), Missed: true}).Count, 2) // the room's and "before"
	same(t, "missed once", many(webhook.Range{From: at(0), To: at(9), Missed: true}).Count, 0)
	same(t, "pending", len(r.pending(e.ID, webhook.Pending)), 6)
	_, err = r.Webhooks.Redeliver(t.Context(), e.ID, ident.New[ident.DeliveryID](), happens(10, "webhook.redelivered", string(e.ID)))
	wantCode(t, err, "not_found")
}
