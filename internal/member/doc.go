// Package member owns who takes part in a project: members with roles, and invitations of addresses that have no
// account yet.
//
// The master database decides and commits first: a grant (project, tenant, account, role) is there or it is not, and
// every request of a member asks for it. What follows from it, the shortcut in the member's tenant and the event in the
// owner's log, comes a moment later and may be done again. The package never sees anything of a project but its id and
// those of its conversations. Somebody who is invited gets a mail, kept in the same commit, once a week at most.
//
// States of a member: invited (no account has the address), active; an owner is always active and cannot be removed.
package member
