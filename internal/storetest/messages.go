package storetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/project"
)

func fullMessage() conversation.Message {
	m := plainMessage("héllo 🧵\r\n")
	m.Turn = ident.New[ident.TurnID]()
	m.Role, m.State = conversation.Assistant, conversation.Stopped
	m.Blocks = json.RawMessage(`[ {"type":"text", "text":"h\u00e9llo"} , {"z":1,"a":1.50} ]`)
	m.Provider, m.Model, m.StopReason = "anthropic", "m-1", "end_turn"
	m.Usage = conversation.Usage{InputTokens: 1, OutputTokens: 2, CacheReadInputTokens: 3, CacheCreationInputTokens: 1 << 40}
	m.RawUsage, m.CostMicroUSD, m.FirstTokenMS, m.LatencyMS = json.RawMessage(`{"b":1, "a":2}`), 5, 6, 7
	m.ErrorCode, m.ErrorDetail, m.Tokens, m.PrefixHash = "code", "detail", 11, "hash"
	m.CreatedAt, m.UpdatedAt = at(2), at(3)
	return m
}

// tree is a room with branches. Each message says the path that leads to it.
//
//	1 ─ 1.1 ─ 1.1.1 ─ 1.1.1.1        trunk
//	        └ 1.1.2 ─ 1.1.2.1        forks under 1.1
//	                └ 1.1.2.2        forks under 1.1.2
//	  └ 1.2                          forks under 1
//	2 ─ 2.1                          another root
func tree(t testing.TB, h Harness) (*room, map[string]conversation.Message) {
	r := newRoom(t, h)
	all := map[string]conversation.Message{}
	for _, step := range [][2]string{{"", "1"}, {"1", "1.1"}, {"1.1", "1.1.1"}, {"1.1.1", "1.1.1.1"}, {"1.1", "1.1.2"},
		{"1.1.2", "1.1.2.1"}, {"1.1.2", "1.1.2.2"}, {"1", "1.2"}, {"", "2"}, {"2", "2.1"}} {
		w := conversation.Where{Root: step[0] == "", Parent: all[step[0]].ID}
		all[step[1]] = r.say(w, step[1])
	}
	return r, all
}

