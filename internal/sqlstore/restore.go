package sqlstore

import (
	"context"
	"strings"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/tenant"
)

// What restoring needs beside rows: databases of an earlier version, and a master database that was somewhere else
// when it was copied.

// MigrateTo brings a database without tables to a version of its line. A version that this program does not know is
// code "schema_newer".
func MigrateTo(ctx context.Context, d *DB, line Line, version int64) error {
	steps, err := load(embedded, line, d.Dialect())
	if err != nil {
		return err
	}
	if version > int64(len(steps)) {
		return fault.New(fault.Unavailable, "sqlstore.MigrateTo", "schema_newer",
			"the database was written by a newer version of this program")
	}
	_, err = migrateBy(ctx, d, steps[:version])
	return err
}

// Remake drops all tables of a database with everything in them, and makes those of a version of the tenants' line. It
// is for databases that were made a moment ago.
func Remake(ctx context.Context, d *DB, version int64) error {
	const op = "sqlstore.Remake"
	for _, virtual := range []bool{true, false} { // SQLite drops what belongs to a virtual table with it, and only with it
		var names []string
		if err := d.Read(ctx, func(b *Batch) {
			b.Query(func(s Scanner) error {
				var name, sql string
				err := s.Scan(&name, &sql)
				if virtual == strings.HasPrefix(sql, "CREATE VIRTUAL TABLE") {
					names = append(names, name)
				}
				return err
			}, b.Dialect().Pick(`SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'`,
				`SELECT tablename, '' FROM pg_tables WHERE schemaname = current_schema()`))
		}); err != nil {
			return fault.Wrap(op, err)
		}
		if err := d.Write(ctx, func(tx *Tx) error {
			cascade := tx.Dialect().Pick("", " CASCADE")
			return tx.Commit(func(b *Batch) {
				for _, name := range names {
					b.Exec(`DROP TABLE ` + quoted(name) + cascade)
				}
			})
		}); err != nil {
			return fault.Wrap(op, err)
		}
	}
	return MigrateTo(ctx, d, Tenant, version)
}

// ReplaceSchema gives a schema the name of another, whose own becomes kept, in one transaction: PostgreSQL's way to
// put one database in the place of another. One that is not there needs no other name.
func ReplaceSchema(ctx context.Context, d *DB, from, to, kept string) error {
	return fault.Wrap("sqlstore.ReplaceSchema", d.Write(ctx, func(tx *Tx) error {
		var there bool
		if err := tx.Run(func(b *Batch) { b.One([]any{&there}, schemaExists, to) }); err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) {
			if there {
				b.Exec(`ALTER SCHEMA ` + quoted(to) + ` RENAME TO ` + quoted(kept))
			}
			b.Exec(`ALTER SCHEMA ` + quoted(from) + ` RENAME TO ` + quoted(to))
		})
	}))
}

const schemaExists = `SELECT count(*) > 0 FROM pg_namespace WHERE nspname = ?`

// DropSchema removes a schema of PostgreSQL with everything in it. One that is not there is no error.
func DropSchema(ctx context.Context, d *DB, name string) error {
	return fault.Wrap("sqlstore.DropSchema", d.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { b.Exec(`DROP SCHEMA IF EXISTS ` + quoted(name) + ` CASCADE`) })
	}))
}

// FactsNamed returns the facts whose names begin so, by name.
func (s *MasterStore) FactsNamed(ctx context.Context, prefix string) (map[string][]byte, error) {
	list := make(map[string][]byte)
	err := s.db.Read(ctx, func(b *Batch) {
		b.Query(func(sc Scanner) error {
			var name string
			var value []byte
			err := sc.Scan(&name, &value)
			list[name] = value
			return err
		}, `SELECT name, value FROM facts WHERE name LIKE ?`, prefix+"%")
	})
	return list, err
}

// ForgetFacts removes the facts whose names begin so.
func (s *MasterStore) ForgetFacts(ctx context.Context, prefix string) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { b.Exec(`DELETE FROM facts WHERE name LIKE ?`, prefix+"%") })
	})
}

// HasAccounts reports whether anybody has an account.
func (s *MasterStore) HasAccounts(ctx context.Context) (there bool, err error) {
	err = s.db.Read(ctx, func(b *Batch) {
		b.One([]any{&there}, `SELECT count(*) > 0 FROM (SELECT 1 AS one FROM accounts LIMIT 1) AS any_account`)
	})
	return there, err
}

// Revive makes a copied master database one that can be worked with: jobs that ran when it was copied have failed,
// copies that were not copied along are gone, and every session has ended, since one that was ended after the copy would
// be alive again.
func (s *MasterStore) Revive(ctx context.Context, ch event.Change) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		return tx.Commit(func(b *Batch) {
			b.Exec(`UPDATE tenants SET job_id = ''`)
			b.Exec(`UPDATE jobs SET state = 'failed', error_code = 'restored', error_detail = ?, finished_at = ?
				WHERE state IN ('queued', 'running')`, "the installation was restored from a backup", ident.Micros(ch.At))
			b.Exec(`UPDATE databases SET state = 'empty', host = '', wrapped_key = NULL, schema_version = 0, size_bytes = 0,
				problem = '', checked_at = NULL WHERE kind <> 'external' AND state IN ('original', 'filling')`)
			b.Exec(`UPDATE databases SET state = 'ready' WHERE kind = 'external' AND state = 'filling'`)
			b.Exec(`DELETE FROM sessions`)
			markEverybody(b, ident.Micros(ch.At)) // tenants were copied later than this database
			appendChange(b, ch, head)
		})
	})
}

// Place says where a tenant's data lives that was restored: in a database that the directory did not know. A hosted one
// that it lived in was not copied as it lay there, so its entry goes; a user's own becomes the original. The tenant's own
// log is told.
func (s *MasterStore) Place(ctx context.Context, to tenant.Database, ch event.Change) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		t, err := lockTenant(tx, to.Tenant)
		if err != nil {
			return err
		}
		to.State = tenant.InUse
		return tx.Commit(func(b *Batch) {
			if t.Placement.Kind == tenant.External {
				b.Exec(`UPDATE databases SET state = ?, updated_at = ? WHERE id = ?`, tenant.Original, ident.Micros(to.UpdatedAt), t.Placement.Database)
			} else {
				b.Exec(`DELETE FROM databases WHERE id = ?`, t.Placement.Database)
			}
			insertDatabase(b, to)
			b.Exec(`UPDATE tenants SET database_id = ?, schema_version = ?, schema_problem = '', schema_at = ? WHERE id = ?`,
				to.ID(), to.Facts.SchemaVersion, ident.Micros(to.UpdatedAt), to.Tenant)
			toTell(b, to.Tenant, ch)
			appendChange(b, ch, head)
		})
	})
}

// NewestSchema is the version that Migrate brings a line to.
func NewestSchema(line Line) (int64, error) {
	steps, err := load(embedded, line, SQLite)
	return int64(len(steps)), err
}
