package workspace

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

// Notes keeps what is seen of tenants' schemas; the master database does.
type Notes interface {
	NoteSchema(ctx context.Context, id ident.TenantID, seen tenant.Schema) error
}

// Events of the master's log that tell of whole tenants. Their subject is the tenant.
const (
	EventUpdated   = "tenant.updated"   // its state or limits are others
	EventSwitching = "tenant.switching" // its data is about to live elsewhere: other nodes wait
	EventMoved     = "tenant.moved"     // its data lives elsewhere, or the switch was called off
	EventErased    = "tenant.erased"    // it is gone for good
)

const (
	// followEvery is how often the master's log is looked at for tenants that changed.
	followEvery = 500 * time.Millisecond
	// SwitchNotice is how long whoever switches a tenant waits after EventSwitching, until every other node has heard
	// of it: one that has not heard anything for as long asks before it lets anybody in.
	SwitchNotice = 2 * time.Second
	// switchPatience is how long another node holds its own requests back while a switch goes on.
	switchPatience = 15 * time.Second
)

// Database is the open database of the leased tenant, for what works on the whole of it (package relocate).
func (w *Workspace) Database() *sqlstore.DB { return w.entry.db }

// Empty removes everything that the tenant holds, and notes that in its own log and trail. It says what it reached of the
// database's files. It asks nobody whether the tenant may be written: see [Refusal].
func (w *Workspace) Empty(ctx context.Context, ch event.Change) (sqlstore.Emptied, error) {
	db := w.entry.db.Direct()
	done, err := sqlstore.Empty(ctx, db)
	if err != nil {
		return done, fault.Wrap("workspace.Empty", err)
	}
	// A freeze that came in between must not keep what was done out of the trail.
	return done, fault.Wrap("workspace.Empty", sqlstore.NewTenantStore(db, w.entry.committed).Note(ctx, ch))
}

// committed tells everybody who listens that the tenant's log has grown.
func (e *entry) committed(seq event.Seq) {
	e.pool.Bus.Publish(context.Background(), event.Signal{Topic: string(e.id), Kind: event.Committed, Seq: seq})
}

// openDatabase opens the database of a tenant as far as its state and its schema allow.
func (p *Pool) openDatabase(ctx context.Context, t *tenant.Tenant) (*sqlstore.DB, error) {
	db, seen, err := p.Placements.openMigrated(ctx, *t)
	p.note(ctx, t, seen)
	if db == nil {
		return nil, err
	}
	if err != nil {
		p.Log.Error("tenant not migrated, it can only be read", "error", err, "tenant", t.ID)
		t.State = worse(t.State, tenant.Quarantined)
	}
	db.SetReadOnly(Refusal(t.State))
	return db, nil
}

// worse is the more restricted of two states.
func worse(a, b tenant.State) tenant.State {
	if a == tenant.Suspended || b == tenant.Active {
		return a
	}
	return b
}

// note keeps what was seen of a schema if it is news.
func (p *Pool) note(ctx context.Context, t *tenant.Tenant, seen tenant.Schema) {
	if p.Notes == nil || seen.Version == t.Schema.Version && seen.Problem == t.Schema.Problem {
		return
	}
	seen.At = p.Now()
	t.Schema = seen
	if err := p.Notes.NoteSchema(ctx, t.ID, seen); err != nil {
		p.Log.Warn("schema not noted", "code", fault.CodeOf(err), "tenant", t.ID)
	}
}

// Refusal is what writes are answered with in a state; nil where they are welcome.
func Refusal(s tenant.State) error {
	switch s {
	case tenant.ReadOnly:
		return fault.New(fault.Forbidden, "workspace", "tenant_read_only",
			"this account's data can only be read at the moment: ask the operator")
	case tenant.Quarantined:
		return fault.New(fault.Unavailable, "workspace", "tenant_quarantined",
			"this account's database is not sound and can only be read until the operator has repaired it").RetryAfter(time.Minute)
	case tenant.Suspended:
		return fault.New(fault.Forbidden, "workspace", "tenant_suspended",
			"this account's data is suspended: ask the operator")
	}
	return nil
}

