package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"claude-memory-backend/bench/fleet"
	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/claude/emulator"
)

const (
	roomReaders  = 50 // who read in a room, and as many stall
	roomsOfGroup = 5  // ten accounts with five of both in each room: as many connections as they may have
)

// loudRooms is how many rooms there are with so many readers.
func loudRooms(readers int) int { return max(1, readers/roomReaders) }

// loudRoom is a room in which answers are written.
type loudRoom struct {
	id     string
	people []fleet.Member
	answer atomic.Pointer[stamped] // that is being written
}

// reader reads what is said in a room.
type reader struct {
	*socket
	room *loudRoom
	on   *stamped
	seen int // pieces of it

	mu     sync.Mutex
	delays []time.Duration
}

// staller is in a room and reads nothing.
type staller struct {
	*socket
	waits        int64 // bytes that the server's side holds for it
	filled, gone time.Time
	code         int
}

// ownBuffer is how much the client's side of those that stall takes, in bytes. Linux lets what is not bounded grow to
// megabytes, and nobody can be said to stall before it is full.
const ownBuffer = 32 << 10

func stalling(s *socket) *staller {
	if c, ok := s.Conn.(*net.TCPConn); ok {
		_ = c.SetReadBuffer(ownBuffer) // what it takes shows in the report: those that are never full are not taken out
	}
	return &staller{socket: s}
}

// stage is a server with readers.
type stage struct {
	b         *bench
	server    *lab.Server
	client    *lab.Client
	rooms     []*loudRoom
	readers   []*reader
	measuring atomic.Bool
	ended     chan error // a reader has heard of the end of an answer, or lost its connection
	closing   atomic.Bool
	listening sync.WaitGroup
	window    time.Duration // how long the last round with stallers was
	rounds    int           // so far
}

// scene is what was seen in a round.
type scene struct {
	median, tail time.Duration
	deliveries   int
	resident     int64           // at most
	left         []time.Duration // from a full buffer until the server counted the connection as ended
	cut          []time.Duration // until the connection was no more
	codes        [2]map[int]int  // of those that read on at once, and of those that do when the connection is no more
}

// stalled lets readers hear answers with and without others beside them that read nothing.
func (b *bench) stalled(ctx context.Context) (err error) {
	server, err := b.site.serve()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, server.Log())
		}
		err = errors.Join(err, server.Stop())
	}()
	s := &stage{b: b, server: server, client: lab.Dial(server.URL, 64), ended: make(chan error, 4*b.readers)} // failures, too, find room
	defer s.client.Close()
	for i := range loudRooms(b.readers) {
		g := b.site.groups[i/roomsOfGroup]
		s.rooms = append(s.rooms, &loudRoom{id: g.rooms[i%roomsOfGroup], people: g.people})
	}
	b.site.model.Push(emulator.Script{Times: -1, PieceDelay: b.pace,
		Text: strings.Repeat(character, int(b.answer/b.pace)*pieceRunes)})
	before := lab.Resident(server.PID())
	s.readers = make([]*reader, b.readers)
	err = s.seat(ctx, func(i int, c *socket, r *loudRoom) { s.readers[i] = &reader{socket: c, room: r} })
	if err != nil {
		return err
	}
	for _, r := range s.readers {
		s.listening.Go(func() {
			code := r.listen(func(p []byte) { s.hear(r, p) })
			if !s.closing.Load() {
				s.ended <- fmt.Errorf("somebody who reads lost the connection, code %d", code)
			}
		})
	}
	defer func() {
		s.closing.Store(true)
		for _, r := range s.readers {
			_ = r.Close()
		}
		s.listening.Wait()
	}()
	if _, err := s.play(ctx, false); err != nil { // what a process needs once
		return err
	}
	var quiet, loud []scene
	for i := range b.rounds {
		for _, stall := range []bool{i%2 == 0, i%2 != 0} {
			sc, err := s.play(ctx, stall)
			if err != nil {
				return err
			}
			if stall {
				loud = append(loud, sc)
			} else {
				quiet = append(quiet, sc)
			}
		}
	}
	s.report(before, quiet, loud)
	return nil
}

