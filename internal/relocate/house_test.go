package relocate

import (
	"context"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/blob"
	"claude-memory-backend/internal/claude"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/outbound"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/pgtest/toxic"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/workspace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, toxic.Remains()) }

// house is an installation with every kind of place: files, two PostgreSQL servers of the operator's, and one of a
// user's own.
type house struct {
	t         *testing.T
	dir       string
	master    *sqlstore.DB
	servers   []string // addresses of the PostgreSQL servers: the operator's two, and the user's
	store     *sqlstore.MasterStore
	news      workspace.News   // nil: tenants' logs hold nothing but what is written in them
	grants    workspace.Grants // nil: nobody is a member of anything
	keys      *seal.Keyring
	hosts     map[string]*sqlstore.LazyHost
	externals *sqlstore.Externals
	places    *workspace.Placements
	own       tenant.Address // of the user's PostgreSQL
	password  seal.Secret
	*node
}

// node is one process that works on the installation.
type node struct {
	name   string
	pool   *workspace.Pool
	engine *conversation.Engine
	svc    *Service
	runner *job.Runner
	// instead is done in the place of moving, unless it is nil.
	instead atomic.Pointer[job.Work]
	end     func()
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{t: t, dir: t.TempDir(), hosts: map[string]*sqlstore.LazyHost{}}
	ctx := t.Context()
	var err error
	if h.keys, err = seal.NewKeyring("an entirely unguessable phrase, 0123456789"); err != nil {
		t.Fatal(err)
	}
	master, err := sqlstore.OpenSQLite(ctx, sqlstore.SQLiteOptions{Path: filepath.Join(h.dir, "master.db"), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if _, err := sqlstore.Migrate(ctx, master, sqlstore.Master); err != nil {
		t.Fatal(err)
	}
	h.master, h.store = master, sqlstore.NewMasterStore(master, nil)
	h.servers = []string{pgtest.URL(t), pgtest.URL(t), pgtest.URL(t)}
	for i, name := range []string{"one", "two"} {
		host, err := sqlstore.NewLazyHost(seal.Secret(h.servers[i]), sqlstore.PostgresHostOptions{MaxConns: 12,
			RuntimePassword: seal.Secret(ident.New[ident.SessionID]())})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(host.Close)
		h.hosts[name] = host
	}
	h.own, h.password = addressOf(t, h.servers[2])
	dialer := outbound.NewDialer(outbound.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}})
	h.externals = sqlstore.NewExternals(sqlstore.ExternalOptions{Dial: dialer.DialContext, PlainAllowed: dialer.Allowed, Judge: dialer.Judge, PerTenant: 6})
	t.Cleanup(h.externals.Close)
	h.places, err = workspace.NewPlacements(ctx, workspace.PlacementsConfig{Root: filepath.Join(h.dir, "tenants"), Keys: h.keys,
		Hosts: h.hosts, Externals: h.externals})
	if err != nil {
		t.Fatal(err)
	}
	h.node = h.start("node-a", true)
	t.Cleanup(func() { h.node.end() })
	return h
}

