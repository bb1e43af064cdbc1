package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/claude"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/event/catalogue"
	"claude-memory-backend/internal/event/catalogue/cataloguetest"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/outbound"
	"claude-memory-backend/internal/relocate"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/webhook"
	"claude-memory-backend/internal/workspace"
)

// house is a door on real services over SQLite files, with people that need no master database.
type house struct {
	t      testing.TB
	server *Server
	people *people
	log    *lockedBuffer
	router routers.Router
	store  *sqlstore.MasterStore
	whole  *relocate.Service
	jobs   *job.Runner
	pool   *workspace.Pool
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newHouse opens a door; changes adapt its configuration.
func newHouse(t testing.TB, changes ...func(*Config, *Deps)) *house {
	t.Helper()
	return newHouseAt(t, "", nil, changes...)
}

// newHouseAt is newHouse with tenants in the PostgreSQL server at an address, unless that is empty, and with one more
// provider, "other", unless that is nil.
func newHouseAt(t testing.TB, address string, other conversation.Model, changes ...func(*Config, *Deps)) *house {
	t.Helper()
	keys, err := seal.NewKeyring(seal.Secret("a master key of more than 32 bytes, for tests only"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	master, err := sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: filepath.Join(dir, "master.db"), Create: true,
		Synchronous: "NORMAL"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if _, err := sqlstore.Migrate(t.Context(), master, sqlstore.Master); err != nil {
		t.Fatal(err)
	}
	store := sqlstore.NewMasterStore(master, nil)
	// What is on this machine may be reached by users, as their PostgreSQL of these tests is here.
	dialer := outbound.NewDialer(outbound.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}})
	externals := sqlstore.NewExternals(sqlstore.ExternalOptions{Dial: dialer.DialContext, PlainAllowed: dialer.Allowed, Judge: dialer.Judge})
	t.Cleanup(externals.Close)
	hosts := map[string]*sqlstore.LazyHost{}
	if address != "" {
		lazy, err := sqlstore.NewLazyHost(seal.Secret(address), sqlstore.PostgresHostOptions{MaxConns: 4, RuntimePassword: "of the tests' own login"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(lazy.Close)
		if _, err := lazy.Connect(t.Context()); err != nil { // who needs it later waits a second and a half only
			t.Fatal(err)
		}
		hosts["here"] = lazy
	}
	places, err := workspace.NewPlacements(t.Context(), workspace.PlacementsConfig{Root: filepath.Join(dir, "tenants"),
		Synchronous: "NORMAL", Keys: keys, Externals: externals, Hosts: hosts})
	if err != nil {
		t.Fatal(err)
	}
	p := &people{byName: map[string]account.Account{}, store: store, places: places}
	p.add(t, "ada", ident.Member)
	p.add(t, "bob", ident.Member)
	p.add(t, "root", ident.Admin)
	bus := event.NewLocalBus()
	models := map[string]conversation.Model{"scripted": claude.NewScripted(claude.ScriptedConfig{
		WordDelay: time.Millisecond, SlowDelay: 100 * time.Millisecond})}
	if other != nil {
		models["other"] = other
	}
	engine := conversation.NewEngine(conversation.Config{Node: "test", Sole: true, Bus: bus, Default: "scripted",
		Known: []string{"anthropic", "n8n", "other", "scripted"}, FlushAge: 10 * time.Millisecond, Models: models})
	hooks := webhook.NewDispatcher(webhook.Config{Client: outbound.NewClient(dialer, nil), Guard: dialer, Inside: true, Sealer: keys,
		Known: catalogue.Known})
	pool := workspace.NewPool(workspace.Config{Webhooks: hooks, Directory: store, Notes: store, News: store, Grants: store, Hints: store, Trail: store.Trail(),
		Placements: places, Engine: engine, Bus: bus, Sealer: keys, Providers: []string{"anthropic", "n8n", "scripted"}, Sole: true,
		CallbackURL: "https://memory.example/api/v1/n8n/callback/"})
	var used sync.Map // tenants
	t.Cleanup(func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		if err := engine.Close(ended); err != nil {
			t.Error(err)
		}
		hooks.Close(ended)
		used.Range(func(id, _ any) bool {
			checkEvents(t, pool, id.(ident.TenantID))
			return true
		})
		within, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := pool.Close(within); err != nil {
			t.Error(err)
		}
	})
	log := &lockedBuffer{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	whole := relocate.New(relocate.Config{Store: store, Places: places, Pool: pool, Probe: externals, Keys: keys, Bus: bus,
		Log: logger, Node: "test", Sole: true})
	jobs := job.NewRunner(job.Config{Store: store, Node: "test", Sole: true, Kinds: whole.Work(), Left: whole.LeftWork(), Log: logger, Every: 20 * time.Millisecond})
	whole.Wake = jobs.Wake
	cfg := Config{Version: "1.2.3", AllowedOrigins: []string{"https://app.example"}, DocsPage: true,
		OnceSecret: []byte("the secret of idempotent requests, for tests")}
	deps := Deps{Accounts: p, Proof: p, Databases: whole, Jobs: whole, Eraser: whole, Log: logger,
		Open: func(ctx context.Context, actor ident.Actor, id ident.TenantID) (Workspace, error) {
			used.Store(id, true)
			return opened(pool.Acquire(ctx, actor, id))
		},
		Visit: func(ctx context.Context, actor ident.Actor, subject string) (Workspace, error) {
			return opened(pool.Visit(ctx, actor, subject))
		},
		Enter: func(ctx context.Context, actor ident.Actor, own ident.TenantID, subject string) (Workspace, error) {
			return opened(pool.Enter(ctx, actor, own, subject))
		}}
	if d, ok := other.(Deliverer); ok {
		deps.Callback, deps.Deliverer = pool.Callback, d
	}
	for _, change := range changes {
		change(&cfg, &deps)
	}
	h := &house{t: t, people: p, log: log, store: store, whole: whole, jobs: jobs, pool: pool}
	if h.server, err = NewServer(cfg, deps); err != nil {
		t.Fatal(err)
	}
	h.router = routerOf(t, h.server)
	return h
}

// standing stops the door's clock: limits give nothing back while a busy machine takes its time.
func standing(_ *Config, d *Deps) {
	now := time.Now()
	d.Now = func() time.Time { return now }
}

// patient lets a request wait for as long as an erasure may take on a busy machine.
func patient(c *Config, _ *Deps) { c.EraseTime, c.RequestTime = 2*time.Minute, 2*time.Minute }

// checkEvents holds what a tenant was told against the catalogue. One that cannot be read any more told nothing.
func checkEvents(t testing.TB, pool *workspace.Pool, id ident.TenantID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ws, err := pool.Acquire(ctx, ident.System(""), id)
	if err != nil {
		return
	}
	defer ws.Release()
	list, err := ws.Events.Since(ctx, 0, 100_000)
	if err != nil {
		return
	}
	cataloguetest.Check(t, list)
}

func opened(ws *workspace.Workspace, err error) (Workspace, error) {
	if err != nil {
		return Workspace{}, err
	}
	out := Workspace{Projects: ws.Projects, Members: ws.Members, Conversations: ws.Conversations, Turns: ws.Conversations,
		Events: ws.Events, Tenant: ws.Tenant.ID, Release: ws.Release}
	if ws.Pass.Guest() {
		out.While = ws.While
	} else {
		out.Audit, out.Usage = ws.Audit, ws.Usage
		if ws.Webhooks != nil {
			out.Webhooks = ws.Webhooks
		}
	}
	return out, nil
}

// work runs jobs until the test ends.
func (h *house) work() {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = h.jobs.Run(ctx) }()
	h.t.Cleanup(func() { cancel(); <-ended })
}

// routerOf checks the server's document and makes the router that answers are held against. Hundreds of houses have a few
// documents between them, and to check one takes longer than all that most houses are asked: it is done once for each.
func routerOf(t testing.TB, s *Server) routers.Router {
	t.Helper()
	made, _ := checkedRouters.LoadOrStore(string(s.spec.json), sync.OnceValues(func() (routers.Router, error) {
		doc, err := openapi3.NewLoader().LoadFromData(s.spec.json)
		if err != nil {
			return nil, err
		}
		return legacy.NewRouter(doc)
	}))
	router, err := made.(func() (routers.Router, error))()
	if err != nil {
		t.Fatal(err)
	}
	return router
}

// checkedRouters are those of routerOf, by the text of their documents. A router is only read, by any number of tests.
var checkedRouters sync.Map

// call is one request of a scenario.
type call struct {
	as     string // name of who asks; empty: a stranger
	method string
	path   string
	header map[string]string
	body   string
}

// answer is what came back.
type answer struct {
	t      testing.TB
	Status int
	Header http.Header
	Text   string
}

// do sends a request and checks what holds for every answer.
func (h *house) do(c call) answer {
	h.t.Helper()
	r := httptest.NewRequestWithContext(h.t.Context(), c.method, c.path, strings.NewReader(c.body))
	r.RemoteAddr = "192.0.2.7:4711"
	if c.body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if c.as != "" {
		r.Header.Set("Authorization", "Bearer access-"+c.as)
	}
	for k, v := range c.header {
		if v == "" {
			r.Header.Del(k)
			continue
		}
		r.Header.Set(k, v)
	}
	asked := r.Clone(context.Background())
	w := httptest.NewRecorder()
	h.server.Handler().ServeHTTP(w, r)
	a := answer{h.t, w.Code, w.Header(), w.Body.String()}
	h.check(asked, a)
	return a
}

// check asserts what the interface promises of every answer, and that the document describes it.
func (h *house) check(r *http.Request, a answer) {
	h.t.Helper()
	for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"} {
		if got := a.Header.Get(name); got != want {
			h.t.Errorf("%s %s: %s is %q", r.Method, r.URL.Path, name, got)
		}
	}
	if a.Header.Get("X-Request-Id") == "" || a.Header.Get("Content-Security-Policy") == "" {
		h.t.Errorf("%s %s: no request id or no policy", r.Method, r.URL.Path)
	}
	if a.Status >= 400 {
		checkProblem(h.t, a)
	}
	route, params, err := h.router.FindRoute(r)
	if err != nil || a.Status == http.StatusMethodNotAllowed || strings.HasSuffix(r.URL.Path, "/") {
		return // pages, and what is not there
	}
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route},
		Status:                 a.Status, Header: a.Header,
		Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
	}
	if strings.HasPrefix(a.Header.Get("Content-Type"), "text/") {
		in.Options.ExcludeResponseBody = true
	}
	in.SetBodyBytes([]byte(a.Text))
	if err := openapi3filter.ValidateResponse(context.Background(), in); err != nil {
		h.t.Errorf("%s %s %d is not as documented: %v", r.Method, r.URL.Path, a.Status, err)
	}
}

