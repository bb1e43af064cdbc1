package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"claude-memory-backend/internal/blob"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/relocate"
	"claude-memory-backend/internal/seal"
)

type backupCmd struct {
	Dest   string `arg:"" optional:"" help:"Folder, or s3:// address; BACKUP_URL when it is left out."`
	Verify bool   `help:"Read back everything that the snapshot relies on, and mend what is damaged; with --list: read every snapshot."`
	Keep   int    `help:"Then keep the newest N snapshots and remove the others."`
	List   bool   `help:"Only list the snapshots." xor:"what"`
	Adopt  bool   `help:"Go on in a repository of another installation, which this one has taken the place of."`
	Prune  bool   `help:"Only remove what --keep does not keep, and what no snapshot needs." xor:"what"`
}

// Run backs up beside a running server, or looks after what is there. A tenant that cannot be read is named and left
// alone; the command then fails at the end, with the snapshot made.
func (c backupCmd) Run(ctx context.Context, p *program) error {
	if c.Keep < 0 {
		return usageError{errors.New("--keep needs a number of snapshots")}
	}
	address, err := backupAddress(p, c.Dest)
	if err != nil {
		return err
	}
	shown := newProgress(p.stderr)
	defer shown.end()
	if c.List || c.Prune {
		keys, err := openKeys(p.settings)
		if err != nil {
			return err
		}
		repo, err := openRepository(ctx, address, keys, false)
		if err != nil {
			return err
		}
		if c.List {
			return c.list(ctx, p, repo, shown)
		}
		return c.prune(ctx, p, repo)
	}
	if err := installed(ctx, p.settings); err != nil {
		return err
	}
	log, closeLog := newLog(p.settings, p.stderr)
	defer closeLog()
	in, err := openInstall(ctx, p.settings, log, event.NewLocalBus(), guest)
	if err != nil {
		return err
	}
	defer func() { warn(log, "databases", in.close()) }()
	repo, err := openRepository(ctx, address, in.keys, true)
	if err != nil {
		return err
	}
	switch err := repo.Claim(ctx, in.lasting.Derive("installation"), c.Adopt); {
	case fault.CodeOf(err) == "backup_repository_other":
		return fmt.Errorf("%w: see that STORAGE_PATH and MASTER_DATABASE_URL are right, or name another place for backups; "+
			"--adopt goes on here with this installation", err)
	case err != nil:
		return err
	}
	report, err := repo.Backup(ctx, in.whole(), relocate.BackupOptions{Version: version(), Verify: c.Verify, Progress: shown.show})
	shown.end()
	if err != nil {
		return err
	}
	writeBackup(p, repo, report)
	if c.Keep > 0 {
		if err := c.prune(ctx, p, repo); err != nil {
			return err
		}
	}
	if n := report.Failed(); n > 0 {
		return fmt.Errorf("%d databases could not be read", n)
	}
	return nil
}

// writeBackup prints what a backup did, a line for each database.
func writeBackup(p *program, repo *relocate.Repository, r *relocate.Report) {
	var rows, bytes int64
	var added relocate.Size
	w := tabwriter.NewWriter(p.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "DATABASE\tKIND\tAS OF\tROWS\tBYTES\tNEW\tDIGEST")
	for _, d := range r.Reports {
		digest, at := "-", "-"
		if d.Stored() {
			digest, at = fmt.Sprintf("%x", d.Digest[:8]), d.At.Format(time.RFC3339)
		}
		kind := string(d.Kind)
		if kind == "" {
			kind = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%s\n", d.Owner, kind, at, d.Count(), d.Bytes, d.New.Bytes, digest)
		rows, bytes = rows+d.Count(), bytes+d.Bytes
		added.Files, added.Bytes = added.Files+d.New.Files, added.Bytes+d.New.Bytes
	}
	_ = w.Flush() // what a terminal does with output is not ours to repair
	for _, d := range r.Reports {
		if d.Err == nil {
			continue
		}
		kept := "there is no copy of it"
		if d.Stored() {
			kept = "its copy of " + d.At.Format(time.RFC3339) + " is kept"
		}
		fmt.Fprintf(p.stderr, "%s was not read (%s): %s\n", d.Owner, kept, told(d.Err))
	}
	for _, text := range r.Warnings {
		fmt.Fprintln(p.stderr, "warning:", text)
	}
	if r.Erased > 0 {
		fmt.Fprintf(p.stdout, "erased: the keys of %d tenants are gone from all snapshots\n", r.Erased)
	}
	fmt.Fprintf(p.stdout, "snapshot %s in %s: %d databases, %d rows, %d bytes; %d new files of %d bytes; %d chunks read back\n",
		r.Manifest.ID, repo, len(r.Reports), rows, bytes, added.Files, added.Bytes, r.Verified)
}

func (c backupCmd) prune(ctx context.Context, p *program, repo *relocate.Repository) error {
	gone, err := repo.Prune(ctx, c.Keep)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "removed: %d snapshots, %d files of %d bytes\n", gone.Snapshots, gone.Files.Files, gone.Files.Bytes)
	return nil
}

