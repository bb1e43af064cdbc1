package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/relocate"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/spool"
	"claude-memory-backend/internal/workspace"
)

// newTenants builds the service for whole tenants: moving, erasing, keys. node names this process.
func newTenants(in *install, log *slog.Logger, bus event.Bus, pool *workspace.Pool, node string) *relocate.Service {
	return relocate.New(relocate.Config{Store: in.store, Places: in.placements, Pool: pool, Probe: in.externals, Keys: in.keys,
		Lasting: in.lasting, Bus: bus, Log: log, Node: node, Sole: in.sole, Snapshots: in.snapshots,
		Rewrapping: func(ctx context.Context) error { return useKeys(ctx, in.store, in.keys) }, Rewrapped: in.rewrapLasting})
}

// discardSpool drops what dead servers left in the spool of a tenant. A server that lives drops its own.
func discardSpool(s *settings, keys *seal.Keyring) func(context.Context, ident.TenantID) error {
	return func(_ context.Context, id ident.TenantID) error {
		folder := s.storage("spool")
		if _, err := os.Stat(folder); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		kept, err := spool.Open(spool.Config{Folder: folder, Sealer: keys})
		if err != nil {
			return err
		}
		return errors.Join(kept.Discard(id), kept.Close())
	}
}

// How long a rewrap that failed waits before it goes on.
const (
	rewrapPause   = 10 * time.Second
	rewrapLongest = 10 * time.Minute
)

// tidyEvery is how often snapshots are looked at that may be too old.
const tidyEvery = 24 * time.Hour

// tidy removes what was kept before migrations and is not to be kept any longer: at the start, and daily.
func tidy(ctx context.Context, tenants *relocate.Service, log *slog.Logger) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		warn(log, "snapshots of before migrations", tenants.TidySnapshots(ctx))
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
				"repeats of requests made before now do, for 24 hours, and mails that wait, for three days", "resealed", total)
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
