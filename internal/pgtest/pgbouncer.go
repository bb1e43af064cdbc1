package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// PgBouncer is a running PgBouncer in transaction mode: between two transactions, a connection to the server belongs to
// nobody. It lets in whoever the server behind it would let in.
type PgBouncer struct {
	// URL is the address that it was started for, through it.
	URL string

	dir    string // holds its settings, log and pid; removed at the end
	server *exec.Cmd
	keeper *keeper
}

// Pooled returns the address that leads to target through a PgBouncer of the test's own, which ends with the test.
// Each login has size connections to each database.
func Pooled(t testing.TB, target string, size int) string {
	t.Helper()
	b, err := StartPgBouncer(t.Context(), target, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
	})
	return b.URL
}

// StartPgBouncer starts one before the server of target, which is a superuser's address, and waits until it answers.
// The caller must Stop it; should the process die first, a keeper does.
func StartPgBouncer(ctx context.Context, target string, size int) (*PgBouncer, error) {
	program, err := pgBouncerBinary()
	if err != nil {
		return nil, err
	}
	as, uid, gid, err := identity()
	if err != nil {
		return nil, err
	}
	dir, err := folder(as, uid, gid)
	if err != nil {
		return nil, err
	}
	b := &PgBouncer{dir: dir}
	if b.keeper, err = keep(as, dir, dir, filepath.Join(dir, "pid"), "TERM"); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	u, err := url.Parse(target)
	if err != nil {
		return nil, errors.Join(errors.New("pgtest: the target is not an address"), b.Stop())
	}
	if err := addWarden(ctx, target); err != nil {
		return nil, errors.Join(err, b.Stop())
	}
	for range 5 { // a port that was free a moment ago may be taken now
		if err = b.configure(u, size, uid, gid); err != nil {
			break
		}
		b.server = exec.Command(program, "settings")
		b.server.SysProcAttr, b.server.Dir, b.server.Env = as, dir, cleanEnv()
		if err = b.server.Start(); err != nil {
			b.server, err = nil, fmt.Errorf("pgtest: starting PgBouncer: %w", err)
			break
		}
		if err = b.answers(ctx); err == nil {
			return b, nil
		}
		if b.server != nil {
			break // it runs, and another port would not help
		}
	}
	return nil, errors.Join(err, b.Stop())
}

// warden is the role with which a PgBouncer looks up who may log in. It is nobody else's: whose password is in PgBouncer's own
// file is made to do 4,096 rounds of SCRAM at every login, whatever the server keeps of it, and everybody else as many as the
// server keeps (see scram).
const warden = "pgbouncer_warden"

// addWarden makes that role, with the password of the target's user, unless another PgBouncer did.
func addWarden(ctx context.Context, target string) error {
	conn, err := pgx.Connect(ctx, target)
	if err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	_, err = conn.Exec(ctx, `DO $$ BEGIN
		EXECUTE format('CREATE ROLE `+warden+` SUPERUSER LOGIN PASSWORD %L', (SELECT passwd FROM pg_shadow WHERE usename = current_user));
	EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$`)
	if err := errors.Join(err, conn.Close(ctx)); err != nil {
		return fmt.Errorf("pgtest: a role for PgBouncer: %w", err)
	}
	return nil
}

// configure picks a port and writes the settings.
func (b *PgBouncer) configure(target *url.URL, size, uid, gid int) error {
	address, err := freePort()
	if err != nil {
		return err
	}
	through := *target
	through.Host = address
	b.URL = through.String()
	password, _ := target.User.Password()
	files := map[string]string{
		"users": fmt.Sprintf("%q %q\n", warden, password),
		"settings": strings.Join([]string{
			"[databases]",
			"* = host=" + target.Hostname() + " port=" + target.Port() + " auth_user=" + warden,
			"[pgbouncer]",
			"pool_mode = transaction",
			"default_pool_size = " + strconv.Itoa(size),
			"max_client_conn = 1000",
			"listen_addr = 127.0.0.1",
			"listen_port = " + through.Port(),
			"unix_socket_dir =",
			"auth_type = scram-sha-256",
			"auth_file = " + filepath.Join(b.dir, "users"),
			"auth_query = SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = $1",
			"logfile = " + filepath.Join(b.dir, "log"),
			"pidfile = " + filepath.Join(b.dir, "pid"),
		}, "\n") + "\n",
	}
	for name, text := range files {
		path := filepath.Join(b.dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chown(path, uid, gid)); err != nil {
			return fmt.Errorf("pgtest: %w", err)
		}
	}
	return nil
}

// answers waits until a statement gets through. Somebody else at the port is no danger: ours would have ended.
func (b *PgBouncer) answers(ctx context.Context) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := b.ask(ctx)
		if ended(b.server) {
			b.server = nil
			return fmt.Errorf("pgtest: PgBouncer stopped at once: %w\n%s", err, b.Log())
		}
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("pgtest: PgBouncer does not answer: %w\n%s", err, b.Log())
		}
	}
}

func (b *PgBouncer) ask(ctx context.Context) error {
	config, err := pgx.ParseConfig(b.URL)
	if err != nil {
		return err
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeExec // it cannot keep prepared statements apart
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "SELECT 1")
	return errors.Join(err, conn.Close(ctx))
}

// Log returns what it has written so far.
func (b *PgBouncer) Log() string {
	text, err := os.ReadFile(filepath.Join(b.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Stop ends it and removes its folder. It may be called twice.
func (b *PgBouncer) Stop() error { return b.keeper.end(b.server) }

func pgBouncerBinary() (string, error) {
	// Debian keeps it where only root's PATH leads.
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/usr/local/sbin") {
		if path := filepath.Join(dir, "pgbouncer"); executable(path) {
			return path, nil
		}
	}
	return "", errors.New("pgtest: PgBouncer is not installed; run: make setup")
}
