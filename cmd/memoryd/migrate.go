package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/relocate"
)

type migrateCmd struct {
	Up  migrateUpCmd  `cmd:"" default:"withargs" hidden:"" help:"Bring databases up to date."`
	New migrateNewCmd `cmd:"" help:"Begin a new step of the schema: write its pair of files, one for each engine."`
}

type migrateUpCmd struct {
	All         bool     `help:"Also every tenant's database, now instead of when it is next opened; beside a running server, too."`
	Tenant      []string `help:"Of the tenants only these: ids, or e-mail addresses of their accounts." placeholder:"WHO"`
	Plan        bool     `help:"Only say what would be done."`
	Canary      int      `help:"Migrate N tenants first, one after the other; the first that fails ends it." placeholder:"N"`
	Parallel    int      `help:"So many tenants at the same time." default:"4" placeholder:"N"`
	MaxFailures string   `help:"Pause when more fail: a share (5%) or a number." default:"5%" placeholder:"RATE|N"`
	Back        bool     `help:"Make tenants again what they were before their last migration, from the snapshots that were taken then."`
	Lose        bool     `help:"With --back: what was written since may be lost."`
	JSON        bool     `name:"json" help:"The report as one JSON object."`
}

// Run migrates the master database, and tenants as far as it is told to.
func (c migrateUpCmd) Run(ctx context.Context, p *program) error {
	many := c.All || len(c.Tenant) > 0
	switch {
	case c.Lose && !c.Back:
		return usageError{errors.New("--lose goes with --back")}
	case c.Back && c.All:
		return usageError{errors.New("--back does not go with --all: it takes all tenants back that can go, or those of --tenant")}
	case c.Back && c.Canary > 0:
		return usageError{errors.New("--canary does not go with --back")}
	case !many && !c.Back && (c.Plan || c.Canary > 0 || c.JSON):
		return usageError{errors.New("--plan, --canary and --json are about tenants: say --all, or --tenant WHO")}
	case c.Canary < 0 || c.Parallel < 1:
		return usageError{errors.New("--canary and --parallel need numbers of tenants")}
	}
	share, count, err := failures(c.MaxFailures)
	if err != nil {
		return usageError{err}
	}
	if !many && !c.Back {
		return migrateMaster(ctx, p)
	}
	if c.Plan {
		pending, err := masterPending(ctx, p.settings)
		if err != nil {
			return err
		}
		if len(pending) > 0 {
			return c.waits(p, pending)
		}
	}
	as := keeper
	if !c.Plan && !c.Back {
		as = owner
	}
	return withTenantsAs(ctx, p, as, func(w *whole) error {
		var ids []ident.TenantID
		for _, who := range c.Tenant {
			t, err := w.find(ctx, who)
			if err != nil {
				return err
			}
			ids = append(ids, t.ID)
		}
		if c.Back {
			return c.back(ctx, p, w, relocate.BackInput{Tenants: ids, Parallel: c.Parallel, Lose: c.Lose, Plan: c.Plan})
		}
		return c.forth(ctx, p, w, relocate.FleetInput{Tenants: ids, Plan: c.Plan, Canary: c.Canary, Parallel: c.Parallel,
			MaxFailures: share, MaxFailed: count, Target: w.in.placements.Newest()})
	})
}

// failures reads how many may fail: a share of all, or a number.
func failures(text string) (share float64, count int64, err error) {
	if percent, ok := strings.CutSuffix(text, "%"); ok {
		share, err = strconv.ParseFloat(percent, 64)
		share /= 100
	} else if strings.Contains(text, ".") {
		share, err = strconv.ParseFloat(text, 64)
	} else {
		count, err = strconv.ParseInt(text, 10, 64)
		if count > 0 {
			share = 1 // only the number counts
		}
	}
	if err != nil || !(share >= 0 && share <= 1) || count < 0 {
		return 0, 0, fmt.Errorf("--max-failures is a share as 5%% or 0.05, or a number of tenants, not %q", text)
	}
	return share, count, nil
}

