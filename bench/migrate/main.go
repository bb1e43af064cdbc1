// Command migrate measures how an operator's fleet of tenants is brought to the next version of the schema and back, by
// the commands that an operator has: `memoryd migrate --all`, with and without a server at work, and `memoryd migrate
// --back`. One tenant in a hundred holds what the step cannot be taken with. bench/README.md says what was seen.
//
//	go run ./bench/migrate                 # 2,000 tenants; some minutes
//	go run ./bench/migrate -tenants 200    # to see that it works
//
// The next version is this program with one more step (next.sql).
package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"claude-memory-backend/bench/fleet"
	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/relocate"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/steptest"
)

//go:embed next.sql
var next string

func main() {
	b := &bench{out: os.Stdout}
	flag.IntVar(&b.tenants, "tenants", 2_000, "how many tenants there are")
	flag.IntVar(&b.parallel, "parallel", 4, "how many are migrated at the same time")
	flag.Parse()
	if err := b.run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "migrate:", err)
		os.Exit(1)
	}
}

type bench struct {
	out               io.Writer
	tenants, parallel int
	fleet             *fleet.Fleet
	binary            string // of the next version
}

// What every tenant has; one in poisoned has two conversations of one title besides.
const (
	conversations = 3
	messages      = 6
	poisoned      = 100
)

func (b *bench) run(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "migrate-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b.binary = filepath.Join(dir, "memoryd-next")
	if err := steptest.Build(b.binary, next); err != nil {
		return err
	}
	fmt.Fprintf(b.out, "%s, %d cores, %s; %d tenants, %d at the same time\n\n", time.Now().Format(time.DateOnly), runtime.NumCPU(),
		runtime.Version(), b.tenants, b.parallel)
	storage := filepath.Join(dir, "storage")
	if err := os.MkdirAll(storage, 0o700); err != nil {
		return err
	}
	b.fleet, err = fleet.Make(ctx, fleet.Options{Dir: storage, Tenants: b.tenants, Conversations: conversations,
		Messages: messages, Progress: func(what string, done int) { fmt.Fprintf(os.Stderr, "%s: %d of %d\n", what, done, b.tenants) }})
	if err != nil {
		return err
	}
	var ill, well []fleet.Member
	for i, m := range b.fleet.Members {
		if i%poisoned != 0 {
			well = append(well, m)
			continue
		}
		ill = append(ill, m)
		if err := b.poison(ctx, m); err != nil {
			return err
		}
	}
	fmt.Fprintln(b.out, "| | tenants | failed | left | seconds | a second |\n|---|--:|--:|--:|--:|--:|")
	if err := b.forth(ctx, "plan", len(ill), "--plan"); err != nil {
		return err
	}
	if err := b.forth(ctx, "migrate, no server", len(ill), "--max-failures", "5%"); err != nil {
		return err
	}
	if err := b.forth(ctx, "again", len(ill)); err != nil {
		return err
	}
	size, err := weigh(filepath.Join(b.fleet.Dir, "snapshots"))
	if err != nil {
		return err
	}
	if err := b.look(ctx, ill, well); err != nil {
		return err
	}
	if err := b.back(ctx, len(well)); err != nil {
		return err
	}
	s, err := lab.Start(b.binary, b.fleet.Dir, b.fleet.Env()...)
	if err != nil {
		return err
	}
	err = errors.Join(b.forth(ctx, "migrate, in a running server", len(ill)), s.Stop())
	fmt.Fprintf(b.out, "\nSnapshots take %d KiB a tenant. After the first pass all %d that failed could be read over HTTP, refused to be written "+
		"(503 tenant_quarantined), and were listed; %d others were written.\n", size/int64(b.tenants)>>10, len(ill), len(well)/poisoned)
	return err
}

// poison gives a tenant what the step cannot be taken with.
func (b *bench) poison(ctx context.Context, m fleet.Member) (err error) {
	db, err := fleet.OpenTenant(ctx, b.fleet.Dir, m.Tenant)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	now := time.Now().UTC().Truncate(time.Microsecond)
	for range 2 {
		c := conversation.Conversation{ID: ident.New[ident.ConversationID](), Version: 1, CreatedAt: now, UpdatedAt: now,
			Details: conversation.Details{Title: "twins"}}
		ch := event.NewChange(ident.System(""), now)
		ch.Add("conversation.created", string(c.ID), map[string]any{})
		if err := sqlstore.NewTenantStore(db, nil).InsertConversation(ctx, c, ch); err != nil {
			return err
		}
	}
	return nil
}

