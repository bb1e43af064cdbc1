package sqlstore

import (
	"context"
	"slices"
	"strings"
)

// explanation says what a table holds. Columns that mean the same everywhere are in commonColumns.
type explanation struct {
	table   string
	text    string
	columns []columnText
}

type columnText struct{ column, text string }

const ofSchema = `Everything one account of Claude Memory Backend wrote. Times are microseconds since 1970 in UTC, ` +
	`JSON is text, flags are 0 or 1. Identifiers are text; the number n is the order in which rows were made.`

var commonColumns = [...]columnText{
	{"n", "The order in which rows were made; never used twice."},
	{"id", "The identifier, as the programming interface shows it."},
	{"conversation_id", "The conversation (conversations.id)."},
	{"project_id", "The project (projects.id), or NULL."},
	{"turn_id", "The turn that made it (turns.id), or empty."},
	{"created_at", "When it was made, in microseconds since 1970 in UTC."},
	{"updated_at", "When it was last changed, in microseconds since 1970 in UTC."},
	{"version", "How often it was edited, beginning with 1."},
	{"description", "What somebody wrote about it."},
	{"status", "Where it stands, for example active or archived."},
	{"tags", "Tags: a JSON array of text."},
	{"settings", "Settings for the model: a JSON object."},
	{"provider", "Who answers, for example anthropic; empty for the default."},
	{"model", "The name of the model; empty for the default."},
	{"owner_id", "The account that owns it."},
	{"owner_name", "The name of that account at that time."},
	{"creator_id", "The account that made it."},
	{"creator_name", "The name of that account at that time."},
	{"author_id", "The account that wrote it; empty for answers."},
	{"author_name", "The name of that account at that time."},
	{"actor_id", "The account that did it."},
	{"actor_name", "The name of that account at that time."},
	{"error_code", "Why it failed, as a code; empty when it did not."},
	{"error_detail", "Why it failed, in words."},
	{"subject", "The identifier of what it is about, or empty."},
}

