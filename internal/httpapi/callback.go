package httpapi

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/workspace"
)

// Deliverer knows how workflows sign and word the answers that they deliver later; claude.N8N does.
type Deliverer interface {
	// Verify is Unauthenticated when the body was not signed for the turn by somebody who knows the secret, or not lately.
	Verify(h http.Header, turn string, body []byte) error
	// Delivered reads an answer of a model that was asked for, or what the workflow says has failed. Invalid: neither.
	Delivered(conversation, asked string, body []byte) (a conversation.Answer, failure, err error)
}

// Codes of deliveries that change nothing.
const (
	codeCallbackUnknown = "callback_unknown"
	codeCallbackUsed    = "callback_used"
	codeCallbackLate    = "callback_late"
	codeCallbackEarly   = "callback_early"
)

// answerBody is whatever a workflow answers with.
type answerBody json.RawMessage

// UnmarshalJSON takes no copy: the exchange has what was signed.
func (*answerBody) UnmarshalJSON([]byte) error { return nil }

// Schema says what it usually is.
func (answerBody) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Description: "What the workflow could have answered at once, in one of the shapes of deploy/n8n/README.md: an Anthropic " +
			"message, `{content, model?, stop_reason?, usage?}`, or `{ok: false, status?, error}`",
		Examples: []any{map[string]any{"content": "Teal.", "model": "claude-sonnet-5-5", "stop_reason": "end_turn",
			"usage": map[string]any{"input_tokens": 12, "output_tokens": 3}}},
	}
}

type delivery struct {
	Call
	Token     string `path:"token" maxLength:"4096" doc:"The end of the call's callback_url"`
	ID        string `header:"Webhook-Id" doc:"The turn, turn_…" example:"turn_06f4k3z9c8tqv5m2yb7n1x0d4e"`
	Timestamp string `header:"Webhook-Timestamp" doc:"Seconds since 1970, at most five minutes off" example:"1760000000"`
	Signature string `header:"Webhook-Signature" doc:"v1, and HMAC-SHA256 of id.timestamp.body in base64" example:"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="`
	Body      answerBody
}

type callbackAnswer struct {
	Body struct {
		TurnID    string `json:"turn_id" example:"turn_06f4k3z9c8tqv5m2yb7n1x0d4e"`
		State     string `json:"state" enum:"completed,failed" doc:"What has become of the turn"`
		Duplicate bool   `json:"duplicate" doc:"The very same had been delivered before; nothing has changed"`
	} `nameHint:"DeliveredAnswer"`
}

// deliver takes an answer that a workflow promised for later.
func (s *Server) deliver(x *exchange, in *delivery) (*callbackAnswer, error) {
	const op = "httpapi.deliver"
	unknown := fault.New(fault.NotFound, op, codeCallbackUnknown, "there is no turn of this address, or not any more")
	if s.deps.Deliverer == nil || s.deps.Callback == nil {
		return nil, unknown
	}
	c, err := s.deps.Callback(in.Token)
	if err != nil {
		return nil, unknown
	}
	if err := s.deps.Deliverer.Verify(x.r.Header, string(c.Turn), x.body); err != nil {
		s.log.Warn("a delivered answer is not signed", "turn", c.Turn, "code", fault.CodeOf(err), "request_id", x.requestID)
		return nil, err
	}
	answer, failure, err := s.deps.Deliverer.Delivered(string(c.Conversation), c.Model, x.body)
	if err != nil {
		return nil, err
	}
	turn, reception, err := s.receive(x, c, conversation.Delivery{Answer: answer, Failure: failure, Body: x.body, Until: c.Known()})
	switch {
	case fault.Is(err, fault.NotFound):
		return nil, unknown
	case err != nil:
		return nil, err
	}
	switch reception {
	case conversation.Early:
		return nil, fault.New(fault.Conflict, op, codeCallbackEarly,
			"the call has not been answered yet: answer it with 202 first, then deliver").RetryAfter(2 * time.Second)
	case conversation.Conflicting:
		return nil, fault.New(fault.Conflict, op, codeCallbackUsed, "another answer has been delivered for this turn; it stays")
	case conversation.Late:
		return nil, newProblem(http.StatusGone, codeCallbackLate, "the turn has ended without this answer: it is "+string(turn.State), x.requestID)
	}
	out := &callbackAnswer{}
	out.Body.TurnID, out.Body.State, out.Body.Duplicate = string(turn.ID), string(turn.State), reception == conversation.Repeated
	return out, nil
}

// receive hands the answer to the tenant that the address names.
func (s *Server) receive(x *exchange, c workspace.Callback, d conversation.Delivery) (conversation.Turn, conversation.Reception, error) {
	actor := ident.System(x.requestID)
	ws, err := s.deps.Open(x.ctx, actor, c.Tenant)
	if err != nil {
		return conversation.Turn{}, "", err
	}
	x.opened(ws)
	return ws.Turns.Deliver(x.ctx, actor, c.Conversation, c.Turn, d)
}

func callbackRows() []operation {
	return []operation{
		row(tagN8N, "deliver-answer", "POST", "/n8n/callback/{token}", "Deliver an answer that was promised for later",
			on((*Server).deliver)).with(func(o *operation) {
			o.Access, o.Limit, o.Body, o.free = Public, Deliveries, MessageBody, true
			o.description = "For n8n, which gets the whole address as `callback_url` with the call. The address says which turn is " +
				"meant and cannot be guessed; the signature, made with the secret that both sides know, says who delivers: see " +
				"deploy/n8n/README.md.\n\nThe first answer counts. The same once more answers 200 with `duplicate: true`; another one " +
				"409 `callback_used`; one that comes after the turn was stopped, failed or timed out 410 `callback_late`. None of " +
				"these changes anything. An address that is forged or too old answers 404."
			refuses(http.StatusUnauthorized, http.StatusForbidden, missing, conflict, http.StatusGone)(o)
		}),
	}
}
