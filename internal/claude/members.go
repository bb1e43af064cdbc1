package claude

import (
	"bytes"
	"encoding/json"
	"errors"
)

// members are the fields of one JSON object in their order, each value in the bytes in which it came.
type members []member

type member struct {
	key   string
	value json.RawMessage
}

var errNotObject = errors.New("not a JSON object")

// parseMembers splits an object. A repeated key keeps its first place and takes its last value.
func parseMembers(raw []byte) (members, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return nil, errNotObject
	}
	var m members
	for dec.More() {
		token, err := dec.Token()
		key, ok := token.(string)
		if err != nil || !ok {
			return nil, errNotObject
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, errNotObject
		}
		m.set(key, value)
	}
	if _, err := dec.Token(); err != nil {
		return nil, errNotObject
	}
	return m, nil
}

func (m members) find(key string) json.RawMessage {
	for _, f := range m {
		if f.key == key {
			return f.value
		}
	}
	return nil
}

// text is the string under key, or nothing.
func (m members) text(key string) string {
	var s string
	_ = json.Unmarshal(m.find(key), &s) // another type is no text
	return s
}

func (m *members) set(key string, value json.RawMessage) {
	if value == nil {
		value = json.RawMessage("null")
	}
	for i := range *m {
		if (*m)[i].key == key {
			(*m)[i].value = value
			return
		}
	}
	*m = append(*m, member{key: key, value: value})
}

func (m members) raw() json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range m {
		if i > 0 {
			b.WriteByte(',')
		}
		writeString(&b, f.key)
		b.WriteByte(':')
		b.Write(f.value)
	}
	b.WriteByte('}')
	return b.Bytes()
}

func isText(raw json.RawMessage) bool { return len(raw) > 0 && raw[0] == '"' }
func isList(raw json.RawMessage) bool { return len(raw) > 0 && raw[0] == '[' }
