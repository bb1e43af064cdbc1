package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/klauspost/compress/gzhttp"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// humaContext lets exchange embed huma.Context, which has a method of that name.
type humaContext huma.Context

// exchange is one request on its way through an operation. It is huma's context, and carries, with types, what a
// handler needs: nothing is hidden in the request's context.
type exchange struct {
	humaContext
	s         *Server
	op        *operation
	ctx       context.Context
	w         http.ResponseWriter
	r         *http.Request
	client    client
	requestID string
	actor     ident.Actor
	tenant    ident.TenantID
	expires   time.Time // the access token
	byCookie  bool      // the actor was identified by a cookie
	body      []byte
	status    int // overrides huma's choice while it writes one of its own errors
	atEnd     []func()
	waited    time.Duration // for databases to be opened
}

// Context returns the context of the operation.
func (x *exchange) Context() context.Context { return x.ctx }

// Unwrap returns the context that this one wraps.
func (x *exchange) Unwrap() huma.Context { return x.humaContext }

// BodyReader hands huma the body that was already read and checked.
func (x *exchange) BodyReader() io.Reader { return bytes.NewReader(x.body) }

// SetReadDeadline does nothing: the body has been read.
func (x *exchange) SetReadDeadline(time.Time) error { return nil }

// SetStatus writes the status, or the one that a problem has instead of huma's.
func (x *exchange) SetStatus(code int) {
	if x.status != 0 {
		code = x.status
	}
	x.humaContext.SetStatus(code)
}

// done runs what was put off until the answer is written.
func (x *exchange) done() {
	for i := len(x.atEnd) - 1; i >= 0; i-- {
		x.atEnd[i]()
	}
}

// workspace opens the actor's tenant until the exchange is done.
func (x *exchange) workspace() (Workspace, error) {
	ws, err := x.s.deps.Open(x.ctx, x.actor, x.tenant)
	if err != nil {
		return Workspace{}, err
	}
	x.opened(ws)
	return ws, nil
}

// opened has a workspace given back when the exchange is done.
func (x *exchange) opened(ws Workspace) {
	x.atEnd = append(x.atEnd, ws.Release)
	if x.waited += ws.Waited; x.waited > 0 {
		// The standard's way to tell a slow answer's reason: browsers show it beside the request.
		x.w.Header().Set("Server-Timing", fmt.Sprintf("open;dur=%.3f", float64(x.waited)/float64(time.Millisecond)))
	}
}

// admit is the middleware of every operation: it lets a request through to huma, or answers it.
func (s *Server) admit(op *operation) func(huma.Context, func(huma.Context)) {
	schema := new(bodySchema)
	return func(hc huma.Context, next func(huma.Context)) {
		r, w := humago.Unwrap(hc)
		rec := recorderOf(w)
		x := &exchange{humaContext: hc, s: s, op: op, w: w, r: r, client: rec.client, requestID: rec.requestID}
		rec.route = op.Path
		defer x.done()
		if op.secret {
			// Secrets next to attacker-chosen text must not be compressed together.
			w.Header().Set(gzhttp.HeaderNoCompression, "1")
		}
		x.ctx = r.Context()
		if op.waits {
			// Whoever waits for a model has no deadline, but does not hold up the end of the server.
			ctx, cancel := context.WithCancelCause(r.Context())
			stop := context.AfterFunc(s.streams.ended, func() { cancel(errStopping) })
			x.atEnd = append(x.atEnd, func() { stop(); cancel(nil) })
			x.ctx = ctx
		} else {
			ctx, cancel := context.WithTimeout(r.Context(), s.cfg.RequestTime)
			x.atEnd = append(x.atEnd, cancel)
			x.ctx = ctx
			setWriteDeadline(w, s.now().Add(2*s.cfg.RequestTime))
		}
		if err := x.enter(schema); err != nil {
			p := s.answerTo(x, err)
			p.write(w)
			return
		}
		next(x)
	}
}

// enter identifies, limits and checks the request, in this order.
func (x *exchange) enter(schema *bodySchema) error {
	s, op := x.s, x.op
	signedIn := x.identify()
	if err := s.limits.take(x, signedIn == nil); err != nil {
		return err
	}
	if err := x.permit(signedIn); err != nil {
		return err
	}
	if err := s.checkOrigin(x); err != nil {
		return err
	}
	if err := checkQuery(x.r.URL.RawQuery); err != nil {
		return err
	}
	if op.Body == NoBody {
		return nil
	}
	if err := x.readBody(); err != nil {
		return err
	}
	return schema.check(x)
}

