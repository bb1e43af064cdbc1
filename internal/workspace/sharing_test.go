package workspace

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/member"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

// village is a house in which people are members of each other's projects.
type village struct {
	*house
	master *sqlstore.MasterStore
	ada    person
	bob    person
}

type person struct {
	ident.Actor
	tenant tenant.Tenant
	email  string
}

func newVillage(t testing.TB) *village {
	t.Helper()
	db, err := sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: filepath.Join(t.TempDir(), "master.db"), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if _, err := sqlstore.Migrate(t.Context(), db, sqlstore.Master); err != nil {
		t.Fatal(err)
	}
	v := &village{master: sqlstore.NewMasterStore(db, nil)}
	v.house = newHouse(t, func(c *Config) { c.Grants = v.master })
	v.ada, v.bob = v.person("ada"), v.person("bob")
	return v
}

func (v *village) person(name string) person {
	v.t.Helper()
	ten := v.newTenant()
	p := person{Actor: ident.Actor{Account: ten.Account, Name: name}, tenant: ten, email: name + "@example.org"}
	a := account.Account{ID: ten.Account, Email: p.email, Details: account.Details{Name: name}, Role: ident.Member, Tenant: ten.ID,
		State: account.Active, Version: 1}
	if _, err := v.master.InsertAccount(v.t.Context(), account.Newcomer{Account: a, Tenant: ten},
		func(account.Account) event.Change { return event.Change{} }); err != nil {
		v.t.Fatal(err)
	}
	return p
}

// share makes a project of ada's with a conversation, and bob a member of it.
func (v *village) share(role access.Role) (ident.ProjectID, ident.ConversationID) {
	v.t.Helper()
	ws := v.acquire(v.ada.tenant)
	defer ws.Release()
	p, err := ws.Projects.Create(v.t.Context(), v.ada.Actor, project.CreateInput{Details: project.Details{Name: "Harbour"}})
	if err != nil {
		v.t.Fatal(err)
	}
	c, err := ws.Conversations.Create(v.t.Context(), v.ada.Actor, conversation.CreateInput{Details: conversation.Details{ProjectID: p.ID}})
	if err != nil {
		v.t.Fatal(err)
	}
	if _, err := ws.Members.Add(v.t.Context(), v.ada.Actor, p.ID, member.AddInput{Email: v.bob.email, Role: role}); err != nil {
		v.t.Fatal(err)
	}
	return p.ID, c.ID
}

func (v *village) remove(id ident.ProjectID) {
	v.t.Helper()
	ws := v.acquire(v.ada.tenant)
	defer ws.Release()
	if err := ws.Members.Remove(v.t.Context(), v.ada.Actor, id, string(v.bob.Account)); err != nil {
		v.t.Fatal(err)
	}
}

func (v *village) enter(p person, subject string) (*Workspace, error) {
	ws, err := v.pool.Enter(v.t.Context(), p.Actor, p.tenant.ID, subject)
	if err == nil {
		ws.Release()
	}
	return ws, err
}

