package workspace

import (
	"context"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/tenant"
)

// ear keeps what it hears.
type ear struct {
	mu   sync.Mutex
	seqs []event.Seq
	lost []event.Seq
	news chan struct{}
}

func newEar() *ear { return &ear{news: make(chan struct{}, 1)} }

func (e *ear) Tell(_ context.Context, ws *Workspace, events []event.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range events {
		e.seqs = append(e.seqs, ev.Seq)
	}
	e.stir()
}

func (e *ear) Lost(at event.Seq) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lost = append(e.lost, at)
	e.stir()
}

func (e *ear) stir() {
	select {
	case e.news <- struct{}{}:
	default:
	}
}

// until waits until what was heard is enough.
func (e *ear) until(t *testing.T, enough func() bool) {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		e.mu.Lock()
		ok := enough()
		e.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-e.news:
		case <-late:
			t.Fatalf("heard %v, lost %v", e.seqs, e.lost)
		}
	}
}

func (h *house) write(t testing.TB, me tenant.Tenant) {
	t.Helper()
	ws := h.acquire(me)
	defer ws.Release()
	if _, err := ws.Conversations.Create(t.Context(), ident.Actor{Account: me.Account}, conversation.CreateInput{}); err != nil {
		t.Error(err)
	}
}

func TestFeedsTellEverybodyEverythingOnce(t *testing.T) {
	h := newHouse(t)
	feeds := NewFeeds(h.pool, time.Hour)
	defer feeds.Close()
	me, other := h.newTenant(), h.newTenant()
	h.write(t, me)
	const writers, each = 4, 60
	var writing, listening sync.WaitGroup
	for range writers {
		writing.Go(func() {
			for range each {
				h.write(t, me)
				h.write(t, other)
			}
		})
	}
	const head = writers*each + 1
	for range 6 { // who comes at any time hears all that comes after
		listening.Go(func() {
			e := newEar()
			at, leave, err := feeds.Listen(t.Context(), me.ID, e)
			if err != nil {
				t.Error(err)
				return
			}
			defer leave()
			e.until(t, func() bool { return len(e.seqs) == int(head-at) })
			for i, n := range e.seqs {
				if n != at+event.Seq(i)+1 {
					t.Errorf("after %d: %v", at, e.seqs)
				}
			}
		})
	}
	writing.Wait()
	listening.Wait()
	if n := feeds.Open(); n != 0 {
		t.Errorf("%d feeds that nobody listens to", n)
	}
	// A feed that was reading when its last listener left lets go of the tenant a moment later.
	until(t, "nobody leases a tenant", func() bool { return h.pool.Stats().Leased == 0 })
}

func TestFeedsKeepNoTenantOpen(t *testing.T) {
	h := newHouse(t)
	feeds := NewFeeds(h.pool, time.Hour)
	defer feeds.Close()
	me := h.newTenant()
	h.write(t, me)
	e := newEar()
	_, leave, err := feeds.Listen(t.Context(), me.ID, e)
	if err != nil {
		t.Fatal(err)
	}
	h.pool.Expel(t.Context(), me.ID)
	if st := h.pool.Stats(); st.Open != 0 {
		t.Errorf("%+v", st)
	}
	h.write(t, me)
	e.until(t, func() bool { return len(e.seqs) == 1 && e.seqs[0] == 2 })
	if err := feeds.CatchUp(t.Context(), me.ID); err != nil {
		t.Error(err)
	}
	leave()
	leave()
	h.write(t, me)
	if err := feeds.CatchUp(t.Context(), me.ID); err != nil || len(e.seqs) != 1 {
		t.Errorf("who left heard %v, %v", e.seqs, err)
	}
	if _, _, err := feeds.Listen(t.Context(), ident.New[ident.TenantID](), newEar()); !fault.Is(err, fault.NotFound) || feeds.Open() != 0 {
		t.Errorf("a tenant that never was: %v, %d feeds", err, feeds.Open())
	}
}

func TestFeedsTellOfAnotherLog(t *testing.T) {
	h := newHouse(t)
	feeds := NewFeeds(h.pool, time.Hour)
	defer feeds.Close()
	me := h.newTenant()
	h.write(t, me)
	h.write(t, me)
	e := newEar()
	_, leave, err := feeds.Listen(t.Context(), me.ID, e)
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	ws := h.acquire(me)
	ch := event.NewChange(ident.System(""), time.Now())
	ch.Add("data.erased", string(me.ID), map[string]any{})
	if _, err := ws.Empty(t.Context(), ch); err != nil {
		t.Fatal(err)
	}
	ws.Release()
	e.until(t, func() bool { return len(e.lost) == 1 && e.lost[0] == 3 })
	h.write(t, me)
	e.until(t, func() bool { return len(e.seqs) == 1 && e.seqs[0] == 4 })
}

// stubborn holds its tenant's feed up.
type stubborn struct{ reached, on chan struct{} }

func (s *stubborn) Tell(context.Context, *Workspace, []event.Event) {
	close(s.reached)
	<-s.on
}

func (*stubborn) Lost(event.Seq) {}

func TestFeedsKeepNobodyWhoHasGone(t *testing.T) {
	h := newHouse(t)
	feeds := NewFeeds(h.pool, time.Hour)
	defer feeds.Close()
	me := h.newTenant()
	s := &stubborn{reached: make(chan struct{}), on: make(chan struct{})}
	_, leave, err := feeds.Listen(t.Context(), me.ID, s)
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	defer close(s.on)
	h.write(t, me)
	<-s.reached
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := feeds.Listen(gone, me.ID, newEar()); !fault.Is(err, fault.Canceled) {
		t.Errorf("who wants to listen: %v", err)
	}
	if err := feeds.CatchUp(gone, me.ID); !fault.Is(err, fault.Canceled) {
		t.Errorf("who wants to catch up: %v", err)
	}
}
