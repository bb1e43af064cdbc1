package sqlstore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// Digest is what a database holds, in figures that are equal for equal content on both engines.
type Digest struct {
	Tables []TableDigest     `json:"tables"`
	Sum    [sha256.Size]byte `json:"sum"` // of the tables, one after the other
}

// TableDigest is the number of rows of a table, and the SHA-256 of its name, its columns and its rows in the order of
// the key, as [EncodeRow] writes them.
type TableDigest struct {
	Name string            `json:"name"`
	Rows int64             `json:"rows"`
	Sum  [sha256.Size]byte `json:"sum"`
}

// How much is read at a time to be digested.
const (
	digestRows  = 5_000
	digestBytes = 4 << 20
)

// Digest reads the tables named in only, or all without any, and digests them. It holds a few MiB at a time.
func (s *Snapshot) Digest(ctx context.Context, only ...string) (Digest, error) {
	tables, err := s.Tables(ctx)
	if err != nil {
		return Digest{}, err
	}
	var list []TableDigest
	for _, t := range tables {
		if len(only) > 0 && !slices.Contains(only, t.Name) {
			continue
		}
		td, err := s.digest(ctx, t)
		if err != nil {
			return Digest{}, err
		}
		list = append(list, td)
	}
	return SumDigests(list), nil
}

func (s *Snapshot) digest(ctx context.Context, t Table) (TableDigest, error) {
	sum := NewTableHash(t)
	var line []byte
	for after := []any(nil); ; {
		rows, next, err := s.Page(ctx, t, after, digestRows, digestBytes)
		if err != nil {
			return TableDigest{}, err
		}
		for _, r := range rows {
			if line, err = EncodeRow(line[:0], t, r); err != nil {
				return TableDigest{}, err
			}
			sum.Add(line, 1)
		}
		if after = next; next == nil {
			return sum.Digest(), nil
		}
	}
}

// header is the name of the table, then its columns with their types, then its key; each text behind its length, each
// list behind the number of its elements.
func (t Table) header() []byte {
	var b []byte
	text := func(s string) { b = append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	number := func(n int) { b = binary.AppendUvarint(b, uint64(n)) }
	text(t.Name)
	number(len(t.Columns))
	for _, c := range t.Columns {
		text(c.Name)
		text(string(c.Type))
	}
	number(len(t.Key))
	for _, k := range t.Key {
		text(k)
	}
	return b
}
