package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	hooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// Servers that webhooks lead to:
//
//	sink NAME STATUS                starts one that answers with the status; its address is in $NAME
//	delivered NAME TYPE [SECRET]    takes what came there until something of that type comes; with a secret, it must be signed
//	                                with it

// storySink is such a server.
type storySink struct {
	*httptest.Server
	came chan storyDelivery
}

type storyDelivery struct {
	http.Header
	body []byte
}

func cmdSink(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: sink NAME STATUS")
	}
	status, err := strconv.Atoi(args[1])
	ts.Check(err)
	s := &storySink{came: make(chan storyDelivery, 10_000)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		s.came <- storyDelivery{r.Header, body}
		w.WriteHeader(status)
	}))
	story := storyOf(ts)
	story.sinks[args[0]] = s
	story.t.Cleanup(s.Close)
	ts.Setenv(args[0], s.URL)
}

func cmdDelivered(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 && len(args) != 3 {
		ts.Fatalf("usage: delivered NAME TYPE [SECRET]")
	}
	s := storyOf(ts).sinks[args[0]]
	if s == nil {
		ts.Fatalf("there is no sink %s", args[0])
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		select {
		case d := <-s.came:
			var m struct {
				Type string
				Data struct{ ID string }
			}
			ts.Check(json.Unmarshal(d.body, &m))
			if m.Type != args[1] {
				continue
			}
			if m.Data.ID != d.Get("webhook-id") {
				ts.Fatalf("%s came as %s", d.body, d.Get("webhook-id"))
			}
			if len(args) == 3 {
				v, err := hooks.NewWebhook(args[2])
				ts.Check(err)
				ts.Check(v.Verify(d.body, d.Header))
			}
			return
		case <-late.C:
			ts.Fatalf("no %s came", args[1])
		}
	}
}
