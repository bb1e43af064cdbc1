package claude

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
)

func ask(question string) conversation.Prompt {
	return conversation.Prompt{Turn: "turn_1", Conversation: "conv_1", System: "Be brief.",
		Messages: []conversation.PromptMessage{{Role: "user", Blocks: []json.RawMessage{saidBlock(question)}}}}
}

// hear runs one call and checks what holds for every answer of every model.
func hear(t *testing.T, m conversation.Model, ctx context.Context, p conversation.Prompt) (conversation.Answer, []string, error) {
	t.Helper()
	var pieces []string
	a, err := m.Answer(ctx, p, func(text string) { pieces = append(pieces, text) })
	if got := strings.Join(pieces, ""); got != a.Text {
		t.Errorf("the sink received %q, the answer says %q", got, a.Text)
	}
	if a.Text != "" && a.FirstToken <= 0 {
		t.Error("there is text but no time of the first")
	}
	if a.CostMicroUSD < 0 {
		t.Errorf("cost %d", a.CostMicroUSD)
	}
	var text strings.Builder
	for _, raw := range a.Blocks {
		var block struct{ Type, Text string }
		if err := json.Unmarshal(raw, &block); err != nil || block.Type == "" {
			t.Errorf("block %s: %v", raw, err)
		}
		if block.Type == "text" {
			text.WriteString(block.Text)
		}
	}
	if text.String() != a.Text {
		t.Errorf("the text blocks say %q, the answer %q", text.String(), a.Text)
	}
	return a, pieces, err
}

func TestScripted(t *testing.T) {
	quick := NewScripted(ScriptedConfig{WordDelay: -1, SlowDelay: -1})

	t.Run("repeats the question under a label", func(t *testing.T) {
		for _, question := range []string{"hello", "", "  ", strings.Repeat("long ", 4000), "猫が好きです。" + strings.Repeat("猫", 500),
			"emoji 👩‍👩‍👧 and <b>marks</b> & \"quotes\"", "line\nline\n", "see issue#error-page and http://host/#refuse"} {
			a, _, err := hear(t, quick, t.Context(), ask(question))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(a.Text, "[scripted] ") || !strings.Contains(a.Text, strings.TrimSpace(question)) {
				t.Errorf("answer to %.40q is %.80q", question, a.Text)
			}
			if utf8.RuneCountInString(a.Text) < utf8.RuneCountInString(question) {
				t.Errorf("the answer to %.40q is shorter than it", question)
			}
			if a.Model != ScriptedModel || a.StopReason != "end_turn" || len(a.Blocks) != 1 || a.CostMicroUSD != 0 || a.RequestID == "" {
				t.Errorf("answer %+v", a)
			}
			if a.Usage.InputTokens < 1 || a.Usage.OutputTokens < 1 || !json.Valid(a.RawUsage) {
				t.Errorf("usage %+v, raw %s", a.Usage, a.RawUsage)
			}
		}
	})

	t.Run("is the same for the same prompt", func(t *testing.T) {
		a, _, _ := hear(t, quick, t.Context(), ask("same"))
		b, _, _ := hear(t, quick, t.Context(), ask("same"))
		c, _, _ := hear(t, quick, t.Context(), ask("other"))
		if a.Text != b.Text || a.RequestID != b.RequestID || a.Usage != b.Usage {
			t.Errorf("%+v\n%+v", a, b)
		}
		if a.Text == c.Text || a.RequestID == c.RequestID {
			t.Error("another prompt got the same answer")
		}
	})

	t.Run("answers the newest user message", func(t *testing.T) {
		p := ask("first #refuse")
		p.Messages = append(p.Messages,
			conversation.PromptMessage{Role: "assistant", Blocks: []json.RawMessage{saidBlock("no #error")}},
			conversation.PromptMessage{Role: "user", Blocks: []json.RawMessage{saidBlock("recalled: #error 0"), json.RawMessage(`{"type":"image"}`), saidBlock("second")}})
		a, _, err := hear(t, quick, t.Context(), p)
		if err != nil || !strings.Contains(a.Text, "second") || strings.Contains(a.Text, "first") || a.StopReason != "end_turn" {
			t.Errorf("%q, %v", a.Text, err)
		}
	})

	rules := []struct {
		name, question, text, stop, code string
	}{
		{name: "long", question: "please #long 3", text: "[scripted] word-1 word-2 word-3", stop: "end_turn"},
		{name: "long none", question: "#long 0", text: "[scripted]", stop: "end_turn"},
		{name: "say", question: "now #say  two\nlines #error", text: "[scripted]  two\nlines #error", stop: "end_turn"},
		{name: "refuse", question: "#refuse", text: "[scripted] I will not answer this, as the question asked me not to.", stop: "refusal"},
		{name: "error", question: "#error", text: "[scripted] You said: #error\n\nThis ", code: conversation.CodeProviderFailed},
		{name: "error at once", question: "#error 0", text: "", code: conversation.CodeProviderFailed},
		{name: "error with a code", question: "#error 2 provider_overloaded #long 9", text: "[scripted] word-1 ", code: conversation.CodeProviderOverloaded},
		{name: "error with a code nobody knows", question: "#error 1 provider_moon", text: "[scripted] ", code: conversation.CodeProviderFailed},
	}
	for _, rule := range rules {
		t.Run("rule "+rule.name, func(t *testing.T) {
			a, _, err := hear(t, quick, t.Context(), ask(rule.question))
			if a.Text != rule.text || a.StopReason != rule.stop {
				t.Errorf("said %q, stop reason %q", a.Text, a.StopReason)
			}
			if rule.code == "" && err != nil || rule.code != "" && fault.CodeOf(err) != rule.code {
				t.Errorf("error %v", err)
			}
		})
	}

	t.Run("keeps to the bound", func(t *testing.T) {
		p := ask("#long 100")
		p.MaxTokens = 10
		a, _, err := hear(t, quick, t.Context(), p)
		if err != nil || a.StopReason != "max_tokens" || a.Usage.OutputTokens > 10 {
			t.Errorf("%q, %s, %d tokens, %v", a.Text, a.StopReason, a.Usage.OutputTokens, err)
		}
	})
}

