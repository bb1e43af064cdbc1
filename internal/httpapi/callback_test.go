package httpapi

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/claude"
	"claude-memory-backend/internal/claude/n8nfake"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/workspace"
)

const sharedSecret = "what this server and n8n share"

// workflows is a house with an n8n behind it that answers later.
type workflows struct {
	*house
	calls chan n8nfake.Call
}

func newWorkflows(t *testing.T, changes ...func(*Config, *Deps)) *workflows {
	t.Helper()
	w := &workflows{calls: make(chan n8nfake.Call, 10)}
	fake := httptest.NewServer(n8nfake.New("X-Backend-Secret", "the header's",
		n8nfake.Arrived(func(c n8nfake.Call) { w.calls <- c }, n8nfake.Accepted())))
	t.Cleanup(fake.Close)
	n8n, err := claude.NewN8N(claude.N8NConfig{URL: fake.URL, HeaderSecret: "the header's", SigningSecret: sharedSecret})
	if err != nil {
		t.Fatal(err)
	}
	w.house = newHouseAt(t, "", n8n, changes...)
	return w
}

// in is the same for a part of the test.
func (w *workflows) in(t *testing.T) *workflows {
	h := *w.house
	h.t = t
	return &workflows{&h, w.calls}
}

// promised is a turn whose answer was promised, and the call that promised it.
func (w *workflows) promised(conv string) (turn string, c n8nfake.Call) {
	w.t.Helper()
	a := w.do(call{as: "ada", method: "POST", path: messages(conv), body: `{"content":"Which colour?","provider":"other"}`,
		header: map[string]string{"Prefer": "respond-async"}}).is(http.StatusAccepted)
	c = <-w.calls
	turn = a.text("turn", "id")
	for deadline := time.Now().Add(20 * time.Second); w.turn(conv, turn).text("state") != "waiting"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatal("it does not wait")
		}
	}
	return turn, c
}

func (w *workflows) turn(conv, turn string) answer {
	w.t.Helper()
	return w.do(call{as: "ada", method: "GET", path: "/api/v1/conversations/" + conv + "/turns/" + turn}).is(http.StatusOK)
}

// deliver sends an answer to where the call said, signed at a time.
func (w *workflows) deliver(c n8nfake.Call, body string, change func(*call)) answer {
	w.t.Helper()
	p := c.Payload()
	path, ok := strings.CutPrefix(p.Callback, "https://memory.example")
	if !ok {
		w.t.Fatalf("to be delivered at %q", p.Callback)
	}
	r := call{method: "POST", path: path, body: body, header: signature(sharedSecret, p.Turn, time.Now(), body)}
	if change != nil {
		change(&r)
	}
	return w.do(r)
}

func signature(secret, turn string, at time.Time, body string) map[string]string {
	stamp := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(turn + "." + stamp + "." + body))
	return map[string]string{"Webhook-Id": turn, "Webhook-Timestamp": stamp,
		"Webhook-Signature": "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))}
}

const green = `{"content":[{"type":"text","text":"Green."},{"type":"later_kind","x":1.50}],"model":"claude-sonnet-5-5","stop_reason":"end_turn",` +
	`"usage":{"input_tokens":12,"output_tokens":5},"my_own_field":{"a":1}}`

