package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"claude-memory-backend/internal/blob"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/outbound"
	"claude-memory-backend/internal/relocate"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/workspace"
)

// install is what every command that touches data needs: keys, the master database, the places for tenants.
type install struct {
	keys       *seal.Keyring
	lasting    *seal.Keyring // what is derived from it survives a rotation of MASTER_KEY
	master     *sqlstore.DB
	store      *sqlstore.MasterStore
	placements *workspace.Placements
	hosts      map[string]*sqlstore.LazyHost
	externals  *sqlstore.Externals
	dialer     *outbound.Dialer    // for addresses that users give
	snapshots  *relocate.Snapshots // what tenants held before their schemas were changed
	sole       bool                // this process alone works on these databases
	where      string
	closers    []func() error
}

// access is how a process comes to an installation.
type access uint8

const (
	// guest works beside whatever runs. It leaves the schema of the master database as it is: a server may rely on it.
	guest access = iota
	// keeper wants the storage folder for itself, where that says that no server runs; there it may change that schema.
	keeper
	// owner wants the same, and brings the master database up to date in any case.
	owner
	// anew, with one of these, seals under MASTER_KEY: for servers and for rewraps. Whoever else opens the installation
	// seals under the key that the installation's own is sealed under, so that a command with a new key leaves nothing
	// behind that a server with the old one cannot open.
	anew access = 1 << 7
)

// openInstall opens the databases that the settings name. own are the listeners that no address given by a user may
// lead to.
func openInstall(ctx context.Context, s *settings, log *slog.Logger, bus event.Bus, as access, own ...netip.AddrPort) (_ *install, err error) {
	in := &install{hosts: make(map[string]*sqlstore.LazyHost)}
	defer func() {
		if err != nil {
			err = errors.Join(err, in.close())
		}
	}()
	masterURL, tenantURLs := s.secret("MASTER_DATABASE_URL"), s.list("TENANT_DATABASE_URLS")
	in.sole = masterURL == "" || len(tenantURLs) == 0
	follow := as&anew == 0
	as &^= anew
	if as != guest && in.sole {
		unlock, err := lockFolder(s.text("STORAGE_PATH"))
		if err != nil {
			return nil, err
		}
		in.onClose(func() error { unlock(); return nil })
	}
	if in.keys, err = openKeys(s); err != nil {
		return nil, err
	}
	if err := in.openMaster(ctx, s, masterURL); err != nil {
		return nil, notOpened("the master database (MASTER_DATABASE_URL)", err)
	}
	in.onClose(in.master.Close)
	if err := in.bringMaster(ctx, as == owner || as == keeper && in.sole); err != nil {
		return nil, err
	}
	in.store = sqlstore.NewMasterStore(in.master, func(seq event.Seq) {
		bus.Publish(context.Background(), event.Signal{Topic: "master", Kind: event.Committed, Seq: seq})
	})
	var sealed []byte
	if in.lasting, sealed, err = lastingKeys(ctx, in.store, in.keys); err != nil {
		return nil, err
	}
	if follow {
		if in.keys, err = in.keys.Following(sealed); err != nil {
			return nil, err
		}
	}
	if err := in.openHosts(ctx, tenantURLs, log); err != nil {
		return nil, err
	}
	in.openExternals(s, own)
	_, spare := maxOpen(s)
	in.snapshots = relocate.NewSnapshots(func(ctx context.Context) (blob.Store, error) {
		return blob.Open(ctx, s.storage("snapshots"))
	}, in.keys)
	in.placements, err = workspace.NewPlacements(ctx, workspace.PlacementsConfig{Root: s.storage("tenants"),
		Synchronous: s.text("SQLITE_SYNCHRONOUS"), Spare: sqlstore.NewSpare(spare), Keys: in.keys, Hosts: in.hosts,
		Externals: in.externals, Keep: in.snapshots.Keep})
	if err != nil {
		return nil, err
	}
	in.where = in.describe()
	log.Debug("databases are open", "master", in.master.Dialect().Name(), "tenant_hosts", len(in.hosts))
	return in, nil
}

