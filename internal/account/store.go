package account

import (
	"context"
	"encoding/json"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/tenant"
)

// Newcomer is everything that is stored with a new account, in one transaction.
type Newcomer struct {
	Account Account
	Hash    string // of the password
	Tenant  tenant.Tenant
	Session *Family // nil: the operator makes it, nobody signs in
	// Promote makes the account an admin if it is the first one ever.
	Promote bool
	// Fact, when set, names the fact that makes this account an admin. It is used up, and what is left of it is empty;
	// one that is used or was never there is Forbidden with code CodeBadSetup.
	Fact string
}

// CodeBadSetup refuses a setup token that is wrong or used.
const CodeBadSetup = "setup_token_invalid"

// Store is what Service needs of the master database.
type Store interface {
	event.Onces
	Accounts
	Sessions
	SignIns

	// PutFact stores a fact unless one of that name exists; it reports whether it did.
	PutFact(ctx context.Context, name string, value []byte, at time.Time) (bool, error)
	// FindFact returns a fact's value, NotFound when there is none.
	FindFact(ctx context.Context, name string) ([]byte, error)
	// Spend notes that something which works once was used, until then; it is false when that was noted before. Of
	// several that try at once, on whatever node, one succeeds.
	Spend(ctx context.Context, what string, key []byte, until time.Time) (bool, error)
	// SweepOnces forgets expired idempotency records, and what was spent.
	SweepOnces(ctx context.Context, now time.Time) (int64, error)
}

// Accounts is the part of the store that keeps accounts.
type Accounts interface {
	// InsertAccount stores a newcomer; it returns the account with the role it got. An e-mail that is taken is
	// Conflict with code "email_taken".
	InsertAccount(ctx context.Context, n Newcomer, change func(Account) event.Change) (Account, error)
	// FindAccount returns an account with its password's hash, by id.
	FindAccount(ctx context.Context, id ident.AccountID) (Account, string, error)
	// FindByEmail is the same by folded e-mail.
	FindByEmail(ctx context.Context, folded string) (Account, string, error)
	// ListAccounts returns a page, newest first.
	ListAccounts(ctx context.Context, cursor string, limit int) ([]Account, string, error)
	// UpdateAccount reads under a lock, lets edit decide, and commits account and hash, together with what goes along.
	UpdateAccount(ctx context.Context, id ident.AccountID,
		edit func(a Account, hash string) (Account, string, event.Change, error), along Along) (Account, error)
}

// Along is what else happens in the transaction that updates an account. The lock on the account orders it: a session
// cannot start under a password that is being replaced.
type Along struct {
	Start  *Family      // a session that starts
	End    *EndSessions // sessions that end
	Forget []byte       // failures of this subject are forgotten
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

// Live is a session in use, as much of it as a request needs.
type Live struct {
	Session    ident.SessionID
	Account    ident.AccountID
	Name       string
	Role       ident.Role
	State      State
	Tenant     ident.TenantID
	LastUsedAt time.Time
	ExpiresAt  time.Time
}

// Touch notes that a session was used.
type Touch struct {
	Session ident.SessionID
	Address string
	At      time.Time
}

// Sessions is the part of the store that keeps sessions.
type Sessions interface {
	// FindLive returns a session that is neither revoked nor over.
	FindLive(ctx context.Context, id ident.SessionID, now time.Time) (Live, error)
	// Rotate finds the family of a refresh token's hash, under a lock, lets decide judge, and commits what it returns:
	// the family, with the replaced current hash remembered as spent. An unknown hash is Unauthenticated.
	Rotate(ctx context.Context, hash []byte, decide func(Family, Account, Use) (Family, event.Change, error)) (Family, Account, error)
	// ListSessions returns the live sessions of an account, newest first.
	ListSessions(ctx context.Context, id ident.AccountID, now time.Time, cursor string, limit int) ([]Session, string, error)
	// EndSession ends one session of the account; NotFound when it has no such live session.
	EndSession(ctx context.Context, a ident.AccountID, id ident.SessionID, why string, c event.Change) error
	// EndSessions ends all sessions of the account.
	EndSessions(ctx context.Context, a ident.AccountID, e EndSessions, c event.Change) error
	// TouchSessions notes last uses; a later one that is known stays.
	TouchSessions(ctx context.Context, list []Touch) error
	// SweepSessions removes sessions that ended longer ago than keep and returns how many; and it forgets sealed
	// successors whose grace is over.
	SweepSessions(ctx context.Context, now time.Time, keep time.Duration) (int64, error)
}

// Attempt is what is known when somebody tries to sign in.
type Attempt struct {
	Account Account
	Hash    string // empty when there is no such account
	// Counts are the failures of each subject since the time asked for, Oldest is when the first of them was.
	Counts []int
	Oldest []time.Time
	// Addresses are those that the account's sessions were last used from, the newest ones.
	Addresses []string
}

// Refusal is an attempt that changed nothing: an entry in the trail, and failures to count. Subjects are keyed hashes.
type Refusal struct {
	Actor    ident.Actor
	At       time.Time
	Action   string
	Subject  string // empty when the attempt was about nobody that there is
	Detail   json.RawMessage
	Failures [][]byte
}

// SignIns is the part of the store that counts failed attempts to sign in.
type SignIns interface {
	// FindAttempt reads everything that a sign-in needs at once: the same work whether the account exists or not.
	FindAttempt(ctx context.Context, folded string, subjects [][]byte, since time.Time) (Attempt, error)
	// Refuse notes an attempt that failed.
	Refuse(ctx context.Context, r Refusal) error
	// SweepFailures removes failures that are older and returns how many.
	SweepFailures(ctx context.Context, before time.Time) (int64, error)
}
