package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"claude-memory-backend/internal/ident"
)

func messages(conv string) string { return "/api/v1/conversations/" + conv + "/messages" }

func TestSending(t *testing.T) {
	h := newHouse(t)
	conv := h.make("ada", "/api/v1/conversations", `{}`)
	send := func(body string, headers ...string) answer {
		t.Helper()
		c := call{as: "ada", method: "POST", path: messages(conv), body: body, header: map[string]string{}}
		for i := 0; i < len(headers); i += 2 {
			c.header[headers[i]] = headers[i+1]
		}
		return h.do(c)
	}
	first := send(`{"content":"#say The harbour lies still"}`).is(201)
	if first.text("assistant_message", "content") == "" || first.text("turn", "state") != "completed" ||
		first.text("assistant_message", "state") != "completed" || first.text("user_message", "role") != "user" ||
		first.text("assistant_message", "parent_id") != first.text("user_message", "id") ||
		first.text("assistant_message", "blocks", "0", "type") != "text" || first.at("turn", "finished_at") == nil {
		t.Errorf("complete: %s", first.Text)
	}
	if want := "/api/v1/conversations/" + conv + "/turns/" + first.text("turn", "id"); first.Header.Get("Location") != want {
		t.Errorf("Location %q", first.Header.Get("Location"))
	}
	t.Run("reply false asks nobody", func(t *testing.T) {
		a := send(`{"content":"a note","reply":false,"stream":true}`).is(201)
		if a.at("turn") != nil || a.at("assistant_message") != nil || a.at("user_message", "turn_id") != nil {
			t.Errorf("%s", a.Text)
		}
	})
	t.Run("parent_id", func(t *testing.T) {
		leaf := send(`{"content":"next","reply":false}`).is(201)
		if under := send(`{"content":"absent: the leaf","reply":false}`).is(201); under.text("user_message", "parent_id") != leaf.text("user_message", "id") {
			t.Errorf("absent: %s", under.Text)
		}
		if root := send(`{"content":"null: a root","reply":false,"parent_id":null}`).is(201); root.at("user_message", "parent_id") != nil {
			t.Errorf("null: %s", root.Text)
		}
		sibling := send(`{"content":"an edit","reply":false,"parent_id":"` + first.text("assistant_message", "id") + `"}`).is(201)
		if sibling.text("user_message", "parent_id") != first.text("assistant_message", "id") {
			t.Errorf("given: %s", sibling.Text)
		}
		for _, p := range []string{"nonsense", string(ident.New[ident.MessageID]()), ""} {
			if a := send(`{"content":"x","reply":false,"parent_id":"` + p + `"}`); a.Status != 404 {
				t.Errorf("parent %q: %d %s", p, a.Status, a.Text)
			}
		}
	})
	t.Run("blocks stay as they are", func(t *testing.T) {
		a := send(`{"content":[{"type":"text","text":"one","x_own":{"b":1,"a":1.50}},{"type":"text","text":"two"}],"reply":false}`).is(201)
		if !strings.Contains(a.Text, `"blocks":[{"type":"text","text":"one","x_own":{"b":1,"a":1.50}},{"type":"text","text":"two"}]`) {
			t.Errorf("%s", a.Text)
		}
	})
	t.Run("what is no content is refused", func(t *testing.T) {
		for _, body := range []string{`{}`, `{"content":""}`, `{"content":[]}`, `{"content":7}`, `{"content":null}`, `{"content":{}}`,
			`{"content":["x"]}`, `{"content":"x","max_tokens":0}`, `{"content":"x","reply":"no"}`, `{"content":"x","provider":"odd"}`,
			`{"content":"x","parent_id":5}`} {
			if a := send(body).is(400); len(a.at("errors").([]any)) == 0 {
				t.Errorf("%s: %s", body, a.Text)
			}
		}
	})
	t.Run("respond-async answers at once", func(t *testing.T) {
		a := send(`{"content":"#slow #long 500"}`, "Prefer", "return=representation, Respond-Async; wait=1").is(202)
		if a.Header.Get("Preference-Applied") != "respond-async" || a.text("turn", "state") != "streaming" {
			t.Errorf("%v %s", a.Header, a.Text)
		}
		place := a.Header.Get("Location")
		if got := h.do(call{as: "ada", method: "GET", path: place}).is(200); got.text("id") != a.text("turn", "id") || got.text("user_message", "id") == "" {
			t.Errorf("read: %s", got.Text)
		}
		h.do(call{as: "ada", method: "POST", path: place + "/continue"}).is(409, "turn_running")
		if got := h.do(call{as: "ada", method: "POST", path: place + "/stop"}).is(200); got.text("state") != "stopped" {
			t.Errorf("stopped: %s", got.Text)
		}
		if got := h.do(call{as: "ada", method: "POST", path: place + "/continue", body: `{"max_tokens":20}`}).is(201); got.text("turn", "state") != "completed" {
			t.Errorf("continued: %s", got.Text)
		}
	})
	t.Run("retry answers the same message again", func(t *testing.T) {
		a := h.do(call{as: "ada", method: "POST", path: first.Header.Get("Location") + "/retry"}).is(201)
		if a.text("user_message", "id") != first.text("user_message", "id") || a.text("turn", "id") == first.text("turn", "id") {
			t.Errorf("%s", a.Text)
		}
		h.do(call{as: "ada", method: "POST", path: first.Header.Get("Location") + "/continue"}).is(409, "turn_finished")
	})
	t.Run("a failure is an answer too", func(t *testing.T) {
		a := send(`{"content":"#error 3 provider_overloaded"}`).is(201)
		if a.text("turn", "state") != "failed" || a.text("turn", "error", "code") != "provider_overloaded" || a.text("turn", "error", "detail") == "" {
			t.Errorf("%s", a.Text)
		}
	})
	t.Run("reading messages", func(t *testing.T) {
		list := h.do(call{as: "ada", method: "GET", path: messages(conv) + "?branch=all&order=asc&limit=1"}).is(200)
		if list.text("data", "0", "id") != first.text("user_message", "id") || list.at("next_cursor") == nil {
			t.Errorf("%s", list.Text)
		}
		path := h.do(call{as: "ada", method: "GET", path: messages(conv) + "?leaf=" + first.text("assistant_message", "id")}).is(200)
		if len(path.at("data").([]any)) != 2 || path.text("data", "0", "id") != first.text("assistant_message", "id") {
			t.Errorf("%s", path.Text)
		}
		h.do(call{as: "ada", method: "GET", path: messages(conv) + "?leaf=nonsense"}).is(404)
		h.do(call{as: "ada", method: "GET", path: messages(conv) + "?leaf=nonsense&branch=all"}).is(400)
		h.do(call{as: "ada", method: "GET", path: messages(conv) + "?limit=201"}).is(400)
		opened := h.do(call{as: "ada", method: "GET", path: "/api/v1/conversations/" + conv + "?include=messages"}).is(200)
		if len(opened.at("messages").([]any)) == 0 {
			t.Errorf("%s", opened.Text)
		}
	})
	t.Run("search finds what was said", func(t *testing.T) {
		a := h.do(call{as: "ada", method: "GET", path: "/api/v1/conversations/search?q=harbour"}).is(200)
		if !strings.Contains(a.text("data", "0", "snippet"), "<mark>harbour</mark>") {
			t.Errorf("%s", a.Text)
		}
		h.do(call{as: "ada", method: "GET", path: "/api/v1/conversations/search"}).is(400, "invalid_input")
		h.do(call{as: "ada", method: "GET", path: "/api/v1/conversations/search?q=x&match=odd"}).is(400, "invalid_input")
	})
}

