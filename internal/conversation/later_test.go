package conversation_test

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/internal/clocktest"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// promiser promises every answer for later, once it is let.
type promiser struct {
	prompts chan conversation.Prompt
	let     chan struct{} // closed: at once
	deaf    bool          // promises although it was told to stop
}

func newPromiser() *promiser {
	p := &promiser{prompts: make(chan conversation.Prompt, 10), let: make(chan struct{})}
	close(p.let)
	return p
}

func (p *promiser) Answer(ctx context.Context, q conversation.Prompt, _ func(string)) (conversation.Answer, error) {
	p.prompts <- q
	select {
	case <-p.let:
		return conversation.Answer{Later: true}, nil
	case <-ctx.Done():
		if p.deaf {
			return conversation.Answer{Later: true}, nil
		}
		return conversation.Answer{}, ctx.Err()
	}
}

func newClock() *clocktest.Clock { return clocktest.New(time.Now().UTC().Truncate(time.Second)) }

const teal = `{"content":"Teal."}`

func delivery(text, body string) conversation.Delivery {
	return conversation.Delivery{Answer: conversation.Answer{Text: text, StopReason: "end_turn", Model: "m-9", CostMicroUSD: 5,
		Usage: conversation.Usage{InputTokens: 3, OutputTokens: 2}}, Body: []byte(body), Until: time.Now().Add(24 * time.Hour)}
}

func (b *bench) deliver(x conversation.Exchange, d conversation.Delivery) (conversation.Turn, conversation.Reception) {
	b.t.Helper()
	turn, got, err := b.s.Deliver(b.t.Context(), ident.System("req-1"), x.Turn.Conversation, x.Turn.ID, d)
	if err != nil {
		b.t.Fatal(err)
	}
	return turn, got
}

// waits follows a turn until it waits, and returns it as it was told.
func (b *bench) waits(x conversation.Exchange) conversation.Turn {
	b.t.Helper()
	var turn conversation.Turn
	err := b.s.Follow(b.t.Context(), b.actor, x.Turn.Conversation, x.Turn.ID, "0", func(m conversation.Moment) error {
		if m.Type != conversation.MomentWaiting {
			b.t.Errorf("%s before it waits", m.Type)
		}
		turn = *m.Turn
		return context.Canceled
	})
	if turn.State != conversation.Waiting {
		b.t.Fatalf("it does not wait: %v", err)
	}
	return turn
}

// events are the types of all that was committed, in order; when a title is made is nobody's business here.
func (b *bench) events() (types []string) {
	b.t.Helper()
	list, err := b.store.Since(b.t.Context(), 0, 100)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range list {
		if e.Type != "conversation.titled" {
			types = append(types, e.Type)
		}
	}
	return types
}

