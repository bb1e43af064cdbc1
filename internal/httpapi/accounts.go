package httpapi

import (
	"context"
	"encoding/json"
	"time"

	"claude-memory-backend/internal/ident"
)

// User is an account as clients see it.
type User struct {
	ID        ident.AccountID
	Email     string
	Name      string
	Role      ident.Role
	Settings  json.RawMessage
	CreatedAt time.Time
}

// Grant is a session with its tokens.
type Grant struct {
	User           User
	AccessToken    string
	RefreshToken   string
	AccessExpires  time.Time
	RefreshExpires time.Time
}

// Origin is where a request came from, for sessions and the trail.
type Origin struct {
	Address   string
	Device    string // the User-Agent
	RequestID string
}

// Identity is who a verified token stands for.
type Identity struct {
	Actor  ident.Actor // without address and request id: the door adds them
	Tenant ident.TenantID
}

// Session is one signed-in device.
type Session struct {
	ID        ident.SessionID
	Device    string
	Address   string
	CreatedAt time.Time
	LastUsed  time.Time
	Current   bool
}

// Accounts is account.Service as the door sees it.
type Accounts interface {
	Register(ctx context.Context, email, password, name string, from Origin) (Grant, error)
	Login(ctx context.Context, email, password string, from Origin) (Grant, error)
	Refresh(ctx context.Context, refreshToken string, from Origin) (Grant, error)
	// Verify reads an access token.
	Verify(ctx context.Context, accessToken string) (Identity, error)
	Logout(ctx context.Context, actor ident.Actor) error
	LogoutAll(ctx context.Context, actor ident.Actor) error
	Profile(ctx context.Context, actor ident.Actor) (User, error)
	EditProfile(ctx context.Context, actor ident.Actor, change func(name *string, settings *json.RawMessage) error) (User, error)
	ChangePassword(ctx context.Context, actor ident.Actor, current, next string) error
	Sessions(ctx context.Context, actor ident.Actor) ([]Session, error)
	EndSession(ctx context.Context, actor ident.Actor, id ident.SessionID) error
}