// asked sends a request over a real connection.
func (h *house) asked(ctx context.Context, base string, c call) *http.Response {
	h.t.Helper()
	r, err := http.NewRequestWithContext(ctx, c.method, base+c.path, strings.NewReader(c.body))
	if err != nil {
		h.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer access-"+c.as)
	r.Header.Set("Accept-Encoding", "gzip")
	if c.body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for k, v := range c.header {
		r.Header.Set(k, v)
	}
	w, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = w.Body.Close() })
	return w
}

// textOf puts the deltas together and checks that each begins where the text before it ends.
func textOf(t *testing.T, events []sseEvent, from int) string {
	t.Helper()
	var text strings.Builder
	length := from
	for _, e := range events {
		if e.kind != "message.delta" {
			continue
		}
		var d struct {
			Offset int
			Text   string
		}
		if err := json.Unmarshal([]byte(e.data), &d); err != nil {
			t.Fatal(err)
		}
		if d.Offset != length {
			t.Errorf("a delta at %d, the text so far has %d", d.Offset, length)
		}
		text.WriteString(d.Text)
		length += len(utf16.Encode([]rune(d.Text)))
	}
	return text.String()
}

func TestStreaming(t *testing.T) {
	h := newHouse(t)
	server := h.live()
	conv := h.make("ada", "/api/v1/conversations", `{}`)
	said := "A 🚢 in the harbour, and another 🚢, at night"
	for name, c := range map[string]call{
		"asked in the body":   {body: `{"content":"#say ` + said + `","stream":true}`},
		"asked by the header": {body: `{"content":"#say ` + said + `"}`, header: map[string]string{"Accept": "text/event-stream"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.as, c.method, c.path = "ada", "POST", messages(conv)
			w := h.asked(t.Context(), server.URL, c)
			if w.StatusCode != 200 || w.Header.Get("Content-Type") != "text/event-stream" || w.Header.Get("X-Accel-Buffering") != "no" ||
				w.Header.Get("Cache-Control") != "no-store" || w.Header.Get("Content-Encoding") != "" || w.Header.Get("Location") == "" {
				t.Fatalf("%d %v", w.StatusCode, w.Header)
			}
			events := readEvents(t, w.Body)
			kinds := ""
			for i, e := range events {
				if e.id == "" || !json.Valid([]byte(e.data)) {
					t.Errorf("event %+v", e)
				}
				if i == 0 || e.kind != events[i-1].kind {
					kinds += e.kind + " "
				}
			}
			if kinds != "turn.started message.delta message.completed turn.completed " {
				t.Errorf("events: %s", kinds)
			}
			if got := textOf(t, events, 0); !strings.Contains(got, said) {
				t.Errorf("said %q", got)
			}
			place := w.Header.Get("Location") + "/events"
			t.Run("read again from the start it is the same", func(t *testing.T) {
				again := h.asked(t.Context(), server.URL, call{as: "ada", method: "GET", path: place})
				if got := textOf(t, readEvents(t, again.Body), 0); got != textOf(t, events, 0) {
					t.Errorf("again %q", got)
				}
			})
			t.Run("resumed after any event nothing is missing and nothing comes twice", func(t *testing.T) {
				whole := textOf(t, events, 0)
				for i, e := range events[:len(events)-1] {
					for _, by := range []call{{path: place, header: map[string]string{"Last-Event-ID": e.id}}, {path: place + "?last_event_id=" + e.id}} {
						by.as, by.method = "ada", "GET"
						rest := readEvents(t, h.asked(t.Context(), server.URL, by).Body)
						before := textOf(t, events[:i+1], 0)
						if e.kind == "turn.started" || e.kind == "message.delta" {
							if got := before + textOf(t, rest, len(utf16.Encode([]rune(before)))); got != whole {
								t.Errorf("after %+v: %q", e, got)
							}
						}
						if rest[len(rest)-1] != events[len(events)-1] || rest[0].kind == "turn.started" {
							t.Errorf("after %+v: %+v", e, rest)
						}
					}
				}
			})
			t.Run("after the last event there is nothing", func(t *testing.T) {
				h.do(call{as: "ada", method: "GET", path: place, header: map[string]string{"Last-Event-ID": events[len(events)-1].id}}).is(204)
			})
		})
	}
	t.Run("who may not see it gets no stream", func(t *testing.T) {
		h.do(call{as: "bob", method: "GET", path: "/api/v1/conversations/" + conv + "/turns/" + string(ident.New[ident.TurnID]()) + "/events"}).is(404)
		h.do(call{as: "ada", method: "POST", path: messages(conv), body: `{"content":"","stream":true}`}).is(400)
	})
}

