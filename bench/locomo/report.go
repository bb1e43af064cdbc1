package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// report writes the tables. Engines that do not find the same are an error.
func report(out io.Writer, d dialogue, all []found) error {
	fmt.Fprintf(out, "%d turns replayed, %d questions with evidence asked. An evidence turn was among the first:\n\n", len(d.turns), len(d.questions))
	fmt.Fprintln(out, "| category | questions | 5 | 10 | 25 | mean reciprocal rank |")
	fmt.Fprintln(out, "|---|--:|--:|--:|--:|--:|")
	for c := 0; c <= len(categories); c++ {
		row(out, d, all[0], c)
	}
	fmt.Fprintln(out, "\n| engine | message that asks nobody, median | turn with its answer, median | search, median | search, slowest |")
	fmt.Fprintln(out, "|---|--:|--:|--:|--:|")
	for _, f := range all {
		fmt.Fprintf(out, "| %s | %s | %s | %s | %s |\n", f.engine, median(f.send), median(f.turn), median(f.search), round(slices.Max(f.search)))
	}
	for _, f := range all[1:] {
		for i := range f.hits {
			if !slices.Equal(f.hits[i], all[0].hits[i]) {
				return fmt.Errorf("question %d: %s finds %v, %s finds %v", i, all[0].engine, all[0].hits[i], f.engine, f.hits[i])
			}
		}
		fmt.Fprintf(out, "\n%s and %s found the same, in the same order, for every question.\n", all[0].engine, f.engine)
	}
	if len(d.questions) == 0 {
		return errors.New("no question has evidence")
	}
	return nil
}

// row is one category; 0 is all of them.
func row(out io.Writer, d dialogue, f found, category int) {
	var n, in5, in10, in25 int
	var reciprocal float64
	for i, q := range d.questions {
		if category != 0 && q.Category != category {
			continue
		}
		n++
		r := rank(f.hits[i], q.Evidence)
		if r == 0 {
			continue
		}
		reciprocal += 1 / float64(r)
		in25++
		if r <= 10 {
			in10++
		}
		if r <= 5 {
			in5++
		}
	}
	if n == 0 {
		return
	}
	name := "**all**"
	if category != 0 {
		name = fmt.Sprintf("%d, %s", category, categories[category])
	}
	share := func(k int) string { return fmt.Sprintf("%d (%.1f %%)", k, 100*float64(k)/float64(n)) }
	fmt.Fprintf(out, "| %s | %d | %s | %s | %s | %.3f |\n", name, n, share(in5), share(in10), share(in25), reciprocal/float64(n))
}

// misses names the questions whose evidence is not among the first five, by number and turn, without a word of them.
func misses(log io.Writer, d dialogue, f found) {
	for i, q := range d.questions {
		if r := rank(f.hits[i], q.Evidence); r == 0 || r > 5 {
			fmt.Fprintf(log, "question %d, category %d: evidence %s at %d; first: %s\n", i, q.Category, strings.Join(q.Evidence, " "), r,
				strings.Join(f.hits[i][:min(5, len(f.hits[i]))], " "))
		}
	}
}

func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return round(slices.Sorted(slices.Values(d))[len(d)/2])
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
