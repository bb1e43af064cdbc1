package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"claude-memory-backend/bench/fleet"
	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/sqlstore"
)

const (
	callers    = 16
	pageOf     = 10_000
	listOf     = 1_000
	searchers  = 4
	tenants    = 4
	shortConvs = 100
)

// load fills a person's conversation while the server is stopped, and starts it again.
func (b *bench) load(ctx context.Context, s *site, p person, sizes map[string]int) error {
	if err := s.stop(); err != nil {
		return err
	}
	db, shut, err := s.tenant(ctx, p)
	if err != nil {
		return err
	}
	store, words := sqlstore.NewTenantStore(db, nil), fleet.NewCorpus(1)
	for conv, n := range sizes {
		if err := fleet.Fill(ctx, store, ident.ConversationID(conv), n, words); err != nil {
			shut()
			return err
		}
	}
	shut()
	if err := s.start(); err != nil {
		return err
	}
	s.move(p)
	return nil
}

func (b *bench) calls(ctx context.Context, s *site, t table) error {
	if err := s.start(); err != nil {
		return err
	}
	var people []person
	var convs []string
	for i := range tenants {
		p, err := s.person(ctx, fmt.Sprintf("calls%d", i), callers)
		if err != nil {
			return err
		}
		people = append(people, p)
	}
	for i := range callers {
		c, err := people[i%tenants].NewConversation(ctx, "append")
		if err != nil {
			return err
		}
		convs = append(convs, c.ID)
	}
	body, err := json.Marshal(map[string]any{"content": fleet.NewCorpus(2).Text(), "reply": false})
	if err != nil {
		return err
	}
	size := 0
	appending := probe{"append", callers, func(ctx context.Context, c, _ int) error {
		a := people[c%tenants].Do(ctx, http.MethodPost, "/conversations/"+convs[c]+"/messages", body)
		if c == 0 {
			size = len(a.Body)
		}
		return a.Into(nil, http.StatusCreated)
	}}
	if _, _, err := appending.run(ctx, b.each/4); err != nil {
		return err
	}
	ratios, typical, err := against(ctx, b.reps, b.each, b.echoed(callers, http.MethodPost, body, 1, size), appending)
	if err != nil {
		return err
	}
	t.row(fmt.Sprintf("append, %d writers in %d tenants", callers, tenants), s.engine, ratios, typical)

	p := people[0]
	long, err := p.NewConversation(ctx, "long")
	if err != nil {
		return err
	}
	for i := range listOf {
		if _, err := p.NewConversation(ctx, fmt.Sprint("one of many ", i)); err != nil {
			return err
		}
	}
	if err := b.load(ctx, s, p, map[string]int{long.ID: pageOf}); err != nil {
		return err
	}
	for _, c := range []struct {
		name, path string
		items      int
	}{
		{"page, 50 of 10,000 messages", "/conversations/" + long.ID + "/messages?limit=50", 50},
		{"list, 20 of 1,000 conversations", "/conversations?limit=20", 20},
		{"one conversation", "/conversations/" + long.ID, 1},
	} {
		ratios, typical, err := b.reading(ctx, p, callers, c.items, func(int) string { return c.path })
		if err != nil {
			return err
		}
		t.row(c.name, s.engine, ratios, typical)
	}
	return nil
}

// reading compares GETs with an echo of their size.
func (b *bench) reading(ctx context.Context, p person, clients, items int, path func(n int) string) ([]float64, time.Duration, error) {
	var page lab.Page[json.RawMessage]
	first := p.Do(ctx, http.MethodGet, path(0), nil)
	if err := first.Into(&page, http.StatusOK); err != nil {
		return nil, 0, err
	}
	if items > 1 && len(page.Data) != items {
		return nil, 0, fmt.Errorf("%s answers %d items, not %d", path(0), len(page.Data), items)
	}
	return against(ctx, b.reps, b.each, b.echoed(clients, http.MethodGet, nil, max(1, items), len(first.Body)),
		probe{"read", clients, func(ctx context.Context, c, n int) error {
			return p.Do(ctx, http.MethodGet, path(c*1000+n), nil).Into(nil, http.StatusOK)
		}})
}

