package sqlstore

import (
	"context"
	"reflect"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

const turnColumns = `id, conversation_id, user_message_id, assistant_message_id, kind, state, provider, model, max_tokens,
	system_hash, omitted, error_code, error_detail, node, lease_until, started_at, finished_at`

// turnRead is what collectTurns reads.
const turnRead = turnColumns + `, (SELECT project_id FROM conversations c WHERE c.id = turns.conversation_id)`

func collectTurns(list *[]conversation.Turn) func(Scanner) error {
	*list = nil
	return func(s Scanner) error {
		var t conversation.Turn
		var lease, started int64
		var finished *int64
		var project *ident.ProjectID
		err := s.Scan(&t.ID, &t.Conversation, &t.UserMessage, &t.AssistantMessage, &t.Kind, &t.State, &t.Provider, &t.Model,
			&t.MaxTokens, &t.SystemHash, &t.Omitted, &t.ErrorCode, &t.ErrorDetail, &t.Node, &lease, &started, &finished, &project)
		if project != nil {
			t.Project = *project
		}
		t.Lease, t.StartedAt, t.FinishedAt = ident.Time(lease), ident.Time(started), timeOf(finished)
		*list = append(*list, t)
		return err
	}
}

// insertTurn queues a turn.
func insertTurn(b *Batch, t conversation.Turn) {
	b.Exec(`INSERT INTO turns (`+turnColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		t.ID, t.Conversation, t.UserMessage, t.AssistantMessage, t.Kind, t.State, t.Provider, t.Model, t.MaxTokens,
		t.SystemHash, t.Omitted, t.ErrorCode, t.ErrorDetail, t.Node, ident.Micros(t.Lease), ident.Micros(t.StartedAt),
		moment(t.FinishedAt))
}

// FindTurn implements conversation.Store.
func (s *TenantStore) FindTurn(ctx context.Context, id ident.ConversationID, t ident.TurnID) (
	conversation.Turn, conversation.Message, conversation.Message, error) {
	turn, user, assistant, _, err := s.FindTurnOnce(ctx, id, t, nil)
	return turn, user, assistant, err
}

// FindTurnOnce implements conversation.Store.
func (s *TenantStore) FindTurnOnce(ctx context.Context, id ident.ConversationID, t ident.TurnID, once *event.Once) (
	conversation.Turn, conversation.Message, conversation.Message, *event.Once, error) {
	was := func() *event.Once { return nil }
	var turns []conversation.Turn
	var users, assistants []conversation.Message
	var seen func() bool
	const message = `SELECT ` + messageColumns + ` FROM messages m WHERE m.id = `
	err := s.db.Read(ctx, func(b *Batch) {
		seen = s.lookFor(b, id)
		b.Query(collectTurns(&turns), `SELECT `+turnRead+` FROM turns WHERE id = ? AND conversation_id = ?`, t, id)
		b.Query(collect(&users), message+`(SELECT user_message_id FROM turns WHERE id = ?)`, t)
		b.Query(collect(&assistants), message+`(SELECT assistant_message_id FROM turns WHERE id = ?)`, t)
		if once != nil {
			was = lookForOnce(b, once.Scope, once.Key, time.Now())
		}
	})
	if err == nil && (len(turns) == 0 || len(users) == 0 || len(assistants) == 0 || !seen()) {
		err = fault.Missing("sqlstore.FindTurn")
	}
	if err != nil {
		return conversation.Turn{}, conversation.Message{}, conversation.Message{}, nil, err
	}
	return turns[0], users[0], assistants[0], was(), nil
}

// FlushTurn implements conversation.Store.
func (s *TenantStore) FlushTurn(ctx context.Context, t conversation.Turn, at int, text func() string, lease time.Time) (bool, error) {
	var renewed, grown *Affected
	err := s.db.Write(ctx, func(tx *Tx) error {
		if err := tx.Begin(); err != nil {
			return err
		}
		piece := text()
		return tx.Commit(func(b *Batch) {
			// The turn is locked before anything is looked at: each statement sees what is committed when it begins, so
			// behind the lock both see the same turn and message, and both match or neither.
			if lock := tx.Dialect().ForUpdate(); lock != "" {
				b.Query(func(Scanner) error { return nil }, `SELECT 1 FROM turns WHERE id = ?`+lock, t.ID)
			}
			renewed = b.Exec(`UPDATE turns SET lease_until = ? WHERE id = ? AND node = ? AND state IN ('streaming', 'waiting')
				AND EXISTS (SELECT 1 FROM messages m WHERE m.id = turns.assistant_message_id AND m.state = 'streaming'
				AND m.content_length = ?)`, ident.Micros(lease), t.ID, t.Node, at)
			grown = b.Exec(`UPDATE messages SET content = content || ?, content_length = content_length + ?
				WHERE id = (SELECT assistant_message_id FROM turns t WHERE t.id = ? AND t.node = ?
				AND t.state IN ('streaming', 'waiting')) AND state = 'streaming' AND content_length = ?`,
				piece, units(piece), t.ID, t.Node, at)
		})
	})
	return err == nil && renewed.N == 1 && grown.N == 1, err
}

// EndTurn implements conversation.Store.
func (s *TenantStore) EndTurn(ctx context.Context, id ident.TurnID,
	end func(conversation.Turn, conversation.Message) (conversation.Ending, event.Change, error)) (conversation.Ending, error) {
	var after conversation.Ending
	err := s.change(ctx, func(tx *Tx, head *event.Seq) error {
		before, err := lockTurn(tx, id)
		if err != nil {
			return err
		}
		e, ch, err := end(before.Turn, before.Message)
		if err != nil {
			return err
		}
		e.Message.TokensUpTo = before.Message.TokensUpTo - before.Message.Tokens + e.Message.Tokens
		after = e
		if len(ch.Events) == 0 && ch.Once == nil && reflect.DeepEqual(e, before) {
			return nil
		}
		return tx.Commit(func(b *Batch) {
			updateTurn(b, id, e.Turn)
			updateMessage(b, before.Message.ID, e.Message)
			if e.Message.State.Final() && (!before.Message.State.Final() || e.Message.Content != before.Message.Content) {
				indexMessage(b, tx.Dialect(), before.Message.ID, e.Message.Content)
			}
			at := ident.Micros(ch.At)
			b.Exec(`UPDATE conversations SET updated_at = CASE WHEN updated_at > ? THEN updated_at ELSE ? END,
				last_message_at = CASE WHEN last_message_at > ? THEN last_message_at ELSE ? END WHERE id = ?`, at, at, at, at,
				before.Turn.Conversation)
			addUsage(b, 0, bytesOfMessage(e.Message)-bytesOfMessage(before.Message))
			s.appendChange(b, ch, head)
		})
	})
	if err != nil {
		return conversation.Ending{}, err
	}
	return after, nil
}

// lockTurn reads a turn and its assistant's message under locks. The conversation is locked first, as by everybody
// who locks more than one of them.
func lockTurn(tx *Tx, id ident.TurnID) (conversation.Ending, error) {
	var turns []conversation.Turn
	var messages []conversation.Message
	lock := tx.Dialect().ForUpdate()
	if err := tx.Run(func(b *Batch) {
		if lock != "" {
			b.Query(func(Scanner) error { return nil }, `SELECT 1 FROM conversations
				WHERE id = (SELECT conversation_id FROM turns WHERE id = ?)`+lock, id)
		}
		b.Query(collectTurns(&turns), `SELECT `+turnRead+` FROM turns WHERE id = ?`+lock, id)
		b.Query(collect(&messages), `SELECT `+messageColumns+` FROM messages m
			WHERE m.id = (SELECT assistant_message_id FROM turns WHERE id = ?)`+lock, id)
	}); err != nil {
		return conversation.Ending{}, err
	}
	if len(turns) == 0 || len(messages) == 0 {
		return conversation.Ending{}, fault.Missing("sqlstore.EndTurn")
	}
	return conversation.Ending{Turn: turns[0], Message: messages[0]}, nil
}

// updateTurn queues what may change about a turn; what it was asked stays.
func updateTurn(b *Batch, id ident.TurnID, t conversation.Turn) {
	b.Exec(`UPDATE turns SET state = ?, error_code = ?, error_detail = ?, node = ?, lease_until = ?, omitted = ?,
		finished_at = ? WHERE id = ?`,
		t.State, t.ErrorCode, t.ErrorDetail, t.Node, ident.Micros(t.Lease), t.Omitted, moment(t.FinishedAt), id)
}

// updateMessage queues what may change about an assistant's message; its place stays.
func updateMessage(b *Batch, id ident.MessageID, m conversation.Message) {
	b.Exec(`UPDATE messages SET content = ?, content_length = ?, blocks = ?, state = ?, provider = ?, model = ?,
		stop_reason = ?, input_tokens = ?, output_tokens = ?, cache_read_input_tokens = ?, cache_creation_input_tokens = ?,
		raw_usage = ?, cost_microusd = ?, first_token_ms = ?, latency_ms = ?, error_code = ?, error_detail = ?, tokens = ?,
		tokens_up_to = ?, prefix_hash = ?, updated_at = ? WHERE id = ?`,
		m.Content, units(m.Content), m.Blocks, m.State, m.Provider, m.Model, m.StopReason, m.Usage.InputTokens,
		m.Usage.OutputTokens, m.Usage.CacheReadInputTokens, m.Usage.CacheCreationInputTokens, m.RawUsage, m.CostMicroUSD,
		m.FirstTokenMS, m.LatencyMS, m.ErrorCode, m.ErrorDetail, m.Tokens, m.TokensUpTo, m.PrefixHash,
		ident.Micros(m.UpdatedAt), id)
}

// RunningTurns implements conversation.Store. Whoever looks after a tenant asks this first, so that Watched costs no round
// trip of its own.
func (s *TenantStore) RunningTurns(ctx context.Context, limit int) ([]conversation.Turn, error) {
	var list []conversation.Turn
	read := func(webhooks bool) error {
		var some, running bool
		err := s.db.Read(ctx, func(b *Batch) {
			const run = `EXISTS (SELECT 1 FROM turns WHERE state IN ('streaming', 'waiting'))`
			if webhooks {
				b.One([]any{&running, &some}, `SELECT `+run+`, EXISTS (SELECT 1 FROM webhooks)`)
			} else {
				b.One([]any{&running}, `SELECT `+run)
			}
			b.Query(collectTurns(&list), `SELECT `+turnRead+` FROM turns WHERE state IN ('streaming', 'waiting')
				ORDER BY lease_until, started_at, id LIMIT ?`, limit)
			b.When(func() bool { return running })
		})
		s.watched.Store(some)
		return err
	}
	err := read(true)
	if fault.Is(err, fault.Internal) {
		err = read(false) // the schema of a version before has no such table
	}
	return list, err
}

// Watched reports whether there was something to do about webhooks when RunningTurns last looked.
func (s *TenantStore) Watched() bool { return s.watched.Load() }

// System implements conversation.Store.
func (s *TenantStore) System(ctx context.Context, hash string) (string, error) {
	var body string
	var found *Found
	err := s.db.Read(ctx, func(b *Batch) {
		found = b.One([]any{&body}, `SELECT body FROM systems WHERE hash = ?`, hash)
	})
	if err == nil && !found.Yes {
		err = fault.Missing("sqlstore.System")
	}
	return body, err
}
