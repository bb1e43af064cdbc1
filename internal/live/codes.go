package live

import "github.com/coder/websocket"

// The close codes. From 4400 to 4499 the client has to change something before it comes back; from 4500 to 4599 it should
// come back as it is, after a moment, and resume with after_seq.
const (
	CloseBadFrame     websocket.StatusCode = 4400 // no JSON object, nested too deeply, or not UTF-8
	CloseSignedOut    websocket.StatusCode = 4401 // never signed in, signed out, revoked, or the token expired
	CloseTooLarge     websocket.StatusCode = 4413 // a frame over the limit
	CloseNotText      websocket.StatusCode = 4415 // a binary frame
	CloseTooMany      websocket.StatusCode = 4429 // too many frames, or too many connections
	CloseInternal     websocket.StatusCode = 4500 // a defect of the server's
	CloseStopping     websocket.StatusCode = 4503 // the server is stopping
	CloseUnresponsive websocket.StatusCode = 4504 // pings were not answered
	CloseSlow         websocket.StatusCode = 4508 // what was sent was not read in time
)

// Reconnect reports whether a client should come back as it is.
func Reconnect(code websocket.StatusCode) bool { return code >= 4500 && code < 4600 }

// ending is why a connection ends.
type ending struct {
	code   websocket.StatusCode
	name   string // stable, snake_case; also the code of the final frame
	detail string // for people
}

var (
	badFrame     = ending{CloseBadFrame, "malformed_frame", "a frame is one JSON object in UTF-8, {type, data, id?}"}
	tooLarge     = ending{CloseTooLarge, "frame_too_large", "the frame is over the limit: send long messages by HTTP"}
	notText      = ending{CloseNotText, "frame_not_text", "frames are text"}
	tooMany      = ending{CloseTooMany, "throttled", "too many frames: slow down"}
	crowded      = ending{CloseTooMany, "too_many_sockets", "too many connections of this account"}
	unsigned     = ending{CloseSignedOut, "unauthenticated", "the first frame must be auth, with a valid access token, within a few seconds"}
	signedOut    = ending{CloseSignedOut, "session_ended", "the session has ended: sign in again"}
	expired      = ending{CloseSignedOut, "token_expired", "the access token has expired: refresh it, and send auth in time"}
	otherAccount = ending{CloseSignedOut, "other_account", "auth renews a connection of the same account: open another one"}
	stopping     = ending{CloseStopping, "server_stopping", "the server is stopping: reconnect, and join with after_seq"}
	unresponsive = ending{CloseUnresponsive, "no_pong", "pings were not answered"}
	slow         = ending{CloseSlow, "slow_reader", "what was sent was not read in time: reconnect, and join with after_seq"}
	broken       = ending{CloseInternal, "internal", "something went wrong on the server"}
	gone         = ending{websocket.StatusNormalClosure, "", ""} // the client has left
)
