package sqlstore

import (
	"context"
	"crypto/rand"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/outbound"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/tenant"
)

// userLogin makes a login of a user's in the database behind the superuser's address, and returns its own address.
func userLogin(t *testing.T, super, more string) (tenant.Address, seal.Secret) {
	t.Helper()
	name := "ext_" + strings.ToLower(rand.Text())
	run(t, super, `CREATE ROLE `+name+` LOGIN PASSWORD 'p w'; `+strings.ReplaceAll(more, "LOGIN", name))
	t.Cleanup(func() {
		run(t, super, `DROP OWNED BY `+name+` CASCADE; DROP ROLE `+name)
	})
	a, _ := addressOf(t, super)
	a.Username = name
	return a, "p w"
}

// outside lists everything of a database that is not in our schema.
func outside(t *testing.T, super string) []string {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), super)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	rows, err := pool.Query(t.Context(), `SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname !~ '^(claude_memory_|pg_toast|pg_temp)'
		UNION ALL SELECT 'class ' || c.oid::regclass || ' ' || relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname !~ '^(claude_memory_|pg_)'
		UNION ALL SELECT 'function ' || p.oid::regprocedure FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace WHERE nspname !~ '^(claude_memory_|pg_)'
		UNION ALL SELECT 'extension ' || extname FROM pg_extension
		UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname !~ '^claude_memory_'
		UNION ALL SELECT 'event trigger ' || evtname FROM pg_event_trigger
		UNION ALL SELECT 'rows ' || count(*) FROM public.projects ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for rows.Next() {
		var one string
		if err := rows.Scan(&one); err != nil {
			t.Fatal(err)
		}
		list = append(list, one)
	}
	if rows.Err() != nil || len(list) < 5 {
		t.Fatal(rows.Err(), list)
	}
	return list
}

func TestProvisionTouchesNothingElse(t *testing.T) {
	super := pgtest.URL(t)
	// Tables of the user's with our names, which come first in the login's own search path.
	run(t, super, `CREATE TABLE public.projects (id text); CREATE TABLE public.schema_migrations (version text); INSERT INTO public.projects VALUES ('mine')`)
	a, password := userLogin(t, super, `GRANT CREATE ON DATABASE "`+databaseOf(t, super)+`" TO LOGIN; ALTER ROLE LOGIN SET search_path = public;
		GRANT ALL ON ALL TABLES IN SCHEMA public TO LOGIN`)
	before := outside(t, super)
	x := openExternals(t, nil)
	id := ident.New[ident.DatabaseID]()
	if err := x.Provision(t.Context(), id, a, password); err != nil {
		t.Fatal(err)
	}
	db := x.Open(id, a, password)
	if report, err := Migrate(t.Context(), db, Tenant); err != nil || len(report.Applied) != 0 || report.From == 0 {
		t.Errorf("%+v %v", report, err)
	}
	write(t, db, `INSERT INTO systems (hash, body, created_at) VALUES ('h', 'b', 0)`)
	var projects int
	if err := db.Read(t.Context(), func(b *Batch) { b.One([]any{&projects}, `SELECT count(*) FROM projects`) }); err != nil || projects != 0 {
		t.Errorf("%d projects, %v: that is the user's own table", projects, err)
	}
	if after := outside(t, super); !slices.Equal(before, after) {
		t.Errorf("before %q\nafter %q", before, after)
	}
	if err := x.Provision(t.Context(), id, a, password); !fault.Is(err, fault.Conflict) || fault.CodeOf(err) != "schema_exists" {
		t.Errorf("a second time: %v", err)
	}
	other := ident.New[ident.DatabaseID]()
	if err := x.Provision(t.Context(), other, a, password); err != nil {
		t.Errorf("another one beside it: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	wantCode(t, db.Read(t.Context(), func(b *Batch) { b.Exec(`SELECT 1`) }), "database_closed")

	schema, _ := externalSchema(id)
	t.Run("what depends on our tables stops the dropping", func(t *testing.T) {
		run(t, super, `CREATE VIEW public.mine AS SELECT * FROM `+schema+`.projects`)
		if err := x.Destroy(t.Context(), id, a, password); !fault.Is(err, fault.Conflict) || fault.CodeOf(err) != "schema_in_use" {
			t.Errorf("%v", err)
		}
		run(t, super, `SELECT * FROM public.mine; SELECT * FROM `+schema+`.messages; DROP VIEW public.mine`)
	})
	t.Run("what is not ours stops it as well", func(t *testing.T) {
		for what, name := range map[string]string{`TABLE `: `.notes (id text)`, `VIEW `: `.notes AS SELECT 1 AS one`,
			`FUNCTION `: `.notes() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`, `TYPE `: `.notes AS (id text)`} {
			run(t, super, `CREATE `+what+schema+name)
			for how, drop := range map[string]func(context.Context, ident.DatabaseID, tenant.Address, seal.Secret) error{"destroy": x.Destroy, "undo": x.Undo} {
				if err := drop(t.Context(), id, a, password); fault.CodeOf(err) != "schema_in_use" {
					t.Errorf("%s of a schema with somebody's %s: %v", how, what, err)
				}
			}
			run(t, super, `SELECT * FROM `+schema+`.messages; DROP `+what+schema+`.notes`) // it was still there
		}
	})
	t.Run("functions and triggers of ours go too", func(t *testing.T) {
		run(t, super, `CREATE FUNCTION `+schema+`.memoryd_capture_projects() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
			ALTER FUNCTION `+schema+`.memoryd_capture_projects() OWNER TO `+a.Username+`;
			CREATE TRIGGER t AFTER INSERT ON `+schema+`.projects EXECUTE FUNCTION `+schema+`.memoryd_capture_projects()`)
		for range 2 { // a second time it is gone already
			if err := x.Destroy(t.Context(), id, a, password); err != nil {
				t.Fatal(err)
			}
		}
		if after := outside(t, super); !slices.Equal(before, after) {
			t.Errorf("before %q\nafter %q", before, after)
		}
		var left int
		if err := x.Open(other, a, password).Read(t.Context(), func(b *Batch) {
			b.One([]any{&left}, `SELECT count(*) FROM pg_namespace WHERE nspname ~ '^claude_memory_'`)
		}); err != nil || left != 1 {
			t.Errorf("%d schemas left, %v", left, err)
		}
	})
}

// engineOf is the engine under a user's database, without the circuit breaker before it.
func engineOf(db *DB) *postgresEngine {
	e, _ := under[*postgresEngine](db.on.Load().engine)
	return e
}

func databaseOf(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(u.Path, "/")
}

func TestProvisionWhatIsThere(t *testing.T) {
	super := pgtest.URL(t)
	a, password := userLogin(t, super, "")
	x := openExternals(t, nil)
	id := ident.New[ident.DatabaseID]()
	schema, _ := externalSchema(id)
	if err := x.Provision(t.Context(), id, a, password); !fault.Is(err, fault.Conflict) || fault.CodeOf(err) != "create_schema_denied" {
		t.Errorf("without the right: %v", err)
	}
	run(t, super, `CREATE SCHEMA `+schema)
	wantCode(t, x.Provision(t.Context(), id, a, password), "create_schema_denied") // somebody else's
	run(t, super, `ALTER SCHEMA `+schema+` OWNER TO `+a.Username)
	if err := x.Provision(t.Context(), id, a, password); err != nil {
		t.Errorf("an empty schema that was made for us: %v", err)
	}
	for name, content := range map[string]string{
		"a table":    `CREATE TABLE SCHEMA.x ()`,
		"a function": `CREATE FUNCTION SCHEMA.x() RETURNS int LANGUAGE sql AS 'SELECT 1'`,
		"a type":     `CREATE TYPE SCHEMA.x AS ENUM ('a')`,
		"a view":     `CREATE VIEW SCHEMA.x AS SELECT 1`,
	} {
		id := ident.New[ident.DatabaseID]()
		schema, _ := externalSchema(id)
		run(t, super, `CREATE SCHEMA `+schema+` AUTHORIZATION `+a.Username+`; `+strings.ReplaceAll(content, "SCHEMA", schema))
		if err := x.Provision(t.Context(), id, a, password); fault.CodeOf(err) != "schema_exists" {
			t.Errorf("%s: %v", name, err)
		}
		r, err := x.Probe(t.Context(), id, a, password)
		if err != nil || r.OK || r.Schema != SchemaDamaged || !hasProblem(r, "schema_damaged") {
			t.Errorf("%s: %+v %v", name, r, err)
		}
	}
}

// What a login or a database has set for itself must not change what we read and write.
func TestSettingsOfTheOwner(t *testing.T) {
	super := pgtest.URL(t)
	a, password := userLogin(t, super, `GRANT CREATE ON DATABASE "`+databaseOf(t, super)+`" TO LOGIN;
		ALTER ROLE LOGIN SET bytea_output = escape; ALTER ROLE LOGIN SET standard_conforming_strings = off;
		ALTER ROLE LOGIN SET synchronous_commit = off; ALTER ROLE LOGIN SET default_transaction_read_only = on;
		ALTER ROLE LOGIN SET default_transaction_isolation = serializable; ALTER ROLE LOGIN SET client_encoding = latin1;
		ALTER ROLE LOGIN SET statement_timeout = '1h'; ALTER ROLE LOGIN SET DateStyle = 'German'; ALTER ROLE LOGIN SET search_path = nowhere`)
	x := openExternals(t, nil)
	id := ident.New[ident.DatabaseID]()
	r, err := x.Probe(t.Context(), id, a, password)
	if err != nil || !r.OK || !r.CommitsAsync || !r.ReadOnly || !hasProblem(r, "commits_asynchronous") || !hasProblem(r, "read_only_default") {
		t.Errorf("%+v %v", r, err)
	}
	if err := x.Provision(t.Context(), id, a, password); err != nil {
		t.Fatal(err)
	}
	db := x.Open(id, a, password)
	defer func() { _ = db.Close() }()
	const text = `ä\n'"€ 🙂`
	bytes := []byte{0, 1, '\\', 0xff}
	var got string
	var raw []byte
	var commit, path, lock, statement, patientStatement string
	if err := db.Write(t.Context(), func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			b.Exec(`INSERT INTO idempotency (scope, key, fingerprint, result, expires_at) VALUES (?, 'k', ?, ?, 0)`, text, bytes, bytes)
			b.One([]any{&commit, &path, &lock, &statement}, `SELECT current_setting('synchronous_commit'), current_setting('search_path'),
				current_setting('lock_timeout'), current_setting('statement_timeout')`)
		})
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Read(Patient(t.Context()), func(b *Batch) {
		b.One([]any{&got, &raw}, `SELECT scope, result FROM idempotency WHERE scope = ? AND 'a\b' = ?`, text, `a\b`)
		b.One([]any{&patientStatement}, `SELECT current_setting('statement_timeout')`)
	}); err != nil {
		t.Fatal(err)
	}
	if got != text || string(raw) != string(bytes) {
		t.Errorf("%q %q", got, raw)
	}
	if commit != "on" || lock != "1200ms" || statement != "1500ms" || patientStatement != "110s" || !strings.HasPrefix(path, `"claude_memory_`) {
		t.Errorf("%q %q %q %q %q", commit, path, lock, statement, patientStatement)
	}
	t.Run("nothing stays set on the connection", func(t *testing.T) {
		c, err := engineOf(db).external.lend(t.Context(), false)
		if err != nil || !c.reused {
			t.Fatalf("%v", err)
		}
		defer c.giveBack()
		all, err := c.pgConn.Exec(t.Context(), `SELECT current_setting('search_path'), current_setting('synchronous_commit')`).ReadAll()
		if err != nil || string(all[0].Rows[0][0]) != "nowhere" || string(all[0].Rows[0][1]) != "off" {
			t.Errorf("%q %v", all[0].Rows, err)
		}
	})
}

