// Command tenants measures a server with many tenants, each with a database file of its own: what those cost who meet
// an open one, what opening a closed one adds, what closed and open ones hold of memory and descriptors, how fast they
// are made, and what one of them that does all it may costs the others. bench/README.md says what it found.
//
//	go run ./bench/tenants                                # 20,000 tenants against 10; some half an hour
//	go run ./bench/tenants -tenants 2000 -visits 6000     # smaller
//	go run ./bench/tenants -only neighbour -tenants 100   # one part
//
// Many and few are two servers in processes of their own, visited in turns, so that whatever else the machine does
// meets both; ratios of one run are what counts. Visits come at random moments at a given rate, whether or not earlier
// ones are answered, and each is timed from its own sending: neither the driver's queue nor the other visits' slowness
// is part of it. Which tenant is visited follows Zipf's law.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"time"

	"claude-memory-backend/bench/fleet"
	"claude-memory-backend/bench/lab"
)

func main() {
	b := &bench{out: os.Stdout}
	flag.IntVar(&b.tenants, "tenants", 20_000, "how many tenants there are")
	flag.IntVar(&b.few, "few", 10, "how many the other server has")
	flag.IntVar(&b.visits, "visits", 30_000, "visits to either server, in all turns together")
	flag.Float64Var(&b.rate, "rate", 100, "visits a second")
	flag.IntVar(&b.open, "open", 1000, "MAX_OPEN_TENANTS of both servers")
	flag.Float64Var(&b.law, "s", 1.07, "exponent of Zipf's law, over 1")
	flag.IntVar(&b.turns, "turns", 6, "turns between the servers, and between quiet and noise")
	flag.IntVar(&b.history, "history", 50_000, "messages of the tenant that does all it may")
	flag.StringVar(&b.binary, "binary", "", "a server that is built already")
	only := flag.String("only", ".", "which parts: memory, visits, neighbour")
	flag.Parse()
	if err := b.run(context.Background(), *only); err != nil {
		fmt.Fprintln(os.Stderr, "tenants:", err)
		os.Exit(1)
	}
}

type bench struct {
	out                                        io.Writer
	tenants, few, visits, open, turns, history int
	rate, law                                  float64
	binary                                     string
	many                                       *fleet.Fleet
	less                                       *fleet.Fleet
}

func (b *bench) run(ctx context.Context, only string) (err error) {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "tenants-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if b.binary == "" {
		if b.binary, err = lab.Build(ctx, dir); err != nil {
			return err
		}
	}
	fmt.Fprintf(b.out, "%s, %d cores, %s, load average %s; %d tenants, at most %d open, %g visits a second, s = %g\n",
		time.Now().Format(time.DateOnly), runtime.NumCPU(), runtime.Version(), load(), b.tenants, b.open, b.rate, b.law)
	if b.less, err = b.make(ctx, filepath.Join(dir, "few"), b.few); err != nil {
		return err
	}
	if b.many, err = b.make(ctx, filepath.Join(dir, "many"), b.tenants); err != nil {
		return err
	}
	for _, p := range []struct {
		name string
		do   func(context.Context) error
	}{{"memory", b.memory}, {"visits", b.compare}, {"neighbour", b.neighbour}} {
		if !wanted.MatchString(p.name) {
			continue
		}
		if err := p.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Fprintf(b.out, "\nLoad average after that: %s.\n", load())
	}
	return nil
}

// What every tenant has.
const (
	conversations = 3
	messages      = 6
)

// make makes the tenants of one server.
func (b *bench) make(ctx context.Context, dir string, n int) (*fleet.Fleet, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := fleet.Make(ctx, fleet.Options{Dir: dir, Tenants: n, Conversations: conversations, Messages: messages,
		Progress: func(what string, done int) { fmt.Fprintf(os.Stderr, "%s: %d of %d\n", what, done, n) }})
	if err != nil {
		return nil, err
	}
	size, err := weigh(filepath.Join(dir, "tenants"))
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(b.out, "\n%d tenants made: %.0f a second; %d conversations of %d messages in each, %d KiB on disk each\n",
		n, float64(n)/f.Made.Seconds(), conversations, messages, size/int64(n)>>10)
	return f, nil
}

// serve starts a server on a fleet.
func (b *bench) serve(f *fleet.Fleet, open int, env ...string) (*lab.Server, error) {
	return lab.Start(b.binary, f.Dir, append(append(f.Env(), fmt.Sprintf("MAX_OPEN_TENANTS=%d", open)), env...)...)
}
