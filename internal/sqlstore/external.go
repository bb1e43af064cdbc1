package sqlstore

import (
	"container/list"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"

	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

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
	// Judge refuses what Dial would refuse of an address as it is written; nil lets all of them pass.
	Judge func(host string, port uint16) error
	// MaxConns bounds the connections of all databases of users together; 0 is 200.
	MaxConns int
	// PerTenant bounds the connections of one database; 0 is 4.
	PerTenant int
	// ConnectTimeout bounds look-up, connection, TLS and sign-in together; 0 is 1.5 s. Work that is [Patient] gets ten
	// times as long.
	ConnectTimeout time.Duration
	// RootCAs are whom certificates are checked against; nil are the system's, which SSL_CERT_FILE sets.
	RootCAs *x509.CertPool
}

// Externals reaches PostgreSQL servers that users registered. Neither address nor server is trusted. It is safe for
// concurrent use.
type Externals struct {
	options ExternalOptions
	base    *pgconn.Config
	bad     error // why base could not be made
	budget  budget
	texts   texts // shared by all, whose statements are the same
	hasty   limits
	whole   time.Duration // what a database is made, dropped or tested in
}

// Check refuses an address that will never be reached as it is written: one that may not be dialled (code
// "address_refused"), or not without TLS (code "tls_required"). Nothing is sent, and no name is looked up.
func (x *Externals) Check(a tenant.Address) error {
	const op = "sqlstore.CheckAddress"
	if x.options.Judge != nil {
		if err := x.options.Judge(a.Host, a.Port); err != nil {
			return fault.Wrap(op, err)
		}
	}
	literal, err := netip.ParseAddr(a.Host)
	if err == nil && a.TLS == tenant.TLSDisable && !x.options.plain(net.TCPAddrFromAddrPort(netip.AddrPortFrom(literal, a.Port))) {
		return tlsRequired(op)
	}
	return nil
}

func (o ExternalOptions) plain(addr net.Addr) bool {
	return o.PlainAllowed != nil && o.PlainAllowed(addr)
}

func tlsRequired(op string) error {
	return fault.New(fault.Invalid, op, "tls_required",
		"this database may be reached with TLS only: use sslmode=verify-full, or ask the operator to allow its network in OUTBOUND_ALLOW")
}

// neutral is a connection string that sets every key there is, so that nothing is taken from the environment, from
// service and password files, or from certificates in somebody's home. What matters is then set field by field: no
// text of a user's is ever parsed by the driver.
const neutral = `host=unset.invalid port=5432 user=unset password=unset dbname=unset passfile=/dev/null
	servicefile=/dev/null connect_timeout=2 sslmode=disable sslcert='' sslkey='' sslrootcert='' sslpassword=''
	sslcertmode=disable sslsni=1 sslnegotiation=postgres channel_binding=prefer require_auth=scram-sha-256
	target_session_attrs=any min_protocol_version=3.0 max_protocol_version=3.0 krbsrvname='' krbspn=''
	application_name=memoryd options='' timezone=UTC`

// NewExternals connects to nothing yet.
func NewExternals(o ExternalOptions) *Externals {
	for _, d := range []struct {
		value *int
		other int
	}{{&o.MaxConns, 200}, {&o.PerTenant, 4}} {
		if *d.value <= 0 {
			*d.value = d.other
		}
	}
	if o.ConnectTimeout <= 0 {
		o.ConnectTimeout = 1500 * time.Millisecond
	}
	x := &Externals{options: o, hasty: hasty, whole: 9 * time.Second, budget: budget{max: o.MaxConns, perDatabase: o.PerTenant,
		idleTime: idleTime, shares: map[ident.DatabaseID]*share{}}}
	base, err := pgconn.ParseConfig(neutral)
	if err != nil {
		// Only PGSERVICE gets through: its file is read although nothing of it is used.
		x.bad = fault.New(fault.Unavailable, "sqlstore.NewExternals", "unavailable",
			"databases of users cannot be used while the server's environment sets PGSERVICE").With(errors.New("PGSERVICE is set"))
		return x
	}
	base.Host, base.User, base.Password, base.Database = "", "", "", ""
	base.TLSConfig, base.Fallbacks, base.ValidateConnect = nil, nil, nil
	base.ConnectTimeout = 0 // the context's
	base.RuntimeParams = map[string]string{"application_name": "memoryd", "client_encoding": "UTF8"}
	base.MaxProtocolMessageBodyLen = maxRow
	// The dialer looks the name up, decides, and dials what it decided about.
	base.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	x.base = base
	return x
}

// Close closes all connections; those in use when they are given back.
func (x *Externals) Close() { x.budget.shut() }

