package cataloguetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/event/catalogue"
)

// Check fails the test for every event of a tenant's log that is not what the catalogue says: of a type that is not there,
// about another kind of thing, or with data that its schema refuses or does not describe.
func Check(t testing.TB, list []event.Event) {
	t.Helper()
	said := map[string]bool{} // once is enough
	schemas := map[string]*jsonschema.Schema{}
	for _, e := range list {
		if err := wrong(e, schemas); err != nil && !said[e.Type] {
			said[e.Type] = true
			t.Errorf("%v; its data is %s", err, e.Data)
		}
	}
}

// Wrong says what is wrong with one event, if anything is.
func Wrong(e event.Event) error { return wrong(e, map[string]*jsonschema.Schema{}) }

// wrong keeps schemas by their types: compiling one takes longer than all else.
func wrong(e event.Event, schemas map[string]*jsonschema.Schema) error {
	entry, ok := catalogue.Find(e.Type)
	if !ok {
		return fmt.Errorf("%s is not in the catalogue", e.Type)
	}
	if !strings.HasPrefix(e.Subject, string(entry.Subject)) {
		return fmt.Errorf("the subject of %s is a %s", e.Type, entry.Subject)
	}
	if schemas[e.Type] == nil {
		compiled, err := compile(entry.Schema())
		if err != nil {
			return err
		}
		schemas[e.Type] = compiled
	}
	return fits(schemas[e.Type], e.Data)
}

// Fits says what is wrong with data, seen by its schema: also what the schema does not describe, which consumers must take
// and we must not send.
func Fits(schema, data json.RawMessage) error {
	compiled, err := compile(schema)
	if err != nil {
		return err
	}
	return fits(compiled, data)
}

func compile(schema json.RawMessage) (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		return nil, fmt.Errorf("the schema is no JSON: %w", err)
	}
	whole, ok := doc.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("the schema is no object: %s", schema)
	}
	whole["additionalProperties"] = false
	c := jsonschema.NewCompiler()
	if err := c.AddResource("event.json", whole); err != nil {
		return nil, err
	}
	return c.Compile("event.json")
}

func fits(schema *jsonschema.Schema, data json.RawMessage) error {
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("the data is no JSON: %w", err)
	}
	if err := schema.Validate(value); err != nil {
		return fmt.Errorf("%v: %w", schema.Title, err)
	}
	return nil
}
