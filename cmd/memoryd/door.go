package main

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/httpapi"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/live"
	"claude-memory-backend/internal/natsbus"
	"claude-memory-backend/internal/relocate"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/spool"
	"claude-memory-backend/internal/webhook"
	"claude-memory-backend/internal/workspace"
)

// newDoor builds the HTTP door over the services.
func newDoor(s *settings, log *slog.Logger, in *install, accounts *account.Service, pool *workspace.Pool,
	tenants *relocate.Service, engine *conversation.Engine, who models, kept *spool.Spool, hooks *webhook.Dispatcher, meters *counters,
	nodes *natsbus.Bus,
	feeds *workspace.Feeds, hub *live.Hub, stopped <-chan struct{},
) (*httpapi.Server, error) {
	once := onceSecret(in)
	opened := func(ws *workspace.Workspace, err error) (httpapi.Workspace, error) {
		if err != nil {
			return httpapi.Workspace{}, err
		}
		out := httpapi.Workspace{Projects: ws.Projects, Members: ws.Members, Conversations: ws.Conversations, Turns: ws.Conversations,
			Events: ws.Events, Tenant: ws.Tenant.ID, Waited: ws.Waited, Release: ws.Release}
		if ws.Pass.Guest() {
			out.While = ws.While
		} else {
			out.Audit, out.Usage = ws.Audit, ws.Usage
			if ws.Webhooks != nil {
				out.Webhooks = ws.Webhooks
			}
		}
		return out, nil
	}
	var deliverer httpapi.Deliverer
	if who.n8n != nil { // not a nil pointer in an interface
		deliverer = who.n8n
	}
	return httpapi.NewServer(httpapi.Config{
		Production: s.production(), Version: version(), AllowedOrigins: s.list("ALLOWED_ORIGINS"), TrustedProxies: s.networks("TRUSTED_PROXIES"),
		MetricsToken: s.secret("METRICS_TOKEN").Reveal(), RateLimit: s.on("RATE_LIMIT"), DocsPage: !s.production(),
		OnceSecret: once, DrainTime: drainTime(s), Linger: stopped, QueryToken: s.queryToken(),
	}, httpapi.Deps{
		Accounts: accounts, Log: log,
		Collectors: slices.Concat(meters.collectors(engine, pool, kept, hooks), busCollectors(nodes), hub.Collectors()),
		Open: func(ctx context.Context, actor ident.Actor, id ident.TenantID) (httpapi.Workspace, error) {
			return opened(pool.Acquire(ctx, actor, id))
		},
		Visit: func(ctx context.Context, actor ident.Actor, subject string) (httpapi.Workspace, error) {
			return opened(pool.Visit(ctx, actor, subject))
		},
		Enter: func(ctx context.Context, actor ident.Actor, own ident.TenantID, subject string) (httpapi.Workspace, error) {
			return opened(pool.Enter(ctx, actor, own, subject))
		},
		Listen: func(ctx context.Context, id ident.TenantID, l workspace.Listener) (event.Seq, func(), error) {
			return feeds.Listen(ctx, id, l)
		},
		Again:    feeds.Again,
		Live:     hub,
		Callback: pool.Callback, Deliverer: deliverer,

		Databases: tenants, Jobs: tenants, Eraser: tenants, Proof: accounts,
		Ready: in.ready,
		Checks: []httpapi.Check{
			{Name: "master_database", Look: func(ctx context.Context) (map[string]any, error) {
				return map[string]any{"engine": in.master.Dialect().Name()}, in.store.Ping(ctx)
			}},
			{Name: "tenants", Look: func(context.Context) (map[string]any, error) {
				st := pool.Stats()
				return map[string]any{"open": st.Open, "in_use": st.Leased, "failed": st.Failed, "closing": st.Closing,
					"unreachable": st.Unreachable}, nil
			}},
			{Name: "tenant_servers", Look: in.lookAtHosts},
			{Name: "turns", Look: func(context.Context) (map[string]any, error) {
				fallback, configured := engine.Providers()
				facts := map[string]any{"running": engine.Count(), "provider": fallback, "configured": configured}
				if kept != nil {
					facts["spooled"], facts["spooled_bytes"] = kept.Stats().Turns, kept.Stats().Bytes
				}
				return facts, nil
			}},
			{Name: "providers", Look: who.look},
			{Name: "bus", Look: func(context.Context) (map[string]any, error) { return lookAtBus(nodes) }},
			{Name: "live", Look: func(context.Context) (map[string]any, error) {
				st := hub.Stats()
				return map[string]any{"connections": st.Connections, "accounts": st.Accounts, "rooms": st.Rooms, "feeds": feeds.Open()}, nil
			}},
			{Name: "storage", Look: func(context.Context) (map[string]any, error) { return diskFacts(s.text("STORAGE_PATH")) }},
		},
	})
}

// onceSecret keys the fingerprints of idempotent requests.
func onceSecret(in *install) []byte {
	key := in.lasting.Derive("idempotency fingerprints")
	return key[:]
}

// newLive builds the live door: what sockets and event streams hear.
func newLive(s *settings, in *install, log *slog.Logger, bus event.Bus, accounts *account.Service, pool *workspace.Pool,
	tenants *relocate.Service, node string,
) (*workspace.Feeds, *live.Hub) {
	// The bus hears of every commit of this process. What other nodes commit is looked for as often as a reader may wait,
	// unless the bus hears of that, too, and says when it may have missed something (decision 0052).
	look := time.Minute
	switch {
	case in.sole:
	case s.text("NATS_URL") != "":
		look = 30 * time.Second
	default:
		look = 2 * time.Second
	}
	feeds := workspace.NewFeeds(pool, look)
	if !s.on("RATE_LIMIT") {
		feeds.Share = workspace.ReplayShare{}
	}
	return feeds, live.New(live.Config{Accounts: accounts, Pool: pool, Feeds: feeds, Bus: bus, Master: in.store, Jobs: tenants,
		Words: httpapi.Words{OnceSecret: onceSecret(in), Now: time.Now}, Node: node, Log: log})
}

// newAccounts builds the account service over the master database.
func newAccounts(s *settings, log *slog.Logger, in *install) (*account.Service, error) {
	var previous []seal.Secret
	if p := s.secret("JWT_SECRET_PREVIOUS"); p != "" {
		previous = append(previous, p)
	}
	return account.New(account.Config{
		Secret: s.secret("JWT_SECRET"), PreviousSecrets: previous, Registration: account.Registration(s.text("REGISTRATION")),
		FirstIsAdmin: !s.production(), Throttle: account.Throttle{Off: !s.on("RATE_LIMIT")}, Log: log,
		FailureKey: in.lasting.Derive("failed sign-ins"),
	}, in.store, in.placements, account.NewHasher(account.HasherConfig{}), in.keys)
}
