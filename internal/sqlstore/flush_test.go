package sqlstore

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/seal"
)

// waiting is a context that tells when somebody is about to wait with it.
type waiting struct {
	context.Context //nolint:containedctx // it is one
	once            sync.Once
	begun           chan struct{}
}

func newWaiting(ctx context.Context) *waiting {
	return &waiting{Context: ctx, begun: make(chan struct{})}
}

func (w *waiting) Done() <-chan struct{} {
	w.once.Do(func() { close(w.begun) })
	return w.Context.Done()
}

// A database behind which everybody has to stand in line: a file has one writing connection anyway.
func oneAtATime(t *testing.T) map[string]*DB {
	pool, err := NewPostgresPool(t.Context(), seal.Secret(pgtest.URL(t)), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	hosted := OpenPostgres(pool, PostgresOptions{Schema: "memoryd"})
	if _, err := Migrate(t.Context(), hosted, Tenant); err != nil {
		t.Fatal(err)
	}
	x := openExternals(t, func(o *ExternalOptions) { o.PerTenant = 1 })
	a, password := addressOf(t, pgtest.URL(t))
	id := ident.New[ident.DatabaseID]()
	if err := x.Provision(t.Context(), id, a, password); err != nil {
		t.Fatal(err)
	}
	external := x.Open(id, a, password)
	t.Cleanup(func() {
		if err := external.Close(); err != nil {
			t.Error(err)
		}
	})
	return map[string]*DB{"sqlite": tenantFiles(t)(t), "postgres": hosted, "external": external}
}

// What is said while a flush stands in line goes along: the text is asked for when the transaction has its turn.
func TestAFlushAsksForItsTextWhenItHasItsTurn(t *testing.T) {
	for engine, db := range oneAtATime(t) {
		t.Run(engine, func(t *testing.T) {
			s := NewTenantStore(db, nil)
			turn := answering(t, s)
			held, release, released := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			go func() {
				released <- db.Write(t.Context(), func(tx *Tx) error {
					err := tx.Run(func(b *Batch) { b.Query(func(Scanner) error { return nil }, `SELECT 1`) })
					close(held)
					<-release
					return err
				})
			}()
			<-held

			var said atomic.Value
			said.Store("Once ")
			var asked atomic.Int32
			line, flushed := newWaiting(t.Context()), make(chan error, 1)
			go func() {
				ok, err := s.FlushTurn(line, turn, 0, func() string {
					asked.Add(1)
					return said.Load().(string)
				}, time.Now())
				if err == nil && !ok {
					t.Error("the turn is not held")
				}
				flushed <- err
			}()
			<-line.begun
			if n := asked.Load(); n != 0 {
				t.Errorf("the text was asked for %d times while somebody else wrote", n)
			}
			said.Store("Once upon a time")
			close(release)
			for what, done := range map[string]chan error{"the one before": released, "the flush": flushed} {
				if err := <-done; err != nil {
					t.Fatal(what, err)
				}
			}
			_, _, m, err := s.FindTurn(t.Context(), turn.Conversation, turn.ID)
			if err != nil || m.Content != "Once upon a time" || asked.Load() != 1 {
				t.Errorf("%v: %q is stored, asked for %d times", err, m.Content, asked.Load())
			}
		})
	}
}

// answering stores a turn whose answer is about to come.
func answering(t *testing.T, s *TenantStore) conversation.Turn {
	t.Helper()
	change := func(kind string) event.Change {
		ch := event.NewChange(ident.System(""), noon(0))
		ch.Add(kind, "subject", map[string]any{})
		return ch
	}
	c := conversation.Conversation{ID: ident.New[ident.ConversationID](), Version: 1}
	if err := s.InsertConversation(t.Context(), c, change("conversation.created")); err != nil {
		t.Fatal(err)
	}
	turn := conversation.Turn{ID: ident.New[ident.TurnID](), Conversation: c.ID, State: conversation.Streaming, Node: "n",
		AssistantMessage: ident.New[ident.MessageID](), UserMessage: ident.New[ident.MessageID](), SystemHash: "hash"}
	if _, _, err := s.Append(t.Context(), c.ID, conversation.Where{}, func(conversation.Spot) (conversation.Entry, event.Change, error) {
		return conversation.Entry{Turn: &turn, System: "be brief", Messages: []conversation.Message{
			{ID: turn.UserMessage, Role: conversation.User, Content: "Tell me a story", State: conversation.Completed},
			{ID: turn.AssistantMessage, Turn: turn.ID, Role: conversation.Assistant, State: conversation.Streaming}}}, change("turn.started"), nil
	}); err != nil {
		t.Fatal(err)
	}
	return turn
}
