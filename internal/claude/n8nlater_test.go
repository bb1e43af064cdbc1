package claude

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/claude/n8nfake"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/seal"
)

// later is a prompt whose answer may come later.
func later() conversation.Prompt {
	p := ask("Which colour?")
	p.Callback, p.Until = "https://memory.example/api/v1/n8n/callback/cmcb_x", time.Date(2026, 11, 26, 9, 0, 0, 5, time.UTC)
	return p
}

func TestN8NPromises(t *testing.T) {
	for name, reply := range map[string]n8nfake.Reply{
		"202 of the shipped workflow": n8nfake.Accepted(),
		"202 with nothing":            n8nfake.Buffered(http.StatusAccepted, ""),
		"202 with whatever":           n8nfake.Buffered(http.StatusAccepted, `{"message":"Workflow was started"}`),
		"the word":                    n8nfake.Buffered(200, `{"status":"accepted"}`),
		"the word in the item list":   n8nfake.Buffered(200, `[{"status":"accepted","execution":"17"}]`),
	} {
		t.Run(name, func(t *testing.T) {
			model, fake := webhook(t, reply, nil)
			a, pieces, err := hear(t, model, t.Context(), later())
			if err != nil || !a.Later || a.Text != "" || len(pieces) > 0 {
				t.Errorf("%+v %v", a, err)
			}
			if p := fake.Calls()[0].Payload(); p.Callback != later().Callback || p.Until != "2026-11-26T09:00:00Z" {
				t.Errorf("sent %+v", p)
			}
			// Who cannot take it later says so, instead of waiting.
			_, _, err = hear(t, model, t.Context(), ask("Which colour?"))
			if fault.CodeOf(err) != conversation.CodeProviderMalformed || !strings.Contains(err.Error(), "PUBLIC_URL") {
				t.Errorf("without an address: %v", err)
			}
			if body := string(fake.Calls()[1].Body); strings.Contains(body, "callback") {
				t.Errorf("sent %s", body)
			}
		})
	}
	t.Run("without a secret nothing is promised", func(t *testing.T) {
		model, fake := webhook(t, n8nfake.Accepted(), func(c *N8NConfig) { c.HeaderSecret = "" })
		fake.Open()
		_, _, err := hear(t, model, t.Context(), later())
		if fault.CodeOf(err) != conversation.CodeProviderMalformed || strings.Contains(string(fake.Calls()[0].Body), "callback") {
			t.Errorf("%v, sent %s", err, fake.Calls()[0].Body)
		}
		if err := model.Verify(http.Header{}, "turn_1", nil); fault.CodeOf(err) != "signature_invalid" {
			t.Errorf("%v", err)
		}
	})
	t.Run("an answer with that status is one", func(t *testing.T) {
		model, _ := webhook(t, n8nfake.Buffered(200, `{"status":"accepted","text":"Teal."}`), nil)
		if a, _, err := hear(t, model, t.Context(), later()); err != nil || a.Later || a.Text != "Teal." {
			t.Errorf("%+v %v", a, err)
		}
	})
}

