package account

import "net/netip"

// network is what failures of an address count for: the address, or an IPv6 client's whole /64, of which it may have
// any number.
func network(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	a = a.Unmap().WithZone("")
	if a.Is6() {
		p, _ := a.Prefix(64)
		return p.String()
	}
	return a.String()
}
