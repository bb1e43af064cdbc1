// Package access owns who may do what in a tenant: the roles of projects, the actions, and the one matrix of both
// (matrix.go), which every service asks in the first line of every method.
//
// A Pass is what one account may do in an opened tenant: its owner everything, a member of a project what the member's
// role allows, in that project alone. A Grant is what makes somebody a member; the master database keeps it, ids only.
//
// The package never looks anything up: who has which grant is the master database's business, and which rows a pass
// reaches the stores'. What the holder of a pass may not see answers like what does not exist; what may be seen and not
// done is refused.
package access
