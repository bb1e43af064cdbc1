package pgtest

import (
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
)

// Trips counts round trips on the wire: something was sent, and an answer came. Of what is sent without waiting for
// answers, all is one trip. Those of several connections are added up, even if they are under way at once.
type Trips struct{ n atomic.Int64 }

// Count is how many there were since the last call. What an answer belongs to is counted before the answer arrives.
func (c *Trips) Count() int64 { return c.n.Swap(0) }

// Counted returns an address that leads to the server of target, which may be any URL with a host and port, and what
// counts the trips there. It ends with the test.
func Counted(t testing.TB, target string) (through string, trips *Trips) {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil || u.Port() == "" {
		t.Fatal("pgtest: the target is not an address with a port")
	}
	server := u.Host
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	trips = &Trips{}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			upstream, err := net.Dial("tcp", server)
			if err != nil {
				_ = client.Close()
				continue
			}
			mu.Lock()
			open = append(open, client, upstream)
			mu.Unlock()
			var asked atomic.Bool
			wg.Go(func() { relay(upstream, client, func() { asked.Store(true) }) })
			wg.Go(func() {
				relay(client, upstream, func() {
					if asked.Swap(false) {
						trips.n.Add(1)
					}
				})
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	u.Host = l.Addr().String()
	return u.String(), trips
}

// relay copies until one side is gone, and ends both. came is told of every piece before it is handed on.
func relay(to io.WriteCloser, from io.ReadCloser, came func()) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			came()
			if _, werr := to.Write(buffer[:n]); werr != nil {
				err = werr
			}
		}
		if err != nil {
			_, _ = to.Close(), from.Close()
			return
		}
	}
}
