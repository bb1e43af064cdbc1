package claude

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/anthropics/anthropic-sdk-go"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
)

// failure is what went wrong in one attempt, and what follows from it.
type failure struct {
	class     fault.Class
	code      string
	message   string
	retry     bool          // another attempt may help
	sick      bool          // says something about the provider's health
	after     time.Duration // the provider's hint
	status    int
	kind      string // the provider's word for the error
	requestID string
	cause     error // never anything that quotes the provider or the prompt
}

func (f *failure) fault() *fault.Error {
	message := f.message
	switch {
	case f.status > 0 && f.requestID != "":
		message = fmt.Sprintf("%s (HTTP %d, request %s)", message, f.status, f.requestID)
	case f.status > 0:
		message = fmt.Sprintf("%s (HTTP %d)", message, f.status)
	case f.requestID != "":
		message = fmt.Sprintf("%s (request %s)", message, f.requestID)
	}
	e := fault.New(f.class, opAnswer, f.code, message).RetryAfter(f.after)
	if f.kind != "" {
		return e.With(errors.New("the provider says " + f.kind))
	}
	if f.cause != nil {
		return e.With(f.cause)
	}
	return e
}

// verdict says what the end of an attempt, which may have been a good one, tells of the provider.
func (f *failure) verdict(caller context.Context) verdict {
	switch {
	case f == nil, !f.sick && caller.Err() == nil:
		return well
	case caller.Err() != nil:
		return nothing
	}
	return sick
}

// kinds maps the provider's error types, which an error event carries without a status.
var kinds = map[string]int{
	"invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403,
	"not_found_error": 404, "conflict_error": 409, "request_too_large": 413, "rate_limit_error": 429, "api_error": 500,
	"timeout_error": 504, "overloaded_error": 529,
}

// classify turns whatever ended an attempt into a failure. The order matters: our own clocks end a call with the
// same network errors that a broken line does.
func classify(ctx context.Context, err error, now time.Time) *failure {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errIdle):
		return &failure{class: fault.Unavailable, code: conversation.CodeProviderTimeout, sick: true,
			message: "the provider stopped sending", cause: errIdle}
	case cause != nil:
		return &failure{class: fault.Unavailable, code: conversation.CodeProviderTimeout,
			message: "the answer took too long", cause: errDeadline}
	}
	if e, ok := errors.AsType[*streamFault](err); ok {
		return byStatus(kinds[e.kind], e.kind, e.code, e.text).inStream()
	}
	if e, ok := errors.AsType[*anthropic.Error](err); ok {
		return fromAPI(e, now)
	}
	switch {
	case errors.Is(err, errMalformed):
		return &failure{class: fault.Unavailable, code: conversation.CodeProviderMalformed,
			message: "the provider's answer could not be understood", cause: err}
	case errors.Is(err, errCut):
		return &failure{class: fault.Unavailable, code: conversation.CodeProviderCut, retry: true, sick: true,
			message: "the answer broke off before its end", cause: errCut}
	}
	if e, ok := errors.AsType[*brokenStream](err); ok {
		if strings.Contains(e.cause.Error(), "token too long") {
			return &failure{class: fault.Unavailable, code: conversation.CodeProviderMalformed,
				message: "the provider's answer could not be understood", cause: errMalformed}
		}
		return &failure{class: fault.Unavailable, code: conversation.CodeProviderCut, retry: true, sick: true,
			message: "the connection broke before the answer's end", cause: netCause(e.cause)}
	}
	return &failure{class: fault.Unavailable, code: conversation.CodeProviderUnreachable, retry: true, sick: true,
		message: "the provider cannot be reached", cause: netCause(err)}
}

// netCause keeps of a network error what helps and drops addresses, which may hold credentials of a proxy.
func netCause(err error) error {
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return fmt.Errorf("name lookup failed (not found: %t)", e.IsNotFound)
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return fmt.Errorf("%s: %w", e.Op, e.Err)
	}
	return fmt.Errorf("network failure: %T", rootCause(err))
}

