package n8nfake

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// Call is one request as it arrived.
type Call struct {
	Header http.Header
	Body   []byte
}

// Reply answers one call.
type Reply func(w http.ResponseWriter, r *http.Request)

// Fake is an http.Handler that plays one published webhook with header authentication.
type Fake struct {
	headerName, secret string

	mu    sync.Mutex
	reply Reply
	calls []Call
}

// New returns a fake that wants the secret in the named header and gives the reply.
func New(headerName, secret string, reply Reply) *Fake {
	return &Fake{headerName: headerName, secret: secret, reply: reply}
}

// Set changes the reply to later calls.
func (f *Fake) Set(reply Reply) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reply = reply
}

// Open lets everybody in, as a webhook without authentication does.
func (f *Fake) Open() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.secret = ""
}

// Calls returns what arrived so far, the refused included.
func (f *Fake) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Call(nil), f.calls...)
}

func (f *Fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body)) // replies may look at it
	f.mu.Lock()
	f.calls = append(f.calls, Call{Header: r.Header.Clone(), Body: body})
	reply, secret := f.reply, f.secret
	f.mu.Unlock()
	if r.Method != http.MethodPost {
		Unpublished()(w, r)
		return
	}
	if secret != "" && r.Header.Get(f.headerName) != secret {
		w.Header()["Content-Type"] = nil // n8n names no type here
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, "Authorization data is wrong!")
		return
	}
	reply(w, r)
}

// Buffered answers at once, as the Respond node does.
func Buffered(status int, body string) Reply {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// Relayed answers in the shape of the shipped relay workflow, around a provider's body.
func Relayed(status int, providerBody, conversation string) Reply {
	return Buffered(status, fmt.Sprintf(`{"ok":%t,"status":%d,"message":%s,"conversation_id":%s}`,
		status < 400, status, providerBody, quoted(conversation)))
}

// Unpublished is n8n's answer at a path that no active workflow has.
func Unpublished() Reply {
	return Buffered(http.StatusNotFound, `{"code":404,"message":"The requested webhook \"POST claude-chat\" is not registered.",`+
		`"hint":"The workflow must be active for a production URL to run successfully.","stacktrace":"(left out)"}`)
}

// Thrown is n8n's answer when a node fails and the workflow has no branch for errors.
func Thrown() Reply {
	return Buffered(http.StatusInternalServerError, `{"message":"Error in workflow"}`)
}

// Started is n8n's answer when the webhook is set to respond immediately.
func Started() Reply { return Buffered(http.StatusOK, `{"message":"Workflow was started"}`) }

// Line is one line of a streamed answer.
type Line struct{ Type, Content, Node string }

// Pieces are the lines of one node that streams the pieces: begin, items, end.
func Pieces(node string, pieces ...string) []Line {
	lines := []Line{{Type: "begin", Node: node}}
	for _, piece := range pieces {
		lines = append(lines, Line{Type: "item", Content: piece, Node: node})
	}
	return append(lines, Line{Type: "end", Node: node})
}

// Streamed sends the lines, each by itself, and ends the answer properly.
func Streamed(lines ...Line) Reply {
	return func(w http.ResponseWriter, _ *http.Request) { stream(w, lines) }
}

// Stalled sends the lines and then nothing until the caller goes away or until is closed.
func Stalled(until <-chan struct{}, lines ...Line) Reply {
	return func(w http.ResponseWriter, r *http.Request) {
		if len(lines) > 0 {
			stream(w, lines)
		}
		select {
		case <-r.Context().Done():
		case <-until:
		}
	}
}

// Broken sends the lines and then breaks the connection in the middle of the answer.
func Broken(lines ...Line) Reply {
	return func(w http.ResponseWriter, _ *http.Request) {
		stream(w, lines)
		panic(http.ErrAbortHandler) // the server's own way to drop a connection
	}
}

// Hung closes the connection without an answer.
func Hung() Reply {
	return func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
}

func stream(w http.ResponseWriter, lines []Line) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	for i, line := range lines {
		_, _ = io.WriteString(w, line.encode(i)+"\n")
		_ = http.NewResponseController(w).Flush() // a caller that left sees no answer
	}
}

func (l Line) encode(i int) string {
	content := ""
	if l.Content != "" {
		content = `"content":` + quoted(l.Content) + `,`
	}
	return fmt.Sprintf(`{"type":%s,%s"metadata":{"nodeId":"n-1","nodeName":%s,"itemIndex":0,"runIndex":0,"timestamp":%d}}`,
		quoted(l.Type), content, quoted(l.Node), 1760000000000+i)
}

func quoted(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}
