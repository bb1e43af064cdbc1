package httpapi

import (
	"encoding/json"
	"strings"
	"time"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// identify verifies who asks; the header wins over the cookie. It returns why nobody is signed in.
func (x *exchange) identify() error {
	const op = "httpapi.identify"
	unsigned := fault.New(fault.Unauthenticated, op, codeUnsigned, "sign in first")
	if x.op.Access == Public {
		return unsigned // whoever calls it: nothing depends on it
	}
	token, ok := bearer(x.r)
	if !ok && x.r.Header.Get("Authorization") != "" {
		return fault.New(fault.Unauthenticated, op, codeTokenInvalid, "use Authorization: Bearer with an access token")
	}
	if !ok {
		token = cookieValue(x.r, accessCookie)
		x.byCookie = token != ""
	}
	if token == "" {
		return unsigned
	}
	if x.op.Access == Metrics && !x.byCookie && x.s.holdsMetricsToken(x.r) {
		return unsigned // permit lets it in; it is no account
	}
	who, err := x.s.deps.Accounts.Verify(x.ctx, account.AccessToken(token), x.origin())
	if err != nil {
		return err
	}
	x.actor, x.tenant, x.expires = who.Actor, who.Tenant, who.ExpiresAt
	x.actor.Address, x.actor.RequestID = x.client.String(), x.requestID
	return nil
}

// origin says where the request came from.
func (x *exchange) origin() account.Origin {
	device := x.r.UserAgent()
	if len(device) > 200 {
		device = device[:200]
	}
	return account.Origin{Address: x.client.String(), Device: device, RequestID: x.requestID}
}

// userView is an account as its owner sees it.
type userView struct {
	ID        string    `json:"id" example:"usr_06f4k3z9c8tqv5m2yb7n1x0d4e"`
	Email     string    `json:"email" example:"ada@example.org"`
	Name      string    `json:"name"`
	Role      string    `json:"role" enum:"member,admin"`
	Settings  object    `json:"settings"`
	CreatedAt time.Time `json:"created_at"`
}

func viewUser(u account.Account) userView {
	return userView{ID: string(u.ID), Email: u.Email, Name: u.Name, Role: string(u.Role), Settings: object(u.Settings),
		CreatedAt: u.CreatedAt.UTC()}
}

// grantView is a session as the one who opened it sees it.
type grantView struct {
	User         userView `json:"user"`
	AccessToken  string   `json:"access_token,omitempty" doc:"Not there when cookies were asked for"`
	TokenType    string   `json:"token_type,omitempty" enum:"Bearer"`
	ExpiresIn    int64    `json:"expires_in" doc:"Seconds until the access token expires"`
	RefreshToken string   `json:"refresh_token,omitempty" doc:"Not there when cookies were asked for"`
}

type grantAnswer struct{ Body grantView }

// grant answers with the tokens, or with cookies that hold them.
func (s *Server) grant(x *exchange, g account.Grant, cookie bool) *grantAnswer {
	out := &grantAnswer{grantView{User: viewUser(g.Account), ExpiresIn: int64(g.ExpiresIn.Seconds())}}
	if cookie {
		s.setCookies(x.w, g)
		return out
	}
	out.Body.AccessToken, out.Body.TokenType, out.Body.RefreshToken = g.AccessToken.Reveal(), "Bearer", g.RefreshToken.Reveal()
	return out
}

type registerIn struct {
	Call
	Body struct {
		Email    string `json:"email" maxLength:"320" example:"ada@example.org"`
		Password string `json:"password" maxLength:"1024"`
		Name     string `json:"name,omitempty" maxLength:"200"`
		Cookie   bool   `json:"cookie,omitempty" doc:"Hand the tokens over as cookies instead of in the body"`
		Setup    string `json:"setup_token,omitempty" maxLength:"200" doc:"Printed by the first start in production; makes this account an admin, once"`
	} `nameHint:"Registration"`
}

type registered struct {
	Replayed string `header:"Idempotency-Replayed" doc:"true when this is an earlier answer"`
	Body     grantView
}

func (s *Server) register(x *exchange, in *registerIn) (*registered, error) {
	// Nobody is signed in yet: the key belongs to the address that registers.
	once, err := x.onceOf(strings.ToLower(strings.TrimSpace(in.Body.Email)))
	if err != nil {
		return nil, err
	}
	g, err := s.deps.Accounts.Register(x.ctx, account.RegisterInput{Email: in.Body.Email, Password: in.Body.Password,
		Name: in.Body.Name, SetupToken: in.Body.Setup, Once: once}, x.origin())
	if err != nil {
		return nil, err
	}
	out := s.grant(x, g, in.Body.Cookie)
	return &registered{Replayed: replayed(once), Body: out.Body}, nil
}

type loginIn struct {
	Call
	Body struct {
		Email    string `json:"email" maxLength:"320" example:"ada@example.org"`
		Password string `json:"password" maxLength:"1024"`
		Cookie   bool   `json:"cookie,omitempty" doc:"Hand the tokens over as cookies instead of in the body"`
	} `nameHint:"Login"`
}

func (s *Server) login(x *exchange, in *loginIn) (*grantAnswer, error) {
	g, err := s.deps.Accounts.Login(x.ctx, in.Body.Email, in.Body.Password, x.origin())
	if err != nil {
		return nil, err
	}
	return s.grant(x, g, in.Body.Cookie), nil
}

type refreshBody struct {
	RefreshToken string `json:"refresh_token,omitempty" maxLength:"1024" doc:"Left out when the cookie holds it"`
}

type refreshIn struct {
	Call
	Body *refreshBody
}

// refresh rotates the token that came, and answers the way that it came.
func (s *Server) refresh(x *exchange, in *refreshIn) (*grantAnswer, error) {
	token, cookie := "", false
	if in.Body != nil {
		token = in.Body.RefreshToken
	}
	if token == "" {
		token = cookieValue(x.r, refreshCookie)
		cookie = true
	}
	if token == "" {
		return nil, fault.New(fault.Unauthenticated, "httpapi.refresh", codeUnsigned, "there is no refresh token")
	}
	g, err := s.deps.Accounts.Refresh(x.ctx, account.RefreshToken(token), x.origin())
	if err != nil {
		if cookie && fault.Is(err, fault.Unauthenticated) {
			s.dropCookies(x.w)
		}
		return nil, err
	}
	return s.grant(x, g, cookie), nil
}

func (s *Server) logout(x *exchange, _ *probe) (*nothing, error) {
	if err := s.deps.Accounts.Logout(x.ctx, x.actor); err != nil {
		return nil, err
	}
	s.dropCookies(x.w)
	return &nothing{}, nil
}

func (s *Server) logoutAll(x *exchange, _ *probe) (*nothing, error) {
	if err := s.deps.Accounts.LogoutAll(x.ctx, x.actor); err != nil {
		return nil, err
	}
	s.dropCookies(x.w)
	return &nothing{}, nil
}

type profileAnswer struct{ Body userView }

func (s *Server) profile(x *exchange, _ *probe) (*profileAnswer, error) {
	u, err := s.deps.Accounts.Find(x.ctx, x.actor)
	if err != nil {
		return nil, err
	}
	return &profileAnswer{viewUser(u)}, nil
}

// profileBody is what an account's owner may edit.
type profileBody struct {
	Name     string `json:"name,omitempty" maxLength:"200" nullable:"true"`
	Settings object `json:"settings,omitempty" nullable:"true" doc:"Merged key by key; null removes a key"`
}

type profilePatch struct {
	Call
	Body profileBody
}

func (s *Server) patchProfile(x *exchange, _ *profilePatch) (*profileAnswer, error) {
	u, err := s.deps.Accounts.Edit(x.ctx, x.actor, func(d *account.Details) error {
		b, err := merged(profileBody{Name: d.Name, Settings: object(d.Settings)}, x.body)
		d.Name, d.Settings = b.Name, json.RawMessage(b.Settings)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &profileAnswer{viewUser(u)}, nil
}

type passwordIn struct {
	Call
	Body struct {
		CurrentPassword string `json:"current_password" maxLength:"1024"`
		NewPassword     string `json:"new_password" maxLength:"1024"`
	} `nameHint:"PasswordChange"`
}

func (s *Server) changePassword(x *exchange, in *passwordIn) (*nothing, error) {
	return &nothing{}, s.deps.Accounts.ChangePassword(x.ctx, x.actor, in.Body.CurrentPassword, in.Body.NewPassword)
}

// sessionView is one signed-in device.
type sessionView struct {
	ID         string    `json:"id" example:"ses_06f4k3z9c8tqv5m2yb7n1x0d4e"`
	Device     string    `json:"device" doc:"What the client called itself"`
	Address    string    `json:"address"`
	CreatedAt  time.Time `json:"created_at"`
	LastUsedAt time.Time `json:"last_used_at"`
	ExpiresAt  time.Time `json:"expires_at"`
	Current    bool      `json:"current" doc:"The session of this very request"`
}

func viewSession(v account.Session) sessionView {
	return sessionView{ID: string(v.ID), Device: v.Device, Address: v.Address, CreatedAt: v.CreatedAt.UTC(),
		LastUsedAt: v.LastUsedAt.UTC(), ExpiresAt: v.ExpiresAt.UTC(), Current: v.Current}
}

type sessionList struct {
	Call
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"20"`
	Cursor string `query:"cursor" maxLength:"1024" doc:"From next_cursor"`
}

func (s *Server) listSessions(x *exchange, in *sessionList) (*paged[sessionView], error) {
	list, next, err := s.deps.Accounts.Sessions(x.ctx, x.actor, in.Cursor, in.Limit)
	if err != nil {
		return nil, err
	}
	return pageOf(list, next, viewSession), nil
}

type sessionEnd struct {
	Call
	ID string `path:"id" doc:"Identifier of a session, ses_…" example:"ses_06f4k3z9c8tqv5m2yb7n1x0d4e"`
}

func (s *Server) endSession(x *exchange, in *sessionEnd) (*nothing, error) {
	id, err := ident.Parse[ident.SessionID](in.ID)
	if err != nil {
		return nil, fault.Missing("httpapi.endSession")
	}
	return &nothing{}, s.deps.Accounts.EndSession(x.ctx, x.actor, id)
}