// permit refuses strangers and those who lack the role.
func (x *exchange) permit(signedIn error) error {
	const op = "httpapi.permit"
	isAdmin := signedIn == nil && x.actor.Role == ident.Admin
	switch x.op.Access {
	case Public:
		return nil
	case Account:
		return signedIn
	case Metrics:
		if isAdmin || !x.s.cfg.Production || x.s.holdsMetricsToken(x.r) {
			return nil
		}
	case Admin:
		if isAdmin {
			return nil
		}
	}
	if signedIn != nil {
		return signedIn
	}
	if err := x.s.deps.Accounts.Deny(x.ctx, x.actor, x.op.ID); err != nil {
		x.s.log.Error("refusal not noted", "operation", x.op.ID, "request_id", x.requestID, "code", fault.CodeOf(err))
	}
	return fault.New(fault.Forbidden, op, codeForbidden, "this needs the role admin")
}

// checkQuery refuses query strings that no engine could store or compare.
func checkQuery(raw string) error {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return fault.BadInput("httpapi.checkQuery", "query", "must be properly escaped")
	}
	for name, vs := range values {
		for _, v := range vs {
			if !utf8.ValidString(v) || strings.ContainsRune(v, 0) {
				if !utf8.ValidString(name) {
					name = ""
				}
				return fault.BadInput("httpapi.checkQuery", "query."+name, "must be valid UTF-8 without NUL characters")
			}
		}
	}
	return nil
}

// readBody reads the whole body before anything is answered: a relay that streams both ways at once breaks some
// streams.
func (x *exchange) readBody() error {
	const op = "httpapi.readBody"
	limit := x.s.cfg.BodyLimit
	if x.op.Body == MessageBody {
		limit = x.s.cfg.MessageLimit
	}
	tooLarge := fault.New(fault.TooLarge, op, codeTooLarge, "the body is over the limit of this call")
	if x.r.ContentLength > limit {
		return tooLarge
	}
	rc := http.NewResponseController(x.w)
	_ = rc.SetReadDeadline(x.s.now().Add(x.s.cfg.BodyTime)) // not supported by test recorders
	body, err := io.ReadAll(io.LimitReader(x.r.Body, limit+1))
	_ = rc.SetReadDeadline(time.Time{})
	if err != nil {
		if ne, ok := errors.AsType[net.Error](err); errors.Is(err, os.ErrDeadlineExceeded) || ok && ne.Timeout() {
			x.w.Header().Set("Connection", "close")
			return newProblem(http.StatusRequestTimeout, codeSlowBody, "the body did not arrive in time", x.requestID)
		}
		if x.r.Context().Err() != nil {
			return fault.New(fault.Canceled, op, "", "the client went away").With(err)
		}
		return fault.New(fault.Invalid, op, codeMalformed, "the body could not be read").With(err)
	}
	if int64(len(body)) > limit {
		return tooLarge
	}
	x.body = body
	if len(body) == 0 {
		if x.op.optional {
			return nil
		}
		return fault.New(fault.Invalid, op, codeMalformed, "a body is needed")
	}
	return x.checkMediaType()
}

// checkMediaType accepts JSON in UTF-8 only. A body without a type is taken for JSON; browsers cannot send one
// without a type across origins, and requests with cookies have passed the origin check anyway.
func (x *exchange) checkMediaType() error {
	given := x.r.Header.Get("Content-Type")
	if given == "" {
		x.r.Header.Set("Content-Type", "application/json")
		return nil
	}
	kind, params, err := mime.ParseMediaType(given)
	charset, has := params["charset"]
	ok := err == nil && (!has || strings.EqualFold(charset, "utf-8")) && x.r.Header.Get("Content-Encoding") == "" &&
		(kind == "application/json" || x.op.Method == http.MethodPatch && kind == "application/merge-patch+json")
	if !ok {
		return newProblem(http.StatusUnsupportedMediaType, codeMediaType,
			"send the body as application/json in UTF-8, not compressed", x.requestID)
	}
	return nil
}

// restate is huma's transformer: its own errors become our problems. Handlers never return huma's.
func restate(hc huma.Context, _ string, v any) (any, error) {
	em, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	x := hc.(*exchange)
	var p *Problem
	switch em.Status {
	case http.StatusUnprocessableEntity, http.StatusBadRequest:
		p = newProblem(http.StatusBadRequest, codeInvalid, "the request is not valid", x.requestID)
		for _, e := range em.Errors {
			// The value is not repeated: it may be a password.
			p.Errors = append(p.Errors, fault.Field{Location: e.Location, Message: e.Message})
		}
		// Which of several mistakes comes first must not depend on the order of a map.
		sortFields(p.Errors)
	case http.StatusNotAcceptable:
		p = newProblem(em.Status, codeNotAcceptable, "the answer is application/json", x.requestID)
	default:
		x.s.log.Error("huma failed", "operation", x.op.ID, "request_id", x.requestID, "status", em.Status)
		p = newProblem(http.StatusInternalServerError, "internal", explain("internal").Title, x.requestID)
	}
	x.status = p.Status
	return p, nil
}

// setWriteDeadline bounds how long a client may take to read; recorders in tests do not support it.
func setWriteDeadline(w http.ResponseWriter, t time.Time) {
	_ = http.NewResponseController(w).SetWriteDeadline(t)
}
