package sqlstore

import (
	"context"
	"math"
	"slices"
	"strings"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// What whole databases are moved, backed up and verified by: tables as they are found in a database, and rows as plain
// values, the same on both engines. Nothing here is a change: nothing is appended to log or trail.

// ColumnType is what a column holds on either engine.
type ColumnType string

// The types of columns.
const (
	Integer ColumnType = "integer" // int64
	Float   ColumnType = "float"   // float64
	Text    ColumnType = "text"    // string
	Bytes   ColumnType = "bytes"   // []byte
)

// Column is a column of a table.
type Column struct {
	Name string     `json:"name"`
	Type ColumnType `json:"type"`
}

// Table is one table of ours as a database has it, which may be at an older version of the schema. Columns are sorted
// by name, so they come in one order on both engines and after every history of migrations. Key is the primary key in
// its own order.
type Table struct {
	Name    string   `json:"name"`
	Columns []Column `json:"columns"`
	Key     []string `json:"key"`
}

// Row is one row in the order of Table.Columns. Values are nil, int64, float64, string or []byte.
type Row []any

// The tables of each line that hold what must not be lost. What a table refers to comes before it.
var (
	masterTables = [...]string{"accounts", "tenants", "databases", "sessions", "spent_tokens", "sign_in_failures", "hints", "facts",
		"log_head", "events", "audit", "idempotency", "jobs", "erasures", "news", "grants", "invitations", "routes", "shortcuts_due"}
	tenantTables = [...]string{"projects", "conversations", "branches", "messages", "turns", "systems", "log_head", "events",
		"audit", "idempotency", "usage", "shortcuts", "webhooks", "deliveries", "attempts"}
)

// unlisted are the tables of ours that are in no list: what is derived, what belongs to the place and not to the
// data, and what must not be done twice: a mail that is restored was sent long ago.
var unlisted = [...]string{"message_words", "title_words", "schema_migrations", "captured_changes", "mails"}

// numbered reports whether the engine numbers the rows: of all our tables those whose primary key is n alone.
func (t Table) numbered() bool { return len(t.Key) == 1 && t.Key[0] == "n" }

// at is the position of a column, -1 when there is none.
func (t Table) at(column string) int {
	i, found := slices.BinarySearchFunc(t.Columns, column, func(c Column, name string) int { return strings.Compare(c.Name, name) })
	if !found {
		return -1
	}
	return i
}

// KeyOf returns the primary key of a row.
func (t Table) KeyOf(r Row) []any {
	key := make([]any, len(t.Key))
	for i, name := range t.Key {
		key[i] = r[t.at(name)]
	}
	return key
}

// check refuses a table that no database of ours can have. It may come out of a stored description, or from a server
// that is not ours.
func (t Table) check() error {
	const op = "sqlstore.Table"
	wrong := func(what string) error {
		return fault.New(fault.Invalid, op, "table_damaged", "the description of a table is damaged: "+what)
	}
	if !identifier.MatchString(t.Name) {
		return wrong("its name")
	}
	for i, c := range t.Columns {
		switch {
		case !identifier.MatchString(c.Name):
			return wrong("the name of a column")
		case !slices.Contains([]ColumnType{Integer, Float, Text, Bytes}, c.Type):
			return wrong("the type of a column")
		case i > 0 && t.Columns[i-1].Name >= c.Name:
			return wrong("the order of its columns")
		}
	}
	if len(t.Key) == 0 {
		return wrong("it has no key")
	}
	for _, k := range t.Key {
		if t.at(k) < 0 {
			return wrong("its key is not among its columns")
		}
	}
	return nil
}

// checkRow refuses what is no row of the table.
func (t Table) checkRow(r Row) error {
	if len(r) != len(t.Columns) {
		return rowDamaged("it has another number of columns than its table")
	}
	for i, v := range r {
		if !t.Columns[i].holds(v) {
			return rowDamaged("a value has another type than its column")
		}
	}
	for _, k := range t.Key {
		if r[t.at(k)] == nil {
			return rowDamaged("its key is not complete")
		}
	}
	return nil
}

func rowDamaged(why string) error {
	return fault.New(fault.Invalid, "sqlstore.Row", "row_damaged", "a row is damaged: "+why)
}

func (c Column) holds(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case int64:
		return c.Type == Integer
	case float64:
		return c.Type == Float && !math.IsNaN(v)
	case string:
		return c.Type == Text && ValidText(v)
	case []byte:
		return c.Type == Bytes && v != nil
	}
	return false
}

