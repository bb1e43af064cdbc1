package relocate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
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

// BackInput says who goes back to what was before the last migration.
type BackInput struct {
	Tenants  []ident.TenantID `json:"tenants,omitempty"` // only these; empty: all that can
	Parallel int              `json:"parallel,omitempty"`
	Lose     bool             `json:"lose,omitempty"` // what was written since may be lost
	Plan     bool             `json:"plan,omitempty"` // only look
}

// retoldAfter is when a tenant that goes back is told again of its databases: later than it has gone.
const retoldAfter = time.Minute

// BackReport is what going back did.
type BackReport struct {
	Plan     bool           `json:"plan,omitempty"`
	Tenants  int64          `json:"tenants"` // that have something to go back to
	Back     int64          `json:"back"`    // and are what they were
	Without  int64          `json:"without"` // that have nothing to go back to
	Newer    int64          `json:"newer"`   // changes that were made since, by those
	Writers  int64          `json:"writers"` // tenants that made them
	Failed   int64          `json:"failed"`  // that stayed as they are
	Details  []BackDetail   `json:"details"` // of those that went back, or would
	Failures []FleetFailure `json:"failures,omitempty"`
}

// BackDetail is one tenant that goes back.
type BackDetail struct {
	Tenant ident.TenantID `json:"tenant"`
	From   int64          `json:"from"` // versions of the schema
	To     int64          `json:"to"`
	At     time.Time      `json:"at"`    // what it becomes is from then
	Newer  int64          `json:"newer"` // changes since, which are lost
}

// back is the job.
func (s *Service) back(ctx context.Context, run *job.Run) (any, error) {
	const op = "relocate.GoBack"
	var in BackInput
	if err := json.Unmarshal(run.Job.Input, &in); err != nil {
		return nil, fault.Wrap(op, err)
	}
	if run.Again() && errors.Is(context.Cause(ctx), job.ErrCancelled) {
		if err := s.reopenHeld(context.WithoutCancel(ctx), in); err != nil {
			return nil, errors.Join(job.ErrAgain, err)
		}
	}
	report, err := s.GoBack(ctx, in, run.Progress)
	return ended(ctx, report, err)
}

// reopenHeld opens those again that a killed process closed to writers and did not take back.
func (s *Service) reopenHeld(ctx context.Context, in BackInput) error {
	if s.Snapshots == nil {
		return nil
	}
	in.Parallel = fleetParallel
	b := &backRun{Service: s, BackInput: in, report: &BackReport{}}
	if err := b.look(ctx); err != nil {
		return err
	}
	for _, r := range b.list {
		r.held = r.left
	}
	return b.letGo(ctx)
}

// GoBack makes tenants' databases what they were before their last migration: schema and rows. What was written since is
// lost; where there is such, it must be agreed to, or nothing is done (code "newer_writes", and the report says how
// much). From then on they are held: readable with this version, not to be written, and not migrated again until
// [Service.MigrateFleet] is called; the version before takes them as its own.
//
// Each tenant goes back in one transaction or not at all. Whoever ends it can call it again.
func (s *Service) GoBack(ctx context.Context, in BackInput, told Progress) (*BackReport, error) {
	const op = "relocate.GoBack"
	if s.Snapshots == nil {
		return &BackReport{}, fault.New(fault.Unavailable, op, "snapshot_missing", "no snapshots are taken here")
	}
	if in.Parallel <= 0 {
		in.Parallel = fleetParallel
	}
	if told == nil {
		told = func(int64, int64, string) {}
	}
	b := &backRun{Service: s, BackInput: in, told: told, report: &BackReport{Plan: in.Plan}}
	err := b.run(ctx)
	r := b.report
	for _, one := range b.list {
		if !one.stayed {
			r.Details = append(r.Details, one.detail)
		}
	}
	slices.SortFunc(r.Details, func(a, b BackDetail) int { return strings.Compare(string(a.Tenant), string(b.Tenant)) })
	slices.SortFunc(r.Failures, func(a, b FleetFailure) int { return strings.Compare(string(a.Tenant), string(b.Tenant)) })
	return r, fault.Wrap(op, err)
}

// backRun is one run.
type backRun struct {
	*Service
	BackInput
	told Progress

	mu     sync.Mutex
	report *BackReport
	list   []*returner
	done   int64
}

// returner is a tenant that goes back.
type returner struct {
	tenant tenant.Tenant
	snap   *StepSnapshot
	detail BackDetail
	held   bool // nobody writes
	stayed bool // it could not go
	left   bool // a killed process had closed it already
}

