package relocate

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/workspace"
)

// Installation is what is backed up, and what is restored into. Others may work on it at the same time.
type Installation struct {
	Master *sqlstore.DB
	Store  *sqlstore.MasterStore // over Master
	Places *workspace.Placements
}

// Manifest is what one snapshot holds.
type Manifest struct {
	Format  int       `json:"format"`
	ID      string    `json:"id"`
	Version string    `json:"version"` // of the program that made it
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended"` // nothing in it was written later
	// Shapes are the tables of databases, once for all that have the same.
	Shapes    [][]sqlstore.Table `json:"shapes"`
	Databases []Database         `json:"databases"` // the master's, then tenants' by their ids
}

// Database is one database in a snapshot.
type Database struct {
	Owner     string              `json:"owner"` // "master", or the id of a tenant
	Kind      tenant.Kind         `json:"kind"`  // where it lay; empty for the master database
	Schema    int64               `json:"schema"`
	At        time.Time           `json:"at"` // nothing in it was written later
	Key       string              `json:"key"`
	Shape     int                 `json:"shape"` // its tables in Manifest.Shapes
	Rows      []int64             `json:"rows"`  // of each table
	Bytes     int64               `json:"bytes"` // of all rows
	Digest    []byte              `json:"digest"`
	Sequences []sqlstore.Sequence `json:"sequences"`
	Chunks    []Chunk             `json:"chunks"`
	// Failed is the code of the error that kept this run from reading the database. What is here then is the copy of
	// the snapshot before, or nothing.
	Failed string `json:"failed,omitempty"`
}

// Stored reports whether there is a copy.
func (d *Database) Stored() bool { return d.Key != "" }

// Count is the number of all rows.
func (d *Database) Count() (n int64) {
	for _, rows := range d.Rows {
		n += rows
	}
	return n
}

// find returns the database of an owner; nil when the snapshot has none.
func (m *Manifest) find(owner string) *Database {
	for i := range m.Databases {
		if m.Databases[i].Owner == owner {
			return &m.Databases[i]
		}
	}
	return nil
}

// Progress hears how far a long operation has come. It may be called by several goroutines.
type Progress func(done, total int64, unit string)

// BackupOptions says how to back up.
type BackupOptions struct {
	Version  string // of this program, for the manifest
	Parallel int    // tenants at the same time; 4 when 0
	// Verify reads every chunk that is relied on before relying on it, and the whole snapshot at the end. Without it,
	// that all files are there and a sample of them are looked at.
	Verify   bool
	Progress Progress
}

// Report is what a backup did.
type Report struct {
	Manifest *Manifest
	Reports  []DatabaseReport // in the order of Manifest.Databases
	Erased   int              // tenants whose keys this run deleted: erased ones, and emptied ones
	Verified int              // chunks that were read back
	Warnings []string
}

// DatabaseReport is what a backup did for one database.
type DatabaseReport struct {
	*Database
	New Size  // files that were not there before
	Err error // why this run has no copy of its own
}

// Failed counts the databases that this run could not read.
func (r *Report) Failed() (n int) {
	for _, d := range r.Reports {
		if d.Err != nil {
			n++
		}
	}
	return n
}

