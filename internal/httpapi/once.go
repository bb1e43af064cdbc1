package httpapi

import (
	"crypto/hmac"
	"crypto/sha256"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
)

// once makes the idempotency record of a request, or nil when it carries no key. The fingerprint is keyed: bodies are
// private, and a plain hash of a short one could be guessed.
func (x *exchange) once() (*event.Once, error) { return x.onceOf(string(x.actor.Account)) }

// onceOf is once for whoever the key belongs to.
func (x *exchange) onceOf(owner string) (*event.Once, error) {
	const op = "httpapi.once"
	keys := x.r.Header.Values("Idempotency-Key")
	if len(keys) == 0 {
		return nil, nil
	}
	key := keys[0]
	bad := len(keys) > 1 || key == "" || len(key) > event.MaxOnceKey
	for _, c := range []byte(key) {
		bad = bad || c < 0x20 || c > 0x7e
	}
	if bad {
		return nil, fault.BadInput(op, "header.Idempotency-Key", "must be one key of 1 to 255 printable ASCII characters")
	}
	body, err := canonical(x.body)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, x.s.cfg.OnceSecret)
	for _, part := range [][]byte{[]byte(x.op.ID), []byte(x.r.URL.Path), body} {
		mac.Write(part)
		mac.Write([]byte{0})
	}
	return &event.Once{Scope: owner + " " + x.op.ID, Key: key, Fingerprint: mac.Sum(nil),
		ExpiresAt: x.s.now().UTC().Add(event.OnceLife)}, nil
}

// replayed is the header of an answer that is an earlier one.
func replayed(o *event.Once) string {
	if o != nil && o.Replayed {
		return "true"
	}
	return ""
}
