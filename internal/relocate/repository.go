package relocate

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"claude-memory-backend/internal/blob"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/tenant"
)

// Names in a repository. Nothing in them tells more than ids of tenants, times, and sizes.
//
//	repository                     what this is, and its format, in plain JSON
//	installation                   whose backups these are, sealed under the master key
//	keys/OWNER/KEY                 a key, sealed under the master key; an owner is "snapshots", "master" or a tenant
//	chunks/OWNER/CHUNK             rows, compressed, sealed under the owner's key; named by a keyed hash of them
//	snapshots/SNAPSHOT             a manifest, sealed under the key of "snapshots"; without it a snapshot does not exist
//	erased/TENANT                  the ledger: when the tenant was erased
//	emptied/TENANT                 when its owner had all data erased and kept the account; no key is older
//	running/KIND-RANDOM            who is at work here, renewed while it is
const (
	headName     = "repository"
	claimName    = "installation"
	keysDir      = "keys"
	chunksDir    = "chunks"
	snapshotsDir = "snapshots"
	erasedDir    = "erased"
	emptiedDir   = "emptied"
	runningDir   = "running"
)

// Owners of keys and chunks that are no tenants.
const (
	ownerMaster    = "master"
	ownerSnapshots = "snapshots"
)

const (
	repositoryFormat = 1
	keyPurpose       = "backup key"
	claimPurpose     = "backup installation"
	smallFile        = 1 << 20
	largeFile        = 1 << 30 // no manifest and no chunk is larger
)

// Repository is where backups lie: a [blob.Store] with the keys to it. Many runs may work on one at the same time. It
// is safe for concurrent use.
//
// Each tenant has a key here, sealed under the master key and kept in one place: when that file is deleted, nothing
// of the tenant can be read in any snapshot any more, on whatever disks copies of its chunks may lie. It is the only
// thing that must really be gone: a bucket that keeps old versions of files must not keep those of keys.
type Repository struct {
	store   blob.Store
	keyring *seal.Keyring
	now     func() time.Time
	packer  *zstd.Encoder
	reader  *zstd.Decoder
	lease   time.Duration // how long one that said it is at work is believed
	// ownBytes bounds what is copied of a user's own database.
	ownBytes int64

	mu   sync.Mutex
	keys map[string]*ownerKey // those in use, by owner and id
}

// head is the file "repository".
type head struct {
	What   string `json:"what"`
	Format int    `json:"format"`
}

// headWhat tells our file from anybody's.
const headWhat = "memoryd backups"

// OpenRepository opens the repository in a store, and makes one where create allows it and nothing else lies there.
// Code "backup_repository_missing": there is none; "backup_repository_foreign": something else is there;
// "backup_repository_newer": a newer version of this program wrote it; "backup_key_unknown": its snapshots were made
// under a master key that is not configured.
func OpenRepository(ctx context.Context, store blob.Store, keyring *seal.Keyring, create bool) (*Repository, error) {
	const op = "relocate.OpenRepository"
	packer, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(1<<20))
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	reader, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(largeFile))
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	r := &Repository{store: store, keyring: keyring, now: time.Now, packer: packer, reader: reader, lease: 10 * time.Minute, ownBytes: ownBytes,
		keys: make(map[string]*ownerKey)}
	raw, err := blob.GetBytes(ctx, store, headName, smallFile)
	if fault.CodeOf(err) == "file_missing" {
		if !create {
			return nil, fault.New(fault.NotFound, op, "backup_repository_missing", "there are no backups in "+store.String())
		}
		raw, err = r.create(ctx)
	}
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	var h head
	if json.Unmarshal(raw, &h) != nil || h.What != headWhat {
		return nil, foreign(op)
	}
	if h.Format > repositoryFormat {
		return nil, fault.New(fault.Unavailable, op, "backup_repository_newer", "the backups were written by a newer version of this program")
	}
	// Whoever cannot read the snapshots must not add to them, nor tidy up behind them.
	ids, err := r.keyIDs(ctx, keysDir+"/"+ownerSnapshots)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	for _, id := range ids[ownerSnapshots] {
		if _, err := r.key(ctx, ownerSnapshots, id); err != nil {
			return nil, fault.Wrap(op, err)
		}
	}
	return r, nil
}

