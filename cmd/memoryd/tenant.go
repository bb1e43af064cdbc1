package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/relocate"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/workspace"
)

type tenantCmd struct {
	List    tenantListCmd    `cmd:"" help:"List tenants with their states and placements."`
	Show    tenantShowCmd    `cmd:"" help:"Show a tenant and its databases."`
	Move    tenantMoveCmd    `cmd:"" help:"Move a tenant to another kind of hosted place, or to one of its databases, while it is used."`
	Rekey   tenantRekeyCmd   `cmd:"" help:"Write a tenant's file anew under a new key."`
	State   tenantStateCmd   `cmd:"" help:"Make a tenant active, read_only, suspended or quarantined."`
	Limit   tenantLimitCmd   `cmd:"" help:"Show or set how much a tenant may keep."`
	Erase   tenantEraseCmd   `cmd:"" help:"Erase an account with everything it wrote, and print a signed receipt."`
	Receipt tenantReceiptCmd `cmd:"" help:"Check the signature of a receipt."`
}

// whole is what a tenant command works with.
type whole struct {
	in   *install
	svc  *relocate.Service
	jobs *job.Runner
	// alone says that no server runs: jobs are done here.
	alone bool
	// working reports whether a server works on these databases; nil where nobody can tell.
	working func() bool
	// absence is how long a job of a server's may be without one before the command ends.
	absence time.Duration
}

// withTenants opens the installation: alone where no server holds the folder, else beside it.
func withTenants(ctx context.Context, p *program, do func(*whole) error) error {
	return withTenantsAs(ctx, p, keeper, do)
}

func withTenantsAs(ctx context.Context, p *program, as access, do func(*whole) error) error {
	if err := installed(ctx, p.settings); err != nil {
		return err
	}
	log, closeLog := newLog(p.settings, p.stderr)
	defer closeLog()
	bus := event.NewLocalBus()
	in, err := openInstall(ctx, p.settings, log, bus, as)
	alone := err == nil && in.sole
	if errors.Is(err, errFolderTaken) {
		in, err = openInstall(ctx, p.settings, log, bus, guest|as&anew)
	}
	if err != nil {
		return err
	}
	defer func() { warn(log, "databases", in.close()) }()
	node := "command " + string(ident.New[ident.EventID]())
	engine := conversation.NewEngine(conversation.Config{Node: node, Sole: alone, Bus: bus, Log: log})
	pool := workspace.NewPool(workspace.Config{Directory: in.store, Notes: in.store, Master: in.store, Grants: in.store, Hints: in.store,
		Trail: in.store.Trail(), Placements: in.placements, Engine: engine, Bus: bus, Sealer: in.keys, Log: log, Sole: alone,
		Limits: defaultLimits(p.settings)})
	defer func() { warn(log, "tenants", pool.Close(context.WithoutCancel(ctx))) }()
	w := &whole{in: in, alone: alone, absence: serverAbsence, svc: newTenants(in, log, bus, pool, node)}
	if in.sole && !alone {
		w.working = func() bool { return folderTaken(p.settings.text("STORAGE_PATH")) }
	}
	w.svc.Spools = discardSpool(p.settings, in.lasting)
	w.jobs = job.NewRunner(job.Config{Store: in.store, Node: node, Sole: alone, Kinds: w.svc.Work(), Left: w.svc.LeftWork(), Log: log})
	return do(w)
}

// errFolderTaken says that a server works in the storage folder.
var errFolderTaken = errors.New("another memoryd already works")

// find takes a tenant's id or the e-mail address of its account.
func (w *whole) find(ctx context.Context, who string) (tenant.Tenant, error) {
	id, err := w.in.tenantOf(ctx, who)
	if err != nil {
		return tenant.Tenant{}, err
	}
	t, err := w.in.store.FindTenant(ctx, id)
	if fault.Is(err, fault.NotFound) {
		return t, fmt.Errorf("there is no tenant %s", who)
	}
	return t, err
}

// tenantOf is the id of a tenant that is named by it, or by the e-mail address of its account.
func (in *install) tenantOf(ctx context.Context, who string) (ident.TenantID, error) {
	if !strings.Contains(who, "@") {
		return ident.TenantID(who), nil
	}
	a, _, err := in.store.FindByEmail(ctx, account.Fold(who))
	if fault.Is(err, fault.NotFound) {
		return "", errors.New("there is no account with this e-mail address")
	}
	return a.Tenant, err
}

// serverPatience is how long a job waits for a server where nobody can tell whether one runs: on PostgreSQL.
const serverPatience = 3 * time.Second

