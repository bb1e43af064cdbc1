package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log" //nolint:depguard // only to silence what libraries print
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"claude-memory-backend/internal/fault"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	syscall.Umask(0o077) // what is written here is nobody else's to read
	hushLibraries()
	code := run(ctx, os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// hushLibraries keeps what libraries print of their own out of our log: net/http quotes there what the other side of a connection
// says unasked, and who has a webhook chooses that.
func hushLibraries() { log.SetOutput(io.Discard) }

// Exit codes.
const (
	exitFine   = 0
	exitFailed = 1
	exitUsage  = 2
	// Of commands about many tenants: all were seen to, and some failed; it ended before all were seen to.
	exitSome   = 3
	exitPaused = 4
)

// commands is the command line. A field is a command; its doc is its help.
type commands struct {
	Serve   serveCmd   `cmd:"" help:"Run the server."`
	Migrate migrateCmd `cmd:"" help:"Bring the master database, and with --all every tenant's, up to date; or one command back."`
	Keys    keysCmd    `cmd:"" help:"Seal everything under a new master key."`
	Backup  backupCmd  `cmd:"" help:"Back up everything, beside a running server; list, verify and remove backups."`
	Restore restoreCmd `cmd:"" help:"Restore everything, one tenant, or one account beside the present one."`
	Config  configCmd  `cmd:"" help:"Show every setting, its value and where it comes from; secrets are masked."`
	Seed    seedCmd    `cmd:"" help:"Fill a development installation with a demo account, projects and conversations."`
	Tenant  tenantCmd  `cmd:"" help:"List, show, move, rekey and erase tenants, and set their states and limits."`
	User    userCmd    `cmd:"" help:"Create accounts, set roles, reset passwords, list."`
	Version versionCmd `cmd:"" help:"Show the version."`
}

// program is what commands get handed.
type program struct {
	settings       *settings
	stdin          io.Reader
	stdout, stderr io.Writer
}

// usageError is a mistake in how the program was called or configured.
type usageError struct{ error }

// codedError ends the program with a code of its own.
type codedError struct {
	error
	code int
}

// run is the program: tests call it with arguments, an environment and streams of their own.
func run(ctx context.Context, args, environ []string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	var c commands
	left := -1 // kong asks to leave for --help
	parser, err := kong.New(&c, kong.Name("memoryd"), kong.Writers(stdout, stderr),
		kong.Description("A multi-tenant backend for conversations with Claude: every user's data in a database of its own."),
		kong.Exit(func(code int) { left = code }), kong.UsageOnError())
	if err != nil {
		fmt.Fprintln(stderr, "memoryd:", err)
		return exitFailed
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	k, err := parser.Parse(args)
	if left >= 0 {
		return left
	}
	if err != nil {
		fmt.Fprintf(stderr, "memoryd: %v\nTry: memoryd --help\n", err)
		return exitUsage
	}
	set, err := loadSettings(environ, dotEnv)
	if err != nil && set != nil && k.Command() == "config" {
		// Whoever asks what the settings are needs to see them most when they are wrong.
		if _, serr := os.Stat(set.storage(devSecrets)); serr == nil {
			err = errors.Join(err, set.completeSecrets()) // which are in force, too
		}
		err = errors.Join(err, set.show(stdout))
	}
	if err == nil {
		k.BindTo(ctx, (*context.Context)(nil))
		err = k.Run(&program{settings: set, stdin: stdin, stdout: stdout, stderr: stderr})
	}
	if err == nil {
		return exitFine
	}
	fmt.Fprintf(stderr, "memoryd: %s\n", told(err))
	if _, wrong := errors.AsType[usageError](err); wrong {
		return exitUsage
	}
	if coded, ok := errors.AsType[codedError](err); ok {
		return coded.code
	}
	return exitFailed
}

// told is an error as an operator reads it: of a wrong input every mistake, of what was refused the code and why. Of
// what broke, and of anything that is no fault of ours, the chain of causes, each once, without the names of our functions.
func told(err error) string {
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		var lines []string
		for _, one := range several.Unwrap() {
			lines = append(lines, told(one))
		}
		return strings.Join(lines, "\n")
	}
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || len(f.Fields) == 0 {
		f, ok = err.(*fault.Error) //nolint:errorlint // one that was wrapped in words of its own is told in them
		if ok && f.Message != "" && f.Class != fault.Internal && f.Class != fault.Unavailable {
			return f.StableCode() + ": " + f.Message
		}
		return strings.TrimSpace(chain(err))
	}
	lines := []string{f.Message + ":"}
	for _, wrong := range f.Fields {
		lines = append(lines, strings.TrimPrefix(wrong.Location, "body.")+" "+wrong.Message)
	}
	return strings.Join(lines, "\n  ")
}

// chain is an error with its causes: of a fault its code and words, unless the one before said the same.
func chain(err error) string {
	var parts []string
	for err != nil {
		if f, ok := err.(*fault.Error); ok { //nolint:errorlint // one after the other
			said := f.StableCode()
			if f.Message != "" {
				said += ": " + f.Message
			}
			if !slices.Contains(parts, said) {
				parts = append(parts, said)
			}
			err = f.Cause
			continue
		}
		said := err.Error()
		var inner []error
		switch e := err.(type) { //nolint:errorlint // one after the other
		case interface{ Unwrap() error }:
			inner = []error{e.Unwrap()}
		case interface{ Unwrap() []error }:
			inner = e.Unwrap()
		}
		for _, one := range inner {
			if one != nil {
				said = strings.Replace(said, one.Error(), chain(one), 1)
			}
		}
		parts = append(parts, said)
		break
	}
	return strings.Join(parts, ": ")
}
