package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/claude/emulator"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/pgtest/toxic"
)

// outage is a server whose tenants' PostgreSQL lies behind a network that the test can break, and one answer.
type outage struct {
	t      *testing.T
	binary string
	dir    string
	env    []string
	link   *toxic.Link
	server *lab.Server
	client *lab.Client
	said   spoken // by the model

	conv, turn string
	mu         sync.Mutex
	seen       string // by whoever follows
	last       string // event
	followed   chan struct{}
}

const outagePerson = "ada@example.org"

// tale is what the model says: long enough to be cut in the middle by hand.
var tale = emulator.Script{Times: -1, Text: numbered(800), PieceDelay: 10 * time.Millisecond}

// newOutage starts a server and an answer, and waits until a part of it was told.
func newOutage(t *testing.T, binary string, prepare ...func(storage string)) *outage {
	t.Helper()
	o := &outage{t: t, binary: binary, dir: t.TempDir(), followed: make(chan struct{})}
	model, err := lab.NewModelAt("127.0.0.1:0", emulator.Options{Limits: emulator.NoLimits()}, o.said.around)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(model.Close)
	model.Push(tale)
	address, link := toxic.Slow(t, pgtest.URL(t), 0)
	o.link = link
	o.env = append([]string{"STORAGE_PATH=" + o.storage(), "TENANT_DATABASE_URLS=" + address}, model.Env()...)
	for _, f := range prepare {
		f(o.storage())
	}
	t.Cleanup(func() {
		if o.server != nil {
			o.server.Kill()
		}
	})
	o.start()
	if err := o.client.Register(t.Context(), outagePerson); err != nil {
		t.Fatal(err)
	}
	conv, err := o.client.NewConversation(t.Context(), "A tale")
	if err != nil {
		t.Fatal(err)
	}
	o.conv = conv.ID
	go o.follow()
	o.until("a part was told", func() bool { seen, _ := o.told(); return len(seen) > 500 })
	return o
}

func (o *outage) storage() string { return filepath.Join(o.dir, "storage") }

func (o *outage) start() {
	o.t.Helper()
	server, err := lab.Start(o.binary, o.dir, o.env...)
	if err != nil {
		o.t.Fatal(err)
	}
	o.server = server
	token := ""
	if o.client != nil {
		token = o.client.Token
	}
	o.client = lab.Dial(server.URL, 4)
	o.client.Token = token
}

// follow asks, and notes what it is told.
func (o *outage) follow() {
	defer close(o.followed)
	_, _ = o.client.Stream(o.t.Context(), http.MethodPost, "/conversations/"+o.conv+"/messages", map[string]any{"content": "Tell me a tale"},
		func(e lab.Event) bool {
			o.mu.Lock()
			defer o.mu.Unlock()
			var data struct {
				Text string
				Turn struct{ ID string }
			}
			if err := json.Unmarshal(e.Data, &data); err != nil {
				o.t.Errorf("event %s: %v", e.Type, err)
			}
			if e.Type == "turn.started" {
				o.turn = data.Turn.ID
			}
			o.last = e.Type
			o.seen += data.Text
			return true
		}) // it breaks when the server is killed
}

func (o *outage) told() (seen, last string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.seen, o.last
}

func (o *outage) until(what string, ready func() bool) {
	o.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ready(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			seen, last := o.told()
			o.t.Fatalf("it never came to pass: %s; %d characters told, last %s\n%s", what, len(seen), last, o.server.Log())
		}
	}
}

// health is what the detailed health says of turns.
func (o *outage) health() (running, spooled int, bytes int64) {
	o.t.Helper()
	var health struct {
		Checks []struct {
			Name  string
			Facts struct {
				Running, Spooled int
				Bytes            int64 `json:"spooled_bytes"`
			}
		}
	}
	if err := o.client.Get(o.t.Context(), "/health/detailed", &health); err != nil {
		o.t.Fatal(err)
	}
	for _, c := range health.Checks {
		if c.Name == "turns" {
			return c.Facts.Running, c.Facts.Spooled, c.Facts.Bytes
		}
	}
	o.t.Fatal("no check of turns")
	return 0, 0, 0
}

