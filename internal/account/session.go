package account

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

const (
	believe    = time.Second // how long another node's revocation may go unnoticed
	touchEvery = time.Minute // last use is not noted more often
	seenMax    = 50_000      // sessions remembered at once

	purposeRefresh = "refresh token"
)

// Refresh replaces a refresh token. The one just replaced is honoured for a few seconds with the same successor, since
// a client's windows race with each other; any earlier one was copied, and ends the session.
//
// A refresh is an act of the client's program every few minutes and tells nobody anything: it is no event and has no
// entry in the trail. The session's row says when it was last used and which generation of tokens it is at. What is
// noted is misuse.
func (s *Service) Refresh(ctx context.Context, t RefreshToken, o Origin) (Grant, error) {
	const op = "account.Refresh"
	refused := fault.New(fault.Unauthenticated, op, "refresh_refused", "the session has ended: sign in again")
	if len(t) > 200 || !strings.HasPrefix(t.Reveal(), refreshPrefix) {
		return Grant{}, refused
	}
	now := s.moment()
	fresh := newRefreshToken()
	var next RefreshToken // empty: the token was reused
	f, a, err := s.store.Rotate(ctx, hashToken(t), func(f Family, a Account, use Use) (Family, event.Change, error) {
		next = ""
		if f.RevokedAt != nil || !now.Before(f.ExpiresAt) || !now.Before(f.EndsAt) || a.State != Active {
			return f, event.Change{}, refused
		}
		switch {
		case use == UseCurrent:
			next = fresh
			f.PreviousHash, f.PreviousUntil = f.CurrentHash, now.Add(s.c.Grace)
			f.CurrentHash, f.Generation = hashToken(next), f.Generation+1
			f.Successor = s.sealer.Seal(purposeRefresh, []byte(next.Reveal()), []byte(f.ID))
			f.LastUsedAt, f.Address, f.Device = now, o.Address, cut(o.Device, deviceMax)
			f.ExpiresAt = earlier(now.Add(s.c.IdleLife), f.EndsAt)
			return f, event.Change{}, nil
		case use == UsePrevious && now.Before(f.PreviousUntil):
			raw, err := s.sealer.Open(purposeRefresh, f.Successor, []byte(f.ID))
			next = RefreshToken(raw)
			return f, event.Change{}, err
		}
		// Who holds which copy cannot be known, so both lose it. The trail names the account: it was its token.
		c := event.NewChange(o.actor(a, f.ID), now)
		c.Add("session.reused", string(f.ID), map[string]any{"account_id": a.ID})
		f.RevokedAt, f.RevokedWhy, f.Successor = &now, "reused", nil
		return f, c, nil
	})
	switch {
	case fault.Is(err, fault.Unauthenticated):
		return Grant{}, refused
	case err != nil:
		return Grant{}, fault.Wrap(op, err)
	case next == "":
		s.seen.forget(f.ID)
		return Grant{}, refused
	}
	return s.grant(a, f.ID, next, f.ExpiresAt)
}

// Verify says who an access token stands for. Its session is looked up, at most a second late when another node
// ended it.
func (s *Service) Verify(ctx context.Context, t AccessToken, o Origin) (Identity, error) {
	id, session, until, err := s.signer.readUntil(t)
	if err != nil {
		return Identity{}, err
	}
	return s.identify(ctx, "account.Verify", id, session, until, o)
}

// identify says who a session of the account stands for, if it is alive.
func (s *Service) identify(ctx context.Context, op string, id ident.AccountID, session ident.SessionID, until time.Time, o Origin) (Identity, error) {
	ended := sessionEnded(op)
	now := s.moment()
	var err error
	live, era, ok := s.seen.find(session, now)
	if !ok {
		live, err = s.store.FindLive(ctx, session, now)
		switch {
		case fault.Is(err, fault.NotFound):
			return Identity{}, ended
		case err != nil:
			return Identity{}, fault.Wrap(op, err)
		}
		s.seen.remember(live, now, era)
	}
	if live.Account != id || live.State != Active || !now.Before(live.ExpiresAt) {
		return Identity{}, ended
	}
	if now.Sub(live.LastUsedAt) >= touchEvery {
		s.seen.touch(Touch{Session: session, Address: o.Address, At: now})
	}
	return Identity{ExpiresAt: until, Tenant: live.Tenant, Actor: ident.Actor{Account: live.Account, Name: live.Name, Role: live.Role,
		Session: session, Address: o.Address, RequestID: o.RequestID}}, nil
}

func sessionEnded(op string) *fault.Error {
	return fault.New(fault.Unauthenticated, op, "session_ended", "the session has ended: sign in again")
}

