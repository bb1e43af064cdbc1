package webhook_test

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/webhook"
)

// TestWhatIsOldIsForgotten also where no endpoint is active any more, and nobody would look but for that.
func TestWhatIsOldIsForgotten(t *testing.T) {
	for _, state := range []webhook.State{webhook.Active, webhook.Paused} {
		t.Run(string(state), func(t *testing.T) {
			w := newWorld(t)
			s := newSink(t, nil)
			i := w.hook(s.URL)
			w.later(0)
			w.happen(1, "")
			<-s.got
			w.last(i)
			if state != webhook.Active {
				if _, err := w.Edit(t.Context(), ada, i.Endpoint.ID, nil, func(e *webhook.Edit) error { e.State = state; return nil }); err != nil {
					t.Fatal(err)
				}
			}
			begun := w.clock.Now()
			for looks := 0; ; looks++ {
				next, err := w.Sweep(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				list, _, err := w.Deliveries(t.Context(), ada, i.Endpoint.ID, webhook.DeliveryQuery{Limit: 1})
				if err != nil {
					t.Fatal(err)
				}
				if len(list) == 0 {
					if age := w.clock.Now().Sub(begun); age < 30*24*time.Hour || age > 30*24*time.Hour+2*time.Hour {
						t.Errorf("forgotten after %v", age)
					}
					if state != webhook.Active && (!next.IsZero() || looks > 3) {
						t.Errorf("%d looks, and one more at %v", looks, next)
					}
					return
				}
				if next.IsZero() || looks > 1000 {
					t.Fatalf("after %d looks nobody looks any more", looks)
				}
				w.clock.Pass(max(next.Sub(w.clock.Now()), time.Minute))
			}
		})
	}
}

// TestATenantThatIsOpenedIsTidied: what was left behind before anybody was asked to look is seen when somebody opens it.
func TestATenantThatIsOpenedIsTidied(t *testing.T) {
	w := newWorld(t)
	s := newSink(t, nil)
	i := w.hook(s.URL)
	w.happen(1, "")
	<-s.got
	w.last(i)
	if _, err := w.Edit(t.Context(), ada, i.Endpoint.ID, nil, func(e *webhook.Edit) error { e.State = webhook.Paused; return nil }); err != nil {
		t.Fatal(err)
	}
	w.stop()
	w.start()
	w.part.owed = nil
	w.Wake()
	w.part.settled()
	if len(w.part.owed) != 1 || w.part.owed[0].Sub(w.clock.Now()) < 29*24*time.Hour {
		t.Errorf("owed %v", w.part.owed)
	}
	w.clock.Pass(31 * 24 * time.Hour)
	w.Wake()
	w.part.settled()
	if list, _, err := w.Deliveries(t.Context(), ada, i.Endpoint.ID, webhook.DeliveryQuery{Limit: 1}); err != nil || len(list) != 0 {
		t.Errorf("%v %v", list, err)
	}
}

// TestADeletedOneGoes in pieces, after the answer: also where the process that was asked died.
func TestADeletedOneGoes(t *testing.T) {
	for _, dies := range []bool{false, true} {
		t.Run(map[bool]string{false: "here", true: "by another process"}[dies], func(t *testing.T) {
			w := newWorld(t)
			i := w.hook(newSink(t, nil).URL)
			w.stop() // nobody sends
			w.happen(1_200, "")
			left := func() int {
				t.Helper()
				due, err := w.store.Due(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return len(due)
			}
			if !dies {
				w.start()
			}
			w.part.owed = nil
			if err := w.Delete(t.Context(), ada, i.Endpoint.ID, nil); err != nil {
				t.Fatal(err)
			}
			w.part.mu.Lock()
			owed := slices.Clone(w.part.owed)
			w.part.mu.Unlock()
			if len(owed) == 0 || owed[0].Sub(w.clock.Now()) > time.Minute {
				t.Errorf("owed: %v", owed)
			}
			if _, err := w.Find(t.Context(), ada, i.Endpoint.ID); fault.CodeOf(err) != "not_found" {
				t.Errorf("found: %v", err)
			}
			if dies {
				if n := left(); n != 1 {
					t.Fatalf("%d are left", n)
				}
				w.start()
				w.later(time.Minute)
			}
			w.part.settled()
			if n := left(); n != 0 {
				t.Errorf("%d are left", n)
			}
			if n, more, err := w.store.Purge(t.Context(), 1); n != 0 || more || err != nil {
				t.Errorf("%d, %v, %v", n, more, err)
			}
		})
	}
}

// TestATestThatIsCut: its server died, or was stopped. It has failed then; sending it later would surprise whoever asked.
func TestATestThatIsCut(t *testing.T) {
	for name, c := range map[string]struct{ sole, paused bool }{
		"and the next server is alone": {sole: true}, "and others may live": {}, "and the webhook is paused": {paused: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(config *webhook.Config) { config.Sole = c.sole })
			s := newSink(t, nil)
			i := w.hook(s.URL)
			if c.paused {
				if _, err := w.Edit(t.Context(), ada, i.Endpoint.ID, nil, func(e *webhook.Edit) error { e.State = webhook.Paused; return nil }); err != nil {
					t.Fatal(err)
				}
			}
			w.stop()
			ch := event.NewChange(ada, w.clock.Now())
			ch.Add("webhook.tested", string(i.Endpoint.ID), map[string]any{})
			d := webhook.Delivery{ID: ident.New[ident.DeliveryID](), Webhook: i.Endpoint.ID, Event: ident.New[ident.EventID](), Type: "webhook.test",
				State: webhook.Pending, Attempts: 1, Tries: 9, Due: w.clock.Now().Add(30 * time.Second), Claim: "dead.1", CreatedAt: w.clock.Now()}
			if err := w.store.InsertTest(t.Context(), d, []byte("{}"), ch); err != nil {
				t.Fatal(err)
			}
			w.start()
			w.later(time.Second)
			if !c.sole {
				if d := w.last(i); d.State != webhook.Pending {
					t.Errorf("its sender may live: %+v", d)
				}
				w.later(29 * time.Second)
			}
			got := w.last(i)
			if got.State != webhook.Failed || len(got.Tried) != 1 || got.Tried[0].Error != webhook.Interrupted || got.Claim != "" || len(s.got) > 0 {
				t.Errorf("%+v, %d were sent", got, len(s.got))
			}
			if e := w.endpoint(i); e.FailingSince != nil {
				t.Errorf("%+v", e)
			}
			if c.paused {
				return
			}
			if _, err := w.Redeliver(t.Context(), ada, i.Endpoint.ID, d.ID, nil); err != nil {
				t.Fatal(err)
			}
			<-s.got
			if got := w.last(i); got.State != webhook.Succeeded || got.Attempts != 2 {
				t.Errorf("sent again: %+v", got)
			}
		})
	}
	t.Run("by a stop", func(t *testing.T) {
		w := newWorld(t)
		i := w.hook(newSink(t, func(_ http.ResponseWriter, r *http.Request) {
			w.stop()
			<-r.Context().Done()
		}).URL)
		d, err := w.Test(t.Context(), ada, i.Endpoint.ID, nil)
		if err != nil || d.State != webhook.Failed || len(d.Tried) != 1 || d.Tried[0].Error != webhook.Interrupted {
			t.Errorf("%+v %v", d, err)
		}
	})
}
