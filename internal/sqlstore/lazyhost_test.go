package sqlstore

import (
	"context"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/pgtest/toxic"
	"claude-memory-backend/internal/seal"
)

func lazyHost(t *testing.T, address string) *LazyHost {
	t.Helper()
	l, err := NewLazyHost(seal.Secret(address), PostgresHostOptions{MaxConns: 4, RuntimePassword: runtimePassword})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// dropLogin drops the login that a host made when the test ends: roles outlive the test's database.
func dropLogin(t *testing.T, address string) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	login := runtimeLogin(strings.TrimPrefix(u.Path, "/"))
	t.Cleanup(func() { run(t, address, `DROP OWNED BY "`+login+`"; DROP ROLE IF EXISTS "`+login+`"`) })
}

func TestAHostThatIsNotThereYet(t *testing.T) {
	address := pgtest.URL(t)
	dropLogin(t, address)
	for name, goAway := range map[string]func(*toxic.Link){"refuses": (*toxic.Link).Cut, "hangs": (*toxic.Link).Hang} {
		t.Run(name, func(t *testing.T) {
			proxied, link := toxic.Slow(t, address, 0)
			l := lazyHost(t, proxied)
			goAway(link)
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					_, err := l.Host(t.Context())
					wantCode(t, err, "database_unreachable")
					if !fault.Is(err, fault.Unavailable) || !Unreachable(err) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			// For a while nobody tries, however often somebody asks; how long is the operator's patience, not the test's.
			if name == "refuses" {
				l.mu.Lock()
				until := l.until
				l.mu.Unlock()
				for range 100 {
					if _, err := l.Host(t.Context()); !Unreachable(err) {
						t.Fatal(err)
					}
				}
				l.mu.Lock()
				if time.Now().Before(until) && l.until != until {
					t.Error("another attempt was made in the pause")
				}
				l.mu.Unlock()
			}
			link.Restore()
			h := comesBack(t, l)
			if _, db := provision(t, h); db.Read(t.Context(), func(b *Batch) { b.Exec(`SELECT seq FROM log_head`) }) != nil {
				t.Error("its tenants cannot be read")
			}
			if again, err := l.Host(t.Context()); again != h || err != nil {
				t.Error("not the same host:", err)
			}
		})
	}
}

// comesBack asks until the host is there, as requests do.
func comesBack(t *testing.T, l *LazyHost) *PostgresHost {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		h, err := l.Host(t.Context())
		if err == nil {
			inNoHurry(h)
			return h
		}
		if !Unreachable(err) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestHostsThatAreThereAndCannotBeUsed(t *testing.T) {
	address := pgtest.URL(t)
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	wrong, missing := *u, *u
	wrong.User = url.UserPassword(u.User.Username(), "wrong")
	missing.Path = "/nothing"
	for name, at := range map[string]string{"a wrong password": wrong.String(), "no such database": missing.String()} {
		if _, err := lazyHost(t, at).Connect(t.Context()); err == nil || Unreachable(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewLazyHost("postgres://u:p@%zz", PostgresHostOptions{}); fault.CodeOf(err) != "database_url_invalid" {
		t.Error(err)
	}
	t.Run("closed while it tries", func(t *testing.T) {
		proxied, link := toxic.Slow(t, address, 0)
		link.Hang()
		l := lazyHost(t, proxied)
		failed := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_, err := l.Connect(ctx)
			failed <- err
		}()
		for busy := false; !busy; {
			l.mu.Lock()
			busy = l.attempt != nil
			l.mu.Unlock()
		}
		l.Close()
		if err := <-failed; err == nil {
			t.Error("it was opened")
		}
		cancel()
		if _, err := l.Host(t.Context()); err == nil {
			t.Error("a closed one was opened")
		}
	})
}

// A node that starts must not lock out the clients of a pooler, which signed in with what the login was before.
func TestTheLoginsSecretStaysTheSame(t *testing.T) {
	one, err := scram("a password")
	two, err2 := scram("a password")
	other, err3 := scram("another password")
	if err != nil || err2 != nil || err3 != nil {
		t.Fatal(err, err2, err3)
	}
	if one != two || strings.Split(one, "$")[1] == strings.Split(other, "$")[1] {
		t.Error("verifiers or salts are not what they should be")
	}
}
