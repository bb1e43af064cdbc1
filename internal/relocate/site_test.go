package relocate

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/blob"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/storetest"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/workspace"
)

const (
	siteKey  = seal.Secret("an entirely unguessable phrase, 0123456789")
	otherKey = seal.Secret("another entirely unguessable phrase, 98765")
)

func keyring(t testing.TB, current seal.Secret, previous ...seal.Secret) *seal.Keyring {
	t.Helper()
	k, err := seal.NewKeyring(current, previous...)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// site is an installation: a master database and places for tenants, as a server has them.
type site struct {
	testing.TB
	Installation
	keys   *seal.Keyring
	folder string
}

// newSite opens one in a folder of its own. Engines are "sqlite" and "postgres", of the master and of the tenants; a
// tenants' "both" has servers, too, but files are asked for.
func newSite(t testing.TB, engine string, keys *seal.Keyring) *site {
	t.Helper()
	s := &site{TB: t, keys: keys, folder: t.TempDir()}
	var err error
	hosts := map[string]*sqlstore.LazyHost{}
	if engine == "postgres" {
		pool, err := sqlstore.NewPostgresPool(t.Context(), seal.Secret(pgtest.URL(t)), 8)
		s.must(err)
		t.Cleanup(pool.Close)
		s.Master = sqlstore.OpenPostgres(pool, sqlstore.PostgresOptions{Schema: "memoryd"})
		host, err := sqlstore.NewLazyHost(seal.Secret(pgtest.URL(t)), sqlstore.PostgresHostOptions{MaxConns: 8, RuntimePassword: "a password for tests"})
		s.must(err)
		t.Cleanup(host.Close)
		_, err = host.Connect(t.Context()) // who needs it later waits a second and a half only
		s.must(err)
		hosts["server"] = host
	} else {
		s.Master, err = sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: filepath.Join(s.folder, "master.db"), Create: true})
		s.must(err)
		t.Cleanup(func() { _ = s.Master.Close() })
	}
	_, err = sqlstore.Migrate(t.Context(), s.Master, sqlstore.Master)
	s.must(err)
	s.Store = sqlstore.NewMasterStore(s.Master, nil)
	s.Places, err = workspace.NewPlacements(t.Context(), workspace.PlacementsConfig{Root: filepath.Join(s.folder, "tenants"), Keys: keys, Hosts: hosts})
	s.must(err)
	return s
}

func (s *site) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// newTenant makes an account with a database.
func (s *site) newTenant() tenant.Tenant {
	s.Helper()
	id, owner, now := ident.New[ident.TenantID](), ident.New[ident.AccountID](), time.Now().UTC().Truncate(time.Microsecond)
	at, err := s.Places.Provision(s.Context(), id)
	s.must(err)
	t := tenant.Tenant{ID: id, Account: owner, Placement: at, State: tenant.Active, CreatedAt: now}
	a := account.Account{ID: owner, Email: string(owner) + "@example.com", Role: ident.Member, Tenant: id, State: account.Active,
		Version: 1, CreatedAt: now, UpdatedAt: now}
	_, err = s.Store.InsertAccount(s.Context(), account.Newcomer{Account: a, Hash: "none", Tenant: t}, func(account.Account) event.Change {
		ch := event.NewChange(ident.System(""), now)
		ch.Add("account.created", string(owner), nil)
		return ch
	})
	s.must(err)
	return t
}

// open opens the database of a tenant as the directory says.
func (s *site) open(id ident.TenantID) *sqlstore.DB {
	s.Helper()
	t, err := s.Store.FindTenant(s.Context(), id)
	s.must(err)
	db, err := s.Places.Open(s.Context(), t.Placement)
	s.must(err)
	s.Cleanup(func() { _ = db.Close() })
	return db
}

// write makes projects with these texts in a tenant: a long one becomes several.
func (s *site) write(t tenant.Tenant, texts ...string) {
	s.Helper()
	db := s.open(t.ID)
	for _, text := range texts {
		for len(text) > 20_000 {
			s.must(writeTo(s.Context(), db, t, text[:20_000]))
			text = text[20_000:]
		}
		s.must(writeTo(s.Context(), db, t, text))
	}
}

func writeTo(ctx context.Context, db *sqlstore.DB, t tenant.Tenant, text string) error {
	projects := project.New(sqlstore.NewTenantStore(db, nil), noSealer{}, t.Account, []string{"scripted"}, time.Now)
	_, err := projects.Create(ctx, ident.Actor{Account: t.Account}, project.CreateInput{Details: project.Details{Name: "P", Instructions: text}})
	return err
}

