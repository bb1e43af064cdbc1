package relocate

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/workspace"
)

// KindRestore is the job that puts a tenant back to an earlier state. It is run by the command that asks for it: a
// server has no repository at hand, and only takes back what a killed command left.
const KindRestore = "tenant.restore"

type restoreInput struct {
	Snapshot string           `json:"snapshot"`
	To       ident.DatabaseID `json:"to"` // that is made for it
	Kind     tenant.Kind      `json:"kind"`
}

// PutBackReport is what came of putting a tenant back.
type PutBackReport struct {
	Snapshot string           `json:"snapshot"`
	At       time.Time        `json:"at"` // nothing in it was written later
	From     ident.DatabaseID `json:"from"`
	To       ident.DatabaseID `json:"to"`
	ToKind   string           `json:"to_kind"`
	Rows     int64            `json:"rows"`
	Hash     string           `json:"hash"` // of the content, as it was read from the restored database
	// Unfenced says why the replaced database could not be closed to writers: it cannot be read, or does not answer.
	Unfenced string `json:"unfenced,omitempty"`
}

// PutBack puts one tenant back to an earlier state while servers go on: a new database is made and proved, then it takes
// the place of the present one, which is kept as an original. Whatever fails before that leaves the tenant as it is. Code
// "tenant_emptied": its owner had all data erased since.
func (s *Service) PutBack(ctx context.Context, r *Repository, id ident.TenantID, o RestoreOptions) (job.Job, error) {
	const op = "relocate.PutBack"
	t, err := s.Store.FindTenant(ctx, id)
	if err != nil {
		return job.Job{}, fault.Wrap(op, err)
	}
	if o.Emptied, err = Emptyings(ctx, s.Store, id); err != nil {
		return job.Job{}, fault.Wrap(op, err)
	}
	m, d, err := r.chooseTenant(ctx, id, o)
	if err != nil {
		return job.Job{}, fault.Wrap(op, err)
	}
	in := restoreInput{Snapshot: m.ID, To: ident.New[ident.DatabaseID](), Kind: o.To}
	if in.Kind == "" {
		in.Kind = t.Placement.Kind
	}
	j, err := s.newJob(KindRestore, t, in)
	if err != nil {
		return job.Job{}, err
	}
	work := &putBack{Service: s, r: r, own: j.ID, progress: chunkProgress(d, o.Progress)}
	runner := job.NewRunner(job.Config{Store: s.Store, Node: s.Node, Kinds: map[string]job.Work{KindRestore: work.run}, Log: s.Log, Now: s.Now})
	if t.Job != "" {
		// One that a killed command left is taken back first. Of anything else the insertion will say that it is at work.
		if old, ferr := s.Store.FindJob(ctx, t.Job); ferr == nil && old.Kind == KindRestore {
			if _, err := runner.Do(ctx, old.ID); err != nil {
				return job.Job{}, fault.Wrap(op, err)
			}
		}
	}
	ch := event.NewChange(ident.System(""), j.CreatedAt)
	ch.Add("tenant.restore_started", string(id), map[string]any{"job_id": j.ID, "snapshot": m.ID})
	if err := s.Store.InsertJob(ctx, j, ch); err != nil {
		return job.Job{}, fault.Wrap(op, err)
	}
	j, err = runner.Do(ctx, j.ID)
	return j, fault.Wrap(op, err)
}

// putBack is the work of these jobs.
type putBack struct {
	*Service
	r        *Repository
	own      ident.JobID // the one that was asked for; others are taken back
	progress func()
}

// takeBack is the job in a server: the command that ran it was killed.
func (s *Service) takeBack(ctx context.Context, run *job.Run) (any, error) {
	return (&putBack{Service: s}).run(ctx, run)
}

