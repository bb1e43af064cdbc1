package sqlstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"claude-memory-backend/internal/fault"
)

// What a server of a user's may cost us. Its answers are not trusted: it may be silent, slow, endless, or speak
// something else.

const (
	// maxRow is the longest message of the protocol that is read. The driver takes memory for a message before it
	// comes, so what is announced counts.
	maxRow = 8 << 20
	// maxRounds is the most rounds of hashing that a server may ask for in SCRAM. PostgreSQL's default is 4,096; the
	// driver would do ten million, which is seconds of a processor.
	maxRounds = 100_000
	// maxParameters is how many different parameters a server may report; PostgreSQL has about fifteen of them.
	maxParameters = 64
	// maxAuths is how many messages an authentication has: SCRAM's three, and its end. A server could begin again and
	// again.
	maxAuths = 4
	// maxAhead is what may be read while a long request is still being written: the driver keeps it in memory.
	maxAhead = 4 << 20
	// sendBuffer bounds what lies in the system's buffer when a request counts as written. The server cannot answer
	// before it has all of it, so its silence must not include minutes of that.
	sendBuffer = 256 << 10
)

// limits are what one exchange of messages may take.
type limits struct {
	silence time.Duration // without a byte in either direction
	total   time.Duration // 0: as the context says
	wire    int64         // bytes read
	rows    int64         // bytes of rows that are kept, and rowCost for each row
}

// rowCost is what a row is charged besides its bytes: a row of one byte can become a structure of many words.
const rowCost = 256

var (
	// Somebody waits: a server that stops answering fails within two seconds.
	hasty = limits{silence: 1800 * time.Millisecond, total: 8 * time.Second, wire: 64 << 20, rows: 11 << 20}
	// Nobody does. Who reads whole tables bounds what it keeps.
	patient = limits{silence: 2 * time.Minute, wire: 1 << 50, rows: 1 << 50}
)

type patientKey struct{}

// Patient marks work that may be slow, such as copies and migrations: the short limits for what somebody waits for do
// not hold in this context.
func Patient(ctx context.Context) context.Context { return context.WithValue(ctx, patientKey{}, true) }

func isPatient(ctx context.Context) bool { return ctx.Value(patientKey{}) != nil }

// Why a connection was cut. These take the place of what the driver makes of it.
var (
	errSilent   = errors.New("no answer")
	errSlow     = errors.New("the answer took too long")
	errTooMuch  = errors.New("the answer is too long")
	errStrange  = errors.New("the answer is not of PostgreSQL's protocol")
	errHashing  = errors.New("too many rounds of SCRAM")
	errRowLimit = errors.New("rows larger than allowed")
)

// meter is a network connection under TLS that ends itself when the other side is silent for too long or sends too
// much.
type meter struct {
	net.Conn

	mu      sync.Mutex
	limits  limits
	timer   *time.Timer // not nil while an exchange runs
	round   int         // which exchange; a timer of an earlier one is ignored
	end     time.Time
	last    time.Time // of the last byte
	read    int64     // in this exchange
	ahead   int64     // read since the write began that still runs
	writing int
	why     error // the first reason to cut
}

func newMeter(conn net.Conn) *meter {
	if c, ok := conn.(interface{ SetWriteBuffer(bytes int) error }); ok {
		_ = c.SetWriteBuffer(sendBuffer)
	}
	return &meter{Conn: conn}
}

// begin starts the clock of one exchange.
func (m *meter) begin(l limits) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.round++
	m.limits, m.read, m.ahead, m.last = l, 0, 0, time.Now()
	m.end = time.Time{}
	if l.total > 0 {
		m.end = m.last.Add(l.total)
	}
	round := m.round
	m.timer = time.AfterFunc(m.wait(m.last), func() { m.check(round) })
}

// finish stops the clock, and returns why the connection was cut, if it was.
func (m *meter) finish() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.timer != nil {
		m.timer.Stop()
		m.timer = nil
	}
	return m.why
}

// wait is how long nothing can be wrong from now on.
func (m *meter) wait(now time.Time) time.Duration {
	d := m.limits.silence - now.Sub(m.last)
	if !m.end.IsZero() {
		d = min(d, m.end.Sub(now))
	}
	return d
}

func (m *meter) check(round int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.timer == nil || m.round != round {
		return
	}
	now := time.Now()
	switch {
	case m.wait(now) > 0:
		m.timer.Reset(m.wait(now))
	case !m.end.IsZero() && !now.Before(m.end):
		m.cut(errSlow)
	default:
		m.cut(errSilent)
	}
}

// cut ends the connection. The lock must be held.
func (m *meter) cut(why error) {
	if m.why == nil {
		m.why = why
	}
	_ = m.Conn.Close()
}

