package httpapi

import (
	"context"
	"time"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/ident"
)

// Accounts is account.Service as the door sees it.
type Accounts interface {
	Register(ctx context.Context, in account.RegisterInput, from account.Origin) (account.Grant, error)
	Login(ctx context.Context, email, password string, from account.Origin) (account.Grant, error)
	Refresh(ctx context.Context, token account.RefreshToken, from account.Origin) (account.Grant, error)
	// Verify reads an access token.
	Verify(ctx context.Context, token account.AccessToken, from account.Origin) (account.Identity, error)
	// Ticket makes a ticket for a WebSocket, which ends when the token does; Redeem uses it up.
	Ticket(actor ident.Actor, token time.Time) (account.Ticket, error)
	Redeem(ctx context.Context, t account.Ticket, from account.Origin) (account.Identity, error)
	Logout(ctx context.Context, actor ident.Actor) error
	LogoutAll(ctx context.Context, actor ident.Actor) error
	Find(ctx context.Context, actor ident.Actor) (account.Account, error)
	Edit(ctx context.Context, actor ident.Actor, change func(*account.Details) error) (account.Account, error)
	ChangePassword(ctx context.Context, actor ident.Actor, current, next string) error
	Sessions(ctx context.Context, actor ident.Actor, cursor string, limit int) ([]account.Session, string, error)
	EndSession(ctx context.Context, actor ident.Actor, id ident.SessionID) error
	// Deny notes an attempt that the actor's role does not allow.
	Deny(ctx context.Context, actor ident.Actor, what string) error
}
