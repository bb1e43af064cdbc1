package claude_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/claude"
	"claude-memory-backend/internal/claude/emulator"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
)

const model = "claude-sonnet-5-5"

// serve starts an emulator on the loopback address.
func serve(t testing.TB, o emulator.Options) (*emulator.Server, string) {
	t.Helper()
	s := emulator.New(o)
	web := httptest.NewServer(s.Handler())
	t.Cleanup(web.Close)
	return s, web.URL
}

func direct(t testing.TB, url string, change func(*claude.DirectConfig)) *claude.Direct {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	cfg := claude.DirectConfig{APIKey: "sk-ant-test", BaseURL: url, DefaultModel: model, HTTPClient: client}
	if change != nil {
		change(&cfg)
	}
	return claude.NewDirect(cfg)
}

func textBlock(text string) json.RawMessage {
	raw, _ := json.Marshal(map[string]string{"type": "text", "text": text})
	return raw
}

func question(text string) conversation.Prompt {
	return conversation.Prompt{Turn: "turn_1", Conversation: "conv_1", Account: "acc_1",
		Messages: []conversation.PromptMessage{{Role: "user", Blocks: []json.RawMessage{textBlock(text)}}}}
}

// heard collects what reaches the sink.
type heard struct {
	pieces []string
	after  func() // called with each piece
}

func (h *heard) sink(text string) {
	h.pieces = append(h.pieces, text)
	if h.after != nil {
		h.after()
	}
}

func (h *heard) text() string { return strings.Join(h.pieces, "") }

func wantCode(t testing.TB, err error, code string) {
	t.Helper()
	_ = wantFault(t, err, code)
}

// wantFault is wantCode for tests that look at the fault itself.
func wantFault(t testing.TB, err error, code string) *fault.Error {
	t.Helper()
	e, ok := errors.AsType[*fault.Error](err)
	if !ok || e.StableCode() != code {
		t.Fatalf("want %s, have %v", code, err)
	}
	return e
}

func TestAnswerIsStreamedAndCounted(t *testing.T) {
	s, url := serve(t, emulator.Options{})
	d := direct(t, url, nil)
	var h heard
	p := question("Was ist grün? 緑とは何ですか 🌱")
	p.System = "Answer <shortly> & \"well\".\u2028"
	a, err := d.Answer(context.Background(), p, h.sink)
	if err != nil {
		t.Fatal(err)
	}
	if a.Text != emulator.Echo("Was ist grün? 緑とは何ですか 🌱") || a.Text != h.text() || len(h.pieces) < 5 {
		t.Fatalf("%q in %d pieces", a.Text, len(h.pieces))
	}
	sent := s.Journal()[0]
	if a.StopReason != "end_turn" || a.Model != model || a.RequestID != sent.RequestID || a.FirstToken <= 0 {
		t.Fatalf("%+v", a)
	}
	if a.Usage.InputTokens != int64(sent.Usage.InputTokens) || a.Usage.OutputTokens != int64(sent.Usage.OutputTokens) {
		t.Fatalf("%+v, billed %+v", a.Usage, sent.Usage)
	}
	if want := a.Usage.InputTokens*2 + a.Usage.OutputTokens*10; a.CostMicroUSD != want {
		t.Fatalf("cost %d, want %d", a.CostMicroUSD, want)
	}
	if len(a.Blocks) != 1 || !json.Valid(a.RawUsage) {
		t.Fatalf("%s, %s", a.Blocks, a.RawUsage)
	}
	var body struct {
		System   []struct{ Text string }
		Metadata struct {
			UserID string `json:"user_id"`
		}
		MaxTokens int `json:"max_tokens"`
		Stream    bool
	}
	if err := json.Unmarshal(sent.Body, &body); err != nil {
		t.Fatal(err)
	}
	if body.System[0].Text != p.System || body.Metadata.UserID != "acc_1" || body.MaxTokens != 16384 || !body.Stream {
		t.Fatalf("%+v", body)
	}
	if sent.Header.Get("x-api-key") != "sk-ant-test" || sent.Header.Get("idempotency-key") != "turn_1" {
		t.Fatalf("%v", sent.Header)
	}
}

