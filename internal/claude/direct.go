package claude

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
	"github.com/anthropics/anthropic-sdk-go/packages/ssestream"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/seal"
)

const opAnswer = "claude.Answer"

// DirectConfig says how to reach the Anthropic API. Only APIKey is required.
type DirectConfig struct {
	APIKey       seal.Secret
	BaseURL      string        // default: the API's public address
	DefaultModel string        // used when a prompt names none
	MaxTokens    int           // bound of an answer when a prompt names none; default 16384
	Timeout      time.Duration // for a whole answer, retries included; default 10 min
	IdleTimeout  time.Duration // for a silence within an answer; default 2 min
	MaxRetries   int           // default 2; negative means none
	RetryCap     time.Duration // longest single wait; default 20 s
	Budget       *RetryBudget  // shared by every provider of the process; default: one of its own
	BreakerAfter int           // failures in a row that open the breaker; default 10; negative means never
	BreakerPause time.Duration // how long it stays open before one probe; default 15 s
	Prices       *Prices       // default: the embedded file
	HTTPClient   *http.Client  // for egress rules; redirects are refused whatever it says
	Now          func() time.Time
}

// Direct answers prompts through the Anthropic Messages API.
type Direct struct {
	cfg     DirectConfig
	client  anthropic.Client
	breaker breaker
	jitter  func(time.Duration) time.Duration                // a random part of it
	sleep   func(ctx context.Context, d time.Duration) error // ends early with the context
}

var _ conversation.Model = (*Direct)(nil)

