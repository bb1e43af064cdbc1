package outbound

import (
	"encoding/binary"
	"net/netip"
	"strings"
)

// special are the networks that are not plainly public, by the registries of special-purpose addresses (RFC 6890 and
// its updates) and what clouds use for their own services. Of IPv6 everything outside 2000::/3 is refused as well.
var special = prefixes(
	"0.0.0.0/8",        // this network
	"10.0.0.0/8",       // private
	"100.64.0.0/10",    // carrier-grade NAT; some clouds' metadata
	"127.0.0.0/8",      // loopback
	"168.63.129.16/32", // Azure's platform service
	"169.254.0.0/16",   // link-local; most clouds' metadata
	"172.16.0.0/12",    // private
	"192.0.0.0/24",     // protocol assignments; Oracle's metadata
	"192.0.2.0/24",     // documentation
	"192.31.196.0/24",  // AS112
	"192.52.193.0/24",  // AMT
	"192.88.99.0/24",   // 6to4 relays
	"192.168.0.0/16",   // private
	"192.175.48.0/24",  // AS112
	"198.18.0.0/15",    // benchmarks
	"198.51.100.0/24",  // documentation
	"203.0.113.0/24",   // documentation
	"224.0.0.0/4",      // multicast
	"240.0.0.0/4",      // reserved, broadcast

	"2001::/23",         // protocol assignments: Teredo, benchmarks, ORCHID and others
	"2001:db8::/32",     // documentation
	"2002::/16",         // 6to4
	"2620:4f:8000::/48", // AS112
	"3ffe::/16",         // the 6bone, given back
	"3fff::/20",         // documentation
)

var (
	global = netip.MustParsePrefix("2000::/3")
	nat64  = netip.MustParsePrefix("64:ff9b::/96")
)

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, t := range texts {
		list = append(list, netip.MustParsePrefix(t))
	}
	return list
}

func within(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// public reports whether an address is plainly one of the public network.
func public(a netip.Addr) bool {
	if a.Is6() && (!global.Contains(a) || isatap(a)) {
		return false
	}
	return !within(special, a)
}

// isatap reports whether the lower half of an address is made of an IPv4 address (RFC 5214).
func isatap(a netip.Addr) bool {
	b := a.As16()
	return binary.BigEndian.Uint32(b[8:12])&^0x02000000 == 0x00005efe
}

// permitted decides about one address. It must be without a zone and, if it was mapped, unmapped.
func permitted(allow []netip.Prefix, a netip.Addr) bool {
	switch {
	case !a.IsValid(), a.Zone() != "", a.Is4In6(), a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return false
	case !within(allow, a):
		return public(a)
	case nat64.Contains(a): // the operator allows the translator, not what lies behind it
		b := a.As16()
		return permitted(allow, netip.AddrFrom4([4]byte(b[12:])))
	}
	return true
}

// ValidHost reports whether a text is a host as DialContext takes it: a name, or an IP address in its usual form without
// brackets and without a zone.
func ValidHost(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Zone() == "" || err != nil && hostname(s)
}

// hostname reports whether a text is a name that can only be looked up: letters, digits, hyphens and underscores in
// labels, of which the last is not a number. Resolvers of some systems read "127.1", "0x7f000001" and "2130706433" as
// addresses.
func hostname(s string) bool {
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	labels := strings.Split(s, ".")
	for _, l := range labels {
		if len(l) == 0 || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return false
		}
		for i := 0; i < len(l); i++ {
			switch c := l[i]; {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			default:
				return false
			}
		}
	}
	return !number(labels[len(labels)-1])
}

// number reports whether a label could be taken for a number in some base.
func number(label string) bool {
	digits := strings.Trim(label, "0123456789") == ""
	hex := len(label) > 1 && label[0] == '0' && (label[1] == 'x' || label[1] == 'X')
	return digits || hex
}
