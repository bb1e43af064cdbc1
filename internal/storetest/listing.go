package storetest

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/project"
)

// shelf is a room with conversations that differ in all that listings sort by, and often do not.
func shelf(t *testing.T, h Harness) *room {
	r := &room{TB: t, Stores: h.Tenant(t)}
	last := func(minutes int) *time.Time { m := at(minutes); return &m }
	for _, c := range []struct {
		title      string
		created    int
		updated    int
		last       *time.Time
		importance int
	}{
		{"beta", 0, 5, nil, 5}, {"Alpha", 0, 5, last(3), 5}, {"ähre", 1, 7, last(3), 1}, {"ALPHA", 1, 5, nil, 5},
		{"Zulu", 2, 9, last(9), 10}, {"alpha 2", 2, 6, last(3), 5}, {"日本", 3, 5, nil, 5}, {"Ärger", 3, 5, last(1), 5},
		{"_", 3, 5, last(3), 5},
	} {
		conv := plainConversation(c.title, c.created)
		conv.UpdatedAt, conv.LastMessageAt, conv.ImportanceLevel = at(c.updated), c.last, c.importance
		must(t, r.Talk.InsertConversation(t.Context(), conv, happens(0, "conversation.created", string(conv.ID))))
	}
	return r
}

// titles reads a whole listing in pages.
func (r *room) titles(q conversation.Query, between func()) []string {
	r.Helper()
	out := []string{}
	for pages := 0; ; pages++ {
		list, next, err := r.Talk.ListConversations(r.Context(), q)
		must(r, err)
		for _, c := range list {
			out = append(out, c.Title)
		}
		if next == "" {
			return out
		}
		if len(list) != q.Limit || pages > 100 {
			r.Fatalf("a page of %d with another one behind it", len(list))
		}
		if between != nil {
			between()
		}
		q.Cursor = next
	}
}

func listing(t *testing.T, h Harness) {
	t.Run("orders", func(t *testing.T) {
		r := shelf(t, h)
		for _, c := range []struct {
			sort conversation.Sort
			up   []string
			down []string
		}{
			{conversation.ByUpdated,
				[]string{"beta", "Alpha", "ALPHA", "日本", "Ärger", "_", "alpha 2", "ähre", "Zulu"},
				[]string{"Zulu", "ähre", "alpha 2", "_", "Ärger", "日本", "ALPHA", "Alpha", "beta"}},
			{conversation.ByCreated,
				[]string{"beta", "Alpha", "ähre", "ALPHA", "Zulu", "alpha 2", "日本", "Ärger", "_"},
				[]string{"_", "Ärger", "日本", "alpha 2", "Zulu", "ALPHA", "ähre", "Alpha", "beta"}},
			{conversation.ByLast,
				[]string{"Ärger", "Alpha", "ähre", "alpha 2", "_", "Zulu", "beta", "ALPHA", "日本"},
				[]string{"Zulu", "_", "alpha 2", "ähre", "Alpha", "Ärger", "日本", "ALPHA", "beta"}},
			{conversation.ByTitle,
				[]string{"_", "Alpha", "ALPHA", "alpha 2", "beta", "Zulu", "ähre", "Ärger", "日本"},
				[]string{"日本", "Ärger", "ähre", "Zulu", "beta", "alpha 2", "ALPHA", "Alpha", "_"}},
			{conversation.ByImportance,
				[]string{"ähre", "beta", "Alpha", "ALPHA", "alpha 2", "日本", "Ärger", "_", "Zulu"},
				[]string{"Zulu", "_", "Ärger", "日本", "alpha 2", "ALPHA", "Alpha", "beta", "ähre"}},
		} {
			for _, limit := range []int{1, 2, 4, 9, 20} {
				t.Run(fmt.Sprintf("%s in pages of %d", c.sort, limit), func(t *testing.T) {
					r := &room{TB: t, Stores: r.Stores}
					same(t, "up", r.titles(conversation.Query{Sort: c.sort, Ascending: true, Limit: limit}, nil), c.up)
					same(t, "down", r.titles(conversation.Query{Sort: c.sort, Limit: limit}, nil), c.down)
				})
			}
		}
		same(t, "without an order", r.titles(conversation.Query{Limit: 3}, nil),
			r.titles(conversation.Query{Limit: 3, Sort: conversation.ByUpdated}, nil))
	})
	t.Run("pages stay while others arrive", func(t *testing.T) {
		r := shelf(t, h)
		want := r.titles(conversation.Query{Limit: 20}, nil)
		same(t, "titles", r.titles(conversation.Query{Limit: 2}, func() { r.open("new", 99) }), want)
	})
	t.Run("a conversation that goes takes no other along", func(t *testing.T) {
		r := shelf(t, h)
		list, next, err := r.Talk.ListConversations(t.Context(), conversation.Query{Limit: 4})
		must(t, err)
		must(t, r.Talk.DeleteConversation(t.Context(), list[3].ID, func(conversation.Conversation) (event.Change, error) {
			return happens(9, "conversation.deleted", string(list[3].ID)), nil
		}))
		rest, _, err := r.Talk.ListConversations(t.Context(), conversation.Query{Limit: 20, Cursor: next})
		must(t, err)
		same(t, "rest", len(rest), 5)
	})
	t.Run("filters narrow", func(t *testing.T) { filters(t, h) })
	t.Run("a cursor of another listing is refused", func(t *testing.T) {
		r := shelf(t, h)
		_, next, err := r.Talk.ListConversations(t.Context(), conversation.Query{Limit: 1})
		must(t, err)
		for _, q := range []conversation.Query{{Sort: conversation.ByTitle}, {Ascending: true}, {Sort: conversation.ByLast}} {
			q.Cursor, q.Limit = next, 1
			_, _, err := r.Talk.ListConversations(t.Context(), q)
			wantField(t, err, "query.cursor")
		}
		for _, cursor := range badCursors {
			for _, sort := range []conversation.Sort{"", conversation.ByTitle, conversation.ByLast} {
				_, _, err := r.Talk.ListConversations(t.Context(), conversation.Query{Limit: 1, Cursor: cursor, Sort: sort})
				wantField(t, err, "query.cursor")
			}
		}
		_, _, err = r.Projects.ListProjects(t.Context(), project.Query{Limit: 1, Cursor: next})
		wantField(t, err, "query.cursor")
	})
	t.Run("an order that is not known is refused", func(t *testing.T) {
		_, _, err := h.Tenant(t).Talk.ListConversations(t.Context(), conversation.Query{Limit: 1, Sort: "n; DROP"})
		wantField(t, err, "query.sort")
	})
}

