package account

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"log/slog"
	"strings"
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
	Throttle        Throttle      // of failed sign-ins
	AccessLife      time.Duration // of an access token; default 10 min
	IdleLife        time.Duration // of a session that nobody uses; default 14 days
	FullLife        time.Duration // of any session; default 90 days
	Grace           time.Duration // for the previous refresh token; default 10 s
	FailureKey      seal.Key      // digests whom failed sign-ins were about; zero: the master key's own
	Log             *slog.Logger
	Now             func() time.Time
}

// Service is what doors and commands call. It holds no state that another node would miss for more than a second.
type Service struct {
	c         Config
	store     Store
	provision Provisioner
	hasher    *Hasher
	sealer    *seal.Keyring
	signer    *signer
	failKey   seal.Key
	brake     *brake
	seen      *sightings
}

const setupFact = "setup_token"

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
	c.Throttle = c.Throttle.withDefaults()
	sign, err := newSigner(c.Secret, c.PreviousSecrets, c.Now)
	if err != nil {
		return nil, err
	}
	if c.FailureKey == (seal.Key{}) {
		c.FailureKey = sealer.Derive("failed sign-ins")
	}
	return &Service{c: c, store: store, provision: provision, hasher: hasher, sealer: sealer, signer: sign,
		failKey: c.FailureKey, brake: newBrake(), seen: newSightings()}, nil
}

// Register makes an account with its tenant and signs it in. A repeat of in.Once answers with the first grant.
func (s *Service) Register(ctx context.Context, in RegisterInput, o Origin) (Grant, error) {
	const op = "account.Register"
	if in.Once != nil {
		if g, err := s.replay(ctx, op, in.Once); !fault.Is(err, fault.NotFound) {
			return g, err
		}
	}
	if err := s.mayRegister(ctx, op, in.SetupToken, o); err != nil {
		return Grant{}, err
	}
	a, err := s.newcomer(op, in.Email, in.Password, in.Name)
	if err != nil {
		return Grant{}, err
	}
	n := Newcomer{Account: a, Promote: s.c.FirstIsAdmin}
	if in.SetupToken != "" {
		n.Account.Role, n.Fact = ident.Admin, setupFact
	}
	if n.Hash, err = s.hasher.Hash(ctx, in.Password); err != nil {
		return Grant{}, err
	}
	family, refresh := s.newFamily(a.ID, o, a.CreatedAt)
	n.Session = &family
	access, err := s.signer.sign(a.ID, family.ID, s.c.AccessLife)
	if err != nil {
		return Grant{}, fault.Wrap(op, err)
	}
	if err := in.Once.Keep(s.sealer, kept{a.ID, family.ID, access.Reveal(), s.c.AccessLife, refresh.Reveal(), family.ExpiresAt}); err != nil {
		return Grant{}, err
	}
	actor := o.actor(a, family.ID)
	got, err := s.insert(ctx, op, n, func(a Account) event.Change {
		c := event.NewChange(actor, a.CreatedAt)
		c.Once = in.Once
		c.Add("account.registered", string(a.ID), map[string]any{"role": a.Role})
		c.Add("session.started", string(family.ID), map[string]any{"account_id": a.ID})
		return c
	})
	if err != nil && in.Once != nil {
		// The first request of two may have committed while this one was hashing: then the e-mail is taken by itself.
		if g, again := s.replay(ctx, op, in.Once); !fault.Is(again, fault.NotFound) {
			return g, again
		}
	}
	if err != nil {
		return Grant{}, err
	}
	return Grant{Account: got, Session: family.ID, AccessToken: access, ExpiresIn: s.c.AccessLife, RefreshToken: refresh,
		RefreshUntil: family.ExpiresAt}, nil
}

// kept is what an idempotency record of a registration holds, sealed. The account itself is read again.
type kept struct {
	Account ident.AccountID
	Session ident.SessionID
	Access  string
	Life    time.Duration
	Refresh string
	Until   time.Time
}

// replay answers with an earlier registration's grant; NotFound when there was none.
func (s *Service) replay(ctx context.Context, op string, once *event.Once) (Grant, error) {
	var was kept
	if err := once.Replay(ctx, s.store, s.sealer, &was); err != nil {
		return Grant{}, fault.Wrap(op, err)
	}
	a, _, err := s.store.FindAccount(ctx, was.Account)
	if fault.Is(err, fault.NotFound) {
		err = fault.New(fault.Conflict, op, "", "the account that this request made is gone").With(err)
	}
	if err != nil {
		return Grant{}, fault.Wrap(op, err)
	}
	return Grant{Account: a, Session: was.Session, AccessToken: AccessToken(was.Access), ExpiresIn: was.Life,
		RefreshToken: RefreshToken(was.Refresh), RefreshUntil: was.Until}, nil
}

