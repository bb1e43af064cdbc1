package account

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Ticket opens one WebSocket, once. It says nothing to whoever finds it in a log: it is sealed, and spent or stale by
// then.
type Ticket string

const (
	// TicketLife is how long a ticket may be used.
	TicketLife = 30 * time.Second

	ticketPrefix  = "cmt_"
	ticketMax     = 1 << 10
	ticketPurpose = "ws ticket"
	// ticketSlack keeps the note that a ticket was used longer than any node's clock can take it for fresh.
	ticketSlack = 5 * time.Minute
)

// ticket is what a Ticket seals. No two are alike: sealing picks a nonce.
type ticket struct {
	Account ident.AccountID `json:"a"`
	Session ident.SessionID `json:"s"`
	Until   int64           `json:"u"` // the ticket's end, in microseconds
	Token   int64           `json:"t"` // the end of the access token that it was bought with
}

// Ticket makes a ticket for the actor's session. What it opens ends when the access token does that bought it.
// Nothing is stored: what has to hold over all nodes is only that a ticket works once (Redeem).
func (s *Service) Ticket(actor ident.Actor, token time.Time) (Ticket, error) {
	raw, err := json.Marshal(ticket{actor.Account, actor.Session, ident.Micros(s.moment().Add(TicketLife)), ident.Micros(token)})
	if err != nil {
		return "", fault.Wrap("account.Ticket", err)
	}
	return Ticket(ticketPrefix + base64.RawURLEncoding.EncodeToString(s.sealer.Seal(ticketPurpose, raw, nil))), nil
}

// Redeem uses a ticket up and says who it stands for. One that is wrong, stale or used is Unauthenticated, all alike.
func (s *Service) Redeem(ctx context.Context, t Ticket, o Origin) (Identity, error) {
	const op = "account.Redeem"
	refused := fault.New(fault.Unauthenticated, op, "ticket_invalid",
		"the ticket is wrong, older than 30 seconds, or was used already: get a new one")
	text, ok := strings.CutPrefix(string(t), ticketPrefix)
	if !ok || len(text) > ticketMax {
		return Identity{}, refused
	}
	// One ticket has many spellings in base64; what is noted is the sealed bytes.
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return Identity{}, refused
	}
	raw, err := s.sealer.Open(ticketPurpose, sealed, nil)
	if err != nil {
		return Identity{}, refused
	}
	var v ticket
	if err := json.Unmarshal(raw, &v); err != nil {
		return Identity{}, refused
	}
	until, token := ident.Time(v.Until), ident.Time(v.Token)
	if !s.moment().Before(until) {
		return Identity{}, refused
	}
	sum := sha256.Sum256(sealed)
	fresh, err := s.store.Spend(ctx, "ws_ticket", sum[:], until.Add(ticketSlack))
	if err != nil {
		return Identity{}, fault.Wrap(op, err)
	}
	if !fresh {
		return Identity{}, refused
	}
	return s.identify(ctx, op, v.Account, v.Session, token, o)
}

// Alive looks the actor's session up anew: it is Unauthenticated when that has ended. It is for doors that hold a
// connection open and hear that something about the account has changed.
func (s *Service) Alive(ctx context.Context, actor ident.Actor) error {
	s.seen.forget(actor.Session)
	_, err := s.identify(ctx, "account.Alive", actor.Account, actor.Session, time.Time{}, Origin{Address: actor.Address})
	return err
}
