//go:build unix

package workspace

import (
	"fmt"
	"syscall"
	"testing"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/tenant"
)

// spending is what this process has used of the processor, in microseconds, and how many pages of memory it has touched
// for the first time.
type spending struct{ cpu, faults int64 }

func spent(b *testing.B) spending {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return spending{(u.Utime.Nano() + u.Stime.Nano()) / 1000, u.Minflt}
}

// BenchmarkVisit is a visit to a tenant whose database is closed: open, list, read the first page of messages, close what
// made room. Time on the clock says little on a shared machine, so it counts the processor and page faults, by part.
func BenchmarkVisit(b *testing.B) {
	h := newHouse(b, func(c *Config) { c.MaxOpen = 1 << 20 })
	all := make([]tenant.Tenant, 24)
	chats := make([]ident.ConversationID, len(all))
	for i := range all {
		all[i] = h.newTenant()
		chats[i] = h.fill(all[i], "One", "Two", "Three", "Four", "Five", "Six").ID
		ws := h.acquire(all[i])
		for n := range 20 {
			if _, err := ws.Conversations.Send(b.Context(), ident.Actor{Account: all[i].Account}, chats[i],
				conversation.SendInput{Text: fmt.Sprint("the tide comes in at night, ", n)}); err != nil {
				b.Fatal(err)
			}
		}
		ws.Release()
	}
	const open = 8
	names := [...]string{"open", "list", "page", "close"}
	var parts [len(names)]spending
	var order []*entry
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		t := all[i%len(all)]
		actor := ident.Actor{Account: t.Account}
		at := spent(b)
		done := func(part int) {
			now := spent(b)
			parts[part].cpu += now.cpu - at.cpu
			parts[part].faults += now.faults - at.faults
			at = now
		}
		ws := h.acquire(t)
		done(0)
		if _, _, err := ws.Conversations.List(b.Context(), actor, conversation.Query{Limit: 20}); err != nil {
			b.Fatal(err)
		}
		done(1)
		if _, _, err := ws.Conversations.Messages(b.Context(), actor, chats[i%len(all)], conversation.MessageQuery{Limit: 20}); err != nil {
			b.Fatal(err)
		}
		done(2)
		order = append(order, ws.entry)
		ws.Release()
		if len(order) > open {
			h.pool.mu.Lock()
			h.pool.drop(order[0])
			h.pool.mu.Unlock()
			h.pool.closing.Wait()
			order = order[1:]
		}
		done(3)
		i++
	}
	var sum spending
	for n, p := range parts {
		b.ReportMetric(float64(p.cpu)/float64(i), names[n]+"-µs")
		b.ReportMetric(float64(p.faults)/float64(i), names[n]+"-faults")
		sum.cpu, sum.faults = sum.cpu+p.cpu, sum.faults+p.faults
	}
	b.ReportMetric(float64(sum.cpu)/float64(i), "cpu-µs/op")
	b.ReportMetric(float64(sum.faults)/float64(i), "faults/op")
}
