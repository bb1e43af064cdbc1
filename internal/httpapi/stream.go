package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/klauspost/compress/gzhttp"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/ident"
)

// follow names the turn that a stream follows.
type follow struct {
	ws    Workspace
	id    ident.ConversationID
	turn  ident.TurnID
	after string
	ended *conversation.Exchange // the turn, when it had ended before the stream began; otherwise nil
}

// The data of the events, for the documentation and for writing.
type (
	startedEvent struct {
		Turn             TurnView     `json:"turn"`
		UserMessage      messageView  `json:"user_message"`
		AssistantMessage *messageView `json:"assistant_message"`
	}
	deltaEvent struct {
		MessageID string `json:"message_id"`
		Offset    int    `json:"offset" doc:"Length of the text so far in UTF-16 code units"`
		Text      string `json:"text"`
	}
	messageEvent struct {
		Message messageView `json:"message"`
	}
	turnEvent struct {
		Turn TurnView `json:"turn"`
	}
)

// eventTypes lists them for the document.
func eventTypes() []reflect.Type {
	return []reflect.Type{reflect.TypeFor[startedEvent](), reflect.TypeFor[deltaEvent](), reflect.TypeFor[messageEvent](),
		reflect.TypeFor[turnEvent]()}
}

// dataOf is what a moment carries over the wire.
func dataOf(m conversation.Moment) any {
	switch m.Type {
	case conversation.MomentStarted:
		e := startedEvent{}
		if m.Turn != nil {
			e.Turn = viewTurn(*m.Turn)
		}
		if m.User != nil {
			e.UserMessage = viewMessage(*m.User)
		}
		if m.Assistant != nil {
			v := viewMessage(*m.Assistant)
			e.AssistantMessage = &v
		}
		return e
	case conversation.MomentDelta:
		return deltaEvent{string(m.MessageID), m.Offset, m.Text}
	case conversation.MomentMessage:
		e := messageEvent{}
		if m.Assistant != nil {
			e.Message = viewMessage(*m.Assistant)
		}
		return e
	}
	e := turnEvent{}
	if m.Turn != nil {
		e.Turn = viewTurn(*m.Turn)
	}
	return e
}

// writeTime is how long a client may take to accept one event before it counts as gone.
const writeTime = 20 * time.Second

const stoppingComment = "the server is stopping: ask again with Last-Event-ID"

// stream answers with the turn's events until it ends, the client leaves, or the server closes its streams.
func (s *Server) stream(headers http.Header, f follow) *written {
	return &written{Body: func(hc huma.Context) {
		x := hc.(*exchange)
		ctx, cancel := context.WithCancel(x.ctx)
		defer cancel()
		moments := make(chan conversation.Moment)
		ended := make(chan error, 1)
		tell := func(m conversation.Moment) error {
			select {
			case moments <- m:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		go func() {
			if f.ended != nil {
				ended <- conversation.Tell(*f.ended, f.after, tell)
				return
			}
			ended <- f.ws.Turns.Follow(ctx, x.actor, f.id, f.turn, f.after, tell)
		}()
		// The follower uses the workspace: it must be gone before that is released.
		finish := func() {
			cancel()
			for {
				select {
				case <-moments:
				case <-ended: //nolint:errcheck // it was told to end, and nobody is left to hear how it did
					return
				}
			}
		}
		w := sse{w: x.w, rc: http.NewResponseController(x.w), now: s.now}
		var first *conversation.Moment
		if f.ended != nil {
			select {
			case m := <-moments:
				first = &m
			case err := <-ended:
				// Nothing is left to tell. 204 keeps an EventSource from asking again.
				if err != nil {
					s.answerTo(x, err).write(x.w)
					return
				}
				x.w.WriteHeader(http.StatusNoContent)
				return
			}
		}
		h := x.w.Header()
		for k, vs := range headers {
			h[k] = vs
		}
		leave := s.streams.enter()
		defer leave()
		w.begin()
		if first != nil {
			w.moment(*first)
		}
		ping := time.NewTicker(s.cfg.PingEvery)
		defer ping.Stop()
		draining := s.streams.draining.Done()
		for w.err == nil {
			select {
			case m := <-moments:
				w.moment(m)
			case <-ping.C:
				w.event("", "ping", struct{}{})
			case err := <-ended:
				switch {
				case err == nil || x.r.Context().Err() != nil:
				case s.streams.ended.Err() != nil:
					w.comment(stoppingComment)
				default:
					_ = s.answerTo(x, err) // logged; the status has been sent
					w.comment("the stream broke: ask again with Last-Event-ID")
				}
				return
			case <-draining:
				if f.ended != nil || f.ws.Turns.Here(f.turn) { // the end comes soon, and no other server has it sooner
					draining = nil
					continue
				}
				w.comment(stoppingComment)
				finish()
				return
			case <-s.streams.ended.Done():
				w.comment(stoppingComment)
				finish()
				return
			case <-x.r.Context().Done():
				finish()
				return
			}
		}
		finish()
	}}
}

// sse writes Server-Sent Events; after the first error it writes nothing.
type sse struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	now func() time.Time
	err error
}

// begin sends the head, so that the client knows that it is connected.
func (s *sse) begin() {
	h := s.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // relays must pass events on at once
	h.Set(gzhttp.HeaderNoCompression, "1")
	s.w.WriteHeader(http.StatusOK)
	s.put([]byte("retry: 2000\n\n"))
}

func (s *sse) moment(m conversation.Moment) { s.event(m.ID, string(m.Type), dataOf(m)) }

// event writes one event. JSON has no line breaks outside of strings, and escapes them inside.
func (s *sse) event(id, kind string, data any) {
	var b bytes.Buffer
	if id != "" {
		b.WriteString("id: " + id + "\n")
	}
	b.WriteString("event: " + kind + "\ndata: ")
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(data); err != nil { // views always marshal
		s.err = err
		return
	}
	b.WriteByte('\n')
	s.put(b.Bytes())
}

func (s *sse) comment(text string) { s.put([]byte(": " + text + "\n\n")) }

func (s *sse) put(b []byte) {
	if s.err != nil {
		return
	}
	_ = s.rc.SetWriteDeadline(s.now().Add(writeTime)) // recorders in tests have no deadlines
	if _, s.err = s.w.Write(b); s.err == nil {
		s.err = s.rc.Flush()
	}
}
