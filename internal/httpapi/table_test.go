package httpapi

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net/http"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// concrete fills a template with identifiers that are well-formed and belong to nobody.
func concrete(template string) string {
	kind := ident.New[ident.ProjectID]
	p := strings.Replace(template, "{turn_id}", string(ident.New[ident.TurnID]()), 1)
	p = strings.Replace(p, "{token}", "cmcb_none", 1)
	p = strings.Replace(p, "{delivery_id}", string(ident.New[ident.DeliveryID]()), 1)
	p = strings.Replace(p, "{user_id}", string(ident.New[ident.AccountID]()), 1)
	switch {
	case strings.Contains(p, "/conversations/"):
		p = strings.Replace(p, "{id}", string(ident.New[ident.ConversationID]()), 1)
	case strings.Contains(p, "/sessions/"):
		p = strings.Replace(p, "{id}", string(ident.New[ident.SessionID]()), 1)
	case strings.Contains(p, "/database/"):
		p = strings.Replace(p, "{id}", string(ident.New[ident.DatabaseID]()), 1)
	case strings.Contains(p, "/webhooks/"):
		p = strings.Replace(p, "{id}", string(ident.New[ident.WebhookID]()), 1)
	case strings.Contains(p, "/jobs/"):
		p = strings.Replace(p, "{id}", string(ident.New[ident.JobID]()), 1)
	}
	p = strings.Replace(p, "{id}", string(kind()), 1)
	return strings.Replace(p, "{file}", "start.js", 1)
}

// sample is a body that each operation with one accepts.
func sample(o OperationInfo) string {
	switch o.ID {
	case "register", "login":
		return `{"email":"eve@example.org","password":"correct horse battery staple"}`
	case "create-project", "replace-project":
		return `{"name":"P"}`
	case "change-password":
		return `{"current_password":"a","new_password":"b"}`
	case "erase-profile":
		return `{"password":"x","what":"data"}`
	case "create-database":
		return `{"name":"Own","url":"postgres://ada:secret@db.example.org/ada"}`
	case "test-database":
		return `{"url":"postgres://ada:secret@db.example.org/ada"}`
	case "send-message":
		return `{"content":"hello"}`
	case "create-webhook":
		return `{"name":"W","url":"https://hooks.example.org/","events":["*"]}`
	case "redeliver-many":
		return `{"from":"2026-01-01T00:00:00Z","to":"2026-01-02T00:00:00Z"}`
	case "add-member":
		return `{"email":"eve@example.org","role":"viewer"}`
	case "change-member":
		return `{"role":"viewer"}`
	}
	if o.Body == NoBody {
		return ""
	}
	return `{}`
}

func TestEveryRowIsComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, o := range operations() {
		where := o.Method + " " + o.Path
		if o.ID == "" || o.Method == "" || !strings.HasPrefix(o.Path, "/") || o.summary == "" || o.mount == nil || o.status == 0 {
			t.Errorf("%s: something is missing", where)
		}
		if !slices.Contains([]Access{Public, Account, Admin, Metrics}, o.Access) ||
			!slices.Contains([]LimitClass{Unlimited, Ordinary, SignIn, Deliveries}, o.Limit) {
			t.Errorf("%s: no access or no limit class", where)
		}
		for _, k := range []string{o.ID, where} {
			if seen[k] {
				t.Errorf("%s is there twice", k)
			}
			seen[k] = true
		}
	}
	public := []string{}
	for _, o := range Operations() {
		if o.Access == Public && !o.Hidden {
			public = append(public, o.ID)
		}
	}
	// The list is short and stands here on purpose: making something public is a decision.
	if want := []string{"register", "login", "refresh", "deliver-answer", "websocket", "list-event-types", "health", "readiness", "liveness", "info"}; !slices.Equal(public, want) {
		t.Errorf("public: %v, want %v", public, want)
	}
}

