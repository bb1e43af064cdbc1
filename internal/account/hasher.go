package account

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"

	"claude-memory-backend/internal/fault"
)

// HasherConfig sizes the hasher. Zero values mean the defaults, which follow OWASP's password storage advice.
type HasherConfig struct {
	Workers  int           // hashes at once; default 2, and on small machines one core less than there are
	Queue    int           // callers that may wait; default 32
	Patience time.Duration // how long they wait; default 2 s
	Memory   uint32        // KiB per hash; default 19 MiB
	Passes   uint32        // default 2
}

// Hasher hashes passwords with argon2id in a pool of its own, so that sign-ins cannot starve everything else.
type Hasher struct {
	c       HasherConfig
	waiting chan struct{} // places for callers, waiting or working
	working chan struct{}
	done    atomic.Int64
}

// NewHasher returns a hasher.
func NewHasher(c HasherConfig) *Hasher {
	if c.Workers <= 0 {
		// Two do eighty sign-ins a second in 38 MiB: a flood of them must cost neither the machine's cores nor its memory.
		c.Workers = min(2, max(1, runtime.GOMAXPROCS(0)-1))
	}
	if c.Queue <= 0 {
		c.Queue = 32
	}
	if c.Patience <= 0 {
		c.Patience = 2 * time.Second
	}
	if c.Memory == 0 {
		c.Memory = 19 << 10
	}
	if c.Passes == 0 {
		c.Passes = 2
	}
	return &Hasher{c: c, waiting: make(chan struct{}, c.Queue+c.Workers), working: make(chan struct{}, c.Workers)}
}

const (
	saltLen = 16
	hashLen = 32

	// What a stored form may ask for: a damaged one must not take the machine.
	memoryMax = 1 << 20 // KiB
	passesMax = 100
)

// Hash makes the stored form of a password. It is Unavailable ("hashing_busy") when too many callers wait.
func (h *Hasher) Hash(ctx context.Context, password string) (string, error) {
	var out string
	err := h.work(ctx, func() {
		salt := make([]byte, saltLen)
		_, _ = rand.Read(salt) // never fails
		sum := argon2.IDKey([]byte(prepared(password)), salt, h.c.Passes, h.c.Memory, 1, hashLen)
		out = fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=1$%s$%s", argon2.Version, h.c.Memory, h.c.Passes,
			base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(sum))
	})
	return out, err
}

// Verify compares a password with a stored form. An empty form costs the same work and never matches: who signs in
// as nobody learns nothing from the time it takes. again is true when the form was made with other costs than today's.
func (h *Hasher) Verify(ctx context.Context, stored, password string) (ok, again bool, err error) {
	memory, passes := h.c.Memory, h.c.Passes
	salt, want := make([]byte, saltLen), []byte(nil)
	if stored != "" {
		if memory, passes, salt, want, err = parseHash(stored); err != nil {
			return false, false, err
		}
	}
	err = h.work(ctx, func() {
		got := argon2.IDKey([]byte(prepared(password)), salt, passes, memory, 1, hashLen)
		ok = want != nil && subtle.ConstantTimeCompare(got, want) == 1
	})
	return ok, memory != h.c.Memory || passes != h.c.Passes, err
}

func (h *Hasher) work(ctx context.Context, do func()) error {
	busy := fault.New(fault.Unavailable, "account.Hasher", "hashing_busy", "too many people are signing in: try again in a moment").
		RetryAfter(2 * time.Second)
	select {
	case h.waiting <- struct{}{}:
		defer func() { <-h.waiting }()
	default:
		return busy
	}
	t := time.NewTimer(h.c.Patience)
	defer t.Stop()
	select {
	case h.working <- struct{}{}:
		defer func() { <-h.working }()
	case <-t.C:
		return busy
	case <-ctx.Done():
		return fault.New(fault.Canceled, "account.Hasher", "", "the request ended").With(ctx.Err())
	}
	h.done.Add(1)
	do()
	return nil
}

// Done is how many passwords were hashed, for tests and metrics.
func (h *Hasher) Done() int64 { return h.done.Load() }

func parseHash(stored string) (memory, passes uint32, salt, sum []byte, err error) {
	bad := fault.New(fault.Internal, "account.Hasher", "", "a stored password cannot be read")
	parts := strings.Split(stored, "$")
	if len(parts) != 6 || parts[1] != "argon2id" || parts[2] != "v=19" {
		return 0, 0, nil, nil, bad
	}
	var lanes uint8
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &passes, &lanes); err != nil || lanes != 1 ||
		memory < 8 || memory > memoryMax || passes < 1 || passes > passesMax {
		return 0, 0, nil, nil, bad
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(parts[4])
	sum, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	if err1 != nil || err2 != nil || len(sum) != hashLen {
		return 0, 0, nil, nil, bad
	}
	return memory, passes, salt, sum, nil
}
