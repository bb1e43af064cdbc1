package conversation_test

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/spool"
	"claude-memory-backend/internal/sqlstore"
)

// outage is a store whose database a test takes away.
type outage struct {
	*sqlstore.TenantStore
	under   sync.RWMutex // held for reading by what is under way: nothing that began before the database went reaches it later
	away    bool
	deaf    bool            // it takes no text, and everything else
	slow    <-chan struct{} // text waits for this
	dead    atomic.Bool     // for good: the process that uses it counts as killed
	refused atomic.Int32
}

func (o *outage) goes()                     { o.set(func() { o.away = true }) }
func (o *outage) comes()                    { o.set(func() { o.away = false }) }
func (o *outage) hears(is bool)             { o.set(func() { o.deaf = !is }) }
func (o *outage) dawdles(c <-chan struct{}) { o.set(func() { o.slow = c }) }

func (o *outage) set(change func()) {
	o.under.Lock()
	defer o.under.Unlock()
	change()
}

// there says whether the database is. The caller holds under until it is done with it.
func (o *outage) there() error {
	if o.dead.Load() {
		return fault.Missing("outage")
	}
	if !o.away {
		return nil
	}
	return o.refuse()
}

func (o *outage) refuse() error {
	o.refused.Add(1)
	return fault.New(fault.Unavailable, "outage", "database_unreachable", "away")
}

func (o *outage) FindTurn(ctx context.Context, id ident.ConversationID, t ident.TurnID) (conversation.Turn, conversation.Message, conversation.Message, error) {
	o.under.RLock()
	defer o.under.RUnlock()
	if err := o.there(); err != nil {
		return conversation.Turn{}, conversation.Message{}, conversation.Message{}, err
	}
	return o.TenantStore.FindTurn(ctx, id, t)
}

func (o *outage) FlushTurn(ctx context.Context, t conversation.Turn, at int, text func() string, lease time.Time) (bool, error) {
	o.under.RLock()
	defer o.under.RUnlock()
	if err := o.there(); err != nil {
		return false, err
	}
	if o.deaf {
		return false, o.refuse()
	}
	if o.slow != nil {
		<-o.slow
	}
	return o.TenantStore.FlushTurn(ctx, t, at, text, lease)
}

func (o *outage) EndTurn(ctx context.Context, t ident.TurnID, end func(conversation.Turn, conversation.Message) (conversation.Ending, event.Change, error)) (conversation.Ending, error) {
	o.under.RLock()
	defer o.under.RUnlock()
	if err := o.there(); err != nil {
		return conversation.Ending{}, err
	}
	return o.TenantStore.EndTurn(ctx, t, end)
}

func (o *outage) FindMessage(ctx context.Context, id ident.ConversationID, m ident.MessageID) (conversation.Message, error) {
	o.under.RLock()
	defer o.under.RUnlock()
	if err := o.there(); err != nil {
		return conversation.Message{}, err
	}
	return o.TenantStore.FindMessage(ctx, id, m)
}

func (o *outage) RunningTurns(ctx context.Context, limit int) ([]conversation.Turn, error) {
	o.under.RLock()
	defer o.under.RUnlock()
	if err := o.there(); err != nil {
		return nil, err
	}
	return o.TenantStore.RunningTurns(ctx, limit)
}

func (o *outage) ListMessages(ctx context.Context, id ident.ConversationID, q conversation.MessageQuery) ([]conversation.Message, string, error) {
	o.under.RLock()
	defer o.under.RUnlock()
	if err := o.there(); err != nil {
		return nil, "", err
	}
	return o.TenantStore.ListMessages(ctx, id, q)
}

// storm is a bench whose database can go away, with a spool.
type storm struct {
	*bench
	store  *outage
	dir    string
	spool  *spool.Spool
	tenant ident.TenantID
}

func newStorm(t *testing.T, m conversation.Model, bounds ...func(*spool.Config)) *storm {
	t.Helper()
	s := &storm{bench: open(t, m), dir: filepath.Join(t.TempDir(), "spool"), tenant: ident.New[ident.TenantID]()}
	s.store = &outage{TenantStore: s.bench.store}
	s.start(m, bounds...)
	return s
}

