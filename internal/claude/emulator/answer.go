package emulator

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// answer is what will be said: final blocks, then how it ends.
type answer struct {
	id          string
	model       string
	blocks      []json.RawMessage
	stop        string
	sequence    *string
	details     json.RawMessage
	usage       Usage
	overlay     json.RawMessage // fields laid over the usage
	thinking    int             // tokens of thinking
	transformed []transformation
}

func (s *Server) messages(c *call) *apiError {
	req, fail := s.parse(c, true)
	if fail != nil {
		return fail
	}
	c.script = s.take(c.r, req)
	s.update(c, func(e *Entry) { e.Script = c.script.Name })
	if early := s.refuse(c); early != nil || c.script.Fault.Kind == WebPage || c.script.Fault.Kind == Redirect {
		return early
	}
	out, p, fail := s.compose(c, req)
	if fail != nil {
		return fail
	}
	s.update(c, func(e *Entry) { e.Usage = out.usage })
	if c.script.Fault.Kind == Reset && c.script.Fault.AfterPieces < 0 {
		hangUp(c.w)
		return nil
	}
	if !req.Stream {
		s.commit(p)
		c.reply(json.RawMessage(out.message()))
		return nil
	}
	s.stream(c, out, p)
	return nil
}

// refuse plays the faults that need no answer.
func (s *Server) refuse(c *call) *apiError {
	switch f := c.script.Fault; f.Kind {
	case Refuse:
		return f.refusal()
	case WebPage:
		c.w.Header().Set("content-type", "text/html")
		_, _ = c.w.Write([]byte("<html><body>Welcome to the gateway</body></html>"))
	case Redirect:
		c.w.Header().Set("location", f.Message)
		c.w.WriteHeader(307)
		s.update(c, func(e *Entry) { e.Status = 307 })
	}
	return nil
}

// compose decides what to say and what it costs.
func (s *Server) compose(c *call, req *request) (*answer, plan, *apiError) {
	transformed, fail := s.checkThinking(req)
	if fail != nil {
		return nil, plan{}, fail
	}
	p := s.planCache(c.workspace, req)
	if fail := s.charge(c, req.facts, p.usage.InputTokens+p.usage.CacheCreationInputTokens); fail != nil {
		return nil, plan{}, fail
	}
	out := &answer{id: s.next("msg_01"), model: req.Model, stop: "end_turn", usage: p.usage, overlay: c.script.Usage,
		transformed: transformed}
	if c.script.AnswerAs != "" {
		out.model = c.script.AnswerAs
	}
	out.blocks = s.say(c.script, req)
	out.limit(req)
	if c.script.StopReason != "" {
		out.stop, out.details = c.script.StopReason, c.script.StopDetails
	}
	for _, raw := range out.blocks {
		n := req.facts.countBlock(raw)
		out.usage.OutputTokens += n
		if kind(raw) == "thinking" {
			out.thinking += n
		}
	}
	out.usage.OutputTokens = max(1, out.usage.OutputTokens)
	s.chargeOutput(c, req.facts, out.usage.OutputTokens)
	return out, p, nil
}

// say makes the blocks of the answer.
func (s *Server) say(script *Script, req *request) []json.RawMessage {
	link := req.lastLink()
	signed := func(raw json.RawMessage) json.RawMessage {
		var b struct{ Type, Thinking, Signature, Data string }
		_ = json.Unmarshal(raw, &b) // the test's own block
		switch {
		case b.Type == "thinking" && b.Signature == "":
			sig := s.sign(req, b.Thinking, link)
			link = []byte(sig)
			raw = block("type", "thinking", "thinking", b.Thinking, "signature", sig)
		case b.Type == "redacted_thinking" && b.Data == "":
			sig := s.sign(req, "", link)
			raw = block("type", "redacted_thinking", "data", sig)
		default:
			return raw
		}
		link = decodeLink(raw)
		return raw
	}
	if len(script.Blocks) > 0 {
		var out []json.RawMessage
		for _, raw := range script.Blocks {
			out = append(out, signed(raw))
		}
		return out
	}
	var out []json.RawMessage
	var thinking struct{ Type, Display string }
	_ = json.Unmarshal(req.Thinking, &thinking) // absent is fine
	if script.Thinking != "" || thinking.Type == "adaptive" || thinking.Type == "enabled" {
		text := script.Thinking
		if text == "" && thinking.Display == "summarized" {
			text = "The question is read, an answer is prepared."
		}
		out = append(out, signed(block("type", "thinking", "thinking", text, "signature", "")))
	}
	text := script.Text
	if text == "" && script.StopReason != "refusal" {
		text = Echo(req.question())
	}
	if text != "" {
		out = append(out, block("type", "text", "text", text))
	}
	return out
}

func decodeLink(raw json.RawMessage) []byte {
	r := request{segments: []segment{{kind: kind(raw), raw: raw}}}
	return r.lastLink()
}

// Echo is the answer to a question for which there is no script: longer than the question, and the same every time.
func Echo(question string) string {
	if question == "" {
		question = "nothing"
	}
	return "You said: " + question + "\n\nThat was the question, repeated by an emulator: naïve, 正直, and always the same."
}

// block writes a block with its fields in the given order.
func block(pairs ...string) json.RawMessage {
	b := []byte{'{'}
	for pair := range slices.Chunk(pairs, 2) {
		if len(b) > 1 {
			b = append(b, ',')
		}
		key, _ := json.Marshal(pair[0])
		value := quote(pair[1])
		b = append(append(append(b, key...), ':'), value...)
	}
	return append(b, '}')
}

