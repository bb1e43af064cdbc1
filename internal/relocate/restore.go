package relocate

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/workspace"
)

// RestoreOptions says what to restore, and where to.
type RestoreOptions struct {
	// At is the moment to go back to: nothing that is restored was written later. Zero is the newest there is.
	At time.Time
	// To is the kind of place for restored databases; empty is the kind that each had.
	To       tenant.Kind
	Parallel int // tenants at the same time; 4 when 0
	Progress Progress
	// Emptied are the jobs by which owners have all data erased, with the account or not, as an installation at hand
	// remembers them ([Emptyings]): no copy from before comes back, also where the repository has not heard of it yet; and
	// none at all while such a job is yet to be done, which nobody can take back.
	Emptied []job.Job
	// Notes is where RestoreAll notes each database before it makes it, for [Abandon]: the installation that is to be replaced,
	// which takes the notes with it at the very moment in which the restored one is in force. nil: nothing is noted.
	Notes *sqlstore.MasterStore
}

// forbids reports whether a copy is from before its owner had all data erased, or is to be erased itself.
func (o RestoreOptions) forbids(d *Database) bool {
	return o.waits(ident.TenantID(d.Owner)) || slices.ContainsFunc(o.Emptied, func(j job.Job) bool {
		return string(j.Tenant) == d.Owner && j.State == job.Completed && madeBefore(d.Key, *j.FinishedAt)
	})
}

// waits reports whether all of a tenant's data is yet to be erased.
func (o RestoreOptions) waits(id ident.TenantID) bool {
	return slices.ContainsFunc(o.Emptied, func(j job.Job) bool { return j.Tenant == id && !j.State.Final() })
}

// Outcomes of restoring a tenant.
const (
	OutcomeRestored = "restored"
	OutcomeLeft     = "left"    // its data is in its owner's own database, which was not touched
	OutcomeEmptied  = "emptied" // its owner had all data erased since: the database is empty
	OutcomeFailed   = "failed"
)

// RestoreReport is what a restore did.
type RestoreReport struct {
	Snapshot string
	Tenants  []RestoredTenant // by their ids
	Erased   int              // tenants that are in the snapshot and do not come back
}

// Failed counts the tenants that have no data.
func (r *RestoreReport) Failed() (n int) {
	for _, t := range r.Tenants {
		if t.Outcome == OutcomeFailed {
			n++
		}
	}
	return n
}

// RestoredTenant is what became of one tenant.
type RestoredTenant struct {
	Tenant  ident.TenantID
	Outcome string
	Kind    tenant.Kind
	At      time.Time // nothing in it was written later
	Rows    int64
	Digest  []byte // of the content, as it was read from the restored database
	Err     error
}

