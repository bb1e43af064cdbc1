package sqlstore

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/tenant"
)

// childVariable tells the test binary that it is the one that is watched, and what to do.
const childVariable = "MEMORYD_TEST_WATCHED"

// addressesWithFiles are addresses that name a file in every way that some parser follows.
func addressesWithFiles(file string) (list []string) {
	for _, key := range []string{"sslrootcert", "sslcert", "sslkey", "passfile", "servicefile", "service", "sslcrl", "sslcrldir", "host",
		"options", "krbsrvname", "sslpassword"} {
		list = append(list, "postgres://u:p@127.0.0.1:1/d?"+key+"="+file, "postgres://u@127.0.0.1:1/d?sslmode=verify-ca&"+key+"="+file,
			"host=127.0.0.1 port=1 user=u dbname=d "+key+"="+file)
	}
	escaped := strings.ReplaceAll(file, "/", "%2F")
	return append(list, "postgres://u:p@"+escaped+"/d", "postgres://u:p@"+file+"/d", "postgres:///"+escaped+"?host="+file,
		"postgres://u:p@h/d?service=x&servicefile="+file, "postgres://u:p@h/d?sslcert="+file+"&sslkey="+file, "file://"+file,
		"service=x servicefile="+file, "host="+file+" user=u")
}

// TestWatchedChild is not a test: TestAddressesTouchNoFile runs it and watches its system calls.
func TestWatchedChild(t *testing.T) {
	mode, file, ok := strings.Cut(os.Getenv(childVariable), ":")
	if !ok {
		return
	}
	list := addressesWithFiles(file)
	if mode == "driver" {
		for _, text := range list {
			_, _ = pgconn.ParseConfig(text)
		}
		return
	}
	x := openExternals(t, func(o *ExternalOptions) { o.ConnectTimeout = 200 * time.Millisecond })
	for _, text := range list {
		if _, _, err := tenant.ParseAddress(seal.Secret(text)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", text, err)
		}
	}
	id := ident.New[ident.DatabaseID]()
	for _, a := range []tenant.Address{
		{Host: file, Port: 1, Database: "d", Username: "u", TLS: tenant.TLSVerifyFull},
		{Host: "127.0.0.1", Port: 1, Database: file[:min(len(file), 63)], Username: file[:min(len(file), 63)], TLS: tenant.TLSVerifyFull},
		{Host: "127.0.0.1," + file, Port: 1, Database: "d", Username: "u", TLS: tenant.TLSDisable},
		{Host: "127.0.0.1", Port: 1, Database: "d", Username: "u", TLS: tenant.TLSMode("verify-full&sslrootcert=" + file)},
	} {
		for _, password := range []seal.Secret{"", seal.Secret(file)} {
			db := x.Open(id, a, password)
			if err := db.Read(t.Context(), func(b *Batch) { b.Exec(`SELECT 1`) }); err == nil {
				t.Errorf("%+v was reached", a)
			}
			_ = db.Close()
			_, _ = x.Probe(t.Context(), id, a, password)
			if x.Provision(t.Context(), id, a, password) == nil {
				t.Errorf("%+v was provisioned", a)
			}
		}
	}
}

// watched runs the child and returns the system calls about files that it made.
func watched(t *testing.T, mode, file string, env ...string) string {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("strace is not installed; run: make setup")
	}
	log := filepath.Join(t.TempDir(), "calls")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, strace, "-f", "-qq", "-s", "4096", "-e", "trace=%file", "-o", log, os.Args[0], "-test.run=^TestWatchedChild$")
	cmd.Env = append(append(os.Environ(), env...), childVariable+"="+mode+":"+file)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	calls, err := os.ReadFile(log)
	if err != nil || len(calls) == 0 {
		t.Fatalf("nothing was watched: %v", err)
	}
	return string(calls)
}

