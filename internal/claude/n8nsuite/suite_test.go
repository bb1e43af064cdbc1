//go:build n8n

package n8nsuite

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/claude"
	"claude-memory-backend/internal/claude/emulator"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/seal"
)

// heard is one answer as a caller of the model meets it.
type heard struct {
	conversation.Answer
	pieces []string
	took   time.Duration
}

func (c *counterpart) ask(t *testing.T, path string, secret seal.Secret, p conversation.Prompt) (heard, error) {
	t.Helper()
	wire := &tap{}
	model, err := claude.NewN8N(claude.N8NConfig{URL: c.base + path, HeaderSecret: secret, Timeout: 90 * time.Second,
		HTTPClient: &http.Client{Transport: wire}})
	if err != nil {
		t.Fatal(err)
	}
	var h heard
	begun := time.Now()
	h.Answer, err = model.Answer(t.Context(), p, func(text string) { h.pieces = append(h.pieces, text) })
	h.took = time.Since(begun)
	t.Logf("on the wire: %s", wire)
	for _, secret := range []string{anthropicKey, backendSecret} {
		if strings.Contains(wire.body.String(), secret) {
			t.Error("the answer holds a secret") // n8n's error items hold whole requests, headers included
		}
	}
	if got := strings.Join(h.pieces, ""); got != h.Text {
		t.Errorf("the sink received %q, the answer says %q", got, h.Text)
	}
	t.Logf("answered in %v, first text after %v, %d pieces, stop reason %q, usage %+v, error code %q",
		h.took.Round(time.Millisecond), h.FirstToken.Round(time.Millisecond), len(h.pieces), h.StopReason, h.Usage, codeOf(err))
	return h, err
}

// tap remembers the beginning and the end of a response, so that the suite's output records n8n's shapes.
type tap struct {
	status, kind string
	body         bytes.Buffer
}

func (w *tap) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err == nil {
		w.status, w.kind = resp.Status, resp.Header.Get("Content-Type")
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.TeeReader(resp.Body, &w.body), resp.Body}
	}
	return resp, err
}

func (w *tap) String() string {
	body := strings.TrimSpace(w.body.String())
	if len(body) > 900 {
		body = body[:400] + " [...] " + body[len(body)-500:]
	}
	return w.status + ", " + w.kind + "\n" + body
}

func codeOf(err error) string {
	if err == nil {
		return ""
	}
	return fault.CodeOf(err)
}

func prompt(texts ...string) conversation.Prompt {
	p := conversation.Prompt{Turn: "turn_suite", Conversation: "conv_suite", Account: "usr_suite", Model: "claude-sonnet-5-5",
		MaxTokens: 512, System: "Answer briefly."}
	for i, text := range texts {
		block, _ := json.Marshal(map[string]string{"type": "text", "text": text})
		p.Messages = append(p.Messages, conversation.PromptMessage{Role: []string{"user", "assistant"}[i%2], Blocks: []json.RawMessage{block}})
	}
	return p
}

// lastRequest is the newest request to the provider.
func (c *counterpart) lastRequest(t *testing.T) (request struct {
	Model     string
	MaxTokens int `json:"max_tokens"`
	System    json.RawMessage
	Stream    bool
	Metadata  struct {
		UserID string `json:"user_id"`
	}
	Thinking json.RawMessage
	Messages []struct {
		Role    string
		Content json.RawMessage
	}
}) {
	t.Helper()
	journal := c.provider.Journal()
	if len(journal) == 0 {
		t.Fatal("the provider was never asked")
	}
	if err := json.Unmarshal(journal[len(journal)-1].Body, &request); err != nil {
		t.Fatal(err)
	}
	return request
}

func refuse(marker string, status int, retryAfter string) emulator.Script {
	return emulator.Script{User: marker, Times: -1, Fault: emulator.Fault{Kind: emulator.Refuse, Status: status, RetryAfter: retryAfter}}
}

