package relocate

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

// mostDatabases is how many configurations an account may have.
const mostDatabases = 20

// NewDatabase is what a user gives to register a database of their own.
type NewDatabase struct {
	Name     string
	Address  tenant.Address
	Password seal.Secret
	Once     *event.Once
}

// DatabaseEdit is what may be edited of a configuration. A nil password stays.
type DatabaseEdit struct {
	Name     string
	Address  tenant.Address
	Password *seal.Secret
}

// Databases lists the configurations of a tenant, oldest first.
func (s *Service) Databases(ctx context.Context, actor ident.Actor, of ident.TenantID) ([]tenant.Database, error) {
	const op = "relocate.Databases"
	if _, err := s.own(ctx, op, actor, of); err != nil {
		return nil, err
	}
	list, err := s.Store.ListDatabases(ctx, of)
	return list, fault.Wrap(op, err)
}

const (
	// factsAge is how old what is shown of the database in use may be.
	factsAge = time.Minute
	// lookTime bounds a look at it: a database that does not answer must not hold up the list.
	lookTime = 1500 * time.Millisecond
)

// ListDatabases returns a page of the configurations, newest first, and the next cursor. What it tells of the database in
// use is not older than a minute, unless that cannot be reached.
func (s *Service) ListDatabases(ctx context.Context, actor ident.Actor, of ident.TenantID, cursor string, limit int) ([]tenant.Database, string, error) {
	const op = "relocate.ListDatabases"
	t, err := s.own(ctx, op, actor, of)
	if err != nil {
		return nil, "", err
	}
	list, err := s.Store.ListDatabases(ctx, of)
	if err != nil {
		return nil, "", fault.Wrap(op, err)
	}
	slices.Reverse(list)
	if cursor != "" {
		at, err := ident.Parse[ident.DatabaseID](cursor)
		if err != nil {
			return nil, "", fault.BadInput(op, "query.cursor", "must be a next_cursor of this list")
		}
		// Identifiers are ordered by time, so those of a page are older than the last of the page before.
		list = slices.DeleteFunc(list, func(d tenant.Database) bool { return d.ID() >= at })
	}
	next := ""
	if limit = max(1, limit); len(list) > limit {
		list = list[:limit]
		next = string(list[limit-1].ID())
	}
	for i, d := range list {
		list[i] = s.freshen(ctx, t, d)
	}
	return list, next, nil
}

// freshen looks at the database in use, when that was long ago, and keeps what it saw.
func (s *Service) freshen(ctx context.Context, t tenant.Tenant, d tenant.Database) tenant.Database {
	at := d.Facts.CheckedAt
	if d.State != tenant.InUse || s.Pool == nil || at != nil && d.Facts.SizeBytes > 0 && s.Now().Sub(*at) < factsAge {
		return d
	}
	return s.observe(ctx, t, d)
}

// observe looks at the database in use through the pool, as requests do, and keeps what it saw.
func (s *Service) observe(ctx context.Context, t tenant.Tenant, d tenant.Database) tenant.Database {
	within, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	facts := d.Facts
	ws, err := s.Pool.Acquire(within, ident.System(""), t.ID)
	if err == nil {
		facts.SchemaVersion = max(facts.SchemaVersion, ws.Tenant.Schema.Version)
		facts.SizeBytes, err = sqlstore.Size(within, ws.Database())
		ws.Release()
	}
	if ctx.Err() != nil {
		return d
	}
	if facts.Problem = ""; err != nil {
		facts.SizeBytes, facts.Problem = d.Facts.SizeBytes, problemOf(err)
	}
	return s.noteFacts(ctx, d, facts)
}

// problemOf is the code of why a database could not be looked at. That the time was up is no fault of whoever asked.
func problemOf(err error) string {
	if fault.Is(err, fault.Canceled) {
		return "timeout"
	}
	return fault.CodeOf(err)
}