func messages(t *testing.T, h Harness) {
	t.Run("every field comes back", func(t *testing.T) {
		r := newRoom(t, h)
		want := r.add(active, fullMessage())[0]
		same(t, "depth", want.Depth, 1)
		same(t, "tokens up to it", want.TokensUpTo, 11)
		got, err := r.Talk.FindMessage(t.Context(), r.id, want.ID)
		must(t, err)
		same(t, "message", got, want)
	})
	t.Run("an append moves the conversation", func(t *testing.T) {
		r := newRoom(t, h)
		a, b := plainMessage("a"), plainMessage("b")
		c, e, err := r.Talk.Append(t.Context(), r.id, active,
			func(s conversation.Spot) (conversation.Entry, event.Change, error) {
				if s.Parent != nil {
					t.Error("an empty conversation has a parent")
				}
				return conversation.Entry{Messages: []conversation.Message{a, b}}, happens(7, "message.appended", "m"), nil
			})
		must(t, err)
		got, err := r.Talk.FindConversation(t.Context(), r.id)
		must(t, err)
		same(t, "returned", c, got)
		same(t, "leaf", got.Leaf, b.ID)
		same(t, "count", got.MessageCount, 2)
		same(t, "updated", got.UpdatedAt, at(7))
		same(t, "last message", *got.LastMessageAt, at(7))
		same(t, "version", got.Version, 1)
		same(t, "second's parent", e.Messages[1].Parent, a.ID)
		same(t, "second's depth", e.Messages[1].Depth, 2)
		same(t, "second's tokens", e.Messages[1].TokensUpTo, 2)
	})
	t.Run("the spot shows what is there", func(t *testing.T) { spot(t, h) })
	t.Run("branches are numbered as they open", func(t *testing.T) {
		r, all := tree(t, h)
		for name, want := range map[string][2]int64{"1": {0, 1}, "1.1": {0, 2}, "1.1.1": {0, 3}, "1.1.1.1": {0, 4},
			"1.1.2": {1, 3}, "1.1.2.1": {1, 4}, "1.1.2.2": {2, 4}, "1.2": {3, 2}, "2": {4, 1}, "2.1": {4, 2}} {
			got, err := r.Talk.FindMessage(t.Context(), r.id, all[name].ID)
			must(t, err)
			same(t, name, [2]int64{got.Branch, got.Depth}, want)
			same(t, "tokens of "+name, got.TokensUpTo, want[1])
		}
	})
	t.Run("pages of long messages end early and lose nothing", func(t *testing.T) {
		r := newRoom(t, h)
		long := strings.Repeat("x", 1_500_000)
		for i := range 5 {
			r.say(active, fmt.Sprint(i, long))
		}
		for _, q := range []conversation.MessageQuery{{}, {Ascending: true}, {All: true}, {All: true, Ascending: true}} {
			q.Limit = 100
			var seen []string
			pages := 0
			for {
				list, next, err := r.Talk.ListMessages(t.Context(), r.id, q)
				must(t, err)
				pages++
				for _, m := range list {
					seen = append(seen, m.Content[:1])
				}
				if q.Cursor = next; next == "" {
					break
				}
			}
			if q.Ascending {
				slices.Reverse(seen)
			}
			same(t, "messages", strings.Join(seen, ""), "43210")
			same(t, "more than one page", pages > 1, true)
		}
	})
	t.Run("a parent elsewhere is not found", func(t *testing.T) {
		r := newRoom(t, h)
		m := r.say(active, "here")
		other := r.open("other", 0)
		fill := func(conversation.Spot) (conversation.Entry, event.Change, error) {
			t.Error("fill was asked")
			return conversation.Entry{}, event.Change{}, nil
		}
		_, _, err := r.Talk.Append(t.Context(), other.ID, under(m), fill)
		wantCode(t, err, "not_found")
		_, _, err = r.Talk.Append(t.Context(), r.id, conversation.Where{Parent: ident.New[ident.MessageID]()}, fill)
		wantCode(t, err, "not_found")
		_, _, err = r.Talk.Append(t.Context(), ident.New[ident.ConversationID](), active, fill)
		wantCode(t, err, "not_found")
		_, err = r.Talk.FindMessage(t.Context(), other.ID, m.ID)
		wantCode(t, err, "not_found")
	})
	t.Run("a refused append changes nothing", func(t *testing.T) {
		r := newRoom(t, h)
		before, err := r.Talk.FindConversation(t.Context(), r.id)
		must(t, err)
		no := errors.New("no")
		if _, _, err := r.Talk.Append(t.Context(), r.id, active,
			func(conversation.Spot) (conversation.Entry, event.Change, error) {
				return conversation.Entry{Messages: []conversation.Message{plainMessage("x")}}, happens(1, "m", "m"), no
			}); !errors.Is(err, no) {
			t.Fatalf("got %v", err)
		}
		after, err := r.Talk.FindConversation(t.Context(), r.id)
		must(t, err)
		same(t, "conversation", after, before)
	})
	t.Run("a second one with the same id is a duplicate, and nothing of it stays", func(t *testing.T) {
		r := newRoom(t, h)
		m := r.say(active, "a")
		_, _, err := r.Talk.Append(t.Context(), r.id, active,
			func(conversation.Spot) (conversation.Entry, event.Change, error) {
				return conversation.Entry{Messages: []conversation.Message{plainMessage("b"), m}}, happens(1, "m", "m"), nil
			})
		wantCode(t, err, "duplicate")
		list, _, err := r.Talk.ListMessages(t.Context(), r.id, conversation.MessageQuery{All: true, Limit: 10})
		must(t, err)
		same(t, "messages", contents(list), []string{"a"})
	})
}

