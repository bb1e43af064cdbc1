package live_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"claude-memory-backend/internal/httpapi"
	"claude-memory-backend/internal/live"
)

// FuzzFrames sends anything at all over real sockets: each ends in an answer or in a close code of the table, and leaves
// nothing behind (the house looks at its end, and goleak at that of the package).
func FuzzFrames(f *testing.F) {
	h := newHouse(f, func(c *live.Config) { c.Linger = patience })
	ada := h.user("ada")
	conv := ada.make("/conversations", map[string]any{})
	for _, raw := range []string{
		`{"type":"ping","id":1}`, `{"type":"ping","id":"x"}`, `{"type":"ping","id":null}`, `{"type":"ping","id":[1]}`, `{"type":"ping","id":true}`,
		`{"type":"join_room","data":{"room_id":"` + conv + `"}}`, `{"type":"join_room","data":{"room_id":"` + conv + `","after_seq":0}}`,
		`{"type":"join_room","data":{"room_id":"` + conv + `","after_seq":-1}}`, `{"type":"join_room","data":{"room_id":"` + conv + `","after_seq":1e400}}`,
		`{"type":"join_room","data":{"room_id":"` + conv + `","after_seq":9223372036854775807}}`,
		`{"type":"typing","data":{"room_id":"` + conv + `","is_typing":"yes"}}`, `{"type":"leave_room","data":null}`, `{"type":"auth","data":{}}`,
		`{"type":"send_message","data":{"room_id":"` + conv + `","content":[{}]}}`, `{"type":"send_message","data":{"room_id":"` + conv + `","content":""}}`,
		`{"type":"send_message","data":{"room_id":"` + conv + `","content":"\ud800"}}`, `{"type":"send_message","data":{"room_id":"` + conv + `","content":"\u0000"}}`,
		`{"type":"send_message","data":{"room_id":"` + conv + `","content":"x","reply":false,"idempotency_key":"\u007f"}}`,
		`{"type":"stop_turn","data":{"turn_id":"turn_06f4k3z9c8tqv5m2yb7n1x0d4e"}}`, `{"TYPE":"ping"}`, `{"type":""}`, `{"type":7}`, `null`, `""`, `{}`, "\x00", "\xff\xfe",
		strings.Repeat(`{"type":`, 5000), `{"type":"ping","data":"` + strings.Repeat("x", 70_000) + `"}`,
	} {
		f.Add(raw, false)
	}
	f.Add(`{"type":"ping"}`, true)
	table := []websocket.StatusCode{live.CloseBadFrame, live.CloseTooLarge, live.CloseNotText}
	f.Fuzz(func(t *testing.T, raw string, binary bool) {
		at := *h
		at.t = t
		s, status := at.dial(0, "?token="+ada.token, nil)
		if s == nil {
			t.Fatalf("refused with %d", status)
		}
		defer s.drop()
		kind := websocket.MessageText
		if binary {
			kind = websocket.MessageBinary
		}
		if err := s.ws.Write(t.Context(), kind, []byte(raw)); err != nil && !isClosed(err) {
			t.Fatal(err)
		}
		if err := s.ws.Write(t.Context(), websocket.MessageText, []byte(`{"type":"ping","id":"the last"}`)); err != nil && !isClosed(err) {
			t.Fatal(err)
		}
		for {
			select {
			case got := <-s.frames:
				if got.Type == "pong" && string(got.ID) == `"the last"` {
					return
				}
			case <-s.closed:
				if !slices.Contains(table, s.code) {
					t.Errorf("%q closed it with %d", raw, s.code)
				}
				return
			case <-time.After(patience):
				t.Fatalf("%q: neither an answer nor an end", raw)
			}
		}
	})
}

// What a final frame says is in the catalogue that the documentation shows, and the ranges mean what they should.
func TestEndingsAreCatalogued(t *testing.T) {
	known := map[string]bool{}
	for _, e := range httpapi.Codes() {
		known[e.Code] = true
	}
	for _, name := range live.Endings() {
		if !known[name] {
			t.Errorf("%s is not in the catalogue", name)
		}
	}
	for code, again := range map[websocket.StatusCode]bool{live.CloseBadFrame: false, live.CloseSignedOut: false, live.CloseTooLarge: false,
		live.CloseNotText: false, live.CloseTooMany: false, live.CloseInternal: true, live.CloseStopping: true, live.CloseUnresponsive: true, live.CloseSlow: true} {
		if live.Reconnect(code) != again {
			t.Errorf("%d", code)
		}
	}
}
