package sqlstore

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/tenant"
)

// onMaster runs a test on a fresh master database of each engine.
func onMaster(t *testing.T, test func(t *testing.T, s *MasterStore)) {
	t.Helper()
	for _, e := range []struct {
		name string
		open func(*testing.T) *DB
	}{{"sqlite", onSQLite}, {"postgres", onPostgres}} {
		t.Run(e.name, func(t *testing.T) {
			db := e.open(t)
			if _, err := Migrate(t.Context(), db, Master); err != nil {
				t.Fatal(err)
			}
			test(t, NewMasterStore(db, nil))
		})
	}
}

// noon is the first moment of these tests.
func noon(after time.Duration) time.Time {
	return time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC).Add(after)
}

func newcomer(email string) account.Newcomer {
	id, ten := ident.New[ident.AccountID](), ident.New[ident.TenantID]()
	return account.Newcomer{
		Account: account.Account{ID: id, Email: email,
			Details: account.Details{Name: "Åda 🦉", Settings: json.RawMessage(`{"theme":"dark","n":[1,2]}`)},
			Role:    ident.Member, Tenant: ten, State: account.Active, Version: 1, CreatedAt: noon(0), UpdatedAt: noon(time.Second)},
		Hash: "$argon2id$of " + email,
		Tenant: tenant.Tenant{ID: ten, Account: id, State: tenant.Active, CreatedAt: noon(0),
			Placement: tenant.Placement{Database: tenant.First(ten), Kind: tenant.SQLite, WrappedKey: []byte{0, 1, 255}}},
	}
}

func family(a ident.AccountID, token string, after time.Duration) account.Family {
	return account.Family{Account: a, CurrentHash: []byte(token), Generation: 1, EndsAt: noon(after + 90*24*time.Hour),
		Session: account.Session{ID: ident.New[ident.SessionID](), Device: "tests", Address: "192.0.2.1",
			CreatedAt: noon(after), LastUsedAt: noon(after), ExpiresAt: noon(after + 14*24*time.Hour)}}
}

func happened(kind, subject string, after time.Duration) event.Change {
	c := event.NewChange(ident.Actor{Account: "usr_ada", Name: "Ada"}, noon(after))
	c.Add(kind, subject, map[string]any{})
	return c
}

func settle[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func refused(t *testing.T, err error, code string) {
	t.Helper()
	if err == nil || fault.CodeOf(err) != code {
		t.Fatalf("want code %q, got %v", code, err)
	}
}

// join registers an account, with a session when token is set.
func join(t *testing.T, s *MasterStore, email, token string) account.Account {
	t.Helper()
	n := newcomer(email)
	if token != "" {
		f := family(n.Account.ID, token, 0)
		n.Session = &f
	}
	return settle[account.Account](t)(s.InsertAccount(t.Context(), n, registered))
}

// begin starts a session of an account, as a sign-in does.
func begin(s *MasterStore, f account.Family) error {
	_, err := s.UpdateAccount(context.Background(), f.Account, func(a account.Account, hash string) (account.Account, string, event.Change, error) {
		return a, hash, happened("session.started", string(f.ID), 0), nil
	}, account.Along{Start: &f})
	return err
}

// stored reads a session's row as it is.
func stored(t *testing.T, s *MasterStore, id ident.SessionID) (r sessionRow) {
	t.Helper()
	var found *Found
	if err := s.db.Read(t.Context(), func(b *Batch) {
		found = b.One(r.dest(), `SELECT `+sessionColumns+` FROM sessions s WHERE s.id = ?`, id)
	}); err != nil || !found.Yes {
		t.Fatalf("session %s: %v", id, err)
	}
	r.done()
	return r
}

func registered(a account.Account) event.Change {
	return happened("account.registered", string(a.ID), 0)
}

func TestAccountsRoundTrip(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		n := newcomer("Ada.Lovelace@Example.COM")
		n.Tenant.Placement.Host = "h1"
		got := settle[account.Account](t)(s.InsertAccount(t.Context(), n, registered))
		if !reflect.DeepEqual(got, n.Account) {
			t.Fatalf("inserted %+v, want %+v", got, n.Account)
		}
		for name, find := range map[string]func() (account.Account, string, error){
			"by id":           func() (account.Account, string, error) { return s.FindAccount(t.Context(), n.Account.ID) },
			"by folded email": func() (account.Account, string, error) { return s.FindByEmail(t.Context(), "ada.lovelace@example.com") },
			"by typed email":  func() (account.Account, string, error) { return s.FindByEmail(t.Context(), n.Account.Email) },
		} {
			a, hash, err := find()
			if err != nil || hash != n.Hash || !reflect.DeepEqual(a, n.Account) {
				t.Errorf("%s: %+v %q %v", name, a, hash, err)
			}
		}
		where := settle[tenant.Tenant](t)(s.FindTenant(t.Context(), n.Tenant.ID))
		if !reflect.DeepEqual(where, n.Tenant) {
			t.Fatalf("tenant %+v, want %+v", where, n.Tenant)
		}
		_, _, err := s.FindAccount(t.Context(), "usr_nobody")
		refused(t, err, "not_found")
		_, _, err = s.FindByEmail(t.Context(), "")
		refused(t, err, "not_found")
		_, err = s.FindTenant(t.Context(), "ten_none")
		refused(t, err, "not_found")
	})
}

