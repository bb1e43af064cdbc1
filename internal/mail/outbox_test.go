package mail

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/internal/clocktest"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
)

func itoa(n int) string { return strconv.Itoa(n) }

// shelf is a Store in memory, as storetest wants one; sqlstore has the real ones.
type shelf struct {
	mu      sync.Mutex
	list    map[string]*kept
	settled chan string // names
	off     chan time.Time
	broken  int // how many of the next calls to settle fail
}

type kept struct {
	Entry
	due time.Time
}

func newShelf() *shelf {
	return &shelf{list: map[string]*kept{}, settled: make(chan string, 100), off: make(chan time.Time, 100)}
}

func (s *shelf) PutMail(_ context.Context, e Entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.list[e.Name] == nil {
		s.list[e.Name] = &kept{e, e.CreatedAt}
	}
	return nil
}

func (s *shelf) ClaimMails(_ context.Context, now, until time.Time, limit int) (list []Entry, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(s.list)) {
		if e := s.list[k]; e.Sealed != nil && !e.due.After(now) && len(list) < limit {
			e.due = until
			e.Attempts++
			list = append(list, e.Entry)
		}
	}
	return list, nil
}

func (s *shelf) PutOffMail(_ context.Context, e Entry, due time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list[e.Name].due = due
	s.off <- due
	return nil
}

func (s *shelf) SettleMail(_ context.Context, name string, forget time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken > 0 {
		s.broken--
		return errors.New("the database is away")
	}
	s.list[name].Sealed, s.list[name].due = nil, forget
	s.settled <- name
	return nil
}

// first is one of what is kept.
func (s *shelf) first() Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.list {
		return k.Entry
	}
	return Entry{}
}

func (s *shelf) SweepMails(context.Context, time.Time) error { return nil }

// bureau is an outbox with everything around it.
type bureau struct {
	*Outbox
	store *shelf
	clock *clocktest.Clock
	log   *bytes.Buffer
	halt  func() // stops it, and waits
}

