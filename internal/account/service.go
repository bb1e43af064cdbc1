package account

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/tenant"
)

// Config is what an operator decides. Zero durations mean the defaults.
type Config struct {
	Secret          seal.Secret   // signs access tokens
	PreviousSecrets []seal.Secret // still verify
	Registration    Registration  // empty: Open
	FirstIsAdmin    bool          // the first account ever becomes an admin
	AccessLife      time.Duration // of an access token; default 10 min
	IdleLife        time.Duration // of a session that nobody uses; default 14 days
	FullLife        time.Duration // of any session; default 90 days
	Grace           time.Duration // for the previous refresh token; default 10 s
	Log             *slog.Logger
	Now             func() time.Time
}

// Service is what doors and commands call.
type Service struct {
	c         Config
	store     Store
	provision Provisioner
	hasher    *Hasher
	sealer    *seal.Keyring
	signer    *signer
	failKey   seal.Key

	mu    sync.Mutex
	known map[ident.SessionID]sighting // sessions seen alive, believed for at most believe
}

type sighting struct {
	account Account
	seen    time.Time
	touched time.Time
	ends    time.Time
}

const (
	believe    = time.Second // how long another node's revocation may go unnoticed
	touchEvery = time.Minute // last use is not noted more often
	knownMax   = 50_000

	failWindow     = 15 * time.Minute
	failPair       = 10  // per account and address
	failPerAccount = 100 // per account, from anywhere
	failPerAddress = 100 // per address, for any account

	sweepEvery = 10 * time.Minute
	keepEnded  = 24 * time.Hour // ended sessions stay that long, so that a late reuse is still noticed

	oncePurpose = "registration"
	setupFact   = "setup_token"
)

