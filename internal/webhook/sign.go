package webhook

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"strconv"
	"time"

	"claude-memory-backend/internal/seal"
)

const (
	secretPrefix = "whsec_"
	secretBytes  = 32
	// overlap is how long the secret before signs beside the new one.
	overlap = 24 * time.Hour
)

// newSecret draws a secret as Standard Webhooks write it.
func newSecret() seal.Secret {
	var b [secretBytes]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return seal.Secret(secretPrefix + base64.StdEncoding.EncodeToString(b[:]))
}

// Sign returns the webhook-signature of a body, sent under an id at a moment: one signature per secret, the newest first.
// Secrets are "whsec_" and base64; one that is not signs nothing.
func Sign(id string, at time.Time, body []byte, secrets ...seal.Secret) string {
	var out []byte
	for _, s := range secrets {
		text := s.Reveal()
		if len(text) < len(secretPrefix) || text[:len(secretPrefix)] != secretPrefix {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(text[len(secretPrefix):])
		if err != nil {
			continue
		}
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(id + "." + strconv.FormatInt(at.Unix(), 10) + "."))
		mac.Write(body)
		if len(out) > 0 {
			out = append(out, ' ')
		}
		out = append(out, "v1,"...)
		out = base64.StdEncoding.AppendEncode(out, mac.Sum(nil))
	}
	return string(out)
}