func TestEnvironmentIsNotRead(t *testing.T) {
	t.Setenv("ANTHROPIC_API_KEY", "sk-ant-environment")
	t.Setenv("ANTHROPIC_AUTH_TOKEN", "token-environment")
	t.Setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:1")
	t.Setenv("ANTHROPIC_CUSTOM_HEADERS", "x-evil: 1")
	s, url := serve(t, emulator.Options{})
	if _, err := direct(t, url, nil).Answer(context.Background(), question("hi"), nil); err != nil {
		t.Fatal(err)
	}
	h := s.Journal()[0].Header
	if h.Get("x-api-key") != "sk-ant-test" || h.Get("authorization") != "" || h.Get("x-evil") != "" {
		t.Fatalf("%v", h)
	}
}

// Turn two sends what turn one said and was told, byte for byte, and nothing before it has moved.
func TestReplayIsVerbatim(t *testing.T) {
	s, url := serve(t, emulator.Options{})
	d := direct(t, url, nil)
	strange := json.RawMessage(`{"type":"oracle_note","zeta":1,"alpha":{"b":[1,2],"a":null}}`)
	tool := json.RawMessage(`{"type":"tool_use","id":"toolu_01x","name":"memory","input":{"path":"/memories","command":"view"}}`)
	s.Push(emulator.Script{StopReason: "tool_use", Blocks: []json.RawMessage{
		[]byte(`{"type":"thinking","thinking":"Let me look <there>.","signature":""}`),
		[]byte(`{"type":"redacted_thinking","data":""}`),
		[]byte(`{"type":"text","text":"I look.","citations":[{"type":"char_location","cited_text":"x"}]}`),
		strange, tool,
	}})
	p := question("remember?")
	p.Model, p.System = "claude-opus-5-5", "You remember."
	p.Settings = json.RawMessage(`{"thinking":{"type":"adaptive"},"effort":"low","unknown":1}`)
	p.Messages[0].CacheMark = true
	one, err := d.Answer(context.Background(), p, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(one.Blocks) != 5 || string(one.Blocks[3]) != string(strange) || string(one.Blocks[4]) != string(tool) {
		t.Fatalf("%s", one.Blocks)
	}
	if one.Text != "I look." || one.StopReason != "tool_use" {
		t.Fatalf("%+v", one)
	}
	p.Messages = append(p.Messages,
		conversation.PromptMessage{Role: "assistant", Blocks: one.Blocks},
		conversation.PromptMessage{Role: "user", CacheMark: true, Blocks: []json.RawMessage{
			[]byte(`{"type":"tool_result", "tool_use_id":"toolu_01x", "content":"nothing" }`)}})
	two, err := d.Answer(context.Background(), p, nil)
	if err != nil {
		t.Fatal(err) // the emulator checks the signatures against the prefix
	}
	j := s.Journal()
	first, second := string(j[0].Body), string(j[1].Body)
	if !strings.HasPrefix(second, strings.TrimSuffix(first, `]}`)) {
		t.Fatalf("the beginning changed:\n%s\n%s", first, second)
	}
	for _, block := range one.Blocks {
		if !strings.Contains(second, string(block)) {
			t.Fatalf("%s is not in %s", block, second)
		}
	}
	if strings.Contains(second, `"unknown"`) || !strings.Contains(second, `"output_config":{"effort":"low"}`) {
		t.Fatal(second)
	}
	if two.Text == "" {
		t.Fatal("no text")
	}
}

func TestCacheIsWarmInTheSecondTurn(t *testing.T) {
	_, url := serve(t, emulator.Options{})
	d := direct(t, url, nil)
	p := question("first")
	p.System = strings.Repeat("a long instruction ", 400)
	p.Messages[0].CacheMark = true
	one, err := d.Answer(context.Background(), p, nil)
	if err != nil || one.Usage.CacheCreationInputTokens == 0 {
		t.Fatalf("%+v %v", one.Usage, err)
	}
	p.Messages = append(p.Messages, conversation.PromptMessage{Role: "assistant", Blocks: one.Blocks},
		conversation.PromptMessage{Role: "user", Blocks: []json.RawMessage{textBlock("second")}, CacheMark: true})
	two, err := d.Answer(context.Background(), p, nil)
	if err != nil || two.Usage.CacheReadInputTokens < one.Usage.CacheCreationInputTokens {
		t.Fatalf("%+v %v", two.Usage, err)
	}
	if two.CostMicroUSD >= one.CostMicroUSD {
		t.Fatalf("the warm turn costs %d, the cold one %d", two.CostMicroUSD, one.CostMicroUSD)
	}
}

func TestBreakpoints(t *testing.T) {
	thinking := json.RawMessage(`{"type":"thinking","thinking":"x","signature":"s"}`)
	marked := json.RawMessage(`{"type":"text","text":"own","cache_control":{"type":"ephemeral"}}`)
	mark := func(blocks ...json.RawMessage) conversation.PromptMessage {
		return conversation.PromptMessage{Role: "user", Blocks: blocks, CacheMark: true}
	}
	hi := textBlock("hi")
	for _, tc := range []struct {
		claim    string
		system   string
		messages []conversation.PromptMessage
		want     int
		contains string
	}{
		{"none without a wish", "", []conversation.PromptMessage{{Role: "user", Blocks: []json.RawMessage{hi}}}, 0, ""},
		{"system and message", "s", []conversation.PromptMessage{mark(hi)}, 2, `"text":"hi","type":"text","cache_control":{"type":"ephemeral"}}`},
		{"never on thinking", "", []conversation.PromptMessage{mark(hi, thinking)}, 1, `"type":"text","cache_control"`},
		{"never on thinking alone", "", []conversation.PromptMessage{mark(thinking)}, 0, ""},
		{"never on empty text", "", []conversation.PromptMessage{mark(hi, textBlock(""))}, 1, `"text":"hi","type":"text","cache_control"`},
		{"never on an unknown kind", "", []conversation.PromptMessage{mark(hi, json.RawMessage(`{"type":"novelty"}`))}, 1, ""},
		{"four in all, the newest win", "s", []conversation.PromptMessage{mark(textBlock("old")), mark(hi), mark(hi), mark(hi)}, 4, `{"text":"old","type":"text"}`},
		{"a block's own mark counts", "s", []conversation.PromptMessage{mark(marked), mark(hi), mark(hi), mark(hi)}, 4, string(marked)},
	} {
		t.Run(tc.claim, func(t *testing.T) {
			body := claude.BuildBody(t, conversation.Prompt{System: tc.system, Messages: tc.messages}, model)
			if n := strings.Count(body, `"cache_control"`); n != tc.want {
				t.Fatalf("%d breakpoints in %s", n, body)
			}
			if !strings.Contains(body, tc.contains) {
				t.Fatal(body)
			}
		})
	}
}

func TestBrokenBlockIsNotSent(t *testing.T) {
	s, url := serve(t, emulator.Options{})
	for _, bad := range []string{`{`, `"text"`, ``, `{}]},{"role":"user"`} {
		p := question("hi")
		p.Messages[0].Blocks = []json.RawMessage{json.RawMessage(bad)}
		_, err := direct(t, url, nil).Answer(context.Background(), p, nil)
		wantCode(t, err, conversation.CodeProviderRejected)
	}
	if len(s.Journal()) != 0 {
		t.Fatal("something was sent")
	}
}

func TestStopReasonsPassThrough(t *testing.T) {
	s, url := serve(t, emulator.Options{})
	for _, reason := range []string{"refusal", "pause_turn", "max_tokens", "model_context_window_exceeded", "something_new"} {
		s.Push(emulator.Script{StopReason: reason, StopDetails: []byte(`{"type":"` + reason + `"}`), Times: 1})
		a, err := direct(t, url, nil).Answer(context.Background(), question("hi"), nil)
		if err != nil || a.StopReason != reason {
			t.Fatalf("%s: %+v %v", reason, a, err)
		}
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	other := 0
	target := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { other++ }))
	defer target.Close()
	s, url := serve(t, emulator.Options{})
	s.Push(emulator.Script{Fault: emulator.Fault{Kind: emulator.Redirect, Message: target.URL + "/v1/messages"}})
	_, err := direct(t, url, nil).Answer(context.Background(), question("hi"), nil)
	wantCode(t, err, conversation.CodeProviderMalformed)
	if other != 0 {
		t.Fatal("the key went to another host")
	}
}

