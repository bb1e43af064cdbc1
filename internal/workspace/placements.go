package workspace

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
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
	spare       sqlstore.Spare
	keys        *seal.Keyring
	template    *sqlstore.Template
	hosts       map[string]*sqlstore.LazyHost
	externals   Externals
	steps       *sqlstore.Steps
	keep        Keep
}

// Externals reaches PostgreSQL servers of users' own; sqlstore.Externals does.
type Externals interface {
	Open(id ident.DatabaseID, a tenant.Address, password seal.Secret) *sqlstore.DB
	Provision(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) error
	Destroy(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) error
	Undo(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) error

	ProvisionBeside(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) error
	OpenBeside(id ident.DatabaseID, a tenant.Address, password seal.Secret) *sqlstore.DB
	TakeOver(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) error
	PutBack(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) error
	Shed(ctx context.Context, id ident.DatabaseID, a tenant.Address, password seal.Secret) error
}

// PlacementsConfig says what places there are. With Hosts, new tenants go to the emptiest of them; without, they get
// a file each under Root.
type PlacementsConfig struct {
	Root        string         // folder of the tenants' files
	Synchronous string         // SQLite's durability; empty: FULL
	Spare       sqlstore.Spare // for connections beside each file's first one; nil: no bound
	Keys        *seal.Keyring
	Hosts       map[string]*sqlstore.LazyHost // by name, see tenant.Placement.Host
	Externals   Externals                     // nil: users cannot bring their own
	Steps       *sqlstore.Steps               // the schema's history; nil: the released one
	Keep        Keep                          // nil: nothing is kept before a schema is changed
}

// NewPlacements prepares the template that new files are copied from.
func NewPlacements(ctx context.Context, c PlacementsConfig) (*Placements, error) {
	const op = "workspace.NewPlacements"
	if c.Steps == nil {
		released, err := sqlstore.Released()
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		c.Steps = released
	}
	t, err := c.Steps.Template(ctx, sqlstore.Tenant)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	return &Placements{root: c.Root, synchronous: c.Synchronous, spare: c.Spare, keys: c.Keys, template: t, hosts: c.Hosts,
		externals: c.Externals, steps: c.Steps, keep: c.Keep}, nil
}

// Provision makes the database of a new tenant and says where it is.
func (p *Placements) Provision(ctx context.Context, id ident.TenantID) (tenant.Placement, error) {
	return p.Make(ctx, tenant.Placement{Database: tenant.First(id), Kind: p.Usual()})
}

// Usual is the kind of place that new tenants get.
func (p *Placements) Usual() tenant.Kind {
	if len(p.hosts) > 0 {
		return tenant.Postgres
	}
	return tenant.SQLite
}

// Make makes an empty database of the newest schema at a place of the kind, and returns the placement completed: a
// file with its key, a server that was chosen where none was named. What is there under that name already is code
// "duplicate" or "schema_exists".
func (p *Placements) Make(ctx context.Context, at tenant.Placement) (tenant.Placement, error) {
	const op = "workspace.Make"
	switch at.Kind {
	case tenant.External:
		ext, password, err := p.external(at)
		if err != nil {
			return at, fault.Wrap(op, err)
		}
		return at, fault.Wrap(op, ext.Provision(ctx, at.Database, at.Address, password))
	case tenant.Postgres:
		at, err := p.Choose(ctx, at)
		if err != nil {
			return at, fault.Wrap(op, err)
		}
		host, err := p.host(ctx, at)
		if err != nil {
			return at, fault.Wrap(op, err)
		}
		return at, fault.Wrap(op, host.Provision(ctx, at.Database))
	default:
		key := seal.NewKey()
		if err := p.template.Create(ctx, p.path(at.Database), &key); err != nil {
			return at, fault.Wrap(op, err)
		}
		at.WrappedKey = p.keys.WrapKey(fileName(at.Database), key)
		return at, nil
	}
}

