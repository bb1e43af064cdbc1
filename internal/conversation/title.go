package conversation

import (
	"context"
	"encoding/json"
	"strings"
	"time"
	"unicode/utf8"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

const (
	titleLen     = 60 // characters of a title made from a message
	titleTimeout = 30 * time.Second
)

// title gives a conversation that has none a title, in the background. It is no activity: times and version stay.
func (e *Engine) title(s *Service, conv Conversation, first Message) {
	if conv.Title != "" || conv.TitleByHand || first.Content == "" {
		return
	}
	e.background(s, func(ctx context.Context) {
		title := e.makeTitle(ctx, conv, first)
		if title == "" {
			return
		}
		_, err := s.store.UpdateConversation(ctx, conv.ID, func(c Conversation) (Conversation, event.Change, error) {
			if c.Title != "" || c.TitleByHand {
				return c, event.Change{}, nil
			}
			c.Title = title
			ch := event.NewChange(ident.System(""), e.moment())
			ch.Add("conversation.titled", string(c.ID), map[string]any{"conversation_id": c.ID,
				"project_id": nullable(string(c.ProjectID))})
			return c, ch, nil
		})
		if err != nil && !fault.Is(err, fault.NotFound) {
			e.Log.Warn("title not stored", "code", fault.CodeOf(err))
		}
	})
}

// titleLater is title for a turn of which nobody has conversation and message at hand.
func (e *Engine) titleLater(s *Service, t Turn) {
	e.background(s, func(ctx context.Context) {
		conv, err := s.store.FindConversation(ctx, t.Conversation)
		if err != nil || conv.Title != "" || conv.TitleByHand {
			return
		}
		if first, err := s.store.FindMessage(ctx, t.Conversation, t.UserMessage); err == nil {
			e.title(s, conv, first)
		}
	})
}

// background does what nobody waits for, with the tenant kept open, unless the server is about to stop.
func (e *Engine) background(s *Service, work func(ctx context.Context)) {
	e.mu.Lock()
	if e.closing {
		e.mu.Unlock()
		return
	}
	e.wg.Add(1)
	e.mu.Unlock()
	release := s.tenant.Retain()
	go func() {
		defer e.wg.Done()
		defer release()
		ctx, cancel := context.WithTimeout(e.life, titleTimeout)
		defer cancel()
		work(ctx)
	}()
}

// makeTitle asks the title model, if there is one, and falls back to the message's first words.
func (e *Engine) makeTitle(ctx context.Context, conv Conversation, first Message) string {
	if e.TitleBy != nil {
		question := "Give a title of at most eight words to a conversation that begins with the message below. " +
			"Answer with the title alone.\n\n" + cut(first.Content, 4_000)
		a, err := e.TitleBy.Answer(ctx, Prompt{Conversation: string(conv.ID), MaxTokens: 64,
			Messages: []PromptMessage{{Role: string(User), Blocks: []json.RawMessage{textBlock(question)}}}}, func(string) {})
		if t := titleFrom(a.Text); err == nil && t != "" {
			return t
		}
	}
	return titleFrom(first.Content)
}

// titleFrom takes the first line that says something, without mark-up, cut between words.
func titleFrom(text string) string {
	for line := range strings.Lines(text) {
		line = strings.Join(strings.Fields(strings.Trim(strings.TrimSpace(line), "#>*_`\"'- ")), " ")
		if line == "" {
			continue
		}
		short := cut(line, titleLen)
		if short == line {
			return line
		}
		if i := strings.LastIndexByte(short, ' '); i > titleLen/2 {
			short = short[:i]
		}
		return strings.TrimRight(short, " ,;:.-") + "…"
	}
	return ""
}

// cut returns at most n characters of s.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	for i := range s {
		if n == 0 {
			return s[:i]
		}
		n--
	}
	return s
}