func (r *Repository) create(ctx context.Context) ([]byte, error) {
	const op = "relocate.OpenRepository"
	for _, err := range r.store.List(ctx, "") {
		if err != nil {
			return nil, err
		}
		return nil, foreign(op)
	}
	raw, err := json.Marshal(head{What: headWhat, Format: repositoryFormat})
	if err != nil {
		return nil, err
	}
	return raw, blob.PutBytes(ctx, r.store, headName, raw)
}

func foreign(op string) error {
	return fault.New(fault.Conflict, op, "backup_repository_foreign",
		"there is something else than backups: name an empty folder, or another prefix of the bucket")
}

// Claim makes sure that the repository belongs to the installation of that id before it adds a snapshot: a repository
// that belongs to nobody yet is its own from now on, and so is any with adopt. What was restored from a backup has the id
// of what was backed up. Code "backup_repository_other": it is another installation's, whose snapshots those of this one
// would come to replace.
func (r *Repository) Claim(ctx context.Context, id seal.Key, adopt bool) error {
	const op = "relocate.Claim"
	sealed, err := blob.GetBytes(ctx, r.store, claimName, smallFile)
	switch {
	case fault.CodeOf(err) == "file_missing" || err == nil && adopt:
		return fault.Wrap(op, blob.PutBytes(ctx, r.store, claimName, r.keyring.Seal(claimPurpose, id[:], []byte(claimName))))
	case err != nil:
		return fault.Wrap(op, err)
	}
	of, err := r.keyring.Open(claimPurpose, sealed, []byte(claimName))
	if err != nil {
		return damaged("the file "+claimName+" in the backups", err)
	}
	if !bytes.Equal(of, id[:]) {
		return fault.New(fault.Conflict, op, "backup_repository_other", "the backups are of another installation")
	}
	sealed, changed, err := r.keyring.Rewrap(claimPurpose, sealed, []byte(claimName))
	if err == nil && changed {
		err = blob.PutBytes(ctx, r.store, claimName, sealed)
	}
	return fault.Wrap(op, err)
}

// String is where the repository lies, without secrets.
func (r *Repository) String() string { return r.store.String() }

