package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/project"
)

// placements opens a fresh tenant in each place where one can live.
func placements(t *testing.T) map[string]*DB {
	t.Helper()
	all := engines(t)
	all["external"] = externalSchemas(t)(t)
	return all
}

func capture(t testing.TB, db *DB) {
	t.Helper()
	if err := StartCapture(t.Context(), db); err != nil {
		t.Fatal(err)
	}
}

// captured lists all that was captured behind a position, as text.
func captured(t testing.TB, db *DB, after int64) (list []string, last int64) {
	t.Helper()
	s, err := db.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	changes, err := s.Captured(t.Context(), after, 100_000)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		list, last = append(list, fmt.Sprint(c.Table, c.Key)), max(last, c.N)
	}
	return list, last
}

// objects are all things in the schema, to see what was left behind.
func objects(t testing.TB, db *DB) (list []string) {
	t.Helper()
	if err := db.Read(t.Context(), func(b *Batch) {
		b.Query(func(s Scanner) error {
			var o string
			err := s.Scan(&o)
			list = append(list, o)
			return err
		}, b.Dialect().Pick(`SELECT type || ' ' || name FROM sqlite_schema WHERE name NOT LIKE 'sqlite\_%' ESCAPE '\' ORDER BY 1`,
			`SELECT 'relation ' || c.relname FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace WHERE s.nspname = current_schema()
			UNION ALL SELECT 'function ' || p.proname FROM pg_proc p JOIN pg_namespace s ON s.oid = p.pronamespace WHERE s.nspname = current_schema()
			UNION ALL SELECT 'trigger ' || g.tgname || ' on ' || c.relname FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid
				JOIN pg_namespace s ON s.oid = c.relnamespace WHERE s.nspname = current_schema() AND NOT g.tgisinternal
			ORDER BY 1`))
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

func TestCapture(t *testing.T) {
	for name, db := range placements(t) {
		t.Run(name, func(t *testing.T) {
			put(t, db, func(b *Batch) {
				b.Exec(`INSERT INTO projects (id, name, name_folded, description, instructions, status, priority, color, icon, tags,
					provider, model, settings, owner_id, owner_name, version, created_at, updated_at)
					VALUES ('p', '', '', '', '', '', '', '', '', '[]', '', '', '{}', '', '', 1, 0, 0)`)
				putConversation(b, "c1", "p", "x", time.UnixMicro(0))
				putConversation(b, "c2", "", "y", time.UnixMicro(0))
				putMessage(b, "m1", "c1", 1, conversation.User, "hello", time.UnixMicro(0))
				b.Exec(`INSERT INTO branches (conversation_id, branch, parent_branch, fork_depth) VALUES ('c1', 1, 0, 0)`)
			})
			clean := objects(t, db)
			capture(t, db)
			capture(t, db)
			all, _ := captured(t, db, 0)
			if len(all) != 0 {
				t.Errorf("captured before anything happened: %v", all)
			}
			position := int64(0)
			for _, step := range []struct {
				what string
				do   func(b *Batch)
				want []string
			}{
				{"an insert", func(b *Batch) { putMessage(b, "m2", "c1", 2, conversation.User, "x", time.UnixMicro(0)) }, []string{"messages[2]"}},
				{"updates of one row and of none", func(b *Batch) {
					b.Exec(`UPDATE messages SET content = 'y' WHERE id = 'm2'`)
					b.Exec(`UPDATE messages SET content = 'z' WHERE id = 'nobody'`)
				}, []string{"messages[2]"}},
				{"an upsert", func(b *Batch) {
					for range 2 {
						b.Exec(`INSERT INTO systems (hash, body, created_at) VALUES ('ä"\🧵', '', 0) ON CONFLICT (hash) DO UPDATE SET body = 'x'`)
					}
				}, []string{`systems[ä"\🧵]`, `systems[ä"\🧵]`}},
				{"a key of two columns that changes", func(b *Batch) {
					b.Exec(`UPDATE branches SET branch = 9007199254740993`)
				}, []string{"branches[c1 1]", "branches[c1 9007199254740993]"}},
				{"SET NULL", func(b *Batch) { b.Exec(`DELETE FROM projects`) }, []string{"conversations[1]", "projects[1]"}},
				{"a cascade", func(b *Batch) { b.Exec(`DELETE FROM conversations WHERE id = 'c1'`) },
					[]string{"branches[c1 9007199254740993]", "conversations[1]", "messages[1]", "messages[2]"}},
				{"words", func(b *Batch) { indexTitle(b, b.Dialect(), "c2", "new words") }, nil},
			} {
				put(t, db, step.do)
				got, last := captured(t, db, position)
				position = max(position, last)
				slices.Sort(got)
				if !slices.Equal(got, step.want) {
					t.Errorf("%s: %q", step.what, got)
				}
			}
			// What did not commit was not captured.
			failed := errors.New("no")
			if err := db.Write(t.Context(), func(tx *Tx) error {
				if err := tx.Run(func(b *Batch) { b.Exec(`DELETE FROM conversations`) }); err != nil {
					return err
				}
				return failed
			}); !errors.Is(err, failed) {
				t.Fatal(err)
			}
			if got, _ := captured(t, db, position); len(got) != 0 {
				t.Errorf("captured without a commit: %q", got)
			}
			for range 2 {
				if err := StopCapture(t.Context(), db); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(clean, objects(t, db)); diff != "" {
				t.Errorf("left behind: %s", diff)
			}
			put(t, db, func(b *Batch) { b.Exec(`DELETE FROM conversations`) })
		})
	}
}

// TestCaptureOfBytes captures in the master's tables, one of which has bytes for a key.
func TestCaptureOfBytes(t *testing.T) {
	for _, db := range []*DB{onSQLite(t), onPostgres(t)} {
		if _, err := Migrate(t.Context(), db, Master); err != nil {
			t.Fatal(err)
		}
		capture(t, db)
		put(t, db, func(b *Batch) {
			b.Exec(`INSERT INTO accounts (id, email, email_folded, password_hash, name, role, state, settings, tenant_id, version, created_at,
				updated_at) VALUES ('a', '', '', '', '', '', '', '', '', 1, 0, 0)`)
			b.Exec(`INSERT INTO sessions (id, account_id, current_hash, previous_until, generation, device, address, created_at,
				last_used_at, idle_until, ends_at, revoked_why) VALUES ('s', 'a', ?, 0, 0, '', '', 0, 0, 0, 0, '')`, []byte{1})
			b.Exec(`INSERT INTO spent_tokens (hash, session_id, spent_at) VALUES (?, 's', 0)`, []byte{0, 255})
		})
		got, _ := captured(t, db, 0)
		if want := []string{"accounts[a]", "sessions[s]", "spent_tokens[[0 255]]"}; !slices.Equal(got, want) {
			t.Errorf("%s: %q", db.Dialect().Name(), got)
		}
	}
}

// TestCaptureInOrderOfCommits lets the transaction that wrote first commit last.
func TestCaptureInOrderOfCommits(t *testing.T) {
	db := tenantSchemas(t)(t)
	capture(t, db)
	once := func(key string) func(*Batch) {
		return func(b *Batch) {
			b.Exec(`INSERT INTO idempotency (scope, key, fingerprint, result, expires_at) VALUES ('s', ?, ?, ?, 0)`, key, []byte{}, []byte{})
		}
	}
	// interleaved writes "late", then commits "soon" in another transaction, looks, and only then commits "late".
	interleaved := func(late, soon func(*Batch)) (seen []string, position int64) {
		if err := db.Write(t.Context(), func(tx *Tx) error {
			if err := tx.Run(late); err != nil {
				return err
			}
			put(t, db, soon)
			seen, position = captured(t, db, 0)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return seen, position
	}
	seen, position := interleaved(once("late"), once("soon"))
	if !slices.Equal(seen, []string{"idempotency[s soon]"}) {
		t.Errorf("seen before the other commits: %q", seen)
	}
	if rest, _ := captured(t, db, position); !slices.Equal(rest, []string{"idempotency[s late]"}) {
		t.Errorf("seen afterwards: %q", rest)
	}
	// The trap is real: rows that are numbered when they are written are missed by the same reader.
	note := func(key string) func(*Batch) {
		return func(b *Batch) { b.Exec(`INSERT INTO captured_changes (name, key) VALUES ('systems', ?)`, key) }
	}
	_, position = interleaved(note(`["late"]`), note(`["soon"]`))
	if rest, _ := captured(t, db, position); len(rest) != 0 {
		t.Errorf("this reader cannot miss anything: %q", rest)
	}
}

// traffic is what several clients do at once.
type traffic struct {
	s    *TenantStore
	stop chan struct{}
	wg   sync.WaitGroup

	mu   sync.Mutex
	errs []error
	acts int
}

// drive starts n writers that do everything that writes, until halt.
func drive(t testing.TB, db *DB, n int) *traffic {
	t.Helper()
	w := &traffic{s: NewTenantStore(db, nil), stop: make(chan struct{})}
	t.Cleanup(func() { w.halt(t) })
	for i := range n {
		dice := rand.New(rand.NewPCG(uint64(i), 17))
		w.wg.Go(func() {
			for {
				select {
				case <-w.stop:
					return
				default:
				}
				err := w.act(t.Context(), dice)
				w.mu.Lock()
				w.acts++
				if err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Invalid) {
					w.errs = append(w.errs, err)
				}
				w.mu.Unlock()
			}
		})
	}
	return w
}

func (w *traffic) did() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.acts
}

// await waits until the writers have done n things more.
func (w *traffic) await(t testing.TB, n int) {
	t.Helper()
	for from := w.did(); w.did() < from+n; {
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// halt stops the writers and returns what went wrong.
func (w *traffic) halt(t testing.TB) []error {
	select {
	case <-w.stop:
	default:
		close(w.stop)
	}
	w.wg.Wait()
	return w.errs
}

func (w *traffic) act(ctx context.Context, dice *rand.Rand) error {
	change := event.NewChange(ident.Actor{Account: "usr_ada", Name: "Ada"}, time.Now())
	change.Add("message.appended", "x", map[string]any{})
	conversations, _, err := w.s.ListConversations(ctx, conversation.Query{Limit: 20})
	if err != nil {
		return err
	}
	if len(conversations) < 3 || dice.IntN(10) == 0 {
		p := project.Project{ID: ident.New[ident.ProjectID](), Details: project.Details{Name: "p"}}
		if err := w.s.InsertProject(ctx, p, change); err != nil {
			return err
		}
		change.Events[0].ID = ident.New[ident.EventID]()
		return w.s.InsertConversation(ctx, conversation.Conversation{ID: ident.New[ident.ConversationID](),
			Details: conversation.Details{Title: "the fox of " + string(p.ID), ProjectID: p.ID}}, change)
	}
	c := conversations[dice.IntN(len(conversations))]
	if c.ID == "c1" || c.ID == "c2" { // the library's stay
		return nil
	}
	switch dice.IntN(12) {
	case 0:
		return w.s.DeleteConversation(ctx, c.ID, func(conversation.Conversation) (event.Change, error) { return change, nil })
	case 1:
		if c.ProjectID == "" {
			return nil
		}
		return w.s.DeleteProject(ctx, c.ProjectID, dice.IntN(2) == 0, func(project.Project, int64) (event.Change, error) { return change, nil })
	case 2:
		_, err := w.s.UpdateConversation(ctx, c.ID, func(c conversation.Conversation) (conversation.Conversation, event.Change, error) {
			c.Title += "!"
			c.ProjectID = ""
			return c, change, nil
		})
		return err
	case 3:
		_, err := w.s.SweepOnces(ctx, time.Now().Add(time.Hour))
		return err
	case 4:
		return w.s.Trail().Append(ctx, audit.Entry{ID: ident.New[ident.EntryID](), At: time.Now(), Action: "x"})
	}
	change.Once = &event.Once{Scope: "s", Key: string(ident.New[ident.EventID]()), ExpiresAt: time.Now().Add(time.Minute)}
	ask := conversation.Message{ID: ident.New[ident.MessageID](), Role: conversation.User, Content: "who is the fox?", State: conversation.Completed}
	answer := conversation.Message{ID: ident.New[ident.MessageID](), Role: conversation.Assistant, State: conversation.Streaming}
	turn := conversation.Turn{ID: ident.New[ident.TurnID](), Conversation: c.ID, UserMessage: ask.ID, AssistantMessage: answer.ID,
		State: conversation.Streaming, Node: "n", SystemHash: fmt.Sprint("hash ", dice.IntN(5)), StartedAt: time.Now()}
	answer.Turn = turn.ID
	if _, _, err = w.s.Append(ctx, c.ID, conversation.Where{Root: dice.IntN(5) == 0},
		func(conversation.Spot) (conversation.Entry, event.Change, error) {
			return conversation.Entry{Messages: []conversation.Message{ask, answer}, Turn: &turn, System: "be brief"}, change, nil
		}); err != nil {
		return err
	}
	said := ""
	for range dice.IntN(4) {
		if ok, err := w.s.FlushTurn(ctx, turn, len(said), func() string { return "a word " }, time.Now()); err != nil || !ok {
			return err
		}
		said += "a word "
	}
	if dice.IntN(3) == 0 {
		return nil
	}
	_, err = w.s.EndTurn(ctx, turn.ID, func(t conversation.Turn, m conversation.Message) (conversation.Ending, event.Change, error) {
		t.State, m.State, m.Content = conversation.Completed, conversation.Completed, said+"fox "+string(m.ID)
		end := event.NewChange(ident.Actor{Account: "usr_ada"}, time.Now())
		end.Add("turn.completed", string(turn.ID), map[string]any{})
		return conversation.Ending{Turn: t, Message: m}, end, nil
	})
	return err
}

// TestFollowMissesNothing walks behind eight writers in small steps and compares with all that was captured.
func TestFollowMissesNothing(t *testing.T) {
	for name, db := range placements(t) {
		t.Run(name, func(t *testing.T) {
			w := drive(t, db, 8)
			w.await(t, 20)
			capture(t, db)
			var walked []string
			position := int64(0)
			step := func() {
				list, last := captured(t, db, position)
				walked, position = append(walked, list...), max(position, last)
			}
			for from := w.did(); w.did() < from+150; {
				step()
			}
			if errs := w.halt(t); len(errs) > 0 {
				t.Fatal(errs[0])
			}
			step()
			all, _ := captured(t, db, 0)
			if len(all) < 150 || !slices.Equal(walked, all) {
				t.Errorf("walked over %d of %d changes", len(walked), len(all))
			}
		})
	}
}

// TestCopyAndFollowUnderLoad is a move in small: copy, follow, fence, follow to the end, compare.
func TestCopyAndFollowUnderLoad(t *testing.T) {
	file, schema, external := tenantFiles(t), tenantSchemas(t), externalSchemas(t)
	for _, c := range []struct {
		name     string
		from, to func(testing.TB) *DB
	}{{"sqlite to postgres", file, schema}, {"sqlite to external", file, external}, {"postgres to sqlite", schema, file},
		{"postgres to external", schema, external}, {"external to sqlite", external, file}, {"external to postgres", external, schema}} {
		t.Run(c.name, func(t *testing.T) {
			from, to := c.from(t), c.to(t)
			populated(t, from)
			w := drive(t, from, 8)
			w.await(t, 20)
			capture(t, from)
			s := snapshot(t, from)
			if err := copyAll(t.Context(), s, to, 50, 64<<10); err != nil {
				t.Fatal(err)
			}
			s.Close()
			position, rounds, rows := int64(0), 0, 0
			follow := func() {
				s, err := from.Snapshot(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				next, n, err := Follow(t.Context(), s, to, position)
				if err != nil {
					t.Fatal(err)
				}
				position, rounds, rows = next, rounds+1, rows+n
			}
			for from := w.did(); w.did() < from+60; {
				follow()
			}
			if err := Fence(t.Context(), from); err != nil {
				t.Fatal(err)
			}
			follow()
			w.await(t, 8) // they go on, and are refused
			for _, err := range w.halt(t) {
				if fault.CodeOf(err) != "tenant_moved" {
					t.Fatal(err)
				}
			}
			if err := StopCapture(t.Context(), from); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(digest(t, from), digest(t, to)); diff != "" {
				t.Errorf("after %d rounds: %s", rounds, diff)
			}
			if diff := cmp.Diff(found(t, from), found(t, to)); diff != "" {
				t.Error(diff)
			}
			if n := orphanedWords(t, to); n != 0 {
				t.Errorf("%d rows of words without their text", n)
			}
			if rounds < 2 || rows < 50 {
				t.Errorf("only %d rounds with %d rows", rounds, rows)
			}
			goOn(t, to, 0)
		})
	}
}

func TestFence(t *testing.T) {
	for name, db := range placements(t) {
		t.Run(name, func(t *testing.T) {
			populated(t, db)
			s := snapshot(t, db)
			messages := table(t, s, "messages")
			m1 := rowOf(t, s, messages, "m1")
			s.Close()
			clean, before := objects(t, db), digest(t, db)
			capture(t, db)
			if is, err := Fenced(t.Context(), db); is || err != nil {
				t.Fatal(is, err)
			}
			for range 2 {
				if err := Fence(t.Context(), db); err != nil {
					t.Fatal(err)
				}
			}
			if is, err := Fenced(t.Context(), db); !is || err != nil {
				t.Fatal(is, err)
			}
			refused := map[string]func(b *Batch){
				"capture": func(b *Batch) { b.Exec(`INSERT INTO captured_changes (name, key) VALUES ('x', '[]')`) },
				"migration": func(b *Batch) {
					b.Exec(`INSERT INTO schema_migrations (version, name, checksum, applied_at) VALUES (99, '', '', 0)`)
				},
			}
			for _, name := range tenantTables {
				refused["delete "+name] = func(b *Batch) { b.Exec(`DELETE FROM ` + name) }
			}
			refused["update"] = func(b *Batch) { b.Exec(`UPDATE log_head SET seq = 0`) }
			refused["insert"] = func(b *Batch) { putConversation(b, "new", "", "x", time.UnixMicro(0)) }
			if db.Dialect() == Postgres {
				refused["truncate"] = func(b *Batch) { b.Exec(`TRUNCATE idempotency`) }
				refused["words"] = func(b *Batch) { b.Exec(`DELETE FROM message_words`) }
			}
			for what, do := range refused {
				trips := db.RoundTrips()
				err := db.Write(t.Context(), func(tx *Tx) error { return tx.Commit(do) })
				if fault.CodeOf(err) != "tenant_moved" || !fault.Is(err, fault.Unavailable) {
					t.Errorf("%s: %v", what, err)
				}
				if f, ok := errors.AsType[*fault.Error](err); ok && f.After != time.Second {
					t.Errorf("%s: come back after %v", what, f.After)
				}
				if n := db.RoundTrips() - trips; n != 1 {
					t.Errorf("%s: tried %d times", what, n)
				}
			}
			for what, err := range map[string]error{
				"Put":          Put(t.Context(), db, messages, []Row{m1}),
				"Delete":       Delete(t.Context(), db, messages, [][]any{messages.KeyOf(m1)}),
				"Empty":        emptyAll(t, db),
				"StartCapture": StartCapture(t.Context(), db),
			} {
				if fault.CodeOf(err) != "tenant_moved" {
					t.Errorf("%s: %v", what, err)
				}
			}
			if got := digest(t, db); got != before {
				t.Error(cmp.Diff(before, got))
			}
			if err := StopCapture(t.Context(), db); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := Unfence(t.Context(), db); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(clean, objects(t, db)); diff != "" {
				t.Errorf("left behind: %s", diff)
			}
			if is, err := Fenced(t.Context(), db); is || err != nil {
				t.Error(is, err)
			}
			goOn(t, db, 1)
		})
	}
}

// TestFenceBetweenWriters closes and opens the fence while eight write: whatever a writer was told was written is there.
func TestFenceBetweenWriters(t *testing.T) {
	for name, db := range placements(t) {
		t.Run(name, func(t *testing.T) {
			w := drive(t, db, 8)
			w.await(t, 20)
			for range 3 {
				if err := Fence(t.Context(), db); err != nil {
					t.Fatal(err)
				}
				before := digest(t, db)
				w.await(t, 16)
				if got := digest(t, db); got != before {
					t.Fatalf("written behind the fence: %s", cmp.Diff(before, got))
				}
				if err := Unfence(t.Context(), db); err != nil {
					t.Fatal(err)
				}
				w.await(t, 16)
			}
			moved := 0
			for _, err := range w.halt(t) {
				if fault.CodeOf(err) != "tenant_moved" {
					t.Error(err)
				}
				moved++
			}
			if moved == 0 {
				t.Error("nobody met the fence")
			}
		})
	}
}

// TestStopsBesideALongReader takes capture and fence away while somebody reads: they end at once, and are removed when
// the reader is gone; meanwhile others can read.
func TestStopsBesideALongReader(t *testing.T) {
	db := tenantSchemas(t)(t)
	clean := objects(t, db)
	capture(t, db)
	if err := Fence(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	s := snapshot(t, db)
	digestOf(t, s) // now it holds a lock on every table
	for what, stop := range map[string]func(context.Context, *DB) error{"StopCapture": StopCapture, "Unfence": Unfence} {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- stop(ctx, db) }()
		awaitRemoval(t, db, true)
		cancel()
		if err := <-ended; err == nil {
			t.Errorf("%s ends beside a reader", what)
		}
		awaitRemoval(t, db, false) // the server hears late of who has gone
	}
	put(t, db, func(b *Batch) { putConversation(b, "c1", "", "x", time.UnixMicro(0)) })
	if err := db.Read(t.Context(), func(b *Batch) {
		var n int
		b.One([]any{&n}, `SELECT count(*) FROM captured_changes`)
		b.Query(func(Scanner) error {
			if n != 0 {
				t.Errorf("%d changes were captured after the end", n)
			}
			return nil
		}, `SELECT 1`)
	}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	for _, stop := range []func(context.Context, *DB) error{StopCapture, Unfence} {
		if err := stop(t.Context(), db); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(clean, objects(t, db)); diff != "" {
		t.Errorf("left behind: %s", diff)
	}
	if !strings.Contains(strings.Join(clean, " "), "messages") {
		t.Error("nothing was compared")
	}
}

// awaitRemoval waits until somebody waits for the last reader of a table, or nobody does.
func awaitRemoval(t testing.TB, db *DB, want bool) {
	t.Helper()
	for waiting := !want; waiting != want; {
		if err := db.Read(t.Context(), func(b *Batch) {
			b.One([]any{&waiting}, `SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkCapture shows what capturing costs writers: eight of them, each in a conversation of its own.
func BenchmarkCapture(b *testing.B) {
	for _, engine := range []struct {
		name string
		open func(testing.TB) func(testing.TB) *DB
	}{{"sqlite", tenantFiles}, {"postgres", tenantSchemas}} {
		for _, on := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/capturing=%t", engine.name, on), func(b *testing.B) {
				db := engine.open(b)(b)
				if on {
					capture(b, db)
				}
				s := NewTenantStore(db, nil)
				var next atomic.Int64
				b.SetParallelism(4)
				b.ResetTimer()
				b.RunParallel(func(p *testing.PB) {
					c := conversation.Conversation{ID: ident.ConversationID(fmt.Sprint("c", next.Add(1)))}
					change := func() event.Change {
						ch := event.NewChange(ident.Actor{Account: "usr_ada"}, time.Now())
						ch.Add("message.appended", "x", map[string]any{})
						return ch
					}
					if err := s.InsertConversation(b.Context(), c, change()); err != nil {
						b.Error(err)
					}
					for p.Next() {
						m := conversation.Message{ID: ident.New[ident.MessageID](), Role: conversation.User,
							Content: "how are you today?", State: conversation.Completed}
						if _, _, err := s.Append(b.Context(), c.ID, conversation.Where{},
							func(conversation.Spot) (conversation.Entry, event.Change, error) {
								return conversation.Entry{Messages: []conversation.Message{m}}, change(), nil
							}); err != nil {
							b.Error(err)
						}
					}
				})
			})
		}
	}
}