// Backup makes a snapshot of an installation that is in use.
//
// The master database is read first, and the tenants in it are the ones that are read then: what is restored has data
// for each account, and an account for all data. A tenant's copy is as of the moment when its turn came; each database
// is one state, and the tenants' are younger than the master's. The snapshot exists when its manifest does; a run that
// ends before leaves nothing but files that [Repository.Prune] removes.
//
// A tenant that cannot be read is reported, and the copy that the snapshot before had of it goes on in this one. Only a
// failure of the master database or of the repository itself ends the run.
func (r *Repository) Backup(ctx context.Context, in Installation, o BackupOptions) (_ *Report, err error) {
	const op = "relocate.Backup"
	if o.Parallel <= 0 {
		o.Parallel = 4
	}
	if o.Progress == nil {
		o.Progress = func(int64, int64, string) {}
	}
	ctx, marker, err := r.beginBackup(ctx)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	defer func() {
		if lost := context.Cause(ctx); err != nil && fault.CodeOf(lost) == "backup_interrupted" {
			err = lost
		}
		err = fault.Wrap(op, errors.Join(err, marker.withdraw(ctx)))
	}()
	b := &backup{r: r, in: in, BackupOptions: o, report: &Report{}, ownBytes: r.ownBytes}
	b.manifest = &Manifest{Format: repositoryFormat, Version: o.Version, Started: r.now().UTC()}
	b.manifest.ID = snapshotID(b.manifest.Started)
	b.report.Manifest = b.manifest
	if err := b.run(ctx); err != nil {
		return nil, err
	}
	if err := marker.there(ctx); err != nil {
		return nil, err
	}
	if err := b.finish(ctx); err != nil {
		return nil, err
	}
	return b.report, nil
}

// backup is one run.
type backup struct {
	BackupOptions
	ownBytes int64
	r        *Repository
	in       Installation
	manifest *Manifest
	report   *Report
	own      *ownerKey // of manifests
	before   *Manifest // the newest snapshot there was; nil without one
	keys     map[string][]string
	erased   map[string]bool
	emptied  map[string]time.Time // when owners last had all data erased

	mu sync.Mutex // guards the shapes while tenants are read
}

func (b *backup) run(ctx context.Context) (err error) {
	if b.keys, err = b.r.keyIDs(ctx, keysDir); err != nil {
		return err
	}
	if b.own, err = b.r.writeKey(ctx, ownerSnapshots, b.keys[ownerSnapshots]); err != nil {
		return err
	}
	if err := b.applyErasures(ctx); err != nil {
		return err
	}
	if err := b.findBefore(ctx); err != nil {
		return err
	}
	tenants, err := b.readMaster(ctx)
	if err != nil {
		return err
	}
	if err := b.readTenants(ctx, tenants); err != nil {
		return err
	}
	return b.applyErasures(ctx) // of tenants that were erased while they were read
}

// applyErasures carries the installation's ledger over, and deletes the keys that are left of anyone in the
// repository's.
func (b *backup) applyErasures(ctx context.Context) error {
	list, err := Ledger(ctx, b.in.Store)
	if err != nil {
		return err
	}
	known, err := b.r.Erasures(ctx)
	if err != nil {
		return err
	}
	b.erased = make(map[string]bool)
	for _, e := range known {
		b.erased[string(e.Tenant)] = true
	}
	for _, e := range append(list, known...) {
		owner := string(e.Tenant)
		if b.erased[owner] && len(b.keys[owner]) == 0 {
			continue
		}
		if err := b.r.Erase(ctx, e); err != nil {
			return err
		}
		b.erased[owner] = true
		delete(b.keys, owner)
		b.report.Erased++
	}
	if err := b.applyEmptied(ctx); err != nil {
		return err
	}
	b.manifest.Databases = slices.DeleteFunc(b.manifest.Databases, func(d Database) bool { return b.erased[d.Owner] })
	b.report.Reports = slices.DeleteFunc(b.report.Reports, func(d DatabaseReport) bool { return b.erased[d.Owner] })
	return nil
}

// applyEmptied deletes the keys that are older than the last time when a tenant's owner had all data erased.
func (b *backup) applyEmptied(ctx context.Context) error {
	list, err := Emptyings(ctx, b.in.Store, "")
	if err != nil {
		return err
	}
	b.emptied = make(map[string]time.Time)
	for _, j := range list {
		if j.State != job.Completed { // what waits is not done yet, and may still be refused
			continue
		}
		owner, at := string(j.Tenant), *j.FinishedAt
		b.emptied[owner] = at
		old := func(id string) bool { return madeBefore(id, at) }
		if !slices.ContainsFunc(b.keys[owner], old) {
			continue
		}
		if err := b.r.Empty(ctx, j.Tenant, at); err != nil {
			return err
		}
		b.keys[owner] = slices.DeleteFunc(b.keys[owner], old)
		b.report.Erased++
	}
	return nil
}

