package sqlstore

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
)

// Without room for another connection a file is read with the one that it has, in turns with what is written; with room it
// is not, and the places come back.
func TestSpareConnections(t *testing.T) {
	for _, places := range []int{0, 1, 3} {
		t.Run(fmt.Sprint(places), func(t *testing.T) {
			spare := NewSpare(places)
			var files []*DB
			for i := range 5 {
				db, err := OpenSQLite(t.Context(), SQLiteOptions{Path: filepath.Join(t.TempDir(), fmt.Sprint(i)), Create: true, Spare: spare})
				if err != nil {
					t.Fatal(err)
				}
				files = append(files, db)
				write(t, db, `CREATE TABLE t (n BIGINT NOT NULL)`)
			}
			var all sync.WaitGroup
			for _, db := range files {
				for range 4 {
					all.Go(func() {
						for range 25 {
							if err := db.Write(t.Context(), func(tx *Tx) error {
								return tx.Commit(func(b *Batch) { b.Exec(`INSERT INTO t (n) VALUES (1)`) })
							}); err != nil {
								t.Error(err)
								return
							}
							var n int64
							if err := db.Read(t.Context(), func(b *Batch) { b.One([]any{&n}, `SELECT count(*) FROM t`) }); err != nil || n == 0 {
								t.Error(n, err)
								return
							}
						}
					})
				}
			}
			all.Wait()
			for _, db := range files {
				var n int64
				if err := db.Read(t.Context(), func(b *Batch) { b.One([]any{&n}, `SELECT count(*) FROM t`) }); err != nil || n != 100 {
					t.Error(n, err)
				}
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			}
			if len(spare) != 0 {
				t.Errorf("%d places did not come back", len(spare))
			}
		})
	}
}

func TestAReaderWithoutSpareWaitsForTheWriter(t *testing.T) {
	for places, waits := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			db, err := OpenSQLite(t.Context(), SQLiteOptions{Path: filepath.Join(t.TempDir(), "f"), Create: true, Spare: NewSpare(places)})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = db.Close() }()
			write(t, db, `CREATE TABLE t (n BIGINT NOT NULL)`)
			read := make(chan error, 1)
			err = db.Write(t.Context(), func(tx *Tx) error {
				if err := tx.Run(func(b *Batch) { b.Exec(`INSERT INTO t (n) VALUES (1)`) }); err != nil {
					return err
				}
				// Who gives up is not kept.
				short, cancel := context.WithCancel(t.Context())
				gaveUp := make(chan error, 1)
				go func() { gaveUp <- look(short, db) }()
				synctest.Wait()
				cancel()
				if err := <-gaveUp; waits != (err != nil) {
					t.Errorf("%d places: gave up with %v", places, err)
				}
				go func() { read <- look(t.Context(), db) }()
				synctest.Wait()
				if done := len(read) == 1; done == waits {
					t.Errorf("%d places: it waited: %v", places, !done)
				}
				return tx.Commit(nil)
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := <-read; err != nil {
				t.Error(err)
			}
		})
	}
}

// A writing connection that cannot be lent is replaced, by readers too.
func TestABrokenWriterIsReplaced(t *testing.T) {
	db, err := OpenSQLite(t.Context(), SQLiteOptions{Path: filepath.Join(t.TempDir(), "f"), Create: true, Spare: NewSpare(0)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	write(t, db, `CREATE TABLE t (n BIGINT NOT NULL)`)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	db.on.Load().engine.(*sqliteEngine).write.SetInterrupt(over) // nothing runs on it any more
	for range 2 {
		if err := look(t.Context(), db); err != nil {
			t.Error(err)
		}
	}
	write(t, db, `INSERT INTO t (n) VALUES (1)`)
}
