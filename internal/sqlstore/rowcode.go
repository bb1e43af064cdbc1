package sqlstore

// EncodeRow appends the canonical bytes of a row to dst: the same for equal rows on every engine, and different for
// different ones. Rows delimit themselves, so they can stand one behind the other.
//
// Version 1: the byte 1; the number of columns; then each value in the order of t.Columns as one byte for its kind and
// what follows: 0 NULL; 1 an integer, 8 bytes, big-endian two's complement; 2 a float, 8 bytes, big-endian IEEE 754,
// never negative zero nor NaN; 3 text and 4 bytes, each its length and itself. Numbers of columns and lengths are
// unsigned varints (LEB128) in the shortest form.
func EncodeRow(dst []byte, t Table, r Row) ([]byte, error) { return nil, unbuilt() }

// DecodeRow reads one row from the beginning of b and returns what is behind it. Bytes that EncodeRow would not have
// made of a row of this table are fault.Invalid (code "row_damaged").
func DecodeRow(t Table, b []byte) (r Row, rest []byte, err error) { return nil, nil, unbuilt() }
