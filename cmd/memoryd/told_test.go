package main

import (
	"errors"
	"fmt"
	"testing"

	"claude-memory-backend/internal/fault"
)

func TestTold(t *testing.T) {
	refused := fault.Wrap("relocate.Activate", fault.Missing("sqlstore.UpdateDatabase"))
	broken := fault.New(fault.Unavailable, "relocate.Move", "database_unreachable", "it does not answer").With(errors.New("timeout"))
	twice := fault.New(fault.Unavailable, "relocate.RestoreAccount", "backup_damaged", "tenants is damaged").With(fault.Wrap("relocate.get",
		fault.New(fault.Unavailable, "relocate.Repository", "backup_damaged", "chunks is damaged").With(errors.New("eof"))))
	for want, err := range map[string]error{
		"not_found: there is nothing here under that address":                        refused,
		"not_found: there is nothing here under that address\nthe folder stays":      errors.Join(refused, nil, errors.New("the folder stays")),
		"database_unreachable: it does not answer: timeout":                          broken,
		"it cannot be opened (database_unreachable: it does not answer: timeout)":    fmt.Errorf("it cannot be opened (%w)", broken),
		"backup_damaged: tenants is damaged: backup_damaged: chunks is damaged: eof": twice,
		"the request is not valid:\n  name must not be empty":                        fault.Wrap("x", fault.BadInput("y", "body.name", "must not be empty")),
		"something else": errors.New("something else\n"),
	} {
		if got := told(err); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}
