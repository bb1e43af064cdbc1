package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/tenant"
)

// keySite is an installation that is opened under one master key and another.
type keySite struct {
	t   *testing.T
	env []string
}

const (
	oldKey = "Vt3Nw8Qz1Xc6Rb9Mj4Lk7Hp2Dg5Sy0Fa"
	newKey = "Xq5Bn2Wd8Ms4Zr7Tj1Gk6Vf9Ly3Hc0Pb"
)

func (k keySite) with(current, previous string) []string {
	return append([]string{"MASTER_KEY=" + current, "MASTER_KEY_PREVIOUS=" + previous}, k.env...)
}

// open opens it as a command does that may stand beside servers.
func (k keySite) open(current, previous string, as access) (*install, error) {
	s, err := loadSettings(k.with(current, previous), "")
	if err != nil {
		k.t.Fatal(err)
	}
	return openInstall(k.t.Context(), s, slog.New(slog.DiscardHandler), event.NewLocalBus(), as)
}

func (k keySite) opened(current, previous string, as access) *install {
	k.t.Helper()
	in, err := k.open(current, previous, as)
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { _ = in.close() })
	return in
}

// stopping ends a server as soon as it says that it listens.
type stopping struct{ stop func() }

func (s stopping) Write(b []byte) (int, error) { s.stop(); return len(b), nil }

// serve starts a server, which ends at once if it starts, and returns why it did not.
func (k keySite) serve(current, previous string) string {
	ctx, stop := context.WithCancel(k.t.Context())
	defer stop()
	var said bytes.Buffer
	env := append(k.with(current, previous), "PORT=0", "LOG_LEVEL=error")
	if run(ctx, []string{"serve"}, env, strings.NewReader(""), stopping{stop}, &said) == exitFine {
		return ""
	}
	return said.String()
}

// TestEveryKeyThatIsNeeded: at every moment of a rotation a server starts, and is ready, only with all keys that something
// is sealed under; nothing but a rewrap changes which these are.
func TestEveryKeyThatIsNeeded(t *testing.T) {
	for _, engine := range []string{"sqlite", "postgres"} {
		t.Run(engine, func(t *testing.T) {
			k := keySite{t, []string{"STORAGE_PATH=" + t.TempDir(), "JWT_SECRET=Zq7Lr1Tn9Yb3Hd6Kf5Gs0Pcx8Jq2vWm4"}}
			if engine == "postgres" { // of the master; files are sealed
				k.env = append(k.env, "MASTER_DATABASE_URL="+pgtest.URL(t))
			}
			if why := k.serve(oldKey, ""); why != "" {
				t.Fatal(why)
			}
			server := k.opened(oldKey, "", guest)
			first := k.register(server)
			kept, err := server.store.FindFact(t.Context(), lastingFact)
			if err != nil {
				t.Fatal(err)
			}
			same := func() {
				t.Helper()
				if now, err := server.store.FindFact(t.Context(), lastingFact); err != nil || !bytes.Equal(now, kept) {
					t.Errorf("the installation's key was sealed anew, %v", err)
				}
			}
			starts := func(current, previous string, want string) {
				t.Helper()
				why := k.serve(current, previous)
				if (want == "") != (why == "") || !strings.Contains(why, want) {
					t.Errorf("it says %q, want %q", why, want)
				}
			}
			const wrong, missing = "MASTER_KEY is not the one", "databases are sealed under another MASTER_KEY"

			// Commands with both keys beside a server with the old one.
			command := k.opened(newKey, oldKey, guest)
			same()
			second := k.register(command)
			if _, err := server.placements.Open(t.Context(), second.Placement); err != nil {
				t.Errorf("what a command with the new key made does not open in the server: %v", err)
			}
			starts(newKey, "", wrong)
			starts(oldKey, "", "")
			if err := server.ready(t.Context()); err != nil {
				t.Error(err)
			}

			// A rewrap that is killed before its last step.
			rewrapper := k.opened(newKey, oldKey, guest|anew)
			svc := newTenants(rewrapper, slog.New(slog.DiscardHandler), event.NewLocalBus(), nil, "test")
			killed := errors.New("killed")
			last := svc.Rewrapped
			svc.Rewrapped = func(context.Context) error { return killed }
			if _, err := svc.RewrapAll(t.Context()); !errors.Is(err, killed) {
				t.Fatal(err)
			}
			same()
			starts(oldKey, "", missing)
			starts(newKey, "", wrong)
			if err := server.ready(t.Context()); err == nil || !strings.Contains(err.Error(), missing) {
				t.Errorf("a server with the old key is ready: %v", err)
			}
			if err := k.opened(oldKey, newKey, guest).ready(t.Context()); err != nil {
				t.Errorf("with both keys: %v", err)
			}

			// It is done again, to the end.
			svc.Rewrapped = last
			if _, err := svc.RewrapAll(t.Context()); err != nil {
				t.Fatal(err)
			}
			starts(newKey, "", "")
			starts(oldKey, "", wrong)

			// A server that was not restarted seals something under the old key still.
			late, err := rewrapper.store.FindTenant(t.Context(), first.ID)
			if err != nil {
				t.Fatal(err)
			}
			if done, err := rewrapper.store.Reseal(t.Context(), late.Placement, first.Placement); err != nil || !done {
				t.Fatal(done, err)
			}
			starts(newKey, "", missing)
			if r, err := svc.RewrapAll(t.Context()); err != nil || r.Resealed != 1 {
				t.Fatalf("%+v, %v", r, err)
			}
			starts(newKey, "", "")
		})
	}
}

