package sqlstore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/storetest"
)

// populate makes a tenant with everything that a tenant can have.
func populate(t *testing.T, db *DB) {
	t.Helper()
	put(t, db, func(b *Batch) {
		for i, events := range []string{`["*"]`, `["message.*","turn.completed"]`} {
			b.Exec(`INSERT INTO webhooks (id, suffix, name, description, url, events, ordered, state, reason, secret, slowed, hold_until,
				version, created_at, updated_at) VALUES (?, ?, 'ü 🧵', '', 'https://example.org/', ?, ?, 'active', '', ?, 0, ?, 1, 2, 3)`,
				fmt.Sprint("whk_", i), fmt.Sprint(i, "0"), events, i, []byte{0, 255, byte(i)}, int64(1)<<60)
		}
	})
	storetest.Script(t, stores(db)) // branches, turns, events, trail, deliveries
	put(t, db, func(b *Batch) {
		b.Exec(`INSERT INTO attempts (delivery_id, number, started_at, latency_ms, status, error, answer)
			SELECT id, 1, 5, 6, 500, 'status', 'nö 🧵' FROM deliveries`)
		b.Exec(`UPDATE deliveries SET state = 'failed', finished_at = 7, body = '{}' WHERE seq < 20`)
	})
	newLibrary().shelve(t, db) // every script
	big := strings.Repeat("Ein langer Satz über nichts. 🧵\n", 60_000)
	put(t, db, func(b *Batch) {
		for i, text := range []string{big, "", "\x01\x1b\u0085\u2028\ufeff", "👩🏽‍🚀 🏳️‍🌈", "\uffff\U0010ffff", `'"; -- \ $1 ?1`} {
			id := ident.MessageID(fmt.Sprint("odd", i))
			putMessage(b, id, "c1", 100+i, conversation.User, text, time.UnixMicro(int64(i)))
			indexMessage(b, b.Dialect(), id, text)
		}
		b.Exec(`UPDATE messages SET blocks = '[{"type":"text"}]', raw_usage = '{}' WHERE id = 'odd1'`)
		putMessage(b, "stub", "c1", 200, conversation.Assistant, "unfinished zebra", time.UnixMicro(9))
		b.Exec(`UPDATE messages SET state = 'streaming' WHERE id = 'stub'`)
		for i, blob := range [][]byte{{}, {0}, []byte("\xff\x00\xfe"), []byte(big)} {
			b.Exec(`INSERT INTO idempotency (scope, key, fingerprint, result, expires_at) VALUES (?, ?, ?, ?, ?)`,
				fmt.Sprint("scope ", i%2, " ä"), fmt.Sprint("key ", i), blob[:min(len(blob), 32)], blob, int64(-1)<<63+int64(i))
		}
		b.Exec(`UPDATE projects SET deadline = ?`, int64(1)<<62)
		b.Exec(`INSERT INTO systems (hash, body, created_at) VALUES ('hash', ?, 1)`, big)
		b.Exec(`UPDATE conversations SET branch_count = 2 WHERE id IN ('c1', 'c2')`) // their messages lie on branch 1
		// A number that was given out and is nobody's any more.
		putMessage(b, "gone", "c1", 300, conversation.User, "gone", time.UnixMicro(1))
		b.Exec(`DELETE FROM messages WHERE id = 'gone'`)
	})
	far := time.UnixMicro(1 << 60)
	for _, id := range []ident.ProjectID{"shared", "left", "shared too"} {
		p := project.Project{ID: id, Details: project.Details{Name: "Ünser 🧵 " + string(id), Tags: []string{"ä", "b"}, Deadline: &far},
			Owner: event.Who{ID: "somebody", Name: "Some Body"}, Role: access.Commenter, ConversationCount: 3, Version: 7, CreatedAt: far, UpdatedAt: far}
		if err := NewTenantStore(db, nil).PutShortcut(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	if err := NewTenantStore(db, nil).DropShortcut(t.Context(), "left"); err != nil {
		t.Fatal(err)
	}
}

// full is a file that populate has filled, made by the first test that needs it.
var full struct {
	once  sync.Once
	image []byte
}

// populated makes a database like populate does, out of one that was made so before: in a few commits.
func populated(t *testing.T, db *DB) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "full.db")
	full.once.Do(func() {
		lite, err := OpenSQLite(t.Context(), SQLiteOptions{Path: path, Create: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Migrate(t.Context(), lite, Tenant); err != nil {
			t.Fatal(err)
		}
		populate(t, lite)
		if err := lite.Close(); err != nil {
			t.Fatal(err)
		}
		if full.image, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	})
	if err := os.WriteFile(path, full.image, 0o600); err != nil {
		t.Fatal(err)
	}
	copied(t, openFile(t, SQLiteOptions{Path: path}), db)
}

// snapshot takes a snapshot for the length of the test.
func snapshot(t testing.TB, db *DB) *Snapshot {
	t.Helper()
	s, err := db.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func tables(t testing.TB, s *Snapshot) []Table {
	t.Helper()
	list, err := s.Tables(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func table(t testing.TB, s *Snapshot, name string) Table {
	t.Helper()
	for _, tb := range tables(t, s) {
		if tb.Name == name {
			return tb
		}
	}
	t.Fatalf("there is no table %s", name)
	return Table{}
}

// digest is what is in a database now, as text that shows where two differ.
func digest(t testing.TB, db *DB) string {
	t.Helper()
	s, err := db.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return digestOf(t, s)
}

func digestOf(t testing.TB, s *Snapshot) string {
	t.Helper()
	d, err := s.Digest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, td := range d.Tables {
		fmt.Fprintf(&b, "%s %d %x\n", td.Name, td.Rows, td.Sum[:8])
	}
	fmt.Fprintf(&b, "%x\n", d.Sum)
	return b.String()
}

// copyAll copies what a snapshot sees.
func copyAll(ctx context.Context, s *Snapshot, to *DB, maxRows, maxBytes int) error {
	list, err := s.Tables(ctx)
	if err != nil {
		return err
	}
	for _, tb := range list {
		for after := []any(nil); ; {
			rows, next, err := s.Page(ctx, tb, after, maxRows, maxBytes)
			if err != nil {
				return err
			}
			if err := Put(ctx, to, tb, rows); err != nil {
				return err
			}
			if after = next; next == nil {
				break
			}
		}
	}
	numbers, err := s.Sequences(ctx)
	if err != nil {
		return err
	}
	return Advance(ctx, to, numbers)
}

func copied(t *testing.T, from, to *DB) {
	t.Helper()
	if err := copyAll(t.Context(), snapshot(t, from), to, 100, 1<<20); err != nil {
		t.Fatal(err)
	}
}

// found is what many questions find, and what listings show.
func found(t *testing.T, db *DB) []string {
	t.Helper()
	var out []string
	for _, q := range []string{"fox", "foxes", `"quick brown"`, "Größe", "ete", "книга", "الكتاب", "北京", "京都", "🎉", "E1234",
		"needle", "thread", "strasse", "ärger", "zebra", "satz", "gone", "uber nichts", "-fox run", "ru*"} {
		for _, role := range []conversation.Role{"", conversation.User, conversation.Assistant} {
			m, titles := ask(t, db, q, false, conversation.Candidates{Role: role})
			out = append(out, fmt.Sprintf("%s %s: %s / %s", q, role, m, titles))
		}
	}
	s := NewTenantStore(db, nil)
	projects, _, err := s.ListProjects(t.Context(), project.Query{Limit: 1000})
	out = append(out, fmt.Sprint(projects, err))
	conversations, _, err := s.ListConversations(t.Context(), conversation.Query{Limit: 1000, Sort: conversation.ByTitle})
	out = append(out, fmt.Sprint(conversations, err))
	for _, c := range conversations {
		list, _, err := s.ListMessages(t.Context(), c.ID, conversation.MessageQuery{Limit: 1000, All: true})
		out = append(out, fmt.Sprint(list, err))
	}
	return out
}

// goOn writes as services do after a move: numbers must go on, behind those of rows that were deleted, and nothing may
// collide.
func goOn(t *testing.T, db *DB, deleted int64) {
	t.Helper()
	s := NewTenantStore(db, nil)
	last := func(table string) (n int64) {
		if err := db.Read(t.Context(), func(b *Batch) {
			b.One([]any{&n}, `SELECT max(n) FROM `+table)
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before, trail := last("messages"), last("audit")
	now := event.NewChange(ident.Actor{Account: "usr_ada", Name: "Ada"}, time.Now())
	now.Add("message.appended", "c1", map[string]any{})
	c := conversation.Conversation{ID: ident.New[ident.ConversationID]()}
	err := s.InsertConversation(t.Context(), c, now)
	if err == nil {
		_, _, err = s.Append(t.Context(), c.ID, conversation.Where{},
			func(conversation.Spot) (conversation.Entry, event.Change, error) {
				now.Events[0].ID = ident.New[ident.EventID]()
				return conversation.Entry{Messages: []conversation.Message{{ID: ident.New[ident.MessageID](), Role: conversation.User,
					Content: "written afterwards: wombat", State: conversation.Completed}}}, now, nil
			})
	}
	if err != nil {
		t.Fatal(err)
	}
	if n := last("messages"); n <= before+deleted {
		t.Errorf("a message got number %d after %d", n, before)
	}
	if n := last("audit"); n <= trail {
		t.Errorf("an entry got number %d after %d", n, trail)
	}
	if m, _ := ask(t, db, "wombat", false, conversation.Candidates{}); m == "" {
		t.Error("what is written afterwards is not found")
	}
}

func TestRoundTripOfATenant(t *testing.T) {
	file, schema := tenantFiles(t), tenantSchemas(t)
	lite, post, back := file(t), schema(t), file(t)
	populate(t, lite)
	want, answers := digest(t, lite), found(t, lite)
	if n := strings.Count(strings.Join(answers, "\n"), "m16"); n == 0 {
		t.Error("the questions find nothing")
	}
	copied(t, lite, post)
	copied(t, post, back)
	for name, db := range map[string]*DB{"postgres": post, "sqlite again": back} {
		if diff := cmp.Diff(want, digest(t, db)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if diff := cmp.Diff(answers, found(t, db)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		goOn(t, db, 1)
		if digest(t, db) == want {
			t.Error("a digest does not see what was written")
		}
	}
}

// TestBothEnginesDigestAlike compares what two engines come to by themselves, not by a copy.
func TestBothEnginesDigestAlike(t *testing.T) {
	var all []string
	for _, db := range engines(t) {
		put(t, db, func(b *Batch) {
			putConversation(b, "ä", "", "x", time.UnixMicro(5))
			putConversation(b, "Z", "", "", time.UnixMicro(-5))
			b.Exec(`INSERT INTO idempotency (scope, key, fingerprint, result, expires_at) VALUES ('a', 'B', ?, ?, 1)`, []byte{}, []byte{0})
			b.Exec(`INSERT INTO idempotency (scope, key, fingerprint, result, expires_at) VALUES ('a', 'a', ?, ?, 1)`, []byte{}, []byte{0})
			b.Exec(`INSERT INTO idempotency (scope, key, fingerprint, result, expires_at) VALUES ('A', 'é', ?, ?, 1)`, []byte{}, []byte{0})
		})
		all = append(all, digest(t, db))
	}
	if all[0] != all[1] {
		t.Error(cmp.Diff(all[0], all[1]))
	}
}

// TestListedTables fails when a migration brings a table that nobody put into a list: it would be in no backup.
func TestListedTables(t *testing.T) {
	for _, line := range []Line{Master, Tenant} {
		lite, post := onSQLite(t), onPostgres(t)
		var shapes [][]Table
		for _, db := range []*DB{lite, post} {
			if _, err := Migrate(t.Context(), db, line); err != nil {
				t.Fatal(err)
			}
			list := tables(t, snapshot(t, db))
			shapes = append(shapes, list)
			var all []string
			if err := db.Read(t.Context(), func(b *Batch) {
				b.Query(func(s Scanner) error {
					var name string
					err := s.Scan(&name)
					all = append(all, name)
					return err
				}, b.Dialect().Pick(`SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'
					AND name NOT LIKE '%\_words\_%' ESCAPE '\'`,
					`SELECT tablename FROM pg_tables WHERE schemaname = current_schema()`))
			}); err != nil {
				t.Fatal(err)
			}
			for _, name := range all {
				listed := slices.ContainsFunc(list, func(tb Table) bool { return tb.Name == name })
				if listed == slices.Contains(unlisted[:], name) {
					t.Errorf("%s: table %s must be in exactly one list", line, name)
				}
			}
			checkReferences(t, db, list)
		}
		if diff := cmp.Diff(shapes[0], shapes[1]); diff != "" {
			t.Errorf("%s: %s", line, diff)
		}
	}
}

// checkReferences proves the order of the list, and that exactly the tables with key n are numbered.
func checkReferences(t *testing.T, db *DB, list []Table) {
	t.Helper()
	place := map[string]int{}
	for i, tb := range list {
		place[tb.Name] = i + 1
	}
	references := 0
	if err := db.Read(t.Context(), func(b *Batch) {
		b.Query(func(s Scanner) error {
			var from, to string
			err := s.Scan(&from, &to)
			if place[from] > 0 && place[to] > 0 {
				references++
				if place[from] < place[to] {
					t.Errorf("%s refers to %s and comes before it", from, to)
				}
			}
			return err
		}, b.Dialect().Pick(`SELECT t.name, f."table" FROM sqlite_schema t JOIN pragma_foreign_key_list(t.name) f WHERE t.type = 'table'`,
			`SELECT t.relname, f.relname FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
			JOIN pg_class f ON f.oid = c.confrelid WHERE c.contype = 'f'`))
		b.Query(func(s Scanner) error {
			var name string
			var numbered bool
			err := s.Scan(&name, &numbered)
			if i := place[name]; i > 0 && list[i-1].numbered() != numbered {
				t.Errorf("%s is numbered: %t", name, numbered)
			}
			return err
		}, b.Dialect().Pick(`SELECT name, sql LIKE '%AUTOINCREMENT%' FROM sqlite_schema WHERE type = 'table'`,
			`SELECT table_name, max(CASE is_identity WHEN 'YES' THEN 1 ELSE 0 END) FROM information_schema.columns
			WHERE table_schema = current_schema() GROUP BY table_name`))
	}); err != nil {
		t.Fatal(err)
	}
	if references < 3 {
		t.Errorf("only %d references were seen", references)
	}
}

func TestPages(t *testing.T) {
	for name, db := range engines(t) {
		t.Run(name, func(t *testing.T) {
			put(t, db, func(b *Batch) {
				putConversation(b, "c1", "", "x", time.UnixMicro(0))
				for i := range 20 {
					putMessage(b, ident.MessageID(fmt.Sprintf("m%02d", i)), "c1", i+1, conversation.User, strings.Repeat("x", 1000*(i%5)), time.UnixMicro(0))
				}
				for i, k := range []string{"b", "a", "B", "é", "ä", "", "aa", "🧵", "\uffff"} {
					b.Exec(`INSERT INTO idempotency (scope, key, fingerprint, result, expires_at) VALUES (?, ?, ?, ?, ?)`,
						[]string{"s", "S"}[i%2], k, []byte{}, []byte{}, 0)
				}
			})
			s := snapshot(t, db)
			for _, c := range []struct {
				table           string
				rows, bytes     int
				pages, ofLonger int // ofLonger: pages that end because of their size
			}{{"messages", 7, 1 << 20, 3, 0}, {"messages", 20, 1 << 20, 2, 0}, {"messages", 21, 1 << 20, 1, 0}, {"messages", 100, 1, 21, 0},
				{"messages", 100, 10_000, 5, 0}, {"idempotency", 2, 1 << 20, 5, 0}, {"turns", 5, 5, 1, 0}} {
				tb := table(t, s, c.table)
				var all []Row
				pages := 0
				for after := []any(nil); ; {
					rows, next, err := s.Page(t.Context(), tb, after, c.rows, c.bytes)
					if err != nil {
						t.Fatal(err)
					}
					pages++
					all = append(all, rows...)
					if size := 0; len(rows) > 1 {
						for _, r := range rows[:len(rows)-1] {
							size += r.weight()
						}
						if size >= c.bytes || len(rows) > c.rows {
							t.Errorf("%v: a page of %d rows has %d bytes before its last", c, len(rows), size)
						}
					}
					if after = next; next == nil {
						break
					}
				}
				if pages != c.pages {
					t.Errorf("%v: %d pages", c, pages)
				}
				if !slices.IsSortedFunc(all, func(a, b Row) int { return compareKeys(tb.KeyOf(a), tb.KeyOf(b)) }) {
					t.Errorf("%v: not in the order of the key", c)
				}
				if want := map[string]int{"messages": 20, "idempotency": 9}[c.table]; len(all) != want {
					t.Errorf("%v: %d rows", c, len(all))
				}
				var keys [][]any
				for _, r := range all {
					keys = append(keys, tb.KeyOf(r))
				}
				got, err := s.Get(t.Context(), tb, append(keys, missing(tb)))
				if err != nil {
					t.Fatal(err)
				}
				slices.SortFunc(got, func(a, b Row) int { return compareKeys(tb.KeyOf(a), tb.KeyOf(b)) })
				if diff := cmp.Diff(all, got); diff != "" {
					t.Errorf("%v: %s", c, diff)
				}
			}
		})
	}
}

// missing is a key that no row has.
func missing(tb Table) (key []any) {
	for _, k := range tb.Key {
		if tb.Columns[tb.at(k)].Type == Integer {
			key = append(key, int64(-1))
		} else {
			key = append(key, "nowhere")
		}
	}
	return key
}

func compareKeys(a, b []any) int {
	for i := range a {
		switch v := a[i].(type) {
		case int64:
			if c := v - b[i].(int64); c != 0 {
				return int(c)
			}
		case string:
			if c := strings.Compare(v, b[i].(string)); c != 0 {
				return c
			}
		}
	}
	return 0
}

func TestSnapshotHoldsStill(t *testing.T) {
	for name, db := range engines(t) {
		t.Run(name, func(t *testing.T) {
			put(t, db, func(b *Batch) { putConversation(b, "c1", "", "before", time.UnixMicro(0)) })
			s := snapshot(t, db)
			want := digestOf(t, s)
			put(t, db, func(b *Batch) {
				b.Exec(`UPDATE conversations SET title = 'after'`)
				putConversation(b, "c2", "", "later", time.UnixMicro(0))
			})
			if got := digestOf(t, s); got != want {
				t.Error(cmp.Diff(want, got))
			}
			if digest(t, db) == want {
				t.Error("a new snapshot sees nothing new")
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := s.Digest(ctx); err == nil {
				t.Error("a cancelled digest succeeds")
			}
			s.Close()
			s.Close()
			_, err := s.Digest(t.Context())
			wantCode(t, err, "database_closed")
			// A statement that fails ends the snapshot.
			s = snapshot(t, db)
			broken := s.Read(t.Context(), func(b *Batch) { b.Exec(`SELECT nothing FROM nowhere`) })
			if broken == nil {
				t.Fatal("a broken statement succeeds")
			}
			if _, err := s.Tables(t.Context()); err != broken { //nolint:errorlint // the very error
				t.Errorf("after an error: %v", err)
			}
			// And one that writes is refused.
			s = snapshot(t, db)
			if err := s.Read(t.Context(), func(b *Batch) { b.Exec(`DELETE FROM conversations`) }); err == nil {
				t.Error("a snapshot writes")
			}
		})
	}
}

func TestPut(t *testing.T) {
	for name, db := range placements(t) {
		t.Run(name, func(t *testing.T) {
			populated(t, db)
			before := digest(t, db)
			s := snapshot(t, db)
			messages, conversations := table(t, s, "messages"), table(t, s, "conversations")
			rows, _, err := s.Page(t.Context(), messages, nil, 50, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			t.Run("is one round trip and changes nothing that is the same", func(t *testing.T) {
				trips := db.RoundTrips()
				if err := Put(t.Context(), db, messages, rows); err != nil {
					t.Fatal(err)
				}
				if n := db.RoundTrips() - trips; n != 1 {
					t.Errorf("%d round trips", n)
				}
				if got := digest(t, db); got != before {
					t.Error(cmp.Diff(before, got))
				}
			})
			t.Run("indexes the new text and forgets the old", func(t *testing.T) {
				got, err := s.Get(t.Context(), messages, [][]any{{rowOf(t, s, messages, "m1")[messages.at("n")]}})
				if err != nil || len(got) != 1 {
					t.Fatal(got, err)
				}
				row := slices.Clone(got[0])
				row[messages.at("content")] = "a wholly new kangaroo"
				if err := Put(t.Context(), db, messages, []Row{row}); err != nil {
					t.Fatal(err)
				}
				if m, _ := ask(t, db, "kangaroo", false, conversation.Candidates{}); m != "m1" {
					t.Errorf("found: %s", m)
				}
				if m, _ := ask(t, db, `"quick brown fox"`, false, conversation.Candidates{}); m != "" {
					t.Errorf("still found: %s", m)
				}
				row[messages.at("state")] = "streaming"
				if err := Put(t.Context(), db, messages, []Row{row}); err != nil {
					t.Fatal(err)
				}
				if m, _ := ask(t, db, "kangaroo", false, conversation.Candidates{}); m != "" {
					t.Errorf("found before it is complete: %s", m)
				}
				if err := Put(t.Context(), db, messages, got); err != nil {
					t.Fatal(err)
				}
			})
			t.Run("refuses what does not fit", func(t *testing.T) {
				row := slices.Clone(rowOf(t, s, messages, "m1"))
				for what, c := range map[string]struct {
					column string
					value  any
					code   string
				}{
					"the place of another":  {"n", int64(99_999), "duplicate"},
					"no such conversation":  {"conversation_id", "nowhere", "not_found"},
					"a NUL":                 {"content", "a\x00b", "row_damaged"},
					"no UTF-8":              {"content", "\xff", "row_damaged"},
					"another type":          {"content", int64(1), "row_damaged"},
					"a type we do not have": {"content", 1, "row_damaged"},
					"no key":                {"n", nil, "row_damaged"},
				} {
					bad := slices.Clone(row)
					bad[messages.at(c.column)] = c.value
					err := Put(t.Context(), db, messages, []Row{bad})
					if fault.CodeOf(err) != c.code {
						t.Errorf("%s: %v", what, err)
					}
				}
				wantCode(t, Put(t.Context(), db, messages, []Row{row[1:]}), "row_damaged")
				hostile := messages
				hostile.Name = `messages" (x) VALUES (1); --`
				wantCode(t, Put(t.Context(), db, hostile, []Row{row}), "table_damaged")
				if got := digest(t, db); got != before {
					t.Error(cmp.Diff(before, got))
				}
			})
			t.Run("deletes with what refers to it", func(t *testing.T) {
				c1 := rowOf(t, s, conversations, "c1")
				trips := db.RoundTrips()
				if err := Delete(t.Context(), db, conversations, [][]any{conversations.KeyOf(c1), {int64(-5)}}); err != nil {
					t.Fatal(err)
				}
				if n := db.RoundTrips() - trips; n != 1 {
					t.Errorf("%d round trips", n)
				}
				if m, titles := ask(t, db, "fox", false, conversation.Candidates{}); m != "m2" || titles != "" {
					t.Errorf("found: %s %s", m, titles)
				}
				if err := Delete(t.Context(), db, messages, [][]any{messages.KeyOf(rowOf(t, s, messages, "m2"))}); err != nil {
					t.Fatal(err)
				}
				if m, _ := ask(t, db, "fox", false, conversation.Candidates{}); m != "" {
					t.Errorf("found: %s", m)
				}
				if n := orphanedWords(t, db); n != 0 {
					t.Errorf("%d rows of words without their text", n)
				}
			})
			t.Run("empties", func(t *testing.T) {
				head, err := NewTenantStore(db, nil).Head(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				s.Close() // who reads for long is waited for
				if err := emptyAll(t, db); err != nil {
					t.Fatal(err)
				}
				d, err := snapshot(t, db).Digest(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for _, td := range d.Tables {
					if want := map[string]int64{"log_head": 1, "usage": 1}[td.Name]; td.Rows != want {
						t.Errorf("%s has %d rows", td.Name, td.Rows)
					}
				}
				if u, err := NewTenantStore(db, nil).Used(t.Context()); err != nil || u.Messages != 0 || u.Bytes != 0 {
					t.Errorf("it counts %+v, %v", u, err)
				}
				if after, err := NewTenantStore(db, nil).Head(t.Context()); err != nil || after != head {
					t.Errorf("the log's head: %d after %d, %v", after, head, err)
				}
				if n := orphanedWords(t, db); n != 0 {
					t.Errorf("%d rows of words without their text", n)
				}
				put(t, db, func(b *Batch) { putConversation(b, "c1", "", "x", time.UnixMicro(0)) })
				if got := rowOf(t, snapshot(t, db), conversations, "c1"); got[conversations.at("n")].(int64) < 3 {
					t.Errorf("number %d was given out again", got[conversations.at("n")])
				}
			})
		})
	}
}

// rowOf finds a row by its id.
func rowOf(t testing.TB, s *Snapshot, tb Table, id string) Row {
	t.Helper()
	for after := []any(nil); ; {
		rows, next, err := s.Page(t.Context(), tb, after, 100, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if r[tb.at("id")] == id {
				return r
			}
		}
		if after = next; next == nil {
			t.Fatalf("there is no %s", id)
		}
	}
}

// orphanedWords counts rows of the index without a message or conversation.
func orphanedWords(t testing.TB, db *DB) (n int) {
	t.Helper()
	if err := db.Read(t.Context(), func(b *Batch) {
		b.One([]any{&n}, b.Dialect().Pick(`SELECT (SELECT count(*) FROM message_words WHERE rowid NOT IN (SELECT n FROM messages)) +
			(SELECT count(*) FROM title_words WHERE rowid NOT IN (SELECT n FROM conversations))`,
			`SELECT (SELECT count(*) FROM message_words WHERE n NOT IN (SELECT n FROM messages)) +
			(SELECT count(*) FROM title_words WHERE n NOT IN (SELECT n FROM conversations))`))
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestOlderSchema copies between databases that have had fewer migrations than this program knows.
func TestOlderSchema(t *testing.T) {
	old := fstest.MapFS{}
	for engine, number := range map[string]string{"sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT", "postgres": "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"} {
		text := `CREATE TABLE conversations (n NUMBER, id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, score DOUBLE PRECISION);
			CREATE TABLE log_head (one BIGINT NOT NULL PRIMARY KEY, seq BIGINT NOT NULL);
			CREATE TABLE somebody_elses (a TEXT PRIMARY KEY);
			CREATE TABLE title_words (n BIGINT PRIMARY KEY);`
		if engine == "sqlite" {
			text = strings.Replace(text, "CREATE TABLE title_words (n BIGINT PRIMARY KEY)",
				"CREATE VIRTUAL TABLE title_words USING fts5 (words, stems, content='', contentless_delete=1)", 1)
		} else {
			text = strings.Replace(text, "(n BIGINT PRIMARY KEY)", "(n BIGINT PRIMARY KEY, words tsvector)", 1)
		}
		old["migrations/tenant/0001_first."+engine+".sql"] = &fstest.MapFile{Data: []byte(strings.ReplaceAll(text, "NUMBER", number))}
	}
	lite, post := onSQLite(t), onPostgres(t)
	for _, db := range []*DB{lite, post} {
		if _, err := migrate(t.Context(), db, old, Tenant); err != nil {
			t.Fatal(err)
		}
	}
	put(t, lite, func(b *Batch) {
		for i, f := range []any{nil, 0.1, -1e300, 5e-324, 0.0, 3.0} {
			b.Exec(`INSERT INTO conversations (id, title, score) VALUES (?, 'old times', ?)`, fmt.Sprint(i), f)
		}
	})
	var names []string
	for _, tb := range tables(t, snapshot(t, lite)) {
		names = append(names, tb.Name)
	}
	if !slices.Equal(names, []string{"conversations", "log_head"}) {
		t.Errorf("tables: %v", names)
	}
	copied(t, lite, post)
	if a, b := digest(t, lite), digest(t, post); a != b {
		t.Error(cmp.Diff(a, b))
	}
}

// TestForeignCollation reads from a schema whose owner changed the order of its text.
func TestForeignCollation(t *testing.T) {
	db := onPostgres(t)
	if _, err := Migrate(t.Context(), db, Tenant); err != nil {
		t.Fatal(err)
	}
	put(t, db, func(b *Batch) {
		for _, k := range []string{"b", "B", "a", "A", "é", "z", "Z", "_"} {
			b.Exec(`INSERT INTO idempotency (scope, key, fingerprint, result, expires_at) VALUES (?, ?, ?, ?, 0)`,
				k, k, []byte{}, []byte{})
		}
	})
	want := digest(t, db)
	put(t, db, func(b *Batch) {
		b.Exec(`ALTER TABLE idempotency ALTER COLUMN scope TYPE TEXT COLLATE "en-x-icu",
			ALTER COLUMN key TYPE TEXT COLLATE "en-x-icu"`)
	})
	if got := digest(t, db); got != want {
		t.Error(cmp.Diff(want, got))
	}
}
