package httpapi

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

func TestSigningIn(t *testing.T) {
	h := newHouse(t)
	made := h.do(call{method: "POST", path: "/api/v1/auth/register", body: `{"email":"eve@example.org","password":"a long enough password","name":"eve"}`}).is(201)
	if made.text("access_token") != "access-eve" || made.text("refresh_token") != "refresh-eve" || made.text("token_type") != "Bearer" ||
		made.at("expires_in") != 900.0 || made.text("user", "email") != "eve@example.org" || len(made.Header.Values("Set-Cookie")) != 0 {
		t.Errorf("%v %s", made.Header, made.Text)
	}
	for _, name := range []string{"id", "email", "name", "role", "settings", "created_at"} {
		if made.at("user", name) == nil {
			t.Errorf("the user has no %s", name)
		}
	}
	h.do(call{method: "POST", path: "/api/v1/auth/register", body: `{"email":"eve@example.org","password":"x"}`}).is(409, "email_taken")
	h.do(call{method: "POST", path: "/api/v1/auth/login", body: `{"email":"eve@example.org","password":"x"}`}).is(200)
	h.do(call{method: "POST", path: "/api/v1/auth/login", body: `{"email":"nobody@example.org","password":"x"}`}).is(401, "wrong_credentials")
	h.do(call{method: "POST", path: "/api/v1/auth/login", body: `{"email":"eve@example.org"}`}).is(400, "invalid_input")
	h.do(call{method: "POST", path: "/api/v1/auth/refresh", body: `{"refresh_token":"refresh-eve"}`}).is(200)
	h.do(call{method: "POST", path: "/api/v1/auth/refresh"}).is(401, "unauthenticated")
	h.do(call{as: "eve", method: "POST", path: "/api/v1/auth/logout"}).is(204)
	h.do(call{as: "eve", method: "POST", path: "/api/v1/auth/logout-all"}).is(204)
	if a := h.do(call{as: "eve", method: "GET", path: "/api/v1/auth/profile"}).is(200); a.text("email") != "eve@example.org" {
		t.Errorf("%s", a.Text)
	}
	if a := h.do(call{as: "eve", method: "PATCH", path: "/api/v1/auth/profile", body: `{"name":"Eve","settings":{"theme":"dark"}}`}).is(200); a.text("name") != "Eve" || a.text("settings", "theme") != "dark" {
		t.Errorf("%s", a.Text)
	}
	h.do(call{as: "eve", method: "PATCH", path: "/api/v1/auth/profile", body: `{"role":"admin"}`}).is(400, "invalid_input")
	h.do(call{as: "eve", method: "POST", path: "/api/v1/auth/password", body: `{"current_password":"a","new_password":"b"}`}).is(204)
	if a := h.do(call{as: "eve", method: "GET", path: "/api/v1/auth/sessions"}).is(200); a.at("data", "0", "current") != true {
		t.Errorf("%s", a.Text)
	}
	h.do(call{as: "eve", method: "DELETE", path: "/api/v1/auth/sessions/" + string(ident.New[ident.SessionID]())}).is(404)
	h.do(call{as: "eve", method: "DELETE", path: "/api/v1/auth/sessions/nonsense"}).is(404)
}

// cookiesOf returns what an answer sets, by name.
func cookiesOf(a answer) map[string]*http.Cookie {
	r := http.Response{Header: a.Header}
	m := map[string]*http.Cookie{}
	for _, c := range r.Cookies() {
		m[c.Name] = c
	}
	return m
}

