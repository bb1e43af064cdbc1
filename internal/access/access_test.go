package access_test

import (
	"testing"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// TestMatrix writes the matrix down once more, cell by cell: who changes it has to mean it.
func TestMatrix(t *testing.T) {
	for do, want := range map[access.Action]string{
		//                        owner, editor, commenter, viewer, nobody
		access.ReadProject:        "yes yes yes yes no",
		access.EditProject:        "yes yes no no no",
		access.CreateProject:      "yes unseen unseen unseen unseen",
		access.ListProjects:       "yes unseen unseen unseen unseen",
		access.DeleteProject:      "yes no no no no",
		access.ManageMembers:      "yes no no no no",
		access.ReadConversation:   "yes yes yes yes no",
		access.TakePart:           "yes yes yes no no",
		access.CreateConversation: "yes yes no no no",
		access.EditConversation:   "yes yes no no no",
		access.DeleteConversation: "yes yes no no no",
		access.MoveConversation:   "yes no no no no",
		access.ManageWebhooks:     "yes unseen unseen unseen unseen",
		"something new":           "no no no no no",
	} {
		got := ""
		actor := ident.Actor{Account: "usr_a"}
		for _, r := range append(access.Roles(), "") {
			p := access.Pass{Account: actor.Account, Role: r, Project: "prj_p"}
			switch err := p.Allow("op", actor, do); {
			case err == nil:
				got += " yes"
			case fault.CodeOf(err) == "role_forbids" && fault.Is(err, fault.Forbidden):
				got += " no"
			case fault.Is(err, fault.NotFound):
				got += " unseen"
			default:
				t.Errorf("%s: %v", do, err)
			}
			if err := p.Allow("op", ident.System(""), do); err != nil {
				t.Errorf("the server itself may not %s: %v", do, err)
			}
			for _, other := range []ident.Actor{{}, {Account: "usr_b"}} {
				if err := p.Allow("op", other, do); !fault.Is(err, fault.NotFound) {
					t.Errorf("somebody else may %s: %v", do, err)
				}
			}
		}
		if got != " "+want {
			t.Errorf("%s: %s, want %s", do, got, want)
		}
	}
}

func TestPasses(t *testing.T) {
	owner := access.Owning("usr_a")
	if owner.Guest() || owner.Role != access.Owner {
		t.Errorf("%+v", owner)
	}
	g := access.Grant{Project: "prj_p", Tenant: "ten_t", Account: "usr_b", Role: access.Viewer}
	if p := g.Pass(); !p.Guest() || p.Account != g.Account || p.Role != g.Role || p.Project != g.Project {
		t.Errorf("%+v", p)
	}
	// Nobody is an account without a name, also where a pass has none.
	if err := (access.Pass{Role: access.Owner}).Allow("op", ident.Actor{}, access.ReadProject); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}
