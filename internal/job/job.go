package job

import (
	"context"
	"encoding/json"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

// State is how far a job has come.
type State string

// The states.
const (
	Queued    State = "queued"
	Running   State = "running"
	Completed State = "completed"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// Final reports whether nothing follows the state.
func (s State) Final() bool { return s != Queued && s != Running }

// Progress is how much of a job is done. Total is 0 while it is not known.
type Progress struct {
	Done  int64  `json:"done"`
	Total int64  `json:"total"`
	Unit  string `json:"unit"` // what is counted: "rows", "tenants"
}

// Failure is why a job failed, or, while it is running, why it has to be tried again; safe to show.
type Failure struct {
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

// Job is one piece of long work.
type Job struct {
	ID         ident.JobID
	Kind       string // "database.move"
	Account    ident.AccountID
	Tenant     ident.TenantID // empty: it is about the installation
	State      State
	Progress   Progress
	Input      json.RawMessage // what was asked for; never a secret
	Saved      json.RawMessage // what Work noted for whoever goes on with it
	Report     json.RawMessage // what came of it
	Failure    *Failure
	Cancel     bool // somebody asked it to stop
	Node       string
	Lease      time.Time
	Attempts   int // how often it was claimed
	CreatedAt  time.Time
	StartedAt  *time.Time
	FinishedAt *time.Time
}

// LeftAfter is how long whoever asked for a job that they run themselves has to begin it.
const LeftAfter = time.Minute

// Claim says which job somebody would take, and until when.
type Claim struct {
	Kinds []string
	Only  ident.JobID // this one or none; empty: any
	Node  string      // who takes it
	Now   time.Time
	Lease time.Time
	Sole  bool // whatever runs on another node belongs to a process that died
	// Left are kinds of which only those are taken whose node's lease is over, whatever Sole says, or which nobody has
	// begun for LeftAfter.
	Left []string
	// Narrow leaves jobs about the installation.
	Narrow bool
	// Except are jobs that are left alone: the node is at work on them, also when it could not renew its lease in time.
	Except []ident.JobID
}

// Filter narrows a listing. Zero fields do not narrow.
type Filter struct {
	Account ident.AccountID
	Tenant  ident.TenantID
	Kind    string
	State   State
}

// Store keeps jobs. What a job changes commits elsewhere; these calls only keep the job itself.
type Store interface {
	// FindJob returns fault.NotFound when there is none.
	FindJob(ctx context.Context, id ident.JobID) (Job, error)
	// ListJobs returns a page, newest first, and the next cursor.
	ListJobs(ctx context.Context, f Filter, cursor string, limit int) ([]Job, string, error)
	// ClaimJob takes one job of the kinds that is queued, or whose node's lease is over (with Sole: whose node is
	// another), or one that was left behind of the kinds Left, and counts the attempt. ok is false when there is none.
	ClaimJob(ctx context.Context, c Claim) (j Job, ok bool, err error)
	// RenewJob notes progress and, unless it is nil, what the work saved, and renews the lease. held is false when the
	// job is not node's any more; cancel tells that somebody wants it to stop.
	RenewJob(ctx context.Context, id ident.JobID, node string, lease time.Time, p Progress, saved json.RawMessage) (held, cancel bool, err error)
	// FinishJob stores how node's job ended, together with the change that tells of it. A job that is not node's any
	// more stays as it is.
	FinishJob(ctx context.Context, j Job, node string, ch event.Change) error
	// NoteJob notes why node's running job has to be tried again. A job that is not node's any more stays as it is.
	NoteJob(ctx context.Context, id ident.JobID, node string, f Failure) error
	// CancelJob cancels a queued job, or asks a running one to stop; decide judges it under a lock and describes the
	// change. It returns the job as it then stands.
	CancelJob(ctx context.Context, id ident.JobID, now time.Time, decide func(Job) (event.Change, error)) (Job, error)
}
