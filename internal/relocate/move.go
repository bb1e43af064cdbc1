package relocate

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/workspace"
)

// moveInput is what a move was asked for.
type moveInput struct {
	To      ident.DatabaseID `json:"to"`
	Asker   asker            `json:"asker"`
	Discard bool             `json:"discard,omitempty"` // the original is destroyed when all is done
}

// MoveReport is what came of a move.
type MoveReport struct {
	From     ident.DatabaseID `json:"from"`
	To       ident.DatabaseID `json:"to"`
	FromKind string           `json:"from_kind"`
	ToKind   string           `json:"to_kind"`
	Rows     int64            `json:"rows"`
	Followed int64            `json:"followed"` // rows that were copied again because they changed meanwhile
	// Hash is the SHA-256 of the whole content, as it was read from both databases and found equal.
	Hash   string           `json:"hash,omitempty"`
	Tables map[string]int64 `json:"tables,omitempty"` // rows by table
	// PausedMS is how long requests of this tenant were held back while the new place took over.
	PausedMS int64 `json:"paused_ms"`
}

const (
	pageRows  = 500
	pageBytes = 1 << 20
	// nearly is how many rows may change during a round for the switch to come next: they are copied again while
	// requests wait.
	nearly = 200
	// freeRounds bounds the chase after a tenant that is written while it is copied.
	freeRounds = 20
	// wholeRows is how large a database may be to be verified as a whole once more while requests wait.
	wholeRows = 5_000
	// holdPatience is how long a switch waits for the operations that are under way.
	holdPatience = 10 * time.Second
	undoPatience = 30 * time.Second
	// provePatience bounds the look at the source before anything is done.
	provePatience = 10 * time.Second
)

// move is the job that brings a tenant's data to another database.
func (s *Service) move(ctx context.Context, run *job.Run) (any, error) {
	if run.Again() {
		s.Log.Info("a move goes on that was broken off", "job", run.Job.ID, "tenant", run.Job.Tenant)
	}
	report, err := s.moveOn(ctx, run)
	if r, ok := report.(MoveReport); ok && err == nil {
		s.Log.Info("tenant moved", "job", run.Job.ID, "tenant", run.Job.Tenant, "from", r.From, "to", r.To)
	}
	return report, err
}

func (s *Service) moveOn(ctx context.Context, run *job.Run) (any, error) {
	const op = "relocate.Move"
	var in moveInput
	if err := json.Unmarshal(run.Job.Input, &in); err != nil {
		return nil, fault.Wrap(op, err)
	}
	// Also one that was cancelled before it began must see, and undo, what an earlier process left.
	look, looked := settling(ctx)
	defer looked()
	t, err := s.Store.FindTenant(look, run.Job.Tenant)
	if fault.Is(err, fault.NotFound) {
		return nil, fault.Wrap(op, err)
	}
	if err != nil {
		return nil, errors.Join(job.ErrAgain, err)
	}
	m := &mover{Service: s, run: run, in: in, tenant: t}
	if len(run.Job.Saved) > 0 {
		if err := json.Unmarshal(run.Job.Saved, &m.report); err != nil {
			return nil, fault.Wrap(op, err)
		}
	}
	if t.Placement.Database == in.To {
		// An earlier process had switched already.
		m.arrived(look)
		return m.finish(ctx)
	}
	if run.Again() {
		m.touched, m.begun = true, true
		undo, cancel := settling(ctx)
		defer cancel()
		if err := m.undo(undo); err != nil {
			return nil, errors.Join(job.ErrAgain, err)
		}
		m.touched, m.begun = false, false
	}
	if err := m.do(ctx); err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, job.ErrStopping) {
			return nil, errors.Join(job.ErrAgain, err)
		}
		undo, cancel := settling(ctx)
		defer cancel()
		uerr := run.Held(undo)
		if uerr == nil {
			uerr = m.undo(undo)
		}
		if errors.Is(uerr, errSwitched) {
			m.arrived(undo)
			return m.finish(ctx)
		}
		if uerr != nil {
			// The tenant may be fenced: this must not be left, so the job stays and comes back.
			return nil, errors.Join(job.ErrAgain, uerr, err)
		}
		if errors.Is(err, job.ErrCancelled) || errors.Is(context.Cause(ctx), job.ErrCancelled) {
			return m.report, job.ErrCancelled
		}
		return m.report, fault.Wrap(op, err)
	}
	return m.finish(ctx)
}

