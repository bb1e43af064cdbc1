package natsbus_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/event/bustest"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/natsbus"
	"claude-memory-backend/internal/natsbus/natstest"
	"claude-memory-backend/internal/pgtest/toxic"
	"claude-memory-backend/internal/seal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, toxic.Remains()) }

// patience bounds what must happen; on a busy machine that takes a while.
const patience = 30 * time.Second

func keys(t *testing.T, secret string) *seal.Keyring {
	t.Helper()
	k, err := seal.NewKeyring(seal.Secret(secret + " correct horse battery staple 0123456789"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// calmly is how often a bus looks at its link that is patient with a busy machine.
const calmly = 10 * time.Second

// node opens a bus that has joined, whether NATS is there or not. It is patient with a busy machine.
func node(t *testing.T, url string, log *slog.Logger) *natsbus.Bus {
	t.Helper()
	return pinging(t, url, log, calmly)
}

func pinging(t *testing.T, url string, log *slog.Logger, every time.Duration) *natsbus.Bus {
	t.Helper()
	b, err := natsbus.New(natsbus.Config{URL: seal.Secret(url), Log: log}.WithPing(every))
	if err != nil {
		t.Fatal(err)
	}
	b.Join("house", keys(t, "one"))
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// until waits for something that tells nobody.
func until(t *testing.T, what string, ready func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ready(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came to pass: %s", what)
		}
	}
}

func joined(t *testing.T, buses ...*natsbus.Bus) {
	t.Helper()
	for _, b := range buses {
		until(t, "the bus is joined", func() bool { return b.Status().Joined })
	}
}

// on subscribes and waits until other nodes are heard.
func on(t *testing.T, b *natsbus.Bus, topic string) *event.Subscription {
	t.Helper()
	sub := b.Subscribe(topic, 64)
	t.Cleanup(sub.Close)
	until(t, "the subscription is in force", func() bool { return b.Live(topic) })
	calm(sub)
	return sub
}

func calm(sub *event.Subscription) {
	for len(sub.C) > 0 {
		<-sub.C
	}
	sub.Lost()
}

// told waits until a subscription is woken and told that it may have lost something.
func told(t *testing.T, sub *event.Subscription) {
	t.Helper()
	late := time.After(patience)
	for {
		select {
		case <-sub.C:
			if sub.Lost() {
				return
			}
		case <-late:
			t.Fatal("nobody told the reader")
		}
	}
}

// hears checks that what is said on one node arrives on another.
func hears(t *testing.T, sub *event.Subscription, from *natsbus.Bus, topic string) {
	t.Helper()
	from.Publish(t.Context(), event.Signal{Topic: topic, Kind: event.Delta, Text: "hello"})
	late := time.After(patience)
	for {
		select {
		case sig := <-sub.C:
			if sig.Text == "hello" {
				return
			}
		case <-late:
			t.Fatal("it is not heard")
		}
	}
}

func TestConformance(t *testing.T) {
	bustest.Run(t, bustest.Harness{
		Nodes: func(t *testing.T, n int) []event.Bus {
			s := natstest.Start(t, nil)
			nodes := make([]event.Bus, n)
			for i := range nodes {
				b := node(t, s.URL, nil)
				joined(t, b)
				nodes[i] = b
			}
			return nodes
		},
		Ready: func(t *testing.T, at event.Bus, topic string) {
			until(t, "the subscription is in force", func() bool { return at.(*natsbus.Bus).Live(topic) })
		},
	})
}

// Alone, before it joins and after it left, a bus is a local one.
func TestAlone(t *testing.T) {
	s := natstest.Start(t, nil)
	b, err := natsbus.New(natsbus.Config{URL: seal.Secret(s.URL)}.WithPing(calmly))
	if err != nil {
		t.Fatal(err)
	}
	sub := b.Subscribe("t", 8)
	defer sub.Close()
	hears(t, sub, b, "t")
	if st := b.Status(); st.Joined || st.Dropped > 0 {
		t.Errorf("%+v", st)
	}
	other := node(t, s.URL, nil)
	b.Join("house", keys(t, "one"))
	joined(t, b, other)
	hears(t, sub, other, "t")
	if err := b.Close(); err != nil || b.Close() != nil {
		t.Error(err)
	}
	hears(t, sub, b, "t")
}

func TestBrokenLinks(t *testing.T) {
	for how, broken := range map[string]struct {
		breaks func(*toxic.Link)
		look   time.Duration // that a link is silent is found by looking; a busy machine must not seem to be
	}{"cut": {(*toxic.Link).Cut, calmly}, "silent": {(*toxic.Link).Hang, 2 * time.Second}} {
		t.Run("a "+how+" link loses nothing unnoticed", func(t *testing.T) {
			t.Parallel()
			s := natstest.Start(t, nil)
			address, link := toxic.Slow(t, s.URL, 0)
			far, near := pinging(t, address, nil, broken.look), node(t, s.URL, nil)
			joined(t, far, near)
			farSub, nearSub, quiet := on(t, far, "spoken"), on(t, near, "spoken"), on(t, near, "quiet")
			hears(t, farSub, near, "spoken")
			hears(t, nearSub, far, "spoken")
			calm(farSub)
			calm(nearSub)

			broken.breaks(link)
			// What goes out meanwhile is lost, and waits for nothing.
			far.Publish(t.Context(), event.Signal{Topic: "spoken", Kind: event.Committed, Seq: 7})
			sig := <-farSub.C
			for sig.Kind == event.Missed { // it may have been told to look for itself before
				sig = <-farSub.C
			}
			if sig.Seq != 7 {
				t.Errorf("the own node's subscriber got %+v", sig)
			}
			until(t, "the link is known to be broken", func() bool { return !far.Status().Joined })
			if err := far.Err(); fault.CodeOf(err) != "bus_unreachable" {
				t.Error(err)
			}
			told(t, farSub) // to look for itself, as long as that lasts
			far.Publish(t.Context(), event.Signal{Topic: "spoken", Kind: event.Ended})
			if far.Status().Dropped == 0 {
				t.Error("what could not be sent is not counted")
			}
			calm(farSub)
			link.Restore()
			joined(t, far)
			told(t, farSub)
			told(t, nearSub) // the other node's subscribers did not hear this one
			if quiet.Lost() {
				t.Error("who follows something else was told, too")
			}
			hears(t, farSub, near, "spoken")
			hears(t, nearSub, far, "spoken")
			if st := far.Status(); st.Reconnects != 1 || far.Err() != nil {
				t.Errorf("%+v", st)
			}
			if st := near.Status(); st.Reconnects != 0 || st.Dropped != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
	t.Run("a server that restarts is found again", func(t *testing.T) {
		t.Parallel()
		s := natstest.Start(t, nil)
		a, b := node(t, s.URL, nil), node(t, s.URL, nil)
		joined(t, a, b)
		sub := on(t, a, "t")
		s.Stop()
		until(t, "both are away", func() bool { return !a.Status().Joined && !b.Status().Joined })
		fresh := a.Subscribe("fresh", 8)
		defer fresh.Close()
		s.Restart()
		joined(t, a, b)
		told(t, sub)
		hears(t, sub, b, "t")
		until(t, "what was subscribed meanwhile is in force", func() bool { return a.Live("fresh") })
		hears(t, fresh, b, "fresh")
	})
	t.Run("a start does not wait for NATS", func(t *testing.T) {
		t.Parallel()
		s := natstest.Start(t, nil)
		s.Stop()
		a, b := node(t, s.URL, nil), node(t, s.URL, nil)
		sub := a.Subscribe("t", 8)
		defer sub.Close()
		until(t, "it is known to be away", func() bool { return a.Status().Code == "bus_unreachable" })
		hears(t, sub, a, "t")
		s.Restart()
		joined(t, a, b)
		hears(t, sub, b, "t")
	})
	t.Run("who spoke on too many topics tells everybody", func(t *testing.T) {
		t.Parallel()
		s := natstest.Start(t, nil)
		address, link := toxic.Slow(t, s.URL, 0)
		far, near := node(t, address, nil), node(t, s.URL, nil)
		joined(t, far, near)
		sub := on(t, near, "whatever")
		link.Cut()
		until(t, "the link is known to be broken", func() bool { return !far.Status().Joined })
		for range 5000 {
			far.Publish(t.Context(), event.Signal{Topic: rand.Text(), Kind: event.Ended})
		}
		link.Restore()
		told(t, sub)
	})
}

func TestInstallationsAreApart(t *testing.T) {
	s := natstest.Start(t, nil)
	open := func(prefix, secret string) *natsbus.Bus {
		b, err := natsbus.New(natsbus.Config{URL: seal.Secret(s.URL)}.WithPing(calmly))
		if err != nil {
			t.Fatal(err)
		}
		b.Join(prefix, keys(t, secret))
		t.Cleanup(func() { _ = b.Close() })
		joined(t, b)
		return b
	}
	ours, also, other, forger := open("house", "one"), open("house", "one"), open("barn", "one"), open("house", "two")
	sub := on(t, ours, "turn_1")
	stop := event.Signal{Topic: "turn_1", Kind: event.Stop}
	other.Publish(t.Context(), stop)
	forger.Publish(t.Context(), stop)
	until(t, "the forgery is refused", func() bool { return ours.Status().Refused == 1 })

	// Whoever runs NATS reads nothing, and cannot send one subject's message under another.
	c, err := nats.Connect(s.URL, nats.Timeout(patience))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	seen, err := c.SubscribeSync("house.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	also.Publish(t.Context(), event.Signal{Topic: "turn_2", Kind: event.Delta, Text: "a harbour at night"})
	m, err := seen.NextMsg(patience)
	if err != nil || m.Subject != "house.topic.turn_2" || bytes.Contains(m.Data, []byte("harbour")) || bytes.Contains(m.Data, []byte("delta")) {
		t.Fatalf("%v %+v", err, m)
	}
	for _, data := range [][]byte{m.Data, nil, []byte("{}")} {
		if err := c.Publish("house.topic.turn_1", data); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	until(t, "they are refused", func() bool { return ours.Status().Refused == 4 })
	if len(sub.C) > 0 {
		t.Errorf("somebody else's signal was heard: %+v", <-sub.C)
	}
	hears(t, sub, also, "turn_1")
}

func TestSmallPayloads(t *testing.T) {
	s := natstest.Start(t, &server.Options{MaxPayload: 2048})
	a, b := node(t, s.URL, nil), node(t, s.URL, nil)
	joined(t, a, b)
	sub := on(t, b, "t")
	text := strings.Repeat("\x01é🙂", 300)
	a.Publish(t.Context(), event.Signal{Topic: "t", Kind: event.Delta, Text: text})
	got := ""
	for len(got) < len(text) {
		select {
		case sig := <-sub.C:
			got += sig.Text
		case <-time.After(patience):
			t.Fatalf("%d bytes of %d came", len(got), len(text))
		}
	}
	if got != text || sub.Lost() {
		t.Error("another text came")
	}
	// What cannot be split is lost, and known to be.
	a.Publish(t.Context(), event.Signal{Topic: "t", Kind: "typing", Text: strings.Repeat("x", 4096)})
	told(t, sub)
	hears(t, sub, a, "t")
}

// notes is a log that several write to.
type notes struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (n *notes) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.Write(p)
}

func (n *notes) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.String()
}

func TestCredentials(t *testing.T) {
	s := natstest.Start(t, &server.Options{Username: "memoryd", Password: "an open sesame"})
	joined(t, node(t, s.URL, nil))
	log := &notes{}
	wrong := strings.Replace(s.URL, "sesame", "barley", 1)
	b := node(t, wrong, slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	until(t, "the log says that it is refused", func() bool { return strings.Contains(log.String(), "bus_refused") })
	var err error
	until(t, "it is refused", func() bool { err = b.Err(); return fault.CodeOf(err) == "bus_refused" })
	for _, text := range []string{err.Error(), log.String()} {
		if strings.Contains(text, "barley") || strings.Contains(text, "memoryd:") {
			t.Errorf("credentials show: %s", text)
		}
	}
}

func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotAfter: time.Now().Add(time.Hour)}, &x509.Certificate{}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	s := natstest.Start(t, &server.Options{TLS: true, TLSTimeout: 10,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}})
	t.Run("who has a certificate is joined", func(t *testing.T) {
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(leaf)
		b, err := natsbus.New(natsbus.Config{URL: seal.Secret(s.URL)}.WithRoots(roots))
		if err != nil {
			t.Fatal(err)
		}
		b.Join("house", keys(t, "one"))
		t.Cleanup(func() { _ = b.Close() })
		joined(t, b)
	})
	t.Run("an unknown authority is refused", func(t *testing.T) {
		b := node(t, s.URL, nil)
		until(t, "it is refused", func() bool { return b.Status().Code == "bus_tls_failed" })
	})
	t.Run("a server without TLS is refused", func(t *testing.T) {
		plain := natstest.Start(t, nil)
		b := node(t, strings.Replace(plain.URL, "nats://", "tls://", 1), nil)
		until(t, "it is refused", func() bool { return b.Status().Code == "bus_tls_failed" })
	})
}

func TestCheck(t *testing.T) {
	for address, good := range map[string]bool{
		"nats://localhost":                          true,
		"nats://u:p@n1:4222, tls://token@n2:4223 ,": true,
		"tls://[::1]:4222/":                         true,
		"":                                          false,
		",":                                         false,
		"localhost:4222":                            false,
		"http://localhost":                          false,
		"ws://localhost":                            false,
		"nats://":                                   false,
		"nats://:4222":                              false,
		"nats://h/path":                             false,
		"nats://h?tls=off":                          false,
		"nats://u:hush@ho st":                       false,
		"nats://localhost,postgres://u:hush@localhost": false,
	} {
		err := natsbus.Check(address)
		if (err == nil) != good {
			t.Errorf("%q: %v", address, err)
		}
		if err != nil && strings.Contains(err.Error(), "hush") {
			t.Errorf("the error repeats the address: %v", err)
		}
		if _, err := natsbus.New(natsbus.Config{URL: seal.Secret(address)}); (err == nil) != good {
			t.Errorf("%q: %v", address, err)
		}
	}
}
