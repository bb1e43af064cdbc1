package mail

import (
	"bytes"
	"context"
	"net/mail"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	gomail "github.com/wneessen/go-mail"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Message is one mail to one person, in plain text. It goes to an address, or to whatever address an account has when it is
// sent; an account that is gone by then gets none.
type Message struct {
	To      string          `json:"to,omitempty"`
	Account ident.AccountID `json:"account,omitempty"`
	Subject string          `json:"subject"` // one line
	Text    string          `json:"text"`    // lines end with \n
	// Cause is the account that makes us write to somebody else, if one does: there is a bound on how many mails it can
	// cause in a day.
	Cause ident.AccountID `json:"-"`
}

const (
	maxSubject = 200   // characters
	maxText    = 65536 // bytes
	maxKey     = 200   // bytes
)

// check refuses what cannot be a mail. That is a mistake of whoever wrote it, not of a user.
func (m Message) check() error {
	const op = "mail.Enqueue"
	wrong := func(what string) error {
		return fault.New(fault.Internal, op, "mail_malformed", "this cannot be a mail: "+what)
	}
	var c fault.Checks
	if m.To != "" {
		c.Email("to", m.To)
	}
	switch {
	case (m.To == "") == (m.Account == ""), c.Err(op) != nil:
		return wrong("it needs one address, or one account")
	case m.Subject == "" || utf8.RuneCountInString(m.Subject) > maxSubject || !plain(m.Subject):
		return wrong("its subject must be one line of at most 200 characters")
	case m.Text == "" || len(m.Text) > maxText || !plain(strings.NewReplacer("\n", "", "\t", "").Replace(m.Text)):
		return wrong("its text must be text of at most 64 KiB")
	}
	return nil
}

// plain reports whether s is text without control characters.
func plain(s string) bool { return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl) }

// line makes one short line of what somebody else wrote, so that it can stand in a mail.
func line(s string) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "�"), func(r rune) bool {
		return unicode.IsSpace(r) || !unicode.IsPrint(r)
	}), " ")
	if r := []rune(s); len(r) > 80 {
		s = string(r[:80]) + "…"
	}
	return s
}

// Letter is a mail as a Transport takes it.
type Letter struct {
	from, to *mail.Address
	id       string // Message-ID without its brackets: the same at every attempt
	subject  string
	text     string
	at       time.Time
}

// Transport takes mails out of the house.
type Transport interface {
	// Send returns when somebody else is responsible for the mail. Code [CodeRejected] says that nobody ever will be.
	Send(ctx context.Context, l Letter) error
}

// CodeRejected is the fault code of a mail that the server refuses for good.
const CodeRejected = "mail_rejected"

// ParseFrom reads the sender's address: "memory@example.com", or "Claude Memory <memory@example.com>".
func ParseFrom(text string) (*mail.Address, error) {
	a, err := mail.ParseAddress(text)
	var c fault.Checks
	if err != nil || c.Email("from", a.Address) == "" || !plain(a.Name) {
		return nil, fault.New(fault.Invalid, "mail.ParseFrom", "mail_from_malformed",
			"must be an address like memory@example.com, or Claude Memory <memory@example.com>")
	}
	return a, nil
}

// newLetter addresses a message. Its name, of which the Message-ID is made, lets whoever gets it twice see that it is one.
func newLetter(from *mail.Address, to, name string, m Message, at time.Time) Letter {
	_, domain, _ := strings.Cut(from.Address, "@")
	return Letter{from: from, to: &mail.Address{Address: to}, id: name + "@" + domain, subject: m.Subject, text: m.Text, at: at}
}

// compose writes the letter down.
func (l Letter) compose() *gomail.Msg {
	m := gomail.NewMsg(gomail.WithNoDefaultUserAgent(), gomail.WithEncoding(gomail.EncodingQP), gomail.WithCharset(gomail.CharsetUTF8))
	m.FromMailAddress(l.from)
	m.ToMailAddress(l.to)
	m.Subject(l.subject)
	m.SetDateWithValue(l.at)
	m.SetMessageIDWithValue(l.id)
	m.SetGenHeader("Auto-Submitted", "auto-generated") // nobody's holiday notice answers it (RFC 3834)
	m.SetBodyString(gomail.TypeTextPlain, l.text)
	return m
}

// bytes is the letter as it is stored in a file.
func (l Letter) bytes() ([]byte, error) {
	var b bytes.Buffer
	_, err := l.compose().WriteTo(&b)
	return b.Bytes(), err
}
