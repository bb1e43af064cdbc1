package pgtest_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"claude-memory-backend/internal/pgtest"
)

func connect(t *testing.T, at string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func ask(t *testing.T, conn *pgx.Conn, query string) string {
	t.Helper()
	var answer string
	if err := conn.QueryRow(t.Context(), query).Scan(&answer); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return answer
}

func TestURL(t *testing.T) {
	t.Run("each call is a database of its own", func(t *testing.T) {
		a, b := connect(t, pgtest.URL(t)), connect(t, pgtest.URL(t))
		if _, err := a.Exec(t.Context(), "CREATE TABLE only_here (n int)"); err != nil {
			t.Fatal(err)
		}
		if got := ask(t, b, "SELECT count(*)::text FROM pg_tables WHERE tablename = 'only_here'"); got != "0" {
			t.Errorf("the other database has %s such tables", got)
		}
	})
	t.Run("the database is gone after the test, connections or not", func(t *testing.T) {
		var address string
		t.Run("leaves a connection behind", func(t *testing.T) {
			address = pgtest.URL(t)
			conn, err := pgx.Connect(t.Context(), address)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn // left open on purpose
		})
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(u.Path, "/")
		conn := connect(t, pgtest.URL(t))
		if got := ask(t, conn, "SELECT count(*)::text FROM pg_database WHERE datname = '"+name+"'"); got != "0" {
			t.Errorf("%s databases of that name", got)
		}
	})
	t.Run("the login is a superuser and commits are as durable as in production", func(t *testing.T) {
		conn := connect(t, pgtest.URL(t))
		for setting, want := range map[string]string{"is_superuser": "on", "fsync": "on", "synchronous_commit": "on",
			"full_page_writes": "on", "server_encoding": "UTF8", "listen_addresses": "127.0.0.1"} {
			if got := ask(t, conn, "SELECT current_setting('"+setting+"')"); got != want {
				t.Errorf("%s = %s, want %s", setting, got, want)
			}
		}
	})
}

func TestCluster(t *testing.T) {
	c, err := pgtest.Start(t.Context(), pgtest.Options{Settings: map[string]string{"max_connections": "17"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	conn := connect(t, c.URL)
	if got := ask(t, conn, "SELECT current_setting('max_connections')"); got != "17" {
		t.Errorf("max_connections = %s", got)
	}
	data := ask(t, conn, "SELECT current_setting('data_directory')")
	if _, err := conn.Exec(t.Context(), "CREATE TABLE kept (n int)"); err != nil {
		t.Fatal(err)
	}

	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	// Its children see within a moment that it is gone.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := conn.Exec(t.Context(), "SELECT 1"); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a killed server still answers")
		}
	}
	if err := c.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn = connect(t, c.URL)
	if got := ask(t, conn, "SELECT count(*)::text FROM kept"); got != "0" {
		t.Errorf("kept = %s", got)
	}
	if !strings.Contains(c.Log(), "automatic recovery in progress") {
		t.Error("the server came back without a recovery: it was not killed")
	}

	t.Run("frozen, it says nothing; thawed, it goes on", func(t *testing.T) {
		answer := make(chan error, 1)
		if err := c.Freeze(); err != nil {
			t.Fatal(err)
		}
		go func() {
			_, err := conn.Exec(t.Context(), "SELECT 1")
			answer <- err
		}()
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := pgx.Connect(short, c.URL); err == nil {
			t.Error("a frozen server lets somebody in")
		}
		select {
		case err := <-answer:
			t.Error("a frozen server answers:", err)
		default:
		}
		if err := c.Thaw(); err != nil {
			t.Fatal(err)
		}
		if err := <-answer; err != nil {
			t.Error(err)
		}
	})

	if err := c.Freeze(); err != nil { // it must be able to end frozen
		t.Fatal(err)
	}
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(data)); !os.IsNotExist(err) {
		t.Errorf("the data is still there: %v", err)
	}
}

func TestPgBouncer(t *testing.T) {
	target := pgtest.URL(t)
	b, err := pgtest.StartPgBouncer(t.Context(), target, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
	})
	role := "bouncer_" + strings.ToLower(rand.Text())
	direct := connect(t, target)
	if _, err := direct.Exec(t.Context(), "CREATE ROLE "+role+" LOGIN PASSWORD 'secret'"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = direct.Exec(context.Background(), "DROP ROLE "+role) })
	u, err := url.Parse(b.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("who may log into the server may log in here, and nobody else", func(t *testing.T) {
		u.User = url.UserPassword(role, "secret")
		if got := ask(t, through(t, u.String()), "SELECT current_user::text"); got != role {
			t.Errorf("logged in as %s", got)
		}
		u.User = url.UserPassword(role, "wrong")
		if _, err := pgx.Connect(t.Context(), u.String()); err == nil {
			t.Error("a wrong password was taken")
		}
	})
	t.Run("clients share a connection, one transaction each", func(t *testing.T) {
		one, two := through(t, b.URL), through(t, b.URL)
		pid := "SELECT pg_backend_pid()::text"
		if a, b := ask(t, one, pid), ask(t, two, pid); a != b {
			t.Errorf("backends %s and %s", a, b)
		}
	})
	if err := b.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := pgx.Connect(t.Context(), b.URL); err == nil {
		t.Error("it is still there")
	}
}

// through connects as a pooler needs it.
func through(t *testing.T, at string) *pgx.Conn {
	t.Helper()
	return connect(t, at+"&default_query_exec_mode=exec")
}

// The starter's death is played by this test binary, started again and killed.
func TestServersDieWithTheirStarter(t *testing.T) {
	if os.Getenv("PGTEST_STARTER") == "1" {
		c, err := pgtest.Start(t.Context(), pgtest.Options{})
		if err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString(c.URL + "\n" + pgtest.Pooled(t, c.URL, 1) + "\n")
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestServersDieWithTheirStarter$")
	cmd.Env = append(os.Environ(), "PGTEST_STARTER=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var addresses []string
	for len(addresses) < 2 && lines.Scan() {
		addresses = append(addresses, lines.Text())
	}
	if len(addresses) < 2 {
		t.Fatal("the starter did not start", lines.Err())
	}
	conn := connect(t, addresses[0])
	_ = through(t, addresses[1])
	data := ask(t, conn, "SELECT current_setting('data_directory')")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()

	// The folder is the last thing to go. Nothing signals its end to a stranger, so look often, with a bound.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(filepath.Dir(data)); os.IsNotExist(err) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the cluster outlived its starter by 30 s")
		}
	}
	if _, err := conn.Exec(t.Context(), "SELECT 1"); err == nil {
		t.Error("the server still answers")
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		// Only a refusal counts: without its server, PgBouncer would refuse us too.
		if _, err := pgx.Connect(t.Context(), addresses[1]); errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("PgBouncer outlived its starter by 30 s")
		}
	}
}