// noteFacts keeps what was seen of a database. It is an observation, no change; failing to keep it harms nobody.
func (s *Service) noteFacts(ctx context.Context, d tenant.Database, facts tenant.Facts) tenant.Database {
	now := s.moment()
	facts.CheckedAt = &now
	_, err := s.Store.UpdateDatabase(ctx, d.Tenant, d.ID(), nil,
		func(_ tenant.Tenant, seen tenant.Database) (tenant.Database, event.Change, error) {
			// What was seen with another password is nothing about this one.
			if seen.State == d.State && seen.Placement.Address == d.Placement.Address &&
				bytes.Equal(seen.Placement.SealedPassword, d.Placement.SealedPassword) {
				seen.Facts = facts
			}
			return seen, event.Change{}, nil
		})
	if err != nil {
		s.Log.Warn("what was seen of a database not noted", "code", fault.CodeOf(err), "tenant", d.Tenant)
	}
	d.Facts = facts
	return d
}

// Database returns one configuration, as [Service.ListDatabases] shows it.
func (s *Service) Database(ctx context.Context, actor ident.Actor, of ident.TenantID, id ident.DatabaseID) (tenant.Database, error) {
	const op = "relocate.Database"
	t, err := s.own(ctx, op, actor, of)
	if err != nil {
		return tenant.Database{}, err
	}
	d, err := s.Store.FindDatabase(ctx, of, id)
	if err != nil {
		return tenant.Database{}, fault.Wrap(op, err)
	}
	return s.freshen(ctx, t, d), nil
}

// Register stores the address of a database of the user's own. Nothing is sent there: testing and activating do. One that
// can never be reached as it is written is refused (codes "address_refused" and "tls_required").
func (s *Service) Register(ctx context.Context, actor ident.Actor, of ident.TenantID, in NewDatabase) (tenant.Database, error) {
	const op = "relocate.Register"
	t, err := s.own(ctx, op, actor, of)
	if err != nil {
		return tenant.Database{}, err
	}
	if err := s.mayBring(op); err != nil {
		return tenant.Database{}, err
	}
	in.Name = strings.TrimSpace(in.Name)
	if err := checkDatabase(op, in.Name, in.Address, in.Password); err != nil {
		return tenant.Database{}, err
	}
	if err := s.Probe.Check(in.Address); err != nil {
		return tenant.Database{}, fault.Wrap(op, err)
	}
	list, err := s.Store.ListDatabases(ctx, of)
	if err != nil {
		return tenant.Database{}, fault.Wrap(op, err)
	}
	if len(list) >= mostDatabases {
		return tenant.Database{}, fault.New(fault.Conflict, op, "too_many_databases",
			"an account may have 20 database configurations: delete one that is not needed")
	}
	id, now := ident.New[ident.DatabaseID](), s.moment()
	d := tenant.Database{Tenant: t.ID, Name: in.Name, State: tenant.Ready, Version: 1, CreatedAt: now, UpdatedAt: now,
		Placement: tenant.Placement{Database: id, Kind: tenant.External, Address: in.Address,
			SealedPassword: s.Places.SealPassword(id, in.Password)}}
	if err := in.Once.Keep(s.Keys, d.ID()); err != nil {
		return tenant.Database{}, err
	}
	ch := created(actor, d)
	ch.Once = in.Once
	err = s.Store.InsertDatabase(ctx, d, ch)
	if event.Repeated(err) {
		var was ident.DatabaseID
		if err = in.Once.Replay(ctx, s.Store, s.Keys, &was); err == nil {
			return s.Database(ctx, actor, of, was)
		}
	}
	return d, fault.Wrap(op, err)
}

// mayBring says whether users may bring databases of their own at all.
func (s *Service) mayBring(op string) error {
	if s.Probe == nil {
		return fault.New(fault.Unavailable, op, "external_unsupported", "this server does not reach databases of users' own")
	}
	return nil
}

func checkDatabase(op, name string, a tenant.Address, password seal.Secret) error {
	var c fault.Checks
	c.Text("body.name", name, 1, 100)
	a.Check(&c)
	tenant.CheckPassword(&c, password)
	return c.Err(op)
}