func TestCookies(t *testing.T) {
	h := newHouse(t)
	a := h.do(call{method: "POST", path: "/api/v1/auth/login", body: `{"email":"ada@example.org","password":"x","cookie":true}`}).is(200)
	if strings.Contains(a.Text, "access-ada") || strings.Contains(a.Text, "refresh-ada") {
		t.Errorf("tokens in the body: %s", a.Text)
	}
	set := cookiesOf(a)
	access, refresh := set[accessCookie], set[refreshCookie]
	if access == nil || refresh == nil {
		t.Fatalf("cookies: %v", a.Header.Values("Set-Cookie"))
	}
	for _, c := range set {
		if !strings.HasPrefix(c.Name, "__Secure-") || !c.Secure || !c.HttpOnly || c.MaxAge <= 0 ||
			c.SameSite != http.SameSiteLaxMode && c.SameSite != http.SameSiteStrictMode || c.Domain != "" {
			t.Errorf("%s", c.Raw)
		}
	}
	if access.Path != "/" || refresh.Path != "/api/v1/auth" {
		t.Errorf("paths %s and %s", access.Path, refresh.Path)
	}
	cookie := map[string]string{"Cookie": accessCookie + "=" + access.Value}
	h.do(call{method: "GET", path: "/api/v1/projects", header: cookie}).is(200)
	renewed := h.do(call{method: "POST", path: "/api/v1/auth/refresh", header: map[string]string{"Cookie": refreshCookie + "=" + refresh.Value}}).is(200)
	if cookiesOf(renewed)[refreshCookie] == nil || strings.Contains(renewed.Text, "refresh-ada") {
		t.Errorf("renewed: %v %s", renewed.Header, renewed.Text)
	}
	refused := h.do(call{method: "POST", path: "/api/v1/auth/refresh", header: map[string]string{"Cookie": refreshCookie + "=refresh-gone"}}).is(401)
	if c := cookiesOf(refused)[refreshCookie]; c == nil || c.MaxAge >= 0 {
		t.Errorf("a dead cookie stays: %v", refused.Header)
	}
	out := h.do(call{method: "POST", path: "/api/v1/auth/logout", header: cookie}).is(204)
	for name, c := range cookiesOf(out) {
		if c.MaxAge >= 0 || c.Value != "" {
			t.Errorf("%s stays", name)
		}
	}
	t.Run("a header wins over a cookie", func(t *testing.T) {
		a := h.do(call{as: "bob", method: "GET", path: "/api/v1/auth/profile", header: cookie}).is(200)
		if a.text("name") != "bob" {
			t.Errorf("%s", a.Text)
		}
	})
}

