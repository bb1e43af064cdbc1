package steptest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"claude-memory-backend/internal/sqlstore"
)

// Build builds the program as its next version might be: with more steps of the tenants' line, as [Next] takes them. It
// must be called within a checkout.
func Build(out string, more ...string) error {
	released, err := sqlstore.Released()
	if err != nil {
		return err
	}
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(mod)))
	dir, err := os.MkdirTemp("", "steps-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // of no use any more
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for i, sql := range more {
		text := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(text, []byte(sql), 0o600); err != nil {
			return err
		}
		for _, engine := range engines {
			overlay.Replace[filepath.Join(root, "internal", "sqlstore", stepFile(released, i, engine))] = text
		}
	}
	raw, err := json.Marshal(overlay)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		return err
	}
	build := exec.Command("go", "build", "-ldflags=-s -w", "-overlay", file, "-o", out, "./cmd/memoryd")
	build.Dir = root
	if said, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, said)
	}
	return nil
}
