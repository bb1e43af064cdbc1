package sqlstore

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/goleak"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/tenant"
)

const (
	evilPassword = "canary-of-the-password"
	evilEcho     = "canary-of-the-server" // what the server says and nobody may repeat
)

// evil is the server's side of one connection. Its methods end the dialogue when the other side is gone.
type evil struct {
	net.Conn
	t testing.TB
}

type evilDone struct{}

func (e *evil) write(b []byte) {
	if _, err := e.Conn.Write(b); err != nil {
		panic(evilDone{})
	}
}

func (e *evil) read(n int) []byte {
	b := make([]byte, n)
	if _, err := io.ReadFull(e.Conn, b); err != nil {
		panic(evilDone{})
	}
	return b
}

// head is a message's beginning, which may announce what never comes.
func head(kind byte, length uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{kind}, length)
}

func message(kind byte, body ...byte) []byte { return append(head(kind, uint32(len(body)+4)), body...) }

func auth(kind uint32, data string) []byte {
	return message('R', append(binary.BigEndian.AppendUint32(nil, kind), data...)...)
}

func errorMessage(severity, code, text, constraint string) []byte {
	return message('E', []byte("S"+severity+"\x00V"+severity+"\x00C"+code+"\x00M"+text+"\x00D"+text+"\x00n"+constraint+"\x00\x00")...)
}

// columns describes n columns of a type.
func described(n int, oid uint32) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(n))
	for range n {
		b = append(b, 'c', 0)
		b = binary.BigEndian.AppendUint32(b, 0)
		b = binary.BigEndian.AppendUint16(b, 0)
		b = binary.BigEndian.AppendUint32(b, oid)
		b = append(b, 0, 8, 0xff, 0xff, 0xff, 0xff, 0, 0)
	}
	return message('T', b...)
}

func dataRow(values ...string) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(values)))
	for _, v := range values {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
	}
	return message('D', b...)
}

func parameter(name, value string) []byte { return message('S', []byte(name+"\x00"+value+"\x00")...) }

var (
	ready     = message('Z', 'I')
	signedIn  = concat(auth(0, ""), parameter("server_version", "15.1"), message('K', 0, 0, 0, 1, 0, 0, 0, 2), ready)
	parsed    = concat(message('1'), message('2'))
	began     = concat(parsed, message('n'), message('C', []byte("BEGIN\x00")...))
	preambled = concat(parsed, described(1, 25), dataRow("x"), message('C', []byte("SELECT 1\x00")...))
)

