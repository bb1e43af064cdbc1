package workspace

import (
	"context"
	"testing"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// TestReplaysHaveAShare: who reads a log again waits for nobody but themselves and, as a guest, for the other guests; who has
// looked at much waits until it is paid for, and is refused when that takes too long.
func TestReplaysHaveAShare(t *testing.T) {
	open := func(rate float64, burst int) *Feeds { return &Feeds{Share: ReplayShare{Rate: rate, Burst: burst}} }
	const slow, never = 30 * time.Second, time.Duration(-1)
	ask := func(f *Feeds, ten ident.TenantID, who ident.AccountID, guest bool, patience time.Duration) (func(int), error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return f.Again(ctx, ten, who, guest)
	}
	begin := func(f *Feeds, ten ident.TenantID, who ident.AccountID, guest bool) func(int) {
		t.Helper()
		done, err := ask(f, ten, who, guest, slow)
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	full := func(what string, f *Feeds, ten ident.TenantID, who ident.AccountID, guest bool) {
		t.Helper()
		_, err := ask(f, ten, who, guest, 20*time.Millisecond)
		if !fault.Is(err, fault.Throttled) || fault.CodeOf(err) != "throttled" {
			t.Errorf("%s: %v", what, err)
		}
	}
	t.Run("one part at a time", func(t *testing.T) {
		f := open(1000, 1000)
		done := begin(f, "ten_a", "usr_bob", true)
		full("the same guest", f, "ten_a", "usr_bob", true)
		full("another guest there", f, "ten_a", "usr_carl", true)
		begin(f, "ten_a", "usr_ada", false)(1)
		begin(f, "ten_b", "usr_carl", true)(1)
		done(1)
		begin(f, "ten_a", "usr_carl", true)(1)
		begin(f, "ten_a", "usr_bob", true)(1)
	})
	t.Run("what was looked at is paid for, by who looked", func(t *testing.T) {
		f := open(0.001, 100)
		begin(f, "ten_a", "usr_bob", true)(60)
		begin(f, "ten_a", "usr_bob", true)(60)
		_, err := ask(f, "ten_a", "usr_bob", true, slow)
		if !fault.Is(err, fault.Throttled) {
			t.Errorf("%v", err)
		}
		for range 3 { // nobody stays in a place that they did not use
			begin(f, "ten_a", "usr_carl", true)(0)
			begin(f, "ten_a", "usr_ada", false)(0)
			begin(f, "ten_b", "usr_bob", true)(0)
		}
	})
	t.Run("it is paid for in time", func(t *testing.T) {
		f := open(1000, 50)
		for range 3 {
			begin(f, "ten_a", "usr_bob", true)(100_000) // counts as the most that counts
		}
	})
	t.Run("who leaves is not throttled", func(t *testing.T) {
		f := open(1000, 1000)
		done := begin(f, "ten_a", "usr_bob", true)
		defer done(0)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := f.Again(ctx, "ten_a", "usr_bob", true); !fault.Is(err, fault.Canceled) {
			t.Errorf("%v", err)
		}
	})
	t.Run("who has paid is forgotten", func(t *testing.T) {
		f := open(0.001, 100)
		begin(f, "ten_a", "usr_bob", true)(0) // asking costs one
		begin(f, "ten_a", "usr_dora", true)
		f.again.readers[reader{"ten_a", "usr_bob"}].budget = nil
		f.again.swept = time.Time{}
		begin(f, "ten_b", "usr_eve", false)(0)
		if _, there := f.again.readers[reader{"ten_a", "usr_bob"}]; there || len(f.again.readers) != 3 {
			t.Errorf("%d remembered", len(f.again.readers))
		}
	})
	t.Run("what is free needs no patience", func(t *testing.T) {
		f := open(0.001, 1000)
		for range 100 {
			done, err := ask(f, "ten_a", "usr_bob", true, never)
			if err != nil {
				t.Fatal(err)
			}
			done(1)
		}
	})
	t.Run("no rate, no bound", func(t *testing.T) {
		f := open(0, 0)
		for range 3 {
			if _, err := ask(f, "ten_a", "usr_bob", true, never); err != nil {
				t.Error(err)
			}
		}
	})
}
