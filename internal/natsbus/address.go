package natsbus

import (
	"net/url"
	"strings"

	"claude-memory-backend/internal/fault"
)

// Check reports whether raw is a list of addresses that a Bus can be opened with: nats://user:password@host:4222 or tls://…,
// with a token in the place of the user or without either, separated by commas. The error does not repeat it.
func Check(raw string) error {
	list := addresses(raw)
	for _, a := range list {
		u, err := url.Parse(a)
		if err != nil || u.Scheme != "nats" && u.Scheme != "tls" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" ||
			u.RawQuery != "" || u.Fragment != "" {
			list = nil
			break
		}
	}
	if len(list) == 0 {
		return fault.New(fault.Invalid, "natsbus.Check", "", "not an address like nats://user:password@host:4222")
	}
	return nil
}

func addresses(raw string) (list []string) {
	for part := range strings.SplitSeq(raw, ",") {
		if part = strings.TrimSpace(part); part != "" {
			list = append(list, part)
		}
	}
	return list
}
