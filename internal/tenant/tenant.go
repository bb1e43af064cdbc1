package tenant

import (
	"context"
	"fmt"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Kind says what sort of place a database lives in.
type Kind string

// The kinds of place.
const (
	SQLite   Kind = "sqlite"   // one encrypted file under STORAGE_PATH
	Postgres Kind = "postgres" // a schema and a role in one of the operator's servers
	External Kind = "external" // a schema in a PostgreSQL of the user's own
)

// Placement is where one copy of a tenant's data lives, with what is needed to open it.
type Placement struct {
	// Database names the copy: its file or schema is named after it, so several copies of one tenant never meet.
	Database ident.DatabaseID
	Kind     Kind
	// Host names the operator's server for Postgres (an index-independent digest of its address without the
	// password); empty otherwise. It is never a connection string.
	Host string
	// WrappedKey is the file's key sealed under the master key, for SQLite.
	WrappedKey []byte
	// Address and SealedPassword lead to the user's own server, for External.
	Address        Address
	SealedPassword []byte
}

// First is the id of a tenant's first database: it shares the tenant's own characters, so that what was made before
// tenants could have several is found under the name it always had.
func First(id ident.TenantID) ident.DatabaseID {
	return ident.DatabaseID(ident.DatabaseID("").Prefix() + string(id)[len(id.Prefix()):])
}

// State is what a tenant may be used for.
type State string

// The states. A tenant that is being moved stays Active (or ReadOnly): see Tenant.Job.
const (
	Active      State = "active"
	ReadOnly    State = "read_only"   // the operator stopped changes; everything can be read
	Suspended   State = "suspended"   // the operator closed it; nobody but the server gets in
	Quarantined State = "quarantined" // its schema or content is not sound: it can be read as far as it can be read
	Moving      State = "moving"      // shown, never stored: a job works on the whole of it
	Erased      State = "erased"      // shown in the ledger only: the tenant is gone for good
)

// Limits bound what one tenant may keep. 0 means the installation's default, and there none; below 0 there is none.
type Limits struct {
	Bytes    int64 // of text, as Usage counts it
	Messages int64
}

// Usage is how much a tenant keeps.
type Usage struct {
	Messages int64
	Bytes    int64 // of the text of projects, conversations, complete messages, and system prompts
}

// Or fills in the defaults; what has no limit is 0.
func (l Limits) Or(defaults Limits) Limits {
	pick := func(own, other int64) int64 {
		if own == 0 {
			own = other
		}
		return max(own, 0)
	}
	return Limits{Bytes: pick(l.Bytes, defaults.Bytes), Messages: pick(l.Messages, defaults.Messages)}
}

// NoMessages is the refusal of more messages: Forbidden, code "quota_messages".
func (l Limits) NoMessages(op string, used Usage) error {
	return fault.New(fault.Forbidden, op, "quota_messages", fmt.Sprintf("this account may keep %d messages and has %d: "+
		"delete conversations that are not needed, or ask the operator for more", l.Messages, used.Messages))
}

// NoBytes is the refusal of more text: Forbidden, code "quota_storage".
func (l Limits) NoBytes(op string, used Usage) error {
	return fault.New(fault.Forbidden, op, "quota_storage", fmt.Sprintf("this account may keep %d bytes and has %d: "+
		"delete conversations that are not needed, or ask the operator for more", l.Bytes, used.Bytes))
}

// Tenant is where one account's data lives.
type Tenant struct {
	ID        ident.TenantID
	Account   ident.AccountID
	Placement Placement // of the active database
	State     State
	// Job is the job that works on the whole tenant now; empty when there is none.
	Job       ident.JobID
	Limits    Limits
	Schema    Schema
	CreatedAt time.Time
}

// Shown is the state as people see it.
func (t Tenant) Shown() State {
	if t.Job != "" && (t.State == Active || t.State == ReadOnly) {
		return Moving
	}
	return t.State
}

// Schema is what is known of the active database's schema since it was last migrated or looked at.
type Schema struct {
	Version int64     // 0: never noted
	Problem string    // stable code of why it is not as it should be; empty when it is
	At      time.Time // when that was noted
}

// SchemaHeld is the problem of a schema that somebody took back to the version before: it is not brought up to date
// again until that is asked for.
const SchemaHeld = "schema_held"

// DatabaseState is how one of a tenant's databases is used.
type DatabaseState string

// The states of a database.
const (
	Ready    DatabaseState = "ready"    // an address that was registered; nothing of the tenant is in it
	InUse    DatabaseState = "active"   // the tenant's data lives here
	Filling  DatabaseState = "filling"  // a job is copying into it, or could not take away what it had copied
	Original DatabaseState = "original" // what the tenant moved away from: kept, read-only, until it is released
	Released DatabaseState = "released" // let go of: the server has no credentials of it and asks nothing of it
	Empty    DatabaseState = "empty"    // a hosted place without a copy; activating it makes one
)

// Database is one configuration of a place for a tenant's data.
type Database struct {
	Tenant    ident.TenantID
	Name      string
	Placement Placement // its Database is this one's id
	State     DatabaseState
	Facts     Facts
	Version   int64 // counts edits, from 1
	CreatedAt time.Time
	UpdatedAt time.Time
}

// ID names the database.
func (d Database) ID() ident.DatabaseID { return d.Placement.Database }

// Facts is what was last seen of a database.
type Facts struct {
	SchemaVersion int64
	SizeBytes     int64
	Problem       string // stable code; empty when it was fine
	CheckedAt     *time.Time
}

// Erasure is an entry of the ledger of tenants that were erased: they never come back, whatever backup is restored.
type Erasure struct {
	Tenant  ident.TenantID
	Account ident.AccountID
	At      time.Time
}

// Directory answers where a tenant's database is. The master database keeps it.
type Directory interface {
	// FindTenant returns the tenant; fault.NotFound when there is none.
	FindTenant(ctx context.Context, id ident.TenantID) (Tenant, error)
}

// Hints says which tenants have something due, so that nobody has to open every database to find out. Hints may be
// lost or stale: acting on one twice, or on none, is harmless.
type Hints interface {
	// Hint notes that the tenant has something due at the time, and may have more until last; an earlier time stays, and so
	// does a later last.
	Hint(ctx context.Context, id ident.TenantID, due, last time.Time) error
	// Due returns tenants whose hint has come, oldest first.
	Due(ctx context.Context, now time.Time, limit int) ([]ident.TenantID, error)
	// Settle is called after a look that began at now. What had come by then is replaced by next, unless that is zero. What
	// may be due later than now stays: it may have been noted before anything of it could be seen.
	Settle(ctx context.Context, id ident.TenantID, now, next time.Time) error
}
