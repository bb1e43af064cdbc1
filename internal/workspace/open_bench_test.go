package workspace

import (
	"testing"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/ident"
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
