package sqlstore

import (
	"context"
	"strings"
)

// fenceName is the trigger that refuses writes, and its function.
const fenceName = "memoryd_fence"

// Fence makes a database refuse every write from anybody, in every process and also by hand: such a Write fails at once
// with fault.Unavailable, code "tenant_moved". It is one transaction, waits for the writers in flight until ctx is
// over, and leaves everything readable with plain SQL. Migrate, StartCapture, Put, Delete and Empty are refused on a
// fenced database; StopCapture and Unfence work. One that is fenced stays so.
//
// On SQLite a statement that matches no row is not refused, and the tables of the index, which are derived, take no
// triggers.
func Fence(ctx context.Context, db *DB) error {
	return alter(ctx, db, "sqlstore.Fence", func(tx *Tx, wait int) error {
		names, schema, err := ours(tx, wait)
		if err != nil {
			return err
		}
		if err := tx.lockAgainstWriters(names); err != nil {
			return err
		}
		var ddl strings.Builder
		if tx.Dialect() == Postgres {
			ddl.WriteString(`CREATE OR REPLACE FUNCTION ` + quoted(schema) + `.` + quoted(fenceName) + `() RETURNS trigger
				LANGUAGE plpgsql AS $$ BEGIN
					RAISE EXCEPTION 'this database was moved away and is kept as it was' USING ERRCODE = '` + movedState + `';
				END $$;`)
		}
		for _, name := range names {
			if tx.Dialect() == Postgres {
				ddl.WriteString(`CREATE OR REPLACE TRIGGER ` + quoted(fenceName) + ` BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON ` +
					quoted(name) + ` FOR EACH STATEMENT EXECUTE FUNCTION ` + quoted(schema) + `.` + quoted(fenceName) + `();
					ALTER TABLE ` + quoted(name) + ` ENABLE TRIGGER ` + quoted(fenceName) + `;`)
				continue
			}
			for _, event := range [...]string{"insert", "update", "delete"} {
				ddl.WriteString(`CREATE TRIGGER IF NOT EXISTS ` + quoted(fenceName+"_"+name+"_"+event) + ` BEFORE ` + event + ` ON ` +
					quoted(name) + ` BEGIN SELECT RAISE(ABORT, 'this database was moved away and is kept as it was'); END;`)
			}
		}
		return tx.script(ddl.String())
	})
}

// Unfence takes the fence away, if there is one. On PostgreSQL the database takes writes again as soon as it begins, and
// it waits, until ctx is over, for everybody who reads in a long transaction.
func Unfence(ctx context.Context, db *DB) error {
	const op = "sqlstore.Unfence"
	if err := remove(ctx, db, op, fenceName); err != nil {
		return err
	}
	return alter(ctx, db, op, func(tx *Tx, wait int) error {
		return tx.Commit(func(b *Batch) {
			if hurry(b, wait); b.Dialect() == Postgres {
				b.Exec(`DROP FUNCTION IF EXISTS ` + quoted(fenceName) + `()`)
			}
		})
	})
}

// Fenced reports whether the database is fenced.
func Fenced(ctx context.Context, db *DB) (fenced bool, err error) {
	return fenced, db.Read(ctx, func(b *Batch) { readFenced(b, &fenced) })
}

func readFenced(b *Batch, fenced *bool) {
	b.One([]any{fenced}, b.Dialect().Pick(
		`SELECT count(*) > 0 FROM sqlite_schema WHERE type = 'trigger' AND substr(name, 1, length(?1)) = ?1`,
		`SELECT count(*) > 0 FROM pg_trigger g JOIN pg_class t ON t.oid = g.tgrelid
		JOIN pg_namespace s ON s.oid = t.relnamespace AND s.nspname = current_schema()
		WHERE g.tgname = ? AND g.tgenabled <> 'D'`), b.Dialect().Pick(fenceName+"_", fenceName))
}
