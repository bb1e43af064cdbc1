package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// peer runs what the server is compared with, in a process of its own: the echo or the relay.
func peer(kind, upstream string) error {
	handlers := map[string]http.HandlerFunc{"echo": echo, "relay": relay(upstream)}
	if handlers[kind] == nil {
		return fmt.Errorf("there is no peer %q", kind)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("%s listens on http://%s\n", kind, l.Addr())
	return (&http.Server{Handler: handlers[kind], ReadHeaderTimeout: 10 * time.Second}).Serve(l)
}

// startPeer starts this very program as a peer.
func startPeer(args ...string) (string, func(), error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	s, err := launch(self, args)
	if err != nil {
		return "", nil, err
	}
	return s.URL, s.Kill, nil
}

// echo decodes the body, if there is one, and answers as many items as the query asks for, shaped like messages.
func echo(w http.ResponseWriter, r *http.Request) {
	type item struct {
		ID      string    `json:"id"`
		Parent  string    `json:"parent_id"`
		Role    string    `json:"role"`
		State   string    `json:"state"`
		Content string    `json:"content"`
		Created time.Time `json:"created_at"`
	}
	if r.Method == http.MethodPost {
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			http.Error(w, "no JSON", http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusCreated)
	}
	n, _ := strconv.Atoi(r.FormValue("items"))   // the driver's own
	size, _ := strconv.Atoi(r.FormValue("size")) // the same
	text := strings.Repeat("x", max(0, size/max(1, n)-160))
	data := make([]item, n)
	for i := range data {
		data[i] = item{"msg_06f4k3z9c8tqv5m2yb7n1x0d4e", "msg_06f4k3z9c8tqv5m2yb7n1x0d4e", "user", "completed", text, time.Now()}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"data": data}) // a client that left sees no answer
}

// relay passes a request on and its answer back, piece by piece. The body is read to its end first: a server closes
// what is left of it when the answer begins.
func relay(upstream string) http.HandlerFunc {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1000}}
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		req, err := http.NewRequestWithContext(r.Context(), r.Method, upstream+r.URL.Path, strings.NewReader(string(body)))
		if err != nil {
			return
		}
		req.Header = r.Header.Clone()
		res, err := client.Do(req)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer res.Body.Close()
		w.Header().Set("Content-Type", res.Header.Get("Content-Type"))
		w.WriteHeader(res.StatusCode)
		flush := http.NewResponseController(w).Flush
		buf := make([]byte, 32<<10)
		for {
			n, err := res.Body.Read(buf)
			if n > 0 {
				if _, failed := w.Write(buf[:n]); failed != nil || flush() != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}
}
