//go:build crashcontrol

package conversation

import (
	"context"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

// commit is the mistake that the crash harness must find: a message that asks nobody is acknowledged first and stored
// a moment later. Only cmd/memoryd's crash test builds it, to see its own checks fail.
func (s *Service) commit(ctx context.Context, id ident.ConversationID, w Where, j *job,
	fill func(Spot) (Entry, event.Change, error),
) (Conversation, Entry, error) {
	if j != nil {
		return s.store.Append(ctx, id, w, fill)
	}
	entry, change, err := fill(Spot{})
	if err != nil {
		return Conversation{}, Entry{}, err
	}
	release := s.tenant.Retain()
	go func() {
		defer release()
		time.Sleep(200 * time.Millisecond)
		_, _, _ = s.store.Append(context.WithoutCancel(ctx), id, w,
			func(Spot) (Entry, event.Change, error) { return entry, change, nil })
	}()
	return Conversation{ID: id, TitleByHand: true}, entry, nil
}
