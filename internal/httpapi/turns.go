package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// content is what a message says: text, or content blocks kept as they were written.
type content json.RawMessage

// UnmarshalJSON keeps the text.
func (c *content) UnmarshalJSON(raw []byte) error {
	*c = append((*c)[:0], raw...)
	return nil
}

// Schema says that it is text or an array of blocks.
func (content) Schema(huma.Registry) *huma.Schema {
	one := 1
	return &huma.Schema{
		Description: "Text, or an array of content blocks, which are kept verbatim",
		OneOf: []*huma.Schema{
			{Type: "string", MinLength: &one},
			{Type: "array", MinItems: &one, Items: &huma.Schema{Type: "object", AdditionalProperties: true}},
		},
		Examples: []any{"What did we decide about the harbour chapter?"},
	}
}

// parent says where a message goes; its three meanings need its presence.
type parent struct {
	given bool
	null  bool
	id    string
}

// UnmarshalJSON notes that the field is there.
func (p *parent) UnmarshalJSON(raw []byte) error {
	p.given = true
	p.null = bytes.Equal(raw, []byte("null"))
	return json.Unmarshal(raw, &p.id) // null leaves it empty
}

// Schema says that it is an identifier or null.
func (parent) Schema(huma.Registry) *huma.Schema {
	longest := 64
	return &huma.Schema{Type: "string", Nullable: true, MaxLength: &longest,
		Description: "The message to answer to. Absent: the newest one of the active branch; null: a new root"}
}

type sendBody struct {
	Content   content `json:"content"`
	ParentID  parent  `json:"parent_id,omitempty"`
	Reply     *bool   `json:"reply,omitempty" doc:"false stores the message and asks nobody. Default: true"`
	Stream    bool    `json:"stream,omitempty" doc:"Answer with an event stream, as Accept: text/event-stream does"`
	Provider  string  `json:"provider,omitempty" doc:"Default: the conversation's, the project's, the installation's"`
	Model     string  `json:"model,omitempty" maxLength:"200"`
	MaxTokens int     `json:"max_tokens,omitempty" minimum:"1" maximum:"1000000"`
}

type againBody struct {
	Stream    bool   `json:"stream,omitempty" doc:"Answer with an event stream, as Accept: text/event-stream does"`
	Provider  string `json:"provider,omitempty"`
	Model     string `json:"model,omitempty" maxLength:"200"`
	MaxTokens int    `json:"max_tokens,omitempty" minimum:"1" maximum:"1000000"`
}

// exchangeView is a turn with its messages. A message that asked nobody stands alone.
type exchangeView struct {
	UserMessage      messageView  `json:"user_message"`
	AssistantMessage *messageView `json:"assistant_message,omitempty"`
	Turn             *TurnView    `json:"turn,omitempty"`
}

func viewExchange(e conversation.Exchange) exchangeView {
	v := exchangeView{UserMessage: viewMessage(e.User)}
	if e.Assistant != nil {
		m := viewMessage(*e.Assistant)
		v.AssistantMessage = &m
	}
	if e.Turn != nil {
		t := viewTurn(*e.Turn)
		v.Turn = &t
	}
	return v
}

// written is an answer that writes itself: JSON or a stream.
type written struct {
	Body func(huma.Context)
}

type messageSend struct {
	Call
	ConversationPath
	Preference
	Body sendBody
}

// Preference is how a client wants to wait.
type Preference struct {
	Accept string `header:"Accept" hidden:"true"`
	Prefer string `header:"Prefer" doc:"respond-async answers 202 as soon as the message is stored" example:"respond-async"`
}

func (s *Server) sendMessage(x *exchange, in *messageSend) (*written, error) {
	const op = "httpapi.sendMessage"
	b := in.Body
	send, err := b.input(op)
	if err != nil {
		return nil, err
	}
	once, err := x.once()
	if err != nil {
		return nil, err
	}
	send.Once = once
	id, err := idAt[ident.ConversationID](in.ID)
	if err != nil {
		return nil, err
	}
	a, err := at(x, in.ID, func(ws Workspace) (asked, error) {
		e, err := ws.Turns.Send(x.ctx, x.actor, id, send)
		return asked{ws, e}, err
	})
	if err != nil {
		return nil, err
	}
	return s.answerExchange(x, a.ws, a.Exchange, once, b.Stream, in.Preference)
}

// asked is an exchange and where it is.
type asked struct {
	ws Workspace
	conversation.Exchange
}

