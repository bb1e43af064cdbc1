package natsbus_test

import (
	"testing"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/natsbus"
	"claude-memory-backend/internal/natsbus/natstest"
	"claude-memory-backend/internal/seal"
)

// BenchmarkBetweenNodes is the way of one piece of an answer from a node to another one.
func BenchmarkBetweenNodes(b *testing.B) {
	s := natstest.Start(b, nil)
	k, err := seal.NewKeyring("correct horse battery staple 0123456789 abc")
	if err != nil {
		b.Fatal(err)
	}
	var nodes [2]*natsbus.Bus
	for i := range nodes {
		if nodes[i], err = natsbus.New(natsbus.Config{URL: seal.Secret(s.URL)}); err != nil {
			b.Fatal(err)
		}
		nodes[i].Join("house", k)
		defer nodes[i].Close()
	}
	sub := nodes[1].Subscribe("turn_1", 64)
	defer sub.Close()
	for !nodes[0].Status().Joined || !nodes[1].Live("turn_1") {
		time.Sleep(time.Millisecond)
	}
	for b.Loop() {
		nodes[0].Publish(b.Context(), event.Signal{Topic: "turn_1", Kind: event.Delta, Text: "a harbour"})
		for sig := range sub.C {
			if sig.Kind == event.Delta {
				break
			}
		}
	}
}
