package emulator

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// Script says how to answer the requests it matches. Scripts are tried in the order in which they were pushed.
type Script struct {
	Name  string // selects the script by the header x-emulator-script; then nothing else must match
	User  string // the newest user text contains it; empty matches every request
	Model string // the request's model
	Times int    // how often it may answer: 0 means once, negative always

	Text        string            // what to say; empty with no Blocks means the echo
	Thinking    string            // a thinking block before it, signed
	Blocks      []json.RawMessage // instead of both: content as given; thinking without a signature gets one
	StopReason  string
	StopDetails json.RawMessage
	Usage       json.RawMessage // fields laid over the computed usage, such as iterations
	AnswerAs    string          // the model that answers, if another one
	Raw         string          // instead of everything: the body of the stream, byte for byte

	FirstDelay time.Duration
	PieceDelay time.Duration
	Fault      Fault
}

// FaultKind names a way to fail.
type FaultKind string

// The ways to fail. Those within a stream happen after AfterPieces deltas; before the first event when it is -1.
const (
	NoFault     FaultKind = ""
	Refuse      FaultKind = "refuse"      // an HTTP error: Status, Type, Message, RetryAfter, ShouldRetry, Details
	ErrorEvent  FaultKind = "error_event" // an error event within the stream: Type, Message
	Cut         FaultKind = "cut"         // a clean end without message_stop
	NoLastBlank FaultKind = "no_blank"    // complete, but the last blank line is missing
	HalfEvent   FaultKind = "half_event"  // the body ends in the middle of an event
	Reset       FaultKind = "reset"       // the connection is reset
	Stall       FaultKind = "stall"       // silence until the client leaves
	Unknown     FaultKind = "unknown"     // unknown events, deltas and blocks are mixed in; nothing fails
	NotJSON     FaultKind = "not_json"    // an event that is no JSON
	WebPage     FaultKind = "web_page"    // status 200 and a page, as gateways do
	Redirect    FaultKind = "redirect"    // to Message
)

// Fault is one failure.
type Fault struct {
	Kind        FaultKind
	AfterPieces int

	Status       int
	Type         string // default: the type that belongs to the status
	Message      string
	RetryAfter   string // header value: seconds or a date
	RetryAfterMs string
	ShouldRetry  string // header x-should-retry
	Details      json.RawMessage
}

// Push adds a script.
func (s *Server) Push(script Script) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scripts = append(s.scripts, &script)
}

// take finds the script of a request and uses it up.
func (s *Server) take(r *http.Request, req *request) *Script {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := r.Header.Get("x-emulator-script")
	question := req.question()
	for i, script := range s.scripts {
		switch {
		case wanted != "":
			if script.Name != wanted {
				continue
			}
		case script.Model != "" && script.Model != req.Model, !strings.Contains(question, script.User):
			continue
		}
		found := *script
		if script.Times >= 0 {
			if script.Times--; script.Times <= 0 {
				s.scripts = append(s.scripts[:i], s.scripts[i+1:]...)
			}
		}
		return &found
	}
	return &Script{}
}

var kindOf = map[int]string{400: "invalid_request_error", 401: "authentication_error", 402: "billing_error",
	403: "permission_error", 404: "not_found_error", 409: "conflict_error", 413: "request_too_large",
	429: "rate_limit_error", 500: "api_error", 504: "timeout_error", 529: "overloaded_error"}

func (f Fault) refusal() *apiError {
	e := &apiError{status: f.Status, kind: f.Type, message: f.Message, details: f.Details, header: http.Header{}}
	if e.kind == "" {
		e.kind = kindOf[f.Status]
	}
	if e.kind == "" {
		e.kind = "api_error"
	}
	if e.message == "" {
		e.message = "Overloaded"
	}
	for name, value := range map[string]string{"Retry-After": f.RetryAfter, "Retry-After-Ms": f.RetryAfterMs,
		"X-Should-Retry": f.ShouldRetry} {
		if value != "" {
			e.header.Set(name, value)
		}
	}
	return e
}
