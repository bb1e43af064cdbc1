package sqlstore

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
)

// captureName is the trigger that notes changes, and the beginning of the names of its functions.
const captureName = "memoryd_capture"

// Captured says that a row was inserted, updated or deleted; its state now is to be looked up with [Snapshot.Get]. N
// rises from change to change in the order of commits.
type Captured struct {
	N     int64
	Table string
	Key   []any
}

// StartCapture lets a database note in a table of its own (captured_changes) the key of every row that is changed from
// now on by anybody: also by cascades, and both keys where a key changes. It waits, until ctx is over, for writers in
// flight: what they wrote is visible to a snapshot taken after it returned. One that is capturing already goes on. A
// fenced database is refused (code "tenant_moved"). Nothing is added outside the database's own schema. The schema must
// not be migrated, nor a table truncated, while changes are captured.
//
// On PostgreSQL the changes of a transaction are noted when it commits, by triggers that are deferred, under a lock
// that is the last one it takes and is held until it has committed. So numbers become visible in their order, and
// nobody who holds the lock waits for anybody (decision 0017).
func StartCapture(ctx context.Context, db *DB) error {
	return alter(ctx, db, "sqlstore.StartCapture", func(tx *Tx, wait int) error {
		names, schema, err := ours(tx, wait)
		if err != nil {
			return err
		}
		if err := tx.lockAgainstWriters(names); err != nil {
			return err
		}
		var fenced bool
		var there []string
		if err := tx.Run(func(b *Batch) {
			readFenced(b, &fenced)
			if b.Dialect() == Postgres {
				readTriggers(b, captureName, &there)
			}
		}); err != nil {
			return err
		}
		if fenced {
			return moved("sqlstore.StartCapture", nil)
		}
		tables, err := listTables(tx.Run)
		if err != nil {
			return err
		}
		if tx.Dialect() != Postgres {
			return tx.script(captureLite(tables))
		}
		return tx.script(capturePost(tables, quoted(schema), there))
	})
}

// captureLite is what captures on SQLite.
func captureLite(tables []Table) string {
	var ddl strings.Builder
	ddl.WriteString(`CREATE TABLE IF NOT EXISTS captured_changes (
		n INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, key TEXT NOT NULL);`)
	for _, t := range tables {
		note := `INSERT INTO captured_changes (name, key) SELECT '` + t.Name + `', `
		before, after := t.capturedKey("OLD", "json_array", "hex(%)"), t.capturedKey("NEW", "json_array", "hex(%)")
		for _, e := range [...]struct{ event, notes string }{
			{"insert", note + after + `;`},
			{"delete", note + before + `;`},
			{"update", note + before + `;` + note + after + ` WHERE ` + after + ` <> ` + before + `;`},
		} {
			ddl.WriteString(`CREATE TRIGGER IF NOT EXISTS ` + quoted(captureName+"_"+t.Name+"_"+e.event) + ` AFTER ` + e.event + ` ON ` +
				quoted(t.Name) + ` BEGIN ` + e.notes + ` END;`)
		}
	}
	return ddl.String()
}