// serverAbsence is how long a server may take to be started again before a command that waits for it ends.
const serverAbsence = 15 * time.Second

// errNobodyWorks says that the server which a job was left to has gone.
var errNobodyWorks = errors.New("no server works here any more")

// follow brings a job to its end: in a server that works beside this command, else here. Interrupting the command leaves
// a server's job running. One that runs here is left to whoever calls again, or, when it is about many tenants, ends with
// what was done.
func (w *whole) follow(ctx context.Context, p *program, j job.Job) (job.Job, error) {
	shown := newProgress(p.stderr)
	defer shown.end()
	doing, many := ctx, j.Kind == relocate.KindFleet || j.Kind == relocate.KindBack
	var patience time.Duration
	switch {
	case many:
		doing = context.WithoutCancel(ctx)
	case !w.alone && j.Kind != relocate.KindRewrap:
		patience = serverPatience
	}
	asked, interrupted := time.Now(), ctx.Done()
	var ended chan error  // while it is done here
	seen := asked         // when somebody worked on it for all that is known
	looked := time.Time{} // when that was last asked of the folder
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		now, err := w.in.store.FindJob(context.WithoutCancel(ctx), j.ID)
		if err != nil {
			return now, err
		}
		shown.show(now.Progress.Done, now.Progress.Total, now.Progress.Unit)
		if now.State.Final() && ended == nil {
			return now, outcome(now)
		}
		free := w.alone || !w.in.sole && (now.State == job.Queued || now.Lease.Before(time.Now()))
		if free && ended == nil && time.Since(asked) >= patience && ctx.Err() == nil {
			ended = make(chan error, 1)
			go func() {
				_, err := w.jobs.Do(doing, j.ID)
				ended <- err
			}()
		}
		idle := now.State == job.Queued || now.Lease.Before(time.Now())
		switch {
		case !idle || w.working == nil:
			seen = time.Now()
		case time.Since(looked) >= min(time.Second, w.absence):
			looked = time.Now()
			if w.working() {
				seen = looked
			} else if time.Since(seen) >= w.absence {
				return now, fmt.Errorf("%w, and job %s waits: start memoryd serve again, which goes on with it",
					errNobodyWorks, j.ID)
			}
		}
		select {
		case err := <-ended:
			ended = nil
			if err != nil && fault.CodeOf(err) != "job_elsewhere" {
				return now, err
			}
		case <-tick.C:
		case <-interrupted:
			switch {
			case ended == nil:
				return now, fmt.Errorf("job %s goes on in the server", j.ID)
			case many:
				if _, err := w.svc.CancelJob(doing, asOperator(), j.ID); err != nil {
					return now, err
				}
			}
			interrupted = nil
		}
		if ended == nil && ctx.Err() != nil && !many {
			return now, fmt.Errorf("job %s is not finished: the next server, or command, goes on with it", j.ID)
		}
	}
}

func outcome(j job.Job) error {
	switch {
	case j.State == job.Completed:
		return nil
	case j.Failure != nil:
		return fmt.Errorf("job %s %s: %s: %s", j.ID, j.State, j.Failure.Code, j.Failure.Detail)
	}
	return fmt.Errorf("job %s is %s", j.ID, j.State)
}

type tenantListCmd struct {
	State   string `help:"Only those in this state: active, read_only, suspended, quarantined or moving." enum:",active,read_only,suspended,quarantined,moving" default:""`
	Problem bool   `help:"Only those whose schema, or database, was not as it should be when it was last looked at."`
	JSON    bool   `name:"json" help:"One JSON object per line."`
}

