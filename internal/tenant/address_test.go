package tenant_test

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/tenant"
)

func TestParseAddress(t *testing.T) {
	full := tenant.TLSVerifyFull
	for _, c := range []struct {
		url      string
		want     tenant.Address
		password string
	}{
		{"postgres://ada:pw@db.example.com/notes", tenant.Address{"db.example.com", 5432, "notes", "ada", full}, "pw"},
		{"postgresql://ada:pw@db.example.com:6543/notes", tenant.Address{"db.example.com", 6543, "notes", "ada", full}, "pw"},
		{"postgres://ada@DB.Example.com/notes?sslmode=verify-full", tenant.Address{"db.example.com", 5432, "notes", "ada", full}, ""},
		{"postgres://ada:@db/notes?sslmode=require", tenant.Address{"db", 5432, "notes", "ada", full}, ""},
		{"postgres://ada:pw@10.1.2.3:1/n?sslmode=disable", tenant.Address{"10.1.2.3", 1, "n", "ada", tenant.TLSDisable}, "pw"},
		{"postgres://ada:pw@[2001:DB8::1]:65535/n", tenant.Address{"2001:db8::1", 65535, "n", "ada", full}, "pw"},
		{"postgres://ada:pw@[::1]/n", tenant.Address{"::1", 5432, "n", "ada", full}, "pw"},
		{"postgres://ada:pw@my_db.xn--bcher-kva.example/n", tenant.Address{"my_db.xn--bcher-kva.example", 5432, "n", "ada", full}, "pw"},
		{"postgres://a%40b:p%40%3A%2F%3f%23%25%20w@h.example/n%2Fo%20%C3%A4", tenant.Address{"h.example", 5432, "n/o ä", "a@b", full}, "p@:/?#% w"},
		{"postgres://a:p:q;r=s,t!$&'()*+-._~@h/n", tenant.Address{"h", 5432, "n", "a", full}, "p:q;r=s,t!$&'()*+-._~"},
		{"postgres://a:%F0%9F%94%91@h/n", tenant.Address{"h", 5432, "n", "a", full}, "🔑"},
	} {
		got, password, err := tenant.ParseAddress(seal.Secret(c.url))
		if err != nil || got != c.want || password.Reveal() != c.password {
			t.Errorf("%s: %+v %q %v", c.url, got, password.Reveal(), err)
		}
		var checks fault.Checks
		got.Check(&checks)
		tenant.CheckPassword(&checks, password)
		if err := checks.Err("test"); err != nil {
			t.Errorf("%s: its parts are refused: %v", c.url, err)
		}
	}
}