// Choose completes a placement as far as that can be done without making anything: a hosted PostgreSQL that names no
// server gets the emptiest.
func (p *Placements) Choose(ctx context.Context, at tenant.Placement) (tenant.Placement, error) {
	if at.Kind != tenant.Postgres || at.Host != "" {
		return at, nil
	}
	name, err := p.emptiest(ctx)
	at.Host = name
	return at, fault.Wrap("workspace.Choose", err)
}

// Discard destroys the database of a tenant that did not come to be.
func (p *Placements) Discard(ctx context.Context, _ ident.TenantID, at tenant.Placement) error {
	return p.Destroy(ctx, at)
}

// Destroy removes a copy with everything in it, and what lies beside it. One that is gone already is no error. Of a user's
// own PostgreSQL only our schemas go.
func (p *Placements) Destroy(ctx context.Context, at tenant.Placement) error {
	const op = "workspace.Destroy"
	switch at.Kind {
	case tenant.External:
		ext, password, err := p.external(at)
		if err != nil {
			return fault.Wrap(op, err)
		}
		return fault.Wrap(op, ext.Destroy(ctx, at.Database, at.Address, password))
	case tenant.Postgres:
		host, err := p.host(ctx, at)
		if err != nil {
			return fault.Wrap(op, err)
		}
		return fault.Wrap(op, host.Destroy(ctx, at.Database))
	default:
		return fault.Wrap(op, errors.Join(sqlstore.Destroy(p.path(at.Database)), sqlstore.Shed(p.path(at.Database))))
	}
}

// Undo removes half a copy: what Make made and nothing was done with but filling it. What else a user's own PostgreSQL has
// under its name is not ours: it stays, and the error is code "schema_exists". Of the operator's places, where nobody but us
// makes anything, Undo is Destroy: see [Placements.Vacant].
func (p *Placements) Undo(ctx context.Context, at tenant.Placement) error {
	if at.Kind != tenant.External {
		return p.Destroy(ctx, at)
	}
	const op = "workspace.Undo"
	ext, password, err := p.external(at)
	if err != nil {
		return fault.Wrap(op, err)
	}
	return fault.Wrap(op, ext.Undo(ctx, at.Database, at.Address, password))
}

// Vacant fails with code "database_kept" when one of the operator's places that was chosen holds something under the name
// already, such as what was written after the backup that the installation was restored from.
func (p *Placements) Vacant(ctx context.Context, at tenant.Placement) error {
	const op = "workspace.Vacant"
	taken := false
	switch at.Kind {
	case tenant.External:
		return nil
	case tenant.Postgres:
		host, err := p.host(ctx, at)
		if err == nil {
			taken, err = host.Holds(ctx, at.Database)
		}
		if err != nil {
			return fault.Wrap(op, err)
		}
	default:
		_, err := os.Lstat(p.path(at.Database))
		if taken = err == nil; err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fault.Wrap(op, err)
		}
	}
	if taken {
		return fault.New(fault.Conflict, op, "database_kept",
			"there is something under the name of that hosted database already, which nobody here knows of: ask the operator")
	}
	return nil
}

// MakeBeside makes an empty database of the newest schema beside a copy that is kept, and returns the placement that it is
// opened with ([Placements.OpenBeside]), and after [Placements.TakeOver] as any other. What would keep it from taking over
// is said now, as far as that can be known.
func (p *Placements) MakeBeside(ctx context.Context, kept tenant.Placement) (tenant.Placement, error) {
	const op = "workspace.MakeBeside"
	switch kept.Kind {
	case tenant.External:
		ext, password, err := p.external(kept)
		if err != nil {
			return kept, fault.Wrap(op, err)
		}
		return kept, fault.Wrap(op, ext.ProvisionBeside(ctx, kept.Database, kept.Address, password))
	case tenant.Postgres:
		host, err := p.host(ctx, kept)
		if err != nil {
			return kept, fault.Wrap(op, err)
		}
		return kept, fault.Wrap(op, host.ProvisionBeside(ctx, kept.Database))
	default:
		key := seal.NewKey()
		if err := p.template.Create(ctx, sqlstore.Beside(p.path(kept.Database)), &key); err != nil {
			return kept, fault.Wrap(op, err)
		}
		kept.WrappedKey = p.keys.WrapKey(fileName(kept.Database), key)
		return kept, nil
	}
}

// OpenBeside opens what MakeBeside made.
func (p *Placements) OpenBeside(ctx context.Context, at tenant.Placement) (*sqlstore.DB, error) {
	const op = "workspace.OpenBeside"
	switch at.Kind {
	case tenant.External:
		ext, password, err := p.external(at)
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		return ext.OpenBeside(at.Database, at.Address, password), nil
	case tenant.Postgres:
		host, err := p.host(ctx, at)
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		return host.OpenBeside(at.Database), nil
	default:
		return p.openFile(ctx, op, at, sqlstore.Beside(p.path(at.Database)))
	}
}

// TakeOver exchanges the names of the kept copy and of the one that was made beside it, which must be closed. The kept one
// is what [Placements.PutBack] finds until [Placements.Shed] removes it.
func (p *Placements) TakeOver(ctx context.Context, kept tenant.Placement) error {
	const op = "workspace.TakeOver"
	return p.arrange(ctx, op, kept, Externals.TakeOver, (*sqlstore.PostgresHost).TakeOver, func(path string) error {
		// Opened and closed, so that a log which a killed process left is in the file. One that cannot be opened has none
		// that anybody could read.
		if db, err := p.Open(ctx, kept); err == nil {
			if err := db.Close(); err != nil {
				return err
			}
		}
		return sqlstore.TakeOver(path)
	})
}

// PutBack gives a kept copy its name again, if a TakeOver had taken it away, and removes what was to replace it. It may be
// done again.
func (p *Placements) PutBack(ctx context.Context, kept tenant.Placement) error {
	return p.arrange(ctx, "workspace.PutBack", kept, Externals.PutBack, (*sqlstore.PostgresHost).PutBack, sqlstore.PutBack)
}

// Shed removes whatever lies beside a copy: the kept one that it took over from, or one that never did. It may be done
// again.
func (p *Placements) Shed(ctx context.Context, at tenant.Placement) error {
	return p.arrange(ctx, "workspace.Shed", at, Externals.Shed, (*sqlstore.PostgresHost).Shed, sqlstore.Shed)
}

// arrange does with a copy and what lies beside it what its kind of place does.
func (p *Placements) arrange(ctx context.Context, op string, at tenant.Placement,
	external func(Externals, context.Context, ident.DatabaseID, tenant.Address, seal.Secret) error,
	hosted func(*sqlstore.PostgresHost, context.Context, ident.DatabaseID) error, file func(path string) error,
) error {
	switch at.Kind {
	case tenant.External:
		ext, password, err := p.external(at)
		if err != nil {
			return fault.Wrap(op, err)
		}
		return fault.Wrap(op, external(ext, ctx, at.Database, at.Address, password))
	case tenant.Postgres:
		host, err := p.host(ctx, at)
		if err != nil {
			return fault.Wrap(op, err)
		}
		return fault.Wrap(op, hosted(host, ctx, at.Database))
	default:
		return fault.Wrap(op, file(p.path(at.Database)))
	}
}

// Open opens a copy as it is: its schema is not looked at. Databases that are behind a network are not spoken to yet.
func (p *Placements) Open(ctx context.Context, at tenant.Placement) (*sqlstore.DB, error) {
	const op = "workspace.Open"
	switch at.Kind {
	case tenant.External:
		ext, password, err := p.external(at)
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		return ext.Open(at.Database, at.Address, password), nil
	case tenant.Postgres:
		host, err := p.host(ctx, at)
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		return host.Open(at.Database), nil
	default:
		return p.openFile(ctx, op, at, p.path(at.Database))
	}
}