// answer reads the turn. away is true while its database is.
func (o *outage) answer() (state, code, text string, away bool) {
	o.t.Helper()
	a := o.client.Do(o.t.Context(), http.MethodGet, "/conversations/"+o.conv+"/turns/"+o.turn, nil)
	if a.Status == http.StatusServiceUnavailable {
		if !bytes.Contains(a.Body, []byte(`"database_unreachable"`)) || a.Header.Get("Retry-After") == "" {
			o.t.Errorf("%v %s", a.Header, a.Body)
		}
		return "", "", "", true
	}
	var x struct {
		lab.Turn
		Assistant lab.Message `json:"assistant_message"`
	}
	if err := a.Into(&x, http.StatusOK); err != nil {
		o.t.Fatal(err)
	}
	if x.Error != nil {
		code = x.Error.Code
	}
	return x.State, code, x.Assistant.Content, false
}

// shown are files below a folder in which a word stands as it is.
func shown(t *testing.T, dir, word string) (files int, found []string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if files++; bytes.Contains(raw, []byte(word)) {
			found = append(found, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return files, found
}

func TestAnswersOutliveOutages(t *testing.T) {
	binary := binary(t)
	breaks := map[string]func(*toxic.Link){"cut": (*toxic.Link).Cut, "silent": (*toxic.Link).Hang}
	for how, away := range breaks {
		t.Run("the server goes on, the network is "+how, func(t *testing.T) {
			t.Parallel() // they wait more than they work
			o := newOutage(t, binary)
			other, err := o.client.NewConversation(t.Context(), "Another tale")
			if err != nil {
				t.Fatal(err)
			}
			waited := make(chan lab.Answer, 1)
			go func() {
				waited <- o.client.Do(t.Context(), http.MethodPost, "/conversations/"+other.ID+"/messages", map[string]any{"content": "Tell me another"})
			}()
			o.until("the other is being answered too", func() bool {
				var there struct{ Data []lab.Message }
				if err := o.client.Get(t.Context(), "/conversations/"+other.ID+"/messages", &there); err != nil {
					t.Fatal(err)
				}
				return slices.ContainsFunc(there.Data, func(m lab.Message) bool { return m.Role == "assistant" && m.Content != "" })
			})
			away(o.link)
			o.until("all of it was told", func() bool { seen, _ := o.told(); return seen == tale.Text })
			o.until("their ends are in the spool", func() bool { running, spooled, _ := o.health(); return running == 0 && spooled == 2 })
			// Who waits for the whole is not kept waiting for the database.
			var accepted struct{ Turn lab.Turn }
			a := <-waited
			if err := a.Into(&accepted, http.StatusAccepted); err != nil || accepted.Turn.State != "streaming" {
				t.Errorf("%+v, %v", accepted, err)
			}
			if _, _, _, away := o.answer(); !away {
				t.Error("the outage is none")
			}
			o.link.Restore()
			<-o.followed
			if _, last := o.told(); last != "turn.completed" {
				t.Errorf("who follows was told %s at last", last)
			}
			var state, text string
			o.until("it can be read", func() bool {
				var away bool
				state, _, text, away = o.answer()
				return !away
			})
			if state != "completed" || text != tale.Text {
				t.Errorf("%s, %d characters", state, len(text))
			}
			o.turn, o.conv = accepted.Turn.ID, other.ID
			o.completes(t, "completed", "", len(tale.Text))
			o.until("the spool is empty", func() bool { _, spooled, _ := o.health(); return spooled == 0 })
		})
	}
	t.Run("the server is killed after the end", func(t *testing.T) {
		t.Parallel() // they wait more than they work
		o := newOutage(t, binary)
		o.link.Cut()
		o.until("all of it was told", func() bool { seen, _ := o.told(); return seen == tale.Text })
		o.until("its end is in the spool", func() bool { running, spooled, _ := o.health(); return running == 0 && spooled == 1 })
		o.server.Kill()
		folder := filepath.Join(o.storage(), "spool")
		if files, found := shown(t, folder, "w000"); files == 0 || len(found) > 0 {
			t.Errorf("of %d files these show the answer: %v", files, found)
		}
		if err := os.WriteFile(filepath.Join(folder, "control"), []byte("some w000001"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, found := shown(t, folder, "w000"); len(found) != 1 {
			t.Error("the search does not find what is there")
		}
		o.start()
		if _, _, _, away := o.answer(); !away {
			t.Error("the outage is none")
		}
		o.link.Restore()
		o.completes(t, "completed", "", len(tale.Text))
	})
	t.Run("the server is killed in the middle", func(t *testing.T) {
		t.Parallel() // they wait more than they work
		o := newOutage(t, binary)
		o.link.Cut()
		before, _ := o.told()
		// What the spool takes is what was said when it began to: of two additions the second one has what was said before the first.
		var sizes []int64
		o.until("the spool has more than the database can have", func() bool {
			seen, _ := o.told()
			_, spooled, bytes := o.health()
			if len(seen) > len(before)+1000 && (len(sizes) == 0 || sizes[len(sizes)-1] != bytes) {
				sizes = append(sizes, bytes)
			}
			return spooled == 1 && len(sizes) > 2
		})
		o.server.Kill()
		o.start()
		o.link.Restore()
		if text := o.completes(t, "interrupted", "owner_gone", len(before)+500); len(text) == len(tale.Text) {
			t.Error("it was not killed in the middle")
		}
	})
	t.Run("without a spool the rest is lost", func(t *testing.T) {
		t.Parallel()                                     // they wait more than they work
		o := newOutage(t, binary, func(storage string) { // a file in the place of its folder
			if err := os.MkdirAll(storage, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(storage, "spool"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		})
		o.link.Cut()
		before := o.said.Load()
		o.until("all of it was told", func() bool { seen, _ := o.told(); return seen == tale.Text })
		o.server.Kill()
		o.start()
		o.link.Restore()
		if text := o.completes(t, "interrupted", "owner_gone", 0); int64(len(text)) > before {
			t.Errorf("%d characters survived where at most %d could: the other checks prove nothing", len(text), before)
		}
	})
}

// completes waits until the answer can be read, and checks what it has become.
func (o *outage) completes(t *testing.T, state, code string, least int) (text string) {
	t.Helper()
	var got, why string
	o.until("the answer can be read", func() bool {
		var away bool
		got, why, text, away = o.answer()
		return !away && got != "streaming"
	})
	if got != state || why != code || len(text) < least || !strings.HasPrefix(tale.Text, text) {
		t.Errorf("%s %s, %d characters", got, why, len(text))
	}
	return text
}

// A server that is silent concerns its own tenants only, and each of them for less than two seconds.
func TestAnUnreachableServerConcernsItsTenantsOnly(t *testing.T) {
	binary := binary(t)
	near, link := toxic.Slow(t, pgtest.URL(t), 0)
	server, err := lab.Start(binary, t.TempDir(), "TENANT_DATABASE_URLS="+near+","+pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	ctx := t.Context()
	var clients []*lab.Client
	for _, name := range []string{"ada", "bob"} { // each goes to the emptier server
		c := lab.Dial(server.URL, 4)
		if err := c.Register(ctx, name+"@example.org"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.NewConversation(ctx, "x"); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	list := func(ctx context.Context, c *lab.Client) lab.Answer {
		return c.Do(ctx, http.MethodGet, "/conversations", nil)
	}
	link.Hang()
	var concerned *lab.Client
	for _, c := range clients {
		begun := time.Now()
		switch a := list(ctx, c); {
		case a.Status == http.StatusOK:
		case a.Status == http.StatusServiceUnavailable && bytes.Contains(a.Body, []byte(`"database_unreachable"`)) && a.Header.Get("Retry-After") == "2":
			concerned = c
			t.Logf("the first failing request took %v", time.Since(begun).Round(time.Millisecond))
		default:
			t.Fatalf("%d %v %s", a.Status, a.Header, a.Body)
		}
	}
	if concerned == nil {
		t.Fatal("nobody's database is away")
	}
	for n := range 10 {
		begun := time.Now()
		for _, c := range clients {
			want := http.StatusOK
			if c == concerned {
				want = http.StatusServiceUnavailable
			}
			if a := list(ctx, c); a.Status != want {
				t.Fatalf("%d %s", a.Status, a.Body)
			}
		}
		t.Logf("round %d took %v", n, time.Since(begun).Round(time.Millisecond))
	}
	link.Restore()
	for deadline := time.Now().Add(time.Minute); list(ctx, concerned).Status != http.StatusOK; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not come back\n%s", server.Log())
		}
	}
}