// Test asks an address what it is good for. It stores nothing and leaves nothing.
func (s *Service) Test(ctx context.Context, actor ident.Actor, of ident.TenantID, a tenant.Address, password seal.Secret) (sqlstore.Report, error) {
	const op = "relocate.Test"
	if _, err := s.own(ctx, op, actor, of); err != nil {
		return sqlstore.Report{}, err
	}
	if err := s.mayBring(op); err != nil {
		return sqlstore.Report{}, err
	}
	// The schema would be named after a configuration that there is not yet: a name that nobody has.
	r, err := s.Probe.Probe(ctx, ident.New[ident.DatabaseID](), a, password)
	return r, fault.Wrap(op, err)
}

// TestDatabase does the same with a configuration, and notes with it what was seen. What is found of a hosted database is
// what the server knows of it.
func (s *Service) TestDatabase(ctx context.Context, actor ident.Actor, of ident.TenantID, id ident.DatabaseID) (sqlstore.Report, error) {
	const op = "relocate.TestDatabase"
	if _, err := s.own(ctx, op, actor, of); err != nil {
		return sqlstore.Report{}, err
	}
	d, err := s.Store.FindDatabase(ctx, of, id)
	if err != nil {
		return sqlstore.Report{}, fault.Wrap(op, err)
	}
	if d.Placement.Kind != tenant.External {
		return s.look(ctx, d)
	}
	if d.State == tenant.Released {
		return sqlstore.Report{}, fault.New(fault.Conflict, op, "database_released",
			"this database was released, and the server forgot how to sign in there: give a password first")
	}
	if err := s.mayBring(op); err != nil {
		return sqlstore.Report{}, err
	}
	password, err := s.Places.Password(d.Placement)
	if err != nil {
		return sqlstore.Report{}, fault.Wrap(op, err)
	}
	r, err := s.Probe.Probe(ctx, d.ID(), d.Placement.Address, password)
	if err != nil {
		return r, fault.Wrap(op, err)
	}
	if d.State == tenant.Ready && r.Schema != sqlstore.SchemaNone {
		r.OK = false
		r.Problems = append(r.Problems, sqlstore.Problem{Level: sqlstore.ProblemError, Code: "schema_exists", Message: schemaTaken})
	}
	facts := tenant.Facts{SchemaVersion: r.SchemaVersion}
	if r.ServerVersion == "" { // nothing was seen but that
		facts.SchemaVersion, facts.SizeBytes = d.Facts.SchemaVersion, d.Facts.SizeBytes
	}
	for _, p := range r.Problems {
		if p.Level == sqlstore.ProblemError && facts.Problem == "" {
			facts.Problem = p.Code
		}
	}
	if r.Schema == sqlstore.SchemaOurs && r.OK {
		facts.SizeBytes = s.size(ctx, d)
	}
	s.noteFacts(ctx, d, facts)
	return r, nil
}

// size is what a database takes, and what was last known where that cannot be told now.
func (s *Service) size(ctx context.Context, d tenant.Database) int64 {
	within, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	db, err := s.Places.Open(within, d.Placement)
	if err != nil {
		return d.Facts.SizeBytes
	}
	defer func() { _ = db.Close() }()
	n, err := sqlstore.Size(within, db)
	if err != nil {
		return d.Facts.SizeBytes
	}
	return n
}

// sizeNow is what an open database takes; 0, which is not known, where that cannot be told soon: it is looked at later.
func sizeNow(ctx context.Context, db *sqlstore.DB) int64 {
	within, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	n, err := sqlstore.Size(within, db)
	if err != nil {
		return 0
	}
	return n
}

