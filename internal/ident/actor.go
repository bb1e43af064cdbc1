package ident

// Role is what an account may do in the whole installation. What it may do in a project is access.Role.
type Role string

// The roles of accounts.
const (
	Member Role = "member"
	Admin  Role = "admin"
)

// Actor is who does something, with the facts an audit entry needs. Doors build it once per request from a verified
// session; services take it as an argument and check it first.
type Actor struct {
	Account   AccountID
	Name      string // display name, shown as a message's author
	Role      Role
	Session   SessionID
	Address   string // network address of the client
	RequestID string
	System    bool // the server itself: sweeps, the end of a turn
}

// System is the actor for what the server does by itself on behalf of an account's tenant.
func System(requestID string) Actor { return Actor{System: true, Name: "system", RequestID: requestID} }