func quote(text string) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(text) // a string always encodes
	return bytes.TrimRight(b.Bytes(), "\n")
}

func kind(raw json.RawMessage) string {
	var b struct{ Type string }
	_ = json.Unmarshal(raw, &b) // of no kind then
	return b.Type
}

// limit cuts the answer at a stop sequence, at max_tokens, and at the end of the window.
func (a *answer) limit(req *request) {
	room, stop := *req.MaxTokens, "max_tokens"
	if left := req.facts.window - req.tokens(); left < room {
		room, stop = left, "model_context_window_exceeded"
	}
	for i, raw := range a.blocks {
		if kind(raw) == "text" {
			var b struct{ Text string }
			_ = json.Unmarshal(raw, &b) // of type text
			for _, sequence := range req.StopSequences {
				if before, _, found := strings.Cut(b.Text, sequence); found {
					b.Text, raw = before, block("type", "text", "text", before)
					a.blocks, a.stop, a.sequence = append(a.blocks[:i:i], raw), "stop_sequence", &sequence
					break
				}
			}
		}
		n := req.facts.countBlock(raw)
		if n <= room {
			room -= n
			if a.sequence != nil {
				return
			}
			continue
		}
		a.stop, a.sequence = stop, nil
		a.blocks = a.blocks[:i:i]
		if kind(raw) == "text" && room > 0 {
			var b struct{ Text string }
			_ = json.Unmarshal(raw, &b) // of type text
			if text := req.facts.cut(b.Text, room); text != "" {
				a.blocks = append(a.blocks, block("type", "text", "text", text))
			}
		}
		return
	}
}

// usageJSON is the usage object; the details of the output come only at the end of an answer.
func (a *answer) usageJSON(output int, final bool) json.RawMessage {
	u := a.usage
	u.OutputTokens = output
	raw, _ := json.Marshal(u)
	var fields map[string]json.RawMessage
	_ = json.Unmarshal(raw, &fields) // made a line above
	if final {
		fields["output_tokens_details"], _ = json.Marshal(map[string]int{"thinking_tokens": a.thinking})
		_ = json.Unmarshal(a.overlay, &fields) // nothing to lay over is fine
	}
	out, _ := json.Marshal(fields)
	return out
}

func (a *answer) fields() map[string]any {
	f := map[string]any{"id": a.id, "type": "message", "role": "assistant", "model": a.model, "container": nil,
		"content": []json.RawMessage{}, "stop_reason": nil, "stop_sequence": nil, "stop_details": nil}
	if len(a.transformed) > 0 {
		f["input_transformations"] = a.transformed
	}
	return f
}

// message is the answer in one piece.
func (a *answer) message() []byte {
	f := a.fields()
	if a.blocks != nil {
		f["content"] = a.blocks
	}
	f["stop_reason"], f["stop_sequence"], f["usage"] = a.stop, a.sequence, a.usageJSON(a.usage.OutputTokens, true)
	if a.details != nil {
		f["stop_details"] = a.details
	}
	raw, _ := json.Marshal(f)
	return raw
}

// createBatch answers a batch at once; only its form is emulated.
func (s *Server) createBatch(c *call) *apiError {
	var body struct {
		Requests []struct {
			ID     string          `json:"custom_id"`
			Params json.RawMessage `json:"params"`
		} `json:"requests"`
	}
	if json.Unmarshal(c.body, &body) != nil || len(body.Requests) == 0 {
		return invalid("requests: at least one request is required")
	}
	var results []json.RawMessage
	for _, one := range body.Requests {
		inner := *c
		inner.body, inner.script = one.Params, &Script{}
		result := map[string]any{}
		req, fail := s.parse(&inner, true)
		if fail == nil {
			var out *answer
			if out, _, fail = s.compose(&inner, req); fail == nil {
				result["type"], result["message"] = "succeeded", json.RawMessage(out.message())
			}
		}
		if fail != nil {
			result["type"], result["error"] = "errored", json.RawMessage(fail.body(c.id))
		}
		line, _ := json.Marshal(map[string]any{"custom_id": one.ID, "result": result})
		results = append(results, line)
	}
	id := s.next("msgbatch_01")
	s.mu.Lock()
	s.batches[id] = results
	s.mu.Unlock()
	c.reply(s.batch(id, len(results)))
	return nil
}

func (s *Server) batch(id string, n int) map[string]any {
	now := s.opts.Now().UTC().Format(time.RFC3339)
	return map[string]any{"id": id, "type": "message_batch", "processing_status": "ended", "created_at": now,
		"ended_at": now, "expires_at": now, "archived_at": nil, "cancel_initiated_at": nil,
		"results_url":    "/v1/messages/batches/" + id + "/results",
		"request_counts": map[string]int{"processing": 0, "succeeded": n, "errored": 0, "canceled": 0, "expired": 0}}
}

func (s *Server) batchOf(c *call) ([]json.RawMessage, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	results, ok := s.batches[c.r.PathValue("id")]
	return results, ok
}

func (s *Server) findBatch(c *call) *apiError {
	results, ok := s.batchOf(c)
	if !ok {
		return notFound("message batch not found")
	}
	c.reply(s.batch(c.r.PathValue("id"), len(results)))
	return nil
}

func (s *Server) batchResults(c *call) *apiError {
	results, ok := s.batchOf(c)
	if !ok {
		return notFound("message batch not found")
	}
	c.w.Header().Set("content-type", "application/x-jsonl")
	for _, line := range results {
		_, _ = c.w.Write(append(line, '\n'))
	}
	return nil
}
