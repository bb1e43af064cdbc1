package account_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
)

// from is the same client at another address.
func from(address string) account.Origin {
	o := home
	o.Address = address
	return o
}

func TestLogin(t *testing.T) {
	h := newHouse(t, nil)
	first := h.register("ada@example.com")
	second := h.login("  ADA@example.com ")
	if second.Session == first.Session || second.Account.ID != first.Account.ID || second.ExpiresIn != 10*time.Minute {
		t.Fatalf("%+v", second)
	}
	h.actor(first)
	h.actor(second)
	entries := h.trail(first.Account.ID, "session.started")
	if len(entries) != 1 || entries[0].Session != second.Session {
		t.Fatalf("trail %+v", entries)
	}
}

// What a stranger learns from signing in must not depend on whether the account exists.
func TestLoginTellsNobodyWhoIsThere(t *testing.T) {
	h := newHouse(t, nil)
	h.register("ada@example.com")
	gone := h.register("gone@example.com")
	suspend(t, h, gone.Account.ID)
	type answer struct {
		class         fault.Class
		code, message string
		after         time.Duration
		hashes        int64
		events        event.Seq
	}
	ask := func(email, password, address string) answer {
		t.Helper()
		before, head := h.hasher.Done(), h.head()
		_, err := h.Login(t.Context(), email, password, from(address))
		f, ok := errors.AsType[*fault.Error](err)
		if !ok {
			t.Fatalf("%s got in: %v", email, err)
		}
		return answer{f.Class, f.Code, f.Message, f.After, h.hasher.Done() - before, h.head() - head}
	}
	want := answer{class: fault.Unauthenticated, code: account.CodeWrong, message: "the e-mail address or the password is wrong", hashes: 1}
	for i := range 12 {
		known := ask("ada@example.com", "a wrong guess", "198.51.100.1")
		for name, got := range map[string]answer{
			"unknown":                   ask("nobody@example.com", "a wrong guess", "198.51.100.2"),
			"suspended, right password": ask("gone@example.com", password, "198.51.100.3"),
		} {
			if got != known {
				t.Fatalf("try %d: %s answers %+v, a known account %+v", i, name, got, known)
			}
		}
		if i < 10 && known != want {
			t.Fatalf("try %d: %+v, want %+v", i, known, want)
		}
		if i >= 10 && (known.class != fault.Throttled || known.hashes != 0 || known.after <= 0) {
			t.Fatalf("try %d: %+v", i, known)
		}
	}
	// What cannot be anybody's is refused without work, and in the same words.
	for _, email := range []string{"", "x", "a\x00@example.com", "\xff@example.com"} {
		_, err := h.Login(t.Context(), email, password, from("198.51.100.9"))
		refused(t, err, account.CodeWrong)
	}
}

// suspend does what no service does yet.
func suspend(t *testing.T, h *house, id accountID) {
	t.Helper()
	_, err := h.store.UpdateAccount(t.Context(), id, func(a account.Account, hash string) (account.Account, string, event.Change, error) {
		a.State = account.Suspended
		return a, hash, event.Change{}, nil
	}, account.Along{})
	must(t, err)
}

