package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"

	"claude-memory-backend/internal/event/catalogue"
	"claude-memory-backend/internal/event/catalogue/cataloguetest"
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