func (p *putBack) run(ctx context.Context, run *job.Run) (any, error) {
	const op = "relocate.PutBack"
	var in restoreInput
	if err := json.Unmarshal(run.Job.Input, &in); err != nil {
		return nil, fault.Wrap(op, err)
	}
	look, looked := settling(ctx) // also when it was cancelled before it began
	defer looked()
	t, err := p.Store.FindTenant(look, run.Job.Tenant)
	if fault.Is(err, fault.NotFound) {
		return nil, fault.Wrap(op, err)
	}
	if err != nil {
		return nil, errors.Join(job.ErrAgain, err)
	}
	if t.Placement.Database == in.To {
		return run.Job.Saved, p.resettle(ctx, t) // an earlier process had switched already
	}
	// A move's way of telling other nodes and of switching is this job's, too.
	m := &mover{Service: p.Service, run: run, in: moveInput{To: in.To}, tenant: t, back: true}
	m.report.From, m.report.To = t.Placement.Database, in.To
	var report PutBackReport
	if run.Again() || run.Job.ID != p.own {
		err = fault.New(fault.Unavailable, op, "restore_interrupted", "the command that restored was killed: what it had done was taken back")
	} else {
		report, err = p.do(ctx, m, in)
	}
	if err == nil {
		return report, p.resettle(ctx, t)
	}
	undo, cancel := settling(ctx)
	defer cancel()
	uerr := run.Held(undo)
	if uerr == nil {
		uerr = p.undo(undo, m, in)
	}
	if uerr != nil {
		return nil, errors.Join(job.ErrAgain, uerr, err)
	}
	if ctx.Err() != nil || errors.Is(err, job.ErrCancelled) {
		return nil, job.ErrCancelled
	}
	return nil, fault.Wrap(op, err)
}

// resettle has everything looked at again that is kept in two databases, of which one was put back to what it was.
func (p *putBack) resettle(ctx context.Context, t tenant.Tenant) error {
	ctx, cancel := settling(ctx)
	defer cancel()
	if err := p.Store.MarkAccount(ctx, t.Account, p.Now()); err != nil {
		return errors.Join(job.ErrAgain, err)
	}
	return nil
}

func (p *putBack) do(ctx context.Context, m *mover, in restoreInput) (PutBackReport, error) {
	var none PutBackReport
	manifest, err := p.r.Manifest(ctx, in.Snapshot)
	if err != nil {
		return none, err
	}
	d := manifest.find(string(m.tenant.ID))
	if d == nil {
		return none, damaged("the snapshot "+in.Snapshot, nil)
	}
	// Asked again: from now on the tenant is this job's, and nobody empties it meanwhile.
	emptied, err := Emptyings(ctx, p.Store, m.tenant.ID)
	if err == nil && (RestoreOptions{Emptied: emptied}).forbids(d) {
		err = forgotten()
	}
	if err != nil {
		return none, err
	}
	at := tenant.Placement{Database: in.To, Kind: in.Kind}
	if in.Kind == tenant.External {
		if m.tenant.Placement.Kind != tenant.External {
			return none, fault.New(fault.Invalid, "relocate.PutBack", "restore_place_missing", "the tenant has no database of its own in use")
		}
		password, err := p.Places.Password(m.tenant.Placement)
		if err != nil {
			return none, err
		}
		at.Address, at.SealedPassword = m.tenant.Placement.Address, p.Places.SealPassword(in.To, password)
	}
	if at, err = p.Places.Choose(ctx, at); err != nil {
		return none, err
	}
	// Noted before anything is made, so that whatever is made can be found and removed.
	now := p.moment()
	m.target = tenant.Database{Tenant: m.tenant.ID, Name: restoredName(d.At), State: tenant.Filling, Placement: at, Version: 1,
		CreatedAt: now, UpdatedAt: now}
	ch := event.NewChange(ident.System(""), now)
	ch.Add("database.created", string(in.To), map[string]any{"kind": KindName(in.Kind), "job_id": m.run.Job.ID})
	if err := p.Store.InsertDatabase(ctx, m.target, ch); err != nil {
		return none, err
	}
	step := func() {
		if p.progress != nil {
			p.progress()
		}
	}
	at, facts, err := p.r.fresh(ctx, p.Places, at, manifest, d, step)
	if err != nil {
		return none, err
	}
	m.target.Placement, m.target.Facts = at, facts
	if m.target, err = m.note(ctx, m.target, tenant.Filling); err != nil { // the key of a file is known only now
		return none, err
	}
	report := PutBackReport{Snapshot: manifest.ID, At: d.At, From: m.report.From, To: in.To, ToKind: KindName(in.Kind), Rows: d.Count(),
		Hash: hex.EncodeToString(d.Digest)}
	return report, p.change(ctx, m, &report)
}

