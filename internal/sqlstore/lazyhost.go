package sqlstore

import (
	"context"
	"errors"
	"sync"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/seal"
)

const (
	// hostTime bounds one attempt to reach an operator's server and to make it ready.
	hostTime = 10 * time.Second
	// hostWait is how long somebody who needs the server now waits for such an attempt, which goes on without them.
	hostWait = 1500 * time.Millisecond
	// hostPause is how long after a failed attempt nobody makes another.
	hostPause = 2 * time.Second
)

// LazyHost is a PostgresHost that need not be there yet: it is opened when somebody needs it and, as long as that fails,
// now and then again. It is safe for concurrent use.
//
//	unreached ── Connect, Host ──► connecting ──► reached
//	     ▲                             │
//	     └──── refused for a while ◄───┘ failed
type LazyHost struct {
	url     seal.Secret
	options PostgresHostOptions

	mu      sync.Mutex
	host    *PostgresHost
	attempt chan struct{} // closed when the attempt under way has ended; nil: there is none
	err     error         // of the last attempt
	until   time.Time     // before that nobody makes another one

	life context.Context //nolint:containedctx // of the attempt under way, which outlives who asked for it
	kill context.CancelFunc
	wg   sync.WaitGroup
}

// NewLazyHost connects to nothing yet. An address that cannot be used is code "database_url_invalid".
func NewLazyHost(url seal.Secret, o PostgresHostOptions) (*LazyHost, error) {
	if err := CheckURL(url); err != nil {
		return nil, err
	}
	l := &LazyHost{url: url, options: o}
	l.life, l.kill = context.WithCancel(context.Background())
	return l, nil
}

// Connect returns the host, and opens it if that has not been done: errors are OpenPostgresHost's. It waits until the
// attempt has ended, or ctx has.
func (l *LazyHost) Connect(ctx context.Context) (*PostgresHost, error) { return l.wait(ctx, hostTime) }

// Host is Connect for somebody who cannot wait long: a server that does not answer is Unavailable (code
// "database_unreachable") in less than two seconds, and at once for a while after that.
func (l *LazyHost) Host(ctx context.Context) (*PostgresHost, error) { return l.wait(ctx, hostWait) }

func (l *LazyHost) wait(ctx context.Context, patience time.Duration) (*PostgresHost, error) {
	const op = "sqlstore.LazyHost"
	l.mu.Lock()
	if l.host == nil && l.attempt == nil && !time.Now().Before(l.until) && l.life.Err() == nil {
		l.attempt = make(chan struct{})
		l.wg.Go(l.open)
	}
	host, attempt, err := l.host, l.attempt, l.err
	l.mu.Unlock()
	switch {
	case host != nil:
		return host, nil
	case attempt == nil && err == nil: // closed before anybody asked
		return nil, unavailable(op, "shutting_down", "the server is about to stop", nil)
	case attempt == nil:
		return nil, err
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-attempt:
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.host, l.err
	case <-ctx.Done():
		return nil, fault.Wrap(op, gone(ctx, nil))
	case <-timer.C:
		return nil, fault.Wrap(op, unreachable(nil))
	}
}

// open makes one attempt.
func (l *LazyHost) open() {
	ctx, cancel := context.WithTimeout(l.life, hostTime)
	defer cancel()
	host, err := OpenPostgresHost(ctx, l.url, l.options)
	if Unreachable(err) {
		err = unreachable(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.host, l.err = host, err
	if err != nil {
		l.host, l.until = nil, time.Now().Add(hostPause)
	}
	close(l.attempt)
	l.attempt = nil
}

// Close ends an attempt under way and closes the host.
func (l *LazyHost) Close() {
	l.kill()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.host != nil {
		l.host.Close()
	}
}

// Unreachable reports whether an error of Connect means that the server is not there, or takes nobody at the moment:
// another attempt may succeed. Otherwise it was reached, and cannot be used as it is.
func Unreachable(err error) bool {
	if d, ok := errors.AsType[*driverError](err); ok && d.engine == "postgres" {
		if len(d.code) != len("00000") {
			return true // no answer
		}
		switch d.code[:2] {
		case "08", "53", "57":
			return true
		}
		return false
	}
	code := fault.CodeOf(err)
	return code == "timeout" || code == "database_unreachable"
}
