package emulator

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// wire writes one stream. Its padding and its piece lengths look random and are the same every time.
type wire struct {
	c      *call
	opts   Options
	flush  func() error
	ctx    context.Context
	events int
	pieces int
	delay  time.Duration
	over   bool // a fault has ended the stream
}

func (s *Server) stream(c *call, out *answer, p plan) {
	w := &wire{c: c, opts: s.opts, flush: http.NewResponseController(c.w).Flush, ctx: c.r.Context(),
		delay: s.opts.PieceDelay}
	if c.script.PieceDelay > 0 {
		w.delay = c.script.PieceDelay
	}
	first := s.opts.FirstDelay
	if c.script.FirstDelay > 0 {
		first = c.script.FirstDelay
	}
	h := c.w.Header()
	h.Set("content-type", "text/event-stream; charset=utf-8")
	h.Set("cache-control", "no-cache")
	c.w.WriteHeader(http.StatusOK)
	_ = w.flush() // a recorder has nothing to flush
	if !w.wait(first) {
		return
	}
	if c.script.Raw != "" {
		_, _ = c.w.Write([]byte(c.script.Raw))
		return
	}
	if w.faultAt(-1); w.over {
		return
	}
	start := out.fields()
	start["usage"] = out.usageJSON(1, false)
	s.commit(p)
	w.event("message_start", map[string]any{"type": "message_start", "message": start})
	for i, raw := range out.blocks {
		w.block(i, raw)
		if w.over {
			return
		}
	}
	if w.faultAt(w.pieces); w.over {
		return
	}
	fault := c.script.Fault
	if fault.Kind == Cut || fault.Kind == ErrorEvent || fault.Kind == HalfEvent || fault.Kind == Stall || fault.Kind == Reset || fault.Kind == NotJSON {
		w.fault() // it was to come later than the answer is long
		return
	}
	delta := map[string]any{"stop_reason": out.stop, "stop_sequence": out.sequence}
	if out.details != nil {
		delta["stop_details"] = out.details
	}
	w.event("message_delta", map[string]any{"type": "message_delta", "delta": delta,
		"usage": out.usageJSON(out.usage.OutputTokens, true)})
	if fault.Kind == NoLastBlank {
		_, _ = fmt.Fprint(c.w, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n")
		return
	}
	w.event("message_stop", map[string]any{"type": "message_stop"})
}

func (w *wire) wait(d time.Duration) bool {
	if d <= 0 {
		return w.ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-w.ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// event writes one event with the padding that the real service puts before the last brace.
func (w *wire) event(name string, v any) {
	data, _ := json.Marshal(v)
	w.events++
	if !w.opts.Quiet {
		padding := bytes.Repeat([]byte{' '}, w.events*7%11)
		data = append(append(data[:len(data)-1:len(data)-1], padding...), '}')
	}
	_, _ = fmt.Fprintf(w.c.w, "event: %s\ndata: %s\n\n", name, data)
	_ = w.flush()
}

func (w *wire) ping() {
	if !w.opts.Quiet {
		_, _ = fmt.Fprint(w.c.w, "event: ping\ndata: {\"type\": \"ping\"}\n\n")
		_ = w.flush()
	}
}

// delta writes one delta, unless a fault is due at this place.
func (w *wire) delta(index int, fields map[string]any) {
	if w.faultAt(w.pieces); w.over {
		return
	}
	if w.pieces > 0 && !w.wait(w.delay) {
		w.over = true
		return
	}
	w.pieces++
	if w.pieces%10 == 0 {
		w.ping()
	}
	w.event("content_block_delta", map[string]any{"type": "content_block_delta", "index": index, "delta": fields})
}

// block writes one block: what streams piece by piece starts empty, everything else comes whole with its start.
func (w *wire) block(index int, raw json.RawMessage) {
	var fields map[string]json.RawMessage
	_ = json.Unmarshal(raw, &fields) // a test's block; of no known kind if it is none
	text := func(key string) (s string) {
		_ = json.Unmarshal(fields[key], &s) // absent is empty
		return s
	}
	emptied := func(pairs ...string) json.RawMessage {
		start := withoutField(raw, "citations")
		for i := 0; i < len(pairs); i += 2 {
			start = replaceField(start, pairs[i], pairs[i+1])
		}
		return start
	}
	begin := func(start json.RawMessage) {
		w.event("content_block_start", map[string]any{"type": "content_block_start", "index": index, "content_block": start})
		if index == 0 {
			w.ping()
		}
	}
	strange := w.c.script.Fault.Kind == Unknown
	switch kind(raw) {
	case "text":
		begin(emptied("text", `""`))
		for _, piece := range w.split(text("text")) {
			w.delta(index, map[string]any{"type": "text_delta", "text": piece})
		}
		var citations []json.RawMessage
		_ = json.Unmarshal(fields["citations"], &citations) // none is fine
		for _, citation := range citations {
			w.delta(index, map[string]any{"type": "citations_delta", "citation": citation})
		}
	case "thinking":
		begin(emptied("thinking", `""`, "signature", `""`))
		for _, piece := range w.split(text("thinking")) {
			w.delta(index, map[string]any{"type": "thinking_delta", "thinking": piece})
		}
		w.delta(index, map[string]any{"type": "signature_delta", "signature": text("signature")})
	case "tool_use", "server_tool_use":
		begin(emptied("input", `{}`))
		w.delta(index, map[string]any{"type": "input_json_delta", "partial_json": ""})
		if input := string(fields["input"]); input != "" && input != "{}" {
			for _, piece := range w.split(input) {
				w.delta(index, map[string]any{"type": "input_json_delta", "partial_json": piece})
			}
		}
	default:
		begin(raw)
	}
	if strange && !w.over {
		w.event("content_block_delta", map[string]any{"type": "content_block_delta", "index": index,
			"delta": map[string]any{"type": "mood_delta", "mood": "calm"}})
		w.event("weather_report", map[string]any{"type": "weather_report", "sky": "blue"})
	}
	if !w.over {
		w.event("content_block_stop", map[string]any{"type": "content_block_stop", "index": index})
	}
}

// split cuts text into short pieces, of many lengths unless they are to be even, within words but never within a character.
func (w *wire) split(text string) []string {
	var out []string
	runes := []rune(text)
	for i := 0; len(runes) > 0; i++ {
		n := 1 + (i*5+2)%w.opts.PieceRunes
		if w.opts.Even {
			n = w.opts.PieceRunes
		}
		n = min(n, len(runes))
		out = append(out, string(runes[:n]))
		runes = runes[n:]
	}
	return out
}

// faultAt plays the script's fault if it is due after this many deltas.
func (w *wire) faultAt(pieces int) {
	if f := w.c.script.Fault; f.AfterPieces == pieces {
		w.fault()
	}
}

func (w *wire) fault() {
	f := w.c.script.Fault
	switch f.Kind {
	case ErrorEvent:
		kind, text := f.Type, f.Message
		if kind == "" {
			kind, text = "overloaded_error", "Overloaded"
		}
		w.event("error", map[string]any{"type": "error", "error": map[string]any{"type": kind, "message": text}})
	case Cut:
	case HalfEvent:
		_, _ = fmt.Fprint(w.c.w, `event: content_block_delta`+"\n"+`data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","te`)
	case Reset:
		w.over = true
		hangUp(w.c.w)
		return // the connection is gone, there is nothing to flush
	case Stall:
		<-w.ctx.Done()
	case NotJSON:
		_, _ = fmt.Fprint(w.c.w, "event: content_block_delta\ndata: "+strings.Repeat("oops ", 3)+"\n\n")
		_, _ = fmt.Fprint(w.c.w, ": and more\n\n")
	default:
		return
	}
	_ = w.flush()
	w.over = true
}

// hangUp resets the connection: no end of the body, no farewell.
func hangUp(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // HTTP/2 and in-memory connections have no other way
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}
