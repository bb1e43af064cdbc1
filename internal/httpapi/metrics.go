package httpapi

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
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
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "memoryd_http_requests_total",
			Help: "Answered requests."}, []string{"method", "route", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "memoryd_http_request_seconds",
			Help:    "Time from a request's head to the end of its answer; streams count until they end.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}},
			[]string{"method", "route"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "memoryd_http_in_flight",
			Help: "Requests that are being answered."}),
	}
	all := append([]prometheus.Collector{m.requests, m.seconds, m.inFlight,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "memoryd_http_streams", Help: "Open event streams."},
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