func (b *backRun) run(ctx context.Context) error {
	if err := b.look(ctx); err != nil {
		return err
	}
	if b.Plan {
		return nil
	}
	if b.report.Newer > 0 && !b.Lose {
		return fault.New(fault.Conflict, "relocate.GoBack", "newer_writes", fmt.Sprintf(
			"%d changes that %d accounts made since would be lost, and nothing was done: say that they may be", b.report.Newer, b.report.Writers))
	}
	if len(b.list) == 0 {
		return nil
	}
	// First nobody writes any more, then everybody has heard of it, then they go.
	for _, r := range b.list {
		err := b.hold(ctx, r)
		if fault.Is(err, fault.Conflict) || fault.Is(err, fault.NotFound) {
			b.stays(r, err)
		} else if err != nil {
			return errors.Join(err, b.letGo(ctx))
		}
	}
	if !b.Sole {
		select {
		case <-time.After(workspace.SwitchNotice):
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), b.letGo(ctx))
		}
	}
	total := int64(len(b.list))
	b.told(0, total, "tenants")
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(b.Parallel)
	for _, r := range b.list {
		group.Go(func() error {
			var err error
			if r.held {
				err = b.one(gctx, r)
			}
			b.mu.Lock()
			b.done++
			done := b.done
			b.mu.Unlock()
			b.told(done, total, "tenants")
			return err
		})
	}
	return group.Wait()
}

