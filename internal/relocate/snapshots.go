package relocate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"claude-memory-backend/internal/blob"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

// Snapshots are what tenants' databases held before their schemas were last changed: one each, at the older version,
// whatever engine they lie on. They are kept like backups, sealed under a key of the tenant's, in a repository of their
// own that is near at hand. It is made with the first of them. Snapshots are safe for concurrent use.
type Snapshots struct {
	open func(context.Context) (blob.Store, error)
	keys *seal.Keyring
	now  func() time.Time

	mu sync.Mutex
	r  *Repository // once it is open
}

const (
	// SnapshotLife is how long a snapshot is kept: what a user deletes should not live on for ever.
	SnapshotLife = 30 * 24 * time.Hour
	// snapshotFresh is how long an unchanged database is not kept once more: a step that fails is tried every minute.
	snapshotFresh = time.Hour
	// chunkGrace is how old a chunk must be to be removed because the tenant's snapshot has no use for it: another process
	// may be about to write one that has.
	chunkGrace = time.Hour

	stepsDir = "steps" // steps/TENANT: what the tenant's snapshot holds, sealed under the tenant's key
)

// NewSnapshots opens nothing yet.
func NewSnapshots(open func(context.Context) (blob.Store, error), keys *seal.Keyring) *Snapshots {
	return &Snapshots{open: open, keys: keys, now: time.Now}
}

// StepSnapshot is the snapshot of one tenant.
type StepSnapshot struct {
	Steps    []string         `json:"steps"`    // that were to be taken
	Database ident.DatabaseID `json:"database"` // in which the data was then
	Mark     sqlstore.LogMark `json:"mark"`     // the end of the log
	Manifest *Manifest        `json:"manifest"` // of this one database
}

func (s *StepSnapshot) database() *Database { return &s.Manifest.Databases[0] }

// Schema is the version that the database had.
func (s *StepSnapshot) Schema() int64 { return s.database().Schema }

// At is when it was taken: nothing in it was written later.
func (s *StepSnapshot) At() time.Time { return s.database().At }

// repository opens the repository. Without create, nil means that there is none.
func (s *Snapshots) repository(ctx context.Context, create bool) (*Repository, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.r != nil {
		return s.r, nil
	}
	store, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	r, err := OpenRepository(ctx, store, s.keys, create)
	if fault.CodeOf(err) == "backup_repository_foreign" && create { // another process has just made it
		r, err = OpenRepository(ctx, store, s.keys, create)
	}
	if fault.CodeOf(err) == "backup_repository_missing" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r.now = s.now
	s.r = r
	return r, nil
}

// Keep takes the snapshot of a tenant, in place of the one that there was. It is a workspace.Keep.
func (s *Snapshots) Keep(ctx context.Context, t tenant.Tenant, db *sqlstore.DB, at sqlstore.Standing) error {
	const op = "relocate.Keep"
	r, err := s.repository(ctx, true)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if unchanged, err := s.unchanged(ctx, r, t, db); err != nil || unchanged {
		return fault.Wrap(op, err)
	}
	owner := string(t.ID)
	keys, err := r.keyIDs(ctx, keysDir+"/"+owner)
	if err != nil {
		return fault.Wrap(op, err)
	}
	snap := &StepSnapshot{Steps: at.Pending, Database: t.Placement.Database}
	b := &backup{r: r, keys: keys, manifest: &Manifest{Format: repositoryFormat, ID: owner, Started: s.now().UTC()}}
	limit := int64(0)
	if t.Placement.Kind == tenant.External {
		limit = ownBytes
	}
	d, _, err := b.copy(ctx, owner, db, limit, func(view *sqlstore.Snapshot) (err error) {
		snap.Mark, err = view.Mark(ctx)
		return err
	})
	if err != nil {
		return fault.Wrap(op, err)
	}
	d.Kind = t.Placement.Kind
	snap.Manifest = b.manifest
	snap.Manifest.Databases, snap.Manifest.Ended = []Database{*d}, s.now().UTC()
	return fault.Wrap(op, s.put(ctx, r, owner, snap))
}

