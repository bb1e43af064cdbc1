package sqlstore

import (
	"context"
	"encoding/hex"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/ext/fts5"
	// The encrypting file layer registers itself under the name "adiantum" when it is imported.
	_ "github.com/ncruces/go-sqlite3/vfs/adiantum"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/seal"
)

// Limits of one SQLite handle. They are small because thousands of databases may be open.
const (
	cacheKiB      = 512     // pages that a connection keeps
	walPages      = 1000    // checkpoint after about 4 MiB
	walKeep       = 4 << 20 // what a checkpointed log may keep on disk
	statementsMax = 128     // prepared statements per connection
)

// SQLiteOptions says which file to open and how.
type SQLiteOptions struct {
	Path        string
	Key         *seal.Key     // nil: the file is not encrypted
	Readers     int           // reading connections, opened when needed; 2 when 0
	Create      bool          // make the file when there is none; otherwise that is an error
	Synchronous string        // FULL when empty; EXTRA; or NORMAL, which loses acknowledged writes in a power cut
	BusyTimeout time.Duration // how long to wait for another process; 5 s when 0
	Spare       Spare         // for the reading connections; nil: as many as Readers says
	CacheKiB    int           // how much of the file each connection keeps in memory; 512 when 0
}

// Spare is room for reading connections that many files share: each of these takes a place. A file that finds none reads
// with its writing connection, in turns with what is written.
type Spare chan struct{}

// NewSpare returns room for n connections.
func NewSpare(n int) Spare { return make(Spare, n) }

// take reports whether there was a place.
func (s Spare) take() bool {
	if s == nil {
		return true
	}
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s Spare) give() {
	if s != nil {
		<-s
	}
}

// scarce reports whether connections that nobody uses should make room for those that somebody needs.
func (s Spare) scarce() bool { return s != nil && len(s) > cap(s)/2 }

// OpenSQLite opens one file: a writing connection now, reading ones when they are needed. It reads back that the
// durability asked for is in force. A file that is missing is code "tenant_missing"; one that is no database, or that
// the key does not open, is "tenant_unreadable". On a disk that is full or read-only, a file that was closed in order
// opens and can be read; a write says what is wrong, until one finds that the disk takes it.
func OpenSQLite(ctx context.Context, o SQLiteOptions) (*DB, error) {
	const op = "sqlstore.OpenSQLite"
	if o.Readers <= 0 {
		o.Readers = 2
	}
	if o.BusyTimeout <= 0 {
		o.BusyTimeout = 5 * time.Second
	}
	if o.CacheKiB <= 0 {
		o.CacheKiB = cacheKiB
	}
	o.Synchronous = strings.ToUpper(o.Synchronous)
	if o.Synchronous == "" {
		o.Synchronous = "FULL"
	}
	if _, ok := syncLevels[o.Synchronous]; !ok {
		return nil, fault.BadInput(op, "synchronous", "is FULL, EXTRA or NORMAL")
	}
	if err := gone(ctx, nil); err != nil {
		return nil, err
	}
	e := &sqliteEngine{
		options: o,
		writer:  make(chan struct{}, 1),
		readers: make(chan struct{}, o.Readers),
		closing: make(chan struct{}),
	}
	c, err := openSQLiteConn(o, false)
	if err == nil {
		e.write = c
		return newDB(SQLite, e), nil
	}
	if full, readOnly := disk(o.Path); !full && !readOnly {
		return nil, fault.Wrap(op, err)
	}
	// A disk that takes nothing still gives what it has.
	still, serr := openStillConn(o)
	if serr != nil {
		return nil, fault.Wrap(op, err)
	}
	e.still, e.idle = true, []*sqliteConn{still}
	return newDB(SQLite, e), nil
}

// syncLevels are the values of PRAGMA synchronous that an operator may choose.
var syncLevels = map[string]string{"NORMAL": "1", "FULL": "2", "EXTRA": "3"}

