package conversation

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Config is what an Engine needs. The zero value of a duration or size means its default.
type Config struct {
	Node    string           // names this process among all that share the databases; new at every start
	Sole    bool             // no other process shares the databases: whatever another node owns is orphaned
	Models  map[string]Model // by provider name: what is configured
	Known   []string         // provider names that may be asked for, configured or not
	Default string           // provider when nobody chose one; empty: none
	// DefaultModels are the models, by provider, of turns for which nobody chose one.
	DefaultModels map[string]string
	Bus           event.Bus
	Log           *slog.Logger
	Now           func() time.Time
	Window        func(model string) int                   // the model's context window in tokens; nil: 200,000
	Settings      func(settings json.RawMessage) error     // validates provider settings; nil: anything goes
	Observe       func(provider string, t Turn, m Message) // told of every end; nil: nobody
	Budget        int                                      // tokens of history that a prompt may hold at most (default 100,000)
	History       int                                      // messages that a prompt may hold at most (default 400)
	Lease         time.Duration                            // how long a turn counts as owned without renewal (default 8 s)
	FlushAge      time.Duration                            // text older than this is stored (default 250 ms)
	FlushSize     int                                      // so is more than this many bytes (default 4 KiB)
	EndAge        time.Duration                            // the spool gets an end that the database does not take for this long (default 3 s)
	StopPatience  time.Duration                            // another node that is to stop a turn is waited for this long (default 2 s)
	TitleBy       Model                                    // makes titles; nil: the first words of the first message
	// Weigh estimates the tokens of content blocks; nil: by their text.
	Weigh func(blocks []json.RawMessage) int
	// CallbackTime is how long a turn may take from its call to an answer that is delivered later (default 15 min).
	CallbackTime time.Duration
	PerTenant    int // turns that may run at once in one open tenant (default 100)
	Running      int // turns that may run at once in this process (default 2,000)
	// SearchShare is how much of one processor the searches of an open tenant may take for long; 0: no bound.
	SearchShare float64
}

// Engine runs turns. One exists per process; it needs no client, only the tenant's store.
type Engine struct {
	Config
	node string
	bus  event.Bus

	// life ends when the server can wait no longer for what turns and titles still have to store.
	life context.Context //nolint:containedctx // the engine's own life, which no caller owns
	kill context.CancelFunc

	mu      sync.Mutex
	jobs    map[ident.TurnID]*job
	counts  map[*Service]int
	closing bool
	wg      sync.WaitGroup
}

// NewEngine returns an engine that is ready to run turns. Close ends it.
func NewEngine(c Config) *Engine {
	def(&c.Budget, 100_000)
	def(&c.History, 400)
	def(&c.Lease, 8*time.Second)
	def(&c.FlushAge, 250*time.Millisecond)
	def(&c.FlushSize, 4<<10)
	def(&c.EndAge, 3*time.Second)
	def(&c.StopPatience, 2*time.Second)
	def(&c.CallbackTime, 15*time.Minute)
	def(&c.Running, 2_000)
	def(&c.PerTenant, 100)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Window == nil {
		c.Window = func(string) int { return 200_000 }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{Config: c, node: c.Node, bus: c.Bus, jobs: make(map[ident.TurnID]*job), counts: make(map[*Service]int)}
	e.life, e.kill = context.WithCancel(context.Background())
	return e
}

func def[T int | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// lastWords is how long the ends of interrupted turns may take to be stored when the server stops. What is not stored
// by then is marked interrupted by whoever reads it next.
const lastWords = 5 * time.Second

// Close lets running turns end until ctx does, then interrupts the rest; it returns when all have stored their end.
// No turn starts after it was called.
func (e *Engine) Close(ctx context.Context) error {
	e.mu.Lock()
	e.closing = true
	e.mu.Unlock()
	done := make(chan struct{})
	go func() { e.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	e.mu.Lock()
	for _, j := range e.jobs {
		j.cancel(errGoing)
	}
	e.mu.Unlock()
	select {
	case <-done:
	case <-time.After(lastWords):
		e.kill()
		<-done
	}
	return nil
}

// Count returns how many turns run in this process.
func (e *Engine) Count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.jobs)
}

// Providers returns the default provider and the configured ones, for health answers.
func (e *Engine) Providers() (fallback string, configured []string) {
	for name := range e.Models {
		configured = append(configured, name)
	}
	slices.Sort(configured)
	return e.Config.Default, configured
}

func (e *Engine) moment() time.Time { return e.Now().UTC().Truncate(time.Microsecond) }

func (e *Engine) lease() time.Time { return e.moment().Add(e.Config.Lease) }

// nobody is the node of a turn that waits for a callback.
const nobody = ""

// dead reports whether nobody will end the turn any more: neither this process, nor a living other one, nor a callback.
func (e *Engine) dead(id ident.TurnID, node string, lease time.Time) bool {
	if node == nobody {
		return !e.Now().Before(lease)
	}
	if node == e.node {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.jobs[id] == nil
	}
	return e.Sole || lease.Before(e.Now())
}

// ready says whether a turn may start at all.
func (e *Engine) ready(op string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.room(op, nil)
}

// room says whether there is room for one turn more, in all and of the service. The caller holds the lock.
func (e *Engine) room(op string, s *Service) error {
	if e.closing {
		return fault.New(fault.Unavailable, op, "shutting_down", "the server is about to stop: send it again in a moment").
			RetryAfter(2 * time.Second)
	}
	if len(e.jobs) >= e.Running || s != nil && e.counts[s] >= e.PerTenant {
		return fault.New(fault.Unavailable, op, "too_many_turns", "too many answers are being written: try again in a moment").
			RetryAfter(5 * time.Second)
	}
	return nil
}

// register makes the turn this process's own before it is stored.
func (e *Engine) register(id ident.TurnID, j *job) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	j.engine, j.turn, j.ctx, j.cancel, j.ended = e, id, ctx, cancel, make(chan struct{})
	j.text, j.units, j.wake = []byte(j.prefix), utf16Len(j.prefix), make(chan struct{}, 1)
	e.mu.Lock()
	defer e.mu.Unlock()
	// In one critical section with Close's: nothing starts after it has begun to wait.
	if err := e.room("conversation.Engine", j.service); err != nil {
		cancel(err)
		return err
	}
	e.jobs[id] = j
	e.counts[j.service]++
	e.wg.Add(1)
	return nil
}

