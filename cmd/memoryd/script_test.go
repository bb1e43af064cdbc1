package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/steptest"
)

// Stories: testdata/script/*.txtar, told twice on the real binary, once on each engine, PostgreSQL behind a PgBouncer in
// transaction mode. Beside what testscript brings they use:
//
//	serve [@NAME] [VAR=VALUE…]   starts a server on a free port and waits until it answers; ! serve: it must refuse,
//	                             and stdout and stderr hold what it said
//	kill9 [@NAME]                kill -9, and waits until it is gone
//	term [@NAME]                 SIGTERM, without waiting
//	quit [@NAME]                 SIGTERM if it was not sent, then the server must end with exit code 0
//	at [@NAME]                   requests go to that server from here on
//	exits CODE COMMAND…          runs a command, which must end with that exit code
//	lines FILE N                 the file (or stdout) has N lines
//	take NAME FILE REGEXP        puts what matches in the file into $NAME
//	logged [@NAME] REGEXP        waits until the server's log has a match
//	upgrade, downgrade           from here on memoryd is its next version, with one more step of the tenants' schema, which
//	                             an account with two conversations of one title is in the way of; and this version again
//	digest FILE FOLDER           writes size, time of change and hash of every database file below the folder into FILE
//	holds FOLDER TEXT            some file below the folder has the text in its bytes or its name; ! holds: none has
//	mailed TEXT                  waits until there is a mail, in the folder of development, that has the text
//	places FILE                  writes the names of tenants' files, and of all schemas where tenants live, into FILE
//	owndb NAME                   a fresh PostgreSQL database such as a user has: its address in $NAME, the password in
//	                             it in $NAME_PASSWORD
//
// and the commands of scripthttp_test.go, scriptevents_test.go and scriptsocket_test.go. What a server prints and logs is in the files out@NAME and log@NAME. The conditions [sqlite], [postgres] and
// [external] tell where tenants live; with [external] the master database is SQLite, so [sqlite] holds too.
func TestStories(t *testing.T) {
	path := binary(t)
	pooler, err := url.Parse(pgtest.Pooled(t, pgtest.URL(t), 10))
	if err != nil {
		t.Fatal(err)
	}
	// Through PgBouncer: what works there works without it, as the crash harness shows.
	pooled := func(t testing.TB) string {
		u, err := url.Parse(pgtest.URL(t))
		if err != nil {
			t.Fatal(err)
		}
		u.Host = pooler.Host
		return u.String()
	}
	for engine, place := range map[string]func(testing.TB, *testscript.Env){
		"sqlite": func(testing.TB, *testscript.Env) {},
		"postgres": func(t testing.TB, env *testscript.Env) {
			env.Setenv("MASTER_DATABASE_URL", pooled(t))
			env.Setenv("TENANT_DATABASE_URLS", pooled(t))
		},
		// Everybody who registers brings a PostgreSQL of their own and moves there first (see cmdRegister).
		"external": func(t testing.TB, env *testscript.Env) {
			env.Setenv("OUTBOUND_ALLOW", "127.0.0.0/8, ::1/128")
			env.Setenv(ownDatabase, pgtest.URL(t))
		},
	} {
		t.Run(engine, func(t *testing.T) {
			testscript.Run(t, testscript.Params{
				Dir: filepath.Join("testdata", "script"),
				Setup: func(env *testscript.Env) error {
					tb := env.T().(testing.TB) // documented for tests that Run starts
					env.Setenv("PATH", filepath.Dir(path)+string(os.PathListSeparator)+env.Getenv("PATH"))
					env.Setenv("STORAGE_PATH", filepath.Join(env.WorkDir, "storage"))
					env.Setenv("PORT", "0")
					place(tb, env)
					s := newStory(tb, env.WorkDir)
					env.Values[storyKey{}] = s
					env.Defer(func() { s.close(tb) })
					return nil
				},
				Condition: func(cond string) (bool, error) {
					switch cond {
					case "external", "postgres":
						return cond == engine, nil
					case "sqlite": // the master is, and one server works alone
						return engine != "postgres", nil
					}
					return false, fmt.Errorf("unknown condition %q", cond)
				},
				Cmds: storyCommands(),
			})
		})
	}
}

// ownDatabase is the variable with the address of the database that those who register bring, if they do.
const ownDatabase = "OWN_DATABASE_URL"

// patience is how long a story waits for anything. Far more than needed: a busy machine must not fail it.
const patience = 60 * time.Second

type storyKey struct{}

