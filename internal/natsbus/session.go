package natsbus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"

	"claude-memory-backend/internal/event"
)

const (
	dialTime = 2 * time.Second
	// answerTime is how long NATS may take to answer or to accept what is written, before the link counts as broken.
	answerTime = 2 * time.Second
	// retryEvery is the pause between attempts to reach NATS; half as much again is left to chance.
	retryEvery = 250 * time.Millisecond
	// maxHeard is how many messages wait to be handed to subscribers. Who is further behind than that begins anew.
	maxHeard = 8192
)

// Why other nodes are not heard.
const (
	codeUnreachable = "bus_unreachable"
	codeRefused     = "bus_refused"
	codeTLS         = "bus_tls_failed"
)

// run keeps a link to NATS until ctx ends. The library's own reconnecting is not used: it keeps messages for later, gives up
// after some errors, and does not say when subscriptions are in force again.
func (b *Bus) run(ctx context.Context) {
	for {
		err := b.session(ctx)
		b.away(err, ctx.Err() != nil)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryEvery + rand.N(retryEvery/2)): //nolint:gosec // spreads attempts; nobody gains by guessing it
		}
	}
}

// away notes that nobody can be reached.
func (b *Bus) away(err error, leaving bool) {
	b.mu.Lock()
	was, code := b.linked, codeOf(err)
	news := was || code != b.status.Code
	b.linked, b.dialled = false, false
	b.status.Code = code
	b.status.Dropped += uint64(len(b.queue))
	b.queue, b.bytes = nil, 0
	clear(b.owed) // late has them
	clear(b.changed)
	clear(b.topics)
	clear(b.live)
	if leaving {
		b.joining = false
	}
	b.mu.Unlock()
	if news && !leaving {
		// Never the error itself: it may hold an address with credentials.
		b.log.Warn("other servers are not heard: NATS is away", "code", code)
	}
}

// session is one link: from dialling until it breaks, or ctx ends (nil).
func (b *Bus) session(ctx context.Context) error {
	over := make(chan struct{})
	broke := make(chan error, 1)
	breaks := func(err error) {
		select {
		case broke <- err:
		default:
		}
	}
	o := nats.GetDefaultOptions()
	o.Servers, o.Name, o.AllowReconnect = b.servers, "memoryd", false
	o.Timeout, o.FlusherTimeout, o.PingInterval, o.MaxPingsOut = dialTime, b.answer, b.ping, 2
	o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: b.roots} // for those who want TLS
	o.NoEcho = true                                                           // what this node sends does not come back, which saves the way; its name says so, too
	o.ClosedCB = func(c *nats.Conn) {
		breaks(c.LastError())
		close(over)
	}
	// Also who is too slow begins anew: which messages were dropped is not told.
	o.AsyncErrorCB = func(_ *nats.Conn, _ *nats.Subscription, err error) { breaks(err) }
	conn, err := o.Connect()
	if err != nil {
		return err
	}
	s := &session{bus: b, conn: conn, in: make(chan *nats.Msg, maxHeard), subs: map[string]*nats.Subscription{}, ask: make(chan struct{}, 1)}
	defer func() {
		conn.Close()
		<-over
	}()
	if err := s.begin(); err != nil {
		return err
	}
	b.done.Go(func() { s.listen(over) })
	b.done.Go(func() { s.confirm(over, breaks) })
	for {
		select {
		case <-ctx.Done():
			if err := s.send(); err != nil {
				return err
			}
			return conn.FlushTimeout(b.answer)
		case err := <-broke:
			return err
		case <-b.wake:
			if err := s.send(); err != nil {
				return err
			}
		}
	}
}

// session belongs to the goroutine that runs it, but for what is said to be guarded.
type session struct {
	bus  *Bus
	conn *nats.Conn
	in   chan *nats.Msg
	subs map[string]*nats.Subscription // by topic
	// asked are topics whose subscription NATS has not confirmed yet; guarded by the bus's lock.
	asked []string
	ask   chan struct{} // there are some
}

// begin subscribes to all that is followed and, when that is in force, tells everybody whom the time before concerns.
func (s *session) begin() error {
	b := s.bus
	if _, err := s.conn.ChanSubscribe(b.everything(), s.in); err != nil {
		return err
	}
	b.mu.Lock()
	b.dialled = true
	for topic := range b.followed {
		b.changed[topic] = struct{}{}
	}
	b.mu.Unlock()
	if err := s.reconcile(); err != nil {
		return err
	}
	if err := s.conn.FlushTimeout(b.answer); err != nil {
		return err
	}
	b.mu.Lock()
	b.linked, b.status.Code, b.turned = true, "", time.Now()
	if b.before {
		b.status.Reconnects++
	}
	b.before = true
	for _, topic := range s.asked {
		b.live[topic] = struct{}{}
	}
	s.asked = nil
	all := false
	for _, l := range b.late {
		all = all || l.all
		for topic := range l.topics {
			b.owed[topic] = struct{}{}
		}
	}
	b.mu.Unlock()
	b.log.Info("other servers are heard over NATS")
	b.local.MissAll()
	if all {
		if err := s.publish(b.everything(), event.Signal{Kind: event.Missed}); err != nil {
			return err
		}
	}
	return s.send()
}

