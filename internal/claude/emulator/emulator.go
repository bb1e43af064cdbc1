package emulator

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Options describe one emulated organisation. The zero value works.
type Options struct {
	Keys       map[string]string // API key to workspace; default: any key that starts with "sk-ant-", one workspace
	Now        func() time.Time  // drives cache lifetimes, rate limits and timestamps
	FirstDelay time.Duration     // before the first event of a stream
	PieceDelay time.Duration     // between two deltas
	PieceRunes int               // longest piece of text; default 7
	Even       bool              // all pieces but the last are as long as the longest
	Limits     Limits            // zero values mean the recorded sample limits
	Binding    string            // what a thinking block behind another prefix meets: "error" (default) or "drop_block"
	Secret     []byte            // signs thinking; default: a fixed one
	Quiet      bool              // no pings and no padding
}

// Limits are per workspace, model and minute. A negative number means no limit.
type Limits struct {
	Requests, InputTokens, OutputTokens int
}

// NoLimits switches the rate limits and their headers off, for benchmarks.
func NoLimits() Limits { return Limits{Requests: -1, InputTokens: -1, OutputTokens: -1} }

// Server is one emulated API with its memory: cache, limits, scripts, journal. It is safe for concurrent use.
type Server struct {
	opts Options

	mu      sync.Mutex
	scripts []*Script
	journal []Entry
	cache   map[cacheKey]cached
	buckets map[string]*allowance
	batches map[string][]json.RawMessage
	serial  int
}

// Entry is one received request and what became of it.
type Entry struct {
	At        time.Time
	Method    string
	Path      string
	Header    http.Header
	Body      []byte // the exact bytes
	Workspace string
	Status    int
	RequestID string
	Script    string // name of the script that answered
	Usage     Usage
}

// New returns a server.
func New(o Options) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.PieceRunes <= 0 {
		o.PieceRunes = 7
	}
	if o.Binding == "" {
		o.Binding = "error"
	}
	if o.Secret == nil {
		o.Secret = []byte("emulator: thinking")
	}
	usual := func(n *int, d int) {
		if *n == 0 {
			*n = d
		}
	}
	usual(&o.Limits.Requests, 4000)
	usual(&o.Limits.InputTokens, 200_000)
	usual(&o.Limits.OutputTokens, 80_000)
	return &Server{opts: o, cache: map[cacheKey]cached{}, buckets: map[string]*allowance{},
		batches: map[string][]json.RawMessage{}}
}

// Journal returns what was received so far, oldest first.
func (s *Server) Journal() []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.journal)
}

// Forget empties the journal and the scripts that wait; the cache stays.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.journal, s.scripts = nil, nil
}

// Handler serves the API's paths.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/messages", s.guard(s.messages))
	mux.HandleFunc("POST /v1/messages/count_tokens", s.guard(s.countTokens))
	mux.HandleFunc("POST /v1/messages/batches", s.guard(s.createBatch))
	mux.HandleFunc("GET /v1/messages/batches/{id}", s.guard(s.findBatch))
	mux.HandleFunc("GET /v1/messages/batches/{id}/results", s.guard(s.batchResults))
	mux.HandleFunc("GET /v1/models", s.guard(s.listModels))
	mux.HandleFunc("GET /v1/models/{id}", s.guard(s.findModel))
	mux.HandleFunc("/", s.guard(func(c *call) *apiError { return notFound("Not found") }))
	return mux
}

// call is one request on its way through the emulator.
type call struct {
	w         http.ResponseWriter
	r         *http.Request
	body      []byte
	id        string
	workspace string
	betas     []string
	entry     int // place in the journal
	script    *Script
}

const maxBody = 32 << 20

// guard does what all paths share: the journal, the request id, the version, the key.
func (s *Server) guard(serve func(*call) *apiError) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody+1))
		c := &call{w: w, r: r, body: body}
		c.id = s.next("req_011")
		for _, line := range r.Header.Values("anthropic-beta") {
			for name := range strings.SplitSeq(line, ",") {
				c.betas = append(c.betas, strings.TrimSpace(name))
			}
		}
		s.record(c)
		w.Header().Set("request-id", c.id)
		w.Header().Set("anthropic-organization-id", "org_emulator")
		fail := s.admit(c, err)
		if fail == nil {
			fail = serve(c)
		}
		if fail != nil {
			s.fail(c, fail)
		}
	}
}

