package emulator

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// request is a parsed Messages request, in the pieces that cache and signatures work on.
type request struct {
	Model         string            `json:"model"`
	MaxTokens     *int              `json:"max_tokens"`
	Stream        bool              `json:"stream"`
	System        json.RawMessage   `json:"system"`
	Messages      []message         `json:"messages"`
	Tools         []json.RawMessage `json:"tools"`
	ToolChoice    json.RawMessage   `json:"tool_choice"`
	Thinking      json.RawMessage   `json:"thinking"`
	OutputConfig  json.RawMessage   `json:"output_config"`
	CacheControl  json.RawMessage   `json:"cache_control"`
	StopSequences []string          `json:"stop_sequences"`
	Temperature   *float64          `json:"temperature"`
	TopP          *float64          `json:"top_p"`
	TopK          *int              `json:"top_k"`

	facts    model
	segments []segment
}

type message struct {
	Role    string          `json:"role"`
	Content json.RawMessage `json:"content"`
	blocks  []json.RawMessage
}

// segment is one hashed piece of the prefix: a tool, a system block, a content block.
type segment struct {
	path    string
	role    string
	kind    string
	message int    // -1 before the messages
	raw     []byte // without cache_control
	tokens  int
	ttl     string // "5m" or "1h" at a breakpoint
	dropped bool   // taken out by the thinking check
}

var knownFields = []string{"model", "max_tokens", "stream", "system", "messages", "tools", "tool_choice", "thinking",
	"output_config", "cache_control", "stop_sequences", "temperature", "top_p", "top_k", "metadata", "service_tier",
	"container", "inference_geo", "speed", "diagnostics", "context_management", "compaction", "mcp_servers",
	"fallbacks", "fallback_credit_token"}

// parse reads and validates. Messages need max_tokens, counting does not take it.
func (s *Server) parse(c *call, full bool) (*request, *apiError) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(c.body, &fields); err != nil {
		return nil, invalid("The request body is not valid JSON")
	}
	for name := range fields {
		if !slices.Contains(knownFields, name) || !full && (name == "max_tokens" || name == "stream") {
			return nil, invalid("%s: Extra inputs are not permitted", name)
		}
	}
	req := &request{}
	if err := json.Unmarshal(c.body, req); err != nil {
		return nil, invalid("The request body does not have the expected shape")
	}
	var ok bool
	if req.facts, ok = findModel(req.Model); !ok {
		if req.Model == "" {
			return nil, invalid("model: Field required")
		}
		return nil, notFound("model: " + req.Model)
	}
	for _, check := range []func() *apiError{
		func() *apiError { return req.checkNumbers(full) },
		req.split, req.checkMessages, req.checkTools, req.checkBreakpoints,
		func() *apiError { return req.checkModel(c.betas) },
		req.checkLength,
	} {
		if fail := check(); fail != nil {
			return nil, fail
		}
	}
	return req, nil
}

func (r *request) checkNumbers(full bool) *apiError {
	if full && r.MaxTokens == nil {
		return invalid("max_tokens: Field required")
	}
	if r.MaxTokens != nil && (*r.MaxTokens < 0 || *r.MaxTokens > r.facts.output) {
		return invalid("max_tokens: %d > %d, which is the maximum allowed number of output tokens for %s",
			*r.MaxTokens, r.facts.output, r.Model)
	}
	if len(r.Messages) == 0 {
		return invalid("messages: at least one message is required")
	}
	return nil
}

// split takes the request apart in the order in which the provider hashes it.
func (r *request) split() *apiError {
	add := func(path, role string, at int, raw json.RawMessage) *apiError {
		seg, fail := newSegment(path, role, at, raw)
		if fail != nil {
			return fail
		}
		seg.tokens = r.facts.countBlock(seg.raw)
		r.segments = append(r.segments, seg)
		return nil
	}
	for i, tool := range r.Tools {
		if fail := add(fmt.Sprintf("tools.%d", i), "tools", -1, tool); fail != nil {
			return fail
		}
	}
	blocks, ok := asBlocks(r.System)
	if !ok {
		return invalid("system: Input should be a string or a list of text blocks")
	}
	for i, block := range blocks {
		if fail := add(fmt.Sprintf("system.%d", i), "system", -1, block); fail != nil {
			return fail
		}
	}
	for i := range r.Messages {
		m := &r.Messages[i]
		if m.blocks, ok = asBlocks(m.Content); !ok {
			return invalid("messages.%d.content: Input should be a string or a list of blocks", i)
		}
		for j, block := range m.blocks {
			if fail := add(fmt.Sprintf("messages.%d.content.%d", i, j), m.Role, i, block); fail != nil {
				return fail
			}
		}
	}
	return nil
}

