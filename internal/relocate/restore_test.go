package relocate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/blob"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/words"
	"claude-memory-backend/internal/workspace"
)

// blank makes an installation whose master database has no tables yet, as one is that will be restored into.
func blank(t testing.TB, engine string, keys *seal.Keyring) *site {
	t.Helper()
	s := newSite(t, engine, keys)
	if engine == "postgres" {
		pool, err := sqlstore.NewPostgresPool(t.Context(), seal.Secret(pgtest.URL(t)), 8)
		s.must(err)
		t.Cleanup(pool.Close)
		s.Master = sqlstore.OpenPostgres(pool, sqlstore.PostgresOptions{Schema: "memoryd"})
	} else {
		var err error
		s.Master, err = sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: filepath.Join(s.folder, "restoring.db"), Create: true})
		s.must(err)
		t.Cleanup(func() { _ = s.Master.Close() })
	}
	s.Store = sqlstore.NewMasterStore(s.Master, nil)
	return s
}

// texts are the instructions of a tenant's projects, read as its owner reads them, oldest first.
func (s *site) texts(t tenant.Tenant) (list []string) {
	s.Helper()
	projects := project.New(sqlstore.NewTenantStore(s.open(t.ID), nil), noSealer{}, t.Account, nil, time.Now)
	cursor := ""
	for {
		page, next, err := projects.List(s.Context(), ident.Actor{Account: t.Account}, project.Query{Limit: 100, Cursor: cursor})
		s.must(err)
		for _, p := range page {
			list = append(list, p.Instructions)
		}
		if cursor = next; next == "" {
			slices.Reverse(list)
			return list
		}
	}
}

// A backup made while writers write is restored on any engine, and holds exactly what it held.
func TestRestoreAll(t *testing.T) {
	for _, c := range []struct {
		from, into string
		to         tenant.Kind
	}{{"sqlite", "sqlite", ""}, {"postgres", "postgres", ""}, {"sqlite", "postgres", tenant.Postgres}, {"postgres", "sqlite", tenant.SQLite}} {
		t.Run(c.from+" to "+c.into, func(t *testing.T) {
			keys := keyring(t, siteKey)
			s := newSite(t, c.from, keys)
			full, busy, empty := s.newTenant(), s.newTenant(), s.newTenant()
			s.fill(full)
			db := s.open(busy.ID)
			r := s.repository(folder(t))
			ctx, stop := context.WithCancel(t.Context())
			var writers sync.WaitGroup
			var written atomic.Int64
			for range 4 {
				writers.Go(func() {
					for ctx.Err() == nil {
						if err := writeTo(ctx, db, busy, fmt.Sprint("text ", written.Add(1))); err != nil && ctx.Err() == nil {
							t.Error(err)
						}
					}
				})
			}
			for written.Load() < 20 && !t.Failed() {
				time.Sleep(time.Millisecond)
			}
			m := s.backup(r, BackupOptions{}).Manifest
			stop()
			writers.Wait()

			into := blank(t, c.into, keys)
			report, err := r.RestoreAll(t.Context(), into.Installation, nil, RestoreOptions{To: c.to})
			into.must(err)
			if report.Failed() != 0 || len(report.Tenants) != 3 || report.Snapshot != m.ID {
				t.Fatalf("%+v", report)
			}
			for _, was := range []tenant.Tenant{full, busy, empty} {
				now, err := into.Store.FindTenant(t.Context(), was.ID)
				into.must(err)
				if now.Account != was.Account || now.Placement.Database == was.Placement.Database || now.State != tenant.Active {
					t.Errorf("%+v", now)
				}
				if d, err := into.Store.FindDatabase(t.Context(), was.ID, now.Placement.Database); err != nil || d.Facts.SizeBytes < 1000 {
					t.Errorf("%+v, %v", d.Facts, err)
				}
				if c.to != "" && now.Placement.Kind != c.to {
					t.Errorf("it lies in %s", now.Placement.Kind)
				}
				if !bytes.Equal(into.digest(into.open(was.ID)), m.find(string(was.ID)).Digest) {
					t.Errorf("%s holds something else than the snapshot", was.ID)
				}
				news, err := into.Store.News(t.Context(), time.Now().Add(time.Hour), 100)
				into.must(err)
				if !slices.ContainsFunc(news, func(n sqlstore.News) bool { return n.Tenant == was.ID && n.Event.Type == event.Restored }) {
					t.Errorf("its log is not told: %+v", news)
				}
				// Nothing that a query needs is missing: the same words are found.
				if got, want := into.words(was), s.words(was); !slices.Equal(got, want) || was.ID == full.ID && len(got) < 10 {
					t.Errorf("found %q, not %q", got, want)
				}
				// Numbers that were given out before are not given out again.
				if got, want := into.sequences(was), m.find(string(was.ID)).Sequences; !slices.Equal(got, want) {
					t.Errorf("numbers go on behind %v, not %v", got, want)
				}
				into.write(was, "life goes on")
			}
			if got, err := into.Store.FactsNamed(t.Context(), restoringFact); err != nil || len(got) != 0 {
				t.Errorf("left: %v, %v", got, err)
			}
			if c.from == "sqlite" && c.into == "sqlite" {
				// The same file under the old key would be readable by whoever had that.
				old, err := s.Store.FindTenant(t.Context(), full.ID)
				into.must(err)
				now, err := into.Store.FindTenant(t.Context(), full.ID)
				into.must(err)
				if bytes.Equal(old.Placement.WrappedKey, now.Placement.WrappedKey) {
					t.Error("the file has no key of its own")
				}
			}
			// And it can be backed up again, with the same content.
			again := into.backup(into.repository(folder(t)), BackupOptions{Verify: true}).Manifest
			if !bytes.Equal(again.find(string(empty.ID)).Digest, into.digest(into.open(empty.ID))) {
				t.Error("it is not what it was")
			}
		})
	}
}

