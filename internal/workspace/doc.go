// Package workspace owns the only door to a tenant's data: Pool.Acquire asks the directory where a tenant's database
// is and who may enter, opens it (once, however many ask) and hands out a leased Workspace with the tenant's services.
//
// Placements knows how to make, open and destroy databases on each kind of place; Pool bounds how many are open,
// closes the least recently used ones that nobody leases, keeps a tenant that cannot be opened from costing anybody
// else anything, looks after what is due in tenants that nobody asks for, and tells tenants' own logs what the master's
// says of their databases (news.go). The package holds no rule of any noun
// and no SQL.
//
// States of an entry in the pool:
//
//	(absent) ──► opening ──► open ──► (absent)   closed when idle, or to make room
//	                 │        │ ▲
//	                 │        ▼ │                behind what the directory says: tried again by those who ask; refused
//	                 │       behind              where the tenant lives elsewhere by now
//	                 └─────► failed ─► (absent)  refused quickly until its pause is over
package workspace
