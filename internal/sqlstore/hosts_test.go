package sqlstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/seal"
)

const runtimePassword = seal.Secret("of the runtime login")

func openHost(t *testing.T, address string, maxConns int) *PostgresHost {
	t.Helper()
	h, err := OpenPostgresHost(t.Context(), seal.Secret(address), PostgresHostOptions{MaxConns: maxConns, RuntimePassword: runtimePassword})
	if err != nil {
		t.Fatal(err)
	}
	inNoHurry(h)
	t.Cleanup(func() {
		// Roles outlive the test's database, and the login is named after it.
		login := h.login
		h.Close()
		if strings.HasPrefix(login, "memoryd_run_") {
			run(t, address, `DROP OWNED BY "`+login+`"; DROP ROLE IF EXISTS "`+login+`"`)
		}
	})
	return h
}

// inNoHurry lets a server that is there be silent for longer than anybody would wait for it, for busy machines. Nothing may be asked
// of it yet.
func inNoHurry(h *PostgresHost) { h.link.silence = time.Minute }

func provision(t *testing.T, h *PostgresHost) (ident.DatabaseID, *DB) {
	t.Helper()
	id := ident.New[ident.DatabaseID]()
	if err := h.Provision(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Destroy(context.Background(), id); err != nil {
			t.Error(err)
		}
	})
	return id, h.Open(id)
}

