package httpapi

import (
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"claude-memory-backend/internal/fault"
)

// wrap puts the layers around the router, in the order that the package comment gives.
func (s *Server) wrap(router http.Handler) http.Handler {
	layers := []func(http.Handler) http.Handler{
		s.record, s.recovered, s.logged, s.measured, s.secured, s.shared, s.compressed,
	}
	h := router
	for _, layer := range slices.Backward(layers) {
		h = layer(h)
	}
	return h
}

// record notes who asks and gives the request its id, before anything can fail.
func (s *Server) record(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w, started: s.now(), client: clientOf(r, s.cfg.TrustedProxies),
			requestID: requestID(r.Header.Get("X-Request-Id"))}
		rec.Header().Set("X-Request-Id", rec.requestID)
		rec.refuse = func() { s.takeRest(rec, r) }
		// Whatever answers this request, a client that does not read must not hold the connection for ever.
		setWriteDeadline(rec, s.now().Add(2*s.cfg.RequestTime))
		next.ServeHTTP(rec, r)
	})
}

// restMost is how much of a body is taken that nobody wants. Nothing of it is kept.
const restMost = 64 << 20

// takeRest takes what is still to come of the body of a request that is refused. Most clients read no answer before they have
// sent everything: they would see a broken connection instead of the reason. It takes no longer than any body may, and nothing
// from a client that asked first whether to send and is refused because of what it announced.
func (s *Server) takeRest(rec *recorder, r *http.Request) {
	asked := r.Header.Get("Expect") != "" && r.ContentLength > 0
	if r.ContentLength == 0 || r.ContentLength > restMost || asked || rec.Header().Get("Connection") == "close" {
		return
	}
	rc := http.NewResponseController(rec.ResponseWriter)
	_ = rc.SetReadDeadline(s.now().Add(s.cfg.BodyTime)) // not supported by test recorders
	if _, err := io.CopyN(io.Discard, r.Body, restMost); !errors.Is(err, io.EOF) {
		rec.Header().Set("Connection", "close") // the deadline stays: net/http would wait for the rest without one
		return
	}
	_ = rc.SetReadDeadline(time.Time{})
}

// requestID takes a sane id from the client, so that it can follow its request, or makes one.
func requestID(given string) string {
	sane := len(given) > 0 && len(given) <= 128
	for _, c := range []byte(given) {
		sane = sane && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
			c == '-' || c == '_' || c == '.')
	}
	if sane {
		return given
	}
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return "req-" + strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}

// recovered answers a panic with a problem, as long as nothing has been written.
func (s *Server) recovered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if v == http.ErrAbortHandler { //nolint:errorlint // panics carry this very value
				panic(v)
			}
			rec := recorderOf(w)
			s.log.Error("panic", "request_id", rec.requestID, "route", rec.route, "panic", fmt.Sprint(v),
				"stack", string(debug.Stack()))
			if rec.status != 0 {
				panic(http.ErrAbortHandler) // half an answer must not look like a whole one
			}
			problemFrom(fault.New(fault.Internal, "httpapi", "", ""), rec.requestID).write(w)
		}()
		next.ServeHTTP(w, r)
	})
}

// logged writes one line per request: never a query string, a body, or an identifier from a path.
func (s *Server) logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := recorderOf(w)
		defer func() {
			s.log.Info("request", "method", methodLabel(r.Method), "route", routeLabel(rec.route), "status", rec.status,
				"duration_ms", s.now().Sub(rec.started).Milliseconds(), "bytes", rec.bytes, "request_id", rec.requestID)
		}()
		next.ServeHTTP(w, r)
	})
}

// secured sets the headers that every answer has. An answer that differs sets its own over them.
func (s *Server) secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-site")
		h.Set("Cache-Control", "no-store")
		if s.cfg.Production {
			h.Set("Strict-Transport-Security", "max-age=31536000; includeSubDomains")
		}
		next.ServeHTTP(w, r)
	})
}

const (
	corsMethods = "GET, POST, PUT, PATCH, DELETE"
	corsHeaders = "Authorization, Content-Type, Accept, If-Match, Idempotency-Key, Last-Event-ID, Prefer, X-Request-Id"
	corsExposed = "ETag, Location, X-Request-Id, Retry-After, RateLimit, RateLimit-Policy, Idempotency-Replayed, " +
		"Preference-Applied"
)

// shared lets the pages of allowed origins read answers (CORS), and answers their preflights. Other origins get no
// headers: their browser keeps the answer from them.
func (s *Server) shared(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Add("Vary", "Origin")
		origin := r.Header.Get("Origin")
		allowed := origin != "" && slices.Contains(s.cfg.AllowedOrigins, origin)
		if allowed {
			h.Set("Access-Control-Allow-Origin", origin)
			h.Set("Access-Control-Allow-Credentials", "true")
			h.Set("Access-Control-Expose-Headers", corsExposed)
			// The allowed origin may be another site; its own credentials decide what it may read.
			h.Set("Cross-Origin-Resource-Policy", "cross-origin")
		}
		if r.Method == http.MethodOptions && origin != "" && r.Header.Get("Access-Control-Request-Method") != "" {
			h.Add("Vary", "Access-Control-Request-Method")
			h.Add("Vary", "Access-Control-Request-Headers")
			if allowed {
				h.Set("Access-Control-Allow-Methods", corsMethods)
				h.Set("Access-Control-Allow-Headers", corsHeaders)
				h.Set("Access-Control-Max-Age", "600")
			}
			recorderOf(w).route = "preflight"
			w.WriteHeader(http.StatusNoContent)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// checkOrigin protects what cookies open from pages of other origins (CSRF). Requests that prove themselves by a
// header need no protection: no page can make a browser send that.
func (s *Server) checkOrigin(x *exchange) error {
	ambient := x.byCookie || x.op.Limit == SignIn
	if !ambient {
		return nil
	}
	if err := s.origins.Check(x.r); err != nil {
		return fault.New(fault.Forbidden, "httpapi.checkOrigin", codeCrossOrigin,
			"this origin may not send requests with cookies").With(err)
	}
	return nil
}

// unmatched answers what no operation serves: a method that the path does not take, or nothing at all.
func (s *Server) unmatched(methods func(*http.Request) []string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		rec := recorderOf(w)
		allow := methods(r)
		if len(allow) == 0 {
			problemFrom(fault.Missing("httpapi"), rec.requestID).write(w)
			return
		}
		w.Header().Set("Allow", strings.Join(allow, ", "))
		if r.Method == http.MethodOptions {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		newProblem(http.StatusMethodNotAllowed, codeMethod, "this address does not take that method",
			rec.requestID).write(w)
	}
}

// cleanOnly answers paths that the router would redirect: a redirect would lose a body, and says which paths exist.
func (s *Server) cleanOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := r.URL.Path
		if p == "" || p[0] != '/' || path.Clean(p) != strings.TrimSuffix(p, "/") && p != "/" || r.Method == http.MethodConnect {
			problemFrom(fault.Missing("httpapi"), recorderOf(w).requestID).write(w)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// methodLabel keeps invented methods out of logs and metrics.
func methodLabel(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
		http.MethodOptions:
		return m
	}
	return "other"
}

func routeLabel(route string) string {
	if route == "" {
		return "unmatched"
	}
	return route
}

func statusLabel(status int) string {
	if status == 0 {
		return "none"
	}
	return strconv.Itoa(status)
}
