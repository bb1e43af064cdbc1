package httpapi

import (
	"net/http"
	"time"

	"claude-memory-backend/internal/account"
)

const (
	accessCookie  = "__Secure-memory_access"
	refreshCookie = "__Secure-memory_refresh"
	refreshPath   = basePath + "/auth"
)

// setCookies hands both tokens to a browser, out of reach of its scripts. The refresh token travels to the auth calls
// only.
func (s *Server) setCookies(w http.ResponseWriter, g account.Grant) {
	http.SetCookie(w, s.cookie(accessCookie, "/", g.AccessToken.Reveal(), g.ExpiresIn))
	http.SetCookie(w, s.cookie(refreshCookie, refreshPath, g.RefreshToken.Reveal(), g.RefreshUntil.Sub(s.now())))
}

// dropCookies makes a browser forget both.
func (s *Server) dropCookies(w http.ResponseWriter) {
	http.SetCookie(w, s.cookie(accessCookie, "/", "", 0))
	http.SetCookie(w, s.cookie(refreshCookie, refreshPath, "", 0))
}

func (s *Server) cookie(name, path, value string, life time.Duration) *http.Cookie {
	c := &http.Cookie{Name: name, Value: value, Path: path, Secure: true, HttpOnly: true,
		SameSite: http.SameSiteLaxMode, MaxAge: int(life.Seconds())}
	if name == refreshCookie {
		c.SameSite = http.SameSiteStrictMode
	}
	if value == "" {
		c.MaxAge = -1
	}
	return c
}

// cookieValue returns "" when the request does not carry the cookie.
func cookieValue(r *http.Request, name string) string {
	c, err := r.Cookie(name)
	if err != nil {
		return ""
	}
	return c.Value
}
