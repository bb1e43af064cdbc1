package emulator_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
	"go.uber.org/goleak"

	"claude-memory-backend/internal/claude/emulator"
	"claude-memory-backend/internal/clocktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The official SDK is the reader that nobody of this project wrote.
func start(t *testing.T, o emulator.Options) (*emulator.Server, anthropic.Client) {
	t.Helper()
	s := emulator.New(o)
	web := httptest.NewServer(s.Handler())
	t.Cleanup(web.Close)
	c := web.Client()
	t.Cleanup(c.CloseIdleConnections)
	return s, anthropic.NewClient(option.WithoutEnvironmentDefaults(), option.WithBaseURL(web.URL),
		option.WithAPIKey("sk-ant-test"), option.WithMaxRetries(0), option.WithHTTPClient(c))
}

func newClock() *clocktest.Clock { return clocktest.New(time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)) }

func user(text string) anthropic.MessageParam {
	return anthropic.NewUserMessage(anthropic.NewTextBlock(text))
}

func params(model string, messages ...anthropic.MessageParam) anthropic.MessageNewParams {
	return anthropic.MessageNewParams{Model: model, MaxTokens: 1024, Messages: messages}
}

func streamed(t *testing.T, c anthropic.Client, p anthropic.MessageNewParams, opts ...option.RequestOption) (anthropic.Message, int, error) {
	t.Helper()
	s := c.Messages.NewStreaming(context.Background(), p, opts...)
	defer func() { _ = s.Close() }()
	var m anthropic.Message
	deltas := 0
	for s.Next() {
		if s.Current().Type == "content_block_delta" {
			deltas++
		}
		if err := m.Accumulate(s.Current()); err != nil {
			t.Fatal(err)
		}
	}
	return m, deltas, s.Err()
}

func text(m anthropic.Message) string {
	var b strings.Builder
	for _, block := range m.Content {
		b.WriteString(block.Text)
	}
	return b.String()
}

func apiError(t *testing.T, err error) *anthropic.Error {
	t.Helper()
	e, ok := errors.AsType[*anthropic.Error](err)
	if !ok {
		t.Fatalf("want an API error, have %v", err)
	}
	return e
}

func TestText(t *testing.T) {
	_, c := start(t, emulator.Options{})
	question := "Was ist grün? 緑とは何ですか 🌱"
	m, deltas, err := streamed(t, c, params("claude-sonnet-5-5", user(question)))
	if err != nil {
		t.Fatal(err)
	}
	if text(m) != emulator.Echo(question) || deltas < 10 || m.StopReason != "end_turn" {
		t.Fatalf("%q in %d deltas, %s", text(m), deltas, m.StopReason)
	}
	whole, err := c.Messages.New(context.Background(), params("claude-sonnet-5-5", user(question)))
	if err != nil {
		t.Fatal(err)
	}
	if text(*whole) != text(m) || whole.Usage.OutputTokens != m.Usage.OutputTokens || whole.Usage.InputTokens != m.Usage.InputTokens {
		t.Fatalf("buffered answer differs: %+v against %+v", whole.Usage, m.Usage)
	}
}

func TestCountEqualsUsage(t *testing.T) {
	_, c := start(t, emulator.Options{})
	m, _, err := streamed(t, c, params("claude-haiku-4-5", user("how long is this?")))
	if err != nil {
		t.Fatal(err)
	}
	n, err := c.Messages.CountTokens(context.Background(), anthropic.MessageCountTokensParams{Model: "claude-haiku-4-5",
		Messages: []anthropic.MessageParam{user("how long is this?")}})
	if err != nil || n.InputTokens != m.Usage.InputTokens {
		t.Fatalf("counted %v, billed %d, %v", n, m.Usage.InputTokens, err)
	}
}

func TestModels(t *testing.T) {
	_, c := start(t, emulator.Options{})
	page, err := c.Models.List(context.Background(), anthropic.ModelListParams{})
	if err != nil || len(page.Data) < 5 {
		t.Fatalf("%v, %v", page, err)
	}
	one, err := c.Models.Get(context.Background(), "claude-opus-5-5", anthropic.ModelGetParams{})
	if err != nil || one.DisplayName != "Claude Opus 5.5" || one.MaxInputTokens != 1_000_000 {
		t.Fatalf("%+v, %v", one, err)
	}
	if _, err := c.Models.Get(context.Background(), "claude-nobody", anthropic.ModelGetParams{}); apiError(t, err).StatusCode != 404 {
		t.Fatal(err)
	}
}

