package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/claude/emulator"
	"claude-memory-backend/internal/pgtest"
)

// The crash harness kills the real server (SIGKILL) at random moments under load, starts it again on what it left, and
// compares that with a ledger kept out here: what was acknowledged is there, what was repeated is there once, what was
// being written is marked, and can be gone on with. crashworld_test.go does the work.
//
// CRASH_ROUNDS says how often (make crash ROUNDS=50); CRASH_SEED repeats the moments of an earlier run.

const (
	crashRounds = 8 // without CRASH_ROUNDS
	// crashTail is how much of an answer, in time, a crash may take from what the client had seen.
	crashTail = 500 * time.Millisecond
	// crashFlush is how long a piece of it waits at most for the flush that takes it.
	crashFlush = 250 * time.Millisecond
	// crashMarked is how long after a start a turn may still look as if somebody wrote it.
	crashMarked = 10 * time.Second
)

func TestCrash(t *testing.T) {
	binary := binary(t)
	rounds := crashRounds
	if testing.Short() {
		rounds = 2
	}
	rounds = fromEnv(t, "CRASH_ROUNDS", rounds)
	seed := fromEnv(t, "CRASH_SEED", int(time.Now().UnixNano()%1e9))
	for _, e := range []struct {
		name string
		env  func() []string
		// settle is how many kills happen before the turns are looked at. On PostgreSQL another process might still run
		// them, so that they are marked when their lease is over; waiting after every kill would take all the time.
		settle int
	}{
		{"sqlite", func() []string { return nil }, 1},
		{"postgres", func() []string {
			return []string{"MASTER_DATABASE_URL=" + pgtest.URL(t), "TENANT_DATABASE_URLS=" + pgtest.URL(t)}
		}, 10},
	} {
		t.Run(e.name, func(t *testing.T) {
			w := newWorld(t, binary, seed, e.env()...)
			for n := 1; n <= rounds; n++ {
				w.round()
				if n%e.settle == 0 || n == rounds {
					w.settle()
				}
			}
			w.finish()
			t.Logf("seed %d: %s", seed, w.summary())
			for _, p := range w.problems {
				t.Error(p)
			}
			if w.acked < 10*rounds || w.marked < rounds || w.texts == 0 {
				t.Errorf("too little happened to prove anything: %s", w.summary())
			}
		})
	}
}

// A server that acknowledges before it commits must not pass.
func TestCrashFindsLoss(t *testing.T) {
	w := newWorld(t, buildServer(t, "crashcontrol"), fromEnv(t, "CRASH_SEED", 1))
	for range 3 {
		w.round()
	}
	w.finish()
	t.Log(w.summary())
	lost := 0
	for _, p := range w.problems {
		if strings.HasPrefix(p, "lost: ") {
			lost++
		}
	}
	if lost == 0 {
		t.Errorf("the harness found no loss where messages are acknowledged before they are stored; it found %q", w.problems)
	}
	if w.acked == 0 {
		t.Error("nothing was acknowledged")
	}
}

func fromEnv(t *testing.T, name string, fallback int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return fallback
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s must be a number from 1", name)
	}
	return n
}

func buildServer(t *testing.T, tags ...string) string {
	t.Helper()
	binary, err := lab.Build(t.Context(), t.TempDir(), tags...)
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// numbered is an answer that shows where it was cut: w000001 w000002 …
func numbered(words int) string {
	var b strings.Builder
	for n := 1; n <= words; n++ {
		fmt.Fprintf(&b, "w%06d ", n)
	}
	return b.String()
}

// The model says long under load, and after a crash just as much as ends the answer.
var (
	crashLong = emulator.Script{Times: -1, Text: numbered(3000), PieceDelay: 5 * time.Millisecond}
	crashRest = emulator.Script{Times: -1, Text: "and that was the rest."}
)