func concat(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// hello reads the first message.
func (e *evil) hello() {
	n := binary.BigEndian.Uint32(e.read(4))
	e.read(int(n) - 4)
}

// signIn lets everybody in.
func (e *evil) signIn() {
	e.hello()
	e.write(signedIn)
}

// asked signs in and reads until a Sync or a simple query.
func (e *evil) asked() {
	e.signIn()
	e.question()
}

func (e *evil) question() {
	for {
		h := e.read(5)
		e.read(int(binary.BigEndian.Uint32(h[1:])) - 4)
		if h[0] == 'S' || h[0] == 'Q' {
			return
		}
	}
}

// forever repeats a message until the other side has had enough.
func (e *evil) forever(next func(i int) []byte) {
	for i := 0; ; i++ {
		e.write(next(i))
	}
}

// again repeats the same message forever, many at a time.
func (e *evil) again(m []byte) {
	chunk := m
	for len(chunk) < 32<<10 {
		chunk = append(chunk, m...)
	}
	e.forever(func(int) []byte { return chunk })
}

// silence waits for the other side to go.
func (e *evil) silence() { _, _ = io.Copy(io.Discard, e.Conn) }

// sasl reads an answer of SASL.
func (e *evil) sasl() string {
	h := e.read(5)
	return string(e.read(int(binary.BigEndian.Uint32(h[1:])) - 4))
}

// scram does SCRAM as a server with the given number of rounds, and then lets the client have end instead of the
// final message, if there is one.
func (e *evil) scram(rounds string, end []byte) {
	e.write(auth(10, "SCRAM-SHA-256\x00\x00"))
	first := e.sasl()
	bare := first[strings.Index(first, "n=,r="):]
	salt := base64.StdEncoding.EncodeToString([]byte("saltsaltsaltsalt"))
	server := bare[len("n=,"):] + "SERVER,s=" + salt + ",i=" + rounds
	e.write(auth(11, server))
	final := e.sasl()
	if end != nil {
		e.write(end)
		return
	}
	var n int
	_, _ = fmt.Sscan(rounds, &n)
	salted, err := pbkdf2.Key(sha256.New, evilPassword, []byte("saltsaltsaltsalt"), n, 32)
	if err != nil {
		panic(err)
	}
	sign := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	without, _, _ := strings.Cut(final, ",p=")
	signature := sign(sign(salted, "Server Key"), bare+","+server+","+without)
	e.write(auth(12, "v="+base64.StdEncoding.EncodeToString(signature)))
}

// serve runs a dialogue for every connection, on both sides of which nothing is left at the end of the test.
func serve(t testing.TB, dialogue func(*evil)) (port uint16, count *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	count = &atomic.Int64{}
	var all sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			count.Add(1)
			mu.Lock()
			open = append(open, conn)
			mu.Unlock()
			all.Go(func() {
				defer func() {
					_ = conn.Close()
					if p := recover(); p != nil && p != (evilDone{}) {
						panic(p)
					}
				}()
				dialogue(&evil{conn, t})
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return l.Addr().(*net.TCPAddr).AddrPort().Port(), count
}

// dialogues are what a server may do, by name.
func dialogues() map[string]func(*evil) {
	noise := make([]byte, 4096)
	_, _ = rand.Read(noise)
	long := strings.Repeat("x", 1<<20)
	return map[string]func(*evil){
		// Before the sign-in is over.
		"closes at once":               func(*evil) {},
		"says nothing":                 func(e *evil) { e.silence() },
		"answers with noise":           func(e *evil) { e.hello(); e.write(noise); e.silence() },
		"makes noise forever":          func(e *evil) { e.again(noise) },
		"answers as a web server":      func(e *evil) { e.write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")); e.silence() },
		"sends a byte now and then":    func(e *evil) { e.hello(); drip(e, signedIn) },
		"announces a gigabyte":         func(e *evil) { e.hello(); e.write(head('R', 1<<30)); e.again(noise) },
		"announces two gigabytes more": func(e *evil) { e.hello(); e.write(head('S', 1<<31+5)); e.silence() },
		"announces less than nothing":  func(e *evil) { e.hello(); e.write(head('R', 3)); e.silence() },
		"announces nothing":            func(e *evil) { e.hello(); e.write(head('R', 0)); e.silence() },
		"sends an unknown kind":        func(e *evil) { e.hello(); e.write(message('!', 1, 2, 3)); e.silence() },
		"asks for the password":        func(e *evil) { e.hello(); e.write(auth(3, "")); mustNotAnswer(e) },
		"asks for the password as MD5": func(e *evil) { e.hello(); e.write(auth(5, "salt")); mustNotAnswer(e) },
		"asks for Kerberos":            func(e *evil) { e.hello(); e.write(auth(2, "")); e.silence() },
		"asks for SCM credentials":     func(e *evil) { e.hello(); e.write(auth(6, "")); e.silence() },
		"asks for GSSAPI":              func(e *evil) { e.hello(); e.write(auth(7, "")); e.silence() },
		"asks for SSPI":                func(e *evil) { e.hello(); e.write(auth(9, "")); e.silence() },
		"asks for what does not exist": func(e *evil) { e.hello(); e.write(auth(4711, "")); e.silence() },
		"sends half an authentication": func(e *evil) { e.hello(); e.write(message('R', 0, 0)); e.silence() },
		"knows no mechanism of SASL":   func(e *evil) { e.hello(); e.write(auth(10, "\x00")); e.silence() },
		"knows OAuth only":             func(e *evil) { e.hello(); e.write(auth(10, "OAUTHBEARER\x00\x00")); e.silence() },
		"knows too many mechanisms": func(e *evil) {
			e.hello()
			e.write(auth(10, strings.Repeat("SCRAM-SHA-256\x00", 1000)+"\x00"))
			e.silence()
		},
		"wants ten million rounds":         func(e *evil) { e.hello(); e.scram("10000000", nil) },
		"wants just too many rounds":       func(e *evil) { e.hello(); e.scram(fmt.Sprint(maxRounds+1), nil) },
		"wants more rounds than fit":       func(e *evil) { e.hello(); e.scram("99999999999999999999", nil) },
		"wants a negative number":          func(e *evil) { e.hello(); e.scram("-1", nil) },
		"wants no number of rounds":        func(e *evil) { e.hello(); e.scram("many", nil) },
		"does not prove itself":            func(e *evil) { e.hello(); e.scram("4096", signedIn); e.silence() },
		"proves itself wrongly":            func(e *evil) { e.hello(); e.scram("4096", auth(12, "v=AAAA")); e.silence() },
		"signs in over and over":           func(e *evil) { e.hello(); e.forever(func(int) []byte { e.scram("100000", nil); return nil }) },
		"says that it is done, over again": func(e *evil) { e.hello(); e.again(auth(0, "")) },
		"is ready before it let us in":     func(e *evil) { e.hello(); e.again(ready) },
		"has endless parameters": func(e *evil) {
			e.hello()
			e.write(auth(0, ""))
			e.forever(func(i int) []byte { return parameter(fmt.Sprint("p", i), "v") })
		},
		"has one parameter, endlessly":   func(e *evil) { e.hello(); e.write(auth(0, "")); e.again(parameter("p", "v")) },
		"has a parameter without an end": func(e *evil) { e.hello(); e.write(message('S', []byte(long)...)); e.silence() },
		"has endless notices": func(e *evil) {
			e.hello()
			e.again(message('N', []byte("SNOTICE\x00C00000\x00M"+evilEcho+"\x00\x00")...))
		},
		"has a key without an end":      func(e *evil) { e.hello(); e.write(auth(0, "")); e.write(message('K', []byte(long)...)); e.silence() },
		"speaks other protocols":        func(e *evil) { e.hello(); e.again(message('v', 0, 3, 0, 0, 0, 0, 0, 0)) },
		"refuses and quotes":            func(e *evil) { e.hello(); e.write(errorMessage("FATAL", "28P01", evilPassword+evilEcho, evilPassword)) },
		"refuses with a strange code":   func(e *evil) { e.hello(); e.write(errorMessage("FATAL", evilEcho, evilPassword+evilEcho, evilEcho)) },
		"refuses at length":             func(e *evil) { e.hello(); e.write(errorMessage("FATAL", "28P01", long, "")); e.silence() },
		"sends rows before the sign-in": func(e *evil) { e.hello(); e.again(dataRow("x")) },

		// When it is asked.
		"is silent when asked":   func(e *evil) { e.asked(); e.silence() },
		"closes when asked":      func(e *evil) { e.asked() },
		"answers slowly":         func(e *evil) { e.asked(); e.write(began); drip(e, concat(described(1, 25), dataRow("x"))) },
		"has endless small rows": func(e *evil) { e.asked(); e.write(concat(began, parsed, described(1, 25))); e.again(dataRow("1")) },
		"has endless empty rows": func(e *evil) {
			e.asked()
			e.write(concat(began, preambled, parsed, described(0, 25)))
			e.again(dataRow())
		},
		"has endless small rows for us": func(e *evil) {
			e.asked()
			e.write(concat(began, preambled, parsed, described(1, 25)))
			e.again(dataRow("1"))
		},
		"has endless large rows for us": func(e *evil) {
			e.asked()
			e.write(concat(began, preambled, parsed, described(1, 25)))
			e.again(dataRow(long))
		},
		"has one row without an end": func(e *evil) {
			e.asked()
			e.write(concat(began, preambled, parsed, described(1, 25), head('D', 1<<29)))
			e.again(noise)
		},
		"has one row that is very long": func(e *evil) {
			e.asked()
			e.write(concat(began, preambled, parsed, described(1, 25), head('D', maxRow+5)))
			e.again(noise)
		},
		"has a row that ends too early": func(e *evil) {
			e.asked()
			e.write(concat(began, preambled, parsed, described(1, 25), message('D', 0, 1, 0, 0, 1, 0)))
			e.silence()
		},
		"has rows that nobody described": func(e *evil) {
			e.asked()
			e.write(concat(began, preambled, parsed, dataRow("x"), message('C', 'x', 0), ready))
			e.silence()
		},
		"has more values than columns": func(e *evil) {
			e.asked()
			e.write(concat(began, preambled, parsed, described(1, 25), dataRow("1", "2", "3"), message('C', 'x', 0), ready))
			e.silence()
		},
		"has fewer columns than values": func(e *evil) {
			e.asked()
			e.write(concat(began, preambled, parsed, described(0, 25), dataRow("1"), message('C', 'x', 0), ready))
			e.silence()
		},
		"has empty truths": func(e *evil) {
			e.asked()
			e.write(concat(began, preambled, parsed, described(1, 16), dataRow(""), message('C', 'x', 0), ready))
			e.silence()
		},
		"has numbers that are none": func(e *evil) {
			e.asked()
			e.write(concat(began, preambled, parsed, described(1, 20), dataRow(evilEcho), message('C', 'x', 0), ready))
			e.silence()
		},
		"has bytes that are none": func(e *evil) {
			e.asked()
			e.write(concat(began, preambled, parsed, described(1, 17), dataRow("\\xzz"), message('C', 'x', 0), ready))
			e.silence()
		},
		"has sixty thousand columns": func(e *evil) { e.asked(); e.write(concat(began, preambled, parsed, described(60000, 25))); e.silence() },
		"claims sixty thousand columns": func(e *evil) {
			e.asked()
			e.write(concat(began, preambled, parsed, message('T', 0xea, 0x60, 'c', 0)))
			e.silence()
		},
		"copies out":              func(e *evil) { e.asked(); e.write(message('H', 0, 0, 0)); e.again(message('d', []byte(long)...)) },
		"copies in":               func(e *evil) { e.asked(); e.write(message('G', 0, 0, 0)); e.silence() },
		"copies both ways":        func(e *evil) { e.asked(); e.write(message('W', 0, 0, 0)); e.silence() },
		"notifies":                func(e *evil) { e.asked(); e.again(message('A', []byte("\x00\x00\x00\x01c\x00p\x00")...)) },
		"answers function calls":  func(e *evil) { e.asked(); e.again(message('V', 0xff, 0xff, 0xff, 0xff)) },
		"authenticates again":     func(e *evil) { e.asked(); e.again(auth(3, "")) },
		"ends statements forever": func(e *evil) { e.asked(); e.again(message('C', []byte("SELECT 1\x00")...)) },
		"parses forever":          func(e *evil) { e.asked(); e.again(message('1')) },
		"notices forever": func(e *evil) {
			e.asked()
			e.again(message('N', []byte("SNOTICE\x00C00000\x00M"+evilEcho+"\x00\x00")...))
		},
		"fails forever": func(e *evil) { e.asked(); e.again(errorMessage("ERROR", "42P01", evilPassword+evilEcho, evilEcho)) },
		"changes parameters forever": func(e *evil) {
			e.asked()
			e.forever(func(i int) []byte { return parameter(fmt.Sprint("p", i), long[:1000]) })
		},
		"fails and quotes": func(e *evil) {
			e.asked()
			e.write(concat(errorMessage("ERROR", "42P01", evilPassword+evilEcho, evilPassword), ready))
			e.silence()
		},
		"fails with a strange code": func(e *evil) {
			e.asked()
			e.write(concat(errorMessage("ERROR", evilEcho, evilEcho, "UPPER "+evilEcho), ready))
			e.silence()
		},
		"ends us and quotes":           func(e *evil) { e.asked(); e.write(errorMessage("FATAL", "57P01", evilPassword+evilEcho, evilPassword)) },
		"is ready without an answer":   func(e *evil) { e.asked(); e.again(ready) },
		"stays in a transaction":       func(e *evil) { e.asked(); e.write(message('Z', 'T')); e.silence() },
		"is in no state that there is": func(e *evil) { e.asked(); e.write(message('Z', '?')); e.silence() },
		"answers with noise when asked": func(e *evil) {
			e.asked()
			e.write(noise)
			e.silence()
		},
		"floods and reads nothing": func(e *evil) {
			e.signIn()
			e.again(message('N', []byte("SNOTICE\x00C00000\x00M"+long[:30000]+"\x00\x00")...))
		},
	}
}

// drip sends bytes one by one, slowly.
func drip(e *evil, b []byte) {
	for i := 0; ; i++ {
		e.write(b[i%len(b):][:1])
		time.Sleep(20 * time.Millisecond) // the slowness is what this server does
	}
}

// mustNotAnswer complains about a client that sends anything.
func mustNotAnswer(e *evil) {
	if b, _ := io.ReadAll(e.Conn); len(b) > 0 {
		e.t.Errorf("the client answered with %d bytes", len(b))
	}
}

// memory watches how far the heap grows over what it was. What is only garbage does not count, as long as that is not more
// than what may be kept: on a busy machine the collector is late.
type memory struct {
	base uint64
	peak atomic.Uint64
	stop chan struct{}
	done chan struct{}
}

func watchMemory() *memory {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	m := &memory{base: s.HeapAlloc, stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(m.done)
		for {
			runtime.ReadMemStats(&s)
			if grown := int64(s.HeapAlloc) - int64(m.base); grown > megabytes && grown < 2*megabytes {
				runtime.GC()
				runtime.ReadMemStats(&s)
			}
			m.peak.Store(max(m.peak.Load(), s.HeapAlloc))
			select {
			case <-m.stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	return m
}

// growth is the largest growth so far, in bytes.
func (m *memory) growth() int64 {
	close(m.stop)
	<-m.done
	return int64(m.peak.Load()) - int64(m.base)
}

const megabytes = 16 << 20

func TestHostileServers(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(5)) // what is garbage must not look like growth
	list := dialogues()
	if len(list) < 30 {
		t.Errorf("only %d dialogues", len(list))
	}
	id := ident.New[ident.DatabaseID]()
	for name, dialogue := range list {
		t.Run(name, func(t *testing.T) {
			leavesNothing(t)
			port, _ := serve(t, dialogue)
			x := openExternals(t, func(o *ExternalOptions) { o.ConnectTimeout = 300 * time.Millisecond })
			x.hasty.silence, x.hasty.total, x.whole = 200*time.Millisecond, 500*time.Millisecond, 700*time.Millisecond
			a := tenant.Address{Host: "127.0.0.1", Port: port, Database: "d", Username: "u", TLS: tenant.TLSDisable}
			for _, use := range []struct {
				name string
				do   func(ctx context.Context) error
			}{
				{"probe", func(ctx context.Context) error {
					r, err := x.Probe(ctx, id, a, evilPassword)
					if err == nil && (r.OK || len(r.Problems) == 0) {
						t.Errorf("the test finds it good: %+v", r)
					}
					if text := fmt.Sprintf("%+v", r); strings.Contains(text, "canary") {
						t.Errorf("the report quotes: %s", text)
					}
					return err
				}},
				{"read", func(ctx context.Context) error {
					db := x.Open(id, a, evilPassword)
					defer func() { _ = db.Close() }()
					var kept []string
					err := db.Read(ctx, func(b *Batch) {
						kept = nil
						b.Query(func(s Scanner) error {
							var one string
							if err := s.Scan(&one); err != nil {
								return err
							}
							var n int64
							if strings.Contains(name, "numbers") || strings.Contains(name, "truths") || strings.Contains(name, "bytes") {
								return s.Scan(&n)
							}
							kept = append(kept, one)
							return nil
						}, `SELECT id FROM projects`)
					})
					if err == nil {
						t.Errorf("it was read from: %q", kept)
					}
					return err
				}},
				{"write", func(ctx context.Context) error {
					db := x.Open(id, a, evilPassword)
					defer func() { _ = db.Close() }()
					err := db.Write(ctx, func(tx *Tx) error {
						if err := tx.Run(func(b *Batch) { b.Exec(`SELECT 1`) }); err != nil {
							return err
						}
						return tx.Commit(func(b *Batch) { b.Exec(`SELECT ?`, strings.Repeat("y", 4<<20)) })
					})
					if err == nil {
						t.Error("it was written to")
					}
					return err
				}},
				{"provision", func(ctx context.Context) error { return x.Provision(ctx, id, a, evilPassword) }},
				{"destroy", func(ctx context.Context) error { return x.Destroy(ctx, id, a, evilPassword) }},
			} {
				m := watchMemory()
				ended := make(chan error, 1)
				go func() { ended <- use.do(t.Context()) }()
				select {
				case err := <-ended:
					judgeEvil(t, use.name, err)
				case <-time.After(time.Minute):
					t.Fatalf("%s does not end", use.name)
				}
				if grown := m.growth(); grown > megabytes {
					t.Errorf("%s takes %d KiB", use.name, grown>>10)
				}
			}
			if open, idle := x.Connections(); open != 0 || idle != 0 {
				t.Errorf("%d connections stay open, %d idle", open, idle)
			}
		})
	}
}

// leavesNothing fails the test when goroutines that it began are there after its end. Those that are about to go may take their
// time on a busy machine.
func leavesNothing(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		err := goleak.Find(before)
		for late := time.Now().Add(time.Minute); err != nil && time.Now().Before(late); {
			err = goleak.Find(before)
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// judgeEvil looks at the error of what was tried on a hostile server.
func judgeEvil(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil && (what == "probe" || what == "destroy") {
		return
	}
	f, _ := errors.AsType[*fault.Error](err)
	if f == nil || f.Class != fault.Unavailable || f.Message == "" || f.Code == "" {
		t.Errorf("%s: %v", what, err)
		return
	}
	if strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("%s: the error quotes: %v", what, err)
	}
}

// Without the guard the same servers do harm: these are the controls of the test above.
func TestHostileServersHarmThePlainDriver(t *testing.T) {
	plain := func(port uint16) *pgconn.Config {
		c, err := pgconn.ParseConfig(fmt.Sprintf("postgres://u:%s@127.0.0.1:%d/d?sslmode=disable", evilPassword, port))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	t.Run("memory", func(t *testing.T) {
		defer debug.SetGCPercent(debug.SetGCPercent(5))
		port, _ := serve(t, func(e *evil) { e.asked(); e.write(head('D', 64<<20)); e.silence() })
		m := watchMemory()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		conn, err := pgconn.ConnectConfig(ctx, plain(port))
		if err != nil {
			t.Fatal(err)
		}
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			_, _ = conn.Exec(ctx, "SELECT 1").ReadAll()
		}()
		for late := time.Now().Add(time.Minute); m.peak.Load() <= m.base+megabytes && time.Now().Before(late); {
			time.Sleep(time.Millisecond)
		}
		cancel()
		<-asked
		_ = conn.Close(ctx)
		if grown := m.growth(); grown <= megabytes {
			t.Errorf("it took only %d KiB: the measure does not work", grown>>10)
		}
	})
	t.Run("password", func(t *testing.T) {
		got := make(chan string, 1)
		port, _ := serve(t, func(e *evil) { e.hello(); e.write(auth(3, "")); got <- e.sasl() })
		_, _ = pgconn.ConnectConfig(t.Context(), plain(port))
		if !strings.Contains(<-got, evilPassword) {
			t.Error("the driver did not send the password")
		}
	})
}

// Rounds up to the limit are accepted, or a server with a careful owner could not be used.
func TestManyRoundsOfScram(t *testing.T) {
	port, _ := serve(t, func(e *evil) {
		e.hello()
		e.scram(fmt.Sprint(maxRounds), nil)
		e.write(signedIn)
		e.question()
		e.silence()
	})
	x := openExternals(t, nil)
	x.hasty.silence = 50 * time.Millisecond
	a := tenant.Address{Host: "127.0.0.1", Port: port, Database: "d", Username: "u", TLS: tenant.TLSDisable}
	r, err := x.Probe(t.Context(), "", a, seal.Secret(evilPassword))
	if err != nil || !r.Reachable {
		t.Errorf("%+v %v", r, err)
	}
}
