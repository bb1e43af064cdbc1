package main

import (
	"context"
	"log/slog"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/relocate"
	"claude-memory-backend/internal/workspace"
)

// newTenants builds the service for whole tenants: moving, erasing, keys. node names this process.
func newTenants(in *install, log *slog.Logger, bus event.Bus, pool *workspace.Pool, node string) *relocate.Service {
	return relocate.New(relocate.Config{Store: in.store, Places: in.placements, Pool: pool, Probe: in.externals, Keys: in.keys,
		Lasting: in.lasting, Bus: bus, Log: log, Node: node, Sole: in.sole})
}

// How long a rewrap that failed waits before it goes on.
const (
	rewrapPause   = 10 * time.Second
	rewrapLongest = 10 * time.Minute
)

// rewrap seals under MASTER_KEY whatever is sealed under MASTER_KEY_PREVIOUS, beside everything else that goes on: no
// data is touched. It goes on until it finds nothing more.
func rewrap(ctx context.Context, s *settings, log *slog.Logger, tenants *relocate.Service) {
	if s.secret("MASTER_KEY_PREVIOUS") == "" {
		return
	}
	total, pause := 0, rewrapPause
	for ctx.Err() == nil {
		n, err := tenants.Rewrap(ctx)
		total += n
		switch {
		case err == nil && n == 0:
			log.Info("everything stored is sealed under MASTER_KEY: files and databases do not need MASTER_KEY_PREVIOUS any more, "+
				"repeats of requests made before now do, for 24 hours", "resealed", total)
			return
		case err == nil:
			continue // once more, to see that nothing was sealed under the old key meanwhile
		}
		log.Warn("not everything is sealed under MASTER_KEY yet: keep MASTER_KEY_PREVIOUS", "resealed", total, "code", fault.CodeOf(err))
		select {
		case <-ctx.Done():
		case <-time.After(pause):
			pause = min(2*pause, rewrapLongest)
		}
	}
}