// fill plays the script of the conformance suite in a tenant: every table gets rows.
func (s *site) fill(t tenant.Tenant) {
	s.Helper()
	store := sqlstore.NewTenantStore(s.open(t.ID), nil)
	storetest.Script(s, storetest.Stores{Projects: store, Talk: store, Events: store, Trail: store.Trail(), SweepOnces: store.SweepOnces,
		RoundTrips: func() int64 { return 0 }, Commits: func() []event.Seq { return nil }})
}

type noSealer struct{}

func (noSealer) Seal(string, []byte, []byte) []byte          { return nil }
func (noSealer) Open(string, []byte, []byte) ([]byte, error) { return nil, nil }

// digest is what a database holds now, read by the store and not by us.
func (s *site) digest(db *sqlstore.DB) []byte {
	s.Helper()
	snap, err := db.Snapshot(s.Context())
	s.must(err)
	defer snap.Close()
	d, err := snap.Digest(s.Context())
	s.must(err)
	return d.Sum[:]
}

// repository opens the backups in a store.
func (s *site) repository(store blob.Store) *Repository {
	s.Helper()
	r, err := OpenRepository(s.Context(), store, s.keys, true)
	s.must(err)
	return r
}

// backup makes a snapshot and demands that all went well.
func (s *site) backup(r *Repository, o BackupOptions) *Report {
	s.Helper()
	report, err := r.Backup(s.Context(), s.Installation, o)
	s.must(err)
	for _, d := range report.Reports {
		if d.Err != nil {
			s.Fatalf("%s: %v", d.Owner, d.Err)
		}
	}
	return report
}

func folder(t testing.TB) *blob.Folder {
	t.Helper()
	f, err := blob.OpenFolder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// spy counts and may break what a store is asked to write.
type spy struct {
	blob.Store
	mu     sync.Mutex
	puts   map[string]int // by the first part of the name
	writes atomic.Int64
	fail   func(n int64, name string) error // asked before the nth write
	block  func(name string)                // called before a write
	listed func(dir string)                 // called before files are looked for
}

func spyOn(s blob.Store) *spy { return &spy{Store: s, puts: map[string]int{}} }

func (s *spy) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	if s.block != nil {
		s.block(name)
	}
	n := s.writes.Add(1)
	if s.fail != nil {
		if err := s.fail(n, name); err != nil {
			return err
		}
	}
	dir, _, _ := strings.Cut(name, "/")
	s.mu.Lock()
	s.puts[dir]++
	s.mu.Unlock()
	return s.Store.Put(ctx, name, r, size)
}

func (s *spy) List(ctx context.Context, dir string) iter.Seq2[blob.Info, error] {
	if s.listed != nil {
		s.listed(dir)
	}
	return s.Store.List(ctx, dir)
}

// count returns and forgets how many files of a kind were written.
func (s *spy) count(dir string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.puts[dir]
	s.puts[dir] = 0
	return n
}

// files lists a store.
func files(t testing.TB, s blob.Store, dir string) (list []string) {
	t.Helper()
	for info, err := range s.List(t.Context(), dir) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, info.Name)
	}
	return list
}

// blobs is the content of a store, by names, each file as its hash.
func blobs(t testing.TB, s blob.Store) map[string][32]byte {
	t.Helper()
	all := map[string][32]byte{}
	for _, name := range files(t, s, "") {
		raw, err := blob.GetBytes(t.Context(), s, name, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = sha256.Sum256(raw)
	}
	return all
}

func wantCode(t testing.TB, err error, code string) {
	t.Helper()
	if err == nil || fault.CodeOf(err) != code {
		t.Errorf("got %v, not code %s", err, code)
	}
}

// mangle changes a file of a folder.
func mangle(t testing.TB, f *blob.Folder, name string, change func([]byte) []byte) {
	t.Helper()
	path := filepath.Join(f.String(), filepath.FromSlash(name))
	raw, err := os.ReadFile(path)
	if err == nil {
		raw = change(raw)
		if raw == nil {
			err = os.Remove(path)
		} else {
			err = os.WriteFile(path, raw, 0o600)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

var errBroken = errors.New("the disk is full")

func lorem(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "Sentence %d of a text that is long enough to matter. ", i)
	}
	return b.String()
}
