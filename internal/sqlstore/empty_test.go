package sqlstore

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/pgtest"
)

// emptyAll is Empty for tests that look at the rows alone.
func emptyAll(t testing.TB, db *DB) error {
	t.Helper()
	_, err := Empty(Patient(t.Context()), db)
	return err
}

// server is a database in a PostgreSQL, as its superuser sees it.
type server struct {
	t    *testing.T
	conn *pgx.Conn
}

func asSuperuser(t *testing.T, address string) server {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return server{t, conn}
}

func (s server) exec(sql string) {
	s.t.Helper()
	if _, err := s.conn.Exec(s.t.Context(), sql); err != nil {
		s.t.Fatal(err)
	}
}

func (s server) text(sql string) (found string) {
	s.t.Helper()
	if err := s.conn.QueryRow(s.t.Context(), sql).Scan(&found); err != nil {
		s.t.Fatal(err)
	}
	return found
}

// files counts the files of the database that hold the text, once all of them are as the server means them to be. Not
// among them are those of the planner's statistics: what these do not say any more is a deleted row of a catalog.
func (s server) files(text string) (n int) {
	s.t.Helper()
	s.exec(`CHECKPOINT`)
	statistics := s.text(`SELECT concat_ws(' ', '', pg_relation_filepath(oid), pg_relation_filepath(reltoastrelid), '')
		FROM pg_class WHERE oid = 'pg_statistic'::regclass`)
	folder := filepath.Join(s.text(`SHOW data_directory`), "base",
		s.text(`SELECT oid::text FROM pg_database WHERE datname = current_database()`))
	seen := 0
	if err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil // it went in between
		}
		name := filepath.Join("base", filepath.Base(folder), d.Name())
		if seen++; !strings.Contains(statistics, " "+name+" ") && bytes.Contains(raw, []byte(text)) {
			n++
		}
		return err
	}); err != nil || seen < 100 {
		s.t.Fatalf("%d files in the folder: %v", seen, err)
	}
	return n
}

// secret is in everything that fillSecret writes, and is a word.
const secret = "zebratext42"

// fillSecret writes the secret wherever text goes: rows, what is too long for its row, titles, the index of words.
func fillSecret(t *testing.T, db *DB) {
	t.Helper()
	noise := make([]byte, 40_000) // nothing that can be compressed
	for i := range noise {
		noise[i] = byte('a' + rand.IntN(26))
	}
	put(t, db, func(b *Batch) {
		for i := range 3 {
			c := ident.ConversationID(fmt.Sprintf("c%d", i))
			putConversation(b, c, "", "title of "+secret, time.UnixMicro(1))
			indexTitle(b, b.Dialect(), c, "title of "+secret)
			for k, text := range []string{"is my " + secret + " diary", secret + string(noise)} {
				m := ident.MessageID(fmt.Sprintf("m%d-%d", i, k))
				putMessage(b, m, c, k+1, conversation.User, text, time.UnixMicro(1))
				indexMessage(b, b.Dialect(), m, text)
			}
			b.Exec(`INSERT INTO systems (hash, body, created_at) VALUES (?, ?, 0)`, fmt.Sprintf("h%d", i), "prompt "+secret)
		}
	})
}

// inPostgres is where a tenant's tables can be in PostgreSQL: at the operator's, and at a user's own.
func inPostgres(t *testing.T) map[string]func(t *testing.T) (*DB, server) {
	t.Helper()
	return map[string]func(t *testing.T) (*DB, server){
		"hosted": func(t *testing.T) (*DB, server) {
			address := pgtest.URL(t)
			return tenantSchemasAt(t, address)(t), asSuperuser(t, address)
		},
		"external": func(t *testing.T) (*DB, server) {
			address := pgtest.URL(t)
			a, password := addressOf(t, address)
			x, id := openExternals(t, nil), ident.New[ident.DatabaseID]()
			if err := x.Provision(t.Context(), id, a, password); err != nil {
				t.Fatal(err)
			}
			db := x.Open(id, a, password)
			t.Cleanup(func() { _ = db.Close() })
			return db, asSuperuser(t, address)
		},
	}
}

// TestEmptyLeavesNothingInFiles looks for what was erased in the files of the server.
func TestEmptyLeavesNothingInFiles(t *testing.T) {
	for name, open := range inPostgres(t) {
		t.Run(name, func(t *testing.T) {
			db, s := open(t)
			fillSecret(t, db)
			s.exec(`ANALYZE`)
			if n := s.files(secret); n < 5 { // tables, what is beside them, indexes
				t.Fatalf("the text is in %d files: this finds nothing", n)
			}
			done, err := Empty(Patient(t.Context()), db)
			if err != nil || !done.Anew || !done.Forgotten {
				t.Fatalf("%+v, %v", done, err)
			}
			if n := s.text(`SELECT count(*)::text FROM pg_stats s WHERE to_jsonb(s)::text LIKE '%` + secret + `%'`); n != "0" {
				t.Errorf("the planner's statistics of %s columns keep it", n)
			}
			if n := s.files(secret); n != 0 {
				t.Errorf("the text is in %d files", n)
			}
			fillSecret(t, db) // it goes on being used
			if m, titles := ask(t, db, secret, false, conversation.Candidates{}); m == "" {
				t.Errorf("found: %q %q", m, titles)
			}
		})
	}
}

