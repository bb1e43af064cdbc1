package job

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Work does what a kind of job is about. It returns a report, which is shown, and an error when it failed: it has then
// left everything as it was. When ctx ends because somebody cancelled, it undoes what it did and returns
// [ErrCancelled]; that may be so from the beginning, and an earlier process may have left something to be undone. When
// ctx ends because the server stops, it may return whatever stands, and is called again later, with what it saved.
type Work func(ctx context.Context, run *Run) (report any, err error)

// Why the context of a Work may be over.
var (
	ErrCancelled = errors.New("the job was cancelled")
	ErrStopping  = errors.New("the server is stopping")
	// ErrLost says that the lease was over, and that somebody else works on the job, who has undone what was done.
	ErrLost = errors.New("the job belongs to somebody else now")
	// ErrAgain, returned by a Work, leaves the job running without an owner: it is claimed again when its lease is over.
	// For work that can be neither finished nor undone at the moment.
	ErrAgain = errors.New("the job must be tried again")
)

// Run is a job at work.
type Run struct {
	Job    Job
	runner *Runner
	mu     sync.Mutex
	now    Progress
}

// Progress notes how far the work has come. It costs nothing; the runner stores it now and then.
func (r *Run) Progress(done, total int64, unit string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = Progress{Done: done, Total: total, Unit: unit}
}

// Save stores what whoever goes on with this job must know. It returns when that is on disk: with [ErrCancelled] when
// somebody wishes by then that the job stops, so that nothing is done against a wish that was stored before.
func (r *Run) Save(ctx context.Context, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fault.Wrap("job.Save", err)
	}
	held, cancel, err := r.runner.Store.RenewJob(ctx, r.Job.ID, r.runner.Node, r.runner.until(), r.progress(), raw)
	switch {
	case err != nil:
		return err
	case !held:
		return ErrLost
	}
	r.Job.Saved = raw
	if cancel {
		return ErrCancelled
	}
	return nil
}

// Held returns [ErrLost] when the job belongs to somebody else now: then nothing may be undone either, since it would be
// that one's work. Any other error says that it could not be found out.
func (r *Run) Held(ctx context.Context) error {
	held, _, err := r.runner.Store.RenewJob(ctx, r.Job.ID, r.runner.Node, r.runner.until(), r.progress(), nil)
	if err == nil && !held {
		err = ErrLost
	}
	return err
}

// Again reports whether an earlier process died over this job.
func (r *Run) Again() bool { return r.Job.Attempts > 1 }

func (r *Run) progress() Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

// Config is what a Runner needs.
type Config struct {
	Store Store
	Node  string // names this process; new at every start
	Sole  bool   // no other process works on these jobs
	Kinds map[string]Work
	// Left are kinds that other processes start and run themselves: only what they left behind is taken up.
	Left  map[string]Work
	Log   *slog.Logger
	Now   func() time.Time
	Lease time.Duration // default 10 s
	Every time.Duration // how often it looks for jobs (default 1 s); Wake makes it look at once
	Most  int           // jobs at once (default 4), of these one about the installation: such a one may take hours
	// Told, when set, hears of every end, after it was stored.
	Told func(Job)
}

// Runner runs jobs. Run looks for them until its context ends.
type Runner struct {
	Config
	wake chan struct{}
	wide atomic.Bool // one about the installation is at work

	mu     sync.Mutex
	atWork map[ident.JobID]bool
}