// sqliteEngine is the writing connection and the readers of one file. The channels are the locks: who waits in one is
// served in order and can give up.
type sqliteEngine struct {
	options SQLiteOptions
	writer  chan struct{} // full while somebody writes
	write   *sqliteConn   // nil after a failure that needs a new connection
	readers chan struct{} // as full as readers are busy

	mu    sync.Mutex
	idle  []*sqliteConn // reading connections that nobody uses
	still bool          // the disk took nothing when this was opened: readers read the file alone, and nobody writes

	closeOnce sync.Once
	closing   chan struct{}
	closeErr  error
}

// sqliteConn is a connection with its prepared statements. It works on the driver's own connection: through
// database/sql a page of 50 rows took 1.3 to 3 times as long and three times the allocations, a small write 1.1 times
// (the benchmarks in speed_test.go, interleaved).
type sqliteConn struct {
	*sqlite3.Conn
	spare      bool // it holds a place in Spare
	path       string
	statements map[string]*sqlite3.Stmt
	// lent is set while a writing connection reads: statements that write are refused. PRAGMA query_only would refuse them
	// as well, but whenever it changes, SQLite prepares every statement of the connection once more.
	lent bool
}

func openSQLiteConn(o SQLiteOptions, reader bool) (_ *sqliteConn, err error) {
	const op = "sqlstore.OpenSQLite"
	flags := sqlite3.OPEN_READWRITE | sqlite3.OPEN_URI
	if o.Create && !reader {
		flags |= sqlite3.OPEN_CREATE
	} else if _, err := os.Stat(o.Path); errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.Unavailable, op, "tenant_missing", "the database file is missing")
	}
	c, err := unlock(o, sqliteURI(o.Path, o.Key != nil), flags)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = c.close()
		}
	}()
	conn := c.Conn
	// The busy timeout is first: the next statements already meet other connections.
	if err := conn.BusyTimeout(o.BusyTimeout); err != nil {
		return nil, c.said(op, err)
	}
	if !o.Create && !reader {
		// SQLite takes an empty file for a new database; here it is one that lost its content.
		if pages, err := c.pragma("page_count"); err != nil || pages == "0" {
			if f := c.said(op, err); f != nil && fault.CodeOf(f) != "internal" {
				return nil, f
			}
			return nil, unavailable(op, "tenant_unreadable", "the database cannot be read", err)
		}
	}
	secure := setting{"secure_delete", "FAST", "2"}
	if o.Key == nil {
		// What is deleted from a file that everybody can read is overwritten, free pages too.
		secure = setting{"secure_delete", "ON", "1"}
	}
	for _, p := range append([]setting{
		{"journal_mode", "WAL", "wal"},
		{"synchronous", o.Synchronous, syncLevels[o.Synchronous]},
		{"foreign_keys", "ON", "1"},
		secure,
		{"wal_autocheckpoint", strconv.Itoa(walPages), strconv.Itoa(walPages)},
		{"journal_size_limit", strconv.Itoa(walKeep), strconv.Itoa(walKeep)},
	}, readSettings(o)...) {
		if err := c.set(op, p); err != nil {
			return nil, err
		}
	}
	if reader {
		if err := conn.Exec("PRAGMA query_only=ON"); err != nil {
			return nil, c.said(op, err)
		}
	}
	// Registered per connection: the library's global list of extensions would be state of the whole process.
	if err := fts5.Register(conn); err != nil {
		return nil, c.said(op, err)
	}
	return c, nil
}