// blame ends the connection for a reason that was found above TLS.
func (m *meter) blame(why error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut(why)
	return why
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	if n == 0 {
		return n, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = time.Now()
	m.read += int64(n)
	if m.writing > 0 {
		m.ahead += int64(n)
	}
	if m.timer != nil && (m.read > m.limits.wire || m.ahead > maxAhead) {
		m.cut(errTooMuch)
		return 0, errTooMuch
	}
	return n, err
}

func (m *meter) Write(p []byte) (n int, err error) {
	m.mu.Lock()
	m.writing++
	m.ahead = 0
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.writing--
		m.mu.Unlock()
	}()
	for len(p) > 0 && err == nil {
		var part int
		part, err = m.Conn.Write(p[:min(len(p), 32<<10)]) // in pieces, as each that goes out is progress
		n, p = n+part, p[part:]
		m.mu.Lock()
		m.last = time.Now()
		m.mu.Unlock()
	}
	return n, err
}

// inspector reads the server's messages above TLS and before the driver does. It lets through what PostgreSQL sends to
// a client that asks for statements, in the sizes that it has.
type inspector struct {
	r     io.Reader
	meter *meter

	head   [5]byte // of a message: its kind and length
	have   int     // bytes of it
	left   int     // bytes of the body still to come
	body   []byte  // of a message that is looked into
	into   bool
	ready  bool            // the server has said once that it is ready
	auths  int             // messages of authentication
	params map[string]bool // those reported
}

// bodyLimits are the kinds of messages let through, with the most bytes of each.
var bodyLimits = map[byte]int{
	'R': 8 << 10,  // authentication
	'S': 2 << 10,  // a parameter's value
	'K': 512,      // the key for cancelling
	'v': 2 << 10,  // which protocol it speaks
	'Z': 1,        // ready
	'E': 64 << 10, // error
	'N': 64 << 10, // notice
	'T': 64 << 10, // columns
	'D': maxRow,   // a row
	'C': 256,      // a statement's end
	'I': 0,        // the end of an empty statement
	'1': 0,        // parsed
	'2': 0,        // bound
	'3': 0,        // closed
	'n': 0,        // no columns
	's': 0,        // suspended
	't': 64 << 10, // types of parameters
}

func (i *inspector) Read(p []byte) (int, error) {
	n, err := i.r.Read(p)
	if bad := i.inspect(p[:n]); bad != nil {
		return 0, i.meter.blame(bad)
	}
	return n, err
}

func (i *inspector) inspect(p []byte) error {
	for len(p) > 0 {
		if i.have < len(i.head) {
			n := copy(i.head[i.have:], p)
			i.have, p = i.have+n, p[n:]
			if i.have < len(i.head) {
				return nil
			}
			if err := i.header(); err != nil {
				return err
			}
		}
		n := min(len(p), i.left)
		if i.into {
			i.body = append(i.body, p[:n]...)
		}
		i.left, p = i.left-n, p[n:]
		if i.left == 0 {
			if err := i.message(); err != nil {
				return err
			}
			i.have, i.body = 0, i.body[:0]
		}
	}
	return nil
}

// header decides by kind and length, before the driver takes memory for the body.
func (i *inspector) header() error {
	kind, length := i.head[0], int64(binary.BigEndian.Uint32(i.head[1:]))-4
	limit, known := bodyLimits[kind]
	switch {
	case !known, length < 0, kind == 'R' && i.ready, kind == 'D' && !i.ready:
		return errStrange
	case length > int64(limit) && kind == 'D':
		return errTooMuch
	case length > int64(limit):
		return errStrange
	}
	i.left, i.into = int(length), kind == 'R' || kind == 'S'
	return nil
}

// message looks at a message that has come as a whole.
func (i *inspector) message() error {
	switch i.head[0] {
	case 'Z':
		i.ready = true
	case 'S':
		name, _, _ := bytes.Cut(i.body, []byte{0})
		if i.params == nil {
			i.params = map[string]bool{}
		}
		if i.params[string(name)] = true; len(i.params) > maxParameters {
			return errStrange
		}
	case 'R':
		const saslContinue = 11
		if i.auths++; i.auths > maxAuths {
			return errStrange
		}
		if len(i.body) >= 4 && binary.BigEndian.Uint32(i.body) == saslContinue {
			return rounds(i.body[4:])
		}
	}
	return nil
}

// rounds looks at the server's first message of SCRAM (RFC 5802): r=…,s=…,i=….
func rounds(first []byte) error {
	for field := range bytes.SplitSeq(first, []byte(",")) {
		if value, ok := bytes.CutPrefix(field, []byte("i=")); ok {
			if n, err := strconv.ParseUint(string(value), 10, 32); err != nil || n > maxRounds {
				return errHashing
			}
		}
	}
	return nil
}

// cutFault says what a connection was cut for.
func cutFault(op string, why error) *fault.Error {
	cause := &driverError{engine: "postgres", code: "cut", detail: why.Error()}
	switch {
	case errors.Is(why, errSilent), errors.Is(why, errSlow):
		return unavailable(op, "timeout", "the database took too long", cause)
	case errors.Is(why, errTooMuch), errors.Is(why, errRowLimit):
		return unavailable(op, "database_misbehaved", "the database sent more than an answer of its kind can be", cause)
	case errors.Is(why, errHashing):
		return unavailable(op, "database_misbehaved",
			"the server asks for more rounds of password hashing than is allowed here: set the password again with scram_iterations of at most "+strconv.Itoa(maxRounds), cause)
	}
	return unavailable(op, "database_misbehaved", "the server does not answer as a PostgreSQL server does", cause)
}
