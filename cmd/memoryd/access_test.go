package main

import (
	"errors"
	"log/slog"
	"testing"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/spool"
	"claude-memory-backend/internal/sqlstore"
)

// TestGuestsLeaveTheMaster: a command that may stand beside a server of a former version does not change the schema
// under it.
func TestGuestsLeaveTheMaster(t *testing.T) {
	refused := map[string][]access{"sqlite": {guest}, "postgres": {guest, keeper}}
	for engine, wants := range refused {
		t.Run(engine, func(t *testing.T) {
			env := []string{"STORAGE_PATH=" + t.TempDir()}
			if engine == "postgres" {
				url := pgtest.URL(t)
				env = append(env, "MASTER_DATABASE_URL="+url, "TENANT_DATABASE_URLS="+url)
			}
			s, err := loadSettings(env, "")
			if err != nil {
				t.Fatal(err)
			}
			open := func(as access) error {
				in, err := openInstall(t.Context(), s, slog.New(slog.DiscardHandler), event.NewLocalBus(), as)
				if err != nil {
					return err
				}
				return in.close()
			}
			former := &install{}
			if err := former.openMaster(t.Context(), s, s.secret("MASTER_DATABASE_URL")); err != nil {
				t.Fatal(err)
			}
			former.onClose(former.master.Close)
			steps, err := sqlstore.Released()
			if err != nil {
				t.Fatal(err)
			}
			older := steps.Newest(sqlstore.Master) - 1
			if _, err := steps.UpTo(sqlstore.Master, older).Migrate(t.Context(), former.master, sqlstore.Master); err != nil {
				t.Fatal(err)
			}
			for _, as := range wants {
				if err := open(as); !errors.Is(err, errMasterOlder) {
					t.Errorf("as %d: %v", as, err)
				}
			}
			if v, err := sqlstore.SchemaVersion(t.Context(), former.master); err != nil || v != older {
				t.Errorf("version %d became %d, %v", older, v, err)
			}
			if err := former.close(); err != nil {
				t.Fatal(err)
			}
			for _, as := range []access{owner, guest, keeper} {
				if err := open(as); err != nil {
					t.Errorf("as %d, once it is up to date: %v", as, err)
				}
			}
		})
	}
}

// TestCommandsDiscardTheSpool: whoever erases without a server leaves no answers of the tenant's on the disk, and all of
// others'.
func TestCommandsDiscardTheSpool(t *testing.T) {
	s, err := loadSettings([]string{"STORAGE_PATH=" + t.TempDir()}, "")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := seal.NewKeyring("an entirely unguessable phrase, 0123456789")
	if err != nil {
		t.Fatal(err)
	}
	erased, other := ident.New[ident.TenantID](), ident.New[ident.TenantID]()
	discard := discardSpool(s, keys)
	if err := discard(t.Context(), erased); err != nil {
		t.Errorf("without a spool: %v", err)
	}
	open := func() *spool.Spool {
		t.Helper()
		kept, err := spool.Open(spool.Config{Folder: s.storage("spool"), Sealer: keys})
		if err != nil {
			t.Fatal(err)
		}
		return kept
	}
	kept := open()
	for _, id := range []ident.TenantID{erased, other} {
		if err := kept.Tenant(id).Append(ident.New[ident.TurnID](), []byte("the end of an answer")); err != nil {
			t.Fatal(err)
		}
	}
	if err := kept.Close(); err != nil {
		t.Fatal(err)
	}
	if err := discard(t.Context(), erased); err != nil {
		t.Fatal(err)
	}
	kept = open()
	defer kept.Close()
	if left := kept.Tenants(); len(left) != 1 || left[0] != other {
		t.Errorf("there are %v; want %v", left, other)
	}
}
