package sqlstore

import (
	"context"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/member"
)

// Who takes part in whose projects, in the master database: grants, invitations, routes, and which shortcuts in members'
// tenants have to be looked at.

var _ member.Store = (*MasterStore)(nil)

// FindGrants returns what may let an account see a project ("prj_…") or a conversation ("conv_…") of somebody else: none,
// one, or several where a conversation moved between projects; the newest word first.
func (s *MasterStore) FindGrants(ctx context.Context, a ident.AccountID, subject string) ([]access.Grant, error) {
	var list []access.Grant
	err := s.db.Read(ctx, func(b *Batch) {
		b.Query(takeGrants(&list), `SELECT g.project_id, g.tenant_id, g.account_id, g.role
			FROM routes r JOIN grants g ON g.project_id = r.project_id AND g.account_id = ? WHERE r.id = ?
			ORDER BY r.version DESC, r.project_id`, a, subject)
	})
	return list, err
}

// GrantsOf returns the projects of others that an account is a member of.
func (s *MasterStore) GrantsOf(ctx context.Context, a ident.AccountID) ([]access.Grant, error) {
	var list []access.Grant
	err := s.db.Read(ctx, func(b *Batch) { selectGrants(b, &list, `account_id = ?`, a) })
	return list, err
}

// Guests returns the members of a project but its owner.
func (s *MasterStore) Guests(ctx context.Context, p ident.ProjectID) ([]access.Grant, error) {
	var list []access.Grant
	err := s.db.Read(ctx, func(b *Batch) { selectGrants(b, &list, `project_id = ?`, p) })
	return list, err
}

// selectGrants queues the reading of grants into list.
func selectGrants(b *Batch, list *[]access.Grant, where string, args ...any) {
	b.Query(takeGrants(list), `SELECT project_id, tenant_id, account_id, role FROM grants WHERE `+where+
		` ORDER BY project_id, account_id`, args...)
}

// takeGrants appends scanned grants to list.
func takeGrants(list *[]access.Grant) func(Scanner) error {
	*list = nil
	return func(s Scanner) error {
		var g access.Grant
		err := s.Scan(&g.Project, &g.Tenant, &g.Account, &g.Role)
		*list = append(*list, g)
		return err
	}
}

// IsShared implements member.Store.
func (s *MasterStore) IsShared(ctx context.Context, p member.Place) (shared bool, err error) {
	err = s.db.Read(ctx, func(b *Batch) {
		b.One([]any{&shared}, `SELECT 1 FROM routes WHERE id = ? AND project_id = ? AND tenant_id = ?`, p.Project, p.Project, p.Tenant)
	})
	return shared, err
}

const (
	activeMembers = `SELECT a.id, '', a.email, a.name, g.role, g.created_at FROM grants g JOIN accounts a ON a.id = g.account_id
		WHERE g.project_id = ?`
	invitedMembers = `SELECT '', i.id, i.email, '', i.role, i.created_at FROM invitations i WHERE i.project_id = ?`
)

// takeMembers appends scanned members to list.
func takeMembers(list *[]member.Member) func(Scanner) error {
	return func(s Scanner) error {
		var m member.Member
		var since int64
		err := s.Scan(&m.Account, &m.Invitation, &m.Email, &m.Name, &m.Role, &since)
		m.Since, m.State = ident.Time(since), member.Active
		if m.Invitation != "" {
			m.State = member.Invited
		}
		*list = append(*list, m)
		return err
	}
}

// ListMembers implements member.Store.
func (s *MasterStore) ListMembers(ctx context.Context, p member.Place) ([]member.Member, error) {
	var list []member.Member
	err := s.db.Read(ctx, func(b *Batch) {
		list = nil
		b.Query(takeMembers(&list), `SELECT id, '', email, name, ?, created_at FROM accounts WHERE id = ?`, access.Owner, p.Owner)
		b.Query(takeMembers(&list), activeMembers+` ORDER BY g.created_at, a.id`, p.Project)
		b.Query(takeMembers(&list), invitedMembers+` ORDER BY i.created_at, i.id`, p.Project)
	})
	return list, err
}

