package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// sqlDoors are the methods that hand SQL to an engine, with the place of the SQL among their arguments. Our own are
// found by receiver; those of drivers by name alone, since drivers are not loaded here.
var sqlDoors = map[string]int{
	"Batch.Exec": 0, "Batch.Query": 1, "Batch.One": 1,
	"Exec": -1, "ExecContext": -1, "ExecParams": -1, "ExecPrepared": -1, "Prepare": -1, "PrepareContext": -1,
	"PrepareFlags": -1, "Query": -1, "QueryContext": -1, "QueryRow": -1, "QueryRowContext": -1, "Queue": -1,
}

// trusted are the functions of sqlstore whose SQL is not constant, each with the reason why no user's text can be in
// it. Inside them nothing is checked, and what they return counts as constant.
var trusted = map[string]string{
	"quoted":                 "makes an identifier of a name, for roles and schemas, which cannot travel as arguments",
	"texts.dollar":           "rewrites placeholders of a statement that is itself checked where it is queued",
	"load":                   "reads migrations, which are files inside the binary",
	"PostgresHost.makeLogin": "the operator's own database name, quoted, and a password verifier in base64",
	"PostgresHost.grant":     "the name of the server's own login, quoted",
}

// TestSQLIsConstant proves that no statement is built from values: every text that reaches an engine is put together
// from constants alone, however many functions, variables and fields it passes on the way. Values travel as arguments.
func TestSQLIsConstant(t *testing.T) {
	h, err := survey(os.DirFS(filepath.Join("..", "..")))
	if err != nil {
		t.Fatal(err)
	}
	files := h["internal/sqlstore"]
	if len(files) == 0 {
		t.Fatal("sqlstore is gone")
	}
	c := newSQLCheck(files, trusted)
	for _, complaint := range c.run() {
		t.Error(complaint)
	}
	if c.doors < 10 {
		t.Errorf("only %d places hand over SQL: this check no longer knows the doors", c.doors)
	}
}

