package pgtest

import (
	"context"
	"crypto/rand"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Variable names the environment variable through which with-postgres lends one cluster to many test processes.
const Variable = "TEST_POSTGRES_URL"

// shared starts the process's cluster at the first use. It lives until the process ends, so it is one of the few
// things here that no single test owns; a variable of the package keeps its pipe open.
var shared = sync.OnceValues(func() (*Cluster, error) {
	return Start(context.Background(), Options{})
})

// URL returns the superuser's address of a fresh database, which is dropped when the test ends. It fails the test
// when there is no PostgreSQL.
func URL(t testing.TB) string {
	t.Helper()
	base := os.Getenv(Variable)
	if base == "" {
		c, err := shared()
		if err != nil {
			t.Fatal(err)
		}
		base = c.URL
	}
	name := "test_" + strings.ToLower(rand.Text())
	quoted := pgx.Identifier{name}.Sanitize()
	// template0 takes no connections, so nothing can be in the way of copying it.
	if err := admin.command(base, "CREATE DATABASE "+quoted+" TEMPLATE template0", copying); err != nil {
		t.Fatalf("pgtest: creating a database: %v", err)
	}
	t.Cleanup(func() {
		// FORCE: a test that failed half-way may have left connections behind.
		if err := admin.command(base, "DROP DATABASE IF EXISTS "+quoted+" WITH (FORCE)"); err != nil {
			t.Errorf("pgtest: dropping the database: %v", err)
		}
	})
	u, err := url.Parse(base)
	if err != nil {
		t.Fatalf("pgtest: %s is not an address", Variable)
	}
	u.Path = "/" + name
	return u.String()
}

// Schemas returns the names of the schemas in a database that PostgreSQL did not make itself.
func Schemas(at string) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, at)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.Background()) }() // the answer is what counts
	// A pooler in transaction mode keeps nobody's prepared statements.
	rows, err := conn.Query(ctx, `SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\_%' AND nspname <> 'information_schema' ORDER BY nspname`,
		pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// admin is the process's connection for making and dropping databases. It is kept, because to make one costs the server more
// than what it is used for; like the cluster, it ends with the process.
var admin operator

type operator struct {
	mu   sync.Mutex
	conn *pgx.Conn
	at   string
}

// command runs one statement outside of any transaction, as CREATE DATABASE needs. What endings give is added to it.
func (o *operator) command(at, statement string, endings ...func(context.Context, *pgx.Conn) (string, error)) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if o.conn == nil || o.conn.IsClosed() || o.at != at {
		conn, err := pgx.Connect(ctx, at)
		if err != nil {
			return err
		}
		if o.conn != nil {
			_ = o.conn.Close(ctx) // nobody needs it any more
		}
		o.conn, o.at = conn, at
	}
	for _, f := range endings {
		ending, err := f(ctx, o.conn)
		if err != nil {
			return err
		}
		statement += ending
	}
	_, err := o.conn.Exec(ctx, statement)
	return err
}

// tmpfsMagic is the type of file systems in memory.
const tmpfsMagic = 0x01021994

// copying is how CREATE DATABASE copies. By default all pages go through the log, which spares a checkpoint. Where the data
// is in memory a checkpoint costs nothing, and copying files an eighth of the processor's time.
func copying(ctx context.Context, conn *pgx.Conn) (string, error) {
	var version int
	var data string
	if err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::int, current_setting('data_directory')").
		Scan(&version, &data); err != nil {
		return "", err
	}
	var fs syscall.Statfs_t
	if version < 150000 || syscall.Statfs(data, &fs) != nil || int64(fs.Type) != tmpfsMagic {
		return "", nil
	}
	return " STRATEGY file_copy", nil
}
