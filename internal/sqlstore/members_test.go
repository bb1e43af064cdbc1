package sqlstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/member"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/tenant"
)

// comesIn is what the service says of somebody who is added.
func comesIn(m *member.Member) (event.Change, error) {
	if m.State == member.Invited {
		m.Invitation = ident.New[ident.InvitationID]()
	}
	return happened("member.added", "prj_x", time.Minute), nil
}

func placeOfProject(owner account.Account) member.Place {
	return member.Place{Project: ident.New[ident.ProjectID](), Tenant: owner.Tenant, Owner: owner.ID}
}

// grantOf is the one grant that lets an account see something; NotFound when there is none.
func grantOf(s *MasterStore, a ident.AccountID, subject string) (access.Grant, error) {
	list, err := s.FindGrants(context.Background(), a, subject)
	if err != nil || len(list) == 0 {
		return access.Grant{}, cmp.Or(err, error(fault.Missing("test")))
	}
	return list[0], nil
}

func TestMembersOfProjects(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		ctx := t.Context()
		ada, bob := join(t, s, "ada@example.org", ""), join(t, s, "bob@example.org", "")
		p := placeOfProject(ada)
		add := func(email string, role access.Role) (member.Member, error) {
			return s.AddMember(ctx, p, member.Member{Email: email, Role: role, Since: noon(time.Minute)}, comesIn)
		}
		if shared, err := s.IsShared(ctx, p); shared || err != nil {
			t.Errorf("shared: %v, %v", shared, err)
		}
		m := settle[member.Member](t)(add("BOB@example.org", access.Viewer))
		if m.Account != bob.ID || m.Name != bob.Name || m.Email != bob.Email || m.State != member.Active || m.Role != access.Viewer {
			t.Errorf("%+v", m)
		}
		i := settle[member.Member](t)(add("Eve@example.org", access.Editor))
		if i.State != member.Invited || i.Account != "" || i.Email != "Eve@example.org" || i.Key() != string(i.Invitation) {
			t.Errorf("%+v", i)
		}
		for _, email := range []string{"bob@example.org", "eve@EXAMPLE.org", "ada@example.org"} {
			_, err := add(email, access.Viewer)
			refused(t, err, member.CodeExists)
		}
		list := settle[[]member.Member](t)(s.ListMembers(ctx, p))
		if len(list) != 3 || list[0].Role != access.Owner || list[0].Account != ada.ID || list[1].Account != bob.ID || list[2].Invitation != i.Invitation {
			t.Errorf("%+v", list)
		}
		if shared, err := s.IsShared(ctx, p); !shared || err != nil {
			t.Errorf("shared: %v, %v", shared, err)
		}
		want := access.Grant{Project: p.Project, Tenant: ada.Tenant, Account: bob.ID, Role: access.Viewer}
		if g, err := grantOf(s, bob.ID, string(p.Project)); err != nil || g != want {
			t.Errorf("%+v, %v", g, err)
		}

		conv := ident.New[ident.ConversationID]()
		_, err := grantOf(s, bob.ID, string(conv))
		refused(t, err, "not_found")
		route := func(version int64) {
			if err := s.PutRoutes(ctx, p, []access.Part{{ID: conv, Version: version}}); err != nil {
				t.Fatal(err)
			}
		}
		found := func() bool {
			_, err := grantOf(s, bob.ID, string(conv))
			if err != nil && !fault.Is(err, fault.NotFound) {
				t.Fatal(err)
			}
			return err == nil
		}
		route(3)
		if err := s.DropRoute(ctx, conv, p.Project, 3); err != nil || !found() {
			t.Errorf("an older word took a route away: %v", err)
		}
		if err := s.DropRoute(ctx, conv, p.Project, 4); err != nil || found() {
			t.Errorf("the route of what has left is there: %v", err)
		}
		route(5)
		_, err = grantOf(s, ada.ID, string(conv))
		refused(t, err, "not_found")
		// On its way to another project it has two; a project of another tenant has none of this one's.
		q := placeOfProject(ada)
		if _, err := s.AddMember(ctx, q, member.Member{Email: bob.Email, Role: access.Editor}, comesIn); err != nil {
			t.Fatal(err)
		}
		if err := s.PutRoutes(ctx, q, []access.Part{{ID: conv, Version: 6}}); err != nil {
			t.Fatal(err)
		}
		if list, err := s.FindGrants(ctx, bob.ID, string(conv)); err != nil || len(list) != 2 || list[0].Project != q.Project {
			t.Errorf("%+v, %v", list, err)
		}
		if _, err := s.DropProject(ctx, q.Project, noon(0)); err != nil {
			t.Fatal(err)
		}
		if shared, err := s.IsShared(ctx, member.Place{Project: p.Project, Tenant: bob.Tenant}); shared || err != nil {
			t.Errorf("shared: %v, %v", shared, err)
		}

		if _, err := s.ChangeMember(ctx, p, string(bob.ID), func(m member.Member) (member.Member, event.Change, error) {
			m.Role = access.Commenter
			return m, happened("member.changed", string(p.Project), time.Hour), nil
		}); err != nil {
			t.Fatal(err)
		}
		if g, err := grantOf(s, bob.ID, string(conv)); err != nil || g.Role != access.Commenter {
			t.Errorf("%+v, %v", g, err)
		}
		// The owner's tenant is told of it all, in order.
		news := settle[[]News](t)(s.News(ctx, noon(24*time.Hour), 10))
		if len(news) != 4 || news[0].Tenant != ada.Tenant || news[3].Event.Type != "member.changed" {
			t.Errorf("%+v", news)
		}
		// A removal that is refused changes nothing; one that is not ends all.
		no := fault.New(fault.Conflict, "", "no", "")
		_, err = s.RemoveMember(ctx, p, string(bob.ID), func(member.Member) (event.Change, error) { return event.Change{}, no })
		refused(t, err, "no")
		for _, key := range []string{string(bob.ID), string(i.Invitation)} {
			if _, err := s.RemoveMember(ctx, p, key, func(member.Member) (event.Change, error) {
				return happened("member.removed", string(p.Project), time.Hour), nil
			}); err != nil {
				t.Fatal(err)
			}
			_, err = s.RemoveMember(ctx, p, key, nil)
			refused(t, err, "not_found")
		}
		if found() {
			t.Error("who was removed finds it")
		}
		_, err = s.ChangeMember(ctx, p, string(ada.ID), nil)
		refused(t, err, "not_found")
	})
}

