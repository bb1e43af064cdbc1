package conversation_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// part is a tenant that is always open.
type part struct {
	mu    sync.Mutex
	hints []time.Time
	spool conversation.Spool
}

func (*part) Retain() func() { return func() {} }

func (*part) Near() bool { return true }

func (p *part) Spool() conversation.Spool { return p.spool }

func (*part) Callback(t conversation.Turn, _ time.Time) string {
	return "https://here.example/" + string(t.ID)
}

func (p *part) Hint(_ context.Context, due time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hints = append(p.hints, due)
	return nil
}

// puppet is a model whose answers a test pulls.
type puppet struct {
	prompts chan conversation.Prompt
	say     chan string // a piece of text; closed: the answer is complete
	fail    chan error
	blocks  []json.RawMessage
}

func newPuppet() *puppet {
	return &puppet{prompts: make(chan conversation.Prompt, 100), say: make(chan string), fail: make(chan error, 1)}
}

func (p *puppet) Answer(ctx context.Context, q conversation.Prompt, sink func(string)) (conversation.Answer, error) {
	p.prompts <- q
	var a conversation.Answer
	for {
		select {
		case <-ctx.Done():
			return a, ctx.Err()
		case err := <-p.fail:
			return a, err
		case s, ok := <-p.say:
			if !ok {
				a.StopReason, a.Model, a.Usage.OutputTokens, a.Blocks = "end_turn", "puppet-1", 7, p.blocks
				return a, nil
			}
			a.Text += s
			sink(s)
		}
	}
}

// echo answers at once with what it was told.
type echo struct{}

func (echo) Answer(_ context.Context, q conversation.Prompt, sink func(string)) (conversation.Answer, error) {
	last := q.Messages[len(q.Messages)-1]
	text := "echo " + string(last.Blocks[0])
	sink(text)
	return conversation.Answer{Text: text, StopReason: "end_turn"}, nil
}

// odd calls things by names that no database takes, and by long ones.
type odd struct{}

func (odd) Answer(_ context.Context, _ conversation.Prompt, sink func(string)) (conversation.Answer, error) {
	sink("Teal.")
	return conversation.Answer{Text: "Teal.", StopReason: "a\x00b", Model: "\xff" + strings.Repeat("ü", 150_000)}, nil
}

func TestNamesThatCannotBeStoredLoseNoAnswer(t *testing.T) {
	b := open(t, odd{})
	x := b.await(b.send(b.conversation().ID, "Which colour?"))
	if m := x.Assistant; x.Turn.State != conversation.Completed || m.Content != "Teal." || m.StopReason != "a\uFFFDb" ||
		!strings.HasPrefix(m.Model, "\uFFFDüüü") || len(m.Model) > 210 || !utf8.ValidString(m.Model) {
		t.Errorf("%+v %+v", x.Turn, m)
	}
}

type bench struct {
	t      *testing.T
	s      *conversation.Service
	engine *conversation.Engine
	store  *sqlstore.TenantStore
	actor  ident.Actor
	part   *part
	keys   *seal.Keyring
}

// counted counts who searches at once, tells of each, and holds up everybody until free is closed.
type counted struct {
	conversation.Store
	in, free chan struct{}

	mu       sync.Mutex
	now, max int
}

func (c *counted) Ask(ctx context.Context, q conversation.Question) (conversation.Findings, error) {
	c.mu.Lock()
	c.now++
	c.max = max(c.max, c.now)
	c.mu.Unlock()
	c.in <- struct{}{}
	<-c.free
	c.mu.Lock()
	c.now--
	c.mu.Unlock()
	return c.Store.Ask(ctx, q)
}

func TestSearchesTakeTurns(t *testing.T) {
	b := open(t, echo{})
	store := &counted{Store: b.store, in: make(chan struct{}, 5), free: make(chan struct{})}
	s := conversation.New(store, b.engine, b.keys, b.actor.Account, b.part)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if _, _, err := s.Search(t.Context(), b.actor, conversation.SearchInput{Text: "word"}); err != nil {
				t.Error(err)
			}
		})
	}
	<-store.in
	hurried, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.Search(hurried, b.actor, conversation.SearchInput{Text: "word"}); !fault.Is(err, fault.Canceled) {
		t.Errorf("somebody who has gone away waits: %v", err)
	}
	close(store.free)
	wg.Wait()
	if store.max != 1 {
		t.Errorf("%d searches at once", store.max)
	}
}

