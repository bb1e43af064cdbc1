package httpapi

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/project"
)

// page is how every list is answered.
type page[T any] struct {
	Data       []T     `json:"data" nullable:"false"`
	NextCursor *string `json:"next_cursor" doc:"Goes into cursor for the next page; null at the end"`
}

type paged[T any] struct{ Body page[T] }

func pageOf[T, V any](items []T, next string, view func(T) V) *paged[V] {
	out := &paged[V]{Body: page[V]{Data: make([]V, 0, len(items))}}
	for _, it := range items {
		out.Body.Data = append(out.Body.Data, view(it))
	}
	if next != "" {
		out.Body.NextCursor = &next
	}
	return out
}

// object is any JSON object, kept as it was written.
type object json.RawMessage

// MarshalJSON writes the object, or an empty one.
func (o object) MarshalJSON() ([]byte, error) {
	if len(o) == 0 {
		return []byte("{}"), nil
	}
	return o, nil
}

// UnmarshalJSON keeps the text.
func (o *object) UnmarshalJSON(raw []byte) error {
	*o = append((*o)[:0], raw...)
	return nil
}

// Schema says that it is an object with anything in it.
func (object) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: "object", AdditionalProperties: true}
}

// person names somebody.
type person struct {
	ID   *string `json:"id" doc:"null for the server itself" example:"usr_06f4k3z9c8tqv5m2yb7n1x0d4e"`
	Name string  `json:"name" example:"Ada"`
}

func personOf(w event.Who) person { return person{ID: orNull(string(w.ID)), Name: w.Name} }

// projectView is a project as clients see it.
type projectView struct {
	ID                string     `json:"id" example:"prj_06f4k3z9c8tqv5m2yb7n1x0d4e"`
	Name              string     `json:"name"`
	Description       string     `json:"description"`
	Instructions      string     `json:"instructions" doc:"Becomes part of the system prompt of the project's conversations"`
	Status            string     `json:"status" enum:"active,paused,completed,archived"`
	Priority          string     `json:"priority" enum:"low,medium,high,critical"`
	Color             string     `json:"color"`
	Icon              string     `json:"icon"`
	Tags              []string   `json:"tags" nullable:"false"`
	Provider          string     `json:"provider,omitempty"`
	Model             string     `json:"model,omitempty"`
	Settings          object     `json:"settings"`
	Deadline          *time.Time `json:"deadline,omitempty"`
	Role              string     `json:"role" enum:"owner,editor,commenter,viewer" doc:"What the reader may do here"`
	Owner             person     `json:"owner"`
	ConversationCount int64      `json:"conversation_count"`
	Version           int64      `json:"version" doc:"Counts edits; the ETag"`
	CreatedAt         time.Time  `json:"created_at"`
	UpdatedAt         time.Time  `json:"updated_at"`
}

func viewProject(p project.Project) projectView {
	return projectView{
		ID: string(p.ID), Name: p.Name, Description: p.Description, Instructions: p.Instructions,
		Status: string(p.Status), Priority: string(p.Priority), Color: p.Color, Icon: p.Icon, Tags: tagsOf(p.Tags),
		Provider: p.Provider, Model: p.Model, Settings: object(p.Settings), Deadline: p.Deadline,
		Role: string(p.Role), Owner: personOf(p.Owner), ConversationCount: p.ConversationCount,
		Version: p.Version, CreatedAt: p.CreatedAt.UTC(), UpdatedAt: p.UpdatedAt.UTC(),
	}
}

// ConversationView is a conversation as clients see it.
type ConversationView struct {
	ID              string     `json:"id" example:"conv_06f4k3z9c8tqv5m2yb7n1x0d4e"`
	Title           string     `json:"title"`
	ProjectID       *string    `json:"project_id"`
	Description     string     `json:"description"`
	Status          string     `json:"status" enum:"active,pinned,archived"`
	ImportanceLevel int        `json:"importance_level" minimum:"1" maximum:"10"`
	Tags            []string   `json:"tags" nullable:"false"`
	System          string     `json:"system" doc:"The conversation's own system prompt"`
	Provider        string     `json:"provider,omitempty"`
	Model           string     `json:"model,omitempty"`
	Settings        object     `json:"settings"`
	MessageCount    int64      `json:"message_count"`
	LeafID          *string    `json:"leaf_id" doc:"Newest message of the active branch"`
	Creator         person     `json:"creator"`
	Version         int64      `json:"version" doc:"Counts edits; the ETag. Sending is no edit"`
	CreatedAt       time.Time  `json:"created_at"`
	UpdatedAt       time.Time  `json:"updated_at"`
	LastMessageAt   *time.Time `json:"last_message_at"`
}

