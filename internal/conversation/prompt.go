package conversation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"hash"
	"strings"
	"unicode/utf8"
)

// GoOn is what an unfinished answer is followed by when it is continued: models accept no unfinished assistant
// message as the last one.
const GoOn = "Your answer above was cut off. Go on exactly where it stopped, without repeating anything and without an introduction."

// defaultRoom is what the budget leaves for an answer whose size nobody chose.
const defaultRoom = 8_192

// prompt builds what the model is asked: the end of the active branch that fits the budget, the same prefix as last
// time wherever possible. It also returns how many messages of the branch were left out, and the hash of the prompt
// that the answer's thinking will be bound to.
func (s *Service) prompt(ctx context.Context, j *job) (Prompt, int64, string, error) {
	t, user := j.x.Turn, j.x.User
	budget := s.engine.budget(t.Model, t.MaxTokens, j.system)
	limit, after := s.engine.window(budget, user)
	path, err := s.store.Path(ctx, t.Conversation, user.ID, limit, after)
	if err != nil {
		return Prompt{}, 0, "", err
	}
	path = fromUser(within(path, budget))
	messages, h := render(path, j.system, t.Model)
	if j.prefix != "" {
		messages = appendTurn(messages, h, Assistant, []json.RawMessage{textBlock(j.prefix)})
		messages = appendTurn(messages, h, User, []json.RawMessage{textBlock(GoOn)})
	}
	mark(messages)
	j.until = s.moment().Add(s.engine.CallbackTime)
	return Prompt{
		Turn: string(t.ID), Conversation: string(t.Conversation), Account: string(s.owner),
		Model: t.Model, MaxTokens: t.MaxTokens, System: j.system, Messages: messages, Settings: j.conv.Settings,
		Callback: s.tenant.Callback(*t, j.until), Until: j.until,
	}, user.Depth - int64(len(path)), hex.EncodeToString(h.Sum(nil)), nil
}

// window says which end of the path to user a prompt may hold: at most limit messages, and only those past `after`
// estimated tokens. Both bounds move in steps of half their size, not with every turn: a prefix that stays the same
// keeps the provider's prompt cache warm and the thinking in it valid.
func (e *Engine) window(budget int64, user Message) (limit int, after int64) {
	if over := user.TokensUpTo - budget; over > 0 {
		after = steps(over, budget/2)
		// The newest message is always asked, however long it is.
		after = min(after, user.TokensUpTo-user.Tokens)
	}
	drop := int64(0)
	if over := user.Depth - int64(e.History); over > 0 {
		drop = min(steps(over, int64(e.History)/2), user.Depth-1)
	}
	return int(user.Depth - drop), after
}

// budget is how many tokens of history a prompt may hold: what the model's window leaves beside the system prompt and
// the answer, and no more than configured.
func (e *Engine) budget(model string, maxTokens int, system string) int64 {
	room := maxTokens
	if room == 0 {
		room = defaultRoom
	}
	return max(1_000, min(int64(e.Budget), int64(e.Window(model))-int64(room)-estimate(system)))
}

// within drops the oldest messages of a path whose own tokens are over the budget. The sums that window goes by can
// be too low: what was sent under an answer that was still being written does not count it.
func within(path []Message, budget int64) []Message {
	sum := int64(0)
	for i := len(path) - 1; i >= 0; i-- {
		if sum += path[i].Tokens; sum > budget && i < len(path)-1 {
			return path[i+1:]
		}
	}
	return path
}

// steps rounds n up to a multiple of size.
func steps(n, size int64) int64 {
	size = max(size, 1)
	return (n + size - 1) / size * size
}

// fromUser drops what may not stand first: a conversation with a model begins with a user's message, and one that
// only carries results of tools needs the call before it.
func fromUser(path []Message) []Message {
	for i, m := range path {
		if m.Role == User && !strings.Contains(string(m.Blocks), `"tool_result"`) {
			return path[i:]
		}
	}
	return path[max(0, len(path)-1):]
}

