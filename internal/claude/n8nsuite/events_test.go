//go:build n8n

package n8nsuite

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/claude/emulator"
)

// hook is a webhook of the product.
type hook struct {
	ID     string
	Secret string
}

// register makes a webhook that is told of all that a turn does, one thing after the other: what two executions of a workflow
// note at the same time is lost by n8n.
func (p *product) register(address string) (h hook) {
	p.t.Helper()
	err := p.client.Post(p.t.Context(), "/webhooks", map[string]any{"name": "n8n", "url": address, "events": []string{"message.*", "turn.*"}, "ordered": true}, &h)
	if err != nil {
		p.t.Fatal(err)
	}
	return h
}

// seenEvent is what the workflow has kept of an event.
type seenEvent struct {
	ID, Type string
	Data     struct {
		ID   string
		Seq  int64
		Type string
		Note string
	}
}

func (c *counterpart) seen(t *testing.T) []seenEvent {
	t.Helper()
	status, answer := c.call(t, http.MethodGet, seenPath, "", map[string]string{"X-Backend-Secret": backendSecret})
	var seen struct{ Events []seenEvent }
	if err := json.Unmarshal([]byte(answer), &seen); err != nil || status != 200 {
		t.Fatalf("%d %s", status, answer)
	}
	return seen.Events
}

// delivered is what the product knows of a delivery.
type delivered struct {
	ID        string
	EventID   string `json:"event_id"`
	EventType string `json:"event_type"`
	State     string
	Attempts  int
	Last      *struct {
		Status  *int
		Answer  string
		Latency int64 `json:"latency_ms"`
	} `json:"last_attempt"`
}

// logged are the events of turns and messages, as GET /events has them.
func (p *product) logged() (list []struct {
	ID, Type string
	Seq      int64
}) {
	p.t.Helper()
	var page lab.Page[struct {
		ID, Type string
		Seq      int64
	}]
	if err := p.client.Get(p.t.Context(), "/events?after=0&limit=200", &page); err != nil {
		p.t.Fatal(err)
	}
	for _, e := range page.Data {
		if strings.HasPrefix(e.Type, "message.") || strings.HasPrefix(e.Type, "turn.") {
			list = append(list, e)
		}
	}
	return list
}

// settled waits until every event of turns and messages has a delivery that came to its end, and returns these, oldest first.
func (p *product) settled(h hook) []delivered {
	p.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for begun := time.Now(); ; <-tick.C {
		var page lab.Page[delivered]
		if err := p.client.Get(p.t.Context(), "/webhooks/"+h.ID+"/deliveries?limit=200", &page); err != nil {
			p.t.Fatal(err)
		}
		due := slices.ContainsFunc(page.Data, func(d delivered) bool { return d.State != "succeeded" && d.State != "failed" })
		if !due && len(page.Data) == len(p.logged()) {
			slices.Reverse(page.Data)
			return page.Data
		}
		if time.Since(begun) > time.Minute {
			p.t.Fatalf("%d of %d: %+v", len(page.Data), len(p.logged()), page.Data)
		}
	}
}

// reactsToEvents has a conversation with the product, through one workflow, and finds what happened in another one, to which the product
// delivered it.
func reactsToEvents(t *testing.T, c *counterpart) {
	p := c.teller
	talk := func(t *testing.T, question string) {
		t.Helper()
		c.provider.Push(emulator.Script{User: question, Text: "Teal."})
		turn, _ := p.ask(question, nil)
		if s := p.look(turn); s.State != "completed" || s.Assistant.Content != "Teal." {
			t.Fatalf("%+v", s)
		}
	}
	// check holds the log, the deliveries and what n8n has kept against one another, from a place in the log on.
	check := func(t *testing.T, from int) {
		t.Helper()
		deliveries, events, seen := p.settled(c.hook), p.logged(), c.seen(t)
		if len(events) < from+4 {
			t.Fatalf("%d events", len(events))
		}
		for i, e := range events[from:] {
			d := deliveries[from+i]
			if d.EventID != e.ID || d.State != "succeeded" || d.Attempts != 1 || d.Last == nil || d.Last.Status == nil || *d.Last.Status != 200 ||
				d.Last.Answer != `{"received":true,"again":false}` {
				t.Errorf("event %s %s, its delivery: %+v", e.ID, e.Type, d)
				continue
			}
			at := slices.IndexFunc(seen, func(s seenEvent) bool { return s.ID == e.ID })
			if at < 0 || seen[at].Type != e.Type || seen[at].Data.ID != e.ID || seen[at].Data.Seq != e.Seq || seen[at].Data.Type != e.Type {
				t.Errorf("event %s %s is not what n8n has: %+v", e.ID, e.Type, seen)
				continue
			}
			t.Logf("seq %d %s %s: delivery %s %s, n8n says %d %s after %d ms", e.Seq, e.Type, e.ID, d.ID, d.State, *d.Last.Status, d.Last.Answer, d.Last.Latency)
		}
	}
	talk(t, "Which colour is my favourite, as a real delivery?")
	check(t, 0)

	t.Run("the same once more", func(t *testing.T) {
		first, before := p.settled(c.hook)[0], len(c.seen(t))
		if err := p.client.Do(t.Context(), http.MethodPost, "/webhooks/"+c.hook.ID+"/deliveries/"+first.ID+"/redeliver", nil).Into(nil, http.StatusAccepted); err != nil {
			t.Fatal(err)
		}
		again := p.settled(c.hook)[0]
		if again.EventID != first.EventID || again.State != "succeeded" || again.Last == nil || again.Last.Answer != `{"received":true,"again":true}` {
			t.Errorf("%+v", again)
		}
		if after := len(c.seen(t)); after != before {
			t.Errorf("n8n had %d events, and has %d", before, after)
		}
	})
	t.Run("signed with two secrets", func(t *testing.T) { // of which n8n knows the older one
		from := len(p.logged())
		if err := p.client.Do(t.Context(), http.MethodPost, "/webhooks/"+c.hook.ID+"/rotate-secret", nil).Into(nil, http.StatusOK); err != nil {
			t.Fatal(err)
		}
		talk(t, "And after the secret was replaced?")
		check(t, from)
	})
	t.Run("with a secret that n8n does not know", func(t *testing.T) {
		stranger := p.register(c.base + eventsPath)
		before := len(c.seen(t))
		var d delivered
		if err := p.client.Do(t.Context(), http.MethodPost, "/webhooks/"+stranger.ID+"/test", nil).Into(&d, http.StatusOK); err != nil {
			t.Fatal(err)
		}
		if d.State != "failed" || d.Last == nil || d.Last.Status == nil || *d.Last.Status != http.StatusUnauthorized || len(c.seen(t)) != before {
			t.Errorf("%+v", d)
		}
	})
}

