package sqlstore

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/ncruces/go-sqlite3"

	"claude-memory-backend/internal/fault"
)

// driverError is what an error of ours keeps of a driver's: its code and names from our own schema. Drivers' texts can
// quote what a user wrote (a value, a search query), so they are kept only where they speak about our SQL alone.
type driverError struct {
	engine string
	code   string
	name   string // the violated constraint or index
	detail string
	again  bool // nothing was committed, and the same may work if tried again: a deadlock, a connection that was broken
	said   bool // of a connection that was not made: the server was there, and said why
}

// abandoned is the code of a driverError when the caller left before the server could answer.
const abandoned = "abandoned"

func (e *driverError) Error() string {
	parts := []string{e.engine, e.code}
	for _, s := range []string{e.name, e.detail} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, " ")
}

// violates reports whether err is the violation of the named constraint or unique index, on either engine. In SQLite,
// where constraints written into CREATE TABLE have no names, they go by the names PostgreSQL gives: table_pkey for a
// primary key and table_column_key for a UNIQUE.
func violates(err error, name string) bool {
	d, ok := errors.AsType[*driverError](err)
	return ok && d.name == name
}

// sqlState is the SQLSTATE behind an error, or empty.
func sqlState(err error) string {
	if d, ok := errors.AsType[*driverError](err); ok && d.engine == "postgres" && len(d.code) == 5 {
		return d.code
	}
	return ""
}

// notNullOf is the name of the constraint that a column is not NULL, as PostgreSQL gives it from version 18 on.
func notNullOf(table, column string) string { return table + "_" + column + "_not_null" }

// constraintOf is the name of the violated constraint; versions before 18 do not name those that a column is not NULL.
func constraintOf(e *pgconn.PgError) string {
	if e.Code == "23502" && e.ConstraintName == "" {
		return notNullOf(e.TableName, e.ColumnName)
	}
	return e.ConstraintName
}

func retryable(err error) bool {
	d, ok := errors.AsType[*driverError](err)
	return ok && d.again
}

// gone is the fault for a context that is over, or nil.
func gone(ctx context.Context, cause error) error {
	err := ctx.Err()
	if err == nil {
		return nil
	}
	if cause == nil {
		cause = err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fault.New(fault.Unavailable, "sqlstore", "timeout", "the database took too long").With(cause)
	}
	return fault.New(fault.Canceled, "sqlstore", "canceled", "the request was cancelled").With(cause)
}

// classify turns a driver's error into a fault, by the driver's code. Faults pass as they are.
func classify(op string, err error) error {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f
	}
	var code sqlite3.ExtendedErrorCode
	if errors.As(err, &code) {
		return sqliteFault(op, code, "", "")
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return postgresFault(op, e)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fault.New(fault.Unavailable, op, "timeout", "the database took too long").With(err)
	case errors.Is(err, context.Canceled):
		return fault.New(fault.Canceled, op, "canceled", "the request was cancelled").With(err)
	}
	return fault.Wrap(op, err)
}

// at names the operation of a fault made below; what a callback of the caller's returned is wrapped.
func at(op string, err error) error {
	f, ok := err.(*fault.Error) //nolint:errorlint // a fault further in belongs to what wrapped it
	if ok && f.Op == "sqlstore" {
		c := *f
		c.Op = op
		return &c
	}
	return fault.Wrap(op, err)
}

func unavailable(op, code, message string, cause error) *fault.Error {
	return fault.New(fault.Unavailable, op, code, message).RetryAfter(time.Second).With(cause)
}

// movedState is the SQLSTATE that the fence of a PostgreSQL schema raises.
const movedState = "TM001"

func moved(op string, cause error) *fault.Error {
	return unavailable(op, "tenant_moved", "the data is being moved to another place", cause)
}

func duplicate(op string, cause error) *fault.Error {
	return fault.New(fault.Conflict, op, "duplicate", "there is one of these already").With(cause)
}

// extended is the code of a driver's error, which is an *Error, or a bare code such as INTERRUPT.
func extended(err error) sqlite3.ExtendedErrorCode {
	code := sqlite3.ExtendedErrorCode(sqlite3.ERROR)
	errors.As(err, &code)
	return code
}

// onDisk is extended for what happened to a file. When a write fails because there is no room, the driver says that it
// failed and not why; so who hears of a failure looks at the disk. It is FULL then, or READONLY, as SQLite says it
// elsewhere.
func onDisk(err error, path string) sqlite3.ExtendedErrorCode {
	code := extended(err)
	switch code.Code() {
	case sqlite3.IOERR, sqlite3.CANTOPEN:
		switch full, readOnly := disk(path); {
		case full:
			return sqlite3.ExtendedErrorCode(sqlite3.FULL)
		case readOnly:
			return sqlite3.ExtendedErrorCode(sqlite3.READONLY)
		}
	}
	return code
}