// list prints the snapshots, oldest first; with Verify it reads them.
func (c backupCmd) list(ctx context.Context, p *program, repo *relocate.Repository, shown *progress) error {
	list, err := repo.Snapshots(ctx)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(p.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "SNAPSHOT\tSTARTED\tENDED\tTENANTS\tFAILED\tROWS\tBYTES\tSTATE")
	bad := 0
	for _, info := range list {
		m, err := repo.Manifest(ctx, info.ID)
		if fault.CodeOf(err) == "backup_damaged" {
			fmt.Fprintf(w, "%s\t%s\t-\t-\t-\t-\t-\tdamaged\n", info.ID, info.Started.Format(time.RFC3339))
			bad++
			continue
		}
		if err != nil {
			return err
		}
		var rows, bytes int64
		failed, tenants := 0, -1 // without the master database
		for _, d := range m.Databases {
			tenants++
			rows, bytes = rows+d.Count(), bytes+d.Bytes
			if d.Failed != "" {
				failed++
			}
		}
		state := "complete"
		if c.Verify {
			damages, err := repo.Verify(ctx, m, shown.show)
			if err != nil {
				return err
			}
			state = "verified"
			if len(damages) > 0 {
				state, bad = "damaged", bad+1
			}
			shown.end()
			for _, d := range damages {
				fmt.Fprintf(p.stderr, "%s: %s: %s\n", info.ID, d.Owner, told(d.Err))
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\n", m.ID, m.Started.Format(time.RFC3339), m.Ended.Format(time.RFC3339), tenants, failed, rows, bytes, state)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if bad > 0 {
		return fmt.Errorf("%d snapshots are damaged", bad)
	}
	return nil
}

// backupAddress is where backups lie: where the command says, or BACKUP_URL.
func backupAddress(p *program, given string) (string, error) {
	if given == "" {
		given = p.settings.secret("BACKUP_URL").Reveal()
	}
	if given == "" {
		return "", usageError{errors.New("name a folder or an s3:// address for backups, or set BACKUP_URL")}
	}
	if err := blob.Check(given); err != nil {
		return "", usageError{err}
	}
	return given, nil
}

// openRepository opens the backups at an address. Without create it makes nothing there.
func openRepository(ctx context.Context, address string, keys *seal.Keyring, create bool) (*relocate.Repository, error) {
	open := blob.OpenExisting
	if create {
		open = blob.Open
	}
	store, err := open(ctx, address)
	if fault.CodeOf(err) == "file_missing" {
		return nil, errors.New("there are no backups in " + address)
	}
	if err != nil {
		return nil, err
	}
	return relocate.OpenRepository(ctx, store, keys, create)
}

// whole is the installation as backups and restores see it.
func (in *install) whole() relocate.Installation {
	return relocate.Installation{Master: in.master, Store: in.store, Places: in.placements}
}

// confirmed asks whether to go on, where somebody can answer; elsewhere --yes must have been given.
func confirmed(p *program, yes bool, what string) error {
	if yes {
		return nil
	}
	if !interactive(p.stdin) {
		return usageError{errors.New(what + ": say so with --yes")}
	}
	fmt.Fprintf(p.stderr, "%s. Go on? [y/N] ", what)
	var answer string
	if _, err := fmt.Fscanln(p.stdin, &answer); err != nil && !errors.Is(err, io.EOF) || answer != "y" && answer != "yes" {
		return usageError{errors.New("nothing was done")}
	}
	return nil
}