func randomName() string {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// newKeyID is the id of a key that is made now. Ids sort by age.
func newKeyID(now time.Time) string { return fmt.Sprintf("%014x-%s", now.UnixMicro(), randomName()) }

// madeBefore reports whether a key may hold what was written before a moment, whose clock may be another one.
func madeBefore(id string, at time.Time) bool { return keyTime(id).Before(at.Add(clockSkew)) }

// keyTime is when a key was made; long ago when its id does not say.
func keyTime(id string) time.Time {
	hexed, _, _ := strings.Cut(id, "-")
	made, err := strconv.ParseInt(hexed, 16, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMicro(made)
}

// clockSkew is by how much the clocks of servers may differ.
const clockSkew = time.Minute

// ownerKey is one key of an owner, with what is made of it.
type ownerKey struct {
	owner, id string
	box       seal.Box // seals chunks and manifests
	name      seal.Key // names chunks
	cut       seal.Key // says where they end
}

func newOwnerKey(owner, id string, key seal.Key) *ownerKey {
	return &ownerKey{owner: owner, id: id, box: key.Box("content"), name: key.Derive("name"), cut: key.Derive("cut")}
}

// keyFile is the name of a key, to which its seal is bound.
func keyFile(owner, id string) string { return keysDir + "/" + owner + "/" + id }

// keyIDs lists the keys of an owner, or of all.
func (r *Repository) keyIDs(ctx context.Context, folder string) (map[string][]string, error) {
	ids := make(map[string][]string)
	for info, err := range r.store.List(ctx, folder) {
		if err != nil {
			return nil, err
		}
		if owner, id, ok := strings.Cut(strings.TrimPrefix(info.Name, keysDir+"/"), "/"); ok {
			ids[owner] = append(ids[owner], id)
		}
	}
	return ids, nil
}

// writeKey returns the key that an owner's chunks are written under: of those that it has, the smallest, or a new one.
// Two runs that make one at the same time leave two, and both can be read. Those sealed under an earlier master key are
// sealed anew. Code "tenant_erased": there must be none any more.
func (r *Repository) writeKey(ctx context.Context, owner string, ids []string) (*ownerKey, error) {
	if len(ids) == 0 {
		return r.makeKey(ctx, owner, r.now())
	}
	for _, id := range ids {
		if _, err := r.resealKey(ctx, owner, id); err != nil {
			return nil, err
		}
	}
	return r.key(ctx, owner, slices.Min(ids))
}

// makeKey makes a key that counts as made at that moment.
func (r *Repository) makeKey(ctx context.Context, owner string, at time.Time) (*ownerKey, error) {
	id, key := newKeyID(at), seal.NewKey()
	if err := r.putKey(ctx, owner, id, r.keyring.Seal(keyPurpose, key[:], []byte(keyFile(owner, id)))); err != nil {
		return nil, err
	}
	return r.remember(newOwnerKey(owner, id, key)), nil
}

// putKey stores a sealed key, unless its owner is erased meanwhile: an erasure notes the owner in the ledger first and
// then deletes keys, so it either finds this one or is found here.
func (r *Repository) putKey(ctx context.Context, owner, id string, sealed []byte) error {
	name := keyFile(owner, id)
	if err := blob.PutBytes(ctx, r.store, name, sealed); err != nil {
		return err
	}
	switch _, err := r.store.Stat(ctx, erasedDir+"/"+owner); {
	case err == nil:
		return errors.Join(fault.New(fault.Conflict, "relocate.Backup", "tenant_erased", "the tenant was erased"),
			r.store.Delete(ctx, name))
	case fault.CodeOf(err) == "file_missing":
		return nil
	default:
		return err
	}
}

func noKey(owner string) error {
	return fault.New(fault.NotFound, "relocate.Repository", "backup_key_missing",
		"the key of "+owner+" is not in the repository: what it opened cannot be read any more")
}

// key opens one key.
func (r *Repository) key(ctx context.Context, owner, id string) (*ownerKey, error) {
	r.mu.Lock()
	k := r.keys[owner+"/"+id]
	r.mu.Unlock()
	if k != nil {
		return k, nil
	}
	sealed, err := blob.GetBytes(ctx, r.store, keyFile(owner, id), smallFile)
	if fault.CodeOf(err) == "file_missing" {
		return nil, noKey(owner)
	}
	if err != nil {
		return nil, err
	}
	return r.openKey(owner, id, sealed)
}

func (r *Repository) openKey(owner, id string, sealed []byte) (*ownerKey, error) {
	plain, err := r.keyring.Open(keyPurpose, sealed, []byte(keyFile(owner, id)))
	if fault.CodeOf(err) == "seal_unknown_key" {
		return nil, fault.New(fault.Unavailable, "relocate.Repository", "backup_key_unknown",
			"the backups were made under another MASTER_KEY: set it, or put it into MASTER_KEY_PREVIOUS").With(err)
	}
	if err != nil || len(plain) != len(seal.Key{}) {
		return nil, damaged("the key of "+owner, err)
	}
	return r.remember(newOwnerKey(owner, id, seal.Key(plain))), nil
}

func (r *Repository) remember(k *ownerKey) *ownerKey {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys[k.owner+"/"+k.id] = k
	return k
}

// resealKey opens a key, and seals it under the current master key where it is not yet.
func (r *Repository) resealKey(ctx context.Context, owner, id string) (changed bool, err error) {
	sealed, err := blob.GetBytes(ctx, r.store, keyFile(owner, id), smallFile)
	if err != nil {
		return false, err
	}
	if _, err := r.openKey(owner, id, sealed); err != nil {
		return false, err
	}
	sealed, changed, err = r.keyring.Rewrap(keyPurpose, sealed, []byte(keyFile(owner, id)))
	if err != nil || !changed {
		return false, err
	}
	return true, r.putKey(ctx, owner, id, sealed)
}

func damaged(what string, cause error) error {
	return fault.New(fault.Internal, "relocate.Repository", "backup_damaged", what+" is damaged").With(cause)
}

// sealed compresses and seals content, bound to the name that it gets.
func (r *Repository) sealed(k *ownerKey, name string, content []byte) []byte {
	return k.box.Seal(r.packer.EncodeAll(content, nil), []byte(name))
}

// opened is the reverse of sealed. Code "backup_damaged" is anything that sealed did not make.
func (r *Repository) opened(k *ownerKey, name string, sealed []byte) ([]byte, error) {
	packed, err := k.box.Open(sealed, []byte(name))
	if err != nil {
		return nil, damaged(name, err)
	}
	content, err := r.reader.DecodeAll(packed, nil)
	if err != nil {
		return nil, damaged(name, err)
	}
	return content, nil
}

// SnapshotInfo names a snapshot.
type SnapshotInfo struct {
	ID      string
	Started time.Time
}

// snapshotTime is the part of a snapshot's name that says when it began; names sort by it.
const snapshotTime = "20060102t150405.000000z"

func snapshotID(started time.Time) string {
	return started.UTC().Format(snapshotTime) + "-" + randomName()
}

// Snapshots lists the complete snapshots, oldest first.
func (r *Repository) Snapshots(ctx context.Context) ([]SnapshotInfo, error) {
	var list []SnapshotInfo
	for info, err := range r.store.List(ctx, snapshotsDir) {
		if err != nil {
			return nil, fault.Wrap("relocate.Snapshots", err)
		}
		id := strings.TrimPrefix(info.Name, snapshotsDir+"/")
		at, _, _ := strings.Cut(id, "-")
		started, err := time.Parse(snapshotTime, at)
		if err != nil {
			return nil, foreign("relocate.Snapshots")
		}
		list = append(list, SnapshotInfo{ID: id, Started: started})
	}
	slices.SortFunc(list, func(a, b SnapshotInfo) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// Manifest reads what a snapshot holds; fault.NotFound, code "backup_missing", when there is no such snapshot.
func (r *Repository) Manifest(ctx context.Context, id string) (*Manifest, error) {
	const op = "relocate.Manifest"
	name := snapshotsDir + "/" + id
	sealed, err := blob.GetBytes(ctx, r.store, name, largeFile)
	if code := fault.CodeOf(err); code == "file_missing" || code == "file_name_wrong" {
		return nil, fault.New(fault.NotFound, op, "backup_missing", "there is no such snapshot")
	}
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	// The name of the key stands before what it opens.
	keyID, sealed, found := bytes.Cut(sealed, []byte{'\n'})
	if !found || len(keyID) > 64 {
		return nil, damaged(name, nil)
	}
	k, err := r.key(ctx, ownerSnapshots, string(keyID))
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	raw, err := r.opened(k, name, sealed)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	m := &Manifest{}
	if err := json.Unmarshal(raw, m); err != nil || m.ID != id {
		return nil, damaged(name, err)
	}
	if m.Format > repositoryFormat {
		return nil, fault.New(fault.Unavailable, op, "backup_repository_newer", "the snapshot was written by a newer version of this program")
	}
	return m, nil
}

// putManifest makes a snapshot exist.
func (r *Repository) putManifest(ctx context.Context, k *ownerKey, m *Manifest) error {
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	name := snapshotsDir + "/" + m.ID
	return blob.PutBytes(ctx, r.store, name, append([]byte(k.id+"\n"), r.sealed(k, name, raw)...))
}

// erasure is an entry of the ledger as it is stored.
type erasure struct {
	Account ident.AccountID `json:"account"`
	At      time.Time       `json:"at"`
}

// Erasures is the repository's ledger.
func (r *Repository) Erasures(ctx context.Context) ([]tenant.Erasure, error) {
	const op = "relocate.Erasures"
	var list []tenant.Erasure
	for info, err := range r.store.List(ctx, erasedDir) {
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		id, err := ident.Parse[ident.TenantID](strings.TrimPrefix(info.Name, erasedDir+"/"))
		if err != nil {
			continue
		}
		e := erasure{At: info.Modified}
		raw, err := blob.GetBytes(ctx, r.store, info.Name, smallFile)
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		_ = json.Unmarshal(raw, &e) // that it is there is what counts
		list = append(list, tenant.Erasure{Tenant: id, Account: e.Account, At: e.At})
	}
	return list, nil
}

// Erase makes everything of a tenant unreadable in all snapshots: it notes the tenant in the ledger and deletes its
// keys, then its chunks. It may be repeated. Snapshots go on naming the tenant until they are pruned.
func (r *Repository) Erase(ctx context.Context, e tenant.Erasure) error {
	const op = "relocate.Erase"
	name := erasedDir + "/" + string(e.Tenant)
	_, err := r.store.Stat(ctx, name)
	if fault.CodeOf(err) == "file_missing" {
		var raw []byte
		if raw, err = json.Marshal(erasure{Account: e.Account, At: e.At}); err == nil {
			err = blob.PutBytes(ctx, r.store, name, raw)
		}
	}
	if err != nil {
		return fault.Wrap(op, err)
	}
	r.mu.Lock()
	for place, k := range r.keys {
		if k.owner == string(e.Tenant) {
			delete(r.keys, place)
		}
	}
	r.mu.Unlock()
	for _, dir := range []string{keysDir, chunksDir} {
		if _, err := r.deleteAll(ctx, dir+"/"+string(e.Tenant), nil); err != nil {
			return fault.Wrap(op, err)
		}
	}
	return nil
}

// Empty makes everything unreadable that snapshots hold of a tenant from before a moment, when the owner had all data
// erased and kept the account. It may be repeated.
func (r *Repository) Empty(ctx context.Context, of ident.TenantID, at time.Time) error {
	const op = "relocate.Empty"
	owner := string(of)
	ids, err := r.keyIDs(ctx, keysDir+"/"+owner)
	if err != nil {
		return fault.Wrap(op, err)
	}
	for _, id := range ids[owner] {
		if !madeBefore(id, at) {
			continue
		}
		raw, err := json.Marshal(erasure{At: at})
		if err == nil {
			err = blob.PutBytes(ctx, r.store, emptiedDir+"/"+owner, raw)
		}
		if err == nil {
			err = r.store.Delete(ctx, keyFile(owner, id))
		}
		if err != nil {
			return fault.Wrap(op, err)
		}
		r.mu.Lock()
		delete(r.keys, owner+"/"+id)
		r.mu.Unlock()
	}
	return nil
}

// unreadable reports whether a copy must not be readable any more, because its tenant was erased or emptied since.
func (r *Repository) unreadable(ctx context.Context, d *Database) (bool, error) {
	switch _, err := r.store.Stat(ctx, erasedDir+"/"+d.Owner); {
	case err == nil:
		return true, nil
	case fault.CodeOf(err) != "file_missing":
		return false, err
	}
	raw, err := blob.GetBytes(ctx, r.store, emptiedDir+"/"+d.Owner, smallFile)
	if fault.CodeOf(err) == "file_missing" {
		return false, nil
	}
	var e erasure
	if err == nil && json.Unmarshal(raw, &e) != nil {
		err = damaged(emptiedDir+"/"+d.Owner, nil)
	}
	return err == nil && madeBefore(d.Key, e.At), err
}

// deletesAtOnce is how many files are deleted at the same time.
const deletesAtOnce = 8

// deleteAll deletes the files below a folder that keep does not want.
func (r *Repository) deleteAll(ctx context.Context, folder string, keep func(name string) bool) (gone Size, err error) {
	var doomed []blob.Info
	for info, err := range r.store.List(ctx, folder) {
		if err != nil {
			return gone, err
		}
		if keep == nil || !keep(info.Name) {
			doomed = append(doomed, info)
		}
	}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(deletesAtOnce)
	for _, info := range doomed {
		group.Go(func() error {
			if err := r.store.Delete(ctx, info.Name); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			gone.Files++
			gone.Bytes += info.Size
			return nil
		})
	}
	err = group.Wait()
	return gone, err
}

// Size counts files and their bytes.
type Size struct {
	Files int
	Bytes int64
}