func TestOneAccountPerEmail(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		join(t, s, "ada@example.com", "")
		before := settle[event.Seq](t)(s.Head(t.Context()))
		n := newcomer("ADA@Example.com")
		_, err := s.InsertAccount(t.Context(), n, registered)
		refused(t, err, "email_taken")
		if !fault.Is(err, fault.Conflict) {
			t.Errorf("class of %v", err)
		}
		if _, err := s.FindTenant(t.Context(), n.Tenant.ID); !fault.Is(err, fault.NotFound) {
			t.Errorf("the tenant of a refused account is there: %v", err)
		}
		if after := settle[event.Seq](t)(s.Head(t.Context())); after != before {
			t.Errorf("a refused account left events: %d, then %d", before, after)
		}
	})
}

func TestRepeatedRegistration(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		record := &event.Once{Scope: " register", Key: "k", Fingerprint: []byte("f"), Result: []byte("sealed"),
			ExpiresAt: time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)}
		change := func(a account.Account) event.Change {
			c := registered(a)
			c.Once = record
			return c
		}
		settle[account.Account](t)(s.InsertAccount(t.Context(), newcomer("ada@example.com"), change))
		_, err := s.InsertAccount(t.Context(), newcomer("eve@example.com"), change)
		if !event.Repeated(err) {
			t.Fatalf("got %v", err)
		}
		got := settle[event.Once](t)(s.FindOnce(t.Context(), record.Scope, record.Key))
		if !reflect.DeepEqual(got, *record) {
			t.Fatalf("record %+v, want %+v", got, *record)
		}
		if _, _, err := s.FindByEmail(t.Context(), "eve@example.com"); !fault.Is(err, fault.NotFound) {
			t.Fatalf("the repeat made an account: %v", err)
		}
	})
}

