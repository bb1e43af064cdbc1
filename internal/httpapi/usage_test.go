package httpapi

import (
	"fmt"
	"testing"

	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/tenant"
)

// limit gives somebody's tenant limits of its own, as an operator does.
func (h *house) limit(name string, l tenant.Limits) {
	h.t.Helper()
	if _, err := h.whole.SetLimits(h.t.Context(), ident.System("operator"), h.people.byName[name].Tenant, l); err != nil {
		h.t.Fatal(err)
	}
}

func TestUsageIsShownAndBounded(t *testing.T) {
	h := newHouse(t, func(c *Config, _ *Deps) { c.RateLimit = true })
	usage := func(as string) answer {
		t.Helper()
		return h.do(call{as: as, method: "GET", path: "/api/v1/usage"}).is(200)
	}
	none := usage("ada")
	if none.at("messages") != 0.0 || none.at("bytes") != 0.0 || none.at("limits", "messages") != nil || none.at("limits", "bytes") != nil ||
		none.at("requests", "limit") != 1200.0 || none.at("requests", "window_seconds") != 60.0 {
		t.Errorf("%s", none.Text)
	}
	conv := h.make("ada", "/api/v1/conversations", `{"title":"T"}`)
	path := messages(conv)
	once := map[string]string{"Idempotency-Key": "first"}
	first := h.do(call{as: "ada", method: "POST", path: path, body: `{"content":"hello"}`, header: once}).is(201)
	turn := first.text("turn", "id")
	if a := usage("ada"); a.at("messages") != 2.0 || a.at("bytes").(float64) < 5 {
		t.Errorf("%s", a.Text)
	}

	// Two more do not fit; one that asks nobody does, and then nothing more. What is there can be read and edited.
	h.limit("ada", tenant.Limits{Messages: 3})
	if a := usage("ada"); a.at("limits", "messages") != 3.0 || a.at("limits", "bytes") != nil {
		t.Errorf("%s", a.Text)
	}
	h.do(call{as: "ada", method: "POST", path: path, body: `{"content":"hello"}`}).is(403, "quota_messages")
	h.do(call{as: "ada", method: "POST", path: path, body: `{"content":"note","reply":false}`}).is(201)
	h.do(call{as: "ada", method: "POST", path: path, body: `{"content":"note","reply":false}`}).is(403, "quota_messages")
	h.do(call{as: "ada", method: "POST", path: "/api/v1/conversations/" + conv + "/turns/" + turn + "/retry", body: `{}`}).is(403, "quota_messages")
	if a := h.do(call{as: "ada", method: "POST", path: path, body: `{"content":"hello"}`, header: once}).is(201); a.text("turn", "id") != turn {
		t.Errorf("a repeat: %s", a.Text)
	}
	h.do(call{as: "ada", method: "GET", path: path}).is(200)
	h.do(call{as: "ada", method: "PATCH", path: "/api/v1/conversations/" + conv, body: `{"title":"Renamed"}`}).is(200)
	h.do(call{as: "bob", method: "POST", path: messages(h.make("bob", "/api/v1/conversations", `{}`)), body: `{"content":"hello"}`}).is(201)
	other := h.make("ada", "/api/v1/conversations", `{}`) // holds no message
	h.do(call{as: "ada", method: "DELETE", path: "/api/v1/conversations/" + conv}).is(204)
	h.do(call{as: "ada", method: "POST", path: messages(other), body: `{"content":"there is room again"}`}).is(201)

	used := int64(usage("ada").at("bytes").(float64))
	h.limit("ada", tenant.Limits{Bytes: used + 50})
	once = map[string]string{"Idempotency-Key": "made"}
	made := h.do(call{as: "ada", method: "POST", path: "/api/v1/projects", body: `{"name":"Small"}`, header: once}).is(201).text("id")
	long := fmt.Sprintf(`{"name":"Large","instructions":"%060d"}`, 0)
	h.do(call{as: "ada", method: "POST", path: "/api/v1/projects", body: long}).is(403, "quota_storage")
	h.do(call{as: "ada", method: "POST", path: "/api/v1/conversations", body: fmt.Sprintf(`{"system":"%060d"}`, 0)}).is(403, "quota_storage")
	h.do(call{as: "ada", method: "POST", path: messages(other), body: fmt.Sprintf(`{"content":"%060d"}`, 0)}).is(403, "quota_storage")
	h.limit("ada", tenant.Limits{Bytes: 1})
	if a := h.do(call{as: "ada", method: "POST", path: "/api/v1/projects", body: `{"name":"Small"}`, header: once}).is(201); a.text("id") != made {
		t.Errorf("a repeat: %s", a.Text)
	}
	h.do(call{as: "ada", method: "POST", path: "/api/v1/conversations", body: `{}`}).is(403, "quota_storage")
	h.do(call{as: "ada", method: "GET", path: messages(other)}).is(200)
	h.limit("ada", tenant.Limits{Bytes: -1, Messages: -1})
	h.do(call{as: "ada", method: "POST", path: "/api/v1/conversations", body: `{}`}).is(201)
}
