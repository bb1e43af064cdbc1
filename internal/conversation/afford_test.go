package conversation

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/ident"
)

type place struct{ near bool }

func (place) Retain() func()                        { return func() {} }
func (place) Hint(context.Context, time.Time) error { return nil }
func (place) Spool() Spool                          { return nil }
func (p place) Near() bool                          { return p.near }
func (place) Callback(Turn, time.Time) string       { return "" }

// Searches on this machine's processors are free for a while, and then held to their share of one.
func TestSearchesAreHeldToTheirShare(t *testing.T) {
	const each, share = 50 * time.Millisecond, 0.1
	for name, c := range map[string]struct {
		near  bool
		share float64
		least time.Duration // that the searches take; without a bound, their own time
	}{
		"near":    {true, share, time.Duration(float64(2*time.Second-searchBurst-each) / share)},
		"far":     {false, share, 2 * time.Second},
		"unbound": {true, 0, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := New(nil, &Engine{Config: Config{SearchShare: c.share}}, nil, "", place{c.near})
				begun := time.Now()
				for range 2 * time.Second / each {
					charge, err := s.afford(t.Context(), s.budget)
					if err != nil {
						t.Fatal(err)
					}
					time.Sleep(each)
					charge()
				}
				if took := time.Since(begun); took < c.least || took > c.least+c.least/3 {
					t.Errorf("it took %v, not %v", took, c.least)
				}
				if c.near && c.share > 0 {
					ctx, cancel := context.WithCancel(t.Context())
					cancel()
					if _, err := s.afford(ctx, s.budget); err == nil {
						t.Error("who has gone was waited with")
					}
				}
			})
		})
	}
}

// slowIndex takes its time, and says how many ask it at once.
type slowIndex struct {
	Store
	takes     time.Duration
	now, most atomic.Int64
}

func (x *slowIndex) Ask(context.Context, Question) (Findings, error) {
	x.most.Store(max(x.most.Load(), x.now.Add(1)))
	time.Sleep(x.takes)
	x.now.Add(-1)
	return Findings{Frequencies: Frequencies{Clauses: make([]int64, 1)}}, nil
}

// A member who searches without a pause holds up neither the owner nor another member, and all members together take one place
// beside the owner's.
func TestGuestsHaveASearchShareOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &slowIndex{takes: 400 * time.Millisecond}
		s := New(x, &Engine{Config: Config{SearchShare: 0.1}}, nil, "usr_owner", place{near: true})
		in := SearchInput{Text: "lighthouse", Project: "prj_p"}
		search := func(of *Service, as ident.AccountID) time.Duration {
			begun := time.Now()
			if _, _, err := of.Search(t.Context(), ident.Actor{Account: as}, in); err != nil {
				t.Error(err)
			}
			return time.Since(begun)
		}
		visit := func(as ident.AccountID) *Service { // each request is a service of its own
			return s.For(access.Pass{Account: as, Role: access.Viewer, Project: "prj_p"}, x)
		}
		ctx, stop := context.WithCancel(t.Context())
		for range 8 {
			go func() {
				for ctx.Err() == nil {
					_, _, _ = visit("usr_greedy").Search(ctx, ident.Actor{Account: "usr_greedy"}, in)
				}
			}()
		}
		time.Sleep(time.Minute) // it has long spent what it had
		if took := search(s, "usr_owner"); took > 500*time.Millisecond {
			t.Errorf("the owner waited %v", took)
		}
		if took := search(visit("usr_modest"), "usr_modest"); took > 900*time.Millisecond {
			t.Errorf("another member waited %v", took)
		}
		if n := x.most.Load(); n > 2 {
			t.Errorf("%d searched at once", n)
		}
		stop()
		synctest.Wait()
		time.Sleep(time.Hour)
		search(visit("usr_modest"), "usr_modest")
		if n := len(s.guests.all); n != 1 {
			t.Errorf("%d guests are remembered", n)
		}
	})
}
