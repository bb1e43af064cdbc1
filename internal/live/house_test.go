package live_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/claude"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/httpapi"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/live"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/workspace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	password = "correct horse 9 battery"
	patience = 30 * time.Second
)

// house is a whole server: accounts, tenants in SQLite files, both doors, real sockets.
type house struct {
	t        testing.TB
	store    *sqlstore.MasterStore
	accounts *account.Service
	pool     *workspace.Pool
	bus      event.Bus
	keys     *seal.Keyring
	nodes    []*node
	log      *lockedBuffer
	ahead    *atomic.Int64 // by how much the house's clock is, in nanoseconds
}

// now is the time in the house.
func (h *house) now() time.Time { return time.Now().Add(time.Duration(h.ahead.Load())) }

// pass lets time go by.
func (h *house) pass(d time.Duration) { h.ahead.Add(int64(d)) }

const tokenLife = 10 * time.Minute

// node is one server of the house.
type node struct {
	hub    *live.Hub
	server *httptest.Server
	stop   func()
	letIn  atomic.Pointer[func()] // called once, when it is known who wants a connection or a stream, and before the hub is
	coming atomic.Pointer[func()] // called while a connection becomes a WebSocket, when it was let in and is not here yet
}

// porter is a node's hub, and does first what the node wants done.
type porter struct {
	*live.Hub
	node *node
}

func (p porter) first() {
	if f := p.node.letIn.Swap(nil); f != nil {
		(*f)()
	}
}

func (p porter) Accept(w http.ResponseWriter, r *http.Request, who *account.Identity, from account.Origin) error {
	p.first()
	return p.Hub.Accept(w, r, who, from)
}

func (p porter) Watch(who account.Identity, in ident.TenantID, subject string) (over <-chan struct{}, leave func(), err error) {
	p.first()
	return p.Hub.Watch(who, in, subject)
}

// visitors calls a function when a connection is taken over.
type visitors struct {
	http.ResponseWriter
	come func()
}

func (v visitors) Unwrap() http.ResponseWriter { return v.ResponseWriter }

func (v visitors) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	v.come()
	return http.NewResponseController(v.ResponseWriter).Hijack()
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

// newHouse opens a house with one node; change adapts every hub.
func newHouse(t testing.TB, change func(*live.Config)) *house {
	t.Helper()
	return newHouseAt(t, "", change)
}

// onBoth runs a test with tenants in SQLite files, and with tenants in PostgreSQL.
func onBoth(t *testing.T, test func(t *testing.T, address string)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { test(t, "") })
	t.Run("postgres", func(t *testing.T) { test(t, pgtest.URL(t)) })
}

// newHouseAt is newHouse with tenants in the PostgreSQL server at an address, unless that is empty.
func newHouseAt(t testing.TB, address string, change func(*live.Config)) *house {
	t.Helper()
	keys, err := seal.NewKeyring("a master key of more than 32 bytes, for tests only")
	must(t, err)
	dir := t.TempDir()
	master, err := sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: filepath.Join(dir, "master.db"), Create: true, Synchronous: "NORMAL"})
	must(t, err)
	t.Cleanup(func() { _ = master.Close() })
	_, err = sqlstore.Migrate(t.Context(), master, sqlstore.Master)
	must(t, err)
	h := &house{t: t, keys: keys, bus: event.NewLocalBus(), log: &lockedBuffer{}, ahead: new(atomic.Int64)}
	h.store = sqlstore.NewMasterStore(master, func(seq event.Seq) {
		h.bus.Publish(context.Background(), event.Signal{Topic: "master", Kind: event.Committed, Seq: seq})
	})
	hosts := map[string]*sqlstore.LazyHost{}
	if address != "" {
		lazy, err := sqlstore.NewLazyHost(seal.Secret(address), sqlstore.PostgresHostOptions{MaxConns: 8, RuntimePassword: "of the tests' own login"})
		must(t, err)
		t.Cleanup(lazy.Close)
		_, err = lazy.Connect(t.Context()) // who needs it later waits a second and a half only
		must(t, err)
		hosts["here"] = lazy
	}
	places, err := workspace.NewPlacements(t.Context(), workspace.PlacementsConfig{Root: filepath.Join(dir, "tenants"), Synchronous: "NORMAL", Keys: keys,
		Hosts: hosts})
	must(t, err)
	log := slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	engine := conversation.NewEngine(conversation.Config{Node: "test", Sole: true, Bus: h.bus, Default: "scripted", Known: []string{"scripted", "promises"},
		FlushAge: 10 * time.Millisecond, Models: map[string]conversation.Model{"promises": promises{}, "scripted": claude.NewScripted(claude.ScriptedConfig{
			WordDelay: 2 * time.Millisecond, SlowDelay: 50 * time.Millisecond})}})
	h.pool = workspace.NewPool(workspace.Config{Directory: h.store, Notes: h.store, Hints: h.store, Trail: h.store.Trail(), Placements: places,
		Engine: engine, Bus: h.bus, Sealer: keys, Providers: []string{"scripted"}, Sole: true, Log: log})
	h.accounts = h.newAccounts(places)
	t.Cleanup(func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		must(t, engine.Close(ended))
		within, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		must(t, h.pool.Close(within))
	})
	h.addNode(change)
	return h
}

