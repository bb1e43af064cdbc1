package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/claude/emulator"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/sqlstore"
)

// world is a storage that outlives its servers, who writes to it, and the ledger of what they were told.
type world struct {
	t       *testing.T
	ctx     context.Context
	binary  string
	dir     string
	root    string   // through which the server's files are seen; empty: as they are
	under   []string // the command that starts the server; empty: none
	env     []string
	model   *lab.Model
	said    spoken // by the model
	dice    *rand.Rand
	server  *lab.Server
	people  []*writer
	files   int       // how many of them have a file of their own
	started time.Time // of the current server

	mu       sync.Mutex // writers report while they write
	problems []string

	kills, acked, unknown, repeated, marked, texts int
	slowestStart, slowestMark, slowNote            time.Duration

	tails []time.Duration // of each answer that lacks something, how much

	commit time.Duration // the slowest note of this round
}

// writer is one account with its open ends.
type writer struct {
	email  string
	client *lab.Client
	tokens time.Time // when the token was given
	notes  []*note   // all that were ever sent without asking
	open   []*asked  // turns that a kill cut, not looked at yet
}

// note is a message that asks nobody. Its id is what the server acknowledged; empty while that is unknown.
type note struct {
	conv, key, text, id string
}

func (n *note) body() any { return map[string]any{"content": n.text, "reply": false} }

// asked is a question whose answer a kill cuts.
type asked struct {
	note
	turn    string // empty: no turn.started arrived
	answer  string
	seen    string // of the answer, by the client
	pieces  []piece
	killed  time.Time
	commit  time.Duration // the slowest that notes took beside it
	lastID  string
	resumed bool // its first outcome was unknown, and it was sent again
}

// piece notes when the client had how much.
type piece struct {
	at  time.Time
	len int
}

const (
	crashPeople  = 4
	crashWriters = 2 // for each account, besides the one who asks
	tokenLife    = 5 * time.Minute
)

func newWorld(t *testing.T, binary string, seed int, env ...string) *world {
	t.Helper()
	w := emptyWorld(t, binary, seed, env...)
	w.start()
	w.join("writer", crashPeople)
	w.files = crashPeople
	return w
}

// emptyWorld has no server yet.
func emptyWorld(t *testing.T, binary string, seed int, env ...string) *world {
	t.Helper()
	w := &world{t: t, ctx: t.Context(), binary: binary, dir: t.TempDir(), dice: rand.New(rand.NewPCG(uint64(seed), 0))}
	model, err := lab.NewModelAt("127.0.0.1:0", emulator.Options{Limits: emulator.NoLimits()}, w.said.around)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(model.Close)
	w.model = model
	w.env = append(append([]string{"STORAGE_PATH=" + filepath.Join(w.dir, "storage")}, model.Env()...), env...)
	t.Cleanup(func() {
		if w.server != nil {
			w.server.Kill()
		}
	})
	return w
}

// join makes accounts and returns them.
func (w *world) join(name string, n int) (joined []*writer) {
	w.t.Helper()
	for i := range n {
		p := &writer{email: fmt.Sprintf("%s%d@example.org", name, i)}
		w.people, joined = append(w.people, p), append(joined, p)
		p.client = lab.Dial(w.server.URL, crashWriters+2)
		if err := p.client.Register(w.ctx, p.email); err != nil {
			w.t.Fatal(err)
		}
		p.tokens = time.Now()
	}
	return joined
}

func (w *world) start() {
	w.t.Helper()
	var err error
	if w.server, err = lab.StartUnder(w.under, w.binary, w.dir, w.env...); err != nil {
		w.t.Fatal(err)
	}
	w.started = time.Now()
	w.slowestStart = max(w.slowestStart, w.server.Ready)
	for _, p := range w.people {
		p.client.Close()
		p.client.Base = w.server.URL + "/api/v1"
		if time.Since(p.tokens) > tokenLife {
			if err := p.client.Login(w.ctx, p.email); err != nil {
				w.t.Fatal(err)
			}
			p.tokens = time.Now()
		}
	}
}

