package sqlstore

import (
	"context"
	"testing"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/tenant"
)

// tallied checks at the end of a test that the row that counts what is kept says what adding up says.
func tallied(t testing.TB, db *DB) *DB {
	t.Helper()
	t.Cleanup(func() {
		kept, added := keptAndAdded(t, db)
		if kept != added {
			t.Errorf("%+v is counted, %+v is there", kept, added)
		}
	})
	return db
}

// keptAndAdded is what the row says, and what adding up says.
func keptAndAdded(t testing.TB, db *DB) (kept, added tenant.Usage) {
	t.Helper()
	var talk, projects, systems int64
	// The test's own context is over by now.
	if err := db.Read(context.WithoutCancel(t.Context()), func(b *Batch) {
		readUsage(b, &kept)
		b.One([]any{&added.Messages, &added.Bytes}, ofMessages)
		b.One([]any{&talk}, ofConversations)
		b.One([]any{&projects}, `SELECT CAST(coalesce(sum(octet_length(name) + octet_length(description) + octet_length(instructions) +
			octet_length(settings) + octet_length(tags)), 0) AS BIGINT) FROM projects`)
		b.One([]any{&systems}, `SELECT CAST(coalesce(sum(octet_length(body)), 0) AS BIGINT) FROM systems`)
	}); err != nil {
		t.Fatal(err)
	}
	added.Bytes += talk + projects + systems
	return kept, added
}

// TestUsage follows the count through everything that changes it, to nothing again.
func TestUsage(t *testing.T) {
	for engine, db := range engines(t) {
		t.Run(engine, func(t *testing.T) { followUsage(t, db) })
	}
}

func followUsage(t *testing.T, db *DB) {
	s := NewTenantStore(db, nil)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check := func(messages, bytes int64) {
		t.Helper()
		kept, added := keptAndAdded(t, db)
		if want := (tenant.Usage{Messages: messages, Bytes: bytes}); kept != want || added != want {
			t.Fatalf("counted %+v, there %+v, want %+v", kept, added, want)
		}
	}
	change := func(kind string) event.Change {
		ch := event.NewChange(ident.System(""), noon(0))
		ch.Add(kind, "subject", map[string]any{})
		return ch
	}
	const rest = int64(len(`{}`) + len(`[]`)) // settings and tags of what has none
	check(0, 0)
	p := project.Project{ID: ident.New[ident.ProjectID](), Details: project.Details{Name: "Ü", Instructions: "12345"}, Version: 1}
	must(s.InsertProject(ctx, p, change("project.created")))
	check(0, 2+5+rest)
	_, err := s.UpdateProject(ctx, p.ID, func(p project.Project) (project.Project, event.Change, error) {
		p.Instructions, p.Tags = "1", []string{"a"}
		return p, change("project.updated"), nil
	})
	must(err)
	check(0, 2+1+rest+3)
	ofProject := 2 + 1 + rest + 3

	c := conversation.Conversation{ID: ident.New[ident.ConversationID](), Version: 1,
		Details: conversation.Details{Title: "Title", ProjectID: p.ID, System: "abc"}}
	must(s.InsertConversation(ctx, c, change("conversation.created")))
	check(0, ofProject+5+3+rest)
	_, err = s.UpdateConversation(ctx, c.ID, func(c conversation.Conversation) (conversation.Conversation, event.Change, error) {
		c.Title = "T"
		return c, change("conversation.updated"), nil
	})
	must(err)
	ofTalk := 1 + 3 + rest
	check(0, ofProject+ofTalk)

	say := func(answer bool) conversation.Turn {
		t.Helper()
		turn := conversation.Turn{ID: ident.New[ident.TurnID](), Conversation: c.ID, State: conversation.Streaming, Node: "n",
			AssistantMessage: ident.New[ident.MessageID](), UserMessage: ident.New[ident.MessageID](), SystemHash: "hash"}
		_, _, err := s.Append(ctx, c.ID, conversation.Where{}, func(conversation.Spot) (conversation.Entry, event.Change, error) {
			e := conversation.Entry{Messages: []conversation.Message{{ID: turn.UserMessage, Role: conversation.User, Content: "hello",
				Blocks: []byte(`[{"type":"text"}]`), State: conversation.Completed}}, System: "system!"}
			if answer {
				e.Turn = &turn
				e.Messages = append(e.Messages, conversation.Message{ID: turn.AssistantMessage, Turn: turn.ID, Role: conversation.Assistant,
					State: conversation.Streaming})
			}
			return e, change("message.created"), nil
		})
		must(err)
		return turn
	}
	const said = int64(len("hello") + len(`[{"type":"text"}]`))
	say(false)
	check(1, ofProject+ofTalk+said)
	turn := say(true)
	check(3, ofProject+ofTalk+2*said+7) // the system prompt once, the stub without text
	held, err := s.FlushTurn(ctx, turn, 0, func() string { return "half" }, noon(1))
	must(err)
	if !held {
		t.Fatal("not held")
	}
	check(3, ofProject+ofTalk+2*said+7)
	_, err = s.EndTurn(ctx, turn.ID, func(turn conversation.Turn, m conversation.Message) (conversation.Ending, event.Change, error) {
		turn.State, m.State, m.Content = conversation.Completed, conversation.Completed, "whole answer"
		return conversation.Ending{Turn: turn, Message: m}, change("turn.completed"), nil
	})
	must(err)
	check(3, ofProject+ofTalk+2*said+7+12)
	running := say(true)
	check(5, ofProject+ofTalk+3*said+7+12)
	held, err = s.FlushTurn(ctx, running, 0, func() string { return "never ends" }, noon(1))
	must(err)
	if !held {
		t.Fatal("not held")
	}

	// What goes takes its count along; the system prompt stays.
	if db.Dialect() == Postgres {
		must(s.DeleteConversation(ctx, c.ID, func(conversation.Conversation) (event.Change, error) { return change("conversation.deleted"), nil }))
		check(0, ofProject+7)
		must(s.DeleteProject(ctx, p.ID, false, func(project.Project, int64) (event.Change, error) { return change("project.deleted"), nil }))
	} else {
		must(s.DeleteProject(ctx, p.ID, true, func(project.Project, int64) (event.Change, error) { return change("project.deleted"), nil }))
	}
	check(0, 7)
	must(emptyAll(t, db))
	check(0, 0)
	must(s.InsertProject(ctx, p, change("project.created")))
	check(0, 2+5+rest)
}

