package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/seal"
)

// canary is text of tenant B's; nobody else may ever see it.
const canary = "canary-7f3a9e"

// guests are two tenants of one server, and what an attack needs to know about the second.
type guests struct {
	host         *PostgresHost
	a, b         *DB
	roleA, roleB string // of their schemas, too
	address      string // the superuser's
	nobody       *DB    // tenants' login with no role set
	login        string
	before       string // B's content, see content
}

func newGuests(t *testing.T, address string, h *PostgresHost) *guests {
	t.Helper()
	idA, a := provision(t, h)
	idB, b := provision(t, h)
	nameA, _ := tenantName(idA)
	nameB, _ := tenantName(idB)
	g := &guests{host: h, a: a, b: b, roleA: nameA, roleB: nameB, address: address, login: h.login,
		nobody: OpenPostgres(h.runtime, PostgresOptions{})}
	for _, hash := range []string{"1", "2", "3"} { // a value that repeats itself gets into the planner's statistics
		write(t, b, `INSERT INTO systems (hash, body, created_at) VALUES (?, ?, 0)`, hash, canary)
	}
	write(t, a, `INSERT INTO systems (hash, body, created_at) VALUES (?, ?, 0)`, "h", "of tenant A")
	return g
}

// attack is SQL that tries to reach tenant B ($B), or what is not a tenant's business, from tenant A ($A).
type attack struct {
	name string
	sql  []string
}

