package sqlstore

import (
	"context"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"claude-memory-backend/internal/fault"
)

// What is added to a schema while a database is moved, and taken away again: triggers, their functions, a table.

// alter runs fn in a write transaction, again and again while other transactions are in its way, until ctx is over.
// How long fn may wait for a lock is given to fn, which begins with [hurry]: on PostgreSQL everybody queues up behind
// whoever waits for a lock on a table, so it is short at first, and grows since those who are in the way may be many. It
// is no matter of SetReadOnly.
func alter(ctx context.Context, db *DB, op string, fn func(tx *Tx, wait int) error) error {
	for attempt := 0; ; attempt++ {
		wait := min(250<<min(attempt, 10), 8_000)
		err := db.write(Patient(ctx), func(tx *Tx) error { return fn(tx, wait) })
		if fault.CodeOf(err) != "busy" {
			return fault.Wrap(op, err)
		}
		pause := time.NewTimer(time.Duration(50+rand.IntN(200)) * time.Millisecond) //nolint:gosec // spreads retries; nobody gains by guessing it
		select {
		case <-ctx.Done():
			pause.Stop()
			return fault.Wrap(op, err)
		case <-pause.C:
		}
	}
}

// hurry bounds, in milliseconds, how long the transaction waits for each lock.
func hurry(b *Batch, wait int) {
	if b.Dialect() == Postgres {
		b.Exec(`SET LOCAL lock_timeout = ` + strconv.Itoa(wait))
	}
}

// lockAgainstWriters waits for the writers in flight and keeps others out until the end of the transaction; readers
// pass. On SQLite the transaction does that already.
//
// The order is one in which no writer of ours can wait for us while we wait for it: who works on a conversation locks
// a row of conversations before anything else, and EXCLUSIVE waits for that too; projects may be locked by somebody
// who wants conversations next, and SHARE ROW EXCLUSIVE does not wait for row locks; who adds to an answer locks a row
// of turns first. Behind these three nobody holds two of the other tables, but for the one that is locked last by all.
func (t *Tx) lockAgainstWriters(tables []string) error {
	if t.Dialect() != Postgres {
		return nil
	}
	const share, exclusive = ` IN SHARE ROW EXCLUSIVE MODE`, ` IN EXCLUSIVE MODE`
	type lock struct{ table, mode string }
	first := []lock{{"conversations", exclusive}, {"projects", share}, {"turns", exclusive}}
	last := lock{"captured_changes", share}
	list := first
	for _, name := range tables {
		if name != last.table && !slices.ContainsFunc(first, func(l lock) bool { return l.table == name }) {
			list = append(list, lock{name, share})
		}
	}
	return t.Run(func(b *Batch) {
		for _, l := range append(list, last) {
			if slices.Contains(tables, l.table) {
				b.Exec(`LOCK TABLE ` + quoted(l.table) + l.mode)
			}
		}
	})
}

// ours are the tables of ours that the database has, those of the index and of the history included, and where they
// are. On SQLite without the index, whose tables can have no triggers.
func ours(tx *Tx, wait int) (names []string, schema string, err error) {
	err = tx.Run(func(b *Batch) {
		hurry(b, wait)
		names = nil
		if b.Dialect() == Postgres {
			b.One([]any{&schema}, `SELECT current_schema()`)
		}
		b.Query(func(s Scanner) error {
			var name string
			err := s.Scan(&name)
			if slices.Contains(masterTables[:], name) || slices.Contains(tenantTables[:], name) || slices.Contains(unlisted[:], name) {
				names = append(names, name)
			}
			return err
		}, b.Dialect().Pick(
			`SELECT name FROM sqlite_schema WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name`,
			`SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY tablename`))
	})
	return names, schema, err
}

// readTriggers queues the reading of the names of the tables that have the named trigger of ours on PostgreSQL.
func readTriggers(b *Batch, name string, tables *[]string) {
	*tables = nil
	b.Query(func(s Scanner) error {
		var table string
		err := s.Scan(&table)
		*tables = append(*tables, table)
		return err
	}, `SELECT t.relname FROM pg_trigger g JOIN pg_class t ON t.oid = g.tgrelid
		JOIN pg_namespace s ON s.oid = t.relnamespace AND s.nspname = current_schema()
		WHERE g.tgname = ? AND NOT g.tgisinternal ORDER BY t.relname`, name)
}

// remove takes the named triggers away from all tables. On PostgreSQL it stops all of them at once, for which it waits
// for writers only; then it removes them, for which it must be alone at each table, and so goes from one to the next:
// who holds one and waits for another would wait for readers who wait for it. On SQLite the tables' triggers have names
// that begin with this one.
func remove(ctx context.Context, db *DB, op, name string) error {
	var tables []string
	err := alter(ctx, db, op, func(tx *Tx, wait int) error {
		if tx.Dialect() != Postgres {
			return removeLite(tx, name)
		}
		if err := tx.Run(func(b *Batch) {
			hurry(b, wait)
			readTriggers(b, name, &tables)
		}); err != nil || len(tables) == 0 {
			return err
		}
		if err := tx.lockAgainstWriters(tables); err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) {
			for _, table := range tables {
				b.Exec(`ALTER TABLE ` + quoted(table) + ` DISABLE TRIGGER ` + quoted(name))
			}
		})
	})
	for _, table := range tables {
		if err != nil {
			break
		}
		err = alter(ctx, db, op, func(tx *Tx, wait int) error {
			return tx.Commit(func(b *Batch) {
				hurry(b, wait)
				b.Exec(`DROP TRIGGER IF EXISTS ` + quoted(name) + ` ON ` + quoted(table))
			})
		})
	}
	return err
}

func removeLite(tx *Tx, name string) error {
	var names []string
	if err := tx.Run(func(b *Batch) {
		names = nil
		b.Query(func(s Scanner) error {
			var name string
			err := s.Scan(&name)
			names = append(names, name)
			return err
		}, `SELECT name FROM sqlite_schema WHERE type = 'trigger' AND substr(name, 1, length(?1)) = ?1`, name+"_")
	}); err != nil {
		return err
	}
	return tx.Run(func(b *Batch) {
		for _, name := range names {
			b.Exec(`DROP TRIGGER ` + quoted(name))
		}
	})
}
