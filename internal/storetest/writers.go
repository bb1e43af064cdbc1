package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/project"
)

// together runs n functions at once and returns their errors.
func together(n int, do func(i int) error) []error {
	errs := make([]error, n)
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() { errs[i] = do(i) })
	}
	group.Wait()
	return errs
}

const many = 64

func writers(t *testing.T, h Harness) {
	t.Run("64 writers append to one conversation and nothing is lost", func(t *testing.T) {
		r := newRoom(t, h)
		sent := make([]string, many)
		must(t, errors.Join(together(many, func(i int) error {
			m := plainMessage(fmt.Sprint("m", i))
			sent[i] = m.Content
			_, _, err := r.Talk.Append(t.Context(), r.id, active,
				func(conversation.Spot) (conversation.Entry, event.Change, error) {
					return conversation.Entry{Messages: []conversation.Message{m}}, happens(i, "message.appended", string(m.ID)), nil
				})
			return err
		})...))
		list, _, err := r.Talk.ListMessages(t.Context(), r.id, conversation.MessageQuery{Limit: 2 * many, Ascending: true})
		must(t, err)
		for i, m := range list {
			same(t, "depth", m.Depth, int64(i+1))
			same(t, "branch", m.Branch, 0)
			same(t, "tokens", m.TokensUpTo, int64(i+1))
		}
		got := contents(list)
		slices.Sort(got)
		slices.Sort(sent)
		same(t, "messages", got, sent)
		c, err := r.Talk.FindConversation(t.Context(), r.id)
		must(t, err)
		same(t, "count", c.MessageCount, many)
		same(t, "leaf", c.Leaf, list[many-1].ID)
		r.gapless(many + 1)
	})
	t.Run("64 writers fork one message into 64 branches", func(t *testing.T) {
		r := newRoom(t, h)
		root := r.say(active, "root")
		branches := make([]int64, many)
		must(t, errors.Join(together(many, func(i int) error {
			_, e, err := r.Talk.Append(t.Context(), r.id, under(root),
				func(conversation.Spot) (conversation.Entry, event.Change, error) {
					return conversation.Entry{Messages: []conversation.Message{plainMessage("x")}}, happens(i, "m", "m"), nil
				})
			if err == nil {
				branches[i] = e.Messages[0].Branch
			}
			return err
		})...))
		slices.Sort(branches)
		for i, b := range branches {
			same(t, "branch", b, int64(i))
		}
	})
	t.Run("64 writers in 64 conversations number their events without gaps", func(t *testing.T) {
		r := &room{TB: t, Stores: h.Tenant(t)}
		must(t, errors.Join(together(many, func(i int) error {
			c := plainConversation(fmt.Sprint(i), i)
			ch := happens(i, "conversation.created", string(c.ID))
			ch.Add("second", string(c.ID), map[string]any{})
			return r.Talk.InsertConversation(t.Context(), c, ch)
		})...))
		r.gapless(2 * many)
		events, err := r.Events.Since(t.Context(), 0, 3*many)
		must(t, err)
		for i := 0; i < len(events); i += 2 {
			same(t, "neighbours", events[i].Subject, events[i+1].Subject)
		}
	})
	t.Run("of 64 with one key, one is first", func(t *testing.T) {
		r := newRoom(t, h)
		errs := together(many, func(i int) error {
			_, _, err := r.Talk.Append(t.Context(), r.id, active,
				func(conversation.Spot) (conversation.Entry, event.Change, error) {
					return conversation.Entry{Messages: []conversation.Message{plainMessage("x")}},
						onceNow(happens(i, "m", "m"), "k"), nil
				})
			return err
		})
		first := 0
		for _, err := range errs {
			if err == nil {
				first++
			} else if !event.Repeated(err) {
				t.Error(err)
			}
		}
		same(t, "first", first, 1)
		r.gapless(2)
	})
	t.Run("two edits of one row both count", func(t *testing.T) {
		r := newRoom(t, h)
		must(t, errors.Join(together(many/4, func(i int) error {
			_, err := r.Talk.UpdateConversation(t.Context(), r.id,
				func(c conversation.Conversation) (conversation.Conversation, event.Change, error) {
					c.Version++
					c.Description += "x"
					return c, happens(i, "conversation.updated", string(r.id)), nil
				})
			return err
		})...))
		c, err := r.Talk.FindConversation(t.Context(), r.id)
		must(t, err)
		same(t, "version", c.Version, many/4+1)
		same(t, "description", len(c.Description), many/4)
	})
	t.Run("flushes and the end of a turn never mix", func(t *testing.T) { race(t, h) })
	t.Run("deletions and writers leave no orphans", func(t *testing.T) { orphans(t, h) })
}

// gapless asserts that the log is 1, 2, 3 … n and that the last announcement is n.
func (r *room) gapless(n int) {
	r.Helper()
	events, err := r.Events.Since(r.Context(), 0, n+10)
	must(r, err)
	same(r, "events", len(events), n)
	for i, e := range events {
		same(r, "seq", e.Seq, event.Seq(i+1))
	}
	same(r, "announced", slices.Max(r.Commits()), event.Seq(n))
}

