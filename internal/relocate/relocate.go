package relocate

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/workspace"
)

// Prober tests an address of a user's own without leaving anything there; sqlstore.Externals does. Check looks at nothing
// but the way that it is written.
type Prober interface {
	Check(a tenant.Address) error
	Probe(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) (sqlstore.Report, error)
}

// Config is what a Service needs.
type Config struct {
	Store  *sqlstore.MasterStore
	Places *workspace.Placements
	Pool   *workspace.Pool
	Probe  Prober // nil: users cannot bring databases of their own
	Keys   *seal.Keyring
	// Lasting signs receipts: keys that a rotation of the master key leaves as they are. nil: Keys.
	Lasting *seal.Keyring
	Bus     event.Bus
	Log     *slog.Logger
	Now     func() time.Time
	Node    string // this process, as its jobs and events name it
	Sole    bool   // no other process works on these tenants
	// Spools drops what is kept for a tenant outside its database; nil when nothing is.
	Spools func(ctx context.Context, id ident.TenantID) error
	// Snapshots are what databases held before their schemas were changed; nil when none are taken.
	Snapshots *Snapshots
	// Rewrapping is told before the first secret is sealed anew, and Rewrapped when every one is: the key of the
	// installation is sealed anew by it, as the last. nil: there is none.
	Rewrapping, Rewrapped func(ctx context.Context) error
	// Wake makes the runner look for jobs at once; nil: it looks by itself.
	Wake func()
}

// Service is what doors and commands call for whole tenants.
type Service struct {
	Config
	watch func(step string) // tests hear from it how far a move has come
}

// New builds the service.
func New(c Config) *Service {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Lasting == nil {
		c.Lasting = c.Keys
	}
	return &Service{Config: c}
}

// Kinds of jobs.
const (
	KindMove  = "database.move"
	KindErase = "account.erase"
	KindEmpty = "data.erase"
	KindFleet = "fleet.migrate"
	KindBack  = "fleet.back"
	// KindRewrap seals secrets anew under the current master key.
	KindRewrap = "keys.rewrap"
	// KindRelease lets go of a copy. Whoever asks for it runs it.
	KindRelease = "database.release"
)

// Work is what the runner needs to run this package's jobs.
func (s *Service) Work() map[string]job.Work {
	return map[string]job.Work{KindMove: s.move, KindErase: s.erase, KindEmpty: s.empty,
		KindFleet: s.fleet, KindBack: s.back, KindRewrap: s.rewrap}
}

// LeftWork is what the runner needs to end jobs that other processes left behind, which it must not start.
func (s *Service) LeftWork() map[string]job.Work {
	return map[string]job.Work{KindRestore: s.takeBack, KindRelease: s.release}
}

// asker is who asked for a job, as its input keeps it.
type asker struct {
	Account   ident.AccountID `json:"account_id,omitempty"`
	Name      string          `json:"name,omitempty"`
	Session   ident.SessionID `json:"session_id,omitempty"`
	Address   string          `json:"address,omitempty"`
	RequestID string          `json:"request_id,omitempty"`
}

func askerOf(a ident.Actor) asker {
	return asker{Account: a.Account, Name: a.Name, Session: a.Session, Address: a.Address, RequestID: a.RequestID}
}

func (a asker) actor() ident.Actor {
	return ident.Actor{Account: a.Account, Name: a.Name, Session: a.Session, Address: a.Address, RequestID: a.RequestID,
		System: a.Account == ""}
}

// own finds the tenant if it is the actor's. To anybody else it does not exist.
func (s *Service) own(ctx context.Context, op string, actor ident.Actor, id ident.TenantID) (tenant.Tenant, error) {
	t, err := s.Store.FindTenant(ctx, id)
	if err == nil && !actor.System && t.Account != actor.Account {
		err = fault.Missing(op)
	}
	return t, fault.Wrap(op, err)
}

// settling is the context of what is to be seen and undone also when nothing more is wanted of the job.
func settling(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
}

func (s *Service) moment() time.Time { return s.Now().UTC().Truncate(time.Microsecond) }

func (s *Service) wake() {
	if s.Wake != nil {
		s.Wake()
	}
}

// newJob describes a job about a tenant.
func (s *Service) newJob(kind string, t tenant.Tenant, input any) (job.Job, error) {
	raw, err := json.Marshal(input)
	if err != nil {
		return job.Job{}, fault.Wrap("relocate", err)
	}
	return job.Job{ID: ident.New[ident.JobID](), Kind: kind, Account: t.Account, Tenant: t.ID, State: job.Queued,
		Input: raw, CreatedAt: s.moment()}, nil
}

// Jobs returns a page of the actor's jobs, newest first, and the next cursor.
func (s *Service) Jobs(ctx context.Context, actor ident.Actor, f job.Filter, cursor string, limit int) ([]job.Job, string, error) {
	const op = "relocate.Jobs"
	if !actor.System {
		f.Account = actor.Account
	}
	list, next, err := s.Store.ListJobs(ctx, f, cursor, limit)
	return list, next, fault.Wrap(op, err)
}

// Job returns one of the actor's jobs.
func (s *Service) Job(ctx context.Context, actor ident.Actor, id ident.JobID) (job.Job, error) {
	const op = "relocate.Job"
	j, err := s.Store.FindJob(ctx, id)
	if err == nil && !actor.System && j.Account != actor.Account {
		err = fault.Missing(op)
	}
	return j, fault.Wrap(op, err)
}

// askedBy is the account that asked for a job; empty: the operator.
func askedBy(j job.Job) ident.AccountID {
	var in struct {
		Asker asker `json:"asker"`
	}
	if json.Unmarshal(j.Input, &in) != nil {
		return ""
	}
	return in.Asker.Account
}

// CancelJob cancels one of the actor's jobs: at once while it is queued, else as soon as it notices. A job that has
// ended is Conflict, code "job_finished", and so is one that cannot be cancelled, or not by whoever did not ask for it,
// code "job_uncancellable".
func (s *Service) CancelJob(ctx context.Context, actor ident.Actor, id ident.JobID) (job.Job, error) {
	const op = "relocate.CancelJob"
	j, err := s.Store.CancelJob(ctx, id, s.moment(), func(j job.Job) (event.Change, error) {
		switch {
		case !actor.System && j.Account != actor.Account:
			return event.Change{}, fault.Missing(op)
		case j.State.Final():
			return event.Change{}, fault.New(fault.Conflict, op, "job_finished", "the job has ended: there is nothing to cancel")
		case j.Kind == KindErase || j.Kind == KindEmpty || j.Kind == KindRelease:
			return event.Change{}, fault.New(fault.Conflict, op, "job_uncancellable", "what is being erased cannot be brought back")
		case !actor.System && askedBy(j) != actor.Account:
			return event.Change{}, fault.New(fault.Conflict, op, "job_uncancellable", "the operator asked for this job, and can cancel it")
		}
		ch := event.NewChange(actor, s.moment())
		ch.Add("job.cancel_requested", string(id), map[string]any{"kind": j.Kind})
		return ch, nil
	})
	return j, fault.Wrap(op, err)
}
