package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"claude-memory-backend/bench/lab"
)

// side is the server, or the bare hub, with its connections.
type side struct {
	name      string
	server    *lab.Server
	rings     []*ring
	warm      func(ctx context.Context, conns int) error // nil: there is nothing to do before
	path      func(room, member int) string
	joining   func(room int) string // "": being there is enough
	frame     func(room int) []byte // what is said
	listening sync.WaitGroup
	closing   atomic.Bool
	failed    atomic.Pointer[error]
}

// ring is a room in which one at a time says something: whoever hears it first in the circle lets the next one speak.
type ring struct {
	members  []*talker
	speaker  atomic.Int32
	speakers atomic.Int32 // how many of the members take turns; 0: silence
}

// talker is one connection in a room.
type talker struct {
	*socket
	of    *ring
	index int32
	frame []byte
	heard atomic.Int64

	mu   sync.Mutex
	next time.Time // when it may speak again
}

// speakEvery keeps a connection below the server's limit of 30 frames a second.
const speakEvery = 40 * time.Millisecond

// say speaks, not sooner than it may.
func (t *talker) say(fail func(error)) {
	now := time.Now()
	t.mu.Lock()
	at := t.next
	if at.Before(now) {
		at = now
	}
	t.next = at.Add(speakEvery)
	t.mu.Unlock()
	speak := func() {
		if err := t.send(opText, t.frame); err != nil {
			fail(err)
		}
	}
	if wait := at.Sub(now); wait > 0 {
		time.AfterFunc(wait, speak)
		return
	}
	speak()
}

// hear counts, and passes the word on when it is this one's turn to do so.
func (t *talker) hear(p []byte, fail func(error)) {
	if !bytes.HasPrefix(p, []byte(`{"type":"typing"`)) {
		if bytes.HasPrefix(p, []byte(`{"type":"error"`)) {
			fail(fmt.Errorf("refused: %s", p))
		}
		return
	}
	t.heard.Add(1)
	speakers := t.of.speakers.Load()
	was := t.of.speaker.Load()
	if speakers == 0 || t.index != (was+1)%int32(len(t.of.members)) {
		return
	}
	if next := (was + 1) % speakers; t.of.speaker.CompareAndSwap(was, next) {
		t.of.members[next].say(fail)
	}
}

// fill opens connections in rooms of ten and listens to all of them.
func (s *side) fill(ctx context.Context, conns int) error {
	s.rings = make([]*ring, conns/roomSize)
	var opening errgroup.Group
	opening.SetLimit(32)
	for i := range s.rings {
		r := &ring{members: make([]*talker, roomSize)}
		s.rings[i] = r
		for k := range r.members {
			opening.Go(func() error {
				say := ""
				if s.joining != nil {
					say = s.joining(i)
				}
				c, err := join(ctx, s.server.URL, s.path(i, k), say, i*roomSize+k)
				if err != nil {
					return err
				}
				t := &talker{socket: c, of: r, index: int32(k), frame: s.frame(i)}
				r.members[k] = t
				s.listening.Go(func() {
					code := t.listen(func(p []byte) { t.hear(p, s.fail) })
					if !s.closing.Load() {
						s.fail(fmt.Errorf("%s: a connection was lost, code %d", s.name, code))
					}
				})
				return nil
			})
		}
	}
	return opening.Wait()
}

func (s *side) fail(err error) { s.failed.CompareAndSwap(nil, &err) }

func (s *side) failure() error {
	if err := s.failed.Load(); err != nil {
		return *err
	}
	return nil
}

func (s *side) close() {
	s.closing.Store(true)
	for _, r := range s.rings {
		for _, t := range r.members {
			if t != nil {
				_ = t.Close()
			}
		}
	}
	s.listening.Wait()
}

func (s *side) heard() (n int64) {
	for _, r := range s.rings {
		for _, t := range r.members {
			n += t.heard.Load()
		}
	}
	return n
}

// pace is what one round gave.
type pace struct {
	perSecond float64
	cost      time.Duration // of the processor, for a delivery
}

// talk lets all rooms talk for a while.
func (s *side) talk(d time.Duration, speakers int32) (pace, error) {
	for _, r := range s.rings {
		r.speaker.Store(0)
		r.speakers.Store(speakers)
		r.members[0].say(s.fail)
	}
	pause(time.Second)
	before, used, begun := s.heard(), lab.Processor(s.server.PID()), time.Now()
	pause(d)
	n := s.heard() - before
	used, took := lab.Processor(s.server.PID())-used, time.Since(begun)
	for _, r := range s.rings {
		r.speakers.Store(0)
	}
	for last := int64(-1); last != s.heard(); { // what is under way arrives
		last = s.heard()
		pause(lookEvery)
	}
	if n == 0 {
		s.fail(fmt.Errorf("%s: nothing was delivered", s.name))
	}
	return pace{float64(n) / took.Seconds(), used / time.Duration(max(1, n))}, s.failure()
}

func pause(d time.Duration) { time.Sleep(d) } //nolint:forbidigo // a measurement takes its time

// serverSide starts a server that nobody is connected to.
func (b *bench) serverSide() (*side, error) {
	server, err := b.site.serve()
	room := func(i int) (*group, string) {
		g := &b.site.groups[i/groupRooms]
		return g, g.rooms[i%groupRooms]
	}
	return &side{name: "server", server: server, warm: func(ctx context.Context, conns int) error { return b.site.visit(ctx, server, conns/roomSize) },
		path:    func(i, k int) string { g, _ := room(i); return "/ws?token=" + g.people[k].Token },
		joining: func(i int) string { _, id := room(i); return joining(id) },
		frame: func(i int) []byte {
			_, id := room(i)
			return fmt.Appendf(nil, `{"type":"typing","data":{"room_id":%q,"is_typing":true}}`, id)
		}}, err
}