var explanations = [...]explanation{
	{"projects", "Projects, which hold conversations together.", []columnText{
		{"name", "The name."},
		{"name_folded", "The name in small letters, to search in."},
		{"instructions", "What the model is told in all conversations of the project."},
		{"priority", "low, medium, high or critical."},
		{"color", "A colour for display."},
		{"icon", "An icon for display."},
		{"deadline", "When it is due, in microseconds since 1970 in UTC, or NULL."},
	}},
	{"conversations", "Conversations. Their messages form a tree.", []columnText{
		{"title", "The title."},
		{"title_folded", "The title in small letters, to sort by and to search in."},
		{"title_by_hand", "1 when somebody chose the title, 0 when it was made of the first words."},
		{"importance_level", "How important it is, from 1 to 10."},
		{"system", "What the model is told in this conversation."},
		{"message_count", "How many messages there are, on all branches."},
		{"leaf_id", "The last message of the branch in use (messages.id)."},
		{"branch_count", "The number that the next branch gets."},
		{"last_message_at", "When the last message came, in microseconds since 1970 in UTC, or NULL."},
	}},
	{"branches", "Where a branch of a conversation leaves another one. Branch 0, the trunk, has no row.", []columnText{
		{"branch", "The number of the branch in its conversation."},
		{"parent_branch", "The branch that it leaves."},
		{"fork_depth", "How deep: up to there the messages are those of the other branch."},
	}},
	{"messages", "Messages. One path through the tree is read by following parent_id upwards from its last message.", []columnText{
		{"parent_id", "The message before it (messages.id); empty for the first."},
		{"branch", "The branch that it lies on (branches.branch)."},
		{"depth", "Its place on the path, beginning with 1."},
		{"role", "user, assistant or system."},
		{"content", "The text."},
		{"content_length", "The length of the text in UTF-16 code units."},
		{"blocks", "The answer in parts as the provider sent it: a JSON array, or NULL when it is text alone."},
		{"state", "completed, streaming, failed, stopped or interrupted."},
		{"stop_reason", "Why the model stopped."},
		{"input_tokens", "Tokens read, not counting the two kinds below."},
		{"output_tokens", "Tokens written."},
		{"cache_read_input_tokens", "Tokens read from the cache of the provider."},
		{"cache_creation_input_tokens", "Tokens put into the cache of the provider."},
		{"raw_usage", "The usage as the provider reported it: JSON, or NULL."},
		{"cost_microusd", "What it cost, in millionths of a US dollar."},
		{"first_token_ms", "Milliseconds until the first word."},
		{"latency_ms", "Milliseconds until the end."},
		{"tokens", "About how many tokens the message has."},
		{"tokens_up_to", "The sum of tokens on the path up to and with this message."},
		{"prefix_hash", "A hash of what the model was shown before it wrote this."},
	}},
	{"turns", "Turns: each asks the model once and ends with one answer.", []columnText{
		{"user_message_id", "The question (messages.id)."},
		{"assistant_message_id", "The answer (messages.id)."},
		{"kind", "send for a new question, retry, or continue."},
		{"state", "streaming, completed, failed, stopped or interrupted."},
		{"max_tokens", "The longest answer that was asked for, in tokens."},
		{"system_hash", "The system prompt that was sent (systems.hash); empty when there was none."},
		{"omitted", "How many earlier messages did not fit into the prompt."},
		{"node", "The server that ran it."},
		{"lease_until", "Until when that server said it would run it, in microseconds since 1970 in UTC."},
		{"started_at", "When it began, in microseconds since 1970 in UTC."},
		{"finished_at", "When it ended, in microseconds since 1970 in UTC, or NULL."},
	}},
	{"systems", "System prompts as they were sent, each text once.", []columnText{
		{"hash", "A hash of the text."},
		{"body", "The text."},
	}},
	{"log_head", "One row: where the log of events ends.", []columnText{
		{"one", "Always 1."},
		{"seq", "The number of the newest event."},
	}},
	{"events", "The log: what happened, in order. It holds identifiers and facts, no text of messages.", []columnText{
		{"seq", "The place in the log, without gaps."},
		{"type", "What happened, for example message.appended."},
		{"data", "The facts: a JSON object."},
	}},
	{"audit", "The trail: who did or tried what.", []columnText{
		{"at", "When, in microseconds since 1970 in UTC."},
		{"action", "What was done or tried."},
		{"outcome", "done or refused."},
		{"session_id", "The session in which it was done."},
		{"address", "The network address that the request came from."},
		{"request_id", "The identifier of the request."},
		{"detail", "More about it: JSON, or empty."},
	}},
	{"idempotency", "Requests that were answered lately, so that a repetition gets the same answer. Safe to empty.", []columnText{
		{"scope", "Whose request it was, and which."},
		{"key", "The key that came with the request."},
		{"fingerprint", "A keyed hash of the request."},
		{"result", "The answer, encrypted by the server."},
		{"expires_at", "Until when it is kept, in microseconds since 1970 in UTC."},
	}},
	{"usage", "How much is kept, in one row.", []columnText{
		{"one", "Always 1: there is one row."},
		{"messages", "How many messages there are."},
		{"bytes", "How many bytes of text: projects, conversations, complete messages, and system prompts."},
	}},
	{"shortcuts", "Projects of others that this account is a member of, as they were when last looked at. They can be looked at again.", []columnText{
		{"role", "What the account is in the project: editor, commenter or viewer."},
		{"name", "The name."},
		{"name_folded", "The name in small letters, to search in."},
		{"instructions", "What the model is told in all conversations of the project."},
		{"priority", "low, medium, high or critical."},
		{"color", "A colour for display."},
		{"icon", "An icon for display."},
		{"deadline", "When it is due, in microseconds since 1970 in UTC, or NULL."},
		{"conversations", "How many conversations the project has."},
	}},
	{"webhooks", "Addresses that are told of what happens.", []columnText{
		{"suffix", "The end of the identifiers of its deliveries."},
		{"name", "The name."},
		{"url", "The address."},
		{"events", "Which types of events it wants: a JSON array; * stands for all, message.* for all about messages."},
		{"project_id", "The project that it is about, or NULL for everything."},
		{"ordered", "Whether an event waits for earlier ones of its conversation: 0 or 1."},
		{"state", "active, paused or disabled."},
		{"reason", "Why it is not active."},
		{"secret", "What deliveries are signed with, encrypted by the server."},
		{"secret_before", "The secret before, encrypted, which signs too for a while."},
		{"before_until", "Until when it does, in microseconds since 1970 in UTC."},
		{"failing_since", "The first failure since the last success, in microseconds since 1970 in UTC."},
		{"slowed", "How often in a row it asked for less."},
		{"hold_until", "Until when it is left alone, in microseconds since 1970 in UTC."},
		{"notice_due", "Since when its owner is to be told that it was paused, in microseconds since 1970 in UTC."},
	}},
	{"deliveries", "Events that addresses are told of, or were.", []columnText{
		{"webhook_id", "The address."},
		{"seq", "The number of the event; 0 for a test."},
		{"event_id", "The identifier of the event."},
		{"event_type", "The type of the event."},
		{"state", "pending, succeeded or failed."},
		{"attempts", "How often it was tried, or is being."},
		{"tries", "How often that failed since it was made, or sent again."},
		{"due_at", "When it is sent next, in microseconds since 1970 in UTC."},
		{"claim", "Who sends it at the moment; empty for nobody."},
		{"body", "The text of a test."},
		{"finished_at", "When it was delivered or given up, in microseconds since 1970 in UTC."},
	}},
	{"attempts", "How attempts to tell an address went.", []columnText{
		{"delivery_id", "What was to be told."},
		{"number", "The number of the attempt."},
		{"started_at", "When, in microseconds since 1970 in UTC."},
		{"latency_ms", "How long it took, in milliseconds."},
		{"status", "The HTTP status of the answer; 0 when there was none."},
		{"error", "What was wrong; empty for nothing."},
		{"answer", "The beginning of the answer."},
	}},
	{"message_words", "The index of words of messages, for the search of the server. It can be made again from messages.", nil},
	{"title_words", "The index of words of titles, for the search of the server. It can be made again from conversations.", nil},
	{"schema_migrations", "Which versions of this schema there were, and when.", nil},
}