func (s *site) sequences(t tenant.Tenant) []sqlstore.Sequence {
	s.Helper()
	snap, err := s.open(t.ID).Snapshot(s.Context())
	s.must(err)
	defer snap.Close()
	list, err := snap.Sequences(s.Context())
	s.must(err)
	return list
}

// words searches a tenant for words of the script.
func (s *site) words(t tenant.Tenant) (list []string) {
	s.Helper()
	store := sqlstore.NewTenantStore(s.open(t.ID), nil)
	for _, text := range []string{"straße", "thread", "ärger", "שלום"} {
		q, err := words.ParseQuery(text)
		s.must(err)
		c := conversation.Candidates{Match: words.Match{All: q.All}, Limit: 1000}
		found, err := store.Ask(s.Context(), conversation.Question{Messages: []conversation.Candidates{c}, Titles: &c})
		s.must(err)
		for _, d := range slices.Concat(found.Found, found.FoundTitles) {
			list = append(list, fmt.Sprint(text, d.N, d.ConversationID, d.MessageID))
		}
	}
	return list
}

// At goes back to what was, and to nothing younger.
func TestRestoreAtAMoment(t *testing.T) {
	s := newSite(t, "sqlite", keyring(t, siteKey))
	home := s.newTenant()
	r := s.repository(folder(t))
	var ended []time.Time
	for _, text := range []string{"one", "two", "three"} {
		s.write(home, text)
		ended = append(ended, s.backup(r, BackupOptions{}).Manifest.Ended)
		time.Sleep(2 * time.Millisecond) // snapshots end at different times on every clock
	}
	for i, want := range [][]string{{"one"}, {"one", "two"}, {"one", "two", "three"}} {
		into := blank(t, "sqlite", s.keys)
		_, err := r.RestoreAll(t.Context(), into.Installation, nil, RestoreOptions{At: ended[i].Add(time.Millisecond)})
		into.must(err)
		if got := into.texts(home); !slices.Equal(got, want) {
			t.Errorf("at %d: %q", i, got)
		}
	}
	_, err := r.RestoreAll(t.Context(), blank(t, "sqlite", s.keys).Installation, nil, RestoreOptions{At: ended[0].Add(-time.Hour)})
	wantCode(t, err, "backup_missing")
}

// An erased tenant never returns: not with the ledger of the repository, not with that of the installation restored
// into, and neither from an older snapshot.
func TestErasedStayErased(t *testing.T) {
	for _, c := range []string{"ledger of the repository", "ledger of the installation"} {
		t.Run(c, func(t *testing.T) {
			s := newSite(t, "sqlite", keyring(t, siteKey))
			gone, stays := s.newTenant(), s.newTenant()
			s.write(gone, "a canary in the cage")
			s.write(stays, "a robin in the hedge")
			store := folder(t)
			r := s.repository(store)
			old := s.backup(r, BackupOptions{}).Manifest
			s.erase(gone)
			var ledger []tenant.Erasure
			if c == "ledger of the repository" {
				s.backup(r, BackupOptions{})
			} else {
				var err error
				ledger, err = Ledger(t.Context(), s.Store)
				s.must(err)
			}
			into := blank(t, "sqlite", s.keys)
			report, err := r.RestoreAll(t.Context(), into.Installation, ledger, RestoreOptions{At: old.Ended})
			into.must(err)
			if report.Snapshot != old.ID || report.Erased != 1 || len(report.Tenants) != 1 || report.Failed() != 0 {
				t.Errorf("%+v", report)
			}
			_, err = into.Store.FindTenant(t.Context(), gone.ID)
			wantCode(t, err, "not_found")
			_, _, err = into.Store.FindAccount(t.Context(), gone.Account)
			wantCode(t, err, "not_found")
			if got := into.texts(stays); !slices.Equal(got, []string{"a robin in the hedge"}) {
				t.Errorf("%q", got)
			}
			// It remembers, for the next restore, and so does the next repository.
			list, err := Ledger(t.Context(), into.Store)
			into.must(err)
			if len(list) != 1 || list[0].Tenant != gone.ID || list[0].Account != gone.Account {
				t.Errorf("%+v", list)
			}
			into.scan("canary")
		})
	}
}

// scan looks for a text in every file of the installation.
func (s *site) scan(text string) {
	s.Helper()
	s.must(filepath.WalkDir(s.folder, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if bytes.Contains(raw, []byte(text)) {
			s.Errorf("%s holds %q", path, text)
		}
		return err
	}))
}

