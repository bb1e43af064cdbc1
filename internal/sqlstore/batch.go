package sqlstore

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"

	"github.com/jackc/pgx/v5/pgtype"
	"github.com/ncruces/go-sqlite3"

	"claude-memory-backend/internal/fault"
)

// Batch is a queue of statements that go to the database together. Results are valid once the batch ran without an
// error. On PostgreSQL all statements are sent before the first result is read, so no statement of a batch can use
// Go values that another one of the same batch returns; and when the batch carries the COMMIT, rows are handed over
// after it: an error from a callback then does not undo anything. Decide in Run, finish in Commit.
//
// Arguments are text, integers, floats, bytes, booleans (stored as 0 and 1), json.RawMessage (stored as text), types
// derived from them, pointers to them, and nil.
type Batch struct {
	dialect Dialect
	list    []statement
	err     error     // the first thing wrong with an argument
	queued  *Affected // how many deliveries the outbox got; nil: nothing was asked
}

// Dialect is the engine that the batch goes to.
func (b *Batch) Dialect() Dialect { return b.dialect }

type statement struct {
	sql   string
	args  []any // nil, string, int64, float64 or []byte
	oids  []uint32
	each  func(s Scanner) error
	until func() bool // asked after each row; true: no more are wanted. nil: all are
	when  func() bool // asked by SQLite before it runs; false: it may be left out. nil: it may not
	count *Affected
	dest  []any
	found *Found
}

// Affected is how many rows a statement changed.
type Affected struct{ N int64 }

// Found says whether a row came.
type Found struct{ Yes bool }

// Scanner reads the current row, column by column, into pointers to text, integers, floats, booleans, bytes, types
// derived from them, *any, or pointers to pointers. NULL gives the zero value; only a pointer to a pointer can tell.
type Scanner interface{ Scan(dest ...any) error }

// Exec queues a statement that returns no rows.
func (b *Batch) Exec(sql string, args ...any) *Affected {
	s := statement{sql: sql, count: &Affected{}}
	b.add(s, args)
	return s.count
}

// Query queues a statement whose rows go to each, one by one. The scanner and what it points to are valid only
// during the call, and each must not use the database.
func (b *Batch) Query(each func(s Scanner) error, sql string, args ...any) {
	b.add(statement{sql: sql, each: each}, args)
}

// QueryUntil is Query for rows of which enough may come before the last: done is asked after each of them, and when it says
// true, SQLite does not look for another. PostgreSQL may have sent more, which are not handed over.
func (b *Batch) QueryUntil(each func(s Scanner) error, done func() bool, sql string, args ...any) {
	b.add(statement{sql: sql, each: each, until: done}, args)
}

// One queues a statement whose first row goes to dest; later rows are ignored. Without a row dest stays as it is.
func (b *Batch) One(dest []any, sql string, args ...any) *Found {
	s := statement{sql: sql, dest: dest, found: &Found{}}
	b.add(s, args)
	return s.found
}

// When makes the statement that was queued last one that may be left out. SQLite asks when it is that one's turn, when those before it
// have their results, and leaves it out where the answer is false: many take longer to prepare than to run, and to a
// tenant that was just opened nothing is prepared (decision 0088). PostgreSQL has been sent all of them by then and runs it in any case.
func (b *Batch) When(ask func() bool) { b.list[len(b.list)-1].when = ask }

func (b *Batch) add(s statement, args []any) {
	if len(args) > 0 {
		s.args, s.oids = make([]any, len(args)), make([]uint32, len(args))
	}
	for i, a := range args {
		v, oid, err := argument(a)
		if err != nil && b.err == nil {
			b.err = err
		}
		s.args[i], s.oids[i] = v, oid
	}
	b.list = append(b.list, s)
}

// row hands one row to whoever waits for it; more is false when the rest can be skipped.
func (s *statement) row(r Scanner) (more bool, err error) {
	switch {
	case s.each != nil:
		err := s.each(r)
		return err == nil && (s.until == nil || !s.until()), err
	case s.found != nil:
		s.found.Yes = true
		return false, r.Scan(s.dest...)
	}
	return true, nil
}

// argument reduces a to what both engines bind in the same way, with the PostgreSQL type of it: with a declared type
// a wrong Go type fails instead of being converted on one engine and not on the other.
func argument(a any) (any, uint32, error) {
	switch v := a.(type) {
	case nil:
		return nil, 0, nil
	case string:
		return text(v)
	case int64:
		return v, pgtype.Int8OID, nil
	case int:
		return int64(v), pgtype.Int8OID, nil
	case bool:
		if v {
			return int64(1), pgtype.Int8OID, nil
		}
		return int64(0), pgtype.Int8OID, nil
	case float64:
		return v, pgtype.Float8OID, nil
	case json.RawMessage:
		if v == nil {
			return nil, pgtype.TextOID, nil
		}
		return text(string(v))
	case []byte:
		if v == nil {
			return nil, pgtype.ByteaOID, nil
		}
		return v, pgtype.ByteaOID, nil
	}
	v := reflect.ValueOf(a)
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			_, oid, err := argument(reflect.Zero(v.Type().Elem()).Interface())
			return nil, oid, err
		}
		return argument(v.Elem().Interface())
	case reflect.String:
		return text(v.String())
	case reflect.Bool:
		return argument(v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return v.Int(), pgtype.Int8OID, nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if v.Uint() <= math.MaxInt64 {
			return int64(v.Uint()), pgtype.Int8OID, nil
		}
	case reflect.Float32, reflect.Float64:
		return v.Float(), pgtype.Float8OID, nil
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return argument(v.Bytes())
		}
	}
	return nil, 0, fault.Wrap("sqlstore.Batch", fmt.Errorf("an argument of type %T cannot be stored", a))
}

