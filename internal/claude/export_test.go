package claude

import (
	"claude-memory-backend/internal/conversation"
	"context"
	"time"
)

// RecordWaits replaces waiting by writing the waits down, and the random part of a wait by half of it.
func (d *Direct) RecordWaits() *[]time.Duration {
	var waits []time.Duration
	d.jitter = func(d time.Duration) time.Duration { return d / 2 }
	d.sleep = func(ctx context.Context, wait time.Duration) error {
		waits = append(waits, wait)
		return ctx.Err()
	}
	return &waits
}

// OnWait calls f instead of the first wait and then waits as always.
func (d *Direct) OnWait(f func()) {
	d.sleep = func(ctx context.Context, wait time.Duration) error {
		f()
		return sleep(ctx, wait)
	}
}

// BuildBody returns the body of a request.
func BuildBody(t interface{ Fatal(...any) }, p conversation.Prompt, model string) string {
	r, err := buildRequest(p, model, 1024)
	if err != nil {
		t.Fatal(err)
	}
	return string(r.body)
}
