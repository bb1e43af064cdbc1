package live

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"claude-memory-backend/internal/fault"
)

// frame is what travels, in both directions.
type frame struct {
	Type string          `json:"type"`
	ID   json.RawMessage `json:"id,omitempty"` // of a request, echoed in the reply: a string or a number
	Data json.RawMessage `json:"data,omitempty"`
}

// maxID is how long a frame's id may be, in bytes of JSON.
const maxID = 200

// parse reads a frame. It is ok only for a JSON object with a type; check refuses what two readers would read differently.
func parse(raw []byte, check func([]byte) error) (f frame, ok bool) {
	var fields map[string]json.RawMessage // not a struct, which takes names in any case
	if check(raw) != nil || json.Unmarshal(raw, &fields) != nil || json.Unmarshal(fields["type"], &f.Type) != nil || f.Type == "" {
		return frame{}, false
	}
	f.ID, f.Data = fields["id"], fields["data"]
	if bytes.Equal(f.ID, []byte("null")) {
		f.ID = nil
	}
	if len(f.ID) > maxID || len(f.ID) > 0 && (f.ID[0] == '{' || f.ID[0] == '[' || f.ID[0] == 't' || f.ID[0] == 'f') {
		return frame{}, false
	}
	return f, true
}

// plain reports whether the names in the data are written as all are: the decoder would take them in another case, too, and of
// two that differ in nothing else the last.
func (f frame) plain() bool {
	var fields map[string]json.RawMessage
	_ = json.Unmarshal(f.Data, &fields) // what is no object is refused when it is read
	for name := range fields {
		for _, c := range []byte(name) {
			if c != '_' && (c < 'a' || c > 'z') {
				return false
			}
		}
	}
	return true
}

// read decodes the data of a frame; fields that it does not have are refused.
func (f frame) read(into any) error {
	raw := f.Data
	if len(raw) == 0 {
		raw = []byte("{}")
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		at := "data"
		if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && t.Field != "" {
			at += "." + t.Field
		}
		return fault.BadInput("live.read", at, "must be an object as "+f.Type+" has it, without other fields")
	}
	return nil
}

// encode writes a frame of the server's, as it goes out.
func encode(kind string, id json.RawMessage, data any) []byte {
	var b bytes.Buffer
	b.Write(make([]byte, headSize))
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(struct {
		Type string          `json:"type"`
		ID   json.RawMessage `json:"id,omitempty"`
		Data any             `json:"data"`
	}{kind, id, data})
	if err != nil {
		panic("a frame that cannot be marshalled: " + kind)
	}
	return framed(opText, bytes.TrimSuffix(b.Bytes(), []byte("\n")))
}

// What clients send.
type (
	joinData struct {
		RoomID   string `json:"room_id"`
		AfterSeq *int64 `json:"after_seq"`
	}
	leaveData struct {
		RoomID string `json:"room_id"`
	}
	typingData struct {
		RoomID   string `json:"room_id"`
		IsTyping bool   `json:"is_typing"`
	}
	stopData struct {
		RoomID string `json:"room_id"` // the conversation; may be left out in a room where the turn runs
		TurnID string `json:"turn_id"`
	}
	authData struct {
		Token string `json:"token"`
	}
)

// What clients get.
type (
	// Person is somebody in a room.
	Person struct {
		UserID string `json:"user_id"`
		Name   string `json:"name"`
	}
	connectedData struct {
		Person
		SessionID string    `json:"session_id"`
		ExpiresAt time.Time `json:"expires_at"`
	}
	joinedData struct {
		RoomID  string   `json:"room_id"`
		Members []Person `json:"members"`
		Seq     int64    `json:"seq"`
	}
	leftData struct {
		RoomID string `json:"room_id"`
		Reason string `json:"reason"`
	}
	resyncData struct {
		RoomID string `json:"room_id"`
		Seq    int64  `json:"seq"`
	}
	presenceData struct {
		RoomID string `json:"room_id"`
		Person
		State string `json:"state"`
	}
	typingOut struct {
		RoomID string `json:"room_id"`
		Person
		IsTyping bool `json:"is_typing"`
	}
	deltaData struct {
		RoomID    string `json:"room_id"`
		TurnID    string `json:"turn_id"`
		MessageID string `json:"message_id"`
		Offset    int    `json:"offset"`
		Text      string `json:"text"`
	}
	errorData struct {
		Code       string        `json:"code"`
		Detail     string        `json:"detail"`
		Errors     []fault.Field `json:"errors,omitempty"`
		RetryAfter int           `json:"retry_after,omitempty"` // seconds
		Reconnect  *bool         `json:"reconnect,omitempty"`   // in the final frame: whether to come back as it is
	}
	nothing struct{}
)

// refusal is the error frame that answers a request.
func refusal(id json.RawMessage, err error) []byte {
	data := errorData{Code: fault.CodeOf(err), Detail: "something went wrong on the server"}
	if f, ok := errors.AsType[*fault.Error](err); ok {
		data.Detail, data.Errors = f.Message, f.Fields
		if f.After > 0 {
			data.RetryAfter = max(1, int(f.After.Seconds()+0.999))
		}
	}
	return encode("error", id, data)
}

// last is the frame that tells why a connection ends.
func (e ending) last() []byte {
	again := Reconnect(e.code)
	return encode("error", nil, errorData{Code: e.name, Detail: e.detail, Reconnect: &again})
}

// label is the ending as metrics count it.
func (e ending) label() string { return strconv.Itoa(int(e.code)) }