func TestBatches(t *testing.T) {
	_, c := start(t, emulator.Options{})
	b, err := c.Messages.Batches.New(context.Background(), anthropic.MessageBatchNewParams{
		Requests: []anthropic.MessageBatchNewParamsRequest{{CustomID: "one", Params: anthropic.MessageBatchNewParamsRequestParams{
			Model: "claude-haiku-4-5", MaxTokens: 64, Messages: []anthropic.MessageParam{user("hello")}}}}})
	if err != nil || b.ProcessingStatus != "ended" {
		t.Fatalf("%+v %v", b, err)
	}
	results := c.Messages.Batches.ResultsStreaming(context.Background(), b.ID, anthropic.MessageBatchResultsParams{})
	if !results.Next() || results.Current().CustomID != "one" || results.Current().Result.Type != "succeeded" {
		t.Fatalf("%+v %v", results.Current(), results.Err())
	}
	_ = results.Close()
}

func TestThinkingIsBound(t *testing.T) {
	const model = "claude-opus-5-5"
	adaptive := anthropic.ThinkingConfigParamUnion{OfAdaptive: &anthropic.ThinkingConfigAdaptiveParam{}}
	s, c := start(t, emulator.Options{})
	s.Push(emulator.Script{User: "first", Thinking: "I consider the colour.", Text: "Green."})
	p := params(model, user("first question"))
	p.Thinking = adaptive
	first, _, err := streamed(t, c, p)
	if err != nil {
		t.Fatal(err)
	}
	if first.Content[0].Thinking != "I consider the colour." || first.Content[0].Signature == "" {
		t.Fatalf("no signed thinking: %+v", first.Content)
	}
	follow := func(change func(*anthropic.MessageNewParams)) (anthropic.Message, error) {
		p := params(model, user("first question"), first.ToParam(), user("and now?"))
		p.Thinking = adaptive
		change(&p)
		m, _, err := streamed(t, c, p)
		return m, err
	}
	t.Run("the same prefix is accepted", func(t *testing.T) {
		if _, err := follow(func(*anthropic.MessageNewParams) {}); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("another effort is accepted", func(t *testing.T) {
		if _, err := follow(func(p *anthropic.MessageNewParams) { p.OutputConfig.Effort = "low" }); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a changed system is refused", func(t *testing.T) {
		_, err := follow(func(p *anthropic.MessageNewParams) { p.System = []anthropic.TextBlockParam{{Text: "new"}} })
		if e := apiError(t, err); e.StatusCode != 400 || !strings.Contains(e.RawJSON(), "bound to a different conversation") {
			t.Fatal(err)
		}
	})
	t.Run("altered thinking is refused", func(t *testing.T) {
		_, err := follow(func(p *anthropic.MessageNewParams) { p.Messages[1].Content[0].OfThinking.Thinking = "I lie." })
		if e := apiError(t, err); e.StatusCode != 400 || !strings.Contains(e.RawJSON(), "cannot be modified") {
			t.Fatal(err)
		}
	})
	t.Run("drop_block drops and reports", func(t *testing.T) {
		p := params(model, user("changed question"), first.ToParam(), user("and now?"))
		m, _, err := streamed(t, c, p, option.WithHeader("anthropic-beta", "thinking-binding-controls-2026-08-01"),
			option.WithJSONSet("thinking", map[string]any{"type": "adaptive", "block_binding": map[string]any{"prefix_mismatch_behavior": "drop_block"}}))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(m.JSON.ExtraFields["input_transformations"].Raw()+m.RawJSON(), "thinking_dropped") {
			t.Fatalf("no report: %s", m.RawJSON())
		}
	})
	t.Run("thinking out of the middle is refused, from the start accepted", func(t *testing.T) {
		s.Push(emulator.Script{Times: 2, Thinking: "more", Text: "yes"})
		ask := func(messages ...anthropic.MessageParam) (anthropic.Message, error) {
			p := params(model, messages...)
			p.Thinking = adaptive
			m, _, err := streamed(t, c, p)
			return m, err
		}
		history := []anthropic.MessageParam{user("first question"), first.ToParam(), user("two")}
		second, err := ask(history...)
		if err != nil {
			t.Fatal(err)
		}
		history = append(history, second.ToParam(), user("three"))
		third, err := ask(history...)
		if err != nil {
			t.Fatal(err)
		}
		history = append(history, third.ToParam(), user("four"))
		strip := func(m anthropic.MessageParam) anthropic.MessageParam {
			return anthropic.MessageParam{Role: m.Role, Content: m.Content[1:]}
		}
		middle := append([]anthropic.MessageParam(nil), history...)
		middle[3] = strip(middle[3])
		if _, err := ask(middle...); apiError(t, err).StatusCode != 400 {
			t.Fatal("a gap in the thinking was accepted")
		}
		begin := append([]anthropic.MessageParam(nil), history...)
		begin[1], begin[3] = strip(begin[1]), strip(begin[3])
		if _, err := ask(begin...); err != nil {
			t.Fatal(err)
		}
	})
}

func TestToolUse(t *testing.T) {
	s, c := start(t, emulator.Options{})
	s.Push(emulator.Script{User: "remember", StopReason: "tool_use", Blocks: []json.RawMessage{
		[]byte(`{"type":"text","text":"I look."}`),
		[]byte(`{"type":"tool_use","id":"toolu_01abc","name":"memory","input":{"command":"view","path":"/memories","z":1,"a":2}}`)}})
	m, _, err := streamed(t, c, params("claude-sonnet-5-5", user("remember?")))
	if err != nil || m.StopReason != "tool_use" || len(m.Content) != 2 {
		t.Fatalf("%+v %v", m, err)
	}
	if got := string(m.Content[1].Input); got != `{"command":"view","path":"/memories","z":1,"a":2}` {
		t.Fatal(got)
	}
	result := anthropic.NewUserMessage(anthropic.NewToolResultBlock("toolu_01abc", "nothing", false))
	if _, _, err := streamed(t, c, params("claude-sonnet-5-5", user("remember?"), m.ToParam(), result)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := streamed(t, c, params("claude-sonnet-5-5", user("remember?"), m.ToParam(), user("no result"))); apiError(t, err).StatusCode != 400 {
		t.Fatal("a missing tool_result was accepted")
	}
	if _, _, err := streamed(t, c, params("claude-sonnet-5-5", user("x"), result)); apiError(t, err).StatusCode != 400 {
		t.Fatal("a result without its use was accepted")
	}
}

func TestStopReasons(t *testing.T) {
	s, c := start(t, emulator.Options{})
	s.Push(emulator.Script{User: "forbidden", StopReason: "refusal", StopDetails: []byte(`{"type":"refusal","category":"bio","explanation":null}`)})
	s.Push(emulator.Script{User: "long search", StopReason: "pause_turn", Text: "searching"})
	for _, tc := range []struct {
		claim, question, want string
		max                   int64
	}{
		{"refusal", "forbidden", "refusal", 100},
		{"pause_turn", "long search", "pause_turn", 100},
		{"max_tokens", "a rather long question about everything", "max_tokens", 5},
		{"max_tokens 0 is a warm-up", "warm", "max_tokens", 0},
		{"window", strings.Repeat("word ", 159_900), "model_context_window_exceeded", 60_000},
	} {
		t.Run(tc.claim, func(t *testing.T) {
			p := params("claude-haiku-4-5", user(tc.question))
			m, _, err := streamed(t, c, p, option.WithJSONSet("max_tokens", tc.max))
			if err != nil || string(m.StopReason) != tc.want {
				t.Fatalf("%s, %v", m.StopReason, err)
			}
			if tc.max == 0 && len(m.Content) != 0 {
				t.Fatal("a warm-up speaks")
			}
		})
	}
	p := params("claude-haiku-4-5", user("one two three"))
	p.StopSequences = []string{" two"}
	m, _, err := streamed(t, c, p)
	if err != nil || m.StopReason != "stop_sequence" || m.StopSequence != " two" || !strings.HasSuffix(text(m), "one") {
		t.Fatalf("%q %s %q %v", text(m), m.StopReason, m.StopSequence, err)
	}
}

func TestRefusals(t *testing.T) {
	_, c := start(t, emulator.Options{})
	const model = "claude-opus-5-5"
	mark := anthropic.NewCacheControlEphemeralParam()
	marked := func(n int) []anthropic.TextBlockParam {
		var out []anthropic.TextBlockParam
		for range n {
			out = append(out, anthropic.TextBlockParam{Text: "s", CacheControl: mark})
		}
		return out
	}
	for claim, tc := range map[string]struct {
		status int
		opts   []option.RequestOption
		change func(*anthropic.MessageNewParams)
	}{
		"no key":        {401, []option.RequestOption{option.WithHeaderDel("x-api-key")}, nil},
		"wrong key":     {401, []option.RequestOption{option.WithHeader("x-api-key", "nope")}, nil},
		"no version":    {400, []option.RequestOption{option.WithHeaderDel("anthropic-version")}, nil},
		"no max_tokens": {400, []option.RequestOption{option.WithJSONDel("max_tokens")}, nil},
		"unknown field": {400, []option.RequestOption{option.WithJSONSet("colour", "green")}, nil},
		"unknown model": {404, nil, func(p *anthropic.MessageNewParams) { p.Model = "claude-9" }},
		"prefill": {400, nil, func(p *anthropic.MessageNewParams) {
			p.Messages = append(p.Messages, anthropic.NewAssistantMessage(anthropic.NewTextBlock("Well")))
		}},
		"starts with answer":  {400, nil, func(p *anthropic.MessageNewParams) { p.Messages[0].Role = "assistant" }},
		"empty text":          {400, nil, func(p *anthropic.MessageNewParams) { p.Messages[0] = user("") }},
		"no messages":         {400, nil, func(p *anthropic.MessageNewParams) { p.Messages = []anthropic.MessageParam{} }},
		"five breakpoints":    {400, nil, func(p *anthropic.MessageNewParams) { p.System = marked(5) }},
		"five with automatic": {400, nil, func(p *anthropic.MessageNewParams) { p.System = marked(4); p.CacheControl = mark }},
		"1h after 5m":         {400, nil, func(p *anthropic.MessageNewParams) { p.System = marked(2); p.System[1].CacheControl.TTL = "1h" }},
		"budgeted thinking":   {400, nil, func(p *anthropic.MessageNewParams) { p.Thinking = anthropic.ThinkingConfigParamOfEnabled(1024) }},
		"temperature":         {400, nil, func(p *anthropic.MessageNewParams) { p.Temperature = anthropic.Float(0.5) }},
		"too long": {400, nil, func(p *anthropic.MessageNewParams) {
			p.Model = "claude-haiku-4-5"
			p.Messages[0] = user(strings.Repeat("x", 900_000))
		}},
		"more than the output": {400, nil, func(p *anthropic.MessageNewParams) { p.MaxTokens = 10_000_000 }},
	} {
		t.Run(claim, func(t *testing.T) {
			p := params(model, user("hello"))
			if tc.change != nil {
				tc.change(&p)
			}
			_, _, err := streamed(t, c, p, tc.opts...)
			e := apiError(t, err)
			if e.StatusCode != tc.status || e.Type() == "" || !strings.Contains(e.RawJSON(), e.RequestID) || e.RequestID == "" {
				t.Fatalf("status %d: %v", e.StatusCode, err)
			}
		})
	}
}

func TestCache(t *testing.T) {
	long := func(n int) string { return strings.Repeat("abcd", n) } // n tokens on the older tokenizer
	marked := func(text, ttl string) anthropic.TextBlockParam {
		b := anthropic.TextBlockParam{Text: text, CacheControl: anthropic.NewCacheControlEphemeralParam()}
		b.CacheControl.TTL = anthropic.CacheControlEphemeralTTL(ttl)
		return b
	}
	ask := func(t *testing.T, c anthropic.Client, system []anthropic.TextBlockParam, messages ...anthropic.MessageParam) anthropic.Usage {
		t.Helper()
		p := params("claude-sonnet-4-5", messages...)
		p.System = system
		m, _, err := streamed(t, c, p)
		if err != nil {
			t.Fatal(err)
		}
		return m.Usage
	}
	t.Run("written, read, expired", func(t *testing.T) {
		clk := newClock()
		_, c := start(t, emulator.Options{Now: clk.Now})
		system := []anthropic.TextBlockParam{marked(long(2000), "5m")}
		one := ask(t, c, system, user("q"))
		if one.CacheCreationInputTokens != 2000 || one.CacheReadInputTokens != 0 || one.CacheCreation.Ephemeral5mInputTokens != 2000 {
			t.Fatalf("%+v", one)
		}
		clk.Pass(4 * time.Minute)
		if two := ask(t, c, system, user("other")); two.CacheReadInputTokens != 2000 || two.CacheCreationInputTokens != 0 {
			t.Fatalf("%+v", two)
		}
		clk.Pass(4 * time.Minute) // refreshed by use
		if three := ask(t, c, system, user("q")); three.CacheReadInputTokens != 2000 {
			t.Fatalf("%+v", three)
		}
		clk.Pass(6 * time.Minute)
		if four := ask(t, c, system, user("q")); four.CacheReadInputTokens != 0 || four.CacheCreationInputTokens != 2000 {
			t.Fatalf("%+v", four)
		}
	})
	t.Run("mixed lifetimes are billed apart", func(t *testing.T) {
		_, c := start(t, emulator.Options{})
		u := ask(t, c, []anthropic.TextBlockParam{marked(long(1500), "1h"), marked(long(700), "5m")}, user("q"))
		if u.CacheCreation.Ephemeral1hInputTokens != 1500 || u.CacheCreation.Ephemeral5mInputTokens != 700 {
			t.Fatalf("%+v", u)
		}
	})
	t.Run("below the minimum nothing is cached", func(t *testing.T) {
		_, c := start(t, emulator.Options{})
		if u := ask(t, c, []anthropic.TextBlockParam{marked(long(1000), "5m")}, user("q")); u.CacheCreationInputTokens != 0 || u.InputTokens < 1000 {
			t.Fatalf("%+v", u)
		}
	})
	t.Run("another byte misses", func(t *testing.T) {
		_, c := start(t, emulator.Options{})
		ask(t, c, []anthropic.TextBlockParam{marked(long(1100)+"a", "5m")}, user("q"))
		if u := ask(t, c, []anthropic.TextBlockParam{marked(long(1100)+"b", "5m")}, user("q")); u.CacheReadInputTokens != 0 {
			t.Fatalf("%+v", u)
		}
	})
	t.Run("the look-back ends after twenty blocks", func(t *testing.T) {
		_, c := start(t, emulator.Options{})
		turn := func(n int) []anthropic.MessageParam {
			var blocks []anthropic.ContentBlockParamUnion
			for range n {
				blocks = append(blocks, anthropic.NewTextBlock(long(100)))
			}
			blocks[n-1].OfText.CacheControl = anthropic.NewCacheControlEphemeralParam()
			return []anthropic.MessageParam{anthropic.NewUserMessage(blocks...)}
		}
		ask(t, c, nil, turn(15)...)
		if u := ask(t, c, nil, turn(34)...); u.CacheReadInputTokens != 1500 { // 19 blocks further
			t.Fatalf("%+v", u)
		}
		_, c = start(t, emulator.Options{})
		ask(t, c, nil, turn(15)...)
		if u := ask(t, c, nil, turn(35)...); u.CacheReadInputTokens != 0 { // 20 blocks further
			t.Fatalf("%+v", u)
		}
	})
	t.Run("workspaces do not share", func(t *testing.T) {
		_, c := start(t, emulator.Options{Keys: map[string]string{"sk-ant-test": "a", "sk-ant-b": "b"}})
		system := []anthropic.TextBlockParam{marked(long(2000), "5m")}
		ask(t, c, system, user("q"))
		p := params("claude-sonnet-4-5", user("q"))
		p.System = system
		m, _, err := streamed(t, c, p, option.WithAPIKey("sk-ant-b"))
		if err != nil || m.Usage.CacheReadInputTokens != 0 {
			t.Fatalf("%+v %v", m.Usage, err)
		}
	})
}

func TestLimits(t *testing.T) {
	clk := newClock()
	_, c := start(t, emulator.Options{Now: clk.Now, Limits: emulator.Limits{Requests: 100, InputTokens: 2500, OutputTokens: -1}})
	system := []anthropic.TextBlockParam{{Text: strings.Repeat("abcd", 2000), CacheControl: anthropic.NewCacheControlEphemeralParam()}}
	ask := func() (*http.Response, error) {
		p := params("claude-sonnet-4-5", user("q"))
		p.System = system
		var res *http.Response
		_, _, err := streamed(t, c, p, option.WithResponseInto(&res))
		return res, err
	}
	res, err := ask()
	if err != nil || res.Header.Get("anthropic-ratelimit-input-tokens-remaining") != "496" || res.Header.Get("anthropic-ratelimit-requests-limit") != "100" {
		t.Fatalf("%v %v", res.Header, err)
	}
	for range 5 { // 2000 tokens each, but from the cache
		if _, err := ask(); err != nil {
			t.Fatal(err)
		}
	}
	system[0].Text += "x"
	_, err = ask()
	e := apiError(t, err)
	if e.StatusCode != 429 || e.Response.Header.Get("retry-after") != "37" {
		t.Fatalf("%d, retry-after %q", e.StatusCode, e.Response.Header.Get("retry-after"))
	}
	clk.Pass(37 * time.Second)
	if _, err := ask(); err != nil {
		t.Fatal(err)
	}
}

func TestFaults(t *testing.T) {
	s, c := start(t, emulator.Options{})
	for _, tc := range []struct {
		claim  string
		fault  emulator.Fault
		status int // of an API error; 0 for none
		broken bool
	}{
		{"529", emulator.Fault{Kind: emulator.Refuse, Status: 529}, 529, false},
		{"500", emulator.Fault{Kind: emulator.Refuse, Status: 500, Message: "no"}, 500, false},
		{"504", emulator.Fault{Kind: emulator.Refuse, Status: 504, Message: "no"}, 504, false},
		{"429 with retry-after", emulator.Fault{Kind: emulator.Refuse, Status: 429, RetryAfter: "3"}, 429, false},
		{"error event", emulator.Fault{Kind: emulator.ErrorEvent, AfterPieces: 3}, 200, false},
		{"cut is silent for the SDK", emulator.Fault{Kind: emulator.Cut, AfterPieces: 3}, 0, false},
		{"reset", emulator.Fault{Kind: emulator.Reset, AfterPieces: 3}, 0, true},
		{"reset before the head", emulator.Fault{Kind: emulator.Reset, AfterPieces: -1}, 0, true},
		{"unknown events", emulator.Fault{Kind: emulator.Unknown}, 0, false},
	} {
		t.Run(tc.claim, func(t *testing.T) {
			s.Push(emulator.Script{Fault: tc.fault})
			m, _, err := streamed(t, c, params("claude-haiku-4-5", user("hello")))
			switch {
			case tc.status > 0:
				e := apiError(t, err)
				if e.StatusCode != tc.status || e.RequestID == "" || e.Response.Header.Get("retry-after") != tc.fault.RetryAfter {
					t.Fatalf("%+v", e)
				}
			case tc.broken:
				if err == nil {
					t.Fatal("nothing broke")
				}
			case err != nil:
				t.Fatal(err)
			}
			if tc.fault.Kind == emulator.Unknown && text(m) != emulator.Echo("hello") {
				t.Fatal(text(m))
			}
		})
	}
}

func TestScriptsAreUsedUpInOrder(t *testing.T) {
	s, c := start(t, emulator.Options{})
	s.Push(emulator.Script{User: "hello", Text: "one"})
	s.Push(emulator.Script{User: "hello", Text: "two"})
	s.Push(emulator.Script{Name: "named", Model: "nobody's", Text: "three"})
	say := func(opts ...option.RequestOption) string {
		m, _, err := streamed(t, c, params("claude-haiku-4-5", user("hello")), opts...)
		if err != nil {
			t.Fatal(err)
		}
		return text(m)
	}
	got := []string{say(), say(option.WithHeader("x-emulator-script", "named")), say(), say()}
	want := []string{"one", "three", "two", emulator.Echo("hello")}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("%q", got)
		}
	}
	journal := s.Journal()
	if len(journal) != 4 || journal[1].Script != "named" || !json.Valid(journal[0].Body) || journal[0].Usage.InputTokens == 0 {
		t.Fatalf("%+v", journal)
	}
}
