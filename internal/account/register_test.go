package account_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/tenant"
)

func TestRegister(t *testing.T) {
	h := newHouse(t, nil)
	g, err := h.Register(t.Context(), account.RegisterInput{Email: " Ada@Example.com ", Password: password, Name: " Ada "}, home)
	must(t, err)
	if g.Account.Email != "Ada@Example.com" || g.Account.Name != "Ada" || g.Account.Role != ident.Member || g.Account.State != account.Active {
		t.Fatalf("%+v", g.Account)
	}
	id, err := h.Verify(t.Context(), g.AccessToken, account.Origin{Address: "198.51.100.1", RequestID: "req-9"})
	must(t, err)
	want := ident.Actor{Account: g.Account.ID, Name: "Ada", Role: ident.Member, Session: g.Session, Address: "198.51.100.1", RequestID: "req-9"}
	if id.Actor != want || id.Tenant != g.Account.Tenant {
		t.Fatalf("identity %+v, want %+v", id, want)
	}
	place, err := h.store.FindTenant(t.Context(), g.Account.Tenant)
	must(t, err)
	if place.Account != g.Account.ID || place.State != tenant.Active || string(place.Placement.WrappedKey) != "wrapped" {
		t.Fatalf("tenant %+v", place)
	}
	if got := h.events(); !slices.Equal(got, []string{"account.registered", "session.started"}) {
		t.Fatalf("events %v", got)
	}
	entries := h.trail(g.Account.ID, "account.registered")
	if len(entries) != 1 || entries[0].ActorID != g.Account.ID || entries[0].Address != home.Address || entries[0].Session != g.Session {
		t.Fatalf("trail %+v", entries)
	}
	if h.register("grace@example.com").Account.Name != "grace" {
		t.Error("who gives no name is not named after the address")
	}
	t.Run("nothing secret is printed or stored", func(t *testing.T) {
		if text := fmt.Sprintf("%v %+v %#v", g, g, g); strings.Contains(text, g.AccessToken.Reveal()) || strings.Contains(text, g.RefreshToken.Reveal()) {
			t.Error("a printed grant shows its tokens")
		}
		_, hash, err := h.store.FindAccount(t.Context(), g.Account.ID)
		must(t, err)
		if !strings.HasPrefix(hash, "$argon2id$v=19$m=8,t=1,p=1$") {
			t.Errorf("stored form %q", hash)
		}
	})
}

