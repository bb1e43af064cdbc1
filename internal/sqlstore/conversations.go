package sqlstore

import (
	"context"
	"encoding/json"
	"reflect"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

const conversationColumns = `n, id, project_id, title, title_by_hand, description, status, importance_level, tags, system,
	provider, model, settings, creator_id, creator_name, message_count, leaf_id, branch_count, version, created_at,
	updated_at, last_message_at`

// conversationRow is a conversation with what only the store knows of it.
type conversationRow struct {
	conversation.Conversation
	n        int64
	branches int64 // the number the next branch gets; 0 is the trunk, which is always there
}

func (r *conversationRow) scan(s Scanner) (err error) {
	var tags, settings string
	var created, updated int64
	var last *int64
	if err = s.Scan(&r.n, &r.ID, &r.ProjectID, &r.Title, &r.TitleByHand, &r.Description, &r.Status, &r.ImportanceLevel,
		&tags, &r.System, &r.Provider, &r.Model, &settings, &r.Creator.ID, &r.Creator.Name, &r.MessageCount, &r.Leaf,
		&r.branches, &r.Version, &created, &updated, &last); err != nil {
		return err
	}
	r.Settings = json.RawMessage(settings)
	r.CreatedAt, r.UpdatedAt, r.LastMessageAt = ident.Time(created), ident.Time(updated), timeOf(last)
	r.Tags, err = decodeTags(tags)
	return err
}

// selectConversation queues the reading of one conversation into list, which stays empty when there is none.
func selectConversation(b *Batch, list *[]conversationRow, id ident.ConversationID, lock string) {
	*list = nil
	b.Query(func(s Scanner) error {
		var r conversationRow
		err := r.scan(s)
		*list = append(*list, r)
		return err
	}, `SELECT `+conversationColumns+` FROM conversations WHERE id = ?`+lock, id)
}

// noProject translates the violated reference of a conversation to its project, the only one that it has.
func noProject(err error) error {
	if fault.Is(err, fault.NotFound) {
		return fault.BadInput("sqlstore.Conversation", "body.project_id", "there is no such project").With(err)
	}
	return err
}

// InsertConversation implements conversation.Store.
func (s *TenantStore) InsertConversation(ctx context.Context, c conversation.Conversation, ch event.Change) error {
	tags, err := encodeTags(c.Tags)
	if err != nil {
		return err
	}
	if !s.sees(c.ProjectID) {
		return fault.Missing("sqlstore.InsertConversation")
	}
	return noProject(s.change(ctx, func(tx *Tx, head *event.Seq) error {
		return tx.Commit(func(b *Batch) {
			b.Exec(`INSERT INTO conversations (id, project_id, title, title_folded, title_by_hand, description, status,
				importance_level, tags, system, provider, model, settings, creator_id, creator_name, message_count, leaf_id,
				branch_count, version, created_at, updated_at, last_message_at)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, '', 1, ?, ?, ?, ?)`,
				c.ID, optional(c.ProjectID), c.Title, folded(c.Title), c.TitleByHand, c.Description, c.Status,
				c.ImportanceLevel, tags, c.System, c.Provider, c.Model, object(c.Settings), c.Creator.ID, c.Creator.Name,
				c.Version, ident.Micros(c.CreatedAt), ident.Micros(c.UpdatedAt), moment(c.LastMessageAt))
			indexTitle(b, tx.Dialect(), c.ID, c.Title)
			s.count(b, ch, 0, bytesOfConversation(c, tags))
			s.appendChange(b, ch, head)
		})
	}))
}

// FindConversation implements conversation.Store.
func (s *TenantStore) FindConversation(ctx context.Context, id ident.ConversationID) (conversation.Conversation, error) {
	var list []conversationRow
	err := s.db.Read(ctx, func(b *Batch) { selectConversation(b, &list, id, "") })
	if err == nil && (len(list) == 0 || !s.sees(list[0].ProjectID)) {
		err = fault.Missing("sqlstore.FindConversation")
	}
	if err != nil {
		return conversation.Conversation{}, err
	}
	return list[0].Conversation, nil
}

// UpdateConversation implements conversation.Store.
func (s *TenantStore) UpdateConversation(ctx context.Context, id ident.ConversationID,
	edit func(conversation.Conversation) (conversation.Conversation, event.Change, error),
) (conversation.Conversation, error) {
	var after conversation.Conversation
	err := s.change(ctx, func(tx *Tx, head *event.Seq) error {
		var list []conversationRow
		if err := tx.Run(func(b *Batch) { selectConversation(b, &list, id, tx.Dialect().ForUpdate()) }); err != nil {
			return err
		}
		if len(list) == 0 || !s.sees(list[0].ProjectID) {
			return fault.Missing("sqlstore.UpdateConversation")
		}
		before := list[0].Conversation
		c, ch, err := edit(before)
		if err != nil {
			return err
		}
		after = c
		if len(ch.Events) == 0 && ch.Once == nil && reflect.DeepEqual(c, before) {
			return nil
		}
		tags, err := encodeTags(c.Tags)
		if err != nil {
			return err
		}
		tagsBefore, err := encodeTags(before.Tags)
		if err != nil {
			return err
		}
		return noProject(tx.Commit(func(b *Batch) {
			b.Exec(`UPDATE conversations SET project_id = ?, title = ?, title_folded = ?, title_by_hand = ?,
				description = ?, status = ?, importance_level = ?, tags = ?, system = ?, provider = ?, model = ?,
				settings = ?, leaf_id = ?, version = ?, updated_at = ? WHERE id = ?`,
				optional(c.ProjectID), c.Title, folded(c.Title), c.TitleByHand, c.Description, c.Status,
				c.ImportanceLevel, tags, c.System, c.Provider, c.Model, object(c.Settings), c.Leaf, c.Version,
				ident.Micros(c.UpdatedAt), id)
			if c.Title != before.Title {
				indexTitle(b, tx.Dialect(), id, c.Title)
			}
			s.count(b, ch, 0, bytesOfConversation(c, tags)-bytesOfConversation(before, tagsBefore))
			s.appendChange(b, ch, head)
		}))
	})
	if err != nil {
		return conversation.Conversation{}, err
	}
	return after, nil
}

// DeleteConversation implements conversation.Store.
func (s *TenantStore) DeleteConversation(ctx context.Context, id ident.ConversationID,
	decide func(conversation.Conversation) (event.Change, error)) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		var list []conversationRow
		var messages, said, kept int
		if err := tx.Run(func(b *Batch) {
			selectConversation(b, &list, id, tx.Dialect().ForUpdate())
			lockRunning(b, tx.Dialect(), `?`, string(id))
			// With the conversation locked nobody adds to it.
			b.One([]any{&messages, &said}, ofMessages+` WHERE conversation_id = ?`, id)
			b.One([]any{&kept}, ofConversations+` WHERE id = ?`, id)
		}); err != nil {
			return err
		}
		if len(list) == 0 || !s.sees(list[0].ProjectID) {
			return fault.Missing("sqlstore.DeleteConversation")
		}
		ch, err := decide(list[0].Conversation)
		if err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) {
			unindexConversation(b, tx.Dialect(), id)
			b.Exec(`DELETE FROM conversations WHERE id = ?`, id)
			addUsage(b, -messages, -said-kept)
			s.appendChange(b, ch, head)
		})
	})
}

// lockRunning queues locks on the running turns of conversations that are about to be deleted. Without them the
// deletion would take a message first and its turn later, while whoever writes the answer takes them the other way
// round.
func lockRunning(b *Batch, d Dialect, conversations, id string) {
	if d != Postgres {
		return
	}
	b.Query(func(Scanner) error { return nil }, `SELECT 1 FROM turns WHERE conversation_id IN (`+conversations+`)
		AND state IN ('streaming', 'waiting') ORDER BY id`+d.ForUpdate(), id)
}
