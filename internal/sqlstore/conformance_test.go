package sqlstore

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/storetest"
)

func TestConformance(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		open := tenantFiles(t)
		storetest.Run(t, storetest.Harness{Tenant: func(t testing.TB) storetest.Stores { return stores(tallied(t, open(t))) }})
	})
	// Through PgBouncer, which hands connections on after every transaction: what works here works without it, too.
	t.Run("postgres", func(t *testing.T) {
		open := tenantSchemasAt(t, pgtest.Pooled(t, pgtest.URL(t), 8))
		storetest.Run(t, storetest.Harness{Tenant: func(t testing.TB) storetest.Stores { return stores(tallied(t, open(t))) }})
	})
	t.Run("external", func(t *testing.T) {
		open := externalSchemas(t)
		storetest.Run(t, storetest.Harness{Tenant: func(t testing.TB) storetest.Stores { return stores(tallied(t, open(t))) }})
	})
}

// tenantFiles opens encrypted files made from a template, as tenants get them.
func tenantFiles(t testing.TB) func(testing.TB) *DB {
	t.Helper()
	template, err := BuildTemplate(t.Context(), Tenant)
	if err != nil {
		t.Fatal(err)
	}
	return func(t testing.TB) *DB {
		t.Helper()
		key, path := seal.NewKey(), filepath.Join(t.TempDir(), "tenant.db")
		if err := template.Create(t.Context(), path, &key); err != nil {
			t.Fatal(err)
		}
		db, err := OpenSQLite(t.Context(), SQLiteOptions{Path: path, Key: &key})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
		return db
	}
}

// tenantSchemas opens schemas with roles of their own in one hosted database.
func tenantSchemas(t testing.TB) func(testing.TB) *DB {
	t.Helper()
	return tenantSchemasAt(t, pgtest.URL(t))
}

func tenantSchemasAt(t testing.TB, address string) func(testing.TB) *DB {
	t.Helper()
	host, err := OpenPostgresHost(t.Context(), seal.Secret(address), PostgresHostOptions{
		MaxConns: 16, RuntimePassword: seal.Secret(ident.New[ident.SessionID]())})
	if err != nil {
		t.Fatal(err)
	}
	inNoHurry(host)
	t.Cleanup(host.Close)
	return func(t testing.TB) *DB {
		t.Helper()
		id := ident.New[ident.DatabaseID]()
		if err := host.Provision(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			// The test's own context is over by now.
			if err := host.Destroy(context.WithoutCancel(t.Context()), id); err != nil {
				t.Error(err)
			}
		})
		return host.Open(id)
	}
}

func stores(db *DB) storetest.Stores {
	var mu sync.Mutex
	var commits []event.Seq
	s := NewTenantStore(db, func(head event.Seq) {
		mu.Lock()
		defer mu.Unlock()
		commits = append(commits, head)
	})
	return storetest.Stores{Projects: s, Talk: s, Events: s, Trail: s.Trail(), Webhooks: s, SweepOnces: s.SweepOnces,
		RoundTrips: db.RoundTrips, Commits: func() []event.Seq {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(commits)
		}}
}

// TestBothEnginesAnswerAlike plays one script on both and compares every answer.
func TestBothEnginesAnswerAlike(t *testing.T) {
	lite := storetest.Script(t, stores(tenantFiles(t)(t)))
	post := storetest.Script(t, stores(tenantSchemas(t)(t)))
	if len(lite) < 500 {
		t.Errorf("only %d answers were compared", len(lite))
	}
	for i := range min(len(lite), len(post)) {
		if lite[i] != post[i] {
			t.Fatalf("they differ:\nsqlite   %s\npostgres %s", lite[i], post[i])
		}
	}
	if len(lite) != len(post) {
		t.Errorf("%d answers against %d", len(lite), len(post))
	}
}
