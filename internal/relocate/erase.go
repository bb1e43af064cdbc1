package relocate

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/workspace"
)

// What is erased.
const (
	EraseAccount = "account" // the account with its tenant and everything about it
	EraseData    = "data"    // what the tenant holds; account and sign-in stay
)

// Receipt says what was erased, store by store, signed by the installation.
type Receipt struct {
	What    string          `json:"what"` // account or data
	Account ident.AccountID `json:"account_id"`
	Tenant  ident.TenantID  `json:"tenant_id"`
	At      time.Time       `json:"at"`
	Stores  []ErasedStore   `json:"stores"`
	// PublicKey and Signature are Ed25519, in base64, over the JSON of the receipt without them.
	PublicKey string `json:"public_key,omitempty"`
	Signature string `json:"signature,omitempty"`
}

// ErasedStore is one place in which something of the tenant was.
type ErasedStore struct {
	Store   string `json:"store"`   // "hosted_sqlite", "account", "spool"
	Name    string `json:"name"`    // which one
	Method  string `json:"method"`  // how: "key destroyed, file removed"
	Outcome string `json:"outcome"` // "erased", "pending" or "left"
}

// add puts a store into the receipt. What an earlier try said of the same one is replaced, but for that it was erased.
func (r *Receipt) add(add ErasedStore) {
	for i, s := range r.Stores {
		if s.Store != add.Store || s.Name != add.Name {
			continue
		}
		if s.Outcome != outcomeErased || add.Outcome == outcomeErased {
			r.Stores[i] = add
		}
		return
	}
	r.Stores = append(r.Stores, add)
}

// ReadReceipt finds the receipt in a text: all of it, or in the API's answer, or in the job's. It is not checked.
func ReadReceipt(text []byte) (Receipt, error) {
	var in struct {
		Receipt
		Answer *Receipt `json:"receipt"`
		Report *Receipt `json:"report"`
	}
	err := json.Unmarshal(text, &in)
	r := in.Receipt
	switch {
	case in.Answer != nil:
		r = *in.Answer
	case in.Report != nil:
		r = *in.Report
	}
	if err != nil || r.Signature == "" {
		return Receipt{}, fault.New(fault.Invalid, "relocate.ReadReceipt", "",
			"there is no signed receipt in this: give the receipt, or the whole answer to the erasure or about its job")
	}
	return r, nil
}

const (
	outcomeErased  = "erased"
	outcomePending = "pending" // not yet: the method says what has to happen first
	outcomeLeft    = "left"    // out of reach: the server has no way to it any more
)

// backupsLater is how what earlier backups hold is erased, where there are any.
const backupsLater = "noted: never restored here; its keys are destroyed by the next backup into each repository, and can be read there until then"

type eraseInput struct {
	Asker asker `json:"asker"`
}

// Erase starts the job that erases a tenant's data, or the whole account. Whoever asks has proved who they are again.
// With the account every session ends and nobody gets in from this moment on. Another job at work on the tenant is
// Conflict, code "tenant_busy"; but erasing the account takes the place of erasing the data. The data of a tenant that
// the operator has frozen is not erased: [workspace.Refusal]. Nor is that in a database that does not answer at the moment:
// it is Unavailable, as for whoever reads it, and nothing was begun.
func (s *Service) Erase(ctx context.Context, actor ident.Actor, of ident.TenantID, what string) (job.Job, error) {
	const op = "relocate.Erase"
	t, err := s.own(ctx, op, actor, of)
	if err != nil {
		return job.Job{}, err
	}
	kind := KindEmpty
	switch what {
	case EraseAccount:
		kind = KindErase
	case EraseData:
		if err := workspace.Refusal(t.State); err != nil {
			return job.Job{}, fault.Wrap(op, err)
		}
		if err := s.answers(ctx, actor, t.ID); err != nil {
			return job.Job{}, fault.Wrap(op, err)
		}
	default:
		return job.Job{}, fault.BadInput(op, "body.what", "must be account or data")
	}
	in := eraseInput{}
	if kind == KindEmpty {
		in.Asker = askerOf(actor)
	} // else the job outlives the account, and must not know who that was
	j, err := s.newJob(kind, t, in)
	if err != nil {
		return job.Job{}, err
	}
	ch := event.NewChange(actor, j.CreatedAt)
	if kind == KindErase {
		ch.Add("account.erase_started", string(t.Account), map[string]any{"job_id": j.ID})
		ch.Add(workspace.EventUpdated, string(t.ID), map[string]any{"state": tenant.Suspended})
		err = s.Store.CloseAccount(ctx, t, j, KindEmpty, ch)
	} else {
		ch.Add("data.erase_started", string(t.ID), map[string]any{"job_id": j.ID})
		err = s.Store.InsertJob(ctx, j, ch)
	}
	if err != nil {
		return job.Job{}, fault.Wrap(op, err)
	}
	if kind == KindErase && s.Pool != nil {
		if rerr := s.Pool.Refresh(ctx, t.ID); rerr != nil {
			s.Log.Warn("tenant not closed to its owner yet", "code", fault.CodeOf(rerr), "tenant", t.ID)
		}
	}
	s.wake()
	return j, nil
}

