package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
)

// site is an installation on one engine: databases that outlive the servers on them.
type site struct {
	engine string
	binary string
	dir    string
	url    string // of PostgreSQL; empty: SQLite
	model  *lab.Model
	server *lab.Server
	close  []func() error
}

// masterKey seals what is made up.
const masterKey = "7h2Kq9ZxV4mB8nW1sD6fG3jL5pR0tY/u+cE"

func launch(binary string, args []string) (*lab.Server, error) {
	return lab.Launch(binary, args, os.TempDir())
}

func newSite(ctx context.Context, engine, binary string, model *lab.Model) (*site, error) {
	s := &site{engine: engine, binary: binary, model: model}
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return nil, err
	}
	s.dir = dir
	s.close = append(s.close, func() error { return os.RemoveAll(dir) })
	if engine == "postgres" {
		// As an operator would run it, but for the cache: a container's memory is small.
		cluster, err := pgtest.Start(ctx, pgtest.Options{Settings: map[string]string{"shared_buffers": "256MB"}})
		if err != nil {
			return nil, errors.Join(err, s.end())
		}
		s.close = append(s.close, cluster.Stop)
		s.url = cluster.URL
	}
	return s, nil
}

// start starts the server, and stops the one that runs.
func (s *site) start(env ...string) (err error) {
	if err := s.stop(); err != nil {
		return err
	}
	env = append(append(env, s.model.Env()...), "STORAGE_PATH="+s.dir, "MASTER_KEY="+masterKey, "MASTER_DATABASE_URL="+s.url,
		"TENANT_DATABASE_URLS="+s.url)
	s.server, err = lab.Start(s.binary, s.dir, env...)
	return err
}

func (s *site) stop() error {
	if s.server == nil {
		return nil
	}
	server := s.server
	s.server = nil
	return server.Stop()
}

func (s *site) end() error {
	errs := []error{s.stop()}
	for i := len(s.close) - 1; i >= 0; i-- {
		errs = append(errs, s.close[i]())
	}
	return errors.Join(errs...)
}

// person is an account with a client.
type person struct {
	*lab.Client
	id string
}

func (s *site) person(ctx context.Context, name string, conns int) (person, error) {
	p := person{Client: lab.Dial(s.server.URL, conns)}
	if err := p.Register(ctx, name+"@example.org"); err != nil {
		return p, err
	}
	var profile struct{ ID string }
	err := p.Get(ctx, "/auth/profile", &profile)
	p.id = profile.ID
	return p, err
}

// move lets a person talk to the server that was started since.
func (s *site) move(p person) {
	p.Client.Close()
	p.Base = s.server.URL + "/api/v1"
}

// tenant opens a person's database while no server runs.
func (s *site) tenant(ctx context.Context, p person) (db *sqlstore.DB, shut func(), err error) {
	keys, err := seal.NewKeyring(masterKey)
	if err != nil {
		return nil, nil, err
	}
	var master *sqlstore.DB
	if s.url == "" {
		master, err = sqlstore.OpenSQLite(ctx, sqlstore.SQLiteOptions{Path: filepath.Join(s.dir, "master.db")})
		if err != nil {
			return nil, nil, err
		}
	} else {
		pool, err := sqlstore.NewPostgresPool(ctx, seal.Secret(s.url), 2)
		if err != nil {
			return nil, nil, err
		}
		defer pool.Close()
		master = sqlstore.OpenPostgres(pool, sqlstore.PostgresOptions{Schema: "memoryd"})
	}
	defer master.Close() //nolint:errcheck // only read
	tenants, err := sqlstore.NewMasterStore(master, nil).ListTenants(ctx, "", 1000)
	if err != nil {
		return nil, nil, err
	}
	for _, t := range tenants {
		if string(t.Account) != p.id {
			continue
		}
		if s.url != "" {
			// The login of the server gets its own password back when it starts.
			host, err := sqlstore.OpenPostgresHost(ctx, seal.Secret(s.url), sqlstore.PostgresHostOptions{MaxConns: 4,
				RuntimePassword: seal.Secret(ident.New[ident.SessionID]())})
			if err != nil {
				return nil, nil, err
			}
			return host.Open(t.Placement.Database), host.Close, nil
		}
		key, err := keys.UnwrapKey(string(t.ID), t.Placement.WrappedKey)
		if err != nil {
			return nil, nil, err
		}
		sum := sha256.Sum256([]byte(t.ID))
		h := hex.EncodeToString(sum[:2])
		db, err := sqlstore.OpenSQLite(ctx, sqlstore.SQLiteOptions{Path: filepath.Join(s.dir, "tenants", h[:2], h[2:], string(t.ID)+".db"), Key: &key})
		if err != nil {
			return nil, nil, err
		}
		return db, func() { _ = db.Close() }, nil // what it wrote is committed
	}
	return nil, nil, fmt.Errorf("account %s has no tenant", p.id)
}

// fill appends n messages to a conversation, many at once, as an import would.
func fill(ctx context.Context, store *sqlstore.TenantStore, conv ident.ConversationID, n int, words *corpus) error {
	const batch = 200
	for done := 0; done < n; done += batch {
		now := time.Now().UTC().Truncate(time.Microsecond)
		var list []conversation.Message
		for i := range min(batch, n-done) {
			role := conversation.User
			if (done+i)%2 == 1 {
				role = conversation.Assistant
			}
			text := words.text()
			list = append(list, conversation.Message{ID: ident.New[ident.MessageID](), Conversation: conv, Role: role,
				Content: text, State: conversation.Completed, Tokens: int64(len(text) / 4), CreatedAt: now, UpdatedAt: now})
		}
		if _, _, err := store.Append(ctx, conv, conversation.Where{},
			func(conversation.Spot) (conversation.Entry, event.Change, error) {
				ch := event.NewChange(ident.System(""), now)
				ch.Add("message.created", string(list[0].ID), map[string]any{"conversation_id": conv})
				return conversation.Entry{Messages: list}, ch, nil
			}); err != nil {
			return err
		}
	}
	return nil
}
