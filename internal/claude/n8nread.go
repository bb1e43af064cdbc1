package claude

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"claude-memory-backend/internal/conversation"
)

// errTooMuch ends the reading of an answer that is over its bound.
var errTooMuch = errors.New("over the bound")

// watchedBody bounds a response body and puts off the idle deadline with every read.
type watchedBody struct {
	r           io.Reader
	left        int64
	idle        *time.Timer
	idleTimeout time.Duration
}

func (b *watchedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errTooMuch
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1] // one byte more than allowed tells an answer at the bound from one over it
	}
	n, err := b.r.Read(p)
	b.idle.Reset(b.idleTimeout)
	b.left -= int64(n)
	if b.left < 0 {
		return n - 1, errTooMuch
	}
	return n, err
}

// n8nReader reads one answer of a workflow, buffered or streamed.
type n8nReader struct {
	body      io.Reader
	wanted    string // conversation id; an answer that names another one is refused
	sink      func(string)
	sinceFunc func() time.Duration

	text  strings.Builder
	first time.Duration
}

// say passes a piece of text on.
func (r *n8nReader) say(text string) {
	if text == "" {
		return
	}
	r.mark()
	r.text.WriteString(text)
	r.sink(text)
}

func (r *n8nReader) mark() {
	if r.first == 0 {
		r.first = r.sinceFunc()
	}
}

// said is what arrived so far as an answer.
func (r *n8nReader) said() conversation.Answer {
	a := conversation.Answer{Text: r.text.String(), FirstToken: r.first}
	if a.Text != "" {
		a.Blocks = []json.RawMessage{saidBlock(a.Text)}
	}
	return a
}

// read decides what kind of answer has come by looking at it: n8n labels buffered and streamed ones alike.
func (r *n8nReader) read(status int, h http.Header) (conversation.Answer, error) {
	in := bufio.NewReader(r.body)
	if status == http.StatusAccepted { // whatever it says besides
		return conversation.Answer{Later: true}, nil
	}
	if status < 200 || status > 299 {
		return conversation.Answer{}, r.refused(status, h, in)
	}
	begin, err := firstByte(in)
	if errors.Is(err, io.EOF) {
		return conversation.Answer{}, malformed("n8n answered with an empty body; the workflow must end in a node that responds")
	}
	if err != nil {
		return conversation.Answer{}, err
	}
	if begin != '{' && begin != '[' && begin != '"' {
		return r.plain(in)
	}
	dec := json.NewDecoder(in)
	value, err := nextValue(dec)
	if err != nil {
		return conversation.Answer{}, err
	}
	if chunk, ok := asChunk(value); ok {
		return r.stream(dec, chunk)
	}
	if err := atEnd(dec); err != nil {
		return conversation.Answer{}, err
	}
	if accepted(value) {
		return conversation.Answer{Later: true}, nil
	}
	return r.buffered(value)
}

// whole reads an answer that is one JSON value.
func (r *n8nReader) whole() (conversation.Answer, error) {
	dec := json.NewDecoder(r.body)
	value, err := nextValue(dec)
	if err == nil {
		err = atEnd(dec)
	}
	if err != nil {
		return conversation.Answer{}, err
	}
	return r.buffered(value)
}