func (b *bench) search(ctx context.Context, s *site, t table) error {
	if err := s.start(); err != nil {
		return err
	}
	p, err := s.person(ctx, "search", searchers)
	if err != nil {
		return err
	}
	sizes := map[string]int{}
	for i := range 100 {
		c, err := p.NewConversation(ctx, fmt.Sprint("history ", i))
		if err != nil {
			return err
		}
		sizes[c.ID] = b.messages / 100
	}
	if err := b.load(ctx, s, p, sizes); err != nil {
		return err
	}
	for _, sort := range []string{"relevance", "newest"} {
		for _, class := range []string{"common", "medium", "rare", "two words", "none", "question"} {
			words := fleet.NewCorpus(3)
			var queries []string
			for range 64 {
				queries = append(queries, "/conversations/search?limit=20&sort="+sort+"&q="+url.QueryEscape(words.Query(class)))
			}
			// Rare words have fewer hits than a page; the echo answers what the first query does.
			var page lab.Page[json.RawMessage]
			if err := p.Get(ctx, queries[0], &page); err != nil {
				return err
			}
			if (class == "none") != (len(page.Data) == 0) {
				return fmt.Errorf("%s, %s: %d hits", class, sort, len(page.Data))
			}
			ratios, typical, err := b.reading(ctx, p, searchers, len(page.Data), func(n int) string { return queries[n%len(queries)] })
			if err != nil {
				return err
			}
			t.row(fmt.Sprintf("%s, by %s, in %d messages", class, sort, b.messages), s.engine, ratios, typical)
		}
	}
	return nil
}

// length sends to short and long conversations in turns, over HTTP, asking nobody.
func (b *bench) length(ctx context.Context, s *site, t table) error {
	if err := s.start(); err != nil {
		return err
	}
	p, err := s.person(ctx, "length", 1)
	if err != nil {
		return err
	}
	sizes, short := map[string]int{}, []string{}
	long, err := p.NewConversation(ctx, "long")
	if err != nil {
		return err
	}
	sizes[long.ID] = 10_000
	for i := range shortConvs {
		c, err := p.NewConversation(ctx, fmt.Sprint("short ", i))
		if err != nil {
			return err
		}
		short, sizes[c.ID] = append(short, c.ID), 10
	}
	if err := b.load(ctx, s, p, sizes); err != nil {
		return err
	}
	send := func(conv string) error {
		return p.Post(ctx, "/conversations/"+conv+"/messages", map[string]any{"content": "one more", "reply": false}, nil)
	}
	for _, c := range short { // whatever is to be warmed
		if err := send(c); err != nil {
			return err
		}
	}
	ratios, typical, err := alternate(b.reps, shortConvs, timed(func(i int) error { return send(short[i]) }),
		timed(func(int) error { return send(long.ID) }))
	if err != nil {
		return err
	}
	t.row("POST a message, reply: false", s.engine, ratios, typical)
	return nil
}

// cold asks tenants in turns of a server that keeps one open; each is asked twice.
func (b *bench) cold(ctx context.Context, s *site, t table) error {
	if err := s.start("MAX_OPEN_TENANTS=1"); err != nil {
		return err
	}
	var people []person
	for i := range 8 {
		p, err := s.person(ctx, fmt.Sprintf("cold%d", i), 1)
		if err != nil {
			return err
		}
		for range 20 {
			if _, err := p.NewConversation(ctx, strings.Repeat("a title ", 3)); err != nil {
				return err
			}
		}
		people = append(people, p)
	}
	ask := func(i int) error { return people[i%len(people)].Get(ctx, "/conversations?limit=20", nil) }
	var warm []time.Duration
	first := timed(ask)
	ratios, typical, err := alternate(b.reps, 40, func(i int) (time.Duration, error) {
		// The cold one comes first, so that this one is warm.
		cold, err := first(i)
		if err != nil {
			return 0, err
		}
		warm = append(warm, cold)
		return first(i)
	}, func(int) (time.Duration, error) { return warm[len(warm)-1], nil })
	if err != nil {
		return err
	}
	t.row("GET 20 conversations", s.engine, ratios, typical)
	return nil
}
