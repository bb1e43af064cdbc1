package storetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/project"
)

func plainProject(name string, minutes int) project.Project {
	return project.Project{ID: ident.New[ident.ProjectID](),
		Details: project.Details{Name: name, Status: project.Active, Priority: project.Medium, Tags: []string{},
			Settings: json.RawMessage(`{}`)},
		Owner: event.Who{ID: ada.Account, Name: ada.Name}, Version: 1, CreatedAt: at(minutes), UpdatedAt: at(minutes)}
}

func fullProject() project.Project {
	deadline := at(500)
	p := plainProject("Größe ist \"relativ\"", 1)
	p.Details = project.Details{Name: p.Name, Description: "d\r\nd", Instructions: "be brief 🧵", Status: project.Paused,
		Priority: project.Critical, Color: "#ff0000", Icon: "🚀", Tags: []string{"a", "b,c", `quo"te`}, Provider: "n8n",
		Model: "claude-x", Settings: json.RawMessage(`{ "thinking" : {"b":1,"a":2}, "a":1.0 }`), Deadline: &deadline}
	p.Version = 7
	return p
}

func (r *room) project(p project.Project) project.Project {
	r.Helper()
	must(r, r.Projects.InsertProject(r.Context(), p, happens(0, "project.created", string(p.ID))))
	return p
}

func projects(t *testing.T, h Harness) {
	t.Run("every field comes back", func(t *testing.T) {
		r := newRoom(t, h)
		want := r.project(fullProject())
		got, err := r.Projects.FindProject(t.Context(), want.ID)
		must(t, err)
		same(t, "project", got, want)
	})
	t.Run("what is missing is not found", func(t *testing.T) {
		r := newRoom(t, h)
		id := ident.New[ident.ProjectID]()
		_, err := r.Projects.FindProject(t.Context(), id)
		wantCode(t, err, "not_found")
		_, err = r.Projects.UpdateProject(t.Context(), id, func(p project.Project) (project.Project, event.Change, error) {
			t.Error("edit was asked")
			return p, event.Change{}, nil
		})
		wantCode(t, err, "not_found")
		wantCode(t, r.Projects.DeleteProject(t.Context(), id, false, func(project.Project, int64) (event.Change, error) {
			t.Error("decide was asked")
			return event.Change{}, nil
		}), "not_found")
	})
	t.Run("a second one with the same id is a duplicate", func(t *testing.T) {
		r := newRoom(t, h)
		p := r.project(plainProject("one", 0))
		wantCode(t, r.Projects.InsertProject(t.Context(), p, happens(0, "project.created", string(p.ID))), "duplicate")
	})
	t.Run("an edit replaces every editable field", func(t *testing.T) {
		r := newRoom(t, h)
		p := r.project(plainProject("one", 0))
		want := fullProject()
		want.ID, want.CreatedAt, want.UpdatedAt = p.ID, p.CreatedAt, at(9)
		got, err := r.Projects.UpdateProject(t.Context(), p.ID,
			func(was project.Project) (project.Project, event.Change, error) {
				same(t, "what edit sees", was, p)
				return want, happens(9, "project.updated", string(p.ID)), nil
			})
		must(t, err)
		same(t, "returned", got, want)
		got, err = r.Projects.FindProject(t.Context(), p.ID)
		must(t, err)
		same(t, "stored", got, want)
	})
	t.Run("a refused edit changes nothing", func(t *testing.T) {
		r := newRoom(t, h)
		p := r.project(plainProject("one", 0))
		head, err := r.Events.Head(t.Context())
		must(t, err)
		no := errors.New("no")
		_, err = r.Projects.UpdateProject(t.Context(), p.ID,
			func(was project.Project) (project.Project, event.Change, error) {
				was.Name = "two"
				return was, happens(1, "project.updated", string(p.ID)), no
			})
		if !errors.Is(err, no) {
			t.Fatalf("got %v", err)
		}
		got, err := r.Projects.FindProject(t.Context(), p.ID)
		must(t, err)
		same(t, "project", got, p)
		after, err := r.Events.Head(t.Context())
		must(t, err)
		same(t, "head", after, head)
	})
	t.Run("counts its conversations", func(t *testing.T) {
		r := newRoom(t, h)
		p := r.project(plainProject("one", 0))
		for i := range 3 {
			r.inProject(p.ID, fmt.Sprint(i))
		}
		p.ConversationCount = 3
		got, err := r.Projects.FindProject(t.Context(), p.ID)
		must(t, err)
		same(t, "found", got, p)
		list, _, err := r.Projects.ListProjects(t.Context(), project.Query{Limit: 5})
		must(t, err)
		same(t, "listed", list, []project.Project{p})
	})
	t.Run("going, it leaves its conversations", func(t *testing.T) { deleteProject(t, h, false) })
	t.Run("going, it takes them along when told", func(t *testing.T) { deleteProject(t, h, true) })
	t.Run("a refused deletion leaves everything", func(t *testing.T) {
		r := newRoom(t, h)
		p := r.project(plainProject("one", 0))
		c := r.inProject(p.ID, "kept")
		no := errors.New("no")
		if err := r.Projects.DeleteProject(t.Context(), p.ID, true, func(project.Project, int64) (event.Change, error) {
			return event.Change{}, no
		}); !errors.Is(err, no) {
			t.Fatalf("got %v", err)
		}
		got, err := r.Talk.FindConversation(t.Context(), c.ID)
		must(t, err)
		same(t, "its conversation", got, c)
	})
	t.Run("pages are newest first and stay while others arrive", func(t *testing.T) {
		r := newRoom(t, h)
		for i := range 7 {
			r.project(plainProject(fmt.Sprint(i), 0)) // all in the same moment
		}
		var names []string
		for q := (project.Query{Limit: 3}); ; {
			list, next, err := r.Projects.ListProjects(t.Context(), q)
			must(t, err)
			for _, p := range list {
				names = append(names, p.Name)
			}
			if next == "" {
				break
			}
			r.project(plainProject("late", 1))
			q.Cursor = next
		}
		same(t, "names", names, []string{"6", "5", "4", "3", "2", "1", "0"})
	})
	t.Run("filters narrow", func(t *testing.T) {
		r := newRoom(t, h)
		a := plainProject("Straße nach Ölbronn", 0)
		a.Tags, a.Status = []string{"x", `a","b`}, project.Archived
		b := plainProject("100% STRASSE_", 0)
		b.Tags = []string{"a", "b"}
		r.project(a)
		r.project(b)
		for _, c := range []struct {
			name string
			q    project.Query
			want []string
		}{
			{"none", project.Query{}, []string{b.Name, a.Name}},
			{"status", project.Query{Status: project.Archived}, []string{a.Name}},
			{"tag", project.Query{Tag: "a"}, []string{b.Name}},
			{"tag that looks like two", project.Query{Tag: `a","b`}, []string{a.Name}},
			{"part of a tag", project.Query{Tag: ","}, nil},
			{"case", project.Query{Text: "ÖLB"}, []string{a.Name}},
			{"no wildcards", project.Query{Text: "%_"}, nil},
			{"percent", project.Query{Text: "0% s"}, []string{b.Name}},
		} {
			t.Run(c.name, func(t *testing.T) {
				c.q.Limit = 10
				list, _, err := r.Projects.ListProjects(t.Context(), c.q)
				must(t, err)
				var names []string
				for _, p := range list {
					names = append(names, p.Name)
				}
				same(t, "names", names, c.want)
			})
		}
	})
	t.Run("a bad cursor is refused", func(t *testing.T) {
		r := newRoom(t, h)
		for _, cursor := range badCursors {
			_, _, err := r.Projects.ListProjects(t.Context(), project.Query{Limit: 1, Cursor: cursor})
			wantField(t, err, "query.cursor")
		}
	})
}

