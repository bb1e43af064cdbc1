package sqlstore

import (
	"fmt"
	"testing"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

// Run with: go test -run '^$' -bench 'Tenant' ./internal/sqlstore/

func onEach(b *testing.B, bench func(b *testing.B, db *DB)) {
	b.Run("sqlite", func(b *testing.B) { bench(b, tenantFiles(b)(b)) })
	b.Run("postgres", func(b *testing.B) { bench(b, tenantSchemas(b)(b)) })
}

func analyze(b *testing.B, db *DB) {
	if err := db.Write(b.Context(), func(tx *Tx) error {
		return tx.Commit(func(batch *Batch) { batch.Exec(`ANALYZE`) })
	}); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkTenantAppend(b *testing.B) {
	for _, n := range []int{10, longHistory} {
		b.Run(fmt.Sprintf("to %d messages", n), func(b *testing.B) {
			onEach(b, func(b *testing.B, db *DB) {
				longTalk(b, db, "conv", n)
				analyze(b, db)
				s := NewTenantStore(db, nil)
				for b.Loop() {
					m := conversation.Message{ID: ident.New[ident.MessageID](), Role: conversation.User,
						Content: "What does a store do when it rains?", State: conversation.Completed}
					if _, _, err := s.Append(b.Context(), "conv", conversation.Where{},
						func(conversation.Spot) (conversation.Entry, event.Change, error) {
							ch := event.NewChange(ident.Actor{Account: "usr_a", Name: "A"}, time.Now())
							ch.Add("message.appended", string(m.ID), map[string]any{"conversation_id": "conv"})
							return conversation.Entry{Messages: []conversation.Message{m}}, ch, nil
						}); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

func BenchmarkTenantPage(b *testing.B) {
	for _, n := range []int{200, longHistory} {
		b.Run(fmt.Sprintf("of 50 out of %d", n), func(b *testing.B) {
			onEach(b, func(b *testing.B, db *DB) {
				longTalk(b, db, "conv", n)
				analyze(b, db)
				s := NewTenantStore(db, nil)
				for b.Loop() {
					list, _, err := s.ListMessages(b.Context(), "conv", conversation.MessageQuery{Limit: 50})
					if err != nil || len(list) != 50 {
						b.Fatal(len(list), err)
					}
				}
			})
		})
	}
}

func BenchmarkTenantPath(b *testing.B) {
	onEach(b, func(b *testing.B, db *DB) {
		longTalk(b, db, "conv", longHistory)
		analyze(b, db)
		s := NewTenantStore(db, nil)
		for b.Loop() {
			list, err := s.Path(b.Context(), "conv", spoken("conv", 0, longHistory), 200, 0)
			if err != nil || len(list) != 200 {
				b.Fatal(len(list), err)
			}
		}
	})
}

func BenchmarkTenantList(b *testing.B) {
	onEach(b, func(b *testing.B, db *DB) {
		s := NewTenantStore(db, nil)
		for i := range 1000 {
			if err := s.InsertConversation(b.Context(), conversation.Conversation{ID: ident.New[ident.ConversationID](),
				Details:   conversation.Details{Title: fmt.Sprint("conversation ", i), Status: conversation.Active},
				UpdatedAt: time.UnixMicro(int64(i * 7919 % 1000))}, event.Change{}); err != nil {
				b.Fatal(err)
			}
		}
		analyze(b, db)
		for _, sort := range []conversation.Sort{conversation.ByUpdated, conversation.ByTitle} {
			b.Run(fmt.Sprintf("20 of 1000 by %s", sort), func(b *testing.B) {
				for b.Loop() {
					list, _, err := s.ListConversations(b.Context(), conversation.Query{Limit: 20, Sort: sort})
					if err != nil || len(list) != 20 {
						b.Fatal(len(list), err)
					}
				}
			})
		}
	})
}
