package emulator

import (
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// model holds what the emulator needs to know; the flags are the breaking changes of the generations.
type model struct {
	id, name     string
	created      string
	window       int
	output       int
	minCacheable int
	percent      int  // tokens against the older tokenizer
	adaptive     bool // no thinking of type enabled, no sampling parameters
	prefill      bool // may end with an assistant message
	bound        bool // thinking is bound to its prefix
	systemTurns  bool // takes role system within messages
	freeTools    bool // refuses tool_choice any and tool
}

var catalogue = []model{
	{id: "claude-opus-5-5", name: "Claude Opus 5.5", created: "2026-09-22T00:00:00Z", window: 1_000_000, output: 128_000,
		minCacheable: 512, percent: 130, adaptive: true, bound: true, systemTurns: true, freeTools: true},
	{id: "claude-sonnet-5-5", name: "Claude Sonnet 5.5", created: "2026-09-22T00:00:00Z", window: 1_000_000, output: 128_000,
		minCacheable: 512, percent: 130, adaptive: true, bound: true, freeTools: true},
	{id: "claude-haiku-5-5", name: "Claude Haiku 5.5", created: "2026-10-07T00:00:00Z", window: 1_000_000, output: 128_000,
		minCacheable: 512, percent: 130, adaptive: true},
	{id: "claude-fable-5-1", name: "Claude Fable 5.1", created: "2026-08-31T00:00:00Z", window: 1_000_000, output: 128_000,
		minCacheable: 512, percent: 130, adaptive: true, bound: true, systemTurns: true, freeTools: true},
	{id: "claude-opus-4-8", name: "Claude Opus 4.8", created: "2026-05-28T00:00:00Z", window: 1_000_000, output: 128_000,
		minCacheable: 1024, percent: 130, adaptive: true, systemTurns: true},
	{id: "claude-sonnet-5", name: "Claude Sonnet 5", created: "2026-06-30T00:00:00Z", window: 1_000_000, output: 128_000,
		minCacheable: 1024, percent: 130, adaptive: true},
	{id: "claude-sonnet-4-5", name: "Claude Sonnet 4.5", created: "2025-09-29T00:00:00Z", window: 200_000, output: 64_000,
		minCacheable: 1024, percent: 100, prefill: true},
	{id: "claude-haiku-4-5", name: "Claude Haiku 4.5", created: "2025-10-01T00:00:00Z", window: 200_000, output: 64_000,
		minCacheable: 4096, percent: 100, prefill: true},
}

// findModel takes an id with or without its date.
func findModel(id string) (model, bool) {
	for _, m := range catalogue {
		rest, ok := strings.CutPrefix(id, m.id)
		if ok && (rest == "" || len(rest) == 9 && rest[0] == '-' && strings.Trim(rest[1:], "0123456789") == "") {
			return m, true
		}
	}
	return model{}, false
}

func (m model) info() map[string]any {
	return map[string]any{"type": "model", "id": m.id, "display_name": m.name, "created_at": m.created,
		"max_input_tokens": m.window, "max_tokens": m.output, "capabilities": map[string]any{}, "lifecycle": "active",
		"deprecated_at": nil, "retires_at": nil}
}

// count is the emulator's tokenizer: four characters to a token, rounded up, times the model's percentage, rounded up.
func (m model) count(text string) int {
	if text == "" {
		return 0
	}
	plain := (utf8.RuneCountInString(text) + 3) / 4
	return (plain*m.percent + 99) / 100
}

// countBlock counts what the model would read of a block.
func (m model) countBlock(raw json.RawMessage) int {
	var b struct {
		Type     string `json:"type"`
		Text     string `json:"text"`
		Thinking string `json:"thinking"`
	}
	_ = json.Unmarshal(raw, &b) // a tool definition has none of these
	switch b.Type {
	case "text":
		return m.count(b.Text)
	case "thinking":
		return m.count(b.Thinking)
	case "image":
		return 1600
	}
	return m.count(string(raw))
}

// cut returns the longest beginning of text that counts at most n tokens.
func (m model) cut(text string, n int) string {
	runes := []rune(text)
	low, high := 0, len(runes)
	for low < high {
		mid := (low + high + 1) / 2
		if m.count(string(runes[:mid])) <= n {
			low = mid
		} else {
			high = mid - 1
		}
	}
	return string(runes[:low])
}