// Run lists all tenants.
func (c tenantListCmd) Run(ctx context.Context, p *program) error {
	return withTenants(ctx, p, func(w *whole) error {
		out := tabwriter.NewWriter(p.stdout, 0, 4, 2, ' ', 0)
		if !c.JSON {
			fmt.Fprintln(out, "TENANT\tACCOUNT\tSTATE\tPLACE\tSCHEMA\tBYTES\tE-MAIL")
		}
		for after := ident.TenantID(""); ; {
			page, err := w.in.store.ListTenants(ctx, after, 200)
			if err != nil {
				return err
			}
			for _, t := range page {
				after = t.ID
				if c.State != "" && string(t.Shown()) != c.State {
					continue
				}
				facts := w.facts(ctx, t)
				if c.Problem && t.Schema.Problem == "" && facts.Problem == "" {
					continue
				}
				size := facts.SizeBytes
				owner, _, err := w.in.store.FindAccount(ctx, t.Account)
				if err != nil && !fault.Is(err, fault.NotFound) {
					return err
				}
				schema := fmt.Sprint(t.Schema.Version)
				switch {
				case t.Schema.Problem != "":
					schema += " " + t.Schema.Problem
				case facts.Problem != "" && facts.CheckedAt != nil: // it may be well since: nobody looked
					schema += " " + facts.Problem + " (" + facts.CheckedAt.UTC().Format(time.RFC3339) + ")"
				}
				if c.JSON {
					raw, err := json.Marshal(map[string]any{"tenant": t.ID, "account": t.Account, "email": owner.Email, "state": t.Shown(),
						"kind": relocate.KindName(t.Placement.Kind), "database": t.Placement.Database, "schema_version": t.Schema.Version,
						"schema_problem": t.Schema.Problem, "schema_at": t.Schema.At, "database_problem": facts.Problem, "database_checked_at": facts.CheckedAt, "size_bytes": size})
					if err != nil {
						return err
					}
					fmt.Fprintln(p.stdout, string(raw))
					continue
				}
				fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", t.ID, t.Account, t.Shown(), relocate.KindName(t.Placement.Kind), schema, size, owner.Email)
			}
			if len(page) == 0 {
				return out.Flush()
			}
		}
	})
}

// facts are what was last noted of the active database.
func (w *whole) facts(ctx context.Context, t tenant.Tenant) tenant.Facts {
	d, err := w.in.store.FindDatabase(ctx, t.ID, t.Placement.Database)
	if err != nil {
		return tenant.Facts{}
	}
	return d.Facts
}

type tenantShowCmd struct {
	Who string `arg:"" help:"The tenant's id, or the e-mail address of its account."`
}

// Run shows one tenant.
func (c tenantShowCmd) Run(ctx context.Context, p *program) error {
	return withTenants(ctx, p, func(w *whole) error {
		t, err := w.find(ctx, c.Who)
		if err != nil {
			return err
		}
		fmt.Fprintf(p.stdout, "tenant:  %s\naccount: %s\nstate:   %s\n", t.ID, t.Account, t.Shown())
		if err := w.showSchema(ctx, p, t); err != nil {
			return err
		}
		fmt.Fprintf(p.stdout, "may keep: %s\n", limitsAsText(t.Limits, defaultLimits(p.settings)))
		if t.Job != "" {
			fmt.Fprintf(p.stdout, "job:     %s\n", t.Job)
		}
		list, err := w.in.store.ListDatabases(ctx, t.ID)
		if err != nil {
			return err
		}
		out := tabwriter.NewWriter(p.stdout, 0, 4, 2, ' ', 0)
		fmt.Fprintln(out, "DATABASE\tNAME\tKIND\tSTATE\tBYTES")
		for _, d := range list {
			fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%d\n", d.ID(), d.Name, relocate.KindName(d.Placement.Kind), d.State, d.Facts.SizeBytes)
		}
		return out.Flush()
	})
}

// showSchema says how far a tenant's schema is, what is wrong with it, and what it can go back to.
func (w *whole) showSchema(ctx context.Context, p *program, t tenant.Tenant) error {
	fmt.Fprintf(p.stdout, "schema:  version %d of %d", t.Schema.Version, w.in.placements.Newest())
	if !t.Schema.At.IsZero() {
		fmt.Fprintf(p.stdout, ", as of %s", t.Schema.At.Format(time.RFC3339))
	}
	fmt.Fprintln(p.stdout)
	if t.Schema.Problem != "" {
		fmt.Fprintf(p.stdout, "problem: %s: %s\n", t.Schema.Problem, relocate.Remedy(t.Schema.Problem))
	}
	snap, err := w.in.snapshots.Find(ctx, t.ID)
	if fault.CodeOf(err) == "snapshot_missing" {
		return nil
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "kept:    version %d, as of %s (memoryd migrate --back)\n", snap.Schema(), snap.At().Format(time.RFC3339))
	return nil
}

type tenantMoveCmd struct {
	Who string `arg:"" help:"The tenant's id, or the e-mail address of its account."`
	To  string `required:"" help:"sqlite, postgres, or one of the tenant's databases (db_…)."`
}

