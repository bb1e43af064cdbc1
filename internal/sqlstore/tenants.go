package sqlstore

import (
	"context"
	"slices"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/tenant"
)

// placementColumns are those of a database that the statement calls d, as far as opening it needs them.
const placementColumns = `d.id, d.kind, d.host, d.port, d.dbname, d.username, d.tls, d.sealed_password, d.wrapped_key`

// placementRow is a placement while it is scanned.
type placementRow struct {
	tenant.Placement
	host string
	port int64
}

// dest is where placementColumns go; done is called when they are there.
func (r *placementRow) dest() []any {
	p := &r.Placement
	return []any{&p.Database, &p.Kind, &r.host, &r.port, &p.Address.Database, &p.Address.Username, &p.Address.TLS,
		&p.SealedPassword, &p.WrappedKey}
}

func (r *placementRow) done() tenant.Placement {
	if r.Kind == tenant.External {
		r.Address.Host, r.Address.Port = r.host, uint16(r.port)
	} else {
		r.Host = r.host
	}
	return r.Placement
}

// hostOf is what the column host holds of a placement.
func hostOf(p tenant.Placement) string {
	if p.Kind == tenant.External {
		return p.Address.Host
	}
	return p.Host
}

const selectTenants = `SELECT t.id, t.account_id, t.state, t.job_id, t.max_bytes, t.max_count, t.schema_version,
	t.schema_problem, t.schema_at, t.created_at, ` + placementColumns + `
	FROM tenants t JOIN databases d ON d.id = t.database_id`

func scanTenant(s Scanner) (t tenant.Tenant, err error) {
	var created, schemaAt int64
	var p placementRow
	err = s.Scan(append([]any{&t.ID, &t.Account, &t.State, &t.Job, &t.Limits.Bytes, &t.Limits.Messages, &t.Schema.Version,
		&t.Schema.Problem, &schemaAt, &created}, p.dest()...)...)
	t.Placement, t.CreatedAt = p.done(), ident.Time(created)
	if schemaAt > 0 {
		t.Schema.At = ident.Time(schemaAt)
	}
	return t, err
}

// insertTenant queues a tenant with its first database; its account comes first.
func insertTenant(b *Batch, t tenant.Tenant) {
	b.Exec(`INSERT INTO tenants (id, account_id, state, database_id, max_bytes, max_count, created_at)
		VALUES (?, ?, ?, ?, ?, ?, ?)`,
		t.ID, t.Account, t.State, t.Placement.Database, t.Limits.Bytes, t.Limits.Messages, ident.Micros(t.CreatedAt))
	insertDatabase(b, tenant.Database{Tenant: t.ID, Name: hostedName, Placement: t.Placement, State: tenant.InUse, Version: 1,
		CreatedAt: t.CreatedAt, UpdatedAt: t.CreatedAt})
}

// hostedName is what the database that came with an account is called until somebody renames it.
const hostedName = "Hosted"

// FindTenant implements tenant.Directory.
func (s *MasterStore) FindTenant(ctx context.Context, id ident.TenantID) (tenant.Tenant, error) {
	list, err := s.tenants(ctx, selectTenants+` WHERE t.id = ?`, id)
	if err == nil && len(list) == 0 {
		err = fault.Missing("sqlstore.FindTenant")
	}
	if err != nil {
		return tenant.Tenant{}, err
	}
	return list[0], nil
}

// ListTenants returns up to limit tenants after the given one, in the order of their ids, which is that of their
// making; for whoever goes through all of them.
func (s *MasterStore) ListTenants(ctx context.Context, after ident.TenantID, limit int) ([]tenant.Tenant, error) {
	return s.tenants(ctx, selectTenants+` WHERE t.id > ? ORDER BY t.id LIMIT ?`, after, max(1, limit))
}

func (s *MasterStore) tenants(ctx context.Context, sql string, args ...any) ([]tenant.Tenant, error) {
	var list []tenant.Tenant
	err := s.db.Read(ctx, func(b *Batch) { b.Query(takeTenants(&list), sql, args...) })
	return list, err
}

func takeTenants(list *[]tenant.Tenant) func(Scanner) error {
	return func(s Scanner) error {
		t, err := scanTenant(s)
		*list = append(*list, t)
		return err
	}
}

// UpdateTenant reads a tenant under a lock, lets edit decide, and commits state and limits. An edit without events
// changes nothing.
func (s *MasterStore) UpdateTenant(ctx context.Context, id ident.TenantID,
	edit func(tenant.Tenant) (tenant.Tenant, event.Change, error),
) (tenant.Tenant, error) {
	var after tenant.Tenant
	err := s.change(ctx, func(tx *Tx, head *event.Seq) error {
		t, err := lockTenant(tx, id)
		if err != nil {
			return err
		}
		var ch event.Change
		if after, ch, err = edit(t); err != nil || len(ch.Events) == 0 {
			return err
		}
		return tx.Commit(func(b *Batch) {
			b.Exec(`UPDATE tenants SET state = ?, max_bytes = ?, max_count = ? WHERE id = ?`,
				after.State, after.Limits.Bytes, after.Limits.Messages, id)
			appendChange(b, ch, head)
		})
	})
	return after, err
}

