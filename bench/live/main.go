package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"claude-memory-backend/bench/lab"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "hub" {
		if err := hub(); err != nil {
			fmt.Fprintln(os.Stderr, "hub:", err)
			os.Exit(1)
		}
		return
	}
	b := &bench{out: os.Stdout}
	flag.IntVar(&b.readers, "readers", 1000, "how many read, and how many stall beside them")
	flag.IntVar(&b.conns, "conns", 5000, "connections in rooms of ten, of the server and of the bare hub")
	flag.IntVar(&b.crowd, "crowd", 10_000, "idle connections of one server")
	flag.IntVar(&b.rounds, "rounds", 4, "pairs of rounds")
	flag.DurationVar(&b.round, "round", 10*time.Second, "how long a round of deliveries is")
	flag.DurationVar(&b.idle, "idle", 25*time.Second, "how long connections are idle before memory is looked at")
	flag.DurationVar(&b.pace, "pace", 250*time.Millisecond, "between two pieces of an answer, of 4 KiB each, beside readers that stall")
	flag.DurationVar(&b.answer, "answer", 12*time.Second, "how long such an answer is written, at most 12 s for 48 pieces: a round of them")
	flag.StringVar(&b.binary, "binary", "", "a server that is built already")
	only := flag.String("only", ".", "which parts: stalled, rooms, idle")
	flag.Parse()
	debug.SetGCPercent(400) // the driver shares the processor with the servers
	if err := b.run(context.Background(), *only); err != nil {
		fmt.Fprintln(os.Stderr, "live:", err)
		os.Exit(1)
	}
}

type bench struct {
	out                           io.Writer
	readers, conns, crowd, rounds int
	round, idle, pace, answer     time.Duration
	binary                        string
	site                          *site
}

func (b *bench) run(ctx context.Context, only string) (err error) {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "live-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	parts := []struct {
		name  string
		conns int // that the driver holds at once
		rooms int
		do    func(context.Context) error
	}{
		{"stalled", 2 * b.readers, groupRooms * (1 + (loudRooms(b.readers)-1)/roomsOfGroup), b.stalled},
		{"rooms", 2 * b.conns, b.conns / roomSize, b.deliveries},
		{"idle", b.crowd, b.crowd / roomSize, b.crowded},
	}
	most, rooms := 0, 0
	for _, p := range parts {
		if wanted.MatchString(p.name) {
			most, rooms = max(most, p.conns), max(rooms, p.rooms)
		}
	}
	if err := descriptors(most); err != nil {
		return err
	}
	if b.binary == "" {
		if b.binary, err = lab.Build(ctx, dir); err != nil {
			return err
		}
	}
	fmt.Fprintf(b.out, "%s, %d cores, %s, load average %s\n", time.Now().Format(time.DateTime), runtime.NumCPU(), runtime.Version(), lab.Load())
	if b.site, err = newSite(ctx, b.binary, dir, rooms); err != nil {
		return err
	}
	defer b.site.model.Close()
	for _, p := range parts {
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

// descriptors makes room for so many connections, as far as the system lets this process; the servers do so themselves.
func descriptors(conns int) error {
	const others = 200
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	if limit.Cur < uint64(conns+others) {
		return fmt.Errorf("%d descriptors are allowed, too few for %d connections: ask for fewer", limit.Cur, conns)
	}
	return nil
}
