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
	for _, e := range list {
		if err := Wrong(e); err != nil && !said[e.Type] {
			said[e.Type] = true
			t.Errorf("%v; its data is %s", err, e.Data)
		}
	}
}

// Wrong says what is wrong with one event, if anything is.
func Wrong(e event.Event) error {
	entry, ok := catalogue.Find(e.Type)
	if !ok {
		return fmt.Errorf("%s is not in the catalogue", e.Type)
	}
	if !strings.HasPrefix(e.Subject, string(entry.Subject)) {
		return fmt.Errorf("the subject of %s is a %s", e.Type, entry.Subject)
	}
	return Fits(entry.Schema(), e.Data)
}

// Fits says what is wrong with data, seen by its schema: also what the schema does not describe, which consumers must take
// and we must not send.
func Fits(schema, data json.RawMessage) error {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		return fmt.Errorf("the schema is no JSON: %w", err)
	}
	whole, ok := doc.(map[string]any)
	if !ok {
		return fmt.Errorf("the schema is no object: %s", schema)
	}
	whole["additionalProperties"] = false
	c := jsonschema.NewCompiler()
	if err := c.AddResource("event.json", whole); err != nil {
		return err
	}
	compiled, err := c.Compile("event.json")
	if err != nil {
		return err
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("the data is no JSON: %w", err)
	}
	if err := compiled.Validate(value); err != nil {
		return fmt.Errorf("%v: %w", whole["title"], err)
	}
	return nil
}