func TestStrangersAreRefusedEverywhere(t *testing.T) {
	h := newHouse(t, func(c *Config, _ *Deps) { c.Production = true; c.MetricsToken = "the metrics token" })
	for _, o := range Operations() {
		if o.Access == Public {
			continue
		}
		for name, headers := range map[string]map[string]string{
			"without anything":      nil,
			"with a bad token":      {"Authorization": "Bearer access-nobody"},
			"with another scheme":   {"Authorization": "Basic YWRhOnNlY3JldA=="},
			"with an empty token":   {"Authorization": "Bearer "},
			"with a bad cookie":     {"Cookie": accessCookie + "=access-nobody", "Sec-Fetch-Site": "same-origin"},
			"with a refresh cookie": {"Cookie": refreshCookie + "=refresh-ada"},
		} {
			t.Run(o.ID+" "+name, func(t *testing.T) {
				h := *h
				h.t = t
				h.do(call{method: o.Method, path: concrete(o.Path), body: sample(o), header: headers}).is(http.StatusUnauthorized)
			})
		}
	}
}

func TestSomebodyElsesIdentifierLooksLikeNone(t *testing.T) {
	h := newHouse(t)
	project := h.make("ada", "/api/v1/projects", `{"name":"Ada's"}`)
	conv := h.make("ada", "/api/v1/conversations", `{"title":"Ada's"}`)
	turn := h.do(call{as: "ada", method: "POST", path: "/api/v1/conversations/" + conv + "/messages",
		body: `{"content":"a secret harbour"}`}).is(http.StatusCreated).text("turn", "id")
	own := h.make("ada", "/api/v1/database", `{"name":"Ada's","url":"postgres://ada@127.0.0.1:1/ada?sslmode=disable"}`)
	moving := h.do(call{as: "ada", method: "POST", path: "/api/v1/database/" + own + "/activate"}).is(http.StatusAccepted).text("id")
	hook := h.make("ada", "/api/v1/webhooks", `{"name":"Ada's","url":"http://127.0.0.1:1/","events":["conversation.*"]}`)
	h.make("ada", "/api/v1/conversations", `{}`)
	delivery := h.do(call{as: "ada", method: "GET", path: "/api/v1/webhooks/" + hook + "/deliveries"}).is(http.StatusOK).text("data", "0", "id")
	bobs := h.make("bob", "/api/v1/conversations", `{}`)
	anonymous := func(a answer) string {
		return strings.ReplaceAll(a.Text, a.Header.Get("X-Request-Id"), "")
	}
	probed := 0
	for _, o := range Operations() {
		if !strings.Contains(o.Path, "{id}") || strings.Contains(o.Path, "/sessions/") {
			continue
		}
		probed++
		foreign := conv
		switch {
		case strings.Contains(o.Path, "/projects/"):
			foreign = project
		case strings.Contains(o.Path, "/database/"):
			foreign = own
		case strings.Contains(o.Path, "/webhooks/"):
			foreign = hook
		case strings.Contains(o.Path, "/jobs/"):
			foreign = moving
		}
		body := sample(o)
		fill := func(id, turn string) string {
			return strings.NewReplacer("{id}", id, "{turn_id}", turn, "{delivery_id}", delivery).Replace(o.Path)
		}
		never := h.do(call{as: "bob", method: o.Method, path: concrete(o.Path), body: body}).is(http.StatusNotFound, "not_found")
		for name, path := range map[string]string{
			"foreign":              fill(foreign, turn),
			"malformed":            fill("conv_nonsense", "turn_nonsense"),
			"other kind":           fill(turn, conv),
			"foreign turn in own":  fill(map[bool]string{true: bobs, false: foreign}[strings.Contains(o.Path, "{turn_id}")], turn),
			"upper case":           fill(strings.ToUpper(foreign), strings.ToUpper(turn)),
			"with something at it": fill(foreign+"x", turn+"x"),
		} {
			got := h.do(call{as: "bob", method: o.Method, path: path, body: body})
			if got.Status != http.StatusNotFound || anonymous(got) != anonymous(never) {
				t.Errorf("%s, %s: %d %s, want as for none: %s", o.ID, name, got.Status, got.Text, never.Text)
			}
		}
	}
	// Where the identifier is in the body, it is the same.
	asked := func(id string) answer {
		return h.do(call{as: "bob", method: "POST", path: "/api/v1/database/test", body: `{"id":"` + id + `"}`}).is(http.StatusNotFound, "not_found")
	}
	if theirs, none := asked(own), asked(string(ident.New[ident.DatabaseID]())); anonymous(theirs) != anonymous(none) {
		t.Errorf("%s, want %s", theirs.Text, none.Text)
	}
	if probed < 30 {
		t.Errorf("only %d operations probed", probed)
	}
	// What is spread over all of somebody's things shows none of Ada's.
	for _, path := range []string{"/api/v1/projects", "/api/v1/conversations", "/api/v1/conversations/search?q=harbour", "/api/v1/audit",
		"/api/v1/database", "/api/v1/jobs", "/api/v1/webhooks"} {
		if a := h.do(call{as: "bob", method: "GET", path: path}).is(http.StatusOK); strings.Contains(a.Text, conv) ||
			strings.Contains(a.Text, project) || strings.Contains(a.Text, own) || strings.Contains(a.Text, moving) || strings.Contains(a.Text, hook) || strings.Contains(a.Text, "Ada") {
			t.Errorf("%s shows Ada's: %s", path, a.Text)
		}
	}
	if a := h.do(call{as: "bob", method: "POST", path: "/api/v1/conversations", body: `{"project_id":"` + project + `"}`}); a.Status != 400 {
		t.Errorf("Bob put a conversation into Ada's project: %d", a.Status)
	}
}