// checkProblem asserts the shape of an error.
func checkProblem(t testing.TB, a answer) {
	t.Helper()
	if got := a.Header.Get("Content-Type"); got != problemType {
		t.Errorf("an error of type %q: %s", got, a.Text)
		return
	}
	var p map[string]any
	if err := json.Unmarshal([]byte(a.Text), &p); err != nil {
		t.Errorf("an error that is no JSON: %v", err)
		return
	}
	for name := range p {
		if !slices.Contains([]string{"type", "title", "status", "detail", "code", "request_id", "errors"}, name) {
			t.Errorf("a problem has %q", name)
		}
	}
	code, _ := p["code"].(string)
	if p["status"] != float64(a.Status) || p["request_id"] != a.Header.Get("X-Request-Id") || p["title"] == "" ||
		p["detail"] == "" || p["type"] != "/api/docs/errors#"+code {
		t.Errorf("a problem that contradicts itself: %s", a.Text)
	}
	if explain(code).Help == "" {
		t.Errorf("code %q is not catalogued", code)
	}
	switch a.Status {
	case http.StatusUnauthorized:
		if !strings.HasPrefix(a.Header.Get("WWW-Authenticate"), "Bearer") {
			t.Error("401 without WWW-Authenticate")
		}
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		if n, err := strconv.Atoi(a.Header.Get("Retry-After")); err != nil || n < 1 {
			t.Errorf("%d with Retry-After %q", a.Status, a.Header.Get("Retry-After"))
		}
	case http.StatusMethodNotAllowed:
		if a.Header.Get("Allow") == "" {
			t.Error("405 without Allow")
		}
	}
}

