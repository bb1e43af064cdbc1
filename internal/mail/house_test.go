package mail

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/mail"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// post is an SMTP server on this machine, and what came in.
type post struct {
	address string // host:port
	roots   *x509.CertPool
	came    chan parcel

	mu     sync.Mutex
	refuse map[string][]error // what the next commands of a kind ("auth", "mail", "rcpt", "data") are answered
	hang   bool               // after DATA, until it is closed
	held   chan struct{}      // hears of each that hangs
	quit   chan struct{}
}

// parcel is a mail as it came in.
type parcel struct {
	user     string
	from, to string
	secure   bool
	header   mail.Header
	body     string
	raw      string
}

// ways are how a server is.
type ways struct {
	noTLS    bool // has no STARTTLS
	implicit bool
}

func newPost(t *testing.T, w ways) *post {
	t.Helper()
	p := &post{came: make(chan parcel, 100), refuse: map[string][]error{}, held: make(chan struct{}, 9), quit: make(chan struct{})}
	cert, pool := certificate(t)
	p.roots = pool
	s := smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) { return &visit{post: p, conn: c}, nil }))
	s.Domain, s.AllowInsecureAuth, s.EnableSMTPUTF8 = "post.test", w.noTLS, true
	s.ErrorLog = silence{}
	conf := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.address = l.Addr().String()
	switch {
	case w.implicit:
		l = tls.NewListener(l, conf)
	case !w.noTLS:
		s.TLSConfig = conf
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() {
		close(p.quit)
		_ = s.Close()
		<-done
	})
	return p
}

type silence struct{}

func (silence) Printf(string, ...any) {}
func (silence) Println(...any)        {}

// answers makes the next commands of a kind get these answers; nil is a yes.
func (p *post) answers(command string, list ...error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse[command] = append(p.refuse[command], list...)
}

func (p *post) answer(command string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.refuse[command]
	if len(list) == 0 {
		return nil
	}
	p.refuse[command] = list[1:]
	return list[0]
}

func says(code int) error {
	return &smtp.SMTPError{Code: code, EnhancedCode: smtp.EnhancedCode{code / 100, 1, 1}, Message: "no, not for ada@example.com"}
}

// visit is one connection.
type visit struct {
	post *post
	conn *smtp.Conn
	now  parcel
}

func (v *visit) AuthMechanisms() []string { return []string{sasl.Plain} }

func (v *visit) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if password != "p@ss:w/rd" {
			return smtp.ErrAuthFailed
		}
		v.now.user = user
		return v.post.answer("auth")
	}), nil
}

func (v *visit) Mail(from string, _ *smtp.MailOptions) error {
	v.now.from = from
	return v.post.answer("mail")
}

func (v *visit) Rcpt(to string, _ *smtp.RcptOptions) error {
	v.now.to = to
	return v.post.answer("rcpt")
}

func (v *visit) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	v.post.mu.Lock()
	hang := v.post.hang
	v.post.mu.Unlock()
	if hang {
		v.post.held <- struct{}{}
		<-v.post.quit
		return errors.New("it was closed")
	}
	if err := v.post.answer("data"); err != nil {
		return err
	}
	v.now.raw = string(raw)
	v.now.header, v.now.body = opened(v.now.raw)
	_, v.now.secure = v.conn.TLSConnectionState()
	v.post.came <- v.now
	return nil
}

func (v *visit) Reset()        {}
func (v *visit) Logout() error { return nil }

// opened reads a mail as a mail program does.
func opened(raw string) (mail.Header, string) {
	m, err := mail.ReadMessage(strings.NewReader(raw))
	if err != nil {
		return nil, ""
	}
	body, err := io.ReadAll(m.Body)
	if err != nil {
		return nil, ""
	}
	return m.Header, string(body)
}

// certificate is one of 127.0.0.1, and who vouches for it.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "post.test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}
