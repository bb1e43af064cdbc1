package outbound

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"claude-memory-backend/internal/fault"
)

const (
	// answerBytes is how much of an answer is read.
	answerBytes = 64 << 10
	headerBytes = 16 << 10
)

// Client calls HTTP at addresses that users gave. TLS is verified, redirects are not followed, and nothing of the
// environment (proxies) or of earlier answers (cookies) plays a part. HTTPS on its usual ports goes to public addresses;
// anything else goes to the networks that the operator allows by name. It is safe for concurrent use.
type Client struct {
	public *http.Transport // HTTPS on a usual port
	inside *http.Transport // anything else
}

// NewClient makes a client that dials with d. Roots are the authorities that certificates may be of; nil: the system's.
func NewClient(d *Dialer, roots *x509.CertPool) *Client {
	transport := func(dial func(context.Context, string, string) (net.Conn, error)) *http.Transport {
		return &http.Transport{
			DialContext:            dial,
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    10 * time.Second,
			DisableCompression:     true,
			MaxResponseHeaderBytes: headerBytes,
			MaxIdleConns:           256,
			MaxIdleConnsPerHost:    8,
			IdleConnTimeout:        20 * time.Second,
			Protocols:              new(http.Protocols), // HTTP/1.1, set below
		}
	}
	c := &Client{public: transport(d.DialContext), inside: transport(func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, network, addr)
		if err == nil && !d.Allowed(conn.RemoteAddr()) {
			_ = conn.Close() // nothing was sent
			return nil, refused()
		}
		return conn, err
	})}
	c.public.Protocols.SetHTTP1(true)
	c.inside.Protocols.SetHTTP1(true)
	return c
}

// Close closes connections that nobody uses.
func (c *Client) Close() {
	c.public.CloseIdleConnections()
	c.inside.CloseIdleConnections()
}

// Usual reports whether an address may be called without the operator's leave, as far as its scheme and port go.
func Usual(u *url.URL) bool {
	return u.Scheme == "https" && (u.Port() == "" || u.Port() == "443" || u.Port() == "8443")
}

// Answer is what came back.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte // the beginning: at most 64 KiB
}

// Post sends a body and returns the answer, whatever its status. The context bounds all of it. Errors are faults with the
// codes of DialContext, or fault.Unavailable with "tls_failed", "timeout" or "bad_answer"; they hold nothing of the address.
func (c *Client) Post(ctx context.Context, u *url.URL, header http.Header, body []byte) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return Answer{}, fault.New(fault.Invalid, "outbound.Post", "address_refused", "this is not an address that can be called")
	}
	for name, values := range header {
		req.Header[name] = values
	}
	transport := c.inside
	if Usual(u) {
		transport = c.public
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return Answer{}, failed(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }() // what is left is not wanted
	a := Answer{Status: resp.StatusCode, Header: resp.Header}
	a.Body, err = io.ReadAll(io.LimitReader(resp.Body, answerBytes))
	if err != nil && ctx.Err() != nil {
		return a, failed(ctx, err)
	}
	return a, nil // the status has been said, whatever became of the rest
}

// failed names what was wrong, without the words of others.
func failed(ctx context.Context, err error) error {
	const op = "outbound.Post"
	if f, ok := errors.AsType[*fault.Error](err); ok && f.Code != "" {
		return f
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fault.New(fault.Unavailable, op, "tls_failed", "the certificate was not accepted")
	}
	var record tls.RecordHeaderError
	var alert tls.AlertError
	if errors.As(err, &record) || errors.As(err, &alert) {
		return fault.New(fault.Unavailable, op, "tls_failed", "no encrypted connection could be made")
	}
	late, isNet := errors.AsType[net.Error](err)
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return fault.New(fault.Canceled, op, "canceled", "the call was cancelled")
	case ctx.Err() != nil || isNet && late.Timeout():
		return fault.New(fault.Unavailable, op, "timeout", "the address took too long to answer")
	}
	return fault.New(fault.Unavailable, op, "bad_answer", "what came was not an answer, or too much of one")
}

// PortOf is the port that an address names, or that of its scheme; 0 when what it names is none.
func PortOf(u *url.URL) uint16 {
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return 0
		}
		return uint16(n)
	}
	if u.Scheme == "http" {
		return 80
	}
	return 443
}