// input is what the service takes of it.
func (b sendBody) input(op string) (conversation.SendInput, error) {
	send := conversation.SendInput{Reply: b.Reply == nil || *b.Reply, Provider: b.Provider, Model: b.Model, MaxTokens: b.MaxTokens}
	if raw := []byte(b.Content); len(raw) > 0 && raw[0] == '"' {
		if err := json.Unmarshal(raw, &send.Text); err != nil {
			return send, fault.BadInput(op, "body.content", "must be text or an array of blocks")
		}
	} else {
		send.Blocks = json.RawMessage(raw)
	}
	switch {
	case b.ParentID.null:
		send.Where.Root = true
	case b.ParentID.given:
		var err error
		if send.Where.Parent, err = ident.Parse[ident.MessageID](b.ParentID.id); err != nil {
			return send, fault.Missing(op)
		}
	}
	return send, nil
}

// TurnPath names a turn in the path.
type TurnPath struct {
	ID     string `path:"id" doc:"Identifier of a conversation, conv_…" example:"conv_06f4k3z9c8tqv5m2yb7n1x0d4e"`
	TurnID string `path:"turn_id" doc:"Identifier of a turn, turn_…" example:"turn_06f4k3z9c8tqv5m2yb7n1x0d4e"`
}

// parse reads both identifiers.
func (p TurnPath) parse() (ident.ConversationID, ident.TurnID, error) {
	turn, err := idAt[ident.TurnID](p.TurnID)
	if err != nil {
		return "", "", err
	}
	id, err := idAt[ident.ConversationID](p.ID)
	return id, turn, err
}

type turnAgain struct {
	Call
	TurnPath
	Preference
	Body *againBody
}

func (s *Server) retryTurn(x *exchange, in *turnAgain) (*written, error) {
	return s.again(x, in, Turns.Retry)
}

func (s *Server) continueTurn(x *exchange, in *turnAgain) (*written, error) {
	return s.again(x, in, Turns.Continue)
}

// againFunc is Turns.Retry or Turns.Continue.
type againFunc func(Turns, context.Context, ident.Actor, ident.ConversationID, ident.TurnID,
	conversation.AgainInput) (conversation.Exchange, error)

func (s *Server) again(x *exchange, in *turnAgain, ask againFunc) (*written, error) {
	once, err := x.once()
	if err != nil {
		return nil, err
	}
	id, turn, err := in.parse()
	if err != nil {
		return nil, err
	}
	var b againBody
	if in.Body != nil {
		b = *in.Body
	}
	a, err := at(x, in.ID, func(ws Workspace) (asked, error) {
		e, err := ask(ws.Turns, x.ctx, x.actor, id, turn, conversation.AgainInput{Provider: b.Provider, Model: b.Model,
			MaxTokens: b.MaxTokens, Once: once})
		return asked{ws, e}, err
	})
	if err != nil {
		return nil, err
	}
	return s.answerExchange(x, a.ws, a.Exchange, once, b.Stream, in.Preference)
}

// answerExchange answers in the way that the client asked for. What was sent is committed by now: whatever becomes
// of this answer, the turn goes on.
func (s *Server) answerExchange(x *exchange, ws Workspace, e conversation.Exchange, once *event.Once, stream bool,
	want Preference,
) (*written, error) {
	h := http.Header{}
	if once != nil && once.Replayed {
		h.Set("Idempotency-Replayed", "true")
	}
	if e.Turn == nil {
		h.Set("Location", basePath+"/conversations/"+string(e.User.Conversation)+"/messages")
		return writeJSON(http.StatusCreated, h, viewExchange(e)), nil
	}
	place := basePath + "/conversations/" + string(e.Turn.Conversation) + "/turns/" + string(e.Turn.ID)
	h.Set("Location", place)
	async := prefersAsync(x.r.Header.Values("Prefer"))
	if once != nil && once.Replayed && !e.Turn.State.Final() && !async {
		return nil, fault.New(fault.Conflict, "httpapi.answerExchange", codeInProgress,
			"the first request with this key is still being answered: repeat this one, or follow the turn at "+place+"/events").
			RetryAfter(time.Second)
	}
	switch {
	case stream || accepts(want.Accept, "text/event-stream"):
		f := follow{ws: ws, id: e.Turn.Conversation, turn: e.Turn.ID}
		if e.Turn.State.Final() {
			f.ended = &e
		}
		return s.stream(h, f), nil
	case async:
		h.Set("Preference-Applied", "respond-async")
		return writeJSON(http.StatusAccepted, h, viewExchange(e)), nil
	case e.Turn.State.Final(): // a repeat: what was just read is how it ended
		return writeJSON(http.StatusCreated, h, viewExchange(e)), nil
	}
	done, err := ws.Turns.Await(x.ctx, x.actor, e.Turn.Conversation, e.Turn.ID)
	if err != nil {
		return nil, err
	}
	if !done.Turn.State.Final() { // the database is away: it gets the end when it is back
		return writeJSON(http.StatusAccepted, h, viewExchange(done)), nil
	}
	return writeJSON(http.StatusCreated, h, viewExchange(done)), nil
}