// change lets the new database take the place of the present one.
func (p *putBack) change(ctx context.Context, m *mover, report *PutBackReport) error {
	// Servers hold the tenant's requests back from now on.
	if err := m.announce(ctx, workspace.EventSwitching); err != nil {
		return err
	}
	select {
	case <-time.After(workspace.SwitchNotice):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	now, cancel := context.WithTimeout(sqlstore.Patient(context.WithoutCancel(ctx)), undoPatience)
	defer cancel()
	// Noted first: whoever undoes it must know that the fence may stand.
	if err := m.run.Save(now, *report); err != nil {
		return err
	}
	// Whoever did not hear of it must not write where nobody will read.
	unread, err := p.fence(now, m.tenant.Placement, sqlstore.Fence)
	if err != nil {
		return err
	}
	if unread != nil {
		report.Unfenced = fault.CodeOf(unread)
		p.Log.Warn("the replaced database could not be closed to writers", "code", report.Unfenced, "tenant", m.tenant.ID)
	}
	if err := m.run.Save(now, *report); err != nil {
		return err
	}
	return m.commit(now)
}

// fence fences or unfences a database. One that cannot be read, which may be why it is replaced, is let be, and why is
// returned as unread: nobody can write it either.
func (p *putBack) fence(ctx context.Context, at tenant.Placement, do func(context.Context, *sqlstore.DB) error) (unread, err error) {
	db, err := p.Places.Open(ctx, at)
	if err != nil {
		return err, nil
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	switch v, err := sqlstore.SchemaVersion(ctx, db); {
	case err != nil && ctx.Err() == nil:
		return err, nil
	case err != nil:
		return nil, err
	case v == 0:
		return fault.New(fault.Unavailable, "relocate.PutBack", "tenant_missing", "the tables of this database are missing"), nil
	}
	return nil, do(ctx, db)
}

// unfence lets the present database be written again. One that was fenced and cannot be read at the moment is an error:
// the fence would stand when it can.
func (p *putBack) unfence(ctx context.Context, run *job.Run, at tenant.Placement) error {
	unread, err := p.fence(ctx, at, sqlstore.Unfence)
	if err != nil || unread == nil {
		return err
	}
	switch fault.CodeOf(unread) {
	case "tenant_missing", "tenant_unreadable", "seal_unknown_key", "seal_broken":
		return nil // nobody will write it
	}
	var noted PutBackReport
	if len(run.Job.Saved) == 0 {
		return nil // it had not come so far
	}
	if err := json.Unmarshal(run.Job.Saved, &noted); err != nil {
		return err
	}
	if noted.Unfenced != "" {
		return nil
	}
	return unread
}

// undo takes back whatever was done before the switch. It may be done again.
func (p *putBack) undo(ctx context.Context, m *mover, in restoreInput) error {
	ctx = sqlstore.Patient(ctx)
	t, err := p.Store.FindTenant(ctx, m.tenant.ID)
	if err == nil && t.Placement.Database == in.To {
		err = errSwitched
	}
	if err != nil {
		return err
	}
	if err := p.unfence(ctx, m.run, t.Placement); err != nil {
		return err
	}
	if err := m.announce(ctx, workspace.EventMoved); err != nil {
		return err
	}
	d, err := p.Store.FindDatabase(ctx, t.ID, in.To)
	if err != nil {
		return ignoreMissing(err)
	}
	if err := p.Places.Destroy(ctx, d.Placement); err != nil {
		return err
	}
	return p.Store.DeleteDatabase(ctx, t.ID, in.To, func(tenant.Tenant, tenant.Database, []tenant.Database) (event.Change, error) {
		ch := event.NewChange(ident.System(""), p.moment())
		ch.Add("database.deleted", string(in.To), map[string]any{"kind": KindName(in.Kind), "job_id": m.run.Job.ID})
		return ch, nil
	})
}
