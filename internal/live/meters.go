package live

import "github.com/prometheus/client_golang/prometheus"

// meters count connections. Nothing names anybody, and labels are few.
type meters struct {
	in, out prometheus.Counter
	closed  *prometheus.CounterVec
	gauges  []prometheus.Collector
}

func newMeters(h *Hub) *meters {
	frames := func(direction, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "memoryd_ws_frames_" + direction + "_total", Help: help})
	}
	gauge := func(name, help string, read func(Stats) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(read(h.Stats())) })
	}
	return &meters{
		in:  frames("in", "Frames that clients sent."),
		out: frames("out", "Frames that were written to clients."),
		closed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "memoryd_ws_closed_total",
			Help: "Connections that ended, by close code; 4508 are those whose reader was too slow."}, []string{"code"}),
		gauges: []prometheus.Collector{
			gauge("memoryd_ws_connections", "Open WebSocket connections.", func(s Stats) int { return s.Connections }),
			gauge("memoryd_ws_rooms", "Rooms that somebody is in on this node.", func(s Stats) int { return s.Rooms }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "memoryd_ws_feeds", Help: "Tenants whose log is followed for connections and streams."},
				func() float64 {
					if h.Feeds == nil {
						return 0
					}
					return float64(h.Feeds.Open())
				}),
		},
	}
}

// Collectors are the hub's metrics.
func (h *Hub) Collectors() []prometheus.Collector {
	return append([]prometheus.Collector{h.meters.in, h.meters.out, h.meters.closed}, h.meters.gauges...)
}
