package httpapi

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/klauspost/compress/gzhttp"

	"claude-memory-backend/internal/fault"
)

// Server answers HTTP.
//
//	s, err := httpapi.NewServer(cfg, deps)
//	err = s.Serve(ctx, listener) // until ctx ends and everything has drained
type Server struct {
	cfg        Config
	deps       Deps
	log        *slog.Logger
	now        func() time.Time
	started    time.Time
	limits     *limits
	meters     *meters
	streams    *streams
	origins    *http.CrossOriginProtection
	compressed func(http.Handler) http.Handler
	api        huma.API
	spec       document
	table      []operation
	handler    http.Handler
	draining   atomic.Bool
}

// NewServer mounts every operation of the table.
func NewServer(cfg Config, deps Deps) (*Server, error) {
	const op = "httpapi.NewServer"
	cfg = cfg.withDefaults()
	if len(cfg.OnceSecret) < 32 {
		return nil, fault.New(fault.Invalid, op, "", "the secret for idempotent requests needs at least 32 bytes")
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	s := &Server{cfg: cfg, deps: deps, log: deps.Log, now: deps.Now, started: deps.Now(),
		limits: newLimits(cfg, deps.Now), streams: newStreams(), origins: http.NewCrossOriginProtection(),
		table: operations()}
	for _, o := range cfg.AllowedOrigins {
		if err := s.origins.AddTrustedOrigin(o); err != nil {
			return nil, fault.New(fault.Invalid, op, "", "an allowed origin is not of the form scheme://host").With(err)
		}
	}
	var err error
	if s.meters, err = newMeters(deps.Collectors, s.streams.count); err != nil {
		return nil, fault.Wrap(op, err)
	}
	gzip, err := gzhttp.NewWrapper(gzhttp.EnableZstd(false), gzhttp.MinSize(1400), gzhttp.SetContentType(false),
		gzhttp.ContentTypes([]string{"application/json", problemType, "application/openapi+json",
			"application/openapi+yaml", "text/plain", "text/html"}))
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	s.compressed = func(h http.Handler) http.Handler { return gzip(h) }
	if err := s.mount(); err != nil {
		return nil, fault.Wrap(op, err)
	}
	return s, nil
}

// mount builds the router, the OpenAPI document and the layers around them from the table.
func (s *Server) mount() error {
	mux := http.NewServeMux()
	s.api = humago.New(mux, s.description())
	methods := map[string][]string{}
	paths := http.NewServeMux()
	schemas := s.api.OpenAPI().Components.Schemas
	turn := schemas.Schema(reflect.TypeFor[exchangeView](), true, "")
	for _, t := range eventTypes() {
		schemas.Schema(t, true, "")
	}
	for i := range s.table {
		o := &s.table[i]
		d := o.document()
		for _, r := range o.answers {
			if m := r.Content["application/json"]; m != nil && m.Schema == nil {
				m.Schema = turn
			}
		}
		d.Middlewares = huma.Middlewares{s.admit(o)}
		o.mount(s, s.api, d)
		if methods[o.Path] == nil {
			paths.HandleFunc(o.Path, func(http.ResponseWriter, *http.Request) {})
		}
		methods[o.Path] = append(methods[o.Path], o.Method)
		if o.Method == http.MethodGet {
			methods[o.Path] = append(methods[o.Path], http.MethodHead)
		}
	}
	for p := range methods {
		slices.Sort(methods[p])
	}
	mux.HandleFunc("/", s.unmatched(func(r *http.Request) []string {
		_, pattern := paths.Handler(r)
		return methods[pattern]
	}))
	var err error
	if s.spec, err = s.describe(); err != nil {
		return err
	}
	s.handler = s.wrap(s.cleanOnly(mux))
	return nil
}

// Handler is the whole door, for tests and for whoever serves more than this one.
func (s *Server) Handler() http.Handler { return s.handler }

// lastWords is how long streams that are told to end have to say so.
const lastWords = 500 * time.Millisecond

// Serve answers on l until ctx ends, then drains: readiness answers 503 at once, requests and streams may end within
// the drain time, and what is left then is closed. Whoever comes while Config.Linger is open is still answered: a balancer
// must be able to ask for readiness, and a client to read on. Serve closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	const op = "httpapi.Serve"
	srv := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		s.streams.end()
		return fault.Wrap(op, err)
	case <-ctx.Done():
	}
	s.Drain()
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTime)
	defer cancel()
	// Streams are told to end a little before Shutdown gives up, so that their last words still get out. No sooner: the last turns
	// are interrupted not long before.
	last := time.AfterFunc(s.cfg.DrainTime-min(s.cfg.DrainTime/10, lastWords), s.streams.end)
	defer last.Stop()
	srv.SetKeepAlivesEnabled(false) // the next request finds another server
	if s.cfg.Linger != nil {
		select {
		case <-s.cfg.Linger:
		case <-drain.Done():
		}
	}
	err := srv.Shutdown(drain)
	s.streams.end()
	if err != nil {
		// The time is up: what is still open is a connection that says nothing, or a client that does not read.
		s.log.Warn("connections closed before their end", "streams", s.streams.count())
		err = srv.Close()
	}
	<-failed //nolint:errcheck // http.ErrServerClosed: Shutdown or Close ended it
	return fault.Wrap(op, err)
}

// Drain makes readiness answer 503, and ends streams that never end by themselves; Serve calls it when its context ends.
func (s *Server) Drain() {
	s.draining.Store(true)
	s.streams.drain()
}
