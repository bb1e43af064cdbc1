package workspace

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

// followMembers lets those in who registered with an address that was invited, and keeps shortcuts as the projects are
// that they lead to, until ctx ends. Any node does it for all.
func (p *Pool) followMembers(ctx context.Context) {
	if p.Grants == nil {
		return
	}
	every(ctx, dueEvery, func() {
		if _, err := p.Grants.AcceptInvitations(ctx, "", p.Now(), dueBatch); err != nil {
			p.Log.Warn("invitations not looked at", "code", fault.CodeOf(err))
		}
		p.lookAtShortcuts(ctx)
	})
}

func (p *Pool) lookAtShortcuts(ctx context.Context) {
	now := p.Now()
	list, err := p.Grants.DueShortcuts(ctx, now, now.Add(3*lookTime), dueBatch)
	if err != nil {
		p.Log.Warn("shortcuts not looked at", "code", fault.CodeOf(err))
		return
	}
	var group errgroup.Group
	group.SetLimit(looksAtOnce)
	for _, d := range list {
		group.Go(func() error {
			p.lookAtShortcut(ctx, d)
			return nil
		})
	}
	_ = group.Wait() // lookAtShortcut says itself what goes wrong
}

// lookAtShortcut makes one shortcut what it should be. Where a tenant is away it is tried again later.
func (p *Pool) lookAtShortcut(ctx context.Context, d sqlstore.DueShortcut) {
	look, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	var err error
	if d.Project == "" {
		err = p.lookAtAllShortcuts(look, d)
	} else {
		err = p.refreshShortcut(look, d)
	}
	if ctx.Err() != nil {
		return // somebody gets it when our time is over
	}
	var again time.Time
	if err != nil && !fault.Is(err, fault.NotFound) { // else it is as it should be, or its account is gone
		again = p.Now().Add(mendPause)
		if fault.Is(err, fault.Internal) {
			p.Log.Warn("shortcut not refreshed", "code", fault.CodeOf(err), "tenant", d.Tenant)
		}
	}
	if err := p.Grants.SettleShortcut(ctx, d, again); err != nil {
		p.Log.Warn("shortcut not settled", "code", fault.CodeOf(err))
	}
}

// refreshShortcut writes into the member's tenant what the project looks like in its owner's, or takes the shortcut away
// where there is no grant, or no project, any more.
func (p *Pool) refreshShortcut(ctx context.Context, d sqlstore.DueShortcut) error {
	grants, err := p.Grants.FindGrants(ctx, d.Account, string(d.Project))
	if err != nil {
		return err
	}
	gone := len(grants) == 0
	var there project.Project
	if !gone {
		there, err = p.findProject(ctx, grants[0].Tenant, d.Project)
		if gone = fault.Is(err, fault.NotFound); gone {
			err = p.endProject(ctx, d.Project)
		}
		if err != nil {
			return err
		}
	}
	ws, err := p.memberOf(ctx, d)
	if err != nil {
		return err
	}
	defer ws.Release()
	if gone {
		return ws.entry.store.DropShortcut(ctx, d.Project)
	}
	there.Role = grants[0].Role
	return ws.entry.store.PutShortcut(ctx, there)
}

// memberOf opens the tenant that has the shortcut. One with the schema of a version before has none, and gets it later.
func (p *Pool) memberOf(ctx context.Context, d sqlstore.DueShortcut) (*Workspace, error) {
	ws, err := p.Acquire(ctx, ident.System(""), d.Tenant)
	if err == nil && ws.Tenant.Schema.Problem != "" {
		ws.Release()
		return nil, Refusal(tenant.Quarantined)
	}
	return ws, err
}

func (p *Pool) findProject(ctx context.Context, in ident.TenantID, id ident.ProjectID) (project.Project, error) {
	ws, err := p.Acquire(ctx, ident.System(""), in)
	if err != nil {
		return project.Project{}, err
	}
	defer ws.Release()
	return ws.entry.store.FindProject(ctx, id)
}

// lookAtAllShortcuts looks at everything about memberships that a tenant has a part of, after it was put back to what it
// was: the shortcuts that it has or should have, and for its own shared projects those of others, and the routes.
func (p *Pool) lookAtAllShortcuts(ctx context.Context, d sqlstore.DueShortcut) error {
	grants, err := p.Grants.GrantsOf(ctx, d.Account)
	if err != nil {
		return err
	}
	ws, err := p.memberOf(ctx, d)
	if err != nil {
		return err
	}
	defer ws.Release()
	list, err := ws.entry.store.Shortcuts(ctx)
	if err != nil {
		return err
	}
	for _, g := range grants {
		if !slices.Contains(list, g.Project) {
			list = append(list, g.Project)
		}
	}
	for _, id := range list {
		one := d
		one.Project = id
		if err := p.refreshShortcut(ctx, one); err != nil {
			return err
		}
	}
	own, err := p.Grants.SharedBy(ctx, d.Tenant)
	for _, id := range own {
		if err == nil {
			err = ws.entry.routeAll(ctx, id)
		}
		if err == nil {
			err = p.Grants.MarkProject(ctx, id, p.Now())
		}
	}
	return err
}
