package workspace

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

// Placements makes, opens and destroys tenants' databases, wherever they are.
type Placements struct {
	root        string
	synchronous string
	keys        *seal.Keyring
	template    *sqlstore.Template
	hosts       map[string]*sqlstore.LazyHost
}

// PlacementsConfig says what places there are. With Hosts, new tenants go to the emptiest of them; without, they get
// a file each under Root.
type PlacementsConfig struct {
	Root        string // folder of the tenants' files
	Synchronous string // SQLite's durability; empty: FULL
	Keys        *seal.Keyring
	Hosts       map[string]*sqlstore.LazyHost // by name, see tenant.Placement.Host
}

// NewPlacements prepares the template that new files are copied from.
func NewPlacements(ctx context.Context, c PlacementsConfig) (*Placements, error) {
	t, err := sqlstore.BuildTemplate(ctx, sqlstore.Tenant)
	if err != nil {
		return nil, fault.Wrap("workspace.NewPlacements", err)
	}
	return &Placements{root: c.Root, synchronous: c.Synchronous, keys: c.Keys, template: t, hosts: c.Hosts}, nil
}

// Provision makes the database of a new tenant and says where it is.
func (p *Placements) Provision(ctx context.Context, id ident.TenantID) (tenant.Placement, error) {
	const op = "workspace.Provision"
	if len(p.hosts) > 0 {
		name, host, err := p.emptiest(ctx)
		if err != nil {
			return tenant.Placement{}, fault.Wrap(op, err)
		}
		if err := host.Provision(ctx, id); err != nil {
			return tenant.Placement{}, fault.Wrap(op, err)
		}
		return tenant.Placement{Kind: tenant.Postgres, Host: name}, nil
	}
	if err := os.MkdirAll(filepath.Dir(p.path(id)), 0o700); err != nil {
		return tenant.Placement{}, fault.New(fault.Unavailable, op, "storage_failed", "the storage does not work").With(err)
	}
	key := seal.NewKey()
	if err := p.template.Create(ctx, p.path(id), &key); err != nil {
		return tenant.Placement{}, fault.Wrap(op, err)
	}
	return tenant.Placement{Kind: tenant.SQLite, WrappedKey: p.keys.WrapKey(string(id), key)}, nil
}

// Discard destroys a database that was made for a tenant that did not come to be.
func (p *Placements) Discard(ctx context.Context, id ident.TenantID, at tenant.Placement) error {
	const op = "workspace.Discard"
	if at.Kind == tenant.SQLite {
		return fault.Wrap(op, sqlstore.Destroy(p.path(id)))
	}
	host, err := p.host(ctx, at)
	if err != nil {
		return fault.Wrap(op, err)
	}
	return fault.Wrap(op, host.Destroy(ctx, id))
}

// open opens a tenant's database and brings its schema up to date.
func (p *Placements) open(ctx context.Context, t tenant.Tenant) (*sqlstore.DB, error) {
	var db *sqlstore.DB
	switch t.Placement.Kind {
	case tenant.SQLite:
		key, err := p.keys.UnwrapKey(string(t.ID), t.Placement.WrappedKey)
		if err != nil {
			return nil, err
		}
		db, err = sqlstore.OpenSQLite(ctx, sqlstore.SQLiteOptions{Path: p.path(t.ID), Key: &key, Synchronous: p.synchronous})
		if err != nil {
			return nil, err
		}
	default:
		host, err := p.host(ctx, t.Placement)
		if err != nil {
			return nil, err
		}
		db = host.Open(t.ID)
	}
	if _, err := sqlstore.Migrate(ctx, db, sqlstore.Tenant); err != nil {
		_ = db.Close()
		return nil, err
	}
	return db, nil
}

func (p *Placements) host(ctx context.Context, at tenant.Placement) (*sqlstore.PostgresHost, error) {
	if h := p.hosts[at.Host]; h != nil {
		return h.Host(ctx)
	}
	return nil, fault.New(fault.Unavailable, "workspace.Placements", "tenant_host_unknown",
		"the database server of this account is not configured: its address is missing from TENANT_DATABASE_URLS")
}

// emptiest is the server with the fewest tenants. Those that cannot be asked get none.
func (p *Placements) emptiest(ctx context.Context) (name string, host *sqlstore.PostgresHost, err error) {
	least := -1
	for n, lazy := range p.hosts {
		count := 0
		h, herr := lazy.Host(ctx)
		if herr == nil {
			count, herr = h.Count(ctx)
		}
		if herr != nil {
			err = herr
			continue
		}
		if least < 0 || count < least {
			least, name, host = count, n, h
		}
	}
	if host != nil {
		return name, host, nil
	}
	return "", nil, err
}

// path spreads files over folders by a hash of the id: an id's own first characters are its time, and would put all
// tenants of a month into one folder.
func (p *Placements) path(id ident.TenantID) string {
	sum := sha256.Sum256([]byte(id))
	h := hex.EncodeToString(sum[:2])
	return filepath.Join(p.root, h[:2], h[2:], string(id)+".db")
}

// Migrate brings one tenant's schema up to date without keeping the database open.
func (p *Placements) Migrate(ctx context.Context, t tenant.Tenant) error {
	const op = "workspace.Migrate"
	db, err := p.open(ctx, t)
	if err != nil {
		return fault.Wrap(op, err)
	}
	return fault.Wrap(op, db.Close())
}
