package event_test

import (
	"context"
	"testing"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/seal"
)

// shelf keeps one record.
type shelf struct{ once event.Once }

func (s shelf) FindOnce(_ context.Context, scope, key string) (event.Once, error) {
	if s.once.Scope != scope || s.once.Key != key {
		return event.Once{}, fault.Missing("shelf")
	}
	return s.once, nil
}

func TestOnce(t *testing.T) {
	keys, err := seal.NewKeyring("an entirely unguessable phrase, 0123456789")
	if err != nil {
		t.Fatal(err)
	}
	first := event.Once{Scope: "s", Key: "k", Fingerprint: []byte("body")}
	if err := first.Keep(keys, map[string]int{"n": 7}); err != nil {
		t.Fatal(err)
	}
	kept := shelf{first}
	var got map[string]int
	repeat := event.Once{Scope: "s", Key: "k", Fingerprint: []byte("body")}
	if err := repeat.Replay(t.Context(), kept, keys, &got); err != nil || got["n"] != 7 || !repeat.Replayed {
		t.Errorf("%v %v", got, err)
	}
	other := event.Once{Scope: "s", Key: "k", Fingerprint: []byte("another body")}
	if err := other.Replay(t.Context(), kept, keys, &got); !fault.Is(err, fault.Mismatch) {
		t.Errorf("another body: %v", err)
	}
	stranger := event.Once{Scope: "t", Key: "k", Fingerprint: []byte("body")}
	if err := stranger.Replay(t.Context(), kept, keys, &got); !fault.Is(err, fault.NotFound) {
		t.Errorf("another scope: %v", err)
	}
	t.Run("a record moved to another key does not open", func(t *testing.T) {
		moved := first
		moved.Key = "k2"
		thief := event.Once{Scope: "s", Key: "k2", Fingerprint: []byte("body")}
		if err := thief.Replay(t.Context(), shelf{moved}, keys, &got); err == nil {
			t.Error("it opened")
		}
	})
	t.Run("no record keeps nothing", func(t *testing.T) {
		var none *event.Once
		if err := none.Keep(keys, 1); err != nil {
			t.Error(err)
		}
	})
}

// TestFor writes down what members hear: who adds a kind of event has to decide whether they do.
func TestFor(t *testing.T) {
	const here = "prj_here"
	for name, c := range map[string]struct{ kind, data, want string }{
		"of the project":               {"project.updated", `{"version":2}`, `{"version":2}`},
		"said in it":                   {"message.created", `{"conversation_id":"conv_c","project_id":"prj_here"}`, `{"conversation_id":"conv_c","project_id":"prj_here"}`},
		"a turn":                       {"turn.completed", `{"project_id":"prj_here"}`, `{"project_id":"prj_here"}`},
		"moved in from somewhere":      {"conversation.moved", `{"from_project_id":"prj_there","project_id":"prj_here"}`, `{"from_project_id":null,"project_id":"prj_here"}`},
		"moved away":                   {"conversation.moved", `{"from_project_id":"prj_here","project_id":"prj_there"}`, `{"from_project_id":"prj_here","project_id":null}`},
		"moved to nowhere":             {"conversation.moved", `{"from_project_id":"prj_here","project_id":null}`, `{"from_project_id":"prj_here","project_id":null}`},
		"said before it came":          {"message.created", `{"project_id":"prj_there"}`, `{"project_id":null}`},
		"who was added":                {"member.added", `{"project_id":"prj_here","user_id":"usr_u","role":"viewer"}`, `{"project_id":"prj_here","user_id":"usr_u","role":"viewer"}`},
		"who came by an invitation":    {"member.added", `{"invitation_id":"inv_i","project_id":"prj_here","user_id":"usr_u"}`, `{"project_id":"prj_here","user_id":"usr_u"}`},
		"who is invited":               {"member.invited", `{"invitation_id":"inv_i","project_id":"prj_here"}`, ""},
		"whose invitation changed":     {"member.changed", `{"invitation_id":"inv_i","project_id":"prj_here"}`, ""},
		"whose invitation is no more":  {"member.removed", `{"invitation_id":"inv_i","project_id":"prj_here"}`, ""},
		"of the owner's database":      {"database.activated", `{"project_id":"prj_here"}`, ""},
		"of a webhook":                 {"webhook.paused", `{"project_id":"prj_here"}`, ""},
		"of an export of it":           {"export.completed", `{"project_id":"prj_here"}`, ""},
		"something new":                {"something.new", `{"project_id":"prj_here"}`, ""},
		"that the data was put back":   {event.Restored, `{"job_id":"job_j"}`, `{}`},
		"that the data was all erased": {"data.erased", `{"job_id":"job_j"}`, ""},
	} {
		e := event.Event{Seq: 7, ID: "evt_e", Type: c.kind, Subject: "conv_c", Data: []byte(c.data)}
		got, shown := e.For(here)
		again, still := got.For(here)
		switch {
		case shown != (c.want != ""), shown && (string(got.Data) != c.want || got.Seq != 7 || got.ID != "evt_e" || got.Type != c.kind):
			t.Errorf("%s: %v %s, want %s", name, shown, got.Data, c.want)
		case still != shown || string(again.Data) != string(got.Data):
			t.Errorf("%s, twice: %v %s", name, still, again.Data)
		case string(e.Data) != c.data:
			t.Errorf("%s: the event itself changed", name)
		}
	}
}
