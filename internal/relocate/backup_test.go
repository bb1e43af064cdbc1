package relocate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claude-memory-backend/internal/blob"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/workspace"
)

var engines = []string{"sqlite", "postgres"}

func TestBackup(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			s := newSite(t, engine, keyring(t, siteKey))
			full, small, empty := s.newTenant(), s.newTenant(), s.newTenant()
			s.fill(full)
			s.write(small, "a canary in the cage", lorem(20_000))
			store := folder(t)
			watch := spyOn(store)
			r := s.repository(watch)

			first := s.backup(r, BackupOptions{Version: "v1", Verify: true})
			t.Run("holds what the databases hold", func(t *testing.T) {
				m := first.Manifest
				if len(m.Databases) != 4 || m.Databases[0].Owner != ownerMaster || first.Failed() != 0 || len(first.Warnings) != 0 {
					t.Fatalf("%+v", first)
				}
				if !bytes.Equal(m.Databases[0].Digest, s.digest(s.Master)) {
					t.Error("the master database's digest is another")
				}
				for _, id := range []ident.TenantID{full.ID, small.ID, empty.ID} {
					d := m.find(string(id))
					if d == nil || !bytes.Equal(d.Digest, s.digest(s.open(id))) || d.Kind != full.Placement.Kind || d.Count() == 0 || d.Schema == 0 {
						t.Errorf("%s: %+v", id, d)
					}
				}
				again, err := r.Manifest(t.Context(), m.ID)
				s.must(err)
				if again.Started.IsZero() || again.Ended.Before(again.Started) || again.Version != "v1" || len(again.Databases) != 4 {
					t.Errorf("%+v", again)
				}
			})
			t.Run("shows nothing to who has no key", func(t *testing.T) {
				for _, name := range files(t, store, "") {
					raw, err := blob.GetBytes(t.Context(), store, name, 1<<30)
					s.must(err)
					for _, secret := range []string{"canary", "Sentence", "@example.com", "projects", "accounts"} {
						if bytes.Contains(raw, []byte(secret)) {
							t.Errorf("%s shows %q", name, secret)
						}
					}
				}
				_, err := OpenRepository(t.Context(), store, keyring(t, otherKey), true)
				wantCode(t, err, "backup_key_unknown")
			})
			t.Run("writes nothing again that did not change", func(t *testing.T) {
				watch.count(chunksDir)
				watch.count(keysDir)
				second := s.backup(r, BackupOptions{})
				if n, k := watch.count(chunksDir), watch.count(keysDir); n != 0 || k != 0 {
					t.Errorf("%d chunks and %d keys were written again", n, k)
				}
				for _, d := range second.Reports {
					if d.New.Files != 0 || !bytes.Equal(d.Digest, first.Manifest.find(d.Owner).Digest) {
						t.Errorf("%s: %+v", d.Owner, d.New)
					}
				}
				if second.Verified == 0 {
					t.Error("nothing was looked at again")
				}
			})
			t.Run("writes only the tenant that changed", func(t *testing.T) {
				s.write(small, "one more")
				third := s.backup(r, BackupOptions{})
				for _, d := range third.Reports {
					if changed := d.Owner == string(small.ID); changed != (d.New.Files > 0) {
						t.Errorf("%s: %d new files", d.Owner, d.New.Files)
					}
				}
			})
		})
	}
}

