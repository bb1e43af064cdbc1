package live_test

import (
	"context"
	"testing"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/ident"
)

// promises answers everything later.
type promises struct{}

func (promises) Answer(context.Context, conversation.Prompt, func(string)) (conversation.Answer, error) {
	return conversation.Answer{Later: true}, nil
}

// A room hears that a turn waits, and of its end when the answer comes; meanwhile it keeps no database open.
func TestARoomWithAWaitingTurn(t *testing.T) {
	h := newHouse(t, nil)
	h.addNode(nil)
	ada := h.user("ada")
	conv := ada.make("/conversations", map[string]any{})
	one, two := ada.connectTo(0), ada.connectTo(1)
	one.join(conv)
	two.join(conv)
	one.send("send_message", map[string]any{"room_id": conv, "content": "Which colour?", "provider": "promises"})
	var turn string
	for _, s := range []*socket{one, two} {
		e := s.event("turn.waiting")
		turn = e.text("subject")
		data, _ := e.field("data").(map[string]any)
		deadline, _ := data["deadline"].(string)
		if at, err := time.Parse(time.RFC3339, deadline); err != nil || time.Until(at) < 10*time.Minute {
			t.Errorf("%s", e.Data)
		}
	}
	late := ada.connect() // comes while the turn waits
	late.join(conv)
	for deadline := time.Now().Add(patience); h.pool.Stats().Leased > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the room keeps the database open")
		}
	}

	ws, err := h.pool.Acquire(t.Context(), ident.System(""), h.tenantOf(ada))
	must(t, err)
	defer ws.Release()
	_, got, err := ws.Conversations.Deliver(t.Context(), ident.System(""), ident.ConversationID(conv), ident.TurnID(turn), conversation.Delivery{
		Answer: conversation.Answer{Text: "Teal 🌊.", StopReason: "end_turn"}, Body: []byte("teal"), Until: time.Now().Add(time.Hour)})
	if err != nil || got != conversation.Taken {
		t.Fatalf("%s %v", got, err)
	}
	for _, s := range []*socket{one, two, late} {
		text := ""
		s.nextThat("end of the turn", func(f frame) bool {
			if f.Type == "message.delta" && f.text("turn_id") == turn {
				text += f.text("text")
			}
			return f.Type == "event" && f.text("type") == "turn.completed"
		})
		if text != "Teal 🌊." {
			t.Errorf("told %q before the end", text)
		}
	}
}

// tenantOf is where somebody's data is.
func (h *house) tenantOf(u *user) ident.TenantID {
	h.t.Helper()
	a, _, err := h.store.FindAccount(h.t.Context(), ident.AccountID(u.id))
	must(h.t, err)
	return a.Tenant
}
