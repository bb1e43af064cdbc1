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
	"claude-memory-backend/internal/seal"
)

// The headers of a signature, as Standard Webhooks names them.
const (
	headerID        = "Webhook-Id"
	headerTimestamp = "Webhook-Timestamp"
	headerSignature = "Webhook-Signature"
)

// signatureLife is how far the time of a signature may be from now, either way.
const signatureLife = 5 * time.Minute

// signingKeys are what calls are signed and deliveries are checked with, the current one first. n8n's Crypto node takes a
// secret's characters as its bytes, so that is the rule here; a secret of Standard Webhooks' form is what its libraries make of it.
func signingKeys(c N8NConfig) ([][]byte, error) {
	secrets := []seal.Secret{c.SigningSecret, c.SigningBefore}
	if c.SigningSecret == "" {
		secrets[0] = c.HeaderSecret
	}
	if secrets[0] == "" && c.SigningBefore != "" {
		return nil, fault.BadInput("claude.NewN8N", "signing_before", "N8N_SIGNING_SECRET_PREVIOUS needs N8N_SIGNING_SECRET or N8N_API_KEY")
	}
	var keys [][]byte
	for _, secret := range secrets {
		text, coded := strings.CutPrefix(secret.Reveal(), "whsec_")
		key := []byte(text)
		if coded {
			var err error
			if key, err = base64.StdEncoding.DecodeString(text); err != nil || len(key) == 0 {
				return nil, fault.BadInput("claude.NewN8N", "signing_secret", "what follows whsec_ must be base64")
			}
		}
		if len(key) > 0 {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// mac is the signature, with a key, of a body that belongs to a turn, at a time.
func mac(key []byte, turn, stamp string, body []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(turn + "." + stamp + "."))
	m.Write(body)
	return m.Sum(nil)
}

// sign adds the Standard Webhooks headers, with a signature for each key: whichever of them a workflow knows is enough. The header
// secret alone says only that the caller knows it: with the signature a workflow can tell that this body belongs to this turn
// and is not an old one sent again.
func (n *N8N) sign(req *http.Request, turn string, body []byte) {
	stamp := strconv.FormatInt(n.now().Unix(), 10)
	signatures := make([]string, len(n.keys))
	for i, key := range n.keys {
		signatures[i] = "v1," + base64.StdEncoding.EncodeToString(mac(key, turn, stamp, body))
	}
	req.Header.Set(headerID, turn)
	req.Header.Set(headerTimestamp, stamp)
	req.Header.Set(headerSignature, strings.Join(signatures, " "))
}

// Verify checks who delivers an answer of the turn, with any of the keys: the same headers as those of the call, over the body that was received,
// with the turn as the id. A workflow that mixes up its turns is refused like somebody who does not know the secret.
func (n *N8N) Verify(h http.Header, turn string, body []byte) error {
	refused := func(why string) error {
		return fault.New(fault.Unauthenticated, "claude.N8N.Verify", "signature_invalid", why)
	}
	if len(n.keys) == 0 {
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
	good := false
	for _, key := range n.keys {
		want := mac(key, h.Get(headerID), stamp, body)
		for given := range strings.FieldsSeq(h.Get(headerSignature)) {
			text, v1 := strings.CutPrefix(given, "v1,")
			sum, err := base64.StdEncoding.DecodeString(text)
			good = v1 && err == nil && hmac.Equal(sum, want) || good
		}
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
