package catalogue

import (
	"encoding/json"
	"strings"
)

// Draft is the dialect of JSON Schema that schemas are written in.
const Draft = "https://json-schema.org/draft/2020-12/schema"

func (id ID) schema() map[string]any {
	return map[string]any{"type": "string", "pattern": "^" + string(id) + "[0-9a-hjkmnp-tv-z]{26}$"}
}

func (Text) schema() map[string]any  { return map[string]any{"type": "string"} }
func (Count) schema() map[string]any { return map[string]any{"type": "integer", "minimum": 0} }
func (Flag) schema() map[string]any  { return map[string]any{"type": "boolean"} }

func (c Choice) schema() map[string]any {
	return map[string]any{"type": "string", "enum": []string(c)}
}

// schema describes the member; where null may stand, its type has both and a list of words has null too.
func (f Field) schema() map[string]any {
	s := f.Kind.schema()
	s["description"] = f.About
	if f.Nullable {
		s["type"] = []any{s["type"], "null"}
	}
	return s
}

// Schema is the JSON Schema of the event's data.
func (e Entry) Schema() json.RawMessage {
	members, required := map[string]any{}, []string{}
	for _, f := range e.Fields {
		members[f.Name] = f.schema()
		if !f.Optional {
			required = append(required, f.Name)
		}
	}
	return marshal(map[string]any{"$schema": Draft, "title": e.Type, "description": e.Meaning, "type": "object",
		"properties": members, "required": required})
}

// Example is a whole event as consumers get it.
func (e Entry) Example() json.RawMessage {
	data := map[string]any{}
	for _, f := range e.Fields {
		data[f.Name] = f.Example
	}
	return marshal(struct {
		ID        string         `json:"id"`
		Seq       int            `json:"seq"`
		Type      string         `json:"type"`
		Subject   string         `json:"subject"`
		Actor     map[string]any `json:"actor"`
		CreatedAt string         `json:"created_at"`
		Data      map[string]any `json:"data"`
	}{example("evt_"), 42, e.Type, example(e.Subject), map[string]any{"id": example(account), "name": "Ada"},
		"2026-11-26T09:30:00.123456Z", data})
}

// example is an identifier of a kind.
func example(id ID) string { return string(id) + "06f4k3z9c8tqv5m2yb7n1x0d4e" }

// Noun is what a type of event speaks of: "conversation" of "conversation.created".
func (e Entry) Noun() string {
	noun, _, _ := strings.Cut(e.Type, ".")
	return noun
}

// marshal is json.Marshal of values that can be.
func marshal(v any) json.RawMessage {
	raw, err := json.Marshal(v)
	if err != nil {
		panic("a catalogue that cannot be marshalled") // text, numbers, and maps and lists of them
	}
	return raw
}
