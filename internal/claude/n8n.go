package claude

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/seal"
)

// N8NConfig says where the workflow is and how long it may take.
type N8NConfig struct {
	URL          string      // the webhook's production address
	HeaderName   string      // header that carries the secret; empty means X-Backend-Secret
	HeaderSecret seal.Secret // what the webhook's header-auth credential expects; empty sends no header
	// SigningSecret signs calls and checks deliveries: its bytes, or what follows "whsec_" in base64. Empty: the header
	// secret does; neither: calls are not signed, and nothing can be delivered later.
	SigningSecret seal.Secret
	// SigningBefore is the one before, while it is being replaced: it signs and checks, too.
	SigningBefore seal.Secret
	Model         string        // model asked for when the prompt names none; empty leaves it to the workflow
	MaxTokens     int           // bound asked for when the prompt has none; 0 leaves it to the workflow
	Timeout       time.Duration // for the whole answer; 0 means 5 minutes
	IdleTimeout   time.Duration // between two reads of an answer that has begun; 0 means 2 minutes
	// MaxAnswerBytes bounds what is read of an answer; 0 means 8 MiB.
	MaxAnswerBytes int64
	BreakerAfter   int           // failures in a row of n8n itself after which it is left alone; 0 means 5, negative never
	BreakerPause   time.Duration // for how long, until one call tries; 0 means 15 s
	// HTTPClient makes the calls; nil means one of our own. Its redirect rule is replaced: none is followed.
	HTTPClient *http.Client
	// CostFunc prices the usage of an answer, when a workflow reports any; nil means no price.
	CostFunc func(model string, rawUsage json.RawMessage) int64
}

// N8N is a conversation.Model that asks an n8n workflow by its webhook. The payload and the answers it understands
// are described in deploy/n8n/README.md.
type N8N struct {
	c       N8NConfig
	client  *http.Client
	keys    [][]byte        // sign, the current one first; empty: nothing is signed
	dials   []time.Duration // pauses before further attempts to connect
	breaker breaker
	now     func() time.Time
}

var _ conversation.Model = (*N8N)(nil)

// NewN8N returns an N8N model. The address must be http or https with a host; it is the operator's own, so no guard stands
// before it: n8n usually runs in the same private network.
func NewN8N(c N8NConfig) (*N8N, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		// The parse error quotes the address, and addresses may hold passwords: it stays out.
		return nil, fault.BadInput("claude.NewN8N", "url", "the webhook address must be an http or https URL")
	}
	keys, err := signingKeys(c)
	if err != nil {
		return nil, err
	}
	if c.HeaderName == "" {
		c.HeaderName = "X-Backend-Secret"
	}
	if c.Timeout <= 0 {
		c.Timeout = 5 * time.Minute
	}
	if c.IdleTimeout <= 0 {
		c.IdleTimeout = 2 * time.Minute
	}
	if c.MaxAnswerBytes <= 0 {
		c.MaxAnswerBytes = 8 << 20
	}
	if c.BreakerAfter == 0 {
		c.BreakerAfter = 5
	}
	if c.BreakerPause <= 0 {
		c.BreakerPause = 15 * time.Second
	}
	client := http.Client{Transport: &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2:   true,
	}}
	if c.HTTPClient != nil {
		client = *c.HTTPClient
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &N8N{c: c, client: &client, keys: keys, dials: []time.Duration{100 * time.Millisecond, 400 * time.Millisecond},
		breaker: breaker{after: c.BreakerAfter, pause: c.BreakerPause}, now: time.Now}, nil
}

// Format prints no fields: a secret in an unexported field cannot mask itself.
func (n *N8N) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "claude.N8N") }

// n8nPayload is the body of a call. Field names and shapes are a public contract.
type n8nPayload struct {
	TurnID         string          `json:"turn_id"`
	ConversationID string          `json:"conversation_id"`
	Model          string          `json:"model,omitempty"`
	MaxTokens      int             `json:"max_tokens,omitempty"`
	System         string          `json:"system,omitempty"`
	Messages       []n8nMessage    `json:"messages"`
	Settings       json.RawMessage `json:"settings,omitempty"`
	Metadata       *n8nMetadata    `json:"metadata,omitempty"`
	Stream         bool            `json:"stream"`
	CallbackURL    string          `json:"callback_url,omitempty"`
	CallbackUntil  string          `json:"callback_until,omitempty"`
}

type n8nMessage struct {
	Role    string            `json:"role"`
	Content []json.RawMessage `json:"content"`
}

type n8nMetadata struct {
	UserID string `json:"user_id"`
}

