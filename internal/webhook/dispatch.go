package webhook

import (
	"context"
	"crypto/rand"
	"log/slog"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/outbound"
	"claude-memory-backend/internal/seal"
)

const (
	// soon is when somebody looks again at a tenant whose work goes on: should this process die, that is what is left.
	soon = 10 * time.Second
	// sweepEvery is how often a tenant with active endpoints is looked at, whether anything is known to be due or not: it
	// finds what a lost hint should have told.
	sweepEvery = time.Hour
	cleanEvery = time.Hour
	cleanBatch = 500
	noticeWait = 5 * time.Minute
	gatherTime = 5 * time.Millisecond
)

// Config is what a Dispatcher needs. The zero value of a number means its default.
type Config struct {
	Client *outbound.Client
	Guard  Guard
	Inside bool                      // the operator allows some networks by name
	Sealer event.Sealer              // seals secrets; must outlast rotations of the master key
	Known  func(pattern string) bool // whether a filter can match anything
	// Tell tells the owner of a tenant that an endpoint was paused or disabled; nil: nobody is told but by the event.
	Tell func(ctx context.Context, owner ident.AccountID, e Endpoint) error
	// Observe hears of every attempt: how it ended, how long it took, and how long after the event a success came.
	Observe func(outcome string, took, since time.Duration)
	Node    string // names this process among all that share the databases; new at every start
	Sole    bool   // no other process shares the databases
	Log     *slog.Logger
	Now     func() time.Time

	// Timeout bounds one attempt, from looking the name up to the end of the answer (default 15 s). A claim stands twice as
	// long: clocks differ, and databases may be slow.
	Timeout      time.Duration
	MaxEndpoints int           // in one tenant (default 50)
	Keep         time.Duration // finished deliveries (default 30 days)
	AtOnce       int           // attempts of this process (default 512)
	PerTenant    int           // of one open tenant (default 128)
	PerEndpoint  int           // of one endpoint; of one that is failing: one (default 8)
	Tests        int           // test calls of one open tenant at once (default 4); of the process: a quarter of AtOnce
}

// Dispatcher sends what is due, in all tenants that are open in this process. One exists per process.
type Dispatcher struct {
	Config
	slots *places

	life context.Context //nolint:containedctx // the dispatcher's own life, which no caller owns
	kill context.CancelFunc

	mu      sync.Mutex
	closing bool
	tests   int                        // test calls that are being made
	behind  map[ident.TenantID]backlog // tenants that had something pending when they were last swept
	wg      sync.WaitGroup
}

type backlog struct {
	pending int64
	since   time.Time
}

// Stats says how much this process is sending, and what is pending in the tenants that it sweeps. Since is zero when
// nothing is.
type Stats struct {
	Sending int
	Pending int64
	Since   time.Time
}

// Stats counts.
func (d *Dispatcher) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := Stats{Sending: d.slots.taken()}
	for _, b := range d.behind {
		s.Pending += b.pending
		if s.Since.IsZero() || b.since.Before(s.Since) {
			s.Since = b.since
		}
	}
	return s
}

// swept notes what a tenant has pending.
func (d *Dispatcher) swept(id ident.TenantID, n int64, since *time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n == 0 || since == nil {
		delete(d.behind, id)
		return
	}
	d.behind[id] = backlog{n, *since}
}

// Forget drops what is known of a tenant that has nothing to be sent any more: it is gone, or has no webhooks.
func (d *Dispatcher) Forget(id ident.TenantID) { d.swept(id, 0, nil) }

// NewDispatcher returns a dispatcher; Close ends it.
func NewDispatcher(c Config) *Dispatcher {
	def := func(n *int, otherwise int) {
		if *n <= 0 {
			*n = otherwise
		}
	}
	def(&c.MaxEndpoints, 50)
	def(&c.AtOnce, 512)
	def(&c.PerTenant, 128)
	def(&c.PerEndpoint, 8)
	def(&c.Tests, 4)
	if c.Keep <= 0 {
		c.Keep = 30 * 24 * time.Hour
	}
	if c.Timeout <= 0 {
		c.Timeout = 15 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Observe == nil {
		c.Observe = func(string, time.Duration, time.Duration) {}
	}
	d := &Dispatcher{Config: c, slots: newPlaces(c.AtOnce), behind: make(map[ident.TenantID]backlog)}
	d.life, d.kill = context.WithCancel(context.Background())
	return d
}

// lastWords is how long results may take to be stored when the server stops.
const lastWords = 5 * time.Second

// Close claims nothing more, lets attempts end until ctx does, then cuts them off; it returns when all have stored what
// came of them. What is cut off is due again at once, here or on another node.
func (d *Dispatcher) Close(ctx context.Context) {
	d.mu.Lock()
	d.closing = true
	d.mu.Unlock()
	done := make(chan struct{})
	go func() { d.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
	d.kill()
	<-done
	d.Client.Close()
}

// begin counts somebody who works for the dispatcher; false: it is closing.
func (d *Dispatcher) begin() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing {
		return false
	}
	d.wg.Add(1)
	return true
}

func (d *Dispatcher) stopping() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closing
}