// seat opens as many sockets as there are readers.
func (s *stage) seat(ctx context.Context, take func(i int, c *socket, r *loudRoom)) error {
	var opening errgroup.Group
	opening.SetLimit(32)
	for i := range s.b.readers {
		opening.Go(func() error {
			r := s.rooms[i%len(s.rooms)]
			who := r.people[i/len(s.rooms)%roomSize]
			c, err := join(ctx, s.server.URL, "/ws?token="+who.Token, joining(r.id), i)
			if err == nil {
				take(i, c, r)
			}
			return err
		})
	}
	return opening.Wait()
}

func joining(room string) string { return `{"type":"join_room","data":{"room_id":"` + room + `"}}` }

// hear notes when a reader has a piece. The text is the frame's last field, and has nothing that JSON escapes.
func (s *stage) hear(r *reader, p []byte) {
	const offset, text, end = `"offset":`, `"text":"`, `"}}`
	switch {
	case bytes.HasPrefix(p, []byte(`{"type":"message.delta"`)):
		now := time.Now()
		_, rest, _ := bytes.Cut(p, []byte(offset))
		number, rest, _ := bytes.Cut(rest, []byte(","))
		n, err := strconv.Atoi(string(number))
		if err != nil {
			s.ended <- fmt.Errorf("a piece without an offset: %w", err)
			return
		}
		if a := r.room.answer.Load(); r.on != a {
			r.on, r.seen = a, 0
		}
		delays := r.on.delays(&r.seen, n*bytesOfUnit+len(rest)-len(text)-len(end), now)
		if s.measuring.Load() {
			r.mu.Lock()
			r.delays = append(r.delays, delays...)
			r.mu.Unlock()
		}
	case bytes.HasPrefix(p, []byte(`{"type":"event"`)) && bytes.Contains(p, []byte(`"turn.completed"`)):
		s.ended <- nil
	case bytes.HasPrefix(p, []byte(`{"type":"event"`)) && bytes.Contains(p, []byte(`"turn.failed"`)):
		s.ended <- fmt.Errorf("an answer failed: %s", p)
	}
}

// play is one round: an answer in every room, with or without others who do not read. With them, delays count until the
// last of them is gone: for as long as they can cost anybody anything.
func (s *stage) play(ctx context.Context, stall bool) (sc scene, err error) {
	n := s.rounds
	s.rounds++
	var stallers []*staller
	defer func() {
		for _, st := range stallers {
			if st != nil {
				_ = st.Close() // the server has done so already
			}
		}
	}()
	if stall {
		stallers = make([]*staller, s.b.readers)
		if err := s.seat(ctx, func(i int, c *socket, _ *loudRoom) { stallers[i] = stalling(c) }); err != nil {
			return sc, err
		}
	}
	for i, r := range s.rooms {
		r.answer.Store(s.b.site.pieces.answer(question(n, i)))
	}
	s.measuring.Store(true)
	begun := time.Now()
	watch, err := s.watch(ctx, stallers)
	if err != nil {
		return sc, err
	}
	var asking errgroup.Group
	for i, r := range s.rooms {
		asking.Go(func() error {
			c := *s.client
			c.Token = r.people[0].Token
			return c.Do(ctx, http.MethodPost, "/conversations/"+r.id+"/messages", map[string]string{"content": question(n, i)},
				"Prefer", "respond-async").Into(nil, http.StatusAccepted, http.StatusCreated)
		})
	}
	if err := asking.Wait(); err != nil {
		return sc, errors.Join(err, watch.stop())
	}
	var over <-chan time.Time // when delays count no more
	if !stall && s.window > 0 {
		over = time.After(s.window)
	}
	var waking sync.WaitGroup
	wake := func(first int) { // every other one of those that stalled reads on
		s.measuring.Store(false)
		for i := first; i < len(stallers); i += 2 {
			st := stallers[i]
			waking.Go(func() {
				_ = st.SetReadDeadline(time.Now().Add(patience))
				st.code = st.listen(func([]byte) {})
			})
		}
	}
	gone := watch.gone
	late := time.After(s.b.answer + 2*patience)
	for left := len(s.readers); left > 0; {
		select {
		case err = <-s.ended:
			left--
		case <-gone:
			gone, s.window = nil, time.Since(begun)
			wake(0)
		case <-over:
			s.measuring.Store(false)
		case <-late:
			err = errors.New("answers did not end")
		}
		if err != nil {
			return sc, errors.Join(err, watch.stop())
		}
	}
	if stall {
		pause(linger)
	}
	if err := watch.stop(); err != nil {
		return sc, err
	}
	if stall && gone != nil {
		s.window = time.Since(begun)
		wake(0)
	}
	wake(1)
	waking.Wait()
	var delays []time.Duration
	for _, r := range s.readers {
		r.mu.Lock()
		delays, r.delays = append(delays, r.delays...), nil
		r.mu.Unlock()
	}
	sc = scene{median: lab.Quantile(delays, 0.5), tail: lab.Quantile(delays, 0.99), deliveries: len(delays), resident: watch.resident, codes: [2]map[int]int{{}, {}}}
	sc.left, sc.cut = watch.times()
	for i, st := range stallers {
		sc.codes[i%2][st.code]++
	}
	return sc, nil
}

