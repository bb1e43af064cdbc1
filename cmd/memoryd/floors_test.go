package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

// module is the import path that our own packages begin with.
const module = "claude-memory-backend/"

// room is where a package stands in the house: docs/ARCHITECTURE.md draws it.
type room struct {
	floor float64
	tests bool // only _test.go files, and packages like itself, may import it
	note  string
}

// rooms has one line for every package below internal/, cmd/ and bench/. A new package needs a floor and a sentence.
var rooms = map[string]room{
	"internal/fault":                 {floor: 0, note: "the one error type"},
	"internal/seal":                  {floor: 0, note: "keys and sealing"},
	"internal/ident":                 {floor: 0, note: "typed identifiers and the actor"},
	"internal/blob":                  {floor: 0, note: "files by name: a folder, or a bucket"},
	"internal/words":                 {floor: 0, note: "how text becomes search terms; touches no database"},
	"internal/outbound":              {floor: 0, note: "the one dialer for addresses that users give"},
	"internal/clocktest":             {floor: 0, tests: true, note: "the time of tests, moved by hand"},
	"internal/outbound/outboundtest": {floor: 1, tests: true, note: "spellings of forbidden addresses, and traps"},

	"internal/access": {floor: 1, note: "roles, actions, and the one matrix of both"},
	"internal/event":  {floor: 1, note: "the log and the bus"},
	"internal/tenant": {floor: 1, note: "where a tenant's database lives"},
	"internal/spool":  {floor: 1, note: "what a tenant's database does not take, sealed on this machine's disk"},

	"internal/event/catalogue":               {floor: 1, note: "what events there are: meanings, schemas, examples"},
	"internal/event/catalogue/cataloguetest": {floor: 2, tests: true, note: "holds committed events against the catalogue"},

	"internal/mail": {floor: 1.5, note: "messages to people: the outbox, SMTP, a folder in development"},

	"internal/job": {floor: 1.5, note: "long work: state, progress, report, cancel"},

	"internal/event/bustest":    {floor: 2, tests: true, note: "the conformance suite of every bus"},
	"internal/natsbus":          {floor: 2, note: "the bus of several nodes, over NATS"},
	"internal/natsbus/natstest": {floor: 2, tests: true, note: "a NATS server for tests"},

	"internal/account":      {floor: 2, note: "accounts, passwords, sessions and their tokens"},
	"internal/audit":        {floor: 2, note: "the trail, derived from events"},
	"internal/member":       {floor: 2, note: "who takes part in whose projects"},
	"internal/project":      {floor: 2, note: "rules of projects"},
	"internal/conversation": {floor: 2, note: "rules of conversations and turns"},

	"internal/webhook": {floor: 2, note: "who is told of events: endpoints, deliveries, attempts"},

	"internal/claude": {floor: 3, note: "the model's adapters"},

	"internal/sqlstore": {floor: 4, note: "SQL and nothing but SQL"},

	"internal/relocate": {floor: 6, note: "whole tenants: move, back up, restore, erase"},

	"internal/workspace": {floor: 5, note: "the only door to a tenant's data"},

	"internal/httpapi": {floor: 7, note: "decode, one service call, encode"},
	"internal/live":    {floor: 7, note: "WebSockets: rooms, presence, typing, resume, slow readers"},

	"internal/steptest":             {floor: 4.5, tests: true, note: "histories of schemas with more steps than the released one"},
	"internal/storetest":            {floor: 4, tests: true, note: "the conformance suite of every store"},
	"internal/claude/emulator":      {floor: 7, tests: true, note: "plays Anthropic's API: an HTTP server for tests"},
	"internal/claude/n8nfake":       {floor: 7, tests: true, note: "plays n8n: an HTTP server for tests"},
	"internal/claude/n8nsuite":      {floor: 7, tests: true, note: "the workflows on a real n8n; only with the tag n8n"},
	"internal/pgtest":               {floor: 4, tests: true, note: "real PostgreSQL for tests; speaks to the driver itself"},
	"internal/pgtest/toxic":         {floor: 4, tests: true, note: "bad networks before a server, for tests"},
	"internal/pgtest/with-postgres": {floor: 8, tests: true, note: "the command that lends one cluster to all tests"},
	"bench/lab":                     {floor: 8, tests: true, note: "runs the real server from outside, for experiments and the crash harness"},
	"bench/fleet":                   {floor: 8, tests: true, note: "makes installations of many tenants, for experiments"},
	"bench/tenants":                 {floor: 9, tests: true, note: "the command that measures many tenants"},
	"bench/live":                    {floor: 9, tests: true, note: "the command that measures WebSockets"},
	"bench/webhooks":                {floor: 9, tests: true, note: "the command that measures webhooks"},
	"bench/migrate":                 {floor: 9, tests: true, note: "the command that measures fleet migrations"},
	"bench":                         {floor: 9, tests: true, note: "the command that measures"},
	"bench/locomo":                  {floor: 9, tests: true, note: "the command that replays a long conversation and searches it"},

	"cmd/memoryd": {floor: 8, note: "flags, configuration, wiring, lifetime"},
}

