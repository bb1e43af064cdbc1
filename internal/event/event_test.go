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
