package tenant

import (
	"context"
	"time"

	"claude-memory-backend/internal/ident"
)

// Kind says what sort of place a tenant's database lives in.
type Kind string

// The placements. External (a PostgreSQL of the user's own) follows.
const (
	SQLite   Kind = "sqlite"   // one encrypted file under STORAGE_PATH
	Postgres Kind = "postgres" // a schema and a role in one of the operator's servers
)

// Placement is where one tenant's database lives.
type Placement struct {
	Kind Kind
	// Host names the operator's server for Postgres (an index-independent digest of its address without the
	// password); empty for SQLite. It is never a connection string.
	Host string
	// WrappedKey is the file's key sealed under the master key, for SQLite.
	WrappedKey []byte
}

// State is what a tenant may be used for.
type State string

// The states.
const (
	Active    State = "active"
	ReadOnly  State = "read_only"
	Suspended State = "suspended"
)

// Tenant is where one account's data lives.
type Tenant struct {
	ID        ident.TenantID
	Account   ident.AccountID
	Placement Placement
	State     State
	CreatedAt time.Time
}

// Directory answers where a tenant's database is. The master database keeps it.
type Directory interface {
	// FindTenant returns the tenant; fault.NotFound when there is none.
	FindTenant(ctx context.Context, id ident.TenantID) (Tenant, error)
}

// Hints says which tenants have something due, so that nobody has to open every database to find out. Hints may be
// lost or stale: acting on one twice, or on none, is harmless.
type Hints interface {
	// Hint notes that the tenant has something due at the time; an earlier hint stays.
	Hint(ctx context.Context, id ident.TenantID, due time.Time) error
	// Due returns tenants whose hint has come, oldest first.
	Due(ctx context.Context, now time.Time, limit int) ([]ident.TenantID, error)
	// Settle replaces the hint by the next one, or removes it when next is zero; a hint that became earlier meanwhile
	// than now stays.
	Settle(ctx context.Context, id ident.TenantID, now, next time.Time) error
}