func TestDocumentAndRouterAgree(t *testing.T) {
	h := newHouse(t)
	doc, err := openapi3.NewLoader().LoadFromData(h.server.spec.json)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Errorf("the document is not valid: %v", err)
	}
	var described, mounted []string
	for path, item := range doc.Paths.Map() {
		for method, o := range item.Operations() {
			described = append(described, method+" "+path+" "+o.OperationID)
			if o.Summary == "" || len(o.Tags) == 0 || o.Responses.Len() == 0 {
				t.Errorf("%s %s says too little", method, path)
			}
		}
	}
	for _, o := range Operations() {
		if !o.Hidden {
			mounted = append(mounted, o.Method+" "+o.Path+" "+o.ID)
		}
		// The router knows the row, whatever it answers.
		a := h.do(call{method: o.Method, path: concrete(o.Path), body: sample(o)})
		if o.ID == "deliver-answer" {
			a.is(http.StatusNotFound, codeCallbackUnknown) // the address alone decides there, and this is none
			continue
		}
		if a.Status == http.StatusMethodNotAllowed || a.Status == http.StatusNotFound {
			t.Errorf("%s %s is not mounted: %d", o.Method, o.Path, a.Status)
		}
	}
	sort.Strings(described)
	sort.Strings(mounted)
	if !slices.Equal(described, mounted) {
		t.Errorf("described:\n%s\nmounted:\n%s", strings.Join(described, "\n"), strings.Join(mounted, "\n"))
	}
	for name := range doc.Components.Schemas {
		if strings.HasPrefix(name, "Error") {
			t.Errorf("huma's %s is in the document", name)
		}
	}
}

func TestEveryClassHasAStatus(t *testing.T) {
	for _, c := range fault.Classes() {
		if statusOf(c) < 400 || statusOf(c) > 599 {
			t.Errorf("%s has status %d", c, statusOf(c))
		}
		if explain(c.String()).Help == "" {
			t.Errorf("the code of %s is not catalogued", c)
		}
	}
	if statusOf(fault.Class(200)) != 0 {
		t.Error("a class that nobody knows has a status")
	}
}