// CommentTables makes a tenant's database that is released to its owner explain itself: on PostgreSQL schema, tables
// and columns get comments in plain words; the schema only when it is the login's own. On SQLite there is nothing to
// do, as the schema's own text holds them. It works on a fenced database and may be done again.
func CommentTables(ctx context.Context, db *DB) error {
	if db.Dialect() != Postgres {
		return nil
	}
	return alter(ctx, db, "sqlstore.CommentTables", func(tx *Tx, wait int) error {
		names, schema, err := ours(tx, wait)
		if err != nil {
			return err
		}
		tables, err := listTables(tx.Run)
		if err != nil {
			return err
		}
		var own bool
		if err := tx.Run(func(b *Batch) {
			b.One([]any{&own}, `SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace WHERE nspname = current_schema()`)
		}); err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) {
			if own {
				b.Exec(`COMMENT ON SCHEMA ` + quoted(schema) + ` IS '` + literal(ofSchema) + `'`)
			}
			for _, e := range explanations {
				if !slices.Contains(names, e.table) {
					continue
				}
				b.Exec(`COMMENT ON TABLE ` + quoted(e.table) + ` IS '` + literal(e.text) + `'`)
				i := slices.IndexFunc(tables, func(t Table) bool { return t.Name == e.table })
				if i < 0 {
					continue
				}
				common := commonColumns[:]
				for _, list := range [][]columnText{common, e.columns} { // a column's own text replaces the common one
					for _, c := range list {
						if tables[i].at(c.column) >= 0 {
							b.Exec(`COMMENT ON COLUMN ` + quoted(e.table) + `.` + quoted(c.column) + ` IS '` + literal(c.text) + `'`)
						}
					}
				}
			}
		})
	})
}

// literal is the inside of a text in quotes.
func literal(text string) string { return strings.ReplaceAll(text, "'", "''") }
