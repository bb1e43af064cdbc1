package claude

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"claude-memory-backend/internal/conversation"
)

// errMalformed marks what breaks the rules of the stream; the causes behind it never quote the stream.
var errMalformed = errors.New("malformed stream")

// maxAnswerBytes bounds what one answer may send, so that a broken counterpart cannot fill the memory.
const maxAnswerBytes = 32 << 20

// assembler puts an answer together from the events of its stream. It is fed by one goroutine.
type assembler struct {
	sink    func(string)
	started bool // message_start was seen
	ended   bool // message_stop was seen
	open    bool // a first block was opened
	emitted bool // text reached the sink
	size    int

	id         string
	model      string
	stopReason string
	usage      members
	text       strings.Builder
	blocks     []*block
}

// block is one content block in the making: what its start said, and what the deltas add to it.
type block struct {
	index   int
	kind    string
	fields  members
	grown   map[string]*strings.Builder // string fields that deltas extend
	listed  map[string][]json.RawMessage
	partial strings.Builder // input_json_delta
	input   bool            // there was one
	signed  bool
	closed  bool
}

// streamFault is the body of an error event.
type streamFault struct {
	kind string
	code string
	text string // classifies, is never shown
}

func (*streamFault) Error() string { return "the provider ended the stream with an error event" }

// feed takes one event. Unknown events and unknown deltas are no error; broken JSON and broken order are.
func (a *assembler) feed(data []byte) error {
	if a.size += len(data); a.size > maxAnswerBytes {
		return fmt.Errorf("%w: the answer is over %d bytes", errMalformed, maxAnswerBytes)
	}
	var event struct {
		Type    string          `json:"type"`
		Index   *int            `json:"index"`
		Message json.RawMessage `json:"message"`
		Block   json.RawMessage `json:"content_block"`
		Delta   json.RawMessage `json:"delta"`
		Usage   json.RawMessage `json:"usage"`
		Error   json.RawMessage `json:"error"`
	}
	if err := json.Unmarshal(data, &event); err != nil {
		return fmt.Errorf("%w: an event is not JSON", errMalformed)
	}
	switch event.Type {
	case "message_start":
		return a.start(event.Message)
	case "content_block_start":
		return a.openBlock(event.Index, event.Block)
	case "content_block_delta":
		return a.extend(event.Index, event.Delta)
	case "content_block_stop":
		return a.closeBlock(event.Index)
	case "message_delta":
		return a.finish(event.Delta, event.Usage)
	case "message_stop":
		if !a.started {
			return fmt.Errorf("%w: an end without a start", errMalformed)
		}
		a.ended = true
		return nil
	case "error":
		return readFault(event.Error)
	}
	return nil // ping, and whatever the provider invents next
}

func readFault(raw json.RawMessage) error {
	var body struct {
		Type    string `json:"type"`
		Message string `json:"message"`
		Details struct {
			ErrorCode string `json:"error_code"`
		} `json:"details"`
	}
	_ = json.Unmarshal(raw, &body) // an error event that cannot be read is still an error
	return &streamFault{kind: body.Type, code: body.Details.ErrorCode, text: body.Message}
}

func (a *assembler) start(raw json.RawMessage) error {
	var message struct {
		ID      string            `json:"id"`
		Model   string            `json:"model"`
		Content []json.RawMessage `json:"content"`
		Usage   json.RawMessage   `json:"usage"`
	}
	if a.started || json.Unmarshal(raw, &message) != nil {
		return fmt.Errorf("%w: message_start", errMalformed)
	}
	a.started = true
	a.id, a.model = message.ID, message.Model
	return a.count(message.Usage)
}

// count takes a usage object. Later numbers replace earlier ones, they are totals; what a later object leaves out or
// calls null stays.
func (a *assembler) count(raw json.RawMessage) error {
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return nil
	}
	fields, err := parseMembers(raw)
	if err != nil {
		return fmt.Errorf("%w: usage", errMalformed)
	}
	for _, f := range fields {
		if !bytes.Equal(f.value, []byte("null")) || a.usage.find(f.key) == nil {
			a.usage.set(f.key, f.value)
		}
	}
	return nil
}

func (a *assembler) openBlock(index *int, raw json.RawMessage) error {
	if !a.started || index == nil || a.block(*index) != nil {
		return fmt.Errorf("%w: content_block_start out of order", errMalformed)
	}
	fields, err := parseMembers(raw)
	if err != nil {
		return fmt.Errorf("%w: content_block_start", errMalformed)
	}
	b := &block{index: *index, fields: fields, kind: fields.text("type")}
	b.signed = fields.text("signature") != ""
	a.blocks = append(a.blocks, b)
	a.open = true
	if b.kind == "text" {
		a.say(fields.text("text"))
	}
	return nil
}

func (a *assembler) block(index int) *block {
	for i := len(a.blocks) - 1; i >= 0; i-- {
		if a.blocks[i].index == index {
			return a.blocks[i]
		}
	}
	return nil
}

func (a *assembler) extend(index *int, raw json.RawMessage) error {
	if index == nil {
		return fmt.Errorf("%w: a delta without an index", errMalformed)
	}
	b := a.block(*index)
	if b == nil || b.closed {
		return fmt.Errorf("%w: a delta for a block that is not open", errMalformed)
	}
	delta, err := parseMembers(raw)
	if err != nil {
		return fmt.Errorf("%w: a delta", errMalformed)
	}
	switch delta.text("type") {
	case "text_delta":
		piece := delta.text("text")
		b.grow("text", piece)
		if b.kind == "text" {
			a.say(piece)
		}
	case "thinking_delta":
		b.grow("thinking", delta.text("thinking"))
	case "signature_delta":
		b.fields.set("signature", delta.find("signature"))
		b.signed = true
	case "input_json_delta":
		b.input = true
		b.partial.WriteString(delta.text("partial_json"))
	case "citations_delta":
		b.list("citations", delta.find("citation"))
	default:
		b.merge(delta)
	}
	return nil
}