// attacks are tried with A's role set and with none. Each must end with a refusal of the server's.
var attacks = []attack{
	{"read", []string{`SELECT body FROM $B.systems`}},
	{"read everything", []string{`TABLE $B.messages`}},
	{"count", []string{`SELECT count(*) FROM $B.systems`}},
	{"the search path", []string{`SET LOCAL search_path TO $B`, `SELECT body FROM systems`}},
	{"the search path by function", []string{`SELECT set_config('search_path', '$B', true)`, `SELECT body FROM systems`}},
	{"insert", []string{`INSERT INTO $B.systems (hash, body, created_at) VALUES ('x', 'x', 0)`}},
	{"update", []string{`UPDATE $B.systems SET body = 'x'`}},
	{"delete", []string{`DELETE FROM $B.systems`}},
	{"truncate", []string{`TRUNCATE $B.systems`}},
	{"lock", []string{`LOCK TABLE $B.systems IN ACCESS SHARE MODE`}},
	{"select for update", []string{`SELECT body FROM $B.systems FOR UPDATE`}},
	{"copy out", []string{`COPY $B.systems TO STDOUT`}},
	{"copy to a program", []string{`COPY (SELECT 1) TO PROGRAM 'true'`}},
	{"copy from a file", []string{`CREATE TEMP TABLE file (line text)`, `COPY file FROM '/etc/hostname'`}},
	{"a table made from theirs", []string{`CREATE TEMP TABLE mine AS SELECT * FROM $B.systems`}},
	{"a table like theirs", []string{`CREATE TEMP TABLE mine (LIKE $B.systems)`}},
	{"a table that inherits from theirs", []string{`CREATE TEMP TABLE mine () INHERITS ($B.systems)`}},
	{"a view", []string{`CREATE TEMP VIEW mine AS SELECT * FROM $B.systems`}},
	{"a function", []string{`CREATE FUNCTION pg_temp.mine() RETURNS text LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT min(body) FROM $B.systems); END'`,
		`SELECT pg_temp.mine()`}},
	{"a function that says it is its owner", []string{
		`CREATE FUNCTION pg_temp.mine() RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN RETURN (SELECT min(body) FROM $B.systems); END'`,
		`SELECT pg_temp.mine()`}},
	{"a block", []string{`DO 'BEGIN PERFORM body FROM $B.systems; END'`}},
	{"a cursor", []string{`DECLARE mine CURSOR FOR SELECT body FROM $B.systems`, `FETCH mine`}},
	{"explain", []string{`EXPLAIN ANALYZE SELECT body FROM $B.systems`}},
	{"as XML", []string{`SELECT query_to_xml('SELECT * FROM $B.systems', true, false, '')`}},
	{"a table as XML", []string{`SELECT table_to_xml('$B.systems', true, false, '')`}},
	{"a foreign key", []string{`CREATE TEMP TABLE mine (hash text REFERENCES $B.systems)`}},
	{"an index on theirs", []string{`CREATE INDEX mine ON $B.systems (body)`}},
	{"a trigger on theirs", []string{`CREATE TRIGGER mine BEFORE INSERT ON $B.systems EXECUTE FUNCTION suppress_redundant_updates_trigger()`}},
	{"a rule on theirs", []string{`CREATE RULE mine AS ON INSERT TO $B.systems DO INSTEAD NOTHING`}},
	{"a policy on theirs", []string{`CREATE POLICY mine ON $B.systems`}},
	{"alter a table", []string{`ALTER TABLE $B.systems ADD mine int`}},
	{"drop a table", []string{`DROP TABLE $B.systems CASCADE`}},
	{"drop the schema", []string{`DROP SCHEMA $B CASCADE`}},
	{"rename the schema", []string{`ALTER SCHEMA $B RENAME TO mine`}},
	{"own the schema", []string{`ALTER SCHEMA $B OWNER TO $A`}},
	{"grant the schema", []string{`GRANT USAGE ON SCHEMA $B TO PUBLIC`}},
	{"grant the tables", []string{`GRANT SELECT ON ALL TABLES IN SCHEMA $B TO PUBLIC`}},
	{"grant the role", []string{`GRANT $B TO $A`}},
	{"a table in their schema", []string{`CREATE TABLE $B.mine (n int)`}},
	{"a function in their schema", []string{`CREATE FUNCTION $B.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'`}},
	{"comment", []string{`COMMENT ON SCHEMA $B IS 'mine'`}},
	{"take over what the role owns", []string{`REASSIGN OWNED BY $B TO $A`}},
	{"drop what the role owns", []string{`DROP OWNED BY $B`}},
	{"alter the role", []string{`ALTER ROLE $B LOGIN PASSWORD 'x'`}},
	{"drop the role", []string{`DROP ROLE $B`}},
	{"become the role's session", []string{`SET LOCAL SESSION AUTHORIZATION $B`}},
	{"become a superuser", []string{`ALTER ROLE $A SUPERUSER`}},
	{"become more by the login", []string{`ALTER ROLE $LOGIN INHERIT`}},
	{"make a role", []string{`CREATE ROLE mine`}},
	{"make a schema", []string{`CREATE SCHEMA mine`}},
	{"make something in public", []string{`CREATE TABLE public.mine (n int)`}},
	{"an extension that reaches further", []string{`CREATE EXTENSION file_fdw`}},
	{"the passwords", []string{`SELECT rolpassword FROM pg_authid`}},
	{"the statistics", []string{`SELECT * FROM pg_statistic`}},
	{"a file", []string{`SELECT pg_read_file('/etc/hostname')`}},
	{"a folder", []string{`SELECT pg_ls_dir('.')`}},
	{"a file as a large object", []string{`SELECT lo_import('/etc/hostname')`}},
	{"the settings file", []string{`SELECT * FROM pg_hba_file_rules`}},
	{"the log's place", []string{`SHOW data_directory`}},
	{"the database's settings", []string{`ALTER DATABASE $DB SET search_path = '$B'`}},
	{"everybody's settings", []string{`ALTER ROLE ALL SET search_path = '$B'`}},
	{"master: accounts", []string{`SELECT email FROM memoryd.accounts`}},
	{"master: sessions", []string{`SELECT * FROM memoryd.sessions`}},
	{"master: who is where", []string{`UPDATE memoryd.tenants SET state = 'active'`}},
	{"master: its schema", []string{`DROP SCHEMA memoryd CASCADE`}},
}

// errBack makes a transaction roll back.
var errBack = errors.New("rolled back")

