package httpapi

import (
	"net/http"
	"time"
)

// recorder is the outermost response writer: it notes what the access log and the metrics tell of an answer.
type recorder struct {
	http.ResponseWriter
	requestID string
	client    client
	route     string // the operation's template; empty until the router found one
	status    int
	bytes     int64
	started   time.Time
	refuse    func() // runs before the header of an answer that refuses; nil: nothing does
}

// WriteHeader notes the status.
func (c *recorder) WriteHeader(status int) {
	if c.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		c.status = status
		if status >= 400 && c.refuse != nil {
			c.refuse()
		}
	}
	c.ResponseWriter.WriteHeader(status)
}

// Write notes the size.
func (c *recorder) Write(b []byte) (int, error) {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	n, err := c.ResponseWriter.Write(b)
	c.bytes += int64(n)
	return n, err
}

// Flush passes on, for writers that ask for it by type.
func (c *recorder) Flush() {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	_ = http.NewResponseController(c.ResponseWriter).Flush() // an in-memory recorder may not flush
}

// Unwrap lets http.ResponseController reach the connection.
func (c *recorder) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// recorderOf finds the recorder beneath whatever wraps it.
func recorderOf(w http.ResponseWriter) *recorder {
	for {
		switch v := w.(type) {
		case *recorder:
			return v
		case interface{ Unwrap() http.ResponseWriter }:
			w = v.Unwrap()
		default:
			// Only reached when an operation is mounted outside the server's own handler.
			return &recorder{ResponseWriter: w}
		}
	}
}
