package tenant_test

import (
	"testing"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/tenant"
)

func TestLimits(t *testing.T) {
	defaults := tenant.Limits{Bytes: 100, Messages: 10}
	for _, c := range []struct{ own, want tenant.Limits }{
		{tenant.Limits{}, defaults},
		{tenant.Limits{Bytes: 5, Messages: 20}, tenant.Limits{Bytes: 5, Messages: 20}},
		{tenant.Limits{Bytes: -1}, tenant.Limits{Messages: 10}},
		{tenant.Limits{Messages: -1}, tenant.Limits{Bytes: 100}},
	} {
		if got := c.own.Or(defaults); got != c.want {
			t.Errorf("%+v: %+v, want %+v", c.own, got, c.want)
		}
	}
	if got := (tenant.Limits{}).Or(tenant.Limits{Bytes: -3}); got != (tenant.Limits{}) {
		t.Errorf("no limits at all: %+v", got)
	}
	for _, c := range []struct {
		limits     tenant.Limits
		used, more tenant.Usage
		code       string
	}{
		{defaults, tenant.Usage{Messages: 8, Bytes: 10}, tenant.Usage{Messages: 2, Bytes: 80}, ""},
		{defaults, tenant.Usage{Messages: 9, Bytes: 10}, tenant.Usage{Messages: 2}, "quota_messages"},
		{defaults, tenant.Usage{Messages: 50, Bytes: 10}, tenant.Usage{Bytes: 1}, ""}, // what is no message needs no room for one
		{defaults, tenant.Usage{Messages: 1, Bytes: 90}, tenant.Usage{Messages: 1, Bytes: 10}, "quota_storage"},
		{defaults, tenant.Usage{Bytes: 100}, tenant.Usage{Messages: 1}, "quota_storage"}, // an answer needs room too
		{tenant.Limits{}, tenant.Usage{Messages: 1 << 40, Bytes: 1 << 60}, tenant.Usage{Messages: 1, Bytes: 1}, ""},
	} {
		err := c.limits.Admit("test", c.used, c.more)
		if (err == nil) != (c.code == "") || err != nil && (fault.CodeOf(err) != c.code || !fault.Is(err, fault.Forbidden)) {
			t.Errorf("%+v and %+v: %v, want %q", c.used, c.more, err, c.code)
		}
	}
}
