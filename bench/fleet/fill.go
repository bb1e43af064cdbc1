package fleet

import (
	"context"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/sqlstore"
)

// Fill appends n messages to a conversation, many at once, as an import would.
func Fill(ctx context.Context, store *sqlstore.TenantStore, conv ident.ConversationID, n int, words *Corpus) error {
	const batch = 200
	for done := 0; done < n; done += batch {
		now := time.Now().UTC().Truncate(time.Microsecond)
		var list []conversation.Message
		for i := range min(batch, n-done) {
			role := conversation.User
			if (done+i)%2 == 1 {
				role = conversation.Assistant
			}
			text := words.Text()
			list = append(list, conversation.Message{ID: ident.New[ident.MessageID](), Conversation: conv, Role: role,
				Content: text, State: conversation.Completed, Tokens: int64(len(text) / 4), CreatedAt: now, UpdatedAt: now})
		}
		if _, _, err := store.Append(ctx, conv, conversation.Where{},
			func(conversation.Spot) (conversation.Entry, event.Change, error) {
				ch := event.NewChange(ident.System(""), now)
				ch.Add("message.created", string(list[0].ID), map[string]any{"conversation_id": conv})
				return conversation.Entry{Messages: list}, ch, nil
			}); err != nil {
			return err
		}
	}
	return nil
}
