package project

import (
	"context"
	"encoding/json"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
)

// Status is where a project stands.
type Status string

// The statuses.
const (
	Active    Status = "active"
	Paused    Status = "paused"
	Completed Status = "completed"
	Archived  Status = "archived"
)

// Priority is the owner's own ordering.
type Priority string

// The priorities.
const (
	Low      Priority = "low"
	Medium   Priority = "medium"
	High     Priority = "high"
	Critical Priority = "critical"
)

// Project groups conversations. Details are what its owner may edit.
type Project struct {
	ID ident.ProjectID
	Details
	Owner             event.Who
	Role              access.Role // the reader's, filled by the service
	ConversationCount int64       // filled by reads
	Version           int64       // counts edits, from 1
	CreatedAt         time.Time
	UpdatedAt         time.Time
}

// Details are the editable fields.
type Details struct {
	Name         string
	Description  string
	Instructions string // becomes part of the system prompt of the project's conversations
	Status       Status
	Priority     Priority
	Color        string
	Icon         string
	Tags         []string
	Provider     string // default of its conversations; empty means the installation's
	Model        string
	Settings     json.RawMessage // JSON object
	Deadline     *time.Time
}

// Query narrows and pages a listing, newest first.
type Query struct {
	Status Status // empty: any
	Tag    string // exact; empty: any
	Text   string // part of the name, without regard to case
	Limit  int
	Cursor string
}

// Store keeps projects in one tenant's database.
type Store interface {
	event.Onces
	// InsertProject adds p. A repeated idempotency record fails with event.CodeRepeated and writes nothing; what a tenant
	// has no room for is fault.Forbidden, here as in an edit that adds something.
	InsertProject(ctx context.Context, p Project, c event.Change) error
	// FindProject returns fault.NotFound when there is none.
	FindProject(ctx context.Context, id ident.ProjectID) (Project, error)
	// ListProjects returns a page, newest first, and the next cursor (empty at the end). A bad cursor is Invalid. With the
	// tenant's own come those of others that its owner is a member of, as they were last seen, with Role.
	ListProjects(ctx context.Context, q Query) ([]Project, string, error)
	// UpdateProject reads the project under a lock, lets edit decide, and commits what edit returns.
	UpdateProject(ctx context.Context, id ident.ProjectID, edit func(Project) (Project, event.Change, error)) (Project, error)
	// DeleteProject reads the project under a lock, lets decide judge with the number of its conversations, and removes
	// it. The conversations stay, without a project, unless drop is set: then they go too, with messages and index.
	DeleteProject(ctx context.Context, id ident.ProjectID, drop bool,
		decide func(p Project, conversations int64) (event.Change, error)) error
}