// mover is one move at work.
type mover struct {
	*Service
	run    *job.Run
	in     moveInput
	tenant tenant.Tenant
	target tenant.Database
	report MoveReport
	kept   *tenant.Database // the original beside which the target is made, until it takes that one's place
	back   bool             // to an earlier state: what its log tells after the switch is not what it told before
	saved  any              // what the job saves in place of the report, when moving is only a part of it

	lease    *workspace.Workspace
	from, to *sqlstore.DB
	touched  bool  // something may have been done to the source that must be undone there
	begun    bool  // something may have been done at the target
	at       int64 // how far the changes of the source were followed
	done     int64
	total    int64
}

// do brings the move to its switch. Whatever fails before leaves the tenant where it was, once undone.
func (m *mover) do(ctx context.Context) (err error) {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	hasty := ctx
	ctx = sqlstore.Patient(ctx)
	if m.lease, err = m.Pool.Acquire(ctx, ident.System(""), m.tenant.ID); err != nil {
		return err
	}
	defer m.lease.Release()
	if p := m.lease.Tenant.Schema.Problem; p != "" || m.lease.Tenant.State == tenant.Quarantined {
		return fault.New(fault.Conflict, "relocate.Move", "tenant_quarantined", "the data must be repaired before it is moved: ask the operator")
	}
	m.from = m.lease.Database().Direct()
	if err := m.prove(hasty); err != nil {
		return err
	}
	if err := m.prepare(ctx); err != nil {
		return err
	}
	if m.kept != nil {
		m.to, err = m.Places.OpenBeside(ctx, m.target.Placement)
	} else {
		m.to, err = m.Places.Open(ctx, m.target.Placement)
	}
	if err != nil {
		return err
	}
	handedOver := false
	defer func() {
		if !handedOver && m.to != nil {
			_ = m.to.Close()
		}
	}()
	m.reached(stepMade)
	m.touched = true
	if err := sqlstore.StartCapture(ctx, m.from); err != nil {
		return err
	}
	if err := m.copyAll(ctx); err != nil {
		return err
	}
	m.reached(stepCopied)
	if err := m.catchUp(ctx); err != nil {
		return err
	}
	if err := m.verify(ctx); err != nil {
		return err
	}
	m.reached(stepVerified)
	if err := m.catchUp(ctx); err != nil {
		return err
	}
	m.target.Facts.SizeBytes = sizeNow(ctx, m.to)
	former := m.from
	if err := m.change(ctx); err != nil {
		return err
	}
	handedOver = true
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
	defer cancel()
	// Whoever edited the target or the tenant meanwhile meant what is open now.
	m.arrived(after)
	m.retire(after, former)
	return nil
}

// arrived has this process use the tenant where the directory says that it lives.
func (m *mover) arrived(ctx context.Context) {
	if m.Pool == nil {
		return
	}
	if err := m.Pool.Refresh(ctx, m.tenant.ID); err != nil {
		m.Log.Warn("tenant not looked up again", "code", fault.CodeOf(err), "tenant", m.tenant.ID)
	}
}

// prove sees that the source can be read now: what is destroyed to make room at the target may be the only other copy.
func (m *mover) prove(ctx context.Context) error {
	const op = "relocate.Move"
	within, cancel := context.WithTimeout(ctx, provePatience)
	defer cancel()
	version, err := sqlstore.SchemaVersion(within, m.from)
	switch {
	case sqlstore.Unreachable(err) || err != nil && within.Err() != nil && ctx.Err() == nil:
		return fault.New(fault.Unavailable, op, "database_unreachable",
			"the database that the data lives in does not answer: nothing was moved").With(err)
	case err == nil && version == 0:
		return fault.New(fault.Unavailable, op, "schema_damaged", "the tables of the database that the data lives in are missing")
	}
	return err
}

// Steps of a move, as tests hear of them.
const (
	stepMade      = "made"      // the target is there, and empty
	stepCopied    = "copied"    // one state of the source is in it
	stepVerified  = "verified"  // and was found to be the same
	stepFenced    = "fenced"    // nobody writes to the source any more
	stepAnnounced = "announced" // of a way back: the target may take the original's place
	stepTaken     = "taken"     // it has
	stepSwitched  = "switched"  // the tenant lives at the target
)

