package live

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/workspace"
)

// watchEvery is how often the master's log is looked at, beside what the bus says: a session that ended on another node
// closes its connections here within a second.
const watchEvery = 400 * time.Millisecond

// watch follows the master's log: sessions that end, accounts and tenants that change, grants, jobs. What concerns an
// account with connections here makes them be looked at again. The log is the truth; a signal that is lost costs the
// time until the next look.
func (h *Hub) watch(ctx context.Context) {
	sub := h.Bus.Subscribe("master", 16)
	defer sub.Close()
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	at, known := event.Seq(0), false
	for {
		if known {
			at = h.readMaster(ctx, at)
		} else if head, err := h.Master.Head(ctx); err == nil {
			at, known = head, true
			h.recheckAll() // whoever came before this is judged by what is so now
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-sub.C:
		}
	}
}

func (h *Hub) readMaster(ctx context.Context, at event.Seq) event.Seq {
	const page = 200
	for {
		list, err := h.Master.Since(ctx, at, page)
		if err != nil {
			if ctx.Err() == nil {
				h.Log.Warn("master's log not followed by connections", "code", fault.CodeOf(err))
			}
			return at
		}
		for _, e := range list {
			at = e.Seq
			h.heard(e)
		}
		if len(list) < page {
			return at
		}
	}
}

// heard acts on one event of the master's.
func (h *Hub) heard(e event.Event) {
	about := e.About()
	if id := jobOf(e, about); id != "" {
		h.track(id, e.Actor.ID, ident.TenantID(about.Tenant))
	}
	if e.Type == "session.started" {
		return // nobody's end
	}
	for _, id := range []string{e.Subject, about.Account, about.User} {
		if strings.HasPrefix(id, ident.AccountID("").Prefix()) {
			h.recheck(ident.AccountID(id))
		}
	}
	for _, id := range []string{e.Subject, about.Tenant} {
		if strings.HasPrefix(id, ident.TenantID("").Prefix()) {
			h.tenantChanged(ident.TenantID(id), e.Type == workspace.EventUpdated)
		}
	}
}

// recheck looks again at all connections of an account.
func (h *Hub) recheck(id ident.AccountID) {
	h.mu.Lock()
	var list []*conn
	if v := h.accounts[id]; v != nil {
		list = slices.Collect(maps.Keys(v.conns))
	}
	h.recheckWatchers(ofAccount(id))
	h.mu.Unlock()
	for _, c := range list {
		h.look(c)
	}
}

func (h *Hub) recheckAll() {
	h.mu.Lock()
	h.recheckWatchers(func(*watcher) bool { return true })
	h.mu.Unlock()
	for _, c := range h.all() {
		h.look(c)
	}
}

// tenantChanged looks again at those whom a tenant concerns. When it is another one now, as one that was suspended, the pool has
// to know first, which hears of it in its own time: who is looked at before that would stay.
func (h *Hub) tenantChanged(id ident.TenantID, other bool) {
	if !other {
		h.recheckTenant(id)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		return
	}
	h.work.Go(func() {
		ctx, cancel := context.WithTimeout(h.life, h.ActionTime)
		defer cancel()
		if err := h.Pool.Refresh(ctx, id); err != nil && !fault.Is(err, fault.NotFound) && h.life.Err() == nil {
			h.Log.Warn("tenant not looked at", "code", fault.CodeOf(err), "tenant", id)
		}
		h.recheckTenant(id)
	})
}

// recheckTenant looks again at whoever is in a room of the tenant, or whose own it is.
func (h *Hub) recheckTenant(id ident.TenantID) {
	h.mu.Lock()
	// Where a stream's project lives is not known here: all that have one are looked at.
	h.recheckWatchers(func(w *watcher) bool { return w.who.Tenant == id || w.subject != "" })
	h.mu.Unlock()
	for _, c := range h.all() {
		c.mu.Lock()
		concerned := c.tenant == id
		for _, s := range c.seats {
			concerned = concerned || s.room.tenant == id
		}
		c.mu.Unlock()
		if concerned {
			h.look(c)
		}
	}
}

// look asks again, beside whatever goes on, whether the connection may be there and in its rooms.
func (h *Hub) look(c *conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, here := h.conns[c]
	c.mu.Lock()
	c.access++
	queued := c.looking
	// One that is on its way in is looked at when it is here (Accept).
	c.looking = queued || here
	c.mu.Unlock()
	if queued || !here {
		return
	}
	h.work.Go(func() {
		select {
		case h.checks <- struct{}{}:
			defer func() { <-h.checks }()
			c.mu.Lock()
			c.looking = false
			c.mu.Unlock()
			c.guarded(c.judge)
		case <-c.life.Done():
		}
	})
}

