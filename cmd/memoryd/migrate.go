package main

import (
	"context"
	"fmt"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

type migrateCmd struct {
	All bool `help:"Also every tenant's database, now instead of when it is next opened."`
}

// Run migrates the master database, which openInstall does, and with --all every tenant. A tenant that cannot be
// migrated is named and left alone; the command then fails at the end.
func (c migrateCmd) Run(ctx context.Context, p *program) error {
	log, closeLog := newLog(p.settings, p.stderr)
	defer closeLog()
	in, err := openInstall(ctx, p.settings, log, event.NewLocalBus(), true)
	if err != nil {
		return err
	}
	defer func() { warn(log, "databases", in.close()) }()
	fmt.Fprintln(p.stdout, "master database: up to date")
	if !c.All {
		return nil
	}
	done, failed := 0, 0
	cursor := ident.TenantID("")
	for {
		tenants, err := in.store.ListTenants(ctx, cursor, 200)
		if err != nil {
			return err
		}
		for _, t := range tenants {
			cursor = t.ID
			if _, err := in.placements.Migrate(ctx, t); err != nil {
				failed++
				fmt.Fprintf(p.stderr, "%s: %v\n", t.ID, err)
				continue
			}
			done++
		}
		if len(tenants) == 0 {
			break
		}
	}
	fmt.Fprintf(p.stdout, "tenants: %d up to date, %d failed\n", done, failed)
	if failed > 0 {
		return fmt.Errorf("%d tenants could not be migrated", failed)
	}
	return nil
}
