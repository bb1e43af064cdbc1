//go:build n8n

package n8nsuite

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"claude-memory-backend/bench/lab"
)

// product is a real memoryd whose turns a workflow answers.
type product struct {
	t      *testing.T
	server *lab.Server
	client *lab.Client
}

func (c *counterpart) product(t *testing.T, path string, env ...string) *product {
	t.Helper()
	dir := t.TempDir()
	server, err := lab.Start(c.binary, dir, append([]string{"LOG_LEVEL=info", "STORAGE_PATH=" + dir, "AI_PROVIDER=n8n", "N8N_WEBHOOK_URL=" + c.base + path,
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