func TestTheFirstAccountIsAdmin(t *testing.T) {
	promoted := func(email string) account.Newcomer {
		n := newcomer(email)
		n.Promote = true
		return n
	}
	onMaster(t, func(t *testing.T, s *MasterStore) {
		const racers = 8
		roles := make([]ident.Role, racers)
		var wg sync.WaitGroup
		for i := range racers {
			wg.Go(func() {
				a, err := s.InsertAccount(t.Context(), promoted(fmt.Sprintf("u%d@example.com", i)), registered)
				if err != nil {
					t.Error(err)
				}
				roles[i] = a.Role
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
		stored := 0
		list, _, err := s.ListAccounts(t.Context(), "", 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range list {
			if a.Role == ident.Admin {
				stored++
			}
		}
		if stored != 1 || len(list) != racers {
			t.Fatalf("%d admins of %d are stored", stored, len(list))
		}
	})
	t.Run("but not after one that an operator made", func(t *testing.T) {
		onMaster(t, func(t *testing.T, s *MasterStore) {
			join(t, s, "first@example.com", "")
			if a := settle[account.Account](t)(s.InsertAccount(t.Context(), promoted("second@example.com"), registered)); a.Role != ident.Member {
				t.Fatalf("role %s", a.Role)
			}
		})
	})
	t.Run("also when the one before failed", func(t *testing.T) {
		onMaster(t, func(t *testing.T, s *MasterStore) {
			bad := promoted("bad@example.com")
			bad.Hash = "\x00"
			_, err := s.InsertAccount(t.Context(), bad, registered)
			refused(t, err, "invalid_text")
			if a := settle[account.Account](t)(s.InsertAccount(t.Context(), promoted("good@example.com"), registered)); a.Role != ident.Admin {
				t.Fatalf("role %s", a.Role)
			}
		})
	})
}

func TestSetupFactIsUsedOnce(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		if put := settle[bool](t)(s.PutFact(t.Context(), "setup", []byte("hash"), noon(0))); !put {
			t.Fatal("not put")
		}
		if put := settle[bool](t)(s.PutFact(t.Context(), "setup", []byte("other"), noon(0))); put {
			t.Fatal("put twice")
		}
		if v := settle[[]byte](t)(s.FindFact(t.Context(), "setup")); string(v) != "hash" {
			t.Fatalf("fact %q", v)
		}
		_, err := s.FindFact(t.Context(), "none")
		refused(t, err, "not_found")

		const racers = 6
		errs := make([]error, racers)
		roles := make([]ident.Role, racers)
		var wg sync.WaitGroup
		for i := range racers {
			n := newcomer(fmt.Sprintf("u%d@example.com", i))
			n.Fact = "setup"
			wg.Go(func() {
				a, err := s.InsertAccount(t.Context(), n, registered)
				roles[i], errs[i] = a.Role, err
			})
		}
		wg.Wait()
		won := 0
		for i, err := range errs {
			switch {
			case err == nil:
				won++
				if roles[i] != ident.Admin {
					t.Errorf("the winner is %s", roles[i])
				}
			case fault.CodeOf(err) != account.CodeBadSetup:
				t.Errorf("loser: %v", err)
			}
		}
		if won != 1 {
			t.Fatalf("%d used one token", won)
		}
		if put := settle[bool](t)(s.PutFact(t.Context(), "setup", []byte("again"), noon(0))); put {
			t.Fatal("a used token made room for another one")
		}
	})
}

func TestAccountsArePaged(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		var want []string
		for i := range 5 {
			want = append([]string{join(t, s, fmt.Sprintf("u%d@example.com", i), "").Email}, want...)
		}
		var got []string
		cursor := ""
		for {
			page, next, err := s.ListAccounts(t.Context(), cursor, 2)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range page {
				got = append(got, a.Email)
			}
			if len(got) == 2 {
				join(t, s, "late@example.com", "") // must neither shift nor repeat a page
			}
			if next == "" {
				break
			}
			cursor = next
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		for _, bad := range []string{"x", formatCursor(idCursor{Kind: "sessions", ID: "ses_1"}), formatCursor(idCursor{Kind: "accounts"})} {
			_, _, err := s.ListAccounts(t.Context(), bad, 2)
			refused(t, err, "invalid_input")
		}
	})
}

func TestUpdateAccount(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		a := join(t, s, "ada@example.com", "first")
		other := family(a.ID, "second", 0)
		if err := begin(s, other); err != nil {
			t.Fatal(err)
		}
		want := a
		want.Name, want.Settings, want.Role, want.State = "Augusta", json.RawMessage(`{}`), ident.Admin, account.Suspended
		want.Version, want.UpdatedAt = 2, noon(time.Hour)
		got, err := s.UpdateAccount(t.Context(), a.ID, func(was account.Account, hash string) (account.Account, string, event.Change, error) {
			if !reflect.DeepEqual(was, a) || hash != "$argon2id$of ada@example.com" {
				t.Errorf("edit sees %+v %q", was, hash)
			}
			return want, "new hash", happened("account.updated", string(a.ID), time.Hour), nil
		}, account.Along{End: &account.EndSessions{Keep: other.ID, Why: "password_changed", At: noon(time.Hour)}})
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v %v", got, err)
		}
		found, hash, err := s.FindAccount(t.Context(), a.ID)
		if err != nil || hash != "new hash" || !reflect.DeepEqual(found, want) {
			t.Fatalf("stored %+v %q %v", found, hash, err)
		}
		live, _, err := s.ListSessions(t.Context(), a.ID, noon(time.Hour), "", 10)
		if err != nil || len(live) != 1 || live[0].ID != other.ID {
			t.Fatalf("live sessions %+v %v", live, err)
		}
		t.Run("a refusal leaves everything", func(t *testing.T) {
			before := settle[event.Seq](t)(s.Head(t.Context()))
			_, err := s.UpdateAccount(t.Context(), a.ID, func(a account.Account, _ string) (account.Account, string, event.Change, error) {
				a.Name = "nobody"
				return a, "", happened("account.updated", string(a.ID), 0), fault.New(fault.Stale, "test", "", "old")
			}, account.Along{End: &account.EndSessions{At: noon(time.Hour)}})
			refused(t, err, "stale_version")
			again, hash, err := s.FindAccount(t.Context(), a.ID)
			if err != nil || hash != "new hash" || again.Name != "Augusta" || settle[event.Seq](t)(s.Head(t.Context())) != before {
				t.Fatalf("%+v %q %v", again, hash, err)
			}
		})
		_, err = s.UpdateAccount(t.Context(), "usr_nobody", nil, account.Along{})
		refused(t, err, "not_found")
	})
}

