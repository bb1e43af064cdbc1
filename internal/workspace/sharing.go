package workspace

import (
	"context"
	"errors"
	"slices"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/member"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

// Grants is what the master database knows of members of projects.
type Grants interface {
	member.Store
	FindGrants(ctx context.Context, a ident.AccountID, subject string) ([]access.Grant, error)
	Guests(ctx context.Context, p ident.ProjectID) ([]access.Grant, error)
	DropRoute(ctx context.Context, id ident.ConversationID, from ident.ProjectID, version int64) error
	DropProject(ctx context.Context, p ident.ProjectID, now time.Time) ([]access.Grant, error)
	MarkProject(ctx context.Context, p ident.ProjectID, due time.Time) error
	AcceptInvitations(ctx context.Context, email string, now time.Time, limit int) ([]ident.AccountID, error)
	Shortcuts
}

// Enter acquires the workspace in which a project ("prj_…") or a conversation ("conv_…") is, if the actor may see it: the
// own tenant first, else what the master's routes and grants say. fault.NotFound otherwise. The caller must Release.
func (p *Pool) Enter(ctx context.Context, actor ident.Actor, own ident.TenantID, subject string) (*Workspace, error) {
	ws, err := p.Acquire(ctx, actor, own)
	if err == nil {
		if err = ws.entry.store.Holds(ctx, subject); err == nil {
			return ws, nil
		}
		ws.Release()
	}
	return p.orVisit(ctx, actor, subject, err)
}

// orVisit goes where a subject is that could not be found in the own tenant, for the reason err. Whoever is kept out of
// the own tenant is kept out everywhere.
func (p *Pool) orVisit(ctx context.Context, actor ident.Actor, subject string, err error) (*Workspace, error) {
	if !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Unavailable) {
		return nil, fault.Wrap("workspace.Enter", err)
	}
	ws, verr := p.EnterAsGuest(ctx, actor, subject)
	if fault.Is(verr, fault.NotFound) {
		verr = err // where there is nothing, the own tenant has the last word
	}
	return ws, fault.Wrap("workspace.Enter", verr)
}

// Visit acquires the workspace of somebody else in which a project or a conversation is, as a guest: what the Workspace
// gives is the one project, as far as the actor's role in it goes. The master is asked every time, so that who was a
// member until a moment ago is not let in by any node. fault.NotFound: the actor is no member. The caller must Release.
func (p *Pool) Visit(ctx context.Context, actor ident.Actor, subject string) (*Workspace, error) {
	const op = "workspace.Visit"
	if p.Grants == nil || actor.System || actor.Account == "" {
		return nil, fault.Missing(op)
	}
	list, err := p.Grants.FindGrants(ctx, actor.Account, subject)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	for _, g := range list {
		ws, err := p.visit(ctx, actor, subject, g)
		if err == nil && len(list) > 1 { // a conversation that moved: it is in one of these
			err = ws.still(ctx)
		}
		if err == nil {
			return ws, nil
		}
		if !fault.Is(err, fault.NotFound) {
			return nil, fault.Wrap(op, err)
		}
	}
	return nil, fault.Missing(op)
}

// EnterAsGuest is Visit for who is shown something without asking for it once more: the owner's database is asked, too,
// whether the subject is in the project, since a route can be old.
func (p *Pool) EnterAsGuest(ctx context.Context, actor ident.Actor, subject string) (*Workspace, error) {
	ws, err := p.Visit(ctx, actor, subject)
	if err == nil {
		err = ws.still(ctx)
	}
	if err != nil {
		return nil, fault.Wrap("workspace.EnterAsGuest", err)
	}
	return ws, nil
}

// still asks the database of a guest's workspace whether it has what the guest came for; if not, it releases the workspace.
func (w *Workspace) still(ctx context.Context) error {
	err := w.entry.store.Only(w.Pass.Project).Holds(ctx, w.subject)
	if err != nil {
		w.Release()
	}
	return err
}

