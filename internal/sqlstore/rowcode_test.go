package sqlstore

import (
	"bytes"
	"encoding/hex"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"claude-memory-backend/internal/fault"
)

// anyTable draws a table with columns of all types.
func anyTable(t *rapid.T) Table {
	names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z_][a-z0-9_]{0,8}`), 1, 12, rapid.ID).Draw(t, "columns")
	slices.Sort(names)
	tb := Table{Name: "things"}
	for _, n := range names {
		tb.Columns = append(tb.Columns, Column{Name: n, Type: rapid.SampledFrom([]ColumnType{Integer, Float, Text, Bytes}).Draw(t, "type")})
	}
	tb.Key = names[:1]
	return tb
}

func anyValue(t *rapid.T, c Column, null bool) any {
	if null && rapid.IntRange(0, 4).Draw(t, "null") == 0 {
		return nil
	}
	switch c.Type {
	case Integer:
		return rapid.Int64().Draw(t, c.Name)
	case Float:
		return rapid.Float64().Filter(func(f float64) bool { return !math.IsNaN(f) }).Draw(t, c.Name)
	case Text:
		return rapid.String().Filter(ValidText).Draw(t, c.Name)
	}
	return append([]byte{}, rapid.SliceOf(rapid.Byte()).Draw(t, c.Name)...)
}

func anyRow(t *rapid.T, tb Table) Row {
	r := Row{}
	for _, c := range tb.Columns {
		r = append(r, anyValue(t, c, c.Name != tb.Key[0]))
	}
	return r
}

func TestRowsComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tb := anyTable(t)
		a, b := anyRow(t, tb), anyRow(t, tb)
		if err := tb.check(); err != nil {
			t.Fatal(err)
		}
		raw, err := EncodeRow(nil, tb, a)
		if err != nil {
			t.Fatal(err)
		}
		one := len(raw)
		if raw, err = EncodeRow(raw, tb, b); err != nil {
			t.Fatal(err)
		}
		gotA, rest, err := DecodeRow(tb, raw)
		if err != nil {
			t.Fatal(err)
		}
		gotB, none, err := DecodeRow(tb, rest)
		if err != nil || len(none) != 0 {
			t.Fatalf("%d bytes left, %v", len(none), err)
		}
		if diff := cmp.Diff([]Row{a, b}, []Row{gotA, gotB}); diff != "" {
			t.Fatal(diff)
		}
		if cmp.Equal(a, b) != bytes.Equal(raw[:one], raw[one:]) {
			t.Fatal("equal rows have equal bytes, and no others")
		}
		for i := range raw[:one] { // each beginning of a row is no row
			if _, _, err := DecodeRow(tb, raw[:i]); err == nil {
				t.Fatalf("%d of %d bytes are a row", i, one)
			}
		}
	})
}

// TestOneEncodingPerRow changes bytes: what is still a row must encode to these very bytes.
func TestOneEncodingPerRow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tb := anyTable(t)
		raw, err := EncodeRow(nil, tb, anyRow(t, tb))
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			i := rapid.IntRange(0, len(raw)-1).Draw(t, "place")
			if rapid.Bool().Draw(t, "insert") {
				raw = slices.Insert(raw, i, rapid.Byte().Draw(t, "byte"))
			} else {
				raw[i] = rapid.Byte().Draw(t, "byte")
			}
		}
		r, rest, err := DecodeRow(tb, raw)
		if err != nil {
			wantInvalid(t, err)
			return
		}
		again, err := EncodeRow(nil, tb, r)
		if err != nil || !bytes.Equal(again, raw[:len(raw)-len(rest)]) {
			t.Fatalf("%x is read as what is written as %x (%v)", raw, again, err)
		}
	})
}

func wantInvalid(t *rapid.T, err error) {
	if code := fault.CodeOf(err); code != "row_damaged" {
		t.Fatalf("code %q: %v", code, err)
	}
}

// TestEncodingStays compares with bytes that were written before: backups must stay readable.
func TestEncodingStays(t *testing.T) {
	tb := Table{Name: "things", Key: []string{"b"}, Columns: []Column{{"a", Float}, {"b", Integer}, {"c", Text}, {"d", Bytes}, {"e", Text}}}
	row := Row{math.Copysign(0, -1), int64(-2), "ä🧵", []byte{0, 255}, nil}
	got, err := EncodeRow(nil, tb, row)
	const want = "0105" + "020000000000000000" + "01fffffffffffffffe" + "0306c3a4f09fa7b5" + "040200ff" + "00"
	if err != nil || hex.EncodeToString(got) != want {
		t.Errorf("%x, %v", got, err)
	}
	for what, raw := range map[string]string{
		"nothing":              "",
		"another version":      "02" + want[2:],
		"fewer columns":        "0104" + want[4:],
		"a long length":        "018500" + want[4:],
		"negative zero":        "0105" + "028000000000000000" + want[22:],
		"NaN":                  "0105" + "027ff8000000000001" + want[22:],
		"a length beyond ends": want[:40] + "03ffffffffffffffffff01",
		"NUL in text":          "0105" + "00" + "01fffffffffffffffe" + "030100" + "00" + "00",
		"no key":               "0105" + "00" + "00" + "00" + "00" + "00",
		"an unknown kind":      "0105" + "05" + "01fffffffffffffffe" + "00" + "00" + "00",
	} {
		b, err := hex.DecodeString(raw)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = DecodeRow(tb, b)
		if fault.CodeOf(err) != "row_damaged" {
			t.Errorf("%s: %v", what, err)
		}
	}
}
