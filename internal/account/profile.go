package account

import (
	"context"
	"encoding/json"
	"reflect"
	"strings"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

const nameMax = 200

// Find returns the actor's account. One that is gone is Unauthenticated (code "session_ended").
func (s *Service) Find(ctx context.Context, actor ident.Actor) (Account, error) {
	const op = "account.Find"
	a, _, err := s.store.FindAccount(ctx, actor.Account)
	if fault.Is(err, fault.NotFound) { // it was erased a moment ago, and the session with it
		return a, sessionEnded(op)
	}
	return a, fault.Wrap(op, err)
}

// Edit lets change alter the details. An edit that alters nothing is no change.
func (s *Service) Edit(ctx context.Context, actor ident.Actor, change func(*Details) error) (Account, error) {
	const op = "account.Edit"
	a, err := s.store.UpdateAccount(ctx, actor.Account, func(a Account, hash string) (Account, string, event.Change, error) {
		d := a.Details
		if err := change(&d); err != nil {
			return a, hash, event.Change{}, err
		}
		d.Name = strings.TrimSpace(d.Name)
		if len(d.Settings) == 0 {
			d.Settings = json.RawMessage("{}")
		}
		var c fault.Checks
		c.Text("body.name", d.Name, 1, nameMax)
		c.Object("body.settings", d.Settings)
		if err := c.Err(op); err != nil {
			return a, hash, event.Change{}, err
		}
		if reflect.DeepEqual(d, a.Details) {
			return a, hash, event.Change{}, nil
		}
		ch := event.NewChange(actor, s.moment())
		a.Details, a.Version, a.UpdatedAt = d, a.Version+1, ch.At
		ch.Add("account.updated", string(a.ID), map[string]any{"version": a.Version})
		return a, hash, ch, nil
	}, Along{})
	s.seen.forgetAccount(actor.Account)
	return a, fault.Wrap(op, err)
}

// Prove checks the actor's password once more, before something that cannot be taken back. Wrong guesses count like
// failed sign-ins: a borrowed session is no way around their limits. A wrong one is Forbidden, code "wrong_password".
func (s *Service) Prove(ctx context.Context, actor ident.Actor, password string) error {
	const op = "account.Prove"
	a, stored, err := s.store.FindAccount(ctx, actor.Account)
	if err != nil {
		return fault.Wrap(op, err)
	}
	return s.prove(ctx, op, actor, a, stored, password)
}

func (s *Service) prove(ctx context.Context, op string, actor ident.Actor, a Account, stored, password string) error {
	now := s.moment()
	try, done, err := s.attempt(ctx, op, a.Email, actor, now)
	if err != nil {
		return err
	}
	defer done()
	ok, _, err := s.hasher.Verify(ctx, stored, password)
	if err != nil {
		return err
	}
	if !ok {
		return s.failed(ctx, op, try, actor, now, fault.New(fault.Forbidden, op, "wrong_password", "the current password is wrong"))
	}
	return nil
}

// Forget drops what this process remembers of an account's sessions: it was closed or erased by other means.
func (s *Service) Forget(id ident.AccountID) { s.seen.forgetAccount(id) }

// ChangePassword replaces the password after proof of the old one. All other sessions end. Wrong guesses count like
// failed sign-ins: a borrowed session is no way around their limits.
func (s *Service) ChangePassword(ctx context.Context, actor ident.Actor, current, next string) error {
	const op = "account.ChangePassword"
	a, stored, err := s.store.FindAccount(ctx, actor.Account)
	if err != nil {
		return fault.Wrap(op, err)
	}
	var c fault.Checks
	checkPassword(&c, "body.new_password", next, a.Email)
	if err := c.Err(op); err != nil {
		return err
	}
	if err := s.prove(ctx, op, actor, a, stored, current); err != nil {
		return err
	}
	return s.setPassword(ctx, op, actor, a.ID, stored, next)
}

// setPassword ends all sessions but the actor's. It is Conflict when the password is no longer the one that was known.
func (s *Service) setPassword(ctx context.Context, op string, actor ident.Actor, id ident.AccountID, was, next string) error {
	hash, err := s.hasher.Hash(ctx, next)
	if err != nil {
		return err
	}
	now := s.moment()
	_, err = s.store.UpdateAccount(ctx, id, func(a Account, stored string) (Account, string, event.Change, error) {
		if stored != was {
			return a, stored, event.Change{}, fault.New(fault.Conflict, op, "", "the password was changed meanwhile")
		}
		c := event.NewChange(actor, now)
		c.Add("account.password_changed", string(a.ID), map[string]any{})
		c.Add("session.ended", string(a.ID), map[string]any{"account_id": a.ID, "why": "password_changed", "all": true, "but": actor.Session})
		a.UpdatedAt = now
		return a, hash, c, nil
	}, Along{End: &EndSessions{Keep: actor.Session, Why: "password_changed", At: now}})
	s.seen.forgetAccount(id)
	return fault.Wrap(op, err)
}

// SetRole gives an account a role: the operator's way.
func (s *Service) SetRole(ctx context.Context, email string, role ident.Role) error {
	const op = "account.SetRole"
	if err := checkRole(op, role); err != nil {
		return err
	}
	a, _, err := s.byEmail(ctx, op, email)
	if err != nil {
		return err
	}
	_, err = s.store.UpdateAccount(ctx, a.ID, func(a Account, hash string) (Account, string, event.Change, error) {
		if a.Role == role {
			return a, hash, event.Change{}, nil
		}
		c := event.NewChange(operator(), s.moment())
		c.Add("account.role_changed", string(a.ID), map[string]any{"role": role})
		a.Role, a.Version, a.UpdatedAt = role, a.Version+1, c.At
		return a, hash, c, nil
	}, Along{})
	s.seen.forgetAccount(a.ID)
	return fault.Wrap(op, err)
}

func checkRole(op string, role ident.Role) error {
	var c fault.Checks
	c.OneOf("role", string(role), string(ident.Member), string(ident.Admin))
	return c.Err(op)
}

// ResetPassword sets a password without proof of the old one and ends all sessions: the operator's way.
func (s *Service) ResetPassword(ctx context.Context, email, next string) error {
	const op = "account.ResetPassword"
	a, stored, err := s.byEmail(ctx, op, email)
	if err != nil {
		return err
	}
	var c fault.Checks
	checkPassword(&c, "password", next, a.Email)
	if err := c.Err(op); err != nil {
		return err
	}
	return s.setPassword(ctx, op, operator(), a.ID, stored, next)
}

func (s *Service) byEmail(ctx context.Context, op, email string) (Account, string, error) {
	a, hash, err := s.store.FindByEmail(ctx, Fold(email))
	if fault.Is(err, fault.NotFound) {
		return Account{}, "", fault.New(fault.NotFound, op, "", "there is no account with this e-mail address")
	}
	return a, hash, fault.Wrap(op, err)
}

// List returns a page of accounts, newest first: the operator's way.
func (s *Service) List(ctx context.Context, cursor string, limit int) ([]Account, string, error) {
	list, next, err := s.store.ListAccounts(ctx, cursor, limit)
	return list, next, fault.Wrap("account.List", err)
}

// Deny notes that an actor was refused something whose existence is no secret.
func (s *Service) Deny(ctx context.Context, actor ident.Actor, what string) error {
	return s.store.Refuse(ctx, Refusal{Actor: actor, At: s.moment(), Action: "access.denied", Subject: what})
}