// TestARewrapOfNothingIsNoticed: where no tenant has anything sealed, since all of them live in PostgreSQL, a server with
// the old key alone is not ready after the rewrap either.
func TestARewrapOfNothingIsNoticed(t *testing.T) {
	for _, engine := range []string{"sqlite", "postgres"} {
		t.Run(engine, func(t *testing.T) {
			k := keySite{t, []string{"STORAGE_PATH=" + t.TempDir(), "JWT_SECRET=Zq7Lr1Tn9Yb3Hd6Kf5Gs0Pcx8Jq2vWm4"}}
			if engine == "postgres" {
				k.env = append(k.env, "MASTER_DATABASE_URL="+pgtest.URL(t), "TENANT_DATABASE_URLS="+pgtest.URL(t))
			}
			server := k.opened(oldKey, "", guest|anew)
			if err := useKeys(t.Context(), server.store, server.keys); err != nil {
				t.Fatal(err)
			}
			if engine == "postgres" {
				if home := k.register(server); len(home.Placement.WrappedKey)+len(home.Placement.SealedPassword) > 0 {
					t.Fatalf("something of it is sealed: %+v", home)
				}
			}
			if err := server.ready(t.Context()); err != nil {
				t.Fatal(err)
			}
			rewrapper := k.opened(newKey, oldKey, guest|anew)
			r, err := newTenants(rewrapper, slog.New(slog.DiscardHandler), event.NewLocalBus(), nil, "test").RewrapAll(t.Context())
			if err != nil || r.Databases != 0 {
				t.Fatalf("%+v, %v", r, err)
			}
			if err := server.ready(t.Context()); err == nil || !strings.Contains(err.Error(), "another MASTER_KEY") {
				t.Errorf("a server with the old key is ready: %v", err)
			}
			for _, previous := range []string{oldKey, ""} {
				if err := k.opened(newKey, previous, guest).ready(t.Context()); err != nil {
					t.Errorf("with the new key, and %q: %v", previous, err)
				}
			}
		})
	}
}

// register makes a tenant with a file, as an opened installation makes it.
func (k keySite) register(in *install) tenant.Tenant {
	k.t.Helper()
	s, err := loadSettings(k.with(newKey, oldKey), "")
	if err != nil {
		k.t.Fatal(err)
	}
	accounts, err := newAccounts(s, slog.New(slog.DiscardHandler), in)
	if err != nil {
		k.t.Fatal(err)
	}
	a, err := accounts.Create(k.t.Context(), account.CreateInput{Email: rand.Text() + "@example.org",
		Password: "four quiet words of mine", Role: ident.Member})
	if err != nil {
		k.t.Fatal(err)
	}
	t, err := in.store.FindTenant(k.t.Context(), a.Tenant)
	if err != nil {
		k.t.Fatal(err)
	}
	return t
}
