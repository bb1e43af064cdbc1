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

// product is a real memoryd whose turns a workflow answers.
type product struct {
	t      *testing.T
	server *lab.Server
	client *lab.Client
}

func (c *counterpart) product(t *testing.T, path string, env ...string) *product {
	t.Helper()
	binary, err := lab.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	server, err := lab.Start(binary, dir, append([]string{"LOG_LEVEL=info", "STORAGE_PATH=" + dir, "AI_PROVIDER=n8n", "N8N_WEBHOOK_URL=" + c.base + path,
		"N8N_API_KEY=" + backendSecret, "N8N_SIGNING_SECRET=" + signingSecret}, env...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("memoryd's log:\n%s", server.Log())
		}
	})
	p := &product{t: t, server: server, client: lab.Dial(server.URL, 4)}
	if err := p.client.Register(t.Context(), "ada@example.org"); err != nil {
		t.Fatal(err)
	}
	return p
}

// seenTurn is a turn as the API shows it.
type seenTurn struct {
	ID, State string
	Deadline  *time.Time
	Error     *struct{ Code, Detail string }
	Assistant struct {
		Content string
		Model   string
		Blocks  []json.RawMessage
		Cost    int64 `json:"cost_microusd"`
		Usage   struct {
			InputTokens  int64 `json:"input_tokens"`
			OutputTokens int64 `json:"output_tokens"`
		}
	} `json:"assistant_message"`
}

// ask sends a message and returns the path of its turn, and what was told of it until told says that it is enough, or to the
// end.
func (p *product) ask(text string, enough func(lab.Event) bool) (turn string, told []string) {
	p.t.Helper()
	conv, err := p.client.NewConversation(p.t.Context(), "x")
	if err != nil {
		p.t.Fatal(err)
	}
	begun := time.Now()
	_, err = p.client.Stream(p.t.Context(), http.MethodPost, "/conversations/"+conv.ID+"/messages",
		map[string]any{"content": text, "stream": true}, func(e lab.Event) bool {
			var data struct{ Turn struct{ ID string } }
			if _ = json.Unmarshal(e.Data, &data); data.Turn.ID != "" {
				turn = "/conversations/" + conv.ID + "/turns/" + data.Turn.ID
			}
			if e.Type != "ping" {
				told = append(told, e.Type)
				p.t.Logf("%6dms %s %.160s", time.Since(begun).Milliseconds(), e.Type, e.Data)
			}
			return enough == nil || !enough(e)
		})
	if err != nil {
		p.t.Fatal(err)
	}
	return turn, told
}