func (w *world) problem(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problems = append(w.problems, fmt.Sprintf(format, args...))
}

// round loads the server, kills it, starts it again and looks for what was acknowledged.
func (w *world) round() {
	w.t.Helper()
	w.model.Forget()
	w.model.Push(crashLong)
	w.commit = 0
	var load sync.WaitGroup
	fresh := make([][]*note, crashPeople*crashWriters) // of each writer, in this round
	var asks []*asked
	for i, p := range w.people {
		for n := range crashWriters + 1 {
			conv, err := p.client.NewConversation(w.ctx, fmt.Sprintf("round %d, writer %d", w.kills, n))
			if err != nil {
				w.t.Fatal(err)
			}
			key := fmt.Sprintf("%s/%d/%d", p.email, w.kills, n)
			if n == crashWriters {
				q := &asked{note: note{conv: conv.ID, key: key, text: "question " + key}}
				p.open, asks = append(p.open, q), append(asks, q)
				load.Go(func() { w.ask(p, q) })
				continue
			}
			load.Go(func() { fresh[i*crashWriters+n] = w.write(p, conv.ID, key) })
		}
	}
	moment := 50*time.Millisecond + time.Duration(w.dice.IntN(850))*time.Millisecond
	if w.kills == 0 {
		moment = 900 * time.Millisecond // once at least, some of an answer is stored
	}
	time.Sleep(moment) // that is the experiment, and no signal tells it
	killed := time.Now()
	w.server.Kill()
	w.kills++
	load.Wait()
	for _, q := range asks {
		q.killed, q.commit = killed, w.commit
	}
	w.slowNote = max(w.slowNote, w.commit)
	w.model.Forget()
	w.model.Push(crashRest)
	w.integrity()
	w.start()
	for i, p := range w.people {
		for _, notes := range fresh[i*crashWriters : (i+1)*crashWriters] {
			w.repeat(p, notes)
			w.compare(p, notes)
			p.notes = append(p.notes, notes...)
		}
	}
}

// write sends notes one after the other until the server is gone.
func (w *world) write(p *writer, conv, key string) (sent []*note) {
	for i := 0; ; i++ {
		n := &note{conv: conv, key: fmt.Sprintf("%s/%d", key, i), text: fmt.Sprintf("note %s/%d", key, i)}
		sent = append(sent, n)
		if !w.send(p, n) {
			return sent
		}
	}
}

// send sends a note and enters into the ledger what came back. False: nobody knows what became of it.
func (w *world) send(p *writer, n *note) bool {
	var x lab.Exchange
	begun := time.Now()
	a := p.client.Do(w.ctx, http.MethodPost, "/conversations/"+n.conv+"/messages", n.body(), "Idempotency-Key", n.key)
	took := time.Since(begun)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.commit = max(w.commit, took)
	if a.Err != nil || a.Status >= 500 {
		w.unknown++
		return false
	}
	if err := a.Into(&x, http.StatusCreated); err != nil {
		w.problems = append(w.problems, fmt.Sprintf("refused: %s: %v", n.key, err))
		return false
	}
	w.acked++
	n.id = x.User.ID
	return true
}

// ask asks a question and reads its answer until the server is gone.
func (w *world) ask(p *writer, q *asked) {
	_, _ = p.client.Stream(w.ctx, http.MethodPost, "/conversations/"+q.conv+"/messages", // the kill breaks it
		map[string]any{"content": q.text, "stream": true}, func(e lab.Event) bool { w.hear(q, e); return true },
		"Idempotency-Key", q.key)
}

// hear notes an event of a question's stream.
func (w *world) hear(q *asked, e lab.Event) {
	var d struct {
		Turn      lab.Turn    `json:"turn"`
		User      lab.Message `json:"user_message"`
		Assistant lab.Message `json:"assistant_message"`
		Offset    int         `json:"offset"`
		Text      string      `json:"text"`
	}
	if err := json.Unmarshal(e.Data, &d); err != nil {
		w.problem("garbled: event %s of %s: %v", e.Type, q.key, err)
		return
	}
	switch e.Type {
	case "turn.started":
		q.turn, q.id, q.answer, q.lastID = d.Turn.ID, d.User.ID, d.Assistant.ID, e.ID
	case "message.delta":
		if d.Offset != len(q.seen) { // all of it is ASCII
			w.problem("gap: %s: a delta at %d, after %d", q.key, d.Offset, len(q.seen))
		}
		q.seen += d.Text
		q.pieces = append(q.pieces, piece{time.Now(), len(q.seen)})
		q.lastID = e.ID
	}
}

