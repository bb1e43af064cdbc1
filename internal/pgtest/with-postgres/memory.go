package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

const (
	// shm is where Linux has a file system in memory. Containers may have a tiny one, or one from which nothing can be run.
	shm = "/dev/shm"
	// memoryNeeded is what must be free there, and in the machine: all tests at once take a part of it, and those of the
	// product take memory besides.
	memoryNeeded = 4 << 30
	noExec       = 0x8 // ST_NOEXEC of statfs(2)
)

// scratch is a folder in memory for temporary files. It goes with this process, however that ends.
type scratch struct {
	dir    string
	keeper *exec.Cmd
	leash  io.Closer // the pipe whose end tells the keeper
}

// newScratch makes one; nil where there is no room for it, or where TMPDIR says that somebody chose a place.
//
// Tests wait for the disk much of their time: every commit syncs, 4 ms on a virtual disk, and every database that is
// dropped makes the server sync all it has. In memory all of that is called as before and takes no time. Nothing is proved
// less: what tests kill are processes, whose files the kernel keeps in memory as it keeps those on a disk, and no test
// can cut the power.
func newScratch() (*scratch, error) {
	if os.Getenv("TMPDIR") != "" || !roomy() {
		return nil, nil //nolint:nilnil // said above
	}
	dir, err := os.MkdirTemp(shm, "with-postgres-")
	if err != nil {
		return nil, err
	}
	// As /tmp is: PostgreSQL runs as another user, makes its folder in it and takes it away.
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	s := &scratch{dir: dir, keeper: exec.Command("/bin/sh", "-c", `read -r _; rm -rf "$1"`, "with-postgres-keeper", dir)}
	// Ctrl-C in a terminal is not for it.
	s.keeper.Dir, s.keeper.SysProcAttr = "/", &syscall.SysProcAttr{Setsid: true}
	if s.leash, err = s.keeper.StdinPipe(); err == nil {
		err = s.keeper.Start()
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

// use makes it the place of temporary files of this process and its children. What the go command builds stays where it
// was: hundreds of megabytes that no test waits for.
func (s *scratch) use() error {
	if s == nil {
		return nil
	}
	if os.Getenv("GOTMPDIR") == "" {
		if err := os.Setenv("GOTMPDIR", os.TempDir()); err != nil {
			return err
		}
	}
	return os.Setenv("TMPDIR", s.dir)
}

// end removes it.
func (s *scratch) end() error {
	if s == nil {
		return nil
	}
	return errors.Join(s.leash.Close(), s.keeper.Wait())
}

// roomy reports whether the memory has room for all that tests write.
func roomy() bool {
	var fs syscall.Statfs_t
	if syscall.Statfs(shm, &fs) != nil || fs.Flags&noExec != 0 || fs.Bavail*uint64(fs.Bsize) < memoryNeeded {
		return false
	}
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(info), "MemAvailable:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return false
	}
	kib, err := strconv.ParseUint(fields[0], 10, 64)
	return err == nil && kib<<10 >= 2*memoryNeeded
}
