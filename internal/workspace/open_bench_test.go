package workspace

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/tenant"
)

// BenchmarkOpen is what a request pays that comes to a tenant whose database is closed: lease, file, key, schema, turns
// that lost their owner, and the first read. What made room for it is closed meanwhile.
func BenchmarkOpen(b *testing.B) {
	h := newHouse(b, func(c *Config) { c.MaxOpen = 1 })
	a, z := h.newTenant(), h.newTenant()
	b.ReportAllocs()
	for b.Loop() {
		ws := h.acquire(a)
		if _, _, err := ws.Conversations.List(b.Context(), ident.Actor{Account: a.Account}, conversation.Query{Limit: 20}); err != nil {
			b.Fatal(err)
		}
		ws.Release()
		a, z = z, a
	}
}

// BenchmarkStampede opens a hundred closed tenants at once, as after a restart, while somebody reads in an open one.
func BenchmarkStampede(b *testing.B) {
	for _, turns := range []int{1, 2, 1000} {
		b.Run(fmt.Sprintf("turns=%d", turns), func(b *testing.B) {
			h := newHouse(b, func(c *Config) { c.MaxOpen = 1000 })
			h.pool.turns = make(chan struct{}, turns)
			all := make([]tenant.Tenant, 100)
			for i := range all {
				all[i] = h.newTenant()
			}
			hot := h.newTenant()
			ws := h.acquire(hot)
			var reads, opens []time.Duration
			var mu sync.Mutex
			for b.Loop() {
				h.pool.mu.Lock()
				for el := h.pool.idle.Front(); el != nil; {
					next := el.Next()
					h.pool.drop(el.Value.(*entry))
					el = next
				}
				h.pool.mu.Unlock()
				h.pool.closing.Wait()
				var wg sync.WaitGroup
				for _, t := range all {
					wg.Go(func() {
						begun := time.Now()
						w := h.acquire(t)
						mu.Lock()
						opens = append(opens, time.Since(begun))
						mu.Unlock()
						w.Release()
					})
				}
				done := make(chan struct{})
				go func() { wg.Wait(); close(done) }()
				for over := false; !over; {
					select {
					case <-done:
						over = true
					case <-time.After(time.Millisecond):
						begun := time.Now()
						if _, _, err := ws.Conversations.List(b.Context(), ident.Actor{Account: hot.Account}, conversation.Query{Limit: 20}); err != nil {
							b.Fatal(err)
						}
						reads = append(reads, time.Since(begun))
					}
				}
			}
			ws.Release()
			slices.Sort(reads)
			slices.Sort(opens)
			b.ReportMetric(float64(reads[len(reads)/2].Microseconds())/1000, "read-ms/p50")
			b.ReportMetric(float64(reads[len(reads)*99/100].Microseconds())/1000, "read-ms/p99")
			b.ReportMetric(float64(opens[len(opens)/2].Microseconds())/1000, "open-ms/p50")
			b.ReportMetric(float64(opens[len(opens)*95/100].Microseconds())/1000, "open-ms/p95")
			b.ReportMetric(float64(len(reads))/float64(b.N), "reads/op")
		})
	}
}
