package relocate

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	members "claude-memory-backend/internal/member"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

// TestMembersAndWholeTenants: moving an owner's or a member's tenant changes nothing for members; putting one back, and
// erasing, leaves neither access nor shortcuts that should not be, and takes none that should.
func TestMembersAndWholeTenants(t *testing.T) {
	h := newHouse(t)
	h.node.end()
	h.news, h.grants = h.store, h.store
	h.node = h.start("node-b", true)
	ten, ada := h.newTenant(tenant.SQLite)
	bobs, bob := h.newTenant(tenant.SQLite)
	bob.Name = "Bob"
	ctx := t.Context()

	talk := func(p ident.ProjectID) ident.ConversationID {
		t.Helper()
		ws := h.acquire(ada, ten.ID)
		defer ws.Release()
		c, err := ws.Conversations.Create(ctx, ada, conversation.CreateInput{Details: conversation.Details{ProjectID: p}})
		if err != nil {
			t.Fatal(err)
		}
		return c.ID
	}
	share := func() (ident.ProjectID, ident.ConversationID) {
		t.Helper()
		ws := h.acquire(ada, ten.ID)
		defer ws.Release()
		p, err := ws.Projects.Create(ctx, ada, project.CreateInput{Details: project.Details{Name: "Harbour"}})
		if err != nil {
			t.Fatal(err)
		}
		c := talk(p.ID)
		if _, err := ws.Members.Add(ctx, ada, p.ID, members.AddInput{Email: string(bob.Account) + "@example.com", Role: access.Viewer}); err != nil {
			t.Fatal(err)
		}
		return p.ID, c
	}
	// sees reports whether bob may read a conversation.
	sees := func(c ident.ConversationID) bool {
		t.Helper()
		ws, err := h.pool.Enter(ctx, bob, bobs.ID, string(c))
		if fault.Is(err, fault.NotFound) {
			return false
		}
		if err != nil {
			t.Fatal(err)
		}
		defer ws.Release()
		_, err = ws.Conversations.Find(ctx, bob, c)
		return err == nil
	}
	shortcuts := func(want ...ident.ProjectID) {
		t.Helper()
		var got []ident.ProjectID
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			ws := h.acquire(bob, bobs.ID)
			list, _, err := ws.Projects.List(ctx, bob, project.Query{Limit: 10})
			ws.Release()
			if err != nil {
				t.Fatal(err)
			}
			got = nil
			for _, p := range list {
				got = append(got, p.ID)
			}
			if slices.Equal(got, want) {
				return
			}
		}
		t.Fatalf("shortcuts to %v, want %v", got, want)
	}
	erase := func(who ident.Actor, of ident.TenantID, what string) {
		t.Helper()
		j, err := h.svc.Erase(ctx, who, of, what)
		if err != nil {
			t.Fatal(err)
		}
		if j = h.await(j.ID); j.State != job.Completed {
			t.Fatalf("%+v", j.Failure)
		}
	}

	p, c := share()
	shortcuts(p)
	r := h.repository()
	master, err := sqlstore.OpenSQLite(ctx, sqlstore.SQLiteOptions{Path: filepath.Join(h.dir, "master.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if _, err := r.Backup(ctx, Installation{Master: master, Store: h.store, Places: h.places}, BackupOptions{}); err != nil {
		t.Fatal(err)
	}
	h.moveTo(ada, ten.ID, h.place(ada, ten.ID, tenant.Postgres))
	h.moveTo(bob, bobs.ID, h.place(bob, bobs.ID, tenant.Postgres))
	later := talk(p)
	if !sees(c) || !sees(later) {
		t.Error("a move took access away")
	}
	shortcuts(p)

	command := New(Config{Store: h.store, Places: h.places, Keys: h.keys, Node: "command"})
	// Put back to before the second project, the member's tenant gets its shortcut again.
	q, d := share()
	shortcuts(q, p)
	if j, err := command.PutBack(ctx, r, bobs.ID, RestoreOptions{}); err != nil || j.State != job.Completed {
		t.Fatalf("%+v, %v", j, err)
	}
	shortcuts(q, p)
	// Put back to before it was made, the owner's has nothing left of it to be a member of.
	if j, err := command.PutBack(ctx, r, ten.ID, RestoreOptions{}); err != nil || j.State != job.Completed {
		t.Fatalf("%+v, %v", j, err)
	}
	shortcuts(p)
	if !sees(c) || sees(later) || sees(d) {
		t.Error("what is seen is not what is there")
	}

	erase(bob, bobs.ID, EraseData)
	shortcuts(p) // still a member
	if !sees(c) {
		t.Error("an erasure of the member's own data took access away")
	}
	erase(ada, ten.ID, EraseData)
	shortcuts()
	if sees(c) {
		t.Error("what was erased is seen")
	}

	p, _ = share()
	shortcuts(p)
	erase(bob, bobs.ID, EraseAccount)
	ws := h.acquire(ada, ten.ID)
	defer ws.Release()
	list, _, err := ws.Members.List(ctx, ada, p, "", 10)
	if err != nil || len(list) != 1 || list[0].Role != access.Owner {
		t.Errorf("%+v, %v", list, err)
	}
	told := false
	for deadline := time.Now().Add(time.Minute); !told && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		events, err := ws.Events.Since(ctx, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			told = told || e.Type == "member.removed" && e.Subject == string(p)
		}
	}
	if !told {
		t.Error("the owner's log does not tell that a member is gone")
	}
}
