package httpapi

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/tenant"
)

// TestStatesAtEveryRoute asks every operation on a tenant's data in every state that a tenant can have.
func TestStatesAtEveryRoute(t *testing.T) {
	h := newHouse(t)
	project := h.make("ada", "/api/v1/projects", `{"name":"Ada's"}`)
	conv := h.make("ada", "/api/v1/conversations", `{"title":"Ada's"}`)
	turn := h.do(call{as: "ada", method: "POST", path: "/api/v1/conversations/" + conv + "/messages",
		body: `{"content":"a harbour"}`}).is(http.StatusCreated).text("turn", "id")
	ten := h.people.byName["ada"].Tenant
	bob := string(h.people.byName["bob"].ID)
	invite := call{as: "ada", method: "POST", path: "/api/v1/projects/" + project + "/members", body: `{"email":"bob@example.org","role":"viewer"}`}
	h.do(invite).is(http.StatusCreated)
	// What the state decides about, of what it lets pass: a finished turn is not stopped or continued in any case, and an
	// owner may take access away whatever the state.
	settled := []string{"stop-turn", "continue-turn", "remove-member"}
	ask := func(o OperationInfo) answer {
		id := conv
		if strings.Contains(o.Path, "/projects/") {
			id = project
		}
		path := strings.NewReplacer("{id}", id, "{turn_id}", turn, "{user_id}", bob).Replace(o.Path)
		if o.ID == "search-conversations" {
			path += "?q=harbour"
		}
		return h.do(call{as: "ada", method: o.Method, path: path, body: sample(o)})
	}
	data := func(o OperationInfo) bool {
		rest, _ := strings.CutPrefix(o.Path, basePath)
		return strings.HasPrefix(rest, "/projects") || strings.HasPrefix(rest, "/conversations") || strings.HasPrefix(rest, "/audit") || rest == "/usage"
	}
	for _, c := range []struct {
		state  tenant.State
		reads  string // code; empty: answered
		writes string
		status int
	}{
		{tenant.ReadOnly, "", "tenant_read_only", http.StatusForbidden},
		{tenant.Quarantined, "", "tenant_quarantined", http.StatusServiceUnavailable},
		{tenant.Suspended, "tenant_suspended", "tenant_suspended", http.StatusForbidden},
	} {
		if _, err := h.whole.SetState(t.Context(), ident.System("test"), ten, c.state); err != nil {
			t.Fatal(err)
		}
		probed := 0
		for _, o := range Operations() {
			if o.Access != Account || !data(o) {
				continue
			}
			probed++
			want := c.writes
			if o.Method == http.MethodGet {
				want = c.reads
			}
			got := ask(o)
			switch {
			case want == "" && got.Status >= 300:
				t.Errorf("%s, %s: %d %s", c.state, o.ID, got.Status, got.Text)
			case want != "" && slices.Contains(settled, o.ID) && c.reads == "":
				if got.Status >= 500 {
					t.Errorf("%s, %s: %d %s", c.state, o.ID, got.Status, got.Text)
				}
			case want != "" && (got.Status != c.status || !strings.Contains(got.Text, `"`+want+`"`)):
				t.Errorf("%s, %s: %d %s, want %s", c.state, o.ID, got.Status, got.Text, want)
			}
		}
		if probed < 20 {
			t.Errorf("only %d operations were asked", probed)
		}
		// The account, its databases and its jobs are not the tenant's data.
		for _, path := range []string{"/api/v1/auth/profile", "/api/v1/database", "/api/v1/jobs"} {
			h.do(call{as: "ada", method: "GET", path: path}).is(http.StatusOK)
		}
		h.do(call{as: "bob", method: "POST", path: "/api/v1/conversations", body: `{}`}).is(http.StatusCreated)
	}

	// While a job works on it, a tenant is used as ever; only a second job has to wait.
	if _, err := h.whole.SetState(t.Context(), ident.System("test"), ten, tenant.Active); err != nil {
		t.Fatal(err)
	}
	h.do(invite).is(http.StatusCreated)
	now := h.server.now().UTC()
	ch := event.NewChange(ident.System("test"), now)
	ch.Add("test.job", string(ten), map[string]any{})
	if err := h.store.InsertJob(t.Context(), job.Job{ID: ident.New[ident.JobID](), Kind: "test", Tenant: ten, State: job.Queued,
		Input: []byte(`{}`), CreatedAt: now}, ch); err != nil {
		t.Fatal(err)
	}
	for _, o := range Operations() {
		if o.Access != Account || !data(o) || o.Method == http.MethodDelete || slices.Contains(settled, o.ID) {
			continue
		}
		if got := ask(o); got.Status >= 300 {
			t.Errorf("moving, %s: %d %s", o.ID, got.Status, got.Text)
		}
	}
	h.do(call{as: "ada", method: "DELETE", path: "/api/v1/conversations/" + conv}).is(http.StatusNoContent)
}