// lockTenant reads a tenant and keeps others from changing it.
func lockTenant(tx *Tx, id ident.TenantID) (tenant.Tenant, error) {
	var list []tenant.Tenant
	if err := tx.Run(func(b *Batch) {
		b.Query(takeTenants(&list), selectTenants+` WHERE t.id = ?`+tx.Dialect().Pick("", " FOR UPDATE OF t"), id)
	}); err != nil {
		return tenant.Tenant{}, err
	}
	if len(list) == 0 {
		return tenant.Tenant{}, fault.Missing("sqlstore.UpdateTenant")
	}
	return list[0], nil
}

// NoteSchema keeps what was seen of a tenant's schema. It is an observation, no change.
func (s *MasterStore) NoteSchema(ctx context.Context, id ident.TenantID, seen tenant.Schema) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { noteSchema(b, id, seen) })
	})
}

// ChangeSchema does the same where others must hear of it, if agree, which may be nil, agrees to the tenant as it is.
func (s *MasterStore) ChangeSchema(ctx context.Context, id ident.TenantID, seen tenant.Schema, ch event.Change,
	agree func(tenant.Tenant) error,
) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		if agree != nil {
			t, err := lockTenant(tx, id)
			if err == nil {
				err = agree(t)
			}
			if err != nil {
				return err
			}
		}
		return tx.Commit(func(b *Batch) {
			noteSchema(b, id, seen)
			appendChange(b, ch, head)
		})
	})
}

func noteSchema(b *Batch, id ident.TenantID, seen tenant.Schema) {
	b.Exec(`UPDATE tenants SET schema_version = ?, schema_problem = ?, schema_at = ? WHERE id = ?`,
		seen.Version, seen.Problem, ident.Micros(seen.At), id)
}

// CloseAccount makes the job the tenant's one job, and keeps everybody but the server out from this moment on: every
// session of the account ends, and neither account nor tenant can be used. A job of the kind supersedes, whose work is a
// part of this one, ends as cancelled, and what it saved goes over to this one; any other is Conflict, code "tenant_busy".
func (s *MasterStore) CloseAccount(ctx context.Context, t tenant.Tenant, j job.Job, supersedes string, ch event.Change) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		ch, j := ch, j
		var former []job.Job
		if err := tx.Run(func(b *Batch) {
			b.Query(takeJobs(&former), `SELECT `+jobColumns+` FROM jobs WHERE id = (SELECT job_id FROM tenants WHERE id = ?)
				AND kind = ? AND state IN ('queued', 'running')`+tx.Dialect().ForUpdate(), t.ID, supersedes)
		}); err != nil {
			return err
		}
		for _, f := range former {
			j.Saved = f.Saved
			f.State, f.FinishedAt, f.Failure = job.Cancelled, &ch.At, nil
			if err := tx.Run(func(b *Batch) { endJob(b, f) }); err != nil {
				return err
			}
			ch.Events = slices.Clone(ch.Events)
			ch.Add("job.cancelled", string(f.ID), map[string]any{"kind": f.Kind, "tenant_id": t.ID, "superseded_by": j.ID})
		}
		if err := takeTenant(tx, j); err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) {
			insertJob(b, j)
			closeAccount(b, t.ID, t.Account, ch.At)
			appendChange(b, ch, head)
		})
	})
}

// closeAccount queues what keeps everybody but the server out of an account that is to be erased.
func closeAccount(b *Batch, of ident.TenantID, owner ident.AccountID, at time.Time) {
	b.Exec(`UPDATE tenants SET state = ? WHERE id = ?`, tenant.Suspended, of)
	b.Exec(`UPDATE accounts SET state = ?, version = version + 1, updated_at = ? WHERE id = ?`, account.Suspended,
		ident.Micros(at), owner)
	endSessions(b, owner, account.EndSessions{Why: "account_erased", At: at})
}