func (e *entry) refuses(t tenant.Tenant) error { return Refusal(t.State) }

// upToDate makes sure that this node knows where the tenant lives, and has it open there. With others at work on the same
// databases, who has not heard from the master's log lately asks before it lets anybody in. An entry that fell behind is
// tried again, by one caller in each pause; the others use it as it is, if it may be used. Who only lacks new credentials
// may be: nobody waits for those.
func (p *Pool) upToDate(ctx context.Context, e *entry) error {
	now := p.Now()
	p.mu.Lock()
	late := !p.Sole && p.Master != nil && now.Sub(p.heard) > SwitchNotice/2
	again := e.missed != nil && !now.Before(e.retry)
	if again {
		e.retry = now.Add(pause)
	}
	p.mu.Unlock()
	var err error
	if late || again {
		var t tenant.Tenant
		var anew int
		if t, anew, err = p.look(ctx, e); err == nil && anew != 0 {
			if p.stays(e, t) {
				p.refreshBeside(ctx, e)
			} else {
				err = p.reopen(ctx, e, t, anew)
			}
		}
	}
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Canceled) {
		return err
	}
	if again && err != nil {
		p.Log.Warn("tenant not opened anew", "code", fault.CodeOf(err), "tenant", e.id)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.lost {
		return unavailable(e.missed)
	}
	return nil
}

// look looks an open tenant up again and acts at once on what needs no other database: its state. anew, unless it is 0, says
// that t, as it was found, lives elsewhere than what is open, or is entered in another way: it is for reopen.
func (p *Pool) look(ctx context.Context, e *entry) (t tenant.Tenant, anew int, err error) {
	for {
		p.mu.Lock()
		e.looks++
		turn := e.looks
		p.mu.Unlock()
		t, err = p.Directory.FindTenant(ctx, e.id)
		if err != nil {
			break
		}
		same, counts := p.saw(e, t, turn)
		switch {
		case same:
			return t, 0, nil
		case counts:
			return t, turn, nil
		}
		// It was opened elsewhere meanwhile: what was read may be from before that, or news.
	}
	if fault.Is(err, fault.NotFound) {
		go p.Expel(context.WithoutCancel(ctx), e.id)
	} else {
		p.fellBehind(e, t, err)
	}
	return t, 0, err
}

// saw is become for what a look found where the tenant is open, unless one that began later has said since what it found:
// what this one read may have been true before. Of what is not the same it says whether it counts: it does not when the
// tenant was opened at another door since the look began.
func (p *Pool) saw(e *entry, t tenant.Tenant, turn int) (same, counts bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	same, counts = sameDoor(t.Placement, e.tenant.Placement), turn > e.moved
	if turn < e.seen || !same && !counts {
		return same, counts
	}
	e.seen = turn
	if same {
		p.know(e, t)
		e.missed, e.lost, e.retry = nil, false, time.Time{}
	}
	return same, counts
}

// reopen opens a tenant where and how t says, which the look of that number found.
func (p *Pool) reopen(ctx context.Context, e *entry, t tenant.Tenant, turn int) error {
	err := e.db.Switch(ctx, func() (*sqlstore.DB, error) {
		p.mu.Lock()
		late := turn <= e.moved
		p.mu.Unlock()
		if late { // somebody else was let in first, who may have known better
			now, err := p.Directory.FindTenant(ctx, e.id)
			if err != nil {
				return nil, err
			}
			t = now
		}
		return p.relocated(ctx, e, t)
	})
	if err != nil {
		p.fellBehind(e, t, err)
	}
	return err
}

// stays takes over the state of t, and reports whether what is open is still the tenant's database.
func (p *Pool) stays(e *entry, t tenant.Tenant) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := e.tenant.Placement
	same := t.Placement.Database == at.Database
	t.Placement = at
	p.know(e, t)
	return same
}

// refreshBeside is Refresh without anybody waiting for it. A wish that comes while one is fulfilled is one more time.
func (p *Pool) refreshBeside(ctx context.Context, e *entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.wished = true
	if e.anew {
		return
	}
	e.anew = true
	go func() {
		for p.takeWish(e) {
			within, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTime)
			if err := p.Refresh(within, e.id); err != nil {
				p.Log.Warn("tenant not looked up again", "code", fault.CodeOf(err), "tenant", e.id)
			}
			cancel()
		}
	}()
}