func TestOneOfManyIsAdded(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		ada := join(t, s, "ada@example.org", "")
		join(t, s, "bob@example.org", "")
		p := placeOfProject(ada)
		for _, email := range []string{"bob@example.org", "eve@example.org"} {
			var done sync.WaitGroup
			errs := make([]error, 8)
			for i := range errs {
				done.Go(func() {
					_, errs[i] = s.AddMember(t.Context(), p, member.Member{Email: email, Role: access.Viewer}, comesIn)
				})
			}
			done.Wait()
			added := 0
			for _, err := range errs {
				if err == nil {
					added++
				} else if fault.CodeOf(err) != member.CodeExists {
					t.Error(err)
				}
			}
			if added != 1 {
				t.Errorf("%s was added %d times", email, added)
			}
		}
	})
}

func TestAProjectHasRoomForSoMany(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		p := placeOfProject(join(t, s, "ada@example.org", ""))
		if err := s.db.Write(t.Context(), func(tx *Tx) error {
			return tx.Commit(func(b *Batch) {
				for i := range member.Max {
					b.Exec(`INSERT INTO invitations (id, project_id, tenant_id, email, email_folded, role, inviter_id, created_at)
						VALUES (?, ?, ?, ?, ?, 'viewer', '', 0)`, fmt.Sprint(i), p.Project, p.Tenant, fmt.Sprint(i), fmt.Sprint(i))
				}
			})
		}); err != nil {
			t.Fatal(err)
		}
		_, err := s.AddMember(t.Context(), p, member.Member{Email: "eve@example.org", Role: access.Viewer}, comesIn)
		refused(t, err, "too_many_members")
	})
}