// reached tells a test how far a move has come.
func (m *mover) reached(step string) {
	if m.watch != nil {
		m.watch(step)
	}
}

// prepare makes the target: an empty database, beside an original that is kept there, or in place of half a copy.
func (m *mover) prepare(ctx context.Context) error {
	d, err := m.Store.FindDatabase(ctx, m.tenant.ID, m.in.To)
	if err != nil {
		return err
	}
	m.report.From, m.report.To = m.tenant.Placement.Database, d.ID()
	m.report.FromKind, m.report.ToKind = KindName(m.tenant.Placement.Kind), KindName(d.Placement.Kind)
	if d.Placement.Kind == tenant.External {
		if err := m.probe(ctx, d); err != nil {
			return err
		}
	}
	m.begun = true
	if d.State == tenant.Original {
		if err := m.settle(ctx, d); err != nil {
			return err
		}
		kept := d
		m.kept, m.target = &kept, d
		m.target.Facts = tenant.Facts{} // they are of what is kept
		m.target.Placement, err = m.Places.MakeBeside(ctx, d.Placement)
		return err
	}
	if d.State == tenant.Filling {
		if err := notOurs(m.Places.Undo(ctx, d.Placement)); err != nil {
			return err
		}
	}
	d.Facts = tenant.Facts{} // they were of what is gone
	if d.Placement, err = m.Places.Choose(ctx, d.Placement); err != nil {
		return err
	}
	if err := m.Places.Vacant(ctx, d.Placement); err != nil {
		return err
	}
	// Noted before anything is made, so that whatever is made can be found and removed.
	if d, err = m.noteTarget(ctx, d, tenant.Filling); err != nil {
		return err
	}
	if d.Placement, err = m.Places.Make(ctx, d.Placement); fault.CodeOf(err) == "schema_exists" {
		// It is somebody else's, who was faster.
		_, nerr := m.noteTarget(ctx, d, tenant.Ready)
		return errors.Join(err, nerr)
	}
	if err != nil {
		return err
	}
	m.target, err = m.noteTarget(ctx, d, tenant.Filling)
	return err
}

// probe looks at a user's own database: only one that is good, and where nobody has anything under the name that the copy
// will have, is worked on.
func (m *mover) probe(ctx context.Context, d tenant.Database) error {
	const op = "relocate.Move"
	password, err := m.Places.Password(d.Placement)
	if err != nil {
		return err
	}
	r, err := m.Probe.Probe(ctx, d.ID(), d.Placement.Address, password)
	if err != nil {
		return err
	}
	for _, p := range r.Problems {
		if p.Level == sqlstore.ProblemError {
			facts := d.Facts
			facts.Problem = p.Code
			m.noteFacts(ctx, d, facts)
			return fault.New(fault.Conflict, op, p.Code, p.Message)
		}
	}
	if d.State == tenant.Ready && r.Schema != sqlstore.SchemaNone {
		// What was released is the owner's. It is nothing to be filled, nor to be taken away when filling it fails.
		return fault.New(fault.Conflict, op, "schema_exists", schemaTaken)
	}
	return nil
}

const schemaTaken = "the database holds a schema of that name with something in it already, such as a copy that was released there: " +
	"rename or drop it first"

// noteTarget is note for the target, whose address and credentials stay those that were tested: what their owner makes of
// them meanwhile counts from the switch on.
func (m *mover) noteTarget(ctx context.Context, d tenant.Database, state tenant.DatabaseState) (tenant.Database, error) {
	now, err := m.note(ctx, d, state)
	now.Placement.Address, now.Placement.SealedPassword = d.Placement.Address, d.Placement.SealedPassword
	return now, err
}

// note keeps what became of a configuration, without an event: the job tells of itself.
func (m *mover) note(ctx context.Context, d tenant.Database, state tenant.DatabaseState) (tenant.Database, error) {
	return m.Store.UpdateDatabase(ctx, m.tenant.ID, d.ID(), nil,
		func(_ tenant.Tenant, now tenant.Database) (tenant.Database, event.Change, error) {
			now.State, now.Placement.Host, now.Placement.WrappedKey = state, d.Placement.Host, d.Placement.WrappedKey
			now.Facts = d.Facts
			return now, event.Change{}, nil
		})
}