func TestRegistrationChecks(t *testing.T) {
	h := newHouse(t, nil)
	for name, c := range map[string]struct{ email, password, name, location string }{
		"no address":               {"", password, "", "body.email"},
		"no domain":                {"ada@", password, "", "body.email"},
		"no local part":            {"@example.com", password, "", "body.email"},
		"a name around it":         {"Ada <ada@example.com>", password, "", "body.email"},
		"two of them":              {"a@example.com,b@example.com", password, "", "body.email"},
		"quotes":                   {`"a b"@example.com`, password, "", "body.email"},
		"a comment":                {"ada(x)@example.com", password, "", "body.email"},
		"an address literal":       {"ada@[192.0.2.1]", password, "", "body.email"},
		"a line break":             {"ada@example.com\nbcc: x", password, "", "body.email"},
		"a NUL":                    {"ada\x00@example.com", password, "", "body.email"},
		"an invisible character":   {"ada\u200b@example.com", password, "", "body.email"},
		"255 bytes":                {strings.Repeat("a", 243) + "@example.com", password, "", "body.email"},
		"7 characters":             {"ada@example.com", "abcdef7", "", "body.password"},
		"129 characters":           {"ada@example.com", strings.Repeat("aé", 64) + "x", "", "body.password"},
		"not UTF-8":                {"ada@example.com", "abcdefgh\xff", "", "body.password"},
		"a common password":        {"ada@example.com", "PassWord1", "", "body.password"},
		"one character repeated":   {"ada@example.com", "zzzzzzzzzzzz", "", "body.password"},
		"the address as password":  {"ada@example.com", "ADA@example.com", "", "body.password"},
		"a name of 201 characters": {"ada@example.com", password, strings.Repeat("é", 201), "body.name"},
		"a name with a NUL":        {"ada@example.com", password, "a\x00b", "body.name"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := h.Register(t.Context(), account.RegisterInput{Email: c.email, Password: c.password, Name: c.name}, home)
			f, ok := errors.AsType[*fault.Error](err)
			if !ok || f.Class != fault.Invalid || len(f.Fields) != 1 || f.Fields[0].Location != c.location {
				t.Fatalf("want a complaint about %s, got %v", c.location, err)
			}
			if c.password != "" && strings.Contains(fmt.Sprint(f.Fields), c.password) {
				t.Error("the complaint repeats the password")
			}
		})
	}
	if h.hasher.Done() != 0 || h.places.count() != 0 {
		t.Errorf("wrong input cost %d hashes and %d databases", h.hasher.Done(), h.places.count())
	}
	t.Run("everything at once", func(t *testing.T) {
		_, err := h.Register(t.Context(), account.RegisterInput{Email: "x", Password: "y"}, home)
		if f, ok := errors.AsType[*fault.Error](err); !ok || len(f.Fields) != 2 {
			t.Fatalf("got %v", err)
		}
	})
	for _, good := range []string{strings.Repeat("éà", 64), strings.Repeat("pass phrase ", 6), "8 signs!"} {
		g, err := h.Register(t.Context(), account.RegisterInput{Email: fmt.Sprintf("%d@example.com", len(good)), Password: good}, home)
		must(t, err)
		// A longer password must not be a shorter one: nothing is cut off.
		_, err = h.Login(t.Context(), g.Account.Email, good[:len(good)-1], home)
		refused(t, err, account.CodeWrong)
		_, err = h.Login(t.Context(), g.Account.Email, good, home)
		must(t, err)
	}
	t.Run("an accent in one character or in two", func(t *testing.T) {
		_, err := h.Register(t.Context(), account.RegisterInput{Email: "rene@example.com", Password: "Ren\u00e9 was here"}, home)
		must(t, err)
		_, err = h.Login(t.Context(), "rene@example.com", "Rene\u0301 was here", home)
		must(t, err)
	})
}

func TestOneAccountPerAddress(t *testing.T) {
	onBoth(t, nil, func(t *testing.T, h *house) {
		h.register("ada@example.com")
		_, err := h.Register(t.Context(), account.RegisterInput{Email: "ADA@EXAMPLE.com", Password: password}, home)
		refused(t, err, "email_taken")
		if h.places.count() != 1 || h.places.discarded != 0 {
			t.Fatalf("a known duplicate cost a database")
		}
		// Eight at once: one account, and no database without one.
		var wg sync.WaitGroup
		errs := make([]error, 8)
		for i := range errs {
			wg.Go(func() {
				_, errs[i] = h.Register(t.Context(), account.RegisterInput{Email: "race@example.com", Password: password}, home)
			})
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if fault.CodeOf(err) != "email_taken" {
				t.Errorf("loser: %v", err)
			}
		}
		if won != 1 || h.places.count() != 2 {
			t.Fatalf("%d accounts, %d databases", won, h.places.count())
		}
	})
}

