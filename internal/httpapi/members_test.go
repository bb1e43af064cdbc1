package httpapi

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/pgtest"
)

// shared is a project of ada's with a conversation and a turn in it, and somebody in every role.
type shared struct {
	*house
	project, conversation, turn string
	// private is a conversation of ada's that is in no shared project, with a turn of its own.
	private, privateTurn string
}

// cast is who plays which role; the stranger has an account and no part in the project.
var cast = []struct {
	name string
	role access.Role
}{{"eve", ""}, {"vera", access.Viewer}, {"carl", access.Commenter}, {"edna", access.Editor}, {"ada", access.Owner}}

func newShared(h *house) *shared {
	h.t.Helper()
	s := &shared{house: h}
	s.project = h.make("ada", "/api/v1/projects", `{"name":"Harbour"}`)
	s.conversation, s.turn = s.talk("ada", s.project)
	s.private, s.privateTurn = s.talk("ada", "")
	for _, p := range cast[1:4] {
		s.add(p.name, p.role)
	}
	return s
}

// meet gives everybody of the cast an account.
func meet(h *house) {
	for _, p := range cast[:4] {
		h.people.add(h.t, p.name, ident.Member)
	}
}

// talk starts a conversation in a project, or in none, and has it answered.
func (s *shared) talk(as, project string) (conversation, turn string) {
	s.t.Helper()
	body := `{"title":"Night watch"}`
	if project != "" {
		body = `{"title":"Night watch","project_id":"` + project + `"}`
	}
	conversation = s.make(as, "/api/v1/conversations", body)
	turn = s.do(call{as: as, method: "POST", path: "/api/v1/conversations/" + conversation + "/messages",
		body: `{"content":"#say the lighthouse is dark"}`}).is(201).text("turn", "id")
	return conversation, turn
}

func (s *shared) add(name string, role access.Role) answer {
	s.t.Helper()
	return s.do(call{as: "ada", method: "POST", path: s.members(), body: fmt.Sprintf(`{"email":"%s@example.org","role":"%s"}`, name, role)}).is(201)
}

func (s *shared) members() string { return "/api/v1/projects/" + s.project + "/members" }

func (s *shared) idOf(name string) string {
	s.t.Helper()
	a, err := s.people.find(name)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(a.ID)
}

// cell is what one operation needs: the weakest role that may do it, and a call of it.
type cell struct {
	op     string
	least  access.Role // empty: everybody; what is shown then is another matter
	status int
	call   func(s *shared, as string) call
}

