package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"claude-memory-backend/bench/lab"
)

// table is the lines of one table of the report.
type table struct{ lab.Table }

// comparison begins a table of ratios.
func (t table) comparison(title, what, base string) {
	t.Head(title, "what", "99 %, ratio", "lowest", "highest", "99 % "+what, "99 % "+base, "median, ratio", "median "+what)
}

// compare gives the ratios between paired rounds: the median of all, with the extremes. The times are medians of the
// rounds' own quantiles, too.
func (t table) compare(what string, rounds, base [][]sample, in func(sample) bool) {
	var tails, middles []float64
	var tail, baseTail, middle []time.Duration
	for i := range rounds {
		a, b := times(rounds[i], in), times(base[i], in)
		if len(a) == 0 || len(b) == 0 {
			continue
		}
		tails = append(tails, float64(lab.Quantile(a, 0.99))/float64(lab.Quantile(b, 0.99)))
		middles = append(middles, float64(lab.Quantile(a, 0.5))/float64(lab.Quantile(b, 0.5)))
		tail, baseTail, middle = append(tail, lab.Quantile(a, 0.99)), append(baseTail, lab.Quantile(b, 0.99)), append(middle, lab.Quantile(a, 0.5))
	}
	if len(tails) == 0 {
		return
	}
	slices.Sort(tails)
	slices.Sort(middles)
	t.Row(what, "**"+lab.Figure(tails[len(tails)/2])+"**", lab.Figure(tails[0]), lab.Figure(tails[len(tails)-1]), lab.Short(lab.Quantile(tail, 0.5)),
		lab.Short(lab.Quantile(baseTail, 0.5)), lab.Figure(middles[len(middles)/2]), lab.Short(lab.Quantile(middle, 0.5)))
}

func times(all []sample, in func(sample) bool) (out []time.Duration) {
	for _, s := range all {
		if in(s) {
			out = append(out, s.took)
		}
	}
	return out
}

func spread(d []time.Duration) string {
	return fmt.Sprintf("%v, %v, %v", lab.Short(lab.Quantile(d, 0.5)), lab.Short(lab.Quantile(d, 0.95)), lab.Short(lab.Quantile(d, 0.99)))
}

// descriptors is how many files a process holds open.
func descriptors(pid int) int {
	list, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)) // 0 where there is no such thing
	return len(list)
}

// limitOfDescriptors is how many files a process may hold open.
func limitOfDescriptors(pid int) string {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid)) // unknown where there is no such thing
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			return strings.Fields(rest)[0]
		}
	}
	return "unknown"
}

// weigh is how large the files of a folder are together.
func weigh(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}