// hubSide starts a bare hub. What is said there is as long as what the server makes of it.
func (b *bench) hubSide() (*side, error) {
	server, err := startHub(b.site.dir)
	return &side{name: "hub", server: server,
		path: func(i, _ int) string { return fmt.Sprintf("/?room=%d", i) },
		frame: func(i int) []byte {
			g := &b.site.groups[i/groupRooms]
			return fmt.Appendf(nil, `{"type":"typing","data":{"room_id":%q,"user_id":%q,"name":%q,"is_typing":true}}`,
				g.rooms[i%groupRooms], g.people[0].Account, "member0")
		}}, err
}

// weigh fills a side and says how much memory its process holds before and once the connections are idle. Whose they are
// has been there before: the memory of open tenants is no connection's.
func (b *bench) weigh(ctx context.Context, s *side, conns int) (before, after int64, err error) {
	if s.warm != nil {
		if err := s.warm(ctx, conns); err != nil {
			return 0, 0, err
		}
	}
	pause(lookEvery)
	before = lab.Resident(s.server.PID())
	if err := s.fill(ctx, conns); err != nil {
		return 0, 0, err
	}
	pause(b.idle)
	return before, lab.Resident(s.server.PID()), s.failure()
}

// deliveries compares the server with the bare hub: memory of idle connections, then deliveries.
func (b *bench) deliveries(ctx context.Context) (err error) {
	server, err := b.serverSide()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.server.Stop()) }()
	defer server.close()
	bare, err := b.hubSide()
	if err != nil {
		return err
	}
	defer bare.server.Kill()
	defer bare.close()
	t := table{lab.Table{Out: b.out}}
	t.Head(fmt.Sprintf("%d idle connections in rooms of %d", b.conns, roomSize), "process", "resident before", "then", "for a connection")
	var each [2]int64
	for i, s := range []*side{server, bare} {
		before, after, err := b.weigh(ctx, s, b.conns)
		if err != nil {
			return err
		}
		each[i] = (after - before) / int64(b.conns)
		t.Row(s.name, lab.MiB(before), lab.MiB(after), fmt.Sprintf("%.1f KiB", float64(each[i])/1024))
	}
	t.Row("the server more than the hub", "", "", fmt.Sprintf("%.1f KiB", float64(each[0]-each[1])/1024))
	t.Head("Deliveries, the server against the hub", "who speaks", "a second, ratio", "lowest", "highest", "server", "hub", "processor for one, server", "hub")
	for _, speakers := range []int32{1, roomSize} {
		var got [2][]pace
		for i := range b.rounds {
			order := []int{0, 1}
			if i%2 == 1 {
				order = []int{1, 0}
			}
			for _, k := range order {
				p, err := []*side{server, bare}[k].talk(b.round, speakers)
				if err != nil {
					return err
				}
				got[k] = append(got[k], p)
			}
		}
		var ratios, a, z []float64
		var costs [2][]time.Duration
		for i := range got[0] {
			ratios = append(ratios, got[0][i].perSecond/got[1][i].perSecond)
			a, z = append(a, got[0][i].perSecond), append(z, got[1][i].perSecond)
			costs[0], costs[1] = append(costs[0], got[0][i].cost), append(costs[1], got[1][i].cost)
		}
		t.ratios(map[int32]string{1: "one of ten", roomSize: "all in turn"}[speakers], ratios, fmt.Sprintf("%.0f", middle(a)), fmt.Sprintf("%.0f", middle(z)),
			lab.Quantile(costs[0], 0.5).Round(100*time.Nanosecond), lab.Quantile(costs[1], 0.5).Round(100*time.Nanosecond))
	}
	t.Head("After all that", "process", "resident")
	for _, s := range []*side{server, bare} {
		t.Row(s.name, lab.MiB(lab.Resident(s.server.PID())))
	}
	return nil
}

// crowded looks at the memory of a server with very many idle connections.
func (b *bench) crowded(ctx context.Context) (err error) {
	s, err := b.serverSide()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.server.Stop()) }()
	defer s.close()
	begun := time.Now()
	before, after, err := b.weigh(ctx, s, b.crowd)
	if err != nil {
		return err
	}
	took := time.Since(begun) - b.idle
	c := lab.Dial(s.server.URL, 1)
	defer c.Close()
	t := table{lab.Table{Out: b.out}}
	t.Head(fmt.Sprintf("%d idle connections in rooms of %d", b.crowd, roomSize), "what", "figure")
	t.Row("resident before, then", lab.MiB(before)+", "+lab.MiB(after))
	open, err := metric(ctx, c, "memoryd_tenants_open")
	if err != nil {
		return err
	}
	t.Row("tenants open then, whose memory was there before", open)
	t.Row("for a connection", fmt.Sprintf("%.1f KiB", float64(after-before)/float64(b.crowd)/1024))
	for _, m := range []struct{ what, name string }{{"heap in use", "go_memstats_heap_inuse_bytes"}, {"stacks", "go_memstats_stack_inuse_bytes"}} {
		n, err := metric(ctx, c, m.name)
		if err != nil {
			return err
		}
		t.Row(m.what, lab.MiB(int64(n)))
	}
	used := lab.Processor(s.server.PID())
	pause(b.round)
	t.Row("processor that they take, of one core", fmt.Sprintf("%.1f %%", 100*(lab.Processor(s.server.PID())-used).Seconds()/b.round.Seconds()))
	t.Row("opened and joined", fmt.Sprintf("%.0f a second", float64(b.crowd)/took.Seconds()))
	return s.failure()
}
