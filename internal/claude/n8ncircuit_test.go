package claude

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/claude/n8nfake"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
)

func TestN8NThatFailsIsLeftAlone(t *testing.T) {
	now := time.Unix(1760000000, 0)
	model, fake := webhook(t, n8nfake.Buffered(http.StatusBadGateway, "<html>Bad Gateway</html>"), nil)
	model.now = func() time.Time { return now }
	failure := func() *fault.Error {
		t.Helper()
		_, _, err := hear(t, model, t.Context(), ask("?"))
		f, ok := errors.AsType[*fault.Error](err)
		if !ok {
			t.Fatalf("no failure: %v", err)
		}
		return f
	}
	fails := func(code string) {
		t.Helper()
		if f := failure(); f.Code != code {
			t.Fatalf("%v, want %s", f, code)
		}
	}
	circuit := func(state string, failed int, wait time.Duration) {
		t.Helper()
		if c := model.Circuit(); c != (Circuit{State: state, Failed: failed, Wait: wait}) {
			t.Errorf("%+v, want %s after %d failures, for %v", c, state, failed, wait)
		}
	}
	calls := func(n int) {
		t.Helper()
		if got := len(fake.Calls()); got != n {
			t.Errorf("%d calls, want %d", got, n)
		}
	}
	for range 4 {
		fails(conversation.CodeProviderFailed)
	}
	circuit("closed", 4, 0)
	fails(conversation.CodeProviderFailed)
	circuit("open", 5, 15*time.Second)
	now = now.Add(2500 * time.Millisecond)
	for range 3 {
		f := failure()
		if f.Code != conversation.CodeProviderUnreachable || f.After != 12500*time.Millisecond || f.Class != fault.Unavailable || !strings.Contains(f.Message, "retry in 13 s") {
			t.Errorf("%v after %v: %s", f.Class, f.After, f.Message)
		}
	}
	calls(5)

	// The one call that finds out may hang; nobody waits for it.
	now = now.Add(12500 * time.Millisecond)
	circuit("half_open", 5, 0)
	arrived, answer := make(chan struct{}), make(chan struct{})
	fake.Set(func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-answer
		n8nfake.Buffered(200, `"hello"`)(w, r)
	})
	done := make(chan error)
	go func() {
		_, err := model.Answer(t.Context(), ask("?"), func(string) {})
		done <- err
	}()
	<-arrived
	fails(conversation.CodeProviderUnreachable)
	calls(6)
	close(answer)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	circuit("closed", 0, 0)
	fake.Set(n8nfake.Hung())
	fails(conversation.CodeProviderCut)
	circuit("closed", 1, 0)
	fake.Set(n8nfake.Accepted())
	if a, _, err := hear(t, model, t.Context(), later()); err != nil || !a.Later {
		t.Errorf("%+v %v", a, err)
	}
	circuit("closed", 0, 0)

	t.Run("one that fails again is left alone again", func(t *testing.T) {
		fake.Set(n8nfake.Thrown())
		for range 5 {
			fails(conversation.CodeProviderFailed)
		}
		for range 3 {
			now = now.Add(15 * time.Second)
			fails(conversation.CodeProviderFailed)
			fails(conversation.CodeProviderUnreachable)
		}
		circuit("open", 8, 15*time.Second)
	})
	t.Run("a caller who leaves found nothing out", func(t *testing.T) {
		now = now.Add(15 * time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		fake.Set(n8nfake.Arrived(func(n8nfake.Call) { cancel() }, n8nfake.Stalled(nil)))
		if _, err := model.Answer(ctx, ask("?"), func(string) {}); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		circuit("half_open", 8, 0)
		fake.Set(n8nfake.Buffered(200, `"hello"`))
		if _, _, err := hear(t, model, t.Context(), ask("?")); err != nil {
			t.Error(err)
		}
		circuit("closed", 0, 0)
	})
}

func TestN8NThatAnswersIsWell(t *testing.T) {
	for name, test := range map[string]struct {
		reply n8nfake.Reply
		code  string
	}{
		"its provider is overloaded": {n8nfake.Relayed(529, `{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}`, "conv_1"), conversation.CodeProviderOverloaded},
		"its provider fails":         {n8nfake.Relayed(500, `{"type":"error","error":{"type":"api_error","message":"x"}}`, "conv_1"), conversation.CodeProviderFailed},
		"it passes a status on":      {n8nfake.Buffered(529, "{}"), conversation.CodeProviderOverloaded},
		"there is no workflow":       {n8nfake.Unpublished(), conversation.CodeProviderRejected},
		"a web page":                 {n8nfake.Buffered(200, "<!doctype html>"), conversation.CodeProviderMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			model, fake := webhook(t, test.reply, nil)
			for range 8 {
				if _, _, err := hear(t, model, t.Context(), ask("?")); fault.CodeOf(err) != test.code {
					t.Errorf("%v", err)
				}
			}
			if n := len(fake.Calls()); n != 8 || model.Circuit().Failed != 0 {
				t.Errorf("%d calls, %+v", n, model.Circuit())
			}
		})
	}
	half := []n8nfake.Line{{Type: "begin"}, {Type: "item", Content: "half "}}
	for name, test := range map[string]struct {
		change func(*N8NConfig)
		lines  []n8nfake.Line
	}{
		"but not one that never begins": {func(c *N8NConfig) { c.Timeout = 50 * time.Millisecond }, nil},
		"but not one that falls silent": {func(c *N8NConfig) { c.IdleTimeout = 50 * time.Millisecond }, half},
	} {
		Timeless(t, name, func(t *testing.T) {
			model := timeless(t, n8nfake.Stalled(nil, test.lines...), test.change)
			if _, _, err := hear(t, model, t.Context(), ask("?")); fault.CodeOf(err) != conversation.CodeProviderTimeout {
				t.Errorf("%v", err)
			}
			if model.Circuit().Failed != 1 {
				t.Errorf("%+v", model.Circuit())
			}
		})
	}
	t.Run("who writes until the time is up", func(t *testing.T) {
		if v := n8nVerdict(t.Context(), conversation.Answer{Text: "half "}, timeoutFault(errN8NTotal)); v != well {
			t.Errorf("verdict %d", v)
		}
	})
}
