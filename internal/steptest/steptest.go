// Package steptest makes histories of schemas that have more steps than the released one, for tests and experiments with
// migrations. It is never part of the binary.
package steptest

import (
	"fmt"
	"io/fs"
	"testing/fstest"

	"claude-memory-backend/internal/sqlstore"
)

// Next are the released steps and more of the tenants' line: each a statement or several, the same on both engines.
func Next(more ...string) (*sqlstore.Steps, error) {
	released, err := sqlstore.Released()
	if err != nil {
		return nil, err
	}
	tree := fstest.MapFS{}
	err = fs.WalkDir(sqlstore.ReleasedFiles(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(sqlstore.ReleasedFiles(), name)
		tree[name] = &fstest.MapFile{Data: text}
		return err
	})
	if err != nil {
		return nil, err
	}
	for i, sql := range more {
		for _, engine := range engines {
			tree[stepFile(released, i, engine)] = &fstest.MapFile{Data: []byte(sql)}
		}
	}
	return sqlstore.LoadSteps(tree)
}

var engines = []string{"sqlite", "postgres"}

// stepFile is the file of the i-th step after the released ones.
func stepFile(released *sqlstore.Steps, i int, engine string) string {
	return fmt.Sprintf("migrations/tenant/%04d_next.%s.sql", released.Newest(sqlstore.Tenant)+int64(i)+1, engine)
}
