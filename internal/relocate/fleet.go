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

// FleetInput says how to bring the schemas of many tenants up to date.
type FleetInput struct {
	Plan        bool             `json:"plan,omitempty"`    // only look
	Tenants     []ident.TenantID `json:"tenants,omitempty"` // only these; empty: all
	Canary      int              `json:"canary,omitempty"`  // so many go first, one after the other; the first failure ends it
	Parallel    int              `json:"parallel,omitempty"`
	MaxFailures float64          `json:"max_failures"`         // more than this share of failures ends it; 1 is any
	MaxFailed   int64            `json:"max_failed,omitempty"` // and so do more failures than this; 0 is any
	Target      int64            `json:"target,omitempty"`     // the newest version that whoever asks knows; 0: whatever the process that does it knows
}

// FleetReport is what bringing many schemas up to date did.
type FleetReport struct {
	Target   int64          `json:"target"` // the newest version
	Plan     bool           `json:"plan,omitempty"`
	Tenants  int64          `json:"tenants"`    // that were asked about
	UpToDate int64          `json:"up_to_date"` // and had nothing to do
	Migrated int64          `json:"migrated"`
	Failed   int64          `json:"failed"`
	Left     int64          `json:"left"`             // older, and not touched: a plan, the end came before, a job works on them
	Paused   string         `json:"paused,omitempty"` // why it ended before all were touched
	Steps    []string       `json:"steps,omitempty"`  // that are, or were, to be taken
	Versions []VersionCount `json:"versions"`         // as they now stand
	Failures []FleetFailure `json:"failures,omitempty"`
}

// VersionCount is how many tenants have a version; 0 is unknown.
type VersionCount struct {
	Version int64 `json:"version"`
	Tenants int64 `json:"tenants"`
}

// FleetFailure is a tenant that is not as it should be.
type FleetFailure struct {
	Tenant  ident.TenantID `json:"tenant"`
	Version int64          `json:"version"`
	Step    string         `json:"step,omitempty"`
	Code    string         `json:"code"`
	Detail  string         `json:"detail"`
	Do      string         `json:"do"` // what helps
}

const (
	fleetParallel = 4
	// sampleSize is how many tenants must be done before a share of failures means what it says: before that, as many may
	// fail as may of so many.
	sampleSize = 100
	// mostFailures is how many are named.
	mostFailures = 1000
	fleetPage    = 500
)

// fleet is the job.
func (s *Service) fleet(ctx context.Context, run *job.Run) (any, error) {
	const op = "relocate.MigrateFleet"
	var in FleetInput
	if err := json.Unmarshal(run.Job.Input, &in); err != nil {
		return nil, fault.Wrap(op, err)
	}
	if newest := s.Places.Newest(); in.Target != 0 && in.Target != newest {
		return nil, fault.New(fault.Conflict, op, "version_differs", fmt.Sprintf(
			"the server that is at work knows version %d of the schema, and who asks knows %d: start the server with the same program", newest, in.Target))
	}
	report, err := s.MigrateFleet(ctx, in, run.Progress)
	return ended(ctx, report, err)
}

// ended is how a job about many tenants returns: what was done before it was cancelled is done.
func ended(ctx context.Context, report any, err error) (any, error) {
	if err != nil && errors.Is(context.Cause(ctx), job.ErrCancelled) {
		return report, job.ErrCancelled
	}
	return report, err
}

// StartFleet starts the job that brings schemas up to date. While one is queued or at work, it is Conflict, code
// "fleet_busy", with that job.
func (s *Service) StartFleet(ctx context.Context, actor ident.Actor, in FleetInput) (job.Job, error) {
	return s.startFleet(ctx, actor, KindFleet, in)
}

// StartBack starts the job that takes tenants back, under the same rule.
func (s *Service) StartBack(ctx context.Context, actor ident.Actor, in BackInput) (job.Job, error) {
	return s.startFleet(ctx, actor, KindBack, in)
}

