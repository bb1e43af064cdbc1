package sqlstore

import (
	"context"
	"crypto/x509"
	"net"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/tenant"
)

// ExternalOptions says how users' own PostgreSQL servers are reached.
type ExternalOptions struct {
	// Dial connects; it must be the guarded dialer's.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// PlainAllowed says whether the address that was dialled may be spoken to without TLS; nil refuses.
	PlainAllowed func(addr net.Addr) bool
	// MaxConns bounds the connections of all external tenants together; 0 is 200.
	MaxConns int
	// PerTenant bounds the connections of one tenant; 0 is 4.
	PerTenant int
	// ConnectTimeout bounds look-up, connection, TLS and sign-in together; 0 is 1.5 s.
	ConnectTimeout time.Duration
	// RootCAs are whom certificates are checked against; nil are the system's, which SSL_CERT_FILE sets.
	RootCAs *x509.CertPool
}

// Externals reaches PostgreSQL servers that users registered. It is safe for concurrent use.
type Externals struct{ options ExternalOptions }

// NewExternals connects to nothing yet.
func NewExternals(o ExternalOptions) *Externals { return &Externals{options: o} }

// Close closes all connections.
func (x *Externals) Close() {}

// Open returns the database of that id. Nothing is sent: what is wrong shows at the first use. Closing the DB closes its
// connections.
func (x *Externals) Open(id ident.DatabaseID, a tenant.Address, password seal.Secret) *DB {
	return newDB(Postgres, &postgresEngine{bad: fault.New(fault.Unavailable, "sqlstore.Externals", "unavailable", "not built yet")})
}

// Provision makes the schema of that id and tables in one transaction. A schema of that name with something in it is
// fault.Conflict (code "schema_exists").
func (x *Externals) Provision(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) error {
	return fault.New(fault.Unavailable, "sqlstore.Externals.Provision", "unavailable", "not built yet")
}

// Destroy drops the schema of that id and nothing else. One that is gone already is no error.
func (x *Externals) Destroy(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) error {
	return fault.New(fault.Unavailable, "sqlstore.Externals.Destroy", "unavailable", "not built yet")
}

// Patient marks work that may be slow, such as copies and migrations: the short limits for what somebody waits for do
// not hold in this context.
func Patient(ctx context.Context) context.Context { return ctx }
