package main

import (
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"claude-memory-backend/internal/event/catalogue"
)

// noEvents look like types of events of tenants' logs, and are none.
var noEvents = map[string]string{
	"message.delta":        "running text, which is never stored",
	"data.erase_started":   "the master's log alone has it: what it tells is about to go",
	"data.erase":           "a kind of job",
	"database.move":        "a kind of job",
	"database.release":     "a kind of job",
	"message.accepted":     "an answer of the WebSocket to who sends",
	"data.after_seq":       "a place in a frame",
	"data.idempotency_key": "a place in a frame",
	"webhook.test":         "an event that never happened: it is sent and stands in no log",
}

// Whatever a package names like an event of a tenant's log is in the catalogue: an event that no test happens to send is found,
// too.
func TestEventsAreCatalogued(t *testing.T) {
	house, err := survey(os.DirFS(filepath.Join("..", "..")))
	if err != nil {
		t.Fatal(err)
	}
	nouns := []string{"export", "import", "webhook"} // what the public interface names beside those that are there
	for _, e := range catalogue.All() {
		if !slices.Contains(nouns, e.Noun()) {
			nouns = append(nouns, e.Noun())
		}
	}
	looks := regexp.MustCompile(`^(` + strings.Join(nouns, "|") + `)\.[a-z_]+$`)
	found := map[string]bool{}
	for pkg, files := range house {
		if !strings.HasPrefix(pkg, "internal/") || strings.HasPrefix(pkg, "internal/event/catalogue") || rooms[pkg].tests {
			continue
		}
		for _, f := range files {
			ast.Inspect(f.file, func(n ast.Node) bool {
				lit, ok := n.(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					return true
				}
				kind, err := strconv.Unquote(lit.Value)
				if err != nil || !looks.MatchString(kind) {
					return true
				}
				found[kind] = true
				if !catalogue.Known(kind) && noEvents[kind] == "" {
					t.Errorf("%s: %q is not in the catalogue", f.set.Position(lit.Pos()), kind)
				}
				return true
			})
		}
	}
	if len(found) < 20 {
		t.Errorf("only %d found: this looks at the wrong place", len(found))
	}
	for kind, why := range noEvents {
		if !found[kind] {
			t.Errorf("%q is not there any more (%s)", kind, why)
		}
	}
}