func (h *house) newAccounts(places *workspace.Placements) *account.Service {
	h.t.Helper()
	s, err := account.New(account.Config{Secret: "a secret of the tests, 0123456789 abcdef", AccessLife: tokenLife, Now: h.now, Throttle: account.Throttle{Off: true}},
		h.store, places, account.NewHasher(account.HasherConfig{Workers: 2, Queue: 64, Memory: 8, Passes: 1, Patience: time.Minute}), h.keys)
	must(h.t, err)
	return s
}

// addNode starts one more server over the same databases and the same bus.
func (h *house) addNode(change func(*live.Config)) *node {
	h.t.Helper()
	log := slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	secret := []byte("the secret of idempotent requests, for tests")
	feeds := workspace.NewFeeds(h.pool, time.Minute)
	c := live.Config{Accounts: h.accounts, Pool: h.pool, Feeds: feeds, Bus: h.bus, Master: h.store,
		Words: httpapi.Words{OnceSecret: secret, Now: h.now}, Now: h.now, Node: string(ident.New[ident.EventID]()), Log: log,
		// A busy machine is no silent client; who looks at one of these times sets it.
		AuthTime: time.Minute, ActionTime: time.Minute, WriteTime: time.Minute, CloseTime: patience}
	if change != nil {
		change(&c)
	}
	hub := live.New(c)
	n := &node{hub: hub}
	opened := func(ws *workspace.Workspace, err error) (httpapi.Workspace, error) {
		if err != nil {
			return httpapi.Workspace{}, err
		}
		return httpapi.Workspace{Projects: ws.Projects, Members: ws.Members, Conversations: ws.Conversations, Turns: ws.Conversations,
			Audit: ws.Audit, Events: ws.Events, Tenant: ws.Tenant.ID, Usage: ws.Usage, Release: ws.Release}, nil
	}
	door, err := httpapi.NewServer(httpapi.Config{Version: "1", AllowedOrigins: []string{"https://app.example"}, OnceSecret: secret, QueryToken: true},
		httpapi.Deps{Accounts: h.accounts, Now: h.now, Log: log, Collectors: hub.Collectors(), Live: porter{hub, n},
			Open: func(ctx context.Context, actor ident.Actor, id ident.TenantID) (httpapi.Workspace, error) {
				return opened(h.pool.Acquire(ctx, actor, id))
			},
			Visit: func(ctx context.Context, actor ident.Actor, subject string) (httpapi.Workspace, error) {
				return opened(h.pool.Visit(ctx, actor, subject))
			},
			Enter: func(ctx context.Context, actor ident.Actor, own ident.TenantID, subject string) (httpapi.Workspace, error) {
				return opened(h.pool.Enter(ctx, actor, own, subject))
			},
			Listen: func(ctx context.Context, id ident.TenantID, l workspace.Listener) (event.Seq, func(), error) {
				return feeds.Listen(ctx, id, l)
			}, Again: feeds.Again})
	must(h.t, err)
	n.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if come := n.coming.Load(); come != nil && r.URL.Path == "/ws" {
			w = visitors{w, *come}
		}
		door.Handler().ServeHTTP(w, r)
	}))
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() { defer close(ran); _ = hub.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		door.Drain()
		within, done := context.WithTimeout(context.Background(), patience)
		defer done()
		must(h.t, hub.Close(within))
		cancel()
		<-ran
		n.server.Close()
		feeds.Close()
		if st := hub.Stats(); st != (live.Stats{}) {
			h.t.Errorf("left behind: %+v", st)
		}
	})
	h.t.Cleanup(n.stop)
	h.nodes = append(h.nodes, n)
	return n
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// user is somebody with an account.
type user struct {
	h     *house
	email string
	id    string
	token string
}

