package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"
)

// probe is something to do over and over by some clients at once.
type probe struct {
	name    string
	clients int
	do      func(ctx context.Context, client, n int) error
}

// run does it for a while and returns how long one took, as the clients together saw it, and each single time.
func (p probe) run(ctx context.Context, d time.Duration) (each time.Duration, all []time.Duration, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	begun := time.Now()
	for c := range p.clients {
		wg.Go(func() {
			var mine []time.Duration
			var failed error
			for n := 0; failed == nil && time.Since(begun) < d; n++ {
				at := time.Now()
				failed = p.do(ctx, c, n)
				mine = append(mine, time.Since(at))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, mine...)
			if failed != nil && err == nil {
				err = fmt.Errorf("%s: %w", p.name, failed)
			}
		})
	}
	wg.Wait()
	return time.Since(begun) / time.Duration(max(1, len(all))), all, err
}

// against measures a probe and its base in turns and returns one ratio for each turn.
func against(ctx context.Context, reps int, d time.Duration, base, p probe) (ratios []float64, typical time.Duration, err error) {
	var medians []time.Duration
	for _, warm := range []probe{base, p} {
		if _, _, err := warm.run(ctx, d/4); err != nil {
			return nil, 0, err
		}
	}
	for range reps {
		b, _, err := base.run(ctx, d)
		if err != nil {
			return nil, 0, err
		}
		t, all, err := p.run(ctx, d)
		if err != nil {
			return nil, 0, err
		}
		ratios, medians = append(ratios, float64(t)/float64(b)), append(medians, quantile(all, 0.5))
	}
	return ratios, quantile(medians, 0.5), nil
}

// alternate does one and the other in turns, n times each, reps times, and returns the ratios of the medians.
func alternate(reps, n int, one, other func(i int) (time.Duration, error)) (ratios []float64, typical time.Duration, err error) {
	for range reps {
		var a, b []time.Duration
		for i := range n {
			t, err := one(i)
			if err != nil {
				return nil, 0, err
			}
			a = append(a, t)
			if t, err = other(i); err != nil {
				return nil, 0, err
			}
			b = append(b, t)
		}
		typical = quantile(b, 0.5)
		ratios = append(ratios, float64(typical)/float64(quantile(a, 0.5)))
	}
	return ratios, typical, nil
}

// timed makes a function tell how long it took.
func timed(do func(i int) error) func(i int) (time.Duration, error) {
	return func(i int) (time.Duration, error) {
		begun := time.Now()
		err := do(i)
		return time.Since(begun), err
	}
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(d))[min(len(d)-1, int(q*float64(len(d))))]
}

// table is the lines of one table of the report.
type table struct {
	out io.Writer
}

func (t table) head(title string) {
	fmt.Fprintf(t.out, "\n### %s\n\n| what | engine | ratio | lowest | highest | one takes (this machine, now) |\n|---|---|--:|--:|--:|--:|\n", title)
}

func (t table) row(what, engine string, ratios []float64, typical time.Duration) {
	s := slices.Sorted(slices.Values(ratios))
	fmt.Fprintf(t.out, "| %s | %s | **%s** | %s | %s | %v |\n", what, engine, figure(s[len(s)/2]), figure(s[0]), figure(s[len(s)-1]),
		typical.Round(time.Microsecond))
}

// figure has two or three digits that say something.
func figure(v float64) string {
	if v >= 10 {
		return fmt.Sprint(math.Round(v))
	}
	return fmt.Sprintf("%.2f", v)
}