// Damage is refused before anything is used, and concerns the tenant that it is in.
func TestRestoreRefusesDamage(t *testing.T) {
	s := newSite(t, "sqlite", keyring(t, siteKey))
	hurt, well := s.newTenant(), s.newTenant()
	s.write(hurt, lorem(60_000))
	s.write(well, "fine")
	for name, change := range map[string]func([]byte) []byte{
		"a flipped bit":  func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"a cut end":      func(b []byte) []byte { return b[:len(b)-1] },
		"a missing file": func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			store := folder(t)
			r := s.repository(store)
			m := s.backup(r, BackupOptions{}).Manifest
			mangle(t, store, chunkFile(string(hurt.ID), m.find(string(hurt.ID)).Chunks[1].Name), change)
			into := blank(t, "sqlite", s.keys)
			report, err := r.RestoreAll(t.Context(), into.Installation, nil, RestoreOptions{})
			into.must(err)
			for _, one := range report.Tenants {
				if failed := one.Tenant == hurt.ID; failed != (one.Outcome == OutcomeFailed) || failed && fault.CodeOf(one.Err) != "backup_damaged" {
					t.Errorf("%+v", one)
				}
			}
			if got := into.texts(well); !slices.Equal(got, []string{"fine"}) {
				t.Errorf("%q", got)
			}
			if left := into.databases(); len(left) != 1 {
				t.Errorf("files: %q", left)
			}
			mangle(t, store, chunkFile(ownerMaster, m.find(ownerMaster).Chunks[0].Name), change)
			_, err = r.RestoreAll(t.Context(), blank(t, "sqlite", s.keys).Installation, nil, RestoreOptions{})
			wantCode(t, err, "backup_damaged")
		})
	}
}

// databases are the files of tenants.
func (s *site) databases() (list []string) {
	s.Helper()
	err := filepath.WalkDir(filepath.Join(s.folder, "tenants"), func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".db") {
			list = append(list, filepath.Base(path))
		}
		return err
	})
	if !errors.Is(err, os.ErrNotExist) {
		s.must(err)
	}
	return list
}

// What a killed restore made can be found and removed.
func TestAbandonedRestore(t *testing.T) {
	s := newSite(t, "sqlite", keyring(t, siteKey))
	for range 5 {
		s.write(s.newTenant(), "text")
	}
	store := folder(t)
	s.backup(s.repository(store), BackupOptions{})
	into, present := blank(t, "sqlite", s.keys), newSite(t, "sqlite", s.keys)
	ctx, kill := context.WithCancel(t.Context())
	r := into.repository(store)
	_, err := r.RestoreAll(ctx, into.Installation, nil, RestoreOptions{Parallel: 1, Notes: present.Store, Progress: func(done, _ int64, _ string) {
		if done == 3 {
			kill()
		}
	}})
	if !fault.Is(err, fault.Canceled) || len(into.databases()) < 3 {
		t.Fatalf("%v, %q", err, into.databases())
	}
	into.must(Abandon(t.Context(), present.Store, into.Places))
	if left := into.databases(); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	// Also one that has all it needs, and is yet to replace what there is.
	whole := blank(t, "sqlite", s.keys)
	_, err = r.RestoreAll(t.Context(), whole.Installation, nil, RestoreOptions{Notes: present.Store})
	whole.must(err)
	if n := len(whole.databases()); n != 5 {
		t.Fatalf("%d databases", n)
	}
	for range 2 { // the second one has nothing to do
		whole.must(Abandon(t.Context(), present.Store, whole.Places))
	}
	if left := whole.databases(); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	if notes, err := present.Store.FactsNamed(t.Context(), restoringFact); err != nil || len(notes) != 0 {
		t.Errorf("%v, %v", notes, err)
	}
}

// A copy of an earlier version of the schema is restored as it was, and then brought up to date.
func TestRestoreAnEarlierSchema(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			s := newSite(t, engine, keyring(t, siteKey))
			home := s.newTenant()
			db := s.open(home.ID)
			s.must(sqlstore.Remake(t.Context(), db, 1))
			long := strings.Repeat("kept before anybody counted ", 50)
			s.must(db.Write(t.Context(), func(tx *sqlstore.Tx) error {
				return tx.Commit(func(b *sqlstore.Batch) {
					b.Exec(`INSERT INTO systems (hash, body, created_at) VALUES ('h', ?, 0)`, long)
				})
			}))
			old := s.digest(db)
			newest, err := sqlstore.NewestSchema(sqlstore.Tenant)
			s.must(err)
			r := s.repository(folder(t))
			d := s.backup(r, BackupOptions{}).Manifest.find(string(home.ID))
			if d.Schema != 1 || !bytes.Equal(d.Digest, old) {
				t.Fatalf("%+v", d)
			}
			into := blank(t, engine, s.keys)
			report, err := r.RestoreAll(t.Context(), into.Installation, nil, RestoreOptions{})
			into.must(err)
			if report.Failed() != 0 {
				t.Fatalf("%+v", report.Tenants)
			}
			v, err := sqlstore.SchemaVersion(t.Context(), into.open(home.ID))
			into.must(err)
			if v != newest {
				t.Errorf("it is at version %d of %d", v, newest)
			}
			into.write(home, "life goes on")
			// What was kept before anybody counted is counted.
			kept, err := sqlstore.NewTenantStore(into.open(home.ID), nil).Used(t.Context())
			into.must(err)
			if least := int64(len(long) + len("life goes on")); kept.Bytes < least {
				t.Errorf("%+v is counted, at least %d bytes are there", kept, least)
			}
		})
	}
}

