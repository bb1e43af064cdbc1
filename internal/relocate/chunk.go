package relocate

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"sync"

	"golang.org/x/sync/errgroup"

	"claude-memory-backend/internal/blob"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/sqlstore"
)

const (
	chunkTarget = 256 << 10 // bytes of rows in a chunk, on average
	chunkMax    = 8 * chunkTarget
	chunksAhead = 4 // of one database that are written or read at the same time

	dumpRows  = 5000 // read from a database at a time
	dumpBytes = 1 << 20
)

// A chunk's content is rows as sqlstore.EncodeRow writes them, table after table. Before the first row of a table in a
// chunk stand a zero byte, which no row begins with, and the table's name behind its length.
const tableMark = 0

// packer turns rows into chunks. Where a chunk ends depends on the row it ends with and on nothing else: a row ends one
// with a chance of its length by chunkTarget, drawn from a keyed hash of it. So rows that are added, changed or deleted
// change the chunk they lie in, and no other (but where chunkMax had to cut). The hash is keyed, as is the chunks' names,
// because sizes and names can be seen by whoever keeps the files.
type packer struct {
	key   *ownerKey
	table string
	buf   []byte
	emit  func(name string, content []byte) error // keeps content
}

// add packs one row.
func (p *packer) add(table string, row []byte) error {
	if p.table != table || len(p.buf) == 0 {
		p.table = table
		p.buf = append(binary.AppendUvarint(append(p.buf, tableMark), uint64(len(table))), table...)
	}
	p.buf = append(p.buf, row...)
	if len(p.buf) >= chunkMax || ends(p.key, row) {
		return p.flush()
	}
	return nil
}

func ends(key *ownerKey, row []byte) bool {
	h := hmac.New(sha256.New, key.cut[:])
	h.Write(row)
	drawn := binary.BigEndian.Uint64(h.Sum(nil)) >> 11 // 53 bits, as many as a float64 holds
	return float64(drawn)*chunkTarget < float64(len(row))*(1<<53)
}

// flush emits what is left.
func (p *packer) flush() error {
	if len(p.buf) == 0 {
		return nil
	}
	h := hmac.New(sha256.New, p.key.name[:])
	h.Write(p.buf)
	content := p.buf
	p.buf = nil
	return p.emit(hex.EncodeToString(h.Sum(nil)[:20]), content)
}

// unpack reads a chunk's rows back, table by table.
func unpack(tables []sqlstore.Table, content []byte, each func(t sqlstore.Table, rows []sqlstore.Row, encoded []byte) error) error {
	for len(content) > 0 {
		if content[0] != tableMark {
			return damaged("a chunk", nil)
		}
		size, n := binary.Uvarint(content[1:])
		if n <= 0 || size > uint64(len(content)-1-n) {
			return damaged("a chunk", nil)
		}
		name := string(content[1+n : 1+n+int(size)])
		content = content[1+n+int(size):]
		t, ok := tableNamed(tables, name)
		if !ok {
			return damaged("a chunk", nil)
		}
		var rows []sqlstore.Row
		start := content
		for len(content) > 0 && content[0] != tableMark {
			row, rest, err := sqlstore.DecodeRow(t, content)
			if err != nil {
				return damaged("a chunk", err)
			}
			rows, content = append(rows, row), rest
		}
		if err := each(t, rows, start[:len(start)-len(content)]); err != nil {
			return err
		}
	}
	return nil
}

func tableNamed(tables []sqlstore.Table, name string) (sqlstore.Table, bool) {
	for _, t := range tables {
		if t.Name == name {
			return t, true
		}
	}
	return sqlstore.Table{}, false
}

// Chunk is a part of a database in a snapshot.
type Chunk struct {
	Name string `json:"n"`
	Size int64  `json:"s"` // of the file
}

func chunkFile(owner, name string) string { return chunksDir + "/" + owner + "/" + name }

