package sqlstore

import (
	"cmp"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"hash/fnv"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"time"

	"claude-memory-backend/internal/fault"
)

// Line is one of the two histories of schemas.
type Line uint8

// The lines.
const (
	Master Line = iota
	Tenant
)

// String is the line's folder under migrations.
func (l Line) String() string {
	if l == Tenant {
		return "tenant"
	}
	return "master"
}

//go:embed migrations
var embedded embed.FS

// MigrateReport says what a migration did.
type MigrateReport struct {
	From, To int64
	Applied  []string // "0001_first"
	Failed   string   // the step that failed, if one did: it left nothing
}

// Migrate brings a database to the newest schema of its line. Each step is one transaction under a lock of that
// database, so several processes may try at once; an empty database gets all steps in one. When nothing is to be done it
// only reads. Code "schema_newer" means that a newer binary was here, "schema_damaged" that the recorded history is not
// ours, and "migration_failed" that a step does not go with what the database holds.
func Migrate(ctx context.Context, d *DB, line Line) (MigrateReport, error) {
	return migrate(ctx, d, embedded, line)
}

// SchemaVersion is the number of the last step that the database has had; 0 for one without tables.
func SchemaVersion(ctx context.Context, d *DB) (int64, error) {
	applied, err := history(ctx, d)
	if err != nil {
		return 0, fault.Wrap("sqlstore.SchemaVersion", err)
	}
	return int64(len(applied)), contiguous(applied)
}

// step is one migration for one engine.
type step struct {
	version  int64
	name     string // with its number: 0001_first
	sql      string
	checksum string
}

// done is a row of schema_migrations.
type done struct {
	version        int64
	name, checksum string
}

const historyTable = `CREATE TABLE IF NOT EXISTS schema_migrations (
	version BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied_at BIGINT NOT NULL)`

var stepName = regexp.MustCompile(`^((\d{4})_[a-z0-9_]+)\.(sqlite|postgres)\.sql$`)

func migrate(ctx context.Context, d *DB, fsys fs.FS, line Line) (MigrateReport, error) {
	steps, err := load(fsys, line, d.Dialect())
	if err != nil {
		return MigrateReport{}, err
	}
	return migrateBy(ctx, d, steps)
}

// migrateBy applies what a database has not had of the steps.
func migrateBy(ctx context.Context, d *DB, steps []step) (MigrateReport, error) {
	const op = "sqlstore.Migrate"
	at, err := stand(ctx, d, steps)
	report := MigrateReport{From: at.Version, To: at.Version}
	if err != nil {
		return report, fault.Wrap(op, err)
	}
	together := 1
	if at.Version == 0 { // nobody finds a new database half made
		together = max(1, len(steps))
	}
	for batch := range slices.Chunk(steps[at.Version:], together) {
		var applied []string
		if err := d.write(Patient(ctx), func(tx *Tx) error {
			applied = nil
			if err := tx.lock(); err != nil {
				return err
			}
			for _, s := range batch {
				ran, err := tx.apply(steps, s)
				if err != nil {
					report.Failed = s.name
					return err
				}
				if ran {
					applied = append(applied, s.name)
				}
			}
			return nil
		}); err != nil {
			report.Failed = cmp.Or(report.Failed, batch[0].name)
			return report, fault.Wrap(op, err)
		}
		report.Applied = append(report.Applied, applied...)
		report.To = batch[len(batch)-1].version
	}
	return report, nil
}

// stand compares a database with the steps.
func stand(ctx context.Context, d *DB, steps []step) (Standing, error) {
	applied, err := history(ctx, d)
	if err != nil {
		return Standing{}, err
	}
	at := Standing{Version: int64(len(applied))}
	if err := compare(steps, applied); err != nil {
		return at, err
	}
	for _, s := range steps[len(applied):] {
		at.Pending = append(at.Pending, s.name)
	}
	return at, nil
}

// load reads the steps of a line for one engine, in order and without a gap.
func load(fsys fs.FS, line Line, dialect Dialect) ([]step, error) {
	const op = "sqlstore.Migrate"
	dir := "migrations/" + line.String()
	entries, err := fs.ReadDir(fsys, dir)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	var steps []step
	for _, entry := range entries { // sorted by name, hence by number
		m := stepName.FindStringSubmatch(entry.Name())
		if m == nil {
			return nil, fault.New(fault.Internal, op, "", "a migration file has a wrong name: "+entry.Name())
		}
		if m[3] != dialect.Name() {
			continue
		}
		text, err := fs.ReadFile(fsys, dir+"/"+entry.Name())
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		version, _ := strconv.ParseInt(m[2], 10, 64)
		if version != int64(len(steps)+1) {
			return nil, fault.New(fault.Internal, op, "", "a migration is missing before "+entry.Name())
		}
		sum := sha256.Sum256(text)
		steps = append(steps, step{version: version, name: m[1], sql: string(text), checksum: hex.EncodeToString(sum[:])})
	}
	return steps, nil
}

