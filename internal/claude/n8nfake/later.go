package n8nfake

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Accepted promises an answer for later, as the Respond node of the shipped workflow does. Whether it ever comes is the test's
// business: see [Call.Delivery].
func Accepted() Reply { return Buffered(http.StatusAccepted, `{"status":"accepted"}`) }

// Arrived calls back whenever a call has arrived, before it is answered by the reply.
func Arrived(tell func(Call), reply Reply) Reply {
	return func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // what ServeHTTP has put back
		tell(Call{Header: r.Header.Clone(), Body: body})
		reply(w, r)
	}
}

// Payload is what the call says of the turn and of where its answer may be delivered.
type Payload struct {
	Turn         string `json:"turn_id"`
	Conversation string `json:"conversation_id"`
	Callback     string `json:"callback_url"`
	Until        string `json:"callback_until"`
}

// Payload reads the call's body.
func (c Call) Payload() (p Payload) {
	_ = json.Unmarshal(c.Body, &p)
	return p
}

// Delivery is an answer on its way to the backend. Its fields may be changed before it is sent.
type Delivery struct {
	URL    string
	Turn   string // the id that is signed
	At     time.Time
	Secret string
	Body   string
	// Forge changes the request after it was signed; may be nil.
	Forge func(*http.Request)
}

// Delivery is a proper answer to the call, signed as it is sent.
func (c Call) Delivery(secret, body string) Delivery {
	p := c.Payload()
	return Delivery{URL: p.Callback, Turn: p.Turn, At: time.Now(), Secret: secret, Body: body}
}

// Send delivers the answer, and returns what the backend says.
func (d Delivery) Send(ctx context.Context) (status int, answer string, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, d.URL, strings.NewReader(d.Body))
	if err != nil {
		return 0, "", err
	}
	stamp := strconv.FormatInt(d.At.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(d.Secret))
	mac.Write([]byte(d.Turn + "." + stamp + "." + d.Body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Webhook-Id", d.Turn)
	r.Header.Set("Webhook-Timestamp", stamp)
	r.Header.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	if d.Forge != nil {
		d.Forge(r)
	}
	r.Close = true
	resp, err := new(http.Client).Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(raw), err
}
