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

// NewModel opens one on the loopback address; Close ends it.
func NewModel(o emulator.Options) (*Model, error) {
	m := &Model{Server: emulator.New(o)}
	return m, m.listen(m.Handler())
}

func (m *Model) listen(h http.Handler) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	m.URL = "http://" + l.Addr().String()
	m.http = &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = m.http.Serve(l) }() // it ends with Close
	return nil
}

// Close ends it.
func (m *Model) Close() { _ = m.http.Close() }

// Env makes a server ask this model.
func (m *Model) Env() []string {
	return []string{"AI_PROVIDER=anthropic", "ANTHROPIC_API_KEY=sk-ant-lab", "ANTHROPIC_BASE_URL=" + m.URL}
}
