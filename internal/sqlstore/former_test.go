package sqlstore

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The version before must be able to read what a version wrote (decision 0034): servers of both may have one database
// open, and going back must be possible. These tests look at each step after the first, on both engines.

// TestStepsOnlyAdd: what the version before reads is still there after a step, of the same type, and what it writes is
// still taken: new columns of old tables need no value, and old tables get no new demands.
func TestStepsOnlyAdd(t *testing.T) {
	steps, err := Released()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []Line{Master, Tenant} {
		for _, e := range formerEngines {
			db := e.open(t)
			var before shape
			for v := int64(1); v <= steps.Newest(line); v++ {
				if _, err := steps.UpTo(line, v).Migrate(t.Context(), db, line); err != nil {
					t.Fatal(err)
				}
				after, needed := e.shape(t, db), facts(t, db, e.needed)
				if v > 1 && exempt[fmt.Sprint(line, " ", v)] == "" {
					for _, complaint := range tightened(before, after, needed) {
						t.Errorf("%s, %s, step %d: %s", line, e.name, v, complaint)
					}
				}
				before = after
			}
		}
	}
}

// exempt are steps that may break the rule, with the reason.
var exempt = map[string]string{
	"master 2": "nothing was released before it, and no decision 0034 was taken",
}

// tightened is what a step did that the version before cannot live with. needed are columns that want a value.
func tightened(before, after, needed shape) (complaints []string) {
	for _, fact := range before {
		if !slices.Contains(after, fact) && !strings.Contains(fact, " index (") {
			complaints = append(complaints, "gone or changed: "+fact)
		}
	}
	old := map[string]bool{}
	for _, fact := range before {
		old[tableOf(fact)] = true
	}
	for _, fact := range after {
		if slices.Contains(before, fact) || !old[tableOf(fact)] {
			continue
		}
		place, _, _ := strings.Cut(fact, " ")
		switch {
		case strings.Contains(fact, " unique ("), strings.Contains(fact, " references "):
			complaints = append(complaints, "a new demand on an old table: "+fact)
		case slices.Contains(needed, place):
			complaints = append(complaints, "a new column without a default in an old table: "+fact)
		}
	}
	return complaints
}

func tableOf(fact string) string {
	place, _, _ := strings.Cut(fact, " ")
	table, _, _ := strings.Cut(place, ".")
	return table
}

var formerEngines = []struct {
	name   string
	open   func(*testing.T) *DB
	shape  func(*testing.T, *DB) shape
	needed string
}{
	{"sqlite", onSQLite, liteShapeOf, `SELECT t.name, t.name || '.' || c.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c
		WHERE t.type = 'table' AND c."notnull" = 1 AND c.dflt_value IS NULL`},
	{"postgres", onPostgres, postShapeOf, `SELECT table_name, table_name || '.' || column_name FROM information_schema.columns
		WHERE table_schema = 'memoryd' AND is_nullable = 'NO' AND column_default IS NULL AND is_identity = 'NO'`},
}

// TestStepsOnlyAddRefuses breaks the rule in each way once.
func TestStepsOnlyAddRefuses(t *testing.T) {
	for sql, want := range map[string]string{
		`ALTER TABLE conversations ADD COLUMN mood TEXT NOT NULL DEFAULT ''; CREATE TABLE moods (name TEXT NOT NULL PRIMARY KEY);
			CREATE INDEX by_mood ON conversations (mood)`: "",
		`ALTER TABLE conversations DROP COLUMN description`:        "gone or changed: conversations.description text",
		`ALTER TABLE conversations RENAME COLUMN system TO orders`: "gone or changed: conversations.system text",
		`DROP TABLE systems`: "gone or changed: systems.body text",
		`CREATE UNIQUE INDEX one_title ON conversations (title)`:      "a new demand on an old table: conversations unique (title)",
		`DROP TABLE usage; CREATE TABLE usage (one TEXT PRIMARY KEY)`: "gone or changed: usage.messages number",
		`DROP TABLE systems; CREATE TABLE systems (hash TEXT NOT NULL PRIMARY KEY, body TEXT NOT NULL, created_at BIGINT NOT NULL,
			author TEXT NOT NULL)`: "a new column without a default in an old table: systems.author text",
	} {
		db := onSQLite(t)
		if _, err := Migrate(t.Context(), db, Tenant); err != nil {
			t.Fatal(err)
		}
		before := liteShapeOf(t, db)
		if err := db.Write(t.Context(), func(tx *Tx) error { return tx.script(sql) }); err != nil {
			t.Fatal(sql, err)
		}
		got := tightened(before, liteShapeOf(t, db), facts(t, db, formerEngines[0].needed))
		if want == "" && len(got) > 0 || want != "" && !slices.Contains(got, want) {
			t.Errorf("%s: %q", sql, got)
		}
	}
}