// TestTenantsCannotReachEachOther proves what PostgreSQL refuses, for every login that an operator can give.
func TestTenantsCannotReachEachOther(t *testing.T) {
	if len(attacks) < 30 {
		t.Fatalf("only %d attacks", len(attacks))
	}
	for name, login := range map[string]func(t *testing.T, address string) *guests{
		"a superuser": func(t *testing.T, address string) *guests {
			return newGuests(t, address, openHost(t, address, 4))
		},
		"a login that may make roles": func(t *testing.T, address string) *guests {
			dropLogin(t, address) // after its maker, who gave it what it has
			made := makeRole(t, address, "maker", "CREATEROLE")
			mayMakeSchemas(t, address, made)
			h, err := OpenPostgresHost(t.Context(), seal.Secret(made), PostgresHostOptions{MaxConns: 4, RuntimePassword: runtimePassword})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(h.Close)
			return newGuests(t, address, h)
		},
		"a plain login that inherits nothing": func(t *testing.T, address string) *guests {
			g := newGuests(t, address, openHost(t, address, 4)) // another one made the tenants
			plain := makeRole(t, address, "plain", "NOINHERIT")
			u, err := url.Parse(plain)
			if err != nil {
				t.Fatal(err)
			}
			login := u.User.Username()
			with := ""
			if g.host.version >= 160000 {
				with = ` WITH INHERIT FALSE`
			}
			run(t, address, `GRANT "`+g.roleA+`", "`+g.roleB+`" TO "`+login+`"`+with)
			h, err := OpenPostgresHost(t.Context(), seal.Secret(plain), PostgresHostOptions{MaxConns: 4})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(h.Close)
			if h.login != login {
				t.Fatalf("works as %s", h.login)
			}
			g.login = login
			g.a = openPostgres(h.runtime, PostgresOptions{Role: g.roleA, Schema: g.roleA}, &texts{})
			g.b = openPostgres(h.runtime, PostgresOptions{Role: g.roleB, Schema: g.roleB}, &texts{})
			g.nobody = OpenPostgres(h.runtime, PostgresOptions{})
			return g
		},
	} {
		t.Run(name, func(t *testing.T) {
			address := pgtest.URL(t)
			if _, err := Migrate(t.Context(), onAddress(t, address), Master); err != nil { // in the same database, which is the worst case
				t.Fatal(err)
			}
			g := login(t, address)
			g.before = g.content(t)
			for _, from := range []struct {
				name string
				db   *DB
			}{{"with A's role", g.a}, {"with no role", g.nobody}} {
				for _, a := range attacks {
					t.Run(from.name+", "+a.name, func(t *testing.T) { g.attack(t, from.db, a.sql) })
				}
			}
			t.Run("nothing came of it", func(t *testing.T) {
				if now := g.content(t); now != g.before {
					t.Errorf("B is\n%s\nand was\n%s", now, g.before)
				}
			})
			t.Run("each reads its own", func(t *testing.T) {
				for want, db := range map[string]*DB{"of tenant A": g.a, canary: g.b} {
					var body string
					if err := db.Read(t.Context(), func(b *Batch) { b.One([]any{&body}, `SELECT DISTINCT body FROM systems`) }); err != nil || body != want {
						t.Errorf("%q instead of %q, %v", body, want, err)
					}
				}
			})
		})
	}
}

// attack runs SQL that must be refused; what it changed before that is undone, as always.
func (g *guests) attack(t *testing.T, db *DB, sql []string) {
	t.Helper()
	u, err := url.Parse(g.address)
	if err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("$A", g.roleA, "$B", g.roleB, "$LOGIN", `"`+g.login+`"`, "$DB", `"`+strings.TrimPrefix(u.Path, "/")+`"`)
	err = db.Write(t.Context(), func(tx *Tx) error {
		for _, s := range sql {
			if err := tx.Run(func(b *Batch) { b.Exec(fill.Replace(s)) }); err != nil {
				return err
			}
		}
		return errBack
	})
	code := driverCode(err)
	if code == "42P01" && strings.Contains(sql[0], "search_path") {
		return // a schema in the path that one may not use is passed over: the table is not there
	}
	if code != "42501" {
		t.Errorf("%s: %v", strings.Join(sql, "; "), err)
	}
}