// badCursors are no place in any listing: noise, JSON of another shape, a text behind one.
var badCursors = []string{"x", "!!!", "e30", "eyJuIjoxfQ", "bnVsbA", "eyJrIjoicHJvamVjdHMiLCJuIjoieCJ9",
	"eyJrIjoicHJvamVjdHMiLCJuIjo1fXt9", "eyJrIjoicHJvamVjdHMiLCJuIjo1LCJ6IjoxfQ"}

func (r *room) inProject(id ident.ProjectID, title string) conversation.Conversation {
	r.Helper()
	c := plainConversation(title, 0)
	c.ProjectID = id
	must(r, r.Talk.InsertConversation(r.Context(), c, happens(0, "conversation.created", string(c.ID))))
	return c
}

func deleteProject(t *testing.T, h Harness, drop bool) {
	r := newRoom(t, h)
	p := r.project(plainProject("one", 0))
	c := r.inProject(p.ID, "in it")
	r.inProject(p.ID, "too")
	other := r.id
	r.id = c.ID
	m := r.say(active, "hello")
	must(t, r.Projects.DeleteProject(t.Context(), p.ID, drop,
		func(was project.Project, n int64) (event.Change, error) {
			same(t, "name", was.Name, "one")
			same(t, "conversations", n, 2)
			return happens(5, "project.deleted", string(p.ID)), nil
		}))
	_, err := r.Projects.FindProject(t.Context(), p.ID)
	wantCode(t, err, "not_found")
	list, _, err := r.Talk.ListConversations(t.Context(), conversation.Query{Limit: 10})
	must(t, err)
	got, err := r.Talk.FindConversation(t.Context(), c.ID)
	if drop {
		wantCode(t, err, "not_found")
		_, err = r.Talk.FindMessage(t.Context(), c.ID, m.ID)
		wantCode(t, err, "not_found")
		same(t, "left", len(list), 1)
		same(t, "the other", list[0].ID, other)
		return
	}
	must(t, err)
	same(t, "its project", got.ProjectID, "")
	same(t, "left", len(list), 3)
	_, err = r.Talk.FindMessage(t.Context(), c.ID, m.ID)
	must(t, err)
}
