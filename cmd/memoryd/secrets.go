package main

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"claude-memory-backend/internal/seal"
)

// devSecrets is the file of generated secrets beside the data. It protects nothing from whoever takes the folder.
const devSecrets = "development-secrets.json"

// completeSecrets fills in, in development, the secrets that nobody set: made once and kept, so that tokens and
// tenants survive a restart.
func (s *settings) completeSecrets() error {
	if s.production() {
		return nil
	}
	missing := []string{}
	for _, name := range []string{"JWT_SECRET", "MASTER_KEY"} {
		if s.text(name) == "" {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	path := s.storage(devSecrets)
	kept := map[string]string{}
	raw, err := os.ReadFile(path)
	switch {
	case err == nil:
		if err := json.Unmarshal(raw, &kept); err != nil {
			return fmt.Errorf("%s cannot be understood; it holds the key to the tenants' data, so it is not replaced", path)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s cannot be read: %w", path, err)
	}
	fresh := false
	for _, name := range missing {
		if kept[name] == "" {
			b := make([]byte, 36)
			_, _ = rand.Read(b) // never fails
			kept[name], fresh = base64.StdEncoding.EncodeToString(b), true
		}
		s.made[name] = seal.Secret(kept[name])
		v := s.values[name]
		v.source = "generated"
		s.values[name] = v
	}
	if !fresh {
		return nil
	}
	if raw, err = json.MarshalIndent(kept, "", "  "); err != nil {
		return err
	}
	return writeKept(path, raw)
}

// writeKept writes a private file so that a crash leaves the old one or the new one, never half of it.
func writeKept(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".kept-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // after the rename nothing has that name
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(0o600), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	// Without this a power cut could keep the tenants' files and lose the key that opens them.
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
