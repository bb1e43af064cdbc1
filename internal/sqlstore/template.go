package sqlstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"

	"lukechampine.com/adiantum"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/seal"
)

// blockSize is what the encrypting file layer encrypts at a time; its tweak is the block's place in the file.
const blockSize = 4096

// Template is the plain image of an empty, fully migrated database, from which new files are made without running
// the migrations again. It is safe for concurrent use.
type Template struct{ image []byte }

// BuildTemplate is [Steps.Template] of the released steps.
func BuildTemplate(ctx context.Context, line Line) (*Template, error) {
	s, err := Released()
	if err != nil {
		return nil, err
	}
	return s.Template(ctx, line)
}

// Template migrates a temporary file and keeps its bytes. It then makes a file from them under a random key and
// opens it through the encrypting layer, so a library that changed its format is noticed here and not by a tenant.
func (s *Steps) Template(ctx context.Context, line Line) (_ *Template, err error) {
	const op = "sqlstore.BuildTemplate"
	dir, err := os.MkdirTemp("", "memoryd-template-")
	if err != nil {
		return nil, storing(op, err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	plain := filepath.Join(dir, "plain.db")
	db, err := OpenSQLite(ctx, SQLiteOptions{Path: plain, Create: true})
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	report, err := s.Migrate(ctx, db, line)
	// Closing folds the write-ahead log into the file; the header keeps saying WAL.
	if err := errors.Join(err, db.Close()); err != nil {
		return nil, fault.Wrap(op, err)
	}
	t := &Template{}
	if t.image, err = os.ReadFile(plain); err != nil {
		return nil, storing(op, err)
	}
	return t, fault.Wrap(op, t.check(ctx, filepath.Join(dir, "sealed.db"), report.To))
}

// check proves that a file of this template opens.
func (t *Template) check(ctx context.Context, path string, version int64) error {
	key := seal.NewKey()
	if err := t.Create(ctx, path, &key); err != nil {
		return err
	}
	db, err := OpenSQLite(ctx, SQLiteOptions{Path: path, Key: &key})
	if err != nil {
		return err
	}
	got, err := SchemaVersion(ctx, db)
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if got != version || len(t.image)%blockSize != 0 {
		return fault.New(fault.Internal, "sqlstore.BuildTemplate", "", "the template does not open as what it was")
	}
	return nil
}

// Create writes a new database file, under key unless that is nil, and the folders to it. The file appears complete and on disk, or not at
// all. A file that exists already is code "duplicate".
func (t *Template) Create(ctx context.Context, path string, key *seal.Key) error {
	const op = "sqlstore.Template.Create"
	if err := gone(ctx, nil); err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return fault.New(fault.Conflict, op, "duplicate", "the database file exists already")
	}
	// What an interrupted Destroy may have left would be taken for this file's log.
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return storing(op, err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return storing(op, err)
	}
	image := t.image
	if key != nil {
		image = sealed(image, key)
	}
	return storing(op, place(path, image))
}

// sealed encrypts an image as the encrypting layer would: block by block, each tweaked by its offset. Writing it
// through that layer instead costs two connections and the backup machinery.
func sealed(image []byte, key *seal.Key) []byte {
	out, cipher := bytes.Clone(image), adiantum.New(key[:])
	var tweak [8]byte
	for at := 0; at+blockSize <= len(out); at += blockSize {
		binary.LittleEndian.PutUint64(tweak[:], uint64(at))
		cipher.Encrypt(out[at:at+blockSize], tweak[:])
	}
	return out
}

// place writes a file under a temporary name, syncs it, renames it and syncs the folder.
func place(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Destroy removes a database file and what belongs to it. One that is gone already is no error.
func Destroy(path string) error {
	const op = "sqlstore.Destroy"
	for _, suffix := range []string{"", "-wal", "-shm"} { // the content first
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return storing(op, err)
		}
	}
	err := syncDir(filepath.Dir(path))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return storing(op, err)
}