// column quotes the name of a column that was checked. In PostgreSQL text is compared by its bytes, whatever order
// somebody gave the column.
func (t Table) column(d Dialect, name string) string {
	if d == Postgres && t.Columns[t.at(name)].Type == Text {
		return quoted(name) + ` COLLATE "C"`
	}
	return quoted(name)
}

// names lists columns for a statement.
func (t Table) names() string {
	list := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		list[i] = quoted(c.Name)
	}
	return strings.Join(list, ", ")
}

// keyNames lists the key for a statement.
func (t Table) keyNames(d Dialect) string {
	list := make([]string, len(t.Key))
	for i, k := range t.Key {
		list[i] = t.column(d, k)
	}
	return strings.Join(list, ", ")
}

// places are n placeholders.
func places(n int) string { return strings.Repeat("?, ", n-1) + "?" }

// tuples are n tuples of placeholders.
func tuples(n, width int) string {
	tuple := "(" + places(width) + ")"
	return strings.Repeat(tuple+", ", n-1) + tuple
}

// Tables lists the tables of a master's or tenant's database that hold what must not be lost, in an order in which
// references come after what they refer to. Not among them are the index of words, which is derived from messages and
// titles; the history of migrations; what [StartCapture] adds; and tables that others have put beside ours.
func (s *Snapshot) Tables(ctx context.Context) ([]Table, error) {
	s.mu.Lock()
	list := s.tables
	s.mu.Unlock()
	if list != nil {
		return list, nil
	}
	list, err := listTables(func(fill func(*Batch)) error { return s.Read(ctx, fill) })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tables = list
	return list, err
}

// listTables reads which tables there are.
func listTables(read func(fill func(*Batch)) error) ([]Table, error) {
	columns, keys := map[string][]Column{}, map[string]map[int64]string{}
	err := read(func(b *Batch) {
		b.Query(func(s Scanner) error {
			var table, column, kind string
			var place int64
			if err := s.Scan(&table, &column, &kind, &place); err != nil {
				return err
			}
			columns[table] = append(columns[table], Column{Name: column, Type: columnType(kind)})
			if keys[table] == nil {
				keys[table] = map[int64]string{}
			}
			keys[table][place] = column
			return nil
		}, b.Dialect().Pick(`SELECT t.name, c.name, c.type, c.pk FROM sqlite_schema t JOIN pragma_table_info(t.name) c
			WHERE t.type = 'table'`,
			`SELECT t.relname, a.attname, format_type(a.atttypid, NULL), coalesce(k.place, 0)
			FROM pg_class t JOIN pg_namespace s ON s.oid = t.relnamespace AND s.nspname = current_schema()
			JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
			LEFT JOIN pg_index i ON i.indrelid = t.oid AND i.indisprimary
			LEFT JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k (number, place) ON k.number = a.attnum
			WHERE t.relkind = 'r'`))
	})
	if err != nil {
		return nil, err
	}
	names := masterTables[:]
	if columns["conversations"] != nil {
		names = tenantTables[:]
	}
	var list []Table
	for _, name := range names {
		if columns[name] == nil {
			continue // of a later version
		}
		t := Table{Name: name, Columns: columns[name]}
		slices.SortFunc(t.Columns, func(a, b Column) int { return strings.Compare(a.Name, b.Name) })
		for i := int64(1); keys[name][i] != ""; i++ {
			t.Key = append(t.Key, keys[name][i])
		}
		if err := t.check(); err != nil {
			return nil, damaged("table " + name + " is not ours")
		}
		list = append(list, t)
	}
	return list, nil
}

