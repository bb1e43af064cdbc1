package claude_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"claude-memory-backend/internal/claude"
	"claude-memory-backend/internal/claude/emulator"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func sdkDir(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/anthropics/anthropic-sdk-go").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

const (
	refuse = emulator.Refuse
	spoken = "a text of some length that is spoken in pieces"
)

// Every fault of the emulator, once and then health, and for ever.
func TestFaults(t *testing.T) {
	for _, tc := range []struct {
		claim   string
		fault   emulator.Fault
		heals   bool   // one failure, then an answer: the caller sees nothing of it
		code    string // when it stays; empty: an answer all the same
		calls   int    // when it stays
		partial bool
	}{
		{"401", emulator.Fault{Kind: refuse, Status: 401}, false, conversation.CodeProviderAuth, 1, false},
		{"402", emulator.Fault{Kind: refuse, Status: 402}, false, conversation.CodeProviderLimited, 1, false},
		{"403", emulator.Fault{Kind: refuse, Status: 403}, false, conversation.CodeProviderAuth, 1, false},
		{"404", emulator.Fault{Kind: refuse, Status: 404}, false, conversation.CodeProviderRejected, 1, false},
		{"400", emulator.Fault{Kind: refuse, Status: 400, Message: "no"}, false, conversation.CodeProviderRejected, 1, false},
		{"400 too long", emulator.Fault{Kind: refuse, Status: 400, Message: "prompt is too long: 200001 tokens > 200000 maximum"}, false, conversation.CodeProviderTooLong, 1, false},
		{"400 out of credit", emulator.Fault{Kind: refuse, Status: 400, Message: "Your credit balance is too low to access the API"}, false, conversation.CodeProviderLimited, 1, false},
		{"413", emulator.Fault{Kind: refuse, Status: 413}, false, conversation.CodeProviderTooLong, 1, false},
		{"408", emulator.Fault{Kind: refuse, Status: 408}, true, conversation.CodeProviderFailed, 3, false},
		{"409", emulator.Fault{Kind: refuse, Status: 409}, true, conversation.CodeProviderFailed, 3, false},
		{"429 with retry-after", emulator.Fault{Kind: refuse, Status: 429, RetryAfter: "7"}, true, conversation.CodeProviderLimited, 3, false},
		{"429 without", emulator.Fault{Kind: refuse, Status: 429}, true, conversation.CodeProviderLimited, 3, false},
		{"429 spend limit", emulator.Fault{Kind: refuse, Status: 429, Details: []byte(`{"error_code":"enforced_spend_limit_reached"}`)}, false, conversation.CodeProviderLimited, 1, false},
		{"500", emulator.Fault{Kind: refuse, Status: 500}, true, conversation.CodeProviderFailed, 3, false},
		{"503 of a gateway", emulator.Fault{Kind: refuse, Status: 503}, true, conversation.CodeProviderFailed, 3, false},
		{"504", emulator.Fault{Kind: refuse, Status: 504}, true, conversation.CodeProviderFailed, 3, false},
		{"529", emulator.Fault{Kind: refuse, Status: 529}, true, conversation.CodeProviderOverloaded, 3, false},
		{"500 that forbids a retry", emulator.Fault{Kind: refuse, Status: 500, ShouldRetry: "false"}, false, conversation.CodeProviderFailed, 1, false},
		{"400 that wants a retry", emulator.Fault{Kind: refuse, Status: 400, ShouldRetry: "true"}, true, conversation.CodeProviderRejected, 3, false},
		{"overloaded before any text", emulator.Fault{Kind: emulator.ErrorEvent}, true, conversation.CodeProviderOverloaded, 3, false},
		{"overloaded before the start", emulator.Fault{Kind: emulator.ErrorEvent, AfterPieces: -1}, true, conversation.CodeProviderOverloaded, 3, false},
		{"overloaded within the text", emulator.Fault{Kind: emulator.ErrorEvent, AfterPieces: 3}, false, conversation.CodeProviderOverloaded, 1, true},
		{"rate limit within the text", emulator.Fault{Kind: emulator.ErrorEvent, Type: "rate_limit_error", AfterPieces: 3}, false, conversation.CodeProviderLimited, 1, true},
		{"unknown error within the text", emulator.Fault{Kind: emulator.ErrorEvent, Type: "gremlin_error", AfterPieces: 3}, false, conversation.CodeProviderFailed, 1, true},
		{"cut before any text", emulator.Fault{Kind: emulator.Cut}, true, conversation.CodeProviderCut, 3, false},
		{"cut within the text", emulator.Fault{Kind: emulator.Cut, AfterPieces: 3}, false, conversation.CodeProviderCut, 1, true},
		{"cut after the last word", emulator.Fault{Kind: emulator.Cut, AfterPieces: 1000}, false, conversation.CodeProviderCut, 1, true},
		{"half an event", emulator.Fault{Kind: emulator.HalfEvent, AfterPieces: 3}, false, conversation.CodeProviderCut, 1, true},
		{"no last blank line", emulator.Fault{Kind: emulator.NoLastBlank, AfterPieces: -9}, true, "", 1, false},
		{"reset before the head", emulator.Fault{Kind: emulator.Reset, AfterPieces: -1}, true, conversation.CodeProviderUnreachable, 3, false},
		{"reset within the text", emulator.Fault{Kind: emulator.Reset, AfterPieces: 3}, false, conversation.CodeProviderCut, 1, true},
		{"not JSON", emulator.Fault{Kind: emulator.NotJSON, AfterPieces: 3}, false, conversation.CodeProviderMalformed, 1, true},
		{"a web page", emulator.Fault{Kind: emulator.WebPage}, false, conversation.CodeProviderMalformed, 1, false},
		{"unknown events", emulator.Fault{Kind: emulator.Unknown, AfterPieces: -9}, true, "", 1, false},
	} {
		t.Run(tc.claim, func(t *testing.T) {
			if tc.heals {
				t.Run("once", func(t *testing.T) {
					s, url := serve(t, emulator.Options{})
					s.Push(emulator.Script{Text: spoken, Fault: tc.fault})
					s.Push(emulator.Script{Text: spoken})
					d := direct(t, url, nil)
					waits := d.RecordWaits()
					var h heard
					a, err := d.Answer(context.Background(), question("hi"), h.sink)
					if err != nil || a.Text != spoken || h.text() != spoken {
						t.Fatalf("%q, heard %q, %v", a.Text, h.text(), err)
					}
					if least, err := strconv.Atoi(tc.fault.RetryAfter); err == nil && (*waits)[0] < time.Duration(least)*time.Second {
						t.Fatalf("waited %v", *waits)
					}
				})
			}
			s, url := serve(t, emulator.Options{})
			s.Push(emulator.Script{Text: spoken, Times: -1, Fault: tc.fault})
			d := direct(t, url, nil)
			d.RecordWaits()
			var h heard
			a, err := d.Answer(context.Background(), question("hi"), h.sink)
			if n := len(s.Journal()); n != tc.calls {
				t.Fatalf("%d calls", n)
			}
			if a.Text != h.text() {
				t.Fatalf("answer %q, heard %q", a.Text, h.text())
			}
			if tc.code == "" {
				if err != nil || a.Text != spoken {
					t.Fatalf("%+v %v", a, err)
				}
				return
			}
			e := wantFault(t, err, tc.code)
			if tc.partial != (a.Text != "") || tc.partial && (len(a.Blocks) != 1 || !strings.HasPrefix(spoken, a.Text)) {
				t.Fatalf("partial: %+v", a)
			}
			if tc.fault.Kind == refuse && (!strings.Contains(e.Message, strconv.Itoa(tc.fault.Status)) || !strings.Contains(e.Message, "req_011")) {
				t.Fatalf("no help for support in %q", e.Message)
			}
			if want := tc.fault.RetryAfter; want != "" && e.After.Seconds() != 7 {
				t.Fatalf("after %v", e.After)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	d := direct(t, "http://"+address, nil)
	waits := d.RecordWaits()
	_, err = d.Answer(context.Background(), question("hi"), nil)
	e := wantFault(t, err, conversation.CodeProviderUnreachable)
	if e.Class != fault.Unavailable || len(*waits) != 2 {
		t.Fatalf("%v, waits %v", e, *waits)
	}
}

func TestRetryHints(t *testing.T) {
	for _, tc := range []struct {
		claim string
		fault emulator.Fault
		wait  time.Duration // 0: gives up
		after time.Duration
	}{
		{"seconds", emulator.Fault{Status: 429, RetryAfter: "7"}, 7*time.Second + 250*time.Millisecond, 7 * time.Second},
		{"milliseconds win", emulator.Fault{Status: 429, RetryAfter: "7", RetryAfterMs: "1500"}, 1750 * time.Millisecond, 1500 * time.Millisecond},
		{"a date", emulator.Fault{Status: 529, RetryAfter: "Sun, 01 Nov 2026 12:00:10 GMT"}, 10*time.Second + 250*time.Millisecond, 10 * time.Second},
		{"above the cap is given up", emulator.Fault{Status: 429, RetryAfter: "21"}, 0, 21 * time.Second},
		{"nonsense is no hint", emulator.Fault{Status: 429, RetryAfter: "soon"}, 250 * time.Millisecond, 0},
		{"negative is no hint", emulator.Fault{Status: 429, RetryAfter: "-5"}, 250 * time.Millisecond, 0},
		{"NaN is no hint", emulator.Fault{Status: 429, RetryAfter: "NaN"}, 250 * time.Millisecond, 0},
	} {
		t.Run(tc.claim, func(t *testing.T) {
			s, url := serve(t, emulator.Options{})
			tc.fault.Kind = refuse
			s.Push(emulator.Script{Times: -1, Fault: tc.fault})
			d := direct(t, url, func(c *claude.DirectConfig) {
				c.MaxRetries = 1
				c.Now = func() time.Time { return time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC) }
			})
			waits := d.RecordWaits()
			_, err := d.Answer(context.Background(), question("hi"), nil)
			e, ok := errors.AsType[*fault.Error](err)
			if !ok || e.After != tc.after {
				t.Fatalf("%+v", err)
			}
			if tc.wait == 0 && len(*waits) != 0 || tc.wait > 0 && (len(*waits) != 1 || (*waits)[0] != tc.wait) {
				t.Fatalf("waits %v", *waits)
			}
		})
	}
	claude.Timeless(t, "past the deadline is given up at once", func(t *testing.T) {
		s, d := timeless(t, emulator.Options{}, func(c *claude.DirectConfig) { c.Timeout = 10 * time.Second })
		s.Push(emulator.Script{Times: -1, Fault: emulator.Fault{Kind: refuse, Status: 429, RetryAfter: "15"}})
		begin := time.Now()
		_, err := d.Answer(context.Background(), question("hi"), nil)
		if e := wantFault(t, err, conversation.CodeProviderLimited); e.After != 15*time.Second || time.Since(begin) > 0 {
			t.Fatalf("%+v", e)
		}
	})
}

func TestOutageCausesNoStorm(t *testing.T) {
	s, url := serve(t, emulator.Options{})
	s.Push(emulator.Script{Times: -1, Fault: emulator.Fault{Kind: refuse, Status: 529}})
	budget := claude.NewRetryBudget()
	const calls = 100
	var all sync.WaitGroup
	for range 4 { // four providers of one process
		d := direct(t, url, func(c *claude.DirectConfig) { c.Budget, c.BreakerAfter = budget, -1 })
		d.RecordWaits()
		all.Go(func() {
			for range calls / 4 {
				_, err := d.Answer(context.Background(), question("hi"), nil)
				wantCodeOnly(t, err, conversation.CodeProviderOverloaded)
			}
		})
	}
	all.Wait()
	if n := len(s.Journal()); n > calls*11/10 {
		t.Fatalf("%d requests for %d calls", n, calls)
	}
}

func wantCodeOnly(t *testing.T, err error, code string) {
	if fault.CodeOf(err) != code {
		t.Errorf("want %s, have %v", code, err)
	}
}

func TestBreaker(t *testing.T) {
	s, url := serve(t, emulator.Options{})
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	d := direct(t, url, func(c *claude.DirectConfig) {
		c.MaxRetries = -1
		c.Now = func() time.Time { return now }
	})
	fail := func(n int) {
		t.Helper()
		s.Forget()
		s.Push(emulator.Script{Times: -1, Fault: emulator.Fault{Kind: refuse, Status: 529}})
		for range n {
			_, err := d.Answer(context.Background(), question("hi"), nil)
			wantCode(t, err, conversation.CodeProviderOverloaded)
		}
	}
	fail(30)
	if n := len(s.Journal()); n != 10 {
		t.Fatalf("%d calls before it opened", n)
	}
	now = now.Add(16 * time.Second)
	fail(5)
	if n := len(s.Journal()); n != 1 {
		t.Fatalf("%d probes", n)
	}
	now = now.Add(16 * time.Second)
	s.Forget()
	for range 3 {
		if _, err := d.Answer(context.Background(), question("hi"), nil); err != nil {
			t.Fatal(err)
		}
	}
	fail(9)
	if n := len(s.Journal()); n != 9 {
		t.Fatal("success did not close it")
	}
}

// timeless is an emulator, and a provider that reaches it, in a bubble.
func timeless(t *testing.T, o emulator.Options, change func(*claude.DirectConfig)) (*emulator.Server, *claude.Direct) {
	t.Helper()
	s := emulator.New(o)
	client := claude.InMemory(t, s.Handler())
	return s, direct(t, "http://provider.test", func(c *claude.DirectConfig) {
		c.HTTPClient = client
		if change != nil {
			change(c)
		}
	})
}

func TestClocks(t *testing.T) {
	claude.Timeless(t, "silence before the first word", func(t *testing.T) {
		s, d := timeless(t, emulator.Options{}, func(c *claude.DirectConfig) { c.IdleTimeout = 50 * time.Millisecond })
		s.Push(emulator.Script{Times: -1, Fault: emulator.Fault{Kind: emulator.Stall}})
		a, err := d.Answer(context.Background(), question("hi"), nil)
		wantCode(t, err, conversation.CodeProviderTimeout)
		if a.Text != "" || len(s.Journal()) != 1 {
			t.Fatalf("%+v", a)
		}
	})
	claude.Timeless(t, "silence within the text keeps it", func(t *testing.T) {
		s, d := timeless(t, emulator.Options{}, func(c *claude.DirectConfig) { c.IdleTimeout = 50 * time.Millisecond })
		s.Push(emulator.Script{Text: spoken, Fault: emulator.Fault{Kind: emulator.Stall, AfterPieces: 4}})
		var h heard
		a, err := d.Answer(context.Background(), question("hi"), h.sink)
		wantCode(t, err, conversation.CodeProviderTimeout)
		if a.Text == "" || a.Text != h.text() {
			t.Fatalf("%+v", a)
		}
	})
	claude.Timeless(t, "a slow but steady answer is no silence", func(t *testing.T) {
		const idle = 25 * time.Millisecond
		_, d := timeless(t, emulator.Options{PieceDelay: 20 * time.Millisecond, PieceRunes: 20}, func(c *claude.DirectConfig) { c.IdleTimeout = idle })
		begin := time.Now()
		if _, err := d.Answer(context.Background(), question("hi"), nil); err != nil || time.Since(begin) < 2*idle {
			t.Fatalf("%v after %v", err, time.Since(begin))
		}
	})
	claude.Timeless(t, "the whole answer has a deadline", func(t *testing.T) {
		_, d := timeless(t, emulator.Options{PieceDelay: 20 * time.Millisecond}, func(c *claude.DirectConfig) { c.Timeout = 100 * time.Millisecond })
		a, err := d.Answer(context.Background(), question("hi"), nil)
		wantCode(t, err, conversation.CodeProviderTimeout)
		if a.Text == "" {
			t.Fatal("nothing kept")
		}
	})
	claude.Timeless(t, "the caller's deadline is the caller's error", func(t *testing.T) {
		_, d := timeless(t, emulator.Options{PieceDelay: 20 * time.Millisecond}, nil)
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		a, err := d.Answer(ctx, question("hi"), nil)
		if _, ours := errors.AsType[*fault.Error](err); ours || !errors.Is(err, context.DeadlineExceeded) || a.Text == "" {
			t.Fatalf("%+v %v", a, err)
		}
	})
}

// The end of a body is waited for only a moment, so this is about times, too.
func TestConnectionIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials := 0
		_, d := timeless(t, emulator.Options{}, func(c *claude.DirectConfig) {
			transport, ok := c.HTTPClient.Transport.(*http.Transport)
			if !ok {
				t.Fatal("no transport that dials")
			}
			dial := transport.DialContext
			transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				dials++
				return dial(ctx, network, address)
			}
		})
		for range 5 {
			if _, err := d.Answer(context.Background(), question("hi"), nil); err != nil {
				t.Fatal(err)
			}
		}
		if dials != 1 {
			t.Fatalf("%d connections for 5 answers", dials)
		}
	})
}

func TestParallelAnswers(t *testing.T) {
	_, url := serve(t, emulator.Options{Limits: emulator.NoLimits()})
	d := direct(t, url, nil)
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			words := strings.Repeat("word"+strconv.Itoa(i)+" ", 30)
			var h heard
			a, err := d.Answer(context.Background(), question(words), h.sink)
			if err != nil || a.Text != emulator.Echo(words) || h.text() != a.Text {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	all.Wait()
}
