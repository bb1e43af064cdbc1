package conversation

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Limits of one message.
const (
	maxText   = 1 << 20 // characters of text
	maxBlocks = 200
	maxTokens = 1_000_000
)

// onceTurn is what an idempotency record of a send holds: a repeat answers with what has become of it.
type onceTurn struct {
	User      ident.MessageID
	Assistant ident.MessageID
	Turn      ident.TurnID
}

// Send stores a message and, with in.Reply, starts a turn. It returns when both are committed; the answer is written
// on the server's account and can be followed with Follow or Await. A repeat of in.Once answers with the first
// exchange as it now stands.
func (s *Service) Send(ctx context.Context, actor ident.Actor, id ident.ConversationID, in SendInput) (Exchange, error) {
	const op = "conversation.Send"
	if err := s.pass.Allow(op, actor, access.TakePart); err != nil {
		return Exchange{}, err
	}
	text, blocks, err := s.checkContent(op, in)
	if err != nil {
		return Exchange{}, err
	}
	now := s.moment()
	user := Message{ID: ident.New[ident.MessageID](), Conversation: id, Role: User, Content: text, Blocks: blocks,
		State: Completed, Author: who(actor), Tokens: s.engine.estimate(text, blocks), CreatedAt: now, UpdatedAt: now}
	if !in.Reply {
		return s.append(ctx, op, actor, id, in.Where, in.Once, func(sp Spot) (Entry, event.Change, error) {
			ch := event.NewChange(actor, now)
			ch.Add("message.created", string(user.ID), created(user, sp))
			return Entry{Messages: []Message{user}}, ch, nil
		}, onceTurn{User: user.ID}, nil)
	}
	if err := s.engine.ready(op); err != nil {
		return s.replayOr(ctx, op, id, in.Once, err)
	}
	t := s.newTurn(id, KindSend, user.ID, in.MaxTokens)
	user.Turn = t.ID
	job := &job{service: s.base, id: id, want: AgainInput{Provider: in.Provider, Model: in.Model, MaxTokens: in.MaxTokens}}
	return s.append(ctx, op, actor, id, in.Where, in.Once, func(sp Spot) (Entry, event.Change, error) {
		system, err := job.prepare(op, sp, &t)
		if err != nil {
			return Entry{}, event.Change{}, err
		}
		stub := s.stub(t)
		ch := event.NewChange(actor, now)
		ch.Add("message.created", string(user.ID), created(user, sp))
		ch.Add("turn.started", string(t.ID), started(t, sp))
		return Entry{Messages: []Message{user, stub}, Turn: &t, System: system}, ch, nil
	}, onceTurn{User: user.ID, Assistant: t.AssistantMessage, Turn: t.ID}, job)
}

// Retry asks for another answer to a turn's user message. The new answer is a sibling of the old one and becomes the
// active branch.
func (s *Service) Retry(ctx context.Context, actor ident.Actor, id ident.ConversationID, turn ident.TurnID, in AgainInput) (Exchange, error) {
	return s.again(ctx, "conversation.Retry", KindRetry, actor, id, turn, in)
}

// Continue goes on where an unfinished answer ended. The result is a new version, a sibling, that begins with what
// had arrived; the unfinished one is kept.
func (s *Service) Continue(ctx context.Context, actor ident.Actor, id ident.ConversationID, turn ident.TurnID, in AgainInput) (Exchange, error) {
	return s.again(ctx, "conversation.Continue", KindContinue, actor, id, turn, in)
}

