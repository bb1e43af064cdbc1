package account

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
)

// What our access tokens say about themselves; nothing else is accepted.
const (
	tokenType   = "at+jwt"
	tokenIssuer = "memoryd"
	tokenFor    = "memoryd-api"
	tokenMax    = 4 << 10 // bytes, checked before anything is parsed
	tokenSkew   = 60 * time.Second
)

// signer makes and reads access tokens: HS256 under keys derived from JWT_SECRET, found by kid in our own set only.
type signer struct {
	current string
	keys    map[string][]byte
	now     func() time.Time
	parser  *jwt.Parser
}

func newSigner(current seal.Secret, previous []seal.Secret, now func() time.Time) (*signer, error) {
	s := &signer{keys: make(map[string][]byte), now: now}
	for i, secret := range append([]seal.Secret{current}, previous...) {
		ring, err := seal.NewKeyring(secret)
		if err != nil {
			return nil, fault.New(fault.Invalid, "account.New", "weak_secret", "JWT_SECRET needs at least 32 unpredictable bytes")
		}
		key := ring.Derive("access tokens")
		sum := sha256.Sum256(append([]byte("kid"), key[:]...))
		kid := hex.EncodeToString(sum[:6])
		if i == 0 {
			s.current = kid
		}
		s.keys[kid] = key[:]
	}
	s.parser = jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}), jwt.WithIssuer(tokenIssuer), jwt.WithAudience(tokenFor),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(tokenSkew), jwt.WithTimeFunc(now), jwt.WithStrictDecoding())
	return s, nil
}

type claims struct {
	Session string `json:"sid"`
	jwt.RegisteredClaims
}

func (s *signer) sign(account ident.AccountID, session ident.SessionID, life time.Duration) (AccessToken, error) {
	now := s.now()
	t := jwt.NewWithClaims(jwt.SigningMethodHS256, claims{Session: string(session), RegisteredClaims: jwt.RegisteredClaims{
		Issuer: tokenIssuer, Audience: jwt.ClaimStrings{tokenFor}, Subject: string(account), ID: randomText(12),
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(life))}})
	t.Header["typ"], t.Header["kid"] = tokenType, s.current
	text, err := t.SignedString(s.keys[s.current])
	return AccessToken(text), err
}

// read verifies a token. Every reason to refuse one is the same to who shows it.
func (s *signer) read(t AccessToken) (ident.AccountID, ident.SessionID, error) {
	account, session, _, err := s.readUntil(t)
	return account, session, err
}

// readUntil is read, and says when the token expires.
func (s *signer) readUntil(t AccessToken) (ident.AccountID, ident.SessionID, time.Time, error) {
	refused := fault.New(fault.Unauthenticated, "account.Verify", "token_invalid",
		"the access token is missing, wrong or has expired: sign in or refresh it")
	text := t.Reveal()
	// Decoders of base64 skip line breaks: one token would have many spellings.
	if len(text) > tokenMax || strings.Count(text, ".") != 2 || strings.ContainsAny(text, "\r\n") {
		return "", "", time.Time{}, refused
	}
	head, rest, _ := strings.Cut(text, ".")
	body, _, _ := strings.Cut(rest, ".")
	if plainObject(head, "alg", "typ", "kid") == nil {
		return "", "", time.Time{}, refused
	}
	values := plainObject(body, "iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp")
	for _, name := range []string{"iat", "nbf", "exp"} {
		// The parser takes a number in quotes for a number.
		if v := values[name]; len(v) == 0 || v[0] < '0' || v[0] > '9' {
			return "", "", time.Time{}, refused
		}
	}
	var c claims
	_, err := s.parser.ParseWithClaims(text, &c, func(t *jwt.Token) (any, error) {
		kid, _ := t.Header["kid"].(string)
		key := s.keys[kid]
		if key == nil || t.Header["typ"] != tokenType {
			return nil, refused
		}
		return key, nil
	})
	if err != nil || c.ID == "" || c.NotBefore == nil || c.IssuedAt == nil || len(c.Audience) != 1 {
		return "", "", time.Time{}, refused // without the parser's error, which may quote the token
	}
	account, err1 := ident.Parse[ident.AccountID](c.Subject)
	session, err2 := ident.Parse[ident.SessionID](c.Session)
	if err1 != nil || err2 != nil {
		return "", "", time.Time{}, refused
	}
	return account, session, c.ExpiresAt.UTC(), nil
}

// plainObject reads base64url of one JSON object with exactly the names, each once and in this case, and nil otherwise:
// the decoder behind the parser would take the last of several, in any case.
func plainObject(part string, names ...string) map[string]json.RawMessage {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil
	}
	values := map[string]json.RawMessage{}
	for d.More() {
		t, err := d.Token()
		name, ok := t.(string)
		if _, twice := values[name]; err != nil || !ok || twice || !slices.Contains(names, name) {
			return nil
		}
		var v json.RawMessage
		if d.Decode(&v) != nil {
			return nil
		}
		values[name] = v
	}
	if _, err := d.Token(); err != nil || int(d.InputOffset()) != len(raw) || len(values) != len(names) {
		return nil
	}
	return values
}

// refreshPrefix makes a refresh token recognisable to whoever finds one where it should not be.
const refreshPrefix = "cmr_"

func newRefreshToken() RefreshToken { return RefreshToken(refreshPrefix + randomText(32)) }

// hashToken is what is stored of a refresh token: it has 256 random bits, so a plain hash is enough.
func hashToken(t RefreshToken) []byte {
	sum := sha256.Sum256([]byte(t.Reveal()))
	return sum[:]
}

func randomText(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// subject hides what failed sign-ins are counted by: an e-mail or address that somebody typed is nobody's to read.
func subject(key seal.Key, parts ...string) []byte {
	h := hmac.New(sha256.New, key[:])
	for _, p := range parts {
		h.Write([]byte{byte(len(p) >> 8), byte(len(p))}) // parts are short
		h.Write([]byte(p))
	}
	return h.Sum(nil)
}
