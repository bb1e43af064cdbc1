package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"claude-memory-backend/internal/claude"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/event/catalogue"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/mail"
	"claude-memory-backend/internal/natsbus"
	"claude-memory-backend/internal/outbound"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/spool"
	"claude-memory-backend/internal/webhook"
	"claude-memory-backend/internal/workspace"
)

type serveCmd struct{}

// Run runs the server until ctx ends: everything is built here by name, from the databases up, and stopped in the
// reverse order.
func (serveCmd) Run(ctx context.Context, p *program) error {
	s := p.settings
	log, closeLog := newLog(s, p.stderr)
	defer closeLog()

	// Listening comes first: what users' addresses may not lead to must be known before anything is dialled. Whoever
	// connects meanwhile waits.
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(s.host(), s.text("PORT")))
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("port %s is taken: stop what listens there, or set PORT", s.text("PORT"))
		}
		return fmt.Errorf("cannot listen: %w", err)
	}
	defer func() { _ = listener.Close() }() // of no consequence once door.Serve has closed it
	bus, nodes, err := newBus(s, log)
	if err != nil {
		return err
	}
	opening, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	in, err := openInstall(opening, s, log, bus, owner|anew, ownAddress(listener)...)
	if err != nil {
		return err
	}
	defer func() { warn(log, "databases", in.close()) }()
	if err := in.lookAtKeys(opening); err != nil {
		return err
	}
	if err := useKeys(opening, in.store, in.keys); err != nil {
		return err
	}
	if nodes != nil {
		prefix, err := in.busPrefix(opening)
		if err != nil {
			return err
		}
		nodes.Join(prefix, in.lasting)
		defer func() { warn(log, "NATS", nodes.Close()) }()
	}

	prices, err := loadPrices(s)
	if err != nil {
		return err
	}
	models, err := newModels(s, prices)
	if err != nil {
		return err
	}
	meters := newCounters()
	node := string(ident.New[ident.EventID]())
	engine := conversation.NewEngine(conversation.Config{
		Node: node, Sole: in.sole, Bus: bus, Log: log,
		Models: models.byName, Known: models.known, Default: models.fallback, TitleBy: models.title,
		DefaultModels: map[string]string{"anthropic": s.text("CLAUDE_MODEL"), "n8n": s.text("CLAUDE_MODEL"),
			"scripted": claude.ScriptedModel},
		Weigh:  func(blocks []json.RawMessage) int { return prices.EstimateBlocks("", blocks) },
		Window: prices.ContextWindow, Settings: claude.ValidateSettings, Observe: meters.observe,
		CallbackTime: time.Duration(s.number("N8N_CALLBACK_TIMEOUT")) * time.Second,
		Budget:       s.number("CONTEXT_TOKENS"), History: s.number("CONTEXT_MESSAGES"), SearchShare: searchShare(s),
	})
	kept := openSpool(s, log, in.lasting)
	if kept != nil {
		defer func() { warn(log, "spool", kept.Close()) }()
	}
	outbox, err := newOutbox(s, log, in)
	if err != nil {
		return err
	}
	hooks := newWebhooks(s, log, in, meters, node, outbox)
	open, _ := maxOpen(s)
	pool := workspace.NewPool(workspace.Config{
		Directory: in.store, Notes: in.store, Master: in.store, News: in.store, Grants: in.store, Hints: in.store, Trail: in.store.Trail(), Placements: in.placements, Engine: engine, Bus: bus,
		Limits: defaultLimits(s), Notice: invitations(s, outbox), Webhooks: hooks,
		Sealer: in.keys, Providers: models.known, Log: log, MaxOpen: open, Sole: in.sole,
		Opened: meters.tenantOpened, Spool: kept, CallbackURL: models.callbackURL(s, listener.Addr()),
	})
	accounts, err := newAccounts(s, log, in)
	if err != nil {
		return err
	}
	tenants := newTenants(in, log, bus, pool, node)
	jobs := job.NewRunner(job.Config{Store: in.store, Node: node, Sole: in.sole, Kinds: tenants.Work(), Left: tenants.LeftWork(), Log: log})
	tenants.Wake = jobs.Wake
	if kept != nil {
		tenants.Spools = func(_ context.Context, id ident.TenantID) error { return kept.Discard(id) }
	}
	stopped := make(chan struct{})
	feeds, hub := newLive(s, in, log, bus, accounts, pool, tenants, node)
	door, err := newDoor(s, log, in, accounts, pool, tenants, engine, models, kept, hooks, meters, nodes, feeds, hub, stopped)
	if err != nil {
		return err
	}
	// A tenant that cannot be looked at now is looked at again by Run; its own reads mark its turns in any case.
	warn(log, "recovery", pool.Recover(opening))
	if !s.on("RATE_LIMIT") {
		log.Warn("RATE_LIMIT is off: nobody is limited, not even who guesses passwords; this is for load tests only")
	}
	announce(ctx, p.stdout, s, in, models, accounts, listener.Addr())

	// Stopping: readiness goes first; streams of turns that another node runs end at once, so that their readers go there;
	// requests and turns of this one get the drain time to end, and connections are taken as long; turns that need longer are
	// marked interrupted, which ends their streams too. WebSockets stay until then, so that they hear how their turns ended;
	// they are told to come back. Then background work stops (jobs go on after the next start), deliveries that are on their way
	// end or are cut off, tenants close, other nodes are told the last words, and the master closes last.
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	drain := time.Duration(s.number("SHUTDOWN_TIMEOUT")) * time.Second
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return door.Serve(running, listener) })
	group.Go(func() error {
		<-running.Done()
		defer close(stopped)
		door.Drain()
		patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
		defer cancel()
		return engine.Close(patience)
	})
	var background errgroup.Group
	background.Go(func() error { return pool.Run(work) })
	background.Go(func() error { return accounts.Run(work) })
	background.Go(func() error { return hub.Run(work) })
	background.Go(func() error { return jobs.Run(work) })
	background.Go(func() error { return outbox.Run(work) })
	background.Go(func() error { rewrap(work, s, log, tenants); return nil })
	background.Go(func() error { tidy(work, tenants, log); return nil })
	err = group.Wait()
	closing, cancelClosing := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancelClosing()
	warn(log, "connections", hub.Close(closing))
	stopWork()
	warn(log, "background work", background.Wait())
	feeds.Close()
	hooks.Close(closing)
	warn(log, "tenants", pool.Close(closing))
	fmt.Fprintln(p.stdout, "memoryd has stopped")
	return err
}