func (s *Service) again(ctx context.Context, op string, kind Kind, actor ident.Actor, id ident.ConversationID,
	turn ident.TurnID, in AgainInput,
) (Exchange, error) {
	if err := s.pass.Allow(op, actor, access.TakePart); err != nil {
		return Exchange{}, err
	}
	var c fault.Checks
	s.engine.checkModel(&c, in.Provider, in.Model)
	checkMaxTokens(&c, in.MaxTokens)
	if err := c.Err(op); err != nil {
		return Exchange{}, err
	}
	first, user, assistant, before, err := s.store.FindTurnOnce(ctx, id, turn, in.Once)
	if err != nil {
		return Exchange{}, fault.Wrap(op, err)
	}
	if before != nil {
		x, _, err := s.replay(ctx, id, in.Once, before)
		return x, fault.Wrap(op, err)
	}
	was, err := s.settled(ctx, id, first, user, assistant)
	if err != nil {
		return Exchange{}, fault.Wrap(op, err)
	}
	if !was.Turn.State.Final() {
		return s.replayOr(ctx, op, id, in.Once, fault.New(fault.Conflict, op, "turn_running", "the turn is still running: stop it or wait for its end").
			RetryAfter(2*time.Second))
	}
	if kind == KindContinue && !unfinished(*was.Assistant) {
		return Exchange{}, fault.New(fault.Conflict, op, "turn_finished", "the answer is complete; there is nothing to continue")
	}
	if err := s.engine.ready(op); err != nil {
		return s.replayOr(ctx, op, id, in.Once, err)
	}
	now := s.moment()
	t := s.newTurn(id, kind, was.User.ID, in.MaxTokens)
	job := &job{service: s.base, id: id, want: in, asked: was.User}
	if kind == KindContinue {
		job.prefix = was.Assistant.Content
	}
	return s.append(ctx, op, actor, id, Where{Parent: was.User.ID}, in.Once, func(sp Spot) (Entry, event.Change, error) {
		system, err := job.prepare(op, sp, &t)
		if err != nil {
			return Entry{}, event.Change{}, err
		}
		stub := s.stub(t)
		stub.Content = job.prefix
		ch := event.NewChange(actor, now)
		ch.Add("turn.started", string(t.ID), started(t, sp))
		return Entry{Messages: []Message{stub}, Turn: &t, System: system}, ch, nil
	}, onceTurn{User: was.User.ID, Assistant: t.AssistantMessage, Turn: t.ID}, job)
}

// append commits an entry and starts its job, if there is one.
func (s *Service) append(ctx context.Context, op string, actor ident.Actor, id ident.ConversationID, w Where, once *event.Once,
	fill func(Spot) (Entry, event.Change, error), result onceTurn, j *job,
) (Exchange, error) {
	if err := once.Keep(s.sealer, result); err != nil {
		return Exchange{}, err
	}
	if j != nil {
		// The engine knows the turn before the database does: nobody may take it for orphaned in between.
		if err := s.engine.register(result.Turn, j); err != nil {
			return Exchange{}, err
		}
		if err := s.tenant.Hint(ctx, s.engine.lease()); err != nil {
			s.engine.forget(result.Turn)
			return Exchange{}, fault.Wrap(op, err)
		}
	}
	var before *event.Once
	w.Once = once
	conv, entry, err := s.commit(ctx, id, w, j, func(sp Spot) (Entry, event.Change, error) {
		if before = sp.Was; before != nil {
			return Entry{}, event.Change{}, fault.New(fault.Conflict, op, event.CodeRepeated, "this was done already")
		}
		e, ch, err := fill(sp)
		ch.Once = once
		return e, ch, err
	})
	if err != nil {
		if j != nil {
			s.engine.forget(result.Turn)
		}
		if event.Repeated(err) {
			x, ok, err := s.replay(ctx, id, once, before)
			if err == nil && !ok {
				err = fault.New(fault.Conflict, op, "idempotency_in_progress", "the first request with this key has only just expired: repeat it")
			}
			return x, fault.Wrap(op, err)
		}
		if fault.Is(err, fault.Forbidden) { // there was room for the first of two
			return s.replayOr(ctx, op, id, once, fault.Wrap(op, err))
		}
		return Exchange{}, fault.Wrap(op, err)
	}
	x := Exchange{}
	for i, m := range entry.Messages {
		if m.Role == Assistant {
			x.Assistant = &entry.Messages[i]
		} else {
			x.User = m
		}
	}
	x.Turn = entry.Turn
	if j == nil {
		s.engine.title(s.base, conv, x.User)
		return x, nil
	}
	if x.User.ID == "" {
		x.User = j.asked // messages do not change: what was read before the commit is what it is
	}
	s.engine.start(j, actor, conv, x)
	return x, nil
}

// replayOr answers a repeat of an earlier call with that one's result, whatever stands in the way of a new one; who
// repeats nothing is refused.
func (s *Service) replayOr(ctx context.Context, op string, id ident.ConversationID, once *event.Once, refusal error) (Exchange, error) {
	if once != nil {
		if x, ok, err := s.replay(ctx, id, once, nil); ok || err != nil {
			return x, fault.Wrap(op, err)
		}
	}
	return Exchange{}, refusal
}

// replay answers a repeated send with what has become of the first one. before is its record, where that was read already.
// ok is false when there was no first one.
func (s *Service) replay(ctx context.Context, id ident.ConversationID, once, before *event.Once) (x Exchange, ok bool, err error) {
	var was onceTurn
	if before != nil {
		err = once.Open(*before, s.sealer, &was)
	} else {
		err = once.Replay(ctx, s.store, s.sealer, &was)
	}
	switch {
	case before == nil && fault.Is(err, fault.NotFound):
		return Exchange{}, false, nil
	case err != nil:
		return Exchange{}, false, err
	}
	if was.Turn != "" {
		x, err = s.exchange(ctx, id, was.Turn)
	} else {
		x.User, err = s.store.FindMessage(ctx, id, was.User)
	}
	return x, true, err
}

