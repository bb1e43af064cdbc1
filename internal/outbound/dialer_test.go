package outbound_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/outbound"
	"claude-memory-backend/internal/outbound/outboundtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, t := range texts {
		list = append(list, netip.MustParsePrefix(t))
	}
	return list
}

func dial(t *testing.T, d *outbound.Dialer, network, addr string) error {
	t.Helper()
	conn, err := d.DialContext(t.Context(), network, addr)
	if err == nil {
		_ = conn.Close()
	}
	return err
}

func wantRefused(t *testing.T, what string, err error) {
	t.Helper()
	f, _ := errors.AsType[*fault.Error](err)
	if f == nil || f.Class != fault.Invalid || f.Code != "address_refused" {
		t.Errorf("%q: got %v", what, err)
		return
	}
	for _, secret := range []string{"127.", "10.0", "169.254", "::1", "example.com"} {
		if strings.Contains(f.Error(), secret) {
			t.Errorf("%q: the error says %q", what, f.Error())
		}
	}
}

func TestForbiddenAddressesAreRefused(t *testing.T) {
	trap := outboundtest.NewTrap(t)
	names := outboundtest.Names()
	d := outbound.NewDialer(outbound.Config{Resolver: names})
	count := 0
	try := func(network, addr string) {
		count++
		wantRefused(t, addr, dial(t, d, network, addr))
	}
	for _, host := range outboundtest.Hosts() {
		try("tcp", net.JoinHostPort(host, fmt.Sprint(trap.Port)))
		wantRefused(t, host, d.Judge(host, trap.Port))
	}
	for host := range names {
		try("tcp", net.JoinHostPort(host, fmt.Sprint(trap.Port)))
		try("tcp", net.JoinHostPort(strings.ToUpper(host), fmt.Sprint(trap.Port)))
	}
	// A dot at the end is no way around: it is refused as a spelling.
	for host := range names {
		try("tcp", net.JoinHostPort(host+".", fmt.Sprint(trap.Port)))
	}
	for _, network := range []string{"unix", "udp", "ip", "tcp7", ""} {
		try(network, fmt.Sprintf("127.0.0.1:%d", trap.Port))
	}
	for _, network := range []string{"tcp4", "tcp6"} {
		try(network, fmt.Sprintf("localhost:%d", trap.Port))
	}
	for _, addr := range []string{"", ":", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:http", "127.0.0.1:65536",
		"127.0.0.1:-1", "127.0.0.1:+80", "::1:80", "[::1]80", "127.0.0.1:0x50", "8.8.8.8:0", "[::1", "127.0.0.1:80:80"} {
		try("tcp", addr)
	}
	if got := trap.Count(t); got != 0 {
		t.Errorf("%d connections came in", got)
	}
	if count < 300 {
		t.Errorf("only %d spellings", count)
	}
	t.Logf("%d spellings", count)

	t.Run("the trap works", func(t *testing.T) {
		d := outbound.NewDialer(outbound.Config{Resolver: names, Allow: prefixes("127.0.0.0/8", "::1/128")})
		for _, host := range []string{"127.0.0.1", "::1", "localhost"} {
			if err := dial(t, d, "tcp", net.JoinHostPort(host, fmt.Sprint(trap.Port))); err != nil {
				t.Error(err)
			}
		}
		if got := trap.Count(t); got != 3 {
			t.Errorf("%d connections came in", got)
		}
	})
}

