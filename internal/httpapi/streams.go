package httpapi

import (
	"context"
	"errors"
	"sync"
)

// errStopping is why a request that waits for a model is given up when the server stops.
var errStopping = errors.New("the server is stopping")

// streams counts the streams that are open: http.Server.Shutdown waits for connections but cannot end a stream.
type streams struct {
	ended    context.Context // done when streams must end now
	end      context.CancelFunc
	draining context.Context // done when streams must end that would not end by themselves
	drain    context.CancelFunc
	mu       sync.Mutex
	open     int
}

func newStreams() *streams {
	s := &streams{}
	s.ended, s.end = context.WithCancel(context.Background())
	s.draining, s.drain = context.WithCancel(s.ended)
	return s
}

// enter registers a stream until the returned function is called.
func (s *streams) enter() (leave func()) {
	s.mu.Lock()
	s.open++
	s.mu.Unlock()
	return sync.OnceFunc(func() {
		s.mu.Lock()
		s.open--
		s.mu.Unlock()
	})
}

// count is the number of open streams.
func (s *streams) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}
