package storetest

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Script does the same several hundred things to any store, among them many that must fail, and returns what came of
// each as text. Two engines that differ anywhere tell it here.
func Script(t testing.TB, s Stores) []string {
	t.Helper()
	p := &player{TB: t, Stores: s, dice: rand.New(rand.NewPCG(2026, 7)), home: map[ident.MessageID]ident.ConversationID{}}
	p.conversations = append(p.conversations, "conv_nowhere")
	p.messages = append(p.messages, "")
	for p.step = range 400 {
		p.play()
	}
	events, err := s.Events.Since(t.Context(), 0, 1000)
	for _, e := range events {
		e.ID = ""
		p.note("event", e, err)
	}
	entries, _, err := s.Trail.Entries(t.Context(), audit.Filter{}, "", 1000)
	for _, e := range entries {
		e.ID, e.Place = "", ""
		p.note("entry", e, err)
	}
	return p.notes
}

// player throws dice for what to do next. Identifiers are counted, not random.
type player struct {
	testing.TB
	Stores
	dice          *rand.Rand
	step          int
	conversations []ident.ConversationID
	messages      []ident.MessageID
	home          map[ident.MessageID]ident.ConversationID
	turns         []conversation.Turn
	notes         []string
}

func (p *player) note(what string, result any, err error) {
	p.notes = append(p.notes, fmt.Sprintf("%d %s %s %s", p.step, what, show(result), codeOf(err)))
}

func codeOf(err error) string {
	if err == nil {
		return ""
	}
	return fault.CodeOf(err)
}

func pick[T any](d *rand.Rand, list []T) T { return list[d.IntN(len(list))] }

var phrases = []string{"", "Straße", "🧵 thread", "a\x00b", "\xff", "Ärger\n", "x' OR 1=1", "שלום"}

func (p *player) play() {
	conv, msg, phrase := pick(p.dice, p.conversations), pick(p.dice, p.messages), pick(p.dice, phrases)
	if id, ok := p.home[msg]; ok && p.dice.IntN(4) > 0 {
		conv = id
	}
	switch p.dice.IntN(9) {
	case 0:
		c := plainConversation(phrase, p.dice.IntN(5))
		c.ID = ident.ConversationID(fmt.Sprint("conv_", p.step/2)) // now and then one that is there already
		c.Tags, c.ImportanceLevel = []string{phrase}, 1+p.dice.IntN(3)
		err := p.Talk.InsertConversation(p.Context(), c, p.change("conversation.created"))
		p.note("insert", c, err)
		if err == nil {
			p.conversations = append(p.conversations, c.ID)
		}
	case 1, 2, 3:
		p.append(conv, msg, phrase)
	case 4:
		q := conversation.Query{Limit: 1 + p.dice.IntN(9), Ascending: p.dice.IntN(2) == 0,
			Sort: pick(p.dice, []conversation.Sort{"", conversation.ByTitle, conversation.ByLast, conversation.ByCreated,
				conversation.ByImportance})}
		if p.dice.IntN(3) == 0 {
			q.Title = phrase
		}
		for range 5 {
			list, next, err := p.Talk.ListConversations(p.Context(), q)
			p.note("list", list, err)
			if q.Cursor = next; next == "" {
				break
			}
		}
	case 5:
		q := conversation.MessageQuery{Limit: 1 + p.dice.IntN(4), Ascending: p.dice.IntN(2) == 0, All: p.dice.IntN(3) == 0}
		if !q.All && p.dice.IntN(2) == 0 {
			q.Leaf = msg
		}
		for range 5 {
			list, next, err := p.Talk.ListMessages(p.Context(), conv, q)
			p.note("messages", list, err)
			if q.Cursor = next; next == "" {
				break
			}
		}
	case 6:
		list, err := p.Talk.Path(p.Context(), conv, msg, p.dice.IntN(6), p.dice.Int64N(6))
		p.note("path", list, err)
	case 7:
		p.turn(phrase)
	case 8:
		c, err := p.Talk.UpdateConversation(p.Context(), conv,
			func(c conversation.Conversation) (conversation.Conversation, event.Change, error) {
				c.Title, c.Version, c.UpdatedAt = phrase, c.Version+1, at(p.step)
				return c, p.change("conversation.updated"), nil
			})
		p.note("update", c, err)
	}
}

// change is about the step, and carries one of a few idempotency keys now and then.
func (p *player) change(kind string) event.Change {
	c := happens(p.step, kind, fmt.Sprint("step ", p.step))
	if p.dice.IntN(4) == 0 {
		c = once(c, fmt.Sprint(p.dice.IntN(20)), "r")
	}
	return c
}

func (p *player) append(conv ident.ConversationID, parent ident.MessageID, phrase string) {
	m := plainMessage(phrase)
	m.ID = ident.MessageID(fmt.Sprint("msg_", p.step))
	e := conversation.Entry{Messages: []conversation.Message{m}}
	if p.dice.IntN(2) == 0 {
		answer := plainMessage("")
		answer.ID, answer.Role, answer.State = m.ID+"a", conversation.Assistant, conversation.Streaming
		turn := conversation.Turn{ID: ident.TurnID(fmt.Sprint("turn_", p.step)), Conversation: conv, UserMessage: m.ID,
			AssistantMessage: answer.ID, State: conversation.Streaming, Node: "n", Lease: at(p.step), StartedAt: at(p.step)}
		answer.Turn = turn.ID
		e.Messages, e.Turn = append(e.Messages, answer), &turn
	}
	w := conversation.Where{Root: p.dice.IntN(10) == 0}
	if p.dice.IntN(2) == 0 {
		w.Parent = parent
	}
	c, got, err := p.Talk.Append(p.Context(), conv, w,
		func(s conversation.Spot) (conversation.Entry, event.Change, error) {
			p.note("spot", s, nil)
			return e, p.change("message.appended"), nil
		})
	p.note("append", []any{c, got}, err)
	if err == nil {
		for _, m := range got.Messages {
			p.messages, p.home[m.ID] = append(p.messages, m.ID), conv
		}
		if e.Turn != nil {
			p.turns = append(p.turns, *e.Turn)
		}
	}
}

func (p *player) turn(phrase string) {
	if len(p.turns) == 0 {
		return
	}
	turn := pick(p.dice, p.turns)
	held, err := p.Talk.FlushTurn(p.Context(), turn, p.dice.IntN(2)*len(phrase), says(phrase), at(p.step))
	p.note("flush", held, err)
	if p.dice.IntN(3) == 0 {
		e, err := p.Talk.EndTurn(p.Context(), turn.ID,
			func(t conversation.Turn, m conversation.Message) (conversation.Ending, event.Change, error) {
				t.State, m.State, m.ErrorDetail = conversation.Failed, conversation.Failed, phrase
				return conversation.Ending{Turn: t, Message: m}, p.change("turn.failed"), nil
			})
		p.note("end", e, err)
	}
	list, err := p.Talk.RunningTurns(p.Context(), 5)
	p.note("running", list, err)
}
