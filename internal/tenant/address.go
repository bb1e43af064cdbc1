package tenant

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/outbound"
	"claude-memory-backend/internal/seal"
)

// TLSMode says how the connection to a user's database is protected.
type TLSMode string

// The modes. There is none that encrypts without checking the certificate.
const (
	TLSVerifyFull TLSMode = "verify-full" // the certificate is checked, and that it names the host
	TLSDisable    TLSMode = "disable"     // plain text, to networks that the operator allows only
)

// Limits of an address. PostgreSQL cuts names after 63 bytes.
const (
	maxURL      = 4096
	maxName     = 63
	maxPassword = 1024
	defaultPort = 5432
)

// Address is where a user's own PostgreSQL is reached, without the password.
type Address struct {
	Host     string // a name, or an IP address without brackets
	Port     uint16
	Database string
	Username string
	TLS      TLSMode
}

// ParseAddress reads a postgres:// address as users write it:
//
//	postgres://username[:password]@host[:port]/database[?sslmode=verify-full|require|disable]
//
// There is one host and no other parameter; require means verify-full, which is the default. What is not a letter, a
// digit or one of -._~!$&'()*+,;=: is written as % and two hexadecimal digits. Errors are fault.Invalid with every
// problem at body.url, and never repeat the address.
//
// It is a grammar of our own, because drivers' parsers read files that an address names, take several hosts, and
// fall back to unencrypted connections.
func ParseAddress(url seal.Secret) (Address, seal.Secret, error) {
	const op = "tenant.ParseAddress"
	p := parser{}
	a, password := p.url(url.Reveal())
	if err := p.Err(op); err != nil {
		return Address{}, "", err
	}
	return a, seal.Secret(password), nil
}

// parser collects what is wrong with an address.
type parser struct{ fault.Checks }

func (p *parser) wrong(message string) { p.Add("body.url", message) }

func (p *parser) url(s string) (a Address, password string) {
	rest, ok := strings.CutPrefix(s, "postgres://")
	if !ok {
		rest, ok = strings.CutPrefix(s, "postgresql://")
	}
	switch {
	case !ok:
		p.wrong("must begin with postgres:// or postgresql://")
		return a, ""
	case len(s) > maxURL:
		p.wrong(fmt.Sprintf("must have at most %d characters", maxURL))
		return a, ""
	case strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }):
		p.wrong("must consist of visible ASCII characters; write others as % and two hexadecimal digits")
		return a, ""
	case strings.Contains(s, "#"):
		p.wrong("must not contain #; in a name or password write %23")
		return a, ""
	}
	rest, query, asked := strings.Cut(rest, "?")
	authority, database, hasDatabase := strings.Cut(rest, "/")
	userinfo, place, hasUser := strings.Cut(authority, "@")
	switch {
	case !hasUser:
		p.wrong("must name the user, as in postgres://user:password@host/database")
	case strings.Contains(place, "@"):
		p.wrong("must contain @ only before the host; in a name or password write %40")
		return a, ""
	default:
		username, secret, _ := strings.Cut(userinfo, ":")
		a.Username = p.name("user name", username)
		var ok bool
		if password, ok = p.decode("password", secret, ":"); ok && wrongPassword(password) != "" {
			p.wrong("the password " + wrongPassword(password))
		}
		a.Host, a.Port = p.place(place)
	}
	switch {
	case !hasDatabase || database == "":
		p.wrong("must name the database, as in postgres://user:password@host/database")
	case strings.Contains(database, "/"):
		p.wrong("must have one / before the database's name and none in it; in the name write %2F")
	default:
		a.Database = p.name("database's name", database)
	}
	a.TLS = TLSVerifyFull
	if asked {
		a.TLS = p.query(query)
	}
	return a, password
}

