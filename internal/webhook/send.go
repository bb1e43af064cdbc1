package webhook

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/seal"
)

// keptAnswer is how much of an answer is kept, in bytes.
const keptAnswer = 2 << 10

// outcome is what came of an attempt, with what it says about the endpoint.
type outcome struct {
	Result
	asked time.Duration // what the endpoint asked for with Retry-After
	gone  bool          // 410
	lost  bool          // the secret cannot be read
	slow  bool          // its answer did not end in time, whatever it said
}

// attempt sends a delivery to an endpoint, once.
func (d *Dispatcher) attempt(ctx context.Context, e Endpoint, c Claimed) outcome {
	began := d.moment()
	o := outcome{Result: Result{Delivery: c.ID, Claim: c.Claim, State: Pending, Due: began,
		Attempt: Attempt{Number: c.Attempts, StartedAt: began, Error: Interrupted}}}
	// A process that slept after it had claimed may not be the only one any more.
	if c.Due.Sub(began) < d.Timeout {
		return o
	}
	secrets, err := d.secrets(e, began)
	if err != nil {
		o.lost, o.Attempt.Error = true, SecretLost
		return o
	}
	u, err := url.Parse(e.URL)
	if err != nil {
		o.Attempt.Error = FailedRefused
		return d.failed(o, c)
	}
	body := c.Body
	if len(body) == 0 {
		body = Body(c.Happened)
	}
	id := string(c.Event)
	within, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	answer, err := d.Client.Post(within, u, http.Header{
		"Content-Type":      {"application/json"},
		"User-Agent":        {"memoryd-webhooks"},
		"webhook-id":        {id},
		"webhook-timestamp": {strconv.FormatInt(began.Unix(), 10)},
		"webhook-signature": {Sign(id, began, body, secrets...)},
		// Without values it is not sent, and tells net/http that the call may be repeated: on a connection that was kept, and that the
		// other side closed just now, nobody is to blame, and a repeat is what receivers expect.
		"Idempotency-Key": nil,
	}, body)
	o.Attempt.Latency = d.Now().Sub(began)
	o.Attempt.Status, o.Attempt.Answer = answer.Status, clipped(answer.Body)
	if answer.Status != 0 {
		o.slow = err != nil
		err = nil // it has been said, whatever became of the rest
	}
	switch {
	case err != nil && fault.Is(err, fault.Canceled):
		return o // this server stops
	case err != nil:
		o.Attempt.Error = wordFor(fault.CodeOf(err))
		return d.failed(o, c)
	case answer.Status >= 200 && answer.Status < 300:
		o.State, o.Attempt.Error = Succeeded, ""
		d.Observe("succeeded", o.Attempt.Latency, d.Now().Sub(c.CreatedAt))
		return o
	case answer.Status >= 300 && answer.Status < 400:
		o.Attempt.Error = FailedRedirect
	default:
		o.Attempt.Error = FailedStatus
	}
	o.asked = retryAfter(answer.Header.Get("Retry-After"), d.Now())
	o.gone = answer.Status == http.StatusGone
	return d.failed(o, c)
}

// failed plans the next try.
func (d *Dispatcher) failed(o outcome, c Claimed) outcome {
	o.Failed = true
	pause, more := pauseAfter(c.Tries+1, o.asked, dice())
	o.Due = d.moment().Add(pause)
	if !more {
		o.State = Failed
	}
	d.Observe(o.Attempt.Error, o.Attempt.Latency, 0)
	return o
}

// secrets are what an endpoint's deliveries are signed with at a moment, the newest first.
func (d *Dispatcher) secrets(e Endpoint, now time.Time) ([]seal.Secret, error) {
	plain, err := d.Sealer.Open(secretPurpose, e.Secret, []byte(e.ID))
	if err != nil {
		return nil, err
	}
	list := []seal.Secret{seal.Secret(plain)}
	if e.BeforeUntil != nil && now.Before(*e.BeforeUntil) {
		if plain, err := d.Sealer.Open(secretPurpose, e.SecretBefore, []byte(e.ID)); err == nil {
			list = append(list, seal.Secret(plain))
		}
	}
	return list, nil
}

// wordFor is what is kept of an error without an answer.
func wordFor(code string) string {
	switch code {
	case "address_refused":
		return FailedRefused
	case "address_unreachable":
		return FailedUnreachable
	case "tls_failed":
		return FailedTLS
	case "timeout":
		return FailedTimeout
	}
	return FailedAnswer
}

// clipped is the beginning of an answer as text that every database takes.
func clipped(body []byte) string {
	if len(body) > keptAnswer {
		body = body[:keptAnswer]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(string(body), "\uFFFD"), "\x00", "\uFFFD")
}
