package sqlstore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ncruces/go-sqlite3"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/seal"
)

// filled makes an encrypted file with one row of a recognisable text, and closes it.
func filled(t *testing.T, path string, key *seal.Key) {
	t.Helper()
	db, err := OpenSQLite(t.Context(), SQLiteOptions{Path: path, Key: key, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := migrate(t.Context(), db, fixture(), Master); err != nil {
		t.Fatal(err)
	}
	if err := db.Write(t.Context(), func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { add(b, 1, "recognisable") })
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOnlyItsKeyOpensAFile(t *testing.T) {
	key, other := seal.NewKey(), seal.NewKey()
	dir := t.TempDir()
	path := filepath.Join(dir, "tenant.db")
	filled(t, path, &key)

	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"recognisable", "SQLite format", "CREATE TABLE"} {
		if bytes.Contains(content, []byte(word)) {
			t.Errorf("the file shows %q", word)
		}
	}
	plain := filepath.Join(dir, "plain.db")
	filled(t, plain, nil)
	if content, err := os.ReadFile(plain); err != nil || !bytes.Contains(content, []byte("recognisable")) {
		t.Fatal("the control, a plain file, shows nothing either", err)
	}
	copied := filepath.Join(dir, "copied.db")
	if err := os.WriteFile(copied, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]SQLiteOptions{
		"another key":           {Path: path, Key: &other},
		"no key":                {Path: path},
		"another key, creating": {Path: path, Key: &other, Create: true},
		"a copy, another key":   {Path: copied, Key: &other},
		"a copy, no key":        {Path: copied},
		"a plain file, a key":   {Path: plain, Key: &key},
	} {
		t.Run(name, func(t *testing.T) {
			db, err := OpenSQLite(t.Context(), o)
			if err == nil {
				db.Close()
			}
			wantCode(t, err, "tenant_unreadable")
			if !fault.Is(err, fault.Unavailable) {
				t.Fatal(err)
			}
		})
	}
	t.Run("and its key still does", func(t *testing.T) {
		if n := count(t, openFile(t, SQLiteOptions{Path: path, Key: &key})); n != 1 {
			t.Fatal(n)
		}
		if n := count(t, openFile(t, SQLiteOptions{Path: copied, Key: &key})); n != 1 {
			t.Fatal(n)
		}
	})
}

func TestTheLogIsEncryptedToo(t *testing.T) {
	key, path := seal.NewKey(), filepath.Join(t.TempDir(), "tenant.db")
	filled(t, path, &key)
	db := openFile(t, SQLiteOptions{Path: path, Key: &key})
	if err := db.Write(t.Context(), func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { add(b, 2, strings.Repeat("recognisable", 1000)) })
	}); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path + "-wal")
	if err != nil || len(content) < 12_000 || bytes.Contains(content, []byte("recognisable")) {
		t.Fatal(len(content), err)
	}
}