func TestAnAnswerIsDeliveredLater(t *testing.T) {
	p, now := newPromiser(), newClock()
	b := open(t, p, func(c *conversation.Config) { c.Now, c.CallbackTime = now.Now, time.Minute })
	x := b.send(b.conversation().ID, "Which colour?")
	told, waiting := make(chan []conversation.Moment, 1), make(chan struct{})
	go func() {
		var all []conversation.Moment
		_ = b.s.Follow(context.Background(), b.actor, x.Turn.Conversation, x.Turn.ID, "", func(m conversation.Moment) error {
			if all = append(all, m); m.Type == conversation.MomentWaiting {
				close(waiting)
			}
			return nil
		})
		told <- all
	}()
	deadline := now.Now().Add(time.Minute)
	q := <-p.prompts
	if q.Callback != "https://here.example/"+string(x.Turn.ID) || !q.Until.Equal(deadline) {
		t.Errorf("the model was given %q until %v", q.Callback, q.Until)
	}
	turn := b.waits(x)
	if !turn.Lease.Equal(deadline) || turn.Node != "" {
		t.Errorf("%+v", turn)
	}
	until(t, "no goroutine waits with it", func() bool { return b.engine.Count() == 0 })
	b.part.mu.Lock()
	if !slices.ContainsFunc(b.part.hints, deadline.Equal) {
		t.Errorf("hints %v", b.part.hints)
	}
	b.part.mu.Unlock()
	seen, err := b.s.Turn(t.Context(), b.actor, x.Turn.Conversation, x.Turn.ID)
	if err != nil || seen.Turn.State != conversation.Waiting || seen.Assistant.State != conversation.Streaming {
		t.Fatalf("%+v %v", seen.Turn, err)
	}

	d := delivery("Teal.", teal)
	d.Answer.Blocks = []json.RawMessage{json.RawMessage(`{"type":"thinking","thinking":"hm","signature":"s"}`),
		json.RawMessage(`{"type":"text","text":"Teal."}`)}
	<-waiting
	now.Pass(20 * time.Second)
	if turn, got := b.deliver(x, d); got != conversation.Taken || turn.State != conversation.Completed {
		t.Fatalf("%s %+v", got, turn)
	}
	end := b.await(x)
	m := end.Assistant
	if m.Content != "Teal." || m.State != conversation.Completed || m.Model != "m-9" || m.CostMicroUSD != 5 || m.Usage.OutputTokens != 2 ||
		m.StopReason != "end_turn" || m.FirstTokenMS < 20_000 || m.LatencyMS < 20_000 || m.PrefixHash == "" || end.Turn.FinishedAt == nil {
		t.Errorf("%+v", m)
	}
	if want := `[` + string(d.Answer.Blocks[0]) + `,` + string(d.Answer.Blocks[1]) + `]`; string(m.AllBlocks()) != want {
		t.Errorf("blocks %s", m.AllBlocks())
	}
	var types []string
	all := <-told
	for _, m := range all {
		types = append(types, string(m.Type))
	}
	if want := []string{"turn.started", "turn.waiting", "message.delta", "message.completed", "turn.completed"}; !slices.Equal(types, want) {
		t.Errorf("told %v", types)
	}
	t.Run("who comes back to the stream hears the rest", func(t *testing.T) {
		for i, m := range all[:len(all)-1] {
			var rest []string
			if err := b.s.Follow(t.Context(), b.actor, x.Turn.Conversation, x.Turn.ID, m.ID, func(m conversation.Moment) error {
				rest = append(rest, string(m.Type))
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			want := slices.DeleteFunc(slices.Clone(types[i+1:]), func(s string) bool { return s == "turn.waiting" }) // it waits no more
			if !slices.Equal(rest, want) {
				t.Errorf("after %s (%s): %v", m.ID, m.Type, rest)
			}
		}
	})
	t.Run("what follows changes nothing", func(t *testing.T) {
		before := b.events()
		if _, got := b.deliver(x, d); got != conversation.Repeated {
			t.Errorf("the same: %s", got)
		}
		if _, got := b.deliver(x, delivery("Red.", `{"content":"Red."}`)); got != conversation.Conflicting {
			t.Errorf("another: %s", got)
		}
		if _, err := b.s.Stop(t.Context(), b.actor, x.Turn.Conversation, x.Turn.ID); err != nil {
			t.Error(err)
		}
		now.Pass(time.Hour)
		if _, err := b.s.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
		if got := b.await(x); got.Assistant.Content != "Teal." || got.Turn.State != conversation.Completed {
			t.Errorf("%+v", got.Turn)
		}
		if after := b.events(); !slices.Equal(before, after) {
			t.Errorf("%v", after)
		}
	})
	if got, want := b.events(), []string{"conversation.created", "message.created", "turn.started", "turn.waiting", "message.completed",
		"turn.completed"}; !slices.Equal(got, want) {
		t.Errorf("the log has %v", got)
	}
}

func TestAWorkflowReportsItsFailureLater(t *testing.T) {
	b := open(t, newPromiser())
	x := b.send(b.conversation().ID, "Go")
	b.waits(x)
	if turn, got := b.deliver(x, conversation.Delivery{Body: []byte("no"), Until: time.Now().Add(time.Hour),
		Failure: fault.New(fault.Unavailable, "x", conversation.CodeProviderOverloaded, "the provider is overloaded")}); got != conversation.Taken || turn.State != conversation.Failed || turn.ErrorCode != conversation.CodeProviderOverloaded ||
		turn.ErrorDetail != "the provider is overloaded" {
		t.Errorf("%s %+v", got, turn)
	}
	if _, err := b.s.Retry(t.Context(), b.actor, x.Turn.Conversation, x.Turn.ID, conversation.AgainInput{}); err != nil {
		t.Error(err)
	}
}

func TestAWaitingTurnEndsWithoutItsAnswer(t *testing.T) {
	t.Run("stopped, at once and from any node", func(t *testing.T) {
		b := open(t, newPromiser(), func(c *conversation.Config) { c.Sole = false })
		x := b.send(b.conversation().ID, "Go")
		b.waits(x)
		there, bus := *b, &lossy{LocalBus: event.NewLocalBus(), said: make(chan event.Signal, 100)}
		there.boot(newPromiser(), func(c *conversation.Config) { c.Sole, c.StopPatience, c.Bus = false, time.Hour, bus })
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		turn, err := there.s.Stop(ctx, there.actor, x.Turn.Conversation, x.Turn.ID)
		// An owner is asked and waited for; here there is none.
		if err != nil || turn.State != conversation.Stopped || turn.ErrorCode != "" {
			t.Fatalf("%+v %v", turn, err)
		}
		for len(bus.said) > 0 {
			if sig := <-bus.said; sig.Kind == event.Stop {
				t.Errorf("somebody was asked: %+v", sig)
			}
		}
		if _, got := b.deliver(x, delivery("Teal.", teal)); got != conversation.Late {
			t.Errorf("%s", got)
		}
		if got := b.await(x); got.Turn.State != conversation.Stopped || got.Assistant.Content != "" {
			t.Errorf("%+v", got.Turn)
		}
	})
	for name, deaf := range map[string]bool{"stopped before its promise": false, "stopped while its promise came": true} {
		t.Run(name, func(t *testing.T) {
			p := newPromiser()
			p.let, p.deaf = make(chan struct{}), deaf
			b := open(t, p)
			x := b.send(b.conversation().ID, "Go")
			<-p.prompts
			turn, err := b.s.Stop(t.Context(), b.actor, x.Turn.Conversation, x.Turn.ID)
			if err != nil || turn.State != conversation.Stopped || turn.ErrorCode != "" {
				t.Fatalf("%+v %v", turn, err)
			}
			if got := b.events(); slices.Contains(got, "turn.waiting") {
				t.Errorf("%v", got)
			}
		})
	}
	for name, look := range map[string]func(b *bench, x conversation.Exchange) error{
		"timed out, found by the sweep": func(b *bench, _ conversation.Exchange) error {
			next, err := b.s.Sweep(b.t.Context())
			if !next.IsZero() {
				b.t.Errorf("look again at %v", next)
			}
			return err
		},
		"timed out, found by a reader of the turn": func(b *bench, x conversation.Exchange) error {
			_, err := b.s.Turn(b.t.Context(), b.actor, x.Turn.Conversation, x.Turn.ID)
			return err
		},
		"timed out, found by a reader of the messages": func(b *bench, x conversation.Exchange) error {
			ms, _, err := b.s.Messages(b.t.Context(), b.actor, x.Turn.Conversation, conversation.MessageQuery{Limit: 10})
			if err == nil && ms[0].State != conversation.Failed {
				b.t.Errorf("shown as %s", ms[0].State)
			}
			return err
		},
		"timed out, found by the answer that comes too late": func(b *bench, x conversation.Exchange) error {
			if turn, got := b.deliver(x, delivery("Teal.", teal)); got != conversation.Late || turn.State != conversation.Failed {
				b.t.Errorf("%s %+v", got, turn)
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			now := newClock()
			b := open(t, newPromiser(), func(c *conversation.Config) { c.Now, c.CallbackTime = now.Now, time.Minute })
			x := b.send(b.conversation().ID, "Go")
			deadline := b.waits(x).Lease
			now.Pass(time.Minute - time.Microsecond)
			if next, err := b.s.Sweep(t.Context()); err != nil || !next.Equal(deadline) {
				t.Fatalf("look again at %v, %v", next, err)
			}
			now.Pass(time.Microsecond)
			if err := look(b, x); err != nil {
				t.Fatal(err)
			}
			// The log, and not a reader, who would end it.
			if got := b.events(); !slices.Contains(got, "turn.failed") {
				t.Fatalf("%v", got)
			}
			end := b.await(x)
			if end.Turn.State != conversation.Failed || end.Turn.ErrorCode != conversation.CodeCallbackTimeout || end.Assistant.State != conversation.Failed {
				t.Errorf("%+v", end.Turn)
			}
			if _, got := b.deliver(x, delivery("Teal.", teal)); got != conversation.Late {
				t.Errorf("%s", got)
			}
		})
	}
	t.Run("deleted with its conversation", func(t *testing.T) {
		b := open(t, newPromiser())
		x := b.send(b.conversation().ID, "Go")
		b.waits(x)
		if err := b.s.Delete(t.Context(), b.actor, x.Turn.Conversation, nil); err != nil {
			t.Fatal(err)
		}
		_, _, err := b.s.Deliver(t.Context(), ident.System(""), x.Turn.Conversation, x.Turn.ID, delivery("Teal.", teal))
		wantCode(t, err, "not_found")
	})
}

func TestAWaitingTurnNeedsNobody(t *testing.T) {
	for name, sole := range map[string]bool{"a server alone": true, "one of several": false} {
		t.Run(name, func(t *testing.T) {
			b := open(t, newPromiser(), func(c *conversation.Config) { c.Sole = sole })
			x := b.send(b.conversation().ID, "Go")
			b.waits(x)
			// As after kill -9: nobody has ended anything.
			b.boot(newPromiser(), func(c *conversation.Config) { c.Sole = sole })
			if _, err := b.s.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := b.waits(x); got.State != conversation.Waiting {
				t.Fatalf("%+v", got)
			}
			if _, got := b.deliver(x, delivery("Teal.", teal)); got != conversation.Taken {
				t.Errorf("%s", got)
			}
			if got := b.await(x); got.Assistant.Content != "Teal." {
				t.Errorf("%+v", got.Turn)
			}
		})
	}
	t.Run("a server that stops", func(t *testing.T) {
		p := newPromiser()
		p.let = make(chan struct{})
		b := open(t, p)
		x := b.send(b.conversation().ID, "Go")
		<-p.prompts
		closed := make(chan error, 1)
		go func() { closed <- b.engine.Close(t.Context()) }()
		close(p.let)
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		b.boot(newPromiser())
		b.waits(x)
	})
}

// An answer may be quicker than the promise of it.
func TestAnAnswerOvertakesItsPromise(t *testing.T) {
	for name, heard := range map[string]bool{"and whoever waits for that is told": true, "and nobody is told": false} {
		t.Run(name, func(t *testing.T) {
			p := newPromiser()
			p.let = make(chan struct{})
			b := open(t, p, func(c *conversation.Config) {
				c.Bus = &lossy{LocalBus: event.NewLocalBus(), pass: func(s event.Signal) bool { return heard || s.Kind != event.Stop }}
			})
			x := b.send(b.conversation().ID, "Go")
			<-p.prompts
			if _, got := b.deliver(x, delivery("Teal.", teal)); got != conversation.Taken {
				t.Fatalf("%s", got)
			}
			if heard {
				if got := b.await(x); got.Assistant.Content != "Teal." {
					t.Errorf("%+v", got.Turn)
				}
			}
			close(p.let)
			if err := b.engine.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.boot(newPromiser())
			if got := b.await(x); got.Turn.State != conversation.Completed || got.Assistant.Content != "Teal." {
				t.Errorf("the promise undid it: %+v", got.Turn)
			}
			if got := b.events(); slices.Contains(got, "turn.waiting") {
				t.Errorf("%v", got)
			}
		})
	}

	t.Run("but not what is being said already", func(t *testing.T) {
		p := newPuppet()
		b := open(t, p, func(c *conversation.Config) { c.FlushAge = time.Millisecond })
		x := b.send(b.conversation().ID, "Go")
		p.say <- "Te"
		stored(t, b, x, "Te")
		if _, got := b.deliver(x, delivery("Red.", `{"content":"Red."}`)); got != conversation.Early {
			t.Errorf("%s", got)
		}
		p.say <- "al."
		close(p.say)
		if got := b.await(x); got.Assistant.Content != "Teal." {
			t.Errorf("%+v", got.Assistant)
		}
	})
}

// What goes on where it was cut begins with what there was, however the rest comes.
func TestAContinuedAnswerIsDeliveredLater(t *testing.T) {
	puppet := newPuppet()
	b := open(t, puppet)
	x := b.send(b.conversation().ID, "Go")
	puppet.say <- "Half an "
	if _, err := b.s.Stop(t.Context(), b.actor, x.Turn.Conversation, x.Turn.ID); err != nil {
		t.Fatal(err)
	}
	b.boot(newPromiser())
	again, err := b.s.Continue(t.Context(), b.actor, x.Turn.Conversation, x.Turn.ID, conversation.AgainInput{})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	_ = b.s.Follow(t.Context(), b.actor, x.Turn.Conversation, again.Turn.ID, "", func(m conversation.Moment) error {
		ids = append(ids, m.ID)
		if m.Type == conversation.MomentWaiting {
			return context.Canceled
		}
		return nil
	})
	if !slices.Equal(ids, []string{"0", "8", "w8"}) {
		t.Errorf("told %v", ids)
	}
	if _, got := b.deliver(again, delivery("answer.", teal)); got != conversation.Taken {
		t.Fatalf("%s", got)
	}
	if got := b.await(again); got.Assistant.Content != "Half an answer." {
		t.Errorf("%q", got.Assistant.Content)
	}
	rest := ""
	if err := b.s.Follow(t.Context(), b.actor, x.Turn.Conversation, again.Turn.ID, "w8", func(m conversation.Moment) error {
		rest += m.Text
		return nil
	}); err != nil || rest != "answer." {
		t.Errorf("after it waited: %q, %v", rest, err)
	}
}

// Many turns that wait are in the way of none whose owner is gone.
func TestManyWaitingTurnsHideNone(t *testing.T) {
	b := open(t, newPromiser(), func(c *conversation.Config) { c.Sole = false })
	c := b.conversation()
	for range 3 {
		b.waits(b.send(c.ID, "Go"))
	}
	gone := *b
	gone.boot(newPuppet(), func(c *conversation.Config) { c.Sole = false })
	lost := gone.send(c.ID, "Go")
	list, err := b.store.RunningTurns(t.Context(), 1)
	if err != nil || len(list) != 1 || list[0].ID != lost.Turn.ID {
		t.Errorf("%+v %v", list, err)
	}
	running, err := b.s.Running(t.Context(), b.actor, c.ID)
	if err != nil || len(running) != 4 || running[3].ID != lost.Turn.ID {
		t.Errorf("%+v %v", running, err)
	}
}

// Followers on two nodes hear of both, the waiting and the end, over a bus that loses nothing; of one that loses everything
// they read it.
func TestTwoNodesFollowAWaitingTurn(t *testing.T) {
	p := newPromiser()
	bus := event.NewLocalBus()
	here := open(t, p, func(c *conversation.Config) { c.Sole, c.Bus, c.Lease = false, bus, time.Minute })
	there := *here
	there.boot(p, func(c *conversation.Config) { c.Sole, c.Bus = false, bus })
	x := here.send(here.conversation().ID, "Go")
	var all sync.WaitGroup
	waiting := make(chan struct{}, 2)
	for _, b := range []*bench{here, &there} {
		all.Go(func() {
			var types []string
			if err := b.s.Follow(t.Context(), b.actor, x.Turn.Conversation, x.Turn.ID, "", func(m conversation.Moment) error {
				types = append(types, string(m.Type))
				if m.Type == conversation.MomentWaiting {
					waiting <- struct{}{}
				}
				return nil
			}); err != nil || len(types) != 5 || types[4] != "turn.completed" {
				t.Errorf("%v %v", types, err)
			}
		})
	}
	<-waiting
	<-waiting
	if _, got := there.deliver(x, delivery("Teal.", teal)); got != conversation.Taken {
		t.Errorf("%s", got)
	}
	all.Wait()
}