// question asks for an answer whose pieces are known by this name.
func question(n, room int) string { return fmt.Sprintf("answer-%d-%d.", n, room) }

// watcher looks at the server from outside while a round goes on.
type watcher struct {
	stallers []*staller
	gone     chan struct{} // closed when the server has counted all of them as ended
	resident int64
	drops    []time.Time // when it had counted the first, the second, and so on
	end      chan struct{}
	done     chan error
}

const (
	linger      = 3 * time.Second // longer than the server waits for somebody who was too slow
	lookEvery   = 200 * time.Millisecond
	slowReaders = `memoryd_ws_closed_total{code="4508"}`
)

func (s *stage) watch(ctx context.Context, stallers []*staller) (*watcher, error) {
	w := &watcher{stallers: stallers, gone: make(chan struct{}), end: make(chan struct{}), done: make(chan error, 1)}
	before, err := metric(ctx, s.client, slowReaders)
	if err != nil {
		return nil, err
	}
	at := map[string]*staller{}
	for _, st := range stallers {
		at[inTable(st.LocalAddr())] = st
	}
	_, port, _ := strings.Cut(strings.TrimPrefix(s.server.URL, "http://"), ":")
	number, err := strconv.Atoi(port)
	if err != nil {
		return nil, err
	}
	go func() {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case <-w.end:
				w.done <- nil
				return
			case <-tick.C:
			}
			w.resident = max(w.resident, lab.Resident(s.server.PID()))
			n, err := metric(ctx, s.client, slowReaders)
			if err != nil {
				w.done <- err
				return
			}
			for now := time.Now(); len(w.drops) < int(n-before); {
				w.drops = append(w.drops, now)
				if len(w.drops) == len(stallers) {
					close(w.gone)
				}
			}
			look(at, number)
		}
	}()
	return w, nil
}

func (w *watcher) stop() error {
	close(w.end)
	return <-w.done
}

// inTable is an address as the kernel's table of connections writes it.
func inTable(a net.Addr) string {
	t, ok := a.(*net.TCPAddr)
	if !ok || t.IP.To4() == nil {
		return ""
	}
	return fmt.Sprintf("%08X:%04X", binary.NativeEndian.Uint32(t.IP.To4()), t.Port)
}