func TestSessionsRoundTrip(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		a := join(t, s, "ada@example.com", "")
		want := family(a.ID, "t1", 0)
		want.PreviousHash, want.PreviousUntil, want.Successor, want.Generation = []byte("t0"), noon(time.Second), []byte("sealed"), 7
		want.Device, want.Address = "Gerät 🦉", "2001:db8::1"
		if err := begin(s, want); err != nil {
			t.Fatal(err)
		}
		if got := stored(t, s, want.ID).Family; !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v; want %+v", got, want)
		}
		live := settle[account.Live](t)(s.FindLive(t.Context(), want.ID, noon(time.Minute)))
		if live != (account.Live{Session: want.ID, Account: a.ID, Name: a.Name, Role: a.Role, State: a.State, Tenant: a.Tenant,
			LastUsedAt: want.LastUsedAt, ExpiresAt: want.ExpiresAt}) {
			t.Fatalf("live %+v", live)
		}
		for name, c := range map[string]struct {
			id ident.SessionID
			at time.Time
		}{"unknown": {"ses_none", noon(0)}, "idle too long": {want.ID, want.ExpiresAt}} {
			t.Run(name, func(t *testing.T) {
				_, err := s.FindLive(t.Context(), c.id, c.at)
				refused(t, err, "not_found")
			})
		}
		t.Run("the same token twice", func(t *testing.T) {
			twin := family(a.ID, "t1", 0)
			err := begin(s, twin)
			refused(t, err, "duplicate")
		})
		t.Run("of an account that is not there", func(t *testing.T) {
			orphan := family("usr_nobody", "t9", 0)
			err := begin(s, orphan)
			refused(t, err, "not_found")
		})
		t.Run("use is noted, and never goes back", func(t *testing.T) {
			for _, use := range []account.Touch{{Session: want.ID, Address: "192.0.2.7", At: noon(time.Hour)},
				{Session: want.ID, Address: "192.0.2.8", At: noon(time.Minute)}} {
				if err := s.TouchSessions(t.Context(), []account.Touch{use, {Session: "ses_none", At: noon(0)}}); err != nil {
					t.Fatal(err)
				}
			}
			if got := stored(t, s, want.ID); !got.LastUsedAt.Equal(noon(time.Hour)) || got.Address != "192.0.2.7" {
				t.Fatalf("%+v", got)
			}
		})
	})
}

func TestSessionsArePagedAndEnd(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		a, b := join(t, s, "ada@example.com", ""), join(t, s, "bob@example.com", "of bob")
		var want []ident.SessionID
		for i := range 5 {
			f := family(a.ID, fmt.Sprint("t", i), 0)
			if err := begin(s, f); err != nil {
				t.Fatal(err)
			}
			want = append([]ident.SessionID{f.ID}, want...)
		}
		list := func(of account.Account) []ident.SessionID {
			t.Helper()
			var got []ident.SessionID
			for cursor := ""; ; {
				page, next, err := s.ListSessions(t.Context(), of.ID, noon(time.Hour), cursor, 2)
				if err != nil {
					t.Fatal(err)
				}
				for _, v := range page {
					got = append(got, v.ID)
				}
				if cursor = next; next == "" {
					return got
				}
			}
		}
		if got := list(a); !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		err := s.EndSession(t.Context(), b.ID, want[0], "signed_out", happened("session.ended", string(want[0]), time.Hour))
		refused(t, err, "not_found") // somebody else's
		if err := s.EndSession(t.Context(), a.ID, want[0], "signed_out", happened("session.ended", string(want[0]), time.Hour)); err != nil {
			t.Fatal(err)
		}
		err = s.EndSession(t.Context(), a.ID, want[0], "signed_out", happened("session.ended", string(want[0]), time.Hour))
		refused(t, err, "not_found") // ended already
		if got := list(a); !slices.Equal(got, want[1:]) {
			t.Fatalf("after one ended: %v", got)
		}
		if err := s.EndSessions(t.Context(), a.ID, account.EndSessions{Keep: want[2], Why: "elsewhere", At: noon(time.Hour)},
			happened("session.ended", string(a.ID), time.Hour)); err != nil {
			t.Fatal(err)
		}
		if got := list(a); !slices.Equal(got, want[2:3]) {
			t.Fatalf("after all but one ended: %v", got)
		}
		if got := list(b); len(got) != 1 {
			t.Fatalf("the neighbour has %v", got)
		}
		entries, _, err := s.Trail().Entries(t.Context(), audit.Filter{Action: "session.ended"}, "", 10)
		if err != nil || len(entries) != 2 {
			t.Fatalf("%d entries for two changes, %v", len(entries), err)
		}
	})
}

// rotateTo replaces the current token, as a refresh does.
func rotateTo(next string, after time.Duration) func(account.Family, account.Account, account.Use) (account.Family, event.Change, error) {
	return func(f account.Family, _ account.Account, use account.Use) (account.Family, event.Change, error) {
		if use == account.UseCurrent {
			f.PreviousHash, f.CurrentHash, f.Successor = f.CurrentHash, []byte(next), []byte("sealed "+next)
			f.PreviousUntil, f.LastUsedAt, f.ExpiresAt = noon(after+10*time.Second), noon(after), noon(after+14*24*time.Hour)
			f.Generation++
			f.Device, f.Address = "another", "192.0.2.99"
		}
		return f, event.Change{}, nil
	}
}

