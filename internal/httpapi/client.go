package httpapi

import (
	"net/http"
	"net/netip"
	"strings"
)

// client is who sent a request, as far as the network tells.
type client struct {
	address netip.Addr
}

// String is the address for audit entries and sessions.
func (c client) String() string {
	if !c.address.IsValid() {
		return ""
	}
	return c.address.String()
}

// limitKey is what address limits count by: one IPv6 customer has a whole /64 to send from.
func (c client) limitKey() string {
	if c.address.Is6() {
		if p, err := c.address.Prefix(64); err == nil {
			return p.String()
		}
	}
	return c.String()
}

// clientOf finds the client's address. X-Forwarded-For is believed only as far as trusted proxies wrote it: from the
// right, up to the first address that is not one of them.
func clientOf(r *http.Request, trusted []netip.Prefix) client {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return client{}
	}
	address := peer.Addr().Unmap().WithZone("")
	if !within(address, trusted) {
		return client{address}
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop, err := parseHop(hops[i])
		if err != nil {
			break // what stands further left was written by nobody we trust
		}
		address = hop
		if !within(address, trusted) {
			break
		}
	}
	return client{address}
}

func parseHop(text string) (netip.Addr, error) {
	text = strings.TrimSpace(text)
	if ap, err := netip.ParseAddrPort(text); err == nil {
		return ap.Addr().Unmap().WithZone(""), nil
	}
	a, err := netip.ParseAddr(strings.Trim(text, "[]"))
	return a.Unmap().WithZone(""), err
}

func within(a netip.Addr, prefixes []netip.Prefix) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
