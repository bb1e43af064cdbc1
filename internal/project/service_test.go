package project_test

import (
	"path/filepath"
	"testing"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
)

func open(t *testing.T) (*project.Service, *sqlstore.TenantStore, ident.Actor) {
	t.Helper()
	db, err := sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: filepath.Join(t.TempDir(), "t.db"), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if _, err := sqlstore.Migrate(t.Context(), db, sqlstore.Tenant); err != nil {
		t.Fatal(err)
	}
	keys, err := seal.NewKeyring("an entirely unguessable phrase, 0123456789")
	if err != nil {
		t.Fatal(err)
	}
	actor := ident.Actor{Account: ident.New[ident.AccountID](), Name: "Ada"}
	store := sqlstore.NewTenantStore(db, nil)
	return project.New(store, keys, actor.Account, []string{"anthropic"}, time.Now), store, actor
}

func TestProjects(t *testing.T) {
	ctx := t.Context()
	s, store, me := open(t)
	once := func() *event.Once {
		return &event.Once{Scope: "s", Key: "k", Fingerprint: []byte("f"), ExpiresAt: time.Now().Add(time.Hour)}
	}
	p, err := s.Create(ctx, me, project.CreateInput{Details: project.Details{Name: "Bears"}, Once: once()})
	if err != nil || p.Status != project.Active || p.Priority != project.Medium || p.Version != 1 || p.Owner.ID != me.Account {
		t.Fatalf("%+v %v", p, err)
	}
	t.Run("a repeat answers with the first result, whatever happened since", func(t *testing.T) {
		if _, err := s.Edit(ctx, me, p.ID, nil, func(d *project.Details) error { d.Name = "Wolves"; return nil }); err != nil {
			t.Fatal(err)
		}
		o := once()
		again, err := s.Create(ctx, me, project.CreateInput{Details: project.Details{Name: "Bears"}, Once: o})
		if err != nil || again.ID != p.ID || again.Name != "Bears" || !o.Replayed {
			t.Errorf("%+v %v", again, err)
		}
	})
	t.Run("an edit that alters nothing is no change", func(t *testing.T) {
		before, _ := store.Head(ctx)
		got, err := s.Edit(ctx, me, p.ID, nil, func(*project.Details) error { return nil })
		after, _ := store.Head(ctx)
		if err != nil || got.Version != 2 || before != after {
			t.Errorf("version %d, log from %d to %d, %v", got.Version, before, after, err)
		}
	})
	t.Run("a stale version is refused, for edits and for deleting", func(t *testing.T) {
		old := int64(1)
		_, err := s.Edit(ctx, me, p.ID, &old, func(d *project.Details) error { d.Name = "Foxes"; return nil })
		if !fault.Is(err, fault.Stale) {
			t.Errorf("edit: %v", err)
		}
		if err := s.Delete(ctx, me, p.ID, &old, false); !fault.Is(err, fault.Stale) {
			t.Errorf("delete: %v", err)
		}
	})
	t.Run("everything wrong is named at once", func(t *testing.T) {
		_, err := s.Create(ctx, me, project.CreateInput{Details: project.Details{Status: "sleeping", Priority: "none", Provider: "oracle"}})
		e, ok := err.(*fault.Error) //nolint:errorlint // the service returns it bare
		if !ok || len(e.Fields) != 4 {
			t.Errorf("%v", err)
		}
	})
	t.Run("a stranger finds nothing", func(t *testing.T) {
		if _, err := s.Find(ctx, ident.Actor{Account: ident.New[ident.AccountID]()}, p.ID); !fault.Is(err, fault.NotFound) {
			t.Errorf("%v", err)
		}
	})
	t.Run("archiving is an event of its own", func(t *testing.T) {
		if _, err := s.Edit(ctx, me, p.ID, nil, func(d *project.Details) error { d.Status = project.Archived; return nil }); err != nil {
			t.Fatal(err)
		}
		head, _ := store.Head(ctx)
		events, err := store.Since(ctx, head-1, 10)
		if err != nil || len(events) != 1 || events[0].Type != "project.archived" {
			t.Errorf("%+v %v", events, err)
		}
	})
	if err := s.Delete(ctx, me, p.ID, nil, false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Find(ctx, me, p.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("deleted, yet: %v", err)
	}
}
