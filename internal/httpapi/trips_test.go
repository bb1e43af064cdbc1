package httpapi

import (
	"bufio"
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/pgtest/toxic"
)

// mostTrips is how often a request may wait for its tenant's database: with 150 ms to there, that is half a second.
const mostTrips = 3

// held is a model that says when it is asked, and answers when it is told to.
type held struct{ asked, answer chan struct{} }

func newHeld() *held { return &held{make(chan struct{}), make(chan struct{})} }

func (m *held) Answer(ctx context.Context, _ conversation.Prompt, _ func(string)) (conversation.Answer, error) {
	m.asked <- struct{}{}
	select {
	case <-m.answer:
		return conversation.Answer{StopReason: "end_turn"}, nil
	case <-ctx.Done():
		return conversation.Answer{}, ctx.Err()
	}
}

// far is a house whose tenant's database is behind something that counts, and as far away as the test says.
type far struct {
	*house
	model *held
	trips *pgtest.Trips
	link  *toxic.Link
	cold  int64 // what the first request after a pause takes besides its own
}

// openFar opens a house with ada's data in a PostgreSQL of the kind.
func openFar(t testing.TB, kind string) *far {
	t.Helper()
	counted, trips := pgtest.Counted(t, pgtest.URL(t))
	address, link := toxic.Slow(t, counted, 0)
	f := &far{model: newHeld(), trips: trips, link: link}
	if kind == "postgres" {
		f.house = newHouseAt(t, address, f.model)
		f.cold = 2 // the schema's version, and turns that nobody runs
		return f
	}
	f.house = newHouseAt(t, "", f.model)
	f.toOwn("ada", address)
	f.cold = 2 + 3 // the same, and the three of the sign-in
	return f
}

// ocean is what crossing one and coming back takes.
const ocean = 150 * time.Millisecond

// A database may be an ocean away, so what a request costs is how often it is asked. The figures here are what is needed;
// who adds one has to change them, and may not go above mostTrips.
func TestRequestsTakeFewRoundTrips(t *testing.T) {
	for _, kind := range []string{"postgres", "external"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			fewRoundTrips(t, openFar(t, kind))
		})
	}
}