// A copied master database speaks of what was going on then, and of copies that were not copied along.
func TestRestoreEndsWhatWasGoingOn(t *testing.T) {
	s := newSite(t, "sqlite", keyring(t, siteKey))
	home := s.newTenant()
	add := func(kind tenant.Kind, state tenant.DatabaseState) ident.DatabaseID {
		id := ident.New[ident.DatabaseID]()
		s.must(s.Store.InsertDatabase(t.Context(), tenant.Database{Tenant: home.ID, Name: "x", State: state, Version: 1,
			Placement: tenant.Placement{Database: id, Kind: kind, Host: "h", WrappedKey: []byte("key")}}, event.Change{}))
		return id
	}
	kept, half, mine, theirs := add(tenant.SQLite, tenant.Original), add(tenant.Postgres, tenant.Filling), add(tenant.External, tenant.Filling), add(tenant.External, tenant.Original)
	j, err := s.service().newJob(KindMove, home, moveInput{})
	s.must(err)
	s.must(s.Store.InsertJob(t.Context(), j, event.Change{}))
	r := s.repository(folder(t))
	s.backup(r, BackupOptions{})
	into := blank(t, "sqlite", s.keys)
	_, err = r.RestoreAll(t.Context(), into.Installation, nil, RestoreOptions{})
	into.must(err)
	now, err := into.Store.FindTenant(t.Context(), home.ID)
	into.must(err)
	left, err := into.Store.FindJob(t.Context(), j.ID)
	into.must(err)
	if now.Job != "" || left.State != job.Failed || left.Failure.Code != "restored" || left.FinishedAt == nil {
		t.Errorf("%+v, %+v", now, left)
	}
	for id, want := range map[ident.DatabaseID]tenant.DatabaseState{kept: tenant.Empty, half: tenant.Empty, mine: tenant.Ready, theirs: tenant.Original,
		now.Placement.Database: tenant.InUse} {
		d, err := into.Store.FindDatabase(t.Context(), home.ID, id)
		into.must(err)
		if d.State != want || want == tenant.Empty && (d.Placement.WrappedKey != nil || d.Placement.Host != "") {
			t.Errorf("%+v, want %s", d, want)
		}
	}
	if _, err := into.Store.FindDatabase(t.Context(), home.ID, home.Placement.Database); !fault.Is(err, fault.NotFound) {
		t.Errorf("the file that was not restored is still listed: %v", err)
	}
}

// What lives in its owner's database stays there, unless it is wanted elsewhere.
func TestRestoreLeavesWhatIsTheOwners(t *testing.T) {
	h := newHouse(t)
	ten, _ := h.newTenant(tenant.External)
	master, err := sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: filepath.Join(h.dir, "master.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	s := &site{TB: t, Installation: Installation{Master: master, Store: h.store, Places: h.places}, keys: h.keys}
	s.write(ten, "one")
	r := s.repository(folder(t))
	m := s.backup(r, BackupOptions{}).Manifest
	for to, want := range map[tenant.Kind]string{"": OutcomeLeft, tenant.SQLite: OutcomeRestored} {
		into := blank(t, "sqlite", h.keys)
		report, err := r.RestoreAll(t.Context(), into.Installation, nil, RestoreOptions{To: to})
		into.must(err)
		now, err := into.Store.FindTenant(t.Context(), ten.ID)
		into.must(err)
		if len(report.Tenants) != 1 || report.Tenants[0].Outcome != want {
			t.Errorf("%+v", report.Tenants)
		}
		if to == "" {
			if now.Placement.Database != ten.Placement.Database || now.Placement.Address != ten.Placement.Address {
				t.Errorf("%+v", now.Placement)
			}
			continue
		}
		if !bytes.Equal(into.digest(into.open(ten.ID)), m.find(string(ten.ID)).Digest) {
			t.Error("it is not what it was")
		}
		if d, err := into.Store.FindDatabase(t.Context(), ten.ID, ten.Placement.Database); err != nil || d.State != tenant.Original {
			t.Errorf("%+v, %v", d, err)
		}
	}
}

// service is what a command works with.
func (s *site) service() *Service {
	return New(Config{Store: s.Store, Places: s.Places, Keys: s.keys, Bus: event.NewLocalBus(), Node: "command"})
}

func TestPutBack(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			s := newSite(t, engine, keyring(t, siteKey))
			home, neighbour := s.newTenant(), s.newTenant()
			s.write(home, "one")
			s.write(neighbour, "mine")
			store := folder(t)
			r := s.repository(store)
			m := s.backup(r, BackupOptions{}).Manifest
			s.write(home, "two")
			old := s.open(home.ID)

			j, err := s.service().PutBack(t.Context(), r, home.ID, RestoreOptions{})
			s.must(err)
			if j.State != job.Completed {
				t.Fatalf("%+v", j.Failure)
			}
			var report PutBackReport
			s.must(json.Unmarshal(j.Report, &report))
			now, err := s.Store.FindTenant(t.Context(), home.ID)
			s.must(err)
			if report.Snapshot != m.ID || report.Rows == 0 || report.Unfenced != "" || now.Placement.Database != report.To || now.Job != "" {
				t.Errorf("%+v, %+v", report, now)
			}
			if got := s.texts(home); !slices.Equal(got, []string{"one"}) {
				t.Errorf("it holds %q", got)
			}
			news, err := s.Store.News(t.Context(), time.Now().Add(time.Hour), 100)
			s.must(err)
			if !slices.ContainsFunc(news, func(n sqlstore.News) bool { return n.Tenant == home.ID && n.Event.Type == event.Restored }) {
				t.Errorf("its log is not told: %+v", news)
			}
			s.write(home, "three")
			if got := s.texts(neighbour); !slices.Equal(got, []string{"mine"}) {
				t.Errorf("the neighbour holds %q", got)
			}
			// The replaced one is kept, and nobody writes there.
			wantCode(t, writeTo(t.Context(), old, home, "lost"), "tenant_moved")
			list, err := s.Store.ListDatabases(t.Context(), home.ID)
			s.must(err)
			if len(list) != 2 || list[0].State != tenant.Original || list[1].State != tenant.InUse || !strings.HasPrefix(list[1].Name, "Restored") {
				t.Errorf("%+v", list)
			}
		})
	}
}

