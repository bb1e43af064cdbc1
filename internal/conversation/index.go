package conversation

import (
	"context"
	"time"

	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/words"
)

// Candidates asks the index for documents. Match is the parsed expression; the rest narrows.
type Candidates struct {
	Match   words.Match
	Project ident.ProjectID
	Role    Role      // messages only; a role excludes titles
	From    time.Time // inclusive; zero: open
	To      time.Time // exclusive; zero: open
	Limit   int       // newest first, no more than this many
	Text    int64     // no more documents once their texts have more bytes than this; 0: no such bound
	Before  int64     // only documents with a smaller Doc.N; 0: all
}

// Doc is one document of the index: a message, or a conversation's title (MessageID empty).
type Doc struct {
	N                 int64 // order of creation within messages, or within titles
	ConversationID    ident.ConversationID
	ConversationTitle string
	ProjectID         ident.ProjectID
	MessageID         ident.MessageID
	ParentID          ident.MessageID // the message that this one answers to; empty for a root and for a title
	Role              Role
	Text              string // the message's content; for a title, the title
	CreatedAt         time.Time
}

// Frequencies are what ranking goes by.
type Frequencies struct {
	Clauses  []int64 // how many messages match each clause
	Total    int64   // how many messages there are, deleted ones included
	Messages int64   // the N of the newest message; what comes later has a greater one
	Titles   int64   // the same of titles
}

// Question is what the index is asked at once.
type Question struct {
	// Count asks for the frequencies of Clauses. What is looked for without Before is then not newer than the newest
	// that they know.
	Count   bool
	Clauses []words.Clause
	// Messages are looked for one after the other, until as many are found as the first one's Limit.
	Messages []Candidates
	Titles   *Candidates // nil: none are looked for
}

// Findings are the answer. Messages come in the order of the question, newest first each.
type Findings struct {
	Frequencies
	Found       []Doc
	FoundTitles []Doc
}

// Index finds messages and titles by their words. Both engines return the same documents for the same question.
type Index interface {
	// Ask answers a question. Its cost is bounded, however common the words are.
	//
	// Frequencies are exact while there are no more than 2,000 messages; among more, what is common is estimated from
	// the newest.
	//
	// One round trip on PostgreSQL, but for texts of many megabytes and histories of hundreds of thousands of messages.
	Ask(ctx context.Context, q Question) (Findings, error)
}
