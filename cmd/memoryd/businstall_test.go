package main

import (
	"path/filepath"
	"strings"
	"testing"

	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
)

// An installation that was restored, with all its keys, does not hear the one that it was restored from.
func TestARestoredInstallationHasABusOfItsOwn(t *testing.T) {
	db, err := sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: filepath.Join(t.TempDir(), "master.db"), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if _, err := sqlstore.Migrate(t.Context(), db, sqlstore.Master); err != nil {
		t.Fatal(err)
	}
	lasting, err := seal.NewKeyring("an entirely unguessable phrase, 0123456789")
	if err != nil {
		t.Fatal(err)
	}
	in := &install{store: sqlstore.NewMasterStore(db, nil), lasting: lasting}
	seen := map[string]bool{}
	for range 3 {
		for range 2 { // every node, and every start
			prefix, err := in.busPrefix(t.Context())
			if err != nil || !strings.HasPrefix(prefix, "memoryd."+in.id()) || strings.Count(prefix, ".") != 1 {
				t.Errorf("%q, %v", prefix, err)
			}
			seen[prefix] = true
		}
		if err := renameBus(t.Context(), in.store); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 3 {
		t.Errorf("%v", seen)
	}
}
