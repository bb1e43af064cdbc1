package sqlstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/ncruces/go-sqlite3"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/words"
)

// fixture is a small line of migrations, the same tables on both engines.
func fixture() fstest.MapFS {
	const tables = `
		CREATE TABLE owners (id TEXT NOT NULL PRIMARY KEY, email TEXT NOT NULL UNIQUE);
		CREATE TABLE notes (
			id BIGINT NOT NULL PRIMARY KEY,
			owner TEXT NOT NULL REFERENCES owners (id),
			title TEXT NOT NULL,
			body BYTES,
			score DOUBLE PRECISION,
			flag BIGINT NOT NULL DEFAULT 0,
			long TEXT NOT NULL DEFAULT '',
			UNIQUE (owner, title)
		);
		CREATE UNIQUE INDEX notes_by_score ON notes (score) WHERE flag = 1;
		INSERT INTO owners (id, email) VALUES ('ada', 'ada@example.com');`
	return fstest.MapFS{
		"migrations/master/0001_first.sqlite.sql":   {Data: []byte(strings.ReplaceAll(tables, "BYTES", "BLOB"))},
		"migrations/master/0001_first.postgres.sql": {Data: []byte(strings.ReplaceAll(tables, "BYTES", "BYTEA"))},
	}
}

func openFile(t *testing.T, o SQLiteOptions) *DB {
	t.Helper()
	db, err := OpenSQLite(t.Context(), o)
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

func onSQLite(t *testing.T) *DB {
	t.Helper()
	key := seal.NewKey()
	return openFile(t, SQLiteOptions{Path: filepath.Join(t.TempDir(), "a b?c#d.db"), Key: &key, Create: true})
}

func onPostgres(t *testing.T) *DB {
	t.Helper()
	pool, err := NewPostgresPool(t.Context(), seal.Secret(pgtest.URL(t)), 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return OpenPostgres(pool, PostgresOptions{Schema: "memoryd"})
}

// both runs a test on a fresh database of each engine, with the fixture's tables.
func both(t *testing.T, test func(t *testing.T, db *DB)) {
	t.Helper()
	for _, e := range []struct {
		name string
		open func(*testing.T) *DB
	}{{"sqlite", onSQLite}, {"postgres", onPostgres}} {
		t.Run(e.name, func(t *testing.T) {
			db := e.open(t)
			if _, err := migrate(t.Context(), db, fixture(), Master); err != nil {
				t.Fatal(err)
			}
			test(t, db)
		})
	}
}

func add(b *Batch, id int, title string) *Affected {
	return b.Exec(`INSERT INTO notes (id, owner, title) VALUES (?, 'ada', ?)`, id, title)
}

func count(t *testing.T, db *DB) (n int) {
	t.Helper()
	if err := db.Read(t.Context(), func(b *Batch) { b.One([]any{&n}, `SELECT count(*) FROM notes`) }); err != nil {
		t.Fatal(err)
	}
	return n
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if err == nil || fault.CodeOf(err) != code {
		t.Fatalf("want code %q, got %v", code, err)
	}
}

type title string

func TestValuesAreTheSameOnBothEngines(t *testing.T) {
	both(t, func(t *testing.T, db *DB) {
		big := strings.Repeat("ä", 1<<20)
		note := "hello"
		for i, c := range []struct {
			title any
			body  any
			score any
			flag  any
		}{
			{"plain", []byte{0, 1, 255}, 1.5, 1},
			{title("derived ? -- 'x'"), []byte{}, math.MaxFloat64, true},
			{"emoji 🙂 \U0010FFFF", nil, nil, int64(math.MaxInt64)},
			{"long", []byte(nil), -0.1, int64(math.MinInt64)},
			{"", []byte(nil), math.SmallestNonzeroFloat64, false},
			{&note, []byte("x"), (*float64)(nil), uint8(7)},
		} {
			if err := db.Write(t.Context(), func(tx *Tx) error {
				return tx.Commit(func(b *Batch) {
					b.Exec(`INSERT INTO notes (id, owner, title, body, score, flag, long) VALUES (?, 'ada', ?, ?, ?, ?, ?)`,
						i, c.title, c.body, c.score, c.flag, big)
				})
			}); err != nil {
				t.Fatalf("row %d: %v", i, err)
			}
		}
		type row struct {
			title title
			body  []byte
			score *float64
			flag  int64
			any   any
			long  string
		}
		var rows []row
		if err := db.Read(t.Context(), func(b *Batch) {
			b.Query(func(s Scanner) error {
				var r row
				err := s.Scan(&r.title, &r.body, &r.score, &r.flag, &r.any, &r.long)
				rows = append(rows, r)
				return err
			}, `SELECT title, body, score, flag, body, long FROM notes ORDER BY id`)
		}); err != nil {
			t.Fatal(err)
		}
		if len(rows) != 6 {
			t.Fatalf("got %d rows", len(rows))
		}
		for i, want := range []string{"plain", "derived ? -- 'x'", "emoji 🙂 \U0010FFFF", "long", "", "hello"} {
			if string(rows[i].title) != want || rows[i].long != big {
				t.Errorf("title %d differs", i)
			}
		}
		if string(rows[0].body) != "\x00\x01\xff" || rows[0].any == nil || *rows[0].score != 1.5 || rows[0].flag != 1 {
			t.Errorf("row 0 is %+v", rows[0])
		}
		if rows[1].body == nil || len(rows[1].body) != 0 || *rows[1].score != math.MaxFloat64 || rows[1].flag != 1 {
			t.Errorf("row 1 is %+v", rows[1])
		}
		if rows[2].body != nil || rows[2].any != nil || rows[2].score != nil || rows[2].flag != math.MaxInt64 {
			t.Errorf("row 2 is %+v", rows[2])
		}
		if rows[3].body != nil || *rows[3].score != -0.1 || rows[3].flag != math.MinInt64 {
			t.Errorf("row 3 has %v %v %v", rows[3].body, rows[3].score, rows[3].flag)
		}
		if *rows[4].score != math.SmallestNonzeroFloat64 || rows[4].flag != 0 || rows[4].body != nil {
			t.Errorf("row 4 is %+v", rows[4])
		}
		if rows[5].score != nil || rows[5].flag != 7 {
			t.Errorf("row 5 is %+v", rows[5])
		}
	})
}

func TestScanSpeaksOneLanguage(t *testing.T) {
	both(t, func(t *testing.T, db *DB) {
		var yes bool
		var null int64 = 5
		var text string
		var sum any
		var small int8
		var missing = "untouched"
		var found, none *Found
		err := db.Read(t.Context(), func(b *Batch) {
			found = b.One([]any{&yes, &null, &text}, `SELECT 1 = 1, NULL, CAST(42 AS TEXT)`)
			b.One([]any{&sum}, `SELECT sum(n) FROM (SELECT CAST(? AS BIGINT) AS n) AS x`, 7)
			none = b.One([]any{&missing}, `SELECT id FROM owners WHERE id = ?`, "nobody")
		})
		if err != nil || !yes || null != 0 || text != "42" || !found.Yes || none.Yes || missing != "untouched" {
			t.Fatal(yes, null, text, found, none, missing, err)
		}
		if fmt.Sprint(sum) != "7" {
			t.Fatalf("sum is %v", sum)
		}
		for name, fill := range map[string]func(b *Batch){
			"too many columns":    func(b *Batch) { b.One([]any{&text, &text}, `SELECT 1`) },
			"text for a number":   func(b *Batch) { b.One([]any{&null}, `SELECT 'x'`) },
			"too big a number":    func(b *Batch) { b.One([]any{&small}, `SELECT 300`) },
			"too few arguments":   func(b *Batch) { b.One([]any{&text}, `SELECT id FROM owners WHERE id = ?`) },
			"a strange type":      func(b *Batch) { b.One([]any{&text}, `SELECT id FROM owners WHERE id = ?`, time.Now()) },
			"no such table":       func(b *Batch) { b.One([]any{&text}, `SELECT id FROM nothing`) },
			"two statements":      func(b *Batch) { b.Exec(`SELECT 1; SELECT 2`) },
			"a write in a read":   func(b *Batch) { b.Exec(`DELETE FROM owners`) },
			"a callback's errors": func(b *Batch) { b.Query(func(Scanner) error { return errors.New("no") }, `SELECT 1`) },
		} {
			t.Run(name, func(t *testing.T) {
				if err := db.Read(t.Context(), fill); err == nil {
					t.Fatal("no error")
				}
				if n := count(t, db); n != 0 { // and the connection still works
					t.Fatal(n)
				}
			})
		}
	})
}

func TestInvalidTextIsRefusedBeforeTheEnginesDiffer(t *testing.T) {
	both(t, func(t *testing.T, db *DB) {
		for _, bad := range []any{"a\x00b", "\xff", title("\x00"), json.RawMessage("\xc3")} {
			err := db.Write(t.Context(), func(tx *Tx) error {
				return tx.Commit(func(b *Batch) {
					b.Exec(`INSERT INTO notes (id, owner, title) VALUES (1, 'ada', ?)`, bad)
				})
			})
			wantCode(t, err, "invalid_text")
			if !fault.Is(err, fault.Invalid) {
				t.Fatal(err)
			}
		}
	})
}

func TestRoundTrips(t *testing.T) {
	both(t, func(t *testing.T, db *DB) {
		trips := func(what string, want int64, do func() error) {
			t.Helper()
			before := db.RoundTrips()
			if err := do(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if got := db.RoundTrips() - before; got != want {
				t.Errorf("%s took %d round trips, want %d", what, got, want)
			}
		}
		trips("a read of two statements", 1, func() error {
			return db.Read(t.Context(), func(b *Batch) {
				b.Exec(`SELECT 1`)
				b.Exec(`SELECT 2`)
			})
		})
		trips("an empty read", 0, func() error { return db.Read(t.Context(), func(*Batch) {}) })
		trips("a write with one Commit", 1, func() error {
			return db.Write(t.Context(), func(tx *Tx) error { return tx.Commit(func(b *Batch) { add(b, 1, "a") }) })
		})
		trips("Run and Commit", 2, func() error {
			return db.Write(t.Context(), func(tx *Tx) error {
				if err := tx.Run(func(b *Batch) { add(b, 2, "b") }); err != nil {
					return err
				}
				return tx.Commit(nil)
			})
		})
		trips("Run and the implied commit", 2, func() error {
			return db.Write(t.Context(), func(tx *Tx) error { return tx.Run(func(b *Batch) { add(b, 3, "c") }) })
		})
		trips("an empty write", 0, func() error { return db.Write(t.Context(), func(*Tx) error { return nil }) })
		if n := count(t, db); n != 3 {
			t.Fatalf("%d rows", n)
		}
	})
}

func TestWriteIsAllOrNothing(t *testing.T) {
	own := errors.New("of the caller")
	both(t, func(t *testing.T, db *DB) {
		for name, c := range map[string]struct {
			fn   func(tx *Tx) error
			code string
		}{
			"an error of fn rolls back": {func(tx *Tx) error {
				if err := tx.Run(func(b *Batch) { add(b, 1, "a") }); err != nil {
					return err
				}
				return own
			}, "internal"},
			"a failed statement undoes those before it": {func(tx *Tx) error {
				return tx.Commit(func(b *Batch) {
					add(b, 1, "a")
					add(b, 1, "b")
					add(b, 2, "c")
				})
			}, "duplicate"},
			"a swallowed error is no success": {func(tx *Tx) error {
				_ = tx.Run(func(b *Batch) { add(b, 1, "a"); add(b, 1, "b") })
				return nil
			}, "duplicate"},
			"a commit after a failed statement reports the error": {func(tx *Tx) error {
				_ = tx.Run(func(b *Batch) { add(b, 1, "a"); add(b, 1, "b") })
				return tx.Commit(func(b *Batch) { add(b, 2, "c") })
			}, "duplicate"},
			"work after a commit is refused": {func(tx *Tx) error {
				if err := tx.Commit(nil); err != nil {
					return err
				}
				return tx.Run(func(b *Batch) { add(b, 1, "a") })
			}, "transaction_over"},
			"a callback's error rolls back": {func(tx *Tx) error {
				return tx.Run(func(b *Batch) {
					add(b, 1, "a")
					b.Query(func(Scanner) error { return own }, `SELECT 1`)
				})
			}, "internal"},
		} {
			t.Run(name, func(t *testing.T) {
				wantCode(t, db.Write(t.Context(), c.fn), c.code)
				if n := count(t, db); n != 0 {
					t.Fatalf("%d rows stayed", n)
				}
			})
		}
		t.Run("a panic rolls back", func(t *testing.T) {
			func() {
				defer func() { _ = recover() }()
				_ = db.Write(t.Context(), func(tx *Tx) error {
					_ = tx.Run(func(b *Batch) { add(b, 1, "a") })
					panic("no")
				})
			}()
			if n := count(t, db); n != 0 {
				t.Fatalf("%d rows stayed", n)
			}
		})
		t.Run("and works afterwards", func(t *testing.T) {
			var a *Affected
			if err := db.Write(t.Context(), func(tx *Tx) error {
				return tx.Commit(func(b *Batch) {
					add(b, 1, "a")
					a = b.Exec(`UPDATE notes SET title = 'b' WHERE id = ?`, 1)
				})
			}); err != nil || a.N != 1 {
				t.Fatal(a, err)
			}
			if err := db.Write(t.Context(), func(tx *Tx) error {
				return tx.Commit(func(b *Batch) { a = b.Exec(`UPDATE notes SET title = 'b' WHERE id = ?`, 99) })
			}); err != nil || a.N != 0 {
				t.Fatal(a, err)
			}
		})
	})
}

func TestReadsSeeOneSnapshot(t *testing.T) {
	both(t, func(t *testing.T, db *DB) {
		first, second := -1, -1
		// A read while somebody writes opens a reader on SQLite; the next read takes that one and not the writing
		// connection, which it must leave to the write in its midst.
		if err := db.Write(t.Context(), func(tx *Tx) error {
			if err := tx.Run(func(b *Batch) { b.One([]any{&first}, `SELECT count(*) FROM notes`) }); err != nil {
				return err
			}
			count(t, db)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := db.Read(t.Context(), func(b *Batch) {
			b.Query(func(s Scanner) error {
				if err := s.Scan(&first); err != nil {
					return err
				}
				// SQLite is between the two statements here; PostgreSQL has answered both already.
				return db.Write(t.Context(), func(tx *Tx) error {
					return tx.Commit(func(b *Batch) { add(b, 1, "a") })
				})
			}, `SELECT count(*) FROM notes`)
			b.One([]any{&second}, `SELECT count(*) FROM notes`)
		}); err != nil || first != 0 || second != 0 {
			t.Fatal(first, second, err)
		}
		if n := count(t, db); n != 1 {
			t.Fatal(n)
		}
	})
}

func TestReadsWriteNothing(t *testing.T) {
	both(t, func(t *testing.T, db *DB) {
		for range 2 { // and leave the connection as it was
			if err := db.Read(t.Context(), func(b *Batch) { add(b, 1, "a") }); err == nil {
				t.Error("a read has written")
			}
			if n := count(t, db); n != 0 {
				t.Errorf("%d rows", n)
			}
		}
		if err := db.Write(t.Context(), func(tx *Tx) error { return tx.Commit(func(b *Batch) { add(b, 1, "a") }) }); err != nil {
			t.Error(err)
		}
	})
}

func TestRowsThatNobodyWantsAreNotHandedOver(t *testing.T) {
	both(t, func(t *testing.T, db *DB) {
		got := 0
		if err := db.Read(t.Context(), func(b *Batch) {
			b.QueryUntil(func(Scanner) error { got++; return nil }, func() bool { return got == 3 },
				`WITH RECURSIVE up (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < 10) SELECT n FROM up`)
		}); err != nil || got != 3 {
			t.Error(got, err)
		}
	})
}

// A tenant that one person uses is read with its writing connection. What that has prepared stays so.
func TestReadsAndWritesInTurnsPrepareOnce(t *testing.T) {
	db := tenantFiles(t)(t)
	s := NewTenantStore(db, nil)
	fill(t, db, 20)
	for range 3 {
		if _, err := s.Ask(t.Context(), conversation.Question{Count: true,
			Clauses: []words.Clause{{{Text: word(1), Stem: word(1)}}, {{Text: word(2), Stem: word(2)}}}}); err != nil {
			t.Fatal(err)
		}
		put(t, db, func(b *Batch) { indexMessage(b, SQLite, "m1", "another text") })
	}
	e := db.on.Load().engine.(*sqliteEngine)
	for sql, s := range e.write.statements {
		if n := s.Status(sqlite3.STMTSTATUS_REPREPARE, false); n > 0 {
			t.Errorf("prepared %d times more: %s", n, sql)
		}
	}
	if len(e.idle) > 0 || len(e.write.statements) < 4 {
		t.Errorf("%d other connections, %d statements", len(e.idle), len(e.write.statements))
	}
}

func TestViolationsAreNamedOnBothEngines(t *testing.T) {
	both(t, func(t *testing.T, db *DB) {
		if err := db.Write(t.Context(), func(tx *Tx) error {
			return tx.Commit(func(b *Batch) {
				b.Exec(`INSERT INTO notes (id, owner, title, score, flag) VALUES (1, 'ada', 'a', 1, 1)`)
			})
		}); err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]struct{ sql, code, violates string }{
			"a primary key":     {`INSERT INTO notes (id, owner, title) VALUES (1, 'ada', 'b')`, "duplicate", "notes_pkey"},
			"a text key":        {`INSERT INTO owners (id, email) VALUES ('ada', 'b')`, "duplicate", "owners_pkey"},
			"a unique column":   {`INSERT INTO owners (id, email) VALUES ('bob', 'ada@example.com')`, "duplicate", "owners_email_key"},
			"a unique pair":     {`INSERT INTO notes (id, owner, title) VALUES (2, 'ada', 'a')`, "duplicate", "notes_owner_title_key"},
			"a unique index":    {`INSERT INTO notes (id, owner, title, score, flag) VALUES (2, 'ada', 'b', 1, 1)`, "duplicate", "notes_by_score"},
			"a dangling":        {`INSERT INTO notes (id, owner, title) VALUES (2, 'eve', 'b')`, "not_found", ""},
			"a still needed":    {`DELETE FROM owners WHERE id = 'ada'`, "not_found", ""},
			"a missing value":   {`INSERT INTO owners (id, email) VALUES ('bob', NULL)`, "internal", ""},
			"a syntax mistake":  {`INSERT INTO`, "internal", ""},
			"an unknown column": {`UPDATE notes SET nothing = 1`, "internal", ""},
		} {
			t.Run(name, func(t *testing.T) {
				err := db.Write(t.Context(), func(tx *Tx) error { return tx.Commit(func(b *Batch) { b.Exec(c.sql) }) })
				wantCode(t, err, c.code)
				if c.violates != "" && !violates(err, c.violates) {
					t.Errorf("does not name %s: %v", c.violates, err)
				}
				if violates(err, "notes") {
					t.Error("names anything")
				}
			})
		}
	})
}

func TestErrorsDoNotQuoteWhatWasWritten(t *testing.T) {
	both(t, func(t *testing.T, db *DB) {
		const private = "privatetext"
		for _, fill := range []func(b *Batch){
			func(b *Batch) { b.Exec(`INSERT INTO owners (id, email) VALUES (?, ?)`, "x", "ada@example.com") },
			func(b *Batch) { b.Exec(`SELECT CAST(? AS BIGINT) + length('x')`, private); b.Exec(`INSERT INTO`) },
			func(b *Batch) { var n int; b.One([]any{&n}, `SELECT ?`, private) },
			func(b *Batch) { b.Exec(`INSERT INTO notes (id, owner, title) VALUES (9, ?, 'x')`, private) },
		} {
			err := db.Write(t.Context(), func(tx *Tx) error { return tx.Commit(fill) })
			if err == nil || strings.Contains(err.Error(), private) || strings.Contains(err.Error(), "ada@example.com") {
				t.Fatalf("got %v", err)
			}
		}
	})
}

func TestManyWriters(t *testing.T) {
	both(t, func(t *testing.T, db *DB) {
		const writers, each = 64, 5
		var wg sync.WaitGroup
		errs := make(chan error, writers)
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					err := db.Write(t.Context(), func(tx *Tx) error {
						var n int
						if err := tx.Run(func(b *Batch) {
							b.Exec(`UPDATE owners SET email = email WHERE id = 'ada'`) // the row lock
							b.One([]any{&n}, `SELECT count(*) FROM notes`)
						}); err != nil {
							return err
						}
						return tx.Commit(func(b *Batch) { add(b, n, fmt.Sprint(w, "-", i)) })
					})
					if err == nil {
						err = db.Read(t.Context(), func(b *Batch) { b.Exec(`SELECT count(*) FROM notes`) })
					}
					if err != nil {
						errs <- err
						return
					}
				}
			})
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			t.Error(err)
		}
		if n := count(t, db); n != writers*each {
			t.Fatalf("%d rows, want %d", n, writers*each)
		}
	})
}

