package sqlstore

import (
	"context"
	"encoding/json"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
)

const jobColumns = `id, kind, account_id, tenant_id, state, done, total, unit, input, saved, report, error_code, error_detail,
	cancel, node, lease_until, attempts, created_at, started_at, finished_at`

func scanJob(s Scanner) (j job.Job, err error) {
	var input, saved, report, code, detail string
	var lease, created int64
	var started, finished *int64
	err = s.Scan(&j.ID, &j.Kind, &j.Account, &j.Tenant, &j.State, &j.Progress.Done, &j.Progress.Total, &j.Progress.Unit,
		&input, &saved, &report, &code, &detail, &j.Cancel, &j.Node, &lease, &j.Attempts, &created, &started, &finished)
	j.Input, j.Saved, j.Report = rawJSON(input), rawJSON(saved), rawJSON(report)
	if code != "" {
		j.Failure = &job.Failure{Code: code, Detail: detail}
	}
	j.Lease, j.CreatedAt = ident.Time(lease), ident.Time(created)
	j.StartedAt, j.FinishedAt = timeOf(started), timeOf(finished)
	return j, err
}

// rawJSON is nil for no text.
func rawJSON(text string) json.RawMessage {
	if text == "" {
		return nil
	}
	return json.RawMessage(text)
}

// insertJob queues a new job.
func insertJob(b *Batch, j job.Job) {
	b.Exec(`INSERT INTO jobs (`+jobColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', '', 0, '', 0, 0, ?, NULL, NULL)`,
		j.ID, j.Kind, j.Account, j.Tenant, j.State, j.Progress.Done, j.Progress.Total, j.Progress.Unit, string(j.Input),
		string(j.Saved), string(j.Report), ident.Micros(j.CreatedAt))
}

// InsertJob stores a new job with the change that tells of it. With a tenant it also becomes the tenant's job; a tenant
// that has one already is Conflict, code "tenant_busy".
func (s *MasterStore) InsertJob(ctx context.Context, j job.Job, ch event.Change) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		if err := takeTenant(tx, j); err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) {
			insertJob(b, j)
			appendChange(b, ch, head)
		})
	})
}

// InsertOnlyJob stores a new job about no single tenant, unless one of these kinds is queued or at work: it returns that
// one, and stores nothing. Of any number that are stored at the same time one is.
func (s *MasterStore) InsertOnlyJob(ctx context.Context, j job.Job, kinds []string, ch event.Change) (other job.Job, err error) {
	var args []any
	for _, k := range kinds {
		args = append(args, k)
	}
	err = s.change(ctx, func(tx *Tx, head *event.Seq) error {
		var list []job.Job
		var seq int64
		if err := tx.Run(func(b *Batch) {
			// Whoever commits a change waits here for the other, and then sees what it stored.
			b.One([]any{&seq}, `SELECT seq FROM log_head WHERE one = 1`+b.Dialect().ForUpdate())
			b.Query(takeJobs(&list), `SELECT `+jobColumns+` FROM jobs WHERE kind IN (`+places(len(args))+`)
				AND state IN ('queued', 'running') ORDER BY state DESC, id LIMIT 1`, args...)
		}); err != nil {
			return err
		}
		if other = (job.Job{}); len(list) > 0 {
			other = list[0]
			return nil
		}
		return tx.Commit(func(b *Batch) {
			insertJob(b, j)
			appendChange(b, ch, head)
		})
	})
	return other, err
}

// takeTenant makes the job the tenant's one job.
func takeTenant(tx *Tx, j job.Job) error {
	if j.Tenant == "" {
		return nil
	}
	var took *Affected
	var there *Found
	var id string
	if err := tx.Run(func(b *Batch) {
		there = b.One([]any{&id}, `SELECT id FROM tenants WHERE id = ?`, j.Tenant)
		took = b.Exec(`UPDATE tenants SET job_id = ? WHERE id = ? AND job_id = ''`, j.ID, j.Tenant)
	}); err != nil {
		return err
	}
	switch {
	case !there.Yes:
		return fault.Missing("sqlstore.InsertJob")
	case took.N == 0:
		return fault.New(fault.Conflict, "sqlstore.InsertJob", "tenant_busy",
			"another job works on this account's data: wait for its end, or cancel it")
	}
	return nil
}

// FindJob implements job.Store.
func (s *MasterStore) FindJob(ctx context.Context, id ident.JobID) (job.Job, error) {
	list, err := s.jobs(ctx, `SELECT `+jobColumns+` FROM jobs WHERE id = ?`, id)
	if err == nil && len(list) == 0 {
		err = fault.Missing("sqlstore.FindJob")
	}
	if err != nil {
		return job.Job{}, err
	}
	return list[0], nil
}

