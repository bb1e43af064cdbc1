package httpapi

import (
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/member"
)

// memberView is a member of a project as clients see it.
type memberView struct {
	UserID       *string   `json:"user_id" doc:"null while invited"`
	InvitationID *string   `json:"invitation_id,omitempty" doc:"While invited: names the invitation in the path, in the place of user_id"`
	Email        string    `json:"email"`
	Name         string    `json:"name" doc:"Empty while invited"`
	Role         string    `json:"role" enum:"owner,editor,commenter,viewer"`
	State        string    `json:"state" enum:"active,invited" doc:"invited: nobody has an account with this address yet; who registers with it becomes a member"`
	Since        time.Time `json:"since"`
}

func viewMember(m member.Member) memberView {
	return memberView{UserID: orNull(string(m.Account)), InvitationID: orNull(string(m.Invitation)), Email: m.Email, Name: m.Name,
		Role: string(m.Role), State: string(m.State), Since: m.Since.UTC()}
}

type memberList struct {
	Call
	ProjectPath
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"20"`
	Cursor string `query:"cursor" maxLength:"1024" doc:"From next_cursor"`
}

func (s *Server) listMembers(x *exchange, in *memberList) (*paged[memberView], error) {
	id, err := idAt[ident.ProjectID](in.ID)
	if err != nil {
		return nil, err
	}
	return at(x, in.ID, func(ws Workspace) (*paged[memberView], error) {
		list, next, err := ws.Members.List(x.ctx, x.actor, id, in.Cursor, in.Limit)
		if err != nil {
			return nil, err
		}
		return pageOf(list, next, viewMember), nil
	})
}

type memberBody struct {
	Email string `json:"email" maxLength:"254" example:"grace@example.com"`
	Role  string `json:"role" enum:"editor,commenter,viewer"`
}

type memberAdd struct {
	Call
	ProjectPath
	Body memberBody
}

type addedMember struct {
	Location string `header:"Location"`
	Replayed string `header:"Idempotency-Replayed" doc:"true when this is an earlier answer"`
	Body     memberView
}

func (s *Server) addMember(x *exchange, in *memberAdd) (*addedMember, error) {
	once, err := x.once()
	if err != nil {
		return nil, err
	}
	id, err := idAt[ident.ProjectID](in.ID)
	if err != nil {
		return nil, err
	}
	m, err := at(x, in.ID, func(ws Workspace) (member.Member, error) {
		return ws.Members.Add(x.ctx, x.actor, id, member.AddInput{Email: in.Body.Email, Role: access.Role(in.Body.Role), Once: once})
	})
	if err != nil {
		return nil, err
	}
	return &addedMember{Location: basePath + "/projects/" + in.ID + "/members/" + m.Key(), Replayed: replayed(once),
		Body: viewMember(m)}, nil
}

// MemberPath names a member of a project in the path.
type MemberPath struct {
	ProjectPath
	UserID string `path:"user_id" doc:"Identifier of an account, usr_…, or of an invitation, inv_…" example:"usr_06f4k3z9c8tqv5m2yb7n1x0d4e"`
}

func (p MemberPath) parse() (ident.ProjectID, string, error) {
	id, err := idAt[ident.ProjectID](p.ID)
	if err != nil {
		return "", "", err
	}
	if _, err := ident.Parse[ident.AccountID](p.UserID); err == nil {
		return id, p.UserID, nil
	}
	if _, err := ident.Parse[ident.InvitationID](p.UserID); err == nil {
		return id, p.UserID, nil
	}
	return "", "", fault.Missing("httpapi.MemberPath")
}

type memberRole struct {
	Role string `json:"role" enum:"editor,commenter,viewer"`
}

type memberChange struct {
	Call
	MemberPath
	Body memberRole
}

type memberAnswer struct{ Body memberView }

func (s *Server) changeMember(x *exchange, in *memberChange) (*memberAnswer, error) {
	id, key, err := in.parse()
	if err != nil {
		return nil, err
	}
	m, err := at(x, in.ID, func(ws Workspace) (member.Member, error) {
		return ws.Members.Change(x.ctx, x.actor, id, key, access.Role(in.Body.Role))
	})
	if err != nil {
		return nil, err
	}
	return &memberAnswer{viewMember(m)}, nil
}

type memberRemove struct {
	Call
	MemberPath
}

func (s *Server) removeMember(x *exchange, in *memberRemove) (*nothing, error) {
	id, key, err := in.parse()
	if err != nil {
		return nil, err
	}
	return at(x, in.ID, func(ws Workspace) (*nothing, error) { return &nothing{}, ws.Members.Remove(x.ctx, x.actor, id, key) })
}