// Run moves a tenant.
func (c tenantMoveCmd) Run(ctx context.Context, p *program) error {
	return withTenants(ctx, p, func(w *whole) error {
		t, err := w.find(ctx, c.Who)
		if err != nil {
			return err
		}
		var j job.Job
		switch {
		case c.To == string(tenant.SQLite), c.To == string(tenant.Postgres):
			j, err = w.svc.MoveHosted(ctx, asOperator(), t.ID, tenant.Kind(c.To))
		case strings.HasPrefix(c.To, ident.DatabaseID("").Prefix()):
			j, err = w.svc.Activate(ctx, asOperator(), t.ID, ident.DatabaseID(c.To), nil)
			if fault.Is(err, fault.NotFound) {
				return fmt.Errorf("%s has no database %s", t.ID, c.To)
			}
		default:
			return usageError{errors.New("--to is sqlite, postgres, or the id of one of the tenant's databases")}
		}
		if err != nil {
			return err
		}
		r, err := w.moved(ctx, p, j)
		if err != nil {
			return err
		}
		fmt.Fprintf(p.stdout, "moved from %s (%s) to %s (%s): %d rows, requests waited %d ms\n", r.From, r.FromKind, r.To, r.ToKind, r.Rows, r.PausedMS)
		return nil
	})
}

// moved follows a move to its end.
func (w *whole) moved(ctx context.Context, p *program, j job.Job) (r relocate.MoveReport, err error) {
	if j, err = w.follow(ctx, p, j); err != nil {
		return r, err
	}
	return r, json.Unmarshal(j.Report, &r)
}

type tenantRekeyCmd struct {
	Who string `arg:"" help:"The tenant's id, or the e-mail address of its account."`
}

// Run writes a file anew.
func (c tenantRekeyCmd) Run(ctx context.Context, p *program) error {
	return withTenants(ctx, p, func(w *whole) error {
		t, err := w.find(ctx, c.Who)
		if err != nil {
			return err
		}
		j, err := w.svc.Rekey(ctx, asOperator(), t.ID)
		if err != nil {
			return err
		}
		r, err := w.moved(ctx, p, j)
		if err != nil {
			return err
		}
		fmt.Fprintf(p.stdout, "the file of %s was written anew under a new key: %d rows, requests waited %d ms; the file under the old key was destroyed with it (%s, now %s)\n",
			t.ID, r.Rows, r.PausedMS, r.From, r.To)
		return nil
	})
}

type tenantStateCmd struct {
	Who   string `arg:"" help:"The tenant's id, or the e-mail address of its account."`
	State string `arg:"" enum:"active,read_only,suspended,quarantined" help:"active, read_only, suspended or quarantined."`
}

// Run changes a state. Running servers hear of it within a second.
func (c tenantStateCmd) Run(ctx context.Context, p *program) error {
	return withTenants(ctx, p, func(w *whole) error {
		t, err := w.find(ctx, c.Who)
		if err != nil {
			return err
		}
		if t, err = w.svc.SetState(ctx, asOperator(), t.ID, tenant.State(c.State)); err != nil {
			return err
		}
		fmt.Fprintf(p.stdout, "%s is %s\n", t.ID, t.State)
		return nil
	})
}

type tenantEraseCmd struct {
	Who     string `arg:"" help:"The tenant's id, or the e-mail address of its account."`
	Yes     bool   `help:"Erase without asking."`
	Receipt string `help:"Write the receipt to this file too." type:"path"`
}

// Run erases an account.
func (c tenantEraseCmd) Run(ctx context.Context, p *program) error {
	return withTenants(ctx, p, func(w *whole) error {
		t, err := w.find(ctx, c.Who)
		if err != nil {
			return err
		}
		if err := confirmed(p, c.Yes, "the account "+string(t.Account)+" and everything it wrote is erased for good"); err != nil {
			return err
		}
		j, err := w.svc.Erase(ctx, asOperator(), t.ID, relocate.EraseAccount)
		if err != nil {
			return err
		}
		if j, err = w.follow(ctx, p, j); err != nil {
			return err
		}
		fmt.Fprintln(p.stdout, string(j.Report))
		if c.Receipt == "" {
			return nil
		}
		return writeKept(c.Receipt, append(j.Report, '\n'))
	})
}

type tenantReceiptCmd struct {
	File string `arg:"" help:"The receipt, or the whole answer it came in." type:"existingfile"`
}

// Run checks a receipt.
func (c tenantReceiptCmd) Run(ctx context.Context, p *program) error {
	raw, err := os.ReadFile(c.File)
	if err != nil {
		return err
	}
	r, err := relocate.ReadReceipt(raw)
	if err != nil {
		return err
	}
	return withTenants(ctx, p, func(w *whole) error {
		if !w.svc.Check(r) {
			return errors.New("this receipt was not signed by this installation, or was changed since")
		}
		fmt.Fprintf(p.stdout, "the receipt is genuine: %s of %s, %s\n", r.What, r.Tenant, r.At.Format(time.RFC3339))
		return nil
	})
}

// asOperator is who runs these commands.
func asOperator() ident.Actor { return ident.Actor{System: true, Name: "operator"} }