// columnType is the type behind a declaration, or empty when none of ours.
func columnType(declared string) ColumnType {
	switch strings.ToLower(declared) {
	case "integer", "bigint":
		return Integer
	case "double precision":
		return Float
	case "text":
		return Text
	case "blob", "bytea":
		return Bytes
	}
	return ""
}

// Page reads rows of a table behind the key after (nil: from the beginning), in the order of the key, text by its
// bytes. It ends after maxRows rows, or with the row whose text and bytes reach maxBytes. next is the key to go on
// behind; nil means that there is nothing more. One round trip.
func (s *Snapshot) Page(ctx context.Context, t Table, after []any, maxRows, maxBytes int) (rows []Row, next []any, err error) {
	if err := t.check(); err != nil {
		return nil, nil, err
	}
	size := 0
	err = s.Read(ctx, func(b *Batch) {
		key, where := t.keyNames(b.Dialect()), ""
		args := slices.Clone(after)
		if after != nil {
			where = ` WHERE (` + key + `) > (` + places(len(t.Key)) + `)`
		}
		sql := `SELECT ` + t.names() + ` FROM ` + quoted(t.Name) + where + ` ORDER BY ` + key + ` LIMIT ?`
		args = append(args, maxRows)
		if b.Dialect() == Postgres {
			// How much text there is, PostgreSQL adds up before it reads the text.
			sql = `SELECT ` + t.names() + ` FROM (SELECT ` + t.names() + `, sum(` + t.weight() + `) OVER (ORDER BY ` + key +
				` ROWS UNBOUNDED PRECEDING) - (` + t.weight() + `) AS "ABOVE" FROM ` + quoted(t.Name) + where + ` ORDER BY ` + key +
				` LIMIT ?) AS page WHERE "ABOVE" < ? ORDER BY ` + key
			args = append(args, maxBytes)
		}
		b.Query(func(sc Scanner) error {
			if len(rows) >= maxRows || len(rows) > 0 && size >= maxBytes {
				return nil
			}
			r, err := t.scan(sc)
			rows = append(rows, r)
			size += r.weight()
			return err
		}, sql, args...)
	})
	if err != nil {
		return nil, nil, err
	}
	if len(rows) > 0 && (len(rows) >= maxRows || size >= maxBytes) {
		next = t.KeyOf(rows[len(rows)-1])
	}
	return rows, next, nil
}

// weight is the number of bytes of text and bytes in a row, as an expression for PostgreSQL.
func (t Table) weight() string {
	list := []string{"0"}
	for _, c := range t.Columns {
		if c.Type == Text || c.Type == Bytes {
			list = append(list, "coalesce(octet_length("+quoted(c.Name)+"), 0)")
		}
	}
	return strings.Join(list, " + ")
}

func (r Row) weight() (n int) {
	for _, v := range r {
		switch v := v.(type) {
		case string:
			n += len(v)
		case []byte:
			n += len(v)
		}
	}
	return n
}

// scan reads the current row.
func (t Table) scan(s Scanner) (Row, error) {
	r := make(Row, len(t.Columns))
	dest := make([]any, len(r))
	for i := range r {
		dest[i] = &r[i]
	}
	if err := s.Scan(dest...); err != nil {
		return nil, err
	}
	for i, v := range r {
		if f, ok := v.(float64); ok && f == 0 {
			r[i] = 0.0 // SQLite does not keep the sign of zero
		}
	}
	return r, t.checkRow(r)
}

// Get reads the rows with these keys, in no order; a key without a row is left out. One round trip. All rows are in
// memory at once: the caller bounds the number of keys.
func (s *Snapshot) Get(ctx context.Context, t Table, keys [][]any) (rows []Row, err error) {
	if err := t.checkKeys(keys); err != nil {
		return nil, err
	}
	err = s.Read(ctx, func(b *Batch) {
		portions(keys, func(part [][]any) {
			b.Query(func(sc Scanner) error {
				r, err := t.scan(sc)
				rows = append(rows, r)
				return err
			}, `SELECT `+t.names()+` FROM `+quoted(t.Name)+t.where(len(part)), slices.Concat(part...)...)
		})
	})
	if err != nil {
		return nil, err
	}
	return rows, nil
}