// look reads what the server's side of connections holds, and which of them are no more, from the kernel's table.
func look(at map[string]*staller, port int) {
	raw, _ := os.ReadFile("/proc/net/tcp") // nothing where there is no such thing
	now, suffix := time.Now(), []byte(fmt.Sprintf(":%04X ", port))
	there := make(map[*staller]bool, len(at))
	for line := range bytes.Lines(raw) {
		if i := bytes.Index(line, suffix); i < 0 || i > 20 { // the first address is the own one
			continue
		}
		f := strings.Fields(string(line))
		if len(f) < 5 || at[f[2]] == nil || f[3] != "01" { // 01: established
			continue
		}
		st := at[f[2]]
		there[st] = true
		waits, _, _ := strings.Cut(f[4], ":")
		// What comes when it was full for a second is the goodbye, for which the server makes room.
		if n, err := strconv.ParseInt(waits, 16, 64); err == nil && n > st.waits && (st.filled.IsZero() || now.Sub(st.filled) < time.Second) {
			st.waits, st.filled = n, now
		}
	}
	for _, st := range at {
		if !there[st] && st.gone.IsZero() {
			st.gone = now
		}
	}
}

// times are how long it took from a full buffer until the server counted a connection as ended, and until there was none,
// for those that never read.
// The server's count names nobody: the first that was full is taken for the first that was counted, and so on.
func (w *watcher) times() (left, cut []time.Duration) {
	var filled []time.Time
	for i, st := range w.stallers {
		if st.filled.IsZero() {
			continue
		}
		filled = append(filled, st.filled)
		if i%2 == 1 && !st.gone.IsZero() {
			cut = append(cut, st.gone.Sub(st.filled))
		}
	}
	slices.SortFunc(filled, time.Time.Compare)
	for i, at := range w.drops {
		if i < len(filled) {
			left = append(left, at.Sub(filled[i]))
		}
	}
	return left, cut
}

func (s *stage) report(before int64, quiet, loud []scene) {
	t := table{lab.Table{Out: s.b.out}}
	n := s.b.readers
	t.Head(fmt.Sprintf("%d that stall beside %d that read, in %d rooms", n, n, len(s.rooms)), "what", "ratio", "lowest", "highest", "with", "without")
	t.compare("delay of a piece, median", loud, quiet, func(s scene) time.Duration { return s.median })
	t.compare("delay of a piece, 99 %", loud, quiet, func(s scene) time.Duration { return s.tail })
	var left, cut []time.Duration
	codes := [2]map[int]int{{}, {}}
	var most, mostQuiet int64
	deliveries, dropped := 0, 0
	for i := range loud {
		left, cut = append(left, loud[i].left...), append(cut, loud[i].cut...)
		most, mostQuiet = max(most, loud[i].resident), max(mostQuiet, quiet[i].resident)
		deliveries += loud[i].deliveries + quiet[i].deliveries
		dropped += len(loud[i].left)
		for half := range codes {
			for code, n := range loud[i].codes[half] {
				codes[half][code] += n
			}
		}
	}
	t.Head("The stalled ones", "what", "figure")
	t.Row("deliveries to those that read, that count", deliveries)
	t.Row("server, resident: before; at most without; with", lab.MiB(before)+", "+lab.MiB(mostQuiet)+", "+lab.MiB(most))
	t.Row("taken out by the server", fmt.Sprintf("%d of %d", dropped, n*len(loud)))
	t.Row("from a full buffer until then: median, 99 %, longest", fmt.Sprintf("%v, %v, %v", lab.Short(lab.Quantile(left, 0.5)), lab.Short(lab.Quantile(left, 0.99)), lab.Short(lab.Quantile(left, 1))))
	t.Row("from a full buffer until the connection is no more, if nobody reads: median, 99 %, longest", fmt.Sprintf("%v, %v, %v", lab.Short(lab.Quantile(cut, 0.5)), lab.Short(lab.Quantile(cut, 0.99)), lab.Short(lab.Quantile(cut, 1))))
	for half, who := range []string{"reads on when all are taken out", "reads on when the connection is no more"} {
		for _, code := range slices.Sorted(maps.Keys(codes[half])) {
			t.Row(fmt.Sprintf("close code %d, of the half that %s (0: none)", code, who), codes[half][code])
		}
	}
}