func TestAReaderWhoLeavesStopsNothing(t *testing.T) {
	h := newHouse(t)
	server := h.live()
	conv := h.make("ada", "/api/v1/conversations", `{}`)
	ctx, leave := context.WithCancel(t.Context())
	w := h.asked(ctx, server.URL, call{as: "ada", method: "POST", path: messages(conv), body: `{"content":"#long 400","stream":true}`})
	if _, err := bufio.NewReader(w.Body).ReadString('{'); err != nil {
		t.Fatal(err)
	}
	leave()
	rest := h.asked(t.Context(), server.URL, call{as: "ada", method: "GET", path: w.Header.Get("Location") + "/events"})
	events := readEvents(t, rest.Body)
	if last := events[len(events)-1]; last.kind != "turn.completed" {
		t.Errorf("the turn ended with %s", last.kind)
	}
	if n := len(strings.Fields(textOf(t, events, 0))); n < 400 {
		t.Errorf("%d words", n)
	}
	waitFor(t, "the stream that was left is closed", func() bool { return h.server.streams.count() == 0 })
}

// waitFor polls for what no signal announces to a test.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen: " + what)
		}
	}
}

func TestStreamsPing(t *testing.T) {
	other := newHeld()
	h := newHouseAt(t, "", other, func(c *Config, _ *Deps) { c.PingEvery = 20 * time.Millisecond })
	server := h.live()
	conv := h.make("ada", "/api/v1/conversations", `{}`)
	w := h.asked(t.Context(), server.URL, call{as: "ada", method: "POST", path: messages(conv), body: `{"content":"a","provider":"other","stream":true}`})
	<-other.asked
	text, lines := "", bufio.NewReader(w.Body)
	for !strings.Contains(text, "event: ping\n") { // nobody answers before
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err, text)
		}
		text += line
	}
	other.answer <- struct{}{}
	rest, err := io.ReadAll(lines)
	if err != nil {
		t.Fatal(err)
	}
	events := parseEvents(text + string(rest))
	if last := events[len(events)-1]; last.kind != "turn.completed" {
		t.Errorf("it ended with %+v", last)
	}
	pings := 0
	for _, e := range events {
		if e.kind == "ping" {
			pings++
			if e.id != "" || e.data != "{}" {
				t.Errorf("ping %+v", e)
			}
		}
	}
	if pings == 0 {
		t.Error("no ping")
	}
}

