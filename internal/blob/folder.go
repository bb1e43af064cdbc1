package blob

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"time"

	"claude-memory-backend/internal/fault"
)

// unfinished is where a folder's files lie until they are complete; no name begins with a dot.
const unfinished = ".unfinished"

// abandoned is the age at which an unfinished file belongs to nobody any more.
const abandoned = 24 * time.Hour

// Folder is a [Store] in a folder of this machine. Names are resolved below it by the operating system: a link that
// leads out is refused.
type Folder struct {
	root *os.Root
	path string
}

// OpenFolder makes the folder when it is missing.
func OpenFolder(dir string) (*Folder, error) {
	const op = "blob.OpenFolder"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.New(fault.Unavailable, op, "storage_failed", "the storage folder cannot be made").With(err)
	}
	f, err := openFolder(op, dir)
	if err == nil {
		err = f.root.MkdirAll(unfinished, 0o700) // whoever may not write hears of it now
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, op, "storage_failed", "the storage folder cannot be opened").With(err)
	}
	return f, nil
}

// openFolder opens a folder that there is, and makes nothing in it.
func openFolder(op, dir string) (*Folder, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, missing(op, err)
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, op, "storage_failed", "the storage folder cannot be opened").With(err)
	}
	f := &Folder{root: root, path: abs(dir)}
	f.tidy()
	return f, nil
}

// tidy removes what killed processes left unfinished.
func (f *Folder) tidy() {
	entries, err := fs.ReadDir(f.root.FS(), unfinished)
	if err != nil {
		return // the first Put will say what is wrong
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > abandoned {
			_ = f.root.Remove(path.Join(unfinished, e.Name())) // it costs room and nothing else
		}
	}
}

// String implements Store.
func (f *Folder) String() string { return f.path }

// Put implements Store: a new file beside the others, synced, renamed into its place, and the folder synced.
func (f *Folder) Put(ctx context.Context, name string, content io.Reader, size int64) error {
	const op = "blob.Put"
	if err := checkName(op, name); err != nil {
		return err
	}
	if size >= 0 {
		content = &exact{content, size}
	}
	temp, err := f.write(ctx, content)
	if err == nil {
		err = f.place(temp, name)
		if err != nil {
			_ = f.root.Remove(temp)
		}
	}
	if err != nil {
		return broken(ctx, op, err)
	}
	return nil
}

// write stores the content under a temporary name and syncs it.
func (f *Folder) write(ctx context.Context, content io.Reader) (temp string, err error) {
	var random [12]byte
	_, _ = rand.Read(random[:])
	temp = path.Join(unfinished, hex.EncodeToString(random[:]))
	file, err := f.root.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrNotExist) { // a folder that was opened as it was, or copied without what is hidden
		if err = f.root.MkdirAll(unfinished, 0o700); err == nil {
			file, err = f.root.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		}
	}
	if err != nil {
		return "", err
	}
	_, err = io.Copy(file, &cancelable{ctx, content})
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		_ = f.root.Remove(temp)
		return "", err
	}
	return temp, nil
}

// place renames a finished file. Folders that are made on the way are synced into theirs.
func (f *Folder) place(temp, name string) error {
	dir := path.Dir(name)
	if err := f.makeFolder(dir); err != nil {
		return err
	}
	if err := f.root.Rename(temp, name); err != nil {
		return err
	}
	return f.sync(dir)
}

func (f *Folder) makeFolder(dir string) error {
	if dir == "." {
		return nil
	}
	err := f.root.Mkdir(dir, 0o700)
	switch {
	case err == nil:
		return f.sync(path.Dir(dir))
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		if err := f.makeFolder(path.Dir(dir)); err != nil {
			return err
		}
		return f.makeFolder(dir)
	default:
		return err
	}
}

func (f *Folder) sync(dir string) error {
	d, err := f.root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Get implements Store.
func (f *Folder) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	const op = "blob.Get"
	if err := checkName(op, name); err != nil {
		return nil, err
	}
	file, err := f.root.Open(name)
	if err != nil {
		return nil, failed(ctx, op, err)
	}
	info, err := file.Stat()
	if err == nil && info.IsDir() {
		err = fs.ErrNotExist
	}
	if err != nil {
		_ = file.Close()
		return nil, failed(ctx, op, err)
	}
	return file, nil
}

// Stat implements Store.
func (f *Folder) Stat(ctx context.Context, name string) (Info, error) {
	const op = "blob.Stat"
	if err := checkName(op, name); err != nil {
		return Info{}, err
	}
	info, err := f.root.Stat(name)
	if err == nil && info.IsDir() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return Info{}, failed(ctx, op, err)
	}
	return Info{Name: name, Size: info.Size(), Modified: info.ModTime()}, nil
}

// List implements Store.
func (f *Folder) List(ctx context.Context, folder string) iter.Seq2[Info, error] {
	const op = "blob.List"
	return func(yield func(Info, error) bool) {
		start := "."
		if folder != "" {
			if err := checkName(op, folder); err != nil {
				yield(Info{}, err)
				return
			}
			start = folder
		}
		err := fs.WalkDir(f.root.FS(), start, func(name string, d fs.DirEntry, err error) error {
			if err == nil {
				err = ctx.Err()
			}
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil // deleted meanwhile, or an empty store
			case err != nil:
				return err
			case d.IsDir() && d.Name() == unfinished:
				return fs.SkipDir
			case d.IsDir() || !nameGrammar.MatchString(name):
				return nil
			}
			info, err := d.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if !yield(Info{Name: name, Size: info.Size(), Modified: info.ModTime()}, nil) {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			yield(Info{}, failed(ctx, op, err))
		}
	}
}

// Delete implements Store. The folder is synced: what was deleted must not come back with a power cut.
func (f *Folder) Delete(ctx context.Context, name string) error {
	const op = "blob.Delete"
	if err := checkName(op, name); err != nil {
		return err
	}
	err := f.root.Remove(name)
	if err == nil {
		err = f.sync(path.Dir(name))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failed(ctx, op, err)
	}
	return nil
}

func failed(ctx context.Context, op string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return missing(op, err)
	}
	return broken(ctx, op, err)
}

// cancelable stops a copy when its context ends.
type cancelable struct {
	ctx context.Context // a reader has no other way to hear of its end
	r   io.Reader
}

func (c *cancelable) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