// capturePost is what captures on PostgreSQL in a schema, where some tables may have their triggers already.
func capturePost(tables []Table, schema string, there []string) string {
	var ddl strings.Builder
	// Without autovacuum, which would have to wait for the lock of writers, and they for it.
	ddl.WriteString(`CREATE TABLE IF NOT EXISTS ` + schema + `.captured_changes (
		n BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name TEXT COLLATE "C" NOT NULL, key TEXT COLLATE "C" NOT NULL)
		WITH (autovacuum_enabled = false);`)
	for _, t := range tables {
		note := `INSERT INTO ` + schema + `.captured_changes (name, key) SELECT TG_TABLE_NAME, `
		const hexed = "encode(%, 'hex')"
		before, after := t.capturedKey("OLD", "json_build_array", hexed)+`::text`, t.capturedKey("NEW", "json_build_array", hexed)+`::text`
		function := schema + `.` + quoted(captureName+"_"+t.Name)
		ddl.WriteString(`CREATE OR REPLACE FUNCTION ` + function + `() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			LOCK TABLE ` + schema + `.captured_changes IN EXCLUSIVE MODE;
			IF TG_OP = 'INSERT' THEN ` + note + after + `;
			ELSIF TG_OP = 'DELETE' THEN ` + note + before + `;
			ELSE ` + note + before + `; ` + note + after + ` WHERE ` + after + ` <> ` + before + `;
			END IF;
			RETURN NULL;
		END $$;`)
		if !slices.Contains(there, t.Name) {
			ddl.WriteString(`CREATE CONSTRAINT TRIGGER ` + quoted(captureName) + ` AFTER INSERT OR UPDATE OR DELETE ON ` + quoted(t.Name) +
				` DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ` + function + `();`)
		}
		ddl.WriteString(`ALTER TABLE ` + quoted(t.Name) + ` ENABLE TRIGGER ` + quoted(captureName) + `;`)
	}
	return ddl.String()
}

// capturedKey is the key of a trigger's row as an expression that makes a JSON array.
func (t Table) capturedKey(row, array, hexed string) string {
	list := make([]string, len(t.Key))
	for i, k := range t.Key {
		list[i] = row + `.` + quoted(k)
		if t.Columns[t.at(k)].Type == Bytes {
			list[i] = strings.ReplaceAll(hexed, "%", list[i])
		}
	}
	return array + `(` + strings.Join(list, ", ") + `)`
}

// parseKey reads what capturedKey made.
func (t Table) parseKey(text string) ([]any, error) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var raw []any
	if err := d.Decode(&raw); err != nil || len(raw) != len(t.Key) {
		return nil, damaged("a captured change cannot be read")
	}
	for i, v := range raw {
		var err error
		switch t.Columns[t.at(t.Key[i])].Type {
		case Integer:
			n, _ := v.(json.Number)
			raw[i], err = n.Int64()
		case Bytes:
			s, _ := v.(string)
			raw[i], err = hex.DecodeString(s)
		}
		if err != nil {
			return nil, damaged("a captured change cannot be read")
		}
	}
	return raw, t.checkKeys([][]any{raw})
}

// StopCapture removes everything that StartCapture added. It works on a fenced database, and on one that does not
// capture. On PostgreSQL it stops at once, and then waits, until ctx is over, for everybody who reads in a long
// transaction; what is left by then is removed by the next call.
func StopCapture(ctx context.Context, db *DB) error {
	const op = "sqlstore.StopCapture"
	if err := remove(ctx, db, op, captureName); err != nil {
		return err
	}
	return alter(ctx, db, op, func(tx *Tx, wait int) error {
		return tx.Commit(func(b *Batch) {
			if hurry(b, wait); b.Dialect() == Postgres {
				for _, name := range slices.Concat(masterTables[:], tenantTables[:]) {
					b.Exec(`DROP FUNCTION IF EXISTS ` + quoted(captureName+"_"+name) + `()`)
				}
			}
			b.Exec(`DROP TABLE IF EXISTS captured_changes`)
		})
	})
}

// Captured lists up to limit changes behind the position after, oldest first. Whoever goes on behind the last N misses
// nothing: a change with a smaller number never appears later. The rows that changes speak of must be put in the order
// of [Snapshot.Tables] after all deletions, with the changes up to the end of the snapshot taken together: only then
// do references hold. [Follow] does that.
func (s *Snapshot) Captured(ctx context.Context, after int64, limit int) ([]Captured, error) {
	tables, err := s.Tables(ctx)
	if err != nil {
		return nil, err
	}
	var list []Captured
	err = s.Read(ctx, func(b *Batch) {
		b.Query(func(sc Scanner) error {
			var c Captured
			var key string
			if err := sc.Scan(&c.N, &c.Table, &key); err != nil {
				return err
			}
			i := slices.IndexFunc(tables, func(t Table) bool { return t.Name == c.Table })
			if i < 0 {
				return damaged("a captured change is of no table of ours")
			}
			var err error
			c.Key, err = tables[i].parseKey(key)
			list = append(list, c)
			return err
		}, `SELECT n, name, key FROM captured_changes WHERE n > ? ORDER BY n LIMIT ?`, after, limit)
	})
	return list, err
}