// New builds the service. A weak secret is Invalid.
func New(c Config, store Store, provision Provisioner, hasher *Hasher, sealer *seal.Keyring) (*Service, error) {
	or := func(d *time.Duration, usual time.Duration) {
		if *d <= 0 {
			*d = usual
		}
	}
	or(&c.AccessLife, 10*time.Minute)
	or(&c.IdleLife, 14*24*time.Hour)
	or(&c.FullLife, 90*24*time.Hour)
	or(&c.Grace, 10*time.Second)
	if c.Registration == "" {
		c.Registration = Open
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	sign, err := newSigner(c.Secret, c.PreviousSecrets, c.Now)
	if err != nil {
		return nil, err
	}
	return &Service{c: c, store: store, provision: provision, hasher: hasher, sealer: sealer, signer: sign,
		failKey: sealer.Derive("failed sign-ins"), known: make(map[ident.SessionID]sighting)}, nil
}

// Register makes an account with its tenant and signs it in.
func (s *Service) Register(ctx context.Context, in RegisterInput, o Origin) (Grant, error) {
	const op = "account.Register"
	if s.c.Registration != Open && in.SetupToken == "" {
		code, what := "registration_closed", "this server takes no registrations: ask its operator for an account"
		if s.c.Registration == ByInvitation {
			code, what = "invitation_required", "this server takes registrations by invitation only: ask its operator"
		}
		_ = s.store.Refuse(ctx, o.actor(), s.moment(), "account.refused", "", nil)
		return Grant{}, fault.New(fault.Forbidden, op, code, what)
	}
	a, err := s.newcomer(op, in.Email, in.Password, in.Name)
	if err != nil {
		return Grant{}, err
	}
	if in.Once != nil {
		var was kept
		if err := in.Once.Replay(ctx, s.store, s.sealer, &was); err == nil {
			return s.regrant(was)
		} else if !fault.Is(err, fault.NotFound) {
			return Grant{}, fault.Wrap(op, err)
		}
	}
	hash, err := s.hasher.Hash(ctx, in.Password)
	if err != nil {
		return Grant{}, err
	}
	n := Newcomer{Account: a, Hash: hash, Promote: s.c.FirstIsAdmin}
	if in.SetupToken != "" {
		if err := s.checkSetup(ctx, op, in.SetupToken); err != nil {
			return Grant{}, err
		}
		n.Account.Role, n.Fact = ident.Admin, setupFact
	}
	family, token := s.newFamily(a.ID, o, a.CreatedAt)
	n.Session = &family
	if err := in.Once.Keep(s.sealer, kept{Account: n.Account, Session: family.ID, Refresh: token.Reveal(), Until: family.ExpiresAt}); err != nil {
		return Grant{}, err
	}
	actor := o.actor()
	actor.Account, actor.Name, actor.Session = a.ID, a.Name, family.ID
	got, err := s.insert(ctx, op, n, func(a Account) event.Change {
		c := event.NewChange(actor, a.CreatedAt)
		c.Once = in.Once
		c.Add("account.registered", string(a.ID), map[string]any{"role": a.Role})
		c.Add("session.started", string(family.ID), map[string]any{"account_id": a.ID})
		return c
	})
	if event.Repeated(err) {
		var was kept
		if err := in.Once.Replay(ctx, s.store, s.sealer, &was); err != nil {
			return Grant{}, fault.Wrap(op, err)
		}
		return s.regrant(was)
	}
	if err != nil {
		return Grant{}, err
	}
	return s.grant(got, family.ID, token, family.ExpiresAt)
}

// kept is what an idempotency record of a registration holds, sealed.
type kept struct {
	Account Account
	Session ident.SessionID
	Refresh string
	Until   time.Time
}

func (s *Service) regrant(was kept) (Grant, error) {
	return s.grant(was.Account, was.Session, RefreshToken(was.Refresh), was.Until)
}

// Create makes an account without signing it in: the operator's way.
func (s *Service) Create(ctx context.Context, in CreateInput) (Account, error) {
	const op = "account.Create"
	a, err := s.newcomer(op, in.Email, in.Password, in.Name)
	if err != nil {
		return Account{}, err
	}
	if in.Role != "" {
		a.Role = in.Role
	}
	hash, err := s.hasher.Hash(ctx, in.Password)
	if err != nil {
		return Account{}, err
	}
	return s.insert(ctx, op, Newcomer{Account: a, Hash: hash}, func(a Account) event.Change {
		c := event.NewChange(ident.System(""), a.CreatedAt)
		c.Add("account.registered", string(a.ID), map[string]any{"role": a.Role})
		return c
	})
}

// newcomer checks what somebody gives for an account, all at once.
func (s *Service) newcomer(op, email, password, name string) (Account, error) {
	var c fault.Checks
	shown, folded := checkEmail(&c, "body.email", email)
	checkPassword(&c, "body.password", password, shown)
	c.Text("body.name", name, 0, 200)
	if err := c.Err(op); err != nil {
		return Account{}, err
	}
	if name = strings.TrimSpace(name); name == "" {
		name, _, _ = strings.Cut(shown, "@")
	}
	now := s.moment()
	_ = folded // the store folds in the same way
	return Account{ID: ident.New[ident.AccountID](), Email: shown, Details: Details{Name: name, Settings: json.RawMessage("{}")},
		Role: ident.Member, Tenant: ident.New[ident.TenantID](), State: Active, Version: 1, CreatedAt: now, UpdatedAt: now}, nil
}

// insert provisions the tenant first: an account without a place for its data must never be seen.
func (s *Service) insert(ctx context.Context, op string, n Newcomer, change func(Account) event.Change) (Account, error) {
	if _, _, err := s.store.FindByEmail(ctx, Fold(n.Account.Email)); err == nil {
		return Account{}, taken(op)
	} else if !fault.Is(err, fault.NotFound) {
		return Account{}, fault.Wrap(op, err)
	}
	at, err := s.provision.Provision(ctx, n.Account.Tenant)
	if err != nil {
		return Account{}, fault.Wrap(op, err)
	}
	n.Tenant = tenant.Tenant{ID: n.Account.Tenant, Account: n.Account.ID, Placement: at, State: tenant.Active, CreatedAt: n.Account.CreatedAt}
	got, err := s.store.InsertAccount(ctx, n, change)
	if err == nil {
		return got, nil
	}
	// An unknown outcome keeps the database: the account may have been stored.
	if fault.CodeOf(err) != "outcome_unknown" {
		if derr := s.provision.Discard(context.WithoutCancel(ctx), n.Account.Tenant, at); derr != nil {
			s.c.Log.Warn("unused tenant database not removed", "code", fault.CodeOf(derr), "tenant", n.Account.Tenant)
		}
	}
	return Account{}, fault.Wrap(op, err)
}

// Fold is the form in which e-mail addresses are compared.
func Fold(email string) string { return strings.ToLower(strings.TrimSpace(email)) }

func taken(op string) error {
	return fault.New(fault.Conflict, op, "email_taken", "there is an account with this e-mail address: sign in instead")
}

// Login signs in. Unknown accounts, wrong passwords and suspended accounts cannot be told apart.
func (s *Service) Login(ctx context.Context, email, password string, o Origin) (Grant, error) {
	const op = "account.Login"
	wrong := fault.New(fault.Unauthenticated, op, "wrong_credentials", "the e-mail address or the password is wrong")
	if len(email) > 1000 || len(password) > 4*passwordMax {
		return Grant{}, wrong
	}
	now := s.moment()
	subjects := s.subjects(email, o.Address)
	if err := s.throttled(ctx, op, subjects, now); err != nil {
		s.refuse(ctx, o, "session.throttled", email, now)
		return Grant{}, err
	}
	a, hash, err := s.store.FindByEmail(ctx, Fold(email))
	if err != nil && !fault.Is(err, fault.NotFound) {
		return Grant{}, fault.Wrap(op, err)
	}
	ok, again, err := s.hasher.Verify(ctx, hash, password)
	if err != nil {
		return Grant{}, err
	}
	if !ok || a.State != Active {
		if err := s.store.AddFailures(ctx, subjects, now); err != nil {
			return Grant{}, fault.Wrap(op, err)
		}
		s.refuse(ctx, o, "session.refused", email, now)
		return Grant{}, wrong
	}
	if err := s.store.ForgetFailures(ctx, subjects[0]); err != nil {
		return Grant{}, fault.Wrap(op, err)
	}
	family, token := s.newFamily(a.ID, o, now)
	actor := o.actor()
	actor.Account, actor.Name, actor.Role, actor.Session = a.ID, a.Name, a.Role, family.ID
	c := event.NewChange(actor, now)
	c.Add("session.started", string(family.ID), map[string]any{"account_id": a.ID})
	if err := s.store.InsertSession(ctx, family, c); err != nil {
		return Grant{}, fault.Wrap(op, err)
	}
	if again {
		s.rehash(ctx, a.ID, hash, password)
	}
	return s.grant(a, family.ID, token, family.ExpiresAt)
}

// rehash brings a stored password up to today's costs; failing to is no reason to refuse a sign-in.
func (s *Service) rehash(ctx context.Context, id ident.AccountID, was, password string) {
	hash, err := s.hasher.Hash(ctx, password)
	if err != nil {
		return
	}
	_, err = s.store.UpdateAccount(ctx, id, func(a Account, now string) (Account, string, event.Change, error) {
		if now != was {
			return a, now, event.Change{}, nil
		}
		return a, hash, event.Change{}, nil
	}, nil)
	if err != nil {
		s.c.Log.Warn("password not rehashed", "code", fault.CodeOf(err))
	}
}

// subjects are what failed sign-ins are counted by: the pair first, then account and address alone.
func (s *Service) subjects(email, address string) [][]byte {
	email = Fold(email)
	net := network(address)
	return [][]byte{subject(s.failKey, "pair", email, net), subject(s.failKey, "account", email), subject(s.failKey, "address", net)}
}

func (s *Service) throttled(ctx context.Context, op string, subjects [][]byte, now time.Time) error {
	counts, oldest, err := s.store.CountFailures(ctx, subjects, now.Add(-failWindow))
	if err != nil {
		return fault.Wrap(op, err)
	}
	for i, limit := range []int{failPair, failPerAccount, failPerAddress} {
		if counts[i] >= limit {
			after := max(oldest[i].Add(failWindow).Sub(now), time.Second)
			return fault.New(fault.Throttled, op, "too_many_failures",
				"too many failed sign-ins: wait, then try again").RetryAfter(after)
		}
	}
	return nil
}

// refuse notes a refused sign-in. The e-mail is noted by account when there is one, else not at all.
func (s *Service) refuse(ctx context.Context, o Origin, action, email string, now time.Time) {
	subject := ""
	if a, _, err := s.store.FindByEmail(ctx, Fold(email)); err == nil {
		subject = string(a.ID)
	}
	if err := s.store.Refuse(ctx, o.actor(), now, action, subject, nil); err != nil {
		s.c.Log.Warn("refusal not noted", "code", fault.CodeOf(err))
	}
}

// Refresh replaces a refresh token. The one just replaced is honoured for a few seconds with the same successor; any
// earlier one ends the session.
func (s *Service) Refresh(ctx context.Context, t RefreshToken, o Origin) (Grant, error) {
	const op = "account.Refresh"
	refused := fault.New(fault.Unauthenticated, op, "refresh_refused", "the session has ended: sign in again")
	if len(t) > 200 || !strings.HasPrefix(t.Reveal(), refreshPrefix) {
		return Grant{}, refused
	}
	now := s.moment()
	next := newRefreshToken()
	reused := false
	f, a, err := s.store.Rotate(ctx, hashToken(t), func(f Family, a Account, use Use) (Family, event.Change, error) {
		reused = false
		if f.RevokedAt != nil || !now.Before(f.ExpiresAt) || !now.Before(f.EndsAt) || a.State != Active {
			return f, event.Change{}, refused
		}
		actor := o.actor()
		actor.Account, actor.Name, actor.Session = a.ID, a.Name, f.ID
		c := event.NewChange(actor, now)
		if use == UsePrevious && now.Before(f.PreviousUntil) {
			raw, err := s.sealer.Open("refresh", f.Successor, []byte(f.ID))
			if err != nil {
				return f, c, err
			}
			next = RefreshToken(raw)
			return f, c, nil
		}
		if use != UseCurrent {
			reused = true
			f.RevokedAt, f.RevokedWhy = &now, "reused"
			c.Add("session.reused", string(f.ID), map[string]any{"account_id": a.ID})
			return f, c, nil
		}
		f.PreviousHash, f.PreviousUntil = f.CurrentHash, now.Add(s.c.Grace)
		f.CurrentHash, f.Generation = hashToken(next), f.Generation+1
		f.Successor = s.sealer.Seal("refresh", []byte(next.Reveal()), []byte(f.ID))
		f.LastUsedAt, f.Address = now, o.Address
		f.ExpiresAt = earlier(now.Add(s.c.IdleLife), f.EndsAt)
		// A refresh is an act of the client's program, every few minutes: it is no event, and the session row says
		// when it was last used.
		return f, c, nil
	})
	if err != nil {
		if fault.Is(err, fault.Unauthenticated) {
			return Grant{}, refused
		}
		return Grant{}, fault.Wrap(op, err)
	}
	if reused {
		s.forget(f.ID)
		return Grant{}, refused
	}
	return s.grant(a, f.ID, next, f.ExpiresAt)
}

// Verify says who an access token stands for. Its session is looked up, at most a second late when another node
// ended it.
func (s *Service) Verify(ctx context.Context, t AccessToken, o Origin) (Identity, error) {
	const op = "account.Verify"
	id, session, err := s.signer.read(t)
	if err != nil {
		return Identity{}, err
	}
	now := s.moment()
	s.mu.Lock()
	seen, ok := s.known[session]
	s.mu.Unlock()
	if !ok || now.Sub(seen.seen) >= believe || !now.Before(seen.ends) {
		f, a, err := s.store.FindSession(ctx, session, now)
		if err != nil {
			s.forget(session)
			if fault.Is(err, fault.NotFound) {
				return Identity{}, fault.New(fault.Unauthenticated, op, "session_ended", "the session has ended: sign in again")
			}
			return Identity{}, fault.Wrap(op, err)
		}
		touched := f.LastUsedAt
		if now.Sub(touched) >= touchEvery {
			if err := s.store.TouchSession(ctx, session, o.Address, now); err != nil {
				s.c.Log.Warn("last use not noted", "code", fault.CodeOf(err))
			}
			touched = now
		}
		seen = sighting{account: a, seen: now, touched: touched, ends: earlier(f.ExpiresAt, f.EndsAt)}
		s.remember(session, seen)
	}
	a := seen.account
	if a.ID != id || a.State != Active {
		return Identity{}, fault.New(fault.Unauthenticated, op, "session_ended", "the session has ended: sign in again")
	}
	return Identity{Tenant: a.Tenant, Actor: ident.Actor{Account: a.ID, Name: a.Name, Role: a.Role, Session: session,
		Address: o.Address, RequestID: o.RequestID}}, nil
}

func (s *Service) remember(id ident.SessionID, seen sighting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.known) >= knownMax {
		for old, k := range s.known {
			if seen.seen.Sub(k.seen) >= believe {
				delete(s.known, old)
			}
		}
	}
	s.known[id] = seen
}