func (d *Dispatcher) moment() time.Time { return d.Now().UTC().Truncate(time.Microsecond) }

// claim names a claim that was never made before.
func (d *Dispatcher) claim() string { return d.Node + "." + rand.Text() }

const secretPurpose = "webhook secret"

func (d *Dispatcher) seal(id ident.WebhookID, s seal.Secret) []byte {
	return d.Sealer.Seal(secretPurpose, []byte(s.Reveal()), []byte(id))
}

// Promise is called before a transaction that may add deliveries: should this process die right after it, the master
// knows where to look.
func (s *Service) Promise(ctx context.Context) {
	if s.watched.Load() {
		s.part.Owe(ctx, s.d.Now().Add(soon))
	}
}

// Queued is called after a transaction that added deliveries.
func (s *Service) Queued() {
	if !s.watched.Swap(true) {
		// Another node registered the endpoint. Now it is known here, too.
		s.part.Owe(context.Background(), s.d.Now().Add(soon))
	}
	s.Wake()
}

// Wake has what is due sent. It waits for nothing.
func (s *Service) Wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.looking {
		s.again = true
		return
	}
	if !s.d.begin() {
		return
	}
	s.looking = true
	release := s.part.Retain()
	go func() {
		defer s.d.wg.Done()
		defer release()
		for {
			next, err := s.look(s.d.life)
			if err == nil && next.IsZero() {
				// Nobody may ever be asked to look here again: then what is old is this one's to forget.
				if next, err = s.tidy(s.d.life); err == nil && !next.IsZero() {
					s.part.Owe(s.d.life, next)
				}
			}
			if err != nil && !fault.Is(err, fault.Canceled) {
				s.d.Log.Warn("deliveries not looked for", "code", fault.CodeOf(err))
			}
			s.mu.Lock()
			s.looking, s.again = s.again, false
			on := s.looking
			s.mu.Unlock()
			if !on {
				return
			}
		}
	}()
}

// Sweep has what is due sent, forgets what is old, and returns when somebody should look again; never, if that is zero.
func (s *Service) Sweep(ctx context.Context) (time.Time, error) {
	const op = "webhook.Sweep"
	next, err := s.look(ctx)
	if err != nil {
		return next, fault.Wrap(op, err)
	}
	var n int64
	var since *time.Time
	if !next.IsZero() { // what waits for an endpoint that is not active is nobody's backlog
		if n, since, err = s.store.Backlog(ctx); err != nil {
			return next, fault.Wrap(op, err)
		}
	}
	s.d.swept(s.id, n, since)
	tidy, err := s.tidy(ctx)
	if next.IsZero() || !tidy.IsZero() && tidy.Before(next) {
		next = tidy
	}
	return next, fault.Wrap(op, err)
}

// tidy forgets what is old, if that was not done lately, and returns when it is to be done again; never, if that is zero. It
// asks for no active endpoints: what they were sent stays behind when they are none any more.
func (s *Service) tidy(ctx context.Context) (time.Time, error) {
	now := s.d.moment()
	s.mu.Lock()
	again := s.cleaned.Add(cleanEvery)
	s.mu.Unlock()
	if again.After(now) {
		return again, nil
	}
	n, oldest, err := s.store.Clean(ctx, now.Add(-s.d.Keep), cleanBatch)
	switch {
	case err != nil:
		return time.Time{}, err
	case n == cleanBatch:
		return now, nil // and again, after others had their turn
	}
	s.mu.Lock()
	s.cleaned = now
	s.mu.Unlock()
	if oldest == nil {
		return time.Time{}, nil
	}
	if at := oldest.Add(s.d.Keep); at.After(now.Add(cleanEvery)) {
		return at, nil
	}
	return now.Add(cleanEvery), nil
}