// AddMember implements member.Store.
func (s *MasterStore) AddMember(ctx context.Context, p member.Place, m member.Member,
	describe func(*member.Member) (event.Change, error)) (member.Member, error) {
	const op = "sqlstore.AddMember"
	var after member.Member
	exists := fault.New(fault.Conflict, op, member.CodeExists, "who has this address is a member of the project, or invited, already")
	err := s.change(ctx, func(tx *Tx, head *event.Seq) error {
		after = m
		var there *Found
		var count int
		var one int64
		if err := tx.Run(func(b *Batch) {
			b.One([]any{&after.Account, &after.Name, &after.Email}, `SELECT id, name, email FROM accounts WHERE email_folded = ?`, folded(m.Email))
			there = b.One([]any{&one}, `SELECT 1 FROM grants g JOIN accounts a ON a.id = g.account_id
				WHERE g.project_id = ?1 AND a.email_folded = ?2
				UNION ALL SELECT 1 FROM invitations WHERE project_id = ?1 AND email_folded = ?2`, p.Project, folded(m.Email))
			b.One([]any{&count}, `SELECT (SELECT count(*) FROM grants WHERE project_id = ?1) +
				(SELECT count(*) FROM invitations WHERE project_id = ?1)`, p.Project)
		}); err != nil {
			return err
		}
		switch {
		case there.Yes || after.Account == p.Owner:
			return exists
		case count >= member.Max:
			return fault.New(fault.Conflict, op, "too_many_members", "a project has at most 200 members and invitations: remove some first")
		}
		after.State = member.Active
		if after.Account == "" {
			after.State = member.Invited
		}
		ch, err := describe(&after)
		if err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) {
			at := ident.Micros(ch.At)
			putRoute(b, p, string(p.Project), 0)
			if after.State == member.Active {
				b.Exec(insertGrant, p.Project, after.Account, p.Tenant, after.Role, at, at)
				markShortcut(b, after.Account, p.Project, at)
			} else {
				b.Exec(`INSERT INTO invitations (id, project_id, tenant_id, email, email_folded, role, inviter_id, created_at)
					VALUES (?, ?, ?, ?, ?, ?, ?, ?)`, after.Invitation, p.Project, p.Tenant, after.Email, folded(after.Email),
					after.Role, ch.Actor.Account, at)
				if after.Notice != nil {
					putMail(b, *after.Notice)
				}
			}
			toTell(b, p.Tenant, ch)
			appendChange(b, ch, head)
		})
	})
	if violates(err, "grants_pkey") || violates(err, "invitations_project_id_email_folded_key") {
		err = exists.With(err)
	}
	return after, err
}

const insertGrant = `INSERT INTO grants (project_id, account_id, tenant_id, role, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?)`

// ChangeMember implements member.Store.
func (s *MasterStore) ChangeMember(ctx context.Context, p member.Place, key string,
	edit func(member.Member) (member.Member, event.Change, error)) (member.Member, error) {
	var after member.Member
	err := s.change(ctx, func(tx *Tx, head *event.Seq) error {
		m, err := lockMember(tx, p, key)
		if err != nil {
			return err
		}
		var ch event.Change
		if after, ch, err = edit(m); err != nil || len(ch.Events) == 0 {
			return err
		}
		return tx.Commit(func(b *Batch) {
			at := ident.Micros(ch.At)
			b.Exec(`UPDATE grants SET role = ?, updated_at = ? WHERE project_id = ? AND account_id = ?`, after.Role, at, p.Project, key)
			b.Exec(`UPDATE invitations SET role = ? WHERE project_id = ? AND id = ?`, after.Role, p.Project, key)
			if m.State == member.Active {
				markShortcut(b, m.Account, p.Project, at)
			}
			toTell(b, p.Tenant, ch)
			appendChange(b, ch, head)
		})
	})
	return after, err
}

// RemoveMember implements member.Store.
func (s *MasterStore) RemoveMember(ctx context.Context, p member.Place, key string,
	decide func(member.Member) (event.Change, error)) (member.Member, error) {
	var gone member.Member
	err := s.change(ctx, func(tx *Tx, head *event.Seq) (err error) {
		if gone, err = lockMember(tx, p, key); err != nil {
			return err
		}
		ch, err := decide(gone)
		if err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) {
			b.Exec(`DELETE FROM grants WHERE project_id = ? AND account_id = ?`, p.Project, key)
			b.Exec(`DELETE FROM invitations WHERE project_id = ? AND id = ?`, p.Project, key)
			if gone.State == member.Active {
				markShortcut(b, gone.Account, p.Project, ident.Micros(ch.At))
			}
			toTell(b, p.Tenant, ch)
			appendChange(b, ch, head)
		})
	})
	return gone, err
}

// lockMember reads one member and keeps others from changing it.
func lockMember(tx *Tx, p member.Place, key string) (member.Member, error) {
	var list []member.Member
	if err := tx.Run(func(b *Batch) {
		list = nil
		b.Query(takeMembers(&list), activeMembers+` AND g.account_id = ?`+tx.Dialect().Pick("", " FOR UPDATE OF g"), p.Project, key)
		b.Query(takeMembers(&list), invitedMembers+` AND i.id = ?`+tx.Dialect().ForUpdate(), p.Project, key)
	}); err != nil {
		return member.Member{}, err
	}
	if len(list) == 0 {
		return member.Member{}, fault.Missing("sqlstore.Member")
	}
	return list[0], nil
}