// history reads which steps the database has had. It asks whether the table exists only when there seems to be none:
// every database but a new one has it.
func history(ctx context.Context, d *DB) ([]done, error) {
	var applied []done
	err := d.Read(ctx, func(b *Batch) { readHistory(b, &applied) })
	if !fault.Is(err, fault.Internal) && sqlState(err) != "42P01" {
		return applied, err
	}
	var exists bool
	if again := d.Read(ctx, func(b *Batch) { b.One([]any{&exists}, historyExists(b.Dialect())) }); again != nil {
		return nil, again
	}
	if !exists {
		return nil, nil
	}
	// There is a table: either another process has just made it, or the second try shows what is wrong with it.
	err = d.Read(ctx, func(b *Batch) { readHistory(b, &applied) })
	return applied, err
}

func historyExists(d Dialect) string {
	return d.Pick(`SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'schema_migrations'`,
		`SELECT to_regclass('schema_migrations') IS NOT NULL`)
}

func readHistory(b *Batch, applied *[]done) {
	*applied = nil
	b.Query(func(s Scanner) error {
		var r done
		err := s.Scan(&r.version, &r.name, &r.checksum)
		*applied = append(*applied, r)
		return err
	}, `SELECT version, name, checksum FROM schema_migrations ORDER BY version`)
}

func contiguous(applied []done) error {
	for i, a := range applied {
		if a.version != int64(i+1) {
			return damaged("a step is missing from its history")
		}
	}
	return nil
}

// compare reports how the recorded history differs from ours.
func compare(steps []step, applied []done) error {
	if err := contiguous(applied); err != nil {
		return err
	}
	for i, a := range applied {
		if i < len(steps) && (a.name != steps[i].name || a.checksum != steps[i].checksum) {
			return damaged("it was made by other steps than ours")
		}
	}
	if len(applied) > len(steps) {
		return fault.New(fault.Unavailable, "sqlstore.Migrate", "schema_newer",
			"the database was written by a newer version of this program")
	}
	return nil
}

func damaged(why string) error {
	return fault.New(fault.Unavailable, "sqlstore.Migrate", "schema_damaged", "the schema of the database is damaged: "+why)
}

// lock makes the transaction the only one that migrates this database, and makes sure that it has a history. SQLite's
// write transaction is that lock already.
func (t *Tx) lock() error {
	if e, ok := under[*postgresEngine](t.on.engine); ok {
		var exists bool
		usable := true
		if err := t.Run(func(b *Batch) {
			b.Query(func(Scanner) error { return nil }, `SELECT pg_advisory_xact_lock(?)`, lockKey(e.schema))
			b.One([]any{&exists}, `SELECT ? = '' OR to_regnamespace(?) IS NOT NULL`, e.schema, quoted(e.schema))
			b.One([]any{&usable}, schemaUsable, e.schema)
		}); err != nil {
			return err
		}
		if !usable {
			return fault.New(fault.Unavailable, "sqlstore.Migrate", "database_forbidden", "the user may not use or fill the schema")
		}
		if !exists { // asked first, because IF NOT EXISTS needs the right to create even when there is nothing to do
			if err := t.script("CREATE SCHEMA " + quoted(e.schema)); err != nil {
				return err
			}
		}
	}
	return t.script(historyTable)
}

// lockKey is the number of the advisory lock for what is done to one schema.
func lockKey(schema string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte("memoryd migrations " + schema))
	return int64(h.Sum64())
}

// apply runs one step unless somebody else did while this one waited for the lock.
func (t *Tx) apply(steps []step, s step) (ran bool, err error) {
	var applied []done
	if err := t.Run(func(b *Batch) { readHistory(b, &applied) }); err != nil {
		return false, err
	}
	if err := compare(steps, applied); err != nil {
		return false, err
	}
	if int64(len(applied)) >= s.version {
		return false, nil
	}
	if err := t.script(s.sql); err != nil {
		return false, misfit(s, err)
	}
	return true, t.Run(func(b *Batch) {
		b.Exec(`INSERT INTO schema_migrations (version, name, checksum, applied_at) VALUES (?, ?, ?, ?)`,
			s.version, s.name, s.checksum, time.Now().UnixMicro())
	})
}

// misfit says of a step that the database refused that it does not go with what is there; what went wrong around it
// (a connection, a full disk) stays what it is.
func misfit(s step, err error) error {
	if fault.Is(err, fault.Unavailable) || fault.Is(err, fault.Canceled) {
		return err
	}
	return fault.New(fault.Internal, "sqlstore.Migrate", "migration_failed",
		"the step "+s.name+" does not go with what the database holds").With(err)
}