// unlock opens a connection and gives it the key.
func unlock(o SQLiteOptions, uri string, flags sqlite3.OpenFlag) (*sqliteConn, error) {
	const op = "sqlstore.OpenSQLite"
	conn, err := sqlite3.OpenFlags(uri, flags)
	if err != nil {
		return nil, sqliteFault(op, onDisk(err, o.Path), "", "")
	}
	c := &sqliteConn{Conn: conn, path: o.Path, statements: map[string]*sqlite3.Stmt{}}
	// Plans do not depend on what is bound: otherwise FTS5 prepares the statement with which it looks words up each time.
	if _, err := conn.Config(sqlite3.DBCONFIG_ENABLE_QPSG, true); err != nil {
		_ = c.close()
		return nil, sqliteFault(op, onDisk(err, o.Path), "", "")
	}
	if o.Key != nil {
		// By PRAGMA, not in the URI, where other code of the process could read it. The error is replaced, since the
		// driver's holds the statement.
		if conn.Exec(`PRAGMA hexkey='`+hex.EncodeToString(o.Key[:])+`'`) != nil {
			_ = c.close()
			return nil, unavailable(op, "tenant_unreadable", "the database does not take its key", nil)
		}
	}
	return c, nil
}

// setting is a PRAGMA, what it is set to, and what it then says.
type setting struct{ name, set, want string }

// readSettings are those of every connection.
func readSettings(o SQLiteOptions) []setting {
	return []setting{
		{"trusted_schema", "OFF", "0"},
		{"cell_size_check", "ON", "1"},
		{"temp_store", "MEMORY", "2"},
		{"cache_size", strconv.Itoa(-o.CacheKiB), strconv.Itoa(-o.CacheKiB)},
	}
}

// set sets it, and reads it back.
func (c *sqliteConn) set(op string, p setting) error {
	if err := c.Exec("PRAGMA " + p.name + "=" + p.set); err != nil {
		return c.said(op, err)
	}
	got, err := c.pragma(p.name)
	if err != nil {
		return c.said(op, err)
	}
	if got != p.want {
		return fault.New(fault.Internal, op, "setting_refused", "the database refuses the setting "+p.name)
	}
	return nil
}

// openStillConn opens a file that nobody may write to meanwhile: without a log, locks or shared memory, for which the
// disk would need to take something. A file whose log was not folded into it cannot be opened like that, since what
// is in the log would be missing.
func openStillConn(o SQLiteOptions) (_ *sqliteConn, err error) {
	const op = "sqlstore.OpenSQLite"
	log, err := os.Stat(o.Path + "-wal")
	if err == nil && log.Size() > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, unavailable(op, "storage_failed", "the storage does not work", nil)
	}
	u, err := url.Parse(sqliteURI(o.Path, o.Key != nil))
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	q := u.Query()
	q.Set("immutable", "1")
	u.RawQuery = q.Encode()
	c, err := unlock(o, u.String(), sqlite3.OPEN_READONLY|sqlite3.OPEN_URI)
	if err != nil {
		return nil, err
	}
	for _, p := range append(readSettings(o), setting{"query_only", "ON", "1"}) {
		if err := c.set(op, p); err != nil {
			_ = c.close()
			return nil, err
		}
	}
	if err := fts5.Register(c.Conn); err != nil {
		_ = c.close()
		return nil, c.said(op, err)
	}
	return c, nil
}

// sqliteURI names a file for SQLite, with the encrypting layer or without.
func sqliteURI(path string, encrypted bool) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	u := url.URL{Scheme: "file", Path: filepath.ToSlash(path)}
	if encrypted {
		u.RawQuery = "vfs=adiantum"
	}
	return u.String()
}

// pragma reads one setting.
func (c *sqliteConn) pragma(name string) (string, error) {
	s, _, err := c.Prepare("PRAGMA " + name)
	if err != nil {
		return "", err
	}
	defer func() { _ = s.Close() }() // repeats the error of the last step
	if !s.Step() {
		return "", s.Err()
	}
	return s.ColumnText(0), nil
}

func (c *sqliteConn) close() error {
	for _, s := range c.statements {
		_ = s.Close()
	}
	return c.Conn.Close()
}

