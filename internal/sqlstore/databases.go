package sqlstore

import (
	"context"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/tenant"
)

const selectDatabases = `SELECT d.tenant_id, d.name, d.state, d.schema_version, d.size_bytes, d.problem, d.checked_at,
	d.version, d.created_at, d.updated_at, ` + placementColumns + ` FROM databases d`

func takeDatabases(list *[]tenant.Database) func(Scanner) error {
	return func(s Scanner) error {
		var d tenant.Database
		var p placementRow
		var checked *int64
		var created, updated int64
		err := s.Scan(append([]any{&d.Tenant, &d.Name, &d.State, &d.Facts.SchemaVersion, &d.Facts.SizeBytes,
			&d.Facts.Problem, &checked, &d.Version, &created, &updated}, p.dest()...)...)
		d.Placement, d.Facts.CheckedAt = p.done(), timeOf(checked)
		d.CreatedAt, d.UpdatedAt = ident.Time(created), ident.Time(updated)
		*list = append(*list, d)
		return err
	}
}

func insertDatabase(b *Batch, d tenant.Database) {
	p := d.Placement
	b.Exec(`INSERT INTO databases (id, tenant_id, name, kind, host, port, dbname, username, tls, sealed_password, wrapped_key,
		state, schema_version, size_bytes, problem, checked_at, version, created_at, updated_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		p.Database, d.Tenant, d.Name, p.Kind, hostOf(p), int64(p.Address.Port), p.Address.Database, p.Address.Username, p.Address.TLS,
		p.SealedPassword, p.WrappedKey, d.State, d.Facts.SchemaVersion, d.Facts.SizeBytes, d.Facts.Problem,
		moment(d.Facts.CheckedAt), d.Version, ident.Micros(d.CreatedAt), ident.Micros(d.UpdatedAt))
}

func updateDatabase(b *Batch, d tenant.Database) {
	p := d.Placement
	b.Exec(`UPDATE databases SET name = ?, kind = ?, host = ?, port = ?, dbname = ?, username = ?, tls = ?, sealed_password = ?,
		wrapped_key = ?, state = ?, schema_version = ?, size_bytes = ?, problem = ?, checked_at = ?, version = ?, updated_at = ?
		WHERE id = ?`,
		d.Name, p.Kind, hostOf(p), int64(p.Address.Port), p.Address.Database, p.Address.Username, p.Address.TLS, p.SealedPassword,
		p.WrappedKey, d.State, d.Facts.SchemaVersion, d.Facts.SizeBytes, d.Facts.Problem, moment(d.Facts.CheckedAt),
		d.Version, ident.Micros(d.UpdatedAt), p.Database)
}

// ListDatabases returns the databases of a tenant, oldest first.
func (s *MasterStore) ListDatabases(ctx context.Context, id ident.TenantID) ([]tenant.Database, error) {
	var list []tenant.Database
	err := s.db.Read(ctx, func(b *Batch) {
		b.Query(takeDatabases(&list), selectDatabases+` WHERE d.tenant_id = ? ORDER BY d.id`, id)
	})
	return list, err
}

// FindDatabase returns one of the tenant's databases; another tenant's is as missing as one that never was.
func (s *MasterStore) FindDatabase(ctx context.Context, of ident.TenantID, id ident.DatabaseID) (tenant.Database, error) {
	var list []tenant.Database
	err := s.db.Read(ctx, func(b *Batch) {
		b.Query(takeDatabases(&list), selectDatabases+` WHERE d.id = ? AND d.tenant_id = ?`, id, of)
	})
	if err == nil && len(list) == 0 {
		err = fault.Missing("sqlstore.FindDatabase")
	}
	if err != nil {
		return tenant.Database{}, err
	}
	return list[0], nil
}

// InsertDatabase stores a new configuration.
func (s *MasterStore) InsertDatabase(ctx context.Context, d tenant.Database, ch event.Change) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		return tx.Commit(func(b *Batch) {
			insertDatabase(b, d)
			toTell(b, d.Tenant, ch)
			appendChange(b, ch, head)
		})
	})
}

// InsertDatabaseFor stores a new configuration, as created tells, with the job that is about to fill it, which becomes the
// tenant's job (code "tenant_busy" when there is one). decide sees the tenant under a lock. Whoever is refused leaves
// nothing.
func (s *MasterStore) InsertDatabaseFor(ctx context.Context, d tenant.Database, created event.Change, start job.Job,
	decide func(tenant.Tenant) (event.Change, error),
) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		t, err := lockTenant(tx, d.Tenant)
		if err != nil {
			return err
		}
		ch, err := decide(t)
		if err != nil {
			return err
		}
		if err := takeTenant(tx, start); err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) {
			insertDatabase(b, d)
			insertJob(b, start)
			toTell(b, d.Tenant, created)
			toTell(b, d.Tenant, ch)
			appendChange(b, created, head)
			appendChange(b, ch, head)
		})
	})
}

// UpdateDatabase reads a database and its tenant under a lock, lets edit decide, and commits what it returns. With a
// new job, which may be nil, that becomes the tenant's job in the same transaction (code "tenant_busy" when there is
// one). An edit without events changes the configuration silently when it returns another one: facts that were
// looked at are no change.
func (s *MasterStore) UpdateDatabase(ctx context.Context, of ident.TenantID, id ident.DatabaseID, start *job.Job,
	edit func(tenant.Tenant, tenant.Database) (tenant.Database, event.Change, error),
) (tenant.Database, error) {
	var after tenant.Database
	err := s.change(ctx, func(tx *Tx, head *event.Seq) error {
		t, d, err := lockDatabase(tx, of, id)
		if err != nil {
			return err
		}
		var ch event.Change
		if after, ch, err = edit(t, d); err != nil {
			return err
		}
		if start != nil {
			if err := takeTenant(tx, *start); err != nil {
				return err
			}
		}
		return tx.Commit(func(b *Batch) {
			updateDatabase(b, after)
			if start != nil {
				insertJob(b, *start)
			}
			toTell(b, of, ch)
			appendChange(b, ch, head)
		})
	})
	return after, err
}

// lockDatabase reads one of the tenant's databases and keeps others from changing tenant and database.
func lockDatabase(tx *Tx, of ident.TenantID, id ident.DatabaseID) (tenant.Tenant, tenant.Database, error) {
	t, err := lockTenant(tx, of)
	if err != nil {
		return t, tenant.Database{}, err
	}
	var list []tenant.Database
	if err := tx.Run(func(b *Batch) {
		b.Query(takeDatabases(&list), selectDatabases+` WHERE d.id = ? AND d.tenant_id = ?`+tx.Dialect().ForUpdate(), id, of)
	}); err != nil {
		return t, tenant.Database{}, err
	}
	if len(list) == 0 {
		return t, tenant.Database{}, fault.Missing("sqlstore.UpdateDatabase")
	}
	return t, list[0], nil
}

// DeleteDatabase forgets a configuration, if decide agrees, which is told what others the tenant has.
func (s *MasterStore) DeleteDatabase(ctx context.Context, of ident.TenantID, id ident.DatabaseID,
	decide func(t tenant.Tenant, d tenant.Database, others []tenant.Database) (event.Change, error),
) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		t, d, err := lockDatabase(tx, of, id)
		if err != nil {
			return err
		}
		var others []tenant.Database
		if err := tx.Run(func(b *Batch) {
			b.Query(takeDatabases(&others), selectDatabases+` WHERE d.tenant_id = ? AND d.id <> ? ORDER BY d.id`, of, id)
		}); err != nil {
			return err
		}
		ch, err := decide(t, d, others)
		if err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) {
			b.Exec(`DELETE FROM databases WHERE id = ?`, id)
			toTell(b, of, ch)
			appendChange(b, ch, head)
		})
	})
}

// SwitchDatabase makes to the tenant's active database instead of from, which becomes its original, under the job that
// moved it, as whoever works on that has claimed it. Of both, only what the switch is about is written: name, credentials and what is sealed may have become others
// since the move began. facts are what was seen of to; key is the wrapped one of its file where that took the place of
// another (nil: it stays), and that it is about to ([TakingOver]) is forgotten. It reports false, and changes nothing, when
// the tenant is not that job's, the job is somebody else's, or from is not the active one any more.
func (s *MasterStore) SwitchDatabase(ctx context.Context, of ident.TenantID, by job.Job, from, to ident.DatabaseID, facts tenant.Facts,
	key []byte, ch event.Change,
) (switched bool, err error) {
	err = s.change(ctx, func(tx *Tx, head *event.Seq) error {
		switched = false
		t, was, err := lockDatabase(tx, of, from)
		if err != nil || t.Job != by.ID || t.Placement.Database != from {
			return err
		}
		var node string
		if err := tx.Run(func(b *Batch) {
			b.One([]any{&node}, `SELECT node FROM jobs WHERE id = ?`+tx.Dialect().ForUpdate(), by.ID)
		}); err != nil || node != by.Node {
			return err
		}
		_, now, err := lockDatabase(tx, of, to)
		if err != nil {
			return err
		}
		was.State, was.Version, was.UpdatedAt = tenant.Original, was.Version+1, ch.At
		now.State, now.Version, now.UpdatedAt = tenant.InUse, now.Version+1, ch.At
		now.Facts = tenant.Facts{SchemaVersion: facts.SchemaVersion, SizeBytes: facts.SizeBytes} // not looked at in use yet
		if key != nil {
			now.Placement.WrappedKey = key
		}
		switched = true
		return tx.Commit(func(b *Batch) {
			updateDatabase(b, was)
			updateDatabase(b, now)
			b.Exec(`DELETE FROM facts WHERE name = ?`, TakingOver(to))
			b.Exec(`UPDATE tenants SET database_id = ?, schema_version = ?, schema_problem = '', schema_at = ? WHERE id = ?`,
				to, facts.SchemaVersion, ident.Micros(ch.At), of)
			toTell(b, of, ch)
			appendChange(b, ch, head)
		})
	})
	return switched && err == nil, err
}

// EachSealed calls f for every database that holds something sealed, in the order of their ids, page by page.
func (s *MasterStore) EachSealed(ctx context.Context, f func(tenant.Database) error) error {
	after := ident.DatabaseID("")
	for {
		var list []tenant.Database
		if err := s.db.Read(ctx, func(b *Batch) {
			b.Query(takeDatabases(&list), selectDatabases+` WHERE d.id > ? AND (d.wrapped_key IS NOT NULL OR d.sealed_password IS NOT NULL)
				ORDER BY d.id LIMIT 500`, after)
		}); err != nil || len(list) == 0 {
			return err
		}
		for _, d := range list {
			if err := f(d); err != nil {
				return err
			}
		}
		after = list[len(list)-1].ID()
	}
}

// SealedElsewhere counts the databases with something that is sealed under one of the installation's master keys (facts
// whose names begin with prefix hold their ids) other than these two, which may be the same.
func (s *MasterStore) SealedElsewhere(ctx context.Context, prefix string, one, other []byte) (n int, err error) {
	err = s.db.Read(ctx, func(b *Batch) {
		b.One([]any{&n}, `SELECT count(DISTINCT d.id) FROM facts f JOIN databases d
			ON substr(d.wrapped_key, 2, 8) = f.value OR substr(d.sealed_password, 2, 8) = f.value
			WHERE f.name LIKE ? AND f.value <> ? AND f.value <> ?`, prefix+"%", one, other)
	})
	return n, err
}

// Reseal replaces what a database holds sealed, unless somebody replaced it meanwhile. It is no change: the same
// secrets are sealed under another key.
func (s *MasterStore) Reseal(ctx context.Context, old, now tenant.Placement) (done bool, err error) {
	var n *Affected
	err = s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			n = b.Exec(`UPDATE databases SET wrapped_key = ?, sealed_password = ? WHERE id = ?
				AND COALESCE(wrapped_key, ?) = ? AND COALESCE(sealed_password, ?) = ?`, now.WrappedKey, now.SealedPassword, old.Database,
				[]byte{}, notNull(old.WrappedKey), []byte{}, notNull(old.SealedPassword))
		})
	})
	return err == nil && n.N == 1, err
}
