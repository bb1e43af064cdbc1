package main

import (
	"bytes"
	"context"
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
	for _, args := range [][]string{
		{"node_modules/openapi-typescript/bin/cli.js", "openapi.json", "--output", "src/schema.ts"},
		{"node_modules/typescript/bin/tsc"},
		{"--experimental-websocket", "--test", "dist/test/"}, // in Node 20 behind that name
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		cmd := exec.CommandContext(ctx, node(t, root), args...)
		cmd.Dir = dir
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "MEMORYD_URLS=" + strings.Join(urls, ",")}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		cancel()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out.String())
		}
	}
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
