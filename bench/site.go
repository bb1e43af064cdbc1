package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"claude-memory-backend/bench/fleet"
	"claude-memory-backend/bench/lab"
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
	env = append(append(env, s.model.Env()...), "STORAGE_PATH="+s.dir, "MASTER_KEY="+fleet.MasterKey, "MASTER_DATABASE_URL="+s.url,
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
		db, err := fleet.OpenTenant(ctx, s.dir, t.ID)
		if err != nil {
			return nil, nil, err
		}
		return db, func() { _ = db.Close() }, nil // what it wrote is committed
	}
	return nil, nil, fmt.Errorf("account %s has no tenant", p.id)
}
