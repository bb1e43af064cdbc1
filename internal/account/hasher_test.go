package account

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"claude-memory-backend/internal/fault"
)

func TestHasher(t *testing.T) {
	h := NewHasher(HasherConfig{Memory: 64, Passes: 1})
	stored, err := h.Hash(t.Context(), "a password")
	if err != nil {
		t.Fatal(err)
	}
	again, err := h.Hash(t.Context(), "a password")
	if err != nil || stored == again {
		t.Fatalf("two hashes of one password are the same, %v", err)
	}
	dearer := NewHasher(HasherConfig{Memory: 128, Passes: 2})
	for name, c := range map[string]struct {
		h                *Hasher
		stored, password string
		ok, again        bool
	}{
		"the right one":                {h, stored, "a password", true, false},
		"a wrong one":                  {h, stored, "A password", false, false},
		"the beginning of it":          {h, stored, "a passwor", false, false},
		"more than it":                 {h, stored, "a password ", false, false},
		"nothing":                      {h, stored, "", false, false},
		"nobody's":                     {h, "", "a password", false, false},
		"the right one at other costs": {dearer, stored, "a password", true, true},
		"a wrong one at other costs":   {dearer, stored, "x", false, true},
	} {
		t.Run(name, func(t *testing.T) {
			before := c.h.Done()
			ok, again, err := c.h.Verify(t.Context(), c.stored, c.password)
			if err != nil || ok != c.ok || again != c.again || c.h.Done() != before+1 {
				t.Fatalf("%v %v %v, %d hashes", ok, again, err, c.h.Done()-before)
			}
		})
	}
	t.Run("damaged forms", func(t *testing.T) {
		before := h.Done()
		for _, bad := range []string{"x", "$argon2id$", strings.Replace(stored, "argon2id", "argon2i", 1), strings.Replace(stored, "v=19", "v=16", 1),
			strings.Replace(stored, "m=64", "m=4294967295", 1), strings.Replace(stored, "t=1", "t=4000000000", 1), strings.Replace(stored, "t=1", "t=0", 1),
			strings.Replace(stored, "p=1", "p=255", 1), stored[:len(stored)-4], stored + "$x", "$2a$10$abcdefghijklmnopqrstuv"} {
			if ok, _, err := h.Verify(t.Context(), bad, "a password"); ok || !fault.Is(err, fault.Internal) || strings.Contains(err.Error(), "$") {
				t.Errorf("%s: %v %v", bad, ok, err)
			}
		}
		if h.Done() != before {
			t.Error("a damaged form was hashed with")
		}
	})
	t.Run("the default costs are OWASP's", func(t *testing.T) {
		stored, err := NewHasher(HasherConfig{}).Hash(t.Context(), "a password")
		if err != nil || !strings.HasPrefix(stored, "$argon2id$v=19$m=19456,t=2,p=1$") {
			t.Fatalf("%s %v", stored, err)
		}
	})
}

// occupied is a hasher whose workers are all at work until let go.
func occupied(c HasherConfig) (h *Hasher, let func()) {
	h = NewHasher(c)
	var all sync.WaitGroup
	hold := make(chan struct{})
	for range h.c.Workers {
		all.Go(func() { _ = h.work(context.Background(), func() { <-hold }) })
	}
	return h, func() { close(hold); all.Wait() }
}

func TestHasherIsBounded(t *testing.T) {
	busy := func(t *testing.T, err error) {
		t.Helper()
		f, ok := errors.AsType[*fault.Error](err)
		if !ok || f.Class != fault.Unavailable || f.Code != "hashing_busy" || f.After <= 0 {
			t.Fatalf("got %v", err)
		}
	}
	t.Run("who finds the queue full is sent away at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, let := occupied(HasherConfig{Workers: 2, Queue: 3})
			synctest.Wait()
			var queue sync.WaitGroup
			for range 3 {
				queue.Go(func() {
					if err := h.work(context.Background(), func() {}); err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait()
			started := time.Now()
			busy(t, h.work(t.Context(), func() {}))
			if time.Since(started) != 0 {
				t.Errorf("after %s", time.Since(started))
			}
			let()
			queue.Wait()
			if err := h.work(t.Context(), func() {}); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("nobody waits longer than two seconds", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, let := occupied(HasherConfig{Workers: 1})
			synctest.Wait()
			started := time.Now()
			busy(t, h.work(t.Context(), func() { t.Error("worked") }))
			if time.Since(started) != 2*time.Second {
				t.Errorf("after %s", time.Since(started))
			}
			let()
		})
	})
	t.Run("who goes away leaves the queue", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, let := occupied(HasherConfig{Workers: 1, Queue: 1})
			synctest.Wait()
			ctx, cancel := context.WithCancel(t.Context())
			gone := make(chan error)
			go func() { gone <- h.work(ctx, func() { t.Error("worked") }) }()
			synctest.Wait()
			cancel()
			if err := <-gone; !fault.Is(err, fault.Canceled) {
				t.Fatalf("got %v", err)
			}
			if len(h.waiting) != 1 {
				t.Fatalf("%d places are taken", len(h.waiting))
			}
			let()
		})
	})
	t.Run("few workers by default", func(t *testing.T) {
		if n := NewHasher(HasherConfig{}).c.Workers; n < 1 || n > 2 {
			t.Fatalf("%d workers", n)
		}
	})
}
