package spool

import (
	"cmp"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Sealer encrypts what is kept; seal.Keyring does.
type Sealer interface {
	Seal(purpose string, plaintext, aad []byte) []byte
	Open(purpose string, sealed, aad []byte) ([]byte, error)
}

// purpose is what the records are sealed for.
const purpose = "turn spool"

// Config says where and how much may be kept. The bounds are bytes on disk; zero means the default.
type Config struct {
	Folder    string
	Sealer    Sealer
	PerTurn   int64        // default 8 MiB
	PerTenant int64        // default 32 MiB
	Total     int64        // default 256 MiB
	Log       *slog.Logger // may be nil
}

// Spool is all that is kept on this machine. It is safe for concurrent use.
//
// Every process writes into a folder of its own, beside which lies a file that it locks. Folders whose lock nobody
// holds were left behind by processes that died, and are taken over by whoever starts next.
type Spool struct {
	Config
	own *folder

	mu      sync.Mutex
	entries map[key]*entry
	tenants map[ident.TenantID]int64 // bytes
	total   int64
	folders []*folder
}

type key struct {
	tenant ident.TenantID
	turn   ident.TurnID
}

// folder is one process's part.
type folder struct {
	path  string
	lock  *os.File
	files int // under Spool.mu; what was set aside counts
}

// entry is what is kept of one turn. Its lock is taken before the spool's.
type entry struct {
	key
	in *folder

	mu      sync.Mutex
	records int   // written; -1: not counted yet
	size    int64 // of the file, as far as it is whole
	gone    bool
	aside   bool // kept, but nobody looks at it; under Spool.mu
}

// Open takes over what dead processes left and makes room for this one.
func Open(c Config) (*Spool, error) {
	const op = "spool.Open"
	c.PerTurn, c.PerTenant, c.Total = cmp.Or(c.PerTurn, 8<<20), cmp.Or(c.PerTenant, 32<<20), cmp.Or(c.Total, 256<<20)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Spool{Config: c, entries: make(map[key]*entry), tenants: make(map[ident.TenantID]int64)}
	if err := os.MkdirAll(c.Folder, 0o700); err != nil {
		return nil, failed(op, err)
	}
	left, err := filepath.Glob(filepath.Join(c.Folder, "*.lock"))
	if err != nil {
		return nil, failed(op, err)
	}
	for _, name := range left {
		if err := s.takeOver(name); err != nil {
			return nil, errors.Join(failed(op, err), s.Close())
		}
	}
	if s.own, err = makeFolder(filepath.Join(c.Folder, string(ident.New[ident.EventID]()))); err != nil {
		return nil, errors.Join(failed(op, err), s.Close())
	}
	s.folders = append(s.folders, s.own)
	return s, nil
}

// makeFolder makes and locks a folder. The lock comes first: a folder without one would be taken for a dead process's.
func makeFolder(path string) (*folder, error) {
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if err := errors.Join(os.Mkdir(path, 0o700), syncFolder(filepath.Dir(path))); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &folder{path: path, lock: lock}, nil
}

// takeOver reads what is in the folder of a lock that nobody holds.
func (s *Spool) takeOver(lockName string) error {
	lock, err := os.OpenFile(lockName, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // somebody has just taken it over and emptied it
	}
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return lock.Close() // somebody lives there
	}
	f := &folder{path: strings.TrimSuffix(lockName, ".lock"), lock: lock}
	files, err := os.ReadDir(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, lock.Close())
	}
	for _, file := range files {
		f.files++
		info, err := file.Info()
		tenant, turn, _ := strings.Cut(file.Name(), ".")
		k := key{ident.TenantID(tenant), ident.TurnID(turn)}
		if _, bad := ident.Parse[ident.TenantID](tenant); bad != nil || err != nil || !info.Mode().IsRegular() {
			s.Log.Warn("a file that is not ours lies in the spool")
			continue
		}
		if _, bad := ident.Parse[ident.TurnID](turn); bad != nil {
			s.Log.Warn("a file that is not ours lies in the spool")
			continue
		}
		s.entries[k] = &entry{key: k, in: f, records: -1, size: info.Size()}
		s.tenants[k.tenant] += info.Size()
		s.total += info.Size()
	}
	s.folders = append(s.folders, f)
	s.tidy(f)
	return nil
}

// tidy removes a folder that was taken over and is empty now.
func (s *Spool) tidy(f *folder) {
	if f == s.own || f.files > 0 {
		return
	}
	if err := os.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return
	}
	_, _ = os.Remove(f.lock.Name()), f.lock.Close()
	s.folders = slices.DeleteFunc(s.folders, func(other *folder) bool { return other == f })
}

