package sqlstore

import (
	"slices"
	"strings"
	"testing"
)

// search are the tables that the engines' own full-text machinery dictates: virtual tables with shadows in SQLite,
// tables with a tsvector in PostgreSQL. What they answer is compared by the tests of the index instead.
var search = []string{"message_words", "title_words", "message_terms"}

// shape is a schema as both engines can tell it: "table.column type null", and "table key(columns)".
type shape []string

func TestBothEnginesHaveOneSchema(t *testing.T) {
	for _, line := range []Line{Master, Tenant} {
		t.Run(line.String(), func(t *testing.T) {
			lite, post := liteShape(t, line), postShape(t, line)
			for _, s := range lite {
				if !slices.Contains(post, s) {
					t.Errorf("only SQLite has %s", s)
				}
			}
			for _, s := range post {
				if !slices.Contains(lite, s) {
					t.Errorf("only PostgreSQL has %s", s)
				}
			}
			if len(lite) < 40 {
				t.Errorf("only %d facts were compared", len(lite))
			}
		})
	}
}

// TestMasterHoldsNothingAUserWrote guards the wall between the two lines: what a tenant says never has a place in the
// database that all tenants share.
func TestMasterHoldsNothingAUserWrote(t *testing.T) {
	for engine, s := range map[string]shape{"sqlite": liteShape(t, Master), "postgres": postShape(t, Master)} {
		columns := 0
		for _, fact := range s {
			place, _, _ := strings.Cut(fact, " ")
			table, column, ok := strings.Cut(place, ".")
			if !ok {
				continue
			}
			columns++
			if column == "project_id" {
				continue // who is a member of which: an id, and nobody's words
			}
			for _, word := range []string{"title", "content", "message", "memor", "conversation", "project", "prompt",
				"instruction", "body", "text", "block", "system", "tags", "description"} {
				if strings.Contains(column, word) || strings.Contains(table, word) {
					t.Errorf("%s: %s", engine, fact)
				}
			}
		}
		if columns < 30 {
			t.Errorf("%s: only %d columns were seen", engine, columns)
		}
	}
}

// facts runs a query whose rows are facts, without those about search and migrations.
func facts(t *testing.T, db *DB, sql string) (s shape) {
	t.Helper()
	if err := db.Read(t.Context(), func(b *Batch) {
		b.Query(func(row Scanner) error {
			var table, fact string
			err := row.Scan(&table, &fact)
			if !slices.ContainsFunc(search, func(name string) bool { return strings.HasPrefix(table, name) }) &&
				table != "schema_migrations" {
				s = append(s, fact)
			}
			return err
		}, sql)
	}); err != nil {
		t.Fatal(err)
	}
	return s
}

func liteShape(t *testing.T, line Line) shape {
	t.Helper()
	db := onSQLite(t)
	if _, err := Migrate(t.Context(), db, line); err != nil {
		t.Fatal(err)
	}
	return liteShapeOf(t, db)
}

func liteShapeOf(t *testing.T, db *DB) shape {
	t.Helper()
	// INTEGER PRIMARY KEY AUTOINCREMENT is the other engine's identity: a number that is never NULL nor used again.
	s := facts(t, db, `SELECT t.name, t.name || '.' || c.name || ' ' ||
		CASE c.type WHEN 'INTEGER' THEN 'number' WHEN 'BIGINT' THEN 'number' WHEN 'TEXT' THEN 'text' WHEN 'BLOB' THEN 'bytes'
			ELSE c.type END || CASE WHEN c."notnull" = 1 OR c.pk > 0 THEN '' ELSE ' null' END
		FROM sqlite_schema t JOIN pragma_table_info(t.name) c WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'`)
	s = append(s, facts(t, db, `SELECT t.name, t.name || ' primary (' || (SELECT group_concat(name, ',') FROM
		(SELECT name FROM pragma_table_info(t.name) WHERE pk > 0 ORDER BY pk)) || ')'
		FROM sqlite_schema t WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'
		AND EXISTS (SELECT 1 FROM pragma_table_info(t.name) WHERE pk > 0)`)...)
	s = append(s, facts(t, db, `SELECT t.name, t.name || CASE i."unique" WHEN 1 THEN ' unique (' ELSE ' index (' END ||
		(SELECT group_concat(name, ',') FROM (SELECT name FROM pragma_index_info(i.name) ORDER BY seqno)) || ')' ||
		CASE i.partial WHEN 1 THEN ' partial' ELSE '' END
		FROM sqlite_schema t JOIN pragma_index_list(t.name) i WHERE t.type = 'table' AND i.origin <> 'pk'`)...)
	return append(s, facts(t, db, `SELECT t.name, t.name || ' ' || f."from" || ' references ' || f."table" || '.' || f."to" ||
		' ' || lower(f.on_delete)
		FROM sqlite_schema t JOIN pragma_foreign_key_list(t.name) f WHERE t.type = 'table'`)...)
}

func postShape(t *testing.T, line Line) shape {
	t.Helper()
	db := onPostgres(t)
	if _, err := Migrate(t.Context(), db, line); err != nil {
		t.Fatal(err)
	}
	return postShapeOf(t, db)
}

func postShapeOf(t *testing.T, db *DB) shape {
	t.Helper()
	// Text must also sort by bytes, as SQLite's does.
	s := facts(t, db, `SELECT c.table_name, c.table_name || '.' || c.column_name || ' ' ||
		CASE c.data_type WHEN 'bigint' THEN 'number' WHEN 'text' THEN 'text' WHEN 'bytea' THEN 'bytes' ELSE c.data_type END ||
		CASE c.is_nullable WHEN 'NO' THEN '' ELSE ' null' END ||
		CASE WHEN c.data_type = 'text' AND COALESCE(c.collation_name, '') <> 'C' THEN ' in a language''s order' ELSE '' END
		FROM information_schema.columns c WHERE c.table_schema = 'memoryd'`)
	s = append(s, facts(t, db, `SELECT t.relname, t.relname ||
		CASE WHEN i.indisprimary THEN ' primary (' WHEN i.indisunique THEN ' unique (' ELSE ' index (' END ||
		(SELECT string_agg(a.attname, ',' ORDER BY k.place) FROM unnest(i.indkey) WITH ORDINALITY AS k (number, place)
			JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number) || ')' ||
		CASE WHEN i.indpred IS NULL THEN '' ELSE ' partial' END
		FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid WHERE t.relnamespace = 'memoryd'::regnamespace`)...)
	return append(s, facts(t, db, `SELECT t.relname, t.relname || ' ' || a.attname || ' references ' || f.relname || '.' ||
		r.attname || ' ' || CASE c.confdeltype WHEN 'c' THEN 'cascade' WHEN 'n' THEN 'set null' ELSE 'no action' END
		FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid JOIN pg_class f ON f.oid = c.confrelid
		JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
		JOIN pg_attribute r ON r.attrelid = c.confrelid AND r.attnum = c.confkey[1]
		WHERE c.contype = 'f' AND t.relnamespace = 'memoryd'::regnamespace`)...)
}
