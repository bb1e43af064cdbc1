package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"claude-memory-backend/internal/fault"
)

// maxDepth is how deep a body may nest.
const maxDepth = 128

// bodySchema knows the field names of one operation's body; they are looked up at the first request, when the table
// has been mounted.
type bodySchema struct {
	once   sync.Once
	fields []string
}

// check refuses what encoding/json lets pass: keys that come twice, keys in another case, bytes that are not UTF-8,
// and something after the end. Two readers of such a body would understand different things.
func (b *bodySchema) check(x *exchange) error {
	const op = "httpapi.check"
	if len(x.body) == 0 {
		return nil
	}
	b.once.Do(func() { b.fields = x.s.fieldsOf(x.op) })
	keys, err := scan(x.body, x.op.free)
	if err != nil || x.op.free {
		return err
	}
	var c fault.Checks
	for _, key := range keys {
		if !slices.Contains(b.fields, key) {
			message := "unknown field"
			for _, f := range b.fields {
				if strings.EqualFold(f, key) {
					message = "unknown field: write it as " + f
				}
			}
			c.Add("body."+key, message)
		}
	}
	return c.Err(op)
}

// scan walks a body, which must be an object unless anything will do, and returns the keys of its outermost object in order.
func scan(body []byte, anything bool) ([]string, error) {
	malformed := func(message string) error {
		return &fault.Error{Class: fault.Invalid, Op: "httpapi.scan", Code: codeMalformed,
			Message: "the body is not proper JSON", Fields: []fault.Field{{Location: "body", Message: message}}}
	}
	if !utf8.Valid(body) {
		return nil, malformed("must be valid UTF-8")
	}
	if halfCharacter(body) {
		return nil, malformed("has half of a surrogate pair, which is no character")
	}
	type level struct {
		keys  map[string]bool // nil for an array
		atKey bool
	}
	var top []string
	var stack []level
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	for {
		t, err := dec.Token()
		if err != nil {
			if s, ok := errors.AsType[*json.SyntaxError](err); ok {
				return nil, malformed("syntax error at byte " + strconv.FormatInt(s.Offset, 10))
			}
			return nil, malformed("ends too early")
		}
		if len(stack) == 0 {
			if t != json.Delim('{') && !anything {
				return nil, malformed("must be a JSON object")
			}
		} else if l := &stack[len(stack)-1]; l.keys != nil && l.atKey {
			if key, ok := t.(string); ok {
				if l.keys[key] {
					return nil, malformed("has a key twice")
				}
				l.keys[key] = true
				l.atKey = false
				if len(stack) == 1 {
					top = append(top, key)
				}
				continue
			}
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			if len(stack) == maxDepth {
				return nil, malformed("is nested too deeply")
			}
			l := level{}
			if t == json.Delim('{') {
				l = level{keys: map[string]bool{}, atKey: true}
			}
			stack = append(stack, l)
			continue
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:len(stack)-1]
		}
		if len(stack) == 0 {
			break
		}
		stack[len(stack)-1].atKey = true // a value is complete
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, malformed("has something after its end")
	}
	return top, nil
}

// canonical writes a body so that two spellings of the same request are equal: keys sorted, no spaces, numbers as
// they were written.
func canonical(body []byte) ([]byte, error) {
	if len(body) == 0 {
		return []byte("{}"), nil
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fault.Wrap("httpapi.canonical", err)
	}
	return json.Marshal(v)
}

// mergeObject applies a JSON merge patch (RFC 7396) to an object.
func mergeObject(target, patch json.RawMessage) (json.RawMessage, error) {
	decode := func(raw json.RawMessage) (any, error) {
		if len(raw) == 0 {
			return nil, nil
		}
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.UseNumber()
		var v any
		err := dec.Decode(&v)
		return v, err
	}
	t, err := decode(target)
	if err != nil {
		return nil, fault.Wrap("httpapi.mergeObject", err)
	}
	p, err := decode(patch)
	if err != nil {
		return nil, fault.Wrap("httpapi.mergeObject", err)
	}
	return json.Marshal(mergeValue(t, p))
}

func mergeValue(target, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	t, ok := target.(map[string]any)
	if !ok {
		t = map[string]any{}
	}
	for k, v := range p {
		if v == nil {
			delete(t, k)
			continue
		}
		t[k] = mergeValue(t[k], v)
	}
	return t
}

func sortFields(fields []fault.Field) {
	slices.SortStableFunc(fields, func(a, b fault.Field) int {
		if c := strings.Compare(a.Location, b.Location); c != 0 {
			return c
		}
		return strings.Compare(a.Message, b.Message)
	})
}

// halfCharacter reports whether JSON text has an escape for half of a surrogate pair. Decoders put a replacement in its
// place without a word, so what is stored would not be what was sent.
func halfCharacter(body []byte) bool {
	unit := func(i int) (uint64, bool) {
		if i+6 > len(body) || body[i] != '\\' || body[i+1] != 'u' {
			return 0, false
		}
		v, err := strconv.ParseUint(string(body[i+2:i+6]), 16, 16)
		return v, err == nil
	}
	for i := 0; i < len(body); i++ {
		if body[i] != '\\' {
			continue
		}
		v, ok := unit(i)
		switch {
		case !ok:
			i++ // another escape; its second character may be a backslash
		case v >= 0xD800 && v < 0xDC00:
			low, ok := unit(i + 6)
			if !ok || low < 0xDC00 || low > 0xDFFF {
				return true
			}
			i += 11
		case v >= 0xDC00 && v <= 0xDFFF:
			return true
		default:
			i += 5
		}
	}
	return false
}
