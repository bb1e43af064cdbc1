package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/claude/emulator"
)

// broadcast is an answer that somebody follows while something happens to the disk.
type broadcast struct {
	conv, turn string
	told, last string // the text, and the last event
}

// The second begins as the first. It is long enough to be told still when a busy machine has come to its middle.
var (
	longAnswer   = emulator.Script{Times: -1, Text: numbered(300), PieceDelay: 5 * time.Millisecond}
	longerAnswer = emulator.Script{Times: -1, Text: numbered(1000), PieceDelay: 5 * time.Millisecond}
)

// spoken counts the characters that the model has said, before the server can have them.
type spoken struct{ atomic.Int64 }

func (s *spoken) around(model http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { model.ServeHTTP(&spokenWriter{w, s}, r) })
}

type spokenWriter struct {
	http.ResponseWriter
	said *spoken
}

// Unwrap lets the model flush what it says.
func (w *spokenWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Write gets one event at a time.
func (w *spokenWriter) Write(event []byte) (int, error) {
	_, data, _ := bytes.Cut(event, []byte("data: "))
	var e struct{ Delta struct{ Text string } }
	if json.Unmarshal(data, &e) == nil { // else it is a ping
		w.said.Add(int64(len(e.Delta.Text)))
	}
	return w.ResponseWriter.Write(event)
}

// broadcast lets somebody ask and follow the answer; when a part of it was told, it calls halfway, and when all of it was
// told, before its end, whole; without it the answer is the longer one. It follows until the stream ends or halfway says that it
// will not.
func (w *world) broadcast(p *writer, halfway func() (goOn bool), whole func()) broadcast {
	w.t.Helper()
	w.model.Forget()
	answer := longAnswer
	if whole == nil {
		answer = longerAnswer
	}
	w.model.Push(answer)
	conv, err := p.client.NewConversation(w.ctx, "A long answer")
	if err != nil {
		w.t.Fatal(err)
	}
	b := broadcast{conv: conv.ID}
	half := false
	_, err = p.client.Stream(w.ctx, http.MethodPost, "/conversations/"+b.conv+"/messages", map[string]any{"content": "Tell me"},
		func(e lab.Event) bool {
			var data struct {
				Text string
				Turn struct{ ID string }
			}
			if err := json.Unmarshal(e.Data, &data); err != nil {
				w.t.Errorf("event %s: %v", e.Type, err)
			}
			b.last, b.told = e.Type, b.told+data.Text
			if e.Type == "turn.started" {
				b.turn = data.Turn.ID
			}
			if !half && len(b.told) > 300 {
				half = true
				if !halfway() {
					return false
				}
			}
			if e.Type == "message.delta" && b.told == answer.Text && whole != nil {
				whole()
			}
			return true
		})
	if err != nil || !half {
		w.t.Fatalf("the stream: %v, %d characters told", err, len(b.told))
	}
	return b
}

// silent waits until the model has said all of the longer answer.
func (w *world) silent() {
	w.t.Helper()
	for deadline := time.Now().Add(patience); w.said.Load() < int64(len(longerAnswer.Text)); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("the model has said %d characters", w.said.Load())
		}
	}
}

// stands reads what became of the answer, as soon as it has ended.
func (w *world) stands(p *writer, b broadcast) (state, text string) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		var x struct {
			State     string
			Assistant lab.Message `json:"assistant_message"`
		}
		err := p.client.Get(w.ctx, "/conversations/"+b.conv+"/turns/"+b.turn, &x)
		if err == nil && x.State != "streaming" {
			if !strings.HasPrefix(longerAnswer.Text, x.Assistant.Content) {
				w.t.Errorf("%s: %q is no beginning of the answer", x.State, x.Assistant.Content)
			}
			return x.State, x.Assistant.Content
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("the answer does not end: %s, %v", x.State, err)
		}
	}
}
