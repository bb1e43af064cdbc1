package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// socket is the client's end of a WebSocket, and the least of one: it hands over whole texts and answers pings.
type socket struct {
	net.Conn
	in *bufio.Reader
	mu sync.Mutex // held for writing
}

// What frames are.
const (
	opText  = 1
	opClose = 8
	opPing  = 9
	opPong  = 10
)

const patience = time.Minute // a busy machine takes its time

// dial opens a socket. Sources alternate, so that ports do not run short.
func dial(ctx context.Context, base, path string, n int) (_ *socket, err error) {
	const sources = 8
	host := strings.TrimPrefix(base, "http://")
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+n%sources))}, Timeout: patience}
	c, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = c.Close()
		}
	}()
	s := &socket{Conn: c, in: bufio.NewReader(c)}
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", path, host); err != nil {
		return nil, err
	}
	res, err := http.ReadResponse(s.in, nil)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		defer res.Body.Close()
		raw, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10)) // for the message only
		return nil, fmt.Errorf("no WebSocket: status %d: %s", res.StatusCode, raw)
	}
	return s, nil
}

// join opens a socket, says something unless that is nothing, and reads until it is in a room.
func join(ctx context.Context, base, path, say string, n int) (*socket, error) {
	s, err := dial(ctx, base, path, n)
	if err != nil {
		return nil, err
	}
	if say != "" {
		err = s.send(opText, []byte(say))
	}
	var buf []byte
	for err == nil {
		var op byte
		op, buf, err = s.next(buf)
		switch {
		case err != nil:
		case op == opText && bytes.HasPrefix(buf, []byte(`{"type":"room_joined"`)):
			return s, s.SetDeadline(time.Time{})
		case op == opClose, bytes.HasPrefix(buf, []byte(`{"type":"error"`)):
			err = fmt.Errorf("not joined: %s", buf)
		case op == opPing:
			err = s.send(opPong, buf)
		}
	}
	return nil, errors.Join(err, s.Close())
}

// next reads a frame. What it returns is buf, or in its place something larger.
func (s *socket) next(buf []byte) (op byte, _ []byte, err error) {
	var head [8]byte
	if _, err := io.ReadFull(s.in, head[:2]); err != nil {
		return 0, buf, err
	}
	op = head[0] & 15
	n := int(head[1] & 127)
	switch n {
	case 126:
		_, err = io.ReadFull(s.in, head[:2])
		n = int(binary.BigEndian.Uint16(head[:2]))
	case 127:
		_, err = io.ReadFull(s.in, head[:8])
		n = int(binary.BigEndian.Uint64(head[:8]))
	}
	if err != nil {
		return 0, buf, err
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	_, err = io.ReadFull(s.in, buf)
	return op, buf, err
}

// send writes a frame of less than 64 KiB. The mask is zero, which is one, and costs the driver nothing.
func (s *socket) send(op byte, b []byte) error {
	frame := make([]byte, 0, len(b)+8)
	if len(b) < 126 {
		frame = append(frame, 128|op, 128|byte(len(b)))
	} else {
		frame = append(frame, 128|op, 128|126, byte(len(b)>>8), byte(len(b)))
	}
	frame = append(append(frame, 0, 0, 0, 0), b...)
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.Write(frame)
	return err
}

// listen hands over texts, which it uses again, until the connection ends. It returns the close code; 0 when there was
// none.
func (s *socket) listen(hear func([]byte)) int {
	var buf []byte
	for {
		var op byte
		var err error
		op, buf, err = s.next(buf)
		switch {
		case err != nil:
			return 0
		case op == opText:
			hear(buf)
		case op == opPing:
			_ = s.send(opPong, buf) // the next read shows what is wrong
		case op == opClose:
			_ = s.send(opClose, buf[:min(2, len(buf))]) // the same
			if len(buf) < 2 {
				return 0
			}
			return int(binary.BigEndian.Uint16(buf))
		}
	}
}