// However a restore of one tenant fails, the tenant stays as it is.
func TestPutBackThatFails(t *testing.T) {
	s := newSite(t, "sqlite", keyring(t, siteKey))
	home := s.newTenant()
	s.write(home, lorem(60_000))
	store := folder(t)
	r := s.repository(store)
	m := s.backup(r, BackupOptions{}).Manifest
	s.write(home, "two")
	before := s.digest(s.open(home.ID))
	untouched := func(t *testing.T) {
		t.Helper()
		now, err := s.Store.FindTenant(t.Context(), home.ID)
		s.must(err)
		if now.Placement.Database != home.Placement.Database || now.Job != "" || !bytes.Equal(s.digest(s.open(home.ID)), before) {
			t.Errorf("%+v", now)
		}
		if left := s.databases(); len(left) != 1 {
			t.Errorf("files: %q", left)
		}
		list, err := s.Store.ListDatabases(t.Context(), home.ID)
		s.must(err)
		if len(list) != 1 {
			t.Errorf("%+v", list)
		}
		s.must(sqlstore.Unfence(t.Context(), s.open(home.ID)))
	}
	t.Run("damage", func(t *testing.T) {
		one := chunkFile(string(home.ID), m.find(string(home.ID)).Chunks[1].Name)
		kept := otherChunk(t, store, one)
		mangle(t, store, one, func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
		j, err := s.service().PutBack(t.Context(), r, home.ID, RestoreOptions{})
		s.must(err)
		if j.State != job.Failed || j.Failure.Code != "backup_damaged" {
			t.Errorf("%+v", j)
		}
		untouched(t)
		s.must(blob.PutBytes(t.Context(), store, one, kept))
	})
	t.Run("an interrupt", func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		j, err := s.service().PutBack(ctx, r, home.ID, RestoreOptions{Progress: func(done, _ int64, _ string) {
			if done == 2 {
				stop()
			}
		}})
		s.must(err)
		if j.State != job.Cancelled {
			t.Errorf("%+v", j)
		}
		untouched(t)
	})
	t.Run("a kill, found by the next", func(t *testing.T) {
		// As a killed command leaves it: claimed, its database noted and half made, the present one fenced.
		svc := s.service()
		in := restoreInput{Snapshot: m.ID, To: ident.New[ident.DatabaseID](), Kind: tenant.SQLite}
		j, err := svc.newJob(KindRestore, home, in)
		s.must(err)
		s.must(s.Store.InsertJob(t.Context(), j, event.Change{}))
		long := time.Now().Add(-time.Hour)
		_, ok, err := s.Store.ClaimJob(t.Context(), job.Claim{Kinds: []string{KindRestore}, Node: "killed", Now: long, Lease: long})
		s.must(err)
		at, err := s.Places.Make(t.Context(), tenant.Placement{Database: in.To, Kind: tenant.SQLite})
		s.must(err)
		s.must(s.Store.InsertDatabase(t.Context(), tenant.Database{Tenant: home.ID, Name: "x", State: tenant.Filling, Placement: at, Version: 1}, event.Change{}))
		s.must(sqlstore.Fence(t.Context(), s.open(home.ID)))
		if !ok || len(s.databases()) != 2 {
			t.Fatal(ok, s.databases())
		}
		now, err := svc.PutBack(t.Context(), r, home.ID, RestoreOptions{})
		s.must(err)
		if now.State != job.Completed {
			t.Fatalf("%+v", now)
		}
		left, err := s.Store.FindJob(t.Context(), j.ID)
		s.must(err)
		if left.State != job.Failed || left.Failure.Code != "restore_interrupted" {
			t.Errorf("%+v", left)
		}
		if files := s.databases(); len(files) != 2 { // the present one and the original
			t.Errorf("files: %q", files)
		}
	})
	t.Run("another job at work", func(t *testing.T) {
		svc := s.service()
		j, err := svc.newJob(KindMove, home, moveInput{})
		s.must(err)
		s.must(s.Store.InsertJob(t.Context(), j, event.Change{}))
		_, err = svc.PutBack(t.Context(), r, home.ID, RestoreOptions{})
		wantCode(t, err, "tenant_busy")
	})
}

// A database that cannot be read is replaced all the same: that is what a backup is for.
func TestPutBackOfABrokenTenant(t *testing.T) {
	for name, breakIt := range map[string]func(t *testing.T, s *site, home tenant.Tenant){
		"its file is gone": func(_ *testing.T, s *site, home tenant.Tenant) { s.must(os.Remove(s.path(home))) },
		"its file is noise": func(_ *testing.T, s *site, home tenant.Tenant) {
			s.must(os.WriteFile(s.path(home), bytes.Repeat([]byte{7}, 1<<16), 0o600))
		},
		"its tables are gone": func(t *testing.T, s *site, home tenant.Tenant) {
			s.must(sqlstore.DropSchema(t.Context(), s.open(home.ID), "t_"+string(home.ID)[4:]))
		},
	} {
		t.Run(name, func(t *testing.T) {
			engine := "sqlite"
			if strings.Contains(name, "tables") {
				engine = "postgres"
			}
			s := newSite(t, engine, keyring(t, siteKey))
			home := s.newTenant()
			s.write(home, "one")
			r := s.repository(folder(t))
			s.backup(r, BackupOptions{})
			breakIt(t, s, home)
			j, err := s.service().PutBack(t.Context(), r, home.ID, RestoreOptions{})
			s.must(err)
			var report PutBackReport
			s.must(json.Unmarshal(j.Report, &report))
			if j.State != job.Completed || report.Unfenced == "" {
				t.Fatalf("%+v, %+v", j, report)
			}
			if got := s.texts(home); !slices.Equal(got, []string{"one"}) {
				t.Errorf("it holds %q", got)
			}
		})
	}
}