func (s *Service) startFleet(ctx context.Context, actor ident.Actor, kind string, in any) (job.Job, error) {
	const op = "relocate.StartFleet"
	j, err := s.newJob(kind, tenant.Tenant{}, in)
	if err != nil {
		return job.Job{}, err
	}
	ch := event.NewChange(actor, j.CreatedAt)
	ch.Add(kind+"_started", string(j.ID), map[string]any{})
	other, err := s.Store.InsertOnlyJob(ctx, j, []string{KindFleet, KindBack}, ch)
	if err != nil {
		return job.Job{}, fault.Wrap(op, err)
	}
	if other.ID != "" {
		return other, fault.New(fault.Conflict, op, "fleet_busy", "the schemas of all tenants are being changed already")
	}
	s.wake()
	return j, nil
}

// MigrateFleet brings the schemas of tenants up to date, one transaction for each step of each, whatever else goes on.
// Each tenant notes for itself how far it is, so whoever ends it, however, can call it again: it goes on. The report is
// right also when there is an error, which is then about all of them.
func (s *Service) MigrateFleet(ctx context.Context, in FleetInput, told Progress) (*FleetReport, error) {
	const op = "relocate.MigrateFleet"
	if in.Parallel <= 0 {
		in.Parallel = fleetParallel
	}
	if told == nil {
		told = func(int64, int64, string) {}
	}
	f := &fleetRun{Service: s, FleetInput: in, told: told, versions: map[int64]int64{},
		report: &FleetReport{Target: s.Places.Newest(), Plan: in.Plan}}
	err := f.choose(ctx)
	if err == nil {
		err = f.all(ctx)
	}
	return f.end(), fault.Wrap(op, err)
}

// fleetRun is one run.
type fleetRun struct {
	*Service
	FleetInput
	told  Progress
	queue []ident.TenantID // what is to be looked at
	known int              // so many of them, at the end, failed before

	mu       sync.Mutex
	report   *FleetReport
	versions map[int64]int64
	done     int64
	fresh    int64 // failures that nobody knew of
	busy     []busyTenant
}

// busyTenant is one that a job worked on when its turn came; known says that it failed before.
type busyTenant struct {
	id    ident.TenantID
	known bool
}

// choose finds who is to be looked at: whoever is not known to be well, those last that are known to be ill.
func (f *fleetRun) choose(ctx context.Context) error {
	var ill []ident.TenantID
	err := f.eachOf(ctx, f.Tenants, func(t tenant.Tenant) error {
		f.report.Tenants++
		switch {
		case f.Plan:
			f.queue = append(f.queue, t.ID)
		case t.Schema.Version == f.report.Target && t.Schema.Problem == "":
			f.report.UpToDate++
			f.versions[t.Schema.Version]++
		case t.Schema.Problem != "" && t.Schema.Problem != tenant.SchemaHeld:
			ill = append(ill, t.ID)
		default:
			f.queue = append(f.queue, t.ID)
		}
		return nil
	})
	f.queue, f.known = append(f.queue, ill...), len(ill)
	return err
}

// eachOf goes through these tenants, or through all.
func (s *Service) eachOf(ctx context.Context, ids []ident.TenantID, do func(tenant.Tenant) error) error {
	for _, id := range ids {
		t, err := s.Store.FindTenant(ctx, id)
		if fault.Is(err, fault.NotFound) {
			return fault.New(fault.NotFound, "relocate.Fleet", "tenant_unknown", "there is no tenant "+string(id))
		}
		if err == nil {
			err = do(t)
		}
		if err != nil {
			return err
		}
	}
	if len(ids) > 0 {
		return nil
	}
	for after := ident.TenantID(""); ; {
		page, err := s.Store.ListTenants(ctx, after, fleetPage)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, t := range page {
			if err := do(t); err != nil {
				return err
			}
		}
		after = page[len(page)-1].ID
	}
}