// TestEmptyTied: where something refers to our tables that is not ours, rows are deleted, and nothing else is claimed.
func TestEmptyTied(t *testing.T) {
	db, s := inPostgres(t)["external"](t)
	fillSecret(t, db)
	schema := s.text(`SELECT schemaname FROM pg_tables WHERE tablename = 'conversations'`)
	s.exec(`CREATE TABLE public.notes (id text REFERENCES ` + quoted(schema) + `.conversations (id) ON DELETE SET NULL);
		INSERT INTO public.notes VALUES ('c1');`)
	done, err := Empty(Patient(t.Context()), db)
	if err != nil || done.Anew || done.Forgotten {
		t.Errorf("%+v, %v", done, err)
	}
	if rows := s.text(`SELECT count(*)::text FROM public.notes`); rows != "1" {
		t.Errorf("%s of somebody else's rows are left", rows)
	}
	if m, titles := ask(t, db, secret, false, conversation.Candidates{}); m != "" || titles != "" {
		t.Errorf("found: %s %s", m, titles)
	}
	// Nor does a view keep anything from being emptied, but the planner from forgetting.
	s.exec(`DROP TABLE public.notes; CREATE VIEW public.mine AS SELECT content FROM ` + quoted(schema) + `.messages`)
	fillSecret(t, db)
	s.exec(`ANALYZE`)
	if done, err = Empty(Patient(t.Context()), db); err != nil || !done.Anew || done.Forgotten {
		t.Errorf("%+v, %v", done, err)
	}
}

// TestEmptyBesideReaders: who reads for long is not disturbed and keeps nobody else waiting; what is to be emptied waits.
func TestEmptyBesideReaders(t *testing.T) {
	db, _ := inPostgres(t)["hosted"](t)
	fillSecret(t, db)
	s, err := db.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	count := func(read func(ctx context.Context, fill func(*Batch)) error) (n int) {
		t.Helper()
		if err := read(t.Context(), func(b *Batch) { b.One([]any{&n}, `SELECT count(*) FROM messages`) }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := count(s.Read)
	trips := db.RoundTrips()
	ended := make(chan error, 1)
	go func() { ended <- emptyAll(t, db) }()
	for db.RoundTrips() < trips+5 { // it has given up once, and begun again
		if n := count(db.Read); n != before {
			t.Fatalf("%d rows of %d", n, before)
		}
		trips++ // that was this one
	}
	select {
	case err := <-ended:
		t.Fatalf("it did not wait: %v", err)
	default:
	}
	if n := count(s.Read); n != before {
		t.Errorf("%d rows of %d", n, before)
	}
	s.Close()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if n := count(db.Read); n != 0 {
		t.Errorf("%d rows", n)
	}
}

// TestEmptyWhileCapturing: a copy that follows a database does not take one that was emptied for unchanged.
func TestEmptyWhileCapturing(t *testing.T) {
	db, _ := inPostgres(t)["hosted"](t)
	to := tenantFiles(t)(t)
	if err := StartCapture(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	fillSecret(t, db)
	if done, err := Empty(Patient(t.Context()), db); err != nil || !done.Anew {
		t.Fatalf("%+v, %v", done, err)
	}
	if _, _, err := Follow(t.Context(), snapshot(t, db), to, 0); err == nil {
		t.Error("the copy goes on")
	}
	if err := StartCapture(t.Context(), db); err != nil { // another move may begin
		t.Error(err)
	}
}

// TestEmptyAmongOthers: nobody who reads and writes meanwhile, in whatever order, hears of it.
func TestEmptyAmongOthers(t *testing.T) {
	db, _ := inPostgres(t)["hosted"](t)
	fillSecret(t, db)
	over := make(chan struct{})
	var others sync.WaitGroup
	for i := range 3 {
		others.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				var n int
				err := db.Read(t.Context(), func(b *Batch) {
					for j := range 3 { // each begins elsewhere
						table := []string{"messages", "conversations", "systems"}[(i+j)%3]
						b.One([]any{&n}, `SELECT count(*) FROM `+quoted(table))
					}
				})
				if err == nil {
					err = db.Write(t.Context(), func(tx *Tx) error {
						return tx.Commit(func(b *Batch) {
							putConversation(b, ident.New[ident.ConversationID](), "", "x", time.UnixMicro(1))
							b.Exec(`UPDATE log_head SET seq = seq + 1`)
						})
					})
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 2 {
		if done, err := Empty(Patient(t.Context()), db); err != nil || !done.Anew {
			t.Errorf("%+v, %v", done, err)
		}
	}
	close(over)
	others.Wait()
}