func (p *Pool) visit(ctx context.Context, actor ident.Actor, subject string, g access.Grant) (*Workspace, error) {
	e, waited, err := p.acquire(ctx, g.Tenant)
	if err != nil {
		return nil, err
	}
	t := p.tenantOf(e)
	if t.State == tenant.Suspended {
		p.release(e)
		return nil, fault.New(fault.Forbidden, "workspace.Visit", "tenant_suspended", "the data of this project's owner is suspended")
	}
	pass, store := g.Pass(), e.store.Only(g.Project)
	return &Workspace{Tenant: t, Pass: pass, Projects: e.ws.Projects.For(pass, store), Members: e.ws.Members.For(pass, store),
		Conversations: e.ws.Conversations.For(pass, store), Events: store, Waited: waited, entry: e, actor: actor, subject: subject}, nil
}

// ErrNoAccess is why the context of [Workspace.While] ended.
var ErrNoAccess = errors.New("the actor may not see this any more")

// accessEvery is how often it is looked whether a guest still is one, where no signal came: the bus may lose some, and
// carries none between nodes that share no bus.
const accessEvery = time.Second

// holdsEvery is after how many such looks the owner's database, which may be far away, is asked whether what the guest came
// for still is in the project, where no signal said that it left.
const holdsEvery = 10

