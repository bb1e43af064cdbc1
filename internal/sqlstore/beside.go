package sqlstore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/tenant"
)

// A copy that is to replace one that is kept is made beside it, under a name of its own, and takes that one's name when it
// is whole (decision 0080):
//
//	name ─ kept copy        name ─ kept copy                    name ─ new copy
//	            next ─ filling       next ─ new copy, whole          kept ─ kept copy
//	                                                                      └─► dropped once the master database has decided,
//	                                                                          or put back
//
// The exchange of names is one transaction on PostgreSQL. With files it is two renames; killed between them, it is
// completed or taken back by whoever looks next, who is told by the fact [TakingOver] which of the two copies counts.
const (
	nextSuffix = "_next"
	keptSuffix = "_kept"
)

// TakingOver names the fact that stands in the master database while the names of a copy and of the kept one beside it may
// be exchanged although the tenant was not switched. [MasterStore.SwitchDatabase] removes it.
func TakingOver(id ident.DatabaseID) string { return "taking_over/" + string(id) }

// ProvisionBeside makes an empty copy beside the one that is kept, as Provision does. It proves first that the two can be
// exchanged (code "database_forbidden").
func (h *PostgresHost) ProvisionBeside(ctx context.Context, id ident.DatabaseID) error {
	return h.provision(ctx, id, nextSuffix)
}

// clear makes room for a copy beside the one that is kept, and proves by doing so that this one can be renamed.
func (h *PostgresHost) clear(tx *Tx, name, in string) error {
	there, err := lookForSchemas(tx, name)
	if err != nil {
		return err
	}
	if there.next {
		if err := h.drop(tx, name, in); err != nil {
			return err
		}
	}
	if !there.name {
		return nil
	}
	for _, ddl := range []string{quoted(name) + ` RENAME TO ` + quoted(name+keptSuffix), quoted(name+keptSuffix) + ` RENAME TO ` + quoted(name)} {
		if err := h.rename(tx, name, `ALTER SCHEMA `+ddl+`;`); err != nil {
			return err
		}
	}
	return nil
}

// OpenBeside returns the copy that lies beside the one that is kept.
func (h *PostgresHost) OpenBeside(id ident.DatabaseID) *DB { return h.open(id, nextSuffix) }

// TakeOver gives the copy beside the kept one that one's name.
func (h *PostgresHost) TakeOver(ctx context.Context, id ident.DatabaseID) error {
	return h.arrange(ctx, "sqlstore.PostgresHost.TakeOver", id, func(tx *Tx, name string, there schemas) error {
		if !there.next {
			return besideMissing("sqlstore.PostgresHost.TakeOver")
		}
		return h.rename(tx, name, exchange(name, there))
	})
}

// PutBack undoes TakeOver, if it was done, and drops what lies beside the kept copy.
func (h *PostgresHost) PutBack(ctx context.Context, id ident.DatabaseID) error {
	return h.arrange(ctx, "sqlstore.PostgresHost.PutBack", id, func(tx *Tx, name string, there schemas) error {
		if there.next {
			if err := h.drop(tx, name, name+nextSuffix); err != nil {
				return err
			}
		}
		if !there.kept {
			return nil
		}
		if there.name {
			if err := h.drop(tx, name, name); err != nil {
				return err
			}
		}
		return h.rename(tx, name, `ALTER SCHEMA `+quoted(name+keptSuffix)+` RENAME TO `+quoted(name)+`;`)
	})
}