// race lets several flushes with one offset and two ends meet: text grows by exactly the flushes that were told so,
// and nothing grows behind an end.
func race(t *testing.T, h Harness) {
	for range 5 {
		r := newRoom(t, h)
		turn, _ := r.ask(active, "hello")
		held := make([]bool, 8)
		var ended string
		ends := 0
		var mu sync.Mutex
		must(t, errors.Join(together(8, func(i int) (err error) {
			if i < 6 {
				held[i], err = r.Talk.FlushTurn(t.Context(), turn, 0, says("abc"), at(30+i))
				return err
			}
			_, err = r.Talk.EndTurn(t.Context(), turn.ID,
				func(was conversation.Turn, m conversation.Message) (conversation.Ending, event.Change, error) {
					if was.State.Final() {
						return conversation.Ending{}, event.Change{}, fault.New(fault.Conflict, "test", "ended", "ended")
					}
					was.State, m.State = conversation.Stopped, conversation.Stopped
					mu.Lock()
					ended = m.Content
					mu.Unlock()
					return conversation.Ending{Turn: was, Message: m}, happens(9, "turn.stopped", string(turn.ID)), nil
				})
			if fault.CodeOf(err) == "ended" {
				return nil
			}
			mu.Lock()
			ends++
			mu.Unlock()
			return err
		})...))
		n := 0
		for _, ok := range held {
			if ok {
				n++
			}
		}
		_, _, m, err := r.Talk.FindTurn(t.Context(), r.id, turn.ID)
		must(t, err)
		same(t, "ends", ends, 1)
		same(t, "content", m.Content, ended)
		same(t, "units of what was held", 3*n, len(m.Content))
	}
}

func orphans(t *testing.T, h Harness) {
	for range 3 {
		r := newRoom(t, h)
		p := r.project(plainProject("p", 0))
		r.id = r.inProject(p.ID, "c").ID
		turn, _ := r.ask(active, "hello")
		known := func(err error) error {
			if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Invalid) {
				return nil
			}
			return err
		}
		must(t, errors.Join(together(12, func(i int) error {
			switch i % 6 {
			case 0:
				_, err := r.Talk.FlushTurn(t.Context(), turn, 0, says("x"), at(3))
				return err
			case 1:
				_, err := r.Talk.EndTurn(t.Context(), turn.ID,
					func(was conversation.Turn, m conversation.Message) (conversation.Ending, event.Change, error) {
						was.State, m.State = conversation.Stopped, conversation.Stopped
						return conversation.Ending{Turn: was, Message: m}, happens(9, "turn.stopped", string(turn.ID)), nil
					})
				return known(err)
			case 2:
				_, _, err := r.Talk.Append(t.Context(), r.id, active,
					func(conversation.Spot) (conversation.Entry, event.Change, error) {
						return conversation.Entry{Messages: []conversation.Message{plainMessage("x")}}, happens(i, "m", "m"), nil
					})
				return known(err)
			case 3:
				return known(r.Talk.DeleteConversation(t.Context(), r.id,
					func(conversation.Conversation) (event.Change, error) {
						return happens(i, "conversation.deleted", string(r.id)), nil
					}))
			case 4:
				c := plainConversation("late", 0)
				c.ProjectID = p.ID
				return known(r.Talk.InsertConversation(t.Context(), c, happens(i, "conversation.created", string(c.ID))))
			}
			return known(r.Projects.DeleteProject(t.Context(), p.ID, true, removed))
		})...))
		_, err := r.Talk.FindConversation(t.Context(), r.id)
		wantCode(t, err, "not_found")
		list, _, err := r.Talk.ListConversations(t.Context(), conversation.Query{Project: p.ID, Limit: 10})
		must(t, err)
		same(t, "conversations without their project", len(list), 0)
		running, err := r.Talk.RunningTurns(t.Context(), 10)
		must(t, err)
		same(t, "turns without their conversation", len(running), 0)
		head, err := r.Events.Head(t.Context())
		must(t, err)
		r.gapless(int(head))
	}
}

func contexts(t *testing.T, h Harness) {
	t.Run("a cancelled context writes nothing", func(t *testing.T) {
		r := newRoom(t, h)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		c := plainConversation("x", 0)
		wantCode(t, r.Talk.InsertConversation(ctx, c, happens(0, "c", "c")), "canceled")
		_, err := r.Talk.FindConversation(ctx, r.id)
		wantCode(t, err, "canceled")
		r.unchanged(1, "k")
	})
	t.Run("one cancelled between read and commit writes nothing", func(t *testing.T) {
		r := newRoom(t, h)
		ctx, cancel := context.WithCancel(t.Context())
		_, _, err := r.Talk.Append(ctx, r.id, active,
			func(conversation.Spot) (conversation.Entry, event.Change, error) {
				cancel()
				return conversation.Entry{Messages: []conversation.Message{plainMessage("x")}}, happens(1, "m", "m"), nil
			})
		wantCode(t, err, "canceled")
		r.unchanged(1, "k")
		r.say(active, "the database still works")
	})
}

