package account_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

type accountID = ident.AccountID

func (h *house) refresh(t account.RefreshToken) account.Grant {
	h.t.Helper()
	g, err := h.Refresh(h.t.Context(), t, home)
	if err != nil {
		h.t.Fatal(err)
	}
	return g
}

func TestRefresh(t *testing.T) {
	onBoth(t, nil, func(t *testing.T, h *house) {
		g := h.register("ada@example.com")
		head := h.head()
		h.clock.Pass(9 * time.Minute)
		next := h.refresh(g.RefreshToken)
		if next.RefreshToken == g.RefreshToken || next.AccessToken == g.AccessToken || next.Session != g.Session || next.Account.ID != g.Account.ID {
			t.Fatalf("%+v", next)
		}
		if want := h.clock.Now().Add(14 * 24 * time.Hour); !next.RefreshUntil.Equal(want) {
			t.Fatalf("idle until %s, want %s", next.RefreshUntil, want)
		}
		h.actor(next)
		if h.head() != head {
			t.Error("a refresh is an event")
		}
		t.Run("the one before answers with the same successor for a while", func(t *testing.T) {
			for range 3 {
				if again := h.refresh(g.RefreshToken); again.RefreshToken != next.RefreshToken {
					t.Fatal("another successor")
				}
				h.clock.Pass(3 * time.Second)
			}
		})
		t.Run("and after that ends the session", func(t *testing.T) {
			h.clock.Pass(2 * time.Second)
			_, err := h.Refresh(t.Context(), g.RefreshToken, home)
			refused(t, err, "refresh_refused")
			h.dead(next)
			entries := h.trail(g.Account.ID, "session.reused")
			if len(entries) != 1 || entries[0].Subject != string(g.Session) || entries[0].Address != home.Address {
				t.Fatalf("trail %+v", entries)
			}
			_, err = h.Refresh(t.Context(), g.RefreshToken, home)
			refused(t, err, "refresh_refused")
			if n := len(h.trail(g.Account.ID, "session.reused")); n != 1 {
				t.Fatalf("%d entries for one end", n)
			}
		})
	})
}

func TestAnOlderTokenEndsTheSession(t *testing.T) {
	for generations := 2; generations <= 4; generations++ {
		t.Run(fmt.Sprint(generations, " generations later"), func(t *testing.T) {
			h := newHouse(t, nil)
			g := h.register("ada@example.com")
			other := h.login("ada@example.com")
			last := g
			for range generations {
				last = h.refresh(last.RefreshToken) // all within the grace of the first
			}
			h.actor(last) // believed alive
			_, err := h.Refresh(t.Context(), g.RefreshToken, home)
			refused(t, err, "refresh_refused")
			h.dead(last)
			h.actor(other) // another session of the account lives on
		})
	}
}