// Shed drops whatever lies beside a copy. Nothing there is no error.
func (h *PostgresHost) Shed(ctx context.Context, id ident.DatabaseID) error {
	return h.arrange(ctx, "sqlstore.PostgresHost.Shed", id, func(tx *Tx, name string, there schemas) error {
		for suffix, is := range map[string]bool{nextSuffix: there.next, keptSuffix: there.kept} {
			if is {
				if err := h.drop(tx, name, name+suffix); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// arrange does one transaction on the schemas of a copy, alone.
func (h *PostgresHost) arrange(ctx context.Context, op string, id ident.DatabaseID, fn func(tx *Tx, name string, there schemas) error) error {
	name, err := tenantName(id)
	if err != nil {
		return fault.Wrap(op, err)
	}
	return forbidden(op, h.provisioning().Write(ctx, func(tx *Tx) error {
		there, err := lookForSchemas(tx, name)
		if err != nil {
			return err
		}
		return fn(tx, name, there)
	}))
}

// drop drops a schema that belongs to the role name.
func (h *PostgresHost) drop(tx *Tx, name, schema string) error {
	return tx.script(`SET LOCAL ROLE ` + quoted(name) + `; DROP SCHEMA ` + quoted(schema) + ` CASCADE; SET LOCAL ROLE NONE`)
}

// rename runs ddl that renames schemas of the role name. Whoever renames must own the schema and may make schemas in the
// database: the operator's login may the second. It is the first while it inherits from that role, which it need not do
// otherwise, and does inside this transaction, where nobody else sees it.
func (h *PostgresHost) rename(tx *Tx, name, ddl string) error {
	var me string
	var super, inherit bool
	if err := tx.Run(func(b *Batch) {
		b.One([]any{&me, &super, &inherit}, `SELECT rolname, rolsuper, rolinherit FROM pg_roles WHERE rolname = current_user`)
	}); err != nil {
		return err
	}
	login := quoted(me)
	switch {
	case super:
	case h.version >= 160000: // since then each grant says so for itself
		ddl = `GRANT ` + quoted(name) + ` TO ` + login + ` WITH INHERIT TRUE, SET TRUE;` + ddl + h.grant(name, me)
	case !inherit:
		if err := tx.Run(func(b *Batch) { // two that alter a role at once are an error of the server's
			b.Query(func(Scanner) error { return nil }, `SELECT pg_advisory_xact_lock(?)`, lockKey(me))
		}); err != nil {
			return err
		}
		ddl = `ALTER ROLE ` + login + ` INHERIT;` + ddl + `ALTER ROLE ` + login + ` NOINHERIT;`
	}
	return tx.script(ddl)
}

// schemas says which schemas of a copy exist, and which of those beside it are ours.
type schemas struct {
	name, next, kept bool
	ourNext, ourKept bool // as their comments say: in a user's database anybody may have made them
}

// ourSchema is the comment by which a schema beside a copy is known as ours.
const ourSchema = `Claude Memory Backend: beside a copy, until that is complete or given up`

// lookForSchemas looks, and keeps others out until the transaction ends.
func lookForSchemas(tx *Tx, name string) (s schemas, err error) {
	err = tx.Run(func(b *Batch) {
		b.Query(func(Scanner) error { return nil }, `SELECT pg_advisory_xact_lock(?)`, lockKey(name))
		one := func(there, ours *bool, name string) {
			b.One([]any{there, ours}, `SELECT count(*) > 0, count(*) FILTER (WHERE obj_description(oid, 'pg_namespace') = ?) > 0
				FROM pg_namespace WHERE nspname = ?`, ourSchema, name)
		}
		var any bool
		one(&s.name, &any, name)
		one(&s.next, &s.ourNext, name+nextSuffix)
		one(&s.kept, &s.ourKept, name+keptSuffix)
	})
	return s, err
}

// exchange is the DDL that lets the schema beside the kept one take its name.
func exchange(name string, there schemas) (ddl string) {
	if there.name {
		ddl = `ALTER SCHEMA ` + quoted(name) + ` RENAME TO ` + quoted(name+keptSuffix) + `;`
	}
	return ddl + `ALTER SCHEMA ` + quoted(name+nextSuffix) + ` RENAME TO ` + quoted(name) + `;`
}

func besideMissing(op string) error {
	return fault.New(fault.Unavailable, op, "tenant_missing", "the copy that was to take over is missing")
}

// ProvisionBeside makes an empty copy beside the one that is kept, as Provision does. What would keep the two from being
// exchanged, or the kept one from being dropped then, is said before: a schema of somebody else's under a name that is
// needed is fault.Conflict (code "schema_exists"), something of the user's that depends on the kept tables "schema_in_use",
// and a user who does not own the schema or may not make schemas "create_schema_denied".
func (x *Externals) ProvisionBeside(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) error {
	const op = "sqlstore.Externals.ProvisionBeside"
	err := x.once(ctx, id, a, password, func(tx *Tx, name string) error {
		there, err := lookForSchemas(tx, name)
		if err != nil {
			return err
		}
		if there.next && !there.ourNext || there.kept {
			return fault.New(fault.Conflict, op, "schema_exists", "the database holds a schema whose name is that of the original with "+
				nextSuffix+" or "+keptSuffix+" behind it: rename or drop it first")
		}
		var ddl strings.Builder
		if there.next {
			ddl.WriteString(dropDDL(name + nextSuffix))
		}
		ddl.WriteString(`CREATE SCHEMA ` + quoted(name+nextSuffix) + `; COMMENT ON SCHEMA ` + quoted(name+nextSuffix) + ` IS '` + ourSchema + `';`)
		if there.name {
			// Tried and taken back: an exchange that cannot be made, or a kept copy that cannot be dropped, is known now
			// and not when requests wait.
			ddl.WriteString(`DO $try$ BEGIN ` + exchange(name, there) + `EXECUTE ` + literalText(dropDDL(name+keptSuffix)) + `;
				RAISE EXCEPTION USING ERRCODE = '` + triedState + `';
				EXCEPTION WHEN SQLSTATE '` + triedState + `' THEN NULL; END $try$;`)
		}
		ddl.WriteString(`SELECT pg_catalog.set_config('search_path', '` + quoted(name+nextSuffix) + `, pg_temp', true);`)
		if err := tx.script(ddl.String()); err != nil {
			if sqlState(err) == "42501" {
				return fault.New(fault.Conflict, op, "create_schema_denied", "the user does not own the schema in which the original is kept, "+
					"or may not make another one beside it: sign in as its owner, after GRANT CREATE ON DATABASE … TO …").With(err)
			}
			return err
		}
		return tx.freshTables("")
	})
	return inUseOr(op, err)
}

// triedState is the error by which what was only tried is taken back.
const triedState = "CMB02"

func literalText(sql string) string { return `'` + strings.ReplaceAll(sql, `'`, `''`) + `'` }

// inUseOr says so when what failed is that something else depends on our tables.
func inUseOr(op string, err error) error {
	if sqlState(err) == "2BP01" {
		return fault.New(fault.Conflict, op, "schema_in_use",
			"something else lies in the schema or depends on these tables, such as a table or a view of your own: move or drop it first").With(err)
	}
	return fault.Wrap(op, err)
}

// OpenBeside returns the copy that lies beside the one that is kept, as Open does.
func (x *Externals) OpenBeside(id ident.DatabaseID, a tenant.Address, password seal.Secret) *DB {
	return x.open(id, nextSuffix, a, password)
}

// TakeOver gives the copy beside the kept one that one's name.
func (x *Externals) TakeOver(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) error {
	const op = "sqlstore.Externals.TakeOver"
	return fault.Wrap(op, x.once(ctx, id, a, password, func(tx *Tx, name string) error {
		there, err := lookForSchemas(tx, name)
		if err != nil {
			return err
		}
		if !there.ourNext {
			return besideMissing(op)
		}
		ddl := exchange(name, there) + `COMMENT ON SCHEMA ` + quoted(name) + ` IS NULL;`
		if there.name {
			ddl += `COMMENT ON SCHEMA ` + quoted(name+keptSuffix) + ` IS '` + ourSchema + `';`
		}
		return tx.script(ddl)
	}))
}

// PutBack undoes TakeOver, if it was done, and drops what of ours lies beside the kept copy.
func (x *Externals) PutBack(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) error {
	const op = "sqlstore.Externals.PutBack"
	return inUseOr(op, x.once(ctx, id, a, password, func(tx *Tx, name string) error {
		there, err := lookForSchemas(tx, name)
		if err != nil {
			return err
		}
		var ddl strings.Builder
		if there.ourNext {
			ddl.WriteString(dropDDL(name + nextSuffix))
		}
		if there.ourKept {
			if there.name {
				ddl.WriteString(dropDDL(name))
			}
			ddl.WriteString(`ALTER SCHEMA ` + quoted(name+keptSuffix) + ` RENAME TO ` + quoted(name) + `;
				COMMENT ON SCHEMA ` + quoted(name) + ` IS NULL;`)
		}
		if ddl.Len() == 0 {
			return nil
		}
		return tx.script(ddl.String())
	}))
}

// Shed drops whatever of ours lies beside a copy. Nothing there is no error.
func (x *Externals) Shed(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) error {
	const op = "sqlstore.Externals.Shed"
	return inUseOr(op, x.once(ctx, id, a, password, func(tx *Tx, name string) error {
		there, err := lookForSchemas(tx, name)
		if err != nil {
			return err
		}
		if ddl := shedDDL(name, there); ddl != "" {
			return tx.script(ddl)
		}
		return nil
	}))
}

func shedDDL(name string, there schemas) (ddl string) {
	if there.ourNext {
		ddl += dropDDL(name + nextSuffix)
	}
	if there.ourKept {
		ddl += dropDDL(name + keptSuffix)
	}
	return ddl
}

// Beside is the file of the copy that lies beside the one at path.
func Beside(path string) string { return withSuffix(path, nextSuffix) }

func withSuffix(path, suffix string) string {
	ext := filepath.Ext(path)
	return strings.TrimSuffix(path, ext) + suffix + ext
}

// TakeOver gives the file beside the kept one that one's name. Both must be closed: a log beside one of them is somebody who
// has it open, or did not close it in order, and is code "database_busy".
func TakeOver(path string) error {
	const op = "sqlstore.TakeOver"
	next, kept := Beside(path), withSuffix(path, keptSuffix)
	if !isFile(next) {
		return besideMissing(op)
	}
	// A log goes by its file's name: whoever has one open would take the other file's for its own.
	if isFile(next+"-wal") || isFile(path+"-wal") {
		return fault.New(fault.Unavailable, op, "database_busy", "the kept copy is being looked at: try again in a moment")
	}
	if err := Destroy(kept); err != nil {
		return err
	}
	if err := os.Rename(path, kept); err != nil && !errors.Is(err, os.ErrNotExist) {
		return storing(op, err)
	}
	return renamed(op, next, path)
}

// PutBack undoes TakeOver, whole or half of it, if it was begun, and removes what lies beside the kept file.
func PutBack(path string) error {
	const op = "sqlstore.PutBack"
	kept := withSuffix(path, keptSuffix)
	if isFile(kept) {
		if err := Destroy(path); err != nil {
			return err
		}
		if err := renamed(op, kept, path); err != nil {
			return err
		}
	}
	return Destroy(Beside(path))
}

// Shed removes whatever lies beside a file. Nothing there is no error.
func Shed(path string) error {
	return errors.Join(Destroy(Beside(path)), Destroy(withSuffix(path, keptSuffix)))
}

func isFile(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// renamed renames a file for good.
func renamed(op, from, to string) error {
	if err := os.Remove(to + "-shm"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return storing(op, err)
	}
	if err := os.Rename(from, to); err != nil {
		return storing(op, err)
	}
	return storing(op, syncDir(filepath.Dir(to)))
}