// While returns a context that ends, with the cause [ErrNoAccess], when the actor may not see any more what the workspace
// was entered for. Owners may always. The caller must cancel.
func (w *Workspace) While(ctx context.Context) (context.Context, context.CancelFunc) {
	if !w.Pass.Guest() {
		return context.WithCancel(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	p := w.entry.pool
	sub := p.Bus.Subscribe(event.AccessTopic(w.actor.Account), 4)
	ended := make(chan struct{})
	go func() {
		ticks := 0
		defer close(ended)
		defer sub.Close()
		tick := time.NewTicker(accessEvery)
		defer tick.Stop()
		for {
			look := false
			select {
			case <-ctx.Done():
				return
			case <-sub.C:
				look = true
			case <-tick.C:
				ticks++
				look = ticks%holdsEvery == 0
			}
			list, err := p.Grants.FindGrants(ctx, w.actor.Account, w.subject)
			if err == nil && !slices.ContainsFunc(list, func(g access.Grant) bool { return g.Project == w.Pass.Project }) {
				cancel(ErrNoAccess)
				return
			}
			if look && fault.Is(w.entry.store.Only(w.Pass.Project).Holds(ctx, w.subject), fault.NotFound) {
				cancel(ErrNoAccess)
				return
			}
		}
	}()
	return ctx, func() { cancel(context.Canceled); <-ended }
}

// sharing implements project.Sharing and conversation.Sharing for one tenant.
type sharing struct {
	*entry
	owner ident.AccountID
}

func (s sharing) place(id ident.ProjectID) member.Place {
	return member.Place{Project: id, Tenant: s.id, Owner: s.owner}
}

// shared reports whether members may want to know of a project. Who asks in vain hears of it, and nobody waits for it.
func (s sharing) shared(ctx context.Context, id ident.ProjectID) bool {
	shared, err := s.pool.Grants.IsShared(ctx, s.place(id))
	s.complain(err)
	return shared
}

// complain says of what is done beside a request that it was not done.
func (s sharing) complain(err error) {
	if err != nil {
		s.pool.Log.Warn("members not told of a change", "code", fault.CodeOf(err), "tenant", s.id)
	}
}

// Route implements conversation.Sharing.
func (s sharing) Route(ctx context.Context, id ident.ConversationID, in ident.ProjectID, version int64) (bool, error) {
	shared, err := s.pool.Grants.IsShared(ctx, s.place(in))
	if err != nil || !shared {
		return false, err
	}
	return true, s.pool.Grants.PutRoutes(ctx, s.place(in), []access.Part{{ID: id, Version: version}})
}

// Arrived implements conversation.Sharing.
func (s sharing) Arrived(ctx context.Context, id ident.ConversationID, in ident.ProjectID, version int64, routed bool) {
	ctx = context.WithoutCancel(ctx)
	if !routed {
		var err error
		routed, err = s.Route(ctx, id, in, version)
		s.complain(err)
	}
	if routed {
		s.complain(s.pool.Grants.MarkProject(ctx, in, s.pool.Now()))
	}
}

// Left implements conversation.Sharing.
func (s sharing) Left(ctx context.Context, id ident.ConversationID, from ident.ProjectID, version int64) {
	ctx = context.WithoutCancel(ctx)
	if !s.shared(ctx, from) {
		return
	}
	if version == 0 {
		version = 1<<63 - 1
	}
	// A route that stays says where to look, not that there is something: whoever goes there finds nothing.
	s.complain(s.pool.Grants.DropRoute(ctx, id, from, version))
	s.complain(s.pool.Grants.MarkProject(ctx, from, s.pool.Now()))
	s.signal(ctx, from)
}

// Editing implements project.Sharing: should the process die before it says Edited, members see the new name a little later.
func (s sharing) Editing(ctx context.Context, id ident.ProjectID) {
	if s.shared(ctx, id) {
		s.complain(s.pool.Grants.MarkProject(ctx, id, s.pool.Now().Add(lookTime)))
	}
}

// Edited implements project.Sharing.
func (s sharing) Edited(ctx context.Context, id ident.ProjectID) {
	ctx = context.WithoutCancel(ctx)
	if s.shared(ctx, id) {
		s.complain(s.pool.Grants.MarkProject(ctx, id, s.pool.Now()))
	}
}

// Deleting implements project.Sharing: should the process die before it says Deleted, whoever looks at the shortcuts finds
// that the project is gone, and ends what is left.
func (s sharing) Deleting(ctx context.Context, id ident.ProjectID) error {
	shared, err := s.pool.Grants.IsShared(ctx, s.place(id))
	if err != nil || !shared {
		return err
	}
	return s.pool.Grants.MarkProject(ctx, id, s.pool.Now().Add(lookTime))
}

// Deleted implements project.Sharing.
func (s sharing) Deleted(ctx context.Context, id ident.ProjectID) {
	ctx = context.WithoutCancel(ctx)
	if s.shared(ctx, id) {
		s.complain(s.pool.endProject(ctx, id))
	}
}

// endProject ends the memberships of a project that is gone.
func (p *Pool) endProject(ctx context.Context, id ident.ProjectID) error {
	gone, err := p.Grants.DropProject(ctx, id, p.Now())
	for _, g := range gone {
		p.Bus.Publish(ctx, event.Signal{Topic: event.AccessTopic(g.Account), Kind: event.Access})
	}
	return err
}

// signal tells the members of a project that they may not see all that they saw.
func (s sharing) signal(ctx context.Context, id ident.ProjectID) {
	guests, err := s.pool.Grants.Guests(ctx, id)
	if err != nil {
		return // they are looked after anyway
	}
	for _, g := range guests {
		s.pool.Bus.Publish(ctx, event.Signal{Topic: event.AccessTopic(g.Account), Kind: event.Access})
	}
}

// routeAll says of all conversations of a project where they are: whoever shared it may have died before.
func (e *entry) routeAll(ctx context.Context, id ident.ProjectID) error {
	if e.pool.Grants == nil {
		return nil
	}
	parts, err := e.store.Parts(ctx, id)
	if err == nil {
		err = e.pool.Grants.PutRoutes(ctx, sharing{e, e.pool.tenantOf(e).Account}.place(id), parts)
	}
	return err
}

// Shortcuts is the list of shortcuts in members' tenants that have to be looked at.
type Shortcuts interface {
	GrantsOf(ctx context.Context, a ident.AccountID) ([]access.Grant, error)
	SharedBy(ctx context.Context, t ident.TenantID) ([]ident.ProjectID, error)
	DueShortcuts(ctx context.Context, now, until time.Time, limit int) ([]sqlstore.DueShortcut, error)
	SettleShortcut(ctx context.Context, d sqlstore.DueShortcut, again time.Time) error
}