// AcceptInvitations turns invitations into grants whose address has an account by now, of one address or, when that is
// empty, of any, and returns whose they were. Of two who do so at once one does.
func (s *MasterStore) AcceptInvitations(ctx context.Context, email string, now time.Time, limit int) ([]ident.AccountID, error) {
	type acceptance struct {
		access.Grant
		id   ident.InvitationID
		name string
	}
	var list []acceptance
	err := s.db.Read(ctx, func(b *Batch) {
		list = nil
		var c conditions
		if email != "" {
			c.and(`i.email_folded = ?`, folded(email))
		}
		b.Query(func(s Scanner) error {
			var x acceptance
			err := s.Scan(&x.id, &x.Project, &x.Tenant, &x.Account, &x.name)
			list = append(list, x)
			return err
		}, `SELECT i.id, i.project_id, i.tenant_id, a.id, a.name FROM invitations i
			JOIN accounts a ON a.email_folded = i.email_folded`+c.where()+` ORDER BY i.id LIMIT ?`, append(c.args, max(1, limit))...)
	})
	var whose []ident.AccountID
	for _, x := range list {
		if err != nil {
			break
		}
		err = s.change(ctx, func(tx *Tx, head *event.Seq) error {
			m, err := lockMember(tx, member.Place{Project: x.Project}, string(x.id))
			if fault.Is(err, fault.NotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			ch := event.NewChange(ident.Actor{Account: x.Account, Name: x.name}, now)
			ch.Add("member.added", string(x.Project), map[string]any{"project_id": x.Project, "user_id": x.Account, "role": m.Role,
				"invitation_id": x.id})
			return tx.Commit(func(b *Batch) {
				b.Exec(`DELETE FROM invitations WHERE id = ?`, x.id)
				b.Exec(insertGrant+` ON CONFLICT (project_id, account_id) DO NOTHING`, x.Project, x.Account, x.Tenant, m.Role,
					ident.Micros(now), ident.Micros(now))
				markShortcut(b, x.Account, x.Project, ident.Micros(now))
				toTell(b, x.Tenant, ch)
				appendChange(b, ch, head)
			})
		})
		whose = append(whose, x.Account)
	}
	return whose, err
}

// PutRoutes implements member.Store.
func (s *MasterStore) PutRoutes(ctx context.Context, p member.Place, parts []access.Part) error {
	if len(parts) == 0 {
		return nil
	}
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			for _, part := range parts {
				putRoute(b, p, string(part.ID), part.Version)
			}
		})
	})
}

// putRoute queues a route, unless a newer word is there.
func putRoute(b *Batch, p member.Place, id string, version int64) {
	b.Exec(`INSERT INTO routes (id, project_id, tenant_id, version) VALUES (?, ?, ?, ?)
		ON CONFLICT (id, project_id) DO UPDATE SET version = excluded.version WHERE excluded.version > routes.version`, id, p.Project, p.Tenant, version)
}

// DropRoute forgets that a conversation was in a project, which it left by getting the version. What was said later stays.
func (s *MasterStore) DropRoute(ctx context.Context, id ident.ConversationID, from ident.ProjectID, version int64) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			b.Exec(`DELETE FROM routes WHERE id = ? AND project_id = ? AND version < ?`, id, from, version)
		})
	})
}

// DropProject ends every membership of a project that is gone, and returns whose they were.
func (s *MasterStore) DropProject(ctx context.Context, p ident.ProjectID, now time.Time) ([]access.Grant, error) {
	return s.dropShares(ctx, `project_id`, string(p), now)
}

// DropShares ends every membership of the projects of a tenant that holds nothing any more, and returns whose they were.
func (s *MasterStore) DropShares(ctx context.Context, t ident.TenantID, now time.Time) ([]access.Grant, error) {
	return s.dropShares(ctx, `tenant_id`, string(t), now)
}

func (s *MasterStore) dropShares(ctx context.Context, column, key string, now time.Time) ([]access.Grant, error) {
	var gone []access.Grant
	err := s.db.Write(ctx, func(tx *Tx) error {
		if err := tx.Run(func(b *Batch) { selectGrants(b, &gone, column+` = ?`, key) }); err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) {
			for _, g := range gone {
				markShortcut(b, g.Account, g.Project, ident.Micros(now))
			}
			for _, table := range []string{"grants", "invitations", "routes"} {
				b.Exec(`DELETE FROM `+table+` WHERE `+column+` = ?`, key)
			}
		})
	})
	return gone, err
}