// memoryd runs a command and returns what it printed, its exit code, and how long it took.
func (b *bench) memoryd(ctx context.Context, args ...string) ([]byte, int, time.Duration, error) {
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, b.binary, args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = append(b.fleet.Env(), "LOG_LEVEL=error"), b.fleet.Dir, &out, &complaint
	begun := time.Now()
	err := cmd.Run()
	took := time.Since(begun)
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
		return nil, 0, took, err
	}
	code := cmd.ProcessState.ExitCode()
	if code == 1 || code == 2 {
		return nil, code, took, fmt.Errorf("memoryd %s: %s", strings.Join(args, " "), complaint.String())
	}
	return out.Bytes(), code, took, nil
}

// forth is one `migrate --all`; so many tenants must fail, and no other may be left.
func (b *bench) forth(ctx context.Context, what string, ill int, args ...string) error {
	out, _, took, err := b.memoryd(ctx, append([]string{"migrate", "--all", "--json", "--parallel", fmt.Sprint(b.parallel)}, args...)...)
	if err != nil {
		return err
	}
	var r relocate.FleetReport
	if err := json.Unmarshal(out, &r); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	worked := r.Migrated + r.Failed
	if r.Plan {
		worked = r.Tenants
	} else if r.Failed != int64(ill) || r.Left != 0 || len(r.Failures) != ill {
		return fmt.Errorf("%s: %d failed, %d named, %d left; %d are ill", what, r.Failed, len(r.Failures), r.Left, ill)
	}
	fmt.Fprintf(b.out, "| %s | %d | %d | %d | %.1f | %.0f |\n", what, worked, r.Failed, r.Left, took.Seconds(), float64(worked)/took.Seconds())
	return nil
}

func (b *bench) back(ctx context.Context, well int) error {
	out, _, took, err := b.memoryd(ctx, "migrate", "--back", "--lose", "--json", "--parallel", fmt.Sprint(b.parallel))
	if err != nil {
		return err
	}
	var r relocate.BackReport
	if err := json.Unmarshal(out, &r); err != nil {
		return err
	}
	if r.Back != int64(well) || r.Failed != 0 {
		return fmt.Errorf("%d went back, %d failed; %d are well", r.Back, r.Failed, well)
	}
	fmt.Fprintf(b.out, "| back, no server | %d | %d | 0 | %.1f | %.0f |\n", r.Back, r.Failed, took.Seconds(), float64(r.Back)/took.Seconds())
	return nil
}

// look visits those that failed, and one in a hundred of the others, over HTTP.
func (b *bench) look(ctx context.Context, ill, well []fleet.Member) (err error) {
	s, err := lab.Start(b.binary, b.fleet.Dir, b.fleet.Env()...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	c := lab.Dial(s.URL, 1)
	defer c.Close()
	visit := func(m fleet.Member, status int) error {
		c.Token = m.Token
		at := "/conversations/" + string(m.Conversations[0]) + "/messages"
		var page struct {
			Data []json.RawMessage `json:"data"`
		}
		if err := c.Get(ctx, at, &page); err != nil {
			return err
		}
		if len(page.Data) == 0 {
			return fmt.Errorf("%s: nothing can be read", m.Tenant)
		}
		return c.Do(ctx, http.MethodPost, at, map[string]any{"content": "after", "reply": false}).Into(nil, status)
	}
	for _, m := range ill {
		if err := visit(m, http.StatusServiceUnavailable); err != nil {
			return err
		}
	}
	for i, m := range well {
		if i%poisoned == poisoned-1 {
			if err := visit(m, http.StatusCreated); err != nil {
				return err
			}
		}
	}
	out, _, _, err := b.memoryd(ctx, "tenant", "list", "--problem", "--json")
	if n := bytes.Count(out, []byte("migration_failed")); err == nil && n != len(ill) {
		err = fmt.Errorf("%d are listed; %d are ill", n, len(ill))
	}
	return err
}

// weigh adds up the files below a folder.
func weigh(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	return size, err
}
