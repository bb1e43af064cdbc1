package main

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/job"
)

// TestFollowingAServerThatIsGone: a command that left its job to a server ends when that server has died, and waits while
// it is there, also when it has not begun.
func TestFollowingAServerThatIsGone(t *testing.T) {
	k := keySite{t, []string{"STORAGE_PATH=" + t.TempDir(), "JWT_SECRET=Zq7Lr1Tn9Yb3Hd6Kf5Gs0Pcx8Jq2vWm4"}}
	server := k.opened(oldKey, "", owner)
	s, err := loadSettings(k.with(oldKey, ""), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, state := range []job.State{job.Queued, job.Running} {
		var said bytes.Buffer
		p := &program{settings: s, stderr: &said}
		if state == job.Running {
			server = k.opened(oldKey, "", owner)
		}
		err = withTenants(t.Context(), p, func(w *whole) error {
			j, err := newTenants(server, slog.New(slog.DiscardHandler), event.NewLocalBus(), nil, "server").StartRewrap(t.Context(), asOperator())
			if err != nil {
				return err
			}
			if state == job.Running { // it was at work, and its lease is over
				c := job.Claim{Kinds: []string{j.Kind}, Only: j.ID, Node: "server", Now: time.Now(), Lease: time.Now().Add(-time.Second)}
				if _, ok, err := server.store.ClaimJob(t.Context(), c); err != nil || !ok {
					t.Fatal(ok, err)
				}
			}
			w.absence = 0
			asked, ask := 0, w.working
			w.working = func() bool {
				there := ask()
				if asked++; asked == 2 { // it was found there twice
					if err := server.close(); err != nil {
						t.Error(err)
					}
				}
				return there
			}
			_, err = w.follow(t.Context(), p, j)
			if asked != 3 {
				t.Errorf("%s: it was asked %d times whether a server works", state, asked)
			}
			return err
		})
		if !errors.Is(err, errNobodyWorks) {
			t.Errorf("%s: %v", state, err)
		}
	}
}