// send does all that there is to do.
func (s *session) send() error {
	if err := s.reconcile(); err != nil {
		return err
	}
	b := s.bus
	b.mu.Lock()
	queue, owed := b.queue, b.owed
	b.queue, b.bytes, b.owed = nil, 0, map[string]struct{}{}
	b.mu.Unlock()
	size := min(pieceSize, int(max(s.conn.MaxPayload()-1024, 600))/6)
	for i, sig := range queue {
		for _, part := range pieces(sig, size) {
			err := s.publish(b.subject(sig.Topic), part)
			if errors.Is(err, nats.ErrMaxPayload) {
				owed[sig.Topic] = struct{}{}
				s.dropped(1)
				break
			}
			if err != nil {
				s.dropped(len(queue) - i)
				return err
			}
		}
	}
	// After what was sent, since what is missing came later.
	for topic := range owed {
		if err := s.publish(b.subject(topic), event.Signal{Kind: event.Missed}); err != nil && !errors.Is(err, nats.ErrMaxPayload) {
			return err
		}
	}
	return nil
}

func (s *session) dropped(n int) {
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	s.bus.status.Dropped += uint64(n)
}

func (s *session) publish(subject string, sig event.Signal) error {
	data, err := s.bus.encode(subject, sig)
	if err != nil {
		return err
	}
	if err := s.conn.Publish(subject, data); err != nil {
		return err
	}
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	s.bus.status.Sent++
	return nil
}

// reconcile subscribes to what is followed, and to nothing else.
func (s *session) reconcile() error {
	b := s.bus
	b.mu.Lock()
	changed := b.changed
	b.changed = map[string]struct{}{}
	follow := make(map[string]bool, len(changed))
	for topic := range changed {
		if _, follow[topic] = b.followed[topic]; !follow[topic] { // at once: who follows it a moment later waits for a new subscription
			delete(b.topics, b.subject(topic))
			delete(b.live, topic)
		}
	}
	b.mu.Unlock()
	for topic, wanted := range follow {
		subject, sub := b.subject(topic), s.subs[topic]
		switch {
		case wanted && sub == nil:
			b.mu.Lock()
			b.topics[subject] = topic
			b.mu.Unlock()
			sub, err := s.conn.ChanSubscribe(subject, s.in)
			if err != nil {
				return err
			}
			s.subs[topic] = sub
			b.mu.Lock()
			s.asked = append(s.asked, topic)
			b.mu.Unlock()
		case !wanted && sub != nil:
			if err := sub.Unsubscribe(); err != nil {
				return err
			}
			delete(s.subs, topic)
		}
	}
	select {
	case s.ask <- struct{}{}:
	default:
	}
	return nil
}

// listen hands over what other nodes say.
func (s *session) listen(over <-chan struct{}) {
	for {
		select {
		case m := <-s.in:
			s.bus.hear(m.Subject, m.Data)
		case <-over:
			return
		}
	}
}

// confirm waits until new subscriptions are in force: what was said before that was not heard here.
func (s *session) confirm(over <-chan struct{}, breaks func(error)) {
	b := s.bus
	for {
		select {
		case <-s.ask:
		case <-over:
			return
		}
		b.mu.Lock()
		topics := s.asked
		s.asked = nil
		b.mu.Unlock()
		if len(topics) == 0 {
			continue
		}
		if err := s.conn.FlushTimeout(b.answer); err != nil {
			breaks(err)
			return
		}
		for _, topic := range topics {
			b.local.Miss(topic)
		}
		b.mu.Lock()
		for _, topic := range topics {
			if _, there := b.topics[b.subject(topic)]; there {
				b.live[topic] = struct{}{}
			}
		}
		b.mu.Unlock()
	}
}

// codeOf says why NATS is away without saying where it is.
func codeOf(err error) string {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var record tls.RecordHeaderError
	for _, refusal := range []error{nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired,
		nats.ErrPermissionViolation} {
		if errors.Is(err, refusal) {
			return codeRefused
		}
	}
	switch {
	case errors.Is(err, nats.ErrTLS), errors.Is(err, nats.ErrSecureConnWanted), errors.As(err, &unknown), errors.As(err, &invalid),
		errors.As(err, &host), errors.As(err, &record):
		return codeTLS
	}
	return codeUnreachable
}
