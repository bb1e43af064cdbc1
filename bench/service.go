package main

import (
	"context"
	"fmt"
	"time"

	"claude-memory-backend/bench/fleet"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
)

// instant is a model that has its answer ready.
type instant struct{}

func (instant) Answer(_ context.Context, _ conversation.Prompt, sink func(string)) (conversation.Answer, error) {
	sink("Yes.")
	return conversation.Answer{Text: "Yes.", StopReason: "end_turn"}, nil
}

// kept is a tenant that nobody closes.
type kept struct{}

func (kept) Retain() func()                        { return func() {} }
func (kept) Hint(context.Context, time.Time) error { return nil }
func (kept) Spool() conversation.Spool             { return nil }
func (kept) Near() bool                            { return true }

func (kept) Callback(conversation.Turn, time.Time) string { return "" }

// service runs turns without HTTP: what a turn costs beside the model, and how that grows with the conversation. With
// the prompt as it is configured, and with one that holds ten messages in either conversation.
func (b *bench) service(ctx context.Context, s *site, t table) error {
	if err := s.start(); err != nil {
		return err
	}
	p, err := s.person(ctx, "service", 1)
	if err != nil {
		return err
	}
	if err := s.stop(); err != nil {
		return err
	}
	db, shut, err := s.tenant(ctx, p)
	if err != nil {
		return err
	}
	defer shut()
	keys, err := seal.NewKeyring(fleet.MasterKey)
	if err != nil {
		return err
	}
	for _, history := range []int{0, 10} {
		engine := conversation.NewEngine(conversation.Config{Node: "bench", Sole: true, Bus: event.NewLocalBus(), History: history,
			Models: map[string]conversation.Model{"instant": instant{}}, Known: []string{"instant"}, Default: "instant"})
		owner := ident.AccountID(p.id)
		store := sqlstore.NewTenantStore(db, nil)
		svc := conversation.New(store, engine, keys, owner, kept{})
		actor, words := ident.Actor{Account: owner, Name: "bench"}, fleet.NewCorpus(4)
		of := func(n int) (ident.ConversationID, error) {
			c, err := svc.Create(ctx, actor, conversation.CreateInput{Details: conversation.Details{Title: "talk"}})
			if err != nil {
				return "", err
			}
			return c.ID, fleet.Fill(ctx, store, c.ID, n, words)
		}
		var short []ident.ConversationID
		for range shortConvs {
			c, err := of(10)
			if err != nil {
				return err
			}
			short = append(short, c)
		}
		long, err := of(10_000)
		if err != nil {
			return err
		}
		var sent, ended [2][]time.Duration // committed, and answered: short, long
		turn := func(which int, conv ident.ConversationID) error {
			begun := time.Now()
			x, err := svc.Send(ctx, actor, conv, conversation.SendInput{Text: "Is it so?", Reply: true})
			if err != nil {
				return err
			}
			sent[which] = append(sent[which], time.Since(begun))
			if x, err = svc.Await(ctx, actor, conv, x.Turn.ID); err != nil || x.Turn.State != conversation.Completed {
				return fmt.Errorf("a turn ended as %s: %w", x.Turn.State, err)
			}
			ended[which] = append(ended[which], time.Since(begun))
			return nil
		}
		var toSent, toEnd []float64
		for range b.reps {
			sent, ended = [2][]time.Duration{}, [2][]time.Duration{}
			for i := range shortConvs {
				if err := turn(0, short[i]); err != nil {
					return err
				}
				if err := turn(1, long); err != nil {
					return err
				}
			}
			toSent = append(toSent, float64(quantile(sent[1], 0.5))/float64(quantile(sent[0], 0.5)))
			toEnd = append(toEnd, float64(quantile(ended[1], 0.5))/float64(quantile(ended[0], 0.5)))
		}
		if err := engine.Close(ctx); err != nil {
			return err
		}
		what := "prompt as configured (up to 400 messages)"
		if history > 0 {
			what = fmt.Sprintf("prompt of %d messages", history)
		} else {
			t.row("until it is acknowledged", s.engine, toSent, quantile(sent[1], 0.5))
		}
		t.row("until it is answered, "+what, s.engine, toEnd, quantile(ended[1], 0.5))
	}
	return nil
}
