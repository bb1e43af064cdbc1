package workspace

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claude-memory-backend/internal/claude"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// town is a directory in memory that counts its visitors; it keeps hints too.
type town struct {
	mu      sync.Mutex
	tenants map[ident.TenantID]tenant.Tenant
	asked   int
	silent  func(asked int) // may keep somebody who asks waiting; nil: nobody
	hints   map[ident.TenantID]span
	written int
}

// span is a hint.
type span struct{ due, last time.Time }

func (d *town) FindTenant(_ context.Context, id ident.TenantID) (tenant.Tenant, error) {
	d.mu.Lock()
	d.asked++
	asked, silent := d.asked, d.silent
	d.mu.Unlock()
	if silent != nil {
		silent(asked)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	t, ok := d.tenants[id]
	if !ok {
		return t, fault.Missing("town")
	}
	return t, nil
}

func (d *town) Hint(_ context.Context, id ident.TenantID, due, last time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.written++
	d.note(id, due, last)
	return nil
}

func (d *town) note(id ident.TenantID, due, last time.Time) {
	old, ok := d.hints[id]
	if !ok || due.Before(old.due) {
		old.due = due
	}
	if last.After(old.last) {
		old.last = last
	}
	d.hints[id] = old
}

func (d *town) Due(_ context.Context, now time.Time, _ int) (out []ident.TenantID, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, hint := range d.hints {
		if !hint.due.After(now) {
			out = append(out, id)
		}
	}
	return out, nil
}

func (d *town) Settle(_ context.Context, id ident.TenantID, now, next time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch hint, ok := d.hints[id]; {
	case !ok || hint.due.After(now):
	case hint.last.After(now):
		d.hints[id] = span{hint.last, hint.last}
	default:
		delete(d.hints, id)
	}
	if !next.IsZero() {
		d.note(id, next, next)
	}
	return nil
}

type house struct {
	t     testing.TB
	town  *town
	pool  *Pool
	place *Placements
	keys  *seal.Keyring
	slow  *claude.Scripted
}

func newHouse(t testing.TB, adjust ...func(*Config)) *house {
	t.Helper()
	keys, err := seal.NewKeyring("an entirely unguessable phrase, 0123456789")
	if err != nil {
		t.Fatal(err)
	}
	place, err := NewPlacements(t.Context(), PlacementsConfig{Root: t.TempDir(), Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, place: place, keys: keys, slow: claude.NewScripted(claude.ScriptedConfig{}),
		town: &town{tenants: map[ident.TenantID]tenant.Tenant{}, hints: map[ident.TenantID]span{}}}
	h.start(adjust...)
	return h
}

// start begins with a new pool and a new engine, as after a restart. Nobody's turn counts as left, and nobody gives up waiting
// for room, only since this machine is busy.
func (h *house) start(adjust ...func(*Config)) {
	bus := event.NewLocalBus()
	c := Config{Directory: h.town, Hints: h.town, Placements: h.place, Bus: bus, Sealer: h.keys, Sole: true,
		Engine: conversation.NewEngine(conversation.Config{Node: string(ident.New[ident.EventID]()), Sole: true, Bus: bus,
			Models: map[string]conversation.Model{"scripted": h.slow}, Known: []string{"scripted"}, Default: "scripted", Lease: time.Hour})}
	for _, f := range adjust {
		f(&c)
	}
	pool := NewPool(c)
	pool.patient = time.Minute
	h.pool = pool
	h.t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = c.Engine.Close(ctx)
		_ = pool.Close(context.Background())
	})
}

// hint is the one of a tenant.
func (d *town) hint(id ident.TenantID) (hint span, there bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	hint, there = d.hints[id]
	return hint, there
}

// until waits for what no signal announces.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it never came to pass: " + what)
		}
	}
}

// put makes t what the directory says.
func (d *town) put(t tenant.Tenant) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tenants[t.ID] = t
}

func (h *house) newTenant() tenant.Tenant {
	h.t.Helper()
	id := ident.New[ident.TenantID]()
	at, err := h.place.Provision(h.t.Context(), id)
	if err != nil {
		h.t.Fatal(err)
	}
	t := tenant.Tenant{ID: id, Account: ident.New[ident.AccountID](), Placement: at, State: tenant.Active}
	h.town.mu.Lock()
	defer h.town.mu.Unlock()
	h.town.tenants[id] = t
	return t
}

