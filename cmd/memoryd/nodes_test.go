package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	natsserver "github.com/nats-io/nats-server/v2/server"

	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/claude/emulator"
	"claude-memory-backend/internal/natsbus/natstest"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/pgtest/toxic"
)

// several is an installation of several nodes: real processes over one PostgreSQL, that hear one another over a real NATS
// through links which the test can break.
type several struct {
	t       *testing.T
	ctx     context.Context
	model   *lab.Model
	links   []*toxic.Link // of each node to NATS
	servers []*lab.Server
	clients []*lab.Client // of one account, at each node
}

// saga is what the model says to whoever asks for one: long enough to be followed, with characters of every length.
var saga = emulator.Script{User: "saga", Times: -1, Text: strings.ReplaceAll(numbered(300), "7 ", "🙂é "), PieceDelay: 10 * time.Millisecond}

// ballad is long enough to be there still when a busy machine has come to it.
var ballad = emulator.Script{User: "ballad", Times: -1, Text: numbered(1000), PieceDelay: 10 * time.Millisecond}

// epic is longer than any test.
var epic = emulator.Script{User: "epic", Times: -1, Text: numbered(20_000), PieceDelay: 10 * time.Millisecond}

func startSeveral(t *testing.T, nodes int, env ...string) *several {
	t.Helper()
	model, err := lab.NewModel(emulator.Options{Limits: emulator.NoLimits()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(model.Close)
	model.Push(saga)
	model.Push(ballad)
	model.Push(epic)
	nats := natstest.Start(t, &natsserver.Options{Username: "memoryd", Password: "an open sesame"})
	s := &several{t: t, ctx: t.Context(), model: model}
	shared := slices.Concat([]string{"MASTER_DATABASE_URL=" + pgtest.URL(t), "TENANT_DATABASE_URLS=" + pgtest.URL(t),
		"MASTER_KEY=Vt3Nw8Qz1Xc6Rb9Mj4Lk7Hp2Dg5Sy0Fa", "JWT_SECRET=8Jq2vWm4Zx7Lr1Tn9Yb3Hd6Kf5Gs0Pcx"}, model.Env(), env)
	for range nodes {
		address, link := toxic.Slow(t, nats.URL, 0)
		dir := t.TempDir()
		started, err := lab.Start(binary(t), dir, append(slices.Clone(shared), "NATS_URL="+address, "STORAGE_PATH="+filepath.Join(dir, "storage"))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(started.Kill)
		s.links, s.servers = append(s.links, link), append(s.servers, started)
		s.clients = append(s.clients, lab.Dial(started.URL, 16))
	}
	t.Cleanup(func() {
		for i, srv := range s.servers {
			if log := srv.Log(); t.Failed() || strings.Contains(log, "sesame") {
				t.Logf("log of node %d:\n%s", i, log)
			}
			if strings.Contains(srv.Log(), "sesame") {
				t.Error("a log shows credentials")
			}
		}
	})
	if err := s.clients[0].Register(s.ctx, "ada@example.org"); err != nil {
		t.Fatal(err)
	}
	for i, c := range s.clients {
		c.Token = s.clients[0].Token
		s.untilJoined(i)
	}
	return s
}

// bus is what the detailed health of a node says of the bus.
func (s *several) bus(node int) (status, code string, joined bool, reconnects int) {
	s.t.Helper()
	var health struct {
		Checks []struct {
			Name, Status, Code string
			Facts              struct {
				Kind       string
				Joined     bool
				Reconnects int
			}
		}
	}
	if err := s.clients[node].Get(s.ctx, "/health/detailed", &health); err != nil {
		s.t.Fatal(err)
	}
	for _, c := range health.Checks {
		if c.Name == "bus" {
			if c.Facts.Kind != "nats" {
				s.t.Fatalf("the bus is %s", c.Facts.Kind)
			}
			return c.Status, c.Code, c.Facts.Joined, c.Facts.Reconnects
		}
	}
	s.t.Fatal("no check of the bus")
	return
}

func (s *several) untilJoined(node int) {
	s.t.Helper()
	s.until("the node has joined", func() bool { _, _, joined, _ := s.bus(node); return joined })
}

func (s *several) until(what string, ready func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(time.Minute); !ready(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("it never came to pass: %s", what)
		}
	}
}

// ask starts a turn on a node and returns the path of the turn.
func (s *several) ask(node int, question string) string {
	s.t.Helper()
	conv, err := s.clients[node].NewConversation(s.ctx, "x")
	if err != nil {
		s.t.Fatal(err)
	}
	var x lab.Exchange
	a := s.clients[node].Do(s.ctx, http.MethodPost, "/conversations/"+conv.ID+"/messages", map[string]any{"content": question}, "Prefer", "respond-async")
	if err := a.Into(&x, http.StatusAccepted); err != nil {
		s.t.Fatal(err)
	}
	return "/conversations/" + conv.ID + "/turns/" + x.Turn.ID
}

// answered is a turn as a node shows it.
type answered struct {
	lab.Turn
	Assistant lab.Message `json:"assistant_message"`
}

func (s *several) look(node int, turn string) (a answered) {
	s.t.Helper()
	if err := s.clients[node].Get(s.ctx, turn, &a); err != nil {
		s.t.Fatal(err)
	}
	return a
}

// reader follows one turn, over as many connections as it likes, and holds what it was told against what it may be told.
type reader struct {
	s      *several
	turn   string
	lastID string
	text   string
	units  int
	begun  int // how often it was told of the start
	waited int // and that the answer comes later
	final  lab.Message
	end    string // the last event
	ending lab.Turn
}

func (s *several) reader(turn string) *reader { return &reader{s: s, turn: turn} }

var errTwisted = errors.New("not what follows")

// follow reads at a node until more says no, the turn ends, or the node ends the stream.
func (r *reader) follow(node int, more func(lab.Event) bool) error {
	var headers []string
	if r.lastID != "" {
		headers = []string{"Last-Event-ID", r.lastID}
	}
	var wrong error
	_, err := r.s.clients[node].Stream(r.s.ctx, http.MethodGet, r.turn+"/events", nil, func(e lab.Event) bool {
		if wrong = r.take(e); wrong != nil {
			return false
		}
		return r.end == "" && (more == nil || more(e))
	}, headers...)
	return errors.Join(wrong, err)
}

// take checks one event.
func (r *reader) take(e lab.Event) error {
	var data struct {
		Offset  int
		Text    string
		Message lab.Message
		Turn    lab.Turn
	}
	if err := json.Unmarshal(e.Data, &data); err != nil {
		return err
	}
	switch {
	case e.Type == "ping":
		return nil
	case e.Type == "turn.started":
		if r.begun++; r.begun > 1 || r.text != "" {
			return fmt.Errorf("%w: a second start", errTwisted)
		}
	case e.Type == "message.delta":
		if data.Offset != r.units {
			return fmt.Errorf("%w: a piece at %d, after %d", errTwisted, data.Offset, r.units)
		}
		r.text += data.Text
		r.units += len(utf16.Encode([]rune(data.Text)))
	case e.Type == "message.completed":
		if r.final = data.Message; r.final.ID == "" {
			return fmt.Errorf("%w: no message", errTwisted)
		}
	case e.Type == "turn.waiting":
		r.waited++
	case strings.HasPrefix(e.Type, "turn."):
		r.end, r.ending = e.Type, data.Turn
	default:
		return fmt.Errorf("%w: %s", errTwisted, e.Type)
	}
	r.lastID = e.ID
	return nil
}

// toEnd reads at a node to the end.
func (r *reader) toEnd(node int) {
	r.s.t.Helper()
	if r.end != "" {
		return
	}
	if err := r.follow(node, nil); err != nil || r.end == "" {
		r.s.t.Fatalf("after %d units: %v", r.units, err)
	}
}

// exactly checks the whole transcript.
func (r *reader) exactly(end, text string) {
	r.s.t.Helper()
	if r.begun != 1 || r.end != end || r.text != text || r.final.Content != text {
		r.s.t.Errorf("%d starts, %s, %d bytes told and %d at last of %d", r.begun, r.end, len(r.text), len(r.final.Content), len(text))
	}
}

// hasText is for those who want some of it.
func (r *reader) hasText(units int) func(lab.Event) bool {
	return func(lab.Event) bool { return r.units < units }
}

// A client follows an answer on any node, wherever it is written, comes late, leaves and comes back elsewhere as it likes,
// and stops it from any.
func TestNodesAreOne(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := startSeveral(t, 3)
	t.Run("two hundred disconnects lose nothing and repeat nothing", func(t *testing.T) {
		turn := s.ask(0, "Tell me a saga")
		cuts := make([]int, 4)
		done := make(chan error, len(cuts))
		for i := range cuts {
			go func() {
				dice := rand.New(rand.NewPCG(4, uint64(i)))
				var err error
				for cuts[i] < 50 && err == nil { // who is at the end before that reads it all again
					r := s.reader(turn)
					for err == nil && r.end == "" {
						left := 1 + dice.IntN(3)
						err = r.follow(dice.IntN(3), func(lab.Event) bool { left--; return left > 0 })
						cuts[i]++
					}
					if err == nil && (r.begun != 1 || r.text != saga.Text || r.final.Content != saga.Text || r.end != "turn.completed") {
						err = fmt.Errorf("%w: %d starts, %s, %d bytes of %d", errTwisted, r.begun, r.end, len(r.text), len(saga.Text))
					}
				}
				done <- err
			}()
		}
		for range cuts {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		t.Logf("%d disconnects", cuts)
	})
	t.Run("a turn is stopped from any node", func(t *testing.T) {
		// Who asks waits two seconds for the owner to hear of it. A busy machine may stand still for so long, but not again and again.
		stalls := 0
		for i := 0; i < 6; i++ {
			owner, other := i%3, (i+1+i/3)%3
			turn := s.ask(owner, "Tell me an epic")
			r := s.reader(turn)
			if err := r.follow(other, r.hasText(50)); err != nil {
				t.Fatal(err)
			}
			var stopped lab.Turn
			begun := time.Now()
			if err := s.clients[other].Do(s.ctx, http.MethodPost, turn+"/stop", nil).Into(&stopped, http.StatusOK); err != nil {
				t.Fatal(err)
			}
			took := time.Since(begun)
			if stopped.Error != nil && stopped.Error.Code == "stopped_elsewhere" && took > 2*time.Second && stalls < 2 {
				stalls++
				i--
				continue
			}
			// An error would say that the owner had not heard of it.
			a := s.look(3-owner-other, turn)
			if stopped.State != "stopped" || stopped.Error != nil || a.State != "stopped" || a.Error != nil || !strings.HasPrefix(epic.Text, a.Assistant.Content) ||
				len(a.Assistant.Content) < r.units {
				t.Errorf("%+v, %+v, of %d units told", stopped, a, r.units)
			}
			r.toEnd(owner)
			r.exactly("turn.stopped", a.Assistant.Content)
			t.Logf("stopped in %v", took)
		}
	})
	t.Run("who is removed on one node is out of the rooms on another", s.removedElsewhere)
}

// Who writes an answer dies.
func TestDeadNode(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := startSeveral(t, 3)
	turn := s.ask(0, "Tell me an epic")
	own, other := s.reader(turn), s.reader(turn)
	if err := own.follow(0, own.hasText(400)); err != nil {
		t.Fatal(err)
	}
	if err := other.follow(1, other.hasText(400)); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	s.servers[0].Kill()
	other.toEnd(1)
	t.Logf("the end was told %v after the kill", time.Since(killed).Round(time.Millisecond))
	own.toEnd(2)
	for _, r := range []*reader{own, other} {
		// What was told and not stored is lost with the node; the stored message is the truth.
		kept := r.final.Content
		if r.end != "turn.interrupted" || r.ending.Error == nil || r.ending.Error.Code != "owner_gone" || r.begun != 1 ||
			!strings.HasPrefix(epic.Text, kept) || len(kept) == 0 || !strings.HasPrefix(epic.Text, r.text) || len(kept) > len(r.text) {
			t.Errorf("%s %+v, %d bytes told and %d kept", r.end, r.ending, len(r.text), len(kept))
		}
	}
	if a := s.clients[2].Do(s.ctx, http.MethodPost, turn+"/retry", map[string]any{}, "Prefer", "respond-async"); a.Status != http.StatusAccepted {
		t.Errorf("the answer cannot be had elsewhere: %d %s", a.Status, a.Body)
	}
}

// A node that NATS cannot reach serves on, and late.
func TestNodeWithoutItsLink(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := startSeveral(t, 3)
	turn := s.ask(0, "Tell me a saga")
	far, near := s.reader(turn), s.reader(turn)
	for node, r := range []*reader{1: far, 2: near} {
		if r != nil {
			if err := r.follow(node, r.hasText(100)); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.links[1].Cut()
	s.until("the cut is noticed", func() bool {
		status, code, joined, _ := s.bus(1)
		return status == "failing" && code == "bus_unreachable" && !joined
	})
	if err := far.follow(1, far.hasText(1000)); err != nil {
		t.Fatal(err)
	}
	s.links[1].Restore()
	far.toEnd(1)
	near.toEnd(2)
	far.exactly("turn.completed", saga.Text)
	near.exactly("turn.completed", saga.Text)
	s.untilJoined(1)
	if status, _, _, reconnects := s.bus(1); status != "ok" || reconnects != 1 {
		t.Errorf("%s, %d reconnects", status, reconnects)
	}
	a := s.clients[1].Do(s.ctx, http.MethodGet, "/health/metrics", nil)
	for _, want := range []string{"memoryd_bus_joined 1", "memoryd_bus_reconnects_total 1", "memoryd_bus_received_total ", "memoryd_bus_dropped_total "} {
		if !strings.Contains(string(a.Body), want) {
			t.Errorf("the metrics have no %s", want)
		}
	}

	// Who writes the answer cannot be heard: its readers elsewhere get it from the database, and it is stopped there.
	turn = s.ask(0, "Tell me an epic")
	r := s.reader(turn)
	if err := r.follow(2, r.hasText(100)); err != nil {
		t.Fatal(err)
	}
	s.links[0].Cut()
	s.until("the cut is noticed", func() bool { _, _, joined, _ := s.bus(0); return !joined })
	if err := r.follow(2, r.hasText(r.units+300)); err != nil {
		t.Fatal(err)
	}
	var stopped lab.Turn
	if err := s.clients[2].Do(s.ctx, http.MethodPost, turn+"/stop", nil).Into(&stopped, http.StatusOK); err != nil {
		t.Fatal(err)
	}
	if stopped.State != "stopped" || stopped.Error == nil || stopped.Error.Code != "stopped_elsewhere" {
		t.Errorf("%+v %+v", stopped, stopped.Error)
	}
	// Its owner finds that, and adds its last word.
	s.until("the owner has stopped", func() bool { a := s.look(2, turn); return a.Error == nil && a.State == "stopped" })
	r.toEnd(2)
	if a := s.look(1, turn); r.end != "turn.stopped" || !strings.HasPrefix(epic.Text, a.Assistant.Content) || !strings.HasPrefix(a.Assistant.Content, r.text) {
		t.Errorf("%s, %d bytes told of %d", r.end, len(r.text), len(a.Assistant.Content))
	}
}

// A node that is stopped in order hands its readers over, ends its turns or says that it did not, and is not asked again.
func TestNodeStopsInOrder(t *testing.T) {
	t.Parallel() // it waits more than it works
	for name, c := range map[string]struct{ question, patience, end, code string }{
		"its answer ends in time":   {"Tell me a ballad", "60", "turn.completed", ""},
		"its answer takes too long": {"Tell me an epic", "10", "turn.interrupted", "server_stopped"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSeveral(t, 2, "SHUTDOWN_TIMEOUT="+c.patience)
			guest := s.reader(s.ask(1, "Tell me an epic"))
			handed := make(chan error, 1)
			going := make(chan struct{})
			told := false
			go func() {
				handed <- guest.follow(0, func(lab.Event) bool {
					if !told && guest.units > 50 {
						told = true
						close(going)
					}
					return true
				})
			}()
			<-going
			here := s.ask(0, c.question)
			own, other := s.reader(here), s.reader(here)
			for node, r := range []*reader{own, other} {
				if err := r.follow(node, r.hasText(50)); err != nil {
					t.Fatal(err)
				}
			}
			stopped := make(chan error, 1)
			go func() { stopped <- s.servers[0].Stop() }()
			// Who reads there of a turn that runs elsewhere is sent away at once, and goes on there.
			if err := <-handed; err != nil || guest.end != "" {
				t.Errorf("%v, %q", err, guest.end)
			}
			a := s.clients[0].Do(s.ctx, http.MethodGet, "/health/readiness", nil)
			if a.Status != http.StatusServiceUnavailable {
				t.Errorf("readiness says %d, %v", a.Status, a.Err)
			}
			b := s.clients[0].Do(s.ctx, http.MethodPost, strings.Split(here, "/turns")[0]+"/messages", map[string]any{"content": "More"})
			if b.Status != http.StatusServiceUnavailable {
				t.Errorf("a stopping server takes turns: %d %s, %v", b.Status, b.Body, b.Err)
			}
			own.toEnd(0) // it still runs there
			other.toEnd(1)
			if err := <-stopped; err != nil {
				t.Error(err)
			}
			for _, r := range []*reader{own, other} {
				code := ""
				if r.ending.Error != nil {
					code = r.ending.Error.Code
				}
				text := r.final.Content
				if c.end == "turn.completed" {
					text = ballad.Text
				}
				if r.exactly(c.end, text); code != c.code || !strings.HasPrefix(epic.Text, text) && c.code != "" {
					t.Errorf("%s, %d bytes", code, len(text))
				}
			}
			if err := guest.follow(1, guest.hasText(guest.units+100)); err != nil || guest.begun != 1 {
				t.Errorf("%v, %d starts", err, guest.begun)
			}
		})
	}
}
