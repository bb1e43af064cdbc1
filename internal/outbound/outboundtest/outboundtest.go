// Package outboundtest helps to prove that an entry point never reaches what it must not: it lists the spellings of
// forbidden addresses, and sets traps that count who comes.
package outboundtest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
)

// Trap listens on 127.0.0.1 and on ::1 at the same port, and counts the connections that it gets.
type Trap struct {
	Port  uint16
	count atomic.Int64
}

// NewTrap sets a trap for the time of a test.
func NewTrap(t testing.TB) *Trap {
	t.Helper()
	for range 20 {
		var listen net.ListenConfig
		four, err := listen.Listen(t.Context(), "tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := four.Addr().(*net.TCPAddr).AddrPort().Port()
		six, err := listen.Listen(t.Context(), "tcp6", fmt.Sprintf("[::1]:%d", port))
		if err != nil { // taken by somebody
			_ = four.Close()
			continue
		}
		trap := &Trap{Port: port}
		for _, l := range []net.Listener{four, six} {
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					trap.count.Add(1)
					_ = conn.Close()
				}
			}()
			t.Cleanup(func() {
				_ = l.Close()
				<-ended
			})
		}
		return trap
	}
	t.Fatal("no port is free on both 127.0.0.1 and ::1")
	return nil
}

// Count is how many connections came, also those that are still in the listener's queue: it makes one of its own to
// each side and waits for them, which are accepted in order.
func (p *Trap) Count(t testing.TB) int64 {
	t.Helper()
	before := p.count.Load()
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", net.JoinHostPort(host, fmt.Sprint(p.Port)))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Read(make([]byte, 1)) // ends when the trap closes it
		_ = conn.Close()
	}
	// Its own two are not counted, now or later.
	now := p.count.Add(-2)
	return max(before, now)
}

// Resolver answers with what it was told, by name without a dot at the end and in lower case; unknown names are errors.
type Resolver map[string][]netip.Addr