func fewRoundTrips(t *testing.T, f *far) {
	h := f.house
	project := h.make("ada", "/api/v1/projects", `{"name":"Harbour"}`)
	conv := h.make("ada", "/api/v1/conversations", `{"title":"Night watch","project_id":"`+project+`"}`)
	spare, other := h.make("ada", "/api/v1/projects", `{"name":"Spare"}`), h.make("ada", "/api/v1/conversations", `{"title":"Other"}`)
	at, messages := "/api/v1/conversations/"+conv, "/api/v1/conversations/"+conv+"/messages"
	h.do(call{as: "ada", method: "POST", path: messages, body: `{"content":"the lighthouse is dark","reply":false}`}).is(201)
	turn := h.do(call{as: "ada", method: "POST", path: messages, body: `{"content":"#say a lamp is lit"}`}).is(201).text("turn", "id")
	once := map[string]string{"Idempotency-Key": "one"}
	key := call{method: "POST", path: messages, body: `{"content":"again","reply":false}`, header: once}
	keyProject := call{method: "POST", path: "/api/v1/projects", body: `{"name":"X"}`, header: once}
	keyConversation := call{method: "POST", path: "/api/v1/conversations", body: `{"title":"Y"}`, header: once}
	// What asks a model goes on after its answer, so the first of these two is not counted here: see answers.
	keyAsk := call{as: "ada", method: "POST", path: messages, body: `{"content":"#say a bell"}`,
		header: map[string]string{"Idempotency-Key": "two"}}
	keyRetry := call{as: "ada", method: "POST", path: at + "/turns/" + turn + "/retry", header: once}
	keyStream := keyAsk
	keyStream.body = `{"content":"#say a bell","stream":true}`
	keyStream.header = map[string]string{"Idempotency-Key": "three"}
	h.do(keyAsk).is(201)
	h.do(keyStream).is(200)
	h.do(keyRetry).is(201)
	f.trips.Count()
	for _, r := range []trip{
		{"list projects", 1, call{method: "GET", path: "/api/v1/projects"}, 200},
		{"read a project", 1, call{method: "GET", path: "/api/v1/projects/" + project}, 200},
		{"make a project", 1, call{method: "POST", path: "/api/v1/projects", body: `{"name":"X"}`}, 201},
		{"edit a project", 2, call{method: "PATCH", path: "/api/v1/projects/" + project, body: `{"name":"Port"}`}, 200},
		{"replace a project", 2, call{method: "PUT", path: "/api/v1/projects/" + project, body: `{"name":"Pier"}`}, 200},
		{"delete a project", 2, call{method: "DELETE", path: "/api/v1/projects/" + spare}, 204},
		{"list conversations", 1, call{method: "GET", path: "/api/v1/conversations"}, 200},
		{"list those of a project", 1, call{method: "GET", path: "/api/v1/conversations?project_id=" + project}, 200},
		{"read a conversation", 1, call{method: "GET", path: at}, 200},
		{"make a conversation", 1, call{method: "POST", path: "/api/v1/conversations", body: `{"title":"Y"}`}, 201},
		{"edit a conversation", 2, call{method: "PATCH", path: at, body: `{"description":"z"}`}, 200},
		{"replace a conversation", 2, call{method: "PUT", path: at, body: `{"title":"Night watch","project_id":"` + project + `"}`}, 200},
		{"delete a conversation", 2, call{method: "DELETE", path: "/api/v1/conversations/" + other}, 204},
		{"list messages", 1, call{method: "GET", path: messages}, 200},
		{"list all branches' messages", 1, call{method: "GET", path: messages + "?branch=all"}, 200},
		{"say something to nobody", 2, call{method: "POST", path: messages, body: `{"content":"a ship","reply":false}`}, 201},
		{"say something with a key", 2, key, 201},
		// One to meet the key, one to undo that transaction, one to read what has become of the first.
		{"say it again", 3, key, 201},
		{"ask again", 3, keyAsk, 201},
		{"ask again, for a stream", 3, keyStream, 200},
		{"ask for another answer again", 2, keyRetry, 201},
		{"make a project with a key", 1, keyProject, 201},
		{"make it again", 3, keyProject, 201},
		{"make a conversation with a key", 1, keyConversation, 201},
		{"make that again", 3, keyConversation, 201},
		{"read a turn", 1, call{method: "GET", path: at + "/turns/" + turn}, 200},
		{"follow one that has ended", 1, call{method: "GET", path: at + "/turns/" + turn + "/events"}, 200},
		{"search for a word", 1, call{method: "GET", path: "/api/v1/conversations/search?q=lighthouse"}, 200},
		{"search for several", 2, call{method: "GET", path: "/api/v1/conversations/search?q=lighthouse+lamp+whale"}, 200},
		{"search for any", 2, call{method: "GET", path: "/api/v1/conversations/search?q=lighthouse+lamp&match=any"}, 200},
		{"search by time", 1, call{method: "GET", path: "/api/v1/conversations/search?q=lamp&sort=newest"}, 200},
		{"search for several by time", 2, call{method: "GET", path: "/api/v1/conversations/search?q=lighthouse+lamp+whale&sort=newest"}, 200},
		{"read the usage", 1, call{method: "GET", path: "/api/v1/usage"}, 200},
		{"pull events", 1, call{method: "GET", path: "/api/v1/events?limit=5"}, 200},
		{"pull those of a project", 2, call{method: "GET", path: "/api/v1/events?limit=5&project_id=" + project}, 200},
		{"list the trail", 1, call{method: "GET", path: "/api/v1/audit"}, 200},
		{"a conversation that is not there", 1, call{method: "GET", path: "/api/v1/conversations/" + string(ident.New[ident.ConversationID]())}, 404},
		{"an edit of what was changed", 2, call{method: "PATCH", path: at, body: `{"description":"y"}`,
			header: map[string]string{"If-Match": `"1"`}}, 412},
	} {
		r.as = "ada"
		a := h.do(r.call)
		if n := f.trips.Count(); n != r.want || n > mostTrips {
			t.Errorf("%s took %d round trips, want %d", r.name, n, r.want)
		}
		if a.Status != r.status {
			t.Errorf("%s: %d %s", r.name, a.Status, a.Text)
		}
	}
	f.answers(t, at)
	f.guests(t, project, at, turn)
	f.coldly(t)
	// What is far away is asked no more often than what is near.
	f.link.Latency(ocean)
	for _, r := range common(at) {
		begun := time.Now()
		a := h.do(r.call)
		if n := f.trips.Count(); n != r.want {
			t.Errorf("far away, %s took %d round trips, want %d", r.name, n, r.want)
		}
		if a.Status != r.status {
			t.Errorf("%s: %d %s", r.name, a.Status, a.Text)
		}
		t.Logf("%s took %v", r.name, time.Since(begun).Round(time.Millisecond))
	}
	if a := h.do(call{as: "ada", method: "GET", path: messages}).is(200); !strings.Contains(a.Text, "from afar") {
		t.Errorf("%s", a.Text)
	}
	f.trips.Count()
	f.coldly(t)
}

