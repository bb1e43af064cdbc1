package storetest

import (
	"encoding/json"
	"errors"
	"testing"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

func fullConversation(p ident.ProjectID) conversation.Conversation {
	c := plainConversation("Ünïcode \"title\" 🧠", 3)
	c.Details = conversation.Details{Title: c.Title, ProjectID: p, Description: "line\nline", Status: conversation.Pinned,
		ImportanceLevel: 9, Tags: []string{"α", "b", ""}, System: "be kind", Provider: "anthropic", Model: "m-1",
		Settings: json.RawMessage(`{"effort": "high",  "z":[1,2]}`)}
	c.TitleByHand, c.Version, c.UpdatedAt = true, 4, at(4)
	return c
}

func conversations(t *testing.T, h Harness) {
	t.Run("every field comes back", func(t *testing.T) {
		r := newRoom(t, h)
		want := fullConversation(r.project(plainProject("p", 0)).ID)
		must(t, r.Talk.InsertConversation(t.Context(), want, happens(3, "conversation.created", string(want.ID))))
		got, err := r.Talk.FindConversation(t.Context(), want.ID)
		must(t, err)
		same(t, "conversation", got, want)
	})
	t.Run("what is missing is not found", func(t *testing.T) {
		r := newRoom(t, h)
		id := ident.New[ident.ConversationID]()
		_, err := r.Talk.FindConversation(t.Context(), id)
		wantCode(t, err, "not_found")
		_, err = r.Talk.UpdateConversation(t.Context(), id,
			func(c conversation.Conversation) (conversation.Conversation, event.Change, error) {
				t.Error("edit was asked")
				return c, event.Change{}, nil
			})
		wantCode(t, err, "not_found")
		wantCode(t, r.Talk.DeleteConversation(t.Context(), id, func(conversation.Conversation) (event.Change, error) {
			t.Error("decide was asked")
			return event.Change{}, nil
		}), "not_found")
	})
	t.Run("a second one with the same id is a duplicate", func(t *testing.T) {
		r := newRoom(t, h)
		c := r.open("one", 0)
		wantCode(t, r.Talk.InsertConversation(t.Context(), c, happens(0, "conversation.created", "x")), "duplicate")
	})
	t.Run("a project that is not there is the input's fault", func(t *testing.T) {
		r := newRoom(t, h)
		c := plainConversation("x", 0)
		c.ProjectID = ident.New[ident.ProjectID]()
		wantField(t, r.Talk.InsertConversation(t.Context(), c, happens(0, "conversation.created", string(c.ID))),
			"body.project_id")
		_, err := r.Talk.UpdateConversation(t.Context(), r.id,
			func(was conversation.Conversation) (conversation.Conversation, event.Change, error) {
				was.ProjectID = c.ProjectID
				return was, happens(1, "conversation.updated", string(r.id)), nil
			})
		wantField(t, err, "body.project_id")
		got, err := r.Talk.FindConversation(t.Context(), r.id)
		must(t, err)
		same(t, "project", got.ProjectID, "")
	})
	t.Run("an edit replaces every editable field and nothing else", func(t *testing.T) {
		r := newRoom(t, h)
		p := r.project(plainProject("p", 0)).ID
		r.say(active, "hello")
		was, err := r.Talk.FindConversation(t.Context(), r.id)
		must(t, err)
		want := was
		want.Details, want.TitleByHand, want.Version, want.UpdatedAt = fullConversation(p).Details, true, 2, at(8)
		got, err := r.Talk.UpdateConversation(t.Context(), r.id,
			func(seen conversation.Conversation) (conversation.Conversation, event.Change, error) {
				same(t, "what edit sees", seen, was)
				return want, happens(8, "conversation.updated", string(r.id)), nil
			})
		must(t, err)
		same(t, "returned", got, want)
		got, err = r.Talk.FindConversation(t.Context(), r.id)
		must(t, err)
		same(t, "stored", got, want)
		want.ProjectID = ""
		_, err = r.Talk.UpdateConversation(t.Context(), r.id,
			func(conversation.Conversation) (conversation.Conversation, event.Change, error) {
				return want, happens(9, "conversation.updated", string(r.id)), nil
			})
		must(t, err)
		got, err = r.Talk.FindConversation(t.Context(), r.id)
		must(t, err)
		same(t, "without a project", got, want)
	})
	t.Run("an edit of nothing commits nothing", func(t *testing.T) {
		r := newRoom(t, h)
		commits := len(r.Commits())
		_, err := r.Talk.UpdateConversation(t.Context(), r.id,
			func(c conversation.Conversation) (conversation.Conversation, event.Change, error) {
				return c, event.NewChange(ada, at(9)), nil
			})
		must(t, err)
		same(t, "announced", len(r.Commits()), commits)
	})
	t.Run("a refused edit changes nothing", func(t *testing.T) {
		r := newRoom(t, h)
		no := errors.New("no")
		_, err := r.Talk.UpdateConversation(t.Context(), r.id,
			func(c conversation.Conversation) (conversation.Conversation, event.Change, error) {
				c.Title = "other"
				return c, happens(1, "conversation.updated", string(r.id)), no
			})
		if !errors.Is(err, no) {
			t.Fatalf("got %v", err)
		}
		got, err := r.Talk.FindConversation(t.Context(), r.id)
		must(t, err)
		same(t, "title", got.Title, "talk")
	})
	t.Run("going, it takes messages, branches and turns along", func(t *testing.T) {
		r := newRoom(t, h)
		m := r.say(active, "hello")
		r.say(under(m), "a")
		r.say(under(m), "b")
		turn, _ := r.ask(under(m), "c")
		must(t, r.Talk.DeleteConversation(t.Context(), r.id, func(c conversation.Conversation) (event.Change, error) {
			same(t, "messages", c.MessageCount, 5)
			return happens(9, "conversation.deleted", string(r.id)), nil
		}))
		_, err := r.Talk.FindConversation(t.Context(), r.id)
		wantCode(t, err, "not_found")
		_, _, err = r.Talk.ListMessages(t.Context(), r.id, conversation.MessageQuery{Limit: 5})
		wantCode(t, err, "not_found")
		_, err = r.Talk.FindMessage(t.Context(), r.id, m.ID)
		wantCode(t, err, "not_found")
		_, _, _, err = r.Talk.FindTurn(t.Context(), r.id, turn.ID)
		wantCode(t, err, "not_found")
		running, err := r.Talk.RunningTurns(t.Context(), 5)
		must(t, err)
		same(t, "running", len(running), 0)
		held, err := r.Talk.FlushTurn(t.Context(), turn, 0, says("x"), at(10))
		must(t, err)
		same(t, "held", held, false)
	})
	t.Run("a refused deletion leaves it", func(t *testing.T) {
		r := newRoom(t, h)
		no := errors.New("no")
		if err := r.Talk.DeleteConversation(t.Context(), r.id, func(conversation.Conversation) (event.Change, error) {
			return happens(9, "conversation.deleted", string(r.id)), no
		}); !errors.Is(err, no) {
			t.Fatalf("got %v", err)
		}
		_, err := r.Talk.FindConversation(t.Context(), r.id)
		must(t, err)
	})
}
