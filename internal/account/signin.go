package account

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Throttle says how many sign-ins may fail within the window. Zero values mean the defaults.
type Throttle struct {
	Off        bool // for load tests
	Window     time.Duration
	PerPair    int // per account and address; default 10
	PerAccount int // per account, from addresses that it never signed in from; default 25
	PerAddress int // per address, for any account; default 100
}

func (t Throttle) withDefaults() Throttle {
	if t.Window <= 0 {
		t.Window = 15 * time.Minute
	}
	for _, d := range []struct {
		n     *int
		usual int
	}{{&t.PerPair, 10}, {&t.PerAccount, 25}, {&t.PerAddress, 100}} {
		if *d.n <= 0 {
			*d.n = d.usual
		}
	}
	return t
}

// CodeWrong refuses an e-mail address, a password, or an account that may not sign in: nobody learns which.
const CodeWrong = "wrong_credentials"

// Login signs in. Unknown accounts, wrong passwords and suspended accounts cannot be told apart, by what is answered
// or by what it costs.
func (s *Service) Login(ctx context.Context, email, password string, o Origin) (Grant, error) {
	const op = "account.Login"
	wrong := fault.New(fault.Unauthenticated, op, CodeWrong, "the e-mail address or the password is wrong")
	if len(email) > 1000 || len(password) > 4*passwordMax || !storable(email) {
		return Grant{}, wrong // no account can have these
	}
	now := s.moment()
	try, done, err := s.attempt(ctx, op, email, o.stranger(), now)
	if err != nil {
		return Grant{}, err
	}
	defer done()
	a := try.Account
	ok, again, err := s.hasher.Verify(ctx, try.Hash, password)
	if err != nil {
		return Grant{}, err
	}
	if !ok || a.State != Active {
		return Grant{}, s.failed(ctx, op, try, o.stranger(), now, wrong)
	}
	hash := try.Hash
	if again {
		// Failing to bring the stored form up to today's costs is no reason to refuse a sign-in.
		if h, err := s.hasher.Hash(ctx, password); err == nil {
			hash = h
		}
	}
	family, refresh := s.newFamily(a.ID, o, now)
	a, err = s.store.UpdateAccount(ctx, a.ID, func(a Account, stored string) (Account, string, event.Change, error) {
		if stored != try.Hash || a.State != Active {
			return a, stored, event.Change{}, wrong // it changed while we were hashing
		}
		c := event.NewChange(o.actor(a, family.ID), now)
		c.Add("session.started", string(family.ID), map[string]any{"account_id": a.ID})
		return a, hash, c, nil
	}, Along{Start: &family, Forget: try.subjects[0]})
	if err != nil {
		return Grant{}, fault.Wrap(op, err)
	}
	return s.grant(a, family.ID, refresh, family.ExpiresAt)
}

// trial is an attempt to prove an account's password.
type trial struct {
	Attempt
	subjects [][]byte
}

// attempt reads what there is about an e-mail address, and refuses when too many attempts failed. done must be called
// when the attempt has been judged: until then it counts as a failure, so that many at once are no way around the
// limits.
func (s *Service) attempt(ctx context.Context, op, email string, actor ident.Actor, now time.Time) (_ trial, done func(), err error) {
	email = Fold(email)
	net := network(actor.Address)
	t := trial{subjects: [][]byte{subject(s.failKey, "pair", email, net), subject(s.failKey, "account", email),
		subject(s.failKey, "address", net)}}
	running, done := s.brake.enter(t.subjects)
	if t.Attempt, err = s.store.FindAttempt(ctx, email, t.subjects, now.Add(-s.c.Throttle.Window)); err != nil {
		done()
		return t, nil, fault.Wrap(op, err)
	}
	known := slices.ContainsFunc(t.Addresses, func(a string) bool { return network(a) == net })
	for i, limit := range []int{s.c.Throttle.PerPair, s.c.Throttle.PerAccount, s.c.Throttle.PerAddress} {
		if i == 1 && known {
			continue // others' guesses must not lock out who has been here before
		}
		if s.c.Throttle.Off || t.Counts[i]+running[i] < limit {
			continue
		}
		done()
		after := time.Second // those that are being judged will soon have been
		if t.Counts[i] >= limit {
			after = max(t.Oldest[i].Add(s.c.Throttle.Window).Sub(now), time.Second)
		}
		if s.brake.worthNoting(t.subjects[0], now) {
			s.refuse(ctx, Refusal{Actor: actor, At: now, Action: "session.refused", Subject: string(t.Account.ID),
				Detail: reason("throttled")})
		}
		return t, nil, fault.New(fault.Throttled, op, "too_many_failures",
			"too many failed attempts: wait, then try again").RetryAfter(after)
	}
	return t, done, nil
}

// failed counts a failure, notes it, and returns what to answer.
func (s *Service) failed(ctx context.Context, op string, t trial, actor ident.Actor, now time.Time, answer error) error {
	// Whoever hangs up must not get the guess for nothing.
	err := s.store.Refuse(context.WithoutCancel(ctx), Refusal{Actor: actor, At: now, Action: "session.refused",
		Subject: string(t.Account.ID), Detail: reason(CodeWrong), Failures: t.subjects})
	if err != nil {
		return fault.Wrap(op, err)
	}
	return answer
}

// refuse notes what changed nothing; failing to is no reason to answer differently.
func (s *Service) refuse(ctx context.Context, r Refusal) {
	if err := s.store.Refuse(ctx, r); err != nil {
		s.c.Log.Warn("refusal not noted", "code", fault.CodeOf(err))
	}
}

func reason(code string) json.RawMessage { return json.RawMessage(`{"reason":"` + code + `"}`) }

// brake knows the attempts that this node is judging, and which throttled ones it noted lately.
type brake struct {
	mu      sync.Mutex
	running map[string]int
	noted   map[string]time.Time
}

func newBrake() *brake {
	return &brake{running: make(map[string]int), noted: make(map[string]time.Time)}
}

// enter counts an attempt under its subjects and returns how many others there were.
func (b *brake) enter(subjects [][]byte) (others []int, done func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	others = make([]int, len(subjects))
	for i, s := range subjects {
		others[i] = b.running[string(s)]
		b.running[string(s)]++
	}
	return others, sync.OnceFunc(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, s := range subjects {
			if b.running[string(s)]--; b.running[string(s)] == 0 {
				delete(b.running, string(s))
			}
		}
	})
}

const (
	noteEvery = time.Minute
	notedMax  = 10_000
)

// worthNoting is true once a minute per subject: a trail that a flood writes into is an attack of its own.
func (b *brake) worthNoting(subject []byte, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if last, ok := b.noted[string(subject)]; ok && now.Sub(last) < noteEvery {
		return false
	}
	if len(b.noted) >= notedMax {
		clear(b.noted)
	}
	b.noted[string(subject)] = now
	return true
}