func newBureau(t *testing.T, store *shelf, transport Transport) *bureau {
	t.Helper()
	keys, err := seal.NewKeyring("an entirely unguessable phrase, 0123456789")
	if err != nil {
		t.Fatal(err)
	}
	b := &bureau{store: store, clock: clocktest.New(time.Date(2026, 11, 26, 9, 30, 0, 0, time.UTC)), log: &bytes.Buffer{}}
	b.Outbox = NewOutbox(Config{Store: store, Sealer: keys, Key: seal.Key{1}, Transport: transport, From: ours, Now: b.clock.Now, Grace: 20 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(b.log, nil)),
		Address: func(_ context.Context, id ident.AccountID) (string, error) {
			if id == "usr_gone" {
				return "", fault.Missing("test")
			}
			return string(id) + "@example.com", nil
		}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := b.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	b.halt = func() { cancel(); <-done }
	t.Cleanup(b.halt)
	return b
}

func (b *bureau) enqueue(t *testing.T, key string, m Message) {
	t.Helper()
	if err := b.Enqueue(t.Context(), key, m); err != nil {
		t.Fatal(err)
	}
}

var hello = Message{To: "ada@example.com", Subject: "hush", Text: "a secret token\n"}

func TestOutboxSends(t *testing.T) {
	p := newPost(t, ways{})
	b := newBureau(t, newShelf(), transport(t, p, "smtp://HOST"))
	b.enqueue(t, "notice 1", hello)
	b.enqueue(t, "notice 1", Message{To: "ada@example.com", Subject: "another", Text: "of the same key"})
	b.enqueue(t, "notice 2", Message{Account: "usr_bob", Subject: "to an account", Text: "x"})
	first, second := <-p.came, <-p.came
	if first.to > second.to {
		first, second = second, first
	}
	if first.to != "ada@example.com" || first.header.Get("Subject") != "hush" || second.to != "usr_bob@example.com" {
		t.Errorf("%+v\n%+v", first, second)
	}
	<-b.store.settled
	<-b.store.settled
	b.enqueue(t, "notice 1", hello) // once is for good
	b.halt()
	if len(p.came) != 0 {
		t.Error("a mail came twice")
	}
	for name, k := range b.store.list {
		if k.Sealed != nil || strings.Contains(name, "notice") {
			t.Errorf("what %q says is still there", name)
		}
	}
}

func TestOutboxTriesAgain(t *testing.T) {
	p := newPost(t, ways{})
	p.answers("rcpt", says(451), says(421))
	p.answers("data", says(452))
	b := newBureau(t, newShelf(), transport(t, p, "smtp://HOST"))
	b.enqueue(t, "notice", hello)
	if e := b.store.first(); bytes.Contains(e.Sealed, []byte("secret")) || bytes.Contains(e.Sealed, []byte("ada@")) {
		t.Errorf("anybody can read it: %q", e.Sealed)
	}
	var last time.Duration
	for range 3 {
		due := <-b.store.off
		pause := due.Sub(b.clock.Now())
		if pause < last*3/2 || pause < firstPause*4/5 {
			t.Errorf("%v after %v", pause, last)
		}
		last = pause * 5 / 6 // as much as chance may take
		b.clock.Pass(pause)
		b.Wake()
	}
	got := <-p.came
	<-b.store.settled
	if got.header.Get("Message-Id") != "<"+b.name("notice")+"@example.org>" || got.header.Get("Date") != "Thu, 26 Nov 2026 09:30:00 +0000" {
		t.Errorf("it is another mail each time: %v", got.header)
	}
	b.halt()
	for _, never := range []string{"ada@", "secret", "hush", "notice"} {
		if strings.Contains(b.log.String(), never) {
			t.Errorf("the log says %q:\n%s", never, b.log)
		}
	}
	if !strings.Contains(b.log.String(), "answered 451") {
		t.Errorf("the log does not say why:\n%s", b.log)
	}
}

func TestOutboxGivesUp(t *testing.T) {
	t.Run("at once when the server refuses for good", func(t *testing.T) {
		p := newPost(t, ways{})
		p.answers("rcpt", says(550))
		b := newBureau(t, newShelf(), transport(t, p, "smtp://HOST"))
		b.enqueue(t, "notice", hello)
		<-b.store.settled
		b.halt()
		if !strings.Contains(b.log.String(), "given up") || strings.Contains(b.log.String(), "ada@") {
			t.Errorf("the log:\n%s", b.log)
		}
	})
	t.Run("after three days, with a last attempt at their end", func(t *testing.T) {
		p := newPost(t, ways{})
		b := newBureau(t, newShelf(), transport(t, p, "smtp://HOST"))
		start := b.clock.Now()
		for range 200 {
			p.answers("mail", says(451))
		}
		b.enqueue(t, "notice", hello)
		tries, longest := 0, time.Duration(0)
		for over := false; !over; {
			select {
			case due := <-b.store.off:
				tries++
				pause := due.Sub(b.clock.Now())
				longest = max(longest, pause)
				b.clock.Pass(pause)
				b.Wake()
			case <-b.store.settled:
				over = true
			}
		}
		if b.clock.Now().Sub(start) != patience || tries < 72 || tries > 120 || longest > longPause*6/5 {
			t.Errorf("given up after %v and %d attempts, of which the longest pause was %v", b.clock.Now().Sub(start), tries, longest)
		}
	})
	t.Run("when the account is gone", func(t *testing.T) {
		b := newBureau(t, newShelf(), NewFolder(t.TempDir()))
		b.enqueue(t, "notice", Message{Account: "usr_gone", Subject: "x", Text: "y"})
		<-b.store.settled
	})
	t.Run("not because the database is away for a moment after it was sent", func(t *testing.T) {
		p := newPost(t, ways{})
		store := newShelf()
		store.broken = 1
		b := newBureau(t, store, transport(t, p, "smtp://HOST"))
		b.enqueue(t, "notice", hello)
		<-p.came
		<-store.settled
		b.halt()
		if len(p.came) != 0 {
			t.Error("it came twice")
		}
	})
}

// A server that stops while a mail is under way leaves it to the next process; what a killed one left comes when its claim is
// over.
func TestOutboxStops(t *testing.T) {
	p := newPost(t, ways{})
	p.hang = true
	store := newShelf()
	b := newBureau(t, store, transport(t, p, "smtp://HOST"))
	b.enqueue(t, "notice", hello)
	<-p.held
	b.halt()
	if due := <-store.off; due.After(b.clock.Now()) {
		t.Errorf("it is due %v later", due.Sub(b.clock.Now()))
	}
	p.mu.Lock()
	p.hang = false
	p.mu.Unlock()
	next := newBureau(t, store, transport(t, p, "smtp://HOST"))
	<-p.came
	next.halt()
}

func TestFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mails")
	b := newBureau(t, newShelf(), NewFolder(path))
	b.enqueue(t, "notice", Message{To: "ada@example.com", Subject: "Grüße", Text: "Hier ist der Schlüssel: 🦉\n"})
	<-b.store.settled
	list, err := filepath.Glob(filepath.Join(path, "*"))
	if err != nil || len(list) != 1 || !strings.HasPrefix(filepath.Base(list[0]), "20261126-093000-") || filepath.Ext(list[0]) != ".eml" {
		t.Fatalf("%q %v", list, err)
	}
	if info, err := os.Stat(list[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("others can read it: %v %v", info.Mode(), err)
	}
	raw, err := os.ReadFile(list[0])
	if err != nil {
		t.Fatal(err)
	}
	header, body := opened(string(raw))
	if to, err := header.AddressList("To"); err != nil || to[0].Address != "ada@example.com" || !strings.Contains(body, "Schl=C3=BCssel") {
		t.Errorf("%s", raw)
	}
}

func TestNobodyIsWrittenTo(t *testing.T) {
	store := newShelf()
	b := newBureau(t, store, nil)
	b.enqueue(t, "notice", hello)
	if len(store.list) != 0 {
		t.Error("it is kept for nobody")
	}
}

func TestMalformed(t *testing.T) {
	b := newBureau(t, newShelf(), NewFolder(t.TempDir()))
	for name, m := range map[string]Message{
		"nobody":                  {Subject: "x", Text: "y"},
		"two":                     {To: "ada@example.com", Account: "usr_bob", Subject: "x", Text: "y"},
		"two addresses":           {To: "ada@example.com, eve@example.com", Subject: "x", Text: "y"},
		"a header in the address": {To: "ada@example.com\r\nBcc: eve@example.com", Subject: "x", Text: "y"},
		"a header in the subject": {To: "ada@example.com", Subject: "x\r\nBcc: eve@example.com", Text: "y"},
		"a newline in it":         {To: "ada@example.com", Subject: "x\ny", Text: "y"},
		"no subject":              {To: "ada@example.com", Text: "y"},
		"a long subject":          {To: "ada@example.com", Subject: strings.Repeat("x", 201), Text: "y"},
		"no text":                 {To: "ada@example.com", Subject: "x"},
		"a carriage return":       {To: "ada@example.com", Subject: "x", Text: "a\rb"},
		"not UTF-8":               {To: "ada@example.com", Subject: "x", Text: "\xff"},
		"too much":                {To: "ada@example.com", Subject: "x", Text: strings.Repeat("x", 65537)},
	} {
		err := b.Enqueue(t.Context(), "k", m)
		if fault.CodeOf(err) != "mail_malformed" || strings.Contains(err.Error(), "ada@") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, key := range []string{"", strings.Repeat("k", 201)} {
		if err := b.Enqueue(t.Context(), key, hello); err == nil {
			t.Errorf("a key of %d bytes is taken", len(key))
		}
	}
}

// What a user called something cannot become a header or a line of its own.
func TestNotices(t *testing.T) {
	p := Pause{Owner: "usr_ada", Endpoint: "evil\r\nBcc: eve@example.com\n\n" + strings.Repeat("x", 500),
		Since: time.Date(2026, 11, 26, 9, 30, 0, 0, time.UTC), Resume: "Switch it on again."}
	m := EndpointPaused(p)
	p.Why = "It is gone.\nPay here: …"
	gone := EndpointPaused(p)
	for _, m := range []Message{m, gone} {
		if err := m.check(); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(gone.Text, "has failed") || !strings.Contains(gone.Text, "It is gone.") || strings.Contains(gone.Text, "\nPay") {
		t.Errorf("%s", gone.Text)
	}
	if m.Account != "usr_ada" || strings.Contains(m.Subject, "\n") || len(m.Subject) > 150 || strings.Contains(m.Text, "\nBcc") ||
		!strings.Contains(m.Text, "since 26 November 2026, 09:30 UTC") || !strings.HasSuffix(m.Text, "Switch it on again.\n") {
		t.Errorf("%s\n%s", m.Subject, m.Text)
	}
}

// Anybody can have anybody invited, under any name.
func TestInvited(t *testing.T) {
	for _, c := range []struct {
		i             Invitation
		subject, text string
	}{
		{Invitation{To: "eve@example.com", By: "usr_ada", Inviter: "Åda d'Or-Lee", Role: "editor", Site: "https://app.example", Open: true},
			"Åda d'Or-Lee invites you to a project", "register with this address (eve@example.com) at https://app.example."},
		{Invitation{To: "eve@example.com", Inviter: "Win 100 € at http://evil.example\r\nBcc: x@example.com\nnow", Role: "viewer", Open: true},
			"Win at http evil example Bcc x example com now invites you to a project", "register with this address (eve@example.com). You"},
		{Invitation{To: "eve@example.com", Inviter: "123 \u202e", Role: "viewer", Site: "https://app.example"},
			"Somebody invites you to a project", "ask whoever runs it for an account with this address (eve@example.com)."},
		{Invitation{To: "eve@example.com", Inviter: strings.Repeat("x", 999), Role: "viewer"}, strings.Repeat("x", 60) + " invites you to a project", ""},
	} {
		m := Invited(c.i)
		if err := m.check(); err != nil || m.To != c.i.To || m.Cause != c.i.By || m.Subject != c.subject || !strings.Contains(m.Text, c.text) ||
			strings.Contains(m.Text, "evil.example") || strings.Contains(m.Text, "://evil") || !strings.Contains(m.Text, "as "+c.i.Role+".") {
			t.Errorf("%v\n%s\n%s", err, m.Subject, m.Text)
		}
	}
}

func TestSenders(t *testing.T) {
	for text, ok := range map[string]bool{
		"memory@example.org": true, "Claude Memory <memory@example.org>": true, "=?utf-8?q?Ged=C3=A4chtnis?= <m@example.org>": true,
		"": false, "memory": false, "a@example.org, b@example.org": false, "=?utf-8?q?a=0D=0ABcc:_x?= <m@example.org>": false,
	} {
		if a, err := ParseFrom(text); (err == nil) != ok {
			t.Errorf("%q: %v %v", text, a, err)
		}
	}
}