// is asserts the status, and the code for an error.
func (a answer) is(status int, code ...string) answer {
	a.t.Helper()
	if a.Status != status {
		a.t.Fatalf("status %d, want %d: %s", a.Status, status, a.Text)
	}
	if len(code) > 0 && a.text("code") != code[0] {
		a.t.Fatalf("code %q, want %q: %s", a.text("code"), code[0], a.Text)
	}
	return a
}

// at follows names into the JSON of the answer.
func (a answer) at(path ...string) any {
	a.t.Helper()
	var v any
	if err := json.Unmarshal([]byte(a.Text), &v); err != nil {
		a.t.Fatalf("no JSON: %v: %s", err, a.Text)
	}
	for _, name := range path {
		switch x := v.(type) {
		case map[string]any:
			v = x[name]
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i >= len(x) {
				return nil
			}
			v = x[i]
		default:
			return nil
		}
	}
	return v
}

// text is at for strings; "" when there is none.
func (a answer) text(path ...string) string {
	a.t.Helper()
	s, _ := a.at(path...).(string)
	return s
}

// make creates something and returns its id.
func (h *house) make(as, path, body string) string {
	h.t.Helper()
	return h.do(call{as: as, method: "POST", path: path, body: body}).is(http.StatusCreated).text("id")
}

