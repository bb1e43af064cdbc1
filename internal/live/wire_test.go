package live

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// given hands out a connection that a request came by.
type given struct {
	http.ResponseWriter
	c net.Conn
}

func (g given) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return g.c, bufio.NewReadWriter(bufio.NewReader(g.c), bufio.NewWriter(g.c)), nil
}

// The library's answer to a close frame does not get into the middle of a frame that found room for its beginning only.
func TestNothingComesBetweenTheHalvesOfAFrame(t *testing.T) {
	door, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = door.Close() }()
	client, err := net.Dial("tcp", door.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	server, err := door.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	taken := &taker{ResponseWriter: given{c: server}, size: 4 << 10}
	if _, _, err := taken.Hijack(); err != nil {
		t.Fatal(err)
	}
	w := taken.wire
	frame := framed(opText, append(make([]byte, headSize), bytes.Repeat([]byte("text"), 4<<20)...))
	n := w.try(frame)
	if n == 0 || n == len(frame) {
		t.Fatalf("%d bytes of %d found room", n, len(frame))
	}
	answer := control(opClose, []byte{3, 232})
	written := make(chan error, 1)
	go func() {
		m, err := w.Write(answer)
		if err == nil && m != len(answer) {
			err = io.ErrShortWrite
		}
		_ = server.Close()
		written <- err
	}()
	got, err := io.ReadAll(client)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got, append(frame, answer...)) {
		t.Errorf("%d bytes, which are not the %d of the frame and the %d of the answer", len(got), len(frame), len(answer))
	}
	if _, err := w.write(frame[n:], time.Now().Add(time.Minute), false); err == nil {
		t.Error("something follows the close frame")
	}
}
