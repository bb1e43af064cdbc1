package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/words"
)

// handedOver moves a database to another while it is used: copied, fenced and switched in one.
func handedOver(t *testing.T, db, to *DB) *DB {
	t.Helper()
	former := db.Direct()
	if err := db.Switch(t.Context(), func() (*DB, error) {
		if err := Fence(t.Context(), former); err != nil {
			return nil, err
		}
		s, err := former.Snapshot(t.Context())
		if err != nil {
			return nil, err
		}
		defer s.Close()
		return to, copyAll(t.Context(), s, to, 500, 1<<20)
	}); err != nil {
		t.Fatal(err)
	}
	return former
}

// TestSwitchUnderLoad moves a tenant between the engines, back and forth, under writers and readers that notice nothing.
func TestSwitchUnderLoad(t *testing.T) {
	file, schema := tenantFiles(t), tenantSchemas(t)
	db := newDB(SQLite, file(t).on.Load().engine)
	shelf := newLibrary()
	shelf.shelve(t, db)
	put(t, db, func(b *Batch) { b.Exec(`UPDATE conversations SET branch_count = 2`) }) // their messages lie on branch 1
	w := drive(t, db, 6)
	reads, wrong := questions(t, db)
	for i, to := range []*DB{schema(t), file(t), schema(t)} {
		w.await(t, 25)
		former := handedOver(t, db, to)
		if got := db.Dialect(); got != []Dialect{Postgres, SQLite, Postgres}[i] {
			t.Errorf("on %s", got.Name())
		}
		if former.Dialect() == db.Dialect() {
			t.Error("the former engine has changed, too")
		}
		if is, err := Fenced(t.Context(), former); !is || err != nil {
			t.Error(is, err)
		}
	}
	w.await(t, 25)
	for _, err := range w.halt(t) {
		t.Error(err)
	}
	if n, bad := reads(), wrong(); n < 20 || len(bad) > 0 {
		t.Errorf("of %d questions these were answered wrongly: %q", n, bad)
	}
	if n := orphanedWords(t, db); n != 0 {
		t.Errorf("%d rows of words without their text", n)
	}
}

// questions asks the same again and again until the test ends: questions of several statements and round trips.
func questions(t *testing.T, db *DB) (reads func() int64, wrong func() []string) {
	t.Helper()
	var n atomic.Int64
	var mu sync.Mutex
	var bad []string
	stop := make(chan struct{})
	var wg sync.WaitGroup
	s := NewTenantStore(db, nil)
	q, err := words.ParseQuery("fox")
	if err != nil {
		t.Fatal(err)
	}
	complain := func(err error, what ...any) {
		mu.Lock()
		defer mu.Unlock()
		bad = append(bad, fmt.Sprint(err, what))
	}
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				found, err := s.Ask(t.Context(), conversation.Question{Count: true, Clauses: q.All,
					Messages: []conversation.Candidates{{Match: words.Match{All: q.All}, Limit: 1000}}})
				if err != nil || !slices.ContainsFunc(found.Found, func(d conversation.Doc) bool { return d.MessageID == "m1" }) {
					complain(err, len(found.Found))
				}
				list, _, err := s.ListMessages(t.Context(), "c1", conversation.MessageQuery{Limit: 5, All: true, Ascending: true})
				if err != nil || len(list) == 0 || list[0].ID != "m1" {
					complain(err, list)
				}
				n.Add(1)
			}
		})
	}
	var once sync.Once
	end := func() { once.Do(func() { close(stop) }); wg.Wait() }
	t.Cleanup(end)
	return n.Load, func() []string { end(); return bad }
}