func TestContexts(t *testing.T) {
	both(t, func(t *testing.T, db *DB) {
		canceled, cancel := context.WithCancel(t.Context())
		cancel()
		late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
		defer cancel()
		for _, c := range []struct {
			ctx   context.Context
			class fault.Class
		}{{canceled, fault.Canceled}, {late, fault.Unavailable}} {
			if err := db.Read(c.ctx, func(b *Batch) { b.Exec(`SELECT 1`) }); !fault.Is(err, c.class) {
				t.Errorf("read: %v", err)
			}
			if err := db.Write(c.ctx, func(tx *Tx) error {
				return tx.Commit(func(b *Batch) { add(b, 1, "a") })
			}); !fault.Is(err, c.class) {
				t.Errorf("write: %v", err)
			}
		}
		t.Run("a running statement is interrupted", func(t *testing.T) {
			endless := db.Dialect().Pick(
				`WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r`,
				`SELECT pg_sleep(60)`)
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			wantCode(t, db.Read(ctx, func(b *Batch) { b.Exec(`SELECT 1`); b.Exec(endless) }), "timeout")
			ctx, cancel = context.WithCancel(t.Context())
			go cancel()
			err := db.Write(ctx, func(tx *Tx) error {
				if err := tx.Run(func(b *Batch) { add(b, 1, "a") }); err != nil {
					return err
				}
				return tx.Run(func(b *Batch) { b.Exec(endless) })
			})
			if !fault.Is(err, fault.Canceled) {
				t.Fatal(err)
			}
		})
		t.Run("a canceled commit leaves nothing", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			err := db.Write(ctx, func(tx *Tx) error {
				if err := tx.Run(func(b *Batch) { add(b, 2, "b") }); err != nil {
					return err
				}
				cancel()
				return tx.Commit(nil)
			})
			if !fault.Is(err, fault.Canceled) {
				t.Fatal(err)
			}
		})
		t.Run("who waits for a connection can give up", func(t *testing.T) {
			held, release := make(chan struct{}), make(chan struct{})
			var wg sync.WaitGroup
			var once sync.Once
			for range 8 { // all of PostgreSQL's pool; the rest wait for SQLite's writer
				wg.Go(func() {
					_ = db.Write(t.Context(), func(tx *Tx) error {
						if err := tx.Run(func(b *Batch) { b.Exec(`SELECT 1`) }); err != nil {
							return err
						}
						once.Do(func() { close(held) })
						<-release
						return nil
					})
				})
			}
			<-held
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			if db.Dialect() == SQLite {
				wantCode(t, db.Write(ctx, func(tx *Tx) error { return tx.Commit(func(b *Batch) { add(b, 3, "c") }) }), "timeout")
			} else {
				for db.on.Load().engine.(*postgresEngine).pool.Stat().AcquiredConns() < 8 {
					time.Sleep(time.Millisecond)
				}
				wantCode(t, db.Read(ctx, func(b *Batch) { b.Exec(`SELECT 1`) }), "timeout")
			}
			close(release)
			wg.Wait()
		})
		if n := count(t, db); n != 0 {
			t.Fatalf("%d rows", n)
		}
	})
}

