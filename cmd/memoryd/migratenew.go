package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"claude-memory-backend/internal/sqlstore"
)

type migrateNewCmd struct {
	Name   string `arg:"" help:"What the step brings: lower-case words with underscores."`
	Master bool   `help:"A step of the master database instead of tenants'."`
	Dir    string `help:"The folder that holds the folder migrations." default:"internal/sqlstore"`
}

// stepWords is a step's name without its number.
var stepWords = regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// Run writes the files, for whoever develops. They say what they are for and do nothing yet.
func (c migrateNewCmd) Run(p *program) error {
	if !stepWords.MatchString(c.Name) || len(c.Name) > 60 {
		return usageError{errors.New("a name is at most 60 lower-case letters, digits and single underscores, as in 0002_usage: usage")}
	}
	line := sqlstore.Tenant
	if c.Master {
		line = sqlstore.Master
	}
	if folder := filepath.Join(c.Dir, "migrations", line.String()); !isFolder(folder) {
		return usageError{fmt.Errorf("there is no folder %s: run this in a checkout, or name one with --dir", folder)}
	}
	paths, err := sqlstore.NewStep(c.Dir, line, c.Name)
	if err != nil {
		return err
	}
	for _, path := range paths {
		fmt.Fprintln(p.stdout, "wrote "+path)
	}
	fmt.Fprint(p.stdout, `Next:
  write the same change into both, in the engine's own SQL; each file is one transaction
  only add: a new column has a default, nothing is dropped or renamed (docs/CONTRIBUTING.md, "Steps of the schema")
  explain what is new in internal/sqlstore/comments.go, and list new tables where 0002_usage did
  go test ./internal/sqlstore/ compares the engines, and tries the step on databases that are full
`)
	return nil
}