// look reports on a hosted database, which is the operator's to keep well.
func (s *Service) look(ctx context.Context, d tenant.Database) (sqlstore.Report, error) {
	r := sqlstore.Report{Schema: sqlstore.SchemaNone, Encoding: "UTF8"}
	if d.State == tenant.Empty {
		r.OK, r.Reachable = true, true
		return r, nil
	}
	if d.State != tenant.InUse {
		// While a job works on the tenant, names of copies may be exchanged.
		t, err := s.Store.FindTenant(ctx, d.Tenant)
		if err == nil && t.Job != "" {
			err = fault.New(fault.Conflict, "relocate.TestDatabase", "tenant_busy",
				"another job works on this account's data: wait for its end, or cancel it")
		}
		if err != nil {
			return r, fault.Wrap("relocate.TestDatabase", err)
		}
	}
	began, facts := s.Now(), d.Facts
	db, err := s.Places.Open(ctx, d.Placement)
	if err == nil {
		r.SchemaVersion, err = sqlstore.SchemaVersion(ctx, db)
		r.Latency = s.Now().Sub(began)
		facts.SchemaVersion = r.SchemaVersion
	}
	if err == nil {
		facts.SizeBytes, err = sqlstore.Size(ctx, db)
	}
	if db != nil {
		_ = db.Close()
	}
	if facts.Problem = ""; err != nil {
		facts.Problem = problemOf(err)
		r.Problems = append(r.Problems, sqlstore.Problem{Level: sqlstore.ProblemError, Code: facts.Problem,
			Message: "the hosted database does not answer at the moment: try again, and tell the operator if it lasts"})
	} else {
		r.OK, r.Reachable, r.Schema = true, true, sqlstore.SchemaOurs
	}
	s.noteFacts(ctx, d, facts)
	return r, nil
}

// EditDatabase lets change alter a configuration. With ifVersion it is Stale unless that is the current version. The
// address of a database that the tenant's data lives in, or lived in, may change only in its credentials and TLS: a
// move is what brings data elsewhere. A stored password goes nowhere that it was not given for: with another host or
// port, or without TLS, it is asked for again. New credentials are in force with the next connection.
func (s *Service) EditDatabase(ctx context.Context, actor ident.Actor, of ident.TenantID, id ident.DatabaseID, ifVersion *int64,
	change func(*DatabaseEdit) error,
) (tenant.Database, error) {
	const op = "relocate.EditDatabase"
	t, err := s.own(ctx, op, actor, of)
	if err != nil {
		return tenant.Database{}, err
	}
	reopen := false
	d, err := s.Store.UpdateDatabase(ctx, of, id, nil, func(t tenant.Tenant, d tenant.Database) (tenant.Database, event.Change, error) {
		if ifVersion != nil && *ifVersion != d.Version {
			return d, event.Change{}, fault.New(fault.Stale, op, "", "somebody changed it since you read it: read it again and repeat your edit")
		}
		edit := DatabaseEdit{Name: d.Name, Address: d.Placement.Address}
		if err := change(&edit); err != nil {
			return d, event.Change{}, err
		}
		edit.Name = strings.TrimSpace(edit.Name)
		moved := edit.Address != d.Placement.Address
		if d.Placement.Kind != tenant.External && (moved || edit.Password != nil) {
			return d, event.Change{}, fault.New(fault.Conflict, op, "database_hosted",
				"the address of a hosted database is the operator's: only its name can be edited")
		}
		was, now := d.Placement.Address, edit.Address
		if was.Host != now.Host || was.Port != now.Port || was.TLS != now.TLS && now.TLS == tenant.TLSDisable {
			if edit.Password == nil && d.Placement.SealedPassword != nil {
				return d, event.Change{}, fault.BadInput(op, "body.password", "must be given again with another host or port, or without TLS")
			}
			d.Facts = tenant.Facts{}
		}
		was.Username, was.TLS, now.Username, now.TLS = "", "", "", ""
		switch {
		case was == now:
		case d.State == tenant.InUse || d.State == tenant.Original || d.State == tenant.Filling:
			return d, event.Change{}, fault.New(fault.Conflict, op, "database_in_use",
				"the data is there: register the other address and activate it, which moves the data")
		case t.Job != "": // which may be about to bring the data there
			return d, event.Change{}, fault.New(fault.Conflict, op, "tenant_busy",
				"another job works on this account's data: wait for its end, or cancel it")
		}
		if d.Placement.Kind == tenant.External {
			var password seal.Secret
			if edit.Password != nil {
				password = *edit.Password
			}
			if err := checkDatabase(op, edit.Name, edit.Address, password); err != nil {
				return d, event.Change{}, err
			}
			if moved && s.Probe != nil {
				if err := s.Probe.Check(edit.Address); err != nil {
					return d, event.Change{}, fault.Wrap(op, err)
				}
			}
		} else {
			var c fault.Checks
			c.Text("body.name", edit.Name, 1, 100)
			if err := c.Err(op); err != nil {
				return d, event.Change{}, err
			}
		}
		if !moved && edit.Password == nil && edit.Name == d.Name {
			return d, event.Change{}, nil
		}
		ch := event.NewChange(actor, s.moment())
		d.Name, d.Placement.Address, d.Version, d.UpdatedAt = edit.Name, edit.Address, d.Version+1, ch.At
		if edit.Password != nil {
			d.Placement.SealedPassword = s.Places.SealPassword(id, *edit.Password)
			if d.State == tenant.Released {
				d.State = tenant.Ready
			}
		}
		reopen = d.State == tenant.InUse && (moved || edit.Password != nil)
		ch.Add("database.updated", string(id), map[string]any{"version": d.Version, "credentials": edit.Password != nil})
		if reopen {
			ch.Add("tenant.updated", string(of), map[string]any{"credentials": true})
		}
		return d, ch, nil
	})
	if err == nil && reopen {
		d = s.reenter(ctx, t, d)
	}
	return d, fault.Wrap(op, err)
}

