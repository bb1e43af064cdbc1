package sqlstore

import (
	"database/sql"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/driver"
	"github.com/ncruces/go-sqlite3/ext/fts5"

	"claude-memory-backend/internal/seal"
)

// The benchmarks compare the engine layer with database/sql on the same driver, and making files from a template with
// migrating them. Syncs dominate the inserts; compare CPU, or run on a RAM disk.

const (
	benchTable  = `CREATE TABLE m (n INTEGER PRIMARY KEY, conv TEXT NOT NULL, role TEXT NOT NULL, body TEXT NOT NULL, at BIGINT NOT NULL)`
	benchInsert = `INSERT INTO m (conv, role, body, at) VALUES (?, ?, ?, ?)`
	benchPage   = `SELECT n, conv, role, body, at FROM m WHERE n > ? ORDER BY n LIMIT 50`
)

var benchBody = strings.Repeat("some words of a message ", 20)

func benchDB(b *testing.B, encrypted bool) *DB {
	o := SQLiteOptions{Path: filepath.Join(b.TempDir(), "a.db"), Create: true}
	if encrypted {
		key := seal.NewKey()
		o.Key = &key
	}
	db, err := OpenSQLite(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() })
	if err := db.Write(b.Context(), func(tx *Tx) error { return tx.script(benchTable) }); err != nil {
		b.Fatal(err)
	}
	return db
}

func BenchmarkInsert(b *testing.B) {
	for _, encrypted := range []bool{false, true} {
		b.Run(fmt.Sprintf("layer/encrypted=%v", encrypted), func(b *testing.B) {
			db := benchDB(b, encrypted)
			b.ReportAllocs()
			for b.Loop() {
				if err := db.Write(b.Context(), func(tx *Tx) error {
					return tx.Commit(func(q *Batch) { q.Exec(benchInsert, "c", "user", benchBody, 1) })
				}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("database-sql/encrypted=%v", encrypted), func(b *testing.B) {
			db := benchSQL(b, encrypted)
			stmt, err := db.Prepare(benchInsert)
			if err != nil {
				b.Fatal(err)
			}
			defer stmt.Close()
			b.ReportAllocs()
			for b.Loop() {
				tx, err := db.BeginTx(b.Context(), nil)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := tx.Stmt(stmt).ExecContext(b.Context(), "c", "user", benchBody, 1); err != nil { //nolint:sqlclosecheck // the commit closes it
					b.Fatal(err)
				}
				if err := tx.Commit(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkPage(b *testing.B) {
	var n, at int64
	var conv, role, body string
	for _, encrypted := range []bool{false, true} {
		b.Run(fmt.Sprintf("layer/encrypted=%v", encrypted), func(b *testing.B) {
			db := benchDB(b, encrypted)
			if err := db.Write(b.Context(), func(tx *Tx) error {
				return tx.Commit(func(q *Batch) {
					for range 2000 {
						q.Exec(benchInsert, "c", "user", benchBody, 1)
					}
				})
			}); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				rows := 0
				if err := db.Read(b.Context(), func(q *Batch) {
					q.Query(func(s Scanner) error {
						rows++
						return s.Scan(&n, &conv, &role, &body, &at)
					}, benchPage, i*37%1900)
				}); err != nil || rows != 50 {
					b.Fatal(rows, err)
				}
			}
		})
		b.Run(fmt.Sprintf("database-sql/encrypted=%v", encrypted), func(b *testing.B) {
			db := benchSQL(b, encrypted)
			tx, err := db.Begin()
			if err != nil {
				b.Fatal(err)
			}
			for range 2000 {
				if _, err := tx.Exec(benchInsert, "c", "user", benchBody, 1); err != nil {
					b.Fatal(err)
				}
			}
			if err := tx.Commit(); err != nil {
				b.Fatal(err)
			}
			stmt, err := db.Prepare(benchPage)
			if err != nil {
				b.Fatal(err)
			}
			defer stmt.Close()
			page := func(after int) (got int, err error) {
				rows, err := stmt.QueryContext(b.Context(), after)
				if err != nil {
					return 0, err
				}
				defer rows.Close()
				for ; rows.Next(); got++ {
					if err := rows.Scan(&n, &conv, &role, &body, &at); err != nil {
						return got, err
					}
				}
				return got, rows.Err()
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				got, err := page(i * 37 % 1900)
				if err != nil || got != 50 {
					b.Fatal(got, err)
				}
			}
		})
	}
}

func benchSQL(b *testing.B, encrypted bool) *sql.DB {
	key := seal.NewKey()
	db, err := driver.Open(sqliteURI(filepath.Join(b.TempDir(), "a.db"), encrypted), func(c *sqlite3.Conn) error {
		if encrypted {
			if err := c.Exec(`PRAGMA hexkey='` + hex.EncodeToString(key[:]) + `'`); err != nil {
				return err
			}
		}
		if err := fts5.Register(c); err != nil {
			return err
		}
		return c.Exec(`PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-512`)
	})
	if err != nil {
		b.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	b.Cleanup(func() { _ = db.Close() })
	if _, err := db.Exec(benchTable); err != nil {
		b.Fatal(err)
	}
	return db
}

func BenchmarkNewFile(b *testing.B) {
	key := seal.NewKey()
	b.Run("template", func(b *testing.B) {
		template, err := BuildTemplate(b.Context(), Tenant)
		if err != nil {
			b.Fatal(err)
		}
		dir := b.TempDir()
		b.ResetTimer()
		for i := 0; b.Loop(); i++ {
			if err := template.Create(b.Context(), filepath.Join(dir, fmt.Sprint(i)), &key); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(template.image)), "bytes/file")
	})
	b.Run("migrate", func(b *testing.B) {
		dir := b.TempDir()
		for i := 0; b.Loop(); i++ {
			db, err := OpenSQLite(b.Context(), SQLiteOptions{Path: filepath.Join(dir, fmt.Sprint(i)), Key: &key, Create: true})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := Migrate(b.Context(), db, Tenant); err != nil {
				b.Fatal(err)
			}
			if err := db.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	key := seal.NewKey()
	path := filepath.Join(b.TempDir(), "a.db")
	template, err := BuildTemplate(b.Context(), Tenant)
	if err != nil {
		b.Fatal(err)
	}
	if err := template.Create(b.Context(), path, &key); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for b.Loop() {
		db, err := OpenSQLite(b.Context(), SQLiteOptions{Path: path, Key: &key})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := SchemaVersion(b.Context(), db); err != nil {
			b.Fatal(err)
		}
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
