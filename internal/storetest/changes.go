package storetest

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/webhook"
)

func changes(t *testing.T, h Harness) {
	t.Run("a change leaves its events and one entry", func(t *testing.T) {
		r := newRoom(t, h)
		c := plainConversation("x", 2)
		ch := happens(2, "conversation.created", string(c.ID))
		ch.Add("project.touched", "prj_1", map[string]any{"n": 1})
		must(t, r.Talk.InsertConversation(t.Context(), c, ch))
		got, err := r.Events.Since(t.Context(), 1, 10)
		must(t, err)
		want := slices.Clone(ch.Events)
		want[0].Seq, want[1].Seq = 2, 3
		same(t, "events", got, want)
		entries, next, err := r.Trail.Entries(t.Context(), audit.Filter{}, "", 10)
		must(t, err)
		same(t, "entries", len(entries), 2)
		same(t, "next", next, "")
		e := entries[0]
		e.ID, e.Place = "", ""
		same(t, "entry", e, audit.Entry{At: at(2), Action: "conversation.created", Subject: string(c.ID),
			Outcome: audit.Done, ActorID: ada.Account, ActorName: ada.Name, Session: ada.Session, Address: ada.Address,
			RequestID: ada.RequestID, Detail: ch.Events[0].Data})
		same(t, "announced", r.Commits(), []event.Seq{1, 3})
	})
	t.Run("a log is read in parts", func(t *testing.T) {
		r := newRoom(t, h)
		for i := range 6 {
			r.say(active, fmt.Sprint(i))
		}
		var seqs []event.Seq
		for after := event.Seq(0); ; after = seqs[len(seqs)-1] {
			part, err := r.Events.Since(t.Context(), after, 3)
			must(t, err)
			if len(part) == 0 {
				break
			}
			for _, e := range part {
				seqs = append(seqs, e.Seq)
			}
		}
		same(t, "seqs", seqs, []event.Seq{1, 2, 3, 4, 5, 6, 7})
		head, err := r.Events.Head(t.Context())
		must(t, err)
		same(t, "head", head, 7)
	})
	t.Run("an empty log has no head", func(t *testing.T) {
		head, err := h.Tenant(t).Events.Head(t.Context())
		must(t, err)
		same(t, "head", head, 0)
	})
	t.Run("what rolls back leaves nothing", func(t *testing.T) {
		r := newRoom(t, h)
		c := r.open("x", 0)
		c.Title = "again"
		ch := once(happens(1, "conversation.created", string(c.ID)), "k", "r")
		wantCode(t, r.Talk.InsertConversation(t.Context(), c, ch), "duplicate")
		dangling := plainConversation("y", 0)
		dangling.ProjectID = ident.New[ident.ProjectID]()
		wantField(t, r.Talk.InsertConversation(t.Context(), dangling, ch), "body.project_id")
		r.unchanged(2, "k")
	})
	t.Run("a repeat is told and writes nothing", func(t *testing.T) { repeats(t, h) })
	t.Run("a record is found with what a repeat has to read anyway", func(t *testing.T) { met(t, h) })
	t.Run("a record is found until it expires", func(t *testing.T) { expiry(t, h) })
}

// unchanged asserts that the log and the trail have n lines, that nobody heard of more, and that a key is free.
func (r *room) unchanged(n int, key string) {
	r.Helper()
	head, err := r.Events.Head(r.Context())
	must(r, err)
	same(r, "head", head, event.Seq(n))
	events, err := r.Events.Since(r.Context(), 0, 100)
	must(r, err)
	same(r, "events", len(events), n)
	entries, _, err := r.Trail.Entries(r.Context(), audit.Filter{}, "", 100)
	must(r, err)
	same(r, "entries", len(entries), n)
	same(r, "announced", len(r.Commits()), n)
	_, err = r.Talk.FindOnce(r.Context(), "usr_ada send", key)
	wantCode(r, err, "not_found")
}

func repeats(t *testing.T, h Harness) {
	r := newRoom(t, h)
	say := func(key, content string) error {
		_, _, err := r.Talk.Append(t.Context(), r.id, active,
			func(conversation.Spot) (conversation.Entry, event.Change, error) {
				return conversation.Entry{Messages: []conversation.Message{plainMessage(content)}},
					onceNow(happens(1, "message.appended", "m"), key), nil
			})
		return err
	}
	must(t, say("k1", "first"))
	wantCode(t, say("k1", "again"), event.CodeRepeated)
	if err := say("k1", "again"); !event.Repeated(err) {
		t.Fatalf("got %v", err)
	}
	must(t, say("k2", "second"))
	p := plainProject("p", 0)
	wantCode(t, r.Projects.InsertProject(t.Context(), p, onceNow(happens(1, "project.created", string(p.ID)), "k1")),
		event.CodeRepeated)
	_, err := r.Projects.FindProject(t.Context(), p.ID)
	wantCode(t, err, "not_found")
	c := plainConversation("c", 0)
	wantCode(t, r.Talk.InsertConversation(t.Context(), c, onceNow(happens(1, "conversation.created", string(c.ID)), "k1")),
		event.CodeRepeated)
	_, err = r.Talk.FindConversation(t.Context(), c.ID)
	wantCode(t, err, "not_found")
	same(t, "messages", r.walk(conversation.MessageQuery{Limit: 9, Ascending: true}, nil), []string{"first", "second"})
	r.unchanged(3, "k3")
	got, err := r.Projects.FindOnce(t.Context(), "usr_ada send", "k1")
	must(t, err)
	same(t, "fingerprint", string(got.Fingerprint), "print of k1")
	same(t, "result", string(got.Result), "result\x00\xff of k1")
	_, err = r.Projects.FindOnce(t.Context(), "usr_bob send", "k1")
	wantCode(t, err, "not_found")
}

