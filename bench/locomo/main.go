package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/claude/emulator"
	"claude-memory-backend/internal/pgtest"
)

func main() {
	var o options
	flag.StringVar(&o.file, "file", "", "the benchmark's file with one conversation")
	flag.StringVar(&o.engine, "engine", "both", "sqlite, postgres or both")
	flag.StringVar(&o.url, "url", "", "a running server, instead of one of our own")
	flag.StringVar(&o.model, "model", "", "with -url: where that server expects the Anthropic API")
	flag.BoolVar(&o.captions, "captions", false, "append what the benchmark says is on a shared picture")
	flag.BoolVar(&o.misses, "misses", false, "print the rank of the evidence for every question that is not answered by the first five, on standard error")
	flag.Parse()
	if err := run(context.Background(), o, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "locomo:", err)
		os.Exit(1)
	}
}

type options struct {
	file, engine, url, model string
	captions, misses         bool
}

// depth is how many results are looked at.
const depth = 25

// found is what one engine answered.
type found struct {
	engine string
	send   []time.Duration // one message that asks nobody
	turn   []time.Duration // one message with its answer
	search []time.Duration
	hits   [][]string // for each question the turns found, best first; "title" for the title
}

func run(ctx context.Context, o options, out, log io.Writer) error {
	if o.file == "" {
		return errors.New("-file is needed: the data is not part of this repository")
	}
	d, a, err := load(o.file, o.captions)
	if err != nil {
		return err
	}
	var all []found
	engines := []string{o.engine}
	switch {
	case o.url != "":
		engines = []string{"given"}
	case o.engine == "both":
		engines = []string{"sqlite", "postgres"}
	case o.engine != "sqlite" && o.engine != "postgres":
		return errors.New("-engine is sqlite, postgres or both")
	}
	for _, engine := range engines {
		fmt.Fprintf(log, "%s: %d turns, %d questions\n", engine, len(d.turns), len(d.questions))
		f, err := try(ctx, o, engine, d, a)
		if err != nil {
			return fmt.Errorf("%s: %w", engine, err)
		}
		all = append(all, f)
	}
	if o.misses {
		misses(log, d, all[0])
	}
	return report(out, d, all)
}

// try replays the dialogue on one engine and asks the questions.
func try(ctx context.Context, o options, engine string, d dialogue, a string) (f found, err error) {
	addr := "127.0.0.1:0"
	if o.model != "" {
		addr = o.model
	}
	model, err := lab.NewModelAt(addr, emulator.Options{Limits: emulator.NoLimits(), PieceRunes: 40})
	if err != nil {
		return f, err
	}
	defer model.Close()
	base := o.url
	if base == "" {
		dir, err := os.MkdirTemp("", "locomo-")
		if err != nil {
			return f, err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		env := append(model.Env(), "STORAGE_PATH="+dir)
		if engine == "postgres" {
			cluster, err := pgtest.Start(ctx, pgtest.Options{})
			if err != nil {
				return f, err
			}
			defer func() { err = errors.Join(err, cluster.Stop()) }()
			env = append(env, "MASTER_DATABASE_URL="+cluster.URL, "TENANT_DATABASE_URLS="+cluster.URL)
		}
		binary, err := lab.Build(ctx, dir)
		if err != nil {
			return f, err
		}
		server, err := lab.Start(binary, dir, env...)
		if err != nil {
			return f, err
		}
		defer func() { err = errors.Join(err, server.Stop()) }()
		base = server.URL
	}
	client := lab.Dial(base, 1)
	defer client.Close()
	if err := client.Register(ctx, "replay-"+rand.Text()+"@example.org"); err != nil {
		return f, err
	}
	f.engine = engine
	turns, err := f.replay(ctx, client, model, plan(d.turns, a))
	if err != nil {
		return f, err
	}
	return f, f.ask(ctx, client, d.questions, turns)
}

// replay sends the dialogue and returns which message is which turn.
func (f *found) replay(ctx context.Context, client *lab.Client, model *lab.Model, steps []step) (map[string]string, error) {
	conv, err := client.NewConversation(ctx, "Replay")
	if err != nil {
		return nil, err
	}
	turns := map[string]string{}
	for _, s := range steps {
		body := map[string]any{"content": s.say.Text, "reply": s.answer != nil}
		if s.answer != nil {
			model.Forget()
			model.Push(emulator.Script{Text: s.answer.Text})
		}
		var x lab.Exchange
		begun := time.Now()
		if err := client.Post(ctx, "/conversations/"+conv.ID+"/messages", body, &x); err != nil {
			return nil, fmt.Errorf("turn %s: %w", s.say.ID, err)
		}
		took := time.Since(begun)
		turns[x.User.ID] = s.say.ID
		if s.answer == nil {
			f.send = append(f.send, took)
			continue
		}
		if x.Assistant == nil || x.Assistant.State != "completed" || x.Assistant.Content != s.answer.Text {
			return nil, fmt.Errorf("turn %s: the answer is not what the model said", s.answer.ID)
		}
		f.turn = append(f.turn, took)
		turns[x.Assistant.ID] = s.answer.ID
	}
	stored, err := client.Messages(ctx, conv.ID)
	if err != nil || len(stored) != len(turns) {
		return nil, fmt.Errorf("%d messages are stored, %d were sent: %w", len(stored), len(turns), err)
	}
	return turns, nil
}

func (f *found) ask(ctx context.Context, client *lab.Client, questions []question, turns map[string]string) error {
	for _, q := range questions {
		begun := time.Now()
		hits, err := client.Search(ctx, q.Text, depth)
		if err != nil {
			return err
		}
		f.search = append(f.search, time.Since(begun))
		list := []string{}
		for _, h := range hits {
			id := "title"
			if h.MessageID != nil {
				id = turns[*h.MessageID]
			}
			list = append(list, id)
		}
		f.hits = append(f.hits, list)
	}
	return nil
}

// rank is the place of the first turn of evidence among the hits, from 1; 0: none is there.
func rank(hits, evidence []string) int {
	return 1 + slices.IndexFunc(hits, func(id string) bool { return slices.Contains(evidence, id) })
}
