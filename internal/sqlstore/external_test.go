package sqlstore

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/outbound"
	"claude-memory-backend/internal/outbound/outboundtest"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/tenant"
)

// loopback allows what tests listen on.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// openExternals reaches servers on this machine, without TLS too. Nothing is in a hurry, for busy machines: who looks at how long
// somebody waits sets that.
func openExternals(t testing.TB, change func(*ExternalOptions)) *Externals {
	t.Helper()
	d := outbound.NewDialer(outbound.Config{Allow: loopback})
	o := ExternalOptions{Dial: d.DialContext, PlainAllowed: d.Allowed, Judge: d.Judge, ConnectTimeout: time.Minute}
	if change != nil {
		change(&o)
	}
	x := unhurried(NewExternals(o))
	t.Cleanup(x.Close)
	return x
}

// unhurried lets servers that are there take as long as they like.
func unhurried(x *Externals) *Externals {
	x.hasty.silence, x.hasty.total, x.whole = time.Minute, 5*time.Minute, time.Minute
	return x
}

func addressOf(t testing.TB, url string) (tenant.Address, seal.Secret) {
	t.Helper()
	a, password, err := tenant.ParseAddress(seal.Secret(url))
	if err != nil {
		t.Fatal(err)
	}
	return a, password
}

// externalSchemas opens schemas in one database that a user registered, again and again. The limits for what somebody
// waits for are off: 64 writers on a busy machine do wait.
func externalSchemas(t testing.TB) func(testing.TB) *DB {
	t.Helper()
	x := openExternals(t, nil)
	x.hasty = patient
	a, password := addressOf(t, pgtest.URL(t))
	return func(t testing.TB) *DB {
		t.Helper()
		id := ident.New[ident.DatabaseID]()
		if err := x.Provision(t.Context(), id, a, password); err != nil {
			t.Fatal(err)
		}
		db := x.Open(id, a, password) // the schema goes with the whole database
		engineOf(db).preamble = engineOf(db).patient
		t.Cleanup(func() {
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
		return db
	}
}

func TestForbiddenAddressesOfDatabases(t *testing.T) {
	trap := outboundtest.NewTrap(t)
	names := outboundtest.Names()
	d := outbound.NewDialer(outbound.Config{Resolver: names})
	x := NewExternals(ExternalOptions{Dial: d.DialContext, PlainAllowed: d.Allowed})
	defer x.Close()
	hosts := outboundtest.Hosts()
	for host := range names {
		hosts = append(hosts, host)
	}
	id := ident.New[ident.DatabaseID]()
	for _, host := range hosts {
		for _, mode := range []tenant.TLSMode{tenant.TLSVerifyFull, tenant.TLSDisable} {
			a := tenant.Address{Host: host, Port: trap.Port, Database: "d", Username: "u", TLS: mode}
			db := x.Open(id, a, "pw")
			_, probed := x.Probe(t.Context(), id, a, "pw")
			for what, err := range map[string]error{
				"probe":     probed,
				"provision": x.Provision(t.Context(), id, a, "pw"),
				"destroy":   x.Destroy(t.Context(), id, a, "pw"),
				"read":      db.Read(t.Context(), func(b *Batch) { b.Exec(`SELECT 1`) }),
				"write":     db.Write(t.Context(), func(tx *Tx) error { return tx.Commit(func(b *Batch) { b.Exec(`SELECT 1`) }) }),
				"migrate":   func() error { _, err := Migrate(t.Context(), db, Tenant); return err }(),
			} {
				class := fault.Invalid
				if what == "read" || what == "write" || what == "migrate" {
					class = fault.Unavailable // whoever uses a database gave no address
				}
				if code := fault.CodeOf(err); !fault.Is(err, class) || code != "address_refused" && code != "invalid_input" {
					t.Errorf("%s %q: %v", what, host, err)
				}
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if got := trap.Count(t); got != 0 {
		t.Errorf("%d connections came in", got)
	}
	if len(hosts) < 300 {
		t.Errorf("only %d spellings", len(hosts))
	}
	t.Logf("%d spellings", len(hosts))
	t.Run("the trap works", func(t *testing.T) {
		a := tenant.Address{Host: "localhost", Port: trap.Port, Database: "d", Username: "u", TLS: tenant.TLSDisable}
		if r, err := openExternals(t, nil).Probe(t.Context(), "", a, "pw"); err != nil || r.OK {
			t.Errorf("%+v %v", r, err)
		}
		if trap.Count(t) == 0 {
			t.Error("nobody came")
		}
	})
}

// A name that changes its mind between two connections of the same database is decided about each time.
func TestDatabasesWhoseNamesChange(t *testing.T) {
	trap := outboundtest.NewTrap(t)
	r := &flipping{answers: []string{"127.0.0.2", "127.0.0.1"}}
	d := outbound.NewDialer(outbound.Config{Resolver: r, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}})
	x := NewExternals(ExternalOptions{Dial: d.DialContext, PlainAllowed: d.Allowed})
	defer x.Close()
	db := x.Open(ident.New[ident.DatabaseID](), tenant.Address{Host: "flip.example.com", Port: trap.Port, Database: "d", Username: "u",
		TLS: tenant.TLSDisable}, "pw")
	db = newDB(Postgres, engineOf(db)) // without the circuit breaker, which would end this soon
	codes := map[string]int{}
	for range 100 {
		codes[fault.CodeOf(db.Read(t.Context(), func(b *Batch) { b.Exec(`SELECT 1`) }))]++
	}
	if codes["address_refused"] != 50 || codes["address_unreachable"] != 50 {
		t.Errorf("%v", codes)
	}
	if got := trap.Count(t); got != 0 {
		t.Errorf("%d connections came in", got)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// flipping gives its answers in turn.
type flipping struct {
	answers []string
	count   atomic.Int64
}

func (f *flipping) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	n := f.count.Add(1) - 1
	return []netip.Addr{netip.MustParseAddr(f.answers[int(n)%len(f.answers)])}, nil
}