func TestFilesThatAreNoDatabase(t *testing.T) {
	dir, key := t.TempDir(), seal.NewKey()
	empty := filepath.Join(dir, "empty.db")
	noise := filepath.Join(dir, "noise.db")
	if err := errors.Join(os.WriteFile(empty, nil, 0o600),
		os.WriteFile(noise, bytes.Repeat([]byte("noise!"), 10_000), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, path, code string }{
		{"missing", filepath.Join(dir, "missing.db"), "tenant_missing"},
		{"emptied", empty, "tenant_unreadable"},
		{"noise", noise, "tenant_unreadable"},
		{"a folder", dir, "storage_failed"},
	} {
		for _, k := range []*seal.Key{nil, &key} {
			_, err := OpenSQLite(t.Context(), SQLiteOptions{Path: c.path, Key: k})
			if got := fault.CodeOf(err); err == nil || got != c.code {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "missing.db")); err == nil {
		t.Error("looking for a missing file made it")
	}
}

func TestDurabilityIsInForceOnEveryConnection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	filled(t, path, nil)
	for option, want := range map[string]string{"": "2", "full": "2", "EXTRA": "3", "NORMAL": "1"} {
		db := openFile(t, SQLiteOptions{Path: path, Synchronous: option})
		var read, write, mode string
		if err := db.Read(t.Context(), func(b *Batch) { b.One([]any{&read}, `PRAGMA synchronous`) }); err != nil {
			t.Fatal(err)
		}
		if err := db.Write(t.Context(), func(tx *Tx) error {
			return tx.Run(func(b *Batch) {
				b.One([]any{&write}, `PRAGMA synchronous`)
				b.One([]any{&mode}, `PRAGMA journal_mode`)
			})
		}); err != nil {
			t.Fatal(err)
		}
		if read != want || write != want || mode != "wal" {
			t.Errorf("%q: readers have %s, the writer %s, mode %s", option, read, write, mode)
		}
	}
	for _, option := range []string{"OFF", "0", "FULL; DROP TABLE notes"} {
		_, err := OpenSQLite(t.Context(), SQLiteOptions{Path: path, Synchronous: option})
		wantCode(t, err, "invalid_input")
	}
}

func TestTextSearchWorksOnEveryConnection(t *testing.T) {
	db := onSQLite(t)
	if err := db.Write(t.Context(), func(tx *Tx) error {
		if err := tx.script(`CREATE TABLE texts (id INTEGER PRIMARY KEY, body TEXT);
			CREATE VIRTUAL TABLE words USING fts5 (body, content='texts', content_rowid='id');
			CREATE TRIGGER texts_in AFTER INSERT ON texts BEGIN
				INSERT INTO words (rowid, body) VALUES (new.id, new.body); END;`); err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) { b.Exec(`INSERT INTO texts (body) VALUES (?)`, "the quick brown fox") })
	}); err != nil {
		t.Fatal(err)
	}
	var id int
	if err := db.Read(t.Context(), func(b *Batch) {
		b.One([]any{&id}, `SELECT rowid FROM words WHERE words MATCH ?`, "quick fox")
	}); err != nil || id != 1 {
		t.Fatal(id, err)
	}
	t.Run("a bad query does not show in the error", func(t *testing.T) {
		for _, query := range []string{`privatetext:x`, `"privatetext`, `privatetext AND AND`} {
			err := db.Read(t.Context(), func(b *Batch) {
				b.One([]any{&id}, `SELECT rowid FROM words WHERE words MATCH ?`, query)
			})
			if err == nil || strings.Contains(err.Error(), "privatetext") {
				t.Errorf("got %v", err)
			}
		}
	})
}

