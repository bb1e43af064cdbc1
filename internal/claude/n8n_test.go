package claude

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claude-memory-backend/internal/claude/n8nfake"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
)

const (
	hookSecret   = "s3cret-of-the-webhook"
	greenMessage = `{"id":"msg_01A","type":"message","role":"assistant","model":"claude-sonnet-5-5","content":[` +
		`{"type":"thinking","thinking":"hm <&>","signature":"c2ln"}, {"type":"text","text":"Gre\u0065n."},{"type":"later_kind","x":1.50}],` +
		`"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":12,"cache_creation_input_tokens":3,"cache_read_input_tokens":2048,"output_tokens":5,"service_tier":"standard"}}`
)

// webhook starts a fake and a model that asks it, and proves afterwards that neither left anything running.
func webhook(t *testing.T, reply n8nfake.Reply, change func(*N8NConfig)) (*N8N, *n8nfake.Fake) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	fake := n8nfake.New("X-Backend-Secret", hookSecret, reply)
	server := httptest.NewUnstartedServer(fake)
	server.Config.ErrorLog = nil
	server.Start()
	c := N8NConfig{URL: server.URL + "/webhook/claude-chat", HeaderSecret: hookSecret}
	if change != nil {
		change(&c)
	}
	model, err := NewN8N(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Close()
		goleak.VerifyNone(t, before)
	})
	return model, fake
}

// timeless is a model that asks a fake, in a bubble.
func timeless(t *testing.T, reply n8nfake.Reply, change func(*N8NConfig)) *N8N {
	t.Helper()
	c := N8NConfig{URL: "http://n8n.test/webhook/claude-chat", HeaderSecret: hookSecret,
		HTTPClient: InMemory(t, n8nfake.New("X-Backend-Secret", hookSecret, reply))}
	if change != nil {
		change(&c)
	}
	model, err := NewN8N(c)
	if err != nil {
		t.Fatal(err)
	}
	return model
}