func TestInvitationsAreAccepted(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		ctx := t.Context()
		ada := join(t, s, "ada@example.org", "")
		p, q := placeOfProject(ada), placeOfProject(ada)
		for _, at := range []member.Place{p, q} {
			if _, err := s.AddMember(ctx, at, member.Member{Email: "Eve@Example.org", Role: access.Editor}, comesIn); err != nil {
				t.Fatal(err)
			}
		}
		eve := join(t, s, "eve@example.org", "") // who registers comes in
		for _, at := range []member.Place{p, q} {
			if g, err := grantOf(s, eve.ID, string(at.Project)); err != nil || g.Role != access.Editor {
				t.Errorf("%+v, %v", g, err)
			}
		}
		// One that came in the very moment is accepted by whoever looks, once.
		if err := s.db.Write(ctx, func(tx *Tx) error {
			return tx.Commit(func(b *Batch) {
				b.Exec(`DELETE FROM grants WHERE project_id = ?`, p.Project)
				b.Exec(`INSERT INTO invitations (id, project_id, tenant_id, email, email_folded, role, inviter_id, created_at)
					VALUES ('inv_late', ?, ?, 'eve@example.org', 'eve@example.org', 'viewer', '', 0)`, p.Project, p.Tenant)
			})
		}); err != nil {
			t.Fatal(err)
		}
		var done sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			done.Go(func() { _, errs[i] = s.AcceptInvitations(ctx, "", noon(time.Hour), 10) })
		}
		done.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Error(err)
		}
		list := settle[[]member.Member](t)(s.ListMembers(ctx, p))
		if len(list) != 2 || list[1].Account != eve.ID || list[1].Role != access.Viewer {
			t.Errorf("%+v", list)
		}
		events := settle[[]event.Event](t)(s.Since(ctx, 0, 100))
		accepted := 0
		for _, e := range events {
			if e.Type == "member.added" && e.Actor.ID == eve.ID && strings.Contains(string(e.Data), string(eve.ID)) {
				accepted++
			}
		}
		if accepted != 3 {
			t.Errorf("%d acceptances are told of, want 3", accepted)
		}
	})
}

