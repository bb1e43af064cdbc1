package pgtest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// keeperScript removes a server when its starter is gone: the pipe on standard input ends with that process, even
// after SIGKILL. It trusts the pid file only when that process stands in the folder that the server works in, since a
// pid may have been given to somebody else after a crash. A server that is frozen is thawed, or it would never end.
const keeperScript = `
read -r _
pid=$(head -n 1 "$3" 2>/dev/null)
if [ -n "$pid" ] && [ "$(readlink "/proc/$pid/cwd")" = "$2" ]; then
	children=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null)
	kill "-$4" "$pid"
	kill -CONT "$pid" $children 2>/dev/null
	tries=0
	while kill -0 "$pid" 2>/dev/null && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries+1)); done
fi
rm -rf "$1"
`

// keeper waits for the end of a pipe that only this process holds, and then ends a server and removes its folder.
type keeper struct {
	cmd   *exec.Cmd
	leash *os.File // the pipe's end that keeps it waiting
}

// keep starts a keeper of the folder dir. The server works in home, writes its pid into pidFile, and ends by signal.
func keep(as *syscall.SysProcAttr, dir, home, pidFile, signal string) (*keeper, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pgtest: %w", err)
	}
	k := &keeper{cmd: exec.Command("/bin/sh", "-c", keeperScript, "pgtest-keeper", dir, home, pidFile, signal), leash: w}
	k.cmd.Stdin, k.cmd.SysProcAttr, k.cmd.Dir = r, as, "/"
	err = k.cmd.Start()
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("pgtest: starting the keeper: %w", err), w.Close())
	}
	return k, nil
}

// end lets the keeper do its work, and returns when it is done. It may be called twice.
func (k *keeper) end(server *exec.Cmd) error {
	if k.leash == nil {
		return nil
	}
	err := k.leash.Close()
	k.leash = nil
	if server != nil && server.ProcessState == nil {
		// The keeper waits for the server to vanish, and a child that nobody waits for never does.
		_ = server.Wait()
	}
	return errors.Join(err, k.cmd.Wait())
}

// freePort is an address of the loopback interface where nobody listened a moment ago.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("pgtest: %w", err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		return "", fmt.Errorf("pgtest: %w", err)
	}
	return address, nil
}

// ended reports whether a child of ours is gone. A goroutine in Wait would tell as well, but would look like a leak to
// every test that checks for them.
func ended(server *exec.Cmd) bool {
	done, _ := syscall.Wait4(server.Process.Pid, nil, syscall.WNOHANG, nil)
	return done == server.Process.Pid
}

// identity says as whom the server runs. PostgreSQL refuses root, so root lends its work to another user. Setsid
// keeps Ctrl-C in a terminal away from the server: it is the keeper's to stop.
func identity() (as *syscall.SysProcAttr, uid, gid int, err error) {
	as = &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() != 0 {
		return as, os.Getuid(), os.Getgid(), nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return nil, 0, 0, fmt.Errorf("pgtest: no user to run PostgreSQL as: %w", err)
		}
	}
	uid, uidErr := strconv.Atoi(u.Uid)
	gid, gidErr := strconv.Atoi(u.Gid)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return nil, 0, 0, fmt.Errorf("pgtest: %w", err)
	}
	as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return as, uid, gid, nil
}

// folder makes the cluster's folder where that user can reach it: TMPDIR may lie in root's own home.
func folder(as *syscall.SysProcAttr, uid, gid int) (string, error) {
	var failed error
	for _, parent := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		dir, err := os.MkdirTemp(parent, "pgtest-")
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		// Resolved, because the keeper compares it with what /proc says.
		if dir, err = filepath.EvalSymlinks(dir); err == nil {
			err = os.Chown(dir, uid, gid)
		}
		if err == nil {
			probe := exec.Command("/bin/sh", "-c", `test -w "$1"`, "sh", dir)
			probe.SysProcAttr, probe.Dir = as, "/"
			err = probe.Run()
		}
		if err == nil {
			return dir, nil
		}
		failed = errors.Join(failed, fmt.Errorf("%s: %w", parent, err), os.RemoveAll(dir))
	}
	return "", fmt.Errorf("pgtest: no usable folder for a cluster: %w", failed)
}

// cleanEnv is the environment without what would change PostgreSQL's behaviour, such as PGDATA or a locale.
func cleanEnv() []string {
	return append(slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "LC_") || strings.HasPrefix(kv, "LANG")
	}), "LC_ALL=C.UTF-8", "TZ=UTC")
}