func TestRealN8N(t *testing.T) {
	c := start(t)
	t.Run("later", func(t *testing.T) { answersLater(t, c) })
	t.Run("events signed by hand", func(t *testing.T) { reactsToSigned(t, c) })
	t.Run("events of the product", func(t *testing.T) { reactsToEvents(t, c) })
	t.Run("chats", func(t *testing.T) { chats(t, c) })

	t.Run("relay/buffered answer with blocks and usage", func(t *testing.T) {
		c.provider.Push(emulator.Script{User: "favourite", Thinking: "They ask for a colour.", Text: "Teal, since <ever> & “always”."})
		p := prompt("Hello", "Hello to you.", "Which colour is my favourite?")
		p.Settings = json.RawMessage(`{"thinking":{"type":"adaptive"}}`)
		h, err := c.ask(t, relayPath, backendSecret, p)
		if err != nil {
			t.Fatal(err)
		}
		if h.Text != "Teal, since <ever> & “always”." || h.Model != "claude-sonnet-5-5" || h.StopReason != "end_turn" {
			t.Errorf("answer %+v", h.Answer)
		}
		if len(h.Blocks) != 2 || !strings.Contains(string(h.Blocks[0]), `"signature"`) {
			t.Errorf("blocks %s", h.Blocks)
		}
		if h.Usage.InputTokens+h.Usage.CacheReadInputTokens+h.Usage.CacheCreationInputTokens < 1 || h.Usage.OutputTokens < 1 || h.RawUsage == nil {
			t.Errorf("usage %+v", h.Usage)
		}
		if !strings.HasPrefix(h.RequestID, "req_") {
			t.Errorf("request id %q", h.RequestID)
		}
		sent := c.lastRequest(t)
		if sent.MaxTokens != 512 || sent.Metadata.UserID != "usr_suite" || !strings.Contains(string(sent.System), "Answer briefly.") ||
			len(sent.Messages) != 3 || string(sent.Thinking) != `{"type":"adaptive"}` {
			t.Errorf("the provider was sent %+v", sent)
		}

		t.Run("and its thinking is accepted back", func(t *testing.T) {
			p.Messages = append(p.Messages, conversation.PromptMessage{Role: "assistant", Blocks: h.Blocks},
				prompt("And why?").Messages[0])
			if _, err := c.ask(t, relayPath, backendSecret, p); err != nil {
				t.Errorf("%v: %v", err, errors.Unwrap(err))
			}
		})
	})

	t.Run("relay/wrong secret", func(t *testing.T) {
		before := len(c.provider.Journal())
		if _, err := c.ask(t, relayPath, "guess", prompt("hello")); codeOf(err) != conversation.CodeProviderAuth {
			t.Errorf("%v", err)
		}
		if len(c.provider.Journal()) != before {
			t.Error("the provider was asked all the same")
		}
	})

	relayed := []struct {
		name   string
		status int
		code   string
	}{
		{"overloaded", 529, conversation.CodeProviderOverloaded},
		{"limited", 429, conversation.CodeProviderLimited},
		{"invalid", 400, conversation.CodeProviderRejected},
		{"wrong key", 401, conversation.CodeProviderAuth},
		{"unknown model", 404, conversation.CodeProviderRejected},
		{"too large", 413, conversation.CodeProviderTooLong},
		{"broken", 500, conversation.CodeProviderFailed},
	}
	for _, test := range relayed {
		t.Run("relay/provider "+test.name, func(t *testing.T) {
			c.provider.Push(refuse("relay "+test.name, test.status, "17"))
			_, err := c.ask(t, relayPath, backendSecret, prompt("relay "+test.name))
			if codeOf(err) != test.code {
				t.Fatalf("%v", err)
			}
			if f, _ := errors.AsType[*fault.Error](err); f.After != 17*time.Second {
				t.Errorf("come back after %v", f.After)
			}
		})
	}

	t.Run("relay/provider hangs up", func(t *testing.T) {
		c.provider.Push(emulator.Script{User: "hang up", Times: -1, Fault: emulator.Fault{Kind: emulator.Reset, AfterPieces: -1}})
		if _, err := c.ask(t, relayPath, backendSecret, prompt("hang up")); codeOf(err) != conversation.CodeProviderFailed {
			t.Errorf("%v", err)
		}
	})

	t.Run("unknown path", func(t *testing.T) {
		if _, err := c.ask(t, "/webhook/nobody", backendSecret, prompt("hello")); codeOf(err) != conversation.CodeProviderRejected {
			t.Errorf("%v", err)
		}
	})

	t.Run("agent/streamed answer", func(t *testing.T) {
		const text = "One two three four five six seven eight nine ten – “done” 🎉."
		c.provider.Push(emulator.Script{User: "count", Text: text, PieceDelay: 20 * time.Millisecond, Times: -1})
		h, err := c.ask(t, streamingPath, backendSecret, prompt("Hello", "Hello to you.", "Please count."))
		if err != nil {
			t.Fatal(err)
		}
		if h.Text != text || len(h.pieces) < 3 || len(h.Blocks) != 1 {
			t.Errorf("%q in %d pieces", h.Text, len(h.pieces))
		}
		if h.FirstToken >= h.took {
			t.Error("the first text came with the last")
		}
		sent := c.lastRequest(t)
		if !sent.Stream || sent.MaxTokens != 512 || sent.Model != "claude-sonnet-5-5" || !strings.Contains(string(sent.System), "Answer briefly.") {
			t.Errorf("the provider was sent %+v", sent)
		}
		last := string(sent.Messages[len(sent.Messages)-1].Content)
		if !strings.Contains(last, "Hello to you.") || !strings.Contains(last, "Please count.") {
			t.Errorf("the provider was asked %s", last)
		}
	})

	t.Run("agent/wrong secret", func(t *testing.T) {
		if _, err := c.ask(t, streamingPath, "guess", prompt("hello")); codeOf(err) != conversation.CodeProviderAuth {
			t.Errorf("%v", err)
		}
	})

	t.Run("agent/provider overloads in the middle", func(t *testing.T) {
		c.provider.Push(emulator.Script{User: "half way", Times: -1, Text: strings.Repeat("word ", 40),
			Fault: emulator.Fault{Kind: emulator.ErrorEvent, AfterPieces: 6, Type: "overloaded_error", Message: "Overloaded"}})
		h, err := c.ask(t, streamingPath, backendSecret, prompt("half way"))
		// n8n 2.41 says no more than "Original error: APIError" then, so this is not told apart from other failures.
		if codeOf(err) != conversation.CodeProviderFailed || !strings.HasPrefix(h.Text, "word ") {
			t.Errorf("%q, %v", h.Text, err)
		}
	})

	// In this mode n8n passes on the provider's message and nothing else: what has no known words is a failure.
	told := []struct {
		name, message string
		status        int
		code          string
	}{
		{"overloaded", "Overloaded", 529, conversation.CodeProviderOverloaded},
		{"limited", "This request would exceed your organization's rate limit", 429, conversation.CodeProviderLimited},
		{"wrong key", "invalid x-api-key", 401, conversation.CodeProviderAuth},
		{"too long", "prompt is too long: 9 tokens > 8 maximum", 400, conversation.CodeProviderTooLong},
		{"invalid", "max_tokens: must be more", 400, conversation.CodeProviderFailed},
	}
	for _, test := range told {
		t.Run("agent/provider "+test.name, func(t *testing.T) {
			script := refuse("agent "+test.name, test.status, "")
			script.Fault.Message = test.message
			c.provider.Push(script)
			h, err := c.ask(t, streamingPath, backendSecret, prompt("agent "+test.name))
			if codeOf(err) != test.code || h.Text != "" {
				t.Errorf("%q, %v", h.Text, err)
			}
		})
	}

	t.Run("agent/a stop keeps what was said", func(t *testing.T) {
		c.provider.Push(emulator.Script{User: "go on", Times: -1, Text: strings.Repeat("word ", 400), PieceDelay: 30 * time.Millisecond})
		model, err := claude.NewN8N(claude.N8NConfig{URL: c.base + streamingPath, HeaderSecret: backendSecret})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		a, err := model.Answer(ctx, prompt("go on"), func(string) { cancel() })
		if !errors.Is(err, context.Canceled) || a.Text == "" {
			t.Errorf("%q, %v", a.Text, err)
		}
	})
}
