package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/seal"
)

// scripted is an engine that does what a test says.
type scripted struct {
	calls atomic.Int32
	do    func(ctx context.Context) error
}

func (e *scripted) read(ctx context.Context, _ *Batch) error {
	e.calls.Add(1)
	return e.do(ctx)
}

func (e *scripted) begin(context.Context) (session, error) { return &scriptedSession{e}, nil }
func (e *scripted) view(context.Context) (view, error)     { return nil, nil }
func (e *scripted) close() error                           { return nil }

type scriptedSession struct{ e *scripted }

func (s *scriptedSession) run(ctx context.Context, b *Batch, _ bool) error { return s.e.read(ctx, b) }
func (s *scriptedSession) script(ctx context.Context, _ string) error      { return s.e.read(ctx, nil) }
func (s *scriptedSession) end()                                            {}

// cut is what a broken connection makes of a call.
func cut() error {
	return unavailable("sqlstore", "unavailable", "away", &driverError{engine: "postgres", code: "connection"})
}

// behindALink is a database whose engine the test plays, on a link that asks nobody.
func behindALink(t *testing.T) (*DB, *scripted, *link) {
	t.Helper()
	config, err := pgxpool.ParseConfig("postgres://u:p@127.0.0.1:1/d")
	if err != nil {
		t.Fatal(err)
	}
	l := newLink(config)
	l.ask = func(context.Context) {}
	e := &scripted{do: func(context.Context) error { return nil }}
	return newDB(Postgres, e).guard(l), e, l
}

func look(ctx context.Context, db *DB) error {
	return db.Read(ctx, func(b *Batch) { b.Exec(`SELECT 1`) })
}

func tell(ctx context.Context, db *DB) error {
	return db.Write(ctx, func(tx *Tx) error { return tx.Commit(func(b *Batch) { b.Exec(`SELECT 1`) }) })
}

func TestTheCircuitOpensAndCloses(t *testing.T) {
	for name, call := range map[string]func(context.Context, *DB) error{"reading": look, "writing": tell} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db, e, _ := behindALink(t)
				e.do = func(context.Context) error { return cut() }
				for range trips {
					if !db.Reachable() {
						t.Fatal("open too early")
					}
					wantCode(t, call(t.Context(), db), "database_unreachable")
				}
				refused := func() {
					t.Helper()
					before := e.calls.Load()
					err := call(t.Context(), db)
					wantCode(t, err, "database_unreachable")
					f, ok := errors.AsType[*fault.Error](err)
					if !ok || f.Class != fault.Unavailable || f.After <= 0 || e.calls.Load() != before || db.Reachable() {
						t.Fatalf("%+v, %d calls more, reachable %v", f, e.calls.Load()-before, db.Reachable())
					}
				}
				refused()
				time.Sleep(rest + time.Millisecond)
				// One is let through; whoever comes meanwhile is not, and its failure opens the circuit again.
				gate := make(chan struct{})
				e.do = func(context.Context) error { <-gate; return cut() }
				first := make(chan error)
				go func() { first <- call(t.Context(), db) }()
				synctest.Wait()
				refused()
				close(gate)
				wantCode(t, <-first, "database_unreachable")
				refused()
				time.Sleep(rest + time.Millisecond)
				e.do = func(context.Context) error { return nil }
				for range 2 {
					if err := call(t.Context(), db); err != nil || !db.Reachable() {
						t.Fatalf("%v, reachable %v", err, db.Reachable())
					}
				}
			})
		})
	}
}

