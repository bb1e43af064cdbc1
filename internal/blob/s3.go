package blob

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"claude-memory-backend/internal/fault"
)

const (
	// partSize is how much of a file of unknown length is held in memory and sent at a time.
	partSize = 16 << 20
	// attempts is how often a request is made that a server does not answer; each waits longer than the one before.
	attempts = 5
)

// S3 is a [Store] in a bucket of an S3-compatible server.
type S3 struct {
	core    minio.Core
	address s3Address
}

type s3Address struct {
	key, secret  string
	host         string
	bucket       string
	prefix       string // empty, or with a slash at its end
	region       string
	insecure     bool
	lookup       minio.BucketLookupType
	withoutCreds string // the address as it may be shown
}

var (
	bucketGrammar = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{1,62}$`)
	prefixGrammar = regexp.MustCompile(`^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$`)
)

// parseS3 reads an address. No error quotes any part of it.
func parseS3(text string) (a s3Address, err error) {
	u, perr := url.Parse(text)
	if perr != nil || u.Scheme != "s3" || u.Opaque != "" || u.Fragment != "" {
		return a, wrongAddress("cannot be read: is it s3://KEY:SECRET@HOST/BUCKET with key and secret percent-encoded?")
	}
	a.host = u.Host
	if u.Hostname() == "" {
		return a, wrongAddress("names no host")
	}
	if a.key = u.User.Username(); a.key != "" {
		a.secret, _ = u.User.Password()
	}
	if a.key == "" || a.secret == "" {
		return a, wrongAddress("holds no key and secret: s3://KEY:SECRET@HOST/BUCKET")
	}
	a.bucket, a.prefix, _ = strings.Cut(strings.Trim(u.Path, "/"), "/")
	if !bucketGrammar.MatchString(a.bucket) {
		return a, wrongAddress("names no bucket: s3://KEY:SECRET@HOST/BUCKET")
	}
	a.withoutCreds = "s3://" + u.Host + "/" + a.bucket
	if a.prefix != "" {
		if !prefixGrammar.MatchString(a.prefix) || len(a.prefix) > 200 {
			return a, wrongAddress("has a prefix of other characters than letters, digits and ._-/")
		}
		a.withoutCreds += "/" + a.prefix
		a.prefix += "/"
	}
	query, perr := url.ParseQuery(u.RawQuery)
	if perr != nil {
		return a, wrongAddress("has parameters that cannot be read")
	}
	for name, values := range query {
		value := values[0]
		switch {
		case len(values) != 1:
			return a, wrongAddress("has a parameter twice")
		case name == "region" && value != "":
			a.region = value
		case name == "tls" && (value == "on" || value == "off"):
			a.insecure = value == "off"
		case name == "style" && value == "path":
			a.lookup = minio.BucketLookupPath
		case name == "style" && value == "host":
			a.lookup = minio.BucketLookupDNS
		default:
			return a, wrongAddress("has a wrong parameter: region=…, tls=on|off and style=path|host are known")
		}
	}
	return a, nil
}

// openS3 connects and looks whether the bucket is there.
func openS3(ctx context.Context, text string) (*S3, error) {
	const op = "blob.Open"
	a, err := parseS3(text)
	if err != nil {
		return nil, err
	}
	client, err := minio.New(a.host, &minio.Options{Creds: credentials.NewStaticV4(a.key, a.secret, ""), Secure: !a.insecure,
		Region: a.region, BucketLookup: a.lookup, MaxRetries: attempts})
	if err != nil {
		return nil, wrongAddress("names a host that cannot be used").With(err)
	}
	s := &S3{core: minio.Core{Client: client}, address: a}
	there, err := client.BucketExists(ctx, a.bucket)
	if err != nil {
		return nil, s.failed(ctx, op, err)
	}
	if !there {
		return nil, fault.New(fault.Unavailable, op, "storage_bucket_missing", "the bucket does not exist: make it first")
	}
	return s, nil
}

// String implements Store.
func (s *S3) String() string { return s.address.withoutCreds }

// Put implements Store.
func (s *S3) Put(ctx context.Context, name string, content io.Reader, size int64) error {
	const op = "blob.Put"
	if err := checkName(op, name); err != nil {
		return err
	}
	o := minio.PutObjectOptions{ContentType: "application/octet-stream", PartSize: partSize}
	if size < 0 {
		// What fits into one part is one request, and an upload in parts never begins with an empty one.
		var start bytes.Buffer
		switch n, err := io.CopyN(&start, content, partSize); {
		case errors.Is(err, io.EOF):
			content, size = &start, n
		case err != nil:
			return s.failed(ctx, op, err)
		default:
			content = io.MultiReader(&start, content)
		}
	}
	if size >= 0 {
		content = &exact{content, size}
	}
	if size == 0 { // an empty body that is signed in chunks would be sent without a length, which servers refuse
		if _, err := io.Copy(io.Discard, content); err != nil {
			return s.failed(ctx, op, err)
		}
		content, o.DisableContentSha256 = http.NoBody, true
	}
	_, err := s.core.Client.PutObject(ctx, s.address.bucket, s.address.prefix+name, content, size, o)
	return s.failed(ctx, op, err)
}

// Get implements Store.
func (s *S3) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	const op = "blob.Get"
	if err := checkName(op, name); err != nil {
		return nil, err
	}
	body, _, _, err := s.core.GetObject(ctx, s.address.bucket, s.address.prefix+name, minio.GetObjectOptions{})
	if err != nil {
		return nil, s.failed(ctx, op, err)
	}
	return body, nil
}

// Stat implements Store.
func (s *S3) Stat(ctx context.Context, name string) (Info, error) {
	const op = "blob.Stat"
	if err := checkName(op, name); err != nil {
		return Info{}, err
	}
	o, err := s.core.StatObject(ctx, s.address.bucket, s.address.prefix+name, minio.StatObjectOptions{})
	if err != nil {
		return Info{}, s.failed(ctx, op, err)
	}
	return Info{Name: name, Size: o.Size, Modified: o.LastModified}, nil
}

// List implements Store.
func (s *S3) List(ctx context.Context, folder string) iter.Seq2[Info, error] {
	const op = "blob.List"
	return func(yield func(Info, error) bool) {
		prefix := s.address.prefix
		if folder != "" {
			if err := checkName(op, folder); err != nil {
				yield(Info{}, err)
				return
			}
			prefix += folder + "/"
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // ends the client's listing when nobody asks for more
		for o := range s.core.ListObjectsIter(ctx, s.address.bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
			if o.Err != nil {
				yield(Info{}, s.failed(ctx, op, o.Err))
				return
			}
			name := strings.TrimPrefix(o.Key, s.address.prefix)
			if !nameGrammar.MatchString(name) {
				continue // not ours
			}
			if !yield(Info{Name: name, Size: o.Size, Modified: o.LastModified}, nil) {
				return
			}
		}
		// The client ends a listing that was cancelled without saying so.
		if err := ctx.Err(); err != nil {
			yield(Info{}, s.failed(ctx, op, err))
		}
	}
}

// Delete implements Store.
func (s *S3) Delete(ctx context.Context, name string) error {
	const op = "blob.Delete"
	if err := checkName(op, name); err != nil {
		return err
	}
	err := s.core.Client.RemoveObject(ctx, s.address.bucket, s.address.prefix+name, minio.RemoveObjectOptions{})
	if err = s.failed(ctx, op, err); fault.Is(err, fault.NotFound) && fault.CodeOf(err) == "file_missing" {
		return nil
	}
	return err
}

// failed classifies what the client reports, by the server's codes.
func (s *S3) failed(ctx context.Context, op string, err error) error {
	if err == nil {
		return nil
	}
	answer, ok := errors.AsType[minio.ErrorResponse](err)
	if !ok {
		return broken(ctx, op, err)
	}
	switch {
	case answer.Code == minio.NoSuchBucket:
		return fault.New(fault.Unavailable, op, "storage_bucket_missing", "the bucket does not exist: make it first").With(err)
	case answer.Code == minio.NoSuchKey || answer.StatusCode == http.StatusNotFound:
		return missing(op, err)
	case answer.StatusCode == http.StatusForbidden || answer.StatusCode == http.StatusUnauthorized:
		return fault.New(fault.Unavailable, op, "storage_denied", "the storage refuses the key, or what it may do").With(err)
	default:
		return broken(ctx, op, err)
	}
}