func impatient(c *conversation.Config) {
	c.FlushAge, c.FlushSize, c.EndAge = 5*time.Millisecond, 1, 50*time.Millisecond
}

// start begins with a new engine on the same database and the same folder.
func (s *storm) start(m conversation.Model, bounds ...func(*spool.Config)) {
	s.t.Helper()
	c := spool.Config{Folder: s.dir, Sealer: s.keys}
	for _, f := range bounds {
		f(&c)
	}
	var err error
	if s.spool, err = spool.Open(c); err != nil {
		s.t.Fatal(err)
	}
	sp := s.spool
	s.t.Cleanup(func() { _ = sp.Close() })
	s.boot(m, impatient)
	s.part.spool = s.spool.Tenant(s.tenant)
	s.s = conversation.New(s.store, s.engine, s.keys, s.actor.Account, s.part)
}

// until waits for something that happens in the background and announces itself to nobody here.
func until(t *testing.T, what string, ready func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ready(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it never came to pass: " + what)
		}
	}
}

// stored is the turn as the database has it, whoever runs it.
func (s *storm) stored(x conversation.Exchange) (conversation.Turn, conversation.Message) {
	s.t.Helper()
	turn, _, m, err := s.store.TenantStore.FindTurn(s.t.Context(), x.Turn.Conversation, x.Turn.ID)
	if err != nil {
		s.t.Fatal(err)
	}
	return turn, m
}

// records are what the spool has of a turn, as far as its text and end go. The text may begin earlier than the outage, as
// on a busy machine any flush can be late.
func (s *storm) records(x conversation.Exchange) (text string, ended bool) {
	s.t.Helper()
	list, err := s.part.spool.Records(x.Turn.ID)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, raw := range list {
		var r struct {
			Text string
			End  *struct{ Text string }
		}
		if err := json.Unmarshal(raw, &r); err != nil {
			s.t.Fatal(err)
		}
		text += r.Text
		ended = ended || r.End != nil
	}
	return text, ended
}

// begun sends a message and waits until the beginning of the answer is in the database.
func (s *storm) begun(p *puppet, beginning string) conversation.Exchange {
	s.t.Helper()
	x := s.send(s.conversation().ID, "Tell me a story")
	p.say <- beginning
	until(s.t, "the beginning is stored", func() bool { _, m := s.stored(x); return m.Content == beginning })
	return x
}