func TestPlaceholders(t *testing.T) {
	for in, want := range map[string]string{
		`SELECT 1`:                         `SELECT 1`,
		`a = ? AND b = ?`:                  `a = $1 AND b = $2`,
		`a = ?2 AND b = ?1`:                `a = $2 AND b = $1`,
		`'it''s ?' = ? "a?" ?`:             `'it''s ?' = $1 "a?" $2`,
		"-- why?\n? /* ? */ ?":             "-- why?\n$1 /* ? */ $2",
		`? -- ?`:                           `$1 -- ?`,
		`'open ?`:                          `'open ?`,
		`VALUES (?,?,?,?,?,?,?,?,?,?,?)`:   `VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11)`,
		`LIMIT ?`:                          `LIMIT $1`,
		`"x" = '?' || ? || '''?''' || ?`:   `"x" = '?' || $1 || '''?''' || $2`,
		`SELECT ? / ? - ? -1 FROM t -- é?`: `SELECT $1 / $2 - $3 -1 FROM t -- é?`,
	} {
		if got := (&texts{}).dollar(in); got != want {
			t.Errorf("%s became %s", in, got)
		}
	}
}

func TestValidText(t *testing.T) {
	for s, want := range map[string]bool{"": true, "é🙂": true, "a\x00": false, "\xc3\x28": false, "\uFFFD": true} {
		if ValidText(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
}

func TestMigrate(t *testing.T) {
	for _, e := range []struct {
		name string
		open func(*testing.T) *DB
	}{{"sqlite", onSQLite}, {"postgres", onPostgres}} {
		t.Run(e.name, func(t *testing.T) {
			db, line := e.open(t), fixture()
			if v, err := SchemaVersion(t.Context(), db); err != nil || v != 0 {
				t.Fatalf("a new database has version %d, %v", v, err)
			}
			var wg sync.WaitGroup
			for range 4 { // several processes start at once
				wg.Go(func() {
					if _, err := migrate(t.Context(), db, line, Master); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			report, err := migrate(t.Context(), db, line, Master)
			if err != nil || len(report.Applied) != 0 || report.From != 1 || report.To != 1 {
				t.Fatalf("running again: %+v, %v", report, err)
			}
			before := db.RoundTrips()
			if _, err := migrate(t.Context(), db, line, Master); err != nil || db.RoundTrips() != before+1 {
				t.Fatalf("running again costs %d round trips, %v", db.RoundTrips()-before, err)
			}
			for _, d := range []string{"sqlite", "postgres"} {
				line["migrations/master/0002_second."+d+".sql"] = &fstest.MapFile{Data: []byte(
					"CREATE TABLE more (id BIGINT NOT NULL PRIMARY KEY); INSERT INTO more (id) VALUES (1);")}
			}
			report, err = migrate(t.Context(), db, line, Master)
			if err != nil || !slices.Equal(report.Applied, []string{"0002_second"}) || report.From != 1 || report.To != 2 {
				t.Fatalf("the second step: %+v, %v", report, err)
			}
			if v, err := SchemaVersion(t.Context(), db); err != nil || v != 2 {
				t.Fatal(v, err)
			}
			t.Run("a newer database is refused", func(t *testing.T) {
				_, err := migrate(t.Context(), db, fixture(), Master)
				wantCode(t, err, "schema_newer")
			})
			t.Run("a failing step leaves nothing", func(t *testing.T) {
				bad := fstest.MapFS{}
				for k, v := range line {
					bad[k] = v
				}
				for _, d := range []string{"sqlite", "postgres"} {
					bad["migrations/master/0003_third."+d+".sql"] = &fstest.MapFile{Data: []byte(
						"CREATE TABLE half (id BIGINT); CREATE TABLE half (id BIGINT);")}
				}
				if _, err := migrate(t.Context(), db, bad, Master); err == nil {
					t.Fatal("no error")
				}
				err := db.Read(t.Context(), func(b *Batch) { b.Exec(`SELECT id FROM half`) })
				if err == nil {
					t.Fatal("half a step stayed")
				}
				if v, err := SchemaVersion(t.Context(), db); err != nil || v != 2 {
					t.Fatal(v, err)
				}
				// Whoever finds a new database, finds all of it or nothing.
				fresh := e.open(t)
				if report, err := migrate(t.Context(), fresh, bad, Master); err == nil || report.Failed != "0003_third" || report.To != 0 {
					t.Fatalf("%+v, %v", report, err)
				}
				if v, err := SchemaVersion(t.Context(), fresh); err != nil || v != 0 {
					t.Fatal(v, err)
				}
			})
			t.Run("a changed step is damage", func(t *testing.T) {
				changed := fixture()
				for k := range changed {
					changed[k] = &fstest.MapFile{Data: append([]byte("-- changed\n"), changed[k].Data...)}
				}
				_, err := migrate(t.Context(), db, changed, Master)
				wantCode(t, err, "schema_damaged")
			})
			t.Run("a gap is damage", func(t *testing.T) {
				if err := db.Write(t.Context(), func(tx *Tx) error {
					return tx.Commit(func(b *Batch) { b.Exec(`DELETE FROM schema_migrations WHERE version = 1`) })
				}); err != nil {
					t.Fatal(err)
				}
				_, err := migrate(t.Context(), db, line, Master)
				wantCode(t, err, "schema_damaged")
				_, err = SchemaVersion(t.Context(), db)
				wantCode(t, err, "schema_damaged")
			})
		})
	}
}

func TestReleasedLinesMigrateOnBothEngines(t *testing.T) {
	for _, line := range []Line{Master, Tenant} {
		for _, e := range []struct {
			name string
			open func(*testing.T) *DB
		}{{"sqlite", onSQLite}, {"postgres", onPostgres}} {
			t.Run(line.String()+" on "+e.name, func(t *testing.T) {
				db := e.open(t)
				first, err := Migrate(t.Context(), db, line)
				if err != nil || len(first.Applied) == 0 {
					t.Fatal(first, err)
				}
				again, err := Migrate(t.Context(), db, line)
				if err != nil || len(again.Applied) != 0 || again.From != first.To {
					t.Fatal(again, err)
				}
			})
		}
	}
}
