package live_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/live"
	"claude-memory-backend/internal/member"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/workspace"
)

// guestPatience bounds what must happen; on a busy machine that takes a while.
const guestPatience = 30 * time.Second

// guesthouse is a house in which Bob is a viewer of a project of Ada's with one conversation.
type guesthouse struct {
	*house
	ada, bob      *user
	place         member.Place
	project, conv string
}

func newGuesthouse(t *testing.T, change func(*live.Config), grants func(workspace.Grants) workspace.Grants) *guesthouse {
	h := newHouse(t, change)
	h.pool.Grants = h.store
	if grants != nil {
		h.pool.Grants = grants(h.store)
	}
	g := &guesthouse{house: h, ada: h.user("ada"), bob: h.user("bob")}
	g.project = g.ada.make("/projects", map[string]any{"name": "P"})
	g.conv = g.ada.make("/conversations", map[string]any{"project_id": g.project})
	g.place = member.Place{Project: ident.ProjectID(g.project), Tenant: g.tenantOf(g.ada), Owner: ident.AccountID(g.ada.id)}
	_, err := h.store.AddMember(t.Context(), g.place, member.Member{Email: g.bob.email, Role: access.Viewer, Since: time.Now()},
		func(m *member.Member) (event.Change, error) { return g.told("member.added", *m), nil })
	must(t, err)
	g.route(1)
	return g
}

func (g *guesthouse) tenantOf(u *user) ident.TenantID {
	g.t.Helper()
	a, _, err := g.store.FindAccount(g.t.Context(), ident.AccountID(u.id))
	must(g.t, err)
	return a.Tenant
}

func (g *guesthouse) told(kind string, m member.Member) event.Change {
	ch := event.NewChange(ident.Actor{Account: g.place.Owner}, time.Now())
	ch.Add(kind, g.project, map[string]any{"project_id": g.project, "user_id": m.Account, "role": m.Role})
	return ch
}

// route says where the conversation is, at a version of it.
func (g *guesthouse) route(version int64) {
	g.t.Helper()
	must(g.t, g.store.PutRoutes(g.t.Context(), g.place, []access.Part{{ID: ident.ConversationID(g.conv), Version: version}}))
}

// dismiss takes Bob out; the signal is what this node would send.
func (g *guesthouse) dismiss(signal bool) {
	_, err := g.store.RemoveMember(context.Background(), g.place, g.bob.id, func(m member.Member) (event.Change, error) {
		return g.told("member.removed", m), nil
	})
	if err != nil {
		g.t.Error(err)
	}
	if signal {
		g.bus.Publish(context.Background(), event.Signal{Topic: event.AccessTopic(ident.AccountID(g.bob.id)), Kind: event.Access})
	}
}

// takeBack moves the conversation out of the project.
func (g *guesthouse) takeBack() {
	g.ada.call(0, "PATCH", "/api/v1/conversations/"+g.conv, map[string]any{"project_id": nil}, 200, nil)
}

func (g *guesthouse) secret() {
	g.ada.call(0, "POST", "/api/v1/conversations/"+g.conv+"/messages", map[string]any{"content": "#say my secret"}, 201, nil)
}

// leaves waits until the socket is out of a room, and returns the text that it heard until then.
func leaves(t *testing.T, s *socket) (heard string) {
	t.Helper()
	late := time.After(guestPatience)
	for {
		select {
		case f := <-s.frames:
			if f.Type == "room_left" {
				return heard
			}
			heard += f.text("text")
		case <-late:
			t.Fatalf("it stays in the room; heard %q", heard)
		}
	}
}

// A route that was left behind, with a version that nothing undoes, lets nobody into what is private now.
func TestGuestsDoNotFollowOldRoutes(t *testing.T) {
	g := newGuesthouse(t, nil, nil)
	g.route(9)
	g.takeBack()
	s := g.bob.connect()
	s.sendAs("join_room", "j", map[string]any{"room_id": g.conv})
	if f := s.next("room_joined", "error"); f.Type != "error" || f.text("code") != "not_found" {
		t.Errorf("%s %s", f.Type, f.Data)
	}
}

// fickle is a directory that can lose a tenant from sight.
type fickle struct {
	tenant.Directory
	away atomic.Pointer[ident.TenantID]
}

func (d *fickle) FindTenant(ctx context.Context, id ident.TenantID) (tenant.Tenant, error) {
	if a := d.away.Load(); a != nil && *a == id {
		return tenant.Tenant{}, fault.New(fault.Unavailable, "test", "database_unreachable", "away")
	}
	return d.Directory.FindTenant(ctx, id)
}

// Whoever was removed is out, also while a database of their own is away, which they decide about.
func TestRemovedWhileTheirOwnDatabaseIsAway(t *testing.T) {
	g := newGuesthouse(t, nil, nil)
	dir := &fickle{Directory: g.store}
	g.pool.Directory = dir
	s := g.bob.connect()
	s.join(g.conv)
	away := g.tenantOf(g.bob)
	dir.away.Store(&away)
	g.pool.Expel(t.Context(), away)
	g.dismiss(true)
	leaves(t, s)
}

