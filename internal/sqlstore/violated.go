package sqlstore

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ncruces/go-sqlite3"
)

// violated finds the name of the unique index, or of the column that may not be NULL, behind a violation. SQLite's code
// says that one was violated, only its text says which columns: "UNIQUE constraint failed: projects.owner, projects.name".
// The class of the error never depends on this.
func (c *sqliteConn) violated(e *sqlite3.Error) string {
	if _, place, ok := strings.Cut(e.Error(), "NOT NULL constraint failed: "); ok {
		table, column, _ := strings.Cut(place, ".")
		return notNullOf(table, column)
	}
	_, list, ok := strings.Cut(e.Error(), "UNIQUE constraint failed: ")
	if !ok {
		return ""
	}
	if name, ok := strings.CutPrefix(list, "index '"); ok { // an index on expressions is named
		return strings.TrimSuffix(name, "'")
	}
	table, cols := "", []string(nil)
	for _, place := range strings.Split(list, ", ") {
		t, col, _ := strings.Cut(place, ".")
		table, cols = t, append(cols, col)
	}
	if e.ExtendedCode() != sqlite3.CONSTRAINT_UNIQUE {
		return table + "_pkey"
	}
	slices.Sort(cols)
	name := table + "_" + strings.Join(cols, "_") + "_key"
	b := &Batch{}
	b.Query(func(s Scanner) error {
		var index, origin, columns string
		if err := s.Scan(&index, &origin, &columns); err != nil {
			return err
		}
		got := strings.Split(columns, ",")
		sorted := slices.Sorted(slices.Values(got))
		if !slices.Equal(sorted, cols) {
			return nil
		}
		switch origin {
		case "c":
			name = index
		case "pk":
			name = table + "_pkey"
		default:
			name = table + "_" + strings.Join(got, "_") + "_key"
		}
		return nil
	}, `SELECT l.name, l.origin, (SELECT group_concat(name, ',') FROM
		(SELECT name FROM pragma_index_info(l.name) ORDER BY seqno)) FROM pragma_index_list(?) l WHERE l."unique"`, table)
	_ = c.exec(b) // without it the generated name stays
	return name
}

// columns is the error for a Scan with a wrong number of destinations.
func columns(have, want int) error {
	return fmt.Errorf("the row has %d columns and Scan has %d destinations", have, want)
}

// badColumn says which column could not be scanned, without its value, which an error of strconv would quote.
func badColumn(i int, err error) error {
	return fmt.Errorf("column %d cannot be scanned (%T)", i+1, err)
}
