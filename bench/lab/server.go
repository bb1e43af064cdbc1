package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Root is the folder of the module, found from the working folder upwards.
func Root() (string, error) {
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if _, found := os.Stat(filepath.Join(dir, "go.mod")); found == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			err = errors.New("lab: run this inside of the repository")
		}
	}
	return "", err
}

// Build builds the server into a folder, as it ships but for the tags, and returns its path.
func Build(ctx context.Context, dir string, tags ...string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, strings.Join(append([]string{"memoryd"}, tags...), "-"))
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", strings.Join(tags, ","), "-o", path, "./cmd/memoryd")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("lab: building the server: %w\n%s", err, out)
	}
	return path, nil
}

// Server is one running process of the server.
type Server struct {
	URL   string        // where it listens
	Ready time.Duration // from its start until it listened

	cmd  *exec.Cmd
	gone chan struct{}
	mu   sync.Mutex
	log  bytes.Buffer // standard error
}

// startPatience bounds a start; a busy machine takes its time.
const startPatience = time.Minute

var listens = regexp.MustCompile(`listens on (http://\S+)`)

// Start runs the server in a folder with exactly these variables, on a free port of the loopback address, and returns
// when it listens.
func Start(binary, dir string, env ...string) (*Server, error) {
	return StartUnder(nil, binary, dir, env...)
}

// StartUnder is Start by way of a command that becomes the server in the end, as nsenter does.
func StartUnder(wrap []string, binary, dir string, env ...string) (*Server, error) {
	line := append(slices.Clone(wrap), binary, "serve")
	return Launch(line[0], line[1:], dir,
		append([]string{"HOST=127.0.0.1", "PORT=0", "RATE_LIMIT=off", "LOG_LEVEL=warn"}, env...)...)
}

// Launch runs any program that says where it listens as the server does. What listens there is that process: the port
// is read from its own output.
func Launch(binary string, args []string, dir string, env ...string) (*Server, error) {
	s := &Server{cmd: exec.Command(binary, args...), gone: make(chan struct{})}
	s.cmd.Dir, s.cmd.Env, s.cmd.Stderr = dir, env, s
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	begun := time.Now()
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("lab: starting the server: %w", err)
	}
	where := make(chan string, 1)
	go func() {
		defer close(s.gone)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if m := listens.FindStringSubmatch(lines.Text()); m != nil {
				where <- m[1]
			}
		}
		_ = s.cmd.Wait() // a killed process is no failure here; who asks for its end judges the exit code
	}()
	select {
	case s.URL = <-where:
		s.Ready = time.Since(begun)
		return s, nil
	case <-s.gone:
		return nil, fmt.Errorf("lab: the server ended at once:\n%s", s.Log())
	case <-time.After(startPatience):
		s.Kill()
		return nil, fmt.Errorf("lab: the server did not listen within %v:\n%s", startPatience, s.Log())
	}
}

// Write takes what the process says on standard error.
func (s *Server) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

// Log is what the process has said on standard error.
func (s *Server) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// PID is the process's id.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Kill ends the process without a chance to do anything, and returns when it is gone. It may be called twice.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill() // gone already is fine
	<-s.gone
}

// Stop asks the process to end, and reports how that went.
func (s *Server) Stop() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // gone already shows below
	select {
	case <-s.gone:
	case <-time.After(startPatience):
		s.Kill()
		return errors.New("lab: the server did not stop")
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("lab: the server ended with code %d:\n%s", code, s.Log())
	}
	return nil
}