func TestPutBackAndErasure(t *testing.T) {
	s := newSite(t, "sqlite", keyring(t, siteKey))
	home := s.newTenant()
	s.write(home, "one")
	r := s.repository(folder(t))
	s.backup(r, BackupOptions{})
	s.must(r.Erase(t.Context(), tenant.Erasure{Tenant: home.ID}))
	_, err := s.service().PutBack(t.Context(), r, home.ID, RestoreOptions{})
	wantCode(t, err, "tenant_erased")
	_, err = s.service().PutBack(t.Context(), r, ident.New[ident.TenantID](), RestoreOptions{})
	wantCode(t, err, "not_found")
}

// Whoever had all data erased and kept the account gets it back from no snapshot: at once, also before the repository
// has heard of it, and after the whole installation was put back. What was backed up since comes back.
func TestEmptiedStayEmptied(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			s := newSite(t, engine, keyring(t, siteKey))
			home, other := s.newTenant(), s.newTenant()
			s.write(home, "a canary in the cage")
			s.write(other, "fine")
			store := folder(t)
			r := s.repository(store)
			old := s.backup(r, BackupOptions{}).Manifest

			_, err := sqlstore.Empty(t.Context(), s.open(home.ID))
			s.must(err)
			svc := s.service()
			j, err := svc.newJob(KindEmpty, home, eraseInput{Asker: asker{Address: "192.0.2.7"}})
			s.must(err)
			s.must(s.Store.InsertJob(t.Context(), j, event.Change{}))
			_, _, err = s.Store.ClaimJob(t.Context(), job.Claim{Kinds: []string{KindEmpty}, Node: "node", Now: time.Now(), Lease: time.Now().Add(time.Minute)})
			s.must(err)
			finished := time.Now().UTC()
			j.State, j.FinishedAt = job.Completed, &finished
			s.must(s.Store.FinishJob(t.Context(), j, "node", event.Change{}))
			known, err := Emptyings(t.Context(), s.Store, "")
			if err != nil || len(known) != 1 || known[0].Tenant != home.ID {
				t.Fatalf("%+v, %v", known, err)
			}

			wantEmpty := func(engine string, emptied []job.Job) *site {
				t.Helper()
				into := blank(t, engine, s.keys)
				restored, err := r.RestoreAll(t.Context(), into.Installation, nil,
					RestoreOptions{At: old.Ended, To: tenant.Kind(engine), Emptied: emptied})
				into.must(err)
				for _, one := range restored.Tenants {
					if emptied := one.Tenant == home.ID; emptied != (one.Outcome == OutcomeEmptied) || one.Outcome == OutcomeFailed {
						t.Errorf("%+v", one)
					}
				}
				if got := into.texts(home); len(got) != 0 {
					t.Errorf("it holds %q", got)
				}
				return into
			}
			beside := func(o RestoreOptions) error {
				_, err := r.RestoreAccount(t.Context(), newSite(t, "sqlite", s.keys).Installation, blank(t, "sqlite", s.keys).Master, home.ID, o)
				return err
			}

			// The repository has not heard of it.
			_, err = svc.PutBack(t.Context(), r, home.ID, RestoreOptions{})
			wantCode(t, err, "tenant_emptied")
			wantCode(t, beside(RestoreOptions{Emptied: known}), "tenant_emptied")
			into := wantEmpty(engine, known)
			_, err = into.service().PutBack(t.Context(), r, home.ID, RestoreOptions{})
			wantCode(t, err, "tenant_emptied")
			kept, err := into.Store.FindJob(t.Context(), j.ID)
			if err != nil || kept.State != job.Completed || len(kept.Input) != 0 {
				t.Errorf("%+v, %v", kept, err)
			}
			// A job that began with it looks again.
			_, err = (&putBack{Service: svc, r: r}).do(t.Context(), &mover{Service: svc, tenant: home},
				restoreInput{Snapshot: old.ID, To: ident.New[ident.DatabaseID](), Kind: home.Placement.Kind})
			wantCode(t, err, "tenant_emptied")

			// Now it has.
			report := s.backup(r, BackupOptions{})
			if report.Erased != 1 {
				t.Errorf("%+v", report)
			}
			if damages, err := r.Verify(t.Context(), old, nil); err != nil || len(damages) != 0 {
				t.Error(damages, err)
			}
			if d := old.find(string(home.ID)); slices.Contains(files(t, store, keysDir), keyFile(d.Owner, d.Key)) {
				t.Error("the old key is still there")
			}
			_, err = svc.PutBack(t.Context(), r, home.ID, RestoreOptions{At: old.Ended})
			wantCode(t, err, "tenant_emptied")
			into = wantEmpty("sqlite", nil)
			into.write(home, "life goes on")

			// What was written and backed up since is nobody's to withhold, however soon that was.
			s.write(home, "life goes on")
			if again := s.backup(r, BackupOptions{}); again.Erased != 0 {
				t.Errorf("%+v", again)
			}
			s.must(beside(RestoreOptions{Emptied: known}))
			j, err = svc.PutBack(t.Context(), r, home.ID, RestoreOptions{})
			if err != nil || j.State != job.Completed {
				t.Fatalf("%+v, %v", j, err)
			}
			if got := s.texts(home); !slices.Equal(got, []string{"life goes on"}) {
				t.Errorf("it holds %q", got)
			}
		})
	}
}