// NewDirect builds the provider. It makes no call.
func NewDirect(cfg DirectConfig) *Direct {
	orDuration := func(d *time.Duration, usual time.Duration) {
		if *d <= 0 {
			*d = usual
		}
	}
	orDuration(&cfg.Timeout, 10*time.Minute)
	orDuration(&cfg.IdleTimeout, 2*time.Minute)
	orDuration(&cfg.RetryCap, 20*time.Second)
	orDuration(&cfg.BreakerPause, 15*time.Second)
	if cfg.MaxRetries == 0 {
		cfg.MaxRetries = 2
	}
	if cfg.MaxTokens <= 0 {
		cfg.MaxTokens = 16384
	}
	if cfg.BreakerAfter == 0 {
		cfg.BreakerAfter = 10
	}
	if cfg.Budget == nil {
		cfg.Budget = NewRetryBudget()
	}
	if cfg.Prices == nil {
		cfg.Prices = DefaultPrices()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	opts := []option.RequestOption{
		option.WithoutEnvironmentDefaults(), // a key in the environment must not answer for a tenant
		option.WithMaxRetries(0),            // the SDK obeys any retry-after without a bound; see retry.go
		option.WithHTTPClient(careful(cfg.HTTPClient)),
		option.WithAPIKey(cfg.APIKey.Reveal()),
	}
	if cfg.BaseURL != "" {
		opts = append(opts, option.WithBaseURL(cfg.BaseURL))
	}
	return &Direct{cfg: cfg, client: anthropic.NewClient(opts...), jitter: randomPart, sleep: sleep,
		breaker: breaker{after: cfg.BreakerAfter, pause: cfg.BreakerPause}}
}

// careful returns a client that follows no redirect: net/http would carry x-api-key to wherever it points.
func careful(given *http.Client) *http.Client {
	c := http.Client{}
	if given != nil {
		c = *given
	} else if t, ok := http.DefaultTransport.(*http.Transport); ok { //nolint:forbidigo // only copied
		own := t.Clone()
		own.Proxy = nil // the environment is read in one place, and this is not it
		c.Transport = own
	}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.Timeout = 0 // would cut long answers; the context does it
	return &c
}

func randomPart(d time.Duration) time.Duration { return rand.N(d + 1) } //nolint:gosec // spreads retries; nobody gains by guessing it

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

var (
	errDeadline = errors.New("the answer took longer than its deadline")
	errIdle     = errors.New("the provider fell silent")
)

// Answer implements [conversation.Model].
func (d *Direct) Answer(ctx context.Context, p conversation.Prompt, sink func(text string)) (conversation.Answer, error) {
	begin := d.cfg.Now()
	if p.Model == "" {
		p.Model = d.cfg.DefaultModel
	}
	if p.Model == "" {
		return conversation.Answer{}, rejected("no model is chosen").fault()
	}
	maxTokens := p.MaxTokens
	if maxTokens <= 0 {
		maxTokens = min(d.cfg.MaxTokens, d.cfg.Prices.MaxOutput(p.Model))
	}
	req, err := buildRequest(p, p.Model, maxTokens)
	if err != nil {
		return conversation.Answer{}, rejected(err.Error()).fault()
	}
	whole, cancel := context.WithTimeoutCause(ctx, d.cfg.Timeout, errDeadline)
	defer cancel()

	for attempt := 0; ; attempt++ {
		if wait, open := d.breaker.ask(d.cfg.Now()); open {
			return conversation.Answer{}, broken(wait).fault()
		}
		out, emitted, fail := d.attempt(whole, p, req, begin, sink)
		d.breaker.tell(fail.verdict(ctx), d.cfg.Now())
		if fail == nil {
			d.cfg.Budget.earn()
			return out, nil
		}
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		if emitted || !fail.retry || attempt >= d.cfg.MaxRetries {
			return out, fail.fault()
		}
		wait, ok := d.backoff(whole, attempt, fail)
		if !ok || !d.cfg.Budget.spend() {
			return out, fail.fault()
		}
		if d.sleep(whole, wait) != nil {
			if ctx.Err() != nil {
				return out, ctx.Err()
			}
			return out, fail.fault()
		}
	}
}

// Circuit tells whether the provider is being called.
func (d *Direct) Circuit() Circuit { return d.breaker.look(d.cfg.Now()) }

// attempt makes one call and reads its stream to the end.
func (d *Direct) attempt(whole context.Context, p conversation.Prompt, req request, begin time.Time,
	sink func(string)) (conversation.Answer, bool, *failure) {
	ctx, cancel := context.WithCancelCause(whole)
	defer cancel(nil)
	idle := time.AfterFunc(d.cfg.IdleTimeout, func() { cancel(errIdle) })
	defer idle.Stop()

	var tail *tailReader
	opts := []option.RequestOption{option.WithMiddleware(func(r *http.Request, next option.MiddlewareNext) (*http.Response, error) {
		res, err := next(r)
		if err == nil {
			tail = &tailReader{body: res.Body, read: func() { idle.Reset(d.cfg.IdleTimeout) }}
			if res.StatusCode != http.StatusOK {
				tail.left = maxErrorBytes
			}
			res.Body = tail
		}
		return res, err
	})}
	for _, beta := range req.betas {
		opts = append(opts, option.WithHeaderAdd("anthropic-beta", beta))
	}
	if p.Turn != "" {
		opts = append(opts, option.WithHeader("idempotency-key", p.Turn))
	}

	var res *http.Response
	if err := d.client.Execute(ctx, http.MethodPost, "v1/messages", req.body, &res, opts...); err != nil {
		return conversation.Answer{}, false, classify(ctx, err, d.cfg.Now())
	}
	defer func() { _ = res.Body.Close() }()
	if fail := checkHead(res); fail != nil {
		return conversation.Answer{RequestID: requestID(res.Header)}, false, fail
	}

	a := assembler{sink: sink}
	var first time.Duration
	err := a.read(ssestream.NewDecoder(res), tail, func() {
		if first == 0 && a.open {
			first = max(1, d.cfg.Now().Sub(begin))
		}
	})
	if err == nil {
		// A moment for the end of the body, so that the connection can serve the next answer.
		idle.Reset(100 * time.Millisecond)
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 1024))
	}
	out := a.answer()
	out.FirstToken, out.RequestID = first, requestID(res.Header)
	if a.started {
		d.price(&out, &a, p.Model)
	}
	if err == nil {
		return out, a.emitted, nil
	}
	fail := classify(ctx, err, d.cfg.Now())
	fail.requestID = out.RequestID
	return out, a.emitted, fail
}

