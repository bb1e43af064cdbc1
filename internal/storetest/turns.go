package storetest

import (
	"errors"
	"testing"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

// ask appends a user's message with an answer that is about to come.
func (r *room) ask(w conversation.Where, content string) (conversation.Turn, []conversation.Message) {
	r.Helper()
	r.now++
	user, answer := plainMessage(content), plainMessage("")
	turn := conversation.Turn{ID: ident.New[ident.TurnID](), Conversation: r.id, UserMessage: user.ID,
		AssistantMessage: answer.ID, Kind: conversation.KindSend, State: conversation.Streaming, Provider: "anthropic",
		Model: "m-1", MaxTokens: 4096, SystemHash: "hash-1", Omitted: 2, Node: "node-1", Lease: at(r.now + 1),
		StartedAt: at(r.now)}
	user.Turn = turn.ID
	answer.Turn, answer.Role, answer.State, answer.Tokens = turn.ID, conversation.Assistant, conversation.Streaming, 0
	answer.Author = event.Who{Name: "Claude"}
	_, e, err := r.Talk.Append(r.Context(), r.id, w, func(conversation.Spot) (conversation.Entry, event.Change, error) {
		return conversation.Entry{Messages: []conversation.Message{user, answer}, Turn: &turn, System: "be kind"},
			happens(r.now, "turn.started", string(turn.ID)), nil
	})
	must(r, err)
	return turn, e.Messages
}

// says is a text that is known beforehand.
func says(text string) func() string { return func() string { return text } }

// flush adds a piece of the answer.
func (r *room) flush(turn conversation.Turn, offset int, piece string, lease time.Time) bool {
	r.Helper()
	held, err := r.Talk.FlushTurn(r.Context(), turn, offset, says(piece), lease)
	must(r, err)
	return held
}

// finish ends a turn with what its message holds by then.
func (r *room) finish(turn conversation.Turn, state conversation.State, minutes int) conversation.Ending {
	r.Helper()
	e, err := r.Talk.EndTurn(r.Context(), turn.ID,
		func(t conversation.Turn, m conversation.Message) (conversation.Ending, event.Change, error) {
			done := at(minutes)
			t.State, t.FinishedAt = state, &done
			m.State, m.UpdatedAt, m.Tokens = state, done, 10
			return conversation.Ending{Turn: t, Message: m}, happens(minutes, "turn."+string(state), string(t.ID)), nil
		})
	must(r, err)
	return e
}

func turns(t *testing.T, h Harness) {
	t.Run("every field comes back, with both messages", func(t *testing.T) {
		r := newRoom(t, h)
		turn, list := r.ask(active, "hello")
		got, user, answer, err := r.Talk.FindTurn(t.Context(), r.id, turn.ID)
		must(t, err)
		same(t, "turn", got, turn)
		same(t, "user's message", user, list[0])
		want := list[1]
		want.Node, want.Lease = turn.Node, turn.Lease
		same(t, "answer", answer, want)
		body, err := r.Talk.System(t.Context(), "hash-1")
		must(t, err)
		same(t, "system prompt", body, "be kind")
	})
	t.Run("what is missing is not found", func(t *testing.T) {
		r := newRoom(t, h)
		turn, _ := r.ask(active, "hello")
		_, _, _, err := r.Talk.FindTurn(t.Context(), r.open("other", 0).ID, turn.ID)
		wantCode(t, err, "not_found")
		_, _, _, err = r.Talk.FindTurn(t.Context(), r.id, ident.New[ident.TurnID]())
		wantCode(t, err, "not_found")
		_, err = r.Talk.EndTurn(t.Context(), ident.New[ident.TurnID](),
			func(conversation.Turn, conversation.Message) (conversation.Ending, event.Change, error) {
				t.Error("end was asked")
				return conversation.Ending{}, event.Change{}, nil
			})
		wantCode(t, err, "not_found")
		_, err = r.Talk.System(t.Context(), "nothing")
		wantCode(t, err, "not_found")
	})
	t.Run("flushes grow the answer by UTF-16 units", func(t *testing.T) {
		r := newRoom(t, h)
		turn, list := r.ask(active, "hello")
		events := len(r.Commits())
		same(t, "first", r.flush(turn, 0, "a🧵", at(5)), true)
		same(t, "second", r.flush(turn, 3, "é日", at(6)), true)
		same(t, "renewal", r.flush(turn, 5, "", at(7)), true)
		_, _, m, err := r.Talk.FindTurn(t.Context(), r.id, turn.ID)
		must(t, err)
		same(t, "content", m.Content, "a🧵é日")
		same(t, "lease", m.Lease, at(7))
		page, _, err := r.Talk.ListMessages(t.Context(), r.id, conversation.MessageQuery{Limit: 1})
		must(t, err)
		same(t, "on a page", page[0], m)
		same(t, "by itself", list[1].ID, m.ID)
		same(t, "announced", len(r.Commits()), events)
	})
	t.Run("a flush that does not fit changes nothing", func(t *testing.T) { misfits(t, h) })
	t.Run("an end keeps what arrived", func(t *testing.T) {
		r := newRoom(t, h)
		turn, _ := r.ask(active, "hello")
		r.flush(turn, 0, "part", at(5))
		e := r.finish(turn, conversation.Stopped, 20)
		got, _, m, err := r.Talk.FindTurn(t.Context(), r.id, turn.ID)
		must(t, err)
		same(t, "turn", got, e.Turn)
		same(t, "content", m.Content, "part")
		same(t, "state", m.State, conversation.Stopped)
		same(t, "tokens up to it", m.TokensUpTo, 11)
		same(t, "returned tokens", e.Message.TokensUpTo, 11)
		c, err := r.Talk.FindConversation(t.Context(), r.id)
		must(t, err)
		same(t, "updated", c.UpdatedAt, at(20))
		same(t, "last message", *c.LastMessageAt, at(20))
		next := r.say(active, "go on")
		same(t, "what follows counts them", next.TokensUpTo, 12)
	})
	t.Run("an end writes every field of the answer", func(t *testing.T) {
		r := newRoom(t, h)
		turn, list := r.ask(active, "hello")
		want, full := list[1], fullMessage()
		full.ID, full.Conversation, full.Parent, full.Turn = want.ID, want.Conversation, want.Parent, want.Turn
		full.Branch, full.Depth, full.Role, full.Author, full.CreatedAt = want.Branch, want.Depth, want.Role, want.Author, want.CreatedAt
		done := at(9)
		wantTurn := turn
		wantTurn.State, wantTurn.ErrorCode, wantTurn.ErrorDetail, wantTurn.FinishedAt = conversation.Failed, "c", "d", &done
		_, err := r.Talk.EndTurn(t.Context(), turn.ID,
			func(conversation.Turn, conversation.Message) (conversation.Ending, event.Change, error) {
				return conversation.Ending{Turn: wantTurn, Message: full}, happens(9, "turn.failed", string(turn.ID)), nil
			})
		must(t, err)
		got, _, m, err := r.Talk.FindTurn(t.Context(), r.id, turn.ID)
		must(t, err)
		full.TokensUpTo = 12
		same(t, "turn", got, wantTurn)
		same(t, "answer", m, full)
	})
	t.Run("a second end sees the first", func(t *testing.T) {
		r := newRoom(t, h)
		turn, _ := r.ask(active, "hello")
		r.finish(turn, conversation.Completed, 20)
		head, err := r.Events.Head(t.Context())
		must(t, err)
		late := errors.New("ended already")
		if _, err = r.Talk.EndTurn(t.Context(), turn.ID,
			func(was conversation.Turn, m conversation.Message) (conversation.Ending, event.Change, error) {
				same(t, "turn", was.State, conversation.Completed)
				same(t, "answer", m.State, conversation.Completed)
				return conversation.Ending{Turn: was, Message: m}, happens(21, "turn.stopped", string(turn.ID)), late
			}); !errors.Is(err, late) {
			t.Fatalf("got %v", err)
		}
		_, err = r.Talk.EndTurn(t.Context(), turn.ID,
			func(was conversation.Turn, m conversation.Message) (conversation.Ending, event.Change, error) {
				return conversation.Ending{Turn: was, Message: m}, event.NewChange(ada, at(22)), nil
			})
		must(t, err)
		after, err := r.Events.Head(t.Context())
		must(t, err)
		same(t, "head", after, head)
		c, err := r.Talk.FindConversation(t.Context(), r.id)
		must(t, err)
		same(t, "updated", c.UpdatedAt, at(20))
	})
	t.Run("only running turns are running, that first whose lease ends first", func(t *testing.T) {
		r := newRoom(t, h)
		first, _ := r.ask(active, "a")
		second, _ := r.ask(active, "b")
		third, _ := r.ask(active, "c")
		r.finish(second, conversation.Completed, 20)
		waiting := first
		_, err := r.Talk.EndTurn(t.Context(), first.ID,
			func(was conversation.Turn, m conversation.Message) (conversation.Ending, event.Change, error) {
				was.State, was.Node, was.Lease, was.Omitted = conversation.Waiting, "", at(900), 7
				m.PrefixHash = "what was asked"
				waiting = was
				return conversation.Ending{Turn: was, Message: m}, happens(20, "turn.waiting", string(was.ID)), nil
			})
		must(t, err)
		list, err := r.Talk.RunningTurns(t.Context(), 10)
		must(t, err)
		same(t, "running", list, []conversation.Turn{third, waiting})
		list, err = r.Talk.RunningTurns(t.Context(), 1)
		must(t, err)
		same(t, "bounded", list, []conversation.Turn{third})
		got, _, m, err := r.Talk.FindTurn(t.Context(), r.id, first.ID)
		must(t, err)
		same(t, "waiting", got, waiting)
		same(t, "who answers, and until when", []any{m.State, m.Node, m.Lease, m.PrefixHash},
			[]any{conversation.Streaming, "", at(900), "what was asked"})
		same(t, "a late flush", r.flush(first, 0, "late", at(5)), false)
	})
	t.Run("a turn knows the project of its conversation", func(t *testing.T) {
		r := newRoom(t, h)
		c := plainConversation("in a project", 1)
		c.ProjectID = r.project(plainProject("p", 0)).ID
		must(t, r.Talk.InsertConversation(t.Context(), c, happens(1, "conversation.created", string(c.ID))))
		r.id = c.ID
		turn, _ := r.ask(active, "a")
		got, _, _, err := r.Talk.FindTurn(t.Context(), r.id, turn.ID)
		must(t, err)
		same(t, "found", got.Project, c.ProjectID)
		list, err := r.Talk.RunningTurns(t.Context(), 1)
		must(t, err)
		same(t, "running", list[0].Project, c.ProjectID)
		same(t, "ended", r.finish(turn, conversation.Completed, 20).Turn.Project, c.ProjectID)
	})
	t.Run("a system prompt is kept once", func(t *testing.T) {
		r := newRoom(t, h)
		r.ask(active, "a")
		r.ask(active, "b")
		body, err := r.Talk.System(t.Context(), "hash-1")
		must(t, err)
		same(t, "body", body, "be kind")
	})
}

func misfits(t *testing.T, h Harness) {
	r := newRoom(t, h)
	turn, _ := r.ask(active, "hello")
	same(t, "held", r.flush(turn, 0, "abc", at(5)), true)
	_, _, before, err := r.Talk.FindTurn(t.Context(), r.id, turn.ID)
	must(t, err)
	stranger, unknown := turn, turn
	stranger.Node, unknown.ID = "node-2", ident.New[ident.TurnID]()
	for name, try := range map[string]func() bool{
		"too early":     func() bool { return r.flush(turn, 2, "x", at(50)) },
		"too late":      func() bool { return r.flush(turn, 4, "x", at(50)) },
		"a stranger":    func() bool { return r.flush(stranger, 3, "x", at(50)) },
		"no such turn":  func() bool { return r.flush(unknown, 3, "x", at(50)) },
		"empty, early":  func() bool { return r.flush(turn, 2, "", at(50)) },
		"empty, no one": func() bool { return r.flush(stranger, 3, "", at(50)) },
	} {
		same(t, name, try(), false)
		got, _, after, err := r.Talk.FindTurn(t.Context(), r.id, turn.ID)
		must(t, err)
		same(t, "answer after "+name, after, before)
		same(t, "lease after "+name, got.Lease, at(5))
	}
	r.finish(turn, conversation.Stopped, 20)
	same(t, "after the end", r.flush(turn, 3, "x", at(50)), false)
	got, _, after, err := r.Talk.FindTurn(t.Context(), r.id, turn.ID)
	must(t, err)
	same(t, "content", after.Content, "abc")
	same(t, "lease", got.Lease, at(5))
}
