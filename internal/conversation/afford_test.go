package conversation

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
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
					charge, err := s.afford(t.Context())
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
					if _, err := s.afford(ctx); err == nil {
						t.Error("who has gone was waited with")
					}
				}
			})
		})
	}
}
