package workspace

import (
	"context"
	"errors"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

// Keep keeps what a tenant's database holds before a step changes it, as it is at the older version of its schema. While
// it fails the step is not taken. Code "schema_changed" means that another process took it meanwhile.
type Keep func(ctx context.Context, t tenant.Tenant, db *sqlstore.DB, at sqlstore.Standing) error

// stepTimeout bounds what is kept of a tenant and its migration together.
const stepTimeout = 15 * time.Minute

// legible reports whether a database can be read, as it was before the step that failed so. These codes, and those of
// illegible ones, are what tenant.Schema.Problem may be.
func legible(code string) bool {
	switch code {
	case "migration_failed", "snapshot_failed", tenant.SchemaHeld, "storage_full", "storage_failed":
		return true
	}
	return false
}

// illegible reports whether a database must not be used at all.
func illegible(code string) bool { return code == "schema_newer" || code == "schema_damaged" }

// openMigrated opens the active database of a tenant and brings its schema up to date. It returns the database even
// when a step failed: what can be read then is the older schema. A schema that is not ours, or of a newer binary, is
// never opened. seen is what is known of the schema now.
func (p *Placements) openMigrated(ctx context.Context, t tenant.Tenant) (_ *sqlstore.DB, seen tenant.Schema, err error) {
	db, err := p.Open(ctx, t.Placement)
	if err != nil {
		return nil, t.Schema, err
	}
	m, err := p.bring(ctx, t, db)
	if err != nil && !legible(fault.CodeOf(err)) {
		return nil, m.Seen, errors.Join(err, db.Close())
	}
	return db, m.Seen, err
}

// Migration is what bringing one tenant's schema up to date did.
type Migration struct {
	From   int64
	Seen   tenant.Schema // as it is now; as it was known when it could not be looked at
	Failed string        // the step that failed
}

// bring brings a schema up to date.
func (p *Placements) bring(ctx context.Context, t tenant.Tenant, db *sqlstore.DB) (m Migration, err error) {
	for range 3 {
		m = Migration{From: t.Schema.Version, Seen: t.Schema}
		at, err := p.stand(ctx, db, &m.Seen)
		if err != nil || len(at.Pending) == 0 {
			return m, err
		}
		m.From = at.Version
		if t.Schema.Problem == tenant.SchemaHeld {
			m.Seen.Problem = tenant.SchemaHeld
			return m, fault.New(fault.Unavailable, "workspace.Migrate", tenant.SchemaHeld,
				"the schema was taken back to the version before, until somebody asks for the migration again")
		}
		err = p.step(ctx, t, db, at, &m)
		if fault.CodeOf(err) != "schema_changed" {
			return m, err
		}
	}
	return m, fault.New(fault.Unavailable, "workspace.Migrate", "busy", "other processes migrate this database all the time")
}

// stand looks at a schema and notes what it sees.
func (p *Placements) stand(ctx context.Context, db *sqlstore.DB, seen *tenant.Schema) (sqlstore.Standing, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	at, err := p.steps.Look(ctx, db, sqlstore.Tenant)
	if err == nil && at.Version == 0 {
		// Whoever made it made all of it, and nothing of ours was ever without tables: making them now would show an
		// empty account to somebody whose data is elsewhere.
		err = fault.New(fault.Unavailable, "workspace.Migrate", "schema_damaged", "the tables of the database are missing")
	}
	switch code := fault.CodeOf(err); {
	case err == nil:
		seen.Version, seen.Problem = at.Version, ""
	case illegible(code):
		seen.Version, seen.Problem = at.Version, code
	}
	return at, err
}

// step keeps what is there and takes the pending steps.
func (p *Placements) step(ctx context.Context, t tenant.Tenant, db *sqlstore.DB, at sqlstore.Standing, m *Migration) error {
	ctx, cancel := context.WithTimeout(sqlstore.Patient(ctx), stepTimeout)
	defer cancel()
	if p.keep != nil {
		err := p.keep(ctx, t, db, at)
		switch {
		case fault.CodeOf(err) == "schema_changed":
			return err
		case fault.Is(err, fault.Canceled), sqlstore.Unreachable(err):
			m.Seen.Problem = t.Schema.Problem
			return err
		case err != nil:
			m.Seen.Problem, m.Failed = "snapshot_failed", at.Pending[0]
			return fault.New(fault.Internal, "workspace.Migrate", "snapshot_failed",
				"what is there could not be kept, so it was not migrated").With(err)
		}
	}
	report, err := p.steps.Migrate(ctx, db, sqlstore.Tenant)
	m.Seen.Version, m.Failed = report.To, report.Failed
	if code := fault.CodeOf(err); legible(code) || illegible(code) {
		m.Seen.Problem = code
	} else if err != nil {
		m.Seen.Problem = t.Schema.Problem // nothing that is wrong with the schema
	}
	return err
}

// Migrate brings one tenant's schema up to date without keeping the database open. One that was taken back (held) goes
// forward again.
func (p *Placements) Migrate(ctx context.Context, t tenant.Tenant) (Migration, error) {
	const op = "workspace.Migrate"
	m := Migration{From: t.Schema.Version, Seen: t.Schema}
	db, err := p.Open(ctx, t.Placement)
	if err != nil {
		return m, fault.Wrap(op, err)
	}
	if t.Schema.Problem == tenant.SchemaHeld {
		t.Schema.Problem = ""
	}
	m, err = p.bring(ctx, t, db)
	return m, fault.Wrap(op, errors.Join(err, db.Close()))
}

// Look sees how far a tenant's schema is, and changes nothing.
func (p *Placements) Look(ctx context.Context, t tenant.Tenant) (at sqlstore.Standing, seen tenant.Schema, err error) {
	const op = "workspace.Look"
	seen = t.Schema
	db, err := p.Open(ctx, t.Placement)
	if err != nil {
		return at, seen, fault.Wrap(op, err)
	}
	at, err = p.stand(ctx, db, &seen)
	if err == nil && len(at.Pending) > 0 {
		seen.Problem = t.Schema.Problem // why it was not migrated when it was tried
	}
	return at, seen, fault.Wrap(op, errors.Join(err, db.Close()))
}

// Rebuild makes a tenant's database what it was at an older version of its schema. Whoever has it open must read only.
func (p *Placements) Rebuild(ctx context.Context, t tenant.Tenant, past sqlstore.Past) error {
	const op = "workspace.Rebuild"
	db, err := p.Open(ctx, t.Placement)
	if err != nil {
		return fault.Wrap(op, err)
	}
	ctx, cancel := context.WithTimeout(sqlstore.Patient(ctx), stepTimeout)
	defer cancel()
	err = p.steps.Rebuild(ctx, db, sqlstore.Tenant, past)
	return fault.Wrap(op, errors.Join(err, db.Close()))
}

// Newest is the version of the schema that tenants are brought to.
func (p *Placements) Newest() int64 { return p.steps.Newest(sqlstore.Tenant) }
