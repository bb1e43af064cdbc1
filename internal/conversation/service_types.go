package conversation

import (
	"encoding/json"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

// CreateInput starts a conversation.
type CreateInput struct {
	Details
	Once *event.Once
}

// SendInput adds a message and, with Reply, asks the model.
type SendInput struct {
	Text      string          // plain text; or
	Blocks    json.RawMessage // array of content blocks, kept verbatim
	Where     Where
	Reply     bool
	Provider  string // empty: the conversation's, the project's, the installation's, in that order
	Model     string // the same
	MaxTokens int    // 0: the provider's default
	Once      *event.Once
}

// AgainInput asks for another answer to the same user message.
type AgainInput struct {
	Provider  string
	Model     string
	MaxTokens int
	Once      *event.Once
}

// Exchange is a turn with its messages, as they stand. A message that asked nobody has no Turn and no Assistant.
type Exchange struct {
	User      Message
	Assistant *Message
	Turn      *Turn
}

// Moment is one event of a turn's stream. Exactly one of the groups is filled, as Type says.
type Moment struct {
	ID   string // what a client hands back as Last-Event-ID
	Type MomentType

	Turn      *Turn    // turn.started, turn.waiting and the ends
	User      *Message // turn.started
	Assistant *Message // turn.started, message.completed

	MessageID ident.MessageID // message.delta
	Offset    int             // message.delta: length of the text before it, in UTF-16 code units
	Text      string          // message.delta
}

// MomentType names the events of a turn's stream.
type MomentType string

// The types, in the order in which they come. A turn has one of the four ends.
const (
	MomentStarted     MomentType = "turn.started"
	MomentWaiting     MomentType = "turn.waiting" // only of a turn whose answer is delivered later
	MomentDelta       MomentType = "message.delta"
	MomentMessage     MomentType = "message.completed"
	MomentCompleted   MomentType = "turn.completed"
	MomentFailed      MomentType = "turn.failed"
	MomentStopped     MomentType = "turn.stopped"
	MomentInterrupted MomentType = "turn.interrupted"
)

// MatchMode says how many of the words a document must have.
type MatchMode string

// The modes.
const (
	MatchAuto MatchMode = "auto" // what has all the words first, then what has any
	MatchAll  MatchMode = "all"
	MatchAny  MatchMode = "any"
)

// SearchInput is a question to the index.
type SearchInput struct {
	Text    string
	Mode    MatchMode // empty: MatchAuto
	Newest  bool      // order by time instead of relevance
	Project ident.ProjectID
	Role    Role
	From    time.Time
	To      time.Time
	Limit   int
	Cursor  string

	guest bool // all words count alike: how common they are is a figure of the whole tenant
}

// Hit is one result of a search.
type Hit struct {
	ConversationID    ident.ConversationID
	ConversationTitle string
	ProjectID         ident.ProjectID // empty: none
	MessageID         ident.MessageID // empty: the title matched
	Role              Role            // empty for a title
	Snippet           string          // HTML-escaped text with the matches in <mark>
	Score             float64         // higher is better; comparable within one answer only
	CreatedAt         time.Time
}
