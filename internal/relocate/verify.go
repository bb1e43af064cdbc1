package relocate

import (
	"bytes"
	"context"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/sqlstore"
)

// Damage is a database in a snapshot that cannot be restored.
type Damage struct {
	Owner string
	Err   error // code "backup_damaged", or "backup_key_missing" when its key was destroyed
}

// Verify reads all of a snapshot: every chunk must open, and each database must have the content that it had when it
// was read. It returns what does not hold; the error is about the storage itself. What was erased since is not damage.
func (r *Repository) Verify(ctx context.Context, m *Manifest, progress Progress) ([]Damage, error) {
	const op = "relocate.Verify"
	if progress == nil {
		progress = func(int64, int64, string) {}
	}
	var done, total int64
	for _, d := range m.Databases {
		total += int64(len(d.Chunks))
	}
	var list []Damage
	for i := range m.Databases {
		d := &m.Databases[i]
		if !d.Stored() {
			continue
		}
		err := r.read(ctx, m, d, func(sqlstore.Table, []sqlstore.Row) error { return nil }, func() {
			done++
			progress(done, total, "chunks")
		})
		switch code := fault.CodeOf(err); {
		case err == nil:
		case code == "backup_damaged" || code == "backup_key_missing":
			gone, gerr := r.unreadable(ctx, d)
			if gerr != nil {
				return list, fault.Wrap(op, gerr)
			}
			if !gone {
				list = append(list, Damage{d.Owner, err})
			}
		default:
			return list, fault.Wrap(op, err)
		}
	}
	return list, nil
}

// read hands out the rows of a database in their order, and compares what they were with the manifest at the end: only
// when it returns nil were they all, and the right ones. step, which may be nil, hears of each chunk.
func (r *Repository) read(ctx context.Context, m *Manifest, d *Database, each func(sqlstore.Table, []sqlstore.Row) error, step func()) error {
	if !d.Stored() || d.Shape < 0 || d.Shape >= len(m.Shapes) {
		return damaged("the copy of "+d.Owner, nil)
	}
	key, err := r.key(ctx, d.Owner, d.Key)
	if err != nil {
		return err
	}
	tables := m.Shapes[d.Shape]
	hashes := make(map[string]*sqlstore.TableHash, len(tables))
	for _, t := range tables {
		hashes[t.Name] = sqlstore.NewTableHash(t)
	}
	err = r.readChunks(ctx, key, d.Chunks, func(content []byte) error {
		if step != nil {
			defer step()
		}
		return unpack(tables, content, func(t sqlstore.Table, rows []sqlstore.Row, encoded []byte) error {
			hashes[t.Name].Add(encoded, len(rows))
			return each(t, rows)
		})
	})
	if err != nil {
		return err
	}
	var sums []sqlstore.TableDigest
	for _, t := range tables {
		sums = append(sums, hashes[t.Name].Digest())
	}
	if sum := sqlstore.SumDigests(sums); !bytes.Equal(sum.Sum[:], d.Digest) {
		return damaged("the copy of "+d.Owner, nil)
	}
	return nil
}
