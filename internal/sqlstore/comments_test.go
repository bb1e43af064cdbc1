package sqlstore

import (
	"strings"
	"testing"
)

// TestEveryColumnIsExplained fails when a migration brings something that nobody has explained.
func TestEveryColumnIsExplained(t *testing.T) {
	for name, db := range engines(t) {
		if err := Fence(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := CommentTables(t.Context(), db); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if db.Dialect() != Postgres {
			continue
		}
		texts := map[string]string{}
		if err := db.Read(t.Context(), func(b *Batch) {
			b.Query(func(s Scanner) error {
				var table, column, text string
				err := s.Scan(&table, &column, &text)
				texts[table+"."+column] = text
				return err
			}, `SELECT c.relname, '', coalesce(obj_description(c.oid, 'pg_class'), '') FROM pg_class c
				WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r'
				UNION ALL SELECT c.relname, a.attname, coalesce(col_description(c.oid, a.attnum), '') FROM pg_class c
				JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
				WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r'
				AND c.relname NOT IN ('message_words', 'title_words', 'schema_migrations')
				UNION ALL SELECT 'schema', '', coalesce(obj_description(current_schema()::regnamespace, 'pg_namespace'), '')`)
		}); err != nil {
			t.Fatal(err)
		}
		for what, text := range texts {
			if !strings.HasSuffix(text, ".") {
				t.Errorf("%s: %q", what, text)
			}
		}
		if len(texts) < 100 {
			t.Errorf("only %d things have comments", len(texts))
		}
		// What is explained must be there.
		for _, e := range explanations {
			for _, c := range e.columns {
				if _, there := texts[e.table+"."+c.column]; !there {
					t.Errorf("there is no %s.%s", e.table, c.column)
				}
			}
		}
	}
}
