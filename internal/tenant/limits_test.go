package tenant_test

import (
	"testing"

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
}