func TestScriptedPace(t *testing.T) {
	t.Run("a word every 20 ms", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			begun := time.Now()
			_, pieces, err := hear(t, NewScripted(ScriptedConfig{}), t.Context(), ask("#long 50"))
			if err != nil || len(pieces) != 51 {
				t.Fatalf("%d pieces, %v", len(pieces), err)
			}
			if took := time.Since(begun); took != 50*20*time.Millisecond {
				t.Errorf("took %v", took)
			}
		})
	})
	t.Run("slow", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			begun := time.Now()
			if _, _, err := hear(t, NewScripted(ScriptedConfig{}), t.Context(), ask("#slow #long 4")); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begun); took != 2*time.Second {
				t.Errorf("took %v", took)
			}
		})
	})
	t.Run("a stop keeps what was said", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 70*time.Millisecond)
			defer cancel()
			a, _, err := hear(t, NewScripted(ScriptedConfig{}), ctx, ask("#long 50"))
			if !errors.Is(err, context.DeadlineExceeded) || a.Text != "[scripted] word-1 word-2 word-3 " || a.StopReason != "" {
				t.Errorf("%q, %s, %v", a.Text, a.StopReason, err)
			}
			if a.Usage.OutputTokens != 8 {
				t.Errorf("%d tokens", a.Usage.OutputTokens)
			}
		})
	})
	t.Run("a caller who is gone hears nothing", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		a, _, err := hear(t, NewScripted(ScriptedConfig{}), ctx, ask("hello"))
		if !errors.Is(err, context.Canceled) || a.Text != "" || a.Blocks != nil {
			t.Errorf("%+v, %v", a, err)
		}
	})
}