// repository is an empty one, for backups.
func (h *house) repository() *Repository {
	h.t.Helper()
	store, err := blob.OpenFolder(h.t.TempDir())
	if err != nil {
		h.t.Fatal(err)
	}
	r, err := OpenRepository(h.t.Context(), store, h.keys, true)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// addressOf takes a test's database for a user's own.
func addressOf(t *testing.T, raw string) (tenant.Address, seal.Secret) {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	port, _ := strconv.Atoi(u.Port())
	password, _ := u.User.Password()
	return tenant.Address{Host: u.Hostname(), Port: uint16(port), Database: strings.Trim(u.Path, "/"),
		Username: u.User.Username(), TLS: tenant.TLSDisable}, seal.Secret(password)
}

// start begins a process on the installation.
func (h *house) start(name string, sole bool) *node { return h.begin(name, sole, true) }

// startIdle begins one that runs no jobs.
func (h *house) startIdle(name string, sole bool) *node { return h.begin(name, sole, false) }

func (h *house) begin(name string, sole, jobs bool) *node {
	bus := event.NewLocalBus()
	n := &node{name: name}
	n.engine = conversation.NewEngine(conversation.Config{Node: name, Sole: sole, Bus: bus,
		Models: map[string]conversation.Model{"scripted": claude.NewScripted(claude.ScriptedConfig{})},
		Known:  []string{"scripted"}, Default: "scripted"})
	n.pool = workspace.NewPool(workspace.Config{Directory: h.store, Notes: h.store, Master: h.store, News: h.news, Grants: h.grants, Hints: h.store,
		Trail: h.store.Trail(), Placements: h.places, Engine: n.engine, Bus: bus, Sealer: h.keys, Providers: []string{"scripted"}, Sole: sole})
	n.svc = New(Config{Store: h.store, Places: h.places, Pool: n.pool, Probe: h.externals, Keys: h.keys, Bus: bus, Node: name, Sole: sole})
	kinds := n.svc.Work()
	move := kinds[KindMove]
	kinds[KindMove] = func(ctx context.Context, run *job.Run) (any, error) {
		if work := n.instead.Load(); work != nil {
			return (*work)(ctx, run)
		}
		return move(ctx, run)
	}
	n.runner = job.NewRunner(job.Config{Store: h.store, Node: name, Sole: sole, Kinds: kinds, Left: n.svc.LeftWork(), Every: 20 * time.Millisecond, Lease: 2 * time.Second})
	n.svc.Wake = n.runner.Wake
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	if jobs {
		running.Go(func() { _ = n.runner.Run(ctx) })
	}
	running.Go(func() { _ = n.pool.Run(ctx) })
	n.end = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		over, stop := context.WithCancel(context.Background())
		stop()
		_ = n.engine.Close(over)
		_ = n.pool.Close(context.Background())
	})
	return n
}

// newTenant makes an account with its tenant at a kind of place, as registering would.
func (h *house) newTenant(kind tenant.Kind) (tenant.Tenant, ident.Actor) {
	h.t.Helper()
	ctx := h.t.Context()
	now := time.Now().UTC().Truncate(time.Microsecond)
	id, owner := ident.New[ident.TenantID](), ident.New[ident.AccountID]()
	first := kind
	if kind == tenant.External {
		first = tenant.SQLite
	}
	at, err := h.places.Make(ctx, tenant.Placement{Database: tenant.First(id), Kind: first})
	if err != nil {
		h.t.Fatal(err)
	}
	t := tenant.Tenant{ID: id, Account: owner, Placement: at, State: tenant.Active, CreatedAt: now}
	actor := ident.Actor{Account: owner, Name: "Ada"}
	_, err = h.store.InsertAccount(ctx, account.Newcomer{Account: account.Account{ID: owner, Email: string(owner) + "@example.com",
		Details: account.Details{Name: "Ada"}, Role: ident.Member, State: account.Active, Tenant: id, Version: 1,
		CreatedAt: now, UpdatedAt: now}, Tenant: t},
		func(account.Account) event.Change { return event.NewChange(actor, now) })
	if err != nil {
		h.t.Fatal(err)
	}
	if kind == tenant.External {
		h.moveTo(actor, id, h.place(actor, id, tenant.External))
		if t, err = h.store.FindTenant(ctx, id); err != nil {
			h.t.Fatal(err)
		}
	}
	return t, actor
}