// atEnd makes sure that nothing follows a value.
func atEnd(dec *json.Decoder) error {
	switch _, err := nextValue(dec); {
	case err == nil:
		return malformed("the workflow answered with more than one JSON value")
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

// accepted reports whether a body is the promise of a later answer, {"status": "accepted"}, bare or as the one item of a list.
func accepted(value json.RawMessage) bool {
	var items []json.RawMessage
	if json.Unmarshal(value, &items) == nil && len(items) == 1 {
		value = items[0]
	}
	m := asObject(value)
	for _, name := range []string{"content", "message", "text", "output", "json", "body", "error", "type"} {
		if !isNull(m[name]) {
			return false
		}
	}
	return word(m["status"]) == "accepted"
}

// firstByte skips white space and a byte order mark and shows what comes then.
func firstByte(in *bufio.Reader) (byte, error) {
	if mark, err := in.Peek(3); err == nil && string(mark) == "\xef\xbb\xbf" {
		_, _ = in.Discard(3) // Peek has buffered them
	}
	for {
		b, err := in.ReadByte()
		if err != nil {
			return 0, err
		}
		if b != ' ' && b != '\t' && b != '\r' && b != '\n' {
			return b, in.UnreadByte()
		}
	}
}

// nextValue reads one JSON value. It returns io.EOF only at a clean end, and a fault for what is no JSON.
func nextValue(dec *json.Decoder) (json.RawMessage, error) {
	var value json.RawMessage
	err := dec.Decode(&value)
	if _, bad := errors.AsType[*json.SyntaxError](err); bad {
		return nil, malformed("the workflow's answer is not JSON").With(errors.New("syntax error"))
	}
	if err == nil && !utf8.Valid(value) {
		return nil, malformed("the workflow's answer is not UTF-8")
	}
	return value, err
}

// chunk is one line of a streamed answer.
type chunk struct {
	Type    string          `json:"type"`
	Content json.RawMessage `json:"content"`
	Error   json.RawMessage `json:"error"`
}

// asChunk tells a line of a stream from a buffered answer. The provider's own error body has the type "error" too,
// but an "error" object where a line has "content".
func asChunk(value json.RawMessage) (chunk, bool) {
	var c chunk
	if json.Unmarshal(value, &c) != nil {
		return c, false
	}
	switch c.Type {
	case "begin", "item", "end":
		return c, true
	case "error":
		return c, c.Error == nil
	}
	return c, false
}

// stream reads lines to the end of the body: several nodes may stream one after the other or one within the other,
// each between its own begin and end, so that an end alone does not mean that all was said.
func (r *n8nReader) stream(dec *json.Decoder, c chunk) (conversation.Answer, error) {
	open, ended := 0, false
	for {
		switch c.Type {
		case "begin":
			open++
		case "end":
			open, ended = max(open-1, 0), true
		case "item":
			if err := r.item(c.Content); err != nil {
				return r.said(), err
			}
		case "error":
			return r.said(), lineFault(c)
		}
		value, err := nextValue(dec)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return r.said(), err
		}
		c = chunk{}
		if json.Unmarshal(value, &c) != nil {
			return r.said(), malformed("a line of the workflow's stream is no object with a type")
		}
	}
	a := r.said()
	if !ended || open > 0 {
		return a, n8nFault(conversation.CodeProviderCut, "the workflow's answer ended before its end")
	}
	if a.Text == "" {
		return a, malformed("the workflow streamed no text")
	}
	a.StopReason = "end_turn" // n8n has no word for it in this mode
	return a, nil
}

// item passes on the content of one line: a text, or what a Respond node was given to send as JSON.
func (r *n8nReader) item(content json.RawMessage) error {
	if isNull(content) {
		return nil
	}
	var text string
	if json.Unmarshal(content, &text) == nil {
		r.say(text)
		return nil
	}
	s, err := r.interpret(content, 0)
	if err != nil {
		return err
	}
	r.say(s.text())
	return nil
}

func lineFault(c chunk) error {
	words := string(c.Content)
	if kind, text, _ := findError(c.Content, 0); kind != "" || text != "" {
		if kinds[kind] != 0 {
			return relayedFault(kinds[kind], kind, text)
		}
		words = text
	}
	if f := wordFault(words); f != nil {
		return f
	}
	return n8nFault(conversation.CodeProviderFailed, "the workflow failed; see its executions in n8n")
}

// plain takes a body that is no JSON for the answer itself, as a Respond node in text mode sends it.
func (r *n8nReader) plain(in io.Reader) (conversation.Answer, error) {
	raw, err := io.ReadAll(in)
	if err != nil {
		return conversation.Answer{}, err
	}
	text := strings.TrimSpace(string(raw))
	switch {
	case !utf8.ValidString(text):
		return conversation.Answer{}, malformed("the workflow's answer is not UTF-8")
	case isPage(text):
		return conversation.Answer{}, malformed("a web page answered instead of the workflow; check the webhook address")
	case text == "null":
		return conversation.Answer{}, malformed("the workflow answered with nothing")
	}
	r.say(text)
	a := r.said()
	a.StopReason = "end_turn"
	return a, nil
}

// isPage tells the page of somebody else, such as a proxy that asks to sign in, from an answer. Its content type does not: n8n
// sends plain text as text/html, too.
func isPage(text string) bool {
	begin := strings.ToLower(text[:min(len(text), 1024)])
	if !strings.HasPrefix(begin, "<") {
		return false
	}
	return strings.HasPrefix(begin, "<head") || strings.Contains(begin, "<!doctype html") || strings.Contains(begin, "<html")
}

// buffered turns a whole JSON answer into an Answer.
func (r *n8nReader) buffered(value json.RawMessage) (conversation.Answer, error) {
	s, err := r.interpret(value, 0)
	if err != nil {
		return conversation.Answer{}, err
	}
	if len(s.blocks) == 0 && s.stopReason == "" {
		return conversation.Answer{}, malformed("the workflow answered with nothing")
	}
	r.mark()
	r.say(s.text())
	a := conversation.Answer{Model: s.model, Blocks: s.blocks, Text: r.text.String(), StopReason: s.stopReason,
		FirstToken: r.first, RequestID: shortID(s.requestID)}
	if a.StopReason == "" {
		a.StopReason = "end_turn"
	}
	var usage conversation.Usage
	if s.usage != nil && json.Unmarshal(s.usage, &usage) == nil && plausible(usage) {
		a.Usage, a.RawUsage = usage, s.usage
	}
	return a, nil
}

// plausible refuses counts that would credit an account.
func plausible(u conversation.Usage) bool {
	const most = 1 << 40
	for _, n := range []int64{u.InputTokens, u.OutputTokens, u.CacheReadInputTokens, u.CacheCreationInputTokens} {
		if n < 0 || n > most {
			return false
		}
	}
	return true
}

// refused classifies a response with a status other than 2xx. Whether the workflow relays its provider's status or
// n8n itself refuses shows in the body.
func (r *n8nReader) refused(status int, h http.Header, in io.Reader) error {
	raw, _ := io.ReadAll(io.LimitReader(in, 256<<10)) // what cannot be read says no less than its status
	after := retryHint(h, time.Now())
	m := asObject(raw)
	if _, ok := m["ok"]; !ok && m["error"] == nil {
		return n8nStatus(status).RetryAfter(after)
	}
	return objectFault(m, raw, status, after)
}

// shape is what interpret found in an answer.
type shape struct {
	blocks                       []json.RawMessage
	model, stopReason, requestID string
	usage                        json.RawMessage
}

func (s shape) text() string {
	var b strings.Builder
	for _, raw := range s.blocks {
		var block struct{ Type, Text string }
		if json.Unmarshal(raw, &block) == nil && block.Type == "text" {
			b.WriteString(block.Text)
		}
	}
	return b.String()
}

// interpret understands the shapes that workflows answer with; deploy/n8n/README.md lists them.
func (r *n8nReader) interpret(value json.RawMessage, depth int) (shape, error) {
	const deepest = 5
	unknown := malformed("the workflow's answer has no shape that is known; see deploy/n8n/README.md")
	if depth > deepest || isNull(value) {
		return shape{}, unknown
	}
	switch bytes.TrimSpace(value)[0] {
	case '"':
		var text string
		if json.Unmarshal(value, &text) != nil {
			return shape{}, unknown
		}
		return textShape(text), nil
	case '[':
		return r.array(value, depth, unknown)
	case '{':
		return r.object(value, depth, unknown)
	}
	return shape{}, unknown
}

func textShape(text string) shape {
	if text == "" {
		return shape{}
	}
	return shape{blocks: []json.RawMessage{saidBlock(text)}}
}

// array is either a list of content blocks, or the list of one item that n8n makes of everything.
func (r *n8nReader) array(value json.RawMessage, depth int, unknown error) (shape, error) {
	var items []json.RawMessage
	if json.Unmarshal(value, &items) != nil {
		return shape{}, unknown
	}
	if blocks, ok := asBlocks(items); ok {
		return shape{blocks: blocks}, nil
	}
	if len(items) != 1 {
		return shape{}, unknown
	}
	return r.interpret(items[0], depth+1)
}

// asBlocks accepts content blocks of any type, since later types must survive, but nothing that is an envelope.
func asBlocks(items []json.RawMessage) ([]json.RawMessage, bool) {
	for _, item := range items {
		m := asObject(item)
		switch kind := word(m["type"]); kind {
		case "", "message", "error", "begin", "item", "end":
			return nil, false
		case "text":
			var text *string
			if json.Unmarshal(m["text"], &text) != nil || text == nil {
				return nil, false
			}
		}
	}
	return items, len(items) > 0
}

func (r *n8nReader) object(value json.RawMessage, depth int, unknown error) (shape, error) {
	m := asObject(value)
	if id := word(m["conversation_id"]); id != "" && r.wanted != "" && id != r.wanted {
		// A workflow that mixes up its items would show one person another one's answer.
		return shape{}, malformed("the workflow answered for another conversation")
	}
	if failed(m) {
		return shape{}, objectFault(m, value, 0, 0)
	}
	s, err := r.content(m, depth, unknown)
	if err != nil {
		return shape{}, err
	}
	fill(&s.model, word(m["model"]))
	fill(&s.stopReason, word(m["stop_reason"]))
	if id := word(m["request_id"]); id != "" {
		s.requestID = id // the provider's own id of the call is worth more than the message's
	} else if word(m["type"]) == "message" {
		fill(&s.requestID, word(m["id"]))
	}
	if s.usage == nil && asObject(m["usage"]) != nil {
		s.usage = m["usage"]
	}
	return s, nil
}

// content finds where in an object the answer is.
func (r *n8nReader) content(m map[string]json.RawMessage, depth int, unknown error) (shape, error) {
	if raw := m["content"]; !isNull(raw) {
		var items []json.RawMessage
		if json.Unmarshal(raw, &items) == nil {
			blocks, ok := asBlocks(items)
			if !ok && len(items) > 0 {
				return shape{}, malformed("the workflow's answer has content blocks that are none")
			}
			return shape{blocks: blocks}, nil
		}
		return r.interpret(raw, depth+1)
	}
	// The text of a "message" is n8n's own voice ("Workflow was started") unless the workflow says that all is well.
	if raw := m["message"]; !isNull(raw) {
		if word(raw) == "" || string(m["ok"]) == "true" {
			return r.interpret(raw, depth+1)
		}
		if len(m) == 1 {
			return shape{}, malformed("n8n did not wait for the workflow; let the webhook respond through its Respond node, or stream")
		}
	}
	for _, name := range []string{"text", "output", "json", "body"} {
		if raw := m[name]; !isNull(raw) {
			return r.interpret(raw, depth+1)
		}
	}
	return shape{}, unknown
}

// failed reports whether an object under a good HTTP status tells of a failure.
func failed(m map[string]json.RawMessage) bool {
	if string(m["ok"]) == "false" || word(m["type"]) == "error" || statusIn(m) >= 400 {
		return true
	}
	switch string(m["error"]) {
	case "", "null", "false", `""`, "{}":
		return false
	}
	return true
}

// objectFault classifies a failure that the workflow's answer describes: by the provider's error type, else by known
// words, else by the status that it repeats, else by the response's own.
func objectFault(m map[string]json.RawMessage, raw json.RawMessage, status int, after time.Duration) error {
	kind, text, nested := findError(raw, 0)
	if s := statusIn(m); s >= 400 {
		status = s
	} else if nested >= 400 {
		status = nested
	}
	if d := retryAfterJSON(m["retry_after"], time.Now()); d > 0 {
		after = d
	}
	f := wordFault(text)
	switch {
	case kinds[kind] != 0:
		f = relayedFault(kinds[kind], kind, text)
	case f == nil:
		f = relayedFault(status, kind, text)
	}
	return f.RetryAfter(after)
}

// findError looks through the envelopes of a failed answer for the innermost error's type, text and status.
func findError(raw json.RawMessage, depth int) (kind, text string, status int) {
	const deepest = 6
	if depth > deepest || isNull(raw) {
		return "", "", 0
	}
	if s := word(raw); s != "" {
		return "", s, 0
	}
	m := asObject(raw)
	if m == nil {
		return "", "", 0
	}
	for _, name := range []string{"error", "message", "body", "json", "cause"} {
		k, t, s := findError(m[name], depth+1)
		if kind == "" && k != "" {
			kind, text = k, t
		}
		if text == "" {
			text = t
		}
		if status == 0 {
			status = s
		}
	}
	if t := word(m["type"]); kind == "" && t != "error" {
		kind = t
	}
	if status == 0 {
		status = statusIn(m)
	}
	return kind, text, status
}

// statusIn reads the status that an object repeats, under the names that n8n's nodes and our workflows use; n8n's own
// errors hold it as text.
func statusIn(m map[string]json.RawMessage) int {
	for _, name := range []string{"status", "statusCode", "httpCode"} {
		var status int
		if _, err := fmt.Sscanf(strings.Trim(string(m[name]), `"`), "%d", &status); err == nil && status >= 100 && status <= 599 {
			return status
		}
	}
	return 0
}

func asObject(raw json.RawMessage) map[string]json.RawMessage {
	var m map[string]json.RawMessage
	if json.Unmarshal(raw, &m) != nil {
		return nil
	}
	return m
}

// word returns a JSON string's value, and nothing for any other value.
func word(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

func isNull(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

func fill(to *string, value string) {
	if *to == "" {
		*to = value
	}
}