// sideways are the imports that the rule "only lower floors" would refuse, each with the reason why it may stand.
var sideways = map[string]string{
	"internal/ident -> internal/fault":    "a malformed identifier is an error like any other, and errors are faults",
	"internal/blob -> internal/fault":     "a storage that fails is an error like any other, and errors are faults",
	"internal/outbound -> internal/fault": "a refused address is an error like any other, and errors are faults",
	"internal/seal -> internal/fault":     "a value that does not open is an error like any other, and errors are faults",
}

// ground is what must not be looked at: a scratch package that keeps chosen libraries in go.mod and is never committed.
var ground = []string{"internal/tmpdeps"}

// A fence says what may be used only in some rooms.
type fence struct {
	name   string
	usesOf func(f *ast.File) []ast.Node // what of it a file uses
	in     func(pkg string, r room) bool
	why    string
}

var fences = []fence{
	{
		name:   "the environment",
		usesOf: calls("os", "Getenv", "LookupEnv", "Environ", "ExpandEnv"),
		in:     only("cmd/memoryd", "internal/pgtest", "internal/pgtest/with-postgres"),
		why:    "only cmd/memoryd reads it, and for tests pgtest; packages take plain structs",
	},
	{
		name: "SQL drivers",
		usesOf: imports("database/sql", "database/sql/driver", "github.com/jackc/pgx/v5", "github.com/ncruces/go-sqlite3",
			"github.com/pressly/goose/v3"),
		in:  only("internal/sqlstore", "internal/pgtest"),
		why: "SQL lives in sqlstore only; pgtest makes databases for tests",
	},
	{
		name: "databases that are opened",
		usesOf: calls("claude-memory-backend/internal/sqlstore", "OpenSQLite", "OpenPostgres", "OpenPostgresHost", "NewLazyHost",
			"NewExternals", "NewTenantStore"),
		in: func(pkg string, r room) bool {
			return r.tests || slices.Contains([]string{"internal/sqlstore", "internal/workspace", "cmd/memoryd"}, pkg)
		},
		why: "workspace is the only door to a tenant's data; cmd/memoryd opens the master and hands over addresses",
	},
	{
		name:   "the database behind a workspace",
		usesOf: methods("Database", "Direct"),
		in:     only("internal/sqlstore", "internal/workspace", "internal/relocate", "bench/fleet"),
		why:    "whoever has the database itself passes by the services and what they permit; only work on whole tenants does, and bench, which fills them by the thousand",
	},
	{
		name:   "NATS servers",
		usesOf: imports("github.com/nats-io/nats-server/v2"),
		in:     only("internal/natsbus/natstest"),
		why:    "eleven megabytes that the operator runs beside us; tests have one",
	},
	{
		name:   "SQL text",
		usesOf: sqlTexts,
		in:     only("internal/sqlstore", "internal/pgtest"),
		why:    "SQL lives in sqlstore only",
	},
	{
		name:   "HTTP servers",
		usesOf: either(calls("net/http", "Server", "ListenAndServe", "ListenAndServeTLS", "Serve", "ServeTLS"), imports("net/http/httptest")),
		in:     func(_ string, r room) bool { return r.floor >= 7 },
		why:    "doors stand on floor 7 and above",
	},
	{
		name: "test helpers",
		usesOf: imports("testing", "net/http/httptest", "github.com/google/go-cmp", "pgregory.net/rapid", "go.uber.org/goleak", "github.com/getkin/kin-openapi",
			"github.com/johannesboyne/gofakes3", "github.com/emersion/go-smtp", "github.com/santhosh-tekuri/jsonschema/v6"),
		in:  func(_ string, r room) bool { return r.tests },
		why: "what ships does not carry them",
	},
	{
		name:   "init",
		usesOf: initFuncs,
		in:     only(),
		why:    "nothing happens by being imported",
	},
}