// repeat sends again what nobody knows of, and some of what is known, with the same keys.
func (w *world) repeat(p *writer, notes []*note) {
	for i, n := range notes {
		known := n.id
		if known != "" && i%50 != 0 {
			continue
		}
		w.repeated++
		a := p.client.Do(w.ctx, http.MethodPost, "/conversations/"+n.conv+"/messages", n.body(), "Idempotency-Key", n.key)
		var x lab.Exchange
		if err := a.Into(&x, http.StatusCreated); err != nil {
			w.problem("not repeatable: %s: %v", n.key, err)
			continue
		}
		if known != "" && (x.User.ID != known || a.Header.Get("Idempotency-Replayed") != "true") {
			w.problem("not replayed: %s was %s, the repeat made %s", n.key, known, x.User.ID)
		}
		n.id = x.User.ID
	}
}

// compare reads the conversation of these notes: each is there exactly once, in the order in which they were sent, and
// nothing else is.
func (w *world) compare(p *writer, notes []*note) {
	if len(notes) == 0 {
		return
	}
	stored, err := p.client.Messages(w.ctx, notes[0].conv)
	if err != nil {
		w.problem("unreadable: %s: %v", notes[0].conv, err)
		return
	}
	times, ids := map[string]int{}, map[string]string{}
	for _, m := range stored {
		times[m.Content]++
		ids[m.ID] = m.Content
		if m.State != "completed" {
			w.problem("state: %s is %s", m.ID, m.State)
		}
	}
	for _, n := range notes {
		if n.id != "" && ids[n.id] != n.text { // without an id it could not be repeated, which was said
			w.problem("lost: %s, acknowledged as %s", n.key, n.id)
		}
		if times[n.text] > 1 {
			w.problem("twice: %s is there %d times", n.key, times[n.text])
		}
		delete(times, n.text)
	}
	for text := range times {
		w.problem("strange: %q was never sent there", text)
	}
}

// settle looks at every turn that was cut since the last time: marked, a prefix, little lost, resumable.
func (w *world) settle() {
	for _, p := range w.people {
		for _, q := range p.open {
			w.look(p, q)
		}
		p.open = nil
	}
}

func (w *world) look(p *writer, q *asked) {
	path := "/conversations/" + q.conv
	if q.turn == "" {
		// Nobody knows whether it was stored. Sent again, it is asked once: cut like any other, or answered now.
		status, err := p.client.Stream(w.ctx, http.MethodPost, path+"/messages", map[string]any{"content": q.text, "stream": true},
			func(e lab.Event) bool { w.hear(q, e); return e.Type != "turn.started" }, "Idempotency-Key", q.key)
		if err != nil || q.turn == "" {
			w.problem("not repeatable: %s: status %d: %v", q.key, status, err)
			return
		}
		q.seen, q.pieces, q.resumed = "", nil, true
		w.repeated++
	}
	turn, ok := w.ended(p, q)
	if !ok {
		return
	}
	stored, ok := w.version(p, q, turn.AssistantMessage)
	if !ok {
		return
	}
	if q.resumed && turn.State == "completed" {
		if stored.Content != crashRest.Text {
			w.problem("text: %s was answered with %q", q.key, stored.Content)
		}
		return
	}
	if turn.State != "interrupted" || stored.State != "interrupted" {
		w.problem("unmarked: %s is %s, its message %s", q.key, turn.State, stored.State)
		return
	}
	w.marked++
	if stored.Content != "" {
		w.texts++
	}
	if !strings.HasPrefix(crashLong.Text, stored.Content) || !strings.HasPrefix(crashLong.Text, q.seen) {
		w.problem("text: %s is no beginning of what the model said", q.key)
		return
	}
	w.tail(q, stored.Content)
	w.resume(p, q, stored)
	w.goOn(p, q, stored)
}