func TestEnter(t *testing.T) {
	v := newVillage(t)
	p, c := v.share(access.Commenter)
	for _, subject := range []string{string(p), string(c)} {
		if ws, err := v.enter(v.ada, subject); err != nil || ws.Pass.Guest() || ws.Tenant.ID != v.ada.tenant.ID {
			t.Errorf("the owner: %v", err)
		}
		ws, err := v.enter(v.bob, subject)
		if err != nil || ws.Pass != (access.Pass{Account: v.bob.Account, Role: access.Commenter, Project: p}) || ws.Tenant.ID != v.ada.tenant.ID ||
			ws.Audit != nil {
			t.Fatalf("a member: %+v, %v", ws, err)
		}
		if _, err := v.enter(v.person("eve-"+subject[:4]), subject); !fault.Is(err, fault.NotFound) {
			t.Errorf("a stranger: %v", err)
		}
	}
	for _, subject := range []string{string(ident.New[ident.ProjectID]()), string(ident.New[ident.ConversationID]()), "", "nonsense"} {
		if _, err := v.enter(v.bob, subject); !fault.Is(err, fault.NotFound) {
			t.Errorf("%q: %v", subject, err)
		}
	}
	t.Run("a guest whose own tenant is away is let in", func(t *testing.T) {
		away := v.bob.tenant
		away.ID, away.Placement.WrappedKey = ident.New[ident.TenantID](), []byte("no key")
		v.town.put(away)
		ws, err := v.pool.Enter(t.Context(), v.bob.Actor, away.ID, string(c))
		if err != nil || !ws.Pass.Guest() {
			t.Fatal(err)
		}
		ws.Release()
		if _, err := v.pool.Enter(t.Context(), v.bob.Actor, away.ID, string(ident.New[ident.ProjectID]())); !fault.Is(err, fault.Unavailable) {
			t.Errorf("what may be there: %v", err)
		}
	})
	t.Run("who is suspended gets in nowhere, and in a suspended tenant nobody", func(t *testing.T) {
		closed := v.bob.tenant
		closed.State = tenant.Suspended
		v.town.put(closed)
		if err := v.pool.Refresh(t.Context(), closed.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := v.enter(v.bob, string(c)); fault.CodeOf(err) != "tenant_suspended" {
			t.Errorf("%v", err)
		}
		v.town.put(v.bob.tenant)
		if err := v.pool.Refresh(t.Context(), closed.ID); err != nil {
			t.Fatal(err)
		}
		closed = v.ada.tenant
		closed.State = tenant.Suspended
		v.town.put(closed)
		if err := v.pool.Refresh(t.Context(), closed.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := v.enter(v.bob, string(c)); fault.CodeOf(err) != "tenant_suspended" {
			t.Errorf("%v", err)
		}
		v.town.put(v.ada.tenant)
		if err := v.pool.Refresh(t.Context(), closed.ID); err != nil {
			t.Fatal(err)
		}
	})
	v.remove(p)
	if _, err := v.enter(v.bob, string(c)); !fault.Is(err, fault.NotFound) {
		t.Errorf("who was removed: %v", err)
	}
}

// TestWhile: what a guest watches ends with the membership, with a signal and, where that is lost, without.
func TestWhile(t *testing.T) {
	for name, deaf := range map[string]bool{"with a signal": false, "without": true} {
		t.Run(name, func(t *testing.T) {
			v := newVillage(t)
			p, c := v.share(access.Viewer)
			ws, err := v.pool.Enter(t.Context(), v.bob.Actor, v.bob.tenant.ID, string(c))
			if err != nil {
				t.Fatal(err)
			}
			defer ws.Release()
			ctx, cancel := ws.While(t.Context())
			defer cancel()
			if deaf { // another node removes the member, and shares no bus with this one
				if _, err := v.master.RemoveMember(t.Context(), member.Place{Project: p}, string(v.bob.Account),
					func(member.Member) (event.Change, error) { return event.Change{}, nil }); err != nil {
					t.Fatal(err)
				}
			} else {
				v.remove(p)
			}
			select {
			case <-ctx.Done():
			case <-time.After(30 * time.Second):
				t.Fatal("it goes on")
			}
			if !errors.Is(context.Cause(ctx), ErrNoAccess) {
				t.Error(context.Cause(ctx))
			}
			own := v.acquire(v.ada.tenant)
			defer own.Release()
			ctx, cancel = own.While(t.Context())
			if cancel(); !errors.Is(context.Cause(ctx), context.Canceled) {
				t.Error(context.Cause(ctx))
			}
		})
	}
}

// TestGuestsHearOfTheProjectAlone: a guest's log has the events of the project, with the numbers of the owner's.
func TestGuestsHearOfTheProjectAlone(t *testing.T) {
	v := newVillage(t)
	p, c := v.share(access.Editor)
	own := v.acquire(v.ada.tenant)
	defer own.Release()
	secret, err := own.Conversations.Create(t.Context(), v.ada.Actor, conversation.CreateInput{})
	if err != nil {
		t.Fatal(err)
	}
	if err := own.Conversations.Delete(t.Context(), v.ada.Actor, c, nil); err != nil {
		t.Fatal(err)
	}
	ws, err := v.pool.Enter(t.Context(), v.bob.Actor, v.bob.tenant.ID, string(p))
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Release()
	events, _, _, err := ws.Events.About(t.Context(), p, 0, 100, 100)
	if err != nil {
		t.Fatal(err)
	}
	kinds := ""
	for _, e := range events {
		if kinds += e.Type + " "; e.Subject == string(secret.ID) {
			t.Errorf("%+v", e)
		}
	}
	if kinds != "project.created conversation.created conversation.deleted " || events[2].Seq != 4 {
		t.Errorf("%s, %+v", kinds, events)
	}
}

// TestSharingWhileConversationsCome: whichever comes first, the grant or the conversation, members find it.
func TestSharingWhileConversationsCome(t *testing.T) {
	v := newVillage(t)
	for range 10 {
		ws := v.acquire(v.ada.tenant)
		p, err := ws.Projects.Create(t.Context(), v.ada.Actor, project.CreateInput{Details: project.Details{Name: "Harbour"}})
		if err != nil {
			t.Fatal(err)
		}
		made := make(chan ident.ConversationID, 100)
		go func() {
			defer close(made)
			for range 20 {
				c, err := ws.Conversations.Create(t.Context(), v.ada.Actor, conversation.CreateInput{Details: conversation.Details{ProjectID: p.ID}})
				if err != nil {
					t.Error(err)
					return
				}
				made <- c.ID
			}
		}()
		first := <-made
		if _, err := ws.Members.Add(t.Context(), v.ada.Actor, p.ID, member.AddInput{Email: v.bob.email, Role: access.Viewer}); err != nil {
			t.Fatal(err)
		}
		list := []ident.ConversationID{first}
		for c := range made {
			list = append(list, c)
		}
		for _, c := range list {
			if list, err := v.master.FindGrants(t.Context(), v.bob.Account, string(c)); err != nil || len(list) != 1 {
				t.Errorf("%s: %+v, %v", c, list, err)
			}
		}
		ws.Release()
	}
}

// stalled is a master database whose reader is held up once, after it has read, and whose marks are lost after so many.
type stalled struct {
	*sqlstore.MasterStore
	meanwhile func()
	marks     int // that are kept; 0: all
}

func (s *stalled) FindGrants(ctx context.Context, a ident.AccountID, subject string) ([]access.Grant, error) {
	list, err := s.MasterStore.FindGrants(ctx, a, subject)
	if do := s.meanwhile; do != nil {
		s.meanwhile = nil
		do()
	}
	return list, err
}

func (s *stalled) MarkProject(ctx context.Context, p ident.ProjectID, due time.Time) error {
	if s.marks--; s.marks == 0 {
		s.marks++
		return fault.New(fault.Unavailable, "test", "", "the process is gone")
	}
	return s.MasterStore.MarkProject(ctx, p, due)
}

// names are the projects in a person's list.
func (v *village) names(p person) (names []string) {
	v.t.Helper()
	ws := v.acquire(p.tenant)
	defer ws.Release()
	list, _, err := ws.Projects.List(v.t.Context(), p.Actor, project.Query{Limit: 10})
	if err != nil {
		v.t.Fatal(err)
	}
	for _, p := range list {
		names = append(names, p.Name)
	}
	return names
}

// TestTwoNodesLookAtAShortcut: a node that found a grant, and writes the shortcut when another one has taken it away since, has
// it looked at once more.
func TestTwoNodesLookAtAShortcut(t *testing.T) {
	v := newVillage(t)
	p, _ := v.share(access.Viewer)
	v.pool.Grants = &stalled{MasterStore: v.master, meanwhile: func() {
		v.remove(p)
		v.pool.lookAtShortcuts(t.Context()) // the other node, to its end
	}}
	v.pool.lookAtShortcuts(t.Context())
	v.pool.lookAtShortcuts(t.Context())
	if names := v.names(v.bob); len(names) > 0 {
		t.Errorf("who was removed sees %v", names)
	}
	if due, err := v.master.DueShortcuts(t.Context(), time.Now().Add(24*time.Hour), time.Now(), 10); err != nil || len(due) > 0 {
		t.Errorf("it never ends: %+v, %v", due, err)
	}
}

// TestWhoDiesAfterAnEdit: a process that dies between an edit and its mark leaves an old name for moments only.
func TestWhoDiesAfterAnEdit(t *testing.T) {
	v := newVillage(t)
	now := time.Now()
	v.pool.Now = func() time.Time { return now }
	p, _ := v.share(access.Viewer)
	v.pool.lookAtShortcuts(t.Context())
	v.pool.Grants = &stalled{MasterStore: v.master, marks: 2}
	ws := v.acquire(v.ada.tenant)
	_, err := ws.Projects.Edit(t.Context(), v.ada.Actor, p, nil, func(d *project.Details) error { d.Name = "Port"; return nil })
	ws.Release()
	if err != nil {
		t.Fatal(err)
	}
	v.pool.lookAtShortcuts(t.Context())
	if names := v.names(v.bob); len(names) != 1 || names[0] != "Harbour" {
		t.Errorf("before it is due: %v", names)
	}
	now = now.Add(lookTime + time.Second)
	v.pool.lookAtShortcuts(t.Context())
	if names := v.names(v.bob); len(names) != 1 || names[0] != "Port" {
		t.Errorf("after it: %v", names)
	}
}
