package event

import (
	"context"
	"sync"

	"claude-memory-backend/internal/ident"
)

// Signal is what travels on the bus. It wakes followers and carries running text; it is never stored.
type Signal struct {
	Topic  string `json:"topic"`            // a turn's or a tenant's identifier, or an AccessTopic
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
	Access    Kind = "access"    // what the account of an AccessTopic may see has changed: whoever shows it something asks again
	Missed    Kind = "missed"    // signals may have been lost: read the truth again; comes with Subscription.Lost
	Typing    Kind = "typing"    // somebody in the room named by Topic types, or has stopped to; Text says who
	Presence  Kind = "presence"  // who is in the room named by Topic; Text says who, and on which node
)

// AccessTopic is what is published when an account's access to something of others changed.
func AccessTopic(id ident.AccountID) string { return "access:" + string(id) }

// Bus carries signals between followers, on one node or on many. Delivery is at most once, and in order for what one node
// publishes on one topic. Neither method waits for anybody. A subscriber that may have lost signals, because it fell behind
// or because another node could not be heard for a while, is woken and told so by Subscription.Lost, so it must be able to
// read the truth again. Over several nodes that also happens once soon after a topic's first subscription, when the other
// nodes are known to reach it: what they said before that was not heard.
type Bus interface {
	Publish(ctx context.Context, s Signal)
	// Subscribe delivers signals of the topic until Close. The buffer is the number of signals held for a slow reader, at
	// least one.
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
	c := make(chan Signal, max(1, buffer))
	return &Subscription{C: c, c: c, close: closeFunc}
}

// Offer hands a signal over without waiting; a full buffer marks the subscription as having lost something.
func (s *Subscription) Offer(sig Signal) {
	// Locked, so that whoever makes room afterwards finds the mark.
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offer(sig)
}

func (s *Subscription) offer(sig Signal) {
	select {
	case s.c <- sig:
	default:
		s.lost = true
	}
}

// Miss marks the subscription as having lost something and wakes its reader.
func (s *Subscription) Miss(topic string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = true
	s.offer(Signal{Topic: topic, Kind: Missed}) // a full buffer wakes it as well
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
	mu      sync.RWMutex
	topics  map[string]map[*Subscription]struct{}
	watched func(topic string, followed bool)
}

// NewLocalBus returns an empty bus.
func NewLocalBus() *LocalBus {
	return &LocalBus{topics: make(map[string]map[*Subscription]struct{})}
}

// Watch makes f hear of each topic that gets its first subscriber or loses its last, in order. f must not call the bus.
func (b *LocalBus) Watch(f func(topic string, followed bool)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watched = f
	for topic := range b.topics {
		f(topic, true)
	}
}

// Publish hands s to every subscriber of its topic.
func (b *LocalBus) Publish(_ context.Context, s Signal) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for sub := range b.topics[s.Topic] {
		sub.Offer(s)
	}
}

// Miss tells the subscribers of a topic that they may have lost something.
func (b *LocalBus) Miss(topic string) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for sub := range b.topics[topic] {
		sub.Miss(topic)
	}
}

// MissAll tells all subscribers that they may have lost something.
func (b *LocalBus) MissAll() {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for topic, subs := range b.topics {
		for sub := range subs {
			sub.Miss(topic)
		}
	}
}

// Subscribe follows a topic.
func (b *LocalBus) Subscribe(topic string, buffer int) *Subscription {
	var sub *Subscription
	sub = NewSubscription(buffer, func() { b.leave(topic, sub) })
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.topics[topic] == nil {
		b.topics[topic] = make(map[*Subscription]struct{})
		if b.watched != nil {
			b.watched(topic, true)
		}
	}
	b.topics[topic][sub] = struct{}{}
	return sub
}

func (b *LocalBus) leave(topic string, sub *Subscription) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, there := b.topics[topic][sub]; !there {
		return // closed before
	}
	delete(b.topics[topic], sub)
	if len(b.topics[topic]) > 0 {
		return
	}
	delete(b.topics, topic)
	if b.watched != nil {
		b.watched(topic, false)
	}
}