func TestProbe(t *testing.T) {
	super := pgtest.URL(t)
	x := openExternals(t, nil)
	id := ident.New[ident.DatabaseID]()
	a, password := userLogin(t, super, `GRANT CREATE ON DATABASE "`+databaseOf(t, super)+`" TO LOGIN`)
	run(t, super, `CREATE TABLE public.projects ()`)
	before := outside(t, super)
	r, err := x.Probe(t.Context(), id, a, password)
	if err != nil || !r.OK || !r.Reachable || r.TLS.Verified || !strings.Contains(r.ServerVersion, ".") || r.Latency <= 0 || r.Schema != SchemaNone ||
		r.Encoding != "UTF8" || r.Privileges != (Privileges{CreateSchema: true}) || !hasProblem(r, "connection_plain") {
		t.Errorf("%+v %v", r, err)
	}
	if r, err := x.Probe(t.Context(), "", a, password); err != nil || !r.OK || r.Schema != SchemaNone {
		t.Errorf("without an id: %+v %v", r, err)
	}
	if after := outside(t, super); !slices.Equal(before, after) {
		t.Errorf("it leaves something: before %q\nafter %q", before, after)
	}
	if open, _ := x.Connections(); open != 0 {
		t.Errorf("%d connections stay", open)
	}
	problem := func(name string, a tenant.Address, password seal.Secret, code string) {
		t.Helper()
		r, err := x.Probe(t.Context(), id, a, password)
		there := !slices.Contains([]string{"address_unreachable", "tls_refused"}, code)
		if err != nil || r.OK || r.Reachable != there || !hasProblem(r, code) {
			t.Errorf("%s: %+v %v", name, r, err)
		}
	}
	problem("another password", a, "wrong", "login_refused")
	problem("no password", a, "", "login_refused")
	other := a
	other.Username = "nobody_of_that_name"
	problem("another user", other, password, "login_refused")
	other = a
	other.Database = "no database of that name"
	problem("another database", other, password, "database_missing")
	other = a
	other.TLS = tenant.TLSVerifyFull
	problem("no TLS", other, password, "tls_refused")
	other = a
	other.Port = 1
	problem("nobody there", other, password, "address_unreachable")
	other = a
	other.Host = "unknown.invalid"
	problem("no such name", other, password, "address_unreachable")
	denied, deniedPassword := userLogin(t, super, "")
	problem("no right to make schemas", denied, deniedPassword, "create_schema_denied")
	run(t, super, `REVOKE CONNECT ON DATABASE "`+databaseOf(t, super)+`" FROM PUBLIC`)
	problem("no right to connect", denied, deniedPassword, "login_refused")
	run(t, super, `GRANT CONNECT ON DATABASE "`+databaseOf(t, super)+`" TO PUBLIC; ALTER ROLE `+denied.Username+` CONNECTION LIMIT 0`)
	problem("no connection left", denied, deniedPassword, "too_many_connections")

	t.Run("a superuser is a warning", func(t *testing.T) {
		a, password := addressOf(t, super)
		r, err := x.Probe(t.Context(), id, a, password)
		if err != nil || !r.OK || !r.Privileges.Superuser || !hasProblem(r, "superuser_login") {
			t.Errorf("%+v %v", r, err)
		}
	})
	t.Run("another encoding", func(t *testing.T) {
		name := "latin_" + strings.ToLower(rand.Text())
		run(t, super, `CREATE DATABASE `+name+` TEMPLATE template0 ENCODING 'LATIN1' LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C'`)
		defer run(t, super, `DROP DATABASE `+name+` WITH (FORCE)`)
		a, password := addressOf(t, super)
		a.Database = name
		r, err := x.Probe(t.Context(), id, a, password)
		if err != nil || r.OK || r.Encoding != "LATIN1" || !hasProblem(r, "encoding_not_utf8") {
			t.Errorf("%+v %v", r, err)
		}
		wantCode(t, x.Provision(t.Context(), id, a, password), "encoding_not_utf8")
	})
	t.Run("our tables", func(t *testing.T) {
		if err := x.Provision(t.Context(), id, a, password); err != nil {
			t.Fatal(err)
		}
		schema, _ := externalSchema(id)
		r, err := x.Probe(t.Context(), id, a, password)
		if err != nil || !r.OK || r.Schema != SchemaOurs || r.SchemaVersion < 1 || !r.Privileges.UseSchema {
			t.Errorf("%+v %v", r, err)
		}
		state := func(name, sql string, want SchemaState, code string) {
			t.Helper()
			run(t, super, strings.ReplaceAll(sql, "SCHEMA.", schema+"."))
			r, err := x.Probe(t.Context(), id, a, password)
			if err != nil || r.OK != (code == "") || r.Schema != want || code != "" && !hasProblem(r, code) {
				t.Errorf("%s: %+v %v", name, r, err)
			}
		}
		state("newer", `INSERT INTO SCHEMA.schema_migrations SELECT version + 1, 'later', 'x', 0 FROM SCHEMA.schema_migrations ORDER BY version DESC LIMIT 1`, SchemaNewer, "schema_newer")
		state("other steps", `UPDATE SCHEMA.schema_migrations SET checksum = 'x'`, SchemaDamaged, "schema_damaged")
		state("no steps", `DELETE FROM SCHEMA.schema_migrations`, SchemaDamaged, "schema_damaged")
		state("unreadable", `ALTER TABLE SCHEMA.schema_migrations OWNER TO postgres`, SchemaDamaged, "schema_damaged")
		state("no history", `DROP TABLE SCHEMA.schema_migrations`, SchemaDamaged, "schema_damaged")
	})
}

