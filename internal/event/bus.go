package event

import (
	"context"
	"sync"

	"claude-memory-backend/internal/ident"
)

// Signal is what travels on the bus. It wakes followers and carries running text; it is never stored.
type Signal struct {
	Topic  string `json:"topic"`            // a turn's or a tenant's identifier
	Kind   Kind   `json:"kind"`             //
	Offset int    `json:"offset,omitempty"` // Delta: length of the text before it, in UTF-16 code units
	Text   string `json:"text,omitempty"`   // Delta: the piece
	Seq    Seq    `json:"seq,omitempty"`    // Committed: the log's head
}

// Kind says what a signal means.
type Kind string

// The kinds of signal.
const (
	Committed Kind = "committed" // the log of the tenant named by Topic has grown to Seq
	Delta     Kind = "delta"     // a piece of the answer of the turn named by Topic
	Ended     Kind = "ended"     // the turn named by Topic has ended and its end is committed
	Stop      Kind = "stop"      // whoever runs the turn named by Topic should stop it
	Typing    Kind = "typing"    // somebody in the room named by Topic types, or has stopped to; Text says who
	Presence  Kind = "presence"  // who is in the room named by Topic; Text says who, and on which node
	Access    Kind = "access"    // what the account named by Topic may see has changed
)

// AccessTopic is what is published when an account's access to something of others changed.
func AccessTopic(id ident.AccountID) string { return "access:" + string(id) }

// Bus carries signals between followers. Delivery is at most once and in order per publisher; a subscriber that
// falls behind loses signals and is told so by Subscription.Lost, so it must be able to read the truth again.
type Bus interface {
	Publish(ctx context.Context, s Signal)
	// Subscribe delivers signals of the topic until Close. The buffer is the number of signals held for a slow reader.
	Subscribe(topic string, buffer int) *Subscription
}

// Subscription is one follower's place on the bus.
type Subscription struct {
	C     <-chan Signal
	c     chan Signal
	close func()
	mu    sync.Mutex
	lost  bool
}

// NewSubscription is for implementations of Bus.
func NewSubscription(buffer int, closeFunc func()) *Subscription {
	c := make(chan Signal, buffer)
	return &Subscription{C: c, c: c, close: closeFunc}
}

// Offer hands a signal over without waiting; a full buffer marks the subscription as having lost something.
func (s *Subscription) Offer(sig Signal) {
	select {
	case s.c <- sig:
	default:
		s.mu.Lock()
		s.lost = true
		s.mu.Unlock()
	}
}

// Lost reports whether signals were dropped since the last call.
func (s *Subscription) Lost() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost := s.lost
	s.lost = false
	return lost
}

// Close ends the subscription; it may be called twice. C is not closed: a publisher may still hold it.
func (s *Subscription) Close() { s.close() }

// LocalBus is the Bus of a single process.
type LocalBus struct {
	mu     sync.RWMutex
	topics map[string]map[*Subscription]struct{}
}

// NewLocalBus returns an empty bus.
func NewLocalBus() *LocalBus {
	return &LocalBus{topics: make(map[string]map[*Subscription]struct{})}
}

// Publish hands s to every subscriber of its topic.
func (b *LocalBus) Publish(_ context.Context, s Signal) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for sub := range b.topics[s.Topic] {
		sub.Offer(s)
	}
}

// Subscribe follows a topic.
func (b *LocalBus) Subscribe(topic string, buffer int) *Subscription {
	var sub *Subscription
	sub = NewSubscription(buffer, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.topics[topic], sub)
		if len(b.topics[topic]) == 0 {
			delete(b.topics, topic)
		}
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.topics[topic] == nil {
		b.topics[topic] = make(map[*Subscription]struct{})
	}
	b.topics[topic][sub] = struct{}{}
	return sub
}
