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

// TestWebhookCalls goes through all calls; the house holds each answer against the document.
func TestWebhookCalls(t *testing.T) {
	h := newHouse(t)
	s, broken := newSink(t, nil), newSink(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not today", 500) })
	do := func(method, path, body string) answer {
		t.Helper()
		return h.do(call{as: "ada", method: method, path: "/api/v1/webhooks" + path, body: body})
	}
	project := h.make("ada", "/api/v1/projects", `{"name":"P"}`)
	do("POST", "", `{"name":"W","url":"`+s.URL+`","events":["nothing"]}`).is(400, "invalid_input")
	do("POST", "", `{"name":"W","url":"`+s.URL+`","events":["*"],"project_id":"prj_nonsense"}`).is(400, "invalid_input")
	do("POST", "", `{"name":"W","url":"http://10.0.0.1/","events":["*"]}`).is(400, "invalid_input")
	once := call{as: "ada", method: "POST", path: "/api/v1/webhooks", header: map[string]string{"Idempotency-Key": "k"},
		body: `{"name":"W","url":"` + broken.URL + `","events":["conversation.*"],"project_id":"` + project + `","ordered":true}`}
	made := h.do(once).is(201)
	if again := h.do(once).is(201); again.Text != made.Text || again.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("a repeat: %s", again.Text)
	}
	id := made.text("id")
	do("GET", "/"+id, "").is(200)
	if a := do("GET", "?project_id="+project, "").is(200); a.text("data", "0", "id") != id {
		t.Errorf("%s", a.Text)
	}
	h.do(call{as: "ada", method: "PATCH", path: "/api/v1/webhooks/" + id, body: `{"name":"V"}`, header: map[string]string{"If-Match": `"9"`}}).is(412)
	if a := do("PATCH", "/"+id, `{"name":"V","description":"d","project_id":null}`).is(200); a.text("name") != "V" || a.at("project_id") != nil {
		t.Errorf("%s", a.Text)
	}
	do("PATCH", "/"+id, `{"state":"disabled"}`).is(400)
	h.make("ada", "/api/v1/conversations", `{"title":"T"}`)
	<-broken.got
	list := do("GET", "/"+id+"/deliveries?state=pending&type=conversation.created", "").is(200)
	delivery := list.text("data", "0", "id")
	do("GET", "/"+id+"/deliveries/"+delivery, "").is(200)
	do("GET", "/"+id+"/deliveries?cursor=nonsense", "").is(400)
	if a := do("POST", "/"+id+"/test", "").is(200); a.text("state") != "failed" || a.text("attempt_list", "0", "answer") != "not today\n" {
		t.Errorf("%s", a.Text)
	}
	if a := do("POST", "/"+id+"/rotate-secret", "").is(200); a.text("secret") == made.text("secret") || a.text("previous_secret_until") == "" {
		t.Errorf("%s", a.Text)
	}
	do("POST", "/"+id+"/deliveries/"+delivery+"/redeliver", "").is(202)
	do("POST", "/"+id+"/redeliver", `{"from":"2020-01-01T00:00:00Z","to":"2120-01-01T00:00:00Z"}`).is(202)
	do("POST", "/"+id+"/redeliver", `{"from":"2020-01-01T00:00:00Z","to":"2120-01-01T00:00:00Z","state":"missed"}`).is(202)
	do("POST", "/"+id+"/redeliver", `{"from":"2120-01-01T00:00:00Z","to":"2020-01-01T00:00:00Z"}`).is(400)
	do("PATCH", "/"+id, `{"state":"paused"}`).is(200)
	do("POST", "/"+id+"/deliveries/"+delivery+"/redeliver", "").is(409, "webhook_not_active")
	do("DELETE", "/"+id, "").is(204)
	do("GET", "/"+id+"/deliveries", "").is(404)
	// Every call that changes something left its line.
	trail := h.do(call{as: "ada", method: "GET", path: "/api/v1/audit?action=webhook.*"}).is(200)
	for _, action := range []string{"webhook.created", "webhook.updated", "webhook.tested", "webhook.secret_rotated", "webhook.redelivered", "webhook.deleted"} {
		if !strings.Contains(trail.Text, action) {
			t.Errorf("the trail has no %s", action)
		}
	}
	for _, secret := range []string{made.text("secret"), broken.URL} {
		if strings.Contains(trail.Text, secret) || strings.Contains(h.log.String(), secret) {
			t.Error("the trail or the log has what it must not")
		}
	}
}