// answers is what a request that reads the tenant's database would fail with.
func (s *Service) answers(ctx context.Context, actor ident.Actor, id ident.TenantID) error {
	if s.Pool == nil {
		return nil
	}
	ws, err := s.Pool.Acquire(ctx, actor, id)
	if err != nil {
		return err
	}
	defer ws.Release()
	_, err = ws.Events.Head(ctx)
	return err
}

// Await waits until a job has ended, or has noted why it must be tried again, or ctx has ended; it returns the job as it
// stands.
func (s *Service) Await(ctx context.Context, id ident.JobID) (job.Job, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		j, err := s.Store.FindJob(context.WithoutCancel(ctx), id)
		if err != nil || j.State.Final() || j.Failure != nil {
			return j, fault.Wrap("relocate.Await", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return j, nil
		}
	}
}

// erase is the job that erases an account. Everything it does may be done again.
func (s *Service) erase(ctx context.Context, run *job.Run) (any, error) {
	const op = "relocate.Erase"
	t, err := s.Store.FindTenant(ctx, run.Job.Tenant)
	if fault.Is(err, fault.NotFound) {
		// An earlier process had done all of it and noted the receipt.
		s.scrub(ctx)
		return run.Job.Saved, nil
	}
	if err != nil {
		return nil, errors.Join(job.ErrAgain, err)
	}
	r, err := s.receipt(run, t, EraseAccount)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	if err := s.outlast(ctx, t.ID); err != nil {
		return nil, errors.Join(job.ErrAgain, err)
	}
	s.Pool.Expel(ctx, t.ID)
	if err := s.destroyAll(ctx, run, t, &r, func(tenant.Database) bool { return true }); err != nil {
		return nil, errors.Join(job.ErrAgain, err)
	}
	if err := s.dropSpool(ctx, t.ID, &r); err != nil {
		return nil, errors.Join(job.ErrAgain, err)
	}
	if err := s.dropSnapshot(ctx, t.ID, &r); err != nil {
		return nil, errors.Join(job.ErrAgain, err)
	}
	r.add(ErasedStore{Store: "master", Name: "account, sessions, tokens, databases, jobs", Method: "rows deleted", Outcome: outcomeErased})
	r.add(ErasedStore{Store: "master", Name: "audit trail and log", Method: "names and addresses removed", Outcome: outcomeErased})
	r.add(ErasedStore{Store: "backups", Name: "earlier backups", Method: backupsLater, Outcome: outcomePending})
	s.sign(&r)
	if err := run.Save(ctx, r); err != nil {
		return nil, errors.Join(job.ErrAgain, err)
	}
	ch := event.NewChange(ident.System(""), r.At)
	ch.Add("account.erased", string(t.Account), map[string]any{"job_id": run.Job.ID})
	ch.Add(workspace.EventErased, string(t.ID), map[string]any{"job_id": run.Job.ID})
	if err := s.Store.EraseTenant(ctx, tenant.Erasure{Tenant: t.ID, Account: t.Account, At: r.At}, run.Job.ID, ch); err != nil {
		return nil, errors.Join(job.ErrAgain, fault.Wrap(op, err))
	}
	s.scrub(ctx)
	return r, nil
}

