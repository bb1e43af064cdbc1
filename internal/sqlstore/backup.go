package sqlstore

import (
	"context"
	"crypto/sha256"
	"hash"
	"slices"

	"claude-memory-backend/internal/ident"
)

// What backups need beside rows: digests of rows that come from elsewhere than a database, and who lives in an
// installation.

// TableHash digests a table's rows one after the other, as [Snapshot.Digest] does.
type TableHash struct {
	table Table
	rows  int64
	sum   hash.Hash
}

// NewTableHash returns the hash of a table without rows.
func NewTableHash(t Table) *TableHash {
	h := &TableHash{table: t, sum: sha256.New()}
	h.sum.Write(t.header())
	return h
}

// Add adds rows in the order of the key, as [EncodeRow] wrote them, one behind the other.
func (h *TableHash) Add(encoded []byte, rows int) {
	h.rows += int64(rows)
	h.sum.Write(encoded)
}

// Digest is what was added so far.
func (h *TableHash) Digest() TableDigest {
	return TableDigest{Name: h.table.Name, Rows: h.rows, Sum: [sha256.Size]byte(h.sum.Sum(nil))}
}

// SumDigests is the digest of a database of these tables.
func SumDigests(tables []TableDigest) Digest {
	sum := sha256.New()
	for _, t := range tables {
		sum.Write(t.Sum[:])
	}
	return Digest{Tables: tables, Sum: [sha256.Size]byte(sum.Sum(nil))}
}

// Equal reports whether two tables are the same.
func (t Table) Equal(o Table) bool {
	return t.Name == o.Name && slices.Equal(t.Columns, o.Columns) && slices.Equal(t.Key, o.Key)
}

// TenantIDs lists the tenants that a master database knows at the moment of the snapshot: those in users' own databases
// come last, since their servers may take their time.
func (s *Snapshot) TenantIDs(ctx context.Context) ([]ident.TenantID, error) {
	var list []ident.TenantID
	err := s.Read(ctx, func(b *Batch) {
		b.Query(func(s Scanner) error {
			var id ident.TenantID
			err := s.Scan(&id)
			list = append(list, id)
			return err
		}, `SELECT t.id FROM tenants t LEFT JOIN databases d ON d.id = t.database_id
			ORDER BY CASE WHEN d.kind = 'external' THEN 1 ELSE 0 END, t.id`)
	})
	return list, err
}