func TestStopping(t *testing.T) {
	t.Parallel() // it waits for most of its time, of which last words have a tenth
	other := newHeld()
	h := newHouseAt(t, "", other, func(c *Config, _ *Deps) { c.DrainTime = 10 * time.Second })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- h.server.Serve(ctx, l) }()
	base := "http://" + l.Addr().String()
	conv := h.make("ada", "/api/v1/conversations", `{}`)
	second := h.make("ada", "/api/v1/conversations", `{}`)
	short := h.make("ada", "/api/v1/conversations", `{}`)
	long := h.asked(t.Context(), base, call{as: "ada", method: "POST", path: messages(conv), body: `{"content":"#slow #long 500","stream":true}`})
	brief := h.asked(t.Context(), base, call{as: "ada", method: "POST", path: messages(short), body: `{"content":"a","provider":"other","stream":true}`})
	<-other.asked
	waiting := make(chan *http.Response, 1)
	go func() {
		r, err := http.NewRequestWithContext(t.Context(), "POST", base+messages(second), strings.NewReader(`{"content":"#slow #long 500"}`))
		if err != nil {
			return
		}
		r.Header.Set("Authorization", "Bearer access-ada")
		w, err := http.DefaultTransport.RoundTrip(r)
		if err == nil {
			waiting <- w
		}
	}()
	waitFor(t, "all three are running", func() bool {
		return strings.Contains(h.do(call{method: "GET", path: "/api/v1/health/metrics"}).Text, "memoryd_http_in_flight 4")
	})
	h.do(call{method: "GET", path: "/api/v1/health/readiness"}).is(200)
	stop()
	waitFor(t, "readiness says no", func() bool {
		return h.do(call{method: "GET", path: "/api/v1/health/readiness"}).Status == 503
	})
	if got := h.do(call{method: "GET", path: "/api/v1/health"}).is(200); got.text("status") != "draining" {
		t.Errorf("health: %s", got.Text)
	}
	other.answer <- struct{}{}
	if events := readEvents(t, brief.Body); events[len(events)-1].kind != "turn.completed" {
		t.Errorf("a short stream was cut: %+v", events[len(events)-1])
	}
	text, err := io.ReadAll(long.Body)
	if err != nil || !strings.HasSuffix(string(text), ": "+stoppingComment+"\n\n") {
		t.Errorf("the long stream ended with %q, %v", string(text[max(0, len(text)-80):]), err)
	}
	select {
	case w := <-waiting:
		body, _ := io.ReadAll(w.Body)
		_ = w.Body.Close()
		if w.StatusCode != 503 || !strings.Contains(string(body), codeStopping) || w.Header.Get("Retry-After") == "" {
			t.Errorf("who waited got %d %s", w.StatusCode, body)
		}
	case <-time.After(30 * time.Second):
		t.Error("who waited got nothing")
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// While a stopping server has work of its own, whoever comes is answered, above all who asks whether it is ready.
func TestLingering(t *testing.T) {
	working := make(chan struct{})
	h := newHouse(t, func(c *Config, _ *Deps) { c.Linger = working })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- h.server.Serve(ctx, l) }()
	readiness := func() (int, error) {
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+l.Addr().String()+"/api/v1/health/readiness", nil)
		if err != nil {
			return 0, err
		}
		fresh := &http.Transport{} // every time a connection of its own
		defer fresh.CloseIdleConnections()
		res, err := fresh.RoundTrip(r)
		if err != nil {
			return 0, err
		}
		return res.StatusCode, res.Body.Close()
	}
	if got, err := readiness(); err != nil || got != 200 {
		t.Fatal(got, err)
	}
	stop()
	waitFor(t, "readiness says no", func() bool {
		got, err := readiness()
		if err != nil {
			t.Fatal(err)
		}
		return got == 503
	})
	if got, err := readiness(); err != nil || got != 503 {
		t.Error(got, err)
	}
	close(working)
	if err := <-served; err != nil {
		t.Error(err)
	}
	if got, err := readiness(); err == nil {
		t.Error("the server is still there, and says", got)
	}
}