// all goes through the queue.
func (f *fleetRun) all(ctx context.Context) error {
	total := int64(len(f.queue))
	f.told(0, total, "tenants")
	canary := min(f.Canary, len(f.queue))
	for i, id := range f.queue[:canary] {
		if err := f.one(ctx, id, i >= len(f.queue)-f.known); err != nil {
			return err
		}
		f.told(f.done, total, "tenants")
		if f.report.Failed > 0 {
			f.report.Paused = fmt.Sprintf("one of the first %d tenants failed", canary)
			return nil
		}
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(f.Parallel)
	for i, id := range f.queue[canary:] {
		if gctx.Err() != nil || f.paused(total) {
			break
		}
		group.Go(func() error {
			err := f.one(gctx, id, canary+i >= len(f.queue)-f.known)
			f.mu.Lock()
			done := f.done
			f.mu.Unlock()
			f.told(done, total, "tenants")
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	// Whoever was busy may have time now, unless too many have failed: then they are left like all others.
	busy := f.busy
	f.busy = nil
	for _, b := range busy {
		if f.paused(total) {
			break
		}
		f.done--
		if err := f.one(ctx, b.id, b.known); err != nil {
			return err
		}
	}
	for _, b := range f.busy {
		f.fail(FleetFailure{Tenant: b.id, Code: "tenant_busy", Detail: "a job works on the whole of it"})
	}
	return nil
}

// paused decides whether too much has failed to go on.
func (f *fleetRun) paused(total int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.report.Paused != "" {
		return true
	}
	switch {
	case f.Plan || f.fresh == 0:
		return false
	case f.MaxFailed > 0 && f.fresh > f.MaxFailed:
		f.report.Paused = fmt.Sprintf("%d tenants failed, more than %d", f.fresh, f.MaxFailed)
	case f.MaxFailures < 1 && float64(f.fresh) > f.MaxFailures*float64(max(f.done, min(sampleSize, total))):
		f.report.Paused = fmt.Sprintf("%d of %d tenants failed, more than %g %%", f.fresh, f.done, 100*f.MaxFailures)
	}
	return f.report.Paused != ""
}

// one brings one tenant up to date, or looks at it. Its own failure is noted; the error is about everybody.
func (f *fleetRun) one(ctx context.Context, id ident.TenantID, known bool) error {
	t, err := f.Store.FindTenant(ctx, id)
	if fault.Is(err, fault.NotFound) {
		f.count(func() {}) // erased meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	if t.Job != "" && !f.Plan {
		f.count(func() { f.busy = append(f.busy, busyTenant{id, known}) })
		return nil
	}
	var m workspace.Migration
	var at sqlstore.Standing
	if f.Plan {
		at, m.Seen, err = f.Places.Look(ctx, t)
	} else {
		m, err = f.Places.Migrate(ctx, t)
	}
	if err != nil && ctx.Err() != nil {
		return err // it was interrupted, and is as it was
	}
	if !f.Plan {
		if nerr := f.noteSeen(ctx, t, m.Seen); nerr != nil {
			return nerr
		}
	}
	f.count(func() {
		f.versions[m.Seen.Version]++
		f.steps(at.Pending)
		switch {
		case err != nil:
			f.report.Failed++
			if !known && !sqlstore.Unreachable(err) {
				f.fresh++
			}
		case f.Plan && len(at.Pending) > 0:
			f.report.Left++
		case f.Plan || m.From == m.Seen.Version:
			f.report.UpToDate++
		default:
			f.report.Migrated++
		}
	})
	switch {
	case err != nil:
		f.Log.Warn("tenant not migrated", "code", fault.CodeOf(err), "tenant", id, "step", m.Failed)
		f.fail(FleetFailure{Tenant: id, Version: m.Seen.Version, Step: m.Failed, Code: fault.CodeOf(err), Detail: detailOf(err)})
	case m.Seen.Problem != "": // a plan, of one that failed before
		f.fail(FleetFailure{Tenant: id, Version: m.Seen.Version, Code: m.Seen.Problem, Detail: "as of " + t.Schema.At.UTC().Format(time.RFC3339)})
	}
	return nil
}

func (f *fleetRun) count(how func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done++
	how()
}

func (f *fleetRun) steps(pending []string) {
	for _, name := range pending {
		if !slices.Contains(f.report.Steps, name) {
			f.report.Steps = append(f.report.Steps, name)
		}
	}
}

func (f *fleetRun) fail(what FleetFailure) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.report.Failures) < mostFailures {
		what.Do = Remedy(what.Code)
		f.report.Failures = append(f.report.Failures, what)
	}
}

// end completes the report.
func (f *fleetRun) end() *FleetReport {
	r := f.report
	if !f.Plan {
		r.Left = r.Tenants - r.UpToDate - r.Migrated - r.Failed
	}
	for v, n := range f.versions {
		r.Versions = append(r.Versions, VersionCount{v, n})
	}
	slices.SortFunc(r.Versions, func(a, b VersionCount) int { return int(a.Version - b.Version) })
	slices.Sort(r.Steps)
	slices.SortFunc(r.Failures, func(a, b FleetFailure) int { return strings.Compare(string(a.Tenant), string(b.Tenant)) })
	return r
}

// noteSeen keeps what was seen of a schema. Where a problem goes, or comes, servers that have the tenant open must hear.
func (s *Service) noteSeen(ctx context.Context, t tenant.Tenant, seen tenant.Schema) error {
	if seen.Version == t.Schema.Version && seen.Problem == t.Schema.Problem {
		return nil
	}
	if seen.Problem == t.Schema.Problem || t.Schema.Problem == "" && seen.Problem != tenant.SchemaHeld {
		seen.At = s.moment()
		return s.Store.NoteSchema(ctx, t.ID, seen)
	}
	return s.changeSchema(ctx, t, seen, nil)
}

// changeSchema notes what is now true of a schema, if agree, which may be nil, agrees to the tenant as it is, and lets
// all servers hear of it.
func (s *Service) changeSchema(ctx context.Context, t tenant.Tenant, seen tenant.Schema, agree func(tenant.Tenant) error) error {
	seen.At = s.moment()
	ch := event.NewChange(ident.System(""), seen.At)
	ch.Add(workspace.EventUpdated, string(t.ID), map[string]any{"schema_version": seen.Version, "schema_problem": seen.Problem})
	if err := s.Store.ChangeSchema(ctx, t.ID, seen, ch, agree); err != nil {
		return err
	}
	if s.Pool != nil {
		if err := s.Pool.Refresh(ctx, t.ID); err != nil {
			s.Log.Warn("tenant not looked up again", "code", fault.CodeOf(err), "tenant", t.ID)
		}
	}
	return nil
}

// detailOf is what may be shown of an error.
func detailOf(err error) string {
	if f, ok := errors.AsType[*fault.Error](err); ok && f.Message != "" {
		return f.Message
	}
	return "something went wrong on the server"
}

// Remedy is what an operator can do about a tenant whose schema has the problem of that code.
func Remedy(code string) string {
	switch code {
	case "migration_failed":
		return "it can be read, and not be written: mend what is in the way, or install a version whose step is mended, and migrate again"
	case "snapshot_failed", "storage_full", "storage_failed":
		return "it can be read, and not be written: see that STORAGE_PATH has space and can be written, and migrate again"
	case tenant.SchemaHeld:
		return "it was taken back: migrate it again, or install the version before"
	case "schema_newer":
		return "it is not served: run the newer version that wrote it"
	case "schema_damaged", "tenant_unreadable", "tenant_missing":
		return "it is not served: put it back from a backup (memoryd restore --tenant)"
	case "tenant_busy":
		return "migrate again when its job has ended"
	case "tenant_host_unknown":
		return "its server is missing from TENANT_DATABASE_URLS: list it, and migrate again"
	case "seal_unknown_key", "seal_broken":
		return "its key does not open: put the MASTER_KEY that it was made under into MASTER_KEY_PREVIOUS"
	}
	return "its database does not answer as it should: migrate again when it does; otherwise that happens when it is next used"
}