// Open returns the database of that id. Nothing is sent: what is wrong shows at the first use. Closing the DB closes its
// connections.
//
// What cannot be reached is fault.Unavailable with a code that says why: "address_refused", "address_unreachable",
// "tls_refused", "tls_failed", "login_refused", "login_unsafe", "database_missing", "too_many_connections", "timeout",
// "database_misbehaved"; and for a while after some of these in a row, at once, "database_unreachable", or again what a
// server that can be reached does not let us in for.
func (x *Externals) Open(id ident.DatabaseID, a tenant.Address, password seal.Secret) *DB {
	return x.open(id, "", a, password)
}

// open is Open for the copy with that suffix.
func (x *Externals) open(id ident.DatabaseID, suffix string, a tenant.Address, password seal.Secret) *DB {
	e, err := x.engine(id, suffix, a, password)
	if f, ok := errors.AsType[*fault.Error](err); ok && f.Class == fault.Invalid {
		// Nothing like it was ever stored. Who uses the database did nothing wrong.
		err = unavailable("sqlstore", "address_refused", "the address of the database is not valid", nil)
	}
	if err != nil {
		return newDB(Postgres, &postgresEngine{texts: &x.texts, bad: err})
	}
	return newDB(Postgres, e).guard(newCircuit())
}

// engine makes the engine over one database: the copy with that suffix.
func (x *Externals) engine(id ident.DatabaseID, suffix string, a tenant.Address, password seal.Secret) (*postgresEngine, error) {
	name, err := externalSchema(id)
	if err != nil {
		return nil, err
	}
	name += suffix
	var checks fault.Checks
	a.Check(&checks)
	tenant.CheckPassword(&checks, password)
	if err := checks.Err("sqlstore.Externals"); err != nil {
		return nil, err
	}
	if x.bad != nil {
		return nil, x.bad
	}
	h := &external{owner: x, id: id, address: a, password: password}
	x.budget.enrol(h)
	return &postgresEngine{external: h, texts: &x.texts, schema: name,
		preamble: []string{localSettings + quoted(name) + impatience},
		patient:  []string{localSettings + quoted(name) + patience}}, nil
}

// What is set inside every transaction, in one statement. The search path keeps foreign objects out of sight; a
// server's or login's own settings must not change what we read or how safely we write; and a server that is left
// alone must not go on for us.
const (
	localSettings = `SELECT pg_catalog.set_config('bytea_output', 'hex', true),
		pg_catalog.set_config('standard_conforming_strings', 'on', true),
		pg_catalog.set_config('synchronous_commit', CASE pg_catalog.current_setting('synchronous_commit')
			WHEN 'off' THEN 'on' ELSE pg_catalog.current_setting('synchronous_commit') END, true),
		pg_catalog.set_config('search_path', '`
	impatience = `, pg_temp', true),
		pg_catalog.set_config('statement_timeout', '1500', true),
		pg_catalog.set_config('lock_timeout', '1200', true),
		pg_catalog.set_config('idle_in_transaction_session_timeout', '10000', true)`
	patience = `, pg_temp', true),
		pg_catalog.set_config('statement_timeout', '110000', true),
		pg_catalog.set_config('lock_timeout', '30000', true),
		pg_catalog.set_config('idle_in_transaction_session_timeout', '600000', true)`
)

// externalSchema is the name of our schema in a user's database.
func externalSchema(id ident.DatabaseID) (string, error) {
	if _, err := ident.Parse[ident.DatabaseID](string(id)); err != nil {
		return "", err
	}
	return "claude_memory_" + strings.TrimPrefix(string(id), id.Prefix()), nil
}

// external is one opened database of a user's.
type external struct {
	owner    *Externals
	id       ident.DatabaseID
	address  tenant.Address
	password seal.Secret

	// Under the budget's lock.
	share  *share
	idle   []*extConn
	closed bool
	busy   sync.WaitGroup // loans
}

func (h *external) close() { h.owner.budget.retire(h) }

// lend lends an idle connection or, if fresh, one that is made for it.
func (h *external) lend(ctx context.Context, fresh bool) (*extConn, error) {
	timeout := h.owner.options.ConnectTimeout
	if isPatient(ctx) {
		timeout *= 10
	}
	within, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := h.owner.budget.take(within, h, fresh)
	if err != nil {
		if over := gone(ctx, nil); over != nil {
			return nil, over
		}
		return nil, err
	}
	if c != nil {
		if c.reused = true; c.alive() {
			return c, nil
		}
		c.hangUp() // and make another one in its room
	}
	c, err = h.connect(within)
	if err != nil {
		h.owner.budget.putBack(nil, h, false)
		if over := gone(ctx, nil); over != nil {
			return nil, over
		}
		return nil, err
	}
	return c, nil
}