// look finds what is due and has it sent, and returns when something is due next.
func (s *Service) look(ctx context.Context) (next time.Time, err error) {
	now := s.d.moment()
	if err := s.disown(ctx, now); err != nil {
		return time.Time{}, err
	}
	list, err := s.store.Due(ctx)
	if err != nil {
		return time.Time{}, err
	}
	earlier := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	active := false
	for _, due := range list {
		e := due.Endpoint
		if e.State == Deleted {
			earlier(now.Add(soon))
			s.purge()
			continue
		}
		if e.NoticeDue != nil {
			earlier(now.Add(noticeWait))
			s.notice(ctx, e)
		}
		if e.State == Active {
			active = true
			earlier(now.Add(sweepEvery))
		}
		if due.At == nil {
			continue
		}
		at := *due.At
		if e.State == Active && e.HoldUntil != nil && e.HoldUntil.After(at) {
			at = *e.HoldUntil
		}
		if at.After(now) {
			earlier(at)
			continue
		}
		earlier(now.Add(soon))
		s.start(e)
	}
	s.watched.Store(active)
	s.mu.Lock()
	maps.DeleteFunc(s.trusted, func(id ident.WebhookID, _ trust) bool {
		return !slices.ContainsFunc(list, func(d Due) bool { return d.Endpoint.ID == id })
	})
	s.mu.Unlock()
	return next, nil
}

// purge removes what is left of deleted endpoints, beside, in pieces between which others have their turn.
func (s *Service) purge() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.purging || !s.d.begin() {
		return
	}
	s.purging = true
	release := s.part.Retain()
	go func() {
		defer s.d.wg.Done()
		defer release()
		for more := true; more && !s.d.stopping(); {
			var err error
			if _, more, err = s.store.Purge(s.d.life, cleanBatch); err != nil {
				if !fault.Is(err, fault.Canceled) {
					s.d.Log.Warn("deleted webhook not removed", "code", fault.CodeOf(err))
				}
				break // whoever looks next goes on
			}
		}
		s.mu.Lock()
		s.purging = false
		s.mu.Unlock()
	}()
}

// disown takes, once, what a process had claimed that cannot be there any more: nobody need wait for its leases.
func (s *Service) disown(ctx context.Context, now time.Time) error {
	s.mu.Lock()
	done := s.alone || !s.d.Sole
	s.alone = true
	s.mu.Unlock()
	if done {
		return nil
	}
	err := s.store.Disown(ctx, s.d.Node, now)
	if err != nil {
		s.mu.Lock()
		s.alone = false
		s.mu.Unlock()
	}
	return err
}

// notice tells the owner what became of an endpoint; whoever dies in between tells it twice.
func (s *Service) notice(ctx context.Context, e Endpoint) {
	if s.d.Tell != nil {
		if err := s.d.Tell(ctx, s.owner, e); err != nil {
			s.d.Log.Warn("owner of a webhook not told that it was paused", "code", fault.CodeOf(err))
			return
		}
	}
	if err := s.store.Noticed(ctx, e.ID); err != nil {
		s.d.Log.Warn("notice of a webhook not noted", "code", fault.CodeOf(err))
	}
}

// lane sends the deliveries of one endpoint. There is one at most per endpoint and process.
type lane struct {
	*Service
	id      ident.WebhookID
	wake    chan struct{} // there may be more
	ended   chan outcome
	flying  int        // attempts that are being made
	held    []standing // the places for them
	slow    bool       // the last answer did not end in time: as long as that is so, its attempts are made one at a time
	failing bool       // the endpoint is, as far as the lane knows
	trust   trust
}

// trust is what the last attempt at an endpoint says about how long the next one will take.
type trust int

const (
	unknown trust = iota // nothing: it failed, or there was none since the tenant was opened
	prompt               // it was taken at once
	late                 // it took more than a fifth of the time that it had
)

// start has an endpoint's deliveries sent.
func (s *Service) start(e Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.lanes[e.ID]; l != nil {
		select {
		case l.wake <- struct{}{}:
		default:
		}
		return
	}
	if !s.d.begin() {
		return
	}
	l := &lane{Service: s, id: e.ID, wake: make(chan struct{}, 1), ended: make(chan outcome, s.d.PerEndpoint),
		failing: e.FailingSince != nil, trust: s.trusted[e.ID]}
	s.lanes[e.ID] = l
	release := s.part.Retain()
	go func() {
		defer s.d.wg.Done()
		defer release()
		l.run()
	}()
}