// asBlocks makes a list of blocks of either form of content; nothing at all is an empty list.
func asBlocks(raw json.RawMessage) ([]json.RawMessage, bool) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return nil, true
	}
	if raw[0] == '"' {
		return []json.RawMessage{[]byte(`{"type":"text","text":` + string(raw) + `}`)}, true
	}
	var blocks []json.RawMessage
	return blocks, json.Unmarshal(raw, &blocks) == nil
}

func newSegment(path, role string, at int, raw json.RawMessage) (segment, *apiError) {
	seg := segment{path: path, role: role, message: at, raw: raw}
	var head struct {
		Type  string          `json:"type"`
		Text  *string         `json:"text"`
		Cache json.RawMessage `json:"cache_control"`
	}
	if json.Unmarshal(raw, &head) != nil {
		return seg, invalid("%s: Input should be an object", path)
	}
	seg.kind = head.Type
	if role != "tools" && head.Type == "" {
		return seg, invalid("%s.type: Field required", path)
	}
	if head.Type == "text" && (head.Text == nil || *head.Text == "") {
		return seg, invalid("%s.text: text content blocks must be non-empty", path)
	}
	if len(head.Cache) == 0 || string(head.Cache) == "null" {
		return seg, nil
	}
	if head.Type == "thinking" || head.Type == "redacted_thinking" {
		return seg, invalid("%s.cache_control: Extra inputs are not permitted", path)
	}
	ttl, fail := lifetime(path, head.Cache)
	if fail != nil {
		return seg, fail
	}
	seg.ttl = ttl
	seg.raw = withoutField(raw, "cache_control")
	return seg, nil
}

func lifetime(path string, raw json.RawMessage) (string, *apiError) {
	var mark struct {
		Type string `json:"type"`
		TTL  string `json:"ttl"`
	}
	if json.Unmarshal(raw, &mark) != nil || mark.Type != "ephemeral" {
		return "", invalid("%s.cache_control.type: Input should be 'ephemeral'", path)
	}
	switch mark.TTL {
	case "", "5m":
		return "5m", nil
	case "1h":
		return "1h", nil
	}
	return "", invalid("%s.cache_control.ttl: Input should be '5m' or '1h'", path)
}

// withoutField removes one field of an object and leaves every other byte alone.
func withoutField(raw []byte, name string) []byte {
	return rewrite(raw, func(key string, value json.RawMessage) (json.RawMessage, bool) { return value, key != name })
}

// replaceField gives a field of an object another value in the same place.
func replaceField(raw []byte, name, value string) []byte {
	return rewrite(raw, func(key string, old json.RawMessage) (json.RawMessage, bool) {
		if key == name {
			return json.RawMessage(value), true
		}
		return old, true
	})
}

func rewrite(raw []byte, each func(key string, value json.RawMessage) (json.RawMessage, bool)) []byte {
	dec := json.NewDecoder(bytes.NewReader(raw))
	_, _ = dec.Token() // the opening brace; the caller has parsed the object before
	out := []byte{'{'}
	for dec.More() {
		token, err := dec.Token()
		key, ok := token.(string)
		var value json.RawMessage
		if err != nil || !ok || dec.Decode(&value) != nil {
			return raw
		}
		value, keep := each(key, value)
		if !keep {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(out, quote(key)...), ':'), value...)
	}
	return append(out, '}')
}

func (r *request) checkMessages() *apiError {
	for i, m := range r.Messages {
		switch {
		case m.Role == "system" && r.facts.systemTurns && i > 0:
		case m.Role != "user" && m.Role != "assistant":
			return invalid("messages.%d.role: Input should be 'user' or 'assistant'", i)
		case i == 0 && m.Role != "user":
			return invalid("messages: first message must use the \"user\" role")
		}
		if len(m.blocks) == 0 && !(m.Role == "assistant" && i == len(r.Messages)-1) {
			return invalid("messages.%d: all messages must have non-empty content except for the optional final assistant message", i)
		}
	}
	if r.Messages[len(r.Messages)-1].Role == "assistant" && !r.facts.prefill {
		return invalid("This model does not support assistant message prefill. The conversation must end with a user message.")
	}
	return nil
}

