package live

import (
	"bufio"
	"encoding/binary"
	"errors"
	"net"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

// wire is the network connection below a WebSocket. What the hub says goes out here in frames that were made once for all
// who hear it, without waiting where the kernel has room (decision 0055); the library reads, and answers a close frame.
// Both write whole frames only.
type wire struct {
	net.Conn
	raw   syscall.RawConn // nil: there is no asking whether there is room
	early []byte          // came with the handshake; of the reader alone
	came  int             // bytes since the last frame that was counted; of the reader alone
	most  int             // of those; 0: any number

	mu     sync.Mutex // held for writing
	closed bool       // a close frame went out
	rest   []byte     // of a frame that has begun to go out: nothing else may come before it
	// What the write under way, which does not wait, has to do and has done; kept so that none has to be allocated.
	now  func(fd uintptr) bool
	data []byte
	sent int
}

const (
	readAhead  = 512 // bytes read from a client at once: nearly every frame is shorter, and the rest of a long one is read where it goes
	controlMax = 256 // more than a control frame has
)

// taker hands a wire over in place of the network connection, with buffers that are no larger than they have to be.
type taker struct {
	http.ResponseWriter
	wire *wire
	size int // bytes that the kernel may hold for a reader
}

// Hijack implements http.Hijacker.
func (t *taker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(t.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w := &wire{Conn: c}
	t.wire = w
	w.room(t.size)
	if n := rw.Reader.Buffered(); n > 0 {
		w.early = make([]byte, n)
		_, _ = rw.Read(w.early) // it has them
	}
	if s, ok := c.(syscall.Conn); ok {
		if w.raw, err = s.SyscallConn(); err != nil {
			w.raw = nil
		}
	}
	w.now = func(fd uintptr) bool {
		n, err := syscall.Write(int(fd), w.data)
		if err != nil {
			n = 0 // full, or broken: whoever waits for room finds out which
		}
		w.sent = n
		return true
	}
	return w, bufio.NewReadWriter(bufio.NewReaderSize(w, readAhead), bufio.NewWriterSize(w, controlMax)), nil
}

// room says how many bytes the kernel may hold for the reader. What cannot be set is bounded by the time of a write.
func (w *wire) room(size int) {
	if tcp, ok := w.Conn.(interface{ SetWriteBuffer(bytes int) error }); ok {
		_ = tcp.SetWriteBuffer(size)
	}
}

// keep bounds how long the kernel offers what is left to a reader that takes nothing.
func (w *wire) keep(d time.Duration) {
	const userTimeout = 0x12 // TCP_USER_TIMEOUT, in milliseconds
	if w.raw != nil && runtime.GOOS == "linux" {
		_ = w.raw.Control(func(fd uintptr) { // elsewhere the system has bounds of its own
			_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, userTimeout, int(d.Milliseconds()))
		})
	}
}

// errOverlong is what a reader finds when more came than a frame may have, and no frame: parts of one, with nothing or next to
// nothing in them, could come for ever and count as none.
var errOverlong = errors.New("live: a frame in too many parts")

// Read implements net.Conn.
func (w *wire) Read(p []byte) (int, error) {
	if w.most > 0 && w.came > w.most {
		return 0, errOverlong
	}
	n, err := w.read(p)
	w.came += n
	return n, err
}

func (w *wire) read(p []byte) (int, error) {
	if len(w.early) > 0 {
		n := copy(p, w.early)
		if w.early = w.early[n:]; len(w.early) == 0 {
			w.early = nil
		}
		return n, nil
	}
	return w.Conn.Read(p)
}

// Write implements net.Conn for the library, which writes whole control frames: the answer to a close frame, after what is left
// of a frame that has begun.
func (w *wire) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return len(b), nil // the answer to a close frame that was sent already
	}
	w.closed = b[0] == opClose
	before := len(w.rest)
	n, err := w.Conn.Write(slices.Concat(w.rest, b))
	w.rest = w.rest[min(n, before):]
	return max(n-before, 0), err
}

// try writes as much of a frame as goes out without waiting for anybody.
func (w *wire) try(b []byte) (sent int) {
	if w.raw == nil || !w.mu.TryLock() {
		return 0
	}
	defer w.mu.Unlock()
	if w.closed {
		return 0
	}
	w.data, w.sent = b, 0
	_ = w.raw.Write(w.now) // an error comes again when somebody waits for room
	w.data = nil
	if w.sent > 0 && w.sent < len(b) {
		w.rest = b[w.sent:]
	}
	return w.sent
}

// write writes a frame, or the rest of the one that has begun, before a moment in time. It says how much went out. Nothing
// follows the last.
func (w *wire) write(b []byte, until time.Time, last bool) (sent int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, net.ErrClosed
	}
	w.closed = last
	if err := w.SetWriteDeadline(until); err != nil {
		return 0, err
	}
	begun := len(w.rest) > 0
	sent, err = w.Conn.Write(b)
	if w.rest = nil; sent < len(b) && (begun || sent > 0) {
		w.rest = b[sent:]
	}
	return sent, err
}

// What a frame begins with.
const (
	final    = 0x80
	opText   = final | 0x1
	opClose  = final | 0x8
	opPing   = final | 0x9
	opPong   = final | 0xa
	headSize = 10 // bytes, at most
)

// framed puts the head of a frame before its payload, which has headSize bytes of room before it. A server masks nothing.
func framed(op byte, b []byte) []byte {
	n := len(b) - headSize
	switch {
	case n < 126:
		b = b[headSize-2:]
		b[1] = byte(n)
	case n < 1<<16:
		b = b[headSize-4:]
		b[1] = 126
		binary.BigEndian.PutUint16(b[2:], uint16(n))
	default:
		b[1] = 127
		binary.BigEndian.PutUint64(b[2:], uint64(n))
	}
	b[0] = op
	return b
}

// control is a control frame. Its payload has 125 bytes at most.
func control(op byte, payload []byte) []byte {
	return framed(op, append(make([]byte, headSize, headSize+len(payload)), payload...))
}

// goodbye is a close frame.
func goodbye(code websocket.StatusCode, reason string) []byte {
	return control(opClose, append(binary.BigEndian.AppendUint16(nil, uint16(code)), reason...))
}
