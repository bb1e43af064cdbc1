package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestScratch(t *testing.T) {
	t.Run("it is the place of temporary files until it ends", func(t *testing.T) {
		t.Setenv("TMPDIR", "")
		t.Setenv("GOTMPDIR", "")
		before := roomy()
		s, err := newScratch()
		if err != nil {
			t.Fatal(err)
		}
		if (s != nil) != before && before == roomy() { // others on this machine take memory, and give it back
			t.Fatalf("made: %v", s != nil)
		}
		disk := os.TempDir()
		if err := s.use(); err != nil {
			t.Fatal(err)
		}
		if s == nil { // a small machine: all stays as it is
			if os.TempDir() != disk {
				t.Errorf("temporary files are in %s", os.TempDir())
			}
			return
		}
		if filepath.Dir(os.TempDir()) != shm || os.Getenv("GOTMPDIR") != disk {
			t.Errorf("temporary files are in %s, those of the go command in %s", os.TempDir(), os.Getenv("GOTMPDIR"))
		}
		if err := os.WriteFile(filepath.Join(os.TempDir(), "left"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		// This closes the pipe, as the end of the process does in whatever way.
		if err := s.end(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(s.dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it stays: %v", err)
		}
	})
	t.Run("whoever chose a place keeps it", func(t *testing.T) {
		t.Setenv("TMPDIR", t.TempDir())
		if s, err := newScratch(); s != nil || err != nil {
			t.Error(s, err)
		}
	})
}
