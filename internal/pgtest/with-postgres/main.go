// Command with-postgres runs a command beside a throw-away PostgreSQL cluster:
//
//	with-postgres go test ./...
//
// It starts the cluster, tells the command its address in TEST_POSTGRES_URL, stops the cluster when the command has
// ended, and ends with the command's exit code. `make test` uses it, so that one cluster serves all packages. Where
// memory has room for it, the cluster's data and the command's temporary files are there and not on the disk.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"claude-memory-backend/internal/pgtest"
)

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "with-postgres:", err)
	}
	os.Exit(code)
}

// run returns the exit code; 125 means that the command could not be run at all.
func run(args []string) (code int, err error) {
	if len(args) == 0 {
		return 125, errors.New("usage: with-postgres COMMAND [ARGUMENT…]")
	}
	memory, err := newScratch()
	if err != nil {
		return 125, err
	}
	defer func() { err = errors.Join(err, memory.end()) }()
	if err := memory.use(); err != nil {
		return 125, err
	}
	c, err := pgtest.Start(context.Background(), pgtest.Options{})
	if err != nil {
		return 125, err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()

	// From here on signals are the command's: it gets them, ends in its own way, and then the cluster goes.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), pgtest.Variable+"="+c.URL)
	if err := cmd.Start(); err != nil {
		return 125, err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // it may just have ended
		}
	}()
	if err := cmd.Wait(); cmd.ProcessState == nil {
		return 125, err
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}
