package httpapi

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"claude-memory-backend/internal/conversation"
)

// meters are the server's own numbers, in a registry of its own.
type meters struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inFlight prometheus.Gauge
	handler  http.Handler
}

func newMeters(extra []prometheus.Collector, openStreams func() int) (*meters, error) {
	m := &meters{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "memory_http_requests_total",
			Help: "Answered requests."}, []string{"method", "route", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "memory_http_request_seconds",
			Help:    "Time from a request's head to the end of its answer; streams count until they end.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}},
			[]string{"method", "route"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "memory_http_in_flight",
			Help: "Requests that are being answered."}),
	}
	all := append([]prometheus.Collector{m.requests, m.seconds, m.inFlight,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "memory_http_streams", Help: "Open event streams."},
			func() float64 { return float64(openStreams()) }),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	}, extra...)
	for _, c := range all {
		if err := m.registry.Register(c); err != nil {
			return nil, err
		}
	}
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{DisableCompression: true})
	return m, nil
}

// measured counts and times by route template, so that the number of series has a bound.
func (s *Server) measured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := recorderOf(w)
		s.meters.inFlight.Inc()
		defer func() {
			s.meters.inFlight.Dec()
			method, route := methodLabel(r.Method), routeLabel(rec.route)
			s.meters.requests.WithLabelValues(method, route, statusLabel(rec.status)).Inc()
			s.meters.seconds.WithLabelValues(method, route).Observe(s.now().Sub(rec.started).Seconds())
		}()
		next.ServeHTTP(w, r)
	})
}

// TurnMeters counts the turns that end. Its Observe goes into conversation.Config, itself into Deps.Collectors.
type TurnMeters struct {
	ended  *prometheus.CounterVec
	tokens *prometheus.CounterVec
	cost   *prometheus.CounterVec
	first  *prometheus.HistogramVec
}

// NewTurnMeters returns meters that stand at zero.
func NewTurnMeters() *TurnMeters {
	return &TurnMeters{
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "memory_turns_total", Help: "Turns that ended."},
			[]string{"provider", "state"}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "memory_turn_tokens_total",
			Help: "Tokens that turns used."}, []string{"provider", "kind"}),
		cost: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "memory_turn_cost_microusd_total",
			Help: "What turns cost, in millionths of a US dollar."}, []string{"provider"}),
		first: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "memory_turn_first_token_seconds",
			Help: "Time to the first text.", Buckets: []float64{.1, .25, .5, 1, 2, 4, 8, 16, 32}}, []string{"provider"}),
	}
}

// Observe notes the end of a turn.
func (m *TurnMeters) Observe(provider string, t conversation.Turn, a conversation.Message) {
	m.ended.WithLabelValues(provider, string(t.State)).Inc()
	m.tokens.WithLabelValues(provider, "input").Add(float64(max(a.Usage.InputTokens, 0)))
	m.tokens.WithLabelValues(provider, "output").Add(float64(max(a.Usage.OutputTokens, 0)))
	m.tokens.WithLabelValues(provider, "cache_read").Add(float64(max(a.Usage.CacheReadInputTokens, 0)))
	m.tokens.WithLabelValues(provider, "cache_creation").Add(float64(max(a.Usage.CacheCreationInputTokens, 0)))
	m.cost.WithLabelValues(provider).Add(float64(max(a.CostMicroUSD, 0)))
	if a.FirstTokenMS > 0 {
		m.first.WithLabelValues(provider).Observe(float64(a.FirstTokenMS) / 1000)
	}
}

// Describe and Collect make it a prometheus.Collector.
func (m *TurnMeters) Describe(c chan<- *prometheus.Desc) {
	for _, v := range []prometheus.Collector{m.ended, m.tokens, m.cost, m.first} {
		v.Describe(c)
	}
}

// Collect hands over the numbers.
func (m *TurnMeters) Collect(c chan<- prometheus.Metric) {
	for _, v := range []prometheus.Collector{m.ended, m.tokens, m.cost, m.first} {
		v.Collect(c)
	}
}
