package blob

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"claude-memory-backend/internal/fault"
)

// Store keeps files by name. It is safe for concurrent use. A name outside the grammar is code "file_name_wrong"; a
// store that does not answer is fault.Unavailable, code "storage_failed", and one that refuses its credentials
// "storage_denied".
type Store interface {
	// Put stores size bytes of content under the name, replacing what was there; size -1 is all until the end. Content
	// that is shorter or longer than size is refused, and nothing is stored then.
	Put(ctx context.Context, name string, content io.Reader, size int64) error
	// Get opens the file, which the caller closes; fault.NotFound, code "file_missing", when there is none.
	Get(ctx context.Context, name string) (io.ReadCloser, error)
	// Stat looks at the file without reading it; fault.NotFound, code "file_missing", when there is none.
	Stat(ctx context.Context, name string) (Info, error)
	// List goes through all files in a folder and below, in no particular order; "" is everything. It ends with the
	// first error.
	List(ctx context.Context, folder string) iter.Seq2[Info, error]
	// Delete removes the file. One that is gone already is no error.
	Delete(ctx context.Context, name string) error
	// String is the store's address without secrets.
	String() string
}

// Info is what a store knows of a file.
type Info struct {
	Name     string
	Size     int64     // bytes
	Modified time.Time // by the store's clock, to the second or finer
}

// Open opens the store at an operator's address: a folder's path or file:// address, which is made when it is missing,
// or
//
//	s3://KEY:SECRET@HOST[:PORT]/BUCKET[/PREFIX][?region=REGION][&tls=off][&style=path|host]
//
// with key and secret percent-encoded where needed. The bucket must exist. An address that cannot be understood is
// fault.Invalid, code "storage_address_wrong"; messages never hold it.
func Open(ctx context.Context, address string) (Store, error) {
	return open(ctx, address, OpenFolder)
}

// OpenExisting is Open for reading what somebody stored: it makes nothing. A folder that there is not is fault.NotFound,
// code "file_missing".
func OpenExisting(ctx context.Context, address string) (Store, error) {
	return open(ctx, address, func(dir string) (*Folder, error) { return openFolder("blob.OpenExisting", dir) })
}

func open(ctx context.Context, address string, folder func(dir string) (*Folder, error)) (Store, error) {
	if IsS3(address) {
		return openS3(ctx, address)
	}
	if scheme, rest, ok := strings.Cut(address, "://"); ok {
		u, err := url.Parse(address)
		if scheme != "file" || err != nil || u.Host != "" || rest == "" {
			return nil, wrongAddress("is neither a folder nor an s3:// address")
		}
		address = u.Path
	}
	if address == "" {
		return nil, wrongAddress("is empty")
	}
	f, err := folder(address)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Check says what is wrong with an address, without opening anything.
func Check(address string) error {
	if IsS3(address) {
		_, err := parseS3(address)
		return err
	}
	if scheme, _, ok := strings.Cut(address, "://"); address == "" || ok && scheme != "file" {
		return wrongAddress("is neither a folder nor an s3:// address")
	}
	return nil
}

// IsS3 reports whether the address is one of a bucket, which may hold a secret.
func IsS3(address string) bool { return strings.HasPrefix(address, "s3://") }

func wrongAddress(why string) *fault.Error {
	return fault.New(fault.Invalid, "blob.Open", "storage_address_wrong", "the storage address "+why)
}

// PutBytes stores content under the name.
func PutBytes(ctx context.Context, s Store, name string, content []byte) error {
	return s.Put(ctx, name, bytes.NewReader(content), int64(len(content)))
}

// GetBytes reads a whole file; one of more than limit bytes is fault.TooLarge, code "file_too_large".
func GetBytes(ctx context.Context, s Store, name string, limit int64) ([]byte, error) {
	const op = "blob.GetBytes"
	r, err := s.Get(ctx, name)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	defer r.Close()
	content, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, broken(ctx, op, err)
	}
	if int64(len(content)) > limit {
		return nil, fault.New(fault.TooLarge, op, "file_too_large", "a stored file is larger than it can be")
	}
	return content, nil
}

// maxName is the longest name, in bytes: S3 allows 1,024 with the prefix.
const maxName = 700

// A segment begins with a letter or a digit, so it is never "..", nor one of a folder's own files.
var nameGrammar = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*$`)

func checkName(op, name string) error {
	if len(name) > maxName || !nameGrammar.MatchString(name) {
		return fault.New(fault.Internal, op, "file_name_wrong", "the name of a stored file has a wrong form")
	}
	return nil
}

func missing(op string, cause error) error {
	return fault.New(fault.NotFound, op, "file_missing", "a stored file is missing").With(cause)
}

// broken is any failure of a store that is not about the file.
func broken(ctx context.Context, op string, cause error) error {
	if _, ok := errors.AsType[*fault.Error](cause); ok {
		return fault.Wrap(op, cause)
	}
	if ctx.Err() != nil {
		return fault.New(fault.Canceled, op, "", "the operation ended").With(context.Cause(ctx))
	}
	return fault.New(fault.Unavailable, op, "storage_failed", "the storage does not work").RetryAfter(5 * time.Second).With(cause)
}

// exact reads as many bytes as there must be. That there are more is noticed before the last ones are handed out, so
// whoever sends them on cannot have sent everything.
type exact struct {
	r    io.Reader
	left int64
}

func (e *exact) Read(p []byte) (int, error) {
	if int64(len(p)) > e.left {
		p = p[:e.left]
	}
	n, err := 0, error(nil)
	if e.left > 0 {
		n, err = e.r.Read(p)
		e.left -= int64(n)
	}
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return n, err
	case err != nil && e.left > 0:
		return 0, wrongSize()
	case err == nil && e.left == 0:
		var more [1]byte
		if _, err = io.ReadFull(e.r, more[:]); err == nil {
			return 0, wrongSize()
		}
	}
	return n, err
}

func wrongSize() error {
	return fault.New(fault.Internal, "blob.Put", "file_size_wrong", "the content is not as long as it was said to be")
}

// abs is for printing an address of a folder.
func abs(path string) string {
	if a, err := filepath.Abs(path); err == nil {
		return a
	}
	return path
}
