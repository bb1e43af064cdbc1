package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
)

func keyring(t *testing.T) *seal.Keyring {
	t.Helper()
	k, err := seal.NewKeyring("an entirely unguessable phrase, 0123456789")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// open opens a spool without closing it, as a process that will be killed does.
func open(t *testing.T, dir string, adjust ...func(*Config)) *Spool {
	t.Helper()
	c := Config{Folder: dir, Sealer: keyring(t)}
	for _, f := range adjust {
		f(&c)
	}
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// kill gives the locks up and nothing else, as the end of a process does.
func kill(s *Spool) {
	for _, f := range s.folders {
		_ = f.lock.Close()
	}
}

func add(t *testing.T, p *Tenant, turn ident.TurnID, records ...string) {
	t.Helper()
	for _, r := range records {
		if err := p.Append(turn, []byte(r)); err != nil {
			t.Fatal(err)
		}
	}
}

func wantRecords(t *testing.T, p *Tenant, turn ident.TurnID, want ...string) {
	t.Helper()
	got, err := p.Records(turn)
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, r := range got {
		texts = append(texts, string(r))
	}
	if !slices.Equal(texts, want) {
		t.Fatalf("got %q, want %q", texts, want)
	}
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if err == nil || fault.CodeOf(err) != code {
		t.Fatalf("want code %q, got %v", code, err)
	}
}

// files are all files below a folder but locks, with what is in them.
func files(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".lock") {
			return err
		}
		out[path], err = os.ReadFile(path)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

var (
	ada, bob = ident.New[ident.TenantID](), ident.New[ident.TenantID]()
	first    = ident.New[ident.TurnID]()
	second   = ident.New[ident.TurnID]()
)

func TestRecordsComeBack(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	add(t, s.Tenant(ada), first, "one", "", "three")
	add(t, s.Tenant(ada), second, "other")
	add(t, s.Tenant(bob), first, "of somebody else")
	check := func(s *Spool) {
		t.Helper()
		wantRecords(t, s.Tenant(ada), first, "one", "", "three")
		wantRecords(t, s.Tenant(bob), first, "of somebody else")
		wantRecords(t, s.Tenant(bob), second)
		if got := s.Tenant(ada).Turns(); len(got) != 2 || !s.Tenant(ada).Holds(second) || s.Tenant(bob).Holds(second) {
			t.Errorf("turns %v", got)
		}
		if got := s.Tenants(); len(got) != 2 || s.Stats().Turns != 3 {
			t.Errorf("tenants %v, %+v", got, s.Stats())
		}
	}
	check(s)
	t.Run("not to another process that lives beside", func(t *testing.T) {
		beside := open(t, dir)
		wantRecords(t, beside.Tenant(ada), first)
		if n := beside.Stats(); n != (Stats{}) {
			t.Errorf("%+v", n)
		}
	})
	whole := t // what is opened below lives for the rest of it
	t.Run("but to the next one after a kill", func(t *testing.T) {
		size := s.Stats()
		kill(s)
		s = open(whole, dir)
		check(s)
		if s.Stats() != size {
			t.Errorf("%+v, want %+v", s.Stats(), size)
		}
		add(t, s.Tenant(ada), first, "four")
		wantRecords(t, s.Tenant(ada), first, "one", "", "three", "four")
	})
	t.Run("until they are dropped", func(t *testing.T) {
		for range 2 { // twice is once
			if err := s.Tenant(ada).Drop(first); err != nil {
				t.Fatal(err)
			}
		}
		wantRecords(t, s.Tenant(ada), first)
		wantRecords(t, s.Tenant(bob), first, "of somebody else")
		if err := errors.Join(s.Discard(ada), s.Discard(bob)); err != nil {
			t.Fatal(err)
		}
		if n := s.Stats(); n != (Stats{}) || len(s.tenants) != 0 || len(files(t, dir)) != 0 {
			t.Errorf("%+v, %v, %d files", n, s.tenants, len(files(t, dir)))
		}
	})
	t.Run("and no folder is left", func(t *testing.T) {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 2 { // of the process that lives beside
			t.Errorf("%v %v", left, err)
		}
	})
}

// Whoever still works when the spool is closed takes nothing from the next process.
func TestNothingIsDroppedAfterClose(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	add(t, s.Tenant(ada), first, "one")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	next := open(t, dir)
	wantCode(t, s.Tenant(ada).Drop(first), "shutting_down")
	wantCode(t, s.Tenant(ada).Append(first, []byte("two")), "shutting_down")
	wantRecords(t, next.Tenant(ada), first, "one")
}

func TestNothingCanBeReadOrMoved(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	const secret = "what nobody else may know"
	add(t, s.Tenant(ada), first, secret, secret)
	add(t, s.Tenant(ada), second, secret)
	found := func() (n int) {
		for _, raw := range files(t, dir) {
			if bytes.Contains(raw, []byte(secret)) || bytes.Contains(raw, []byte("nobody")) {
				n++
			}
		}
		return n
	}
	if n := found(); n > 0 {
		t.Errorf("%d files show it", n)
	}
	if err := os.WriteFile(filepath.Join(s.own.path, "control"), []byte("x"+secret+"x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if found() == 0 {
		t.Error("the search finds nothing where something is")
	}
	if err := os.Rename(filepath.Join(s.own.path, string(ada)+"."+string(first)), filepath.Join(s.own.path, string(bob)+"."+string(first))); err != nil {
		t.Fatal(err)
	}
	kill(s)
	s = open(t, dir)
	_, err := s.Tenant(bob).Records(first)
	wantCode(t, err, "seal_broken")
	if s.Tenant(bob).Holds(first) || slices.Contains(s.Tenants(), bob) {
		t.Error("it is spoken of again")
	}
	wantRecords(t, s.Tenant(ada), second, secret)
}

func TestATornEndIsLeftOut(t *testing.T) {
	for name, tear := range map[string]func(raw []byte, last int) []byte{
		"cut":        func(raw []byte, _ int) []byte { return raw[:len(raw)-1] },
		"cut short":  func(raw []byte, last int) []byte { return raw[:last+2] },
		"zeroes":     func(raw []byte, last int) []byte { clear(raw[last:]); return raw },
		"other text": func(raw []byte, last int) []byte { clear(raw[last+4:]); return raw },
		"more":       func(raw []byte, _ int) []byte { return append(raw, 0, 0, 0, 9, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			add(t, s.Tenant(ada), first, "one", "two")
			for path, raw := range files(t, dir) {
				last := 4 + int(binary.BigEndian.Uint32(raw))
				if err := os.WriteFile(path, tear(raw, last), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			kill(s)
			s = open(t, dir)
			want := []string{"one"}
			if name == "more" {
				want = []string{"one", "two"}
			}
			wantRecords(t, s.Tenant(ada), first, want...)
			add(t, s.Tenant(ada), first, "next")
			wantRecords(t, s.Tenant(ada), first, append(want, "next")...)
			if err := s.Discard(ada); err != nil || s.Stats() != (Stats{}) {
				t.Errorf("%v, %+v", err, s.Stats())
			}
		})
	}
}

func TestBounds(t *testing.T) {
	record := bytes.Repeat([]byte("x"), 100)
	one := open(t, t.TempDir())
	add(t, one.Tenant(ada), first, string(record))
	size := one.Stats().Bytes
	for _, c := range []struct {
		name   string
		adjust func(*Config)
		next   func(s *Spool, n int) error
		fits   int
	}{
		{"of a turn", func(c *Config) { c.PerTurn = 5 * size }, func(s *Spool, _ int) error {
			return s.Tenant(ada).Append(first, record)
		}, 5},
		{"of a tenant", func(c *Config) { c.PerTenant = 7*size + 1 }, func(s *Spool, n int) error {
			return s.Tenant(ada).Append([]ident.TurnID{first, second}[n%2], record)
		}, 7},
		{"of all", func(c *Config) { c.Total = 9*size - 1 }, func(s *Spool, n int) error {
			return s.Tenant([]ident.TenantID{ada, bob}[n%2]).Append(first, record)
		}, 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, c.adjust)
			for n := range c.fits {
				if err := c.next(s, n); err != nil {
					t.Fatal(err)
				}
			}
			full := s.Stats()
			for n := range 3 {
				err := c.next(s, n)
				wantCode(t, err, "spool_full")
				if !fault.Is(err, fault.Unavailable) || s.Stats() != full {
					t.Fatalf("%v, %+v", err, s.Stats())
				}
			}
			onDisk := int64(0)
			for _, raw := range files(t, dir) {
				onDisk += int64(len(raw))
			}
			if onDisk != full.Bytes {
				t.Errorf("%d bytes on disk, %d counted", onDisk, full.Bytes)
			}
			if err := s.Tenant(ada).Drop(first); err != nil {
				t.Fatal(err)
			}
			if err := c.next(s, 0); err != nil {
				t.Errorf("there is room again: %v", err)
			}
		})
	}
	t.Run("a turn that does not fit at all leaves nothing", func(t *testing.T) {
		dir := t.TempDir()
		s := open(t, dir, func(c *Config) { c.PerTurn = 10 })
		wantCode(t, s.Tenant(ada).Append(first, record), "spool_full")
		if s.Stats() != (Stats{}) || s.Tenant(ada).Holds(first) || len(files(t, dir)) != 0 {
			t.Errorf("%+v", s.Stats())
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	var wg sync.WaitGroup
	for w := range 8 {
		turn := ident.New[ident.TurnID]()
		wg.Go(func() {
			p := s.Tenant([]ident.TenantID{ada, bob}[w%2])
			for n := range 20 {
				if err := p.Append(turn, fmt.Append(nil, n)); err != nil {
					t.Error(err)
				}
				p.Turns()
				s.Tenants()
				if n == 10 {
					if err := p.Drop(turn); err != nil {
						t.Error(err)
					}
				}
			}
			if got, err := p.Records(turn); err != nil || len(got) != 9 || string(got[0]) != "11" {
				t.Errorf("%d records, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	if s.Stats().Turns != 8 {
		t.Errorf("%+v", s.Stats())
	}
}

func TestAFolderThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := os.RemoveAll(s.own.path); err != nil {
		t.Fatal(err)
	}
	err := s.Tenant(ada).Append(first, []byte("x"))
	wantCode(t, err, "storage_failed")
	if s.Stats() != (Stats{}) || s.Tenant(ada).Holds(first) {
		t.Errorf("%+v", s.Stats())
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Folder: file, Sealer: keyring(t)}); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
}