// where is the condition that the key is one of n.
func (t Table) where(n int) string {
	list := make([]string, len(t.Key))
	for i, k := range t.Key {
		list[i] = quoted(k)
	}
	if len(list) == 1 {
		return ` WHERE ` + list[0] + ` IN (` + places(n) + `)`
	}
	return ` WHERE (` + strings.Join(list, ", ") + `) IN (VALUES ` + tuples(n, len(list)) + `)`
}

func (t Table) checkKeys(keys [][]any) error {
	if err := t.check(); err != nil {
		return err
	}
	for _, key := range keys {
		if len(key) != len(t.Key) {
			return rowDamaged("its key is not complete")
		}
		for i, v := range key {
			if v == nil || !t.Columns[t.at(t.Key[i])].holds(v) {
				return rowDamaged("its key has another type than the table's")
			}
		}
	}
	return nil
}

// portions hands a list on in parts whose lengths are powers of two, so that few texts of statements are made.
func portions[T any](list []T, do func(part []T)) {
	for size := 64; size > 0; size /= 2 {
		for len(list) >= size {
			do(list[:size])
			list = list[size:]
		}
	}
}

// Put writes rows into a table, over those with the same primary key, in one transaction and one round trip. It
// indexes the words of messages and titles, and lets numbers given out later begin behind those of the rows. A row
// whose other unique keys belong to another row is code "duplicate" (delete first, then put), one that refers to a
// missing row is fault.NotFound, one that does not fit into the table is code "row_damaged". It is no change: nothing
// is appended to log or trail.
func Put(ctx context.Context, db *DB, t Table, rows []Row) error {
	if err := checkRows(t, rows); err != nil || len(rows) == 0 {
		return err
	}
	return fault.Wrap("sqlstore.Put", db.Write(Patient(ctx), func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { t.put(b, rows) })
	}))
}

// put queues rows that were checked.
func (t Table) put(b *Batch, rows []Row) {
	head, tail := `INSERT INTO `+quoted(t.Name)+` (`+t.names()+`) VALUES `, t.onConflict()
	portions(rows, func(part []Row) {
		b.Exec(head+tuples(len(part), len(t.Columns))+tail, flat(part)...)
	})
	t.advance(b, rows)
	t.index(b, rows)
}

func flat(rows []Row) []any {
	var list []any
	for _, r := range rows {
		list = append(list, r...)
	}
	return list
}

// onConflict overwrites what has the same primary key.
func (t Table) onConflict() string {
	var set, key []string
	for _, k := range t.Key {
		key = append(key, quoted(k))
	}
	for _, c := range t.Columns {
		if !slices.Contains(t.Key, c.Name) {
			set = append(set, quoted(c.Name)+` = excluded.`+quoted(c.Name))
		}
	}
	out := ` ON CONFLICT (` + strings.Join(key, ", ") + `) DO `
	if len(set) == 0 {
		return out + `NOTHING`
	}
	return out + `UPDATE SET ` + strings.Join(set, ", ")
}

// advance moves the source of numbers behind those of the rows. SQLite does so by itself.
func (t Table) advance(b *Batch, rows []Row) {
	if b.Dialect() != Postgres || !t.numbered() {
		return
	}
	last, n := int64(0), t.at("n")
	for _, r := range rows {
		last = max(last, r[n].(int64))
	}
	b.Query(func(Scanner) error { return nil }, setSequence, t.Name, max(1, last))
}

// setSequence never sets back.
const setSequence = `SELECT setval(s, greatest(?2, coalesce(pg_sequence_last_value(s), 0)))
	FROM (SELECT CAST(pg_get_serial_sequence(?1, 'n') AS regclass) AS s) AS of_table WHERE s IS NOT NULL`