// The vectors of Standard Webhooks: what its libraries verify is what is sent here, and the other way round.
func TestN8NSignatures(t *testing.T) {
	const vector = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	model := func(header, signing seal.Secret, at int64) *N8N {
		t.Helper()
		m, err := NewN8N(N8NConfig{URL: "http://n8n.example/webhook/x", HeaderSecret: header, SigningSecret: signing})
		if err != nil {
			t.Fatal(err)
		}
		m.now = func() time.Time { return time.Unix(at, 0) }
		return m
	}
	for _, v := range []struct {
		id, body, signature string
		at                  int64
	}{
		{"msg_p5jXN8AQM9LWM0D4loKWxJek", `{"test": 2432232314}`, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", 1614265330},
		{"msg_2KWPBgLlAfxdpx2AI54pPJ85f4W", `{"type":"contact.created","timestamp":"2022-11-03T20:26:10.344522Z","data":{"id":"1f81eb52-5198-4599-803e-771906343485"}}`,
			"v1,ARw42xaAApl/nxRo+iPGYwSaMQaOwMo2eyH5JBRA+bQ=", 1674087231},
	} {
		m := model("", vector, v.at)
		req, err := m.request(t.Context(), v.id, []byte(v.body))
		if err != nil {
			t.Fatal(err)
		}
		if got := req.Header.Get("Webhook-Signature"); got != v.signature {
			t.Errorf("%s: signed %s", v.id, got)
		}
		if err := m.Verify(req.Header, v.id, []byte(v.body)); err != nil {
			t.Errorf("%s: %v", v.id, err)
		}
	}

	const at, turn, body = 1_760_000_000, "turn_1", `{"content":"Teal."}`
	m := model("the header's own secret", "a secret for signatures only", at)
	signed := func(change func(http.Header)) http.Header {
		req, err := m.request(t.Context(), turn, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		h := http.Header{}
		for _, name := range []string{"Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"} {
			h.Set(name, req.Header.Get(name))
		}
		if change != nil {
			change(h)
		}
		return h
	}
	stamped := func(sec int64) func(http.Header) {
		return func(h http.Header) {
			stamp := strconv.FormatInt(sec, 10)
			h.Set("Webhook-Timestamp", stamp)
			h.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac(m.keys[0], turn, stamp, []byte(body))))
		}
	}
	for name, h := range map[string]http.Header{
		"as it is sent":        signed(nil),
		"among others":         signed(func(h http.Header) { h.Set("Webhook-Signature", "v1a,xx v1,AAAA "+h.Get("Webhook-Signature")) }),
		"nearly too old":       signed(stamped(at - 300)),
		"from a clock ahead":   signed(stamped(at + 300)),
		"by the header secret": nil,
	} {
		verifier, headers := m, h
		if h == nil { // alone, it signs as well
			verifier = model("the header's own secret", "", at)
			req, err := verifier.request(t.Context(), turn, []byte(body))
			if err != nil {
				t.Fatal(err)
			}
			headers = req.Header
		}
		if err := verifier.Verify(headers, turn, []byte(body)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, h := range map[string]http.Header{
		"nothing":                {},
		"no id":                  signed(func(h http.Header) { h.Del("Webhook-Id") }),
		"two signatures' fields": signed(func(h http.Header) { h.Add("Webhook-Signature", h.Get("Webhook-Signature")) }),
		"no v1":                  signed(func(h http.Header) { h.Set("Webhook-Signature", strings.TrimPrefix(h.Get("Webhook-Signature"), "v1,")) }),
		"empty":                  signed(func(h http.Header) { h.Set("Webhook-Signature", "v1,") }),
		"another time":           signed(func(h http.Header) { h.Set("Webhook-Timestamp", strconv.Itoa(at+1)) }),
		"no time":                signed(func(h http.Header) { h.Set("Webhook-Timestamp", "now") }),
		"too old":                signed(stamped(at - 301)),
		"from the future":        signed(stamped(at + 301)),
	} {
		if err := m.Verify(h, turn, []byte(body)); fault.CodeOf(err) != "signature_invalid" || !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := m.Verify(signed(nil), "turn_2", []byte(body)); fault.CodeOf(err) != "signature_invalid" {
		t.Errorf("for another turn: %v", err)
	}
	if err := m.Verify(signed(nil), turn, []byte(body+" ")); fault.CodeOf(err) != "signature_invalid" {
		t.Errorf("another body: %v", err)
	}
	if err := model("the header's own secret", "", at).Verify(signed(nil), turn, []byte(body)); fault.CodeOf(err) != "signature_invalid" {
		t.Errorf("another secret: %v", err)
	}
	for _, bad := range []seal.Secret{"whsec_", "whsec_not base64"} {
		if _, err := NewN8N(N8NConfig{URL: "http://n8n.example", SigningSecret: bad}); !fault.Is(err, fault.Invalid) || strings.Contains(err.Error(), "not base64 ") {
			t.Errorf("%v", err)
		}
	}
}

// While a secret is replaced, both ends may have either, and nothing is refused.
func TestN8NSecretsOverlap(t *testing.T) {
	const before, after, turn, body = "the secret of last year, long", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "turn_1", `{"content":"Teal."}`
	model := func(header, current, previous seal.Secret) *N8N {
		t.Helper()
		m, err := NewN8N(N8NConfig{URL: "http://n8n.example/webhook/x", HeaderSecret: header, SigningSecret: current, SigningBefore: previous})
		if err != nil {
			t.Fatal(err)
		}
		m.now = func() time.Time { return time.Unix(1_760_000_000, 0) }
		return m
	}
	headers := func(m *N8N) http.Header {
		req, err := m.request(t.Context(), turn, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		return req.Header
	}
	old, rotating, done := model("", before, ""), model("", after, before), model("", after, "")
	sent := strings.Split(headers(rotating).Get("Webhook-Signature"), " ")
	if want := []string{headers(done).Get("Webhook-Signature"), headers(old).Get("Webhook-Signature")}; !slices.Equal(sent, want) {
		t.Errorf("signed %v, want %v", sent, want)
	}
	for name, pair := range map[string][2]*N8N{"old to both": {old, rotating}, "both to old": {rotating, old}, "new to both": {done, rotating},
		"both to new": {rotating, done}, "both to both": {rotating, rotating}, "from the header's secret": {model(before, "", ""), rotating},
		"to a secret of its own": {rotating, model(before, "", "")}} {
		if err := pair[1].Verify(headers(pair[0]), turn, []byte(body)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, pair := range map[string][2]*N8N{"old to new": {old, done}, "new to old": {done, old}, "a stranger": {model("", "another secret, long enough", ""), rotating}} {
		if err := pair[1].Verify(headers(pair[0]), turn, []byte(body)); fault.CodeOf(err) != "signature_invalid" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, c := range map[string]N8NConfig{"one before none": {SigningBefore: before}, "no base64": {SigningSecret: after, SigningBefore: "whsec_not base64"}} {
		c.URL = "http://n8n.example"
		if _, err := NewN8N(c); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestN8NDelivers(t *testing.T) {
	m, err := NewN8N(N8NConfig{URL: "http://n8n.example", HeaderSecret: hookSecret, Model: "m-default",
		CostFunc: func(model string, raw json.RawMessage) int64 { return int64(len(model) + len(raw)) }})
	if err != nil {
		t.Fatal(err)
	}
	relayed := `{"ok":true,"status":200,"message":` + greenMessage + `,"conversation_id":"conv_1","request_id":"req_7"}`
	a, failure, err := m.Delivered("conv_1", "m-asked", []byte(relayed))
	if err != nil || failure != nil || a.Text != "Green." || len(a.Blocks) != 3 || a.Usage.OutputTokens != 5 || a.Model != "claude-sonnet-5-5" ||
		a.CostMicroUSD != int64(len(a.Model)+len(a.RawUsage)) || a.RequestID != "req_7" {
		t.Errorf("%+v %v %v", a, failure, err)
	}
	if got := string(a.Blocks[0]); got != `{"type":"thinking","thinking":"hm <&>","signature":"c2ln"}` {
		t.Errorf("thinking became %s", got)
	}
	if a, _, err := m.Delivered("conv_1", "m-asked", []byte(`[{"output":"Green."}]`)); err != nil || a.Text != "Green." || a.Model != "m-asked" {
		t.Errorf("%+v %v", a, err)
	}
	if a, _, err := m.Delivered("conv_1", "", []byte(`{"text":"Green."}`)); err != nil || a.Model != "m-default" {
		t.Errorf("%+v %v", a, err)
	}
	for body, code := range map[string]string{
		`{"ok":false,"status":502,"error":"connect ECONNREFUSED"}`:                                     conversation.CodeProviderFailed,
		`{"ok":false,"status":529,"message":{"type":"error","error":{"type":"overloaded_error"}}}`:     conversation.CodeProviderOverloaded,
		`{"type":"error","error":{"type":"rate_limit_error","message":"slow down"}}`:                   conversation.CodeProviderLimited,
		`{"error":{"message":"The service is receiving too many requests from you","httpCode":"429"}}`: conversation.CodeProviderLimited,
	} {
		if _, failure, err := m.Delivered("conv_1", "", []byte(body)); err != nil || fault.CodeOf(failure) != code {
			t.Errorf("%s: %v, %v", body, failure, err)
		}
	}
	for _, body := range []string{``, `null`, `{}`, `[]`, `{"text":""}`, `{"status":"accepted"}`, `{"text":"a"}{"text":"b"}`, `Green.`, `{"text":"a`,
		`{"conversation_id":"conv_2","text":"a"}`, `{"content":[{"text":"x"}]}`} {
		if _, failure, err := m.Delivered("conv_1", "", []byte(body)); failure != nil || !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, %v", body, failure, err)
		}
	}
}