func TestSQLIsConstantRefuses(t *testing.T) {
	const frame = `package sqlstore
		import ("fmt"; "strconv"; "strings")
		type Batch struct{ sql string }
		func (b *Batch) Exec(sql string, args ...any) {}
		func (b *Batch) Query(each func() error, sql string, args ...any) {}
		type statement struct{ sql string }
		func pick(one bool, a, b string) string { if one { return a }; return b }
		func where(place func(v any) string, v any) (sql string) { sql += " WHERE a = " + place(v); return sql }
		func place(v any) string { return "?" }
		func echo(v any) string { return fmt.Sprint(v) }
		func deep(b *Batch, q string) { deeper(b, q+" LIMIT 1") }
		func deeper(b *Batch, q string) { b.Exec(q) }
		const table = "projects"
		var _, _, _ = fmt.Sprint, strconv.Itoa, strings.Join
		func f(b *Batch, name string, n int, names []string) {
			%s
		}`
	for _, c := range []struct {
		body string
		ok   bool
	}{
		{"b.Exec(`SELECT 1`)", true},
		{"b.Exec(`SELECT * FROM `+table+` WHERE a = ?`, name)", true},
		{"q := `SELECT 1`; if n > 0 { q += ` LIMIT ?` }; b.Exec(q, n)", true},
		{"b.Exec(pick(n > 0, `SELECT 1`, `SELECT 2`))", true},
		{"deep(b, `SELECT 1`)", true},
		{"b.Exec(`IN (` + strings.Repeat(`?,`, n) + `?)`)", true},
		{"b.Exec(fmt.Sprintf(`SELECT %d`, n))", true},
		{"var w []string; w = append(w, `a = ?`); b.Exec(strings.Join(w, ` AND `), name)", true},
		{"var s strings.Builder; s.WriteString(`SELECT 1`); s.WriteString(strconv.Itoa(n)); b.Exec(s.String())", true},
		{"for _, q := range []string{`a`, `b`} { b.Exec(q) }", true},
		{"st := statement{sql: `SELECT 1`}; b.Exec(st.sql)", true},
		{"by := map[string]string{`title`: `title DESC`}[name]; b.Exec(`ORDER BY ` + by)", true},
		{"b.Query(func() error { return nil }, `SELECT ?`, name+`%%`)", true},
		{"for _, p := range []struct{ a, b string }{{`SET `, name}} { b.Exec(p.a, p.b) }", true},
		{"var w []string; and := func(c string, v any) { w = append(w, c) }; and(`a = ?`, name); b.Exec(strings.Join(w, ``))", true},
		{"in := func(n int) string { return `(` + strings.Repeat(`?,`, n) + `?)` }; b.Exec(`SELECT 1 WHERE a IN ` + in(n))", true},
		{"all := func(from string) string { return `SELECT * FROM ` + from }; b.Exec(all(table) + all(`events`))", true},
		{"b.Exec(where(func(v any) string { return `?` }, name), name)", true},
		{"b.Exec(where(place, name), name)", true},

		{"b.Exec(`SELECT * FROM t WHERE a = '` + name + `'`)", false},
		{"in := func(n int) string { return name }; b.Exec(`SELECT 1 WHERE a IN ` + in(n))", false},
		{"all := func(from string) string { return `SELECT * FROM ` + from }; b.Exec(all(table) + all(name))", false},
		{"b.Exec(where(func(v any) string { return name }, name), name)", false},
		{"b.Exec(where(echo, name), name)", false},
		{"var in func() string; b.Exec(in())", false},
		{"in := func() string { return `1` }; in = func() string { return name }; b.Exec(in())", false},
		{"b.Exec(fmt.Sprintf(`SELECT %s`, name))", false},
		{"b.Exec(fmt.Sprintf(`SELECT %v`, names))", false},
		{"q := `SELECT `; q += name; b.Exec(q)", false},
		{"b.Exec(pick(n > 0, `SELECT 1`, name))", false},
		{"deep(b, name)", false},
		{"b.Exec(strings.Join(names, `,`))", false},
		{"b.Exec(strings.ReplaceAll(`SELECT $`, `$`, name))", false},
		{"w := []string{`a`}; w = append(w, names...); b.Exec(strings.Join(w, ``))", false},
		{"var s strings.Builder; s.WriteString(name); b.Exec(s.String())", false},
		{"var s strings.Builder; fmt.Fprintf(&s, `%s`, name); b.Exec(s.String())", false},
		{"for _, q := range names { b.Exec(q) }", false},
		{"st := statement{sql: name}; b.Exec(st.sql)", false},
		{"st := statement{name}; b.Exec(st.sql)", false},
		{"var st statement; st.sql = name; b.Exec(st.sql)", false},
		{"by := map[string]string{`title`: name}[`title`]; b.Exec(`ORDER BY ` + by)", false},
		{"go func(q string) { b.Exec(q) }(name)", false},
		{"for _, p := range []struct{ a, b string }{{`SET `, name}} { b.Exec(p.a + p.b) }", false},
		{"var w []string; and := func(c string, v any) { w = append(w, c) }; and(name, 1); b.Exec(strings.Join(w, ``))", false},
		{"and := func(q string) { b.Exec(q) }; other := and; other(name)", false},
		{"exec := b.Exec; exec(name)", false},
		{"var conn interface{ QueryRow(ctx any, sql string, args ...any) }; conn.QueryRow(nil, `SELECT `+name)", false},
	} {
		t.Run(c.body, func(t *testing.T) {
			// The frame gets a caller, or f's own parameters would be nobody's promise.
			text := fmt.Sprintf(frame, c.body) + "\nfunc Door(b *Batch, name string, names []string) { f(b, name, 1, names); deep(b, `SELECT`) }"
			h := must(survey(files(map[string]string{"internal/sqlstore/a.go": text})))(t)
			got := newSQLCheck(h["internal/sqlstore"], nil).run()
			if ok := len(got) == 0; ok != c.ok {
				t.Errorf("complaints: %q", got)
			}
		})
	}
	t.Run("a trusted function that is gone", func(t *testing.T) {
		h := must(survey(files(map[string]string{"internal/sqlstore/a.go": "package sqlstore"})))(t)
		if got := newSQLCheck(h["internal/sqlstore"], map[string]string{"gone": "once"}).run(); len(got) != 1 {
			t.Errorf("complaints: %q", got)
		}
	})
}
