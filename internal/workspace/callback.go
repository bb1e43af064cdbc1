package workspace

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Callback is what an address stands for at which the answer of a turn may be delivered. All of it is sealed in the address:
// nothing is stored, and every node with the master key can read it (decision 0065).
type Callback struct {
	Tenant       ident.TenantID       `json:"t"`
	Conversation ident.ConversationID `json:"c"`
	Turn         ident.TurnID         `json:"u"`
	Model        string               `json:"m,omitempty"` // that was asked for; empty: the provider's default
	Until        int64                `json:"e"`           // when the turn stops waiting, in microseconds
}

const (
	callbackPrefix  = "cmcb_"
	callbackPurpose = "callback"
	callbackMax     = 2 << 10
	// callbackGrace is how long after that an address is known: who comes late is told so, not that there is nothing.
	callbackGrace = 24 * time.Hour
)

// Known is how long the address is known.
func (c Callback) Known() time.Time { return ident.Time(c.Until).Add(callbackGrace) }

// Callback implements conversation.TenantPart.
func (e *entry) Callback(t conversation.Turn, until time.Time) string {
	p := e.pool
	if p.CallbackURL == "" {
		return ""
	}
	raw, err := json.Marshal(Callback{e.id, t.Conversation, t.ID, t.Model, ident.Micros(until)})
	if err != nil {
		return "" // texts and a number always marshal
	}
	return p.CallbackURL + callbackPrefix + base64.RawURLEncoding.EncodeToString(p.Sealer.Seal(callbackPurpose, raw, nil))
}

// Callback reads the token at the end of an address. One that is forged, or too old, is NotFound.
func (p *Pool) Callback(token string) (Callback, error) {
	const op = "workspace.Callback"
	var c Callback
	text, ok := strings.CutPrefix(token, callbackPrefix)
	if !ok || len(text) > callbackMax {
		return c, fault.Missing(op)
	}
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return c, fault.Missing(op)
	}
	raw, err := p.Sealer.Open(callbackPurpose, sealed, nil)
	if err != nil || json.Unmarshal(raw, &c) != nil || !p.Now().Before(c.Known()) {
		return Callback{}, fault.Missing(op)
	}
	return c, nil
}
