package catalogue_test

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"claude-memory-backend/internal/event/catalogue"
)

func TestEntries(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range catalogue.All() {
		if !regexp.MustCompile(`^[a-z]+\.[a-z_]+$`).MatchString(e.Type) || seen[e.Type] {
			t.Errorf("%q is no name of its own", e.Type)
		}
		seen[e.Type] = true
		if !strings.HasSuffix(e.Meaning, ".") || strings.Contains(e.Meaning, "\n") {
			t.Errorf("%s: the meaning is one line of whole sentences: %q", e.Type, e.Meaning)
		}
		for _, f := range e.Fields {
			if f.About == "" || strings.HasSuffix(f.About, ".") {
				t.Errorf("%s.%s: %q", e.Type, f.Name, f.About)
			}
		}
		example, err := jsonschema.UnmarshalJSON(bytes.NewReader(e.Example()))
		if err != nil {
			t.Fatal(err)
		}
		if err := compiled(t, e).Validate(example.(map[string]any)["data"]); err != nil {
			t.Errorf("the example of %s: %v", e.Type, err)
		}
	}
}

// A schema that takes anything proves nothing.
func TestSchemasRefuse(t *testing.T) {
	e, ok := catalogue.Find("conversation.moved")
	if !ok {
		t.Fatal("it is not there")
	}
	const id = `"prj_06f4k3z9c8tqv5m2yb7n1x0d4e"`
	for name, c := range map[string]struct {
		data string
		ok   bool
	}{
		"right":              {`{"version": 2, "status": "active", "project_id": ` + id + `, "from_project_id": null}`, true},
		"one member more":    {`{"version": 2, "status": "active", "project_id": null, "from_project_id": null, "later": 1}`, true},
		"one missing":        {`{"version": 2, "status": "active", "project_id": null}`, false},
		"another id":         {`{"version": 2, "status": "active", "project_id": "conv_06f4k3z9c8tqv5m2yb7n1x0d4e", "from_project_id": null}`, false},
		"an unknown word":    {`{"version": 2, "status": "gone", "project_id": null, "from_project_id": null}`, false},
		"a number in quotes": {`{"version": "2", "status": "active", "project_id": null, "from_project_id": null}`, false},
		"null":               {`{"version": null, "status": "active", "project_id": null, "from_project_id": null}`, false},
		"no object":          {`[]`, false},
	} {
		data, err := jsonschema.UnmarshalJSON(strings.NewReader(c.data))
		if err != nil {
			t.Fatal(err)
		}
		if err := compiled(t, e).Validate(data); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func compiled(t *testing.T, e catalogue.Entry) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(e.Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("event.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("event.json")
	if err != nil {
		t.Fatalf("the schema of %s: %v", e.Type, err)
	}
	return s
}

func TestFilters(t *testing.T) {
	for pattern, known := range map[string]bool{
		"*": true, "message.*": true, "message.created": true, "data.*": true,
		"": false, "message": false, "message.": false, "mess*": false, "message.c*": false, "*.created": false, "**": false,
		".*": false, "message.deleted": false, "account.*": false, "session.started": false, "messages.*": false, "Message.*": false,
	} {
		if catalogue.Known(pattern) != known {
			t.Errorf("%q: %v", pattern, !known)
		}
	}
	for _, c := range []struct {
		pattern, kind string
		match         bool
	}{
		{"*", "turn.failed", true}, {"turn.*", "turn.failed", true}, {"turn.failed", "turn.failed", true},
		{"turn.failed", "turn.stopped", false}, {"message.*", "turn.failed", false}, {"tur.*", "turn.failed", false},
		{"turn.failed.*", "turn.failed", false},
	} {
		if catalogue.Match(c.pattern, c.kind) != c.match {
			t.Errorf("%s %s: %v", c.pattern, c.kind, !c.match)
		}
	}
}