// Close gives the folders up. What is in them stays for the next process.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	own := s.own
	s.own = nil
	if own != nil {
		s.tidy(own)
	}
	var errs []error
	for _, f := range s.folders {
		errs = append(errs, f.lock.Close())
	}
	s.folders = nil
	return errors.Join(errs...)
}

// Stats says how much is kept.
type Stats struct {
	Turns int
	Bytes int64
}

// Stats counts what is kept, what was set aside too.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{Turns: len(s.entries), Bytes: s.total}
}

// Tenants are those of whom something is kept.
func (s *Spool) Tenants() []ident.TenantID {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := map[ident.TenantID]bool{}
	for k, e := range s.entries {
		if !e.aside {
			seen[k.tenant] = true
		}
	}
	list := make([]ident.TenantID, 0, len(seen))
	for id := range seen {
		list = append(list, id)
	}
	slices.Sort(list)
	return list
}

// Discard drops everything of a tenant that is gone.
func (s *Spool) Discard(id ident.TenantID) error {
	s.mu.Lock()
	var turns []ident.TurnID
	for k := range s.entries {
		if k.tenant == id {
			turns = append(turns, k.turn)
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, turn := range turns {
		errs = append(errs, s.Tenant(id).Drop(turn))
	}
	return errors.Join(errs...)
}

// Tenant is one tenant's part of the spool. It cannot reach another one's.
type Tenant struct {
	spool *Spool
	id    ident.TenantID
}

// Tenant returns a tenant's part. It may be empty.
func (s *Spool) Tenant(id ident.TenantID) *Tenant { return &Tenant{spool: s, id: id} }

// Turns are those of which something is kept.
func (t *Tenant) Turns() []ident.TurnID {
	s := t.spool
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []ident.TurnID
	for k, e := range s.entries {
		if k.tenant == t.id && !e.aside {
			list = append(list, k.turn)
		}
	}
	slices.Sort(list)
	return list
}

// Holds reports whether something is kept of the turn.
func (t *Tenant) Holds(turn ident.TurnID) bool {
	s := t.spool
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[key{t.id, turn}]
	return e != nil && !e.aside
}

// Append adds a record to what is kept of the turn. It is on the disk when Append returns without an error. What would
// be over a bound is Unavailable with code "spool_full", and changes nothing.
func (t *Tenant) Append(turn ident.TurnID, record []byte) error {
	const op = "spool.Append"
	s, k := t.spool, key{t.id, turn}
	for {
		e, err := s.find(k)
		if err != nil {
			return err
		}
		e.mu.Lock()
		if e.gone { // dropped between the two locks
			e.mu.Unlock()
			continue
		}
		err = s.append(op, e, record)
		e.mu.Unlock()
		return err
	}
}

// find returns the entry, a new one if there is none.
func (s *Spool) find(k key) (*entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own == nil {
		return nil, givenUp("spool.Append")
	}
	e := s.entries[k]
	if e == nil {
		e = &entry{key: k, in: s.own}
		s.entries[k] = e
		s.own.files++
	}
	return e, nil
}

// givenUp is the error of who comes after Close.
func givenUp(op string) error {
	return fault.New(fault.Unavailable, op, "shutting_down", "the server is about to stop")
}

// append writes one record. The entry's lock is held.
func (s *Spool) append(op string, e *entry, record []byte) (err error) {
	defer func() {
		if err != nil && e.size == 0 {
			_ = os.Remove(e.path()) // what was begun of it
			s.forget(e)
		}
	}()
	if e.records < 0 {
		if _, err := s.read(e); err != nil {
			return err
		}
	}
	sealed := s.Sealer.Seal(purpose, record, bound(e.key, e.records))
	framed := append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(sealed)), uint32(len(sealed))), sealed...)
	if err := s.reserve(op, e, int64(len(framed))); err != nil {
		return err
	}
	first := e.size == 0
	if err := e.write(framed, first); err != nil {
		s.release(e, int64(len(framed)))
		return failed(op, err)
	}
	e.size += int64(len(framed))
	e.records++
	return nil
}

// reserve takes room, so that two who write at once do not share it.
func (s *Spool) reserve(op string, e *entry, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.size+n > s.PerTurn || s.tenants[e.tenant]+n > s.PerTenant || s.total+n > s.Total {
		return fault.New(fault.Unavailable, op, "spool_full", "there is no room to keep this until the database is back")
	}
	s.tenants[e.tenant] += n
	s.total += n
	return nil
}