// choose finds the newest snapshot of which nothing was written after a moment; with an owner, the newest that has such
// a copy of that database. Code "backup_missing": there is none.
func (r *Repository) choose(ctx context.Context, at time.Time, owner string) (*Manifest, *Database, error) {
	list, err := r.Snapshots(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, info := range slices.Backward(list) {
		if !at.IsZero() && info.Started.After(at) {
			continue
		}
		m, err := r.Manifest(ctx, info.ID)
		if err != nil {
			return nil, nil, err
		}
		if owner == "" {
			if at.IsZero() || !m.Ended.After(at) {
				return m, m.find(ownerMaster), nil
			}
			continue
		}
		if d := m.find(owner); d != nil && d.Stored() && (at.IsZero() || !d.At.After(at)) {
			return m, d, nil
		}
	}
	return nil, nil, fault.New(fault.NotFound, "relocate.Restore", "backup_missing", "there is no backup of that, or none that is old enough")
}

// load fills an empty database of the same version of the schema with a copy, and proves that it holds the same.
func (r *Repository) load(ctx context.Context, m *Manifest, d *Database, db *sqlstore.DB, step func()) error {
	err := r.read(ctx, m, d, func(t sqlstore.Table, rows []sqlstore.Row) error { return sqlstore.Put(ctx, db, t, rows) }, step)
	if err != nil {
		return err
	}
	if err := sqlstore.Advance(ctx, db, d.Sequences); err != nil {
		return err
	}
	s, err := db.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	got, err := s.Digest(ctx)
	if err != nil {
		return err
	}
	if !bytes.Equal(got.Sum[:], d.Digest) {
		return fault.New(fault.Internal, "relocate.Restore", "restore_mismatch",
			"the restored database does not hold what was backed up: it is not used")
	}
	return nil
}

// fresh makes a database at a place, fills it with a copy (nil: with nothing), and brings its schema up to date. What it
// made is gone again when it fails.
func (r *Repository) fresh(ctx context.Context, places *workspace.Placements, at tenant.Placement, m *Manifest, d *Database, step func()) (
	_ tenant.Placement, facts tenant.Facts, err error,
) {
	ctx = sqlstore.Patient(ctx)
	if at, err = places.Make(ctx, at); err != nil {
		return at, facts, err
	}
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
			defer cancel()
			err = errors.Join(err, places.Destroy(undo, at))
		}
	}()
	db, err := places.Open(ctx, at)
	if err != nil {
		return at, facts, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if facts.SchemaVersion, err = sqlstore.SchemaVersion(ctx, db); err != nil {
		return at, facts, err
	}
	if d != nil {
		if d.Schema != facts.SchemaVersion {
			if err = sqlstore.Remake(ctx, db, d.Schema); err != nil {
				return at, facts, err
			}
		}
		if err = r.load(ctx, m, d, db, step); err != nil {
			return at, facts, err
		}
		if _, err = sqlstore.Migrate(ctx, db, sqlstore.Tenant); err != nil {
			return at, facts, err
		}
	}
	if at.Kind == tenant.External {
		if err = sqlstore.MarkWhole(ctx, db); err != nil {
			return at, facts, err
		}
	}
	facts.SizeBytes = sizeNow(ctx, db)
	return at, facts, nil
}

// restoringFact begins the names of the facts by which an installation knows the databases that a restore made, which is yet to
// replace it.
const restoringFact = "restoring/"

// RestoreAll restores a whole snapshot into an installation that nobody uses yet: in.Master is an empty database,
// without tables, that will be put into the place of the master database by whoever calls. Tenants get databases of
// their own under new names; nothing that exists is touched.
//
// Whoever is in the ledger of the repository, in erased (the ledger of the installation that was there) or in the
// snapshot's own does not come back; who had all data erased since comes back empty. Who had only asked for either, here or
// in the snapshot, comes back empty, too, and the job goes on: it empties what was not restored, a database of the user's
// own, and writes the receipt. An account that is to be erased comes back closed. Every session has ended. A tenant that
// cannot be restored is reported, and is unavailable by itself; the error is about all of them.
func (r *Repository) RestoreAll(ctx context.Context, in Installation, erased []tenant.Erasure, o RestoreOptions) (*RestoreReport, error) {
	const op = "relocate.Restore"
	m, master, err := r.choose(ctx, o.At, "")
	if err == nil && master == nil {
		err = damaged("the snapshot "+m.ID, nil)
	}
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	if o.Parallel <= 0 {
		o.Parallel = 4
	}
	if o.Progress == nil {
		o.Progress = func(int64, int64, string) {}
	}
	a := &restorer{r: r, in: in, m: m, RestoreOptions: o, report: &RestoreReport{Snapshot: m.ID}}
	if err := a.places(); err != nil {
		return nil, fault.Wrap(op, err)
	}
	if err := a.master(ctx, master, erased); err != nil {
		return nil, fault.Wrap(op, err)
	}
	if err := a.tenants(ctx); err != nil {
		return nil, fault.Wrap(op, err)
	}
	return a.report, nil
}

