package sqlstore

import (
	"context"
	"encoding/json"
	"reflect"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/member"
)

// accountColumns are those of a table that the statement calls a.
const accountColumns = `a.id, a.email, a.password_hash, a.name, a.role, a.state, a.settings, a.tenant_id, a.version,
	a.created_at, a.updated_at`

// accountRow is an account with its password's hash, while it is scanned.
type accountRow struct {
	account.Account
	hash             string
	settings         string
	created, updated int64
}

// dest is where accountColumns go; done is called when they are there.
func (r *accountRow) dest() []any {
	return []any{&r.ID, &r.Email, &r.hash, &r.Name, &r.Role, &r.State, &r.settings, &r.Tenant, &r.Version, &r.created,
		&r.updated}
}

func (r *accountRow) done() {
	r.Settings = json.RawMessage(r.settings)
	r.CreatedAt, r.UpdatedAt = ident.Time(r.created), ident.Time(r.updated)
}

// firstAccount is the fact that whoever makes the first account puts down: of several that register at once, only one
// was first.
const firstAccount = "first_account"

// InsertAccount implements account.Store.
func (s *MasterStore) InsertAccount(ctx context.Context, n account.Newcomer, change func(account.Account) event.Change) (
	account.Account, error) {
	const op = "sqlstore.InsertAccount"
	var made account.Account
	err := s.change(ctx, func(tx *Tx, head *event.Seq) error {
		made = n.Account
		var others bool
		var claimed, used *Affected
		if err := tx.Run(func(b *Batch) {
			// Everybody claims, not only who would be promoted: an account that an operator made is the first one too.
			claimed = putFact(b, firstAccount, []byte(made.ID), made.CreatedAt)
			b.One([]any{&others}, `SELECT count(*) FROM (SELECT 1 AS one FROM accounts LIMIT 1) AS any_account`)
			if n.Fact != "" {
				// Used up, not deleted: a fact that is gone could be put again.
				used = b.Exec(`UPDATE facts SET value = ?, updated_at = ? WHERE name = ? AND value <> ?`,
					[]byte{}, ident.Micros(made.CreatedAt), n.Fact, []byte{})
			}
		}); err != nil {
			return err
		}
		switch {
		case used != nil && used.N == 0:
			return fault.New(fault.Forbidden, op, account.CodeBadSetup, "the setup token is wrong or was used")
		case used != nil, n.Promote && claimed.N == 1 && !others:
			made.Role = ident.Admin
		}
		ch := change(made)
		return tx.Commit(func(b *Batch) {
			b.Exec(`INSERT INTO accounts (id, email, email_folded, password_hash, name, role, state, settings, tenant_id,
				version, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
				made.ID, made.Email, folded(made.Email), n.Hash, made.Name, made.Role, made.State, object(made.Settings),
				made.Tenant, made.Version, ident.Micros(made.CreatedAt), ident.Micros(made.UpdatedAt))
			insertTenant(b, n.Tenant)
			if n.Session != nil {
				insertSession(b, *n.Session)
			}
			appendChange(b, ch, head)
		})
	})
	switch {
	case violates(err, "accounts_email_folded_key"):
		return account.Account{}, fault.New(fault.Conflict, op, "email_taken",
			"there is an account with this e-mail address").With(err)
	case err != nil:
		return account.Account{}, err
	}
	// Whoever is invited comes in at once. What fails here, or is invited in this very moment, a node does a little later.
	_, _ = s.AcceptInvitations(ctx, made.Email, made.CreatedAt, member.Max)
	return made, nil
}

// FindAccount implements account.Store.
func (s *MasterStore) FindAccount(ctx context.Context, id ident.AccountID) (account.Account, string, error) {
	return s.findAccount(ctx, `a.id = ?`, id)
}

// FindByEmail implements account.Store.
func (s *MasterStore) FindByEmail(ctx context.Context, email string) (account.Account, string, error) {
	return s.findAccount(ctx, `a.email_folded = ?`, folded(email))
}

func (s *MasterStore) findAccount(ctx context.Context, where string, key any) (account.Account, string, error) {
	var r accountRow
	var found *Found
	err := s.db.Read(ctx, func(b *Batch) {
		found = b.One(r.dest(), `SELECT `+accountColumns+` FROM accounts a WHERE `+where, key)
	})
	if err == nil && !found.Yes {
		err = fault.Missing("sqlstore.FindAccount")
	}
	if err != nil {
		return account.Account{}, "", err
	}
	r.done()
	return r.Account, r.hash, nil
}

// idCursor is the place behind the row of an id, in a listing whose rows are never sorted in any other way.
type idCursor struct {
	Kind string `json:"k"`
	ID   string `json:"i"`
}

// beforeCursor adds the condition of a cursor of that kind.
func (c *conditions) beforeCursor(kind, column, cursor string) error {
	if cursor == "" {
		return nil
	}
	var from idCursor
	if err := parseCursor(cursor, &from); err != nil {
		return err
	}
	if from.Kind != kind || from.ID == "" || !ValidText(from.ID) {
		return badCursor()
	}
	c.and(column+` < ?`, from.ID)
	return nil
}

// ListAccounts implements account.Store.
func (s *MasterStore) ListAccounts(ctx context.Context, cursor string, limit int) ([]account.Account, string, error) {
	limit = max(1, limit)
	var c conditions
	if err := c.beforeCursor("accounts", "a.id", cursor); err != nil {
		return nil, "", err
	}
	var list []account.Account
	err := s.db.Read(ctx, func(b *Batch) {
		b.Query(func(s Scanner) error {
			var r accountRow
			err := s.Scan(r.dest()...)
			r.done()
			list = append(list, r.Account)
			return err
		}, `SELECT `+accountColumns+` FROM accounts a`+c.where()+` ORDER BY a.id DESC LIMIT ?`, append(c.args, limit+1)...)
	})
	if err != nil || len(list) <= limit {
		return list, "", err
	}
	return list[:limit], formatCursor(idCursor{Kind: "accounts", ID: string(list[limit-1].ID)}), nil
}

// UpdateAccount implements account.Store.
func (s *MasterStore) UpdateAccount(ctx context.Context, id ident.AccountID,
	edit func(a account.Account, hash string) (account.Account, string, event.Change, error), along account.Along) (
	account.Account, error) {
	var after account.Account
	err := s.change(ctx, func(tx *Tx, head *event.Seq) error {
		var r accountRow
		var found *Found
		if err := tx.Run(func(b *Batch) {
			found = b.One(r.dest(), `SELECT `+accountColumns+` FROM accounts a WHERE a.id = ?`+tx.Dialect().ForUpdate(), id)
		}); err != nil {
			return err
		}
		if !found.Yes {
			return fault.Missing("sqlstore.UpdateAccount")
		}
		r.done()
		a, hash, ch, err := edit(r.Account, r.hash)
		if err != nil {
			return err
		}
		after = a
		if len(ch.Events) == 0 && ch.Once == nil && reflect.DeepEqual(along, account.Along{}) && hash == r.hash && reflect.DeepEqual(a, r.Account) {
			return nil
		}
		return tx.Commit(func(b *Batch) {
			b.Exec(`UPDATE accounts SET password_hash = ?, name = ?, role = ?, state = ?, settings = ?, version = ?,
				updated_at = ? WHERE id = ?`,
				hash, a.Name, a.Role, a.State, object(a.Settings), a.Version, ident.Micros(a.UpdatedAt), id)
			if along.End != nil {
				endSessions(b, id, *along.End)
			}
			if along.Start != nil {
				insertSession(b, *along.Start)
			}
			if along.Forget != nil {
				b.Exec(`DELETE FROM sign_in_failures WHERE subject = ?`, along.Forget)
			}
			appendChange(b, ch, head)
		})
	})
	if err != nil {
		return account.Account{}, err
	}
	return after, nil
}
