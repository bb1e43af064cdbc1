package webhook

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/outbound"
)

// Guard decides about addresses as they are written; where a name leads is seen when it is dialled.
type Guard interface {
	// Judge refuses what may not be called from here.
	Judge(host string, port uint16) error
	// Allowed reports whether the operator allows the network of an address by name.
	Allowed(addr net.Addr) bool
}

const (
	maxURL    = 2_000
	maxEvents = 50
)

// check says everything that is wrong with details. An address that stays as it was is not judged again: the operator may allow
// less than then, and whether it may be called is decided at each call.
func (d *Dispatcher) check(op string, in Details, was string) error {
	var c fault.Checks
	c.Text("body.name", in.Name, 1, 200)
	c.Text("body.description", in.Description, 0, 2_000)
	if in.URL == "" || in.URL != was {
		if why := d.checkURL(in.URL); why != "" {
			c.Add("body.url", why)
		}
	}
	switch {
	case len(in.Events) == 0:
		c.Add("body.events", "must name at least one type of event; * stands for all")
	case len(in.Events) > maxEvents:
		c.Add("body.events", fmt.Sprintf("must have at most %d items", maxEvents))
	default:
		for i, e := range in.Events {
			at := fmt.Sprintf("body.events[%d]", i)
			switch {
			case slices.Contains(in.Events[:i], e):
				c.Add(at, "is there twice")
			case !d.Known(e):
				c.Add(at, "matches no type of event: read the catalogue at /api/v1/events/catalogue; message.* stands for all about messages, * for all")
			}
		}
	}
	return c.Err(op)
}

// checkURL says what is wrong with an address, or nothing.
func (d *Dispatcher) checkURL(text string) string {
	if len(text) > maxURL {
		return fmt.Sprintf("must have at most %d characters", maxURL)
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Opaque != "" || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "must be an address like https://example.com/hook; write other letters in their encoded forms"
	}
	host, port := u.Hostname(), outbound.PortOf(u)
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return "must begin with https://"
	case u.User != nil:
		return "must hold no user name and no password: deliveries are signed instead"
	case u.Fragment != "" || strings.HasSuffix(text, "#"):
		return "must have no fragment"
	case port == 0:
		return "must have a port from 1 to 65535"
	case !outbound.ValidHost(host):
		return "must have one name, or one IP address in its usual form, as its host"
	case d.Guard.Judge(host, port) != nil:
		return "may not be reached from here: use a public address, or ask the operator to allow its network in OUTBOUND_ALLOW"
	}
	if outbound.Usual(u) {
		return ""
	}
	const plain = "must be https:// on port 443 or 8443, unless the operator allows its network in OUTBOUND_ALLOW"
	literal, err := netip.ParseAddr(host)
	if err == nil && !d.Guard.Allowed(&net.TCPAddr{IP: literal.AsSlice(), Port: int(port)}) || err != nil && !d.Inside {
		return plain
	}
	return ""
}