// place reads host and port.
func (p *parser) place(s string) (host string, port uint16) {
	const wrongHost = "the host must be one name, such as db.example.com, or one IP address in its usual form (IPv6 in brackets); write other letters in the xn-- form"
	service, hasPort := "", false
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			p.wrong(wrongHost)
			return "", 0
		}
		host, service = s[1:end], s[end+1:]
		if ip, err := netip.ParseAddr(host); err != nil || !ip.Is6() {
			host = "" // brackets are for IPv6 alone
		}
		if service, hasPort = strings.CutPrefix(service, ":"); !hasPort && service != "" {
			host = ""
		}
	} else {
		host, service, hasPort = strings.Cut(s, ":")
	}
	if !outbound.ValidHost(host) {
		p.wrong(wrongHost)
	}
	if !hasPort {
		return strings.ToLower(host), defaultPort
	}
	n, err := strconv.ParseUint(service, 10, 16)
	if err != nil || n == 0 || service[0] == '0' || service[0] == '+' {
		p.wrong("the port must be a number from 1 to 65535")
	}
	return strings.ToLower(host), uint16(n)
}

func (p *parser) query(s string) TLSMode {
	switch s {
	case "sslmode=verify-full", "sslmode=require":
		return TLSVerifyFull
	case "sslmode=disable":
		return TLSDisable
	}
	if value, ok := strings.CutPrefix(s, "sslmode="); ok && !strings.Contains(value, "&") {
		p.wrong("sslmode must be verify-full, require (which means the same here) or disable")
	} else {
		p.wrong("must have no parameter but one sslmode, which is verify-full, require or disable")
	}
	return ""
}

// name decodes and checks the name of a user or database.
func (p *parser) name(what, s string) string {
	s, ok := p.decode(what, s, "")
	if ok && wrongName(s) != "" {
		p.wrong("the " + what + " " + wrongName(s))
	}
	return s
}

// decode undoes percent-encoding. What a URL may not hold as it is, is refused, rather than guessed at.
func (p *parser) decode(what, s, also string) (string, bool) {
	const plain = "-._~!$&'()*+,;="
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]):
			n, _ := strconv.ParseUint(s[i+1:i+3], 16, 8)
			c, i = byte(n), i+2
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte(plain+also, c) >= 0:
		default:
			p.wrong("the " + what + " must have special characters written as % and two hexadecimal digits, and % itself as %25")
			return "", false
		}
		b.WriteByte(c)
	}
	return b.String(), true
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

// Check notes what is wrong with the address, each problem at body.host, body.port and so on.
func (a Address) Check(c *fault.Checks) {
	if !outbound.ValidHost(a.Host) {
		c.Add("body.host", "must be one name, such as db.example.com, or one IP address in its usual form; write other letters in the xn-- form")
	}
	if a.Port == 0 {
		c.Add("body.port", "must be a number from 1 to 65535")
	}
	if message := wrongName(a.Database); message != "" {
		c.Add("body.database", message)
	}
	if message := wrongName(a.Username); message != "" {
		c.Add("body.username", message)
	}
	c.OneOf("body.tls", string(a.TLS), string(TLSVerifyFull), string(TLSDisable))
}

// CheckPassword notes what is wrong with the password, which may be empty, at body.password.
func CheckPassword(c *fault.Checks, password seal.Secret) {
	if message := wrongPassword(password.Reveal()); message != "" {
		c.Add("body.password", message)
	}
}

func wrongName(s string) string {
	switch {
	case s == "":
		return "must not be empty"
	case len(s) > maxName:
		return fmt.Sprintf("must have at most %d bytes", maxName)
	case !clean(s):
		return "must be valid UTF-8 without control characters"
	}
	return ""
}

func wrongPassword(s string) string {
	switch {
	case len(s) > maxPassword:
		return fmt.Sprintf("must have at most %d bytes", maxPassword)
	case !clean(s):
		return "must be valid UTF-8 without control characters"
	}
	return ""
}

func clean(s string) bool { return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl) }