// The master's log alone tells of a removal, where no signal comes from.
func TestRemovalStandsInTheMastersLog(t *testing.T) {
	g := newGuesthouse(t, func(c *live.Config) { c.CheckEvery = time.Hour }, nil)
	s := g.bob.connect()
	s.join(g.project)
	g.dismiss(false)
	leaves(t, s)
}

// silent does not know who the guests are, so no signal goes to them.
type silent struct{ workspace.Grants }

func (silent) Guests(context.Context, ident.ProjectID) ([]access.Grant, error) { return nil, nil }

// plug holds up a tenant's feed.
type plug struct {
	armed   atomic.Bool
	reached chan struct{}
	pulled  chan struct{}
}

func (p *plug) Tell(context.Context, *workspace.Workspace, []event.Event) {
	if p.armed.CompareAndSwap(true, false) {
		close(p.reached)
		<-p.pulled
	}
}

func (*plug) Lost(event.Seq) {}

// What is said after a conversation left the project reaches no guest, however late a node hears of both.
func TestNothingIsHeardAfterAMove(t *testing.T) {
	var feeds *workspace.Feeds
	g := newGuesthouse(t, func(c *live.Config) { feeds = c.Feeds }, func(all workspace.Grants) workspace.Grants { return silent{all} })
	s := g.bob.connect()
	s.join(g.conv)
	p := &plug{reached: make(chan struct{}), pulled: make(chan struct{})}
	_, leave, err := feeds.Listen(t.Context(), g.place.Tenant, p)
	must(t, err)
	defer leave()
	p.armed.Store(true)
	g.ada.make("/conversations", map[string]any{})
	<-p.reached
	g.takeBack()
	g.secret()
	close(p.pulled)
	if heard := leaves(t, s); heard != "" {
		t.Errorf("heard %q, which was said after the move", heard)
	}
}

// between does something once while it is asked for grants.
type between struct {
	workspace.Grants
	do atomic.Pointer[func()]
}

func (b *between) FindGrants(ctx context.Context, a ident.AccountID, subject string) ([]access.Grant, error) {
	list, err := b.Grants.FindGrants(ctx, a, subject)
	if f := b.do.Swap(nil); f != nil {
		(*f)()
	}
	return list, err
}

// A member who is removed while joining a room once more takes nobody else's room away.
func TestARemovalWhileJoiningAgain(t *testing.T) {
	var asked *between
	g := newGuesthouse(t, nil, func(all workspace.Grants) workspace.Grants { asked = &between{Grants: all}; return asked })
	a, b := g.ada.connect(), g.bob.connect()
	a.join(g.project)
	b.join(g.project)
	left := make(chan struct{})
	dismissed := func() {
		g.dismiss(true)
		<-left
	}
	asked.do.Store(&dismissed)
	b.send("join_room", map[string]any{"room_id": g.project})
	leaves(t, b)
	close(left)
	if f := b.next("error", "room_joined"); f.Type != "error" {
		t.Errorf("%s %s", f.Type, f.Data)
	}
	conv := g.ada.make("/conversations", map[string]any{"project_id": g.project})
	late := time.After(guestPatience)
	for {
		select {
		case f := <-a.frames:
			if f.text("type") == "conversation.created" && f.text("subject") == conv {
				return
			}
		case <-late:
			t.Fatalf("the owner, still in the room, hears nothing: %+v", g.nodes[0].hub.Stats())
		}
	}
}

// counted counts how often it is looked whether a session lives.
type counted struct {
	live.Accounts
	n atomic.Int64
}

func (c *counted) Alive(ctx context.Context, a ident.Actor) error {
	c.n.Add(1)
	return c.Accounts.Alive(ctx, a)
}

// One change, whatever it lets many rooms look at, makes few looks at each connection.
func TestLooksAreOne(t *testing.T) {
	count := &counted{}
	h := newHouse(t, func(c *live.Config) { count.Accounts, c.Accounts, c.CheckEvery = c.Accounts, count, time.Hour })
	ada := h.user("ada")
	project := ada.make("/projects", map[string]any{"name": "P"})
	var rooms []string
	for range 30 {
		rooms = append(rooms, ada.make("/conversations", map[string]any{}))
	}
	s := ada.connect()
	for _, r := range rooms {
		s.join(r)
	}
	count.n.Store(0)
	for i, to := range []any{project, nil, project} {
		ada.call(0, "PATCH", "/api/v1/conversations/"+rooms[0], map[string]any{"project_id": to}, 200, nil)
		for moves := 0; moves == 0; {
			if f := s.next("event"); f.text("type") == "conversation.moved" {
				moves++
			}
		}
		if n := count.n.Load(); n > int64(10*(i+1)) {
			t.Fatalf("%d looks at one connection after %d changes", n, i+1)
		}
	}
}