// Logout ends the actor's session. One that has ended already is as good.
func (s *Service) Logout(ctx context.Context, actor ident.Actor) error {
	err := s.end(ctx, "account.Logout", actor, actor.Session, "signed_out")
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// EndSession ends one of the actor's sessions; somebody else's is NotFound.
func (s *Service) EndSession(ctx context.Context, actor ident.Actor, id ident.SessionID) error {
	return s.end(ctx, "account.EndSession", actor, id, "revoked")
}

func (s *Service) end(ctx context.Context, op string, actor ident.Actor, id ident.SessionID, why string) error {
	c := event.NewChange(actor, s.moment())
	c.Add("session.ended", string(id), map[string]any{"account_id": actor.Account, "why": why})
	err := s.store.EndSession(ctx, actor.Account, id, why, c)
	if err == nil {
		s.seen.forget(id)
	}
	return fault.Wrap(op, err)
}

// LogoutAll ends all of the actor's sessions, the one that asks included. It is one event, about the account.
func (s *Service) LogoutAll(ctx context.Context, actor ident.Actor) error {
	c := event.NewChange(actor, s.moment())
	c.Add("session.ended", string(actor.Account), map[string]any{"account_id": actor.Account, "why": "signed_out_everywhere", "all": true})
	err := s.store.EndSessions(ctx, actor.Account, EndSessions{Why: "signed_out_everywhere", At: c.At}, c)
	s.seen.forgetAccount(actor.Account)
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

const deviceMax = 200

func (s *Service) newFamily(id ident.AccountID, o Origin, now time.Time) (Family, RefreshToken) {
	t := newRefreshToken()
	ends := now.Add(s.c.FullLife)
	return Family{Session: Session{ID: ident.New[ident.SessionID](), Device: cut(o.Device, deviceMax), Address: o.Address,
		CreatedAt: now, LastUsedAt: now, ExpiresAt: earlier(now.Add(s.c.IdleLife), ends)}, Account: id,
		CurrentHash: hashToken(t), Generation: 1, EndsAt: ends}, t
}

func (s *Service) grant(a Account, session ident.SessionID, refresh RefreshToken, until time.Time) (Grant, error) {
	access, err := s.signer.sign(a.ID, session, s.c.AccessLife)
	if err != nil {
		return Grant{}, fault.Wrap("account.grant", err)
	}
	return Grant{Account: a, Session: session, AccessToken: access, ExpiresIn: s.c.AccessLife, RefreshToken: refresh, RefreshUntil: until}, nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// sightings are the sessions that this node saw alive a moment ago, and the uses that are still to be noted.
type sightings struct {
	mu      sync.Mutex
	live    map[ident.SessionID]sighting
	touched map[ident.SessionID]Touch
	era     int // grows with every forgetting
}

type sighting struct {
	Live
	at time.Time
}

func newSightings() *sightings {
	return &sightings{live: make(map[ident.SessionID]sighting), touched: make(map[ident.SessionID]Touch)}
}

// find returns what is believed about a session, and the era, which remember wants back.
func (s *sightings) find(id ident.SessionID, now time.Time) (Live, int, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen, ok := s.live[id]
	return seen.Live, s.era, ok && now.Sub(seen.at) < believe
}

// remember believes what was read, unless something was forgotten since the reading began: it may have been this one.
func (s *sightings) remember(l Live, now time.Time, era int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if era != s.era {
		return
	}
	if len(s.live) >= seenMax {
		clear(s.live) // they are worth a second each
	}
	s.live[l.Session] = sighting{l, now}
}

func (s *sightings) forget(id ident.SessionID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.era++
	delete(s.live, id)
}

func (s *sightings) forgetAccount(id ident.AccountID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.era++
	maps.DeleteFunc(s.live, func(_ ident.SessionID, v sighting) bool { return v.Account == id })
}

func (s *sightings) touch(t Touch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.touched[t.Session]; known || len(s.touched) < seenMax {
		s.touched[t.Session] = t
	}
}

// expire forgets what is believed no more: who has gone away must not stay in memory.
func (s *sightings) expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.live, func(_ ident.SessionID, v sighting) bool { return now.Sub(v.at) >= believe })
}

// takeTouched hands over the uses to note, in the order of the sessions: two nodes that note the same ones wait for
// each other, not in a circle.
func (s *sightings) takeTouched() []Touch {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.SortedFunc(maps.Values(s.touched), func(a, b Touch) int { return strings.Compare(string(a.Session), string(b.Session)) })
	clear(s.touched)
	return list
}