// copyAll copies one state of the source.
func (m *mover) copyAll(ctx context.Context) error {
	snap, err := m.from.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer snap.Close()
	tables, err := snap.Tables(ctx)
	if err != nil {
		return err
	}
	counts, err := snap.Counts(ctx, tables)
	if err != nil {
		return err
	}
	for _, n := range counts {
		m.total += n
	}
	m.progress(0)
	for _, t := range tables {
		for after := []any(nil); ; {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			rows, next, err := snap.Page(ctx, t, after, pageRows, pageBytes)
			if err != nil {
				return err
			}
			if len(rows) > 0 {
				if err := sqlstore.Put(ctx, m.to, t, rows); err != nil {
					return err
				}
				m.progress(int64(len(rows)))
			}
			if next == nil {
				break
			}
			after = next
		}
	}
	return nil
}

func (m *mover) progress(more int64) {
	m.done += more
	m.total = max(m.total, m.done)
	m.run.Progress(m.done, m.total, "rows")
}

// catchUp follows the source until a round finds little that is new. A tenant that is written faster than it is copied
// has its requests wait for one round.
func (m *mover) catchUp(ctx context.Context) error {
	before := 0
	for i := range freeRounds {
		n, err := m.round(ctx)
		if err != nil || n <= nearly {
			return err
		}
		if i > 0 && n > before/2 {
			break
		}
		before = n
	}
	return m.lease.Database().Switch(ctx, func() (*sqlstore.DB, error) {
		_, err := m.round(ctx)
		return nil, err
	})
}

// round follows the source up to now.
func (m *mover) round(ctx context.Context) (int, error) {
	snap, err := m.from.Snapshot(ctx)
	if err != nil {
		return 0, err
	}
	defer snap.Close()
	return m.follow(ctx, snap)
}

// follow brings the target up to the snapshot.
func (m *mover) follow(ctx context.Context, snap *sqlstore.Snapshot) (int, error) {
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	next, n, err := sqlstore.Follow(ctx, snap, m.to, m.at)
	if err != nil {
		return 0, err
	}
	m.at = next
	m.report.Followed += int64(n)
	m.progress(int64(n))
	return n, nil
}

// verify compares both databases as a whole while the source goes on being written: the target is brought to exactly
// one state of it first.
func (m *mover) verify(ctx context.Context) error {
	snap, err := m.from.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer snap.Close()
	if _, err := m.follow(ctx, snap); err != nil {
		return err
	}
	return m.compare(ctx, snap)
}

// compare reads both databases and fails with code "move_mismatch" unless they hold the same.
func (m *mover) compare(ctx context.Context, source *sqlstore.Snapshot) error {
	copied, err := m.to.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer copied.Close()
	var a, b sqlstore.Digest
	both, cctx := errgroup.WithContext(ctx)
	both.Go(func() (err error) { a, err = source.Digest(cctx); return err })
	both.Go(func() (err error) { b, err = copied.Digest(cctx); return err })
	if err := both.Wait(); err != nil {
		return err
	}
	if a.Sum != b.Sum {
		return mismatch()
	}
	m.report.Hash, m.report.Rows, m.report.Tables = hex.EncodeToString(a.Sum[:]), 0, map[string]int64{}
	for _, t := range a.Tables {
		m.report.Tables[t.Name] = t.Rows
		m.report.Rows += t.Rows
	}
	return nil
}

func mismatch() error {
	return fault.New(fault.Internal, "relocate.Move", "move_mismatch",
		"the copy does not hold what the original holds: nothing was moved")
}