// cells has every operation on projects, conversations and turns.
var cells = []cell{
	{"list-projects", "", 200, func(*shared, string) call { return call{method: "GET", path: "/api/v1/projects"} }},
	{"create-project", "", 201, func(*shared, string) call {
		return call{method: "POST", path: "/api/v1/projects", body: `{"name":"Own"}`}
	}},
	{"read-project", access.Viewer, 200, func(s *shared, _ string) call { return call{method: "GET", path: "/api/v1/projects/" + s.project} }},
	{"replace-project", access.Editor, 200, func(s *shared, _ string) call {
		return call{method: "PUT", path: "/api/v1/projects/" + s.project, body: `{"name":"Port"}`}
	}},
	{"edit-project", access.Editor, 200, func(s *shared, as string) call {
		return call{method: "PATCH", path: "/api/v1/projects/" + s.project, body: `{"name":"Port of ` + as + `"}`}
	}},
	{"delete-project", access.Owner, 204, func(s *shared, _ string) call { return call{method: "DELETE", path: "/api/v1/projects/" + s.project} }},
	{"list-members", access.Viewer, 200, func(s *shared, _ string) call { return call{method: "GET", path: s.members()} }},
	{"add-member", access.Owner, 201, func(s *shared, as string) call {
		return call{method: "POST", path: s.members(), body: `{"email":"by-` + as + `@example.org","role":"editor"}`}
	}},
	{"change-member", access.Owner, 200, func(s *shared, _ string) call {
		return call{method: "PATCH", path: s.members() + "/" + s.idOf("vera"), body: `{"role":"viewer"}`}
	}},
	{"remove-member", access.Owner, 204, func(s *shared, as string) call {
		of := "vera"
		if as == of {
			of = "carl"
		}
		return call{method: "DELETE", path: s.members() + "/" + s.idOf(of)}
	}},
	{"list-conversations", "", 200, func(s *shared, _ string) call {
		return call{method: "GET", path: "/api/v1/conversations?project_id=" + s.project}
	}},
	{"create-conversation", access.Editor, 201, func(s *shared, _ string) call {
		return call{method: "POST", path: "/api/v1/conversations", body: `{"title":"New","project_id":"` + s.project + `"}`}
	}},
	{"search-conversations", "", 200, func(s *shared, _ string) call {
		return call{method: "GET", path: "/api/v1/conversations/search?q=lighthouse&project_id=" + s.project}
	}},
	{"read-conversation", access.Viewer, 200, func(s *shared, _ string) call {
		return call{method: "GET", path: "/api/v1/conversations/" + s.conversation + "?include=messages"}
	}},
	{"replace-conversation", access.Editor, 200, func(s *shared, as string) call {
		return call{method: "PUT", path: "/api/v1/conversations/" + s.conversation, body: `{"title":"By ` + as + `","project_id":"` + s.project + `"}`}
	}},
	{"edit-conversation", access.Editor, 200, func(s *shared, as string) call {
		return call{method: "PATCH", path: "/api/v1/conversations/" + s.conversation, body: `{"title":"For ` + as + `"}`}
	}},
	{"delete-conversation", access.Editor, 204, func(s *shared, as string) call {
		conversation := s.conversation
		if as == "ada" { // the editor's attempt took the first one
			conversation, _ = s.talk("ada", s.project)
		}
		return call{method: "DELETE", path: "/api/v1/conversations/" + conversation}
	}},
	{"list-messages", access.Viewer, 200, func(s *shared, _ string) call {
		return call{method: "GET", path: "/api/v1/conversations/" + s.conversation + "/messages"}
	}},
	{"send-message", access.Commenter, 201, func(s *shared, _ string) call {
		return call{method: "POST", path: "/api/v1/conversations/" + s.conversation + "/messages", body: `{"content":"#say yes"}`}
	}},
	{"read-turn", access.Viewer, 200, func(s *shared, _ string) call { return call{method: "GET", path: s.at()} }},
	{"follow-turn", access.Viewer, 200, func(s *shared, _ string) call { return call{method: "GET", path: s.at() + "/events"} }},
	{"stop-turn", access.Commenter, 200, func(s *shared, _ string) call { return call{method: "POST", path: s.at() + "/stop"} }},
	{"retry-turn", access.Commenter, 201, func(s *shared, _ string) call { return call{method: "POST", path: s.at() + "/retry", body: `{}`} }},
	// What is complete cannot be continued; whoever may do it hears that.
	{"continue-turn", access.Commenter, 409, func(s *shared, _ string) call { return call{method: "POST", path: s.at() + "/continue", body: `{}`} }},
}

func (s *shared) at() string { return "/api/v1/conversations/" + s.conversation + "/turns/" + s.turn }

// TestTheMatrixThroughTheDoor: every operation on projects, conversations and turns, by everybody from a stranger to the
// owner. To a stranger there is nothing; a member is refused what the role does not allow.
func TestTheMatrixThroughTheDoor(t *testing.T) {
	h := newHouse(t)
	meet(h)
	var missing []string
	for _, o := range operations() {
		if slices.Contains([]string{tagProjects, tagConversations, tagTurns}, o.tag) &&
			!slices.ContainsFunc(cells, func(c cell) bool { return c.op == o.ID }) {
			missing = append(missing, o.ID)
		}
	}
	if len(missing) > 0 {
		t.Errorf("the matrix lacks %v", missing)
	}
	strength := func(r access.Role) int { return slices.Index(access.Roles(), r) }
	for _, c := range cells {
		s := newShared(h)
		for _, p := range cast {
			r := c.call(s, p.name)
			r.as = p.name
			a := h.do(r)
			want, code := c.status, ""
			switch {
			case c.least == "":
			case p.role == "":
				want, code = http.StatusNotFound, "not_found"
				if c.op == "create-conversation" { // in the body a project is an input like any other
					want, code = http.StatusBadRequest, "invalid_input"
				}
			case strength(p.role) > strength(c.least):
				want, code = http.StatusForbidden, "role_forbids"
			}
			if a.Status != want || code != "" && a.text("code") != code {
				t.Errorf("%s by %s %s: %d %s, want %d %s", c.op, p.role, p.name, a.Status, a.Text, want, code)
			}
		}
	}
}

