package httpapi

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// wire is a connection of a client that sends all it has before it reads anything, as most do.
type wire struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func dialWire(t *testing.T, server *httptest.Server) *wire {
	t.Helper()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &wire{t, conn, bufio.NewReader(conn)}
}

// send sends a head without its last line, more lines of it, and a body.
func (w *wire) send(head, more, body string) {
	w.t.Helper()
	for _, part := range []string{head, "Host: here\r\nContent-Type: application/json\r\n", more, "\r\n", body} {
		if _, err := io.WriteString(w, part); err != nil {
			w.t.Fatalf("the server hung up: %v", err)
		}
	}
}

// is reads an answer.
func (w *wire) is(status int, code string) *http.Response {
	w.t.Helper()
	resp, err := http.ReadResponse(w.in, nil)
	if err == nil && resp.StatusCode == http.StatusContinue {
		resp, err = http.ReadResponse(w.in, nil)
	}
	if err != nil {
		w.t.Fatalf("no answer: %v", err)
	}
	raw, err := io.ReadAll(resp.Body)
	var p struct{ Code string }
	if err != nil || resp.StatusCode != status || resp.Header.Get("Content-Type") != problemType || json.Unmarshal(raw, &p) != nil || p.Code != code {
		w.t.Errorf("%d %s, %v; want %d %s", resp.StatusCode, raw, err, status, code)
	}
	return resp
}

// asAda is what ada sends.
const asAda = "Authorization: Bearer access-ada\r\n"

// sendTooMuch proves that whoever sends what is refused reads why.
func sendTooMuch(t *testing.T, w *workflows) {
	server := w.live()
	conv := w.make("ada", "/api/v1/conversations", `{}`)
	_, promised := w.promised(conv)
	callback := "/api/v1/n8n/callback/" + promised.Payload().Callback[strings.LastIndex(promised.Payload().Callback, "/")+1:]
	// More than both ends keep of what nobody reads.
	body := `{"text":"` + strings.Repeat("x", 16<<20) + `"}`
	whole := fmt.Sprintf("Content-Length: %d\r\n", len(body))
	pieces := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	for name, try := range map[string]struct {
		head, more, body string
		status           int
		code             string
	}{
		"an answer delivered later": {"POST " + callback + " HTTP/1.1\r\n", whole, body, 413, codeTooLarge},
		"the same in chunks":        {"POST " + callback + " HTTP/1.1\r\n", "Transfer-Encoding: chunked\r\n", pieces, 413, codeTooLarge},
		"and it had asked":          {"POST " + callback + " HTTP/1.1\r\n", "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n", pieces, 413, codeTooLarge},
		"a message":                 {"POST /api/v1/conversations/" + conv + "/messages HTTP/1.1\r\n", asAda + whole, body, 413, codeTooLarge},
		"anything else":             {"POST /api/v1/projects HTTP/1.1\r\n", asAda + whole, body, 413, codeTooLarge},
		"a change":                  {"PATCH /api/v1/conversations/" + conv + " HTTP/1.1\r\n", asAda + whole, body, 413, codeTooLarge},
		"a stranger":                {"POST /api/v1/projects HTTP/1.1\r\n", whole, body, 401, "unauthenticated"},
		"nowhere":                   {"POST /api/v1/nowhere HTTP/1.1\r\n", whole, body, 404, codeUnknownPath},
	} {
		t.Run(name, func(t *testing.T) {
			c := dialWire(t, server)
			c.send(try.head, try.more, try.body)
			if c.is(try.status, try.code).Close {
				t.Error("the connection ends, though all was read")
			}
			c.send("GET /api/v1/nowhere HTTP/1.1\r\n", "", "") // it still serves
			c.is(404, codeUnknownPath)
		})
	}
	t.Run("who asks first is told before sending", func(t *testing.T) {
		c := dialWire(t, server)
		c.send("POST "+callback+" HTTP/1.1\r\n", whole+"Expect: 100-continue\r\n", "")
		c.is(413, codeTooLarge)
	})
	t.Run("more than anybody would wait for", func(t *testing.T) {
		c := dialWire(t, server)
		c.send("POST "+callback+" HTTP/1.1\r\n", "Content-Length: 1000000000\r\n", "{")
		if !c.is(413, codeTooLarge).Close {
			t.Error("the rest would be taken for a request")
		}
	})
}

// stopSending proves that nobody waits for the rest of what is refused.
func stopSending(t *testing.T, hasty *httptest.Server) {
	for head, want := range map[string]struct {
		status int
		code   string
	}{"POST /api/v1/projects HTTP/1.1\r\n" + asAda: {413, codeTooLarge}, "POST /api/v1/projects HTTP/1.1\r\n": {401, "unauthenticated"}} {
		c := dialWire(t, hasty)
		c.send(head, "Content-Length: 5000000\r\n", "{")
		if !c.is(want.status, want.code).Close {
			t.Error("the rest would be taken for a request")
		}
		if _, err := c.in.ReadByte(); err != io.EOF {
			t.Errorf("it is still open: %v", err)
		}
	}
}