// LookupNetIP implements the dialer's resolver.
func (r Resolver) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if found, ok := r[strings.TrimSuffix(strings.ToLower(host), ".")]; ok {
		return found, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

// forbidden are addresses of every range that must not be reached.
var forbidden = []string{
	"0.0.0.0", "0.0.0.1", "0.255.255.255", "10.0.0.0", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200",
	"100.127.255.254", "127.0.0.0", "127.0.0.1", "127.0.0.2", "127.0.1.1", "127.1.1.1", "127.255.255.255", "168.63.129.16",
	"169.254.0.1", "169.254.169.123", "169.254.169.249", "169.254.169.253", "169.254.169.254", "169.254.170.2",
	"169.254.170.23", "169.254.255.255", "172.16.0.1", "172.17.0.1", "172.20.10.5", "172.31.255.255", "192.0.0.1",
	"192.0.0.170", "192.0.0.192", "192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.168.0.1",
	"192.168.255.255", "192.175.48.1", "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1",
	"224.0.0.251", "239.255.255.250", "240.0.0.1", "254.1.2.3", "255.255.255.254", "255.255.255.255",

	"::", "::1", "::2", "::7f00:1", "::127.0.0.1", "::10.0.0.1", "::169.254.169.254", "::8.8.8.8",
	"::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:192.168.1.1", "::ffff:0.0.0.0",
	"::ffff:8.8.8.8", "::ffff:7f00:1", "::ffff:a9fe:a9fe", "::ffff:0:127.0.0.1", "::ffff:0:7f00:1", "::ffff:0:8.8.8.8",
	"64:ff9b::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::8.8.8.8",
	"64:ff9b:1::127.0.0.1", "64:ff9b:1::1", "64:ff9b:1:7f00:0:100::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
	"100::1", "100:0:0:1::1", "2001::1", "2001:0:7f00:1::", "2001:0:4136:e378:8000:63bf:80ff:fffe", "2001:1::1", "2001:2::1",
	"2001:3::1", "2001:4:112::1", "2001:10::1", "2001:20::1", "2001:30::1", "2001:db8::1", "2001:db8:ffff::1",
	"2002:7f00:1::", "2002:7f00:1::1", "2002:a00:1::1", "2002:a9fe:a9fe::1", "2002:808:808::1", "2002:c0a8:101::1",
	"2620:4f:8000::1", "2600:1f00::5efe:7f00:1", "2600:1f00::200:5efe:127.0.0.1", "2a00:1450::5efe:10.0.0.1",
	"3ffe::1", "3fff::1", "3fff:fff::1", "4000::1", "5f00::1", "8000::1", "abcd::1", "e000::1",
	"fc00::1", "fd00::1", "fd00:ec2::254", "fd20:ce::254", "fdff:ffff::1", "fe00::1", "fe80::1", "fe80::a9fe:a9fe",
	"fe80::5efe:127.0.0.1", "febf::1", "fec0::1", "feff::1", "ff00::1", "ff01::1", "ff02::1", "ff02::fb", "ff05::2", "ff0e::1",
}

// Hosts lists spellings of forbidden addresses that stand in no name server: addresses in every notation that some
// program reads, and names that no name server should be asked for. The port that goes with them is the caller's.
func Hosts() []string {
	list := append([]string{}, forbidden...)
	for _, text := range []string{"127.0.0.1", "127.0.0.2", "10.0.0.1", "169.254.169.254", "192.168.0.1", "0.0.0.0"} {
		a := netip.MustParseAddr(text).As4()
		whole := uint64(a[0])<<24 | uint64(a[1])<<16 | uint64(a[2])<<8 | uint64(a[3])
		list = append(list,
			fmt.Sprint(whole), fmt.Sprintf("0%o", whole), fmt.Sprintf("0x%x", whole), fmt.Sprintf("0X%X", whole),
			fmt.Sprintf("0x%016x", whole), fmt.Sprint(whole+1<<32), fmt.Sprintf("000%o", whole),
			fmt.Sprintf("0%o.0%o.0%o.0%o", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("000%o.000%o.000%o.000%o", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("0x%x.0x%x.0x%x.0x%x", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("0x%02x.0x%02x.0x%02x.0x%02x", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("0x%x.%d.0%o.%d", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("%03d.%03d.%03d.%03d", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("%d.%d.%d", a[0], a[1], uint(a[2])<<8|uint(a[3])),
			fmt.Sprintf("%d.%d", a[0], uint(a[1])<<16|uint(a[2])<<8|uint(a[3])),
			fmt.Sprintf("0x%x.%d", a[0], uint(a[1])<<16|uint(a[2])<<8|uint(a[3])),
			fmt.Sprintf("%d.%d.%d.%d.", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("%d.%d.%d.%d..", a[0], a[1], a[2], a[3]),
			fmt.Sprintf(".%d.%d.%d.%d", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("%d..%d.%d.%d", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("%d.%d.%d.%d%%lo", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("%d。%d。%d。%d", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("%d．%d．%d．%d", a[0], a[1], a[2], a[3]),
			fmt.Sprintf(" %d.%d.%d.%d", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("%d.%d.%d.%d\t", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("%d.%d.%d.%d\x00.example.com", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("%d.%d.%d.%d/", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("[%d.%d.%d.%d]", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("[::ffff:%d.%d.%d.%d]", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("0:0:0:0:0:ffff:%d.%d.%d.%d", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("0000:0000:0000:0000:0000:FFFF:%02x%02x:%02x%02x", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("64:FF9B:0:0:0:0:%d.%d.%d.%d", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("2002:%02x%02x:%02x%02x:0:0:0:0:1", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("user@%d.%d.%d.%d", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("example.com@%d.%d.%d.%d", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("example.com,%d.%d.%d.%d", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("example.com %d.%d.%d.%d", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("example.com\\@%d.%d.%d.%d", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("%d.%d.%d.%d#@example.com", a[0], a[1], a[2], a[3]),
			fmt.Sprintf("%d.%d.%d.%d?example.com", a[0], a[1], a[2], a[3]),
		)
	}
	return append(list,
		"１２７.０.０.１", "①②⑦.⓪.⓪.①", "127.0.0.①", "𝟏𝟐𝟕.𝟎.𝟎.𝟏", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "ｌｏｃａｌｈｏｓｔ", "localhoſt", "lоcalhost",
		"127.1", "127.0.1", "127.00.0.1", "127.0.0.01", "0x7f.1", "0177.1", "017700000001", "00000177.0.0.1",
		"0x7f000001.example.com..", "1.0.0.127.", "+127.0.0.1", "-127.0.0.1", "127.0.0.1:80", "127,0,0,1", "127-0-0-1..",
		"::1%lo", "::1%1", "::1%25lo", "fe80::1%lo", "fe80::1%eth0", "fe80::1%25eth0", "[::1]", "[::1%lo]", "0:0:0:0:0:0:0:1",
		"0000:0000:0000:0000:0000:0000:0000:0001", "::0001", "0::1", "::0:1", "0:0::1", "::0.0.0.1", "::00:0:1", "1::", ":1",
		"::ffff:127.1", "::ffff:0x7f.0.0.1", "::ffff:2130706433", "::127.1", "/var/run/postgresql", "/tmp", "./localhost",
		"@localhost", "unix:/tmp", "%2Ftmp", "%2Fvar%2Frun%2Fpostgresql", "C:\\tmp", "\\\\server\\pipe", "", ".", "..", "*", "-",
		"localhost%00", "localhost:5432", "localhost/", "localhost?", "localhost#", "http://localhost", "file:///etc/passwd",
		"localhost%2e", "loc alhost", "local\nhost", "local\r\nhost", "localhost\x00", "xn--", strings.Repeat("a", 64)+".com",
		strings.Repeat("a.", 127)+"example",
	)
}

// Names are names that a name server answers with forbidden addresses, for a [Resolver].
func Names() Resolver {
	r := Resolver{
		"mixed.example.com":        {netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("127.0.0.1")},
		"mixed6.example.com":       {netip.MustParseAddr("2606:4700::1111"), netip.MustParseAddr("::1")},
		"many.example.com":         append(repeat("8.8.8.8", 20), netip.MustParseAddr("127.0.0.1")),
		"mapped.example.com":       {netip.MustParseAddr("::ffff:127.0.0.1")},
		"zoned.example.com":        {netip.MustParseAddr("fe80::1%lo")},
		"localhost":                {netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")},
		"localhost.localdomain":    {netip.MustParseAddr("127.0.0.1")},
		"127.0.0.1.nip.io":         {netip.MustParseAddr("127.0.0.1")},
		"7f000001.example.com":     {netip.MustParseAddr("127.0.0.1")},
		"127-0-0-1.example.com":    {netip.MustParseAddr("127.0.0.1")},
		"xn--lcalhost-54a.com":     {netip.MustParseAddr("127.0.0.1")},
		"metadata":                 {netip.MustParseAddr("169.254.169.254")},
		"metadata.google.internal": {netip.MustParseAddr("169.254.169.254")},
	}
	for i, text := range forbidden {
		if text == "::ffff:8.8.8.8" {
			continue // a resolver may mean 8.8.8.8 by it
		}
		r[fmt.Sprintf("n%d.example.com", i)] = []netip.Addr{netip.MustParseAddr(text)}
	}
	return r
}

func repeat(text string, n int) (list []netip.Addr) {
	for range n {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}