func TestRotate(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		a := join(t, s, "ada@example.com", "t1")
		seen := func(token string) (got account.Use, f account.Family) {
			t.Helper()
			f, owner, err := s.Rotate(t.Context(), []byte(token), func(f account.Family, a account.Account, u account.Use) (account.Family, event.Change, error) {
				got = u
				return f, event.Change{}, nil
			})
			if err != nil || owner.ID != a.ID || f.Account != a.ID {
				t.Fatalf("%s: %+v of %s, %v", token, f, owner.ID, err)
			}
			return got, f
		}
		if u, f := seen("t1"); u != account.UseCurrent || f.Generation != 1 {
			t.Fatalf("t1 at first: use %d of %+v", u, f)
		}
		made, _, err := s.Rotate(t.Context(), []byte("t1"), rotateTo("t2", time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		u, f := seen("t2")
		if u != account.UseCurrent || !reflect.DeepEqual(f, made) || f.Generation != 2 || f.Address != "192.0.2.99" {
			t.Fatalf("t2: use %d of %+v, made %+v", u, f, made)
		}
		if u, f := seen("t1"); u != account.UsePrevious || string(f.Successor) != "sealed t2" {
			t.Fatalf("t1 after one rotation: use %d of %+v", u, f)
		}
		if _, _, err := s.Rotate(t.Context(), []byte("t2"), rotateTo("t3", 2*time.Minute)); err != nil {
			t.Fatal(err)
		}
		for token, want := range map[string]account.Use{"t1": account.UseSpent, "t2": account.UsePrevious, "t3": account.UseCurrent} {
			if u, _ := seen(token); u != want {
				t.Errorf("%s: use %d, want %d", token, u, want)
			}
		}
		_, _, err = s.Rotate(t.Context(), []byte("never"), rotateTo("x", 0))
		refused(t, err, "token_invalid")
		if !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("class of %v", err)
		}
		t.Run("a judgement can end the session", func(t *testing.T) {
			_, _, err := s.Rotate(t.Context(), []byte("t1"), func(f account.Family, _ account.Account, _ account.Use) (account.Family, event.Change, error) {
				at := noon(time.Hour)
				f.RevokedAt, f.RevokedWhy, f.Successor = &at, "reused", nil
				return f, happened("session.reused", string(f.ID), time.Hour), nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, f := seen("t3"); f.RevokedAt == nil || !f.RevokedAt.Equal(noon(time.Hour)) || f.RevokedWhy != "reused" || f.Successor != nil {
				t.Fatalf("%+v", f)
			}
			_, err = s.FindLive(t.Context(), f.ID, noon(time.Hour))
			refused(t, err, "not_found")
		})
	})
}

func TestRotationHasOneWinner(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		join(t, s, "ada@example.com", "g0 r0")
		winner := "g0 r0"
		for round := 1; round <= 20; round++ {
			token := []byte(winner)
			const racers = 8
			got := make([]string, racers)
			var wg sync.WaitGroup
			for i := range racers {
				wg.Go(func() {
					f, _, err := s.Rotate(t.Context(), token, rotateTo(fmt.Sprintf("g%d r%d", round, i), time.Duration(round)*time.Minute))
					if err != nil {
						t.Error(err)
					}
					got[i] = string(f.CurrentHash) + "|" + string(f.Successor)
				})
			}
			wg.Wait()
			for _, g := range got {
				if g != got[0] {
					t.Fatalf("round %d: %v", round, got)
				}
			}
			winner, _, _ = strings.Cut(got[0], "|")
			if bytes.Equal([]byte(winner), token) {
				t.Fatalf("round %d rotated nothing", round)
			}
		}
	})
}

func TestSweeps(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		a := join(t, s, "ada@example.com", "t1")
		if _, _, err := s.Rotate(t.Context(), []byte("t1"), rotateTo("t2", 0)); err != nil {
			t.Fatal(err)
		}
		late := family(a.ID, "later", 24*time.Hour)
		if err := begin(s, late); err != nil {
			t.Fatal(err)
		}
		early, _, err := s.ListSessions(t.Context(), a.ID, noon(0), "", 10)
		if err != nil || len(early) != 2 {
			t.Fatalf("%+v %v", early, err)
		}
		before := stored(t, s, early[1].ID)
		for _, c := range []struct {
			after time.Duration
			kept  string
		}{{time.Second, "sealed t2"}, {11 * time.Second, ""}} {
			if n := settle[int64](t)(s.SweepSessions(t.Context(), noon(c.after), 0)); n != 0 {
				t.Fatalf("%d sessions swept too early", n)
			}
			if got := stored(t, s, before.ID); string(got.Successor) != c.kept || string(got.CurrentHash) != "t2" {
				t.Fatalf("after %s: %+v", c.after, got)
			}
		}
		if n := settle[int64](t)(s.SweepSessions(t.Context(), noon(14*24*time.Hour+time.Second), time.Hour)); n != 0 {
			t.Fatalf("%d sessions swept that were to be kept for an hour", n)
		}
		if n := settle[int64](t)(s.SweepSessions(t.Context(), noon(14*24*time.Hour+time.Second), 0)); n != 1 {
			t.Fatalf("%d sessions swept", n)
		}
		for _, token := range []string{"t1", "t2"} { // the spent ones go with their session
			_, _, err := s.Rotate(t.Context(), []byte(token), rotateTo("x", 0))
			refused(t, err, "token_invalid")
		}
		live, _, err := s.ListSessions(t.Context(), a.ID, noon(14*24*time.Hour+time.Second), "", 10)
		if err != nil || len(live) != 1 || live[0].ID != late.ID {
			t.Fatalf("live %+v %v", live, err)
		}
	})
}

