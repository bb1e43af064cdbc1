package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/relocate"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/workspace"
)

type restoreCmd struct {
	Src    string `arg:"" optional:"" help:"Folder, or s3:// address; BACKUP_URL when it is left out."`
	Tenant string `help:"Only this tenant (its id, or the e-mail address of its account), beside a running server: put it back to what it was."`
	Beside string `help:"With --tenant: leave the present alone, and make an installation of that account in this empty folder."`
	At     string `help:"Go back to this moment (2026-11-25T18:00:00Z): nothing that was written later comes back."`
	To     string `help:"Where restored databases go: sqlite or postgres; left out: where each was." enum:",sqlite,postgres" default:""`
	Yes    bool   `help:"Go on where there is data already. It is kept aside."`
}

// Run restores all, one tenant, or one account into an installation of its own.
func (c restoreCmd) Run(ctx context.Context, p *program) error {
	o := relocate.RestoreOptions{To: tenant.Kind(c.To)}
	if c.At != "" {
		at, err := time.Parse(time.RFC3339, c.At)
		if err != nil {
			return usageError{errors.New("--at needs a moment like 2026-11-25T18:00:00Z")}
		}
		o.At = at
	}
	if _, err := ident.Parse[ident.TenantID](c.Tenant); err != nil && c.Tenant != "" && !strings.Contains(c.Tenant, "@") {
		return usageError{errors.New("--tenant needs the id of a tenant (ten_…), or the e-mail address of its account")}
	}
	if c.Beside != "" && (c.Tenant == "" || c.To == "postgres") {
		return usageError{errors.New("--beside makes an installation of one --tenant, on sqlite")}
	}
	var err error
	if c.Src, err = backupAddress(p, c.Src); err != nil {
		return err
	}
	shown := newProgress(p.stderr)
	defer shown.end()
	o.Progress = shown.show
	log, closeLog := newLog(p.settings, p.stderr)
	defer closeLog()
	switch {
	case c.Beside != "":
		return c.beside(ctx, p, log, o, shown)
	case c.Tenant != "":
		return c.putBack(ctx, p, log, o, shown)
	default:
		return c.all(ctx, p, log, o, shown)
	}
}

// all restores everything into an installation that no server works on. What was there is kept.
func (c restoreCmd) all(ctx context.Context, p *program, log *slog.Logger, o relocate.RestoreOptions, shown *progress) (err error) {
	in, err := openInstall(ctx, p.settings, log, event.NewLocalBus(), owner)
	if err != nil {
		return err
	}
	defer func() { warn(log, "databases", in.close()) }()
	repo, err := openRepository(ctx, c.Src, in.keys, false)
	if err != nil {
		return err
	}
	inhabited, err := in.store.HasAccounts(ctx)
	if err != nil {
		return err
	}
	if inhabited {
		if err := confirmed(p, c.Yes, "there are accounts here, which are replaced by those of the backup"); err != nil {
			return err
		}
	}
	erased, err := relocate.Ledger(ctx, in.store)
	if err != nil {
		return err
	}
	if o.Emptied, err = relocate.Emptyings(ctx, in.store, ""); err != nil {
		return err
	}
	aside, err := in.openAside(ctx, p.settings)
	if err != nil {
		return err
	}
	whole := relocate.Installation{Master: aside, Store: sqlstore.NewMasterStore(aside, nil), Places: in.placements}
	o.Notes = in.store
	report, err := repo.RestoreAll(ctx, whole, erased, o)
	shown.end()
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
		defer cancel()
		return errors.Join(err, relocate.Abandon(undo, in.store, in.placements), in.dropAside(undo, p.settings, aside))
	}
	if err := renameBus(ctx, whole.Store); err != nil {
		return err
	}
	// The restored files are sealed under this one, and what the backup knew of keys is older.
	if err := useKeys(ctx, whole.Store, in.keys); err != nil {
		return err
	}
	kept, err := in.replaceMaster(ctx, p.settings, aside, inhabited)
	if err != nil {
		return err
	}
	writeRestored(p, report)
	if kept != "" {
		fmt.Fprintf(p.stdout, "what was here is kept: %s; its tenants' databases are where they were\n", kept)
	}
	if n := report.Failed(); n > 0 {
		return fmt.Errorf("%d tenants have no data", n)
	}
	return nil
}

