package sqlstore

import (
	"context"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/tenant"
)

const tenantColumns = `id, account_id, kind, host, wrapped_key, state, created_at`

func scanTenant(s Scanner) (t tenant.Tenant, err error) {
	var created int64
	err = s.Scan(&t.ID, &t.Account, &t.Placement.Kind, &t.Placement.Host, &t.Placement.WrappedKey, &t.State, &created)
	t.CreatedAt = ident.Time(created)
	return t, err
}

// insertTenant queues a tenant; its account comes first.
func insertTenant(b *Batch, t tenant.Tenant) {
	b.Exec(`INSERT INTO tenants (id, account_id, kind, host, wrapped_key, state, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		t.ID, t.Account, t.Placement.Kind, t.Placement.Host, t.Placement.WrappedKey, t.State, ident.Micros(t.CreatedAt))
}

// FindTenant implements tenant.Directory.
func (s *MasterStore) FindTenant(ctx context.Context, id ident.TenantID) (tenant.Tenant, error) {
	list, err := s.tenants(ctx, `SELECT `+tenantColumns+` FROM tenants WHERE id = ?`, id)
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
	return s.tenants(ctx, `SELECT `+tenantColumns+` FROM tenants WHERE id > ? ORDER BY id LIMIT ?`, after, max(1, limit))
}

func (s *MasterStore) tenants(ctx context.Context, sql string, args ...any) ([]tenant.Tenant, error) {
	var list []tenant.Tenant
	err := s.db.Read(ctx, func(b *Batch) {
		b.Query(func(s Scanner) error {
			t, err := scanTenant(s)
			list = append(list, t)
			return err
		}, sql, args...)
	})
	return list, err
}

// hint keeps the earlier of two hints.
const hint = `INSERT INTO hints (tenant_id, due_at) VALUES (?, ?)
	ON CONFLICT (tenant_id) DO UPDATE SET due_at = excluded.due_at WHERE excluded.due_at < hints.due_at`

// Hint implements tenant.Hints.
func (s *MasterStore) Hint(ctx context.Context, id ident.TenantID, due time.Time) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { b.Exec(hint, id, ident.Micros(due)) })
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

// Settle implements tenant.Hints. The hint that was acted on had come by now, so one that has not is another's.
func (s *MasterStore) Settle(ctx context.Context, id ident.TenantID, now, next time.Time) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			b.Exec(`DELETE FROM hints WHERE tenant_id = ? AND due_at <= ?`, id, ident.Micros(now))
			if !next.IsZero() {
				b.Exec(hint, id, ident.Micros(next))
			}
		})
	})
}
