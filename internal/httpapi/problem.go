package httpapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"claude-memory-backend/internal/fault"
)

// Problem is how every error is answered (RFC 9457).
type Problem struct {
	Type      string        `json:"type" format:"uri-reference" doc:"Where the code is explained" example:"/api/docs/errors#not_found"`
	Title     string        `json:"title" doc:"What kind of problem it is; the same for every occurrence" example:"Nothing here"`
	Status    int           `json:"status" doc:"The HTTP status" example:"404"`
	Detail    string        `json:"detail" doc:"What happened this time; for people" example:"there is nothing here under that address"`
	Code      string        `json:"code" doc:"Stable name of the problem; for programs" example:"not_found"`
	RequestID string        `json:"request_id" doc:"Names the request in the server's log" example:"req-06f4k3z9c8"`
	Errors    []fault.Field `json:"errors,omitempty" nullable:"false" doc:"Everything that is wrong with the input"`

	headers http.Header
}

// Error, GetStatus, GetHeaders and ContentType let huma write a Problem.
func (p *Problem) Error() string { return p.Code + ": " + p.Detail }

// GetStatus returns the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// GetHeaders returns headers that go with the status.
func (p *Problem) GetHeaders() http.Header { return p.headers }

// ContentType names the media type of problems.
func (p *Problem) ContentType(string) string { return problemType }

const problemType = "application/problem+json"

// statusOf is the one table from a class of failure to a status; 0 marks a class that is missing from it.
func statusOf(c fault.Class) int {
	switch c {
	case fault.Internal:
		return http.StatusInternalServerError
	case fault.Invalid:
		return http.StatusBadRequest
	case fault.Mismatch:
		return http.StatusUnprocessableEntity
	case fault.Unauthenticated:
		return http.StatusUnauthorized
	case fault.Forbidden:
		return http.StatusForbidden
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict:
		return http.StatusConflict
	case fault.Stale:
		return http.StatusPreconditionFailed
	case fault.TooLarge:
		return http.StatusRequestEntityTooLarge
	case fault.Throttled:
		return http.StatusTooManyRequests
	case fault.Unavailable:
		return http.StatusServiceUnavailable
	case fault.Canceled:
		return statusClientGone
	}
	return 0
}

// statusClientGone is for the log: whoever would read it is not there any more.
const statusClientGone = 499

// problemFrom describes err to a client. What is not a fault, and what is internal, says nothing of its cause.
func problemFrom(err error, requestID string) *Problem {
	var f *fault.Error
	if !errors.As(err, &f) {
		f = fault.New(fault.Internal, "", "", "")
	}
	detail := f.Message
	if f.Class == fault.Internal || detail == "" {
		detail = explain(f.StableCode()).Title
	}
	p := newProblem(statusOf(f.Class), f.StableCode(), detail, requestID)
	if f.Class == fault.Invalid {
		p.Errors = f.Fields
	}
	switch f.Class {
	case fault.Unauthenticated:
		p.headers.Set("WWW-Authenticate", challenge(f.StableCode()))
	case fault.Throttled, fault.Unavailable:
		p.headers.Set("Retry-After", seconds(max(f.After, time.Second)))
	case fault.Conflict:
		if f.After > 0 || f.Code == codeInProgress {
			p.headers.Set("Retry-After", seconds(max(f.After, time.Second)))
		}
	}
	return p
}

func newProblem(status int, code, detail, requestID string) *Problem {
	return &Problem{Type: errorsPath + "#" + code, Title: explain(code).Title, Status: status, Detail: detail,
		Code: code, RequestID: requestID, headers: http.Header{}}
}

// challenge tells a client how to sign in, and whether it was the token that was refused (RFC 6750).
func challenge(code string) string {
	switch code {
	case codeTokenInvalid, "session_ended", "refresh_refused":
		return `Bearer realm="memory", error="invalid_token"`
	}
	return `Bearer realm="memory"`
}

func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}

// write answers with the problem where huma is not in charge.
func (p *Problem) write(w http.ResponseWriter) {
	h := w.Header()
	for k, vs := range p.headers {
		h[k] = vs
	}
	h.Set("Content-Type", problemType)
	h.Set("Cache-Control", "no-store")
	h.Del("Content-Length")
	w.WriteHeader(p.Status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(p) // the client may be gone; the access log has the status
}
