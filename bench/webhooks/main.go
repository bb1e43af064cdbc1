package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"claude-memory-backend/bench/lab"
)

func main() {
	b := &bench{}
	flag.IntVar(&b.deliveries, "deliveries", 10_000, "how many are made")
	flag.IntVar(&b.clients, "clients", 8, "how many make changes at once")
	flag.StringVar(&b.binary, "binary", "", "a server that is built already")
	flag.StringVar(&b.postgres, "postgres", "", "address of a PostgreSQL for master and tenants; empty: SQLite files")
	flag.StringVar(&b.only, "only", "", "one part: throughput, or beside; empty: both")
	flag.IntVar(&b.besides, "besides", 500, "how many deliveries are measured alone, and as many beside bad endpoints")
	flag.Parse()
	if err := b.run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "webhooks:", err)
		os.Exit(1)
	}
}

type bench struct {
	deliveries, clients    int
	besides                int
	binary, postgres, only string
}

func (b *bench) run(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "webhooks-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if b.binary == "" {
		if b.binary, err = lab.Build(ctx, dir); err != nil {
			return err
		}
	}
	env := []string{"STORAGE_PATH=" + dir + "/storage", "OUTBOUND_ALLOW=127.0.0.0/8"}
	if b.postgres != "" {
		env = append(env, "MASTER_DATABASE_URL="+b.postgres, "TENANT_DATABASE_URLS="+b.postgres)
	}
	server, err := lab.Start(b.binary, dir, env...)
	if err != nil {
		return err
	}
	defer server.Kill()
	if b.only != "beside" {
		if err := b.throughput(ctx, server); err != nil {
			return err
		}
	}
	if b.only == "throughput" {
		return nil
	}
	if err := b.beside(ctx, server.URL); err != nil {
		return fmt.Errorf("beside: %w\n%s", err, server.Log())
	}
	return nil
}

// throughput measures many deliveries at once.
func (b *bench) throughput(ctx context.Context, server *lab.Server) error {
	fmt.Println("| | changes a second | deliveries a second, from the first change to the last delivery | delivered after: median | 95 % | 99 % | longest | came twice |")
	fmt.Println("|---|--:|--:|--:|--:|--:|--:|--:|")
	for _, p := range []part{
		{"100 tenants without endpoints", 100, 0},
		{"100 tenants, an endpoint each", 100, 1},
		{"one tenant without endpoints", 1, 0},
		{"one tenant, 50 endpoints", 1, 50},
		{"100 tenants, an endpoint each", 100, 1},
		{"100 tenants without endpoints", 100, 0},
	} {
		if err := b.measure(ctx, server.URL, p); err != nil {
			return fmt.Errorf("%s: %w\n%s", p.name, err, server.Log())
		}
	}
	return nil
}

// part is one way to spread the deliveries.
type part struct {
	name               string
	tenants, endpoints int // of each tenant
}

// sink is where all endpoints lead.
type sink struct {
	mu    sync.Mutex
	after []time.Duration
	seen  map[string]bool // endpoint and id
	twice int
	want  int
	all   chan struct{}
	last  time.Time
}

func (s *sink) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	now := time.Now()
	var m struct{ Timestamp time.Time }
	if err != nil || json.Unmarshal(body, &m) != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := r.URL.Path + " " + r.Header.Get("webhook-id")
	if s.seen[key] {
		s.twice++
		return
	}
	s.seen[key] = true
	s.after = append(s.after, now.Sub(m.Timestamp))
	if s.last = now; len(s.after) == s.want {
		close(s.all)
	}
}

func (b *bench) measure(ctx context.Context, url string, p part) error {
	s := &sink{seen: map[string]bool{}, want: b.deliveries, all: make(chan struct{})}
	where := httptest.NewServer(s)
	defer where.Close()
	var people []*lab.Client
	for i := range p.tenants {
		c := lab.Dial(url, b.clients)
		defer c.Close()
		if err := c.Register(ctx, fmt.Sprintf("w%d-%d@example.org", time.Now().UnixNano(), i)); err != nil {
			return err
		}
		for n := range p.endpoints {
			body := map[string]any{"name": "bench", "url": where.URL + "/" + strconv.Itoa(i) + "/" + strconv.Itoa(n), "events": []string{"project.created"}}
			if err := c.Post(ctx, "/webhooks", body, nil); err != nil {
				return err
			}
		}
		people = append(people, c)
	}
	changes := b.deliveries / max(p.endpoints, 1)
	next := make(chan int, changes)
	for i := range changes {
		next <- i
	}
	close(next)
	failed := make(chan error, b.clients)
	begun := time.Now()
	for range b.clients {
		go func() {
			for i := range next {
				if err := people[i%len(people)].Post(ctx, "/projects", map[string]any{"name": "bench"}, nil); err != nil {
					failed <- err
					return
				}
			}
			failed <- nil
		}()
	}
	for range b.clients {
		if err := <-failed; err != nil {
			return err
		}
	}
	made := float64(changes) / time.Since(begun).Seconds()
	if p.endpoints == 0 {
		fmt.Printf("| %s | %.0f | | | | | | |\n", p.name, made)
		return nil
	}
	select {
	case <-s.all:
	case <-time.After(5 * time.Minute):
		s.mu.Lock()
		defer s.mu.Unlock()
		return fmt.Errorf("only %d of %d came", len(s.after), s.want)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.Sort(s.after)
	at := func(part float64) string { return text(quantile(s.after, part)) }
	fmt.Printf("| %s | %.0f | %.0f | %s | %s | %s | %s | %d |\n", p.name, made, float64(len(s.after))/s.last.Sub(begun).Seconds(),
		at(0.5), at(0.95), at(0.99), at(1), s.twice)
	return nil
}

// quantile is how long so large a part of them took at most. They are sorted.
func quantile(sorted []time.Duration, part float64) time.Duration {
	return sorted[min(int(part*float64(len(sorted))), len(sorted)-1)]
}

func text(d time.Duration) string { return d.Round(100 * time.Microsecond).String() }
