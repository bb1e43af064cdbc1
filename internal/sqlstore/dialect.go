package sqlstore

import (
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// Dialect is the engine under a [DB]. It is the one place where a statement may ask which engine it runs on.
type Dialect uint8

// The engines.
const (
	SQLite Dialect = iota
	Postgres
)

// Name is "sqlite" or "postgres", as in the names of migration files.
func (d Dialect) Name() string { return d.Pick("sqlite", "postgres") }

// Pick chooses between two texts, for the statements that the shared subset hurts.
func (d Dialect) Pick(sqlite, postgres string) string {
	if d == Postgres {
		return postgres
	}
	return sqlite
}

// ForUpdate is the row lock clause, with a leading space; SQLite has one writer and needs none.
func (d Dialect) ForUpdate() string { return d.Pick("", " FOR UPDATE") }

// ValidText reports whether both engines can hold s as TEXT: it is UTF-8 and has no NUL. [Batch] refuses any other
// string as fault.Invalid (code "invalid_text") before the engines could differ.
func ValidText(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// texts remembers statements with their placeholders rewritten, so that each text is rewritten once.
type texts struct{ m sync.Map }

func (t *texts) dollar(sql string) string {
	if done, ok := t.m.Load(sql); ok {
		return done.(string)
	}
	done := dollar(sql)
	t.m.Store(sql, done)
	return done
}

// dollar rewrites ? to $1, $2 … and ?3 to $3, except inside quotes and comments.
func dollar(sql string) string {
	if strings.IndexByte(sql, '?') < 0 {
		return sql
	}
	var b strings.Builder
	b.Grow(len(sql) + 16)
	next := 1
	for i := 0; i < len(sql); i++ {
		end := i + 1
		switch c := sql[i]; {
		case c == '\'' || c == '"':
			end = after(sql, i+1, string(c))
		case strings.HasPrefix(sql[i:], "--"):
			end = after(sql, i, "\n")
		case strings.HasPrefix(sql[i:], "/*"):
			end = after(sql, i, "*/")
		case c == '?':
			for end < len(sql) && sql[end] >= '0' && sql[end] <= '9' {
				end++
			}
			b.WriteByte('$')
			if end > i+1 {
				b.WriteString(sql[i+1 : end])
			} else {
				b.WriteString(strconv.Itoa(next))
				next++
			}
			i = end - 1
			continue
		}
		b.WriteString(sql[i:end])
		i = end - 1
	}
	return b.String()
}

// after is the position behind the next mark at or after from, or the end of the text.
func after(sql string, from int, mark string) int {
	if i := strings.Index(sql[from:], mark); i >= 0 {
		return from + i + len(mark)
	}
	return len(sql)
}