func TestFloors(t *testing.T) {
	house, err := survey(os.DirFS(filepath.Join("..", "..")))
	if err != nil {
		t.Fatal(err)
	}
	if len(house) < 10 {
		t.Fatalf("only %d packages found: this looks at the wrong place", len(house))
	}
	for _, complaint := range inspect(house, rooms, sideways) {
		t.Error(complaint)
	}
}

// The rules themselves, each broken once: a check that cannot fail proves nothing.
func TestFloorsRefuse(t *testing.T) {
	plan := map[string]room{
		"internal/low":    {floor: 0},
		"internal/peer":   {floor: 0},
		"internal/high":   {floor: 3},
		"internal/helper": {floor: 2, tests: true},
		"internal/helps":  {floor: 3, tests: true},
		"internal/door":   {floor: 7},
		"cmd/memoryd":     {floor: 8},
	}
	clean := map[string]string{
		"internal/low/a.go":    "package low",
		"internal/peer/a.go":   "package peer",
		"internal/high/a.go":   "package high\nimport _ \"claude-memory-backend/internal/low\"",
		"internal/helper/a.go": "package helper\nimport _ \"testing\"",
		"internal/helps/a.go":  "package helps\nimport _ \"claude-memory-backend/internal/helper\"",
		"internal/door/a.go":   "package door\nimport \"net/http\"\nvar s http.Server",
		"cmd/memoryd/a.go":     "package main\nimport \"os\"\nvar v = os.Getenv(\"V\")",
	}
	for _, c := range []struct{ name, file, source, want string }{
		{"the clean house passes", "", "", ""},
		{"upwards", "internal/low/b.go", `import _ "claude-memory-backend/internal/high"`, "internal/low -> internal/high"},
		{"sideways", "internal/low/b.go", `import _ "claude-memory-backend/internal/peer"`, "internal/low -> internal/peer"},
		{"a package without a floor", "internal/fresh/b.go", ``, "internal/fresh has no floor"},
		{"an import of a package without a floor", "internal/high/b.go", `import _ "claude-memory-backend/internal/nowhere"`, "internal/high imports internal/nowhere, which is not in the tree"},
		{"a test helper in what ships", "internal/high/b.go", `import _ "claude-memory-backend/internal/helper"`, "internal/helper is for tests only"},
		{"the environment", "internal/high/b.go", "import \"os\"\nvar v = os.Getenv(\"V\")", "the environment"},
		{"the environment under another name", "internal/high/b.go", "import sys \"os\"\nvar v, ok = sys.LookupEnv(\"V\")", "the environment"},
		{"a SQL driver's sub-package", "internal/high/b.go", `import _ "github.com/jackc/pgx/v5/pgxpool"`, "SQL drivers"},
		{"another opener", "internal/high/b.go", "import \"claude-memory-backend/internal/sqlstore\"\nvar f = sqlstore.OpenSQLite", "databases that are opened"},
		{"the database behind a workspace", "internal/high/b.go", "func f(w interface{ Database() any }) any { return w.Database() }", "the database behind a workspace"},
		{"database/sql", "internal/high/b.go", `import _ "database/sql"`, "SQL drivers"},
		{"a statement", "internal/high/b.go", "const q = `\n  select title from projects`", "SQL text"},
		{"a server", "internal/high/b.go", "import \"net/http\"\nfunc f() { _ = http.ListenAndServe(\"\", nil) }", "HTTP servers"},
		{"testing", "internal/high/b.go", `import _ "testing"`, "test helpers"},
		{"init", "internal/high/b.go", `func init() {}`, "init"},
		{"test files are exempt", "internal/low/b_test.go", `import _ "claude-memory-backend/internal/high"`, ""},
		{"test data is exempt", "internal/low/testdata/b.go", `import _ "claude-memory-backend/internal/high"`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := files(clean)
			if c.file != "" {
				tree[c.file] = &fstest.MapFile{Data: []byte("package " + path.Base(path.Dir(c.file)) + "\n" + c.source)}
			}
			got := inspect(must(survey(tree))(t), plan, nil)
			switch {
			case c.want == "" && len(got) > 0:
				t.Errorf("complaints: %q", got)
			case c.want != "" && !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, c.want) }):
				t.Errorf("complaints: %q; none says %q", got, c.want)
			}
		})
	}
	t.Run("a room whose package is gone", func(t *testing.T) {
		got := inspect(must(survey(files(map[string]string{"internal/low/a.go": "package low"})))(t), map[string]room{"internal/low": {}, "internal/gone": {}}, nil)
		if len(got) != 1 || !strings.Contains(got[0], "internal/gone") {
			t.Errorf("complaints: %q", got)
		}
	})
	t.Run("an exception that nobody uses", func(t *testing.T) {
		got := inspect(must(survey(files(map[string]string{"internal/low/a.go": "package low"})))(t), map[string]room{"internal/low": {}},
			map[string]string{"internal/low -> internal/gone": "once upon a time"})
		if len(got) != 1 || !strings.Contains(got[0], "no longer needed") {
			t.Errorf("complaints: %q", got)
		}
	})
}

