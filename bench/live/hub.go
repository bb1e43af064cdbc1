package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/coder/websocket"

	"claude-memory-backend/bench/lab"
)

// hub is what the server is compared with, in a process of its own: the least that hands what somebody says in a room to
// everybody else in it. It knows nobody, bounds nothing, pings nobody, and waits for whoever does not read.
func hub() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	h := &bareHub{rooms: map[string]*bareRoom{}}
	fmt.Printf("hub listens on http://%s\n", l.Addr())
	return (&http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}).Serve(l)
}

// startHub starts this very program as the hub.
func startHub(dir string) (*lab.Server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return lab.Launch(self, []string{"hub"}, dir)
}

type bareHub struct {
	mu    sync.Mutex
	rooms map[string]*bareRoom
}

type bareRoom struct {
	mu      sync.Mutex
	members []*websocket.Conn // never changed, only replaced
}

func (r *bareRoom) list() []*websocket.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.members
}

// ServeHTTP implements http.Handler.
func (h *bareHub) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	c, err := websocket.Accept(w, req, &websocket.AcceptOptions{InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return // it has been answered
	}
	defer c.CloseNow() //nolint:errcheck // it ends either way
	name := req.URL.Query().Get("room")
	h.mu.Lock()
	r := h.rooms[name]
	if r == nil {
		r = &bareRoom{}
		h.rooms[name] = r
	}
	h.mu.Unlock()
	r.mu.Lock()
	r.members = append(slices.Clone(r.members), c)
	r.mu.Unlock()
	ctx := context.Background()
	if c.Write(ctx, websocket.MessageText, []byte(`{"type":"room_joined"}`)) != nil {
		return
	}
	for {
		kind, b, err := c.Read(ctx)
		if err != nil {
			break
		}
		for _, m := range r.list() {
			if m != c {
				_ = m.Write(ctx, kind, b) // who left is taken out by its own reader
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.members = slices.DeleteFunc(slices.Clone(r.members), func(m *websocket.Conn) bool { return m == c })
}