// prepared returns the statement for a text, prepared once per connection.
func (c *sqliteConn) prepared(sql string) (*sqlite3.Stmt, error) {
	if s, ok := c.statements[sql]; ok {
		return s, nil
	}
	if len(c.statements) >= statementsMax {
		// Any one goes: a cache that is over its limit is fed by texts built for lists, of which none is worth more.
		for text, s := range c.statements {
			_ = s.Close()
			delete(c.statements, text)
			break
		}
	}
	s, tail, err := c.PrepareFlags(sql, sqlite3.PREPARE_PERSISTENT)
	if err != nil {
		return nil, sqliteFault("sqlstore", extended(err), "", err.Error()) // about our own text: no value is bound yet
	}
	if s == nil || strings.TrimSpace(tail) != "" {
		_ = s.Close()
		return nil, fault.New(fault.Internal, "sqlstore", "", "not exactly one statement")
	}
	c.statements[sql] = s
	return s, nil
}

// exec runs the statements of a batch in order.
func (c *sqliteConn) exec(b *Batch) error {
	for i := range b.list {
		if ask := b.list[i].when; ask != nil && !ask() {
			continue
		}
		if err := c.one(&b.list[i]); err != nil {
			return err
		}
	}
	return nil
}

func (c *sqliteConn) one(st *statement) (err error) {
	s, err := c.prepared(st.sql)
	if err != nil {
		return err
	}
	if c.lent && !s.ReadOnly() && !strings.HasPrefix(st.sql, "EXPLAIN ") {
		return fault.New(fault.Internal, "sqlstore", "", "a read would have written")
	}
	if n := s.BindCount(); n != len(st.args) {
		return fault.New(fault.Internal, "sqlstore", "", "a statement has "+strconv.Itoa(n)+" places for "+
			strconv.Itoa(len(st.args))+" arguments")
	}
	for i, a := range st.args {
		if err := bind(s, i+1, a); err != nil {
			return classify("sqlstore", err)
		}
	}
	defer func() {
		// Reset repeats the error of the last Step, which is reported already.
		_ = s.Reset()
		_ = s.ClearBindings()
	}()
	row := sqliteRow{s}
	for s.Step() {
		more, err := st.row(row)
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	if err := s.Err(); err != nil {
		return c.failure(err)
	}
	if st.count != nil && !s.ReadOnly() {
		st.count.N = c.Changes()
	}
	return nil
}

func bind(s *sqlite3.Stmt, i int, a any) error {
	switch v := a.(type) {
	case string:
		return s.BindText(i, v)
	case int64:
		return s.BindInt64(i, v)
	case float64:
		return s.BindFloat(i, v)
	case []byte:
		return s.BindBlob(i, v)
	}
	return s.BindNull(i)
}

// sqliteRow is the current row of a statement.
type sqliteRow struct{ *sqlite3.Stmt }

func (r sqliteRow) Scan(dest ...any) error {
	if n := r.ColumnCount(); n != len(dest) {
		return columns(n, len(dest))
	}
	for i, d := range dest {
		if err := (cell{stmt: r.Stmt, col: i}).scan(d); err != nil {
			return badColumn(i, err)
		}
	}
	return nil
}

// said classifies what the driver reported about this connection's file; faults pass as they are.
func (c *sqliteConn) said(op string, err error) error {
	if _, ok := errors.AsType[*fault.Error](err); ok || err == nil {
		return err
	}
	var code sqlite3.ExtendedErrorCode
	if !errors.As(err, &code) {
		return classify(op, err)
	}
	return sqliteFault(op, onDisk(err, c.path), "", "")
}

// failure classifies what a statement reported, and finds the name of what was violated.
func (c *sqliteConn) failure(err error) error {
	e, ok := errors.AsType[*sqlite3.Error](err)
	if !ok {
		return classify("sqlstore", err)
	}
	name := ""
	switch e.ExtendedCode() {
	case sqlite3.CONSTRAINT_UNIQUE, sqlite3.CONSTRAINT_PRIMARYKEY, sqlite3.CONSTRAINT_ROWID, sqlite3.CONSTRAINT_NOTNULL:
		name = c.violated(e)
	}
	return sqliteFault("sqlstore", onDisk(err, c.path), name, "")
}

// interrupted runs fn with the connection's interrupt set to ctx.
func (c *sqliteConn) interrupted(ctx context.Context, fn func() error) error {
	old := c.SetInterrupt(ctx)
	defer c.SetInterrupt(old)
	return fn()
}

// rollback ends a transaction whatever the context says. It reports false when the connection cannot be used again.
func (c *sqliteConn) rollback() bool {
	return c.interrupted(context.Background(), func() error {
		if c.GetAutocommit() {
			return nil // some errors roll back by themselves
		}
		return c.Exec("ROLLBACK")
	}) == nil
}

// take waits for a place in the channel.
func (e *sqliteEngine) take(ctx context.Context, places chan struct{}) error {
	select {
	case <-e.closing:
		return closed()
	default:
	}
	select {
	case places <- struct{}{}:
		return nil
	case <-e.closing:
		return closed()
	case <-ctx.Done():
		return gone(ctx, nil)
	}
}

func closed() error {
	return fault.New(fault.Unavailable, "sqlstore", "database_closed", "the database is closed").RetryAfter(time.Second)
}

func (e *sqliteEngine) read(ctx context.Context, b *Batch) (err error) {
	c, back, err := e.borrow(ctx)
	if err != nil {
		return err
	}
	done := false
	// Also when a callback panics. A connection that cannot leave its transaction is not used again.
	defer func() { back(c.rollback() && done) }()
	err = c.interrupted(ctx, func() error {
		if len(b.list) == 1 {
			return c.exec(b) // one statement is a snapshot by itself
		}
		if err := c.Exec("BEGIN"); err != nil {
			return c.said("sqlstore.Read", err)
		}
		return c.exec(b)
	})
	done = true
	return e.outcome(ctx, "sqlstore.Read", err)
}

// borrow finds a connection to read with; back returns it, fine or not. A reader that is open and idle comes first,
// then the writing connection if nobody writes: a tenant that is only looked at, or used by one person, needs a single
// connection, which is most of what opening it costs and of the memory that it holds.
func (e *sqliteEngine) borrow(ctx context.Context) (c *sqliteConn, back func(fine bool), err error) {
	e.mu.Lock()
	none := len(e.idle) == 0
	e.mu.Unlock()
	if none {
		if c, back := e.borrowWriter(); c != nil {
			return c, back, nil
		}
	}
	if err := e.take(ctx, e.readers); err != nil {
		return nil, nil, err
	}
	if c, err = e.reader(); err != nil {
		<-e.readers
		return nil, nil, err
	}
	if c == nil {
		<-e.readers
		if err := e.take(ctx, e.writer); err != nil {
			return nil, nil, err
		}
		if e.write == nil {
			if err := e.openWriter(ctx); err != nil {
				<-e.writer
				return nil, nil, err
			}
		}
		c, back = e.lend()
		return c, back, nil
	}
	return c, func(fine bool) {
		if fine && !e.options.Spare.scarce() {
			e.mu.Lock()
			e.idle = append(e.idle, c)
			e.mu.Unlock()
		} else {
			_ = e.closeReader(c)
		}
		<-e.readers
	}, nil
}

// borrowWriter takes the writing connection for a read, unless it is in use, gone or about to be closed.
func (e *sqliteEngine) borrowWriter() (c *sqliteConn, back func(fine bool)) {
	select {
	case <-e.closing:
		return nil, nil
	case e.writer <- struct{}{}:
	default:
		return nil, nil
	}
	if e.write == nil {
		<-e.writer
		return nil, nil
	}
	return e.lend()
}

// lend hands the writing connection to a reader. The caller is the writer, until back is called.
func (e *sqliteEngine) lend() (c *sqliteConn, back func(fine bool)) {
	c = e.write
	c.lent = true
	return c, func(fine bool) {
		c.lent = false
		if !fine {
			_ = c.close()
			e.write = nil
		}
		<-e.writer
	}
}

// sqliteView is a connection beside the readers, since it is kept for long.
type sqliteView struct {
	engine *sqliteEngine
	conn   *sqliteConn
}

func (e *sqliteEngine) view(ctx context.Context) (view, error) {
	select {
	case <-e.closing:
		return nil, closed()
	default:
	}
	c, err := openSQLiteConn(e.options, true)
	if err != nil {
		return nil, err
	}
	v := &sqliteView{engine: e, conn: c}
	if err := v.begin(ctx); err != nil {
		v.end()
		return nil, err
	}
	return v, nil
}

// begin begins the transaction and reads, with which the state is chosen.
func (v *sqliteView) begin(ctx context.Context) error {
	if err := v.conn.Exec("BEGIN"); err != nil {
		return v.conn.said("sqlstore", err)
	}
	var n int64
	b := &Batch{}
	b.One([]any{&n}, `SELECT count(*) FROM sqlite_schema`)
	return v.read(ctx, b)
}

func (v *sqliteView) read(ctx context.Context, b *Batch) error {
	err := v.conn.interrupted(ctx, func() error { return v.conn.exec(b) })
	return v.engine.outcome(ctx, "sqlstore.Snapshot", err)
}

func (v *sqliteView) end() {
	v.conn.rollback()
	_ = v.conn.close()
}

// outcome puts the context's end before what it made the engine report.
func (e *sqliteEngine) outcome(ctx context.Context, op string, err error) error {
	if err == nil {
		return nil
	}
	if fault.Is(err, fault.Canceled) || fault.CodeOf(err) == "busy" {
		if over := gone(ctx, err); over != nil {
			return over
		}
	}
	return at(op, err)
}

// reader takes an idle reading connection or opens one; nil without an error when there is no room for another. The caller
// holds a place in readers.
func (e *sqliteEngine) reader() (c *sqliteConn, err error) {
	e.mu.Lock()
	if n := len(e.idle); n > 0 {
		c := e.idle[n-1]
		e.idle = e.idle[:n-1]
		e.mu.Unlock()
		return c, nil
	}
	still := e.still
	e.mu.Unlock()
	// On a disk that takes nothing there is no writing connection to read with instead.
	if !e.options.Spare.take() {
		if !still {
			return nil, nil //nolint:nilnil // said above
		}
		return nil, unavailable("sqlstore.Read", "busy", "too many databases are read at the moment", nil)
	}
	if still {
		c, err = openStillConn(e.options)
	} else {
		c, err = openSQLiteConn(e.options, true)
	}
	if err != nil {
		e.options.Spare.give()
		return nil, err
	}
	c.spare = true
	return c, nil
}

func (e *sqliteEngine) closeReader(c *sqliteConn) error {
	if c.spare {
		defer e.options.Spare.give()
	}
	return c.close()
}

func (e *sqliteEngine) begin(ctx context.Context) (session, error) {
	if err := e.take(ctx, e.writer); err != nil {
		return nil, err
	}
	if e.write == nil {
		if err := e.openWriter(ctx); err != nil {
			<-e.writer
			return nil, err
		}
	}
	return &sqliteSession{engine: e, conn: e.write}, nil
}

// scrub folds the log into the file and empties it: it still has the pages as they were before they were overwritten.
func (e *sqliteEngine) scrub(ctx context.Context) error {
	const op = "sqlstore.Scrub"
	s, err := e.begin(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	defer s.end()
	b, left := &Batch{}, int64(1)
	var pages, folded int64
	b.One([]any{&left, &pages, &folded}, `PRAGMA wal_checkpoint(TRUNCATE)`)
	if err := e.write.exec(b); err != nil {
		return fault.Wrap(op, err)
	}
	if left != 0 {
		return unavailable(op, "busy", "somebody reads the database for long", nil)
	}
	return nil
}

// openWriter opens the writing connection. The caller is the writer. Who reads a still file must be done first, and
// such connections go: they would not see what is written.
func (e *sqliteEngine) openWriter(ctx context.Context) (err error) {
	if e.still { // only a writer changes it
		for taken := range cap(e.readers) {
			if err := e.take(ctx, e.readers); err != nil {
				for range taken {
					<-e.readers
				}
				return err
			}
		}
		defer func() {
			for range cap(e.readers) {
				<-e.readers
			}
		}()
	}
	if e.write, err = openSQLiteConn(e.options, false); err != nil {
		e.write = nil
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.still {
		for _, c := range e.idle {
			_ = e.closeReader(c)
		}
		e.idle, e.still = nil, false
	}
	return nil
}

// close waits for whoever holds a connection.
func (e *sqliteEngine) close() error {
	e.closeOnce.Do(func() {
		close(e.closing)
		e.writer <- struct{}{}
		for range cap(e.readers) {
			e.readers <- struct{}{}
		}
		var errs []error
		for _, c := range e.idle {
			errs = append(errs, e.closeReader(c))
		}
		if e.write != nil {
			errs = append(errs, e.write.close()) // the last one to close folds the log into the file
		}
		e.idle, e.write = nil, nil
		e.closeErr = classify("sqlstore.Close", errors.Join(errs...))
	})
	return e.closeErr
}

// sqliteSession is the writing connection in use.
type sqliteSession struct {
	engine *sqliteEngine
	conn   *sqliteConn
	begun  bool
}

func (s *sqliteSession) start() error {
	if s.begun {
		return nil
	}
	// Immediate: a transaction that reads first and then writes could not wait for its turn, it would fail.
	if err := s.conn.Exec("BEGIN IMMEDIATE"); err != nil {
		return s.conn.said("sqlstore", err)
	}
	s.begun = true
	return nil
}

func (s *sqliteSession) run(ctx context.Context, b *Batch, commit bool) error {
	err := s.conn.interrupted(ctx, func() error {
		if err := s.start(); err != nil {
			return err
		}
		return s.conn.exec(b)
	})
	if err == nil && commit {
		// Cancelling ends here: a COMMIT interrupted half-way would leave its outcome unknown.
		if err = gone(ctx, nil); err == nil {
			err = s.commit()
		}
	}
	return s.engine.outcome(ctx, "sqlstore.Write", err)
}

func (s *sqliteSession) commit() error {
	err := s.conn.interrupted(context.Background(), func() error { return s.conn.Exec("COMMIT") })
	if err == nil {
		return nil
	}
	code := onDisk(err, s.conn.path)
	if code.Code() != sqlite3.IOERR && code.Code() != sqlite3.FULL {
		return s.conn.failure(err)
	}
	cause := sqliteFault("sqlstore.Write", code, "", "")
	// All of it may have reached the log before what failed, and a crash now would find it there.
	unknown := unavailable("sqlstore.Write", "outcome_unknown", "the storage failed while it stored this", cause)
	if cause.Code == "storage_full" {
		return cause.With(unknown) // what to do about it is clearer; see fault.Unknown
	}
	return unknown
}

func (s *sqliteSession) script(ctx context.Context, sql string) error {
	return s.engine.outcome(ctx, "sqlstore.Migrate", s.conn.interrupted(ctx, func() error {
		if err := s.start(); err != nil {
			return err
		}
		if err := s.conn.Exec(sql); err != nil {
			// A script has no values: its message is about our SQL.
			return sqliteFault("sqlstore.Migrate", onDisk(err, s.conn.path), "", err.Error())
		}
		return nil
	}))
}

func (s *sqliteSession) end() {
	if !s.conn.rollback() {
		_ = s.conn.close()
		s.engine.write = nil
	}
	<-s.engine.writer
}
