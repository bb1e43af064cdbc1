package httpapi

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// socketPath is where WebSockets are opened.
const socketPath = "/ws"

// Live takes over connections that become WebSockets; package live does.
type Live interface {
	// Accept upgrades a request whose handshake and origin were checked. Who is nil for somebody who signs in with the
	// first frame. An error says why there is no connection: nothing has been written then.
	Accept(w http.ResponseWriter, r *http.Request, who *account.Identity, from account.Origin) error
	// Watch looks after a stream of a tenant's events as it does after a socket: over is closed when the session ends, the token expires, or the
	// subject, unless that is empty, may not be seen any more. Leave is called when the stream ends. It is Throttled when the
	// account has too many.
	Watch(who account.Identity, in ident.TenantID, subject string) (over <-chan struct{}, leave func(), err error)
}

type ticketAnswer struct {
	Body struct {
		Ticket    string `json:"ticket" doc:"Opens one WebSocket, once: /ws?ticket=…"`
		ExpiresIn int64  `json:"expires_in" doc:"Seconds until it is useless" example:"30"`
	} `nameHint:"Ticket"`
}

func (s *Server) createTicket(x *exchange, _ *probe) (*ticketAnswer, error) {
	t, err := s.deps.Accounts.Ticket(x.actor, x.expires)
	if err != nil {
		return nil, err
	}
	out := &ticketAnswer{}
	out.Body.Ticket, out.Body.ExpiresIn = string(t), int64(account.TicketLife.Seconds())
	return out, nil
}

type socketOpen struct {
	Call
	Ticket string `query:"ticket" maxLength:"4096" doc:"From POST /api/v1/auth/ws-ticket"`
	Token  string `query:"token" maxLength:"8192" doc:"An access token, where the server takes them in addresses (WS_QUERY_TOKEN)"`
}

// openSocket lets a WebSocket in: by ticket, by token where that is allowed, or to sign in with its first frame. Cookies
// open nothing here: a browser sends them for any page.
func (s *Server) openSocket(x *exchange, in *socketOpen) (*written, error) {
	if s.draining.Load() { // before a ticket is spent
		return nil, fault.New(fault.Unavailable, "httpapi.openSocket", codeStopping, "the server is stopping: connect again in a moment").
			RetryAfter(time.Second)
	}
	if !s.socketOrigin(x.r) {
		return nil, fault.New(fault.Forbidden, "httpapi.openSocket", codeCrossOrigin, "this origin may not open WebSockets here")
	}
	who, err := s.socketVisitor(x, in)
	if err != nil {
		return nil, err
	}
	if err := s.handshake(x); err != nil {
		if who == nil {
			err = fault.New(fault.Unauthenticated, "httpapi.openSocket", codeUnsigned, "open a WebSocket here, with a ticket")
		}
		return nil, err
	}
	return &written{Body: func(hc huma.Context) {
		x := hc.(*exchange)
		// Past the layer that compresses: it holds heads back.
		if err := s.deps.Live.Accept(recorderOf(x.w), x.r, who, x.origin()); err != nil {
			s.answerTo(x, err).write(x.w)
		}
	}}, nil
}

// socketVisitor says who a ticket or token stands for; nil when there is neither.
func (s *Server) socketVisitor(x *exchange, in *socketOpen) (*account.Identity, error) {
	const op = "httpapi.openSocket"
	q := x.r.URL.Query()
	var who account.Identity
	var err error
	switch {
	case len(q["ticket"])+len(q["token"]) > 1:
		return nil, fault.BadInput(op, "query", "give one ticket or one token")
	case q.Has("ticket"):
		who, err = s.deps.Accounts.Redeem(x.ctx, account.Ticket(in.Ticket), x.origin())
	case q.Has("token") && !s.cfg.QueryToken:
		return nil, fault.New(fault.Unauthenticated, op, "query_token_refused",
			"this server takes no tokens in addresses: use a ticket, or send auth as the first frame")
	case q.Has("token"):
		who, err = s.deps.Accounts.Verify(x.ctx, account.AccessToken(in.Token), x.origin())
	default:
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !s.now().Before(who.ExpiresAt) {
		return nil, fault.New(fault.Unauthenticated, op, codeTokenInvalid, "the access token has expired: refresh it")
	}
	return &who, nil
}

// socketOrigin reports whether the page, if there is one, is the server's own or one of those that are allowed.
func (s *Server) socketOrigin(r *http.Request) bool {
	origins := r.Header.Values("Origin")
	if len(origins) == 0 {
		return true // no browser; what opens the socket is no ambient credential
	}
	if len(origins) > 1 {
		return false
	}
	if slices.Contains(s.cfg.AllowedOrigins, origins[0]) {
		return true
	}
	u, err := url.Parse(origins[0])
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && strings.EqualFold(u.Host, r.Host) &&
		u.Path == "" && u.User == nil && u.RawQuery == "" && u.Fragment == ""
}

// handshake returns why a request is no proper WebSocket handshake, or nil.
func (s *Server) handshake(x *exchange) error {
	r := x.r
	if r.Method != http.MethodGet || !r.ProtoAtLeast(1, 1) || r.ProtoMajor != 1 || !hasToken(r.Header["Connection"], "upgrade") || !hasToken(r.Header["Upgrade"], "websocket") {
		p := newProblem(http.StatusUpgradeRequired, "upgrade_required", "this address takes WebSocket handshakes only", x.requestID)
		p.headers.Set("Upgrade", "websocket")
		p.headers.Set("Connection", "Upgrade")
		return p
	}
	keys := r.Header.Values("Sec-WebSocket-Key")
	if r.Header.Get("Sec-WebSocket-Version") == "13" && len(keys) == 1 {
		if key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(keys[0])); err == nil && len(key) == 16 {
			return nil
		}
	}
	x.w.Header().Set("Sec-WebSocket-Version", "13")
	return fault.BadInput("httpapi.handshake", "header.Sec-WebSocket-Key", "must be a handshake of version 13 (RFC 6455)")
}

