package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"claude-memory-backend/internal/tenant"
)

type tenantLimitCmd struct {
	Who      string `arg:"" help:"The tenant's id, or the e-mail address of its account."`
	Bytes    string `help:"Bytes of text that it may keep: a number, none (or 0), or default (what TENANT_MAX_BYTES says)."`
	Messages string `help:"Messages that it may keep: a number, none (or 0), or default (what TENANT_MAX_MESSAGES says)."`
}

// Run changes what a tenant may keep, or only shows it. Running servers hear of it within a second.
func (c tenantLimitCmd) Run(ctx context.Context, p *program) error {
	return withTenants(ctx, p, func(w *whole) error {
		t, err := w.find(ctx, c.Who)
		if err != nil {
			return err
		}
		limits := t.Limits
		if err := errors.Join(parseLimit("--bytes", c.Bytes, &limits.Bytes), parseLimit("--messages", c.Messages, &limits.Messages)); err != nil {
			return usageError{err}
		}
		if t, err = w.svc.SetLimits(ctx, asOperator(), t.ID, limits); err != nil {
			return err
		}
		fmt.Fprintf(p.stdout, "%s may keep %s\n", t.ID, limitsAsText(t.Limits, defaultLimits(p.settings)))
		return nil
	})
}

// parseLimit reads a limit as the directory keeps it: 0 for the default, below 0 for none. No text changes nothing.
func parseLimit(flag, text string, limit *int64) error {
	switch text {
	case "":
	case "default":
		*limit = 0
	case "none", "0": // as in TENANT_MAX_MESSAGES
		*limit = -1
	default:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("%s is a number, none (or 0) or default", flag)
		}
		*limit = n
	}
	return nil
}

// limitsAsText is what a tenant may keep: "500 messages (its own limit), 1000 bytes (the default)".
func limitsAsText(own, defaults tenant.Limits) string {
	one := func(own, holds int64, what string) string {
		count := "any number of " + what
		if holds > 0 {
			count = fmt.Sprintf("%d %s", holds, what)
		}
		if own == 0 {
			return count + " (the default)"
		}
		return count + " (its own limit)"
	}
	holds := own.Or(defaults)
	return one(own.Messages, holds.Messages, "messages") + ", " + one(own.Bytes, holds.Bytes, "bytes")
}

// defaultLimits are those of tenants that have none of their own.
func defaultLimits(s *settings) tenant.Limits {
	return tenant.Limits{Bytes: int64(s.number("TENANT_MAX_BYTES")), Messages: int64(s.number("TENANT_MAX_MESSAGES"))}
}
