package sqlstore

import (
	"context"
	"errors"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/seal"
)

const (
	// connLifetime recycles connections: a backend keeps about 36 KB for every schema that it ever touched.
	connLifetime = 30 * time.Minute
	// cleanUp bounds what is sent after the caller's context may be over.
	cleanUp = 3 * time.Second
)

// NewPostgresPool connects to an address that the operator gave. Never hand it a user's: the parser behind it reads
// local files and falls back to other hosts. It refuses a server that acknowledges commits before they are on disk.
func NewPostgresPool(ctx context.Context, url seal.Secret, maxConns int) (*pgxpool.Pool, error) {
	config, err := poolConfig(url, maxConns)
	if err != nil {
		return nil, err
	}
	return openPool(ctx, config, nil)
}

// ConnectPostgres opens a database at an operator's address, behind a circuit breaker and a watch on the server's silence:
// while it cannot be reached, everything fails at once as Unavailable (code "database_unreachable"). end closes its
// connections; closing the database does not.
func ConnectPostgres(ctx context.Context, url seal.Secret, maxConns int, o PostgresOptions) (db *DB, end func(), err error) {
	config, err := poolConfig(url, maxConns)
	if err != nil {
		return nil, nil, err
	}
	l := newLink(config)
	pool, err := openPool(ctx, config, l)
	if err != nil {
		l.close()
		return nil, nil, err
	}
	return OpenPostgres(pool, o).guard(l), func() { l.close(); pool.Close() }, nil
}

// CheckURL says whether an operator's address could be used, without connecting (code "database_url_invalid").
func CheckURL(url seal.Secret) error {
	_, err := poolConfig(url, 0)
	return err
}

func poolConfig(url seal.Secret, maxConns int) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(url.Reveal())
	if err != nil {
		// Without its cause, which quotes the address.
		return nil, fault.New(fault.Invalid, "sqlstore.NewPostgresPool", "database_url_invalid",
			"the database address is not a PostgreSQL URL")
	}
	if maxConns > 0 {
		config.MaxConns = int32(min(maxConns, 10_000))
	}
	config.MaxConnLifetime = connLifetime
	config.MaxConnLifetimeJitter = connLifetime / 5
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // no prepared statements: poolers may be between
	config.ConnConfig.StatementCacheCapacity = 0
	config.ConnConfig.DescriptionCacheCapacity = 0
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = 10 * time.Second
	}
	return config, nil
}

// openPool connects, and tells the link, which may be nil, whether there is a pooler on the way.
func openPool(ctx context.Context, config *pgxpool.Config, l *link) (*pgxpool.Pool, error) {
	const op = "sqlstore.NewPostgresPool"
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, connecting(ctx, op, err)
	}
	pooled, err := assertDurable(ctx, pool)
	if err != nil {
		pool.Close()
		return nil, err
	}
	if l != nil && pooled {
		l.pooled.Store(true)
	}
	return pool, nil
}

// assertDurable reads back that an acknowledged commit is on the server's disk. Every value but off waits for it. pooled
// reports whether whoever let us in is another process than the one that answered: a pooler.
func assertDurable(ctx context.Context, pool *pgxpool.Pool) (pooled bool, err error) {
	const op = "sqlstore.NewPostgresPool"
	var commit string
	var process uint32
	b := &Batch{}
	b.One([]any{&commit, &process}, "SELECT current_setting('synchronous_commit'), pg_backend_pid()")
	s, err := (&postgresEngine{pool: pool, texts: &texts{}}).acquire(ctx)
	if err != nil {
		return false, fault.Wrap(op, err)
	}
	defer s.end()
	if err := s.send(ctx, beginSnapshot, b, true); err != nil {
		return false, fault.Wrap(op, err)
	}
	if commit == "off" {
		return false, fault.New(fault.Unavailable, op, "commits_not_durable",
			"the PostgreSQL server has synchronous_commit=off, which loses acknowledged writes")
	}
	return s.loan.pg().PID() != process, nil
}

// PostgresOptions says as whom and where statements run: both are set inside every transaction.
type PostgresOptions struct {
	Role   string // empty: the login itself
	Schema string // empty: the login's search path
}

// OpenPostgres makes a DB of a pool, which stays the caller's to close. Role and schema are lower-case identifiers.
func OpenPostgres(pool *pgxpool.Pool, o PostgresOptions) *DB {
	return openPostgres(pool, o, &texts{})
}

