package claude

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
)

const n8nOp = "claude.N8N"

// n8nFault builds the error of a provider code.
func n8nFault(code, message string) *fault.Error {
	class := fault.Unavailable
	switch code {
	case conversation.CodeProviderRejected:
		class = fault.Invalid
	case conversation.CodeProviderTooLong:
		class = fault.TooLarge
	case conversation.CodeProviderLimited:
		class = fault.Throttled
	}
	return fault.New(class, n8nOp, code, message)
}

// leftAlone is the error of a call that was not made.
func leftAlone(wait time.Duration) error {
	seconds := int64((wait + time.Second - 1) / time.Second)
	return n8nFault(conversation.CodeProviderUnreachable,
		fmt.Sprintf("n8n has been failing and is left alone for a moment; retry in %d s", seconds)).RetryAfter(wait)
}

// ownFailure is the cause of a failure that n8n, or what stands before it, answers with itself. It makes the difference
// between an n8n that fails and one that passes on how its provider does.
type ownFailure int

func (s ownFailure) Error() string { return fmt.Sprintf("n8n answered with status %d", int(s)) }

// n8nVerdict says what an answer tells of n8n.
func n8nVerdict(caller context.Context, a conversation.Answer, err error) verdict {
	if caller.Err() != nil {
		return nothing
	}
	if own, ok := errors.AsType[ownFailure](err); ok && own >= 500 {
		return sick
	}
	switch fault.CodeOf(err) {
	case conversation.CodeProviderUnreachable, conversation.CodeProviderCut:
		return sick
	case conversation.CodeProviderTimeout:
		if errors.Is(err, errN8NIdle) || a.Text == "" { // else it was answering, if slowly
			return sick
		}
	}
	return well
}

// callFault classifies a call that brought no response.
func (n *N8N) callFault(parent, call context.Context, err error) error {
	if parent.Err() != nil {
		return parent.Err()
	}
	if cause := context.Cause(call); cause != nil {
		return timeoutFault(cause)
	}
	// The error of a client quotes the webhook's address, whose path is a secret to some: only what failed is kept.
	cause := fmt.Errorf("call failed: %T", rootCause(err))
	if dialFailed(err) {
		return n8nFault(conversation.CodeProviderUnreachable, "n8n could not be reached; is it running at the configured address?").With(cause)
	}
	if strings.HasPrefix(fmt.Sprintf("%T", rootCause(err)), "tls.") || strings.HasPrefix(fmt.Sprintf("%T", rootCause(err)), "x509.") {
		return n8nFault(conversation.CodeProviderUnreachable, "n8n's certificate or TLS settings were not accepted").With(cause)
	}
	return n8nFault(conversation.CodeProviderCut, "n8n closed the connection before it answered; the workflow may have run").With(cause)
}

// readFault classifies a failure while an answer was read.
func (n *N8N) readFault(parent, call context.Context, err error) error {
	if parent.Err() != nil {
		return parent.Err()
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	if cause := context.Cause(call); cause != nil {
		return timeoutFault(cause)
	}
	if errors.Is(err, errTooMuch) {
		return n8nFault(conversation.CodeProviderMalformed, "the workflow's answer is larger than allowed").With(err)
	}
	return n8nFault(conversation.CodeProviderCut, "the workflow's answer ended before its end").With(fmt.Errorf("read failed: %T", rootCause(err)))
}

func timeoutFault(cause error) error {
	return n8nFault(conversation.CodeProviderTimeout, "the workflow did not answer in time").With(cause)
}

func malformed(message string) *fault.Error {
	return n8nFault(conversation.CodeProviderMalformed, message)
}

// n8nStatus classifies a refusal by n8n itself, whose words for a status differ from the provider's.
func n8nStatus(status int) *fault.Error {
	var f *fault.Error
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		f = n8nFault(conversation.CodeProviderAuth, "n8n refused the secret; N8N_API_KEY must equal the value in the webhook's header-auth credential")
	case status == http.StatusNotFound:
		f = n8nFault(conversation.CodeProviderRejected, "n8n knows no active workflow at this address; publish the workflow and use its production webhook address")
	case status == http.StatusMethodNotAllowed:
		f = n8nFault(conversation.CodeProviderRejected, "the webhook does not take POST; set its method to POST")
	case status == http.StatusRequestEntityTooLarge:
		f = n8nFault(conversation.CodeProviderTooLong, "the prompt is too large for n8n; raise N8N_PAYLOAD_SIZE_MAX there")
	case status >= 300 && status < 400:
		f = n8nFault(conversation.CodeProviderRejected, "the webhook address redirects, which is not followed; configure the address it leads to")
	case status >= 400 && status < 500, status == 529:
		return relayedFault(status, "", "") // a workflow that passes on no more than a status
	default:
		f = n8nFault(conversation.CodeProviderFailed, "the workflow failed; see its executions in n8n")
	}
	return f.With(ownFailure(status))
}

// relayedFault classifies a failure of the provider that the workflow passed on, as Direct classifies it.
func relayedFault(status int, kind, text string) *fault.Error {
	f := byStatus(status, kind, "", text)
	switch {
	case f.code == conversation.CodeProviderAuth:
		f.message = "the provider refused the workflow's key; check the Anthropic credential in n8n"
	case status < 400:
		f.message = "the workflow reports an error; see its executions in n8n"
	}
	return n8nFault(f.code, f.message).With(fmt.Errorf("the workflow relays status %d %s", status, f.kind))
}

// wordFault classifies an error that came as words only, as n8n's streaming error lines do; nil when the words are
// none we know.
func wordFault(words string) *fault.Error {
	lower := strings.ToLower(words)
	switch {
	case strings.Contains(lower, "overloaded"):
		return relayedFault(529, "", "")
	case strings.Contains(lower, "rate limit"), strings.Contains(lower, "rate_limit"), strings.Contains(lower, "too many requests"):
		return relayedFault(http.StatusTooManyRequests, "", "")
	case isTooLong(words), isSpending(words):
		return relayedFault(http.StatusBadRequest, "", words)
	case strings.Contains(lower, "authentication_error"), strings.Contains(lower, "invalid x-api-key"):
		return relayedFault(http.StatusUnauthorized, "", "")
	}
	return nil
}

// retryAfterJSON reads a Retry-After that a workflow passed on in its body, as a string or a number.
func retryAfterJSON(raw json.RawMessage, now time.Time) time.Duration {
	return retryHint(http.Header{"Retry-After": {strings.Trim(string(raw), `"`)}}, now)
}

// shortID keeps an identifier only if it looks like one.
func shortID(id string) string { return requestID(http.Header{"Request-Id": {id}}) }