func TestPublicAddressesAreDialled(t *testing.T) {
	// There is no public network in a test, so what is dialled is asked of a context that is over: it gets past the
	// decision, and no further.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d := outbound.NewDialer(outbound.Config{Resolver: outboundtest.Resolver{"db.example.com": {netip.MustParseAddr("::ffff:8.8.8.8")}}})
	for _, host := range []string{"8.8.8.8", "1.1.1.1", "9.255.255.255", "11.0.0.1", "100.63.255.255", "100.128.0.0", "126.255.255.255",
		"128.0.0.1", "169.253.255.255", "169.255.0.1", "172.15.255.255", "172.32.0.1", "192.167.1.1", "192.169.0.1", "198.17.1.1",
		"198.20.0.1", "223.255.255.255", "2606:4700:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888", "2003::1", "2600::",
		"db.example.com", "DB.Example.COM"} {
		_, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, "5432"))
		if !fault.Is(err, fault.Canceled) {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// A name that says something else at each look-up must not reach what it said when nobody decided.
func TestNamesThatChangeTheirMind(t *testing.T) {
	trap := outboundtest.NewTrap(t)
	good, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.2:%d", trap.Port))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan int)
	go func() {
		n := 0
		for {
			conn, err := good.Accept()
			if err != nil {
				ended <- n
				return
			}
			n++
			_ = conn.Close()
		}
	}()
	r := &flipping{answers: []string{"127.0.0.2", "127.0.0.1"}}
	d := outbound.NewDialer(outbound.Config{Resolver: r, Allow: prefixes("127.0.0.2/32")})
	reached := 0
	for i := range 200 {
		conn, err := d.DialContext(t.Context(), "tcp", fmt.Sprintf("flip.example.com:%d", trap.Port))
		switch {
		case i%2 == 1:
			wantRefused(t, "flip", err)
		case err != nil:
			t.Fatalf("look-up %d: %v", i, err)
		}
		if err == nil {
			reached++
			_, _ = conn.Read(make([]byte, 1)) // it has been counted when it ends
			_ = conn.Close()
		}
	}
	if n := r.count.Load(); n != 200 {
		t.Errorf("%d look-ups for 200 connections", n)
	}
	if got := trap.Count(t); got != 0 {
		t.Errorf("%d connections came to the trap", got)
	}

	t.Run("a dialer that checks the name only is fooled", func(t *testing.T) {
		r := &flipping{answers: []string{"127.0.0.2", "127.0.0.1"}}
		checked, _ := r.LookupNetIP(t.Context(), "ip", "flip.example.com")
		again, _ := r.LookupNetIP(t.Context(), "ip", "flip.example.com")
		conn, err := net.Dial("tcp", net.JoinHostPort(again[0].String(), fmt.Sprint(trap.Port)))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		if checked[0] == again[0] || trap.Count(t) == 0 {
			t.Error("the name did not change its mind")
		}
	})
	t.Run("a set with one forbidden address is refused whatever its order", func(t *testing.T) {
		before := trap.Count(t)
		for _, set := range [][]string{{"127.0.0.2", "127.0.0.1"}, {"127.0.0.1", "127.0.0.2"}, {"127.0.0.2", "127.0.0.2", "::1"},
			{"::ffff:127.0.0.2", "::ffff:127.0.0.1"}} {
			var addrs []netip.Addr
			for _, s := range set {
				addrs = append(addrs, netip.MustParseAddr(s))
			}
			d := outbound.NewDialer(outbound.Config{Resolver: outboundtest.Resolver{"set.example.com": addrs}, Allow: prefixes("127.0.0.2/32")})
			wantRefused(t, fmt.Sprint(set), dial(t, d, "tcp", fmt.Sprintf("set.example.com:%d", trap.Port)))
		}
		if got := trap.Count(t) - before; got != 0 {
			t.Errorf("%d connections came in", got)
		}
	})
	_ = good.Close()
	if n := <-ended; n != reached || n != 100 {
		t.Errorf("%d of %d connections reached the allowed address", n, reached)
	}
}

// flipping gives its answers in turn.
type flipping struct {
	answers []string
	count   atomic.Int64
}

func (f *flipping) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	n := f.count.Add(1) - 1
	return []netip.Addr{netip.MustParseAddr(f.answers[int(n)%len(f.answers)])}, nil
}