// render makes a prompt's messages of a path. Thinking is kept only where the prompt before it hashes to what it was
// when the thinking was made: providers bind thinking to its prefix and refuse it elsewhere.
func render(path []Message, system, model string) ([]PromptMessage, hash.Hash) {
	h := sha256.New()
	writePart(h, "model", model)
	writePart(h, "system", system)
	var out []PromptMessage
	for _, m := range path {
		blocks := m.blocks()
		if m.Role == Assistant && (m.PrefixHash == "" || m.PrefixHash != hex.EncodeToString(h.Sum(nil))) {
			blocks = withoutThinking(blocks)
		}
		if m.Role == SystemSay || len(blocks) == 0 {
			continue
		}
		out = appendTurn(out, h, m.Role, blocks)
	}
	return out, h
}

func appendTurn(out []PromptMessage, h hash.Hash, role Role, blocks []json.RawMessage) []PromptMessage {
	writePart(h, "role", string(role))
	for _, b := range blocks {
		writePart(h, "block", string(b))
	}
	return append(out, PromptMessage{Role: string(role), Blocks: blocks})
}

// writePart hashes with lengths, so that no two sequences of parts look alike.
func writePart(h hash.Hash, kind, s string) {
	n := len(s)
	h.Write([]byte{byte(len(kind)), byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	h.Write([]byte(kind))
	h.Write([]byte(s))
}

// mark asks for cache breakpoints at the newest user message and at the one before it: the second finds what the
// last turn wrote, however many blocks lie between.
func mark(messages []PromptMessage) {
	left := 2
	for i := len(messages) - 1; i >= 0 && left > 0; i-- {
		if messages[i].Role == string(User) {
			messages[i].CacheMark = true
			left--
		}
	}
}

// blocks are the content blocks of a message as a provider knows them; none when nothing was said.
func (m Message) blocks() []json.RawMessage {
	if len(m.Blocks) > 0 {
		var out []json.RawMessage
		if json.Unmarshal(m.Blocks, &out) == nil {
			return out
		}
	}
	if strings.TrimSpace(m.Content) == "" {
		return nil
	}
	return []json.RawMessage{textBlock(m.Content)}
}

// AllBlocks are the content blocks as a JSON array, verbatim where the provider or client gave them.
func (m Message) AllBlocks() json.RawMessage {
	if len(m.Blocks) > 0 {
		return m.Blocks
	}
	if m.Content == "" {
		return json.RawMessage("[]")
	}
	return append(append([]byte{'['}, textBlock(m.Content)...), ']')
}

func withoutThinking(blocks []json.RawMessage) []json.RawMessage {
	kept := blocks[:0:0]
	for _, b := range blocks {
		var head struct {
			Type string `json:"type"`
		}
		if json.Unmarshal(b, &head) == nil && (head.Type == "thinking" || head.Type == "redacted_thinking") {
			continue
		}
		kept = append(kept, b)
	}
	return kept
}

func textBlock(text string) json.RawMessage {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(text) // a string always encodes
	return json.RawMessage(`{"type":"text","text":` + strings.TrimSuffix(b.String(), "\n") + `}`)
}

// renderSystem joins what the project and the conversation say into one system prompt.
func renderSystem(instructions, system string) string {
	parts := make([]string, 0, 2)
	for _, p := range []string{instructions, system} {
		if p = strings.TrimSpace(p); p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, "\n\n")
}

func hashOf(text string) string {
	if text == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// estimate is what a message weighs in tokens, without asking anybody.
func (e *Engine) estimate(text string, blocks json.RawMessage) int64 {
	var list []json.RawMessage
	if len(blocks) == 0 || e.Weigh == nil || json.Unmarshal(blocks, &list) != nil {
		return estimate(text)
	}
	return int64(e.Weigh(list)) + 4
}

// estimate guesses the tokens of text: a third of one for a byte of Latin text, one for a character of another script,
// and a few for the message around it. It errs on the high side, for it guards a limit.
func estimate(text string) int64 {
	narrow, wide := 0, 0
	for _, r := range text {
		if r < utf8.RuneSelf {
			narrow++
		} else {
			wide++
		}
	}
	return int64(narrow/3+wide) + 4
}