func TestShortcutsThatAreDue(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		ctx := t.Context()
		ada, bob := join(t, s, "ada@example.org", ""), join(t, s, "bob@example.org", "")
		p := placeOfProject(ada)
		if _, err := s.AddMember(ctx, p, member.Member{Email: bob.Email, Role: access.Viewer}, comesIn); err != nil {
			t.Fatal(err)
		}
		due := func(now time.Duration) []DueShortcut {
			t.Helper()
			return settle[[]DueShortcut](t)(s.DueShortcuts(ctx, noon(now), noon(now+time.Minute), 10))
		}
		list := due(time.Hour)
		if len(list) != 1 || list[0].Account != bob.ID || list[0].Tenant != bob.Tenant || list[0].Project != p.Project {
			t.Fatalf("%+v", list)
		}
		if again := due(time.Hour); len(again) > 0 {
			t.Errorf("somebody else got it too: %+v", again)
		}
		// Marked once more while somebody looks: it is not done.
		if err := s.MarkProject(ctx, p.Project, noon(0)); err != nil {
			t.Fatal(err)
		}
		if err := s.SettleShortcut(ctx, list[0], time.Time{}); err != nil {
			t.Fatal(err)
		}
		if list = due(time.Hour); len(list) != 1 {
			t.Fatalf("a mark was lost: %+v", list)
		}
		if err := s.SettleShortcut(ctx, list[0], noon(3*time.Hour)); err != nil {
			t.Fatal(err)
		}
		if early := due(2 * time.Hour); len(early) > 0 {
			t.Errorf("put off, yet: %+v", early)
		}
		if list = due(3 * time.Hour); len(list) != 1 {
			t.Fatalf("put off for ever: %+v", list)
		}
		if err := s.SettleShortcut(ctx, list[0], time.Time{}); err != nil {
			t.Fatal(err)
		}
		if list = due(24 * time.Hour); len(list) > 0 {
			t.Errorf("%+v", list)
		}
		// Of two who looked at once the slower one may have written what was true before, and a row that began anew is not its.
		if err := s.MarkProject(ctx, p.Project, noon(25*time.Hour)); err != nil {
			t.Fatal(err)
		}
		slow := due(25 * time.Hour)
		quick := due(26 * time.Hour)
		for _, d := range []DueShortcut{quick[0], slow[0]} {
			if err := s.SettleShortcut(ctx, d, time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
		again := due(26 * time.Hour)
		if len(slow) != 1 || len(quick) != 1 || len(again) != 1 {
			t.Fatalf("%+v, %+v, then %+v", slow, quick, again)
		}
		if err := s.SettleShortcut(ctx, again[0], time.Time{}); err != nil {
			t.Fatal(err)
		}
		if err := s.MarkProject(ctx, p.Project, noon(27*time.Hour)); err != nil {
			t.Fatal(err)
		}
		if err := s.SettleShortcut(ctx, slow[0], time.Time{}); err != nil {
			t.Fatal(err)
		}
		if again = due(28 * time.Hour); len(again) != 1 {
			t.Fatalf("a mark was lost to who looked before: %+v", again)
		}
		if err := s.SettleShortcut(ctx, again[0], time.Time{}); err != nil {
			t.Fatal(err)
		}
		// After a restore everybody who has to do with members is looked at.
		if err := s.Revive(ctx, happened("installation.restored", "", time.Hour)); err != nil {
			t.Fatal(err)
		}
		list = due(48 * time.Hour)
		if len(list) != 2 || list[0].Project != "" || list[1].Project != "" || list[0].Account == list[1].Account {
			t.Errorf("%+v", list)
		}
	})
}

func TestErasuresEndMemberships(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		ctx := t.Context()
		ada, bob, eve := join(t, s, "ada@example.org", ""), join(t, s, "bob@example.org", ""), join(t, s, "eve@example.org", "")
		p, q := placeOfProject(ada), placeOfProject(bob)
		for at, who := range map[member.Place][]string{p: {"bob@example.org", "eve@example.org"}, q: {"ada@example.org", "eve@example.org"}} {
			for _, email := range who {
				if _, err := s.AddMember(ctx, at, member.Member{Email: email, Role: access.Editor}, comesIn); err != nil {
					t.Fatal(err)
				}
			}
		}
		before := settle[event.Seq](t)(s.Head(ctx))
		if err := s.EraseTenant(ctx, tenant.Erasure{Tenant: ada.Tenant, Account: ada.ID, At: noon(time.Hour)}, "", happened("account.erased", string(ada.ID), time.Hour)); err != nil {
			t.Fatal(err)
		}
		for _, a := range []ident.AccountID{bob.ID, eve.ID} {
			_, err := grantOf(s, a, string(p.Project))
			refused(t, err, "not_found")
		}
		if list := settle[[]member.Member](t)(s.ListMembers(ctx, q)); len(list) != 2 || list[1].Account != eve.ID {
			t.Errorf("%+v", list)
		}
		events := settle[[]event.Event](t)(s.Since(ctx, before, 10))
		if len(events) != 2 || events[1].Type != "member.removed" || events[1].Subject != string(q.Project) {
			t.Errorf("%+v", events)
		}
		news := settle[[]News](t)(s.News(ctx, noon(24*time.Hour), 10))
		if !slices.ContainsFunc(news, func(n News) bool { return n.Tenant == bob.Tenant && n.Event.ID == events[1].ID }) {
			t.Errorf("%+v", news)
		}
		for _, n := range news {
			if n.Tenant == ada.Tenant {
				t.Errorf("told to whom is gone: %+v", n)
			}
		}
		if gone := settle[[]access.Grant](t)(s.DropShares(ctx, bob.Tenant, noon(time.Hour))); len(gone) != 1 || gone[0].Account != eve.ID {
			t.Errorf("%+v", gone)
		}
		list := settle[[]DueShortcut](t)(s.DueShortcuts(ctx, noon(48*time.Hour), noon(49*time.Hour), 10))
		if len(list) != 3 { // bob and eve to p, eve to q
			t.Errorf("%+v", list)
		}
		if shared, err := s.IsShared(ctx, q); shared || err != nil {
			t.Errorf("%v %v", shared, err)
		}
	})
}

