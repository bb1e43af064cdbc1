package relocate

import (
	"context"
	"encoding/json"
	"errors"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/workspace"
)

// What the operator does with tenants. The actor is the system: doors and commands decide who is an operator.

// MoveHosted starts the job that moves a tenant to a hosted place of a kind: of the operator's servers, the emptiest.
func (s *Service) MoveHosted(ctx context.Context, actor ident.Actor, id ident.TenantID, kind tenant.Kind) (job.Job, error) {
	const op = "relocate.MoveHosted"
	t, err := s.own(ctx, op, actor, id)
	if err != nil {
		return job.Job{}, err
	}
	if t.Placement.Kind == kind {
		return job.Job{}, fault.New(fault.Conflict, op, "database_in_use", "the data lives in such a place already")
	}
	d, fresh, err := s.hosted(ctx, t, kind, true)
	if err != nil {
		return job.Job{}, fault.Wrap(op, err)
	}
	return s.start(ctx, actor, id, moveTo{database: d, fresh: fresh})
}

// hosted finds a hosted entry of the tenant for that kind of place which nothing is in, or (with over) the copy that was
// kept or left there. Where there is none it is a fresh one, which is not registered yet.
func (s *Service) hosted(ctx context.Context, t tenant.Tenant, kind tenant.Kind, over bool) (d tenant.Database, fresh bool, err error) {
	list, err := s.Store.ListDatabases(ctx, t.ID)
	if err != nil {
		return tenant.Database{}, false, err
	}
	for _, d := range list {
		fits := d.Placement.Kind == kind && d.ID() != t.Placement.Database &&
			(d.State == tenant.Empty || over && (d.State == tenant.Original || d.State == tenant.Filling))
		if fits {
			return d, false, nil
		}
	}
	now := s.moment()
	return tenant.Database{Tenant: t.ID, Name: "Hosted", State: tenant.Empty, Version: 1, CreatedAt: now, UpdatedAt: now,
		Placement: tenant.Placement{Database: ident.New[ident.DatabaseID](), Kind: kind}}, true, nil
}

// addHosted registers a hosted place with nothing in it.
func (s *Service) addHosted(ctx context.Context, actor ident.Actor, d tenant.Database) error {
	return s.Store.InsertDatabase(ctx, d, created(actor, d))
}

// created is the change that tells of a new configuration.
func created(actor ident.Actor, d tenant.Database) event.Change {
	ch := event.NewChange(actor, d.CreatedAt)
	ch.Add("database.created", string(d.ID()), map[string]any{"kind": KindName(d.Placement.Kind)})
	return ch
}

// Rekey starts the job that writes a tenant's file anew under a new key. The file under the old one is destroyed.
func (s *Service) Rekey(ctx context.Context, actor ident.Actor, id ident.TenantID) (job.Job, error) {
	const op = "relocate.Rekey"
	t, err := s.own(ctx, op, actor, id)
	if err != nil {
		return job.Job{}, err
	}
	if t.Placement.Kind != tenant.SQLite {
		return job.Job{}, fault.New(fault.Conflict, op, "database_not_a_file", "only a hosted SQLite file has a key of its own")
	}
	d, fresh, err := s.hosted(ctx, t, tenant.SQLite, false)
	if err != nil {
		return job.Job{}, fault.Wrap(op, err)
	}
	return s.start(ctx, actor, id, moveTo{database: d, fresh: fresh, discard: true})
}

// rekey is the same inside another job of the tenant, which has saved what it must know.
func (s *Service) rekey(ctx context.Context, run *job.Run, t tenant.Tenant, saved any) error {
	// An earlier try of this job may have left an entry with nothing in it.
	d, fresh, err := s.hosted(ctx, t, tenant.SQLite, false)
	if err == nil && fresh {
		err = s.addHosted(ctx, ident.System(""), d)
	}
	if err != nil {
		return err
	}
	m := &mover{Service: s, run: run, in: moveInput{To: d.ID(), Discard: true}, tenant: t, saved: saved}
	if err := m.do(ctx); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
		defer cancel()
		uerr := run.Held(undo)
		if uerr == nil {
			uerr = m.undo(undo)
		}
		if !errors.Is(uerr, errSwitched) {
			return errors.Join(err, uerr)
		}
		m.arrived(undo)
	}
	_, err = m.finish(ctx)
	return err
}

// SetState makes a tenant active, read-only, suspended or quarantined.
func (s *Service) SetState(ctx context.Context, actor ident.Actor, id ident.TenantID, state tenant.State) (tenant.Tenant, error) {
	const op = "relocate.SetState"
	switch state {
	case tenant.Active, tenant.ReadOnly, tenant.Suspended, tenant.Quarantined:
	default:
		return tenant.Tenant{}, fault.BadInput(op, "state", "must be active, read_only, suspended or quarantined")
	}
	return s.update(ctx, op, actor, id, func(t *tenant.Tenant) map[string]any {
		if t.State == state {
			return nil
		}
		t.State = state
		return map[string]any{"state": state}
	})
}

// SetLimits bounds what a tenant may hold; 0 is the installation's default.
func (s *Service) SetLimits(ctx context.Context, actor ident.Actor, id ident.TenantID, limits tenant.Limits) (tenant.Tenant, error) {
	return s.update(ctx, "relocate.SetLimits", actor, id, func(t *tenant.Tenant) map[string]any {
		if t.Limits == limits {
			return nil
		}
		t.Limits = limits
		return map[string]any{"bytes": limits.Bytes, "messages": limits.Messages}
	})
}