// met looks for records where a repeat meets them first: before an append, and with a turn.
func met(t *testing.T, h Harness) {
	r := newRoom(t, h)
	turn, _ := r.ask(active, "hello")
	hook := r.hook(plainEndpoint(0, "*"))
	keep := func(ch event.Change) {
		p := plainProject("p", 0)
		must(t, r.Projects.InsertProject(t.Context(), p, ch))
	}
	keep(onceNow(happens(1, "project.created", "p"), "there"))
	keep(once(happens(1, "project.created", "p"), "over", "r")) // by the wall clock
	no := errors.New("no")
	for key, want := range map[string]string{"there": "result\x00\xff of there", "over": "", "never": ""} {
		o := onceNow(happens(1, "m", "m"), key).Once
		look := map[string]func(o *event.Once) (*event.Once, error){
			"before an append": func(o *event.Once) (was *event.Once, _ error) {
				_, _, err := r.Talk.Append(t.Context(), r.id, conversation.Where{Once: o}, func(sp conversation.Spot) (conversation.Entry, event.Change, error) {
					was = sp.Was
					return conversation.Entry{}, event.Change{}, no
				})
				if errors.Is(err, no) {
					err = nil
				}
				return was, err
			},
			"with a turn": func(o *event.Once) (*event.Once, error) {
				got, user, answer, was, err := r.Talk.FindTurnOnce(t.Context(), r.id, turn.ID, o)
				same(t, "turn", []any{got.ID, user.ID, answer.ID}, []any{turn.ID, turn.UserMessage, turn.AssistantMessage})
				return was, err
			},
			"with an endpoint": func(o *event.Once) (*event.Once, error) {
				got, was, err := r.Webhooks.FindEndpointOnce(t.Context(), hook.ID, o)
				same(t, "endpoint", got, hook)
				return was, err
			},
			"before an edit of one": func(o *event.Once) (*event.Once, error) {
				edited := false
				got, was, err := r.Webhooks.UpdateEndpointOnce(t.Context(), hook.ID, o, func(e webhook.Endpoint) (webhook.Endpoint, event.Change, error) {
					edited = true
					return e, event.Change{}, no
				})
				if edited == (was != nil) || was != nil && got.ID != hook.ID {
					t.Errorf("edited: %v, with %+v of %+v", edited, was, got)
				}
				if errors.Is(err, no) {
					err = nil
				}
				return was, err
			},
		}
		for where, find := range look {
			was, err := find(o)
			must(t, err)
			if was == nil {
				same(t, key+" "+where, "", want)
				continue
			}
			same(t, key+" "+where, string(was.Result), want)
			same(t, "fingerprint", string(was.Fingerprint), string(o.Fingerprint))
			if !was.ExpiresAt.After(time.Now()) {
				t.Errorf("%s, %s, expires at %v", key, where, was.ExpiresAt)
			}
			other := *o
			other.Scope = "usr_bob send"
			was, err = find(&other)
			must(t, err)
			same(t, "of another scope", was, (*event.Once)(nil))
		}
		for where, find := range look {
			was, err := find(nil)
			must(t, err)
			same(t, "without a key, "+where, was, (*event.Once)(nil))
		}
	}
	_, _, _, _, err := r.Talk.FindTurnOnce(t.Context(), r.id, ident.New[ident.TurnID](), onceNow(happens(1, "m", "m"), "there").Once)
	wantCode(t, err, "not_found")
	_, _, err = r.Webhooks.FindEndpointOnce(t.Context(), ident.New[ident.WebhookID](), onceNow(happens(1, "m", "m"), "there").Once)
	wantCode(t, err, "not_found")
	// Also where there is no room for another one, and without one's project.
	late := plainEndpoint(0, "*")
	late.Project = ident.New[ident.ProjectID]()
	wantCode(t, r.Webhooks.InsertEndpoint(t.Context(), late, 1, onceNow(happens(1, "webhook.created", string(late.ID)), "there")), event.CodeRepeated)
}

// onceNow is a record that lives by the wall clock, which FindOnce goes by.
func onceNow(c event.Change, key string) event.Change {
	c = once(c, key, "result\x00\xff of "+key)
	c.Once.ExpiresAt = time.Now().Add(event.OnceLife).UTC().Truncate(time.Microsecond)
	return c
}

func expiry(t *testing.T, h Harness) {
	r := newRoom(t, h)
	insert := func(minutes int, expires time.Time) error {
		p := plainProject("p", minutes)
		ch := once(happens(minutes, "project.created", string(p.ID)), "k", fmt.Sprint(minutes))
		ch.Once.ExpiresAt = expires
		return r.Projects.InsertProject(t.Context(), p, ch)
	}
	must(t, insert(1, at(10)))
	_, err := r.Talk.FindOnce(t.Context(), "usr_ada send", "k")
	wantCode(t, err, "not_found") // by the wall clock it is long over
	wantCode(t, insert(9, at(20)), event.CodeRepeated)
	must(t, insert(10, at(20)))
	soon := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
	must(t, insert(21, soon))
	got, err := r.Talk.FindOnce(t.Context(), "usr_ada send", "k")
	must(t, err)
	same(t, "result", string(got.Result), "21")
	same(t, "expiry", got.ExpiresAt, soon)
	n, err := r.SweepOnces(t.Context(), soon.Add(-time.Microsecond))
	must(t, err)
	same(t, "swept early", n, 0)
	n, err = r.SweepOnces(t.Context(), soon)
	must(t, err)
	same(t, "swept", n, 1)
	_, err = r.Talk.FindOnce(t.Context(), "usr_ada send", "k")
	wantCode(t, err, "not_found")
}
