package conversation_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/sqlstore"
)

// line is a store that tells when a flush stands in line for the writing connection, and keeps it when it has had its turn.
type line struct {
	*sqlstore.TenantStore
	waits, landed, on chan struct{}
	once              sync.Once
}

// inLine is a context that tells when somebody is about to wait with it.
type inLine struct {
	context.Context //nolint:containedctx // it is one
	of              *line
}

func (c inLine) Done() <-chan struct{} {
	c.of.once.Do(func() { close(c.of.waits) })
	return c.Context.Done()
}

func (l *line) FlushTurn(ctx context.Context, t conversation.Turn, at int, text func() string, lease time.Time) (bool, error) {
	held, err := l.TenantStore.FlushTurn(inLine{ctx, l}, t, at, text, lease)
	select {
	case l.landed <- struct{}{}:
	default:
	}
	<-l.on
	return held, err
}

// What was said while a flush waited for the database is in what it stores, however long that was: a crash right after it
// costs nothing of that.
func TestAFlushCarriesWhatWasSaidWhileItWaited(t *testing.T) {
	p := newPuppet()
	b := open(t, p)
	b.boot(p, func(c *conversation.Config) { c.FlushAge, c.Lease = time.Millisecond, time.Minute })
	store := &line{TenantStore: b.store, waits: make(chan struct{}), landed: make(chan struct{}, 1), on: make(chan struct{})}
	b.s = conversation.New(store, b.engine, b.keys, b.actor.Account, b.part)
	c := b.conversation()
	x := b.send(c.ID, "Tell me a story")

	writing, end, written := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := b.store.UpdateConversation(t.Context(), c.ID, func(c conversation.Conversation) (conversation.Conversation, event.Change, error) {
			close(writing)
			<-end
			return c, event.Change{}, nil
		})
		written <- err
	}()
	<-writing
	p.say <- "Once "
	<-store.waits
	p.say <- "upon a "
	p.say <- "time"
	p.say <- "" // who takes this has said what came before
	close(end)
	<-store.landed
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	_, _, m, err := b.store.FindTurn(t.Context(), c.ID, x.Turn.ID)
	if err != nil || m.Content != "Once upon a time" {
		t.Errorf("%v: a crash now would leave %q", err, m.Content)
	}

	// What comes later goes with the next flush, once.
	close(store.on)
	p.say <- " there was a bear"
	until(t, "the rest is stored", func() bool {
		m, err := b.store.FindMessage(t.Context(), c.ID, x.Assistant.ID)
		return err == nil && m.Content == "Once upon a time there was a bear"
	})
	close(p.say)
	if got := b.await(x); got.Assistant.Content != "Once upon a time there was a bear" {
		t.Errorf("%q", got.Assistant.Content)
	}
}