// say hands text on, at the moment it arrives.
func (a *assembler) say(piece string) {
	if piece == "" {
		return
	}
	a.text.WriteString(piece)
	a.emitted = true
	if a.sink != nil {
		a.sink(piece)
	}
}

func (a *assembler) closeBlock(index *int) error {
	if index == nil {
		return fmt.Errorf("%w: a block end without an index", errMalformed)
	}
	b := a.block(*index)
	if b == nil || b.closed {
		return fmt.Errorf("%w: a block ends that is not open", errMalformed)
	}
	if b.input && b.partial.Len() > 0 && !json.Valid([]byte(b.partial.String())) {
		return fmt.Errorf("%w: the input of a tool is not JSON", errMalformed)
	}
	b.closed = true
	return nil
}

func (a *assembler) finish(delta, usage json.RawMessage) error {
	if !a.started {
		return fmt.Errorf("%w: message_delta before the start", errMalformed)
	}
	if len(delta) > 0 && !bytes.Equal(delta, []byte("null")) {
		fields, err := parseMembers(delta)
		if err != nil {
			return fmt.Errorf("%w: message_delta", errMalformed)
		}
		if reason := fields.text("stop_reason"); reason != "" {
			a.stopReason = reason
		}
	}
	return a.count(usage)
}

// grow appends to a string field; builders keep a long answer linear.
func (b *block) grow(key, piece string) {
	if b.grown == nil {
		b.grown = map[string]*strings.Builder{}
	}
	s := b.grown[key]
	if s == nil {
		s = &strings.Builder{}
		s.WriteString(b.fields.text(key))
		b.grown[key] = s
		b.fields.set(key, json.RawMessage(`""`))
	}
	s.WriteString(piece)
}

// list appends to an array field, which the start may have called null.
func (b *block) list(key string, item json.RawMessage) {
	if item == nil {
		return
	}
	if b.listed == nil {
		b.listed = map[string][]json.RawMessage{}
	}
	if _, seen := b.listed[key]; !seen {
		var before []json.RawMessage
		_ = json.Unmarshal(b.fields.find(key), &before) // null or absent: nothing before
		b.listed[key] = before
		b.fields.set(key, json.RawMessage(`[]`))
	}
	b.listed[key] = append(b.listed[key], item)
}

// merge takes a delta of a kind nobody here knows: strings extend strings, lists extend lists, anything else
// replaces. It is the rule that all known deltas follow too.
func (b *block) merge(delta members) {
	for _, f := range delta {
		if f.key == "type" {
			continue
		}
		old := b.fields.find(f.key)
		switch {
		case b.grown[f.key] != nil && isText(f.value), isText(old) && isText(f.value):
			b.grow(f.key, delta.text(f.key))
		case (b.listed[f.key] != nil || isList(old)) && isList(f.value):
			var items []json.RawMessage
			_ = json.Unmarshal(f.value, &items)
			for _, item := range items {
				b.list(f.key, item)
			}
		default:
			delete(b.grown, f.key)
			delete(b.listed, f.key)
			b.fields.set(f.key, f.value)
		}
	}
}

// whole tells whether the block can be sent back to the provider.
func (b *block) whole() bool {
	switch {
	case b.kind == "text":
		return b.closed || len(b.string("text")) > 0
	case b.kind == "thinking":
		return b.closed && b.signed
	default:
		return b.closed
	}
}

func (b *block) string(key string) string {
	if s := b.grown[key]; s != nil {
		return s.String()
	}
	return b.fields.text(key)
}

// raw renders the block: the bytes of its start, with the grown fields in their places.
func (b *block) raw() json.RawMessage {
	fields := append(members(nil), b.fields...)
	for key, s := range b.grown {
		var text bytes.Buffer
		writeString(&text, s.String())
		fields.set(key, text.Bytes())
	}
	for key, items := range b.listed {
		list := append([]byte{'['}, bytes.Join(asBytes(items), []byte{','})...)
		fields.set(key, append(list, ']'))
	}
	if b.input && b.partial.Len() > 0 {
		fields.set("input", json.RawMessage(b.partial.String()))
	}
	return fields.raw()
}

func asBytes(items []json.RawMessage) [][]byte {
	all := make([][]byte, len(items))
	for i, item := range items {
		all[i] = item
	}
	return all
}

// answer renders what has arrived. Blocks of a finished answer are all there; of an unfinished one only those that
// the provider would take back: text as far as it came, everything else only when complete.
func (a *assembler) answer() conversation.Answer {
	out := conversation.Answer{Model: a.model, Text: a.text.String(), StopReason: a.stopReason}
	for _, b := range a.blocks {
		if a.ended || b.whole() {
			out.Blocks = append(out.Blocks, b.raw())
		}
	}
	if len(a.usage) > 0 {
		out.RawUsage = a.usage.raw()
		out.Usage = parseUsage(out.RawUsage).top()
	}
	return out
}

// generated is the output so far, for the estimate of a partial answer: the provider counts only at the end.
func (a *assembler) generated() string {
	var all strings.Builder
	for _, b := range a.blocks {
		all.WriteString(b.string("text"))
		all.WriteString(b.string("thinking"))
		all.WriteString(b.partial.String())
	}
	return all.String()
}
