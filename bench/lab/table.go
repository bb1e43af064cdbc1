package lab

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// Table writes a report's tables, in Markdown.
type Table struct{ Out io.Writer }

// Head begins a table.
func (t Table) Head(title string, columns ...string) {
	fmt.Fprintf(t.Out, "\n### %s\n\n| %s |\n|---|%s\n", title, strings.Join(columns, " | "), strings.Repeat("--:|", len(columns)-1))
}

// Row adds a line to it.
func (t Table) Row(cells ...any) {
	parts := make([]string, len(cells))
	for i, c := range cells {
		parts[i] = fmt.Sprint(c)
	}
	fmt.Fprintf(t.Out, "| %s |\n", strings.Join(parts, " | "))
}

// Quantile is the time that the share q of all stay below; 0 of none.
func Quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(d))[min(len(d)-1, int(q*float64(len(d))))]
}

// Short is a time without the digits that say nothing.
func Short(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// Figure has two or three digits that say something.
func Figure(v float64) string {
	if v >= 10 {
		return fmt.Sprint(math.Round(v))
	}
	return fmt.Sprintf("%.2f", v)
}

// MiB is an amount of memory.
func MiB(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }
