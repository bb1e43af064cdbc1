package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/claude"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/workspace"
)

// MasterKey and jwtSecret seal what is made up.
const (
	MasterKey = "7h2Kq9ZxV4mB8nW1sD6fG3jL5pR0tY/u+cE"
	jwtSecret = "mQ4/vT9zK1rXw7bE5nYc2Ls8HdJf0GpUa+3"
)

// Options says how large an installation is.
type Options struct {
	Dir           string // STORAGE_PATH of the server that comes after
	Tenants       int
	Conversations int // of each tenant
	Messages      int // of each conversation
	Progress      func(what string, done int)
}

// Fleet is an installation of many tenants.
type Fleet struct {
	Dir     string
	Members []Member
	Made    time.Duration // making all accounts and databases, at most as fast as the server would
}

// Member is one tenant with its owner.
type Member struct {
	Account       ident.AccountID
	Tenant        ident.TenantID
	Token         string // an access token, good for a week
	Conversations []ident.ConversationID
}

// atOnce is how many tenants are worked on at the same time: a disk that syncs serves a few as fast as one.
const atOnce = 4

// Make makes the installation. Making a tenant is all that registering is, but for one thing: the hash of the password
// is the cheapest there is.
func Make(ctx context.Context, o Options) (*Fleet, error) {
	if o.Progress == nil {
		o.Progress = func(string, int) {}
	}
	f := &Fleet{Dir: o.Dir, Members: make([]Member, o.Tenants)}
	in, err := openInstall(ctx, o.Dir, "FULL")
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	err = each(ctx, o, "accounts", func(ctx context.Context, i int) error {
		g, err := in.accounts.Register(ctx, account.RegisterInput{Email: fmt.Sprintf("member%d@example.org", i),
			Password: "correct horse battery staple of the fleet"}, account.Origin{Address: "127.0.0.1", Device: "fleet"})
		f.Members[i] = Member{Account: g.Account.ID, Tenant: g.Account.Tenant, Token: g.AccessToken.Reveal()}
		return err
	})
	f.Made = time.Since(begun)
	if err := errors.Join(err, in.close()); err != nil {
		return nil, err
	}
	// What is in them need not survive a power cut.
	if in, err = openInstall(ctx, o.Dir, "NORMAL"); err != nil {
		return nil, err
	}
	err = each(ctx, o, "contents", func(ctx context.Context, i int) error {
		return in.talk(ctx, &f.Members[i], o, NewCorpus(uint64(i)))
	})
	if err := errors.Join(err, in.close()); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	return f, os.WriteFile(filepath.Join(o.Dir, listFile), raw, 0o600)
}

// listFile is written last: where it is, the installation is complete.
const listFile = "fleet.json"

// Load finds an installation that Make made, wherever its folder is now; fs.ErrNotExist when there is none.
func Load(dir string) (*Fleet, error) {
	raw, err := os.ReadFile(filepath.Join(dir, listFile))
	if err != nil {
		return nil, err
	}
	f := new(Fleet)
	err = json.Unmarshal(raw, f)
	f.Dir = dir
	return f, err
}

// each does something for every tenant, some at once.
func each(ctx context.Context, o Options, what string, do func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := range o.Tenants {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error { return do(ctx, i) })
		if i%1000 == 0 {
			o.Progress(what, i)
		}
	}
	return group.Wait()
}

// Env makes a server serve the fleet.
func (f *Fleet) Env() []string {
	return []string{"STORAGE_PATH=" + f.Dir, "MASTER_KEY=" + MasterKey, "JWT_SECRET=" + jwtSecret}
}

// install is the databases of an installation with the services over them.
type install struct {
	master   *sqlstore.DB
	accounts *account.Service
	pool     *workspace.Pool
	engine   *conversation.Engine
}

