package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"sync"
	"time"

	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/claude/emulator"
)

// stamps knows when the emulated model wrote which piece of which stream.
type stamps struct {
	mu sync.Mutex
	of map[string]*stamped
}

// stamped is one stream: when it had how many characters.
type stamped struct {
	mu  sync.Mutex
	at  []time.Time
	len []int
}

var marker = regexp.MustCompile(`stream-\d+`)

// around notes the pieces of every answer to a question that holds a marker.
func (s *stamps) around(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if m := marker.Find(body); m != nil {
			w = &stampWriter{w, s.stream(string(m))}
		}
		h.ServeHTTP(w, r)
	})
}

func (s *stamps) stream(name string) *stamped {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = map[string]*stamped{}
	}
	if s.of[name] == nil {
		s.of[name] = &stamped{}
	}
	return s.of[name]
}

type stampWriter struct {
	http.ResponseWriter
	to *stamped
}

func (w *stampWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *stampWriter) Write(p []byte) (int, error) {
	if n := pieceLen(p); n > 0 {
		w.to.mu.Lock()
		if k := len(w.to.len); k > 0 {
			n += w.to.len[k-1]
		}
		w.to.at, w.to.len = append(w.to.at, time.Now()), append(w.to.len, n)
		w.to.mu.Unlock()
	}
	return w.ResponseWriter.Write(p)
}

// pieceLen is the length of the text in an event of the Messages API. All of it is ASCII.
func pieceLen(event []byte) int {
	at := bytes.Index(event, []byte("data: "))
	if at < 0 || !bytes.Contains(event, []byte("text_delta")) {
		return 0
	}
	var e struct{ Delta struct{ Text string } }
	if json.NewDecoder(bytes.NewReader(event[at+6:])).Decode(&e) != nil {
		return 0
	}
	return len(e.Delta.Text)
}

// delays of the pieces that a reader got to know by having n characters at a time.
func (s *stamped) delays(seen *int, n int, at time.Time) (out []time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for *seen < len(s.len) && s.len[*seen] <= n {
		out = append(out, at.Sub(s.at[*seen]))
		*seen++
	}
	return out
}

// streams compares delays through the server with those through the relay, of the same upstream at the same pace.
func (b *bench) streams(ctx context.Context, s *site, t table) error {
	if err := s.start(); err != nil {
		return err
	}
	bare, stop, err := startPeer("peer", "relay", b.model.URL)
	if err != nil {
		return err
	}
	defer stop()
	const accounts = 8
	var people []person
	for i := range accounts {
		p, err := s.person(ctx, fmt.Sprintf("streams%d", i), 80)
		if err != nil {
			return err
		}
		people = append(people, p)
	}
	through := lab.Dial(bare, 600)
	through.Base = bare
	// The pace of one stream falls as their number rises: the emulated model and the readers need these cores too.
	for _, level := range []struct {
		streams int
		pace    time.Duration
		pieces  int
	}{{1, 20 * time.Millisecond, 100}, {50, 40 * time.Millisecond, 100}, {500, 250 * time.Millisecond, 30}} {
		b.model.Forget()
		b.model.Push(emulator.Script{Times: -1, Text: string(bytes.Repeat([]byte("word "), level.pieces*4/5)), PieceDelay: level.pace})
		var half, tail []float64
		var typical, late, bareHalf, bareTail []time.Duration
		for range max(1, b.reps*3/5) {
			var convs []string
			for i := range level.streams {
				c, err := people[i%accounts].NewConversation(ctx, "stream")
				if err != nil {
					return err
				}
				convs = append(convs, c.ID)
			}
			relayed, err := together(level.streams, func(i int) ([]time.Duration, error) {
				return b.relayed(ctx, through, fmt.Sprintf("stream-%d", b.serial+i))
			})
			if err != nil {
				return err
			}
			b.serial += level.streams
			served, err := together(level.streams, func(i int) ([]time.Duration, error) {
				return b.served(ctx, people[i%accounts], convs[i], fmt.Sprintf("stream-%d", b.serial+i))
			})
			if err != nil {
				return err
			}
			b.serial += level.streams
			m, rm := quantile(served, 0.5), quantile(relayed, 0.5)
			h, rh := quantile(served, 0.99), quantile(relayed, 0.99)
			half, tail = append(half, float64(m)/float64(rm)), append(tail, float64(h)/float64(rh))
			typical, late, bareHalf, bareTail = append(typical, m), append(late, h), append(bareHalf, rm), append(bareTail, rh)
		}
		name := fmt.Sprintf("%d streams, a piece every %v", level.streams, level.pace)
		t.row(fmt.Sprintf("%s, median (relay: %v)", name, quantile(bareHalf, 0.5).Round(time.Microsecond)), s.engine, half, quantile(typical, 0.5))
		t.row(fmt.Sprintf("%s, 99 %% (relay: %v)", name, quantile(bareTail, 0.5).Round(time.Microsecond)), s.engine, tail, quantile(late, 0.5))
	}
	return nil
}

// together runs n streams at once and returns the delays of all their pieces.
func together(n int, one func(i int) ([]time.Duration, error)) (all []time.Duration, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			d, failed := one(i)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, d...)
			if failed != nil {
				err = failed
			}
		})
	}
	wg.Wait()
	return all, err
}

func (b *bench) relayed(ctx context.Context, c *lab.Client, name string) (all []time.Duration, err error) {
	st, have, seen, whole := b.stamps.stream(name), 0, 0, false
	body := map[string]any{"model": "claude-sonnet-5-5", "max_tokens": 4096, "stream": true,
		"messages": []any{map[string]any{"role": "user", "content": name}}}
	_, err = c.Stream(ctx, http.MethodPost, "/v1/messages", body, func(e lab.Event) bool {
		at := time.Now()
		have += pieceLen(append([]byte("data: "), e.Data...))
		all = append(all, st.delays(&seen, have, at)...)
		whole = whole || e.Type == "message_stop"
		return true
	}, "x-api-key", "sk-ant-lab", "anthropic-version", "2023-06-01")
	if err == nil && !whole {
		err = fmt.Errorf("the relay's stream broke")
	}
	return all, err
}

func (b *bench) served(ctx context.Context, p person, conv, name string) (all []time.Duration, err error) {
	st, have, seen, end := b.stamps.stream(name), 0, 0, ""
	_, err = p.Stream(ctx, http.MethodPost, "/conversations/"+conv+"/messages", map[string]any{"content": name, "stream": true},
		func(e lab.Event) bool {
			at := time.Now()
			if e.Type == "message.delta" {
				var d struct{ Text string }
				if json.Unmarshal(e.Data, &d) == nil {
					have += len(d.Text)
				}
				all = append(all, st.delays(&seen, have, at)...)
			}
			end = e.Type
			return true
		})
	if err == nil && end != "turn.completed" {
		err = fmt.Errorf("a stream ended with %q", end)
	}
	return all, err
}
