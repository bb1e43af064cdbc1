package claude_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"

	"claude-memory-backend/internal/claude"
	"claude-memory-backend/internal/claude/emulator"
	"claude-memory-backend/internal/fault"
)

func TestCost(t *testing.T) {
	p := claude.DefaultPrices()
	for _, tc := range []struct {
		claim, model, usage string
		want                int64
		priced              bool
	}{
		{"input and output", "claude-opus-5-5", `{"input_tokens":1000,"output_tokens":100}`, 1000*4 + 100*20, true},
		{"cache read", "claude-opus-5-5", `{"cache_read_input_tokens":1000000}`, 200_000, true},
		{"writes by lifetime", "claude-opus-5-5", `{"cache_creation_input_tokens":3000,"cache_creation":{"ephemeral_5m_input_tokens":1000,"ephemeral_1h_input_tokens":2000}}`, 1000*5 + 2000*8, true},
		{"writes without a split are short", "claude-opus-5-5", `{"cache_creation_input_tokens":1000}`, 5000, true},
		{"what the split leaves out is short", "claude-opus-5-5", `{"cache_creation_input_tokens":1000,"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":400}}`, 600*5 + 400*8, true},
		{"half a micro-dollar goes up", "claude-haiku-5-5", `{"input_tokens":5}`, 1, true},
		{"less than half goes down", "claude-haiku-5-5", `{"input_tokens":4}`, 0, true},
		{"parts are rounded once", "claude-haiku-5-5", `{"input_tokens":4,"output_tokens":1}`, 1, true},
		{"the lower tier at its bound", "claude-haiku-5-5", `{"input_tokens":100000,"output_tokens":10}`, 10_005, true},
		{"the whole request moves above it", "claude-haiku-5-5", `{"input_tokens":100001,"output_tokens":10}`, 50_026, true},
		{"cached tokens count for the tier", "claude-haiku-5-5", `{"input_tokens":1,"cache_read_input_tokens":100000,"output_tokens":10}`, 5_026, true},
		{"iterations are what is billed", "claude-opus-5-5", `{"input_tokens":1,"output_tokens":1,"iterations":[{"type":"compaction","input_tokens":100,"output_tokens":10},{"type":"message","input_tokens":50,"output_tokens":5}]}`, 150*4 + 15*20, true},
		{"each iteration has its own tier", "claude-haiku-5-5", `{"iterations":[{"input_tokens":60000},{"input_tokens":60000}]}`, 12_000, true},
		{"another model's iteration", "claude-opus-5-5", `{"iterations":[{"model":"claude-sonnet-5-5","input_tokens":10}]}`, 20, true},
		{"web searches", "claude-opus-5-5", `{"server_tool_use":{"web_search_requests":2,"web_fetch_requests":9}}`, 20_000, true},
		{"region", "claude-opus-5-5", `{"input_tokens":1000,"inference_geo":"us"}`, 4_400, true},
		{"batch", "claude-opus-5-5", `{"input_tokens":1000,"service_tier":"batch"}`, 2_000, true},
		{"dated id", "claude-sonnet-4-5-20250929", `{"input_tokens":1000}`, 3_000, true},
		{"latest", "claude-haiku-4-5-latest", `{"input_tokens":1000}`, 1_000, true},
		{"a longer id is another model", "claude-opus-5-9", `{"input_tokens":1000}`, 0, false},
		{"unknown model", "gpt-9", `{"input_tokens":1000}`, 0, false},
		{"no model", "", `{"input_tokens":1000}`, 0, false},
		{"negative numbers give nothing back", "claude-opus-5-5", `{"input_tokens":-1000,"output_tokens":1}`, 20, true},
		{"a lie does not overflow", "claude-opus-5-5", `{"input_tokens":9223372036854775807,"cache_read_input_tokens":9223372036854775807}`, 1<<63 - 1, true},
		{"one unreadable field", "claude-opus-5-5", `{"input_tokens":1000,"iterations":"none","server_tool_use":7}`, 4_000, true},
		{"no usage", "claude-opus-5-5", ``, 0, true},
	} {
		t.Run(tc.claim, func(t *testing.T) {
			got, priced := p.Cost(tc.model, json.RawMessage(tc.usage))
			if got != tc.want || priced != tc.priced {
				t.Fatalf("%d %t, want %d %t", got, priced, tc.want, tc.priced)
			}
		})
	}
}