// price fills in the cost. The provider counts output only at the end; what an unfinished answer has produced is
// estimated, for it was produced and will be billed.
func (d *Direct) price(out *conversation.Answer, a *assembler, asked string) {
	if out.Model == "" {
		out.Model = asked
	}
	billed := a.usage
	if !a.ended {
		estimate := int64(d.cfg.Prices.EstimateTokens(out.Model, a.generated()))
		if estimate > out.Usage.OutputTokens {
			out.Usage.OutputTokens = estimate
			billed = append(members(nil), a.usage...)
			billed.set("output_tokens", []byte(itoa(estimate)))
		}
	}
	out.CostMicroUSD, _ = d.cfg.Prices.Cost(out.Model, billed.raw())
}

var errCut = errors.New("the stream ended without its end mark")

// read feeds events to the assembler until the end mark. after is called when an event has been taken in.
func (a *assembler) read(dec ssestream.Decoder, tail *tailReader, after func()) error {
	for dec.Next() {
		event := dec.Event()
		if len(bytes.TrimSpace(event.Data)) == 0 {
			continue
		}
		err := a.feed(event.Data)
		after()
		if _, ok := errors.AsType[*streamFault](err); err != nil && event.Type == "error" && !ok {
			return &streamFault{} // an error in words of somebody else's, a gateway's perhaps
		}
		if errors.Is(err, errMalformed) && tail.torn() && !dec.Next() {
			return errCut // half an event at the end of the body
		}
		if err != nil {
			return err
		}
		if a.ended {
			return nil
		}
	}
	if err := dec.Err(); err != nil {
		return &brokenStream{cause: err}
	}
	return errCut
}

// brokenStream is a connection that failed after the answer had begun.
type brokenStream struct{ cause error }

func (b *brokenStream) Error() string { return "the connection broke within the answer" }
func (b *brokenStream) Unwrap() error { return b.cause }

const maxErrorBytes = 1 << 20

// tailReader watches the body of a response: each read restarts the idle clock, an error body is bounded, and a
// body that ends without its last blank line gets one. The SDK's decoder would drop the event before it, which is
// message_stop.
type tailReader struct {
	body io.ReadCloser
	read func()
	left int // bytes still allowed; 0 means no bound
	last [4]byte
	ends []byte // what is still to be added
	done bool
}

func (t *tailReader) Read(p []byte) (int, error) {
	if t.done {
		if len(t.ends) == 0 {
			return 0, io.EOF
		}
		n := copy(p, t.ends)
		t.ends = t.ends[n:]
		return n, nil
	}
	if t.left > 0 && len(p) > t.left {
		p = p[:t.left]
	}
	n, err := t.body.Read(p)
	if n > 0 {
		t.read()
		for _, c := range p[max(0, n-len(t.last)):n] {
			t.last[0], t.last[1], t.last[2], t.last[3] = t.last[1], t.last[2], t.last[3], c
		}
	}
	if t.left > 0 {
		if t.left -= n; t.left == 0 {
			t.done = true
			return n, io.EOF
		}
		return n, err
	}
	if err == io.EOF {
		t.done, t.ends = true, []byte("\n\n")
		err = nil
	}
	return n, err
}

// torn reports that the body ended in the middle of an event.
func (t *tailReader) torn() bool {
	return t.done && !bytes.HasSuffix(t.last[:], []byte("\n\n")) && !bytes.HasSuffix(t.last[:], []byte("\n\r\n"))
}

func (t *tailReader) Close() error { return t.body.Close() }