func openInstall(ctx context.Context, dir, synchronous string) (_ *install, err error) {
	keys, err := seal.NewKeyring(MasterKey)
	if err != nil {
		return nil, err
	}
	in := &install{}
	in.master, err = sqlstore.OpenSQLite(ctx, sqlstore.SQLiteOptions{Path: filepath.Join(dir, "master.db"), Create: true,
		Synchronous: synchronous})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, in.master.Close())
		}
	}()
	if _, err := sqlstore.Migrate(ctx, in.master, sqlstore.Master); err != nil {
		return nil, err
	}
	store, bus := sqlstore.NewMasterStore(in.master, nil), event.NewLocalBus()
	places, err := workspace.NewPlacements(ctx, workspace.PlacementsConfig{Root: filepath.Join(dir, "tenants"),
		Synchronous: synchronous, Keys: keys})
	if err != nil {
		return nil, err
	}
	in.accounts, err = account.New(account.Config{Secret: jwtSecret, AccessLife: 7 * 24 * time.Hour}, store, places,
		account.NewHasher(account.HasherConfig{Memory: 8, Passes: 1, Workers: atOnce, Patience: time.Minute}), keys)
	if err != nil {
		return nil, err
	}
	in.engine = conversation.NewEngine(conversation.Config{Node: "fleet", Sole: true, Bus: bus,
		Models: map[string]conversation.Model{"scripted": claude.NewScripted(claude.ScriptedConfig{})},
		Known:  []string{"scripted"}, Default: "scripted"})
	in.pool = workspace.NewPool(workspace.Config{Directory: store, Hints: store, Trail: store.Trail(), Placements: places,
		Engine: in.engine, Bus: bus, Sealer: keys, Providers: []string{"scripted"}, MaxOpen: 2 * atOnce, Sole: true})
	return in, nil
}

func (in *install) close() error {
	ctx := context.Background()
	return errors.Join(in.engine.Close(ctx), in.pool.Close(ctx), in.master.Close())
}

// talk puts conversations into a tenant.
func (in *install) talk(ctx context.Context, m *Member, o Options, words *Corpus) error {
	actor := ident.Actor{Account: m.Account, Name: "Member"}
	ws, err := in.pool.Acquire(ctx, actor, m.Tenant)
	if err != nil {
		return err
	}
	defer ws.Release()
	store := sqlstore.NewTenantStore(ws.Database(), nil)
	for n := range o.Conversations {
		c, err := ws.Conversations.Create(ctx, actor, conversation.CreateInput{
			Details: conversation.Details{Title: fmt.Sprintf("talk %d about %s", n+1, words.Query("medium"))}})
		if err != nil {
			return err
		}
		if err := Fill(ctx, store, c.ID, o.Messages, words); err != nil {
			return err
		}
		m.Conversations = append(m.Conversations, c.ID)
	}
	return nil
}

// OpenTenant opens the file of one tenant of an installation while no server runs on it.
func OpenTenant(ctx context.Context, dir string, id ident.TenantID) (*sqlstore.DB, error) {
	master, err := sqlstore.OpenSQLite(ctx, sqlstore.SQLiteOptions{Path: filepath.Join(dir, "master.db")})
	if err != nil {
		return nil, err
	}
	defer master.Close() //nolint:errcheck // only read
	t, err := sqlstore.NewMasterStore(master, nil).FindTenant(ctx, id)
	if err != nil {
		return nil, err
	}
	keys, err := seal.NewKeyring(MasterKey)
	if err != nil {
		return nil, err
	}
	key, err := keys.UnwrapKey(string(t.ID), t.Placement.WrappedKey)
	if err != nil {
		return nil, err
	}
	return sqlstore.OpenSQLite(ctx, sqlstore.SQLiteOptions{Path: File(dir, id), Key: &key})
}

// File is where the database of a tenant lies.
func File(dir string, id ident.TenantID) string {
	sum := sha256.Sum256([]byte(id))
	h := hex.EncodeToString(sum[:2])
	return filepath.Join(dir, "tenants", h[:2], h[2:], string(id)+".db")
}
