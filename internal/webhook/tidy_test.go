package webhook_test

import (
	"testing"
	"time"

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