// Abandon destroys the databases that restores made which did not come to their end, as the installation noted that they were to
// replace.
func Abandon(ctx context.Context, notes *sqlstore.MasterStore, places *workspace.Placements) error {
	const op = "relocate.Abandon"
	list, err := notes.FactsNamed(ctx, restoringFact)
	if err != nil {
		return fault.Wrap(op, err)
	}
	for _, raw := range list {
		var at tenant.Placement
		if err := json.Unmarshal(raw, &at); err != nil {
			return fault.Wrap(op, err)
		}
		if err := places.Destroy(ctx, at); err != nil {
			return fault.Wrap(op, err)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return fault.Wrap(op, notes.ForgetFacts(ctx, restoringFact))
}

// restorer is one restore of all.
type restorer struct {
	RestoreOptions
	r      *Repository
	in     Installation
	m      *Manifest
	report *RestoreReport
}

// places looks whether there are places of the kinds that will be needed.
func (a *restorer) places() error {
	for _, d := range a.m.Databases {
		if d.Owner != ownerMaster && a.kind(d.Kind) == tenant.Postgres && a.in.Places.Usual() != tenant.Postgres {
			return fault.New(fault.Invalid, "relocate.Restore", "restore_place_missing",
				"there are tenants from PostgreSQL, and no server for them: set TENANT_DATABASE_URLS, or restore to sqlite")
		}
	}
	return nil
}

// kind is the kind of place for a tenant that lived in one of that kind.
func (a *restorer) kind(was tenant.Kind) tenant.Kind {
	if a.To != "" {
		return a.To
	}
	return was
}

// master restores the master database, and takes those out of it who must not come back.
func (a *restorer) master(ctx context.Context, d *Database, erased []tenant.Erasure) error {
	if err := sqlstore.MigrateTo(ctx, a.in.Master, sqlstore.Master, d.Schema); err != nil {
		return err
	}
	if err := a.r.load(ctx, a.m, d, a.in.Master, nil); err != nil {
		return err
	}
	if _, err := sqlstore.Migrate(ctx, a.in.Master, sqlstore.Master); err != nil {
		return err
	}
	waiting, err := Emptyings(ctx, a.in.Store, "") // before they count as failed, like every other job
	if err != nil {
		return err
	}
	ch := event.NewChange(ident.System(""), a.now())
	ch.Add("installation.restored", a.m.ID, map[string]any{"snapshot": a.m.ID, "started": a.m.Started, "ended": a.m.Ended})
	if err := a.in.Store.Revive(ctx, ch); err != nil {
		return err
	}
	ledger, err := a.r.Erasures(ctx)
	if err != nil {
		return err
	}
	own, err := Ledger(ctx, a.in.Store)
	if err != nil {
		return err
	}
	ledger = slices.Concat(ledger, erased, own)
	if err := a.keepEmptied(ctx, waiting, ledger); err != nil {
		return err
	}
	for _, e := range ledger {
		t, err := a.in.Store.FindTenant(ctx, e.Tenant)
		if fault.Is(err, fault.NotFound) {
			if err := a.in.Store.PutErasure(ctx, e); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		e.Account = t.Account
		ch := event.NewChange(ident.System(""), a.now())
		ch.Add("account.erased", string(t.Account), map[string]any{"snapshot": a.m.ID})
		ch.Add(workspace.EventErased, string(t.ID), map[string]any{"snapshot": a.m.ID})
		if err := a.in.Store.EraseTenant(ctx, e, "", ch); err != nil {
			return err
		}
		a.report.Erased++
	}
	return nil
}

// keepEmptied lets the restored installation remember what the present one does: who had all data erased, and who is still
// to have that, or the whole account. Of what was waiting in the snapshot the present one may know how it ended.
func (a *restorer) keepEmptied(ctx context.Context, waiting []job.Job, erased []tenant.Erasure) error {
	keep := slices.Clone(a.Emptied)
	for _, j := range waiting {
		later := func(o job.Job) bool { return o.Tenant == j.Tenant && o.ID >= j.ID }
		if !j.State.Final() && !slices.ContainsFunc(a.Emptied, later) {
			keep = append(keep, j)
		}
	}
	// Erasing an account comes before erasing the data in it, of which it takes the place.
	slices.SortStableFunc(keep, func(a, b job.Job) int { return cmp.Compare(closing(b), closing(a)) })
	for _, j := range keep {
		if slices.ContainsFunc(erased, func(e tenant.Erasure) bool { return e.Tenant == j.Tenant }) {
			continue // of whom nothing is kept
		}
		var err error
		if j.State.Final() {
			j.Input = nil // who asked, and from where
			err = a.in.Store.KeepJob(ctx, j)
		} else if err = a.in.Store.QueueJob(ctx, j, j.Kind == KindErase); fault.Is(err, fault.NotFound) || fault.CodeOf(err) == "tenant_busy" {
			err = nil // whoever registered after the snapshot does not come back, and nobody is erased twice
		}
		if err != nil {
			return err
		}
	}
	known, err := Emptyings(ctx, a.in.Store, "")
	a.Emptied = known
	return err
}

// closing is 1 for a job that erases an account, 0 for one that only empties it.
func closing(j job.Job) int {
	if j.Kind == KindErase {
		return 1
	}
	return 0
}

// Ledger reads who was erased from an installation.
func Ledger(ctx context.Context, store *sqlstore.MasterStore) (list []tenant.Erasure, err error) {
	for after := ident.TenantID(""); ; {
		page, err := store.Erasures(ctx, after, 500)
		if err != nil || len(page) == 0 {
			return list, err
		}
		list, after = append(list, page...), page[len(page)-1].Tenant
	}
}

func (a *restorer) now() time.Time { return a.r.now().UTC().Truncate(time.Microsecond) }

// tenants restores the tenants that the restored master database knows.
func (a *restorer) tenants(ctx context.Context) error {
	var all []tenant.Tenant
	for after := ident.TenantID(""); ; {
		page, err := a.in.Store.ListTenants(ctx, after, 500)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
		all, after = append(all, page...), page[len(page)-1].ID
	}
	var done atomic.Int64
	total := int64(len(all))
	a.Progress(0, total, "tenants")
	a.report.Tenants = make([]RestoredTenant, len(all))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(a.Parallel)
	for i, t := range all {
		group.Go(func() error {
			one := a.tenant(gctx, t)
			if gctx.Err() != nil {
				return fault.New(fault.Canceled, "relocate.Restore", "", "the operation ended").With(context.Cause(gctx))
			}
			a.report.Tenants[i] = one
			a.Progress(done.Add(1), total, "tenants")
			return nil
		})
	}
	return group.Wait()
}

// tenant restores one tenant.
func (a *restorer) tenant(ctx context.Context, t tenant.Tenant) RestoredTenant {
	one := RestoredTenant{Tenant: t.ID, Outcome: OutcomeRestored, Kind: a.kind(t.Placement.Kind)}
	if one.Kind == tenant.External {
		one.Outcome = OutcomeLeft
		return one
	}
	fail := func(err error) RestoredTenant {
		one.Outcome, one.Err = OutcomeFailed, err
		return one
	}
	d := a.m.find(string(t.ID))
	switch there := d != nil && d.Stored(); {
	case there:
		one.At, one.Rows, one.Digest = d.At, d.Count(), d.Digest
		if gone, err := a.r.unreadable(ctx, d); err != nil {
			return fail(err)
		} else if gone || a.forbids(d) {
			one.Outcome, one.Rows, one.Digest, d = OutcomeEmptied, 0, nil, nil
		}
	case a.waits(t.ID): // and the job may have been at work already
		one.Outcome, d = OutcomeEmptied, nil
	default:
		return fail(fault.New(fault.NotFound, "relocate.Restore", "backup_missing", "the snapshot has no copy of this tenant"))
	}
	at, err := a.in.Places.Choose(ctx, tenant.Placement{Database: ident.New[ident.DatabaseID](), Kind: one.Kind})
	if err != nil {
		return fail(err)
	}
	if a.Notes != nil {
		raw, err := json.Marshal(at)
		if err != nil {
			return fail(err)
		}
		if _, err := a.Notes.PutFact(ctx, restoringFact+string(at.Database), raw, a.now()); err != nil {
			return fail(err)
		}
	}
	at, facts, err := a.r.fresh(ctx, a.in.Places, at, a.m, d, nil)
	if err != nil {
		return fail(err)
	}
	now := a.now()
	facts.CheckedAt = &now
	ch := event.NewChange(ident.System(""), now)
	ch.Add(event.Restored, string(t.ID), map[string]any{"snapshot": a.m.ID})
	if err := a.in.Store.Place(ctx, tenant.Database{Tenant: t.ID, Name: "Hosted", Placement: at, Version: 1, CreatedAt: now, UpdatedAt: now,
		Facts: facts}, ch); err != nil {
		return fail(errors.Join(err, a.in.Places.Destroy(context.WithoutCancel(ctx), at)))
	}
	return one
}

// RestoreAccount makes an installation of one account: for looking at an earlier state beside the present one, or for
// handing it over. in is an installation without accounts; scratch is an empty database, without tables, that is of no
// use afterwards.
func (r *Repository) RestoreAccount(ctx context.Context, in Installation, scratch *sqlstore.DB, id ident.TenantID, o RestoreOptions) (*RestoredTenant, error) {
	const op = "relocate.RestoreAccount"
	m, d, err := r.chooseTenant(ctx, id, o)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	master := m.find(ownerMaster)
	if master == nil {
		return nil, damaged("the snapshot "+m.ID, nil)
	}
	if err := sqlstore.MigrateTo(ctx, scratch, sqlstore.Master, master.Schema); err != nil {
		return nil, fault.Wrap(op, err)
	}
	if err := r.load(ctx, m, master, scratch, nil); err != nil {
		return nil, fault.Wrap(op, err)
	}
	if _, err := sqlstore.Migrate(ctx, scratch, sqlstore.Master); err != nil {
		return nil, fault.Wrap(op, err)
	}
	was := sqlstore.NewMasterStore(scratch, nil)
	t, err := was.FindTenant(ctx, id)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	owner, hash, err := was.FindAccount(ctx, t.Account)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	at, facts, err := r.fresh(ctx, in.Places, tenant.Placement{Database: tenant.First(id), Kind: tenant.SQLite}, m, d, chunkProgress(d, o.Progress))
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	now := r.now().UTC().Truncate(time.Microsecond)
	t.Placement, t.Job, t.State = at, "", tenant.Active
	t.Schema = tenant.Schema{Version: facts.SchemaVersion, At: now}
	_, err = in.Store.InsertAccount(ctx, account.Newcomer{Account: owner, Hash: hash, Tenant: t}, func(a account.Account) event.Change {
		ch := event.NewChange(ident.System(""), now)
		ch.Add("account.restored", string(a.ID), map[string]any{"snapshot": m.ID, "at": d.At})
		return ch
	})
	if err != nil {
		return nil, fault.Wrap(op, errors.Join(err, in.Places.Destroy(context.WithoutCancel(ctx), at)))
	}
	// Nobody is a member of anything there: shortcuts lead nowhere.
	if err := in.Store.MarkAccount(ctx, owner.ID, now); err != nil {
		return nil, fault.Wrap(op, err)
	}
	return &RestoredTenant{Tenant: id, Outcome: OutcomeRestored, Kind: at.Kind, At: d.At, Rows: d.Count(), Digest: d.Digest}, nil
}

// chooseTenant finds the copy of one tenant to restore. Code "tenant_erased": the ledger forbids it; "tenant_emptied": the
// copy is from before its owner had all data erased.
func (r *Repository) chooseTenant(ctx context.Context, id ident.TenantID, o RestoreOptions) (*Manifest, *Database, error) {
	switch _, err := r.store.Stat(ctx, erasedDir+"/"+string(id)); {
	case err == nil:
		return nil, nil, fault.New(fault.Conflict, "relocate.Restore", "tenant_erased", "this tenant was erased and does not come back")
	case fault.CodeOf(err) != "file_missing":
		return nil, nil, err
	}
	m, d, err := r.choose(ctx, o.At, string(id))
	if err != nil {
		return nil, nil, err
	}
	gone, err := r.unreadable(ctx, d)
	if err == nil && (gone || o.forbids(d)) {
		err = forgotten()
	}
	return m, d, err
}

func forgotten() error {
	return fault.New(fault.Conflict, "relocate.Restore", "tenant_emptied", "the owner had all data erased since: it does not come back")
}

// chunkProgress counts the chunks of a database.
func chunkProgress(d *Database, p Progress) func() {
	if p == nil {
		return nil
	}
	var done atomic.Int64
	p(0, int64(len(d.Chunks)), "chunks")
	return func() { p(done.Add(1), int64(len(d.Chunks)), "chunks") }
}

// restoredName is what a restored database is called until somebody renames it.
func restoredName(at time.Time) string {
	return fmt.Sprintf("Restored, as of %s", at.UTC().Format("2006-01-02 15:04"))
}