// TestTwoAtTheLimit lets many add at once what there is room for a few times only. None is let in too many, and who is
// refused leaves nothing behind.
func TestTwoAtTheLimit(t *testing.T) {
	for engine, db := range engines(t) {
		t.Run(engine, func(t *testing.T) {
			limits := tenant.Limits{Messages: 5}
			s := NewTenantStore(db, nil).Within(func() tenant.Limits { return limits })
			change := func(actor ident.Actor, kind string) event.Change {
				ch := event.NewChange(actor, noon(0))
				ch.Add(kind, "subject", map[string]any{})
				return ch
			}
			ada := ident.Actor{Account: "usr_ada"}
			start := func(title string) (conversation.Conversation, error) {
				c := conversation.Conversation{ID: ident.New[ident.ConversationID](), Version: 1, Details: conversation.Details{Title: title}}
				return c, s.InsertConversation(t.Context(), c, change(ada, "conversation.created"))
			}
			say := func(c conversation.Conversation) error {
				_, _, err := s.Append(t.Context(), c.ID, conversation.Where{}, func(conversation.Spot) (conversation.Entry, event.Change, error) {
					return conversation.Entry{Messages: []conversation.Message{{ID: ident.New[ident.MessageID](), Role: conversation.User,
						Content: "hello", State: conversation.Completed}}}, change(ada, "message.created"), nil
				})
				return err
			}
			const writers = 12
			race := func(code string, do func(i int) error) (admitted int) {
				t.Helper()
				results := make(chan error, writers)
				for i := range writers {
					go func() { results <- do(i) }()
				}
				for range writers {
					switch err := <-results; {
					case err == nil:
						admitted++
					case fault.CodeOf(err) != code || !fault.Is(err, fault.Forbidden):
						t.Errorf("refused with %v, want %s", err, code)
					}
				}
				return admitted
			}
			var talks []conversation.Conversation
			for range writers {
				c, err := start("T")
				if err != nil {
					t.Fatal(err)
				}
				talks = append(talks, c)
			}
			if n := race("quota_messages", func(i int) error { return say(talks[i]) }); n != 5 {
				t.Errorf("%d messages were admitted, want 5", n)
			}
			kept, added := keptAndAdded(t, db)
			if kept != added || kept.Messages != 5 {
				t.Errorf("counted %+v, there %+v", kept, added)
			}

			// Room for three conversations of 14 bytes: ten of title, four of settings and tags.
			limits = tenant.Limits{Bytes: kept.Bytes + 3*14}
			if n := race("quota_storage", func(int) error { _, err := start("ten bytes!"); return err }); n != 3 {
				t.Errorf("%d conversations were admitted, want 3", n)
			}
			full, added := keptAndAdded(t, db)
			if full != added || full.Bytes != limits.Bytes {
				t.Errorf("counted %+v, there %+v, want %d bytes", full, added, limits.Bytes)
			}

			// What grows is refused, what shrinks is not, and the system is not.
			retitle := func(actor ident.Actor, title string) error {
				_, err := s.UpdateConversation(t.Context(), talks[0].ID, func(c conversation.Conversation) (conversation.Conversation, event.Change, error) {
					c.Title = title
					return c, change(actor, "conversation.updated"), nil
				})
				return err
			}
			if err := retitle(ada, "longer"); fault.CodeOf(err) != "quota_storage" {
				t.Errorf("a longer title: %v", err)
			}
			for _, err := range []error{retitle(ident.System(""), "longer"), retitle(ada, "long"), retitle(ada, "gone")} {
				if err != nil {
					t.Error(err)
				}
			}
			trips := db.RoundTrips()
			if err := retitle(ada, ""); err != nil || db.RoundTrips() != trips+2 {
				t.Errorf("%v in %d round trips, want 2", err, db.RoundTrips()-trips)
			}
			limits = tenant.Limits{Bytes: 1 << 20, Messages: 1 << 20}
			trips = db.RoundTrips()
			if err := say(talks[0]); err != nil || db.RoundTrips() != trips+2 {
				t.Errorf("%v in %d round trips, want 2", err, db.RoundTrips()-trips)
			}
		})
	}
}

