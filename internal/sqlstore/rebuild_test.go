package sqlstore

import (
	"errors"
	"io/fs"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

// stepsWith are the released steps and one more of the tenants' line.
func stepsWith(t testing.TB, sql string) *Steps {
	t.Helper()
	tree := fstest.MapFS{}
	if err := fs.WalkDir(ReleasedFiles(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(ReleasedFiles(), name)
		tree[name] = &fstest.MapFile{Data: text}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, engine := range []string{"sqlite", "postgres"} {
		tree["migrations/tenant/9999_next."+engine+".sql"] = &fstest.MapFile{Data: []byte(sql)}
	}
	if _, err := LoadSteps(tree); err == nil {
		t.Fatal("a gap in the numbers went unnoticed")
	}
	for _, engine := range []string{"sqlite", "postgres"} {
		delete(tree, "migrations/tenant/9999_next."+engine+".sql")
	}
	released, err := LoadSteps(tree)
	if err != nil {
		t.Fatal(err)
	}
	next := "migrations/tenant/000" + string(rune('1'+released.Newest(Tenant))) + "_next."
	tree[next+"sqlite.sql"] = &fstest.MapFile{Data: []byte(sql)}
	if _, err := LoadSteps(tree); err == nil {
		t.Fatal("a step for one engine alone went unnoticed")
	}
	tree[next+"postgres.sql"] = tree[next+"sqlite.sql"]
	steps, err := LoadSteps(tree)
	if err != nil {
		t.Fatal(err)
	}
	return steps
}

func TestRebuild(t *testing.T) {
	for _, e := range []struct {
		name string
		open func(*testing.T) *DB
	}{{"sqlite", onSQLite}, {"postgres", onPostgres}} {
		t.Run(e.name, func(t *testing.T) {
			steps := stepsWith(t, `ALTER TABLE projects ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm'; DELETE FROM projects;`)
			newest := steps.Newest(Tenant)
			before := steps.UpTo(Tenant, newest-1)
			db := e.open(t)
			if _, err := before.Migrate(t.Context(), db, Tenant); err != nil {
				t.Fatal(err)
			}
			put(t, db, func(b *Batch) { b.Exec(`CREATE TABLE somebody_elses (a BIGINT)`) })
			populate(t, db)
			want := digest(t, db)
			past := remember(t, db)

			if at, err := steps.Look(t.Context(), db, Tenant); err != nil || at.Version != newest-1 || len(at.Pending) != 1 {
				t.Fatalf("%+v, %v", at, err)
			}
			if _, err := steps.Migrate(t.Context(), db, Tenant); err != nil {
				t.Fatal(err)
			}
			stepped := digest(t, db)
			told := event.Event{ID: "told", Type: "database.created", Subject: "db_1", CreatedAt: time.Now()}
			if err := NewTenantStore(db, nil).Tell(t.Context(), told, ""); err != nil {
				t.Fatal(err)
			}
			head, err := NewTenantStore(db, nil).Head(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := before.Look(t.Context(), db, Tenant); err == nil {
				t.Fatal("a newer database looks well")
			} else {
				wantCode(t, err, "schema_newer")
			}
			after := digest(t, db)
			if after == want {
				t.Fatal("the step changed nothing")
			}

			t.Run("leaves everything when it is not agreed", func(t *testing.T) {
				no := errors.New("no")
				refused := past
				refused.Mark = markAt(t, db, head-2)
				refused.Agree = func(got Newer) error {
					if want := (Newer{Changes: 1, Told: []ident.EventID{told.ID}}); !cmp.Equal(got, want) {
						t.Error(cmp.Diff(want, got))
					}
					return no
				}
				if err := steps.Rebuild(t.Context(), db, Tenant, refused); !errors.Is(err, no) {
					t.Fatal(err)
				}
				if got := digest(t, db); got != after {
					t.Error(cmp.Diff(after, got))
				}
			})
			t.Run("tells another log from its own", func(t *testing.T) {
				other, ahead := markAt(t, db, head), LogMark{Seq: head + 1}
				other.ID += "x"
				for _, mark := range []LogMark{other, ahead} {
					no := errors.New("no")
					refused := past
					refused.Mark = mark
					refused.Agree = func(got Newer) error {
						if !got.Apart || got.Changes != 0 {
							t.Errorf("%+v: %+v", mark, got)
						}
						return no
					}
					if err := steps.Rebuild(t.Context(), db, Tenant, refused); !errors.Is(err, no) {
						t.Fatal(err)
					}
				}
			})
			t.Run("leaves everything when rows are damaged in the middle", func(t *testing.T) {
				broken := past
				broken.Rows = func(put func(Table, []Row) error) error {
					n := 0
					return past.Rows(func(tb Table, rows []Row) error {
						if n++; n == 5 {
							return put(tb, []Row{{}})
						}
						return put(tb, rows)
					})
				}
				wantCode(t, steps.Rebuild(t.Context(), db, Tenant, broken), "row_damaged")
				if got := digest(t, db); got != after {
					t.Error(cmp.Diff(after, got))
				}
			})
			t.Run("brings schema and rows back", func(t *testing.T) {
				if err := steps.Rebuild(t.Context(), db, Tenant, past); err != nil {
					t.Fatal(err)
				}
				if got := digest(t, db); got != want {
					t.Error(cmp.Diff(want, got))
				}
				if v, err := SchemaVersion(t.Context(), db); err != nil || v != newest-1 {
					t.Error(v, err)
				}
				put(t, db, func(b *Batch) { b.Exec(`INSERT INTO somebody_elses (a) VALUES (1)`) })
				if n := orphanedWords(t, db); n != 0 {
					t.Errorf("%d rows of words without their text", n)
				}
			})
			t.Run("and the step can be taken again", func(t *testing.T) {
				if r, err := steps.Migrate(t.Context(), db, Tenant); err != nil || r.From != newest-1 || r.To != newest {
					t.Fatal(r, err)
				}
				if got := digest(t, db); got != stepped {
					t.Error(cmp.Diff(stepped, got))
				}
			})
			t.Run("a step that does not go with the rows is named and leaves nothing", func(t *testing.T) {
				if err := steps.Rebuild(t.Context(), db, Tenant, past); err != nil {
					t.Fatal(err)
				}
				bad := stepsWith(t, `ALTER TABLE conversations ADD COLUMN mood TEXT NOT NULL DEFAULT ''; CREATE UNIQUE INDEX one_mood ON conversations (mood);`)
				r, err := bad.Migrate(t.Context(), db, Tenant)
				wantCode(t, err, "migration_failed")
				if r.To != newest-1 || r.Failed == "" {
					t.Errorf("%+v", r)
				}
				if got := digest(t, db); got != want {
					t.Error(cmp.Diff(want, got))
				}
			})
		})
	}
}

// remember reads everything of a database into memory.
func remember(t *testing.T, db *DB) Past {
	t.Helper()
	s := snapshot(t, db)
	defer s.Close()
	type page struct {
		table Table
		rows  []Row
	}
	var pages []page
	for _, tb := range tables(t, s) {
		for after := []any(nil); ; {
			rows, next, err := s.Page(t.Context(), tb, after, 7, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			pages = append(pages, page{tb, rows})
			if after = next; next == nil {
				break
			}
		}
	}
	seq, err := s.Sequences(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	version, err := SchemaVersion(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	return Past{Version: version, Sequences: seq, Rows: func(put func(Table, []Row) error) error {
		for _, p := range pages {
			if err := put(p.table, p.rows); err != nil {
				return err
			}
		}
		return nil
	}}
}

// markAt is the mark at a place of a log.
func markAt(t *testing.T, db *DB, seq event.Seq) LogMark {
	t.Helper()
	m := LogMark{Seq: seq}
	if err := db.Read(t.Context(), func(b *Batch) { b.One([]any{&m.ID}, `SELECT id FROM events WHERE seq = ?`, seq) }); err != nil {
		t.Fatal(err)
	}
	return m
}