// The same usage costs the same whether it came in one piece or in a stream.
func TestStreamedAndWholeCostTheSame(t *testing.T) {
	s, url := serve(t, emulator.Options{})
	overlay := json.RawMessage(`{"iterations":[{"type":"message","input_tokens":40,"output_tokens":7,"cache_creation_input_tokens":3000,"cache_creation":{"ephemeral_5m_input_tokens":1000,"ephemeral_1h_input_tokens":2000}}],"server_tool_use":{"web_search_requests":1,"web_fetch_requests":0}}`)
	for _, usage := range []json.RawMessage{nil, overlay} {
		s.Push(emulator.Script{Times: 2, Text: "the same", Usage: usage})
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		c := anthropic.NewClient(option.WithoutEnvironmentDefaults(), option.WithBaseURL(url), option.WithAPIKey("sk-ant-test"), option.WithHTTPClient(client))
		p := question("hello")
		p.Model = "claude-haiku-4-5"
		streamed, err := direct(t, url, nil).Answer(context.Background(), p, nil)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := c.Messages.New(context.Background(), anthropic.MessageNewParams{Model: p.Model, MaxTokens: 100,
			Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("hello"))}})
		if err != nil {
			t.Fatal(err)
		}
		cost, priced := claude.DefaultPrices().Cost(p.Model, json.RawMessage(whole.Usage.RawJSON()))
		if !priced || cost == 0 || cost != streamed.CostMicroUSD {
			t.Fatalf("whole %d, streamed %d", cost, streamed.CostMicroUSD)
		}
		if again, _ := claude.DefaultPrices().Cost(streamed.Model, streamed.RawUsage); again != streamed.CostMicroUSD {
			t.Fatalf("repriced %d, was %d", again, streamed.CostMicroUSD)
		}
	}
}