func (p *Placements) openFile(ctx context.Context, op string, at tenant.Placement, path string) (*sqlstore.DB, error) {
	key, err := p.keys.UnwrapKey(fileName(at.Database), at.WrappedKey)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	db, err := sqlstore.OpenSQLite(ctx, sqlstore.SQLiteOptions{Path: path, Key: &key, Synchronous: p.synchronous, Spare: p.spare})
	return db, fault.Wrap(op, err)
}

// fileName is what the file of a copy is called, and what its key is bound to. A tenant's first one is called like the
// tenant, as all were when each tenant had but one.
func fileName(id ident.DatabaseID) string {
	return ident.TenantID("").Prefix() + string(id)[len(id.Prefix()):]
}

// Reseal seals anew, under the current master key, what a placement holds sealed. changed is false when it was under
// that key already.
func (p *Placements) Reseal(at tenant.Placement) (_ tenant.Placement, changed bool, err error) {
	const op = "workspace.Reseal"
	if at.WrappedKey != nil {
		fresh, again, err := p.keys.RewrapKey(fileName(at.Database), at.WrappedKey)
		if err != nil {
			return at, false, fault.Wrap(op, err)
		}
		at.WrappedKey, changed = fresh, again
	}
	if at.SealedPassword != nil {
		fresh, again, err := p.keys.Rewrap(passwordPurpose, at.SealedPassword, []byte(at.Database))
		if err != nil {
			return at, false, fault.Wrap(op, err)
		}
		at.SealedPassword, changed = fresh, changed || again
	}
	return at, changed, nil
}

const passwordPurpose = "database password"

// SealPassword seals the password of a user's own database, bound to its configuration.
func (p *Placements) SealPassword(id ident.DatabaseID, password seal.Secret) []byte {
	if password == "" {
		return nil
	}
	return p.keys.Seal(passwordPurpose, []byte(password.Reveal()), []byte(id))
}

// Password opens what SealPassword sealed; none is the empty one.
func (p *Placements) Password(at tenant.Placement) (seal.Secret, error) {
	if at.SealedPassword == nil {
		return "", nil
	}
	plain, err := p.keys.Open(passwordPurpose, at.SealedPassword, []byte(at.Database))
	return seal.Secret(plain), fault.Wrap("workspace.Password", err)
}

// external is what reaches a user's own PostgreSQL, with the password to it.
func (p *Placements) external(at tenant.Placement) (Externals, seal.Secret, error) {
	if p.externals == nil {
		return nil, "", fault.New(fault.Unavailable, "workspace.Placements", "external_unsupported",
			"this server does not reach databases of users' own")
	}
	password, err := p.Password(at)
	return p.externals, password, err
}

func (p *Placements) host(ctx context.Context, at tenant.Placement) (*sqlstore.PostgresHost, error) {
	if h := p.hosts[at.Host]; h != nil {
		return h.Host(ctx)
	}
	return nil, fault.New(fault.Unavailable, "workspace.Placements", "tenant_host_unknown",
		"the database server of this account is not configured: its address is missing from TENANT_DATABASE_URLS")
}

// emptiest is the operator's server with the fewest tenants, of those that answer.
func (p *Placements) emptiest(ctx context.Context) (name string, err error) {
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
			least, name = count, n
		}
	}
	if name != "" {
		return name, nil
	}
	if err == nil {
		err = fault.New(fault.Unavailable, "workspace.Placements", "tenant_host_unknown",
			"no PostgreSQL server for tenants is configured: set TENANT_DATABASE_URLS")
	}
	return "", err
}

// path is the file of a copy. Files are spread over folders by a hash: an id's own first characters are its time, and
// would put all tenants of a month into one folder.
func (p *Placements) path(id ident.DatabaseID) string {
	name := fileName(id)
	sum := sha256.Sum256([]byte(name))
	h := hex.EncodeToString(sum[:2])
	return filepath.Join(p.root, h[:2], h[2:], name+".db")
}