func TestCrossOrigin(t *testing.T) {
	h := newHouse(t)
	cookie := accessCookie + "=access-ada"
	for name, c := range map[string]struct {
		header map[string]string
		status int
	}{
		"cookie, same origin":         {map[string]string{"Cookie": cookie, "Sec-Fetch-Site": "same-origin"}, 201},
		"cookie, typed by hand":       {map[string]string{"Cookie": cookie, "Sec-Fetch-Site": "none"}, 201},
		"cookie, no browser":          {map[string]string{"Cookie": cookie}, 201},
		"cookie, other site":          {map[string]string{"Cookie": cookie, "Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 403},
		"cookie, sibling":             {map[string]string{"Cookie": cookie, "Sec-Fetch-Site": "same-site", "Origin": "https://evil.example.com"}, 403},
		"cookie, old browser":         {map[string]string{"Cookie": cookie, "Origin": "https://evil.example"}, 403},
		"cookie, null origin":         {map[string]string{"Cookie": cookie, "Origin": "null"}, 403},
		"cookie, allowed origin":      {map[string]string{"Cookie": cookie, "Sec-Fetch-Site": "cross-site", "Origin": "https://app.example"}, 201},
		"cookie, allowed but http":    {map[string]string{"Cookie": cookie, "Sec-Fetch-Site": "cross-site", "Origin": "http://app.example"}, 403},
		"token, other site":           {map[string]string{"Authorization": "Bearer access-ada", "Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 201},
		"token and cookie, elsewhere": {map[string]string{"Authorization": "Bearer access-ada", "Cookie": cookie, "Sec-Fetch-Site": "cross-site"}, 201},
	} {
		t.Run(name, func(t *testing.T) {
			h := *h
			h.t = t
			h.do(call{method: "POST", path: "/api/v1/projects", body: `{"name":"P"}`, header: c.header}).is(c.status)
		})
	}
	evil := map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
	h.do(call{method: "POST", path: "/api/v1/auth/login", body: `{"email":"ada@example.org","password":"x","cookie":true}`, header: evil}).is(403, "cross_origin_refused")
	h.do(call{method: "GET", path: "/api/v1/projects", header: map[string]string{"Cookie": cookie, "Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}}).is(200)
}

func TestSharingWithOrigins(t *testing.T) {
	h := newHouse(t)
	for origin, allowed := range map[string]bool{"https://app.example": true, "https://app.example.evil": false, "http://app.example": false,
		"https://APP.example": false, "null": false, "https://app.example:444": false} {
		preflight := h.do(call{method: "OPTIONS", path: "/api/v1/projects", header: map[string]string{"Origin": origin,
			"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "content-type,if-match"}}).is(204)
		plain := h.do(call{as: "ada", method: "GET", path: "/api/v1/projects", header: map[string]string{"Origin": origin}}).is(200)
		refused := h.do(call{method: "GET", path: "/api/v1/projects", header: map[string]string{"Origin": origin}}).is(401)
		for name, a := range map[string]answer{"preflight": preflight, "plain": plain, "refused": refused} {
			got := a.Header.Get("Access-Control-Allow-Origin")
			if allowed && (got != origin || a.Header.Get("Access-Control-Allow-Credentials") != "true") || !allowed && got != "" {
				t.Errorf("%s for %s: %q", name, origin, got)
			}
			if !slices.Contains(a.Header.Values("Vary"), "Origin") {
				t.Errorf("%s for %s does not vary by origin", name, origin)
			}
		}
		if allowed {
			for _, want := range []string{"ETag", "X-Request-Id", "Location", "Retry-After", "RateLimit", "Idempotency-Replayed"} {
				if !strings.Contains(plain.Header.Get("Access-Control-Expose-Headers"), want) {
					t.Errorf("%s is not exposed", want)
				}
			}
			if !strings.Contains(preflight.Header.Get("Access-Control-Allow-Methods"), "PATCH") || !strings.Contains(preflight.Header.Get("Access-Control-Allow-Headers"), "If-Match") {
				t.Errorf("preflight: %v", preflight.Header)
			}
		} else if preflight.Header.Get("Access-Control-Allow-Methods") != "" {
			t.Errorf("%s learns methods", origin)
		}
	}
}

func TestRequestIDs(t *testing.T) {
	h := newHouse(t)
	for given, kept := range map[string]bool{"abc-123_X.y": true, strings.Repeat("a", 128): true, strings.Repeat("a", 129): false,
		"a b": false, "a\"b": false, "ä": false, "<x>": false, "a/b": false} {
		a := h.do(call{method: "GET", path: "/api/v1/nope", header: map[string]string{"X-Request-Id": given}}).is(404)
		if got := a.Header.Get("X-Request-Id"); (got == given) != kept || got == "" {
			t.Errorf("%q became %q", given, got)
		}
	}
}

func TestHeadersInProduction(t *testing.T) {
	h := newHouse(t, func(c *Config, _ *Deps) { c.Production = true; c.DocsPage = false })
	for _, path := range []string{"/api/v1/health", "/api/v1/projects", "/nope", "/api/v1/health/readiness", "/api/openapi.json"} {
		a := h.do(call{method: "GET", path: path})
		if !strings.HasPrefix(a.Header.Get("Strict-Transport-Security"), "max-age=31536000") ||
			a.Header.Get("Content-Security-Policy") != "default-src 'none'; frame-ancestors 'none'" ||
			a.Header.Get("Cross-Origin-Resource-Policy") != "same-site" {
			t.Errorf("%s: %v", path, a.Header)
		}
	}
	if a := h.do(call{as: "ada", method: "GET", path: "/api/v1/projects"}); a.Header.Get("Cache-Control") != "no-store" {
		t.Error("private data may be stored")
	}
	h.do(call{method: "GET", path: "/api/docs"}).is(404)
	h.do(call{method: "GET", path: "/api/docs/swagger-ui-bundle.js"}).is(404)
	h.do(call{method: "GET", path: "/api/openapi.json"}).is(200)
	h.do(call{method: "GET", path: "/api/docs/errors"}).is(200)
	for _, path := range []string{"/api/v1/health/metrics", "/api/v1/health/detailed"} {
		h.do(call{method: "GET", path: path}).is(401)
		h.do(call{as: "ada", method: "GET", path: path}).is(403, "forbidden")
		h.do(call{as: "root", method: "GET", path: path}).is(200)
		h.do(call{method: "GET", path: path, header: map[string]string{"Authorization": "Bearer "}}).is(401)
	}
	guarded := newHouse(t, func(c *Config, _ *Deps) { c.Production = true; c.MetricsToken = "the metrics token" })
	for token, status := range map[string]int{"the metrics token": 200, "the metrics toke": 401, "the metrics token2": 401} {
		guarded.do(call{method: "GET", path: "/api/v1/health/metrics", header: map[string]string{"Authorization": "Bearer " + token}}).is(status)
	}
	guarded.do(call{method: "GET", path: "/api/v1/projects", header: map[string]string{"Authorization": "Bearer the metrics token"}}).is(401)
}

func TestHealth(t *testing.T) {
	fails := errors.New("the address postgres://u:secret@db is away")
	var ready error
	h := newHouse(t, func(_ *Config, d *Deps) {
		d.Ready = func(context.Context) error { return ready }
		d.Checks = []Check{
			{Name: "master_database", Look: func(context.Context) (map[string]any, error) { return map[string]any{"engine": "sqlite"}, nil }},
			{Name: "provider", Look: func(context.Context) (map[string]any, error) { return nil, fails }},
		}
		own := prometheus.NewGauge(prometheus.GaugeOpts{Name: "memoryd_test"})
		d.Collectors = append(d.Collectors, own)
	})
	if a := h.do(call{method: "GET", path: "/api/v1/health"}).is(200); a.text("status") != "ok" || a.text("version") != "1.2.3" {
		t.Errorf("%s", a.Text)
	}
	h.do(call{method: "GET", path: "/api/v1/health/liveness"}).is(200)
	h.do(call{method: "GET", path: "/api/v1/health/info"}).is(200)
	h.do(call{method: "GET", path: "/api/v1/health/readiness"}).is(200)
	ready = fault.New(fault.Unavailable, "test", "", "migrating")
	h.do(call{method: "GET", path: "/api/v1/health/readiness"}).is(503, "not_ready")
	a := h.do(call{method: "GET", path: "/api/v1/health/detailed"}).is(200)
	if a.text("status") != "degraded" || a.text("checks", "0", "facts", "engine") != "sqlite" || a.text("checks", "1", "status") != "failing" ||
		strings.Contains(a.Text, "secret") {
		t.Errorf("%s", a.Text)
	}
	h.do(call{as: "ada", method: "GET", path: "/api/v1/projects/" + string(ident.New[ident.ProjectID]())}).is(404)
	h.do(call{as: "ada", method: "GET", path: "/api/v1/whatever/" + string(ident.New[ident.ProjectID]())}).is(404)
	text := h.do(call{method: "GET", path: "/api/v1/health/metrics"}).is(200).Text
	for _, want := range []string{`memoryd_http_requests_total{method="GET",route="/api/v1/projects/{id}",status="404"} 1`,
		`memoryd_http_requests_total{method="GET",route="unmatched",status="404"} 1`, `memoryd_http_request_seconds_count{`,
		"memoryd_http_streams 0", "memoryd_test 0", "go_goroutines"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	if strings.Contains(text, "prj_") {
		t.Error("an identifier in a label")
	}
}

func TestTheLogTellsNothingPrivate(t *testing.T) {
	h := newHouse(t)
	conv := h.make("ada", "/api/v1/conversations", `{"title":"private title"}`)
	h.do(call{as: "ada", method: "POST", path: messages(conv), body: `{"content":"private words"}`}).is(201)
	h.do(call{as: "ada", method: "GET", path: "/api/v1/conversations/search?q=private+words"}).is(200)
	h.do(call{method: "POST", path: "/api/v1/auth/login", body: `{"email":"ada@example.org","password":"private password"}`}).is(200)
	h.do(call{as: "ada", method: "GET", path: "/private/path"}).is(404)
	log := h.log.String()
	for _, private := range []string{"private", conv, "access-ada", "ada@example.org", "q="} {
		if strings.Contains(log, private) {
			t.Errorf("the log has %q", private)
		}
	}
	for _, want := range []string{"route=/api/v1/conversations/{id}/messages", "status=201", "duration_ms=", "bytes=", "request_id=req-", "route=unmatched"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q", want)
		}
	}
}

func TestPanics(t *testing.T) {
	h := newHouse(t, func(_ *Config, d *Deps) {
		d.Open = func(context.Context, ident.Actor, ident.TenantID) (Workspace, error) { panic("boom with a secret") }
	})
	a := h.do(call{as: "ada", method: "GET", path: "/api/v1/projects"}).is(500, "internal")
	if strings.Contains(a.Text, "boom") || !strings.Contains(h.log.String(), "boom") || !strings.Contains(h.log.String(), a.Header.Get("X-Request-Id")) {
		t.Errorf("%s\n%s", a.Text, h.log)
	}
}

func TestFailuresSayNothingOfTheirCause(t *testing.T) {
	open := func(_ *Config, d *Deps) {
		d.Open = func(ctx context.Context, actor ident.Actor, _ ident.TenantID) (Workspace, error) {
			switch actor.Name {
			case "ada":
				return Workspace{}, errors.New("dial postgres://u:secret@db")
			case "bob":
				return Workspace{}, fault.New(fault.Unavailable, "test", "tenant_unavailable", "away").RetryAfter(7 * time.Second).With(errors.New("secret"))
			}
			<-ctx.Done()
			return Workspace{}, ctx.Err()
		}
	}
	h := newHouse(t, open)
	if a := h.do(call{as: "ada", method: "GET", path: "/api/v1/projects"}).is(500, "internal"); strings.Contains(a.Text, "secret") {
		t.Errorf("%s", a.Text)
	}
	if a := h.do(call{as: "bob", method: "GET", path: "/api/v1/projects"}).is(503, "tenant_unavailable"); strings.Contains(a.Text, "secret") || a.Header.Get("Retry-After") != "7" {
		t.Errorf("%v %s", a.Header, a.Text)
	}
	hasty := newHouse(t, open, func(c *Config, _ *Deps) { c.RequestTime = 20 * time.Millisecond })
	hasty.do(call{as: "root", method: "GET", path: "/api/v1/projects"}).is(503, "timed_out")
}

func TestRateLimits(t *testing.T) {
	h := newHouse(t, standing, func(c *Config, _ *Deps) {
		c.RateLimit = true
		c.PerAccount, c.PerAddress, c.PerAddressIn = Rate{60, 3}, Rate{60, 4}, Rate{60, 2}
	})
	get := func(as string) answer { return h.do(call{as: as, method: "GET", path: "/api/v1/projects"}) }
	for i := range 3 {
		a := get("ada").is(200)
		if a.Header.Get("RateLimit-Policy") != `"account";q=60;w=60` || !strings.HasPrefix(a.Header.Get("RateLimit"), fmt.Sprintf(`"account";r=%d;t=`, 2-i)) {
			t.Errorf("%d: %v", i, a.Header)
		}
	}
	over := get("ada").is(429, "throttled")
	if over.Header.Get("Retry-After") != "1" || !strings.HasPrefix(over.Header.Get("RateLimit"), `"account";r=0;t=1`) {
		t.Errorf("%v", over.Header)
	}
	get("bob").is(200) // somebody else's bucket
	for range 4 {
		h.do(call{method: "GET", path: "/api/v1/projects", header: map[string]string{"Authorization": "Bearer access-guess"}}).is(401)
	}
	h.do(call{method: "GET", path: "/api/v1/projects", header: map[string]string{"Authorization": "Bearer access-guess"}}).is(429)
	get("bob").is(200)
	login := call{method: "POST", path: "/api/v1/auth/login", body: `{"email":"ada@example.org","password":"x"}`}
	h.do(login).is(200)
	h.do(call{method: "POST", path: "/api/v1/auth/refresh", body: `{"refresh_token":"refresh-ada"}`}).is(200)
	if a := h.do(login).is(429); a.Header.Get("RateLimit-Policy") != `"sign_in";q=60;w=60` {
		t.Errorf("%v", a.Header)
	}
	for range 20 {
		if a := h.do(call{method: "GET", path: "/api/v1/health/liveness"}).is(200); a.Header.Get("RateLimit") != "" {
			t.Error("a probe is limited")
		}
	}
	off := newHouse(t, func(c *Config, _ *Deps) { c.PerAccount = Rate{1, 1} })
	for range 5 {
		if a := off.do(call{as: "ada", method: "GET", path: "/api/v1/projects"}).is(200); a.Header.Get("RateLimit") != "" {
			t.Error("a limit that is off")
		}
	}
}

func TestBuckets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter("x", Rate{PerMinute: 60, Burst: 2}, 100)
		take := func(key string) (int, time.Duration) { return l.take(key, time.Now()) }
		take("a")
		if left, wait := take("a"); left != 0 || wait != 0 {
			t.Errorf("left %d wait %v", left, wait)
		}
		_, wait := take("a")
		if wait != time.Second {
			t.Errorf("wait %v", wait)
		}
		time.Sleep(wait)
		if _, wait := take("a"); wait != 0 {
			t.Error("waiting as told was not enough")
		}
		time.Sleep(time.Hour)
		if left, _ := take("a"); left != 1 {
			t.Errorf("after an hour %d are left", left)
		}
		for i := range 10_000 {
			take(fmt.Sprint(i))
		}
		if len(l.keys) > 100 {
			t.Errorf("%d keys are kept", len(l.keys))
		}
	})
}

func TestClientAddresses(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8:ffff::/48")}
	for _, c := range []struct{ peer, forwarded, want, key string }{
		{"192.0.2.7:1", "", "192.0.2.7", "192.0.2.7"},
		{"192.0.2.7:1", "1.2.3.4", "192.0.2.7", "192.0.2.7"},
		{"10.0.0.1:1", "1.2.3.4", "1.2.3.4", "1.2.3.4"},
		{"10.0.0.1:1", "6.6.6.6, 1.2.3.4, 10.0.0.9", "1.2.3.4", "1.2.3.4"},
		{"10.0.0.1:1", "6.6.6.6, nonsense, 10.0.0.9", "10.0.0.9", "10.0.0.9"},
		{"10.0.0.1:1", "", "10.0.0.1", "10.0.0.1"},
		{"10.0.0.1:1", "10.0.0.2", "10.0.0.2", "10.0.0.2"},
		{"10.0.0.1:1", "1.2.3.4:555", "1.2.3.4", "1.2.3.4"},
		{"[::ffff:10.0.0.1]:1", "1.2.3.4", "1.2.3.4", "1.2.3.4"},
		{"[2001:db8:ffff::1]:1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"},
		{"[fe80::1%eth0]:1", "", "fe80::1", "fe80::/64"},
		{"pipe", "1.2.3.4", "", ""},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = c.peer
		if c.forwarded != "" {
			r.Header.Set("X-Forwarded-For", c.forwarded)
		}
		if got := clientOf(r, trusted); got.String() != c.want || got.limitKey() != c.key {
			t.Errorf("%s for %q: %s, %s", c.peer, c.forwarded, got, got.limitKey())
		}
	}
}

func TestCompression(t *testing.T) {
	h := newHouse(t)
	for i := range 10 {
		h.make("ada", "/api/v1/projects", fmt.Sprintf(`{"name":"P%d","description":"%s"}`, i, strings.Repeat("word ", 100)))
	}
	server := h.live()
	w := h.asked(t.Context(), server.URL, call{as: "ada", method: "GET", path: "/api/v1/projects"})
	if w.Header.Get("Content-Encoding") != "gzip" || !slices.Contains(w.Header.Values("Vary"), "Accept-Encoding") {
		t.Fatalf("%v", w.Header)
	}
	z, err := gzip.NewReader(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(z); err != nil || !strings.Contains(string(text), `"P9"`) {
		t.Errorf("%v", err)
	}
	long := fmt.Sprintf(`{"email":"ada@example.org","password":"%s"}`, strings.Repeat("x", 900))
	secret := h.asked(t.Context(), server.URL, call{method: "POST", path: "/api/v1/auth/login", body: long})
	if secret.Header.Get("Content-Encoding") != "" || secret.Header.Get("No-Gzip-Compression") != "" {
		t.Errorf("tokens were compressed: %v", secret.Header)
	}
}

func TestDocumentationPage(t *testing.T) {
	h := newHouse(t)
	page := h.do(call{method: "GET", path: "/api/docs"}).is(200)
	policy := page.Header.Get("Content-Security-Policy")
	if !strings.Contains(policy, "script-src 'self'") || strings.Contains(policy, "script-src 'self' 'unsafe") {
		t.Errorf("policy %s", policy)
	}
	if strings.Contains(page.Text, "http://") || strings.Contains(page.Text, "https://") || regexp.MustCompile(`<script>|<style>| on\w+=`).MatchString(page.Text) {
		t.Errorf("the page needs the outside, or what its policy forbids: %s", page.Text)
	}
	for _, m := range regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllStringSubmatch(page.Text, -1) {
		a := h.do(call{method: "GET", path: m[1]}).is(200)
		if a.Text == "" || a.Header.Get("Content-Type") == "" {
			t.Errorf("%s: %v", m[1], a.Header)
		}
	}
	h.do(call{method: "GET", path: "/api/docs/index.html"}).is(404)
	if a := h.do(call{method: "GET", path: "/api/openapi.yaml"}).is(200); !strings.HasPrefix(a.Text, "components:") && !strings.Contains(a.Text, "openapi: 3.1.0") {
		t.Errorf("%.200s", a.Text)
	}
	if a := h.do(call{method: "GET", path: "/api/docs/errors"}).is(200); !strings.Contains(a.Text, `id="not_found"`) {
		t.Error("a code is not explained")
	}
}

func TestSlowBodies(t *testing.T) {
	h := newHouse(t, func(c *Config, _ *Deps) { c.BodyTime = 50 * time.Millisecond })
	server := h.live()
	in, out := io.Pipe()
	defer func() { _ = out.Close() }()
	r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/api/v1/projects", in)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer access-ada")
	r.Header.Set("Content-Type", "application/json")
	go func() { _, _ = io.WriteString(out, `{"name":`) }()
	w, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Body.Close() }()
	if w.StatusCode != http.StatusRequestTimeout {
		t.Errorf("status %d", w.StatusCode)
	}
	stopSending(t, server)
}

func TestServersNeedProperSettings(t *testing.T) {
	for name, c := range map[string]Config{
		"short secret": {OnceSecret: []byte("short")},
		"bad origin":   {OnceSecret: make([]byte, 32), AllowedOrigins: []string{"app.example"}},
	} {
		if _, err := NewServer(c, Deps{}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