func open(t *testing.T, m conversation.Model, adjust ...func(*conversation.Config)) *bench {
	t.Helper()
	ctx := t.Context()
	db, err := sqlstore.OpenSQLite(ctx, sqlstore.SQLiteOptions{Path: filepath.Join(t.TempDir(), "t.db"), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if _, err := sqlstore.Migrate(ctx, db, sqlstore.Tenant); err != nil {
		t.Fatal(err)
	}
	keys, err := seal.NewKeyring("correct horse battery staple 0123456789 xyz")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, store: sqlstore.NewTenantStore(db, nil), part: &part{}, keys: keys,
		actor: ident.Actor{Account: ident.New[ident.AccountID](), Name: "Ada"}}
	t.Cleanup(func() { endsInOrder(t, b.store) }) // when its engines are closed
	b.boot(m, adjust...)
	return b
}

// endsInOrder looks at all that a test left in the log. However a turn ended (by itself, stopped from here or from another node, while
// it waited, given up after its server died, from the spool) and however often its end was told, the message is told of
// first and the turn right after it: the turn's end is the last that is heard of it.
func endsInOrder(t *testing.T, store *sqlstore.TenantStore) {
	t.Helper()
	list, err := store.Since(context.Background(), 0, 10_000)
	if err != nil {
		t.Error(err)
	}
	expected := "" // the turn whose message was told of just before
	for _, e := range list {
		ends := strings.HasPrefix(e.Type, "turn.") && e.Type != "turn.started" && e.Type != "turn.waiting"
		if ends != (expected != "") || ends && e.Subject != expected {
			t.Errorf("%d: %s of %s, where the turn whose message has just ended is %q", e.Seq, e.Type, e.Subject, expected)
		}
		expected = ""
		if e.Type == "message.completed" {
			expected = e.About().Turn
		}
	}
	if expected != "" {
		t.Errorf("the end of %s is missing", expected)
	}
}

// boot starts a new engine on the same database, as a restart would.
func (b *bench) boot(m conversation.Model, adjust ...func(*conversation.Config)) {
	c := conversation.Config{Node: string(ident.New[ident.EventID]()), Sole: true, Bus: event.NewLocalBus(),
		Models: map[string]conversation.Model{"puppet": m}, Known: []string{"puppet", "absent"}, Default: "puppet"}
	for _, f := range adjust {
		f(&c)
	}
	b.engine = conversation.NewEngine(c)
	b.s = conversation.New(b.store, b.engine, b.keys, b.actor.Account, b.part)
	engine := b.engine
	b.t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = engine.Close(ctx)
	})
}