// hostile are addresses that must be refused. MARK stands where an error must not repeat what is there.
func hostile() []string {
	list := []string{
		"", " ", "MARK", "postgres", "postgres:", "postgres:/", "postgres://", "postgresql://", "postgres:///", "postgres://MARK",
		"POSTGRES://u:MARK@h/d", "Postgres://u:MARK@h/d", "postgres:u:MARK@h/d", "//u:MARK@h/d", "u:MARK@h/d", "http://u:MARK@h/d",
		"https://u:MARK@h/d", "mysql://u:MARK@h/d", "file:///MARK", "unix:///MARK", "jdbc:postgresql://u:MARK@h/d", "pgsql://u:MARK@h/d",
		"postgres+ssl://u:MARK@h/d", " postgres://u:MARK@h/d", "postgres://u:MARK@h/d ", "postgres://u:MARK@h/d\n", "\tpostgres://u:MARK@h/d",
		"postgres://u:MARK@h/d\x00", "postgres://u:MARK\x00@h/d", "postgres://u:MA RK@h/d", "postgres://u:MÄRK@h/d", "postgres://ü:MARK@h/d",
		"postgres://u:MARK@höst/d", "postgres://u:MARK@h/dä", "postgres://u:MARK@h/d#", "postgres://u:MARK#@h/d", "postgres://u#:MARK@h/d",
		"postgres://u:MARK@h/d#?sslmode=disable",
		// Keywords and values instead of a URL.
		"host=MARK", "host=h user=u password=MARK dbname=d", "host='/tmp' user=u", "service=MARK", "user=u sslrootcert=/etc/passwd",
		// Without what is needed.
		"postgres://h/d", "postgres://MARK/d", "postgres://@h/d", "postgres://:MARK@h/d", "postgres://u:MARK@/d", "postgres://u:MARK@:5432/d",
		"postgres://u:MARK@h", "postgres://u:MARK@h/", "postgres://u:MARK@h?sslmode=disable", "postgres://u:MARK@h/?sslmode=disable",
		"postgres://u:MARK@", "postgres://u:MARK", "postgres:///d?host=/tmp&user=MARK",
		// Several hosts, sockets, odd hosts.
		"postgres://u:MARK@h1,h2/d", "postgres://u:MARK@h1:1,h2:2/d", "postgres://u:MARK@h,127.0.0.1/d", "postgres://u:MARK@h,/d",
		"postgres://u:MARK@%2Ftmp/d", "postgres://u:MARK@%2Fvar%2Frun%2Fpostgresql/d", "postgres://u:MARK@/tmp/d", "postgres://u:MARK@//h/d",
		"postgres://u:MARK@./d", "postgres://u:MARK@../d", "postgres://u:MARK@h./d", "postgres://u:MARK@.h/d", "postgres://u:MARK@h..h/d",
		"postgres://u:MARK@-h/d", "postgres://u:MARK@h-/d", "postgres://u:MARK@h%00/d", "postgres://u:MARK@h%2eexample/d",
		"postgres://u:MARK@127.0.0.1.evil%2F/d", "postgres://u:MARK@2130706433/d", "postgres://u:MARK@0x7f000001/d", "postgres://u:MARK@0177.0.0.1/d",
		"postgres://u:MARK@127.1/d", "postgres://u:MARK@127.0.0.01/d", "postgres://u:MARK@1.2.3/d", "postgres://u:MARK@1.2.3.4.5/d",
		"postgres://u:MARK@999.1.1.1/d", "postgres://u:MARK@::1/d", "postgres://u:MARK@::1:5432/d", "postgres://u:MARK@[::1/d", "postgres://u:MARK@::1]/d",
		"postgres://u:MARK@[::1%25lo]/d", "postgres://u:MARK@[::1%lo]/d", "postgres://u:MARK@[fe80::1%25eth0]:1/d", "postgres://u:MARK@[127.0.0.1]/d",
		"postgres://u:MARK@[h]/d", "postgres://u:MARK@[]/d", "postgres://u:MARK@[::1]x/d", "postgres://u:MARK@[::1]]/d", "postgres://u:MARK@[[::1]]/d",
		"postgres://u:MARK@h@127.0.0.1/d", "postgres://u:MARK@@h/d", "postgres://u@x:MARK@h/d", "postgres://u:MARK@h\\@127.0.0.1/d",
		"postgres://u:MARK@h;127.0.0.1/d", "postgres://u:MARK@h&127.0.0.1/d", "postgres://u:MARK@h*/d", "postgres://u:MARK@$(id)/d",
		"postgres://u:MARK@`id`/d", "postgres://u:MARK@h|id/d", "postgres://u:MARK@<h>/d", "postgres://u:MARK@h\"/d", "postgres://u:MARK@'h'/d",
		"postgres://u:MARK@" + strings.Repeat("a", 64) + ".example/d", "postgres://u:MARK@" + strings.Repeat("a.", 140) + "example/d",
		// Ports.
		"postgres://u:MARK@h:/d", "postgres://u:MARK@h:0/d", "postgres://u:MARK@h:00/d", "postgres://u:MARK@h:05432/d", "postgres://u:MARK@h:-1/d",
		"postgres://u:MARK@h:+1/d", "postgres://u:MARK@h:65536/d", "postgres://u:MARK@h:99999999999999999999/d", "postgres://u:MARK@h:0x1538/d",
		"postgres://u:MARK@h:5432x/d", "postgres://u:MARK@h:54 32/d", "postgres://u:MARK@h:5432:5432/d", "postgres://u:MARK@h:postgres/d",
		"postgres://u:MARK@h:%35432/d", "postgres://u:MARK@h:5_432/d", "postgres://u:MARK@h:1e3/d", "postgres://u:MARK@h:5432,5433/d",
		"postgres://u:MARK@[::1]:/d", "postgres://u:MARK@[::1]:0/d",
		// Databases.
		"postgres://u:MARK@h//d", "postgres://u:MARK@h/d/", "postgres://u:MARK@h/d/e", "postgres://u:MARK@h/../d", "postgres://u:MARK@h/d%00",
		"postgres://u:MARK@h/d%0a", "postgres://u:MARK@h/%ff", "postgres://u:MARK@h/%c3%28", "postgres://u:MARK@h/" + strings.Repeat("d", 64),
		"postgres://u:MARK@h/d@e", "postgres://u:MARK@h/d:e", "postgres://u:MARK@h/d%", "postgres://u:MARK@h/d%2", "postgres://u:MARK@h/d%zz",
		"postgres://u:MARK@h/d%2g", "postgres://u:MARK@h/{d}", "postgres://u:MARK@h/d^e", "postgres://u:MARK@h/%7f",
		// Names and passwords.
		"postgres://%00:MARK@h/d", "postgres://%0d%0a:MARK@h/d", "postgres://u%ff:MARK@h/d", "postgres://" + strings.Repeat("u", 64) + ":MARK@h/d",
		"postgres://u%:MARK@h/d", "postgres://u[:MARK@h/d", "postgres://u:MARK%@h/d", "postgres://u:MARK%0@h/d", "postgres://u:MARK%gg@h/d",
		"postgres://u:MARK%00@h/d", "postgres://u:MARK%0a@h/d", "postgres://u:MARK%fe@h/d", "postgres://u:MARK%ed%a0%80@h/d", "postgres://u:MARK[@h/d",
		"postgres://u:MARK\"@h/d", "postgres://u:MARK\\@h/d", "postgres://u:MARK/@h/d", "postgres://u:MARK?@h/d", "postgres://u:MARK^@h/d",
		"postgres://u:" + strings.Repeat("MARK", 300) + "@h/d", "postgres://u:" + strings.Repeat("MARK", 5000) + "@h/d",
		// Parameters.
		"postgres://u:MARK@h/d?", "postgres://u:MARK@h/d??", "postgres://u:MARK@h/d?&", "postgres://u:MARK@h/d?sslmode", "postgres://u:MARK@h/d?sslmode=",
		"postgres://u:MARK@h/d?sslmode=prefer", "postgres://u:MARK@h/d?sslmode=allow", "postgres://u:MARK@h/d?sslmode=verify-ca",
		"postgres://u:MARK@h/d?sslmode=Disable", "postgres://u:MARK@h/d?sslmode=disable&", "postgres://u:MARK@h/d?&sslmode=disable",
		"postgres://u:MARK@h/d?sslmode=disable&sslmode=require", "postgres://u:MARK@h/d?sslmode=disable;x=1", "postgres://u:MARK@h/d?SSLMODE=disable",
		"postgres://u:MARK@h/d?ssl=true", "postgres://u:MARK@h/d?sslmode=dis%61ble", "postgres://u:MARK@h/d?%73slmode=disable",
		"postgres://u:MARK@h/d?sslmode=require&host=127.0.0.1", "postgres://u:MARK@h/d?sslmode=require#x", "postgres://u:MARK@h/d?sslmode=require?x",
	}
	for _, key := range []string{"host", "hostaddr", "port", "user", "password", "dbname", "database", "service", "servicefile", "passfile",
		"sslcert", "sslkey", "sslrootcert", "sslcrl", "sslcrldir", "sslpassword", "sslnegotiation", "sslsni", "sslcertmode", "requiressl",
		"options", "application_name", "fallback_application_name", "connect_timeout", "client_encoding", "target_session_attrs",
		"channel_binding", "gssencmode", "krbsrvname", "krbspn", "gsslib", "replication", "require_auth", "load_balance_hosts",
		"min_protocol_version", "max_protocol_version", "keepalives", "tcp_user_timeout", "statement_timeout", "search_path",
		"default_query_exec_mode", "pool_max_conns", "statement_cache_capacity", "role", "session_authorization", "timezone", "unknown"} {
		list = append(list, "postgres://u:MARK@h/d?"+key+"=/etc/MARK", "postgres://u:MARK@h/d?sslmode=require&"+key+"=MARK")
	}
	return list
}

