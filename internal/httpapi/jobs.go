package httpapi

import (
	"context"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/relocate"
)

// jobView is a piece of long work as whoever asked for it sees it.
type jobView struct {
	ID         string       `json:"id" example:"job_06f4k3z9c8tqv5m2yb7n1x0d4e"`
	Kind       string       `json:"kind" example:"database.move"`
	State      string       `json:"state" enum:"queued,running,completed,failed,cancelled"`
	Progress   job.Progress `json:"progress"`
	Report     object       `json:"report" doc:"What came of it; which fields it has depends on the kind"`
	Error      *failureView `json:"error,omitempty" doc:"Why it failed; while it is running, why it has to be tried again"`
	CreatedAt  time.Time    `json:"created_at"`
	StartedAt  *time.Time   `json:"started_at"`
	FinishedAt *time.Time   `json:"finished_at"`
}

func viewJob(j job.Job) jobView {
	v := jobView{ID: string(j.ID), Kind: j.Kind, State: string(j.State), Progress: j.Progress, Report: object(j.Report),
		CreatedAt: j.CreatedAt.UTC(), StartedAt: utc(j.StartedAt), FinishedAt: utc(j.FinishedAt)}
	if j.Failure != nil {
		v.Error = failureOf(j.Failure.Code, j.Failure.Detail)
	}
	return v
}

type jobAnswer struct{ Body jobView }

type jobList struct {
	Call
	Kind   string `query:"kind" maxLength:"64" example:"database.move"`
	State  string `query:"state" enum:"queued,running,completed,failed,cancelled"`
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"20"`
	Cursor string `query:"cursor" maxLength:"1024" doc:"From next_cursor"`
}

func (s *Server) listJobs(x *exchange, in *jobList) (*paged[jobView], error) {
	list, next, err := s.deps.Jobs.Jobs(x.ctx, x.actor, job.Filter{Kind: in.Kind, State: job.State(in.State)}, in.Cursor, in.Limit)
	if err != nil {
		return nil, err
	}
	return pageOf(list, next, viewJob), nil
}

type jobFind struct {
	Call
	ID string `path:"id" doc:"Identifier of a job, job_…" example:"job_06f4k3z9c8tqv5m2yb7n1x0d4e"`
}

func (s *Server) findJob(x *exchange, in *jobFind) (*jobAnswer, error) {
	return s.atJob(x, in, s.deps.Jobs.Job)
}

func (s *Server) cancelJob(x *exchange, in *jobFind) (*jobAnswer, error) {
	return s.atJob(x, in, s.deps.Jobs.CancelJob)
}

func (s *Server) atJob(x *exchange, in *jobFind, do func(context.Context, ident.Actor, ident.JobID) (job.Job, error)) (*jobAnswer, error) {
	id, err := ident.Parse[ident.JobID](in.ID)
	if err != nil {
		return nil, fault.Missing("httpapi.job")
	}
	j, err := do(x.ctx, x.actor, id)
	if err != nil {
		return nil, err
	}
	return &jobAnswer{viewJob(j)}, nil
}

type eraseIn struct {
	Call
	Body struct {
		Password string `json:"password" maxLength:"1024"`
		What     string `json:"what" enum:"account,data" doc:"account: the account with everything about it. data: what the account holds; account and sign-in stay"`
	} `nameHint:"Erasure"`
}

// erasedView is how far an erasure is.
type erasedView struct {
	JobID   string       `json:"job_id" example:"job_06f4k3z9c8tqv5m2yb7n1x0d4e"`
	State   string       `json:"state" enum:"queued,running,completed,failed,cancelled"`
	Receipt object       `json:"receipt" doc:"What was erased, where and how, signed by the installation; empty until it is completed. Of each store its outcome: erased; pending, when something has to happen first, such as the next backup; or left, where the server has no way to it"`
	Error   *failureView `json:"error,omitempty"`
}

type erasedAnswer struct {
	Status int
	Body   erasedView
}

// erase starts an erasure, which goes on whatever becomes of the request, and waits a while for its end, or for what is in
// its way. While the database of what is to be erased does not answer, none is started.
func (s *Server) erase(x *exchange, in *eraseIn) (*erasedAnswer, error) {
	if err := s.deps.Proof.Prove(x.ctx, x.actor, in.Body.Password); err != nil {
		return nil, err
	}
	j, err := s.deps.Eraser.Erase(x.ctx, x.actor, x.tenant, in.Body.What)
	if err != nil {
		return nil, err
	}
	if in.Body.What == relocate.EraseAccount {
		s.deps.Proof.Forget(x.actor.Account)
		s.dropCookies(x.w)
	}
	within, cancel := context.WithTimeout(x.ctx, s.cfg.EraseTime)
	defer cancel()
	if now, err := s.deps.Eraser.Await(within, j.ID); err == nil {
		j = now
	} else {
		s.log.Warn("erasure not awaited", "request_id", x.requestID, "code", fault.CodeOf(err))
	}
	out := &erasedAnswer{Status: 202, Body: erasedView{JobID: string(j.ID), State: string(j.State), Error: viewJob(j).Error}}
	if j.State.Final() {
		out.Status, out.Body.Receipt = 200, object(j.Report)
	}
	return out, nil
}
