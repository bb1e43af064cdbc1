// Command tenants measures a server with many tenants, each with a database file of its own: what those cost who meet
// an open one, what opening a closed one adds, what closed and open ones hold of memory and descriptors, how fast they
// are made, and what one of them that does all it may costs the others. bench/README.md says what it found.
//
//	go run ./bench/tenants -dir DIR -only none                   # make the tenants and keep them
//	go run ./bench/tenants -dir DIR                              # 20,000 tenants against 10; some half an hour
//	go run ./bench/tenants -tenants 2000 -rounds 5 -round 10s    # smaller
//	go run ./bench/tenants -only neighbour -tenants 100          # one part
//
// Many and few are two servers in processes of their own, visited in rounds that alternate, so that whatever else the
// machine does meets both; ratios of one run are what counts. Visits come at random moments at a given rate, well below
// what the server could answer, whether or not earlier ones are answered, and each is timed from its own sending:
// neither the driver's queue nor the other visits' slowness is part of it. Which tenant is visited follows Zipf's law.
// The server says of each answer whether it had to wait for a database to be opened, and for how long: that is what
// separates visits to open tenants from those to closed ones.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"time"

	"claude-memory-backend/bench/fleet"
	"claude-memory-backend/bench/lab"
)

func main() {
	b := &bench{out: os.Stdout}
	flag.IntVar(&b.tenants, "tenants", 20_000, "how many tenants there are")
	flag.IntVar(&b.few, "few", 10, "how many the other server has")
	flag.Float64Var(&b.rate, "rate", 100, "visits a second")
	flag.IntVar(&b.open, "open", 0, "MAX_OPEN_TENANTS of the servers; 0: what they choose")
	flag.Float64Var(&b.law, "s", 1.07, "exponent of Zipf's law, over 1")
	flag.IntVar(&b.rounds, "rounds", 12, "pairs of rounds: many and few, quiet and noise")
	flag.DurationVar(&b.round, "round", 20*time.Second, "how long a round is")
	flag.IntVar(&b.history, "history", 50_000, "messages of the tenant that does all it may")
	flag.StringVar(&b.binary, "binary", "", "a server that is built already")
	flag.StringVar(&b.dir, "dir", "", "a folder in which the tenants are made, once, and kept for further runs; empty: a temporary one")
	only := flag.String("only", ".", "which parts: memory, visits, neighbour; none: only make the tenants")
	flag.Parse()
	debug.SetGCPercent(400) // the driver shares the processor with the servers
	if err := b.run(context.Background(), *only); err != nil {
		fmt.Fprintln(os.Stderr, "tenants:", err)
		os.Exit(1)
	}
}

type bench struct {
	out                                 io.Writer
	tenants, few, open, rounds, history int
	round                               time.Duration
	rate, law                           float64
	binary, dir                         string
	many, less                          *fleet.Fleet
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
	if b.binary == "" && only != "none" {
		if b.binary, err = lab.Build(ctx, dir); err != nil {
			return err
		}
	}
	fmt.Fprintf(b.out, "%s, %d cores, %s, load average %s; %d tenants, %g visits a second, s = %g\n",
		time.Now().Format(time.DateOnly), runtime.NumCPU(), runtime.Version(), lab.Load(), b.tenants, b.rate, b.law)
	if b.dir == "" {
		b.dir = dir
	}
	if b.less, err = b.make(ctx, filepath.Join(b.dir, fmt.Sprint(b.few)), b.few); err != nil {
		return err
	}
	if b.many, err = b.make(ctx, filepath.Join(b.dir, fmt.Sprint(b.tenants)), b.tenants); err != nil {
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
		fmt.Fprintf(b.out, "\nLoad average after that: %s.\n", lab.Load())
	}
	return nil
}

// What every tenant has.
const (
	conversations = 3
	messages      = 6
)

// make makes the tenants of one server, unless they are there.
func (b *bench) make(ctx context.Context, dir string, n int) (*fleet.Fleet, error) {
	if f, err := fleet.Load(dir); !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	// What an earlier run did not finish is no beginning.
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
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

// serve starts a server on a fleet, with at most so many open at once; 0: as many as it chooses.
func (b *bench) serve(f *fleet.Fleet, open int, env ...string) (*lab.Server, error) {
	env = append(f.Env(), env...)
	if open > 0 {
		env = append(env, fmt.Sprintf("MAX_OPEN_TENANTS=%d", open))
	}
	return lab.Start(b.binary, f.Dir, env...)
}
