package main

import (
	"slices"
	"time"

	"claude-memory-backend/bench/lab"
)

// table is the lines of one table of the report.
type table struct{ lab.Table }

// compare gives the ratios between paired rounds: the median of all, with the extremes.
func (t table) compare(what string, rounds, base []scene, of func(scene) time.Duration) {
	var ratios []float64
	var a, z []time.Duration
	for i := range min(len(rounds), len(base)) {
		x, y := of(rounds[i]), of(base[i])
		a, z = append(a, x), append(z, y)
		ratios = append(ratios, float64(x)/float64(max(1, y)))
	}
	t.ratios(what, ratios, lab.Short(lab.Quantile(a, 0.5)), lab.Short(lab.Quantile(z, 0.5)))
}

// ratios gives the median, the extremes, and whatever else belongs to the row.
func (t table) ratios(what string, r []float64, more ...any) {
	if len(r) == 0 {
		return
	}
	r = slices.Sorted(slices.Values(r))
	t.Row(append([]any{what, "**" + lab.Figure(middle(r)) + "**", lab.Figure(r[0]), lab.Figure(r[len(r)-1])}, more...)...)
}

// middle is the median of numbers.
func middle(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if len(v) == 0 {
		return 0
	}
	return (v[len(v)/2] + v[(len(v)-1)/2]) / 2
}
