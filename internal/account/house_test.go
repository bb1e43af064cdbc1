package account_test

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/clocktest"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

const (
	secret   = seal.Secret("a secret of the tests, 0123456789 abcdef")
	password = "correct horse 9 battery"
)

var home = account.Origin{Address: "192.0.2.10", Device: "tests/1.0", RequestID: "req-1"}

// house is a service over a real master database, with a clock that tests move by hand.
type house struct {
	*account.Service
	t      *testing.T
	store  *sqlstore.MasterStore
	keys   *seal.Keyring
	hasher *account.Hasher
	places *places
	clock  *clocktest.Clock
}

// places makes nothing, and counts.
type places struct {
	mu        sync.Mutex
	made      map[ident.TenantID]bool
	discarded int
	fail      error
}

func (p *places) Provision(_ context.Context, id ident.TenantID) (tenant.Placement, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return tenant.Placement{}, p.fail
	}
	p.made[id] = true
	return tenant.Placement{Database: tenant.First(id), Kind: tenant.SQLite, WrappedKey: []byte("wrapped")}, nil
}

func (p *places) Discard(_ context.Context, id ident.TenantID, _ tenant.Placement) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.made, id)
	p.discarded++
	return nil
}

func (p *places) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.made)
}

// cheap hashes in no time.
func cheap() account.HasherConfig {
	return account.HasherConfig{Workers: 2, Queue: 64, Memory: 8, Passes: 1, Patience: time.Minute}
}

func newHouse(t *testing.T, change func(*account.Config)) *house {
	t.Helper()
	db, err := sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: filepath.Join(t.TempDir(), "master.db"), Create: true,
		Synchronous: "NORMAL"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return houseOn(t, db, change)
}

func houseOn(t *testing.T, db *sqlstore.DB, change func(*account.Config)) *house {
	t.Helper()
	if _, err := sqlstore.Migrate(t.Context(), db, sqlstore.Master); err != nil {
		t.Fatal(err)
	}
	keys, err := seal.NewKeyring("the master key of the tests 0123456789")
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, store: sqlstore.NewMasterStore(db, nil), keys: keys, hasher: account.NewHasher(cheap()),
		places: &places{made: map[ident.TenantID]bool{}}, clock: clocktest.New(time.Now().UTC().Truncate(time.Second))}
	h.Service = h.another(change)
	return h
}

// another is a second node over the same database.
func (h *house) another(change func(*account.Config)) *account.Service {
	h.t.Helper()
	c := account.Config{Secret: secret, Now: h.clock.Now}
	if change != nil {
		change(&c)
	}
	s, err := account.New(c, h.store, h.places, h.hasher, h.keys)
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// onBoth runs a test on each engine.
func onBoth(t *testing.T, change func(*account.Config), test func(t *testing.T, h *house)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { test(t, newHouse(t, change)) })
	t.Run("postgres", func(t *testing.T) {
		pool, err := sqlstore.NewPostgresPool(t.Context(), seal.Secret(pgtest.URL(t)), 10)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		test(t, houseOn(t, sqlstore.OpenPostgres(pool, sqlstore.PostgresOptions{Schema: "memoryd"}), change))
	})
}

// register makes an account and returns its first grant.
func (h *house) register(email string) account.Grant {
	h.t.Helper()
	g, err := h.Register(h.t.Context(), account.RegisterInput{Email: email, Password: password}, home)
	if err != nil {
		h.t.Fatal(err)
	}
	return g
}

func (h *house) login(email string) account.Grant {
	h.t.Helper()
	g, err := h.Login(h.t.Context(), email, password, home)
	if err != nil {
		h.t.Fatal(err)
	}
	return g
}

// actor is who a grant's access token stands for.
func (h *house) actor(g account.Grant) ident.Actor {
	h.t.Helper()
	id, err := h.Verify(h.t.Context(), g.AccessToken, home)
	if err != nil {
		h.t.Fatal(err)
	}
	return id.Actor
}

// dead asserts that a session no longer opens anything.
func (h *house) dead(g account.Grant) {
	h.t.Helper()
	_, err := h.Verify(h.t.Context(), g.AccessToken, home)
	refused(h.t, err, "session_ended")
	_, err = h.Refresh(h.t.Context(), g.RefreshToken, home)
	refused(h.t, err, "refresh_refused")
}

// events are the types of what was logged, oldest first.
func (h *house) events() (kinds []string) {
	h.t.Helper()
	list, err := h.store.Since(h.t.Context(), 0, 1000)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, e := range list {
		kinds = append(kinds, e.Type)
	}
	return kinds
}

// trail are the entries by or about an account, newest first.
func (h *house) trail(id ident.AccountID, action string) []audit.Entry {
	h.t.Helper()
	list, _, err := h.store.Trail().Entries(h.t.Context(), audit.Filter{Account: id, Action: action}, "", 1000)
	if err != nil {
		h.t.Fatal(err)
	}
	return list
}

func (h *house) head() event.Seq {
	h.t.Helper()
	n, err := h.store.Head(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func refused(t *testing.T, err error, code string) {
	t.Helper()
	if err == nil || fault.CodeOf(err) != code {
		t.Fatalf("want code %q, got %v", code, err)
	}
}
