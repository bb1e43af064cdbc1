package webhook_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/webhook"
)

// TestTestsAreBounded: an account can have a few at once, and so can all of them together; whoever asks for more is told at once.
func TestTestsAreBounded(t *testing.T) {
	for name, config := range map[string]func(c *webhook.Config){
		"of one account": func(c *webhook.Config) { c.Tests = 2 },
		"of all":         func(c *webhook.Config) { c.AtOnce = 8 }, // a quarter of them
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, config)
			other := w.neighbour()
			came, hang := make(chan struct{}), make(chan struct{})
			var calls atomic.Int32
			s := newSink(t, func(http.ResponseWriter, *http.Request) {
				if calls.Add(1) <= 2 {
					came <- struct{}{}
					<-hang
				}
			})
			i, theirs := w.hook(s.URL), other.hook(newSink(t, nil).URL)
			once := func(n int) *event.Once {
				return &event.Once{Scope: "s", Key: fmt.Sprint(n), Fingerprint: []byte("p"), ExpiresAt: time.Now().Add(time.Hour)}
			}
			var tests sync.WaitGroup
			for n := range 2 {
				tests.Go(func() {
					if d, err := w.Test(t.Context(), ada, i.Endpoint.ID, once(n)); err != nil || d.State != webhook.Succeeded {
						t.Errorf("%+v %v", d, err)
					}
				})
				<-came
			}
			_, err := w.Test(t.Context(), ada, i.Endpoint.ID, nil)
			if !fault.Is(err, fault.Throttled) || fault.CodeOf(err) != "too_many_tests" {
				t.Errorf("one more: %v", err)
			}
			if d, err := w.Test(t.Context(), ada, i.Endpoint.ID, once(0)); err != nil || d.State != webhook.Pending {
				t.Errorf("a repeat: %+v %v", d, err)
			}
			list, _, err := w.Deliveries(t.Context(), ada, i.Endpoint.ID, webhook.DeliveryQuery{Limit: 9})
			if err != nil || len(list) != 2 {
				t.Errorf("%d tests are known, %v", len(list), err)
			}
			_, err = other.Test(t.Context(), ada, theirs.Endpoint.ID, nil)
			if name == "of one account" && err != nil || name == "of all" && fault.CodeOf(err) != "too_many_tests" {
				t.Errorf("somebody else's: %v", err)
			}
			close(hang)
			tests.Wait()
			if _, err := w.Test(t.Context(), ada, i.Endpoint.ID, nil); err != nil {
				t.Errorf("after they ended: %v", err)
			}
		})
	}
}

// TestAConnectionThatWasKeptIsLost: the server closes it just when the next delivery comes. That is nobody's failure: the
// call is repeated on another connection, within the same attempt.
func TestAConnectionThatWasKeptIsLost(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ids := make(chan string, 10)
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer func() { _ = c.Close() }()
				r := bufio.NewReader(c)
				for answered := false; ; answered = true {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, req.Body)
					if ids <- req.Header.Get("webhook-id"); answered {
						return // the second one on a connection gets no answer
					}
					if _, there := req.Header["Idempotency-Key"]; there {
						t.Error("a header that is not ours was sent")
					}
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		w.d.Client.Close() // the connection that is kept
		served.Wait()
	})
	i := w.hook("http://" + l.Addr().String() + "/")
	came, lost := map[string]int{}, false
	for n := 0; !lost; n++ { // a connection is not kept whose request took long to be written, as on a busy machine
		if n == 100 {
			t.Fatal("no connection is kept")
		}
		w.happen(1, "")
		d := w.last(i)
		if d.State != webhook.Succeeded || d.Attempts != 1 || len(d.Tried) != 1 || d.Tried[0].Status != 200 {
			t.Fatalf("%+v", d)
		}
		for len(ids) > 0 {
			id := <-ids
			came[id]++
			lost = lost || came[id] == 2
		}
		if calls := came[string(d.Event)]; len(came) != n+1 || calls > 2 || calls == 2 != lost {
			t.Fatalf("%d calls for %s, of %v", calls, d.Event, came)
		}
	}
}

// TestAnAnswerThatIsCut: what counts is the status. A 2xx whose body breaks off is taken, as one is whose body nobody reads.
func TestAnAnswerThatIsCut(t *testing.T) {
	w := newWorld(t)
	i := w.hook(newSink(t, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(rw, "begun")
	}).URL)
	w.happen(1, "")
	if d := w.last(i); d.State != webhook.Succeeded || d.Tried[0].Status != 200 || d.Tried[0].Answer != "begun" {
		t.Errorf("%+v", d)
	}
}
