package sqlstore

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
)

// PostgresHostOptions says how to use an operator's server.
type PostgresHostOptions struct {
	MaxConns        int         // connections for tenants' work; the pool's default when 0
	RuntimePassword seal.Secret // of the login that we make; derived from the master key, the same on every node
	Steps           *Steps      // that new tenants get; nil: the released ones
}

// PostgresHost is one PostgreSQL server of the operator's, in which every tenant has a schema and a role of its own.
//
// Two logins are at work. The one in the operator's address provisions. Tenants' statements run as a login that is
// no superuser and inherits nothing, so without SET ROLE it sees no tenant at all: one that we make when the
// operator's may make roles, else the operator's itself, which must then be like that.
type PostgresHost struct {
	admin   *pgxpool.Pool
	runtime *pgxpool.Pool // the same pool when no login was made
	login   string        // the name tenants' roles are granted to
	version int           // server_version_num
	steps   []step        // that new tenants get
	link    *link         // all tenants share the way to the server
	texts   texts         // shared by all tenants, whose statements are the same
}

// OpenPostgresHost connects, makes or checks the login for tenants' work, and refuses an unsafe one (code
// "database_login_unsafe").
func OpenPostgresHost(ctx context.Context, url seal.Secret, o PostgresHostOptions) (_ *PostgresHost, err error) {
	const op = "sqlstore.OpenPostgresHost"
	config, err := poolConfig(url, o.MaxConns)
	if err != nil {
		return nil, err
	}
	if o.Steps == nil {
		if o.Steps, err = Released(); err != nil {
			return nil, err
		}
	}
	h := &PostgresHost{steps: o.Steps.lists[Tenant][Postgres]}
	defer func() {
		if err != nil {
			h.Close()
		}
	}()
	adminConfig := config.Copy()
	adminConfig.MinConns, adminConfig.MaxConns = 0, 2 // provisioning is rare
	h.link = newLink(adminConfig)
	h.link.attach(config)
	if h.admin, err = openPool(ctx, adminConfig, h.link); err != nil {
		return nil, fault.Wrap(op, err)
	}
	var me login
	var database string
	if err := OpenPostgres(h.admin, PostgresOptions{}).Read(ctx, func(b *Batch) {
		me.read(b)
		b.One([]any{&database, &h.version}, `SELECT current_database(), current_setting('server_version_num')`)
	}); err != nil {
		return nil, fault.Wrap(op, err)
	}
	if h.version < 140000 {
		return nil, fault.New(fault.Unavailable, op, "database_version", "PostgreSQL 14 or newer is needed")
	}
	if me.super || me.createRole {
		h.login = runtimeLogin(database)
		if err := h.makeLogin(ctx, database, o.RuntimePassword); err != nil {
			return nil, fault.Wrap(op, err)
		}
		config.ConnConfig.User, config.ConnConfig.Password = h.login, o.RuntimePassword.Reveal()
	} else {
		h.login = me.name
	}
	if h.runtime, err = openPool(ctx, config, h.link); err != nil {
		return nil, fault.Wrap(op, err)
	}
	return h, fault.Wrap(op, h.check(ctx))
}

// Close closes both pools.
func (h *PostgresHost) Close() {
	if h.link != nil {
		h.link.close()
	}
	for _, p := range []*pgxpool.Pool{h.runtime, h.admin} {
		if p != nil {
			p.Close()
		}
	}
}

// login is what a connection's own role may do.
type login struct {
	name                                  string
	super, createRole, inherit, bypassRLS bool
}

func (l *login) read(b *Batch) {
	b.One([]any{&l.name, &l.super, &l.createRole, &l.inherit, &l.bypassRLS},
		`SELECT rolname, rolsuper, rolcreaterole, rolinherit, rolbypassrls FROM pg_roles WHERE rolname = current_user`)
}

// check proves what isolation rests on, through a connection that tenants' work will use.
func (h *PostgresHost) check(ctx context.Context) error {
	var l login
	var inherited, open int
	if err := OpenPostgres(h.runtime, PostgresOptions{}).Read(ctx, func(b *Batch) {
		l.read(b)
		// The very thing that must not be: with no role set, some tenant's schema may be used.
		b.One([]any{&open}, `SELECT count(*) FROM pg_namespace WHERE nspname ~ '^t_[0-9a-z]{26}$' AND has_schema_privilege(oid, 'USAGE')`)
		if h.version >= 160000 { // since then every grant has an INHERIT of its own
			b.One([]any{&inherited}, `SELECT count(*) FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member
				WHERE r.rolname = current_user AND m.inherit_option`)
		}
	}); err != nil {
		return err
	}
	if l.super || l.inherit || l.bypassRLS || inherited > 0 || open > 0 {
		return fault.New(fault.Unavailable, "sqlstore.OpenPostgresHost", "database_login_unsafe",
			"the PostgreSQL login for tenants must be NOINHERIT and no superuser")
	}
	return nil
}

