package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// volume is a small file system of its own, in memory, mounted where only those see it who enter its namespace. A shell
// holds that namespace until the pipe to it ends, so nothing is left behind however the test ends.
type volume struct {
	t      *testing.T
	path   string
	holder *exec.Cmd
	leash  io.Closer
	enter  []string // the command that runs others inside
	fills  int
}

const holderScript = `mount -t tmpfs -o "size=$2,mode=0700" memoryd-test "$1" && echo mounted && read -r _`

// newVolume mounts a volume of so many bytes over the folder.
func newVolume(t *testing.T, path string, size int64) *volume {
	t.Helper()
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	unshare := []string{"--mount", "--propagation", "private"}
	inside := []string{"--mount"}
	if os.Geteuid() != 0 {
		unshare = append(unshare, "--user", "--map-root-user")
		inside = append(inside, "--user", "--preserve-credentials")
	}
	v := &volume{t: t, path: path}
	v.holder = exec.Command("unshare", append(unshare, "sh", "-c", holderScript, "volume", path, strconv.FormatInt(size, 10))...)
	var complaint bytes.Buffer
	v.holder.Stderr = &complaint
	leash, err := v.holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := v.holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.holder.Start(); err != nil {
		t.Fatal(err)
	}
	v.leash = leash
	t.Cleanup(v.close)
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "mounted\n" {
		t.Fatalf("this machine lets nobody mount a file system, which this test needs: run it as root with the right to do that "+
			"(in a container: CAP_SYS_ADMIN), or allow user namespaces\n%s", &complaint)
	}
	v.enter = append([]string{"nsenter", "--target", strconv.Itoa(v.holder.Process.Pid)}, inside...)
	return v
}

func (v *volume) close() {
	_ = v.leash.Close()
	_ = v.holder.Wait() // the shell's read fails at the end of the pipe, which is no failure here
}

// root is where the whole file system is seen with the volume mounted in it.
func (v *volume) root() string { return fmt.Sprintf("/proc/%d/root", v.holder.Process.Pid) }

// fill takes all the room that is left, to the last byte.
func (v *volume) fill() {
	v.t.Helper()
	v.fills++
	f, err := os.OpenFile(v.filler(v.fills), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		v.t.Fatal(err)
	}
	defer f.Close()
	for _, piece := range [][]byte{make([]byte, 64<<10), make([]byte, 1)} {
		for err = nil; err == nil; {
			_, err = f.Write(piece)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			v.t.Fatal(err)
		}
	}
}

// free gives back what fill took.
func (v *volume) free() {
	v.t.Helper()
	for ; v.fills > 0; v.fills-- {
		if err := os.Remove(v.filler(v.fills)); err != nil {
			v.t.Fatal(err)
		}
	}
}

func (v *volume) filler(n int) string {
	return filepath.Join(v.root(), v.path, fmt.Sprint("filler", n))
}

// remount makes it read-only ("ro") or writable again ("rw"). Nobody may have a file open for writing.
func (v *volume) remount(how string) {
	v.t.Helper()
	command := append(v.enter[1:len(v.enter):len(v.enter)], "mount", "-o", "remount,"+how, v.path)
	if out, err := exec.Command(v.enter[0], command...).CombinedOutput(); err != nil {
		v.t.Fatalf("remounting: %v\n%s", err, out)
	}
}
