package storetest

import (
	"strings"
	"testing"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
)

func text(t *testing.T, h Harness) {
	t.Run("what is said comes back byte for byte", func(t *testing.T) {
		r := newRoom(t, h)
		long := strings.Repeat("Ein langer Satz über nichts. 🧵\n", 60_000) // 2 MB
		for name, content := range map[string]string{
			"emoji":         "👩🏽‍🚀 🏳️‍🌈 🇩🇪",
			"right to left": "שלום \u200fمرحبا\u200e",
			"combining":     "e\u0301 é",
			"quotes":        `'"; DROP TABLE messages; -- \ \\ $1 ?1 :a`,
			"line ends":     "\r\n\n\r\t",
			"controls":      "\x01\x1b\x7f\u0085\u2028\ufeff",
			"non-character": "\uffff\U0010ffff",
			"spaces":        "  lead and trail  ",
			"empty":         "",
			"long":          long,
		} {
			t.Run(name, func(t *testing.T) {
				r := &room{TB: t, Stores: r.Stores, id: r.id}
				m := plainMessage(content)
				m.Blocks = []byte(`[{"type":"text","text":"\u0000\ud83e"}]`) // escapes are the reader's business
				r.add(active, m)
				got, err := r.Talk.FindMessage(t.Context(), r.id, m.ID)
				must(t, err)
				if got.Content != content {
					t.Errorf("%d bytes came back as %d others", len(content), len(got.Content))
				}
				same(t, "blocks", string(got.Blocks), string(m.Blocks))
			})
		}
	})
	t.Run("what no engine holds is refused by both", func(t *testing.T) { refusedText(t, h) })
	t.Run("titles sort by code point in any locale", func(t *testing.T) {
		r := &room{TB: t, Stores: h.Tenant(t)}
		want := []string{"", " a", "-", "10", "9", "Zz", "a b", "ab", "z", "ß", "é", "я", "日", "ﬁ", "🧵"}
		for i := range want {
			r.open(want[(i*7)%len(want)], i)
		}
		// "Zz" is folded and stands behind "z".
		want = []string{"", " a", "-", "10", "9", "a b", "ab", "z", "Zz", "ß", "é", "я", "日", "ﬁ", "🧵"}
		same(t, "up", r.titles(conversation.Query{Sort: conversation.ByTitle, Ascending: true, Limit: 4}, nil), want)
		same(t, "down", r.titles(conversation.Query{Sort: conversation.ByTitle, Limit: 4}, nil), reversed(want))
	})
}

func refusedText(t *testing.T, h Harness) {
	for name, bad := range map[string]string{"NUL": "a\x00b", "broken UTF-8": "a\xffb", "half a surrogate": "a\xed\xa0\x80"} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t, h)
			turn, _ := r.ask(active, "hello")
			heads := len(r.Commits())
			say := func(m conversation.Message) error {
				_, _, err := r.Talk.Append(t.Context(), r.id, active,
					func(conversation.Spot) (conversation.Entry, event.Change, error) {
						return conversation.Entry{Messages: []conversation.Message{m}}, happens(1, "m", "m"), nil
					})
				return err
			}
			content, blocks := plainMessage(bad), plainMessage("x")
			blocks.Blocks = []byte(`["` + bad + `"]`)
			title, tag := plainConversation(bad, 0), plainConversation("x", 0)
			tag.Tags = []string{"ok", bad}
			p := plainProject("x", 0)
			p.Tags = []string{bad}
			_, flush := r.Talk.FlushTurn(t.Context(), turn, 0, says(bad), at(5))
			_, _, listTag := r.Talk.ListConversations(t.Context(), conversation.Query{Limit: 1, Tag: bad})
			_, _, listTitle := r.Talk.ListConversations(t.Context(), conversation.Query{Limit: 1, Title: bad})
			for what, err := range map[string]error{
				"content": say(content), "blocks": say(blocks), "flush": flush,
				"title":         r.Talk.InsertConversation(t.Context(), title, happens(1, "c", "c")),
				"tag":           r.Talk.InsertConversation(t.Context(), tag, happens(1, "c", "c")),
				"project's tag": r.Projects.InsertProject(t.Context(), p, happens(1, "p", "p")),
				"tag asked for": listTag, "title asked for": listTitle,
			} {
				t.Run(what, func(t *testing.T) { wantCode(t, err, "invalid_text") })
			}
			same(t, "announced", len(r.Commits()), heads)
		})
	}
}