// How much Follow reads and writes at a time.
const (
	followChanges = 5_000
	followKeys    = 512
	followBytes   = 1 << 20
)

// Follow brings another database up to the snapshot: it reads the changes captured behind the position after, deletes
// there the rows that are gone and puts those that are there. It returns the position reached, and how many rows it
// deleted and put. The other database must hold a copy of a snapshot that was taken after StartCapture, followed up to
// the position. What it does may be done again.
func Follow(ctx context.Context, s *Snapshot, to *DB, after int64) (next int64, rows int, err error) {
	tables, err := s.Tables(ctx)
	if err != nil {
		return after, 0, err
	}
	keys, next, err := s.changedKeys(ctx, tables, after)
	if err != nil {
		return after, 0, err
	}
	for i := len(tables) - 1; i >= 0; i-- {
		for part := range slices.Chunk(keys[i], followKeys) {
			gone, err := s.gone(ctx, tables[i], part)
			if err == nil {
				err = Delete(ctx, to, tables[i], gone)
			}
			if err != nil {
				return after, rows, err
			}
			rows += len(gone)
		}
	}
	for i, t := range tables {
		portion := 16
		for list := keys[i]; len(list) > 0; {
			n := min(portion, len(list))
			now, err := s.Get(ctx, t, list[:n])
			if err == nil {
				err = Put(ctx, to, t, now)
			}
			if err != nil {
				return after, rows, err
			}
			rows, list = rows+len(now), list[n:]
			size := 1
			for _, r := range now {
				size += r.weight()
			}
			portion = max(1, min(followKeys, 2*portion, n*followBytes/size))
		}
	}
	return next, rows, nil
}

// changedKeys reads what changed behind a position, each key once, table by table.
func (s *Snapshot) changedKeys(ctx context.Context, tables []Table, after int64) (keys [][][]any, next int64, err error) {
	keys, next = make([][][]any, len(tables)), after
	seen := map[string]bool{}
	for {
		list, err := s.Captured(ctx, next, followChanges)
		if err != nil {
			return nil, after, err
		}
		for _, c := range list {
			name, err := json.Marshal([]any{c.Table, c.Key})
			if err != nil {
				return nil, after, err
			}
			if !seen[string(name)] {
				seen[string(name)] = true
				i := slices.IndexFunc(tables, func(t Table) bool { return t.Name == c.Table })
				keys[i] = append(keys[i], c.Key)
			}
			next = c.N
		}
		if len(list) < followChanges {
			return keys, next, nil
		}
	}
}

// gone are those of the keys that no row has.
func (s *Snapshot) gone(ctx context.Context, t Table, keys [][]any) ([][]any, error) {
	only := Table{Name: t.Name, Key: t.Key}
	for _, c := range t.Columns {
		if slices.Contains(t.Key, c.Name) {
			only.Columns = append(only.Columns, c)
		}
	}
	rows, err := s.Get(ctx, only, keys)
	if err != nil {
		return nil, err
	}
	var gone [][]any
	for _, k := range keys {
		if !slices.ContainsFunc(rows, func(r Row) bool { return slices.EqualFunc(only.KeyOf(r), k, equalValues) }) {
			gone = append(gone, k)
		}
	}
	return gone, nil
}

func equalValues(a, b any) bool {
	if x, ok := a.([]byte); ok {
		y, ok := b.([]byte)
		return ok && bytes.Equal(x, y)
	}
	return a == b
}
