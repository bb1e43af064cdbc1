package bustest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"claude-memory-backend/internal/event"
)

// Harness makes what the suite looks at.
type Harness struct {
	// Nodes opens a bus and returns it as n nodes see it; they may all be one.
	Nodes func(t *testing.T, n int) []event.Bus
	// Ready returns when whatever is published on other nodes reaches the topic's subscribers on this one.
	Ready func(t *testing.T, at event.Bus, topic string)
}

// patience bounds what must happen; on a busy machine that takes a while.
const patience = 30 * time.Second

// Run looks at a bus from two nodes.
func Run(t *testing.T, h Harness) {
	for name, test := range map[string]func(*testing.T, *site){
		"signals arrive whole, in order, once, on every node": everywhere,
		"a topic's signals are nobody else's":                 topics,
		"a long delta arrives whole":                          long,
		"who falls behind is told so, once, and goes on":      behind,
		"a signal wakes who is told that it lost something":   woken,
		"a closed subscription hears nothing":                 closed,
		"publishing waits for nobody":                         flood,
		"many come, speak and go at once":                     crowd,
	} {
		t.Run(name, func(t *testing.T) {
			nodes := h.Nodes(t, 2)
			test(t, &site{t: t, h: h, a: nodes[0], b: nodes[1]})
		})
	}
}

// site is two nodes.
type site struct {
	t    *testing.T
	h    Harness
	a, b event.Bus
}

// on subscribes and waits until other nodes are heard.
func (s *site) on(at event.Bus, topic string, buffer int) *event.Subscription {
	s.t.Helper()
	sub := at.Subscribe(topic, buffer)
	s.t.Cleanup(sub.Close)
	s.h.Ready(s.t, at, topic)
	for len(sub.C) > 0 { // what it may have missed before
		<-sub.C
	}
	sub.Lost()
	return sub
}

// next is the next signal that says something.
func (s *site) next(sub *event.Subscription) event.Signal {
	s.t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		select {
		case sig := <-sub.C:
			if sig.Kind != event.Missed {
				return sig
			}
		case <-late.C:
			s.t.Fatal("no signal came")
		}
	}
}

// want checks the next signals.
func (s *site) want(sub *event.Subscription, want ...event.Signal) {
	s.t.Helper()
	for _, w := range want {
		if diff := cmp.Diff(w, s.next(sub)); diff != "" {
			s.t.Fatalf("another signal came (-want +got):\n%s", diff)
		}
	}
}

// nothing checks that nothing came before the mark, which is published last.
func (s *site) nothing(sub *event.Subscription, from event.Bus, topic string) {
	s.t.Helper()
	mark := event.Signal{Topic: topic, Kind: event.Committed, Seq: 4711}
	from.Publish(s.t.Context(), mark)
	s.want(sub, mark)
}

func everywhere(t *testing.T, s *site) {
	here, there, again := s.on(s.a, "turn_1", 64), s.on(s.b, "turn_1", 64), s.on(s.b, "turn_1", 64)
	said := []event.Signal{
		{Topic: "turn_1", Kind: event.Delta, Offset: 0, Text: "Hé 🙂 \"<&>\" \\ \x01 \u2028\n"},
		{Topic: "turn_1", Kind: event.Delta, Offset: 13, Text: "more"},
		{Topic: "turn_1", Kind: event.Committed, Seq: 1 << 60},
		{Topic: "turn_1", Kind: event.Stop},
		{Topic: "turn_1", Kind: "typing"},
		{Topic: "turn_1", Kind: event.Ended},
	}
	for _, sig := range said {
		s.a.Publish(t.Context(), sig)
	}
	for _, sub := range []*event.Subscription{here, there, again} {
		s.want(sub, said...)
		if sub.Lost() {
			t.Error("something was lost")
		}
	}
	mark := event.Signal{Topic: "turn_1", Kind: event.Committed, Seq: 4711}
	s.a.Publish(t.Context(), mark)
	for _, sub := range []*event.Subscription{here, there, again} {
		s.want(sub, mark) // nothing came before it, in particular not what went out and came back
	}
	// And the other way round.
	answer := event.Signal{Topic: "turn_1", Kind: event.Delta, Text: "back"}
	s.b.Publish(t.Context(), answer)
	s.want(here, answer)
	s.want(again, answer)
}

func topics(t *testing.T, s *site) {
	odd := []string{"ten_1", "ten_10", "TEN_1", "stop:ten_1", "ten_1.x", "ten_1.*", "ten_1.>", "*", ">", ".", "..", " ", "a b", "a\tb",
		"a\r\nb", "", "é", "e\u0301", "\xff", "%", "#", strings.Repeat("x", 5000), strings.Repeat("x", 5001)}
	subs := make([]*event.Subscription, len(odd))
	for i, topic := range odd {
		subs[i] = s.on(s.b, topic, 8)
	}
	for i, topic := range odd {
		s.a.Publish(t.Context(), event.Signal{Topic: topic, Kind: event.Committed, Seq: event.Seq(i + 1)})
	}
	for i, topic := range odd {
		s.want(subs[i], event.Signal{Topic: topic, Kind: event.Committed, Seq: event.Seq(i + 1)})
		s.nothing(subs[i], s.a, topic)
	}
}

