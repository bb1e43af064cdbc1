package conversation_test

import (
	"context"
	"testing"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// lossy is a bus that passes on what the test lets through.
type lossy struct {
	*event.LocalBus
	pass func(event.Signal) bool
	said chan event.Signal // what was published, when a test wants to see it
}

func (l *lossy) Publish(ctx context.Context, s event.Signal) {
	if l.said != nil {
		l.said <- s
	}
	if l.pass == nil || l.pass(s) {
		l.LocalBus.Publish(ctx, s)
	}
}

// two opens one database on two nodes; what each hears of the other is decided by the bus that it publishes on. The other one
// waits for the owner's word for as long as a busy machine needs, unless it is adjusted.
func two(t *testing.T, p *puppet, owner, other event.Bus, adjust ...func(*conversation.Config)) (*bench, *bench) {
	t.Helper()
	here := open(t, p, func(c *conversation.Config) {
		c.Sole, c.Bus, c.FlushAge, c.Lease = false, owner, 10*time.Millisecond, time.Minute
	})
	there := *here
	there.boot(p, append([]func(*conversation.Config){func(c *conversation.Config) {
		c.Sole, c.Bus, c.FlushAge, c.StopPatience = false, other, 10*time.Millisecond, time.Minute
	}}, adjust...)...)
	return here, &there
}

func TestStopFromAnotherNode(t *testing.T) {
	t.Run("the owner is asked, and says how it ended", func(t *testing.T) {
		p, bus := newPuppet(), event.NewLocalBus()
		here, there := two(t, p, bus, bus)
		x := here.send(here.conversation().ID, "Go")
		p.say <- "half an "
		got, err := there.s.Stop(t.Context(), there.actor, x.Turn.Conversation, x.Turn.ID)
		if err != nil || got.State != conversation.Stopped || got.ErrorCode != "" {
			t.Fatalf("%+v %v", got, err)
		}
		if m := here.await(x).Assistant; m.Content != "half an " {
			t.Errorf("kept %q", m.Content)
		}
	})
	t.Run("a wish that was lost is repeated", func(t *testing.T) {
		p, bus := newPuppet(), event.NewLocalBus()
		lost := 0
		here, there := two(t, p, bus, &lossy{LocalBus: bus, pass: func(s event.Signal) bool {
			if s.Kind == event.Stop {
				lost++
			}
			return lost > 2
		}})
		x := here.send(here.conversation().ID, "Go")
		got, err := there.s.Stop(t.Context(), there.actor, x.Turn.Conversation, x.Turn.ID)
		if err != nil || got.State != conversation.Stopped || got.ErrorCode != "" || lost < 3 {
			t.Fatalf("%+v %v, asked %d times", got, err, lost)
		}
	})
	t.Run("an owner that does not hear is stopped in the database, and adds its last word", func(t *testing.T) {
		p := newPuppet()
		here, there := two(t, p, event.NewLocalBus(), event.NewLocalBus(), func(c *conversation.Config) { c.StopPatience = 0 })
		x := here.send(here.conversation().ID, "Go")
		p.say <- "half an "
		stored(t, there, x, "half an ")
		got, err := there.s.Stop(t.Context(), there.actor, x.Turn.Conversation, x.Turn.ID)
		if err != nil || got.State != conversation.Stopped || got.ErrorCode != "stopped_elsewhere" {
			t.Fatalf("%+v %v", got, err)
		}
		p.say <- "answer"
		last := here.await(x)
		if last.Turn.State != conversation.Stopped || last.Turn.ErrorCode != "" || last.Assistant.Content != "half an answer" {
			t.Errorf("%+v %q", last.Turn, last.Assistant.Content)
		}
		seen, err := there.s.Turn(t.Context(), there.actor, x.Turn.Conversation, x.Turn.ID)
		if err != nil || seen.Turn.ErrorCode != "" || seen.Assistant.Content != "half an answer" {
			t.Errorf("%+v %v", seen.Turn, err)
		}
	})
	t.Run("nobody stops a stranger's turn", func(t *testing.T) {
		p, bus := newPuppet(), &lossy{LocalBus: event.NewLocalBus(), said: make(chan event.Signal, 100)}
		b := open(t, p, func(c *conversation.Config) { c.Bus = bus })
		x := b.send(b.conversation().ID, "Go")
		for len(bus.said) > 0 {
			<-bus.said
		}
		stranger := open(t, p, func(c *conversation.Config) { c.Bus = bus })
		for _, id := range []ident.ConversationID{stranger.conversation().ID, x.Turn.Conversation} {
			if _, err := stranger.s.Stop(t.Context(), stranger.actor, id, x.Turn.ID); !fault.Is(err, fault.NotFound) {
				t.Errorf("%v", err)
			}
		}
		if len(bus.said) > 0 {
			t.Errorf("somebody was told %+v", <-bus.said)
		}
	})
}

// stored waits until the database has a text of the answer.
func stored(t *testing.T, b *bench, x conversation.Exchange, text string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		now, err := b.s.Turn(t.Context(), b.actor, x.Turn.Conversation, x.Turn.ID)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("it is not stored: %v", err)
		}
		if now.Assistant.Content == text {
			return
		}
	}
}

// A signal that says "look again" is no wish to stop.
func TestMissedSignalsStopNothing(t *testing.T) {
	p, bus := newPuppet(), event.NewLocalBus()
	b := open(t, p, func(c *conversation.Config) { c.Bus = bus })
	x := b.send(b.conversation().ID, "Go")
	p.say <- "all of "
	bus.MissAll()
	p.say <- "it"
	close(p.say)
	if got := b.await(x); got.Turn.State != conversation.Completed || got.Assistant.Content != "all of it" {
		t.Errorf("%+v %q", got.Turn, got.Assistant.Content)
	}
}

// Of what another node says some is lost. The rest comes from the database, in its place.
func TestFollowingAnotherNodeOverABadLink(t *testing.T) {
	p, bus := newPuppet(), event.NewLocalBus()
	n := 0
	here, there := two(t, p, &lossy{LocalBus: bus, pass: func(s event.Signal) bool {
		n++
		return s.Kind != event.Delta || n%3 == 0
	}}, bus)
	x := here.send(here.conversation().ID, "Go")
	text, units := "", 0
	done := make(chan error, 1)
	go func() {
		done <- there.s.Follow(t.Context(), there.actor, x.Turn.Conversation, x.Turn.ID, "", func(m conversation.Moment) error {
			if m.Type == conversation.MomentDelta {
				if m.Offset != units {
					t.Errorf("a piece at %d after %d", m.Offset, units)
				}
				text += m.Text
				units += len(utf16(m.Text))
			}
			return nil
		})
	}()
	want := ""
	for range 50 {
		for _, piece := range []string{"a ", "🙂 ", "é"} {
			p.say <- piece
			want += piece
		}
	}
	close(p.say)
	if err := <-done; err != nil || text != want {
		t.Errorf("%v, %d bytes of %d", err, len(text), len(want))
	}
}
