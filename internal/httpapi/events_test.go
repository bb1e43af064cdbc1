package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/event/catalogue"
	"claude-memory-backend/internal/event/catalogue/cataloguetest"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/sqlstore"
)

// Anybody reads which events there are; the document has the same.
func TestCatalogue(t *testing.T) {
	h := newHouse(t)
	served, _ := h.do(call{method: "GET", path: "/api/v1/events/catalogue"}).is(http.StatusOK).at("data").([]any)
	all := catalogue.All()
	if len(served) != len(all) {
		t.Fatalf("%d types, not %d", len(served), len(all))
	}
	var doc struct {
		Components struct{ Schemas map[string]json.RawMessage }
	}
	if err := json.Unmarshal(h.server.spec.json, &doc); err != nil {
		t.Fatal(err)
	}
	for i, e := range all {
		raw, err := json.Marshal(served[i])
		if err != nil {
			t.Fatal(err)
		}
		var got eventEntry
		if err := json.Unmarshal(raw, &got); err != nil {
			t.Fatal(err)
		}
		if got.Type != e.Type || got.Meaning != e.Meaning || got.Subject != string(e.Subject) {
			t.Errorf("%+v", got)
		}
		if err := cataloguetest.Fits(json.RawMessage(got.Schema), exampleData(t, got.Example)); err != nil {
			t.Errorf("the served example: %v", err)
		}
		if err := cataloguetest.Fits(doc.Components.Schemas["Data."+e.Type], exampleData(t, got.Example)); err != nil {
			t.Errorf("the document: %v", err)
		}
	}
}

func exampleData(t *testing.T, example object) json.RawMessage {
	t.Helper()
	var e struct{ Data json.RawMessage }
	if err := json.Unmarshal(example, &e); err != nil || len(e.Data) < 2 {
		t.Fatalf("%s: %v", example, err)
	}
	return e.Data
}

func TestEventsArePulledInOrder(t *testing.T) {
	h := newHouse(t)
	project := h.make("ada", "/api/v1/projects", `{"name":"P"}`)
	conv := h.make("ada", "/api/v1/conversations", `{"title":"T","project_id":"`+project+`"}`) // else the server adds one, some time
	for range 3 {
		h.make("ada", "/api/v1/conversations", `{}`)
	}
	h.do(call{as: "ada", method: "POST", path: "/api/v1/conversations/" + conv + "/messages", body: `{"content":"a","reply":false}`}).is(201)
	pull := func(query string) (seqs []int, types []string, next string) {
		t.Helper()
		a := h.do(call{as: "ada", method: "GET", path: "/api/v1/events" + query}).is(http.StatusOK)
		list, _ := a.at("data").([]any)
		for _, e := range list {
			m, _ := e.(map[string]any)
			n, _ := m["seq"].(float64)
			kind, _ := m["type"].(string)
			seqs, types = append(seqs, int(n)), append(types, kind)
		}
		return seqs, types, a.text("next_cursor")
	}
	all, _, next := pull("?after=0&limit=200")
	if len(all) < 6 || next != "" {
		t.Fatalf("%v, next %q", all, next)
	}
	for i, n := range all {
		if n != i+1 {
			t.Errorf("%v has gaps", all)
		}
	}
	var paged []int
	for cursor := "?limit=2"; cursor != ""; {
		page, _, next := pull(cursor)
		paged = append(paged, page...)
		if cursor = ""; next != "" {
			cursor = "?limit=2&cursor=" + next
		}
	}
	if !slices.Equal(paged, all) {
		t.Errorf("page by page %v, want %v", paged, all)
	}
	if after, _, _ := pull(fmt.Sprintf("?after=%d", len(all)-1)); !slices.Equal(after, all[len(all)-1:]) {
		t.Errorf("after the last but one: %v", after)
	}
	if none, _, next := pull(fmt.Sprintf("?after=%d", len(all)+5)); len(none) != 0 || next != "" {
		t.Errorf("after the end: %v", none)
	}
	if _, types, _ := pull("?project_id=" + project); !slices.Equal(slices.DeleteFunc(types, func(s string) bool { return s == "conversation.titled" }),
		[]string{"project.created", "conversation.created", "message.created"}) {
		t.Errorf("of the project: %v", types)
	}
	h.do(call{as: "ada", method: "GET", path: "/api/v1/events?cursor=nonsense"}).is(400, "invalid_input")
	h.do(call{as: "ada", method: "GET", path: "/api/v1/events?after=-1"}).is(400, "invalid_input")
	h.do(call{as: "ada", method: "GET", path: "/api/v1/events/stream?after=x"}).is(400, "invalid_input")
	for _, path := range []string{"/api/v1/events", "/api/v1/events/stream"} {
		h.do(call{as: "bob", method: "GET", path: path + "?project_id=" + project}).is(404, "not_found")
		h.do(call{as: "bob", method: "GET", path: path + "?project_id=nonsense"}).is(404, "not_found")
	}
	if a := h.do(call{as: "bob", method: "GET", path: "/api/v1/events"}).is(200); a.at("data", "0") != nil {
		t.Errorf("Bob sees %s", a.Text)
	}
}