// EraseTenant takes a tenant and its account out of the directory for good, with sessions, databases, hints and jobs
// but the given one, and puts it into the ledger of the erased. What is gone already is no error.
func (s *MasterStore) EraseTenant(ctx context.Context, e tenant.Erasure, but ident.JobID, ch event.Change) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		var own []access.Grant
		if err := tx.Run(func(b *Batch) { selectGrants(b, &own, `account_id = ?`, e.Account) }); err != nil {
			return err
		}
		ch, first := ch, len(ch.Events)
		ch.Events = slices.Clone(ch.Events)
		for _, g := range own {
			ch.Add("member.removed", string(g.Project), map[string]any{"project_id": g.Project, "user_id": g.Account, "role": g.Role})
		}
		return tx.Commit(func(b *Batch) {
			putErasure(b, e)
			for i, g := range own {
				toTell(b, g.Tenant, event.Change{At: ch.At, Events: ch.Events[first+i : first+i+1]})
			}
			// Memberships go with account and tenant; members of the tenant's projects lose their shortcuts.
			b.Exec(markShortcuts+` SELECT account_id, project_id, CAST(?1 AS BIGINT), CAST(?1 AS BIGINT) FROM grants WHERE tenant_id = ?2`+onceMore,
				ident.Micros(ch.At), e.Tenant)
			b.Exec(`DELETE FROM invitations WHERE email_folded = (SELECT email_folded FROM accounts WHERE id = ?)`, e.Account)
			b.Exec(`DELETE FROM hints WHERE tenant_id = ?`, e.Tenant)
			b.Exec(`DELETE FROM jobs WHERE tenant_id = ? AND id <> ?`, e.Tenant, but)
			b.Exec(`DELETE FROM databases WHERE tenant_id = ?`, e.Tenant)
			b.Exec(`DELETE FROM tenants WHERE id = ?`, e.Tenant)
			b.Exec(`DELETE FROM idempotency WHERE scope LIKE ?`, string(e.Account)+" %")
			b.Exec(`DELETE FROM accounts WHERE id = ?`, e.Account) // sessions and their tokens go along
			// Who it was is nobody's business any more; that something was done, and by which account, stays.
			b.Exec(`UPDATE audit SET actor_name = '', address = '', session_id = '' WHERE actor_id = ?`, e.Account)
			// Whoever failed to sign in as them was nobody by then, and most likely them.
			b.Exec(`UPDATE audit SET address = '' WHERE subject = ? AND actor_id = ''`, e.Account)
			b.Exec(`UPDATE events SET actor_name = '' WHERE actor_id = ?`, e.Account)
			appendChange(b, ch, head)
		})
	})
}

// Scrub makes sure that nothing of what was erased is left in this database's files: see DB.Scrub.
func (s *MasterStore) Scrub(ctx context.Context) error { return s.db.Scrub(ctx) }

func putErasure(b *Batch, e tenant.Erasure) {
	b.Exec(`INSERT INTO erasures (tenant_id, account_id, erased_at) VALUES (?, ?, ?) ON CONFLICT (tenant_id) DO NOTHING`,
		e.Tenant, e.Account, ident.Micros(e.At))
}

// PutErasure adds to the ledger, for whoever brings one along from elsewhere.
func (s *MasterStore) PutErasure(ctx context.Context, e tenant.Erasure) error {
	return s.db.Write(ctx, func(tx *Tx) error { return tx.Commit(func(b *Batch) { putErasure(b, e) }) })
}

// Erasures returns up to limit entries of the ledger after the given tenant, by tenant.
func (s *MasterStore) Erasures(ctx context.Context, after ident.TenantID, limit int) ([]tenant.Erasure, error) {
	var list []tenant.Erasure
	err := s.db.Read(ctx, func(b *Batch) {
		b.Query(func(s Scanner) error {
			var e tenant.Erasure
			var at int64
			err := s.Scan(&e.Tenant, &e.Account, &at)
			e.At = ident.Time(at)
			list = append(list, e)
			return err
		}, `SELECT tenant_id, account_id, erased_at FROM erasures WHERE tenant_id > ? ORDER BY tenant_id LIMIT ?`, after, max(1, limit))
	})
	return list, err
}

// hint makes of two hints one that begins with the earlier and ends with the later.
const hint = `INSERT INTO hints (tenant_id, due_at, last_at) VALUES (?, ?, ?) ON CONFLICT (tenant_id) DO UPDATE SET
	due_at = CASE WHEN excluded.due_at < hints.due_at THEN excluded.due_at ELSE hints.due_at END,
	last_at = CASE WHEN excluded.last_at > hints.last_at THEN excluded.last_at ELSE hints.last_at END`

// Hint implements tenant.Hints.
func (s *MasterStore) Hint(ctx context.Context, id ident.TenantID, due, last time.Time) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { b.Exec(hint, id, ident.Micros(due), ident.Micros(last)) })
	})
}

// Due implements tenant.Hints.
func (s *MasterStore) Due(ctx context.Context, now time.Time, limit int) ([]ident.TenantID, error) {
	var list []ident.TenantID
	err := s.db.Read(ctx, func(b *Batch) {
		b.Query(func(s Scanner) error {
			var id ident.TenantID
			err := s.Scan(&id)
			list = append(list, id)
			return err
		}, `SELECT tenant_id FROM hints WHERE due_at <= ? ORDER BY due_at, tenant_id LIMIT ?`, ident.Micros(now), max(1, limit))
	})
	return list, err
}

// Settle implements tenant.Hints.
func (s *MasterStore) Settle(ctx context.Context, id ident.TenantID, now, next time.Time) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			b.Exec(`DELETE FROM hints WHERE tenant_id = ? AND due_at <= ? AND last_at <= ?`, id, ident.Micros(now), ident.Micros(now))
			b.Exec(`UPDATE hints SET due_at = last_at WHERE tenant_id = ? AND due_at <= ?`, id, ident.Micros(now))
			if !next.IsZero() {
				b.Exec(hint, id, ident.Micros(next), ident.Micros(next))
			}
		})
	})
}
