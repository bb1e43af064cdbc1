package sqlstore

import (
	"context"
	"crypto/sha256"
)

// Digest is what a database holds, in figures that are equal for equal content on both engines.
type Digest struct {
	Tables []TableDigest     `json:"tables"`
	Sum    [sha256.Size]byte `json:"sum"` // of all tables
}

// TableDigest is the number of rows of a table, and the SHA-256 of its name, its columns and its rows in the order of
// the key, as [EncodeRow] writes them.
type TableDigest struct {
	Name string            `json:"name"`
	Rows int64             `json:"rows"`
	Sum  [sha256.Size]byte `json:"sum"`
}

// Digest reads the tables named in only, or all without any, and digests them. It holds a few MiB at a time.
func (s *Snapshot) Digest(ctx context.Context, only ...string) (Digest, error) {
	return Digest{}, unbuilt()
}