// When the owner changes our tables it is no defect of ours, and nobody's secret.
func TestTheOwnerChangesOurTables(t *testing.T) {
	super := pgtest.URL(t)
	x := openExternals(t, nil)
	a, password := userLogin(t, super, `GRANT CREATE ON DATABASE "`+databaseOf(t, super)+`" TO LOGIN`)
	id := ident.New[ident.DatabaseID]()
	schema, _ := externalSchema(id)
	if err := x.Provision(t.Context(), id, a, password); err != nil {
		t.Fatal(err)
	}
	db := x.Open(id, a, password)
	defer func() { _ = db.Close() }()
	read := func() error {
		return db.Read(t.Context(), func(b *Batch) { b.One([]any{new(int64)}, `SELECT seq FROM log_head`) })
	}
	for _, c := range []struct{ name, sql, code string }{
		{"as it was", ``, ""},
		{"a column is renamed", `ALTER TABLE SCHEMA.log_head RENAME seq TO other`, "schema_damaged"},
		{"a column is of another type", `ALTER TABLE SCHEMA.log_head RENAME other TO seq; ALTER TABLE SCHEMA.log_head ALTER seq TYPE text USING 'x'`, "database_misbehaved"},
		{"rights are gone", `ALTER TABLE SCHEMA.log_head OWNER TO postgres`, "database_forbidden"},
		{"a table is gone", `DROP TABLE SCHEMA.log_head`, "schema_damaged"},
		{"everything is gone", `DROP SCHEMA ` + schema + ` CASCADE`, "schema_damaged"},
	} {
		run(t, super, strings.ReplaceAll(c.sql, "SCHEMA.", schema+"."))
		if err := read(); c.code == "" && err != nil || c.code != "" && (!fault.Is(err, fault.Unavailable) || fault.CodeOf(err) != c.code) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if version, err := SchemaVersion(t.Context(), db); version != 0 || err != nil {
		t.Errorf("%d %v", version, err)
	}
}

// A connection that died while nobody used it is replaced, and nobody hears of it.
func TestConnectionsThatDiedIdle(t *testing.T) {
	super := pgtest.URL(t)
	id := ident.New[ident.DatabaseID]()
	a, password := addressOf(t, super)
	for _, c := range []struct {
		name  string
		blind bool // the socket cannot be asked, so that only the failure shows
	}{{"seen before use", false}, {"seen in use", true}} {
		t.Run(c.name, func(t *testing.T) {
			d := outbound.NewDialer(outbound.Config{Allow: loopback})
			x := unhurried(NewExternals(ExternalOptions{ConnectTimeout: time.Minute, PlainAllowed: d.Allowed,
				Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
					conn, err := d.DialContext(ctx, network, addr)
					if err == nil && c.blind {
						conn = struct{ net.Conn }{conn}
					}
					return conn, err
				}}))
			defer x.Close()
			db := x.Open(id, a, password)
			defer func() { _ = db.Close() }()
			end := func() {
				t.Helper()
				run(t, super, `SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'memoryd'`)
			}
			var pids [2]int
			read := func(i int) error {
				return db.Read(t.Context(), func(b *Batch) { b.One([]any{&pids[i]}, `SELECT pg_backend_pid()`) })
			}
			if err := read(0); err != nil {
				t.Fatal(err)
			}
			end()
			if err := read(1); err != nil || pids[0] == pids[1] {
				t.Errorf("a read: %v, %v", pids, err)
			}
			end()
			if err := db.Write(t.Context(), func(tx *Tx) error {
				if err := tx.Run(func(b *Batch) { b.Exec(`SELECT 1`) }); err != nil {
					return err
				}
				return tx.Commit(nil)
			}); err != nil {
				t.Errorf("a write that begins with a question: %v", err)
			}
			end()
			err := db.Write(t.Context(), func(tx *Tx) error { return tx.Commit(func(b *Batch) { b.Exec(`SELECT 1`) }) })
			if !c.blind && err != nil || c.blind && !fault.Is(err, fault.Unavailable) {
				t.Errorf("a write that is a commit: %v", err) // it might have happened, so it is not done again
			}
		})
	}
}

