package httpapi

import (
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
)

// once makes the idempotency record of a request, or nil when it carries no key.
func (x *exchange) once() (*event.Once, error) { return x.onceOf(string(x.actor.Account)) }

// onceOf is once for whoever the key belongs to.
func (x *exchange) onceOf(owner string) (*event.Once, error) {
	keys := x.r.Header.Values("Idempotency-Key")
	if len(keys) == 0 {
		return nil, nil
	}
	if len(keys) > 1 || !onceKey(keys[0]) {
		return nil, fault.BadInput("httpapi.once", "header.Idempotency-Key", "must be one key of 1 to 255 printable ASCII characters")
	}
	return once(x.s.cfg.OnceSecret, owner, x.op.ID, x.r.URL.Path, keys[0], x.body, x.s.now())
}

// replayed is the header of an answer that is an earlier one.
func replayed(o *event.Once) string {
	if o != nil && o.Replayed {
		return "true"
	}
	return ""
}
