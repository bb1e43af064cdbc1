package pgtest

import (
	"context"
	"crypto/rand"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

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
	if err := command(base, "CREATE DATABASE "+quoted+" TEMPLATE template0"); err != nil {
		t.Fatalf("pgtest: creating a database: %v", err)
	}
	t.Cleanup(func() {
		// FORCE: a test that failed half-way may have left connections behind.
		if err := command(base, "DROP DATABASE IF EXISTS "+quoted+" WITH (FORCE)"); err != nil {
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

// command runs one statement in a connection of its own, as CREATE DATABASE needs.
func command(at, statement string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, at)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(closing) // the statement's own result is what counts
	}()
	_, err = conn.Exec(ctx, statement)
	return err
}
