package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/claude/emulator"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == "peer" {
		if err := peer(os.Args[2], strings.Join(os.Args[3:], "")); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	engine := flag.String("engine", "both", "sqlite, postgres or both")
	only := flag.String("only", ".", "which parts: calls, search, length, service, cold, streams")
	quick := flag.Bool("quick", false, "few and short turns: to see that it works")
	binary := flag.String("binary", "", "a server that is built already")
	messages := flag.Int("messages", 100_000, "how many messages are searched")
	flag.Parse()
	b := &bench{out: os.Stdout, binary: *binary, reps: 5, each: 500 * time.Millisecond, messages: *messages}
	if *quick {
		b.reps, b.each, b.messages = 2, 100*time.Millisecond, min(b.messages, 5_000)
	}
	engines := []string{*engine}
	if *engine == "both" {
		engines = []string{"sqlite", "postgres"}
	}
	if err := b.run(context.Background(), engines, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	out      io.Writer
	reps     int
	each     time.Duration
	messages int
	binary   string
	echo     string // the echo's address
	stamps   stamps
	serial   int // of the next stream: what was noted of one must not meet another
	model    *lab.Model
}

func (b *bench) run(ctx context.Context, engines []string, only string) (err error) {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if b.binary == "" {
		if b.binary, err = lab.Build(ctx, dir); err != nil {
			return err
		}
	}
	if b.model, err = lab.NewModelAt("127.0.0.1:0", emulator.Options{Limits: emulator.NoLimits(), Quiet: true}, b.stamps.around); err != nil {
		return err
	}
	defer b.model.Close()
	var stop func()
	if b.echo, stop, err = startPeer("peer", "echo"); err != nil {
		return err
	}
	defer stop()
	fmt.Fprintf(b.out, "%s, %d cores, %s; %d turns of %v\n", time.Now().Format(time.DateOnly), runtime.NumCPU(), runtime.Version(), b.reps, b.each)
	if !slices.ContainsFunc(parts(), func(p part) bool { return wanted.MatchString(p.name) }) {
		return fmt.Errorf("no part is called %q", only)
	}
	var sites []*site
	defer func() {
		for _, s := range sites {
			err = errors.Join(err, s.end())
		}
	}()
	for _, e := range engines {
		s, err := newSite(ctx, e, b.binary, b.model)
		if err != nil {
			return err
		}
		sites = append(sites, s)
	}
	for _, p := range parts() {
		if !wanted.MatchString(p.name) {
			continue
		}
		t := table{b.out}
		t.head(p.title)
		for _, s := range sites {
			if err := p.do(b, ctx, s, t); err != nil {
				return fmt.Errorf("%s on %s: %w", p.name, s.engine, err)
			}
			if err := s.stop(); err != nil {
				return err
			}
		}
	}
	return nil
}

// part is one table.
type part struct {
	name, title string
	do          func(*bench, context.Context, *site, table) error
}

func parts() []part {
	return []part{
		{"calls", "Everyday calls, against the echo", (*bench).calls},
		{"search", "Search, against the echo answering as many items", (*bench).search},
		{"length", "Appending to a conversation of 10,000 messages, against one of 10", (*bench).length},
		{"service", "A turn with an instant model in a conversation of 10,000 messages, against one of 10", (*bench).service},
		{"cold", "The first request to a tenant that is not open, against the next one", (*bench).cold},
		{"streams", "Delay of a piece of an answer, against a bare relay", (*bench).streams},
	}
}

// echoed is a call of the echo that moves as much as ours does.
func (b *bench) echoed(clients int, method string, body []byte, items, size int) probe {
	c := lab.Dial(b.echo, clients)
	path := fmt.Sprintf("/echo?items=%d&size=%d", items, size)
	return probe{"echo", clients, func(ctx context.Context, _, _ int) error {
		var in any
		if body != nil {
			in = body
		}
		return c.Do(ctx, method, path, in).Into(nil, http.StatusOK, http.StatusCreated)
	}}
}