// house is every package of ours by its folder, with the files that ship.
type house map[string][]source

type source struct {
	name string
	file *ast.File
	set  *token.FileSet
}

// survey parses all Go files below internal/, cmd/ and bench/ but tests, whatever their build tags.
func survey(tree fs.FS) (house, error) {
	h := house{}
	set := token.NewFileSet()
	for _, top := range []string{"internal", "cmd", "bench"} {
		if _, err := fs.Stat(tree, top); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		err := fs.WalkDir(tree, top, func(name string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && (d.Name() == "testdata" || slices.Contains(ground, name)):
				return fs.SkipDir
			case d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
				return nil
			}
			text, err := fs.ReadFile(tree, name)
			if err != nil {
				return err
			}
			file, err := parser.ParseFile(set, name, text, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			h[path.Dir(name)] = append(h[path.Dir(name)], source{name, file, set})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return h, nil
}

// inspect returns one sentence for every rule that is broken.
func inspect(h house, plan map[string]room, exceptions map[string]string) (complaints []string) {
	complain := func(format string, args ...any) { complaints = append(complaints, fmt.Sprintf(format, args...)) }
	used := map[string]bool{}
	for pkg, files := range h {
		from, ok := plan[pkg]
		if !ok {
			complain("%s has no floor: add it to rooms, with a sentence", pkg)
			continue
		}
		for _, f := range files {
			for _, spec := range f.file.Imports {
				target, ours := strings.CutPrefix(imported(spec), module)
				if !ours {
					continue
				}
				if _, there := h[target]; !there {
					complain("%s: %s imports %s, which is not in the tree", f.name, pkg, target)
					continue
				}
				to, arrow := plan[target], pkg+" -> "+target
				if to.tests && !from.tests {
					complain("%s: %s is for tests only", f.name, target)
				}
				if to.floor < from.floor {
					continue
				}
				if exceptions[arrow] == "" {
					complain("%s: %s climbs from floor %v to %v; a package imports lower floors only", f.name, arrow, from.floor, to.floor)
				}
				used[arrow] = true
			}
			for _, fence := range fences {
				if fence.in(pkg, from) {
					continue
				}
				for _, use := range fence.usesOf(f.file) {
					complain("%s: %s do not belong here: %s", f.set.Position(use.Pos()), fence.name, fence.why)
				}
			}
		}
	}
	for pkg := range plan {
		if _, there := h[pkg]; !there {
			complain("%s has a floor but is gone from the tree", pkg)
		}
	}
	for arrow := range exceptions {
		if !used[arrow] {
			complain("the exception %q is no longer needed", arrow)
		}
	}
	slices.Sort(complaints)
	return complaints
}

func imported(spec *ast.ImportSpec) string {
	at, _ := strconv.Unquote(spec.Path.Value) // the parser accepts no other
	return at
}

func only(packages ...string) func(string, room) bool {
	return func(pkg string, _ room) bool { return slices.Contains(packages, pkg) }
}

func either(a, b func(*ast.File) []ast.Node) func(*ast.File) []ast.Node {
	return func(f *ast.File) []ast.Node { return append(a(f), b(f)...) }
}

// imports finds imports of the packages or of what lies below them.
func imports(packages ...string) func(*ast.File) []ast.Node {
	return func(f *ast.File) (found []ast.Node) {
		for _, spec := range f.Imports {
			at := imported(spec)
			if slices.ContainsFunc(packages, func(p string) bool { return at == p || strings.HasPrefix(at, p+"/") }) {
				found = append(found, spec)
			}
		}
		return found
	}
}

// calls finds uses of the names of a package, under whatever name the file imports it.
func calls(pkg string, names ...string) func(*ast.File) []ast.Node {
	return func(f *ast.File) (found []ast.Node) {
		for _, spec := range f.Imports {
			if imported(spec) != pkg {
				continue
			}
			local := path.Base(pkg)
			if spec.Name != nil {
				local = spec.Name.Name
			}
			if local == "." {
				found = append(found, spec) // every name of it is in reach
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok && slices.Contains(names, s.Sel.Name) {
					if x, ok := s.X.(*ast.Ident); ok && x.Name == local {
						found = append(found, s)
					}
				}
				return true
			})
		}
		return found
	}
}

// methods finds calls without arguments of methods with these names, whatever has them.
func methods(names ...string) func(*ast.File) []ast.Node {
	return func(f *ast.File) (found []ast.Node) {
		ast.Inspect(f, func(n ast.Node) bool {
			if c, ok := n.(*ast.CallExpr); ok && len(c.Args) == 0 {
				if s, ok := c.Fun.(*ast.SelectorExpr); ok && slices.Contains(names, s.Sel.Name) {
					found = append(found, c)
				}
			}
			return true
		})
		return found
	}
}

var statement = regexp.MustCompile(`(?is)^\s*(select\s.+\sfrom\s|insert\s+(or\s+\w+\s+)?into\s|update\s+\w+\s+set\s|delete\s+from\s|(create|drop|alter)\s+(table|index|schema|role|database|view)\s|with\s+\w+\s+as\s*\()`)

// sqlTexts finds literals that begin like a statement.
func sqlTexts(f *ast.File) (found []ast.Node) {
	ast.Inspect(f, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if text, err := strconv.Unquote(lit.Value); err == nil && statement.MatchString(text) {
				found = append(found, lit)
			}
		}
		return true
	})
	return found
}

func initFuncs(f *ast.File) (found []ast.Node) {
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			found = append(found, fn)
		}
	}
	return found
}

// files is a tree given as names and texts.
func files(texts map[string]string) fstest.MapFS {
	tree := fstest.MapFS{}
	for name, text := range texts {
		tree[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return tree
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