// onTenant runs a test on a fresh tenant's database of each engine.
func onTenant(t *testing.T, test func(t *testing.T, s *TenantStore)) {
	t.Helper()
	for _, e := range []struct {
		name string
		open func(*testing.T) *DB
	}{{"sqlite", onSQLite}, {"postgres", onPostgres}} {
		t.Run(e.name, func(t *testing.T) {
			db := e.open(t)
			if _, err := Migrate(t.Context(), db, Tenant); err != nil {
				t.Fatal(err)
			}
			test(t, NewTenantStore(db, nil))
		})
	}
}

// TestOnly: through the store of one project nothing else is found, changed or added.
func TestOnly(t *testing.T) {
	onTenant(t, func(t *testing.T, s *TenantStore) {
		ctx := t.Context()
		seed := func() (p ident.ProjectID, c ident.ConversationID, m ident.MessageID, turn ident.TurnID) {
			p, c = ident.New[ident.ProjectID](), ident.New[ident.ConversationID]()
			if err := s.InsertProject(ctx, project.Project{ID: p}, happened("project.created", string(p), 0)); err != nil {
				t.Fatal(err)
			}
			conv := conversation.Conversation{ID: c, Version: 1, Details: conversation.Details{ProjectID: p, Title: "lighthouse"}}
			in := `"project_id":"` + string(p) + `"}`
			begun := happened("conversation.created", string(c), 0)
			begun.Events[0].Data = []byte("{" + in)
			if err := s.InsertConversation(ctx, conv, begun); err != nil {
				t.Fatal(err)
			}
			m, turn = ident.New[ident.MessageID](), ident.New[ident.TurnID]()
			answer := ident.New[ident.MessageID]()
			if _, _, err := s.Append(ctx, c, conversation.Where{}, func(conversation.Spot) (conversation.Entry, event.Change, error) {
				ch := happened("message.created", string(m), 0)
				ch.Events[0].Data = []byte(`{"conversation_id":"` + string(c) + `",` + in)
				return conversation.Entry{Messages: []conversation.Message{{ID: m, Role: conversation.User, Content: "a lighthouse", State: conversation.Completed},
					{ID: answer, Role: conversation.Assistant, Content: "dark", State: conversation.Completed}},
					Turn: &conversation.Turn{ID: turn, Conversation: c, UserMessage: m, AssistantMessage: answer, State: conversation.Completed}}, ch, nil
			}); err != nil {
				t.Fatal(err)
			}
			return p, c, m, turn
		}
		mine, here, message, turn := seed()
		other, there, hidden, theirs := seed()
		o := s.Only(mine)
		missing := func(what string, err error) {
			t.Helper()
			if !fault.Is(err, fault.NotFound) {
				t.Errorf("%s: %v", what, err)
			}
		}
		fine := func(what string, err error) {
			t.Helper()
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		all := func(s *TenantStore, p ident.ProjectID, c ident.ConversationID, m ident.MessageID, turn ident.TurnID, is func(string, error)) {
			t.Helper()
			_, err := s.FindProject(ctx, p)
			is("find a project", err)
			is("has a project", s.HasProject(ctx, p))
			_, err = s.UpdateProject(ctx, p, func(p project.Project) (project.Project, event.Change, error) { return p, event.Change{}, nil })
			is("edit a project", err)
			_, err = s.FindConversation(ctx, c)
			is("find", err)
			_, err = s.UpdateConversation(ctx, c, func(c conversation.Conversation) (conversation.Conversation, event.Change, error) {
				return c, event.Change{}, nil
			})
			is("edit", err)
			_, _, err = s.ListMessages(ctx, c, conversation.MessageQuery{Limit: 10})
			is("list messages", err)
			_, _, err = s.ListMessages(ctx, c, conversation.MessageQuery{Limit: 10, All: true})
			is("list all messages", err)
			_, err = s.FindMessage(ctx, c, m)
			is("find a message", err)
			_, _, _, err = s.FindTurn(ctx, c, turn)
			is("find a turn", err)
			_, _, err = s.Append(ctx, c, conversation.Where{}, func(conversation.Spot) (conversation.Entry, event.Change, error) {
				id := ident.New[ident.MessageID]()
				return conversation.Entry{Messages: []conversation.Message{{ID: id, State: conversation.Completed}}},
					happened("message.created", string(id), 0), nil
			})
			is("say something", err)
		}
		all(o, mine, here, message, turn, fine)
		all(o, other, there, hidden, theirs, missing)
		_, _, _, err := o.FindTurn(ctx, here, theirs)
		missing("a turn of another conversation", err)
		missing("delete a project", o.DeleteProject(ctx, other, true, nil))
		missing("delete", o.DeleteConversation(ctx, there, nil))
		missing("add", o.InsertConversation(ctx, conversation.Conversation{ID: ident.New[ident.ConversationID]()}, event.Change{}))
		for _, q := range []conversation.Query{{Limit: 10}, {Limit: 10, Project: other}} {
			if list, _, err := o.ListConversations(ctx, q); err != nil || len(list) != 1 || list[0].ID != here {
				t.Errorf("%+v, %v", list, err)
			}
		}
		fine("as ever", s.HasProject(ctx, other))
		_, err = o.Since(ctx, 0, 100)
		missing("the whole log", err)
		_, _, _, err = o.About(ctx, other, 0, 100, 100)
		missing("events of another project", err)
		events, upTo, more, err := o.About(ctx, mine, 0, 100, 100)
		if err != nil || len(events) != 3 || upTo != 7 || more { // the project, the conversation, and what was said in it
			t.Errorf("%d events up to %d, %v", len(events), upTo, err)
		}
		for _, e := range events {
			if e.Subject == string(other) || e.Subject == string(there) || e.Subject == string(hidden) {
				t.Errorf("%+v", e)
			}
		}
	})
}

// TestAboutLooksAtSoMuch: whoever asks for the events of one project has so many events looked at, whatever is in them.
func TestAboutLooksAtSoMuch(t *testing.T) {
	onTenant(t, func(t *testing.T, s *TenantStore) {
		mine, other := ident.New[ident.ProjectID](), ident.New[ident.ProjectID]()
		add := func(n int, kind string, p ident.ProjectID) {
			t.Helper()
			ch := happened(kind, string(ident.New[ident.ConversationID]()), 0)
			ch.Events = ch.Events[:0]
			for range n {
				ch.Add(kind, string(ident.New[ident.ConversationID]()), map[string]any{"project_id": p})
			}
			if err := s.Note(t.Context(), ch); err != nil {
				t.Fatal(err)
			}
		}
		add(30, "conversation.created", other)
		add(3, "conversation.created", mine)
		add(1, "database.activated", mine) // of which only the owner hears
		add(2, "conversation.created", mine)
		for name, c := range map[string]struct {
			of                     *TenantStore
			after                  event.Seq
			rows, limit, want, end int
			more                   bool
		}{
			"nothing in the window":        {s.Only(mine), 0, 20, 10, 0, 20, true},
			"the window's end":             {s.Only(mine), 20, 12, 10, 2, 32, true},
			"so many at a time":            {s.Only(mine), 20, 100, 2, 2, 32, true},
			"what is not shown is passed":  {s.Only(mine), 33, 100, 1, 0, 34, true},
			"the end":                      {s.Only(mine), 20, 100, 10, 5, 36, false},
			"as many as there are":         {s.Only(mine), 34, 100, 2, 2, 36, false},
			"after the end":                {s.Only(mine), 36, 100, 10, 0, 36, false},
			"far after the end":            {s.Only(mine), 99, 100, 10, 0, 99, false},
			"the owner is shown all of it": {s, 20, 100, 10, 6, 36, false},
		} {
			list, upTo, more, err := c.of.About(t.Context(), mine, c.after, c.rows, c.limit)
			if err != nil || len(list) != c.want || upTo != event.Seq(c.end) || more != c.more {
				t.Errorf("%s: %d events up to %d, more %v, %v", name, len(list), upTo, more, err)
			}
		}
	})
}

// TestShortcuts: others' projects stand in the list beside one's own, as they were last seen.
func TestShortcuts(t *testing.T) {
	onTenant(t, func(t *testing.T, s *TenantStore) {
		ctx := t.Context()
		var want []ident.ProjectID
		for i := range 5 {
			id := ident.New[ident.ProjectID]()
			want = append([]ident.ProjectID{id}, want...)
			p := project.Project{ID: id, Details: project.Details{Name: fmt.Sprint("Harbour ", i), Status: project.Active, Tags: []string{"sea"}}}
			if i%2 == 0 {
				if err := s.InsertProject(ctx, p, happened("project.created", string(id), 0)); err != nil {
					t.Fatal(err)
				}
				continue
			}
			p.Role, p.Owner, p.ConversationCount = access.Viewer, event.Who{ID: "usr_bob", Name: "Bob"}, 7
			for _, name := range []string{"was another", p.Name} { // twice is once
				p.Name = name
				if err := s.PutShortcut(ctx, p); err != nil {
					t.Fatal(err)
				}
			}
		}
		var got []ident.ProjectID
		for cursor := ""; ; {
			list, next, err := s.ListProjects(ctx, project.Query{Status: project.Active, Tag: "sea", Text: "HARB", Limit: 2, Cursor: cursor})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range list {
				got = append(got, p.ID)
				if p.Owner.Name == "Bob" && (p.Role != access.Viewer || p.ConversationCount != 7) || p.Owner.Name == "" && p.Role != "" {
					t.Errorf("%+v", p)
				}
			}
			if cursor = next; next == "" {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		if err := s.DropShortcut(ctx, want[1]); err != nil {
			t.Fatal(err)
		}
		if list, err := s.Shortcuts(ctx); err != nil || !slices.Equal(list, []ident.ProjectID{want[3]}) {
			t.Errorf("%v, %v", list, err)
		}
		// A shortcut is no project: nothing can be put into it, and it has no members here.
		_, err := s.FindProject(ctx, want[3])
		refused(t, err, "not_found")
		err = s.InsertConversation(ctx, conversation.Conversation{ID: ident.New[ident.ConversationID](),
			Details: conversation.Details{ProjectID: want[3]}}, happened("conversation.created", "c", 0))
		refused(t, err, "invalid_input")
	})
}

// What a guest does stands in the owner's trail, but not where the guest was.
func TestGuestsInTheTrail(t *testing.T) {
	onTenant(t, func(t *testing.T, s *TenantStore) {
		p := ident.New[ident.ProjectID]()
		if err := s.InsertProject(t.Context(), project.Project{ID: p}, happened("project.created", string(p), 0)); err != nil {
			t.Fatal(err)
		}
		want := map[*TenantStore]string{s: "192.0.2.7", s.Only(p): ""}
		for store, address := range want {
			c := ident.New[ident.ConversationID]()
			ch := happened("conversation.created", string(c), 0)
			ch.Actor.Address, ch.Actor.Session = "192.0.2.7", "ses_here"
			conv := conversation.Conversation{ID: c, Version: 1, Details: conversation.Details{ProjectID: p}}
			if err := store.InsertConversation(t.Context(), conv, ch); err != nil {
				t.Fatal(err)
			}
			entries, _, err := s.Trail().Entries(t.Context(), audit.Filter{Subject: string(c)}, "", 10)
			if err != nil || len(entries) != 1 || entries[0].Address != address || (entries[0].Session == "") != (address == "") {
				t.Errorf("%+v %v, want address %q", entries, err, address)
			}
		}
	})
}