func tenants(t *testing.T, h Harness) {
	t.Run("two tenants side by side never meet", func(t *testing.T) {
		a, b := newRoom(t, h), newRoom(t, h)
		p := a.project(plainProject("p", 0))
		m := a.say(active, "mine")
		turn, _ := a.ask(active, "hello")
		_, err := b.Projects.FindProject(t.Context(), p.ID)
		wantCode(t, err, "not_found")
		_, err = b.Talk.FindConversation(t.Context(), a.id)
		wantCode(t, err, "not_found")
		_, _, err = b.Talk.ListMessages(t.Context(), a.id, conversation.MessageQuery{Limit: 5})
		wantCode(t, err, "not_found")
		_, err = b.Talk.FindMessage(t.Context(), b.id, m.ID)
		wantCode(t, err, "not_found")
		_, _, _, err = b.Talk.FindTurn(t.Context(), b.id, turn.ID)
		wantCode(t, err, "not_found")
		same(t, "held", b.flush(turn, 0, "x", at(3)), false)
		_, err = b.Talk.System(t.Context(), "hash-1")
		wantCode(t, err, "not_found")
		list, _, err := b.Talk.ListConversations(t.Context(), conversation.Query{Limit: 10})
		must(t, err)
		same(t, "conversations", len(list), 1)
		// The same identifiers and keys may be used in both.
		c, err := a.Talk.FindConversation(t.Context(), a.id)
		must(t, err)
		c.MessageCount, c.Leaf, c.LastMessageAt, c.UpdatedAt = 0, "", nil, c.CreatedAt
		must(t, b.Talk.InsertConversation(t.Context(), c, onceNow(happens(1, "c", "c"), "k")))
		other := plainConversation("x", 0)
		must(t, a.Talk.InsertConversation(t.Context(), other, onceNow(happens(1, "c", "c"), "k")))
		b.gapless(2)
		a.gapless(5)
	})
}

func removed(p project.Project, _ int64) (event.Change, error) {
	return happens(9, "project.deleted", string(p.ID)), nil
}

func roundTrips(t *testing.T, h Harness) {
	r := newRoom(t, h)
	p := r.project(plainProject("p", 0))
	m := r.say(active, "a")
	turn, _ := r.ask(active, "b")
	for _, c := range []struct {
		name string
		want int64
		do   func() error
	}{
		{"inserting a project", 1, func() error {
			return r.Projects.InsertProject(t.Context(), plainProject("x", 0), onceNow(happens(1, "p", "p"), "k1"))
		}},
		{"finding a project", 1, func() error { _, err := r.Projects.FindProject(t.Context(), p.ID); return err }},
		{"inserting a conversation", 1, func() error {
			c := plainConversation("x", 0)
			return r.Talk.InsertConversation(t.Context(), c, onceNow(happens(1, "c", "c"), "k2"))
		}},
		{"listing conversations", 1, func() error {
			_, _, err := r.Talk.ListConversations(t.Context(), conversation.Query{Limit: 5})
			return err
		}},
		{"editing a conversation", 2, func() error {
			_, err := r.Talk.UpdateConversation(t.Context(), r.id,
				func(c conversation.Conversation) (conversation.Conversation, event.Change, error) {
					c.Title = "new"
					return c, happens(1, "c", "c"), nil
				})
			return err
		}},
		{"appending two messages with a turn", 2, func() error { r.ask(active, "x"); return nil }},
		{"opening a branch", 2, func() error { r.say(under(m), "x"); return nil }},
		{"a page of messages", 1, func() error {
			_, _, err := r.Talk.ListMessages(t.Context(), r.id, conversation.MessageQuery{Limit: 5})
			return err
		}},
		{"a page of all messages", 1, func() error {
			_, _, err := r.Talk.ListMessages(t.Context(), r.id, conversation.MessageQuery{Limit: 5, All: true})
			return err
		}},
		{"a path", 1, func() error { _, err := r.Talk.Path(t.Context(), r.id, m.ID, 5, 0); return err }},
		{"finding a turn", 1, func() error { _, _, _, err := r.Talk.FindTurn(t.Context(), r.id, turn.ID); return err }},
		{"flushing", 1, func() error { r.flush(turn, 0, "x", at(9)); return nil }},
		{"ending a turn", 2, func() error { r.finish(turn, conversation.Completed, 9); return nil }},
		{"deleting a conversation", 2, func() error {
			return r.Talk.DeleteConversation(t.Context(), r.id, func(conversation.Conversation) (event.Change, error) {
				return happens(1, "c", "c"), nil
			})
		}},
		{"deleting a project", 2, func() error { return r.Projects.DeleteProject(t.Context(), p.ID, true, removed) }},
		{"a missing one", 1, func() error {
			_, err := r.Talk.FindConversation(t.Context(), ident.New[ident.ConversationID]())
			wantCode(t, err, "not_found")
			return nil
		}},
	} {
		before := r.RoundTrips()
		must(t, c.do())
		same(t, c.name, r.RoundTrips()-before, c.want)
	}
}