// story is what one script's commands share.
type story struct {
	t       testing.TB
	dir     string
	servers map[string]*server
	sinks   map[string]*storySink
	*browser
}

func newStory(t testing.TB, dir string) *story {
	return &story{t: t, dir: dir, servers: make(map[string]*server), sinks: make(map[string]*storySink), browser: newBrowser()}
}

func storyOf(ts *testscript.TestScript) *story {
	return ts.Value(storyKey{}).(*story) // Setup put it there
}

// close ends what is left, and shows what the servers had logged when the story failed.
func (s *story) close(t testing.TB) {
	for _, srv := range s.servers {
		select {
		case <-srv.ended:
		default:
			if srv.url == s.base && !srv.told && s.token != "" && !t.Failed() {
				if err := s.checkEvents(); err != nil {
					t.Error(err)
				}
			}
		}
	}
	s.browser.close()
	for name, srv := range s.servers {
		srv.kill()
		if raw, err := os.ReadFile(srv.log); t.Failed() && err == nil {
			t.Logf("log of server %q:\n%s", name, raw[max(0, len(raw)-8000):])
		}
	}
}

// server is one running memoryd.
type server struct {
	cmd    *exec.Cmd
	url    string
	out    string // file with what it prints
	log    string // file with what it logs
	told   bool   // SIGTERM was sent
	ended  chan struct{}
	failed error // how it ended
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill() // it may be gone
	<-s.ended
}

func (s *server) wait() error {
	select {
	case <-s.ended:
		return s.failed
	case <-time.After(patience):
		return errors.New("the server does not end")
	}
}