func writeRestored(p *program, r *relocate.RestoreReport) {
	w := tabwriter.NewWriter(p.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "TENANT\tOUTCOME\tKIND\tAS OF\tROWS\tDIGEST")
	counts := map[string]int{}
	for _, t := range r.Tenants {
		counts[t.Outcome]++
		at, digest := "-", "-"
		if !t.At.IsZero() {
			at = t.At.Format(time.RFC3339)
		}
		if len(t.Digest) > 0 {
			digest = fmt.Sprintf("%x", t.Digest[:8])
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", t.Tenant, t.Outcome, t.Kind, at, t.Rows, digest)
	}
	_ = w.Flush() // what a terminal does with output is not ours to repair
	for _, t := range r.Tenants {
		if t.Err != nil {
			fmt.Fprintf(p.stderr, "%s has no data: %s\n", t.Tenant, told(t.Err))
		}
	}
	fmt.Fprintf(p.stdout, "snapshot %s: %d tenants restored, %d left in their owners' databases, %d emptied since, %d failed, %d erased and not restored\n",
		r.Snapshot, counts[relocate.OutcomeRestored], counts[relocate.OutcomeLeft], counts[relocate.OutcomeEmptied],
		counts[relocate.OutcomeFailed], r.Erased)
}

// putBack puts one tenant back, beside a running server.
func (c restoreCmd) putBack(ctx context.Context, p *program, log *slog.Logger, o relocate.RestoreOptions, shown *progress) error {
	if err := installed(ctx, p.settings); err != nil {
		return err
	}
	bus := event.NewLocalBus()
	in, err := openInstall(ctx, p.settings, log, bus, guest)
	if err != nil {
		return err
	}
	defer func() { warn(log, "databases", in.close()) }()
	repo, err := openRepository(ctx, c.Src, in.keys, false)
	if err != nil {
		return err
	}
	id, err := in.tenantOf(ctx, c.Tenant)
	if err != nil {
		return err
	}
	if err := refuseErased(ctx, in.store, id); err != nil {
		return err
	}
	if err := confirmed(p, c.Yes, "the present data of "+string(id)+" is replaced, and kept as an original"); err != nil {
		return err
	}
	j, err := newTenants(in, log, bus, nil, "restore "+string(ident.New[ident.EventID]())).PutBack(ctx, repo, id, o)
	shown.end()
	if err != nil {
		return err
	}
	switch j.State {
	case job.Completed:
	case job.Failed:
		return fmt.Errorf("nothing was changed: %s: %s", j.Failure.Code, j.Failure.Detail)
	default:
		return errors.New("nothing was changed: it was interrupted")
	}
	var r relocate.PutBackReport
	if err := json.Unmarshal(j.Report, &r); err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "%s is as it was at %s: %d rows, digest %s, in %s (%s); the replaced database %s is kept as an original\n",
		id, r.At.Format(time.RFC3339), r.Rows, r.Hash[:16], r.To, r.ToKind, r.From)
	if r.Unfenced != "" {
		fmt.Fprintf(p.stdout, "the replaced database could not be read (%s)\n", r.Unfenced)
	}
	return nil
}