// content is all that is in B's schema, its tables' shape and who may do what with them.
func (g *guests) content(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	if err := onAddress(t, g.address).Read(t.Context(), func(b *Batch) {
		for _, q := range []string{
			`SELECT query_to_xml('SELECT * FROM ` + g.roleB + `.systems', true, false, '')::text`,
			`SELECT string_agg(table_name || ' ' || column_name || ' ' || data_type, ', ' ORDER BY table_name, ordinal_position)
				FROM information_schema.columns WHERE table_schema = '` + g.roleB + `'`,
			`SELECT coalesce(string_agg(relname || ' ' || coalesce(relacl::text, '-') || relowner::regrole::text, ', ' ORDER BY relname), '')
				FROM pg_class WHERE relnamespace = '` + g.roleB + `'::regnamespace`,
			`SELECT nspowner::regrole::text || coalesce(nspacl::text, '-') FROM pg_namespace WHERE nspname = '` + g.roleB + `'`,
			`SELECT string_agg(roleid::regrole::text || ' to ' || member::regrole::text, ', ' ORDER BY roleid, member) FROM pg_auth_members
				WHERE roleid = '` + g.roleB + `'::regrole OR member IN ('` + g.roleA + `'::regrole, '` + g.roleB + `'::regrole)`,
			`SELECT coalesce(string_agg(defaclrole::regrole::text || defaclacl::text, ', '), '') FROM pg_default_acl`,
		} {
			b.Query(func(s Scanner) error {
				var line string
				defer func() { out.WriteString(line + "\n") }()
				return s.Scan(&line)
			}, q)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// makeRole makes a login of these attributes, and returns its address.
func makeRole(t *testing.T, address, name, attributes string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	database := strings.TrimPrefix(u.Path, "/")
	role := name + "_" + database
	run(t, address, `CREATE ROLE "`+role+`" LOGIN `+attributes+` PASSWORD 'secret'`)
	t.Cleanup(func() { run(t, address, `DROP OWNED BY "`+role+`" CASCADE; DROP ROLE "`+role+`"`) })
	u.User = url.UserPassword(role, "secret")
	return u.String()
}

// mayMakeSchemas gives a login what one that provisions tenants needs, beside making roles.
func mayMakeSchemas(t *testing.T, address, login string) {
	t.Helper()
	u, err := url.Parse(login)
	if err != nil {
		t.Fatal(err)
	}
	run(t, address, `GRANT CREATE, CONNECT ON DATABASE "`+strings.TrimPrefix(u.Path, "/")+`" TO "`+u.User.Username()+`" WITH GRANT OPTION`)
}

// What the catalog shows of others is told in SECURITY.md; this keeps it true: names, shapes, sizes and counts, but
// nothing that anybody wrote.
func TestWhatTheCatalogShowsOfOthers(t *testing.T) {
	address := pgtest.URL(t)
	g := newGuests(t, address, openHost(t, address, 4))
	// Where a value could show: the planner's statistics, and a statement that is running.
	run(t, address, `ANALYZE `+g.roleB+`.systems`)
	running := begun(t, g.b)
	defer running()

	for _, who := range []struct {
		name  string
		db    *DB
		finds bool
	}{{"A", g.a, false}, {"no role", g.nobody, false}, {"the superuser", onAddress(t, address), true}} {
		t.Run(who.name, func(t *testing.T) {
			var relations []string
			if err := who.db.Read(t.Context(), func(b *Batch) {
				b.Query(func(s Scanner) error {
					var name string
					err := s.Scan(&name)
					relations = append(relations, name)
					return err
				}, `SELECT n.nspname || '.' || quote_ident(c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
					WHERE n.nspname IN ('pg_catalog', 'information_schema') AND c.relkind IN ('r', 'v')
					AND c.relname <> 'element_types' -- types of arrays: takes seconds
					ORDER BY 1`)
			}); err != nil {
				t.Fatal(err)
			}
			read, foundIn, names := 0, []string{}, false
			for _, relation := range relations {
				err := who.db.Read(t.Context(), func(b *Batch) {
					b.Query(func(s Scanner) error {
						var row string
						if err := s.Scan(&row); err != nil {
							return err
						}
						if strings.Contains(row, canary) {
							foundIn = append(foundIn, relation)
						}
						names = names || strings.Contains(row, g.roleB)
						return nil
					}, `SELECT r::text FROM `+relation+` r`)
				})
				if err != nil && driverCode(err) != "42501" && !strings.Contains("55000 0A000", driverCode(err)) {
					t.Errorf("%s: %v", relation, err)
				}
				if err == nil {
					read++
				}
			}
			if read < 100 {
				t.Errorf("only %d relations of %d could be read: too few to prove anything", read, len(relations))
			}
			if who.finds != (len(foundIn) > 0) {
				t.Errorf("what B wrote is in %v", slices.Compact(foundIn))
			}
			if !names {
				t.Error("the catalog does not even show that B exists: SECURITY.md says that it does")
			}
			t.Logf("%d relations read; %v", read, slices.Compact(foundIn))
		})
	}
}

// SECURITY.md says that the role is no jail for somebody who can run SQL of their own. When this fails, it is out of date.
func TestTheRoleIsNoJail(t *testing.T) {
	address := pgtest.URL(t)
	g := newGuests(t, address, openHost(t, address, 4))
	var body string
	err := g.a.Write(t.Context(), func(tx *Tx) error {
		if err := tx.Run(func(b *Batch) { b.Exec(`SET LOCAL ROLE ` + g.roleB) }); err != nil {
			return err
		}
		return tx.Run(func(b *Batch) { b.One([]any{&body}, `SELECT DISTINCT body FROM `+g.roleB+`.systems`) })
	})
	if err != nil || body != canary {
		t.Errorf("read %q, %v", body, err)
	}
}

// begun leaves a transaction of the database open after a statement that holds the canary, until the result is called.
func begun(t *testing.T, db *DB) (end func()) {
	t.Helper()
	ready, over := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		err := db.Write(t.Context(), func(tx *Tx) error {
			defer close(ready)
			if err := tx.Run(func(b *Batch) { b.Exec(`SELECT 1 FROM systems WHERE body = ?`, canary) }); err != nil {
				return err
			}
			ready <- struct{}{}
			<-over
			return errBack
		})
		if !errors.Is(err, errBack) {
			t.Error(err)
		}
	})
	<-ready
	return func() { close(over); wg.Wait() }
}

// A login for tenants' work that could see a tenant with no role set is refused, whatever the reason.
func TestUnsafeLoginsAreRefused(t *testing.T) {
	address := pgtest.URL(t)
	g := newGuests(t, address, openHost(t, address, 4))
	for _, c := range []struct{ name, attributes, grant string }{
		{"inherits", "INHERIT", `GRANT "$B" TO "$LOGIN"`},
		{"inherits nothing yet", "INHERIT", ``},
		{"bypasses policies", "NOINHERIT BYPASSRLS", ``},
		{"may use a tenant's schema itself", "NOINHERIT", `GRANT USAGE ON SCHEMA "$B" TO "$LOGIN"`},
		{"as everybody may", "NOINHERIT", `GRANT USAGE ON SCHEMA "$B" TO PUBLIC`},
	} {
		t.Run(c.name, func(t *testing.T) {
			at := makeRole(t, address, "unsafe"+strings.ReplaceAll(c.name, " ", ""), c.attributes)
			u, err := url.Parse(at)
			if err != nil {
				t.Fatal(err)
			}
			if c.grant != "" {
				run(t, address, strings.NewReplacer("$B", g.roleB, "$LOGIN", u.User.Username()).Replace(c.grant))
			}
			t.Cleanup(func() { run(t, address, `REVOKE ALL ON SCHEMA "`+g.roleB+`" FROM PUBLIC`) })
			h, err := OpenPostgresHost(t.Context(), seal.Secret(at), PostgresHostOptions{RuntimePassword: runtimePassword})
			if err == nil {
				h.Close()
			}
			wantCode(t, err, "database_login_unsafe")
		})
	}
	t.Run("ours, when somebody made it more", func(t *testing.T) {
		run(t, address, `ALTER ROLE "`+g.login+`" SUPERUSER`)
		_, err := OpenPostgresHost(t.Context(), seal.Secret(address), PostgresHostOptions{RuntimePassword: runtimePassword})
		wantCode(t, err, "database_login_unsafe")
		run(t, address, `ALTER ROLE "`+g.login+`" NOSUPERUSER`)
	})
}

// TestTenantsTakeTurnsOnPooledConnections alternates tenants over the two server connections of a PgBouncer in
// transaction mode. Its control, a setting of the session's, must leak there, or it would prove nothing.
func TestTenantsTakeTurnsOnPooledConnections(t *testing.T) {
	const transactions, workers, connections = 10_000, 8, 2
	address := pgtest.URL(t)
	pooled := pgtest.Pooled(t, address, connections)
	h := openHost(t, pooled, workers)
	type guest struct {
		db     *DB
		name   string // its own
		own    string // of its role and schema
		wrote  int
		mu     sync.Mutex
		server map[int]bool // pids of the servers that it met
	}
	var all []*guest
	for i := range 5 {
		id, db := provision(t, h)
		own, _ := tenantName(id)
		all = append(all, &guest{db: db, name: fmt.Sprint("tenant ", i), own: own, server: map[int]bool{}})
		write(t, db, `INSERT INTO systems (hash, body, created_at) VALUES (?, ?, 0)`, "h", all[i].name)
	}
	var next atomic.Int64
	turn := func(n int) {
		g, kind := all[n%len(all)], n/len(all)%20
		var body, role, schema string
		var pid int
		look := func(b *Batch) {
			b.One([]any{&body}, `SELECT body FROM systems WHERE hash = 'h'`)
			b.One([]any{&role, &schema, &pid}, `SELECT current_user, current_schema(), pg_backend_pid()`)
		}
		store := func(b *Batch) {
			b.Exec(`INSERT INTO systems (hash, body, created_at) VALUES (?, ?, 0)`, fmt.Sprint(next.Add(1)), g.name)
		}
		var err error
		switch kind {
		case 0: // a write in two steps
			err = g.db.Write(t.Context(), func(tx *Tx) error {
				if err := tx.Run(look); err != nil {
					return err
				}
				return tx.Commit(store)
			})
		case 1: // one that fails after it has set role and path
			if err := g.db.Write(t.Context(), func(tx *Tx) error {
				return tx.Commit(func(b *Batch) { look(b); b.Exec(`SELECT nothing`) })
			}); err == nil {
				t.Error("no error")
			}
		case 2: // one that is given up
			if err := g.db.Write(t.Context(), func(tx *Tx) error {
				if err := tx.Run(look); err != nil {
					return err
				}
				return errBack
			}); !errors.Is(err, errBack) {
				t.Error(err)
			}
		default:
			err = g.db.Read(t.Context(), look)
		}
		if err != nil || body != g.name || role != g.own || schema != g.own {
			t.Errorf("%s read %q as %s in %s: %v", g.name, body, role, schema, err)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.server[pid] = true
		if err == nil && kind == 0 {
			g.wrote++
		}
	}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			dice := rand.New(rand.NewPCG(uint64(w), 1))
			for n := w; n < transactions && !t.Failed(); n += workers {
				// Another order for each worker, the same kinds of work.
				turn(n/100*100 + (n%100+20*dice.IntN(5))%100)
			}
		})
	}
	wg.Wait()
	servers := map[int]bool{}
	for _, g := range all {
		for pid := range g.server {
			servers[pid] = true
		}
		if len(g.server) < connections {
			t.Errorf("%s met %d connections: they were not shared", g.name, len(g.server))
		}
		var mine, strange int
		if err := g.db.Read(t.Context(), func(b *Batch) {
			b.One([]any{&mine, &strange}, `SELECT count(*) FILTER (WHERE body = ? AND hash <> 'h'), count(*) FILTER (WHERE body <> ?) FROM systems`, g.name, g.name)
		}); err != nil || mine != g.wrote || strange != 0 || mine == 0 {
			t.Errorf("%s has %d of %d rows, and %d of others: %v", g.name, mine, g.wrote, strange, err)
		}
	}
	if len(servers) != connections {
		t.Errorf("%d connections to the server, not %d", len(servers), connections)
	}

	t.Run("a setting of the session's leaks, and ours stand above it", func(t *testing.T) {
		config := h.runtime.Config().ConnConfig
		open := func() *pgx.Conn {
			conn, err := pgx.ConnectConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close(context.Background()) })
			return conn
		}
		careless, victim := open(), open()
		for _, sql := range []string{`SET ROLE "` + all[0].own + `"`, `SET search_path TO "` + all[0].own + `"`} {
			for range 50 { // until every connection of the pool has had it
				if _, err := careless.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
			}
		}
		leaked := false
		for range 50 {
			var body string
			err := victim.QueryRow(t.Context(), `SELECT body FROM systems WHERE hash = 'h'`).Scan(&body)
			leaked = leaked || err == nil && body == all[0].name
		}
		if !leaked {
			t.Error("the session's setting did not leak: this test proves nothing")
		}
		for n := range 200 {
			turn(n)
		}
	})
}