// runtimeLogin names our login after the database: roles belong to the whole server, which may hold several of our
// databases.
func runtimeLogin(database string) string {
	if name := "memoryd_run_" + database; identifier.MatchString(name) {
		return name
	}
	sum := sha256.Sum256([]byte(database))
	return "memoryd_run_" + hex.EncodeToString(sum[:12])
}

// makeLogin creates our login or gives it the current password.
func (h *PostgresHost) makeLogin(ctx context.Context, database string, password seal.Secret) error {
	if password == "" {
		return fault.New(fault.Invalid, "sqlstore.OpenPostgresHost", "database_login_unsafe",
			"the login for tenants needs a password")
	}
	verifier, err := scram(password)
	if err != nil {
		return err
	}
	return OpenPostgres(h.admin, PostgresOptions{}).Write(ctx, func(tx *Tx) error {
		var exists bool
		if err := tx.Run(func(b *Batch) {
			// One node at a time: two that alter a role at once are an error of the server's.
			b.Query(func(Scanner) error { return nil }, `SELECT pg_advisory_xact_lock(?)`, lockKey(h.login))
			b.One([]any{&exists}, `SELECT count(*) > 0 FROM pg_roles WHERE rolname = ?`, h.login)
		}); err != nil {
			return err
		}
		verb := "CREATE"
		if exists {
			verb = "ALTER"
		}
		// The verifier instead of the password: statements reach server logs.
		return tx.script(verb + ` ROLE ` + quoted(h.login) + ` LOGIN NOINHERIT NOCREATEDB NOCREATEROLE PASSWORD '` + verifier + `';
			GRANT CONNECT ON DATABASE "` + strings.ReplaceAll(database, `"`, `""`) + `" TO ` + quoted(h.login))
	})
}

// scram is what PostgreSQL stores of a password (RFC 5803). Its salt follows from the password, which nobody chose: a
// pooler goes on using what it learned when its clients signed in, and another node's start must not make that wrong.
func scram(password seal.Secret) (string, error) {
	const rounds = 4096
	sum := sha256.Sum256([]byte("memoryd login salt " + password.Reveal()))
	salt := sum[:16]
	salted, err := pbkdf2.Key(sha256.New, password.Reveal(), salt, rounds, sha256.Size)
	if err != nil {
		return "", fault.Wrap("sqlstore.OpenPostgresHost", err)
	}
	sign := func(what string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(what))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(sign("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return "SCRAM-SHA-256$" + strconv.Itoa(rounds) + ":" + b64(salt) + "$" + b64(stored[:]) + ":" + b64(sign("Server Key")), nil
}

// provisioning is the database as the operator's login sees it.
func (h *PostgresHost) provisioning() *DB {
	return OpenPostgres(h.admin, PostgresOptions{}).guard(h.link)
}

// tenantName is the name of the role and the schema of one copy of a tenant's data.
func tenantName(id ident.DatabaseID) (string, error) {
	if _, err := ident.Parse[ident.DatabaseID](string(id)); err != nil {
		return "", err
	}
	return "t_" + strings.TrimPrefix(string(id), id.Prefix()), nil
}

// Provision makes the tenant's role, schema and tables in one transaction. What is there already stays.
func (h *PostgresHost) Provision(ctx context.Context, id ident.DatabaseID) error {
	return h.provision(ctx, id, "")
}

// provision is Provision for the copy with that suffix, of which only one beside another is made anew.
func (h *PostgresHost) provision(ctx context.Context, id ident.DatabaseID, suffix string) error {
	const op = "sqlstore.PostgresHost.Provision"
	name, err := tenantName(id)
	if err != nil {
		return fault.Wrap(op, err)
	}
	in := name + suffix
	// No schema option: the schema does not exist when the transaction begins.
	err = h.provisioning().Write(ctx, func(tx *Tx) error {
		var role, schema, super bool
		var me string
		if err := tx.Run(func(b *Batch) {
			b.Query(func(Scanner) error { return nil }, `SELECT pg_advisory_xact_lock(?)`, lockKey(name))
			b.One([]any{&role, &schema}, `SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = ?1),
				EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = ?2)`, name, in)
			b.One([]any{&me, &super}, `SELECT rolname, rolsuper FROM pg_roles WHERE rolname = current_user`)
		}); err != nil {
			return err
		}
		var ddl strings.Builder
		if !role {
			ddl.WriteString(`CREATE ROLE ` + quoted(name) + ` NOLOGIN NOINHERIT;` + h.grant(name, h.login))
			if !super && me != h.login {
				ddl.WriteString(h.grant(name, me)) // to create the schema for it, and to drop it one day
			}
		}
		if suffix != "" {
			if err := h.clear(tx, name, in); err != nil {
				return err
			}
			schema = false
		}
		if !schema {
			ddl.WriteString(`CREATE SCHEMA ` + quoted(in) + ` AUTHORIZATION ` + quoted(name) + `;`)
		}
		ddl.WriteString(`SET LOCAL ROLE ` + quoted(name) + `; SET LOCAL search_path TO ` + quoted(in) + `, pg_temp;`)
		ddl.WriteString(historyTable)
		if err := tx.script(ddl.String()); err != nil {
			return err
		}
		for _, s := range h.steps {
			if _, err := tx.apply(h.steps, s); err != nil {
				return err
			}
		}
		return nil
	})
	return forbidden(op, err)
}

// grant lets member become role and nothing more.
func (h *PostgresHost) grant(role, member string) string {
	with := ""
	if h.version >= 160000 {
		with = " WITH INHERIT FALSE, SET TRUE"
	}
	return `GRANT ` + quoted(role) + ` TO "` + strings.ReplaceAll(member, `"`, `""`) + `"` + with + `;`
}

// forbidden says clearly that the operator's login lacks a right, which otherwise is a defect of ours.
func forbidden(op string, err error) error {
	if d, ok := errors.AsType[*driverError](err); ok && d.code == "42501" {
		return fault.New(fault.Unavailable, op, "database_forbidden",
			"the PostgreSQL login may not make roles and schemas for tenants").With(err)
	}
	return fault.Wrap(op, err)
}

// Open returns the tenant's database. Nothing is sent: a tenant that was not provisioned shows at the first use. While
// the server cannot be reached, everything fails at once as Unavailable (code "database_unreachable").
func (h *PostgresHost) Open(id ident.DatabaseID) *DB { return h.open(id, "") }

func (h *PostgresHost) open(id ident.DatabaseID, suffix string) *DB {
	name, err := tenantName(id)
	db := openPostgres(h.runtime, PostgresOptions{Role: name, Schema: name + suffix}, &h.texts)
	if err != nil {
		db.on.Load().engine.(*postgresEngine).bad = err
	}
	return db.guard(h.link)
}

// Destroy drops the tenant's schema and role with everything in them, and what lies beside it. One that is gone already is
// no error.
func (h *PostgresHost) Destroy(ctx context.Context, id ident.DatabaseID) error {
	const op = "sqlstore.PostgresHost.Destroy"
	name, err := tenantName(id)
	if err != nil {
		return fault.Wrap(op, err)
	}
	return forbidden(op, h.provisioning().Write(ctx, func(tx *Tx) error {
		var role bool
		if err := tx.Run(func(b *Batch) {
			b.Query(func(Scanner) error { return nil }, `SELECT pg_advisory_xact_lock(?)`, lockKey(name))
			b.One([]any{&role}, `SELECT count(*) > 0 FROM pg_roles WHERE rolname = ?`, name)
		}); err != nil || !role {
			return err
		}
		return tx.script(`SET LOCAL ROLE ` + quoted(name) + `; DROP SCHEMA IF EXISTS ` + quoted(name) + `, ` + quoted(name+nextSuffix) + `, ` +
			quoted(name+keptSuffix) + ` CASCADE; SET LOCAL ROLE NONE; DROP ROLE ` + quoted(name))
	}))
}

// Holds reports whether the tenant's schema, or its role, is there.
func (h *PostgresHost) Holds(ctx context.Context, id ident.DatabaseID) (bool, error) {
	const op = "sqlstore.PostgresHost.Holds"
	name, err := tenantName(id)
	if err != nil {
		return false, fault.Wrap(op, err)
	}
	var n int
	err = h.provisioning().Read(ctx, func(b *Batch) {
		b.One([]any{&n}, `SELECT (SELECT count(*) FROM pg_roles WHERE rolname = ?1) + (SELECT count(*) FROM pg_namespace WHERE nspname = ?1)`, name)
	})
	return n > 0, fault.Wrap(op, err)
}

// Count is how many tenants this server holds.
func (h *PostgresHost) Count(ctx context.Context) (int, error) {
	var n int
	err := h.provisioning().Read(ctx, func(b *Batch) {
		b.One([]any{&n}, `SELECT count(*) FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner
			WHERE n.nspname = r.rolname AND n.nspname ~ '^t_[0-9a-z]{26}$'`)
	})
	return n, fault.Wrap("sqlstore.PostgresHost.Count", err)
}
