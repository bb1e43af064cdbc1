package httpapi

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
)

// Words is how REST reads and writes what the WebSocket shows, too (live.Words): the two do not differ.
type Words struct {
	OnceSecret []byte // as Config has it: a message that is repeated through the other door is the same message
	Now        func() time.Time
}

// Check refuses JSON that two readers would read differently, and what is nested too deeply.
func (Words) Check(raw []byte) error {
	_, err := scan(raw, false)
	return err
}

// saidBody is a message as a frame has it.
type saidBody struct {
	RoomID string `json:"room_id"`
	Key    string `json:"idempotency_key"`
	sendBody
}

// Send reads what a client says, and in which conversation.
func (w Words) Send(actor ident.Actor, raw json.RawMessage) (ident.ConversationID, conversation.SendInput, error) {
	const op = "httpapi.Send"
	var b saidBody
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if len(raw) == 0 || d.Decode(&b) != nil {
		return "", conversation.SendInput{}, fault.BadInput(op, "data", "must be an object with room_id, content, and what else REST takes")
	}
	id, err := ident.Parse[ident.ConversationID](b.RoomID)
	if err != nil {
		return "", conversation.SendInput{}, err
	}
	in, err := b.input(op)
	if err != nil || b.Key == "" {
		return id, in, err
	}
	if !onceKey(b.Key) {
		return id, in, fault.BadInput(op, "data.idempotency_key", "must be a key of 1 to 255 printable ASCII characters")
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return id, in, fault.Wrap(op, err)
	}
	delete(fields, "room_id")
	delete(fields, "idempotency_key")
	rest, err := json.Marshal(fields)
	if err != nil {
		return id, in, fault.Wrap(op, err)
	}
	in.Once, err = once(w.OnceSecret, string(actor.Account), "send-message", basePath+"/conversations/"+string(id)+"/messages", b.Key, rest, w.Now())
	return id, in, err
}

// Exchange is a turn with its messages.
func (Words) Exchange(x conversation.Exchange) any { return viewExchange(x) }

// Turn is a turn alone.
func (Words) Turn(t conversation.Turn) any { return viewTurn(t) }

// Job is a job.
func (Words) Job(j job.Job) any { return viewJob(j) }

// Event is an event of the log, in a room.
func (Words) Event(e event.Event, room string) any {
	return struct {
		RoomID string `json:"room_id"`
		eventView
	}{room, viewEvent(e)}
}

// onceKey reports whether a key may name a request.
func onceKey(key string) bool {
	ok := key != "" && len(key) <= event.MaxOnceKey
	for _, c := range []byte(key) {
		ok = ok && c >= 0x20 && c <= 0x7e
	}
	return ok
}

// once makes an idempotency record of a request. The fingerprint is keyed: bodies are private, and a plain hash of a short
// one could be guessed.
func once(secret []byte, owner, op, path, key string, raw []byte, now time.Time) (*event.Once, error) {
	body, err := canonical(raw)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, secret)
	for _, part := range [][]byte{[]byte(op), []byte(path), body} {
		mac.Write(part)
		mac.Write([]byte{0})
	}
	return &event.Once{Scope: owner + " " + op, Key: key, Fingerprint: mac.Sum(nil), ExpiresAt: now.UTC().Add(event.OnceLife)}, nil
}