func spot(t *testing.T, h Harness) {
	r := newRoom(t, h)
	p := plainProject("p", 0)
	p.Instructions, p.Provider, p.Model, p.Settings = "be brief", "n8n", "m-2", json.RawMessage(`{"a": 1}`)
	r.project(p)
	c := r.inProject(p.ID, "in it")
	r.id = c.ID
	first := r.add(active, fullMessage())[0]
	r.say(active, "second")
	seen, err := r.Talk.FindConversation(t.Context(), c.ID)
	must(t, err)
	_, _, err = r.Talk.Append(t.Context(), c.ID, under(first),
		func(s conversation.Spot) (conversation.Entry, event.Change, error) {
			want := first
			want.Content, want.Blocks = "", nil
			same(t, "parent", *s.Parent, want)
			same(t, "conversation", s.Conversation, seen)
			s.Parent = nil
			same(t, "project", s, conversation.Spot{Conversation: seen, Instructions: "be brief", ProjectProvider: "n8n",
				ProjectModel: "m-2", ProjectSettings: p.Settings})
			return conversation.Entry{Messages: []conversation.Message{plainMessage("x")}}, happens(9, "m", "m"), nil
		})
	must(t, err)
	must(t, r.Projects.DeleteProject(t.Context(), p.ID, false, func(project.Project, int64) (event.Change, error) {
		return happens(9, "project.deleted", string(p.ID)), nil
	}))
	_, _, err = r.Talk.Append(t.Context(), c.ID, active,
		func(s conversation.Spot) (conversation.Entry, event.Change, error) {
			if s.Instructions != "" || s.ProjectSettings != nil {
				t.Error("a project that is gone speaks")
			}
			return conversation.Entry{Messages: []conversation.Message{plainMessage("y")}}, happens(9, "m", "m"), nil
		})
	must(t, err)
}

