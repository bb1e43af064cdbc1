package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// reserved are names of the public interface that no code reads yet, and what only compose.yaml reads.
var reserved = []string{"STORAGE_URL",
	"POSTGRES_PASSWORD"}

var exampleLine = regexp.MustCompile(`^#([A-Z][A-Z0-9_]*)=(.*)$`)

// .env.example is what a newcomer copies: it names every setting once, with its true default, above it a comment, and
// a mark where a setting is secret.
func TestEnvExample(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", ".env.example"))
	if err != nil {
		t.Fatal(err)
	}
	type entry struct{ fallback, comment string }
	shown := map[string]entry{}
	comment := ""
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimRight(line, "\n")
		m := exampleLine.FindStringSubmatch(line)
		switch {
		case m != nil:
			if _, twice := shown[m[1]]; twice {
				t.Errorf("%s is shown twice", m[1])
			}
			shown[m[1]] = entry{m[2], comment} // one comment may speak of two lines
		case line == "":
			comment = ""
		case strings.HasPrefix(line, "#"):
			comment += line + "\n"
		default:
			t.Errorf("%q would be in force in a copy; every line is commented", line)
		}
	}
	for _, v := range variables() {
		e, there := shown[v.name]
		switch {
		case !there:
			t.Errorf("%s is missing", v.name)
		case e.fallback != v.fallback:
			t.Errorf("%s shows the default %q, which is %q", v.name, e.fallback, v.fallback)
		case e.comment == "":
			t.Errorf("%s has no comment", v.name)
		case strings.Contains(e.comment, "[secret]") != v.secret:
			t.Errorf("%s: secret is %v, the comment says otherwise", v.name, v.secret)
		case slices.Contains(reserved, v.name):
			t.Errorf("%s is read now, so it is no longer reserved", v.name)
		}
		delete(shown, v.name)
	}
	for name := range shown {
		if !slices.Contains(reserved, name) {
			t.Errorf("%s is shown, but nobody reads it", name)
		}
	}
}