func TestAnotherProcessHoldingTheFileIsBusy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	filled(t, path, nil)
	db := openFile(t, SQLiteOptions{Path: path, BusyTimeout: 1e6})
	other, err := sqlite3.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Exec(`BEGIN IMMEDIATE`); err != nil {
		t.Fatal(err)
	}
	err = db.Write(t.Context(), func(tx *Tx) error { return tx.Commit(func(b *Batch) { add(b, 2, "b") }) })
	wantCode(t, err, "busy")
	if err := other.Exec(`ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	if err := db.Write(t.Context(), func(tx *Tx) error { return tx.Commit(func(b *Batch) { add(b, 2, "b") }) }); err != nil {
		t.Fatal(err)
	}
}

func TestAFullDiskSaysSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	filled(t, path, nil)
	db := openFile(t, SQLiteOptions{Path: path})
	if err := db.Write(t.Context(), func(tx *Tx) error {
		return tx.Run(func(b *Batch) { b.Exec(`PRAGMA max_page_count = 20`) })
	}); err != nil {
		t.Fatal(err)
	}
	err := db.Write(t.Context(), func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { b.Exec(`UPDATE notes SET long = ?`, strings.Repeat("x", 1<<20)) })
	})
	wantCode(t, err, "storage_full")
	if err := db.Write(t.Context(), func(tx *Tx) error { return tx.Commit(func(b *Batch) { add(b, 2, "b") }) }); err != nil {
		t.Fatal("a small write afterwards:", err)
	}
}

func TestAClosedDatabaseIsUnavailable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	filled(t, path, nil)
	db, err := OpenSQLite(t.Context(), SQLiteOptions{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Close(), db.Close()); err != nil {
		t.Fatal(err)
	}
	wantCode(t, db.Read(t.Context(), func(b *Batch) { b.Exec(`SELECT 1`) }), "database_closed")
	wantCode(t, db.Write(t.Context(), func(tx *Tx) error { return tx.Run(func(b *Batch) { b.Exec(`SELECT 1`) }) }), "database_closed")
	if _, err := os.Stat(path + "-wal"); err == nil {
		t.Error("the log is still there")
	}
}

func TestStatementsBeyondTheCacheStillRun(t *testing.T) {
	db := onSQLite(t)
	if err := db.Read(t.Context(), func(b *Batch) {
		for i := range 3 * statementsMax {
			b.Exec(`SELECT ` + strings.Repeat("1+", i%200) + `1`)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func TestTemplates(t *testing.T) {
	template, err := BuildTemplate(t.Context(), Tenant)
	if err != nil {
		t.Fatal(err)
	}
	key, other := seal.NewKey(), seal.NewKey()
	path := filepath.Join(t.TempDir(), "tenant.db")

	t.Run("make files that are migrated, in WAL mode and under their own key", func(t *testing.T) {
		// A log that an interrupted Destroy left behind must not come back to life.
		if err := os.WriteFile(path+"-wal", []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := template.Create(t.Context(), path, &key); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatal(info, err)
		}
		_, err = OpenSQLite(t.Context(), SQLiteOptions{Path: path, Key: &other})
		wantCode(t, err, "tenant_unreadable")
		db := openFile(t, SQLiteOptions{Path: path, Key: &key})
		report, err := Migrate(t.Context(), db, Tenant)
		if err != nil || len(report.Applied) != 0 || report.From == 0 {
			t.Fatal(report, err)
		}
		var check string
		if err := db.Write(t.Context(), func(tx *Tx) error {
			return tx.Commit(func(b *Batch) {
				b.Exec(`UPDATE log_head SET seq = 7`)
				b.One([]any{&check}, `PRAGMA integrity_check`)
			})
		}); err != nil || check != "ok" {
			t.Fatal(check, err)
		}
	})
	t.Run("never overwrite", func(t *testing.T) {
		wantCode(t, template.Create(t.Context(), path, &key), "duplicate")
	})
	t.Run("leave nothing when they fail", func(t *testing.T) {
		dir := t.TempDir()
		folder := filepath.Join(dir, "a.db") // in the way: what is complete cannot take its place
		if err := os.MkdirAll(filepath.Join(folder, "full"), 0o700); err != nil {
			t.Fatal(err)
		}
		wantCode(t, template.Create(t.Context(), folder, &key), "duplicate")
		wantCode(t, template.Create(t.Context(), filepath.Join(folder, strings.Repeat("n", 300)+".db"), &key), "storage_failed")
		if err := os.RemoveAll(folder); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		wantCode(t, template.Create(ctx, filepath.Join(dir, "a.db"), &key), "canceled")
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Fatal(left, err)
		}
	})
	t.Run("make plain files too", func(t *testing.T) {
		plain := filepath.Join(t.TempDir(), "plain.db")
		if err := template.Create(t.Context(), plain, nil); err != nil {
			t.Fatal(err)
		}
		if v, err := SchemaVersion(t.Context(), openFile(t, SQLiteOptions{Path: plain})); err != nil || v == 0 {
			t.Fatal(v, err)
		}
	})
	t.Run("and Destroy removes everything", func(t *testing.T) {
		dir := t.TempDir()
		gone := filepath.Join(dir, "gone.db")
		filled(t, gone, &key)
		if err := os.WriteFile(gone+"-wal", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := Destroy(gone); err != nil {
				t.Fatal(err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Fatal(left, err)
			}
		}
		if err := Destroy(filepath.Join(dir, "never", "was.db")); err != nil {
			t.Fatal(err)
		}
	})
}

// TestFilesThatTakeOver: at whichever moment an exchange of files was broken off, it can be taken back, and done again.
func TestFilesThatTakeOver(t *testing.T) {
	template, err := BuildTemplate(t.Context(), Tenant)
	if err != nil {
		t.Fatal(err)
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "ten_x.db")
	kept := filepath.Join(filepath.Dir(path), "ten_x_kept.db")
	keys := map[string]*seal.Key{}
	create := func(name, path string) {
		t.Helper()
		key := seal.NewKey()
		keys[name] = &key
		do(template.Create(t.Context(), path, &key))
	}
	is := func(name string) {
		t.Helper()
		db, err := OpenSQLite(t.Context(), SQLiteOptions{Path: path, Key: keys[name]})
		if err != nil {
			t.Fatalf("it is not the %s one: %v", name, err)
		}
		do(db.Close())
	}
	alone := func() {
		t.Helper()
		if list, err := os.ReadDir(filepath.Dir(path)); err != nil || len(list) != 1 {
			t.Errorf("%v, %v", list, err)
		}
	}
	create("old", path)
	wantCode(t, TakeOver(path), "tenant_missing")
	create("new", Beside(path))
	do(os.Rename(path, kept)) // and killed
	for range 2 {
		do(PutBack(path))
		is("old")
		alone()
	}
	create("new", Beside(path))
	do(TakeOver(path))
	is("new")
	do(PutBack(path))
	is("old")
	alone()
	// Whoever has one of them open would write into the other one's log.
	create("new", Beside(path))
	db, err := OpenSQLite(t.Context(), SQLiteOptions{Path: path, Key: keys["old"]})
	do(err)
	wantCode(t, TakeOver(path), "database_busy")
	do(db.Close())
	do(TakeOver(path))
	do(Shed(path))
	is("new")
	alone()
}