func TestWhatOpensTheCircuit(t *testing.T) {
	pg := func(code string) error { return postgresFault("sqlstore", &pgconn.PgError{Code: code}) }
	for _, c := range []struct {
		name  string
		err   func(ctx context.Context) error
		opens bool
	}{
		{"a broken connection", func(context.Context) error { return cut() }, true},
		{"no answer to a commit", func(context.Context) error { return unavailable("", "outcome_unknown", "", nil) }, true},
		{"a caller who left at the commit", func(context.Context) error {
			return unavailable("", "outcome_unknown", "", &driverError{engine: "postgres", code: abandoned})
		}, false},
		{"a server that stops", func(context.Context) error { return pg("57P01") }, true},
		{"a server that starts", func(context.Context) error { return pg("57P03") }, true},
		{"a server that is full", func(context.Context) error { return pg("53300") }, true},
		{"a refused login", func(context.Context) error { return pg("28P01") }, true},
		{"a user's server that is away", func(context.Context) error {
			return unavailable("", "address_unreachable", "", &driverError{engine: "postgres", code: "connect"})
		}, true},
		{"a user's server that is silent", func(context.Context) error { return cutFault("", errSilent) }, true},
		{"a user's server that talks nonsense", func(context.Context) error { return cutFault("", errStrange) }, false},
		{"no room for connections to users' servers", func(context.Context) error {
			return unavailable("", "too_many_connections", "", nil)
		}, false},
		{"a violated constraint", func(context.Context) error { return pg("23505") }, false},
		{"a busy row", func(context.Context) error { return pg("55P03") }, false},
		{"a deadlock", func(context.Context) error { return pg("40P01") }, false},
		{"a slow statement", func(context.Context) error { return pg("57014") }, false},
		{"a full disk", func(context.Context) error { return pg("53100") }, false},
		{"a missing table", func(context.Context) error { return pg("42P01") }, false},
		{"the caller's end", func(ctx context.Context) error { return gone(ctx, nil) }, false},
		{"an error of the caller's", func(context.Context) error { return errors.New("x") }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			db, e, _ := behindALink(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			e.do = func(ctx context.Context) error { cancel(); return c.err(ctx) }
			for range trips {
				_ = db.on.Load().engine.read(ctx, nil)
			}
			if db.Reachable() == c.opens {
				t.Errorf("opens: %v", !db.Reachable())
			}
			again, e, _ := behindALink(t)
			e.do = func(context.Context) error { return cut() }
			_, _ = look(t.Context(), again), look(t.Context(), again)
			e.do = func(ctx context.Context) error { return c.err(ctx) }
			_ = again.on.Load().engine.read(ctx, nil)
			if again.Reachable() == c.opens {
				t.Errorf("after two failures it opens: %v", !again.Reachable())
			}
		})
	}
}

// While nobody asks a server that cannot let us in, callers hear why, as long as that is the newest that is known.
func TestWhoIsTurnedAwayHearsWhy(t *testing.T) {
	for name, call := range map[string]func(context.Context, *DB) error{"reading": look, "writing": tell} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db, e, l := behindALink(t)
				l.silence = 0 // as on the way to users' servers, whose connections are watched themselves
				refused := func(code string) func(context.Context) error {
					return func(context.Context) error {
						return unavailable("", code, "what to do", &driverError{engine: "postgres", code: "connect"})
					}
				}
				turnedAway := func(code string) {
					t.Helper()
					before := e.calls.Load()
					err := call(t.Context(), db)
					f, ok := errors.AsType[*fault.Error](err)
					if !ok || f.Code != code || f.Class != fault.Unavailable || f.After != rest || e.calls.Load() != before || db.Reachable() {
						t.Errorf("%+v, %d calls more", f, e.calls.Load()-before)
					}
					if !Unreachable(err) { // or a migration would take it for a failed one
						t.Errorf("%v counts as an answer", err)
					}
				}
				e.do = refused("login_refused")
				for range trips {
					wantCode(t, call(t.Context(), db), "login_refused")
				}
				turnedAway("login_refused")
				time.Sleep(rest + time.Millisecond)
				e.do = refused("address_unreachable")
				wantCode(t, call(t.Context(), db), "address_unreachable")
				turnedAway("database_unreachable")
				time.Sleep(rest + time.Millisecond)
				e.do = refused("database_missing")
				wantCode(t, call(t.Context(), db), "database_missing")
				turnedAway("database_missing")
				time.Sleep(rest + time.Millisecond)
				e.do = func(context.Context) error { return nil }
				if err := call(t.Context(), db); err != nil {
					t.Fatal(err)
				}
				e.do = func(context.Context) error { return cut() }
				for range trips {
					_ = call(t.Context(), db)
				}
				turnedAway("database_unreachable")
			})
		})
	}
}