// checkContent validates a message and returns its text with the blocks to keep: none when one text block says it all.
func (s *Service) checkContent(op string, in SendInput) (text string, blocks json.RawMessage, err error) {
	var c fault.Checks
	s.engine.checkModel(&c, in.Provider, in.Model)
	checkMaxTokens(&c, in.MaxTokens)
	text = in.Text
	if len(in.Blocks) > 0 {
		if text, err = textOf(in.Blocks, &c); err != nil {
			return "", nil, err
		}
		blocks = in.Blocks
		c.Text("body.content", text, 0, maxText)
	} else {
		if strings.TrimSpace(text) == "" {
			c.Add("body.content", "must not be empty")
		}
		c.Text("body.content", text, 1, maxText)
	}
	return text, blocks, c.Err(op)
}

func checkMaxTokens(c *fault.Checks, n int) {
	if n < 0 || n > maxTokens {
		c.Add("body.max_tokens", fmt.Sprintf("must be from 1 to %d", maxTokens))
	}
}

// textOf joins the text blocks of content and checks the shape of all: objects with a type, text not empty.
func textOf(content json.RawMessage, c *fault.Checks) (string, error) {
	var blocks []json.RawMessage
	if err := json.Unmarshal(content, &blocks); err != nil {
		c.Add("body.content", "must be a string or an array of content blocks")
		return "", nil
	}
	if len(blocks) == 0 || len(blocks) > maxBlocks {
		c.Add("body.content", fmt.Sprintf("must have from 1 to %d blocks", maxBlocks))
		return "", nil
	}
	if !utf8.Valid(content) || bytes.ContainsRune(content, 0) {
		c.Add("body.content", "must be valid UTF-8 without NUL characters")
	}
	var b strings.Builder
	for i, raw := range blocks {
		var head struct {
			Type string  `json:"type"`
			Text *string `json:"text"`
		}
		if err := json.Unmarshal(raw, &head); err != nil || head.Type == "" {
			c.Add(fmt.Sprintf("body.content[%d]", i), "must be an object with a type")
			continue
		}
		switch head.Type {
		case "text":
			if head.Text == nil || strings.TrimSpace(*head.Text) == "" {
				c.Add(fmt.Sprintf("body.content[%d].text", i), "must not be empty")
				continue
			}
			b.WriteString(*head.Text)
		case "thinking", "redacted_thinking", "tool_use":
			c.Add(fmt.Sprintf("body.content[%d].type", i), "is something that only an assistant says")
		}
	}
	return b.String(), nil
}

// unfinished reports whether an answer can be gone on with.
func unfinished(m Message) bool {
	switch m.State {
	case Interrupted, Stopped, Failed:
		return true
	}
	return m.StopReason == "max_tokens" || m.StopReason == "pause_turn" || m.StopReason == "model_context_window_exceeded"
}

func (s *Service) newTurn(id ident.ConversationID, k Kind, user ident.MessageID, maxTokens int) Turn {
	now := s.moment()
	return Turn{ID: ident.New[ident.TurnID](), Conversation: id, UserMessage: user,
		AssistantMessage: ident.New[ident.MessageID](), Kind: k, State: Streaming, MaxTokens: maxTokens,
		Node: s.engine.node, Lease: s.engine.lease(), StartedAt: now}
}

// stub is the assistant's message before anything was said.
func (s *Service) stub(t Turn) Message {
	return Message{ID: t.AssistantMessage, Conversation: t.Conversation, Turn: t.ID, Role: Assistant, State: Streaming,
		Author: event.Who{Name: "Claude"}, Provider: t.Provider, Model: t.Model, CreatedAt: t.StartedAt,
		UpdatedAt: t.StartedAt, Node: t.Node, Lease: t.Lease}
}

func created(m Message, at Spot) map[string]any {
	return map[string]any{"conversation_id": m.Conversation, "project_id": nullable(string(at.Conversation.ProjectID)),
		"message_id": m.ID, "role": m.Role}
}

func started(t Turn, at Spot) map[string]any {
	return map[string]any{"conversation_id": t.Conversation, "project_id": nullable(string(at.Conversation.ProjectID)), "turn_id": t.ID, "kind": t.Kind, "user_message_id": t.UserMessage,
		"assistant_message_id": t.AssistantMessage, "provider": t.Provider, "model": t.Model}
}