// The bounds hold with a thousand databases that are all used at once.
func TestAThousandDatabases(t *testing.T) {
	const databases, most, per = 1000, 24, 3
	super := pgtest.URL(t)
	// Through PgBouncer, for which a connection is cheap: PostgreSQL begins a process for each, 50 ms of a processor. It has
	// far more than the bound of them, so that what is too much would be active on the server as it is without.
	a, password := addressOf(t, pgtest.Pooled(t, super, 2*most))
	x := openExternals(t, func(o *ExternalOptions) { o.ConnectTimeout, o.MaxConns, o.PerTenant = 10*time.Minute, most, per })
	x.hasty = patient
	watch, err := pgxpool.New(t.Context(), super)
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	stop, watched := make(chan struct{}), make(chan int)
	go func() { // what the server itself sees
		peak := 0
		for {
			var n int
			// One that says farewell is counted until it is gone, so only those in use count.
			if err := watch.QueryRow(context.Background(), `SELECT count(*) FROM pg_stat_activity
				WHERE datname = current_database() AND application_name = 'memoryd' AND state = 'active'`).Scan(&n); err != nil {
				t.Error(err)
			}
			peak = max(peak, n)
			select {
			case <-stop:
				watched <- peak
				return
			default:
			}
		}
	}()
	var mu sync.Mutex
	var open, peak int
	perDatabase := map[ident.DatabaseID]int{}
	dial := x.options.Dial
	x.options.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		open++
		peak = max(peak, open)
		return &counted{Conn: conn, closed: func() {
			mu.Lock()
			defer mu.Unlock()
			open--
		}}, nil
	}
	var all []*DB
	var ids []ident.DatabaseID
	for range databases {
		id := ident.New[ident.DatabaseID]()
		ids, all = append(ids, id), append(all, x.Open(id, a, password))
	}
	var wg sync.WaitGroup
	var done atomic.Int64
	for w := range 64 {
		wg.Go(func() {
			for n := w; n < databases; n += 64 {
				mu.Lock()
				perDatabase[ids[n]]++
				mu.Unlock()
				if err := all[n].Read(t.Context(), func(b *Batch) { b.One([]any{new(int64)}, `SELECT 1`) }); err != nil {
					t.Errorf("database %d: %v", n, err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	close(stop)
	seen := <-watched
	now, idle := x.Connections()
	mu.Lock()
	t.Logf("%d reads of %d databases: %d connections at most, %d active at once on the server, %d open now, %d of them idle",
		done.Load(), len(perDatabase), peak, seen, now, idle)
	if peak > most || seen > most || now > most || now != idle || open != now || done.Load() != databases {
		t.Errorf("more than %d, or they do not add up: %d open", most, open)
	}
	mu.Unlock()
	for _, db := range all {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
	if now, idle := x.Connections(); now != 0 || idle != 0 || len(x.budget.shares) != 0 {
		t.Errorf("%d connections, %d idle and %d shares stay", now, idle, len(x.budget.shares))
	}
}

// counted tells when it is closed for the first time.
type counted struct {
	net.Conn
	once   sync.Once
	closed func()
}

func (c *counted) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.closed)
	return err
}

func TestBoundsOfConnections(t *testing.T) {
	leavesNothing(t)
	// A server that lets everybody in and answers when it is told to.
	asked, answer := make(chan struct{}, 10), make(chan struct{})
	port, count := serve(t, func(e *evil) {
		e.signIn()
		for {
			e.question()
			asked <- struct{}{}
			<-answer
			e.write(concat(began, preambled, parsed, described(1, 25), dataRow("x"), message('C', []byte("SELECT 1\x00")...),
				parsed, message('n'), message('C', []byte("COMMIT\x00")...), ready))
		}
	})
	a := tenant.Address{Host: "127.0.0.1", Port: port, Database: "d", Username: "u", TLS: tenant.TLSDisable}
	x := openExternals(t, func(o *ExternalOptions) { o.MaxConns, o.PerTenant = 5, 3 })
	x.hasty = patient
	id, other := ident.New[ident.DatabaseID](), ident.New[ident.DatabaseID]()
	one, again, two, third := x.Open(id, a, ""), x.Open(id, a, ""), x.Open(other, a, ""), x.Open(ident.New[ident.DatabaseID](), a, "")
	read := func(db *DB) error { return db.Read(t.Context(), func(b *Batch) { b.Exec(`SELECT 1`) }) }
	var busy sync.WaitGroup
	start := func(db *DB, want int) {
		t.Helper()
		busy.Go(func() {
			if err := read(db); err != nil {
				t.Error(err)
			}
		})
		<-asked
		if open, _ := x.Connections(); open != want {
			t.Errorf("%d connections, want %d", open, want)
		}
	}
	// refused reads where there is no room. Nobody dials meanwhile: who does may take a minute on a busy machine.
	refused := func(db *DB) {
		t.Helper()
		defer func(was time.Duration) { x.options.ConnectTimeout = was }(x.options.ConnectTimeout)
		x.options.ConnectTimeout = 200 * time.Millisecond
		if err := read(db); !fault.Is(err, fault.Unavailable) || fault.CodeOf(err) != "too_many_connections" {
			t.Errorf("%v", err)
		}
	}
	start(one, 1)
	start(again, 2)
	start(one, 3)
	for _, db := range []*DB{one, again} { // the third is the last of one database, by whichever handle
		refused(db)
	}
	start(two, 4)
	start(two, 5)
	refused(two)
	refused(third)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantCode(t, third.Read(ctx, func(b *Batch) { b.Exec(`SELECT 1`) }), "canceled")
	for range 5 {
		answer <- struct{}{}
	}
	busy.Wait()
	if open, idle := x.Connections(); open != 5 || idle != 5 || count.Load() != 5 {
		t.Errorf("%d open, %d idle, %d made", open, idle, count.Load())
	}
	t.Run("an idle connection of another makes room", func(t *testing.T) {
		busy.Go(func() {
			if err := read(third); err != nil {
				t.Error(err)
			}
		})
		<-asked
		answer <- struct{}{}
		busy.Wait()
		if open, idle := x.Connections(); open != 5 || idle != 5 || count.Load() != 6 {
			t.Errorf("%d open, %d idle, %d made", open, idle, count.Load())
		}
	})
	t.Run("closing waits for what runs", func(t *testing.T) {
		start(two, 5)
		for {
			if _, idle := x.Connections(); idle == 4 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		closed := make(chan struct{})
		go func() {
			_ = two.Close()
			close(closed)
		}()
		h := engineOf(two).external
		shut := func() bool {
			x.budget.mu.Lock()
			defer x.budget.mu.Unlock()
			return h.closed
		}
		for !shut() {
			time.Sleep(time.Millisecond)
		}
		select {
		case <-closed:
			t.Error("it did not wait")
		default:
		}
		answer <- struct{}{}
		busy.Wait()
		<-closed
		wantCode(t, read(two), "database_closed")
	})
	for _, db := range []*DB{one, again, third} {
		_ = db.Close()
	}
	if open, idle := x.Connections(); open != 0 || idle != 0 {
		t.Errorf("%d open, %d idle", open, idle)
	}
	t.Run("idle ones are closed after a while", func(t *testing.T) {
		x := openExternals(t, nil)
		x.budget.idleTime = 10 * time.Millisecond
		x.hasty = patient
		db := x.Open(id, a, "")
		defer func() { _ = db.Close() }()
		busy.Go(func() {
			if err := read(db); err != nil {
				t.Error(err)
			}
		})
		<-asked
		answer <- struct{}{}
		busy.Wait()
		for open, _ := x.Connections(); open > 0; open, _ = x.Connections() {
			time.Sleep(time.Millisecond)
		}
	})
	t.Run("when all are closed nothing begins", func(t *testing.T) {
		x := openExternals(t, nil)
		db := x.Open(id, a, "")
		x.Close()
		wantCode(t, read(db), "database_closed")
	})
}

// A server that has stopped answering costs somebody who waits less than two seconds.
func TestLimitsOfWhoWaits(t *testing.T) {
	x := NewExternals(ExternalOptions{})
	if x.options.ConnectTimeout > 2*time.Second || x.hasty.silence >= 2*time.Second || x.hasty.total >= 10*time.Second || x.whole >= 10*time.Second {
		t.Errorf("%+v", x.hasty)
	}
	if x.options.MaxConns != 200 || x.options.PerTenant != 4 {
		t.Errorf("%+v", x.options)
	}
	// The server ends a statement before we give the server up, so that the connection stays good.
	if !strings.Contains(impatience, "'statement_timeout', '1500'") || x.hasty.silence <= 1500*time.Millisecond {
		t.Error("the statement's limit is not below the silence")
	}
}

// A page of long messages is read, although the server may not send so much to be kept.
func TestRowsThatAreNotKept(t *testing.T) {
	super := pgtest.URL(t)
	a, password := addressOf(t, super)
	x := openExternals(t, nil)
	db := x.Open(ident.New[ident.DatabaseID](), a, password)
	engineOf(db).preamble = engineOf(db).patient
	defer func() { _ = db.Close() }()
	for _, c := range []struct {
		rows, kept int
		ok         bool
	}{{40, 10, true}, {40, 40, false}, {70, 0, false}} { // of a MiB each; more than 64 are not even read
		n := 0
		err := db.Read(t.Context(), func(b *Batch) {
			b.Query(func(s Scanner) error {
				if n++; n > c.kept {
					return nil
				}
				var text string
				return s.Scan(&text)
			}, `SELECT repeat('x', 1048576) FROM generate_series(1, ?)`, c.rows)
		})
		if c.ok && (err != nil || n != c.rows) || !c.ok && fault.CodeOf(err) != "database_misbehaved" {
			t.Errorf("%+v: %d rows, %v", c, n, err)
		}
	}
	t.Run("patience has no such limit", func(t *testing.T) {
		n := 0
		err := db.Read(Patient(t.Context()), func(b *Batch) {
			b.Query(func(s Scanner) error {
				n++
				var text string
				return s.Scan(&text)
			}, `SELECT repeat('x', 1048576) FROM generate_series(1, 70)`)
		})
		if err != nil || n != 70 {
			t.Errorf("%d rows, %v", n, err)
		}
	})
}
