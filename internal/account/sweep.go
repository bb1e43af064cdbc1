package account

import (
	"context"
	"time"

	"claude-memory-backend/internal/fault"
)

const (
	noteUsesEvery = 15 * time.Second
	sweepEvery    = 10 * time.Minute
	keepEnded     = 24 * time.Hour // ended sessions stay that long, so that a late reuse is still noticed
)

// Run notes last uses and removes what has ended, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	uses, sweeps := time.NewTicker(noteUsesEvery), time.NewTicker(sweepEvery)
	defer uses.Stop()
	defer sweeps.Stop()
	s.Sweep(ctx)
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			s.noteUses(last)
			return nil
		case <-uses.C:
			s.noteUses(ctx)
		case <-sweeps.C:
			s.Sweep(ctx)
		}
	}
}

// noteUses stores when sessions were last used, and forgets those that were seen too long ago to be believed. Requests do not wait for it; what a crash loses is a minute at most.
func (s *Service) noteUses(ctx context.Context) {
	s.seen.expire(s.moment())
	list := s.seen.takeTouched()
	if len(list) == 0 {
		return
	}
	if err := s.store.TouchSessions(ctx, list); err != nil {
		s.c.Log.Warn("last uses not noted", "code", fault.CodeOf(err), "count", len(list))
	}
}

// Sweep removes ended sessions, old failures and expired idempotency records once.
func (s *Service) Sweep(ctx context.Context) {
	now := s.moment()
	for _, part := range []struct {
		what string
		do   func() (int64, error)
	}{
		{"sessions", func() (int64, error) { return s.store.SweepSessions(ctx, now, keepEnded) }},
		{"failed_sign_ins", func() (int64, error) { return s.store.SweepFailures(ctx, now.Add(-s.c.Throttle.Window)) }},
		{"idempotency_records", func() (int64, error) { return s.store.SweepOnces(ctx, now) }},
	} {
		switch n, err := part.do(); {
		case err != nil && ctx.Err() == nil:
			s.c.Log.Warn("sweep failed", "what", part.what, "code", fault.CodeOf(err))
		case n > 0:
			s.c.Log.Debug("swept", "what", part.what, "count", n)
		}
	}
}
