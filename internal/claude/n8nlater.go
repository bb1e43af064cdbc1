package claude

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
)

// The headers of a signature, as Standard Webhooks names them.
const (
	headerID        = "Webhook-Id"
	headerTimestamp = "Webhook-Timestamp"
	headerSignature = "Webhook-Signature"
)

// signatureLife is how far the time of a signature may be from now, either way.
const signatureLife = 5 * time.Minute

// signingKey is what calls are signed and deliveries are checked with. n8n's Crypto node takes a secret's characters as its
// bytes, so that is the rule here; a secret of Standard Webhooks' form is what its libraries make of it.
func signingKey(c N8NConfig) ([]byte, error) {
	secret := c.SigningSecret
	if secret == "" {
		secret = c.HeaderSecret
	}
	text, coded := strings.CutPrefix(secret.Reveal(), "whsec_")
	if !coded {
		return []byte(text), nil
	}
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(key) == 0 {
		return nil, fault.BadInput("claude.NewN8N", "signing_secret", "what follows whsec_ must be base64")
	}
	return key, nil
}

// mac is the signature of a body that belongs to a turn, at a time.
func (n *N8N) mac(turn, stamp string, body []byte) []byte {
	m := hmac.New(sha256.New, n.key)
	m.Write([]byte(turn + "." + stamp + "."))
	m.Write(body)
	return m.Sum(nil)
}

// sign adds the Standard Webhooks headers. The header secret alone says only that the caller knows it: with the signature a
// workflow can tell that this body belongs to this turn and is not an old one sent again.
func (n *N8N) sign(req *http.Request, turn string, body []byte) {
	stamp := strconv.FormatInt(n.now().Unix(), 10)
	req.Header.Set(headerID, turn)
	req.Header.Set(headerTimestamp, stamp)
	req.Header.Set(headerSignature, "v1,"+base64.StdEncoding.EncodeToString(n.mac(turn, stamp, body)))
}

// Verify checks who delivers an answer of the turn: the same headers as those of the call, over the body that was received,
// with the turn as the id. A workflow that mixes up its turns is refused like somebody who does not know the secret.
func (n *N8N) Verify(h http.Header, turn string, body []byte) error {
	refused := func(why string) error {
		return fault.New(fault.Unauthenticated, "claude.N8N.Verify", "signature_invalid", why)
	}
	if len(n.key) == 0 {
		return refused("there is no secret to sign with; set N8N_SIGNING_SECRET")
	}
	for _, name := range []string{headerID, headerTimestamp, headerSignature} {
		if len(h.Values(name)) != 1 {
			return refused("webhook-id, webhook-timestamp and webhook-signature are needed, each once")
		}
	}
	stamp := h.Get(headerTimestamp)
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return refused("webhook-timestamp must be seconds since 1970")
	}
	want := n.mac(h.Get(headerID), stamp, body)
	good := false
	for given := range strings.FieldsSeq(h.Get(headerSignature)) {
		text, v1 := strings.CutPrefix(given, "v1,")
		sum, err := base64.StdEncoding.DecodeString(text)
		good = v1 && err == nil && hmac.Equal(sum, want) || good
	}
	switch age := n.now().Sub(time.Unix(seconds, 0)); {
	case !good:
		return refused("the signature does not fit the body and the secret")
	case age > signatureLife || age < -signatureLife:
		return refused("the signature is more than five minutes old, or the clocks differ by as much")
	case h.Get(headerID) != turn:
		return refused("webhook-id must be the turn that this address is of")
	}
	return nil
}

// Delivered reads an answer that comes later, of a model that was asked for. A body that tells of a failure is that failure; one that cannot be understood
// is Invalid, and tells nothing about the turn.
func (n *N8N) Delivered(conv, asked string, body []byte) (a conversation.Answer, failure, err error) {
	r := &n8nReader{body: bytes.NewReader(body), wanted: conv, sink: func(string) {}, sinceFunc: func() time.Duration { return 1 }}
	a, err = r.whole()
	switch f, ok := errors.AsType[*fault.Error](err); {
	case err == nil:
		n.complete(&a, asked, nil)
		return a, nil, nil
	case ok && f.Code != conversation.CodeProviderMalformed:
		return conversation.Answer{}, f, nil
	case ok:
		return conversation.Answer{}, nil, fault.BadInput("claude.N8N.Delivered", "body", f.Message)
	}
	return conversation.Answer{}, nil, fault.BadInput("claude.N8N.Delivered", "body", "must be one JSON value")
}