func TestN8NAnswers(t *testing.T) {
	tests := []struct {
		name       string
		reply      n8nfake.Reply
		text       string
		blocks     int
		stopReason string
	}{
		{"relayed message", n8nfake.Relayed(200, greenMessage, "conv_1"), "Green.", 3, "end_turn"},
		{"bare message", n8nfake.Buffered(200, greenMessage), "Green.", 3, "end_turn"},
		{"message in the item list", n8nfake.Buffered(200, "["+greenMessage+"]"), "Green.", 3, "end_turn"},
		{"whole response of an HTTP node", n8nfake.Buffered(200, `{"statusCode":200,"headers":{},"body":`+greenMessage+`}`), "Green.", 3, "end_turn"},
		{"refusal without content", n8nfake.Buffered(200, `{"type":"message","content":[],"stop_reason":"refusal"}`), "", 0, "refusal"},
		{"text", n8nfake.Buffered(200, `{"text":"Green."}`), "Green.", 1, "end_turn"},
		{"output of an agent", n8nfake.Buffered(201, `[{"output":"Green."}]`), "Green.", 1, "end_turn"},
		{"item with json", n8nfake.Buffered(200, `[{"json":{"output":"Green."},"pairedItem":0}]`), "Green.", 1, "end_turn"},
		{"content as text", n8nfake.Buffered(200, `{"content":"Green.","stop_reason":"max_tokens"}`), "Green.", 1, "max_tokens"},
		{"content as blocks", n8nfake.Buffered(200, `{"content":[{"type":"text","text":"Gre"},{"type":"text","text":"en."}]}`), "Green.", 2, "end_turn"},
		{"blocks alone", n8nfake.Buffered(200, `[{"type":"text","text":"Green."}]`), "Green.", 1, "end_turn"},
		{"ok with a text as message", n8nfake.Buffered(200, `{"ok":true,"message":"Green."}`), "Green.", 1, "end_turn"},
		{"JSON string", n8nfake.Buffered(200, ` "Green."`), "Green.", 1, "end_turn"},
		{"plain text", n8nfake.Buffered(200, "Green.\n"), "Green.", 1, "end_turn"},
		{"plain text about pages", n8nfake.Buffered(200, "<b>Green</b>, as in <https://example.org>."), "<b>Green</b>, as in <https://example.org>.", 1, "end_turn"},
		{"plain number", n8nfake.Buffered(200, "42"), "42", 1, "end_turn"},
		{"byte order mark", n8nfake.Buffered(200, "\xef\xbb\xbf{\n  \"text\": \"Green.\"\n}\n"), "Green.", 1, "end_turn"},
		{"null errors are none", n8nfake.Buffered(200, `{"error":null,"text":"Green."}`), "Green.", 1, "end_turn"},
		{"stream", n8nfake.Streamed(n8nfake.Pieces("Agent", "Gre", "en", ".")...), "Green.", 1, "end_turn"},
		{"stream of two nodes in turn", n8nfake.Streamed(append(n8nfake.Pieces("A", "Gre"), n8nfake.Pieces("B", "en.")...)...), "Green.", 1, "end_turn"},
		{"stream of a node within a node", n8nfake.Streamed(n8nfake.Line{Type: "begin", Node: "A"}, n8nfake.Line{Type: "item", Content: "G"},
			n8nfake.Line{Type: "begin", Node: "B"}, n8nfake.Line{Type: "item", Content: "ree"}, n8nfake.Line{Type: "end", Node: "B"},
			n8nfake.Line{Type: "item", Content: "n."}, n8nfake.Line{Type: "end", Node: "A"}), "Green.", 1, "end_turn"},
		{"stream with a line of a later kind", n8nfake.Buffered(200, `{"type":"begin"}`+"\n"+`{"type":"tool-call","name":"x"}`+"\n\n"+`{"type":"item","content":"Green."}`+"\r\n"+`{"type":"end"}`), "Green.", 1, "end_turn"},
		{"stream of a Respond node's JSON", n8nfake.Buffered(200, `{"type":"begin"}{"type":"item","content":{"output":"Green."}}{"type":"end"}`), "Green.", 1, "end_turn"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			model, _ := webhook(t, test.reply, nil)
			a, _, err := hear(t, model, t.Context(), ask("Which colour?"))
			if err != nil {
				t.Fatal(err)
			}
			if a.Text != test.text || len(a.Blocks) != test.blocks || a.StopReason != test.stopReason || a.Model == "" {
				t.Errorf("answer %+v", a)
			}
		})
	}

	t.Run("keeps blocks, usage and model verbatim", func(t *testing.T) {
		model, _ := webhook(t, n8nfake.Relayed(200, greenMessage, "conv_1"), func(c *N8NConfig) {
			c.CostFunc = func(model string, raw json.RawMessage) int64 { return int64(len(model) + len(raw)) }
		})
		a, _, err := hear(t, model, t.Context(), ask("Which colour?"))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(a.Blocks[0]); got != `{"type":"thinking","thinking":"hm <&>","signature":"c2ln"}` {
			t.Errorf("thinking became %s", got)
		}
		if got := string(a.Blocks[2]); got != `{"type":"later_kind","x":1.50}` {
			t.Errorf("a later block became %s", got)
		}
		want := conversation.Usage{InputTokens: 12, OutputTokens: 5, CacheReadInputTokens: 2048, CacheCreationInputTokens: 3}
		if a.Usage != want || !strings.Contains(string(a.RawUsage), `"service_tier":"standard"`) {
			t.Errorf("usage %+v, raw %s", a.Usage, a.RawUsage)
		}
		if a.Model != "claude-sonnet-5-5" || a.RequestID != "msg_01A" || a.CostMicroUSD != int64(len(a.Model)+len(a.RawUsage)) {
			t.Errorf("answer %+v", a)
		}
	})

	t.Run("usage that would credit somebody is dropped", func(t *testing.T) {
		model, _ := webhook(t, n8nfake.Buffered(200, `{"text":"x","usage":{"input_tokens":-5,"output_tokens":1}}`), nil)
		a, _, err := hear(t, model, t.Context(), ask("?"))
		if err != nil || a.RawUsage != nil || a.Usage != (conversation.Usage{}) {
			t.Errorf("usage %+v, %v", a.Usage, err)
		}
	})

	t.Run("pieces arrive before the end", func(t *testing.T) {
		release := make(chan struct{})
		model, _ := webhook(t, func(w http.ResponseWriter, r *http.Request) {
			n8nfake.Stalled(release, n8nfake.Pieces("A", "early ")...)(w, r)
			io.WriteString(w, `{"type":"begin"}{"type":"item","content":"late"}{"type":"end"}`)
		}, nil)
		var pieces []string
		a, err := model.Answer(t.Context(), ask("?"), func(text string) {
			if pieces = append(pieces, text); len(pieces) == 1 {
				close(release) // the rest is sent only once this piece is here
			}
		})
		if err != nil || a.Text != "early late" || len(pieces) != 2 {
			t.Errorf("%q in %d pieces, %v", a.Text, len(pieces), err)
		}
	})
}

