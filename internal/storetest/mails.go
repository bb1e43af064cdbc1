package storetest

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/mail"
)

// Mails holds what keeps mails to its promises. Open returns a store with nothing in it.
func Mails(t *testing.T, open func(t *testing.T) mail.Store) {
	t.Helper()
	entry := func(name string, minutes int) mail.Entry {
		return mail.Entry{Name: name, Sealed: []byte{1, 0, 255}, CreatedAt: at(minutes)}
	}
	put := func(t *testing.T, s mail.Store, list ...mail.Entry) {
		t.Helper()
		for _, e := range list {
			must(t, s.PutMail(t.Context(), e))
		}
	}
	claim := func(t *testing.T, s mail.Store, minutes, limit int) []mail.Entry {
		t.Helper()
		list, err := s.ClaimMails(t.Context(), at(minutes), at(minutes+3), limit)
		must(t, err)
		return list
	}
	names := func(list []mail.Entry) []string {
		out := []string{}
		for _, e := range list {
			out = append(out, e.Name)
		}
		slices.Sort(out)
		return out
	}

	t.Run("a mail comes back as it was kept", func(t *testing.T) {
		s := open(t)
		e := entry("schlüssel 🦉", 0)
		e.Cause = "usr_ada"
		put(t, s, e)
		list := claim(t, s, 0, 9)
		e.Attempts = 1
		same(t, "mail", list, []mail.Entry{e})
	})
	t.Run("a claim lasts, and counts", func(t *testing.T) {
		s := open(t)
		put(t, s, entry("a", 0))
		same(t, "before it is due", names(claim(t, s, -1, 9)), []string{})
		same(t, "first", names(claim(t, s, 0, 9)), []string{"a"})
		same(t, "while it is claimed", names(claim(t, s, 2, 9)), []string{})
		again := claim(t, s, 3, 9)
		same(t, "after the lease", names(again), []string{"a"})
		same(t, "attempts", again[0].Attempts, 2)
	})
	t.Run("who lost a claim puts nothing off", func(t *testing.T) {
		s := open(t)
		put(t, s, entry("a", 0))
		lost := claim(t, s, 0, 9)[0]
		held := claim(t, s, 3, 9)[0]
		must(t, s.PutOffMail(t.Context(), lost, at(0)))
		same(t, "still claimed", names(claim(t, s, 4, 9)), []string{})
		must(t, s.PutOffMail(t.Context(), held, at(5)))
		same(t, "not yet", names(claim(t, s, 4, 9)), []string{})
		same(t, "due", names(claim(t, s, 5, 9)), []string{"a"})
	})
	t.Run("the longest due come first, and not all at once", func(t *testing.T) {
		s := open(t)
		put(t, s, entry("c", 2), entry("a", 0), entry("b", 1))
		same(t, "two", names(claim(t, s, 5, 2)), []string{"a", "b"})
		same(t, "the other", names(claim(t, s, 5, 2)), []string{"c"})
	})
	t.Run("one name is one mail, also after it was sent", func(t *testing.T) {
		s := open(t)
		put(t, s, entry("a", 0), entry("a", 1))
		same(t, "one", len(claim(t, s, 1, 9)), 1)
		must(t, s.SettleMail(t.Context(), "a", at(60)))
		put(t, s, entry("a", 2))
		same(t, "sent", len(claim(t, s, 59, 9)), 0)
		must(t, s.SweepMails(t.Context(), at(59)))
		put(t, s, entry("a", 2))
		same(t, "remembered", len(claim(t, s, 59, 9)), 0)
		must(t, s.SweepMails(t.Context(), at(60)))
		put(t, s, entry("a", 61))
		same(t, "forgotten", len(claim(t, s, 61, 9)), 1)
	})
	t.Run("sweeping takes nothing that waits", func(t *testing.T) {
		s := open(t)
		put(t, s, entry("a", 0))
		must(t, s.SweepMails(t.Context(), at(99999)))
		same(t, "waiting", len(claim(t, s, 1, 9)), 1)
	})
	t.Run("what is settled is not claimed, put off or brought back", func(t *testing.T) {
		s := open(t)
		put(t, s, entry("a", 0))
		e := claim(t, s, 0, 9)[0]
		must(t, s.SettleMail(t.Context(), "a", at(60)))
		must(t, s.PutOffMail(t.Context(), e, at(0)))
		same(t, "settled", len(claim(t, s, 90, 9)), 0)
	})
	t.Run("one account causes so many a day", func(t *testing.T) {
		s := open(t)
		caused := func(i, minutes int, who ident.AccountID) mail.Entry {
			e := entry(fmt.Sprint(who, i), minutes)
			e.Cause = who
			return e
		}
		for i := range mail.MostPerDay + 2 {
			put(t, s, caused(i, i, "usr_ada"))
		}
		put(t, s, caused(0, 0, "usr_bob"))
		for i := range mail.MostPerDay + 2 {
			put(t, s, caused(i, i, ""))
		}
		want := mail.MostPerDay + 1 + mail.MostPerDay + 2
		same(t, "mails", len(claim(t, s, 1000, 999)), want)
		// Those that were sent count too; the first has just become older than a day.
		must(t, s.SettleMail(t.Context(), "usr_ada1", at(999999)))
		put(t, s, caused(100, 24*60, "usr_ada"), caused(101, 24*60, "usr_ada"))
		next := names(claim(t, s, 24*60, 999))
		same(t, "the day after", []bool{slices.Contains(next, "usr_ada100"), slices.Contains(next, "usr_ada101")}, []bool{true, false})
	})
	t.Run("of many who claim at once one gets each", func(t *testing.T) {
		s := open(t)
		want := []string{}
		for i := range 20 {
			e := entry(fmt.Sprintf("%02d", i), 0)
			put(t, s, e)
			want = append(want, e.Name)
		}
		var mu sync.Mutex
		var got []mail.Entry
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				for {
					list, err := s.ClaimMails(t.Context(), at(1), at(4), 3)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					got = append(got, list...)
					done := len(got) >= len(want)
					mu.Unlock()
					if done {
						return
					}
				}
			})
		}
		group.Wait()
		same(t, "each once", names(got), want)
	})
}
