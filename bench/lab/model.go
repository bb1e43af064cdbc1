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

// NewModelAt opens one at an address, for a server that somebody else has started. Each of wrap goes around its handler.
func NewModelAt(addr string, o emulator.Options, wrap ...func(http.Handler) http.Handler) (*Model, error) {
	m := &Model{Server: emulator.New(o)}
	h := m.Handler()
	for _, w := range wrap {
		h = w(h)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	m.URL = "http://" + l.Addr().String()
	m.http = &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = m.http.Serve(l) }() // it ends with Close
	return m, nil
}

// Close ends it.
func (m *Model) Close() { _ = m.http.Close() }

// Env makes a server ask this model.
func (m *Model) Env() []string {
	return []string{"AI_PROVIDER=anthropic", "ANTHROPIC_API_KEY=sk-ant-lab", "ANTHROPIC_BASE_URL=" + m.URL}
}