func openPostgres(pool *pgxpool.Pool, o PostgresOptions, t *texts) *DB {
	e := &postgresEngine{pool: pool, texts: t, schema: o.Schema}
	for _, p := range []struct{ name, set, tail string }{
		{o.Role, "SET LOCAL ROLE ", ""},
		// Temporary tables last: unnamed, they would be searched first, and could stand before one of ours.
		{o.Schema, "SET LOCAL search_path TO ", ", pg_temp"},
	} {
		switch {
		case p.name == "":
		case !identifier.MatchString(p.name):
			e.bad = fault.New(fault.Internal, "sqlstore.OpenPostgres", "", "not an identifier")
		default:
			e.preamble = append(e.preamble, p.set+quoted(p.name)+p.tail)
		}
	}
	return newDB(Postgres, e)
}

// identifier is what we name roles and schemas with.
var identifier = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

// quoted quotes a name. One that matches identifier has nothing to escape; of any other it makes a name all the same.
func quoted(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// postgresEngine runs batches on a pool, each in one round trip. It speaks the extended protocol without prepared
// statements through pgconn, so a transaction is one message sequence with BEGIN and the preamble at its head: a
// pooler in transaction mode can be between, and cannot hand the settings to another tenant.
type postgresEngine struct {
	pool     *pgxpool.Pool
	external *external // instead of a pool, where the server is a user's
	texts    *texts
	schema   string
	preamble []string
	patient  []string // the preamble for work that may be slow; empty: the same
	bad      error
}

const beginSnapshot = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

func (e *postgresEngine) close() error {
	if e.external != nil {
		e.external.close()
	}
	return nil
}

func (e *postgresEngine) read(ctx context.Context, b *Batch) error {
	s, err := e.acquire(ctx)
	if err != nil {
		return err
	}
	defer s.end()
	err = s.send(ctx, beginSnapshot, b, true)
	if err != nil && s.renew(ctx) {
		err = s.send(ctx, beginSnapshot, b, true)
	}
	return at("sqlstore.Read", err)
}

func (e *postgresEngine) begin(ctx context.Context) (session, error) {
	s, err := e.acquire(ctx)
	if err != nil {
		return nil, err // not s: an interface that holds a nil pointer is not nil
	}
	return s, nil
}

// postgresView is a connection of the pool in a transaction that stays open.
type postgresView struct{ *postgresSession }

func (e *postgresEngine) view(ctx context.Context) (view, error) {
	ctx = Patient(ctx) // whole databases are read through it
	s, err := e.acquire(ctx)
	if err != nil {
		return nil, err
	}
	v := postgresView{s}
	b := &Batch{}
	// It is idle while what was read is worked on. The first query chooses the state.
	b.Exec(`SET LOCAL idle_in_transaction_session_timeout = 0`)
	b.Query(func(Scanner) error { return nil }, `SELECT 1`)
	err = s.send(ctx, beginSnapshot, b, false)
	if err != nil && s.renew(ctx) {
		err = s.send(ctx, beginSnapshot, b, false)
	}
	if err != nil {
		s.end()
		return nil, err
	}
	return v, nil
}

func (v postgresView) read(ctx context.Context, b *Batch) error {
	return v.send(Patient(ctx), "", b, false)
}

func (e *postgresEngine) acquire(ctx context.Context) (*postgresSession, error) {
	if e.bad != nil {
		return nil, e.bad
	}
	if e.external != nil {
		loan, err := e.external.lend(ctx, false)
		if err != nil {
			return nil, err
		}
		return &postgresSession{engine: e, loan: loan}, nil
	}
	conn, err := e.pool.Acquire(ctx)
	if err != nil {
		return nil, connecting(ctx, "sqlstore", err)
	}
	return &postgresSession{engine: e, loan: pooled{conn}}, nil
}

// loan is a connection for the time of one transaction.
type loan interface {
	pg() *pgconn.PgConn
	// exchange begins to watch over one exchange of messages; what it returns ends that, and may replace the error by
	// a clearer one.
	exchange(ctx context.Context) (done func(error) error)
	// stale reports whether the connection had died before the exchange that has just failed, so that nothing can
	// have happened and another connection may do.
	stale() bool
	// keep is asked before a row is kept.
	keep(row [][]byte) error
	giveBack()
}

// pooled is a connection of a pool. The operator's server is trusted, so nothing is watched.
type pooled struct{ conn *pgxpool.Conn }

func (p pooled) pg() *pgconn.PgConn { return p.conn.Conn().PgConn() }
func (p pooled) exchange(context.Context) func(error) error {
	return func(err error) error { return err }
}
func (p pooled) stale() bool         { return false }
func (p pooled) keep([][]byte) error { return nil }
func (p pooled) giveBack()           { p.conn.Release() } // closes what is broken or in a transaction

// connecting classifies what happened before anything was sent. Unknown errors are the network's here, and their text
// may hold the address.
func connecting(ctx context.Context, op string, err error) error {
	if over := gone(ctx, nil); over != nil {
		return over
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return postgresFault(op, e)
	}
	return unavailable(op, "unavailable", "the database is not available", &driverError{engine: "postgres", code: "connect"})
}

// postgresSession is one connection during one transaction.
type postgresSession struct {
	engine    *postgresEngine
	loan      loan // nil when it was lost and no other was to be had
	begun     bool
	delivered bool // a row was handed over, or a count set
}

// renew replaces a connection that had died before it was used, when nothing of the exchange that failed has been
// handed over.
func (s *postgresSession) renew(ctx context.Context) bool {
	if s.delivered || ctx.Err() != nil || !s.loan.stale() {
		return false
	}
	s.loan.giveBack()
	loan, err := s.engine.external.lend(ctx, true)
	if err != nil {
		s.loan = nil
		return false
	}
	s.loan = loan
	return true
}

func (s *postgresSession) run(ctx context.Context, b *Batch, commit bool) error {
	begin, first := "", !s.begun
	if first {
		s.begun = true
		begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
	}
	err := s.send(ctx, begin, b, commit)
	if err != nil && first && !commit && s.renew(ctx) {
		err = s.send(ctx, begin, b, commit)
	}
	return at("sqlstore.Write", err)
}

// send puts the batch into one message sequence: what is missing of BEGIN and preamble, the statements, and COMMIT.
// After a failed statement the server skips the rest, COMMIT too.
func (s *postgresSession) send(ctx context.Context, begin string, b *Batch, commit bool) (err error) {
	done := s.loan.exchange(ctx)
	defer func() { err = done(err) }()
	if s.engine.external != nil {
		defer func() {
			if p := recover(); p != nil {
				err = s.engine.external.panicked(s.loan, p)
			}
		}()
	}
	batch, before := &pgconn.Batch{}, 0
	if begin != "" {
		batch.ExecParams(begin, nil, nil, nil, nil)
		preamble := s.engine.preamble
		if len(s.engine.patient) > 0 && isPatient(ctx) {
			preamble = s.engine.patient
		}
		for _, p := range preamble {
			batch.ExecParams(p, nil, nil, nil, nil)
		}
		before = 1 + len(preamble)
	}
	for i := range b.list {
		st := &b.list[i]
		values, oids, formats := parameters(st)
		batch.ExecParams(s.engine.texts.dollar(st.sql), values, oids, formats, nil)
	}
	total := before + len(b.list)
	if commit {
		batch.ExecParams("COMMIT", nil, nil, nil, nil)
		total++
	}
	conn := s.loan.pg()
	if conn.IsClosed() {
		return s.severed(connecting(ctx, "sqlstore", net.ErrClosed))
	}
	results := conn.ExecBatch(ctx, batch)
	var callback error // of the caller; the rest is still read, as the connection needs it
	n := 0
	for ; n < total && results.NextResult(); n++ {
		r := results.ResultReader()
		if i := n - before; i >= 0 && i < len(b.list) {
			row := postgresRow{r, s.loan}
			s.delivered = true
			for more := callback == nil; more && r.NextRow(); {
				more, callback = b.list[i].row(row)
				more = more && callback == nil
			}
		}
		tag, err := r.Close()
		if err != nil {
			break
		}
		if i := n - before; i >= 0 && i < len(b.list) && b.list[i].count != nil && !tag.Select() {
			b.list[i].count.N = tag.RowsAffected()
		}
		if commit && n == total-1 && tag.String() != "COMMIT" {
			callback = fault.New(fault.Internal, "sqlstore", "transaction_over", "the transaction was rolled back")
		}
	}
	if err := results.Close(); err != nil {
		err = s.failure(ctx, err, commit, n == total-1)
		if conn.IsClosed() && (n == 0 || s.begun) {
			err = s.severed(err)
		}
		return err
	}
	if callback == nil && n < total {
		// Ready, but without an answer to everything. No PostgreSQL does that, so it may have done anything.
		return s.failure(ctx, errStrange, commit, true)
	}
	return callback
}

// failure classifies the error of a sequence. Answers come in order, so an error message from the server at a
// statement before COMMIT means that COMMIT did not run; at COMMIT only an ERROR is a verdict, since a server that is
// told to stop may say so after it committed.
func (s *postgresSession) failure(ctx context.Context, err error, commit, atCommit bool) error {
	e, answered := errors.AsType[*pgconn.PgError](err)
	if answered && s.engine.external != nil {
		e = s.engine.external.censored(e)
	}
	over := gone(ctx, nil)
	switch {
	case answered && !(commit && atCommit && e.SeverityUnlocalized != "ERROR"):
		if over != nil && e.Code == "57014" {
			return over
		}
		return postgresFault("sqlstore", e)
	case pgconn.SafeToRetry(err) && !s.loan.pg().IsClosed():
		// Nothing was sent. Of a connection that broke while it waited for an answer pgconn says the same, wrongly.
		return connecting(ctx, "sqlstore", err)
	case commit && s.begun:
		how := "connection"
		if over != nil && !errors.Is(context.Cause(ctx), errSilent) {
			how = abandoned
		}
		return unavailable("sqlstore", "outcome_unknown", "the database did not answer whether it stored this",
			&driverError{engine: "postgres", code: how})
	case over != nil:
		return over
	}
	return unavailable("sqlstore", "unavailable", "the database is not available",
		&driverError{engine: "postgres", code: "connection"})
}

// severed marks the failure of a connection that broke before anything it was given could be committed, and before a
// row was handed over: the same may work on another connection. A transaction that was asked to commit is not that.
// Users' servers get one more try, of another kind: see renew.
func (s *postgresSession) severed(err error) error {
	if d, ok := errors.AsType[*driverError](err); ok && s.engine.external == nil && fault.CodeOf(err) == "unavailable" {
		d.again = true
	}
	return err
}

func (s *postgresSession) script(ctx context.Context, sql string) error {
	if !s.begun {
		if err := s.run(ctx, &Batch{}, false); err != nil {
			return err
		}
	}
	done := s.loan.exchange(ctx)
	results := s.loan.pg().Exec(ctx, sql)
	for results.NextResult() {
		_, _ = results.ResultReader().Close() // nothing of it is wanted, nor kept; Close has the first error
	}
	if err := results.Close(); err != nil {
		f := s.failure(ctx, err, false, false)
		if e, ok := errors.AsType[*pgconn.PgError](err); ok && s.engine.external == nil {
			if d, ok := errors.AsType[*driverError](f); ok {
				d.detail = e.Message // a script has no values: its message is about our SQL
			}
		}
		return at("sqlstore.Migrate", done(f))
	}
	return done(nil)
}

// end gives the connection back outside any transaction, or closes it.
func (s *postgresSession) end() {
	if s.loan == nil {
		return
	}
	defer s.loan.giveBack()
	c := s.loan.pg()
	if c.IsClosed() || c.TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanUp)
	defer cancel()
	done := s.loan.exchange(ctx)
	_, err := c.Exec(ctx, "ROLLBACK").ReadAll()
	_ = done(err)
}