func (s *MasterStore) jobs(ctx context.Context, sql string, args ...any) ([]job.Job, error) {
	var list []job.Job
	err := s.db.Read(ctx, func(b *Batch) { b.Query(takeJobs(&list), sql, args...) })
	return list, err
}

func takeJobs(list *[]job.Job) func(Scanner) error {
	return func(s Scanner) error {
		j, err := scanJob(s)
		*list = append(*list, j)
		return err
	}
}

// jobCursor is the place in a listing of jobs.
type jobCursor struct {
	Kind string `json:"k"` // "jobs"
	ID   string `json:"id"`
}

// ListJobs implements job.Store.
func (s *MasterStore) ListJobs(ctx context.Context, f job.Filter, cursor string, limit int) ([]job.Job, string, error) {
	limit = max(1, limit)
	var c conditions
	if cursor != "" {
		var at jobCursor
		if err := parseCursor(cursor, &at); err != nil {
			return nil, "", err
		}
		if at.Kind != "jobs" {
			return nil, "", badCursor()
		}
		c.and("id < ?", at.ID)
	}
	if f.Account != "" {
		c.and("account_id = ?", f.Account)
	}
	if f.Tenant != "" {
		c.and("tenant_id = ?", f.Tenant)
	}
	if f.Kind != "" {
		c.and("kind = ?", f.Kind)
	}
	if f.State != "" {
		c.and("state = ?", f.State)
	}
	list, err := s.jobs(ctx, `SELECT `+jobColumns+` FROM jobs`+c.where()+` ORDER BY id DESC LIMIT ?`,
		append(c.args, limit+1)...)
	if err != nil || len(list) <= limit {
		return list, "", err
	}
	return list[:limit], formatCursor(jobCursor{Kind: "jobs", ID: string(list[limit-1].ID)}), nil
}

// ClaimJob implements job.Store.
func (s *MasterStore) ClaimJob(ctx context.Context, c job.Claim) (job.Job, bool, error) {
	if len(c.Kinds)+len(c.Left) == 0 {
		return job.Job{}, false, nil
	}
	var args []any
	in := func(kinds []string) string {
		if len(kinds) == 0 {
			return `(NULL)`
		}
		for _, k := range kinds {
			args = append(args, k)
		}
		return `(` + places(len(kinds)) + `)`
	}
	which := ` WHERE (kind IN ` + in(c.Kinds) + ` AND (state = 'queued'
		OR state = 'running' AND (lease_until < ? OR ? = 1 AND node <> ?))`
	args = append(args, ident.Micros(c.Now), c.Sole, c.Node)
	which += ` OR kind IN ` + in(c.Left) + ` AND (state = 'running' AND lease_until < ? OR state = 'queued' AND created_at < ?))`
	args = append(args, ident.Micros(c.Now), ident.Micros(c.Now.Add(-job.LeftAfter)))
	if c.Narrow {
		which += ` AND tenant_id <> ''`
	}
	if c.Only != "" {
		which += ` AND id = ?`
		args = append(args, c.Only)
	}
	if len(c.Except) > 0 {
		which += ` AND id NOT IN (` + places(len(c.Except)) + `)`
		for _, id := range c.Except {
			args = append(args, id)
		}
	}
	which += ` ORDER BY id LIMIT 1`
	// Asked first without a lock: most of the time there is nothing.
	var list []job.Job
	if err := s.db.Read(ctx, func(b *Batch) {
		b.Query(takeJobs(&list), `SELECT `+jobColumns+` FROM jobs`+which, args...)
	}); err != nil || len(list) == 0 {
		return job.Job{}, false, err
	}
	err := s.db.Write(ctx, func(tx *Tx) error {
		list = nil
		if err := tx.Run(func(b *Batch) {
			b.Query(takeJobs(&list), `SELECT `+jobColumns+` FROM jobs`+which+tx.Dialect().Pick("", " FOR UPDATE SKIP LOCKED"), args...)
		}); err != nil || len(list) == 0 {
			return err
		}
		j := &list[0]
		j.State, j.Node, j.Lease = job.Running, c.Node, c.Lease
		j.Attempts++
		if j.StartedAt == nil {
			j.StartedAt = &c.Now
		}
		return tx.Commit(func(b *Batch) {
			b.Exec(`UPDATE jobs SET state = ?, node = ?, lease_until = ?, attempts = ?, started_at = ? WHERE id = ?`,
				j.State, j.Node, ident.Micros(j.Lease), j.Attempts, moment(j.StartedAt), j.ID)
		})
	})
	if err != nil || len(list) == 0 {
		return job.Job{}, false, err
	}
	return list[0], true, nil
}

