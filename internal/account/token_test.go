package account

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash"
	"log/slog"
	"maps"
	"runtime"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
)

const (
	signing  = seal.Secret("the signing secret of the tests 0123")
	signing2 = seal.Secret("another signing secret of the tests 4567")
)

func noon() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

func newTestSigner(t testing.TB, current seal.Secret, previous ...seal.Secret) *signer {
	t.Helper()
	s, err := newSigner(current, previous, noon)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func b64(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// forge signs any two texts with any key, as somebody would who has it.
func forge(key []byte, newHash func() hash.Hash, header, body string) string {
	text := b64(header) + "." + b64(body)
	m := hmac.New(newHash, key)
	m.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

func object(m map[string]any) string {
	raw, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

func TestAccessTokens(t *testing.T) {
	id, session := ident.New[ident.AccountID](), ident.New[ident.SessionID]()
	old := newTestSigner(t, signing)
	token, err := old.sign(id, session, 10*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		s    *signer
		good bool
	}{
		"the same key":            {old, true},
		"another node's":          {newTestSigner(t, signing), true},
		"while rotating":          {newTestSigner(t, signing2, signing), true},
		"after the rotation":      {newTestSigner(t, signing2), false},
		"within the skew":         {at(newTestSigner(t, signing), 10*time.Minute+59*time.Second), true},
		"expired":                 {at(newTestSigner(t, signing), 11*time.Minute+time.Second), false},
		"a clock slightly behind": {at(newTestSigner(t, signing), -59*time.Second), true},
		"a clock far behind":      {at(newTestSigner(t, signing), -2*time.Minute), false},
	} {
		t.Run(name, func(t *testing.T) {
			a, s, err := c.s.read(token)
			if c.good && (err != nil || a != id || s != session) {
				t.Fatalf("%s %s %v", a, s, err)
			}
			if !c.good && !fault.Is(err, fault.Unauthenticated) {
				t.Fatalf("got %v", err)
			}
		})
	}
	again, err := old.sign(id, session, 10*time.Minute)
	if err != nil || again == token {
		t.Fatalf("two tokens are the same: %v", err)
	}
	if _, err := newSigner("short", nil, noon); fault.CodeOf(err) != "weak_secret" {
		t.Fatalf("a short secret: %v", err)
	}
}

func at(s *signer, after time.Duration) *signer {
	moved, err := newSigner(signing, nil, func() time.Time { return noon().Add(after) })
	if err != nil || len(s.keys) != 1 {
		panic("only for one key")
	}
	return moved
}

// hostile are tokens that somebody made, most of them by somebody who has the key: nothing but the exact form passes.
func hostile(s *signer) map[string]string {
	key, kid := s.keys[s.current], s.current
	now := noon().Unix()
	header := map[string]any{"alg": "HS256", "typ": "at+jwt", "kid": kid}
	claims := map[string]any{"iss": tokenIssuer, "aud": []string{tokenFor}, "sub": ident.New[ident.AccountID](),
		"sid": ident.New[ident.SessionID](), "jti": "j", "iat": now, "nbf": now, "exp": now + 600}
	with := func(m map[string]any, name string, value any) string {
		m = maps.Clone(m)
		m[name] = value
		return object(m)
	}
	without := func(m map[string]any, name string) string {
		m = maps.Clone(m)
		delete(m, name)
		return object(m)
	}
	h, c := object(header), object(claims)
	sign := func(h, c string) string { return forge(key, sha256.New, h, c) }
	good := sign(h, c)
	out := map[string]string{}

	// The control: if this one were refused, all of them would be for a wrong reason.
	if _, _, err := s.read(AccessToken(good)); err != nil {
		panic(err)
	}

	// Structure.
	parts := strings.Split(good, ".")
	for i, text := range []string{"", ".", "..", "...", "a", "a.b", "a.b.c", "a.b.c.d", strings.Repeat(".", 1<<20), strings.Repeat("a", 1<<20),
		good + ".", "." + good, good + "." + parts[2], parts[0] + "." + parts[1], parts[0] + "." + parts[1] + ".", parts[0] + ".." + parts[2],
		"." + parts[1] + "." + parts[2], parts[1] + "." + parts[0] + "." + parts[2], good + "=", good + " ", " " + good, good + "\n", "Bearer " + good,
		parts[0] + "=." + parts[1] + "." + parts[2], parts[0] + "." + parts[1] + "=." + parts[2], strings.ToUpper(good), good[:len(good)-1], good + "A",
		parts[0] + "." + parts[1] + "." + strings.Repeat("A", 43), parts[0] + "." + parts[1] + "." + b64(strings.Repeat("x", 4000)),
		parts[0] + "\x00." + parts[1] + "." + parts[2], "e30.e30.", "e30.e30.e30", parts[0] + ".e30." + parts[2], "e30." + parts[1] + "." + parts[2],
		b64("null") + "." + parts[1] + "." + parts[2], b64(`{"alg":"dir","enc":"A256GCM"}`) + ".." + b64("iv") + "." + b64("text") + "." + b64("tag"),
		sign(h, good), sign(h, `"`+good+`"`), sign(`"`+good+`"`, c), `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`} {
		out[fmt.Sprint("structure ", i)] = text
	}
	for i := range 24 { // every kind of place in it, one character changed
		at := i * len(good) / 24
		flipped := []byte(good)
		if flipped[at] == 'A' {
			flipped[at] = 'B'
		} else {
			flipped[at] = 'A'
		}
		out[fmt.Sprint("changed at ", at)] = string(flipped)
	}

	// Algorithms, signed in the way they say where that is possible.
	for _, alg := range []any{"none", "None", "NONE", "nOnE", "", nil, 1, true, []string{"HS256"}, "hs256", "HS256 ", "HS512", "HS384", "RS256", "ES256",
		"PS256", "EdDSA", "dir", "A256GCMKW", "RSA-OAEP", "../../HS256", "HS256\x00"} {
		bad := with(header, "alg", alg)
		out[fmt.Sprintf("alg %v unsigned", alg)] = b64(bad) + "." + b64(c) + "."
		out[fmt.Sprintf("alg %v signed", alg)] = sign(bad, c)
		out[fmt.Sprintf("alg %v without a kid", alg)] = sign(without(map[string]any{"alg": alg, "typ": "at+jwt", "kid": kid}, "kid"), c)
	}
	out["alg HS512 signed so"] = forge(key, sha512.New, with(header, "alg", "HS512"), c)
	out["alg HS384 signed so"] = forge(key, sha512.New384, with(header, "alg", "HS384"), c)

	// Keys.
	for i, k := range [][]byte{nil, {}, []byte(signing), []byte(kid), make([]byte, 32), []byte("secret"), []byte("null")} {
		out[fmt.Sprint("another key ", i)] = forge(k, sha256.New, h, c)
	}
	for _, v := range []any{"", nil, 0, kid[:len(kid)-1], kid + "0", strings.ToUpper(kid) + "x", "../../../dev/null", "' OR 1=1 --", "http://evil.example/jwks", []string{kid},
		map[string]string{"kid": kid}, strings.Repeat("k", 3000)} {
		out[fmt.Sprintf("kid %.20v", v)] = sign(with(header, "kid", v), c)
		out[fmt.Sprintf("kid %.20v with an empty key", v)] = forge(nil, sha256.New, with(header, "kid", v), c)
	}
	for _, name := range []string{"jku", "jwk", "x5u", "x5c", "x5t", "x5t#S256", "crit", "cty", "zip", "b64", "enc", "iss", "exp", "Alg", "KID", "unknown"} {
		out["header "+name] = sign(with(header, name, "http://evil.example/"), c)
	}
	out["header jwk with its own key"] = forge([]byte("evil"), sha256.New, with(header, "jwk", map[string]any{"kty": "oct", "k": b64("evil")}), c)
	for _, v := range []any{"", nil, "JWT", "jwt", "at+JWT", "application/at+jwt", "refresh", "dpop+jwt", 1, []string{"at+jwt"}} {
		out[fmt.Sprintf("typ %v", v)] = sign(with(header, "typ", v), c)
	}
	for name := range header {
		out["header without "+name] = sign(without(header, name), c)
		out["header with two "+name] = sign(h[:len(h)-1]+`,"`+name+`":"`+fmt.Sprint(header[name])+`"}`, c)
	}

	// Claims.
	for name := range claims {
		out["without "+name] = sign(h, without(claims, name))
		out["two "+name] = sign(h, c[:len(c)-1]+`,"`+name+`":1}`)
		out["first of two "+name] = sign(h, `{"`+name+`":1,`+c[1:])
		out["in capitals "+name] = sign(h, c[:len(c)-1]+`,"`+strings.ToUpper(name)+`":1}`)
		for _, v := range []any{nil, "", true, map[string]any{}, []any{}, []int{1, 2}} {
			out[fmt.Sprintf("%s %v %T", name, v, v)] = sign(h, with(claims, name, v))
		}
	}
	out["an unknown claim"] = sign(h, with(claims, "role", "admin"))
	for _, v := range []any{"memoryd-api-2", "MEMORYD-API", "memoryd", []string{}, []string{"other"}, []string{tokenFor, "other"}, []string{tokenFor, tokenFor}, 1} {
		out[fmt.Sprintf("aud %v", v)] = sign(h, with(claims, "aud", v))
	}
	for _, v := range []any{"evil", "memoryd ", "Memoryd", 1, []string{"memoryd"}} {
		out[fmt.Sprintf("iss %v", v)] = sign(h, with(claims, "iss", v))
	}
	for _, name := range []string{"sub", "sid"} {
		for _, v := range []any{"usr_1", "ses_1", "usr_" + strings.Repeat("z", 26), 7, ident.New[ident.ProjectID](), "usr_01jd' OR '1'='1", "../usr"} {
			out[fmt.Sprintf("%s %v", name, v)] = sign(h, with(claims, name, v))
		}
	}
	for name, v := range map[string]any{"exp long ago": now - 3600, "exp just out of the skew": now - 61, "exp 0": 0, "exp negative": -1, "exp as text": fmt.Sprint(now + 600),
		"exp endless": json.Number("1e400"), "nbf later": now + 61, "nbf far": now + 1e9, "nbf as text": fmt.Sprint(now), "iat later": now + 61, "iat far": now + 1e9, "iat as text": "now"} {
		claim, _, _ := strings.Cut(name, " ")
		out[name] = sign(h, with(claims, claim, v))
	}
	for name, body := range map[string]string{"an array": "[" + c + "]", "text": `"x"`, "a number": "1", "null": "null", "nothing": "", "half": c[:len(c)/2],
		"something behind": c + "{}", "a comma behind": c + ",", "a space behind": c + " ", "not UTF-8": strings.Replace(c, `"j"`, "\"\xff\"", 1) + "x",
		"a deep nest": strings.Repeat("[", 900), "a comment": c + "//"} {
		out["body is "+name] = sign(h, body)
		out["header is "+name] = sign(body, c)
	}
	return out
}

func TestHostileTokens(t *testing.T) {
	s := newTestSigner(t, signing)
	tokens := hostile(s)
	if len(tokens) < 300 {
		t.Fatalf("only %d hostile tokens", len(tokens))
	}
	var first string
	for name, text := range tokens {
		a, session, err := s.read(AccessToken(text))
		if err == nil || a != "" || session != "" || !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("%s: %q %q %v", name, a, session, err)
			continue
		}
		// Every reason reads the same, also in the log.
		if first == "" {
			first = err.Error()
		}
		if err.Error() != first {
			t.Errorf("%s: %v, others %s", name, err, first)
		}
	}
}

func TestHostileTokensCostNothing(t *testing.T) {
	s := newTestSigner(t, signing)
	for _, text := range []string{strings.Repeat(".", 8<<20), strings.Repeat("a", 4<<20) + "." + strings.Repeat("b", 4<<20) + ".c"} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, err := s.read(AccessToken(text))
		runtime.ReadMemStats(&after)
		if !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("got %v", err)
		}
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
			t.Errorf("%d bytes were allocated for a token of %d", grown, len(text))
		}
	}
}

