package audit_test

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// lines is a trail in memory, newest first; a cursor is the index of the last entry read.
type lines []audit.Entry

func (l lines) Append(context.Context, audit.Entry) error { return nil }

func (l lines) Entries(_ context.Context, _ audit.Filter, cursor string, limit int) ([]audit.Entry, string, error) {
	from := 0
	if cursor != "" {
		n, err := strconv.Atoi(cursor)
		if err != nil {
			return nil, "", err
		}
		from = n + 1
	}
	var out []audit.Entry
	for i := from; i < len(l) && len(out) < limit; i++ {
		e := l[i]
		e.Place = strconv.Itoa(i)
		out = append(out, e)
	}
	return out, "", nil
}

func TestTwoTrailsReadAsOne(t *testing.T) {
	owner := ident.New[ident.AccountID]()
	me := ident.Actor{Account: owner}
	rapid.Check(t, func(t *rapid.T) {
		trail := func(name string) (l lines) {
			at := time.Unix(1e9, 0)
			for i := range rapid.IntRange(0, 12).Draw(t, name) {
				at = at.Add(-time.Duration(rapid.IntRange(0, 3).Draw(t, "gap")) * time.Second)
				l = append(l, audit.Entry{At: at, Action: fmt.Sprint(name, i)})
			}
			return l
		}
		own, master := trail("own"), trail("master")
		s := audit.New(own, master, owner)
		limit := rapid.IntRange(1, 5).Draw(t, "limit")
		seen := map[string]bool{}
		cursor, last := "", time.Unix(2e9, 0)
		for {
			page, next, err := s.List(context.Background(), me, audit.Filter{}, cursor, limit)
			if err != nil || len(page) > limit {
				t.Fatalf("%d entries, %v", len(page), err)
			}
			for _, e := range page {
				if seen[e.Action] || e.At.After(last) {
					t.Fatalf("%s again or out of order", e.Action)
				}
				seen[e.Action], last = true, e.At
			}
			if next == "" {
				break
			}
			cursor = next
		}
		if len(seen) != len(own)+len(master) {
			t.Fatalf("%d of %d entries", len(seen), len(own)+len(master))
		}
	})
	s := audit.New(lines{}, lines{}, owner)
	if _, _, err := s.List(t.Context(), ident.Actor{Account: "usr_x"}, audit.Filter{}, "", 5); !fault.Is(err, fault.NotFound) {
		t.Errorf("a stranger: %v", err)
	}
	if _, _, err := s.List(t.Context(), me, audit.Filter{}, "?!", 5); !fault.Is(err, fault.Invalid) {
		t.Errorf("a bad cursor: %v", err)
	}
}

func TestDerive(t *testing.T) {
	actor := ident.Actor{Account: "usr_1", Name: "Ada", Address: "127.0.0.1", RequestID: "r"}
	c := event.NewChange(actor, time.Unix(1, 0))
	if _, ok := audit.Derive(c); ok {
		t.Error("no events, yet an entry")
	}
	c.Add("project.created", "prj_1", map[string]any{"a": 1})
	c.Add("project.updated", "prj_1", nil)
	e, ok := audit.Derive(c)
	if !ok || e.Action != "project.created" || e.ActorID != "usr_1" || e.Outcome != audit.Done || e.RequestID != "r" {
		t.Errorf("%+v", e)
	}
	c.Chief = 1
	if e, ok := audit.Derive(c); !ok || e.Action != "project.updated" || string(e.Detail) != "null" {
		t.Errorf("named by its second event: %+v", e)
	}
}