// TestGuestsSeeTheProjectAlone: through a shared project nothing else of the owner's tenant can be read or guessed.
func TestGuestsSeeTheProjectAlone(t *testing.T) {
	h := newHouse(t)
	meet(h)
	s := newShared(h)
	other := h.make("ada", "/api/v1/projects", `{"name":"Secret"}`)
	for _, p := range cast[1:4] {
		for _, r := range []call{
			{method: "GET", path: "/api/v1/projects/" + other},
			{method: "PATCH", path: "/api/v1/projects/" + other, body: `{"name":"x"}`},
			{method: "GET", path: "/api/v1/projects/" + other + "/members"},
			{method: "GET", path: "/api/v1/conversations/" + s.private},
			{method: "PATCH", path: "/api/v1/conversations/" + s.private, body: `{"title":"x"}`},
			{method: "DELETE", path: "/api/v1/conversations/" + s.private},
			{method: "GET", path: "/api/v1/conversations/" + s.private + "/messages"},
			{method: "GET", path: "/api/v1/conversations/" + s.private + "/messages?branch=all"},
			{method: "POST", path: "/api/v1/conversations/" + s.private + "/messages", body: `{"content":"x","reply":false}`},
			{method: "GET", path: "/api/v1/conversations/" + s.private + "/turns/" + s.privateTurn},
			{method: "GET", path: "/api/v1/conversations/" + s.private + "/turns/" + s.privateTurn + "/events"},
			{method: "POST", path: "/api/v1/conversations/" + s.private + "/turns/" + s.privateTurn + "/stop"},
			// A turn of another conversation under the name of the shared one.
			{method: "GET", path: "/api/v1/conversations/" + s.conversation + "/turns/" + s.privateTurn},
			{method: "POST", path: "/api/v1/conversations/" + s.conversation + "/turns/" + s.privateTurn + "/stop"},
		} {
			r.as = p.name
			if a := h.do(r); a.Status != 404 && a.text("code") != "role_forbids" {
				t.Errorf("%s %s by %s: %d %s", r.method, r.path, p.role, a.Status, a.Text)
			}
		}
		for _, path := range []string{"/api/v1/conversations?project_id=" + other, "/api/v1/conversations",
			"/api/v1/conversations/search?q=lighthouse", "/api/v1/conversations/search?q=lighthouse&project_id=" + other} {
			if a := h.do(call{as: p.name, method: "GET", path: path}).is(200); strings.Contains(a.Text, "conv_") {
				t.Errorf("%s by %s: %s", path, p.role, a.Text)
			}
		}
		for _, path := range []string{"/api/v1/conversations?project_id=" + s.project, "/api/v1/events?limit=200&project_id=" + s.project,
			"/api/v1/conversations/search?q=lighthouse&project_id=" + s.project} {
			a := h.do(call{as: p.name, method: "GET", path: path}).is(200)
			if !strings.Contains(a.Text, s.conversation) || strings.Contains(a.Text, s.private) {
				t.Errorf("%s by %s: %s", path, p.role, a.Text)
			}
		}
	}
	h.do(call{as: "eve", method: "GET", path: "/api/v1/events?project_id=" + s.project}).is(404)
	h.do(call{as: "vera", method: "GET", path: "/api/v1/events?project_id=" + other}).is(404)
	// A conversation is moved by the owner alone, and then it is out of sight, and back again.
	at := "/api/v1/conversations/" + s.conversation
	h.do(call{as: "edna", method: "PATCH", path: at, body: `{"project_id":null}`}).is(403, "role_forbids")
	h.do(call{as: "ada", method: "PATCH", path: at, body: `{"project_id":null}`}).is(200)
	h.do(call{as: "edna", method: "GET", path: at}).is(404)
	h.do(call{as: "ada", method: "PATCH", path: at, body: `{"project_id":"` + s.project + `"}`}).is(200)
	h.do(call{as: "vera", method: "GET", path: at}).is(200)
	// A move that fails, also to a project that somebody else shares, takes nothing away.
	theirs := h.make("edna", "/api/v1/projects", `{"name":"Edna's"}`)
	h.do(call{as: "edna", method: "POST", path: "/api/v1/projects/" + theirs + "/members", body: `{"email":"vera@example.org","role":"viewer"}`}).is(201)
	for _, to := range []string{theirs, string(ident.New[ident.ProjectID]())} {
		h.do(call{as: "ada", method: "PATCH", path: at, body: `{"project_id":"` + to + `"}`}).is(400)
		h.do(call{as: "carl", method: "GET", path: at}).is(200)
		h.do(call{as: "vera", method: "GET", path: at}).is(200)
	}
	// From one shared project to another it is where it is, also for who is in both.
	second := h.make("ada", "/api/v1/projects", `{"name":"Second"}`)
	h.do(call{as: "ada", method: "POST", path: "/api/v1/projects/" + second + "/members", body: `{"email":"carl@example.org","role":"viewer"}`}).is(201)
	h.do(call{as: "ada", method: "PATCH", path: at, body: `{"project_id":"` + second + `"}`}).is(200)
	h.do(call{as: "carl", method: "GET", path: at}).is(200)
	h.do(call{as: "carl", method: "POST", path: at + "/messages", body: `{"content":"x","reply":false}`}).is(403, "role_forbids")
	h.do(call{as: "vera", method: "GET", path: at}).is(404)
	h.do(call{as: "ada", method: "PATCH", path: "/api/v1/conversations/" + s.private, body: `{"project_id":"` + s.project + `"}`}).is(200)
	h.do(call{as: "vera", method: "GET", path: "/api/v1/conversations/" + s.private}).is(200)
}

