package access

import (
	"slices"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Grant makes an account a member of a project, which lives in its owner's tenant.
type Grant struct {
	Project ident.ProjectID
	Tenant  ident.TenantID
	Account ident.AccountID
	Role    Role
}

// Pass is what one account may do in an opened tenant.
type Pass struct {
	Account ident.AccountID
	Role    Role
	Project ident.ProjectID // the only one that the pass is about; empty: the tenant's owner, everything
}

// Owning is the pass of a tenant's owner.
func Owning(owner ident.AccountID) Pass { return Pass{Account: owner, Role: Owner} }

// Pass is what the grant allows.
func (g Grant) Pass() Pass { return Pass{Account: g.Account, Role: g.Role, Project: g.Project} }

// Guest reports whether the pass is that of a member, not of the tenant's owner.
func (p Pass) Guest() bool { return p.Project != "" }

// Allow lets the server itself in, and whom the pass is for, as far as the role goes: another actor is NotFound, an
// action that the role does not have Forbidden with code "role_forbids".
func (p Pass) Allow(op string, actor ident.Actor, do Action) error {
	switch {
	case actor.System:
		return nil
	case actor.Account == "" || actor.Account != p.Account:
		return fault.Missing(op)
	case Allows(p.Role, do):
		return nil
	case slices.Contains(unseen, do):
		return fault.Missing(op)
	}
	return fault.New(fault.Forbidden, op, "role_forbids", "your role in this project does not let you "+string(do))
}

// Allows is the matrix as a question.
func Allows(r Role, do Action) bool {
	roles, known := matrix[do]
	return known && (r == Owner || slices.Contains(roles, r))
}

// Part is something of a shared project that has an id of its own: a conversation, at a version of its details.
type Part struct {
	ID      ident.ConversationID
	Version int64
}
