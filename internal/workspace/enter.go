package workspace

import (
	"context"
	"strings"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Enter opens the workspace in which a project or a conversation lives, if the actor may see it. What is not there, and
// what the actor may not know about, is NotFound. The caller must Release.
func (p *Pool) Enter(ctx context.Context, actor ident.Actor, own ident.TenantID, subject string) (*Workspace, error) {
	const op = "workspace.Enter"
	ws, err := p.Acquire(ctx, actor, own)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	switch {
	case strings.HasPrefix(subject, ident.ConversationID("").Prefix()):
		var id ident.ConversationID
		if id, err = ident.Parse[ident.ConversationID](subject); err == nil {
			_, err = ws.Conversations.Find(ctx, actor, id)
		}
	default:
		var id ident.ProjectID
		if id, err = ident.Parse[ident.ProjectID](subject); err == nil {
			_, err = ws.Projects.Find(ctx, actor, id)
		}
	}
	if err != nil {
		ws.Release()
		return nil, fault.Wrap(op, err)
	}
	return ws, nil
}