// RenewJob implements job.Store.
func (s *MasterStore) RenewJob(ctx context.Context, id ident.JobID, node string, lease time.Time, p job.Progress,
	saved json.RawMessage,
) (held, cancel bool, err error) {
	var found *Found
	err = s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			found = b.One([]any{&cancel}, `UPDATE jobs SET lease_until = ?, done = ?, total = ?, unit = ?,
				saved = CASE WHEN ? = '' THEN saved ELSE ? END
				WHERE id = ? AND node = ? AND state = 'running' RETURNING cancel`,
				ident.Micros(lease), p.Done, p.Total, p.Unit, string(saved), string(saved), id, node)
		})
	})
	if err != nil {
		return false, false, err
	}
	return found.Yes, cancel, nil
}

// FinishJob implements job.Store. The tenant is free again.
func (s *MasterStore) FinishJob(ctx context.Context, j job.Job, node string, ch event.Change) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		var ours *Found
		var id string
		if err := tx.Run(func(b *Batch) {
			ours = b.One([]any{&id}, `SELECT id FROM jobs WHERE id = ? AND node = ? AND state = 'running'`+
				tx.Dialect().ForUpdate(), j.ID, node)
		}); err != nil || !ours.Yes {
			return err
		}
		return tx.Commit(func(b *Batch) {
			endJob(b, j)
			appendChange(b, ch, head)
		})
	})
}

// NoteJob implements job.Store.
func (s *MasterStore) NoteJob(ctx context.Context, id ident.JobID, node string, f job.Failure) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			b.Exec(`UPDATE jobs SET error_code = ?, error_detail = ? WHERE id = ? AND node = ? AND state = 'running'`,
				f.Code, f.Detail, id, node)
		})
	})
}

// endJob queues the end of a job.
func endJob(b *Batch, j job.Job) {
	code, detail := "", ""
	if j.Failure != nil {
		code, detail = j.Failure.Code, j.Failure.Detail
	}
	b.Exec(`UPDATE jobs SET state = ?, done = ?, total = ?, unit = ?, report = ?, error_code = ?, error_detail = ?,
		finished_at = ? WHERE id = ?`, j.State, j.Progress.Done, j.Progress.Total, j.Progress.Unit, string(j.Report), code,
		detail, moment(j.FinishedAt), j.ID)
	b.Exec(`UPDATE tenants SET job_id = '' WHERE job_id = ?`, j.ID)
}

// KeepJob stores a job that has ended, as another installation remembers it, in the place of what is known of it here. It
// is a part of restoring the whole, which [MasterStore.Revive] tells of.
func (s *MasterStore) KeepJob(ctx context.Context, j job.Job) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			b.Exec(`DELETE FROM jobs WHERE id = ?`, j.ID)
			insertJob(b, j)
			endJob(b, j)
		})
	})
}

// QueueJob has a job of another installation's, or of an earlier state of this one, done here, in the place of what is known
// of it: as if nobody had begun, but with what was saved of it. With closing its tenant's account is closed, too, as
// [MasterStore.CloseAccount] does it. NotFound: its tenant is not here. It is a part of restoring the whole, like KeepJob.
func (s *MasterStore) QueueJob(ctx context.Context, j job.Job, closing bool) error {
	j.State, j.Progress, j.Report = job.Queued, job.Progress{}, nil
	return s.db.Write(ctx, func(tx *Tx) error {
		if err := tx.Run(func(b *Batch) { b.Exec(`DELETE FROM jobs WHERE id = ?`, j.ID) }); err != nil {
			return err
		}
		if err := takeTenant(tx, j); err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) {
			insertJob(b, j)
			if closing {
				closeAccount(b, j.Tenant, j.Account, j.CreatedAt)
			}
		})
	})
}

// CancelJob implements job.Store.
func (s *MasterStore) CancelJob(ctx context.Context, id ident.JobID, now time.Time,
	decide func(job.Job) (event.Change, error),
) (job.Job, error) {
	var list []job.Job
	err := s.change(ctx, func(tx *Tx, head *event.Seq) error {
		list = nil
		if err := tx.Run(func(b *Batch) {
			b.Query(takeJobs(&list), `SELECT `+jobColumns+` FROM jobs WHERE id = ?`+tx.Dialect().ForUpdate(), id)
		}); err != nil {
			return err
		}
		if len(list) == 0 {
			return fault.Missing("sqlstore.CancelJob")
		}
		j := &list[0]
		ch, err := decide(*j)
		if err != nil || j.State.Final() || j.Cancel {
			return err
		}
		j.Cancel = true
		queued := j.State == job.Queued
		if queued {
			j.State, j.FinishedAt = job.Cancelled, &now
		}
		return tx.Commit(func(b *Batch) {
			b.Exec(`UPDATE jobs SET cancel = 1 WHERE id = ?`, id)
			if queued {
				endJob(b, *j)
			}
			appendChange(b, ch, head)
		})
	})
	if err != nil {
		return job.Job{}, err
	}
	return list[0], nil
}