// forget undoes register, or ends what start began.
func (e *Engine) forget(id ident.TurnID) {
	e.mu.Lock()
	j := e.jobs[id]
	delete(e.jobs, id)
	if j != nil {
		if e.counts[j.service]--; e.counts[j.service] == 0 {
			delete(e.counts, j.service)
		}
	}
	e.mu.Unlock()
	if j != nil {
		j.cancel(context.Canceled)
		close(j.ended)
		e.wg.Done()
	}
}

// start runs a registered job whose turn is committed.
func (e *Engine) start(j *job, actor ident.Actor, conv Conversation, x Exchange) {
	j.actor, j.conv, j.x = actor, conv, x
	j.knows(x)
	release := j.service.tenant.Retain()
	stop := e.bus.Subscribe(stopTopic(j.turn), 1)
	go func() {
		defer release()
		defer e.forget(j.turn)
		go func() {
			defer stop.Close()
			for {
				select {
				case sig := <-stop.C:
					if sig.Kind == event.Stop { // a wish that was lost is repeated by whoever has it
						j.cancel(errStopped)
					}
				case <-j.ctx.Done():
					return
				}
			}
		}()
		j.run()
	}()
}

// told tells of a turn's end: those who follow it, and whoever counts ends, unless it was one before.
func (e *Engine) told(done Ending, changed bool) {
	e.bus.Publish(context.Background(), event.Signal{Topic: string(done.Turn.ID), Kind: event.Ended})
	if e.Observe != nil && changed {
		e.Observe(done.Turn.Provider, done.Turn, done.Message)
	}
}

// running returns the job of a turn that this process runs, or nil.
func (e *Engine) running(id ident.TurnID) *job {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.jobs[id]
}

// dropConversation stops what runs in a conversation that was deleted.
func (e *Engine) dropConversation(id ident.ConversationID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, j := range e.jobs {
		if j.id == id {
			j.cancel(errLost)
		}
	}
}

// checkModel notes an unknown provider or an impossible model name.
func (e *Engine) checkModel(c *fault.Checks, provider, model string) {
	if provider != "" {
		c.OneOf("body.provider", provider, e.Known...)
	}
	c.Text("body.model", model, 0, 200)
}

func (e *Engine) checkSettings(raw json.RawMessage) error {
	if e.Settings == nil {
		return nil
	}
	return e.Settings(raw)
}

// model resolves who answers: the first provider that somebody chose, most specific first.
func (e *Engine) model(op string, choices ...string) (string, Model, error) {
	name := e.Config.Default
	for _, c := range choices {
		if c != "" {
			name = c
			break
		}
	}
	m := e.Models[name]
	if m == nil {
		what := "no AI provider is configured on this server"
		if name != "" {
			what = "the AI provider " + name + " is not configured on this server"
		}
		return "", nil, fault.New(fault.Unavailable, op, "provider_not_configured", what)
	}
	return name, m, nil
}

func stopTopic(id ident.TurnID) string { return "stop:" + string(id) }
