package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"claude-memory-backend/internal/sqlstore"
)

// installed refuses to go on where there is no installation yet: a command that looks at one, or keeps it, must not make
// an empty one because its settings are wrong.
func installed(ctx context.Context, s *settings) (err error) {
	url := s.secret("MASTER_DATABASE_URL")
	if url == "" {
		if _, err := os.Stat(s.storage("master.db")); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("there is no installation in STORAGE_PATH (%s): memoryd serve makes one", s.text("STORAGE_PATH"))
		}
		return nil // whatever else is wrong is said when it is opened
	}
	in := &install{}
	defer func() { err = errors.Join(err, in.close()) }()
	if err := in.openMaster(ctx, s, url); err != nil {
		return notOpened("the master database (MASTER_DATABASE_URL)", err)
	}
	in.onClose(in.master.Close)
	v, err := sqlstore.SchemaVersion(ctx, in.master)
	if err == nil && v == 0 {
		err = errors.New("there is no installation in the database of MASTER_DATABASE_URL: memoryd serve makes one")
	}
	return err
}