func filters(t *testing.T, h Harness) {
	r := &room{TB: t, Stores: h.Tenant(t)}
	p := r.project(plainProject("p", 0)).ID
	for i, d := range []conversation.Details{
		{Title: "Über 50% \\ _", ProjectID: p, Status: conversation.Active, ImportanceLevel: 1, Tags: []string{"x", "über"}},
		{Title: "über alles", Status: conversation.Pinned, ImportanceLevel: 2, Tags: []string{`x","y`, ","}},
		{Title: "e\u0301tude", Status: conversation.Archived, ImportanceLevel: 2, Tags: []string{`"\`, "x,"}},
	} {
		c := plainConversation("", i)
		d.Settings = json.RawMessage(`{}`)
		c.Details = d
		must(t, r.Talk.InsertConversation(t.Context(), c, happens(0, "conversation.created", string(c.ID))))
	}
	first, second, third := "Über 50% \\ _", "über alles", "e\u0301tude"
	for _, c := range []struct {
		name string
		q    conversation.Query
		want []string
	}{
		{"project", conversation.Query{Project: p}, []string{first}},
		{"status", conversation.Query{Status: conversation.Pinned}, []string{second}},
		{"importance", conversation.Query{Importance: 2}, []string{third, second}},
		{"tag", conversation.Query{Tag: "x"}, []string{first}},
		{"tag with a letter beyond ASCII", conversation.Query{Tag: "über"}, []string{first}},
		{"tag of two quotes", conversation.Query{Tag: `x","y`}, []string{second}},
		{"tag of one comma", conversation.Query{Tag: ","}, []string{second}},
		{"tag of one backslash", conversation.Query{Tag: `\`}, []string{}},
		{"tag is exact", conversation.Query{Tag: "X"}, []string{}},
		{"title without case", conversation.Query{Title: "ÜBER"}, []string{second, first}},
		{"title has no wildcards", conversation.Query{Title: "%ü"}, []string{}},
		{"title with special characters", conversation.Query{Title: `0% \ _`}, []string{first}},
		{"title in another composition", conversation.Query{Title: "\u00c9T"}, []string{third}},
		{"all at once", conversation.Query{Project: p, Status: conversation.Active, Tag: "x", Importance: 1, Title: "50"},
			[]string{first}},
		{"all but one", conversation.Query{Project: p, Status: conversation.Pinned, Tag: "x"}, []string{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &room{TB: t, Stores: r.Stores}
			c.q.Limit = 1
			same(t, "titles", r.titles(c.q, nil), c.want)
		})
	}
}