// Whoever tries for the others and comes to nothing by itself must not leave them waiting.
func TestTheOneWhoTriesCanFailByItself(t *testing.T) {
	for name, try := range map[string]func(db *DB, e *scripted){
		"it panics": func(db *DB, e *scripted) {
			defer func() { _ = recover() }()
			e.do = func(context.Context) error { panic("x") }
			_ = look(context.Background(), db)
		},
		"it goes away": func(db *DB, e *scripted) {
			ctx, cancel := context.WithCancel(context.Background())
			e.do = func(ctx context.Context) error { cancel(); return gone(ctx, nil) }
			_ = look(ctx, db)
		},
		"it writes nothing": func(db *DB, _ *scripted) {
			s, err := db.on.Load().engine.begin(context.Background())
			if err == nil {
				s.end()
			}
		},
		"it panics in a transaction": func(db *DB, e *scripted) {
			defer func() { _ = recover() }()
			e.do = func(context.Context) error { panic("x") }
			_ = tell(context.Background(), db)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db, e, _ := behindALink(t)
				e.do = func(context.Context) error { return cut() }
				for range trips {
					_ = look(t.Context(), db)
				}
				time.Sleep(rest + time.Millisecond)
				try(db, e)
				e.do = func(context.Context) error { return nil }
				if err := look(t.Context(), db); err != nil || !db.Reachable() {
					t.Error(err)
				}
			})
		})
	}
}

func TestSilenceIsCutOff(t *testing.T) {
	hangs := func(ctx context.Context) error { <-ctx.Done(); return gone(ctx, nil) }
	t.Run("after less than two seconds", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			db, e, l := behindALink(t)
			asked := atomic.Int32{}
			l.ask = func(ctx context.Context) { asked.Add(1); <-ctx.Done() }
			defer l.close()
			e.do = hangs
			for _, call := range []func(context.Context, *DB) error{look, tell} {
				began := time.Now()
				wantCode(t, call(t.Context(), db), "database_unreachable")
				if took := time.Since(began); took != silence {
					t.Errorf("it took %v", took)
				}
			}
			if asked.Load() == 0 {
				t.Error("nobody asked the server")
			}
		})
	})
	t.Run("not while the server says something", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			db, e, l := behindALink(t)
			var silent atomic.Bool
			l.ask = func(context.Context) {
				if !silent.Load() {
					l.heard.Store(time.Now().UnixNano())
				}
			}
			defer l.close()
			e.do = func(ctx context.Context) error { // a lock that somebody holds
				select {
				case <-ctx.Done():
					return gone(ctx, nil)
				case <-time.After(time.Minute):
					return nil
				}
			}
			if err := look(t.Context(), db); err != nil {
				t.Error(err)
			}
			// And when it falls silent in the end, that is noticed.
			e.do = func(ctx context.Context) error {
				time.Sleep(time.Minute)
				silent.Store(true)
				<-ctx.Done()
				return gone(ctx, nil)
			}
			wantCode(t, look(t.Context(), db), "database_unreachable")
		})
	})
	t.Run("the caller's own end stays what it is", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			db, e, l := behindALink(t)
			defer l.close()
			e.do = hangs
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			wantCode(t, look(ctx, db), "timeout")
		})
	})
}