// look finds who can go back, and what that would cost.
func (b *backRun) look(ctx context.Context) error {
	var ids []ident.TenantID
	if err := b.eachOf(ctx, b.Tenants, func(t tenant.Tenant) error {
		ids = append(ids, t.ID)
		return nil
	}); err != nil {
		return err
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(b.Parallel)
	for _, id := range ids {
		group.Go(func() error {
			r, err := b.lookAt(gctx, id)
			b.mu.Lock()
			defer b.mu.Unlock()
			switch {
			case gctx.Err() != nil:
				return context.Cause(gctx)
			case fault.CodeOf(err) == "snapshot_missing" && len(b.Tenants) == 0, fault.Is(err, fault.NotFound) && fault.CodeOf(err) != "snapshot_missing":
				b.report.Without++
			case err != nil:
				b.fail(id, err)
			case r == nil:
				b.report.Without++
			default:
				b.list = append(b.list, r)
				b.report.Tenants++
				if b.report.Newer += r.detail.Newer; r.detail.Newer > 0 {
					b.report.Writers++
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// fail notes a tenant that cannot go back. It is called under the lock.
func (b *backRun) fail(id ident.TenantID, err error) {
	b.report.Failed++
	b.report.Failures = append(b.report.Failures, FleetFailure{Tenant: id, Code: fault.CodeOf(err), Detail: detailOf(err), Do: backRemedy(fault.CodeOf(err))})
}

func backRemedy(code string) string {
	switch code {
	case "snapshot_missing", "backup_damaged", "backup_key_missing":
		return "it is as it was: put it back from a backup (memoryd restore --tenant)"
	case "newer_writes":
		return "it is as it was: it was written meanwhile; go back again"
	case "tenant_busy":
		return "it is as it was: go back again when its job has ended"
	}
	return "it is as it was: go back again when its database answers"
}

// lookAt looks at one tenant; nil when it is at the version of its snapshot already.
func (b *backRun) lookAt(ctx context.Context, id ident.TenantID) (*returner, error) {
	t, err := b.Store.FindTenant(ctx, id)
	if err != nil {
		return nil, err
	}
	snap, err := b.Snapshots.Find(ctx, id)
	if err != nil {
		return nil, err
	}
	version, newer, err := b.now(ctx, t, snap.Mark)
	if err != nil || version <= snap.Schema() {
		return nil, err
	}
	if newer.Apart {
		return nil, apart()
	}
	if err := b.free(ctx, t, snap); err != nil {
		return nil, err
	}
	// Held although it has not gone back: nothing was wrong with it before.
	left := t.Schema.Problem == tenant.SchemaHeld
	if left {
		t.Schema.Problem = ""
	}
	return &returner{tenant: t, left: left, snap: snap, detail: BackDetail{Tenant: id, From: version, To: snap.Schema(), At: snap.At(),
		Newer: newer.Changes}}, nil
}

// apart is why a tenant is not made what a snapshot holds that is of another log.
func apart() error {
	return fault.New(fault.NotFound, "relocate.GoBack", "snapshot_missing",
		"the data is not what it was when the snapshot was taken, with changes since: it was put back from a backup, or erased")
}

// free reports why a tenant must not be made what a snapshot holds: a job works on the whole of it, or its owner had all
// of that erased since. A machine whose snapshot is older than that may be another than the one that erased.
func (b *backRun) free(ctx context.Context, t tenant.Tenant, snap *StepSnapshot) error {
	if t.Job != "" {
		return fault.New(fault.Conflict, "relocate.GoBack", "tenant_busy", "a job works on the whole of it")
	}
	emptied, err := b.emptiedAt(ctx, t.ID)
	if err == nil && !emptied.IsZero() && snap.At().Before(emptied.Add(clockSkew)) {
		err = fault.New(fault.NotFound, "relocate.GoBack", "snapshot_missing", "all data was erased since the snapshot was taken")
	}
	return err
}

// same reports whether a tenant is where it was when it was looked at, and nobody works on the whole of it.
func (r *returner) same(now tenant.Tenant) error {
	if now.Job != "" || now.Placement.Database != r.tenant.Placement.Database {
		return fault.New(fault.Conflict, "relocate.GoBack", "tenant_busy", "a job began to work on the whole of it meanwhile")
	}
	return nil
}

// now is how a tenant's database stands, and what it holds after a mark.
func (b *backRun) now(ctx context.Context, t tenant.Tenant, after sqlstore.LogMark) (version int64, newer sqlstore.Newer, err error) {
	db, err := b.Places.Open(ctx, t.Placement)
	if err != nil {
		return 0, newer, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if version, err = sqlstore.SchemaVersion(ctx, db); err != nil || version == 0 {
		return version, newer, err
	}
	view, err := db.Snapshot(ctx)
	if err != nil {
		return 0, newer, err
	}
	defer view.Close()
	newer, err = view.Since(ctx, after)
	return version, newer, err
}

// hold closes a tenant to everybody who writes, on every server, if it is as it was when it was looked at: a move that
// began since is not stopped by it. One that begins later finds it closed.
func (b *backRun) hold(ctx context.Context, r *returner) error {
	err := b.changeSchema(ctx, r.tenant, tenant.Schema{Version: r.detail.From, Problem: tenant.SchemaHeld}, r.same)
	r.held = err == nil
	return err
}

// letGo opens those again that did not go back.
func (b *backRun) letGo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
	defer cancel()
	var errs []error
	for _, r := range b.list {
		if r.held {
			errs = append(errs, b.release(ctx, r))
		}
	}
	return errors.Join(errs...)
}

func (b *backRun) release(ctx context.Context, r *returner) error {
	held := r.tenant
	held.Schema = tenant.Schema{Version: r.detail.From, Problem: tenant.SchemaHeld}
	return b.noteSeen(ctx, held, tenant.Schema{Version: r.detail.From, Problem: r.tenant.Schema.Problem})
}

// one takes one tenant back. Its own failure is noted; the error is about everybody.
func (b *backRun) one(ctx context.Context, r *returner) error {
	err := b.take(ctx, r)
	if err == nil {
		held := r.tenant
		held.Schema = tenant.Schema{Version: r.detail.From, Problem: tenant.SchemaHeld}
		err = b.noteSeen(context.WithoutCancel(ctx), held, tenant.Schema{Version: r.detail.To, Problem: tenant.SchemaHeld})
		if err == nil {
			b.mu.Lock()
			b.report.Back++
			b.mu.Unlock()
		}
		return err
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
	defer cancel()
	if rerr := b.release(undo, r); rerr != nil || ctx.Err() != nil {
		return errors.Join(err, rerr)
	}
	b.stays(r, err)
	return nil
}

// stays notes a tenant that turned out not to go back.
func (b *backRun) stays(r *returner, err error) {
	b.Log.Warn("tenant not taken back", "code", fault.CodeOf(err), "tenant", r.tenant.ID)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail(r.tenant.ID, err)
	r.stayed = true
}

func (b *backRun) take(ctx context.Context, r *returner) error {
	if b.Pool != nil {
		b.Pool.Expel(ctx, r.tenant.ID) // whoever began to write before is done then
	}
	// By now every server knows that it is held, and begins nothing more with it.
	t, err := b.Store.FindTenant(ctx, r.tenant.ID)
	if err == nil {
		err = r.same(t)
	}
	if err == nil {
		err = b.free(ctx, t, r.snap)
	}
	if err != nil {
		return err
	}
	past, err := b.Snapshots.past(ctx, r.snap)
	if err != nil {
		return err
	}
	past.Agree = func(lost sqlstore.Newer) error {
		if lost.Apart {
			return apart()
		}
		if lost.Changes > r.detail.Newer && !b.Lose {
			return fault.New(fault.Conflict, "relocate.GoBack", "newer_writes", "it was written since it was looked at")
		}
		// What the master says of its databases is told anew, once it may be changed again.
		if err := b.Store.TellAgain(ctx, t.ID, lost.Told, b.Now().Add(retoldAfter)); err != nil {
			return err
		}
		if lost.Changes > 0 || len(lost.Told) > 0 {
			ch := event.NewChange(ident.System(""), b.moment())
			ch.Add(event.Restored, string(t.ID), map[string]any{"schema_version": r.snap.Schema()})
			if err := b.Store.TellRestored(ctx, t.ID, ch, b.Now().Add(retoldAfter)); err != nil {
				return err
			}
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.report.Newer += lost.Changes - r.detail.Newer
		r.detail.Newer = lost.Changes
		return nil
	}
	// What is kept in two databases is looked at again, too: shortcuts, and where conversations of shared projects are.
	if err := b.Store.MarkAccount(ctx, t.Account, b.Now().Add(retoldAfter)); err != nil {
		return err
	}
	return b.Places.Rebuild(ctx, t, past)
}