func (b *bench) conversation() conversation.Conversation {
	b.t.Helper()
	c, err := b.s.Create(b.t.Context(), b.actor, conversation.CreateInput{})
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

func (b *bench) send(c ident.ConversationID, text string) conversation.Exchange {
	b.t.Helper()
	x, err := b.s.Send(b.t.Context(), b.actor, c, conversation.SendInput{Text: text, Reply: true})
	if err != nil {
		b.t.Fatal(err)
	}
	return x
}

func (b *bench) await(x conversation.Exchange) conversation.Exchange {
	b.t.Helper()
	got, err := b.s.Await(b.t.Context(), b.actor, x.Turn.Conversation, x.Turn.ID)
	if err != nil {
		b.t.Fatal(err)
	}
	return got
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if fault.CodeOf(err) != code || err == nil {
		t.Fatalf("got %v, want code %s", err, code)
	}
}

// TestWhoLeavesIsNoDefect: a client that does not wait for the answer is no failure of the server's.
func TestWhoLeavesIsNoDefect(t *testing.T) {
	p := newPuppet()
	b := open(t, p)
	x := b.send(b.conversation().ID, "Hello?")
	hurried, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.s.Await(hurried, b.actor, x.Turn.Conversation, x.Turn.ID); !fault.Is(err, fault.Canceled) || !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	close(p.say)
	b.await(x)
}

func TestAnAnswerIsKeptAndTold(t *testing.T) {
	p := newPuppet()
	p.blocks = []json.RawMessage{json.RawMessage(`{"type":"thinking","thinking":"hm","signature":"s"}`),
		json.RawMessage(`{"type":"text","text":"Hé 🙂 there"}`)}
	b := open(t, p)
	c := b.conversation()
	x := b.send(c.ID, "Hello?")
	if x.Assistant.State != conversation.Streaming || x.Turn.State != conversation.Streaming {
		t.Fatalf("not streaming at first: %+v", x.Turn)
	}
	var moments []conversation.Moment
	done := make(chan error, 1)
	go func() {
		done <- b.s.Follow(t.Context(), b.actor, c.ID, x.Turn.ID, "", func(m conversation.Moment) error {
			moments = append(moments, m)
			return nil
		})
	}()
	for _, piece := range []string{"Hé ", "🙂", " there"} {
		p.say <- piece
	}
	close(p.say)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	text, types := "", []string{}
	for _, m := range moments {
		types = append(types, string(m.Type))
		if m.Type == conversation.MomentDelta {
			if m.Offset != len(utf16(text)) {
				t.Errorf("offset %d after %q", m.Offset, text)
			}
			text += m.Text
		}
	}
	if text != "Hé 🙂 there" {
		t.Errorf("told %q", text)
	}
	if types[0] != "turn.started" || types[len(types)-2] != "message.completed" || types[len(types)-1] != "turn.completed" {
		t.Errorf("order %v", types)
	}
	got := b.await(x)
	if got.Assistant.Content != text || got.Assistant.Model != "puppet-1" || got.Assistant.Usage.OutputTokens != 7 ||
		got.Assistant.State != conversation.Completed || got.Turn.FinishedAt == nil {
		t.Errorf("stored %+v", got.Assistant)
	}
	if string(got.Assistant.AllBlocks()) != `[`+string(p.blocks[0])+`,`+string(p.blocks[1])+`]` {
		t.Errorf("blocks %s", got.Assistant.AllBlocks())
	}
	t.Run("a late or returning follower gets exactly the rest", func(t *testing.T) {
		for i, m := range moments {
			var rest []string
			told := ""
			err := b.s.Follow(t.Context(), b.actor, c.ID, x.Turn.ID, m.ID, func(m conversation.Moment) error {
				rest = append(rest, string(m.Type))
				told += m.Text
				return nil
			})
			before := ""
			for _, earlier := range moments[:i+1] {
				before += earlier.Text
			}
			if err != nil || before+told != text && m.Type != conversation.MomentMessage && m.ID != "e" {
				t.Errorf("after %s: %v, %q + %q", m.ID, err, before, told)
			}
			if m.ID != "e" && rest[len(rest)-1] != "turn.completed" {
				t.Errorf("after %s: %v", m.ID, rest)
			}
		}
	})
}

func utf16(s string) []rune {
	var out []rune
	for _, r := range s {
		out = append(out, r)
		if r > 0xFFFF {
			out = append(out, r)
		}
	}
	return out
}

func TestTheServerOwnsTheTurn(t *testing.T) {
	t.Run("stop keeps what had arrived", func(t *testing.T) {
		p := newPuppet()
		b := open(t, p)
		x := b.send(b.conversation().ID, "Go")
		p.say <- "half an "
		got, err := b.s.Stop(t.Context(), b.actor, x.Turn.Conversation, x.Turn.ID)
		if err != nil || got.State != conversation.Stopped {
			t.Fatalf("%v %v", got.State, err)
		}
		if m := b.await(x).Assistant; m.Content != "half an " || m.State != conversation.Stopped {
			t.Errorf("kept %q, %s", m.Content, m.State)
		}
	})
	t.Run("a failure keeps what had arrived and can be retried as a sibling", func(t *testing.T) {
		p := newPuppet()
		b := open(t, p)
		x := b.send(b.conversation().ID, "Go")
		p.say <- "first "
		p.fail <- fault.New(fault.Unavailable, "x", conversation.CodeProviderOverloaded, "overloaded")
		got := b.await(x)
		if got.Turn.State != conversation.Failed || got.Turn.ErrorCode != conversation.CodeProviderOverloaded ||
			got.Assistant.Content != "first " {
			t.Fatalf("%+v", got.Turn)
		}
		again, err := b.s.Retry(t.Context(), b.actor, x.Turn.Conversation, x.Turn.ID, conversation.AgainInput{})
		if err != nil {
			t.Fatal(err)
		}
		p.say <- "second"
		close(p.say)
		b.await(again)
		ms, _, err := b.s.Messages(t.Context(), b.actor, x.Turn.Conversation, conversation.MessageQuery{Limit: 10, Ascending: true})
		if err != nil || len(ms) != 2 || ms[1].Content != "second" || ms[1].Parent != ms[0].ID {
			t.Errorf("active branch %v %v", contents(ms), err)
		}
		all, _, _ := b.s.Messages(t.Context(), b.actor, x.Turn.Conversation, conversation.MessageQuery{Limit: 10, All: true, Ascending: true})
		if len(all) != 3 {
			t.Errorf("tree %v", contents(all))
		}
	})
	t.Run("a crash leaves it interrupted with the flushed text, and continue goes on from there", func(t *testing.T) {
		p := newPuppet()
		b := open(t, p, func(c *conversation.Config) { c.FlushSize = 1 })
		x := b.send(b.conversation().ID, "Tell me a story")
		p.say <- "Once upon a time "
		for {
			ms, _, err := b.s.Messages(t.Context(), b.actor, x.Turn.Conversation, conversation.MessageQuery{Limit: 5})
			if err != nil {
				t.Fatal(err)
			}
			if ms[0].Content != "" {
				break
			}
		}
		// The process is gone: another one opens the same database.
		p2 := newPuppet()
		b.boot(p2)
		ms, _, err := b.s.Messages(t.Context(), b.actor, x.Turn.Conversation, conversation.MessageQuery{Limit: 5})
		if err != nil || ms[0].State != conversation.Interrupted || ms[0].Content != "Once upon a time " {
			t.Fatalf("%v %+v", err, ms[0])
		}
		more, err := b.s.Continue(t.Context(), b.actor, x.Turn.Conversation, x.Turn.ID, conversation.AgainInput{})
		if err != nil {
			t.Fatal(err)
		}
		q := <-p2.prompts
		if n := len(q.Messages); n != 3 || q.Messages[1].Role != "assistant" || q.Messages[2].Role != "user" {
			t.Errorf("prompt has %d messages", n)
		}
		p2.say <- "there was a bear."
		close(p2.say)
		if m := b.await(more).Assistant; m.Content != "Once upon a time there was a bear." {
			t.Errorf("continued %q", m.Content)
		}
	})
	t.Run("a clean stop marks what it cuts", func(t *testing.T) {
		p := newPuppet()
		b := open(t, p)
		x := b.send(b.conversation().ID, "Go")
		p.say <- "so far"
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_ = b.engine.Close(ctx)
		got := b.await(x)
		if got.Turn.State != conversation.Interrupted || got.Assistant.Content != "so far" {
			t.Errorf("%+v", got.Turn)
		}
		_, err := b.s.Send(t.Context(), b.actor, x.Turn.Conversation, conversation.SendInput{Text: "more", Reply: true})
		wantCode(t, err, "shutting_down")
	})
}

func contents(ms []conversation.Message) (out []string) {
	for _, m := range ms {
		out = append(out, m.Content)
	}
	return out
}

func TestManySendersLoseNothing(t *testing.T) {
	b := open(t, echo{})
	c := b.conversation()
	const writers = 64
	var wg sync.WaitGroup
	errs := make(chan error, writers)
	for i := range writers {
		wg.Go(func() {
			x, err := b.s.Send(t.Context(), b.actor, c.ID, conversation.SendInput{Text: fmt.Sprint("message ", i), Reply: true})
			if err == nil {
				_, err = b.s.Await(t.Context(), b.actor, c.ID, x.Turn.ID)
			}
			errs <- err
		})
	}
	wg.Wait()
	for range writers {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	ms, _, err := b.s.Messages(t.Context(), b.actor, c.ID, conversation.MessageQuery{Limit: 200, Ascending: true})
	if err != nil || len(ms) != 2*writers {
		t.Fatalf("%d messages, %v", len(ms), err)
	}
	seen := map[string]bool{}
	for i, m := range ms {
		seen[m.Content] = true
		if m.Depth != int64(i+1) || i > 0 && m.Parent != ms[i-1].ID {
			t.Errorf("message %d is at depth %d under %s", i, m.Depth, m.Parent)
		}
	}
	for i := range writers {
		if !seen[fmt.Sprint("message ", i)] {
			t.Errorf("message %d is lost", i)
		}
	}
}

func TestARepeatDoesNothingTwice(t *testing.T) {
	b := open(t, echo{})
	c := b.conversation()
	once := func(body string) *event.Once {
		return &event.Once{Scope: "me", Key: "k", Fingerprint: []byte(body), ExpiresAt: time.Now().Add(time.Hour)}
	}
	const repeats = 16
	var wg sync.WaitGroup
	ids := make(chan ident.MessageID, repeats)
	for range repeats {
		wg.Go(func() {
			x, err := b.s.Send(t.Context(), b.actor, c.ID, conversation.SendInput{Text: "hi", Reply: true, Once: once("a")})
			if err != nil {
				t.Error(err)
			}
			ids <- x.User.ID
		})
	}
	wg.Wait()
	first := <-ids
	for range repeats - 1 {
		if id := <-ids; id != first {
			t.Errorf("two effects: %s and %s", first, id)
		}
	}
	got, err := b.s.Find(t.Context(), b.actor, c.ID)
	if err != nil || got.MessageCount != 2 {
		t.Errorf("%d messages, %v", got.MessageCount, err)
	}
	_, err = b.s.Send(t.Context(), b.actor, c.ID, conversation.SendInput{Text: "ho", Reply: true, Once: once("b")})
	if !fault.Is(err, fault.Mismatch) {
		t.Errorf("another body: %v", err)
	}
}

func TestEdits(t *testing.T) {
	b := open(t, echo{})
	c := b.conversation()
	version := c.Version
	got, err := b.s.Edit(t.Context(), b.actor, c.ID, &version, func(d *conversation.Details) error {
		d.Title = "Bears"
		return nil
	})
	if err != nil || got.Title != "Bears" || got.Version != 2 {
		t.Fatalf("%+v %v", got, err)
	}
	_, err = b.s.Edit(t.Context(), b.actor, c.ID, &version, func(d *conversation.Details) error {
		d.Title = "Wolves"
		return nil
	})
	if !fault.Is(err, fault.Stale) {
		t.Errorf("stale edit: %v", err)
	}
	_, err = b.s.Find(t.Context(), ident.Actor{Account: ident.New[ident.AccountID]()}, c.ID)
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("a stranger: %v", err)
	}
	_, err = b.s.Send(t.Context(), b.actor, c.ID, conversation.SendInput{Text: "x", Reply: true, Provider: "absent"})
	wantCode(t, err, "provider_not_configured")
	_, err = b.s.Send(t.Context(), b.actor, c.ID, conversation.SendInput{Text: "x", Reply: true, Provider: "nobody"})
	wantCode(t, err, "invalid_input")
}

func TestTitlesAreNoActivity(t *testing.T) {
	b := open(t, echo{})
	c := b.conversation()
	x := b.send(c.ID, "## What do bears eat in winter, when there is nothing else to be found anywhere?")
	b.await(x)
	ctx := t.Context()
	var got conversation.Conversation
	until(t, "the title", func() bool {
		var err error
		if got, err = b.s.Find(ctx, b.actor, c.ID); err != nil {
			t.Fatal(err)
		}
		return got.Title != ""
	})
	if !strings.HasPrefix(got.Title, "What do bears eat in winter") || got.Version != c.Version || got.TitleByHand {
		t.Errorf("title %q, version %d", got.Title, got.Version)
	}
	m, _, _ := b.s.Messages(ctx, b.actor, c.ID, conversation.MessageQuery{Limit: 1})
	if got.UpdatedAt.After(m[0].UpdatedAt) {
		t.Error("the title counted as activity")
	}
}

func TestFollowerSeesNoTurnBeforeItIsStored(t *testing.T) {
	b := open(t, echo{})
	c := b.conversation()
	err := b.s.Follow(t.Context(), b.actor, c.ID, ident.New[ident.TurnID](), "", func(conversation.Moment) error {
		return errors.New("told of a turn that never was")
	})
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
}

// counting counts how often a turn is read.
type counting struct {
	*sqlstore.TenantStore
	mu    sync.Mutex
	reads int
}

func (c *counting) FindTurn(ctx context.Context, id ident.ConversationID, t ident.TurnID) (conversation.Turn, conversation.Message, conversation.Message, error) {
	c.mu.Lock()
	c.reads++
	c.mu.Unlock()
	return c.TenantStore.FindTurn(ctx, id, t)
}

func TestWaitingForTheEndReadsLittle(t *testing.T) {
	p := newPuppet()
	b := open(t, p)
	store := &counting{TenantStore: b.store}
	b.s = conversation.New(store, b.engine, b.keys, b.actor.Account, b.part)
	x := b.send(b.conversation().ID, "Go")
	done := make(chan conversation.Exchange, 1)
	go func() { done <- b.await(x) }()
	for range 300 {
		p.say <- "piece "
	}
	close(p.say)
	<-done
	if store.reads > 20 {
		t.Errorf("the turn was read %d times for 300 pieces", store.reads)
	}
}

func TestDeletingBesideStartingTurns(t *testing.T) {
	b := open(t, echo{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				c, err := b.s.Create(t.Context(), b.actor, conversation.CreateInput{})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := b.s.Send(t.Context(), b.actor, c.ID, conversation.SendInput{Text: "hi", Reply: true}); err != nil {
					t.Error(err)
				}
				if err := b.s.Delete(t.Context(), b.actor, c.ID, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
