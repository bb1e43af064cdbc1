package sqlstore

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/outbound"
	"claude-memory-backend/internal/outbound/outboundtest"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/tenant"
)

// authority signs certificates for tests.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true,
		BasicConstraintsValid: true, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key, pool: x509.NewCertPool()}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

// sign makes a server's certificate and key, as files of PostgreSQL's.
func (a *authority) sign(change func(*x509.Certificate)) map[string]string {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{"db.example.com"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return map[string]string{
		"server.crt": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		"server.key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})),
	}
}

func TestTLS(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	cluster, err := pgtest.Start(t.Context(), pgtest.Options{Files: ours.sign(nil), Settings: map[string]string{"ssl": "on"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	}()
	names := outboundtest.Resolver{}
	for _, name := range []string{"db.example.com", "other.example.com"} {
		names[name] = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	}
	d := outbound.NewDialer(outbound.Config{Allow: loopback, Resolver: names})
	id := ident.New[ident.DatabaseID]()
	probe := func(t *testing.T, host string, roots *x509.CertPool) Report {
		t.Helper()
		x := unhurried(NewExternals(ExternalOptions{Dial: d.DialContext, PlainAllowed: d.Allowed, RootCAs: roots, ConnectTimeout: time.Minute}))
		defer x.Close()
		a, password := addressOf(t, cluster.URL)
		a.Host, a.TLS = host, tenant.TLSVerifyFull
		r, err := x.Probe(t.Context(), id, a, password)
		if err != nil {
			t.Fatal(err)
		}
		// Use must agree with the test.
		used := x.Provision(t.Context(), id, a, password)
		if (used == nil) != r.OK {
			t.Errorf("%+v, but %v", r, used)
		}
		if used != nil && fault.CodeOf(used) != r.Problems[0].Code {
			t.Errorf("%+v, but %v", r, used)
		}
		if used == nil {
			db := x.Open(id, a, password)
			var inUse bool
			if err := db.Read(t.Context(), func(b *Batch) {
				b.One([]any{&inUse}, `SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()`)
			}); err != nil || !inUse {
				t.Errorf("TLS: %t, %v", inUse, err)
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
			if err := x.Destroy(t.Context(), id, a, password); err != nil {
				t.Error(err)
			}
		}
		return r
	}
	restart := func(t *testing.T, files map[string]string) {
		t.Helper()
		if err := cluster.Kill(); err != nil {
			t.Fatal(err)
		}
		for name, content := range files {
			if err := cluster.WriteFile(name, content); err != nil {
				t.Fatal(err)
			}
		}
		if err := cluster.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	good := func(t *testing.T, r Report) {
		t.Helper()
		if !r.OK || !r.Reachable || r.TLS != (TLSReport{Version: "1.3", Verified: true}) {
			t.Errorf("%+v", r)
		}
	}
	bad := func(t *testing.T, r Report, code, says string) {
		t.Helper()
		if r.OK || r.Reachable || r.TLS.Verified || len(r.Problems) != 1 || r.Problems[0].Level != ProblemError || r.Problems[0].Code != code ||
			!strings.Contains(r.Problems[0].Message, says) {
			t.Errorf("%+v", r)
		}
	}
	t.Run("by name", func(t *testing.T) { good(t, probe(t, "db.example.com", ours.pool)) })
	t.Run("by a name in capitals", func(t *testing.T) { good(t, probe(t, "DB.Example.COM", ours.pool)) })
	t.Run("by address", func(t *testing.T) { good(t, probe(t, "127.0.0.1", ours.pool)) })
	t.Run("another name", func(t *testing.T) { bad(t, probe(t, "other.example.com", ours.pool), "tls_failed", "another host") })
	t.Run("another authority", func(t *testing.T) { bad(t, probe(t, "db.example.com", theirs.pool), "tls_failed", "authority") })
	t.Run("the system's authorities", func(t *testing.T) { bad(t, probe(t, "db.example.com", nil), "tls_failed", "authority") })
	t.Run("expired", func(t *testing.T) {
		restart(t, ours.sign(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }))
		bad(t, probe(t, "db.example.com", ours.pool), "tls_failed", "expired")
	})
	t.Run("not valid yet", func(t *testing.T) {
		restart(t, ours.sign(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }))
		bad(t, probe(t, "db.example.com", ours.pool), "tls_failed", "not valid yet")
	})
	t.Run("of a client", func(t *testing.T) {
		restart(t, ours.sign(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }))
		bad(t, probe(t, "db.example.com", ours.pool), "tls_failed", "not fit")
	})
	t.Run("a name only in the subject", func(t *testing.T) {
		restart(t, ours.sign(func(c *x509.Certificate) {
			c.DNSNames, c.IPAddresses, c.Subject = nil, nil, pkix.Name{CommonName: "db.example.com"}
		}))
		bad(t, probe(t, "db.example.com", ours.pool), "tls_failed", "another host")
	})
	t.Run("none", func(t *testing.T) {
		restart(t, map[string]string{"postgresql.auto.conf": "ssl = off\n"})
		bad(t, probe(t, "db.example.com", ours.pool), "tls_refused", "does not offer TLS")
	})
	t.Run("a standby", func(t *testing.T) {
		restart(t, map[string]string{"standby.signal": ""})
		x := openExternals(t, nil)
		a, password := addressOf(t, cluster.URL)
		r, err := x.Probe(t.Context(), id, a, password)
		if err != nil || r.OK || !r.Reachable || !r.Standby || !hasProblem(r, "server_read_only") {
			t.Errorf("%+v %v", r, err)
		}
		wantCode(t, x.Provision(t.Context(), id, a, password), "server_read_only")
	})
}

func hasProblem(r Report, code string) bool {
	for _, p := range r.Problems {
		if p.Code == code {
			return true
		}
	}
	return false
}

// What a server does with a request for TLS.
func TestHostileTLS(t *testing.T) {
	for name, dialogue := range map[string]func(*evil){
		"refuses":                      func(e *evil) { e.read(8); e.write([]byte("N")); e.silence() },
		"refuses and goes on in plain": func(e *evil) { e.read(8); e.write([]byte("N")); e.again(signedIn) },
		"answers with an error":        func(e *evil) { e.read(8); e.write(errorMessage("FATAL", "0A000", evilEcho, "")) },
		"agrees and is silent":         func(e *evil) { e.read(8); e.write([]byte("S")); e.silence() },
		"agrees and closes":            func(e *evil) { e.read(8); e.write([]byte("S")) },
		"agrees and goes on in plain":  func(e *evil) { e.read(8); e.write(concat([]byte("S"), signedIn)); e.silence() },
		"agrees and makes noise":       func(e *evil) { e.read(8); e.write([]byte("S")); e.again([]byte{0x16, 3, 3, 0x40, 0}) },
		"answers as a web server":      func(e *evil) { e.write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")); e.silence() },
		"is silent":                    func(e *evil) { e.silence() },
		"sends a byte now and then":    func(e *evil) { e.read(8); e.write([]byte("S")); drip(e, []byte{0x16, 3, 3, 0x40, 0}) },
	} {
		t.Run(name, func(t *testing.T) {
			port, _ := serve(t, dialogue)
			x := openExternals(t, func(o *ExternalOptions) { o.ConnectTimeout = 300 * time.Millisecond })
			x.hasty.silence, x.hasty.total, x.whole = 200*time.Millisecond, 500*time.Millisecond, 700*time.Millisecond
			a := tenant.Address{Host: "127.0.0.1", Port: port, Database: "d", Username: "u", TLS: tenant.TLSVerifyFull}
			id := ident.New[ident.DatabaseID]()
			m := watchMemory()
			r, err := x.Probe(t.Context(), id, a, evilPassword)
			if err != nil || r.OK || r.Reachable || strings.Contains(fmt.Sprintf("%+v", r), "canary") {
				t.Errorf("%+v %v", r, err)
			}
			judgeEvil(t, "provision", x.Provision(t.Context(), id, a, evilPassword))
			if grown := m.growth(); grown > megabytes {
				t.Errorf("it takes %d KiB", grown>>10)
			}
		})
	}
}

// Plain text goes to networks that the operator allows, and to no other.
func TestPlainTextOnlyWhereAllowed(t *testing.T) {
	port, count := serve(t, mustNotAnswer)
	d := outbound.NewDialer(outbound.Config{Allow: loopback})
	for name, allowed := range map[string]func(net.Addr) bool{"none": nil, "others": func(net.Addr) bool { return false }} {
		x := NewExternals(ExternalOptions{Dial: d.DialContext, PlainAllowed: allowed})
		a := tenant.Address{Host: "127.0.0.1", Port: port, Database: "d", Username: "u", TLS: tenant.TLSDisable}
		id := ident.New[ident.DatabaseID]()
		_, err := x.Probe(t.Context(), id, a, evilPassword)
		if !fault.Is(err, fault.Invalid) || fault.CodeOf(err) != "tls_required" {
			t.Errorf("%s: %v", name, err)
		}
		wantCode(t, x.Provision(t.Context(), id, a, evilPassword), "tls_required")
		db := x.Open(id, a, evilPassword)
		err = db.Read(t.Context(), func(b *Batch) { b.Exec(`SELECT 1`) })
		if !fault.Is(err, fault.Unavailable) || fault.CodeOf(err) != "tls_required" {
			t.Errorf("%s: %v", name, err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		x.Close()
	}
	// That somebody came, and said nothing. Who listens hears of them a moment after they have left.
	for began := time.Now(); count.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatal("nobody came, so nothing was shown")
		}
	}
}