// people is a door's Accounts and Proof, in memory. Everybody's password is the same one.
type people struct {
	mu      sync.Mutex
	byName  map[string]account.Account
	store   *sqlstore.MasterStore
	places  *workspace.Placements
	refused error // what Login answers
	forgot  []ident.AccountID
}

const password = "a harbour at night"

func (p *people) add(t testing.TB, name string, role ident.Role) {
	t.Helper()
	now := time.Now().UTC().Truncate(time.Microsecond)
	a := account.Account{ID: ident.New[ident.AccountID](), Email: name + "@example.org", Role: role, State: account.Active,
		Details: account.Details{Name: name}, Tenant: ident.New[ident.TenantID](), Version: 1, CreatedAt: now, UpdatedAt: now}
	at, err := p.places.Provision(t.Context(), a.Tenant)
	if err != nil {
		t.Fatal(err)
	}
	p.byName[name] = a
	n := account.Newcomer{Account: a, Hash: "none", Tenant: tenant.Tenant{ID: a.Tenant, Account: a.ID, Placement: at,
		State: tenant.Active, CreatedAt: now}}
	if _, err := p.store.InsertAccount(t.Context(), n, func(account.Account) event.Change { return event.Change{} }); err != nil {
		t.Fatal(err)
	}
}

func (p *people) Prove(_ context.Context, _ ident.Actor, given string) error {
	if given != password {
		return fault.New(fault.Forbidden, "people", "wrong_password", "the current password is wrong")
	}
	return nil
}

func (p *people) Forget(id ident.AccountID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forgot = append(p.forgot, id)
}

func (p *people) grant(a account.Account) account.Grant {
	name := a.Name
	return account.Grant{Account: a, Session: ident.New[ident.SessionID](), AccessToken: account.AccessToken("access-" + name),
		ExpiresIn: 15 * time.Minute, RefreshToken: account.RefreshToken("refresh-" + name),
		RefreshUntil: time.Now().Add(24 * time.Hour)}
}