func hasToken(values []string, want string) bool {
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(part), want) {
				return true
			}
		}
	}
	return false
}

func socketRows() []operation {
	return []operation{
		row(tagAuth, "create-ws-ticket", "POST", "/auth/ws-ticket", "Get a ticket for a WebSocket", on((*Server).createTicket)).
			with(func(o *operation) {
				o.Body, o.secret = NoBody, true
				o.description = "It works once, within 30 seconds, on any server of the installation. The WebSocket ends when the " +
					"access token does that asked for the ticket, unless it renews itself with an `auth` frame."
			}),
		row(tagLive, "websocket", "GET", "", "Open a WebSocket", on((*Server).openSocket)).with(func(o *operation) {
			o.Path, o.Access, o.waits, o.secret, o.status = socketPath, Public, true, true, http.StatusSwitchingProtocols
			o.description = socketHelp
			o.answers = map[string]*huma.Response{"101": {Description: "The connection is a WebSocket now"}}
			refuses(http.StatusUnauthorized, http.StatusForbidden, http.StatusUpgradeRequired)(o)
		}),
	}
}

const socketHelp = "With `?ticket=…`, or `?token=…` where the server allows it, or with neither: then the first frame must be `auth` " +
	"within 5 seconds. From a page, its origin must be the server's own or an allowed one.\n\n" +
	"Frames are JSON texts `{type, data, id?}`; the `id` of a request is echoed in its reply. A room is a conversation or a project.\n\n" +
	"| Client sends | Data | Reply |\n|---|---|---|\n" +
	"| `auth` | `token` | `connected` |\n" +
	"| `join_room` | `room_id`, `after_seq?` | `room_joined`, then what was missed, or `resync` |\n" +
	"| `leave_room` | `room_id` | `room_left` |\n" +
	"| `typing` | `room_id`, `is_typing` | `ack`, if it has an `id`; for those who may say something there |\n" +
	"| `send_message` | `room_id`, `content`, and what else REST takes; `idempotency_key?` | `message.accepted`, once it is stored |\n" +
	"| `stop_turn` | `turn_id`, `room_id?` | `turn` |\n" +
	"| `ping` | | `pong` |\n\n" +
	"| Server sends | Data |\n|---|---|\n" +
	"| `connected` | `user_id`, `name`, `session_id`, `expires_at` |\n" +
	"| `room_joined` | `room_id`, `members` `[{user_id, name}]`, `seq`: everything after it follows |\n" +
	"| `room_left` | `room_id`, `reason`: `left`, `deleted`, `no_access` or a code |\n" +
	"| `event` | an event of the log, with its `seq` and `room_id` |\n" +
	"| `message.delta` | `room_id`, `turn_id`, `message_id`, `offset`, `text`: what the answer has from there on |\n" +
	"| `presence` | `room_id`, `user_id`, `name`, `state`: `online` or `offline` |\n" +
	"| `typing` | `room_id`, `user_id`, `name`, `is_typing` |\n" +
	"| `resync` | `room_id`, `seq`: read the room again, then go on from there |\n" +
	"| `job` | a job as `GET /jobs/{id}` answers it |\n" +
	"| `error` | `code`, `detail`, `errors?`, `retry_after?`; with `reconnect` it is the last frame |\n\n" +
	"Close codes from 4400 to 4499 ask the client to change something before it comes back; from 4500 to 4599 it should come back " +
	"after a moment, and join with `after_seq`.\n\n" +
	"| Code | Why |\n|---|---|\n" +
	"| 4400 | a frame was no JSON object, nested too deeply, or not UTF-8 |\n" +
	"| 4401 | not signed in, signed out, or the token has expired: come back with a fresh one |\n" +
	"| 4413 | a frame over 64 KiB: send long messages by HTTP |\n" +
	"| 4415 | a binary frame |\n" +
	"| 4429 | too many frames, or too many connections of the account |\n" +
	"| 4500 | a defect of the server's |\n" +
	"| 4503 | the server is stopping |\n" +
	"| 4504 | pings were not answered |\n" +
	"| 4508 | what was sent was not read in time |"
