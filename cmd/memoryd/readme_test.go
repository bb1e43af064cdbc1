package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// step is one block of the README's walk, with what its output must and must not hold.
type step struct {
	line           int
	script         string
	wanted, banned []string
}

// walk reads the blocks of a language that a comment <!-- walk --> precedes. <!-- walk: text --> demands text in the
// output of the block below it, <!-- walk-not: text --> forbids it.
func walk(readme, language string) []step {
	var steps []step
	var next *step
	inside := false
	for i, line := range strings.Split(readme, "\n") {
		note, isNote := strings.CutPrefix(line, "<!-- walk")
		switch {
		case inside && line == "```":
			inside, steps, next = false, append(steps, *next), nil
		case inside:
			next.script += line + "\n"
		case isNote:
			if next == nil {
				next = &step{}
			}
			note = strings.TrimSuffix(note, " -->")
			if text, ok := strings.CutPrefix(note, ": "); ok {
				next.wanted = append(next.wanted, text)
			}
			if text, ok := strings.CutPrefix(note, "-not: "); ok {
				next.banned = append(next.banned, text)
			}
		case line == "```"+language && next != nil:
			inside, next.line = true, i+1
		}
	}
	return steps
}

// The README's walk does what it says: its blocks run in one shell, against the real binary.
func TestREADMEWalk(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	steps := walk(string(raw), "bash")
	if len(steps) < 8 {
		t.Fatalf("only %d blocks found: the walk is longer", len(steps))
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(binary(t), filepath.Join(dir, "bin", "memoryd")); err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for i, s := range steps {
		fmt.Fprintf(&script, "%s\necho; echo '%s%d'\n", s.script, endOfBlock, i)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	var out bytes.Buffer
	bash := exec.CommandContext(ctx, "bash", "-u", "-c", script.String())
	bash.Dir, bash.Stdout, bash.Stderr = dir, &out, &out
	bash.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "PORT=" + freePort(t), "STORAGE_PATH=" + dir + "/storage"}
	// The server is a child of the shell: when the walk stumbles, both go.
	bash.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	group := func() error { return syscall.Kill(-bash.Process.Pid, syscall.SIGKILL) }
	bash.Cancel = group
	if err := bash.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = group() }) // nothing is left of it when all went well
	failed := bash.Wait()
	walked(t, "README.md", steps, out.String(), failed)
	if failed != nil {
		t.Errorf("the walk ended with: %v", failed)
	}
}

// endOfBlock is printed after each block, with its number.
const endOfBlock = "--- end of block "

// walked holds what the blocks printed against what they say.
func walked(t *testing.T, file string, steps []step, printedAll string, failed error) {
	t.Helper()
	for i, s := range steps {
		printed, after, ended := strings.Cut(printedAll, endOfBlock+strconv.Itoa(i)+"\n")
		printedAll = after
		for _, want := range s.wanted {
			if !strings.Contains(printed, want) {
				t.Errorf("%s:%d: the block does not print %q, but:\n%s", file, s.line, want, printed)
			}
		}
		for _, not := range s.banned {
			if strings.Contains(printed, not) {
				t.Errorf("%s:%d: the block prints %q:\n%s", file, s.line, not, printed)
			}
		}
		if !ended {
			t.Fatalf("%s:%d: the block did not come to its end: %v", file, s.line, failed)
		}
	}
}

// The README's table of variables is the table of the code: the same names, defaults and secrets.
func TestREADMEVariables(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		secret   bool
		fallback string
	}
	told := map[string]row{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z0-9_]+)` \\| (S?) ?\\| (?:`([^`]*)` )?\\| ").FindAllStringSubmatch(string(raw), -1) {
		told[m[1]] = row{m[2] == "S", m[3]}
	}
	for _, v := range variables() {
		got, ok := told[v.name]
		if want := (row{v.secret, v.fallback}); !ok || got != want {
			t.Errorf("%s: README says %+v (there: %v), the code %+v", v.name, got, ok, want)
		}
		delete(told, v.name)
	}
	for name := range told {
		t.Errorf("README explains %s, which the code does not read", name)
	}
}

// freePort finds a port that nobody listens on at this moment. It is below those that the system gives to whoever asks for any,
// one of whom would have it before the server does.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(10_000 + rand.IntN(20_000))
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:"+port)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return port
	}
	t.Fatal("no port is free")
	return ""
}