func (p *people) Register(_ context.Context, in account.RegisterInput, _ account.Origin) (account.Grant, error) {
	name, _, _ := strings.Cut(in.Email, "@")
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, taken := p.byName[name]; taken {
		return account.Grant{}, fault.New(fault.Conflict, "people", "email_taken", "there is an account with that e-mail")
	}
	a := account.Account{ID: ident.New[ident.AccountID](), Email: in.Email, Details: account.Details{Name: name},
		Role: ident.Member, CreatedAt: time.Now()}
	p.byName[name] = a
	return p.grant(a), nil
}

func (p *people) Login(_ context.Context, email, _ string, _ account.Origin) (account.Grant, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name, _, _ := strings.Cut(email, "@")
	a, ok := p.byName[name]
	if !ok {
		return account.Grant{}, fault.New(fault.Unauthenticated, "people", "wrong_credentials", "e-mail or password is wrong")
	}
	return p.grant(a), p.refused
}

func (p *people) Refresh(_ context.Context, token account.RefreshToken, _ account.Origin) (account.Grant, error) {
	a, err := p.find(strings.TrimPrefix(token.Reveal(), "refresh-"))
	return p.grant(a), err
}

func (p *people) Verify(_ context.Context, token account.AccessToken, from account.Origin) (account.Identity, error) {
	a, err := p.find(strings.TrimPrefix(token.Reveal(), "access-"))
	return account.Identity{Actor: ident.Actor{Account: a.ID, Name: a.Name, Role: a.Role}, Tenant: a.Tenant,
		ExpiresAt: time.Now().Add(15 * time.Minute)}, err
}

func (p *people) Ticket(actor ident.Actor, _ time.Time) (account.Ticket, error) {
	return account.Ticket("cmt_" + actor.Name), nil
}

func (p *people) Redeem(ctx context.Context, t account.Ticket, from account.Origin) (account.Identity, error) {
	return p.Verify(ctx, account.AccessToken("access-"+strings.TrimPrefix(string(t), "cmt_")), from)
}

func (p *people) find(name string) (account.Account, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.byName[name]
	if !ok {
		return a, fault.New(fault.Unauthenticated, "people", codeTokenInvalid, "the token is not valid")
	}
	return a, nil
}

func (p *people) Deny(context.Context, ident.Actor, string) error { return nil }
func (p *people) Logout(context.Context, ident.Actor) error       { return nil }
func (p *people) LogoutAll(context.Context, ident.Actor) error    { return nil }

func (p *people) Find(_ context.Context, actor ident.Actor) (account.Account, error) {
	return p.find(actor.Name)
}

func (p *people) Edit(_ context.Context, actor ident.Actor, change func(*account.Details) error) (account.Account, error) {
	a, err := p.find(actor.Name)
	if err != nil {
		return a, err
	}
	err = change(&a.Details)
	return a, err
}

func (p *people) ChangePassword(context.Context, ident.Actor, string, string) error { return nil }

func (p *people) Sessions(context.Context, ident.Actor, string, int) ([]account.Session, string, error) {
	return []account.Session{{ID: ident.New[ident.SessionID](), Device: "test", CreatedAt: time.Now(), Current: true}}, "", nil
}

func (p *people) EndSession(context.Context, ident.Actor, ident.SessionID) error {
	return fault.Missing("people")
}

// live serves a house on a real listener, for streams.
func (h *house) live() *httptest.Server {
	h.t.Helper()
	s := httptest.NewServer(h.server.Handler())
	h.t.Cleanup(s.Close)
	return s
}

// sseEvent is one event of a stream.
type sseEvent struct{ id, kind, data string }

// readEvents reads a whole stream.
func readEvents(t testing.TB, r io.Reader) []sseEvent {
	t.Helper()
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return parseEvents(string(raw))
}

func parseEvents(text string) []sseEvent {
	var list []sseEvent
	for part := range strings.SplitSeq(text, "\n\n") {
		var e sseEvent
		for line := range strings.SplitSeq(part, "\n") {
			name, value, _ := strings.Cut(line, ": ")
			switch name {
			case "id":
				e.id = value
			case "event":
				e.kind = value
			case "data":
				e.data = value
			}
		}
		if e.kind != "" {
			list = append(list, e)
		}
	}
	return list
}
