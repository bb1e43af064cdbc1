package sqlstore

import (
	"context"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/tenant"
)

// What a tenant keeps is counted in one row, by whoever changes it and in the same transaction: nobody adds it up, however
// much there is. The row's lock comes last but one, before that of the log's head.

const (
	// ofMessages adds up messages; a message counts its text when nothing is added to it any more.
	ofMessages = `SELECT count(*), CAST(coalesce(sum(CASE WHEN state IN ('streaming', 'waiting') THEN 0
		ELSE octet_length(content) + coalesce(octet_length(blocks), 0) END), 0) AS BIGINT) FROM messages`
	ofConversations = `SELECT CAST(coalesce(sum(octet_length(title) + octet_length(description) + octet_length(system) +
		octet_length(settings) + octet_length(tags)), 0) AS BIGINT) FROM conversations`
)

// readUsage queues the reading of the row into u.
func readUsage(b *Batch, u *tenant.Usage) {
	b.One([]any{&u.Messages, &u.Bytes}, `SELECT messages, bytes FROM usage WHERE one = 1`)
}

// addUsage queues the counting of what the transaction adds or, below zero, removes. It belongs right before appendChange.
func addUsage(b *Batch, messages int, bytes int) {
	if messages != 0 || bytes != 0 {
		b.Exec(`UPDATE usage SET messages = messages + ?, bytes = bytes + ? WHERE one = 1`, messages, bytes)
	}
}

// count is addUsage for what people do: what they add must have room. The row itself decides, under its lock and after
// whoever came first, so that two at once cannot both take the last place; and it decides in the batch that commits, so
// that nobody asks before. A column that may not be NULL undoes the transaction.
func (s *TenantStore) count(b *Batch, ch event.Change, messages, bytes int) {
	var l tenant.Limits
	if s.limits != nil && !ch.Actor.System {
		l = s.limits()
	}
	if messages <= 0 {
		l.Messages = 0
		if bytes <= 0 {
			l.Bytes = 0
		}
	}
	if l.Messages <= 0 && l.Bytes <= 0 {
		addUsage(b, messages, bytes)
		return
	}
	// Who adds a message without text asks for an answer, which needs room too.
	b.Exec(`UPDATE usage SET
		messages = CASE WHEN ?3 > 0 AND messages + ?1 > ?3 THEN NULL ELSE messages + ?1 END,
		bytes = CASE WHEN ?4 > 0 AND bytes + ?5 > ?4 THEN NULL ELSE bytes + ?2 END WHERE one = 1`,
		messages, bytes, l.Messages, l.Bytes, max(bytes, 1))
}

// full says which limit was in the way of a change, and how much is kept.
func (s *TenantStore) full(ctx context.Context, err error) error {
	messages, bytes := violates(err, "usage_messages_not_null"), violates(err, "usage_bytes_not_null")
	if !messages && !bytes {
		return err
	}
	if s.only != "" { // how much the owner keeps is not a guest's business
		code, of := "quota_storage", "text"
		if messages {
			code, of = "quota_messages", "messages"
		}
		return fault.New(fault.Forbidden, "sqlstore.Change", code, "the owner of this project has no room for more "+of)
	}
	used, uerr := s.Used(ctx)
	switch {
	case uerr != nil:
		return uerr
	case messages:
		return s.limits().NoMessages("sqlstore.Change", used)
	}
	return s.limits().NoBytes("sqlstore.Change", used)
}

// Used is how much the tenant keeps. One round trip, however much it is.
func (s *TenantStore) Used(ctx context.Context) (tenant.Usage, error) {
	var u tenant.Usage
	err := s.db.Read(ctx, func(b *Batch) { readUsage(b, &u) })
	return u, err
}

// bytesOfMessage is what a message counts.
func bytesOfMessage(m conversation.Message) int {
	if !m.State.Final() {
		return 0
	}
	return len(m.Content) + len(m.Blocks)
}

// bytesOfConversation is what a conversation counts without its messages; tags as they are stored.
func bytesOfConversation(c conversation.Conversation, tags string) int {
	return len(c.Title) + len(c.Description) + len(c.System) + len(object(c.Settings)) + len(tags)
}

// bytesOfProject is what a project counts without its conversations; tags as they are stored.
func bytesOfProject(p project.Project, tags string) int {
	return len(p.Name) + len(p.Description) + len(p.Instructions) + len(object(p.Settings)) + len(tags)
}

// insertSystem queues a system prompt, and its counting if it is a new one. It belongs beside addUsage.
func insertSystem(b *Batch, hash, body string, at int64) {
	const insert = `INSERT INTO systems (hash, body, created_at) VALUES (?, ?, ?) ON CONFLICT (hash) DO NOTHING`
	if b.Dialect() == Postgres {
		b.Exec(`WITH added AS (`+insert+` RETURNING octet_length(body) AS n)
			UPDATE usage SET bytes = bytes + n FROM added WHERE one = 1`, hash, body, at)
		return
	}
	b.Exec(insert, hash, body, at)
	b.Exec(`UPDATE usage SET bytes = bytes + ? * changes() WHERE one = 1`, len(body))
}