func (h *house) user(name string) *user {
	h.t.Helper()
	u := &user{h: h, email: name + "@example.org"}
	var got struct {
		Token string `json:"access_token"`
		User  struct{ ID string }
	}
	u.call(0, "POST", "/api/v1/auth/register", map[string]any{"email": u.email, "password": password, "name": name}, 201, &got)
	u.token, u.id = got.Token, got.User.ID
	return u
}

// again signs in once more: another session.
func (u *user) again() *user {
	u.h.t.Helper()
	v := &user{h: u.h, email: u.email, id: u.id}
	var got struct {
		Token string `json:"access_token"`
	}
	v.call(0, "POST", "/api/v1/auth/login", map[string]any{"email": u.email, "password": password}, 200, &got)
	v.token = got.Token
	return v
}

// call asks a node and reads the answer.
func (u *user) call(node int, method, path string, body any, status int, into any) {
	u.h.t.Helper()
	var r io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		must(u.h.t, err)
		r = bytes.NewReader(raw)
	}
	q, err := http.NewRequestWithContext(u.h.t.Context(), method, u.h.nodes[node].server.URL+path, r)
	must(u.h.t, err)
	q.Header.Set("Content-Type", "application/json")
	if u.token != "" {
		q.Header.Set("Authorization", "Bearer "+u.token)
	}
	w, err := u.h.nodes[node].server.Client().Do(q)
	must(u.h.t, err)
	defer func() { _ = w.Body.Close() }()
	raw, err := io.ReadAll(w.Body)
	must(u.h.t, err)
	if w.StatusCode != status {
		u.h.t.Fatalf("%s %s: %d, want %d: %s", method, path, w.StatusCode, status, raw)
	}
	if into != nil {
		must(u.h.t, json.Unmarshal(raw, into))
	}
}

// make makes something and returns its id.
func (u *user) make(path string, body map[string]any) string {
	u.h.t.Helper()
	var got struct{ ID string }
	u.call(0, "POST", "/api/v1"+path, body, 201, &got)
	return got.ID
}

func (u *user) ticket() string {
	u.h.t.Helper()
	var got struct {
		Ticket string
		In     int `json:"expires_in"`
	}
	u.call(0, "POST", "/api/v1/auth/ws-ticket", nil, 200, &got)
	if got.In != 30 {
		u.h.t.Errorf("expires in %d", got.In)
	}
	return got.Ticket
}

// dial tries to open a socket; status is the answer's.
func (h *house) dial(node int, query string, header http.Header) (*socket, int) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	defer cancel()
	ws, w, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(h.nodes[node].server.URL, "http")+"/ws"+query, &websocket.DialOptions{HTTPHeader: header})
	if err != nil {
		if w == nil {
			h.t.Fatal(err)
		}
		return nil, w.StatusCode
	}
	ws.SetReadLimit(-1)
	s := &socket{t: h.t, ws: ws, frames: make(chan frame, 10_000), closed: make(chan struct{})}
	go s.read()
	h.t.Cleanup(s.drop)
	return s, 101
}

// dialVia opens a socket over a connection that the caller changes first; nobody reads it yet.
func (u *user) dialVia(change func(net.Conn) net.Conn) *websocket.Conn {
	u.h.t.Helper()
	d := &net.Dialer{}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return change(c), nil
	}}}
	ws, _, err := websocket.Dial(u.h.t.Context(), "ws"+strings.TrimPrefix(u.h.nodes[0].server.URL, "http")+"/ws?ticket="+u.ticket(),
		&websocket.DialOptions{HTTPClient: client})
	must(u.h.t, err)
	ws.SetReadLimit(-1)
	u.h.t.Cleanup(func() { _ = ws.CloseNow() })
	return ws
}

// metrics are the first node's.
func (h *house) metrics() string {
	h.t.Helper()
	q, err := http.NewRequestWithContext(h.t.Context(), "GET", h.nodes[0].server.URL+"/api/v1/health/metrics", nil)
	must(h.t, err)
	w, err := h.nodes[0].server.Client().Do(q)
	must(h.t, err)
	defer func() { _ = w.Body.Close() }()
	raw, err := io.ReadAll(w.Body)
	must(h.t, err)
	return string(raw)
}