func TestThrottle(t *testing.T) {
	guess := func(t *testing.T, h *house, email, address string) error {
		t.Helper()
		_, err := h.Login(t.Context(), email, "a wrong guess", from(address))
		return err
	}
	t.Run("a pair of account and address", func(t *testing.T) {
		h := newHouse(t, nil)
		g := h.register("ada@example.com")
		for range 10 {
			refused(t, guess(t, h, "Ada@example.com", "198.51.100.1"), account.CodeWrong)
		}
		before := h.hasher.Done()
		_, err := h.Login(t.Context(), "ada@example.com", password, from("198.51.100.1"))
		refused(t, err, "too_many_failures")
		f, ok := errors.AsType[*fault.Error](err)
		if !ok {
			t.Fatal(err)
		}
		if f.Class != fault.Throttled || f.After != 15*time.Minute || h.hasher.Done() != before {
			t.Fatalf("%v after %s, %d hashes", f, f.After, h.hasher.Done()-before)
		}
		if n := len(h.trail(g.Account.ID, "session.refused")); n != 11 {
			t.Fatalf("%d refusals in the account's trail", n)
		}
		for range 5 {
			refused(t, guess(t, h, "ada@example.com", "198.51.100.1"), "too_many_failures")
		}
		if n := len(h.trail(g.Account.ID, "session.refused")); n != 11 {
			t.Fatalf("a flood of throttled attempts wrote %d entries", n)
		}
		// The account elsewhere, and the address for another account, are as free as before.
		h.login("ada@example.com")
		refused(t, guess(t, h, "bob@example.com", "198.51.100.1"), account.CodeWrong)
		h.clock.Pass(f.After)
		_, err = h.Login(t.Context(), "ada@example.com", password, from("198.51.100.1"))
		must(t, err)
		// Signing in forgets the pair's failures.
		for range 9 {
			refused(t, guess(t, h, "ada@example.com", "198.51.100.1"), account.CodeWrong)
		}
		_, err = h.Login(t.Context(), "ada@example.com", password, from("198.51.100.1"))
		must(t, err)
		refused(t, guess(t, h, "ada@example.com", "198.51.100.1"), account.CodeWrong)
	})
	t.Run("an account from everywhere, but not its owner", func(t *testing.T) {
		h := newHouse(t, nil)
		h.register("ada@example.com")
		before := h.hasher.Done()
		refusals := map[string]int{}
		for i := range 200 {
			refusals[fault.CodeOf(guess(t, h, "ada@example.com", fmt.Sprintf("198.51.%d.%d", i/100, i%100)))]++
		}
		if refusals[account.CodeWrong] != 25 || refusals["too_many_failures"] != 175 || h.hasher.Done()-before != 25 {
			t.Fatalf("%v, %d hashes", refusals, h.hasher.Done()-before)
		}
		h.login("ada@example.com") // from where the account was made
		_, err := h.Login(t.Context(), "ada@example.com", password, from("203.0.113.77"))
		refused(t, err, "too_many_failures") // a new address has to wait
	})
	t.Run("an address for everybody, and an IPv6 client's whole network", func(t *testing.T) {
		h := newHouse(t, nil)
		for i := range 100 {
			refused(t, guess(t, h, fmt.Sprintf("u%d@example.com", i), fmt.Sprintf("2001:db8:1:2::%x", i+1)), account.CodeWrong)
		}
		refused(t, guess(t, h, "another@example.com", "2001:db8:1:2:ffff::1"), "too_many_failures")
		refused(t, guess(t, h, "another@example.com", "2001:db8:1:3::1"), account.CodeWrong)
	})
	t.Run("many at once", func(t *testing.T) {
		onBoth(t, nil, func(t *testing.T, h *house) {
			h.register("ada@example.com")
			before := h.hasher.Done()
			var wg sync.WaitGroup
			for range 60 {
				wg.Go(func() {
					if err := guess(t, h, "ada@example.com", "198.51.100.1"); err == nil {
						t.Error("a wrong guess got in")
					}
				})
			}
			wg.Wait()
			if n := h.hasher.Done() - before; n > 10 {
				t.Fatalf("%d guesses at once reached the hasher", n)
			}
		})
	})
	t.Run("off", func(t *testing.T) {
		h := newHouse(t, func(c *account.Config) { c.Throttle.Off = true })
		h.register("ada@example.com")
		for range 30 {
			refused(t, guess(t, h, "ada@example.com", "198.51.100.1"), account.CodeWrong)
		}
		_, err := h.Login(t.Context(), "ada@example.com", password, from("198.51.100.1"))
		must(t, err)
	})
}

func TestStoredPasswordsFollowTheCosts(t *testing.T) {
	h := newHouse(t, nil)
	g := h.register("ada@example.com")
	dearer := cheap()
	dearer.Memory = 16
	h.hasher = account.NewHasher(dearer)
	s := h.another(nil)
	for range 2 {
		_, err := s.Login(t.Context(), "ada@example.com", password, home)
		must(t, err)
		_, hash, err := h.store.FindAccount(t.Context(), g.Account.ID)
		must(t, err)
		if want := "$argon2id$v=19$m=16,t=1,p=1$"; hash[:len(want)] != want {
			t.Fatalf("stored form %q", hash)
		}
	}
	if h.hasher.Done() != 3 { // verified and made anew, then verified
		t.Fatalf("%d hashes", h.hasher.Done())
	}
}

func TestChangePassword(t *testing.T) {
	onBoth(t, nil, func(t *testing.T, h *house) {
		g, other := h.register("ada@example.com"), h.login("ada@example.com")
		actor := h.actor(g)
		h.actor(other)
		refused(t, h.ChangePassword(t.Context(), actor, "a wrong guess", "the next one 77"), "wrong_password")
		refused(t, h.ChangePassword(t.Context(), actor, password, "short"), "invalid_input")
		must(t, h.ChangePassword(t.Context(), actor, password, "the next one 77"))
		h.actor(g) // stays
		h.dead(other)
		_, err := h.Login(t.Context(), "ada@example.com", password, home)
		refused(t, err, account.CodeWrong)
		_, err = h.Login(t.Context(), "ada@example.com", "the next one 77", home)
		must(t, err)
		if n := len(h.trail(g.Account.ID, "account.password_changed")); n != 1 {
			t.Fatalf("%d entries", n)
		}
		t.Run("guesses count", func(t *testing.T) {
			for range 10 {
				if err := h.ChangePassword(t.Context(), actor, "a wrong guess", "the next one 77"); fault.Is(err, fault.Throttled) {
					break
				}
			}
			refused(t, h.ChangePassword(t.Context(), actor, "the next one 77", "and another 88"), "too_many_failures")
		})
	})
}