// receipt is what a job's receipt says so far: what earlier tries did is in it.
func (s *Service) receipt(run *job.Run, t tenant.Tenant, what string) (Receipt, error) {
	var was Receipt
	if len(run.Job.Saved) > 0 {
		if err := json.Unmarshal(run.Job.Saved, &was); err != nil {
			return Receipt{}, err
		}
	}
	return Receipt{What: what, Account: t.Account, Tenant: t.ID, At: s.moment(), Stores: was.Stores}, nil
}

// outlast waits until the lease is over that a superseded job had: by then whoever worked on it has stopped.
func (s *Service) outlast(ctx context.Context, id ident.TenantID) error {
	list, _, err := s.Store.ListJobs(ctx, job.Filter{Tenant: id, Kind: KindEmpty, State: job.Cancelled}, "", 1)
	if err != nil || len(list) == 0 {
		return err
	}
	over := time.NewTimer(min(list[0].Lease.Sub(s.Now()), supersededPatience))
	defer over.Stop()
	select {
	case <-over.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// supersededPatience bounds that wait, for clocks that disagree.
const supersededPatience = 30 * time.Second

// scrub removes the traces of rows from the master database's files.
func (s *Service) scrub(ctx context.Context) {
	if err := s.Store.Scrub(ctx); err != nil {
		s.Log.Warn("traces of erased rows stay in the master database's files until its next checkpoint", "code", fault.CodeOf(err))
	}
}

const releasedEarlier = "released earlier: the tables are the owner's"

// destroyAll destroys the databases of a tenant that which picks. A user's own that cannot be reached is left and said so:
// the server forgets how to get there. So is what was released there. What is done is saved as it is done.
func (s *Service) destroyAll(ctx context.Context, run *job.Run, t tenant.Tenant, r *Receipt, which func(tenant.Database) bool) error {
	list, err := s.Store.ListDatabases(ctx, t.ID)
	if err != nil {
		return err
	}
	for i, d := range list {
		run.Progress(int64(i), int64(len(list)), "databases")
		freed := d.State == tenant.Released || d.State == tenant.Ready && d.Placement.Kind == tenant.External
		if !freed && !which(d) || d.State == tenant.Empty || d.State == tenant.Ready && !freed {
			continue
		}
		store := ErasedStore{Store: KindName(d.Placement.Kind), Name: string(d.ID()), Method: "schema dropped, files removed" + beyondFiles, Outcome: outcomeErased}
		switch {
		case d.State == tenant.Released:
			store.Method, store.Outcome = releasedEarlier, outcomeLeft
		case d.State == tenant.Ready:
			// It may be one that was released, and whose password was given again: then the tables are there.
			ferr := s.Places.Undo(sqlstore.Patient(ctx), d.Placement)
			if ferr == nil {
				continue // nothing of it is there
			}
			store.Method, store.Outcome = releasedEarlier, outcomeLeft
			if fault.CodeOf(ferr) != "schema_exists" {
				store.Method = "not reachable (" + fault.CodeOf(ferr) + "): if a copy was released there earlier, its tables are there still"
			}
		case d.Placement.Kind == tenant.SQLite:
			store.Method = "key destroyed, file removed"
			err = s.Places.Destroy(ctx, d.Placement)
		default:
			if d.State == tenant.Filling {
				err = s.Places.Undo(sqlstore.Patient(ctx), d.Placement)
			} else {
				err = s.Places.Destroy(sqlstore.Patient(ctx), d.Placement)
			}
			if err != nil && d.Placement.Kind == tenant.External {
				s.Log.Warn("a database of a user's own could not be emptied", "code", fault.CodeOf(err), "database", d.ID())
				store.Method, store.Outcome, err = "not reachable ("+fault.CodeOf(err)+"): drop the schema yourself", outcomeLeft, nil
			}
		}
		if err == nil {
			err = s.Store.ForgetFacts(ctx, sqlstore.TakingOver(d.ID()))
		}
		if err != nil {
			return err
		}
		r.add(store)
		if err := run.Save(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) dropSpool(ctx context.Context, id ident.TenantID, r *Receipt) error {
	if s.Spools == nil {
		return nil
	}
	if err := s.Spools(ctx, id); err != nil {
		return err
	}
	r.add(ErasedStore{Store: "spool", Name: "answers that waited for the database" + s.here(), Method: "files removed", Outcome: outcomeErased})
	return nil
}

func (s *Service) dropSnapshot(ctx context.Context, id ident.TenantID, r *Receipt) error {
	if s.Snapshots == nil {
		return nil
	}
	if err := s.Snapshots.Forget(ctx, id); err != nil {
		return err
	}
	r.add(ErasedStore{Store: "snapshots", Name: "what was kept before a migration" + s.here(), Method: "key destroyed, files removed", Outcome: outcomeErased})
	if !s.Sole {
		r.add(ErasedStore{Store: "snapshots", Name: "what other nodes kept before a migration",
			Method: "never put back; each node removes its own within a day, or when it is next started", Outcome: outcomeLeft})
	}
	return nil
}

// here says of what lies on a machine's disk on which, where there may be several.
func (s *Service) here() string {
	if s.Sole {
		return ""
	}
	return ", on the machine of node " + s.Node
}

// emptiedAt is when a tenant's owner last had all data erased and kept the account; zero: never.
func (s *Service) emptiedAt(ctx context.Context, id ident.TenantID) (time.Time, error) {
	list, err := Emptyings(ctx, s.Store, id)
	if err != nil {
		return time.Time{}, err
	}
	for _, j := range list {
		if j.State == job.Completed {
			return *j.FinishedAt, nil
		}
	}
	return time.Time{}, nil
}

// Emptyings are the jobs by which owners have all data erased, as an installation remembers them, so that no earlier copy
// comes back. Of those who keep the account: for each tenant the last one that was completed, and those after it that are
// to come, are at work, or have failed; one that would be refused, since the operator has frozen the tenant meanwhile,
// counts as failed. Of those who do not: the ones that were not completed, which the ledger does not know. These come
// first; else newest first. With of, those of that tenant alone.
func Emptyings(ctx context.Context, store *sqlstore.MasterStore, of ident.TenantID) ([]job.Job, error) {
	var list []job.Job
	err := eachJob(ctx, store, job.Filter{Tenant: of, Kind: KindErase}, func(j job.Job) (bool, error) {
		if j.State != job.Completed {
			list = append(list, j)
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	done := map[ident.TenantID]bool{}
	err = eachJob(ctx, store, job.Filter{Tenant: of, Kind: KindEmpty}, func(j job.Job) (bool, error) {
		if done[j.Tenant] || j.State == job.Cancelled { // by an erasure of the account, which is above or in the ledger
			return of == "" || !done[of], nil
		}
		if !j.State.Final() && len(j.Saved) == 0 {
			if err := refused(ctx, store, &j); err != nil {
				return false, err
			}
		}
		done[j.Tenant] = j.State == job.Completed
		list = append(list, j)
		return true, nil
	})
	return list, err
}

// eachJob calls f for jobs, newest first, until it returns false.
func eachJob(ctx context.Context, store *sqlstore.MasterStore, which job.Filter, f func(job.Job) (bool, error)) error {
	for cursor := ""; ; {
		page, next, err := store.ListJobs(ctx, which, cursor, 200)
		if err != nil {
			return err
		}
		for _, j := range page {
			if more, err := f(j); err != nil || !more {
				return err
			}
		}
		if cursor = next; next == "" {
			return nil
		}
	}
}

// refused makes a job that nobody has begun a failed one, where it would be refused now.
func refused(ctx context.Context, store *sqlstore.MasterStore, j *job.Job) error {
	t, err := store.FindTenant(ctx, j.Tenant)
	if err != nil {
		return ignoreMissing(err)
	}
	if f, ok := errors.AsType[*fault.Error](workspace.Refusal(t.State)); ok {
		now := time.Now().UTC().Truncate(time.Microsecond)
		j.State, j.FinishedAt, j.Failure = job.Failed, &now, &job.Failure{Code: f.StableCode(), Detail: f.Message}
	}
	return nil
}

// TidySnapshots removes what this machine keeps from before migrations where it is too old, or its tenant is gone, or
// has had all data erased since.
func (s *Service) TidySnapshots(ctx context.Context) error {
	return s.Snapshots.Tidy(ctx, func(ctx context.Context, id ident.TenantID, at time.Time) (bool, error) {
		if _, err := s.Store.FindTenant(ctx, id); err != nil {
			return false, ignoreMissing(err)
		}
		emptied, err := s.emptiedAt(ctx, id)
		return at.After(emptied), err
	})
}

// empty is the job that erases what a tenant holds and keeps the account. A hosted file is then written anew under a new
// key, and the tables in PostgreSQL get new files, so that nothing of the old content is left in them.
func (s *Service) empty(ctx context.Context, run *job.Run) (any, error) {
	const op = "relocate.Empty"
	var in eraseInput
	if err := json.Unmarshal(run.Job.Input, &in); err != nil {
		return nil, fault.Wrap(op, err)
	}
	t, err := s.Store.FindTenant(ctx, run.Job.Tenant)
	if err != nil {
		return nil, errors.Join(job.ErrAgain, err)
	}
	// What was frozen since somebody asked stays as it is. What was begun is brought to its end.
	begun := len(run.Job.Saved) > 0
	if err := workspace.Refusal(t.State); err != nil && !begun {
		return nil, fault.Wrap(op, err)
	}
	r, err := s.receipt(run, t, EraseData)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	ws, err := s.Pool.Acquire(ctx, ident.System(""), t.ID)
	if err != nil {
		return nil, errors.Join(job.ErrAgain, err)
	}
	defer ws.Release()
	if run.Again() {
		// An earlier try may have ended while it changed the file for another one: what is fenced cannot be emptied.
		undo, cancel := context.WithTimeout(sqlstore.Patient(context.WithoutCancel(ctx)), undoPatience)
		defer cancel()
		if err := (&mover{Service: s, run: run, tenant: t}).reopen(undo); err != nil {
			return nil, errors.Join(job.ErrAgain, err)
		}
	}
	if err := workspace.Refusal(ws.Tenant.State); err != nil && !begun {
		return nil, fault.Wrap(op, err)
	}
	if err := run.Save(ctx, r); err != nil {
		return nil, errors.Join(job.ErrAgain, err)
	}
	// Copies that were kept, or were never completed, are of the same content.
	copied := func(d tenant.Database) bool { return d.State == tenant.Original || d.State == tenant.Filling }
	if err := s.destroyAll(ctx, run, t, &r, copied); err != nil {
		return nil, errors.Join(job.ErrAgain, err)
	}
	// So is an original whose place the present database took, where it could not be removed then.
	if err := s.Places.Shed(sqlstore.Patient(ctx), ws.Tenant.Placement); err != nil && ws.Tenant.Placement.Kind != tenant.External {
		return nil, errors.Join(job.ErrAgain, err)
	} else if err != nil {
		r.add(ErasedStore{Store: KindName(tenant.External), Name: string(ws.Tenant.Placement.Database) + ", the original before it",
			Method: "not removed (" + fault.CodeOf(err) + "): drop the schema yourself", Outcome: outcomeLeft})
	}
	list, err := s.Store.ListDatabases(ctx, t.ID)
	if err != nil {
		return nil, errors.Join(job.ErrAgain, err)
	}
	for _, d := range list {
		if !copied(d) {
			continue
		}
		if err := s.forgetCopy(ctx, t, d); err != nil {
			return nil, errors.Join(job.ErrAgain, err)
		}
	}
	if err := s.dropSpool(ctx, t.ID, &r); err != nil {
		return nil, errors.Join(job.ErrAgain, err)
	}
	if err := s.dropSnapshot(ctx, t.ID, &r); err != nil {
		return nil, errors.Join(job.ErrAgain, err)
	}
	ch := event.NewChange(in.Asker.actor(), r.At)
	ch.Add("data.erased", string(t.ID), map[string]any{"job_id": run.Job.ID})
	done, err := ws.Empty(sqlstore.Patient(ctx), ch)
	if err != nil {
		return nil, errors.Join(job.ErrAgain, err)
	}
	if err := s.endShares(ctx, t); err != nil {
		return nil, errors.Join(job.ErrAgain, err)
	}
	store := ErasedStore{Store: KindName(t.Placement.Kind), Name: string(t.Placement.Database), Method: "rows deleted", Outcome: outcomeErased}
	if t.Placement.Kind == tenant.SQLite {
		r.add(store) // the new file has another name
		if err := s.rekey(ctx, run, t, r); err != nil {
			return nil, errors.Join(job.ErrAgain, err)
		}
		store.Method = "rows deleted, file written anew under a new key"
	} else {
		emptiedServer(&r, &store, done)
	}
	r.add(store)
	r.add(ErasedStore{Store: "backups", Name: "earlier backups", Method: backupsLater, Outcome: outcomePending})
	s.sign(&r)
	return r, nil
}

// beyondFiles is what a PostgreSQL server keeps of what was in its tables' files, and nobody can erase through it.
const beyondFiles = "; the server's write-ahead log until it is used again, its replicas and its own backups are not reached"

// emptiedServer says of a database in PostgreSQL what was done to its files, and of what is left in them that it is.
func emptiedServer(r *Receipt, store *ErasedStore, done sqlstore.Emptied) {
	left := func(what, why string) {
		r.add(ErasedStore{Store: store.Store, Name: store.Name + ": " + what, Method: why, Outcome: outcomeLeft})
	}
	switch {
	case !done.Anew:
		left("the tables' files", "other tables refer to these, or they may not be truncated: "+
			"deleted rows stay in the files until VACUUM FULL, which their owner can run")
	case !done.Forgotten:
		store.Method = "tables emptied into new files, old files removed" + beyondFiles
		left("the planner's statistics", "values that it sampled stay until ANALYZE meets new rows")
	default:
		store.Method = "tables emptied into new files, old files removed" + beyondFiles
	}
}

// endShares ends the memberships of projects that are erased, and has the account's own looked at again, whose shortcuts are
// gone too.
func (s *Service) endShares(ctx context.Context, t tenant.Tenant) error {
	gone, err := s.Store.DropShares(ctx, t.ID, s.Now())
	for _, g := range gone {
		s.Bus.Publish(ctx, event.Signal{Topic: event.AccessTopic(g.Account), Kind: event.Access})
	}
	if err == nil {
		err = s.Store.MarkAccount(ctx, t.Account, s.Now())
	}
	return err
}

// forgetCopy notes that a copy is gone.
func (s *Service) forgetCopy(ctx context.Context, t tenant.Tenant, d tenant.Database) error {
	_, err := s.Store.UpdateDatabase(ctx, t.ID, d.ID(), nil,
		func(_ tenant.Tenant, now tenant.Database) (tenant.Database, event.Change, error) {
			now.State, now.Placement.WrappedKey, now.Facts = tenant.Ready, nil, tenant.Facts{}
			if now.Placement.Kind != tenant.External {
				now.State, now.Placement.Host = tenant.Empty, ""
			}
			return now, event.Change{}, nil
		})
	return err
}

// sign completes a receipt.
func (s *Service) sign(r *Receipt) {
	r.PublicKey, r.Signature = "", ""
	raw, err := json.Marshal(r)
	if err != nil {
		return // of plain text and times: it does not happen
	}
	seed := s.Lasting.Derive("receipts")
	key := ed25519.NewKeyFromSeed(seed[:])
	r.PublicKey = base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey))
	r.Signature = base64.StdEncoding.EncodeToString(ed25519.Sign(key, raw))
}

// Check reports whether a receipt is one that this installation signed.
func (s *Service) Check(r Receipt) bool {
	sig, err := base64.StdEncoding.DecodeString(r.Signature)
	if err != nil {
		return false
	}
	r.PublicKey, r.Signature = "", ""
	raw, err := json.Marshal(r)
	if err != nil {
		return false
	}
	seed := s.Lasting.Derive("receipts")
	key := ed25519.NewKeyFromSeed(seed[:])
	return ed25519.Verify(key.Public().(ed25519.PublicKey), raw, sig)
}