// connect makes a connection.
func (h *external) connect(ctx context.Context) (*extConn, error) {
	const op = "sqlstore"
	c := &extConn{handle: h, born: time.Now()}
	config := h.owner.base.Copy()
	config.Host, config.Port = h.address.Host, h.address.Port
	config.Database, config.User, config.Password = h.address.Database, h.address.Username, h.password.Reveal()
	if h.address.TLS == tenant.TLSVerifyFull {
		config.TLSConfig = &tls.Config{ServerName: strings.TrimSuffix(h.address.Host, "."), RootCAs: h.owner.options.RootCAs,
			MinVersion: tls.VersionTLS12}
		config.RequireAuth = "scram-sha-256,md5,password,none" // whoever asks has proved to be the host
	} else {
		config.RequireAuth = "scram-sha-256,none" // the password is not for whoever listens
	}
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if c.meter != nil { // the driver would dial again to cancel a statement, beside every bound
			return nil, net.ErrClosed
		}
		conn, err := h.owner.options.Dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if config.TLSConfig == nil && !h.owner.options.plain(conn.RemoteAddr()) {
			_ = conn.Close()
			return nil, tlsRequired(op)
		}
		c.meter = newMeter(conn)
		c.meter.begin(limits{silence: h.owner.options.ConnectTimeout * 10, wire: 1 << 20})
		return c.meter, nil
	}
	config.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		return pgproto3.NewFrontend(&inspector{r: r, meter: c.meter}, w)
	}
	pg, err := pgconn.ConnectConfig(ctx, config)
	var why error
	if c.meter != nil {
		why = c.meter.finish()
	}
	if err == nil && why == nil {
		c.pgConn = pg
		return c, nil
	}
	if c.meter != nil {
		_ = c.meter.Close()
	}
	if why != nil {
		return nil, cutFault(op, why)
	}
	return nil, h.refused(ctx, op, err)
}

// refused says why a connection was not made. Nothing of the driver's or the server's text is kept.
func (h *external) refused(ctx context.Context, op string, err error) *fault.Error {
	no := func(code, message string) *fault.Error {
		return unavailable(op, code, message, &driverError{engine: "postgres", code: "connect"})
	}
	said := func(code, message string) *fault.Error {
		return unavailable(op, code, message, &driverError{engine: "postgres", code: "connect", said: true})
	}
	if f, ok := errors.AsType[*fault.Error](err); ok {
		// What the sender of an address hears as a mistake is a state of the database for whoever uses it.
		return unavailable(op, f.StableCode(), f.Message, nil)
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		e = h.censored(e)
		switch e.Code {
		case "28P01", "28000":
			return said("login_refused", "the server does not accept user name and password, or does not let this user in from here")
		case "3D000":
			return said("database_missing", "there is no database of that name on the server")
		case "42501":
			return said("login_refused", "the user may not connect to that database")
		case "53300":
			return said("too_many_connections", "the server has no connection left for this user")
		case "57P03":
			return said("unavailable", "the server is starting or stopping")
		}
		if f := postgresFault(op, e); f.Class != fault.Internal {
			return f
		}
		return said("unavailable", "the server refuses the connection")
	}
	var wrongHost x509.HostnameError
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	text := err.Error() // for the two answers that the driver knows by text only
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(ctx.Err(), context.DeadlineExceeded):
		return no("timeout", "the server did not answer in time: check host, port and firewall")
	case errors.As(err, &wrongHost):
		return no("tls_failed", "the server's certificate is for another host than the address names")
	case errors.As(err, &unknown):
		return no("tls_failed", "the server's certificate is not issued by an authority known here: ask the operator to add it")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return no("tls_failed", "the server's certificate is not valid now: it has expired, or is not valid yet")
	case errors.As(err, &invalid):
		return no("tls_failed", "the server's certificate is not fit for a server")
	case strings.Contains(text, "server refused TLS connection"):
		return no("tls_refused", "the server does not offer TLS: turn it on there")
	case errors.As(err, &record), errors.As(err, &alert), strings.Contains(text, "tls error"):
		return no("tls_failed", "no TLS connection could be made to the server")
	case strings.Contains(text, "require_auth check failed"):
		return said("login_unsafe", "the server asks for the password in a form that can be read on the way: let it use scram-sha-256, or TLS")
	case strings.Contains(text, "failed SASL auth"):
		return said("login_refused", "the server did not prove that it knows the password")
	}
	return no("address_unreachable", "the server closed the connection before the sign-in was complete")
}