// leave ends the lane, unless there may be more.
func (l *lane) leave(broken bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.wake) > 0 && !broken {
		return false
	}
	delete(l.lanes, l.id)
	l.trusted[l.id] = l.trust
	return true
}

// run claims and sends until nothing is due. What came of attempts is stored together with the next claim.
func (l *lane) run() {
	var done []outcome
	for {
		select {
		case <-l.wake:
		default:
		}
		free := l.slotsFor(l.d.PerEndpoint-l.flying, l.flying == 0 && len(done) == 0)
		claimed, e, asked, err := l.take(done, free)
		done = nil
		for range free - len(claimed) {
			l.giveBack()
		}
		for _, c := range claimed {
			l.flying++
			go func() { l.ended <- l.d.attempt(l.d.life, e, c) }()
		}
		if l.flying == 0 {
			over := err != nil || l.d.stopping()
			if (asked || over) && l.leave(over) {
				return
			}
			continue // nobody has asked whether there is more
		}
		select {
		case o := <-l.ended:
			done = l.gather(l.landed(done, o))
		case <-l.wake:
		}
		for len(l.ended) > 0 {
			done = l.landed(done, <-l.ended)
		}
	}
}

// gather waits a moment for the others that are on their way: they are stored together.
func (l *lane) gather(done []outcome) []outcome {
	over := time.NewTimer(gatherTime)
	defer over.Stop()
	for l.flying > 0 {
		select {
		case o := <-l.ended:
			done = l.landed(done, o)
		case <-over.C:
			return done
		}
	}
	return done
}

func (l *lane) landed(done []outcome, o outcome) []outcome {
	l.flying--
	l.slow = o.slow
	switch {
	case o.slow || o.Attempt.Latency > l.d.Timeout/5:
		l.trust = late
	case o.State == Succeeded:
		l.trust = prompt
	case o.Result.Failed:
		l.trust = unknown
	}
	l.giveBack()
	return append(done, o)
}

// standing is that of the lane's next attempt.
func (l *lane) standing() standing {
	switch {
	case l.failing || l.trust == late:
		return doubtful
	case l.trust == prompt && len(l.held) == 0:
		return first
	}
	return further
}

// slotsFor takes up to n places among all attempts of the process and of the tenant; with wait at least one, if n is not
// zero and the dispatcher goes on.
func (l *lane) slotsFor(n int, wait bool) int {
	if l.d.stopping() {
		return 0
	}
	got := 0
	for got < n {
		s, patient := l.standing(), wait && got == 0
		if !l.slots.take(s, patient, l.d.life.Done()) {
			break
		}
		if !l.d.slots.take(s, patient, l.d.life.Done()) {
			l.slots.back(s)
			break
		}
		l.held = append(l.held, s)
		got++
	}
	return got
}

// giveBack gives the place back that was taken last.
func (l *lane) giveBack() {
	s := l.held[len(l.held)-1]
	l.held = l.held[:len(l.held)-1]
	l.d.slots.back(s)
	l.slots.back(s)
}

// storeTries is how often results are tried to be stored. They are lost then: what they are about is sent again.
const storeTries = 20

// take stores results and claims what is due, and returns the endpoint as it was then, and whether all that was due has been
// looked at.
func (l *lane) take(done []outcome, want int) (claimed []Claimed, e Endpoint, asked bool, err error) {
	if len(done) == 0 && want == 0 {
		return nil, Endpoint{}, false, nil
	}
	for tries := 1; ; tries++ {
		claimed, e, more, err := l.takeOnce(done, want)
		asked := want > 0 && !more
		if err == nil || len(done) == 0 || tries == storeTries || fault.Is(err, fault.NotFound) {
			if err != nil && !fault.Is(err, fault.NotFound) {
				l.d.Log.Warn("deliveries not claimed", "code", fault.CodeOf(err))
			}
			return claimed, e, asked, err
		}
		want = 0 // what is not stored now must not be delayed by more
		pause := time.NewTimer(250 * time.Millisecond)
		select {
		case <-pause.C:
		case <-l.d.life.Done():
			tries = storeTries - 1
		}
		pause.Stop()
	}
}