func (s *Service) forget(ids ...ident.SessionID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		delete(s.known, id)
	}
}

// forgetAccount drops what is believed of an account's sessions.
func (s *Service) forgetAccount(id ident.AccountID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for session, k := range s.known {
		if k.account.ID == id {
			delete(s.known, session)
		}
	}
}

// Find returns the actor's account.
func (s *Service) Find(ctx context.Context, actor ident.Actor) (Account, error) {
	a, _, err := s.store.FindAccount(ctx, actor.Account)
	return a, fault.Wrap("account.Find", err)
}

// Edit lets change alter the details.
func (s *Service) Edit(ctx context.Context, actor ident.Actor, change func(*Details) error) (Account, error) {
	const op = "account.Edit"
	a, err := s.store.UpdateAccount(ctx, actor.Account, func(a Account, hash string) (Account, string, event.Change, error) {
		d := a.Details
		if err := change(&d); err != nil {
			return a, hash, event.Change{}, err
		}
		if len(d.Settings) == 0 {
			d.Settings = json.RawMessage("{}")
		}
		var c fault.Checks
		c.Text("body.name", d.Name, 1, 200)
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
	}, nil)
	s.forgetAccount(actor.Account)
	return a, fault.Wrap(op, err)
}

// ChangePassword replaces the password after proof of the old one. All other sessions end.
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
	now := s.moment()
	subjects := s.subjects(a.Email, actor.Address)
	if err := s.throttled(ctx, op, subjects, now); err != nil {
		return err
	}
	ok, _, err := s.hasher.Verify(ctx, stored, current)
	if err != nil {
		return err
	}
	if !ok {
		if err := s.store.AddFailures(ctx, subjects, now); err != nil {
			return fault.Wrap(op, err)
		}
		_ = s.store.Refuse(ctx, actor, now, "account.password_refused", string(a.ID), nil)
		return fault.New(fault.Forbidden, op, "wrong_password", "the current password is wrong")
	}
	return s.setPassword(ctx, op, actor, actor.Account, next, actor.Session)
}

