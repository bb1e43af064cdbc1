// Package workspace owns the only door to a tenant's data: Pool.Acquire asks the directory where a tenant's database
// is and who may enter, opens it (once, however many ask) and hands out a leased Workspace with the tenant's services.
//
// A member of somebody else's project gets in by Pool.Visit, which asks the master for a grant every time, or by Pool.Enter,
// which looks in the own tenant first: what is handed out then reaches the one project and nothing else of its owner's
// tenant. Shortcuts in members' own tenants follow the projects that they lead to (shortcuts.go).
//
// Placements knows how to make, open and destroy databases on each kind of place; Pool bounds how many are open,
// closes the least recently used ones that nobody leases, keeps a tenant that cannot be opened from costing anybody
// else anything, looks after what is due in tenants that nobody asks for, and tells tenants' own logs what the master's
// says of their databases and members (news.go). Feeds let logs be followed, and read again within each account's share
// (again.go). The package holds no rule of any noun and no SQL.
//
// States of an entry in the pool:
//
//	(absent) ──► opening ──► open ──► (absent)   closed when idle, or to make room
//	                 │        │ ▲
//	                 │        ▼ │                behind what the directory says: tried again by those who ask; refused
//	                 │       behind              where the tenant lives elsewhere by now
//	                 └─────► failed ─► (absent)  refused quickly until its pause is over
package workspace
