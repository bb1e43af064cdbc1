package sqlstore

import (
	"net/netip"
	"testing"
	"time"

	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/outbound"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/tenant"
)

// loopback allows what tests listen on.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// openExternals reaches servers on this machine, without TLS too.
func openExternals(t testing.TB, change func(*ExternalOptions)) *Externals {
	t.Helper()
	d := outbound.NewDialer(outbound.Config{Allow: loopback})
	o := ExternalOptions{Dial: d.DialContext, PlainAllowed: d.Allowed}
	if change != nil {
		change(&o)
	}
	x := NewExternals(o)
	t.Cleanup(x.Close)
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
	x := openExternals(t, func(o *ExternalOptions) { o.ConnectTimeout = time.Minute })
	x.hasty = patient
	a, password := addressOf(t, pgtest.URL(t))
	return func(t testing.TB) *DB {
		t.Helper()
		id := ident.New[ident.DatabaseID]()
		if err := x.Provision(t.Context(), id, a, password); err != nil {
			t.Fatal(err)
		}
		db := x.Open(id, a, password) // the schema goes with the whole database
		e := db.on.Load().engine.(*postgresEngine)
		e.preamble = e.patient
		t.Cleanup(func() {
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
		return db
	}
}
