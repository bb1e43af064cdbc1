package natsbus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"unicode/utf8"

	"claude-memory-backend/internal/event"
)

// sealPurpose is what signals are sealed for.
const sealPurpose = "signals between nodes"

// wire is a signal on its way. The subject says which topic it is about.
type wire struct {
	From string `json:"from"` // the node that sent it
	event.Signal
}

// subject names a topic in NATS. Ids stand there as they are; what means something to NATS, or is not plain, by its hash.
func (b *Bus) subject(topic string) string {
	plain := topic != "" && len(topic) <= 200
	for i := range len(topic) {
		c := topic[i]
		plain = plain && (c == '_' || c == ':' || c == '-' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z')
	}
	if !plain {
		sum := sha256.Sum256([]byte(topic))
		topic = "#" + hex.EncodeToString(sum[:])
	}
	return b.prefix + ".topic." + topic
}

// everything is the subject of what concerns all topics.
func (b *Bus) everything() string { return b.prefix + ".all" }

// encode makes the message of a signal.
func (b *Bus) encode(subject string, s event.Signal) ([]byte, error) {
	s.Topic = ""
	raw, err := json.Marshal(wire{b.name, s})
	if err != nil {
		return nil, err
	}
	return b.keys.Seal(sealPurpose, raw, []byte(subject)), nil
}

// hear takes a message from another node.
func (b *Bus) hear(subject string, data []byte) {
	raw, err := b.keys.Open(sealPurpose, data, []byte(subject))
	var w wire
	if err == nil {
		err = json.Unmarshal(raw, &w)
	}
	b.mu.Lock()
	topic, known := b.topics[subject]
	if err != nil {
		b.status.Refused++
	} else if w.From != b.name {
		b.status.Received++
	}
	b.mu.Unlock()
	switch {
	case err != nil || w.From == b.name: // subscribers here have it
	case subject == b.everything():
		b.local.MissAll()
	case !known: // nobody listens any more
	case w.Kind == event.Missed:
		b.local.Miss(topic)
	default:
		w.Topic = topic
		b.local.Publish(context.Background(), w.Signal)
	}
}

// pieceSize is how many bytes of text one message carries: JSON may make six of each, and NATS takes a megabyte unless it
// was told otherwise.
const pieceSize = 8 << 10

// pieces splits the text of a long delta.
func pieces(s event.Signal, size int) (out []event.Signal) {
	if s.Kind != event.Delta {
		return []event.Signal{s}
	}
	for len(s.Text) > size {
		cut := size
		for cut > 0 && !utf8.RuneStart(s.Text[cut]) {
			cut--
		}
		if cut == 0 {
			break // not text: it goes as it is, or not at all
		}
		part := s
		part.Text = s.Text[:cut]
		out = append(out, part)
		for _, r := range part.Text {
			s.Offset++
			if r > 0xFFFF {
				s.Offset++
			}
		}
		s.Text = s.Text[cut:]
	}
	return append(out, s)
}