func TestAttempts(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		pair, address, none := []byte("pair"), []byte("address"), []byte("none")
		a := join(t, s, "Ada@example.com", "t1")
		for i := range 3 {
			if err := s.Refuse(t.Context(), account.Refusal{Actor: ident.Actor{Address: "192.0.2.1"}, Action: "session.refused",
				At: noon(time.Duration(i) * time.Minute), Subject: string(a.ID), Failures: [][]byte{pair, address}}); err != nil {
				t.Fatal(err)
			}
		}
		find := func(email string, since time.Duration, subjects ...[]byte) account.Attempt {
			t.Helper()
			return settle[account.Attempt](t)(s.FindAttempt(t.Context(), email, subjects, noon(since)))
		}
		want := account.Attempt{Account: a, Hash: "$argon2id$of Ada@example.com", Counts: []int{2, 0, 2},
			Oldest: []time.Time{noon(time.Minute), {}, noon(time.Minute)}, Addresses: []string{"192.0.2.1"}}
		if got := find("ada@example.com", 0, pair, none, address); !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v, want %+v", got, want)
		}
		t.Run("nobody has no account, but failures", func(t *testing.T) {
			want := account.Attempt{Counts: []int{3}, Oldest: []time.Time{noon(0)}}
			if got := find("eve@example.com", -time.Second, address); !reflect.DeepEqual(got, want) {
				t.Fatalf("%+v, want %+v", got, want)
			}
		})
		t.Run("a copied token vouches for no address", func(t *testing.T) {
			if _, _, err := s.Rotate(t.Context(), []byte("t1"), func(f account.Family, _ account.Account, _ account.Use) (account.Family, event.Change, error) {
				at := noon(time.Hour)
				f.RevokedAt, f.RevokedWhy = &at, "reused"
				return f, event.Change{}, nil
			}); err != nil {
				t.Fatal(err)
			}
			if got := find("ada@example.com", 0); len(got.Addresses) != 0 {
				t.Fatalf("%+v", got)
			}
		})
		t.Run("signing in forgets the pair", func(t *testing.T) {
			if _, err := s.UpdateAccount(t.Context(), a.ID, func(a account.Account, hash string) (account.Account, string, event.Change, error) {
				return a, hash, event.Change{}, nil
			}, account.Along{Forget: pair}); err != nil {
				t.Fatal(err)
			}
			if got := find("ada@example.com", -time.Hour, pair, address); !slices.Equal(got.Counts, []int{0, 3}) {
				t.Fatalf("%+v", got)
			}
		})
		t.Run("old ones are swept", func(t *testing.T) {
			if n := settle[int64](t)(s.SweepFailures(t.Context(), noon(time.Minute))); n != 2 {
				t.Fatalf("%d swept", n)
			}
			if got := find("ada@example.com", -time.Hour, address); got.Counts[0] != 1 {
				t.Fatalf("%+v", got)
			}
		})
	})
}

func TestHints(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		hint := func(id ident.TenantID, after, last time.Duration) {
			t.Helper()
			if err := s.Hint(t.Context(), id, noon(after), noon(last)); err != nil {
				t.Fatal(err)
			}
		}
		due := func(after time.Duration, want ...ident.TenantID) {
			t.Helper()
			got, err := s.Due(t.Context(), noon(after), 10)
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("due at +%s: %v %v, want %v", after, got, err, want)
			}
		}
		settled := func(id ident.TenantID, now time.Duration, next time.Time) {
			t.Helper()
			if err := s.Settle(t.Context(), id, noon(now), next); err != nil {
				t.Fatal(err)
			}
		}
		hint("ten_a", 10*time.Second, 10*time.Second)
		hint("ten_a", 20*time.Second, 20*time.Second) // the earlier one stays
		hint("ten_b", 30*time.Second, 30*time.Second)
		hint("ten_b", 5*time.Second, 5*time.Second)
		due(4 * time.Second)
		due(10*time.Second, "ten_b", "ten_a") // oldest first
		if got, err := s.Due(t.Context(), noon(time.Hour), 1); err != nil || len(got) != 1 {
			t.Fatalf("limited: %v %v", got, err)
		}
		settled("ten_b", 30*time.Second, time.Time{})
		due(time.Hour, "ten_a")
		settled("ten_a", 20*time.Second, noon(time.Minute)) // replaced by a later one
		due(59 * time.Second)
		due(60*time.Second, "ten_a")
		// What was due later than the settled moment was put there meanwhile by somebody else.
		settled("ten_a", 30*time.Second, time.Time{})
		due(60*time.Second, "ten_a")
		settled("ten_a", 30*time.Second, noon(2*time.Minute))
		due(60*time.Second, "ten_a")
		settled("ten_c", 0, noon(time.Second)) // there was none
		due(time.Second, "ten_c")
		// What may be due later than the settled moment is looked at then.
		hint("ten_d", 5*time.Second, 8*time.Second)
		hint("ten_d", 6*time.Second, 9*time.Second)
		hint("ten_d", 7*time.Second, 7*time.Second)
		settled("ten_d", 5*time.Second, time.Time{})
		due(8*time.Second, "ten_c")
		due(9*time.Second, "ten_c", "ten_d")
		settled("ten_d", 9*time.Second, time.Time{})
		due(time.Hour, "ten_c", "ten_a")
		// A server of the version before knows of no last one.
		if err := s.db.Write(t.Context(), func(tx *Tx) error {
			return tx.Commit(func(b *Batch) { b.Exec(`INSERT INTO hints (tenant_id, due_at) VALUES ('ten_e', 0)`) })
		}); err != nil {
			t.Fatal(err)
		}
		due(0, "ten_e")
		settled("ten_e", 0, time.Time{})
		due(0)
	})
}

