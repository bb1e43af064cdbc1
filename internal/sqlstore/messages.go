package sqlstore

import (
	"context"
	"encoding/json"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// What is read of a message m, in two halves: the content can be large, so who does not need it does not read it. Who
// runs a turn is looked up for streaming messages only, row by row, so that no plan ever walks the turns.
const (
	messageContent = `m.content, m.blocks, `
	messageShell   = `'', NULL, `
	messageRest    = `m.n, m.id, m.conversation_id, m.parent_id, m.turn_id, m.branch, m.depth, m.role, m.state, m.author_id,
	m.author_name, m.provider, m.model, m.stop_reason, m.input_tokens, m.output_tokens, m.cache_read_input_tokens,
	m.cache_creation_input_tokens, m.raw_usage, m.cost_microusd, m.first_token_ms, m.latency_ms, m.error_code,
	m.error_detail, m.tokens, m.tokens_up_to, m.prefix_hash, m.created_at, m.updated_at,
	CASE WHEN m.state = 'streaming' THEN (SELECT t.node FROM turns t WHERE t.id = m.turn_id) END,
	CASE WHEN m.state = 'streaming' THEN (SELECT t.lease_until FROM turns t WHERE t.id = m.turn_id) END`
	messageColumns = messageContent + messageRest
)

func scanMessage(s Scanner) (m conversation.Message, n int64, err error) {
	var blocks, usage *string
	var created, updated int64
	var lease *int64
	err = s.Scan(&m.Content, &blocks, &n, &m.ID, &m.Conversation, &m.Parent, &m.Turn, &m.Branch, &m.Depth, &m.Role,
		&m.State, &m.Author.ID, &m.Author.Name, &m.Provider, &m.Model, &m.StopReason, &m.Usage.InputTokens,
		&m.Usage.OutputTokens, &m.Usage.CacheReadInputTokens, &m.Usage.CacheCreationInputTokens, &usage, &m.CostMicroUSD,
		&m.FirstTokenMS, &m.LatencyMS, &m.ErrorCode, &m.ErrorDetail, &m.Tokens, &m.TokensUpTo, &m.PrefixHash, &created,
		&updated, &m.Node, &lease)
	m.Blocks, m.RawUsage = rawOf(blocks), rawOf(usage)
	m.CreatedAt, m.UpdatedAt = ident.Time(created), ident.Time(updated)
	if lease != nil {
		m.Lease = ident.Time(*lease)
	}
	return m, n, err
}

func rawOf(text *string) json.RawMessage {
	if text == nil {
		return nil
	}
	return json.RawMessage(*text)
}

// collect appends scanned messages to list.
func collect(list *[]conversation.Message) func(Scanner) error {
	*list = nil
	return func(s Scanner) error {
		m, _, err := scanMessage(s)
		*list = append(*list, m)
		return err
	}
}

// insertMessage queues a message, and its words when nothing will be added to it any more.
func insertMessage(b *Batch, d Dialect, m conversation.Message) {
	b.Exec(`INSERT INTO messages (id, conversation_id, parent_id, turn_id, branch, depth, role, content, content_length,
		blocks, state, author_id, author_name, provider, model, stop_reason, input_tokens, output_tokens,
		cache_read_input_tokens, cache_creation_input_tokens, raw_usage, cost_microusd, first_token_ms, latency_ms,
		error_code, error_detail, tokens, tokens_up_to, prefix_hash, created_at, updated_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		m.ID, m.Conversation, m.Parent, m.Turn, m.Branch, m.Depth, m.Role, m.Content, units(m.Content), m.Blocks, m.State,
		m.Author.ID, m.Author.Name, m.Provider, m.Model, m.StopReason, m.Usage.InputTokens, m.Usage.OutputTokens,
		m.Usage.CacheReadInputTokens, m.Usage.CacheCreationInputTokens, m.RawUsage, m.CostMicroUSD, m.FirstTokenMS,
		m.LatencyMS, m.ErrorCode, m.ErrorDetail, m.Tokens, m.TokensUpTo, m.PrefixHash, ident.Micros(m.CreatedAt),
		ident.Micros(m.UpdatedAt))
	if m.State.Final() {
		indexMessage(b, d, m.ID, m.Content)
	}
}

// Append implements conversation.Store.
func (s *TenantStore) Append(ctx context.Context, id ident.ConversationID, w conversation.Where,
	fill func(conversation.Spot) (conversation.Entry, event.Change, error),
) (conversation.Conversation, conversation.Entry, error) {
	var after conversation.Conversation
	var entry conversation.Entry
	err := s.change(ctx, func(tx *Tx, head *event.Seq) error {
		f, err := s.findFork(tx, id, w)
		if err != nil {
			return err
		}
		var ch event.Change
		if entry, ch, err = fill(f.spot); err != nil {
			return err
		}
		if len(entry.Messages) == 0 {
			return fault.New(fault.Internal, "sqlstore.Append", "", "there is nothing to append")
		}
		entry.Messages = f.place(id, entry.Messages)
		at, last := ident.Micros(ch.At), entry.Messages[len(entry.Messages)-1]
		after = f.spot.Conversation
		after.Leaf, after.MessageCount = last.ID, after.MessageCount+int64(len(entry.Messages))
		after.UpdatedAt = ident.Time(at)
		after.LastMessageAt = timeOf(&at)
		return tx.Commit(func(b *Batch) {
			if f.opened {
				b.Exec(`INSERT INTO branches (conversation_id, branch, parent_branch, fork_depth) VALUES (?, ?, ?, ?)`,
					id, f.branch, f.parentBranch(), f.depth)
			}
			for _, m := range entry.Messages {
				insertMessage(b, tx.Dialect(), m)
			}
			if entry.Turn != nil {
				insertTurn(b, *entry.Turn)
			}
			b.Exec(`UPDATE conversations SET leaf_id = ?, message_count = ?, branch_count = ?, updated_at = ?,
				last_message_at = ? WHERE id = ?`, after.Leaf, after.MessageCount, f.branches, at, at, id)
			if entry.Turn != nil && entry.Turn.SystemHash != "" {
				insertSystem(b, entry.Turn.SystemHash, entry.System, at)
			}
			bytes := 0
			for _, m := range entry.Messages {
				bytes += bytesOfMessage(m)
			}
			s.count(b, ch, len(entry.Messages), bytes)
			s.appendChange(b, ch, head)
		})
	})
	if err != nil {
		return conversation.Conversation{}, conversation.Entry{}, err
	}
	return after, entry, nil
}

// fork is where new messages go: under the spot's parent, on its branch or on one of their own.
type fork struct {
	spot     conversation.Spot
	branch   int64 // the branch of what is appended
	depth    int64 // the parent's; 0 above the roots
	branches int64 // how many there are afterwards
	opened   bool  // the branch is a new one
}

// findFork locks the conversation and reads the spot, in one round trip.
func (s *TenantStore) findFork(tx *Tx, id ident.ConversationID, w conversation.Where) (fork, error) {
	const op = "sqlstore.Append"
	parent := w.Parent
	if w.Root {
		parent = ""
	}
	// The parent is the named message or the active leaf. Whether it has a child is a question about one place: the
	// first child is the one that stands below it on its own branch. The same holds for roots, which stand below 0.
	const under = `(CASE WHEN ?2 = 1 THEN '' WHEN ?3 <> '' THEN ?3 ELSE (SELECT leaf_id FROM conversations WHERE id = ?1) END)`
	var rows []conversationRow
	var spot conversation.Spot
	var parents []conversation.Message
	var taken *Found
	var settings *string
	was := func() *event.Once { return nil }
	if err := tx.Run(func(b *Batch) {
		selectConversation(b, &rows, id, tx.Dialect().ForUpdate())
		if w.Once != nil { // behind the lock: of two with one key at the same time the second finds the first
			was = lookForOnce(b, w.Once.Scope, w.Once.Key, time.Now())
		}
		b.One([]any{&spot.Instructions, &spot.ProjectProvider, &spot.ProjectModel, &settings},
			`SELECT instructions, provider, model, settings FROM projects
			WHERE id = (SELECT project_id FROM conversations WHERE id = ?)`, id)
		b.Query(collect(&parents), `SELECT `+messageShell+messageRest+` FROM messages m
			WHERE m.id = `+under+` AND m.conversation_id = ?1`, id, w.Root, parent)
		var one int64
		taken = b.One([]any{&one}, `SELECT 1 FROM messages m WHERE m.conversation_id = ?1
			AND m.branch = COALESCE((SELECT p.branch FROM messages p WHERE p.id = `+under+`), 0)
			AND m.depth = COALESCE((SELECT p.depth FROM messages p WHERE p.id = `+under+`), 0) + 1`, id, w.Root, parent)
	}); err != nil {
		return fork{}, err
	}
	if len(rows) == 0 || !s.sees(rows[0].ProjectID) || parent != "" && len(parents) == 0 {
		return fork{}, fault.Missing(op)
	}
	spot.Conversation, spot.ProjectSettings, spot.Was = rows[0].Conversation, rawOf(settings), was()
	f := fork{branches: rows[0].branches}
	if len(parents) > 0 {
		spot.Parent = &parents[0]
		f.branch, f.depth = parents[0].Branch, parents[0].Depth
	}
	f.spot = spot
	if taken.Yes {
		f.branch, f.opened = f.branches, true
		f.branches++
	}
	return f, nil
}

func (f *fork) parentBranch() int64 {
	if f.spot.Parent == nil {
		return 0
	}
	return f.spot.Parent.Branch
}

// place puts the messages below each other, beginning at the fork.
func (f *fork) place(id ident.ConversationID, list []conversation.Message) []conversation.Message {
	var parent conversation.Message // the zero message stands above the roots
	if f.spot.Parent != nil {
		parent = *f.spot.Parent
	}
	placed := make([]conversation.Message, len(list))
	for i, m := range list {
		m.Conversation, m.Parent = id, parent.ID
		m.Branch, m.Depth = f.branch, f.depth+int64(i)+1
		m.TokensUpTo = parent.TokensUpTo + m.Tokens
		placed[i], parent = m, m
	}
	return placed
}

// FindMessage implements conversation.Store.
func (s *TenantStore) FindMessage(ctx context.Context, id ident.ConversationID, m ident.MessageID) (conversation.Message, error) {
	var list []conversation.Message
	var seen func() bool
	err := s.db.Read(ctx, func(b *Batch) {
		seen = s.lookFor(b, id)
		b.Query(collect(&list), `SELECT `+messageColumns+` FROM messages m WHERE m.id = ? AND m.conversation_id = ?`, m, id)
	})
	if err == nil && (len(list) == 0 || !seen()) {
		err = fault.Missing("sqlstore.FindMessage")
	}
	if err != nil {
		return conversation.Message{}, err
	}
	return list[0], nil
}
