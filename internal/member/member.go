package member

import (
	"context"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/mail"
)

// State says whether a member can come in.
type State string

// The states.
const (
	Active  State = "active"
	Invited State = "invited" // nobody has registered with the address yet
)

// Max is how many members and invitations a project may have besides its owner.
const Max = 200

// Member is somebody who takes part in a project, or is asked to.
type Member struct {
	Account    ident.AccountID    // empty while Invited
	Invitation ident.InvitationID // empty when Active
	Email      string
	Name       string // empty while Invited
	Role       access.Role
	State      State
	Since      time.Time
	// Notice is the mail that tells who is invited, kept together with the invitation; nil: none is sent.
	Notice *mail.Entry `json:"-"`
}

// Key names a member among those of a project.
func (m Member) Key() string {
	if m.State == Invited {
		return string(m.Invitation)
	}
	return string(m.Account)
}

// Place is the project that members are of, with where it lives.
type Place struct {
	Project ident.ProjectID
	Tenant  ident.TenantID
	Owner   ident.AccountID
}

// Store keeps grants and invitations: the master database.
type Store interface {
	event.Onces
	// ListMembers returns the owner, then everybody else in the order of their coming, then who is invited.
	ListMembers(ctx context.Context, p Place) ([]Member, error)
	// IsShared reports whether the project is in the tenant as far as the master knows, because it has, or had, members: then
	// its conversations have routes.
	IsShared(ctx context.Context, p Place) (bool, error)
	// AddMember makes the account with the address a member, or invites the address, and makes the project a shared one.
	// describe completes the member and tells of it. Who is one already is Conflict with code "member_exists", too many are
	// "too_many_members"; a repeated idempotency record fails with event.CodeRepeated.
	AddMember(ctx context.Context, p Place, m Member, describe func(*Member) (event.Change, error)) (Member, error)
	// PutRoutes says of a shared project's conversations where they are.
	PutRoutes(ctx context.Context, p Place, parts []access.Part) error
	// ChangeMember reads a member other than the owner under a lock, lets edit decide, and commits the role that it
	// returns. NotFound: nobody has that key.
	ChangeMember(ctx context.Context, p Place, key string, edit func(Member) (Member, event.Change, error)) (Member, error)
	// RemoveMember takes a grant or an invitation away, if decide agrees.
	RemoveMember(ctx context.Context, p Place, key string, decide func(Member) (event.Change, error)) (Member, error)
}

// Projects is what the service needs of the tenant that the project lives in.
type Projects interface {
	// HasProject is NotFound when there is no such project.
	HasProject(ctx context.Context, id ident.ProjectID) error
	// Writable is why nothing in the tenant may be changed at the moment, or nil.
	Writable() error
	// Parts lists the conversations of a project.
	Parts(ctx context.Context, id ident.ProjectID) ([]access.Part, error)
}