// TestStepsOnFullDatabases takes every step of the tenants' line on a database that is full. What a version wrote, as far as
// the version before knows it, is first put into the tables of that: they must take it. Then this binary reads it there,
// as it must when a step fails; then the step comes, and finds everything as it was.
func TestStepsOnFullDatabases(t *testing.T) {
	steps, err := Released()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range formerEngines {
		for v := int64(1); v < steps.Newest(Tenant); v++ {
			t.Run(fmt.Sprintf("%s from %d to %d", e.name, v, v+1), func(t *testing.T) {
				db := e.open(t)
				if _, err := steps.UpTo(Tenant, v).Migrate(t.Context(), db, Tenant); err != nil {
					t.Fatal(err)
				}
				known := tables(t, snapshot(t, db))
				full := e.open(t)
				if _, err := steps.Migrate(t.Context(), full, Tenant); err != nil {
					t.Fatal(err)
				}
				populated(t, full)
				if !slices.ContainsFunc(known, func(t Table) bool { return t.Name == "shortcuts" }) {
					put(t, full, func(b *Batch) { b.Exec(`DELETE FROM shortcuts`) }) // the version before lists none
				}
				past := narrowed(known, remember(t, full))
				past.Version = v
				if err := steps.Rebuild(t.Context(), db, Tenant, past); err != nil {
					t.Fatal(err)
				}
				before, seen := digests(t, db, known), found(t, db)
				if want := digests(t, full, known); !cmp.Equal(before, want) {
					t.Errorf("the version before does not hold what was written:\n%s", cmp.Diff(want, before))
				}
				if want := found(t, full); !cmp.Equal(seen, want) {
					t.Errorf("the version before finds something else:\n%s", cmp.Diff(want, seen))
				}
				if r, err := steps.UpTo(Tenant, v+1).Migrate(t.Context(), db, Tenant); err != nil || r.From != v || r.To != v+1 {
					t.Fatalf("%+v, %v", r, err)
				}
				if after := digests(t, db, known); !cmp.Equal(after, before) {
					t.Errorf("the step changed what was there:\n%s", cmp.Diff(before, after))
				}
				if after := found(t, db); !cmp.Equal(after, seen) {
					t.Errorf("something else is found:\n%s", cmp.Diff(seen, after))
				}
			})
		}
	}
}

// narrowed is a past as those tables and columns hold it.
func narrowed(known []Table, past Past) Past {
	past.Sequences = slices.DeleteFunc(slices.Clone(past.Sequences), func(s Sequence) bool {
		return !slices.ContainsFunc(known, func(t Table) bool { return t.Name == s.Table })
	})
	rows := past.Rows
	past.Rows = func(put func(Table, []Row) error) error {
		return rows(func(of Table, list []Row) error {
			i := slices.IndexFunc(known, func(t Table) bool { return t.Name == of.Name })
			if i < 0 {
				return nil // of a later version
			}
			var kept []Row
			for _, row := range list {
				var short Row
				for _, c := range known[i].Columns {
					short = append(short, row[of.at(c.Name)])
				}
				kept = append(kept, short)
			}
			return put(known[i], kept)
		})
	}
	return past
}

// digests are what the tables hold in those columns, whatever others there are.
func digests(t *testing.T, db *DB, known []Table) map[string]string {
	t.Helper()
	s := snapshot(t, db)
	defer s.Close()
	sums := map[string]string{}
	for _, table := range known {
		rows, err := s.digest(t.Context(), table)
		if err != nil {
			t.Fatal(err)
		}
		sums[table.Name] = fmt.Sprintf("%d rows, %x", rows.Rows, rows.Sum[:8])
	}
	return sums
}