func text(s string) (any, uint32, error) {
	if !ValidText(s) {
		return nil, 0, fault.New(fault.Invalid, "sqlstore.Batch", "invalid_text",
			"text must be valid UTF-8 without NUL characters")
	}
	return s, pgtype.TextOID, nil
}

// cell is one value of a row, on either engine.
type cell struct {
	stmt *sqlite3.Stmt // nil on PostgreSQL
	col  int
	raw  []byte // PostgreSQL: the text format
	oid  uint32
}

func (c cell) null() bool {
	if c.stmt != nil {
		return c.stmt.ColumnType(c.col) == sqlite3.NULL
	}
	return c.raw == nil
}

func (c cell) text() string {
	if c.stmt != nil {
		return c.stmt.ColumnText(c.col)
	}
	if c.oid == pgtype.ByteaOID {
		b, _ := c.bytes()
		return string(b)
	}
	return string(c.raw)
}

func (c cell) bytes() ([]byte, error) {
	if c.stmt != nil {
		if c.stmt.ColumnType(c.col) != sqlite3.BLOB {
			return []byte(c.stmt.ColumnText(c.col)), nil
		}
		return c.stmt.ColumnBlob(c.col, []byte{}), nil
	}
	if c.oid != pgtype.ByteaOID {
		return append([]byte{}, c.raw...), nil
	}
	if len(c.raw) < 2 {
		return nil, fmt.Errorf("bytes are not in hexadecimal")
	}
	out := make([]byte, hex.DecodedLen(len(c.raw)-2))
	_, err := hex.Decode(out, c.raw[2:]) // behind \x
	return out, err
}

func (c cell) integer() (int64, error) {
	if c.stmt != nil {
		if c.stmt.ColumnType(c.col) == sqlite3.INTEGER {
			return c.stmt.ColumnInt64(c.col), nil
		}
		return strconv.ParseInt(c.stmt.ColumnText(c.col), 10, 64)
	}
	if c.oid == pgtype.BoolOID {
		if string(c.raw) == "t" {
			return 1, nil
		}
		return 0, nil
	}
	return strconv.ParseInt(string(c.raw), 10, 64)
}

func (c cell) float() (float64, error) {
	if c.stmt != nil {
		if t := c.stmt.ColumnType(c.col); t == sqlite3.FLOAT || t == sqlite3.INTEGER {
			return c.stmt.ColumnFloat(c.col), nil
		}
		return strconv.ParseFloat(c.stmt.ColumnText(c.col), 64)
	}
	return strconv.ParseFloat(string(c.raw), 64)
}

// value is the cell as nil, int64, float64, string or []byte.
func (c cell) value() (any, error) {
	if c.null() {
		return nil, nil
	}
	if c.stmt != nil {
		switch c.stmt.ColumnType(c.col) {
		case sqlite3.INTEGER:
			return c.stmt.ColumnInt64(c.col), nil
		case sqlite3.FLOAT:
			return c.stmt.ColumnFloat(c.col), nil
		case sqlite3.BLOB:
			return c.bytes()
		}
		return c.text(), nil
	}
	switch c.oid {
	case pgtype.Int8OID, pgtype.Int4OID, pgtype.Int2OID, pgtype.BoolOID:
		return c.integer()
	case pgtype.Float8OID, pgtype.Float4OID, pgtype.NumericOID:
		return c.float()
	case pgtype.ByteaOID:
		return c.bytes()
	}
	return c.text(), nil
}

// scan puts the cell into dest.
func (c cell) scan(dest any) (err error) {
	if p, ok := dest.(*any); ok {
		*p, err = c.value()
		return err
	}
	if c.null() {
		v := reflect.ValueOf(dest)
		if v.Kind() != reflect.Pointer || v.IsNil() {
			return fmt.Errorf("cannot scan into %T", dest)
		}
		v.Elem().SetZero()
		return nil
	}
	switch p := dest.(type) {
	case *string:
		*p = c.text()
	case *int64:
		*p, err = c.integer()
	case *int:
		var n int64
		n, err = c.integer()
		*p = int(n)
	case *bool:
		var n int64
		n, err = c.integer()
		*p = n != 0
	case *float64:
		*p, err = c.float()
	case *[]byte:
		*p, err = c.bytes()
	default:
		return c.reflect(dest)
	}
	return err
}

// reflect scans into types derived from the basic ones, and into pointers to pointers.
func (c cell) reflect(dest any) error {
	v := reflect.ValueOf(dest)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return fmt.Errorf("cannot scan into %T", dest)
	}
	v = v.Elem()
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		if err := c.scan(p.Interface()); err != nil {
			return err
		}
		v.Set(p)
		return nil
	case reflect.String:
		v.SetString(c.text())
		return nil
	case reflect.Bool:
		n, err := c.integer()
		v.SetBool(n != 0)
		return err
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, err := c.integer()
		if err == nil && v.OverflowInt(n) {
			err = fmt.Errorf("the number does not fit into %s", v.Type())
		}
		if err == nil {
			v.SetInt(n)
		}
		return err
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := c.integer()
		if err == nil && (n < 0 || v.OverflowUint(uint64(n))) {
			err = fmt.Errorf("the number does not fit into %s", v.Type())
		}
		if err == nil {
			v.SetUint(uint64(n))
		}
		return err
	case reflect.Float32, reflect.Float64:
		f, err := c.float()
		v.SetFloat(f)
		return err
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			b, err := c.bytes()
			v.SetBytes(b)
			return err
		}
	}
	return fmt.Errorf("cannot scan into %T", dest)
}
