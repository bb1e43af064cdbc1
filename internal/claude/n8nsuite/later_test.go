//go:build n8n

package n8nsuite

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/claude/emulator"
)

func answersLater(t *testing.T, c *counterpart) {
	p := c.product(t, laterPath)
	t.Run("a whole answer, with blocks and usage", func(t *testing.T) {
		const text = "Teal, since <ever> & “always” 🎉."
		c.provider.Push(emulator.Script{User: "favourite", Thinking: "They ask for a colour.", Text: text})
		turn, told := p.ask("Which colour is my favourite?", nil)
		if want := []string{"turn.started", "turn.waiting", "message.delta", "message.completed", "turn.completed"}; !slices.Equal(told, want) {
			t.Errorf("told %v", told)
		}
		s := p.look(turn)
		if s.State != "completed" || s.Assistant.Content != text || s.Assistant.Model != "claude-sonnet-5-5" || s.Assistant.Usage.OutputTokens < 1 ||
			s.Assistant.Cost < 1 || len(s.Assistant.Blocks) != 2 || !strings.Contains(string(s.Assistant.Blocks[0]), `"signature"`) {
			t.Errorf("%+v", s)
		}
	})
	t.Run("a failure of the provider", func(t *testing.T) {
		c.provider.Push(refuse("overload me", 529, ""))
		turn, _ := p.ask("overload me", nil)
		if s := p.look(turn); s.State != "failed" || s.Error == nil || s.Error.Code != "provider_overloaded" {
			t.Errorf("%+v", s)
		}
	})
	t.Run("a provider that hangs up", func(t *testing.T) {
		c.provider.Push(emulator.Script{User: "hang up later", Times: -1, Fault: emulator.Fault{Kind: emulator.Reset, AfterPieces: -1}})
		turn, _ := p.ask("hang up later", nil)
		if s := p.look(turn); s.State != "failed" || s.Error == nil || s.Error.Code != "provider_failed" {
			t.Errorf("%+v", s)
		}
	})
	t.Run("an answer that comes after a stop", func(t *testing.T) {
		c.provider.Push(emulator.Script{User: "take your time", Times: -1, Text: strings.Repeat("word ", 40), PieceDelay: 50 * time.Millisecond})
		turn, _ := p.ask("take your time", waits)
		if s := p.look(turn); s.State != "waiting" || s.Deadline == nil {
			t.Fatalf("%+v", s)
		}
		if err := p.client.Do(t.Context(), http.MethodPost, turn+"/stop", nil).Into(nil, http.StatusOK); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); !strings.Contains(p.server.Log(), "a delivered answer changes nothing"); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the workflow never delivered")
			}
		}
		if s := p.look(turn); s.State != "stopped" || s.Assistant.Content != "" {
			t.Errorf("%+v", s)
		}
	})
	t.Run("while the secret is replaced", func(t *testing.T) { // n8n has the old one, and signs with it
		p := c.product(t, laterPath, "N8N_SIGNING_SECRET=the one that n8n will get soon", "N8N_SIGNING_SECRET_PREVIOUS="+signingSecret)
		c.provider.Push(emulator.Script{User: "With which secret", Text: "Either."})
		turn, _ := p.ask("With which secret?", nil)
		if s := p.look(turn); s.State != "completed" || s.Assistant.Content != "Either." {
			t.Errorf("%+v", s)
		}
	})
	t.Run("a caller that does not know the secret", func(t *testing.T) {
		before := len(c.provider.Journal())
		p := c.product(t, laterPath, "N8N_SIGNING_SECRET=something else, of good length")
		turn, told := p.ask("hello", nil)
		if s := p.look(turn); s.State != "failed" || s.Error == nil || s.Error.Code != "provider_auth" || slices.Contains(told, "turn.waiting") {
			t.Errorf("%v %+v", told, s)
		}
		if len(c.provider.Journal()) != before {
			t.Error("the provider was asked all the same")
		}
	})
}