func FuzzRead(f *testing.F) {
	s := newTestSigner(f, signing)
	for _, text := range hostile(s) {
		if len(text) < 2000 {
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		if _, _, err := s.read(AccessToken(text)); err == nil {
			t.Fatalf("%q is accepted", text)
		}
	})
}

func TestTokensAreMasked(t *testing.T) {
	for _, v := range []any{AccessToken("very secret"), RefreshToken("very secret")} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			if got := fmt.Sprintf(verb, struct{ T any }{v}); strings.Contains(got, "secret") || strings.Contains(got, "7665") {
				t.Errorf("%T with %s prints %s", v, verb, got)
			}
		}
		if raw, err := json.Marshal(map[string]any{"t": v}); err != nil || strings.Contains(string(raw), "secret") {
			t.Errorf("%T encodes as %s, %v", v, raw, err)
		}
		var b strings.Builder
		slog.New(slog.NewTextHandler(&b, nil)).Info("m", "t", v)
		if strings.Contains(b.String(), "secret") {
			t.Errorf("%T logs as %s", v, b.String())
		}
	}
}

func TestNetworks(t *testing.T) {
	for address, want := range map[string]string{"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
		"2001:db8:1:2::": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64", "": "", "not an address": "not an address"} {
		if got := network(address); got != want {
			t.Errorf("%q is %q, want %q", address, got, want)
		}
	}
}