// mayRegister comes before any hashing: strangers at a closed door cost nothing.
func (s *Service) mayRegister(ctx context.Context, op, setup string, o Origin) error {
	switch {
	case setup != "":
		return s.checkSetup(ctx, op, setup)
	case s.c.Registration == Closed:
		return fault.New(fault.Forbidden, op, "registration_closed",
			"this server takes no registrations: ask its operator for an account")
	case s.c.Registration == ByInvitation:
		return fault.New(fault.Forbidden, op, "invitation_required",
			"this server takes registrations by invitation only: ask its operator")
	}
	return nil
}

// Create makes an account without signing it in: the operator's way.
func (s *Service) Create(ctx context.Context, in CreateInput) (Account, error) {
	const op = "account.Create"
	a, err := s.newcomer(op, in.Email, in.Password, in.Name)
	if err != nil {
		return Account{}, err
	}
	if in.Role != "" {
		if err := checkRole(op, in.Role); err != nil {
			return Account{}, err
		}
		a.Role = in.Role
	}
	n := Newcomer{Account: a}
	if n.Hash, err = s.hasher.Hash(ctx, in.Password); err != nil {
		return Account{}, err
	}
	return s.insert(ctx, op, n, func(a Account) event.Change {
		c := event.NewChange(operator(), a.CreatedAt)
		c.Add("account.registered", string(a.ID), map[string]any{"role": a.Role})
		return c
	})
}

// newcomer checks what somebody gives for an account, all at once.
func (s *Service) newcomer(op, email, password, name string) (Account, error) {
	var c fault.Checks
	shown := c.Email("body.email", email)
	checkPassword(&c, "body.password", password, shown)
	name = strings.TrimSpace(name)
	c.Text("body.name", name, 0, nameMax)
	if err := c.Err(op); err != nil {
		return Account{}, err
	}
	if name == "" {
		name, _, _ = strings.Cut(shown, "@")
	}
	now := s.moment()
	return Account{ID: ident.New[ident.AccountID](), Email: shown, Details: Details{Name: name, Settings: json.RawMessage("{}")},
		Role: ident.Member, Tenant: ident.New[ident.TenantID](), State: Active, Version: 1, CreatedAt: now, UpdatedAt: now}, nil
}

// insert provisions the tenant first: an account without a place for its data must never be seen.
func (s *Service) insert(ctx context.Context, op string, n Newcomer, change func(Account) event.Change) (Account, error) {
	// Asked first because a database is dear to make; the unique index decides.
	if _, _, err := s.store.FindByEmail(ctx, Fold(n.Account.Email)); err == nil {
		return Account{}, fault.New(fault.Conflict, op, "email_taken",
			"there is an account with this e-mail address: sign in instead")
	} else if !fault.Is(err, fault.NotFound) {
		return Account{}, fault.Wrap(op, err)
	}
	at, err := s.provision.Provision(ctx, n.Account.Tenant)
	if err != nil {
		return Account{}, fault.Wrap(op, err)
	}
	n.Tenant = tenant.Tenant{ID: n.Account.Tenant, Account: n.Account.ID, Placement: at, State: tenant.Active,
		CreatedAt: n.Account.CreatedAt}
	got, err := s.store.InsertAccount(ctx, n, change)
	if err == nil {
		return got, nil
	}
	after := context.WithoutCancel(ctx)
	if fault.Unknown(err) {
		// The account may be there, or may yet be: its database stays in any case. An unused one harms nobody.
		if got, _, ferr := s.store.FindAccount(after, n.Account.ID); ferr == nil {
			return got, nil
		}
		return Account{}, fault.Wrap(op, err)
	}
	if derr := s.provision.Discard(after, n.Account.Tenant, at); derr != nil {
		s.c.Log.Warn("unused tenant database not removed", "code", fault.CodeOf(derr), "tenant", n.Account.Tenant)
	}
	return Account{}, fault.Wrap(op, err)
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

// checkSetup compares with the fact; the transaction that makes the account uses it up.
func (s *Service) checkSetup(ctx context.Context, op, token string) error {
	sum := sha256.Sum256([]byte(token))
	want, err := s.store.FindFact(ctx, setupFact)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return fault.Wrap(op, err)
	}
	if subtle.ConstantTimeCompare(sum[:], want) != 1 {
		return fault.New(fault.Forbidden, op, CodeBadSetup, "the setup token is wrong or was used already")
	}
	return nil
}

func (s *Service) moment() time.Time { return s.c.Now().UTC().Truncate(time.Microsecond) }

// actor is who acts from there: an account that has just proved itself, with the session that it gets.
func (o Origin) actor(a Account, session ident.SessionID) ident.Actor {
	return ident.Actor{Account: a.ID, Name: a.Name, Role: a.Role, Session: session, Address: o.Address, RequestID: o.RequestID}
}

// stranger is who acts from there without proof.
func (o Origin) stranger() ident.Actor {
	return ident.Actor{Address: o.Address, RequestID: o.RequestID}
}

// operator is who runs memoryd's commands.
func operator() ident.Actor { return ident.Actor{System: true, Name: "operator"} }
