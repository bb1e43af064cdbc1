package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"mime"
	"mime/quotedprintable"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/clocktest"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/webhook"
	"claude-memory-backend/internal/workspace"
)

// TestAPauseIsMailed: an endpoint fails for 72 hours, as the clock has it, and its owner finds a mail; all parts are those of the
// server, wired as it wires them.
func TestAPauseIsMailed(t *testing.T) {
	for _, engine := range []string{"sqlite", "postgres"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }))
			t.Cleanup(sink.Close)
			env := []string{"STORAGE_PATH=" + t.TempDir(), "OUTBOUND_ALLOW=127.0.0.1/32"}
			if engine == "postgres" {
				url := pgtest.URL(t)
				env = append(env, "MASTER_DATABASE_URL="+url, "TENANT_DATABASE_URLS="+url)
			}
			s, err := loadSettings(env, "")
			if err != nil {
				t.Fatal(err)
			}
			log, bus := slog.New(slog.DiscardHandler), event.NewLocalBus()
			in, err := openInstall(t.Context(), s, log, bus, owner)
			if err != nil {
				t.Fatal(err)
			}
			defer in.close() //nolint:errcheck // nothing is written any more
			outbox, err := newOutbox(s, log, in)
			if err != nil {
				t.Fatal(err)
			}
			clock := clocktest.New(time.Now())
			hooks := newWebhooks(s, log, in, newCounters(), "a", outbox)
			hooks.Now = clock.Now
			pool := workspace.NewPool(workspace.Config{Directory: in.store, Hints: in.store, Trail: in.store.Trail(), Placements: in.placements, Bus: bus,
				Engine: conversation.NewEngine(conversation.Config{Node: "a", Sole: true, Bus: bus, Log: log}), Webhooks: hooks, Sealer: in.keys, Log: log,
				Sole: true, Now: clock.Now})
			defer pool.Close(t.Context())
			defer hooks.Close(t.Context())
			accounts, err := newAccounts(s, log, in)
			if err != nil {
				t.Fatal(err)
			}
			me, err := accounts.Register(t.Context(), account.RegisterInput{Email: "ada@example.com", Password: "correct horse battery", Name: "Ada"}, account.Origin{})
			if err != nil {
				t.Fatal(err)
			}
			who, err := accounts.Verify(t.Context(), me.AccessToken, account.Origin{})
			if err != nil {
				t.Fatal(err)
			}
			ws, err := pool.Acquire(t.Context(), who.Actor, who.Tenant)
			if err != nil {
				t.Fatal(err)
			}
			defer ws.Release()
			hook, err := ws.Webhooks.Create(t.Context(), who.Actor, webhook.CreateInput{Details: webhook.Details{Name: "Harbour log", URL: sink.URL + "/secret-path",
				Events: []string{"project.*"}}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ws.Projects.Create(t.Context(), who.Actor, project.CreateInput{Details: project.Details{Name: "p"}}); err != nil {
				t.Fatal(err)
			}
			until := func(what string, done func() bool) {
				t.Helper()
				look := time.NewTicker(2 * time.Millisecond)
				defer look.Stop()
				for late := time.Now().Add(30 * time.Second); !done(); <-look.C {
					if time.Now().After(late) {
						t.Fatal("not in time: " + what)
					}
				}
			}
			tried := func(n int) func() bool {
				return func() bool {
					list, _, err := ws.Webhooks.Deliveries(t.Context(), who.Actor, hook.Endpoint.ID, webhook.DeliveryQuery{Limit: 1})
					if err != nil {
						t.Fatal(err)
					}
					return len(list) == 1 && list[0].Tries == n
				}
			}
			mails := func() []string {
				list, err := filepath.Glob(filepath.Join(s.storage("mails"), "*.eml"))
				if err != nil {
					t.Fatal(err)
				}
				return list
			}
			running, stop := context.WithCancel(t.Context())
			var sending sync.WaitGroup
			sending.Go(func() { _ = outbox.Run(running) })
			defer sending.Wait()
			defer stop()
			until("the first try", tried(1))
			for n := 2; n <= 4; n++ {
				if list := mails(); len(list) > 0 {
					t.Fatalf("a mail after %d hours: %v", 24*(n-2), list)
				}
				clock.Pass(24*time.Hour + time.Second)
				if err := pool.Recover(t.Context()); err != nil { // whoever looks after what is due
					t.Fatal(err)
				}
				until("one more try", tried(n))
			}
			until("the mail", func() bool { return len(mails()) > 0 })
			e, err := ws.Webhooks.Find(t.Context(), who.Actor, hook.Endpoint.ID)
			if err != nil || e.State != webhook.Paused || e.Reason != webhook.Failing {
				t.Errorf("%+v, %v", e, err)
			}
			raw, err := os.ReadFile(mails()[0])
			if err != nil {
				t.Fatal(err)
			}
			letter, err := mail.ReadMessage(bytes.NewReader(raw))
			if err != nil {
				t.Fatal(err)
			}
			subject, err := new(mime.WordDecoder).DecodeHeader(letter.Header.Get("Subject"))
			if err != nil || !strings.Contains(subject, `"Harbour log"`) || !strings.Contains(letter.Header.Get("To"), "ada@example.com") {
				t.Errorf("%q to %q, %v", subject, letter.Header.Get("To"), err)
			}
			text, err := io.ReadAll(quotedprintable.NewReader(letter.Body))
			since := clock.Now().Add(-3 * (24*time.Hour + time.Second)).UTC()
			for _, part := range []string{"Every attempt has failed since", since.Format("2 January 2006, 15:04 UTC"), "/webhooks/" + string(hook.Endpoint.ID)} {
				if err != nil || !strings.Contains(string(text), part) {
					t.Errorf("no %q in %s, %v", part, text, err)
				}
			}
			if strings.Contains(string(raw), "secret-path") || len(mails()) != 1 {
				t.Errorf("%v: %s", mails(), raw)
			}
		})
	}
}
