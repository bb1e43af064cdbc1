package sqlstore

import (
	"encoding/binary"
	"math"
)

// rowVersion is the first byte of an encoded row.
const rowVersion = 1

// The kinds of encoded values.
const (
	kindNull = iota
	kindInteger
	kindFloat
	kindText
	kindBytes
)

// EncodeRow appends the canonical bytes of a row to dst: the same for equal rows on every engine, and different for
// different ones. Rows delimit themselves, so they can stand one behind the other. What is no row of the table is
// fault.Invalid (code "row_damaged").
//
// Version 1: the byte 1; the number of columns; then each value in the order of t.Columns as one byte for its kind and
// what follows: 0 NULL; 1 an integer, 8 bytes, big-endian two's complement; 2 a float, 8 bytes, big-endian IEEE 754,
// never negative zero nor NaN; 3 text and 4 bytes, each its length and itself. Numbers of columns and lengths are
// unsigned varints (LEB128) in the shortest form.
func EncodeRow(dst []byte, t Table, r Row) ([]byte, error) {
	if err := t.checkRow(r); err != nil {
		return dst, err
	}
	dst = binary.AppendUvarint(append(dst, rowVersion), uint64(len(r)))
	for _, v := range r {
		switch v := v.(type) {
		case nil:
			dst = append(dst, kindNull)
		case int64:
			dst = binary.BigEndian.AppendUint64(append(dst, kindInteger), uint64(v))
		case float64:
			if v == 0 {
				v = 0 // not the negative one
			}
			dst = binary.BigEndian.AppendUint64(append(dst, kindFloat), math.Float64bits(v))
		case string:
			dst = append(binary.AppendUvarint(append(dst, kindText), uint64(len(v))), v...)
		case []byte:
			dst = append(binary.AppendUvarint(append(dst, kindBytes), uint64(len(v))), v...)
		}
	}
	return dst, nil
}

// DecodeRow reads one row from the beginning of b and returns what is behind it. The row keeps nothing of b. Bytes that
// EncodeRow would not have made of a row of this table are fault.Invalid (code "row_damaged").
func DecodeRow(t Table, b []byte) (r Row, rest []byte, err error) {
	d := decoder{b: b}
	if version := d.take(1); version == nil || version[0] != rowVersion {
		return nil, b, rowDamaged("it was written in another way")
	}
	if n := d.length(); n != uint64(len(t.Columns)) {
		return nil, b, rowDamaged("it has another number of columns than its table")
	}
	r = make(Row, len(t.Columns))
	for i := range r {
		r[i] = d.value()
	}
	if d.bad {
		return nil, b, rowDamaged("it was not written by this program")
	}
	if err := t.checkRow(r); err != nil {
		return nil, b, err
	}
	return r, d.b, nil
}

// decoder reads from the beginning of b until something is wrong.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n uint64) []byte {
	if d.bad || n > uint64(len(d.b)) {
		d.bad = true
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

// length reads a number in its shortest form.
func (d *decoder) length() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || n > 1 && d.b[n-1] == 0 {
		d.bad = true
		return 0
	}
	d.take(uint64(n))
	return v
}

func (d *decoder) value() any {
	kind := d.take(1)
	if kind == nil {
		return nil
	}
	switch kind[0] {
	case kindNull:
		return nil
	case kindInteger, kindFloat:
		raw := d.take(8)
		if raw == nil {
			return nil
		}
		n := binary.BigEndian.Uint64(raw)
		if kind[0] == kindInteger {
			return int64(n)
		}
		f := math.Float64frombits(n)
		d.bad = d.bad || f == 0 && n != 0
		return f
	case kindText:
		return string(d.take(d.length()))
	case kindBytes:
		return append([]byte{}, d.take(d.length())...)
	}
	d.bad = true
	return nil
}
