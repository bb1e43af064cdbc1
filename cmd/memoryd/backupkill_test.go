package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// operator runs commands of the real binary on one installation.
type operator struct {
	*testing.T
	env []string
}

func newOperator(t *testing.T, storage string, more ...string) operator {
	t.Helper()
	env := []string{"STORAGE_PATH=" + storage, "MASTER_KEY=Vt3Nw8Qz1Xc6Rb9Mj4Lk7Hp2Dg5Sy0Fa", "JWT_SECRET=Zq7Lr1Tn9Yb3Hd6Kf5Gs0Pcx8Jq2vWm4",
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	if err := os.MkdirAll(storage, 0o700); err != nil {
		t.Fatal(err)
	}
	return operator{t, append(env, more...)}
}

// run runs a command to its end and returns what it printed.
func (o operator) run(args ...string) string {
	o.Helper()
	out, err := o.try(args...)
	if err != nil {
		o.Fatalf("memoryd %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (o operator) try(args ...string) (string, error) {
	cmd := exec.Command(binary(o.T), args...)
	cmd.Env, cmd.Stdin = o.env, strings.NewReader("a harbour at night\n")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// killed runs a command and kills it after a share of the time that it takes; false when it had ended by then. A machine
// that has become quicker meanwhile is noticed by that.
func (o operator) killed(takes *time.Duration, share float64, args ...string) bool {
	o.Helper()
	ctx, cancel := context.WithTimeout(o.Context(), time.Duration(float64(*takes)*share))
	defer cancel()
	began := time.Now()
	cmd := exec.CommandContext(ctx, binary(o.T), args...) // kill -9 when the time is over
	cmd.Env = o.env
	err := cmd.Run()
	if err != nil && ctx.Err() == nil {
		o.Fatalf("memoryd %s: %v", strings.Join(args, " "), err)
	}
	if err == nil {
		*takes = min(*takes, time.Since(began))
	}
	return err != nil
}

// count is how many files below a folder end so.
func (o operator) count(folder, suffix string) (n int) {
	o.Helper()
	err := filepath.WalkDir(folder, func(path string, _ os.DirEntry, err error) error {
		if strings.HasSuffix(path, suffix) {
			n++
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		o.Fatal(err)
	}
	return n
}

// Backups and restores that are killed at any moment leave what was there before as it was, and the next one completes.
func TestKilledBackupsAndRestores(t *testing.T) {
	const tenants, kills = 12, 8
	dir := t.TempDir()
	here, backups := newOperator(t, filepath.Join(dir, "here")), filepath.Join(dir, "backups")
	for i := range tenants {
		here.run("user", "create", fmt.Sprintf("user%d@example.com", i))
	}
	began := time.Now()
	here.run("backup", "--verify", backups)
	takes := time.Since(began)
	snapshots := func() string { return here.run("backup", "--list", "--verify", backups) }
	first := snapshots()

	cut := 0
	for i := range kills {
		// Each has something to write: one more account.
		here.run("user", "create", fmt.Sprintf("late%d@example.com", i))
		if here.killed(&takes, float64(i+1)/kills, "backup", backups) {
			cut++
		}
		if now := snapshots(); !strings.HasPrefix(now, strings.TrimRight(first, "\n")) || strings.Contains(now, "damaged") {
			t.Fatalf("kill %d: %s", i, now)
		}
	}
	if cut < kills/2 {
		t.Errorf("only %d of %d were killed at work", cut, kills)
	}
	if out := here.run("backup", "--verify", backups); !strings.Contains(out, fmt.Sprintf(" %d databases", tenants+kills+1)) {
		t.Errorf("the last one: %s", out)
	}
	// Markers of the dead keep others from removing anything, for a while.
	if out, err := here.try("backup", "--prune", backups); err == nil || !strings.Contains(out, "backup_busy") {
		t.Errorf("prune: %v %s", err, out)
	}
	markers, err := filepath.Glob(filepath.Join(backups, "running", "*"))
	if err != nil || len(markers) == 0 {
		t.Fatal(markers, err)
	}
	for _, m := range markers {
		if err := os.Chtimes(m, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	here.run("backup", "--prune", "--keep", "1", backups)
	if now := snapshots(); strings.Count(now, "verified") != 1 {
		t.Errorf("after the prune: %s", now)
	}

	began = time.Now()
	newOperator(t, filepath.Join(dir, "whole")).run("restore", backups)
	takes = time.Since(began)
	there := filepath.Join(dir, "there")
	into := newOperator(t, there)
	cut = 0
	for i := range kills {
		if into.killed(&takes, float64(i+1)/(kills+1), "restore", backups) {
			cut++
		}
		list, err := into.try("user", "list")
		if err != nil && !strings.Contains(list, "there is no installation") {
			t.Fatalf("kill %d: %v\n%s", i, err, list)
		}
		switch n := strings.Count(list, "@example.com"); n {
		case 0:
		case tenants + kills: // it was quicker this time: the next begins anew
			if err := os.RemoveAll(there); err != nil || os.MkdirAll(there, 0o700) != nil {
				t.Fatal(err)
			}
		default:
			t.Fatalf("kill %d: half a restore is in force, with %d accounts", i, n)
		}
	}
	if cut < kills/2 {
		t.Errorf("only %d of %d were killed at work", cut, kills)
	}
	if out := into.run("restore", backups); strings.Count(out, " restored ") < tenants+kills {
		t.Errorf("the last one: %s", out)
	}
	if n := into.count(there, ".db"); n != tenants+kills+1 { // with the master database
		t.Errorf("%d databases for %d tenants", n, tenants+kills)
	}
	if list := into.run("user", "list"); strings.Count(list, "@example.com") != tenants+kills {
		t.Errorf("accounts: %s", list)
	}
	if raw, err := os.ReadFile(filepath.Join(there, "master.db")); err != nil || !bytes.Contains(raw, []byte("user0@example.com")) {
		t.Errorf("the master database: %v", err)
	}
}
