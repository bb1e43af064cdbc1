package account_test

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claude-memory-backend/internal/account"
)

func TestTicketsWorkOnce(t *testing.T) {
	onBoth(t, nil, func(t *testing.T, h *house) {
		g := h.register("ada@example.org")
		actor, until := h.actor(g), h.clock.Now().Add(7*time.Minute)
		ticket := func() account.Ticket {
			t.Helper()
			made, err := h.Ticket(actor, until)
			must(t, err)
			return made
		}
		first := ticket()
		if strings.Contains(string(first), string(actor.Account)) || !strings.HasPrefix(string(first), "cmt_") {
			t.Errorf("%s says whose it is", first)
		}
		who, err := h.Redeem(t.Context(), first, home)
		must(t, err)
		if who.Actor.Account != actor.Account || who.Actor.Session != actor.Session || who.Tenant == "" || !who.ExpiresAt.Equal(until) {
			t.Errorf("%+v", who)
		}
		other := h.another(nil)
		for _, s := range []*account.Service{h.Service, other} {
			_, err = s.Redeem(t.Context(), first, home)
			refused(t, err, "ticket_invalid")
		}

		// Of many that try at once, on two nodes, one gets in.
		contested := ticket()
		var in atomic.Int32
		var all sync.WaitGroup
		for i := range 16 {
			all.Go(func() {
				if _, err := []*account.Service{h.Service, other}[i%2].Redeem(t.Context(), contested, home); err == nil {
					in.Add(1)
				}
			})
		}
		all.Wait()
		if in.Load() != 1 {
			t.Errorf("%d got in", in.Load())
		}

		for name, bad := range map[string]account.Ticket{
			"nothing":         "",
			"no ticket":       "cmt_x",
			"a token":         account.Ticket(g.AccessToken),
			"a changed one":   ticket()[:40] + "A" + ticket()[41:],
			"a spelling":      first + "\n",
			"one with spaces": " " + ticket(),
		} {
			_, err := h.Redeem(t.Context(), bad, home)
			if err == nil {
				t.Errorf("%s got in", name)
				continue
			}
			refused(t, err, "ticket_invalid")
		}

		late := ticket()
		h.clock.Pass(account.TicketLife)
		_, err = h.Redeem(t.Context(), late, home)
		refused(t, err, "ticket_invalid")

		after := ticket()
		must(t, h.Alive(t.Context(), actor))
		must(t, h.Logout(t.Context(), actor))
		_, err = h.Redeem(t.Context(), after, home)
		refused(t, err, "session_ended")
		refused(t, h.Alive(t.Context(), actor), "session_ended")
		refused(t, other.Alive(t.Context(), actor), "session_ended")

		// What was noted of used tickets goes when nobody could use them any more.
		h.clock.Pass(time.Hour)
		if n, err := h.store.SweepOnces(t.Context(), h.clock.Now()); err != nil || n < 2 {
			t.Errorf("%d swept, %v", n, err)
		}
	})
}