func TestTenantsAreListed(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		var want, got []ident.TenantID
		for i := range 5 {
			want = append(want, join(t, s, fmt.Sprintf("u%d@example.com", i), "").Tenant)
		}
		for after := ident.TenantID(""); ; {
			page := settle[[]tenant.Tenant](t)(s.ListTenants(t.Context(), after, 2))
			if len(page) == 0 {
				break
			}
			for _, v := range page {
				got = append(got, v.ID)
			}
			after = got[len(got)-1]
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

func TestMasterLogAndTrail(t *testing.T) {
	for _, open := range []func(*testing.T) *DB{onSQLite, onPostgres} {
		db := open(t)
		if _, err := Migrate(t.Context(), db, Master); err != nil {
			t.Fatal(err)
		}
		var heads []event.Seq
		s := NewMasterStore(db, func(seq event.Seq) { heads = append(heads, seq) })
		a := join(t, s, "ada@example.com", "")
		list := settle[[]event.Event](t)(s.Since(t.Context(), 0, 10))
		if len(list) != 1 || list[0].Type != "account.registered" || list[0].Subject != string(a.ID) || !slices.Equal(heads, []event.Seq{1}) {
			t.Fatalf("events %+v, announced %v", list, heads)
		}
		detail := json.RawMessage(`{"reason":"bad_credentials"}`)
		if err := s.Refuse(t.Context(), account.Refusal{Actor: ident.Actor{Address: "192.0.2.1"}, At: noon(0), Action: "session.refused",
			Subject: string(a.ID), Detail: detail}); err != nil {
			t.Fatal(err)
		}
		entries, _, err := s.Trail().Entries(t.Context(), audit.Filter{Account: a.ID, Outcome: audit.Refused}, "", 10)
		if err != nil || len(entries) != 1 || entries[0].Action != "session.refused" || string(entries[0].Detail) != string(detail) {
			t.Fatalf("entries %+v %v", entries, err)
		}
		if err := s.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		over, cancel := context.WithCancel(t.Context())
		cancel()
		refused(t, s.Ping(over), "canceled")
	}
}

// What somebody changed of either database while it was copied stays when the tenant is switched.
func TestASwitchKeepsWhatWasEditedMeanwhile(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		a := join(t, s, "ada@example.com", "")
		told := func(kind string) event.Change {
			ch := event.NewChange(ident.System(""), noon(time.Minute))
			ch.Add(kind, string(a.Tenant), map[string]any{})
			return ch
		}
		from, to := tenant.First(a.Tenant), ident.New[ident.DatabaseID]()
		d := tenant.Database{Tenant: a.Tenant, Name: "Mine", State: tenant.Filling, Version: 1, CreatedAt: noon(0), UpdatedAt: noon(0),
			Placement: tenant.Placement{Database: to, Kind: tenant.External, SealedPassword: []byte("old"),
				Address: tenant.Address{Host: "db.example.org", Port: 5432, Database: "d", Username: "ada", TLS: tenant.TLSDisable}}}
		if err := s.InsertDatabase(t.Context(), d, told("database.created")); err != nil {
			t.Fatal(err)
		}
		j := job.Job{ID: ident.New[ident.JobID](), Kind: "database.move", Account: a.ID, Tenant: a.Tenant, State: job.Queued, Input: []byte(`{}`), CreatedAt: noon(0)}
		if err := s.InsertJob(t.Context(), j, told("database.activation_started")); err != nil {
			t.Fatal(err)
		}
		want := map[ident.DatabaseID]tenant.Database{}
		for _, id := range []ident.DatabaseID{from, to} {
			edited := settle[tenant.Database](t)(s.UpdateDatabase(t.Context(), a.Tenant, id, nil,
				func(_ tenant.Tenant, d tenant.Database) (tenant.Database, event.Change, error) {
					d.Name, d.Version, d.Placement.Address.Username = "Renamed "+d.Name, d.Version+1, "countess"
					return d, told("database.updated"), nil
				}))
			sealed := edited.Placement
			sealed.WrappedKey, sealed.SealedPassword = []byte("sealed anew"), []byte("sealed anew")
			if done := settle[bool](t)(s.Reseal(t.Context(), edited.Placement, sealed)); !done {
				t.Fatal("not sealed anew")
			}
			edited.Placement = sealed
			edited.Version++
			want[id] = edited
		}
		ch := told("database.activated")
		late := j
		late.Node = "whose lease was over"
		if switched := settle[bool](t)(s.SwitchDatabase(t.Context(), a.Tenant, late, from, to, tenant.Facts{}, nil, ch)); switched {
			t.Fatal("switched by somebody whose job it is not any more")
		}
		if put := settle[bool](t)(s.PutFact(t.Context(), TakingOver(to), nil, ch.At)); !put {
			t.Fatal("no fact")
		}
		if switched := settle[bool](t)(s.SwitchDatabase(t.Context(), a.Tenant, j, from, to, tenant.Facts{SchemaVersion: 7, SizeBytes: 4096}, []byte("another"), ch)); !switched {
			t.Fatal("not switched")
		}
		if _, err := s.FindFact(t.Context(), TakingOver(to)); !fault.Is(err, fault.NotFound) {
			t.Errorf("it may still be taken back: %v", err)
		}
		was, is := want[from], want[to]
		was.State, was.UpdatedAt = tenant.Original, ch.At
		is.Placement.WrappedKey = []byte("another")
		is.State, is.UpdatedAt, is.Facts = tenant.InUse, ch.At, tenant.Facts{SchemaVersion: 7, SizeBytes: 4096}
		for _, want := range []tenant.Database{was, is} {
			got := settle[tenant.Database](t)(s.FindDatabase(t.Context(), a.Tenant, want.ID()))
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		}
	})
}

