package outbound

import (
	"context"
	"net"
	"net/netip"
	"time"

	"claude-memory-backend/internal/fault"
)

// Resolver is what the dialer needs of [net.Resolver].
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Config says what may be dialled.
type Config struct {
	// Allow are networks that may be dialled although they are not public: OUTBOUND_ALLOW.
	Allow []netip.Prefix
	// Own are the server's own listeners, refused even where Allow holds them. An unspecified address stands for
	// every address of this machine that Allow could hold.
	Own []netip.AddrPort
	// Resolver looks names up; nil is the system's.
	Resolver Resolver
	// Timeout bounds look-up and connection together; 0 is ten seconds.
	Timeout time.Duration
}

// Dialer connects to addresses that users gave. It is safe for concurrent use.
type Dialer struct{ config Config }

// NewDialer returns a dialer.
func NewDialer(c Config) *Dialer { return &Dialer{config: c} }

// DialContext connects to "host:port" over TCP. What may not be dialled is fault.Invalid (code "address_refused"),
// what does not answer fault.Unavailable ("address_unreachable").
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return nil, fault.New(fault.Unavailable, "outbound.Dial", "address_unreachable", "not built yet")
}

// Allowed reports whether the operator allows the address by name of its network. Unencrypted connections may go to
// such addresses only.
func (d *Dialer) Allowed(addr net.Addr) bool { return false }
