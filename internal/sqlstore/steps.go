package sqlstore

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"claude-memory-backend/internal/fault"
)

// Steps are the two histories of schemas that a program knows, each for both engines. They never change.
type Steps struct {
	lists map[Line]map[Dialect][]step
}

// Released are the steps inside this binary.
func Released() (*Steps, error) { return LoadSteps(embedded) }

// ReleasedFiles are the files behind [Released], for tests that add to them.
func ReleasedFiles() fs.FS { return embedded }

// LoadSteps reads steps from files that are called like ours: migrations/LINE/0001_name.ENGINE.sql. Both engines must
// have the same.
func LoadSteps(fsys fs.FS) (*Steps, error) {
	s := &Steps{lists: make(map[Line]map[Dialect][]step)}
	for _, line := range []Line{Master, Tenant} {
		s.lists[line] = make(map[Dialect][]step)
		for _, d := range []Dialect{SQLite, Postgres} {
			list, err := load(fsys, line, d)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			s.lists[line][d] = list
		}
		if !slices.Equal(names(s.lists[line][SQLite]), names(s.lists[line][Postgres])) {
			return nil, fault.New(fault.Internal, "sqlstore.LoadSteps", "", "the engines have different migrations in the line "+line.String())
		}
	}
	return s, nil
}

func names(steps []step) (list []string) {
	for _, s := range steps {
		list = append(list, s.name)
	}
	return list
}

// UpTo are the same steps, as they were when a line had so many.
func (s *Steps) UpTo(line Line, version int64) *Steps {
	c := &Steps{lists: make(map[Line]map[Dialect][]step)}
	for l, engines := range s.lists {
		c.lists[l] = make(map[Dialect][]step)
		for d, list := range engines {
			if l == line {
				list = list[:min(version, int64(len(list)))]
			}
			c.lists[l][d] = list
		}
	}
	return c
}

// Newest is the number of the last step of a line.
func (s *Steps) Newest(line Line) int64 { return int64(len(s.lists[line][SQLite])) }

// Standing is how far a database has come.
type Standing struct {
	Version int64    // the number of the last step that it has had; 0 for one without tables
	Pending []string // the steps that it has not had, in order
}

// Look compares a database with the steps, and only reads. The errors of [Migrate] that tell of its state come with
// the version that it says it has.
func (s *Steps) Look(ctx context.Context, d *DB, line Line) (Standing, error) {
	at, err := stand(ctx, d, s.lists[line][d.Dialect()])
	return at, fault.Wrap("sqlstore.Look", err)
}

// Migrate is [Migrate] with these steps.
func (s *Steps) Migrate(ctx context.Context, d *DB, line Line) (MigrateReport, error) {
	return migrateBy(ctx, d, s.lists[line][d.Dialect()])
}
