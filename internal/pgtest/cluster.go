package pgtest

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// patience is how long a cluster may take to answer. A recovery after Kill on a busy machine is the slow case.
const patience = 60 * time.Second

// Options changes what Start builds. The zero value is right for nearly everything.
type Options struct {
	// Settings are added to postgresql.conf last, as in "max_connections": "20".
	Settings map[string]string
	// Files are put into the data directory, readable for the server alone: "server.crt" and "server.key" for TLS.
	Files map[string]string
}

// Cluster is one running PostgreSQL server with its own data directory.
type Cluster struct {
	// URL is the address of the database "postgres" for the superuser.
	URL string

	dir      string // holds data/, log and the password file; removed at the end
	nonce    string // cluster_name: proves that the server behind the port is this one
	postgres string // path of the server binary
	as       *syscall.SysProcAttr
	uid, gid int // whom the data belongs to
	server   *exec.Cmd
	keeper   *keeper
}

// Start makes a new cluster and waits until it answers. The caller must Stop it; should the process die first, the
// keeper does.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	bin, err := binaries()
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
	c := &Cluster{dir: dir, nonce: "pgtest-" + rand.Text(), postgres: filepath.Join(bin, "postgres"), as: as, uid: uid, gid: gid}
	data := filepath.Join(dir, "data")
	if c.keeper, err = keep(as, dir, data, filepath.Join(data, "postmaster.pid"), "QUIT"); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := c.build(ctx, filepath.Join(bin, "initdb"), o); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	// A port that was free a moment ago may be taken now, so a failed start is tried again with another one.
	for range 5 {
		if err = c.run(ctx); err == nil {
			return c, nil
		}
	}
	return nil, errors.Join(err, c.Stop())
}

// Kill ends the server as a power cut would: no checkpoint, no farewell to clients.
func (c *Cluster) Kill() error {
	if err := c.server.Process.Kill(); err != nil {
		return fmt.Errorf("pgtest: killing the server: %w", err)
	}
	_ = c.server.Wait() // "signal: killed" is what was asked for
	return nil
}

// Restart starts the server again on the data that Kill left, at the same address, and waits for its recovery.
func (c *Cluster) Restart(ctx context.Context) error {
	deadline := time.Now().Add(patience)
	for {
		err := c.launch(ctx)
		// The dead server's children hold its shared memory for a moment; until they are gone a new one refuses.
		if err == nil || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Freeze stops every process of the server where it stands (SIGSTOP): the port is open, connections are taken by the
// kernel, and nothing answers any more. Thaw lets it go on.
func (c *Cluster) Freeze() error {
	// The postmaster first and surely, so that no child is born while the others are being stopped.
	if err := c.server.Process.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("pgtest: freezing the server: %w", err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.PID()))
		if err != nil {
			return fmt.Errorf("pgtest: freezing the server: %w", err)
		}
		if _, rest, _ := bytes.Cut(stat, []byte(") ")); bytes.HasPrefix(rest, []byte("T")) {
			break
		}
		if time.Now().After(deadline) {
			return errors.New("pgtest: the server does not freeze")
		}
	}
	return c.signalChildren(syscall.SIGSTOP)
}

// Thaw lets a frozen server go on as if nothing had been.
func (c *Cluster) Thaw() error {
	if err := c.signalChildren(syscall.SIGCONT); err != nil {
		return err
	}
	if err := c.server.Process.Signal(syscall.SIGCONT); err != nil {
		return fmt.Errorf("pgtest: thawing the server: %w", err)
	}
	return nil
}

// signalChildren signals the processes that the postmaster has made, one for each connection and some more.
func (c *Cluster) signalChildren(s syscall.Signal) error {
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", c.PID(), c.PID()))
	if err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	for _, word := range strings.Fields(string(list)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return fmt.Errorf("pgtest: %w", err)
		}
		if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) { // one that ends is fine
			return fmt.Errorf("pgtest: %w", err)
		}
	}
	return nil
}

// PID is the postmaster's process id.
func (c *Cluster) PID() int { return c.server.Process.Pid }