// unchanged reports whether the snapshot that there is, is still one of the same.
func (s *Snapshots) unchanged(ctx context.Context, r *Repository, t tenant.Tenant, db *sqlstore.DB) (bool, error) {
	was, err := s.find(ctx, r, t.ID)
	if err != nil || s.now().Sub(was.At()) > snapshotFresh || was.Database != t.Placement.Database {
		return false, ignoreLost(err)
	}
	view, err := db.Snapshot(ctx)
	if err != nil {
		return false, err
	}
	defer view.Close()
	mark, err := view.Mark(ctx)
	if err != nil {
		return false, err
	}
	version, err := sqlstore.SchemaVersion(ctx, db)
	return err == nil && mark == was.Mark && version == was.Schema(), err
}

// ignoreLost lets a snapshot be replaced that is missing or cannot be read.
func ignoreLost(err error) error {
	switch fault.CodeOf(err) {
	case "snapshot_missing", "backup_damaged", "backup_key_missing":
		return nil
	}
	return err
}

// put writes what the snapshot holds, and removes what it has no use for.
func (s *Snapshots) put(ctx context.Context, r *Repository, owner string, snap *StepSnapshot) error {
	key, err := r.key(ctx, owner, snap.database().Key)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(snap)
	if err != nil {
		return err
	}
	name := stepsDir + "/" + owner
	if err := blob.PutBytes(ctx, r.store, name, append([]byte(key.id+"\n"), r.sealed(key, name, raw)...)); err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, c := range snap.database().Chunks {
		wanted[chunkFile(owner, c.Name)] = true
	}
	n, old := 0, s.now().Add(-chunkGrace)
	for info, err := range r.store.List(ctx, chunksDir+"/"+owner) {
		if err != nil {
			return err
		}
		switch {
		case wanted[info.Name]:
			n++
		case info.Modified.Before(old):
			if err := r.store.Delete(ctx, info.Name); err != nil {
				return err
			}
		}
	}
	if n != len(wanted) {
		return damaged("the snapshot of "+owner, nil) // another process has just removed a part of it
	}
	return nil
}

// Find returns the snapshot of a tenant; fault.NotFound, code "snapshot_missing", when there is none.
func (s *Snapshots) Find(ctx context.Context, id ident.TenantID) (*StepSnapshot, error) {
	const op = "relocate.FindSnapshot"
	r, err := s.repository(ctx, false)
	if err == nil && r == nil {
		err = noSnapshot()
	}
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	snap, err := s.find(ctx, r, id)
	return snap, fault.Wrap(op, err)
}

func noSnapshot() error {
	return fault.New(fault.NotFound, "relocate.FindSnapshot", "snapshot_missing",
		"there is no snapshot of before a migration: it was taken on another machine, or is too old")
}

func (s *Snapshots) find(ctx context.Context, r *Repository, id ident.TenantID) (*StepSnapshot, error) {
	owner := string(id)
	name := stepsDir + "/" + owner
	sealed, err := blob.GetBytes(ctx, r.store, name, largeFile)
	if fault.CodeOf(err) == "file_missing" {
		return nil, noSnapshot()
	}
	if err != nil {
		return nil, err
	}
	keyID, sealed, found := bytes.Cut(sealed, []byte{'\n'})
	if !found || len(keyID) > 64 {
		return nil, damaged(name, nil)
	}
	key, err := r.key(ctx, owner, string(keyID))
	if err != nil {
		return nil, err
	}
	raw, err := r.opened(key, name, sealed)
	if err != nil {
		return nil, err
	}
	snap := &StepSnapshot{}
	if err := json.Unmarshal(raw, snap); err != nil || snap.Manifest == nil || len(snap.Manifest.Databases) != 1 ||
		snap.Manifest.Format > repositoryFormat {
		return nil, damaged(name, err)
	}
	return snap, nil
}

// past is what a snapshot holds, for a database to be made that again.
func (s *Snapshots) past(ctx context.Context, snap *StepSnapshot) (sqlstore.Past, error) {
	r, err := s.repository(ctx, false)
	if err == nil && r == nil {
		err = noSnapshot()
	}
	if err != nil {
		return sqlstore.Past{}, err
	}
	return sqlstore.Past{Version: snap.Schema(), Mark: snap.Mark, Sequences: snap.database().Sequences,
		Rows: func(put func(sqlstore.Table, []sqlstore.Row) error) error {
			return r.read(ctx, snap.Manifest, snap.database(), put, nil)
		}}, nil
}

// Forget removes the snapshot of a tenant with the key to it. One that is not there is no error.
func (s *Snapshots) Forget(ctx context.Context, id ident.TenantID) error {
	const op = "relocate.ForgetSnapshot"
	r, err := s.repository(ctx, false)
	if err != nil || r == nil {
		return fault.Wrap(op, err)
	}
	return fault.Wrap(op, s.forget(ctx, r, string(id)))
}