// An address must not make the server look at a file, whether or not it is there; nor do files that the environment
// names for PostgreSQL's own programs count.
func TestAddressesTouchNoFile(t *testing.T) {
	home := t.TempDir()
	for _, name := range []string{"of-address", "of-environment", ".pgpass", ".pg_service.conf", ".postgresql/root.crt", ".postgresql/postgresql.crt",
		".postgresql/postgresql.key"} {
		path := filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("127.0.0.1:1:d:u:secret\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	there, missing, named := filepath.Join(home, "of-address"), filepath.Join(home, "of-address-missing"), filepath.Join(home, "of-environment")
	env := []string{"HOME=" + home, "PGPASSFILE=" + named, "PGSERVICEFILE=" + named, "PGSSLROOTCERT=" + named, "PGSSLCERT=" + named,
		"PGSSLKEY=" + named, "PGSYSCONFDIR=" + named, "PGHOST=" + named}
	for _, file := range []string{there, missing} {
		calls := watched(t, "ours", file, env...)
		for line := range strings.SplitSeq(calls, "\n") {
			if strings.Contains(line, "execve(") {
				continue // the child's own environment
			}
			if strings.Contains(line, "of-address") || strings.Contains(line, "of-environment") {
				t.Errorf("touched: %s", line)
			}
			// The driver asks whether files in the home exist, once, for nobody's address. It must not open them.
			if strings.Contains(line, home) && strings.Contains(line, "open") {
				t.Errorf("opened: %s", line)
			}
		}
	}
	t.Run("the driver's own parser does look", func(t *testing.T) {
		for _, file := range []string{there, missing} {
			calls := watched(t, "driver", file, env...)
			if n := strings.Count(calls, "\""+file+"\""); n == 0 {
				t.Error("nothing was seen: the watch does not work")
			}
		}
	})
}

// What the environment sets for PostgreSQL's programs does not reach users' databases.
func TestTheEnvironmentIsIgnored(t *testing.T) {
	for _, name := range []string{"PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGAPPNAME", "PGCONNECT_TIMEOUT",
		"PGSSLMODE", "PGSSLKEY", "PGSSLCERT", "PGSSLCERTMODE", "PGSSLSNI", "PGSSLROOTCERT", "PGSSLPASSWORD", "PGSSLNEGOTIATION",
		"PGTARGETSESSIONATTRS", "PGSERVICEFILE", "PGTZ", "PGOPTIONS", "PGMINPROTOCOLVERSION", "PGMAXPROTOCOLVERSION", "PGCHANNELBINDING",
		"PGREQUIREAUTH"} {
		t.Setenv(name, "hostile")
	}
	got := make(chan map[string]string, 1)
	port, _ := serve(t, func(e *evil) {
		body := e.read(int(binary.BigEndian.Uint32(e.read(4))) - 4)[4:]
		parts := strings.Split(strings.TrimRight(string(body), "\x00"), "\x00")
		m := map[string]string{}
		for i := 0; i+1 < len(parts); i += 2 {
			m[parts[i]] = parts[i+1]
		}
		got <- m
	})
	x := openExternals(t, nil)
	a := tenant.Address{Host: "127.0.0.1", Port: port, Database: "d'b", Username: "u", TLS: tenant.TLSDisable}
	if _, err := x.Probe(t.Context(), "", a, ""); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"user": "u", "database": "d'b", "application_name": "memoryd", "client_encoding": "UTF8"}
	if m := <-got; !maps.Equal(m, want) {
		t.Errorf("%v", m)
	}

	t.Run("but PGSERVICE stops them", func(t *testing.T) {
		// The driver reads the service's file whatever is asked of it, so nothing is begun.
		t.Setenv("PGSERVICE", "hostile")
		x := openExternals(t, nil)
		_, err := x.Probe(t.Context(), "", a, "")
		db := x.Open(ident.New[ident.DatabaseID](), a, "")
		for _, err := range []error{err, db.Read(t.Context(), func(b *Batch) { b.Exec(`SELECT 1`) })} {
			if !fault.Is(err, fault.Unavailable) || !strings.Contains(fmt.Sprint(err), "PGSERVICE") {
				t.Errorf("%v", err)
			}
		}
	})
}

// The neutral string sets every key that the driver takes from the environment.
func TestNeutralSetsEveryKey(t *testing.T) {
	for _, key := range []string{"host", "port", "dbname", "user", "password", "passfile", "application_name", "connect_timeout", "sslmode",
		"sslkey", "sslcert", "sslcertmode", "sslsni", "sslrootcert", "sslpassword", "sslnegotiation", "target_session_attrs", "servicefile",
		"timezone", "options", "min_protocol_version", "max_protocol_version", "channel_binding", "require_auth"} {
		if !slices.ContainsFunc(strings.Fields(neutral), func(f string) bool { return strings.HasPrefix(f, key+"=") }) {
			t.Errorf("%s is missing", key)
		}
	}
}