func (n *N8N) payload(p conversation.Prompt) ([]byte, error) {
	body := n8nPayload{TurnID: p.Turn, ConversationID: p.Conversation, Model: p.Model, MaxTokens: p.MaxTokens,
		System: p.System, Messages: make([]n8nMessage, len(p.Messages)), Settings: p.Settings, Stream: true}
	var chosen map[string]json.RawMessage
	if json.Unmarshal(p.Settings, &chosen) == nil && len(chosen) == 0 {
		body.Settings = nil // conversations without settings have {}
	}
	if body.Model == "" {
		body.Model = n.c.Model
	}
	if body.MaxTokens <= 0 {
		body.MaxTokens = n.c.MaxTokens
	}
	if p.Account != "" {
		body.Metadata = &n8nMetadata{UserID: p.Account}
	}
	if n.mayAnswerLater(p) {
		body.CallbackURL, body.CallbackUntil = p.Callback, p.Until.UTC().Format(time.RFC3339)
	}
	for i, m := range p.Messages {
		body.Messages[i] = n8nMessage{Role: m.Role, Content: m.Blocks}
		if m.Blocks == nil {
			body.Messages[i].Content = []json.RawMessage{}
		}
	}
	// An encoder without HTML escaping: blocks must arrive as they are stored, since thinking is bound to its prefix.
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(body); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

// Causes of our own deadlines, told apart from a caller who cancels.
var (
	errN8NTotal = errors.New("the whole answer took too long")
	errN8NIdle  = errors.New("nothing came for too long")
)

// Answer implements conversation.Model. An n8n that has been failing is left alone for a while, so that nobody waits for it
// (decision 0071).
func (n *N8N) Answer(ctx context.Context, p conversation.Prompt, sink func(text string)) (conversation.Answer, error) {
	if wait, open := n.breaker.ask(n.now()); open {
		return conversation.Answer{}, leftAlone(wait)
	}
	a, err := n.answer(ctx, p, sink)
	n.breaker.tell(n8nVerdict(ctx, a, err), n.now())
	return a, err
}

// Circuit tells whether n8n is being called.
func (n *N8N) Circuit() Circuit { return n.breaker.look(n.now()) }

// answer makes the call.
func (n *N8N) answer(ctx context.Context, p conversation.Prompt, sink func(text string)) (conversation.Answer, error) {
	begun := n.now()
	body, err := n.payload(p)
	if err != nil {
		return conversation.Answer{}, n8nFault(conversation.CodeProviderRejected, "the prompt could not be encoded").With(err)
	}
	call, cancelTotal := context.WithTimeoutCause(ctx, n.c.Timeout, errN8NTotal)
	defer cancelTotal()
	call, cancel := context.WithCancelCause(call)
	defer cancel(nil)

	resp, err := n.connect(call, p.Turn, body)
	if err != nil {
		return conversation.Answer{}, n.callFault(ctx, call, err)
	}
	defer resp.Body.Close()

	idle := time.AfterFunc(n.c.IdleTimeout, func() { cancel(errN8NIdle) })
	defer idle.Stop()
	r := &n8nReader{
		body:      &watchedBody{r: resp.Body, left: n.c.MaxAnswerBytes, idle: idle, idleTimeout: n.c.IdleTimeout},
		wanted:    p.Conversation,
		sink:      sink,
		sinceFunc: func() time.Duration { return max(n.now().Sub(begun), 1) },
	}
	a, err := r.read(resp.StatusCode, resp.Header)
	if err == nil && a.Later {
		if !n.mayAnswerLater(p) {
			return conversation.Answer{}, malformed("the workflow wants to answer later, but was given no address for that; set PUBLIC_URL and N8N_SIGNING_SECRET")
		}
		return a, nil
	}
	if err != nil {
		err = n.readFault(ctx, call, err)
	}
	n.complete(&a, p.Model, resp.Header)
	return a, err
}

// mayAnswerLater reports whether the workflow can deliver its answer: there is an address, and a secret to sign with.
func (n *N8N) mayAnswerLater(p conversation.Prompt) bool { return p.Callback != "" && len(n.keys) > 0 }

// complete fills in what the workflow did not say.
func (n *N8N) complete(a *conversation.Answer, asked string, h http.Header) {
	for _, model := range []string{asked, n.c.Model, "n8n"} {
		if a.Model == "" {
			a.Model = model
		}
	}
	if a.RequestID == "" {
		a.RequestID = requestID(h)
	}
	if n.c.CostFunc != nil && a.RawUsage != nil {
		a.CostMicroUSD = n.c.CostFunc(a.Model, a.RawUsage)
	}
}

// connect sends the call. It tries again only when no connection came about: once a byte was sent the workflow may
// have run, and may have had effects.
func (n *N8N) connect(ctx context.Context, turn string, body []byte) (*http.Response, error) {
	for attempt := 0; ; attempt++ {
		req, err := n.request(ctx, turn, body)
		if err != nil {
			return nil, err
		}
		resp, err := n.client.Do(req)
		if err == nil || attempt >= len(n.dials) || !dialFailed(err) {
			return resp, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(n.dials[attempt]):
		}
	}
}

func (n *N8N) request(ctx context.Context, turn string, body []byte) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.c.URL, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	// net/http silently repeats a POST with an Idempotency-Key on a connection that broke, if it can rewind the body.
	// It must not: workflows seldom look at the key. Hence no GetBody, and a connection per call instead of one from
	// a pool that n8n may just have closed.
	req.GetBody = nil
	req.Close = true
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "claude-memory-backend")
	if turn != "" {
		req.Header.Set("Idempotency-Key", turn)
	}
	if n.c.HeaderSecret != "" {
		req.Header.Set(n.c.HeaderName, n.c.HeaderSecret.Reveal())
	}
	if len(n.keys) > 0 {
		n.sign(req, turn, body)
	}
	return req, nil
}

func dialFailed(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}
