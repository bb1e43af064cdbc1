package conversation

import (
	"context"
	"encoding/json"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

// Sort is the order of a listing of conversations.
type Sort string

// The orders.
const (
	ByUpdated    Sort = "updated_at"
	ByCreated    Sort = "created_at"
	ByLast       Sort = "last_message_at" // conversations without messages come last in either direction
	ByTitle      Sort = "title"           // without regard to case
	ByImportance Sort = "importance_level"
)

// Query narrows, orders and pages a listing of conversations.
type Query struct {
	Project    ident.ProjectID
	Status     Status
	Tag        string
	Importance int
	Title      string // part of the title, without regard to case
	Sort       Sort   // empty: ByUpdated
	Ascending  bool
	Limit      int
	Cursor     string
}

// MessageQuery pages the messages of a conversation.
type MessageQuery struct {
	All       bool            // every branch, in order of creation; otherwise one path
	Leaf      ident.MessageID // end of the path; empty: the active branch
	Ascending bool
	Limit     int
	Cursor    string
}

// Where names the parent of what is appended, and the idempotency record that comes with it.
type Where struct {
	Root   bool            // a new root
	Parent ident.MessageID // under this message; empty (and not Root): under the active branch's leaf
	Once   *event.Once     // one of its scope and key that is there already is Spot.Was; nil: none is looked for
}

// Spot is what the store read, under the conversation's lock, before an append.
type Spot struct {
	Conversation Conversation
	// Project's part of the prompt; zero when the conversation has no project.
	Instructions    string
	ProjectProvider string
	ProjectModel    string
	ProjectSettings json.RawMessage
	// Parent is the message that the new ones go under; nil for a root. Its Content and Blocks are not read.
	Parent *Message
	// Was is the live idempotency record that stands in the way of Where.Once; nil when there is none.
	Was *event.Once
}

// Entry is what an append adds. The first message goes under the spot's parent, the second under the first; store
// fills Branch, Depth and TokensUpTo. Turn is stored when it is not nil.
type Entry struct {
	Messages []Message
	Turn     *Turn
	// System is the rendered system prompt that Turn.SystemHash names; stored once per hash.
	System string
}

// Ending is how a turn ends, or changes its state, with its assistant's message.
type Ending struct {
	Turn    Turn
	Message Message
}

// Conversations is the part of the store that keeps conversations.
type Conversations interface {
	event.Onces
	// InsertConversation adds c. A project that does not exist is fault.Invalid at "body.project_id"; a repeated
	// idempotency record fails with event.CodeRepeated. Nothing is written then.
	InsertConversation(ctx context.Context, c Conversation, ch event.Change) error
	// FindConversation returns fault.NotFound when there is none.
	FindConversation(ctx context.Context, id ident.ConversationID) (Conversation, error)
	// ListConversations returns a page and the next cursor (empty at the end). A bad cursor is Invalid.
	ListConversations(ctx context.Context, q Query) ([]Conversation, string, error)
	// UpdateConversation reads under a lock, lets edit decide, and commits what edit returns, title index included.
	// An edit that returns a Change without events and an unchanged conversation commits nothing.
	UpdateConversation(ctx context.Context, id ident.ConversationID,
		edit func(Conversation) (Conversation, event.Change, error)) (Conversation, error)
	// DeleteConversation reads it under a lock, lets decide judge, and removes it with its messages, turns and index.
	DeleteConversation(ctx context.Context, id ident.ConversationID,
		decide func(Conversation) (event.Change, error)) error
}

// Messages is the part of the store that keeps messages and turns.
type Messages interface {
	// Append locks the conversation, reads the spot, lets fill decide, and commits the entry: messages, turn, system
	// prompt, search index, the conversation's leaf, counters and times. The new leaf is the last message added.
	// fault.NotFound: no such conversation, or no such parent in it. event.CodeRepeated as above.
	// Two round trips on PostgreSQL.
	Append(ctx context.Context, id ident.ConversationID, w Where,
		fill func(Spot) (Entry, event.Change, error)) (Conversation, Entry, error)
	// ListMessages returns a page and the next cursor; where messages are long a page ends early, with a cursor.
	// fault.NotFound: no such conversation, or no such leaf in it.
	// One round trip.
	ListMessages(ctx context.Context, id ident.ConversationID, q MessageQuery) ([]Message, string, error)
	// FindMessage returns one message of the conversation.
	FindMessage(ctx context.Context, id ident.ConversationID, m ident.MessageID) (Message, error)
	// Path reads the end of the path from the root to the message, oldest first: at most limit messages, none whose
	// TokensUpTo is at or below after. It reads no more rows than it returns.
	Path(ctx context.Context, id ident.ConversationID, to ident.MessageID, limit int, after int64) ([]Message, error)
}

// Turns is the part of the store that follows running turns.
type Turns interface {
	// FindTurn returns the turn with its user's and its assistant's message.
	FindTurn(ctx context.Context, id ident.ConversationID, t ident.TurnID) (Turn, Message, Message, error)
	// FindTurnOnce also looks, in the same round trip, for the live idempotency record of once's scope and key; it returns
	// nil when there is none.
	FindTurnOnce(ctx context.Context, id ident.ConversationID, t ident.TurnID, once *event.Once) (Turn, Message, Message, *event.Once, error)
	// FlushTurn appends text to the assistant's message, which must be Streaming, hold exactly at UTF-16 code units
	// and belong to node, and renews the lease. An empty text only renews. held is false when that is not so: somebody
	// else ended the turn. One round trip; no event.
	// text is asked when the transaction has its turn, which may be long after the call, so that it carries what was said
	// meanwhile; and again where the transaction has to begin anew. What it said last is what is stored, or not. It must not
	// use the store.
	FlushTurn(ctx context.Context, t Turn, at int, text func() string, lease time.Time) (held bool, err error)
	// EndTurn reads the turn and its assistant's message under a lock, lets end decide, and commits what it returns
	// with the message's search index and the conversation's times. An end that returns an error changes nothing.
	// The change is skipped when the Ending equals what was read and there are no events.
	EndTurn(ctx context.Context, t ident.TurnID, end func(Turn, Message) (Ending, event.Change, error)) (Ending, error)
	// RunningTurns returns turns that are Streaming or Waiting, those first whose lease ends first: many may wait for long,
	// and none of them is in the way of one whose owner is gone.
	RunningTurns(ctx context.Context, limit int) ([]Turn, error)
	// System returns a rendered system prompt by its hash.
	System(ctx context.Context, hash string) (string, error)
}

// Store is what Service needs of a tenant's database.
type Store interface {
	Conversations
	Messages
	Turns
	Index
}
