package main

import (
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
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

// comparison begins a table of ratios.
func (t table) comparison(title, what, base string) {
	t.head(title, "what", "99 %, ratio", "lowest", "highest", "99 % "+what, "99 % "+base, "median, ratio", "median "+what)
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
		tails = append(tails, float64(quantile(a, 0.99))/float64(quantile(b, 0.99)))
		middles = append(middles, float64(quantile(a, 0.5))/float64(quantile(b, 0.5)))
		tail, baseTail, middle = append(tail, quantile(a, 0.99)), append(baseTail, quantile(b, 0.99)), append(middle, quantile(a, 0.5))
	}
	if len(tails) == 0 {
		return
	}
	slices.Sort(tails)
	slices.Sort(middles)
	t.row(what, "**"+figure(tails[len(tails)/2])+"**", figure(tails[0]), figure(tails[len(tails)-1]), short(quantile(tail, 0.5)),
		short(quantile(baseTail, 0.5)), figure(middles[len(middles)/2]), short(quantile(middle, 0.5)))
}

func times(all []sample, in func(sample) bool) (out []time.Duration) {
	for _, s := range all {
		if in(s) {
			out = append(out, s.took)
		}
	}
	return out
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(d))[min(len(d)-1, int(q*float64(len(d))))]
}

func spread(d []time.Duration) string {
	return fmt.Sprintf("%v, %v, %v", short(quantile(d, 0.5)), short(quantile(d, 0.95)), short(quantile(d, 0.99)))
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