func (p *product) look(turn string) (s seenTurn) {
	p.t.Helper()
	if err := p.client.Get(p.t.Context(), turn, &s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

func waits(e lab.Event) bool { return e.Type == "turn.waiting" }

func answersLater(t *testing.T, c *counterpart) {
	p := c.product(t, laterPath)
	t.Run("a whole answer, with blocks and usage", func(t *testing.T) {
		const text = "Teal, since <ever> & “always” 🎉."
		c.provider.Push(emulator.Script{User: "favourite", Thinking: "They ask for a colour.", Text: text})
		turn, told := p.ask("Which colour is my favourite?", nil)
		if want := []string{"turn.started", "turn.waiting", "message.delta", "message.completed", "turn.completed"}; !slices.Equal(told, want) {
			t.Errorf("told %v", told)
		}
		s := p.look(turn)
		if s.State != "completed" || s.Assistant.Content != text || s.Assistant.Model != "claude-sonnet-5-5" || s.Assistant.Usage.OutputTokens < 1 ||
			s.Assistant.Cost < 1 || len(s.Assistant.Blocks) != 2 || !strings.Contains(string(s.Assistant.Blocks[0]), `"signature"`) {
			t.Errorf("%+v", s)
		}
	})
	t.Run("a failure of the provider", func(t *testing.T) {
		c.provider.Push(refuse("overload me", 529, ""))
		turn, _ := p.ask("overload me", nil)
		if s := p.look(turn); s.State != "failed" || s.Error == nil || s.Error.Code != "provider_overloaded" {
			t.Errorf("%+v", s)
		}
	})
	t.Run("a provider that hangs up", func(t *testing.T) {
		c.provider.Push(emulator.Script{User: "hang up later", Times: -1, Fault: emulator.Fault{Kind: emulator.Reset, AfterPieces: -1}})
		turn, _ := p.ask("hang up later", nil)
		if s := p.look(turn); s.State != "failed" || s.Error == nil || s.Error.Code != "provider_failed" {
			t.Errorf("%+v", s)
		}
	})
	t.Run("an answer that comes after a stop", func(t *testing.T) {
		c.provider.Push(emulator.Script{User: "take your time", Times: -1, Text: strings.Repeat("word ", 40), PieceDelay: 50 * time.Millisecond})
		turn, _ := p.ask("take your time", waits)
		if s := p.look(turn); s.State != "waiting" || s.Deadline == nil {
			t.Fatalf("%+v", s)
		}
		if err := p.client.Do(t.Context(), http.MethodPost, turn+"/stop", nil).Into(nil, http.StatusOK); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); !strings.Contains(p.server.Log(), "a delivered answer changes nothing"); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the workflow never delivered")
			}
		}
		if s := p.look(turn); s.State != "stopped" || s.Assistant.Content != "" {
			t.Errorf("%+v", s)
		}
	})
	t.Run("a caller that does not know the secret", func(t *testing.T) {
		before := len(c.provider.Journal())
		p := c.product(t, laterPath, "N8N_SIGNING_SECRET=something else, of good length")
		turn, told := p.ask("hello", nil)
		if s := p.look(turn); s.State != "failed" || s.Error == nil || s.Error.Code != "provider_auth" || slices.Contains(told, "turn.waiting") {
			t.Errorf("%v %+v", told, s)
		}
		if len(c.provider.Journal()) != before {
			t.Error("the provider was asked all the same")
		}
	})
}

func reactsToEvents(t *testing.T, c *counterpart) {
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
	if status, answer := send(webhookSecret, "evt_1", now, event); status != 200 || answer != `{"received":true,"again":false}` {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer := send(webhookSecret, "evt_1", now.Add(time.Second), event); status != 200 || answer != `{"received":true,"again":true}` {
		t.Errorf("the same once more: %d %s", status, answer)
	}
	if status, _ := send(webhookSecret, "evt_2", now, `{"type":"turn.failed","timestamp":"2026-11-26T09:00:01Z","data":{}}`); status != 200 {
		t.Errorf("another: %d", status)
	}
	for name, try := range map[string]func() (int, string){
		"another secret": func() (int, string) {
			return send("whsec_"+base64.StdEncoding.EncodeToString(make([]byte, 32)), "evt_3", now, event)
		},
		"too old":  func() (int, string) { return send(webhookSecret, "evt_4", now.Add(-6*time.Minute), event) },
		"unsigned": func() (int, string) { return c.call(t, http.MethodPost, eventsPath, event, nil) },
	} {
		if status, answer := try(); status != 401 {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
	status, answer := c.call(t, http.MethodGet, seenPath, "", map[string]string{"X-Backend-Secret": backendSecret})
	t.Logf("seen: %d %s", status, answer)
	var seen struct {
		Events []struct {
			ID, Type string
			Data     struct{ Note string }
		}
	}
	if err := json.Unmarshal([]byte(answer), &seen); err != nil || status != 200 || len(seen.Events) != 2 || seen.Events[0].ID != "evt_1" ||
		seen.Events[0].Type != "message.completed" || seen.Events[0].Data.Note != "<é> 🎉" || seen.Events[1].Type != "turn.failed" {
		t.Errorf("%d %s", status, answer)
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