// beside makes an installation of one account.
func (c restoreCmd) beside(ctx context.Context, p *program, log *slog.Logger, o relocate.RestoreOptions, shown *progress) (err error) {
	if entries, err := os.ReadDir(c.Beside); err != nil && !errors.Is(err, fs.ErrNotExist) || len(entries) > 0 {
		return usageError{errors.New("--beside needs an empty folder")}
	}
	keys, err := openKeys(p.settings)
	if err != nil {
		return err
	}
	repo, err := openRepository(ctx, c.Src, keys, false)
	if err != nil {
		return err
	}
	id, emptied, err := p.knownHere(ctx, log, c.Tenant)
	if err != nil {
		return err
	}
	o.Emptied = emptied
	if err := os.MkdirAll(c.Beside, 0o700); err != nil {
		return fmt.Errorf("the folder cannot be made: %w", err)
	}
	defer func() {
		if err != nil { // the folder is as empty as it was
			err = errors.Join(err, cleared(c.Beside))
		}
	}()
	in, err := openBeside(ctx, c.Beside, keys)
	if err != nil {
		return err
	}
	scratchPath := filepath.Join(c.Beside, "scratch.db")
	scratch, err := sqlstore.OpenSQLite(ctx, sqlstore.SQLiteOptions{Path: scratchPath, Create: true})
	if err != nil {
		return errors.Join(err, in.Master.Close())
	}
	one, err := repo.RestoreAccount(ctx, in, scratch, id, o)
	shown.end()
	// The copy of the whole master database must not stay.
	if err := errors.Join(err, scratch.Close(), sqlstore.Destroy(scratchPath), in.Master.Close()); err != nil {
		return err
	}
	if made := p.settings.made; len(made) > 0 {
		// Keys that were generated beside the data belong to this data, too.
		raw, err := os.ReadFile(p.settings.storage(devSecrets))
		if err == nil {
			err = writeKept(filepath.Join(c.Beside, devSecrets), raw)
		}
		if err != nil {
			return fmt.Errorf("the generated keys could not be copied: %w", err)
		}
	}
	fmt.Fprintf(p.stdout, "%s as it was at %s: %d rows, digest %x, in %s\n", id, one.At.Format(time.RFC3339), one.Rows, one.Digest[:8], c.Beside)
	fmt.Fprintln(p.stdout, "to look at it, run a server with this STORAGE_PATH, the same MASTER_KEY, another PORT, and no addresses of databases")
	return nil
}

// cleared removes what lies in a folder.
func cleared(folder string) error {
	entries, err := os.ReadDir(folder)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(folder, e.Name())))
	}
	return err
}

func openBeside(ctx context.Context, folder string, keys *seal.Keyring) (in relocate.Installation, err error) {
	in.Master, err = sqlstore.OpenSQLite(ctx, sqlstore.SQLiteOptions{Path: filepath.Join(folder, "master.db"), Create: true})
	if err != nil {
		return in, err
	}
	if _, err = sqlstore.Migrate(ctx, in.Master, sqlstore.Master); err == nil {
		in.Store = sqlstore.NewMasterStore(in.Master, nil)
		in.Places, err = workspace.NewPlacements(ctx, workspace.PlacementsConfig{Root: filepath.Join(folder, "tenants"), Keys: keys})
	}
	if err != nil {
		return in, errors.Join(err, in.Master.Close())
	}
	return in, nil
}

// knownHere is the id of a tenant, and what the installation here, if there is one, remembers of data that its owner had
// erased. It refuses a tenant that is in the ledger there.
func (p *program) knownHere(ctx context.Context, log *slog.Logger, who string) (id ident.TenantID, emptied []job.Job, err error) {
	if _, err := os.Stat(p.settings.storage("master.db")); err != nil && p.settings.secret("MASTER_DATABASE_URL") == "" {
		if strings.Contains(who, "@") {
			return "", nil, usageError{errors.New("no installation here knows this e-mail address: give the id of the tenant (ten_…)")}
		}
		return ident.TenantID(who), nil, nil
	}
	in, err := openInstall(ctx, p.settings, log, event.NewLocalBus(), guest)
	if err != nil {
		return "", nil, err
	}
	defer func() { warn(log, "databases", in.close()) }()
	if id, err = in.tenantOf(ctx, who); err != nil {
		return "", nil, err
	}
	if err := refuseErased(ctx, in.store, id); err != nil {
		return "", nil, err
	}
	emptied, err = relocate.Emptyings(ctx, in.store, id)
	return id, emptied, err
}

// refuseErased is an error when the tenant is in the ledger of those that were erased.
func refuseErased(ctx context.Context, store *sqlstore.MasterStore, id ident.TenantID) error {
	list, err := relocate.Ledger(ctx, store)
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.Tenant == id {
			return errors.New("this tenant was erased and does not come back")
		}
	}
	return nil
}

// The master database that is being restored lies beside the one that there is, under these names, until it is complete.
const (
	asideFile   = "master.restoring.db"
	asideSchema = masterSchema + "_restoring"
)