func rootCause(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

func fromAPI(e *anthropic.Error, now time.Time) *failure {
	var body struct {
		Error struct {
			Type    string `json:"type"`
			Message string `json:"message"`
			Details struct {
				ErrorCode string `json:"error_code"`
			} `json:"details"`
		} `json:"error"`
	}
	_ = json.Unmarshal([]byte(e.RawJSON()), &body) // a gateway's page has no type; the status says enough
	f := byStatus(e.StatusCode, body.Error.Type, body.Error.Details.ErrorCode, body.Error.Message)
	f.status = e.StatusCode
	if e.Response != nil {
		f.requestID = requestID(e.Response.Header)
		f.after = retryHint(e.Response.Header, now)
		switch e.Response.Header.Get("x-should-retry") {
		case "true":
			f.retry = true
		case "false":
			f.retry = false
		}
	}
	return f
}

// byStatus decides by the status, or the status that belongs to the type of an error event. text is looked at only
// where the provider has one status for several things and no code to tell them apart; it is never shown.
func byStatus(status int, kind, code, text string) *failure {
	f := &failure{class: fault.Unavailable, kind: cleanKind(kind)}
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		f.code, f.message = conversation.CodeProviderAuth, "the provider refused the key"
	case status == http.StatusPaymentRequired, status == http.StatusBadRequest && isSpending(text):
		f.class, f.code, f.message = fault.Throttled, conversation.CodeProviderLimited, "the provider's spend limit is reached"
	case status == http.StatusTooManyRequests:
		f.class, f.code, f.message = fault.Throttled, conversation.CodeProviderLimited, "the provider's rate limit is reached"
		f.retry = true
		if code == "enforced_spend_limit_reached" {
			f.message, f.retry = "the provider's spend limit is reached", false
		}
	case status == http.StatusRequestEntityTooLarge, status == http.StatusBadRequest && isTooLong(text):
		f.class, f.code, f.message = fault.TooLarge, conversation.CodeProviderTooLong, "the conversation is too long for the model"
	case status == http.StatusRequestTimeout, status == http.StatusConflict:
		f.code, f.message, f.retry = conversation.CodeProviderFailed, "the provider could not answer now", true
	case status == 529:
		f.code, f.message = conversation.CodeProviderOverloaded, "the provider is overloaded"
		f.retry, f.sick = true, true
	case status >= 400 && status < 500:
		f.class, f.code, f.message = fault.Invalid, conversation.CodeProviderRejected, "the provider says that the request is not valid"
	default: // 5xx, and an error event of a type nobody knows
		f.code, f.message = conversation.CodeProviderFailed, "the provider failed"
		f.retry, f.sick = true, true
	}
	return f
}

// inStream marks a failure that came as an event: the HTTP status was 200 and says nothing.
func (f *failure) inStream() *failure {
	f.status = 0
	return f
}

// The two things below share status 400 and type invalid_request_error with every other mistake.
func isTooLong(text string) bool {
	return strings.HasPrefix(text, "prompt is too long") || strings.Contains(text, "exceed context limit")
}

func isSpending(text string) bool {
	return strings.Contains(text, "specified API usage limits") || strings.Contains(text, "credit balance is too low")
}

// cleanKind lets only a word through: it goes into the log.
func cleanKind(kind string) string {
	if len(kind) > 64 || strings.Trim(kind, "abcdefghijklmnopqrstuvwxyz_") != "" {
		return ""
	}
	return kind
}

func rejected(why string) *failure {
	return &failure{class: fault.Invalid, code: conversation.CodeProviderRejected, message: why}
}

func broken(wait time.Duration) *failure {
	return &failure{class: fault.Unavailable, code: conversation.CodeProviderOverloaded, after: wait,
		message: "the provider has been failing, it is left alone for a moment"}
}

// checkHead refuses a success that is no stream: a redirect, a gateway's page.
func checkHead(res *http.Response) *failure {
	kind, _, _ := mime.ParseMediaType(res.Header.Get("content-type"))
	if res.StatusCode == http.StatusOK && kind == "text/event-stream" {
		return nil
	}
	return &failure{class: fault.Unavailable, code: conversation.CodeProviderMalformed, status: res.StatusCode,
		requestID: requestID(res.Header), message: "what answered is not the provider's stream"}
}

// requestID reads the provider's id of the call; a relay may send its own under the second name.
func requestID(h http.Header) string {
	id := h.Get("request-id")
	if id == "" {
		id = h.Get("x-request-id")
	}
	if len(id) > 128 || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return ""
	}
	return id
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
