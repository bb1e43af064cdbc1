package event

import (
	"context"
	"crypto/subtle"
	"encoding/json"

	"claude-memory-backend/internal/fault"
)

// Sealer keeps what an idempotency record holds from whoever reads the database.
type Sealer interface {
	Seal(purpose string, plaintext, aad []byte) []byte
	Open(purpose string, sealed, aad []byte) ([]byte, error)
}

const oncePurpose = "idempotency"

// Keep seals the result that a repeat will be answered with. A nil record keeps nothing.
func (o *Once) Keep(s Sealer, result any) error {
	if o == nil {
		return nil
	}
	raw, err := json.Marshal(result)
	if err != nil {
		return fault.Wrap("event.Once.Keep", err)
	}
	o.Result = s.Seal(oncePurpose, raw, o.aad())
	return nil
}

// Replay reads the record that stood in the way of a change into result. It fails with fault.Mismatch when the
// earlier request had another body.
func (o *Once) Replay(ctx context.Context, onces Onces, s Sealer, result any) error {
	was, err := onces.FindOnce(ctx, o.Scope, o.Key)
	if err != nil {
		return fault.Wrap("event.Once.Replay", err)
	}
	return o.Open(was, s, result)
}

// Open is Replay of a record that was read already.
func (o *Once) Open(was Once, s Sealer, result any) error {
	const op = "event.Once.Open"
	if subtle.ConstantTimeCompare(was.Fingerprint, o.Fingerprint) != 1 {
		return fault.New(fault.Mismatch, op, "", "this idempotency key was used with another request")
	}
	raw, err := s.Open(oncePurpose, was.Result, o.aad())
	if err != nil {
		return fault.Wrap(op, err)
	}
	if err := json.Unmarshal(raw, result); err != nil {
		return fault.Wrap(op, err)
	}
	o.Replayed = true
	return nil
}

func (o *Once) aad() []byte { return []byte(o.Scope + "\x00" + o.Key) }
