package main

import (
	"context"
	"log/slog"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/relocate"
	"claude-memory-backend/internal/workspace"
)

// newTenants builds the service for whole tenants: moving, erasing, keys. node names this process.
func newTenants(in *install, log *slog.Logger, bus event.Bus, pool *workspace.Pool, node string) *relocate.Service {
	return relocate.New(relocate.Config{Store: in.store, Places: in.placements, Pool: pool, Probe: in.externals, Keys: in.keys,
		Lasting: in.lasting, Bus: bus, Log: log, Node: node, Sole: in.sole, Snapshots: in.snapshots})
}

// How long a rewrap that failed waits before it goes on.
const (
	rewrapPause   = 10 * time.Second
	rewrapLongest = 10 * time.Minute
)

// tidyEvery is how often snapshots are looked at that may be too old.
const tidyEvery = 24 * time.Hour

// tidy removes what was kept before migrations, when it is too old or its tenant is gone: at the start, and daily.
func tidy(ctx context.Context, in *install, log *slog.Logger) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		warn(log, "snapshots of before migrations", in.snapshots.Tidy(ctx, func(ctx context.Context, id ident.TenantID) (bool, error) {
			_, err := in.store.FindTenant(ctx, id)
			if fault.Is(err, fault.NotFound) {
				return false, nil
			}
			return err == nil, err
		}))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// rewrap seals under MASTER_KEY whatever is sealed under MASTER_KEY_PREVIOUS, beside everything else that goes on: no
// data is touched. It goes on until it finds nothing more.
func rewrap(ctx context.Context, s *settings, log *slog.Logger, tenants *relocate.Service) {
	if s.secret("MASTER_KEY_PREVIOUS") == "" {
		return
	}
	total, pause := 0, rewrapPause
	for ctx.Err() == nil {
		r, err := tenants.RewrapAll(ctx)
		total += r.Resealed
		if err == nil {
			log.Info("everything stored is sealed under MASTER_KEY: files and databases do not need MASTER_KEY_PREVIOUS any more, "+
				"repeats of requests made before now do, for 24 hours", "resealed", total)
			return
		}
		log.Warn("not everything is sealed under MASTER_KEY yet: keep MASTER_KEY_PREVIOUS", "resealed", total, "code", fault.CodeOf(err))
		select {
		case <-ctx.Done():
		case <-time.After(pause):
			pause = min(2*pause, rewrapLongest)
		}
	}
}