func (s *Snapshots) forget(ctx context.Context, r *Repository, owner string) error {
	r.mu.Lock()
	for place, k := range r.keys {
		if k.owner == owner {
			delete(r.keys, place)
		}
	}
	r.mu.Unlock()
	if _, err := r.deleteAll(ctx, keysDir+"/"+owner, nil); err != nil {
		return err
	}
	if err := r.store.Delete(ctx, stepsDir+"/"+owner); err != nil {
		return err
	}
	_, err := r.deleteAll(ctx, chunksDir+"/"+owner, nil)
	return err
}

// Tidy removes snapshots that are too old, those that wanted, which hears whose and from when, does not want any more,
// and what was left where one was taken or removed and the process died.
func (s *Snapshots) Tidy(ctx context.Context, wanted func(ctx context.Context, of ident.TenantID, at time.Time) (bool, error)) error {
	const op = "relocate.Tidy"
	r, err := s.repository(ctx, false)
	if err != nil || r == nil {
		return fault.Wrap(op, err)
	}
	rest, err := s.keyless(ctx, r)
	if err != nil {
		return fault.Wrap(op, err)
	}
	err = s.each(ctx, func(r *Repository, owner string, ids []string) error {
		id, err := ident.Parse[ident.TenantID](owner)
		if err != nil {
			return nil //nolint:nilerr // nothing of ours
		}
		at, err := s.takenAt(ctx, r, owner, ids)
		if err != nil {
			return err
		}
		keep := s.now().Sub(at) < SnapshotLife
		if keep {
			if keep, err = wanted(ctx, id, at); err != nil {
				return err
			}
		}
		if keep {
			return nil
		}
		return s.forget(ctx, r, owner)
	})
	for owner := range rest {
		if _, bad := ident.Parse[ident.TenantID](owner); bad == nil && ctx.Err() == nil {
			err = errors.Join(err, s.forget(ctx, r, owner))
		}
	}
	return fault.Wrap(op, err)
}

// keyless are those of whom something lies there that no key opens. A key is the first thing that is written and the
// first that is removed, so keys are looked for last.
func (s *Snapshots) keyless(ctx context.Context, r *Repository) (map[string]bool, error) {
	list := map[string]bool{}
	for _, dir := range []string{chunksDir, stepsDir} {
		for info, err := range r.store.List(ctx, dir) {
			if err != nil {
				return nil, err
			}
			owner, _, _ := strings.Cut(strings.TrimPrefix(info.Name, dir+"/"), "/")
			list[owner] = true
		}
	}
	keys, err := r.keyIDs(ctx, keysDir)
	for owner := range keys {
		delete(list, owner)
	}
	return list, err
}

// takenAt is from when a snapshot is. One that is not complete, because it is being taken or that was broken off, is as
// old as the newest key of its tenant's.
func (s *Snapshots) takenAt(ctx context.Context, r *Repository, owner string, ids []string) (time.Time, error) {
	info, err := r.store.Stat(ctx, stepsDir+"/"+owner)
	if fault.CodeOf(err) == "file_missing" {
		return keyTime(slices.Max(ids)), nil
	}
	return info.Modified, err
}

// Rewrap seals the keys of all snapshots under the current master key, and returns how many were sealed anew.
func (s *Snapshots) Rewrap(ctx context.Context) (n int, err error) {
	err = s.each(ctx, func(r *Repository, owner string, ids []string) error {
		for _, id := range ids {
			changed, err := r.resealKey(ctx, owner, id)
			if err != nil {
				return err
			}
			if changed {
				n++
			}
		}
		return nil
	})
	return n, fault.Wrap("relocate.RewrapSnapshots", err)
}

// each goes through the owners of snapshots. One that fails does not keep the others from being looked at.
func (s *Snapshots) each(ctx context.Context, do func(r *Repository, owner string, ids []string) error) error {
	r, err := s.repository(ctx, false)
	if err != nil || r == nil {
		return err
	}
	all, err := r.keyIDs(ctx, keysDir)
	if err != nil {
		return err
	}
	var failed error
	for owner, ids := range all {
		if !strings.HasPrefix(owner, ident.TenantID("").Prefix()) {
			continue
		}
		if err := do(r, owner, ids); err != nil {
			if ctx.Err() != nil {
				return err
			}
			failed = errors.Join(failed, err)
		}
	}
	return failed
}