// openAside makes an empty database beside the master database. What an earlier restore that was killed has left goes
// first.
func (in *install) openAside(ctx context.Context, s *settings) (*sqlstore.DB, error) {
	if err := relocate.Abandon(ctx, in.store, in.placements); err != nil {
		return nil, fmt.Errorf("what an earlier restore left cannot be removed: %w", err)
	}
	for {
		aside, err := in.aside(ctx, s)
		if err != nil {
			return nil, fmt.Errorf("no database can be made beside the master database: %w", err)
		}
		v, err := sqlstore.SchemaVersion(ctx, aside)
		if err != nil {
			return nil, errors.Join(err, aside.Close())
		}
		if v == 0 {
			return aside, nil
		}
		if err := in.dropAside(ctx, s, aside); err != nil {
			return nil, fmt.Errorf("what an earlier restore left cannot be removed: %w", err)
		}
	}
}

func (in *install) aside(ctx context.Context, s *settings) (*sqlstore.DB, error) {
	url := s.secret("MASTER_DATABASE_URL")
	if url == "" {
		db, err := sqlstore.OpenSQLite(ctx, sqlstore.SQLiteOptions{Path: s.storage(asideFile), Create: true,
			Synchronous: s.text("SQLITE_SYNCHRONOUS"), Readers: 4})
		if err == nil {
			in.onClose(db.Close)
		}
		return db, err
	}
	pool, err := sqlstore.NewPostgresPool(ctx, url, 8)
	if err != nil {
		return nil, err
	}
	in.onClose(func() error { pool.Close(); return nil })
	return sqlstore.OpenPostgres(pool, sqlstore.PostgresOptions{Schema: asideSchema}), nil
}

// dropAside removes the database beside the master database.
func (in *install) dropAside(ctx context.Context, s *settings, aside *sqlstore.DB) error {
	if s.secret("MASTER_DATABASE_URL") == "" {
		return errors.Join(aside.Close(), sqlstore.Destroy(s.storage(asideFile)))
	}
	return in.inDatabase(ctx, s, func(db *sqlstore.DB) error { return sqlstore.DropSchema(ctx, db, asideSchema) })
}

// inDatabase works on schemas of the PostgreSQL database that holds the master's.
func (in *install) inDatabase(ctx context.Context, s *settings, do func(*sqlstore.DB) error) error {
	pool, err := sqlstore.NewPostgresPool(ctx, s.secret("MASTER_DATABASE_URL"), 1)
	if err != nil {
		return err
	}
	defer pool.Close()
	return do(sqlstore.OpenPostgres(pool, sqlstore.PostgresOptions{}))
}

// replaceMaster puts the restored master database into the place of the one that there is. That is one step: before it
// the installation is what it was, after it what was restored. What it was is kept if keep says so.
func (in *install) replaceMaster(ctx context.Context, s *settings, aside *sqlstore.DB, keep bool) (kept string, err error) {
	suffix := time.Now().UTC().Format("20060102150405")
	if s.secret("MASTER_DATABASE_URL") != "" {
		name := masterSchema + "_replaced_" + suffix
		err := in.inDatabase(ctx, s, func(db *sqlstore.DB) error {
			if err := sqlstore.ReplaceSchema(ctx, db, asideSchema, masterSchema, name); err != nil || keep {
				return err
			}
			return sqlstore.DropSchema(ctx, db, name) // nobody had an account there
		})
		if !keep {
			name = ""
		}
		return name, err
	}
	if err := errors.Join(aside.Close(), in.master.Close()); err != nil {
		return "", err
	}
	master := s.storage("master.db")
	for _, path := range []string{master, s.storage(asideFile)} {
		// Closing has folded the log into the file. A log that is left would be taken for the other file's.
		if info, err := os.Stat(path + "-wal"); err == nil && info.Size() > 0 {
			return "", fmt.Errorf("%s is still in use by something", path)
		}
	}
	if err := errors.Join(removed(master+"-wal"), removed(master+"-shm")); err != nil {
		return "", err
	}
	if keep {
		kept = s.storage("master.replaced-" + suffix + ".db")
		if err := os.Link(master, kept); err != nil {
			return "", err
		}
	}
	if err := os.Rename(s.storage(asideFile), master); err != nil {
		return "", err
	}
	return kept, syncFolder(s.text("STORAGE_PATH"))
}

func removed(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func syncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// interactive reports whether somebody sits at the other end.
func interactive(in io.Reader) bool {
	f, ok := in.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
