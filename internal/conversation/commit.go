//go:build !crashcontrol

package conversation

import (
	"context"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

// commit stores an entry. What it returns may be acknowledged: it is on disk.
func (s *Service) commit(ctx context.Context, id ident.ConversationID, w Where, _ *job,
	fill func(Spot) (Entry, event.Change, error),
) (Conversation, Entry, error) {
	return s.store.Append(ctx, id, w, fill)
}