// TestGuestsPage: a guest's cursors go on where they should and say nothing to who opens them.
func TestGuestsPage(t *testing.T) {
	h := newHouse(t)
	meet(h)
	s := newShared(h)
	for range 3 {
		h.do(call{as: "carl", method: "POST", path: "/api/v1/conversations/" + s.conversation + "/messages",
			body: `{"content":"a lighthouse once more","reply":false}`}).is(201)
		h.make("edna", "/api/v1/conversations", `{"title":"Lighthouse","project_id":"`+s.project+`"}`)
	}
	for _, path := range []string{"/api/v1/conversations?limit=1&project_id=" + s.project,
		"/api/v1/conversations/search?q=lighthouse&limit=1&project_id=" + s.project,
		"/api/v1/conversations/search?q=lighthouse&limit=1&sort=newest&project_id=" + s.project,
		"/api/v1/conversations/" + s.conversation + "/messages?limit=1"} {
		pages := func(as string) (ids []string) {
			for cursor := ""; ; {
				a := h.do(call{as: as, method: "GET", path: path + "&cursor=" + url.QueryEscape(cursor)}).is(200)
				ids = append(ids, a.text("data", "0", "id")+a.text("data", "0", "conversation_id")+a.text("data", "0", "message_id"))
				if cursor = a.text("next_cursor"); cursor == "" {
					return ids
				}
				if as != "ada" && len(ids) == 1 {
					h.do(call{as: "edna", method: "GET", path: path + "&cursor=" + url.QueryEscape(cursor)}).is(400)
				}
			}
		}
		got, want := pages("vera"), pages("ada")
		slices.Sort(got)
		slices.Sort(want)
		if len(want) < 4 || !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
}

// TestLongTitlesPage: a cursor by title is taken back, however long the title is and whatever it is written in.
func TestLongTitlesPage(t *testing.T) {
	h := newHouse(t)
	meet(h)
	s := newShared(h)
	for name, text := range map[string]string{"Japanese": "灯", "outside the basic plane": "𝒜", "that grow in NFC": "\U0001D160", "escaped": "<"} {
		h.do(call{as: "ada", method: "DELETE", path: "/api/v1/conversations/" + s.conversation})
		for i := range 3 {
			h.make("ada", "/api/v1/conversations", fmt.Sprintf(`{"title":"%s%d","project_id":"%s"}`, strings.Repeat(text, 299), i, s.project))
		}
		for _, as := range []string{"ada", "vera"} {
			var last string
			for cursor, pages := "", 0; pages == 0 || cursor != ""; pages++ {
				a := h.do(call{as: as, method: "GET", path: "/api/v1/conversations?sort=title&limit=1&project_id=" + s.project + "&cursor=" + cursor}).is(200)
				if title := a.text("data", "0", "title"); title <= last {
					t.Errorf("%s, %s: a page has %q after %q", name, as, title, last)
				} else {
					last = title
				}
				cursor = a.text("next_cursor")
			}
		}
		a := h.do(call{as: "ada", method: "GET", path: "/api/v1/conversations?project_id=" + s.project}).is(200)
		for i := range 3 {
			h.do(call{as: "ada", method: "DELETE", path: "/api/v1/conversations/" + a.text("data", fmt.Sprint(i), "id")}).is(204)
		}
	}
}

// TestMembers follows members and invitations through their lives.
func TestMembers(t *testing.T) {
	h := newHouse(t)
	meet(h)
	s := newShared(h)
	t.Run("the list has the owner first, with roles", func(t *testing.T) {
		a := h.do(call{as: "vera", method: "GET", path: s.members()}).is(200)
		if a.text("data", "0", "role") != "owner" || a.text("data", "0", "name") != "ada" || a.text("data", "1", "email") != "vera@example.org" ||
			a.text("data", "3", "role") != "editor" || a.at("data", "4") != nil {
			t.Error(a.Text)
		}
		var names []string
		for cursor := ""; len(names) == 0 || cursor != ""; {
			a := h.do(call{as: "ada", method: "GET", path: s.members() + "?limit=1&cursor=" + cursor}).is(200)
			names, cursor = append(names, a.text("data", "0", "name")), a.text("next_cursor")
		}
		if !slices.Equal(names, []string{"ada", "vera", "carl", "edna"}) {
			t.Error(names)
		}
	})
	t.Run("the project says what the reader is in it, and whose it is", func(t *testing.T) {
		for _, p := range cast[1:] {
			a := h.do(call{as: p.name, method: "GET", path: "/api/v1/projects/" + s.project}).is(200)
			if a.text("role") != string(p.role) || a.text("owner", "name") != "ada" || a.text("owner", "id") != s.idOf("ada") {
				t.Errorf("%s: %s", p.name, a.Text)
			}
		}
	})
	t.Run("nobody is added twice, and no role is made up", func(t *testing.T) {
		for _, email := range []string{"vera@example.org", " VERA@Example.org ", "ada@example.org"} {
			h.do(call{as: "ada", method: "POST", path: s.members(), body: `{"email":"` + email + `","role":"editor"}`}).is(409, "member_exists")
		}
		h.do(call{as: "ada", method: "POST", path: s.members(), body: `{"email":"x@example.org","role":"owner"}`}).is(400)
		h.do(call{as: "ada", method: "POST", path: s.members(), body: `{"email":"nobody","role":"viewer"}`}).is(400)
	})
	t.Run("a repeat with a key answers as before", func(t *testing.T) {
		c := call{as: "ada", method: "POST", path: s.members(), body: `{"email":"bob@example.org","role":"viewer"}`,
			header: map[string]string{"Idempotency-Key": "add bob"}}
		first, again := h.do(c).is(201), h.do(c).is(201)
		if first.Text != again.Text || again.Header.Get("Idempotency-Replayed") != "true" || first.text("user_id") != s.idOf("bob") {
			t.Errorf("%s\n%s", first.Text, again.Text)
		}
	})
	t.Run("roles change at once", func(t *testing.T) {
		at := "/api/v1/conversations/" + s.conversation + "/messages"
		h.do(call{as: "bob", method: "POST", path: at, body: `{"content":"x","reply":false}`}).is(403, "role_forbids")
		h.do(call{as: "ada", method: "PATCH", path: s.members() + "/" + s.idOf("bob"), body: `{"role":"commenter"}`}).is(200)
		a := h.do(call{as: "bob", method: "POST", path: at, body: `{"content":"x","reply":false}`}).is(201)
		if a.text("user_message", "author", "name") != "bob" || a.text("user_message", "author", "id") != s.idOf("bob") {
			t.Error(a.Text)
		}
	})
	t.Run("who is removed finds nothing, and who leaves neither", func(t *testing.T) {
		h.do(call{as: "ada", method: "DELETE", path: s.members() + "/" + s.idOf("bob")}).is(204)
		h.do(call{as: "carl", method: "DELETE", path: s.members() + "/" + s.idOf("carl")}).is(204)
		for _, name := range []string{"bob", "carl"} {
			for _, path := range []string{"/api/v1/projects/" + s.project, "/api/v1/conversations/" + s.conversation, s.at()} {
				h.do(call{as: name, method: "GET", path: path}).is(404)
			}
		}
		h.do(call{as: "ada", method: "DELETE", path: s.members() + "/" + s.idOf("bob")}).is(404)
	})
	t.Run("the owner stays", func(t *testing.T) {
		h.do(call{as: "ada", method: "DELETE", path: s.members() + "/" + s.idOf("ada")}).is(409, "owner_stays")
		h.do(call{as: "ada", method: "PATCH", path: s.members() + "/" + s.idOf("ada"), body: `{"role":"viewer"}`}).is(409, "owner_stays")
		h.do(call{as: "edna", method: "DELETE", path: s.members() + "/" + s.idOf("ada")}).is(403)
	})
	t.Run("an address without an account is invited, and comes in when it has one", func(t *testing.T) {
		a := s.add("Newman", access.Commenter)
		if a.text("state") != "invited" || a.at("user_id") != nil || !strings.HasPrefix(a.text("invitation_id"), "inv_") {
			t.Fatal(a.Text)
		}
		h.do(call{as: "ada", method: "POST", path: s.members(), body: `{"email":"newman@example.org","role":"editor"}`}).is(409, "member_exists")
		if a := h.do(call{as: "edna", method: "GET", path: s.members()}).is(200); strings.Contains(a.Text, "invited") {
			t.Errorf("an editor sees who is invited: %s", a.Text)
		}
		h.do(call{as: "ada", method: "PATCH", path: s.members() + "/" + a.text("invitation_id"), body: `{"role":"editor"}`}).is(200)
		gone := s.add("other", access.Viewer).text("invitation_id")
		h.do(call{as: "ada", method: "DELETE", path: s.members() + "/" + gone}).is(204)
		h.people.add(t, "newman", ident.Member)
		h.people.add(t, "other", ident.Member)
		if a := h.do(call{as: "newman", method: "GET", path: "/api/v1/projects/" + s.project}).is(200); a.text("role") != "editor" {
			t.Error(a.Text)
		}
		h.do(call{as: "other", method: "GET", path: "/api/v1/projects/" + s.project}).is(404)
	})
	t.Run("with the project every membership ends", func(t *testing.T) {
		h.do(call{as: "ada", method: "DELETE", path: "/api/v1/projects/" + s.project}).is(204)
		h.do(call{as: "edna", method: "GET", path: "/api/v1/projects/" + s.project}).is(404)
		h.do(call{as: "edna", method: "GET", path: "/api/v1/conversations/" + s.conversation}).is(404)
		h.do(call{as: "ada", method: "GET", path: "/api/v1/conversations/" + s.conversation}).is(200)
	})
}

// tend has the pool look after things until the test ends, as a server does.
func (h *house) tend() {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = h.pool.Run(ctx) }()
	h.t.Cleanup(func() { cancel(); <-ended })
}