// NewRunner returns a runner that does nothing until Run.
func NewRunner(c Config) *Runner {
	if c.Lease <= 0 {
		c.Lease = 10 * time.Second
	}
	if c.Every <= 0 {
		c.Every = time.Second
	}
	if c.Most <= 0 {
		c.Most = 4
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Runner{Config: c, wake: make(chan struct{}, 1), atWork: make(map[ident.JobID]bool)}
}

// Wake makes Run look for work at once.
func (r *Runner) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run claims jobs and runs them until ctx ends; it returns when all of its own have been told and have returned.
func (r *Runner) Run(ctx context.Context) error {
	var busy sync.WaitGroup
	defer busy.Wait()
	places := make(chan struct{}, r.Most)
	tick := time.NewTicker(r.Every)
	defer tick.Stop()
	for {
		for r.next(ctx, &busy, places) {
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-r.wake:
		}
	}
}

// next starts one job if there is one and a place for it.
func (r *Runner) next(ctx context.Context, busy *sync.WaitGroup, places chan struct{}) bool {
	select {
	case places <- struct{}{}:
	default:
		return false
	}
	j, ok, err := r.claim(ctx, "", r.wide.Load())
	if err != nil || !ok {
		<-places
		if err != nil && ctx.Err() == nil {
			r.Log.Warn("jobs not looked at", "code", fault.CodeOf(err))
		}
		return false
	}
	wide := j.Tenant == ""
	if wide {
		r.wide.Store(true)
	}
	busy.Go(func() {
		defer r.Wake() // there is a place again
		defer func() {
			if wide {
				r.wide.Store(false)
			}
			<-places
		}()
		r.work(ctx, j)
	})
	return true
}

func (r *Runner) claim(ctx context.Context, only ident.JobID, narrow bool) (Job, bool, error) {
	if ctx.Err() != nil {
		return Job{}, false, nil
	}
	// Held across the claim, so that no two of this runner's claims can take one job. Who was held up for longer than a lease
	// would else take its own jobs for those of somebody who died, and undo what it does.
	r.mu.Lock()
	defer r.mu.Unlock()
	j, ok, err := r.Store.ClaimJob(ctx, Claim{Kinds: slices.Sorted(maps.Keys(r.Kinds)), Left: slices.Sorted(maps.Keys(r.Left)), Only: only,
		Narrow: narrow, Node: r.Node, Now: r.Now(), Lease: r.until(), Sole: r.Sole, Except: slices.Collect(maps.Keys(r.atWork))})
	if err == nil && ok {
		r.atWork[j.ID] = true
	}
	return j, ok, err
}

// left notes that nobody here works on a job any more.
func (r *Runner) left(id ident.JobID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.atWork, id)
}

// Do runs one job of this runner's store to its end, here and now: for commands that run without a server. When another
// process works on it, Do returns it as it stands with code "job_elsewhere". When ctx ends first, the job is left to
// whoever claims it next.
func (r *Runner) Do(ctx context.Context, id ident.JobID) (Job, error) {
	j, ok, err := r.claim(ctx, id, false)
	if err != nil {
		return Job{}, err
	}
	if ok {
		r.work(ctx, j)
	}
	now, err := r.Store.FindJob(context.WithoutCancel(ctx), id)
	if err == nil && !ok && !now.State.Final() {
		err = fault.New(fault.Unavailable, "job.Do", "job_elsewhere", "another process works on this job")
	}
	return now, err
}

// work runs a claimed job and stores how it ended.
func (r *Runner) work(ctx context.Context, j Job) {
	defer r.left(j.ID)
	run := &Run{Job: j, runner: r, now: j.Progress}
	doing, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	defer context.AfterFunc(ctx, func() { stop(ErrStopping) })()
	quit, quiet := make(chan struct{}), make(chan struct{})
	go func() { defer close(quiet); r.renew(doing, run, stop, quit) }()
	if j.Cancel {
		stop(ErrCancelled)
	}
	report, err := r.guarded(doing, run)
	close(quit)
	<-quiet
	cause := context.Cause(doing)
	if errors.Is(cause, ErrCancelled) && fault.Is(err, fault.Canceled) {
		err = ErrCancelled // it is what became of the wish on the way
	}
	switch {
	case errors.Is(cause, ErrLost):
		r.Log.Warn("job lost to another server", "job", j.ID, "kind", j.Kind)
		return
	case err != nil && errors.Is(cause, ErrStopping) && !errors.Is(err, ErrCancelled):
		return // it stays running, and is claimed again after the restart
	case errors.Is(err, ErrAgain):
		r.Log.Warn("job not finished, it will be tried again", "job", j.ID, "kind", j.Kind, "error", err)
		noting, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.Lease)
		defer cancel()
		if err := r.Store.NoteJob(noting, j.ID, r.Node, failureOf(err)); err != nil {
			r.Log.Warn("trouble of job not stored", "code", fault.CodeOf(err), "job", j.ID)
		}
		return
	}
	r.finish(run, report, err)
}