// TestUsageOfOlderDatabases counts what was kept before anybody counted.
func TestUsageOfOlderDatabases(t *testing.T) {
	steps, err := Released()
	if err != nil {
		t.Fatal(err)
	}
	for engine, open := range map[string]func(*testing.T) *DB{"sqlite": onSQLite, "postgres": onPostgres} {
		t.Run(engine, func(t *testing.T) {
			db := open(t)
			if _, err := steps.UpTo(Tenant, 1).Migrate(t.Context(), db, Tenant); err != nil {
				t.Fatal(err)
			}
			write(t, db, `INSERT INTO projects (id, name, name_folded, description, instructions, status, priority, color, icon, tags, provider,
				model, settings, owner_id, owner_name, version, created_at, updated_at)
				VALUES ('prj_1', 'Näme', '', 'd', 'i', '', '', '', '', '["a"]', '', '', '{}', '', '', 1, 0, 0)`)
			write(t, db, `INSERT INTO conversations (id, title, title_folded, title_by_hand, description, status, importance_level, tags, system,
				provider, model, settings, creator_id, creator_name, message_count, leaf_id, branch_count, version, created_at, updated_at)
				VALUES ('conv_1', 'title', '', 0, '', '', 3, '[]', 's', '', '', '{}', '', '', 2, '', 1, 1, 0, 0)`)
			for depth, state := range []string{"completed", "streaming"} {
				write(t, db, `INSERT INTO messages (id, conversation_id, parent_id, turn_id, branch, depth, role, content, content_length, blocks,
					state, author_id, author_name, provider, model, stop_reason, input_tokens, output_tokens, cache_read_input_tokens,
					cache_creation_input_tokens, cost_microusd, first_token_ms, latency_ms, error_code, error_detail, tokens, tokens_up_to,
					prefix_hash, created_at, updated_at)
					VALUES (?, 'conv_1', '', '', 0, ?, 'user', 'sökös', 5, NULL, ?, '', '', '', '', '', 0, 0, 0, 0, 0, 0, 0, '', '', 0, 0, '', 0, 0)`,
					"msg_"+state, depth, state)
			}
			write(t, db, `INSERT INTO systems (hash, body, created_at) VALUES ('h', 'body', 0)`)
			if _, err := Migrate(t.Context(), db, Tenant); err != nil {
				t.Fatal(err)
			}
			kept, added := keptAndAdded(t, db)
			if kept != added || kept.Messages != 2 || kept.Bytes == 0 {
				t.Errorf("counted %+v, there %+v", kept, added)
			}
		})
	}
}