func (s *Service) setPassword(ctx context.Context, op string, actor ident.Actor, id ident.AccountID, next string, keep ident.SessionID) error {
	hash, err := s.hasher.Hash(ctx, next)
	if err != nil {
		return err
	}
	now := s.moment()
	_, err = s.store.UpdateAccount(ctx, id, func(a Account, _ string) (Account, string, event.Change, error) {
		c := event.NewChange(actor, now)
		c.Add("account.password_changed", string(a.ID), map[string]any{})
		a.UpdatedAt = now
		return a, hash, c, nil
	}, &EndSessions{Keep: keep, Why: "password_changed", At: now})
	s.forgetAccount(id)
	return fault.Wrap(op, err)
}

// Logout ends the actor's session.
func (s *Service) Logout(ctx context.Context, actor ident.Actor) error {
	return s.end(ctx, "account.Logout", actor, actor.Session, "logout")
}

// EndSession ends one of the actor's sessions.
func (s *Service) EndSession(ctx context.Context, actor ident.Actor, id ident.SessionID) error {
	return s.end(ctx, "account.EndSession", actor, id, "revoked")
}

func (s *Service) end(ctx context.Context, op string, actor ident.Actor, id ident.SessionID, why string) error {
	c := event.NewChange(actor, s.moment())
	c.Add("session.ended", string(id), map[string]any{"account_id": actor.Account, "why": why})
	err := s.store.EndSession(ctx, actor.Account, id, why, c)
	s.forget(id)
	return fault.Wrap(op, err)
}

