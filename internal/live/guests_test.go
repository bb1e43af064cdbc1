package live_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/live"
	"claude-memory-backend/internal/member"
	"claude-memory-backend/internal/sqlstore"
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

// Whoever is looked at while coming in is looked at later, too.
func TestALookAtWhoComesIn(t *testing.T) {
	g := newGuesthouse(t, func(c *live.Config) { c.CheckEvery = time.Hour }, nil)
	looked := func() { g.nodes[0].hub.Recheck(ident.AccountID(g.bob.id)) }
	g.nodes[0].coming.Store(&looked)
	s := g.bob.connect()
	s.join(g.conv)
	g.dismiss(true)
	leaves(t, s)
	// What would have been found then is found: the account is suspended before its connection is here, and no log tells of it.
	ended := func() {
		_, err := g.store.UpdateAccount(context.Background(), ident.AccountID(g.bob.id),
			func(a account.Account, hash string) (account.Account, string, event.Change, error) {
				a.State = account.Suspended
				return a, hash, event.Change{}, nil
			}, account.Along{})
		if err != nil {
			t.Error(err)
		}
		g.nodes[0].hub.Recheck(ident.AccountID(g.bob.id))
	}
	g.nodes[0].coming.Store(&ended)
	if s, _ = g.dial(0, "?ticket="+g.bob.ticket(), nil); s.ends() != live.CloseSignedOut {
		t.Errorf("closed with %d", s.code)
	}
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

// forgetful does not know who the guests are, so no signal goes to them, and does not come to ending what they were let in by.
type forgetful struct{ silent }

func (forgetful) DropProject(context.Context, ident.ProjectID, time.Time) ([]access.Grant, error) {
	return nil, nil
}

// hold holds up the feed of the project's tenant until the returned function is called.
func (g *guesthouse) hold(feeds *workspace.Feeds) (goOn func()) {
	g.t.Helper()
	p := &plug{reached: make(chan struct{}), pulled: make(chan struct{})}
	_, leave, err := feeds.Listen(g.t.Context(), g.place.Tenant, p)
	must(g.t, err)
	g.t.Cleanup(leave)
	p.armed.Store(true)
	g.ada.make("/conversations", map[string]any{})
	<-p.reached
	return func() { close(p.pulled) }
}

// What is said after a conversation left the project, or stayed when that was deleted, reaches no guest, however late a node
// hears of both.
func TestNothingIsHeardAfterAMove(t *testing.T) {
	for name, end := range map[string]func(g *guesthouse){
		"moved": (*guesthouse).takeBack,
		"its project is deleted": func(g *guesthouse) {
			g.ada.call(0, "DELETE", "/api/v1/projects/"+g.project, nil, 204, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var feeds *workspace.Feeds
			g := newGuesthouse(t, func(c *live.Config) { feeds = c.Feeds }, func(all workspace.Grants) workspace.Grants { return forgetful{silent{all}} })
			s := g.bob.connect()
			s.join(g.conv)
			goOn := g.hold(feeds)
			end(g)
			g.secret()
			goOn()
			if heard := leaves(t, s); heard != "" {
				t.Errorf("heard %q, which was said when the conversation was private", heard)
			}
		})
	}
}

// Whoever was let in just before a conversation left the project, and came to the room just after, hears nothing there.
func TestWhoComesTooLateHearsNothing(t *testing.T) {
	var feeds *workspace.Feeds
	g := newGuesthouse(t, func(c *live.Config) { feeds = c.Feeds }, func(all workspace.Grants) workspace.Grants { return silent{all} })
	s := g.bob.connect()
	goOn := g.hold(feeds)
	s.send("join_room", map[string]any{"room_id": g.conv})
	until(t, "let in", func() bool { return g.nodes[0].hub.Stats().Rooms > 0 })
	g.takeBack()
	goOn()
	if f := s.next("room_joined", "error"); f.Type != "error" || f.text("code") != "not_found" {
		t.Errorf("%s %s", f.Type, f.Data)
	}
}

// A member hears in every way what a member may read: not who is invited, not to which other project of the owner's a
// conversation went. The owner hears it all.
func TestMembersHearWhatTheyMayRead(t *testing.T) {
	g := newGuesthouse(t, nil, nil)
	secret := g.ada.make("/projects", map[string]any{"name": "Secret"})
	wanders := g.ada.make("/conversations", map[string]any{"project_id": secret})
	begin := 0
	sockets := map[string]*socket{"ada": g.ada.connect(), "bob": g.bob.connect()}
	for _, s := range sockets {
		begin = s.join(g.project)
	}
	streams := map[string]func() (id, kind, data string){}
	of := "/api/v1/events/stream?project_id=" + g.project
	for name, u := range map[string]*user{"ada": g.ada, "bob": g.bob} {
		streams[name] = u.stream(t.Context(), of, "")
	}
	move := func(to string) {
		g.ada.call(0, "PATCH", "/api/v1/conversations/"+wanders, map[string]any{"project_id": to}, 200, nil)
	}
	note := func(kind string, data map[string]any) {
		ws, err := g.pool.Acquire(t.Context(), ident.System(""), g.place.Tenant)
		must(t, err)
		defer ws.Release()
		ch := event.NewChange(ident.Actor{Account: g.place.Owner}, time.Now())
		data["project_id"] = g.project
		ch.Add(kind, g.project, data)
		store, _ := ws.Events.(*sqlstore.TenantStore)
		must(t, store.Note(t.Context(), ch))
	}
	move(g.project)
	note("member.invited", map[string]any{"invitation_id": "inv_i"})
	note("member.added", map[string]any{"invitation_id": "inv_i", "user_id": "usr_u"})
	note("member.removed", map[string]any{"invitation_id": "inv_j"})
	note("database.activated", map[string]any{})
	move(secret)
	g.ada.call(0, "PATCH", "/api/v1/projects/"+g.project, map[string]any{"name": "Q"}, 200, nil)
	end := g.ada.connect().join(g.project)

	late, again := map[string]*socket{}, map[string]func() (id, kind, data string){}
	for name, u := range map[string]*user{"ada": g.ada, "bob": g.bob} {
		late[name] = u.connect()
		late[name].send("join_room", map[string]any{"room_id": g.project, "after_seq": begin})
		again[name] = u.stream(t.Context(), of, strconv.Itoa(begin))
	}
	for name, want := range map[string]struct{ kinds, secrets string }{
		"ada": {"conversation.moved member.invited member.added member.removed database.activated conversation.moved project.updated", "secret invitation"},
		"bob": {"conversation.moved member.added conversation.moved project.updated", ""},
	} {
		for way, raw := range map[string][]string{
			"in the room":         sockets[name].until(end),
			"coming back":         late[name].until(end),
			"over a stream":       streamed(t, streams[name], end),
			"over a stream again": streamed(t, again[name], end),
		} {
			var kinds, secrets []string
			for _, text := range raw {
				var e struct{ Type string }
				must(t, json.Unmarshal([]byte(text), &e))
				kinds = append(kinds, e.Type)
			}
			if strings.Contains(strings.Join(raw, ""), secret) {
				secrets = append(secrets, "secret")
			}
			if strings.Contains(strings.Join(raw, ""), "inv_") {
				secrets = append(secrets, "invitation")
			}
			if strings.Join(kinds, " ") != want.kinds || strings.Join(secrets, " ") != want.secrets {
				t.Errorf("%s, %s: %v with %v", name, way, kinds, secrets)
			}
		}
	}
}

// until are the events, word for word, that the socket hears up to a position.
func (s *socket) until(end int) (raw []string) {
	s.t.Helper()
	for {
		f := s.next("event")
		raw = append(raw, string(f.Data))
		if f.number("seq") >= end {
			return raw
		}
	}
}

// streamed are the events, word for word, that a stream brings up to a position.
func streamed(t *testing.T, next func() (id, kind, data string), end int) (raw []string) {
	t.Helper()
	for {
		id, kind, data := next()
		if kind == "" {
			t.Fatalf("the stream ended after %v", raw)
		}
		raw = append(raw, data)
		if n, err := strconv.Atoi(id); err != nil || n >= end {
			return raw
		}
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

// A place in a log that was put back to an earlier state is known by its number, however far the log has come since, in every
// way; who listens meanwhile hears of it.
func TestAPlaceInALogThatIsNoMore(t *testing.T) {
	g := newGuesthouse(t, nil, nil)
	ws, err := g.pool.Acquire(t.Context(), ident.System(""), g.place.Tenant)
	must(t, err)
	defer ws.Release()
	store, _ := ws.Events.(*sqlstore.TenantStore)
	say := func() {
		g.ada.call(0, "POST", "/api/v1/conversations/"+g.conv+"/messages", map[string]any{"content": "x", "reply": false}, 201, nil)
	}
	s := g.bob.connect()
	at := s.join(g.conv)
	const lost = 10
	back := event.Event{ID: ident.New[ident.EventID](), Type: event.Restored, Subject: string(g.place.Tenant), CreatedAt: time.Now(), Data: []byte(`{}`)}
	for range 2 { // told twice, it is there once
		must(t, store.Tell(t.Context(), back, g.place.Owner))
	}
	for range 2 * lost {
		say()
	}
	if f := s.next("resync", "event"); f.Type != "resync" || f.number("seq") <= at+2*lost {
		t.Errorf("who was there hears %s %s", f.Type, f.Data)
	}
	head := s.next("event").number("seq")
	for name, room := range map[string]string{"the conversation": g.conv, "the project": g.project} {
		late := g.bob.connect()
		late.send("join_room", map[string]any{"room_id": room, "after_seq": at + lost})
		if f := late.next("resync", "event"); f.Type != "resync" || f.number("seq") < head {
			t.Errorf("who comes back to %s hears %s %s", name, f.Type, f.Data)
		}
	}
	next := g.bob.stream(t.Context(), "/api/v1/events/stream?project_id="+g.project, strconv.Itoa(at+lost))
	if _, kind, data := next(); kind != event.Restored || strings.Contains(data, string(g.place.Tenant)) {
		t.Errorf("over a stream: %s %s", kind, data)
	}
	if _, kind, _ := next(); kind != "resync" {
		t.Errorf("over a stream: %s", kind)
	}
	for name, path := range map[string]string{"all": "", "a project": "&project_id=" + g.project} {
		var page struct {
			Data []struct {
				Type string
				Seq  int
			}
		}
		g.ada.call(0, "GET", fmt.Sprintf("/api/v1/events?after=%d%s", at+lost, path), nil, 200, &page)
		if len(page.Data) < 2 || page.Data[0].Type != event.Restored || page.Data[1].Seq != page.Data[0].Seq+1 {
			t.Errorf("pulling %s: %+v", name, page.Data)
		}
	}
}