// newBus returns the bus of this process and, with NATS_URL, the same one as that which can join those of other nodes.
func newBus(s *settings, log *slog.Logger) (event.Bus, *natsbus.Bus, error) {
	if s.text("NATS_URL") == "" {
		return event.NewLocalBus(), nil, nil
	}
	b, err := natsbus.New(natsbus.Config{URL: s.secret("NATS_URL"), Log: log})
	return b, b, err
}

// openSpool opens the place for what tenants' databases do not take. Without it answers still end well as long as the
// databases are there, so a server that cannot have one starts all the same.
func openSpool(s *settings, log *slog.Logger, keys *seal.Keyring) *spool.Spool {
	mb := func(name string) int64 { return int64(s.number(name)) << 20 }
	kept, err := spool.Open(spool.Config{Folder: s.storage("spool"), Sealer: keys, Total: mb("SPOOL_MB"),
		PerTenant: mb("SPOOL_TENANT_MB"), PerTurn: mb("SPOOL_TURN_MB"), Log: log})
	if err != nil {
		log.Error("no spool: answers that are written while a tenant's database is away may be lost", "code", fault.CodeOf(err))
		return nil
	}
	if n := kept.Stats().Turns; n > 0 {
		log.Info("the spool has answers whose databases were away", "turns", n)
	}
	return kept
}

// newWebhooks builds what tells others of events. Secrets are sealed with keys that outlast the master key.
func newWebhooks(s *settings, log *slog.Logger, in *install, meters *counters, node string, outbox *mail.Outbox) *webhook.Dispatcher {
	return webhook.NewDispatcher(webhook.Config{
		Client: outbound.NewClient(in.dialer, nil), Guard: in.dialer, Inside: len(s.networks("OUTBOUND_ALLOW")) > 0, Sealer: in.lasting,
		Known: catalogue.Known, Tell: pauses(outbox), Observe: meters.attempted, Log: log, MaxEndpoints: s.number("TENANT_MAX_WEBHOOKS"),
		Timeout: time.Duration(s.number("WEBHOOK_TIMEOUT")) * time.Second,
		Keep:    time.Duration(s.number("WEBHOOK_KEEP_DAYS")) * 24 * time.Hour, Node: node, Sole: in.sole,
	})
}

// ownAddress is where the server can be reached.
func ownAddress(l net.Listener) []netip.AddrPort {
	if tcp, ok := l.Addr().(*net.TCPAddr); ok {
		return []netip.AddrPort{tcp.AddrPort()}
	}
	return nil
}

func warn(log *slog.Logger, what string, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		log.Warn("not done cleanly", "what", what, "error", err)
	}
}

// models is who can answer.
type models struct {
	byName   map[string]conversation.Model
	known    []string
	fallback string
	title    conversation.Model
	n8n      *claude.N8N // nil: not configured
}

// callbackURL is where n8n may deliver answers, up to the token: at the public address or, in development, where the server
// listens. Empty: nowhere, for want of an address or of a secret to sign with.
func (m models) callbackURL(s *settings, addr net.Addr) string {
	base := strings.TrimRight(s.text("PUBLIC_URL"), "/")
	if base == "" && !s.production() {
		base = "http://" + reachable(addr)
	}
	if m.n8n == nil || base == "" || s.secret("N8N_SIGNING_SECRET") == "" && s.secret("N8N_API_KEY") == "" {
		return ""
	}
	return base + "/api/v1/n8n/callback/"
}