// bringMaster brings the master database up to date if it may, or if there is nothing in it yet; else it must be.
func (in *install) bringMaster(ctx context.Context, may bool) error {
	const what = "the master database"
	if !may {
		at, err := in.lookMaster(ctx)
		switch {
		case err != nil:
			return notOpened(what, err)
		case at.Version > 0 && len(at.Pending) > 0:
			return fmt.Errorf("%w: run memoryd migrate with the servers stopped, or use the version that runs (pending: %s)",
				errMasterOlder, strings.Join(at.Pending, ", "))
		case at.Version > 0:
			return nil
		}
	}
	if _, err := sqlstore.Migrate(ctx, in.master, sqlstore.Master); err != nil {
		return notOpened(what, err)
	}
	return nil
}

// errMasterOlder says that this program is newer than the schema of the master database.
var errMasterOlder = errors.New("the master database is a former version's, whose servers may be at work")

// lookMaster sees how far the master database is.
func (in *install) lookMaster(ctx context.Context) (sqlstore.Standing, error) {
	steps, err := sqlstore.Released()
	if err != nil {
		return sqlstore.Standing{}, err
	}
	return steps.Look(ctx, in.master, sqlstore.Master)
}

// openKeys takes MASTER_KEY and the one before it; in development they are made when they are missing.
func openKeys(s *settings) (*seal.Keyring, error) {
	if err := s.completeSecrets(); err != nil {
		return nil, err
	}
	var previous []seal.Secret
	if p := s.secret("MASTER_KEY_PREVIOUS"); p != "" {
		previous = append(previous, p)
	}
	return seal.NewKeyring(s.secret("MASTER_KEY"), previous...)
}

// hostPatience is how long a start waits for tenants' servers before it goes on without them.
const hostPatience = 5 * time.Second