// place returns a database of the tenant of that kind that is not in use, registering one when there is none.
func (h *house) place(actor ident.Actor, id ident.TenantID, kind tenant.Kind) ident.DatabaseID {
	h.t.Helper()
	list, err := h.svc.Databases(h.t.Context(), actor, id)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, d := range list {
		if d.Placement.Kind == kind && d.State != tenant.InUse && d.State != tenant.Released {
			return d.ID()
		}
	}
	var d tenant.Database
	if kind == tenant.External {
		d, err = h.svc.Register(h.t.Context(), actor, id, NewDatabase{Name: "Mine", Address: h.own, Password: h.password})
	} else {
		t, ferr := h.store.FindTenant(h.t.Context(), id)
		if ferr != nil {
			h.t.Fatal(ferr)
		}
		var fresh bool
		if d, fresh, err = h.svc.hosted(h.t.Context(), t, kind, false); err == nil && fresh {
			err = h.svc.addHosted(h.t.Context(), ident.System(""), d)
		}
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return d.ID()
}

// moveTo moves the tenant and waits for the end, which must be good.
func (h *house) moveTo(actor ident.Actor, id ident.TenantID, to ident.DatabaseID) job.Job {
	h.t.Helper()
	j, err := h.svc.Activate(h.t.Context(), actor, id, to, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	j = h.await(j.ID)
	if j.State != job.Completed {
		h.t.Fatalf("the move ended %s: %+v", j.State, j.Failure)
	}
	return j
}

// await waits for the end of a job.
func (h *house) await(id ident.JobID) job.Job {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 3*time.Minute)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond) // one that is to be tried again is not waited for
	defer again.Stop()
	for {
		j, err := h.svc.Await(ctx, id)
		switch {
		case err != nil || ctx.Err() != nil:
			h.t.Fatalf("job %s: %+v, %v", j.State, j.Failure, err)
		case j.State.Final():
			return j
		}
		<-again.C
	}
}

// leave makes a job one that a process claimed which was killed.
func (h *house) leave(j job.Job) {
	h.t.Helper()
	past := time.Now().Add(-time.Hour)
	_, ok, err := h.store.ClaimJob(h.t.Context(), job.Claim{Kinds: []string{j.Kind}, Only: j.ID, Node: "killed", Now: past, Lease: past})
	if err != nil || !ok {
		h.t.Fatal(ok, err)
	}
}

// half registers a place that a job was copying into.
func (h *house) half(id ident.TenantID, kind tenant.Kind) tenant.Database {
	h.t.Helper()
	at := tenant.Placement{Database: ident.New[ident.DatabaseID](), Kind: kind}
	if kind == tenant.External {
		at.Address, at.SealedPassword = h.own, h.places.SealPassword(at.Database, h.password)
	}
	at, err := h.places.Make(h.t.Context(), at)
	if err != nil {
		h.t.Fatal(err)
	}
	d := tenant.Database{Tenant: id, Name: "Hosted", State: tenant.Filling, Placement: at, Version: 1}
	if err := h.store.InsertDatabase(h.t.Context(), d, event.Change{}); err != nil {
		h.t.Fatal(err)
	}
	return d
}

func (h *house) acquire(actor ident.Actor, id ident.TenantID) *workspace.Workspace {
	h.t.Helper()
	ws, err := h.pool.Acquire(h.t.Context(), actor, id)
	if err != nil {
		h.t.Fatal(err)
	}
	return ws
}

// shut waits until a tenant's file is closed, which Expel does not wait for.
func (h *house) shut(id ident.TenantID) {
	h.t.Helper()
	h.pool.Expel(h.t.Context(), id)
	for deadline := time.Now().Add(time.Minute); h.pool.Stats().Closing > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatal("it is never closed")
		}
	}
}

// rotated is a service of the installation under a new master key, which still knows the one before or not.
func rotated(t *testing.T, h *house, knowsOld bool) *Service {
	t.Helper()
	previous := []seal.Secret{}
	if knowsOld {
		previous = append(previous, "an entirely unguessable phrase, 0123456789")
	}
	keys, err := seal.NewKeyring("quite another unguessable phrase, 9876543210", previous...)
	if err != nil {
		t.Fatal(err)
	}
	places, err := workspace.NewPlacements(t.Context(), workspace.PlacementsConfig{Root: filepath.Join(h.dir, "tenants"), Keys: keys,
		Hosts: h.hosts, Externals: h.externals})
	if err != nil {
		t.Fatal(err)
	}
	return New(Config{Store: h.store, Places: places, Keys: keys})
}