func storyCommands() map[string]func(*testscript.TestScript, bool, []string) {
	all := map[string]func(*testscript.TestScript, bool, []string){
		"serve": cmdServe,
		"kill9": func(ts *testscript.TestScript, _ bool, args []string) { serverOf(ts, args).kill() },
		"term": func(ts *testscript.TestScript, _ bool, args []string) {
			s := serverOf(ts, args)
			s.told = true
			ts.Check(s.cmd.Process.Signal(syscall.SIGTERM))
		},
		"quit": func(ts *testscript.TestScript, _ bool, args []string) {
			s := serverOf(ts, args)
			if !s.told {
				if st := storyOf(ts); st.base == s.url && st.token != "" {
					ts.Check(st.checkEvents())
				}
				ts.Check(s.cmd.Process.Signal(syscall.SIGTERM))
			}
			ts.Check(s.wait())
		},
		"at": func(ts *testscript.TestScript, _ bool, args []string) { storyOf(ts).base = serverOf(ts, args).url },
		"exits": func(ts *testscript.TestScript, _ bool, args []string) {
			if len(args) < 2 {
				ts.Fatalf("usage: exits CODE COMMAND…")
			}
			code := 0
			if err := ts.Exec(args[1], args[2:]...); err != nil {
				bad, ok := errors.AsType[*exec.ExitError](err)
				if !ok {
					ts.Fatalf("%v", err)
				}
				code = bad.ExitCode()
			}
			if want, err := strconv.Atoi(args[0]); err != nil || code != want {
				ts.Fatalf("exit code %d, not %s", code, args[0])
			}
		},
		"take": func(ts *testscript.TestScript, _ bool, args []string) {
			if len(args) != 3 {
				ts.Fatalf("usage: take NAME FILE REGEXP")
			}
			re, err := regexp.Compile(args[2])
			ts.Check(err)
			found := re.FindString(ts.ReadFile(args[1]))
			if found == "" {
				ts.Fatalf("no match in %s", args[1])
			}
			ts.Setenv(args[0], found)
		},
		"logged": func(ts *testscript.TestScript, _ bool, args []string) {
			name, rest := named(args)
			if len(rest) != 1 {
				ts.Fatalf("usage: logged [@NAME] REGEXP")
			}
			re, err := regexp.Compile(rest[0])
			ts.Check(err)
			for deadline := time.Now().Add(patience); !re.MatchString(ts.ReadFile("log" + name)); time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					ts.Fatalf("the log has no %s", rest[0])
				}
			}
		},
		"upgrade": func(ts *testscript.TestScript, _ bool, _ []string) {
			ts.Check(buildNext())
			ts.Setenv("PATH", filepath.Dir(nextBuilt)+string(os.PathListSeparator)+ts.Getenv("PATH"))
		},
		"downgrade": func(ts *testscript.TestScript, _ bool, _ []string) {
			ts.Setenv("PATH", filepath.Dir(built)+string(os.PathListSeparator)+ts.Getenv("PATH"))
		},
		"digest": func(ts *testscript.TestScript, _ bool, args []string) {
			if len(args) != 2 {
				ts.Fatalf("usage: digest FILE FOLDER")
			}
			var lines strings.Builder
			ts.Check(filepath.WalkDir(ts.MkAbs(args[1]), func(path string, d fs.DirEntry, err error) error {
				if err != nil || filepath.Ext(path) != ".db" {
					return err
				}
				raw, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				info, err := d.Info()
				if err == nil {
					fmt.Fprintf(&lines, "%s %d %s %x\n", d.Name(), len(raw), info.ModTime().Format(time.RFC3339Nano), sha256.Sum256(raw))
				}
				return err
			}))
			if lines.Len() == 0 {
				ts.Fatalf("there is no database file below %s", args[1])
			}
			ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(lines.String()), 0o600))
		},
		"holds": func(ts *testscript.TestScript, neg bool, args []string) {
			if len(args) != 2 {
				ts.Fatalf("usage: holds FOLDER TEXT")
			}
			found := ""
			ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(path string, d fs.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() {
					return err
				}
				raw, err := os.ReadFile(path)
				if errors.Is(err, fs.ErrNotExist) { // a log that was folded in
					return nil
				}
				if strings.Contains(path, args[1]) || bytes.Contains(raw, []byte(args[1])) {
					found = path
				}
				return err
			}))
			if neg && found != "" {
				ts.Fatalf("%s has %q", found, args[1])
			}
			if !neg && found == "" {
				ts.Fatalf("no file has %q", args[1])
			}
		},
		"mailed": func(ts *testscript.TestScript, _ bool, args []string) {
			if len(args) != 1 {
				ts.Fatalf("usage: mailed TEXT")
			}
			for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
				list, err := filepath.Glob(ts.MkAbs("storage/mails/*.eml"))
				ts.Check(err)
				for _, name := range list {
					if strings.Contains(ts.ReadFile(name), args[0]) {
						return
					}
				}
				if time.Now().After(deadline) {
					ts.Fatalf("no mail has %q", args[0])
				}
			}
		},
		"places": func(ts *testscript.TestScript, _ bool, args []string) {
			if len(args) != 1 {
				ts.Fatalf("usage: places FILE")
			}
			list := ""
			ts.Check(filepath.WalkDir(ts.MkAbs("storage/tenants"), func(_ string, d fs.DirEntry, err error) error {
				if errors.Is(err, fs.ErrNotExist) { // nobody lives in a file
					return nil
				}
				if err == nil && !d.IsDir() && filepath.Ext(d.Name()) == ".db" {
					list += d.Name() + "\n"
				}
				return err
			}))
			for _, at := range []string{ts.Getenv("TENANT_DATABASE_URLS"), ts.Getenv(ownDatabase)} {
				if at != "" {
					names, err := pgtest.Schemas(at)
					ts.Check(err)
					list += strings.Join(names, "\n") + "\n"
				}
			}
			ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(list), 0o600))
		},
		"owndb": func(ts *testscript.TestScript, _ bool, args []string) {
			if len(args) != 1 {
				ts.Fatalf("usage: owndb NAME")
			}
			u, err := url.Parse(pgtest.URL(storyOf(ts).t))
			ts.Check(err)
			secret, _ := u.User.Password()
			u.RawQuery = "sslmode=disable"
			ts.Setenv(args[0], u.String())
			ts.Setenv(args[0]+"_PASSWORD", secret)
		},
		"lines": func(ts *testscript.TestScript, _ bool, args []string) {
			if n := strings.Count(ts.ReadFile(args[0]), "\n"); len(args) != 2 || strconv.Itoa(n) != args[1] {
				ts.Fatalf("%d lines, not %v", n, args[1:])
			}
		},
	}
	for name, cmd := range browserCommands() {
		all[name] = cmd
	}
	return all
}

// named takes @NAME off the arguments.
func named(args []string) (name string, rest []string) {
	if len(args) > 0 && strings.HasPrefix(args[0], "@") {
		return args[0], args[1:]
	}
	return "@", args
}

func serverOf(ts *testscript.TestScript, args []string) *server {
	name, rest := named(args)
	s := storyOf(ts).servers[name]
	if s == nil || len(rest) > 0 {
		ts.Fatalf("no server %q, or too many arguments", name)
	}
	return s
}