func TestRefreshRaces(t *testing.T) {
	onBoth(t, nil, func(t *testing.T, h *house) {
		g := h.register("ada@example.com")
		rounds := 40
		if testing.Short() {
			rounds = 5
		}
		for round := range rounds {
			grants := make([]account.Grant, 8)
			var wg sync.WaitGroup
			for i := range grants {
				wg.Go(func() {
					var err error
					if grants[i], err = h.Refresh(t.Context(), g.RefreshToken, home); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			for _, got := range grants {
				if got.RefreshToken != grants[0].RefreshToken || got.RefreshToken == g.RefreshToken {
					t.Fatalf("round %d: not one successor", round)
				}
			}
			g = grants[0]
			h.clock.Pass(time.Second)
		}
		h.actor(g)
		if n := len(h.trail(g.Account.ID, "session.reused")); n != 0 {
			t.Fatalf("%d false alarms", n)
		}
	})
}

func TestSessionsEndByThemselves(t *testing.T) {
	t.Run("unused", func(t *testing.T) {
		h := newHouse(t, nil)
		g := h.register("ada@example.com")
		h.clock.Pass(14*24*time.Hour - time.Second)
		g = h.refresh(g.RefreshToken)
		h.clock.Pass(14 * 24 * time.Hour)
		_, err := h.Refresh(t.Context(), g.RefreshToken, home)
		refused(t, err, "refresh_refused")
	})
	t.Run("however much they are used", func(t *testing.T) {
		h := newHouse(t, nil)
		g := h.register("ada@example.com")
		for range 8 {
			h.clock.Pass(11 * 24 * time.Hour)
			g = h.refresh(g.RefreshToken)
		}
		if left := g.RefreshUntil.Sub(h.clock.Now()); left != 2*24*time.Hour {
			t.Fatalf("%s left of 90 days after 88", left)
		}
		h.clock.Pass(2 * 24 * time.Hour)
		_, err := h.Refresh(t.Context(), g.RefreshToken, home)
		refused(t, err, "refresh_refused")
	})
	t.Run("with their account", func(t *testing.T) {
		h := newHouse(t, nil)
		g := h.register("ada@example.com")
		suspend(t, h, g.Account.ID)
		h.dead(g)
	})
}

func TestRefreshTokensOfOthers(t *testing.T) {
	h := newHouse(t, nil)
	g := h.register("ada@example.com")
	for name, token := range map[string]account.RefreshToken{"nothing": "", "an access token": account.RefreshToken(g.AccessToken),
		"unknown": "cmr_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "no prefix": g.RefreshToken[4:],
		"endless": "cmr_" + account.RefreshToken(make([]byte, 1<<20)), "shortened": g.RefreshToken[:len(g.RefreshToken)-1]} {
		t.Run(name, func(t *testing.T) {
			_, err := h.Refresh(t.Context(), token, home)
			refused(t, err, "refresh_refused")
			if !fault.Is(err, fault.Unauthenticated) {
				t.Errorf("class of %v", err)
			}
		})
	}
	h.refresh(g.RefreshToken) // none of that harmed it
}

func TestEndingSessions(t *testing.T) {
	onBoth(t, nil, func(t *testing.T, h *house) {
		a, b, c := h.register("ada@example.com"), h.login("ada@example.com"), h.login("ada@example.com")
		eve := h.register("eve@example.com")
		actor := h.actor(a)
		h.actor(b) // remembered as alive
		h.actor(c)
		list, next, err := h.Sessions(t.Context(), actor, "", 2)
		must(t, err)
		rest, end, err := h.Sessions(t.Context(), actor, next, 2)
		must(t, err)
		list = append(list, rest...)
		if len(list) != 3 || end != "" || list[0].ID != c.Session || !list[2].Current || list[0].Current || list[0].Device != home.Device {
			t.Fatalf("%+v, then %q", list, end)
		}
		refused(t, h.EndSession(t.Context(), h.actor(eve), b.Session), "not_found")
		must(t, h.EndSession(t.Context(), actor, b.Session))
		h.dead(b) // at once, though it was believed alive
		refused(t, h.EndSession(t.Context(), actor, b.Session), "not_found")
		must(t, h.Logout(t.Context(), actor))
		h.dead(a)
		must(t, h.Logout(t.Context(), actor)) // twice is no mistake
		d := h.login("ada@example.com")
		must(t, h.LogoutAll(t.Context(), h.actor(d)))
		h.dead(c)
		h.dead(d)
		h.actor(eve)
		if n := len(h.trail(a.Account.ID, "session.ended")); n != 3 {
			t.Fatalf("%d entries for three ends", n)
		}
	})
}

func TestAnotherNodeNoticesWithinASecond(t *testing.T) {
	h := newHouse(t, nil)
	g := h.register("ada@example.com")
	other := h.another(nil)
	verify := func() error {
		_, err := other.Verify(t.Context(), g.AccessToken, home)
		return err
	}
	must(t, verify())
	must(t, h.Logout(t.Context(), h.actor(g)))
	h.clock.Pass(time.Second)
	refused(t, verify(), "session_ended")
}

// slow holds a lookup back until it is let go.
type slow struct {
	account.Store
	reached, let chan struct{}
}

func (s *slow) FindLive(ctx context.Context, id ident.SessionID, now time.Time) (account.Live, error) {
	l, err := s.Store.FindLive(ctx, id, now)
	if s.reached != nil {
		close(s.reached)
		<-s.let
		s.reached = nil
	}
	return l, err
}

func TestARevocationOvertakesALookup(t *testing.T) {
	h := newHouse(t, nil)
	g := h.register("ada@example.com")
	actor := h.actor(g)
	store := &slow{Store: h.store, reached: make(chan struct{}), let: make(chan struct{})}
	s, err := account.New(account.Config{Secret: secret, Now: h.clock.Now}, store, h.places, h.hasher, h.keys)
	must(t, err)
	reached, done := store.reached, make(chan error)
	go func() {
		_, err := s.Verify(context.Background(), g.AccessToken, home)
		done <- err
	}()
	<-reached
	must(t, s.Logout(t.Context(), actor))
	close(store.let)
	must(t, <-done) // it asked before
	_, err = s.Verify(t.Context(), g.AccessToken, home)
	refused(t, err, "session_ended")
}

func TestRunNotesUsesAndSweeps(t *testing.T) {
	h := newHouse(t, nil)
	g := h.register("ada@example.com")
	h.clock.Pass(2 * time.Minute)
	_, err := h.Verify(t.Context(), g.AccessToken, from("203.0.113.5"))
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	must(t, h.Run(ctx)) // what is left to note is noted at the end
	list, _, err := h.Sessions(t.Context(), h.actor(g), "", 1)
	must(t, err)
	if !list[0].LastUsedAt.Equal(h.clock.Now()) || list[0].Address != "203.0.113.5" {
		t.Fatalf("%+v", list[0])
	}
	_, err = h.Login(t.Context(), "ada@example.com", "a wrong guess", home)
	refused(t, err, account.CodeWrong)
	h.clock.Pass(15 * 24 * time.Hour)
	h.Sweep(t.Context())
	try, err := h.store.FindAttempt(t.Context(), "ada@example.com", nil, h.clock.Now())
	must(t, err)
	if len(try.Addresses) != 0 {
		t.Fatal("a session that ended long ago is still there")
	}
}

// tally is a store for a test in a bubble, where time is not real and databases do not belong.
type tally struct {
	account.Store
	live    account.Live
	touches []account.Touch
	sweeps  int
}

func (s *tally) FindLive(context.Context, ident.SessionID, time.Time) (account.Live, error) {
	return s.live, nil
}
func (s *tally) TouchSessions(_ context.Context, l []account.Touch) error {
	s.touches = append(s.touches, l...)
	return nil
}
func (s *tally) SweepSessions(context.Context, time.Time, time.Duration) (int64, error) {
	s.sweeps++
	return 0, nil
}
func (s *tally) SweepFailures(context.Context, time.Time) (int64, error) { return 0, nil }
func (s *tally) SweepOnces(context.Context, time.Time) (int64, error)    { return 0, nil }

func TestUsesAreNotedOnceAMinute(t *testing.T) {
	h := newHouse(t, nil)
	synctest.Test(t, func(t *testing.T) {
		id, session := ident.New[ident.AccountID](), ident.New[ident.SessionID]()
		store := &tally{live: account.Live{Session: session, Account: id, State: account.Active, LastUsedAt: time.Now(),
			ExpiresAt: time.Now().Add(time.Hour)}}
		s, err := account.New(account.Config{Secret: secret}, store, h.places, h.hasher, h.keys)
		must(t, err)
		token, err := account.Sign(s, id, session)
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		for range 59 {
			_, err := s.Verify(t.Context(), token, home)
			must(t, err)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if len(store.touches) != 0 {
			t.Fatalf("noted in the first minute: %+v", store.touches)
		}
		time.Sleep(time.Second)
		_, err = s.Verify(t.Context(), token, home)
		must(t, err)
		if account.Seen(s) != 1 {
			t.Fatal("a session is not remembered for the second in which it is believed")
		}
		time.Sleep(15 * time.Second)
		synctest.Wait()
		if account.Seen(s) != 0 {
			t.Fatal("a session that nobody uses stays in memory")
		}
		if len(store.touches) != 1 || store.touches[0].Session != session {
			t.Fatalf("after a minute: %+v", store.touches)
		}
		time.Sleep(time.Hour)
		cancel()
		must(t, <-done)
		if store.sweeps != 7 { // at the start, then every ten minutes
			t.Fatalf("%d sweeps", store.sweeps)
		}
	})
}

func TestEdit(t *testing.T) {
	h := newHouse(t, nil)
	g := h.register("ada@example.com")
	actor := h.actor(g)
	edit := func(name, settings string) (account.Account, error) {
		return h.Edit(t.Context(), actor, func(d *account.Details) error {
			d.Name, d.Settings = name, json.RawMessage(settings)
			return nil
		})
	}
	a, err := edit(" Augusta ", `{"theme":"dark"}`)
	must(t, err)
	if a.Name != "Augusta" || string(a.Settings) != `{"theme":"dark"}` || a.Version != 2 {
		t.Fatalf("%+v", a)
	}
	if h.actor(g).Name != "Augusta" {
		t.Error("the name of who acts changes later than at once")
	}
	head := h.head()
	if a, err = edit("Augusta", `{"theme":"dark"}`); err != nil || a.Version != 2 || h.head() != head {
		t.Fatalf("an edit that alters nothing: %+v %v", a, err)
	}
	for _, bad := range [][2]string{{"", "{}"}, {"A", "[]"}, {"A", "{"}, {"a\x00", "{}"}} {
		_, err = edit(bad[0], bad[1])
		refused(t, err, "invalid_input")
	}
	own := fault.New(fault.Conflict, "test", "mine", "")
	_, err = h.Edit(t.Context(), actor, func(*account.Details) error { return own })
	refused(t, err, "mine")
	found, err := h.Find(t.Context(), actor)
	must(t, err)
	if found.Name != "Augusta" || found.Version != 2 {
		t.Fatalf("%+v", found)
	}
	_, err = h.Find(t.Context(), ident.Actor{Account: "usr_erased"})
	refused(t, err, "session_ended")
	must(t, h.Deny(t.Context(), actor, "admin"))
	if got := h.trail(g.Account.ID, "access.denied"); len(got) != 1 || got[0].Subject != "admin" {
		t.Fatalf("%+v", got)
	}
}

// A sign-in whose password is replaced while it is hashed must not start a session.
func TestAPasswordChangeOvertakesALogin(t *testing.T) {
	h := newHouse(t, nil)
	g := h.register("ada@example.com")
	store := &overtaken{Store: h.store}
	s, err := account.New(account.Config{Secret: secret, Now: h.clock.Now}, store, h.places, h.hasher, h.keys)
	must(t, err)
	store.between = func() { must(t, h.ChangePassword(t.Context(), h.actor(g), password, "the next one 77")) }
	_, err = s.Login(t.Context(), "ada@example.com", password, home)
	refused(t, err, account.CodeWrong)
	list, _, err := h.Sessions(t.Context(), h.actor(g), "", 10)
	must(t, err)
	if !slices.EqualFunc(list, []ident.SessionID{g.Session}, func(s account.Session, id ident.SessionID) bool { return s.ID == id }) {
		t.Fatalf("%+v", list)
	}
}

func TestTwoPasswordChangesAtOnce(t *testing.T) {
	h := newHouse(t, nil)
	g := h.register("ada@example.com")
	actor := h.actor(g)
	store := &overtaken{Store: h.store}
	s, err := account.New(account.Config{Secret: secret, Now: h.clock.Now}, store, h.places, h.hasher, h.keys)
	must(t, err)
	store.between = func() { must(t, h.ResetPassword(t.Context(), "ada@example.com", "the operator's 77")) }
	refused(t, s.ChangePassword(t.Context(), actor, password, "the thief's one 88"), "conflict")
	_, err = h.Login(t.Context(), "ada@example.com", "the operator's 77", home)
	must(t, err)
}

// overtaken does something between reading an account and updating it.
type overtaken struct {
	account.Store
	between func()
}

func (s *overtaken) UpdateAccount(ctx context.Context, id ident.AccountID,
	edit func(account.Account, string) (account.Account, string, event.Change, error), along account.Along) (account.Account, error) {
	s.between()
	return s.Store.UpdateAccount(ctx, id, edit, along)
}