func (s *storm) sweep() time.Time {
	s.t.Helper()
	next, err := s.s.Sweep(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return next
}

// titled waits for the title, which comes in the background.
func (s *storm) titled(x conversation.Exchange) {
	s.t.Helper()
	until(s.t, "the title", func() bool {
		c, err := s.s.Find(s.t.Context(), s.actor, x.Turn.Conversation)
		return err == nil && c.Title != ""
	})
}

func TestAnAnswerOutlivesAnOutage(t *testing.T) {
	p := newPuppet()
	p.blocks = []json.RawMessage{json.RawMessage(`{"type":"thinking","thinking":"hm","signature":"s"}`),
		json.RawMessage(`{"type":"text","text":"Once 🙂 upon a time there was a bear."}`)}
	s := newStorm(t, p)
	x := s.begun(p, "Once 🙂 ")
	told := make(chan []conversation.Moment, 1)
	following := make(chan string, 10)
	go func() {
		var moments []conversation.Moment
		text := ""
		if err := s.s.Follow(t.Context(), s.actor, x.Turn.Conversation, x.Turn.ID, "", func(m conversation.Moment) error {
			moments = append(moments, m)
			if text += m.Text; m.Text != "" {
				following <- text
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		told <- moments
	}()
	<-following
	s.store.goes()
	p.say <- "upon a time "
	if got := <-following; got != "Once 🙂 upon a time " {
		t.Errorf("who follows was told %q", got)
	}
	until(t, "the spool has the text", func() bool { text, _ := s.records(x); return strings.HasSuffix(text, "upon a time ") })
	_, _, err := s.s.Messages(t.Context(), s.actor, x.Turn.Conversation, conversation.MessageQuery{Limit: 5})
	wantCode(t, err, "database_unreachable")
	p.say <- "there was a bear."
	close(p.say)
	until(t, "the turn's run is over", func() bool { return s.engine.Count() == 0 })
	if _, ended := s.records(x); !ended {
		t.Fatal("its end is not in the spool")
	}
	if next, err := s.s.Sweep(t.Context()); fault.CodeOf(err) != "database_unreachable" {
		t.Errorf("%v %v", next, err)
	}
	if turn, m := s.stored(x); turn.State != conversation.Streaming || m.Content != "Once 🙂 " {
		t.Fatalf("%s %q: the outage is none", turn.State, m.Content)
	}
	s.store.comes()
	if next := s.sweep(); !next.IsZero() {
		t.Errorf("something is still due at %v", next)
	}
	turn, m := s.stored(x)
	if turn.State != conversation.Completed || m.State != conversation.Completed || m.Content != "Once 🙂 upon a time there was a bear." ||
		m.StopReason != "end_turn" || m.Usage.OutputTokens != 7 || m.Model != "puppet-1" || len(m.AllBlocks()) == 0 ||
		string(m.Blocks) != "["+string(p.blocks[0])+","+string(p.blocks[1])+"]" || m.Tokens == 0 || m.PrefixHash == "" {
		t.Errorf("%+v\n%+v", turn, m)
	}
	if s.part.spool.Holds(x.Turn.ID) || s.spool.Stats() != (spool.Stats{}) {
		t.Error("the spool still has it")
	}
	moments := <-told
	types := []string{}
	for _, m := range moments {
		types = append(types, string(m.Type))
	}
	if n := len(types); types[n-1] != "turn.completed" || types[n-2] != "message.completed" || types[0] != "turn.started" {
		t.Errorf("who follows was told %v", types)
	}
	s.titled(x)
}

// A process that is killed takes its memory with it; the next one finds the spool.
func TestTheSpoolOutlivesTheProcess(t *testing.T) {
	for _, c := range []struct {
		name    string
		spooled bool
		ended   bool
		state   conversation.State
		text    string
	}{
		{"in the middle of an answer", true, false, conversation.Interrupted, "Once upon a time "},
		{"in the middle of an answer that somebody stops", true, false, conversation.Stopped, "Once upon a time "},
		{"after its end", true, true, conversation.Completed, "Once upon a time there was a bear."},
		{"without a spool the rest is lost", false, true, conversation.Interrupted, "Once "},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPuppet()
			s := newStorm(t, p)
			if !c.spooled {
				s.part.spool = nil
				s.s = conversation.New(s.store, s.engine, s.keys, s.actor.Account, s.part)
			}
			x := s.begun(p, "Once ")
			s.store.goes()
			before := s.store.refused.Load()
			p.say <- "upon a time "
			until(t, "the outage is met", func() bool { return s.store.refused.Load() > before })
			if c.spooled {
				until(t, "the spool has it", func() bool { text, _ := s.records(x); return strings.HasSuffix(text, "upon a time ") })
			}
			if c.ended {
				p.say <- "there was a bear."
				close(p.say)
			}
			if c.ended && c.spooled {
				until(t, "the end is in the spool", func() bool { _, ended := s.records(x); return ended })
				until(t, "the turn's run is over", func() bool { return s.engine.Count() == 0 })
			}
			// Nothing reaches the old process any more, and nothing comes from it.
			if err := s.spool.Close(); err != nil {
				t.Fatal(err)
			}
			s.store.dead.Store(true)
			s.store, s.part = &outage{TenantStore: s.bench.store}, &part{}
			s.start(newPuppet())
			if !c.spooled {
				s.part.spool = nil
				s.s = conversation.New(s.store, s.engine, s.keys, s.actor.Account, s.part)
			}
			s.store.goes()
			if _, err := s.s.Sweep(t.Context()); fault.CodeOf(err) != "database_unreachable" {
				t.Fatal(err)
			}
			s.store.comes()
			if c.state == conversation.Stopped { // on another node, which asked this one in vain
				if _, err := s.store.TenantStore.EndTurn(t.Context(), x.Turn.ID, func(turn conversation.Turn, m conversation.Message) (conversation.Ending, event.Change, error) {
					turn.State, turn.ErrorCode, m.State = c.state, "stopped_elsewhere", c.state
					ch := event.NewChange(ident.System(""), time.Now())
					ch.Add("message.completed", string(m.ID), map[string]any{"turn_id": turn.ID})
					ch.Add("turn.stopped", string(turn.ID), nil)
					return conversation.Ending{Turn: turn, Message: m}, ch, nil
				}); err != nil {
					t.Fatal(err)
				}
				s.sweep() // readers of an end ask for no more
			}
			// A reader may come before anybody sweeps.
			got, err := s.s.Turn(t.Context(), s.actor, x.Turn.Conversation, x.Turn.ID)
			if err != nil || got.Turn.State != c.state || got.Assistant.Content != c.text {
				t.Errorf("%v %s %q", err, got.Turn.State, got.Assistant.Content)
			}
			s.sweep()
			if c.state == conversation.Interrupted && got.Turn.ErrorCode != "owner_gone" || s.spool.Stats() != (spool.Stats{}) {
				t.Errorf("%+v, %+v", got.Turn, s.spool.Stats())
			}
		})
	}
}

func TestTheDatabaseComesBackInMidAnswer(t *testing.T) {
	p := newPuppet()
	s := newStorm(t, p)
	x := s.begun(p, "Once ")
	want := "Once "
	for round := range 3 {
		s.store.goes()
		for range 3 {
			p.say <- "more "
			want += "more "
		}
		until(t, "the spool has it", func() bool { text, _ := s.records(x); return strings.Count(text, "more ") == 3 })
		if _, err := s.s.Sweep(t.Context()); err == nil {
			t.Fatal("no outage")
		}
		if round == 1 {
			s.store.hears(false) // or the turn itself might empty the spool just then
			s.store.comes()
			if next := s.sweep(); next.IsZero() || s.part.spool.Turns() == nil {
				t.Error("a turn that runs must not be restored, and is still due")
			}
			s.store.hears(true)
		}
		s.store.comes()
		p.say <- "again "
		want += "again "
		until(t, "the database has all", func() bool { _, m := s.stored(x); return m.Content == want })
		until(t, "the spool is empty", func() bool { return !s.part.spool.Holds(x.Turn.ID) })
	}
	close(p.say)
	if got := s.await(x); got.Turn.State != conversation.Completed || got.Assistant.Content != want {
		t.Errorf("%s %q", got.Turn.State, got.Assistant.Content)
	}
}

func TestASlowFlushIsSpooled(t *testing.T) {
	p := newPuppet()
	s := newStorm(t, p)
	x := s.begun(p, "Once ")
	release := make(chan struct{})
	s.store.dawdles(release)
	p.say <- "upon "
	until(t, "the spool has what is under way", func() bool { text, _ := s.records(x); return strings.HasSuffix(text, "upon ") })
	p.say <- "a time "
	until(t, "and what came since", func() bool { text, _ := s.records(x); return strings.HasSuffix(text, "upon a time ") })
	close(release)
	until(t, "the database has all", func() bool { _, m := s.stored(x); return m.Content == "Once upon a time " })
	until(t, "the spool is empty", func() bool { return !s.part.spool.Holds(x.Turn.ID) })
	close(p.say)
	if got := s.await(x); got.Assistant.Content != "Once upon a time " {
		t.Errorf("%q", got.Assistant.Content)
	}
}

// What a node on the other side of a broken network makes of a turn.
func TestWhatTheOwnersWordReplaces(t *testing.T) {
	end := func(state conversation.State, code, text string) func(conversation.Turn, conversation.Message) (conversation.Ending, event.Change, error) {
		return func(t conversation.Turn, m conversation.Message) (conversation.Ending, event.Change, error) {
			t.State, t.ErrorCode, m.State, m.ErrorCode, m.Content = state, code, state, code, text
			ch := event.NewChange(ident.System(""), time.Now())
			ch.Add("message.completed", string(m.ID), map[string]any{"turn_id": t.ID})
			ch.Add("turn."+string(state), string(t.ID), nil)
			return conversation.Ending{Turn: t, Message: m}, ch, nil
		}
	}
	const all = "Once upon a time there was a bear."
	for _, c := range []struct {
		name  string
		end   func(conversation.Turn, conversation.Message) (conversation.Ending, event.Change, error)
		state conversation.State
		text  string
	}{
		{"a guess", end(conversation.Interrupted, "owner_gone", "Once "), conversation.Completed, all},
		{"a guess that knew more", end(conversation.Interrupted, "owner_gone", "Once upon "), conversation.Completed, all},
		{"not a guess about something else", end(conversation.Interrupted, "owner_gone", "Twice "), conversation.Interrupted, "Twice "},
		{"not a stop", end(conversation.Stopped, "", "Once "), conversation.Stopped, "Once "},
		{"not a server's farewell", end(conversation.Interrupted, "server_stopped", "Once "), conversation.Interrupted, "Once "},
		{"not an end", end(conversation.Completed, "", "Once."), conversation.Completed, "Once."},
	} {
		for _, when := range []string{"while it is written", "when it is over", "after the process"} {
			t.Run(c.name+" "+when, func(t *testing.T) {
				p := newPuppet()
				s := newStorm(t, p)
				x := s.begun(p, "Once ")
				s.store.goes()
				p.say <- "upon a time "
				until(t, "the spool has it", func() bool { text, _ := s.records(x); return strings.HasSuffix(text, "upon a time ") })
				other := func() {
					if _, err := s.store.TenantStore.EndTurn(t.Context(), x.Turn.ID, c.end); err != nil {
						t.Fatal(err)
					}
				}
				if when == "while it is written" {
					other()
					s.store.comes()
				}
				until(t, "the answer is complete, or given up", func() bool {
					select {
					case p.say <- "there was a bear.":
						close(p.say)
						return true
					default:
						return s.engine.Count() == 0
					}
				})
				until(t, "the turn's run is over", func() bool { return s.engine.Count() == 0 })
				if when != "while it is written" {
					other()
				}
				if when == "after the process" {
					_ = s.spool.Close()
					s.start(newPuppet())
				}
				s.store.comes()
				for range 2 { // twice is once
					s.sweep()
				}
				turn, m := s.stored(x)
				if turn.State != c.state || m.State != c.state || m.Content != c.text || s.spool.Stats() != (spool.Stats{}) {
					t.Errorf("%s %q, %+v", turn.State, m.Content, s.spool.Stats())
				}
			})
		}
	}
}

// Replaying what was stored already changes nothing, as when a process dies between storing and forgetting.
func TestReplayingTwice(t *testing.T) {
	p := newPuppet()
	s := newStorm(t, p)
	x := s.begun(p, "Once ")
	s.store.goes()
	p.say <- "upon a time."
	close(p.say)
	until(t, "the turn's run is over", func() bool { return s.engine.Count() == 0 })
	records, err := s.part.spool.Records(x.Turn.ID)
	if err != nil || len(records) == 0 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	s.store.comes()
	s.sweep()
	s.titled(x)
	before, err := s.bench.store.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if err := s.part.spool.Append(x.Turn.ID, r); err != nil {
			t.Fatal(err)
		}
	}
	s.sweep()
	after, err := s.bench.store.Head(t.Context())
	if err != nil || after != before || s.part.spool.Holds(x.Turn.ID) {
		t.Errorf("%d events more, %v", after-before, err)
	}
}

func TestWhatWasDeletedStaysDeleted(t *testing.T) {
	for _, ended := range []bool{false, true} {
		p := newPuppet()
		s := newStorm(t, p)
		x := s.begun(p, "Once ")
		s.store.goes()
		p.say <- "upon a time "
		until(t, "the spool has it", func() bool { text, _ := s.records(x); return strings.HasSuffix(text, "upon a time ") })
		if ended {
			close(p.say)
			until(t, "the turn's run is over", func() bool { return s.engine.Count() == 0 })
		}
		s.store.comes()
		if err := s.s.Delete(t.Context(), s.actor, x.Turn.Conversation, nil); err != nil {
			t.Fatal(err)
		}
		until(t, "the turn's run is over", func() bool { return s.engine.Count() == 0 })
		s.sweep()
		if s.spool.Stats() != (spool.Stats{}) {
			t.Errorf("%+v", s.spool.Stats())
		}
	}
}

// A spool without room leaves everything as it was without one.
func TestAFullSpool(t *testing.T) {
	p := newPuppet()
	s := newStorm(t, p, func(c *spool.Config) { c.PerTurn = 600 })
	x := s.begun(p, "Once ")
	s.store.goes()
	long := strings.Repeat("a long story ", 100)
	p.say <- "upon a time "
	until(t, "the spool has it", func() bool { text, _ := s.records(x); return strings.HasSuffix(text, "upon a time ") })
	p.say <- long
	close(p.say)
	before := s.store.refused.Load()
	until(t, "the end is offered again and again", func() bool { return s.store.refused.Load() > before+5 })
	if text, ended := s.records(x); ended || !strings.HasSuffix(text, "upon a time ") || s.spool.Stats().Bytes > 600 {
		t.Fatalf("%q %v %+v", text, ended, s.spool.Stats())
	}
	s.store.comes()
	if got := s.await(x); got.Turn.State != conversation.Completed || got.Assistant.Content != "Once upon a time "+long {
		t.Errorf("%s", got.Turn.State)
	}
	until(t, "the spool is empty", func() bool { return s.spool.Stats() == spool.Stats{} })
}

func TestStoppingDuringAnOutage(t *testing.T) {
	p := newPuppet()
	s := newStorm(t, p)
	x := s.begun(p, "Once ")
	s.store.goes()
	p.say <- "upon "
	until(t, "the spool has it", func() bool { text, _ := s.records(x); return strings.HasSuffix(text, "upon ") })
	_, err := s.s.Stop(t.Context(), s.actor, x.Turn.Conversation, x.Turn.ID)
	wantCode(t, err, "database_unreachable") // nobody can say how it is stored
	s.store.comes()
	s.sweep()
	if turn, m := s.stored(x); turn.State != conversation.Stopped || m.Content != "Once upon " {
		t.Errorf("%s %q", turn.State, m.Content)
	}
}

func TestManyTurnsDuringAnOutage(t *testing.T) {
	const turns = 20
	p := make([]*puppet, turns)
	s := newStorm(t, newPuppet())
	var xs []conversation.Exchange
	for i := range p {
		p[i] = newPuppet()
		s.engine.Models["puppet"] = p[i]
		xs = append(xs, s.begun(p[i], "Once "))
	}
	s.store.goes()
	var wg sync.WaitGroup
	for i := range p {
		wg.Go(func() {
			for range 5 {
				p[i].say <- "more "
			}
			close(p[i].say)
		})
	}
	wg.Wait()
	until(t, "the runs are over", func() bool { return s.engine.Count() == 0 })
	if got := len(s.part.spool.Turns()); got != turns {
		t.Fatalf("%d turns in the spool", got)
	}
	s.store.comes()
	for range 4 {
		wg.Go(func() { s.sweep() })
	}
	wg.Wait()
	ends := 0
	events, err := s.bench.store.Since(t.Context(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if e.Type == "turn.completed" {
			ends++
		}
	}
	if ends != turns || s.spool.Stats() != (spool.Stats{}) {
		t.Errorf("%d ends, %+v", ends, s.spool.Stats())
	}
	for _, x := range xs {
		if turn, m := s.stored(x); turn.State != conversation.Completed || m.Content != "Once more more more more more " {
			t.Errorf("%s %q", turn.State, m.Content)
		}
	}
}