// reenter opens the database in use with its new credentials, and notes with it whether that went well. Whatever fails is
// tried again by whoever uses the tenant next.
func (s *Service) reenter(ctx context.Context, t tenant.Tenant, d tenant.Database) tenant.Database {
	within, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	err := s.Pool.Refresh(within, t.ID)
	if err == nil {
		return s.observe(ctx, t, d)
	}
	s.Log.Warn("database not opened with its new credentials", "code", fault.CodeOf(err), "tenant", t.ID)
	if ctx.Err() != nil {
		return d
	}
	facts := d.Facts
	facts.Problem = problemOf(err)
	return s.noteFacts(ctx, d, facts)
}

// Remove forgets a configuration. One that the data lives in is Conflict (code "database_in_use"), and so is one that
// is being filled, and any while a job works on the tenant (code "tenant_busy"). A kept original must be released first;
// half a copy that a move could not take away again need not, since its server may be gone for good; but one on the
// operator's own must. One hosted entry always stays (code "database_hosted").
func (s *Service) Remove(ctx context.Context, actor ident.Actor, of ident.TenantID, id ident.DatabaseID, ifVersion *int64) error {
	const op = "relocate.Remove"
	if _, err := s.own(ctx, op, actor, of); err != nil {
		return err
	}
	return fault.Wrap(op, s.Store.DeleteDatabase(ctx, of, id, func(t tenant.Tenant, d tenant.Database, others []tenant.Database) (event.Change, error) {
		hosted := func(d tenant.Database) bool { return d.Placement.Kind != tenant.External }
		switch {
		case ifVersion != nil && *ifVersion != d.Version:
			return event.Change{}, fault.New(fault.Stale, op, "", "somebody changed it since you read it: read it again")
		case d.State == tenant.InUse:
			return event.Change{}, inUse(op)
		case d.State == tenant.Filling && t.Job != "":
			return event.Change{}, fault.New(fault.Conflict, op, "database_in_use",
				"a job is copying your data there: wait for its end, or cancel it")
		case d.State == tenant.Original:
			return event.Change{}, fault.New(fault.Conflict, op, "database_kept",
				"the original of your data is kept there: release it first")
		case hosted(d) && d.State != tenant.Empty:
			return event.Change{}, fault.New(fault.Conflict, op, "database_kept", "half a copy of your data is kept there: release it first")
		case hosted(d) && !slices.ContainsFunc(others, hosted):
			return event.Change{}, fault.New(fault.Conflict, op, "database_hosted", "one hosted database always keeps its entry")
		case t.Job != "":
			// It may be on its way there.
			return event.Change{}, fault.New(fault.Conflict, op, "tenant_busy",
				"another job works on this account's data: wait for its end, or cancel it")
		}
		ch := event.NewChange(actor, s.moment())
		ch.Add("database.deleted", string(id), map[string]any{"kind": KindName(d.Placement.Kind)})
		return ch, nil
	}))
}

func inUse(op string) error {
	return fault.New(fault.Conflict, op, "database_in_use", "your data lives there: activate another database first")
}

