package project

import (
	"context"
	"encoding/json"
	"reflect"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Service is what doors call. One exists per open tenant, and one more for each guest.
type Service struct {
	store     Store
	sealer    event.Sealer
	pass      access.Pass
	providers []string
	now       func() time.Time
	sharing   Sharing
}

// Sharing hears of what happens to projects, some of which others are members of.
type Sharing interface {
	// Editing is called before a project is edited, Edited when it is.
	Editing(ctx context.Context, id ident.ProjectID)
	Edited(ctx context.Context, id ident.ProjectID)
	// Deleting is called before a project is deleted, Deleted when it is.
	Deleting(ctx context.Context, id ident.ProjectID) error
	Deleted(ctx context.Context, id ident.ProjectID)
}

// New builds the service of the tenant that owner owns. Providers are the names a project may ask for.
func New(store Store, sealer event.Sealer, owner ident.AccountID, providers []string, now func() time.Time) *Service {
	return &Service{store: store, sealer: sealer, pass: access.Owning(owner), providers: providers, now: now}
}

// WithSharing tells x of changes, and returns s. Without it nobody else is a member of anything.
func (s *Service) WithSharing(x Sharing) *Service {
	s.sharing = x
	return s
}

// For is the same service for a guest, whose store is that of the one project.
func (s *Service) For(pass access.Pass, store Store) *Service {
	c := *s
	c.pass, c.store = pass, store
	return &c
}

// CreateInput starts a project.
type CreateInput struct {
	Details
	Once *event.Once
}

// Create adds a project. A repeat of in.Once answers with the first result.
func (s *Service) Create(ctx context.Context, actor ident.Actor, in CreateInput) (Project, error) {
	const op = "project.Create"
	if err := s.pass.Allow(op, actor, access.CreateProject); err != nil {
		return Project{}, err
	}
	d := withDefaults(in.Details)
	if err := s.check(op, d); err != nil {
		return Project{}, err
	}
	now := s.moment()
	p := Project{ID: ident.New[ident.ProjectID](), Details: d, Owner: event.Who{ID: actor.Account, Name: actor.Name},
		Version: 1, CreatedAt: now, UpdatedAt: now}
	if err := in.Once.Keep(s.sealer, p); err != nil {
		return Project{}, err
	}
	c := event.NewChange(actor, now)
	c.Once = in.Once
	c.Add("project.created", string(p.ID), map[string]any{"status": p.Status})
	err := s.store.InsertProject(ctx, p, c)
	if event.Repeated(err) {
		err = in.Once.Replay(ctx, s.store, s.sealer, &p)
	} else if in.Once != nil && fault.Is(err, fault.Forbidden) { // there was room for the first of two
		var was Project
		if in.Once.Replay(ctx, s.store, s.sealer, &was) == nil {
			return s.shown(was), nil
		}
	}
	if err != nil {
		return Project{}, fault.Wrap(op, err)
	}
	return s.shown(p), nil
}

// Find returns one project.
func (s *Service) Find(ctx context.Context, actor ident.Actor, id ident.ProjectID) (Project, error) {
	const op = "project.Find"
	if err := s.pass.Allow(op, actor, access.ReadProject); err != nil {
		return Project{}, err
	}
	p, err := s.store.FindProject(ctx, id)
	return s.shown(p), fault.Wrap(op, err)
}

// List returns a page of projects, newest first, and the next cursor: the tenant's own, and those of others that its owner
// is a member of, as they were a moment ago.
func (s *Service) List(ctx context.Context, actor ident.Actor, q Query) ([]Project, string, error) {
	const op = "project.List"
	if err := s.pass.Allow(op, actor, access.ListProjects); err != nil {
		return nil, "", err
	}
	ps, next, err := s.store.ListProjects(ctx, q)
	for i, p := range ps {
		ps[i] = s.shown(p)
	}
	return ps, next, fault.Wrap(op, err)
}

// Edit lets change alter the details. With ifVersion it is Stale unless that is the current version. An edit that
// alters nothing is no change.
func (s *Service) Edit(ctx context.Context, actor ident.Actor, id ident.ProjectID, ifVersion *int64,
	change func(*Details) error,
) (Project, error) {
	const op = "project.Edit"
	if err := s.pass.Allow(op, actor, access.EditProject); err != nil {
		return Project{}, err
	}
	if s.sharing != nil {
		s.sharing.Editing(ctx, id)
	}
	p, err := s.store.UpdateProject(ctx, id, func(p Project) (Project, event.Change, error) {
		if ifVersion != nil && *ifVersion != p.Version {
			return p, event.Change{}, stale(op)
		}
		d := p.Details
		d.Tags = append([]string(nil), d.Tags...)
		if err := change(&d); err != nil {
			return p, event.Change{}, err
		}
		d = withDefaults(d)
		if err := s.check(op, d); err != nil {
			return p, event.Change{}, err
		}
		if reflect.DeepEqual(d, withDefaults(p.Details)) {
			return p, event.Change{}, nil
		}
		c := event.NewChange(actor, s.moment())
		kind := "project.updated"
		if d.Status != p.Status && d.Status == Archived {
			kind = "project.archived"
		}
		p.Details, p.Version, p.UpdatedAt = d, p.Version+1, c.At
		c.Add(kind, string(id), map[string]any{"version": p.Version, "status": p.Status})
		return p, c, nil
	})
	if err == nil && s.sharing != nil {
		s.sharing.Edited(ctx, id)
	}
	return s.shown(p), fault.Wrap(op, err)
}

// Delete removes a project. Its conversations stay without a project, unless drop is set: then they go too.
func (s *Service) Delete(ctx context.Context, actor ident.Actor, id ident.ProjectID, ifVersion *int64, drop bool) error {
	const op = "project.Delete"
	if err := s.pass.Allow(op, actor, access.DeleteProject); err != nil {
		return err
	}
	if s.sharing != nil {
		if err := s.sharing.Deleting(ctx, id); err != nil {
			return fault.Wrap(op, err)
		}
	}
	err := s.store.DeleteProject(ctx, id, drop, func(p Project, conversations int64) (event.Change, error) {
		if ifVersion != nil && *ifVersion != p.Version {
			return event.Change{}, stale(op)
		}
		c := event.NewChange(actor, s.moment())
		c.Add("project.deleted", string(id), map[string]any{"conversations": conversations, "conversations_deleted": drop})
		return c, nil
	})
	if err == nil && s.sharing != nil {
		s.sharing.Deleted(ctx, id)
	}
	return fault.Wrap(op, err)
}

// shown is the project with what the reader is in it.
func (s *Service) shown(p Project) Project {
	if p.Role == "" {
		p.Role = s.pass.Role
	}
	return p
}

func (s *Service) moment() time.Time { return s.now().UTC().Truncate(time.Microsecond) }

func stale(op string) error {
	return fault.New(fault.Stale, op, "", "somebody changed it since you read it: read it again and repeat your edit")
}

func withDefaults(d Details) Details {
	if d.Status == "" {
		d.Status = Active
	}
	if d.Priority == "" {
		d.Priority = Medium
	}
	if d.Tags == nil {
		d.Tags = []string{}
	}
	if len(d.Settings) == 0 {
		d.Settings = json.RawMessage("{}")
	}
	if d.Deadline != nil {
		t := d.Deadline.UTC().Truncate(time.Microsecond)
		d.Deadline = &t
	}
	return d
}

func (s *Service) check(op string, d Details) error {
	var c fault.Checks
	c.Text("body.name", d.Name, 1, 200)
	c.Text("body.description", d.Description, 0, 10_000)
	c.Text("body.instructions", d.Instructions, 0, 100_000)
	c.OneOf("body.status", string(d.Status), string(Active), string(Paused), string(Completed), string(Archived))
	c.OneOf("body.priority", string(d.Priority), string(Low), string(Medium), string(High), string(Critical))
	c.Text("body.color", d.Color, 0, 32)
	c.Text("body.icon", d.Icon, 0, 64)
	c.Tags("body.tags", d.Tags)
	if d.Provider != "" {
		c.OneOf("body.provider", d.Provider, s.providers...)
	}
	c.Text("body.model", d.Model, 0, 200)
	c.Object("body.settings", d.Settings)
	return c.Err(op)
}