// While writers write, a backup is one state of each database: between two changes, never in the middle of one.
func TestBackupBesideWriters(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			s := newSite(t, engine, keyring(t, siteKey))
			home := s.newTenant()
			db := s.open(home.ID)
			r := s.repository(folder(t))
			ctx, stop := context.WithCancel(t.Context())
			var written atomic.Int64
			var writers sync.WaitGroup
			for i := range 4 {
				writers.Go(func() {
					for ctx.Err() == nil {
						// Not with ctx: a commit whose caller has gone may still come, after the digest was taken.
						if err := writeTo(t.Context(), db, home, lorem(50+i)); err != nil {
							t.Error(err)
							return
						}
						written.Add(1)
					}
				})
			}
			seen := int64(-1)
			for range 4 {
				// Each round has writes before it and writes beside it.
				for at := written.Load(); written.Load() < at+5 && !t.Failed(); {
					time.Sleep(time.Millisecond)
				}
				before := written.Load()
				d := s.backup(r, BackupOptions{Verify: true}).Manifest.find(string(home.ID))
				tables := map[string]int64{}
				m, err := r.Manifest(t.Context(), newest(t, r))
				s.must(err)
				for i, table := range m.Shapes[d.Shape] {
					tables[table.Name] = d.Rows[i]
				}
				// Each project comes with its event and its entry in one transaction.
				if n := tables["projects"]; n < before || n <= seen || n != tables["events"] || n != tables["audit"] {
					t.Errorf("%d acknowledged before, %v", before, tables)
				}
				seen = tables["projects"]
			}
			stop()
			writers.Wait()
			d := s.backup(r, BackupOptions{}).Manifest.find(string(home.ID))
			if !bytes.Equal(d.Digest, s.digest(db)) {
				t.Error("the digest at rest is another")
			}
		})
	}
}

func newest(t testing.TB, r *Repository) string {
	t.Helper()
	list, err := r.Snapshots(t.Context())
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	return list[len(list)-1].ID
}