// run executes statements as the superuser.
func run(t *testing.T, address, sql string) {
	t.Helper()
	pool, err := pgxpool.New(context.Background(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	conn, err := pool.Acquire(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Conn().PgConn().Exec(context.Background(), sql).ReadAll(); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, db *DB, sql string, args ...any) {
	t.Helper()
	if err := db.Write(t.Context(), func(tx *Tx) error { return tx.Commit(func(b *Batch) { b.Exec(sql, args...) }) }); err != nil {
		t.Fatal(err)
	}
}

func TestTenantsNeverMeet(t *testing.T) {
	h := openHost(t, pgtest.URL(t), 2)
	type tenant struct {
		id ident.DatabaseID
		db *DB
	}
	var tenants []tenant
	for i := range 3 {
		id, db := provision(t, h)
		tenants = append(tenants, tenant{id, db})
		write(t, db, `INSERT INTO systems (hash, body, created_at) VALUES (?, ?, 0)`, "h", fmt.Sprint("tenant ", i))
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 50 {
				n := (w + i) % len(tenants)
				var body, role string
				read := func(b *Batch) {
					b.One([]any{&body}, `SELECT body FROM systems WHERE hash = ?`, "h")
					b.One([]any{&role}, `SELECT current_user`)
				}
				var err error
				switch i % 3 {
				case 0:
					err = tenants[n].db.Read(t.Context(), read)
				case 1:
					err = tenants[n].db.Write(t.Context(), func(tx *Tx) error { return tx.Commit(read) })
				default: // a transaction that fails must not leave its role behind either
					if tenants[n].db.Write(t.Context(), func(tx *Tx) error {
						return tx.Commit(func(b *Batch) { read(b); b.Exec(`SELECT nothing`) })
					}) == nil {
						err = fmt.Errorf("no error")
					}
				}
				if err != nil || body != fmt.Sprint("tenant ", n) || role != "t_"+strings.TrimPrefix(string(tenants[n].id), "db_") {
					t.Errorf("tenant %d read %q as %q, %v", n, body, role, err)
				}
			}
		})
	}
	wg.Wait()

	schema := func(n int) string { return "t_" + strings.TrimPrefix(string(tenants[n].id), "db_") }
	denied := func(t *testing.T, db *DB, sql string) {
		t.Helper()
		for _, do := range []func() error{
			func() error { return db.Read(t.Context(), func(b *Batch) { b.Exec(sql) }) },
			func() error {
				return db.Write(t.Context(), func(tx *Tx) error { return tx.Commit(func(b *Batch) { b.Exec(sql) }) })
			},
		} {
			err := do()
			if d := driverCode(err); d != "42501" {
				t.Errorf("%s: got %v", sql, err)
			}
		}
	}
	t.Run("without a role nothing can be read", func(t *testing.T) {
		denied(t, OpenPostgres(h.runtime, PostgresOptions{}), `SELECT body FROM `+schema(0)+`.systems`)
		err := OpenPostgres(h.runtime, PostgresOptions{Schema: schema(0)}).Read(t.Context(), func(b *Batch) { b.Exec(`SELECT body FROM systems`) })
		if err == nil {
			t.Error("the search path alone reads")
		}
	})
	t.Run("another tenant's schema is denied", func(t *testing.T) {
		denied(t, tenants[1].db, `SELECT body FROM `+schema(0)+`.systems`)
	})
	t.Run("a tenant makes nothing outside its schema", func(t *testing.T) {
		for _, sql := range []string{`CREATE TABLE public.x (id int)`, `CREATE SCHEMA x`, `CREATE ROLE x`} {
			err := tenants[1].db.Write(t.Context(), func(tx *Tx) error { return tx.Commit(func(b *Batch) { b.Exec(sql) }) })
			if driverCode(err) != "42501" {
				t.Errorf("%s: got %v", sql, err)
			}
		}
	})
}

func driverCode(err error) string {
	if d, ok := errors.AsType[*driverError](err); ok {
		return d.code
	}
	return ""
}

func TestHostLifeOfATenant(t *testing.T) {
	address := pgtest.URL(t)
	h := openHost(t, address, 4)
	id, db := provision(t, h)
	write(t, db, `UPDATE log_head SET seq = 9`)
	if err := h.Provision(t.Context(), id); err != nil {
		t.Fatal("a second time:", err)
	}
	var seq int
	if err := db.Read(t.Context(), func(b *Batch) { b.One([]any{&seq}, `SELECT seq FROM log_head`) }); err != nil || seq != 9 {
		t.Fatal("provisioning again touched the data:", seq, err)
	}
	if report, err := Migrate(t.Context(), db, Tenant); err != nil || len(report.Applied) != 0 {
		t.Fatal(report, err)
	}
	other, _ := provision(t, h)
	if n, err := h.Count(t.Context()); err != nil || n != 2 {
		t.Fatal(n, err)
	}
	for range 2 {
		if err := h.Destroy(t.Context(), other); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := h.Count(t.Context()); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	if err := h.Open(other).Read(t.Context(), func(b *Batch) { b.Exec(`SELECT 1`) }); err == nil {
		t.Fatal("a destroyed tenant answers")
	}
	for _, bad := range []ident.DatabaseID{"", "db_x", `db_"; DROP SCHEMA public; --00000`} {
		wantCode(t, h.Provision(t.Context(), bad), "not_found")
		wantCode(t, h.Destroy(t.Context(), bad), "not_found")
		wantCode(t, h.Open(bad).Read(t.Context(), func(b *Batch) { b.Exec(`SELECT 1`) }), "not_found")
	}
	t.Run("several nodes start and provision at once", func(t *testing.T) {
		id := ident.New[ident.DatabaseID]()
		t.Cleanup(func() { _ = h.Destroy(context.Background(), id) })
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				h, err := OpenPostgresHost(t.Context(), seal.Secret(address), PostgresHostOptions{RuntimePassword: runtimePassword})
				if err != nil {
					t.Error(err)
					return
				}
				defer h.Close()
				if err := h.Provision(t.Context(), id); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}

// takesOver exchanges a copy whose head is at 1 and an empty one beside it, takes it back, and does it for good.
func takesOver(t *testing.T, h *PostgresHost, id ident.DatabaseID) {
	t.Helper()
	at := func(want int) {
		t.Helper()
		var seq int
		if err := h.Open(id).Read(t.Context(), func(b *Batch) { b.One([]any{&seq}, `SELECT seq FROM log_head`) }); err != nil || seq != want {
			t.Fatalf("head at %d, want %d, %v", seq, want, err)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(h.ProvisionBeside(t.Context(), id))
	write(t, h.OpenBeside(id), `UPDATE log_head SET seq = 2`)
	at(1)
	do(h.PutBack(t.Context(), id)) // of what was not done
	at(1)
	wantCode(t, h.TakeOver(t.Context(), id), "tenant_missing") // what lay beside is gone
	for range 2 {
		do(h.ProvisionBeside(t.Context(), id)) // the second time in place of the first
	}
	write(t, h.OpenBeside(id), `UPDATE log_head SET seq = 2`)
	do(h.TakeOver(t.Context(), id))
	at(2)
	for range 2 {
		do(h.PutBack(t.Context(), id))
		at(1)
	}
	do(h.ProvisionBeside(t.Context(), id))
	write(t, h.OpenBeside(id), `UPDATE log_head SET seq = 2`)
	do(h.TakeOver(t.Context(), id))
	for range 2 {
		do(h.Shed(t.Context(), id))
		at(2)
	}
	do(h.ProvisionBeside(t.Context(), id)) // which goes with the copy
}

func TestLoginsOfAHost(t *testing.T) {
	address := pgtest.URL(t)
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	database := strings.TrimPrefix(u.Path, "/")
	as := func(role string) string {
		c := *u
		c.User = url.UserPassword(role, "secret")
		return c.String()
	}
	for _, c := range []struct{ name, attributes, code string }{
		{"inheriting", "INHERIT", "database_login_unsafe"},
		{"bypassing", "NOINHERIT BYPASSRLS", "database_login_unsafe"},
		{"closed", "NOINHERIT", ""},
		{"maker", "INHERIT CREATEROLE", ""},
		{"apart", "NOINHERIT CREATEROLE", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			role := c.name + "_" + database
			run(t, address, `CREATE ROLE "`+role+`" LOGIN `+c.attributes+` PASSWORD 'secret';
				GRANT CREATE ON DATABASE "`+database+`" TO "`+role+`" WITH GRANT OPTION`)
			t.Cleanup(func() { run(t, address, `DROP OWNED BY "`+role+`" CASCADE; DROP ROLE "`+role+`"`) })
			h, err := OpenPostgresHost(t.Context(), seal.Secret(as(role)), PostgresHostOptions{RuntimePassword: runtimePassword})
			if c.code != "" {
				wantCode(t, err, c.code)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			id := ident.New[ident.DatabaseID]()
			err = h.Provision(t.Context(), id)
			if c.name == "closed" { // may not make roles: says so
				wantCode(t, err, "database_forbidden")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			write(t, h.Open(id), `UPDATE log_head SET seq = 1`)
			takesOver(t, h, id)
			var inherits bool
			if err := OpenPostgres(h.admin, PostgresOptions{}).Read(t.Context(), func(b *Batch) {
				b.One([]any{&inherits}, `SELECT rolinherit FROM pg_roles WHERE rolname = current_user`)
			}); err != nil || inherits != strings.HasPrefix(c.attributes, "INHERIT") {
				t.Errorf("the login inherits: %v, %v", inherits, err)
			}
			if err := h.Destroy(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			run(t, address, `DROP OWNED BY "`+h.login+`" CASCADE; DROP ROLE "`+h.login+`"`)
		})
	}
	t.Run("a superuser's host needs a password for the login", func(t *testing.T) {
		_, err := OpenPostgresHost(t.Context(), seal.Secret(address), PostgresHostOptions{})
		wantCode(t, err, "database_login_unsafe")
	})
}

func TestServersThatCannotBeUsed(t *testing.T) {
	t.Run("acknowledging before the disk has it", func(t *testing.T) {
		address := pgtest.URL(t)
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		run(t, address, `ALTER DATABASE "`+strings.TrimPrefix(u.Path, "/")+`" SET synchronous_commit = off`)
		_, err = NewPostgresPool(t.Context(), seal.Secret(address), 2)
		wantCode(t, err, "commits_not_durable")
	})
	t.Run("nobody listens", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		_ = l.Close()
		_, err = NewPostgresPool(t.Context(), seal.Secret("postgres://u:verysecret@"+address+"/db"), 2)
		if !fault.Is(err, fault.Unavailable) || strings.Contains(err.Error(), "verysecret") {
			t.Fatal(err)
		}
	})
	t.Run("no address at all", func(t *testing.T) {
		_, err := NewPostgresPool(t.Context(), "postgres://u:verysecret@%zz", 2)
		wantCode(t, err, "database_url_invalid")
		if strings.Contains(err.Error(), "verysecret") {
			t.Fatal(err)
		}
	})
	t.Run("names that are no identifiers", func(t *testing.T) {
		for _, o := range []PostgresOptions{{Role: `a"b`}, {Schema: "a; b"}, {Schema: "A"}, {Role: strings.Repeat("a", 64)}} {
			if err := OpenPostgres(nil, o).Read(t.Context(), func(b *Batch) { b.Exec(`SELECT 1`) }); !fault.Is(err, fault.Internal) {
				t.Errorf("%+v: %v", o, err)
			}
		}
	})
}

func TestDeadlocksAreRetried(t *testing.T) {
	db := onPostgres(t)
	if _, err := migrate(t.Context(), db, fixture(), Master); err != nil {
		t.Fatal(err)
	}
	write(t, db, `INSERT INTO owners (id, email) VALUES ('bob', 'b')`)
	var both sync.WaitGroup
	both.Add(2)
	var runs atomic.Int32
	var wg sync.WaitGroup
	for _, order := range [][2]string{{"ada", "bob"}, {"bob", "ada"}} {
		wg.Go(func() {
			first := true
			err := db.Write(t.Context(), func(tx *Tx) error {
				runs.Add(1)
				touch := func(id string) func(b *Batch) {
					return func(b *Batch) { b.Exec(`UPDATE owners SET email = email || 'x' WHERE id = ?`, id) }
				}
				if err := tx.Run(touch(order[0])); err != nil {
					return err
				}
				if first {
					first = false
					both.Done()
					both.Wait() // both hold a row: the next statements wait for each other
				}
				return tx.Commit(touch(order[1]))
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var email string
	if err := db.Read(t.Context(), func(b *Batch) { b.One([]any{&email}, `SELECT email FROM owners WHERE id = 'bob'`) }); err != nil || email != "bxx" {
		t.Fatal(email, err)
	}
	if runs.Load() < 3 {
		t.Fatalf("%d runs: nothing was retried", runs.Load())
	}
}

func TestConnectionsComeBackClean(t *testing.T) {
	pool, err := NewPostgresPool(t.Context(), seal.Secret(pgtest.URL(t)), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	db := OpenPostgres(pool, PostgresOptions{Schema: "memoryd"})
	if _, err := migrate(t.Context(), db, fixture(), Master); err != nil {
		t.Fatal(err)
	}
	pid := func() (n int) {
		if err := db.Read(t.Context(), func(b *Batch) { b.One([]any{&n}, `SELECT pg_backend_pid()`) }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := pid()
	for range 3 {
		err := db.Write(t.Context(), func(tx *Tx) error {
			if err := tx.Run(func(b *Batch) { add(b, 1, "a") }); err != nil {
				return err
			}
			return tx.Commit(func(b *Batch) { add(b, 1, "b") })
		})
		wantCode(t, err, "duplicate")
		wantCode(t, db.Read(t.Context(), func(b *Batch) { b.Exec(`SELECT nothing`) }), "internal")
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if s := conn.Conn().PgConn().TxStatus(); s != 'I' {
			t.Errorf("the pool's connection is in state %c", s)
		}
		conn.Release()
	}
	if after := pid(); after != before {
		t.Error("a failed statement cost the connection")
	}
	if n := count(t, db); n != 0 {
		t.Fatal(n)
	}
	t.Run("a killed backend is unavailable, and the next one works", func(t *testing.T) {
		err := db.Write(t.Context(), func(tx *Tx) error {
			return tx.Run(func(b *Batch) { b.Exec(`SELECT pg_terminate_backend(pg_backend_pid())`) })
		})
		if !fault.Is(err, fault.Unavailable) || fault.CodeOf(err) == "outcome_unknown" {
			t.Fatal(err)
		}
		if n := count(t, db); n != 0 {
			t.Fatal(n)
		}
	})
}

// TestACommitWithoutAnAnswerIsUnknown puts a relay before the server that cuts the connection when a COMMIT passes:
// before the server gets it, or before its answer comes back.
func TestACommitWithoutAnAnswerIsUnknown(t *testing.T) {
	address := pgtest.URL(t)
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	direct := onAddress(t, address)
	if _, err := migrate(t.Context(), direct, fixture(), Master); err != nil {
		t.Fatal(err)
	}
	for i, deliver := range []bool{false, true} {
		t.Run(fmt.Sprint("delivered ", deliver), func(t *testing.T) {
			var armed atomic.Bool
			c := *u
			c.Host = relay(t, u.Host, &armed, deliver)
			db := onAddress(t, c.String())
			armed.Store(true)
			for k, fn := range []func(tx *Tx) error{
				func(tx *Tx) error { return tx.Commit(func(b *Batch) { add(b, 10*i+1, fmt.Sprint(i, "a")) }) },
				func(tx *Tx) error {
					if err := tx.Run(func(b *Batch) { add(b, 10*i+2, fmt.Sprint(i, "b")) }); err != nil {
						return err
					}
					return tx.Commit(nil)
				},
			} {
				err := db.Write(t.Context(), fn)
				wantCode(t, err, "outcome_unknown")
				if !fault.Is(err, fault.Unavailable) {
					t.Fatal(err)
				}
				var n, want int
				if deliver {
					want = 1
				}
				if err := direct.Read(t.Context(), func(b *Batch) {
					b.One([]any{&n}, `SELECT count(*) FROM notes WHERE id = ?`, 10*i+k+1)
				}); err != nil || n != want {
					t.Fatalf("%d rows, want %d: the relay does not do what the test says; %v", n, want, err)
				}
			}
			wantCode(t, db.Read(t.Context(), func(b *Batch) { b.Exec(`SELECT 1`) }), "unavailable") // its COMMIT, too
		})
	}
}

func onAddress(t *testing.T, address string) *DB {
	t.Helper()
	pool, err := NewPostgresPool(t.Context(), seal.Secret(address), 4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return OpenPostgres(pool, PostgresOptions{Schema: "memoryd"})
}

// relay forwards to target. Once armed it looks for COMMIT in what the client sends, and closes both sides there;
// deliver says whether the server gets it and has answered by then.
func relay(t *testing.T, target string, armed *atomic.Bool, deliver bool) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				_ = client.Close()
				return
			}
			var swallow atomic.Bool
			go func() { // answers
				buf := make([]byte, 1<<16)
				for {
					n, err := server.Read(buf)
					if err == nil && !swallow.Load() {
						_, err = client.Write(buf[:n])
					} else if err == nil && bytes.Contains(buf[:n], []byte("COMMIT\x00")) {
						err = io.EOF // the server's answer is here, and stays here
					}
					if err != nil {
						_, _ = client.Close(), server.Close()
						return
					}
				}
			}()
			go func() { // requests
				buf := make([]byte, 1<<16)
				for {
					n, err := client.Read(buf)
					if err == nil && armed.Load() && bytes.Contains(buf[:n], []byte("COMMIT\x00")) {
						swallow.Store(true)
						if !deliver {
							err = io.EOF
						}
					}
					if err == nil {
						_, err = server.Write(buf[:n])
					}
					if err != nil {
						_, _ = client.Close(), server.Close()
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}