// keyOf returns the key that a database is written under.
func (b *backup) keyOf(ctx context.Context, owner string) (*ownerKey, error) {
	at, was := b.emptied[owner]
	if soonest := at.Add(clockSkew); was && len(b.keys[owner]) == 0 && b.r.now().Before(soonest) {
		// What is read now is from after that, however near: its key must not be taken for one from before.
		return b.r.makeKey(ctx, owner, soonest)
	}
	return b.r.writeKey(ctx, owner, b.keys[owner])
}

// findBefore reads the newest snapshot there is.
func (b *backup) findBefore(ctx context.Context) error {
	list, err := b.r.Snapshots(ctx)
	if err != nil || len(list) == 0 {
		return err
	}
	newest := list[len(list)-1].ID
	b.before, err = b.r.Manifest(ctx, newest)
	if fault.CodeOf(err) == "backup_damaged" {
		// All the more reason to make another one.
		b.report.Warnings = append(b.report.Warnings, "the snapshot "+newest+" is damaged")
		return nil
	}
	return err
}

// readMaster copies the master database and returns the tenants that it knows.
func (b *backup) readMaster(ctx context.Context) (tenants []ident.TenantID, err error) {
	b.Progress(0, 0, "databases")
	d, size, err := b.copy(ctx, ownerMaster, b.in.Master, 0, func(s *sqlstore.Snapshot) (err error) {
		tenants, err = s.TenantIDs(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	b.add(d, size, nil)
	return tenants, nil
}

func (b *backup) add(d *Database, size Size, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.manifest.Databases = append(b.manifest.Databases, *d)
	b.report.Reports = append(b.report.Reports, DatabaseReport{Database: d, New: size, Err: err})
}

func (b *backup) readTenants(ctx context.Context, tenants []ident.TenantID) error {
	total := int64(len(tenants)) + 1
	var done atomic.Int64
	b.Progress(done.Add(1), total, "databases")
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(b.Parallel)
	for _, id := range tenants {
		if b.erased[string(id)] {
			b.Progress(done.Add(1), total, "databases")
			continue
		}
		group.Go(func() error {
			defer func() { b.Progress(done.Add(1), total, "databases") }()
			d, size, err := b.readTenant(gctx, id)
			if err != nil {
				if b.fatal(gctx, err) {
					return err
				}
				if fault.Is(err, fault.NotFound) {
					return nil // erased or withdrawn since the master was read; the ledger tells which
				}
				d = b.carried(string(id), err)
			}
			b.add(d, size, err)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	// "master" comes before any "ten_…".
	slices.SortFunc(b.manifest.Databases, func(x, y Database) int { return strings.Compare(x.Owner, y.Owner) })
	slices.SortFunc(b.report.Reports, func(x, y DatabaseReport) int { return strings.Compare(x.Owner, y.Owner) })
	return nil
}

// repositoryError is a failure of the repository while a tenant was read: it is not the tenant's.
type repositoryError struct{ error }

func (e repositoryError) Unwrap() error { return e.error }

func (b *backup) fatal(ctx context.Context, err error) bool {
	_, ours := errors.AsType[repositoryError](err)
	return ours || ctx.Err() != nil
}

// A user's own server is not ours: it may answer slowly for ever, or without end.
const (
	ownTime  = time.Hour
	ownBytes = 8 << 30 // of rows
)

func (b *backup) readTenant(ctx context.Context, id ident.TenantID) (*Database, Size, error) {
	t, err := b.in.Store.FindTenant(ctx, id)
	if err != nil {
		return nil, Size{}, err
	}
	db, err := b.in.Places.Open(ctx, t.Placement)
	if err != nil {
		return nil, Size{}, err
	}
	limit := int64(0)
	if t.Placement.Kind == tenant.External {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, ownTime)
		defer cancel()
		limit = b.ownBytes
	}
	d, size, err := b.copy(ctx, string(id), db, limit, nil)
	if err := errors.Join(err, db.Close()); err != nil {
		return nil, Size{}, err
	}
	d.Kind = t.Placement.Kind
	return d, size, nil
}

// carried is what the snapshot before has of a tenant that cannot be read.
func (b *backup) carried(owner string, err error) *Database {
	d := Database{Owner: owner}
	if b.before != nil {
		if old := b.before.find(owner); old != nil && slices.Contains(b.keys[owner], old.Key) {
			d = *old
			d.Shape = b.shape(b.before.Shapes[old.Shape])
		}
	}
	d.Failed = fault.CodeOf(err)
	return &d
}

// shape finds or adds the tables of a database.
func (b *backup) shape(tables []sqlstore.Table) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, known := range b.manifest.Shapes {
		if slices.EqualFunc(known, tables, sqlstore.Table.Equal) {
			return i
		}
	}
	b.manifest.Shapes = append(b.manifest.Shapes, tables)
	return len(b.manifest.Shapes) - 1
}

// copy stores one state of a database, of at most limit bytes (0: any number). also, when it is not nil, reads more of
// the same state.
func (b *backup) copy(ctx context.Context, owner string, db *sqlstore.DB, limit int64, also func(*sqlstore.Snapshot) error) (*Database, Size, error) {
	key, err := b.keyOf(ctx, owner)
	if err != nil {
		// Its keys may have gone while they were looked at.
		if _, gone := b.r.store.Stat(ctx, erasedDir+"/"+owner); gone == nil {
			return nil, Size{}, fault.New(fault.NotFound, "relocate.Backup", "tenant_erased", "the tenant was erased").With(err)
		}
		return nil, Size{}, repositoryError{err}
	}
	w, err := b.r.newChunkWriter(ctx, key, b.Verify)
	if err != nil {
		return nil, Size{}, repositoryError{err}
	}
	w.limit = limit
	d, err := b.dump(w.ctx, owner, db, w, also)
	chunks, werr := w.close()
	if werr != nil && ctx.Err() == nil {
		return nil, Size{}, repositoryError{werr} // it comes first: it ended the reading, too
	}
	err = errors.Join(err, werr)
	if err != nil {
		return nil, Size{}, err
	}
	d.Key, d.Chunks, d.Bytes = key.id, chunks, w.bytes
	return d, w.written, nil
}

// dump reads a database into chunks.
func (b *backup) dump(ctx context.Context, owner string, db *sqlstore.DB, w *chunkWriter, also func(*sqlstore.Snapshot) error) (*Database, error) {
	schema, err := sqlstore.SchemaVersion(ctx, db)
	if err == nil && schema == 0 {
		err = fault.New(fault.Unavailable, "relocate.Backup", "tenant_missing", "the tables of this database are missing")
	}
	if err != nil {
		return nil, err
	}
	s, err := db.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	d := &Database{Owner: owner, Schema: schema}
	tables, err := s.Tables(ctx)
	if err != nil {
		return nil, err
	}
	d.At = b.r.now().UTC()
	if d.Sequences, err = s.Sequences(ctx); err != nil {
		return nil, err
	}
	if also != nil {
		if err := also(s); err != nil {
			return nil, err
		}
	}
	d.Shape, d.Rows = b.shape(tables), make([]int64, len(tables))
	pack := &packer{key: w.key, emit: w.put}
	var sums []sqlstore.TableDigest
	for i, t := range tables {
		sum, err := dumpTable(ctx, s, t, pack)
		if err != nil {
			return nil, err
		}
		sums, d.Rows[i] = append(sums, sum), sum.Rows
	}
	if err := pack.flush(); err != nil {
		return nil, err
	}
	total := sqlstore.SumDigests(sums)
	d.Digest = total.Sum[:]
	after, err := sqlstore.SchemaVersion(ctx, db)
	if err == nil && after != schema {
		err = fault.New(fault.Unavailable, "relocate.Backup", "schema_changed",
			"the database was migrated while it was read: run the backup again")
	}
	return d, err
}

func dumpTable(ctx context.Context, s *sqlstore.Snapshot, t sqlstore.Table, pack *packer) (sqlstore.TableDigest, error) {
	sum := sqlstore.NewTableHash(t)
	var line []byte
	for after := []any(nil); ; {
		rows, next, err := s.Page(ctx, t, after, dumpRows, dumpBytes)
		if err != nil {
			return sqlstore.TableDigest{}, err
		}
		for _, row := range rows {
			if line, err = sqlstore.EncodeRow(line[:0], t, row); err != nil {
				return sqlstore.TableDigest{}, err
			}
			sum.Add(line, 1)
			if err := pack.add(t.Name, line); err != nil {
				return sqlstore.TableDigest{}, err
			}
		}
		if after = next; next == nil {
			return sum.Digest(), nil
		}
	}
}

// sampled is how many chunks a backup reads back when it does not verify all.
const sampled = 100

// finish stores the manifest, and looks whether everything that it refers to is there.
func (b *backup) finish(ctx context.Context) error {
	b.manifest.Ended = b.r.now().UTC()
	if err := b.r.putManifest(ctx, b.own, b.manifest); err != nil {
		return err
	}
	err := b.check(ctx)
	if err != nil {
		// A snapshot that cannot be restored must not be taken for one that can.
		err = errors.Join(err, b.r.store.Delete(context.WithoutCancel(ctx), snapshotsDir+"/"+b.manifest.ID))
	}
	return err
}

// check looks at what was written: the manifest as it lies there, the presence and size of each file that it refers
// to, and the content of all or some.
func (b *backup) check(ctx context.Context) error {
	m, err := b.r.Manifest(ctx, b.manifest.ID)
	if err != nil {
		return err
	}
	if err := b.r.present(ctx, m); err != nil {
		return err
	}
	if b.Verify {
		damages, err := b.r.Verify(ctx, m, b.Progress)
		if err == nil && len(damages) > 0 {
			err = damages[0].Err
		}
		for _, d := range m.Databases {
			b.report.Verified += len(d.Chunks)
		}
		return err
	}
	type one struct {
		d *Database
		c Chunk
	}
	var all []one
	for i, d := range m.Databases {
		for _, c := range d.Chunks {
			all = append(all, one{&m.Databases[i], c})
		}
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] }) //nolint:gosec // a sample; nobody gains by guessing it
	for _, o := range all[:min(sampled, len(all))] {
		key, err := b.r.key(ctx, o.d.Owner, o.d.Key)
		if err == nil {
			_, err = b.r.readChunk(ctx, key, o.c)
		}
		if err != nil {
			if gone, _ := b.r.unreadable(ctx, o.d); !gone {
				return err
			}
		}
		b.report.Verified++
	}
	return nil
}

// present fails with code "backup_damaged" when a file that a snapshot refers to is missing or has another size.
func (r *Repository) present(ctx context.Context, m *Manifest) error {
	sizes := make(map[string]int64)
	for info, err := range r.store.List(ctx, chunksDir) {
		if err != nil {
			return err
		}
		sizes[info.Name] = info.Size
	}
	for _, d := range m.Databases {
		for _, c := range d.Chunks {
			file := chunkFile(d.Owner, c.Name)
			size, there := sizes[file]
			if there && size == c.Size {
				continue
			}
			if gone, _ := r.unreadable(ctx, &d); gone {
				break
			}
			return damaged(file, nil)
		}
	}
	return nil
}
