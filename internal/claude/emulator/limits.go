package emulator

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"
)

// bucket refills continuously up to a minute's worth. What is taken may exceed what is there (output is known only
// afterwards); then it owes.
type bucket struct {
	limit int
	left  float64
	at    time.Time
}

func (b *bucket) refill(now time.Time) {
	if passed := now.Sub(b.at).Seconds(); passed > 0 {
		b.left = min(float64(b.limit), b.left+passed*float64(b.limit)/60)
		b.at = now
	}
}

// until says how long it takes until n are there.
func (b *bucket) until(n int) time.Duration {
	if missing := float64(n) - b.left; missing > 0 {
		return time.Duration(missing * 60 / float64(b.limit) * float64(time.Second))
	}
	return 0
}

// allowance holds the three buckets of one workspace and model.
type allowance struct{ requests, input, output bucket }

func (s *Server) allowance(key string) *allowance {
	a := s.buckets[key]
	if a == nil {
		now := s.opts.Now()
		fill := func(n int) bucket { return bucket{limit: n, left: float64(n), at: now} }
		a = &allowance{requests: fill(s.opts.Limits.Requests), input: fill(s.opts.Limits.InputTokens),
			output: fill(s.opts.Limits.OutputTokens)}
		s.buckets[key] = a
	}
	now := s.opts.Now()
	for _, b := range []*bucket{&a.requests, &a.input, &a.output} {
		b.refill(now)
	}
	return a
}

// charge takes a request with its input from the buckets, or refuses it. What the cache serves is free.
func (s *Server) charge(c *call, m model, input int) *apiError {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.allowance(c.workspace + " " + m.id)
	var wait time.Duration
	var word string
	var limit int
	for _, want := range []struct {
		b    *bucket
		n    int
		word string
	}{{&a.requests, 1, "requests"}, {&a.input, input, "input tokens"}, {&a.output, 1, "output tokens"}} {
		if want.b.limit < 0 {
			continue
		}
		if d := want.b.until(want.n); d > wait {
			wait, word, limit = d, want.word, want.b.limit
		}
	}
	if wait > 0 {
		s.limitHeaders(c.w.Header(), a)
		header := http.Header{}
		header.Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
		return &apiError{status: 429, kind: "rate_limit_error", header: header, message: fmt.Sprintf(
			"This request would exceed your organization's rate limit of %d %s per minute (org: org_emulator, model: %s).",
			limit, word, m.id)}
	}
	a.requests.left--
	a.input.left -= float64(input)
	s.limitHeaders(c.w.Header(), a)
	return nil
}

func (s *Server) chargeOutput(c *call, m model, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.allowance(c.workspace + " " + m.id).output.left -= float64(n)
}

func (s *Server) limitHeaders(h http.Header, a *allowance) {
	now := s.opts.Now()
	set := func(name string, limit int, left float64, full time.Duration) {
		if limit < 0 {
			return
		}
		prefix := "anthropic-ratelimit-" + name
		h.Set(prefix+"-limit", strconv.Itoa(limit))
		h.Set(prefix+"-remaining", strconv.Itoa(max(0, int(left))))
		h.Set(prefix+"-reset", now.Add(full).UTC().Format(time.RFC3339))
	}
	full := func(b bucket) time.Duration { return b.until(b.limit) }
	set("requests", a.requests.limit, a.requests.left, full(a.requests))
	set("input-tokens", a.input.limit, a.input.left, full(a.input))
	set("output-tokens", a.output.limit, a.output.left, full(a.output))
	if a.input.limit >= 0 && a.output.limit >= 0 {
		set("tokens", a.input.limit+a.output.limit, a.input.left+a.output.left, max(full(a.input), full(a.output)))
	}
}