// reachable is an address to listen on as this machine can call it.
func reachable(addr net.Addr) string {
	if tcp, ok := addr.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return net.JoinHostPort("localhost", fmt.Sprint(tcp.Port))
	}
	return addr.String()
}

// look shows whether providers are being called; one that is left alone after failures is an error (decision 0071).
func (m models) look(context.Context) (map[string]any, error) {
	facts, err := map[string]any{}, error(nil)
	for name, model := range m.byName {
		guarded, ok := model.(interface{ Circuit() claude.Circuit })
		if !ok {
			continue
		}
		c := guarded.Circuit()
		fact := map[string]any{"circuit": c.State, "failures": c.Failed}
		if c.State != "closed" {
			fact["retry_after_seconds"] = int64((c.Wait + time.Second - 1) / time.Second)
			err = fault.New(fault.Unavailable, "memoryd.providers", conversation.CodeProviderUnreachable, "a provider has been failing and is left alone")
		}
		facts[name] = fact
	}
	return facts, err
}

// newModels builds every provider that is configured. The scripted one is for development only.
func newModels(s *settings, prices *claude.Prices) (models, error) {
	m := models{byName: map[string]conversation.Model{}, known: []string{"anthropic", "n8n"}}
	budget := claude.NewRetryBudget()
	direct := func(model string) conversation.Model {
		return claude.NewDirect(claude.DirectConfig{APIKey: s.secret("ANTHROPIC_API_KEY"), BaseURL: s.text("ANTHROPIC_BASE_URL"),
			DefaultModel: model, Prices: prices, Budget: budget})
	}
	if s.secret("ANTHROPIC_API_KEY") != "" {
		m.byName["anthropic"] = direct(s.text("CLAUDE_MODEL"))
		if t := s.text("TITLE_MODEL"); t != "" {
			m.title = direct(t)
		}
	}
	if url := s.text("N8N_WEBHOOK_URL"); url != "" {
		n8n, err := claude.NewN8N(claude.N8NConfig{URL: url, HeaderSecret: s.secret("N8N_API_KEY"), SigningSecret: s.secret("N8N_SIGNING_SECRET"),
			SigningBefore: s.secret("N8N_SIGNING_SECRET_PREVIOUS"), Model: s.text("CLAUDE_MODEL"), MaxTokens: 8192,
			Timeout: time.Duration(s.number("N8N_TIMEOUT")) * time.Second, CostFunc: func(model string, raw json.RawMessage) int64 {
				cost, _ := prices.Cost(model, raw)
				return cost
			}})
		if err != nil {
			return models{}, err
		}
		m.byName["n8n"], m.n8n = n8n, n8n
	}
	if !s.production() {
		m.byName["scripted"] = claude.NewScripted(claude.ScriptedConfig{})
		m.known = append(m.known, "scripted")
	}
	m.fallback = s.text("AI_PROVIDER")
	for _, name := range []string{"anthropic", "n8n", "scripted"} {
		if m.fallback == "" && m.byName[name] != nil {
			m.fallback = name
		}
	}
	return m, nil
}

func loadPrices(s *settings) (*claude.Prices, error) {
	path := s.text("PRICES_FILE")
	if path == "" {
		return claude.DefaultPrices(), nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("PRICES_FILE cannot be read: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	prices, err := claude.LoadPrices(f)
	if err != nil {
		return nil, usageError{fmt.Errorf("PRICES_FILE is wrong: %w", err)}
	}
	return prices, nil
}

// announce prints where the server listens and what it runs on.
func announce(ctx context.Context, out io.Writer, s *settings, in *install, m models, accounts setupTokens, addr net.Addr) {
	where := reachable(addr)
	fmt.Fprintf(out, "memoryd %s listens on http://%s (%s)\n", version(), where, s.text("NODE_ENV"))
	fmt.Fprintf(out, "  %s\n", in.where)
	answers := "nobody: set ANTHROPIC_API_KEY or N8N_WEBHOOK_URL"
	if m.fallback != "" {
		answers = m.fallback
	}
	if m.fallback == "scripted" {
		answers += " (no key: answers by rule; set ANTHROPIC_API_KEY for Claude)"
	}
	fmt.Fprintf(out, "  answers: %s\n", answers)
	if !s.production() {
		fmt.Fprintf(out, "  documentation: http://%s/api/docs\n", where)
		return
	}
	if token, fresh, err := accounts.SetupToken(ctx); err == nil && fresh {
		fmt.Fprintf(out, "  setup token, shown once: register with \"setup_token\": %q to become the admin\n", token)
	}
	if strings.Contains(in.where, "SQLite file") {
		fmt.Fprintf(out, "  keep MASTER_KEY safe: without it the tenants' files cannot be read\n")
	}
}

// setupTokens is account.Service as announce needs it.
type setupTokens interface {
	SetupToken(ctx context.Context) (token string, fresh bool, err error)
}
