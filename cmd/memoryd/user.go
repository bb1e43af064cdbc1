package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

type userCmd struct {
	Create userCreateCmd   `cmd:"" help:"Create an account. The password is asked for, or read from standard input."`
	Role   userRoleCmd     `cmd:"" help:"Give an account the role member or admin."`
	Reset  userPasswordCmd `cmd:"" name:"reset-password" help:"Set a new password and end all sessions."`
	List   userListCmd     `cmd:"" help:"List accounts, newest first."`
}

type userCreateCmd struct {
	Email string `arg:"" help:"E-mail address, the name to sign in with."`
	Name  string `help:"Display name."`
	Role  string `help:"member or admin." enum:"member,admin" default:"member"`
}

// Run creates an account with its tenant.
func (c userCreateCmd) Run(ctx context.Context, p *program) error {
	return withAccounts(ctx, p, true, func(s *account.Service) error {
		password, err := readPassword(p)
		if err != nil {
			return err
		}
		a, err := s.Create(ctx, account.CreateInput{Email: c.Email, Password: password, Name: c.Name, Role: ident.Role(c.Role)})
		if err != nil {
			return err
		}
		fmt.Fprintf(p.stdout, "%s %s (%s)\n", a.ID, a.Email, a.Role)
		return nil
	})
}

type userRoleCmd struct {
	Email string `arg:""`
	Role  string `arg:"" enum:"member,admin" help:"member or admin."`
}

// Run changes a role. Sessions see it with their next request.
func (c userRoleCmd) Run(ctx context.Context, p *program) error {
	return withAccounts(ctx, p, false, func(s *account.Service) error {
		if err := s.SetRole(ctx, c.Email, ident.Role(c.Role)); err != nil {
			return err
		}
		fmt.Fprintf(p.stdout, "%s is now %s\n", c.Email, c.Role)
		return nil
	})
}

type userPasswordCmd struct {
	Email string `arg:""`
}

// Run sets a new password.
func (c userPasswordCmd) Run(ctx context.Context, p *program) error {
	return withAccounts(ctx, p, false, func(s *account.Service) error {
		password, err := readPassword(p)
		if err != nil {
			return err
		}
		if err := s.ResetPassword(ctx, c.Email, password); err != nil {
			return err
		}
		fmt.Fprintf(p.stdout, "%s has a new password; all sessions have ended\n", c.Email)
		return nil
	})
}

type userListCmd struct {
	Limit int `help:"How many at most." default:"100"`
}

// Run lists accounts.
func (c userListCmd) Run(ctx context.Context, p *program) error {
	return withAccounts(ctx, p, false, func(s *account.Service) error {
		w := tabwriter.NewWriter(p.stdout, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tEMAIL\tNAME\tROLE\tSTATE\tCREATED")
		left, cursor := c.Limit, ""
		for left > 0 {
			page, next, err := s.List(ctx, cursor, min(left, 200))
			if err != nil {
				return err
			}
			for _, a := range page {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", a.ID, a.Email, a.Name, a.Role, a.State, a.CreatedAt.Format(time.RFC3339))
			}
			if left -= len(page); next == "" {
				break
			}
			cursor = next
		}
		return w.Flush()
	})
}

// withAccounts opens the databases for a command, which with first may be the first thing that happens here. It may run
// beside a server: the master database is made for that.
func withAccounts(ctx context.Context, p *program, first bool, do func(*account.Service) error) error {
	if !first {
		if err := installed(ctx, p.settings); err != nil {
			return err
		}
	}
	log, closeLog := newLog(p.settings, p.stderr)
	defer closeLog()
	in, err := openInstall(ctx, p.settings, log, event.NewLocalBus(), guest)
	if err != nil {
		return err
	}
	defer func() { warn(log, "databases", in.close()) }()
	accounts, err := newAccounts(p.settings, log, in)
	if err != nil {
		return err
	}
	return do(accounts)
}

// readPassword asks at a terminal without echo, and takes the first line of anything else.
func readPassword(p *program) (string, error) {
	if f, ok := p.stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprint(p.stderr, "Password: ")
		raw, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(p.stderr)
		return string(raw), err
	}
	lines := bufio.NewScanner(p.stdin)
	if !lines.Scan() || lines.Text() == "" {
		return "", usageError{errors.New("a password is needed on standard input")}
	}
	return lines.Text(), lines.Err()
}