// walk reads a whole listing of messages in pages.
func (r *room) walk(q conversation.MessageQuery, between func()) []string {
	r.Helper()
	out := []string{}
	for pages := 0; ; pages++ {
		list, next, err := r.Talk.ListMessages(r.Context(), r.id, q)
		must(r, err)
		out = append(out, contents(list)...)
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

func reversed(list []string) []string {
	out := slices.Clone(list)
	slices.Reverse(out)
	return out
}

func paging(t *testing.T, h Harness) {
	paths := map[string][]string{
		"1": {"1"}, "1.1": {"1", "1.1"}, "1.1.1": {"1", "1.1", "1.1.1"}, "1.1.1.1": {"1", "1.1", "1.1.1", "1.1.1.1"},
		"1.1.2": {"1", "1.1", "1.1.2"}, "1.1.2.1": {"1", "1.1", "1.1.2", "1.1.2.1"},
		"1.1.2.2": {"1", "1.1", "1.1.2", "1.1.2.2"}, "1.2": {"1", "1.2"}, "2": {"2"}, "2.1": {"2", "2.1"},
	}
	t.Run("a path leads to each message", func(t *testing.T) {
		r, all := tree(t, h)
		for name, want := range paths {
			for limit := 1; limit <= 5; limit++ {
				q := conversation.MessageQuery{Leaf: all[name].ID, Limit: limit}
				same(t, "down to "+name, r.walk(q, nil), reversed(want))
				q.Ascending = true
				same(t, "up to "+name, r.walk(q, nil), want)
			}
		}
	})
	t.Run("without a leaf it is the active branch", func(t *testing.T) {
		r, all := tree(t, h)
		same(t, "path", r.walk(conversation.MessageQuery{Limit: 1, Ascending: true}, nil), paths["2.1"])
		r.say(under(all["1.1.2.2"]), "new")
		same(t, "path", r.walk(conversation.MessageQuery{Limit: 2}, nil), []string{"new", "1.1.2.2", "1.1.2", "1.1", "1"})
	})
	t.Run("all is every branch in order of creation", func(t *testing.T) {
		r, _ := tree(t, h)
		want := []string{"1", "1.1", "1.1.1", "1.1.1.1", "1.1.2", "1.1.2.1", "1.1.2.2", "1.2", "2", "2.1"}
		for _, limit := range []int{1, 3, 5, 10, 11} {
			same(t, "up", r.walk(conversation.MessageQuery{All: true, Limit: limit, Ascending: true}, nil), want)
			same(t, "down", r.walk(conversation.MessageQuery{All: true, Limit: limit}, nil), reversed(want))
		}
	})
	t.Run("pages stay while messages arrive and branches open", func(t *testing.T) {
		for _, q := range []conversation.MessageQuery{{Limit: 2}, {Limit: 2, Ascending: true}} {
			r, all := tree(t, h)
			r.say(under(all["1.1.2.2"]), "leaf")
			want := []string{"1", "1.1", "1.1.2", "1.1.2.2", "leaf"}
			if !q.Ascending {
				want = reversed(want)
			}
			same(t, "path", r.walk(q, func() {
				r.say(active, "arrived")
				r.say(under(all["1"]), "forked")
			}), want)
		}
		r, _ := tree(t, h)
		got := r.walk(conversation.MessageQuery{All: true, Limit: 4}, func() { r.say(active, "arrived") })
		same(t, "all, newest first", len(got), 10)
		arrived := 0
		got = r.walk(conversation.MessageQuery{All: true, Limit: 4, Ascending: true}, func() {
			if arrived++; arrived == 1 {
				r.say(active, "last")
			}
		})
		same(t, "all, oldest first, ends with what arrived", got[len(got)-1], "last")
	})
	t.Run("a conversation without messages has one empty page", func(t *testing.T) {
		r := newRoom(t, h)
		for _, q := range []conversation.MessageQuery{{}, {Ascending: true}, {All: true}, {All: true, Ascending: true}} {
			q.Limit = 3
			same(t, "page", r.walk(q, nil), []string{})
		}
	})
	t.Run("what is missing is not found", func(t *testing.T) {
		r, all := tree(t, h)
		other := r.open("other", 0).ID
		for _, q := range []conversation.MessageQuery{{}, {Ascending: true}, {All: true}} {
			q.Limit = 3
			_, _, err := r.Talk.ListMessages(t.Context(), ident.New[ident.ConversationID](), q)
			wantCode(t, err, "not_found")
		}
		_, _, err := r.Talk.ListMessages(t.Context(), other, conversation.MessageQuery{Leaf: all["1"].ID, Limit: 3})
		wantCode(t, err, "not_found")
		_, err = r.Talk.Path(t.Context(), other, all["1"].ID, 3, 0)
		wantCode(t, err, "not_found")
	})
	t.Run("a bad cursor is refused", func(t *testing.T) { badPageCursors(t, h) })
	t.Run("a path is cut by number and by tokens", func(t *testing.T) {
		r, all := tree(t, h)
		for name, want := range paths {
			for limit := 1; limit <= 5; limit++ {
				for after := range int64(5) {
					part := want[min(int(after), len(want)):]
					part = part[max(0, len(part)-limit):]
					got, err := r.Talk.Path(t.Context(), r.id, all[name].ID, limit, after)
					must(t, err)
					same(t, fmt.Sprintf("%s, at most %d after %d", name, limit, after), contents(got), slices.Clone(part))
				}
			}
		}
		got, err := r.Talk.Path(t.Context(), r.id, all["1.1.2.2"].ID, 9, 0)
		must(t, err)
		last, err := r.Talk.FindMessage(t.Context(), r.id, all["1.1.2.2"].ID)
		must(t, err)
		same(t, "with every field", got[3], last)
	})
	t.Run("a long path with many forks", func(t *testing.T) {
		r := newRoom(t, h)
		want := []string{}
		for i := range 40 {
			m := r.say(active, fmt.Sprint(i))
			want = append(want, m.Content)
			if i%3 == 0 { // each third message gets a second child, which goes on
				r.say(active, "left behind")
				m = r.say(under(m), fmt.Sprint(i, "'"))
				want = append(want, m.Content)
			}
		}
		same(t, "up", r.walk(conversation.MessageQuery{Limit: 7, Ascending: true}, nil), want)
		same(t, "down", r.walk(conversation.MessageQuery{Limit: 7}, nil), reversed(want))
	})
}

func badPageCursors(t *testing.T, h Harness) {
	r, all := tree(t, h)
	_, path, err := r.Talk.ListMessages(t.Context(), r.id, conversation.MessageQuery{Limit: 1, Leaf: all["1.1.2.2"].ID})
	must(t, err)
	_, whole, err := r.Talk.ListMessages(t.Context(), r.id, conversation.MessageQuery{Limit: 1, All: true})
	must(t, err)
	for _, q := range []conversation.MessageQuery{
		{Cursor: path, Ascending: true}, {Cursor: path, All: true}, {Cursor: path, Leaf: all["2"].ID},
		{Cursor: whole}, {Cursor: whole, All: true, Ascending: true},
	} {
		q.Limit = 1
		_, _, err := r.Talk.ListMessages(t.Context(), r.id, q)
		wantField(t, err, "query.cursor")
	}
	for _, cursor := range badCursors {
		for _, q := range []conversation.MessageQuery{{}, {All: true}, {Leaf: all["1"].ID}} {
			q.Limit, q.Cursor = 1, cursor
			_, _, err := r.Talk.ListMessages(t.Context(), r.id, q)
			wantField(t, err, "query.cursor")
		}
	}
	other := r.open("other", 0).ID
	_, _, err = r.Talk.ListMessages(t.Context(), other, conversation.MessageQuery{Limit: 1, Cursor: path})
	wantField(t, err, "query.cursor")
}
