package sqlstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"claude-memory-backend/internal/fault"
)

// NewStep writes the pair of files of a line's next step below dir/migrations and returns their paths. They hold a
// comment and nothing else. A name that the line has already is Conflict, code "step_taken"; what a binary would refuse
// of the files that are there is an error before anything is written.
func NewStep(dir string, line Line, name string) ([]string, error) {
	const op = "sqlstore.NewStep"
	steps, err := LoadSteps(os.DirFS(dir))
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	for _, old := range names(steps.lists[line][SQLite]) {
		if _, taken, _ := strings.Cut(old, "_"); taken == name {
			return nil, fault.New(fault.Conflict, op, "step_taken", "there is a step of that name already: "+old)
		}
	}
	var paths []string
	for _, d := range []Dialect{SQLite, Postgres} {
		path := filepath.Join(dir, "migrations", line.String(), fmt.Sprintf("%04d_%s.%s.sql", steps.Newest(line)+1, name, d.Name()))
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644) //nolint:gosec // source, which whoever builds reads
		if err == nil {
			_, err = f.WriteString("-- What this step brings, and why.\n")
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			return paths, fault.Wrap(op, err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}
