package fault

import (
	"errors"
	"strings"
	"time"
)

// Class says what kind of thing went wrong. The zero value is Internal: an error nobody classified is a defect.
type Class uint8

// The classes. Doors must handle each of them; [Classes] lists them for exhaustive tests.
const (
	Internal        Class = iota // a defect or an unexpected failure; details stay inside
	Invalid                      // the input is wrong; Fields says where
	Mismatch                     // an idempotency key was used again with another body
	Unauthenticated              // nobody is signed in, or the proof is bad
	Forbidden                    // signed in, not allowed, and existence is no secret
	NotFound                     // absent, or the actor may not know that it exists
	Conflict                     // the current state does not allow it
	Stale                        // the version the caller holds is not the current one
	TooLarge                     // over a size limit
	Throttled                    // too many requests; After says when to come back
	Unavailable                  // a dependency is away or full; After says when to come back
	Canceled                     // the caller went away
)

// Classes returns every class, for tests that prove a table exhaustive.
func Classes() []Class {
	return []Class{Internal, Invalid, Mismatch, Unauthenticated, Forbidden, NotFound, Conflict, Stale, TooLarge,
		Throttled, Unavailable, Canceled}
}

// String names the class in snake_case; it is also the default code of an error of that class.
func (c Class) String() string {
	names := [...]string{"internal", "invalid_input", "idempotency_mismatch", "unauthenticated", "forbidden", "not_found",
		"conflict", "stale_version", "too_large", "throttled", "unavailable", "canceled"}
	if int(c) < len(names) {
		return names[c]
	}
	return names[Internal]
}

// Field locates one problem in an input, as in "body.title".
type Field struct {
	Location string `json:"location"`
	Message  string `json:"message"`
}

// Error is what every package of the project returns when something fails.
type Error struct {
	Class   Class
	Op      string        // "conversation.Send": who was doing what
	Code    string        // stable, snake_case, catalogued; empty means Class.String()
	Message string        // safe to show: no secrets, no message text, no driver words
	Fields  []Field       // for Invalid
	After   time.Duration // for Throttled and Unavailable: when a retry makes sense; 0 means unknown
	Cause   error         // for the log of whoever decides what to do; never shown
}

// New returns an error of the class with a code and a safe message.
func New(class Class, op, code, message string) *Error {
	return &Error{Class: class, Op: op, Code: code, Message: message}
}

// Wrap adds an operation to cause and keeps the class, code and message that cause already has. A cause that is
// not a fault becomes Internal. Wrap returns nil for a nil cause.
func Wrap(op string, cause error) error {
	if cause == nil {
		return nil
	}
	var inner *Error
	if errors.As(cause, &inner) {
		return &Error{Class: inner.Class, Op: op, Code: inner.Code, Message: inner.Message, Fields: inner.Fields,
			After: inner.After, Cause: cause}
	}
	return &Error{Class: Internal, Op: op, Message: "something went wrong on the server", Cause: cause}
}

// With returns a copy of e that hides cause behind it.
func (e *Error) With(cause error) *Error {
	c := *e
	c.Cause = cause
	return &c
}

// RetryAfter returns a copy of e that says when to come back.
func (e *Error) RetryAfter(d time.Duration) *Error {
	c := *e
	c.After = d
	return &c
}

// Error is for logs: operation, code, message and the chain of causes. What was only wrapped is said once.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Op != "" {
		b.WriteString(e.Op)
		b.WriteString(": ")
	}
	if inner, ok := e.Cause.(*Error); ok && inner.StableCode() == e.StableCode() && inner.Message == e.Message { //nolint:errorlint // of the next one only
		b.WriteString(inner.Error())
		return b.String()
	}
	b.WriteString(e.StableCode())
	if e.Message != "" {
		b.WriteString(": ")
		b.WriteString(e.Message)
	}
	if e.Cause != nil {
		b.WriteString(": ")
		b.WriteString(e.Cause.Error())
	}
	return b.String()
}

// Unwrap returns the hidden cause.
func (e *Error) Unwrap() error { return e.Cause }

// StableCode is the code clients may match on.
func (e *Error) StableCode() string {
	if e.Code != "" {
		return e.Code
	}
	return e.Class.String()
}

// ClassOf returns the class of the outermost fault in err's chain; Internal when there is none.
func ClassOf(err error) Class {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Class
	}
	return Internal
}

// CodeOf returns the stable code of the outermost fault in err's chain.
func CodeOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.StableCode()
	}
	return Internal.String()
}

// Unknown reports whether nobody can tell if what failed was stored: err, or a cause of it, has the code
// "outcome_unknown". Only looking can tell.
func Unknown(err error) bool {
	for err != nil {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			return false
		}
		if e.Code == "outcome_unknown" {
			return true
		}
		err = e.Cause
	}
	return false
}

// Is reports whether err is a fault of the class.
func Is(err error, class Class) bool { return err != nil && ClassOf(err) == class }

// Missing is the one answer for what does not exist and for what the actor may not know about.
func Missing(op string) *Error {
	return New(NotFound, op, "not_found", "there is nothing here under that address")
}

// BadInput is an Invalid error that names one place in the input.
func BadInput(op, location, message string) *Error {
	return &Error{Class: Invalid, Op: op, Code: "invalid_input", Message: "the request is not valid",
		Fields: []Field{{Location: location, Message: message}}}
}