// A database that is registered with the job that fills it is there with that job, or not at all.
func TestADatabaseAndItsJobAreOne(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		a := join(t, s, "ada@example.com", "")
		start := func(decide func(tenant.Tenant) error) (tenant.Database, job.Job, error) {
			d := tenant.Database{Tenant: a.Tenant, Name: "Hosted", State: tenant.Empty, Version: 1, CreatedAt: noon(0), UpdatedAt: noon(0),
				Placement: tenant.Placement{Database: ident.New[ident.DatabaseID](), Kind: tenant.SQLite}}
			j := job.Job{ID: ident.New[ident.JobID](), Kind: "database.move", Account: a.ID, Tenant: a.Tenant, State: job.Queued, Input: []byte(`{}`), CreatedAt: noon(0)}
			return d, j, s.InsertDatabaseFor(t.Context(), d, happened("database.created", string(d.ID()), 0), j,
				func(seen tenant.Tenant) (event.Change, error) {
					return happened("database.activation_started", string(d.ID()), 0), decide(seen)
				})
		}
		before := settle[event.Seq](t)(s.Head(t.Context()))
		wantLeft := func(databases int, events event.Seq) {
			t.Helper()
			if list := settle[[]tenant.Database](t)(s.ListDatabases(t.Context(), a.Tenant)); len(list) != databases {
				t.Errorf("%d databases, want %d", len(list), databases)
			}
			if head := settle[event.Seq](t)(s.Head(t.Context())); head != before+events {
				t.Errorf("%d events, want %d", head-before, events)
			}
			if news := settle[[]News](t)(s.News(t.Context(), noon(time.Hour), 10)); len(news) != int(events) {
				t.Errorf("%d events to be told, want %d", len(news), events)
			}
		}
		_, _, err := start(func(seen tenant.Tenant) error {
			if seen.ID != a.Tenant || seen.Job != "" {
				t.Errorf("seen %+v", seen)
			}
			return fault.New(fault.Conflict, "test", "tenant_suspended", "no")
		})
		refused(t, err, "tenant_suspended")
		wantLeft(1, 0)
		agree := func(tenant.Tenant) error { return nil }
		d, j, err := start(agree)
		if err != nil {
			t.Fatal(err)
		}
		wantLeft(2, 2)
		if got := settle[tenant.Database](t)(s.FindDatabase(t.Context(), a.Tenant, d.ID())); !cmp.Equal(d, got) {
			t.Error(cmp.Diff(d, got))
		}
		if of := settle[tenant.Tenant](t)(s.FindTenant(t.Context(), a.Tenant)); of.Job != j.ID {
			t.Errorf("its job is %q", of.Job)
		}
		list := settle[[]event.Event](t)(s.Since(t.Context(), before, 10))
		if len(list) != 2 || list[0].Type != "database.created" || list[1].Type != "database.activation_started" {
			t.Errorf("%+v", list)
		}
		// Each is an entry of the trail.
		entries, _, err := s.Trail().Entries(t.Context(), audit.Filter{Subject: string(d.ID())}, "", 10)
		if err != nil || len(entries) != 2 {
			t.Errorf("%+v, %v", entries, err)
		}
		_, _, err = start(agree)
		refused(t, err, "tenant_busy")
		wantLeft(2, 2)
	})
}
