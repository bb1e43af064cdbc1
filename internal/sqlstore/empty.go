package sqlstore

import (
	"context"
	"slices"
	"strings"
	"time"

	"claude-memory-backend/internal/fault"
)

// Emptied says what of the rows that [Empty] removed may still be read in the database's files by whoever has them. On
// SQLite nothing is said: there the file as a whole has to go.
type Emptied struct {
	// Anew says that all tables and indexes are in new files, and that the server removes the old ones.
	Anew bool
	// Forgotten says that the planner's statistics keep nothing of what was in them.
	Forgotten bool
}

// How Empty comes by its locks. First it waits for writers, and keeps them out: long enough for autovacuum to give way,
// which it does after deadlock_timeout, a second. Then it waits for readers, and each of them may wait for it: much
// shorter than a second, so that the server never has to choose one to fail.
const (
	emptyWriters  = 2 * time.Second
	emptyReaders  = 200 * time.Millisecond
	emptyPause    = 500 * time.Millisecond // between tries, for whoever was kept waiting
	emptyPatience = 30 * time.Second       // until the caller hears that the database is busy
)

// kept are the tables whose rows stay when all others go: they hold numbers, and nothing that anybody wrote.
var kept = [...]string{"log_head", "usage", "schema_migrations"}

// Empty removes every row of every table, the index of words included, in one transaction. The log's head stays, and
// numbers are never given out again, so that positions in the log and in listings keep their meaning. The row that counts
// what is kept says that it is nothing.
//
// PostgreSQL leaves deleted rows in its files. There the tables get new files, and the planner forgets what it had sampled
// (decision 0086). That wants every table for itself for a moment: while somebody reads for long it is tried again, with
// pauses, for half a minute at most (fault.Unavailable, code "busy"). Where tables of somebody else's refer to ours, or
// we may not TRUNCATE, rows are deleted, and the result says so. Changes are not captured any more afterwards: a copy
// that follows them could not tell that everything went.
func Empty(ctx context.Context, db *DB) (Emptied, error) {
	const op = "sqlstore.Empty"
	var done Emptied
	err := eager(ctx, db, func(tx *Tx, wait int) (err error) {
		if tx.Dialect() != Postgres {
			return deleteAll(tx)
		}
		done.Anew, err = emptyPostgres(tx, wait)
		return err
	})
	if fault.CodeOf(err) == codeCaptured {
		if err := StopCapture(ctx, db); err != nil {
			return done, fault.Wrap(op, err)
		}
		return Empty(ctx, db)
	}
	if err != nil || !done.Anew {
		return done, fault.Wrap(op, err)
	}
	left := 0
	err = eager(ctx, db, forgetSamples)
	if err == nil {
		err = db.Read(ctx, func(b *Batch) { b.One([]any{&left}, `SELECT count(*) FROM (`+samples+`) AS s`) })
	}
	if fault.Is(err, fault.Unavailable) || fault.Is(err, fault.Canceled) {
		return done, fault.Wrap(op, err)
	}
	done.Forgotten = err == nil && left == 0 // else it is refused, and will be again
	return done, nil
}

// codeCaptured is what emptyPostgres answers while changes are captured. No caller sees it.
const codeCaptured = "captured"

// eager is Write for what wants tables for itself: it gives up a lock soon, so that those who wait behind it go on, and
// tries again.
func eager(ctx context.Context, db *DB, fn func(tx *Tx, wait int) error) error {
	until := time.Now().Add(emptyPatience)
	for wait := 250 * time.Millisecond; ; wait = min(2*wait, emptyWriters) {
		err := db.Write(Patient(ctx), func(tx *Tx) error { return fn(tx, int(wait.Milliseconds())) })
		if db.Dialect() != Postgres || fault.CodeOf(err) != "busy" || time.Now().After(until) {
			return err
		}
		pause := time.NewTimer(emptyPause)
		select {
		case <-ctx.Done():
			pause.Stop()
			return err
		case <-pause.C:
		}
	}
}

// deleteAll deletes all rows.
func deleteAll(tx *Tx) error {
	tables, err := listTables(tx.Run)
	if err != nil {
		return err
	}
	slices.Reverse(tables)
	return tx.Commit(func(b *Batch) {
		if slices.ContainsFunc(tables, func(t Table) bool { return t.Name == "conversations" }) {
			b.Exec(`DELETE FROM message_words`)
			b.Exec(`DELETE FROM title_words`)
		}
		for _, t := range tables {
			switch t.Name {
			case "log_head":
			case "usage":
				b.Exec(`UPDATE usage SET messages = 0, bytes = 0`)
			default:
				b.Exec(`DELETE FROM ` + quoted(t.Name))
			}
		}
	})
}

