package account

import (
	"context"
	"encoding/json"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
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

// AccessToken proves a session for a few minutes. RefreshToken gets the next one. They print as ***.
type (
	AccessToken  = seal.Secret
	RefreshToken = seal.Secret
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

// Identity is who a verified access token stands for.
type Identity struct {
	Actor  ident.Actor
	Tenant ident.TenantID
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

// Newcomer is everything that is stored with a new account, in one transaction.
type Newcomer struct {
	Account Account
	Hash    string // of the password
	Tenant  tenant.Tenant
	Session *Family // nil: the operator makes it, nobody signs in
	// Promote makes the account an admin if it is the first one; the setup token's fact, when Fact is set, must be
	// there and is consumed, or the registration fails with CodeBadSetup.
	Promote bool
	Fact    string
}

// CodeBadSetup refuses a setup token that is wrong or used.
const CodeBadSetup = "setup_token_invalid"

// Store is what Service needs of the master database.
type Store interface {
	event.Onces
	Sessions
	Failures

	// InsertAccount stores a newcomer; it returns the account with the role it got. An e-mail that is taken is
	// Conflict with code "email_taken".
	InsertAccount(ctx context.Context, n Newcomer, change func(Account) event.Change) (Account, error)
	// FindAccount returns an account with its password's hash, by id.
	FindAccount(ctx context.Context, id ident.AccountID) (Account, string, error)
	// FindByEmail is the same by folded e-mail.
	FindByEmail(ctx context.Context, folded string) (Account, string, error)
	// ListAccounts returns a page, newest first.
	ListAccounts(ctx context.Context, cursor string, limit int) ([]Account, string, error)
	// UpdateAccount reads under a lock, lets edit decide, and commits account and hash. With endSessions the account's
	// sessions end in the same transaction, but for the one that is kept.
	UpdateAccount(ctx context.Context, id ident.AccountID,
		edit func(a Account, hash string) (Account, string, event.Change, error), end *EndSessions) (Account, error)
	// Refuse appends an entry to the trail about an attempt that changed nothing.
	Refuse(ctx context.Context, actor ident.Actor, at time.Time, action, subject string, detail json.RawMessage) error
	// PutFact stores a fact unless one of that name exists; it reports whether it did.
	PutFact(ctx context.Context, name string, value []byte, at time.Time) (bool, error)
	// FindFact returns a fact's value, NotFound when there is none.
	FindFact(ctx context.Context, name string) ([]byte, error)
	// SweepOnces forgets expired idempotency records.
	SweepOnces(ctx context.Context, now time.Time) (int64, error)
}

// EndSessions says which sessions end with a change of their account.
type EndSessions struct {
	Keep ident.SessionID // empty: none is kept
	Why  string
	At   time.Time
}

// Use says which of a family's tokens was shown.
type Use int

// The uses.
const (
	UseCurrent Use = iota
	UsePrevious
	UseSpent
)

// Sessions is the part of the store that keeps sessions.
type Sessions interface {
	InsertSession(ctx context.Context, f Family, c event.Change) error
	// FindSession returns a session that is neither revoked nor over, with its account.
	FindSession(ctx context.Context, id ident.SessionID, now time.Time) (Family, Account, error)
	// Rotate finds the family of a refresh token's hash, under a lock, lets decide judge, and commits what it returns:
	// the family, with the replaced current hash remembered as spent. An unknown hash is Unauthenticated.
	Rotate(ctx context.Context, hash []byte, decide func(Family, Account, Use) (Family, event.Change, error)) (Family, Account, error)
	// ListSessions returns the live sessions of an account, newest first.
	ListSessions(ctx context.Context, id ident.AccountID, now time.Time, cursor string, limit int) ([]Session, string, error)
	// EndSession ends one session of the account; NotFound when it has no such live session.
	EndSession(ctx context.Context, a ident.AccountID, id ident.SessionID, why string, c event.Change) error
	// EndSessions ends all sessions of the account.
	EndSessions(ctx context.Context, a ident.AccountID, e EndSessions, c event.Change) error
	// TouchSession notes that a session was used.
	TouchSession(ctx context.Context, id ident.SessionID, address string, at time.Time) error
	// SweepSessions removes sessions that ended before the time and returns how many.
	SweepSessions(ctx context.Context, before time.Time) (int64, error)
}

// Failures is the part of the store that counts failed sign-ins. Subjects are keyed hashes.
type Failures interface {
	AddFailures(ctx context.Context, subjects [][]byte, at time.Time) error
	// CountFailures returns, for each subject, how many there were since the time, and when the oldest of them was.
	CountFailures(ctx context.Context, subjects [][]byte, since time.Time) (counts []int, oldest []time.Time, err error)
	// ForgetFailures removes what is counted for a subject.
	ForgetFailures(ctx context.Context, subject []byte) error
	SweepFailures(ctx context.Context, before time.Time) (int64, error)
}
