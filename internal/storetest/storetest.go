package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/webhook"
)

// Stores is one tenant's database, seen through all that the nouns need of it. What the index of words promises is
// tested where the words are.
type Stores struct {
	Projects project.Store
	Talk     Talk
	Events   event.Log
	Trail    audit.Store
	Webhooks webhook.Store

	SweepOnces func(ctx context.Context, now time.Time) (int64, error)
	RoundTrips func() int64       // statements sent, in batches
	Commits    func() []event.Seq // what the store announced so far, in order
}

// Talk is conversation.Store without its index.
type Talk interface {
	conversation.Conversations
	conversation.Messages
	conversation.Turns
}

// Harness opens databases of one engine.
type Harness struct {
	// Tenant returns the stores of a fresh tenant, and closes them when the test ends.
	Tenant func(t testing.TB) Stores
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for _, part := range []struct {
		name string
		test func(*testing.T, Harness)
	}{
		{"projects", projects}, {"conversations", conversations}, {"listing", listing}, {"messages", messages},
		{"paging", paging}, {"turns", turns}, {"changes", changes}, {"trail", trail}, {"text", text},
		{"webhooks", webhooks}, {"deliveries", deliveries}, {"writers", writers}, {"contexts", contexts}, {"tenants", tenants}, {"round trips", roundTrips},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, h) })
	}
}

// start is the first moment of every test; at is later ones.
func at(minutes int) time.Time {
	return time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC).Add(time.Duration(minutes) * time.Minute)
}

var ada = ident.Actor{Account: "usr_ada", Name: "Ada", Session: "ses_1", Address: "192.0.2.1", RequestID: "req-1"}

// happens is a change with one event.
func happens(minutes int, kind, subject string) event.Change {
	c := event.NewChange(ada, at(minutes))
	c.Add(kind, subject, map[string]any{"about": subject})
	return c
}

// once adds an idempotency record to a change.
func once(c event.Change, key, result string) event.Change {
	c.Once = &event.Once{Scope: "usr_ada send", Key: key, Fingerprint: []byte("print of " + key), Result: []byte(result),
		ExpiresAt: c.At.Add(event.OnceLife)}
	return c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t testing.TB, err error, code string) {
	t.Helper()
	if err == nil || fault.CodeOf(err) != code {
		t.Fatalf("want code %q, got %v", code, err)
	}
}

// wantField asserts an Invalid that names one place of the input.
func wantField(t testing.TB, err error, location string) {
	t.Helper()
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || f.Class != fault.Invalid || len(f.Fields) != 1 || f.Fields[0].Location != location {
		t.Fatalf("want a complaint about %s, got %v", location, err)
	}
}

// same compares by value and shows the difference as JSON.
func same[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%s:\n got %s\nwant %s", what, show(got), show(want))
	}
}

func show(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprintf("%+v", v)
	}
	if len(raw) > 4000 {
		raw = append(raw[:4000], "…"...)
	}
	return string(raw)
}

// room is a database with one conversation in it and a clock that tests move by hand.
type room struct {
	testing.TB
	Stores
	id  ident.ConversationID
	now int
}

func newRoom(t testing.TB, h Harness) *room {
	t.Helper()
	r := &room{TB: t, Stores: h.Tenant(t)}
	r.id = r.open("talk", 0).ID
	return r
}

// open adds a conversation.
func (r *room) open(title string, minutes int) conversation.Conversation {
	r.Helper()
	c := plainConversation(title, minutes)
	must(r, r.Talk.InsertConversation(r.Context(), c, happens(minutes, "conversation.created", string(c.ID))))
	return c
}

func plainConversation(title string, minutes int) conversation.Conversation {
	return conversation.Conversation{ID: ident.New[ident.ConversationID](),
		Details: conversation.Details{Title: title, Status: conversation.Active, ImportanceLevel: 5, Tags: []string{},
			Settings: json.RawMessage(`{}`)},
		Creator: event.Who{ID: ada.Account, Name: ada.Name}, Version: 1, CreatedAt: at(minutes), UpdatedAt: at(minutes)}
}

// say adds one finished user message and returns it as it was stored.
func (r *room) say(w conversation.Where, content string) conversation.Message {
	r.Helper()
	list := r.add(w, plainMessage(content))
	return list[0]
}

// add appends messages below each other.
func (r *room) add(w conversation.Where, list ...conversation.Message) []conversation.Message {
	r.Helper()
	r.now++
	_, e, err := r.Talk.Append(r.Context(), r.id, w, func(conversation.Spot) (conversation.Entry, event.Change, error) {
		return conversation.Entry{Messages: list}, happens(r.now, "message.appended", string(list[0].ID)), nil
	})
	must(r, err)
	return e.Messages
}

func plainMessage(content string) conversation.Message {
	return conversation.Message{ID: ident.New[ident.MessageID](), Role: conversation.User, Content: content,
		State: conversation.Completed, Author: event.Who{ID: ada.Account, Name: ada.Name}, Tokens: 1,
		CreatedAt: at(0), UpdatedAt: at(0)}
}

// under is a place below a message.
func under(m conversation.Message) conversation.Where { return conversation.Where{Parent: m.ID} }

// active is the place below the active branch's leaf.
var active = conversation.Where{}

// contents are what messages say, in their order.
func contents(list []conversation.Message) []string {
	out := []string{}
	for _, m := range list {
		out = append(out, m.Content)
	}
	return out
}
