package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"claude-memory-backend/internal/fault"
)

// Access says who may call an operation at all.
type Access string

// The accesses.
const (
	Public  Access = "public"  // anybody
	Account Access = "account" // whoever is signed in; services decide about the rest
	Admin   Access = "admin"   // accounts with the role admin
	Metrics Access = "metrics" // in production: METRICS_TOKEN or an admin; else anybody
)

// LimitClass says which rate limit an operation counts against.
type LimitClass string

// The classes.
const (
	Unlimited LimitClass = "none"    // probes
	Ordinary  LimitClass = "account" // per account, or per address for strangers
	SignIn    LimitClass = "sign_in" // per address, strict
	// Deliveries is per address, and generous: every answer of an n8n comes from one.
	Deliveries LimitClass = "delivery"
)

// OperationInfo is one row of the table, as tests and other doors see it.
type OperationInfo struct {
	ID     string
	Method string
	Path   string // a template: "/api/v1/projects/{id}"
	Access Access
	Limit  LimitClass
	Body   Body
	Hidden bool // serves a page; not part of the OpenAPI document
}

// Body says how large a body may be; which numbers these are is Config's business.
type Body string

// The body classes.
const (
	NoBody      Body = ""
	SmallBody   Body = "small"
	MessageBody Body = "message"
)

// Operations lists everything that can be called.
func Operations() []OperationInfo {
	table := operations()
	list := make([]OperationInfo, len(table))
	for i, o := range table {
		list[i] = o.OperationInfo
	}
	return list
}

// operation is a row with its documentation and its handler.
type operation struct {
	OperationInfo
	tag         string
	summary     string
	description string
	status      int   // of success; the others are described by answers
	errors      []int // beyond those that access, limits and input imply
	answers     map[string]*huma.Response
	once        bool // takes Idempotency-Key
	waits       bool // may wait for a model: no deadline of its own
	secret      bool // answers hold secrets: never compressed
	optional    bool // the body may be left out
	free        bool // the body is any JSON, whose fields the handler knows
	mount       func(*Server, huma.API, huma.Operation)
}

// Call gives a handler its exchange. Inputs embed it.
type Call struct{ x *exchange }

// Resolve takes the exchange that the admission made.
func (c *Call) Resolve(ctx huma.Context) []error {
	c.x = ctx.(*exchange)
	return nil
}

func (c *Call) exchange() *exchange { return c.x }

// on mounts a handler: errors become problems, and those that nobody expects are logged here, once.
func on[I, O any, P interface {
	*I
	exchange() *exchange
}](handle func(*Server, *exchange, *I) (*O, error)) func(*Server, huma.API, huma.Operation) {
	return func(s *Server, api huma.API, op huma.Operation) {
		huma.Register(api, op, func(_ context.Context, in *I) (*O, error) {
			x := P(in).exchange()
			out, err := handle(s, x, in)
			if err != nil {
				return nil, s.answerTo(x, err)
			}
			return out, nil
		})
	}
}

// answerTo turns what a handler returned into the problem that is answered.
func (s *Server) answerTo(x *exchange, err error) *Problem {
	// Whoever waited long for a model must still hear why there is no answer.
	setWriteDeadline(x.w, s.now().Add(s.cfg.RequestTime))
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	if x.r.Context().Err() == nil && errors.Is(x.ctx.Err(), context.DeadlineExceeded) {
		err = fault.New(fault.Unavailable, "httpapi", codeTimedOut, "the server gave up: it took too long").With(err)
	}
	if x.r.Context().Err() == nil && errors.Is(context.Cause(x.ctx), errStopping) {
		err = fault.New(fault.Unavailable, "httpapi", codeStopping, "the server is stopping").With(err)
	}
	if x.r.Context().Err() == nil && lostAccess(x.ctx) {
		err = fault.Missing("httpapi").With(err)
	}
	switch fault.ClassOf(err) {
	case fault.Internal:
		s.log.Error("request failed", "operation", x.op.ID, "request_id", x.requestID, "code", fault.CodeOf(err),
			"error", err.Error())
	case fault.Unavailable:
		s.log.Warn("request not served", "operation", x.op.ID, "request_id", x.requestID, "code", fault.CodeOf(err),
			"error", err.Error())
	}
	return problemFrom(err, x.requestID)
}

// document describes the row to huma, errors included.
func (o operation) document() huma.Operation {
	d := huma.Operation{
		OperationID: o.ID, Method: o.Method, Path: o.Path, Tags: []string{o.tag}, Summary: o.summary,
		Description: o.description, DefaultStatus: o.status, Hidden: o.Hidden,
		Responses: map[string]*huma.Response{},
		// Bodies are read, limited and checked before huma sees them (exchange.go).
		MaxBodyBytes: -1, BodyReadTimeout: -1,
	}
	for status, r := range o.answers {
		d.Responses[status] = r
	}
	for _, status := range o.problems() {
		d.Responses[strconv.Itoa(status)] = &huma.Response{Ref: "#/components/responses/Problem" + strconv.Itoa(status)}
	}
	if o.Access == Account || o.Access == Admin {
		d.Security = []map[string][]string{{"bearer": {}}, {"cookie": {}}}
	}
	if o.Access == Metrics {
		d.Security = []map[string][]string{{}, {"metrics": {}}, {"bearer": {}}, {"cookie": {}}}
	}
	if o.once {
		longest := 255
		d.Parameters = append(d.Parameters, &huma.Param{Name: "Idempotency-Key", In: "header",
			Description: "Makes repeating safe: the same key with the same body gets the first answer again, with " +
				"`Idempotency-Replayed: true`, for 24 hours.",
			Schema: &huma.Schema{Type: "string", MaxLength: &longest}, Example: "2f0c1b9e-send-1"})
	}
	return d
}

// problems lists the statuses of the errors that an operation may answer with.
func (o operation) problems() []int {
	list := append([]int{}, o.errors...)
	list = append(list, http.StatusBadRequest, http.StatusInternalServerError, http.StatusServiceUnavailable)
	if o.Access != Public {
		// Forbidden: a role is missing, the origin is wrong, or the operator suspended the account's data.
		list = append(list, http.StatusUnauthorized, http.StatusForbidden)
	}
	if o.Limit != Unlimited {
		list = append(list, http.StatusTooManyRequests)
	}
	if o.Body != NoBody {
		list = append(list, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusRequestTimeout)
	}
	if o.once {
		list = append(list, http.StatusConflict, http.StatusUnprocessableEntity)
	}
	return list
}