func TestCallbacks(t *testing.T) {
	w := newWorkflows(t)
	conv := w.make("ada", "/api/v1/conversations", `{}`)

	t.Run("an answer that comes later", func(t *testing.T) {
		w := w.in(t)
		turn, c := w.promised(conv)
		seen := w.turn(conv, turn)
		deadline, err := time.Parse(time.RFC3339, seen.text("deadline"))
		if err != nil || time.Until(deadline) > 15*time.Minute || time.Until(deadline) < 14*time.Minute ||
			c.Payload().Until != deadline.Truncate(time.Second).Format(time.RFC3339) {
			t.Errorf("deadline %q, the workflow heard %s", seen.text("deadline"), c.Payload().Until)
		}
		if got := c.Header.Get("Idempotency-Key"); got != turn {
			t.Errorf("idempotency key %q", got)
		}
		a := w.deliver(c, green, nil).is(http.StatusOK)
		if a.text("state") != "completed" || a.text("turn_id") != turn || a.at("duplicate") != false {
			t.Errorf("%s", a.Text)
		}
		seen = w.turn(conv, turn)
		if seen.text("state") != "completed" || seen.at("deadline") != nil || seen.text("assistant_message", "content") != "Green." ||
			seen.at("assistant_message", "usage", "output_tokens") != 5.0 || seen.text("assistant_message", "model") != "claude-sonnet-5-5" ||
			!strings.Contains(seen.Text, `{"type":"later_kind","x":1.50}`) {
			t.Errorf("%s", seen.Text)
		}
		if again := w.deliver(c, green, nil).is(http.StatusOK); again.at("duplicate") != true {
			t.Errorf("%s", again.Text)
		}
		w.deliver(c, `{"content":"Red."}`, nil).is(http.StatusConflict, codeCallbackUsed)
		if now := w.turn(conv, turn); now.Text != seen.Text {
			t.Errorf("it has changed: %s", now.Text)
		}
		if log := w.log.String(); strings.Contains(log, "Green") || strings.Contains(log, "cmcb_") || strings.Contains(log, sharedSecret) {
			t.Errorf("the log tells: %s", log)
		}
	})

	t.Run("a failure that comes later", func(t *testing.T) {
		w := w.in(t)
		turn, c := w.promised(conv)
		w.deliver(c, `{"ok":false,"status":529,"error":"Overloaded"}`, nil).is(http.StatusOK)
		if seen := w.turn(conv, turn); seen.text("state") != "failed" || seen.text("error", "code") != "provider_overloaded" {
			t.Errorf("%s", seen.Text)
		}
	})

	t.Run("who is not let in changes nothing", func(t *testing.T) {
		w := w.in(t)
		turn, c := w.promised(conv)
		_, other := w.promised(conv)
		before := w.turn(conv, turn).Text
		sign := func(secret, id string, at time.Time) func(*call) {
			return func(r *call) { r.header = signature(secret, id, at, r.body) }
		}
		for name, change := range map[string]func(*call){
			"unsigned":               func(r *call) { r.header = nil },
			"another secret":         sign("what somebody else would guess", turn, time.Now()),
			"the header's secret":    sign("the header's", turn, time.Now()),
			"too old":                sign(sharedSecret, turn, time.Now().Add(-6*time.Minute)),
			"too new":                sign(sharedSecret, turn, time.Now().Add(6*time.Minute)),
			"another body":           func(r *call) { r.body += " " },
			"signed for another one": sign(sharedSecret, other.Payload().Turn, time.Now()),
		} {
			if a := w.deliver(c, green, change); a.Status != http.StatusUnauthorized || a.text("code") != "signature_invalid" {
				t.Errorf("%s: %d %s", name, a.Status, a.Text)
			}
		}
		never := ""
		for name, path := range map[string]func(string) string{
			"no token":        func(string) string { return "x" },
			"nothing in it":   func(string) string { return "cmcb_" },
			"a changed one":   func(p string) string { return p[:len(p)-20] + "AAAA" + p[len(p)-16:] },
			"half of one":     func(p string) string { return p[:len(p)/2] },
			"one with more":   func(p string) string { return p + "A" },
			"of another kind": func(p string) string { return "cmt_" + strings.TrimPrefix(p, "cmcb_") },
			"a turn's id":     func(string) string { return turn },
		} {
			a := w.deliver(c, green, func(r *call) {
				at := strings.LastIndex(r.path, "/") + 1
				r.path = r.path[:at] + path(r.path[at:])
			}).is(http.StatusNotFound, codeCallbackUnknown)
			text := strings.ReplaceAll(a.Text, a.Header.Get("X-Request-Id"), "")
			if never != "" && text != never {
				t.Errorf("%s is told apart: %s", name, a.Text)
			}
			never = text
		}
		for name, body := range map[string]string{
			"no JSON": "Green.", "nothing to understand": `{}`, "another promise": `{"status":"accepted"}`, "a key twice": `{"text":"a","text":"b"}`,
			"another conversation's": `{"conversation_id":"conv_2","text":"a"}`,
		} {
			if a := w.deliver(c, body, nil); a.Status != http.StatusBadRequest {
				t.Errorf("%s: %d %s", name, a.Status, a.Text)
			}
		}
		w.deliver(c, green, func(r *call) { r.header["Content-Type"] = "text/plain" }).is(http.StatusUnsupportedMediaType)
		if after := w.turn(conv, turn).Text; before != after {
			t.Errorf("it has changed: %s", after)
		}
		w.deliver(c, green, nil).is(http.StatusOK)
	})

	t.Run("whatever n8n makes of it", func(t *testing.T) {
		w := w.in(t)
		for name, body := range map[string]string{
			"a list with one item": `[{"output":"Green."}]`, "under json": `[{"json":{"text":"Green."}}]`, "blocks alone": `[{"type":"text","text":"Green."}]`,
			"a string": ` "Green."`, "names that cannot be stored": `{"text":"Green.","model":"a\u0000` + strings.Repeat("ü", 300) + `","stop_reason":"b\u0000"}`,
		} {
			turn, c := w.promised(w.make("ada", "/api/v1/conversations", `{}`))
			w.deliver(c, body, nil).is(http.StatusOK)
			path := "/api/v1/conversations/" + c.Payload().Conversation + "/turns/" + turn
			seen := w.do(call{as: "ada", method: "GET", path: path}).is(http.StatusOK)
			if seen.text("state") != "completed" || seen.text("assistant_message", "content") != "Green." || len(seen.text("assistant_message", "model")) > 210 {
				t.Errorf("%s: %s", name, seen.Text)
			}
		}
	})

	t.Run("who sends too much is told so", func(t *testing.T) { sendTooMuch(t, w.in(t)) })

	t.Run("a body has its bounds", func(t *testing.T) {
		w := newWorkflows(t, func(c *Config, _ *Deps) { c.MessageLimit = 1000 })
		_, c := w.promised(w.make("ada", "/api/v1/conversations", `{}`))
		w.deliver(c, `{"text":"`+strings.Repeat("x", 1000)+`"}`, nil).is(http.StatusRequestEntityTooLarge)
		w.deliver(c, green, nil).is(http.StatusOK)
	})

	t.Run("after a stop it is too late", func(t *testing.T) {
		w := w.in(t)
		turn, c := w.promised(conv)
		w.do(call{as: "ada", method: "POST", path: "/api/v1/conversations/" + conv + "/turns/" + turn + "/stop"}).is(http.StatusOK)
		w.do(call{as: "ada", method: "POST", path: "/api/v1/conversations/" + conv + "/turns/" + turn + "/retry",
			body: `{"provider":"scripted"}`}).is(http.StatusCreated)
		a := w.deliver(c, green, nil).is(http.StatusGone, codeCallbackLate)
		if !strings.Contains(a.text("detail"), "stopped") {
			t.Errorf("%s", a.Text)
		}
		if seen := w.turn(conv, turn); seen.text("state") != "stopped" || seen.text("assistant_message", "content") != "" {
			t.Errorf("%s", seen.Text)
		}
	})

	t.Run("with its conversation the address goes", func(t *testing.T) {
		w := w.in(t)
		gone := w.make("ada", "/api/v1/conversations", `{}`)
		_, c := w.promised(gone)
		w.do(call{as: "ada", method: "DELETE", path: "/api/v1/conversations/" + gone}).is(http.StatusNoContent)
		w.deliver(c, green, nil).is(http.StatusNotFound, codeCallbackUnknown)
	})

	t.Run("everybody has a limit", func(t *testing.T) {
		w := newWorkflows(t, standing, func(c *Config, _ *Deps) { c.RateLimit, c.PerAddressDelivery = true, Rate{PerMinute: 60, Burst: 2} })
		for range 2 {
			w.do(call{method: "POST", path: "/api/v1/n8n/callback/cmcb_x", body: `{}`}).is(http.StatusNotFound)
		}
		w.do(call{method: "POST", path: "/api/v1/n8n/callback/cmcb_x", body: `{}`}).is(http.StatusTooManyRequests)
	})

	t.Run("an address is known for a day", func(t *testing.T) {
		now := time.Now()
		open := workspace.NewPool(workspace.Config{Sealer: w.pool.Sealer, Now: func() time.Time { return now }})
		_, c := w.promised(conv)
		token := c.Payload().Callback[strings.LastIndex(c.Payload().Callback, "/")+1:]
		got, err := open.Callback(token)
		if err != nil || got.Turn != ident.TurnID(c.Payload().Turn) || string(got.Conversation) != conv {
			t.Fatalf("%+v %v", got, err)
		}
		now = got.Known().Add(-time.Second)
		if _, err := open.Callback(token); err != nil {
			t.Errorf("after %v: %v", time.Until(now), err)
		}
		now = got.Known()
		if _, err := open.Callback(token); err == nil {
			t.Error("it is known for ever")
		}
		if until := time.Until(got.Known()); until < 24*time.Hour || until > 25*time.Hour {
			t.Errorf("for %v", until)
		}
	})
}