// index writes the words of the rows.
func (t Table) index(b *Batch, rows []Row) {
	text := func(r Row, column string) string {
		if i := t.at(column); i >= 0 {
			s, _ := r[i].(string)
			return s
		}
		return ""
	}
	switch t.Name {
	case "messages":
		for _, r := range rows {
			if conversation.State(text(r, "state")).Final() {
				indexMessage(b, b.Dialect(), ident.MessageID(text(r, "id")), text(r, "content"))
			} else { // it gets its words when it is complete
				b.Exec(b.Dialect().Pick(`DELETE FROM message_words WHERE rowid = ?`, `DELETE FROM message_words WHERE n = ?`),
					r[t.at("n")])
			}
		}
	case "conversations":
		for _, r := range rows {
			indexTitle(b, b.Dialect(), ident.ConversationID(text(r, "id")), text(r, "title"))
		}
	}
}

// unindex removes the words of what goes with the rows, before they go. On PostgreSQL the words go with the rows.
func (t Table) unindex(b *Batch, keys [][]any) {
	if b.Dialect() != SQLite || !t.numbered() {
		return
	}
	list, args := places(len(keys)), slices.Concat(keys...)
	switch t.Name {
	case "messages":
		b.Exec(`DELETE FROM message_words WHERE rowid IN (`+list+`)`, args...)
	case "conversations":
		b.Exec(`DELETE FROM message_words WHERE rowid IN (SELECT n FROM messages WHERE conversation_id IN
			(SELECT id FROM conversations WHERE n IN (`+list+`)))`, args...)
		b.Exec(`DELETE FROM title_words WHERE rowid IN (`+list+`)`, args...)
	}
}

// Delete removes the rows with these keys, with what refers to them and with their words, in one transaction and one
// round trip. Keys without a row are skipped.
func Delete(ctx context.Context, db *DB, t Table, keys [][]any) error {
	if err := t.checkKeys(keys); err != nil || len(keys) == 0 {
		return err
	}
	return fault.Wrap("sqlstore.Delete", db.Write(Patient(ctx), func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			portions(keys, func(part [][]any) {
				t.unindex(b, part)
				b.Exec(`DELETE FROM `+quoted(t.Name)+t.where(len(part)), slices.Concat(part...)...)
			})
		})
	}))
}

// Sequence is the last number that a table gave to a row, which may be gone.
type Sequence struct {
	Table string `json:"table"`
	Last  int64  `json:"last"`
}

// Sequences reads where the numbers of all tables stand, which is never before what the snapshot sees.
func (s *Snapshot) Sequences(ctx context.Context) ([]Sequence, error) {
	tables, err := s.Tables(ctx)
	if err != nil {
		return nil, err
	}
	var list []Sequence
	for _, t := range tables {
		if t.numbered() {
			list = append(list, Sequence{Table: t.Name})
		}
	}
	err = s.Read(ctx, func(b *Batch) {
		for i := range list {
			b.One([]any{&list[i].Last}, b.Dialect().Pick(`SELECT seq FROM sqlite_sequence WHERE name = ?`,
				`SELECT coalesce(pg_sequence_last_value(CAST(pg_get_serial_sequence(?, 'n') AS regclass)), 0)`), list[i].Table)
		}
	})
	return list, err
}

// Advance lets numbers begin behind the given ones. [Put] alone would give the number of a deleted row out again,
// which a cursor may still name.
func Advance(ctx context.Context, db *DB, list []Sequence) error {
	return fault.Wrap("sqlstore.Advance", db.Write(Patient(ctx), func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { putSequences(b, list) })
	}))
}

func putSequences(b *Batch, list []Sequence) {
	for _, q := range list {
		if q.Last <= 0 {
			continue
		}
		if b.Dialect() == Postgres {
			b.Query(func(Scanner) error { return nil }, setSequence, q.Table, q.Last)
			continue
		}
		b.Exec(`UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?`, q.Last, q.Table)
		b.Exec(`INSERT INTO sqlite_sequence (name, seq) SELECT ?1, ?2
			WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = ?1)`, q.Table, q.Last)
	}
}