// parameters encodes the arguments of a statement: numbers and text in the text format, bytes as they are.
func parameters(st *statement) (values [][]byte, oids []uint32, formats []int16) {
	if len(st.args) == 0 {
		return nil, nil, nil
	}
	values, formats = make([][]byte, len(st.args)), make([]int16, len(st.args))
	for i, a := range st.args {
		switch v := a.(type) {
		case string:
			values[i] = []byte(v)
		case int64:
			values[i] = strconv.AppendInt(nil, v, 10)
		case float64:
			values[i] = strconv.AppendFloat(nil, v, 'g', -1, 64)
		case []byte:
			values[i], formats[i] = v, 1
		}
	}
	return values, st.oids, formats
}

// postgresRow is the current row of a result.
type postgresRow struct {
	*pgconn.ResultReader
	loan loan
}

func (r postgresRow) Scan(dest ...any) error {
	values, fields := r.Values(), r.FieldDescriptions()
	if len(values) != len(dest) || len(fields) != len(dest) {
		return columns(min(len(values), len(fields)), len(dest))
	}
	if err := r.loan.keep(values); err != nil {
		return err
	}
	for i, d := range dest {
		if err := (cell{raw: values[i], oid: fields[i].DataTypeOID}).scan(d); err != nil {
			return badColumn(i, err)
		}
	}
	return nil
}
