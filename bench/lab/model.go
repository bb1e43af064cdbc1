package lab

import (
	"fmt"
	"net"
	"net/http"
	"time"

	"claude-memory-backend/internal/claude/emulator"
)

// Model is an emulated Anthropic API on a port of its own.
type Model struct {
	*emulator.Server
	URL  string
	http *http.Server
}

// NewModel opens one on a free port of the loopback address; Close ends it.
func NewModel(o emulator.Options) (*Model, error) { return NewModelAt("127.0.0.1:0", o) }

// NewModelAt opens one at an address, for a server that somebody else has started.
func NewModelAt(addr string, o emulator.Options) (*Model, error) {
	m := &Model{Server: emulator.New(o)}
	var err error
	m.URL, m.http, err = serve(addr, m.Handler())
	return m, err
}

func serve(addr string, h http.Handler) (string, *http.Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", nil, fmt.Errorf("lab: %w", err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.Serve(l) }() // it ends with Close
	return "http://" + l.Addr().String(), s, nil
}

// Close ends it.
func (m *Model) Close() { _ = m.http.Close() }

// Env makes a server ask this model.
func (m *Model) Env() []string {
	return []string{"AI_PROVIDER=anthropic", "ANTHROPIC_API_KEY=sk-ant-lab", "ANTHROPIC_BASE_URL=" + m.URL}
}