// Whoever has asked for all data to be erased gets it back from no snapshot, though nobody has come to it yet: not where
// the present installation knows of that, nor where the snapshot alone does. The job goes on in the restored installation.
func TestWhatIsToBeEmptiedComesBackEmpty(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			s := newSite(t, engine, keyring(t, siteKey))
			home, other, late := s.newTenant(), s.newTenant(), s.newTenant()
			for _, ten := range []tenant.Tenant{home, other, late} {
				s.write(ten, "a canary in the cage")
			}
			r := s.repository(folder(t))
			before := s.backup(r, BackupOptions{}).Manifest
			ask := func(of tenant.Tenant) job.Job {
				t.Helper()
				j, err := s.service().newJob(KindEmpty, of, eraseInput{Asker: asker{Account: of.Account, Name: "Ada"}})
				s.must(err)
				s.must(s.Store.InsertJob(t.Context(), j, event.Change{}))
				return j
			}
			queued := ask(home)
			during := s.backup(r, BackupOptions{})
			if during.Erased != 0 {
				t.Errorf("%+v: what is yet to be erased was", during)
			}
			// Of this one no snapshot knows. Its owner was frozen since: it would be refused.
			_, err := s.service().SetState(t.Context(), ident.System(""), late.ID, tenant.ReadOnly)
			s.must(err)
			refused := ask(late)
			known, err := Emptyings(t.Context(), s.Store, "")
			s.must(err)

			restore := func(at time.Time, emptied []job.Job) *site {
				t.Helper()
				into := blank(t, engine, s.keys)
				restored, err := r.RestoreAll(t.Context(), into.Installation, nil, RestoreOptions{At: at, To: tenant.Kind(engine), Emptied: emptied})
				into.must(err)
				for _, one := range restored.Tenants {
					if one.Outcome == OutcomeFailed {
						t.Errorf("%+v", one)
					}
				}
				for _, ten := range []tenant.Tenant{other, late} {
					if got := into.texts(ten); !slices.Equal(got, []string{"a canary in the cage"}) {
						t.Errorf("somebody else holds %q", got)
					}
				}
				return into
			}
			empty := func(into *site) {
				t.Helper()
				if got := into.texts(home); len(got) != 0 {
					t.Errorf("it holds %q", got)
				}
				j, err := into.Store.FindJob(t.Context(), queued.ID)
				s.must(err)
				ten, err := into.Store.FindTenant(t.Context(), home.ID)
				s.must(err)
				if j.State != job.Queued || j.Failure != nil || askedBy(j) != home.Account || ten.Job != j.ID {
					t.Errorf("%+v of %+v", j, ten)
				}
			}
			empty(restore(before.Ended, known))
			into := restore(time.Time{}, known)
			empty(into)
			if j, err := into.Store.FindJob(t.Context(), refused.ID); err != nil || j.State != job.Failed || j.Failure.Code != "tenant_read_only" {
				t.Errorf("%+v, %v", j, err)
			}
			empty(restore(time.Time{}, nil)) // the snapshot alone knows

			// What the present installation knows of its end counts.
			_, _, err = s.Store.ClaimJob(t.Context(), job.Claim{Kinds: []string{KindEmpty}, Only: queued.ID, Node: "node", Now: time.Now(), Lease: time.Now().Add(time.Minute)})
			s.must(err)
			now := time.Now().UTC()
			queued.State, queued.FinishedAt, queued.Failure = job.Failed, &now, &job.Failure{Code: "tenant_suspended", Detail: "d"}
			s.must(s.Store.FinishJob(t.Context(), queued, "node", event.Change{}))
			known, err = Emptyings(t.Context(), s.Store, "")
			s.must(err)
			into = restore(time.Time{}, known)
			if got := into.texts(home); !slices.Equal(got, []string{"a canary in the cage"}) {
				t.Errorf("it holds %q", got)
			}
			if j, err := into.Store.FindJob(t.Context(), queued.ID); err != nil || j.State != job.Failed || j.Failure.Code != "tenant_suspended" {
				t.Errorf("%+v, %v", j, err)
			}
		})
	}
}