// guarded turns a panic of the work into a failure of the job: other jobs and the server go on.
func (r *Runner) guarded(ctx context.Context, run *Run) (report any, err error) {
	defer func() {
		if p := recover(); p != nil {
			r.Log.Error("job panicked", "job", run.Job.ID, "kind", run.Job.Kind, "panic", p)
			err = fault.New(fault.Internal, "job.Run", "", "something went wrong on the server")
		}
	}()
	work, ok := r.Kinds[run.Job.Kind]
	if !ok {
		work = r.Left[run.Job.Kind]
	}
	return work(ctx, run)
}

// renew keeps the lease, stores progress and hears of a wish to cancel.
func (r *Runner) renew(ctx context.Context, run *Run, stop context.CancelCauseFunc, quit <-chan struct{}) {
	t := time.NewTicker(min(r.Lease/4, time.Second))
	defer t.Stop()
	for {
		select {
		case <-quit:
			return
		case <-t.C:
		}
		held, cancel, err := r.Store.RenewJob(context.WithoutCancel(ctx), run.Job.ID, r.Node, r.until(), run.progress(), nil)
		switch {
		case err != nil:
			r.Log.Warn("job not renewed", "code", fault.CodeOf(err), "job", run.Job.ID)
		case !held:
			stop(ErrLost)
		case cancel:
			stop(ErrCancelled)
		}
	}
}

func (r *Runner) finish(run *Run, report any, err error) {
	j := run.Job
	j.State, j.Progress, j.Failure = Completed, run.progress(), nil
	now := r.Now().UTC().Truncate(time.Microsecond)
	j.FinishedAt = &now
	if report != nil {
		raw, merr := json.Marshal(report)
		if merr != nil {
			err = fault.Wrap("job.Run", merr)
		}
		j.Report = raw
	}
	switch {
	case errors.Is(err, ErrCancelled):
		j.State = Cancelled
	case err != nil:
		j.State = Failed
		f := failureOf(err)
		j.Failure = &f
		r.Log.Error("job failed", "job", j.ID, "kind", j.Kind, "error", err)
	}
	ch := event.NewChange(ident.System(""), now)
	ch.Add("job."+string(j.State), string(j.ID), map[string]any{"kind": j.Kind, "tenant_id": j.Tenant})
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		ctx, cancel := context.WithTimeout(context.Background(), r.Lease)
		err := r.Store.FinishJob(ctx, j, r.Node, ch)
		cancel()
		if err == nil || !fault.Is(err, fault.Unavailable) || wait > 3*time.Second {
			if err != nil {
				r.Log.Error("end of job not stored", "code", fault.CodeOf(err), "job", j.ID)
			}
			break
		}
		time.Sleep(wait) //nolint:forbidigo // what was done is to be stored, also while the server stops; seconds at most
	}
	if r.Told != nil {
		r.Told(j)
	}
}

// failureOf is as much of an error as may be shown.
func failureOf(err error) Failure {
	detail := "something went wrong on the server"
	if f, ok := errors.AsType[*fault.Error](err); ok {
		detail = f.Message
	}
	return Failure{Code: fault.CodeOf(err), Detail: detail}
}

func (r *Runner) until() time.Time { return r.Now().Add(r.Lease) }