// openHosts connects to all servers for tenants at once. One that is not there concerns its own tenants only, so it is
// no reason not to start; one that answers and cannot be used is the operator's mistake, who is there to mend it.
func (in *install) openHosts(ctx context.Context, urls []string, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, hostPatience)
	defer cancel()
	var group errgroup.Group
	for i, raw := range urls {
		what := fmt.Sprintf("database server %d of TENANT_DATABASE_URLS", i+1)
		host, err := sqlstore.NewLazyHost(seal.Secret(raw),
			sqlstore.PostgresHostOptions{MaxConns: 40, RuntimePassword: in.runtimePassword(raw)})
		if err != nil {
			return notOpened(what, err)
		}
		in.onClose(func() error { host.Close(); return nil })
		in.hosts[hostName(raw)] = host
		group.Go(func() error {
			_, err := host.Connect(ctx)
			if sqlstore.Unreachable(err) {
				log.Warn(what+" cannot be reached: its tenants are unavailable until it can", "code", fault.CodeOf(err))
				return nil
			}
			if err != nil {
				return notOpened(what, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// lookAtHosts asks all servers for tenants whether they answer. One that does not is an error, with what the others say.
func (in *install) lookAtHosts(ctx context.Context) (map[string]any, error) {
	var answering, schemas atomic.Int64
	var group errgroup.Group
	for _, lazy := range in.hosts {
		group.Go(func() error {
			host, err := lazy.Host(ctx)
			if err != nil {
				return err
			}
			n, err := host.Count(ctx)
			if err != nil {
				return err
			}
			answering.Add(1)
			schemas.Add(int64(n))
			return nil
		})
	}
	err := group.Wait()
	return map[string]any{"servers": len(in.hosts), "answering": answering.Load(), "schemas": schemas.Load()}, err
}

// openExternals prepares the way to databases of users' own. Nothing is sent yet.
func (in *install) openExternals(s *settings, own []netip.AddrPort) {
	if len(own) == 0 {
		own = s.listeners() // of the server that may run beside this command
	}
	dialer := outbound.NewDialer(outbound.Config{Allow: s.networks("OUTBOUND_ALLOW"), Own: own})
	in.dialer = dialer
	in.externals = sqlstore.NewExternals(sqlstore.ExternalOptions{Dial: dialer.DialContext, PlainAllowed: dialer.Allowed, Judge: dialer.Judge})
	in.onClose(func() error { in.externals.Close(); return nil })
}

// masterCacheKiB is how much of the master file each of its connections may keep: every request asks it who comes.
const masterCacheKiB = 16 << 10

func (in *install) openMaster(ctx context.Context, s *settings, url seal.Secret) (err error) {
	if url == "" {
		if err := os.MkdirAll(s.text("STORAGE_PATH"), 0o700); err != nil {
			return fmt.Errorf("STORAGE_PATH cannot be made: %w", err)
		}
		in.master, err = sqlstore.OpenSQLite(ctx, sqlstore.SQLiteOptions{Path: s.storage("master.db"), Create: true,
			Synchronous: s.text("SQLITE_SYNCHRONOUS"), Readers: 4, CacheKiB: masterCacheKiB})
		return err
	}
	db, end, err := sqlstore.ConnectPostgres(ctx, url, 20, sqlstore.PostgresOptions{Schema: masterSchema})
	if err != nil {
		return err
	}
	in.onClose(func() error { end(); return nil })
	in.master = db
	return nil
}

// masterSchema keeps our tables apart from whatever else lives in the operator's database.
const masterSchema = "memoryd"

// runtimePassword is the password of the login that works on tenants: the same on every node, different per server.
func (in *install) runtimePassword(rawURL string) seal.Secret {
	key := in.lasting.Derive("postgres login " + hostName(rawURL))
	return seal.Secret(hex.EncodeToString(key[:]))
}

// hostName names an operator's server in the directory without its credentials: the same however the password changes.
func hostName(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return ""
	}
	port := u.Port()
	if port == "" {
		port = "5432"
	}
	sum := sha256.Sum256([]byte(u.Hostname() + ":" + port + u.Path))
	return hex.EncodeToString(sum[:8])
}

func (in *install) describe() string {
	master, tenants := "SQLite", "an encrypted SQLite file each"
	if in.master.Dialect().Name() == "postgres" {
		master = "PostgreSQL"
	}
	if len(in.hosts) > 0 {
		tenants = "PostgreSQL schemas"
	}
	return "master database: " + master + ", tenants: " + tenants
}

// id names the installation: the same on every node, however its keys and addresses change.
func (in *install) id() string {
	key := in.lasting.Derive("name of the installation")
	return hex.EncodeToString(key[:8])
}

// busFact is what a restored installation has of its own. The keys of both are the same, and the one that it was restored from may
// still be running on the same NATS.
const busFact = "bus_name"

// busPrefix begins the subjects on which the nodes of the installation hear one another.
func (in *install) busPrefix(ctx context.Context) (string, error) {
	own, err := in.store.FindFact(ctx, busFact)
	if fault.Is(err, fault.NotFound) {
		return "memoryd." + in.id(), nil
	}
	return "memoryd." + in.id() + "-" + hex.EncodeToString(own), err
}

// renameBus gives the installation of a master database a prefix of its own.
func renameBus(ctx context.Context, store *sqlstore.MasterStore) error {
	if err := store.ForgetFacts(ctx, busFact); err != nil {
		return err
	}
	own := seal.NewKey()
	_, err := store.PutFact(ctx, busFact, own[:8], time.Now())
	return err
}

func (in *install) onClose(f func() error) { in.closers = append(in.closers, f) }

// close closes in reverse order of opening.
func (in *install) close() error {
	var errs []error
	for i := len(in.closers) - 1; i >= 0; i-- {
		errs = append(errs, in.closers[i]())
	}
	in.closers = nil
	return errors.Join(errs...)
}

// startTimeout bounds the opening of databases, so that a wrong address fails instead of hanging.
const startTimeout = 60 * time.Second

// notOpened says which database does not open and, where that can be told without its address, why.
func notOpened(what string, err error) error {
	var dns *net.DNSError
	why := ""
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		why = ": nothing listens there"
	case errors.As(err, &dns):
		why = ": its host name is not known"
	case errors.Is(err, context.DeadlineExceeded):
		why = ": it did not answer in time"
	}
	return fmt.Errorf("%s cannot be opened%s (%w)", what, why, err)
}
