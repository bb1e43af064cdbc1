package sqlstore

import (
	"context"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/tenant"
)

// Report is what a test of a user's database found.
type Report struct {
	OK            bool // no problem of level "error"
	Reachable     bool // a connection was made and the login accepted
	TLS           TLSReport
	ServerVersion string // "15.18"; empty when not reached
	Privileges    Privileges
	Latency       time.Duration // of one transaction in one round trip
	Schema        SchemaState
	SchemaVersion int64 // of our tables there; 0 without
	Standby       bool
	ReadOnly      bool // transactions are read only unless they ask
	CommitsAsync  bool // synchronous_commit is off; our transactions turn it on
	Encoding      string
	Problems      []Problem
}

// TLSReport is how the connection was protected.
type TLSReport struct {
	Version  string // "1.3"; empty for a plain connection
	Verified bool   // the certificate is valid and names the host
}

// Privileges are what the login may do.
type Privileges struct {
	Superuser    bool
	CreateRole   bool
	BypassRLS    bool
	CreateSchema bool // CREATE on the database
	UseSchema    bool // our schema is there, and may be used and filled
}

// SchemaState is what is found under the name of our schema.
type SchemaState string

// The states.
const (
	SchemaNone    SchemaState = "none"    // not there, or empty
	SchemaOurs    SchemaState = "ours"    // our tables, of this version or an older one
	SchemaNewer   SchemaState = "newer"   // our tables, of a newer version of this program
	SchemaDamaged SchemaState = "damaged" // something else, or not all of it
)

// Problem is one thing that a test found, with what to do about it.
type Problem struct {
	Level   string // "error": it cannot be used like this; "warning": it can
	Code    string
	Message string
}

// Probe tests an address without storing or leaving anything there. What cannot be reached is a report with a
// problem; the error is for addresses that may not be asked at all (fault.Invalid, code "address_refused") and for
// a context that is over.
func (x *Externals) Probe(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) (Report, error) {
	return Report{}, fault.New(fault.Unavailable, "sqlstore.Externals.Probe", "unavailable", "not built yet")
}