// LogoutAll ends all of the actor's sessions, the one that asks included.
func (s *Service) LogoutAll(ctx context.Context, actor ident.Actor) error {
	c := event.NewChange(actor, s.moment())
	c.Add("session.ended", string(actor.Account), map[string]any{"account_id": actor.Account, "why": "logout_all"})
	err := s.store.EndSessions(ctx, actor.Account, EndSessions{Why: "logout_all", At: c.At}, c)
	s.forgetAccount(actor.Account)
	return fault.Wrap("account.LogoutAll", err)
}

// Sessions returns a page of the actor's live sessions, newest first.
func (s *Service) Sessions(ctx context.Context, actor ident.Actor, cursor string, limit int) ([]Session, string, error) {
	list, next, err := s.store.ListSessions(ctx, actor.Account, s.moment(), cursor, limit)
	for i := range list {
		list[i].Current = list[i].ID == actor.Session
	}
	return list, next, fault.Wrap("account.Sessions", err)
}

// SetRole gives an account a role: the operator's way.
func (s *Service) SetRole(ctx context.Context, email string, role ident.Role) error {
	const op = "account.SetRole"
	a, err := s.byEmail(ctx, op, email)
	if err != nil {
		return err
	}
	_, err = s.store.UpdateAccount(ctx, a.ID, func(a Account, hash string) (Account, string, event.Change, error) {
		if a.Role == role {
			return a, hash, event.Change{}, nil
		}
		c := event.NewChange(ident.System(""), s.moment())
		c.Add("account.role_changed", string(a.ID), map[string]any{"role": role})
		a.Role, a.UpdatedAt = role, c.At
		return a, hash, c, nil
	}, nil)
	s.forgetAccount(a.ID)
	return fault.Wrap(op, err)
}

