package httpapi

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/internal/pgtest"
)

// A PostgreSQL whose processes stand still takes connections and answers nothing: who needs it is told so, and can go on as
// soon as it does. Nobody else notices. A pooler before it goes on letting everybody in.
func TestAFrozenDatabase(t *testing.T) {
	server, err := pgtest.Start(t.Context(), pgtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	for _, c := range []struct {
		name     string
		external bool
		address  func(t *testing.T) string
		code     string
	}{
		{"postgres behind a pooler", false, func(t *testing.T) string { return pgtest.Pooled(t, server.URL, 8) }, "database_unreachable"},
		{"external", true, func(*testing.T) string { return server.URL }, "timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			address := c.address(t)
			h := newHouseAt(t, map[bool]string{false: address}[c.external], nil, patient)
			if c.external {
				h.toOwn("ada", address)
			}
			conv := h.make("ada", "/api/v1/conversations", `{"title":"x"}`)
			calls := []call{
				{as: "ada", method: "GET", path: "/api/v1/conversations"},
				{as: "ada", method: "POST", path: "/api/v1/conversations/" + conv + "/messages", body: `{"content":"a","reply":false}`},
				{as: "ada", method: "GET", path: "/api/v1/conversations/search?q=a"},
				{as: "ada", method: "POST", path: "/api/v1/auth/profile/erase", body: `{"password":"` + password + `","what":"data"}`},
			}
			if err := server.Freeze(); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for i, r := range calls {
				wg.Go(func() {
					begun := time.Now()
					a := h.do(r)
					if a.Status != http.StatusServiceUnavailable || i == 0 && a.text("code") != c.code {
						t.Errorf("%d %s", a.Status, a.Text)
					}
					t.Logf("%s after %v", a.text("code"), time.Since(begun).Round(time.Millisecond))
				})
			}
			if c.external {
				h.do(call{as: "bob", method: "GET", path: "/api/v1/conversations"}).is(http.StatusOK)
			}
			wg.Wait()
			// The circuit is open by now. Where its rest is over since this machine is busy, one more tries in vain and opens it again.
			refused := h.do(calls[0]).is(http.StatusServiceUnavailable)
			for tries := 0; tries < 3 && refused.text("code") == c.code && c.code != "database_unreachable"; tries++ {
				refused = h.do(calls[0])
			}
			refused.is(http.StatusServiceUnavailable, "database_unreachable")
			if err := server.Thaw(); err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(time.Minute); h.do(calls[0]).Status != http.StatusOK; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("it does not come back")
				}
			}
			// The message may have been stored: no answer came.
			if a := h.do(call{as: "ada", method: "GET", path: calls[1].path}).is(http.StatusOK); len(a.at("data").([]any)) > 1 {
				t.Errorf("%s", a.Text)
			}
			h.do(calls[1]).is(http.StatusCreated)
			// Nobody had begun to erase anything: it can be asked for again.
			h.work()
			if a := h.do(calls[3]).is(http.StatusOK); a.text("state") != "completed" {
				t.Errorf("%s", a.Text)
			}
		})
	}
}
