package conversation

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func say(role Role, text string) Message {
	return Message{Role: role, Content: text, Tokens: estimate(text)}
}

func TestWindowMovesInSteps(t *testing.T) {
	e := NewEngine(Config{Budget: 10_000, History: 100})
	starts := map[int64]int{}
	upTo := int64(0)
	for depth := int64(1); depth <= 10_000; depth++ {
		upTo += 50
		limit, after := e.window(10_000, Message{Depth: depth, Tokens: 50, TokensUpTo: upTo})
		if limit > 100 || limit < 1 {
			t.Fatalf("at depth %d a prompt may hold %d messages", depth, limit)
		}
		if upTo-after > 10_000 || after >= upTo {
			t.Fatalf("at depth %d a prompt may hold %d tokens", depth, upTo-after)
		}
		starts[depth-int64(limit)]++
	}
	if len(starts) > 10_000/50+1 {
		t.Errorf("the prefix changed %d times in 10,000 turns", len(starts))
	}
	t.Run("the newest message is always asked", func(t *testing.T) {
		limit, after := e.window(10_000, Message{Depth: 3, Tokens: 50_000, TokensUpTo: 50_100})
		if limit < 1 || after >= 50_100 {
			t.Errorf("limit %d, after %d", limit, after)
		}
	})
}

func TestTheNextPromptBeginsWithTheLast(t *testing.T) {
	thinking := `{"type":"thinking","thinking":"hm","signature":"sig"}`
	answer := func(system, model string, path []Message) Message {
		_, h := render(path, system, model)
		return Message{Role: Assistant, Content: "fine", PrefixHash: hex.EncodeToString(h.Sum(nil)),
			Blocks: json.RawMessage(`[` + thinking + `,{"type":"text","text":"fine"}]`)}
	}
	var path []Message
	var before []PromptMessage
	for i := range 5 {
		path = append(path, say(User, fmt.Sprint("question ", i)))
		now, _ := render(path, "be kind", "m1")
		for j, m := range before {
			if fmt.Sprint(m) != fmt.Sprint(now[j]) {
				t.Fatalf("turn %d changed message %d of the prefix", i, j)
			}
		}
		before = now
		path = append(path, answer("be kind", "m1", path))
	}
	count := func(system, model string, path []Message) int {
		ms, _ := render(path, system, model)
		raw, _ := json.Marshal(ms)
		return strings.Count(string(raw), `"signature"`)
	}
	if n := count("be kind", "m1", path); n != 5 {
		t.Errorf("%d of 5 thinking blocks kept behind an unchanged prefix", n)
	}
	if n := count("be rude", "m1", path); n != 0 {
		t.Errorf("%d thinking blocks kept behind another system prompt", n)
	}
	if n := count("be kind", "m2", path); n != 0 {
		t.Errorf("%d thinking blocks kept for another model", n)
	}
	if n := count("be kind", "m1", path[2:]); n != 0 {
		t.Errorf("%d thinking blocks kept after the beginning was dropped", n)
	}
	t.Run("thinking made after a change is kept from there on", func(t *testing.T) {
		longer := append([]Message{}, path...)
		longer = append(longer, say(User, "and now?"))
		longer = append(longer, answer("be rude", "m1", longer))
		if n := count("be rude", "m1", longer); n != 1 {
			t.Errorf("%d thinking blocks kept, want the one made after the change", n)
		}
	})
}

func TestPromptsAreWellFormed(t *testing.T) {
	t.Run("what says nothing is left out", func(t *testing.T) {
		ms, _ := render([]Message{say(User, "a"), {Role: Assistant, State: Failed}, say(User, "b")}, "", "")
		if len(ms) != 2 {
			t.Errorf("%d messages", len(ms))
		}
	})
	t.Run("at most two messages are marked", func(t *testing.T) {
		ms, _ := render([]Message{say(User, "a"), say(Assistant, "x"), say(User, "b"), say(Assistant, "y"), say(User, "c")}, "", "")
		mark(ms)
		if ms[0].CacheMark || !ms[2].CacheMark || !ms[4].CacheMark || ms[3].CacheMark {
			t.Errorf("marks %+v", ms)
		}
	})
	t.Run("a path begins with a user, and not with a tool's result", func(t *testing.T) {
		tool := Message{Role: User, Blocks: json.RawMessage(`[{"type":"tool_result","tool_use_id":"x"}]`)}
		got := fromUser([]Message{say(Assistant, "x"), tool, say(Assistant, "y"), say(User, "c")})
		if len(got) != 1 || got[0].Content != "c" {
			t.Errorf("%+v", got)
		}
	})
	t.Run("text keeps its bytes", func(t *testing.T) {
		if got := string(textBlock("a<b>&\u2028\"")); got != `{"type":"text","text":"a<b>&\u2028\""}` {
			t.Errorf("%s", got)
		}
	})
}

func TestTitles(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "",
		"  \n# **Hello**\nx":        "Hello",
		"short":                     "short",
		strings.Repeat("word ", 30): "word word word word word word word word word word word word…",
	} {
		if got := titleFrom(text); got != want {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func TestWeights(t *testing.T) {
	picture := json.RawMessage(`[{"type":"image","source":{"type":"base64","data":"` + strings.Repeat("A", 600_000) + `"}}]`)
	e := NewEngine(Config{Weigh: func(blocks []json.RawMessage) int { return 1_600 * len(blocks) }})
	if got := e.estimate("", picture); got > 2_000 {
		t.Errorf("a picture weighs %d tokens, as if it were text", got)
	}
	if got := e.estimate("four words of text", nil); got < 4 || got > 20 {
		t.Errorf("a line weighs %d tokens", got)
	}
	t.Run("messages whose sums are too low still fit the budget", func(t *testing.T) {
		path := []Message{{Content: "old", Tokens: 800}, {Content: "answer", Tokens: 300}, {Content: "new", Tokens: 50}}
		if got := within(path, 400); len(got) != 2 || got[0].Content != "answer" {
			t.Errorf("%d messages kept", len(got))
		}
		if got := within([]Message{{Content: "long", Tokens: 9_000}}, 400); len(got) != 1 {
			t.Error("the newest message was dropped")
		}
	})
}