// judge ends the connection if its session has, and takes it out of rooms that it may not see.
func (c *conn) judge() {
	actor, _ := c.who()
	if actor.Account == "" {
		return
	}
	ctx, cancel := context.WithTimeout(c.life, c.hub.ActionTime)
	defer cancel()
	if err := c.hub.Accounts.Alive(ctx, actor); err != nil {
		now, _ := c.who()
		switch {
		case !fault.Is(err, fault.Unauthenticated):
			c.soon()
		case now.Session == actor.Session:
			c.over(signedOut)
		}
		return
	}
	c.mu.Lock()
	seats, own := slices.Clone(c.seats), c.tenant
	c.mu.Unlock()
	for _, s := range seats {
		id := s.room.id
		pass, err := c.hub.allowed(ctx, actor, own, s.room.tenant, id)
		if err == nil {
			c.found(s, pass)
			continue
		}
		c.deny(id, err)
		if !refuses(err) {
			c.soon()
		}
	}
}

// refuses reports whether an error says that something may not be seen, not only that this could not be found out.
func refuses(err error) bool { return fault.Is(err, fault.NotFound) || fault.Is(err, fault.Forbidden) }

// soon has the connection looked at again in a moment, since it could not be found out what it may see.
func (c *conn) soon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.check = c.hub.Now().Add(watchAgain)
}

// watchAgain is how soon somebody is looked at again of whom it could not be found out what they may see.
const watchAgain = time.Second

// allowed returns what an account may do with something that is in a tenant, if it may see it. Of what is somebody else's the account's
// own database, which may be away at will, is not asked.
func (h *Hub) allowed(ctx context.Context, actor ident.Actor, own, in ident.TenantID, subject string) (access.Pass, error) {
	var ws *workspace.Workspace
	var err error
	if in != own {
		ws, err = h.Pool.EnterAsGuest(ctx, actor, subject)
	} else {
		ws, err = h.Pool.Enter(ctx, actor, own, subject)
	}
	if err != nil {
		return access.Pass{}, err
	}
	defer ws.Release()
	return ws.Pass, nil
}

// watched is a job that somebody with connections here waits for.
type watched struct {
	account ident.AccountID
	last    []byte
}

// jobOf is the job that an event of the master's is about.
func jobOf(e event.Event, about event.About) ident.JobID {
	for _, id := range []string{e.Subject, about.Job} {
		if j, err := ident.Parse[ident.JobID](id); err == nil {
			return j
		}
	}
	return ""
}

// track looks after a job from now on until its end, if whoever it is for has connections here.
func (h *Hub) track(id ident.JobID, by ident.AccountID, of ident.TenantID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.jobs[id] != nil {
		return
	}
	if h.accounts[by] == nil {
		by = ""
		for account, v := range h.accounts {
			for c := range v.conns {
				if _, tenant := c.who(); tenant == of && of != "" {
					by = account
				}
			}
		}
	}
	if by != "" && h.Jobs != nil {
		h.jobs[id] = &watched{account: by}
	}
}

// jobEvery is how often a job that is waited for is looked at.
const jobEvery = 500 * time.Millisecond

// watchJobs tells accounts how far their jobs are.
func (h *Hub) watchJobs(ctx context.Context) {
	t := time.NewTicker(jobEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		h.mu.Lock()
		list := maps.Clone(h.jobs)
		h.mu.Unlock()
		for id, w := range list {
			if h.tellJob(ctx, id, w) {
				h.mu.Lock()
				delete(h.jobs, id)
				h.mu.Unlock()
			}
		}
	}
}

// tellJob sends a job as it stands to its account's connections, unless they have that already. It is done with a job that
// has ended, and with one that nobody waits for.
func (h *Hub) tellJob(ctx context.Context, id ident.JobID, w *watched) (done bool) {
	h.mu.Lock()
	var list []*conn
	if v := h.accounts[w.account]; v != nil {
		list = slices.Collect(maps.Keys(v.conns))
	}
	h.mu.Unlock()
	if len(list) == 0 {
		return true
	}
	actor, _ := list[0].who()
	j, err := h.Jobs.Job(ctx, actor, id)
	if err != nil {
		return fault.Is(err, fault.NotFound)
	}
	raw, err := json.Marshal(h.Words.Job(j))
	if err != nil {
		return true // views always marshal
	}
	if !bytes.Equal(raw, w.last) {
		w.last = raw
		b := encode("job", nil, json.RawMessage(raw))
		for _, c := range list {
			c.put(b)
		}
	}
	return j.State.Final()
}
