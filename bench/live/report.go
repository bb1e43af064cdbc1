package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// table is the lines of one table of the report.
type table struct{ out io.Writer }

func (t table) head(title string, columns ...string) {
	fmt.Fprintf(t.out, "\n### %s\n\n| %s |\n|---|%s\n", title, strings.Join(columns, " | "), strings.Repeat("--:|", len(columns)-1))
}

func (t table) row(cells ...any) {
	parts := make([]string, len(cells))
	for i, c := range cells {
		parts[i] = fmt.Sprint(c)
	}
	fmt.Fprintf(t.out, "| %s |\n", strings.Join(parts, " | "))
}

// compare gives the ratios between paired rounds: the median of all, with the extremes.
func (t table) compare(what string, rounds, base []scene, of func(scene) time.Duration) {
	var ratios []float64
	var a, z []time.Duration
	for i := range min(len(rounds), len(base)) {
		x, y := of(rounds[i]), of(base[i])
		a, z = append(a, x), append(z, y)
		ratios = append(ratios, float64(x)/float64(max(1, y)))
	}
	t.ratios(what, ratios, short(quantile(a, 0.5)), short(quantile(z, 0.5)))
}

// ratios gives the median, the extremes, and whatever else belongs to the row.
func (t table) ratios(what string, r []float64, more ...any) {
	if len(r) == 0 {
		return
	}
	r = slices.Sorted(slices.Values(r))
	t.row(append([]any{what, "**" + figure(middle(r)) + "**", figure(r[0]), figure(r[len(r)-1])}, more...)...)
}

// middle is the median of numbers.
func middle(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if len(v) == 0 {
		return 0
	}
	return (v[len(v)/2] + v[(len(v)-1)/2]) / 2
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(d))[min(len(d)-1, int(q*float64(len(d))))]
}

func short(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// figure has two or three digits that say something.
func figure(v float64) string {
	if v >= 10 {
		return fmt.Sprint(math.Round(v))
	}
	return fmt.Sprintf("%.2f", v)
}

func mib(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }
