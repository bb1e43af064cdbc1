package sqlstore

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/tenant"
)

// Provision makes the schema of that id with its tables, in one transaction, and nothing else. Until [MarkWhole] the tables
// bear a mark, by which [Externals.Undo] knows that they were made to be filled. A schema of that name with something in it is fault.Conflict (code "schema_exists"), as is a server that cannot serve ("server_too_old",
// "encoding_not_utf8", "server_read_only", "create_schema_denied").
func (x *Externals) Provision(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) error {
	const op = "sqlstore.Externals.Provision"
	return fault.Wrap(op, x.once(ctx, id, a, password, func(tx *Tx, name string) error {
		var version, objects int
		var encoding string
		var standby, exists, usable bool
		if err := tx.Run(func(b *Batch) {
			b.Query(func(Scanner) error { return nil }, `SELECT pg_advisory_xact_lock(?)`, lockKey(name))
			b.One([]any{&version, &encoding, &standby}, `SELECT current_setting('server_version_num'),
				current_setting('server_encoding'), pg_is_in_recovery()`)
			b.One([]any{&exists, &objects}, schemaContent, name)
			b.One([]any{&usable}, schemaUsable, name)
		}); err != nil {
			return err
		}
		for _, p := range unfit(version, encoding, standby) {
			return fault.New(fault.Conflict, op, p.Code, p.Message)
		}
		if objects > 0 {
			return schemaTaken(op)
		}
		if exists && !usable {
			return createDenied(op)
		}
		if !exists {
			if err := tx.script(`CREATE SCHEMA ` + quoted(name)); err != nil {
				if sqlState(err) == "42501" {
					return createDenied(op)
				}
				return err
			}
		}
		return tx.freshTables(`COMMENT ON TABLE schema_migrations IS '` + fillingMark + `';`)
	}))
}

// fillingMark is the comment on the history's table by which half a copy is known as one. It is on a table, and not on the
// schema, which may be somebody else's who lets us use it.
const fillingMark = `Claude Memory Backend: a copy that is being filled`

// MarkWhole takes away the mark that a copy in a user's database has since Provision: nobody takes it for half a copy any
// more. It works on a fenced database and may be done again.
func MarkWhole(ctx context.Context, db *DB) error {
	return alter(ctx, db, "sqlstore.MarkWhole", func(tx *Tx, wait int) error {
		return tx.Commit(func(b *Batch) {
			hurry(b, wait)
			b.Exec(`COMMENT ON TABLE schema_migrations IS NULL`)
		})
	})
}

// Undo drops half a copy: what Provision made and MarkWhole was not called for. What else has that name is not ours to drop:
// nothing is done, and the error is fault.Conflict (code "schema_exists"). Else it is as Destroy.
func (x *Externals) Undo(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) error {
	const op = "sqlstore.Externals.Undo"
	return inUseOr(op, x.once(ctx, id, a, password, func(tx *Tx, name string) error {
		there, err := lookForSchemas(tx, name)
		if err != nil {
			return err
		}
		var half bool
		var objects int
		if err := tx.Run(func(b *Batch) {
			b.One([]any{&there.name, &objects}, schemaContent, name)
			b.One([]any{&half}, `SELECT count(*) > 0 FROM pg_class WHERE relnamespace = to_regnamespace(?)
				AND relname = 'schema_migrations' AND obj_description(oid, 'pg_class') = ?`, name, fillingMark)
		}); err != nil {
			return err
		}
		switch {
		case half:
			return tx.script(dropDDL(name))
		case objects > 0:
			return schemaTaken(op)
		}
		return nil
	}))
}

func schemaTaken(op string) *fault.Error {
	return fault.New(fault.Conflict, op, "schema_exists",
		"the database holds a schema of that name with something in it already: rename or drop it first")
}

// freshTables makes the tables of the newest schema where the search path leads, which must be empty, does more, and commits.
func (t *Tx) freshTables(more string) error {
	steps, err := load(embedded, Tenant, Postgres)
	if err != nil {
		return err
	}
	var ddl strings.Builder
	ddl.WriteString(historyTable + `;`)
	for _, s := range steps {
		ddl.WriteString(s.sql)
	}
	ddl.WriteString(more)
	if err := t.script(ddl.String()); err != nil {
		if sqlState(err) == "42501" {
			return createDenied("sqlstore.Externals.Provision")
		}
		return err
	}
	return t.Commit(func(b *Batch) {
		for _, s := range steps {
			b.Exec(`INSERT INTO schema_migrations (version, name, checksum, applied_at) VALUES (?, ?, ?, ?)`,
				s.version, s.name, s.checksum, time.Now().UnixMicro())
		}
	})
}

// schemaContent says whether the schema ? exists and how many tables, types of their own and functions are in it.
const schemaContent = `SELECT to_regnamespace(?1) IS NOT NULL,
	(SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace(?1)) +
	(SELECT count(*) FROM pg_proc WHERE pronamespace = to_regnamespace(?1)) +
	(SELECT count(*) FROM pg_type WHERE typnamespace = to_regnamespace(?1))`

// schemaUsable says whether the schema ? may be used and filled. One that may not is passed over in a search path, and
// what is created lands in the next: among temporary tables, which are gone with the connection.
const schemaUsable = `SELECT has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = ?`

func createDenied(op string) *fault.Error {
	return fault.New(fault.Conflict, op, "create_schema_denied",
		"the user may not make a schema in that database: GRANT CREATE ON DATABASE … TO … allows it")
}

// Destroy drops the schema of that id with our tables, and what of ours lies beside it. When something that is not ours lies
// in it, or depends on our tables, nothing is dropped, and the error is fault.Conflict (code "schema_in_use"). A schema that
// is gone already is no error.
func (x *Externals) Destroy(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) error {
	const op = "sqlstore.Externals.Destroy"
	return inUseOr(op, x.once(ctx, id, a, password, func(tx *Tx, name string) error {
		there, err := lookForSchemas(tx, name)
		if err != nil {
			return err
		}
		ddl := shedDDL(name, there)
		if there.name {
			ddl += dropDDL(name)
		}
		if ddl == "" {
			return nil
		}
		return tx.script(ddl)
	}))
}

// dropDDL drops a schema with what of ours is in it. That is named together and with RESTRICT: CASCADE would take along
// what others have built on it, and so would a list of all that is there.
func dropDDL(schema string) string {
	return `DO $drop$ DECLARE list text; BEGIN
		SELECT string_agg(c.oid::regclass::text, ', ') INTO list FROM pg_class c
			WHERE c.relnamespace = to_regnamespace('` + quoted(schema) + `') AND c.relkind = 'r'
				AND c.relname IN ('` + strings.Join(slices.Concat(tenantTables[:], unlisted[:]), `', '`) + `');
		IF list IS NOT NULL THEN EXECUTE 'DROP TABLE ' || list || ' RESTRICT'; END IF;
		SELECT string_agg(p.oid::regprocedure::text, ', ') INTO list FROM pg_proc p
			WHERE p.pronamespace = to_regnamespace('` + quoted(schema) + `') AND p.prokind = 'f'
				AND p.prorettype = 'pg_catalog.trigger'::regtype AND (p.proname = '` + fenceName + `' OR p.proname IN ('` +
		captureName + "_" + strings.Join(tenantTables[:], `', '`+captureName+"_") + `'));
		IF list IS NOT NULL THEN EXECUTE 'DROP FUNCTION ' || list || ' RESTRICT'; END IF;
		DROP SCHEMA ` + quoted(schema) + ` RESTRICT; END $drop$;`
}

// once does one transaction on a database that is opened for it alone.
func (x *Externals) once(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret,
	fn func(tx *Tx, name string) error) error {
	ctx, cancel := context.WithTimeout(Patient(ctx), x.whole)
	defer cancel()
	e, err := x.engine(id, "", a, password)
	if err != nil {
		return err
	}
	db := newDB(Postgres, e)
	defer func() { _ = db.Close() }()
	err = db.Write(ctx, func(tx *Tx) error { return fn(tx, e.schema) })
	if f, ok := errors.AsType[*fault.Error](err); ok && (f.Code == "address_refused" || f.Code == "tls_required") {
		refused := *f
		refused.Class, refused.After = fault.Invalid, 0
		return &refused
	}
	return err
}
