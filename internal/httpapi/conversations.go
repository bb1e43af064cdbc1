package httpapi

import (
	"encoding/json"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// conversationBody is what a conversation is made from, and what PUT replaces. Absent fields take their defaults.
type conversationBody struct {
	Title           string   `json:"title,omitempty" maxLength:"500" doc:"Without one, the first message gives it" example:"Chapter 3"`
	ProjectID       string   `json:"project_id,omitempty" nullable:"true" maxLength:"64"`
	Description     string   `json:"description,omitempty" maxLength:"10000"`
	Status          string   `json:"status,omitempty" enum:"active,pinned,archived" doc:"Default: active"`
	ImportanceLevel int      `json:"importance_level,omitempty" minimum:"1" maximum:"10" doc:"Default: 3"`
	Tags            []string `json:"tags,omitempty" maxItems:"50"`
	System          string   `json:"system,omitempty" doc:"The conversation's own system prompt"`
	Provider        string   `json:"provider,omitempty" doc:"Default: the project's, then the installation's"`
	Model           string   `json:"model,omitempty" maxLength:"200"`
	Settings        object   `json:"settings,omitempty" doc:"Free-form object of at most 16 KiB; some keys mean something to a provider"`
}

// conversationPatch is the same with everything left out that stays as it is; null resets a field to its default.
type conversationPatch struct {
	Title           string   `json:"title,omitempty" maxLength:"500" nullable:"true"`
	ProjectID       string   `json:"project_id,omitempty" nullable:"true" maxLength:"64" doc:"null takes it out of its project"`
	Description     string   `json:"description,omitempty" maxLength:"10000" nullable:"true"`
	Status          string   `json:"status,omitempty" enum:"active,pinned,archived" nullable:"true"`
	ImportanceLevel int      `json:"importance_level,omitempty" minimum:"1" maximum:"10" nullable:"true"`
	Tags            []string `json:"tags,omitempty" maxItems:"50"`
	System          string   `json:"system,omitempty" nullable:"true"`
	Provider        string   `json:"provider,omitempty" nullable:"true"`
	Model           string   `json:"model,omitempty" maxLength:"200" nullable:"true"`
	Settings        object   `json:"settings,omitempty" nullable:"true" doc:"Merged key by key; null removes a key"`
}

func (b conversationBody) details() (conversation.Details, error) {
	d := conversation.Details{
		Title: b.Title, ProjectID: ident.ProjectID(b.ProjectID), Description: b.Description,
		Status: conversation.Status(b.Status), ImportanceLevel: b.ImportanceLevel, Tags: b.Tags, System: b.System,
		Provider: b.Provider, Model: b.Model, Settings: json.RawMessage(b.Settings),
	}
	if b.ProjectID != "" {
		if _, err := ident.Parse[ident.ProjectID](b.ProjectID); err != nil {
			return d, fault.BadInput("httpapi.details", "body.project_id", "there is no such project")
		}
	}
	return d, nil
}

func conversationBodyOf(d conversation.Details) conversationBody {
	return conversationBody{
		Title: d.Title, ProjectID: string(d.ProjectID), Description: d.Description, Status: string(d.Status),
		ImportanceLevel: d.ImportanceLevel, Tags: d.Tags, System: d.System, Provider: d.Provider, Model: d.Model,
		Settings: object(d.Settings),
	}
}

type conversationAnswer struct {
	ETag string `header:"ETag" doc:"The version, for If-Match"`
	Body ConversationView
}

type createdConversation struct {
	ETag     string `header:"ETag" doc:"The version, for If-Match"`
	Location string `header:"Location"`
	Replayed string `header:"Idempotency-Replayed" doc:"true when this is an earlier answer"`
	Body     ConversationView
}

// ConversationPath names a conversation in the path.
type ConversationPath struct {
	ID string `path:"id" doc:"Identifier of a conversation, conv_…" example:"conv_06f4k3z9c8tqv5m2yb7n1x0d4e"`
}

type conversationCreate struct {
	Call
	Body conversationBody
}

func (s *Server) createConversation(x *exchange, in *conversationCreate) (*createdConversation, error) {
	once, err := x.once()
	if err != nil {
		return nil, err
	}
	details, err := in.Body.details()
	if err != nil {
		return nil, err
	}
	c, err := at(x, in.Body.ProjectID, func(ws Workspace) (conversation.Conversation, error) {
		return ws.Conversations.Create(x.ctx, x.actor, conversation.CreateInput{Details: details, Once: once})
	})
	if err != nil {
		return nil, err
	}
	return &createdConversation{ETag: etag(c.Version), Location: basePath + "/conversations/" + string(c.ID),
		Replayed: replayed(once), Body: viewConversation(c)}, nil
}

type conversationList struct {
	Call
	ProjectID       string `query:"project_id" maxLength:"64"`
	Status          string `query:"status" enum:"active,pinned,archived"`
	Tag             string `query:"tag" maxLength:"64" doc:"Only conversations with this tag"`
	ImportanceLevel int    `query:"importance_level" minimum:"1" maximum:"10"`
	Q               string `query:"q" maxLength:"200" doc:"Part of the title, without regard to case"`
	Sort            string `query:"sort" enum:"updated_at,created_at,last_message_at,title,importance_level" default:"updated_at"`
	Order           string `query:"order" enum:"asc,desc" doc:"Default: desc; for title asc"`
	Limit           int    `query:"limit" minimum:"1" maximum:"200" default:"20"`
	Cursor          string `query:"cursor" maxLength:"8192" doc:"From next_cursor"` // by title it holds one, sealed for guests
}

func (s *Server) listConversations(x *exchange, in *conversationList) (*paged[ConversationView], error) {
	q := conversation.Query{
		Project: ident.ProjectID(in.ProjectID), Status: conversation.Status(in.Status), Tag: in.Tag,
		Importance: in.ImportanceLevel, Title: in.Q, Sort: conversation.Sort(in.Sort),
		Ascending: in.Order == "asc" || in.Order == "" && in.Sort == "title", Limit: in.Limit, Cursor: in.Cursor,
	}
	cs, next, err := listIn(x, in.ProjectID, func(ws Workspace) ([]conversation.Conversation, string, error) {
		return ws.Conversations.List(x.ctx, x.actor, q)
	})
	if err != nil {
		return nil, err
	}
	return pageOf(cs, next, viewConversation), nil
}

type conversationFind struct {
	Call
	ConversationPath
	Include string `query:"include" enum:"messages" doc:"messages adds the latest page of them"`
}

type openedAnswer struct {
	ETag string `header:"ETag" doc:"The version, for If-Match"`
	Body openedView
}

func (s *Server) findConversation(x *exchange, in *conversationFind) (*openedAnswer, error) {
	id, err := idAt[ident.ConversationID](in.ID)
	if err != nil {
		return nil, err
	}
	return at(x, in.ID, func(ws Workspace) (*openedAnswer, error) {
		c, err := ws.Conversations.Find(x.ctx, x.actor, id)
		if err != nil {
			return nil, err
		}
		out := &openedAnswer{ETag: etag(c.Version), Body: openedView{ConversationView: viewConversation(c)}}
		if in.Include == "messages" {
			ms, next, err := ws.Conversations.Messages(x.ctx, x.actor, id, conversation.MessageQuery{Limit: 50})
			if err != nil {
				return nil, err
			}
			p := pageOf(ms, next, viewMessage)
			out.Body.Messages, out.Body.MessagesNextCursor = &p.Body.Data, p.Body.NextCursor
		}
		return out, nil
	})
}

type conversationPut struct {
	Call
	ConversationPath
	IfMatch
	Body conversationBody
}

func (s *Server) putConversation(x *exchange, in *conversationPut) (*conversationAnswer, error) {
	return s.editConversation(x, in.ID, in.IfMatch.IfMatch, func(d *conversation.Details) error {
		var err error
		*d, err = in.Body.details()
		return err
	})
}

type conversationPatchIn struct {
	Call
	ConversationPath
	IfMatch
	Body conversationPatch
}

func (s *Server) patchConversation(x *exchange, in *conversationPatchIn) (*conversationAnswer, error) {
	return s.editConversation(x, in.ID, in.IfMatch.IfMatch, func(d *conversation.Details) error {
		b, err := merged(conversationBodyOf(*d), x.body)
		if err != nil {
			return err
		}
		*d, err = b.details()
		return err
	})
}

func (s *Server) editConversation(x *exchange, text, match string,
	change func(*conversation.Details) error,
) (*conversationAnswer, error) {
	id, err := idAt[ident.ConversationID](text)
	if err != nil {
		return nil, err
	}
	version, err := ifVersion(match)
	if err != nil {
		return nil, err
	}
	c, err := at(x, text, func(ws Workspace) (conversation.Conversation, error) {
		return ws.Conversations.Edit(x.ctx, x.actor, id, version, change)
	})
	if err != nil {
		return nil, err
	}
	return &conversationAnswer{ETag: etag(c.Version), Body: viewConversation(c)}, nil
}

type conversationDelete struct {
	Call
	ConversationPath
	IfMatch
}

func (s *Server) deleteConversation(x *exchange, in *conversationDelete) (*nothing, error) {
	id, err := idAt[ident.ConversationID](in.ID)
	if err != nil {
		return nil, err
	}
	version, err := ifVersion(in.IfMatch.IfMatch)
	if err != nil {
		return nil, err
	}
	return at(x, in.ID, func(ws Workspace) (*nothing, error) {
		return &nothing{}, ws.Conversations.Delete(x.ctx, x.actor, id, version)
	})
}

type messageList struct {
	Call
	ConversationPath
	Branch string `query:"branch" enum:"all" doc:"all lists every branch in order of creation; else one path"`
	Leaf   string `query:"leaf" maxLength:"64" doc:"The path that ends with this message; else the active branch"`
	Order  string `query:"order" enum:"asc,desc" default:"desc"`
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50"`
	Cursor string `query:"cursor" maxLength:"1024" doc:"From next_cursor"`
}

func (s *Server) listMessages(x *exchange, in *messageList) (*paged[messageView], error) {
	q := conversation.MessageQuery{All: in.Branch == "all", Ascending: in.Order == "asc", Limit: in.Limit,
		Cursor: in.Cursor}
	if in.Leaf != "" {
		if q.All {
			return nil, fault.BadInput("httpapi.listMessages", "query.leaf", "does not go with branch=all")
		}
		var err error
		if q.Leaf, err = ident.Parse[ident.MessageID](in.Leaf); err != nil {
			return nil, err
		}
	}
	id, err := idAt[ident.ConversationID](in.ID)
	if err != nil {
		return nil, err
	}
	return at(x, in.ID, func(ws Workspace) (*paged[messageView], error) {
		ms, next, err := ws.Conversations.Messages(x.ctx, x.actor, id, q)
		if err != nil {
			return nil, err
		}
		return pageOf(ms, next, viewMessage), nil
	})
}

type searchIn struct {
	Call
	Q         string    `query:"q" required:"true" maxLength:"1000" doc:"Words, \"phrases\", prefix*, -not; a whole question works too"`
	Match     string    `query:"match" enum:"auto,all,any" default:"auto" doc:"auto: what has all the words first, then what has any; sorted by newest, what has all, or else what has any"`
	Sort      string    `query:"sort" enum:"relevance,newest" default:"relevance"`
	ProjectID string    `query:"project_id" maxLength:"64"`
	Role      string    `query:"role" enum:"user,assistant,system"`
	From      time.Time `query:"from" doc:"Not before this time"`
	To        time.Time `query:"to" doc:"Before this time"`
	Limit     int       `query:"limit" minimum:"1" maximum:"200" default:"20"`
	Cursor    string    `query:"cursor" maxLength:"8192" doc:"From next_cursor"`
}

func (s *Server) search(x *exchange, in *searchIn) (*paged[hitView], error) {
	q := conversation.SearchInput{
		Text: in.Q, Mode: conversation.MatchMode(in.Match), Newest: in.Sort == "newest",
		Project: ident.ProjectID(in.ProjectID), Role: conversation.Role(in.Role), From: in.From, To: in.To,
		Limit: in.Limit, Cursor: in.Cursor,
	}
	hits, next, err := listIn(x, in.ProjectID, func(ws Workspace) ([]conversation.Hit, string, error) {
		return ws.Conversations.Search(x.ctx, x.actor, q)
	})
	if err != nil {
		return nil, err
	}
	return pageOf(hits, next, viewHit), nil
}
