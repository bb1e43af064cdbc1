package sqlstore

import (
	"context"
	"slices"
	"strings"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Past is a state of a database that it had at an older version of its schema.
type Past struct {
	Version int64
	// Rows puts all rows, in an order in which references come after what they refer to. It may be called again from the
	// beginning.
	Rows      func(put func(t Table, rows []Row) error) error
	Sequences []Sequence
	Mark      LogMark // the end of the log then
	// Agree, unless it is nil, is asked before anything is lost, with what would be.
	Agree func(lost Newer) error
}

// LogMark is a place in a log: the number of an event and its id, by which another log is told from this one.
type LogMark struct {
	Seq event.Seq     `json:"seq"`
	ID  ident.EventID `json:"id,omitempty"`
}

// Newer is what a tenant's log holds after a mark.
type Newer struct {
	// Apart says that the mark is not in it: it is another log, or one that was put back to before.
	Apart   bool
	Changes int64           // that were made in this database
	Told    []ident.EventID // what the master's log says of it, and can say again
}

// ask queues the question.
func (n *Newer) ask(b *Batch, after LogMark, lock string) {
	*n = Newer{}
	b.Query(func(s Scanner) error {
		var head event.Seq
		var id ident.EventID
		var newer int64
		err := s.Scan(&head, &id, &newer)
		n.Apart = head < after.Seq || id != after.ID
		n.Changes += newer
		return err
	}, `SELECT seq, coalesce((SELECT id FROM events WHERE seq = ?1), ''), (SELECT count(*) FROM events WHERE seq > ?1) FROM log_head`+lock, after.Seq)
	b.Query(func(s Scanner) error {
		var id ident.EventID
		err := s.Scan(&id)
		n.Told = append(n.Told, id)
		n.Changes--
		return err
	}, `SELECT id FROM events WHERE seq > ? AND (type LIKE 'database.%' OR type LIKE 'member.%' OR type = ?) ORDER BY seq`,
		after.Seq, event.Restored)
}

// Rebuild makes a database what it was: our tables go, with everything in them, and those of the older version come
// with the rows of the past. It is one transaction, so whatever fails leaves the database as it is. Tables that are not
// ours stay. What somebody else made that depends on ours (a view) makes it fail. Whoever has the database open must
// read only.
func (s *Steps) Rebuild(ctx context.Context, d *DB, line Line, past Past) error {
	const op = "sqlstore.Rebuild"
	steps := s.lists[line][d.Dialect()]
	if past.Version < 1 || past.Version > int64(len(steps)) {
		return fault.New(fault.Internal, op, "", "there is no such version of the schema")
	}
	return fault.Wrap(op, d.write(Patient(ctx), func(tx *Tx) error {
		if err := tx.lock(); err != nil {
			return err
		}
		var lost Newer
		var there []string
		if err := tx.Run(func(b *Batch) {
			lost.ask(b, past.Mark, b.Dialect().ForUpdate())
			b.Query(func(s Scanner) error {
				var name string
				err := s.Scan(&name)
				there = append(there, name)
				return err
			}, b.Dialect().Pick(`SELECT name FROM sqlite_schema WHERE type = 'table'`,
				`SELECT tablename FROM pg_tables WHERE schemaname = current_schema()`))
		}); err != nil {
			return err
		}
		if past.Agree != nil {
			if err := past.Agree(lost); err != nil {
				return err
			}
		}
		ddl := dropTables(tx.Dialect(), line, there)
		if err := tx.script(ddl + historyTable); err != nil {
			return err
		}
		for _, step := range steps[:past.Version] {
			if _, err := tx.apply(steps, step); err != nil {
				return err
			}
		}
		// What the steps put into their tables may have been deleted in the past.
		tables, err := listTables(tx.Run)
		if err != nil {
			return err
		}
		if err := tx.Run(func(b *Batch) {
			for _, t := range slices.Backward(tables) {
				b.Exec(`DELETE FROM ` + quoted(t.Name))
			}
		}); err != nil {
			return err
		}
		if err := past.Rows(func(t Table, rows []Row) error {
			if err := checkRows(t, rows); err != nil || len(rows) == 0 {
				return err
			}
			return tx.Run(func(b *Batch) { t.put(b, rows) })
		}); err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) { putSequences(b, past.Sequences) })
	}))
}

// dropTables drops all tables of ours that are there: what refers to others goes first.
func dropTables(d Dialect, line Line, there []string) string {
	ours := masterTables[:]
	if line == Tenant {
		ours = tenantTables[:]
	}
	list := append(slices.Clone(unlisted[:]), ours...)
	slices.Reverse(list[len(unlisted):])
	var names []string
	for _, name := range list {
		if slices.Contains(there, name) {
			names = append(names, quoted(name))
		}
	}
	if len(names) == 0 {
		return ""
	}
	if d == Postgres {
		return `DROP TABLE ` + strings.Join(names, ", ") + `;`
	}
	return `DROP TABLE ` + strings.Join(names, `; DROP TABLE `) + `;`
}

func checkRows(t Table, rows []Row) error {
	if err := t.check(); err != nil {
		return err
	}
	for _, r := range rows {
		if err := t.checkRow(r); err != nil {
			return err
		}
	}
	return nil
}

// Mark is the end of the log as the snapshot sees it.
func (s *Snapshot) Mark(ctx context.Context) (m LogMark, err error) {
	err = s.Read(ctx, func(b *Batch) {
		b.One([]any{&m.Seq, &m.ID}, `SELECT h.seq, coalesce(e.id, '') FROM log_head h LEFT JOIN events e ON e.seq = h.seq`)
	})
	return m, err
}

// Since is what the log as the snapshot sees it holds after a mark.
func (s *Snapshot) Since(ctx context.Context, after LogMark) (n Newer, err error) {
	err = s.Read(ctx, func(b *Batch) { n.ask(b, after, "") })
	return n, err
}