func viewConversation(c conversation.Conversation) ConversationView {
	return ConversationView{
		ID: string(c.ID), Title: c.Title, ProjectID: orNull(string(c.ProjectID)), Description: c.Description,
		Status: string(c.Status), ImportanceLevel: c.ImportanceLevel, Tags: tagsOf(c.Tags), System: c.System,
		Provider: c.Provider, Model: c.Model, Settings: object(c.Settings), MessageCount: c.MessageCount,
		LeafID: orNull(string(c.Leaf)), Creator: personOf(c.Creator), Version: c.Version,
		CreatedAt: c.CreatedAt.UTC(), UpdatedAt: c.UpdatedAt.UTC(), LastMessageAt: utc(c.LastMessageAt),
	}
}

// openedView is a conversation with, when asked for, the latest page of its messages.
type openedView struct {
	ConversationView
	Messages           *[]messageView `json:"messages,omitempty" doc:"With include=messages: the newest ones, newest first"`
	MessagesNextCursor *string        `json:"messages_next_cursor,omitempty" doc:"Continues the messages at …/messages"`
}

// failureView says why a turn or a message failed.
type failureView struct {
	Code   string `json:"code" example:"provider_overloaded"`
	Detail string `json:"detail"`
}

func failureOf(code, detail string) *failureView {
	if code == "" {
		return nil
	}
	return &failureView{code, detail}
}

// TurnView is a turn as clients see it.
type TurnView struct {
	ID                 string       `json:"id" example:"turn_06f4k3z9c8tqv5m2yb7n1x0d4e"`
	ConversationID     string       `json:"conversation_id"`
	UserMessageID      string       `json:"user_message_id"`
	AssistantMessageID string       `json:"assistant_message_id"`
	State              string       `json:"state" enum:"streaming,waiting,completed,failed,stopped,interrupted"`
	Provider           string       `json:"provider"`
	Model              string       `json:"model" doc:"As asked for; the message names the one that answered"`
	Error              *failureView `json:"error,omitempty"`
	StartedAt          time.Time    `json:"started_at"`
	FinishedAt         *time.Time   `json:"finished_at"`
	Deadline           *time.Time   `json:"deadline,omitempty" doc:"While it is waiting: when it fails unless its answer has come"`
}

func viewTurn(t conversation.Turn) TurnView {
	v := TurnView{
		ID: string(t.ID), ConversationID: string(t.Conversation), UserMessageID: string(t.UserMessage),
		AssistantMessageID: string(t.AssistantMessage), State: string(t.State), Provider: t.Provider, Model: t.Model,
		Error: failureOf(t.ErrorCode, t.ErrorDetail), StartedAt: t.StartedAt.UTC(), FinishedAt: utc(t.FinishedAt),
	}
	if t.State == conversation.Waiting {
		v.Deadline = utc(&t.Lease)
	}
	return v
}

// usageView counts tokens as Anthropic does.
type usageView struct {
	InputTokens              int64 `json:"input_tokens"`
	OutputTokens             int64 `json:"output_tokens"`
	CacheReadInputTokens     int64 `json:"cache_read_input_tokens"`
	CacheCreationInputTokens int64 `json:"cache_creation_input_tokens"`
}

// blocks is an array of content blocks, kept as it was written.
type blocks json.RawMessage

// MarshalJSON writes the blocks.
func (b blocks) MarshalJSON() ([]byte, error) {
	if len(b) == 0 {
		return []byte("[]"), nil
	}
	return b, nil
}

// Schema says that it is an array of objects.
func (blocks) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: "array", Items: &huma.Schema{Type: "object", AdditionalProperties: true},
		Description: "Content blocks, verbatim"}
}

// messageView is a message as clients see it.
type messageView struct {
	ID             string       `json:"id" example:"msg_06f4k3z9c8tqv5m2yb7n1x0d4e"`
	ConversationID string       `json:"conversation_id"`
	ParentID       *string      `json:"parent_id" doc:"null for a root"`
	TurnID         *string      `json:"turn_id" doc:"null for a message that asked nobody"`
	Role           string       `json:"role" enum:"user,assistant,system"`
	Content        string       `json:"content" doc:"The text of all blocks"`
	Blocks         blocks       `json:"blocks"`
	State          string       `json:"state" enum:"completed,streaming,failed,stopped,interrupted"`
	Author         person       `json:"author"`
	Provider       string       `json:"provider"`
	Model          string       `json:"model"`
	StopReason     string       `json:"stop_reason"`
	Usage          usageView    `json:"usage"`
	CostMicroUSD   int64        `json:"cost_microusd"`
	FirstTokenMS   int64        `json:"first_token_ms"`
	LatencyMS      int64        `json:"latency_ms"`
	Error          *failureView `json:"error,omitempty"`
	CreatedAt      time.Time    `json:"created_at"`
	UpdatedAt      time.Time    `json:"updated_at"`
}