func TestHostileAddressesAreRefused(t *testing.T) {
	list := hostile()
	for _, text := range list {
		a, password, err := tenant.ParseAddress(seal.Secret(text))
		f, _ := errors.AsType[*fault.Error](err)
		if f == nil || f.Class != fault.Invalid || f.Code != "invalid_input" || len(f.Fields) == 0 {
			t.Errorf("%q: %+v %v", text, a, err)
			continue
		}
		if a != (tenant.Address{}) || password != "" {
			t.Errorf("%q: something came back", text)
		}
		for _, field := range f.Fields {
			if field.Location != "body.url" || field.Message == "" || strings.Contains(field.Message, "MARK") {
				t.Errorf("%q: %+v", text, field)
			}
		}
		if strings.Contains(f.Error(), "MARK") || strings.Contains(fmt.Sprintf("%+v", f), "MARK") {
			t.Errorf("%q: the error repeats it", text)
		}
	}
	if len(list) < 150 {
		t.Errorf("only %d addresses", len(list))
	}
	t.Logf("%d addresses", len(list))
}

// An error must not tell whether a file exists, nor anything else about this machine.
func TestErrorsDoNotDependOnTheMachine(t *testing.T) {
	for _, form := range []string{"postgres://u:p@h/d?sslrootcert=%s", "postgres://u:p@h/d?service=x&servicefile=%s", "postgres://u:p@%s/d",
		"postgres://u:p@h/d?passfile=%s", "postgres://u:p@h/d?sslcert=%[1]s&sslkey=%[1]s"} {
		_, _, there := tenant.ParseAddress(seal.Secret(fmt.Sprintf(form, "/etc/passwd")))
		_, _, missing := tenant.ParseAddress(seal.Secret(fmt.Sprintf(form, "/etc/missing")))
		if there == nil || missing == nil || fmt.Sprintf("%+v", there) != fmt.Sprintf("%+v", missing) {
			t.Errorf("%s: %+v against %+v", form, there, missing)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		a        tenant.Address
		password string
		want     string
	}{
		{tenant.Address{"db.example.com", 5432, "d", "u", tenant.TLSVerifyFull}, "pw", ""},
		{tenant.Address{"::1", 1, "ä/b c", "a@b", tenant.TLSDisable}, "", ""},
		{tenant.Address{}, "", "body.host body.port body.database body.username body.tls"},
		{tenant.Address{"h,i", 5432, "d", "u", "prefer"}, "p\x00", "body.host body.tls body.password"},
		{tenant.Address{"/tmp", 5432, "d\n", "u\xff", tenant.TLSVerifyFull}, strings.Repeat("x", 1025), "body.host body.database body.username body.password"},
		{tenant.Address{"[::1]", 5432, strings.Repeat("d", 64), strings.Repeat("u", 64), tenant.TLSVerifyFull}, "", "body.host body.database body.username"},
	} {
		var checks fault.Checks
		c.a.Check(&checks)
		tenant.CheckPassword(&checks, seal.Secret(c.password))
		var at []string
		if f, ok := errors.AsType[*fault.Error](checks.Err("test")); ok {
			for _, field := range f.Fields {
				at = append(at, field.Location)
			}
		}
		if got := strings.Join(at, " "); got != c.want {
			t.Errorf("%+v: %q", c.a, got)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range hostile() {
		f.Add(s)
	}
	f.Add("postgres://a%40b:p%40%3A%2F%3f%23%25%20w@h.example:1/n%2Fo%20%C3%A4?sslmode=disable")
	f.Fuzz(func(t *testing.T, text string) {
		a, password, err := tenant.ParseAddress(seal.Secret(text))
		if err != nil {
			if !fault.Is(err, fault.Invalid) || a != (tenant.Address{}) || password != "" {
				t.Fatalf("%v %+v", err, a)
			}
			return
		}
		var checks fault.Checks
		a.Check(&checks)
		tenant.CheckPassword(&checks, password)
		if err := checks.Err("test"); err != nil {
			t.Fatalf("%+v is accepted and refused: %v", a, err)
		}
		if strings.ContainsAny(a.Host, "/\\,@ %[]") || a.Port == 0 || !slices.Contains([]tenant.TLSMode{tenant.TLSVerifyFull, tenant.TLSDisable}, a.TLS) {
			t.Fatalf("%+v", a)
		}
		// What the standard library makes of an accepted address is the same.
		u, err := url.Parse(text)
		if err != nil {
			t.Fatalf("no URL: %v", err)
		}
		secret, _ := u.User.Password()
		if !strings.EqualFold(u.Hostname(), a.Host) || u.User.Username() != a.Username || secret != password.Reveal() || strings.TrimPrefix(u.Path, "/") != a.Database {
			t.Fatalf("%+v against %+v", a, u)
		}
		// And written out again it is itself.
		host := a.Host
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		again := fmt.Sprintf("postgres://%s:%s@%s:%d/%s?sslmode=%s", escape(a.Username), escape(password.Reveal()), host, a.Port, escape(a.Database), a.TLS)
		b, secondPassword, err := tenant.ParseAddress(seal.Secret(again))
		if len(again) <= 4096 && (err != nil || a != b || password != secondPassword) {
			t.Fatalf("%+v became %+v, %v", a, b, err)
		}
	})
}

// escape writes everything as percent codes.
func escape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		fmt.Fprintf(&b, "%%%02x", s[i])
	}
	return b.String()
}
