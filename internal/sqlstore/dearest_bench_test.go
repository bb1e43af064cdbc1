//go:build unix

package sqlstore

import (
	"math/rand"
	"strings"
	"syscall"
	"testing"

	"claude-memory-backend/internal/conversation"
)

// BenchmarkDearest asks a tenant with 50,000 messages questions of eight words, as bench/tenants does. Time on the clock says
// little on a shared machine, so it counts the processor.
func BenchmarkDearest(b *testing.B) {
	for _, e := range []struct {
		name string
		open func(testing.TB) func(testing.TB) *DB
	}{{"sqlite", tenantFiles}, {"postgres", tenantSchemas}} {
		b.Run(e.name, func(b *testing.B) {
			db := e.open(b)(b)
			fill(b, db, 50_000)
			ask, r, n := searchService(db), rand.New(rand.NewSource(7)), 0
			spent := func() int64 {
				var u syscall.Rusage
				if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
					b.Fatal(err)
				}
				return u.Utime.Nano() + u.Stime.Nano()
			}
			begun := spent()
			for b.Loop() {
				parts := []string{"What"}
				for _, top := range []int{20, 20, 60, 300, 60, 3000, 20} {
					parts = append(parts, word(r.Intn(top)))
				}
				ask(b, conversation.SearchInput{Text: strings.Join(parts, " ") + "?"})
				n++
			}
			b.ReportMetric(float64(spent()-begun)/1e6/float64(n), "cpu-ms/search") // of this process alone
		})
	}
}