// migrateMaster brings the master database up to date, which openInstall does.
func migrateMaster(ctx context.Context, p *program) error {
	log, closeLog := newLog(p.settings, p.stderr)
	defer closeLog()
	in, err := openInstall(ctx, p.settings, log, event.NewLocalBus(), owner)
	if err != nil {
		return err
	}
	fmt.Fprintln(p.stdout, "master database: up to date")
	return in.close()
}

// masterPending are the steps that the master database has not had. A plan must not take them.
func masterPending(ctx context.Context, s *settings) (pending []string, err error) {
	url := s.secret("MASTER_DATABASE_URL")
	if _, err := os.Stat(s.storage("master.db")); url == "" && err != nil {
		return nil, errors.New("there is no master database yet: nothing has to be migrated")
	}
	in := &install{}
	defer func() { err = errors.Join(err, in.close()) }()
	if err := in.openMaster(ctx, s, url); err != nil {
		return nil, notOpened("the master database (MASTER_DATABASE_URL)", err)
	}
	in.onClose(in.master.Close)
	at, err := in.lookMaster(ctx)
	return at.Pending, err
}

// waits says that tenants are looked at when the master database, which knows them, is up to date.
func (c migrateUpCmd) waits(p *program, pending []string) error {
	if c.JSON {
		return json.NewEncoder(p.stdout).Encode(map[string]any{"plan": true, "master_steps": pending})
	}
	fmt.Fprintf(p.stdout, "master database: takes %s first; run memoryd migrate, then plan the tenants\n", strings.Join(pending, ", "))
	return nil
}

// forth brings tenants up to date. Looking is done here, which any process may; the work by the server that holds the
// tenants, if one does.
func (c migrateUpCmd) forth(ctx context.Context, p *program, w *whole, in relocate.FleetInput) error {
	var r relocate.FleetReport
	failed := error(nil)
	if c.Plan {
		shown := newProgress(p.stderr)
		seen, err := w.svc.MigrateFleet(ctx, in, shown.show)
		shown.end()
		if err != nil {
			return err
		}
		r = *seen
	} else {
		failed = w.many(ctx, p, relocate.KindFleet, func() (job.Job, error) { return w.svc.StartFleet(ctx, asOperator(), in) }, &r)
		if failed != nil && r.Target == 0 {
			return failed
		}
	}
	if c.JSON {
		if err := json.NewEncoder(p.stdout).Encode(r); err != nil {
			return err
		}
	} else {
		c.tell(p, r)
	}
	switch {
	case failed != nil:
		return failed
	case r.Paused != "":
		return codedError{errors.New("paused: call it again to go on with those that are left"), exitPaused}
	case r.Failed > 0 || c.Plan && len(r.Failures) > 0:
		return codedError{fmt.Errorf("tenants that are not as they should be: %d", max(r.Failed, int64(len(r.Failures)))), exitSome}
	}
	return nil
}

// many starts a job about many tenants, follows it, and reads its report. One of the same kind that is at work already is
// followed instead; one that nobody works on any more is finished first.
func (w *whole) many(ctx context.Context, p *program, kind string, start func() (job.Job, error), report any) error {
	for {
		j, err := start()
		busy := fault.CodeOf(err) == "fleet_busy"
		if err != nil && (!busy || j.Kind != kind && !w.alone) {
			return err
		}
		if busy {
			fmt.Fprintf(p.stderr, "job %s (%s) was asked for before: following it\n", j.ID, j.Kind)
		}
		j, err = w.follow(ctx, p, j)
		if busy && w.alone && ctx.Err() == nil {
			continue // it was left by a process that died
		}
		if len(j.Report) > 0 {
			if err := json.Unmarshal(j.Report, report); err != nil {
				return err
			}
		}
		if j.State == job.Cancelled {
			return codedError{errors.New("it was stopped: call it again to go on"), exitPaused}
		}
		return err
	}
}