// chunkWriter writes the chunks of one database that are not there yet, several at a time.
type chunkWriter struct {
	r      *Repository
	key    *ownerKey
	there  map[string]int64 // sizes of files by name
	verify bool             // read what is there before relying on it
	limit  int64            // of bytes of rows; 0: none
	group  *errgroup.Group
	ctx    context.Context // ends with the first failure

	mu      sync.Mutex
	chunks  []Chunk
	written Size
	bytes   int64
}

// newChunkWriter lists what the owner has already.
func (r *Repository) newChunkWriter(ctx context.Context, key *ownerKey, verify bool) (*chunkWriter, error) {
	w := &chunkWriter{r: r, key: key, there: make(map[string]int64), verify: verify}
	for info, err := range r.store.List(ctx, chunksDir+"/"+key.owner) {
		if err != nil {
			return nil, err
		}
		w.there[info.Name] = info.Size
	}
	w.group, w.ctx = errgroup.WithContext(ctx)
	w.group.SetLimit(chunksAhead)
	return w, nil
}

// put adds a chunk behind those before.
func (w *chunkWriter) put(name string, content []byte) error {
	w.mu.Lock()
	i := len(w.chunks)
	w.chunks = append(w.chunks, Chunk{Name: name})
	w.bytes += int64(len(content))
	all := w.bytes
	w.mu.Unlock()
	if w.limit > 0 && all > w.limit {
		return fault.New(fault.TooLarge, "relocate.Backup", "backup_too_large", "the database is larger than what is backed up of users' own")
	}
	w.group.Go(func() error {
		size, written, err := w.write(chunkFile(w.key.owner, name), content)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.chunks[i].Size = size
		if written {
			w.written.Files++
			w.written.Bytes += size
		}
		return err
	})
	return w.ctx.Err() // of a chunk before; close tells what it was
}

func (w *chunkWriter) write(file string, content []byte) (size int64, written bool, err error) {
	if size, there := w.there[file]; there && (!w.verify || w.intact(file, content)) {
		return size, false, nil
	}
	sealed := w.r.sealed(w.key, file, content)
	return int64(len(sealed)), true, blob.PutBytes(w.ctx, w.r.store, file, sealed)
}

// intact reports whether a file still opens to what it must hold. One that does not is written anew, which mends older
// snapshots, too.
func (w *chunkWriter) intact(file string, content []byte) bool {
	sealed, err := blob.GetBytes(w.ctx, w.r.store, file, largeFile)
	if err != nil {
		return false
	}
	stored, err := w.r.opened(w.key, file, sealed)
	return err == nil && bytes.Equal(stored, content)
}

// close waits for all and returns them.
func (w *chunkWriter) close() ([]Chunk, error) { return w.chunks, w.group.Wait() }

// readChunks hands out the contents of chunks in their order, and reads ahead.
func (r *Repository) readChunks(ctx context.Context, key *ownerKey, chunks []Chunk, each func(content []byte) error) error {
	type read struct {
		content []byte
		err     error
	}
	ctx, cancel := context.WithCancel(ctx)
	ahead := make(chan chan read, chunksAhead)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	readers.Go(func() {
		defer close(ahead)
		for _, c := range chunks {
			one := make(chan read, 1)
			select {
			case ahead <- one:
			case <-ctx.Done():
				return
			}
			readers.Go(func() {
				content, err := r.readChunk(ctx, key, c)
				one <- read{content, err}
			})
		}
	})
	for range chunks {
		one, ok := <-ahead
		if !ok {
			return fault.New(fault.Canceled, "relocate.Repository", "", "the operation ended").With(context.Cause(ctx))
		}
		got := <-one
		if got.err != nil {
			return got.err
		}
		if err := each(got.content); err != nil {
			return err
		}
	}
	return nil
}

func (r *Repository) readChunk(ctx context.Context, key *ownerKey, c Chunk) ([]byte, error) {
	file := chunkFile(key.owner, c.Name)
	sealed, err := blob.GetBytes(ctx, r.store, file, largeFile)
	if fault.CodeOf(err) == "file_missing" {
		return nil, fault.New(fault.Internal, "relocate.Repository", "backup_damaged", file+" is missing").With(err)
	}
	if err != nil {
		return nil, err
	}
	return r.opened(key, file, sealed)
}