func (s *Server) admit(c *call, bodyErr error) *apiError {
	key := c.r.Header.Get("x-api-key")
	if key == "" {
		key = strings.TrimPrefix(c.r.Header.Get("Authorization"), "Bearer ")
	}
	workspace, ok := s.opts.Keys[key]
	if s.opts.Keys == nil {
		workspace, ok = "default", strings.HasPrefix(key, "sk-ant-")
	}
	switch {
	case key == "":
		return &apiError{status: 401, kind: "authentication_error", message: "x-api-key header is required"}
	case !ok:
		return &apiError{status: 401, kind: "authentication_error", message: "invalid x-api-key"}
	case c.r.Header.Get("anthropic-version") == "":
		return invalid("anthropic-version: header is required")
	case c.r.Header.Get("anthropic-version") != "2023-06-01":
		return invalid("anthropic-version: not a valid version")
	case bodyErr != nil || len(c.body) > maxBody:
		return &apiError{status: 413, kind: "request_too_large", message: "Request exceeds the maximum allowed number of bytes."}
	}
	c.workspace = workspace
	s.update(c, func(e *Entry) { e.Workspace = workspace })
	return nil
}

func (s *Server) next(prefix string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", prefix, s.serial))
	const alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
	id := []byte(prefix)
	for _, b := range sum[:20] {
		id = append(id, alphabet[int(b)%len(alphabet)])
	}
	return string(id)
}

func (s *Server) record(c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.entry = len(s.journal)
	s.journal = append(s.journal, Entry{At: s.opts.Now(), Method: c.r.Method, Path: c.r.URL.Path, Status: 200,
		Header: c.r.Header.Clone(), Body: c.body, RequestID: c.id})
}

// update changes the journal entry of a call; a Forget in between has taken it away.
func (s *Server) update(c *call, change func(*Entry)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.entry < len(s.journal) && s.journal[c.entry].RequestID == c.id {
		change(&s.journal[c.entry])
	}
}

// apiError is an answer with an error body.
type apiError struct {
	status  int
	kind    string
	message string
	details json.RawMessage
	header  http.Header
}

func invalid(format string, args ...any) *apiError {
	return &apiError{status: 400, kind: "invalid_request_error", message: fmt.Sprintf(format, args...)}
}

func notFound(message string) *apiError {
	return &apiError{status: 404, kind: "not_found_error", message: message}
}

func (e *apiError) body(id string) []byte {
	inner := map[string]any{"type": e.kind, "message": e.message}
	if e.details != nil {
		inner["details"] = e.details
	}
	b, _ := json.Marshal(map[string]any{"type": "error", "error": inner, "request_id": id})
	return b
}

func (s *Server) fail(c *call, e *apiError) {
	s.update(c, func(entry *Entry) { entry.Status = e.status })
	for name, values := range e.header {
		c.w.Header()[name] = values
	}
	c.w.Header().Set("content-type", "application/json")
	c.w.WriteHeader(e.status)
	_, _ = c.w.Write(e.body(c.id))
}

func (c *call) reply(v any) {
	c.w.Header().Set("content-type", "application/json")
	_ = json.NewEncoder(c.w).Encode(v)
}

func (s *Server) listModels(c *call) *apiError {
	list := make([]any, 0, len(catalogue))
	for _, m := range catalogue {
		list = append(list, m.info())
	}
	c.reply(map[string]any{"data": list, "has_more": false, "first_id": catalogue[0].id,
		"last_id": catalogue[len(catalogue)-1].id})
	return nil
}

func (s *Server) findModel(c *call) *apiError {
	m, ok := findModel(c.r.PathValue("id"))
	if !ok {
		return notFound("model: " + c.r.PathValue("id"))
	}
	c.reply(m.info())
	return nil
}

func (s *Server) countTokens(c *call) *apiError {
	req, fail := s.parse(c, false)
	if fail != nil {
		return fail
	}
	if _, fail = s.checkThinking(req); fail != nil {
		return fail
	}
	c.reply(map[string]any{"input_tokens": req.tokens()})
	return nil
}