// markShortcut queues that the shortcut of a project in an account's tenant has to be looked at.
func markShortcut(b *Batch, a ident.AccountID, p ident.ProjectID, due int64) {
	b.Exec(markShortcuts+` VALUES (?, ?, ?, 1)`+onceMore, a, p, due)
}

const (
	markShortcuts = `INSERT INTO shortcuts_due (account_id, project_id, due_at, marks)`
	onceMore      = ` ON CONFLICT (account_id, project_id) DO UPDATE SET marks = shortcuts_due.marks + 1,
		due_at = CASE WHEN excluded.due_at < shortcuts_due.due_at THEN excluded.due_at ELSE shortcuts_due.due_at END`
)

// MarkProject has all shortcuts to a project looked at, at a time.
func (s *MasterStore) MarkProject(ctx context.Context, p ident.ProjectID, due time.Time) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			b.Exec(markShortcuts+` SELECT account_id, project_id, CAST(? AS BIGINT), 1 FROM grants WHERE project_id = ?`+onceMore,
				ident.Micros(due), p)
		})
	})
}

// MarkAccount has everything about memberships looked at again, at a time, that an account's tenant has a part of: after the
// tenant was put back to what it was.
func (s *MasterStore) MarkAccount(ctx context.Context, a ident.AccountID, due time.Time) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { markShortcut(b, a, "", ident.Micros(due)) })
	})
}

// markEverybody queues the same of all accounts that are members, or have members.
func markEverybody(b *Batch, due int64) {
	b.Exec(markShortcuts+` SELECT account_id, '', CAST(?1 AS BIGINT), 1 FROM grants
		UNION SELECT t.account_id, '', CAST(?1 AS BIGINT), 1 FROM tenants t JOIN grants g ON g.tenant_id = t.id WHERE true`+onceMore, due)
}

// SharedBy returns the projects of a tenant that have members.
func (s *MasterStore) SharedBy(ctx context.Context, t ident.TenantID) ([]ident.ProjectID, error) {
	var list []ident.ProjectID
	err := s.db.Read(ctx, func(b *Batch) {
		list = nil
		b.Query(func(s Scanner) error {
			var id ident.ProjectID
			err := s.Scan(&id)
			list = append(list, id)
			return err
		}, `SELECT DISTINCT project_id FROM grants WHERE tenant_id = ? ORDER BY project_id`, t)
	})
	return list, err
}

// DueShortcut is a shortcut that has to be looked at: everything about the account's memberships where Project is empty.
type DueShortcut struct {
	Account ident.AccountID
	Tenant  ident.TenantID // the account's
	Project ident.ProjectID
	marks   int64
}

// DueShortcuts returns up to limit of them whose time has come. Nobody else gets them before the time until.
func (s *MasterStore) DueShortcuts(ctx context.Context, now, until time.Time, limit int) ([]DueShortcut, error) {
	var some bool
	if err := s.db.Read(ctx, func(b *Batch) {
		b.One([]any{&some}, `SELECT 1 FROM shortcuts_due WHERE due_at <= ? LIMIT 1`, ident.Micros(now))
	}); err != nil || !some {
		return nil, err
	}
	var list []DueShortcut
	err := s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			list = nil
			b.Query(func(s Scanner) error {
				var d DueShortcut
				err := s.Scan(&d.Account, &d.Project, &d.marks, &d.Tenant)
				list = append(list, d)
				return err
			}, `UPDATE shortcuts_due SET due_at = ?1 WHERE due_at <= ?2 AND (account_id, project_id) IN
				(SELECT account_id, project_id FROM shortcuts_due WHERE due_at <= ?2 ORDER BY due_at LIMIT ?3)
				RETURNING account_id, project_id, marks, (SELECT a.tenant_id FROM accounts a WHERE a.id = shortcuts_due.account_id)`,
				ident.Micros(until), ident.Micros(now), max(1, limit))
		})
	})
	return list, err
}

// SettleShortcut takes a shortcut off the list that was looked at, unless it was marked once more meanwhile: then it is
// due at once. With a time it stays, and is due then.
func (s *MasterStore) SettleShortcut(ctx context.Context, d DueShortcut, again time.Time) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			const one = ` WHERE account_id = ? AND project_id = ?`
			if !again.IsZero() {
				b.Exec(`UPDATE shortcuts_due SET due_at = ?`+one, ident.Micros(again), d.Account, d.Project)
				return
			}
			b.Exec(`DELETE FROM shortcuts_due`+one+` AND marks = ?`, d.Account, d.Project, d.marks)
			b.Exec(`UPDATE shortcuts_due SET due_at = 0`+one, d.Account, d.Project)
		})
	})
}
