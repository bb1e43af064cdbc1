package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/bench/lab"
)

// The client in TypeScript, typed from the document that this very server shows, does in Node what its own tests say, against
// three nodes.
func TestTypeScriptClient(t *testing.T) {
	t.Parallel() // it waits more than it works
	root, err := lab.Root()
	if err != nil {
		t.Fatal(err)
	}
	modules := filepath.Join(root, ".cache", "client", "node_modules")
	if _, err := os.Stat(filepath.Join(modules, "typescript")); err != nil {
		t.Fatal("what the client is built with is not installed; run `make setup`")
	}
	// In a copy: nothing that is generated lands among the sources.
	dir := t.TempDir()
	for _, part := range []string{"src", "test"} {
		if err := os.CopyFS(filepath.Join(dir, part), os.DirFS(filepath.Join(root, "clients", "typescript", part))); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"package.json", "tsconfig.json"} {
		raw, err := os.ReadFile(filepath.Join(root, "clients", "typescript", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}

	s := startSeveral(t, 3)
	steps := examples(t, root, s.servers[0].URL, filepath.Join(dir, "src", "readme.ts"))
	document, err := fetch(t.Context(), s.servers[0].URL+"/api/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "openapi.json"), document, 0o600); err != nil {
		t.Fatal(err)
	}
	var urls []string
	for _, node := range s.servers {
		urls = append(urls, node.URL)
	}
	run := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, node(t, root), args...)
		cmd.Dir = dir
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "MEMORYD_URLS=" + strings.Join(urls, ",")}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		return out.String(), err
	}
	const sockets = "--experimental-websocket" // in Node 20 behind that name
	for _, args := range [][]string{
		{"node_modules/openapi-typescript/bin/cli.js", "openapi.json", "--output", "src/schema.ts"},
		{"node_modules/typescript/bin/tsc"},
		{sockets, "--test", "dist/test/"},
	} {
		if out, err := run(args...); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	// The examples have to end by themselves: one that keeps a connection would not.
	out, err := run(sockets, "dist/src/readme.js")
	walked(t, "clients/typescript/README.md", steps, out, err)
	if err != nil {
		t.Errorf("the examples end with %v:\n%s", err, out)
	}
}

// examples makes one program of the examples in the client's README, for the server at url, and the account that they sign in with.
func examples(t *testing.T, root, url, program string) []step {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, "clients", "typescript", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	steps := walk(string(raw), "ts")
	if written := strings.Count(string(raw), "```ts\n"); written < 4 || len(steps) != written {
		t.Fatalf("%d of %d examples say what they print", len(steps), written)
	}
	var b strings.Builder
	for i, s := range steps {
		fmt.Fprintf(&b, "%s\nconsole.log(\"\\n%s%d\");\n", s.script, endOfBlock, i)
	}
	const address = "https://chat.example.org"
	if strings.Count(b.String(), address) != 1 {
		t.Fatalf("the examples do not name the server %s once", address)
	}
	if err := os.WriteFile(program, []byte(strings.Replace(b.String(), address, url, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	ada := `{"email": "ada@example.com", "password": "a harbour at night"}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/api/v1/auth/register", strings.NewReader(ada))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusCreated {
		t.Fatalf("no account for the examples: %d", res.StatusCode)
	}
	return steps
}

// node is the one that setup installed where the system's is too old, or the system's.
func node(t *testing.T, root string) string {
	t.Helper()
	if own := filepath.Join(root, ".cache", "npm", "node_modules", ".bin", "node"); exists(own) {
		return own
	}
	path, err := exec.LookPath("node")
	if err != nil {
		t.Fatal("node is not installed; see `make setup`")
	}
	return path
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func fetch(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return io.ReadAll(res.Body)
}