func viewMessage(m conversation.Message) messageView {
	return messageView{
		ID: string(m.ID), ConversationID: string(m.Conversation), ParentID: orNull(string(m.Parent)),
		TurnID: orNull(string(m.Turn)), Role: string(m.Role), Content: m.Content, Blocks: blocksOf(m),
		State: string(m.State), Author: personOf(m.Author), Provider: m.Provider, Model: m.Model,
		StopReason: m.StopReason, Usage: usageView(m.Usage), CostMicroUSD: m.CostMicroUSD,
		FirstTokenMS: m.FirstTokenMS, LatencyMS: m.LatencyMS, Error: failureOf(m.ErrorCode, m.ErrorDetail),
		CreatedAt: m.CreatedAt.UTC(), UpdatedAt: m.UpdatedAt.UTC(),
	}
}

type textBlock struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

// blocksOf writes out what the store leaves implicit: text alone is one text block.
func blocksOf(m conversation.Message) blocks {
	if len(m.Blocks) > 0 || m.Content == "" {
		return blocks(m.Blocks)
	}
	raw, err := json.Marshal([]textBlock{{Type: "text", Text: m.Content}})
	if err != nil {
		return nil // strings always marshal
	}
	return raw
}

// hitView is one result of a search.
type hitView struct {
	ConversationID    string    `json:"conversation_id"`
	ConversationTitle string    `json:"conversation_title"`
	ProjectID         *string   `json:"project_id"`
	MessageID         *string   `json:"message_id" doc:"null when the title matched"`
	Role              *string   `json:"role" doc:"Who said it; null for a title"`
	Snippet           string    `json:"snippet" doc:"HTML-escaped text with the matches in <mark>" example:"the <mark>harbour</mark> at night"`
	Score             float64   `json:"score" doc:"Higher is better; comparable within one answer only"`
	CreatedAt         time.Time `json:"created_at"`
}

func viewHit(h conversation.Hit) hitView {
	return hitView{ConversationID: string(h.ConversationID), ConversationTitle: h.ConversationTitle,
		ProjectID: orNull(string(h.ProjectID)), MessageID: orNull(string(h.MessageID)), Role: orNull(string(h.Role)),
		Snippet: h.Snippet, Score: h.Score, CreatedAt: h.CreatedAt.UTC()}
}

// entryView is one line of the audit trail.
type entryView struct {
	ID        string    `json:"id" example:"aud_06f4k3z9c8tqv5m2yb7n1x0d4e"`
	At        time.Time `json:"at"`
	Action    string    `json:"action" example:"conversation.created"`
	Subject   string    `json:"subject" doc:"Identifier of what it was about"`
	Outcome   string    `json:"outcome" enum:"done,refused"`
	Actor     person    `json:"actor"`
	SessionID *string   `json:"session_id"`
	Address   string    `json:"address"`
	RequestID string    `json:"request_id"`
	Detail    object    `json:"detail"`
}

func viewEntry(e audit.Entry) entryView {
	return entryView{ID: string(e.ID), At: e.At.UTC(), Action: e.Action, Subject: e.Subject, Outcome: string(e.Outcome),
		Actor: personOf(event.Who{ID: e.ActorID, Name: e.ActorName}), SessionID: orNull(string(e.Session)),
		Address: e.Address, RequestID: e.RequestID, Detail: object(e.Detail)}
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := t.UTC()
	return &u
}

func tagsOf(tags []string) []string {
	if tags == nil {
		return []string{}
	}
	return tags
}

func etag(version int64) string { return strconv.Quote(strconv.FormatInt(version, 10)) }

// ifVersion reads If-Match: nothing and * ask for no version; a list is more than an edit can use.
func ifVersion(header string) (*int64, error) {
	const op = "httpapi.ifVersion"
	if header == "" || header == "*" {
		return nil, nil
	}
	weak := len(header) > 2 && header[:2] == "W/"
	if weak {
		header = header[2:]
	}
	n := len(header)
	if n < 3 || header[0] != '"' || header[n-1] != '"' {
		return nil, fault.BadInput(op, "header.If-Match", `must be one entity tag, such as "3", or *`)
	}
	v, err := strconv.ParseInt(header[1:n-1], 10, 64)
	if weak || err != nil {
		// Well-formed, but none of ours: it cannot match.
		return nil, fault.New(fault.Stale, op, codeStale, "that is not an entity tag of this resource")
	}
	return &v, nil
}