// change makes the target the tenant's database: requests wait meanwhile.
func (m *mover) change(ctx context.Context) error {
	if !m.Sole {
		// Other nodes hold their requests back from now on.
		if err := m.announce(ctx, workspace.EventSwitching); err != nil {
			return err
		}
		select {
		case <-time.After(workspace.SwitchNotice):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	hold, cancel := context.WithTimeout(ctx, holdPatience)
	defer cancel()
	began := m.Now()
	err := m.lease.Database().Switch(hold, func() (*sqlstore.DB, error) {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		// From here on nobody's impatience matters: it is done or undone.
		now, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
		defer cancel()
		err := m.changeNow(now)
		return m.to, err // which is another one where it took an original's place
	})
	m.report.PausedMS = m.Now().Sub(began).Milliseconds()
	if err != nil {
		return err
	}
	t := m.lease.Tenant
	t.Placement = m.target.Placement
	m.lease.Moved(t)
	return nil
}

// changeNow runs while nobody else uses the tenant in this process.
func (m *mover) changeNow(ctx context.Context) (err error) {
	if err := sqlstore.Fence(ctx, m.from); err != nil {
		return err
	}
	m.reached(stepFenced)
	snap, err := m.from.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer snap.Close()
	changed, err := snap.Captured(ctx, m.at, 1)
	if err != nil {
		return err
	}
	if _, err := m.follow(ctx, snap); err != nil {
		return err
	}
	// Whatever changed since the last comparison is compared again: all of a small database, the numbers of a large one.
	tables, err := snap.Tables(ctx)
	if err != nil {
		return err
	}
	if len(changed) > 0 && m.report.Rows <= wholeRows {
		err = m.compare(ctx, snap)
	} else if len(changed) > 0 {
		err = m.count(ctx, snap, tables)
	}
	if err != nil {
		return err
	}
	seq, err := snap.Sequences(ctx)
	if err == nil {
		err = sqlstore.Advance(ctx, m.to, seq)
	}
	if err != nil {
		return err
	}
	if m.kept != nil {
		if err := m.takeOver(ctx); err != nil {
			return err
		}
	}
	if m.target.Facts.SchemaVersion, err = sqlstore.SchemaVersion(ctx, m.to); err != nil {
		return err
	}
	var saved any = m.report
	if m.saved != nil {
		saved = m.saved
	}
	// It is also the last moment to hear that nobody wants it any more.
	if err := m.run.Save(ctx, saved); err != nil {
		return err
	}
	return m.commit(ctx)
}

// takeOver lets the copy that was made beside the original take its place. Until the tenant is switched, a fact in the
// master database says that the original may lie beside now.
func (m *mover) takeOver(ctx context.Context) error {
	if _, err := m.Store.PutFact(ctx, sqlstore.TakingOver(m.in.To), nil, m.moment()); err != nil {
		return err
	}
	m.reached(stepAnnounced)
	made := m.to
	m.to = nil
	if err := made.Close(); err != nil {
		return err
	}
	if err := m.Places.TakeOver(ctx, m.kept.Placement); err != nil {
		return err
	}
	m.reached(stepTaken)
	to, err := m.Places.Open(ctx, m.target.Placement)
	if err == nil {
		m.to = to
	}
	return err
}

// settle makes of a kept original what it was, whatever became of a way back to it: it has its name again, and nothing lies
// beside it. It must be done before anything else is done with an original, and may be done again.
func (s *Service) settle(ctx context.Context, d tenant.Database) error {
	if d.State != tenant.Original {
		return nil
	}
	_, err := s.Store.FindFact(ctx, sqlstore.TakingOver(d.ID()))
	if fault.Is(err, fault.NotFound) {
		return s.Places.Shed(ctx, d.Placement)
	}
	if err == nil {
		err = s.Places.PutBack(ctx, d.Placement)
	}
	if err == nil {
		err = s.Store.ForgetFacts(ctx, sqlstore.TakingOver(d.ID()))
	}
	return err
}

// count compares how many rows the tables have.
func (m *mover) count(ctx context.Context, source *sqlstore.Snapshot, tables []sqlstore.Table) error {
	copied, err := m.to.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer copied.Close()
	a, err := source.Counts(ctx, tables)
	if err != nil {
		return err
	}
	b, err := copied.Counts(ctx, tables)
	if err != nil {
		return err
	}
	if !slices.Equal(a, b) {
		return mismatch()
	}
	m.report.Rows, m.report.Tables = 0, map[string]int64{}
	for i, t := range tables {
		m.report.Tables[t.Name] = a[i]
		m.report.Rows += a[i]
	}
	m.report.Hash = "" // it was of an earlier moment
	return nil
}

// commit writes into the master database where the tenant lives. That is the moment.
func (m *mover) commit(ctx context.Context) error {
	actor := m.in.Asker.actor()
	ch := event.NewChange(actor, m.moment())
	ch.Add("database.activated", string(m.in.To), map[string]any{"from": m.report.From, "job_id": m.run.Job.ID})
	ch.Add(workspace.EventMoved, string(m.tenant.ID), map[string]any{"node": m.Node, "from": m.report.From, "to": m.in.To})
	if m.back {
		ch.Add(event.Restored, string(m.tenant.ID), map[string]any{"job_id": m.run.Job.ID})
	}
	var key []byte
	if m.kept != nil {
		key = m.target.Placement.WrappedKey
	}
	switched, err := m.Store.SwitchDatabase(ctx, m.tenant.ID, m.run.Job, m.report.From, m.in.To, m.target.Facts, key, ch)
	for fault.Unknown(err) {
		// Only looking can tell. Until it is known neither place may be used.
		t, lerr := m.Store.FindTenant(ctx, m.tenant.ID)
		if lerr == nil {
			switched, err = t.Placement.Database == m.in.To, nil
			break
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
	if err == nil && switched {
		m.reached(stepSwitched)
	}
	if err == nil && !switched {
		err = fault.New(fault.Conflict, "relocate.Move", "move_overtaken", "something else moved this data meanwhile")
	}
	return err
}

// announce tells other nodes of the tenant.
func (m *mover) announce(ctx context.Context, what string) error {
	ch := event.NewChange(ident.System(m.in.Asker.RequestID), m.moment())
	ch.Add(what, string(m.tenant.ID), map[string]any{"node": m.Node, "job_id": m.run.Job.ID})
	_, err := m.Store.UpdateTenant(ctx, m.tenant.ID, func(t tenant.Tenant) (tenant.Tenant, event.Change, error) { return t, ch, nil })
	return err
}

// retire leaves the original as it is kept: fenced, without what followed its changes.
func (m *mover) retire(ctx context.Context, former *sqlstore.DB) {
	if err := sqlstore.StopCapture(ctx, former); err != nil {
		m.Log.Warn("capture not removed from the original", "code", fault.CodeOf(err), "tenant", m.tenant.ID)
	}
	if err := former.Close(); err != nil {
		m.Log.Warn("original not closed cleanly", "code", fault.CodeOf(err), "tenant", m.tenant.ID)
	}
}

// finish does what is left once the tenant lives at its new place. It may be done again.
func (m *mover) finish(ctx context.Context) (any, error) {
	if errors.Is(context.Cause(ctx), job.ErrCancelled) {
		// Too late: it has moved.
		after, cancel := settling(ctx)
		defer cancel()
		ctx = after
	}
	m.shed(ctx)
	m.whole(ctx)
	d, err := m.Store.FindDatabase(ctx, m.tenant.ID, m.report.From)
	if fault.Is(err, fault.NotFound) {
		return m.report, nil
	}
	if err != nil {
		return m.report, errors.Join(job.ErrAgain, err)
	}
	if m.run.Again() && !m.in.Discard {
		if db, oerr := m.Places.Open(ctx, d.Placement); oerr == nil {
			m.retire(sqlstore.Patient(ctx), db)
		}
	}
	if !m.in.Discard || d.State != tenant.Original {
		return m.report, nil
	}
	if err := m.Places.Destroy(ctx, d.Placement); err != nil {
		return m.report, errors.Join(job.ErrAgain, err)
	}
	err = m.Store.DeleteDatabase(ctx, m.tenant.ID, d.ID(), func(_ tenant.Tenant, now tenant.Database, _ []tenant.Database) (event.Change, error) {
		ch := event.NewChange(m.in.Asker.actor(), m.moment())
		ch.Add("database.deleted", string(d.ID()), map[string]any{"kind": KindName(now.Placement.Kind), "job_id": m.run.Job.ID})
		return ch, nil
	})
	if err != nil {
		return m.report, errors.Join(job.ErrAgain, err)
	}
	return m.report, nil
}

// shed removes the original whose place was taken. One that does not go now goes with the next thing that is done there.
func (m *mover) shed(ctx context.Context) {
	if m.kept == nil && !m.run.Again() {
		return
	}
	d, err := m.Store.FindDatabase(ctx, m.tenant.ID, m.in.To)
	if err == nil {
		err = m.Places.Shed(sqlstore.Patient(ctx), d.Placement)
	}
	if err != nil {
		m.Log.Warn("the original that was replaced is still there", "code", fault.CodeOf(err), "tenant", m.tenant.ID, "database", m.in.To)
	}
}

// whole lets nobody take the copy that the tenant lives in for half a copy. Where it cannot be reached now it keeps its
// mark, which is looked at only where the master database says that a job is filling it.
func (m *mover) whole(ctx context.Context) {
	d, err := m.Store.FindDatabase(ctx, m.tenant.ID, m.in.To)
	if err == nil && d.Placement.Kind == tenant.External && d.State == tenant.InUse {
		var db *sqlstore.DB
		if db, err = m.Places.Open(ctx, d.Placement); err == nil {
			within, cancel := context.WithTimeout(ctx, provePatience)
			defer cancel()
			err = errors.Join(sqlstore.MarkWhole(within, db), db.Close())
		}
	}
	if err != nil {
		m.Log.Warn("a copy is still marked as half a copy", "code", fault.CodeOf(err), "tenant", m.tenant.ID, "database", m.in.To)
	}
}

// undo takes back whatever a move did before its switch: the tenant is where it was, and can be written. It may be done
// again. It fails when the source was touched and cannot be reached, and must then be tried until it can; and with
// errSwitched.
func (m *mover) undo(ctx context.Context) error {
	ctx = sqlstore.Patient(ctx)
	t, err := m.Store.FindTenant(ctx, m.tenant.ID)
	if err == nil && t.Placement.Database == m.in.To {
		err = errSwitched
	}
	if err != nil {
		return err
	}
	if m.touched {
		if err := m.reopen(ctx); err != nil {
			return err
		}
	}
	d, err := m.Store.FindDatabase(ctx, t.ID, m.in.To)
	if err != nil {
		return ignoreMissing(err)
	}
	if d.State == tenant.Original && m.begun {
		if err := m.settle(ctx, d); err != nil {
			// As below. Whatever is done with the original next settles it first.
			m.Log.Warn("half a copy was left beside an original", "code", fault.CodeOf(err), "tenant", t.ID, "database", d.ID())
		}
	}
	if d.State != tenant.Filling {
		return nil
	}
	if err := notOurs(m.Places.Undo(ctx, d.Placement)); err != nil {
		// The target may be away for good. It stays as it is noted: the next try replaces what is there.
		m.Log.Warn("half a copy was left behind", "code", fault.CodeOf(err), "tenant", t.ID, "database", d.ID())
		return nil
	}
	rest := tenant.Ready
	d.Facts = tenant.Facts{}
	if d.Placement.Kind != tenant.External {
		rest, d.Placement.WrappedKey, d.Placement.Host = tenant.Empty, nil, ""
	}
	_, err = m.note(ctx, d, rest)
	return err
}

// notOurs is what came of undoing half a copy that may never have been made: what has its name then is somebody else's, and
// there is nothing to undo (decision 0085).
func notOurs(err error) error {
	if fault.CodeOf(err) == "schema_exists" {
		return nil
	}
	return err
}

// errSwitched says that there is nothing to take back: the tenant lives at its new place, though whoever switched did not
// hear that it does.
var errSwitched = errors.New("the switch was made")

// reopen lets the tenant be written where it lives, after a switch that did not come to its end. It may be done again.
func (m *mover) reopen(ctx context.Context) error {
	// Through the pool: a connection of its own would have to wait for a file's writers without a place in their queue.
	lease, err := m.Pool.Acquire(ctx, ident.System(""), m.tenant.ID)
	if err != nil {
		return err
	}
	defer lease.Release()
	db := lease.Database().Direct()
	if err := errors.Join(sqlstore.Unfence(ctx, db), sqlstore.StopCapture(ctx, db)); err != nil {
		return err
	}
	if m.Sole {
		return nil
	}
	return m.announce(ctx, workspace.EventMoved)
}

func ignoreMissing(err error) error {
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// KindName is a kind of place as people read it.
func KindName(k tenant.Kind) string {
	switch k {
	case tenant.SQLite:
		return "hosted_sqlite"
	case tenant.Postgres:
		return "hosted_postgres"
	}
	return "external_postgres"
}