func TestPriceFileReportsEverything(t *testing.T) {
	_, err := claude.LoadPrices(strings.NewReader(`{"as_of":"yesterday","server_tools":{"x":-1},"inference_geo_percent":{"us":0},
		"models":[{"id":"","input":-1,"context_window":1,"max_output":1,"token_percent":100},
		{"id":"a","input":1,"output":1,"context_window":200000,"max_output":1,"token_percent":1},{"id":"a","context_window":200000,"max_output":1,"token_percent":100,
		"tiers":[{"above_prompt_tokens":0},{"above_prompt_tokens":5,"input":-3},{"above_prompt_tokens":5}]}]}`))
	e, ok := errors.AsType[*fault.Error](err)
	if !ok || e.Class != fault.Invalid {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, f := range e.Fields {
		got[f.Location] = true
	}
	for _, at := range []string{"as_of", "server_tools.x", "inference_geo_percent.us", "models[0].id", "models[0].input",
		"models[0].context_window", "models[1].token_percent", "models[2].id", "models[2].tiers[0].above_prompt_tokens",
		"models[2].tiers[1].input", "models[2].tiers[2].above_prompt_tokens"} {
		if !got[at] {
			t.Errorf("%s is not reported in %v", at, e.Fields)
		}
	}
	for _, text := range []string{``, `[]`, `{"as_of":"2026-10-20","modles":[]}`, `{"as_of":"2026-10-20","models":[]}`} {
		if _, err := claude.LoadPrices(strings.NewReader(text)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestModelFacts(t *testing.T) {
	p := claude.DefaultPrices()
	if p.AsOf().Year() < 2026 || len(p.Models()) < 14 {
		t.Fatal(p.AsOf(), p.Models())
	}
	if p.ContextWindow("claude-haiku-4-5-20251001") != 200_000 || p.ContextWindow("claude-opus-5-5") != 1_000_000 || p.ContextWindow("x") != 200_000 {
		t.Fatal("windows")
	}
	if p.MaxOutput("claude-opus-5-5") != 128_000 || p.MaxOutput("x") != 64_000 || p.MinCacheable("claude-sonnet-5") != 1024 || p.MinCacheable("x") != 4096 {
		t.Fatal("facts")
	}
	if p.Known("x") || !p.Known("claude-opus-5") {
		t.Fatal("known")
	}
	for _, id := range p.Models() {
		// A tenth of the base price is the usual price of a read; nobody pays more than half for it.
		in, _ := p.Cost(id, json.RawMessage(`{"input_tokens":100000}`))
		read, _ := p.Cost(id, json.RawMessage(`{"cache_read_input_tokens":100000}`))
		short, _ := p.Cost(id, json.RawMessage(`{"cache_creation_input_tokens":100000}`))
		out, _ := p.Cost(id, json.RawMessage(`{"output_tokens":100000}`))
		if in <= 0 || read <= 0 || read*10 > in || short*4 != in*5 || out != in*5 {
			t.Errorf("%s: input %d, read %d, write %d, output %d", id, in, read, short, out)
		}
	}
}

func TestEstimates(t *testing.T) {
	p := claude.DefaultPrices()
	const old, young = "claude-haiku-4-5", "claude-opus-5-5"
	english := strings.Repeat("The quick brown fox jumps over the lazy dog. ", 100)
	for _, tc := range []struct {
		claim, model, text string
		low, high          int
	}{
		{"nothing", old, "", 0, 0},
		{"one letter", old, "a", 1, 1},
		{"English near four characters a token", old, english, len(english) / 5, len(english) / 3},
		{"a third more on the young tokenizer", young, english, len(english) / 4, len(english) / 2},
		{"CJK at least a token a character", old, strings.Repeat("緑色", 500), 1000, 1500},
		{"emoji", old, strings.Repeat("🌱", 100), 200, 300},
		{"Cyrillic", old, strings.Repeat("зелёный ", 100), 400, 700},
		{"an unknown model is taken for hungry", "x", english, len(english) / 4, len(english) / 2},
	} {
		t.Run(tc.claim, func(t *testing.T) {
			n := p.EstimateTokens(tc.model, tc.text)
			if n < tc.low || n > tc.high || n != p.EstimateTokens(tc.model, tc.text) {
				t.Fatalf("%d, want %d to %d", n, tc.low, tc.high)
			}
		})
	}
	blocks := []json.RawMessage{textBlock(english), []byte(`{"type":"image","source":{}}`),
		[]byte(`{"type":"tool_result","tool_use_id":"t","content":[{"type":"text","text":"ok"},{"type":"image"}]}`), []byte(`broken`)}
	n := p.EstimateBlocks(old, blocks)
	if least := p.EstimateTokens(old, english) + 3200; n < least || n > least+200 {
		t.Fatal(n)
	}
	if allocs := testing.AllocsPerRun(10, func() { p.EstimateTokens(old, english) }); allocs > 0 {
		t.Fatalf("%v allocations", allocs)
	}
}

func TestSettings(t *testing.T) {
	for _, text := range []string{``, `null`, `{}`, `{"temperature":0.5,"top_p":1,"top_k":0,"stop_sequences":["a"],"effort":"xhigh","service_tier":"auto"}`,
		`{"thinking":{"type":"adaptive","display":"summarized","block_binding":{"prefix_mismatch_behavior":"drop_block"}}}`,
		`{"thinking":{"type":"enabled","budget_tokens":1024}}`} {
		if err := claude.ValidateSettings(json.RawMessage(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for text, at := range map[string]string{
		`[]`: "settings", `7`: "settings", `{`: "settings", `{"x":"` + strings.Repeat("x", 20_000) + `"}`: "settings",
		`{"model":"x"}`: "settings.model", `{"metadata":{}}`: "settings.metadata", `{"Temperature":1}`: "settings.Temperature",
		`{"temperature":1.5}`: "settings.temperature", `{"temperature":null}`: "settings.temperature", `{"top_p":"1"}`: "settings.top_p",
		`{"top_k":0.5}`: "settings.top_k", `{"stop_sequences":[""]}`: "settings.stop_sequences", `{"stop_sequences":null}`: "settings.stop_sequences",
		`{"effort":"huge"}`: "settings.effort", `{"service_tier":7}`: "settings.service_tier", `{"thinking":7}`: "settings.thinking",
		`{"thinking":{}}`: "settings.thinking.type", `{"thinking":{"type":"deep"}}`: "settings.thinking.type",
		`{"thinking":{"type":"enabled"}}`:                                          "settings.thinking.budget_tokens",
		`{"thinking":{"type":"enabled","budget_tokens":10}}`:                       "settings.thinking.budget_tokens",
		`{"thinking":{"type":"adaptive","x":1}}`:                                   "settings.thinking.x",
		`{"thinking":{"type":"adaptive","display":"all"}}`:                         "settings.thinking.display",
		`{"thinking":{"type":"adaptive","block_binding":{}}}`:                      "settings.thinking.block_binding",
		`{"thinking":{"type":"a","block_binding":{"prefix_mismatch_behavior":1}}}`: "settings.thinking.block_binding.prefix_mismatch_behavior",
	} {
		err := claude.ValidateSettings(json.RawMessage(text))
		e, ok := errors.AsType[*fault.Error](err)
		if !ok || e.Class != fault.Invalid || len(e.Fields) == 0 || e.Fields[0].Location != at {
			t.Errorf("%.60s: %+v", text, err)
		}
	}
	if e, ok := errors.AsType[*fault.Error](claude.ValidateSettings(json.RawMessage(`{"temperature":7,"effort":"x","nope":1}`))); !ok || len(e.Fields) != 3 {
		t.Errorf("not every problem is told: %+v", e)
	}
}

func TestBindingSettingBringsItsBeta(t *testing.T) {
	s, url := serve(t, emulator.Options{})
	p := question("hi")
	p.Settings = json.RawMessage(`{"thinking":{"type":"adaptive","block_binding":{"prefix_mismatch_behavior":"drop_block"}}}`)
	if _, err := direct(t, url, nil).Answer(context.Background(), p, nil); err != nil {
		t.Fatal(err)
	}
	if got := s.Journal()[0].Header.Get("anthropic-beta"); got != "thinking-binding-controls-2026-08-01" {
		t.Fatal(got)
	}
}
