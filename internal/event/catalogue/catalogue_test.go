package catalogue_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/event/catalogue"
	"claude-memory-backend/internal/event/catalogue/cataloguetest"
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
		var example event.Event
		if err := json.Unmarshal(e.Example(), &example); err != nil {
			t.Fatal(err)
		}
		if err := cataloguetest.Wrong(example); err != nil {
			t.Errorf("the example: %v", err)
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
		"one member more":    {`{"version": 2, "status": "active", "project_id": null, "from_project_id": null, "later": 1}`, false},
		"one missing":        {`{"version": 2, "status": "active", "project_id": null}`, false},
		"another id":         {`{"version": 2, "status": "active", "project_id": "conv_06f4k3z9c8tqv5m2yb7n1x0d4e", "from_project_id": null}`, false},
		"an unknown word":    {`{"version": 2, "status": "gone", "project_id": null, "from_project_id": null}`, false},
		"a number in quotes": {`{"version": "2", "status": "active", "project_id": null, "from_project_id": null}`, false},
		"null":               {`{"version": null, "status": "active", "project_id": null, "from_project_id": null}`, false},
		"no object":          {`[]`, false},
	} {
		sent := event.Event{Type: e.Type, Subject: "conv_06f4k3z9c8tqv5m2yb7n1x0d4e", Data: json.RawMessage(c.data)}
		if err := cataloguetest.Wrong(sent); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	sent := event.Event{Type: "project.deleted", Subject: "conv_06f4k3z9c8tqv5m2yb7n1x0d4e",
		Data: json.RawMessage(`{"conversations": 0, "conversations_deleted": false}`)}
	if cataloguetest.Wrong(sent) == nil {
		t.Error("another subject is right")
	}
	if cataloguetest.Wrong(event.Event{Type: "project.painted"}) == nil {
		t.Error("an unknown type is right")
	}
}

var update = flag.Bool("update", false, "write the page")

// The page in docs is written by this test: `go test ./internal/event/catalogue -update`.
func TestPage(t *testing.T) {
	path := filepath.Join("..", "..", "..", "docs", "EVENTS.md")
	page := catalogue.Page()
	if *update {
		if err := os.WriteFile(path, page, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(was, page) {
		t.Error("docs/EVENTS.md is not what the catalogue says: go test ./internal/event/catalogue -update")
	}
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
