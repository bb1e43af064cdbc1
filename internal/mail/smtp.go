package mail

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/textproto"
	"net/url"
	"strconv"
	"time"

	gomail "github.com/wneessen/go-mail"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/seal"
)

// SMTP hands mails to a server.
type SMTP struct {
	server server
	roots  *x509.CertPool
}

// server is what an address says.
type server struct {
	host     string
	port     int
	user     string
	password seal.Secret
	implicit bool // TLS from the first byte
	plain    bool // no TLS at all; on this machine only
}

// exchangeTime is how long connecting may take, and then handing over.
const exchangeTime = 25 * time.Second

// Check says whether a text is an address for NewSMTP.
func Check(address string) error {
	_, err := parseServer(address)
	return err
}

// NewSMTP takes the server's address: smtp://user:password@host:port, where TLS begins with STARTTLS and nothing is said
// without it, or smtps://…, where it begins at once. Ports are 587 and 465 unless the address names one. With ?tls=off
// nothing is encrypted: for a server on this machine only. Roots, if not nil, are trusted instead of the system's.
func NewSMTP(address seal.Secret, roots *x509.CertPool) (*SMTP, error) {
	s, err := parseServer(address.Reveal())
	if err != nil {
		return nil, err
	}
	return &SMTP{server: s, roots: roots}, nil
}

// parseServer repeats nothing of the address in its error: it holds a password.
func parseServer(address string) (server, error) {
	bad := fault.New(fault.Invalid, "mail.NewSMTP", "smtp_address_malformed",
		"must be an address like smtp://user:password@host:587, or smtps://user:password@host:465")
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.Fragment != "" || u.Opaque != "" {
		return server{}, bad
	}
	s := server{host: u.Hostname(), port: 587}
	switch u.Scheme {
	case "smtp":
	case "smtps":
		s.implicit, s.port = true, 465
	default:
		return server{}, bad
	}
	if p := u.Port(); p != "" {
		if s.port, err = strconv.Atoi(p); err != nil || s.port < 1 || s.port > 65535 {
			return server{}, bad
		}
	}
	if u.User != nil {
		password, _ := u.User.Password()
		s.user, s.password = u.User.Username(), seal.Secret(password)
		if s.user == "" || password == "" {
			return server{}, bad
		}
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || len(query) > 1 || len(query) == 1 && (len(query["tls"]) != 1 || query.Get("tls") != "off") {
		return server{}, bad
	}
	if s.plain = len(query) == 1; s.plain && (s.implicit || !here(s.host)) {
		return server{}, fault.New(fault.Invalid, "mail.NewSMTP", "smtp_needs_tls",
			"may have tls=off only where the server is on this machine, as in smtp://127.0.0.1:25?tls=off")
	}
	return s, nil
}

// here reports whether a host is this machine.
func here(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// Send implements Transport. One connection takes one mail: they are few.
func (s *SMTP) Send(ctx context.Context, l Letter) error {
	const op = "mail.SMTP.Send"
	// go-mail leaves connections open when something goes wrong, and once connected does not look at the context.
	hang := func() {}
	defer func() { hang() }()
	client, err := s.client(func(c net.Conn) {
		forget := context.AfterFunc(ctx, func() { _ = c.Close() })
		hang = func() { forget(); _ = c.Close() }
	})
	if err != nil {
		return fault.New(fault.Internal, op, "mail_client", "the mail client could not be built")
	}
	m := l.compose()
	err = client.DialAndSendWithContext(ctx, m)
	if m.IsDelivered() {
		return nil // what went wrong went wrong afterwards
	}
	if err == nil {
		err = errors.New("not delivered")
	}
	return failed(op, err)
}

// client returns a client for one connection, which is shown to opened.
func (s *SMTP) client(opened func(net.Conn)) (*gomail.Client, error) {
	sv := s.server
	conf := &tls.Config{ServerName: sv.host, MinVersion: tls.VersionTLS12, RootCAs: s.roots}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if !sv.implicit {
			opened(c)
			return c, nil
		}
		t := tls.Client(c, conf)
		opened(t)
		return t, t.HandshakeContext(ctx)
	}
	options := []gomail.Option{gomail.WithPort(sv.port), gomail.WithTimeout(exchangeTime), gomail.WithTLSConfig(conf),
		gomail.WithDialContextFunc(dial), gomail.WithoutNoop(), gomail.WithoutRset()}
	switch {
	case sv.implicit:
		options = append(options, gomail.WithSSL())
	case sv.plain:
		options = append(options, gomail.WithTLSPolicy(gomail.NoTLS))
	default:
		options = append(options, gomail.WithTLSPolicy(gomail.TLSMandatory))
	}
	if sv.user != "" {
		ways := []gomail.SMTPAuthType{gomail.SMTPAuthPlain, gomail.SMTPAuthLogin, gomail.SMTPAuthCramMD5}
		if sv.plain {
			ways = []gomail.SMTPAuthType{gomail.SMTPAuthCramMD5, gomail.SMTPAuthPlainNoEnc, gomail.SMTPAuthLoginNoEnc}
		}
		options = append(options, gomail.WithUsername(sv.user), gomail.WithPassword(sv.password.Reveal()),
			gomail.WithOpportunisticSMTPAuth(ways...))
	}
	return gomail.NewClient(sv.host, options...)
}

// failed is what may be known of an error: servers repeat addresses in theirs, and so does the library.
func failed(op string, err error) error {
	status := 0
	aboutMail := false // it is this mail that is refused, not us
	if sent, ok := errors.AsType[*gomail.SendError](err); ok {
		status = sent.ErrorCode()
		switch sent.Reason {
		case gomail.ErrSMTPRcptTo, gomail.ErrSMTPData, gomail.ErrSMTPDataClose:
			aboutMail = true
		}
	} else if answer, ok := errors.AsType[*textproto.Error](err); ok {
		status = answer.Code
	}
	switch {
	case aboutMail && status >= 500 && status != 530: // 530: it wants us to sign in
		return fault.New(fault.Invalid, op, CodeRejected, fmt.Sprintf("the mail server refused it: %d", status))
	case status > 0:
		return fault.New(fault.Unavailable, op, "mail_not_accepted", fmt.Sprintf("the mail server answered %d", status))
	}
	return fault.New(fault.Unavailable, op, "mail_server_unreachable", "the mail server did not answer as one: "+kind(err))
}

// kind says what went wrong with a connection, without what was said on it.
func kind(err error) string {
	var timeout interface{ Timeout() bool }
	var verify *tls.CertificateVerificationError
	switch {
	case errors.As(err, &verify):
		return "its certificate is not trusted"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "it took too long"
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return "cannot " + op.Op
	}
	return "it broke off, has no STARTTLS, or takes no password"
}