// Log returns what the server has written so far.
func (c *Cluster) Log() string {
	text, err := os.ReadFile(filepath.Join(c.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Stop ends the server, frozen or not, and removes its data. It may be called twice.
func (c *Cluster) Stop() error { return c.keeper.end(c.server) }

// build makes the data directory.
func (c *Cluster) build(ctx context.Context, initdb string, o Options) error {
	password := rand.Text()
	secret := filepath.Join(c.dir, "password")
	verifier, err := scram(password)
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(secret, []byte(verifier+"\n"), 0o600), os.Chown(secret, c.uid, c.gid)); err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	c.URL = (&url.URL{Scheme: "postgres", User: url.UserPassword("postgres", password), Path: "/postgres",
		RawQuery: "sslmode=disable"}).String()

	args := []string{"--pgdata", filepath.Join(c.dir, "data"), "--username", "postgres", "--pwfile", secret,
		"--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8",
		"--no-sync"} // initdb's own files only; the server still syncs what it commits
	major, err := version(ctx, initdb)
	if err != nil {
		return err
	}
	if major >= 15 {
		// A linguistic order, as many operators have, differs from SQLite's: whatever forgets to ask for an
		// order of bytes is found here and not at the operator's.
		args = append(args, "--locale-provider", "icu", "--icu-locale", "en-US")
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, initdb, args...)
	cmd.SysProcAttr, cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = c.as, c.dir, cleanEnv(), &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("pgtest: initdb: %w\n%s", err, out.String())
	}

	settings := []string{
		"listen_addresses = '127.0.0.1'",
		"unix_socket_directories = ''",
		"cluster_name = '" + c.nonce + "'",
		"max_connections = 200",
		"max_locks_per_transaction = 512", // a schema per tenant: many relations in one transaction
		"shared_buffers = '64MB'",
		"max_wal_size = '512MB'",
	}
	for name, value := range o.Settings {
		settings = append(settings, name+" = '"+strings.ReplaceAll(value, "'", "''")+"'")
	}
	conf, err := os.OpenFile(filepath.Join(c.dir, "data", "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	_, err = conf.WriteString("\n" + strings.Join(settings, "\n") + "\n")
	if err := errors.Join(err, conf.Close()); err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	for name, content := range o.Files {
		if err := c.WriteFile(name, content); err != nil {
			return err
		}
	}
	return nil
}

// scram is what the server keeps of a password, with one round in the place of 4,096. Those protect a password that
// somebody chose from whoever steals the server's files; this one is random. They cost each client its processor's time for
// every connection, tens of milliseconds under the race detector.
func scram(password string) (string, error) {
	salt := []byte(rand.Text())[:16]
	const rounds = 1
	salted, err := pbkdf2.Key(sha256.New, password, salt, rounds, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("pgtest: %w", err)
	}
	keyed := func(text string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(keyed("Client Key"))
	text := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", rounds, text(salt), text(stored[:]), text(keyed("Server Key"))), nil
}

// WriteFile puts a file into the data directory. The server reads most of them when it starts, so Kill it before and
// Restart it after.
func (c *Cluster) WriteFile(name, content string) error {
	path := filepath.Join(c.dir, "data", name)
	if err := errors.Join(os.WriteFile(path, []byte(content), 0o600), os.Chown(path, c.uid, c.gid)); err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	return nil
}

// run picks a free port and launches the server on it.
func (c *Cluster) run(ctx context.Context) error {
	host, err := freePort()
	if err != nil {
		return err
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	u.Host = host
	c.URL = u.String()
	return c.launch(ctx)
}

// launch starts the server at the address in c.URL and returns when it answers as ours.
func (c *Cluster) launch(ctx context.Context) error {
	u, err := url.Parse(c.URL)
	if err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	defer log.Close() //nolint:errcheck // the server holds its own copy
	c.server = exec.Command(c.postgres, "-D", filepath.Join(c.dir, "data"), "-p", u.Port())
	c.server.SysProcAttr, c.server.Dir, c.server.Env = c.as, c.dir, cleanEnv()
	c.server.Stdout, c.server.Stderr = log, log
	if err := c.server.Start(); err != nil {
		return fmt.Errorf("pgtest: starting the server: %w", err)
	}
	deadline := time.Now().Add(patience)
	for {
		err := c.recognise(ctx)
		if err == nil {
			return nil
		}
		if ended(c.server) {
			c.server = nil
			return fmt.Errorf("pgtest: the server stopped at once: %w\n%s", err, c.Log())
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return errors.Join(fmt.Errorf("pgtest: the server does not answer: %w\n%s", err, c.Log()), c.Kill())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// recognise reports an error unless the server at c.URL answers and is this cluster's.
func (c *Cluster) recognise(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, c.URL)
	if err != nil {
		return err
	}
	var name string
	err = conn.QueryRow(ctx, "SELECT current_setting('cluster_name')").Scan(&name)
	if err := errors.Join(err, conn.Close(ctx)); err != nil {
		return err
	}
	if name != c.nonce {
		return fmt.Errorf("another server, %q, listens at this port", name)
	}
	return nil
}

// binaries finds the folder with initdb and postgres; Debian keeps them off the PATH, one folder per version.
func binaries() (string, error) {
	folders := filepath.SplitList(os.Getenv("PATH"))
	debian, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		return "", fmt.Errorf("pgtest: %w", err)
	}
	slices.SortFunc(debian, func(a, b string) int { return majorOf(b) - majorOf(a) }) // newest first
	for _, dir := range append(debian, folders...) {
		if executable(filepath.Join(dir, "initdb")) && executable(filepath.Join(dir, "postgres")) {
			return dir, nil
		}
	}
	return "", errors.New("pgtest: PostgreSQL is not installed (no initdb and postgres found); run: make setup")
}

func majorOf(bin string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin))) // a folder without a number sorts last
	return n
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// version is the major version of a PostgreSQL program.
func version(ctx context.Context, program string) (int, error) {
	out, err := exec.CommandContext(ctx, program, "--version").Output() // "initdb (PostgreSQL) 15.18 (Debian …)"
	if err != nil {
		return 0, fmt.Errorf("pgtest: %s --version: %w", filepath.Base(program), err)
	}
	for _, word := range strings.Fields(string(out)) {
		digits, _, _ := strings.Cut(word, ".")
		if n, err := strconv.Atoi(strings.TrimRight(digits, "abcdefghijklmnopqrstuvwxyz")); err == nil {
			return n, nil
		}
	}
	return 0, fmt.Errorf("pgtest: no version in %q", out)
}