// Activate starts the job that moves the tenant's data to that database. It is Conflict when the data lives there
// already (code "database_in_use"), when another job is at work (code "tenant_busy"), and when the tenant cannot be
// moved in its state.
func (s *Service) Activate(ctx context.Context, actor ident.Actor, of ident.TenantID, id ident.DatabaseID, once *event.Once) (job.Job, error) {
	return s.start(ctx, actor, of, moveTo{database: tenant.Database{Placement: tenant.Placement{Database: id}}, once: once})
}

// moveTo is what a move is started with.
type moveTo struct {
	database tenant.Database // its id is enough where it is registered
	fresh    bool            // it is not: that is done with the start, so that a move that is refused leaves no entry
	once     *event.Once
	discard  bool // the original is destroyed when it is over
}

// start queues a move.
func (s *Service) start(ctx context.Context, actor ident.Actor, of ident.TenantID, to moveTo) (job.Job, error) {
	const op = "relocate.Activate"
	id, once := to.database.ID(), to.once
	t, err := s.own(ctx, op, actor, of)
	if err != nil {
		return job.Job{}, err
	}
	j, err := s.newJob(KindMove, t, moveInput{To: id, Asker: askerOf(actor), Discard: to.discard})
	if err != nil {
		return job.Job{}, err
	}
	if err := once.Keep(s.Keys, j.ID); err != nil {
		return job.Job{}, err
	}
	begin := func(t tenant.Tenant, d tenant.Database) (event.Change, error) {
		ch := event.NewChange(actor, s.moment())
		ch.Once = once
		switch {
		case t.Placement.Database == id:
			return ch, fault.New(fault.Conflict, op, "database_in_use", "your data lives there already")
		case d.State == tenant.Released:
			return ch, fault.New(fault.Conflict, op, "database_released",
				"this database was released: give its password again, and see that the schema that was left there is renamed or dropped")
		case t.State != tenant.Active && t.State != tenant.ReadOnly:
			return ch, fault.New(fault.Conflict, op, "tenant_"+string(t.State), "data in this state is not moved: ask the operator")
		case t.Schema.Problem != "":
			return ch, fault.New(fault.Conflict, op, "tenant_quarantined", "the data must be repaired before it is moved: ask the operator")
		}
		ch.Add("database.activation_started", string(id), map[string]any{"job_id": j.ID, "from": t.Placement.Database})
		return ch, nil
	}
	if to.fresh {
		err = s.Store.InsertDatabaseFor(ctx, to.database, created(actor, to.database), j,
			func(t tenant.Tenant) (event.Change, error) { return begin(t, to.database) })
	} else {
		_, err = s.Store.UpdateDatabase(ctx, of, id, &j, func(t tenant.Tenant, d tenant.Database) (tenant.Database, event.Change, error) {
			ch, err := begin(t, d)
			return d, ch, err
		})
	}
	if event.Repeated(err) || fault.CodeOf(err) == "tenant_busy" && once != nil {
		var was ident.JobID
		if again := once.Replay(ctx, s.Store, s.Keys, &was); again == nil {
			return s.Job(ctx, actor, was)
		} else if !fault.Is(again, fault.NotFound) {
			err = again
		}
	}
	if err != nil {
		return job.Job{}, fault.Wrap(op, err)
	}
	s.wake()
	return j, nil
}