func TestNoSecretsInErrors(t *testing.T) {
	s, url := serve(t, emulator.Options{})
	for _, f := range []emulator.Fault{
		{Kind: emulator.Refuse, Status: 400, Message: "your text was: tell nobody"},
		{Kind: emulator.Refuse, Status: 500, Message: "tell nobody", ShouldRetry: "false"},
		{Kind: emulator.ErrorEvent, Type: "tell nobody", Message: "tell nobody", AfterPieces: 1},
		{Kind: emulator.NotJSON, AfterPieces: 1},
	} {
		s.Push(emulator.Script{Fault: f})
		_, err := direct(t, url, nil).Answer(context.Background(), question("tell nobody"), nil)
		if err == nil || strings.Contains(err.Error(), "nobody") || strings.Contains(err.Error(), "sk-ant") || strings.Contains(err.Error(), "127.0.0.1") {
			t.Fatalf("%v", err)
		}
	}
}

func TestCancel(t *testing.T) {
	t.Run("in the middle keeps what came", func(t *testing.T) {
		s, url := serve(t, emulator.Options{})
		s.Push(emulator.Script{Text: strings.Repeat("many words ", 20), Fault: emulator.Fault{Kind: emulator.Stall, AfterPieces: 5}})
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		h := heard{}
		h.after = func() {
			if len(h.pieces) == 5 {
				cancel()
			}
		}
		a, err := direct(t, url, nil).Answer(ctx, question("hi"), h.sink)
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if a.Text == "" || a.Text != h.text() || len(a.Blocks) != 1 || a.StopReason != "" {
			t.Fatalf("%+v", a)
		}
		if a.Usage.OutputTokens < 5 || a.CostMicroUSD == 0 {
			t.Fatalf("the started answer costs nothing: %+v", a)
		}
	})
	t.Run("while waiting for a retry", func(t *testing.T) {
		s, url := serve(t, emulator.Options{})
		s.Push(emulator.Script{Times: -1, Fault: emulator.Fault{Kind: emulator.Refuse, Status: 429, RetryAfter: "15"}})
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		d := direct(t, url, nil)
		d.OnWait(cancel)
		if _, err := d.Answer(ctx, question("hi"), nil); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	})
	t.Run("before the call", func(t *testing.T) {
		_, url := serve(t, emulator.Options{})
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := direct(t, url, nil).Answer(ctx, question("hi"), nil); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	})
}

// The recorded streams of the SDK's own tests are the only true recordings at hand; they come with the module.
func TestRecordedStreams(t *testing.T) {
	for _, name := range []string{"refusal.sse", "fallback-end.sse", "fallback-tooluse.sse"} {
		t.Run(name, func(t *testing.T) {
			raw, err := os.ReadFile(sdkDir(t) + "/lib/betafallback/testdata/fallbackstream/" + name)
			if err != nil {
				t.Fatal(err)
			}
			s, url := serve(t, emulator.Options{})
			s.Push(emulator.Script{Raw: string(raw)})
			var h heard
			a, err := direct(t, url, nil).Answer(context.Background(), question("hi"), h.sink)
			if err != nil || a.Text != h.text() || a.StopReason == "" || len(a.Blocks) == 0 || a.Usage.OutputTokens == 0 {
				t.Fatalf("%+v %v", a, err)
			}
			for _, block := range a.Blocks {
				if !json.Valid(block) {
					t.Fatalf("%s", block)
				}
			}
		})
	}
}