// until asks again and again until the answer is as wanted.
func (h *house) until(c call, what string, good func(answer) bool) {
	h.t.Helper()
	a := h.do(c)
	for deadline := time.Now().Add(30 * time.Second); !good(a); a = h.do(c) {
		if time.Now().After(deadline) {
			h.t.Fatalf("%s: %d %s", what, a.Status, a.Text)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestSharedProjectsAreListed: what others share stands in one's own list, fresh within moments, and what happened to
// members in the owner's log and trail, once.
func TestSharedProjectsAreListed(t *testing.T) {
	h := newHouse(t)
	meet(h)
	h.tend()
	s := newShared(h)
	own := h.make("vera", "/api/v1/projects", `{"name":"Own"}`)
	list := call{as: "vera", method: "GET", path: "/api/v1/projects"}
	shown := func(name, role string) func(answer) bool {
		return func(a answer) bool {
			return a.text("data", "0", "id") == own && a.text("data", "0", "role") == "owner" && a.text("data", "1", "id") == s.project &&
				a.text("data", "1", "name") == name && a.text("data", "1", "role") == role && a.text("data", "1", "owner", "name") == "ada"
		}
	}
	h.until(list, "a shared project", shown("Harbour", "viewer"))
	h.do(call{as: "edna", method: "PATCH", path: "/api/v1/projects/" + s.project, body: `{"name":"Port"}`}).is(200)
	h.until(list, "its new name", shown("Port", "viewer"))
	h.make("edna", "/api/v1/conversations", `{"project_id":"`+s.project+`"}`)
	h.until(list, "one conversation more", func(a answer) bool { return a.at("data", "1", "conversation_count") == 2.0 })
	h.do(call{as: "ada", method: "PATCH", path: s.members() + "/" + s.idOf("vera"), body: `{"role":"editor"}`}).is(200)
	h.until(list, "the new role", shown("Port", "editor"))
	h.do(call{as: "vera", method: "DELETE", path: s.members() + "/" + s.idOf("vera")}).is(204)
	h.until(list, "what one has left", func(a answer) bool { return a.at("data", "1") == nil })

	// The owner's own log tells of it, in order and once.
	want := []string{"member.added", "member.added", "member.added", "member.changed", "member.removed"}
	ada := h.people.byName["ada"]
	var kinds []string
	var last string
	for deadline := time.Now().Add(30 * time.Second); len(kinds) < len(want) && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		ws, err := h.pool.Acquire(t.Context(), ident.System(""), ada.Tenant)
		if err != nil {
			t.Fatal(err)
		}
		events, err := ws.Events.Since(t.Context(), 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		kinds = nil
		for _, e := range events {
			if strings.HasPrefix(e.Type, "member.") {
				kinds, last = append(kinds, e.Type), string(e.Data)
			}
		}
		ws.Release()
	}
	if !slices.Equal(kinds, want) || !strings.Contains(last, s.idOf("vera")) || strings.Contains(last, "example.org") {
		t.Errorf("the log tells of %v, last of %s", kinds, last)
	}
	a := h.do(call{as: "ada", method: "GET", path: "/api/v1/audit?action=member.*"}).is(200)
	entries := a.at("data").([]any)
	if len(entries) != len(want) || a.text("data", "0", "actor", "name") != "vera" || a.text("data", "1", "actor", "name") != "ada" {
		t.Errorf("the trail: %s", a.Text)
	}
	if a := h.do(call{as: "edna", method: "GET", path: "/api/v1/audit?action=member.*"}).is(200); strings.Contains(a.Text, "member.") {
		t.Errorf("a member reads the owner's trail: %s", a.Text)
	}
	// With the project the last shortcuts go, and who is invited to nothing comes to nothing.
	h.do(call{as: "ada", method: "DELETE", path: "/api/v1/projects/" + s.project}).is(204)
	h.until(call{as: "edna", method: "GET", path: "/api/v1/projects"}, "a project that is gone", func(a answer) bool { return a.at("data", "0") == nil })
}

// TestAccessEndsWhileAnAnswerIsRead: who is removed reads no further, and finds nothing with the next request.
func TestAccessEndsWhileAnAnswerIsRead(t *testing.T) {
	other := newHeld()
	h := newHouseAt(t, "", other)
	meet(h)
	s := newShared(h)
	place := h.do(call{as: "ada", method: "POST", path: "/api/v1/conversations/" + s.conversation + "/messages",
		body: `{"content":"a","provider":"other"}`, header: map[string]string{"Prefer": "respond-async"}}).is(202).Header.Get("Location")
	<-other.asked
	server := h.live()
	streams := map[string]*bufio.Scanner{}
	for _, name := range []string{"vera", "carl", "ada"} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", server.URL+place+"/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer access-"+name)
		w, err := server.Client().Do(r)
		if err != nil || w.StatusCode != 200 {
			t.Fatalf("%v %v", w, err)
		}
		defer func() { _ = w.Body.Close() }()
		streams[name] = bufio.NewScanner(w.Body)
		for streams[name].Scan() && streams[name].Text() != "event: turn.started" {
		}
	}
	h.do(call{as: "ada", method: "DELETE", path: s.members() + "/" + s.idOf("vera")}).is(204)
	for streams["vera"].Scan() { // to its end, which comes while nobody has answered
		if strings.Contains(streams["vera"].Text(), "turn.completed") {
			t.Error("who was removed hears of the end")
		}
	}
	h.do(call{as: "vera", method: "GET", path: place}).is(404)
	other.answer <- struct{}{}
	for _, name := range []string{"carl", "ada"} {
		text := ""
		for streams[name].Scan() {
			text += streams[name].Text()
		}
		if !strings.Contains(text, "turn.completed") {
			t.Errorf("%s does not hear of the end: %s", name, text)
		}
	}
}

// TestManyTalkAtOnce: what several people send to one conversation at once is ordered, none of it is lost, and everybody
// sees who said what.
func TestManyTalkAtOnce(t *testing.T) {
	for engine, address := range map[string]func() string{"sqlite": func() string { return "" }, "postgres": func() string { return pgtest.URL(t) }} {
		t.Run(engine, func(t *testing.T) {
			h := newHouseAt(t, address(), nil)
			meet(h)
			s := newShared(h)
			at := "/api/v1/conversations/" + s.conversation + "/messages"
			speakers := []string{"ada", "carl", "edna"}
			const each = 12
			var done sync.WaitGroup
			for _, name := range speakers {
				done.Go(func() {
					for i := range each {
						a := h.do(call{as: name, method: "POST", path: at, body: fmt.Sprintf(`{"content":"%s %d","reply":%v}`, name, i, i%4 == 0)})
						if a.Status != 201 {
							t.Errorf("%s %d: %d %s", name, i, a.Status, a.Text)
						}
					}
				})
			}
			done.Wait()
			next := map[string]int{}
			parents := map[string]bool{}
			count := 0
			for cursor := ""; ; {
				a := h.do(call{as: "vera", method: "GET", path: at + "?branch=all&order=asc&limit=50&cursor=" + cursor}).is(200)
				for _, v := range a.at("data").([]any) {
					m := v.(map[string]any)
					if m["role"] != "user" || m["content"] == "#say the lighthouse is dark" {
						continue
					}
					count++
					name := m["author"].(map[string]any)["name"].(string)
					if m["content"] != fmt.Sprintf("%s %d", name, next[name]) || m["author"].(map[string]any)["id"] != s.idOf(name) {
						t.Errorf("%s said %v, want number %d", name, m["content"], next[name])
					}
					next[name]++
					parents[m["parent_id"].(string)] = true
				}
				if cursor = a.text("next_cursor"); cursor == "" {
					break
				}
			}
			if count != len(speakers)*each || len(parents) != count {
				t.Errorf("%d messages below %d others, want %d, each below its own", count, len(parents), len(speakers)*each)
			}
		})
	}
}
