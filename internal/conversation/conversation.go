package conversation

import (
	"encoding/json"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

// Status is where a conversation stands in its owner's lists.
type Status string

// The statuses.
const (
	Active   Status = "active"
	Pinned   Status = "pinned"
	Archived Status = "archived"
)

// Conversation is a tree of messages with a title. Details are what its owner may edit.
type Conversation struct {
	ID ident.ConversationID
	Details
	TitleByHand   bool // the title was given, not made from the first message
	Creator       event.Who
	MessageCount  int64
	Leaf          ident.MessageID // newest message of the active branch; empty when there is none
	Version       int64           // counts edits of Details, from 1; sending is no edit
	CreatedAt     time.Time
	UpdatedAt     time.Time // last edit or activity
	LastMessageAt *time.Time
}

// Details are the editable fields.
type Details struct {
	Title           string
	ProjectID       ident.ProjectID // empty: none
	Description     string
	Status          Status
	ImportanceLevel int // 1 to 10
	Tags            []string
	System          string
	Provider        string
	Model           string
	Settings        json.RawMessage // JSON object
}

// Role is who speaks in a message.
type Role string

// The roles.
const (
	User      Role = "user"
	Assistant Role = "assistant"
	SystemSay Role = "system"
)

// State is how far a turn, or a message, has come.
type State string

// The states. A message is never Waiting: while its turn waits it is Streaming.
const (
	Streaming   State = "streaming"
	Waiting     State = "waiting"
	Completed   State = "completed"
	Failed      State = "failed"
	Stopped     State = "stopped"
	Interrupted State = "interrupted"
)

// Final reports whether nothing follows the state.
func (s State) Final() bool { return s != Streaming && s != Waiting }

// Message is one node of the tree.
type Message struct {
	ID           ident.MessageID
	Conversation ident.ConversationID
	Parent       ident.MessageID // empty for a root
	Turn         ident.TurnID    // empty for a message that asked nobody
	Branch       int64           // see the package comment
	Depth        int64           // roots have depth 1
	Role         Role
	Content      string          // the text blocks joined
	Blocks       json.RawMessage // array of content blocks, verbatim; nil means one text block of Content
	State        State
	Author       event.Who
	Provider     string
	Model        string
	StopReason   string
	Usage        Usage
	RawUsage     json.RawMessage
	CostMicroUSD int64
	FirstTokenMS int64
	LatencyMS    int64
	ErrorCode    string
	ErrorDetail  string
	Tokens       int64  // estimate of this message alone
	TokensUpTo   int64  // sum of Tokens over the path from the root to here
	PrefixHash   string // assistants: hash of the prompt that was answered, so that thinking is replayed only after it
	CreatedAt    time.Time
	UpdatedAt    time.Time

	// Node and Lease are its turn's, read along with streaming messages to tell whether the owner is alive.
	Node  string
	Lease time.Time
}

// Kind says how a turn came about.
type Kind string

// The kinds of turn.
const (
	KindSend     Kind = "send"
	KindRetry    Kind = "retry"
	KindContinue Kind = "continue"
)

// Turn is one request to a model and what comes of it.
type Turn struct {
	ID               ident.TurnID
	Conversation     ident.ConversationID
	UserMessage      ident.MessageID
	AssistantMessage ident.MessageID
	Kind             Kind
	State            State
	Provider         string
	Model            string // as asked for; the message names the one that answered
	MaxTokens        int
	SystemHash       string // names the rendered system prompt in the store
	Omitted          int64  // messages of the branch that the prompt left out
	ErrorCode        string
	ErrorDetail      string
	Node             string    // who runs it; empty: nobody, it waits for a callback
	Lease            time.Time // until when that node's word counts without renewal; of a waiting turn, how long it waits
	StartedAt        time.Time
	FinishedAt       *time.Time
	Project          ident.ProjectID // of its conversation, when the turn was read
}
