package toxic_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/url"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claude-memory-backend/internal/pgtest/toxic"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, toxic.Remains()) }

// echo is a server that gives every line back.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return "postgres://u:p@" + l.Addr().String() + "/db?x=y"
}

type talker struct {
	t *testing.T
	net.Conn
	lines *bufio.Reader
}

func dial(t *testing.T, address string) *talker {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &talker{t, c, bufio.NewReader(c)}
}

// say sends a line and waits for it to come back.
func (c *talker) say() (time.Duration, error) {
	began := time.Now()
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return 0, err
	}
	_, err := c.lines.ReadString('\n')
	return time.Since(began), err
}

func TestSlow(t *testing.T) {
	const added = 80 * time.Millisecond
	address, link := toxic.Slow(t, echo(t), added)
	if u, err := url.Parse(address); err != nil || u.User.String() != "u:p" || u.Path != "/db" || u.RawQuery != "x=y" {
		t.Fatal("the rest of the address was not kept:", address)
	}
	c := dial(t, address)
	for range 3 {
		took, err := c.say()
		if err != nil {
			t.Fatal(err)
		}
		if took < added { // less would be no latency; how much more depends on the machine
			t.Errorf("a round trip took %v", took)
		}
	}
	link.Latency(0)
	if _, err := c.say(); err != nil {
		t.Error("the connection did not survive a change of latency:", err)
	}
}

func TestCutAndRestore(t *testing.T) {
	address, link := toxic.Slow(t, echo(t), 0)
	c := dial(t, address)
	if _, err := c.say(); err != nil {
		t.Fatal(err)
	}
	link.Cut()
	if _, err := c.say(); err == nil {
		t.Error("a cut connection answers")
	}
	u, _ := url.Parse(address)
	if _, err := net.Dial("tcp", u.Host); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error("not refused:", err)
	}
	link.Restore()
	if _, err := dial(t, address).say(); err != nil {
		t.Error(err)
	}
}

func TestHangAndRestore(t *testing.T) {
	address, link := toxic.Slow(t, echo(t), 2*time.Millisecond)
	old := dial(t, address)
	if _, err := old.say(); err != nil {
		t.Fatal(err)
	}
	link.Hang()
	for _, c := range []*talker{old, dial(t, address)} {
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := c.say(); !isTimeout(err) {
			t.Error("not silent:", err)
		}
	}
	link.Restore()
	if _, err := dial(t, address).say(); err != nil {
		t.Error(err)
	}
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}
