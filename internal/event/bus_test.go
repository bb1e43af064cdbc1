package event_test

import (
	"testing"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/event/bustest"
)

func TestLocalBus(t *testing.T) {
	bustest.Run(t, bustest.Harness{
		Nodes: func(_ *testing.T, n int) []event.Bus {
			nodes, bus := make([]event.Bus, n), event.NewLocalBus()
			for i := range nodes {
				nodes[i] = bus
			}
			return nodes
		},
		Ready: func(*testing.T, event.Bus, string) {},
	})
}

func TestWatch(t *testing.T) {
	b := event.NewLocalBus()
	early := b.Subscribe("early", 1)
	var seen []string
	b.Watch(func(topic string, followed bool) {
		if !followed {
			topic = "-" + topic
		}
		seen = append(seen, topic)
	})
	one, two := b.Subscribe("a", 1), b.Subscribe("a", 1)
	one.Close()
	one.Close()
	two.Close()
	two.Close()
	early.Close()
	want := []string{"early", "a", "-a", "-early"}
	if len(seen) != len(want) {
		t.Fatalf("%q", seen)
	}
	for i := range want {
		if seen[i] != want[i] {
			t.Fatalf("%q", seen)
		}
	}
}

func TestMissAll(t *testing.T) {
	b := event.NewLocalBus()
	one, two := b.Subscribe("a", 1), b.Subscribe("b", 1)
	b.Miss("a")
	if !one.Lost() || two.Lost() {
		t.Error("one topic's subscribers are told")
	}
	b.MissAll()
	if sig := <-two.C; sig.Kind != event.Missed || sig.Topic != "b" || !one.Lost() || !two.Lost() {
		t.Errorf("all are told: %+v", sig)
	}
}