// tell prints what was done, or would be.
func (c migrateUpCmd) tell(p *program, r relocate.FleetReport) {
	fmt.Fprintf(p.stdout, "schema: version %d is the newest\n", r.Target)
	if c.Plan {
		fmt.Fprintf(p.stdout, "tenants: %d, of these %d up to date, %d to migrate, %d that cannot be looked at\n", r.Tenants, r.UpToDate, r.Left, r.Failed)
	} else {
		fmt.Fprintf(p.stdout, "tenants: %d, of these %d migrated, %d up to date before, %d failed, %d left\n", r.Tenants, r.Migrated, r.UpToDate, r.Failed, r.Left)
	}
	if len(r.Steps) > 0 {
		fmt.Fprintln(p.stdout, "steps: "+strings.Join(r.Steps, ", "))
	}
	for _, v := range r.Versions {
		fmt.Fprintf(p.stdout, "at version %d: %d\n", v.Version, v.Tenants)
	}
	tellFailures(p, r.Failures)
	if more := r.Failed - int64(len(r.Failures)); more > 0 {
		fmt.Fprintf(p.stdout, "and %d more: memoryd tenant list --problem\n", more)
	}
	if r.Paused != "" {
		fmt.Fprintln(p.stdout, "paused: "+r.Paused)
	}
}

func tellFailures(p *program, list []relocate.FleetFailure) {
	for _, f := range list {
		at := ""
		if f.Step != "" {
			at = " at " + f.Step
		}
		fmt.Fprintf(p.stdout, "%s: %s%s: %s\n    %s\n", f.Tenant, f.Code, at, f.Detail, f.Do)
	}
}

// back makes tenants what they were.
func (c migrateUpCmd) back(ctx context.Context, p *program, w *whole, in relocate.BackInput) error {
	var r relocate.BackReport
	var failed error
	if c.Plan {
		seen, err := w.svc.GoBack(ctx, in, nil)
		if err != nil {
			return err
		}
		r = *seen
	} else {
		failed = w.many(ctx, p, relocate.KindBack, func() (job.Job, error) { return w.svc.StartBack(ctx, asOperator(), in) }, &r)
	}
	switch {
	case failed != nil && r.Tenants == 0 && r.Failed == 0:
		return failed
	case c.JSON:
		if err := json.NewEncoder(p.stdout).Encode(r); err != nil {
			return err
		}
	default:
		tellBack(p, r)
	}
	if r.Newer > 0 && r.Back == 0 && !in.Lose && !c.JSON {
		fmt.Fprintln(p.stdout, "with --lose they go back all the same, without these changes")
	}
	if failed == nil && r.Failed > 0 {
		return codedError{fmt.Errorf("tenants that stayed as they are: %d", r.Failed), exitSome}
	}
	return failed
}

func tellBack(p *program, r relocate.BackReport) {
	for _, d := range r.Details {
		fmt.Fprintf(p.stdout, "%s: from version %d to %d, as of %s", d.Tenant, d.From, d.To, d.At.Format(time.RFC3339))
		if d.Newer > 0 {
			fmt.Fprintf(p.stdout, "; without %d changes made since", d.Newer)
		}
		fmt.Fprintln(p.stdout)
	}
	tellFailures(p, r.Failures)
	fmt.Fprintf(p.stdout, "tenants: %d can go back, %d went back, %d have nothing to go back to, %d failed\n", r.Tenants, r.Back, r.Without, r.Failed)
	if r.Newer > 0 {
		fmt.Fprintf(p.stdout, "written since: %d changes, by %d tenants\n", r.Newer, r.Writers)
	}
	if r.Back > 0 {
		fmt.Fprintln(p.stdout, "they can be read by this version, and used by the one before: install that, or migrate again")
	}
}