func TestRepeatedRegistrations(t *testing.T) {
	once := func(h *house, key, body string) *event.Once {
		return &event.Once{Scope: "register", Key: key, Fingerprint: []byte(body), ExpiresAt: h.clock.Now().Add(event.OnceLife)}
	}
	h := newHouse(t, func(c *account.Config) { c.FirstIsAdmin = true })
	in := account.RegisterInput{Email: "ada@example.com", Password: password, Once: once(h, "k1", "f")}
	first, err := h.Register(t.Context(), in, home)
	must(t, err)
	in.Once = once(h, "k1", "f")
	again, err := h.Register(t.Context(), in, home)
	must(t, err)
	if !reflect.DeepEqual(first, again) || !in.Once.Replayed || again.Account.Role != ident.Admin {
		t.Fatalf("replayed %v:\n%+v\n%+v", in.Once.Replayed, first, again)
	}
	h.actor(again)
	in.Once = once(h, "k1", "other")
	_, err = h.Register(t.Context(), in, home)
	if !fault.Is(err, fault.Mismatch) {
		t.Fatalf("another body: %v", err)
	}
	in.Once = once(h, "k2", "f")
	_, err = h.Register(t.Context(), in, home)
	refused(t, err, "email_taken")
	if h.places.count() != 1 {
		t.Fatalf("%d databases", h.places.count())
	}
	onBoth(t, nil, func(t *testing.T, h *house) {
		var wg sync.WaitGroup
		grants := make([]account.Grant, 8)
		for i := range grants {
			wg.Go(func() {
				var err error
				grants[i], err = h.Register(t.Context(), account.RegisterInput{Email: "ada@example.com", Password: password, Once: once(h, "k", "f")}, home)
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, g := range grants {
			if !reflect.DeepEqual(g, grants[0]) {
				t.Fatalf("two answers to one request:\n%+v\n%+v", g, grants[0])
			}
		}
		if h.places.count() != 1 {
			t.Fatalf("%d databases", h.places.count())
		}
	})
}

func TestAFailedRegistrationLeavesNothing(t *testing.T) {
	h := newHouse(t, nil)
	h.places.fail = fault.New(fault.Unavailable, "test", "storage_full", "full")
	_, err := h.Register(t.Context(), account.RegisterInput{Email: "ada@example.com", Password: password}, home)
	refused(t, err, "storage_full")
	h.places.fail = nil
	if h.head() != 0 {
		t.Fatal("a registration without a database left events")
	}
	h.register("ada@example.com")
}

func TestClosedRegistration(t *testing.T) {
	for mode, code := range map[account.Registration]string{account.Closed: "registration_closed", account.ByInvitation: "invitation_required"} {
		t.Run(string(mode), func(t *testing.T) {
			h := newHouse(t, func(c *account.Config) { c.Registration = mode })
			in := account.RegisterInput{Email: "ada@example.com", Password: password}
			_, err := h.Register(t.Context(), in, home)
			refused(t, err, code)
			if !fault.Is(err, fault.Forbidden) {
				t.Errorf("class of %v", err)
			}
			token, fresh, err := h.SetupToken(t.Context())
			if err != nil || !fresh || token == "" {
				t.Fatalf("setup token: %v %v", fresh, err)
			}
			in.SetupToken = "cms_wrong"
			_, err = h.Register(t.Context(), in, home)
			refused(t, err, account.CodeBadSetup)
			if h.hasher.Done() != 0 {
				t.Fatal("strangers at a closed door made us hash")
			}
			in.SetupToken = token
			g, err := h.Register(t.Context(), in, home)
			must(t, err)
			if g.Account.Role != ident.Admin || h.actor(g).Role != ident.Admin {
				t.Fatalf("%+v", g.Account)
			}
			in.Email = "eve@example.com"
			_, err = h.Register(t.Context(), in, home)
			refused(t, err, account.CodeBadSetup) // used
			if again, fresh, err := h.SetupToken(t.Context()); again != "" || fresh || err != nil {
				t.Fatalf("a second token was made: %v %v", fresh, err)
			}
			_, err = h.Create(t.Context(), account.CreateInput{Email: "bob@example.com", Password: password})
			must(t, err) // operators are not bound by it
		})
	}
}

func TestFirstIsAdmin(t *testing.T) {
	onBoth(t, func(c *account.Config) { c.FirstIsAdmin = true }, func(t *testing.T, h *house) {
		var wg sync.WaitGroup
		roles := make([]ident.Role, 6)
		for i := range roles {
			wg.Go(func() {
				g, err := h.Register(t.Context(), account.RegisterInput{Email: fmt.Sprintf("u%d@example.com", i), Password: password}, home)
				if err != nil {
					t.Error(err)
				}
				roles[i] = g.Account.Role
			})
		}
		wg.Wait()
		admins := 0
		for _, r := range roles {
			if r == ident.Admin {
				admins++
			}
		}
		if admins != 1 {
			t.Fatalf("roles %v", roles)
		}
	})
	t.Run("not in production", func(t *testing.T) {
		if g := newHouse(t, nil).register("ada@example.com"); g.Account.Role != ident.Member {
			t.Fatalf("role %s", g.Account.Role)
		}
	})
}

func TestOperator(t *testing.T) {
	h := newHouse(t, nil)
	a, err := h.Create(t.Context(), account.CreateInput{Email: "ada@example.com", Password: password, Name: "Ada", Role: ident.Admin})
	must(t, err)
	if a.Role != ident.Admin {
		t.Fatalf("%+v", a)
	}
	g := h.login("ada@example.com")
	must(t, h.SetRole(t.Context(), "ADA@example.com", ident.Member))
	if h.actor(g).Role != ident.Member {
		t.Fatal("the role changes later than at once")
	}
	head := h.head()
	must(t, h.SetRole(t.Context(), "ada@example.com", ident.Member))
	if h.head() != head {
		t.Fatal("the same role again is an event")
	}
	refused(t, h.SetRole(t.Context(), "ada@example.com", "king"), "invalid_input")
	refused(t, h.SetRole(t.Context(), "eve@example.com", ident.Admin), "not_found")
	refused(t, h.ResetPassword(t.Context(), "ada@example.com", "short"), "invalid_input")
	must(t, h.ResetPassword(t.Context(), "ada@example.com", "another long one"))
	h.dead(g)
	_, err = h.Login(t.Context(), "ada@example.com", password, home)
	refused(t, err, account.CodeWrong)
	_, err = h.Login(t.Context(), "ada@example.com", "another long one", home)
	must(t, err)
	h.register("bob@example.com")
	list, next, err := h.List(t.Context(), "", 1)
	if err != nil || len(list) != 1 || list[0].Email != "bob@example.com" || next == "" {
		t.Fatalf("%+v %q %v", list, next, err)
	}
	want := []string{"account.registered", "session.started", "account.role_changed", "account.password_changed", "session.ended",
		"session.started", "account.registered", "session.started"}
	if got := h.events(); !slices.Equal(got, want) {
		t.Fatalf("events %v", got)
	}
}

// late does not see a record that is committed while it looks.
type late struct {
	account.Store
	looked bool
}

func (s *late) FindOnce(ctx context.Context, scope, key string) (event.Once, error) {
	if !s.looked {
		s.looked = true
		return event.Once{}, fault.Missing("test")
	}
	return s.Store.FindOnce(ctx, scope, key)
}

func TestARepeatOvertakesItsRequest(t *testing.T) {
	h := newHouse(t, nil)
	in := account.RegisterInput{Email: "ada@example.com", Password: password}
	once := event.Once{Scope: "register", Key: "k", Fingerprint: []byte("f"), ExpiresAt: h.clock.Now().Add(event.OnceLife)}
	one, two := once, once
	in.Once = &one
	first, err := h.Register(t.Context(), in, home)
	must(t, err)
	s, err := account.New(account.Config{Secret: secret, Now: h.clock.Now}, &late{Store: h.store}, h.places, h.hasher, h.keys)
	must(t, err)
	in.Once = &two
	again, err := s.Register(t.Context(), in, home)
	must(t, err)
	if !reflect.DeepEqual(first, again) || !two.Replayed {
		t.Fatalf("%+v\n%+v", first, again)
	}
}

// unsure stores an account and then does not know whether it did.
type unsure struct {
	account.Store
	stores bool
}

func (s unsure) InsertAccount(ctx context.Context, n account.Newcomer, change func(account.Account) event.Change) (account.Account, error) {
	if s.stores {
		if a, err := s.Store.InsertAccount(ctx, n, change); err != nil {
			return a, err
		}
	}
	return account.Account{}, fault.New(fault.Unavailable, "test", "outcome_unknown", "no answer came")
}

func TestACommitWithoutAnAnswer(t *testing.T) {
	for _, stored := range []bool{true, false} {
		t.Run(fmt.Sprintf("stored %v", stored), func(t *testing.T) {
			h := newHouse(t, nil)
			s, err := account.New(account.Config{Secret: secret, Now: h.clock.Now}, unsure{h.store, stored}, h.places, h.hasher, h.keys)
			must(t, err)
			g, err := s.Register(t.Context(), account.RegisterInput{Email: "ada@example.com", Password: password}, home)
			if stored {
				must(t, err)
				h.actor(g)
			} else {
				refused(t, err, "outcome_unknown")
			}
			// Its database stays in both cases: the commit may still arrive.
			if h.places.count() != 1 || h.places.discarded != 0 {
				t.Fatalf("%d databases, %d thrown away", h.places.count(), h.places.discarded)
			}
		})
	}
}