// checkTools pairs every tool_use with a tool_result in the next message, and every result with its use.
func (r *request) checkTools() *apiError {
	ids := func(m message, kind, field string) (found []string) {
		for _, raw := range m.blocks {
			var head map[string]json.RawMessage
			_ = json.Unmarshal(raw, &head) // split has seen that it is an object
			if string(head["type"]) == `"`+kind+`"` {
				var id string
				_ = json.Unmarshal(head[field], &id)
				found = append(found, id)
			}
		}
		return found
	}
	for i, m := range r.Messages {
		uses := ids(m, "tool_use", "id")
		var results []string
		if i+1 < len(r.Messages) {
			results = ids(r.Messages[i+1], "tool_result", "tool_use_id")
		}
		for _, id := range uses {
			if !slices.Contains(results, id) && i+1 < len(r.Messages) {
				return invalid("messages.%d: `tool_use` ids were found without `tool_result` blocks immediately after: %s. Each `tool_use` block must have a corresponding `tool_result` block in the next message.", i, id)
			}
		}
		var before []string
		if i > 0 {
			before = ids(r.Messages[i-1], "tool_use", "id")
		}
		for _, id := range ids(m, "tool_result", "tool_use_id") {
			if !slices.Contains(before, id) {
				return invalid("messages.%d: unexpected `tool_use_id` found in `tool_result` blocks: %s. Each `tool_result` block must have a corresponding `tool_use` block in the previous message.", i, id)
			}
		}
	}
	return nil
}

func (r *request) checkBreakpoints() *apiError {
	marks := 0
	for _, seg := range r.segments {
		if seg.ttl != "" {
			marks++
		}
	}
	if len(r.CacheControl) > 0 && string(r.CacheControl) != "null" {
		ttl, fail := lifetime("", r.CacheControl)
		if fail != nil {
			return fail
		}
		marks++
		if at := r.lastCacheable(); at >= 0 {
			if own := r.segments[at].ttl; own != "" && own != ttl {
				return invalid("cache_control: the last block already has a different ttl")
			}
			r.segments[at].ttl = ttl
		}
	}
	if marks > 4 {
		return invalid("A maximum of 4 blocks with cache_control may be provided. Found %d.", marks)
	}
	short := false
	for _, seg := range r.segments {
		if seg.ttl == "1h" && short {
			return invalid("%s.cache_control.ttl: a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block", seg.path)
		}
		short = short || seg.ttl == "5m"
	}
	return nil
}

func (r *request) lastCacheable() int {
	for i := len(r.segments) - 1; i >= 0; i-- {
		if !r.segments[i].isThinking() {
			return i
		}
	}
	return -1
}

func (r *request) checkModel(betas []string) *apiError {
	var thinking struct {
		Type    string          `json:"type"`
		Budget  *int            `json:"budget_tokens"`
		Binding json.RawMessage `json:"block_binding"`
	}
	if len(r.Thinking) > 0 && json.Unmarshal(r.Thinking, &thinking) != nil {
		return invalid("thinking: Input should be an object")
	}
	switch {
	case r.facts.adaptive && thinking.Type == "enabled":
		return invalid(`"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive" and "output_config.effort" to control thinking behavior.`)
	case thinking.Type == "enabled" && (thinking.Budget == nil || *thinking.Budget < 1024):
		return invalid("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
	case thinking.Type == "enabled" && r.MaxTokens != nil && *thinking.Budget >= *r.MaxTokens:
		return invalid("`max_tokens` must be greater than `thinking.budget_tokens`.")
	case len(thinking.Binding) > 0 && !slices.Contains(betas, "thinking-binding-controls-2026-08-01"):
		return invalid("thinking.block_binding: Extra inputs are not permitted")
	case r.facts.adaptive && (r.Temperature != nil && *r.Temperature != 1 || r.TopP != nil && *r.TopP != 1 || r.TopK != nil):
		return invalid("temperature, top_p and top_k: non-default values are not supported for this model")
	}
	var choice struct {
		Type string `json:"type"`
	}
	_ = json.Unmarshal(r.ToolChoice, &choice) // absent is fine
	if r.facts.freeTools && (choice.Type == "any" || choice.Type == "tool") {
		return invalid("tool_choice.type: %s is not supported for this model", choice.Type)
	}
	return nil
}

func (r *request) checkLength() *apiError {
	if n := r.tokens(); n > r.facts.window {
		return invalid("prompt is too long: %d tokens > %d maximum", n, r.facts.window)
	}
	return nil
}

func (r *request) tokens() int {
	total := 3
	for _, seg := range r.segments {
		if !seg.dropped {
			total += seg.tokens
		}
	}
	return total
}

// question is the newest text of the user.
func (r *request) question() string {
	for i := len(r.Messages) - 1; i >= 0; i-- {
		if r.Messages[i].Role != "user" {
			continue
		}
		var all []string
		for _, raw := range r.Messages[i].blocks {
			var b struct {
				Type string `json:"type"`
				Text string `json:"text"`
			}
			if json.Unmarshal(raw, &b) == nil && b.Type == "text" {
				all = append(all, b.Text)
			}
		}
		return strings.Join(all, "\n")
	}
	return ""
}

func (s segment) isThinking() bool { return s.kind == "thinking" || s.kind == "redacted_thinking" }
