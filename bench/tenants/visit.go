package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"claude-memory-backend/bench/fleet"
	"claude-memory-backend/bench/lab"
)

// kind is what a visitor does.
type kind int

const (
	list kind = iota
	page
	one
	send
	search
	kinds
)

// sample is one visit that was answered.
type sample struct {
	kind   kind
	took   time.Duration
	opened time.Duration // what waiting for the database to be opened took of it; 0 when it was open
	late   time.Duration // behind the moment that it was meant for
}

func (s sample) cold() bool { return s.opened > 0 }

// crowd visits one server.
type crowd struct {
	client *lab.Client
	fleet  *fleet.Fleet
	order  []int // of popularity
	r      *rand.Rand
	zipf   *rand.Zipf
	words  *fleet.Corpus
}

// newCrowd visits a server by Zipf's law.
func newCrowd(server *lab.Server, f *fleet.Fleet, law float64) *crowd {
	r := rand.New(rand.NewPCG(1, uint64(len(f.Members))))
	return &crowd{client: lab.Dial(server.URL, 256), fleet: f, order: r.Perm(len(f.Members)), r: r,
		zipf: rand.NewZipf(r, law, 1, uint64(len(f.Members)-1)), words: fleet.NewCorpus(9)}
}

// visit is what somebody is about to do.
type visit struct {
	member *fleet.Member
	kind   kind
	words  string
	conv   int
}

// next draws a visit.
func (c *crowd) next() visit {
	return c.to(&c.fleet.Members[c.order[c.zipf.Uint64()]])
}

// to draws what somebody does: most people read.
func (c *crowd) to(m *fleet.Member) visit {
	v := visit{member: m, conv: c.r.IntN(len(m.Conversations))}
	switch n := c.r.IntN(100); {
	case n < 40:
		v.kind = list
	case n < 75:
		v.kind = page
	case n < 85:
		v.kind = one
	case n < 95:
		v.kind, v.words = send, c.words.Text()
	default:
		v.kind, v.words = search, c.words.Query("medium")
	}
	return v
}

// pay does it.
func (c *crowd) pay(ctx context.Context, v visit) (sample, lab.Answer) {
	client := *c.client
	client.Token = v.member.Token
	conv := "/conversations/" + string(v.member.Conversations[v.conv])
	method, path, body, want := http.MethodGet, conv, any(nil), http.StatusOK
	switch v.kind {
	case list:
		path = "/conversations?limit=20"
	case page:
		path += "/messages?limit=20"
	case send:
		method, path, want = http.MethodPost, path+"/messages", http.StatusCreated
		body = map[string]any{"content": v.words, "reply": false}
	case search:
		path = "/conversations/search?limit=20&q=" + url.QueryEscape(v.words)
	}
	begun := time.Now()
	a := client.Do(ctx, method, path, body)
	s := sample{kind: v.kind, took: time.Since(begun)}
	if a.Err == nil {
		s.opened = opened(a.Header)
		if a.Status != want && a.Status != http.StatusTooManyRequests {
			a.Err = a.Into(nil, want)
		}
	}
	return s, a
}

// tour looks at tenants one after another, and notes in waits, unless that is nil, how long those took to open that
// were closed.
func (c *crowd) tour(ctx context.Context, order []int, waits *[]time.Duration) error {
	for _, i := range order {
		s, a := c.pay(ctx, visit{member: &c.fleet.Members[i], kind: list})
		if err := a.Into(nil, http.StatusOK); err != nil {
			return err
		}
		if waits != nil && s.cold() {
			*waits = append(*waits, s.opened)
		}
	}
	return nil
}

// warm visits a server until its pool grows no more.
func (c *crowd) warm(ctx context.Context, rate float64, next func() visit) error {
	const haste, batch, still = 2, 1000, 1.01
	for open := 0.0; ; {
		if _, err := c.stream(ctx, batch, haste*rate, next); err != nil {
			return err
		}
		n, err := gauge(ctx, c.client, "memoryd_tenants_open")
		if err != nil || n <= open*still {
			return err
		}
		open = n
	}
}

// gauge reads one of the numbers that a server tells.
func gauge(ctx context.Context, c *lab.Client, name string) (float64, error) {
	a := c.Do(ctx, http.MethodGet, "/health/metrics", nil)
	if err := a.Into(nil, http.StatusOK); err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(a.Body)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("no metric is called %s", name)
}

// live is what a server's heap holds: the least of what it says, since garbage comes and goes.
func live(ctx context.Context, c *lab.Client) (int64, error) {
	least := math.Inf(1)
	for range 200 {
		n, err := gauge(ctx, c, "go_memstats_heap_alloc_bytes")
		if err != nil {
			return 0, err
		}
		least = min(least, n)
	}
	return int64(least), nil
}

var timing = regexp.MustCompile(`open;dur=([0-9.]+)`)

// opened reads what the server says about the wait for a database.
func opened(h http.Header) time.Duration {
	m := timing.FindStringSubmatch(h.Get("Server-Timing"))
	if m == nil {
		return 0
	}
	ms, _ := strconv.ParseFloat(m[1], 64)
	return time.Duration(ms * float64(time.Millisecond))
}

// stream sends n visits at random moments, rate a second on average, and waits for the answers to all.
func (c *crowd) stream(ctx context.Context, n int, rate float64, next func() visit) ([]sample, error) {
	all := make([]sample, n)
	var mu sync.Mutex
	var failed error
	var wg sync.WaitGroup
	due := time.Now()
	for i := range n {
		due = due.Add(time.Duration(c.r.ExpFloat64() / rate * float64(time.Second)))
		v := next()
		time.Sleep(time.Until(due)) //nolint:forbidigo // arrivals keep to a clock
		meant := due
		wg.Go(func() {
			late := time.Since(meant)
			s, a := c.pay(ctx, v)
			s.late = late
			if a.Err == nil && a.Status == http.StatusTooManyRequests {
				a.Err = fmt.Errorf("status %d", a.Status)
			}
			mu.Lock()
			defer mu.Unlock()
			all[i] = s
			if failed == nil && a.Err != nil {
				failed = a.Err
			}
		})
		mu.Lock()
		over := failed
		mu.Unlock()
		if over != nil {
			break
		}
	}
	wg.Wait()
	return all, failed
}