func (s *Spool) release(e *entry, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tenants[e.tenant] -= n; s.tenants[e.tenant] == 0 {
		delete(s.tenants, e.tenant)
	}
	s.total -= n
}

func (e *entry) path() string {
	return filepath.Join(e.in.path, string(e.tenant)+"."+string(e.turn))
}

// write puts the bytes behind what is whole. The file is closed in between: during an outage there may be more turns
// than descriptors.
func (e *entry) write(framed []byte, first bool) (err error) {
	f, err := os.OpenFile(e.path(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.WriteAt(framed, e.size); err != nil {
		return errors.Join(err, f.Truncate(e.size))
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if first {
		return syncFolder(e.in.path)
	}
	return nil
}

// Records returns what is kept of the turn, in order; nothing when there is none. An end that is broken, as a dying
// machine leaves it, is left out. Where not even the beginning can be opened, since its key is gone, it is an error, and
// set aside.
func (t *Tenant) Records(turn ident.TurnID) ([][]byte, error) {
	s := t.spool
	s.mu.Lock()
	e := s.entries[key{t.id, turn}]
	if e != nil && e.aside {
		e = nil
	}
	s.mu.Unlock()
	if e == nil {
		return nil, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return nil, nil
	}
	return s.read(e)
}

// read reads an entry, and learns where its whole part ends. The entry's lock is held.
func (s *Spool) read(e *entry) ([][]byte, error) {
	const op = "spool.Records"
	f, err := os.Open(e.path())
	if errors.Is(err, fs.ErrNotExist) && e.size == 0 {
		e.records = 0
		return nil, nil
	}
	if err != nil {
		return nil, failed(op, err)
	}
	defer func() { _ = f.Close() }() // only read
	raw, err := io.ReadAll(f)
	if err != nil {
		return nil, failed(op, err)
	}
	var list [][]byte
	whole := 0
	for rest := raw; len(rest) >= 4; rest = raw[whole:] {
		n := int(binary.BigEndian.Uint32(rest))
		if n == 0 || n > len(rest)-4 {
			break
		}
		record, err := s.Sealer.Open(purpose, rest[4:4+n], bound(e.key, len(list)))
		if err != nil && len(list) > 0 {
			s.Log.Warn("the end of what was kept of a turn cannot be read", "code", fault.CodeOf(err), "turn", e.turn)
			break
		}
		if err != nil {
			s.setAside(e)
			return nil, fault.Wrap(op, err)
		}
		list, whole = append(list, record), whole+4+n
	}
	e.records = len(list)
	if torn := e.size - int64(whole); torn != 0 {
		s.release(e, torn)
		e.size = int64(whole)
	}
	return list, nil
}

// bound binds a record to its place, so that none can be moved, repeated or left out but at the end.
func bound(k key, n int) []byte {
	return binary.BigEndian.AppendUint64([]byte(string(k.tenant)+"\x00"+string(k.turn)+"\x00"), uint64(n))
}

// Drop forgets what is kept of the turn. Nothing kept is no error. After Close it is the next process's, and stays.
func (t *Tenant) Drop(turn ident.TurnID) error {
	s := t.spool
	s.mu.Lock()
	e, closed := s.entries[key{t.id, turn}], s.own == nil
	s.mu.Unlock()
	if e == nil {
		return nil
	}
	if closed {
		return givenUp("spool.Drop")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return nil
	}
	if err := os.Remove(e.path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failed("spool.Drop", err)
	}
	s.release(e, e.size)
	s.forget(e)
	return nil
}

// SetAside keeps what is kept of the turn, where an operator can find it, and no longer speaks of it.
func (t *Tenant) SetAside(turn ident.TurnID) {
	t.spool.mu.Lock()
	e := t.spool.entries[key{t.id, turn}]
	t.spool.mu.Unlock()
	if e != nil {
		t.spool.setAside(e)
	}
}

func (s *Spool) setAside(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !e.aside {
		e.aside = true
		s.Log.Error("what was kept of a turn cannot be used; its file stays in the spool", "tenant", e.tenant, "turn", e.turn)
	}
}

// forget takes an entry without a file out of the spool. The entry's lock is held.
func (s *Spool) forget(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.gone = true
	delete(s.entries, e.key)
	e.in.files--
	s.tidy(e.in)
}

// syncFolder makes the names in a folder last.
func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func failed(op string, err error) error {
	if err == nil {
		return nil
	}
	code := "storage_failed"
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		code = "storage_full"
	}
	return fault.New(fault.Unavailable, op, code, "the storage of this server does not work").With(err)
}