var listens = regexp.MustCompile(`listens on (http://\S+) .*\n`)

func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	st := storyOf(ts)
	name, extra := named(args)
	if old := st.servers[name]; old != nil {
		select {
		case <-old.ended:
		default:
			ts.Fatalf("server %s is still running", name)
		}
	}
	s := &server{cmd: exec.Command(binaryIn(ts), "serve"), log: filepath.Join(st.dir, "log"+name),
		out: filepath.Join(st.dir, "out"+name), ended: make(chan struct{})}
	s.cmd.Dir = ts.MkAbs(".")
	for _, v := range append([]string{"PATH", "HOME", "TMPDIR"}, settingNames()...) {
		if value := ts.Getenv(v); value != "" {
			s.cmd.Env = append(s.cmd.Env, v+"="+value)
		}
	}
	for _, kv := range extra {
		s.cmd.Env = append(s.cmd.Env, os.Expand(kv, ts.Getenv))
	}
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)
	defer log.Close()
	out, err := os.Create(s.out)
	ts.Check(err)
	defer out.Close()
	var complaint strings.Builder
	s.cmd.Stdout, s.cmd.Stderr = out, log
	if neg {
		s.cmd.Stderr = &complaint
	} else {
		st.servers[name] = s
	}
	ts.Check(s.cmd.Start())
	go func() {
		s.failed = s.cmd.Wait()
		close(s.ended)
	}()
	listening, err := s.listening()
	switch {
	case err != nil:
		s.kill()
		ts.Fatalf("%v", err)
	case listening && neg:
		s.kill()
		ts.Fatalf("the server started")
	case !listening && !neg:
		ts.Fatalf("the server did not start: %v", s.failed)
	case !listening && s.failed == nil:
		ts.Fatalf("the server ended without an error")
	}
	fmt.Fprint(ts.Stderr(), complaint.String())
	if listening {
		// The port is open before all is said; an answer comes after.
		ts.Check(probe(s.url))
		st.base = s.url
		ts.Setenv("URL"+strings.TrimPrefix(name, "@"), s.url)
	}
	fmt.Fprint(ts.Stdout(), ts.ReadFile(s.out))
}

// listening waits until the server tells its address, or ends (false).
func (s *server) listening() (bool, error) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		said, err := os.ReadFile(s.out)
		if err != nil {
			return false, err
		}
		if m := listens.FindSubmatch(said); m != nil {
			s.url = string(m[1])
			return true, nil
		}
		select {
		case <-s.ended:
			return false, nil
		case <-time.After(10 * time.Millisecond): // a file tells nobody that it has grown
		}
	}
	return false, errors.New("the server neither started nor ended")
}

func probe(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/api/v1/health/liveness", nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

func settingNames() (names []string) {
	for _, v := range variables() {
		names = append(names, v.name, v.name+"_FILE")
	}
	return names
}

// binaryIn is the memoryd that the script's PATH begins with.
func binaryIn(ts *testscript.TestScript) string {
	first, _, _ := strings.Cut(ts.Getenv("PATH"), string(os.PathListSeparator))
	return filepath.Join(first, "memoryd")
}

// built and nextBuilt are where the binaries of these tests lie; TestMain removes them.
var built, nextBuilt string

func TestMain(m *testing.M) {
	code := m.Run()
	for _, path := range []string{built, nextBuilt} {
		if path != "" {
			_ = os.RemoveAll(filepath.Dir(path))
		}
	}
	os.Exit(code)
}

// build makes the binary once for all tests, without the race detector: it is what ships that is looked at. Without
// symbols for debuggers, as it ships, it links in two thirds of the time.
var build = sync.OnceValue(func() error {
	dir, err := os.MkdirTemp("", "memoryd-test-")
	if err != nil {
		return err
	}
	built = filepath.Join(dir, "memoryd")
	if out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", built, ".").CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
})

// buildNext makes the next version of it, for stories about upgrading.
var buildNext = sync.OnceValue(func() error {
	dir, err := os.MkdirTemp("", "memoryd-next-")
	if err != nil {
		return err
	}
	nextBuilt = filepath.Join(dir, "memoryd")
	return steptest.Build(nextBuilt, nextStep)
})

const nextStep = `ALTER TABLE conversations ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm';
CREATE UNIQUE INDEX one_title ON conversations (title);`

// binary returns the path of the real memoryd.
func binary(t testing.TB) string {
	t.Helper()
	if err := build(); err != nil {
		t.Fatal(err)
	}
	return built
}
