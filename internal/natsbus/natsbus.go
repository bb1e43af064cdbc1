package natsbus

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"log/slog"
	"sync"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/seal"
)

const (
	// What waits to be sent. More is dropped, and whoever it was for is told.
	maxQueue      = 4096
	maxQueueBytes = 8 << 20
	// awayEvery is how often subscribers are told to look for themselves while other nodes cannot be heard.
	awayEvery = 2 * time.Second
	// A link may be dead for longer than nobody notices. What was said in that time, and at least in the last lateTime, is
	// taken for lost when it breaks.
	lateTime = 10 * time.Second
	// maxLate is how many topics are remembered for that; after more, all subscribers of all nodes are told.
	maxLate = 4096
)

// Config is what a Bus needs.
type Config struct {
	URL seal.Secret // nats:// or tls:// addresses with credentials, separated by commas: see Check
	Log *slog.Logger

	ping   time.Duration  // between looks at the link
	answer time.Duration  // for NATS to answer or to take what is written (default answerTime)
	roots  *x509.CertPool // nil: the system's
}

// Bus is an event.Bus over several nodes. It is safe for concurrent use.
type Bus struct {
	servers []string
	log     *slog.Logger
	ping    time.Duration
	answer  time.Duration
	roots   *x509.CertPool
	local   *event.LocalBus
	name    string // of this node, in what it sends

	prefix string
	keys   event.Sealer
	cancel context.CancelFunc // nil: alone
	done   sync.WaitGroup

	wake chan struct{} // there is something to send or to subscribe

	mu       sync.Mutex
	linked   bool // signals are sent; false: alone, or away
	joining  bool // alone is over
	before   bool // it was linked once
	dialled  bool // there is a link that subscriptions can be made on
	queue    []event.Signal
	bytes    int                 // of text in it
	owed     map[string]struct{} // topics of which signals were dropped
	late     [2]late             // what was said lately
	turned   time.Time           // when late was
	followed map[string]struct{} // topics with subscribers on this node
	changed  map[string]struct{} // of which that has changed
	topics   map[string]string   // what is subscribed, by subject
	live     map[string]struct{} // topics whose subscription NATS has confirmed
	status   Status
}

// late is topics that this node spoke on.
type late struct {
	topics map[string]struct{}
	all    bool // there were too many
}

// Status is how the bus is.
type Status struct {
	Joined     bool   // other nodes are heard
	Code       string // why they are not, when that is known
	Topics     int    // followed on this node
	Sent       uint64
	Received   uint64
	Dropped    uint64 // signals that other nodes did not get
	Refused    uint64 // messages that no node of this installation has sealed
	Reconnects uint64 // links after the first
}

// New returns a bus that reaches this process only, until Join. It fails when the address is none, without repeating it.
func New(c Config) (*Bus, error) {
	if err := Check(c.URL.Reveal()); err != nil {
		return nil, fault.Wrap("natsbus.New", err)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.ping <= 0 {
		c.ping = time.Second
	}
	if c.answer <= 0 {
		c.answer = answerTime
	}
	return &Bus{servers: addresses(c.URL.Reveal()), log: c.Log, ping: c.ping, answer: c.answer, roots: c.roots, local: event.NewLocalBus(), name: rand.Text(),
		wake: make(chan struct{}, 1), owed: map[string]struct{}{}, followed: map[string]struct{}{}, changed: map[string]struct{}{},
		topics: map[string]string{}, live: map[string]struct{}{}}, nil
}

// Join connects the bus with those of other nodes, now and whenever NATS is there, until Close. Nodes that share a prefix and
// keys are one. Call it once; it waits for nothing.
func (b *Bus) Join(prefix string, keys event.Sealer) {
	ctx, cancel := context.WithCancel(context.Background())
	b.prefix, b.keys, b.cancel = prefix, keys, cancel
	b.mu.Lock()
	b.joining, b.turned = true, time.Now()
	b.mu.Unlock()
	b.local.Watch(b.watch)
	b.done.Go(func() { b.run(ctx) })
	b.done.Go(func() { b.comfort(ctx) })
}

// Close sends what waits to be sent, leaves the other nodes and returns when that is over, at the latest after some seconds.
// It may be called twice.
func (b *Bus) Close() error {
	if b.cancel != nil {
		b.cancel()
		b.done.Wait()
	}
	return nil
}

// Publish implements event.Bus. Subscribers on this node have the signal when it returns.
func (b *Bus) Publish(ctx context.Context, s event.Signal) {
	b.local.Publish(ctx, s)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.joining {
		return
	}
	b.note(s.Topic)
	switch {
	case !b.linked:
		b.status.Dropped++
	case len(b.queue) >= maxQueue || b.bytes+len(s.Text) > maxQueueBytes && len(b.queue) > 0:
		b.status.Dropped++
		b.owed[s.Topic] = struct{}{}
	default:
		b.queue = append(b.queue, s)
		b.bytes += len(s.Text)
		b.poke()
	}
}

// Subscribe implements event.Bus.
func (b *Bus) Subscribe(topic string, buffer int) *event.Subscription {
	return b.local.Subscribe(topic, buffer)
}

// Status returns how the bus is.
func (b *Bus) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.status
	s.Joined, s.Topics = b.linked, len(b.followed)
	return s
}

// Err is why other nodes are not heard; nil when they are. Its code is bus_unreachable, bus_refused (the credentials or
// their permissions) or bus_tls_failed.
func (b *Bus) Err() error {
	s := b.Status()
	if s.Joined {
		return nil
	}
	if s.Code == "" {
		s.Code = codeUnreachable
	}
	return fault.New(fault.Unavailable, "natsbus.Err", s.Code, "other servers cannot be heard over NATS")
}

// watch is told by the local bus which topics have subscribers.
func (b *Bus) watch(topic string, followed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if followed {
		b.followed[topic] = struct{}{}
	} else {
		delete(b.followed, topic)
	}
	if b.dialled { // the next one begins with all that is followed
		b.changed[topic] = struct{}{}
		b.poke()
	}
}

func (b *Bus) poke() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// note remembers that this node spoke on a topic. The caller has b.mu.
func (b *Bus) note(topic string) {
	if now := time.Now(); b.linked && now.Sub(b.turned) > lateTime {
		b.late[1], b.late[0], b.turned = b.late[0], late{}, now
	}
	l := &b.late[0]
	if l.topics == nil {
		l.topics = make(map[string]struct{})
	}
	if l.topics[topic] = struct{}{}; len(l.topics) > maxLate {
		*l = late{all: true}
	}
}

// comfort tells subscribers to look for themselves while nobody else can tell them anything.
func (b *Bus) comfort(ctx context.Context) {
	tick := time.NewTicker(awayEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		b.mu.Lock()
		linked := b.linked
		b.mu.Unlock()
		if !linked {
			b.local.MissAll()
		}
	}
}
