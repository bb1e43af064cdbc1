package webhook_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claude-memory-backend/internal/clocktest"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/event/catalogue"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/outbound"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/webhook"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ada = ident.Actor{Account: "usr_ada", Name: "Ada"}

// part counts who keeps the tenant open, and remembers what was owed.
type part struct {
	mu   sync.Mutex
	idle *sync.Cond
	held int
	owed []time.Time
}

func newPart() *part {
	p := &part{}
	p.idle = sync.NewCond(&p.mu)
	return p
}

func (p *part) Retain() func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.held--
		p.idle.Broadcast()
	}
}

func (p *part) Owe(_ context.Context, due time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.owed = append(p.owed, due)
}

// settled waits until nobody works on the tenant.
func (p *part) settled() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.held > 0 {
		p.idle.Wait()
	}
}

// names are what the resolver knows.
type names struct {
	mu    sync.Mutex
	known map[string][]string // one answer after the other; the last one stays
	asked int
}

func (n *names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	list := n.known[host]
	if len(list) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	if len(list) > 1 {
		n.known[host] = list[1:]
	}
	return []netip.Addr{netip.MustParseAddr(list[0])}, nil
}

// world is one tenant with its webhooks.
type world struct {
	testing.TB
	*webhook.Service
	d      *webhook.Dispatcher
	store  *sqlstore.TenantStore
	part   *part
	clock  *clocktest.Clock
	names  *names
	keys   *seal.Keyring
	config webhook.Config
	told   []webhook.Endpoint
}

func newWorld(t testing.TB, changes ...func(*webhook.Config)) *world {
	t.Helper()
	db, err := sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: filepath.Join(t.TempDir(), "tenant.db"), Create: true, Synchronous: "NORMAL"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sqlstore.Migrate(t.Context(), db, sqlstore.Tenant); err != nil {
		t.Fatal(err)
	}
	w := &world{TB: t, store: sqlstore.NewTenantStore(db, nil), part: newPart(), names: &names{known: map[string][]string{}},
		clock: clocktest.New(time.Now().UTC().Truncate(time.Microsecond))}
	if w.keys, err = seal.NewKeyring("an entirely unguessable phrase, 0123456789"); err != nil {
		t.Fatal(err)
	}
	// 127.0.0.1 may be reached, 127.0.0.2 is inside.
	dialer := outbound.NewDialer(outbound.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, Resolver: w.names})
	w.config = webhook.Config{Client: outbound.NewClient(dialer, nil), Guard: dialer, Inside: true, Sealer: w.keys, Now: w.clock.Now,
		Known: catalogue.Known, Tell: func(_ context.Context, _ ident.AccountID, e webhook.Endpoint) error {
			w.told = append(w.told, e)
			return nil
		}}
	for _, change := range changes {
		change(&w.config)
	}
	w.start()
	t.Cleanup(func() {
		w.stop()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// neighbour is another tenant in the same process.
func (w *world) neighbour() *world {
	w.Helper()
	n := newWorld(w, func(c *webhook.Config) { *c = w.config })
	n.stop()
	n.d, n.clock = w.d, w.clock
	n.Service = n.d.Service(n.store, "ten_neighbour", ada.Account, n.part)
	n.store.Outbox(n.Promise, n.Queued)
	return n
}

// start begins a process.
func (w *world) start() {
	w.d = webhook.NewDispatcher(w.config)
	w.Service = w.d.Service(w.store, "ten_ada", ada.Account, w.part)
	w.store.Outbox(w.Promise, w.Queued)
}

func (w *world) stop() {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	w.d.Close(now)
}

// hook registers an endpoint.
func (w *world) hook(url string, changes ...func(*webhook.Details)) webhook.Issued {
	w.Helper()
	d := webhook.Details{Name: "hook", URL: url, Events: []string{"message.*"}}
	for _, change := range changes {
		change(&d)
	}
	i, err := w.Create(w.Context(), ada, webhook.CreateInput{Details: d})
	if err != nil {
		w.Fatal(err)
	}
	return i
}

// happen commits events, in a conversation if one is named.
func (w *world) happen(n int, conversation string) {
	w.Helper()
	ch := event.NewChange(ada, w.clock.Now())
	for i := range n {
		data := map[string]any{"n": i}
		if conversation != "" {
			data["conversation_id"] = conversation
		}
		ch.Add("message.created", fmt.Sprint("msg_", i), data)
	}
	if err := w.store.Note(w.Context(), ch); err != nil {
		w.Fatal(err)
	}
}

// later moves the clock, has what is due sent, and waits until that is over.
func (w *world) later(d time.Duration) {
	w.Helper()
	w.part.settled()
	w.clock.Pass(d)
	if _, err := w.Sweep(w.Context()); err != nil {
		w.Fatal(err)
	}
	w.part.settled()
}

// last is the newest delivery of an endpoint, with all its attempts, once nobody works on it.
func (w *world) last(i webhook.Issued) webhook.Delivery {
	w.Helper()
	w.part.settled()
	list, _, err := w.Deliveries(w.Context(), ada, i.Endpoint.ID, webhook.DeliveryQuery{Limit: 1})
	if err != nil || len(list) == 0 {
		w.Fatalf("%v, %v", list, err)
	}
	d, err := w.Delivery(w.Context(), ada, i.Endpoint.ID, list[0].ID)
	if err != nil {
		w.Fatal(err)
	}
	return d
}

func (w *world) endpoint(i webhook.Issued) webhook.Endpoint {
	w.Helper()
	w.part.settled()
	e, err := w.Find(w.Context(), ada, i.Endpoint.ID)
	if err != nil {
		w.Fatal(err)
	}
	return e
}

// take does one step, as somebody else.
func (w *world) take(i webhook.Issued, s webhook.Step, decide func(webhook.Endpoint) (webhook.Endpoint, int, event.Change)) ([]webhook.Claimed, error) {
	s.Endpoint, s.Decide = i.Endpoint.ID, decide
	out, err := w.store.Take(w.Context(), []webhook.Step{s})
	if err != nil {
		return nil, err
	}
	return out[0].Claimed, out[0].Err
}

// got is one request that a sink saw.
type got struct {
	http.Header
	body string
}

// sink is somebody's server.
type sink struct {
	*httptest.Server
	got chan got
}

func newSink(t testing.TB, answer http.HandlerFunc) *sink {
	t.Helper()
	s := &sink{got: make(chan got, 10_000)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		s.got <- got{r.Header, string(body)}
		if answer != nil {
			answer(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func status(n int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(n) }
}

// trap listens where nobody may connect.
func trap(t testing.TB) (addr string, visits func() int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	n := 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
			mu.Lock()
			n++
			mu.Unlock()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String(), func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}