// Rows that are added, changed or deleted anywhere change the chunk they lie in and no other.
func TestChunksKeepTheirBounds(t *testing.T) {
	key := newOwnerKey("ten_x", "k", seal.NewKey())
	table := sqlstore.Table{Name: "messages", Key: []string{"n"}, Columns: []sqlstore.Column{{Name: "n", Type: sqlstore.Integer}, {Name: "text", Type: sqlstore.Text}}}
	type chunks map[string]int
	pack := func(rows []sqlstore.Row) chunks {
		all := chunks{}
		p := &packer{key: key, emit: func(name string, content []byte) error {
			all[name] = len(content)
			return unpack([]sqlstore.Table{table}, content, func(sqlstore.Table, []sqlstore.Row, []byte) error { return nil })
		}}
		for _, row := range rows {
			line, err := sqlstore.EncodeRow(nil, table, row)
			if err == nil {
				err = p.add(table.Name, line)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := p.flush(); err != nil {
			t.Fatal(err)
		}
		return all
	}
	var rows []sqlstore.Row
	for i := range 20_000 {
		rows = append(rows, sqlstore.Row{int64(i * 10), lorem(1 + i%40)})
	}
	before := pack(rows)
	bytes := 0
	for _, n := range before {
		bytes += n
	}
	if mean := bytes / len(before); len(before) < 20 || mean < chunkTarget/2 || mean > chunkTarget*2 {
		t.Errorf("%d chunks of %d bytes on average", len(before), mean)
	}
	for name, edit := range map[string]func() []sqlstore.Row{
		"inserted first": func() []sqlstore.Row { return slices.Insert(slices.Clone(rows), 0, sqlstore.Row{int64(-1), "new"}) },
		"inserted in between": func() []sqlstore.Row {
			return slices.Insert(slices.Clone(rows), 10_000, sqlstore.Row{int64(99_999), "new"})
		},
		"appended": func() []sqlstore.Row { return append(slices.Clone(rows), sqlstore.Row{int64(1 << 40), "new"}) },
		"deleted":  func() []sqlstore.Row { return slices.Delete(slices.Clone(rows), 7_000, 7_001) },
		"changed": func() []sqlstore.Row {
			list := slices.Clone(rows)
			list[3_000] = sqlstore.Row{int64(30_000), "another text"}
			return list
		},
	} {
		fresh := 0
		for chunk := range pack(edit()) {
			if before[chunk] == 0 {
				fresh++
			}
		}
		if fresh < 1 || fresh > 2 { // two, when the row was, or became, the end of a chunk
			t.Errorf("%s: %d chunks of %d are new", name, fresh, len(before))
		}
	}
	t.Run("and differ under another key", func(t *testing.T) {
		other := *key
		key = newOwnerKey("ten_x", "k", seal.NewKey())
		defer func() { *key = other }()
		sizes := slices.Sorted(maps.Values(before))
		if slices.Equal(sizes, slices.Sorted(maps.Values(pack(rows)))) {
			t.Error("whoever sees the sizes can tell the text")
		}
	})
}

// Whatever happens to a stored file is found, and said of the right database.
func TestVerifyFindsDamage(t *testing.T) {
	s := newSite(t, "sqlite", keyring(t, siteKey))
	hurt, well := s.newTenant(), s.newTenant()
	s.write(hurt, lorem(60_000))
	s.write(well, lorem(10))
	store := folder(t)
	r := s.repository(store)
	m := s.backup(r, BackupOptions{}).Manifest
	chunks := m.find(string(hurt.ID)).Chunks
	if damages, err := r.Verify(t.Context(), m, nil); err != nil || len(damages) != 0 {
		t.Fatal(damages, err)
	}
	one := chunkFile(string(hurt.ID), chunks[0].Name)
	kept, err := blob.GetBytes(t.Context(), store, one, 1<<30)
	s.must(err)
	for name, change := range map[string]func([]byte) []byte{
		"a flipped bit":  func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"a cut end":      func(b []byte) []byte { return b[:len(b)-1] },
		"nothing left":   func([]byte) []byte { return []byte{} },
		"a missing file": func([]byte) []byte { return nil },
		"another's content": func([]byte) []byte {
			return otherChunk(t, store, chunkFile(string(well.ID), m.find(string(well.ID)).Chunks[0].Name))
		},
	} {
		t.Run(name, func(t *testing.T) {
			mangle(t, store, one, change)
			damages, err := r.Verify(t.Context(), m, nil)
			s.must(err)
			if len(damages) != 1 || damages[0].Owner != string(hurt.ID) || fault.CodeOf(damages[0].Err) != "backup_damaged" {
				t.Errorf("found: %v", damages)
			}
			// A backup that verifies what it relies on mends it, because the rows are still there.
			s.backup(r, BackupOptions{Verify: true})
			if damages, err := r.Verify(t.Context(), m, nil); err != nil || len(damages) != 0 {
				t.Errorf("not mended: %v, %v", damages, err)
			}
			s.must(blob.PutBytes(t.Context(), store, one, kept))
		})
	}
	t.Run("rows left out", func(t *testing.T) {
		short := *m
		short.Databases = slices.Clone(m.Databases)
		short.find(string(hurt.ID)).Chunks = chunks[:len(chunks)-1]
		damages, err := r.Verify(t.Context(), &short, nil)
		s.must(err)
		if len(damages) != 1 || damages[0].Owner != string(hurt.ID) {
			t.Errorf("found: %v", damages)
		}
	})
	t.Run("a damaged manifest", func(t *testing.T) {
		id := newest(t, r)
		mangle(t, store, snapshotsDir+"/"+id, func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
		_, err := r.Manifest(t.Context(), id)
		wantCode(t, err, "backup_damaged")
		_, err = r.Prune(t.Context(), 1)
		wantCode(t, err, "backup_damaged") // nobody knows what it refers to
		if report := s.backup(r, BackupOptions{}); len(report.Warnings) != 1 {
			t.Errorf("warnings: %q", report.Warnings)
		}
	})
}

func otherChunk(t testing.TB, s blob.Store, name string) []byte {
	t.Helper()
	raw, err := blob.GetBytes(t.Context(), s, name, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// A tenant that cannot be read is told of, and its last copy is not lost.
func TestBackupOfABrokenTenant(t *testing.T) {
	s := newSite(t, "sqlite", keyring(t, siteKey))
	broken, never, well := s.newTenant(), s.newTenant(), s.newTenant()
	s.write(broken, "before")
	r := s.repository(folder(t))
	s.must(sqlstore.Destroy(s.path(never)))
	partly := func() *Report {
		t.Helper()
		report, err := r.Backup(t.Context(), s.Installation, BackupOptions{})
		s.must(err)
		return report
	}
	first := partly()
	copied := first.Manifest.find(string(broken.ID))
	if first.Failed() != 1 || first.Manifest.find(string(never.ID)).Stored() || !copied.Stored() {
		t.Fatalf("%+v", first.Reports)
	}
	path := s.path(broken)
	raw, err := os.ReadFile(path)
	s.must(err)
	for i := range raw {
		raw[i] ^= 0x5a
	}
	s.must(os.WriteFile(path, raw, 0o600))
	s.write(well, "goes on")
	second := partly()
	m, err := r.Manifest(t.Context(), second.Manifest.ID)
	s.must(err)
	kept := m.find(string(broken.ID))
	if second.Failed() != 2 || kept.Failed == "" || !kept.At.Equal(copied.At) || !bytes.Equal(kept.Digest, copied.Digest) {
		t.Fatalf("%+v", kept)
	}
	if d := m.find(string(well.ID)); d.Failed != "" || d.Count() == 0 {
		t.Errorf("%+v", d)
	}
	// It outlives the snapshots that made it.
	partly()
	_, err = r.Prune(t.Context(), 1)
	s.must(err)
	m, err = r.Manifest(t.Context(), newest(t, r))
	s.must(err)
	if damages, err := r.Verify(t.Context(), m, nil); err != nil || len(damages) != 0 {
		t.Error(damages, err)
	}
}

// path is the file of a tenant.
func (s *site) path(t tenant.Tenant) string {
	s.Helper()
	found := ""
	s.must(filepath.WalkDir(filepath.Join(s.folder, "tenants"), func(path string, _ os.DirEntry, err error) error {
		if strings.HasSuffix(path, string(t.ID)+".db") {
			found = path
		}
		return err
	}))
	if found == "" {
		s.Fatal("no file")
	}
	return found
}

// However many writes succeed before the storage fails, and wherever the process dies: what was there before can be
// restored, and the next run completes.
func TestBackupThatBreaksOff(t *testing.T) {
	s := newSite(t, "sqlite", keyring(t, siteKey))
	homes := []tenant.Tenant{s.newTenant(), s.newTenant(), s.newTenant(), s.newTenant()}
	s.write(homes[0], lorem(10_000))
	watch := spyOn(folder(t))
	r := s.repository(watch)
	first := s.backup(r, BackupOptions{}).Manifest
	for k := int64(1); ; k++ {
		for _, home := range homes {
			s.write(home, fmt.Sprint(k))
		}
		watch.writes.Store(0)
		watch.fail = func(n int64, _ string) error {
			if n >= k {
				return fault.New(fault.Unavailable, "spy", "storage_failed", "the storage does not work").With(errBroken)
			}
			return nil
		}
		report, err := r.Backup(t.Context(), s.Installation, BackupOptions{})
		watch.fail = nil
		if err == nil {
			if k <= int64(len(homes))+2 {
				t.Fatalf("%d writes were all: %+v", k, report.Manifest)
			}
			break
		}
		if !errors.Is(err, errBroken) {
			t.Fatalf("write %d: %v", k, err)
		}
		list, lerr := r.Snapshots(t.Context())
		s.must(lerr)
		if len(list) != 1 || list[0].ID != first.ID {
			t.Fatalf("write %d: snapshots %v", k, list)
		}
	}
	if damages, err := r.Verify(t.Context(), first, nil); err != nil || len(damages) != 0 {
		t.Error(damages, err)
	}
	// What the failed runs left goes, and nothing else.
	wanted := blobs(t, watch)
	last, err := r.Manifest(t.Context(), newest(t, r))
	s.must(err)
	gone, err := r.Prune(t.Context(), 0)
	s.must(err)
	if gone.Files.Files == 0 || gone.Snapshots != 0 {
		t.Errorf("%+v", gone)
	}
	left := blobs(t, watch)
	if len(left)+gone.Files.Files != len(wanted) {
		t.Errorf("%d files, %d removed, %d left", len(wanted), gone.Files.Files, len(left))
	}
	for _, m := range []*Manifest{first, last} {
		if damages, err := r.Verify(t.Context(), m, nil); err != nil || len(damages) != 0 {
			t.Error(m.ID, damages, err)
		}
	}
}

func TestPrune(t *testing.T) {
	s := newSite(t, "sqlite", keyring(t, siteKey))
	home := s.newTenant()
	r := s.repository(folder(t))
	for i := range 4 {
		s.write(home, lorem(5_000)+fmt.Sprint(i))
		s.backup(r, BackupOptions{})
	}
	list, err := r.Snapshots(t.Context())
	s.must(err)
	gone, err := r.Prune(t.Context(), 2)
	s.must(err)
	if gone.Snapshots != 2 || gone.Files.Files == 0 {
		t.Errorf("%+v", gone)
	}
	left, err := r.Snapshots(t.Context())
	s.must(err)
	if !slices.Equal(left, list[2:]) {
		t.Errorf("left: %v of %v", left, list)
	}
	for _, info := range left {
		m, err := r.Manifest(t.Context(), info.ID)
		s.must(err)
		if damages, err := r.Verify(t.Context(), m, nil); err != nil || len(damages) != 0 {
			t.Error(damages, err)
		}
	}
	if gone, err = r.Prune(t.Context(), 2); err != nil || *gone != (Pruned{}) {
		t.Errorf("again: %+v, %v", gone, err)
	}
}

// Chunks that a run under way relies on are not removed under it, although no snapshot refers to them yet.
func TestPruneBesideABackup(t *testing.T) {
	s := newSite(t, "sqlite", keyring(t, siteKey))
	home := s.newTenant()
	s.write(home, lorem(5_000))
	store := folder(t)
	watch := spyOn(store)
	r := s.repository(watch)
	s.backup(r, BackupOptions{})
	s.must(store.Delete(t.Context(), snapshotsDir+"/"+newest(t, r))) // what it wrote is nobody's now

	pruner := s.repository(store)
	asked := false
	watch.block = func(name string) {
		if !strings.HasPrefix(name, snapshotsDir+"/") {
			return
		}
		asked = true
		_, err := pruner.Prune(t.Context(), 0)
		wantCode(t, err, "backup_busy")
	}
	report := s.backup(r, BackupOptions{Verify: true})
	watch.block = nil
	if !asked {
		t.Fatal("nobody pruned")
	}
	for _, d := range report.Reports {
		if d.New.Files != 0 {
			t.Errorf("%s: the test wants chunks that are there already", d.Owner)
		}
	}
	t.Run("a marker of a dead run is believed for a while only", func(t *testing.T) {
		s.must(blob.PutBytes(t.Context(), store, runningDir+"/"+kindBackup+"-dead", nil))
		_, err := pruner.Prune(t.Context(), 0)
		wantCode(t, err, "backup_busy")
		s.must(os.Chtimes(filepath.Join(store.String(), runningDir, kindBackup+"-dead"), time.Time{}, time.Now().Add(-pruner.lease-time.Minute)))
		_, err = pruner.Prune(t.Context(), 0)
		s.must(err)
		if left := files(t, store, runningDir); len(left) != 0 {
			t.Errorf("left: %q", left)
		}
	})
	t.Run("one that was taken for dead does not complete", func(t *testing.T) {
		before := newest(t, r)
		watch.block = func(name string) {
			if !strings.HasPrefix(name, chunksDir+"/") {
				return
			}
			for _, marker := range files(t, store, runningDir) {
				s.must(store.Delete(t.Context(), marker))
			}
		}
		defer func() { watch.block = nil }()
		s.write(home, "more")
		_, err := r.Backup(t.Context(), s.Installation, BackupOptions{})
		wantCode(t, err, "backup_interrupted")
		if newest(t, r) != before {
			t.Error("it completed")
		}
	})
	t.Run("a backup waits for a prune", func(t *testing.T) {
		r.lease = time.Minute // so that it looks again five times a second, and believes the prune for long enough
		defer func() { r.lease = 10 * time.Minute }()
		_, m, err := pruner.announce(t.Context(), kindPrune)
		s.must(err)
		done := make(chan error, 1)
		waiting := make(chan struct{})
		looks := 0
		watch.listed = func(dir string) {
			if dir != runningDir {
				return
			}
			if looks++; looks == 2 { // it has seen the prune, and looks again
				close(waiting)
			}
		}
		defer func() { watch.listed = nil }()
		go func() {
			_, err := r.Backup(t.Context(), s.Installation, BackupOptions{})
			done <- err
		}()
		<-waiting
		if list, _ := r.Snapshots(t.Context()); len(done) > 0 || len(list) != 1 {
			t.Error("it did not wait")
		}
		s.must(m.withdraw(t.Context()))
		s.must(<-done)
	})
}

// Deleting a tenant's key is enough: nothing of the tenant can be read in any snapshot, whatever else is kept.
func TestEraseInBackups(t *testing.T) {
	s := newSite(t, "sqlite", keyring(t, siteKey))
	gone, stays := s.newTenant(), s.newTenant()
	s.write(gone, "a canary in the cage")
	s.write(stays, "a robin in the hedge")
	store := folder(t)
	r := s.repository(store)
	old := s.backup(r, BackupOptions{}).Manifest

	// A thief copied everything before.
	stolen := folder(t)
	for _, name := range files(t, store, "") {
		raw, err := blob.GetBytes(t.Context(), store, name, 1<<30)
		s.must(err)
		s.must(blob.PutBytes(t.Context(), stolen, name, raw))
	}
	for _, name := range files(t, stolen, keysDir+"/"+string(gone.ID)) {
		s.must(stolen.Delete(t.Context(), name)) // but for this
	}
	thief := s.repository(stolen)
	damages, err := thief.Verify(t.Context(), old, nil)
	s.must(err)
	if len(damages) != 1 || damages[0].Owner != string(gone.ID) || fault.CodeOf(damages[0].Err) != "backup_key_missing" {
		t.Errorf("with all but the key: %v", damages)
	}
	d := old.find(string(gone.ID))
	for _, c := range d.Chunks {
		name := chunkFile(string(gone.ID), c.Name)
		sealed := otherChunk(t, stolen, name)
		for _, owner := range []string{ownerMaster, ownerSnapshots, string(stays.ID)} {
			ids, err := thief.keyIDs(t.Context(), keysDir+"/"+owner)
			s.must(err)
			for _, id := range ids[owner] {
				k, err := thief.key(t.Context(), owner, id)
				s.must(err)
				if _, err := thief.opened(k, name, sealed); err == nil {
					t.Errorf("%s opens with the key of %s", name, owner)
				}
			}
		}
	}

	// The installation erases the tenant; the next run carries that over.
	s.erase(gone)
	report := s.backup(r, BackupOptions{})
	if report.Erased != 1 || report.Manifest.find(string(gone.ID)) != nil || report.Manifest.find(string(stays.ID)) == nil {
		t.Errorf("%+v", report)
	}
	for _, dir := range []string{keysDir, chunksDir} {
		if left := files(t, store, dir+"/"+string(gone.ID)); len(left) != 0 {
			t.Errorf("left: %q", left)
		}
	}
	ledger, err := r.Erasures(t.Context())
	s.must(err)
	if len(ledger) != 1 || ledger[0].Tenant != gone.ID || ledger[0].Account != gone.Account || ledger[0].At.IsZero() {
		t.Errorf("%+v", ledger)
	}
	if report := s.backup(r, BackupOptions{}); report.Erased != 0 {
		t.Error("erased again")
	}
	if damages, err := r.Verify(t.Context(), old, nil); err != nil || len(damages) != 0 {
		t.Errorf("what was erased is not damage: %v, %v", damages, err)
	}
	// A key that somebody puts back goes again.
	s.must(blob.PutBytes(t.Context(), store, keyFile(string(gone.ID), "00"), []byte("x")))
	s.backup(r, BackupOptions{})
	if left := files(t, store, keysDir+"/"+string(gone.ID)); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

// erase takes a tenant out of the installation as its owner's wish does.
func (s *site) erase(t tenant.Tenant) {
	s.Helper()
	now := time.Now().UTC()
	ch := event.NewChange(ident.System(""), now)
	ch.Add("tenant.erased", string(t.ID), nil)
	s.must(s.Store.EraseTenant(s.Context(), tenant.Erasure{Tenant: t.ID, Account: t.Account, At: now}, "", ch))
	s.must(s.Places.Destroy(s.Context(), t.Placement))
}

// A tenant that is erased while its copy is being written leaves nothing that opens.
func TestEraseBesideABackup(t *testing.T) {
	s := newSite(t, "sqlite", keyring(t, siteKey))
	gone := s.newTenant()
	s.write(gone, "a canary in the cage")
	for _, at := range []string{keysDir, chunksDir, snapshotsDir} {
		t.Run("at its "+at, func(t *testing.T) {
			store := folder(t)
			watch := spyOn(store)
			r, other := s.repository(watch), s.repository(store)
			var once sync.Once
			watch.block = func(name string) {
				if strings.HasPrefix(name, at+"/"+string(gone.ID)) || at == snapshotsDir && strings.HasPrefix(name, at) {
					once.Do(func() { s.must(other.Erase(t.Context(), tenant.Erasure{Tenant: gone.ID, At: time.Now()})) })
				}
			}
			_, err := r.Backup(t.Context(), s.Installation, BackupOptions{})
			s.must(err)
			if left := files(t, store, keysDir+"/"+string(gone.ID)); len(left) != 0 {
				t.Errorf("a key is left: %q", left)
			}
			watch.block = nil
			_, err = r.Prune(t.Context(), 0)
			s.must(err)
			if left := files(t, store, chunksDir+"/"+string(gone.ID)); len(left) != 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

func TestMasterKeyRotation(t *testing.T) {
	s := newSite(t, "sqlite", keyring(t, siteKey))
	home := s.newTenant()
	s.write(home, "before the rotation")
	store := folder(t)
	old := s.backup(s.repository(store), BackupOptions{}).Manifest

	rotated, err := OpenRepository(t.Context(), store, keyring(t, otherKey, siteKey), false)
	s.must(err)
	if damages, err := rotated.Verify(t.Context(), old, nil); err != nil || len(damages) != 0 {
		t.Fatal(damages, err)
	}
	before := blobs(t, store)
	s.Places, err = workspace.NewPlacements(t.Context(), workspace.PlacementsConfig{Root: filepath.Join(s.folder, "tenants"), Keys: keyring(t, otherKey, siteKey)})
	s.must(err)
	s.backup(rotated, BackupOptions{})
	after := blobs(t, store)
	for name, sum := range before {
		if moved := after[name] != sum; moved != strings.HasPrefix(name, keysDir+"/") {
			t.Errorf("%s: changed %v", name, moved)
		}
	}
	alone, err := OpenRepository(t.Context(), store, keyring(t, otherKey), false)
	s.must(err)
	if damages, err := alone.Verify(t.Context(), old, nil); err != nil || len(damages) != 0 {
		t.Error(damages, err)
	}
	_, err = OpenRepository(t.Context(), store, keyring(t, siteKey), false)
	wantCode(t, err, "backup_key_unknown")
}

func TestForeignRepositories(t *testing.T) {
	keys := keyring(t, siteKey)
	empty := folder(t)
	_, err := OpenRepository(t.Context(), empty, keys, false)
	wantCode(t, err, "backup_repository_missing")
	if left := files(t, empty, ""); len(left) != 0 {
		t.Errorf("looking made %q", left)
	}
	for name, put := range map[string]map[string]string{
		"backup_repository_foreign": {"photos/cat.jpg": "x"},
		"backup_repository_newer":   {headName: `{"what":"memoryd backups","format":99}`},
	} {
		store := folder(t)
		for file, content := range put {
			if err := blob.PutBytes(t.Context(), store, file, []byte(content)); err != nil {
				t.Fatal(err)
			}
		}
		_, err := OpenRepository(t.Context(), store, keys, true)
		wantCode(t, err, name)
	}
	store := folder(t)
	if err := blob.PutBytes(t.Context(), store, headName, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	_, err = OpenRepository(t.Context(), store, keys, true)
	wantCode(t, err, "backup_repository_foreign")
}