func (l *lane) takeOnce(done []outcome, want int) (claimed []Claimed, e Endpoint, more bool, err error) {
	now := l.d.moment()
	step := Step{Endpoint: l.id, Claim: l.d.claim(), Now: now, Lease: now.Add(2 * l.d.Timeout)}
	owed := step.Lease
	for _, o := range done {
		step.Results = append(step.Results, o.Result)
		if o.State == Pending && o.Due.Before(owed) {
			owed = o.Due
		}
	}
	l.part.Owe(context.WithoutCancel(l.d.life), owed)
	step.Decide = func(was Endpoint) (Endpoint, int, event.Change) {
		after, ch := judge(was, done, now)
		e = after
		claim := want
		if after.FailingSince != nil || l.slow {
			claim = min(claim, max(0, 1-l.flying)) // one at a time shows whether it is back
		}
		if after.State != Active || after.HoldUntil != nil && after.HoldUntil.After(now) {
			claim = 0
		}
		return after, claim, ch
	}
	taken := l.do(step)
	if taken.Err == nil {
		l.failing = e.FailingSince != nil
		if e.NoticeDue != nil {
			l.Wake() // its owner is told now, and not when somebody looks again
		}
	}
	return taken.Claimed, e, taken.More, taken.Err
}

// request is a step that waits for the clerk.
type request struct {
	Step
	done chan Taken
}

// atOnce is how many steps are one transaction at most.
const atOnce = 64

// do has a step done. The steps of all lanes that come while a transaction is under way are the next one: a tenant with many
// endpoints commits once for all of them.
func (s *Service) do(step Step) Taken {
	r := request{step, make(chan Taken, 1)}
	s.mu.Lock()
	s.queue = append(s.queue, r)
	if !s.clerk {
		s.clerk = true
		go s.write() // it ends with the queue, for whose lanes the dispatcher waits
	}
	s.mu.Unlock()
	return <-r.done
}

func (s *Service) write() {
	for {
		s.mu.Lock()
		n := min(len(s.queue), atOnce)
		batch := slices.Clone(s.queue[:n])
		s.queue = s.queue[n:]
		if n == 0 {
			s.queue, s.clerk = nil, false
		}
		s.mu.Unlock()
		if n == 0 {
			return
		}
		if err := s.together(batch); err == nil {
			continue
		}
		for i := range batch { // whoever is in the way is not in the others'
			if err := s.together(batch[i : i+1]); err != nil {
				batch[i].done <- Taken{Err: err}
			}
		}
	}
}

// together does steps in one transaction and answers those who wait, unless that fails.
func (s *Service) together(batch []request) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.d.life), lastWords)
	defer cancel()
	steps := make([]Step, len(batch))
	for i, r := range batch {
		steps[i] = r.Step
	}
	taken, err := s.store.Take(ctx, steps)
	if err != nil {
		return err
	}
	for i, r := range batch {
		r.done <- taken[i]
	}
	return nil
}

// judge returns an endpoint as it is after attempts, and what is to be told of that.
func judge(e Endpoint, done []outcome, now time.Time) (Endpoint, event.Change) {
	failed := false
	end := func(s State, why string) {
		if e.State == Active {
			e.State, e.Reason, e.NoticeDue = s, why, &now
		}
	}
	was := e.State
	for _, o := range done {
		switch {
		case o.State == Succeeded && e.HoldUntil != nil && e.HoldUntil.After(now):
			e.FailingSince = nil // it began before the endpoint asked for less: nothing does until then
		case o.State == Succeeded:
			e.Health = Health{}
		case o.lost:
			end(Disabled, SecretLost)
		case o.Result.Failed:
			failed = true
			if e.FailingSince == nil || o.Attempt.StartedAt.Before(*e.FailingSince) {
				at := o.Attempt.StartedAt
				e.FailingSince = &at
			}
			if slows(o.Attempt.Status) {
				// What was under way when it asked for less has not gone against that: it counts once for all of them.
				if e.HoldUntil == nil || !o.Attempt.StartedAt.Before(*e.HoldUntil) {
					e.Slowed++
				}
				if until := now.Add(holdFor(e.Slowed, o.asked)); e.HoldUntil == nil || until.After(*e.HoldUntil) {
					e.HoldUntil = &until
				}
			}
			if o.gone {
				end(Disabled, Gone)
			}
		}
	}
	if failed && e.FailingSince != nil && now.Sub(*e.FailingSince) >= failingFor {
		end(Paused, Failing)
	}
	if e.State == was {
		return e, event.Change{}
	}
	e.Version, e.UpdatedAt = e.Version+1, now
	ch := event.NewChange(ident.System(""), now)
	about := facts(e)
	about["reason"] = e.Reason
	ch.Add("webhook.paused", string(e.ID), about)
	return e, ch
}

// dice is from 0 to 1; it spreads retries, and nobody gains by guessing it.
func dice() float64 { return mathrand.Float64() } //nolint:gosec // see above