func TestWhatTheOperatorAllows(t *testing.T) {
	trap := outboundtest.NewTrap(t)
	at := func(host string) string { return net.JoinHostPort(host, fmt.Sprint(trap.Port)) }
	own := func(texts ...string) (list []netip.AddrPort) {
		for _, text := range texts {
			list = append(list, netip.AddrPortFrom(netip.MustParseAddr(text), trap.Port))
		}
		return list
	}
	everything := prefixes("0.0.0.0/0", "::/0")
	for _, c := range []struct {
		name  string
		allow []netip.Prefix
		own   []netip.AddrPort
		host  string
		ok    bool
	}{
		{"the network", prefixes("127.0.0.0/8"), nil, "127.0.0.1", true},
		{"one address", prefixes("127.0.0.1/32"), nil, "127.0.0.1", true},
		{"another address", prefixes("127.0.0.2/32"), nil, "127.0.0.1", false},
		{"a prefix that is not masked", prefixes("127.0.0.9/8"), nil, "127.0.0.1", true},
		{"a mapped prefix", prefixes("::ffff:127.0.0.0/104"), nil, "127.0.0.1", true},
		{"IPv6", prefixes("::1/128"), nil, "::1", true},
		{"IPv4 does not allow IPv6", prefixes("0.0.0.0/0"), nil, "::1", false},
		{"IPv6 does not allow IPv4", prefixes("::/0"), nil, "127.0.0.1", false},
		{"a mapped spelling stays refused", everything, nil, "::ffff:127.0.0.1", false},
		{"a zone stays refused", everything, nil, "::1%lo", false},
		{"the unspecified address stays refused", everything, nil, "0.0.0.0", false},
		{"the unspecified IPv6 address too", everything, nil, "::", false},
		{"multicast too", everything, nil, "224.0.0.1", false},
		{"broadcast too", everything, nil, "255.255.255.255", false},
		{"a number too", everything, nil, "2130706433", false},
		{"our own listener", everything, own("127.0.0.1"), "127.0.0.1", false},
		{"our own listener on IPv6", everything, own("::1"), "::1", false},
		{"our own listener on every address", everything, own("0.0.0.0"), "127.0.0.1", false},
		{"our own listener on every address, seen by IPv6", everything, own("::"), "::1", false},
		{"another address than our listener's", everything, own("127.0.0.9"), "127.0.0.1", true},
		{"behind a translator, what is forbidden", prefixes("64:ff9b::/96"), nil, "64:ff9b::127.0.0.1", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := outbound.NewDialer(outbound.Config{Allow: c.allow, Own: c.own})
			err := dial(t, d, "tcp", at(c.host))
			if c.ok && err != nil {
				t.Error(err)
			} else if !c.ok {
				wantRefused(t, c.host, err)
			}
		})
	}
	t.Run("another port than our listener's", func(t *testing.T) {
		d := outbound.NewDialer(outbound.Config{Allow: everything, Own: []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), trap.Port+1)}})
		if err := dial(t, d, "tcp", at("127.0.0.1")); err != nil {
			t.Error(err)
		}
	})
	t.Run("only what is named is allowed without TLS", func(t *testing.T) {
		d := outbound.NewDialer(outbound.Config{Allow: prefixes("10.0.0.0/8")})
		for host, want := range map[string]bool{"10.1.2.3": true, "::ffff:10.1.2.3": true, "8.8.8.8": false, "127.0.0.1": false} {
			if got := d.Allowed(net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(host), 5432))); got != want {
				t.Errorf("%s: %t", host, got)
			}
		}
		if d.Allowed(&net.UnixAddr{Name: "/tmp/10.1.2.3"}) || d.Allowed(nil) {
			t.Error("what is no TCP address is allowed")
		}
	})
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	_ = l.Close()
	_, port, _ := net.SplitHostPort(closed)
	stuck := stuckResolver{}
	d := outbound.NewDialer(outbound.Config{Allow: prefixes("127.0.0.0/8"), Timeout: 50 * time.Millisecond,
		Resolver: outboundtest.Resolver{"gone.example.com": {netip.MustParseAddr("127.0.0.1")}, "empty.example.com": nil,
			"four.example.com": {netip.MustParseAddr("127.0.0.1")}}})
	slow := outbound.NewDialer(outbound.Config{Timeout: 50 * time.Millisecond, Resolver: stuck})
	for _, c := range []struct {
		d             *outbound.Dialer
		network, addr string
	}{
		{d, "tcp", closed}, {d, "tcp", "gone.example.com:" + port}, {d, "tcp", "unknown.example.com:5432"},
		{d, "tcp", "empty.example.com:5432"}, {d, "tcp6", "four.example.com:5432"}, {slow, "tcp", "slow.example.com:5432"},
	} {
		err := dial(t, c.d, c.network, c.addr)
		if !fault.Is(err, fault.Unavailable) || fault.CodeOf(err) != "address_unreachable" {
			t.Errorf("%s: %v", c.addr, err)
		}
	}
	t.Run("an address that does not answer gives way to the next", func(t *testing.T) {
		good, err := net.Listen("tcp4", "127.0.0.3:"+port)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = good.Close() }()
		d := outbound.NewDialer(outbound.Config{Allow: prefixes("127.0.0.0/8"), Resolver: outboundtest.Resolver{
			"two.example.com": {netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.3")}}})
		if err := dial(t, d, "tcp", "two.example.com:"+port); err != nil {
			t.Error(err)
		}
	})
}

type stuckResolver struct{}

func (stuckResolver) LookupNetIP(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestProxiesOfTheEnvironmentAreIgnored(t *testing.T) {
	trap := outboundtest.NewTrap(t)
	for _, name := range []string{"ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "SOCKS_PROXY"} {
		t.Setenv(name, fmt.Sprintf("socks5://127.0.0.1:%d", trap.Port))
	}
	d := outbound.NewDialer(outbound.Config{Resolver: outboundtest.Names()})
	wantRefused(t, "localhost", dial(t, d, "tcp", "localhost:5432"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _ = d.DialContext(ctx, "tcp", "8.8.8.8:5432")
	if got := trap.Count(t); got != 0 {
		t.Errorf("%d connections came to the proxy", got)
	}
}