// emptyPostgres gives all tables new files, or says that it had to delete rows.
func emptyPostgres(tx *Tx, wait int) (anew bool, err error) {
	names, _, err := ours(tx, wait)
	if err != nil {
		return false, err
	}
	if err := tx.lockAgainstWriters(names); err != nil {
		return false, err
	}
	args := make([]any, len(names))
	for i, name := range names {
		args[i] = name
	}
	var fenced, tied bool
	var capturing []string
	if err := tx.Run(func(b *Batch) {
		readFenced(b, &fenced)
		readTriggers(b, captureName, &capturing)
		b.One([]any{&tied}, `WITH ours AS (SELECT t.oid FROM pg_class t
				JOIN pg_namespace s ON s.oid = t.relnamespace AND s.nspname = current_schema()
				WHERE t.relkind = 'r' AND t.relname IN (`+places(len(names))+`))
			SELECT EXISTS (SELECT 1 FROM pg_constraint c WHERE c.contype = 'f' AND c.confrelid IN (SELECT oid FROM ours)
					AND c.conrelid NOT IN (SELECT oid FROM ours))
				OR EXISTS (SELECT 1 FROM ours WHERE NOT has_table_privilege(oid, 'TRUNCATE'))`, args...)
	}); err != nil {
		return false, err
	}
	switch {
	case fenced:
		return false, moved("sqlstore.Empty", nil)
	case len(capturing) > 0:
		return false, fault.New(fault.Conflict, "sqlstore.Empty", codeCaptured, "changes are captured")
	case tied:
		return false, deleteAll(tx)
	}
	var list []string
	for _, name := range names {
		if !slices.Contains(kept[:], name) {
			list = append(list, quoted(name))
		}
	}
	return true, tx.Commit(func(b *Batch) {
		hurry(b, int(emptyReaders.Milliseconds()))
		b.Exec(`TRUNCATE ` + strings.Join(list, ", ")) // one statement, since they refer to each other
		if slices.Contains(names, "usage") {
			b.Exec(`UPDATE usage SET messages = 0, bytes = 0`)
		}
	})
}

// samples are the columns of our tables of which the planner's statistics keep values that somebody may have written.
// They outlive the rows, and looking at an empty table does not renew them. Keys and what refers to them are of our making.
const samples = `SELECT t.relname, a.attname, format_type(a.atttypid, a.atttypmod) AS kind, EXISTS (SELECT 1 FROM pg_depend d
		WHERE d.classid = 'pg_rewrite'::regclass AND d.refobjid = t.oid AND d.refobjsubid = a.attnum) AS viewed
	FROM pg_stats p
	JOIN pg_namespace s ON s.nspname = p.schemaname
	JOIN pg_class t ON t.relnamespace = s.oid AND t.relname = p.tablename AND t.relkind = 'r'
	JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = p.attname
	WHERE s.nspname = current_schema() AND a.atttypid IN ('text'::regtype, 'bytea'::regtype, 'tsvector'::regtype)
		AND (p.most_common_vals IS NOT NULL OR p.histogram_bounds IS NOT NULL OR p.most_common_elems IS NOT NULL)
		AND NOT EXISTS (SELECT 1 FROM pg_constraint c WHERE c.contype IN ('p', 'u', 'f')
			AND (c.conrelid = t.oid AND a.attnum = ANY (c.conkey) OR c.confrelid = t.oid AND a.attnum = ANY (c.confkey)))`

// forgetSamples lets the planner forget them: giving a column the type that it has does that, and on tables this small
// nothing else. A column that a view of somebody else's shows cannot be given one.
func forgetSamples(tx *Tx, wait int) error {
	names, _, err := ours(tx, wait)
	if err != nil {
		return err
	}
	if err := tx.lockAgainstWriters(names); err != nil {
		return err
	}
	var ddl strings.Builder
	if err := tx.Run(func(b *Batch) {
		ddl.Reset()
		hurry(b, int(emptyReaders.Milliseconds()))
		b.Query(func(s Scanner) error {
			var table, column, kind string
			var viewed bool
			if err := s.Scan(&table, &column, &kind, &viewed); err != nil || viewed || !slices.Contains(names, table) {
				return err
			}
			same := `text COLLATE "C"`
			switch kind {
			case "bytea":
				same = `bytea`
			case "tsvector":
				same = `tsvector`
			}
			ddl.WriteString(`ALTER TABLE ` + quoted(table) + ` ALTER COLUMN ` + quoted(column) + ` TYPE ` + same + `;`)
			return nil
		}, samples+` ORDER BY t.relname, a.attname`)
	}); err != nil || ddl.Len() == 0 {
		return err
	}
	return tx.script(ddl.String())
}
