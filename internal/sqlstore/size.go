package sqlstore

import (
	"context"

	"claude-memory-backend/internal/fault"
)

// Size is how many bytes a database of ours takes where it lies: the file, or our tables in PostgreSQL with their
// indexes. It is cheap, whatever is in it. One round trip.
func Size(ctx context.Context, d *DB) (int64, error) {
	var n int64
	err := d.Read(ctx, func(b *Batch) {
		b.One([]any{&n}, b.Dialect().Pick(`SELECT c.page_count * s.page_size FROM pragma_page_count() c, pragma_page_size() s`,
			`SELECT CAST(coalesce(sum(pg_total_relation_size(c.oid)), 0) AS BIGINT) FROM pg_class c
			JOIN pg_namespace s ON s.oid = c.relnamespace AND s.nspname = current_schema() WHERE c.relkind = 'r'`))
	})
	return n, fault.Wrap("sqlstore.Size", err)
}