// disk looks why the file system of a file may take nothing: it has no room for a transaction, or it is read-only.
func disk(path string) (full, readOnly bool) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(path), &s); err != nil {
		return false, false
	}
	const flag = 1 // ST_RDONLY, and MNT_RDONLY elsewhere
	full = s.Bavail*uint64(s.Bsize) < walKeep ||
		s.Files > 0 && s.Ffree == 0 // some have no fixed number of files
	return full, s.Flags&flag != 0
}

// sqliteFault classifies an extended result code.
func sqliteFault(op string, code sqlite3.ExtendedErrorCode, name, detail string) *fault.Error {
	cause := &driverError{engine: "sqlite", code: strconv.Itoa(int(code)), name: name, detail: detail}
	switch code {
	case sqlite3.CONSTRAINT_UNIQUE, sqlite3.CONSTRAINT_PRIMARYKEY, sqlite3.CONSTRAINT_ROWID:
		return duplicate(op, cause)
	case sqlite3.CONSTRAINT_FOREIGNKEY:
		return fault.Missing(op).With(cause)
	case sqlite3.CONSTRAINT_TRIGGER: // only the fence's triggers refuse anything
		return moved(op, cause)
	}
	switch code.Code() {
	case sqlite3.BUSY, sqlite3.LOCKED:
		return unavailable(op, "busy", "the database is busy", cause)
	case sqlite3.FULL:
		return unavailable(op, "storage_full", "the storage is full", cause)
	case sqlite3.NOTADB, sqlite3.CORRUPT:
		return unavailable(op, "tenant_unreadable", "the database cannot be read", cause)
	case sqlite3.READONLY:
		return unavailable(op, "storage_failed", "the storage is read-only", cause)
	case sqlite3.IOERR, sqlite3.CANTOPEN, sqlite3.PROTOCOL, sqlite3.NOLFS:
		return unavailable(op, "storage_failed", "the storage does not work", cause)
	case sqlite3.TOOBIG:
		return fault.New(fault.TooLarge, op, "too_large", "that is too large to be stored").With(cause)
	case sqlite3.INTERRUPT:
		return fault.New(fault.Canceled, op, "canceled", "the request was cancelled").With(cause)
	case sqlite3.NOMEM:
		return unavailable(op, "busy", "the database is out of memory", cause)
	}
	return fault.New(fault.Internal, op, "", "something went wrong on the server").With(cause)
}

// postgresFault classifies an SQLSTATE.
func postgresFault(op string, e *pgconn.PgError) *fault.Error {
	cause := &driverError{engine: "postgres", code: e.Code, name: constraintOf(e)}
	class := ""
	if len(e.Code) == 5 {
		class = e.Code[:2]
	}
	// A message with a position in the statement, or about a role or schema, speaks about our own SQL.
	if class == "42" && e.Position > 0 || slices.Contains([]string{"42501", "42704", "3F000", "42710", "42P06"}, e.Code) {
		cause.detail = e.Message
	}
	switch e.Code {
	case "23505":
		return duplicate(op, cause)
	case "23503":
		return fault.Missing(op).With(cause)
	case movedState:
		return moved(op, cause)
	case "40001", "40P01":
		cause.again = true
		return unavailable(op, "busy", "the database is busy", cause)
	case "53100":
		return unavailable(op, "storage_full", "the storage is full", cause)
	case "57014":
		return unavailable(op, "timeout", "the database took too long", cause)
	case "22021", "22P05":
		return fault.New(fault.Invalid, op, "invalid_text", "text must be valid UTF-8 without NUL characters").With(cause)
	case "54000":
		return fault.New(fault.TooLarge, op, "too_large", "that is too large to be stored").With(cause)
	case "55P03", "25006", "25P03", "25P04":
		return unavailable(op, "busy", "the database is busy", cause)
	case "3D000":
		return unavailable(op, "unavailable", "the database does not exist", cause)
	}
	switch class {
	case "08", "53", "57", "58", "28":
		return unavailable(op, "unavailable", "the database is not available", cause)
	case "XX":
		if e.Code == "XX001" || e.Code == "XX002" {
			return unavailable(op, "tenant_unreadable", "the database cannot be read", cause)
		}
	}
	return fault.New(fault.Internal, op, "", "something went wrong on the server").With(cause)
}

// storing classifies what the operating system said about a file.
func storing(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return unavailable(op, "storage_full", "the storage is full", err)
	}
	return unavailable(op, "storage_failed", "the storage does not work", err)
}
