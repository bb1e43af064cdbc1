package natstest

import (
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Server is a NATS server that a test can take away.
type Server struct {
	URL string // with credentials, when there are some

	t       testing.TB
	options server.Options
	running *server.Server
}

// patience is how long a start may take on a busy machine.
const patience = 30 * time.Second

// Start runs a server until the test ends. The options may be nil; host and port are chosen here.
func Start(t testing.TB, o *server.Options) *Server {
	t.Helper()
	s := &Server{t: t}
	if o != nil {
		s.options = *o
	}
	s.options.Host, s.options.Port, s.options.NoLog, s.options.NoSigs = "127.0.0.1", server.RANDOM_PORT, true, true
	s.Restart()
	t.Cleanup(s.Stop)
	return s
}

// Stop ends the server as a crash would: clients find their connections broken.
func (s *Server) Stop() {
	if s.running != nil {
		s.running.Shutdown()
		s.running.WaitForShutdown()
		s.running = nil
	}
}

// Restart starts it again, at the same address.
func (s *Server) Restart() {
	s.t.Helper()
	o := s.options // the server changes what it is given
	running, err := server.NewServer(&o)
	if err != nil {
		s.t.Fatalf("natstest: %v", err)
	}
	running.Start()
	if !running.ReadyForConnections(patience) {
		s.t.Fatal("natstest: the server does not start")
	}
	s.running = running
	at := running.Addr().(*net.TCPAddr) // what NATS listens on
	s.options.Port = at.Port
	u := url.URL{Scheme: "nats", Host: at.String()}
	if o.TLSConfig != nil {
		u.Scheme = "tls"
	}
	if o.Username != "" {
		u.User = url.UserPassword(o.Username, o.Password)
	}
	s.URL = u.String()
}
