package outbound

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"syscall"
	"time"

	"claude-memory-backend/internal/fault"
)

const (
	op = "outbound.Dial"
	// attempts is how many addresses of one name are tried.
	attempts = 4
	timeout  = 10 * time.Second
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
	// every address of this machine.
	Own []netip.AddrPort
	// Resolver looks names up; nil is the system's.
	Resolver Resolver
	// Timeout bounds look-up and connection together; 0 is ten seconds.
	Timeout time.Duration
}

// Dialer connects to addresses that users gave. It is safe for concurrent use.
type Dialer struct {
	allow    []netip.Prefix
	own      []netip.AddrPort
	resolver Resolver
	timeout  time.Duration
}

// NewDialer returns a dialer.
func NewDialer(c Config) *Dialer {
	d := &Dialer{own: c.Own, resolver: c.Resolver, timeout: c.Timeout}
	for _, p := range c.Allow {
		// A mapped prefix means the network inside it: what is decided about is never mapped.
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		d.allow = append(d.allow, p.Masked())
	}
	if d.resolver == nil {
		d.resolver = net.DefaultResolver
	}
	if d.timeout <= 0 {
		d.timeout = timeout
	}
	return d
}

// DialContext connects to "host:port" over TCP. When any of the addresses behind a name may not be dialled, none is:
// fault.Invalid (code "address_refused"). What is not found or does not answer is fault.Unavailable
// ("address_unreachable").
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	list, err := d.resolve(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	list = list[:min(len(list), attempts)]
	deadline, _ := ctx.Deadline()
	for i, to := range list {
		// Each gets its share of what time is left, so that one that swallows packets does not take it all.
		share := time.Until(deadline) / time.Duration(len(list)-i)
		conn, err := d.connect(ctx, to, share)
		if err == nil {
			return conn, nil
		}
		if fault.Is(err, fault.Invalid) {
			return nil, err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, unreachable(ctx, "the address did not answer: check host, port and firewall")
}

// resolve returns the addresses that may be dialled.
func (d *Dialer) resolve(ctx context.Context, network, addr string) ([]netip.AddrPort, error) {
	family, ok := map[string]string{"tcp": "ip", "tcp4": "ip4", "tcp6": "ip6"}[network]
	host, service, err := net.SplitHostPort(addr)
	port, portErr := strconv.ParseUint(service, 10, 16)
	if !ok || err != nil || portErr != nil || port == 0 {
		return nil, refused()
	}
	var found []netip.Addr
	switch literal, err := netip.ParseAddr(host); {
	case err == nil:
		found = []netip.Addr{literal} // a mapped one stays so, and is refused
	case !hostname(host):
		return nil, refused()
	default:
		if found, err = d.resolver.LookupNetIP(ctx, family, host); err != nil || len(found) == 0 {
			return nil, unreachable(ctx, "the name of the host is not known: check its spelling")
		}
		for i := range found {
			found[i] = found[i].Unmap() // resolvers may return IPv4 addresses in either form
		}
	}
	var list []netip.AddrPort
	for _, a := range found {
		to := netip.AddrPortFrom(a, uint16(port))
		if !d.may(to) {
			return nil, refused()
		}
		if network == "tcp" || a.Is4() == (network == "tcp4") {
			list = append(list, to)
		}
	}
	if len(list) == 0 {
		return nil, unreachable(ctx, "the host has no address of that family")
	}
	return list, nil
}

// connect dials exactly one address. The second look, right before the system call, is at what is really dialled.
func (d *Dialer) connect(ctx context.Context, to netip.AddrPort, limit time.Duration) (net.Conn, error) {
	forbidden := false
	dialer := net.Dialer{
		Timeout:         limit,
		FallbackDelay:   -1,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			if now, err := netip.ParseAddrPort(address); err != nil || now != to || !d.may(now) {
				forbidden = true
				return errors.New("another address than the one decided about")
			}
			return nil
		},
	}
	dialer.SetMultipathTCP(false)
	conn, err := dialer.DialContext(ctx, "tcp", to.String())
	if forbidden {
		return nil, refused()
	}
	return conn, err
}

// may decides about an address and a port.
func (d *Dialer) may(to netip.AddrPort) bool {
	return permitted(d.allow, to.Addr()) && !d.ours(to)
}

// ours reports whether the server itself listens there.
func (d *Dialer) ours(to netip.AddrPort) bool {
	return slices.ContainsFunc(d.own, func(o netip.AddrPort) bool {
		if o.Port() != to.Port() {
			return false
		}
		own := o.Addr().Unmap()
		return own == to.Addr() || own.IsUnspecified() && local(to.Addr())
	})
}

// local reports whether an address is one of this machine's; when that cannot be found out, it is.
func local(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	list, err := net.InterfaceAddrs()
	return err != nil || slices.ContainsFunc(list, func(i net.Addr) bool {
		n, ok := i.(*net.IPNet)
		if !ok {
			return false
		}
		mine, _ := netip.AddrFromSlice(n.IP)
		return mine.Unmap() == a
	})
}

// Judge refuses (code "address_refused") what DialContext would refuse of an address as it is written. Nothing is looked
// up: where a name leads is seen when it is dialled.
func (d *Dialer) Judge(host string, port uint16) error {
	literal, err := netip.ParseAddr(host)
	if err == nil && d.may(netip.AddrPortFrom(literal, port)) || err != nil && hostname(host) {
		return nil
	}
	return refused()
}

// Allowed reports whether the operator allows the network of a TCP address by name. Unencrypted connections may go to
// such addresses only.
func (d *Dialer) Allowed(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return false
	}
	return within(d.allow, tcp.AddrPort().Addr().Unmap())
}

func refused() *fault.Error {
	return fault.New(fault.Invalid, op, "address_refused",
		"this address may not be reached from here: use a public one, or ask the operator to allow its network in OUTBOUND_ALLOW")
}

func unreachable(ctx context.Context, message string) *fault.Error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return fault.New(fault.Canceled, op, "canceled", "the request was cancelled")
	}
	return fault.New(fault.Unavailable, op, "address_unreachable", message)
}