func TestN8NFailures(t *testing.T) {
	anthropic := func(kind, message string) string {
		return fmt.Sprintf(`{"type":"error","error":{"type":%q,"message":%q},"request_id":"req_1"}`, kind, message)
	}
	begin := n8nfake.Line{Type: "begin", Node: "A"}
	item := n8nfake.Line{Type: "item", Content: "half "}
	tests := []struct {
		name  string
		reply n8nfake.Reply
		code  string
		text  string
	}{
		{"not published", n8nfake.Unpublished(), conversation.CodeProviderRejected, ""},
		{"a node throws", n8nfake.Thrown(), conversation.CodeProviderFailed, ""},
		{"webhook does not wait", n8nfake.Started(), conversation.CodeProviderMalformed, ""},
		{"empty body", n8nfake.Buffered(200, ""), conversation.CodeProviderMalformed, ""},
		{"blank body", n8nfake.Buffered(200, " \n"), conversation.CodeProviderMalformed, ""},
		{"no content", n8nfake.Buffered(204, ""), conversation.CodeProviderMalformed, ""},
		{"null", n8nfake.Buffered(200, "null"), conversation.CodeProviderMalformed, ""},
		{"empty object", n8nfake.Buffered(200, "{}"), conversation.CodeProviderMalformed, ""},
		{"empty list", n8nfake.Buffered(200, "[]"), conversation.CodeProviderMalformed, ""},
		{"empty text", n8nfake.Buffered(200, `{"output":""}`), conversation.CodeProviderMalformed, ""},
		{"no text at all", n8nfake.Buffered(200, `""`), conversation.CodeProviderMalformed, ""},
		{"two items", n8nfake.Buffered(200, `[{"output":"a"},{"output":"b"}]`), conversation.CodeProviderMalformed, ""},
		{"two values", n8nfake.Buffered(200, `{"output":"a"}{"output":"b"}`), conversation.CodeProviderMalformed, ""},
		{"blocks that are none", n8nfake.Buffered(200, `{"type":"message","content":[{"text":"x"}]}`), conversation.CodeProviderMalformed, ""},
		{"envelopes without end", n8nfake.Buffered(200, strings.Repeat(`{"json":`, 50)+`{"text":"x"}`+strings.Repeat("}", 50)), conversation.CodeProviderMalformed, ""},
		{"web page", n8nfake.Buffered(200, "<!DOCTYPE html><html>login</html>"), conversation.CodeProviderMalformed, ""},
		{"not UTF-8", n8nfake.Buffered(200, "{\"text\":\"\xff\"}"), conversation.CodeProviderMalformed, ""},
		{"plain text that is not UTF-8", n8nfake.Buffered(200, "caf\xe9"), conversation.CodeProviderMalformed, ""},
		{"broken JSON", n8nfake.Buffered(200, `{"text":oops}`), conversation.CodeProviderMalformed, ""},
		{"half a JSON", n8nfake.Buffered(200, `{"text":"ha`), conversation.CodeProviderCut, ""},
		{"another conversation's answer", n8nfake.Relayed(200, greenMessage, "conv_2"), conversation.CodeProviderMalformed, ""},
		{"too much", n8nfake.Buffered(200, `{"text":"`+strings.Repeat("x", 70_000)+`"}`), conversation.CodeProviderMalformed, ""},

		{"relayed 400", n8nfake.Relayed(400, anthropic("invalid_request_error", "max_tokens: Field required"), "conv_1"), conversation.CodeProviderRejected, ""},
		{"relayed too long", n8nfake.Relayed(400, anthropic("invalid_request_error", "prompt is too long: 9 tokens > 8 maximum"), "conv_1"), conversation.CodeProviderTooLong, ""},
		{"relayed 401", n8nfake.Relayed(401, anthropic("authentication_error", "invalid x-api-key"), "conv_1"), conversation.CodeProviderAuth, ""},
		{"relayed 404", n8nfake.Relayed(404, anthropic("not_found_error", "model: nope"), "conv_1"), conversation.CodeProviderRejected, ""},
		{"relayed 413", n8nfake.Relayed(413, anthropic("request_too_large", "big"), "conv_1"), conversation.CodeProviderTooLong, ""},
		{"relayed 429", n8nfake.Relayed(429, anthropic("rate_limit_error", "slow down"), "conv_1"), conversation.CodeProviderLimited, ""},
		{"relayed 500", n8nfake.Relayed(500, anthropic("api_error", "oops"), "conv_1"), conversation.CodeProviderFailed, ""},
		{"relayed 529", n8nfake.Relayed(529, anthropic("overloaded_error", "Overloaded"), "conv_1"), conversation.CodeProviderOverloaded, ""},
		{"529 with nothing", n8nfake.Buffered(529, ""), conversation.CodeProviderOverloaded, ""},
		{"bare 401", n8nfake.Buffered(401, "no"), conversation.CodeProviderAuth, ""},
		{"413 by n8n", n8nfake.Buffered(413, "request entity too large"), conversation.CodeProviderTooLong, ""},
		{"gateway", n8nfake.Buffered(503, "<html>"), conversation.CodeProviderFailed, ""},

		{"ok false under 200", n8nfake.Buffered(200, `{"ok":false}`), conversation.CodeProviderFailed, ""},
		{"error text under 200", n8nfake.Buffered(200, `{"error":"Service overloaded"}`), conversation.CodeProviderOverloaded, ""},
		{"error in the item list under 200", n8nfake.Buffered(200, `[{"error":{"message":"boom"}}]`), conversation.CodeProviderFailed, ""},
		{"n8n's error object under 200", n8nfake.Buffered(200, `{"error":{"name":"NodeApiError","message":"The service is receiving too many requests from you","httpCode":"429"}}`), conversation.CodeProviderLimited, ""},
		{"provider's error under 200", n8nfake.Buffered(200, anthropic("overloaded_error", "Overloaded")), conversation.CodeProviderOverloaded, ""},
		{"relayed status under 200", n8nfake.Buffered(200, `{"ok":false,"status":529,"message":{}}`), conversation.CodeProviderOverloaded, ""},
		{"error branch", n8nfake.Buffered(502, `{"ok":false,"error":"connect ECONNREFUSED"}`), conversation.CodeProviderFailed, ""},

		{"stream that overloads", n8nfake.Streamed(begin, item, n8nfake.Line{Type: "error", Content: "Overloaded"}), conversation.CodeProviderOverloaded, "half "},
		{"stream that fails", n8nfake.Streamed(begin, item, n8nfake.Line{Type: "error", Content: "boom"}), conversation.CodeProviderFailed, "half "},
		{"stream that fails in n8n 2.41's words", n8nfake.Streamed(begin, item, n8nfake.Line{Type: "error", Content: "Original error: APIError"}), conversation.CodeProviderFailed, "half "},
		{"stream whose prompt is too long", n8nfake.Streamed(begin, n8nfake.Line{Type: "error", Content: "prompt is too long: 9 tokens > 8 maximum"}), conversation.CodeProviderTooLong, ""},
		{"stream that fails at once", n8nfake.Streamed(n8nfake.Line{Type: "error", Content: "boom"}), conversation.CodeProviderFailed, ""},
		{"stream that fails with a provider's body", n8nfake.Streamed(begin, item, n8nfake.Line{Type: "error", Content: anthropic("rate_limit_error", "x")}), conversation.CodeProviderLimited, "half "},
		{"stream without its end", n8nfake.Streamed(begin, item), conversation.CodeProviderCut, "half "},
		{"stream without an outer end", n8nfake.Streamed(append([]n8nfake.Line{begin}, n8nfake.Pieces("B", "half ")...)...), conversation.CodeProviderCut, "half "},
		{"stream with a broken connection", n8nfake.Broken(begin, item), conversation.CodeProviderCut, "half "},
		{"stream with a broken connection between nodes", n8nfake.Broken(n8nfake.Pieces("A", "half ")...), conversation.CodeProviderCut, "half "},
		{"stream with half a line", n8nfake.Buffered(200, `{"type":"begin"}`+"\n"+`{"type":"item","content":"half "}`+"\n"+`{"type":"it`), conversation.CodeProviderCut, "half "},
		{"stream with a line that is no JSON", n8nfake.Buffered(200, `{"type":"begin"}`+"\n"+`{"type":"item","content":"half "}`+"\noops"), conversation.CodeProviderMalformed, "half "},
		{"stream with a line that is no object", n8nfake.Buffered(200, `{"type":"begin"}`+"\n"+`{"type":"item","content":"half "}`+"\n[1]"), conversation.CodeProviderMalformed, "half "},
		{"stream with nothing in it", n8nfake.Streamed(n8nfake.Pieces("A")...), conversation.CodeProviderMalformed, ""},
		{"stream that never ends", n8nfake.Streamed(append([]n8nfake.Line{begin, item}, make([]n8nfake.Line, 2000)...)...), conversation.CodeProviderMalformed, "half "},
		{"a page after a comment", n8nfake.Buffered(200, "<!-- proxy --> <!DOCTYPE HTML><title>Sign in</title>"), conversation.CodeProviderMalformed, ""},
		{"a page without a beginning", n8nfake.Buffered(200, "<head><title>Sign in</title></head>"), conversation.CodeProviderMalformed, ""},
		{"a page as XML", n8nfake.Buffered(200, `<?xml version="1.0"?><html xmlns="x">`), conversation.CodeProviderMalformed, ""},
		{"no answer at all", n8nfake.Hung(), conversation.CodeProviderCut, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			model, fake := webhook(t, test.reply, func(c *N8NConfig) { c.MaxAnswerBytes = 64 << 10 })
			a, _, err := hear(t, model, t.Context(), ask("Which colour?"))
			if fault.CodeOf(err) != test.code || a.Text != test.text {
				t.Errorf("said %q, error %v", a.Text, err)
			}
			if calls := len(fake.Calls()); calls != 1 {
				t.Errorf("%d calls; a workflow may have effects", calls)
			}
		})
	}

	t.Run("wrong secret", func(t *testing.T) {
		model, _ := webhook(t, n8nfake.Buffered(200, `"hello"`), func(c *N8NConfig) { c.HeaderSecret = "guess-of-the-day" })
		_, _, err := hear(t, model, t.Context(), ask("?"))
		if fault.CodeOf(err) != conversation.CodeProviderAuth || strings.Contains(err.Error(), "guess-of-the-day") {
			t.Errorf("%v", err)
		}
	})

	t.Run("says when to come back", func(t *testing.T) {
		for name, reply := range map[string]n8nfake.Reply{
			"in the body": n8nfake.Buffered(429, `{"ok":false,"status":429,"retry_after":"17"}`),
			"as a header": func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Retry-After", "17")
				n8nfake.Buffered(429, `{}`)(w, r)
			},
		} {
			model, _ := webhook(t, reply, nil)
			_, _, err := hear(t, model, t.Context(), ask("?"))
			f, ok := errors.AsType[*fault.Error](err)
			if !ok || f.Class != fault.Throttled || f.After != 17*time.Second {
				t.Errorf("%s: %v", name, err)
			}
		}
	})

	t.Run("redirects are not followed", func(t *testing.T) {
		var led atomic.Int32
		elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { led.Add(1) }))
		defer elsewhere.Close()
		model, _ := webhook(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, func(c *N8NConfig) { c.HTTPClient = &http.Client{Transport: &http.Transport{}} })
		_, _, err := hear(t, model, t.Context(), ask("?"))
		if fault.CodeOf(err) != conversation.CodeProviderRejected || led.Load() != 0 {
			t.Errorf("%v, %d calls elsewhere", err, led.Load())
		}
	})

	t.Run("nobody listens", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listener.Close()
		model, err := NewN8N(N8NConfig{URL: "http://" + listener.Addr().String() + "/webhook/private-path", HeaderSecret: hookSecret})
		if err != nil {
			t.Fatal(err)
		}
		model.dials = []time.Duration{time.Millisecond, time.Millisecond}
		_, _, err = hear(t, model, t.Context(), ask("?"))
		if fault.CodeOf(err) != conversation.CodeProviderUnreachable {
			t.Errorf("%v", err)
		}
		if strings.Contains(err.Error(), "private-path") || strings.Contains(err.Error(), hookSecret) {
			t.Errorf("the error tells too much: %v", err)
		}
	})

	t.Run("a certificate nobody vouches for", func(t *testing.T) {
		server := httptest.NewUnstartedServer(http.NotFoundHandler())
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.StartTLS()
		defer server.Close()
		model, err := NewN8N(N8NConfig{URL: server.URL})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err = hear(t, model, t.Context(), ask("?")); fault.CodeOf(err) != conversation.CodeProviderUnreachable {
			t.Errorf("%v", err)
		}
	})

	t.Run("a server that comes up late is asked once", func(t *testing.T) {
		fake := n8nfake.New("X-Backend-Secret", hookSecret, n8nfake.Buffered(200, `"here"`))
		server := httptest.NewServer(fake)
		defer server.Close()
		var dials atomic.Int32
		client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if dials.Add(1) == 1 {
				return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("refused")}
			}
			var d net.Dialer
			return d.DialContext(ctx, network, address)
		}}}
		model, err := NewN8N(N8NConfig{URL: server.URL, HeaderSecret: hookSecret, HTTPClient: client})
		if err != nil {
			t.Fatal(err)
		}
		a, _, err := hear(t, model, t.Context(), ask("?"))
		if err != nil || a.Text != "here" || dials.Load() != 2 || len(fake.Calls()) != 1 {
			t.Errorf("%q, %d dials, %d calls, %v", a.Text, dials.Load(), len(fake.Calls()), err)
		}
	})
}

