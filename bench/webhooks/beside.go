package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"time"

	"claude-memory-backend/bench/lab"
)

// warmUp is how many events come before those that are measured: after them every bad endpoint has shown what it is.
const warmUp = 20

// beside measures how long deliveries to a healthy endpoint take: in an account that has no other one, in one that has eight
// more which are healthy, and in one that has all the bad ones. Their events take turns, one at a time, so that whatever else the
// machine does is in all of them.
func (b *bench) beside(ctx context.Context, url string) error {
	came := make(chan time.Duration, 1)
	healthy := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		now := time.Now()
		var m struct{ Timestamp time.Time }
		if err == nil && json.Unmarshal(body, &m) == nil {
			came <- now.Sub(m.Timestamp)
		}
	}))
	defer healthy.Close()
	bad := httptest.NewServer(http.HandlerFunc(misbehave))
	defer bad.Close()
	defer bad.CloseClientConnections() // or Close waits for those that hang
	ends := []string{bad.URL + "/slow", bad.URL + "/500", bad.URL + "/429", bad.URL + "/410", bad.URL + "/redirect", bad.URL + "/huge",
		"http://127.0.0.1:1/", "http://nowhere.invalid/"}
	other := httptest.NewServer(http.HandlerFunc(misbehave)) // it does not
	defer other.Close()
	var people [3]*lab.Client
	for i := range people {
		c := lab.Dial(url, 1)
		defer c.Close()
		people[i] = c
		if err := c.Register(ctx, fmt.Sprintf("b%d-%d@example.org", time.Now().UnixNano(), i)); err != nil {
			return err
		}
		list := []string{healthy.URL}
		for _, end := range ends {
			switch i {
			case 1:
				list = append(list, other.URL)
			case 2:
				list = append(list, end)
			}
		}
		for _, end := range list {
			if err := c.Post(ctx, "/webhooks", map[string]any{"name": "bench", "url": end, "events": []string{"project.created"}}, nil); err != nil {
				return err
			}
		}
	}
	var after [3][]time.Duration
	for n := range warmUp + b.besides {
		for i, c := range people {
			if err := c.Post(ctx, "/projects", map[string]any{"name": "bench"}, nil); err != nil {
				return err
			}
			select {
			case took := <-came:
				if n >= warmUp {
					after[i] = append(after[i], took)
				}
			case <-time.After(time.Minute):
				return fmt.Errorf("event %d did not come", n)
			}
		}
	}
	fmt.Println("| | deliveries | median | 95 % | 99 % | longest |")
	fmt.Println("|---|--:|--:|--:|--:|--:|")
	at := func(i int, part float64) time.Duration { return quantile(after[i], part) }
	for i, name := range []string{"a healthy endpoint alone", "beside eight healthy ones", "beside eight bad ones"} {
		slices.Sort(after[i])
		fmt.Printf("| %s | %d | %s | %s | %s | %s |\n", name, len(after[i]), text(at(i, 0.5)), text(at(i, 0.95)), text(at(i, 0.99)), text(at(i, 1)))
	}
	for i, name := range []string{"bad ones to alone", "bad ones to healthy ones"} {
		ratio := func(part float64) float64 { return float64(at(2, part)) / float64(at(i, part)) }
		fmt.Printf("| %s | | %.2f | %.2f | %.2f | %.2f |\n", name, ratio(0.5), ratio(0.95), ratio(0.99), ratio(1))
	}
	return nil
}

// misbehave answers as its path says.
func misbehave(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // what is left of it is nobody's loss
	switch r.URL.Path {
	case "/slow":
		<-r.Context().Done()
	case "/500":
		w.WriteHeader(http.StatusInternalServerError)
	case "/429":
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
	case "/410":
		w.WriteHeader(http.StatusGone)
	case "/redirect":
		http.Redirect(w, r, "http://169.254.169.254/", http.StatusTemporaryRedirect)
	case "/huge":
		for range 1_000 {
			if _, err := io.WriteString(w, strings.Repeat("x", 10_000)); err != nil {
				return
			}
		}
	}
}