func (p *Pool) takeWish(e *entry) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.anew = e.wished && !p.closed
	e.wished = false
	return e.anew
}

// fellBehind notes that an open entry is not what the directory says: t, as far as that is known. Where the tenant lives
// elsewhere, or may, the entry is not used until it could be opened there: what it has is old. With other credentials it
// goes on with those it has, which may still be good, and may be so for longer than the new ones are not.
func (p *Pool) fellBehind(e *entry, t tenant.Tenant, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := e.tenant.Placement
	e.lost = t.Placement.Database != at.Database
	if !e.lost {
		t.Placement = at
		p.know(e, t)
	}
	if e.missed = err; fault.Is(err, fault.Canceled) {
		e.retry = time.Time{} // that was the caller's doing
	}
}

// followMaster reads what the master's log tells of tenants since the last time.
func (p *Pool) followMaster(ctx context.Context) {
	if p.Master == nil {
		return
	}
	began := p.Now()
	p.mu.Lock()
	after, first := p.told, p.heard.IsZero()
	p.mu.Unlock()
	if first {
		head, err := p.Master.Head(ctx)
		if err != nil {
			return
		}
		after = head
		// What was opened since the start was opened by what the directory said then.
		p.mu.Lock()
		early := slices.Collect(maps.Values(p.entries))
		p.mu.Unlock()
		for _, e := range early {
			p.refreshBeside(ctx, e)
		}
	}
	for {
		const page = 200
		list, err := p.Master.Since(ctx, after, page)
		if err != nil {
			p.Log.Warn("master's log not followed", "code", fault.CodeOf(err))
			return
		}
		for _, e := range list {
			after = e.Seq
			p.tell(ctx, e)
		}
		if len(list) < page {
			break
		}
	}
	p.mu.Lock()
	p.told, p.heard = after, began
	p.mu.Unlock()
}

// tell acts on one event of the master's log. It waits for nothing but the master: others' events come next.
func (p *Pool) tell(ctx context.Context, ev event.Event) {
	id := ident.TenantID(ev.Subject)
	if !strings.HasPrefix(ev.Type, "tenant.") {
		return
	}
	p.mu.Lock()
	e := p.entries[id]
	p.mu.Unlock()
	if e == nil {
		if ev.Type == EventErased {
			p.unsent(id)
		}
		return
	}
	var data struct {
		Node string `json:"node"`
	}
	_ = json.Unmarshal(ev.Data, &data) // an event without a node is everybody's
	if data.Node != "" && data.Node == p.Engine.Node {
		return // it is this node that does it, and it knows better
	}
	switch ev.Type {
	case EventSwitching:
		go p.await(ctx, e)
	case EventErased:
		go func() {
			p.Expel(context.WithoutCancel(ctx), id)
			p.unsent(id) // after whoever was looking at it
		}()
	default:
		if !opened(e) || !p.retain(e) { // what it is opened by may be old already
			p.refreshBeside(ctx, e)
			return
		}
		defer p.release(e)
		if t, anew, err := p.look(ctx, e); err == nil && anew != 0 {
			p.stays(e, t)
			p.refreshBeside(ctx, e)
		}
	}
}

