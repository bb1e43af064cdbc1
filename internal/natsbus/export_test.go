package natsbus

import (
	"crypto/x509"
	"time"
)

// Live reports whether NATS has confirmed the subscription to a topic.
func (b *Bus) Live(topic string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, live := b.live[topic]
	return live
}

// WithPing makes the bus look at its link as often, and wait for NATS for as long as several such looks take.
func (c Config) WithPing(every time.Duration) Config {
	c.ping, c.answer = every, max(answerTime, 3*every)
	return c
}

// WithRoots makes the bus trust these authorities instead of the system's.
func (c Config) WithRoots(roots *x509.CertPool) Config {
	c.roots = roots
	return c
}