// connect opens a socket with a ticket.
func (u *user) connect() *socket { return u.connectTo(0) }

func (u *user) connectTo(node int) *socket {
	u.h.t.Helper()
	s, status := u.h.dial(node, "?ticket="+u.ticket(), nil)
	if s == nil {
		u.h.t.Fatalf("refused with %d", status)
	}
	if f := s.next("connected"); f.text("user_id") != u.id {
		u.h.t.Errorf("connected as %s", f.Data)
	}
	return s
}

// socket is a client.
type socket struct {
	t      testing.TB
	ws     *websocket.Conn
	frames chan frame
	closed chan struct{}
	code   websocket.StatusCode // once closed
}

type frame struct {
	Type string          `json:"type"`
	ID   json.RawMessage `json:"id"`
	Data json.RawMessage `json:"data"`
}

func (f frame) field(name string) any {
	var m map[string]any
	_ = json.Unmarshal(f.Data, &m)
	return m[name]
}

func (f frame) text(name string) string {
	s, _ := f.field(name).(string)
	return s
}

func (f frame) number(name string) int {
	n, _ := f.field(name).(float64)
	return int(n)
}

func (s *socket) read() {
	defer close(s.closed)
	for {
		_, raw, err := s.ws.Read(context.Background())
		if err != nil {
			s.code = websocket.CloseStatus(err)
			return
		}
		var f frame
		if json.Unmarshal(raw, &f) != nil {
			s.t.Errorf("not a frame: %s", raw)
		}
		s.frames <- f
	}
}

func (s *socket) drop() {
	_ = s.ws.CloseNow()
	<-s.closed
}

func (s *socket) send(kind string, data any) { s.sendAs(kind, "", data) }

func (s *socket) sendAs(kind, id string, data any) {
	s.t.Helper()
	m := map[string]any{"type": kind, "data": data}
	if id != "" {
		m["id"] = id
	}
	raw, err := json.Marshal(m)
	must(s.t, err)
	s.write(string(raw))
}

func (s *socket) write(raw string) {
	s.t.Helper()
	if err := s.ws.Write(s.t.Context(), websocket.MessageText, []byte(raw)); err != nil && !isClosed(err) {
		s.t.Fatal(err)
	}
}

func isClosed(err error) bool {
	return websocket.CloseStatus(err) != -1 || strings.Contains(err.Error(), net.ErrClosed.Error()) || strings.Contains(err.Error(), "broken pipe") ||
		strings.Contains(err.Error(), "reset by peer")
}

// next waits for the next frame of one of the types, over others.
func (s *socket) next(kinds ...string) frame {
	s.t.Helper()
	return s.nextThat(strings.Join(kinds, " or "), func(f frame) bool {
		for _, k := range kinds {
			if f.Type == k {
				return true
			}
		}
		return false
	})
}

func (s *socket) nextThat(what string, is func(frame) bool) frame {
	s.t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		select {
		case f := <-s.frames:
			if is(f) {
				return f
			}
		case <-s.closed:
			select {
			case f := <-s.frames:
				if is(f) {
					return f
				}
				continue
			default:
			}
			s.t.Fatalf("no %s: closed with %d", what, s.code)
		case <-late.C:
			s.t.Fatalf("no %s", what)
		}
	}
}

// event waits for an event of the type.
func (s *socket) event(kind string) frame {
	s.t.Helper()
	return s.nextThat("event "+kind, func(f frame) bool { return f.Type == "event" && f.text("type") == kind })
}

// ends waits for the close code.
func (s *socket) ends() websocket.StatusCode {
	s.t.Helper()
	select {
	case <-s.closed:
		return s.code
	case <-time.After(patience):
		s.t.Fatal("it stays open")
		return 0
	}
}

// join joins a room and returns its seq.
func (s *socket) join(room string) int {
	s.t.Helper()
	s.sendAs("join_room", "j", map[string]any{"room_id": room})
	return s.next("room_joined").number("seq")
}

func (f frame) refused(t testing.TB, code string) {
	t.Helper()
	if f.text("code") != code {
		t.Errorf("refused with %s, want %s", f.Data, code)
	}
}