// Release lets go of a database that the data does not live in. Of a user's own the tables stay, complete, readable and
// described, and the server forgets how to sign in there. A hosted original is destroyed: nobody could read it. So is
// half a copy. It is a job of the tenant's, so that nothing else is done with the copy meanwhile (else code
// "tenant_busy"), which ends before Release returns.
func (s *Service) Release(ctx context.Context, actor ident.Actor, of ident.TenantID, id ident.DatabaseID) (tenant.Database, error) {
	const op = "relocate.Release"
	t, err := s.own(ctx, op, actor, of)
	if err != nil {
		return tenant.Database{}, err
	}
	d, err := s.Store.FindDatabase(ctx, of, id)
	if err != nil || d.State == tenant.Released || d.State == tenant.Empty {
		return d, fault.Wrap(op, err)
	}
	j, err := s.newJob(KindRelease, t, releaseInput{Database: id, Asker: askerOf(actor)})
	if err != nil {
		return d, err
	}
	_, err = s.Store.UpdateDatabase(ctx, of, id, &j, func(_ tenant.Tenant, d tenant.Database) (tenant.Database, event.Change, error) {
		if d.State == tenant.InUse {
			return d, event.Change{}, inUse(op)
		}
		return d, event.Change{}, nil
	})
	if err != nil {
		return d, fault.Wrap(op, err)
	}
	var failed error
	// Under a name of its own: this process's other runner, which takes up what was left behind, would else share its lease when
	// both were held up for longer than that, and neither would hear of the other.
	runner := job.NewRunner(job.Config{Store: s.Store, Node: s.Node + "/" + string(j.ID), Log: s.Log, Now: s.Now, Kinds: map[string]job.Work{
		KindRelease: func(ctx context.Context, run *job.Run) (any, error) {
			var report any
			report, failed = s.release(ctx, run)
			return report, failed
		},
	}})
	// Half of it is no good to somebody who went away either.
	j, err = runner.Do(context.WithoutCancel(ctx), j.ID)
	switch {
	case failed != nil:
		return d, fault.Wrap(op, failed)
	case err != nil:
		return d, fault.Wrap(op, err)
	case j.State != job.Completed:
		return d, fault.New(fault.Internal, op, "", "something went wrong on the server")
	}
	d, err = s.Store.FindDatabase(ctx, of, id)
	return d, fault.Wrap(op, err)
}

// releaseInput is what a release was asked for.
type releaseInput struct {
	Database ident.DatabaseID `json:"database"`
	Asker    asker            `json:"asker"`
}

// release is the job that lets go of a copy. It may be done again.
func (s *Service) release(ctx context.Context, run *job.Run) (any, error) {
	const op = "relocate.Release"
	var in releaseInput
	if err := json.Unmarshal(run.Job.Input, &in); err != nil {
		return nil, fault.Wrap(op, err)
	}
	within, cancel := context.WithTimeout(ctx, undoPatience)
	defer cancel()
	d, err := s.Store.FindDatabase(within, run.Job.Tenant, in.Database)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	switch {
	case d.State == tenant.InUse:
		return nil, inUse(op)
	case d.State == tenant.Released || d.State == tenant.Empty:
		return nil, nil
	case d.State == tenant.Filling:
		err = notOurs(s.Places.Undo(sqlstore.Patient(within), d.Placement))
	case d.State == tenant.Original:
		if err = s.settle(sqlstore.Patient(within), d); err == nil {
			err = s.letGo(within, d)
		}
	}
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	_, err = s.Store.UpdateDatabase(within, d.Tenant, d.ID(), nil, func(_ tenant.Tenant, d tenant.Database) (tenant.Database, event.Change, error) {
		ch := event.NewChange(in.Asker.actor(), s.moment())
		d.UpdatedAt, d.Version = ch.At, d.Version+1
		if d.Placement.Kind == tenant.External {
			d.State, d.Placement.SealedPassword = tenant.Released, nil
		} else {
			d.State, d.Placement.WrappedKey, d.Placement.Host, d.Facts = tenant.Empty, nil, "", tenant.Facts{}
		}
		ch.Add("database.released", string(d.ID()), map[string]any{"kind": KindName(d.Placement.Kind)})
		return d, ch, nil
	})
	return nil, fault.Wrap(op, err)
}

// letGo makes an original free of us, or destroys it when it is ours to keep.
func (s *Service) letGo(ctx context.Context, d tenant.Database) error {
	if d.Placement.Kind != tenant.External {
		return s.Places.Destroy(ctx, d.Placement)
	}
	db, err := s.Places.Open(ctx, d.Placement)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	ctx = sqlstore.Patient(ctx)
	if err := sqlstore.StopCapture(ctx, db); err != nil {
		return err
	}
	if err := sqlstore.CommentTables(ctx, db); err != nil { // in place of any mark of ours
		return err
	}
	return sqlstore.Unfence(ctx, db)
}
