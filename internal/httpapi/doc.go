// Package httpapi is the REST door: it decodes a request, calls one service method, and encodes what comes back. It
// owns JSON shapes, cookies, CORS and CSRF, request limits, problem responses (RFC 9457), Server-Sent Events, the
// OpenAPI document with its page, health answers and request metrics.
//
// It never decides who may do what (services do; the door only refuses strangers), writes no SQL, knows no default of
// the business, and reads no environment: [Config] and [Deps] are all it gets.
//
// Everything that can be called is one row of the table in table.go. Router, OpenAPI, metric labels, rate limits and
// the tests that strangers are refused everywhere are driven by that table; [Operations] shows it to other packages.
//
// A request passes, from the outside in: recovery from panics, request id, access log, metrics, security headers,
// CORS, compression, the router; then, once its operation is known: deadlines, identification, rate limit, refusal of
// strangers, CSRF check, body limit and JSON strictness, validation against the schema, the handler.
//
// A Server is serving, then draining (readiness answers 503, streams and requests come to their end), then closed.
package httpapi