// censored keeps of an error what may be kept of an untrusted server's: a code, and the name of a constraint.
func (h *external) censored(e *pgconn.PgError) *pgconn.PgError {
	c := &pgconn.PgError{Code: "XX000", SeverityUnlocalized: e.SeverityUnlocalized}
	if len(e.Code) == 5 && strings.Trim(e.Code, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") == "" {
		c.Code = e.Code
	}
	if name := constraintOf(e); identifier.MatchString(name) && (h.password == "" || !strings.Contains(name, h.password.Reveal())) {
		c.ConstraintName = name
	}
	return c
}

// panicked makes an error of what reading an answer came to. Other databases must not suffer from it.
func (h *external) panicked(l loan, p any) error {
	why := "panic"
	if e, ok := p.(runtime.Error); ok { // quotes no values
		why += ": " + e.Error()
	}
	if c, ok := l.(*extConn); ok {
		_ = c.meter.blame(errStrange)
	}
	return unavailable("sqlstore", "database_misbehaved", "the database holds or sends what cannot be read",
		&driverError{engine: "postgres", code: "panic", detail: why})
}

// extConn is one connection to a user's database.
type extConn struct {
	handle *external
	meter  *meter
	pgConn *pgconn.PgConn
	born   time.Time
	reused bool

	// Of the exchange that runs.
	left int64 // bytes of rows that may still be kept

	// While it is idle, under the budget's lock.
	parked time.Time
	place  *list.Element
}

func (c *extConn) pg() *pgconn.PgConn { return c.pgConn }

func (c *extConn) exchange(ctx context.Context) func(error) error {
	l := c.handle.owner.hasty
	if isPatient(ctx) {
		l = patient
	}
	c.left = l.rows
	c.meter.begin(l)
	return func(err error) error {
		why := c.meter.finish()
		switch {
		case err == nil, fault.CodeOf(err) == "outcome_unknown", ctx.Err() != nil:
			return err
		case why != nil:
			return cutFault("sqlstore", why)
		}
		return foreign(err)
	}
}

// foreign makes of what would be a defect of ours on the operator's server what it is on a user's: the owner can change
// and drop tables and rights at any time.
func foreign(err error) error {
	state := sqlState(err)
	d, _ := errors.AsType[*driverError](err)
	switch {
	case state == "42501":
		return unavailable("sqlstore", "database_forbidden", "the user may no longer use the tables in that database", d)
	case state == "25006", state == "0A000": // the second is a standby's answer to BEGIN READ WRITE
		return unavailable("sqlstore", "server_read_only", "the server takes no writes at the moment", d)
	case !fault.Is(err, fault.Internal):
		return err
	case d != nil:
		return unavailable("sqlstore", "schema_damaged", "the tables in the database are not what they should be", d)
	}
	return unavailable("sqlstore", "database_misbehaved", "the database holds or sends what cannot be read",
		&driverError{engine: "postgres", code: "row"})
}

func (c *extConn) keep(row [][]byte) error {
	size := int64(rowCost)
	for _, v := range row {
		size += int64(len(v))
	}
	if c.left -= size; c.left < 0 {
		return cutFault("sqlstore", c.meter.blame(errRowLimit))
	}
	return nil
}

func (c *extConn) stale() bool {
	if !c.reused || !c.pgConn.IsClosed() {
		return false
	}
	c.meter.mu.Lock()
	defer c.meter.mu.Unlock()
	return c.meter.why == nil
}

func (c *extConn) giveBack() {
	good := !c.pgConn.IsClosed() && !c.pgConn.IsBusy() && c.pgConn.TxStatus() == 'I' && c.meter.finish() == nil &&
		time.Since(c.born) < connLifetime
	c.handle.owner.budget.putBack(c, c.handle, good)
}

// alive reports whether nothing has come on an idle connection: a server that closes it says so, and what else might
// come is not worth waiting for.
func (c *extConn) alive() bool {
	s, ok := c.meter.Conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	// Control, not Read, which would wait for its turn: after a slow write the driver may have left a reader waiting.
	err = raw.Control(func(fd uintptr) {
		var one [1]byte
		_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = errors.Is(err, syscall.EAGAIN)
	})
	return err == nil && quiet
}

// hangUp says farewell if that is possible at once, and closes.
func (c *extConn) hangUp() {
	if !c.pgConn.IsClosed() && !c.pgConn.IsBusy() {
		_ = c.meter.SetDeadline(time.Now().Add(50 * time.Millisecond))
		c.pgConn.Frontend().Send(&pgproto3.Terminate{})
		_ = c.pgConn.Frontend().Flush()
	}
	_ = c.meter.Close()
}