// What is done to a webhook goes on behind the answer, so the least that a repeat took counts: whatever else asks meanwhile
// only adds to it.
func TestRepeatsOfWebhookCallsTakeFewRoundTrips(t *testing.T) {
	for _, kind := range []string{"postgres", "external"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f := openFar(t, kind)
			s := newSink(t, nil)
			post := func(path, body string) call {
				return call{as: "ada", method: "POST", path: "/api/v1/webhooks" + path, body: body, header: map[string]string{"Idempotency-Key": "one"}}
			}
			create := post("", `{"name":"W","url":"`+s.URL+`","events":["conversation.created"]}`)
			at := "/" + f.do(create).is(201).text("id")
			f.make("ada", "/api/v1/conversations", `{"title":"Night watch"}`)
			<-s.got
			delivery := f.do(call{as: "ada", method: "GET", path: create.path + at + "/deliveries"}).is(200).text("data", "0", "id")
			for _, r := range []trip{
				{"make one", 3, create, 201},
				{"rotate its secret", 2, post(at+"/rotate-secret", ""), 200},
				{"test it", 2, post(at+"/test", ""), 200},
				{"redeliver", 2, post(at+"/deliveries/"+delivery+"/redeliver", ""), 202},
				{"redeliver many", 1, post(at+"/redeliver", `{"from":"2020-01-01T00:00:00Z","to":"2120-01-01T00:00:00Z","state":"all"}`), 202},
			} {
				first := f.do(r.call).is(r.status)
				least := int64(1 << 32)
				for deadline := time.Now().Add(10 * time.Second); least > r.want && time.Now().Before(deadline); {
					f.trips.Count()
					again := f.do(r.call).is(r.status)
					least = min(least, f.trips.Count())
					if again.Header.Get("Idempotency-Replayed") != "true" || again.text("id") != first.text("id") || again.text("secret") != first.text("secret") {
						t.Fatalf("%s: %s\nand again: %s", r.name, first.Text, again.Text)
					}
				}
				if least != r.want || least > mostTrips {
					t.Errorf("to repeat to %s took %d round trips, want %d", r.name, least, r.want)
				}
			}
		})
	}
}

// trip is a request, and how often it may ask the tenant's database.
type trip struct {
	name string
	want int64
	call
	status int
}

// common are the requests that people wait for all the time.
func common(at string) []trip {
	return []trip{
		{"listing", 1, call{as: "ada", method: "GET", path: "/api/v1/conversations"}, 200},
		{"opening", 1, call{as: "ada", method: "GET", path: at}, 200},
		{"reading", 1, call{as: "ada", method: "GET", path: at + "/messages"}, 200},
		{"sending", 2, call{as: "ada", method: "POST", path: at + "/messages", body: `{"content":"from afar","reply":false}`}, 201},
		{"searching", 2, call{as: "ada", method: "GET", path: "/api/v1/conversations/search?q=lighthouse+lamp+whale"}, 200},
	}
}

// guests counts what members take of the owner's database: as much as the owner. In the one of their own, where it is on the
// same server, they find nothing first; a change that finds nothing has to be undone.
func (f *far) guests(t *testing.T, project, at, turn string) {
	f.people.add(t, "edna", ident.Member)
	members := "/api/v1/projects/" + project + "/members"
	own := f.cold == 2
	f.do(call{as: "edna", method: "GET", path: "/api/v1/projects"}).is(200) // her own database is open
	f.trips.Count()
	for _, r := range []struct {
		trip
		own int64
	}{
		{trip{"add a member", 2, call{as: "ada", method: "POST", path: members, body: `{"email":"edna@example.org","role":"editor"}`}, 201}, 0},
		{trip{"read a project", 1, call{method: "GET", path: "/api/v1/projects/" + project}, 200}, 1},
		{trip{"edit a project", 2, call{method: "PATCH", path: "/api/v1/projects/" + project, body: `{"name":"Quay"}`}, 200}, 2},
		{trip{"list members", 1, call{method: "GET", path: members}, 200}, 1},
		{trip{"list conversations", 1, call{method: "GET", path: "/api/v1/conversations?project_id=" + project}, 200}, 1},
		{trip{"make a conversation", 1, call{method: "POST", path: "/api/v1/conversations", body: `{"project_id":"` + project + `"}`}, 201}, 2},
		{trip{"read a conversation", 1, call{method: "GET", path: at}, 200}, 1},
		{trip{"edit a conversation", 2, call{method: "PATCH", path: at, body: `{"description":"y"}`}, 200}, 2},
		{trip{"list messages", 1, call{method: "GET", path: at + "/messages"}, 200}, 1},
		{trip{"say something to nobody", 2, call{method: "POST", path: at + "/messages", body: `{"content":"a ship","reply":false}`}, 201}, 2},
		{trip{"read a turn", 1, call{method: "GET", path: at + "/turns/" + turn}, 200}, 1},
		{trip{"follow one that has ended", 1, call{method: "GET", path: at + "/turns/" + turn + "/events"}, 200}, 1},
		{trip{"search for several", 2, call{method: "GET", path: "/api/v1/conversations/search?q=lighthouse+lamp+whale&project_id=" + project}, 200}, 1},
	} {
		if r.as == "" {
			r.as = "edna"
		}
		if own {
			r.want += r.own
		}
		a := f.do(r.call)
		if n := f.trips.Count(); n != r.want || r.want-r.own > mostTrips {
			t.Errorf("by a guest, %s took %d round trips, want %d", r.name, n, r.want)
		}
		if a.Status != r.status {
			t.Errorf("by a guest, %s: %d %s", r.name, a.Status, a.Text)
		}
	}
}