func long(t *testing.T, s *site) {
	sub := s.on(s.b, "turn_1", 4096)
	text := strings.Repeat("a<\x01é🙂", 300_000) // three million bytes, and more when they are written as JSON
	s.a.Publish(t.Context(), event.Signal{Topic: "turn_1", Kind: event.Delta, Offset: 7, Text: text})
	s.a.Publish(t.Context(), event.Signal{Topic: "turn_1", Kind: event.Ended})
	var got strings.Builder
	at := 7
	for {
		sig := s.next(sub)
		if sig.Kind == event.Ended {
			break
		}
		if sig.Kind != event.Delta || sig.Offset != at {
			t.Fatalf("%s at %d, not at %d", sig.Kind, sig.Offset, at)
		}
		at += len(utf16.Encode([]rune(sig.Text)))
		got.WriteString(sig.Text)
	}
	if got.String() != text || sub.Lost() {
		t.Errorf("%d bytes of %d came", got.Len(), len(text))
	}
}

func behind(t *testing.T, s *site) {
	slow, quick, fence := s.on(s.b, "turn_1", 2), s.on(s.b, "turn_1", 64), s.on(s.b, "fence", 1)
	for i := range 10 {
		s.a.Publish(t.Context(), event.Signal{Topic: "turn_1", Kind: event.Delta, Offset: i})
	}
	for i := range 10 {
		s.want(quick, event.Signal{Topic: "turn_1", Kind: event.Delta, Offset: i})
	}
	s.nothing(fence, s.a, "fence") // so the last one was offered to both
	for i := range 2 {             // it has the oldest: what follows them is missing
		s.want(slow, event.Signal{Topic: "turn_1", Kind: event.Delta, Offset: i})
	}
	if !slow.Lost() || slow.Lost() {
		t.Error("who fell behind is told so once")
	}
	if quick.Lost() {
		t.Error("who did not fall behind is told so")
	}
	s.nothing(slow, s.a, "turn_1")
	if slow.Lost() {
		t.Error("who caught up is told that it fell behind")
	}
}

// woken has a reader that waits, and is told.
func woken(t *testing.T, s *site) {
	sub := s.on(s.a, "turn_1", 1)
	sub.Miss("turn_1")
	select {
	case sig := <-sub.C:
		if want := (event.Signal{Topic: "turn_1", Kind: event.Missed}); sig != want || !sub.Lost() || sub.Lost() {
			t.Errorf("woken by %+v", sig)
		}
	case <-time.After(patience):
		t.Fatal("nobody woke the reader")
	}
	full := event.NewSubscription(1, func() {})
	full.Offer(event.Signal{Kind: event.Ended})
	full.Miss("turn_1")
	if sig := <-full.C; sig.Kind != event.Ended || !full.Lost() {
		t.Errorf("woken by %+v", sig)
	}
}

// drain takes what came before the subscription was closed, such as the word that another node was not heard until now.
func drain(sub *event.Subscription) {
	for len(sub.C) > 0 {
		<-sub.C
	}
}

func closed(t *testing.T, s *site) {
	for _, at := range []event.Bus{s.a, s.b} {
		gone, stays := s.on(at, "turn_1", 8), s.on(at, "turn_1", 8)
		gone.Close()
		gone.Close()
		drain(gone)
		said := event.Signal{Topic: "turn_1", Kind: event.Ended}
		s.a.Publish(t.Context(), said)
		s.want(stays, said)
		stays.Close()
		drain(stays)
		s.a.Publish(t.Context(), said)
		// Who comes after them hears what is said from then on.
		next := s.on(at, "turn_1", 8)
		s.a.Publish(t.Context(), event.Signal{Topic: "turn_1", Kind: event.Stop})
		for {
			sig := s.next(next)
			if sig.Kind == event.Stop {
				break
			}
			if sig != said { // on its way when nobody listened
				t.Errorf("%+v", sig)
			}
		}
		if len(gone.C)+len(stays.C) > 0 {
			t.Error("a closed subscription heard of it")
		}
		next.Close()
	}
}

// flood publishes far more than anybody takes.
func flood(t *testing.T, s *site) {
	deaf := s.on(s.b, "turn_1", 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // a context that has ended is no reason to say nothing
	text := strings.Repeat("x", 64<<10)
	for i := range 2000 {
		s.a.Publish(ctx, event.Signal{Topic: "turn_1", Kind: event.Delta, Offset: i * len(text), Text: text})
	}
	// Whatever of that was lost, the reader hears of it.
	for late := time.After(patience); !deaf.Lost(); {
		select {
		case <-deaf.C:
		case <-late:
			t.Fatal("nobody told the reader that it lost something")
		}
	}
}

func crowd(t *testing.T, s *site) {
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			from, to := s.a, s.b
			if n%2 == 0 {
				from, to = to, from
			}
			for i := range 50 {
				topic := fmt.Sprint("turn_", (n+i)%5)
				sub := to.Subscribe(topic, 4)
				from.Publish(t.Context(), event.Signal{Topic: topic, Kind: event.Ended})
				to.Publish(t.Context(), event.Signal{Topic: topic, Kind: event.Ended})
				<-sub.C // at least its own node's
				sub.Lost()
				sub.Close()
			}
		})
	}
	wg.Wait()
	last := s.on(s.b, "turn_last", 4)
	s.nothing(last, s.a, "turn_last")
}