// ended waits until the turn is not running any more, which nobody does.
func (w *world) ended(p *writer, q *asked) (turn lab.Turn, ok bool) {
	for waited := false; ; {
		after := time.Since(w.started) // when it was asked for: how long the answer takes says nothing of when the turn is marked
		if err := p.client.Get(w.ctx, "/conversations/"+q.conv+"/turns/"+q.turn, &turn); err != nil {
			w.problem("lost: turn %s of %s, acknowledged: %v", q.turn, q.key, err)
			return turn, false
		}
		if turn.State != "streaming" {
			if !q.resumed && waited {
				w.slowestMark = max(w.slowestMark, after)
			}
			return turn, true
		}
		waited = true
		if after > crashMarked && !q.resumed || after > time.Minute {
			w.problem("unmarked: turn %s of %s still claims to run, %v after the start", q.turn, q.key, after)
			return turn, false
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// version finds a message among all versions, and checks that the question is there once.
func (w *world) version(p *writer, q *asked, id string) (found lab.Message, ok bool) {
	all, err := p.client.Messages(w.ctx, q.conv)
	if err != nil {
		w.problem("unreadable: %s: %v", q.conv, err)
		return found, false
	}
	questions := 0
	for _, m := range all {
		if m.Content == q.text {
			questions++
		}
		if m.ID == id {
			found, ok = m, true
		}
		if m.State == "streaming" {
			w.problem("unmarked: message %s of %s still claims to be written", m.ID, q.key)
		}
	}
	if questions != 1 {
		w.problem("twice: the question %s is there %d times", q.key, questions)
	}
	if !ok {
		w.problem("lost: message %s of %s, acknowledged", id, q.key)
	}
	return found, ok
}

// tail measures how old the first piece was that the client had seen and the storage has not.
func (w *world) tail(q *asked, stored string) {
	for _, p := range q.pieces {
		if p.len <= len(stored) {
			continue
		}
		missing := q.killed.Sub(p.at)
		w.tails = append(w.tails, missing)
		// Where a commit takes longer than a flush may wait, the machine is to blame: notes take as long.
		if missing > max(crashTail, crashFlush+q.commit) {
			w.problem("tail: %s lacks %v of its text beside notes that took %v: the client had %d, stored are %d", q.key, missing, q.commit, len(q.seen), len(stored))
		}
		return
	}
}

// resume follows the interrupted turn from the middle of what is stored: exactly the rest arrives, and the end.
func (w *world) resume(p *writer, q *asked, stored lab.Message) {
	for _, at := range []int{0, len(stored.Content) / 2, len(q.seen)} {
		text, ends := "", []string{}
		_, err := p.client.Stream(w.ctx, http.MethodGet, "/conversations/"+q.conv+"/turns/"+q.turn+"/events", nil,
			func(e lab.Event) bool {
				var d struct{ Text string }
				_ = json.Unmarshal(e.Data, &d) // no text is fine
				if e.Type == "message.delta" {
					text += d.Text
				} else {
					ends = append(ends, e.Type)
				}
				return true
			}, "Last-Event-ID", strconv.Itoa(at))
		want := stored.Content[min(at, len(stored.Content)):]
		if err != nil || text != want || !slices.Equal(ends, []string{"message.completed", "turn.interrupted"}) {
			w.problem("resume: %s from %d: %d characters instead of %d, then %q, %v", q.key, at, len(text), len(want), ends, err)
		}
	}
}

// goOn continues the interrupted answer: a new version that begins with what was stored, and the old one stays.
func (w *world) goOn(p *writer, q *asked, old lab.Message) {
	var x lab.Exchange
	err := p.client.Post(w.ctx, "/conversations/"+q.conv+"/turns/"+q.turn+"/continue", map[string]any{}, &x)
	if err != nil || x.Assistant == nil || x.Turn == nil {
		w.problem("continue: %s: %v", q.key, err)
		return
	}
	if x.Turn.State != "completed" || x.Assistant.ID == old.ID || x.Assistant.Content != old.Content+crashRest.Text {
		w.problem("continue: %s ended as %s with %d characters", q.key, x.Turn.State, len(x.Assistant.Content))
	}
	if again, ok := w.version(p, q, old.ID); ok && (again.Content != old.Content || again.State != "interrupted") {
		w.problem("continue: %s changed the version that it continues", q.key)
	}
}

// finish compares everything once more, and stops the server in order.
func (w *world) finish() {
	for _, p := range w.people {
		byConv := map[string][]*note{}
		for _, n := range p.notes {
			byConv[n.conv] = append(byConv[n.conv], n)
		}
		for _, notes := range byConv {
			w.compare(p, notes)
		}
	}
	if err := w.server.Stop(); err != nil {
		w.problem("stop: %v", err)
	}
	w.integrity()
}

// integrity lets SQLite look over a copy of every file that the killed server left; the copy, because looking would
// mend what the next server must mend itself.
func (w *world) integrity() {
	w.t.Helper()
	storage := filepath.Join(w.root, w.dir, "storage")
	if _, err := os.Stat(filepath.Join(storage, "master.db")); err != nil {
		return // PostgreSQL, which this server cannot break
	}
	dir := filepath.Join(w.t.TempDir(), "storage")
	if err := os.CopyFS(dir, os.DirFS(storage)); err != nil {
		w.t.Fatal(err)
	}
	s, err := loadSettings([]string{"STORAGE_PATH=" + dir}, "")
	if err != nil {
		w.t.Fatal(err)
	}
	in, err := openInstall(w.ctx, s, slog.New(slog.DiscardHandler), event.NewLocalBus(), owner)
	if err != nil {
		w.problem("integrity: %v", err)
		return
	}
	defer in.close() //nolint:errcheck // a copy
	w.sound("master", in.master)
	tenants := 0
	err = filepath.WalkDir(filepath.Join(dir, "tenants"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".db" {
			return err
		}
		tenants++
		id := ident.TenantID(strings.TrimSuffix(d.Name(), ".db"))
		t, err := in.store.FindTenant(w.ctx, id)
		if err != nil {
			return err
		}
		key, err := in.keys.UnwrapKey(string(id), t.Placement.WrappedKey)
		if err != nil {
			return err
		}
		db, err := sqlstore.OpenSQLite(w.ctx, sqlstore.SQLiteOptions{Path: path, Key: &key})
		if err != nil {
			return err
		}
		defer db.Close() // a copy
		w.sound(d.Name(), db)
		return nil
	})
	if err != nil || tenants < w.files {
		w.problem("integrity: %d tenants, %v", tenants, err)
	}
}

func (w *world) sound(name string, db *sqlstore.DB) {
	var verdict []string
	err := db.Read(w.ctx, func(b *sqlstore.Batch) {
		b.Query(func(s sqlstore.Scanner) error {
			var line string
			err := s.Scan(&line)
			verdict = append(verdict, line)
			return err
		}, `PRAGMA integrity_check`)
	})
	if err != nil || !slices.Equal(verdict, []string{"ok"}) {
		w.problem("integrity: %s: %q, %v", name, verdict, err)
	}
}

func (w *world) summary() string {
	slices.Sort(w.tails)
	tail := func(share float64) time.Duration {
		if len(w.tails) == 0 {
			return 0
		}
		return w.tails[int(share*float64(len(w.tails)-1))].Round(time.Millisecond)
	}
	return fmt.Sprintf("%d kills, %d acknowledged, %d unknown, %d repeated, %d turns interrupted (%d with text); "+
		"slowest start %v, last mark %v after a start, %d tails: median %v, 90 %% %v, longest %v, slowest note %v", w.kills, w.acked, w.unknown,
		w.repeated, w.marked, w.texts, w.slowestStart.Round(time.Millisecond), w.slowestMark.Round(time.Millisecond),
		len(w.tails), tail(0.5), tail(0.9), tail(1), w.slowNote.Round(time.Millisecond))
}