func (s *Service) update(ctx context.Context, op string, actor ident.Actor, id ident.TenantID,
	change func(*tenant.Tenant) map[string]any,
) (tenant.Tenant, error) {
	t, err := s.Store.UpdateTenant(ctx, id, func(t tenant.Tenant) (tenant.Tenant, event.Change, error) {
		ch := event.NewChange(actor, s.moment())
		if facts := change(&t); facts != nil {
			ch.Add(workspace.EventUpdated, string(id), facts)
		}
		return t, ch, nil
	})
	if err == nil && s.Pool != nil {
		if rerr := s.Pool.Refresh(ctx, id); rerr != nil {
			s.Log.Warn("tenant not looked up again", "code", fault.CodeOf(rerr), "tenant", id)
		}
	}
	return t, fault.Wrap(op, err)
}

// RewrapReport is what sealing anew did.
type RewrapReport struct {
	Databases int      `json:"databases"`          // that hold something sealed: keys of files, passwords of users' databases
	Resealed  int      `json:"resealed"`           // of these, and of the keys of snapshots, under an earlier master key until now
	Unopened  []string `json:"unopened,omitempty"` // databases whose secrets no master key that is configured opens
}

// rewrapInput says which master key whoever asks means.
type rewrapInput struct {
	Key string `json:"key"` // its id
}

// Rewrap seals under the current master key whatever is sealed under an earlier one: keys of files and of snapshots, and
// passwords of users' databases. No data is touched. Nothing resealed without an error means that nothing of this needs
// an earlier master key any more. What does not open is left and named, and is an error at the end.
func (s *Service) Rewrap(ctx context.Context) (RewrapReport, error) {
	r, _, unopened, err := s.rewrapOnce(ctx)
	if err == nil {
		err = unopened
	}
	return r, fault.Wrap("relocate.Rewrap", err)
}

// rewrapOnce goes through everything once. missed is how many somebody replaced meanwhile: the next call meets them
// again. unopened is why some do not open, which keeps no other from being sealed anew.
func (s *Service) rewrapOnce(ctx context.Context) (r RewrapReport, missed int, unopened, err error) {
	err = s.Store.EachSealed(ctx, func(d tenant.Database) error {
		r.Databases++
		fresh, changed, err := s.Places.Reseal(d.Placement)
		if err != nil {
			s.Log.Error("a sealed value does not open", "code", fault.CodeOf(err), "tenant", d.Tenant, "database", d.ID())
			if unopened == nil {
				unopened = err
			}
			r.Unopened = append(r.Unopened, string(d.ID()))
			return nil
		}
		if !changed {
			return nil
		}
		done, err := s.Store.Reseal(ctx, d.Placement, fresh)
		switch {
		case done:
			r.Resealed++
		case err == nil:
			missed++
		}
		return err
	})
	if err == nil && s.Snapshots != nil {
		more, serr := s.Snapshots.Rewrap(ctx)
		r.Resealed += more
		unopened, err = errors.Join(unopened, serr), context.Cause(ctx)
	}
	return r, missed, unopened, err
}

// RewrapAll is Rewrap until nothing more is found: what was sealed under an earlier key while it went on is met too, also
// when there is something that does not open. Then the installation's own key stays under the earlier one.
func (s *Service) RewrapAll(ctx context.Context) (RewrapReport, error) {
	total := 0
	if s.Rewrapping != nil {
		if err := s.Rewrapping(ctx); err != nil {
			return RewrapReport{}, fault.Wrap("relocate.RewrapAll", err)
		}
	}
	for {
		r, missed, unopened, err := s.rewrapOnce(ctx)
		total += r.Resealed
		if err == nil && r.Resealed+missed > 0 {
			continue
		}
		if err == nil {
			err = unopened
		}
		if err == nil && s.Rewrapped != nil {
			err = s.Rewrapped(ctx)
		}
		r.Resealed = total
		return r, fault.Wrap("relocate.RewrapAll", err)
	}
}

// StartRewrap starts the job that does so: whoever serves must hold the same master key as whoever asks, or nothing that
// was sealed anew would open there.
func (s *Service) StartRewrap(ctx context.Context, actor ident.Actor) (job.Job, error) {
	const op = "relocate.StartRewrap"
	j, err := s.newJob(KindRewrap, tenant.Tenant{}, rewrapInput{Key: s.Keys.ID()})
	if err != nil {
		return job.Job{}, err
	}
	ch := event.NewChange(actor, j.CreatedAt)
	ch.Add(KindRewrap+"_started", string(j.ID), map[string]any{})
	if err := s.Store.InsertJob(ctx, j, ch); err != nil {
		return job.Job{}, fault.Wrap(op, err)
	}
	s.wake()
	return j, nil
}

// rewrap is the job.
func (s *Service) rewrap(ctx context.Context, run *job.Run) (any, error) {
	const op = "relocate.Rewrap"
	var in rewrapInput
	if err := json.Unmarshal(run.Job.Input, &in); err != nil {
		return nil, fault.Wrap(op, err)
	}
	if in.Key != s.Keys.ID() {
		return nil, fault.New(fault.Conflict, op, "key_differs",
			"the server that is at work has another MASTER_KEY: start it with the new one, and the old one as MASTER_KEY_PREVIOUS")
	}
	r, err := s.RewrapAll(ctx)
	return r, err
}
