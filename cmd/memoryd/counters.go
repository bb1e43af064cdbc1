package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/natsbus"
	"claude-memory-backend/internal/spool"
	"claude-memory-backend/internal/webhook"
	"claude-memory-backend/internal/workspace"
)

// counters are the metrics of turns and of the pool of tenants: labels are bounded, nothing names a tenant.
type counters struct {
	ended  *prometheus.CounterVec
	tokens *prometheus.CounterVec
	cost   *prometheus.CounterVec
	took   *prometheus.HistogramVec
	first  *prometheus.HistogramVec
	opened *prometheus.HistogramVec
	called *prometheus.HistogramVec
	late   prometheus.Histogram
}

func newCounters() *counters {
	return &counters{
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "memoryd_turns_total",
			Help: "Turns that ended, by provider and state."}, []string{"provider", "state"}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "memoryd_tokens_total",
			Help: "Tokens used, by provider and kind."}, []string{"provider", "kind"}),
		cost: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "memoryd_cost_microusd_total",
			Help: "Cost of answers in micro-USD, by provider."}, []string{"provider"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "memoryd_turn_seconds",
			Help: "From the start of a turn to its end.", Buckets: prometheus.ExponentialBuckets(0.1, 2, 13)}, []string{"provider"}),
		first: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "memoryd_first_token_seconds",
			Help: "From the call of a provider to its first token.", Buckets: prometheus.ExponentialBuckets(0.01, 2, 13)}, []string{"provider"}),
		opened: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "memoryd_tenant_open_seconds",
			Help:    "Opening a tenant's database, which the first request to it waits for.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60}}, []string{"outcome"}),
		called: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "memoryd_webhook_attempt_seconds",
			Help: "Attempts at webhook deliveries, by what came of them.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 13)}, []string{"outcome"}),
		late: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "memoryd_webhook_delivery_seconds",
			Help: "From an event to its delivery.", Buckets: prometheus.ExponentialBuckets(0.005, 4, 14)}),
	}
}

// attempted is told of every attempt at a delivery.
func (c *counters) attempted(outcome string, took, since time.Duration) {
	c.called.WithLabelValues(outcome).Observe(took.Seconds())
	if since > 0 {
		c.late.Observe(since.Seconds())
	}
}

func (c *counters) tenantOpened(took time.Duration, err error) {
	outcome := "open"
	if err != nil {
		outcome = "failed"
	}
	c.opened.WithLabelValues(outcome).Observe(took.Seconds())
}

func (c *counters) observe(provider string, t conversation.Turn, m conversation.Message) {
	c.ended.WithLabelValues(provider, string(t.State)).Inc()
	for kind, n := range map[string]int64{"input": m.Usage.InputTokens, "output": m.Usage.OutputTokens,
		"cache_read": m.Usage.CacheReadInputTokens, "cache_write": m.Usage.CacheCreationInputTokens} {
		c.tokens.WithLabelValues(provider, kind).Add(float64(n))
	}
	c.cost.WithLabelValues(provider).Add(float64(m.CostMicroUSD))
	if t.FinishedAt != nil {
		c.took.WithLabelValues(provider).Observe(t.FinishedAt.Sub(t.StartedAt).Seconds())
	}
	if m.FirstTokenMS > 0 {
		c.first.WithLabelValues(provider).Observe(float64(m.FirstTokenMS) / 1000)
	}
}

// collectors are these counters and gauges of what runs and what is open.
func (c *counters) collectors(engine *conversation.Engine, pool *workspace.Pool, kept *spool.Spool, hooks *webhook.Dispatcher) []prometheus.Collector {
	gauge := func(name, help string, read func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(read()) })
	}
	return []prometheus.Collector{c.ended, c.tokens, c.cost, c.took, c.first, c.opened, c.called, c.late,
		gauge("memoryd_webhook_sending", "Attempts at webhook deliveries that this process is making.", func() int { return hooks.Stats().Sending }),
		gauge("memoryd_webhook_pending", "Webhook deliveries that are pending in the tenants that this process looks after.",
			func() int { return int(hooks.Stats().Pending) }),
		gauge("memoryd_webhook_oldest_seconds", "Age of the oldest event among these; 0 when there are none.", func() int {
			if since := hooks.Stats().Since; !since.IsZero() {
				return int(time.Since(since).Seconds())
			}
			return 0
		}),
		gauge("memoryd_turns_running", "Turns that this process runs.", engine.Count),
		gauge("memoryd_tenants_open", "Tenant databases that are open.", func() int { return pool.Stats().Open }),
		gauge("memoryd_tenants_leased", "Tenant databases in use.", func() int { return pool.Stats().Leased }),
		gauge("memoryd_tenants_unreachable", "Open tenant databases whose server is away.", func() int { return pool.Stats().Unreachable }),
		gauge("memoryd_turns_spooled", "Turns kept on this machine until their database is back.", func() int {
			if kept == nil {
				return 0
			}
			return kept.Stats().Turns
		}),
		gauge("memoryd_tenants_failed", "Tenant databases that could not be opened.", func() int { return pool.Stats().Failed }),
	}
}

// busCollectors are the numbers of the link to other nodes, if this one is to have any.
func busCollectors(nodes *natsbus.Bus) []prometheus.Collector {
	if nodes == nil {
		return nil
	}
	counter := func(name, help string, read func(natsbus.Status) uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help},
			func() float64 { return float64(read(nodes.Status())) })
	}
	return []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "memoryd_bus_joined", Help: "1 while other nodes are heard over NATS."},
			func() float64 {
				if nodes.Status().Joined {
					return 1
				}
				return 0
			}),
		counter("memoryd_bus_reconnects_total", "Links to NATS after the first.", func(s natsbus.Status) uint64 { return s.Reconnects }),
		counter("memoryd_bus_sent_total", "Signals sent to other nodes.", func(s natsbus.Status) uint64 { return s.Sent }),
		counter("memoryd_bus_received_total", "Signals heard from other nodes.", func(s natsbus.Status) uint64 { return s.Received }),
		counter("memoryd_bus_dropped_total", "Signals that other nodes did not get; their subscribers are told to look again.",
			func(s natsbus.Status) uint64 { return s.Dropped }),
		counter("memoryd_bus_refused_total", "Messages that no node of this installation has sealed.", func(s natsbus.Status) uint64 { return s.Refused }),
	}
}

// lookAtBus is the check of the link to other nodes. Without it a server is whole, as far as it goes.
func lookAtBus(nodes *natsbus.Bus) (map[string]any, error) {
	if nodes == nil {
		return map[string]any{"kind": "local"}, nil
	}
	st := nodes.Status()
	return map[string]any{"kind": "nats", "joined": st.Joined, "topics": st.Topics, "reconnects": st.Reconnects, "sent": st.Sent,
		"received": st.Received, "dropped": st.Dropped, "refused": st.Refused}, nodes.Err()
}
