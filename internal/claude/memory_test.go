package claude

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
)

// Timeless runs a subtest about times, in a bubble: time passes only when everybody waits, so a busy machine is no slow provider.
func Timeless(t *testing.T, claim string, test func(t *testing.T)) {
	t.Helper()
	t.Run(claim, func(t *testing.T) { synctest.Test(t, test) })
}

// InMemory serves every address without a network, as a bubble needs it, and returns the client of it.
func InMemory(t *testing.T, h http.Handler) *http.Client {
	t.Helper()
	l := &pipes{dialled: make(chan net.Conn), over: make(chan struct{})}
	server, served := &http.Server{Handler: h}, make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }()
	transport := &http.Transport{DialContext: l.dial}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = server.Close()
		<-served
	})
	return &http.Client{Transport: transport}
}

// pipes is a listener to which its own dial leads.
type pipes struct {
	dialled chan net.Conn
	over    chan struct{}
	once    sync.Once
}

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.dialled <- there:
		return here, nil
	case <-p.over:
	case <-ctx.Done():
	}
	return nil, errors.Join(here.Close(), there.Close(), net.ErrClosed)
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.dialled:
		return c, nil
	case <-p.over:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.over) })
	return nil
}

func (*pipes) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "pipe"} }
