package claude

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"

	"claude-memory-backend/internal/conversation"
)

// maxBreakpoints is the provider's limit on cache_control marks in one request.
const maxBreakpoints = 4

var cacheControl = []byte(`"cache_control":{"type":"ephemeral"}`)

// request is one call as it goes over the wire.
type request struct {
	body  []byte
	betas []string
}

// buildRequest writes the body by hand. The blocks of the prompt are copied as the bytes they are: encoding them
// through Go values would reorder keys and lose unknown fields, which breaks thinking signatures and the prompt cache.
// messages comes last, so that a longer conversation has a longer body with the same beginning.
func buildRequest(p conversation.Prompt, model string, maxTokens int) (request, error) {
	var r request
	set := decodeSettings(p.Settings)
	var b bytes.Buffer
	b.Grow(len(p.System) + 64*len(p.Messages) + 512)
	b.WriteString(`{"model":`)
	writeString(&b, model)
	b.WriteString(`,"max_tokens":`)
	b.WriteString(strconv.Itoa(maxTokens))
	b.WriteString(`,"stream":true`)
	if p.Account != "" {
		b.WriteString(`,"metadata":{"user_id":`)
		writeString(&b, p.Account)
		b.WriteString(`}`)
	}
	r.betas = set.write(&b)

	systemMark, marks := placeMarks(p)
	if p.System != "" {
		b.WriteString(`,"system":[{"type":"text","text":`)
		writeString(&b, p.System)
		if systemMark {
			b.WriteByte(',')
			b.Write(cacheControl)
		}
		b.WriteString(`}]`)
	}
	b.WriteString(`,"messages":[`)
	for i, m := range p.Messages {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(`{"role":`)
		writeString(&b, m.Role)
		b.WriteString(`,"content":[`)
		for j, block := range m.Blocks {
			if j > 0 {
				b.WriteByte(',')
			}
			if !isObject(block) {
				return r, errors.New("a stored content block is not a JSON object")
			}
			if at, ok := marks[i]; ok && at == j {
				writeMarked(&b, block)
				continue
			}
			b.Write(block)
		}
		b.WriteString(`]}`)
	}
	b.WriteString(`]}`)
	r.body = b.Bytes()
	return r, nil
}

// placeMarks decides where breakpoints go: message index to block index. When there are more wishes than places the
// newest messages win, because a breakpoint covers everything before it.
func placeMarks(p conversation.Prompt) (system bool, marks map[int]int) {
	places := maxBreakpoints
	for _, m := range p.Messages {
		for _, block := range m.Blocks {
			if hasCacheControl(block) {
				places--
			}
		}
	}
	if p.System != "" && places > 0 {
		system = true
		places--
	}
	marks = make(map[int]int, maxBreakpoints)
	for i := len(p.Messages) - 1; i >= 0 && places > 0; i-- {
		if !p.Messages[i].CacheMark {
			continue
		}
		if at, ok := lastCacheable(p.Messages[i].Blocks); ok {
			marks[i] = at
			places--
		}
	}
	return system, marks
}

// lastCacheable finds the block that may carry the mark. Thinking cannot, empty text cannot, and of a kind nobody
// here knows it is safer to assume that it cannot. A block that already has a mark needs no second one.
func lastCacheable(blocks []json.RawMessage) (int, bool) {
	for j := len(blocks) - 1; j >= 0; j-- {
		var head struct {
			Type string `json:"type"`
			Text string `json:"text"`
		}
		if json.Unmarshal(blocks[j], &head) != nil {
			continue
		}
		switch head.Type {
		case "text":
			if head.Text == "" {
				continue
			}
		case "image", "document", "tool_use", "tool_result", "search_result":
		default:
			continue
		}
		return j, !hasCacheControl(blocks[j])
	}
	return 0, false
}

// hasCacheControl reports a mark of the block's own; the search for the word spares most blocks the parser.
func hasCacheControl(block []byte) bool {
	if !bytes.Contains(block, []byte(`"cache_control"`)) {
		return false
	}
	var head map[string]json.RawMessage
	if json.Unmarshal(block, &head) != nil {
		return false
	}
	mark, ok := head["cache_control"]
	return ok && !bytes.Equal(mark, []byte("null"))
}

// writeMarked copies the block with a mark before its closing brace; everything else keeps its bytes.
func writeMarked(b *bytes.Buffer, block []byte) {
	end := bytes.LastIndexByte(block, '}')
	inner := bytes.TrimRight(block[:end], " \t\r\n")
	b.Write(block[:len(inner)])
	if len(inner) > 0 && inner[len(inner)-1] != '{' {
		b.WriteByte(',')
	}
	b.Write(cacheControl)
	b.Write(block[len(inner):])
}

func isObject(raw []byte) bool {
	trimmed := bytes.TrimLeft(raw, " \t\r\n")
	return len(trimmed) > 0 && trimmed[0] == '{' && json.Valid(raw)
}

// writeString encodes text as JSON without the HTML escapes of encoding/json, which cost bytes and help nobody here.
func writeString(b *bytes.Buffer, text string) {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(text) // a string always encodes, a Buffer always takes it
	b.Truncate(b.Len() - 1)
}