// accepts reports whether an Accept header names the type and does not rule it out.
func accepts(header, kind string) bool {
	for part := range strings.SplitSeq(header, ",") {
		name, params, _ := strings.Cut(part, ";")
		if strings.EqualFold(strings.TrimSpace(name), kind) {
			q := strings.ReplaceAll(strings.ToLower(params), " ", "")
			return q != "q=0" && q != "q=0.0" && q != "q=0.00" && q != "q=0.000"
		}
	}
	return false
}

// prefersAsync reads Prefer (RFC 7240).
func prefersAsync(headers []string) bool {
	for _, header := range headers {
		for part := range strings.SplitSeq(header, ",") {
			name, _, _ := strings.Cut(part, ";")
			if strings.EqualFold(strings.TrimSpace(name), "respond-async") {
				return true
			}
		}
	}
	return false
}

// writeJSON is an answer with a status of its own.
func writeJSON(status int, headers http.Header, v any) *written {
	return &written{Body: func(hc huma.Context) {
		x := hc.(*exchange)
		h := x.w.Header()
		for k, vs := range headers {
			h[k] = vs
		}
		h.Set("Content-Type", "application/json")
		setWriteDeadline(x.w, x.s.now().Add(x.s.cfg.RequestTime))
		x.SetStatus(status)
		enc := json.NewEncoder(x.w)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(v) // the client may be gone; the turn does not care
	}}
}

type turnFind struct {
	Call
	TurnPath
}

// turn reads a turn, wherever it is.
func (x *exchange) turn(p TurnPath) (asked, error) {
	id, turn, err := p.parse()
	if err != nil {
		return asked{}, err
	}
	return at(x, p.ID, func(ws Workspace) (asked, error) {
		e, err := ws.Turns.Turn(x.ctx, x.actor, id, turn)
		return asked{ws, e}, err
	})
}

type turnAnswer struct{ Body exchangeTurn }

// exchangeTurn is a turn, with its messages beside it.
type exchangeTurn struct {
	TurnView
	UserMessage      messageView  `json:"user_message"`
	AssistantMessage *messageView `json:"assistant_message,omitempty"`
}

func (s *Server) findTurn(x *exchange, in *turnFind) (*turnAnswer, error) {
	a, err := x.turn(in.TurnPath)
	if err != nil {
		return nil, err
	}
	v := viewExchange(a.Exchange)
	return &turnAnswer{exchangeTurn{TurnView: *v.Turn, UserMessage: v.UserMessage, AssistantMessage: v.AssistantMessage}}, nil
}

type stoppedTurn struct{ Body TurnView }

func (s *Server) stopTurn(x *exchange, in *turnFind) (*stoppedTurn, error) {
	id, turn, err := in.parse()
	if err != nil {
		return nil, err
	}
	t, err := at(x, in.ID, func(ws Workspace) (conversation.Turn, error) { return ws.Turns.Stop(x.ctx, x.actor, id, turn) })
	if err != nil {
		return nil, err
	}
	return &stoppedTurn{viewTurn(t)}, nil
}

type turnEvents struct {
	Call
	TurnPath
	LastEventID string `header:"Last-Event-ID" maxLength:"200" doc:"Events after this one; without it from the start"`
	After       string `query:"last_event_id" maxLength:"200" doc:"The same, for clients that cannot set the header"`
}

func (s *Server) followTurn(x *exchange, in *turnEvents) (*written, error) {
	// A stream cannot say 404 any more once it has begun.
	a, err := x.turn(in.TurnPath)
	if err != nil {
		return nil, err
	}
	f := follow{ws: a.ws, id: a.Turn.Conversation, turn: a.Turn.ID, after: in.LastEventID}
	if f.after == "" {
		f.after = in.After
	}
	if a.Turn.State.Final() {
		f.ended = &a.Exchange
	}
	return s.stream(http.Header{}, f), nil
}
