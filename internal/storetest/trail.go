package storetest

import (
	"encoding/json"
	"fmt"
	"testing"

	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/ident"
)

func trail(t *testing.T, h Harness) {
	fill := func(t *testing.T) Stores {
		s := h.Tenant(t)
		for i, e := range []audit.Entry{
			{Action: "message.appended", Subject: "a", Outcome: audit.Done, ActorID: "usr_ada"},
			{Action: "message.removed", Subject: "b", Outcome: audit.Done, ActorID: "usr_bob"},
			{Action: "messages.x", Subject: "usr_ada", Outcome: audit.Refused, ActorID: "usr_bob"},
			{Action: "message", Subject: "a", Outcome: audit.Refused, ActorID: "usr_ada"},
			{Action: "message.appended", Subject: "usr_ada", Outcome: audit.Done, ActorID: "usr_ada"},
		} {
			e.ID, e.At = ident.New[ident.EntryID](), at(i/2)
			must(t, s.Trail.Append(t.Context(), e))
		}
		return s
	}
	read := func(t *testing.T, s Stores, f audit.Filter, limit int) []string {
		out := []string{}
		for cursor := ""; ; {
			list, next, err := s.Trail.Entries(t.Context(), f, cursor, limit)
			must(t, err)
			for _, e := range list {
				out = append(out, e.Action+" "+e.Subject)
			}
			if next == "" {
				return out
			}
			same(t, "page", len(list), limit)
			same(t, "place of the last", list[limit-1].Place, next)
			cursor = next
		}
	}
	t.Run("every field comes back", func(t *testing.T) {
		s := h.Tenant(t)
		want := audit.Refusal(ada, at(1), "session.refused", "usr_bob", json.RawMessage(`{"why": "no"}`))
		must(t, s.Trail.Append(t.Context(), want))
		list, _, err := s.Trail.Entries(t.Context(), audit.Filter{}, "", 5)
		must(t, err)
		list[0].Place = ""
		same(t, "entry", list, []audit.Entry{want})
	})
	t.Run("filters narrow and pages fit", func(t *testing.T) {
		s := fill(t)
		all := []string{"message.appended usr_ada", "message a", "messages.x usr_ada", "message.removed b", "message.appended a"}
		for _, c := range []struct {
			name string
			f    audit.Filter
			want []int
		}{
			{"none", audit.Filter{}, []int{0, 1, 2, 3, 4}},
			{"action", audit.Filter{Action: "message.appended"}, []int{0, 4}},
			{"prefix", audit.Filter{Action: "message.*"}, []int{0, 3, 4}},
			{"subject", audit.Filter{Subject: "a"}, []int{1, 4}},
			{"outcome", audit.Filter{Outcome: audit.Refused}, []int{1, 2}},
			{"from", audit.Filter{From: at(1)}, []int{0, 1, 2}},
			{"to", audit.Filter{To: at(1)}, []int{3, 4}},
			{"account", audit.Filter{Account: "usr_ada"}, []int{0, 1, 2, 4}},
			{"account and more", audit.Filter{Account: "usr_ada", Action: "message.*", Outcome: audit.Done}, []int{0, 4}},
		} {
			want := []string{}
			for _, i := range c.want {
				want = append(want, all[i])
			}
			for _, limit := range []int{1, 2, 10} {
				t.Run(fmt.Sprintf("%s in pages of %d", c.name, limit), func(t *testing.T) {
					same(t, "entries", read(t, s, c.f, limit), want)
				})
			}
		}
	})
	t.Run("a bad cursor is refused", func(t *testing.T) {
		s := fill(t)
		for _, cursor := range badCursors {
			_, _, err := s.Trail.Entries(t.Context(), audit.Filter{}, cursor, 1)
			wantField(t, err, "query.cursor")
		}
	})
}