// ResetPassword sets a password without proof of the old one and ends all sessions: the operator's way.
func (s *Service) ResetPassword(ctx context.Context, email, next string) error {
	const op = "account.ResetPassword"
	a, err := s.byEmail(ctx, op, email)
	if err != nil {
		return err
	}
	var c fault.Checks
	checkPassword(&c, "password", next, a.Email)
	if err := c.Err(op); err != nil {
		return err
	}
	return s.setPassword(ctx, op, ident.System(""), a.ID, next, "")
}

func (s *Service) byEmail(ctx context.Context, op, email string) (Account, error) {
	a, _, err := s.store.FindByEmail(ctx, Fold(email))
	if fault.Is(err, fault.NotFound) {
		return Account{}, fault.New(fault.NotFound, op, "", "there is no account with this e-mail address")
	}
	return a, fault.Wrap(op, err)
}

// List returns a page of accounts, newest first: the operator's way.
func (s *Service) List(ctx context.Context, cursor string, limit int) ([]Account, string, error) {
	list, next, err := s.store.ListAccounts(ctx, cursor, limit)
	return list, next, fault.Wrap("account.List", err)
}

// Deny notes that an actor was refused something whose existence is no secret.
func (s *Service) Deny(ctx context.Context, actor ident.Actor, what string) error {
	return s.store.Refuse(ctx, actor, s.moment(), "access.denied", what, nil)
}