// kindsIn pulls the events of a project page by page, however many of them there are, and returns the kinds with their data.
func (s *shared) kindsIn(as, query string) (kinds, texts []string, pages int) {
	s.t.Helper()
	for cursor := ""; ; {
		a := s.do(call{as: as, method: "GET", path: "/api/v1/events?limit=200" + query + "&cursor=" + cursor}).is(200)
		pages++
		list, _ := a.at("data").([]any)
		for i := range list {
			kinds = append(kinds, a.text("data", fmt.Sprint(i), "type"))
			raw, err := json.Marshal(list[i])
			if err != nil {
				s.t.Fatal(err)
			}
			texts = append(texts, string(raw))
		}
		if cursor = a.text("next_cursor"); cursor == "" {
			return kinds, texts, pages
		}
	}
}

// TestGuestsPullWhatTheyMayRead: a member hears of a project what the member could read, a bounded piece of the log at a time.
func TestGuestsPullWhatTheyMayRead(t *testing.T) {
	for engine, address := range map[string]func() string{"sqlite": func() string { return "" }, "postgres": func() string { return pgtest.URL(t) }} {
		t.Run(engine, func(t *testing.T) {
			h := newHouseAt(t, address(), nil)
			meet(h)
			h.tend()
			s := newShared(h)
			other := h.make("ada", "/api/v1/projects", `{"name":"Secret"}`)
			at := "/api/v1/conversations/" + s.conversation
			h.do(call{as: "ada", method: "PATCH", path: at, body: `{"project_id":"` + other + `"}`}).is(200)
			h.do(call{as: "ada", method: "POST", path: at + "/messages", body: `{"content":"x","reply":false}`}).is(201)
			h.do(call{as: "ada", method: "PATCH", path: at, body: `{"project_id":"` + s.project + `"}`}).is(200)
			invited := s.add("newman", access.Viewer).text("invitation_id")
			h.do(call{as: "ada", method: "PATCH", path: s.members() + "/" + invited, body: `{"role":"editor"}`}).is(200)
			h.do(call{as: "ada", method: "DELETE", path: s.members() + "/" + invited}).is(204)
			s.add("bob", access.Viewer)
			of := "&project_id=" + s.project
			ada := func() (kinds []string) { kinds, _, _ = s.kindsIn("ada", of); return kinds }
			for deadline := time.Now().Add(30 * time.Second); count(ada(), "member.added") < 4 && time.Now().Before(deadline); {
				time.Sleep(20 * time.Millisecond)
			}
			// Everything that is about the project, and then much that is not.
			ten := h.people.byName["ada"].Tenant
			ws, err := h.pool.Acquire(t.Context(), ident.System(""), ten)
			if err != nil {
				t.Fatal(err)
			}
			head, err := ws.Events.Head(t.Context())
			ws.Release()
			if err != nil {
				t.Fatal(err)
			}
			owner, texts, _ := s.kindsIn("ada", of)
			guest, seen, _ := s.kindsIn("vera", of)
			if !slices.Contains(owner, "member.invited") || count(owner, "conversation.moved") != 2 || !strings.Contains(strings.Join(texts, ""), other) {
				t.Fatalf("the owner pulls %v", owner)
			}
			hidden := func(s string) bool { return strings.Contains(s, "inv_") }
			if len(guest) != len(owner)-len(slices.DeleteFunc(slices.Clone(texts), func(s string) bool { return !hidden(s) })) ||
				count(guest, "conversation.moved") != 2 || count(guest, "member.added") != 4 || strings.Contains(strings.Join(seen, ""), other) ||
				slices.ContainsFunc(seen, hidden) {
				t.Errorf("a member pulls %v\n%v", guest, seen)
			}
			if all, _, _ := s.kindsIn("vera", ""); slices.Contains(all, "conversation.moved") {
				t.Errorf("without a project a member pulls %v", all)
			}
			s.fill(ten, 2*eventsScanned+10)
			h.make("ada", "/api/v1/conversations", `{"project_id":"`+s.project+`"}`)
			after := fmt.Sprintf("%s&after=%d", of, head)
			for _, name := range []string{"vera", "ada"} {
				a := h.do(call{as: name, method: "GET", path: "/api/v1/events?" + after[1:]}).is(200)
				if list, _ := a.at("data").([]any); len(list) != 0 || a.text("next_cursor") != fmt.Sprintf("seq-%d", int(head)+eventsScanned) {
					t.Errorf("%s pulls more than it should at once: %s", name, a.Text)
				}
				if kinds, _, pages := s.kindsIn(name, after); !slices.Equal(kinds, []string{"conversation.created"}) || pages != 3 {
					t.Errorf("%s pulls %v in %d pages", name, kinds, pages)
				}
			}
		})
	}
}

func count(list []string, what string) (n int) {
	for _, s := range list {
		if s == what {
			n++
		}
	}
	return n
}

// fill appends so many events to a tenant's log that are about none of its projects.
func (s *shared) fill(id ident.TenantID, events int) {
	s.t.Helper()
	ws, err := s.pool.Acquire(s.t.Context(), ident.System(""), id)
	if err != nil {
		s.t.Fatal(err)
	}
	defer ws.Release()
	log, ok := ws.Events.(*sqlstore.TenantStore)
	if !ok {
		s.t.Fatal("the log is no store")
	}
	for ; events > 0; events -= 500 {
		ch := event.NewChange(ident.System(""), time.Now())
		for range min(events, 500) {
			ch.Add("conversation.updated", string(ident.New[ident.ConversationID]()), map[string]any{"project_id": nil, "version": 2, "status": "active"})
		}
		if err := log.Note(s.t.Context(), ch); err != nil {
			s.t.Fatal(err)
		}
	}
}