func TestSwitch(t *testing.T) {
	both(t, func(t *testing.T, db *DB) {
		t.Run("waits for a write as a whole, and lets nobody in meanwhile", func(t *testing.T) {
			inside, goOn := make(chan struct{}), make(chan struct{})
			var order []string
			var mu sync.Mutex
			note := func(s string) { mu.Lock(); order = append(order, s); mu.Unlock() }
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := db.Write(t.Context(), func(tx *Tx) error {
					if err := tx.Run(func(b *Batch) { add(b, 1, "one") }); err != nil {
						return err
					}
					close(inside)
					<-goOn
					note("write")
					return tx.Commit(func(b *Batch) { add(b, 2, "two") })
				}); err != nil {
					t.Error(err)
				}
			})
			<-inside
			wg.Go(func() {
				if err := db.Switch(t.Context(), func() (*DB, error) {
					note("switch")
					var n int
					if err := db.Direct().Read(t.Context(), func(b *Batch) { b.One([]any{&n}, `SELECT count(*) FROM notes`) }); err != nil || n != 2 {
						t.Errorf("%d rows inside the switch, %v", n, err)
					}
					return nil, nil
				}); err != nil {
					t.Error(err)
				}
			})
			shut(t, db)
			wg.Go(func() {
				if n := count(t, db); n != 2 {
					t.Errorf("%d rows", n)
				}
				note("read")
			})
			// One that has no time waits no longer than it has.
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			wantCode(t, db.Read(ctx, func(b *Batch) { b.Exec(`SELECT 1`) }), "canceled")
			wantCode(t, db.Write(ctx, func(*Tx) error { return nil }), "canceled")
			_, err := db.Snapshot(ctx)
			wantCode(t, err, "canceled")
			wantCode(t, db.Switch(ctx, func() (*DB, error) { t.Error("two switches at once"); return nil, nil }), "canceled")
			close(goOn)
			wg.Wait()
			if want := []string{"write", "switch", "read"}; !slices.Equal(order, want) {
				t.Errorf("order: %v", order)
			}
		})
		t.Run("gives up when nobody leaves in time, and all goes on", func(t *testing.T) {
			inside, goOn := make(chan struct{}), make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				_ = db.Write(t.Context(), func(*Tx) error { close(inside); <-goOn; return nil })
			})
			<-inside
			ctx, cancel := context.WithCancel(t.Context())
			wg.Go(func() { shut(t, db); cancel() })
			wantCode(t, db.Switch(ctx, func() (*DB, error) { t.Error("inside"); return nil, nil }), "canceled")
			count(t, db)
			close(goOn)
			wg.Wait()
		})
		t.Run("changes nothing for an error, for nil or in a panic", func(t *testing.T) {
			before, failed := db.on.Load(), errors.New("no")
			if err := db.Switch(t.Context(), func() (*DB, error) { return onSQLite(t), failed }); !errors.Is(err, failed) {
				t.Error(err)
			}
			if err := db.Switch(t.Context(), func() (*DB, error) { return nil, nil }); err != nil {
				t.Error(err)
			}
			func() {
				defer func() { _ = recover() }()
				_ = db.Switch(t.Context(), func() (*DB, error) { panic("no") })
			}()
			if db.on.Load() != before {
				t.Error("something has changed")
			}
			count(t, db)
		})
		t.Run("leaves the former engine open, and closes the new one with itself", func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "next.db")
			next, err := OpenSQLite(t.Context(), SQLiteOptions{Path: path, Create: true})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := migrate(t.Context(), next, fixture(), Master); err != nil {
				t.Fatal(err)
			}
			own := db.Direct()
			want := count(t, own)
			if err := own.Switch(t.Context(), func() (*DB, error) { return next, nil }); err != nil {
				t.Fatal(err)
			}
			if n := count(t, own); n != 0 {
				t.Errorf("%d rows behind the switch", n)
			}
			if n := count(t, db); n != want {
				t.Errorf("%d rows in the former one", n)
			}
			if err := own.Close(); err != nil {
				t.Fatal(err)
			}
			wantCode(t, next.Read(t.Context(), func(b *Batch) { b.Exec(`SELECT 1`) }), "database_closed")
			count(t, db)
		})
	})
}

// shut waits until a switch has shut the gate.
func shut(t testing.TB, db *DB) {
	t.Helper()
	for {
		db.gate.mu.Lock()
		is := db.gate.shut != nil
		db.gate.mu.Unlock()
		if is {
			return
		}
		select {
		case <-t.Context().Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
}

func TestReadOnly(t *testing.T) {
	for name, db := range engines(t) {
		t.Run(name, func(t *testing.T) {
			s := NewTenantStore(db, nil)
			id := ident.New[ident.ConversationID]()
			put(t, db, func(b *Batch) { putConversation(b, id, "", "x", time.UnixMicro(0)) })
			why := fault.New(fault.Unavailable, "test", "tenant_suspended", "no writing")
			db.SetReadOnly(why)
			ran := false
			if err := db.Write(t.Context(), func(*Tx) error { ran = true; return nil }); err != error(why) || ran { //nolint:errorlint // the very error
				t.Errorf("%v, ran: %t", err, ran)
			}
			wantCode(t, emptyAll(t, db), "tenant_suspended")
			if _, err := s.FindConversation(t.Context(), id); err != nil {
				t.Error(err)
			}
			for what, do := range map[string]func() error{
				"Migrate": func() error { _, err := Migrate(t.Context(), db, Tenant); return err },
				"capture": func() error {
					return errors.Join(StartCapture(t.Context(), db), Fence(t.Context(), db), StopCapture(t.Context(), db), Unfence(t.Context(), db))
				},
				"a direct one": func() error { return db.Direct().Write(t.Context(), func(*Tx) error { return nil }) },
			} {
				if err := do(); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
			db.SetReadOnly(nil)
			put(t, db, func(b *Batch) { b.Exec(`DELETE FROM conversations`) })
		})
	}
}
