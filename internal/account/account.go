package account

import (
	"context"
	"encoding/json"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/tenant"
)

// Account is somebody who may sign in.
type Account struct {
	ID    ident.AccountID
	Email string
	Details
	Role      ident.Role
	Tenant    ident.TenantID
	State     State
	Version   int64
	CreatedAt time.Time
	UpdatedAt time.Time
}

// Details are what an account's owner may edit.
type Details struct {
	Name     string
	Settings json.RawMessage // JSON object
}

// State is whether an account may be used.
type State string

// The states.
const (
	Active    State = "active"
	Suspended State = "suspended"
)

// Registration says who may make an account.
type Registration string

// The modes. With ByInvitation accounts are made by the operator until invitations exist.
const (
	Open         Registration = "open"
	ByInvitation Registration = "invite"
	Closed       Registration = "closed"
)

// Origin is where a request comes from, for sessions, limits and the trail.
type Origin struct {
	Address   string // network address of the client
	Device    string // what the client calls itself
	RequestID string
}

// RegisterInput makes an account.
type RegisterInput struct {
	Email, Password, Name string
	SetupToken            string // makes the account an admin, once; printed by the first start in production
	Once                  *event.Once
}

// CreateInput is an operator's way to make an account.
type CreateInput struct {
	Email, Password, Name string
	Role                  ident.Role
}

// Grant is what signing in yields.
type Grant struct {
	Account      Account
	Session      ident.SessionID
	AccessToken  AccessToken
	ExpiresIn    time.Duration
	RefreshToken RefreshToken
	RefreshUntil time.Time
}

// Session is one signed-in device.
type Session struct {
	ID         ident.SessionID
	Device     string
	Address    string
	CreatedAt  time.Time
	LastUsedAt time.Time
	ExpiresAt  time.Time
	Current    bool // the one that asks
}

// Identity is who a verified access token, or a ticket, stands for.
type Identity struct {
	Actor     ident.Actor
	Tenant    ident.TenantID
	ExpiresAt time.Time // the token's
}

// Family is a session as the store keeps it.
type Family struct {
	Session
	Account       ident.AccountID
	CurrentHash   []byte // of the refresh token that is valid now
	PreviousHash  []byte // of the one before; nil when there was none
	PreviousUntil time.Time
	Successor     []byte // sealed: the current token, for whoever still asks with the previous one
	Generation    int64
	EndsAt        time.Time // however much it is used
	RevokedAt     *time.Time
	RevokedWhy    string
}

// Provisioner makes the database of a new tenant before its account is stored, and unmakes it if that fails.
type Provisioner interface {
	Provision(ctx context.Context, id ident.TenantID) (tenant.Placement, error)
	Discard(ctx context.Context, id ident.TenantID, at tenant.Placement) error
}
