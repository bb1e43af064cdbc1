package sqlstore

import (
	"context"
	"crypto/tls"
	"errors"
	"regexp"
	"strings"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/tenant"
)

// Report is what a test of a user's database found.
type Report struct {
	OK            bool // no problem of level "error"
	Reachable     bool // the server answered the sign-in, whether or not it accepted that
	TLS           TLSReport
	ServerVersion string // "15.18"; empty when not reached
	Privileges    Privileges
	Latency       time.Duration // of one transaction, in one round trip
	Schema        SchemaState
	SchemaVersion int64  // of our tables there; 0 without
	Standby       bool   // the server only repeats what another one writes
	ReadOnly      bool   // transactions are read-only unless they ask for more, as ours do
	CommitsAsync  bool   // synchronous_commit is off; our transactions turn it on
	Encoding      string // "UTF8"
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

// Levels of problems.
const (
	ProblemError   = "error"   // it cannot be used like this
	ProblemWarning = "warning" // it can
)

// Problem is one thing that a test found, with what to do about it.
type Problem struct {
	Level   string
	Code    string
	Message string
}

// oldest is the server_version_num of the oldest PostgreSQL that is supported.
const oldest = 140000

// Probe tests an address without storing or leaving anything there. What cannot be reached is a report with a
// problem; the error is for addresses that may not be asked at all (fault.Invalid, codes "address_refused" and
// "tls_required") and for a context that is over. With an empty id no schema is looked for.
func (x *Externals) Probe(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) (Report, error) {
	const op = "sqlstore.Externals.Probe"
	if id == "" {
		id = ident.New[ident.DatabaseID]()
	}
	e, err := x.engine(id, "", a, password)
	if err != nil {
		return Report{}, fault.Wrap(op, err)
	}
	defer func() { _ = e.close() }()
	within, cancel := context.WithTimeout(ctx, x.whole)
	defer cancel()
	r := Report{Schema: SchemaNone}
	err = r.ask(within, e)
	f, _ := errors.AsType[*fault.Error](err)
	switch {
	case err == nil:
		r.judge(a)
	case ctx.Err() != nil:
		return Report{}, fault.Wrap(op, gone(ctx, nil))
	case f == nil:
		return Report{}, fault.Wrap(op, err)
	case f.Code == "address_refused" || f.Code == "tls_required":
		return Report{}, fault.New(fault.Invalid, op, f.Code, f.Message)
	case f.Class == fault.Internal: // the server does not know what every PostgreSQL knows
		r.problem(ProblemError, "database_misbehaved", "the server does not answer as a PostgreSQL server does")
	default:
		r.Reachable = r.Reachable || answered(err)
		r.problem(ProblemError, f.StableCode(), f.Message)
	}
	r.OK = true
	for _, p := range r.Problems {
		r.OK = r.OK && p.Level != ProblemError
	}
	return r, nil
}

// answered reports whether a server that did not let us in was there to say so.
func answered(err error) bool {
	d, ok := errors.AsType[*driverError](err)
	return ok && (d.said || sqlState(err) != "")
}

func (r *Report) problem(level, code, message string) {
	r.Problems = append(r.Problems, Problem{Level: level, Code: code, Message: message})
}

// serverFacts are what a server says of itself.
type serverFacts struct {
	version               int
	history               bool
	fsync                 string
	objects               int
	schema, usage, create bool
}

// ask connects and asks.
func (r *Report) ask(ctx context.Context, e *postgresEngine) error {
	loan, err := e.external.lend(ctx, true)
	if err != nil {
		return err
	}
	s := &postgresSession{engine: e, loan: loan}
	defer s.end()
	r.Reachable = true
	if conn, ok := loan.pgConn.Conn().(*tls.Conn); ok {
		r.TLS = TLSReport{Version: strings.TrimPrefix(tls.VersionName(conn.ConnectionState().Version), "TLS "), Verified: true}
	}
	var f serverFacts
	var version, readOnly, commit string
	b := &Batch{dialect: Postgres}
	b.One([]any{&version, &f.version, &r.Encoding, &r.Standby, &readOnly, &commit, &f.fsync},
		`SELECT current_setting('server_version'), current_setting('server_version_num'), current_setting('server_encoding'),
			pg_is_in_recovery(), current_setting('default_transaction_read_only'),
			(SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'), current_setting('fsync')`)
	b.One([]any{&r.Privileges.Superuser, &r.Privileges.CreateRole, &r.Privileges.BypassRLS, &r.Privileges.CreateSchema},
		`SELECT rolsuper, rolcreaterole, rolbypassrls, has_database_privilege(current_database(), 'CREATE')
			FROM pg_roles WHERE rolname = current_user`)
	b.One([]any{&f.schema, &f.objects}, schemaContent, e.schema)
	b.One([]any{&f.usage, &f.create, &f.history}, `SELECT has_schema_privilege(oid, 'USAGE'), has_schema_privilege(oid, 'CREATE'),
		EXISTS (SELECT 1 FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'schema_migrations')
		FROM pg_namespace n WHERE nspname = ?`, e.schema)
	if b.err != nil {
		return b.err
	}
	if err := s.send(ctx, beginSnapshot, b, true); err != nil {
		return err
	}
	once := &Batch{dialect: Postgres}
	once.Query(func(Scanner) error { return nil }, `SELECT 1`)
	began := time.Now() // after the first transaction, for which a new connection reads catalogues
	if err := s.send(ctx, beginSnapshot, once, true); err != nil {
		return err
	}
	r.Latency = time.Since(began)
	r.ServerVersion = versionWord.FindString(version)
	if !encodingName.MatchString(r.Encoding) {
		r.Encoding = ""
	}
	r.ReadOnly, r.CommitsAsync, r.Privileges.UseSchema = readOnly == "on", commit == "off", f.usage && f.create
	r.Problems = append(r.Problems, unfit(f.version, r.Encoding, r.Standby)...)
	if f.fsync == "off" {
		r.problem(ProblemWarning, "commits_not_durable",
			"the server runs with fsync off and can lose everything in a crash: turn it on")
	}
	if f.objects == 0 {
		if !r.Privileges.CreateSchema && !r.Privileges.UseSchema {
			denied := createDenied("")
			r.problem(ProblemError, denied.Code, denied.Message)
		}
		return nil
	}
	return r.history(ctx, s, f)
}

// What of a server's texts goes into a report.
var (
	versionWord  = regexp.MustCompile(`^[0-9]{1,3}[0-9A-Za-z.]{0,20}`)
	encodingName = regexp.MustCompile(`^[A-Za-z0-9_]{1,32}$`)
)

// unfit lists why a server cannot hold our tables.
func unfit(version int, encoding string, standby bool) (list []Problem) {
	if version < oldest {
		list = append(list, Problem{ProblemError, "server_too_old", "PostgreSQL 14 or newer is needed"})
	}
	if encoding != "UTF8" {
		list = append(list, Problem{ProblemError, "encoding_not_utf8", "the database must have the encoding UTF8: make another one with it"})
	}
	if standby {
		list = append(list, Problem{ProblemError, "server_read_only", "this server is a standby: give the address of the primary"})
	}
	return list
}

// history looks at what is in our schema.
func (r *Report) history(ctx context.Context, s *postgresSession, f serverFacts) error {
	r.Schema = SchemaDamaged
	var applied []done
	if f.history && f.usage {
		b := &Batch{dialect: Postgres}
		readHistory(b, &applied)
		err := s.send(ctx, beginSnapshot, b, true)
		if err != nil && sqlState(err) == "" {
			return err
		}
	}
	steps, err := load(embedded, Tenant, Postgres)
	if err != nil {
		return err
	}
	if err = compare(steps, applied); err == nil && len(applied) > 0 {
		r.Schema, r.SchemaVersion = SchemaOurs, int64(len(applied))
	} else if fault.CodeOf(err) == "schema_newer" {
		r.Schema, r.SchemaVersion = SchemaNewer, int64(len(applied))
	}
	return nil
}

// judge lists what else is to be said.
func (r *Report) judge(a tenant.Address) {
	switch r.Schema {
	case SchemaNewer:
		r.problem(ProblemError, "schema_newer", "the tables there were written by a newer version of this program: use that one")
	case SchemaDamaged:
		r.problem(ProblemError, "schema_damaged", "the schema holds something else than our tables, or not all of them: rename or drop it")
	}
	if r.Privileges.Superuser {
		r.problem(ProblemWarning, "superuser_login",
			"the user is a superuser, which this program does not need: make one that may only create a schema in this database")
	}
	if r.ReadOnly {
		r.problem(ProblemWarning, "read_only_default",
			"transactions are read-only by default here, as some providers do when the disk is full: see whether there is room")
	}
	if r.CommitsAsync {
		r.problem(ProblemWarning, "commits_asynchronous",
			"synchronous_commit is off: it is turned on for what this program writes, but not for your own writes")
	}
	if a.TLS == tenant.TLSDisable {
		r.problem(ProblemWarning, "connection_plain", "the connection is not encrypted: use sslmode=verify-full where the server offers TLS")
	}
}
