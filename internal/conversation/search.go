package conversation

import (
	"context"

	"claude-memory-backend/internal/fault"
)

func search(_ context.Context, _ Index, _ SearchInput) ([]Hit, string, error) {
	return nil, "", fault.New(fault.Unavailable, "conversation.Search", "", "search is being built")
}
