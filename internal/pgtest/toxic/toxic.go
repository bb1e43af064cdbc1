package toxic

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"
)

// Link is the way to a server, which the test can make worse.
type Link struct {
	t     testing.TB
	proxy *toxiproxy.Proxy
	hangs bool
}

// Slow returns an address that leads to the server of target, which may be any URL with a host and port, with
// roundTrip added to every round trip, half of it on the way there and half on the way back. What is sent without
// waiting for an answer is not slowed down further, however much it is. Opening the TCP connection itself costs nothing;
// the greetings inside it do. It ends with the test.
func Slow(t testing.TB, target string, roundTrip time.Duration) (proxied string, link *Link) {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil || u.Port() == "" {
		t.Fatal("toxic: the target is not an address with a port")
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	link = &Link{t: t, proxy: toxiproxy.NewProxy(server, "link", "127.0.0.1:0", u.Host)}
	if err := link.proxy.Start(); err != nil {
		t.Fatalf("toxic: %v", err)
	}
	t.Cleanup(link.proxy.Stop)
	link.Latency(roundTrip)
	u.Host = link.proxy.Listen
	return u.String(), link
}

// Latency changes what is added to every round trip, for open connections too.
func (l *Link) Latency(roundTrip time.Duration) {
	l.t.Helper()
	for _, stream := range []string{"upstream", "downstream"} {
		l.remove("slow_" + stream)
		if roundTrip > 0 {
			l.add(`{"name":"slow_%[1]s","type":"latency","stream":"%[1]s","attributes":{"latency":%[2]d}}`, stream, (roundTrip / 2).Milliseconds())
		}
	}
}

// Cut closes every connection and refuses new ones, at once.
func (l *Link) Cut() { l.proxy.Stop() }

// Hang accepts connections and swallows what is sent, in both directions, as a network does that lost its way. What was
// swallowed does not come back: Restore closes the connections that were open meanwhile.
func (l *Link) Hang() {
	l.t.Helper()
	if l.hangs {
		return
	}
	l.hangs = true
	for _, stream := range []string{"upstream", "downstream"} {
		l.add(`{"name":"hang_%[1]s","type":"timeout","stream":"%[1]s","attributes":{"timeout":0}}`, stream)
	}
}

// Restore ends what Cut or Hang did, at the same address. The latency stays.
func (l *Link) Restore() {
	l.t.Helper()
	if l.hangs {
		l.hangs = false
		l.remove("hang_upstream")
		l.remove("hang_downstream")
	}
	if err := l.proxy.Start(); err != nil && !errors.Is(err, toxiproxy.ErrProxyAlreadyStarted) {
		l.t.Fatalf("toxic: %v", err)
	}
}

// Remains is what a link leaves behind when it is cut while it carries something: a goroutine of the proxy's that waits for
// good to hand it on. It is nothing that a test for leaks is about.
func Remains() goleak.Option {
	return goleak.IgnoreTopFunction("github.com/Shopify/toxiproxy/v2/toxics.(*NoopToxic).Pipe")
}

func (l *Link) add(format string, args ...any) {
	l.t.Helper()
	if _, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(format, args...))); err != nil {
		l.t.Fatalf("toxic: %v", err)
	}
}

func (l *Link) remove(name string) {
	l.t.Helper()
	if l.proxy.Toxics.GetToxic(name) == nil {
		return
	}
	if err := l.proxy.Toxics.RemoveToxic(context.Background(), name); err != nil {
		l.t.Fatalf("toxic: %v", err)
	}
}
