package httpapi

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"claude-memory-backend/internal/fault"
)

type probe struct{ Call }

type healthAnswer struct{ Body healthView }

type healthView struct {
	Status        string    `json:"status" enum:"ok,draining"`
	Version       string    `json:"version"`
	Time          time.Time `json:"time"`
	UptimeSeconds int64     `json:"uptime_seconds"`
}

func (s *Server) healthNow() healthView {
	v := healthView{Status: "ok", Version: s.cfg.Version, Time: s.now().UTC(),
		UptimeSeconds: int64(s.now().Sub(s.started).Seconds())}
	if s.draining.Load() {
		v.Status = "draining"
	}
	return v
}

func (s *Server) health(*exchange, *probe) (*healthAnswer, error) {
	return &healthAnswer{s.healthNow()}, nil
}

type livenessAnswer struct {
	Body struct {
		Status string `json:"status" enum:"alive"`
	}
}

func (s *Server) liveness(*exchange, *probe) (*livenessAnswer, error) {
	out := &livenessAnswer{}
	out.Body.Status = "alive"
	return out, nil
}

type readinessAnswer struct {
	Body struct {
		Status string `json:"status" enum:"ready"`
	}
}

func (s *Server) readiness(x *exchange, _ *probe) (*readinessAnswer, error) {
	const op = "httpapi.readiness"
	if s.draining.Load() {
		return nil, fault.New(fault.Unavailable, op, codeStopping, "the server is stopping")
	}
	if s.deps.Ready != nil {
		if err := s.deps.Ready(x.ctx); err != nil {
			return nil, fault.New(fault.Unavailable, op, codeNotReady, "the server is not ready").With(err)
		}
	}
	out := &readinessAnswer{}
	out.Body.Status = "ready"
	return out, nil
}

type infoAnswer struct{ Body infoView }

type infoView struct {
	Name          string    `json:"name"`
	Version       string    `json:"version"`
	Go            string    `json:"go" example:"go1.26"`
	StartedAt     time.Time `json:"started_at"`
	UptimeSeconds int64     `json:"uptime_seconds"`
}

func (s *Server) info(*exchange, *probe) (*infoAnswer, error) {
	return &infoAnswer{infoView{Name: "memoryd", Version: s.cfg.Version, Go: runtime.Version(),
		StartedAt: s.started.UTC(), UptimeSeconds: int64(s.now().Sub(s.started).Seconds())}}, nil
}

type detailedAnswer struct{ Body detailedView }

type detailedView struct {
	Status        string      `json:"status" enum:"ok,degraded,draining"`
	Version       string      `json:"version"`
	Time          time.Time   `json:"time"`
	UptimeSeconds int64       `json:"uptime_seconds"`
	OpenStreams   int         `json:"open_streams"`
	Checks        []checkView `json:"checks" nullable:"false"`
}

type checkView struct {
	Name      string         `json:"name" example:"master_database"`
	Status    string         `json:"status" enum:"ok,failing"`
	Code      string         `json:"code,omitempty" doc:"Why it is failing"`
	LatencyMS int64          `json:"latency_ms"`
	Facts     map[string]any `json:"facts"`
}

// checkTime bounds one check: a dead dependency must not hold up the report on the others for long.
const checkTime = 3 * time.Second

func (s *Server) detailed(x *exchange, _ *probe) (*detailedAnswer, error) {
	now := s.healthNow()
	v := detailedView{Status: now.Status, Version: now.Version, Time: now.Time, UptimeSeconds: now.UptimeSeconds,
		OpenStreams: s.streams.count(), Checks: []checkView{}}
	for _, c := range s.deps.Checks {
		ctx, cancel := context.WithTimeout(x.ctx, checkTime)
		began := s.now()
		facts, err := c.Look(ctx)
		cancel()
		cv := checkView{Name: c.Name, Status: "ok", LatencyMS: s.now().Sub(began).Milliseconds(), Facts: facts}
		if cv.Facts == nil {
			cv.Facts = map[string]any{}
		}
		if err != nil {
			cv.Status, cv.Code = "failing", fault.CodeOf(err)
			if v.Status == "ok" {
				v.Status = "degraded"
			}
			s.log.Warn("check failed", "check", c.Name, "error", err.Error())
		}
		v.Checks = append(v.Checks, cv)
	}
	return &detailedAnswer{v}, nil
}

func (s *Server) metricsText(x *exchange, _ *probe) (*written, error) {
	return &written{Body: func(huma.Context) { s.meters.handler.ServeHTTP(x.w, x.r) }}, nil
}

// holdsMetricsToken compares digests, so that the time taken tells nothing, not even a length.
func (s *Server) holdsMetricsToken(r *http.Request) bool {
	token, ok := bearer(r)
	if !ok || s.cfg.MetricsToken == "" {
		return false
	}
	given, want := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(s.cfg.MetricsToken))
	return subtle.ConstantTimeCompare(given[:], want[:]) == 1
}

// bearer reads the token of an Authorization header.
func bearer(r *http.Request) (string, bool) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	return token, ok && strings.EqualFold(scheme, "Bearer") && token != ""
}
