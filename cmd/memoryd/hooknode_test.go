package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"crypto/sha256"
	"encoding/base64"

	reference "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/webhook"
)

// signed is a delivery as somebody else's library gets it.
type signed struct {
	Secret  string            `json:"secret"`
	Body    string            `json:"body"`
	Headers map[string]string `json:"headers"`
	Good    bool              `json:"good"`
}

// verifies is a program for Node that says how many of what it is given the library of npm takes as it should.
const verifies = `
const { Webhook, WebhookVerificationError } = require("standardwebhooks");
const list = JSON.parse(require("fs").readFileSync(0, "utf8"));
let right = 0;
for (const { secret, body, headers, good } of list) {
	let taken = true;
	try { new Webhook(secret).verify(body, headers); }
	catch (e) { if (!(e instanceof WebhookVerificationError)) throw e; taken = false; }
	if (taken === good) right++; else console.error(good, headers, body);
}
console.log(right);
`

// TestReferenceLibraries: those of Go and npm take what we sign, and nothing else.
func TestReferenceLibraries(t *testing.T) {
	root, err := lab.Root()
	if err != nil {
		t.Fatal(err)
	}
	modules := filepath.Join(root, ".cache", "npm", "node_modules")
	if _, err := os.Stat(filepath.Join(modules, "standardwebhooks")); err != nil {
		t.Fatal("the library is not installed; run `make setup`")
	}
	dice := rand.New(rand.NewPCG(7, 26))
	var list []signed
	for i := range 2000 {
		secret := func() string {
			raw := sha256.Sum256([]byte(strconv.Itoa(dice.Int())))
			return "whsec_" + base64.StdEncoding.EncodeToString(append(raw[:], raw[:dice.IntN(33)]...)[:24+dice.IntN(9)])
		}
		now, before := secret(), secret()
		id, at := string(ident.New[ident.EventID]()), time.Now()
		body, err := json.Marshal(map[string]any{"type": "a.b", "data": fmt.Sprintf("é🧵\n\"%d", dice.Int())})
		if err != nil {
			t.Fatal(err)
		}
		s := signed{Secret: now, Body: string(body), Good: true, Headers: map[string]string{"webhook-id": id,
			"webhook-timestamp": strconv.FormatInt(at.Unix(), 10),
			"webhook-signature": webhook.Sign(id, at, body, seal.Secret(now), seal.Secret(before))}}
		switch i % 8 {
		case 0:
			s.Secret = before // while a secret is replaced, both do
		case 1:
			s.Secret, s.Good = secret(), false
		case 2:
			s.Body, s.Good = s.Body+" ", false
		case 3:
			s.Headers["webhook-id"], s.Good = string(ident.New[ident.EventID]()), false
		case 4:
			s.Headers["webhook-timestamp"], s.Good = strconv.FormatInt(at.Unix()-1, 10), false
		}
		list = append(list, s)
		v, err := reference.NewWebhook(s.Secret)
		if err != nil {
			t.Fatal(err)
		}
		header := map[string][]string{}
		for name, value := range s.Headers {
			header[canonical[name]] = []string{value}
		}
		if err := v.Verify([]byte(s.Body), header); (err == nil) != s.Good {
			t.Errorf("Go: %v for %+v", err, s)
		}
	}
	raw, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), node(t, root), "-e", verifies)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "NODE_PATH=" + modules}
	cmd.Stdin = bytes.NewReader(raw)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil || out.String() != "2000\n" {
		t.Errorf("npm: %v, %s right\n%.2000s", err, out.String(), complaints.String())
	}
}

var canonical = map[string]string{"webhook-id": "Webhook-Id", "webhook-timestamp": "Webhook-Timestamp", "webhook-signature": "Webhook-Signature"}
