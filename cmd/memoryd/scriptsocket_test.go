package main

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"
	"github.com/rogpeppe/go-internal/testscript"
)

// WebSockets of the stories. Frames are kept as events of a stream are: until, leave and show speak of both.
//
//	socket @NAME QUERY           opens /ws with the query
//	socket @NAME QUERY -> STATUS it must be refused with that status
//	say @NAME FRAME              sends a frame
//	closed @NAME CODE            waits until the server closes it with that code
func socketCommands() map[string]command {
	return map[string]command{"socket": cmdSocket, "say": cmdSay, "closed": cmdClosed}
}

func cmdSocket(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 && (len(args) != 4 || args[2] != "->") || !strings.HasPrefix(args[0], "@") {
		ts.Fatalf("usage: socket @NAME QUERY [-> STATUS]")
	}
	b := storyOf(ts).browser
	asking, done := context.WithTimeout(context.Background(), patience)
	defer done()
	ws, res, err := websocket.Dial(asking, "ws"+strings.TrimPrefix(b.base, "http")+"/ws"+os.Expand(args[1], ts.Getenv), nil)
	want := strconv.Itoa(http.StatusSwitchingProtocols)
	if len(args) == 4 {
		want = args[3]
	}
	if res == nil {
		ts.Fatalf("no answer: %v", err)
	}
	if got := strconv.Itoa(res.StatusCode); got != want {
		ts.Fatalf("answered %s, want %s", got, want)
	}
	if err != nil {
		return
	}
	ws.SetReadLimit(-1)
	ctx, cancel := context.WithCancel(context.Background())
	s := &stream{cancel: cancel, done: make(chan struct{}), grown: make(chan struct{}), socket: ws}
	b.streams[args[0]] = s
	go s.readFrames(ctx)
}

// readFrames keeps frames until the socket closes; ending ctx closes it.
func (s *stream) readFrames(ctx context.Context) {
	defer close(s.done)
	for {
		_, raw, err := s.socket.Read(ctx)
		s.mu.Lock()
		if err != nil {
			s.broken = err
			s.mu.Unlock()
			_ = s.socket.CloseNow()
			return
		}
		var f struct {
			Type string          `json:"type"`
			Data json.RawMessage `json:"data"`
		}
		if err := json.Unmarshal(raw, &f); err != nil {
			s.wrong = err
		}
		s.events = append(s.events, streamEvent{Event: f.Type, Data: f.Data})
		close(s.grown)
		s.grown = make(chan struct{})
		s.mu.Unlock()
	}
}

func cmdSay(ts *testscript.TestScript, _ bool, args []string) {
	s := streamOf(ts, args, 2, "say @NAME FRAME")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ts.Check(s.socket.Write(ctx, websocket.MessageText, []byte(os.Expand(args[1], ts.Getenv))))
}

func cmdClosed(ts *testscript.TestScript, _ bool, args []string) {
	s := streamOf(ts, args, 2, "closed @NAME CODE")
	select {
	case <-s.done:
	case <-time.After(patience):
		ts.Fatalf("the socket stays open")
	}
	if got := strconv.Itoa(int(websocket.CloseStatus(s.broken))); got != args[1] {
		ts.Fatalf("closed with %s, want %s: %v", got, args[1], s.broken)
	}
	storyOf(ts).show(ts, s)
}