// A server that takes connections and never says anything, as one that is frozen.
func TestAFrozenServer(t *testing.T) {
	address := pgtest.URL(t)
	h := openHost(t, address, 4)
	_, db := provision(t, h)
	if err := look(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = l.Addr().String()
	config, err := poolConfig(seal.Secret(u.String()), 2)
	if err != nil {
		t.Fatal(err)
	}
	deaf := newLink(config)
	defer deaf.close()
	deaf.silence, deaf.suspicion = 200*time.Millisecond, 50*time.Millisecond
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	frozen := OpenPostgres(pool, PostgresOptions{}).guard(deaf)
	for range trips {
		wantCode(t, look(t.Context(), frozen), "database_unreachable")
	}
	if frozen.Reachable() {
		t.Error("it counts as reachable")
	}
	wantCode(t, tell(t.Context(), frozen), "database_unreachable")
	if err := look(t.Context(), db); err != nil || !db.Reachable() {
		t.Errorf("the neighbour's: %v", err)
	}
	_ = l.Close() // what waits in its queue is reset, which lets the pool close at once
	pool.Close()
}

// However a server ends the connections that lie idle, nobody notices.
func TestBrokenIdleConnections(t *testing.T) {
	address := pgtest.URL(t)
	h := openHost(t, address, 4)
	_, db := provision(t, h)
	fill := func() {
		t.Helper()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := db.Read(t.Context(), func(b *Batch) { b.Exec(`SELECT pg_sleep(0.05)`) }); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	for name, call := range map[string]func() error{
		"reading": func() error { return look(t.Context(), db) },
		"writing": func() error {
			return db.Write(t.Context(), func(tx *Tx) error {
				if err := tx.Run(func(b *Batch) { b.Exec(`SELECT 1`) }); err != nil {
					return err
				}
				return tx.Commit(func(b *Batch) { b.Exec(`SELECT 1`) })
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			for range 3 {
				fill()
				if n := h.runtime.Stat().IdleConns(); n < 2 {
					t.Fatalf("%d idle connections: too few to prove anything", n)
				}
				run(t, address, fmt.Sprintf(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '%s'`, h.login))
				for range 4 {
					if err := call(); err != nil {
						t.Fatal(err)
					}
				}
				if !db.Reachable() {
					t.Fatal("the circuit opened")
				}
			}
		})
	}
}

// Whoever waits for a lock hears nothing, so the server is asked, and its answer counts as a sign of life.
func TestAHeldLockIsNoSilence(t *testing.T) {
	h := openHost(t, pgtest.URL(t), 4)
	// Asked early, and given time enough to answer on any machine.
	h.link.silence, h.link.suspicion = 30*time.Second, 20*time.Millisecond
	heard := make(chan bool, 1000)
	real := h.link.ask
	h.link.ask = func(context.Context) {
		before := h.link.heard.Load()
		real(t.Context()) // however long it takes on a busy machine
		heard <- h.link.heard.Load() > before
	}
	_, db := provision(t, h)
	write(t, db, `INSERT INTO systems (hash, body, created_at) VALUES ('h', 'x', 0)`)
	waiting := make(chan error, 1)
	err := db.Write(t.Context(), func(tx *Tx) error {
		if err := tx.Run(func(b *Batch) { b.Exec(`UPDATE systems SET body = 'y' WHERE hash = 'h'`) }); err != nil {
			return err
		}
		go func() {
			waiting <- db.Write(t.Context(), func(tx *Tx) error {
				return tx.Commit(func(b *Batch) { b.Exec(`UPDATE systems SET body = 'z' WHERE hash = 'h'`) })
			})
		}()
		select {
		case ok := <-heard:
			if !ok {
				t.Error("the server was asked, and nothing was heard")
			}
		case err := <-waiting:
			return fmt.Errorf("it did not wait: %w", err)
		}
		return tx.Commit(nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err != nil {
		t.Fatal(err)
	}
}

// Callers who leave while COMMIT runs do not know whether it happened; that says nothing about the server.
func TestCallersWhoLeaveAtTheCommit(t *testing.T) {
	address := pgtest.URL(t)
	h := openHost(t, address, 4)
	_, db := provision(t, h)
	server := asSuperuser(t, address)
	for i := range trips + 1 {
		sleep := fmt.Sprintf(`SELECT pg_sleep(6%d)`, i) // each is another one
		ctx, leave := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- db.Write(ctx, func(tx *Tx) error {
				if err := tx.Run(func(b *Batch) { b.Exec(`SELECT 1`) }); err != nil {
					return err
				}
				return tx.Commit(func(b *Batch) { b.Exec(sleep) })
			})
		}()
		for len(ended) == 0 && server.text(`SELECT count(*)::text FROM pg_stat_activity WHERE state = 'active' AND query = '`+sleep+`'`) == "0" {
			time.Sleep(time.Millisecond)
		}
		leave()
		wantCode(t, <-ended, "outcome_unknown")
	}
	if !db.Reachable() {
		t.Error("the circuit is open")
	}
	if err := look(t.Context(), db); err != nil {
		t.Error(err)
	}
}