// chats talks to the two workflows that answer at once, through the product's own door.
func chats(t *testing.T, c *counterpart) {
	t.Run("relay", func(t *testing.T) {
		p := c.product(t, relayPath)
		const text = "Teal, since <ever> & “always” 🎉."
		c.provider.Push(emulator.Script{User: "through the door", Thinking: "They ask for a colour.", Text: text})
		turn, told := p.ask("Which colour, through the door?", nil)
		if want := []string{"turn.started", "message.delta", "message.completed", "turn.completed"}; !slices.Equal(told, want) {
			t.Errorf("told %v", told)
		}
		s := p.look(turn)
		if s.State != "completed" || s.Assistant.Content != text || s.Assistant.Model != "claude-sonnet-5-5" || s.Assistant.Usage.OutputTokens < 1 ||
			s.Assistant.Cost < 1 || len(s.Assistant.Blocks) != 2 || !strings.Contains(string(s.Assistant.Blocks[0]), `"signature"`) {
			t.Errorf("%+v", s)
		}
		c.provider.Push(refuse("refuse it", 529, "17"))
		turn, _ = p.ask("refuse it", nil)
		if s := p.look(turn); s.State != "failed" || s.Error == nil || s.Error.Code != "provider_overloaded" {
			t.Errorf("%+v", s)
		}
	})
	t.Run("agent", func(t *testing.T) {
		p := c.product(t, streamingPath)
		const text = "One two three four five six seven eight nine ten – “done” 🎉."
		c.provider.Push(emulator.Script{User: "count through the door", Text: text, PieceDelay: 20 * time.Millisecond, Times: -1})
		turn, told := p.ask("Please count through the door.", nil)
		deltas := 0
		for _, e := range told {
			if e == "message.delta" {
				deltas++
			}
		}
		if s := p.look(turn); s.State != "completed" || s.Assistant.Content != text || deltas < 3 {
			t.Errorf("%d deltas, %+v", deltas, s)
		}
	})
}

// reactsToSigned plays the sender, to say what the product never would.
func reactsToSigned(t *testing.T, c *counterpart) {
	send := func(secret, id string, at time.Time, body string) (int, string) {
		t.Helper()
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
		if err != nil {
			t.Fatal(err)
		}
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%d.%s", id, at.Unix(), body)
		status, answer := c.call(t, http.MethodPost, eventsPath, body, map[string]string{"webhook-id": id, "webhook-timestamp": fmt.Sprint(at.Unix()),
			"webhook-signature": "v1,AAAA v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))})
		t.Logf("%s: %d %s", id, status, answer)
		return status, answer
	}
	// The bytes that are signed are not those that a JSON library would write again.
	const event = `{"type": "message.completed", "timestamp":"2026-11-26T09:00:00Z", "data":{"conversation_id":"conv_1","state":"completed","note":"\u003cé\u003e 🎉", "n":1.50}}`
	now := time.Now()
	if status, answer := send(c.hook.Secret, "evt_1", now, event); status != 200 || answer != `{"received":true,"again":false}` {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer := send(c.hook.Secret, "evt_1", now.Add(time.Second), event); status != 200 || answer != `{"received":true,"again":true}` {
		t.Errorf("the same once more: %d %s", status, answer)
	}
	if status, _ := send(c.hook.Secret, "evt_2", now, `{"type":"turn.failed","timestamp":"2026-11-26T09:00:01Z","data":{}}`); status != 200 {
		t.Errorf("another: %d", status)
	}
	for name, try := range map[string]func() (int, string){
		"another secret": func() (int, string) {
			return send("whsec_"+base64.StdEncoding.EncodeToString(make([]byte, 32)), "evt_3", now, event)
		},
		"too old":  func() (int, string) { return send(c.hook.Secret, "evt_4", now.Add(-6*time.Minute), event) },
		"unsigned": func() (int, string) { return c.call(t, http.MethodPost, eventsPath, event, nil) },
	} {
		if status, answer := try(); status != 401 {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
	seen := c.seen(t)
	if len(seen) != 2 || seen[0].ID != "evt_1" || seen[0].Type != "message.completed" || seen[0].Data.Note != "<é> 🎉" || seen[1].Type != "turn.failed" {
		t.Errorf("%+v", seen)
	}
}

// call calls a webhook.
func (c *counterpart) call(t *testing.T, method, path, body string, headers map[string]string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, c.base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for name, value := range headers {
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}