// inward are codes that no client meets: a floor below turns them into something else.
var inward = map[string]string{
	"repeated":              "the service answers with the first result",
	"master_key_weak":       "the server does not start",
	"weak_secret":           "the server does not start",
	"database_url_invalid":  "the server does not start",
	"database_login_unsafe": "the server does not start",
	"setting_refused":       "a database does not open: tenant_unavailable",
	"transaction_over":      "a defect: internal",
	"job_elsewhere":         "only commands wait for a job in this way",
	"captured":              "emptying ends the capture and begins again",
	"step_taken":            "only the command that begins a step",
	"schema_changed":        "only backups",
	"tenant_erased":         "only restores",
	"tenant_emptied":        "only restores",

	"bad_answer": "a word of an attempt at a webhook delivery",

	"smtp_address_malformed": "the server does not start",
	"smtp_needs_tls":         "the server does not start",
	"mail_from_malformed":    "the server does not start",
	"mail_malformed":         "a defect: internal",
	"mail_client":            "only the log has it",
}

// operators are the beginnings of codes that only commands of the operator's meet.
var operators = []string{"backup_", "restore_", "file_", "storage_address_", "storage_bucket_", "storage_denied"}

func forOperators(code string) bool {
	return slices.ContainsFunc(operators, func(beginning string) bool { return strings.HasPrefix(code, beginning) })
}

func TestEveryCodeInTheSourceIsCatalogued(t *testing.T) {
	codes := map[string]string{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		for _, part := range []string{"/emulator/", "/n8nfake/", "/tmpdeps/", "/pgtest/", "/storetest/"} {
			if strings.Contains(path, part) {
				return nil
			}
		}
		collectCodes(t, path, codes)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(codes) < 20 {
		t.Errorf("only %d codes found: the search is broken", len(codes))
	}
	missing := []string{}
	for code, where := range codes {
		if explain(code).Help == "" && inward[code] == "" && !forOperators(code) {
			missing = append(missing, code+" ("+where+")")
		}
	}
	sort.Strings(missing)
	if len(missing) > 0 {
		t.Errorf("not catalogued:\n%s", strings.Join(missing, "\n"))
	}
}

// collectCodes finds fault.New(class, op, "code", …), fault.Error{Code: "code"} and constants named Code… or code….
func collectCodes(t *testing.T, path string, codes map[string]string) {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
	if err != nil {
		return // somebody is in the middle of an edit; the build says so louder
	}
	note := func(e ast.Expr) {
		lit, ok := e.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return
		}
		if code, err := strconv.Unquote(lit.Value); err == nil && code != "" {
			codes[code] = fmt.Sprint(set.Position(lit.Pos()))
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch v := n.(type) {
		case *ast.CallExpr:
			if f, ok := v.Fun.(*ast.Ident); ok && f.Name == "unavailable" && len(v.Args) > 1 { // sqlstore's
				note(v.Args[1])
			}
			if f, ok := v.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "New" && len(v.Args) == 4 {
				if p, ok := f.X.(*ast.Ident); ok && p.Name == "fault" {
					note(v.Args[2])
				}
			}
		case *ast.CompositeLit:
			f, ok := v.Type.(*ast.SelectorExpr)
			if !ok || f.Sel.Name != "Error" {
				return true
			}
			for _, e := range v.Elts {
				if kv, ok := e.(*ast.KeyValueExpr); ok {
					if k, ok := kv.Key.(*ast.Ident); ok && k.Name == "Code" {
						note(kv.Value)
					}
				}
			}
		case *ast.AssignStmt:
			for i, lhs := range v.Lhs {
				if id, ok := lhs.(*ast.Ident); ok && id.Name == "code" && i < len(v.Rhs) {
					note(v.Rhs[i])
				}
			}
		case *ast.ValueSpec:
			for i, name := range v.Names {
				if i < len(v.Values) && (strings.HasPrefix(name.Name, "Code") || strings.HasPrefix(name.Name, "code")) {
					note(v.Values[i])
				}
			}
		}
		return true
	})
}