func (h *house) acquire(t tenant.Tenant) *Workspace {
	h.t.Helper()
	ws, err := h.pool.Acquire(h.t.Context(), ident.Actor{Account: t.Account}, t.ID)
	if err != nil {
		h.t.Fatal(err)
	}
	return ws
}

func TestAcquire(t *testing.T) {
	t.Run("many who ask at once share one opening", func(t *testing.T) {
		h := newHouse(t)
		me := h.newTenant()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				ws := h.acquire(me)
				defer ws.Release()
				if _, _, err := ws.Projects.List(t.Context(), ident.Actor{Account: me.Account}, project.Query{Limit: 1}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if h.town.asked != 1 {
			t.Errorf("the directory was asked %d times", h.town.asked)
		}
	})
	t.Run("to a stranger nothing is there", func(t *testing.T) {
		h := newHouse(t)
		_, err := h.pool.Acquire(t.Context(), ident.Actor{Account: ident.New[ident.AccountID]()}, h.newTenant().ID)
		_, never := h.pool.Acquire(t.Context(), ident.Actor{Account: "usr_x"}, ident.New[ident.TenantID]())
		if !fault.Is(err, fault.NotFound) || fault.CodeOf(err) != fault.CodeOf(never) {
			t.Errorf("%v against %v", err, never)
		}
	})
	t.Run("the least recently used makes room, a leased one never", func(t *testing.T) {
		h := newHouse(t, func(c *Config) { c.MaxOpen = 3 })
		kept := h.newTenant()
		lease := h.acquire(kept)
		defer lease.Release()
		for range 10 {
			h.acquire(h.newTenant()).Release()
		}
		if got := h.pool.Stats(); got.Open > 3 || got.Leased != 1 {
			t.Errorf("%+v", got)
		}
		if _, err := lease.Conversations.Create(t.Context(), ident.Actor{Account: kept.Account}, conversation.CreateInput{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("a full pool waits for a lease to come back", func(t *testing.T) {
		h := newHouse(t, func(c *Config) { c.MaxOpen = 1 })
		a, b := h.newTenant(), h.newTenant()
		first := h.acquire(a)
		got := make(chan *Workspace)
		go func() { got <- h.acquire(b) }()
		first.Release()
		(<-got).Release()
	})
	t.Run("everybody who waits for room gets it", func(t *testing.T) {
		h := newHouse(t, func(c *Config) { c.MaxOpen = 1 })
		first := h.acquire(h.newTenant())
		var wg sync.WaitGroup
		for range 4 {
			me := h.newTenant()
			wg.Go(func() {
				ws, err := h.pool.Acquire(t.Context(), ident.Actor{Account: me.Account}, me.ID)
				if err != nil {
					t.Error(err)
					return
				}
				ws.Release()
			})
		}
		first.Release()
		wg.Wait()
	})
	t.Run("databases that close slowly cost no descriptors without bound", func(t *testing.T) {
		h := newHouse(t, func(c *Config) { c.MaxOpen = 1 })
		free := make(chan struct{})
		var busy sync.WaitGroup
		for range 2 {
			me := h.newTenant()
			actor := ident.Actor{Account: me.Account}
			ws, editing := h.acquire(me), make(chan struct{})
			c, err := ws.Conversations.Create(t.Context(), actor, conversation.CreateInput{})
			if err != nil {
				t.Fatal(err)
			}
			// Somebody still works in it, so it cannot be closed at once.
			busy.Go(func() {
				if _, err := ws.Conversations.Edit(t.Context(), actor, c.ID, nil, func(*conversation.Details) error {
					close(editing)
					<-free
					return nil
				}); err != nil {
					t.Error(err)
				}
			})
			<-editing
			ws.Release()
		}
		h.acquire(h.newTenant()).Release()
		last := h.newTenant()
		var got sync.WaitGroup
		got.Go(func() { h.acquire(last).Release() })
		until(t, "it waits for room", func() bool {
			h.pool.mu.Lock()
			defer h.pool.mu.Unlock()
			return h.pool.waiting
		})
		if got := h.pool.Stats(); got.Open+got.Closing > 3 {
			t.Errorf("%+v", got)
		}
		close(free)
		got.Wait()
		busy.Wait()
	})
	t.Run("an opening that takes long keeps nobody else from opening", func(t *testing.T) {
		h := newHouse(t)
		for range cap(h.pool.turns) {
			if _, err := h.pool.turn(t.Context()); err != nil { // and never ends it
				t.Fatal(err)
			}
		}
		h.acquire(h.newTenant()).Release()
	})
	t.Run("who met an open database has not waited", func(t *testing.T) {
		h := newHouse(t)
		me := h.newTenant()
		cold, warm := h.acquire(me), h.acquire(me)
		defer cold.Release()
		defer warm.Release()
		if cold.Waited == 0 || warm.Waited != 0 {
			t.Errorf("waited %v, then %v", cold.Waited, warm.Waited)
		}
	})
	t.Run("a broken tenant is unavailable alone, and quickly", func(t *testing.T) {
		now := time.Now()
		h := newHouse(t, func(c *Config) { c.Now = func() time.Time { return now } })
		bad, good := h.newTenant(), h.newTenant()
		if err := os.WriteFile(h.place.path(bad.Placement.Database), []byte("rubbish"), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			_, err := h.pool.Acquire(t.Context(), ident.Actor{Account: bad.Account}, bad.ID)
			if !fault.Is(err, fault.Unavailable) {
				t.Fatalf("%v", err)
			}
		}
		if h.town.asked != 1 {
			t.Errorf("%d attempts within the pause", h.town.asked)
		}
		h.acquire(good).Release()
		if h.pool.Stats().Failed != 1 {
			t.Errorf("%+v", h.pool.Stats())
		}
	})
	t.Run("idle databases are closed", func(t *testing.T) {
		now := time.Now()
		h := newHouse(t, func(c *Config) { c.Now = func() time.Time { return now } })
		h.acquire(h.newTenant()).Release()
		now = now.Add(time.Hour)
		h.pool.closeIdle()
		if got := h.pool.Stats().Open; got != 0 {
			t.Errorf("%d open", got)
		}
	})
	t.Run("a closed pool opens nothing", func(t *testing.T) {
		h := newHouse(t)
		me := h.newTenant()
		_ = h.pool.Close(t.Context())
		if _, err := h.pool.Acquire(t.Context(), ident.Actor{Account: me.Account}, me.ID); fault.CodeOf(err) != "shutting_down" {
			t.Errorf("%v", err)
		}
	})
}

func TestFilesAreSealed(t *testing.T) {
	h := newHouse(t)
	me := h.newTenant()
	if _, err := sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: h.place.path(me.Placement.Database)}); err == nil {
		t.Error("a tenant's file opens without its key")
	}
	other := h.newTenant()
	key, err := h.keys.UnwrapKey(string(other.ID), other.Placement.WrappedKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: h.place.path(me.Placement.Database), Key: &key}); err == nil {
		t.Error("a tenant's file opens with another's key")
	}
	if _, err := h.keys.UnwrapKey(string(me.ID), other.Placement.WrappedKey); err == nil {
		t.Error("a wrapped key is good for another tenant")
	}
	if dir := filepath.Dir(h.place.path(me.Placement.Database)); filepath.Dir(filepath.Dir(dir)) != h.place.root {
		t.Errorf("not in hashed folders: %s", dir)
	}
}

func TestOrphanedTurnsAreMarked(t *testing.T) {
	h := newHouse(t)
	me := h.newTenant()
	actor := ident.Actor{Account: me.Account, Name: "Ada"}
	ws := h.acquire(me)
	c, err := ws.Conversations.Create(t.Context(), actor, conversation.CreateInput{})
	if err != nil {
		t.Fatal(err)
	}
	x, err := ws.Conversations.Send(t.Context(), actor, c.ID, conversation.SendInput{Text: "#slow #long 10000", Reply: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, there := h.town.hint(me.ID); !there {
		t.Fatal("a running turn left no hint")
	}
	// A second process starts on the same databases, as after a crash of the first.
	h.start()
	if err := h.pool.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if hint, there := h.town.hint(me.ID); there {
		t.Errorf("a hint is left: %v", hint)
	}
	db, err := h.place.Open(t.Context(), me.Placement)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	turn, _, m, err := sqlstore.NewTenantStore(db, nil).FindTurn(t.Context(), c.ID, x.Turn.ID)
	if err != nil || turn.State != conversation.Interrupted || m.State != conversation.Interrupted {
		t.Errorf("%s, %s, %v", turn.State, m.State, err)
	}
	ws.Release()
}

func TestOpeningRepairsALostHint(t *testing.T) {
	h := newHouse(t)
	me := h.newTenant()
	actor := ident.Actor{Account: me.Account, Name: "Ada"}
	ws := h.acquire(me)
	defer ws.Release()
	c, err := ws.Conversations.Create(t.Context(), actor, conversation.CreateInput{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ws.Conversations.Send(t.Context(), actor, c.ID, conversation.SendInput{Text: "#slow #long 10000", Reply: true}); err != nil {
		t.Fatal(err)
	}
	h.town.mu.Lock()
	clear(h.town.hints)
	h.town.mu.Unlock()
	// Another server cannot know whether the turn's owner lives: it has to come back when the lease is over.
	h.start(func(c *Config) {
		c.Sole = false
		c.Engine = conversation.NewEngine(conversation.Config{Node: "another", Bus: c.Bus})
	})
	h.acquire(me).Release()
	h.town.mu.Lock()
	defer h.town.mu.Unlock()
	if len(h.town.hints) != 1 {
		t.Error("nobody will look at the turn")
	}
}

func TestNoHintIsLost(t *testing.T) {
	now := time.Now()
	h := newHouse(t, func(c *Config) { c.Now = func() time.Time { return now } })
	me := h.newTenant()
	ws := h.acquire(me)
	defer ws.Release()
	e := ws.entry
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(e.Hint(t.Context(), now.Add(8*time.Second)))
	must(e.Hint(t.Context(), now.Add(9*time.Second)))
	if h.town.written != 1 {
		t.Errorf("%d hints written where one says it", h.town.written)
	}
	now = now.Add(10 * time.Second)
	t.Run("what is noted after the hint was settled is stored", func(t *testing.T) {
		must(e.settle(t.Context(), now, time.Time{}))
		must(e.Hint(t.Context(), now.Add(8*time.Second)))
		if hint := h.town.hints[me.ID]; !hint.due.Equal(now.Add(8 * time.Second)) {
			t.Errorf("stored: %v", hint)
		}
	})
	t.Run("so is what is noted after another server settled it", func(t *testing.T) {
		now = now.Add(20 * time.Second)
		must(h.town.Settle(t.Context(), me.ID, now, time.Time{}))
		if len(h.town.hints) != 0 {
			t.Errorf("left: %v", h.town.hints)
		}
		must(e.Hint(t.Context(), now.Add(8*time.Second)))
		if len(h.town.hints) != 1 {
			t.Error("nothing is stored")
		}
	})
	// A turn is hinted before it is committed: a look in between does not see it.
	t.Run("so is what was noted before a look that could not see it", func(t *testing.T) {
		now = now.Add(7 * time.Second)
		written := h.town.written
		must(e.Hint(t.Context(), now.Add(8*time.Second)))
		if h.town.written != written {
			t.Error("the hint that stands for it was not known")
		}
		now = now.Add(time.Second)
		h.pool.lookAtDue(t.Context())
		if len(h.town.hints) != 1 {
			t.Fatal("the hint is gone")
		}
		now = now.Add(20 * time.Second)
		h.pool.lookAtDue(t.Context())
		if len(h.town.hints) != 0 {
			t.Errorf("it stays for good: %v", h.town.hints)
		}
	})
}

// An open tenant that moved to where it cannot be opened yet is not served from where it was; it is tried again, once in
// each pause, until it can.
func TestATenantThatMovedIsNotServedFromWhereItWas(t *testing.T) {
	now := time.Now()
	h := newHouse(t, func(c *Config) { c.Now = func() time.Time { return now } })
	for name, hear := range map[string]func(id ident.TenantID){
		"refreshed": func(id ident.TenantID) {
			if err := h.pool.Refresh(t.Context(), id); err == nil {
				t.Error("opened what is not there")
			}
		},
		"awaited": func(id ident.TenantID) { h.pool.await(t.Context(), h.pool.entries[id]) },
	} {
		t.Run(name, func(t *testing.T) {
			was := h.newTenant()
			h.acquire(was).Release()
			is := was
			var err error
			if is.Placement, err = h.place.Make(t.Context(), tenant.Placement{Database: ident.New[ident.DatabaseID](), Kind: tenant.SQLite}); err != nil {
				t.Fatal(err)
			}
			file := h.place.path(is.Placement.Database)
			if err := os.Rename(file, file+".away"); err != nil {
				t.Fatal(err)
			}
			h.town.put(is)
			hear(was.ID)
			refused := func() {
				t.Helper()
				for _, actor := range []ident.Actor{{Account: was.Account}, ident.System("")} {
					if ws, err := h.pool.Acquire(t.Context(), actor, was.ID); err == nil {
						ws.Release()
						t.Error("served from where it was")
					} else if !fault.Is(err, fault.Unavailable) {
						t.Errorf("refused with %v", err)
					}
				}
			}
			refused()
			if err := os.Rename(file+".away", file); err != nil {
				t.Fatal(err)
			}
			refused()
			now = now.Add(pause)
			ws := h.acquire(was)
			if ws.Tenant.Placement.Database != is.Placement.Database {
				t.Errorf("opened at %s", ws.Tenant.Placement.Database)
			}
			ws.Release()
		})
	}
}

// Credentials that do not work yet are tried again, while those from before are used; what else changed holds at once.
func TestNewCredentialsAreTriedAgain(t *testing.T) {
	var now atomic.Pointer[time.Time]
	now.Store(new(time.Now()))
	h := newHouse(t, func(c *Config) { c.Now = func() time.Time { return *now.Load() } })
	was := h.newTenant()
	h.acquire(was).Release()
	bad := was
	bad.Placement.SealedPassword, bad.Placement.WrappedKey, bad.State = []byte("new"), []byte("not the key"), tenant.ReadOnly
	h.town.put(bad)
	if err := h.pool.Refresh(t.Context(), was.ID); err == nil {
		t.Fatal("opened with no key")
	}
	used := func(password string) {
		t.Helper()
		// Who finds that it is time asks once; what is done about the answer asks again, and is not waited for.
		returned := make(chan struct{})
		h.town.mu.Lock()
		first := h.town.asked + 1
		h.town.silent = func(asked int) {
			if asked > first {
				<-returned
			}
		}
		h.town.mu.Unlock()
		ws := h.acquire(was)
		close(returned)
		defer ws.Release()
		if string(ws.Tenant.Placement.SealedPassword) != password || ws.Tenant.State != tenant.ReadOnly {
			t.Errorf("%+v", ws.Tenant)
		}
		if _, _, err := ws.Projects.List(t.Context(), ident.Actor{Account: was.Account}, project.Query{Limit: 1}); err != nil {
			t.Error(err)
		}
		// Whoever finds that it is time has it tried, and does not wait for that.
		for tried := false; !tried; time.Sleep(time.Millisecond) {
			h.pool.mu.Lock()
			tried = !h.pool.entries[was.ID].anew
			h.pool.mu.Unlock()
		}
	}
	used("")
	good := bad
	good.Placement.WrappedKey = was.Placement.WrappedKey
	h.town.put(good)
	asked := h.town.asked
	used("") // the pause is not over
	if h.town.asked != asked {
		t.Error("asked before the pause was over")
	}
	now.Store(new(now.Load().Add(pause)))
	used("")
	used("new")
}

// halting is a directory whose first answer takes a while to arrive.
type halting struct {
	*town
	asked    atomic.Int32
	read, on chan struct{}
}

func (d *halting) FindTenant(ctx context.Context, id ident.TenantID) (tenant.Tenant, error) {
	t, err := d.town.FindTenant(ctx, id)
	if d.asked.Add(1) == 1 {
		close(d.read)
		<-d.on
	}
	return t, err
}

// Who had read what a tenant was, or where it lived, before that changed does not undo the change.
func TestTheLastLookCounts(t *testing.T) {
	h := newHouse(t)
	late := func(was, is tenant.Tenant) {
		t.Helper()
		h.acquire(was).Release()
		d := &halting{town: h.town, read: make(chan struct{}), on: make(chan struct{})}
		h.pool.Directory = d
		done := make(chan error)
		go func() { done <- h.pool.Refresh(t.Context(), was.ID) }()
		<-d.read
		h.town.put(is)
		if err := h.pool.Refresh(t.Context(), was.ID); err != nil {
			t.Error(err)
		}
		close(d.on)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	was := h.newTenant()
	is := was
	is.State = tenant.Suspended
	late(was, is)
	if ws, err := h.pool.Acquire(t.Context(), ident.Actor{Account: was.Account}, was.ID); err == nil {
		ws.Release()
		t.Error("it is open again")
	} else if fault.CodeOf(err) != "tenant_suspended" {
		t.Error(err)
	}

	was = h.newTenant()
	is = was
	var err error
	if is.Placement, err = h.place.Make(t.Context(), tenant.Placement{Database: ident.New[ident.DatabaseID](), Kind: tenant.SQLite}); err != nil {
		t.Fatal(err)
	}
	late(was, is)
	ws := h.acquire(was)
	defer ws.Release()
	if ws.Tenant.Placement.Database != is.Placement.Database {
		t.Error("it is where it was again")
	}

	// So do credentials.
	was = h.newTenant()
	is = was
	is.Placement.SealedPassword = []byte("new")
	late(was, is)
	again := h.acquire(was)
	defer again.Release()
	if got := again.Tenant.Placement.SealedPassword; string(got) != "new" {
		t.Errorf("it is entered with %q again", got)
	}
}

// Who finds out where a tenant lives, while somebody who knew an earlier place opens it there, has it opened where it lives.
func TestAnEarlierPlaceIsNotKept(t *testing.T) {
	h := newHouse(t)
	was := h.newTenant()
	h.acquire(was).Release()
	elsewhere := func() tenant.Tenant {
		t.Helper()
		is := was
		var err error
		if is.Placement, err = h.place.Make(t.Context(), tenant.Placement{Database: ident.New[ident.DatabaseID](), Kind: tenant.SQLite}); err != nil {
			t.Fatal(err)
		}
		return is
	}
	first, last := elsewhere(), elsewhere()
	e := h.pool.entries[was.ID]
	lives := func(when string) {
		t.Helper()
		ws := h.acquire(was)
		defer ws.Release()
		if ws.Tenant.Placement.Database != last.Placement.Database {
			t.Errorf("%s: it is open at an earlier place", when)
		}
	}
	look := func(read tenant.Tenant) (tenant.Tenant, int) {
		t.Helper()
		h.town.put(read)
		found, turn, err := h.pool.look(t.Context(), e)
		if err != nil || turn == 0 {
			t.Fatal(turn, err)
		}
		return found, turn
	}

	found, turn := look(first)
	d := &halting{town: h.town, read: make(chan struct{}), on: make(chan struct{})}
	h.pool.Directory = d
	h.town.put(last)
	done := make(chan error)
	go func() { done <- h.pool.Refresh(t.Context(), was.ID) }()
	<-d.read
	if err := h.pool.reopen(t.Context(), e, found, turn); err != nil {
		t.Error(err)
	}
	close(d.on)
	if err := <-done; err != nil {
		t.Error(err)
	}
	lives("opened while it was looked up")

	first = elsewhere()
	found, turn = look(first)
	last = elsewhere()
	newer, after := look(last)
	if err := errors.Join(h.pool.reopen(t.Context(), e, newer, after), h.pool.reopen(t.Context(), e, found, turn)); err != nil {
		t.Error(err)
	}
	lives("opened after the last one")
}

// What a look found where the tenant was does not hold once a later one found that it lives elsewhere, and could not open it.
func TestWhatIsLostStaysLost(t *testing.T) {
	h := newHouse(t)
	was := h.newTenant()
	h.acquire(was).Release()
	d := &halting{town: h.town, read: make(chan struct{}), on: make(chan struct{})}
	h.pool.Directory = d
	done := make(chan error)
	go func() { done <- h.pool.Refresh(t.Context(), was.ID) }()
	<-d.read
	is := was
	is.Placement = tenant.Placement{Database: ident.New[ident.DatabaseID](), Kind: tenant.SQLite, WrappedKey: was.Placement.WrappedKey}
	h.town.put(is)
	if err := h.pool.Refresh(t.Context(), was.ID); err == nil {
		t.Fatal("opened where nothing is")
	}
	close(d.on)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if ws, err := h.pool.Acquire(t.Context(), ident.Actor{Account: was.Account}, was.ID); err == nil {
		ws.Release()
		t.Error("served from where it was")
	} else if !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
}

// pastLog is a master's log of which everything was said before the pool began to follow it.
type pastLog struct{}

func (pastLog) Since(context.Context, event.Seq, int) ([]event.Event, error) { return nil, nil }
func (pastLog) Head(context.Context) (event.Seq, error)                      { return 7, nil }

// What is decided about a tenant between its opening and the first look into the master's log is heard of.
func TestNothingIsMissedBeforeTheLogIsFollowed(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.Master = pastLog{} })
	me := h.newTenant()
	h.acquire(me).Release()
	me.State = tenant.Suspended
	h.town.put(me)
	h.pool.followMaster(t.Context())
	until(t, "what was decided is heard of", func() bool {
		ws, err := h.pool.Acquire(t.Context(), ident.Actor{Account: me.Account}, me.ID)
		if fault.CodeOf(err) == "tenant_suspended" {
			return true
		}
		if err != nil {
			t.Fatal(err)
		}
		ws.Release()
		return false
	})
}
