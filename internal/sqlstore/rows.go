package sqlstore

import "context"

// What whole databases are moved, backed up and verified by: tables as they are found in a database, and rows as plain
// values, the same on both engines.

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

// KeyOf returns the primary key of a row.
func (t Table) KeyOf(r Row) []any { return nil }

// Tables lists the tables of a master's or tenant's database that hold what must not be lost, in an order in which
// references come after what they refer to. Not among them are the index of words, which is derived from messages and
// titles; the history of migrations; what [StartCapture] adds; and tables that others have put beside ours.
func (s *Snapshot) Tables(ctx context.Context) ([]Table, error) { return nil, unbuilt() }

// Page reads rows of a table behind the key after (nil: from the beginning), in the order of the key, text by its
// bytes. It ends after maxRows rows, or with the row that reaches maxBytes. next is the key to go on behind; nil means
// that there is nothing more. One round trip.
func (s *Snapshot) Page(ctx context.Context, t Table, after []any, maxRows, maxBytes int) (rows []Row, next []any, err error) {
	return nil, nil, unbuilt()
}

// Get reads the rows with these keys, in no order; a key without a row is left out. One round trip. All rows are in
// memory at once: the caller bounds the number of keys.
func (s *Snapshot) Get(ctx context.Context, t Table, keys [][]any) ([]Row, error) {
	return nil, unbuilt()
}

// Put writes rows into a table, over those with the same primary key, in one transaction and one round trip. It
// indexes the words of messages and titles, and lets numbers given out later begin behind those of the rows. A row
// whose other unique keys belong to another row is code "duplicate" (delete first, then put), one that refers to a
// missing row is fault.NotFound. It is no change: nothing is appended to log or trail.
func Put(ctx context.Context, db *DB, t Table, rows []Row) error { return unbuilt() }

// Delete removes the rows with these keys, with what refers to them and with their words, in one transaction and one
// round trip. Keys without a row are skipped.
func Delete(ctx context.Context, db *DB, t Table, keys [][]any) error { return unbuilt() }

// Empty removes every row of every table, the index of words included, in one transaction. The log's head stays, and
// numbers are never given out again, so that positions in the log and in listings keep their meaning.
func Empty(ctx context.Context, db *DB) error { return unbuilt() }

// Sequence is the last number that a table gave to a row, which may be gone.
type Sequence struct {
	Table string `json:"table"`
	Last  int64  `json:"last"`
}

// Sequences reads where the numbers of all tables stand, which is never before what the snapshot sees.
func (s *Snapshot) Sequences(ctx context.Context) ([]Sequence, error) { return nil, unbuilt() }

// Advance lets numbers begin behind the given ones. [Put] alone would give the number of a deleted row out again,
// which a cursor may still name.
func Advance(ctx context.Context, db *DB, list []Sequence) error { return unbuilt() }
