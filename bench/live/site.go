package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"claude-memory-backend/bench/fleet"
	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/claude/emulator"
)

const (
	roomSize   = 10 // people of a group, who are in all of its rooms
	groupRooms = 50 // conversations of a group: an account may have as many connections
)

// group is ten accounts that share a project, with the conversations in it.
type group struct {
	people []fleet.Member
	rooms  []string
}

// site is an installation, with the model that its servers ask.
type site struct {
	binary, dir string
	fleet       *fleet.Fleet
	groups      []group
	model       *lab.Model
	pieces      stamps
}

// A piece of an answer is 4 KiB of one character, of which UTF-8 needs four bytes and UTF-16 two units. An answer may have
// so many tokens only, and tokens are counted in characters: with a long one it is enough to fill a buffer.
const (
	character   = "😀"
	pieceRunes  = 1 << 10
	bytesOfUnit = len(character) / 2
)

// newSite makes an installation with so many rooms of ten. A server that has ended by then makes them, so that nothing of
// it is in what is measured.
func newSite(ctx context.Context, binary, dir string, rooms int) (_ *site, err error) {
	s := &site{binary: binary, dir: filepath.Join(dir, "site"), groups: make([]group, (rooms+groupRooms-1)/groupRooms)}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, err
	}
	if s.fleet, err = fleet.Make(ctx, fleet.Options{Dir: s.dir, Tenants: roomSize * len(s.groups)}); err != nil {
		return nil, err
	}
	if s.model, err = lab.NewModelAt("127.0.0.1:0", emulator.Options{PieceRunes: pieceRunes, Even: true, Quiet: true, Limits: emulator.NoLimits()}, s.pieces.around); err != nil {
		return nil, err
	}
	server, err := s.serve()
	if err != nil {
		s.model.Close()
		return nil, err
	}
	var making errgroup.Group
	making.SetLimit(4)
	for i := range s.groups {
		making.Go(func() error { return s.furnish(ctx, server, i) })
	}
	if err := errors.Join(making.Wait(), server.Stop()); err != nil {
		s.model.Close()
		return nil, err
	}
	return s, nil
}

// serve starts a server with its defaults.
func (s *site) serve() (*lab.Server, error) {
	return lab.Start(s.binary, s.dir, append(s.fleet.Env(), s.model.Env()...)...)
}

// furnish makes a group's project, members and conversations.
func (s *site) furnish(ctx context.Context, server *lab.Server, n int) error {
	g := &s.groups[n]
	g.people = s.fleet.Members[roomSize*n : roomSize*(n+1)]
	c := lab.Dial(server.URL, 1)
	defer c.Close()
	c.Token = g.people[0].Token
	var project struct {
		ID string `json:"id"`
	}
	if err := c.Post(ctx, "/projects", map[string]string{"name": fmt.Sprintf("group %d", n)}, &project); err != nil {
		return err
	}
	for i := 1; i < roomSize; i++ {
		body := map[string]string{"email": fmt.Sprintf("member%d@example.org", roomSize*n+i), "role": "editor"}
		if err := c.Post(ctx, "/projects/"+project.ID+"/members", body, nil); err != nil {
			return err
		}
	}
	for i := range groupRooms {
		var conv lab.Conversation
		body := map[string]string{"title": fmt.Sprintf("room %d", i), "project_id": project.ID}
		if err := c.Post(ctx, "/conversations", body, &conv); err != nil {
			return err
		}
		g.rooms = append(g.rooms, conv.ID)
	}
	return nil
}

// visit makes everybody who will be in so many rooms look at their own data once.
func (s *site) visit(ctx context.Context, server *lab.Server, rooms int) error {
	c := lab.Dial(server.URL, 1)
	defer c.Close()
	for i := 0; i < rooms; i += groupRooms {
		for _, p := range s.groups[i/groupRooms].people {
			c.Token = p.Token
			if err := c.Get(ctx, "/conversations?limit=20", nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// metric reads one of the numbers that a server tells; 0 when it does not tell it yet.
func metric(ctx context.Context, c *lab.Client, name string) (float64, error) {
	a := c.Do(ctx, http.MethodGet, "/health/metrics", nil)
	if err := a.Into(nil, http.StatusOK); err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(a.Body)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, nil
}

// stamps knows when the model wrote which piece of which answer.
type stamps struct {
	mu sync.Mutex
	of map[string]*stamped
}

// stamped is one answer: when it had how many bytes of text.
type stamped struct {
	mu  sync.Mutex
	at  []time.Time
	len []int
}

// marker names an answer in the question. A prompt has those of earlier ones, too: the last one counts.
var marker = regexp.MustCompile(`answer-\d+-\d+\.`)

func (s *stamps) answer(name string) *stamped {
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

// around notes the pieces of every answer to a question that holds a marker.
func (s *stamps) around(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if all := marker.FindAll(body, -1); len(all) > 0 {
			w = &stampWriter{w, s.answer(string(all[len(all)-1]))}
		}
		h.ServeHTTP(w, r)
	})
}

type stampWriter struct {
	http.ResponseWriter
	to *stamped
}

func (w *stampWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Write sees whole events. The text has nothing that JSON escapes.
func (w *stampWriter) Write(p []byte) (int, error) {
	const begin, kind = `"text":"`, `"text_delta"`
	if at := bytes.Index(p, []byte(begin)); at >= 0 && bytes.Contains(p, []byte(kind)) {
		if n := bytes.IndexByte(p[at+len(begin):], '"'); n > 0 {
			w.to.mu.Lock()
			if k := len(w.to.len); k > 0 {
				n += w.to.len[k-1]
			}
			w.to.at, w.to.len = append(w.to.at, time.Now()), append(w.to.len, n)
			w.to.mu.Unlock()
		}
	}
	return w.ResponseWriter.Write(p)
}

// delays of the pieces that a reader got to know by having n bytes.
func (s *stamped) delays(seen *int, n int, at time.Time) (out []time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for *seen < len(s.len) && s.len[*seen] <= n {
		out = append(out, at.Sub(s.at[*seen]))
		*seen++
	}
	return out
}