func TestN8NDeadlines(t *testing.T) {
	lines := []n8nfake.Line{{Type: "begin"}, {Type: "item", Content: "half "}}
	Timeless(t, "nothing comes", func(t *testing.T) {
		model := timeless(t, n8nfake.Stalled(nil), func(c *N8NConfig) { c.Timeout = 50 * time.Millisecond })
		_, _, err := hear(t, model, t.Context(), ask("?"))
		if fault.CodeOf(err) != conversation.CodeProviderTimeout {
			t.Errorf("%v", err)
		}
	})
	Timeless(t, "it stalls", func(t *testing.T) {
		model := timeless(t, n8nfake.Stalled(nil, lines...), func(c *N8NConfig) { c.IdleTimeout = 50 * time.Millisecond })
		a, _, err := hear(t, model, t.Context(), ask("?"))
		if fault.CodeOf(err) != conversation.CodeProviderTimeout || a.Text != "half " {
			t.Errorf("%q, %v", a.Text, err)
		}
	})
	t.Run("the caller stops it", func(t *testing.T) {
		model, _ := webhook(t, n8nfake.Stalled(nil, lines...), nil)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		a, err := model.Answer(ctx, ask("?"), func(string) { cancel() })
		if !errors.Is(err, context.Canceled) || a.Text != "half " || len(a.Blocks) != 1 {
			t.Errorf("%q, %v", a.Text, err)
		}
		if _, isFault := errors.AsType[*fault.Error](err); isFault {
			t.Errorf("a stop is no failure: %v", err)
		}
	})
	Timeless(t, "the caller's deadline is the caller's", func(t *testing.T) {
		model := timeless(t, n8nfake.Stalled(nil), nil)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		if _, _, err := hear(t, model, ctx, ask("?")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}

func TestN8NCall(t *testing.T) {
	model, fake := webhook(t, n8nfake.Buffered(200, `"hello"`), nil)
	model.now = func() time.Time { return time.Unix(1760000000, 0) }
	p := conversation.Prompt{Turn: "turn_7", Conversation: "conv_7", Account: "usr_7", Model: "claude-opus-5-5", MaxTokens: 99,
		System: "Be <brief> & kind.\n", Settings: json.RawMessage(`{"thinking":{"type":"adaptive"}}`),
		Messages: []conversation.PromptMessage{
			{Role: "user", Blocks: []json.RawMessage{json.RawMessage(`{"type":"text","text":"a < b & \u00e9"}`)}, CacheMark: true},
			{Role: "assistant", Blocks: []json.RawMessage{json.RawMessage(`{"type":"thinking","thinking":"<>","signature":"s"}`), saidBlock("yes")}},
			{Role: "user"},
		}}
	if _, _, err := hear(t, model, t.Context(), p); err != nil {
		t.Fatal(err)
	}
	call := fake.Calls()[0]
	want := `{"turn_id":"turn_7","conversation_id":"conv_7","model":"claude-opus-5-5","max_tokens":99,"system":"Be <brief> & kind.\n",` +
		`"messages":[{"role":"user","content":[{"type":"text","text":"a < b & \u00e9"}]},` +
		`{"role":"assistant","content":[{"type":"thinking","thinking":"<>","signature":"s"},{"type":"text","text":"yes"}]},` +
		`{"role":"user","content":[]}],"settings":{"thinking":{"type":"adaptive"}},"metadata":{"user_id":"usr_7"},"stream":true}`
	if string(call.Body) != want {
		t.Errorf("sent\n%s\nwant\n%s", call.Body, want)
	}
	headers := map[string]string{"Content-Type": "application/json", "Idempotency-Key": "turn_7", "X-Backend-Secret": hookSecret,
		"Webhook-Id": "turn_7", "Webhook-Timestamp": "1760000000", "User-Agent": "claude-memory-backend"}
	for name, value := range headers {
		if got := call.Header.Get(name); got != value {
			t.Errorf("%s is %q, want %q", name, got, value)
		}
	}
	if !strings.HasPrefix(call.Header.Get("Webhook-Signature"), "v1,") {
		t.Errorf("signature %q", call.Header.Get("Webhook-Signature"))
	}

	t.Run("what is not chosen is left to the workflow", func(t *testing.T) {
		if _, _, err := hear(t, model, t.Context(), conversation.Prompt{Turn: "turn_8", Conversation: "conv_7"}); err != nil {
			t.Fatal(err)
		}
		if got := string(fake.Calls()[1].Body); got != `{"turn_id":"turn_8","conversation_id":"conv_7","messages":[],"stream":true}` {
			t.Errorf("sent %s", got)
		}
	})
	t.Run("settings that choose nothing are left out", func(t *testing.T) {
		for _, none := range []string{"{}", " { } ", "null"} {
			if _, _, err := hear(t, model, t.Context(), conversation.Prompt{Turn: "turn_9", Conversation: "conv_7", Settings: json.RawMessage(none)}); err != nil {
				t.Fatal(err)
			}
			calls := fake.Calls()
			if got := string(calls[len(calls)-1].Body); got != `{"turn_id":"turn_9","conversation_id":"conv_7","messages":[],"stream":true}` {
				t.Errorf("with %s it sent %s", none, got)
			}
		}
	})
	t.Run("an address that is none", func(t *testing.T) {
		for _, address := range []string{"", "n8n", "ftp://host/x", "http://", "http://user:pass word@h/%zz"} {
			if _, err := NewN8N(N8NConfig{URL: address}); !fault.Is(err, fault.Invalid) || strings.Contains(err.Error(), "pass word") {
				t.Errorf("%q: %v", address, err)
			}
		}
	})
	t.Run("printing the model shows no secret", func(t *testing.T) {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
			if strings.Contains(fmt.Sprintf(verb, model), hookSecret) {
				t.Errorf("%s does", verb)
			}
		}
	})
}

// FuzzN8NAnswer feeds any body and status to the reader: it must not panic, must keep its text, blocks and sink in
// agreement, and must fail only with provider codes.
func FuzzN8NAnswer(f *testing.F) {
	for _, seed := range []string{greenMessage, `{"type":"begin"}` + "\n" + `{"type":"item","content":"x"}` + "\n" + `{"type":"end"}`,
		`{"type":"error","content":"Overloaded"}`, `{"ok":false,"status":529,"message":{"type":"error","error":{"type":"overloaded_error"}}}`,
		`[{"json":{"output":"x"}}]`, `"x"`, "plain", "", "\xef\xbb\xbf{}", `{"type":"item","content":[{"type":"text","text":"x"}]}{"type":"end"}`} {
		f.Add(200, []byte(seed))
		f.Add(500, []byte(seed))
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		idle := time.NewTimer(time.Hour)
		defer idle.Stop()
		var heard strings.Builder
		r := &n8nReader{body: &watchedBody{r: strings.NewReader(string(body)), left: 1 << 16, idle: idle, idleTimeout: time.Hour},
			wanted: "conv_1", sink: func(text string) { heard.WriteString(text) }, sinceFunc: func() time.Duration { return 1 }}
		a, err := r.read(status, http.Header{})
		if heard.String() != a.Text {
			t.Fatalf("heard %q, answered %q", heard.String(), a.Text)
		}
		var text strings.Builder
		for _, raw := range a.Blocks {
			var block struct{ Type, Text string }
			if err := json.Unmarshal(raw, &block); err != nil || block.Type == "" {
				t.Fatalf("block %s: %v", raw, err)
			}
			if block.Type == "text" {
				text.WriteString(block.Text)
			}
		}
		if a.Later && (a.Text != "" || err != nil) {
			t.Fatalf("a promise that says %q, %v", a.Text, err)
		}
		if text.String() != a.Text {
			t.Fatalf("blocks say %q, answer %q", text.String(), a.Text)
		}
		if err == nil && a.StopReason == "" && !a.Later {
			t.Fatal("an answer without a stop reason")
		}
		if err != nil {
			n := &N8N{}
			if code := fault.CodeOf(n.readFault(t.Context(), t.Context(), err)); !knownProviderCode(code) {
				t.Fatalf("code %q of %v", code, err)
			}
		}
	})
}

// The shipped workflow files cannot run here; what an edit could silently break in them can be checked.
func TestShippedWorkflows(t *testing.T) {
	var credentials []struct{ ID, Type string }
	readShipped(t, "credentials.example.json", &credentials)
	known := map[string]string{}
	for _, c := range credentials {
		known[c.ID] = c.Type
	}
	for _, file := range []string{"claude-chat.json", "claude-chat-streaming.json"} {
		t.Run(file, func(t *testing.T) {
			var workflows []struct {
				ID, Name string
				Settings map[string]any
				Nodes    []struct {
					Name, Type  string
					Parameters  map[string]any
					Credentials map[string]struct{ ID string }
				}
				Connections map[string]map[string][][]struct{ Node string }
			}
			raw := readShipped(t, file, &workflows)
			if len(workflows) != 1 {
				t.Fatalf("%d workflows", len(workflows))
			}
			w := workflows[0]
			if w.Settings["saveDataSuccessExecution"] != "none" || w.Settings["saveDataErrorExecution"] != "none" {
				t.Error("executions, which hold conversations, would be kept")
			}
			names := map[string]bool{}
			for _, node := range w.Nodes {
				names[node.Name] = true
				for kind, used := range node.Credentials {
					if known[used.ID] != kind {
						t.Errorf("%s uses credential %s of type %s, which is not among the examples", node.Name, used.ID, kind)
					}
				}
				if node.Type == "n8n-nodes-base.webhook" && node.Parameters["authentication"] != "headerAuth" {
					t.Error("the webhook asks for no secret")
				}
			}
			for from, outputs := range w.Connections {
				for _, ways := range outputs {
					for _, way := range ways {
						for _, to := range way {
							if !names[from] || !names[to.Node] {
								t.Errorf("%s leads to %s", from, to.Node)
							}
						}
					}
				}
			}
			if strings.Contains(raw, "error: $json.error,") || strings.Contains(raw, "error: $json.error }") {
				t.Error("an error item would be passed on whole, with the provider's key in it")
			}
		})
	}
}

func readShipped(t *testing.T, name string, into any) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "deploy", "n8n", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
