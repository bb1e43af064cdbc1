package httpapi

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	hooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// sink is somebody's server that gets deliveries.
type sink struct {
	*httptest.Server
	got chan received
}

type received struct {
	header http.Header
	body   []byte
}

// newSink answers with answer; nil: 204.
func newSink(t testing.TB, answer http.HandlerFunc) *sink {
	t.Helper()
	s := &sink{got: make(chan received, 1000)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		s.got <- received{r.Header, body}
		if answer != nil {
			answer(w, r)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(s.Close)
	return s
}

// message is what a delivery says.
type message struct {
	Type string
	Data struct {
		ID, Subject, Type string
		Seq               int64
		Data              map[string]any
	}
}

func (r received) read(t testing.TB) (m message) {
	t.Helper()
	if err := json.Unmarshal(r.body, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestWebhooksComeSigned(t *testing.T) {
	h := newHouse(t)
	s := newSink(t, nil)
	a := h.do(call{as: "ada", method: "POST", path: "/api/v1/webhooks", body: `{"name":"Log","url":"` + s.URL + `/in?x=1","events":["project.*"]}`}).is(201)
	secret, id := a.text("secret"), a.text("id")
	if !strings.HasPrefix(secret, "whsec_") {
		t.Fatalf("%s", a.Text)
	}
	project := h.make("ada", "/api/v1/projects", `{"name":"Harbour"}`)
	got := <-s.got
	m := got.read(t)
	if m.Type != "project.created" || m.Data.Subject != project || m.Data.Seq == 0 || got.header.Get("webhook-id") != m.Data.ID {
		t.Errorf("%s %v", got.body, got.header)
	}
	v, err := hooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Verify(got.body, got.header); err != nil {
		t.Error(err)
	}
	if a := h.do(call{as: "ada", method: "GET", path: "/api/v1/webhooks/" + id}).is(200); strings.Contains(a.Text, "whsec_") {
		t.Error("the secret is shown again")
	}
}