// await holds the requests of a tenant back until the directory says where it lives now.
func (p *Pool) await(ctx context.Context, e *entry) {
	if !p.retain(e) {
		return
	}
	defer p.release(e)
	ctx, cancel := context.WithTimeout(ctx, switchPatience)
	defer cancel()
	sub := p.Bus.Subscribe("master", 16)
	defer sub.Close()
	was := p.tenantOf(e)
	var found tenant.Tenant
	if err := e.db.Switch(ctx, func() (*sqlstore.DB, error) {
		look := time.NewTicker(followEvery / 2)
		defer look.Stop()
		for {
			t, err := p.Directory.FindTenant(ctx, e.id)
			if err == nil && (t.Placement.Database != was.Placement.Database || t.Job == "") {
				found = t
				return p.relocated(ctx, e, t)
			}
			select {
			case <-look.C:
			case <-sub.C:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}); err != nil {
		p.fellBehind(e, found, err)
	}
}

// Refresh looks a tenant up again and acts on what changed: its state at once, and where it lives, or how it is entered,
// by opening it anew. What fails is tried again by those who acquire the tenant; so is, without a pause, what had failed.
func (p *Pool) Refresh(ctx context.Context, id ident.TenantID) error {
	p.mu.Lock()
	e := p.entries[id]
	p.mu.Unlock()
	if e == nil {
		return nil
	}
	if !p.retain(e) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if e.err != nil {
			e.until = time.Time{}
		}
		return nil
	}
	defer p.release(e)
	t, anew, err := p.look(ctx, e)
	if err == nil && anew != 0 {
		err = p.reopen(ctx, e, t, anew)
	}
	return err
}

// sameDoor reports whether two placements are one database, entered in the same way.
func sameDoor(a, b tenant.Placement) bool {
	return a.Database == b.Database && a.Address == b.Address && bytes.Equal(a.SealedPassword, b.SealedPassword)
}

// relocated opens a tenant where it lives now, inside a switch; nil when it lives where it did.
func (p *Pool) relocated(ctx context.Context, e *entry, t tenant.Tenant) (*sqlstore.DB, error) {
	if sameDoor(t.Placement, p.tenantOf(e).Placement) {
		p.become(e, t)
		return nil, nil
	}
	next, err := p.openDatabase(ctx, &t)
	if err != nil {
		return nil, err
	}
	former := e.db.Direct()
	p.become(e, t)
	p.closing.Go(func() { _ = former.Close() })
	return next, nil
}

// Moved tells the pool that the leased tenant's data was switched to another database, under its services.
func (w *Workspace) Moved(t tenant.Tenant) {
	w.entry.pool.become(w.entry, t)
}

// become makes t what is known of an open tenant.
func (p *Pool) become(e *entry, t tenant.Tenant) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !sameDoor(t.Placement, e.tenant.Placement) {
		e.moved = e.looks
	}
	p.know(e, t)
	e.missed, e.lost, e.retry = nil, false, time.Time{}
}

// know keeps what is known of an open tenant. The caller has p.mu.
func (p *Pool) know(e *entry, t tenant.Tenant) {
	opened := e.tenant.State == tenant.Quarantined && t.Placement.Database == e.tenant.Placement.Database
	if t.Schema.Problem != "" && opened || t.Schema.Problem == tenant.SchemaHeld {
		t.State = worse(t.State, tenant.Quarantined) // it was opened with an older schema, and still is, or gets one now
	}
	e.tenant = t
	e.db.SetReadOnly(Refusal(t.State))
}

func (p *Pool) tenantOf(e *entry) tenant.Tenant {
	p.mu.Lock()
	defer p.mu.Unlock()
	return e.tenant
}

// retain takes a lease on an entry that is open; false when it is not, or not any more.
func (p *Pool) retain(e *entry) bool {
	<-e.ready
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.entries[e.id] != e || e.err != nil {
		return false
	}
	if e.place != nil {
		p.idle.Remove(e.place)
		e.place = nil
	}
	e.leases++
	return true
}

// Expel closes the database of a tenant and forgets it, whoever still holds a lease after a moment: for tenants that
// are gone. The next Acquire asks the directory again.
func (p *Pool) Expel(ctx context.Context, id ident.TenantID) {
	p.mu.Lock()
	e := p.entries[id]
	p.mu.Unlock()
	if e == nil {
		return
	}
	<-e.ready
	deadline := time.NewTimer(expelPatience)
	defer deadline.Stop()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for waiting := true; waiting; {
		p.mu.Lock()
		free := e.leases == 0
		p.mu.Unlock()
		if free {
			break
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			waiting = false
		case <-deadline.C:
			waiting = false
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.entries[id] == e {
		p.drop(e)
	}
}

// expelPatience is how long Expel waits for leases.
const expelPatience = 2 * time.Second
