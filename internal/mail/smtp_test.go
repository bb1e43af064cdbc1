package mail

import (
	"context"
	"io"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/seal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ours = &mail.Address{Name: "Claude Memory – Gedächtnis", Address: "memory@example.org"}

func letter(to, subject, text string) Letter {
	return newLetter(ours, to, "06f4k3z9c8tqv5m2", Message{Subject: subject, Text: text}, time.Date(2026, 11, 26, 9, 30, 0, 0, time.UTC))
}

func transport(t *testing.T, p *post, address string) *SMTP {
	t.Helper()
	s, err := NewSMTP(seal.Secret(strings.ReplaceAll(address, "HOST", p.address)), p.roots)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const signedIn = "user%40example.org:p%40ss%3Aw%2Frd@"

func TestSMTP(t *testing.T) {
	for _, c := range []struct {
		name    string
		way     ways
		address string
		user    string
		secure  bool
	}{
		{"STARTTLS and a password", ways{}, "smtp://" + signedIn + "HOST", "user@example.org", true},
		{"STARTTLS without one", ways{}, "smtp://HOST", "", true},
		{"TLS from the beginning", ways{implicit: true}, "smtps://" + signedIn + "HOST", "user@example.org", true},
		{"without TLS on this machine", ways{noTLS: true}, "smtp://" + signedIn + "HOST?tls=off", "user@example.org", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPost(t, c.way)
			text := "Grüße an 東京 🦉,\n\n.a line that begins with a dot\n" + strings.Repeat("long ", 100) + "\n"
			if err := transport(t, p, c.address).Send(t.Context(), letter("ada@example.com", "Prüfung – 試験 🦉", text)); err != nil {
				t.Fatal(err)
			}
			got := <-p.came
			if got.user != c.user || got.secure != c.secure || got.from != ours.Address || got.to != "ada@example.com" {
				t.Errorf("%+v", got)
			}
			head := func(name string) string {
				v, err := new(mime.WordDecoder).DecodeHeader(got.header.Get(name))
				if err != nil {
					t.Error(err)
				}
				return v
			}
			for name, want := range map[string]string{
				"Subject": "Prüfung – 試験 🦉", "To": "<ada@example.com>", "Auto-Submitted": "auto-generated", "Mime-Version": "1.0",
				"Date": "Thu, 26 Nov 2026 09:30:00 +0000", "Content-Type": "text/plain; charset=UTF-8",
			} {
				if head(name) != want {
					t.Errorf("%s: %q", name, head(name))
				}
			}
			if from, err := got.header.AddressList("From"); err != nil || len(from) != 1 || *from[0] != *ours {
				t.Errorf("From: %v %v", from, err)
			}
			if id := head("Message-Id"); !strings.HasSuffix(id, "@example.org>") {
				t.Errorf("Message-ID: %q", id)
			}
			if head("X-Mailer")+head("User-Agent") != "" {
				t.Error("it says which program sends")
			}
			body, err := io.ReadAll(quotedprintable.NewReader(strings.NewReader(got.body)))
			if err != nil || strings.TrimRight(strings.ReplaceAll(string(body), "\r\n", "\n"), "\n") != strings.TrimRight(text, "\n") {
				t.Errorf("body %q %v", body, err)
			}
			for _, r := range got.raw {
				if r > 126 {
					t.Fatalf("%q is not for every server", r)
				}
			}
		})
	}
}

// What a server says, and what goes wrong with it, is told by a code alone.
func TestSMTPRefusals(t *testing.T) {
	for _, c := range []struct {
		name    string
		way     ways
		address string
		set     func(p *post)
		code    string
		says    string
	}{
		{"nobody of that name", ways{}, "smtp://HOST", func(p *post) { p.answers("rcpt", says(550)) }, CodeRejected, "550"},
		{"come back later", ways{}, "smtp://HOST", func(p *post) { p.answers("rcpt", says(451)) }, "mail_not_accepted", "451"},
		{"content it does not like", ways{}, "smtp://HOST", func(p *post) { p.answers("data", says(554)) }, CodeRejected, "554"},
		{"content, later", ways{}, "smtp://HOST", func(p *post) { p.answers("data", says(452)) }, "mail_not_accepted", "452"},
		// That is not about this mail: somebody can mend it.
		{"another sender", ways{}, "smtp://HOST", func(p *post) { p.answers("mail", says(550)) }, "mail_not_accepted", "550"},
		{"sign in first", ways{}, "smtp://HOST", func(p *post) { p.answers("rcpt", says(530)) }, "mail_not_accepted", "530"},
		{"a wrong password", ways{}, "smtp://user:wrong@HOST", func(*post) {}, "mail_not_accepted", "535"},
		{"no STARTTLS", ways{noTLS: true}, "smtp://" + signedIn + "HOST", func(*post) {}, "mail_server_unreachable", "no STARTTLS"},
		{"a certificate of somebody else", ways{}, "smtp://" + signedIn + "HOST", func(p *post) { p.roots = nil }, "mail_server_unreachable",
			"certificate"},
		{"a certificate of somebody else at once", ways{implicit: true}, "smtps://HOST", func(p *post) { p.roots = nil },
			"mail_server_unreachable", "certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPost(t, c.way)
			c.set(p)
			s := transport(t, p, c.address)
			err := s.Send(t.Context(), letter("ada@example.com", "hush", "a secret token"))
			if fault.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
			for _, never := range []string{"ada@", "secret", "hush", "memory@", "p@ss", "wrong", p.address} {
				if err != nil && strings.Contains(err.Error(), never) {
					t.Errorf("it says %q: %v", never, err)
				}
			}
			if len(p.came) > 0 {
				t.Error("a mail came")
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		s, err := NewSMTP(seal.Secret("smtp://"+address), nil)
		if err != nil {
			t.Fatal(err)
		}
		err = s.Send(t.Context(), letter("ada@example.com", "x", "y"))
		if fault.CodeOf(err) != "mail_server_unreachable" || strings.Contains(err.Error(), address) {
			t.Error(err)
		}
	})
}

// A server that takes everything and then says nothing is left when the time is over.
func TestSMTPHangs(t *testing.T) {
	p := newPost(t, ways{})
	p.hang = true
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error)
	go func() { failed <- transport(t, p, "smtp://HOST").Send(ctx, letter("ada@example.com", "x", "y")) }()
	<-p.held
	cancel()
	if err := <-failed; !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
}

func TestAddresses(t *testing.T) {
	for address, want := range map[string]string{
		"smtp://mail.example.org":                     "mail.example.org 587 starttls",
		"smtp://mail.example.org:25":                  "mail.example.org 25 starttls",
		"smtps://mail.example.org":                    "mail.example.org 465 tls",
		"smtp://127.0.0.1:25?tls=off":                 "127.0.0.1 25 off",
		"smtp://localhost?tls=off":                    "localhost 587 off",
		"smtp://[::1]:25?tls=off":                     "::1 25 off",
		"smtp://u:p@mail.example.org/":                "mail.example.org 587 starttls",
		"smtp://mail.example.org?tls=off":             "",
		"smtp://127.0.0.1.example.org?tls=off":        "",
		"smtps://127.0.0.1?tls=off":                   "",
		"smtp://127.0.0.1?tls=on":                     "",
		"smtp://127.0.0.1?tls=off&x=1":                "",
		"smtp://u@mail.example.org":                   "",
		"smtp://:p@mail.example.org":                  "",
		"smtp://mail.example.org:0":                   "",
		"smtp://mail.example.org:99999":               "",
		"smtp://mail.example.org/path":                "",
		"smtp://":                                     "",
		"http://mail.example.org":                     "",
		"mail.example.org:25":                         "",
		"smtp://u:secret-of-mine@mail.example.org:xx": "",
	} {
		s, err := parseServer(address)
		if want == "" {
			if err == nil || strings.Contains(err.Error(), "secret-of-mine") || Check(address) == nil {
				t.Errorf("%s: %v", address, err)
			}
			continue
		}
		how := "starttls"
		if s.implicit {
			how = "tls"
		}
		if s.plain {
			how = "off"
		}
		if got := strings.Join([]string{s.host, itoa(s.port), how}, " "); err != nil || got != want {
			t.Errorf("%s: %s %v", address, got, err)
		}
	}
}