// answers counts what asking a model takes: until it is asked, by when the client has been told that its message is
// stored, and from its last word to the end that the client waits for.
func (f *far) answers(t *testing.T, at string) {
	server := f.live()
	send := func(path, prefer, body string) *http.Response {
		r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer access-ada")
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Prefer", prefer)
		w, err := server.Client().Do(r)
		if err != nil {
			t.Error(err)
			return nil
		}
		return w
	}
	count := func(what string, want int64) {
		t.Helper()
		if n := f.trips.Count(); n != want {
			t.Errorf("%s took %d round trips, want %d", what, n, want)
		}
	}
	// Two store the message, one reads what the model is to know. Two store the answer.
	ended := make(chan *http.Response)
	go func() { ended <- send(at+"/messages", "", `{"content":"a","provider":"other"}`) }()
	<-f.model.asked
	count("asking", 3)
	f.model.answer <- struct{}{}
	w := <-ended
	_ = w.Body.Close()
	count("the answer", 2)

	w = send(at+"/messages", "", `{"content":"b","provider":"other","stream":true}`)
	lines, text := bufio.NewScanner(w.Body), ""
	for lines.Scan() && lines.Text() != "event: turn.started" {
	}
	<-f.model.asked
	count("a stream's first event, and asking", 3)
	f.model.answer <- struct{}{}
	for lines.Scan() {
		text += lines.Text()
	}
	if !strings.Contains(text, "turn.completed") {
		t.Errorf("it ended with %q", text)
	}
	_ = w.Body.Close()
	count("a stream's end", 2)

	w = send(at+"/messages", "respond-async", `{"content":"c","provider":"other"}`)
	place := w.Header.Get("Location")
	_ = w.Body.Close()
	<-f.model.asked
	count("accepting, and asking", 3)
	f.do(call{as: "ada", method: "POST", path: place + "/stop"}).is(200)
	count("stopping", 2)

	// One more than for a message: the turn that is to be answered anew has to be looked at first.
	for _, again := range []string{"/retry", "/continue"} {
		w = send(place+again, "respond-async", `{"provider":"other"}`)
		if w.StatusCode != 202 {
			t.Fatalf("%s: %d", again, w.StatusCode)
		}
		_ = w.Body.Close()
		<-f.model.asked
		count(again, 4)
		f.do(call{as: "ada", method: "POST", path: w.Header.Get("Location") + "/stop"}).is(200)
		f.trips.Count()
	}
}

// coldly counts what a request takes when nothing is open.
func (f *far) coldly(t *testing.T) {
	t.Helper()
	ada, err := f.people.find("ada")
	if err != nil {
		t.Fatal(err)
	}
	f.pool.Expel(t.Context(), ada.Tenant)
	f.trips.Count()
	begun := time.Now()
	f.do(call{as: "ada", method: "GET", path: "/api/v1/conversations"}).is(200)
	t.Logf("the first request took %v", time.Since(begun).Round(time.Millisecond))
	if n := f.trips.Count(); n != f.cold+1 {
		t.Errorf("the first request took %d round trips, want %d", n, f.cold+1)
	}
}

// What people wait for, with their database an ocean away. The answer of the model is no part of it.
func BenchmarkFar(b *testing.B) {
	for _, kind := range []string{"postgres", "external"} {
		b.Run(kind, func(b *testing.B) {
			f := openFar(b, kind)
			at := "/api/v1/conversations/" + f.make("ada", "/api/v1/conversations", `{"title":"Night watch"}`)
			f.do(call{as: "ada", method: "POST", path: at + "/messages", body: `{"content":"the lighthouse is dark","reply":false}`}).is(201)
			f.link.Latency(ocean)
			asking := call{as: "ada", method: "POST", path: at + "/messages", body: `{"content":"#say yes"}`,
				header: map[string]string{"Prefer": "respond-async"}}
			for _, r := range append(common(at), trip{"asking", 0, asking, 202}) {
				b.Run(r.name, func(b *testing.B) {
					for b.Loop() {
						f.do(r.call).is(r.status)
					}
				})
			}
		})
	}
}
