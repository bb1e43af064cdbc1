package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// Client talks to a server as one account.
type Client struct {
	Base  string // with /api/v1
	Token string
	HTTP  *http.Client
}

// Dial returns a client of the server that keeps up to conns connections. It asks for no compression: what is compared
// with the server has none.
func Dial(base string, conns int) *Client {
	return &Client{Base: base + "/api/v1", HTTP: &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: conns, DisableCompression: true}}}
}

// Close drops the connections.
func (c *Client) Close() { c.HTTP.CloseIdleConnections() }

// Answer is what came back. Err is set when nobody can know what happened: the connection broke.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	Err    error
}

// Into decodes the body if the status is one of want; anything else is an error.
func (a Answer) Into(v any, want ...int) error {
	if a.Err != nil {
		return a.Err
	}
	for _, w := range want {
		if a.Status == w {
			if v == nil {
				return nil
			}
			return json.Unmarshal(a.Body, v)
		}
	}
	return fmt.Errorf("status %d: %s", a.Status, bytes.TrimSpace(a.Body))
}

// Do sends a request with pairs of header names and values. A body that is not nil goes as JSON.
func (c *Client) Do(ctx context.Context, method, path string, body any, headers ...string) Answer {
	res, err := c.open(ctx, method, path, body, headers...)
	if err != nil {
		return Answer{Err: err}
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	return Answer{Status: res.StatusCode, Header: res.Header, Body: raw, Err: err}
}

// Get reads a resource into v.
func (c *Client) Get(ctx context.Context, path string, v any) error {
	return c.Do(ctx, http.MethodGet, path, nil).Into(v, http.StatusOK)
}

// Post makes something and reads the answer into v.
func (c *Client) Post(ctx context.Context, path string, body, v any) error {
	return c.Do(ctx, http.MethodPost, path, body).Into(v, http.StatusCreated)
}

func (c *Client) open(ctx context.Context, method, path string, body any, headers ...string) (*http.Response, error) {
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		r = bytes.NewReader(b)
	default:
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.Base+path, r)
	if err != nil {
		return nil, err
	}
	if r != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return c.HTTP.Do(req)
}

const password = "correct horse battery staple of the lab"

// Register makes an account and uses it from here on.
func (c *Client) Register(ctx context.Context, email string) error {
	return c.signIn(ctx, "/auth/register", email)
}

// Login signs in to an account that Register made.
func (c *Client) Login(ctx context.Context, email string) error {
	return c.signIn(ctx, "/auth/login", email)
}

func (c *Client) signIn(ctx context.Context, path, email string) error {
	var out struct {
		Token string `json:"access_token"`
	}
	c.Token = ""
	err := c.Do(ctx, http.MethodPost, path, map[string]string{"email": email, "password": password}).Into(&out, 200, 201)
	c.Token = out.Token
	return err
}

// The resources, as far as experiments look at them.
type (
	// Conversation is a conversation.
	Conversation struct {
		ID           string `json:"id"`
		MessageCount int64  `json:"message_count"`
	}
	// Message is a message.
	Message struct {
		ID         string `json:"id"`
		TurnID     string `json:"turn_id"`
		Role       string `json:"role"`
		Content    string `json:"content"`
		State      string `json:"state"`
		StopReason string `json:"stop_reason"`
	}
	// Turn is a turn.
	Turn struct {
		ID               string `json:"id"`
		AssistantMessage string `json:"assistant_message_id"`
		State            string `json:"state"`
		Provider         string `json:"provider"`
		Error            *struct {
			Code string `json:"code"`
		} `json:"error"`
	}
	// Exchange answers a send.
	Exchange struct {
		User      Message  `json:"user_message"`
		Assistant *Message `json:"assistant_message"`
		Turn      *Turn    `json:"turn"`
	}
	// Hit is a result of a search.
	Hit struct {
		ConversationID string  `json:"conversation_id"`
		MessageID      *string `json:"message_id"`
		Score          float64 `json:"score"`
	}
	// Page is a page of a list.
	Page[T any] struct {
		Data []T     `json:"data"`
		Next *string `json:"next_cursor"`
	}
)

// NewConversation starts a conversation with a title, so that nobody makes one in the background.
func (c *Client) NewConversation(ctx context.Context, title string) (Conversation, error) {
	var conv Conversation
	err := c.Post(ctx, "/conversations", map[string]string{"title": title}, &conv)
	return conv, err
}

// Messages reads all messages of a conversation, every branch, oldest first.
func (c *Client) Messages(ctx context.Context, conv string) (all []Message, err error) {
	for next := ""; ; {
		var page Page[Message]
		path := "/conversations/" + conv + "/messages?branch=all&order=asc&limit=200&cursor=" + url.QueryEscape(next)
		if err := c.Get(ctx, path, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Data...)
		if page.Next == nil {
			return all, nil
		}
		next = *page.Next
	}
}

// Search asks for the messages that fit a question best.
func (c *Client) Search(ctx context.Context, question string, limit int) ([]Hit, error) {
	var page Page[Hit]
	err := c.Get(ctx, fmt.Sprintf("/conversations/search?limit=%d&q=%s", limit, url.QueryEscape(question)), &page)
	return page.Data, err
}

// Event is one event of a stream.
type Event struct {
	ID   string
	Type string
	Data []byte
}

// Stream sends a request that is answered with events and hands them over until emit says stop (false), the stream
// ends, or it breaks. The status is 0 when there was no answer.
func (c *Client) Stream(ctx context.Context, method, path string, body any, emit func(Event) bool, headers ...string) (status int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a stream that is not read to its end is hung up
	res, err := c.open(ctx, method, path, body, append([]string{"Accept", "text/event-stream"}, headers...)...)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if !strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream") {
		raw, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10)) // for the message only
		return res.StatusCode, fmt.Errorf("no stream: status %d: %s", res.StatusCode, bytes.TrimSpace(raw))
	}
	return res.StatusCode, Events(res.Body, emit)
}