// SetupToken makes the token that turns one registration into an admin's, once per installation; fresh is false when
// it was made before, and the token then unknown.
func (s *Service) SetupToken(ctx context.Context) (token string, fresh bool, err error) {
	token = "cms_" + randomText(24)
	sum := sha256.Sum256([]byte(token))
	fresh, err = s.store.PutFact(ctx, setupFact, sum[:], s.moment())
	if !fresh {
		token = ""
	}
	return token, fresh, fault.Wrap("account.SetupToken", err)
}

func (s *Service) checkSetup(ctx context.Context, op, token string) error {
	sum := sha256.Sum256([]byte(token))
	want, err := s.store.FindFact(ctx, setupFact)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return fault.Wrap(op, err)
	}
	if subtle.ConstantTimeCompare(sum[:], want) != 1 || bytes.Equal(want, usedFact) {
		return fault.New(fault.Forbidden, op, CodeBadSetup, "the setup token is wrong or was used already")
	}
	return nil
}

// usedFact is what a consumed fact holds: the fact stays, so that no second token is ever made.
var usedFact = []byte("used")

// UsedFact is what InsertAccount leaves of the fact that it consumed.
func UsedFact() []byte { return bytes.Clone(usedFact) }

// Run removes what has ended, until ctx does.
func (s *Service) Run(ctx context.Context) error {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		s.Sweep(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// Sweep removes ended sessions, old failures and expired idempotency records once.
func (s *Service) Sweep(ctx context.Context) {
	now := s.moment()
	for what, sweep := range map[string]func() (int64, error){
		"sessions":            func() (int64, error) { return s.store.SweepSessions(ctx, now.Add(-keepEnded)) },
		"failed_sign_ins":     func() (int64, error) { return s.store.SweepFailures(ctx, now.Add(-failWindow)) },
		"idempotency_records": func() (int64, error) { return s.store.SweepOnces(ctx, now) },
	} {
		if n, err := sweep(); err != nil && ctx.Err() == nil {
			s.c.Log.Warn("sweep failed", "what", what, "code", fault.CodeOf(err))
		} else if n > 0 {
			s.c.Log.Debug("swept", "what", what, "count", n)
		}
	}
}

func (s *Service) newFamily(id ident.AccountID, o Origin, now time.Time) (Family, RefreshToken) {
	t := newRefreshToken()
	ends := now.Add(s.c.FullLife)
	return Family{Session: Session{ID: ident.New[ident.SessionID](), Device: cut(o.Device, 200), Address: o.Address, CreatedAt: now,
		LastUsedAt: now, ExpiresAt: earlier(now.Add(s.c.IdleLife), ends)}, Account: id, CurrentHash: hashToken(t), EndsAt: ends}, t
}

func (s *Service) grant(a Account, session ident.SessionID, refresh RefreshToken, until time.Time) (Grant, error) {
	access, err := s.signer.sign(a.ID, session, s.c.AccessLife)
	if err != nil {
		return Grant{}, fault.Wrap("account.grant", err)
	}
	return Grant{Account: a, Session: session, AccessToken: access, ExpiresIn: s.c.AccessLife, RefreshToken: refresh, RefreshUntil: until}, nil
}

func (s *Service) moment() time.Time { return s.c.Now().UTC().Truncate(time.Microsecond) }

func (o Origin) actor() ident.Actor { return ident.Actor{Address: o.Address, RequestID: o.RequestID} }

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// cut returns valid text of at most n bytes.
func cut(text string, n int) string {
	if len(text) > n {
		text = text[:n]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(text, ""), "\x00", "")
}