// Whoever has asked for the account to be erased has it closed and empty after a restore, and the job goes on there to its
// end: where the present installation knows of it, where the snapshot alone does, and where the job was at work meanwhile.
func TestAnAccountToBeErasedStaysSo(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			s := newSite(t, engine, keyring(t, siteKey))
			home, other := s.newTenant(), s.newTenant()
			for _, ten := range []tenant.Tenant{home, other} {
				s.write(ten, "a canary in the cage")
			}
			r := s.repository(folder(t))
			before := s.backup(r, BackupOptions{}).Manifest
			j, err := s.service().Erase(t.Context(), ident.System(""), home.ID, EraseAccount)
			s.must(err)
			if during := s.backup(r, BackupOptions{}); during.Erased != 0 {
				t.Errorf("%+v: what is yet to be erased was", during)
			}
			known, err := Emptyings(t.Context(), s.Store, "")
			if err != nil || len(known) != 1 || known[0].ID != j.ID {
				t.Fatalf("%+v, %v", known, err)
			}

			restore := func(at time.Time, emptied []job.Job) *site {
				t.Helper()
				into := blank(t, engine, s.keys)
				restored, err := r.RestoreAll(t.Context(), into.Installation, nil, RestoreOptions{At: at, To: tenant.Kind(engine), Emptied: emptied})
				into.must(err)
				for _, one := range restored.Tenants {
					if emptied := one.Tenant == home.ID && len(into.texts(home)) == 0; emptied != (one.Outcome == OutcomeEmptied) || one.Outcome == OutcomeFailed {
						t.Errorf("%+v", one)
					}
				}
				if got := into.texts(other); !slices.Equal(got, []string{"a canary in the cage"}) {
					t.Errorf("somebody else holds %q", got)
				}
				return into
			}
			goesOn := func(into *site) {
				t.Helper()
				if got := into.texts(home); len(got) != 0 {
					t.Errorf("it holds %q", got)
				}
				queued, err := into.Store.FindJob(t.Context(), j.ID)
				s.must(err)
				ten, err := into.Store.FindTenant(t.Context(), home.ID)
				s.must(err)
				a, _, err := into.Store.FindAccount(t.Context(), home.Account)
				s.must(err)
				if queued.State != job.Queued || queued.Failure != nil || ten.Job != j.ID || ten.State != tenant.Suspended || a.State != account.Suspended {
					t.Errorf("%+v of %+v of %+v", queued, ten, a)
				}
				svc := into.service()
				svc.Pool = workspace.NewPool(workspace.Config{Directory: into.Store, Notes: into.Store, Master: into.Store, Hints: into.Store,
					Trail: into.Store.Trail(), Placements: into.Places, Bus: svc.Bus, Sealer: into.keys})
				defer func() { s.must(svc.Pool.Close(context.Background())) }()
				done, err := job.NewRunner(job.Config{Store: into.Store, Node: "server", Kinds: svc.Work()}).Do(t.Context(), j.ID)
				if err != nil || done.State != job.Completed {
					t.Fatalf("%+v, %v", done, err)
				}
				if r, err := ReadReceipt(done.Report); err != nil || !svc.Check(r) || r.What != EraseAccount || r.Tenant != home.ID {
					t.Errorf("%s, %v", done.Report, err)
				}
				if _, err := into.Store.FindTenant(t.Context(), home.ID); !fault.Is(err, fault.NotFound) {
					t.Errorf("it is there still: %v", err)
				}
				if list, err := Ledger(t.Context(), into.Store); err != nil || len(list) != 1 || list[0].Tenant != home.ID {
					t.Errorf("the ledger holds %+v, %v", list, err)
				}
				if left, err := Emptyings(t.Context(), into.Store, ""); err != nil || len(left) != 0 {
					t.Errorf("%+v, %v", left, err)
				}
			}
			goesOn(restore(before.Ended, known)) // where the account was open
			goesOn(restore(time.Time{}, known))
			into := restore(time.Time{}, nil)
			for _, at := range []*site{s, into} {
				_, err = at.service().PutBack(t.Context(), r, home.ID, RestoreOptions{})
				wantCode(t, err, "tenant_emptied")
			}
			goesOn(into)
			_, err = r.RestoreAccount(t.Context(), newSite(t, "sqlite", s.keys).Installation, blank(t, "sqlite", s.keys).Master, home.ID,
				RestoreOptions{Emptied: known})
			wantCode(t, err, "tenant_emptied")

			// The job had come so far that there was nothing to copy.
			_, _, err = s.Store.ClaimJob(t.Context(), job.Claim{Kinds: []string{KindErase}, Only: j.ID, Node: "node", Now: time.Now(), Lease: time.Now().Add(time.Minute)})
			s.must(err)
			s.must(s.Places.Destroy(t.Context(), home.Placement))
			first := r
			r = s.repository(folder(t))
			report, err := r.Backup(t.Context(), s.Installation, BackupOptions{})
			s.must(err)
			if d := report.Manifest.find(string(home.ID)); d != nil && d.Stored() {
				t.Fatalf("it was copied: %+v", d)
			}
			goesOn(restore(time.Time{}, nil))
			r = first

			// What the present installation knows of its end counts.
			now := time.Now().UTC()
			j.State, j.FinishedAt, j.Failure = job.Failed, &now, &job.Failure{Code: "internal", Detail: "d"}
			s.must(s.Store.FinishJob(t.Context(), j, "node", event.Change{}))
			known, err = Emptyings(t.Context(), s.Store, "")
			s.must(err)
			into = restore(before.Ended, known)
			if got := into.texts(home); !slices.Equal(got, []string{"a canary in the cage"}) {
				t.Errorf("it holds %q", got)
			}
			if failed, err := into.Store.FindJob(t.Context(), j.ID); err != nil || failed.State != job.Failed {
				t.Errorf("%+v, %v", failed, err)
			}
		})
	}
}

func TestRestoreAccount(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			s := newSite(t, engine, keyring(t, siteKey))
			home, other := s.newTenant(), s.newTenant()
			s.write(home, "one")
			s.write(other, "a canary in the cage")
			r := s.repository(folder(t))
			m := s.backup(r, BackupOptions{}).Manifest
			s.write(home, "two")

			beside, scratch := newSite(t, "sqlite", s.keys), blank(t, "sqlite", s.keys)
			one, err := r.RestoreAccount(t.Context(), beside.Installation, scratch.Master, home.ID, RestoreOptions{})
			s.must(err)
			if one.Rows == 0 || !bytes.Equal(beside.digest(beside.open(home.ID)), m.find(string(home.ID)).Digest) {
				t.Errorf("%+v", one)
			}
			if got := beside.texts(home); !slices.Equal(got, []string{"one"}) {
				t.Errorf("it holds %q", got)
			}
			if got := s.texts(home); !slices.Equal(got, []string{"one", "two"}) {
				t.Errorf("the present one holds %q", got)
			}
			a, hash, err := beside.Store.FindAccount(t.Context(), home.Account)
			s.must(err)
			if a.Email == "" || hash != "none" {
				t.Errorf("%+v %q", a, hash)
			}
			if _, err := beside.Store.FindTenant(t.Context(), other.ID); !fault.Is(err, fault.NotFound) {
				t.Errorf("somebody else's account came along: %v", err)
			}
			beside.scan(string(other.Account))
		})
	}
}
